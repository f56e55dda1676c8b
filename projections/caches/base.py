"""What a snapshot is, and what a cache of them has to do, which is little: it is never trusted.

`load` proves every snapshot fresh against the log, so a cache may lose, delay or forget what it likes.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import msgspec


class SnapshotKey(NamedTuple):
    """Whose snapshot it is. Another version of a projector never sees it, nor code that knows other types.

    `types` is the digest of the application's event types, empty where there are none.
    """

    namespace: str
    session_id: str
    projector: str
    projector_version: int
    types: bytes = b""


class Snapshot(msgspec.Struct):
    """A view at a version of the log, as a baseline to fold on from.

    Attributes:
        view: What the projector folded; never changed.
        version: The last event that is in it.
        epoch: The erasures that the session had seen when it was folded; it is worth nothing in another.
        hash: The chain hash at `version`.
        size_bytes: About how much memory it takes.
        durable: The version that was last stored in the log's own database, 0 if none was.
        listings: Which chunks lay there then, where this process knows.
        incomplete: Something could not be read that may belong into the view; it is kept in memory
            alone where the view does not say so itself.
        from_log: All of it was folded from the log by this process, and nothing read from where others
            can write.
        verified_s: When this process last saw it agree with the log, on its monotonic clock. The one
            field that changes, and of no meaning elsewhere.
    """

    view: Any
    version: int
    epoch: int
    hash: bytes
    size_bytes: int
    durable: int = 0
    listings: tuple[bytes, ...] | None = None
    incomplete: bool = False
    from_log: bool = False
    verified_s: float = -math.inf


class SnapshotCache(Protocol):
    """Keeps the newest snapshot of each key, or not. Called by many threads; never raises.

    One cache serves one database: a key does not say which.
    """

    def get(self, key: SnapshotKey) -> Snapshot | None:
        """The snapshot kept under a key."""

    def put(self, key: SnapshotKey, snapshot: Snapshot) -> None:
        """Keep a snapshot, unless one of a higher (epoch, version) is there."""

    def drop(self, key: SnapshotKey) -> None:
        """Forget what is kept under a key: it does not agree with the log."""


def check_cache(cache: object) -> None:
    """TypeError that names what to pass, where something is no SnapshotCache: a client of Redis is none."""
    verbs = [getattr(cache, verb, None) for verb in ("get", "put", "drop")]
    if isinstance(cache, type) or not all(map(callable, verbs)):
        kind = cache.__name__ if isinstance(cache, type) else type(cache).__name__
        raise TypeError(
            "a cache is the URL of a Redis as text ('redis://host'), RedisCache('redis://host'), "
            f"MemoryCache() or None, not {kind}"
        )
