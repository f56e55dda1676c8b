"""The state of a session: what the ops of a `state.changed` mean, and which ops tell two states apart.

This is the one place that says what an op is and does. The view, the adapters' folds and the exports
apply ops with a StateEditor; the log refuses what is none with check_change. Recorded rows may hold
anything all the same, so applying never fails: what is no op is passed over.

Whoever holds the state as a whole, as most frameworks do, has what it was and what it is now. Recorded
as ops, the change can be applied to what others have made of the state meanwhile: changes of
different keys are all kept, items appended to a list by several writers as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kern_events.codec import MAX_DEPTH
from kern_events.errors import InvalidEvent
from kern_events.frozen import DICTS, LISTS, FrozenDict, FrozenList, Json, freeze

Op = list[Any]  # ["set", path, value], ["unset", path] or ["append", path, [items]]

SCOPES: Final = ("session", "agent")
_LENGTHS: Final = {"set": 3, "unset": 2, "append": 3}


def op_problem(op: Any) -> tuple[str, str] | None:
    """Why a value is no op, and where in it; None if it is one.

    An op is an array: `["set", path, value]`, `["unset", path]` or `["append", path, [items]]`. A path
    is an array of up to 64 keys, never of indexes; the empty path is the whole state, which can be set
    to an object, or unset.
    """
    if type(op) not in LISTS:
        return f"{type(op).__name__} is not an op, which is a list", ""
    verb = op[0] if op else None
    if type(verb) is not str or verb not in _LENGTHS:
        return "neither set, unset nor append", "[0]"
    if len(op) != _LENGTHS[verb]:
        return f"{verb} takes {_LENGTHS[verb]} items, not {len(op)}", ""
    path = op[1]
    if type(path) not in LISTS:
        return f"{type(path).__name__} is not a path, which is a list of keys", "[1]"
    if len(path) > MAX_DEPTH:
        return f"{len(path):,} keys, a path has at most {MAX_DEPTH}", "[1]"
    for index, key in enumerate(path):
        if type(key) is not str:
            return f"{type(key).__name__} is not a key, which is a text", f"[1][{index}]"
    if verb == "set" and not path and type(op[2]) not in DICTS:
        return "the whole state can only be an object", "[2]"
    if verb == "append" and not path:
        return "nothing can be appended to the whole state, which is an object", "[1]"
    if verb == "append" and type(op[2]) not in LISTS:
        return f"{type(op[2]).__name__} is not a list of items", "[2]"
    return None


def check_ops(ops: Any, path: str = "ops") -> None:
    """Refuse what is no list of ops: InvalidEvent with its path."""
    if type(ops) not in LISTS:
        raise InvalidEvent(f"{type(ops).__name__} is not a list of ops", path)
    for index, op in enumerate(ops):
        if problem := op_problem(op):
            raise InvalidEvent(problem[0], f"{path}[{index}]{problem[1]}")


def check_change(payload: Mapping[str, Any], path: str = "payload") -> None:
    """Refuse a payload of `state.changed` that the view could not apply whole: InvalidEvent with its path."""
    scope, agent = payload.get("scope", "session"), payload.get("agent_id")
    if type(scope) is not str or scope not in SCOPES:
        raise InvalidEvent("neither session nor agent", f"{path}.scope")
    if agent is not None and type(agent) is not str:
        raise InvalidEvent(f"{type(agent).__name__} is not text", f"{path}.agent_id")
    if scope == "agent" and not agent:
        raise InvalidEvent("missing: the state of an agent is kept by its id", f"{path}.agent_id")
    if "ops" not in payload:
        raise InvalidEvent("missing", f"{path}.ops")
    check_ops(payload["ops"], f"{path}.ops")


class _Object(dict[str, Any]):
    """An object that an editor has made and may change; `below` are the keys of others in it."""

    __slots__ = ("below",)

    def __init__(self, items: Mapping[str, Any] | None = None) -> None:
        super().__init__(items or ())
        self.below: set[str] = set()


class _List(list[Any]):
    """A list that an editor has made and may change."""

    __slots__ = ()


class StateEditor:
    """A state, free to change by ops; what it was made of stays as it is.

    What an op touches is copied once and changed in place from then on, so many ops cost what they
    say, however large the state is. `finish` gives a state that shares the rest.
    """

    __slots__ = ("_freezes", "_root", "_state")

    def __init__(self, state: dict[str, Json], *, frozen: bool = False) -> None:
        """Begin with a state; with `frozen` it is, and the result will be, frozen all the way down."""
        self._state = state
        self._root: _Object | None = None
        self._freezes = frozen

    @property
    def now(self) -> Mapping[str, Json]:
        """The state as it is now, to look at until the next op."""
        return self._state if self._root is None else self._root

    def apply(self, op: Json) -> str | None:
        """Do what an op says; parents that are missing or no objects are made.

        Returns:
            None where the op met what it expected; else what had to be invented, or why it was skipped.
        """
        if op_problem(op) is not None:
            return "not an op"
        verb, path = op[0], op[1]
        if verb == "unset":
            self._unset(path)
            return None
        value = freeze(op[2]) if self._freezes else op[2]
        if not path:
            self._root = _Object(value)
            return None
        parent, problem = self._opened(path)
        if verb == "set":
            parent[path[-1]] = value
            return problem
        return _append(parent, path[-1], value) or problem

    def finish(self) -> dict[str, Json]:
        """The state as it is now: the very same object if nothing has changed."""
        if self._root is not None:
            self._state, self._root = self._closed(self._root), None
        return self._state

    def _opened(self, path: Sequence[str]) -> tuple[_Object, str | None]:
        """The object that holds the path's last key, and what was invented on the way to it."""
        if self._root is None:
            self._root = _Object(self._state)
        node, problem = self._root, None
        for key in path[:-1]:
            child = node.get(key)
            if type(child) is not _Object:
                if isinstance(child, dict):
                    child = _Object(child)
                else:
                    child, problem = _Object(), "a parent object was missing"
                node[key] = child
                node.below.add(key)
            node = child
        return node, problem

    def _unset(self, path: Sequence[str]) -> None:
        if not path:
            self._root = _Object()
            return
        node, depth = reach(self.now, path)
        if depth == len(path) - 1 and path[-1] in node:
            parent, _ = self._opened(path)
            del parent[path[-1]]

    def _closed(self, node: Any) -> Any:
        if type(node) is _List:
            return FrozenList(node) if self._freezes else list(node)
        if type(node) is not _Object:
            return node
        for key in node.below:
            if key in node:
                node[key] = self._closed(node[key])
        return FrozenDict(node) if self._freezes else dict(node)


