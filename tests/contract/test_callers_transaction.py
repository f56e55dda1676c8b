"""Appending within the caller's own transaction: there if it commits, never there if it does not."""

from __future__ import annotations

import random
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import SQLAlchemyError

from kern_events import Draft
from kern_events.errors import (
    IdempotencyConflict,
    InvalidEvent,
    OwnerMismatch,
    SessionClosed,
    StoreBusy,
    StoreError,
    StoreFull,
    VersionConflict,
)
from tests import databases, room
from tests.facade import PGBOUNCER, only_on
from tests.writers import in_threads, note, notes, pick, texts


class Undo(Exception):
    """Rolls a transaction back."""


@pytest.fixture(params=["sqlite", "postgres", PGBOUNCER])
def backend(request):
    return request.param


@pytest.fixture
def engine(address):
    """The caller's engine; on SQLite it begins its transactions immediately, as it has to."""
    engine = databases.engine(address.url)
    if address.backend == "sqlite":

        @event.listens_for(engine, "connect")
        def connected(driver, record):
            driver.isolation_level = None
            driver.execute("PRAGMA synchronous = FULL")

        @event.listens_for(engine, "begin")
        def begin(connection):
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS orders (name TEXT)"))
        connection.execute(text("DELETE FROM orders"))
    yield engine
    engine.dispose()


@pytest.fixture
def log(log):
    """The tables are there before the caller's transactions are: SQLite has one writer at a time."""
    log.migrate()
    return log


@pytest.fixture
def orders(engine):
    """The caller's own rows."""

    def read():
        with engine.connect() as connection:
            return sorted(connection.execute(text("SELECT name FROM orders")).scalars())

    return read


def order(connection, name):
    connection.execute(text("INSERT INTO orders VALUES (:name)"), {"name": name})


@contextmanager
def undone(engine):
    """A transaction that is rolled back at its end."""
    try:
        with engine.begin() as connection:
            yield connection
            raise Undo
    except Undo:
        pass


def test_what_is_committed_is_there_with_the_callers_rows(log, engine, orders):
    log.append("s", notes(1))
    with engine.begin() as connection:
        order(connection, "tea")
        pending = log.append("s", [note("tea")], connection=connection)

    assert pending.confirm() == pending.receipt
    assert (pending.receipt.first_version, pending.receipt.version) == (2, 2)
    assert list(log.read("s"))[-1].hash == pending.receipt.hash
    assert orders() == ["tea"]
    assert log.verify().ok


def test_what_is_rolled_back_never_was(log, engine, orders):
    log.append("s", notes(1))
    before = log.head("s")
    with undone(engine) as connection:
        order(connection, "tea")
        pending = log.append("s", [note("tea")], connection=connection)

    assert log.head("s") == before
    assert orders() == []
    with pytest.raises(StoreError, match="not recorded"):
        pending.confirm()
    assert log.append("s", [note("next")], expected=before).version == 2
    assert log.verify().ok


def test_a_new_session_may_begin_in_it(log, engine):
    with undone(engine) as connection:
        log.append("s", notes(2), expected=0, connection=connection)
    assert log.head("s").version == 0

    with engine.begin() as connection:
        log.append("s", notes(2), expected=0, connection=connection)
    assert log.head("s").version == 2
    assert log.verify().ok


def test_it_is_not_confirmed_before_the_commit(log, engine):
    with engine.begin() as connection:
        pending = log.append("s", notes(1), connection=connection)
        with pytest.raises(StoreError, match="not been committed"):
            pending.confirm()

    assert pending.confirm().version == 1


def test_another_event_in_its_place_is_no_confirmation(log, engine):
    with undone(engine) as connection:
        pending = log.append("s", [note("mine")], connection=connection)
    log.append("s", [note("yours")])

    with pytest.raises(StoreError):
        pending.confirm()


def test_several_appends_in_one_transaction_follow_each_other(log, engine):
    with engine.begin() as connection:
        first = log.append("s", notes(2), expected=0, connection=connection)
        second = log.append("s", notes(1), expected=2, connection=connection)
        third = log.append("s", notes(1), connection=connection)
        log.append("t", notes(1), connection=connection)

    assert [one.receipt.first_version for one in (first, second, third)] == [1, 3, 4]
    assert log.verify().ok


def test_a_conflict_leaves_the_transaction_usable(log, engine, orders):
    log.append("s", notes(2))
    with engine.begin() as connection:
        order(connection, "tea")
        with pytest.raises(VersionConflict) as caught:
            log.append("s", notes(1), expected=1, connection=connection)
        order(connection, "milk")
        log.append("s", notes(1), expected=caught.value.actual, connection=connection)

    assert caught.value.actual == 2
    assert orders() == ["milk", "tea"]
    assert log.head("s").version == 3


