"""What a run costs grows with what it says, and not with the square of what was said before."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any

import pytest

from tests.agno_long import fill
from tests.agno_scenarios import _agent

OURS = "adapters/agno/"


@pytest.mark.parametrize("is_async", [False, True])
def test_a_run_does_not_compare_each_run_with_each(place, is_async):
    few, many = (_calls_of_a_run(place, count, is_async) for count in (20, 120))

    assert many - few < 10 * 100


def _calls_of_a_run(place: Any, count: int, is_async: bool) -> int:
    """How many calls our own code makes and gets in one run of a session that has so many, and is warm."""
    session_id = f"s{count}"
    fill(place.plain(), session_id, count)
    if is_async:
        return asyncio.run(_counted_async(place.open_async(), session_id))
    agent = _agent(place.open(), ["Yes."] * 2, session_id)
    agent.run("Hm?")
    with Counting() as counting:
        agent.run("Hm?")
    return counting.calls


async def _counted_async(db: Any, session_id: str) -> int:
    agent = _agent(db, ["Yes."] * 2, session_id)
    with Counting() as counting:  # From the first thread on.
        await agent.arun("Hm?")
        counting.calls = 0
        await agent.arun("Hm?")
    await db.close()
    return counting.calls


class Counting:
    """Counts the calls of our code, generators' steps too, in this thread and those that are begun."""

    calls = 0

    def __enter__(self) -> Counting:
        threading.setprofile(self._count)
        sys.setprofile(self._count)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _count(self, frame: Any, event: str, argument: object) -> None:
        self.calls += event == "call" and OURS in frame.f_code.co_filename
