"""What messages and tool calls do to a session view.

Every function takes the builder, the event and its payload ({} where that is gone), makes what can
be made of it, and returns what was wrong, or None.
"""

from __future__ import annotations

from typing import Any

from kern_events import Event
from projections.session.builder import INSTRUCTIONS, Builder
from projections.session.content import json_text, parse_content
from projections.session.view import Message, PendingCall, ToolCall

Payload = dict[str, Any]


def added(builder: Builder, event: Event, payload: Payload) -> str | None:
    """`message.added`: one more message; a call in it is pending, a result in it is an outcome."""
    message, problem = parse_message(payload, event, event.event_id.hex())
    if message is None:
        return problem
    builder.add_message(message)
    if message.tool_calls:
        _add_pending(builder, message, event, message.tool_calls)
    call_id = message.tool_call_id
    if call_id is not None and builder.pending.take(call_id) is None:
        return problem or "no open call of that id"
    return problem


def replaced(builder: Builder, event: Event, payload: Payload) -> str | None:
    """`message.replaced`: another message under the same id, in full; only the role may be left out."""
    builder.settle()
    old = _named(builder, payload)
    if old is None:
        return "no message of that id"
    new, problem = parse_message({"role": old.role, **payload}, event, old.id, since=old)
    if new is None:
        return problem
    builder.change_message(old, new)
    kept = {call.id for call in new.tool_calls}
    builder.pending.drop(old.id, kept)
    known = {call.id for call in old.tool_calls}
    _add_pending(builder, new, event, tuple(call for call in new.tool_calls if call.id not in known))
    return problem


def removed(builder: Builder, event: Event, payload: Payload) -> str | None:
    """`message.removed`: the message goes, and with it its calls that have no outcome."""
    builder.settle()
    old = _named(builder, payload)
    if old is None:
        return "no message of that id"
    builder.remove_message(old.id)
    builder.pending.drop(old.id)
    return None


def compacted(builder: Builder, event: Event, payload: Payload) -> str | None:
    """`messages.compacted`: in the context alone, messages up to and with `through` are replaced.

    By `replacement` (messages) or `summary` (a text, as a message of role system). Instructions at
    the start stay, unless the replacement begins with some of its own.
    """
    through = payload.get("through")
    builder.settle()
    place = builder.context.find(through) if type(through) is str else None
    if type(through) is not str or place is None:
        return "no message of that id in the context"
    replacement, problem = _replacement(payload, event)
    if replacement is None:
        return problem
    brings_own = bool(replacement) and payload.get("summary") is None and replacement[0].role in INSTRUCTIONS
    builder.replace_start(place, replacement, keep=not brings_own)
    return problem


def cleared(builder: Builder, event: Event, payload: Payload) -> None:
    """`session.cleared`: the context is empty, the transcript stays."""
    builder.settle()
    builder.clear_context()


def called(builder: Builder, event: Event, payload: Payload) -> str | None:
    """`tool.called`: starts a call that a message carries, or with a name is the call itself."""
    call_id, name = payload.get("call_id"), payload.get("name")
    if type(call_id) is not str:
        return "no call id"
    if name is None:
        return _mark_running(builder, event, call_id)
    call, problem = parse_call({"id": call_id, "name": name, "arguments": payload.get("arguments")})
    if call is None:
        return problem
    message = _extended(builder, event, call) or _carrier(builder, event, call)
    builder.pending = builder.pending.append(
        PendingCall(call.id, call.name, call.arguments, message.id, event.turn, event.version, event.version)
    )
    return problem


def returned(builder: Builder, event: Event, payload: Payload) -> str | None:
    """`tool.returned`: a message of role tool; a result that is no text becomes its JSON text."""
    return _outcome(builder, event, payload, "result")


def failed(builder: Builder, event: Event, payload: Payload) -> str | None:
    """`tool.failed`: a message of role tool that says the error."""
    return _outcome(builder, event, payload, "error")