BOBS = Draft("session.created", {"user_id": "bob"})


@pytest.mark.parametrize(
    ("before", "drafts", "options", "error"),
    [
        ([note(), Draft("session.closed", {})], [note()], {}, SessionClosed),
        ([note()], [note(turn=5)], {}, InvalidEvent),
        ([note()], [note(float("inf"))], {}, InvalidEvent),
        ([note()], [note("other")], {"idempotency_key": "k"}, IdempotencyConflict),
        ([Draft("session.created", {"user_id": "ada"})], [BOBS], {}, OwnerMismatch),
        ([Draft("session.created", {"user_id": "ada"})], [BOBS], {"expected": 1}, OwnerMismatch),
    ],
)
def test_every_refusal_leaves_the_transaction_usable(log, engine, orders, before, drafts, options, error):
    log.append("s", before, idempotency_key="k")
    with engine.begin() as connection:
        with pytest.raises(error):
            log.append("s", drafts, connection=connection, **options)
        order(connection, "tea")
        log.append("t", notes(1), connection=connection)

    assert orders() == ["tea"]
    assert (log.head("s").version, log.head("t").version) == (len(before), 1)


def test_the_same_drafts_again_give_the_first_receipt(log, engine):
    drafts = notes(2)
    first = log.append("s", drafts, expected=0)
    with engine.begin() as connection:
        again = log.append("s", drafts, expected=0, connection=connection)
        log.append("s", notes(1), connection=connection)

    assert again.receipt == first
    assert log.head("s").version == 3


def test_a_key_is_recognised_in_it(log, engine):
    first = log.append("s", [note("a")], idempotency_key="k")
    with engine.begin() as connection:
        again = log.append("s", [note("a")], idempotency_key="k", connection=connection)

    assert again.receipt == first
    assert log.head("s").version == 1


@pytest.mark.parametrize("expected", [None, 3])
def test_a_key_from_before_a_deletion_is_none_in_it(log, engine, expected):
    log.append("s", [note("a")], idempotency_key="k")
    log.delete("s")
    log.append("s", [Draft("session.created", {})])
    with engine.begin() as connection:
        with pytest.raises(IdempotencyConflict):
            log.append("s", [note("a")], idempotency_key="k", expected=expected, connection=connection)
        log.append("s", [note("b")], idempotency_key="k2", expected=expected, connection=connection)

    assert log.head("s").version == 4


def test_append_many_joins_it_all_or_none(log, engine, orders):
    log.append("b", notes(2))
    with engine.begin() as connection:
        order(connection, "tea")
        with pytest.raises(VersionConflict):
            log.append_many([("a", notes(1), 0), ("b", notes(1), 1)], connection=connection)
        pending = log.append_many([("c", notes(2), 0), ("b", notes(1), 2)], connection=connection)

    assert [one.confirm().version for one in pending] == [2, 3]
    assert log.head("a").version == 0
    assert orders() == ["tea"]
    assert log.verify().ok


def test_a_connection_that_is_in_no_transaction_is_refused(log, engine):
    log.append("s", notes(1))
    outside = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    with outside as connection, pytest.raises(ValueError, match="transaction"):
        log.append("s", notes(1), connection=connection)

    assert log.head("s").version == 1


def test_nobody_else_sees_it_before_the_commit(log, engine):
    log.append("s", notes(1))
    with engine.begin() as connection:
        log.append("s", notes(1), connection=connection)

        assert log.head("s").version == 1
        assert len(list(log.read("s"))) == 1


@pytest.mark.parametrize("rounds", [200, pytest.param(5_000, marks=pytest.mark.long)])
def test_random_rollbacks_leave_neither_phantoms_nor_gaps(log, engine, rounds):
    """What was committed is there once and in order; the log's own appends stand between."""
    random, said = pick("rollbacks"), []
    for number in range(rounds):
        if random.random() < 0.3:
            log.append("s", [note(number)], expected=random.choice([None, len(said)]))
            said.append(number)
            continue
        commits = random.random() < 0.5
        with engine.begin() if commits else undone(engine) as connection:
            for _ in range(random.randint(1, 3)):
                log.append("s", [note(number)], connection=connection)
                said += [number] * commits
        assert log.head("s").version == len(said)

    assert texts(log.read("s")) == said
    assert log.verify().ok


