"""Databases of before Agno 3: what has to be migrated first."""

from __future__ import annotations

from typing import Any

from agno.exceptions import MigrationRequiredError


def check_migrated(db: Any) -> None:
    """Refuse to make Agno's table of runs where that would stop Agno's own migration.

    Before Agno 2.5 the ids of the sessions were a unique key on Postgres. Agno's migration replaces it by
    a primary key, which it cannot any more once the table of runs refers to it.

    Raises:
        MigrationRequiredError: The database is to be migrated first.
    """
    if db.db_engine.dialect.name != "postgresql" or db._get_table(table_type="runs") is not None:
        return
    sessions = db._get_table(table_type="sessions")
    if sessions is not None and len(sessions.primary_key) == 0:
        raise MigrationRequiredError(
            sessions.fullname,
            f"table {sessions.fullname} is of before Agno 2.5: migrate it first, with"
            " asyncio.run(MigrationManager(db).up()) of agno.db.migrations.manager",
        )
