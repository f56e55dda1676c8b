"""Another user's run in a session: refused, or recorded with who said it where the Db is shared."""

from __future__ import annotations

import json

import pytest
from agno.agent import Agent
from agno.db.utils import db_from_dict
from agno.team import Team
from agno.workflow import Step, Workflow

from kern_events.adapters.agno import NotStored
from kern_events.errors import OwnerMismatch
from tests.agno_replay import check_replay
from tests.agno_scenarios import FakeModel


def agent(db, user_id, session_id="s"):
    return Agent(model=FakeModel(["hello"]), db=db, session_id=session_id, user_id=user_id, telemetry=False)


def team(db, user_id):
    options = {"session_id": "team", "user_id": user_id, "telemetry": False}
    return Team(members=[], model=FakeModel(["hello"]), db=db, **options)


def workflow(db, user_id):
    options = {"session_id": "flow", "user_id": user_id, "telemetry": False}
    return Workflow(steps=[Step(name="one", agent=agent(None, None, None))], db=db, **options)


MADE = {"s": agent, "team": team, "flow": workflow}


def recorded(sessions, session_id):
    """The payloads of a session's events that name bob."""
    events = sessions.read(session_id)
    return {event.type: event.payload for event in events if "bob" in json.dumps(event.payload)}


@pytest.mark.parametrize("session_id", MADE)
def test_anothers_run_is_refused(side, session_id):
    db, make = side.open(), MADE[session_id]
    side.run(make(db, "ada"), "mine")
    version = side.sessions(db).head(session_id).version
    with pytest.raises(NotStored) as caught:
        side.run(make(db, "bob"), "not mine")

    assert isinstance(caught.value.__cause__, OwnerMismatch)
    assert side.sessions(db).head(session_id).version == version
    assert len(side.do(db.get_session, session_id).runs) == 1


@pytest.mark.parametrize("session_id", MADE)
def test_in_a_shared_db_it_is_recorded_with_who_said_it(side, session_id):
    db, make = side.open(shared=True), MADE[session_id]
    side.run(make(db, "ada"), "mine")
    side.run(make(db, "bob"), "not mine")

    found = recorded(side.sessions(db), session_id)
    assert found["turn.started"]["user_id"] == found["message.added"]["user_id"] == "bob"
    assert found["message.added"]["content"] == "not mine"
    check_replay(side.place.open(), session_id)


def test_a_run_of_nobody_or_in_a_session_of_nobody_is_taken(side):
    db = side.open()
    for user_id, session_id in (("ada", "s"), (None, "s"), (None, "n"), ("bob", "n")):
        side.run(agent(db, user_id, session_id), "hi")

    assert [len(side.do(db.get_session, each).runs) for each in ("s", "n")] == [2, 2]


def test_what_a_plain_db_has_taken_from_another_is_recorded_with_who_said_it(side):
    plain = side.place.plain()
    for user_id in ("ada", "bob"):
        agent(plain, user_id).run("hi")

    assert recorded(side.sessions(side.open()), "s")["turn.started"]["user_id"] == "bob"


def test_a_db_made_of_its_configuration_is_shared_as_it_was(place):
    for shared in (True, False):
        assert db_from_dict(place.open(shared=shared).to_dict()).shared is shared
