"""The memory cache: bounded by bytes, never older than it was, safe to share."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
import redis
import redis.asyncio

from kern_events import message
from projections import AsyncSessions, MemoryCache, RedisCache, Sessions
from projections.caches import Snapshot, SnapshotKey, memory

KEY = SnapshotKey("default", "s", "session", 1)


def key(session_id: str) -> SnapshotKey:
    return KEY._replace(session_id=session_id)


def snapshot(version: int, epoch: int = 0, size_bytes: int = 1) -> Snapshot:
    return Snapshot(f"view {version}", version, epoch, bytes(32), size_bytes)


def test_it_gives_back_what_it_was_given() -> None:
    cache, kept = MemoryCache(), snapshot(1)
    cache.put(KEY, kept)

    assert cache.get(KEY) is kept
    assert cache.get(KEY._replace(projector_version=2)) is None
    assert cache.get(KEY._replace(namespace="other")) is None


@pytest.mark.parametrize("older", [snapshot(1, epoch=1), snapshot(9, epoch=0)])
def test_an_older_snapshot_replaces_no_newer_one(older: Snapshot) -> None:
    cache, newer = MemoryCache(), snapshot(2, epoch=1)
    cache.put(KEY, newer)

    cache.put(KEY, older)

    assert cache.get(KEY) is newer


def test_the_same_point_again_replaces() -> None:
    cache, again = MemoryCache(), snapshot(1)
    cache.put(KEY, snapshot(1))

    cache.put(KEY, again)

    assert cache.get(KEY) is again


def test_the_least_recently_used_makes_room() -> None:
    cache = MemoryCache(max_bytes=10)
    cache.put(key("a"), snapshot(1, size_bytes=4))
    cache.put(key("b"), snapshot(1, size_bytes=4))
    cache.get(key("a"))

    cache.put(key("c"), snapshot(1, size_bytes=4))

    assert cache.get(key("b")) is None
    assert cache.get(key("a")) is not None


def test_what_is_too_large_is_not_kept_and_an_older_one_stays() -> None:
    cache, older = MemoryCache(max_bytes=10), snapshot(1)
    cache.put(KEY, older)

    cache.put(KEY, snapshot(2, size_bytes=11))

    assert cache.get(KEY) is older


def test_what_is_dropped_is_gone() -> None:
    cache = MemoryCache()
    cache.put(KEY, snapshot(1))

    cache.drop(KEY)
    cache.drop(KEY)

    assert cache.get(KEY) is None


def test_threads_may_share_it() -> None:
    cache, errors = MemoryCache(max_bytes=50), []

    def use(number: int) -> None:
        try:
            for version in range(300):
                cache.put(key(str((number + version) % 20)), snapshot(version, size_bytes=7))
                cache.get(key(str(version % 20)))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []


def test_nothing_of_before_a_purge_is_kept_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_MOST_PURGED", 2)
    cache = MemoryCache()
    cache.put(KEY, snapshot(3))
    cache.purge("default", "s", 2)
    cache.put(KEY, snapshot(9, epoch=1))
    assert cache.get(KEY) is None

    cache.put(KEY, snapshot(9, epoch=2))
    cache.purge("default", "s", 2)
    assert cache.get(KEY) is not None
    for other in ("a", "b"):
        cache.purge("default", other, 1)
    assert len(cache._floors) == 2


@pytest.mark.parametrize("opening", [Sessions.open, AsyncSessions.open])
@pytest.mark.parametrize(
    "cache", [redis.Redis(), redis.asyncio.Redis(), MemoryCache, {}, 0, b"redis://localhost", True]
)
def test_what_is_no_cache_is_refused_at_once(opening: Any, cache: Any) -> None:
    with pytest.raises(TypeError, match=r"'redis://host'.*MemoryCache\(\) or None, not \w+$"):
        opening("memory:", cache=cache)
    with pytest.raises(TypeError, match="not"):
        RedisCache("redis://localhost", memory=cache)


def test_a_redis_cache_takes_a_url_and_a_secret_of_bytes() -> None:
    client: Any = redis.Redis()
    with pytest.raises(TypeError, match="URL of a Redis"):
        RedisCache(client)
    secret: Any = "text"
    with pytest.raises(TypeError, match="a secret is bytes, not str"):
        RedisCache("redis://localhost", secret=secret)


def test_a_cache_that_says_it_is_empty_is_used() -> None:
    class Counted(MemoryCache):
        def __len__(self) -> int:
            return len(self._snapshots)

    cache = Counted()
    with Sessions.open("memory:", cache=cache) as sessions:
        sessions.append("s", [message("user", "hello")])
        sessions.load("s")

    assert len(cache) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_wait_for_a_lock_of_its_parent() -> None:
    cache = MemoryCache()
    cache.put(KEY, snapshot(1))

    with cache._lock:
        child = os.fork()
        if child == 0:
            os._exit(0 if cache.get(KEY) is None else 1)
        _, status = os.waitpid(child, 0)

    assert status == 0
