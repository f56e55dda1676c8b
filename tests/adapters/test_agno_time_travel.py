"""Going back: a restored session goes on in Agno from the history and state of then."""

from __future__ import annotations

import json

import pytest
from agno.agent import Agent
from agno.run import RunContext
from agno.run.base import RunStatus
from agno.tools import tool

from kern_events import Sessions
from tests.agno_replay import check_replay
from tests.agno_scenarios import FakeModel, call

TURNS = 4


def remember(run_context: RunContext, item: str) -> str:
    """Remember an item."""
    run_context.session_state["items"] = [*run_context.session_state.get("items", []), item]
    return "noted"


def agent(db, script, session_id="s", **options):
    model = FakeModel(script)
    made = Agent(
        model=model, db=db, session_id=session_id, user_id="ada", tools=[remember], telemetry=False,
        add_history_to_context=True, num_history_runs=50, **options,
    )  # fmt: skip
    return made, model


def say(db, number, session_id="s"):
    """One turn, in which the state changes; gives what the model was sent of earlier turns."""
    made, model = agent(db, [[call("remember", item=f"i{number}")], f"answer {number}"], session_id)
    made.run(f"question {number}")
    return [content for role, content in model.seen[0] if role in ("user", "assistant") and content]


def expected(turns, number):
    """The history that a model is sent in a turn after these."""
    told = [text for turn in turns for text in (f"question {turn}", f"answer {turn}")]
    return [*told, f"question {number}"]


@pytest.mark.parametrize("k", range(TURNS))
def test_after_a_restore_the_next_run_goes_on_from_there(place, k):
    db = place.open()
    for number in range(1, TURNS + 1):
        say(db, number)
    db.sessions.restore("s", to_turn=k)

    assert say(db, 9) == expected(range(1, k + 1), 9)
    stored = place.open().get_session("s", session_type=None, user_id="ada", deserialize=False)
    assert len(stored["runs"]) == k + 1
    assert stored["session_data"]["session_state"]["items"] == [*(f"i{n}" for n in range(1, k + 1)), "i9"]
    assert stored["session_data"]["session_metrics"]["input_tokens"] == 20 * (k + 1)
    check_replay(db, "s")


def test_a_restore_from_elsewhere_shows_at_once(place):
    db = place.open()
    for number in (1, 2, 3):
        say(db, number)
    address, schema = db.db_engine.url, getattr(db, "db_schema", None)
    with Sessions(address, namespace=db.sessions.namespace, schema=schema) as elsewhere:
        elsewhere.restore("s", to_turn=1)

    assert len(db.get_session("s").runs) == 1
    assert say(db, 4) == expected([1], 4)
    check_replay(db, "s")


def test_what_was_abandoned_can_be_restored_to(place):
    db = place.open()
    for number in (1, 2, 3):
        say(db, number)
    before = db.get_session("s", deserialize=False)
    version = db.sessions.head("s").version
    db.sessions.restore("s", to_turn=1)
    say(db, 4)
    db.sessions.restore("s", to_version=version)

    assert db.get_session("s", deserialize=False) == before


def test_a_fork_is_a_session_of_its_own(place):
    db = place.open()
    for number in (1, 2, 3):
        say(db, number)
    db.sessions.fork("s", "t", turn=2)

    assert say(db, 4, "t") == expected([1, 2], 4)
    assert say(db, 5) == expected([1, 2, 3], 5)
    runs = {run.run_id for each in "st" for run in db.get_session(each).runs}
    assert len(runs) == 4 + 3
    assert {run.session_id for run in db.get_session("t").runs} == {"t"}
    check_replay(db, "s")
    check_replay(db, "t")


def test_a_fork_of_a_fork_and_its_restore(place):
    db = place.open()
    for number in (1, 2):
        say(db, number)
    db.sessions.fork("s", "t", turn=1)
    say(db, 3, "t")
    db.sessions.fork("t", "u")
    db.sessions.restore("u", to_turn=1)

    assert say(db, 4, "u") == expected([1], 4)
    for each in "stu":
        check_replay(db, each)


def test_each_turn_can_be_loaded(place):
    db = place.open()
    for number in (1, 2):
        say(db, number)

    view = db.sessions.load("s", turn=1)
    assert [message.content for message in view.messages if message.role == "user"] == ["question 1"]
    assert list(view.state["items"]) == ["i1"]
    assert [turn.status for turn in db.sessions.load("s").turns] == ["completed", "completed"]
    assert dict(db.sessions.load("s").usage)["input_tokens"] == 40
    diff = db.sessions.diff("s", view.version, db.sessions.head("s").version)
    assert diff
    history = db.sessions.history("s", last_turns=1).to_openai()
    assert [m["content"] for m in history if m["role"] == "user"] == ["question 2"]


@tool(requires_confirmation=True)
def pay(amount: int) -> str:
    """Pay."""
    return f"paid {amount}"


def test_the_paused_version_stays_readable_after_it_was_continued(place):
    model = FakeModel([[call("pay", amount=3)]])
    first = Agent(model=model, db=place.open(), session_id="s", tools=[pay], telemetry=False)
    paused = first.run("Pay 3.")
    assert paused.status == RunStatus.paused
    db = place.open()
    version = db.sessions.head("s").version
    before = db.get_run(paused.run_id, deserialize=False)
    assert [pause.turn for pause in db.sessions.load("s").paused] == [1]
    requirements = db.get_run(paused.run_id).requirements
    requirements[0].confirm()
    second = Agent(model=FakeModel(["Done."]), db=db, session_id="s", tools=[pay], telemetry=False)
    second.continue_run(run_id=paused.run_id, requirements=requirements)

    assert db.get_run(paused.run_id).status == RunStatus.completed
    then = db.sessions.stored("s", version=version).runs[paused.run_id]
    assert json.dumps(then["run_data"], sort_keys=True) == json.dumps(before["run_data"], sort_keys=True)
    assert then["status"] == "PAUSED"
    types = [event.type for event in db.sessions.read("s")]
    assert [t for t in types if t.startswith("turn.")] == [
        "turn.started", "turn.paused", "turn.resumed", "turn.completed",
    ]  # fmt: skip
    check_replay(db, "s")


def test_every_tool_batch_is_on_record_when_agno_hands_it_over(place):
    seen = []

    def look(at: int) -> str:
        """Look at the log."""
        events = db.sessions.read("s") if db.sessions.head("s").version else ()
        seen.append([event.type for event in events].count("tool.returned"))
        return "seen"

    db = place.open()
    script = [[call("look", at=1)], [call("look", at=2)], [call("look", at=3)], "done"]
    model = FakeModel(script)
    options = {"tools": [look], "telemetry": False, "checkpoint": "tool-batch"}
    Agent(model=model, db=db, session_id="s", **options).run("Go.")

    assert seen == [0, 1, 2]
    assert [event.type for event in db.sessions.read("s")].count("tool.called") == 3
    assert [turn.status for turn in db.sessions.load("s").turns] == ["completed"]
