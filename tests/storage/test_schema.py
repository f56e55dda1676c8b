"""Making, checking and updating the tables."""

from __future__ import annotations

import hashlib
from importlib import resources

import pytest

from kern_events import SessionLog
from kern_events.errors import SchemaOutdated, StoreError
from kern_events.store import migrate
from tests.writers import in_processes, notes, pile_up_at

OURS = {"kern_sessions", "kern_events", "kern_snapshots", "kern_consumers", "kern_parked", "kern_migrations"}
NEWEST = migrate.latest("sqlite")

NAMES = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'kern%'",
    "postgres": "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()",
}


def test_the_first_use_makes_the_tables(url, raw):
    with SessionLog(url) as log:
        assert log.head("s").version == 0

    assert {name for (name,) in raw.run(NAMES[raw.dialect])} == OURS


def test_migrating_tells_the_numbers_before_and_after(url, dialect, tmp_path):
    if dialect == "sqlite":
        with SessionLog(f"sqlite:///{tmp_path}/fresh.db") as fresh:
            assert fresh.migrate() == (0, NEWEST)
    with SessionLog(url) as log:
        assert log.migrate()[1] == NEWEST
        assert log.migrate() == (NEWEST, NEWEST)


def test_what_was_applied_is_remembered_with_its_text(raw):
    rows = raw.run("SELECT number, name, sha256, min_writer FROM kern_migrations ORDER BY number")

    files = resources.files("kern_events.store") / "migrations"
    for number, name, sha256, min_writer in rows:
        text = (files / f"{name}.{raw.dialect}.sql").read_bytes()
        assert hashlib.sha256(text).hexdigest() == sha256
        assert min_writer <= number
    assert [row[0] for row in rows] == list(range(1, NEWEST + 1))


@pytest.mark.parametrize("table", sorted(OURS - {"kern_migrations"}))
def test_somebody_elses_table_of_our_name_is_not_touched(url, raw, table):
    """The tables are made under other names first, so that the database is as if they had never been."""
    for name in OURS:
        raw.run(f"DROP TABLE IF EXISTS {name}" + (" CASCADE" if raw.dialect == "postgres" else ""))
    raw.run(f"CREATE TABLE {table} (theirs INTEGER)")
    raw.run(f"INSERT INTO {table} VALUES (7)")

    with SessionLog(url) as log, pytest.raises(StoreError, match=f"'{table}' that this project did not make"):
        log.append("s", notes(1))
    assert raw.run(f"SELECT * FROM {table}") == [(7,)]
    assert {name for (name,) in raw.run(NAMES[raw.dialect])} == {table}


def test_eight_processes_make_the_tables_at_once(url, dialect):
    if dialect == "sqlite":
        url = url.replace("log.db", "fresh.db")
    landed = in_processes(8, pile_up_at, "sync", url, {"lock_timeout_s": 30.0}, "s", 1)

    assert sorted(version for [version] in landed) == list(range(1, 9))


# ------------------------------------------------------------------------------------- numbers


def newer(raw, number, min_writer):
    raw.run(
        f"INSERT INTO kern_migrations VALUES ({number}, 'later', 'x', {min_writer}, 0)",
    )


def test_a_newer_schema_that_is_closed_to_us_is_refused(url, log, raw):
    log.append("s", notes(1))
    newer(raw, 99, min_writer=99)

    with SessionLog(url) as late, pytest.raises(SchemaOutdated, match="upgrade kern-events") as caught:
        late.append("s", notes(1))
    assert (caught.value.found, caught.value.needed) == (99, NEWEST)
    assert raw.run("SELECT count(*) FROM kern_events") == [(1,)]


def test_a_newer_schema_that_lets_us_write_is_written_to(url, log, raw):
    newer(raw, 99, min_writer=NEWEST)

    with SessionLog(url) as late:
        assert late.append("s", notes(1)).version == 1
        assert late.verify().ok


@pytest.fixture
def next_release(monkeypatch):
    """As if there were one more migration."""
    known = migrate.migrations

    def migrations(dialect):
        later = migrate.Migration(
            NEWEST + 1, f"{NEWEST + 1:04}_later", "CREATE TABLE kern_later (x INTEGER);\n"
        )
        return (*known(dialect), later)

    monkeypatch.setattr(migrate, "migrations", migrations)
    monkeypatch.setitem(migrate.MIN_WRITER, NEWEST + 1, NEWEST + 1)


@pytest.mark.parametrize("dialect", ["postgres"], indirect=True)
def test_an_older_schema_is_refused_by_postgres_until_it_is_migrated(url, log, raw, next_release):
    log.append("s", notes(1))
    with SessionLog(url) as late:
        with pytest.raises(SchemaOutdated, match="kern-events migrate") as caught:
            late.append("s", notes(1))
        assert (caught.value.found, caught.value.needed) == (NEWEST, NEWEST + 1)

        assert late.migrate() == (NEWEST, NEWEST + 1)
        assert late.append("s", notes(1)).version == 2


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_an_older_schema_is_migrated_by_sqlite_when_it_is_opened(url, log, raw, next_release):
    log.append("s", notes(1))
    with SessionLog(url) as late:
        assert late.append("s", notes(1)).version == 2

    assert ("kern_later",) in raw.run(NAMES["sqlite"])
    assert raw.run("SELECT max(number) FROM kern_migrations") == [(NEWEST + 1,)]


def test_a_migration_that_fails_leaves_nothing_of_itself(url, log, raw, monkeypatch, next_release):
    known = migrate.migrations
    broken = "CREATE TABLE kern_later (x INTEGER);\nCREATE TABLE kern_later (x INTEGER);\n"
    monkeypatch.setattr(
        migrate,
        "migrations",
        lambda dialect: tuple(m._replace(text=broken) if m.number > NEWEST else m for m in known(dialect)),
    )

    with SessionLog(url) as late, pytest.raises(StoreError):
        late.migrate()
    assert {name for (name,) in raw.run(NAMES[raw.dialect])} == OURS
    assert raw.run("SELECT max(number) FROM kern_migrations") == [(NEWEST,)]


# ---------------------------------------------------------------------------- the readable view


def test_a_person_can_read_the_log_with_any_tool(log, raw):
    log.append("s", [*notes(1)], idempotency_key="k")
    log.append("deleted", notes(1))
    log.delete("deleted")

    rows = raw.run(
        "SELECT session_id, version, type, payload, erased FROM kern_events_readable ORDER BY position"
    )
    assert [(row[0], row[1], row[2], row[3]) for row in rows] == [
        ("s", 1, "note.taken", '{"text":0}'),
        ("deleted", 1, "note.taken", None),
        ("deleted", 2, "session.deleted", "{}"),
    ]
    assert [bool(row[4]) for row in rows] == [False, True, False]
