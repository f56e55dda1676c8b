"""SessionLog: append, read and verify the events of sessions.

This module checks arguments, prepares batches and turns rows into events; how an append survives
conflicts and lost answers is in store/retry.py, how a database does one attempt in store/*.py.
"""

from __future__ import annotations

import re
import warnings
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import datetime
from operator import itemgetter
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeVar, get_args, overload

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import URL
from sqlalchemy.engine import Connection, Engine

from kern_events import bundle, chain, lineage
from kern_events.batch import Batch, Fence, StoredRow, event_of, prepare
from kern_events.codec import (
    LARGEST_BATCH_BYTES,
    LARGEST_PAYLOAD_BYTES,
    MAX_BATCH,
    MAX_BATCH_BYTES,
    MAX_PAYLOAD_BYTES,
    check_id,
)
from kern_events.consumer import Consumer, ConsumerStatus, Handler, SQLHandler, statuses
from kern_events.errors import (
    ErasureUnfinished,
    FeedRegressed,
    InvalidEvent,
    OwnerMismatch,
    SessionNotFound,
    StoreError,
    StoreMissing,
    VersionConflict,
)
from kern_events.events import (
    Branches,
    Draft,
    Event,
    Head,
    Kind,
    Receipt,
    SessionInfo,
    Status,
    to_microseconds,
)
from kern_events.feed import FeedHolder, Subscription, Wakeups, settled_end
from kern_events.frozen import DICTS
from kern_events.numbers import LARGEST, check_optional, check_seconds, check_whole
from kern_events.store import open_store
from kern_events.store.base import PAGE_ROWS, Expected, Landed, Origin, Rows, Store, is_of_another, missing
from kern_events.store.retry import check_within, delete, erase_on, fork, record, record_many, recorded
from kern_events.turn import Claims, TurnRecorder, claim_at, opening_draft
from kern_events.upcast import NO_TYPES, EventTypes, Quota
from kern_events.verify import Progress, Report, verify_snapshot

_FARTHEST: Final = LARGEST - MAX_BATCH  # that a session can stand at, to be gone on from
_LONGEST_S: Final = 2_000_000.0  # More milliseconds are no setting of Postgres.
_MAX_CONNECTIONS: Final = 10_000
_WITH_METADATA: Final = (
    *("session.created", "session.described", "session.restored", "session.forked"),
    "session.deleted",  # It has none, and none from before it counts.
)
_RENAMED: Final = ("session.renamed",) * len(_WITH_METADATA)  # so many are asked for
_CARRIED: Final = ("user_id", "name")  # beside the metadata: what is the session's, and not a point's

T = TypeVar("T")
ManyAppends = Sequence[tuple[str, Sequence[Draft], Expected]]


def _checked_appends(appends: Any) -> ManyAppends:
    if not isinstance(appends, Collection) or not all(_is_triple(one) for one in appends):
        raise TypeError("appends is a list of (session_id, drafts, expected)")
    return [(session_id, drafts, base) for session_id, drafts, base in appends]


def _is_triple(one: Any) -> bool:
    return isinstance(one, (list, tuple)) and len(one) == 3


def _close_forgotten(store: Store, text: str) -> None:
    """A log is gone that nobody has closed: its connections are not to stay until their turn comes."""
    was_open = store.is_open
    store.close()
    if was_open:
        warnings.warn(f"unclosed {text}", ResourceWarning, stacklevel=2)


class PendingReceipt(NamedTuple):
    """What an append in the caller's transaction recorded, if that transaction commits."""

    log: SessionLog
    receipt: Receipt

    def confirm(self) -> Receipt:
        """The receipt, once the caller has committed; also where the answer to that COMMIT was lost.

        Raises:
            StoreError: The events are not there: the transaction was rolled back or is still open.
        """
        expected = self.receipt
        scope = self.log._scope_of(expected.session_id)
        rows = self.log._store.look_up(scope, expected.version - 1, 1, durable=True).behind
        if not rows or rows[0][18] != expected.hash:
            raise StoreError(
                f"version {expected.version} of session {expected.session_id!r} is not recorded: "
                "its transaction has not been committed"
            )
        return expected