def parse_message(
    payload: Payload, event: Event, id: str, since: Message | None = None
) -> tuple[Message | None, str | None]:
    """A recorded message, or None without a role; and what was wrong with it.

    `id` is for a message that brings none, `since` the message that it replaces.
    """
    get = payload.get
    role, name, own_id, call_id = get("role"), get("name"), get("id"), get("tool_call_id")
    if type(role) is not str:
        return None, "no role"
    content = get("content")
    problem: str | None = None
    if type(content) is not str:
        content, problem = parse_content(content)
    calls: tuple[ToolCall, ...] = ()
    if recorded := get("tool_calls"):
        calls, problem = _parse_calls(recorded, problem)
    named = (name is None or type(name) is str) and (call_id is None or type(call_id) is str)
    if not named or not (own_id is None or type(own_id) is str):
        problem = problem or "a name or an id is no text"
        name, own_id, call_id = (each if type(each) is str else None for each in (name, own_id, call_id))
    turn, version, at_us = event.turn, event.version, event.at_us
    if since is not None:
        turn, version, at_us = since.turn, since.version, since.at_us
    return Message(own_id or id, role, content, name, calls, call_id, turn, version, at_us), problem


def parse_call(value: Any) -> tuple[ToolCall | None, str | None]:
    """A recorded tool call, or None without id or name; and what was wrong with it."""
    if type(value) is not dict:
        return None, "a tool call is no object"
    id, name, arguments = value.get("id"), value.get("name"), value.get("arguments")
    if type(id) is not str or type(name) is not str:
        return None, "a tool call without id or name"
    if type(arguments) is str:
        return ToolCall(id, name, arguments), None
    text = "{}" if arguments is None else json_text(arguments)
    return ToolCall(id, name, text), "the arguments of a call are no text"


def _parse_calls(value: Any, problem: str | None) -> tuple[tuple[ToolCall, ...], str | None]:
    if type(value) is not list:
        return (), problem or "tool calls are no list"
    calls = []
    for each in value:
        call, found = parse_call(each)
        problem = problem or found
        if call is not None:
            calls.append(call)
    return tuple(calls), problem


def _named(builder: Builder, payload: Payload) -> Message | None:
    id = payload.get("id")
    place = builder.messages.find(id) if type(id) is str else None
    return None if place is None else builder.messages.at(place)


def _add_pending(builder: Builder, message: Message, event: Event, calls: tuple[ToolCall, ...]) -> None:
    for call in calls:
        builder.pending = builder.pending.append(
            PendingCall(call.id, call.name, call.arguments, message.id, event.turn, event.version, None)
        )


def _mark_running(builder: Builder, event: Event, call_id: str) -> str | None:
    return None if builder.pending.start(call_id, event.version) else "no open call of that id"


def _extended(builder: Builder, event: Event, call: ToolCall) -> Message | None:
    """The last message with this call added, if `tool.called` made it in this turn: a parallel call."""
    found, before = builder.last_call(), builder.pending.last()
    if found is None or before is None:
        return None
    last, last_call = found
    made_here = before.called == before.version and before.message_id == last.id
    if not made_here or last_call.id != before.id or last.role != "assistant" or last.turn != event.turn:
        return None
    builder.add_call(call)
    return last


def _carrier(builder: Builder, event: Event, call: ToolCall) -> Message:
    id = event.event_id.hex()
    message = Message(id, "assistant", None, None, (call,), None, event.turn, event.version, event.at_us)
    builder.add_message(message)
    return message


def _outcome(builder: Builder, event: Event, payload: Payload, key: str) -> str | None:
    call_id, name, value = payload.get("call_id"), payload.get("name"), payload.get(key)
    if type(call_id) is not str:
        return "no call id"
    content = value if type(value) is str else json_text(value)
    problem = None if key in payload else f"no {key}"
    if name is not None and type(name) is not str:
        name, problem = None, "the name is no text"
    builder.add_message(
        Message(
            event.event_id.hex(), "tool", content, name, (), call_id, event.turn, event.version, event.at_us
        )
    )
    return problem if builder.pending.take(call_id) else problem or "no open call of that id"


def _replacement(payload: Payload, event: Event) -> tuple[list[Message] | None, str | None]:
    summary, recorded = payload.get("summary"), payload.get("replacement")
    if type(summary) is str:
        recorded = [{"role": "system", "content": summary}]
    if type(recorded) is not list:
        return None, "neither a replacement nor a summary"
    messages, problem = [], None
    for index, value in enumerate(recorded):
        message, found = parse_message(
            value if type(value) is dict else {}, event, f"{event.event_id.hex()}:{index}"
        )
        problem = problem or found
        if message is not None:
            messages.append(message)
    return messages, problem
