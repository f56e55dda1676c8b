"""Media that Agno stores elsewhere, or nowhere, are in no event either."""

from __future__ import annotations

import asyncio
import base64
import inspect
import random

from agno.agent import Agent
from agno.media import File, Image
from agno.media.storage.local import LocalMediaStorage
from agno.team import Team
from agno.workflow import Step, Workflow
from agno.workflow.types import StepOutput

from tests.adapters.test_agno_running import ended
from tests.agno_replay import check_replay, stored_rows
from tests.agno_scenarios import FakeModel

PICTURE = random.Random(1).randbytes(100_000)


def made(text="Hi."):
    return FakeModel(lambda messages: text)


def agent(**options):
    return Agent(id="a", model=made(), telemetry=False, **options)


def team(**options):
    members = [Agent(id="m", model=made(), telemetry=False)]
    return Team(id="t", members=members, model=made(), telemetry=False, **options)


def workflow(**options):
    def painted(step_input):
        return StepOutput(content="Painted.", images=[Image(content=PICTURE)], files=[File(content=PICTURE)])

    return Workflow(id="w", steps=[Step(name="paint", executor=painted)], telemetry=False, **options)


KINDS = {"agent": agent, "team": team, "workflow": workflow}


def check_without_media(db):
    """Neither rows nor events have the picture, in whatever form, and both say the same."""
    for kind in KINDS:
        size = len("".join(stored_rows(db, kind)))
        for event in db.sessions.read(kind):
            size += len(repr(event.payload)) + len(event.native or b"")
        assert size < len(PICTURE), kind
        check_replay(db, kind)


def test_what_agno_offloads_is_recorded_as_agno_stores_it(side, tmp_path):
    db, storage = side.open(), LocalMediaStorage(str(tmp_path / "media"))
    for kind, make in KINDS.items():
        runner = make(db=db, session_id=kind, media_storage=storage)
        side.run(runner, "Look.", images=[Image(content=PICTURE)])
        side.run(runner, "Again.")

    again = side.place.open()
    check_without_media(again)
    for kind in KINDS:
        assert "media_reference" in stored_rows(again, kind)[1]
        assert [turn.status for turn in again.sessions.load(kind).turns] == ["completed"] * 2


def test_what_agno_is_told_not_to_store_is_not_recorded_either(place):
    async def run_all():
        for db in (place.open(), place.open_async()):
            for kind, make in KINDS.items():
                runner = make(db=db, session_id=kind, store_media=False)
                await runner.arun("Look.", images=[Image(content=PICTURE)])
                run = await runner.arun("Look.", images=[Image(content=PICTURE)], background=True)
                await asyncio.wait_for(ended(db, run.run_id), 30)
            await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)
            if inspect.iscoroutinefunction(db.get_session):
                await db.close()

    asyncio.run(run_all())
    check_without_media(place.open())


def test_media_that_are_to_be_stored_are(side):
    side.run(KINDS["agent"](db=side.open(), session_id="s"), "Look.", images=[Image(content=PICTURE)])
    side.run(KINDS["workflow"](db=side.open(), session_id="w"), "Look.")

    db = side.place.open()
    for session_id in ("s", "w"):
        assert base64.b64encode(PICTURE).decode() in stored_rows(db, session_id)[1]
        check_replay(db, session_id)
