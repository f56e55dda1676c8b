"""Did a change make the usual paths slower? `python -m benchmarks.paired OTHER` compares two checkouts.

Each checkout has a worker process with databases of its own; the workers take turns in short blocks, so
that whatever else the machine does hits both alike. P1 and P2 append a turn, P3 is an append and the load
after it with Redis, P4 a load that finds nothing new. The ratio is this checkout's time over the other's.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

_HERE: Final = Path(__file__).resolve().parent.parent
_QUESTIONS: Final = {
    "P1": "append a turn, SQLite",
    "P2": "append a turn, Postgres",
    "P3": "append, fold, memory and Redis, SQLite",
    "P3 pg": "append, fold, memory and Redis, Postgres",
    "P4": "warm load at 1,000 turns, SQLite",
    "P4 pg": "warm load at 1,000 turns, Postgres",
}
_BLOCKS: Final = {"P4": 500, "P4 pg": 60}
_BLOCK: Final = 40
_WORKER: Final = "--worker"
_TURNS: Final = 1_000


def main() -> int:
    """Print the ratio of each question; 1 if one is above the limit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paired", description=__doc__)
    parser.add_argument("other", type=Path, help="the other checkout, as of before the change")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of those above; all by default")
    parser.add_argument("--rounds", type=int, default=60, help="pairs of blocks for each question")
    parser.add_argument("--limit", type=float, default=1.03)
    options = parser.parse_args()
    from benchmarks.measure import Bench

    slower = False
    with Bench() as bench, ExitStack() as stack:
        sides = [
            stack.enter_context(_worker(root, f"sqlite:///{bench.sqlite()}", bench.postgres(), bench.redis()))
            for root in (_HERE, options.other.resolve())
        ]
        for name in options.names or _QUESTIONS:
            what = _QUESTIONS[name]
            ratio, low, high, ours = _compared(sides, name, options.rounds)
            slower |= ratio > options.limit
            figures = f"{ours * 1e6:9.1f} µs   {ratio:.3f}  ({low:.3f} to {high:.3f})"
            print(f"{name:6}{what:44}{figures}", flush=True)
    return int(slower)


def _compared(
    sides: Sequence[Callable[[str], float]], name: str, rounds: int
) -> tuple[float, float, float, float]:
    """The median ratio, its quartiles, and our median time for one operation."""
    ratios, ours = [], []
    for ask in sides:
        ask(name)  # Warms up.
    for number in range(rounds):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        taken = {side: sides[side](name) for side in order}
        ratios.append(taken[0] / taken[1])
        ours.append(taken[0])
    low, _, high = statistics.quantiles(ratios, n=4)
    return statistics.median(ratios), low, high, statistics.median(ours)


@contextmanager
def _worker(root: Path, sqlite: str, postgres: str, redis: str) -> Iterator[Callable[[str], float]]:
    """Asks a worker that imports a checkout for a block: the median seconds of one operation."""
    command = [sys.executable, str(Path(__file__).resolve()), _WORKER, sqlite, postgres, redis, root.name]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(name: str) -> float:
            print(name, file=process.stdin, flush=True)
            return float(process.stdout.readline())

        yield ask
        process.stdin.close()


def _work(sqlite: str, postgres: str, redis: str, prefix: str) -> None:
    """A worker: answers each name on standard input with the median time of a block of it."""
    import workload  # Beside this file; kern_events is the checkout's that is measured.

    from kern_events import Sessions
    from projections.caches import RedisCache

    numbers = itertools.count()
    logs = {"": Sessions.open(sqlite), " pg": Sessions.open(postgres)}
    cached = {
        end: Sessions.open(url, cache=RedisCache(redis, prefix=f"{prefix}{end.strip()}"))
        for end, url in (("", sqlite), (" pg", postgres))
    }
    for end, log in logs.items():
        workload.record(log, "long", _TURNS)
        workload.record(log, f"short{end}", 10)
        log.load("long")

    def append_to(end: str) -> Callable[[Any], Any]:
        return lambda drafts: logs[end].append("appended", drafts)

    def load_from(end: str) -> Callable[[Any], Any]:
        return lambda _: logs[end].load("long")

    def refresh_of(end: str) -> Callable[[Any], Any]:
        def refresh(drafts: Any) -> None:
            cached[end].append("short" + end, drafts)
            cached[end].load("short" + end)

        return refresh

    acts = {
        "P1": append_to(""), "P2": append_to(" pg"), "P3": refresh_of(""), "P3 pg": refresh_of(" pg"),
        "P4": load_from(""), "P4 pg": load_from(" pg"),
    }  # fmt: skip
    for line in sys.stdin:
        name = line.strip()
        given = [workload.turn(next(numbers)).drafts() for _ in range(_BLOCKS.get(name, _BLOCK))]
        taken = []
        for drafts in given:
            before = time.perf_counter()
            acts[name](drafts)
            taken.append(time.perf_counter() - before)
        print(statistics.median(taken), flush=True)


if __name__ == "__main__":
    sys.exit(_work(*sys.argv[2:]) if sys.argv[1:2] == [_WORKER] else main())
