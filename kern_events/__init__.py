"""An event-sourced session log with snapshot projection.

`kern_events` is what happened: every turn, message, tool call and state change of an agent's
session is an append-only event in SQLite or Postgres, linked by a hash chain. `projections` is what
it means: projectors fold the events into views, cached for a fast `load`.

::

    from kern_events import Sessions

    with Sessions.open("sqlite:///sessions.db") as sessions:
        with sessions.turn("s1", user_id="ada") as turn:
            turn.message("user", "Hello")
            turn.message("assistant", "Hi, how can I help?")
        view = sessions.load("s1")

`Sessions` is a `SessionLog` that can also load; `AsyncSessions` and `AsyncSessionLog` are the same
for asyncio. Errors are in `kern_events.errors`; authors of projectors and caches also use
`kern_events.spi`.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from kern_events.aio import AsyncSessionLog, AsyncTurnRecorder
from kern_events.events import (
    Draft,
    Erased,
    Event,
    Head,
    Receipt,
    SessionInfo,
    message,
    state_changed,
    tool_called,
    tool_failed,
    tool_returned,
)
from kern_events.log import PendingReceipt, SessionLog
from kern_events.turn import TurnRecorder
from kern_events.verify import Finding, Report

if TYPE_CHECKING:
    from projections import AsyncSessions, Sessions

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = [
    "AsyncSessionLog",
    "AsyncSessions",
    "AsyncTurnRecorder",
    "Draft",
    "Erased",
    "Event",
    "Finding",
    "Head",
    "PendingReceipt",
    "Receipt",
    "Report",
    "SessionInfo",
    "SessionLog",
    "Sessions",
    "TurnRecorder",
    "message",
    "state_changed",
    "tool_called",
    "tool_failed",
    "tool_returned",
]


def __getattr__(name: str) -> Any:
    # The front door to the views, without the core depending on them.
    if name not in ("Sessions", "AsyncSessions"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    projections = importlib.import_module("projections")
    try:
        return getattr(projections, name)
    except AttributeError:
        raise ImportError(
            f"another package named 'projections' shadows the one of kern-events: {projections.__path__}"
        ) from None
