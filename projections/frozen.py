"""The frozen JSON of views (see kern_events/frozen.py), and about how much of it there is."""

from __future__ import annotations

from typing import Any

from kern_events.spi import NOTHING, FrozenDict, FrozenList, freeze, thaw

__all__ = ["NOTHING", "Frozen", "FrozenDict", "FrozenList", "freeze", "thaw", "weigh"]

Frozen = Any  # None, bool, int, float, str, FrozenList and FrozenDict, nested.


def weigh(value: Frozen) -> int:
    """About how many bytes a frozen value takes as JSON."""
    kind = type(value)
    if kind is str:
        return len(value) + 2
    if kind is FrozenDict:
        return 2 + sum(len(key) + 4 + weigh(item) for key, item in value.items())
    if kind is FrozenList:
        return 2 + sum(1 + weigh(item) for item in value)
    return 8
