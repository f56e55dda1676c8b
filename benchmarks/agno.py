"""What a run of an agent costs with our Db classes beside Agno's own: time, the event loop, and bytes.

The model answers at once, so what is timed is Agno's own work and the Db. A session is as long as the
question says, and warm, as in a server.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

import psycopg
from agno.agent import Agent
from agno.db.postgres import AsyncPostgresDb, PostgresDb
from agno.db.sqlite import AsyncSqliteDb, SqliteDb
from sqlalchemy import make_url

from benchmarks import workload
from benchmarks.measure import Bench, Block, Result, dsn, duration, each, interleave
from kern_events.adapters.agno import KernAsyncPostgresDb, KernAsyncSqliteDb, KernPostgresDb, KernSqliteDb
from tests.agno_long import fill
from tests.agno_scenarios import FakeModel, call

_AT_MOST_RUN: Final = 1.5
_AT_MOST_CHECKPOINTS: Final = 1.6
_AT_MOST_LOAD: Final = 1.0
_AT_MOST_STALL: Final = 1.2
_AT_MOST_BYTES: Final = {"SQLite": 1.8, "Postgres": 3.0}
_LENGTHS: Final = (10, 1_000, 5_000)
_LOADED: Final = 1_000
_STALLED: Final = 2_000
_AT_ONCE: Final = 50
_BATCHES: Final = 6
_FIRST: Final = 10  # runs, after which the tables are there
_TEXT: Final = "What can be said of this in a sentence or two? " * 4
_TICK_S: Final = 0.001
_POSTGRES_SIZE: Final = (
    "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class AS c JOIN pg_namespace AS n"
    " ON n.oid = c.relnamespace WHERE n.nspname = 'ai' AND c.relkind = 'r'"
)


class _Side(NamedTuple):
    """A contender on a database of its own: how to open it, sync and async, and what it takes there."""

    open: Callable[[], Any]
    open_async: Callable[[], Any]
    size: Callable[[], int]


def run(bench: Bench) -> Iterator[Result]:
    """SQLite and Postgres, each beside Agno's own."""
    for kind in ("SQLite", "Postgres"):
        yield from _times(bench, kind)
        yield _stall(bench, kind)
        yield from _bytes(bench, kind)


def _sides(bench: Bench, kind: str) -> dict[str, _Side]:
    if kind == "SQLite":
        return {
            "kern": _sqlite(bench.sqlite(), KernSqliteDb, KernAsyncSqliteDb),
            "agno": _sqlite(bench.sqlite(), SqliteDb, AsyncSqliteDb),
        }
    return {
        "kern": _postgres(bench.postgres(), KernPostgresDb, KernAsyncPostgresDb),
        "agno": _postgres(bench.postgres(), PostgresDb, AsyncPostgresDb),
    }


def _sqlite(path: Path, sync: Any, asynchronous: Any) -> _Side:
    def size() -> int:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return path.stat().st_size

    return _Side(lambda: sync(db_file=str(path)), lambda: asynchronous(db_file=str(path)), size)


def _postgres(url: str, sync: Any, asynchronous: Any) -> _Side:
    awaited = make_url(url).set(drivername="postgresql+psycopg_async").render_as_string(hide_password=False)

    def size() -> int:
        with psycopg.connect(dsn(url)) as connection:
            return int(connection.execute(_POSTGRES_SIZE).fetchall()[0][0])

    return _Side(lambda: sync(db_url=url), lambda: asynchronous(db_url=awaited), size)


# --------------------------------------------------------------------------------------------------- time


