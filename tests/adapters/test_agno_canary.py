"""A session that Agno deletes leaves its text nowhere: not in its rows, nor in the log, nor in the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from agno.models.message import Message
from agno.run.agent import RunOutput
from agno.run.base import RunStatus
from agno.session.agent import AgentSession
from sqlalchemy import event

from tests import canaries
from tests.adapters.test_agno_edges import run_ids, run_of


def planted(db):
    """A session of Agno's, and a fork of it, with the text in everything that Agno stores of one."""
    canary = canaries.new()
    data = {"session_state": {canary: canary}, "session_name": canary}
    session = AgentSession(
        session_id="s", agent_id="a", user_id=canary, session_data=data, metadata={"w": canary}, created_at=1
    )
    db.upsert_session(session)
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": canary}}
    messages = [
        Message(role="user", content=f"{canary} {'x' * 5_000}"),
        Message(role="assistant", tool_calls=[call]),
        Message(role="tool", content=canary, tool_call_id="c1", tool_name="look"),
        Message(role="assistant", content=canary),
    ]
    for number in range(4):
        run = RunOutput(
            run_id=f"r{number}", session_id="s", agent_id="a", content=canary, messages=messages,
            status=RunStatus.completed, user_id=canary,
        )  # fmt: skip
        db.upsert_run(run, "s", canary)
    db.sessions.restore("s", to_turn=2, reason=canary)
    db.sessions.fork("s", "t")
    db.upsert_run(run_of("r9", session_id="t"), "t", None)
    db.sessions.load("t")
    return canary


def counted(place, canary):
    if place.backend == "postgres":
        return canaries.in_postgres_rows(_plain(place.options["db_url"]), place.options["db_schema"], canary)
    path = Path(place.options["db_file"])
    return canaries.in_files(path.parent, canary) + canaries.in_sqlite_rows(path, canary)


def _plain(url):
    return url.replace("postgresql+psycopg:", "postgresql:")


def leaves_text(driver, record):
    """As a SQLite that was built without secure_delete; the tests' own may have it on."""
    driver.execute("PRAGMA secure_delete = OFF")


@pytest.mark.parametrize("by", ["agno", "agno, several", "the log", "others"])
def test_a_deleted_text_is_nowhere(place, by):
    db = place.open()
    if place.backend == "sqlite":
        event.listen(db.db_engine, "connect", leaves_text)
    canary = planted(db)
    assert counted(place, canary) > 50
    if by == "agno":
        db.delete_session("s")
    elif by == "agno, several":
        db.delete_sessions(["s"])
    elif by == "the log":
        db.sessions.delete("s")
    else:
        place.plain().delete_session("s")
        db.adopt()

    assert counted(place, canary) == 0
    assert run_ids(db, "t") == ["r9"]
    assert db.sessions.verify().ok
