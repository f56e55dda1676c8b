"""The Redis cache against real Redis and Valkey servers, and a cluster of them: what is read back is what
was written, or nothing; and nothing that Redis does costs a caller more than a moment.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import os
import re
import socket
import subprocess
import sys
import threading
from binascii import crc_hqx
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import redis

from projections.caches import MemoryCache, redis_link
from projections.caches.framing import Mark, Place, Stored, seal, unseal
from projections.caches.redis import MISSING, RedisCache, _spot
from tests import servers
from tests.writers import eventually, in_threads, pick

PLACE = Place("default", "session of Alice", "transcript", 1, b"12345678")
SECRET = b"a secret of 32 bytes or so ......"
SHORT_S = 0.1  # For what does not answer anyway.


def mark(version: int, epoch: int = 0, of: str = "") -> Mark:
    return Mark(epoch, version, f"{of}{epoch}.{version}".encode().rjust(32, b"-"))


def chunks(*names: str) -> dict[bytes, Callable[[], bytes]]:
    return {name.encode(): lambda name=name: f"chunk {name}".encode() * 9 for name in names}


def fill(cache: RedisCache, place: Place = PLACE, epoch: int = 0) -> Stored:
    """Store something at version 3: two chunks, the open items and two deltas."""
    assert cache.replace(place, mark(1, epoch), b"head 1", b"open 1", chunks("a", "b"))
    assert cache.extend(place, mark(1, epoch), mark(2, epoch), b"head 2", b"delta 2")
    assert cache.extend(place, mark(2, epoch), mark(3, epoch), b"head 3", b"delta 3")
    return Stored(mark(3, epoch), b"head 3", (b"open 1", b"delta 2", b"delta 3"))


def bodies(of: Mapping[bytes, Callable[[], bytes]]) -> list[bytes]:
    return [give() for give in of.values()]


@pytest.fixture(scope="module", params=["redis", "valkey"])
def any_server(request: pytest.FixtureRequest) -> Iterator[str]:
    with servers.redis(servers.find_redis(request.param)) as url:
        yield url


@pytest.fixture
def raw(any_server: str) -> Iterator[redis.Redis]:
    """A plain client of the server that `cache` has, which is empty."""
    with redis.Redis.from_url(any_server) as client:
        client.flushall()
        client.config_set("maxmemory", 0)
        yield client


@pytest.fixture(params=[None, SECRET], ids=["checked", "signed"])
def secret(request: pytest.FixtureRequest) -> bytes | None:
    return request.param


@pytest.fixture
def opened() -> Iterator[Callable[..., RedisCache]]:
    """Make caches that are closed afterwards. The timeout is for a machine that is busy."""
    with contextlib.ExitStack() as stack:

        def make(url: str, **options: Any) -> RedisCache:
            cache = RedisCache(url, **{"timeout_s": 5.0, **options})
            stack.callback(cache.close)
            return cache

        yield make


@pytest.fixture
def cache(any_server: str, raw: redis.Redis, secret: bytes | None, opened: Any) -> RedisCache:
    return opened(any_server, secret=secret)


@pytest.fixture
def process() -> Iterator[servers.RedisProcess]:
    """A Redis for a test that does something to it."""
    with servers.redis_process() as started:
        yield started


@pytest.fixture
def exchanges(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each attempt of this thread to ask a server anything: that is what calls wait for."""
    tried: list[str] = []
    exchange, caller = redis_link.Server.exchange, threading.get_ident()

    def counted(server: Any, *args: Any) -> Any:
        if threading.get_ident() == caller:
            tried.append(str(server))
        return exchange(server, *args)

    monkeypatch.setattr(redis_link.Server, "exchange", counted)
    return tried


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Have the clock of exchanges go on by so many seconds whenever somebody looks at it."""

    def tick(by_s: float) -> None:
        times = itertools.count()
        monkeypatch.setattr(redis_link, "_now", lambda: next(times) * by_s)

    return tick


def watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "projections-redis"]


# --------------------------------------------------------------------------------- what is stored


def test_it_gives_back_what_it_was_given(cache: RedisCache) -> None:
    stored = fill(cache)

    assert cache.fetch(PLACE) == stored
    assert cache.chunks(PLACE, [b"b", b"a"]) == [b"chunk b" * 9, b"chunk a" * 9]
    assert cache.chunks(PLACE, []) == []
    assert (cache.failures, cache.available) == (0, True)


def test_a_place_is_nobody_elses(cache: RedisCache) -> None:
    fill(cache)

    for other in (
        PLACE._replace(namespace="other"),
        PLACE._replace(session_id="session of Bob"),
        PLACE._replace(projector="usage"),
        PLACE._replace(projector_version=2),
        PLACE._replace(fingerprint=b"87654321"),
    ):
        assert cache.fetch(other) is None
        assert cache.chunks(other, [b"a"]) is None


def test_an_extension_of_something_else_changes_nothing(cache: RedisCache) -> None:
    stored = fill(cache)

    for base in (mark(2), mark(3, epoch=1), mark(3, of="another "), mark(4)):
        assert not cache.extend(PLACE, base, mark(5), b"head 5", b"delta 5")
        assert not cache.advance(PLACE, base, mark(5), b"head 5", b"open 5", {})

    assert cache.fetch(PLACE) == stored


def test_nothing_is_extended_where_nothing_is(cache: RedisCache, raw: redis.Redis) -> None:
    assert not cache.extend(PLACE, mark(1), mark(2), b"head", b"delta")
    assert raw.dbsize() == 0


def test_an_advance_begins_the_open_items_anew(cache: RedisCache) -> None:
    fill(cache)

    assert cache.advance(PLACE, mark(3), mark(4), b"head 4", b"open 4", chunks("c"))

    assert cache.fetch(PLACE) == Stored(mark(4), b"head 4", (b"open 4",))
    assert cache.chunks(PLACE, [b"a", b"b", b"c"]) == bodies(chunks("a", "b", "c"))
    assert cache.extend(PLACE, mark(4), mark(5), b"head 5", b"delta 5")


@pytest.mark.parametrize("older", [mark(2), mark(9, epoch=0), mark(999, epoch=0)])
def test_an_older_snapshot_replaces_no_newer_one(cache: RedisCache, older: Mark) -> None:
    stored = fill(cache, epoch=1)

    assert not cache.replace(PLACE, older, b"old", b"old", chunks("a", "old"))

    assert cache.fetch(PLACE) == stored
    assert cache.chunks(PLACE, [b"old"]) is None


@pytest.mark.parametrize("newer", [mark(4), mark(10), mark(1, epoch=1)])
def test_a_newer_snapshot_replaces(cache: RedisCache, newer: Mark) -> None:
    fill(cache)

    assert cache.replace(PLACE, newer, b"new", b"items", chunks("a"))

    assert cache.fetch(PLACE) == Stored(newer, b"new", (b"items",))


def test_the_same_mark_is_stored_already(cache: RedisCache) -> None:
    stored = fill(cache)

    assert cache.replace(PLACE, mark(3), b"again", b"again", {})

    assert cache.fetch(PLACE) == stored


def test_another_history_of_that_version_replaces(cache: RedisCache) -> None:
    fill(cache)
    other = mark(3, of="another ")

    assert cache.replace(PLACE, other, b"new", b"items", {})

    assert cache.fetch(PLACE) == Stored(other, b"new", (b"items",))


def test_only_what_is_newer_is_wanted(cache: RedisCache) -> None:
    assert cache.wants(PLACE, mark(1))
    fill(cache)

    assert [cache.wants(PLACE, mark(version)) for version in (2, 3, 4)] == [False, False, True]
    assert cache.wants(PLACE, mark(3, of="another "))


@pytest.mark.parametrize("at", [2**53, 2**63 - 2, 9, 99])
def test_versions_are_told_apart_however_large(cache: RedisCache, at: int) -> None:
    assert cache.replace(PLACE, mark(at, epoch=at), b"head", b"open", {})

    assert not cache.replace(PLACE, mark(at - 1, epoch=at), b"old", b"old", {})
    assert not cache.replace(PLACE, mark(at + 1, epoch=at - 1), b"old", b"old", {})
    assert not cache.extend(PLACE, mark(at + 1, epoch=at), mark(at, epoch=at), b"wrong", b"wrong")
    assert cache.extend(PLACE, mark(at, epoch=at), mark(at + 1, epoch=at), b"head", b"delta")
    assert cache.replace(PLACE, mark(at, epoch=at + 1), b"head", b"open", {})
    assert cache.fetch(PLACE) == Stored(mark(at, epoch=at + 1), b"head", (b"open",))


def test_of_many_who_extend_one_wins(cache: RedisCache) -> None:
    fill(cache)

    def extend(number: int) -> list[bool]:
        return [
            cache.extend(PLACE, mark(version), mark(version + 1), b"head", b"%d" % number)
            for version in range(3, 40)
        ]

    won = in_threads(4, extend)

    found = cache.fetch(PLACE)
    assert found is not None
    assert sum(map(sum, won)) == found.mark.version - 3 == len(found.open) - 3
    assert cache.failures == 0


def test_what_is_large_is_no_different(cache: RedisCache) -> None:
    large = os.urandom(3 << 20)
    many = {b"%d" % number: lambda number=number: b"%d" % number * 99 for number in range(100)}

    assert cache.replace(PLACE, mark(1), large, large, many)

    assert cache.fetch(PLACE) == Stored(mark(1), large, (large,))
    assert cache.chunks(PLACE, list(many)) == bodies(many)


# ----------------------------------------------------------------------------------------- chunks


def test_a_call_writes_4_mib_and_the_next_goes_on(cache: RedisCache) -> None:
    made: list[int] = []

    def give(number: int) -> bytes:
        made.append(number)
        return b"%08d" % number * 8192

    many = {b"%d" % number: lambda number=number: give(number) for number in range(150)}

    assert not cache.replace(PLACE, mark(1), b"head", b"open", many)
    assert cache.fetch(PLACE) is None
    assert not cache.replace(PLACE, mark(2), b"head", b"open", many)
    assert cache.replace(PLACE, mark(3), b"head", b"open", many)

    # One more than there is room for is made by each call to find that out.
    assert len(made) <= 152
    assert cache.fetch(PLACE) == Stored(mark(3), b"head", (b"open",))
    assert cache.chunks(PLACE, list(many)) == [b"%08d" % number * 8192 for number in range(150)]


def test_only_chunks_that_are_missing_are_asked_for(cache: RedisCache) -> None:
    fill(cache)

    def refuse() -> bytes:
        raise AssertionError("it is there")

    assert cache.replace(PLACE, mark(4), b"head", b"open", {b"a": refuse, **chunks("c")})
    assert cache.chunks(PLACE, [b"a", b"c"]) == bodies(chunks("a", "c"))


def test_a_chunk_that_is_larger_than_a_call_may_write(cache: RedisCache) -> None:
    large = os.urandom(5 << 20)

    assert not cache.replace(PLACE, mark(1), b"head", b"open", {**chunks("a"), b"large": lambda: large})
    assert cache.replace(PLACE, mark(1), b"head", b"open", {**chunks("a"), b"large": lambda: large})
    assert cache.chunks(PLACE, [b"large"]) == [large]


def test_chunks_are_pruned_if_asked(cache: RedisCache) -> None:
    fill(cache)

    assert cache.replace(PLACE, mark(4), b"head", b"open", chunks("b", "c"))
    assert cache.chunks(PLACE, [b"a", b"b", b"c"]) is not None
    assert cache.replace(PLACE, mark(5), b"head", b"open", chunks("b", "c"), prune=True)

    assert cache.chunks(PLACE, [b"a"]) is None
    assert cache.chunks(PLACE, [b"b", b"c"]) == bodies(chunks("b", "c"))


def test_a_missing_chunk_is_healed(cache: RedisCache, raw: redis.Redis) -> None:
    stored = fill(cache)
    raw.hdel(keys(raw)["c"], b"b")

    assert cache.chunks(PLACE, [b"a", b"b"]) is None
    cache.forget(PLACE, stored.mark)

    assert cache.fetch(PLACE) is None
    assert fill(cache) == cache.fetch(PLACE)
    assert cache.chunks(PLACE, [b"a", b"b"]) == bodies(chunks("a", "b"))


def test_forget_spares_what_is_newer(cache: RedisCache, raw: redis.Redis) -> None:
    stored = fill(cache)

    cache.forget(PLACE, mark(2))
    assert cache.fetch(PLACE) == stored
    cache.forget(PLACE)

    assert cache.fetch(PLACE) is None
    assert set(keys(raw)) == {"i"}


# ------------------------------------------------------------------------------------------- keys


def keys(raw: redis.Redis) -> dict[str, bytes]:
    """The keys there are, by their last letter."""
    return {key.decode()[-1]: key for key in raw.keys("*")}


def test_keys_show_nothing_and_have_one_hash_tag(cache: RedisCache, raw: redis.Redis) -> None:
    fill(cache)
    fill(cache, PLACE._replace(projector="another"))

    found = [key.decode() for key in raw.keys("*")]

    assert len(found) == 7
    assert all(re.fullmatch(r"kern:\{[0-9a-f]{32}\}:(i|[0-9a-f]{16}:[hoc])", key) for key in found)
    assert len({key.partition("}")[0] for key in found}) == 1


def test_every_key_expires_and_every_write_puts_it_off(
    any_server: str, raw: redis.Redis, opened: Any
) -> None:
    cache = opened(any_server, ttl_s=100)
    fill(cache)

    def soon() -> None:
        for key in raw.keys("*"):
            assert 50 < raw.ttl(key) <= 100
            raw.expire(key, 10)

    soon()
    assert cache.extend(PLACE, mark(3), mark(4), b"head", b"delta")
    soon()
    assert cache.advance(PLACE, mark(4), mark(5), b"head", b"open", {})
    soon()
    assert cache.replace(PLACE, mark(6), b"head", b"open", chunks("a"))
    soon()


# ------------------------------------------------------------------------------ what is not right


def contents(raw: redis.Redis) -> dict[bytes, Any]:
    return {
        key: raw.lrange(key, 0, -1) if raw.type(key) == b"list" else raw.hgetall(key) for key in raw.keys("*")
    }


def put_back(raw: redis.Redis, saved: Mapping[bytes, Any]) -> None:
    with raw.pipeline() as pipe:
        pipe.flushall()
        for key, value in saved.items():
            if isinstance(value, list):
                pipe.rpush(key, *value)
            else:
                pipe.hset(key, mapping=value)
        pipe.execute()


def edited(value: bytes, random: Any) -> bytes:
    at = random.randrange(len(value) + 1)
    new = bytes([random.randrange(256)])
    return random.choice(
        [
            value[:at] + new + value[at + 1 :],
            value[:at] + new + value[at:],
            value[:at] + value[at + 1 :],
            value[:at],
        ]
    )


def test_a_thousand_random_edits(cache: RedisCache, raw: redis.Redis) -> None:
    stored, random = fill(cache), pick("edits")
    saved, parts = contents(raw), keys(raw)

    misses = 0
    for _ in range(1000):
        put_back(raw, saved)
        kind = random.choice("hoc")
        if kind == "o":
            at = random.randrange(3)
            raw.lset(parts["o"], at, edited(saved[parts["o"]][at], random))
        else:
            field, value = random.choice(sorted(saved[parts[kind]].items()))
            raw.hset(parts[kind], field, edited(value, random))

        found, closed = cache.fetch(PLACE), cache.chunks(PLACE, [b"a", b"b"])

        assert found in (None, stored)
        assert closed in (None, bodies(chunks("a", "b")))
        misses += found is None or closed is None
        assert (found is None) or kind == "c" or contents(raw)[parts[kind]] == saved[parts[kind]]

    assert misses > 900
    assert cache.failures == 0


def test_no_byte_of_a_value_may_differ(any_server: str, raw: redis.Redis, opened: Any) -> None:
    cache = opened(any_server, secret=SECRET)
    fill(cache)
    saved, parts = contents(raw), keys(raw)
    head, items = saved[parts["h"]][b"s"], saved[parts["o"]]

    for at in range(len(head)):
        put_back(raw, saved)
        raw.hset(parts["h"], "s", head[:at] + bytes([head[at] ^ 1]) + head[at + 1 :])
        assert cache.fetch(PLACE) is None
    for number, item in enumerate(items):
        for at in range(len(item)):
            put_back(raw, saved)
            raw.lset(parts["o"], number, item[:at] + bytes([item[at] ^ 1]) + item[at + 1 :])
            assert cache.fetch(PLACE) is None


def test_a_broken_head_is_forgotten_and_replaced(cache: RedisCache, raw: redis.Redis) -> None:
    fill(cache)
    raw.hset(keys(raw)["h"], mapping={"s": b"broken", "v": b"999"})

    assert cache.fetch(PLACE) is None

    assert set(keys(raw)) == {"i"}
    assert cache.fetch(PLACE) is None
    assert fill(cache) == cache.fetch(PLACE)


@pytest.mark.parametrize("number", [b"", b"03", b"-3", b"3.0", b" 3", b"3_0", b"9" * 400, "٣".encode()])
def test_a_number_that_is_none_is_no_obstacle(cache: RedisCache, raw: redis.Redis, number: bytes) -> None:
    for field in ("e", "v"):
        fill(cache)
        raw.hset(keys(raw)["h"], field, number)
        assert cache.fetch(PLACE) is None
        fill(cache)
        cache.forget(PLACE)


def test_the_open_list_of_an_earlier_state_does_not_fit(cache: RedisCache, raw: redis.Redis) -> None:
    fill(cache)
    parts = keys(raw)
    before = raw.lrange(parts["o"], 0, -1)
    assert cache.extend(PLACE, mark(3), mark(4), b"head 4", b"delta 4")
    after = raw.lrange(parts["o"], 0, -1)
    saved = contents(raw)

    wrong = [
        before,
        [],
        after[:1] + after[2:],
        [*after, after[-1]],
        [after[0], after[2], after[1], after[3]],
        after[1:],
        [after[0], *after],
        [*before, before[-1]],
    ]
    for items in wrong:
        put_back(raw, {**saved, parts["o"]: items} if items else saved)
        if not items:
            raw.delete(parts["o"])
        assert cache.fetch(PLACE) is None
    put_back(raw, saved)
    assert cache.fetch(PLACE) is not None


def test_values_of_other_places_do_not_fit(cache: RedisCache, raw: redis.Redis) -> None:
    """Whole keys are moved: another session, another projector, and a head of another mark."""
    fill(cache)
    mine = contents(raw)
    for other in (
        PLACE._replace(session_id="s"),
        PLACE._replace(projector="p"),
        PLACE._replace(namespace="n"),
    ):
        raw.flushall()
        fill(cache, other)
        theirs = {key[-1:]: value for key, value in contents(raw).items()}
        for kinds in ("h", "o", "c", "ho", "hoc"):
            put_back(
                raw,
                {key: theirs[key[-1:]] if key[-1:].decode() in kinds else was for key, was in mine.items()},
            )
            closed = cache.chunks(PLACE, [b"a"])
            found = cache.fetch(PLACE)
            assert closed is None if "c" in kinds else closed == bodies(chunks("a"))
            assert found is None or kinds == "c"


def test_a_chunk_does_not_pass_for_another(cache: RedisCache, raw: redis.Redis) -> None:
    fill(cache)
    key = keys(raw)["c"]
    first = raw.hget(key, b"a")
    raw.hset(key, b"b", first)

    assert cache.chunks(PLACE, [b"a"]) is not None
    assert cache.chunks(PLACE, [b"a", b"b"]) is None


@pytest.mark.parametrize("theirs", [None, b"another secret"])
def test_another_secret_is_a_miss(
    any_server: str, raw: redis.Redis, opened: Any, theirs: bytes | None
) -> None:
    ours, others = opened(any_server, secret=SECRET), opened(any_server, secret=theirs)
    fill(others)

    assert ours.chunks(PLACE, [b"a"]) is None
    assert ours.fetch(PLACE) is None
    stored = fill(ours)
    assert others.chunks(PLACE, [b"a"]) is None
    assert others.fetch(PLACE) is None
    assert fill(ours) == stored


def test_sealed_is_sealed_for_one_identity(secret: bytes | None) -> None:
    value = seal(b"identity", b"body", secret)

    assert unseal(b"identity", value, secret) == b"body"
    assert unseal(b"identit", value, secret) is None
    assert unseal(b"identityb", value[:-4] + b"ody", secret) is None
    assert unseal(b"identity", value, b"other") is None
    assert unseal(b"identity", seal(b"identity", b"", secret), secret) == b""
    for wrong in (None, b"", value[:1], value[:4], value[:-1], value + b"\0", bytearray(value), "text", 1):
        assert unseal(b"identity", wrong, secret) is None


# ------------------------------------------------------------------------------------------ purge


def test_purge_removes_a_session_and_refuses_what_is_older(cache: RedisCache, raw: redis.Redis) -> None:
    fill(cache)
    fill(cache, PLACE._replace(projector="usage"))
    other = PLACE._replace(session_id="session of Bob")
    fill(cache, other)

    assert cache.purge(PLACE.namespace, PLACE.session_id, 2)

    mine = [key for key in raw.keys("*") if _spot(b"kern", PLACE).tag in key]
    assert [key[-2:] for key in mine] == [b":i"]
    assert not cache.replace(PLACE, mark(9, epoch=1), b"late", b"late", chunks("late"))
    assert not cache.extend(PLACE, mark(3), mark(4), b"late", b"late")
    assert not cache.advance(PLACE, mark(3), mark(4), b"late", b"late", chunks("late"))
    assert cache.chunks(PLACE, [b"late"]) is None
    assert cache.replace(PLACE, mark(1, epoch=2), b"new", b"new", {})
    assert cache.fetch(other) is not None


def test_a_purge_finds_what_was_written_after_the_index_was_evicted(
    cache: RedisCache, raw: redis.Redis
) -> None:
    fill(cache)
    raw.delete(keys(raw)["i"])
    assert cache.extend(PLACE, mark(3), mark(4), b"head 4", b"delta 4")

    assert cache.purge(PLACE.namespace, PLACE.session_id, 1)
    assert set(keys(raw)) == {"i"}


def test_a_purge_spares_what_is_of_that_epoch(cache: RedisCache) -> None:
    stored = fill(cache, epoch=2)
    old = PLACE._replace(projector="usage")
    fill(cache, old, epoch=1)

    assert cache.purge(PLACE.namespace, PLACE.session_id, 2)
    assert (cache.fetch(PLACE), cache.fetch(old)) == (stored, None)
    assert cache.chunks(PLACE, [b"a", b"b"]) == bodies(chunks("a", "b"))
    assert cache.purge(PLACE.namespace, PLACE.session_id, None)
    assert cache.fetch(PLACE) is None


def test_no_chunk_of_an_older_epoch_comes_under_a_newer_head(cache: RedisCache) -> None:
    fill(cache, epoch=2)

    assert not cache.advance(PLACE, mark(3, 1), mark(4, 1), b"late", b"late", chunks("late"))
    assert cache.chunks(PLACE, [b"late"]) is None


def test_a_purge_does_not_lower_what_another_has_raised(cache: RedisCache) -> None:
    assert cache.purge(PLACE.namespace, PLACE.session_id, 10)
    assert cache.purge(PLACE.namespace, PLACE.session_id, 9)

    assert not cache.replace(PLACE, mark(1, epoch=9), b"late", b"late", {})
    assert cache.replace(PLACE, mark(1, epoch=10), b"new", b"new", {})


# --------------------------------------------------------------------------- what happens to Redis


def test_scripts_are_loaded_again(cache: RedisCache, raw: redis.Redis) -> None:
    fill(cache)
    raw.script_flush()

    assert cache.extend(PLACE, mark(3), mark(4), b"head", b"delta")
    assert cache.failures == 0


def test_an_emptied_redis_is_filled_again(cache: RedisCache, raw: redis.Redis) -> None:
    fill(cache)
    raw.flushall()

    assert cache.fetch(PLACE) is None
    assert not cache.extend(PLACE, mark(3), mark(4), b"head", b"delta")
    assert fill(cache) == cache.fetch(PLACE)


@pytest.mark.parametrize("kind", "hoci")
@pytest.mark.parametrize("how", ["fetch", "chunks", "extend", "replace", "purge"])
def test_a_key_of_another_type_is_removed(cache: RedisCache, raw: redis.Redis, kind: str, how: str) -> None:
    fill(cache)
    key = keys(raw)[kind]
    raw.delete(key)
    raw.set(key, b"text")

    for _ in range(2):
        if how == "fetch":
            assert kind in "ci" or cache.fetch(PLACE) is None
        elif how == "chunks":
            assert (cache.chunks(PLACE, [b"a"]) is None) == (kind == "c")
        elif how == "extend":
            assert kind in "ci" or not cache.extend(PLACE, mark(3), mark(4), b"head", b"delta")
        elif how == "replace":
            cache.replace(PLACE, mark(5), b"head", b"open", chunks("a"))
        else:
            cache.purge(PLACE.namespace, PLACE.session_id, 0)

    for version in (10, 11):  # Whatever it was, the second writer at the latest succeeds.
        done = cache.replace(PLACE, mark(version), b"head", b"open", chunks("a"))
    assert done
    assert cache.fetch(PLACE) == Stored(mark(version), b"head", (b"open",))
    assert cache.chunks(PLACE, [b"a"]) == bodies(chunks("a"))
    assert cache.available


def test_a_full_redis_can_still_be_read(cache: RedisCache, raw: redis.Redis) -> None:
    stored = fill(cache)
    raw.config_set("maxmemory", 1)

    assert not cache.extend(PLACE, mark(3), mark(4), b"head", b"delta")
    assert not cache.replace(PLACE, mark(4), b"head", b"open", chunks("a", "c"))

    assert cache.fetch(PLACE) in (None, stored)
    assert cache.chunks(PLACE, [b"a"]) is not None
    assert cache.available
    assert cache.failures == 2
    raw.config_set("maxmemory", 0)
    assert cache.replace(PLACE, mark(5), b"head", b"open", chunks("a", "c"))


def test_what_a_user_may_not_do_is_a_miss(any_server: str, raw: redis.Redis, opened: Any) -> None:
    raw.acl_setuser("reader", enabled=True, passwords=["+hidden"], keys=["kern:*"], categories=["+@read"])
    fill(opened(any_server))
    cache = opened(any_server.replace("//", "//reader:hidden@"))

    assert cache.fetch(PLACE) is not None
    assert not cache.extend(PLACE, mark(3), mark(4), b"head", b"delta")
    assert cache.available


def test_a_replica_is_out_of_use_until_it_is_a_master(opened: Any) -> None:
    with servers.redis(None, "--repl-diskless-sync-delay", "0") as master, servers.redis_process() as replica:
        stored = fill(opened(master))
        port = master.rpartition(":")[2].partition("/")[0]
        assert servers.redis_says(replica.url, f"REPLICAOF 127.0.0.1 {port}") == "+OK"
        cache = opened(replica.url)
        eventually(lambda: cache.fetch(PLACE) == stored)

        assert not cache.extend(PLACE, mark(3), mark(4), b"head", b"delta")
        assert not cache.available
        assert cache.fetch(PLACE) is None
        assert servers.redis_says(replica.url, "REPLICAOF NO ONE") == "+OK"

        eventually(lambda: cache.available)
        assert cache.extend(PLACE, mark(3), mark(4), b"head", b"delta")


def test_a_redis_that_hangs_costs_one_timeout(
    process: servers.RedisProcess, opened: Any, exchanges: list[str]
) -> None:
    stored = fill(opened(process.url))
    process.pause()
    cache = opened(process.url, timeout_s=SHORT_S)
    exchanges.clear()

    for _ in range(1000):
        assert cache.fetch(PLACE) is None
        assert not cache.extend(PLACE, mark(3), mark(4), b"head", b"delta")
    assert len(exchanges) == 1
    assert (cache.failures, cache.available) == (1, False)

    process.resume()
    eventually(lambda: cache.fetch(PLACE) == stored)
    eventually(lambda: not watchers(), "its thread to end")


def test_a_redis_that_was_killed_comes_back(
    process: servers.RedisProcess, opened: Any, exchanges: list[str]
) -> None:
    cache = opened(process.url)
    fill(cache)
    process.kill()
    exchanges.clear()

    for _ in range(1000):
        assert cache.fetch(PLACE) is None
    assert len(exchanges) == 1
    assert (cache.failures, cache.available) == (1, False)

    process.start()
    eventually(lambda: cache.available)
    assert fill(cache) == cache.fetch(PLACE)


def test_a_restart_between_two_calls_is_not_noticed(process: servers.RedisProcess, opened: Any) -> None:
    cache = opened(process.url)
    fill(cache)
    process.restart()

    assert cache.fetch(PLACE) is None
    assert fill(cache) == cache.fetch(PLACE)
    assert cache.failures == 0


def test_a_redis_that_was_never_there_costs_nothing(
    opened: Any, caplog: pytest.LogCaptureFixture, exchanges: list[str]
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        cache = opened(f"redis://user:hidden@127.0.0.1:{nobody.getsockname()[1]}/0")

        with caplog.at_level(logging.DEBUG, "projections"):
            for _ in range(1000):
                assert cache.fetch(PLACE) is None
                assert not cache.replace(PLACE, mark(1), b"head", b"open", chunks("a"))
                assert cache.chunks(PLACE, [b"a"]) is None
                cache.forget(PLACE)

    assert len(exchanges) == len(caplog.messages) == 1
    assert "hidden" not in caplog.text
    assert "user" not in caplog.text


@pytest.mark.parametrize("waiting", [0, 8], ids=["connects", "does not connect"])
def test_an_address_that_swallows_everything_costs_one_timeout(
    opened: Any, waiting: int, exchanges: list[str]
) -> None:
    with contextlib.ExitStack() as stack:
        hole = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0 if waiting else 9))
        for _ in range(waiting):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(hole.getsockname())
        cache = opened(f"redis://127.0.0.1:{hole.getsockname()[1]}", timeout_s=SHORT_S)

        for _ in range(1000):
            assert cache.fetch(PLACE) is None

        assert len(exchanges) == cache.failures == 1
        cache.close()


def test_a_wrong_password_is_logged_once_without_it(opened: Any, caplog: pytest.LogCaptureFixture) -> None:
    with servers.redis_process() as process:
        assert servers.redis_says(process.url, "CONFIG SET requirepass right") == "+OK"
        caches = [opened(process.url.replace("//", f"//{user}@")) for user in (":right", ":wrong")]
        caches.append(opened(process.url))

        assert caches[0].replace(PLACE, mark(1), b"head", b"open", {})
        with caplog.at_level(logging.DEBUG, "projections"):
            for cache in (*caches, *caches):
                cache.fetch(PLACE)

    assert [cache.failures for cache in caches] == [0, 1, 1]
    assert len(caplog.messages) == 2
    assert "wrong" not in caplog.text


GARBAGE = [
    b"",
    b"\r\n",
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b":1\r\n",
    b":nine\r\n",
    b"$9999999999\r\n",
    b"$-7\r\n",
    b"*-1\r\n",
    b"*2\r\n:1\r\n:99999999999999999999999999\r\n",
    b"*3\r\n:1\r\n:0\r\n$-1\r\n",
    b"*1\r\n" * 3000,
    b"*4\r\n$1\r\n1\r\n$1\r\n1\r\n$1\r\nx\r\n$1\r\ny\r\n*0\r\n",
    b"*4\r\n*0\r\n*0\r\n*0\r\n*0\r\n:5\r\n",
    b"-\r\n",
    b"- \r\n",
    b"-ERR something\r\n",
    b"-NOSCRIPT No matching script\r\n",
    b"-WRONGTYPE of a key\r\n",
    b"-MOVED\r\n",
    b"-MOVED 1 nowhere\r\n",
    b"-MOVED 1 :99999999\r\n",
    b"-ASK 1 127.0.0.1:1\r\n",
    b"-TRYAGAIN later\r\n",
    b"-CLUSTERDOWN\r\n",
    b"-LOADING the dataset\r\n",
    b"%1\r\n+a\r\n+b\r\n",
    b"\0" * 100,
]


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_no_answer_of_a_hostile_redis_is_an_error(opened: Any, garbage: bytes, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_answer_all, args=(server, garbage), daemon=True)
        thread.start()
        cache = opened(f"{scheme}://127.0.0.1:{server.getsockname()[1]}", timeout_s=0.03)

        assert cache.fetch(PLACE) is None
        cache._link._down.clear()
        assert cache.chunks(PLACE, [b"a"]) is None
        cache._link._down.clear()
        assert not cache.extend(PLACE, mark(1), mark(2), b"head", b"delta") or garbage == b":1\r\n"
        cache._link._down.clear()
        assert not cache.replace(PLACE, mark(1), b"head", b"open", chunks("a")) or garbage == b":1\r\n"
        cache._link._down.clear()
        cache.forget(PLACE)
        assert not cache.purge(PLACE.namespace, PLACE.session_id, 1) or garbage.startswith(b"*")
        cache.close()
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


def _answer_all(server: socket.socket, garbage: bytes) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = server.accept()
            threading.Thread(target=_answer, args=(client, garbage), daemon=True).start()


def _answer(client: socket.socket, garbage: bytes) -> None:
    with client, contextlib.suppress(OSError):
        while client.recv(65536) and garbage:
            client.sendall(garbage)


@contextlib.contextmanager
def endless(beginning: bytes, piece: bytes) -> Iterator[tuple[str, list[int]]]:
    """A server that answers whatever it is sent with this, until it is hung up on: its address, and how
    many bytes each client has taken."""
    taken: list[int] = []

    def answer(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.recv(65536)
            client.sendall(beginning)
            place = len(taken)
            taken.append(len(beginning))
            while taken[place] < 1 << 30:
                client.sendall(piece)
                taken[place] += len(piece)

    def serve(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                threads.append(threading.Thread(target=answer, args=(server.accept()[0],), daemon=True))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threads = [threading.Thread(target=serve, args=(server,), daemon=True)]
        threads[0].start()
        yield f"127.0.0.1:{server.getsockname()[1]}", taken
        server.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("who", ["", ":password@"], ids=["a reply", "the reply to AUTH"])
def test_a_redis_that_drips_costs_one_timeout(
    opened: Any, ticking: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    with endless(b"$99999\r\n" if not who else b"+", b"x") as (address, _):
        cache = opened(f"redis://{who}{address}", timeout_s=1.0)
        cache._link._options["socket_read_size"] = 1
        received: list[int] = []
        monkeypatch.setattr(redis_link.Budget, "received", lambda _, size: received.append(size))
        ticking(0.1)

        assert cache.fetch(PLACE) is None
        assert 0 < sum(received) < 10
        assert (cache.failures, cache.available) == (1, False)
        cache.close()


def test_all_chunks_are_read_in_one_time(
    cache: RedisCache, ticking: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [b"%d" % number for number in range(100)]
    assert cache.replace(PLACE, mark(1), b"head", b"open", {name: lambda: b"chunk" for name in names})
    assert len(cache.chunks(PLACE, names) or ()) == 100

    monkeypatch.setattr(cache._link, "_timeout_s", 1.0)
    ticking(0.2)
    assert cache.chunks(PLACE, names[:16]) is not None
    assert cache.chunks(PLACE, names) is None


def test_a_reply_without_end_is_not_read_to_its_end(opened: Any) -> None:
    with endless(b"$400000000\r\n", b"x" * 65536) as (address, taken):
        cache = opened(f"redis://{address}", max_reply_bytes=1 << 20)

        assert cache.fetch(PLACE) is None
        assert cache.chunks(PLACE, [b"a", b"b"]) is None
        assert cache.available
        cache.close()
    # What the system keeps between two sockets comes on top.
    assert max(taken) < 64 << 20


def test_what_is_too_long_is_removed(any_server: str, raw: redis.Redis, opened: Any) -> None:
    cache = opened(any_server, max_reply_bytes=1000)
    fill(cache)
    assert raw.hset(keys(raw)["h"], "s", b"x" * 1000) == 0

    assert cache.fetch(PLACE) is None
    assert set(keys(raw)) == {"c", "i"}
    assert fill(cache) == cache.fetch(PLACE)


def test_chunks_that_are_too_long_together_are_read_apart(
    any_server: str, raw: redis.Redis, opened: Any
) -> None:
    cache = opened(any_server, max_reply_bytes=1000)
    large = {name: lambda name=name: name * 700 for name in (b"a", b"b", b"c")}
    assert cache.replace(PLACE, mark(1), b"head", b"open", large)

    assert cache.chunks(PLACE, [*large]) == bodies(large)
    assert cache.replace(PLACE, mark(2), b"head", b"open", {b"d": lambda: b"d" * 1000})
    assert cache.chunks(PLACE, [b"d"]) is None
    assert "c" not in keys(raw)
    assert cache.available


@pytest.mark.parametrize(
    ("url", "checked"),
    [
        ("rediss://h", True),
        ("valkeys+cluster://h", True),
        ("rediss://h?ssl_check_hostname=false", False),
        ("rediss://h?ssl_cert_reqs=none", None),
        ("redis://h", None),
    ],
)
def test_the_name_of_the_host_is_checked(url: str, checked: bool | None) -> None:
    assert redis_link.Address.of(url, 1.0).options.get("ssl_check_hostname") is checked


# --------------------------------------------------------------------------------- in this process


def test_an_interrupted_call_leaves_no_reply_behind(
    cache: RedisCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = fill(cache)

    def interrupted(connection: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(redis_link, "_reply", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache.chunks(PLACE, [b"a"])

    assert cache.fetch(PLACE) == stored
    assert cache.failures == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_has_connections_of_its_own(process: servers.RedisProcess, opened: Any) -> None:
    cache = opened(process.url)
    stored = fill(cache)

    with cache._link._lock:
        child = os.fork()
        if child == 0:
            found = [cache.fetch(PLACE) == stored for _ in range(50)]
            done = cache.extend(PLACE, mark(3), mark(4), b"head 4", b"delta 4")
            os._exit(0 if all(found) and done and cache.available else 1)
        found = [cache.fetch(PLACE) for _ in range(50)]
        _, status = os.waitpid(child, 0)

    assert status == 0
    assert all(each is not None and each.mark in (mark(3), mark(4)) for each in found)
    assert cache.extend(PLACE, mark(4), mark(5), b"head 5", b"delta 5")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_tries_for_itself(process: servers.RedisProcess, opened: Any) -> None:
    cache = opened(process.url)
    fill(cache)
    process.kill()
    assert cache.fetch(PLACE) is None
    assert not cache.available

    tried, has_tried = os.pipe()
    child = os.fork()
    if child == 0:
        missed = cache.fetch(PLACE) is None and not cache.available
        os.write(has_tried, b"!")
        os._exit(0 if missed and eventually(lambda: cache.available) else 1)
    os.read(tried, 1)
    process.start()
    _, status = os.waitpid(child, 0)
    os.close(tried)
    os.close(has_tried)

    assert status == 0


def test_where_there_can_be_no_thread_every_call_tries(
    process: servers.RedisProcess, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = opened(process.url)
    stored = fill(cache)
    process.pause()

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _no_more_threads)
        patch.setattr(cache._link, "_timeout_s", SHORT_S)
        assert cache.fetch(PLACE) is None
    process.resume()

    assert cache.fetch(PLACE) == stored
    assert (cache.failures, cache.available) == (1, True)


def _no_more_threads(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_the_thread_ends_with_the_cache(opened: Any) -> None:
    eventually(lambda: not watchers())
    closed, dropped = opened("redis://127.0.0.1:1"), RedisCache("redis://127.0.0.1:1")
    closed.fetch(PLACE)
    dropped.fetch(PLACE)
    assert len(watchers()) == 2

    closed.close()
    del dropped
    gc.collect()

    eventually(lambda: not watchers())


def test_a_closed_cache_is_empty(any_server: str, cache: RedisCache, raw: redis.Redis) -> None:
    fill(cache)
    before = raw.info("clients")["connected_clients"]

    cache.close()
    cache.close()

    eventually(lambda: raw.info("clients")["connected_clients"] < before)
    assert cache.fetch(PLACE) is None
    assert cache.chunks(PLACE, [b"a"]) is None
    assert not cache.extend(PLACE, mark(3), mark(4), b"head", b"delta")
    assert not cache.replace(PLACE, mark(4), b"head", b"open", {})
    assert not cache.purge(PLACE.namespace, PLACE.session_id, 1)
    assert not cache.available


def test_there_is_a_tier_in_front(any_server: str, opened: Any) -> None:
    memory = MemoryCache(1)

    assert opened(any_server, memory=memory).memory is memory
    assert isinstance(opened(any_server).memory, MemoryCache)


WRONG_URLS = [
    "",
    "localhost",
    "http://user:hidden@localhost",
    "redis:/user:hidden@localhost",
    "redis://user:hidden@localhost:port",
    "redis://user:hid/hidden@localhost",
    "redis://user:hidden@localhost:99999999",
    "redis://localhost?password=hidden&nonsense=1",
    "redis://user:hidden@localhost?socket_timeout=soon",
    "redis+cluster://user:hidden@localhost/3",
    "unix+cluster:///hidden",
]


@pytest.mark.parametrize("url", WRONG_URLS)
def test_a_wrong_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match="Redis") as refused:
        RedisCache(url)

    assert "hidden" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://user:hidden@localhost:6380/2",
        "rediss://localhost?ssl_cert_reqs=none",
        "unix:///run/redis.sock?db=1",
        "valkey://localhost",
        "valkeys://localhost",
        "redis+cluster://localhost:7000",
        "rediss+cluster://localhost:7000",
    ],
)
def test_a_right_url_opens_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refused(*args: Any, **options: Any) -> Any:
        asked.append(args)
        raise OSError("nobody is there")

    monkeypatch.setattr("socket.getaddrinfo", refused)
    monkeypatch.setattr("socket.socket.connect", refused)
    with contextlib.closing(RedisCache(url)) as cache:
        assert asked == []
        assert cache.fetch(PLACE) is None
        assert asked  # Positive control: what opens something is seen.


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="secret"):
        RedisCache("redis://localhost", secret=b"")
    with pytest.raises(ValueError, match="ttl_s"):
        RedisCache("redis://localhost", ttl_s=0)
    with pytest.raises(ValueError, match="max_reply_bytes"):
        RedisCache("redis://localhost", max_reply_bytes=0)


def test_a_unix_socket(opened: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    with servers._folder() as folder, servers.redis(None, "--unixsocket", str(folder / "socket")):
        cache = opened(f"unix://{folder}/socket")

        assert fill(cache) == cache.fetch(PLACE)


def test_redis_is_imported_when_it_is_used() -> None:
    code = "import sys; from projections.caches.redis import RedisCache; sys.exit('redis' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_missing_redis_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("projections.caches.redis_link")
    monkeypatch.delitem(sys.modules, "projections.caches.redis_link")
    monkeypatch.setitem(sys.modules, "redis", None)

    with pytest.raises(ImportError, match=re.escape(MISSING)):
        RedisCache("redis://localhost")


# ---------------------------------------------------------------------------------------- clusters


def places(count: int) -> list[Place]:
    return [PLACE._replace(session_id=f"session {number}") for number in range(count)]


def slot_of(place: Place) -> int:
    return crc_hqx(_spot(b"kern", place).tag, 0) % servers.REDIS_SLOTS


@pytest.fixture(scope="module")
def cluster() -> Iterator[servers.RedisCluster]:
    with servers.redis_cluster() as formed:
        yield formed


def test_every_node_of_a_cluster_is_used(cluster: servers.RedisCluster, opened: Any) -> None:
    cache = opened(cluster.url, prefix="nodes")

    for place in places(30):
        assert fill(cache, place) == cache.fetch(place)
        assert cache.chunks(place, [b"a", b"b"]) == bodies(chunks("a", "b"))
        assert cache.purge(place.namespace, place.session_id, 1)

    assert cache.failures == 0
    assert all(int(servers.redis_text(node.url, "DBSIZE")[1:]) for node in cluster.masters)
    eventually(lambda: not cache._link._outdated, "the map of slots to be fetched")
    assert [server.port for server in (cache._link._slots[slot] for slot in (0, 8000, 16383))] == [
        node.port for node in cluster.masters
    ]


def test_a_slot_that_moves_is_followed(cluster: servers.RedisCluster, opened: Any) -> None:
    cache, place = opened(cluster.url, prefix="moves"), PLACE  # Nobody else has keys in its slot.
    slot, spot = slot_of(place), _spot(b"moves", place)
    source = cluster.master_of(slot)
    target = next(node for node in cluster.masters if node is not source)
    from_id, to_id = (servers.redis_text(node.url, "CLUSTER MYID") for node in (source, target))
    stored = fill(cache, place)

    def move(*keys: bytes) -> None:
        for key in keys:
            command = f"MIGRATE 127.0.0.1 {target.port} {key.decode()} 0 1000"
            assert servers.redis_says(source.url, command) == "+OK"

    assert servers.redis_says(target.url, f"CLUSTER SETSLOT {slot} IMPORTING {from_id}") == "+OK"
    assert servers.redis_says(source.url, f"CLUSTER SETSLOT {slot} MIGRATING {to_id}") == "+OK"
    move(spot.chunks)
    assert cache.fetch(place) == stored
    assert cache.chunks(place, [b"a"]) == bodies(chunks("a"))
    assert not cache.extend(place, mark(3), mark(4), b"head", b"delta")  # Neither node has all the keys.
    move(spot.head, spot.open, spot.registry)
    assert cache.fetch(place) == stored
    assert cache.extend(place, mark(3), mark(4), b"head", b"delta")
    for node in (target, source):
        assert servers.redis_says(node.url, f"CLUSTER SETSLOT {slot} NODE {to_id}") == "+OK"

    assert cache.extend(place, mark(4), mark(5), b"head", b"delta")
    assert (cache.failures, cache.available) == (1, True)


def items_until(version: int) -> bytes:
    return b"".join(b"%d," % number for number in range(1, version + 1))


def step(cache: RedisCache, place: Place, version: int) -> bool:
    """One turn of a session: extend what is stored, or replace what is not; whether it is stored."""
    found = cache.fetch(place)
    if found is not None:
        at = found.mark.version
        assert found.mark == mark(at)
        assert found.head == b"head %d" % at
        assert b"".join(found.open) == items_until(at)
        if at == version - 1 and cache.extend(
            place, found.mark, mark(version), b"head %d" % version, b"%d," % version
        ):
            return True
    return cache.replace(place, mark(version), b"head %d" % version, items_until(version), {})


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("redis", "kill"),
        pytest.param("redis", "pause", marks=pytest.mark.long),
        pytest.param("valkey", "kill", marks=pytest.mark.long),
    ],
)
def test_a_failover_is_some_misses(opened: Any, name: str, how: str) -> None:
    """It is the node that the URL names. Meanwhile the others go on, until the cluster stops them too."""
    with servers.redis_cluster(binary=servers.find_redis(name)) as own:
        cache, sessions = opened(own.url, timeout_s=0.5), places(12)
        assert all(step(cache, place, 1) for place in sessions)
        eventually(lambda: not cache._link._outdated)
        assert {slot_of(place) * 3 // servers.REDIS_SLOTS for place in sessions} == {0, 1, 2}
        versions = itertools.count(2)
        getattr(own.masters[0], how)()

        def all_stored() -> bool:
            version = next(versions)
            return all([step(cache, place, version) for place in sessions])

        eventually(lambda: not all_stored(), "the failure to be noticed")
        eventually(all_stored, "the replica to take over")
        assert all_stored()
        eventually(lambda: cache.available and not watchers())
