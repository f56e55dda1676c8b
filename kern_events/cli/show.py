"""A conversation as a person reads it, and events as they are recorded."""

from __future__ import annotations

import base64
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
import orjson
from rich.console import Console
from rich.text import Text

from kern_events.cli.text import clipped, console, counted, moment, one_line, put, put_json, visible
from kern_events.events import Event
from kern_events.frozen import thaw
from kern_events.spi import Range, live_path

if TYPE_CHECKING:
    from kern_events.log import SessionLog
    from projections import Message, ToolCall, Turn, View

_WORDS: Final = 20_000  # characters of what people and models say to each other
_REST: Final = 600  # characters of instructions, arguments and results
_STYLES: Final = {"user": "bold cyan", "assistant": "bold green", "tool": "bold magenta"}

_BRIEF: Final = 200  # characters of a message that is one line of many

Results = Mapping[tuple[int, int], "Message"]
Live = Callable[[Event], bool]


def put_conversation(out: Console, view: View) -> None:
    """Print a view: turn by turn, with the result of each tool call under the call."""
    put(out, _title(view), "bold")
    results = pair(view.messages)
    folded = {id(message) for message in results.values()}
    headings = 0
    for index, message in enumerate(view.messages):
        if id(message) not in folded:
            headings = _put_headings(out, view, headings, message.turn)
            _put_message(out, index, message, results)
    _put_headings(out, view, headings, view.turn)
    _put_rest(out, view)


def pair(messages: Sequence[Message]) -> Results:
    """The result of each call, by the index of its message and its place there.

    A result belongs to the latest call of its id that has none: ids are used again.
    """
    waiting: dict[str, list[tuple[int, int]]] = {}
    results = {}
    for index, message in enumerate(messages):
        for place, call in enumerate(message.tool_calls):
            waiting.setdefault(call.id, []).append((index, place))
        if message.tool_call_id is not None and waiting.get(message.tool_call_id):
            results[waiting[message.tool_call_id].pop()] = message
    return results


def live_on(path: Sequence[Range]) -> Live:
    """Tells which events count at the end of a live path."""
    firsts = [part.first for part in path]

    def live(event: Event) -> bool:
        part = path[bisect_right(firsts, event.version) - 1] if path else None
        return (
            part is not None
            and event.session_id == part.session_id
            and part.first <= event.version <= part.last
        )

    return live


def put_recorded(out: Console, sessions: SessionLog, session_id: str, until: int, *, as_json: bool) -> None:
    """Print the events of a session up to a version, and which of them no longer count there."""
    events = sessions.read(session_id, until=until)
    path = live_path(sessions, session_id, until)
    if path and path[0].session_id != session_id and not as_json:
        # On stderr, as it is no event.
        shared = [part for part in path if part.session_id != session_id][-1]
        parent = f"{one_line(shared.session_id)} up to version {shared.last:,}"
        put(console(stderr=True), f"a fork: before its own events are those of {parent}", "dim")
    put_events(out, events, live=live_on(path), as_json=as_json)


def put_events(
    out: Console, events: Iterable[Event], *, live: Live | None = None, as_json: bool = False
) -> int:
    """Print events as they are read; returns the last version, 0 if there is none."""
    last = 0
    for event in events:
        if not as_json:
            put_event(out, event, live=live is None or live(event))
        elif live is None:
            put_json(out, event_json(event))
        else:
            put_json(out, {**event_json(event), "live": live(event)})
        last = event.version
    return last


def put_event(out: Console, event: Event, *, live: bool = True) -> None:
    """Print one event on one line: version, time, turn, type, payload."""
    payload = "erased" if event.erased else orjson.dumps(_plain(event.payload)).decode()
    line = Text(f"{event.version:>6}  {moment(event.at)}  turn {event.turn:<3} ", "dim")
    line.append("" if live else "abandoned  ", "yellow")
    line.append(f"{one_line(event.type):<16} ", "bold" if live else "dim")
    line.append(one_line(payload), "" if live else "dim")
    for name, value in (("actor", event.actor), ("meta", event.meta)):
        if value is not None:
            line.append(f"  {name} {one_line(orjson.dumps(value).decode())}", "dim")
    out.print(line, soft_wrap=True)


