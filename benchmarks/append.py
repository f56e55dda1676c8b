"""P1, P1b, P2: what does it cost to append a turn?

The log against the same statements with every value ready (what does the log compute?) and against
bare rows (what does it cost that the log is a log?). `python -m benchmarks.append --profile` prints
where the time goes, `--cprofile` what Python's profiler says.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import itertools
import pstats
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import pairwise
from types import ModuleType
from typing import Any, Final
from unittest import mock

from benchmarks import floors, workload
from benchmarks.measure import Bench, Block, Result, duration, each, interleave
from benchmarks.workload import SESSION, Turn
from kern_events import AsyncSessionLog, Draft, SessionLog
from kern_events import log as log_module
from kern_events.store import postgres as postgres_store
from kern_events.store import sqlite as sqlite_store

_BLOCK: Final = 8
_NUMBERS: Final = 1_000_000


def run(bench: Bench) -> Iterator[Result]:
    """All of them, SQLite first."""
    rounds = 40 if bench.quick else 150
    yield from _sqlite(bench, rounds)
    yield from _postgres(bench, rounds)


def _sqlite(bench: Bench, rounds: int) -> Iterator[Result]:
    statements = _recorded(f"sqlite:///{bench.sqlite()}", rounds)
    with (
        SessionLog(f"sqlite:///{bench.sqlite()}") as log,
        SessionLog(f"sqlite:///{bench.sqlite()}") as making,
        SessionLog(f"sqlite:///{bench.sqlite()}") as grouped,
        SessionLog(f"sqlite:///{bench.sqlite()}") as single,
    ):
        path = bench.sqlite()
        with SessionLog(f"sqlite:///{path}") as empty:
            empty.migrate()
        same, bare, split = floors.sqlite_ours(path), *(floors.sqlite_bare(bench.sqlite()) for _ in range(2))
        whole, parts = floors.sqlite_insert(8), {n: floors.sqlite_insert(n) for n in (1, 3)}

        def bare_in_four(rows: list[floors.Row]) -> None:
            for start, stop in _GROUPS:
                split.execute(parts[stop - start], floors.flat(rows[start:stop]))

        timings = interleave(
            {
                "ours": each(lambda drafts: log.append(SESSION, drafts), _drafts()),
                "with drafts": each(lambda turn: making.append(SESSION, turn.drafts()), _turns()),
                "same": each(lambda calls: floors.sqlite_replay(same, calls), statements),
                "bare": each(lambda values: bare.execute(whole, values), map(floors.flat, _rows())),
                "grouped": each(lambda turn: as_it_happens(grouped, turn), _turns()),
                "single": each(lambda turn: call_by_call(single, turn), _turns()),
                "bare in 4": each(bare_in_four, _rows()),
            },
            rounds=rounds,
            block=_BLOCK,
        )
        for connection in (same, bare, split):
            connection.close()
    what = "append a turn at once, SQLite FULL"
    yield timings.result("P1", f"{what}, same statements", "ours", "same", 1.20)
    yield timings.result("P1", f"{what}, bare rows", "ours", "bare", 2.00)
    yield timings.result("P1", "  making the drafts included, bare rows", "with drafts", "bare")
    yield timings.result("P1b", "the turn as it happens, 4 commits, bare rows in 4", "grouped", "bare in 4")
    yield timings.result("P1b", "  beside bare rows in 1 commit", "grouped", "bare")
    yield timings.result("P1b", "  one commit per call (8), bare rows in 1", "single", "bare")


def _postgres(bench: Bench, rounds: int) -> Iterator[Result]:
    url, replayed, plain, other = (bench.postgres() for _ in range(4))
    statements = _recorded(bench.postgres(), rounds)
    with SessionLog(url) as log, SessionLog(other) as grouped, asyncio.Runner() as runner:
        shared = AsyncSessionLog(url)
        with SessionLog(replayed) as empty:
            empty.migrate()
        same, bare = floors.postgres_ours(replayed), floors.postgres_bare(plain)
        insert = floors.postgres_insert(8)
        timings = interleave(
            {
                "ours": each(lambda drafts: log.append(SESSION, drafts), _drafts()),
                "async": _awaited(runner, shared),
                "same": each(lambda calls: floors.postgres_replay(same, calls), statements),
                "bare": each(lambda values: bare.execute(insert, values), map(floors.flat, _rows())),
                "grouped": each(lambda turn: as_it_happens(grouped, turn), _turns()),
            },
            rounds=rounds,
            block=_BLOCK,
            warmup=4,
            warm=lambda: bench.analyse(url, replayed, plain, other),
        )
        runner.run(shared.close())
        same.connection.close()
        bare.connection.close()
    what = "append a turn at once, Postgres, head known"
    yield timings.result("P2", f"{what}, same statement", "ours", "same", 1.25)
    yield timings.result("P2", f"{what}, bare rows", "ours", "bare", 1.80)
    yield timings.result("P2", "  awaited, bare rows", "async", "bare", 2.20)
    yield timings.result("P2", "  the turn as it happens, 4 commits, bare rows in 1", "grouped", "bare")


# Which events share a commit when a turn is recorded as it happens: it starts, the model asks for a
# tool (recorded before the tool runs), the tool's result leads to the answer, the turn ends.
_GROUPS: Final = ((0, 1), (1, 4), (4, 7), (7, 8))


def as_it_happens(log: SessionLog, turn: Turn) -> None:
    """A turn in 4 commits, as an application would group them."""
    drafts = turn.drafts()
    with log.turn(SESSION, agent_id="travel-desk", run_id=turn.call_id[5:]) as recorder:
        recorder.record(*drafts[1:4])
        recorder.record(*drafts[4:7])
        recorder.complete(usage=turn.usage)


def call_by_call(log: SessionLog, turn: Turn) -> None:
    """A turn with a commit for every call on the recorder."""
    with log.turn(SESSION, agent_id="travel-desk", run_id=turn.call_id[5:]) as recorder:
        recorder.message("user", turn.asked)
        recorder.message("assistant", None, tool_calls=[turn.tool_call()])
        recorder.tool_call("search_flights", call_id=turn.call_id)
        recorder.tool_result(turn.call_id, turn.result, duration_s=0.184)
        recorder.message("assistant", turn.answered)
        recorder.set_state("booking", turn.booking)
        recorder.complete(usage=turn.usage)


def _recorded(url: str, rounds: int) -> Iterator[list[floors.Call]]:
    """What the log sends, append by append, for a replay in an equal database."""
    appends = []
    with floors.recording() as tape, SessionLog(url) as log:
        log.migrate()
        for turn in workload.turns(_BLOCK * (rounds + 4)):
            tape.clear()
            log.append(SESSION, turn.drafts())
            appends.append([call for call in tape if "PRAGMA" not in call[0]])
    return iter(appends)


def _awaited(runner: asyncio.Runner, log: AsyncSessionLog) -> Block:
    drafts = _drafts()

    async def appends(count: int) -> list[float]:
        taken = []
        for some in list(itertools.islice(drafts, count)):
            started = time.perf_counter()
            await log.append("session-async", some)
            taken.append(time.perf_counter() - started)
        return taken

    return lambda count: runner.run(appends(count))


def _turns() -> Iterator[Turn]:
    return workload.turns(_NUMBERS)


def _drafts() -> Iterator[list[Draft]]:
    return (turn.drafts() for turn in _turns())


def _rows() -> Iterator[list[floors.Row]]:
    return (floors.bare_rows(SESSION, turn, 8 * number) for number, turn in enumerate(_turns()))


# -------------------------------------------------------------------------------------- profiles


class _Marks:
    """When each part of an append began, by which the time is shared out."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, str]] = []
        self.taken: dict[str, list[float]] = defaultdict(list)

    def inside(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time counted as its own."""

        def marked(*args: Any, **kwargs: Any) -> Any:
            self.marks.append((time.perf_counter(), name))
            try:
                return function(*args, **kwargs)
            finally:
                self.marks.append((time.perf_counter(), f"  after {name}"))

        return marked

    def whole(self, operation: Callable[[], object]) -> None:
        """Do one append and share out its time."""
        self.marks = [(time.perf_counter(), "  before all")]
        operation()
        ended = time.perf_counter()
        self.taken["append"].append(ended - self.marks[0][0])
        for (at, name), (until, _) in pairwise([*self.marks, (ended, "")]):
            self.taken[name].append(until - at)


def _print_profile(bench: Bench) -> None:
    for store, url in ((sqlite_store, f"sqlite:///{bench.sqlite()}"), (postgres_store, bench.postgres())):
        marks = _marked(bench, store, url)
        whole = statistics.median(marks.taken.pop("append"))
        print(f"\n{store.__name__}: append {duration(whole)}; the medians of its parts:")
        for step, taken in marks.taken.items():
            if len(taken) > 100:
                part = statistics.median(taken)
                print(f"  {step:42} {part * 1e6:7.1f} µs {part / whole:6.1%}")


def _marked(bench: Bench, store: ModuleType, url: str) -> _Marks:
    """Appends with their parts marked, in turns with bare rows as in the benchmark."""
    marks, insert = _Marks(), floors.sqlite_insert(8)
    with ExitStack() as stack:
        for module, step in ((log_module, "prepare"), (store, "link")):
            stack.enter_context(mock.patch.object(module, step, marks.inside(step, getattr(module, step))))
        stack.enter_context(floors.recording(marks.inside))
        log = stack.enter_context(SessionLog(url))
        bare = stack.enter_context(closing(floors.sqlite_bare(bench.sqlite())))
        interleave(
            {
                "append": each(lambda some: marks.whole(lambda: log.append(SESSION, some)), _drafts()),
                "bare": each(lambda values: bare.execute(insert, values), map(floors.flat, _rows())),
            },
            rounds=150,
            block=_BLOCK,
        )
    return marks


def _print_cprofile(bench: Bench) -> None:
    for url in (f"sqlite:///{bench.sqlite()}", bench.postgres()):
        with SessionLog(url) as log:
            some = list(itertools.islice(_drafts(), 3_000))
            profile = cProfile.Profile()
            for number, drafts in enumerate(some):
                if number == 200:
                    profile.enable()
                log.append(SESSION, drafts)
            profile.disable()
            pstats.Stats(profile).sort_stats("tottime").print_stats(30)


def main() -> None:
    """The profiles of P1 and P2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.append", description=__doc__)
    parser.add_argument("--profile", action="store_true", help="each step within the append (the default)")
    parser.add_argument(
        "--cprofile", action="store_true", help="by Python's profiler, which inflates small calls"
    )
    options = parser.parse_args()
    with Bench() as bench:
        (_print_cprofile if options.cprofile else _print_profile)(bench)


if __name__ == "__main__":
    main()
