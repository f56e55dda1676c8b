"""What a run of an agent costs with our Db classes, and the load before a run, beside Agno's own.

The model answers at once, so what is timed is Agno's own work and the Db. Sessions begin anew every few
runs, so that both have them short; the long one has a thousand runs, and is warm, as in a server.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Final

from agno.agent import Agent
from agno.db.postgres import PostgresDb
from agno.db.sqlite import SqliteDb
from agno.models.message import Message
from agno.run.agent import RunOutput
from agno.run.base import RunStatus
from agno.session.agent import AgentSession

from benchmarks.measure import Bench, Block, Result, each, interleave
from kern_events.adapters.agno import KernPostgresDb, KernSqliteDb
from tests.agno_scenarios import FakeModel

_AT_MOST_RUN: Final = 1.5
_AT_MOST_LOAD: Final = 1.0
_RUNS: Final = 1_000
_RUNS_EACH: Final = 5
_TEXT: Final = "What can be said of this in a sentence or two? " * 4


def run(bench: Bench) -> Iterator[Result]:
    """SQLite and Postgres, each beside Agno's own."""
    for kind in ("SQLite", "Postgres"):
        dbs = _dbs(bench, kind)
        rounds, block = (6, 5) if bench.quick else (30, 10)
        runs = interleave({name: _runs(db) for name, db in dbs.items()}, rounds=rounds, block=block, warmup=3)
        yield runs.result("agno", f"{kind}: one run of an agent", "kern", "agno", _AT_MOST_RUN)
        for db in dbs.values():
            _fill(db, _RUNS)
        rounds, block = (4, 5) if bench.quick else (20, 10)
        loads = interleave({name: _loads(db) for name, db in dbs.items()}, rounds=rounds, block=block)
        what = f"{kind}: the load before a run, with {_RUNS:,} runs in the session"
        yield loads.result("agno", what, "kern", "agno", _AT_MOST_LOAD)
        for db in dbs.values():
            db.close()


def _dbs(bench: Bench, kind: str) -> dict[str, Any]:
    made: dict[str, Callable[..., Any]]
    if kind == "SQLite":
        made = {"kern": KernSqliteDb, "agno": SqliteDb}
        return {name: make(db_file=str(bench.sqlite())) for name, make in made.items()}
    made = {"kern": KernPostgresDb, "agno": PostgresDb}
    return {name: make(db_url=bench.postgres()) for name, make in made.items()}


def _runs(db: Any) -> Block:
    """Runs with a history of three, in sessions of a few runs each."""

    def agents() -> Iterator[Agent]:
        for number in itertools.count():
            agent = Agent(
                model=FakeModel(lambda messages: _TEXT), db=db, session_id=f"s{number}", telemetry=False,
                session_state={"count": number}, add_history_to_context=True, num_history_runs=3,
            )  # fmt: skip
            yield from itertools.repeat(agent, _RUNS_EACH)

    return each(lambda agent: agent.run(_TEXT), agents())


def _fill(db: Any, count: int) -> None:
    db.upsert_session(AgentSession(session_id="long", agent_id="a", created_at=1))
    for index in range(count):
        messages = [Message(role="user", content=_TEXT), Message(role="assistant", content=_TEXT)]
        run = RunOutput(
            run_id=uuid.uuid4().hex, session_id="long", agent_id="a", status=RunStatus.completed,
            content=_TEXT, messages=messages, created_at=index,
        )  # fmt: skip
        db.upsert_run(run, "long", None, index)


def _loads(db: Any) -> Block:
    return each(lambda id: db.get_session(session_id=id), itertools.repeat("long"))
