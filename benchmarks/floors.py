"""What the raw drivers need for the same durable work.

Two floors. The *bare* one writes the turn's 8 payloads as rows of the plainest table there is
(session, version, type, time, payload) in the driver's fastest durable form. The *same statements*
one replays exactly what the log sent to its database, with every value ready: what is left of the
ratio is what the log itself computes.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
from sqlalchemy import event
from sqlalchemy.engine import Engine

from benchmarks.measure import dsn
from benchmarks.workload import Turn
from kern_events.store import sql
from kern_events.store.wire import Cursor, binary_cursor

Call = tuple[str, Any]
Row = tuple[str, int, str, int, bytes]

_COLUMNS: Final = "(session, version, type, time, payload)"
POSTGRES_COPY: Final = f"COPY bare {_COLUMNS} FROM STDIN (FORMAT BINARY)"
_SQLITE_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS bare (session TEXT NOT NULL, version INTEGER NOT NULL, type TEXT NOT NULL, "
    "time INTEGER NOT NULL, payload BLOB NOT NULL, UNIQUE (session, version))"
)
_POSTGRES_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS bare (session text NOT NULL, version bigint NOT NULL, type text NOT NULL, "
    "time bigint NOT NULL, payload bytea NOT NULL, PRIMARY KEY (session, version))"
)


def bare_rows(session: str, turn: Turn, after: int) -> list[Row]:
    """A turn as rows of the plainest table, behind a version."""
    now = time.time_ns() // 1_000
    payloads = enumerate(turn.payloads(), after + 1)
    return [(session, version, type, now, payload) for version, (type, payload) in payloads]


def flat(rows: Sequence[Row]) -> tuple[Any, ...]:
    """The values of one statement that inserts all of these rows."""
    return tuple(value for row in rows for value in row)


# ---------------------------------------------------------------------------------------- SQLite


def sqlite_connection(path: Path) -> sqlite3.Connection:
    """A durable connection: WAL and synchronous=FULL."""
    connection = sqlite3.connect(path, isolation_level=None, cached_statements=256, check_same_thread=False)
    connection.execute(sql.SQLITE_WAL)
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def sqlite_bare(path: Path) -> sqlite3.Connection:
    """As before, with the plainest table."""
    connection = sqlite_connection(path)
    connection.execute(_SQLITE_TABLE)
    return connection


def sqlite_insert(rows: int) -> str:
    """One statement is one transaction: faster than BEGIN, executemany and COMMIT."""
    return f"INSERT INTO bare {_COLUMNS} VALUES " + ", ".join(["(?, ?, ?, ?, ?)"] * rows)


def sqlite_replay(connection: sqlite3.Connection, calls: Sequence[Call]) -> None:
    """Send what the log sent."""
    for statement, values in calls:
        cursor = connection.execute(statement, values)
        if cursor.description:
            cursor.fetchone()


def sqlite_path(url: str) -> Path:
    """The file behind a SQLite URL."""
    return Path(url.removeprefix("sqlite:///"))


def sqlite_ours(path: Path) -> sqlite3.Connection:
    """A connection to a file of ours, with its settings."""
    connection = sqlite_connection(path)
    for setting in sql.SQLITE_SETTINGS:
        connection.execute(setting)
    return connection


# -------------------------------------------------------------------------------------- Postgres


def postgres_connection(url: str) -> psycopg.Connection[Any]:
    """A connection that commits each statement by itself."""
    return psycopg.connect(dsn(url), autocommit=True)


def postgres_bare(url: str) -> Cursor:
    """A cursor that sends its values in binary, beside the plainest table."""
    cursor = binary_cursor(postgres_connection(url))
    cursor.execute(_POSTGRES_TABLE)
    return cursor


def postgres_ours(url: str) -> Cursor:
    """A cursor as the log has it."""
    cursor = binary_cursor(postgres_connection(url))
    cursor.execute("SET plan_cache_mode = force_generic_plan")
    return cursor


def postgres_insert(rows: int) -> str:
    """One round trip, prepared by the driver after a few times."""
    return f"INSERT INTO bare {_COLUMNS} VALUES " + ", ".join(["(%b, %b, %b, %b, %b)"] * rows)


def postgres_replay(cursor: Cursor, calls: Sequence[Call]) -> None:
    """Send what the log sent."""
    for statement, values in calls:
        cursor.execute(statement, values)
        if cursor.description:
            cursor.fetchall()


# ------------------------------------------------------------------------------------- recording

Inside = Callable[[str, Callable[..., Any]], Callable[..., Any]]


@contextmanager
def recording(inside: Inside = lambda name, function: function) -> Iterator[list[Call]]:
    """Every statement that connections opened in this context send, whoever opens them.

    `inside` may wrap the sending of each, to time it.
    """
    tape: list[Call] = []

    class RecordingConnection(sqlite3.Connection):
        def execute(self, statement: str, values: Any = ()) -> Any:
            tape.append((statement, values))
            return inside(_short(statement), super().execute)(statement, values)

    class RecordingCursor(psycopg.Cursor[Any]):
        def execute(self, statement: Any, values: Any = None, **options: Any) -> Any:  # type: ignore[override]
            tape.append((statement, values))
            return inside(_short(statement), super().execute)(statement, values, **options)

    def opening(dialect: Any, record: Any, arguments: Any, options: dict[str, Any]) -> None:
        if dialect.name == "sqlite":
            options["factory"] = RecordingConnection
        else:
            options["cursor_factory"] = RecordingCursor

    event.listen(Engine, "do_connect", opening)
    try:
        yield tape
    finally:
        event.remove(Engine, "do_connect", opening)


def _short(statement: object) -> str:
    words = str(statement).split()
    return " ".join([*words[:3], "..."] if len(words) > 3 else words)
