"""From a snapshot that may be old, or none, to a view that agrees with the log.

One query reads the head and what follows the snapshot, which also proves whether the snapshot is
worth anything. So whatever a cache answers, the view is right. Memory is asked first, then Redis, then
the snapshots in the log's own database, then every event that counts is folded.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from kern_events import Event, EventTypes, Head, SessionLog, spi
from kern_events.errors import KernError, SessionNotFound
from kern_events.spi import Range, Tail
from projections.caches.base import Snapshot, SnapshotCache, SnapshotKey
from projections.caches.memory import MemoryCache
from projections.caches.tiers import DurableTier, SharedTier, due
from projections.errors import ProjectionFailed
from projections.fold import fold
from projections.paths import PAGE, Page, behind, events_on, gap
from projections.projector import Projector
from projections.session import View
from projections.stored import Codec, codec_of

logger: Final = logging.getLogger("projections")

MAX_AGE_S: Final = 1.0
"""How long a snapshot may be used unverified, by those who ask for it."""

_EVENT_BYTES: Final = 200  # what an event's part of a view takes in memory, beside its payload
_FAR: Final = 256  # events behind the head, from where on a stored snapshot may save more than it costs
_NEWEST: Final = 2**63 - 1
_MOST_GONE: Final = 10_000  # deleted sessions of which it is remembered that nothing is kept of them


class Loader:
    """Loads views of one log through the tiers of one cache."""

    def __init__(
        self, log: SessionLog, memory: SnapshotCache, shared: SharedTier | None, durable: DurableTier | None
    ) -> None:
        self._log = log
        self._memory = memory
        self.shared = shared
        self._durable = durable
        self._flights = _Flights()
        self._kinds: set[tuple[str, int, bytes]] = set()  # Of keys, what is not the session.
        self._purged: dict[tuple[str, int], None] = {}  # Deleted sessions of which nothing is left.

    def recent(self, session_id: str, projector: Projector[Any]) -> Snapshot | None:
        """The snapshot kept in memory, if it agreed with the log less than a second ago."""
        snapshot = self._memory.get(self.key(session_id, projector))
        if snapshot is None or time.monotonic() - snapshot.verified_s >= MAX_AGE_S:
            return None
        return snapshot

    def current(self, session_id: str, projector: Projector[Any]) -> Snapshot:
        """The session as it is now.

        Raises:
            SessionNotFound: There is no such session, or it was deleted.
            ProjectionFailed: The projector raised.
        """
        key = self.key(session_id, projector)
        snapshot = self._memory.get(key)
        asked_s = time.monotonic()
        if snapshot is not None:
            tail = self._tail(session_id, snapshot)
            if _is_fresh(snapshot, tail.head):
                snapshot.verified_s = asked_s
                return snapshot
            snapshot = self._refreshed(key, projector, snapshot, tail)
        else:
            snapshot = self._refreshed(key, projector, None, None)
        snapshot.verified_s = asked_s
        return snapshot

    def past(self, session_id: str, projector: Projector[Any], version: int) -> Snapshot:
        """The session as of a version that the log has. What is cached stays as it is."""
        key = self.key(session_id, projector)
        base = self._memory.get(key)
        if base is not None and base.version > version:
            base = None
        return self._folded(key, projector, base, None, version).snapshot

    def recorded(self, session_id: str, projector: Projector[Any]) -> Snapshot:
        """The session as it is now, folded from the log alone: for what is to be recorded in its turn.

        Raises:
            As current.
        """
        snapshot = self.current(session_id, projector)
        if not snapshot.from_log:
            key = self.key(session_id, projector)
            snapshot = self._folded(key, projector, None, None, alone=True).snapshot
            self._memory.put(key, snapshot)
        return snapshot

    def folded(self, session_id: str, projector: Projector[Any]) -> tuple[Snapshot, Snapshot | None]:
        """The session as it is now, and the snapshot that it was folded from; nothing is kept."""
        return self._folded(self.key(session_id, projector), projector, None, None)

    def window(self, session_id: str, projector: Projector[Any]) -> Snapshot | None:
        """The session as it is now, with closed chunks that are read when they are looked into.

        None where that saves nothing: the view is in memory, or no stored snapshot can be used. It is
        for a moment's use, and looking into it may raise Unreadable.
        """
        key, codec = self.key(session_id, projector), self.codec(projector)
        if codec is None or self._memory.get(key) is not None:
            return None
        base = next(self._stored(key, codec, None, lazily=True), None)
        if base is None:
            return None
        tail = self._tail(session_id, base)
        if not _is_baseline(base, tail) or tail.head.branch > base.version or _is_long(tail, base.version):
            return None
        try:
            snapshot = _extended(
                self._log.types, projector, base, Page(tail.events, tail.size_bytes), base.epoch
            )
        except ProjectionFailed:
            return None
        return _stamped(snapshot, session_id, tail.head)

    def keep(self, session_id: str, projector: Projector[Any], snapshot: Snapshot) -> None:
        """Keep a snapshot in every tier, however few events after the one before."""
        key, codec = self.key(session_id, projector), self.codec(projector)
        self._memory.put(key, snapshot)
        if codec is None:
            return
        with _storable(key):
            if self.shared:
                self.shared.put(key, codec, snapshot, None)
            if self._durable and not snapshot.incomplete:
                self._durable.put(key, codec, snapshot)

    def erased(self, session_id: str) -> bool:
        """Forget in every tier what is kept of a session from which something was erased, and of its forks.

        Returns:
            Whether nothing of before is left here and in Redis. If not, it is tried again: see RedisCache.
        """
        try:
            return self._purge_touched(session_id)
        except KernError as error:  # The log is out of reach: what it would say is not needed to forget.
            logger.debug("it is not known what an erasure touches: %s", type(error).__name__)
            self._purge(session_id, None)
            if self.shared:  # Only the epoch keeps a slower process from putting it there again.
                self.shared.redis.owe(self._log.namespace, session_id, lambda: self._is_erased(session_id))
            return False

    def gone(self, session_id: str, head: Head) -> None:
        """Forget what is kept of a session that was found deleted, and of its forks: once, if it succeeds."""
        found = (session_id, head.version)
        if head.status == "deleted" and found not in self._purged and self.erased(session_id):
            self._purged[found] = None
            if len(self._purged) > _MOST_GONE:
                self._purged.pop(next(iter(self._purged)), None)

    def _is_erased(self, session_id: str) -> bool:
        """Whether the log has said what an erasure touches; what Redis does not take is owed by itself."""
        try:
            self._purge_touched(session_id)
        except KernError:
            return False
        return True

    def _purge_touched(self, session_id: str) -> bool:
        touched = (session_id, *spi.descendants(self._log, session_id))
        return all([self._purge(each, self._log.head(each).epoch) for each in touched])

    def _purge(self, session_id: str, epoch: int | None) -> bool:
        """Forget what is of before an epoch, or all there is where it is not known."""
        if isinstance(self._memory, MemoryCache):
            self._memory.purge(self._log.namespace, session_id, epoch)
        else:
            for kind in tuple(self._kinds):
                key = SnapshotKey(self._log.namespace, session_id, *kind)
                kept = self._memory.get(key)
                if kept is not None and (epoch is None or kept.epoch < epoch):
                    self._memory.drop(key)
        return self.shared is None or self.shared.redis.purge(self._log.namespace, session_id, epoch)

    def settle(self) -> None:
        """Wait until every snapshot that is to be stored in the database is there."""
        if self._durable:
            self._durable.settle()

    def close(self) -> None:
        """Store what waits to be stored, and give the connections to Redis back."""
        if self._durable:
            self._durable.close()
        if self.shared:
            self.shared.redis.close()

    def key(self, session_id: str, projector: Projector[Any]) -> SnapshotKey:
        """Whose snapshot it is."""
        types = self._log.types.digest
        return SnapshotKey(self._log.namespace, session_id, projector.name, projector.version, types)

    def codec(self, projector: Projector[Any]) -> Codec | None:
        """How its views are stored, if they can be."""
        return codec_of(projector, self._log.types.digest)

    def _tail(self, session_id: str, base: Snapshot | None) -> Tail:
        if base is None or base.version == 0:
            return spi.tail(self._log, session_id, 0, PAGE)
        return spi.tail(self._log, session_id, base.version, PAGE, after_hash=base.hash)

    # --------------------------------------------------------------------------------- folding

    def _refreshed(
        self, key: SnapshotKey, projector: Projector[Any], base: Snapshot | None, tail: Tail | None
    ) -> Snapshot:
        """Fold what is new; of those who want the same at the same time, one does it."""
        with self._flights.join(key) as flight:
            newer = flight.landed or self._memory.get(key)
            if newer is not base:
                base, tail = newer, None
            folded = self._folded(key, projector, base, tail)
            flight.landed = folded.snapshot
            self._kept(key, projector, folded)
        return folded.snapshot

    def _kept(self, key: SnapshotKey, projector: Projector[Any], folded: _Folded) -> None:
        """Put what is new into the tiers that want it."""
        snapshot, base = folded
        self._kinds.add(key[2:])
        self._memory.put(key, snapshot)
        codec = self.codec(projector)
        if codec is None or (base is not None and base.version == snapshot.version):
            return
        # First, so that what goes to Redis says so.
        with _storable(key):
            if self._durable and due(snapshot, codec):
                self._durable.put(key, codec, snapshot)
            if self.shared and (isinstance(snapshot.view, View) or not snapshot.incomplete):
                self.shared.put(key, codec, snapshot, base)

    def _folded(
        self,
        key: SnapshotKey,
        projector: Projector[Any],
        base: Snapshot | None,
        tail: Tail | None,
        until: int | None = None,
        *,
        alone: bool = False,
    ) -> _Folded:
        """The snapshot at a version, by default the head's; anew if something is erased meanwhile.

        What is stored is passed over with `alone`, and once a projector fails at what it made of it.
        """
        codec = None if alone else self.codec(projector)
        stored = self._stored(key, codec, until)
        while True:
            if base is None:
                base, tail = next(stored, None), None
            if tail is None:
                tail = self._tail(key.session_id, base)
            head = tail.head
            if head.version == 0 or head.status == "deleted":
                self._gone(key, codec, base, head)
                raise SessionNotFound(key.session_id)
            if base is not None and not _is_baseline(base, tail):
                self._drop(key, codec, base)
                if base.epoch < head.epoch:
                    self._purge(key.session_id, head.epoch)
                base = None
                continue
            target = head.version if until is None else until
            better = next(stored, None) if base is not None and target - base.version > _FAR else None
            if better is not None and base is not None and better.version > base.version:
                base, tail = better, None
                continue
            base, path, at_hand = self._way(key, projector, codec, base, tail, target)
            snapshot = base or Snapshot(projector.initial(), 0, head.epoch, b"", 0, from_log=True)
            try:
                for page in self._pages(path, at_hand):
                    snapshot = _extended(self._log.types, projector, snapshot, page, head.epoch)
            except ProjectionFailed:
                if base is None or base.from_log:
                    raise
                self._drop(key, codec, base)
                base, tail, codec, stored = None, None, None, iter(())
                continue
            if _is_covered(path, at_hand) or self._log.head(key.session_id).epoch == head.epoch:
                return _Folded(_stamped(snapshot, key.session_id, head), base)
            base = tail = None

    def _way(
        self,
        key: SnapshotKey,
        projector: Projector[Any],
        codec: Codec | None,
        base: Snapshot | None,
        tail: Tail,
        target: int,
    ) -> _Way:
        """From which snapshot and over which events a version is reached."""
        version = 0 if base is None else base.version
        if _is_linear(projector, tail, version):
            rest = [Range(key.session_id, version + 1, target)] if target > version else []
            return _Way(base, rest, tail)
        parts = self._parts(projector, key.session_id, target)
        if version:
            own = next(parts, ())
            rest_of_path = behind(own, key.session_id, version)
            if rest_of_path is not None:
                return _Way(base, rest_of_path, tail)
            parts = chain([own], parts)
        return _Way(*self._base_on(key, codec, parts), None)

    def _parts(self, projector: Projector[Any], session_id: str, target: int) -> Iterator[Sequence[Range]]:
        """What counts at a version, by whose rows it lies in, from its end."""
        if projector.scope == "log":
            return iter([spi.own_path(self._log, session_id, target)])
        return spi.live_parts(self._log, session_id, target)

    def _base_on(
        self, key: SnapshotKey, codec: Codec | None, parts: Iterator[Sequence[Range]]
    ) -> tuple[Snapshot | None, Sequence[Range]]:
        """The newest snapshot that lies on a path, of this session or of one that it was forked from, and
        what follows on it."""
        later: list[Sequence[Range]] = []
        for own in filter(None, parts):
            owner = own[0].session_id
            for snapshot in self._snapshots_on(key._replace(session_id=owner), codec, own):
                head = self._log.head(owner)
                agrees = head.epoch == snapshot.epoch and head.status != "deleted"
                rest = behind(own, owner, snapshot.version)
                if (
                    rest is not None
                    and agrees
                    and (spi.hash_at(self._log, owner, snapshot.version) == snapshot.hash)
                ):
                    if owner != key.session_id:
                        # What is stored of the other session is not stored of this one.
                        snapshot = replace(snapshot, durable=0, listings=None)
                    return snapshot, [*rest, *chain.from_iterable(reversed(later))]
            later.append(own)
        return None, [*chain.from_iterable(reversed(later))]

    def _snapshots_on(
        self, key: SnapshotKey, codec: Codec | None, parts: Sequence[Range]
    ) -> Iterator[Snapshot]:
        """Snapshots of one session that may lie in these ranges, the best first."""
        in_memory = self._memory.get(key)
        usable = in_memory is not None and (codec is not None or in_memory.from_log)
        if in_memory and usable and behind(parts, key.session_id, in_memory.version) is not None:
            yield in_memory
        if codec is None or self._durable is None:
            return
        versions = [
            version
            for version in self._durable.versions(key, codec)
            if any(part.first <= version <= part.last for part in parts)
        ]
        if versions and (found := self._durable.newest(key, codec, versions[-1])):
            yield found

    def _stored(
        self, key: SnapshotKey, codec: Codec | None, until: int | None, *, lazily: bool = False
    ) -> Iterator[Snapshot]:
        """What the tiers behind the memory have: Redis the newest, the database one at or below a version."""
        if codec is None:
            return
        if until is None and self.shared and (found := self.shared.get(key, codec, lazily=lazily)):
            yield found
        last = _NEWEST if until is None else until
        if self._durable and (found := self._durable.newest(key, codec, last, lazily=lazily)):
            yield found

    def _pages(self, path: Sequence[Range], tail: Tail | None) -> Iterator[Page]:
        """The events of a path, the first of which may have been read with the head."""
        at_hand = _at_hand(path, tail)
        if at_hand is not None and tail is not None:
            last = at_hand[-1].version
            if last != path[0].first + len(at_hand) - 1:
                raise gap(self._log, path[0].session_id, path[0].first)
            yield Page(at_hand, tail.size_bytes)
            path = behind(path, path[0].session_id, last) or ()
        yield from events_on(self._log, path)

    def _gone(self, key: SnapshotKey, codec: Codec | None, base: Snapshot | None, head: Head) -> None:
        """Forget what is kept of a session that there is not, or not any more."""
        self.gone(key.session_id, head)
        if base is None:
            return
        if head.status == "deleted" and codec is not None and self._durable:
            self._durable.purge(key, codec)
            base = replace(base, durable=0)
        self._drop(key, codec, base)

    def _drop(self, key: SnapshotKey, codec: Codec | None, snapshot: Snapshot) -> None:
        """Forget a snapshot that does not agree with the log, wherever it came from."""
        self._memory.drop(key)
        if codec is not None and self.shared:
            self.shared.drop(key, codec, snapshot)
        if codec is not None and self._durable and snapshot.durable == snapshot.version:
            self._durable.drop(key, codec, snapshot)


class _Folded(NamedTuple):
    """A snapshot, and the one that it was folded from."""

    snapshot: Snapshot
    base: Snapshot | None


class _Way(NamedTuple):
    """How a version is reached: from a snapshot, over a path, the first of which may be at hand."""

    base: Snapshot | None
    path: Sequence[Range]
    at_hand: Tail | None


@contextmanager
def _storable(key: SnapshotKey) -> Iterator[None]:
    """What no encoder has a word for, as a sum of more than 64 bits, is kept in memory alone."""
    try:
        yield
    except (TypeError, ValueError, OverflowError) as error:
        logger.debug("a view of projector %r cannot be stored: %s", key.projector, type(error).__name__)


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


def _is_baseline(snapshot: Snapshot, tail: Tail) -> bool:
    """Whether a snapshot may be folded on from: not one of another epoch, or of a tail that was lost."""
    head = tail.head
    if snapshot.version == head.version:
        return _is_fresh(snapshot, head)
    return tail.follows and snapshot.version < head.version and snapshot.epoch == head.epoch


def _is_linear(projector: Projector[Any], tail: Tail, version: int) -> bool:
    """Whether all that follows a version in the session's own rows counts."""
    if version == 0 and tail.events and tail.events[0].version > 1:
        return False  # A fork: its first versions are its parent's.
    return tail.head.branch <= version or projector.scope == "log"


