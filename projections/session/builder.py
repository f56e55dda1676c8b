"""A view taken apart, so that many events are folded before it is put together again.

Taking apart and putting together cost the same at any length of the session: what is long (messages,
context, turns) is edited in its open chunk only.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from kern_events import Event, Head
from kern_events.spi import StateEditor
from projections.chunks import Chunks, Editor, Place
from projections.frozen import NOTHING, FrozenDict, freeze
from projections.session.content import content_bytes
from projections.session.view import Message, ToolCall, Turn, Usage, View
from projections.session.waiting import Paused, pending_of

INSTRUCTIONS: Final = frozenset({"system", "developer"})
"""The roles of messages that tell the model what to do; at the start of a context they stay."""

MAX_PROBLEMS: Final = 20
MESSAGE_BYTES: Final = 64  # a message beside its content
_MISDATED: Final = "dated by an earlier event, which is ahead of its recorder's clock"


class Builder:
    """The fields of a view, free to change; `finish` gives the view."""

    __slots__ = (
        "_instructions", "_more_calls", "_used", "context", "head", "incomplete", "messages",
        "metadata", "name", "paused", "pending", "problems", "session_id", "states", "status", "summary",
        "turn", "turns", "usage", "user_id", "version",
    )  # fmt: skip

    def __init__(self, view: View) -> None:
        self.head: Head = view.head
        self.begin(view)

    def begin(self, view: View) -> None:
        """Go on from this view, whatever there was before."""
        self.session_id = view.session_id
        self.version = view.version
        self.turn = view.turn
        self.status = view.status
        self.user_id = view.user_id
        self.messages = view.messages.edit()
        self.context = self.messages if view.context is view.messages else view.context.edit()
        self.states = States(view)
        self._instructions = 0  # See there; at least so many.
        self._used: dict[int, _Used] = {}  # of turns by number, put into them at last
        self._more_calls: list[ToolCall] = []  # of the last message, which has them once it is looked at
        self.turns = view.turns.edit()
        self.usage: Usage | dict[str, int | float] = view.usage
        self.pending = pending_of(view.pending_calls)
        self.paused = Paused(view.paused)
        self.name = view.name
        self.metadata = view.metadata
        self.summary = view.summary
        self.incomplete = view.incomplete
        self.problems = list(view.problems)

    def finish(self) -> View:
        """The view as it is now."""
        self.settle()
        for number in [*self._used]:
            self.settle_usage(number)
        messages = self.messages.freeze()
        state, agent_state = self.states.finish()
        return View(
            self.session_id,
            self.version,
            self.head,
            self.turn,
            self.status,
            self.user_id,
            messages,
            messages if self.context is self.messages else self.context.freeze(),
            state,
            agent_state,
            self.turns.freeze(),
            self.usage if type(self.usage) is FrozenDict else FrozenDict(self.usage),
            self.pending.finish(),
            self.paused.finish(),
            self.name,
            self.metadata,
            self.summary,
            self.incomplete,
            tuple(self.problems),
        )

    def note(self, event: Event, problem: str) -> None:
        """Mark the view incomplete, and say why as long as there are few such notes."""
        self.incomplete = True
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(f"version {event.version}, {event.type}: {problem}")

    def note_clock(self, event: Event) -> None:
        """Say, once, that from here on times are not those of recording; nothing is missing for that."""
        if not any(each.endswith(_MISDATED) for each in self.problems) and len(self.problems) < MAX_PROBLEMS:
            self.problems.append(f"version {event.version}, {event.type}: {_MISDATED}")

    def add_message(self, message: Message) -> None:
        """A message at the end of the transcript and of the context."""
        if self._more_calls:
            self.settle()
        content = message.content
        if type(content) is str and not message.tool_calls:
            size_bytes = MESSAGE_BYTES + len(content)
        else:
            size_bytes = message_bytes(message)
        self.messages.append(message, size_bytes)
        if self.context is not self.messages:
            self.context.append(message, size_bytes)

    def last_call(self) -> tuple[Message, ToolCall] | None:
        """The last message of the transcript, and the last call in it; None where it has none."""
        last = self.messages.last()
        if last is None or not last.tool_calls:
            return None
        return last, (self._more_calls or last.tool_calls)[-1]

    def add_call(self, call: ToolCall) -> None:
        """One more call in the last message, which is made anew for all of them together (see settle)."""
        self._more_calls.append(call)

    def settle(self) -> None:
        """Give the last message the calls that were added to it; before messages are looked at or changed."""
        last = self.messages.last()
        if last is not None and self._more_calls:
            calls, self._more_calls = self._more_calls, []
            grown = sum(MESSAGE_BYTES + len(call.arguments) for call in calls)
            self._put(last.id, replace(last, tool_calls=(*last.tool_calls, *calls)), grown)

    def change_message(self, old: Message, new: Message) -> None:
        """Another message in the place of this one, wherever it stands."""
        self._put(old.id, new, max(0, message_bytes(new) - message_bytes(old)))

    def _put(self, id: str, message: Message, grown_bytes: int) -> None:
        indexes = self._indexes(id)
        if self._instructions and (len(indexes) > 1 or message.role not in INSTRUCTIONS):
            self._instructions = min([self._instructions, *indexes])
        for messages in self._both():
            if (place := messages.find(id)) is not None:
                messages.put(place, message, grown_bytes)

    def remove_message(self, id: str) -> None:
        """Take out the latest message of that id, wherever it stands."""
        indexes = self._indexes(id)
        if self._instructions and len(indexes) > 1:
            self._instructions = min([self._instructions, *indexes])
        elif any(index < self._instructions for index in indexes):
            self._instructions -= 1
        for messages in self._both():
            if (place := messages.find(id)) is not None:
                messages.take(place)

    def _indexes(self, id: str) -> set[int]:
        """Where the message of that id stands in transcript and context; nowhere if nobody has to know."""
        if not self._instructions:
            return set()
        both = ((messages, messages.find(id)) for messages in self._both())
        return {messages.index_of(place) for messages, place in both if place is not None}

    def clear_context(self) -> None:
        """No message in the context; the transcript stays."""
        empty: Chunks[Message] = Chunks()
        self.context, self._instructions = empty.edit(), 0

    def replace_start(self, place: Place, start: list[Message], *, keep: bool) -> None:
        """Put other messages in the stead of all up to and with a place, in the context alone.

        With `keep`, instructions stay in front of them: messages of those roles that begin both
        transcript and context, so no earlier summary.
        """
        end = self.context.index_of(place) + 1
        self._instructions = min(self._count_instructions(), end) if keep else 0
        if self.context is self.messages:
            self.context = self.messages.freeze().edit()
        self.context.replace_start(end, start, message_bytes, keep=self._instructions)

    def _count_instructions(self) -> int:
        """How many there are, of which some are known; so each is counted once."""
        count, end = self._instructions, min(len(self.messages), len(self.context))
        while count < end:
            message = self.context[count]
            if message.role not in INSTRUCTIONS or message != self.messages[count]:
                break
            count += 1
        return count

    def _both(self) -> tuple[Editor[Message], ...]:
        return (self.messages,) if self.context is self.messages else (self.messages, self.context)

    def turn_of(self, number: int) -> Turn | None:
        """The turn of that number, if it has started."""
        last = self.turns.last()
        if last is None or last.number == number:
            return last
        index = self._turn_index(number)
        return None if index is None else self.turns[index]

    def put_turn(self, turn: Turn, grown_bytes: int = 0) -> None:
        """Another Turn in the place of the one of its number, which there must be."""
        last = self.turns.last()
        if last is not None and last.number == turn.number:
            self.turns.replace_last(turn, grown_bytes)
        elif (index := self._turn_index(turn.number)) is not None:
            self.turns.replace(index, turn, grown_bytes)

    def _turn_index(self, number: int) -> int | None:
        # Turns are numbered without gaps, from the first of the session's life on.
        index = number - self.turns[0].number
        return index if 0 <= index < len(self.turns) and self.turns[index].number == number else None

    def add_turn_usage(self, turn: Turn, usage: Mapping[str, int | float], *, responded: bool) -> None:
        """Count usage in a turn, as what is known from `model.responded` too; see settle_usage."""
        used = self._used.get(turn.number)
        if used is None:
            known = None if turn.responded is None else dict(turn.responded)
            used = self._used[turn.number] = _Used(dict(turn.usage), known)
        _add(used.usage, usage)
        if responded and used.responded is not None:
            _add(used.responded, usage)

    def settle_usage(self, number: int) -> None:
        """Give a turn what was counted in it, which copies the sums; before they are looked at."""
        used, turn = self._used.pop(number, None), self.turn_of(number)
        if used is None or turn is None:
            return
        responded = None if used.responded is None else FrozenDict(used.responded)
        self.put_turn(replace(turn, usage=FrozenDict(used.usage), responded=responded))

    def add_usage(self, usage: Mapping[str, int | float], sign: int = 1) -> None:
        """Count usage in the session's sum, or take it out again."""
        if type(self.usage) is FrozenDict and usage:
            self.usage = dict(self.usage)
        for key, value in usage.items():
            self.usage[key] = _plus(self.usage.get(key, 0), sign * value)


