"""What restore, fork, diff and replay print."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import orjson
from rich.console import Console

from kern_events.cli.show import Live, event_json, message_line, put_event, turn_line
from kern_events.cli.text import clipped, counted, one_line, put, put_json
from kern_events.events import Receipt
from kern_events.frozen import thaw
from projections.travel import state_patch

if TYPE_CHECKING:
    from kern_events.events import Event
    from projections import Diff, Message, Turn, View

T = TypeVar("T")

_VALUE: Final = 200  # characters
_SIGNS: Final = {"add": "+", "remove": "-", "replace": "~"}
_STYLES: Final = {"-": "red", "+": "green"}


def put_diff(out: Console, diff: Diff) -> None:
    """Print what is different: turns, messages and state, dropped (-) and added (+)."""
    _put_signed(out, "turns", diff.turns_dropped, diff.turns_added, turn_line, _started)
    _put_signed(out, "messages", diff.dropped, diff.added, message_line, _recorded)
    if diff.state:
        put(out, "state", "bold")
    for line in map(_state_line, diff.state):
        put(out, line, _STYLES.get(line[0], ""), indent=2)


def put_restored(out: Console, diff: Diff, receipt: Receipt, turn: int, undo: str | None = None) -> None:
    """Print what a restore did, and the command that undoes it."""
    went = f"session {one_line(diff.session_id)} went back to version {diff.after:,}, turn {turn:,}"
    put(out, f"{went}; it is at version {receipt.version:,} now", "bold")
    _put_counts(out, diff)
    if undo is not None:
        put(out, f"to undo it: {undo}")


def put_preview(out: Console, diff: Diff, turn: int) -> None:
    """Print what a restore would do."""
    place = f"from version {diff.before:,} to version {diff.after:,}, turn {turn:,}"
    put(out, f"session {one_line(diff.session_id)} would go back {place}", "bold")
    _put_counts(out, diff)
    put_diff(out, diff)
    put(out, "nothing was recorded: this was a dry run", "yellow")


def put_difference(out: Console, diff: Diff) -> None:
    """Print what is different between two versions."""
    place = f"from version {diff.before:,} to version {diff.after:,}"
    put(out, f"session {one_line(diff.session_id)} · {place}", "bold")
    if not diff:
        put(out, "no difference")
    put_diff(out, diff)


def put_forked(out: Console, parent: str, receipt: Receipt, turn: int) -> None:
    """Print what was forked where."""
    origin = receipt.first_version - 1
    place = f"forked from {one_line(parent)} at version {origin:,}, turn {turn:,}"
    put(out, f"session {one_line(receipt.session_id)} · {place}", "bold")
    put(out, f"its first version of its own is {receipt.first_version:,}")


def receipt_json(receipt: Receipt) -> dict[str, Any]:
    """A receipt as JSON values, its hash in hex."""
    return {**msgspec.structs.asdict(receipt), "hash": receipt.hash.hex()}


def command(verb: str, session_id: str, *options: str) -> str:
    """A command line to be typed, on one line whatever the id holds."""
    words = [session_id, *options] if not session_id.startswith("-") else [*options, "--", session_id]
    return one_line(shlex.join(["kern-events", verb, *words]))


def put_replay(out: Console, steps: Iterable[tuple[Event, View]], live: Live, *, paced: bool) -> None:
    """Print events as they come, each with what it makes of the view."""
    before: View | None = None
    for event, view in steps:
        put_event(out, event, live=live(event))
        put(out, _made(before, view), "dim", indent=8)
        before = view
        if paced:
            out.file.flush()


def put_replay_json(
    out: Console, steps: Iterable[tuple[Event, View]], live: Live, *, paced: bool, full: bool
) -> None:
    """Print events and views as they come, one document each."""
    for event, view in steps:
        shown = {**event_json(event), "live": live(event)}
        put_json(out, {"event": shown, "view": view.to_dict() if full else _summary(view)})
        if paced:
            out.file.flush()


def _put_counts(out: Console, diff: Diff) -> None:
    turns = _apart(diff.turns_dropped, diff.turns_added, _started)
    messages = _apart(diff.dropped, diff.added, lambda each: (each.version, each.id))
    gone, back = zip(turns, messages, strict=True)
    put(out, f"no longer count: {counted(gone[0], 'turn')}, {counted(gone[1], 'message')}")
    if any(back):
        put(out, f"count again: {counted(back[0], 'turn')}, {counted(back[1], 'message')}")


def _apart(dropped: Sequence[T], added: Sequence[T], key: Callable[[T], object]) -> tuple[int, int]:
    """How many are only on one side, and only on the other: what is on both in another form is not."""
    old, new = set(map(key, dropped)), set(map(key, added))
    return len(old - new), len(new - old)


def _put_signed(
    out: Console,
    title: str,
    dropped: Sequence[T],
    added: Sequence[T],
    line: Callable[[T], str],
    version: Callable[[T], int],
) -> None:
    signed = [("-", each) for each in dropped] + [("+", each) for each in added]
    if signed:
        put(out, title, "bold")
    # What is there in another form is dropped and added under one version, and shown in that order.
    for sign, each in sorted(signed, key=lambda pair: version(pair[1])):
        put(out, f"{sign} {line(each)}", _STYLES[sign], indent=2)


def _started(turn: Turn) -> int:
    return turn.started_version


def _recorded(message: Message) -> int:
    return message.version


def _made(before: View | None, view: View) -> str:
    count, old = len(view.messages), len(before.messages) if before else 0
    change = f" ({count - old:+,})" if count != old else ""
    said = [f"turn {view.turn:,}", counted(count, "message") + change]
    if view.status != "open":
        said.append(view.status)
    if before is None or view.state is not before.state:
        said += _state_lines(before.state if before else {}, view.state)
    return "→ " + " · ".join(said)


def _state_lines(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    return (f"state {_state_line(op)}" for op in state_patch(before, after))


def _state_line(op: Mapping[str, Any]) -> str:
    """An RFC 6902 operation, as in `~ /days: 3`."""
    path = one_line(clipped(op["path"], _VALUE)) or "all of it"
    sign = _SIGNS.get(op["op"], op["op"])
    if "from" in op:
        return f"{sign} {one_line(clipped(op['from'], _VALUE))} to {path}"
    if "value" not in op:
        return f"{sign} {path}"
    return f"{sign} {path}: {one_line(clipped(orjson.dumps(op['value']).decode(), _VALUE))}"


def _summary(view: View) -> dict[str, Any]:
    return {
        "version": view.version,
        "turn": view.turn,
        "status": view.status,
        "messages": len(view.messages),
        "state": thaw(view.state),
    }
