"""The schema of a Postgres database, held against what this release makes, and mended."""

from __future__ import annotations

import re
from typing import Any, Final

import psycopg

from kern_events.errors import StoreError
from kern_events.store import schema, sql
from kern_events.store.base import Difference
from kern_events.store.schema import Objects

_TABLE: Final = re.compile(r"(?:^ALTER TABLE| ON) (kern_\w+)")


def differences(cursor: Any, name: str | None, applied: int) -> list[Difference]:
    """What the database has not, or has otherwise; nothing is known of a schema of another release."""
    if not schema.is_described(applied):
        return []
    return schema.differences(schema.for_postgres(), _found(cursor, name))


def mend(cursor: Any, name: str | None) -> None:
    """Make what differs anew, in a transaction whose search path leads to the tables.

    Raises:
        StoreError: Something cannot be mended: a column is another one, the rows do not fit, or this role
            may not.
    """
    expected, found = schema.for_postgres(), _found(cursor, name)
    for kind, one in schema.differing(expected, found):
        if kind == "column" and (kind, one) in found:
            raise StoreError(f"column {one} is another one than was made: it cannot be mended")
        try:
            for statement in _making(kind, one, expected[kind, one]):
                cursor.execute(statement.encode(), prepare=False)
        except psycopg.Error as error:
            raise StoreError(f"{kind} {one} cannot be mended: {error.diag.message_primary}") from error


def warn_of_triggers(cursor: Any, name: str | None, applied: int) -> None:
    """Say it where the database does not refuse to change what was recorded."""
    if schema.is_described(applied):
        fires = {row[0] for row in cursor.execute(sql.POSTGRES_TRIGGERS, (name,))}
        ours = [one for kind, one in schema.for_postgres() if kind == "trigger"]
        schema.warn_of_missing([f"trigger {one}" for one in ours if one not in fires])


def _found(cursor: Any, name: str | None) -> Objects:
    return schema.objects_of(cursor.execute(sql.POSTGRES_OBJECTS, {"schema": name}).fetchall())


def _making(kind: str, name: str, definition: str) -> list[str]:
    table = _TABLE.search(definition)
    drop = sql.POSTGRES_DROP_OBJECT.get(kind, "").format(table=table and table[1], name=name)
    grant = sql.POSTGRES_REVOKE.format(name=name) if kind == "function" else ""
    return [statement for statement in (drop, definition, grant) if statement]
