"""What cannot be stored is never taken for stored: it raises through Agno, and it is visible."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from agno.agent import Agent
from agno.models.message import Message
from agno.run.agent import RunOutput
from agno.run.base import RunStatus
from agno.session.agent import AgentSession

from kern_events import Draft
from kern_events.adapters.agno import KernInMemoryDb, KernSqliteDb, NotStored
from kern_events.adapters.agno.tables import Tables
from kern_events.errors import StoreFull
from tests import room
from tests.agno_replay import check_replay, stored_rows
from tests.agno_scenarios import FakeModel


def run_of(words, run_id="r1", **fields):
    messages = [Message(role="user", content="question"), Message(role="assistant", content=words)]
    return RunOutput(
        run_id=run_id, agent_id="a", content=words, messages=messages, status=RunStatus.completed, **fields
    )


def begin(db, session_id="s", **fields):
    made = AgentSession(session_id=session_id, agent_id="a", user_id="ada", created_at=1, **fields)
    db.upsert_session(made)


def unstorable(place):
    """A value that Agno's own Db refuses, logs, and answers as if it had stored it."""
    return {"x": object()} if place.backend == "sqlite" else {"x": float("nan")}


def test_a_state_that_cannot_be_stored_raises_through_the_run(place, caplog):
    failures = []
    db = place.open(on_error=failures.append)
    agent = Agent(model=FakeModel(["Hi."]), db=db, session_id="s", telemetry=False)
    agent.session_state = unstorable(place)

    with caplog.at_level(logging.ERROR, "kern_events.agno"), pytest.raises(NotStored) as raised:
        agent.run("Hello.")
    assert raised.value.__cause__ is not None
    assert (raised.value.operation, raised.value.session_id) == ("upsert_session", "s")
    assert [str(each) for each in failures] == [str(raised.value)]
    assert db.write_errors == 1
    assert "upsert_session" in caplog.text
    assert "Hello." not in caplog.text
    assert stored_rows(db, "s") == ("null", "{}")
    assert db.sessions.head("s").version == 0


@pytest.mark.parametrize("is_async", [False, True])
def test_a_commit_that_fails_leaves_nothing_and_the_next_run_goes_on(place, is_async, monkeypatch):
    def agent(db):
        return Agent(model=FakeModel(["Hi."] * 2), db=db, session_id="s", telemetry=False)

    def noting(tables, *noted):
        return [*plain(tables, *noted), ("SELECT no_such_function()", ())]  # The last before COMMIT.

    async def run_twice():
        db = place.open_async()
        with pytest.raises(NotStored):
            await agent(db).arun("Hello?")
        monkeypatch.setattr(Tables, "noting", plain)
        await agent(db).arun("Hello.")
        await db.close()

    plain, ours = Tables.noting, place.open()
    agent(ours).run("Hello.")
    monkeypatch.setattr(Tables, "noting", noting)

    if is_async:
        asyncio.run(run_twice())
    else:
        with pytest.raises(NotStored):
            agent(ours).run("Hello?")
        monkeypatch.setattr(Tables, "noting", plain)
        agent(ours).run("Hello.")

    assert [run.input.input_content for run in ours.get_session("s").runs] == ["Hello."] * 2
    check_replay(ours, "s")


def test_nothing_is_half_written(place):
    db = place.open()
    begin(db)
    before = stored_rows(db, "s"), db.sessions.head("s")
    with pytest.raises(NotStored):
        db.upsert_run({"run_id": "r1", "agent_id": "a", "content": unstorable(place)}, "s", "ada")

    assert (stored_rows(db, "s"), db.sessions.head("s")) == before
    db.upsert_run(run_of("fine"), "s", "ada")
    check_replay(db, "s")


def test_a_run_of_another_session_is_not_overwritten(place):
    db = place.open()
    begin(db, "s")
    begin(db, "t")
    db.upsert_run(run_of("mine"), "s", "ada")

    with pytest.raises(NotStored, match="of session 's'"):
        db.upsert_run(run_of("theirs"), "t", "ada")
    assert db.get_run("r1").content == "mine"