def test_transactions_and_appends_at_once_lose_nothing(log, engine):
    def work(number):
        for round in range(10):
            if number % 2:
                log.append("s", [note(f"{number}.{round}")])
                continue
            with engine.begin() if round % 2 else undone(engine) as connection:
                log.append("s", [note(f"{number}.{round}")], connection=connection)

    log.append("other", notes(1))
    in_threads(4, work)
    assert sorted(texts(log.read("s"))) == sorted(
        f"{number}.{round}" for number in range(4) for round in range(10) if number % 2 or round % 2
    )
    assert log.verify().ok


# ------------------------------------------------------------------------ what a backend adds


@only_on("postgres")
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("known", [True, False])
def test_postgres_needs_read_committed(log, engine, level, known):
    log.append("s" if known else "other", notes(1))
    other = engine.execution_options(isolation_level=level)
    with other.begin() as connection, pytest.raises(ValueError, match="READ COMMITTED"):
        log.append("s", notes(1), connection=connection)

    assert log.head("s").version == known


@only_on("sqlite")
@pytest.mark.parametrize("larger", [20_000, 4_000_000])  # With what is more than memory, SQLite undoes all.
def test_what_sqlite_has_undone_for_want_of_room_is_not_committed(open_log, engine, larger):
    log = open_log(max_payload_bytes=8 << 20)
    log.append("s", notes(1))
    with room.no_files(), pytest.raises(SQLAlchemyError), engine.begin() as connection:
        connection.execute(text("INSERT INTO orders VALUES ('mine')"))
        with suppress(StoreFull):
            log.append("s", [note(random.randbytes(larger // 2).hex())], connection=connection)

    with engine.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM orders")).scalar() == 0
        log.append("s", notes(1), connection=connection)
    assert log.head("s").version == 2
    assert log.verify().ok


@only_on("sqlite")
def test_sqlite_needs_a_transaction_that_was_begun_immediately(log, address):
    log.append("s", notes(1))
    deferred = create_engine(address.url)
    with deferred.connect() as connection, pytest.raises(ValueError, match="BEGIN IMMEDIATE"):
        log.append("s", notes(1), connection=connection)
    deferred.dispose()

    assert log.head("s").version == 1


@only_on("sqlite")
def test_sqlite_needs_a_durable_connection(log, engine):
    log.append("s", notes(1))
    with engine.connect() as connection:
        connection.connection.driver_connection.execute("PRAGMA synchronous = NORMAL")
        with connection.begin(), pytest.raises(ValueError, match="FULL"):
            log.append("s", notes(1), connection=connection)

    assert log.head("s").version == 1


def test_who_blocks_himself_is_told(open_log, engine, address, facade_kind):
    log = open_log(lock_timeout_s=0.2)
    log.append("s", notes(1))
    with engine.begin() as connection:
        log.append("s", notes(1), connection=connection)
        with pytest.raises(StoreBusy) as caught:
            log.append("s", notes(1))

    if (address.backend, facade_kind) == ("sqlite", "sync"):
        assert "own transaction" in str(caught.value)
    assert log.append("s", notes(1)).version == 3


@only_on("sqlite")
def test_a_fresh_file_is_not_waited_for_in_ones_own_transaction(open_log, engine, monkeypatch):
    log, waited = open_log(), [0.0]
    clock = SimpleNamespace(monotonic=lambda: sum(waited), sleep=waited.append)
    monkeypatch.setattr("kern_events.store.sqlite_file.time", clock)
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
        with pytest.raises(StoreError, match="own transaction"):
            log.append("s", notes(1), connection=connection)

    assert sum(waited) < 2
    assert log.append("s", notes(1), expected=0).version == 1


@only_on("postgres")
def test_another_databases_connection_is_refused(log, tmp_path):
    other = create_engine(f"sqlite:///{tmp_path}/other.db")
    with other.begin() as connection, pytest.raises(ValueError, match="not one to Postgres"):
        log.append("s", notes(1), connection=connection)
    other.dispose()


@pytest.mark.parametrize("many", [False, True])
@only_on("memory")
def test_memory_has_no_transactions(open_log, tmp_path, many):
    engine = create_engine(f"sqlite:///{tmp_path}/any.db")
    log = open_log()
    with engine.connect() as connection, connection.begin():
        with pytest.raises(ValueError, match="memory: has no transactions"):
            if many:
                log.append_many([("s", notes(1), None)], connection=connection)
            else:
                log.append("s", notes(1), connection=connection)

        assert log.sessions() == []
    engine.dispose()
