"""P3: does a turn cost more in a long session than in a short one?

A turn is appended, folded into the view and kept in memory and in Redis, which is what an agent does
after every turn. The short sessions are in a small database, the long one in a large database. The
snapshots that are stored in the database now and then are left out, and reported beside it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Final

from benchmarks import workload
from benchmarks.load import CACHE_BYTES, LONG, QUICK
from benchmarks.measure import Bench, Result, duration, each, interleave, quantiles
from benchmarks.workload import SESSION
from kern_events import Draft
from projections import MemoryCache, RedisCache, SessionProjector, Sessions
from projections.stored import codec_of

_SHORT: Final = 10
_BLOCK: Final = 8


def run(bench: Bench) -> Iterator[Result]:
    """SQLite, then Postgres."""
    long = QUICK if bench.quick else LONG
    for kind in ("SQLite", "Postgres"):
        yield _compared(bench, kind, long)
        yield _stored(bench, kind, long)


def _compared(bench: Bench, kind: str, long: int) -> Result:
    rounds, warmup = 25 if bench.quick else 80, 2
    url = f"sqlite:///{bench.sqlite()}" if kind == "SQLite" else bench.postgres()
    with (
        Sessions.open(url, cache=_cache(bench, f"{kind}-few"), durable=False) as few,
        Sessions.open(bench.long(kind, long), cache=_cache(bench, f"{kind}-many"), durable=False) as many,
    ):
        names = [f"session-{number:04}" for number in range(rounds + warmup)]
        for name in names:
            workload.record(few, name, _SHORT)
            few.load(name)
        _fill(many, next_turn := itertools.count(long))
        bench.analyse(url)
        each_name = itertools.chain.from_iterable([name] * _BLOCK for name in names)
        timings = interleave(
            {
                "short": each(lambda one: _turn(few, one), _named(each_name, _SHORT)),
                "long": each(
                    lambda one: _turn(many, one), _named(itertools.repeat(SESSION), next(next_turn))
                ),
            },
            rounds=rounds,
            block=_BLOCK,
            warmup=warmup,
        )
    what = f"append, fold, cache in memory and Redis at {long:,} turns / at {_SHORT}, {kind}"
    numbers = {name: quantiles(taken) for name, taken in timings.all.items()}
    return timings.result("P3", what, "long", "short", 1.05)._replace(numbers=numbers)


def _stored(bench: Bench, kind: str, long: int) -> Result:
    """The same turns with snapshots stored in the database, over enough turns for several of them."""
    url, turns, taken = bench.long(kind, long), 60, {False: 0.0, True: 0.0}
    rounds = 3 if bench.quick else 8
    for durable in [False, True] * rounds:
        with Sessions.open(url, cache=MemoryCache(CACHE_BYTES), durable=durable) as sessions:
            first = sessions.load(SESSION).turn
            sessions._loader.settle()
            some = list(itertools.islice(_named(itertools.repeat(SESSION), first), turns))
            started = time.perf_counter()
            for one in some:
                _turn(sessions, one)
            sessions._loader.settle()
            taken[durable] += (time.perf_counter() - started) / turns / rounds
    share = taken[True] - taken[False]
    return Result(
        "P3", f"  of it snapshots stored in {kind}, amortised", duration(share), duration(taken[False]),
        taken[True] / taken[False], numbers={"with_s": taken[True], "without_s": taken[False]},
    )  # fmt: skip


def _cache(bench: Bench, prefix: str) -> RedisCache:
    return RedisCache(bench.redis(), prefix=prefix, memory=MemoryCache(CACHE_BYTES), timeout_s=1.0)


def _fill(sessions: Sessions, numbers: Iterator[int]) -> None:
    """Turns until all of a long session is in Redis: a call writes a few MiB of it at the most."""
    sessions.load(SESSION)
    shared = sessions._loader.shared
    assert shared is not None
    codec = codec_of(SessionProjector())
    assert codec is not None
    key = sessions._loader.key(SESSION, SessionProjector())
    while shared.get(key, codec, lazily=True) is None:
        _turn(sessions, (SESSION, workload.turn(next(numbers)).drafts()))


def _turn(sessions: Sessions, one: tuple[str, list[Draft]]) -> None:
    name, drafts = one
    version = sessions.append(name, drafts).version
    assert sessions.load(name).head.version == version


def _named(names: Iterator[str], first: int) -> Iterator[tuple[str, list[Draft]]]:
    """Turns to append, each with its session."""
    drafts = (turn.drafts() for turn in workload.turns(1_000_000, first))
    return zip(names, drafts, strict=False)
