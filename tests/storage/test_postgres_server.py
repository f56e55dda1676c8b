"""What only Postgres has: schemas, roles, a feed beside open transactions, a server that is away."""

from __future__ import annotations

import threading
from contextlib import closing, contextmanager

import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

from kern_events import SessionLog
from kern_events.errors import FeedUnavailable, StoreBusy, StoreError, StoreFull, StoreUnavailable
from kern_events.store.postgres_server import translated
from tests import databases
from tests.writers import PATIENCE_S, eventually, note, notes, texts


@pytest.fixture
def dialect():
    return "postgres"


def run(url, *statements):
    with databases.connect(url) as connection:
        for statement in statements:
            cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else None


# ------------------------------------------------------------------------------------- schemas


@pytest.mark.parametrize("schema", ["tenant", "Tenant", "_x1", "select"])
def test_the_tables_may_be_in_a_schema_of_their_own(postgres_url, schema):
    with SessionLog(postgres_url, schema=schema) as log:
        log.append("s", notes(2), idempotency_key="k")
        log.append("s", notes(2), idempotency_key="k2", expected=2)
        log.append_many([("a", notes(1), 0), ("s", notes(1), 4)])
        log.delete("a")

        assert texts(log.read("s")) == [0, 1, 0, 1, 0]
        assert len(list(log.read_all())) == 7
        assert [info.session_id for info in log.sessions()] == ["s"]
        assert log.verify().ok
    query = f"SELECT count(*) FROM pg_tables WHERE schemaname = '{schema}'"
    assert run(postgres_url, query) == [(6,)]


def test_a_schema_that_was_given_to_the_role_is_used(postgres_url):
    """`IF NOT EXISTS` asks for a right on the database, which the role has not."""
    run(postgres_url, "CREATE ROLE guest LOGIN", "CREATE SCHEMA given AUTHORIZATION guest")
    try:
        address = make_url(postgres_url).set(username="guest")
        with SessionLog(address, schema="given") as log:
            assert log.append("s", notes(1)).version == 1
        run(postgres_url, "REVOKE CREATE ON SCHEMA given FROM guest", "ALTER SCHEMA given OWNER TO postgres")
        run(postgres_url, "GRANT USAGE ON SCHEMA given TO guest")
        with SessionLog(address, schema="given") as log:
            before, after = log.migrate()
            assert before == after
            run(postgres_url, "DROP INDEX given.kern_events_key")
            with pytest.raises(StoreError, match="index kern_events_key cannot be mended: permission denied"):
                log.migrate()
    finally:
        run(postgres_url, "DROP OWNED BY guest CASCADE", "DROP ROLE guest")


def test_schemas_see_nothing_of_each_other(postgres_url):
    with SessionLog(postgres_url, schema="a") as a, SessionLog(postgres_url, schema="b") as b:
        a.append("s", [note("a")])
        b.append("s", [note("b")], expected=0)
        b.delete("s")

        assert texts(a.read("s")) == ["a"]
        assert len(list(b.read_all())) == 2
        assert a.verify().ok
        assert b.verify().ok


def test_the_append_only_rule_holds_in_a_schema(postgres_url):
    with SessionLog(postgres_url, schema="tenant") as log:
        log.append("s", notes(1))

    for statement in ("UPDATE tenant.kern_events SET type = 'x'", "TRUNCATE tenant.kern_events"):
        with pytest.raises(psycopg.errors.RestrictViolation):
            run(postgres_url, statement)


@pytest.mark.parametrize("schema", ["", 'a"b', "a.b", "a; DROP TABLE x", "1a", "a b", "x" * 64])
def test_what_is_no_schema_name_is_refused(schema):
    with pytest.raises(ValueError, match="schema name"):
        SessionLog("postgresql://localhost/db", schema=schema)


def test_sqlite_has_no_schema(tmp_path):
    with pytest.raises(ValueError, match="schema="):
        SessionLog(f"sqlite:///{tmp_path}/log.db", schema="tenant")


def test_the_search_path_of_the_url_is_followed(postgres_url):
    run(postgres_url, "CREATE SCHEMA elsewhere")
    with SessionLog(f"{postgres_url}?options=-csearch_path%3Delsewhere") as log:
        log.append("s", notes(1))

    assert run(postgres_url, "SELECT count(*) FROM elsewhere.kern_events") == [(1,)]


