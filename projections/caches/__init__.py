"""Where snapshots are kept between loads: base.py says what a cache does, memory.py is the default."""

from projections.caches.base import Snapshot, SnapshotCache, SnapshotKey
from projections.caches.memory import MemoryCache

__all__ = ["MemoryCache", "Snapshot", "SnapshotCache", "SnapshotKey"]