def _append(parent: _Object, key: str, items: Sequence[Json]) -> str | None:
    old, problem = parent.get(key), None
    if type(old) is not _List:
        if not isinstance(old, (list, FrozenList)):
            old, problem = (), "appended to no list"
        old = parent[key] = _List(old)
        parent.below.add(key)
    old.extend(items)
    return problem


def reach(state: Mapping[str, Json], path: Sequence[str]) -> tuple[Mapping[str, Json], int]:
    """The last object on the way to the end of a path, and which of the path's keys is one of its own."""
    node = state
    for depth, key in enumerate(path[:-1]):
        child = node.get(key)
        if not isinstance(child, dict):
            return node, depth
        node = child
    return node, len(path) - 1


def apply_ops(state: dict[str, Json], ops: Any) -> dict[str, Json]:
    """What ops make of a state of plain dicts and lists, as the session view has it.

    Args:
        state: Not changed; the result shares with it, and with the ops, what stays as it is.
        ops: As state_ops gives them. What is no op is passed over.

    Returns:
        The state after the ops, in their order; the very same object if nothing has changed.
    """
    editor = StateEditor(state)
    for op in ops if type(ops) is list else ():
        editor.apply(op)
    return editor.finish()


def state_ops(before: Mapping[str, Json], after: Mapping[str, Json]) -> list[Op]:
    """The ops that turn one state into another, for `state_changed`.

    Objects are compared key by key. A list that has only grown gives its new items, any other change
    of a list the whole list. Values are the same if they have the same type and value: True is not 1,
    1 is not 1.0, and 0.0 is not -0.0.

    Args:
        before: The state as it was read, as a dict or as a view has it. Neither is changed; the ops
            share values with `after`.
        after: The state as it should be.

    Returns:
        Ops in an order in which they can be applied; none if nothing changed. Applied to `before`
        they give `after`; applied to what others have made of `before` they keep what those changed
        elsewhere, and of one key the last change wins.

    Raises:
        InvalidEvent: One of the states is no object, or a key of theirs is no text. The values are
            checked when the ops are recorded.
    """
    for name, state in (("before", before), ("after", after)):
        if type(state) not in DICTS:
            raise InvalidEvent(f"{type(state).__name__} is not an object", name)
    ops: list[Op] = []
    _compare(before, after, [], ops)
    return ops


def _compare(before: Mapping[str, Json], after: Mapping[str, Json], path: list[str], ops: list[Op]) -> None:
    for key in before:
        if key not in after:
            ops.append(["unset", _below(path, key)])
    for key, value in after.items():
        here = _below(path, key)
        if key not in before:
            ops.append(["set", here, value])
        elif type(value) in DICTS and type(before[key]) in DICTS and len(here) < MAX_DEPTH:
            _compare(before[key], value, here, ops)
        elif not is_same(before[key], value):
            ops.append(_replaced(before[key], value, here))


def _below(path: list[str], key: Any) -> list[str]:
    if type(key) is not str:
        raise InvalidEvent(f"the key {key!r} is {type(key).__name__}, not text", ".".join(path))
    return [*path, key]


def _replaced(before: Json, after: Json, path: list[str]) -> Op:
    if type(before) in LISTS and type(after) in LISTS and len(before) < len(after):
        count = len(before)
        if all(map(is_same, before, after)):
            return ["append", path, list(after[count:])]
    return ["set", path, after]


def is_same(one: Json, other: Json) -> bool:
    """Whether two values are the same by type and value, as state_ops has it."""
    if one is other:
        return True
    kind = type(one)
    if kind in DICTS:
        if type(other) not in DICTS or one.keys() != other.keys():
            return False
        return all(is_same(value, other[key]) for key, value in one.items())
    if kind in LISTS:
        return type(other) in LISTS and len(one) == len(other) and all(map(is_same, one, other))
    if kind is not type(other):
        return False
    if kind is float:
        return bool(one == other) and math.copysign(1.0, one) == math.copysign(1.0, other)
    return bool(one == other)