def test_a_session_of_another_user_is_refused_as_agno_does(place):
    db = place.open()
    begin(db)
    version = db.sessions.head("s").version

    assert db.upsert_session(AgentSession(session_id="s", agent_id="a", user_id="bob", created_at=1)) is None
    assert db.sessions.head("s").version == version
    check_replay(db, "s")


def test_a_run_without_an_id_is_refused_before_anything(place):
    with pytest.raises(ValueError, match="run_id"):
        place.open().upsert_run({"agent_id": "a"}, "s")


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 1, 5 << 20])
def test_content_over_the_limit_is_stored_in_parts(place, size):
    db = place.open()
    begin(db)
    db.upsert_run(run_of("x" * size, metadata={"blob": "y" * size}), "s", "ada")

    assert len(db.get_run("r1").content) == size
    check_replay(db, "s")
    parts = [event for event in db.sessions.read("s") if event.type == "agno.part.added"]
    assert all(len(event.native) <= 1 << 20 for event in parts)
    assert len(parts) >= size >> 20


HOSTILE = [
    {"": {"": 1}, "a.b": {"c": [1, {"d": None}]}},
    {"wide": 2**70, "float": 1e300, "zero": -0.0},
    {"text": "\ud83d\ude00 \u202e <script> \x1b[31m"},
    {"deep": [[[[[[[[[[{"x": []}]]]]]]]]]]},
    {"__class__": "x", "session_state": {"session_data": 1}},
    {f"k{number}": number for number in range(500)},
]


@pytest.mark.parametrize("state", HOSTILE, ids=lambda state: next(iter(state))[:8])
def test_whatever_agno_can_store_comes_back(place, state):
    db = place.open()
    begin(db, session_data={"session_state": state}, metadata=state)
    db.upsert_run(run_of(json.dumps(state), session_state=state, metadata=state), "s", "ada")
    session = db.get_session("s")
    session.session_data["session_state"] = {**state, "more": [state]}
    db.upsert_session(session)

    assert stored_rows(db, "s")[0] != "null"
    check_replay(db, "s")


def test_what_json_cannot_say_exactly_is_kept_where_agno_keeps_it(tmp_path):
    db = KernSqliteDb(db_file=f"{tmp_path}/agno.db")
    state = {"nan": float("nan"), "inf": float("inf"), "nul": "\0", "lone": "\ud800"}
    begin(db, session_data={"session_state": state})
    db.upsert_run(run_of("\0 \ud800", session_state=state), "s", "ada")

    check_replay(db, "s")
    assert db.get_session("s").session_data["session_state"]["nul"] == "\0"
    db.close()


def test_a_full_disk_raises_through_and_is_used_again_when_there_is_room(tmp_path):
    db = KernSqliteDb(db_url=f"sqlite:///{tmp_path}/agno.db")
    begin(db)
    with room.no_files(), pytest.raises(NotStored, match="stored nothing of session 's', run 'r1'"):
        db.upsert_run(run_of("x" * 9_000).to_dict(), "s", "ada")
    with room.no_files(), pytest.raises(StoreFull):
        db.sessions.append("beside", [Draft("note.taken", {"text": "x" * 30_000})])

    db.upsert_run(run_of("x" * 9_000).to_dict(), "s", "ada")
    assert db.sessions.load("s").messages[-1].content == "x" * 9_000
    check_replay(db, "s")
    db.close()


def test_a_sqlite_database_in_memory_is_refused():
    db = KernSqliteDb(db_url="sqlite://")

    with pytest.raises(ValueError, match="KernInMemoryDb"):
        db.get_session("s")
    with pytest.raises(NotStored, match="KernInMemoryDb"):
        begin(db)
    db.close()


def test_the_db_for_tests_leaves_nothing_behind(tmp_path):
    db = KernInMemoryDb()
    begin(db)
    db.upsert_run(run_of("hi"), "s", "ada")
    file = db.db_file

    check_replay(db, "s")
    db.close()
    with pytest.raises(FileNotFoundError):
        open(file).close()
