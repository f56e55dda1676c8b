"""Recorded events as OpenTelemetry spans by the GenAI conventions: a trace for each turn, in OTLP's JSON.

A turn is a span `invoke_agent`; below it are the tool calls (`execute_tool`), the calls of the model
(`chat`) and nested runs (`invoke_agent`). Each line is the OTLP `TracesData` of one trace, as
collectors read it from a file. Abandoned turns are there too: they ran. What is recorded before the
first turn has no span.

A trace and its spans are named by the hashes of the events that begin them, so the same turn is
always the same trace; a turn whose `meta` has a `traceparent` is a part of that trace.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from kern_events.events import Event, Kind
from kern_events.exports.lines import json_line, json_text

if TYPE_CHECKING:
    from opentelemetry.proto.common.v1.common_pb2 import KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

_MISSING: Final = "OpenTelemetry export needs: pip install 'kern-events[otel]'"
_TRACEPARENT: Final = re.compile("[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_USAGE: Final = {"input_tokens": "gen_ai.usage.input_tokens", "output_tokens": "gen_ai.usage.output_tokens"}
_INTERNAL, _CLIENT = 1, 3  # SpanKind
_ERROR: Final = 2  # StatusCode
_MAX_INT: Final = 2**63 - 1

Value = str | int | list[str] | None  # None is left out


def lines(events: Iterable[Event]) -> Iterator[bytes]:
    """A line for each turn, in the order in which they end; those without an end come last.

    Raises:
        ImportError: The extra is not installed.
    """
    try:
        import opentelemetry.proto.trace.v1.trace_pb2  # noqa: F401
    except ImportError as missing:
        raise ImportError(_MISSING) from missing
    return (_line(turn) for turn in _turns(events))


@dataclass
class _Open:
    """A span that has begun."""

    name: str
    kind: int
    start: Event
    attributes: dict[str, Value]
    end: Event | None = None
    error: str | None = None
    error_type: str | None = None


@dataclass
class _Turn:
    """A turn's own span, those below it, and what was said."""

    root: _Open
    spans: list[_Open] = field(default_factory=list)
    last: Event | None = None
    said: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    names: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    """Name and arguments of the calls that messages carry, by their ids."""

    def running(self, key: str, value: Value) -> _Open | None:
        """The last span that has no end and an attribute of this value."""
        spans = (span for span in reversed(self.spans) if span.end is None)
        return next((span for span in spans if span.attributes.get(key) == value), None)


def _turns(events: Iterable[Event]) -> Iterator[_Turn]:
    turns: dict[int, _Turn] = {}
    for event in events:
        if event.kind == Kind.TURN_START:
            if before := turns.pop(event.turn, None):
                yield before  # A restore gave its number to another one.
            turns[event.turn] = _Turn(_agent_span(event))
        turn = turns.get(event.turn)
        if turn is None or event.kind in (Kind.RESTORE, Kind.FORK, Kind.CLOSE):
            continue
        turn.last = event
        _follow(turn, event)
        if event.kind == Kind.TURN_END:
            yield turns.pop(event.turn)
    yield from turns.values()


def _follow(turn: _Turn, event: Event) -> None:
    """What an event of a turn adds to it. Of one that is erased only the header is there."""
    payload = event.payload if isinstance(event.payload, dict) else {}
    match event.type:
        case "turn.completed" | "turn.failed" | "turn.cancelled":
            span = turn.root if event.kind == Kind.TURN_END else turn.running("kern.run.id", _run_id(event))
            if span is not None:
                _end_run(span, event, payload)
        case "turn.started" if event.kind != Kind.TURN_START:
            turn.spans.append(_agent_span(event))
        case "message.added":
            _message(turn, payload)
        case "model.called":
            turn.spans.append(_chat_span(event, payload))
        case "model.responded":
            _responded(turn, event, payload)
        case "tool.called":
            turn.spans.append(_tool_span(turn, event, payload))
        case "tool.returned" | "tool.failed":
            _returned(turn, event, payload)


# --------------------------------------------------------------------------------------------- spans


