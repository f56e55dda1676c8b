"""How time is taken, and what a question answers.

Contenders take turns in short blocks within one run, so that whatever else the machine does hits all
of them alike; a figure is the median over all operations, a ratio the median of the rounds' ratios.
"""

from __future__ import annotations

import itertools
import os
import platform
import random
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, TypeVar

import psycopg

from benchmarks import workload
from kern_events import SessionLog
from tests import servers

_PACKAGES: Final = ("sqlalchemy", "psycopg", "orjson", "msgspec", "redis", "kern-events")

T = TypeVar("T")
Block = Callable[[int], list[float]]
"""Do so many operations; the seconds that each of them took."""


class Result(NamedTuple):
    """One line of the table. `held` is None where there is no target, `numbers` is for the JSON."""

    question: str
    what: str
    ours: str
    floor: str = ""
    ratio: float | None = None
    target: str = ""
    held: bool | None = None
    numbers: Mapping[str, Any] = {}


class Bench:
    """Where a run takes place: folders on the disk, a Postgres of its own, and how long it may take."""

    def __init__(self, *, quick: bool = False) -> None:
        self.quick = quick
        self._stack = ExitStack()
        self._made = itertools.count()
        self._files: list[Path] = []
        self._databases: list[str] = []
        self._long: dict[tuple[str, int], str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(subprocess.TimeoutExpired):  # A slow disk: the server goes on stopping by itself.
            self._stack.close()

    @cached_property
    def folder(self) -> Path:
        """A new folder, removed at the end."""
        return Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="kern-benchmarks-")))

    @cached_property
    def _postgres(self) -> str:
        return self._stack.enter_context(servers.postgres(servers.find_postgres(), durable=True))

    @cached_property
    def _redis(self) -> str:
        return self._stack.enter_context(servers.redis())

    def redis(self) -> str:
        """The URL of a Redis, the same for the whole run."""
        return self._redis

    def sqlite(self) -> Path:
        """The path of a new SQLite file."""
        path = self.folder / f"{next(self._made)}.db"
        self._files.append(path)
        return path

    def postgres(self) -> str:
        """The URL of a new, empty database on a Postgres that flushes to the disk."""
        name = f"benchmark_{next(self._made)}"
        self._databases.append(name)
        self._administer(f"CREATE DATABASE {name}")
        return self._postgres.rpartition("/")[0] + f"/{name}"

    def long(self, kind: str, turns: int) -> str:
        """The URL of a database of that kind with one session, of that many turns; made once."""
        if (kind, turns) not in self._long:
            url = f"sqlite:///{self.sqlite()}" if kind == "SQLite" else self.postgres()
            (self._files if kind == "SQLite" else self._databases).pop()  # Kept to the end.
            with SessionLog(url) as log:
                workload.record(log, workload.SESSION, turns)
            self.analyse(url)
            self._long[kind, turns] = url
        return self._long[kind, turns]

    def analyse(self, *urls: str) -> None:
        """Give Postgres its statistics, as autovacuum does within a minute: plans depend on them."""
        for url in urls:
            if not url.startswith("sqlite"):
                with psycopg.connect(dsn(url), autocommit=True) as connection:
                    connection.execute("ANALYZE")

    def clean(self) -> None:
        """Remove all databases but the long ones, so that nobody pays later for writing them out."""
        while self._files:
            for path in self.folder.glob(self._files.pop().name + "*"):
                path.unlink()
        while self._databases:
            self._administer(f"DROP DATABASE {self._databases.pop()} WITH (FORCE)")

    def _administer(self, statement: str) -> None:
        with psycopg.connect(dsn(self._postgres), autocommit=True) as connection:
            connection.execute(statement.encode())

    def facts(self) -> dict[str, Any]:
        """Machine, versions, commit and seed."""
        with psycopg.connect(dsn(self._postgres)) as connection:
            server = connection.info.server_version
        return {
            "machine": {
                "processor": _processor(), "cores": os.cpu_count(), "system": platform.platform(),
                "load_1m": round(os.getloadavg()[0], 2), "fdatasync_ms": round(self.fdatasync_s() * 1e3, 3),
            },
            "versions": {
                "python": platform.python_version(), "sqlite": sqlite3.sqlite_version,
                "postgres": f"{server // 10_000}.{server % 10_000}",
                **{name: version(name) for name in _PACKAGES},
            },
            "commit": _commit(), "seed": workload.SEED, "quick": self.quick,
        }  # fmt: skip

    def fdatasync_s(self) -> float:
        """What the disk takes to keep 4 kB that overwrite others."""
        taken = []
        with open(self.folder / "fdatasync", "wb") as file:
            for _ in range(50):
                os.pwrite(file.fileno(), bytes(4096), 0)
                started = time.perf_counter()
                os.fdatasync(file.fileno())
                taken.append(time.perf_counter() - started)
        return statistics.median(taken)


class Timings:
    """What contenders took, round by round."""

    def __init__(self, names: Iterable[str]) -> None:
        self.rounds: dict[str, list[float]] = {name: [] for name in names}
        self.all: dict[str, list[float]] = {name: [] for name in names}

    def add(self, name: str, taken: list[float]) -> None:
        """Note one block of a contender."""
        self.rounds[name].append(statistics.median(taken))
        self.all[name] += taken

    def median(self, name: str) -> float:
        """Seconds of one operation."""
        return statistics.median(self.all[name])

    def ratio(self, name: str, floor: str) -> float:
        """The median of what each round says."""
        pairs = zip(self.rounds[name], self.rounds[floor], strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)

    def result(self, question: str, what: str, name: str, floor: str, at_most: float | None = None) -> Result:
        """A line that compares two contenders."""
        ratio = self.ratio(name, floor)
        return Result(
            question, what, duration(self.median(name)), duration(self.median(floor)), ratio,
            "" if at_most is None else f"≤ {at_most:.2f}x", None if at_most is None else ratio <= at_most,
            {"ours_s": self.median(name), "floor_s": self.median(floor), "at_most": at_most},
        )  # fmt: skip


def interleave(
    contenders: Mapping[str, Block],
    *,
    rounds: int,
    block: int,
    warmup: int = 2,
    warm: Callable[[], object] = lambda: None,
) -> Timings:
    """Let contenders take turns, in another order each round; `warm` is called after the warm-up."""
    timings = Timings(contenders)
    names, shuffled = list(contenders), random.Random(workload.SEED)
    for number in range(-warmup, rounds):
        if number == 0:
            warm()
        shuffled.shuffle(names)
        for name in names:
            taken = contenders[name](block)
            if number >= 0:
                timings.add(name, taken)
    return timings


def each(operation: Callable[[T], object], values: Iterator[T]) -> Block:
    """Time an operation on values, which are made outside of the clock."""

    def block(count: int) -> list[float]:
        taken = []
        for value in list(itertools.islice(values, count)):
            started = time.perf_counter()
            operation(value)
            taken.append(time.perf_counter() - started)
        return taken

    return block


def duration(seconds: float) -> str:
    """A duration for the table."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def dsn(url: str) -> str:
    """A SQLAlchemy URL as psycopg takes it."""
    return url.replace("postgresql+psycopg://", "postgresql://")


def quantiles(taken: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile."""
    return {"p50": statistics.median(taken), "p99": sorted(taken)[int(len(taken) * 0.99)]}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str:
    root = str(Path(__file__).parent)
    asked = ["git", "-C", root, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.check_output(asked, stderr=subprocess.DEVNULL, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
