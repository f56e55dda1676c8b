"""P11: what does group commit give 64 concurrent sessions of one process, on SQLite FULL?

Measured in a child process, twice: on the disk as it is, and with 2 ms added to each fsync by a small
library that is compiled on the spot, for disks are seldom as fast as the virtual one of a test machine.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks import floors, workload
from benchmarks.measure import Bench, Result
from kern_events import AsyncSessionLog, Draft, SessionLog

_SESSIONS: Final = 64
_ADDED_S: Final = 0.002
_MODES: Final = ("one by one", "threads", "tasks", "bare")
_SLOW_FSYNC: Final = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>

static int after(const char *name, int file) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    usleep(2000);
    return real(file);
}

int fsync(int file) { return after("fsync", file); }
int fdatasync(int file) { return after("fdatasync", file); }
"""

Appends = list[tuple[str, list[Draft]]]


def run(bench: Bench) -> Iterator[Result]:
    """On this disk, then on one that is slower by 2 ms."""
    yield from _results(_child(bench, {}), "", 1.4)
    library = _compiled(bench.folder)
    if library is None:
        yield Result(
            "P11", "with 2 ms added to each fsync", "", target="≥ 5.00x", numbers={"skipped": "no gcc"}
        )
        return
    slow = _child(bench, {"LD_PRELOAD": str(library)})
    if slow["fdatasync_s"] < _ADDED_S:
        yield Result("P11", "with 2 ms added to each fsync: it did not take", "", target="≥ 5.00x")
        return
    yield from _results(slow, ", 2 ms added to fsync", 5.0)


def _results(measured: dict[str, Any], disk: str, at_least: float) -> Iterator[Result]:
    rates, fdatasync_s = measured["rates"], measured["fdatasync_s"]
    for mode, what in (("threads", "64 threads"), ("tasks", "asyncio, 64 tasks")):
        ratio = statistics.median(a / b for a, b in zip(rates[mode], rates["one by one"], strict=True))
        ours, alone, bare = (statistics.median(rates[name]) for name in (mode, "one by one", "bare"))
        yield Result(
            "P11", f"{_SESSIONS} sessions, SQLite FULL, {what} / one by one{disk}",
            f"{ours:,.0f} turns/s", f"{alone:,.0f} turns/s", ratio,
            f"≥ {at_least:.2f}x", ratio >= at_least,
            {"turns_per_s": ours, "one_by_one": alone, "bare_one_by_one": bare, "fdatasync_s": fdatasync_s},
        )  # fmt: skip


def _compiled(folder: Path) -> Path | None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    source, library = folder / "slow_fsync.c", folder / "slow_fsync.so"
    source.write_text(_SLOW_FSYNC)
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
    return library if subprocess.run(command, capture_output=True).returncode == 0 else None


def _child(bench: Bench, environment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.group_commit", str(bench.folder), str(int(bench.quick))]
    answer = subprocess.run(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, check=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    measured: dict[str, Any] = json.loads(answer.stdout)
    return measured


# ------------------------------------------------------------------------------------- the child


def _measure(bench: Bench) -> dict[str, Any]:
    fdatasync_s = bench.fdatasync_s()
    rounds, each = (4, 2) if bench.quick else (11, 6)
    logs = {mode: SessionLog(f"sqlite:///{bench.sqlite()}") for mode in _MODES[:3]}
    bare = floors.sqlite_bare(bench.sqlite())
    insert = floors.sqlite_insert(8)
    rates: dict[str, list[float]] = {mode: [] for mode in _MODES}
    turns = workload.turns(1_000_000)
    versions = itertools.count(0, 8)
    for number in range(-1, rounds):
        for mode in _MODES[number % 4 :] + _MODES[: number % 4]:
            some = list(itertools.islice(turns, _SESSIONS * each))
            if mode == "bare":
                rows = [floors.flat(floors.bare_rows("session", turn, next(versions))) for turn in some]
                began = time.perf_counter()
                for values in rows:
                    bare.execute(insert, values)
            else:
                appends = [(f"session-{i % _SESSIONS}", turn.drafts()) for i, turn in enumerate(some)]
                began = time.perf_counter()
                began += _HOW[mode](logs[mode], appends)
            rate = len(some) / (time.perf_counter() - began)
            if number >= 0:
                rates[mode].append(rate)
    for log in logs.values():
        log.close()
    return {"fdatasync_s": fdatasync_s, "rates": rates}


def _one_by_one(log: SessionLog, appends: Appends) -> float:
    for session, drafts in appends:
        log.append(session, drafts)
    return 0.0


def _threads(log: SessionLog, appends: Appends) -> float:
    """Returns what starting the threads took, which is no part of it."""
    gate = threading.Barrier(_SESSIONS + 1)

    def session(own: Appends) -> None:
        gate.wait()
        for name, drafts in own:
            log.append(name, drafts)

    began = time.perf_counter()
    threads = [threading.Thread(target=session, args=(appends[i::_SESSIONS],)) for i in range(_SESSIONS)]
    for thread in threads:
        thread.start()
    gate.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    return started - began


def _tasks(log: SessionLog, appends: Appends) -> float:
    shared = AsyncSessionLog(log)

    async def session(own: Appends) -> None:
        for name, drafts in own:
            await shared.append(name, drafts)

    async def everybody() -> float:
        started = time.perf_counter()
        await asyncio.gather(*(session(appends[i::_SESSIONS]) for i in range(_SESSIONS)))
        return started

    began = time.perf_counter()
    return asyncio.run(everybody()) - began


_HOW: Final = {"one by one": _one_by_one, "threads": _threads, "tasks": _tasks}


if __name__ == "__main__":
    with Bench(quick=sys.argv[2] == "1") as child:
        print(json.dumps(_measure(child)))
