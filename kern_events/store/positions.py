"""Positions of a Postgres database go up, or nothing is appended.

Logical replication, COPY and some restores bring rows and leave the sequence behind. Positions would
then begin again, and whoever follows the log would never see what is appended.
"""

from __future__ import annotations

import weakref
from typing import Any, Final, NamedTuple

import psycopg

from kern_events.errors import StoreError
from kern_events.store import sql
from kern_events.store.base import Difference, logger

HIDDEN: Final = (
    "this role may not read the sequence of positions, so it is not known whether they go on: "
    "GRANT SELECT on it"
)


class _Seen(NamedTuple):
    """The highest position recorded, and the next one; None where the role may not read the sequence."""

    highest: int
    next: int | None
    sequence: str | None

    @property
    def is_behind(self) -> bool:
        return self.next is not None and self.next <= self.highest


class Positions:
    """Looks before the first append of each connection, which may lead to another server than the last."""

    def __init__(self, statements: sql.PostgresSQL) -> None:
        self.highest = 0
        self.hidden = False
        self._sql = statements
        self._checked: weakref.WeakSet[psycopg.Connection[Any]] = weakref.WeakSet()
        self._floor: int | None = None  # what was given before a lower one

    def check(self, connection: psycopg.Connection[Any], cursor: Any) -> None:
        """Refuse to append where positions would begin again.

        Raises:
            StoreError: They would. Nothing was written.
        """
        if connection in self._checked:
            return
        seen = self._look(cursor)
        again = seen.next is None and self._floor is not None and self._floor <= seen.highest
        if seen.is_behind or again:
            raise StoreError(
                f"positions would begin again: {seen.highest} is recorded, and the next one would be "
                f"{seen.next or 'lower'}; run `kern-events migrate --db URL`"
            )
        self.highest, self._floor = seen.highest, None
        self._checked.add(connection)

    def drawn(self, before: int, position: int) -> None:
        """Note a position, and `highest` as it was before it was asked for.

        Lower than that, another server answers behind the same connection: through a pooler, say.
        """
        if position > before:
            self.highest = max(self.highest, position)
            return
        logger.error("an event was given position %d after %d: is this another server?", position, before)
        self._floor = before
        self._checked = weakref.WeakSet()

    def difference(self, cursor: Any) -> list[Difference]:
        """As verify tells it."""
        seen = self._look(cursor)
        if not seen.is_behind:
            return []
        return [Difference("positions", f"the next one above {seen.highest}", str(seen.next))]

    def mend(self, cursor: Any) -> None:
        """Have them go on, in a transaction; whoever appends is waited for."""
        if self._look(cursor).is_behind:
            cursor.execute(self._sql.lock_events)
            seen = self._look(cursor)
            last = max(seen.highest, (seen.next or 1) - 1)
            cursor.execute(sql.POSTGRES_SET_SEQUENCE, (seen.sequence, last))

    def _look(self, cursor: Any) -> _Seen:
        [[sequence, readable]] = cursor.execute(self._sql.sequence).fetchall()
        self.hidden = sequence is not None and not readable
        if sequence is None:
            return _Seen(0, None, None)
        if not readable:
            return _Seen(cursor.execute(self._sql.last_position).fetchall()[0][0], None, sequence)
        [[highest, following]] = cursor.execute(self._sql.positions_of.format(sequence=sequence)).fetchall()
        return _Seen(highest, following, sequence)
