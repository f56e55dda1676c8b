"""The ops of `state.changed` as JSON Patch (RFC 6902), which has to know what is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Patch = dict[str, Any]


def patch_of(state: dict[str, Any], op: Any) -> list[Patch]:
    """The operations that do to `state` what an op does; `state` is changed by it.

    An op never fails: parents that are missing or no objects are made. What is no op is no operation.
    """
    if not isinstance(op, list) or len(op) < 2 or not _is_path(op[1]):
        return []
    verb, path = op[0], op[1]
    if verb == "unset" and len(op) == 2:
        return _unset(state, path)
    if verb == "set" and len(op) == 3:
        return _set(state, path, op[2])
    if verb == "append" and len(op) == 3 and isinstance(op[2], list) and path:
        return _append(state, path, op[2])
    return []


def _is_path(path: Any) -> bool:
    return isinstance(path, list) and len(path) <= 64 and all(isinstance(key, str) for key in path)


def _set(state: dict[str, Any], path: list[str], value: Any) -> list[Patch]:
    if not path:
        if not isinstance(value, dict):
            return []
        state.clear()
        state.update(copied(value))
        return [{"op": "replace", "path": "", "value": value}]
    node, depth = _reach(state, path)
    key = path[depth]
    for missing in reversed(path[depth + 1 :]):
        value = {missing: value}
    verb = "replace" if key in node else "add"
    node[key] = copied(value)
    return [{"op": verb, "path": _pointer(path[: depth + 1]), "value": value}]


def _unset(state: dict[str, Any], path: list[str]) -> list[Patch]:
    if not path:
        state.clear()
        return [{"op": "replace", "path": "", "value": {}}]
    node, depth = _reach(state, path)
    if depth < len(path) - 1 or path[-1] not in node:
        return []
    del node[path[-1]]
    return [{"op": "remove", "path": _pointer(path)}]


def _append(state: dict[str, Any], path: list[str], items: list[Any]) -> list[Patch]:
    node, depth = _reach(state, path)
    if depth < len(path) - 1 or not isinstance(node.get(path[-1]), list):
        return _set(state, path, items)
    node[path[-1]].extend(map(copied, items))
    return [{"op": "add", "path": _pointer([*path, "-"]), "value": item} for item in items]


def _reach(state: dict[str, Any], path: list[str]) -> tuple[dict[str, Any], int]:
    """The last object on the way to the end of a path, and which of the path's keys is one of its own."""
    node = state
    for depth, key in enumerate(path[:-1]):
        child = node.get(key)
        if not isinstance(child, dict):
            return node, depth
        node = child
    return node, len(path) - 1


def _pointer(path: Sequence[str]) -> str:
    """A JSON Pointer (RFC 6901)."""
    return "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in path)


def copied(value: Any) -> Any:
    """A copy of a JSON value that can be changed, and nothing else with it."""
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value