def event_json(event: Event) -> dict[str, Any]:
    """All of an event as JSON values: `native` in base64, other bytes in hex."""
    fields = msgspec.structs.asdict(event)
    fields["at"] = event.at.isoformat()
    fields["erased"] = event.erased
    fields["payload"] = None if event.erased else _plain(event.payload)
    fields["native"] = None if event.native is None else base64.b64encode(event.native).decode()
    return {key: value.hex() if type(value) is bytes else value for key, value in fields.items()}


def turn_line(turn: Turn) -> str:
    """A turn on one line: number, status, when it started, usage, error."""
    said = [f"turn {turn.number:,}", turn.status, moment(turn.started_at)]
    if turn.usage:
        said.append(", ".join(f"{one_line(key)} {value:,}" for key, value in turn.usage.items()))
    if turn.error is not None:
        said.append(one_line(clipped(_text(turn.error), _REST)))
    return " · ".join(said)


def message_line(message: Message) -> str:
    """A message on one line: role, name, the beginning of its content, its calls."""
    said = [one_line(message.role) + (f" ({one_line(message.name)})" if message.name else "") + ":"]
    if text := _content(message):
        said.append(one_line(clipped(text, _BRIEF)))
    for call in message.tool_calls:
        said.append(f"→ {one_line(call.name)} {one_line(clipped(call.arguments, _BRIEF))}")
    return " ".join(said)


def _title(view: View) -> str:
    said = [f"session {one_line(view.session_id)}"]
    if view.name:
        said.append(f"“{one_line(view.name)}”")
    if view.user_id:
        said.append(f"user {one_line(view.user_id)}")
    said.append(counted(len(view.turns), "turn"))
    if view.version < view.head.version:
        said.append(f"as of version {view.version:,} of {view.head.version:,}")
    else:
        said += [f"version {view.version:,}", view.status, f"last event {moment(view.head.at)}"]
    return " · ".join(said)


def _put_headings(out: Console, view: View, start: int, until: int) -> int:
    """Print the headings of turns from index `start` up to turn `until`; returns where to go on."""
    while start < len(view.turns) and view.turns[start].number <= until:
        put(out, "\n── " + turn_line(view.turns[start]), "bold blue")
        start += 1
    return start


def _put_message(out: Console, index: int, message: Message, results: Results) -> None:
    role = one_line(message.role)
    name = f" ({one_line(message.name)})" if message.name else ""
    put(out, role + name, _STYLES.get(message.role, "bold dim"))
    if text := _content(message):
        put(out, visible(clipped(text, _limit(message.role))), _dim(message.role), indent=2)
    for place, call in enumerate(message.tool_calls):
        _put_call(out, call, results.get((index, place)))


def _put_call(out: Console, call: ToolCall, result: Message | None) -> None:
    line = Text("→ ").append(one_line(call.name), "bold magenta")
    line.append(" " + one_line(clipped(call.arguments, _REST)))
    put(out, line, indent=2)
    if result is None:
        put(out, "no result yet", "yellow", indent=4)
    else:
        put(out, visible(clipped(_content(result), _REST)) or "(empty)", "dim", indent=4)


def _put_rest(out: Console, view: View) -> None:
    if view.state:
        put(out, "\nstate", "bold")
        put(out, visible(clipped(_text(view.state), _WORDS)), indent=2)
    for problem in view.problems:
        put(out, f"incomplete: {one_line(problem)}", "yellow")


def _limit(role: str) -> int:
    return _WORDS if role in ("user", "assistant") else _REST


def _dim(role: str) -> str:
    return "" if role in ("user", "assistant") else "dim"


def _content(message: Message) -> str:
    content = message.content
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(map(_part, content))


def _part(part: Any) -> str:
    """A content part: its text, or what kind it is and its JSON."""
    fields = msgspec.structs.asdict(part)
    if set(fields) == {"text"}:
        return part.text if type(part).__name__ == "Text" else f"[reasoning] {part.text}"
    kind = fields.pop("kind", None) or type(part).__name__.lower()
    [value] = fields.values()
    return f"[{kind}] {_text(value)}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(thaw(value)).decode()


def _plain(payload: Any) -> Any:
    """A payload as JSON has it, where `--types` decoded it into something else."""
    return msgspec.to_builtins(payload, str_keys=True)
