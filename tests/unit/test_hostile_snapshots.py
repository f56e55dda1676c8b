"""Bytes that somebody has made to harm whoever reads them: a snapshot is read, or it is a miss and goes.

What is stored is taken apart, one place of it is changed, and it is put together again with its checksum
right: whoever can write where snapshots are stored can do that where there is no secret.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
import pytest
from msgspec.structs import replace

from kern_events import Draft, Sessions, message
from kern_events.store.base import StoredChunk
from projections import MemoryCache, RedisCache, SessionProjector, chunks, history, loading
from projections.caches import tiers
from projections.caches.framing import seal
from projections.caches.tiers import DurableTier, _identity, _place
from projections.stored import _MAX_DEPTH, SessionCodec
from tests.forging import cached_in, store, true
from tests.writers import pick

CODEC: Final = SessionCodec()


@pytest.fixture(autouse=True)
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_ITEMS", 3)
    monkeypatch.setattr(loading, "_FAR", 3)
    monkeypatch.setattr(tiers, "AT_LEAST", 3)


def deep(levels: int, leaf: Any = 1) -> Any:
    for _ in range(levels):
        leaf = [leaf]
    return leaf


HOSTILE: Final[tuple[Any, ...]] = (
    None, True, -1, 0, 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), math.nan, math.inf, -math.inf, 1e308,
    "", "x", "deleted", b"", b"x" * 20, b"\xff" * 200, [], [[]], {}, {1: 2}, {"": {}}, {"a": b"b"}, deep(900),
    {"a": deep(_MAX_DEPTH)}, [1] * 300, msgspec.msgpack.Ext(5, b"x"), "\0" * 1000,
)  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a decoded value that can be changed."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from places(item)


def changed(data: bytes, random_: random.Random) -> bytes:
    """The same bytes with another value in one place, or another end, or one bit that is another."""
    kind = random_.randrange(8)
    if kind == 0:
        return data[: random_.randrange(len(data) + 1)]
    if kind == 1 and data:
        place = random_.randrange(len(data))
        return data[:place] + bytes([data[place] ^ 1 << random_.randrange(8)]) + data[place + 1 :]
    if kind == 2:
        return data + data
    try:
        value = msgspec.msgpack.decode(data)
        found = list(places(value))
        container, key = random_.choice(found)
    except (msgspec.MsgspecError, ValueError, RecursionError, IndexError):  # It was changed before.
        return random_.randbytes(len(data))
    if kind == 3 and isinstance(container, list):
        del container[key]
    elif kind == 4 and isinstance(container, list):
        container.insert(key, container[key])
    elif kind == 5:
        container[key] = random_.choice([other[name] for other, name in found])
    else:
        container[key] = random_.choice(HOSTILE)
    try:
        return msgspec.msgpack.encode(value)
    except (RecursionError, ValueError):  # A container that is now within itself.
        return b"\x91" * 5000


def converse(sessions: Sessions, turns: int = 8) -> None:
    sessions.append("s", [Draft("session.created", {"user_id": "alice", "metadata": {"a": {"b": [1]}}})])
    for number in range(turns):
        with sessions.turn("s") as turn:
            turn.message("user", [{"type": "odd", "value": {"n": number}}, {"type": "text", "text": "?"}])
            turn.message("assistant", f"answer {number}")
            turn.set_state("count", {"at": number, "of": [turns]})


def bytes_of(sessions: Sessions) -> tuple[Any, dict[str, bytes]]:
    """An honest snapshot with its key, and its parts: head, open items and chunks."""
    key, codec, snapshot = true(sessions)
    dumped = codec.dump(snapshot)
    bodies = {name.hex(): body() for name, body in codec.chunks(snapshot).items()}
    return (key, snapshot), {"head": dumped.head, "open": dumped.open, **bodies}


def into_database(sessions: Sessions, place: Any, parts: dict[str, bytes]) -> None:
    key, snapshot = place
    codec = sessions._loader.codec(SessionProjector())
    assert codec is not None
    body = len(parts["head"]).to_bytes(4, "big") + parts["head"] + parts["open"]
    head = seal(_identity(key, codec, b"head", b"%d" % snapshot.version), body)
    rows = {
        name: seal(_identity(key, codec, bytes.fromhex(name)), part)
        for name, part in parts.items()
        if name not in ("head", "open")
    }
    table = DurableTier(sessions).table(key, codec)
    assert table.put("s", snapshot.epoch, snapshot.version, chunks=rows, head=head)


def into_redis(url: str) -> Callable[[Sessions, Any, dict[str, bytes]], None]:
    cache = RedisCache(url, timeout_s=5.0)

    def put(sessions: Sessions, place: Any, parts: dict[str, bytes]) -> None:
        key, snapshot = place
        codec = sessions._loader.codec(SessionProjector())
        assert codec is not None
        where, mark = _place(key, codec), tiers._mark(snapshot)
        cache.forget(where)
        names = {bytes.fromhex(name): part for name, part in parts.items() if name not in ("head", "open")}
        bodies = {name: lambda part=part: part for name, part in names.items()}
        assert cache.replace(where, mark, parts["head"], parts["open"], bodies)

    return put


def read_all(sessions: Sessions) -> None:
    """Everything that reads a snapshot, and everything that is done with what it gives."""
    view = sessions.load("s")
    view.to_dict()
    list(sessions.history("s", last_turns=2))
    [each.at for each in view.messages]
    [each.to_openai() for each in view.context]
    sessions.append("s", [message("user", "more")])
    sessions.load("s").to_dict()
    sessions.load("s", version=10).to_dict()
    sessions.preview_restore("s", to_turn=1).to_dict()


@pytest.mark.parametrize("tier", ["database", "redis"])
@pytest.mark.parametrize("count", [30, pytest.param(500, marks=pytest.mark.long)])
def test_no_bytes_make_a_read_fail(tier: str, count: int, redis_url: str) -> None:
    random_ = pick((tier, count))
    put = into_database if tier == "database" else into_redis(redis_url)
    with Sessions.open("memory:", **cached_in(tier, redis_url)) as sessions:
        converse(sessions)
        for _ in range(count):
            place, parts = bytes_of(sessions)
            for _ in range(random_.randrange(1, 3)):
                name = random_.choice(["head", "open", random_.choice(list(parts))])
                parts[name] = changed(parts[name], random_)
            put(sessions, place, parts)

            read_all(sessions)
            if sessions.head("s").version > 120:
                sessions.delete("s")
                converse(sessions)


@pytest.mark.parametrize("secret", [None, b"a secret"], ids=["checked", "signed"])
@pytest.mark.parametrize("count", [30, pytest.param(500, marks=pytest.mark.long)])
def test_no_row_that_was_changed_is_ever_shown(secret: bytes | None, count: int) -> None:
    random_ = pick((secret, count))
    with Sessions.open("memory:", cache=MemoryCache(0), secret=secret) as sessions:
        converse(sessions)
        key, codec, snapshot = true(sessions)
        durable = DurableTier(sessions, secret)
        rows = sessions._store._snapshots  # type: ignore[attr-defined]
        for _ in range(count):
            durable.store_all(codec, [(key, snapshot)])
            (stored,) = rows.values()
            for name in random_.sample(sorted(stored), random_.randrange(1, 3)):
                one, other = stored[name], stored[random_.choice(sorted(stored))]
                half = one.data[:40] + other.data[40:]
                data = random_.choice([changed(one.data, random_), other.data, half])
                stored[name] = one._replace(data=data)

            assert sessions.load("s") == snapshot.view
            assert sessions.history("s", last_turns=3) == history(snapshot.view, last_turns=3)


@pytest.mark.parametrize("other", [None, b"another"])
def test_a_row_without_the_signature_is_a_miss_and_goes(other: bytes | None) -> None:
    with Sessions.open("memory:", cache=MemoryCache(0), secret=b"a secret") as sessions:
        converse(sessions)
        key, codec, snapshot = true(sessions)
        dumped = codec.dump(replace(snapshot, view=replace(snapshot.view, user_id="mallory")))
        body = len(dumped.head).to_bytes(4, "big") + dumped.head + dumped.open
        durable = sessions._loader._durable
        assert durable is not None
        table = durable.table(key, codec)
        head = seal(_identity(key, codec, b"head", b"%d" % snapshot.version), body, other)
        assert table.put("s", 0, snapshot.version, head=head)

        assert durable.newest(key, codec, 2**63 - 1) is None
        assert table.names("s")[0] == []
        assert sessions.load("s") == snapshot.view


BAD: Final[dict[str, Callable[[Any], Any]]] = {
    "a size below zero": lambda snapshot: replace(snapshot, size_bytes=-1),
    "a value 900 deep": lambda snapshot: replace(snapshot, view=replace(snapshot.view, summary=deep(900))),
    "a value deeper than any": lambda snapshot: replace(
        snapshot, view=replace(snapshot.view, summary=deep(_MAX_DEPTH + 1))
    ),
    "no number": lambda snapshot: replace(snapshot, view=replace(snapshot.view, state={"n": math.nan})),
    "stored before it was": lambda snapshot: replace(snapshot, durable=2**63 - 1),
    "a turn below zero": lambda snapshot: replace(snapshot, view=replace(snapshot.view, turn=-1)),
}


@pytest.mark.parametrize("tier", ["database", "redis"])
@pytest.mark.parametrize("bad", BAD)
def test_what_no_fold_gives_is_a_miss_and_goes(tier: str, bad: str, redis_url: str) -> None:
    with Sessions.open("memory:", **cached_in(tier, redis_url)) as sessions:
        converse(sessions)
        key, codec, snapshot = true(sessions)
        store(tier, redis_url, sessions, key, codec, BAD[bad](snapshot), None)
        sessions._loader._memory = MemoryCache(0)
        asked: Any = sessions._loader._durable or sessions._loader.shared
        read = asked.newest if tier == "database" else asked.get
        options = (key, codec, 2**63 - 1) if tier == "database" else (key, codec)

        assert read(*options) is None
        assert sessions.load("s") == snapshot.view
        assert (read(*options) or snapshot).view.messages == snapshot.view.messages


@pytest.mark.parametrize("name", ["@", "@zz", f"@{10**19 - 1}", "@-1", f"@{0:018d}x", "@1", "@²"])
def test_a_row_of_another_name_is_passed_over(name: str) -> None:
    with Sessions.open("memory:", cache=MemoryCache(0)) as sessions:
        converse(sessions)
        key, codec, snapshot = true(sessions)
        store("database", "", sessions, key, codec, snapshot, None)
        table = sessions._loader._durable.table(key, codec)  # type: ignore[union-attr]
        rows = sessions._store._snapshots["default", "s", table._projector]  # type: ignore[attr-defined]
        rows[name] = StoredChunk(name, 1, b"nothing")

        assert sessions.load("s") == snapshot.view
        assert sessions.load("s", version=9) is not None
        assert sessions.rebuild(check=True).sessions == 1
        assert sessions.rebuild().ok
        assert sessions.load("s") == snapshot.view
