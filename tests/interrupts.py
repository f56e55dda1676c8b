"""An exception at any point of our code, as Ctrl-C and signal handlers bring it.

CPython runs signal handlers where a function is entered or has returned, among a few other places. A
profile function sees just these, and what it raises arrives there; so an interrupt can be put to the n-th
such place, one after the other, without any signal and without a clock.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import kern_events

_OURS = (os.path.dirname(kern_events.__file__), threading.__file__)  # A Condition is no less Python.


class Interrupt:
    """Raises an exception at the n-th place of our code after `arm`; `where` says which that was."""

    def __init__(
        self,
        place: int,
        kind: type[BaseException] = KeyboardInterrupt,
        act: Callable[[], Any] | None = None,  # instead of raising it here
    ) -> None:
        self._left, self._kind, self._act = place, kind, act
        self.where: tuple[str, str] | None = None

    def arm(self) -> None:
        """Count places from here on."""
        sys.setprofile(self._at)

    def _at(self, frame: Any, event: str, _: Any) -> None:
        if event in ("c_call", "c_exception") or not frame.f_code.co_filename.startswith(_OURS):
            return
        self._left -= 1
        if self._left < 0 and self.where is None:
            self.where = (frame.f_code.co_qualname, event)
            if self._act is None:
                raise self._kind
            self._act()


def at_every_place(
    act: Callable[[int, Interrupt], Any], step: int = 1, kind: type[BaseException] = KeyboardInterrupt
) -> Iterator[tuple[int, tuple[str, str]]]:
    """Interrupt `act(place, interrupt)` at one place after the other, until it comes to its end.

    What is raised has to come out of it.
    """
    place = 0
    while True:
        interrupt, raised = Interrupt(place, kind), False
        try:
            act(place, interrupt)
        except kind:
            raised = True
        finally:
            sys.setprofile(None)
        if interrupt.where is None:
            return
        assert raised, f"swallowed at {interrupt.where}"
        yield place, interrupt.where
        place += step
