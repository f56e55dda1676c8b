"""SQLite: one writer per process, whose transactions carry everybody's appends.

Callers encode and salt; whoever finds no writer at work becomes it, takes what is queued, reads each
head, links, inserts and commits, and hands over. So an append at the end never conflicts, and many
sessions share one fsync. The file is opened by SQLite alone, never by this process with `open()`:
closing such a file would cancel SQLite's locks.
"""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import URL, create_engine
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import PoolProxiedConnection, QueuePool

from kern_events import chain
from kern_events.batch import LISTING, Batch, Linked, StoredRow, link
from kern_events.clock import now_us
from kern_events.errors import KernError, StoreBusy, StoreCorrupt, StoreError, StoreUnavailable
from kern_events.events import Head, SessionInfo
from kern_events.store import migrate, sql
from kern_events.store.base import (
    HOUR_US,
    AnswerLost,
    AnswersLost,
    Base,
    Found,
    HeadRow,
    Landed,
    Refused,
    Tombstone,
    found_of,
    head_row_of,
    landed,
    listing_values,
    logger,
    newest_version,
    refuses,
    rewrites_listing,
    tail_of,
    unknown_head,
)
from kern_events.store.connections import Connections, Lease, keep_inherited, survive_forks

_OLDEST: Final = (3, 37, 0)
_INSERT_ROWS: Final = 50
_ERASE_PAGE: Final = 500
_FULL: Final = 2
_NETWORK: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "fuse.sshfs"})

Driver = sqlite3.Connection


class _Undone(Exception):  # noqa: N818 - a signal inside this module
    """One of several batches was refused, so what the others wrote has to go."""


class _Job:
    """Something to do in the writer's transaction, and who waits for it."""

    def __init__(self, work: Callable[[Driver, list[Head]], Any], future: Future[Any] | None = None) -> None:
        self.work = work
        self.future = future
        self.gate: threading.Lock | None = None
        self.leads = False
        self.done = False
        self.bases: list[Head] = []
        self._result: Any = None
        self._error: BaseException | None = None

    def settle(self, result: Any = None, error: BaseException | None = None) -> None:
        self._result, self._error, self.done = result, error, True
        if self.future is None:
            if self.gate:
                self.gate.release()
        elif error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._result

    def lost(self, cause: BaseException) -> BaseException:
        """What its caller is told when the answer to COMMIT was lost."""
        if not self.bases:
            return cause
        error = AnswerLost(self.bases[0]) if len(self.bases) == 1 else AnswersLost(self.bases)
        error.__cause__ = cause
        return error


