"""Numbers that callers give: one in its range, or an error that names the parameter."""

from __future__ import annotations

import operator
import threading
from typing import Final, SupportsIndex

LARGEST: Final = 2**63 - 1
"""What a database can hold."""


def whole(name: str, value: object) -> int:
    """A whole number as an int, whatever can be one: of an IntEnum, say, its value.

    Raises:
        TypeError: It is none; a bool is none, and 1.0 is none either.
    """
    if type(value) is int:
        return value
    if isinstance(value, (bool, type)) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name} is a whole number, not {type(value).__name__}")
    return operator.index(value)


def check_whole(name: str, value: object, low: int = 0, high: int = LARGEST) -> int:
    """As `whole`; ValueError where it is not in the range."""
    number = value if type(value) is int else whole(name, value)
    if not low <= number <= high:
        raise ValueError(f"{name} is a number from {low:,}" + (f" to {high:,}" if high < LARGEST else ""))
    return number


def check_optional(name: str, value: object, low: int = 0, high: int = LARGEST) -> int | None:
    """As check_whole, or None."""
    return None if value is None else check_whole(name, value, low, high)


def check_seconds(name: str, value: object, low: float = 0.0, high: float = threading.TIMEOUT_MAX) -> float:
    """A number of seconds that can be waited.

    Raises:
        TypeError: It is no number.
        ValueError: It is not in the range, or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is a number of seconds, not {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name} is a number of seconds from {low:g} to {high:,.0f}")
    return value
