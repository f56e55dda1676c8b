"""The log in memory: the same seam over dicts and one lock, for tests and for throw-away sessions.

It holds encoded rows, never the caller's objects, so what comes back is what a database would give.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import islice, zip_longest
from typing import Any, Final, NoReturn

from msgspec.structs import replace
from sqlalchemy.engine import Connection

from kern_events.batch import (
    DESCRIBING,
    LISTING,
    TOMBSTONES,
    Batch,
    Linked,
    Row,
    StoredRow,
    handed_down,
    link,
)
from kern_events.clock import now_us, said_us
from kern_events.errors import StoreError, StoreUnavailable
from kern_events.events import Head, Kind, SessionInfo
from kern_events.numbers import LARGEST
from kern_events.store.base import (
    HOUR_US,
    PAGE_ROWS,
    Adoption,
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
    head_name,
    is_past_fence,
    landed,
    nothing,
    page_of,
    refuses,
    tombstone_covers,
    unknown_head,
    without_content,
)
from kern_events.store.consumers import MemoryConsumers
from kern_events.store.forks import survive_forks

_Key = tuple[str, str]

_TURN_KEEPERS: Final = (Kind.TURN_START, Kind.RESTORE, Kind.FORK)  # whose `turn` is the highest so far


class _Session:
    """One session: its head, its listing columns, its rows (row i is version first + i)."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self.listing: dict[str, str | None] = dict.fromkeys(LISTING)
        self.parent: str | None = None
        self.owner: str | None = None
        self.origin = 0
        self.created_us = 0
        self.rows: list[StoredRow] = []
        self._restores: list[tuple[int, int]] = []
        self._looked_at = 0  # so many rows for restores

    def restores(self) -> list[tuple[int, int]]:
        """Version and target of every restore."""
        new = self.rows[self._looked_at :]
        self._restores += [(row[0], row[7]) for row in new if row[5] == Kind.RESTORE]
        self._looked_at = len(self.rows)
        return self._restores[:]

    def after(self, version: int, until: int | None, limit: int) -> list[StoredRow]:
        start = bisect_right(self.rows, version, key=lambda row: row[0])
        stop = len(self.rows) if until is None else bisect_right(self.rows, until, key=lambda row: row[0])
        return self.rows[start : min(stop, start + limit)]

    def keyed(self, key: str | None, count: int) -> list[StoredRow]:
        for i, row in enumerate(self.rows if key is not None else ()):
            if row[11] == key:
                return self.rows[i : i + count]
        return []

    def forget_parent(self) -> None:
        gone, listing = handed_down(row for row in self.rows if row[3] in DESCRIBING)
        if gone:
            versions = {row[0] for row in gone}
            self.rows[:] = [without_content(row) if row[0] in versions else row for row in self.rows]
            self.listing = listing

    def erased_after(self, version: int) -> bool:
        return any(row[3] in TOMBSTONES for row in self.after(version, None, len(self.rows)))

    def barred(self, batch: Batch) -> int | None:
        if (fence := batch.fence) is None or not is_past_fence(batch, self.head):
            return None
        later = self.after(fence.seen, None, len(self.rows))
        found = [
            (row[0], row[2])
            for row in later
            if (row[5] in fence.kinds and row[6] == fence.turn) or row[3] in fence.types
        ]
        return barred_by(fence, found)


