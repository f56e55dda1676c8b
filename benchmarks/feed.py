"""The feed: how many events a second does a subscriber or a consumer take, and how long after the commit?

Throughput is of a log that is there already; the floor reads the same rows by position. Lag is from the
return of an append to the event in a subscriber's hands, of this process and of another log, which sees
it by looking at the last position.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any, Final

import orjson
from sqlalchemy import text

from benchmarks import floors, workload
from benchmarks.measure import Bench, Result, duration, quantiles
from kern_events import Event, SessionLog, message

_SESSIONS: Final = 50
_SQLITE_ROWS: Final = (
    "SELECT position, payload FROM kern_events WHERE position > ? ORDER BY position LIMIT 1000"
)
_POSTGRES_ROWS: Final = (
    "SELECT position, payload FROM kern_events WHERE position > %b ORDER BY position LIMIT 1000"
)


def run(bench: Bench) -> Iterator[Result]:
    """On both databases."""
    for kind in ("SQLite", "Postgres"):
        url = f"sqlite:///{bench.sqlite()}" if kind == "SQLite" else bench.postgres()
        with SessionLog(url) as log:
            for number in range(_SESSIONS):
                workload.record(log, f"session-{number:04}", 20 if bench.quick else 200)
            log.consumer("prepare", _prepare, transactional=True).step()
        bench.analyse(url)
        yield from _throughput(bench, kind, url)
        yield from _lag(bench, kind, url)


def _prepare(events: Sequence[Event], connection: Any) -> None:
    connection.execute(text("CREATE TABLE sink (session_id text, version bigint)"))


def _throughput(bench: Bench, kind: str, url: str) -> Iterator[Result]:
    rates: dict[str, list[float]] = {
        "raw": [],
        "subscription": [],
        "consumer": [],
        "sink in the database": [],
    }
    with SessionLog(url) as log:
        count = len(list(log.read_all()))
        for number in range(2 if bench.quick else 5):
            contenders: dict[str, Callable[[], object]] = {
                "raw": lambda: _raw(kind, url),
                "subscription": lambda: _followed(log, count),
                "consumer": lambda: _consumed(log, f"c{number}", transactional=False),  # noqa: B023
                "sink in the database": lambda: _consumed(log, f"s{number}", transactional=True),  # noqa: B023
            }
            for name, work in contenders.items():
                started = time.perf_counter()
                work()
                rates[name].append(count / (time.perf_counter() - started))
    raw = statistics.median(rates["raw"])
    for name in ("subscription", "consumer", "sink in the database"):
        ours = statistics.median(rates[name])
        yield Result(
            "feed", f"{name}, {count:,} events, {kind}", f"{ours / 1e3:,.0f}k/s", f"{raw / 1e3:,.0f}k/s",
            raw / ours, "", None, {"events_per_s": ours, "raw_per_s": raw},
        )  # fmt: skip


def _raw(kind: str, url: str) -> None:
    connection: Any = (
        floors.sqlite_ours(floors.sqlite_path(url)) if kind == "SQLite" else floors.postgres_ours(url)
    )
    statement = _SQLITE_ROWS if kind == "SQLite" else _POSTGRES_ROWS
    after = 0
    with closing(connection if kind == "SQLite" else connection.connection):
        while rows := connection.execute(statement, (after,)).fetchall():
            for _, payload in rows:
                orjson.loads(payload)
            after = rows[-1][0]


def _followed(log: SessionLog, count: int) -> None:
    taken = 0
    with log.subscribe() as following:
        while taken < count:
            taken += len(following.batch(limit=1_000))


def _consumed(log: SessionLog, name: str, *, transactional: bool) -> None:
    def handle(events: Sequence[Event], connection: Any = None) -> None:
        if connection is not None:
            rows = [{"s": event.session_id, "v": event.version} for event in events]
            connection.execute(text("INSERT INTO sink VALUES (:s, :v)"), rows)

    log.consumer(name, handle, transactional=transactional).run(until_idle=True)


def _lag(bench: Bench, kind: str, url: str) -> Iterator[Result]:
    for who in ("of this process", "of another log"):
        with SessionLog(url) as writer, SessionLog(url) as other:
            follower = writer if who == "of this process" else other
            taken = _lags(writer, follower, 20 if bench.quick else 100)
        numbers = quantiles(taken)
        what = f"lag of an append {who}, p50 and p99, {kind}"
        yield Result("feed", what, f"{duration(numbers['p50'])}, {duration(numbers['p99'])}", numbers=numbers)


def _lags(writer: SessionLog, follower: SessionLog, count: int) -> list[float]:
    arrived: list[float] = []
    seen = threading.Event()
    start = list(writer.read_all())[-1].position
    with follower.subscribe(after=start) as following:

        def follow() -> None:
            for _ in following:
                arrived.append(time.perf_counter())
                seen.set()

        thread = threading.Thread(target=follow)
        thread.start()
        committed = []
        for number in range(count):
            time.sleep(0.03 + number % 7 / 100)  # Now and then, as an agent writes.
            writer.append("lag", [message("user", "Hello")])
            committed.append(time.perf_counter())
            seen.wait(5)
            seen.clear()
        following.close()
        thread.join()
    return [max(0.0, after - before) for before, after in zip(committed, arrived, strict=True)]
