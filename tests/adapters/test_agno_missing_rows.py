"""A row that is not there says nothing: only a trigger tells of a deletion, and reading erases nothing."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress

import psycopg
import pytest
from sqlalchemy import make_url, text

from kern_events import AsyncSessionLog, Draft
from kern_events.errors import SessionNotFound
from projections import AsyncSessions
from tests import databases
from tests.adapters.test_agno_edges import begun, elsewhere, run_ids, run_of
from tests.agno_replay import check_replay


def names(place):
    """Agno's two tables, and the log's."""
    schema = f'"{place.options["db_schema"]}".' if place.backend == "postgres" else ""
    return [f"{schema}{table}" for table in ("agno_sessions", "agno_runs", "kern_events")]


def by_hand(place, *statements):
    """What somebody does to the database without us."""
    db = place.plain()
    with db.db_engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def rows(place):
    """The whole table of events, byte for byte."""
    with place.plain().db_engine.connect() as connection:
        return connection.execute(text(f"SELECT * FROM {names(place)[2]} ORDER BY position")).fetchall()


def told(db):
    """A session of Agno's with a fork, and one that lives in the log alone."""
    begun(db, "r1", "r2", state=1)
    db.sessions.restore("s", to_turn=1)
    db.upsert_run(run_of("r3"), "s", "ada")
    db.sessions.fork("s", "t", turn=1)
    with db.sessions.turn("notes") as turn:
        turn.message("user", "Remember this.")
    return db


def gone(place, how):
    """Agno's rows are gone, in one of several ways, or the rows and the log are together."""
    sessions, runs, _ = names(place)
    if how in ("detached", "deleted while detached"):
        place.open().detach()
    if how in ("deleted", "deleted while detached"):
        by_hand(place, f"DELETE FROM {runs}", f"DELETE FROM {sessions}")
    if how == "dropped":
        by_hand(place, f"DROP TABLE {runs}", f"DROP TABLE {sessions}")
    if how == "truncated":
        by_hand(place, emptied(place, runs), emptied(place, sessions))


def emptied(place, table):
    """What empties a table without a word to the triggers on its rows."""
    return f"TRUNCATE {table} CASCADE" if place.backend == "postgres" else f"DROP TABLE {table}"


HOW = ["together", "detached", "deleted", "deleted while detached", "dropped", "truncated"]


def read_all_of_it(log, session_id):
    """Every verb that reads a session, and those that read all."""
    for verb in (
        log.load, log.history, log.branches, log.verify, log.head,
        lambda one: list(log.read(one)),
        lambda one: list(log.export(one)),
        lambda one: list(log.replay(one)),
        lambda one: log.load(one, version=1),
        lambda one: log.diff(one, 1, log.head(one).version),
    ):  # fmt: skip
        with suppress(SessionNotFound):
            verb(session_id)
    list(log.read_all())
    log.sessions()
    log.verify()
    log.consumers()


@pytest.mark.parametrize("how", HOW)
def test_reading_leaves_the_log_byte_for_byte_the_same(place, how):
    told(place.open())
    gone(place, how)
    before = rows(place)
    db = place.open()

    db.get_sessions()
    db.get_sessions(deserialize=False)
    for session_id in ("s", "t", "notes", "nobody"):
        db.get_session(session_id)
        db.get_run("r1")
        read_all_of_it(db.sessions, session_id)
        with suppress(SessionNotFound):
            db.sessions.stored(session_id)
        with elsewhere(db) as log:
            read_all_of_it(log, session_id)
    assert rows(place) == before


@pytest.mark.parametrize("how", HOW)
def test_reading_from_a_loop_leaves_the_log_byte_for_byte_the_same(place, how):
    told(place.open())
    gone(place, how)
    before = rows(place)

    async def read(session_id, log):
        for verb in (log.load, log.history, log.branches, log.verify, log.head):
            with suppress(SessionNotFound):
                await verb(session_id)
        for verb in (log.read, log.export, log.replay):
            with suppress(SessionNotFound):
                [each async for each in verb(session_id)]

    async def main():
        db = place.open_async()
        await db.get_sessions()
        address, schema = db._twin.db_engine.url, getattr(db, "db_schema", None)
        namespace = db._twin.sessions.namespace
        for session_id in ("s", "t", "notes", "nobody"):
            await db.get_session(session_id)
            await read(session_id, db.sessions)
            async with AsyncSessions(address, namespace=namespace, schema=schema) as log:
                await read(session_id, log)
        async with AsyncSessionLog(address, namespace=namespace, schema=schema) as log:
            [each async for each in log.read_all()]
        await db.close()

    asyncio.run(main())
    assert rows(place) == before


