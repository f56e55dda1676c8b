"""What an OpenAI-chat transcript is recorded as: a pure function of its line.

So importing it again is comparing, see transfer.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import chain
from typing import Any, Final, NamedTuple

import msgspec

from kern_events.errors import InvalidEvent
from kern_events.events import Draft
from kern_events.lines import MAX_LINE_BYTES, check_keys, colons

ORIGIN: Final = {"origin": "import"}
"""The meta of what an import says about a session."""

_WHOLE_BYTES: Final = 256 << 10  # of a line, up to which all of it is taken apart at once
_PIECE_BYTES: Final = 1 << 20  # of the messages that are taken apart together in a longer one
_PIECE_MESSAGES: Final = 250
_SMALLEST: Final = 128  # bytes that a message and its values take, where a line may be full of them
# A string without an end is a token too: else each of its quotes would be looked at as the beginning of one.
_TOKENS: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[\[\]{},]', re.DOTALL)

_TIMES: Final = ("timestamp", "created_at")


class Conversation(NamedTuple):
    """A transcript as it is recorded.

    `about` is the payload of its `session.created`, without the session type; `pieces` are the events
    of its messages, so many together as are worth a megabyte. They can be gone through again: of a long
    transcript they are made anew. Of the same transcript the payloads are always the same.
    """

    session_id: str
    about: dict[str, Any]
    pieces: Iterable[list[Draft]]
    messages: int
    turns: int
    tool_calls: int
    tool_calls_paired: int

    @property
    def drafts(self) -> Iterator[Draft]:
        """The events of its messages, one after the other."""
        return chain.from_iterable(self.pieces)


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
    about, events = _about(rest), _Events()
    [drafts] = _pieces(events, [messages])
    return _conversation(session_id, about, [drafts], len(messages), events)


def _about(rest: dict[str, Any]) -> dict[str, Any]:
    metadata = rest.pop("metadata", None)
    about: dict[str, Any] = {}
    if metadata is not None:
        about["metadata"] = _typed(metadata, dict, "metadata")
    if rest:
        about["extra"] = rest
    return about


def _conversation(
    session_id: str, about: dict[str, Any], pieces: Iterable[list[Draft]], messages: int, events: _Events
) -> Conversation:
    return Conversation(session_id, about, pieces, messages, events.turns, events.calls, events.paired)


def _pieces(events: _Events, pieces: Iterable[Iterable[Any]]) -> Iterator[list[Draft]]:
    """The events of messages, piece by piece."""
    index = 0
    for piece in pieces:
        for message in piece:
            try:
                events.add(message)
            except InvalidEvent as error:
                raise InvalidEvent(error.reason, f"messages[{index}]{error.path}") from None
            index += 1
        message = None
        made, events.drafts = [events.drafts], []
        yield made.pop()  # Whoever gets them lets go of them, which matters where they are large.


class _Long:
    """The messages of a long line, which are taken apart a piece at a time, as often as wanted."""

    def __init__(self, messages: list[msgspec.Raw]) -> None:
        self._messages = messages

    def __iter__(self) -> Iterator[list[Draft]]:
        return _pieces(_Events(), self.decoded())

    def decoded(self) -> Iterator[Iterator[Any]]:
        """The messages themselves; each is let go of when the next one is asked for."""
        piece: list[Any] = []
        size_bytes = 0
        for raw in self._messages:
            # A text with one emoji takes four times its bytes: nothing else of it stays beside it.
            piece.append(msgspec.json.decode(raw))
            size_bytes += _check_raw(raw, piece[-1])
            if size_bytes >= _PIECE_BYTES or len(piece) >= _PIECE_MESSAGES:
                messages, piece, size_bytes = iter(piece), [], 0
                yield messages
        if piece:
            yield iter(piece)


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


def parse(line: bytes, max_line_bytes: int = MAX_LINE_BYTES) -> Conversation:
    """The conversation of a line; InvalidEvent where it is not one that can be recorded."""
    try:
        if len(line) > _WHOLE_BYTES:
            return _parsed_long(line, max_line_bytes // _SMALLEST)
        # Not orjson: it would round integers of more than 64 bits, here they are refused later.
        transcript = msgspec.json.decode(line)
    except InvalidEvent:
        raise
    except (ValueError, RecursionError) as error:
        raise InvalidEvent(f"not JSON ({error})", "line") from None
    return conversation_of(_unique(line, _typed(transcript, dict, "line")))


def _parsed_long(line: bytes, most: int) -> Conversation:
    """As parse, with as little of it in memory at a time as possible."""
    _check_values(line, most)
    fields = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    if sum(1 + key.count(":") + colons(bytes(raw)) for key, raw in fields.items()) != colons(line):
        check_keys(line, None)
    session_id = _typed(msgspec.json.decode(fields.pop("id", b"null")), str, "id")
    found = fields.pop("messages", msgspec.Raw(b"null"))
    if bytes(memoryview(found)[:1]) != b"[":
        _typed(msgspec.json.decode(found), list, "messages")
    messages = msgspec.json.decode(found, type=list[msgspec.Raw])
    rest = {key: bytes(raw) for key, raw in fields.items()}
    about = _about({key: _unique(data, msgspec.json.decode(data)) for key, data in rest.items()})
    events, long = _Events(), _Long(messages)
    for _ in _pieces(events, long.decoded()):
        pass  # Every message is looked at before anything is recorded.
    return _conversation(session_id, about, long, len(messages), events)


def _check_raw(raw: msgspec.Raw, value: Any) -> int:
    """check_keys of a part of a line, and how many bytes it has."""
    data = bytes(raw)
    check_keys(data, value)
    return len(data)


def _unique(data: bytes, value: Any) -> Any:
    check_keys(data, value)
    return value


def _check_values(line: bytes, most: int) -> None:
    """Refuse a line that would take a hundred times its size in memory, before it is taken apart.

    Commas and brackets are counted, each of which stands for a value at most; in text too, at first.
    """
    if line.count(b",") + line.count(b"[") + line.count(b"{") <= most:
        return
    depth = members = values = 0
    for token in _TOKENS.finditer(line):
        match line[token.start()]:
            case 0x5B | 0x7B:
                depth, values = depth + 1, values + 1
            case 0x5D | 0x7D:
                depth -= 1
            case 0x2C if depth <= 2:  # Between the fields of the line, or between messages.
                members, values = members + 1, 0
            case 0x2C:
                values += 1
        if members > most or values > most:
            raise InvalidEvent(f"more than {most:,} messages, or values in one of them", "line")
