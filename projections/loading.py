"""From a snapshot that may be old, or none, to a view that agrees with the log.

One query reads the head and what follows the snapshot, which also proves whether the snapshot is
worth anything. So whatever a cache answers, the view is right.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from msgspec.structs import replace

from kern_events import Head, SessionLog, spi
from kern_events.errors import SessionNotFound, StoreCorrupt
from kern_events.spi import Tail
from projections.caches import Snapshot, SnapshotCache, SnapshotKey
from projections.fold import fold
from projections.projector import Projector
from projections.session import View

PAGE: Final = 5_000
MAX_AGE_S: Final = 1.0
"""How long a snapshot may be used unverified, by those who ask for it."""

_EVENT_BYTES: Final = 200  # what an event's part of a view takes in memory, beside its payload


class Loader:
    """Loads views of one log through one cache."""

    def __init__(self, log: SessionLog, cache: SnapshotCache) -> None:
        self._log = log
        self._cache = cache
        self._flights = _Flights()

    def recent(self, session_id: str, projector: Projector[Any]) -> Snapshot | None:
        """The snapshot kept, if it agreed with the log less than a second ago."""
        snapshot = self._cache.get(self._key(session_id, projector))
        if snapshot is None or time.monotonic() - snapshot.verified_s >= MAX_AGE_S:
            return None
        return snapshot

    def current(self, session_id: str, projector: Projector[Any]) -> Snapshot:
        """The session as it is now.

        Raises:
            SessionNotFound: There is no such session, or it was deleted.
            ProjectionFailed: The projector raised.
        """
        key = self._key(session_id, projector)
        snapshot = self._cache.get(key)
        asked_s = time.monotonic()
        tail = self._tail(session_id, snapshot)
        if snapshot is None or not _is_fresh(snapshot, tail.head):
            snapshot = self._refreshed(key, projector, snapshot, tail)
        snapshot.verified_s = asked_s
        return snapshot

    def past(self, session_id: str, projector: Projector[Any], version: int) -> Any:
        """The view as of a version that the log has. What is cached stays as it is."""
        key = self._key(session_id, projector)
        snapshot = self._cache.get(key)
        if snapshot is not None and snapshot.version > version:
            snapshot = None
        tail = self._tail(session_id, snapshot, version)
        return self._folded(key, projector, snapshot, tail, version).view

    def _key(self, session_id: str, projector: Projector[Any]) -> SnapshotKey:
        return SnapshotKey(self._log.namespace, session_id, projector.name, projector.version)

    def _tail(self, session_id: str, base: Snapshot | None, until: int | None = None) -> Tail:
        after = 0 if base is None else base.version
        limit = PAGE if until is None else min(PAGE, max(1, until - after))
        known = base.hash if base is not None and base.version else None
        return spi.tail(self._log, session_id, after, limit, after_hash=known)

    def _refreshed(
        self, key: SnapshotKey, projector: Projector[Any], base: Snapshot | None, tail: Tail
    ) -> Snapshot:
        """Fold what is new; of those who want the same at the same time, one does it."""
        with self._flights.join(key) as flight:
            newer = flight.landed or self._cache.get(key)
            if newer is not base:
                base, tail = newer, self._tail(key.session_id, newer)
            snapshot = self._folded(key, projector, base, tail)
            flight.landed = snapshot
            self._cache.put(key, snapshot)
        return snapshot

    def _folded(
        self,
        key: SnapshotKey,
        projector: Projector[Any],
        base: Snapshot | None,
        tail: Tail,
        until: int | None = None,
    ) -> Snapshot:
        """The snapshot at a version, by default the head's, page by page; anew if the epoch changes."""
        while True:
            head = tail.head
            if head.version == 0 or head.status == "deleted":
                raise SessionNotFound(key.session_id)
            if base is not None and not (tail.follows and _is_baseline(base, head)):
                self._cache.drop(key)
                base = None
            else:
                target = head.version if until is None else until
                base = _extended(key.session_id, projector, base, tail, target)
                if base.version >= target:
                    return _stamped(base, key.session_id, head)
            tail = self._tail(key.session_id, base, until)


class _Flight:
    """One fold that is under way, and what it came to for those who waited."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.waiting = 0
        self.landed: Snapshot | None = None


class _Flights:
    """At most one fold at a time of each key."""

    def __init__(self) -> None:
        self._begin()
        _all_flights.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[SnapshotKey, _Flight] = {}

    @contextmanager
    def join(self, key: SnapshotKey) -> Iterator[_Flight]:
        """Wait for the flight of this key to be ours."""
        with self._lock:
            flight = self._flights.setdefault(key, _Flight())
            flight.waiting += 1
        try:
            with flight.lock:
                yield flight
        finally:
            with self._lock:
                flight.waiting -= 1
                if not flight.waiting:
                    del self._flights[key]


def _is_fresh(snapshot: Snapshot, head: Head) -> bool:
    return snapshot.version == head.version and snapshot.epoch == head.epoch and snapshot.hash == head.hash


def _is_baseline(snapshot: Snapshot, head: Head) -> bool:
    """Whether a snapshot may be folded on from: not one of another epoch, or of a tail that was lost."""
    if snapshot.version == head.version:
        return _is_fresh(snapshot, head)
    return snapshot.version < head.version and snapshot.epoch == head.epoch


def _extended(
    session_id: str, projector: Projector[Any], base: Snapshot | None, tail: Tail, target: int
) -> Snapshot:
    """A snapshot with a page of events more, up to the target version."""
    if base is None:
        base = Snapshot(projector.initial(), 0, tail.head.epoch, b"", 0)
    events = tail.events[: target - base.version]
    if not events:
        if base.version < target:
            raise _gap(session_id, base.version + 1, tail.head)
        return base
    last = events[-1]
    if last.version != base.version + len(events):
        raise _gap(session_id, base.version + 1, tail.head)
    size_bytes = base.size_bytes + tail.size_bytes + _EVENT_BYTES * len(events)
    view = fold(projector, base.view, events)
    return Snapshot(view, last.version, tail.head.epoch, last.hash, size_bytes)


def _gap(session_id: str, version: int, head: Head) -> StoreCorrupt:
    return StoreCorrupt(
        f"session {session_id!r} stands at version {head.version}, but its events from version {version} on "
        "are not all there; run `kern-events verify`"
    )


def _stamped(snapshot: Snapshot, session_id: str, head: Head) -> Snapshot:
    """A session view says which session it is of, and at which head it was read."""
    view = snapshot.view
    if not isinstance(view, View) or view.head == head:
        return snapshot
    return replace(snapshot, view=replace(view, session_id=session_id, head=head))


_all_flights: weakref.WeakSet[_Flights] = weakref.WeakSet()


def _begin_anew() -> None:
    # Threads that hold a lock here do not exist in the child.
    for flights in _all_flights:
        flights._begin()


os.register_at_fork(after_in_child=_begin_anew)
