"""Snapshots as somebody writes them who can write where they are stored, and who knows how we do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from msgspec.structs import replace

from projections import MemoryCache, RedisCache, Sessions, View
from projections.caches import Snapshot, SnapshotKey
from projections.caches.tiers import DurableTier, SharedTier, _place
from projections.loading import Loader
from projections.stored import Codec

TIERS: Final = ("redis", "database")


def cached_in(tier: str, redis_url: str, secret: bytes | None = None) -> dict[str, Any]:
    """Options for sessions whose only cache is that tier."""
    if tier == "database":
        return {"cache": MemoryCache(0), "secret": secret}
    cache = RedisCache(redis_url, secret=secret, timeout_s=5.0, memory=MemoryCache(0))
    return {"cache": cache, "durable": False}


def forge(
    sessions: Sessions,
    tier: str,
    redis_url: str,
    edit: Callable[[View], View],
    *,
    secret: bytes | None = None,
    session_id: str = "s",
) -> None:
    """Put another view in the place of the newest snapshot of a session."""
    key, codec, snapshot = true(sessions, session_id)
    store(tier, redis_url, sessions, key, codec, replace(snapshot, view=edit(snapshot.view)), secret)


def true(sessions: Sessions, session_id: str = "s") -> tuple[SnapshotKey, Codec, Snapshot]:
    """What an honest process would store."""
    loader = Loader(sessions, MemoryCache(0), None, None)
    key, codec = loader.key(session_id, sessions._projector), loader.codec(sessions._projector)
    assert codec is not None
    return key, codec, loader.current(session_id, sessions._projector)


def store(
    tier: str,
    redis_url: str,
    sessions: Sessions,
    key: SnapshotKey,
    codec: Codec,
    snapshot: Snapshot,
    secret: bytes | None,
) -> None:
    """Store a snapshot in a tier, whatever is there."""
    if tier == "database":
        assert DurableTier(sessions, secret).store_all(codec, [(key, snapshot)]) == 1
        return
    cache = RedisCache(redis_url, secret=secret, timeout_s=5.0)
    cache.forget(_place(key, codec))
    SharedTier(cache).put(key, codec, snapshot, None)
    cache.close()