class SessionLog:
    """An append-only log of sessions, over SQLite, Postgres or memory.

    One object is shared by all threads of a process; it connects on first use and reconnects in a forked
    child. What reads makes and migrates nothing: a log that is not there reads as an empty one, and the
    first write makes its file and its tables.

    Args:
        url_or_engine: `memory:`, `sqlite:///relative.db`, `sqlite:////absolute.db`,
            `postgresql://...` (psycopg 3), or an SQLAlchemy Engine, whose settings stay as they are.
        namespace: The tenant; nothing is ever read across namespaces.
        schema: The Postgres schema that holds the tables; None is the first of the search path.
        pool_size: How many connections are kept; on Postgres also how many there are at the most,
            and further threads wait for one.
        lock_timeout_s: How long to wait for a lock before StoreBusy. On Postgres a caller's Engine
            keeps its own setting.
        timeout_s: On Postgres, how long an answer may take, beside the wait for a lock: then it is lost.
            Not for a caller's Engine.
        max_payload_bytes: The limit of one encoded payload, up to 16 MiB.
        max_batch_bytes: The limit of what one append or append_many holds in payloads, metas and natives:
            256 MiB; from 1 to 512 MiB.
        types: The application's own event types. Older versions are read through their upcasters, and
            what does not fit its type is refused. A log without types gives what is recorded.
    """

    def __init__(
        self,
        url_or_engine: str | URL | Engine,
        *,
        namespace: str = "default",
        schema: str | None = None,
        pool_size: int = 8,
        lock_timeout_s: float = 5.0,
        timeout_s: float = 30.0,
        max_payload_bytes: int = MAX_PAYLOAD_BYTES,
        max_batch_bytes: int = MAX_BATCH_BYTES,
        types: EventTypes = NO_TYPES,
    ) -> None:
        if not isinstance(types, EventTypes):
            raise TypeError(f"types is an EventTypes, not {type(types).__name__}")
        self._max_payload_bytes = check_whole(
            "max_payload_bytes", max_payload_bytes, 1, LARGEST_PAYLOAD_BYTES
        )
        self._max_batch_bytes = check_whole("max_batch_bytes", max_batch_bytes, 1 << 20, LARGEST_BATCH_BYTES)
        self._lock_timeout_s = check_seconds("lock_timeout_s", lock_timeout_s, high=_LONGEST_S)
        self.namespace: Final = check_id(namespace, "namespace")
        self._store: Final = open_store(
            url_or_engine,
            schema=schema,
            pool_size=check_whole("pool_size", pool_size, 1, _MAX_CONNECTIONS),
            lock_timeout_s=self._lock_timeout_s,
            timeout_s=check_seconds("timeout_s", timeout_s, 0.001, _LONGEST_S),
        )
        self._wakeups: Final = Wakeups(self._store)
        self._closing = False
        self.types: Final = types
        self._unclosed = weakref.finalize(self, _close_forgotten, self._store, repr(self))
        self._unclosed.atexit = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._store.dialect} namespace={self.namespace!r}>"

    def close(self) -> None:
        """Finish what is being written, end subscriptions, and give every connection back."""
        self._unclosed.detach()
        self._closing = True
        self._wakeups.close()
        self._store.close()

    @overload
    def append(
        self,
        session_id: str,
        drafts: Sequence[Draft],
        *,
        expected: Expected = None,
        idempotency_key: str | None = None,
        connection: None = None,
    ) -> Receipt: ...

    @overload
    def append(
        self,
        session_id: str,
        drafts: Sequence[Draft],
        *,
        expected: Expected = None,
        idempotency_key: str | None = None,
        connection: Connection,
    ) -> PendingReceipt: ...

    def append(
        self,
        session_id: str,
        drafts: Sequence[Draft],
        *,
        expected: Expected = None,
        idempotency_key: str | None = None,
        connection: Connection | None = None,
    ) -> Receipt | PendingReceipt:
        """Append events to a session, all of them or none; durable when it returns.

        Args:
            session_id: Text of 1 to 200 bytes; the session is created by its first event.
            drafts: 1 to 1,000 and up to `max_batch_bytes`, recorded in the order given with consecutive
                versions.
            expected: The version or Head that the caller last saw; 0 means the session must be new
                or deleted. None appends at the end, whatever is there.
            idempotency_key: Names this append, for callers that keep neither the drafts nor the
                base (a queue's redelivery, a retried request).
            connection: An SQLAlchemy connection whose open transaction the events join. Never
                retried; a conflict leaves the transaction usable. On SQLite it must have begun
                with BEGIN IMMEDIATE, on Postgres it must be READ COMMITTED.

        Returns:
            A receipt: first and last version, chain hash and position of what was recorded. With
            `connection`, a PendingReceipt to confirm after the commit.

        Raises:
            VersionConflict: Another writer appended first. Re-read and decide again.
            IdempotencyConflict: The key is recorded in this session with other content, or before it
                was deleted or erased from. The same content is not recorded twice: the first receipt
                is returned.
            OwnerMismatch: A `session.created` names another user than the one whose session it is.
            InvalidEvent: A value cannot be recorded exactly. Nothing was written.
            SessionClosed: The session was closed and the first draft does not reopen it.
            SessionDeleted: As before, where it was deleted; a SessionNotFound too.
            AppendUnresolved: The answer was lost and could not be looked up. Calling again with
                `expected=error.base` and the same drafts is exact.
            StoreBusy: A lock was not granted within `lock_timeout_s`.
            StoreFull: There is no room. Nothing was written; safe to repeat once there is.
            StoreUnavailable: There is no connection. Nothing was written.
        """
        expected = checked_expected(expected)
        batch = self._prepare(session_id, drafts, idempotency_key=idempotency_key)
        if connection is not None:
            return PendingReceipt(self, self._within(connection, batch, expected).receipt)
        return self._record(batch, expected).receipt

    def append_many(
        self, appends: ManyAppends, *, connection: Connection | None = None
    ) -> list[Receipt] | list[PendingReceipt]:
        """Append to several sessions in one transaction, to all of them or to none.

        Args:
            appends: `(session_id, drafts, expected)` each, every session once; up to `max_batch_bytes`
                together.
            connection: As for append.

        Returns:
            The receipts, in the order of `appends`.

        Raises:
            As append; the first session that is refused undoes all.
        """
        batches: list[tuple[Batch, Expected]] = []
        spent_bytes = 0
        for session_id, drafts, base in _checked_appends(appends):
            batch = self._prepare(session_id, drafts, spent_bytes=spent_bytes)
            batches.append((batch, checked_expected(base)))
            spent_bytes += batch.size_bytes
        return self._record_batches(batches, connection=connection)

    def _record_batches(
        self, batches: Sequence[tuple[Batch, Expected]], *, connection: Connection | None = None
    ) -> list[Receipt] | list[PendingReceipt]:
        """append_many of prepared batches; for the package's own importers."""
        if len({batch.session_id for batch, _ in batches}) < len(batches):
            raise InvalidEvent("the same session twice in one append_many", "appends")
        if not batches:
            return []
        # Everybody locks in the same order, by the bytes of the keys, so nobody deadlocks.
        order = sorted(range(len(batches)), key=lambda i: batches[i][0].session_id.encode())
        ordered = [batches[i] for i in order]
        if connection is None:
            recorded = [landed.receipt for landed in record_many(self._store, ordered)]
            return _in_order(order, recorded)
        with connection.begin_nested():
            pending = [PendingReceipt(self, self._within(connection, *one).receipt) for one in ordered]
        return _in_order(order, pending)

    def turn(
        self,
        session_id: str,
        *,
        buffered: bool = False,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        parent_run_id: str | None = None,
        actor: str | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> AbstractContextManager[TurnRecorder]:
        """Record one turn as it happens: `with log.turn("s1") as turn: turn.message("user", "Hi")`.

        Every call on the recorder commits at once, or all at the end with `buffered=True` (one
        transaction, and nothing is lost but the turn itself if the process dies). Leaving the block
        closes the turn: completed, failed with the error that left it, or cancelled. A session that
        does not exist is created with a `session.created` that says `user_id` and `agent_id`.

        Raises:
            OwnerMismatch: Entering the block: the session is another user's than `user_id`. One that was
                begun for nobody takes turns of everybody, and stays nobody's.
            TurnAbandoned: From any call, once somebody restored the session to before this turn.
            TurnTaken: From any call, once somebody else resumed this turn, or ended it: whoever was
                taken over from writes no more.
        """
        started = {"run_id": run_id, "parent_run_id": parent_run_id, "agent_id": agent_id}
        return TurnRecorder(
            self,
            session_id,
            started={key: value for key, value in started.items() if value is not None},
            opening=opening_draft(user_id=user_id, agent_id=agent_id),
            buffered=buffered,
            actor=actor,
            meta=meta,
        )

    def resume(
        self,
        session_id: str,
        turn: int,
        *,
        expected: Head,
        buffered: bool = False,
        actor: str | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> AbstractContextManager[TurnRecorder]:
        """Continue a turn that was paused or left open, by this process or by another one.

        Entering the block records `turn.resumed`; from then on it is as with `turn`. Sessions.resume
        looks for the paused turn itself.

        Args:
            session_id: The session.
            turn: The number of the turn.
            expected: Where the session stood when the turn was seen to wait: of those who try, the
                first continues it, and the others get VersionConflict.
            buffered, actor, meta: As for turn; `turn.resumed` itself is recorded at once.

        Raises:
            TurnTaken, TurnAbandoned: As for turn. Whoever had the turn before gets TurnTaken from now on.
        """
        claims = claim_at(checked_head(expected), check_whole("turn", turn))
        return self._resumed(session_id, claims, buffered=buffered, actor=actor, meta=meta)

    def _resumed(
        self,
        session_id: str,
        claims: Claims,
        *,
        buffered: bool,
        actor: str | None,
        meta: Mapping[str, Any] | None,
    ) -> TurnRecorder:
        return TurnRecorder(
            self,
            session_id,
            started={},
            opening=opening_draft(),
            buffered=buffered,
            actor=actor,
            meta=meta,
            claims=claims,
        )

    def read(
        self, session_id: str, *, after: int = 0, until: int | None = None, limit: int | None = None
    ) -> Iterator[Event]:
        """The events of a session in order, read in pages as the caller goes on.

        Args:
            session_id: The session.
            after: Only versions above this one.
            until: Only versions up to this one.
            limit: At most so many recorded events, whatever upcasters make of them; what they leave out
                does not count.

        Raises:
            SessionNotFound: The session has no events or was deleted; raised at once.
            StoreCorrupt: It has, and none is there; a StoreError where row-level security may hide them.
            DecodeError: The bytes of an event are damaged; raised when it is reached.
            UpcastFailed: An upcaster failed; raised when the event is reached.
        """
        return _flat(self._read_pages(session_id, after=after, until=until, limit=limit))

    def _read_pages(
        self, session_id: str, *, after: int = 0, until: int | None = None, limit: int | None = None
    ) -> Iterator[Iterator[Event]]:
        """read, page by page; for the async facade."""
        check_id(session_id, "session_id")
        after, until = check_whole("after", after), check_optional("until", until)
        quota = Quota(check_optional("limit", limit))
        head, rows = self._store.tail(self.namespace, session_id, after, quota.rows(PAGE_ROWS) or 1)
        if head is None or head.status == "deleted":
            raise SessionNotFound(session_id)
        if head.version > after and not rows:
            said = f"session {session_id!r} has no event after version {after}"
            raise missing(said, self._store.hides_rows())
        return self._pages(session_id, rows, until, quota)

    def _pages(
        self, session_id: str, rows: Rows[StoredRow], until: int | None, quota: Quota
    ) -> Iterator[Iterator[Event]]:
        while rows:
            last = rows[-1][0]
            yield quota.given(self._recorded_up_to(session_id, rows, until))
            del rows  # Two pages at once would be twice the memory.
            size = quota.rows(PAGE_ROWS)
            if size == 0 or (until is not None and last >= until):
                return
            rows = self._store.rows(self.namespace, session_id, last, until, size)

    def _recorded_up_to(
        self, session_id: str, rows: Rows[StoredRow], until: int | None
    ) -> Iterator[Sequence[Event]]:
        for row in rows:
            if until is not None and row[0] > until:
                return
            yield self._events_of(session_id, row)

    def export(self, session_id: str) -> Iterator[bytes]:
        """A session as JSON lines, every recorded column of every row, for import_events.

        The first line says what the file is. Of a fork, what it shares with its parents comes in
        front, theirs by their ids. What was erased is exported as that. The lines end with a line
        break and are ASCII; the rows are read in pages as the caller goes on.

        Raises:
            SessionNotFound: The session has no events or was deleted; raised at once.
        """
        return _flat(self._export_pages(session_id))

    def _export_pages(self, session_id: str) -> Iterator[Iterator[bytes]]:
        """export, page by page; for the async facade."""
        head = self.head(session_id)
        if head.version == 0 or head.status == "deleted":
            raise SessionNotFound(session_id)
        segments = lineage.segments(self._store, self.namespace, session_id, head.version)
        return self._exported(segments)

    def _exported(self, segments: Sequence[lineage.Segment]) -> Iterator[Iterator[bytes]]:
        yield iter([bundle.header_line(self.namespace)])
        for segment in segments:
            yield from self._section(segment)

    def _section(self, segment: lineage.Segment) -> Iterator[Iterator[bytes]]:
        """The lines of one session's own rows, page by page."""
        session_id, parent, origin, until = segment
        section = bundle.Section(session_id, until, parent, origin if parent is not None else None)
        yield iter([bundle.section_line(section)])
        after = 0
        while after < until:
            rows = self._store.rows(self.namespace, session_id, after, until, PAGE_ROWS)
            if not rows:
                said = f"session {session_id!r} ends at version {after} of {until}"
                raise missing(said, self._store.hides_rows())
            after = rows[-1][0]
            yield map(bundle.row_line, rows)
            del rows  # Two pages at once would be twice the memory.
            if after == until:
                # What was erased would look as if somebody had taken it away, without what says so: of a
                # parent that is recorded behind the fork, of any session while it is exported.
                until = max(until, lineage.erased_until(self._store, self.namespace, session_id))

    def read_all(self, *, after: int = 0, limit: int | None = None) -> Iterator[Event]:
        """The events of all sessions of the namespace in log order, up to where the log stands now.

        Gap-safe: no event appears later at or below a position that was passed, so the last
        event's `position` is a cursor to go on from. A writer that has appended and not committed
        is waited for.

        Args:
            after: Only positions above this one.
            limit: At most so many recorded events, whatever upcasters make of them; what they leave out
                does not count.

        Raises:
            FeedRegressed: `after` is past the end of the log.
            FeedUnavailable: This server cannot give a gap-safe feed.
            StoreBusy: A writer did not commit within `lock_timeout_s`.
        """
        return _flat(self._read_all_pages(after=after, limit=limit))

    def _read_all_pages(self, *, after: int = 0, limit: int | None = None) -> Iterator[Iterator[Event]]:
        """read_all, page by page; for the async facade."""
        after, limit = check_whole("after", after), check_optional("limit", limit)
        end = settled_end(self._store, self._lock_timeout_s)
        if after > end:
            raise FeedRegressed(after, end)
        return self._feed_pages(after, end, Quota(limit))

    def subscribe(self, *, after: int = 0) -> Subscription:
        """Follow the log: the events behind a position, then each one as it is committed.

        Nothing is skipped and no session is reordered, whatever commits late. A writer that has
        appended and not committed holds the feed up at its events; `feed_held_by` tells whom it waits for.

        Args:
            after: Only positions above this one.

        Returns:
            An iterator that waits for more, and a context manager. `batch` takes a time to wait at most,
            `position` is where to go on from later, `close` ends it.

        Raises:
            FeedRegressed, FeedUnavailable: As for read_all, from the iterator.
        """
        return Subscription(self, check_whole("after", after))

    def consumer(
        self,
        name: str,
        handle: Handler | SQLHandler,
        *,
        after: int | None = 0,
        transactional: bool = False,
        batch_size: int = 500,
        attempts: int = 5,
    ) -> Consumer:
        """Hand all events on to another system, in order, from where it was left: `consumer(...).run()`.

        Any number of workers may run a consumer of one name; one of them works. The position is kept in
        the log's database. A session whose event the handler refuses is set aside, tried again with
        growing pauses, and after so many attempts left to `retry` or `skip`; other sessions go on.

        Args:
            name: Names the position: 1 to 200 bytes.
            handle: Gets a list of events; an exception refuses them. What it does has to bear
                repetition: after a crash the last batch is given again.
            after: Where a consumer that is new begins: behind this position; None is the end of the log.
            transactional: The handler gets an SQLAlchemy connection as well, in whose transaction the
                position is stored: what it writes there happens exactly once. It holds that
                transaction while it works, so it should be brief; on SQLite nobody else writes then.
            batch_size: At most so many recorded events at once.
            attempts: How often an event is tried before its session waits for somebody.
        """
        return Consumer(
            self,
            name,
            handle,
            after=after,
            transactional=transactional,
            batch_size=batch_size,
            attempts=attempts,
        )

    def consumers(self) -> list[ConsumerStatus]:
        """How far each consumer has come, and what it has set aside."""
        return statuses(self._store, self.namespace)

    def feed_held_by(self) -> list[FeedHolder]:
        """The transactions that have appended and not ended, the oldest first: the feed waits for them."""
        return [FeedHolder(*each) for each in self._store.feed_held_by()]

    def _feed_pages(self, after: int, end: int, quota: Quota) -> Iterator[Iterator[Event]]:
        while size := quota.rows(PAGE_ROWS):
            rows = self._store.feed(self.namespace, after, end, size)
            if not rows:
                return
            after, more = rows[-1][1][1], rows.more
            yield quota.given(self._events_of(session_id, row) for session_id, row in rows)
            del rows  # Two pages at once would be twice the memory.
            if not more:
                return

    def _events_of(self, session_id: str, row: StoredRow) -> Sequence[Event]:
        """What a recorded row is today."""
        event = event_of(self.namespace, session_id, row, self.types)
        return self.types.upcast(event) if self.types else (event,)

    def head(self, session_id: str) -> Head:
        """Where a session stands; version 0 if it is unknown."""
        batch = self._scope_of(session_id)
        return self._store.head(self.namespace, session_id) or batch.empty_head()

    def sessions(
        self, *, user_id: str | None = None, after: str | None = None, limit: int = 100
    ) -> list[SessionInfo]:
        """The sessions of the namespace, the most recently active first; deleted ones are not listed.

        Args:
            user_id: Only sessions of this user.
            after: The `cursor` of the last session of the page before.
            limit: The size of the page.
        """
        limit = check_whole("limit", limit)
        if user_id is not None:
            check_id(user_id, "user_id")
        return list(self._store.sessions(self.namespace, user_id, _cursor(after), limit))

    def fork(
        self,
        session_id: str,
        into: str,
        *,
        turn: int | None = None,
        version: int | None = None,
        at: datetime | None = None,
        actor: str | None = None,
    ) -> Receipt:
        """Begin another session that shares the past of this one, up to now or up to a point.

        Records one event, `session.forked`, however long the session is: the versions up to the
        point *are* the parent's, and versions and turns go on from there. So an erasure in the
        parent reaches its forks. Name, user id, metadata and the like are as they are now.

        Args:
            session_id: The session to fork.
            into: The id of the new one.
            turn: Fork as of a turn of the live path: before the next one started.
            version: Fork as of a version, on an abandoned branch too; 1 is the first.
            at: Fork as of an aware time: with all that was recorded by then.
            actor: Who does it: a pseudonymous id.

        Returns:
            The receipt of the first event of the new session.

        Raises:
            SessionNotFound: The session has no events or was deleted.
            SessionExists: There is a session of the id `into`, or there was one.
            ValueError: The session has no such turn or version, the time has no zone, or there is nothing
                before that point.
            PointErased: What was recorded there is erased.
            TypeError: More than one of turn, version and at.
            AppendUnresolved: The answer was lost and could not be looked up. The fork is there if
                the session `into` is: `branches(into)` tells its parent and version.
        """
        check_id(into, "into")
        at_us = None if at is None else to_microseconds(at)
        while True:
            head = self.head(session_id)
            last = self._point_back(session_id, head, turn, version, at_us)
            if last == 0:
                raise ValueError(f"session {session_id!r} has nothing before that point to fork from")
            owner = lineage.owner_of(self._store, self.namespace, session_id, last)
            begun = self._store.turn_at(self.namespace, owner, last)
            draft = Draft("session.forked", self._described(session_id), actor=actor)
            batch = self._prepare(into, [draft], ref=last, reserved=True)
            origin = Origin(session_id, owner, last, begun, head.epoch)
            if landed := fork(self._store, batch, origin):
                return landed.receipt
            # Something was erased meanwhile, which the draft may still say: it is made anew.

    def _point_back(
        self, session_id: str, head: Head, turn: int | None, version: int | None, at_us: int | None
    ) -> int:
        """The version that a point in time means, to go on from; for the package's own adapters."""
        found = lineage.point(self._store, self.namespace, session_id, head, turn, version, at_us)
        if found != head.version:
            lineage.check_kept(self._store, self.namespace, session_id, found)
        return found

    def branches(self, session_id: str) -> Branches:
        """The tree of a session: what counts, what was abandoned by restores, and its forks.

        Raises:
            SessionNotFound: The session has no events or was deleted.
        """
        head = self.head(session_id)
        if head.version == 0 or head.status == "deleted":
            raise SessionNotFound(session_id)
        marks = [
            _mark(event_of(self.namespace, session_id, row)) for row in self._marks(session_id, head.version)
        ]
        return lineage.branches(self._store, self.namespace, session_id, head, marks)

    def _marks(self, session_id: str, until: int) -> Iterator[StoredRow]:
        """The first event of a session, and those that begin a branch."""
        rows = self._store.rows(self.namespace, session_id, 0, until, 1)
        while rows:
            yield from rows
            rows = self._store.marks(self.namespace, session_id, rows[-1][0], until)

    def _described(self, session_id: str) -> dict[str, Any]:
        """What a session is, beside what was said in it: its listing columns and its metadata.

        The columns say what its own events say; what a fork shares with its parents is read from theirs.
        """
        row = self._store.head_row(self.namespace, session_id)
        described: dict[str, Any] = dict(row.described) if row else {}
        if row and row.fork_parent is not None:
            said = self._carried(session_id, (*_CARRIED, "metadata"))
            described = {key: value for key, value in described.items() if key not in _CARRIED}
            described |= {key: said[key] for key in _CARRIED if said.get(key) is not None}
            return {**described, "metadata": dict(said.get("metadata") or {})}
        return {**described, "metadata": self._metadata(session_id)}

    def _metadata(self, session_id: str) -> dict[str, Any]:
        """The application's own data about a session: what the newest event with some says."""
        return dict(self._carried(session_id, ("metadata",)).get("metadata") or {})

    def _carried(self, session_id: str, keys: Collection[str]) -> dict[str, Any]:
        """What the newest events that say something of these say of them, as a view has it."""
        found: dict[str, Any] = {}
        types = (_WITH_METADATA,) if "name" not in keys else (_WITH_METADATA, _RENAMED)
        for payload in self._describing(session_id, types):
            said = {key: payload[key] for key in keys if key in payload and key not in found}
            if not isinstance(said.get("metadata"), dict | None):
                del said["metadata"]  # That is none.
            found |= said
            if len(found) == len(keys):
                break
        return found

    def _describing(self, session_id: str, types: Sequence[Sequence[str]]) -> Iterator[Mapping[str, Any]]:
        """The payloads of these types that count, the newest first, and those of the parents."""
        owner: str | None = session_id
        before = LARGEST
        while owner is not None:
            rows = [self._store.newest_of(self.namespace, owner, each, before) for each in types]
            row = max(filter(None, rows), key=itemgetter(0), default=None)
            if row is None:
                parent = self._store.lineage(self.namespace, owner)
                owner, before = parent.parent, min(before, parent.origin + 1)
                continue
            if row[3] == "session.deleted":
                break
            payload = event_of(self.namespace, owner, row).payload
            if isinstance(payload, dict):
                begins = row[3] == "session.forked" and payload
                yield {**dict.fromkeys(_CARRIED), **payload} if begins else payload
            # Where it is erased what came back with a restore, it is as it was at the target.
            gone = row[3] == "session.restored" and not isinstance(payload, dict)
            before = (row[7] or 0) + 1 if gone else row[0]

    def describe(
        self,
        session_id: str,
        *,
        name: str | UnsetType | None = UNSET,
        user_id: str | UnsetType | None = UNSET,
        metadata: Mapping[str, Any] | UnsetType | None = UNSET,
        expected: Expected = None,
        actor: str | None = None,
    ) -> Receipt:
        """Say what a session is: `log.describe("s1", name="A trip", metadata={"stars": 5})`.

        What is left out stays as it is, and None clears it. The metadata is merged by its top-level keys, so
        that of those who describe a session at the same time nobody undoes what others say; a key that is
        given None goes. A nested object is replaced whole, with the nulls that it holds. The event,
        `session.described`, carries the metadata as a whole.

        Args:
            session_id: The session, which there must be.
            name: Its name.
            user_id: Whose it is from now on.
            metadata: Keys of the application's own, with any JSON value.
            expected: The version or Head that the caller decided on. By default the session may have
                gone on meanwhile.
            actor: Who does it: a pseudonymous id.

        Raises:
            SessionNotFound: The session has no events or was deleted.
            SessionClosed: The session is closed.
            VersionConflict: The session is past `expected`.
            InvalidEvent: A value cannot be recorded exactly.
            TypeError: Nothing is given.
        """
        said = {"name": name, "user_id": user_id, "metadata": metadata}
        given = {key: value for key, value in said.items() if value is not UNSET}
        if not given:
            raise TypeError("describe takes at least one of name, user_id and metadata")
        expected = checked_expected(expected)
        draft = Draft("session.described", given, actor=actor)
        while True:
            head = self.head(session_id)
            if head.version == 0 or head.status == "deleted":
                raise SessionNotFound(session_id)
            if "metadata" in given:
                whole = merged(self._metadata(session_id), given["metadata"])
                draft = msgspec.structs.replace(draft, payload={**given, "metadata": whole})
            fence = Fence(head.version, types=_WITH_METADATA) if "metadata" in given else None
            try:
                return self._record(self._prepare(session_id, [draft], fence=fence), expected).receipt
            except VersionConflict:
                if expected is not None:
                    raise

    def delete(
        self, session_id: str, *, actor: str | None = None, progress: Progress | None = None
    ) -> Receipt:
        """End a session and erase its content for good; its chain stays and still verifies.

        One `session.deleted` event is the tombstone: from it on nobody is given what was said. That is
        erased with it, in a long session in slices, between which others write; where that is broken off,
        the next deletion in the namespace goes on with it, and so does whoever begins the session again.
        Versions and turns go on if it is created again. What forks share with it is erased for them too, and
        so are the name, user id and metadata that they were handed down; what they have described themselves
        stays. A fork of a deleted session is nobody's until `describe(user_id=)` says whose it is: it takes
        turns for anybody, and `sessions(user_id=)` does not list it. To forget a user, delete the forks
        first: `branches(session_id).forks`, and theirs.

        Args:
            session_id: The session.
            actor: Who does it: a pseudonymous id, which is never erased.
            progress: Called with the version up to which everything is erased, and the last one.

        Raises:
            SessionNotFound: The session has no events or is deleted already.
            ErasureUnfinished: It is deleted, and the database failed before all of it was overwritten.
        """
        tombstones = self._tombstones(session_id, actor)
        if self._store.head(self.namespace, session_id) is None:  # No tables are made for nothing.
            raise SessionNotFound(session_id)
        landed = delete(self._store, self.namespace, session_id, tombstones)
        self._erase_on(session_id, progress)
        if landed is None:
            self._settled(session_id)  # Whoever lost the answer of a deletion takes this for it.
            raise SessionNotFound(session_id)
        return landed.receipt

    def _delete_within(self, connection: Connection, session_id: str, *, whole: bool = True) -> bool:
        """delete in the caller's transaction, False if there is nothing; for the package's own adapters.

        Not `whole`, some of a long session is left, to be erased in slices after the commit: by _erase_on.
        """
        make = self._tombstones(session_id, None)
        landed = self._store.delete_within(connection, self.namespace, session_id, make, whole=whole)
        return landed is not None

    def _erase_on(self, session_id: str, progress: Progress | None = None) -> None:
        """Erase what a deletion has left of a session, and what was left of others."""
        unfinished = self._store.unfinished(self.namespace)
        if session_id in unfinished:
            erase_on(self._store, self.namespace, session_id, progress)
        for other in unfinished:  # Whoever has deleted it was killed, or is at it.
            if other != session_id:
                with suppress(ErasureUnfinished):  # Whoever is next tries it again.
                    erase_on(self._store, self.namespace, other)

    def _head_within(self, connection: Connection, session_id: str) -> Head:
        """head in the caller's transaction; for the package's own adapters."""
        found = self._store.head_within(connection, self.namespace, session_id)
        return found or self._scope_of(session_id).empty_head()

    def _tombstones(self, session_id: str, actor: str | None) -> Callable[[Head], Batch]:
        """What makes the tombstone of a session, of the same id at whatever head it is tried."""
        check_id(session_id, "session_id")
        draft = Draft("session.deleted", {}, actor=actor)

        def tombstone(head: Head) -> Batch:
            placed = Draft(
                draft.type, {}, actor=actor, meta={"erased": [[1, head.version]]}, event_id=draft.event_id
            )
            return prepare(self.namespace, session_id, [placed], reserved=True)

        return tombstone

    def verify(self, session_id: str | None = None, *, progress: Progress | None = None) -> Report:
        """Recompute the hash chain and the head rows of one session or of all; compare the schema.

        Args:
            session_id: One session, deleted or not; None is all of the namespace.
            progress: Called with the sessions and the events verified so far.

        Returns:
            A report with every finding, not only the first; `report.check()` raises.

        Raises:
            SessionNotFound: The session given was never recorded.
            StoreMissing: There is no log, or nothing in its namespace, where all of it was to be verified.
        """
        if session_id is not None:
            check_id(session_id, "session_id")
        try:
            now_us = self._store.now_us()
            with self._store.snapshot() as snapshot:
                report = verify_snapshot(snapshot, self.namespace, session_id, progress, now_us)
        except StoreMissing as error:
            if session_id is None:
                raise
            raise SessionNotFound(session_id) from error
        if session_id is None and not report.sessions and not report.findings:
            raise StoreMissing(f"nothing is recorded in namespace {self.namespace!r}")
        return report.with_notes([*report.notes, *self._store.notes()])

    def migrate(self) -> tuple[int, int]:
        """Create, update or mend the tables; returns the schema numbers before and after.

        What `verify` finds of the schema is made anew: tables, columns, constraints, indexes and triggers
        that are missing or have been changed. Where nothing is to be done, no rights are needed for it.

        Raises:
            StoreError: Something cannot be mended, or not by this role.
        """
        return self._store.migrate()

    def _prepare(
        self,
        session_id: str,
        drafts: Sequence[Draft],
        *,
        idempotency_key: str | None = None,
        opening: Draft | None = None,
        branch: int | None = None,
        turn: int = 0,
        fence: Fence | None = None,
        ref: int | None = None,
        reserved: bool = False,
        spent_bytes: int = 0,
        bounded: bool = True,
    ) -> Batch:
        """Guard and encode drafts; for the package's own recorders and importers."""
        batch = prepare(
            self.namespace,
            session_id,
            drafts,
            idempotency_key=idempotency_key,
            opening=opening,
            branch=branch,
            turn=turn,
            fence=fence,
            max_payload_bytes=self._max_payload_bytes,
            max_batch_bytes=self._max_batch_bytes if bounded else None,
            spent_bytes=spent_bytes,
            ref=ref,
            reserved=reserved,
        )
        if self.types:
            for index, event in enumerate(batch.events):
                self.types.check(event.draft, event.payload, f"drafts[{index}]")
        return batch

    def _batches(self, session_id: str, drafts: Sequence[Draft]) -> Iterator[Batch]:
        """Any number of drafts as batches that an append takes; for the package's own importers."""
        for start in range(0, len(drafts), MAX_BATCH):
            page = self._prepare(session_id, drafts[start : start + MAX_BATCH], bounded=False)
            yield from page.split(self._max_batch_bytes)

    def _record(self, batch: Batch, expected: Expected = None) -> Landed:
        """Append a prepared batch; for the package's own recorders and importers."""
        return record(self._store, batch, expected)

    def _recorded(self, batch: Batch) -> Landed | None:
        """Whether a batch is recorded whose append was broken off; for the package's own recorders."""
        return recorded(self._store, batch)

    def _settled(self, session_id: str) -> Head:
        """As head, once everything that could be read before is durable; for the package's own importers."""
        return self._store.look_up(self._scope_of(session_id), 0, 0, durable=True).head

    def _head_for(self, session_id: str, user_id: str | None) -> Head:
        """As head; OwnerMismatch if the session is another user's. For the package's own recorders."""
        batch = self._scope_of(session_id)._replace(user_id=user_id)
        row = self._store.head_row(self.namespace, session_id)
        if user_id is not None and row and is_of_another(batch, row.described.get("user_id")):
            raise OwnerMismatch(session_id, user_id)
        return row.head if row else batch.empty_head()

    def _turn_started(self, session_id: str, head: Head, turn: int) -> dict[str, Any]:
        """What `turn.started` says of a turn to be resumed; nothing if it is erased, or there is none."""
        found = lineage.turn_start(self._store, self.namespace, session_id, head.version, turn)
        if found is None:
            return {}
        owner, version = found
        [row] = self._store.rows(self.namespace, owner, version - 1, version, 1)
        payload = event_of(self.namespace, owner, row).payload
        return payload if isinstance(payload, dict) else {}

    def _scope_of(self, session_id: str) -> Batch:
        """A batch without events, for what depends on the session alone."""
        check_id(session_id, "session_id")
        return Batch(self.namespace, session_id, chain.scope(self.namespace, session_id), ())

    def _holding(self, session_id: str) -> tuple[str, tuple[Any, ...]] | None:
        """The statement that holds a head ahead of _within, if there is one; for the package's adapters."""
        return self._store.holding(self.namespace, session_id)

    def _within(
        self, connection: Connection, batch: Batch, expected: Expected, held: Sequence[Any] | None = None
    ) -> Landed:
        answer, found = self._store.within(connection, batch, expected, held)
        if expected == 0 and found is not None and found.head.status == "deleted":
            expected = found.head  # A deleted session is new again.
            answer, found = self._store.within(connection, batch, expected)
        return check_within(batch, expected, answer, found)


def checked_expected(expected: object) -> Expected:
    """What a caller passed as `expected`; anything else would silently switch the guard off."""
    if expected is None:
        return None
    if isinstance(expected, Head):
        return checked_head(expected)
    return check_whole("expected", expected)


def checked_head(head: object) -> Head:
    """A Head as the log has given it: what is in it goes into statements."""
    if not isinstance(head, Head):
        raise TypeError(f"expected is a Head, not {type(head).__name__}")
    numbers = (head.version, head.turn, head.branch, head.epoch, head.at_us)
    if not all(type(number) is int and 0 <= number <= _FARTHEST for number in numbers):
        raise ValueError("expected is a Head as the log gives it, and this one has other numbers")
    if type(head.hash) is not bytes or head.status not in get_args(Status):
        raise ValueError("expected is a Head as the log gives it, and this one has another hash or status")
    return head


def merged(metadata: Mapping[str, Any], change: Any) -> dict[str, Any]:
    """Metadata after a change: its keys set, those that it gives None taken out; None clears all."""
    if change is None:
        return {}
    if type(change) not in DICTS:
        raise InvalidEvent(f"{type(change).__name__} is not an object", "metadata")
    return {key: value for key, value in {**metadata, **change}.items() if value is not None}


def _mark(event: Event) -> lineage.Mark:
    reason = event.payload.get("reason") if isinstance(event.payload, dict) else None
    reason = reason if event.kind == Kind.RESTORE and isinstance(reason, str) else None
    return lineage.Mark(event.version, event.ref or 0, event.at_us, event.actor, reason)


def _in_order(order: Sequence[int], values: Sequence[T]) -> list[T]:
    """Values that were made in another order, put back."""
    placed = dict(zip(order, values, strict=True))
    return [placed[i] for i in range(len(order))]


def _cursor(after: str | None) -> tuple[int, str] | None:
    if after is None:
        return None
    if not isinstance(after, str):
        raise TypeError(f"after is the cursor of a session, a text, not {type(after).__name__}")
    updated, separator, session_id = after.partition(":")
    if not separator or not re.fullmatch("[0-9]{1,18}", updated):
        raise ValueError("after is not the cursor of a session")
    return int(updated), check_id(session_id, "after")


def _flat(pages: Iterator[Iterator[T]]) -> Iterator[T]:
    for page in pages:
        yield from page
