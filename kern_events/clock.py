"""The recorder's clock, in one place so that a test can set it."""

from __future__ import annotations

import time


def now_us() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1_000
