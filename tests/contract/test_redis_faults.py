"""Whatever becomes of Redis, every view is the one that the log gives, and every append lands.

Two processes share a Redis and a log. Between their turns the Redis is killed, emptied, filled, paused,
or holds what it should not; a third one, which knows no Redis, says what the views have to be.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import redis

from tests import servers
from tests.shared import Shared
from tests.writers import PATIENCE_S, eventually, pick

SECRET = b"the same for both"


@pytest.fixture(params=["memory", "redis alone"])
def memory(request: pytest.FixtureRequest) -> int:
    """How much each process keeps by itself."""
    return 64 << 20 if request.param == "memory" else 0


@pytest.fixture
def server() -> Iterator[servers.RedisProcess]:
    with servers.redis_process() as process:
        yield process


@pytest.fixture
def raw(server: servers.RedisProcess) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url, socket_timeout=5) as client:
        yield client


def keys(raw: redis.Redis) -> list[bytes]:
    found: list[bytes] = raw.keys("*")
    return found


def flip(value: bytes, random_: random.Random) -> bytes:
    place = random_.randrange(len(value))
    return value[:place] + bytes([value[place] ^ 1 << random_.randrange(8)]) + value[place + 1 :]


def corrupt(raw: redis.Redis, random_: random.Random) -> None:
    """One bit of one value, wherever it is."""
    for key in random_.sample(keys(raw), min(3, len(keys(raw)))):
        kind = raw.type(key)
        if kind == b"hash":
            field = random_.choice(list(raw.hkeys(key)))
            raw.hset(key, field, flip(raw.hget(key, field) or b"x", random_))
        elif kind == b"list":
            place = random_.randrange(raw.llen(key))
            raw.lset(key, place, flip(raw.lindex(key, place) or b"x", random_))


def swap(raw: redis.Redis, random_: random.Random) -> None:
    """What belongs to one session, in the place of another's."""
    for kind in (b":h", b":o", b":c"):
        found = [key for key in keys(raw) if key.endswith(kind)]
        if len(found) > 1:
            one, other = random_.sample(found, 2)
            raw.copy(one, other, replace=True)


def age(raw: redis.Redis, random_: random.Random, kept: dict[bytes, bytes]) -> None:
    """An older state of some keys comes back."""
    for key in keys(raw):
        if key in kept and random_.random() < 0.5:
            raw.restore(key, 0, kept[key], replace=True)
        else:
            kept[key] = raw.dump(key) or b""


def retype(raw: redis.Redis, random_: random.Random) -> None:
    for key in random_.sample(keys(raw), min(2, len(keys(raw)))):
        raw.delete(key)
        raw.sadd(key, "something else") if random_.random() < 0.5 else raw.set(key, b"text")


def lose(raw: redis.Redis, random_: random.Random) -> None:
    """Some keys and some fields are evicted."""
    for key in random_.sample(keys(raw), min(2, len(keys(raw)))):
        raw.delete(key)
    for key in [key for key in keys(raw) if key.endswith(b":c")]:
        fields = list(raw.hkeys(key))
        raw.hdel(key, random_.choice(fields))


def faults(server: servers.RedisProcess, raw: redis.Redis) -> dict[str, Callable[[random.Random], object]]:
    """What can become of a Redis; each leaves it able to go on, but perhaps not at once."""
    kept: dict[bytes, bytes] = {}
    return {
        "killed": lambda random_: server.restart(),
        "flushed": lambda random_: raw.flushall(),
        "scripts forgotten": lambda random_: raw.script_flush(),
        "full": lambda random_: raw.config_set("maxmemory", 1),
        "read-only": lambda random_: raw.config_set("min-replicas-to-write", 1),
        "corrupt": lambda random_: corrupt(raw, random_),
        "foreign": lambda random_: swap(raw, random_),
        "older": lambda random_: age(raw, random_, kept),
        "of another type": lambda random_: retype(raw, random_),
        "evicted": lambda random_: lose(raw, random_),
    }


