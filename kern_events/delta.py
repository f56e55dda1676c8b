"""What changed between two states, as the ops of a `state.changed`.

Whoever holds the state as a whole, as most frameworks do, has what it was and what it is now. Recorded
as ops, the change can be applied to what others have made of the state meanwhile: changes of
different keys are all kept, items appended to a list by several writers as well.
"""

from __future__ import annotations

import math
from typing import Any

from kern_events.codec import MAX_DEPTH
from kern_events.errors import InvalidEvent
from kern_events.events import Json

Op = list[Any]  # ["set", path, value], ["unset", path] or ["append", path, [items]]


def state_ops(before: dict[str, Json], after: dict[str, Json]) -> list[Op]:
    """The ops that turn one state into another, for `state_changed`.

    Objects are compared key by key. A list that has only grown gives its new items, any other change
    of a list the whole list. Values are the same if they have the same type and value: True is not 1,
    1 is not 1.0, and 0.0 is not -0.0.

    Args:
        before: The state as it was read. Neither is changed; the ops share values with `after`.
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
        if type(state) is not dict:
            raise InvalidEvent(f"{type(state).__name__} is not an object", name)
    ops: list[Op] = []
    _compare(before, after, [], ops)
    return ops


def apply_ops(state: dict[str, Json], ops: list[Op]) -> dict[str, Json]:
    """What ops make of a state, as the session view has it: parents that are missing are made.

    Args:
        state: Not changed; the result shares with it what stays as it is.
        ops: As state_ops gives them. What is no op is passed over.

    Returns:
        The state after the ops, in their order.
    """
    for op in ops:
        if _is_op(op):
            state = _applied(state, op[0], op[1], op[2] if len(op) > 2 else None)
    return state


def _is_op(op: Any) -> bool:
    if type(op) is not list or len(op) < 2 or type(op[1]) is not list:
        return False
    verb, path = op[0], op[1]
    if verb == "unset":
        return len(op) == 2
    if len(op) != 3:
        return False
    return (verb == "set" and (bool(path) or type(op[2]) is dict)) or (
        verb == "append" and bool(path) and type(op[2]) is list
    )


def _applied(node: Any, verb: str, path: list[str], value: Json) -> Any:
    """A copy of the object with one op applied; only what is on the way to the change is copied."""
    if not path:
        return value if verb == "set" else {}
    if verb == "unset" and (type(node) is not dict or path[0] not in node):
        return node
    copy = dict(node) if type(node) is dict else {}
    key = path[0]
    if len(path) > 1:
        copy[key] = _applied(copy.get(key), verb, path[1:], value)
    elif verb == "unset":
        del copy[key]
    elif verb == "set":
        copy[key] = value
    else:
        old = copy.get(key)
        copy[key] = [*old, *value] if type(old) is list else value
    return copy


def _compare(before: dict[str, Json], after: dict[str, Json], path: list[str], ops: list[Op]) -> None:
    for key in before:
        if key not in after:
            ops.append(["unset", _below(path, key)])
    for key, value in after.items():
        here = _below(path, key)
        if key not in before:
            ops.append(["set", here, value])
        elif type(value) is dict and type(before[key]) is dict and len(here) < MAX_DEPTH:
            _compare(before[key], value, here, ops)
        elif not _same(before[key], value):
            ops.append(_replaced(before[key], value, here))


def _below(path: list[str], key: Any) -> list[str]:
    if type(key) is not str:
        raise InvalidEvent(f"the key {key!r} is {type(key).__name__}, not text", ".".join(path))
    return [*path, key]


def _replaced(before: Json, after: Json, path: list[str]) -> Op:
    if type(before) is list and type(after) is list and len(before) < len(after):
        count = len(before)
        if _same(before, after[:count]):
            return ["append", path, after[count:]]
    return ["set", path, after]


def _same(one: Json, other: Json) -> bool:
    kind = type(one)
    if kind is not type(other):
        return False
    if kind is dict:
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if kind is list:
        return len(one) == len(other) and all(map(_same, one, other))
    if kind is float:
        return bool(one == other) and math.copysign(1.0, one) == math.copysign(1.0, other)
    return bool(one == other)
