"""P3: does a turn cost more in a long session than in a short one?

A turn is appended, folded into the view and kept in the memory cache, which is what an agent does
after every turn. The short sessions are in a small database, the long one in a large database.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

from benchmarks import workload
from benchmarks.load import CACHE_BYTES, LONG, QUICK
from benchmarks.measure import Bench, Result, each, interleave, quantiles
from benchmarks.workload import SESSION
from kern_events import Draft
from projections import MemoryCache, Sessions

_SHORT: Final = 10
_BLOCK: Final = 8


def run(bench: Bench) -> Iterator[Result]:
    """SQLite, then Postgres."""
    long = QUICK if bench.quick else LONG
    for kind in ("SQLite", "Postgres"):
        yield _compared(bench, kind, long)


def _compared(bench: Bench, kind: str, long: int) -> Result:
    rounds, warmup = 25 if bench.quick else 80, 2
    url = f"sqlite:///{bench.sqlite()}" if kind == "SQLite" else bench.postgres()
    with (
        Sessions.open(url) as few,
        Sessions.open(bench.long(kind, long), cache=MemoryCache(CACHE_BYTES)) as many,
    ):
        names = [f"session-{number:04}" for number in range(rounds + warmup)]
        for name in names:
            workload.record(few, name, _SHORT)
            few.load(name)
        many.load(SESSION)
        bench.analyse(url)
        each_name = itertools.chain.from_iterable([name] * _BLOCK for name in names)
        timings = interleave(
            {
                "short": each(lambda one: _turn(few, one), _named(each_name, _SHORT)),
                "long": each(lambda one: _turn(many, one), _named(itertools.repeat(SESSION), long)),
            },
            rounds=rounds,
            block=_BLOCK,
            warmup=warmup,
        )
    what = f"append, fold and cache a turn at {long:,} turns / at {_SHORT}, {kind}"
    numbers = {name: quantiles(taken) for name, taken in timings.all.items()}
    return timings.result("P3", what, "long", "short", 1.05)._replace(numbers=numbers)


def _turn(sessions: Sessions, one: tuple[str, list[Draft]]) -> None:
    name, drafts = one
    version = sessions.append(name, drafts).version
    assert sessions.load(name).head.version == version


def _named(names: Iterator[str], first: int) -> Iterator[tuple[str, list[Draft]]]:
    """Turns to append, each with its session."""
    drafts = (turn.drafts() for turn in workload.turns(1_000_000, first))
    return zip(names, drafts, strict=False)
