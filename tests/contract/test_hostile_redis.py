"""A Redis that means harm costs time and never a view or an append: every reply may be a lie.

Two processes share one, by itself and as a cluster, with and without a secret. It drips and floods, hangs
up, answers by other types and protocols, lies about sizes, sends away, pushes, repeats itself, gives old
replies and those of others, changes bytes and forges contents. A third process, which knows no Redis, says
what the views have to be. 50 harms for each of the four, 500 with `--long`.
"""

from __future__ import annotations

import re
from contextlib import ExitStack

import pytest

from projections.caches import redis as redis_cache
from projections.caches import redis_link
from projections.caches.framing import seal
from tests.hostile_redis import HARMS, HostileRedis
from tests.shared import Shared
from tests.writers import eventually, pick

SECRET = b"the same for both"
COUNTS = [pytest.param(50, id="50"), pytest.param(500, id="500", marks=pytest.mark.long)]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """What is down is tried again at once, so that the next harm can come."""
    monkeypatch.setattr(redis_link, "FIRST_TRY_S", 0.001)
    monkeypatch.setattr(redis_link, "TRY_EVERY_S", 0.01)


@pytest.fixture
def forge(monkeypatch, secret):
    """Changes the contents of what a reply has, and seals it as somebody does who lacks the secret.

    Without a secret to lack, it is sealed for another place: whoever knows the place can forge there.
    """
    identities = {}

    def noted(identity, body, secret=None):
        sealed = seal(identity, body, secret)
        identities[sealed] = identity, body
        return sealed

    def forged(reply):
        for sealed, (identity, body) in list(identities.items()):
            if sealed in reply:
                lie = re.sub(rb"[0-9a-f]{10}", b"0123456789", body)
                made = seal(identity, lie, b"another") if secret else seal(identity + b"x", lie)
                reply = reply.replace(sealed, made)
        return reply

    monkeypatch.setattr(redis_cache, "seal", noted)
    return forged


@pytest.fixture(params=[None, SECRET], ids=["plain", "signed"])
def secret(request):
    return request.param


@pytest.fixture(params=["redis", "redis+cluster"])
def hostile(request, redis_url, forge, secret):
    """The Redis, and its address."""
    port = int(redis_url.rpartition(":")[2].partition("/")[0])
    with HostileRedis(port, pick(("hostile", request.param, secret)), forge) as hostile:
        yield hostile, f"{request.param}://127.0.0.1:{hostile.port}"


def harms(hostile, tmp_path, secret, count):
    """Go on until so much harm was done."""
    redis, address = hostile
    chance = pick(("steps", address.partition(":")[0], secret))
    options = {"timeout_s": 0.1, "max_reply_bytes": 1 << 20}
    with ExitStack() as stack:
        shared = Shared(f"sqlite:///{tmp_path}/log.db", address, stack, secret, 0, **options)
        shared.step(chance)
        redis.hostile = True
        while redis.done.total() < count:
            shared.step(chance)
            eventually(lambda: all(cache.available for cache in shared.caches), "Redis is used again")
        redis.hostile = False


@pytest.mark.parametrize("count", COUNTS)
def test_no_harm_of_a_redis_is_seen(hostile, tmp_path, secret, count):
    harms(hostile, tmp_path, secret, count)

    assert len(hostile[0].done) > len(HARMS) * 2 // 3  # Most of what it can do.


@pytest.mark.parametrize("hostile", ["redis"], indirect=True)
def test_a_cache_that_believes_what_it_is_told_is_caught(hostile, tmp_path, secret, monkeypatch):
    """The control: the same harms over values that are not checked."""
    at = 33 if secret else 5

    def trusting(identity, value, secret=None):
        return value[at:] if isinstance(value, bytes) else None

    monkeypatch.setattr(redis_cache, "unseal", trusting)
    monkeypatch.setattr(redis_cache, "unsealed", trusting)
    with pytest.raises((AssertionError, UnicodeDecodeError)):
        harms(hostile, tmp_path, secret, 500)
