"""The ops of `state.changed` as JSON Patch (RFC 6902), which has to know what is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kern_events.delta import StateEditor, op_problem, reach
from kern_events.frozen import thaw

Patch = dict[str, Any]


def patch_of(state: StateEditor, op: Any) -> list[Patch]:
    """The operations that do to a state what an op does, which is done to it.

    An op never fails: parents that are missing or no objects are made. What is no op is no operation.
    """
    if op_problem(op) is not None:
        return []
    patch = _patch(state, *op)
    state.apply(thaw(op))  # What is given out may be changed by whoever gets it.
    return patch


def _patch(state: StateEditor, verb: str, path: list[str], value: Any = None) -> list[Patch]:
    if not path:
        return [{"op": "replace", "path": "", "value": {} if verb == "unset" else value}]
    node, depth = reach(state.now, path)
    key, whole = path[depth], depth == len(path) - 1
    if verb == "unset":
        return [{"op": "remove", "path": _pointer(path)}] if whole and key in node else []
    if verb == "append" and whole and isinstance(node.get(key), list):
        return [{"op": "add", "path": _pointer([*path, "-"]), "value": item} for item in value]
    for missing in reversed(path[depth + 1 :]):
        value = {missing: value}
    return [{"op": "replace" if key in node else "add", "path": _pointer(path[: depth + 1]), "value": value}]


def _pointer(path: Sequence[str]) -> str:
    """A JSON Pointer (RFC 6901)."""
    return "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in path)