class _Used(NamedTuple):
    """What a turn used, and the part of it that is known from `model.responded`, free to change."""

    usage: dict[str, int | float]
    responded: dict[str, int | float] | None


class States:
    """The states of a view, each taken apart only where an event changes it."""

    __slots__ = ("_agents", "_editors", "session")

    def __init__(self, view: View) -> None:
        self.session = StateEditor(view.state, frozen=True)
        self._agents = view.agent_state
        self._editors: dict[str, StateEditor] = {}

    def begin(self, state: dict[str, Any]) -> None:
        """Another state of the session, in the place of what there was."""
        self.session = StateEditor(freeze(state), frozen=True)

    def agent(self, name: str) -> StateEditor:
        """The state of an agent."""
        editor = self._editors.get(name)
        if editor is None:
            editor = self._editors[name] = StateEditor(self._agents.get(name, NOTHING), frozen=True)
        return editor

    def finish(self) -> tuple[FrozenDict[str, Any], FrozenDict[str, FrozenDict[str, Any]]]:
        """The state of the session, and those of its agents."""
        if self._editors:
            changed = {name: _frozen(editor) for name, editor in self._editors.items()}
            self._agents, self._editors = FrozenDict(self._agents), {}
            dict.update(self._agents, changed)  # Nobody else has it yet.
        return _frozen(self.session), self._agents


