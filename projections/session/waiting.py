"""What a view waits for, while it is folded: calls without an outcome, and turns that are paused.

Both are taken apart only where an event changes them, and cost what changes, however many there are.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from msgspec.structs import replace

from projections.session.view import Pause, PendingCall

_FEW: Final = 64  # calls that are not worth a list


class Pending:
    """The calls without an outcome, in order.

    A call is looked for from the end, where it mostly is; once that has cost as much as listing them
    all, all are listed.
    """

    __slots__ = ("_calls", "_given", "_listed", "_looked", "_next", "_of_messages")

    def __init__(self, given: tuple[PendingCall, ...]) -> None:
        self._given = given
        self._calls: dict[int, PendingCall] | None = None  # by numbers that rise; None while as given
        self._next = len(given)
        self._looked = 0
        # Numbers by call id and by message id. Some are of calls that have gone since.
        self._listed: dict[str, list[int]] | None = None
        self._of_messages: dict[str, list[int]] = {}

    def finish(self) -> tuple[PendingCall, ...]:
        """The calls as they are now."""
        return self._given if self._calls is None else tuple(self._calls.values())

    def append(self, call: PendingCall) -> None:
        """One more, the latest."""
        self._changing()[self._next] = call
        if self._listed is not None:
            self._list(self._next, call)
        self._next += 1

    def last(self) -> PendingCall | None:
        """The latest."""
        if self._calls is None:
            return self._given[-1] if self._given else None
        return self._calls[next(reversed(self._calls))] if self._calls else None

    def take(self, call_id: str) -> PendingCall | None:
        """Take the latest call of that id out."""
        number = self._latest(call_id)
        return None if number is None else self._taken(number)

    def start(self, call_id: str, version: int) -> bool:
        """Say of the latest call of that id that its tool was started; False if there is none."""
        number = self._latest(call_id)
        if number is not None:
            calls = self._changing()
            calls[number] = replace(calls[number], called=version)
        return number is not None

    def drop(self, message_id: str, kept: Container[str] = ()) -> None:
        """Take out the calls of a message, but for those of the ids that are kept."""
        if not (self._given if self._calls is None else self._calls):
            return
        calls = self._changing()
        if self._is_listed(len(calls)):
            numbers = [number for number in self._of_messages.get(message_id, ()) if number in calls]
        else:
            numbers = [number for number, call in calls.items() if call.message_id == message_id]
        for number in numbers:
            if calls[number].id not in kept:
                self._taken(number)

    def _latest(self, call_id: str) -> int | None:
        if not (self._given if self._calls is None else self._calls):
            return None
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
        if self._listed is None and self._looked > 4 * len(self._changing()) + _FEW:
            self._listed = {}
            for number, call in self._changing().items():
                self._list(number, call)
        return self._listed is not None

    def _list(self, number: int, call: PendingCall) -> None:
        assert self._listed is not None
        self._listed.setdefault(call.id, []).append(number)
        self._of_messages.setdefault(call.message_id, []).append(number)

    def _changing(self) -> dict[int, PendingCall]:
        if self._calls is None:
            self._calls = dict(enumerate(self._given))
        return self._calls

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
