"""P4: what does it cost to load a session that this process has loaded before?

Every load asks the database whether the view is still right: the head and whatever is new, in one
query. So it is compared with that query on a bare connection, and on Postgres with the round trip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import repeat
from typing import Any, Final

from benchmarks import floors
from benchmarks.measure import Bench, Block, Result, Timings, duration, each, interleave
from benchmarks.workload import SESSION
from projections import MemoryCache, Sessions

LONG: Final = 100_000
QUICK: Final = 10_000
CACHE_BYTES: Final = 4 << 30  # The default keeps views of up to 256 MiB.
_BLOCK: Final = 50


def run(bench: Bench) -> Iterator[Result]:
    """At 1,000 turns and at as many as there is time for."""
    for turns in (1_000, QUICK if bench.quick else LONG):
        yield from _sqlite(bench, turns)
        yield from _postgres(bench, turns)


def _sqlite(bench: Bench, turns: int) -> Iterator[Result]:
    url = bench.long("SQLite", turns)
    asked = _asked(url)
    with (
        Sessions.open(url, cache=MemoryCache(CACHE_BYTES), durable=False) as sessions,
        closing(floors.sqlite_ours(floors.sqlite_path(url))) as connection,
    ):
        sessions.load(SESSION)
        bare = {"query": lambda: [connection.execute(*call).fetchall() for call in asked]}
        timings = _timed(bench, sessions, bare)
    yield _result("SQLite", turns, timings, "query", 10e-6, "≤ 10 µs")


def _postgres(bench: Bench, turns: int) -> Iterator[Result]:
    url = bench.long("Postgres", turns)
    asked = _asked(url)
    cursor = floors.postgres_ours(url)
    opened = Sessions.open(url, cache=MemoryCache(CACHE_BYTES), durable=False)
    with opened as sessions, closing(cursor.connection):
        sessions.load(SESSION)
        bare = {
            "query": lambda: [cursor.execute(*call).fetchall() for call in asked],
            "round trip": lambda: cursor.execute("SELECT 1").fetchall(),
        }
        timings = _timed(bench, sessions, bare)
    at_most = timings.median("round trip") + 15e-6
    yield _result("Postgres", turns, timings, "round trip", at_most, "≤ 1 trip + 15 µs")
    yield timings.result("P4", "  beside the same query, bare", "load", "query")


def _asked(url: str) -> list[floors.Call]:
    """What a warm load asks the database."""
    opened = Sessions.open(url, cache=MemoryCache(CACHE_BYTES), durable=False)
    with floors.recording() as tape, opened as sessions:
        sessions.load(SESSION)
        tape.clear()
        sessions.load(SESSION)
        return list(tape)


def _timed(bench: Bench, sessions: Sessions, bare: dict[str, Callable[[], Any]]) -> Timings:
    contenders: dict[str, Block] = {"load": each(sessions.load, repeat(SESSION))}
    for name, ask in bare.items():
        contenders[name] = each(_ignoring(ask), repeat(None))
    return interleave(contenders, rounds=30 if bench.quick else 100, block=_BLOCK)


def _ignoring(ask: Callable[[], Any]) -> Callable[[None], Any]:
    return lambda _: ask()


def _result(kind: str, turns: int, timings: Timings, floor: str, at_most: float, target: str) -> Result:
    load, bare = timings.median("load"), timings.median(floor)
    return Result(
        "P4", f"warm load at {turns:,} turns, freshness verified, {kind}", duration(load), duration(bare),
        timings.ratio("load", floor), target, load <= at_most,
        {"load_s": load, "at_most_s": at_most, **{f"{name}_s": timings.median(name) for name in timings.all}},
    )  # fmt: skip
