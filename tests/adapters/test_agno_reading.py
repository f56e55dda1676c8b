"""What reads changes nothing: it makes no table, Agno's or ours, and stands in no migration's way."""

from __future__ import annotations

import asyncio

import pytest
from agno.db.base import SessionType
from agno.db.migrations.manager import MigrationManager
from agno.exceptions import MigrationRequiredError
from sqlalchemy import create_engine, inspect, text

from kern_events.adapters.agno import NotStored
from kern_events.errors import SessionNotFound
from tests.adapters.test_agno_edges import begun, run_ids, session_of
from tests.agno_replay import check_replay

OLD = """CREATE TABLE {table} (session_id VARCHAR NOT NULL, session_type VARCHAR NOT NULL,
agent_id VARCHAR, team_id VARCHAR, workflow_id VARCHAR, user_id VARCHAR, session_data JSON, agent_data JSON,
team_data JSON, workflow_data JSON, metadata JSON, runs JSON, summary JSON, created_at BIGINT NOT NULL,
updated_at BIGINT, {constraint})"""
OLD_ROW = """INSERT INTO {table} (session_id, session_type, agent_id, user_id, session_data, runs, created_at)
VALUES ('s', 'agent', 'a', 'ada', '{{"session_state": {{}}}}',
'[{{"run_id": "r1", "agent_id": "a", "session_id": "s", "status": "COMPLETED", "content": "hi"}}]', 1)"""


def database_of(place):
    return create_engine(place.options.get("db_url") or f"sqlite:///{place.options['db_file']}")


def everything(place):
    """The tables and triggers of a place."""
    engine, schema = database_of(place), place.options.get("db_schema")
    names = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
    if schema:
        names = "SELECT trigger_name FROM information_schema.triggers"
        names += f" WHERE trigger_schema = '{schema}'"
    try:
        with engine.connect() as connection:
            triggers = connection.execute(text(names)).scalars().all()
        return sorted(inspect(engine).get_table_names(schema=schema)), sorted(triggers)
    finally:
        engine.dispose()


def before_agno_3(place):
    """A database as Agno 2.0 has left it, and 2.3, whose JSON is JSONB on Postgres."""
    schema, engine = place.options.get("db_schema"), database_of(place)
    table = f"{schema}.agno_sessions" if schema else "agno_sessions"
    named = "CONSTRAINT agno_sessions_uq_session_id UNIQUE (session_id)"
    key = named if schema else "PRIMARY KEY (session_id)"
    with engine.begin() as connection:
        if schema:
            connection.execute(text(f"CREATE SCHEMA {schema}"))
        connection.exec_driver_sql(OLD.format(table=table, constraint=key))
        connection.exec_driver_sql(OLD_ROW.format(table=table))
    engine.dispose()


def read(db):
    """Agno's ways to read."""
    db.get_session("s", SessionType.AGENT)
    db.get_session("s", deserialize=False, user_id="bob")
    db.get_sessions(SessionType.AGENT)
    db.get_runs(session_id="s")
    db.get_run("r1")
    return run_ids(db)


async def awaited(db):
    try:
        await db.get_session("nobody")
        await db.get_sessions()
        found = await db.get_session("s")
        return [run.run_id for run in found.runs]
    finally:
        await db.close()


def test_what_reads_makes_no_tables(place):
    db = place.open()
    assert db.get_session("s", SessionType.AGENT) is None
    assert db.get_sessions(SessionType.AGENT) == []
    for name in ("load", "branches", "stored", "verify", "history", "delete"):
        with pytest.raises(SessionNotFound):
            getattr(db.sessions, name)("s")
    assert (db.sessions.head("s").version, db.sessions.sessions()) == (0, [])
    assert everything(place) == ([], [])


def test_reading_a_database_of_agnos_own_changes_nothing_in_it(place):
    begun(place.plain(), "r1")
    before = everything(place)
    db = place.open()

    assert read(db) == asyncio.run(awaited(place.open_async())) == ["r1"]
    assert db.sessions.head("nobody").version == 0
    with pytest.raises(SessionNotFound):
        db.sessions.load("nobody")
    assert everything(place) == before
    assert len(db.sessions.load("s").turns) == 1
    begun(db, "r2")
    assert run_ids(db) == ["r1", "r2"]
    check_replay(db, "s")


def test_another_session_table_is_read_beside_ours_without_a_change(place):
    begun(place.open(), "r1")
    begun(place.plain(session_table="more", runs_table="more_runs"), "r2")
    before = everything(place)

    assert run_ids(place.open(session_table="more", runs_table="more_runs")) == ["r2"]
    assert place.open(session_table="none", runs_table="no_runs").get_sessions() == []
    assert everything(place) == before


def test_a_database_of_before_agno_3_is_read_and_then_migrated(place):
    before_agno_3(place)
    before = everything(place)
    db = place.open()
    assert read(db) == asyncio.run(awaited(place.open_async())) == ["r1"]
    assert everything(place) == before
    if place.backend == "postgres":  # Where making Agno's table of runs would stop its migration.
        with pytest.raises(NotStored, match=r"MigrationRequiredError.*migrate it first"):
            db.upsert_session(session_of())
        with pytest.raises(MigrationRequiredError, match="migrate it first"):
            db.sessions.load("s")
        assert everything(place) == before

    asyncio.run(MigrationManager(db).up())
    begun(db, "r2")
    assert run_ids(db) == run_ids(place.plain()) == ["r1", "r2"]
    assert len(db.sessions.load("s").turns) == 2
    check_replay(db, "s")
