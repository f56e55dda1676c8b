"""Processes that run an agent on one session at once: `python -m tests.agno_worker` starts them.

It takes a line of JSON for each time: for each process the class of its Db, the options of that and the
keys of its runs. It forks them, as to import Agno takes longer than anything else that they do, and
answers with their exit codes when all have ended.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import traceback
from typing import Any

from agno.agent import Agent
from agno.run import RunContext

from tests.agno_scenarios import FakeModel, call


async def run_together(make_db: Any, keys: list[str]) -> None:
    """One run for each key; all have read the session before any of them writes."""
    barrier = asyncio.Barrier(len(keys))

    async def mark(run_context: RunContext, key: str) -> str:
        """Set a key of the state."""
        run_context.session_state[key] = 1
        await barrier.wait()
        return "marked"

    db = make_db()

    async def one(key: str) -> None:
        model = FakeModel([[call("mark", key=key)], f"marked {key}"])
        agent = Agent(model=model, db=db, session_id="s", user_id="ada", tools=[mark], telemetry=False)
        await agent.arun(f"Mark {key}.")

    await asyncio.gather(*map(one, keys))
    closing = db.close()
    if closing is not None:
        await closing


def work(name: str, options: dict[str, Any], keys: list[str]) -> None:
    module, _, kind = name.partition(":")
    made = getattr(importlib.import_module(module), kind)
    asyncio.run(run_together(lambda: made(**options), keys))


def started(job: list[Any]) -> int:
    """The process id of a child that does the job."""
    if pid := os.fork():
        return pid
    try:
        work(*job)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What Agno prints is no answer.
    for line in sys.stdin:
        children = [started(job) for job in json.loads(line)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(codes), file=answers, flush=True)


if __name__ == "__main__":
    main()
