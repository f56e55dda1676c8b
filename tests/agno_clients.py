"""A Db of Agno's, sync or async, and what its agents do with it: one API for both, as in tests/facade.py."""

from __future__ import annotations

import inspect
import json
from typing import Any

from agno.agent import Agent
from agno.run import RunContext
from agno.tools import tool

from tests.agno_replay import replayed_rows, stored_rows
from tests.agno_scenarios import FakeModel, call
from tests.facade import Blocking, LoopThread

USER = "ada"


def put(run_context: RunContext, item: str) -> str:
    """Puts an item on the list."""
    run_context.session_state["items"] = [*run_context.session_state.get("items", []), item]
    return f"put {item}"


@tool(requires_confirmation=True)
def pay(amount: int) -> str:
    """Pays an amount."""
    return f"paid {amount}"


class Client:
    """A Db, and its log where it is one of ours.

    Attributes:
        db: The Db, whose methods give what they would be awaited for.
        log: Its `sessions`, likewise; None of a plain one.
        sent: What the model was sent last: role and content of each message, instructions aside.
    """

    def __init__(self, db: Any, loop: LoopThread) -> None:
        self.own = db
        self.is_async = inspect.iscoroutinefunction(db.get_session)
        self._loop = loop
        self.db = self._blocking(db)
        self.log = self._blocking(db.sessions) if hasattr(db, "sessions") else None
        self.sent: list[tuple[str, Any]] = []

    def _blocking(self, inner: Any) -> Any:
        return Blocking(self._loop, inner) if self.is_async else inner

    def say(self, words: str, session_id: str = "s", **options: Any) -> Any:
        """One run, in which an item is put on the list of the session's state."""
        return self._run([[call("put", item=words)], f"answer to {words}"], session_id, words, **options)

    def ask_to_pay(self, words: str, session_id: str = "s") -> Any:
        """A run that waits for a confirmation."""
        return self._run([[call("pay", amount=12)]], session_id, words)

    def confirm(self, run_id: str, session_id: str = "s") -> Any:
        """Continue a run that waits."""
        run = next(run for run in self.db.get_session(session_id).runs if run.run_id == run_id)
        for requirement in run.requirements:
            requirement.confirm()
        options = {"run_id": run_id, "session_id": session_id, "requirements": run.requirements}
        return self._drive(["it is paid"], session_id, "continue_run", **options)

    def regenerate(self, run_id: str, session_id: str = "s") -> Any:
        """Have a run answered anew."""
        options = {"run_id": run_id, "session_id": session_id, "regenerate": True}
        return self._drive(["another answer"], session_id, "continue_run", **options)

    def _run(self, script: Any, session_id: str, words: str, **options: Any) -> Any:
        return self._drive(script, session_id, "run", words, **options)

    def _drive(self, script: Any, session: str, verb: str, /, *args: Any, **options: Any) -> Any:
        model = FakeModel(script)
        made = {key: options.pop(key) for key in ("checkpoint", "pre_hooks") if key in options}
        agent = Agent(
            id="a", model=model, db=self.own, session_id=session, user_id=USER, tools=[put, pay],
            telemetry=False, add_history_to_context=True, num_history_runs=100, **made,
        )  # fmt: skip
        if self.is_async:
            done = self._loop.run(getattr(agent, f"a{verb}")(*args, **options))
        else:
            done = getattr(agent, verb)(*args, **options)
        self.sent = [each for each in model.seen[0] if each[0] not in ("system", "developer")]
        return done

    def rows(self, session_id: str = "s") -> tuple[str, str]:
        """What Agno's tables have of a session, as text."""
        return stored_rows(self.own, session_id)

    def fold(self, session_id: str = "s", **point: int) -> tuple[str, str]:
        """What the log says that they have, or had."""
        return replayed_rows(self.own, session_id, **point)

    def asked(self, session_id: str = "s") -> list[str]:
        """What the runs of a session were asked, in order."""
        session = self.db.get_session(session_id)
        return [run.input.input_content for run in session.runs] if session else []

    def said(self, session_id: str = "s") -> list[str]:
        """What the user said, as the log has it for a prompt."""
        history = self.log.history(session_id).to_openai()
        return [message["content"] for message in history if message["role"] == "user"]

    def sent_texts(self) -> list[str]:
        """What user and assistant said in the messages that the model was sent last."""
        return [content for role, content in self.sent if role != "tool" and content]


def only(rows: tuple[str, str]) -> tuple[dict[str, Any], Any]:
    """Of a session's rows its state, and its runs."""
    session = json.loads(rows[0]) or {}
    return (session.get("session_data") or {}).get("session_state") or {}, json.loads(rows[1])
