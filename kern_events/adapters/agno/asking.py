"""What a run is asked, on record before the model is: the hook of `pre_hooks=[db.asked]`.

Agno stores a run when it ends. The hook records that its turn begins, and the message of the user; when the
run is stored, with the message as the model got it, that one takes the place of this one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from kern_events.adapters.agno.contents import content_of
from kern_events.adapters.agno.folding import OWNERS, Row

Hook = Callable[..., Any]

_PARTS: Final = {"images": "images", "audios": "audio", "videos": "videos", "files": "files"}
_WITHIN: Final = ("team_id", "parent_team_id", "workflow_id")


class Question(NamedTuple):
    """What a run is asked.

    Attributes:
        session_id: The session.
        run_id: The run.
        row: Whose run it is, as its row will say it.
        content: Text or parts.
    """

    session_id: str
    run_id: str
    row: Row
    content: str | list[Row]


def question(
    run_input: Any, run_context: Any, session: Any, runner: Any, user_id: str | None
) -> Question | None:
    """What a run is asked; None for one without input, or within the run of a team or a workflow.

    Args:
        run_input, run_context, session, user_id: As Agno gives them to a hook.
        runner: The agent or the team.
    """
    if any(getattr(runner, field, None) for field in _WITHIN):
        return None
    said = run_input.to_dict()
    message = {field: said[key] for key, field in _PARTS.items() if key in said}
    given = said.get("input_content")
    if isinstance(given, dict) and isinstance(given.get("role"), str):  # It is a message of Agno's.
        given = given.get("content")
    content = content_of({**message, "content": given})
    if content is None:
        return None
    whose = {field: getattr(session, field, None) for field in OWNERS}
    return Question(session.session_id, run_context.run_id, {**whose, "user_id": user_id}, content)
