"""Set-up ahead of the first run, for where the role that runs agents may make nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import make_url

from kern_events import spi
from kern_events.adapters.agno.postgres import KernPostgresDb
from kern_events.adapters.agno.sqlite import KernSqliteDb
from kern_events.store.base import Difference


class SetUp(NamedTuple):
    """What was set up.

    Attributes:
        before, after: The schema numbers of the log.
        mended: What was missing of the log's tables, or not as it was made.
        sessions, runs: Agno's tables.
        namespace: Of the sessions in the log.
        made: Whether a table or a trigger of these was missing.
    """

    before: int
    after: int
    mended: Sequence[Difference]
    sessions: str
    runs: str
    namespace: str
    made: bool


def set_up(url: str, session_table: str, runs_table: str, schema: str | None = None) -> SetUp:
    """Make what is missing for an Agno Db: its tables of sessions and runs, the log, the triggers.

    Args:
        url: Of a SQLite or Postgres database.
        session_table, runs_table: Agno's tables.
        schema: Of the tables on Postgres; Agno's own default is `ai`.

    Raises:
        MigrationRequiredError: Agno's own migrations come first.
        StoreError: The database cannot be reached, or something cannot be made by this role.
    """
    options: dict[str, Any] = {"db_url": url, "session_table": session_table, "runs_table": runs_table}
    db: KernSqliteDb | KernPostgresDb
    if make_url(url).get_backend_name() == "sqlite":
        db = KernSqliteDb(**options)
    else:
        options |= {"db_schema": schema} if schema else {}
        db = KernPostgresDb(**options)
    try:
        mended = spi.differences(db.sessions)
        is_there = db._kern.is_set_up()
        before, after = db.set_up()
        tables = db._kern.tables
        shown = tables.sessions.fullname, tables.runs.fullname, tables.namespace
        return SetUp(before, after, mended, *shown, made=not is_there)
    finally:
        db.close()
