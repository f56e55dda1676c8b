"""Lists and runs show what another program did to the log, and a list asks only of what has moved since."""

from __future__ import annotations

import pytest
from agno.session.agent import AgentSession
from agno.session.team import TeamSession
from agno.session.workflow import WorkflowSession

from kern_events.adapters.agno.tables import Tables
from tests.adapters.test_agno_edges import begun, elsewhere, run_of
from tests.agno_scenarios import rows


def ids(side, db, *session_ids):
    return [run.run_id for run in side.do(db.get_runs, *session_ids)]


def test_runs_show_what_another_program_did(side):
    writer, db = begun(side.place.open(), "r1", "r2"), side.open()
    assert ids(side, db, "s") == ids(side, db) == ["r1", "r2"]
    version = writer.sessions.head("s").version
    with elsewhere(writer) as log:
        log.restore("s", to_turn=1)
        assert side.do(db.get_run, "r2") is None
        assert ids(side, db, "s") == ["r1"]

        log.restore("s", to_version=version)
        assert side.do(db.get_run, "r2").content == "words of r2"
        log.restore("s", to_turn=1)
        assert ids(side, db) == ["r1"]

        log.delete("s")
        assert (ids(side, db, "s"), ids(side, db)) == ([], [])
    assert side.do(db.get_run, "r1") is None


def listed(side, db):
    sessions = side.do(db.get_sessions)
    return {session.session_id: [run.run_id for run in session.runs or ()] for session in sessions}


def test_a_list_asks_only_of_what_has_moved_since_the_last_one(side, monkeypatch):
    writer, db = begun(side.place.open(), "r1", "r2"), side.open()
    begun(writer, "o1", session_id="other")
    before = listed(side, db)

    def all_of_them(*about):
        raise AssertionError("all sessions were asked of")

    monkeypatch.setattr(Tables, "behind", all_of_them)
    assert listed(side, db) == before
    with elsewhere(writer) as log:
        log.restore("s", to_turn=1)
        assert listed(side, db) == {**before, "s": ["r1"]}
        log.fork("s", "t")
        assert len(listed(side, db)["t"]) == 1
        log.delete("s")
        assert listed(side, db) == {"other": ["o1"], "t": []}
    writer.upsert_run(run_of("o2", session_id="other"), "other", "ada")
    assert listed(side, db) == {"other": ["o1", "o2"], "t": []}


KINDS = {
    "agent": (AgentSession, {"agent_id": "a"}),
    "team": (TeamSession, {"team_id": "a"}),
    "workflow": (WorkflowSession, {"workflow_id": "a"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_fork_shared_leaves_its_row_too(side, kind):
    made, owner = KINDS[kind]
    db, other = side.open(), side.place.open()
    data = {f"{kind}_data": {"name": "secret"}}
    side.do(db.upsert_session, made(session_id="s", user_id="ada", created_at=1, **owner, **data))
    other.sessions.fork("s", "t")
    assert rows(other)["t"]["session"][f"{kind}_data"] == {"name": "secret"}

    side.do(db.delete_session, "s")
    row = rows(other)["t"]["session"]
    assert "secret" not in str(row)
    assert row["session_type"] == kind
    assert other.sessions.verify().ok