def _agent_span(event: Event) -> _Open:
    payload = event.payload if isinstance(event.payload, dict) else {}
    agent = payload.get("agent_id") or (event.meta or {}).get("agent_id")
    agent = agent if isinstance(agent, str) else None
    attributes: dict[str, Value] = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.conversation.id": event.session_id,
        "gen_ai.agent.id": agent,
        "kern.namespace": event.namespace,
        "kern.turn": event.turn,
        "kern.version": event.version,
        "kern.run.id": _run_id(event),
    }
    return _Open(f"invoke_agent {agent}" if agent else "invoke_agent", _INTERNAL, event, attributes)


def _end_run(span: _Open, event: Event, payload: Mapping[str, Any]) -> None:
    span.end = event
    span.attributes |= _usage(payload.get("usage"))
    span.attributes["kern.outcome"] = event.type.removeprefix("turn.")
    if event.type == "turn.failed":
        error = payload.get("error")
        said = error if isinstance(error, dict) else {"message": error}
        message, type = said.get("message"), said.get("type")
        span.error = message if isinstance(message, str) else ""
        span.error_type = type if isinstance(type, str) else "_OTHER"


def _chat_span(event: Event, payload: Mapping[str, Any]) -> _Open:
    model = payload.get("model")
    model = model if isinstance(model, str) else None
    attributes: dict[str, Value] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.conversation.id": event.session_id,
        "gen_ai.request.model": model,
    }
    return _Open(f"chat {model}" if model else "chat", _CLIENT, event, attributes)


def _responded(turn: _Turn, event: Event, payload: Mapping[str, Any]) -> None:
    span = turn.running("gen_ai.operation.name", "chat")
    if span is None:
        return
    span.end = event
    reason = payload.get("finish_reason")
    if isinstance(reason, str):
        span.attributes["gen_ai.response.finish_reasons"] = [reason]
    span.attributes |= _usage(payload.get("usage"))


def _tool_span(turn: _Turn, event: Event, payload: Mapping[str, Any]) -> _Open:
    call_id = payload.get("call_id")
    call_id = call_id if isinstance(call_id, str) else None
    name, arguments = turn.names.get(call_id or "", (None, None))
    if isinstance(payload.get("name"), str):
        name, arguments = payload["name"], _text(payload.get("arguments"))
        _say(turn, "output", "assistant", [_call_part(call_id, name, arguments)])
    attributes: dict[str, Value] = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.conversation.id": event.session_id,
        "gen_ai.tool.call.id": call_id,
        "gen_ai.tool.name": name,
        "gen_ai.tool.call.arguments": arguments,
    }
    return _Open(f"execute_tool {name}" if name else "execute_tool", _INTERNAL, event, attributes)


def _returned(turn: _Turn, event: Event, payload: Mapping[str, Any]) -> None:
    failed = event.type == "tool.failed"
    call_id, content = payload.get("call_id"), _text(payload.get("error" if failed else "result"))
    if not isinstance(call_id, str):
        return
    part = {"type": "tool_call_response", "id": call_id, "response": content}
    _say(turn, "input", "tool", [part])
    span = turn.running("gen_ai.tool.call.id", call_id)
    if span is None:
        return
    span.end = event
    if failed:
        span.error, span.error_type = content or "", "_OTHER"
    else:
        span.attributes["gen_ai.tool.call.result"] = content


# ------------------------------------------------------------------------------------------ messages


def _message(turn: _Turn, payload: Mapping[str, Any]) -> None:
    role, call_id = payload.get("role"), payload.get("tool_call_id")
    if not isinstance(role, str):
        return
    parts = _parts(payload.get("content"))
    if isinstance(call_id, str):
        text = "".join(part["content"] for part in parts if part["type"] == "text")
        parts = [{"type": "tool_call_response", "id": call_id, "response": text}]
    for call in payload.get("tool_calls") or ():
        if isinstance(call, dict) and isinstance(call.get("id"), str) and isinstance(call.get("name"), str):
            arguments = _text(call.get("arguments"))
            turn.names[call["id"]] = (call["name"], arguments)
            parts.append(_call_part(call["id"], call["name"], arguments))
    _say(turn, "output" if role == "assistant" else "input", role, parts)


def _say(turn: _Turn, direction: str, role: str, parts: list[dict[str, Any]]) -> None:
    said: dict[str, Any] = {"role": role, "parts": parts}
    if direction == "output":
        calls = any(part["type"] == "tool_call" for part in parts)
        said["finish_reason"] = "tool_call" if calls else "stop"
    turn.said.append((direction, said))


