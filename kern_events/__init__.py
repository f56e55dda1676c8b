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

# No other module is imported here: until __main__.py runs, `python -m kern_events` looks for modules in the
# current directory first.
import importlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kern_events.aio import AsyncConsumer, AsyncSessionLog, AsyncTurnRecorder
    from kern_events.consumer import Consumer
    from kern_events.events import (
        Branch,
        Branches,
        Draft,
        Erased,
        Event,
        Fork,
        Head,
        Receipt,
        SessionInfo,
        message,
        state_changed,
        tool_called,
        tool_failed,
        tool_returned,
    )
    from kern_events.feed import AsyncSubscription, Subscription
    from kern_events.imports import EventsReport, import_events
    from kern_events.log import PendingReceipt, SessionLog
    from kern_events.transfer import ImportReport, import_transcripts
    from kern_events.turn import TurnRecorder
    from kern_events.upcast import EventType, EventTypes, Split
    from kern_events.verify import Finding, Report
    from projections import AsyncSessions, Sessions

__version__ = "0.1.0"

__all__ = [
    "AsyncConsumer",
    "AsyncSessionLog",
    "AsyncSessions",
    "AsyncSubscription",
    "AsyncTurnRecorder",
    "Branch",
    "Branches",
    "Consumer",
    "Draft",
    "Erased",
    "Event",
    "EventType",
    "EventTypes",
    "EventsReport",
    "Finding",
    "Fork",
    "Head",
    "ImportReport",
    "PendingReceipt",
    "Receipt",
    "Report",
    "SessionInfo",
    "SessionLog",
    "Sessions",
    "Split",
    "Subscription",
    "TurnRecorder",
    "import_events",
    "import_transcripts",
    "message",
    "state_changed",
    "tool_called",
    "tool_failed",
    "tool_returned",
]

# Imported when first asked for, so that the command line's --help need not wait for SQLAlchemy, and
# so that the front door leads to the views without the log depending on them.
_MODULES = {
    "aio": ("AsyncConsumer", "AsyncSessionLog", "AsyncTurnRecorder"),
    "consumer": ("Consumer",),
    "events": (
        *("Branch", "Branches", "Draft", "Erased", "Event", "Fork", "Head", "Receipt", "SessionInfo"),
        *("message", "state_changed", "tool_called", "tool_failed", "tool_returned"),
    ),
    "feed": ("AsyncSubscription", "Subscription"),
    "imports": ("EventsReport", "import_events"),
    "log": ("PendingReceipt", "SessionLog"),
    "transfer": ("ImportReport", "import_transcripts"),
    "turn": ("TurnRecorder",),
    "upcast": ("EventType", "EventTypes", "Split"),
    "verify": ("Finding", "Report"),
}
_HOME = {name: f"kern_events.{module}" for module, names in _MODULES.items() for name in names}
_HOME |= {"AsyncSessions": "projections", "Sessions": "projections"}


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if home == "projections":
        _check_projections()
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value


def _check_projections() -> None:
    """Make sure that `projections` is ours, before anything of another one runs: the name is a common one.

    Raises:
        ImportError: It is not; says where the other one is.
    """
    from importlib.util import find_spec
    from os.path import abspath, dirname, join

    try:
        spec = find_spec("projections")
    except ValueError:  # A module that somebody has made by hand.
        spec = None
    found = (spec.origin or next(iter(spec.submodule_search_locations or ()), None)) if spec else None
    ours = join(dirname(dirname(abspath(__file__))), "projections")
    if found is None or dirname(abspath(found)) != ours:
        raise ImportError(
            f"{found or 'another module'} shadows the package 'projections' of kern-events, which is in "
            f"{ours}: rename it, or take its folder off the module search path",
            name="projections",
            path=found,
        )


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
