"""Tables that a DBA has moved to another schema, or whose schema has another name now."""

from __future__ import annotations

import psycopg
import pytest

from kern_events import SessionLog
from kern_events.store import migrate
from tests import databases, facade
from tests.storage.conftest import Raw
from tests.writers import notes

TABLES = ("sessions", "events", "snapshots", "consumers", "parked", "migrations")
MOVES = {
    "renamed": ["ALTER SCHEMA staging RENAME TO live"],
    "moved": ["CREATE SCHEMA live", *(f"ALTER TABLE staging.kern_{one} SET SCHEMA live" for one in TABLES)],
}


@pytest.fixture(params=MOVES)
def dba(request, postgres_url):
    """Below a log with a fork, whose tables lie in `live` now and were made in `staging`."""
    with SessionLog(postgres_url, schema="staging") as log:
        log.append("s", notes(3))
        log.fork("s", "f", version=2)
    with databases.connect(postgres_url) as dba:
        for statement in MOVES[request.param]:
            dba.execute(statement)
        yield Raw("postgres", dba)


@pytest.mark.parametrize("kind", facade.FACADES)
def test_a_session_is_erased_after_its_tables_were_moved(dba, postgres_url, kind):
    with facade.opened(kind, postgres_url, schema="live") as log:
        log.delete("s")

        assert log.head("s").status == "deleted"
        assert log.verify().ok
    assert dba.run("SELECT count(*) FROM live.kern_events WHERE payload IS NOT NULL") == [(1,)]


def test_nothing_else_can_be_changed_after_its_tables_were_moved(dba):
    for statement in ("UPDATE live.kern_events SET payload = NULL", "DELETE FROM live.kern_sessions"):
        with pytest.raises(psycopg.errors.RestrictViolation):
            dba.run(statement)


@pytest.mark.parametrize("dba", ["renamed"], indirect=True)
def test_another_log_under_the_old_name_is_not_asked_for_tombstones(dba, postgres_url):
    with SessionLog(postgres_url, schema="staging") as other:
        other.append("s", notes(3))
        other.delete("s")

    erase = "SET payload = NULL, native = NULL, salt = NULL, payload_commit = sha256('')"
    with pytest.raises(psycopg.errors.RestrictViolation):
        dba.run(f"UPDATE live.kern_events {erase} WHERE session_id = 's' AND version = 1")


def test_tables_that_were_moved_before_an_update_are_mended(postgres_url, monkeypatch):
    """Their triggers call functions of an older release, which were left behind in another schema."""
    known = migrate.migrations
    with monkeypatch.context() as older, SessionLog(postgres_url, schema="staging") as log:
        older.setattr(migrate, "migrations", lambda dialect: known(dialect)[:5])
        log.append("s", notes(2))
    with databases.connect(postgres_url) as dba:
        for statement in MOVES["moved"]:
            dba.execute(statement)

    with SessionLog(postgres_url, schema="live") as log:
        log.migrate()
        log.delete("s")
        assert log.verify().ok