@pytest.mark.parametrize("how", ["detached", "deleted while detached", "dropped", "truncated"])
def test_rows_that_are_missing_are_made_again_from_the_log(place, how):
    told(place.open())
    gone(place, how)
    db = place.open()

    assert {session.session_id for session in db.get_sessions()} == {"s", "t"}
    assert run_ids(db) == ["r1", "r3"]
    assert len(db.sessions.load("notes").messages) == 1
    db.upsert_run(run_of("r4"), "s", "ada")
    assert run_ids(db) == ["r1", "r3", "r4"]
    for session_id in "st":
        check_replay(db, session_id)


@pytest.mark.parametrize("how", ["dropped", "truncated"])
def test_runs_that_are_missing_are_not_taken_for_deleted(place, how):
    told(place.open())
    runs = names(place)[1]
    by_hand(place, emptied(place, runs) if how == "truncated" else f"DROP TABLE {runs}")
    db = place.open()
    db.upsert_run(run_of("r4"), "s", "ada")
    db.adopt()

    assert len(db.sessions.load("s").turns) == 3
    assert "agno.run.deleted" not in {event.type for event in db.sessions.read("s")}


def test_a_write_without_a_read_finds_the_rows_that_are_missing(place):
    db = begun(place.open(), "r1")
    by_hand(place, *(emptied(place, table) for table in reversed(names(place)[:2])))
    db = place.open()
    db.upsert_run(run_of("r2"), "s", "ada")

    assert run_ids(db) == ["r1", "r2"]
    assert [event.type for event in db.sessions.read("s")].count("session.created") == 1


def test_what_others_have_deleted_is_not_shown_and_erased_with_adopt(place):
    db = told(place.open())
    place.plain().delete_session("s")

    assert db.get_session("s") is None
    assert {session.session_id for session in db.get_sessions()} == {"t"}
    for verb in (db.sessions.load, db.sessions.history, db.sessions.read, db.sessions.export):
        with pytest.raises(SessionNotFound):
            verb("s")
    assert db.sessions.head("s").status == "open"
    db.adopt()
    assert db.sessions.head("s").status == "deleted"
    assert db.sessions.verify().ok


def test_what_others_have_deleted_and_begun_again_is_erased_before_it_goes_on(place):
    db = begun(place.open(), "r1")
    place.plain().delete_session("s")
    begun(place.plain(), "r2")

    assert run_ids(db) == ["r2"]
    db.upsert_run(run_of("r3"), "s", "ada")
    assert run_ids(db) == ["r2", "r3"]
    assert all(event.erased for event in db.sessions.read("s") if event.version <= 4 and event.kind < 5)
    check_replay(db, "s")


def test_a_deletion_that_was_noted_outlives_detaching(place):
    db = begun(place.open(), "r1")
    place.plain().delete_session("s")
    db.detach()
    again = place.open()

    assert run_ids(again) is None
    again.adopt()
    assert again.sessions.head("s").status == "deleted"


def test_a_run_that_others_delete_is_recorded_as_that(place):
    db = begun(place.open(), "r1", "r2")
    place.plain().delete_run("r1")

    assert [turn.status for turn in db.sessions.load("s").turns] == ["completed"] * 2
    assert "agno.run.deleted" in [event.type for event in db.sessions.read("s")]
    assert run_ids(db) == ["r2"]
    check_replay(db, "s")


def test_what_the_log_has_begun_again_is_not_erased_for_an_older_deletion(place):
    db = begun(place.open(), "r1")
    place.plain().delete_session("s")
    with elsewhere(db) as log:
        log.delete("s")
        log.append("s", [Draft("session.created", {}), Draft("note.made", {"text": "new"})])
    db.adopt()

    assert db.sessions.head("s").status == "open"
    assert [event.payload for event in db.sessions.read("s")][-1] == {"text": "new"}


# -------------------------------------------------------------------------------- who may say so


