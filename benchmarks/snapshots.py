"""P5 and P6: what do snapshots cost that outlive a process, and what do they save?

P5 is Redis: what a turn adds to it, the last ten turns, a whole session, without and with signatures.
P6 is a cold start from the snapshots in the log's own database. Each is compared with the raw client
that moves the same bytes, and a cold start with folding every event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import repeat
from typing import Any, Final

import redis

from benchmarks import floors, workload
from benchmarks.measure import Bench, Block, Result, Timings, duration, each, interleave, quantiles
from benchmarks.workload import SESSION
from kern_events import Draft
from projections import MemoryCache, RedisCache, SessionProjector, Sessions
from projections.caches import Snapshot, SnapshotKey
from projections.caches.tiers import SharedTier
from projections.stored import codec_of
from tests import servers

_TURNS: Final = 1_000
_SECRET: Final = b"a secret of the benchmark, 32 B."
_BLOCK: Final = 10
_KEY: Final = SnapshotKey("default", SESSION, "session", SessionProjector.version)


def run(bench: Bench) -> Iterator[Result]:
    """Redis, then the databases."""
    yield from _redis(bench)
    yield from _dead(bench)
    for kind, whole, window in (("SQLite", 3e-3, 120e-6), ("Postgres", 6e-3, 250e-6)):
        yield from _cold(bench, kind, whole, window)


# ------------------------------------------------------------------------------------------ Redis


def _redis(bench: Bench) -> Iterator[Result]:
    url = bench.long("SQLite", _TURNS)
    plain = RedisCache(bench.redis(), memory=MemoryCache(0), prefix="plain")
    signed = RedisCache(bench.redis(), memory=MemoryCache(0), prefix="signed", secret=_SECRET)
    with ExitStack() as stack:
        caches = {"plain": plain, "signed": signed}
        sessions = {
            name: stack.enter_context(Sessions.open(url, cache=cache, durable=False))
            for name, cache in caches.items()
        }
        for one in sessions.values():
            one.load(SESSION)
        raw = stack.enter_context(closing(redis.Redis.from_url(bench.redis(), socket_read_size=1 << 20)))
        yield from _refresh(bench, caches, raw)
        yield from _window(bench, sessions, raw)
        yield from _whole(bench, sessions, raw)


def _refresh(bench: Bench, caches: dict[str, RedisCache], raw: redis.Redis) -> Iterator[Result]:
    """A turn more, in a session of a thousand, again and again."""
    contenders: dict[str, Block] = {
        name: each(_putting(SharedTier(cache)), _folded()) for name, cache in caches.items()
    }
    contenders["raw"] = each(_pushing(raw), (turn.payloads() for turn in workload.turns(1_000_000)))
    timings = interleave(contenders, rounds=20 if bench.quick else 60, block=_BLOCK, warmup=2)
    yield _within("P5", "Redis: refresh after a turn", timings, "plain", "raw", 80e-6)
    yield timings.result("P5", "  signed", "signed", "raw")


def _folded() -> Iterator[tuple[Snapshot, Snapshot]]:
    """Pairs of snapshots, the second a turn further than the first."""
    with Sessions.open("memory:", durable=False) as sessions:
        workload.record(sessions, SESSION, _TURNS)
        before = sessions._loader.current(SESSION, SessionProjector())
        for turn in workload.turns(1_000_000, _TURNS):
            sessions.append(SESSION, turn.drafts())
            after = sessions._loader.current(SESSION, SessionProjector())
            yield before, after
            before = after


def _putting(tier: SharedTier) -> Callable[[tuple[Snapshot, Snapshot]], None]:
    codec = codec_of(SessionProjector())
    assert codec is not None
    begun = False

    def put(pair: tuple[Snapshot, Snapshot]) -> None:
        nonlocal begun
        if not begun:
            tier.redis.purge(_KEY.namespace, _KEY.session_id, 0)
            tier.put(_KEY, codec, pair[0], None)
            begun = True
        tier.put(_KEY, codec, pair[1], pair[0])

    return put


def _pushing(raw: redis.Redis) -> Callable[[list[tuple[str, bytes]]], None]:
    def push(payloads: list[tuple[str, bytes]]) -> None:
        with raw.pipeline(transaction=False) as pipeline:
            pipeline.rpush("raw", b"".join(payload for _, payload in payloads))
            pipeline.hset("raw-head", "version", 1)
            pipeline.execute()

    return push


def _window(bench: Bench, sessions: dict[str, Sessions], raw: redis.Redis) -> Iterator[Result]:
    payloads = [turn.payloads() for turn in workload.turns(_TURNS)]
    raw.delete("turns")
    for payload in payloads:
        raw.rpush("turns", b"".join(body for _, body in payload))
    contenders: dict[str, Block] = {name: _asking(one, last_turns=10) for name, one in sessions.items()}
    contenders["raw"] = each(lambda _: raw.lrange("turns", -10, -1), repeat(None))
    timings = interleave(contenders, rounds=20 if bench.quick else 60, block=_BLOCK)
    yield _within("P5", "Redis: the last 10 turns, checked against the log", timings, "plain", "raw", 100e-6)
    yield timings.result("P5", "  signed", "signed", "raw")


def _whole(bench: Bench, sessions: dict[str, Sessions], raw: redis.Redis) -> Iterator[Result]:
    contenders: dict[str, Block] = {name: each(one.load, repeat(SESSION)) for name, one in sessions.items()}
    contenders["raw"] = each(lambda _: raw.lrange("turns", 0, -1), repeat(None))
    timings = interleave(contenders, rounds=10 if bench.quick else 30, block=3)
    what = f"Redis: a whole session of {_TURNS:,} turns"
    yield _within("P5", what, timings, "plain", "raw", 3.5e-3)
    yield _within("P5", "  signed", timings, "signed", "raw", 5.0e-3)


def _dead(bench: Bench) -> Iterator[Result]:
    """A turn is appended and loaded while Redis is paused, which is the worst that it can do."""
    rounds = 30 if bench.quick else 100
    with servers.redis_process() as process, ExitStack() as stack:
        cache = RedisCache(process.url)
        opened = {
            "without": stack.enter_context(Sessions.open(f"sqlite:///{bench.sqlite()}", durable=False)),
            "paused": stack.enter_context(
                Sessions.open(f"sqlite:///{bench.sqlite()}", cache=cache, durable=False)
            ),
        }
        for one in opened.values():
            workload.record(one, SESSION, 100)
            one.load(SESSION)
        process.pause()
        contenders = {
            name: each(_turn(one), (turn.drafts() for turn in workload.turns(1_000_000, 100)))
            for name, one in opened.items()
        }
        timings = interleave(contenders, rounds=rounds, block=_BLOCK, warmup=0)
        process.resume()
    p99 = {name: quantiles(taken)["p99"] for name, taken in timings.all.items()}
    extra = p99["paused"] - p99["without"]
    yield Result(
        "P5", "a paused Redis: what it adds to the p99 of a turn with its load", duration(max(extra, 0.0)),
        duration(p99["without"]), None, "≤ 5 ms", extra <= 5e-3,
        {"paused_p99_s": p99["paused"], "without_p99_s": p99["without"]},
    )  # fmt: skip


def _turn(sessions: Sessions) -> Callable[[list[Draft]], None]:
    def turn(drafts: list[Draft]) -> None:
        sessions.append(SESSION, drafts)
        sessions.load(SESSION)

    return turn


# ------------------------------------------------------------------------------------- cold starts


def _cold(bench: Bench, kind: str, whole: float, window: float) -> Iterator[Result]:
    url = bench.long(kind, _TURNS)
    with (
        Sessions.open(url, cache=MemoryCache(0)) as stored,
        Sessions.open(url, cache=MemoryCache(0), durable=False) as folding,
    ):
        stored.load(SESSION)
        stored._loader.settle()
        with floors.recording() as tape, Sessions.open(url, cache=MemoryCache(0)) as seen:
            seen.load(SESSION)
            tape.clear()
            seen.load(SESSION)
            asked = list(tape)
        contenders: dict[str, Block] = {
            "stored": each(stored.load, repeat(SESSION)),
            "folding": each(folding.load, repeat(SESSION)),
            "raw": each(_replaying(kind, url, asked), repeat(None)),
        }
        timings = interleave(contenders, rounds=6 if bench.quick else 20, block=3)
        what = f"cold load of {_TURNS:,} turns with stored snapshots, {kind}"
        yield _within("P6", what, timings, "stored", "raw", whole)
        yield timings.result("P6", "  beside folding all events", "stored", "folding")
        contenders = {"stored": _asking(stored, last_turns=10), "folding": _asking(folding, last_turns=10)}
        timings = interleave(contenders, rounds=10 if bench.quick else 30, block=5)
        what = f"cold, the last 10 turns, {kind}"
        yield _within("P6", what, timings, "stored", "folding", window)


def _replaying(kind: str, url: str, asked: list[floors.Call]) -> Callable[[None], None]:
    """The same statements on a bare connection."""
    if kind == "SQLite":
        connection = floors.sqlite_ours(floors.sqlite_path(url))
        return lambda _: [connection.execute(*call).fetchall() for call in asked] and None
    cursor = floors.postgres_ours(url)
    return lambda _: [cursor.execute(*call).fetchall() for call in asked] and None


def _asking(sessions: Sessions, **window: Any) -> Block:
    return each(lambda _: sessions.history(SESSION, **window), repeat(None))


def _within(question: str, what: str, timings: Timings, name: str, floor: str, at_most: float) -> Result:
    took, bare = timings.median(name), timings.median(floor)
    return Result(
        question, what, duration(took), duration(bare), timings.ratio(name, floor),
        f"≤ {duration(at_most)}", took <= at_most, {"ours_s": took, "floor_s": bare, "at_most_s": at_most},
    )  # fmt: skip
