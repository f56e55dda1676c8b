"""The feed of Postgres beside writers that commit late, in another order, or not at all."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Connection, make_url

from kern_events import SessionLog
from kern_events.errors import VersionConflict
from tests import databases, writers
from tests.writers import eventually, note, notes, texts

WRITERS = 8
ROLLED_BACK = 0.15
LATEST_COMMIT_S = 0.02
SESSIONS = 40


@pytest.fixture
def url(postgres_server: str) -> Iterator[str]:
    """A database of its own: positions are shared by all namespaces of one."""
    with databases.database(postgres_server) as url:
        with SessionLog(url) as log:
            log.migrate()
        yield url


class Writers:
    """Threads that append in transactions of their own, with a pause before the end of each."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(
            make_url(url).set(drivername="postgresql+psycopg"), pool_size=WRITERS + 1
        )
        self._log = SessionLog(self._engine)
        self._over = threading.Event()
        self.committed: list[tuple[str, int]] = []
        self.rolled_back = 0
        self._threads = [threading.Thread(target=self._write, args=(seed,)) for seed in range(WRITERS)]

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._log.close()
        self._engine.dispose()

    def _write(self, seed: int) -> None:
        chance, number = random.Random(seed), 0
        while not self._over.is_set():
            session, count = f"s{chance.randrange(SESSIONS)}", chance.randrange(1, 4)
            with self._engine.connect() as connection:
                connection.begin()
                drafts = [note(f"{seed}.{number + each}") for each in range(count)]
                try:
                    pending = self._log.append(session, drafts, connection=connection)
                except VersionConflict:  # Two made the session at once.
                    connection.rollback()
                    continue
                time.sleep(chance.uniform(0, LATEST_COMMIT_S))
                if chance.random() < ROLLED_BACK:
                    connection.rollback()
                    self.rolled_back += 1
                    continue
                connection.commit()
            number += count
            first, last = pending.receipt.first_version, pending.receipt.version
            self.committed += [(session, version) for version in range(first, last + 1)]


def follow_naively(url: str, over: threading.Event, seen: list[tuple[str, int]]) -> None:
    """The control: whatever is behind the highest position that was seen."""
    after = 0
    with closing(databases.connect(url)) as connection:
        while not over.is_set():
            statement = "SELECT position, session_id, version FROM kern_events WHERE position > %s ORDER BY 1"
            for position, session, version in connection.execute(statement, (after,)).fetchall():
                seen.append((session, version))
                after = position


def in_order(seen: list[tuple[str, int]]) -> bool:
    """Whether each session's versions come one after the other."""
    last: dict[str, int] = {}
    for session, version in seen:
        if version != last.get(session, 0) + 1:
            return False
        last[session] = version
    return True


def test_the_feed_loses_nothing_where_a_naive_reader_does(url: str, request: pytest.FixtureRequest) -> None:
    seen: list[tuple[str, int]] = []
    consumed: list[tuple[str, int]] = []
    naive: list[tuple[str, int]] = []
    over = threading.Event()
    with SessionLog(url) as log, log.subscribe() as following:
        consumer = log.consumer(
            "c", lambda events: consumed.extend((e.session_id, e.version) for e in events)
        )
        threads = [
            threading.Thread(target=lambda: seen.extend((e.session_id, e.version) for e in following)),
            threading.Thread(target=consumer.run),
            threading.Thread(target=follow_naively, args=(url, over, naive)),
        ]
        for thread in threads:
            thread.start()
        with Writers(url) as writing:
            time.sleep(10)
        eventually(lambda: len(seen) >= len(writing.committed) <= len(consumed), "all is read")
        over.set()
        consumer.stop()
        following.close()
        for thread in threads:
            thread.join()
        recorded = [(event.session_id, event.version) for event in log.read_all()]

    assert sorted(seen) == sorted(writing.committed)
    assert in_order(seen)
    assert consumed == seen == recorded
    assert writing.rolled_back > 50
    assert set(naive) < set(seen), "the control has to lose some"
    print(f"{len(seen):,} events, the naive reader lost {len(seen) - len(set(naive)):,}")


def test_a_long_transaction_in_another_table_holds_nothing_up(url: str) -> None:
    with closing(databases.connect(url)) as other, SessionLog(url) as log, log.subscribe() as following:
        other.execute("CREATE TABLE elsewhere (n int)")
        other.execute("BEGIN")
        other.execute("INSERT INTO elsewhere VALUES (1)")
        log.append("s", notes(3))

        assert texts(following.batch(timeout_s=writers.PATIENCE_S)) == [0, 1, 2]
        assert log.feed_held_by() == []


def test_who_holds_the_feed_up_is_told(url: str) -> None:
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    with SessionLog(url) as log, SessionLog(engine) as late, log.subscribe() as following:
        with engine.connect() as connection:
            [(pid,)] = connection.execute(text("SELECT pg_backend_pid()")).all()
            late.append("s", notes(1), connection=connection)
            log.append("t", [note("behind it")])

            assert following.batch(timeout_s=0.2) == []
            before_s = age_s(url, pid)
            [holder] = log.feed_held_by()
            assert holder.pid == pid
            assert before_s <= holder.age_s <= age_s(url, pid)
            connection.commit()
        assert texts(following.batch(timeout_s=writers.PATIENCE_S)) == [0, "behind it"]
    engine.dispose()