def _parts(content: Any) -> list[dict[str, Any]]:
    if content is None or isinstance(content, str):
        return [{"type": "text", "content": content}] if content else []
    parts = []
    for part in content if isinstance(content, list) else [content]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "reasoning") and isinstance(part.get("text"), str):
            parts.append({"type": kind, "content": part["text"]})
        else:  # The conventions leave parts of other types open.
            parts.append({"type": kind if isinstance(kind, str) else "other", "content": part})
    return parts


def _call_part(call_id: str | None, name: str | None, arguments: str | None) -> dict[str, Any]:
    return {"type": "tool_call", "id": call_id, "name": name, "arguments": arguments}


def _usage(value: Any) -> dict[str, Value]:
    if not isinstance(value, dict):
        return {}
    return {name: value[key] for key, name in _USAGE.items() if type(value.get(key)) is int}


def _run_id(event: Event) -> str | None:
    payload = event.payload if isinstance(event.payload, dict) else {}
    run_id = payload.get("run_id") or (event.meta or {}).get("run_id")
    return run_id if isinstance(run_id, str) else None


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json_text(value)


# ---------------------------------------------------------------------------------------------- OTLP


def _line(turn: _Turn) -> bytes:
    from google.protobuf.json_format import MessageToJson
    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, TracesData

    from kern_events import __version__

    scope = ScopeSpans(spans=_spans(turn))
    scope.scope.name, scope.scope.version = "kern-events", __version__
    spans = ResourceSpans(scope_spans=[scope])
    spans.resource.attributes.append(_key_value("service.name", "kern-events"))
    made = json.loads(
        MessageToJson(TracesData(resource_spans=[spans]), use_integers_for_enums=True, indent=None)
    )
    for span in made["resourceSpans"][0]["scopeSpans"][0]["spans"]:
        for key in ("traceId", "spanId", "parentSpanId"):
            if key in span:  # OTLP says hex, where protobuf's JSON has base64.
                span[key] = b64decode(span[key]).hex()
    return json_line(made)


def _spans(turn: _Turn) -> list[Span]:
    root = turn.root
    trace_id, parent_id = _trace_of(root.start)
    for direction in ("input", "output"):
        said = [message for which, message in turn.said if which == direction]
        if said:
            root.attributes[f"gen_ai.{direction}.messages"] = json_text(said)
    last = turn.last or root.start
    made = [_span(root, trace_id, parent_id, last)]
    return made + [_span(span, trace_id, made[0].span_id, last) for span in turn.spans]


def _trace_of(event: Event) -> tuple[bytes, bytes]:
    """The trace of a turn, and the span that it is below, if any."""
    given = (event.meta or {}).get("traceparent")
    found = _TRACEPARENT.fullmatch(given) if isinstance(given, str) else None
    if found and int(found[1], 16) and int(found[2], 16):
        return bytes.fromhex(found[1]), bytes.fromhex(found[2])
    return event.hash[:16], b""


def _span(span: _Open, trace_id: bytes, parent_id: bytes, last: Event) -> Span:
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    if span.end is None:
        span.attributes["kern.outcome"] = "open"
    made = Span(
        trace_id=trace_id,
        span_id=span.start.hash[16:24],
        parent_span_id=parent_id,
        name=span.name,
        kind=span.kind,  # type: ignore[arg-type]
        start_time_unix_nano=_nanoseconds(span.start),
        end_time_unix_nano=_nanoseconds(span.end or last),
    )
    if span.error is not None:
        span.attributes["error.type"] = span.error_type
        made.status.code, made.status.message = _ERROR, span.error  # type: ignore[assignment]
    made.attributes.extend(
        _key_value(key, value) for key, value in span.attributes.items() if value is not None
    )
    return made


def _nanoseconds(event: Event) -> int:
    return min(event.at_us * 1_000, 2 * _MAX_INT)


def _key_value(key: str, value: str | int | list[str]) -> KeyValue:
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue

    if isinstance(value, list):
        values = ArrayValue(values=[AnyValue(string_value=each) for each in value])
        return KeyValue(key=key, value=AnyValue(array_value=values))
    if isinstance(value, int):
        return KeyValue(key=key, value=AnyValue(int_value=value))
    return KeyValue(key=key, value=AnyValue(string_value=value))
