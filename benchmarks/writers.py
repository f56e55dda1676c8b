"""P10: how many turns a second do 8 writer processes append to one Postgres, each to its own sessions?

The guard takes a row lock of one session only, so writers should not notice one another. Each round
runs all processes with bare inserts, then all with the log, or the other way round.
"""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, Final

from benchmarks import floors, workload
from benchmarks.measure import Bench, Result, quantiles
from kern_events import SessionLog

_WRITERS: Final = 8
_SESSIONS: Final = 4  # of each writer, in turns

Taken = tuple[float, float, list[float]]


def run(bench: Bench) -> Iterator[Result]:
    """Guarded appends beside bare inserts by as many processes."""
    rounds, turns = (5, 100) if bench.quick else (15, 300)
    spawn = multiprocessing.get_context("spawn")
    url, barrier = bench.postgres(), spawn.Barrier(_WRITERS)
    with SessionLog(url) as log:
        log.migrate()
    floors.postgres_bare(url).connection.close()
    pipes, processes = [], []
    for number in range(_WRITERS):
        pipe, theirs = spawn.Pipe()
        process = spawn.Process(target=_writer, args=(number, url, theirs, barrier), daemon=True)
        process.start()
        pipes.append(pipe)
        processes.append(process)
    rates: dict[str, list[float]] = {"log": [], "raw": []}
    single: dict[str, list[float]] = {"log": [], "raw": []}
    for number in range(-1, rounds):
        if number == 0:
            bench.analyse(url)
        for mode in ("log", "raw") if number % 2 else ("raw", "log"):
            rate, taken = _round(pipes, mode, turns)
            if number >= 0:
                rates[mode].append(rate)
                single[mode] += taken
    for pipe in pipes:
        pipe.send(None)
    for process in processes:
        process.join()
    yield _result(rates, single)


def _round(pipes: list[Connection[Any, Any]], mode: str, turns: int) -> tuple[float, list[float]]:
    for pipe in pipes:
        pipe.send((mode, turns))
    answers: list[Taken] = [pipe.recv() for pipe in pipes]
    began, ended = min(one[0] for one in answers), max(one[1] for one in answers)
    return _WRITERS * turns / (ended - began), [one for answer in answers for one in answer[2]]


def _result(rates: dict[str, list[float]], single: dict[str, list[float]]) -> Result:
    ours, raw = (statistics.median(rates[mode]) for mode in ("log", "raw"))
    ratio = statistics.median(a / b for a, b in zip(rates["log"], rates["raw"], strict=True))
    numbers = {
        "turns_per_s": ours, "raw_turns_per_s": raw,
        "log_s": quantiles(single["log"]), "raw_s": quantiles(single["raw"]),
    }  # fmt: skip
    return Result(
        "P10", f"{_WRITERS} writer processes, Postgres, guarded appends",
        f"{ours:,.0f} turns/s", f"{raw:,.0f} turns/s", ratio, "≥ 0.50x", ratio >= 0.5, numbers,
    )  # fmt: skip


def _writer(number: int, url: str, pipe: Connection[Any, Any], barrier: Any) -> None:
    """A process: does a round whenever it is told to, and says when and how long."""
    sessions = itertools.cycle([f"session-{number}-{own}" for own in range(_SESSIONS)])
    versions: dict[str, int] = {}
    cursor, insert = floors.postgres_bare(url), floors.postgres_insert(8)
    with SessionLog(url) as log:
        while order := pipe.recv():
            mode, turns = order
            ready: list[tuple[Callable[..., Any], Any, Any]] = []
            for turn in workload.turns(turns):
                session = next(sessions)
                if mode == "log":
                    ready.append((log.append, session, turn.drafts()))
                else:
                    after = versions.get(session, 0)
                    ready.append(
                        (cursor.execute, insert, floors.flat(floors.bare_rows(session, turn, after)))
                    )
                    versions[session] = after + 8
            barrier.wait()
            pipe.send(_timed(ready))
    cursor.connection.close()


def _timed(ready: list[tuple[Callable[..., Any], Any, Any]]) -> Taken:
    taken = []
    began = last = time.monotonic()
    for operation, first, second in ready:
        operation(first, second)
        now = time.monotonic()
        taken.append(now - last)
        last = now
    return began, last, taken
