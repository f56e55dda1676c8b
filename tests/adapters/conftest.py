"""Agno Dbs under test: on SQLite and Postgres, plain and ours, sync and async."""

from __future__ import annotations

import inspect
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("AGNO_TELEMETRY", "false")

import pytest
from agno.db.postgres import AsyncPostgresDb, PostgresDb
from agno.db.sqlite import AsyncSqliteDb, SqliteDb
from sqlalchemy import make_url

from kern_events.adapters.agno import (
    KernAsyncPostgresDb,
    KernAsyncSqliteDb,
    KernPostgresDb,
    KernSqliteDb,
)
from tests import databases
from tests.facade import FACADES, Blocking, LoopThread

KINDS = {
    "sqlite": (KernSqliteDb, KernAsyncSqliteDb, SqliteDb, AsyncSqliteDb),
    "postgres": (KernPostgresDb, KernAsyncPostgresDb, PostgresDb, AsyncPostgresDb),
}


class Place(NamedTuple):
    """A database of Agno's, and how to open it; a Db that was opened is closed at the end of the test."""

    backend: str
    options: dict[str, Any]
    opened: list[Any]

    def open(self, **options: Any) -> Any:
        """A new Db of ours, as another process would open it."""
        return self._made(0, options)

    def open_async(self, **options: Any) -> Any:
        return self._made(1, options)

    def plain(self, **options: Any) -> Any:
        """A new Db of Agno's own."""
        return self._made(2, options)

    def _made(self, which: int, options: dict[str, Any]) -> Any:
        given = dict(self.options)
        if which == 1 and self.backend == "postgres":
            given["db_url"] = make_url(given["db_url"]).set(drivername="postgresql+psycopg_async")
            given["db_url"] = given["db_url"].render_as_string(hide_password=False)
        db = KINDS[self.backend][which](**given, **options)
        self.opened.append(db)
        return db


@pytest.fixture(scope="session")
def agno_postgres_url(postgres_server: str) -> Iterator[str]:
    with databases.database(postgres_server) as url:
        yield url


@pytest.fixture(params=list(KINDS))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty database of Agno's."""
    if request.param == "sqlite":
        place = Place("sqlite", {"db_file": f"{tmp_path}/agno.db"}, [])
    else:
        url = request.getfixturevalue("agno_postgres_url")
        place = Place("postgres", {"db_url": url, "db_schema": f"s{uuid.uuid4().hex[:12]}"}, [])
    yield place
    for db in place.opened:
        if not _is_async(db):
            db.close()


class Side:
    """The synchronous classes, or the async ones in a loop of their own, as one."""

    def __init__(self, place: Place, loop: LoopThread | None) -> None:
        self.place = place
        self.loop = loop

    def open(self, **options: Any) -> Any:
        """A new Db of ours, for an agent."""
        return self.place.open_async(**options) if self.loop else self.place.open(**options)

    def sessions(self, db: Any) -> Any:
        """Its log, as a synchronous one."""
        return Blocking(self.loop, db.sessions) if self.loop else db.sessions

    def run(self, runner: Any, *args: Any, **options: Any) -> Any:
        """What `run` of an agent, a team or a workflow gives, or its `arun`."""
        return self.do(runner.arun if self.loop else runner.run, *args, **options)

    def do(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """What a method gives, awaited where it is to be."""
        answer = method(*args, **options)
        return self.loop.run(answer) if self.loop and inspect.isawaitable(answer) else answer


@pytest.fixture(params=FACADES)
def side(request: pytest.FixtureRequest, place: Place) -> Iterator[Side]:
    """Each of the four classes, on an empty database."""
    loop = LoopThread() if request.param == "async" else None
    yield Side(place, loop)
    if loop:
        for db in filter(_is_async, place.opened):
            loop.run(db.close())
        loop.close()


def _is_async(db: Any) -> bool:
    return isinstance(db, (AsyncSqliteDb, AsyncPostgresDb))


Opener = Callable[[], Any]
