"""JSON that cannot be changed, as it stands in views: a dict and a tuple whose mutators raise.

Shared views hold only this, so nobody can change what others see. The types are our own, so that a value
of a view, which may be recorded again, is told from a tuple of the caller's, which may not.
"""

from __future__ import annotations

from typing import Any, Final, NoReturn, TypeVar

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")

Json = Any  # None, bool, int, float, str, list and dict, nested: what JSON can say.
Frozen = Any  # None, bool, int, float, str, FrozenList and FrozenDict, nested.


class FrozenDict(dict[K, V]):
    """A dict that cannot be changed; `dict(value)` is a shallow copy that can, `thaw(value)` a deep one."""

    __slots__ = ()

    def _refuse(self, *args: object, **values: object) -> NoReturn:
        raise TypeError("a view cannot be changed; `thaw(value)` or `view.to_dict()` gives a copy that can")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenDict, (dict(self),)

    def __copy__(self) -> FrozenDict[K, V]:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenDict[K, V]:
        return self


class FrozenList(tuple[T, ...]):
    """A JSON array that cannot be changed. Equal to a tuple of the same items, not to a list."""

    __slots__ = ()

    def __copy__(self) -> FrozenList[T]:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenList[T]:
        return self


DICTS: Final = frozenset({dict, FrozenDict})
"""The types of a JSON object. A subclass of a caller's own would not come back as it was given."""

LISTS: Final = frozenset({list, FrozenList})
"""The types of a JSON array."""

_NESTED: Final = frozenset({dict, list})

NOTHING: Final[FrozenDict[str, Any]] = FrozenDict()
"""The empty object."""


def freeze(value: Json) -> Frozen:
    """A frozen copy of a JSON value."""
    kind = type(value)
    if kind is dict:
        for item in value.values():  # Most are flat: a call for each value would cost more than all the rest.
            if type(item) in _NESTED:
                return FrozenDict({k: freeze(v) if type(v) in _NESTED else v for k, v in value.items()})
        return FrozenDict(value)
    if kind is list:
        return FrozenList([freeze(item) if type(item) in _NESTED else item for item in value])
    return value


_DEEPER: Final = 100  # than anything that is recorded


class _TooDeep(Exception):
    """Ends the copy at once: what holds itself twice would else be gone through again and again."""


def thaw(value: Json) -> Json:
    """A plain copy of a JSON value, frozen or not: dicts and lists, free to change.

    What cannot be recorded stays as it is, for the log to refuse: a tuple, or all of a value that is nested
    in hundreds.
    """
    try:
        return _thawed(value, _DEEPER)
    except _TooDeep:
        return value


def _thawed(value: Json, depth: int) -> Json:
    kind = type(value)
    if kind not in DICTS and kind not in LISTS:
        return value
    if not depth:
        raise _TooDeep
    if kind in DICTS:
        return {key: _thawed(item, depth - 1) for key, item in value.items()}
    return [_thawed(item, depth - 1) for item in value]
