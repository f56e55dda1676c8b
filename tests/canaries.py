"""A text that is planted and must be gone: how often it still stands in the caches."""

from __future__ import annotations

from typing import Any

import redis

CANARY = "canary-7f3a"


def in_redis(url: str, text: str = CANARY) -> int:
    """How often a text stands in a Redis: in keys and values of every type that there is."""
    wanted = text.encode()
    with redis.Redis.from_url(url) as client:
        return sum(
            b"\n".join((key, *_values(client, key))).count(wanted) for key in client.scan_iter(count=1000)
        )


def in_memory(sessions: Any, text: str = CANARY) -> int:
    """How often a text stands in the views that sessions keep in memory."""
    memory = sessions._loader._memory
    return sum(repr(_plain(kept.view)).count(text) for kept in memory._snapshots.values())


def _values(client: Any, key: bytes) -> list[bytes]:
    kind = client.type(key)
    if kind == b"hash":
        return [part for pair in client.hgetall(key).items() for part in pair]
    return client.lrange(key, 0, -1) if kind == b"list" else [client.dump(key) or b""]


def _plain(view: Any) -> Any:
    return view.to_dict() if hasattr(view, "to_dict") else view
