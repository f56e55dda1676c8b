"""A Db that was used before its process forks: a server that loads its application first."""

from __future__ import annotations

import asyncio

import pytest
from agno.agent import Agent

from kern_events.adapters.agno import KernInMemoryDb
from tests.agno_scenarios import FakeModel
from tests.forks import forked
from tests.writers import in_threads


def ask(db, text):
    model = FakeModel(["answer"])
    Agent(model=model, db=db, session_id="f", telemetry=False).run(text)
    return "answered"


async def aask(db, text):
    model = FakeModel(["answer"])
    await Agent(model=model, db=db, session_id="f", telemetry=False).arun(text)
    return "answered"


def test_children_go_on_at_once_and_so_does_their_parent(place):
    db = place.open()
    ask(db, "before")

    answers = in_threads(2, lambda number: forked(lambda: [ask(db, f"{number}.{i}") for i in range(2)]))
    ask(db, "after")

    assert answers == [["answered"] * 2] * 2
    assert len(db.get_session("f").runs) == 1 + 2 * 2 + 1
    assert db.sessions.verify().ok


@pytest.mark.parametrize("place", ["postgres"], indirect=True)
def test_a_child_uses_an_async_db_in_a_loop_of_its_own(place):
    db = place.open_async()

    async def begin():
        await aask(db, "before")
        answer = await asyncio.to_thread(forked, lambda: asyncio.run(aask(db, "child")))
        await db.close()
        return answer

    assert asyncio.run(begin()) == "answered"
    assert len(place.open().get_session("f").runs) == 2


def test_the_end_of_a_child_leaves_a_db_in_memory_where_it_is():
    db = KernInMemoryDb()
    ask(db, "before")
    forked(lambda: db._gone())

    assert len(db.get_session("f").runs) == 1
    db.close()
