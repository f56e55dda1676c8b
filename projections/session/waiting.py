"""What a view waits for, while it is folded: calls without an outcome, and turns that are paused.

Both are taken apart only where an event changes them, and cost what changes, however many there are.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from msgspec.structs import replace

from projections.session.view import Pause, PendingCall

_FEW: Final = 64


def pending_of(given: tuple[PendingCall, ...]) -> Pending:
    """The calls of a view, free to change."""
    return Pending(given) if len(given) <= _FEW else ManyPending(given)


class Pending:
    """The calls without an outcome, in order. A list of a few is gone through quicker than it is indexed."""

    __slots__ = ("_calls",)

    def __init__(self, given: tuple[PendingCall, ...]) -> None:
        self._calls = list(given)

    def finish(self) -> tuple[PendingCall, ...]:
        """The calls as they are now."""
        return tuple(self._calls)

    def append(self, call: PendingCall) -> Pending:
        """One more, the latest; returns what holds them from now on."""
        self._calls.append(call)
        return self if len(self._calls) <= _FEW else ManyPending(tuple(self._calls))

    def last(self) -> PendingCall | None:
        """The latest."""
        return self._calls[-1] if self._calls else None

    def take(self, call_id: str) -> PendingCall | None:
        """Take the latest call of that id out."""
        calls = self._calls
        for index in range(len(calls) - 1, -1, -1):
            if calls[index].id == call_id:
                return calls.pop(index)
        return None

    def start(self, call_id: str, version: int) -> bool:
        """Say of the latest call of that id that its tool was started; False if there is none."""
        calls = self._calls
        for index in range(len(calls) - 1, -1, -1):
            if calls[index].id == call_id:
                calls[index] = replace(calls[index], called=version)
                return True
        return False

    def drop(self, message_id: str, kept: Container[str] = ()) -> None:
        """Take out the calls of a message, but for those of the ids that are kept."""
        self._calls = [call for call in self._calls if call.message_id != message_id or call.id in kept]


class ManyPending(Pending):
    """The same for many.

    A call is looked for from the end, where it mostly is; once that has cost as much as listing them
    all, all are listed.
    """

    __slots__ = ("_given", "_listed", "_looked", "_next", "_numbered", "_of_messages")

    def __init__(self, given: tuple[PendingCall, ...]) -> None:
        self._given = given
        self._numbered: dict[int, PendingCall] | None = None  # by numbers that rise; None while as given
        self._next = len(given)
        self._looked = 0
        # Numbers by call id and by message id. Some are of calls that have gone since.
        self._listed: dict[str, list[int]] | None = None
        self._of_messages: dict[str, list[int]] = {}

    def finish(self) -> tuple[PendingCall, ...]:
        """See Pending; what was given, where nothing has changed."""
        return self._given if self._numbered is None else tuple(self._numbered.values())

    def append(self, call: PendingCall) -> Pending:
        """See Pending."""
        self._changing()[self._next] = call
        if self._listed is not None:
            self._list(self._next, call)
        self._next += 1
        return self

    def last(self) -> PendingCall | None:
        """See Pending."""
        if self._numbered is None:
            return self._given[-1]
        return self._numbered[next(reversed(self._numbered))] if self._numbered else None

    def take(self, call_id: str) -> PendingCall | None:
        """See Pending."""
        number = self._latest(call_id)
        return None if number is None else self._taken(number)

    def start(self, call_id: str, version: int) -> bool:
        """See Pending."""
        number = self._latest(call_id)
        if number is not None:
            calls = self._changing()
            calls[number] = replace(calls[number], called=version)
        return number is not None

    def drop(self, message_id: str, kept: Container[str] = ()) -> None:
        """See Pending."""
        calls = self._changing()
        if self._is_listed(len(calls)):
            numbers = [number for number in self._of_messages.get(message_id, ()) if number in calls]
        else:
            numbers = [number for number, call in calls.items() if call.message_id == message_id]
        for number in numbers:
            if calls[number].id not in kept:
                self._taken(number)

    def _latest(self, call_id: str) -> int | None:
        calls = self._changing()
        if self._listed is None:
            for looks, number in enumerate(reversed(calls), 1):
                if calls[number].id == call_id:
                    self._is_listed(looks)
                    return number
            self._is_listed(len(calls))
            return None
        numbers = self._listed.get(call_id, [])
        while numbers and numbers[-1] not in calls:
            numbers.pop()
        return numbers[-1] if numbers else None

    def _is_listed(self, looks: int) -> bool:
        """Whether the calls are listed; they are once that costs no more than having looked has."""
        self._looked += looks
        if self._listed is None and self._looked > 4 * len(self._changing()):
            self._listed = {}
            for number, call in self._changing().items():
                self._list(number, call)
        return self._listed is not None

    def _list(self, number: int, call: PendingCall) -> None:
        assert self._listed is not None
        self._listed.setdefault(call.id, []).append(number)
        self._of_messages.setdefault(call.message_id, []).append(number)

    def _changing(self) -> dict[int, PendingCall]:
        if self._numbered is None:
            self._numbered = dict(enumerate(self._given))
        return self._numbered

    def _taken(self, number: int) -> PendingCall:
        calls = self._changing()
        # A dict that is emptied from its end by `pop` is walked through again by every look at its end.
        return calls.popitem()[1] if next(reversed(calls)) == number else calls.pop(number)


class Paused:
    """The turns that wait, in the order of pausing."""

    __slots__ = ("_by_turn", "_given")

    def __init__(self, given: tuple[Pause, ...]) -> None:
        self._given = given
        self._by_turn: dict[int, Pause] | None = None  # None while as given

    def finish(self) -> tuple[Pause, ...]:
        """The pauses as they are now."""
        return self._given if self._by_turn is None else tuple(self._by_turn.values())

    def add(self, pause: Pause) -> None:
        """One more, in the stead of an earlier one of the same turn."""
        self.drop(pause.turn)
        self._changing()[pause.turn] = pause

    def drop(self, turn: int) -> None:
        """The turn waits no more."""
        if self._given if self._by_turn is None else self._by_turn:
            self._changing().pop(turn, None)

    def _changing(self) -> dict[int, Pause]:
        if self._by_turn is None:
            self._by_turn = {pause.turn: pause for pause in self._given}
        return self._by_turn
