"""Snapshots in memory: live views, the least recently used dropped first, bounded by bytes."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Final

from cachetools import LRUCache

from kern_events.spi import check_whole
from projections.caches.base import Snapshot, SnapshotKey

DEFAULT_BYTES: Final = 256 << 20
_MOST_PURGED: Final = 10_000  # sessions of which it is remembered


class MemoryCache:
    """A SnapshotCache of this process; the views themselves are kept and shared.

    Args:
        max_bytes: What the snapshots take together at the most; one that is larger is not kept.
    """

    def __init__(self, max_bytes: int = DEFAULT_BYTES) -> None:
        self.max_bytes: Final = check_whole("max_bytes", max_bytes)
        self._begin()
        _caches.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._snapshots: LRUCache[SnapshotKey, Snapshot] = LRUCache(self.max_bytes, getsizeof=_size_bytes)
        self._floors: dict[tuple[str, str], int] = {}  # Epochs below which nothing is kept of a session.

    def get(self, key: SnapshotKey) -> Snapshot | None:
        """See SnapshotCache."""
        with self._lock:
            return self._snapshots.get(key)

    def put(self, key: SnapshotKey, snapshot: Snapshot) -> None:
        """See SnapshotCache. Where one is too large, an older one stays: better a long tail than all."""
        if snapshot.size_bytes > self.max_bytes:
            return
        with self._lock:
            if self._floors and snapshot.epoch < self._floors.get(key[:2], 0):
                return
            kept = self._snapshots.get(key)
            if kept is None or (kept.epoch, kept.version) <= (snapshot.epoch, snapshot.version):
                self._snapshots[key] = snapshot

    def drop(self, key: SnapshotKey) -> None:
        """See SnapshotCache."""
        with self._lock:
            self._snapshots.pop(key, None)

    def purge(self, namespace: str, session_id: str, epoch: int | None = None) -> None:
        """Forget what every projector made of a session before that epoch, and keep nothing from there any
        more; without an epoch, forget all that there is now."""
        session = (namespace, session_id)
        with self._lock:
            if epoch is not None:
                self._floors[session] = max(epoch, self._floors.pop(session, 0))
            while len(self._floors) > _MOST_PURGED:
                del self._floors[next(iter(self._floors))]
            for key in [key for key in self._snapshots if key[:2] == session]:
                if epoch is None or self._snapshots[key].epoch < epoch:
                    del self._snapshots[key]


def _size_bytes(snapshot: Snapshot) -> int:
    return snapshot.size_bytes


_caches: weakref.WeakSet[MemoryCache] = weakref.WeakSet()


def _begin_anew() -> None:
    # A thread that the child does not have may have been in the middle of a change.
    for cache in _caches:
        cache._begin()


os.register_at_fork(after_in_child=_begin_anew)
