"""Long sessions as a plain Db of Agno's has left them; ours takes them over."""

from __future__ import annotations

import uuid
from typing import Any

from agno.models.message import Message
from agno.run.agent import RunOutput
from agno.run.base import RunStatus
from agno.session.agent import AgentSession


def fill(db: Any, session_id: str, runs: int, said: str = "Hm.") -> None:
    """Give a database a session of that many runs, each of two messages."""
    db.upsert_session(AgentSession(session_id=session_id, agent_id="a", created_at=1))
    table = db._get_table(table_type="runs", create_table_if_not_found=True)
    with db.db_engine.begin() as connection:
        connection.execute(table.insert(), [_row(session_id, index, said) for index in range(runs)])


def _row(session_id: str, index: int, said: str) -> dict[str, Any]:
    messages = [Message(role="user", content=said), Message(role="assistant", content=said)]
    run = RunOutput(
        run_id=uuid.uuid4().hex, session_id=session_id, agent_id="a", status=RunStatus.completed,
        content=said, messages=messages, created_at=index,
    )  # fmt: skip
    return {
        "run_id": run.run_id, "session_id": session_id, "run_type": "agent", "agent_id": "a",
        "status": "COMPLETED", "run_index": index, "run_data": run.to_dict(), "created_at": index,
        "updated_at": index,
    }  # fmt: skip
