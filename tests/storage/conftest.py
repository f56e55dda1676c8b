"""Logs to be harmed: each test has a file or a schema of its own, and a connection below the log."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from kern_events import SessionLog
from tests import databases


class Raw:
    """A connection below the log, in autocommit, with `?` for a value on both databases."""

    def __init__(self, dialect: str, connection: Any) -> None:
        self.dialect = dialect
        self.connection = connection

    def run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run a statement; its rows, if it has any."""
        if self.dialect == "postgres":
            cursor = self.connection.execute(statement.replace("?", "%b"), values or None)
            return cursor.fetchall() if cursor.description else []
        return list(self.connection.execute(statement, values).fetchall())

    def where(self, session_id: str) -> str:
        """The condition on `kern_events` for a session of the default namespace."""
        if self.dialect == "postgres":
            return f"session_id = '{session_id}'"
        return f"session = (SELECT id FROM kern_sessions WHERE session_id = '{session_id}')"

    def disarm(self) -> None:
        """Take the triggers away, as somebody who owns the database can."""
        if self.dialect == "postgres":
            for table in ("kern_events", "kern_sessions"):
                self.run(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
            return
        for (name,) in self.run("SELECT name FROM sqlite_master WHERE type = 'trigger'"):
            self.run(f"DROP TRIGGER {name}")

    def dump(self) -> list[Any]:
        """Everything that is recorded."""
        tables = ("kern_sessions", "kern_events")
        return [sorted(map(repr, self.run(f"SELECT * FROM {table}"))) for table in tables]


@pytest.fixture(params=["sqlite", "postgres"])
def dialect(request: pytest.FixtureRequest) -> str:
    """The database."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def harmed_postgres_url(postgres_server: str) -> Iterator[str]:
    """One database, in which every test has a schema."""
    with databases.database(postgres_server) as url:
        yield url


@pytest.fixture
def url(dialect: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a new log."""
    if dialect == "sqlite":
        yield f"sqlite:///{tmp_path}/log.db"
        return
    with databases.schema(request.getfixturevalue("harmed_postgres_url")) as url:
        yield url


@pytest.fixture
def log(url: str) -> Iterator[SessionLog]:
    """The log in it, with its tables."""
    with SessionLog(url) as log:
        log.migrate()
        yield log


@pytest.fixture
def raw(dialect: str, url: str, log: SessionLog) -> Iterator[Raw]:
    """A connection below the log."""
    if dialect == "sqlite":
        connection: Any = sqlite3.connect(make_url(url).database or "", isolation_level=None, timeout=30)
    else:
        connection = databases.connect(url)
    yield Raw(dialect, connection)
    connection.close()


@pytest.fixture
def clerk(raw: Raw, url: str) -> Iterator[str]:
    """On Postgres, the address of a role that may use the tables of the log, and is not their owner."""
    [(schema,)] = raw.run("SELECT current_schema()")
    name = f"clerk_{schema}"
    raw.run(f"CREATE ROLE {name} LOGIN")
    raw.run(f"GRANT USAGE ON SCHEMA {schema} TO {name}")
    raw.run(f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {name}")
    yield make_url(url).set(username=name).render_as_string(hide_password=False)
    raw.run(f"DROP OWNED BY {name}")
    raw.run(f"DROP ROLE {name}")
