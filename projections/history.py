"""The messages for the next prompt: a window on a view's context that a model API accepts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, overload

from msgspec.structs import replace

from kern_events import spi
from projections.session import Message, View
from projections.session.builder import INSTRUCTIONS
from projections.stored import LazyChunk


class History(Sequence[Message]):
    """Messages in the order in which a model takes them. A slice is a tuple."""

    __slots__ = ("_messages",)

    def __init__(self, messages: tuple[Message, ...]) -> None:
        self._messages = messages

    def __len__(self) -> int:
        return len(self._messages)

    @overload
    def __getitem__(self, index: int) -> Message: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Message, ...]: ...

    def __getitem__(self, index: int | slice) -> Message | tuple[Message, ...]:
        return self._messages[index]

    def __iter__(self) -> Iterator[Message]:
        return iter(self._messages)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, (str, bytes)):
            return NotImplemented
        return self._messages == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"History({self._messages!r})"

    def to_openai(self) -> list[dict[str, Any]]:
        """The messages as plain dicts for the OpenAI chat API, free to change."""
        return [message.to_openai() for message in self._messages]


def history(view: View, *, last_turns: int | None = None, last_messages: int | None = None) -> History:
    """The messages of a view's context, or of a window at its end.

    System and developer messages at the start are kept and do not count. A call and its result are
    never parted: results stand directly behind the message that calls, a window that would begin
    between the two begins before both, and a call without a result, or a result without a call, is
    left out (the content of the message that calls stays). Costs the window, not the session.

    Args:
        view: A session view.
        last_turns: Only what was recorded since that many turns ago began, the last one included.
        last_messages: Only about so many messages: a few more where a call would be parted.

    Raises:
        TypeError: Both are given, or one is no whole number.
        ValueError: One is negative.
    """
    if last_turns is not None and last_messages is not None:
        raise TypeError("last_turns and last_messages exclude each other")
    last_turns = spi.check_optional("last_turns", last_turns)
    last_messages = spi.check_optional("last_messages", last_messages)
    leading = _leading(view)
    start = 0
    if last_turns is not None:
        start = _turns_start(view, last_turns)
    elif last_messages is not None:
        start = _messages_start(view, last_messages)
    start = _back_to_calls(view.context, start)
    return History((*leading, *_paired(view.context[max(start, len(leading)) :])))


def _leading(view: View) -> tuple[Message, ...]:
    first = view.context.closed[0] if view.context.closed else None
    if isinstance(first, LazyChunk) and first.leading == 0:
        return ()  # It need not be fetched to know that.
    count = 0
    for message in view.context:
        if message.role not in INSTRUCTIONS:
            break
        count += 1
    return view.context[:count]


def _messages_start(view: View, count: int) -> int:
    """Where the last `count` messages begin; before the call if that is a result."""
    start = max(0, len(view.context) - count)
    while 0 < start < len(view.context) and view.context[start].role == "tool":
        start -= 1
    return start


def _turns_start(view: View, count: int) -> int:
    """Where the messages begin that were recorded since the start of the last `count` turns."""
    if count == 0:
        return len(view.context)
    if count > len(view.turns):
        return 0
    since = view.turns[-count].started_version
    start = len(view.context)
    for message in reversed(view.context):
        if message.version < since:
            break
        start -= 1
    return start


def _back_to_calls(context: Sequence[Message], start: int) -> int:
    """Move the start of a window back to the calls of its results, wherever they are."""
    wanted: Counter[str] = Counter()  # The call ids of results in the window without their call.
    passed: Counter[str] = Counter()  # The same of what is in front of it, should it be taken in.
    index = len(context)
    for message in reversed(context):
        index -= 1
        if index < start and not wanted:
            break
        if message.role == "tool" and message.tool_call_id is not None:
            (wanted if index >= start else passed)[message.tool_call_id] += 1
        for call in message.tool_calls:
            if _take(wanted, call.id):
                start = min(start, index)
                wanted.update(passed)
                passed.clear()
            else:
                _take(passed, call.id)
    return start


def _take(counts: Counter[str], id: str) -> bool:
    """Take one of the id out of the counts, if there is one."""
    if id not in counts:
        return False
    counts[id] -= 1
    if not counts[id]:
        del counts[id]
    return True


def _paired(messages: Sequence[Message]) -> Iterator[Message]:
    """The messages with every result behind its call, and without what lacks the other half."""
    calls = _results(messages)
    for index, message in enumerate(messages):
        if message.role == "tool":
            continue
        results = calls.get(index, {})
        answered = tuple(call for i, call in enumerate(message.tool_calls) if i in results)
        if len(answered) < len(message.tool_calls):
            if not answered and not message.content:
                continue
            message = replace(message, tool_calls=answered)
        yield message
        yield from results.values()


def _results(messages: Sequence[Message]) -> dict[int, dict[int, Message]]:
    """The results of each message in order, by the places of message and call; ids may be used again."""
    open: dict[str, list[tuple[int, int]]] = {}
    found: dict[int, dict[int, Message]] = {}
    for index, message in enumerate(messages):
        for place, call in enumerate(message.tool_calls):
            open.setdefault(call.id, []).append((index, place))
        if message.role == "tool" and (waiting := open.get(message.tool_call_id or "")):
            caller, place = waiting.pop()
            found.setdefault(caller, {})[place] = message
    return found