class MemoryStore:
    """A Store that is gone with its process."""

    dialect = "memory"

    def __init__(self) -> None:
        self._sessions: dict[_Key, _Session] = {}
        self._snapshots: dict[tuple[str, str, str], dict[str, StoredChunk]] = {}
        self._feed: list[tuple[_Key, int]] = []  # position i + 1: the session and the index of its row
        self._lock = threading.RLock()
        self._closed = self._torn = self._at_work = False
        self.on_commit: Callable[[], None] = nothing
        self.consumers: Consumers = MemoryConsumers()
        survive_forks(self)

    def before_fork(self, until: float) -> None:
        """See Holder: a child must not inherit half of what is being recorded."""
        self._at_work = not self._lock.acquire(timeout=max(0.0, until - time.monotonic()))

    def after_fork(self) -> None:
        """See Holder."""
        if not self._at_work:
            self._lock.release()
        self._at_work = False

    def forget(self) -> None:
        """In a forked child: the lock is the parent's."""
        self._lock = threading.RLock()
        self._torn, self._at_work = self._torn or self._at_work, False

    def attempt(self, batch: Batch, base: Base, lock: bool = False) -> Landed | Refused:
        """See Store."""
        with self._locked():
            linked = self._linked(batch, base)
            return linked if isinstance(linked, Refused) else self._write(batch, linked)

    def submit(self, batch: Batch, base: Base) -> Future[Landed | Refused] | None:
        """See Store: there is no queue."""
        return None

    def attempt_many(self, batches: Sequence[tuple[Batch, Base]]) -> list[Landed] | None:
        """See Store."""
        with self._locked():
            linked = [self._linked(batch, base) for batch, base in batches]
            if any(isinstance(one, Refused) for one in linked):
                return None
            return [
                self._write(batch, one)
                for (batch, _), one in zip(batches, linked, strict=True)
                if isinstance(one, Linked)
            ]

    def within(
        self, connection: Connection, batch: Batch, base: Base, held: Sequence[Any] | None = None
    ) -> NoReturn:
        """See Store: refused, there is no transaction to join."""
        raise ValueError("memory: has no transactions: append(connection=) needs SQLite or Postgres")

    def holding(self, namespace: str, session_id: str) -> None:
        """See Store."""

    def delete_within(
        self, connection: Connection, namespace: str, session_id: str, tombstone: Tombstone, *, whole: bool
    ) -> NoReturn:
        """See Store: refused, there is no transaction to join."""
        raise ValueError("memory: has no transactions: delete(connection=) needs SQLite or Postgres")

    def head_within(self, connection: Connection, namespace: str, session_id: str) -> NoReturn:
        """See Store: refused, there is no transaction to join."""
        raise ValueError("memory: has no transactions to read in")

    def look_up(self, batch: Batch, base: int, count: int, *, durable: bool = False) -> Found:
        """See Store."""
        with self._locked():
            session = self._sessions.get((batch.namespace, batch.session_id))
            if session is None:
                return Found(unknown_head(batch))
            keyed = session.keyed(batch.idempotency_key, len(batch.events))
            behind = session.after(base, base + count, count)
            user_id, erased = session.listing["user_id"], bool(keyed) and session.erased_after(keyed[0][0])
            return Found(session.head, behind, keyed, user_id, erased, session.barred(batch))

    def delete(self, namespace: str, session_id: str, tombstone: Tombstone) -> Landed | None:
        """See Store."""
        with self._locked():
            session = self._sessions.get((namespace, session_id))
            rows = session.rows[:] if session else []
        # What takes long is done while others go on: a row changes by erasure alone, and stays where it is.
        done = [_erased(row, LARGEST) for row in rows]
        with self._locked():
            if session is None or session.head.status == "deleted":
                return None
            batch = tombstone(session.head)
            result = self._write(batch, link(batch, session.head, now_us()))
            session.rows[: len(done)] = done
            self._erase(namespace, session_id, result.head.version, 1, len(done))
            return result

    def erase_on(self, namespace: str, session_id: str, after: int) -> Slice:
        """See Store: nothing is ever left."""
        return Slice(0, False)

    def unfinished(self, namespace: str) -> Sequence[str]:
        """See Store: none is."""
        return ()

    def _erase(self, namespace: str, session_id: str, before: int, erasures: int, start: int = 0) -> None:
        """Erase the content of the rows from an index to a tombstone, and what was folded from them."""
        session = self._sessions[namespace, session_id]
        session.rows[start:] = [_erased(row, before) for row in session.rows[start:]]
        touched = self._descendants(namespace, session_id)
        for other in touched:
            fork = self._sessions[namespace, other]
            fork.head = replace(fork.head, epoch=fork.head.epoch + erasures)
            if before:
                fork.forget_parent()
        for key in [key for key in self._snapshots if key[0] == namespace]:
            if key[1] == session_id or key[1] in touched:
                del self._snapshots[key]

    def fork(self, batch: Batch, origin: Origin) -> Landed | Refused | None:
        """See Store."""
        with self._locked():
            parent = self._sessions.get((batch.namespace, origin.parent))
            if parent is None or parent.head.status == "deleted" or parent.head.epoch != origin.epoch:
                return None
            if (batch.namespace, batch.session_id) in self._sessions:
                return Refused(origin.version)
            [row] = self._sessions[batch.namespace, origin.owner].after(origin.version - 1, None, 1)
            head = fork_head(batch, origin, parent.head.epoch, row[18], row[8])
            result = self._write(batch, link(batch, head, now_us()))
            child = self._sessions[batch.namespace, batch.session_id]
            child.parent, child.origin, child.owner = origin.parent, origin.version, origin.owner
            return result

    def adopt(self, adoption: Adoption) -> bool:
        """See Store."""
        key, parent = (adoption.namespace, adoption.session_id), adoption.fork_parent
        with self._locked():
            session = self._sessions.get(key)
            if (session.head if session else None) != adoption.base:
                return False
            if session is None and parent is not None:
                begun = self._sessions.get((adoption.namespace, parent))
                if begun is None or begun.head.epoch != adoption.parent_epoch:
                    return False
            self._write(adoption.whose, adoption.linked, adoption.commits)
            if session is None:
                session = self._sessions[key]
                session.created_us = adoption.created_us
                session.parent, session.origin = parent, adoption.fork_version or 0
                session.owner = adoption.fork_owner
            if adoption.erasures:
                self._erase(*key, adoption.erase_before, adoption.erasures)
            return True

    def now_us(self) -> int:
        """See Store: there is no clock but this machine's."""
        return said_us()

    def head(self, namespace: str, session_id: str) -> Head | None:
        """See Store."""
        with self._locked():
            session = self._sessions.get((namespace, session_id))
            return session.head if session else None

    def rows(
        self, namespace: str, session_id: str, after: int, until: int | None, limit: int
    ) -> Rows[StoredRow]:
        """See Store."""
        with self._locked():
            session = self._sessions.get((namespace, session_id))
            return page_of(session.after(after, until, limit) if session else (), limit)

    def tail(
        self, namespace: str, session_id: str, after: int, limit: int
    ) -> tuple[Head | None, Rows[StoredRow]]:
        """See Store."""
        with self._locked():
            session = self._sessions.get((namespace, session_id))
            if session is None:
                return None, Rows()
            if session.head.version <= after:
                return session.head, Rows()
            return session.head, page_of(session.after(after, None, limit), limit)

    def head_row(self, namespace: str, session_id: str) -> HeadRow | None:
        """See Store."""
        with self._locked():
            session = self._sessions.get((namespace, session_id))
            return _head_row(session_id, session) if session else None

    def lineage(self, namespace: str, session_id: str) -> Lineage:
        """See Store."""
        with self._locked():
            session = self._sessions.get((namespace, session_id))
            if session is None:
                return Lineage(None, 0, (), None)
            owner = session.owner or session.parent
            return Lineage(session.parent, session.origin, session.restores(), owner)

    def turn_starts(self, namespace: str, session_id: str, turn: int) -> Sequence[int]:
        """See Store."""
        starts = self.all_turn_starts(namespace, session_id)
        return [version for version, number in reversed(starts) if number == turn]

    def all_turn_starts(self, namespace: str, session_id: str) -> Sequence[tuple[int, int]]:
        """See Store."""
        rows = self._rows_of(namespace, session_id)
        starts = [(row[0], row[6]) for row in rows if row[5] == Kind.TURN_START]
        return sorted(starts, key=lambda start: (start[1], start[0]))

    def turn_at(self, namespace: str, session_id: str, version: int) -> int:
        """See Store."""
        rows = self._rows_of(namespace, session_id)
        found = (row[6] for row in reversed(rows) if row[0] <= version and row[5] in _TURN_KEEPERS)
        return next(found, 0)

    def marks(self, namespace: str, session_id: str, after: int, until: int) -> Rows[StoredRow]:
        """See Store."""
        rows = self._rows_of(namespace, session_id)
        marks = (row for row in rows if after < row[0] <= until and row[5] in (Kind.RESTORE, Kind.FORK))
        return page_of(islice(marks, PAGE_ROWS), PAGE_ROWS)

    def newest_of(
        self, namespace: str, session_id: str, types: Sequence[str], before: int
    ) -> StoredRow | None:
        """See Store."""
        rows = self._rows_of(namespace, session_id)
        return next((row for row in reversed(rows) if row[0] < before and row[3] in types), None)

    def forks(self, namespace: str, session_id: str) -> Sequence[tuple[str, int, Any]]:
        """See Store."""
        with self._locked():
            return sorted(
                (key[1], session.origin, session.head.status)
                for key, session in self._sessions.items()
                if key[0] == namespace and session.parent == session_id
            )

    def descendants(self, namespace: str, session_id: str) -> Sequence[str]:
        """See Store."""
        with self._locked():
            return self._descendants(namespace, session_id)

    def _descendants(self, namespace: str, session_id: str) -> list[str]:
        found: list[str] = []
        parents = [session_id]
        while parents:
            parents = [child for parent in parents for child, *_ in self.forks(namespace, parent)]
            found += parents
        return found

    def _rows_of(self, namespace: str, session_id: str) -> list[StoredRow]:
        with self._locked():
            session = self._sessions.get((namespace, session_id))
            return list(session.rows) if session else []

    def version_at(self, namespace: str, session_id: str, at_us: int) -> int:
        """See Store."""
        with self._locked():
            session = self._sessions.get((namespace, session_id))
            index = bisect_right(session.rows, at_us, key=lambda row: row[8]) if session else 0
            return session.rows[index - 1][0] if session and index else 0

    def feed_last(self) -> int:
        """See Store."""
        with self._locked():
            return len(self._feed)

    def feed_bound(self, before: Bound) -> Bound:
        """See Store."""
        last = self.feed_last()
        return Bound(last, last)

    def feed_held_by(self) -> Sequence[tuple[int | None, float]]:
        """See Store: nobody ever does."""
        return ()

    def feed(self, namespace: str, after: int, until: int, limit: int) -> Rows[tuple[str, StoredRow]]:
        """See Store."""
        with self._locked():
            places = (place for place in self._feed[max(after, 0) : until] if place[0][0] == namespace)
            found = ((key[1], *self._sessions[key].rows[index]) for key, index in islice(places, limit))
            return feed_of(page_of(found, limit, 1))

    def feed_count(self, namespace: str, after: int, limit: int) -> int:
        """See Store."""
        with self._locked():
            places = (place for place in self._feed[max(after, 0) :] if place[0][0] == namespace)
            return sum(1 for _ in islice(places, limit))

    def sessions(
        self, namespace: str, user_id: str | None, after: tuple[int, str] | None, limit: int
    ) -> Sequence[SessionInfo]:
        """See Store."""
        with self._locked():
            found = [
                _info(key[1], session)
                for key, session in self._sessions.items()
                if key[0] == namespace
                and session.head.status != "deleted"
                and (user_id is None or session.listing["user_id"] == user_id)
            ]
        found.sort(key=lambda info: (-info.updated_us, info.session_id))
        if after is not None:
            found = [info for info in found if (-info.updated_us, info.session_id) > (-after[0], after[1])]
        return found[:limit]

    def snapshot_head(
        self, namespace: str, session_id: str, projector: str, until: int
    ) -> StoredChunk | None:
        """See Store."""
        with self._locked():
            stored = self._snapshots.get((namespace, session_id, projector), {})
            newest = max((name for name in stored if "@" <= name <= head_name(until)), default=None)
            return None if newest is None else stored[newest]

    def snapshot_names(self, namespace: str, session_id: str, projector: str) -> Sequence[str]:
        """See Store."""
        with self._locked():
            stored = self._snapshots.get((namespace, session_id, projector), {})
            return sorted(stored)

    def snapshot_chunks(
        self, namespace: str, session_id: str, projector: str, names: Sequence[str]
    ) -> dict[str, bytes]:
        """See Store."""
        with self._locked():
            stored = self._snapshots.get((namespace, session_id, projector), {})
            return {name: stored[name].data for name in names if name in stored}

    def put_snapshots(self, namespace: str, projector: str, puts: Sequence[SnapshotPut]) -> list[bool]:
        """See Store."""
        with self._locked():
            return [self._put_snapshot(namespace, projector, put) for put in puts]

    def _put_snapshot(self, namespace: str, projector: str, put: SnapshotPut) -> bool:
        session = self._sessions.get((namespace, put.session_id))
        if session is None or session.head.epoch != put.epoch or session.head.status == "deleted":
            return False
        stored = self._snapshots.setdefault((namespace, put.session_id, projector), {})
        for name in put.drop:
            stored.pop(name, None)
        stored |= {one.name: one for one in put.chunks}
        return True

    def snapshot_plan(
        self, namespace: str, projector: str, after: str, limit: int
    ) -> Sequence[tuple[str, int, int, str | None]]:
        """See Store."""
        found: list[tuple[str, int, int, str | None]] = []
        with self._locked():
            for key in sorted(key for key in self._sessions if key[0] == namespace and key[1] > after):
                session = self._sessions[key]
                if session.head.status != "deleted" and len(found) < limit:
                    names = self._snapshots.get((*key, projector), {})
                    newest = max((name for name in names if name.startswith("@")), default=None)
                    found.append((key[1], session.head.version, session.origin, newest))
        return found

    def forget_snapshots(self, namespace: str, session_id: str, projectors: str, kept: str) -> int:
        """See Store."""
        with self._locked():
            others = [
                key
                for key in self._snapshots
                if key[:2] == (namespace, session_id) and key[2].startswith(projectors) and key[2] != kept
            ]
            return sum(len(self._snapshots.pop(key)) for key in others)

    def other_snapshots(self, namespace: str, session_id: str, projectors: str, kept: str) -> int:
        """See Store."""
        with self._locked():
            return sum(
                key[:2] == (namespace, session_id)
                and key[2].startswith(projectors)
                and key[2] != kept
                and any(name.startswith("@") for name in names)
                for key, names in self._snapshots.items()
            )

    def namespaces(self) -> Sequence[str] | None:
        """See Store."""
        with self._locked():
            return sorted({key[0] for key in self._sessions})

    def sizes(self, namespace: str) -> tuple[int, int]:
        """See Store."""
        with self._locked():
            found = [
                session
                for key, session in self._sessions.items()
                if key[0] == namespace and session.head.status != "deleted"
            ]
            return len(found), sum(session.head.version - session.origin for session in found)

    @contextmanager
    def snapshot(self) -> Iterator[MemoryStore]:
        """See Store."""
        with self._locked():
            yield self

    def head_rows(self, namespace: str, session_id: str | None) -> Iterator[HeadRow]:
        """See Snapshot."""
        if session_id is None:
            keys = sorted(key for key in self._sessions if key[0] == namespace)
        else:
            keys = [key for key in [(namespace, session_id)] if key in self._sessions]
        for key in keys:
            yield _head_row(key[1], self._sessions[key])

    def page(self, namespace: str, session_id: str, after: int, limit: int) -> Rows[StoredRow]:
        """See Snapshot."""
        return self.rows(namespace, session_id, after, None, limit)

    def orphans(self, namespace: str) -> Sequence[tuple[str, int]]:
        """See Snapshot: rows live in their session here."""
        return ()

    def differences(self) -> Sequence[Difference]:
        """See Snapshot: there is no database."""
        return ()

    def hides_rows(self) -> bool:
        """See Store."""
        return False

    def migrate(self) -> tuple[int, int]:
        """See Store: there are no tables."""
        return 0, 0

    def notes(self) -> Sequence[str]:
        """See Store."""
        return ()

    @property
    def is_open(self) -> bool:
        """See Store: there are none."""
        return False

    def close(self) -> None:
        """See Store."""
        self._closed = True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock:
            if self._closed or self._torn:
                self._check_usable()
            yield

    def _check_usable(self) -> None:
        if self._closed:
            raise StoreError("this log is closed")
        raise StoreUnavailable("this process was forked while its parent was recording, and has half of it")

    def _linked(self, batch: Batch, base: Base) -> Linked | Refused:
        session = self._sessions.get((batch.namespace, batch.session_id))
        head = session.head if session else unknown_head(batch)
        if refuses(batch, base, head, session.listing["user_id"] if session else None):
            return Refused(head if base is None else base)
        if session and (session.keyed(batch.idempotency_key, 1) or session.barred(batch)):
            return Refused(head)
        return link(batch, head, now_us())

    def _write(self, batch: Batch, linked: Linked, commits: Sequence[bytes | None] = ()) -> Landed:
        key = (batch.namespace, batch.session_id)
        session = self._sessions.get(key)
        if session is None:
            session = _Session(linked.head)
            session.created_us = linked.head.at_us
        before, last, head = len(session.rows), len(self._feed), session.head
        placed = enumerate(zip_longest(linked.rows, commits), last + 1)
        rows = [_stored(row, position, commit) for position, (row, commit) in placed]
        listing = {**session.listing, **(linked.listing or {})}
        try:
            self._feed += [(key, before + i) for i in range(len(rows))]
            session.rows += rows
            session.head, session.listing = linked.head, listing
            self._sessions[key] = session
        except BaseException:  # Ctrl-C, or what else a signal handler raises.
            del session.rows[before:], self._feed[last:]
            session.head = head
            raise
        self.on_commit()
        return landed(batch, linked, len(self._feed))


def _stored(row: Row, position: int, commit: bytes | None) -> StoredRow:
    return (row[0], position, *row[1:15], commit, *row[15:])


def _erased(row: StoredRow, before: int) -> StoredRow:
    return without_content(row) if tombstone_covers(row, before) else row


def _info(session_id: str, session: _Session) -> SessionInfo:
    head = session.head
    return SessionInfo(
        session_id,
        head.status,
        head.version,
        head.turn,
        **session.listing,
        fork_parent=session.parent,
        fork_version=session.origin or None,
        created_us=session.created_us,
        updated_us=head.at_us,
    )


def _head_row(session_id: str, session: _Session) -> HeadRow:
    head = session.head
    return HeadRow(
        session_id, head.version, head.hash, head.turn, head.branch, head.epoch, head.status,
        tuple(session.listing.values()), session.parent, session.origin or None, session.created_us,
        head.at_us, head.at_us // HOUR_US, session.owner,
    )  # fmt: skip
