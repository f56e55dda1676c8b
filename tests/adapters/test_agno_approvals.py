"""Approvals, which Agno keeps in a table of their own, are events of the session that waits for them."""

from __future__ import annotations

import hashlib

import pytest
from agno.agent import Agent
from agno.approval import approval
from agno.team import Team
from agno.tools import tool

from tests.agno_replay import check_replay
from tests.agno_scenarios import FakeModel, call

SHOWN = hashlib.sha256(b'{"amount":3,"to":"bob"}').hexdigest()


def pay(to: str, amount: int) -> str:
    """Pays an amount."""
    return f"paid {amount}"


def agent(db, script, session_id="s", kind="required"):
    tools = [approval(type=kind)(tool(requires_confirmation=True)(pay))]
    return Agent(
        id="a", model=FakeModel(script), db=db, session_id=session_id, user_id="ada", tools=tools,
        telemetry=False,
    )  # fmt: skip


def paused(side, db, session_id="s"):
    """A run that waits for an approval, and its agent."""
    runner = agent(db, [[call("pay", to="bob", amount=3)], "paid"], session_id)
    return runner, side.run(runner, "pay bob")


def approvals(side, db, session_id="s"):
    events = side.sessions(db).read(session_id)
    return [event for event in events if event.type.startswith("approval.")]


def proceed(side, runner, run):
    go_on = runner.acontinue_run if side.loop else runner.continue_run
    return side.do(go_on, run_id=run.run_id, session_id=run.session_id)


@pytest.mark.parametrize(
    ("status", "data", "decision"),
    [("approved", None, "approved"), ("rejected", {"note": "too much"}, "refused"),
     ("approved", {"values": {"amount": 2}}, "modified")],
)  # fmt: skip
def test_who_decided_what_on_which_arguments_is_on_record(side, status, data, decision):
    db = side.open()
    runner, run = paused(side, db)
    [row], _ = side.do(db.get_approvals, run_id=run.run_id)
    values = {"status": status, "resolved_by": "boss", "resolved_at": 17, "resolution_data": data}
    assert side.do(db.update_approval, row["id"], expected_status="pending", **values)
    assert side.do(db.update_approval, row["id"], expected_status="pending", **values) is None

    asked, decided = approvals(side, db)
    assert (asked.type, decided.type) == ("approval.requested", "approval.resolved")
    assert asked.payload["call_id"] == decided.payload["call_id"] == run.tools[0].tool_call_id
    assert asked.payload["arguments_digest"] == decided.payload["arguments_digest"] == SHOWN
    said = {key: decided.payload.get(key) for key in ("decision", "by", "at_s", "note")}
    assert said == {"decision": decision, "by": "boss", "at_s": 17, "note": (data or {}).get("note")}
    assert {asked.turn, decided.turn} == {1} and asked.payload["run_id"] == run.run_id
    proceed(side, runner, run)
    view = side.sessions(db).load("s")
    assert ([turn.status for turn in view.turns], view.incomplete) == (["completed"], False)
    check_replay(side.place.open(), "s")


def test_the_second_run_of_a_session_asks_in_its_own_turn(side):
    db = side.open()
    side.run(agent(db, ["hello"]), "hi")
    paused(side, db)

    assert [event.turn for event in approvals(side, db)] == [2]
    assert [turn.status for turn in side.sessions(db).load("s").turns] == ["completed", "paused"]
    check_replay(side.place.open(), "s")


def test_a_member_asks_in_the_turn_of_its_team(side):
    db = side.open()
    script = [[call("delegate_task_to_member", member_id="a", task="pay")], "done"]
    member = agent(db, [[call("pay", to="bob", amount=3)], "paid"], None)
    team = Team(members=[member], model=FakeModel(script), db=db, session_id="s", telemetry=False)
    side.run(team, "pay bob")

    assert [(event.type, event.turn) for event in approvals(side, db)] == [("approval.requested", 1)]
    assert len(side.sessions(db).load("s").turns) == 1
    check_replay(side.place.open(), "s")


def test_what_nobody_has_seen_asked_is_recorded_with_its_decision(side):
    """Somebody else's Db made the approval, and this one decides."""
    run = agent_run(side.place.plain())
    db = side.open()
    [row], _ = side.do(db.get_approvals, run_id=run.run_id)
    side.do(db.update_approval, row["id"], status="approved", resolved_by="boss")

    assert [event.type for event in approvals(side, db)] == ["approval.requested", "approval.resolved"]
    check_replay(side.place.open(), "s")


def agent_run(db):
    return agent(db, [[call("pay", to="bob", amount=3)], "paid"]).run("pay bob")


def test_an_approval_for_the_audit_alone_is_recorded_as_decided(side):
    db = side.open()
    runner = agent(db, [[call("pay", to="bob", amount=3)], "paid"], kind="audit")
    run = side.run(runner, "pay bob")
    run.tools[0].confirmed = True
    side.do(runner.acontinue_run if side.loop else runner.continue_run, run_response=run)

    [decided] = approvals(side, db)
    assert (decided.type, decided.payload["decision"]) == ("approval.resolved", "approved")
    assert decided.payload["arguments_digest"] == SHOWN
    check_replay(side.place.open(), "s")


def test_what_is_asked_goes_with_the_session(side):
    db = side.open()
    paused(side, db)
    side.do(db.delete_session, "s")

    events = side.place.open().sessions.read_all()
    assert all(event.erased for event in events if event.type.startswith("approval."))
    assert side.place.open().sessions.verify("s").ok