def _is_long(tail: Tail, version: int) -> bool:
    return tail.head.version - version > len(tail.events)


def _at_hand(path: Sequence[Range], tail: Tail | None) -> Sequence[Event] | None:
    """The first events of a path, if they are what the tail begins with."""
    if tail is None or not path or not tail.events or tail.events[0].version != path[0].first:
        return None
    if tail.events[0].session_id != path[0].session_id:
        return None
    return tail.events[: path[0].last - path[0].first + 1]


def _is_covered(path: Sequence[Range], tail: Tail | None) -> bool:
    """Whether nothing but the tail was read: then head and events are of one moment."""
    events = _at_hand(path, tail)
    return not path or (len(path) == 1 and events is not None and events[-1].version == path[0].last)


def _extended(
    types: EventTypes, projector: Projector[Any], base: Snapshot, page: Page, epoch: int
) -> Snapshot:
    """A snapshot with a page of events more."""
    if not page.events:
        return base
    last = page.events[-1]
    size_bytes = base.size_bytes + page.size_bytes + _EVENT_BYTES * len(page.events)
    view, incomplete = fold(projector, base.view, page.events, types)
    if isinstance(view, View) and view.version != last.version:  # Upcasters left the last event out.
        view = replace(view, session_id=last.session_id, version=last.version)
    return Snapshot(
        view, last.version, epoch, last.hash, size_bytes, base.durable, base.listings,
        incomplete or (base.incomplete and not isinstance(view, View)), base.from_log,
    )  # fmt: skip


def _stamped(snapshot: Snapshot, session_id: str, head: Head) -> Snapshot:
    """A session view says which session it is of, and at which head it was read."""
    view = snapshot.view
    if not isinstance(view, View) or (view.head == head and view.session_id == session_id):
        return snapshot
    return replace(snapshot, view=replace(view, session_id=session_id, head=head))


_all_flights: weakref.WeakSet[_Flights] = weakref.WeakSet()


def _begin_anew() -> None:
    # Threads that hold a lock here do not exist in the child.
    for flights in _all_flights:
        flights._begin()


os.register_at_fork(after_in_child=_begin_anew)