def age_s(url: str, pid: int) -> float:
    """How old the transaction of a server process is, as the server says."""
    age = "extract(epoch FROM clock_timestamp() - xact_start)::float8"
    statement = f"SELECT {age} FROM pg_stat_activity WHERE pid = %s"
    with closing(databases.connect(url)) as connection:
        return float(connection.execute(statement, (pid,)).fetchone()[0])


def test_a_prepared_transaction_is_waited_for(url: str) -> None:
    with closing(databases.connect(url)) as connection:
        if connection.execute("SHOW max_prepared_transactions").fetchone() == ("0",):
            pytest.skip("the server takes no prepared transactions")
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    with SessionLog(url) as log, SessionLog(engine) as late, log.subscribe() as following:
        with engine.connect() as connection:
            connection.begin()
            late.append("s", notes(1), connection=connection)
            connection.execute(text("PREPARE TRANSACTION 'late'"))
        log.append("t", [note("behind it")])
        assert following.batch(timeout_s=0.2) == []

        with closing(databases.connect(url)) as connection:
            connection.execute("COMMIT PREPARED 'late'")
        assert texts(following.batch(timeout_s=writers.PATIENCE_S)) == [0, "behind it"]
    engine.dispose()


# ---------------------------------------------------------------------------- killed consumers


def test_a_killed_consumer_is_followed_by_one_that_repeats_nothing(url: str) -> None:
    chance = random.Random(4)
    with closing(databases.connect(url)) as connection:
        connection.execute("CREATE TABLE sink (n bigserial, session_id text, version bigint)")
    with Writers(url) as writing:
        for _ in range(8):
            children = [writers.start(writers.consume_into_sink, url) for _ in range(2)]
            time.sleep(chance.uniform(0.2, 0.7))
            for process, _ in children:
                process.kill()
            for process, pipe in children:
                writers.stop(process, pipe)
    with SessionLog(url) as log:
        log.consumer("sink", writers.into_sink, transactional=True).run(until_idle=True)
    with closing(databases.connect(url)) as connection:
        rows = connection.execute("SELECT session_id, version FROM sink ORDER BY n").fetchall()

    assert sorted(rows) == sorted(writing.committed)
    assert in_order(rows)


@pytest.mark.parametrize("kind", ["transactional", "leased"])
@pytest.mark.parametrize("dialect", ["sqlite", "postgres"])
def test_the_next_worker_takes_over_from_one_that_is_killed(
    dialect: str, kind: str, tmp_path: Any, request: pytest.FixtureRequest
) -> None:
    address = f"sqlite:///{tmp_path}/log.db" if dialect == "sqlite" else request.getfixturevalue("url")
    took: list[float] = []
    with SessionLog(address) as log:
        log.append("s", notes(1))
        children = [
            writers.start(writers.consume_and_tell, address, kind == "transactional") for _ in range(2)
        ]
        first = eventually(lambda: next((c for c in children if c[1].poll()), None))
        assert first[1].recv() == ["s"]
        [second] = [child for child in children if child is not first]
        first[0].kill()
        killed_s = time.monotonic()
        log.append("t", notes(1))
        told: list[str] = []
        while "t" not in told:  # And "s" once more, if the first one was killed before it had said so.
            assert second[1].poll(writers.PATIENCE_S)
            told += second[1].recv()
        took.append(time.monotonic() - killed_s)
        assert told in (["t"], ["s", "t"])
        for process, pipe in children:
            process.kill()
            writers.stop(process, pipe)

    print(f"{dialect}, {kind}: took over after {took[0]:.2f} s")  # See docs/robustness.md.


def test_a_connection_that_dies_in_a_sink_repeats_nothing(url: str) -> None:
    cut = [True]

    def handle(events: Any, connection: Connection) -> None:
        writers.into_sink(events, connection)
        if cut:
            cut.clear()
            [(pid,)] = connection.execute(text("SELECT pg_backend_pid()")).all()
            with closing(databases.connect(url)) as admin:
                admin.execute("SELECT pg_terminate_backend(%s)", (pid,))
            with pytest.raises(Exception, match=r"terminat|clos"):
                connection.execute(text("SELECT 1"))
            raise psycopg.OperationalError("as a handler would see it")

    with closing(databases.connect(url)) as connection:
        connection.execute("CREATE TABLE sink (n bigserial, session_id text, version bigint)")
        with SessionLog(url) as log:
            log.append("s", notes(3))
            consumer = log.consumer("sink", handle, transactional=True)
            consumer.run(until_idle=True)
            assert consumer.parked() == []
        rows = connection.execute("SELECT session_id, version FROM sink ORDER BY n").fetchall()

    assert rows == [("s", 1), ("s", 2), ("s", 3)]
