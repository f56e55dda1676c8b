"""What an OpenAI-chat transcript is recorded as: a pure function of its line.

So importing it again is comparing, see transfer.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import IO, Any, Final, NamedTuple

import msgspec

from kern_events.errors import InvalidEvent
from kern_events.events import Draft

ORIGIN: Final = {"origin": "import"}
"""The meta of what an import says about a session."""

MAX_LINE_BYTES: Final = 64 << 20
"""A longer line is reported as bad."""

_TIMES: Final = ("timestamp", "created_at")


class Conversation(NamedTuple):
    """A transcript as it is recorded.

    `about` is the payload of its `session.created`, without the session type; `drafts` are the
    events of its messages. Of the same transcript the payloads are always the same.
    """

    session_id: str
    about: dict[str, Any]
    drafts: list[Draft]
    messages: int
    turns: int
    tool_calls: int
    tool_calls_paired: int


def lines_of(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a binary file, without ever holding more than 64 MiB of one.

    A longer line is cut one byte behind the limit, for import_transcripts to report.
    """
    while line := file.readline(MAX_LINE_BYTES + 1):
        yield line
        while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES + 1)


def conversation_of(transcript: Mapping[str, Any]) -> Conversation:
    """What a transcript is recorded as; no I/O.

    Fields that the vocabulary of the log does not model are kept under `extra`, a message's own
    time (`timestamp` or `created_at`) in the event's `meta`.

    Raises:
        InvalidEvent: It is not in OpenAI chat form; `path` names the place.
    """
    rest = dict(transcript)
    session_id = _typed(rest.pop("id", None), str, "id")
    messages = _typed(rest.pop("messages", None), list, "messages")
    metadata = rest.pop("metadata", None)
    about: dict[str, Any] = {}
    if metadata is not None:
        about["metadata"] = _typed(metadata, dict, "metadata")
    if rest:
        about["extra"] = rest
    events = _Events()
    for index, message in enumerate(messages):
        try:
            events.add(message)
        except InvalidEvent as error:
            raise InvalidEvent(error.reason, f"messages[{index}]{error.path}") from None
    return Conversation(
        session_id, about, events.drafts, len(messages), events.turns, events.calls, events.paired
    )


class _Events:
    """The events of one conversation, message by message."""

    def __init__(self) -> None:
        self.drafts: list[Draft] = []
        self.turns = self.calls = self.paired = 0
        self._open: dict[str, int] = {}  # how many calls of an id have no result yet

    def add(self, message: Any) -> None:
        """Append the events of the next message."""
        rest = _typed(message, dict, "").copy()
        payload = {"role": _typed(rest.pop("role", None), str, ".role"), "content": _content(rest)}
        meta = _source_time(rest)
        if payload["role"] == "tool" and type(rest.get("tool_call_id")) is str:
            self._add_result(payload, rest, meta)
            return
        if payload["role"] == "user":
            self._open_turn()
        calls = _take_calls(rest)
        if calls is not None:
            payload["tool_calls"] = calls
        self._append("message.added", payload, rest, meta)
        for call in calls or ():
            self._add_call(call["id"])

    def _append(self, event: str, payload: dict[str, Any], rest: dict[str, Any], meta: Any) -> None:
        for key in ("id", "name"):
            # What is there but no text is kept as well: it stays in the rest.
            if type(rest.get(key)) is str:
                payload[key] = rest.pop(key)
        if rest:
            payload["extra"] = rest
        self.drafts.append(Draft(event, payload, meta=meta))

    def _open_turn(self) -> None:
        if self.turns:
            self.drafts.append(Draft("turn.completed", {}))
        self.drafts.append(Draft("turn.started", {}))
        self.turns += 1

    def _add_call(self, call_id: str) -> None:
        self.calls += 1
        self._open[call_id] = self._open.get(call_id, 0) + 1
        self.drafts.append(Draft("tool.called", {"call_id": call_id}))

    def _add_result(self, payload: dict[str, Any], rest: dict[str, Any], meta: Any) -> None:
        call_id, content = rest.pop("tool_call_id"), payload["content"]
        if self._open.get(call_id):
            self._open[call_id] -= 1
            self.paired += 1
        if type(content) is str and "id" not in rest:
            self._append("tool.returned", {"call_id": call_id, "result": content}, rest, meta)
        else:
            # Parts, no content or a message id of its own: only a message says these exactly.
            self._append("message.added", {**payload, "tool_call_id": call_id}, rest, meta)


def _typed(value: Any, kind: type, path: str) -> Any:
    if type(value) is not kind:
        found = "missing" if value is None else f"{type(value).__name__}, not {kind.__name__}"
        raise InvalidEvent(found, path)
    return value


def _content(rest: dict[str, Any]) -> Any:
    content = rest.pop("content", None)
    if type(content) is list:
        for index, part in enumerate(content):
            _typed(part, dict, f".content[{index}]")
    elif content is not None:
        _typed(content, str, ".content")
    return content


def _source_time(rest: dict[str, Any]) -> dict[str, Any] | None:
    for key in _TIMES:
        if key in rest and _is_time(rest[key]):
            return {"source_time": rest.pop(key)}
    return None


def _is_time(value: Any) -> bool:
    if type(value) is not str:
        return type(value) in (int, float)
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def _take_calls(rest: dict[str, Any]) -> list[dict[str, Any]] | None:
    if rest.get("tool_calls") is None:
        return None
    calls = _typed(rest.pop("tool_calls"), list, ".tool_calls")
    return [_call(call, f".tool_calls[{index}]") for index, call in enumerate(calls)]


def _call(call: Any, path: str) -> dict[str, Any]:
    """A tool call in the log's form; OpenAI's custom tools have an `input` instead of arguments."""
    rest = _typed(call, dict, path).copy()
    field, text = ("custom", "input") if "custom" in rest else ("function", "arguments")
    function = _typed(rest.pop(field, None), dict, f"{path}.{field}").copy()
    payload = {
        "id": _typed(rest.pop("id", None), str, f"{path}.id"),
        "name": _typed(function.pop("name", None), str, f"{path}.{field}.name"),
        "arguments": _typed(function.pop(text, None), str, f"{path}.{field}.{text}"),
    }
    if rest.get("type") == "function":
        del rest["type"]
    if function:
        rest[field] = function
    if rest:
        payload["extra"] = rest
    return payload


def parse(line: bytes) -> Conversation:
    """The conversation of a line; InvalidEvent where it is not one that can be recorded."""
    if len(line) > MAX_LINE_BYTES:
        raise InvalidEvent(f"longer than {MAX_LINE_BYTES >> 20} MiB", "line")
    try:
        # Not orjson: it would round integers of more than 64 bits, here they are refused later.
        transcript = msgspec.json.decode(line)
    except (ValueError, RecursionError) as error:
        raise InvalidEvent(f"not JSON ({error})", "line") from None
    return conversation_of(_typed(transcript, dict, "line"))
