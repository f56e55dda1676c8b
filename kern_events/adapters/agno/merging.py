"""Two writers of one session's data: what each changed is kept, and what both counted is added up."""

from __future__ import annotations

from typing import Any, Final

from kern_events.adapters.agno.folding import Row
from kern_events.delta import apply_ops, state_ops

METRICS: Final = "session_metrics"
_NAMES: Final = ("provider", "id", "model_type")


def merged_data(base: Row, new: Row, now: Row) -> Row:
    """A writer's `session_data`, as what it changed of `base`, on what is stored now.

    Keys that only one has changed are both kept, a key of both is the writer's. Of the metrics, which
    each writer sums up for itself, what the writer added is added.
    """
    merged = merged_object(base, new, now)
    if isinstance(now.get(METRICS), dict) and isinstance(new.get(METRICS), dict):
        merged = {**merged, METRICS: added_up(base.get(METRICS), new[METRICS], now[METRICS])}
    return merged


def merged_object(base: Row, new: Row, now: Row) -> Row:
    """What a writer changed of `base`, on what is stored now; an object that both have made is one."""
    return apply_ops(now, state_ops(_both_made(base, new, now), new))


def _both_made(base: Row, new: Row, now: Row) -> Row:
    """The base, with the objects and lists that have come since with both."""
    filled = dict(base)
    for key, value in new.items():
        theirs, old = now.get(key), base.get(key)
        if isinstance(value, dict) and isinstance(theirs, dict) and (old is None or isinstance(old, dict)):
            filled[key] = _both_made(old or {}, value, theirs)
        elif isinstance(value, list) and isinstance(theirs, list) and old is None:
            filled[key] = _common(value, theirs)  # What each has appended to it stays.
    return filled


def _common(one: list[Any], other: list[Any]) -> list[Any]:
    """What two lists begin with."""
    same = 0
    while same < min(len(one), len(other)) and not state_ops({"": one[same]}, {"": other[same]}):
        same += 1
    return one[:same]


def added_up(base: Any, new: Any, now: Any) -> Any:
    """What is stored now, and what a writer has added to its base; shapes are those of Agno's metrics."""
    if isinstance(new, dict) and isinstance(now, dict):
        old = base if isinstance(base, dict) else {}
        keys = dict.fromkeys([*now, *new])
        return {key: _added_key(old, new, now, key) for key in keys}
    if isinstance(new, list) and isinstance(now, list):
        return _added_items(base if isinstance(base, list) else [], new, now)
    if _is_number(new) and _is_number(now):
        return now + new - (base if _is_number(base) else 0)
    return new


def _added_key(base: Row, new: Row, now: Row, key: str) -> Any:
    if key not in new:
        return now[key]
    if key not in now:
        return added_up(base.get(key), new[key], 0) if _is_number(new[key]) else new[key]
    return added_up(base.get(key), new[key], now[key])


def _added_items(base: list[Any], new: list[Any], now: list[Any]) -> list[Any]:
    """Lists of a model's metrics each: those of the same model are added up."""
    old = {_name(item): item for item in base}
    mine = {_name(item): item for item in new}
    merged = [added_up(old.get(_name(item)), mine.pop(_name(item)), item) if _name(item) in mine else item
              for item in now]  # fmt: skip
    return [*merged, *mine.values()]


def _name(item: Any) -> tuple[Any, ...]:
    return tuple(repr(item.get(key)) for key in _NAMES) if isinstance(item, dict) else (repr(item),)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
