"""The projector of the session view: which event does what, for one event or for many."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

from kern_events import Event, EventTypes
from projections.session import messages, turns
from projections.session.builder import Builder
from projections.session.messages import Payload
from projections.session.view import View

_Handler = Callable[[Builder, Event, Payload], str | None]

_HANDLERS: Final[Mapping[str, _Handler | None]] = {
    "session.created": turns.created,
    "session.renamed": turns.renamed,
    "session.described": turns.described,
    "session.summarized": turns.summarized,
    "session.cleared": messages.cleared,
    "session.closed": turns.closed,
    "session.deleted": turns.deleted,
    "session.erased": None,
    "session.restored": turns.restored,
    "session.forked": turns.forked,
    "turn.started": turns.started,
    "turn.paused": turns.paused,
    "turn.resumed": turns.resumed,
    "turn.completed": turns.ended,
    "turn.failed": turns.ended,
    "turn.cancelled": turns.ended,
    "message.added": messages.added,
    "message.replaced": messages.replaced,
    "message.removed": messages.removed,
    "messages.compacted": messages.compacted,
    "model.called": None,
    "model.responded": turns.responded,
    "tool.called": messages.called,
    "tool.returned": messages.returned,
    "tool.failed": messages.failed,
    "approval.requested": None,
    "approval.resolved": None,
    "state.changed": turns.state_changed,
    "media.attached": None,
    "agent.handed_off": None,
}
"""What each type of the vocabulary does; None leaves the view unchanged."""

_ADAPTERS: Final = frozenset(
    {"agno.part.added", "agno.run.changed", "agno.run.deleted", "agno.session.changed"}
)
"""The types of our own adapters: what they say is the framework's, and nothing of a view."""

HANDLED: Final = frozenset(_HANDLERS)
"""The types of the vocabulary; all are of version 1."""


class SessionProjector:
    """Folds a session into a `View`.

    It never fails: of an event that is erased, malformed, of an unknown type or of a newer type
    version it takes what it can, marks the view `incomplete` and says so in `problems`. Types that the
    log knows (`types`) change nothing in the view, and leave it complete.
    """

    name: Final = "session"
    version: Final = 1
    scope: Final[Literal["live", "log"]] = "live"

    def __init__(self, types: EventTypes | None = None) -> None:
        self.types: Final = types or EventTypes()

    def initial(self) -> View:
        """The view of a session without events."""
        return View()

    def evolve(self, view: View, event: Event) -> View:
        """The view after one more event."""
        return self.fold(view, (event,))

    def fold(self, view: View, events: Sequence[Event]) -> View:
        """The view after these events; costs what they cost, however long the session is."""
        if not events:
            return view
        builder = Builder(view)
        for event in events:
            builder.version = event.version
            handler = _HANDLERS.get(event.type, _unknown)
            payload = event.payload
            if event.meta and event.clock_us is not None:
                builder.note_clock(event)
            if handler is _unknown:
                self._foreign(builder, event)
            elif event.type_version != 1 or type(payload) is not dict:
                _unreadable(builder, event, handler)
            elif handler is not None and (problem := handler(builder, event, payload)) is not None:
                builder.note(event, problem)
        builder.session_id = events[-1].session_id
        return builder.finish()

    def _foreign(self, builder: Builder, event: Event) -> None:
        """An event that is not of the vocabulary."""
        if self.types.is_newer(event):
            builder.note(event, f"a newer type version, {event.type_version}")
        elif event.type not in self.types.versions and event.type not in _ADAPTERS:
            builder.note(event, "an unknown type")


def _unknown(builder: Builder, event: Event, payload: Payload) -> None:
    """Stands for the handler of a type that is not of the vocabulary."""


def _unreadable(builder: Builder, event: Event, handler: _Handler | None) -> None:
    """An event of which only the header can be read: its handler does what that says."""
    if event.type_version != 1:
        builder.note(event, f"a newer type version, {event.type_version}")
    elif handler is not None:
        builder.note(event, "erased" if event.erased else "the payload is no object")
    if handler is not None:
        handler(builder, event, {})
