"""Agno's SqliteDb, recorded."""

from __future__ import annotations

from typing import Any

from agno.db.sqlite import SqliteDb

from kern_events.adapters.agno.db import KernDb, OnError, Place
from kern_events.adapters.agno.reopening import marked, stands_for
from kern_events.store.sqlite_file import keep_private


@stands_for(SqliteDb, "sqlite")
class KernSqliteDb(KernDb, SqliteDb):
    """`SqliteDb` with every turn in an append-only log: `Agent(db=KernSqliteDb(db_file="agno.db"))`.

    Args:
        args, options: As for SqliteDb; an existing database is taken over as it is.
        on_error: Called with NotStored whenever something could not be stored, before that is raised.
        shared: Whether a session takes runs of other users than its own; they are recorded with who said it.
            By default they are refused: NotStored, caused by OwnerMismatch.

    A database in memory, where every thread has its own, is refused at the first use of a session:
    KernInMemoryDb is for that.
    """

    def __init__(
        self, *args: Any, on_error: OnError | None = None, shared: bool = False, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        keep_private(self.db_engine)
        self._begin(on_error, shared)

    def _place(self) -> Place:
        if self.db_engine.url.database in (None, "", ":memory:"):
            raise ValueError("a SQLite database in memory is one for each thread: use KernInMemoryDb")
        return Place(self.db_engine.url, self.session_table_name)

    def to_dict(self) -> dict[str, Any]:
        """See Agno."""
        return {**super().to_dict(), **marked(self)}
