"""A database of the first release becomes one of this release, with everything in it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest

from kern_events import Draft, SessionLog, spi
from kern_events.errors import SchemaOutdated
from kern_events.store import migrate
from tests import databases
from tests.storage.conftest import Raw
from tests.writers import note, notes, texts

NEWEST = migrate.latest("sqlite")
SCHEMA = {
    "sqlite": ["SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"],
    "postgres": [
        "SELECT c.relname::text, c.relkind::text, c.reloptions::text, a.attname::text, "
        "format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attstorage::text, a.attidentity::text, "
        "a.attcollation::int FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid "
        "WHERE c.relnamespace = current_schema()::regnamespace AND a.attnum > 0 AND NOT a.attisdropped "
        "ORDER BY c.relname, a.attnum",
        "SELECT indexname::text, indexdef FROM pg_indexes WHERE schemaname = current_schema() ORDER BY 1",
        "SELECT tgname::text, pg_get_triggerdef(oid), tgenabled::text FROM pg_trigger "
        "WHERE tgrelid IN ('kern_events'::regclass, 'kern_sessions'::regclass) ORDER BY 1",
        "SELECT conname::text, pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE connamespace = current_schema()::regnamespace ORDER BY 1",
    ],
}


def schema_of(raw):
    """Everything that the database says of its tables, without the name of the schema."""
    [(name,)] = raw.run("SELECT current_schema()::text") if raw.dialect == "postgres" else [("main",)]
    return [repr(raw.run(statement)).replace(f"{name}.", "") for statement in SCHEMA[raw.dialect]]


@pytest.fixture
def fresh(dialect, tmp_path, request) -> Iterator[Raw]:
    """Below a database that this release made."""
    if dialect == "sqlite":
        with SessionLog(f"sqlite:///{tmp_path}/fresh.db") as log:
            log.migrate()
        yield Raw(dialect, sqlite3.connect(tmp_path / "fresh.db"))
        return
    with databases.schema(request.getfixturevalue("harmed_postgres_url")) as url:
        with SessionLog(url) as log:
            log.migrate()
        with databases.connect(url) as connection:
            yield Raw(dialect, connection)


@pytest.fixture
def log(url) -> Iterator[SessionLog]:
    """A log in a database that the first release made and wrote to; not migrated yet."""
    with databases.release(1), SessionLog(url) as old:
        assert old.migrate()[1] == 1
        old.append("s", [Draft("session.created", {"user_id": "ada", "metadata": {"n": 1}}), *notes(3)])
        with old.turn("s") as turn:
            turn.message("user", "Hi")
        old.append("gone", [note("secret")], idempotency_key="k")
        old._store.delete("default", "gone", old._tombstones("gone", None))  # All that a delete was then.
    with SessionLog(url) as log:
        yield log


def test_a_migrated_database_is_as_a_fresh_one(log, raw, fresh):
    before = schema_of(raw)
    assert log.migrate() == (1, NEWEST)

    assert schema_of(raw) == schema_of(fresh)
    assert before != schema_of(raw)


def test_everything_is_as_it_was_recorded(log, raw):
    before = raw.dump()
    log.migrate()

    heads, events = raw.dump()
    # A head row has two columns more since, of which nothing is known.
    assert [heads, events] == [[f"{row[:-1]}, None, None)" for row in before[0]], before[1]]
    assert log.verify().ok
    assert texts(log.read("s")) == [0, 1, 2]
    assert [info.user_id for info in log.sessions()] == ["ada"]


def test_the_log_goes_on_with_what_is_new(log):
    log.migrate()
    log.append("s", [note("after")])
    log.fork("s", "f", turn=0)
    spi.restore(log, "s", 2, {}, log.head("s"), actor=None)
    log.delete("s")

    assert log.head("f").epoch == log.head("s").epoch == 1
    assert log.verify().ok


def test_what_the_tables_of_snapshots_held_does_no_harm(log, raw):
    raw.run(
        "INSERT INTO kern_snapshots (namespace, session_id, projector, chunk, version, epoch, fingerprint, "
        "data, stored_at) VALUES ('default', 's', 'p', '@', 4, 0, ?, ?, 0)",
        bytes(8), b"old",
    )  # fmt: skip
    log.migrate()
    table = spi.SnapshotTable(log, "session:1:f")

    assert table.put("s", 0, 7, chunks={"aa": b"new"}, head=b"new")
    assert table.head("s", 9)[1:] == (7, b"new")


def test_the_first_release_writes_no_more(log, url):
    """It would not tell forks of an erasure."""
    log.migrate()
    with databases.release(1), SessionLog(url) as old, pytest.raises(SchemaOutdated) as caught:
        old.append("s", notes(1))

    assert (caught.value.found, caught.value.needed) == (NEWEST, 1)