def _times(bench: Bench, kind: str) -> Iterator[Result]:
    """One run in sessions of several lengths, one with checkpoints, and the load before a run."""
    dbs = {name: side.open() for name, side in _sides(bench, kind).items()}
    rounds, block = (6, 4) if bench.quick else (25, 8)
    for length in _LENGTHS[: 2 if bench.quick else 3]:
        fresh = {name: _runs(db, length, same=length > _LENGTHS[0]) for name, db in dbs.items()}
        runs = interleave(fresh, rounds=rounds, block=block, warm=lambda: bench.analyse(*_urls(dbs)))
        what = f"{kind}: one run of an agent, {length:,} runs in the session"
        yield runs.result("agno", what, "kern", "agno", _AT_MOST_RUN)
    checkpointed = {name: _checkpointed(db) for name, db in dbs.items()}
    batches = interleave(checkpointed, rounds=rounds // 2, block=block // 2, warmup=1)
    what = f"{kind}: one run of {_BATCHES} tool batches, each with its checkpoint"
    yield batches.result("agno", what, "kern", "agno", _AT_MOST_CHECKPOINTS)
    loads = interleave({name: _loads(db) for name, db in dbs.items()}, rounds=rounds, block=block)
    what = f"{kind}: the load before a run, {_LOADED:,} runs in the session"
    yield loads.result("agno", what, "kern", "agno", _AT_MOST_LOAD)
    for db in dbs.values():
        db.close()


def _urls(dbs: dict[str, Any]) -> list[str]:
    return [db.db_engine.url.render_as_string(hide_password=False) for db in dbs.values()]


def _agent(db: Any, session_id: str, desk: _Desk, **options: Any) -> Agent:
    return Agent(
        model=FakeModel(desk.answer), db=db, session_id=session_id, telemetry=False, tools=[desk.search],
        session_state={"count": 1}, add_history_to_context=True, num_history_runs=3, **options,
    )  # fmt: skip


class _Desk:
    """Who answers: what is said is a turn of the workload, with so many calls of the tool."""

    def __init__(self, batches: int = 0) -> None:
        self._batches = batches
        self.turn = workload.turn(0)

    def answer(self, messages: Sequence[Any]) -> Any:
        """The answer of the model."""
        said = [each.role for each in messages if not each.from_history]
        if said.count("tool") == self._batches:
            return self.turn.answered
        return [call("search", query=self.turn.arguments)]

    def search(self, query: str) -> str:
        """Search for flights."""
        return self.turn.result


def _runs(db: Any, length: int, *, same: bool) -> Block:
    """Runs with a history of three: in a session of that length, or in new ones of about that length."""

    def agents() -> Iterator[Agent]:
        for number in itertools.count():
            session_id = f"s{length}-{number}"
            fill(db, session_id, length, _TEXT)
            agent = _agent(db, session_id, _Desk())
            agent.run(_TEXT)  # What was filled in is recorded now.
            yield from itertools.repeat(agent) if same else itertools.repeat(agent, 5)

    return each(lambda agent: agent.run(_TEXT), agents())


def _checkpointed(db: Any) -> Block:
    agents = (
        _agent(db, f"c{number}", _Desk(_BATCHES), checkpoint="tool-batch") for number in itertools.count()
    )
    return each(lambda agent: agent.run(_TEXT), agents)


def _loads(db: Any) -> Block:
    return each(lambda id: db.get_session(session_id=id), itertools.repeat(f"s{_LOADED}-0"))


# ------------------------------------------------------------------------------------------ the event loop


def _stall(bench: Bench, kind: str) -> Result:
    """How long the event loop stands still while many runs end on one long session."""
    sides = _sides(bench, kind)
    length = _STALLED // 4 if bench.quick else _STALLED
    for side in sides.values():
        db = side.open()
        fill(db, "s", length, _TEXT)
        _agent(db, "s", _Desk()).run(_TEXT)
        db.close()
    stalls: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(1 if bench.quick else 5):
        for name, side in sides.items():
            stalls[name].append(asyncio.run(_stalled(side)))
    ratio = statistics.median(a / b for a, b in zip(stalls["kern"], stalls["agno"], strict=True))
    ours, theirs = (statistics.median(each) for each in stalls.values())
    return Result(
        "agno", f"{kind}: the longest stall of the event loop, {_AT_ONCE} arun at once, {length:,} runs",
        duration(ours), duration(theirs), ratio, f"≤ {_AT_MOST_STALL:.2f}x", ratio <= _AT_MOST_STALL,
        {"stalls_s": stalls},
    )  # fmt: skip


async def _stalled(side: _Side) -> float:
    db = side.open_async()
    agent = _agent(db, "s", _Desk())
    await agent.arun(_TEXT)  # Warm, as in a server.
    longest = await _longest(lambda: asyncio.gather(*(agent.arun(_TEXT) for _ in range(_AT_ONCE))))
    await db.close()
    return longest


async def _longest(work: Callable[[], Awaitable[Any]]) -> float:
    """The longest that a task which only wants to go on has waited, while work is done."""
    longest, ends = 0.0, asyncio.Event()

    async def tick() -> None:
        nonlocal longest
        while not ends.is_set():
            before = time.perf_counter()
            await asyncio.sleep(_TICK_S)
            longest = max(longest, time.perf_counter() - before - _TICK_S)

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0)
    await work()
    ends.set()
    await ticking
    return longest


# -------------------------------------------------------------------------------------------------- bytes


def _bytes(bench: Bench, kind: str) -> Iterator[Result]:
    """What a run adds to the database: with and without a tool call, and with many checkpoints."""
    count = 60 if bench.quick else 400
    for what, batches, runs in (
        ("bytes of a run without a tool call", 0, count),
        ("bytes of a run with a tool call", 1, count),
        ("bytes of a run of 32 tool batches, each with its checkpoint", 32, count // 20),
    ):
        sides = _sides(bench, kind)
        taken = {name: _taken(side, batches, runs) for name, side in sides.items()}
        ratio, at_most = taken["kern"] / taken["agno"], _AT_MOST_BYTES[kind]
        yield Result(
            "agno", f"{kind}: {what}", f"{taken['kern']:,.0f} B", f"{taken['agno']:,.0f} B",
            ratio, f"≤ {at_most:.2f}x", ratio <= at_most, {"taken_bytes": taken, "at_most": at_most},
        )  # fmt: skip


def _taken(side: _Side, batches: int, runs: int) -> float:
    db, desk = side.open(), _Desk(batches)
    agent = _agent(db, "s", desk, **({"checkpoint": "tool-batch"} if batches > 1 else {}))
    before = 0
    for number in range(-_FIRST, runs):
        if number == 0:
            before = side.size()
        desk.turn = workload.turn(number + _FIRST)
        agent.run(desk.turn.asked)
    after = side.size()
    db.close()
    return (after - before) / runs