# --------------------------------------------------------------------------------------- roles


@pytest.fixture
def clerk(postgres_url):
    """The address of a role that may connect and nothing else."""
    name = make_url(postgres_url).database.replace("kern_test", "clerk")[:60]
    run(postgres_url, f"CREATE ROLE {name} LOGIN", "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    yield make_url(postgres_url).set(username=name).render_as_string(False)
    run(postgres_url, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def test_who_may_not_make_the_tables_is_told_who_can(clerk):
    with SessionLog(clerk) as log, pytest.raises(StoreError, match="kern-events migrate --db URL") as caught:
        log.append("s", notes(1))

    assert isinstance(caught.value.__cause__, psycopg.errors.InsufficientPrivilege)


def test_who_may_only_write_writes_once_the_tables_are_there(clerk, postgres_url):
    with SessionLog(postgres_url) as log:
        log.migrate()
    role = make_url(clerk).username
    run(
        postgres_url,
        f"GRANT SELECT, INSERT ON kern_events TO {role}",
        f"GRANT SELECT, INSERT, UPDATE ON kern_sessions TO {role}",
        f"GRANT SELECT ON kern_migrations TO {role}",
    )

    with SessionLog(clerk) as log:
        log.append("s", notes(2))
        log.append_many([("s", notes(1), 2), ("t", notes(1), 0)])
        assert log.verify().ok
        assert len(list(log.read_all())) == 4


def test_who_may_not_write_is_told_so(clerk, postgres_url):
    with SessionLog(postgres_url) as log:
        log.append("s", notes(1))
    run(postgres_url, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {make_url(clerk).username}")

    with SessionLog(clerk) as log:
        assert texts(log.read("s")) == [0]
        with pytest.raises(StoreError, match="permission denied"):
            log.append("s", notes(1))


# ---------------------------------------------------------------------------------------- feed


def test_the_feed_waits_for_an_event_that_is_not_committed_yet(postgres_url):
    """Positions are drawn before the commit: whoever passed this one would never see it again."""
    engine = create_engine(postgres_url)
    read = []
    with SessionLog(postgres_url) as log:
        log.append("first", notes(1))
        with engine.begin() as connection:
            slow = log.append("slow", [note("slow")], connection=connection).receipt
            quick = log.append("quick", [note("quick")])
            assert slow.position < quick.position
            naive = run(postgres_url, f"SELECT position FROM kern_events WHERE position >= {slow.position}")
            reader = threading.Thread(target=lambda: read.extend(log.read_all()))
            reader.start()
            eventually(lambda: _asks_for_locks(postgres_url) or not reader.is_alive())
            assert read == []
        reader.join(PATIENCE_S)
        assert not reader.is_alive()

    assert naive == [(quick.position,)]  # Positive control: a naive reader passes it.
    assert [event.session_id for event in read] == ["first", "slow", "quick"]
    engine.dispose()


def _asks_for_locks(url):
    [(count,)] = run(
        url,
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_locks%' "
        "AND datname = current_database() AND pid <> pg_backend_pid()",
    )
    return count


def test_the_feed_does_not_wait_for_what_was_rolled_back(postgres_url):
    engine = create_engine(postgres_url)
    with SessionLog(postgres_url) as log, closing(engine.connect()) as connection:
        log.append("first", notes(1))
        transaction = connection.begin()
        log.append("never", notes(1), connection=connection)
        log.append("last", notes(1))
        transaction.rollback()

        assert [event.session_id for event in log.read_all()] == ["first", "last"]
    engine.dispose()


def test_a_writer_that_does_not_end_makes_the_feed_busy(postgres_url):
    engine = create_engine(postgres_url)
    with SessionLog(postgres_url, lock_timeout_s=0.2) as log:
        log.append("first", notes(1))
        with engine.begin() as connection:
            log.append("slow", notes(1), connection=connection)
            with pytest.raises(StoreBusy, match="not ended"):
                list(log.read_all())
    engine.dispose()


def test_a_sequence_that_is_drawn_in_advance_gives_no_feed(postgres_url):
    with SessionLog(postgres_url) as log:
        log.append("s", notes(1))
        run(postgres_url, "ALTER SEQUENCE kern_events_position_seq CACHE 10")

        with pytest.raises(FeedUnavailable, match="CACHE 1"):
            list(log.read_all())
        assert log.append("s", notes(1)).version == 2


# ------------------------------------------------------------------------------------- poolers


@contextmanager
def session_of(log):
    """A connection that the log has, and its cursor."""
    lease = log._store._server._connections.take()
    yield lease.driver
    log._store._server._connections.give(lease)


@pytest.mark.parametrize(
    ("query", "threshold", "setting"),
    [
        ("", 5, "5s"),
        ("?prepare_threshold=0", 0, "5s"),
        ("?prepare_threshold=3", 3, "5s"),
        ("?prepare_threshold=none", None, "0"),
        ("?prepare_threshold=None", None, "0"),
    ],
)
def test_for_a_pooler_nothing_is_left_in_a_session(postgres_url, query, threshold, setting):
    with SessionLog(postgres_url + query) as log:
        for version in range(9):
            log.append("s", notes(1), expected=version)
        log.append_many([("s", notes(1), None), ("t", notes(1), None)])
        assert log.verify().ok

        with session_of(log) as (connection, _):
            assert connection.prepare_threshold == threshold
            [(prepared,)] = connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchall()
            assert (prepared > 0) == (threshold is not None)
            assert connection.execute("SHOW lock_timeout").fetchall() == [(setting,)]


@pytest.mark.parametrize(
    "use",
    [
        lambda log: log.append("s", notes(1)),
        lambda log: log.append_many([("s", notes(1), None)]),
        lambda log: log.delete("s"),
        lambda log: log.head("s"),
        lambda log: log.verify(),
        lambda log: log.migrate(),
    ],
)
def test_for_a_pooler_each_transaction_has_its_lock_timeout(postgres_url, use):
    address = f"{postgres_url}?prepare_threshold=none"
    with SessionLog(address, lock_timeout_s=0.1) as log, databases.connect(postgres_url) as other:
        log.append("s", notes(1))
        with other.transaction():
            other.execute("LOCK TABLE kern_sessions, kern_events, kern_migrations")
            with pytest.raises(StoreBusy) as caught:
                use(log)

        assert isinstance(caught.value.__cause__, psycopg.errors.LockNotAvailable)
        assert log.append("s", notes(1)).version == 2


def _stuck(pipeline):
    """The reason comes, and the driver cannot leave the pipeline with a connection that looks whole."""
    raise psycopg.errors.AdminShutdown("terminating connection due to administrator command")
    yield


def _cut(pipeline):
    """The rows of the statement come, and the connection ends before the commit, without an error."""
    yield from pipeline._fetch_gen(flush=True)
    pipeline._conn.close()


@pytest.mark.parametrize("end", [_stuck, _cut])
def test_a_pipeline_that_does_not_come_to_its_end_leaves_the_outcome_open(postgres_url, monkeypatch, end):
    with SessionLog(f"{postgres_url}?prepare_threshold=none") as log:
        log.append("s", notes(1))
        ends = []

        def once(pipeline):
            monkeypatch.undo()
            ends.append(pipeline)
            return end(pipeline)

        monkeypatch.setattr(psycopg.Pipeline, "_exit_gen", once)
        receipt = log.append("s", notes(2))

        assert len(ends) == 1
        assert receipt.version == 3
        assert texts(log.read("s")) == [0, 0, 1]
        assert log.verify().ok


@pytest.mark.parametrize("value", ["never", "-1", "1.5", "\u0663", "9" * 10, "1&prepare_threshold=2"])
def test_an_option_that_the_driver_would_not_take_is_refused(value):
    with pytest.raises(ValueError, match=r"prepare_threshold= .* whole number, or none") as caught:
        SessionLog(f"postgresql://user:my-password@localhost/db?prepare_threshold={value}")

    assert "my-password" not in str(caught.value)
    assert "localhost" not in str(caught.value)


# -------------------------------------------------------------------------------------- server


def test_a_server_that_is_not_there_is_unavailable():
    with SessionLog("postgresql://nobody@127.0.0.1:1/none") as log:
        for use in (
            lambda: log.append("s", notes(1)),
            lambda: log.head("s"),
            lambda: log.verify(),
            lambda: log.migrate(),
        ):
            with pytest.raises(StoreUnavailable, match="cannot be reached"):
                use()


def test_a_database_that_is_not_there_is_unavailable(postgres_url):
    url = make_url(postgres_url).set(database="kern_none")
    with SessionLog(url) as log, pytest.raises(StoreUnavailable, match="does not exist"):
        log.append("s", notes(1))


def test_a_lock_that_is_held_too_long_is_busy(postgres_url):
    with SessionLog(postgres_url, lock_timeout_s=0.1) as log, databases.connect(postgres_url) as other:
        other.autocommit = False
        log.append("s", notes(1))
        other.execute("SELECT 1 FROM kern_sessions FOR UPDATE")
        with pytest.raises(StoreBusy) as caught:
            log.append("s", notes(1))
        other.rollback()

        assert isinstance(caught.value.__cause__, psycopg.errors.LockNotAvailable)
        assert log.append("s", notes(1)).version == 2


def test_a_deadlock_with_somebody_else_is_tried_again(postgres_url):
    """The server undoes one of two who wait for each other; if it is ours, it is repeated."""
    with SessionLog(postgres_url) as log, databases.connect(postgres_url) as other:
        other.autocommit = False
        log.append_many([("a", notes(1), None), ("b", notes(1), None)])
        other.execute("SET deadlock_timeout = '60s'")  # So that ours is the one that finds out.
        other.execute("SELECT 1 FROM kern_sessions WHERE session_id = 'b' FOR UPDATE")
        ours = threading.Thread(
            target=lambda: log.append_many([("a", notes(1), None), ("b", notes(1), None)])
        )
        ours.start()
        eventually(lambda: run(postgres_url, "SELECT 1 FROM pg_locks WHERE NOT granted"))
        other.execute("SELECT 1 FROM kern_sessions WHERE session_id = 'a' FOR UPDATE")
        other.rollback()
        ours.join(PATIENCE_S)

        assert not ours.is_alive()
        assert [log.head(one).version for one in "ab"] == [2, 2]


def test_an_error_of_the_server_shows_no_payload(postgres_url):
    """Postgres quotes whole rows in the detail of an error."""
    with SessionLog(postgres_url) as log:
        log.append("s", notes(1))
        run(postgres_url, "ALTER TABLE kern_events ADD CONSTRAINT nothing_new CHECK (version < 2) NOT VALID")
        with pytest.raises(StoreError) as caught:
            log.append("s", [note("my-secret-text")])

    assert "nothing_new" in str(caught.value)
    assert "my-secret-text" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_is_not_utf8_is_refused(postgres_server, encoding):
    options = f"ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
    with databases.database(postgres_server, options) as url, SessionLog(url) as log:
        for use in (lambda: log.append("s", notes(1)), lambda: log.head("s"), log.migrate):
            with pytest.raises(StoreError, match=f"server_encoding is {encoding}, .* needs UTF8"):
                use()


def test_the_environment_does_not_choose_the_clients_encoding(url, monkeypatch):
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    with SessionLog(url) as log:
        assert log.append("旅行", [note("日本")]).version == 1
        assert texts(log.read("旅行")) == ["日本"]


# ------------------------------------------------------------------------------------- no room


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("53100", "could not extend file: No space left on device"),
        ("53400", "temporary file size exceeds temp_file_limit"),
        ("53400", "schema's disk space quota exceeded"),
        ("XX000", "could not extend file: Disk quota exceeded"),
        ("58030", "could not write to file: File too large"),
    ],
)
def test_what_has_no_room_is_full_and_nothing_else(postgres_server, state, said):
    block = f"DO $$ BEGIN RAISE EXCEPTION USING MESSAGE = $said${said}$said$, ERRCODE = '{state}'; END $$"
    with databases.connect(postgres_server) as connection, pytest.raises(psycopg.Error) as caught:
        connection.execute(block.encode())

    error = translated(caught.value)
    assert (type(error), str(error)) == (StoreFull, f"Postgres: {said}")
