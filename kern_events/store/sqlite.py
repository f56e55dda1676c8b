"""SQLite: one writer per process, whose transactions carry everybody's appends.

Callers encode and salt; the writer reads each head, links, inserts and commits. So an append at the
end never conflicts, and many sessions share one fsync.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from sqlalchemy import URL
from sqlalchemy.engine import Connection, Engine

from kern_events import chain
from kern_events.batch import DESCRIBING, LISTING, TOMBSTONES, Batch, Linked, StoredRow, handed_down, link
from kern_events.clock import now_us, said_us
from kern_events.errors import InvalidEvent, KernError, StoreError, StoreMissing, StoreUnavailable
from kern_events.events import Head, SessionInfo
from kern_events.store import sql, sqlite_schema
from kern_events.store.base import (
    DELETING,
    HOUR_US,
    PAGE_BYTES,
    PAGE_ROWS,
    SLICE_ROWS,
    Adoption,
    AnswerLost,
    Base,
    Bound,
    Consumers,
    Difference,
    Found,
    HeadRow,
    Landed,
    Lineage,
    Origin,
    Refused,
    Rows,
    Slice,
    SnapshotPut,
    StoredChunk,
    Tombstone,
    barred_by,
    feed_of,
    fork_head,
    found_of,
    head_name,
    head_row_of,
    is_past_fence,
    landed,
    listing_values,
    missing,
    newest_version,
    nothing,
    refuses,
    rewrites_listing,
    shown,
    shown_row,
    shown_tail,
    tail_of,
    unknown_head,
    version_of,
)
from kern_events.store.consumers import SQLConsumers
from kern_events.store.forks import survive_forks
from kern_events.store.group import GroupCommit, Job
from kern_events.store.sqlite_errors import is_before_commit, is_io
from kern_events.store.sqlite_file import (
    WAL_RESET,
    Driver,
    SQLiteFile,
    SQLiteSinks,
    has_wal_reset_bug,
    overwriting,
    page_from,
    roll_back,
)

T = TypeVar("T")

_INSERT_ROWS: Final = 50
# Of payloads: the driver copies those of a statement in one go, and nothing else runs meanwhile.
_INSERT_BYTES: Final = 1 << 20
_HEADS_PAGE: Final = 500
_CHUNKS_PAGE: Final = 256
_FULL: Final = 2
_LONGEST_PAUSE_S: Final = 0.05
_NO_HEAD: Final = Head(0, bytes(32))  # Of what links to none, and has written all the same.


class _Undone(Exception):
    """One of several batches was refused, so what the others wrote has to go."""


class SQLiteStore:
    """A Store in a SQLite file."""

    dialect = "sqlite"

    def __init__(self, url: URL, engine: Engine | None, *, pool_size: int, lock_timeout_s: float) -> None:
        self._file = SQLiteFile(url, engine, pool_size=pool_size, lock_timeout_s=lock_timeout_s)
        self._group = GroupCommit(self._commit_group)
        self._has_erased = False  # Since the last commit; only the thread that commits looks at it.
        self.on_commit: Callable[[], None] = nothing
        self.consumers: Consumers = SQLConsumers(SQLiteSinks(self._file))
        survive_forks(self)

    def before_fork(self, until: float) -> None:
        """See Holder: nothing is written, nothing is read, and no connection is open."""
        idle = self._group.hold(until)
        self._file.hold(until, idle=idle)

    def after_fork(self) -> None:
        """See Holder."""
        self._file.release()
        self._group.release()

    def forget(self) -> None:
        """In a forked child: a queue of its own."""
        self._group = GroupCommit(self._commit_group)

    # ------------------------------------------------------------------------------- appending

    def attempt(self, batch: Batch, base: Base, lock: bool = False) -> Landed | Refused:
        """See Store."""
        outcome: Landed | Refused = self._group.run(
            lambda driver, bases: _attempt(driver, bases, batch, base)
        )
        return outcome

    def submit(self, batch: Batch, base: Base) -> Future[Landed | Refused] | None:
        """See Store."""
        return self._group.submit(lambda driver, bases: _attempt(driver, bases, batch, base))

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
            outcomes: list[Landed] = self._group.run(work)
        except _Undone:
            return None
        return outcomes

    def delete(self, namespace: str, session_id: str, tombstone: Tombstone) -> Landed | None:
        """See Store."""

        def work(driver: Driver, bases: list[Head]) -> Landed | None:
            self._has_erased = True
            return _deleted(driver, bases, namespace, session_id, tombstone, whole=False)

        outcome: Landed | None = self._group.run(work)
        return outcome

    def delete_within(
        self, connection: Connection, namespace: str, session_id: str, tombstone: Tombstone, *, whole: bool
    ) -> Landed | None:
        """See Store."""
        driver, scope = self._joined(connection), (namespace, session_id)
        with self._telling(connection, driver), overwriting(driver):
            return _saved(driver, lambda: _deleted(driver, [], *scope, tombstone, whole=whole))

    def erase_on(self, namespace: str, session_id: str, after: int) -> Slice:
        """See Store."""

        def work(driver: Driver, bases: list[Head]) -> Slice:
            bases.append(_NO_HEAD)
            row = driver.execute(sql.SQLITE_LOCKED_HEAD, (namespace, session_id)).fetchone()
            done = _erase_on(driver, row[7], after, whole=False) if row else Slice(0, False)
            self._has_erased = self._has_erased or not done.left
            return done

        began = time.monotonic()
        try:
            done: Slice = self._group.run(work)
        except AnswerLost as lost:  # It is done again, or was done.
            raise StoreUnavailable("SQLite: it is not known whether a part was erased") from lost
        if done.left:
            # Other processes ask for the lock from time to time only; a fifth of the time it is free.
            time.sleep(min((time.monotonic() - began) / 4, _LONGEST_PAUSE_S))
        return done

    def unfinished(self, namespace: str) -> Sequence[str]:
        """See Store."""
        return [row[0] for row in self._file.query(sql.SQLITE_UNFINISHED, (namespace,))]

    def fork(self, batch: Batch, origin: Origin) -> Landed | Refused | None:
        """See Store."""

        def work(driver: Driver, bases: list[Head]) -> Landed | Refused | None:
            scope = batch.namespace
            parent = driver.execute(sql.SQLITE_LOCKED_HEAD, (scope, origin.parent)).fetchone()
            if parent is None or parent[5] == "deleted" or parent[4] != origin.epoch:
                return None
            if driver.execute(sql.SQLITE_LOCKED_HEAD, (scope, batch.session_id)).fetchone():
                return Refused(origin.version)
            place = (scope, origin.owner, origin.version - 1, origin.version, 1)
            row = driver.execute(sql.SQLITE_ROWS, place).fetchone()
            if row is None:
                raise missing(f"version {origin.version} of session {origin.owner!r} is not there", False)
            head = fork_head(batch, origin, parent[4], row[18], row[8])
            linked = link(batch, head, now_us())
            bases.append(head)
            values = (*_head_values(batch, linked), origin.parent, origin.version, origin.owner)
            session: int = driver.execute(sql.SQLITE_FORK_HEAD, values).fetchone()[0]
            return landed(batch, linked, _insert_rows(driver, linked, session))

        outcome: Landed | Refused | None = self._group.run(work)
        return outcome

    def adopt(self, adoption: Adoption) -> bool:
        """See Store."""
        scope, parent = (adoption.namespace, adoption.session_id), adoption.fork_parent

        def work(driver: Driver, bases: list[Head]) -> bool:
            row = driver.execute(sql.SQLITE_LOCKED_HEAD, scope).fetchone()
            if (Head(*row[:7]) if row else None) != adoption.base:
                return False
            if row is None and parent is not None:
                begun = driver.execute(sql.SQLITE_LOCKED_HEAD, (scope[0], parent)).fetchone()
                if begun is None or begun[4] != adoption.parent_epoch:
                    return False
            bases.append(adoption.base or unknown_head(adoption.whose))
            if row and row[5] == "deleted":
                _erase_on(driver, row[7], 0, whole=True)
            session = _adopt_head(driver, adoption, row[7] if row else None)
            _adopt_rows(driver, adoption, session)
            if adoption.erasures:
                self._has_erased = True
                _erase(driver, session, adoption.erase_before, whole=True)
                driver.execute(sql.SQLITE_FORGET, scope)
            for _ in range(adoption.erasures):
                driver.execute(sql.SQLITE_TOUCH, scope)
            if adoption.erase_before:
                _erase_from_forks(driver, *scope)
            return True

        adopted: bool = self._group.run(work)
        return adopted

    def holding(self, namespace: str, session_id: str) -> None:
        """See Store: a transaction that may write holds the whole file."""

    def within(
        self, connection: Connection, batch: Batch, base: Base, held: Sequence[Any] | None = None
    ) -> tuple[Landed | Refused, Found | None]:
        """See Store."""
        driver = self._joined(connection)
        with self._telling(connection, driver):
            answer = _saved(driver, lambda: _attempt(driver, [], batch, base))
            if isinstance(answer, Refused) and _is_erasing(driver, batch):
                answer = _saved(driver, lambda: _attempt(driver, [], batch, base, finishing=True))
            if isinstance(answer, Landed):
                return answer, None
            return answer, _look_up(driver, batch, version_of(answer.base), len(batch.events))

    def head_within(self, connection: Connection, namespace: str, session_id: str) -> Head | None:
        """See Store."""
        driver = self._joined(connection)
        with self._telling(connection, driver):
            row = driver.execute(sql.SQLITE_HEAD, (namespace, session_id)).fetchone()
        return Head(*row) if row else None

    @contextmanager
    def _telling(self, connection: Connection, driver: Driver) -> Iterator[None]:
        """What the driver's errors are to the log, in a caller's transaction."""
        try:
            yield
        except sqlite3.Error as error:
            if not driver.in_transaction:
                # SQLite has undone all of it, as on a full disk. The caller's COMMIT has to fail, too.
                connection.invalidate(error)
            raise self._file.translated(error) from error

    def _joined(self, connection: Connection) -> Driver:
        """The driver's side of a caller's connection, whose transaction will do."""
        self._file.joined()
        self._file.ensure()
        driver = connection.connection.driver_connection
        if not isinstance(driver, sqlite3.Connection):
            raise ValueError("the connection given is not one to SQLite")
        if not driver.in_transaction:
            raise ValueError("the connection has no open transaction: begin it with BEGIN IMMEDIATE")
        try:
            if driver.execute(sql.SQLITE_SYNCHRONOUS).fetchone()[0] < _FULL:
                raise ValueError("the connection's transaction is not durable: set PRAGMA synchronous = FULL")
            self._file.check_writer(driver)
        except sqlite3.Error as error:
            raise self._file.translated(error) from error
        return driver

    def _commit_group(self, group: list[Job[Driver]]) -> None:
        try:
            self._commit(group)
        except BaseException:
            # Ctrl-C: a process that idles from here on must not hold the lock that all others wait for.
            self._file.end_writing()
            raise

    def _commit(self, group: list[Job[Driver]]) -> None:
        try:
            driver = self._file.begin()
        except (KernError, ValueError) as error:
            for job in group:
                job.settle(error=error)
            return
        try:
            results = [_done(job, driver) for job in group]
        except BaseException as error:
            self._file.end_writing()
            self._replay(group, error)
            return
        try:
            driver.execute(sql.COMMIT)
            self._file.check_files()
        except (sqlite3.Error, StoreError) as error:
            self._commit_failed(group, results, error)
            return
        if self._has_erased:
            self._has_erased = False
            self._file.checkpoint(driver)
        for job, result in zip(group, results, strict=True):
            _settle(job, result)
        self.on_commit()

    def _replay(self, group: list[Job[Driver]], error: BaseException) -> None:
        """After an error nothing of the group is written: each job fails or succeeds alone."""
        if not isinstance(error, Exception):
            raise error
        if len(group) == 1:
            group[0].settle(error=self._file.translated(error) if isinstance(error, sqlite3.Error) else error)
            return
        for job in group:
            job.bases.clear()
            self._commit_group([job])
        if not isinstance(error, sqlite3.Error) and not any(job.failed_with(type(error)) for job in group):
            raise error  # None of the jobs failed: a signal handler raised it, and its thread is to see it.

    def _commit_failed(self, group: list[Job[Driver]], results: list[Any], error: Exception) -> None:
        known = is_before_commit(error)
        self._file.end_writing()
        translated = self._file.translated(error) if isinstance(error, sqlite3.Error) else error
        # After a disk that fails the connection stays: whatever is in the WAL of what was undone, its next
        # commit writes over. Whoever opened the file anew might find it there, and not on the disk.
        if not (known or is_io(error)):
            self._file.drop_writer()
        for job, result in zip(group, results, strict=True):
            if job.bases:
                job.settle(error=translated if known else job.lost(translated))
            else:
                _settle(job, result)  # It was refused and wrote nothing.

    # --------------------------------------------------------------------------------- reading

    def now_us(self) -> int:
        """See Store: there is no clock but this machine's."""
        return said_us()

    def head(self, namespace: str, session_id: str) -> Head | None:
        """See Store."""
        rows = self._file.query(sql.SQLITE_HEAD, (namespace, session_id))
        return Head(*rows[0]) if rows else None

    def look_up(self, batch: Batch, base: int, count: int, *, durable: bool = False) -> Found:
        """See Store."""
        try:
            with self._file.reading() as driver:
                found = _look_up(driver, batch, base, count)
        except StoreMissing:
            return Found(unknown_head(batch))
        if durable:
            self._file.flush()
        return found

    def rows(
        self, namespace: str, session_id: str, after: int, until: int | None, limit: int
    ) -> Rows[StoredRow]:
        """See Store."""
        last = 2**63 - 1 if until is None else until
        return shown(self._file.page(sql.SQLITE_ROWS, (namespace, session_id, after, last, limit), limit))

    def tail(
        self, namespace: str, session_id: str, after: int, limit: int
    ) -> tuple[Head | None, Rows[StoredRow]]:
        """See Store."""
        # Most loads find nothing new, and the head alone is half the cost of the join.
        head = self.head(namespace, session_id)
        if head is None or head.version <= after:
            return head, Rows()
        page = self._file.page(sql.SQLITE_TAIL, (after, namespace, session_id, limit), limit, 7)
        return shown_tail(*tail_of(page))

    def head_row(self, namespace: str, session_id: str) -> HeadRow | None:
        """See Store."""
        rows = self._file.query(sql.SQLITE_HEAD_ROW, (namespace, session_id))
        return head_row_of(rows[0]) if rows else None

    def lineage(self, namespace: str, session_id: str) -> Lineage:
        """See Store."""
        scope = (namespace, session_id)
        rows = self._file.query(sql.SQLITE_PARENT, scope)
        restores = self._file.query(sql.SQLITE_RESTORES, scope) if rows else []
        parent, origin, owner = rows[0] if rows else (None, None, None)
        return Lineage(parent, origin or 0, sorted(restores), owner)

    def turn_starts(self, namespace: str, session_id: str, turn: int) -> Sequence[int]:
        """See Store."""
        return [row[0] for row in self._file.query(sql.SQLITE_TURN_STARTS, (namespace, session_id, turn))]

    def all_turn_starts(self, namespace: str, session_id: str) -> Sequence[tuple[int, int]]:
        """See Store."""
        return self._file.query(sql.SQLITE_ALL_TURN_STARTS, (namespace, session_id))

    def turn_at(self, namespace: str, session_id: str, version: int) -> int:
        """See Store."""
        rows = self._file.query(sql.SQLITE_TURN_AT, (namespace, session_id, version))
        return rows[0][0] if rows else 0

    def marks(self, namespace: str, session_id: str, after: int, until: int) -> Rows[StoredRow]:
        """See Store."""
        values = (namespace, session_id, after, until, PAGE_ROWS)
        return self._file.page(sql.SQLITE_MARKS, values, PAGE_ROWS)

    def newest_of(
        self, namespace: str, session_id: str, types: Sequence[str], before: int
    ) -> StoredRow | None:
        """See Store."""
        rows = self._file.query(_newest_of(types), (namespace, session_id, before, *types))
        return shown_row(rows[0]) if rows else None

    def forks(self, namespace: str, session_id: str) -> Sequence[tuple[str, int, Any]]:
        """See Store."""
        return sorted(self._file.query(sql.SQLITE_FORKS, (namespace, session_id)))

    def descendants(self, namespace: str, session_id: str) -> Sequence[str]:
        """See Store."""
        return [row[0] for row in self._file.query(sql.SQLITE_DESCENDANTS, (namespace, session_id))]

    def version_at(self, namespace: str, session_id: str, at_us: int) -> int:
        """See Store."""

        def probe(version: int) -> tuple[int, int] | None:
            rows = self._file.query(sql.SQLITE_AT, (namespace, session_id, version))
            return rows[0] if rows else None

        return newest_version(self.head(namespace, session_id), at_us, probe)

    def feed_last(self) -> int:
        """See Store."""
        last: int = self._file.query(sql.SQLITE_FEED_END, (), absent=[(0,)])[0][0]
        return last

    def feed_bound(self, before: Bound) -> Bound:
        """See Store: commits are in the order of positions."""
        last = self.feed_last()
        return Bound(last, last)

    def feed_held_by(self) -> Sequence[tuple[int | None, float]]:
        """See Store: nobody ever does."""
        return ()

    def feed(self, namespace: str, after: int, until: int, limit: int) -> Rows[tuple[str, StoredRow]]:
        """See Store."""
        page = self._file.page(sql.SQLITE_FEED, (namespace, after, until, limit), limit, 1)
        return feed_of(shown(page, 1))

    def feed_count(self, namespace: str, after: int, limit: int) -> int:
        """See Store."""
        values = (namespace, after, limit)
        count: int = self._file.query(sql.SQLITE_FEED_COUNT, values, absent=[(0,)])[0][0]
        return count

    def sessions(
        self, namespace: str, user_id: str | None, after: tuple[int, str] | None, limit: int
    ) -> Sequence[SessionInfo]:
        """See Store."""
        at_us, session_id = after or (2**62, "")
        values: tuple[Any, ...] = (namespace, at_us // HOUR_US, at_us, session_id, limit)
        if user_id is None:
            rows = self._file.query(sql.SQLITE_SESSIONS, values)
        else:
            rows = self._file.query(sql.SQLITE_USER_SESSIONS, (*values, user_id))
        return [SessionInfo(*row) for row in rows]

    def snapshot_head(
        self, namespace: str, session_id: str, projector: str, until: int
    ) -> StoredChunk | None:
        """See Store."""
        values = (namespace, session_id, projector, head_name(until))
        rows = self._file.query(sql.SQLITE_SNAPSHOT_HEAD, values)
        return StoredChunk(*rows[0]) if rows else None

    def snapshot_names(self, namespace: str, session_id: str, projector: str) -> Sequence[str]:
        """See Store."""
        rows = self._file.query(sql.SQLITE_SNAPSHOT_NAMES, (namespace, session_id, projector))
        return [row[0] for row in rows]

    def snapshot_chunks(
        self, namespace: str, session_id: str, projector: str, names: Sequence[str]
    ) -> dict[str, bytes]:
        """See Store."""
        found: dict[str, bytes] = {}
        for start in range(0, len(names), _CHUNKS_PAGE):
            some = names[start : start + _CHUNKS_PAGE]
            values = (namespace, session_id, projector, *some)
            found |= dict(self._file.query(sql.sqlite_snapshot_chunks(len(some)), values))
        return found

    def put_snapshots(self, namespace: str, projector: str, puts: Sequence[SnapshotPut]) -> list[bool]:
        """See Store."""

        def work(driver: Driver, bases: list[Head]) -> list[bool]:
            return [_put_snapshot(driver, bases, namespace, projector, put) for put in puts]

        try:
            stored: list[bool] = self._group.run(work)
        except AnswerLost as lost:  # Nothing hangs on it.
            raise StoreUnavailable("SQLite: it is not known whether a snapshot was stored") from lost
        return stored

    def snapshot_plan(
        self, namespace: str, projector: str, after: str, limit: int
    ) -> Sequence[tuple[str, int, int, str | None]]:
        """See Store."""
        return self._file.query(sql.SQLITE_SNAPSHOT_PLAN, (namespace, projector, after, limit))

    def forget_snapshots(self, namespace: str, session_id: str, projectors: str, kept: str) -> int:
        """See Store."""
        values = (namespace, session_id, kept, projectors, projectors)

        def work(driver: Driver, bases: list[Head]) -> int:
            bases.append(_NO_HEAD)
            return driver.execute(sql.SQLITE_FORGET_OTHERS, values).rowcount

        try:
            gone: int = self._group.run(work)
        except AnswerLost as lost:
            raise StoreUnavailable("SQLite: it is not known whether snapshots were forgotten") from lost
        return gone

    def other_snapshots(self, namespace: str, session_id: str, projectors: str, kept: str) -> int:
        """See Store."""
        values = (namespace, session_id, kept, projectors, projectors)
        [[count]] = self._file.query(sql.SQLITE_OTHER_SNAPSHOTS, values, absent=[(0,)])
        return int(count)

    def namespaces(self) -> Sequence[str] | None:
        """See Store."""
        rows = self._file.query(sql.SQLITE_NAMESPACES, (), absent=[None])
        return None if rows == [None] else [row[0] for row in rows]

    def sizes(self, namespace: str) -> tuple[int, int]:
        """See Store."""
        sessions, events = self._file.query(sql.SQLITE_SIZES, (namespace,), absent=[(0, 0)])[0]
        return sessions, events

    @contextmanager
    def snapshot(self) -> Iterator[_Snapshot]:
        """See Store."""
        with self._file.reading() as driver:
            text_factory, driver.text_factory = driver.text_factory, _lenient
            driver.execute(sql.SQLITE_BEGIN_READ)
            try:
                yield _Snapshot(driver)
            finally:
                driver.text_factory = text_factory
                roll_back(driver)

    def differences(self) -> Sequence[Difference]:
        """See Store."""
        try:
            with self._file.reading() as driver:
                return sqlite_schema.differences(driver)
        except StoreMissing:
            return ()

    def hides_rows(self) -> bool:
        """See Store."""
        return False

    def migrate(self) -> tuple[int, int]:
        """See Store."""
        return self._file.migrate()

    def notes(self) -> Sequence[str]:
        """See Store."""
        return (WAL_RESET,) if has_wal_reset_bug() else ()

    @property
    def is_open(self) -> bool:
        """See Store."""
        return self._file.is_open

    def close(self) -> None:
        """See Store."""
        self._group.close()
        self._file.close()


def _lenient(data: bytes) -> str:
    """Text that somebody damaged is a finding, and no reason to stop looking."""
    return data.decode("utf-8", "surrogateescape")


def _put_snapshot(
    driver: Driver, bases: list[Head], namespace: str, projector: str, put: SnapshotPut
) -> bool:
    head = driver.execute(sql.SQLITE_HEAD, (namespace, put.session_id)).fetchone()
    if head is None or head[4] != put.epoch or head[5] == "deleted":
        return False
    bases.append(Head(*head))
    place = (namespace, put.session_id, projector)
    driver.executemany(sql.SQLITE_DROP_SNAPSHOT, [(*place, name) for name in put.drop])
    rows = [(*place, put.epoch, said_us(), *chunk) for chunk in put.chunks]
    driver.executemany(sql.SQLITE_PUT_SNAPSHOT, rows)
    return True


class _Snapshot:
    """See Snapshot."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def head_rows(self, namespace: str, session_id: str | None) -> Iterator[HeadRow]:
        if session_id is not None:
            rows = self._driver.execute(sql.SQLITE_HEAD_ROW, (namespace, session_id)).fetchall()
            yield from map(head_row_of, rows)
            return
        after = 0
        while rows := self._driver.execute(sql.SQLITE_HEAD_ROWS, (namespace, after, _HEADS_PAGE)).fetchall():
            yield from (head_row_of(row[:-1]) for row in rows)
            after = rows[-1][-1]

    def page(self, namespace: str, session_id: str, after: int, limit: int) -> Rows[StoredRow]:
        values = (namespace, session_id, after, 2**63 - 1, limit)
        return shown(page_from(self._driver.execute(sql.SQLITE_ROWS, values), limit))

    def newest_of(
        self, namespace: str, session_id: str, types: Sequence[str], before: int
    ) -> StoredRow | None:
        values = (namespace, session_id, before, *types)
        return shown_row(self._driver.execute(_newest_of(types), values).fetchone())

    def orphans(self, namespace: str) -> Sequence[tuple[str, int]]:
        return self._driver.execute(sql.SQLITE_ORPHANS).fetchall()

    def differences(self) -> Sequence[Difference]:
        return sqlite_schema.differences(self._driver)


def _newest_of(types: Sequence[str]) -> str:
    return sql.SQLITE_NEWEST_TOMBSTONE if TOMBSTONES.issuperset(types) else sql.SQLITE_NEWEST_OF


def _done(job: Job[Driver], driver: Driver) -> Any:
    """What a job of a group came to; an error before its first write concerns nobody else."""
    try:
        return job.work(driver, job.bases)
    except InvalidEvent as error:
        if job.bases:
            raise
        return error


def _settle(job: Job[Driver], result: Any) -> None:
    if isinstance(result, InvalidEvent):
        job.settle(error=result)
    else:
        job.settle(result)


def _saved(driver: Driver, work: Callable[[], T]) -> T:
    """Do something in the caller's transaction, all of it or nothing."""
    driver.execute(sql.SAVEPOINT)
    try:
        return work()
    except BaseException:
        if driver.in_transaction:
            driver.execute(sql.UNDO)
        raise
    finally:
        if driver.in_transaction:
            driver.execute(sql.RELEASE)


def _attempt(
    driver: Driver, bases: list[Head], batch: Batch, base: Base, *, finishing: bool = False
) -> Landed | Refused:
    """Read the head, link and write, inside a transaction that holds the write lock.

    Where its deletion has something left to do, a session does not begin again: that comes first.
    """
    row = driver.execute(sql.SQLITE_LOCKED_HEAD, (batch.namespace, batch.session_id)).fetchone()
    head = Head(*row[:7]) if row else unknown_head(batch)
    if refuses(batch, base, head, row[8] if row else None):
        return Refused(head if base is None else base)
    if _barred(driver, batch, head) is not None:
        return Refused(head)
    if head.status == "deleted" and row and _erasing(driver, row[7]) is not None:
        if not finishing:
            return Refused(head)
        _erase_on(driver, row[7], 0, whole=True)
    key = batch.idempotency_key
    if key is not None and row and driver.execute(sql.SQLITE_KEY, (row[7], key)).fetchone():
        return Refused(head)
    linked = link(batch, head, now_us())
    bases.append(head)
    return landed(batch, linked, _insert(driver, batch, linked, head, row[7] if row else None))


def _deleted(
    driver: Driver, bases: list[Head], namespace: str, session_id: str, tombstone: Tombstone, *, whole: bool
) -> Landed | None:
    """Write the tombstone of a session and erase what is before it, inside a transaction as above.

    What is more than a slice of it is left to `_erase_on`, unless `whole`.
    """
    row = driver.execute(sql.SQLITE_LOCKED_HEAD, (namespace, session_id)).fetchone()
    if row is None or row[5] == "deleted":
        return None
    head = Head(*row[:7])
    bases.append(head)
    batch = tombstone(head)
    linked = link(batch, head, now_us())
    position = _insert(driver, batch, linked, head, row[7])
    version = linked.head.version
    if _erase(driver, row[7], version, _deleted_before(driver, batch, version), whole=whole).left:
        driver.execute(sql.SQLITE_SET_ERASING, (version, row[7]))
    driver.execute(sql.SQLITE_FORGET, (namespace, session_id))
    driver.execute(sql.SQLITE_TOUCH, (namespace, session_id))
    _erase_from_forks(driver, namespace, session_id)
    return landed(batch, linked, position)


def _insert(driver: Driver, batch: Batch, linked: Linked, before: Head, session: int | None) -> int:
    """Write the head row and the events; returns the last position."""
    after = linked.head
    if session is None:
        session = _create_head(driver, batch, linked)
    elif rewrites_listing(linked, before):
        columns = (after.at_us // HOUR_US, *listing_values(linked), session)
        driver.execute(sql.SQLITE_REWRITE_HEAD, (*_moved(after), *columns))
    else:
        driver.execute(sql.SQLITE_MOVE_HEAD, (*_moved(after), session))
    return _insert_rows(driver, linked, session)


def _insert_rows(driver: Driver, linked: Linked, session: int) -> int:
    position = 0
    for start in range(0, len(linked.rows), _INSERT_ROWS):
        rows = linked.rows[start : start + _INSERT_ROWS]
        if len(rows) > 1 and sum([len(row[13]) for row in rows]) > _INSERT_BYTES:
            for row in rows:
                position = driver.execute(sql.sqlite_insert(1), (session, *row)).lastrowid or 0
            continue
        values: list[Any] = []
        for row in rows:
            values.append(session)
            values += row
        position = driver.execute(sql.sqlite_insert(len(rows)), values).lastrowid or 0
    return position


def _create_head(driver: Driver, batch: Batch, linked: Linked) -> int:
    session: int = driver.execute(sql.SQLITE_NEW_HEAD, _head_values(batch, linked)).fetchone()[0]
    return session


def _adopt_head(driver: Driver, adoption: Adoption, session: int | None) -> int:
    """Write the head row of rows of another log; returns its id."""
    linked, after = adoption.linked, adoption.linked.head
    if session is not None:
        columns = (after.at_us // HOUR_US, *listing_values(linked), session)
        driver.execute(sql.SQLITE_REWRITE_HEAD, (*_moved(after), *columns))
        return session
    values = list(_head_values(adoption.whose, linked))
    values[10] = adoption.created_us
    place = (adoption.fork_parent, adoption.fork_version, adoption.fork_owner)
    created: int = driver.execute(sql.SQLITE_FORK_HEAD, (*values, *place)).fetchone()[0]
    return created


def _adopt_rows(driver: Driver, adoption: Adoption, session: int) -> None:
    rows = zip(adoption.linked.rows, adoption.commits, strict=True)
    driver.executemany(sql.SQLITE_ADOPT, [(session, *row, commit) for row, commit in rows])


def _head_values(batch: Batch, linked: Linked) -> tuple[Any, ...]:
    """The columns of a new head row."""
    after, listing = linked.head, linked.listing or {}
    return (
        batch.namespace, batch.session_id, *_moved(after), after.at_us // HOUR_US, after.at_us,
        *(listing.get(column) for column in LISTING),
    )  # fmt: skip


def _moved(head: Head) -> tuple[Any, ...]:
    return (head.version, head.hash, head.turn, head.branch, head.epoch, head.status, head.at_us)


def _erase(driver: Driver, session: int, before: int, after: int = 0, *, whole: bool) -> Slice:
    """Erase the content of the rows before a tombstone, page by page: all of them, or a slice."""
    count = size = 0
    covered = sql.SQLITE_COVERED
    while whole or (count < SLICE_ROWS and size < PAGE_BYTES):
        rows = page_from(driver.execute(covered, (session, before, after, PAGE_ROWS)), PAGE_ROWS)
        if not rows:
            return Slice(before, False)
        commits = [(chain.payload_commit(row[17], row[14], row[15]), session, row[0]) for row in rows]
        changed = driver.executemany(sql.SQLITE_ERASE, commits).rowcount
        if changed != len(rows):
            raise StoreError(f"{changed} of {len(rows)} events were erased; nothing was")
        after, count, size = rows[-1][0], count + changed, size + rows.size_bytes
    return Slice(after, True)


def _erase_on(driver: Driver, session: int, after: int, *, whole: bool) -> Slice:
    """A slice of what a deletion has left above a version, or all of it."""
    before = _erasing(driver, session)
    if before is None:
        return Slice(0, False)
    done = _erase(driver, session, before, after, whole=whole)
    if not done.left:
        driver.execute(sql.SQLITE_SET_ERASING, (None, session))
    return done


def _erasing(driver: Driver, session: int) -> int | None:
    before: int | None = driver.execute(sql.SQLITE_ERASING, (session,)).fetchone()[0]
    return before


def _is_erasing(driver: Driver, batch: Batch) -> bool:
    row = driver.execute(sql.SQLITE_LOCKED_HEAD, (batch.namespace, batch.session_id)).fetchone()
    return bool(row) and row[5] == "deleted" and _erasing(driver, row[7]) is not None


def _deleted_before(driver: Driver, batch: Batch, version: int) -> int:
    """Up to which version the deletion before this one has erased everything; 0 if there was none."""
    values = (batch.namespace, batch.session_id, version, *DELETING)
    row = driver.execute(sql.SQLITE_NEWEST_TOMBSTONE, values).fetchone()
    return row[0] if row else 0


def _erase_from_forks(driver: Driver, namespace: str, session_id: str) -> None:
    """Erase what the forks of an erased session say of it; parents come before their forks."""
    for (fork,) in driver.execute(sql.SQLITE_DESCENDANTS, (namespace, session_id)).fetchall():
        rows = driver.execute(sql.SQLITE_DESCRIBING, (namespace, fork, *DESCRIBING)).fetchall()
        gone, listing = handed_down(rows)
        if gone:
            session = gone[0][-1]
            commits = [(chain.payload_commit(row[17], row[14], row[15]), session, row[0]) for row in gone]
            driver.executemany(sql.SQLITE_ERASE, commits)
            driver.execute(sql.SQLITE_RELIST, (*listing.values(), session))


def _look_up(driver: Driver, batch: Batch, base: int, count: int) -> Found:
    values: tuple[Any, ...] = (base, count, batch.namespace, batch.session_id)
    statement = sql.SQLITE_LOOK_UP
    if batch.idempotency_key is not None:
        statement, values = sql.SQLITE_LOOK_UP_KEYED, (*values, batch.idempotency_key, len(batch.events))
    found = found_of(batch, driver.execute(statement, values).fetchall())
    return found._replace(barred=_barred(driver, batch, found.head))


def _barred(driver: Driver, batch: Batch, head: Head) -> int | None:
    """The first version up to this head that the batch's fence does not let it stand behind."""
    if (fence := batch.fence) is None or not is_past_fence(batch, head):
        return None
    span = (batch.namespace, batch.session_id, fence.seen, head.version)
    if fence.types:
        return barred_by(fence, driver.execute(sql.SQLITE_OF_TYPES, (*span, *fence.types)).fetchall())
    values = (*span, fence.turn, *fence.kinds)
    return barred_by(fence, driver.execute(sql.SQLITE_RESUMED_OR_ENDED, values).fetchall())