def _frozen(editor: StateEditor) -> FrozenDict[str, Any]:
    state = editor.finish()
    assert isinstance(state, FrozenDict)
    return state


def message_bytes(message: Message) -> int:
    """About how many bytes a message takes."""
    size = MESSAGE_BYTES + content_bytes(message.content)
    for call in message.tool_calls:
        size += MESSAGE_BYTES + len(call.arguments)
    return size


def _add(total: dict[str, int | float], usage: Mapping[str, int | float]) -> None:
    for key, value in usage.items():
        total[key] = _plus(total.get(key, 0), value)


def _plus(a: float, b: float) -> float:
    """The sum of two numbers; more than a float holds is the most that it does, as JSON has no inf."""
    total = a + b
    if type(total) is float and not math.isfinite(total):
        return math.copysign(sys.float_info.max, total)
    return total


def summed(a: Usage, b: Mapping[str, int | float]) -> Usage:
    """Two usages added up, field by field."""
    if not a:
        return FrozenDict(b)
    total = dict(a)
    _add(total, b)
    return FrozenDict(total)


def numbers(usage: Any) -> tuple[dict[str, int | float], str | None]:
    """The fields of a recorded usage that are numbers (what is nested is not summed), and what was wrong."""
    if type(usage) is not dict:
        return {}, None if usage is None else "the usage is no object"
    return {key: value for key, value in usage.items() if type(value) is int or type(value) is float}, None
