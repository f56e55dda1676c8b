"""What a run costs grows with what it says, and not with the square of what was said before."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from functools import partial
from typing import Any

import pytest
from agno.models.message import Message
from agno.run.agent import RunOutput
from agno.run.base import RunStatus
from agno.session.agent import AgentSession

from kern_events.adapters.agno.packing import unpacked
from tests.agno_long import fill
from tests.agno_replay import check_replay, stored_rows
from tests.agno_scenarios import _agent, call

OURS = "adapters/agno/"


@pytest.mark.parametrize("is_async", [False, True])
def test_a_run_does_not_compare_each_run_with_each(place, is_async):
    few, many = (_calls_of_a_run(place, count, is_async) for count in (20, 120))

    assert many - few < 10 * 100


def test_the_loop_shares_its_time_with_two_threads_at_most(place):
    async def work():
        db, go, begun = place.open_async(), threading.Event(), []
        plain = db._twin.get_session

        def reading(**options):
            begun.append(1)
            go.wait()
            return plain(**options)

        db._twin.get_session = reading
        asked = [asyncio.ensure_future(db.get_session(session_id=f"s{number}")) for number in range(12)]
        while not begun:
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        at_once = len(begun)
        go.set()
        assert await asyncio.gather(*asked) == [None] * 12
        await db.close()
        return at_once

    assert asyncio.run(work()) <= 2


@pytest.mark.parametrize("is_async", [False, True])
def test_what_a_run_says_is_recorded_once(place, is_async):
    found = "Found: " + "a room with a view; " * 20
    agent, run = _searching(place, found, is_async)

    run(agent)

    db = place.open()
    natives = [unpacked(event.native) for event in db.sessions.read("s") if event.native]
    assert not any(found.encode() in native for native in natives)
    assert _recorded_bytes(db) < 0.5 * len(stored_rows(db, "s")[1])
    check_replay(db, "s")


@pytest.mark.parametrize("is_async", [False, True])
def test_a_checkpoint_is_the_difference_to_the_last_one(place, is_async):
    agent, run = _searching(place, "Nothing yet.", is_async, batches=9, checkpoint="tool-batch")

    run(agent)

    db = place.open()
    checkpoints = [event for event in db.sessions.read("s") if event.type == "agno.run.changed"]
    assert len(checkpoints) == 9  # The session's part of each goes with it.
    assert not [event for event in db.sessions.read("s") if event.type == "agno.session.changed"]
    assert max(len(event.native or b"") for event in checkpoints[1:]) < 300
    check_replay(db, "s")


@pytest.mark.parametrize("is_async", [False, True])
def test_what_changed_between_two_writes_is_stored(place, is_async):
    db, session = place.open(), AgentSession(session_id="s", agent_id="waiter", created_at=1)
    message = Message(role="assistant", content="Tea.")
    run = RunOutput(run_id="r", session_id="s", status=RunStatus.running, messages=[message])
    session.runs = [run]
    write = partial(_write_async, place) if is_async else partial(_write, db)
    change = partial(setattr, message, "content", "Tea, and cake.")

    write(session, run, change)

    assert db.get_run("r").messages[0].content == "Tea, and cake."
    check_replay(db, "s")


def _write(db: Any, session: Any, run: Any, change: Any) -> None:
    db.upsert_session(session)
    change()
    db.upsert_run(run, "s")


def _write_async(place: Any, session: Any, run: Any, change: Any) -> None:
    async def work() -> None:
        db = place.open_async()
        await db.upsert_session(session)
        change()
        await db.upsert_run(run, "s")
        await db.close()

    asyncio.run(work())


def _searching(place: Any, found: str, is_async: bool, batches: int = 1, **options: Any) -> tuple[Any, Any]:
    """An agent that searches so many times, one after the other, and what runs it."""

    def search(words: str) -> str:
        """Search."""
        return found

    script = [[call("search", words="a room")] for _ in range(batches)]
    db = place.open_async() if is_async else place.open()
    agent = _agent(db, [*script, "Here you are."], "s", tools=[search], **options)

    async def awaited(agent: Any) -> None:
        await agent.arun("Where can I stay?")
        await db.close()

    if is_async:
        return agent, lambda agent: asyncio.run(awaited(agent))
    return agent, lambda agent: agent.run("Where can I stay?")


def _recorded_bytes(db: Any) -> int:
    events = list(db.sessions.read("s"))
    return sum(len(event.native or b"") + len(json.dumps(event.payload)) for event in events)


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
