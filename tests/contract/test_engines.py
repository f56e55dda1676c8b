"""The caller's own SQLAlchemy engine: used, and left as it was."""

from __future__ import annotations

import contextlib

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool, QueuePool

from kern_events import AsyncSessionLog, SessionLog
from kern_events.errors import StoreError
from tests.writers import in_threads, note, notes, texts

SETTINGS = {
    "sqlite": ["synchronous", "secure_delete", "busy_timeout", "query_only", "trusted_schema"],
    "postgres": ["lock_timeout", "search_path", "default_transaction_isolation", "statement_timeout"],
}
QUERIES = {"sqlite": "PRAGMA {}", "postgres": "SHOW {}"}


@pytest.fixture(params=["sqlite", "postgres"])
def backend(request):
    return request.param


@pytest.fixture
def engine(address):
    engine = create_engine(address.url, poolclass=QueuePool, pool_size=3, max_overflow=2)
    yield engine
    engine.dispose()


def settings(engine, backend):
    """What the engine's connections are set to, and how their driver begins transactions."""
    found = []
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            connection = stack.enter_context(engine.connect())
            driver = connection.connection.driver_connection
            queries = [text(QUERIES[backend].format(name)) for name in SETTINGS[backend]]
            values = [connection.execute(query).scalar() for query in queries]
            found.append((driver.isolation_level, getattr(driver, "autocommit", None), values))
    return found


def test_a_log_on_an_engine_works_as_on_a_url(open_log, engine):
    log = open_log(engine)
    log.append("s", notes(3))
    with log.turn("s") as turn:
        turn.message("user", "Hi")
    log.append_many([("t", notes(1), 0), ("u", notes(1), 0)])
    log.delete("t")

    assert texts(log.read("s")) == [0, 1, 2]
    assert len(list(log.read_all())) == 9
    assert log.verify().ok


def test_the_engines_settings_are_what_they_were(open_log, engine, address):
    with open_log() as first:  # So that the journal mode of the file is no difference.
        first.append("s", notes(1))
    before = settings(engine, address.backend)
    with open_log(engine) as log:
        in_threads(3, lambda number: log.append("s", notes(1)))
        list(log.read("s"))
        log.verify()

    assert settings(engine, address.backend) == before


def test_the_engine_is_open_when_the_log_is_closed(open_log, engine, address):
    with open_log(engine) as log:
        log.append("s", notes(1))

    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1
    with pytest.raises(StoreError, match="closed"):
        log.append("s", notes(1))


def test_at_most_one_connection_of_the_engine_is_held(open_log, engine):
    log = open_log(engine)
    in_threads(4, lambda number: [log.append("s", notes(1)), list(log.read("s")), log.head("s")])

    assert engine.pool.checkedout() <= 1


def test_everything_is_given_back_in_the_end(open_log, engine):
    with open_log(engine) as log:
        log.append("s", notes(1))
        log.verify()

    assert engine.pool.checkedout() == 0


def test_an_engine_without_a_pool_will_do(open_log, address):
    engine = create_engine(address.url, poolclass=NullPool)
    log = open_log(engine)
    log.append("s", notes(2))

    assert texts(log.read("s")) == [0, 1]


def test_an_engine_that_begins_transactions_by_itself_will_do(open_log, address):
    level = "SERIALIZABLE"
    engine = create_engine(address.url, isolation_level=level)
    log = open_log(engine)
    log.append("s", notes(1))
    log.append("s", notes(1), expected=1)

    assert log.verify().ok
    with engine.connect() as connection:
        assert connection.get_isolation_level() == level
    log.close()
    engine.dispose()


def test_an_async_engine_is_refused_with_the_reason(address):
    class AsyncEngine:
        """Stands in for SQLAlchemy's, which needs a driver that is not installed."""

    for opening in (SessionLog, AsyncSessionLog):
        with pytest.raises(ValueError, match=r"AsyncEngine is not taken.*threads"):
            opening(AsyncEngine())


def test_an_engine_of_another_database_is_refused():
    engine = create_engine("sqlite://")

    with pytest.raises(ValueError, match="memory:"):
        SessionLog(engine)
    engine.dispose()


def test_the_callers_own_tables_are_left_alone(open_log, engine):
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE own_notes (id INTEGER)"))
        connection.execute(text("INSERT INTO own_notes VALUES (1)"))
    log = open_log(engine)
    log.append("s", [note()])

    with engine.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM own_notes")).scalar() == 1
        connection.execute(text("DROP TABLE own_notes"))
