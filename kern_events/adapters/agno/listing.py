"""Which sessions the log may have gone on with since Agno's rows were last made to show all of it.

Asked of all sessions, a list would cost more with every session that there is. So it is noted up to which
position of the log everything shows, and only sessions with events behind it are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy.engine import Connection

from kern_events.adapters.agno.tables import Moved, Tables
from kern_events.errors import FeedUnavailable
from kern_events.store.base import Bound, Store

_BEGINNING: Final = Bound(0, 0)
_MANY: Final = 20_000  # events since: asking of all sessions is quicker then


class Shown:
    """Up to where in the log everything shows, as far as this process knows: nothing at first."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._bound: Bound | None = None

    def reset(self) -> None:
        """Agno's tables may be others now."""
        self._bound = None

    def now(self) -> Bound | None:
        """Where the log stands, to be told to `reach` when all that `moved` gave shows."""
        try:
            return self._store.feed_bound(self._bound or _BEGINNING)
        except FeedUnavailable:  # Positions say nothing here.
            return None

    def moved(self, tables: Tables, connection: Connection, now: Bound | None) -> Sequence[Moved]:
        """The sessions that may have to be shown, and all that were deleted since."""
        before = self._bound
        if before is None or now is None or tables.is_empty(connection):
            return tables.behind(connection)
        if not 0 <= now.end - before.settled <= _MANY:
            return tables.behind(connection)
        return tables.moved(connection, before.settled) if now.end > before.settled else ()

    def reach(self, now: Bound | None) -> None:
        """Everything up to there shows."""
        self._bound = now
