"""`pre_hooks=[db.asked]`: a run that dies leaves its question, and one that ends says it once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from agno.agent import Agent
from agno.exceptions import ModelProviderError
from agno.media import Image
from agno.models.message import Message
from agno.run.agent import RunInput, RunOutput
from agno.run.base import RunStatus
from agno.team import Team
from agno.workflow import Step, Workflow

from kern_events.adapters.agno import NotStored
from kern_events.errors import OwnerMismatch, SessionDeleted, SessionNotFound
from projections.session import Media
from tests.agno_replay import check_replay
from tests.agno_scenarios import FakeModel, _pay_tool, call, note


class Died(BaseException):
    """The process ends here."""


def agent(db, script, session_id="s", user_id="ada", **options):
    model = script if isinstance(script, FakeModel) else FakeModel(script)
    hooks = {} if db is None else {"db": db, "pre_hooks": [db.asked]}
    return Agent(
        id="a", name="A", model=model, session_id=session_id, user_id=user_id, tools=[note, _pay_tool()],
        telemetry=False, add_history_to_context=True, **hooks, **options,
    )  # fmt: skip


def die(side, runner, words="question", **options):
    with pytest.raises(Died):
        side.run(runner, words, **options)


def said(sessions, session_id="s"):
    return [each.content for each in sessions.load(session_id).messages if each.role == "user"]


def checked(side, db, *expected, session_id="s"):
    """The questions of a session: in the view, in a prompt, and as its rows have them."""
    sessions = side.sessions(db)
    assert said(sessions, session_id) == list(expected)
    prompt = sessions.history(session_id).to_openai()
    assert [each["content"] for each in prompt if each["role"] == "user"] == list(expected)
    assert not sessions.load(session_id).incomplete
    check_replay(side.place.open(), session_id)


def test_a_run_that_dies_leaves_its_question(side):
    db = side.open()
    for words in ("first", "second"):
        die(side, agent(db, [Died()]), words)
    again = side.open()

    assert said(side.sessions(again)) == ["first", "second"]
    assert [turn.status for turn in side.sessions(again).load("s").turns] == ["interrupted", "open"]
    side.run(agent(again, ["answer"]), "third")
    checked(side, again, "first", "second", "third")
    assert len(side.do(again.get_session, "s").runs) == 1


def test_a_run_that_ends_has_its_question_once(side):
    db, plain = side.open(), side.place.plain()
    script = [[call("note", item="tea")], "noted"]
    for words in ("first", "second"):
        side.run(agent(db, list(script)), words)
        Agent(id="a", name="A", model=FakeModel(list(script)), db=plain, session_id="p", user_id="ada",
              tools=[note, _pay_tool()], telemetry=False, add_history_to_context=True).run(words)  # fmt: skip

    checked(side, db, "first", "second")
    ours, theirs = (side.place.open().sessions.load(each) for each in ("s", "p"))
    assert [(m.role, m.content, m.turn) for m in ours.messages] == [
        (m.role, m.content, m.turn) for m in theirs.messages
    ]
    assert [turn.status for turn in ours.turns] == ["completed"] * 2


def test_attempts_pauses_and_failures_say_it_once(side):
    db = side.open()
    side.run(agent(db, [ModelProviderError("no"), "answer"], retries=1, delay_between_retries=0), "again")
    paused = agent(db, [[call("pay", amount=3)], "paid"])
    run = side.run(paused, "pay")
    run.tools[0].confirmed = True
    side.do(paused.acontinue_run if side.loop else paused.continue_run, run_response=run)
    side.run(agent(db, [ModelProviderError("no")]), "fail")

    checked(side, db, "again", "pay", "fail")
    statuses = [turn.status for turn in side.sessions(db).load("s").turns]
    assert statuses == ["completed", "completed", "failed"]


def test_a_team_says_it_once_and_its_members_nothing(side):
    db = side.open()

    def team(script):
        return Team(
            members=[agent(db, ["done"], None)], model=FakeModel(script), db=db, session_id="s",
            pre_hooks=[db.asked], telemetry=False,
        )  # fmt: skip

    side.run(team([[call("delegate_task_to_member", member_id="a", task="do")], "said"]), "first")
    checked(side, db, "first")
    die(side, team([Died()]), "second")
    assert said(side.sessions(db)) == ["first", "second"]


def test_the_step_of_a_workflow_says_nothing_by_itself(side):
    db = side.open()
    steps = [Step(name="one", agent=agent(db, ["done"], None))]
    side.run(Workflow(steps=steps, db=db, session_id="s", telemetry=False), "question")

    checked(side, db, "question")


def test_media_are_on_record_too(side):
    db = side.open()
    die(side, agent(db, [Died()]), "What is this?", images=[Image(content=b"cat")])

    asked = side.sessions(db).load("s").messages[0].content
    assert [part.kind for part in asked if isinstance(part, Media)] == ["image_url"]


def test_a_question_may_be_more_than_a_text(side):
    db = side.open()
    for given in (Message(role="user", content="as a message"), {"as": "an object"}, ["as", "a list"]):
        die(side, agent(db, [Died()]), given)

    assert said(side.sessions(db)) == ["as a message", '{"as":"an object"}', '["as","a list"]']


def test_nobody_is_asked_what_cannot_be_stored(side):
    db, model = side.open(), FakeModel(["answer"])
    side.run(agent(db, ["answer"]), "mine")
    with pytest.raises(NotStored) as caught:
        side.run(agent(db, model, user_id="bob"), "not mine")
    assert isinstance(caught.value.__cause__, OwnerMismatch)

    cached = agent(db, model, cache_session=True)
    side.do(cached.aget_session if side.loop else cached.get_session)
    side.place.open().delete_session("s")
    with pytest.raises(NotStored) as caught:
        side.run(cached, "gone")
    assert isinstance(caught.value.__cause__, SessionDeleted)
    assert model.seen == []


def test_the_question_of_a_dead_run_is_erased_and_restored_like_any_other(side):
    db = side.open()
    side.run(agent(db, ["answer"]), "first")
    die(side, agent(db, [Died()]), "second")
    sessions = side.sessions(db)
    sessions.fork("s", "fork")
    sessions.restore("s", to_turn=1)
    side.run(agent(db, ["answer"]), "third")

    checked(side, db, "first", "third")
    assert said(sessions, "fork") == ["first", "second"]
    side.do(db.delete_session, "s")
    with pytest.raises(SessionNotFound):
        sessions.load("s")
    events = [event for event in side.place.open().sessions.read_all() if event.session_id == "s"]
    assert all(event.erased for event in events if event.type.startswith("message."))


def test_a_run_that_is_stored_before_it_begins_has_its_question(side):
    """As Agno does with one in the background."""
    db = side.open()
    side.run(agent(db, ["answer"]), "first")
    session = side.do(db.get_session, "s")
    run = RunOutput(run_id="r", agent_id="a", session_id="s", user_id="ada", status=RunStatus.pending)
    side.do(db.upsert_run, run, "s", "ada")
    asked = {"run_input": RunInput("second"), "run_context": SimpleNamespace(run_id="r"), "session": session}
    for _ in range(2):
        side.do(db.asked, **asked, user_id="ada")

    checked(side, db, "first", "second")
    run.messages, run.status = [Message(role="user", content="second!")], RunStatus.completed
    side.do(db.upsert_run, run, "s", "ada")
    side.do(db.asked, **asked, user_id="ada")  # Agno has run it in the background, after the run.
    checked(side, db, "first", "second!")
    assert [turn.status for turn in side.sessions(db).load("s").turns] == ["completed"] * 2


def test_an_agent_with_the_hook_can_be_copied(side):
    db = side.open()
    side.run(agent(db, ["answer"]).deep_copy(), "question")

    checked(side, db, "question")
