"""A run whose end cannot be stored ends as an error, for who awaits it, streams it, or asks for it later."""

from __future__ import annotations

import asyncio
import inspect
import sys
from contextlib import aclosing
from types import ModuleType

import pytest
from agno.agent import Agent
from agno.run.concurrency import worker_managed_execution
from agno.team import Team
from agno.workflow import Step, Workflow

from kern_events.adapters.agno import NotStored, RunNotStored
from tests.adapters.test_agno_edges import begun, run_of
from tests.agno_replay import check_replay
from tests.agno_scenarios import FakeModel

SAID = "upsert_session stored nothing of session '{}': TypeError: Object of type object is not JSON"


def spoiled(run_context, **_):
    """What a tool or a hook leaves in the state, and nobody can store."""
    run_context.session_state["x"] = object()


def agent(db):
    options = {"db": db, "session_id": "agent", "post_hooks": [spoiled], "telemetry": False}
    return Agent(id="a", model=FakeModel(["Hi."]), **options)


def team(db):
    member = Agent(id="m", model=FakeModel(["Yes."]), telemetry=False)
    options = {"db": db, "session_id": "team", "post_hooks": [spoiled], "telemetry": False}
    return Team(id="t", members=[member], model=FakeModel(["Hi."]), **options)


def workflow(db):
    def step(step_input, run_context):
        spoiled(run_context)
        return "Hi."

    steps = [Step(name="x", executor=step)]
    return Workflow(id="w", db=db, session_id="workflow", steps=steps, telemetry=False)


KINDS = {"agent": agent, "team": team, "workflow": workflow}


@pytest.fixture
def event_stream(monkeypatch):
    """AgentOS's, where its own dependencies are not there."""

    class Stream:
        events, status = [], None

        async def add_event(self, run_id, event):
            self.events.append(event)
            return len(self.events)

        async def set_run_status(self, run_id, status): ...

        async def register_run(self, run_id, status): ...

        async def complete_run(self, run_id, status):
            self.status = status

    stream, names = Stream(), ("agno.os", "agno.os.event_streams", "agno.os.utils")
    modules = {name: ModuleType(name) for name in names}
    stream.events = []
    modules["agno.os.event_streams"].get_event_stream = lambda: stream
    modules["agno.os.utils"].format_sse_event_with_index = lambda event, **_: event
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return stream


async def ended(db, run_id):
    """The row of a run that somebody runs in the background, once it is over."""
    while True:
        row = db.get_run(run_id, deserialize=False)
        row = await row if inspect.isawaitable(row) else row
        if row is not None and row["status"] not in ("PENDING", "RUNNING"):
            return row
        await asyncio.sleep(0.01)


async def in_background(place, work):
    """What work does with runners on each class of Db; then their sessions are told as they are stored."""
    again = place.open()
    for db in (place.open(), place.open_async()):
        try:
            for kind, make in KINDS.items():
                await work(db, make(db), SAID.format(kind))
            await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)
        finally:
            if inspect.iscoroutinefunction(db.get_session):
                await db.close()
        for kind in KINDS:
            check_replay(again, kind)
            assert {turn.status for turn in again.sessions.load(kind).turns} == {"failed"}
            again.delete_session(kind)


def test_a_run_in_the_background_ends_as_an_error_that_says_what_was_not_stored(place):
    async def work(db, runner, said):
        run = await runner.arun("Hello.", background=True)
        row = await asyncio.wait_for(ended(db, run.run_id), 30)
        assert row["status"] == "ERROR" and said in row["run_data"]["content"]

    asyncio.run(in_background(place, work))


def test_a_stream_of_a_background_run_ends_with_its_error_event(place, event_stream):
    async def work(db, runner, said):
        async for _ in runner.arun("Hello.", background=True, stream=True):
            pass
        last = event_stream.events[-1]
        assert type(last).__name__.endswith("ErrorEvent")
        assert said in str(getattr(last, "content", None) or last.error)
        row = await asyncio.wait_for(ended(db, last.run_id), 30)
        assert row["status"] == "ERROR" and said in row["run_data"]["content"]

    asyncio.run(in_background(place, work))


def test_what_leaves_a_run_is_an_exception_that_a_server_turns_into_an_error_event(side):
    db = side.open()

    async def streamed(make):
        async with aclosing(make(db).arun("Hello.", stream=True)) as events:
            return [event async for event in events]

    for kind, make in KINDS.items():
        with pytest.raises(RunNotStored, match=SAID.format(kind)) as raised:
            side.run(make(db), "Hello.")
        assert isinstance(raised.value, NotStored) and isinstance(raised.value, Exception)
        with pytest.raises(Exception, match=SAID.format(kind)):
            side.loop.run(streamed(make)) if side.loop else list(make(db).run("Hello.", stream=True))


def test_a_write_that_fails_beside_a_run_under_way_leaves_it_so(side):
    db = side.open()
    begun(side.place.open(), "r0")
    side.place.open().upsert_run({**run_of("r1").to_dict(), "status": "RUNNING"}, "s", "ada")
    session = side.do(db.get_session, "s")
    session.session_data["x"] = object()
    with pytest.raises(NotStored):
        side.do(db.upsert_session, session)

    assert side.do(db.get_run, "r1", deserialize=False)["status"] == "RUNNING"


@pytest.mark.parametrize("place", ["postgres"], indirect=True)
def test_a_run_that_a_worker_owns_is_written_by_its_last_attempt_alone(side):
    """On Postgres, where Agno's queue is; a row says which attempt is under way."""
    db, others = side.open(), begun(side.place.open(), "r0", session_id="agent")
    row = {**run_of("r1", "theirs", "agent").to_dict(), "status": "RUNNING", "queue_attempt": 2}
    others.upsert_run(row, "agent", "ada")
    runner = Agent(id="a", model=FakeModel(lambda _: "Hi."), db=db, session_id="agent", user_id="ada")
    runner.telemetry = False
    with worker_managed_execution("r1", "worker", 1):
        side.run(runner, "Hello.", run_id="r1")
    assert others.get_run("r1").content == "theirs"

    with worker_managed_execution("r1", "worker", 2), pytest.raises(RunNotStored, match="run 'r1'"):
        side.run(runner, "Hello.", run_id="r1", metadata={"x": object()})
    ended = others.get_run("r1", deserialize=False)
    assert ended["status"] == "ERROR" and "upsert_run stored nothing" in ended["run_data"]["content"]
    check_replay(others, "agent")
