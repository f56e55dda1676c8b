"""The clock that appends to Postgres are dated by: this machine's, unless that is ahead of the server's.

The statements of an append refuse what is more than a minute ahead of the server's clock. Then the server is
asked for its time, and for a while that is gone on from by a clock that nobody sets.
"""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from kern_events.clock import AHEAD_US, now_us
from kern_events.store.base import logger

_TRUSTED_S: Final = 60.0  # Then this machine's clock is tried again: somebody may have set it right.


class _Told(NamedTuple):
    """What the server's clock said, and when that was."""

    server_us: int
    monotonic_s: float


class ServerClock:
    """The time to date an append by. Called by many threads."""

    def __init__(self) -> None:
        self._told: _Told | None = None

    def now_us(self) -> int:
        """Microseconds since 1970, UTC."""
        if (told := self._told) is not None:
            passed_s = time.monotonic() - told.monotonic_s
            if passed_s < _TRUSTED_S:
                return told.server_us + int(passed_s * 1_000_000)
        return now_us()

    def is_ahead(self, server_us: int) -> bool:
        """Whether the server, which says that it is this time, refuses ours; from now on, ours is its own."""
        ahead_us = self.now_us() - server_us
        if ahead_us <= AHEAD_US:
            return False
        logger.warning(
            "this machine's clock is %d s ahead of the database's, which is used instead", ahead_us // 10**6
        )
        self._told = _Told(server_us, time.monotonic())
        return True
