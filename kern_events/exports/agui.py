"""The events that count as a stream of AG-UI 1.0: runs, messages, tool calls, state deltas.

A turn is a run. What is recorded outside of one gets a run of its own, because the protocol has
nothing outside of runs. State changes are JSON Patch (RFC 6902). A message that is replaced or removed
is a snapshot of all messages. What the protocol has no event for is CUSTOM, named by its type; what
is erased is CUSTOM `kern.erased`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from kern_events.delta import StateEditor
from kern_events.events import Event, Kind
from kern_events.exports.lines import json_line, json_text
from kern_events.exports.patches import Patch, patch_of
from kern_events.frozen import thaw

_ROLES: Final = frozenset({"user", "assistant", "system", "developer"})
_USAGE: Final = {
    "input_tokens": "inputTokens",
    "output_tokens": "outputTokens",
    "total_tokens": "totalTokens",
    "reasoning_tokens": "reasoningTokens",
}
_LARGEST: Final = 2**53 - 1

Made = dict[str, Any]


def lines(events: Iterable[Event], session_id: str) -> Iterator[bytes]:
    """A line for each AG-UI event; `session_id` is the thread."""
    return map(json_line, agui_events(events, session_id))


def agui_events(events: Iterable[Event], session_id: str) -> Iterator[Made]:
    """The events of a live path as AG-UI events, as plain dicts with the names of the wire."""
    stream = _Stream(session_id)
    for event in events:
        stream.take(event)
        yield from stream.taken()
    stream.end()
    yield from stream.taken()


class _Stream:
    """What has been said so far, as far as what follows depends on it."""

    def __init__(self, thread_id: str) -> None:
        self._thread = thread_id
        self._out: list[Made] = []
        self._timestamp = 0
        self._run: str | None = None
        self._turn: int | None = None
        """The turn of the open run; None for a run of what is outside of turns."""
        self._last: str | None = None
        self._parent: str | None = None
        self._messages: list[Made] = []
        self._carrying: tuple[str, int] | None = None
        """The message, and its turn, that a call without one of its own made last: more may follow."""
        self._state = StateEditor({})

    def taken(self) -> list[Made]:
        """What was made since the last call."""
        out, self._out = self._out, []
        return out

    def take(self, event: Event) -> None:
        """The next event of the live path."""
        self._timestamp = event.at_us // 1_000
        if event.kind == Kind.TURN_START:
            self._start(event)
        elif event.kind == Kind.TURN_END or event.type == "turn.paused":
            self._finish(event)
        elif event.type == "turn.resumed":
            self._start(event)
        else:
            if event.type != "session.forked":
                self._ensure_run(event)
            if event.erased:
                self._put("CUSTOM", name="kern.erased", value={"type": event.type, "version": event.version})
            elif not isinstance(event.payload, dict):
                self._custom(event)
            else:
                _HANDLERS.get(event.type, _Stream._custom)(self, event)

    def end(self) -> None:
        """After the last event: a run that is open ends as an error, because nobody knows how it will."""
        self._close_run("the turn has no end", "open")

    # ---------------------------------------------------------------------------------------- runs

    def _start(self, event: Event) -> None:
        self._close_run("another turn began before this one ended", "interrupted")
        payload = event.payload if isinstance(event.payload, dict) else {}
        run_id = payload.get("run_id")
        if not isinstance(run_id, str) or event.type == "turn.resumed":
            run_id = event.event_id.hex()
        self._open_run(run_id, event.turn)

    def _ensure_run(self, event: Event) -> None:
        if self._run is None:
            self._open_run(event.event_id.hex(), None)

    def _open_run(self, run_id: str, turn: int | None) -> None:
        parent = {} if self._parent is None else {"parentRunId": self._parent}
        self._parent = None
        self._run, self._turn, self._last = run_id, turn, run_id
        self._put("RUN_STARTED", threadId=self._thread, runId=run_id, **parent)

    def _finish(self, event: Event) -> None:
        """The end or the pause of a turn. One of a turn whose run is over tells nothing new."""
        if self._run is None or self._turn != event.turn:
            self._ensure_run(event)
            self._custom(event)
            return
        payload = event.payload if isinstance(event.payload, dict) else {}
        usage = _usage(payload.get("usage"))
        if event.type == "turn.failed":
            self._put("RUN_ERROR", **_error(payload.get("error")), **usage)
        else:
            outcome = _outcome(event, payload)
            self._put("RUN_FINISHED", threadId=self._thread, runId=self._run, outcome=outcome, **usage)
        if event.type == "turn.paused":
            self._parent = self._run
        self._run = None

    def _close_run(self, reason: str, code: str) -> None:
        if self._run is None:
            return
        if self._turn is None:
            self._put("RUN_FINISHED", threadId=self._thread, runId=self._run, outcome={"type": "success"})
        else:
            self._put("RUN_ERROR", message=reason, code=code)
        self._run = None

    # ------------------------------------------------------------------------------------ messages

    def _added(self, event: Event) -> None:
        payload = event.payload
        role, call_id = payload.get("role"), payload.get("tool_call_id")
        message_id = _text(payload.get("id")) or event.event_id.hex()
        if isinstance(call_id, str):
            self._result(message_id, call_id, _plain(payload.get("content")))
        elif _is_role(role):
            self._message(message_id, payload)
        else:
            self._custom(event)

    def _message(self, message_id: str, payload: Mapping[str, Any]) -> None:
        name = {"name": payload["name"]} if isinstance(payload.get("name"), str) else {}
        content, calls = payload.get("content"), _calls(payload.get("tool_calls"))
        role = payload["role"]
        for index, thought in enumerate(_parts(content, "reasoning")):
            self._reasoning(f"{message_id}:{index}", thought)
        text = _plain(content)
        if text or not calls:
            self._put("TEXT_MESSAGE_START", messageId=message_id, role=role, **name)
            if text:
                self._put("TEXT_MESSAGE_CONTENT", messageId=message_id, delta=text)
            self._put("TEXT_MESSAGE_END", messageId=message_id)
        for part in _others(content):
            self._put("CUSTOM", name="kern.content", value={"messageId": message_id, "part": part})
        for call in calls:
            self._call(message_id, *call)
        self._remember(_message(message_id, role, text, calls, name))

    def _reasoning(self, message_id: str, text: str) -> None:
        self._put("REASONING_START", messageId=message_id)
        self._put("REASONING_MESSAGE_START", messageId=message_id, role="reasoning")
        if text:
            self._put("REASONING_MESSAGE_CONTENT", messageId=message_id, delta=text)
        self._put("REASONING_MESSAGE_END", messageId=message_id)
        self._put("REASONING_END", messageId=message_id)

    def _call(self, message_id: str, call_id: str, name: str, arguments: str) -> None:
        self._put("TOOL_CALL_START", toolCallId=call_id, toolCallName=name, parentMessageId=message_id)
        if arguments:
            self._put("TOOL_CALL_ARGS", toolCallId=call_id, delta=arguments)
        self._put("TOOL_CALL_END", toolCallId=call_id)

    def _result(self, message_id: str, call_id: str, content: str) -> None:
        self._put("TOOL_CALL_RESULT", messageId=message_id, toolCallId=call_id, content=content, role="tool")
        self._remember({"id": message_id, "role": "tool", "toolCallId": call_id, "content": content})

    def _called(self, event: Event) -> None:
        """A call that no message carries, nor one before it; of the others the message has told."""
        payload = event.payload
        calls = _calls([{**payload, "id": payload.get("call_id")}])
        if not calls:
            return
        carrier = self._messages[-1] if self._messages else None
        if carrier is None or self._carrying != (carrier["id"], event.turn):
            carrier = _message(event.event_id.hex(), "assistant", "", [], {})
            self._remember(carrier)
            self._carrying = (carrier["id"], event.turn)
        carrier["toolCalls"] = [*carrier.get("toolCalls", ()), *_shown(calls)]
        self._call(carrier["id"], *calls[0])

    def _returned(self, event: Event) -> None:
        call_id = event.payload.get("call_id")
        value = event.payload.get("result" if event.type == "tool.returned" else "error")
        if isinstance(call_id, str):
            self._result(event.event_id.hex(), call_id, value if isinstance(value, str) else json_text(value))
        else:
            self._custom(event)

    def _replaced(self, event: Event) -> None:
        payload, id = event.payload, event.payload.get("id")
        known = (i for i in reversed(range(len(self._messages))) if self._messages[i]["id"] == id)
        if (index := next(known, None)) is None:
            return
        if event.type == "message.removed":
            del self._messages[index]
        else:
            old = self._messages[index]
            role = payload.get("role", old["role"])
            if not _is_role(role):
                return
            name = {"name": payload["name"]} if isinstance(payload.get("name"), str) else {}
            calls = _calls(payload.get("tool_calls"))
            self._messages[index] = _message(old["id"], role, _plain(payload.get("content")), calls, name)
        self._put("MESSAGES_SNAPSHOT", messages=[dict(each) for each in self._messages])

    def _remember(self, message: Made) -> None:
        self._messages.append(message)

    # --------------------------------------------------------------------------------------- state

    def _created(self, event: Event) -> None:
        state = event.payload.get("state")
        if isinstance(state, dict):
            self._state = StateEditor(thaw(state))
            self._put("STATE_SNAPSHOT", snapshot=state)
        self._custom(event)

    def _forked(self, event: Event) -> None:
        self._parent = self._last
        if self._run is None:
            self._ensure_run(event)
        self._custom(event)

    def _deleted(self, event: Event) -> None:
        """What is created again begins with nothing."""
        self._state, self._messages = StateEditor({}), []
        self._put("STATE_SNAPSHOT", snapshot={})
        self._put("MESSAGES_SNAPSHOT", messages=[])

    def _changed(self, event: Event) -> None:
        ops, scope = event.payload.get("ops"), event.payload.get("scope", "session")
        if scope != "session" or not isinstance(ops, list):
            self._custom(event)
            return
        delta: list[Patch] = []
        for op in ops:
            delta += patch_of(self._state, op)
        if delta:
            self._put("STATE_DELTA", delta=delta)

    # ------------------------------------------------------------------------------------- the rest

    def _custom(self, event: Event) -> None:
        self._put("CUSTOM", name=event.type, value=None if event.erased else event.payload)

    def _put(self, type: str, **fields: Any) -> None:
        self._out.append({"type": type, "timestamp": self._timestamp, **fields})


_HANDLERS: Final[Mapping[str, Callable[[_Stream, Event], None]]] = {
    "message.added": _Stream._added,
    "message.replaced": _Stream._replaced,
    "message.removed": _Stream._replaced,
    "tool.called": _Stream._called,
    "tool.returned": _Stream._returned,
    "tool.failed": _Stream._returned,
    "state.changed": _Stream._changed,
    "session.created": _Stream._created,
    "session.deleted": _Stream._deleted,
    "session.forked": _Stream._forked,
}


def _message(
    message_id: str, role: str, text: str, calls: list[tuple[str, str, str]], name: Mapping[str, str]
) -> Made:
    """A message as a snapshot has it."""
    made: Made = {"id": message_id, "role": role, "content": text, **name}
    if calls and role == "assistant":
        made["toolCalls"] = _shown(calls)
    return made


def _shown(calls: list[tuple[str, str, str]]) -> list[Made]:
    return [
        {"id": id, "type": "function", "function": {"name": tool, "arguments": arguments}}
        for id, tool, arguments in calls
    ]


def _calls(value: Any) -> list[tuple[str, str, str]]:
    """Id, name and arguments of recorded tool calls."""
    found = []
    for call in value if isinstance(value, list) else ():
        if isinstance(call, dict) and isinstance(call.get("id"), str) and isinstance(call.get("name"), str):
            arguments = call.get("arguments", "{}")
            text = arguments if isinstance(arguments, str) else json_text(arguments)
            found.append((call["id"], call["name"], text))
    return found


def _parts(content: Any, kind: str) -> list[str]:
    """The texts of the parts of one kind."""
    return [
        part["text"]
        for part in (content if isinstance(content, list) else ())
        if isinstance(part, dict) and part.get("type") == kind and isinstance(part.get("text"), str)
    ]


def _others(content: Any) -> list[Any]:
    """The parts that are neither text nor reasoning."""
    if not isinstance(content, list):
        return []
    textual = ("text", "reasoning")
    return [part for part in content if not (isinstance(part, dict) and part.get("type") in textual)]


def _plain(content: Any) -> str:
    if isinstance(content, list):
        return "".join(_parts(content, "text"))
    return content if isinstance(content, str) else "" if content is None else json_text(content)


def _is_role(value: Any) -> bool:
    return isinstance(value, str) and value in _ROLES


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _usage(value: Any) -> Made:
    if not isinstance(value, dict):
        return {}
    counts = {
        name: value[key]
        for key, name in _USAGE.items()
        if type(value.get(key)) is int and 0 <= value[key] <= _LARGEST
    }
    return {"usage": [counts]} if counts else {}


def _error(value: Any) -> Made:
    if not isinstance(value, dict):
        return {"message": value if isinstance(value, str) else "the turn failed"}
    message, code = _text(value.get("message")), _text(value.get("type"))
    return {"message": message or "the turn failed", **({"code": code} if code else {})}


def _outcome(event: Event, payload: Mapping[str, Any]) -> Made:
    if event.type == "turn.cancelled":
        return {"type": "cancelled"}
    if event.type != "turn.paused":
        return {"type": "success"}
    waits = {"id": event.event_id.hex(), "reason": "turn.paused"}
    if payload.get("requirements") is not None:
        return {
            "type": "interrupt",
            "interrupts": [{**waits, "metadata": {"requirements": payload["requirements"]}}],
        }
    return {"type": "interrupt", "interrupts": [waits]}
