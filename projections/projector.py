"""What a projector is: a pure left fold over the events of one session."""

from __future__ import annotations

from typing import Literal, Protocol, TypeVar

from kern_events import Event

V = TypeVar("V")


class Projector(Protocol[V]):
    """Folds the events of a session into a view; any object with these members is one.

    `evolve` is pure: no clock, no randomness, no I/O. It never changes the view that it is given,
    because views are cached and shared: it returns a new one, or the same where nothing changes.

    Events come in the versions that the log's `types` know. One of a newer version was written by newer
    code: it is given to `unreadable(view, event) -> view` instead, where the projector has that, to mark
    the view; without it, it is passed over. Such views are not stored in the database.

    A projector may also have `fold(view, events) -> view` for speed. It must give exactly what
    `evolve` gives event by event, which has the last word where `fold` raises. With a `view_type`, any
    type that msgspec can decode, its views are stored in Redis and in the database too; without one they
    are kept in memory.
    """

    @property
    def name(self) -> str:
        """Names the projector's snapshots, together with `version`."""

    @property
    def version(self) -> int:
        """To be raised whenever the same events give another view: snapshots of others are ignored."""

    @property
    def scope(self) -> Literal["live", "log"]:
        """`live` folds the events that count after restores, `log` every event of the session."""

    def initial(self) -> V:
        """The view of a session without events."""

    def evolve(self, view: V, event: Event) -> V:
        """The view after one more event."""
