"""The calls of tools that Agno keeps beside a run's messages, as the difference to what those say.

Agno stores what a tool has answered twice: in a message, and in the run's list of calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kern_events.delta import apply_ops, state_ops


def call_ops(before: Any, messages: Sequence[Any], after: Any) -> list[Any] | None:
    """The ops that give a run's calls; None where messages say nothing of them.

    Args:
        before: The calls that the run had.
        messages: Those of the run now.
        after: The calls that it has now.
    """
    said = _said(before, messages)
    if not said or type(after) is not list or not all(type(each) is dict for each in after):
        return None
    return state_ops(_numbered(said), _numbered(after))


def calls_after(before: Any, messages: Sequence[Any], ops: Any) -> list[Any]:
    """The calls that call_ops has told."""
    numbered = apply_ops(_numbered(_said(before, messages)), ops)
    return [numbered[key] for key in map(str, range(len(numbered))) if key in numbered]


def _said(before: Any, messages: Sequence[Any]) -> list[Any]:
    """What is known of each call that has an answer: what it was, or what the answer's message says."""
    had = before if type(before) is list else []
    known = {_id(call): call for call in had if _id(call) is not None}
    answers = [each for each in messages if type(each) is dict and each.get("role") == "tool"]
    return [known.get(_id(each)) or _call(each) for each in answers if not each.get("from_history")]


def _call(answer: Mapping[str, Any]) -> dict[str, Any]:
    copied = ("tool_call_id", "tool_name", "tool_args", "tool_call_error")
    return {**{key: answer[key] for key in copied if key in answer}, "result": answer.get("content")}


def _id(value: Any) -> str | None:
    id = value.get("tool_call_id") if type(value) is dict else None
    return id if type(id) is str else None


def _numbered(items: Sequence[Any]) -> dict[str, Any]:
    return {str(number): item for number, item in enumerate(items)}
