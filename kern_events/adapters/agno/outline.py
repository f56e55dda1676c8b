"""Whether an object is as it was a moment ago, for less than it costs to serialise it once more."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from operator import is_
from typing import Any, Final

_DEPTH: Final = 3  # A run, its messages, and what each of them says.


class Outline:
    """What an object consists of: itself, what it holds, and what that holds, three levels deep.

    The parts are compared by identity, and kept, so that nothing else gets theirs. What lies deeper, in a
    nested value of a state say, is not looked at.
    """

    __slots__ = ("_parts",)

    def __init__(self, value: Any) -> None:
        self._parts = _parts(value)

    def is_of(self, value: Any) -> bool:
        """Whether this object consists of the same parts still."""
        parts = _parts(value)
        return len(parts) == len(self._parts) and all(map(is_, parts, self._parts))


def _parts(value: Any) -> list[Any]:
    parts = level = [value]
    for _ in range(_DEPTH):
        level = list(chain.from_iterable(map(_held, level)))
        parts = parts + level
    return parts


def _held(value: Any) -> Iterable[Any]:
    kind = type(value)
    if kind in _PLAIN:
        return ()
    if kind is list or kind is tuple:
        return value  # type: ignore[no-any-return]
    held = value if kind is dict else getattr(value, "__dict__", None)
    return held.values() if isinstance(held, dict) else ()


_PLAIN: Final = frozenset({str, int, float, bool, bytes, type(None)})
