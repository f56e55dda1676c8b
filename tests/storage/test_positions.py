"""Positions go on after a cut-over or a restore that brought the rows and not the sequence."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine

from kern_events import SessionLog
from kern_events.cli.app import cli
from kern_events.errors import StoreError
from tests import databases, facade
from tests.writers import note, notes, texts

AGAIN = "positions would begin again: 3 is recorded, and the next one would be 1; run `kern-events migrate"
SEQUENCE = "kern_events_position_seq"


COLUMNS = "SELECT attname FROM pg_attribute WHERE attrelid = (?::text || '.' || ?)::regclass AND attnum > 0"


def in_coroutines(seen):
    async def handle(events):
        seen.extend(events)

    return handle


HANDLERS = {"sync": lambda seen: seen.extend, "async": in_coroutines}


@pytest.fixture
def dialect():
    return "postgres"


@pytest.fixture
def left_behind(log, raw):
    """Three events, and a sequence that has not been told of them."""
    log.append("s", notes(3))
    raw.run(f"ALTER SEQUENCE {SEQUENCE} RESTART")
    return raw


def count(raw):
    return raw.run("SELECT count(*) FROM kern_events")[0][0]


WRITES = {
    "append": lambda log: log.append("s", notes(1)),
    "append a new session": lambda log: log.append("new", notes(1)),
    "append_many": lambda log: log.append_many([("s", notes(1), None), ("t", notes(1), None)]),
    "fork": lambda log: log.fork("s", "f", version=2),
    "delete": lambda log: log.delete("s"),
}


@pytest.mark.parametrize("kind", facade.FACADES)
@pytest.mark.parametrize("write", WRITES)
def test_nothing_is_written_where_positions_would_begin_again(left_behind, url, kind, write):
    with facade.opened(kind, url) as late, pytest.raises(StoreError, match=AGAIN):
        WRITES[write](late)

    assert count(left_behind) == 3


def test_nor_in_a_transaction_of_the_callers(left_behind, url):
    engine = create_engine(url)
    with SessionLog(url) as late, engine.begin() as connection, pytest.raises(StoreError, match=AGAIN):
        late.append("s", notes(1), connection=connection)
    engine.dispose()

    assert count(left_behind) == 3


def test_it_is_told_by_verify_and_status_and_at_open_and_mended_by_migrate(left_behind, url, caplog):
    said = "positions: 1"
    with SessionLog(url) as late:
        assert [(one.field, one.found) for one in late.verify().findings] == [("positions", "1")]
    assert said in caplog.text
    assert said in CliRunner().invoke(cli, ["status", "--db", url]).stdout
    assert "mended: positions" in CliRunner().invoke(cli, ["migrate", "--db", url]).stdout

    with SessionLog(url) as late:
        assert late.append("s", notes(1)).position == 4
        assert late.verify().ok


@pytest.mark.parametrize("kind", facade.FACADES)
def test_a_consumer_goes_on_where_its_rows_were_copied_to(log, raw, url, harmed_postgres_url, kind):
    """As logical replication, COPY and a restore of data alone do: rows, and no sequence."""
    log.append("s", notes(3))
    log.consumer("index", lambda events: None).run(until_idle=True)
    [(old,)] = raw.run("SELECT current_schema()")
    with databases.schema(harmed_postgres_url) as there:
        with SessionLog(there) as new, databases.connect(there) as connection:
            new.migrate()
            for table in ("kern_sessions", "kern_events", "kern_consumers"):
                columns = ", ".join(f'"{name}"' for (name,) in raw.run(COLUMNS, old, table))
                rows = f"SELECT {columns} FROM {old}.{table}"
                connection.execute(f"INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE {rows}".encode())
        with facade.opened(kind, there) as new:
            with pytest.raises(StoreError, match=AGAIN):
                new.append("s", notes(1))
            new.migrate()
            new.append("s", [note("there")])
            assert seen_by(new, kind) == ["there"]


def seen_by(log, kind):
    """What a consumer is given from where it stands."""
    seen = []
    log.consumer("index", HANDLERS[kind](seen)).run(until_idle=True)
    return texts(seen)


def test_a_sequence_that_was_set_by_hand_is_fine(left_behind, url):
    left_behind.run(f"ALTER SEQUENCE {SEQUENCE} RESTART WITH 4")

    with SessionLog(url) as late:
        assert late.verify().ok
        assert late.append("s", notes(1)).position == 4


def test_a_log_that_was_open_before_looks_again_when_it_reconnects(log, left_behind):
    left_behind.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                    " AND datname = current_database() AND query LIKE '%kern_events%'")  # fmt: skip
    log.head("s")

    with pytest.raises(StoreError, match=AGAIN):
        log.append("s", notes(1))
    assert count(left_behind) == 3


def test_a_log_behind_a_pooler_notices_by_the_first_position_that_it_is_given(log, left_behind, caplog):
    """Its connection is the same, and leads to another server."""
    assert log.append("s", notes(1)).position == 1
    assert "position 1 after 3" in caplog.text

    with pytest.raises(StoreError, match="3 is recorded, and the next one would be 2"):
        log.append("s", notes(1))
    [found] = [one for one in log.verify().findings if one.session_id]
    assert (found.version, found.field, found.expected, found.found) == (4, "position", "above 3", "1")


def test_an_end_that_was_lost_in_a_failover_is_gone_on_from(log, raw):
    """The events and the sequence are as they were before: that is no reason to refuse."""
    log.append("s", notes(3))
    raw.disarm()
    raw.run("DELETE FROM kern_events WHERE version = 3")
    second = "(SELECT hash FROM kern_events WHERE version = 2)"
    raw.run(f"UPDATE kern_sessions SET version = 2, head_hash = {second}")
    raw.run(f"ALTER SEQUENCE {SEQUENCE} RESTART WITH 3")

    assert [log.append("s", notes(1)).position for _ in range(3)] == [3, 4, 5]


def test_who_may_not_read_the_sequence_appends_and_notices_later(log, clerk, raw):
    log.append("s", notes(3))
    with SessionLog(clerk) as other:
        assert other.append("s", notes(1)).position == 4
        assert "may not read the sequence" in other.verify().notes[0]
        raw.run(f"ALTER SEQUENCE {SEQUENCE} RESTART")
        assert other.append("s", notes(1)).position == 1

        with pytest.raises(StoreError, match="4 is recorded, and the next one would be lower"):
            other.append("s", notes(1))


def test_sqlite_goes_on_whatever_became_of_its_sequence(tmp_path):
    """It asks the table as well: a dump of the tables alone, or rows copied from another file, do no harm."""
    url = f"sqlite:///{tmp_path}/log.db"
    with SessionLog(url) as log:
        log.append("s", notes(3))
    positions = []
    for harm in ("DELETE FROM sqlite_sequence", "UPDATE sqlite_sequence SET seq = 1"):
        with closing(sqlite3.connect(tmp_path / "log.db", isolation_level=None)) as raw:
            raw.execute(harm)
        with SessionLog(url) as log:
            positions.append(log.append("s", notes(1)).position)
            assert log.verify().ok
    assert positions == [4, 5]


def test_sqlite_goes_on_in_a_file_made_from_a_dump(tmp_path):
    with SessionLog(f"sqlite:///{tmp_path}/log.db") as log:
        log.append("s", notes(3))
    with (
        closing(sqlite3.connect(tmp_path / "log.db")) as source,
        closing(sqlite3.connect(tmp_path / "copy.db")) as target,
    ):
        target.executescript("\n".join(source.iterdump()))

    with SessionLog(f"sqlite:///{tmp_path}/copy.db") as log:
        assert log.append("s", notes(1)).position == 4
        assert log.verify().ok
