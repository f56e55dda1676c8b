"""A session that is deleted while a run of it goes on stays deleted, and says so to the run."""

from __future__ import annotations

import pytest
from agno.team import Team
from agno.workflow import Step, Workflow

from kern_events.adapters.agno import NotStored
from kern_events.errors import SessionDeleted
from tests.adapters.test_agno_edges import elsewhere
from tests.agno_replay import check_replay
from tests.agno_scenarios import FakeModel, _agent, call, note


def agent(db, script, session_id="s", **options):
    return _agent(db, script, session_id, tools=[note], **options)


def meanwhile(delete, answer="private answer"):
    def answered(messages):
        delete()
        return answer

    return answered


def refused(side, runner, *words):
    with pytest.raises(NotStored) as caught:
        side.run(runner, *words)
    assert isinstance(caught.value.__cause__, SessionDeleted)


def test_a_run_does_not_bring_back_what_was_deleted_meanwhile(side):
    db, other, plain = side.open(), side.place.open(), side.place.plain()
    ways = {
        "ours": other.delete_session,
        "many": lambda session_id: other.delete_sessions([session_id]),
        "log": other.sessions.delete,
        "plain": plain.delete_session,
    }
    for how, delete in ways.items():
        side.run(agent(db, ["private answer"], how), "private question")
        refused(side, agent(db, [meanwhile(lambda: delete(how))], how), "private too")  # noqa: B023

        assert side.do(db.get_session, how) is None, how
        assert plain.get_session(how) is None, how
    side.run(agent(db, ["hello"], "plain"), "new")
    assert [run.input.input_content for run in plain.get_session("plain").runs] == ["new"]
    assert other.sessions.verify().ok


def test_a_run_says_nothing_in_a_session_that_was_begun_anew_meanwhile(side):
    db, other = side.open(), side.place.open()
    side.run(agent(db, ["private answer"]), "private question")

    def begun_anew():
        other.delete_session("s")
        agent(other, ["hello"]).run("new")

    refused(side, agent(db, [meanwhile(begun_anew)]), "private too")
    assert [run.input.input_content for run in side.do(db.get_session, "s").runs] == ["new"]
    check_replay(other, "s")


def test_a_run_whose_batch_was_stored_is_not_stored_again(side):
    """The session is new; what is on record of it is what the run has stored on the way."""
    db, delete = side.open(), lambda: side.place.plain().delete_session("s")
    script = [[call("note", item="tea")], meanwhile(delete)]
    refused(side, agent(db, script, checkpoint="tool-batch"), "private")

    assert side.do(db.get_session, "s") is None


def test_teams_and_workflows_are_told_too(side):
    db, plain = side.open(), side.place.plain()
    options = {"db": db, "session_id": "s", "telemetry": False}

    def delete():
        plain.delete_session("s")

    def runners(script):
        yield Team(members=[], model=FakeModel(script), **options)
        yield Workflow(steps=[Step(name="one", agent=_agent(None, script, None))], **options)

    for first, second in zip(runners(["hello"]), runners([meanwhile(delete)]), strict=True):
        side.run(first, "private")
        refused(side, second, "private too")
        assert plain.get_session("s") is None


def test_a_run_alone_is_not_stored_in_what_was_deleted(side):
    db = side.open()
    run = side.run(agent(db, ["hello"]), "private")
    side.do(db.delete_session, "s")
    with pytest.raises(NotStored):
        side.do(db.upsert_run, run, "s", "ada")

    assert side.do(db.get_run, run.run_id) is None


def test_a_restore_meanwhile_is_no_deletion(side):
    db = side.open()
    for words in ("one", "two"):
        side.run(agent(db, ["hello"]), words)
    back = meanwhile(lambda: side.place.open().sessions.restore("s", to_turn=1))
    side.run(agent(db, [back]), "three")

    assert [run.input.input_content for run in side.do(db.get_session, "s").runs] == ["one", "three"]


@pytest.mark.parametrize("by", ["agno", "log", "elsewhere"])
def test_what_was_folded_away_goes_with_its_session(side, by):
    """Agno keeps the messages that a compaction has folded in a table of their own."""
    db, plain = side.open(), side.place.plain()
    side.run(agent(db, ["hello"]), "private")
    row = {"compaction_id": "c", "session_id": "s", "archived_messages": "private", "created_at": 1}
    plain.upsert_compaction(row)
    if by == "agno":
        side.do(db.delete_session, "s")
    elif by == "log":
        side.sessions(db).delete("s")
    else:
        with elsewhere(side.place.open()) as log:
            log.delete("s")
        assert side.do(db.get_session, "s") is None

    assert plain.get_compactions_for_session("s") == []
