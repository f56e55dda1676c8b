"""Where snapshots are kept between loads.

base.py says what a cache does, memory.py is the default, redis.py is for many processes; tiers.py puts
Redis and the log's own database behind the memory.
"""

from projections.caches.base import Snapshot, SnapshotCache, SnapshotKey
from projections.caches.memory import MemoryCache
from projections.caches.redis import RedisCache

__all__ = ["MemoryCache", "RedisCache", "Snapshot", "SnapshotCache", "SnapshotKey"]
