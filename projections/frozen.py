"""JSON that cannot be changed: mappings and tuples all the way down.

Shared views hold only this, so nobody can change what others see. A change copies the objects on
the way to it and shares the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

Frozen = Any  # None, bool, int, float, str, tuple and MappingProxyType, nested.

NOTHING: Final[MappingProxyType[str, Any]] = MappingProxyType({})
"""The empty object."""

MAX_PATH: Final = 64  # As deep as a recorded value may nest.


def freeze(value: Any) -> Frozen:
    """A frozen copy of a JSON value."""
    kind = type(value)
    if kind is dict:
        return MappingProxyType({key: freeze(item) for key, item in value.items()})
    if kind is list:
        return tuple([freeze(item) for item in value])
    return value


def thaw(value: Frozen) -> Any:
    """A plain copy of a frozen value, free to change: dicts and lists."""
    kind = type(value)
    if kind is MappingProxyType:
        return {key: thaw(item) for key, item in value.items()}
    if kind is tuple:
        return [thaw(item) for item in value]
    return value


def weigh(value: Frozen) -> int:
    """About how many bytes a frozen value takes as JSON."""
    kind = type(value)
    if kind is str:
        return len(value) + 2
    if kind is MappingProxyType:
        return 2 + sum(len(key) + 4 + weigh(item) for key, item in value.items())
    if kind is tuple:
        return 2 + sum(1 + weigh(item) for item in value)
    return 8


def apply_op(root: dict[str, Frozen], op: Any) -> str | None:
    """Apply one op of a `state.changed` to a top-level object that may be changed; its values are frozen.

    `["set", path, value]`, `["unset", path]`, `["append", path, [items]]`; path is an array of keys.
    Every op of that shape succeeds: parents that are missing or no objects are made.

    Returns:
        None where the op met what it expected; else what had to be invented, or why it was skipped.
    """
    if type(op) is not list or len(op) < 2 or not _is_path(op[1]):
        return "not an op"
    verb, path = op[0], op[1]
    if verb == "unset" and len(op) == 2:
        _unset(root, path)
        return None
    if verb == "set" and len(op) == 3:
        return _set(root, path, op[2])
    if verb == "append" and len(op) == 3 and type(op[2]) is list and path:
        return _append(root, path, op[2])
    return "not an op"


def _is_path(path: Any) -> bool:
    if type(path) is not list or len(path) > MAX_PATH:
        return False
    for key in path:  # noqa: SIM110 - a generator costs twice as much, and this is a hot path
        if type(key) is not str:
            return False
    return True


def _set(root: dict[str, Frozen], path: list[str], value: Any) -> str | None:
    if not path:
        if type(value) is not dict:
            return "the whole state set to no object"
        root.clear()
        root.update({key: freeze(item) for key, item in value.items()})
        return None
    parent, problem = _opened(root, path) if len(path) > 1 else (root, None)
    parent[path[-1]] = freeze(value)
    return problem


def _unset(root: dict[str, Frozen], path: list[str]) -> None:
    if not path:
        root.clear()
    elif _reaches(root, path):
        parent, _ = _opened(root, path)
        del parent[path[-1]]


def _append(root: dict[str, Frozen], path: list[str], items: list[Any]) -> str | None:
    parent, problem = _opened(root, path)
    old = parent.get(path[-1])
    if type(old) is not tuple:
        old, problem = (), problem or "appended to no list"
    parent[path[-1]] = (*old, *freeze(items))
    return problem


def _opened(root: dict[str, Frozen], path: list[str]) -> tuple[dict[str, Frozen], str | None]:
    """The object that holds the path's last key, copied with all on the way to it, and what was invented."""
    node, problem = root, None
    for key in path[:-1]:
        child = node.get(key)
        if type(child) is MappingProxyType:
            copy = child.copy()
        else:
            copy, problem = {}, "a parent object was missing"
        node[key] = MappingProxyType(copy)
        node = copy
    return node, problem


def _reaches(node: Mapping[str, Frozen], path: list[str]) -> bool:
    for key in path[:-1]:
        child = node.get(key)
        if type(child) is not MappingProxyType:
            return False
        node = child
    return path[-1] in node