class SQLiteStore:
    """A Store in a SQLite file."""

    dialect = "sqlite"

    def __init__(self, url: URL, engine: Engine | None, *, pool_size: int, lock_timeout_s: float) -> None:
        if url.database in (None, "", ":memory:"):
            raise ValueError("an in-memory SQLite is a database per connection: use the URL memory:")
        self._own = engine is None
        self._lock_timeout_s = lock_timeout_s
        self._path = None if str(url.database).startswith("file:") else os.path.abspath(str(url.database))
        self._engine = engine or self._create_engine(url, pool_size)
        self._readers = Connections(
            self._engine, self._prepare_reader, _restore_reader, keep=pool_size if self._own else 0
        )
        self._writer: Lease | None = None
        self._wal: tuple[int, int] | None = None
        self._wal_mode = True
        self._ready = False
        self._closed = False
        self._failed: StoreError | None = None
        self._joined: set[int] = set()
        self._reset_locks()
        survive_forks(self)

    def _reset_locks(self) -> None:
        self._setup = threading.Lock()
        self._mutex = threading.Lock()
        self._queue: list[_Job] = []
        self._leading = False
        self._starter: ThreadPoolExecutor | None = None

    def forget(self) -> None:
        """In a forked child: open anew on the next use."""
        keep_inherited((self._writer, self._engine.pool))
        self._engine.dispose(close=False)
        self._writer = self._wal = None
        self._reset_locks()

    # ------------------------------------------------------------------------------- appending

    def attempt(self, batch: Batch, base: Base, lock: bool = False) -> Landed | Refused:
        """See Store."""
        outcome: Landed | Refused = self._write(lambda driver, bases: _attempt(driver, bases, batch, base))
        return outcome

    def submit(self, batch: Batch, base: Base) -> Future[Landed | Refused] | None:
        """See Store."""
        future: Future[Landed | Refused] = Future()
        self._check_usable()
        job = _Job(lambda driver, bases: _attempt(driver, bases, batch, base), future)
        with self._mutex:
            self._queue.append(job)
            start, self._leading = not self._leading, True
        if start:
            self._start_leader()
        return future

    def attempt_many(self, batches: Sequence[tuple[Batch, Base]]) -> list[Landed] | None:
        """See Store."""

        def work(driver: Driver, bases: list[Head]) -> list[Landed]:
            outcomes = []
            for batch, base in batches:
                outcome = _attempt(driver, bases, batch, base)
                if isinstance(outcome, Refused):
                    raise _Undone
                outcomes.append(outcome)
            return outcomes

        try:
            outcomes: list[Landed] = self._write(work)
        except _Undone:
            return None
        return outcomes

    def delete(self, namespace: str, session_id: str, tombstone: Tombstone) -> Landed | None:
        """See Store."""

        def work(driver: Driver, bases: list[Head]) -> Landed | None:
            row = driver.execute(sql.SQLITE_LOCKED_HEAD, (namespace, session_id)).fetchone()
            if row is None or row[5] == "deleted":
                return None
            head = Head(*row[:7])
            bases.append(head)
            batch = tombstone(head)
            linked = link(batch, head, now_us())
            position = _insert(driver, batch, linked, head, row[7])
            _erase(driver, row[7], linked.head.version)
            return landed(batch, linked, position)

        outcome: Landed | None = self._write(work)
        return outcome

    def within(
        self, connection: Connection, batch: Batch, base: Base
    ) -> tuple[Landed | Refused, Found | None]:
        """See Store."""
        self._ensure()
        driver = connection.connection.driver_connection
        if not isinstance(driver, sqlite3.Connection):
            raise ValueError("the connection given is not one to SQLite")
        if not driver.in_transaction:
            raise ValueError("the connection has no open transaction: begin it with BEGIN IMMEDIATE")
        self._joined.add(threading.get_ident())
        try:
            if driver.execute(sql.SQLITE_SYNCHRONOUS).fetchone()[0] < _FULL:
                raise ValueError("the connection's transaction is not durable: set PRAGMA synchronous = FULL")
            answer = _attempt(driver, [], batch, base)
            if isinstance(answer, Landed):
                return answer, None
            return answer, _look_up(driver, batch, _number(answer.base), len(batch.events))
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def _write(self, work: Callable[[Driver, list[Head]], Any]) -> Any:
        """Do a job in the writer's transaction, as the writer or through whoever it is."""
        self._check_usable()
        job = _Job(work)
        with self._mutex:
            self._queue.append(job)
            if self._leading:
                job.gate = threading.Lock()
                job.gate.acquire()
            else:
                self._leading = job.leads = True
        if not job.leads:
            assert job.gate is not None
            job.gate.acquire()  # Released when the job is done, or when it is to lead.
        if not job.done:
            self._lead()
        return job.result()

    def _lead(self) -> None:
        """Commit what is queued as one group, then hand over."""
        with self._mutex:
            group, self._queue = self._queue, []
        try:
            group = [job for job in group if job.future is None or job.future.set_running_or_notify_cancel()]
            self._commit_group(group)
        except BaseException as error:
            for job in group:
                if not job.done:
                    job.settle(error=job.lost(StoreUnavailable(f"the writer was interrupted: {error!r}")))
            raise
        finally:
            self._hand_over()

    def _hand_over(self) -> None:
        with self._mutex:
            self._leading = bool(self._queue)
            heir = self._queue[0] if self._queue else None
        if heir is None:
            return
        if heir.gate is None:
            self._start_leader()
        else:
            heir.gate.release()

    def _start_leader(self) -> None:
        # Nobody's thread waits for a queued future, so one of the store's own does the writing.
        if self._starter is None:
            self._starter = ThreadPoolExecutor(1, thread_name_prefix="kern_events_writer")
        self._starter.submit(self._lead)

    def _commit_group(self, group: list[_Job]) -> None:
        try:
            driver = self._begin()
        except (KernError, ValueError) as error:
            for job in group:
                job.settle(error=error)
            return
        try:
            results = [job.work(driver, job.bases) for job in group]
        except BaseException as error:
            _roll_back(driver)
            self._replay(group, error)
            return
        try:
            driver.execute(sql.COMMIT)
            self._check_wal()
        except (sqlite3.Error, StoreError) as error:
            self._commit_failed(driver, group, error)
            return
        for job, result in zip(group, results, strict=True):
            job.settle(result)

    def _replay(self, group: list[_Job], error: BaseException) -> None:
        """After an error nothing of the group is written: each job fails or succeeds alone."""
        if not isinstance(error, Exception):
            raise error
        if len(group) == 1:
            group[0].settle(error=self._translated(error) if isinstance(error, sqlite3.Error) else error)
            return
        for job in group:
            job.bases.clear()
            self._commit_group([job])

    def _commit_failed(self, driver: Driver, group: list[_Job], error: Exception) -> None:
        known = isinstance(error, sqlite3.Error) and error.sqlite_errorname in ("SQLITE_FULL", "SQLITE_BUSY")
        _roll_back(driver)
        translated = self._translated(error) if isinstance(error, sqlite3.Error) else error
        if not known:
            self._drop_writer()
        for job in group:
            job.settle(error=translated if known else job.lost(translated))

    def _begin(self) -> Driver:
        """The writer's connection with the write lock taken.

        The driver's own wait sleeps ever longer and starves a writer among many for seconds; short
        random sleeps do not.
        """
        driver = self._writing()
        deadline = time.monotonic() + self._lock_timeout_s
        while True:
            try:
                driver.execute(sql.SQLITE_BEGIN)
                return driver
            except sqlite3.Error as error:
                if not _is_busy(error):
                    raise self._translated(error) from error
                if time.monotonic() > deadline:
                    raise StoreBusy(self._busy_text()) from error
            time.sleep(random.uniform(0.0002, 0.002))  # noqa: S311 - not a secret

    def _busy_text(self) -> str:
        text = f"the database is locked by another writer, waited {self._lock_timeout_s:g} s"
        if threading.get_ident() in self._joined:
            text += "; this thread's own transaction, opened for append(connection=), may be what holds it"
        return text

    # --------------------------------------------------------------------------------- reading

    def head(self, namespace: str, session_id: str) -> Head | None:
        """See Store."""
        rows = self._query(sql.SQLITE_HEAD, (namespace, session_id))
        return Head(*rows[0]) if rows else None

    def look_up(self, batch: Batch, base: int, count: int) -> Found:
        """See Store."""
        with self._reading() as driver:
            return _look_up(driver, batch, base, count)

    def rows(
        self, namespace: str, session_id: str, after: int, until: int | None, limit: int
    ) -> Sequence[StoredRow]:
        """See Store."""
        last = 2**63 - 1 if until is None else until
        return self._query(sql.SQLITE_ROWS, (namespace, session_id, after, last, limit))

    def tail(
        self, namespace: str, session_id: str, after: int, limit: int
    ) -> tuple[Head | None, Sequence[StoredRow]]:
        """See Store."""
        return tail_of(self._query(sql.SQLITE_TAIL, (after, namespace, session_id, limit)))

    def turn_start(self, namespace: str, session_id: str, turn: int) -> int | None:
        """See Store."""
        version: int | None = self._query(sql.SQLITE_TURN_START, (namespace, session_id, turn))[0][0]
        return version

    def version_at(self, namespace: str, session_id: str, at_us: int) -> int:
        """See Store."""

        def probe(version: int) -> tuple[int, int] | None:
            rows = self._query(sql.SQLITE_AT, (namespace, session_id, version))
            return rows[0] if rows else None

        return newest_version(self.head(namespace, session_id), at_us, probe)

    def feed_end(self) -> int:
        """See Store."""
        end: int = self._query(sql.SQLITE_FEED_END, ())[0][0]
        return end

    def feed(
        self, namespace: str, after: int, until: int, limit: int
    ) -> Sequence[tuple[str, StoredRow]]:
        """See Store."""
        rows = self._query(sql.SQLITE_FEED, (namespace, after, until, limit))
        return [(row[0], row[1:]) for row in rows]

    def sessions(
        self, namespace: str, user_id: str | None, after: tuple[int, str] | None, limit: int
    ) -> Sequence[SessionInfo]:
        """See Store."""
        at_us, session_id = after or (2**62, "")
        rows = self._query(
            sql.SQLITE_SESSIONS, (namespace, user_id, at_us // HOUR_US, at_us, session_id, limit)
        )
        return [SessionInfo(*row) for row in rows]

    @contextmanager
    def snapshot(self) -> Iterator[_Snapshot]:
        """See Store."""
        with self._reading() as driver:
            driver.execute(sql.SQLITE_BEGIN_READ)
            try:
                yield _Snapshot(driver)
            finally:
                _roll_back(driver)

    def _query(self, statement: str, values: tuple[Any, ...]) -> list[Any]:
        if not self._ready:
            self._ensure()
        lease = self._take_reader()
        try:
            rows = lease.driver.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            self._readers.drop(lease)
            raise self._translated(error) from error
        self._readers.give(lease)
        return rows  # type: ignore[no-any-return]

    @contextmanager
    def _reading(self) -> Iterator[Driver]:
        if not self._ready:
            self._ensure()
        lease = self._take_reader()
        try:
            yield lease.driver
        except sqlite3.Error as error:
            self._readers.drop(lease)
            raise self._translated(error) from error
        except BaseException:
            self._readers.drop(lease)
            raise
        self._readers.give(lease)

    def _take_reader(self) -> Lease:
        if self._failed or self._closed:
            self._check_usable()
        try:
            return self._readers.take()
        except sqlite3.Error as error:
            raise self._translated(error) from error

    # ------------------------------------------------------------------- opening and migrating

    def migrate(self) -> tuple[int, int]:
        """See Store."""
        before = self._schema_number()
        self._ensure()
        return before, self._schema_number()

    def notes(self) -> Sequence[str]:
        """See Store."""
        return (_WAL_RESET,) if _has_wal_reset_bug() else ()

    def close(self) -> None:
        """See Store."""
        with self._mutex:
            self._closed = True
            starter, self._starter = self._starter, None
        if starter:
            starter.shutdown(wait=True)
        while self._leading:  # A thread that leads finishes its group.
            time.sleep(0.001)
        self._readers.close()
        self._drop_writer()
        if self._own:
            self._engine.dispose()

    def _create_engine(self, url: URL, pool_size: int) -> Engine:
        return create_engine(
            url if self._path is None else url.set(database=self._path),
            poolclass=QueuePool,
            pool_size=pool_size,
            max_overflow=-1,
            connect_args={
                "check_same_thread": False,
                "cached_statements": 256,
                "timeout": self._lock_timeout_s,
            },
        )

    def _check_usable(self) -> None:
        if self._failed:
            raise type(self._failed)(str(self._failed)) from self._failed
        if self._closed:
            raise StoreError("this log is closed")

    def _ensure(self) -> None:
        """Open, check and create what is missing; once per process."""
        self._check_usable()
        if self._ready:
            return
        with self._setup:
            if self._ready:
                return
            if sqlite3.sqlite_version_info < _OLDEST:
                raise StoreError(f"SQLite 3.37 or newer is needed, this is {sqlite3.sqlite_version}")
            if self._own and self._path and (kind := _network_filesystem(self._path)):
                raise StoreError(f"{self._path} is on a network file system ({kind}), where WAL is not safe")
            try:
                self._migrate(self._open_writer())
            except sqlite3.Error as error:
                raise self._translated(error) from error
            _warn_once()
            self._ready = True

    def _schema_number(self) -> int:
        try:
            driver = self._writer.driver if self._writer else self._open_writer()
            if "kern_migrations" not in _tables(driver):
                return 0
            number: int = driver.execute(sql.SQLITE_APPLIED).fetchone()[0]
            return number
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def _migrate(self, driver: Driver) -> None:
        tables = _tables(driver)
        migrate.check_foreign(tables)
        if "kern_migrations" in tables:
            applied, min_writer = driver.execute(sql.SQLITE_APPLIED).fetchone()
            if not migrate.pending("sqlite", applied):
                migrate.check_number("sqlite", applied, min_writer)
                return
        self._begin_setup(driver)
        try:
            _apply(driver)
            driver.execute(sql.COMMIT)
        except BaseException:
            _roll_back(driver)
            raise

    def _begin_setup(self, driver: Driver) -> None:
        deadline = time.monotonic() + max(self._lock_timeout_s, 30.0)
        while True:
            try:
                driver.execute(sql.SQLITE_BEGIN)
                return
            except sqlite3.Error as error:
                if not _is_busy(error) or time.monotonic() > deadline:
                    raise
            time.sleep(random.uniform(0.001, 0.01))  # noqa: S311 - not a secret

    def _writing(self) -> Driver:
        self._ensure()
        return self._writer.driver if self._writer else self._open_writer()

    def _open_writer(self) -> Driver:
        try:
            checked_out = self._engine.raw_connection()
        except sqlite3.Error as error:
            raise self._translated(error) from error
        driver = checked_out.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        driver.isolation_level = None
        try:
            if self._own:
                self._switch_to_wal(driver)
            for setting in sql.SQLITE_SETTINGS:
                driver.execute(setting)
            self._wal_mode = driver.execute(sql.SQLITE_JOURNAL).fetchone()[0] == "wal"
            # In WAL mode only BEGIN waits for others, in a loop of ours.
            wait_ms = 0 if self._wal_mode else int(self._lock_timeout_s * 1000)
            driver.execute(sql.SQLITE_BUSY_TIMEOUT.format(wait_ms))
        except BaseException:
            checked_out.invalidate()
            raise
        self._writer = Lease(checked_out, driver)
        return driver

    def _switch_to_wal(self, driver: Driver) -> None:
        # Several processes may open a fresh file at once, and the switch does not wait by itself.
        deadline = time.monotonic() + max(self._lock_timeout_s, 30.0)
        while True:
            try:
                driver.execute(sql.SQLITE_WAL)
                return
            except sqlite3.Error as error:
                if not _is_busy(error) or time.monotonic() > deadline:
                    raise
            time.sleep(random.uniform(0.001, 0.01))  # noqa: S311 - not a secret

    def _drop_writer(self) -> None:
        writer, self._writer, self._wal = self._writer, None, None
        if writer:
            writer.checked_out.invalidate()

    def _prepare_reader(self, checked_out: PoolProxiedConnection) -> Driver:
        driver = checked_out.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        checked_out.info["kern_isolation_level"] = driver.isolation_level
        driver.isolation_level = None
        if self._own:
            driver.execute(sql.SQLITE_QUERY_ONLY)
        return driver

    def _check_wal(self) -> None:
        """Acknowledge nothing if the WAL that was written to is not the file's any more.

        Somebody who opened and closed the database file in this process has cancelled SQLite's
        locks, and another process may then have unlinked the WAL below us.
        """
        if not self._wal_mode or self._path is None:
            return
        try:
            stat = os.stat(self._path + "-wal")
            found = (stat.st_dev, stat.st_ino)
        except FileNotFoundError:
            found = (0, 0)
        if self._wal is None:
            self._wal = found
        if found != self._wal or found == (0, 0):
            logger.error("the WAL of a database was replaced while it was in use; reopening")
            raise StoreUnavailable("the WAL of the database was replaced while it was in use")

    def _translated(self, error: sqlite3.Error) -> StoreError:
        name = getattr(error, "sqlite_errorname", "") or ""
        text = f"SQLite: {error}"
        if _is_busy(error):
            return StoreBusy(self._busy_text())
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_IOERR")):
            damage = StoreCorrupt(f"{text} ({name}): nothing more is written to {self._path}; keep the file")
            damage.__cause__ = error
            self._failed = damage
            return StoreCorrupt(str(damage))
        if name.startswith("SQLITE_CANTOPEN"):
            return StoreUnavailable(f"cannot open {self._path}: does the folder exist, and may you write there?")
        if name.startswith(("SQLITE_READONLY", "SQLITE_PERM")):
            return StoreUnavailable(f"{self._path} cannot be written: {error}")
        return StoreError(text)


class _Snapshot:
    """See Snapshot."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def head_rows(self, namespace: str, session_id: str | None) -> Iterator[HeadRow]:
        after = ""
        while rows := self._driver.execute(
            sql.SQLITE_HEAD_ROWS, (namespace, session_id, after, _ERASE_PAGE)
        ).fetchall():
            yield from map(head_row_of, rows)
            after = rows[-1][0]

    def page(self, namespace: str, session_id: str, after: int, limit: int) -> Sequence[StoredRow]:
        return self._driver.execute(
            sql.SQLITE_ROWS, (namespace, session_id, after, 2**63 - 1, limit)
        ).fetchall()

    def orphans(self, namespace: str) -> Sequence[tuple[str, int]]:
        return self._driver.execute(sql.SQLITE_ORPHANS).fetchall()


def _attempt(driver: Driver, bases: list[Head], batch: Batch, base: Base) -> Landed | Refused:
    """Read the head, link and write, inside a transaction that holds the write lock."""
    row = driver.execute(sql.SQLITE_LOCKED_HEAD, (batch.namespace, batch.session_id)).fetchone()
    head = Head(*row[:7]) if row else unknown_head(batch)
    if refuses(batch, base, head):
        return Refused(head if base is None else base)
    key = batch.idempotency_key
    if key is not None and row and driver.execute(sql.SQLITE_KEY, (row[7], key)).fetchone():
        return Refused(head)
    bases.append(head)
    linked = link(batch, head, now_us())
    return landed(batch, linked, _insert(driver, batch, linked, head, row[7] if row else None))


def _insert(driver: Driver, batch: Batch, linked: Linked, before: Head, session: int | None) -> int:
    """Write the head row and the events; returns the last position."""
    after = linked.head
    if session is None:
        session = _create_head(driver, batch, linked)
    elif rewrites_listing(linked, before):
        values = (after.at_us // HOUR_US, *listing_values(linked), session)
        driver.execute(sql.SQLITE_REWRITE_HEAD, (*_moved(after), *values))
    else:
        driver.execute(sql.SQLITE_MOVE_HEAD, (*_moved(after), session))
    position = 0
    for start in range(0, len(linked.rows), _INSERT_ROWS):
        rows = linked.rows[start : start + _INSERT_ROWS]
        values = tuple(value for row in rows for value in (session, *row))
        position = driver.execute(sql.sqlite_insert(len(rows)), values).lastrowid or 0
    return position


def _create_head(driver: Driver, batch: Batch, linked: Linked) -> int:
    after, listing = linked.head, linked.listing or {}
    values = (
        batch.namespace, batch.session_id, *_moved(after), after.at_us // HOUR_US, after.at_us,
        *(listing.get(column) for column in LISTING),
    )  # fmt: skip
    session: int = driver.execute(sql.SQLITE_NEW_HEAD, values).fetchone()[0]
    return session


def _moved(head: Head) -> tuple[Any, ...]:
    return (head.version, head.hash, head.turn, head.branch, head.epoch, head.status, head.at_us)


def _erase(driver: Driver, session: int, before: int) -> None:
    """Erase the content of all rows before a tombstone, page by page."""
    after = 0
    while rows := driver.execute(sql.SQLITE_COVERED, (session, before, after, _ERASE_PAGE)).fetchall():
        commits = [(chain.payload_commit(row[17], row[14], row[15]), session, row[0]) for row in rows]
        changed = driver.executemany(sql.SQLITE_ERASE, commits).rowcount
        if changed != len(rows):
            raise StoreError(f"{changed} of {len(rows)} events were erased; nothing was")
        after = rows[-1][0]


def _look_up(driver: Driver, batch: Batch, base: int, count: int) -> Found:
    values: tuple[Any, ...] = (base, count, batch.namespace, batch.session_id)
    if batch.idempotency_key is None:
        return found_of(batch, driver.execute(sql.SQLITE_LOOK_UP, values).fetchall())
    values = (*values, batch.idempotency_key, len(batch.events))
    return found_of(batch, driver.execute(sql.SQLITE_LOOK_UP_KEYED, values).fetchall())


def _number(base: Head | int) -> int:
    return base.version if isinstance(base, Head) else base


def _apply(driver: Driver) -> None:
    """Apply what is missing, under the write lock; another process may have been first."""
    if "kern_migrations" not in _tables(driver):
        driver.execute(sql.SQLITE_CREATE_MIGRATIONS)
    applied, min_writer = driver.execute(sql.SQLITE_APPLIED).fetchone()
    for step in migrate.pending("sqlite", applied):
        for statement in migrate.statements(step.text):
            driver.execute(statement)
        note = (step.number, step.name, step.sha256, migrate.MIN_WRITER[step.number], now_us())
        driver.execute(sql.SQLITE_NOTE_MIGRATION, note)
    applied, min_writer = driver.execute(sql.SQLITE_APPLIED).fetchone()
    migrate.check_number("sqlite", applied, min_writer)


def _tables(driver: Driver) -> set[str]:
    return {row[0] for row in driver.execute(sql.SQLITE_TABLES)}


def _restore_reader(checked_out: PoolProxiedConnection) -> None:
    driver = checked_out.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    driver.isolation_level = checked_out.info.pop("kern_isolation_level")


def _roll_back(driver: Driver) -> None:
    if driver.in_transaction:
        driver.execute(sql.ROLLBACK)


def _is_busy(error: sqlite3.Error) -> bool:
    name = getattr(error, "sqlite_errorname", "") or ""
    return name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def _network_filesystem(path: str) -> str | None:
    """The type of the network file system that a path is on, or None; Linux only."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            found = [_mount(line) for line in mounts]
    except OSError:
        return None
    path = os.path.realpath(path)
    below = [one for one in found if path.startswith(one[0].rstrip("/") + "/")]
    kind = max(below, key=lambda one: len(one[0]), default=("", ""))[1]
    return kind if kind in _NETWORK else None


def _mount(line: str) -> tuple[str, str]:
    before, _, after = line.partition(" - ")
    point = before.split(" ")[4].encode().decode("unicode_escape")
    return point, after.split(" ")[0]


_WAL_RESET: Final = (
    f"SQLite {sqlite3.sqlite_version} can corrupt a WAL database when two connections write and "
    "checkpoint at the same moment (fixed in 3.51.3, 3.50.7 and 3.44.6): write from one process, or upgrade"
)
_warned = False


def _has_wal_reset_bug() -> bool:
    version = sqlite3.sqlite_version_info
    fixed = version >= (3, 51, 3) or version[:2] in ((3, 50), (3, 44)) and version[2] >= (7 if version[1] == 50 else 6)
    return version >= (3, 7, 0) and not fixed


def _warn_once() -> None:
    global _warned
    if not _warned and _has_wal_reset_bug():
        _warned = True
        logger.warning(_WAL_RESET)
