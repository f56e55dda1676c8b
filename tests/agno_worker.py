"""One of several processes that run an agent on one session at once: `python -m tests.agno_worker`."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
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


def main() -> None:
    name, options, keys = sys.argv[1:]
    module, _, kind = name.partition(":")
    made = getattr(importlib.import_module(module), kind)
    asyncio.run(run_together(lambda: made(**json.loads(options)), json.loads(keys)))


if __name__ == "__main__":
    main()
