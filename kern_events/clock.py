"""The recorder's clock, in one place so that a test can set it."""

from __future__ import annotations

import time
from typing import Final

from kern_events.errors import InvalidEvent

AHEAD_US: Final = 60_000_000
"""Clocks that differ by up to a minute are taken for right."""

_LATEST_US: Final = 7_258_118_400_000_000  # the year 2200


def said_us() -> int:
    """What this machine's clock says, right or not, in microseconds since 1970, UTC."""
    return time.time_ns() // 1_000


def now_us() -> int:
    """As said_us, for what is recorded.

    Raises:
        InvalidEvent: The clock is before 1970 or after 2200: nothing can be dated by it.
    """
    us = said_us()
    if not 0 <= us < _LATEST_US:
        raise InvalidEvent("the clock of this machine is before 1970 or after 2200", "at")
    return us
