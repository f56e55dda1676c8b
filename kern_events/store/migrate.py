"""Schema numbers: which migrations there are, and what to do about a database that has others.

A migration is one file per database in migrations/. Released files are never edited: a database
remembers the sha256 of what it was made with, and a test keeps the ones in the tree.
"""

from __future__ import annotations

import functools
import hashlib
import sqlite3
from collections.abc import Collection, Iterator
from importlib import resources
from typing import Final, NamedTuple

from kern_events.errors import SchemaOutdated, StoreError

OURS: Final = frozenset(
    {"kern_sessions", "kern_events", "kern_snapshots", "kern_consumers", "kern_parked", "kern_migrations"}
)
MIN_WRITER: Final = {1: 1, 2: 2, 3: 2, 4: 2, 5: 2, 6: 2, 7: 2}
"""For each migration, the lowest schema number whose code may still write after it."""


class Migration(NamedTuple):
    """One step of the schema."""

    number: int
    name: str
    text: str

    @property
    def sha256(self) -> str:
        """Of the file's text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@functools.cache
def migrations(dialect: str) -> tuple[Migration, ...]:
    """All migrations of a dialect (sqlite, postgres), by number."""
    files = resources.files("kern_events.store") / "migrations"
    found = []
    for file in files.iterdir():
        name, _, rest = file.name.partition(".")
        if rest == f"{dialect}.sql":
            found.append(Migration(int(name[:4]), name, file.read_text(encoding="utf-8")))
    return tuple(sorted(found))


def latest(dialect: str) -> int:
    """The schema number that this release works with."""
    return migrations(dialect)[-1].number


def pending(dialect: str, applied: int) -> tuple[Migration, ...]:
    """What a database at schema number `applied` still lacks."""
    return tuple(step for step in migrations(dialect) if step.number > applied)


def check_foreign(tables: Collection[str]) -> None:
    """Refuse a database where somebody else's tables have our names.

    Raises:
        StoreError: There are tables named like ours, and no record of our migrations.
    """
    foreign = sorted(OURS & set(tables))
    if foreign and "kern_migrations" not in foreign:
        raise StoreError(
            f"the database has a table {foreign[0]!r} that this project did not make: "
            "use another database, or another schema= on Postgres"
        )


def check_number(dialect: str, applied: int, min_writer: int) -> None:
    """Refuse a schema that this release cannot write to; a newer one that lets it is fine.

    Raises:
        SchemaOutdated: With the number found and the one needed.
    """
    needed = latest(dialect)
    if applied < needed:
        raise SchemaOutdated(applied, needed)
    check_writer(dialect, applied, min_writer)


def check_writer(dialect: str, applied: int, min_writer: int) -> None:
    """Refuse a schema that a newer release has closed to this one.

    Raises:
        SchemaOutdated: With the number found and the one that this release has.
    """
    if min_writer > latest(dialect):
        raise SchemaOutdated(applied, latest(dialect))


def statements(text: str) -> Iterator[str]:
    """The statements of a script, one by one; a trigger's body is part of its statement."""
    statement = ""
    for line in text.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