def run(server: servers.RedisProcess, raw: redis.Redis, harness: Shared, count: int, seed: Any) -> None:
    random_ = pick(seed)
    known = faults(server, raw)
    for _ in range(count):
        for _ in range(random_.randrange(1, 4)):
            harness.step(random_)
        raw.config_set("maxmemory", 0)  # The fault before this one ends, whatever it was.
        raw.config_set("min-replicas-to-write", 0)
        if random_.random() < 0.9:
            eventually(lambda: all(cache.available for cache in harness.caches), "Redis is used again")
            harness.step(random_)
        with suppress(redis.ResponseError):  # A fault before this one may have left another type there.
            known[random_.choice(list(known))](random_)


@pytest.mark.parametrize("secret", [None, SECRET], ids=["plain", "signed"])
def test_no_fault_of_redis_is_seen(server, raw, tmp_path, secret, memory):
    with ExitStack() as stack:
        harness = Shared(f"sqlite:///{tmp_path}/log.db", server.url, stack, secret, memory)

        run(server, raw, harness, 50, (secret, memory))


@pytest.mark.long
@pytest.mark.parametrize("secret", [None, SECRET], ids=["plain", "signed"])
def test_no_fault_of_redis_is_seen_in_a_long_run(server, raw, tmp_path, secret, memory):
    with ExitStack() as stack:
        harness = Shared(f"sqlite:///{tmp_path}/log.db", server.url, stack, secret, memory)

        run(server, raw, harness, 500, ("long", secret, memory))


def test_no_fault_is_seen_over_postgres(server, raw, postgres_url):
    with ExitStack() as stack:
        run(server, raw, Shared(postgres_url, server.url, stack, None, 0), 25, "postgres")


def test_a_cache_that_trusts_what_it_finds_is_caught(server, raw, tmp_path, monkeypatch):
    """The control: the same harness over values that are not checked."""

    def trusting(identity: bytes, value: Any, secret: bytes | None = None) -> Any:
        return value[5:] if isinstance(value, bytes) else None

    monkeypatch.setattr("projections.caches.redis.unseal", trusting)
    monkeypatch.setattr("projections.caches.redis.unsealed", trusting)
    with ExitStack() as stack:
        harness = Shared(f"sqlite:///{tmp_path}/log.db", server.url, stack, None, 0)
        random_ = pick("control")
        with pytest.raises((AssertionError, UnicodeDecodeError)):
            for _ in range(500):
                harness.step(random_)
                corrupt(raw, random_)


def test_a_paused_redis_costs_one_timeout_and_no_view(server, raw, tmp_path, memory):
    with ExitStack() as stack:
        harness = Shared(f"sqlite:///{tmp_path}/log.db", server.url, stack, None, memory)
        random_ = pick("paused")
        for _ in range(5):
            harness.step(random_)
        before = [cache.failures for cache in harness.caches]
        server.pause()
        for _ in range(60):
            harness.step(random_)
        waited = [cache.failures - was for cache, was in zip(harness.caches, before, strict=True)]
        server.resume()
        eventually(lambda: all(cache.available for cache in harness.caches), "Redis is used again")
        for _ in range(5):
            harness.step(random_)

    # Each of the two processes has waited once; its thread waits for the rest.
    assert waited == [1, 1]


def test_a_cluster_that_fails_over_is_not_seen(tmp_path):
    with servers.redis_cluster() as cluster, ExitStack() as stack:
        harness = Shared(f"sqlite:///{tmp_path}/log.db", cluster.url, stack, SECRET, 0)
        random_ = pick("cluster")
        for _ in range(20):
            harness.step(random_)
        stored = [cache.failures for cache in harness.caches]
        cluster.masters[0].kill()
        deadline = time.monotonic() + PATIENCE_S
        while "role:master" not in servers.redis_text(cluster.replicas[0].url, "INFO replication"):
            harness.step(random_)
            assert time.monotonic() < deadline, "the replica does not take over"
        eventually(lambda: all(cache.available for cache in harness.caches), "the cluster is used again")
        failed = [cache.failures for cache in harness.caches]
        for _ in range(20):
            harness.step(random_)

    assert failed == [cache.failures for cache in harness.caches]
    assert stored == [0, 0]
