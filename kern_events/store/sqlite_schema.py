"""The schema of a SQLite file, held against what this release makes, and mended."""

from __future__ import annotations

import functools
import re
import sqlite3
from collections.abc import Sequence
from typing import Final

from kern_events.errors import StoreError
from kern_events.store import migrate, schema, sql
from kern_events.store.base import Difference
from kern_events.store.schema import Objects

_TRIGGER: Final = re.compile(r"(?m)^CREATE TRIGGER (\w+)")


def differences(driver: sqlite3.Connection) -> list[Difference]:
    """What the file has not, or has otherwise; nothing is known of a schema of another release."""
    found = _found(driver)
    if ("table", "kern_migrations") not in found:
        return []
    if driver.execute(sql.SQLITE_APPLIED).fetchone()[0] != migrate.latest("sqlite"):
        return []
    return schema.differences(_expected(migrate.migrations("sqlite")), found)


def mend(driver: sqlite3.Connection) -> None:
    """Make what differs anew, in a transaction.

    Raises:
        StoreError: Something cannot be mended: a table is another one, or the rows do not fit.
    """
    expected, found = _expected(migrate.migrations("sqlite")), _found(driver)
    for kind, name in schema.differing(expected, found):
        if kind == "table" and (kind, name) in found:
            raise StoreError(f"table {name} is another one than was made: it cannot be mended")
        try:
            driver.execute(sql.SQLITE_DROP_OBJECT.format(kind=kind, name=name))
            driver.execute(expected[kind, name])
        except sqlite3.IntegrityError as error:
            raise StoreError(f"{kind} {name} cannot be mended: {error}") from error


def warn_of_triggers(driver: sqlite3.Connection) -> None:
    """Say it where the file does not refuse to change what was recorded, by the names of the triggers."""
    there = {name for name, *_ in driver.execute(sql.SQLITE_TRIGGERS)}
    ours = dict.fromkeys(
        name for step in migrate.migrations("sqlite") for name in _TRIGGER.findall(step.text)
    )
    schema.warn_of_missing([f"trigger {name}" for name in ours if name not in there])


def _found(driver: sqlite3.Connection) -> Objects:
    return schema.objects_of(driver.execute(sql.SQLITE_OBJECTS))


@functools.lru_cache(maxsize=1)
def _expected(steps: Sequence[migrate.Migration]) -> Objects:
    driver = sqlite3.connect(":memory:")
    try:
        driver.execute(sql.SQLITE_CREATE_MIGRATIONS)
        for step in steps:
            driver.executescript(step.text)
        return _found(driver)
    finally:
        driver.close()