@pytest.fixture
def stranger(agno_postgres_url):
    """The URL of a role that may connect and make temporary tables, and nothing else."""
    name = f"r{uuid.uuid4().hex[:12]}"
    with databases.connect(agno_postgres_url) as owner:
        owner.execute(f"CREATE ROLE {name} LOGIN")
    yield make_url(agno_postgres_url).set(username=name).render_as_string(hide_password=False)
    with databases.connect(agno_postgres_url) as owner:
        owner.execute(f"DROP OWNED BY {name} CASCADE")
        owner.execute(f"DROP ROLE {name}")


def delete_from_a_table_of_its_own(url, db):
    """What a role can do to say that a session was deleted."""
    with databases.connect(url) as connection:
        connection.execute("CREATE TEMPORARY TABLE agno_sessions (session_id text, run_id text)")
        connection.execute("INSERT INTO agno_sessions VALUES ('s', 'r1')")
        connection.execute(
            "CREATE TRIGGER t AFTER DELETE ON agno_sessions FOR EACH ROW EXECUTE FUNCTION "
            f"{db.db_schema}.kern_agno_changed('{db.sessions.namespace}', 'sessions')"
        )
        connection.execute("DELETE FROM agno_sessions")


@pytest.mark.parametrize("place", ["postgres"], indirect=True)
@pytest.mark.parametrize("may_see", [False, True])
@pytest.mark.parametrize("may_call", [False, True])
def test_a_role_without_rights_deletes_nothing(place, agno_postgres_url, stranger, may_see, may_call):
    db = begun(place.open(), "r1")
    with databases.connect(agno_postgres_url) as owner:
        if may_see:
            owner.execute(f"GRANT USAGE ON SCHEMA {db.db_schema} TO PUBLIC")
        if may_call:
            owner.execute(f"GRANT EXECUTE ON FUNCTION {db.db_schema}.kern_agno_changed() TO PUBLIC")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        delete_from_a_table_of_its_own(stranger, db)
    db.adopt()

    assert db.sessions.head("s").status == "open"
    assert run_ids(db) == ["r1"]


EARLIER = """
CREATE OR REPLACE FUNCTION {schema}.kern_agno_changed() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    INSERT INTO {schema}.kern_agno_sessions AS mark (namespace, session_id, version, turn, changed)
        VALUES (TG_ARGV[0], OLD.session_id, 0, 0, 1)
        ON CONFLICT (namespace, session_id) DO UPDATE SET changed = 1 WHERE mark.changed = 0;
    RETURN NULL;
END $$;
GRANT EXECUTE ON FUNCTION {schema}.kern_agno_changed() TO PUBLIC;
"""


@pytest.mark.parametrize("place", ["postgres"], indirect=True)
def test_what_an_earlier_release_has_made_is_mended_when_it_is_opened(place, agno_postgres_url, stranger):
    db = begun(place.open(), "r1")
    with databases.connect(agno_postgres_url) as owner:
        owner.execute(f"GRANT USAGE ON SCHEMA {db.db_schema} TO PUBLIC")
        owner.execute(EARLIER.format(schema=db.db_schema))
        [name] = [each for each, _ in db._kern.tables._triggers() if "_s_" in each]
        owner.execute(f"DROP TRIGGER {name} ON {db.db_schema}.agno_sessions")
        owner.execute(
            f"CREATE TRIGGER {name} AFTER INSERT OR UPDATE OR DELETE ON {db.db_schema}.agno_sessions "
            f"FOR EACH ROW EXECUTE FUNCTION {db.db_schema}.kern_agno_changed('{db.sessions.namespace}')"
        )
    assert run_ids(place.open()) == ["r1"]

    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        delete_from_a_table_of_its_own(stranger, db)
    place.plain().delete_session("s")
    db.adopt()
    assert db.sessions.head("s").status == "deleted"


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
def test_a_trigger_that_an_earlier_release_has_made_is_mended_when_it_is_opened(place):
    db = begun(place.open(), "r1")
    [(name, _)] = [each for each in db._kern.tables._triggers() if "_s_" in each[0] and "delete" in each[0]]
    by_hand(place, f"DROP TRIGGER {name}", f"CREATE TRIGGER {name} AFTER DELETE ON agno_sessions BEGIN "
            "UPDATE kern_agno_sessions SET changed = 1 WHERE session_id = OLD.session_id; END")  # fmt: skip
    again = place.open()
    assert run_ids(again) == ["r1"]
    place.plain().delete_session("s")
    again.adopt()

    assert again.sessions.head("s").status == "deleted"
