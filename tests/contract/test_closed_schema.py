"""A newer release may close the schema while an older one is at work, which then writes no more."""

from __future__ import annotations

import sqlite3
import threading

import pytest
from sqlalchemy.engine import make_url

from kern_events import SessionLog, import_events, spi
from kern_events.errors import SchemaOutdated
from kern_events.store import migrate
from tests import databases, facade
from tests.facade import sync_of
from tests.writers import PATIENCE_S, eventually, note, notes

CLOSE = "INSERT INTO kern_migrations VALUES (99, 'later', 'sha', 99, 0)"


@pytest.fixture(params=["sqlite", "postgres"])
def backend(request):
    return request.param


@pytest.fixture
def url(backend, tmp_path, request):
    if backend == "sqlite":
        yield f"sqlite:///{tmp_path}/log.db"
        return
    with databases.schema(request.getfixturevalue("shared_postgres_url")) as url:
        yield url


def run(url, statement):
    if url.startswith("sqlite"):
        with sqlite3.connect(make_url(url).database) as raw:
            rows = raw.execute(statement).fetchall()
        raw.close()
        return rows
    with databases.connect(url) as raw:
        cursor = raw.execute(statement)
        return cursor.fetchall() if cursor.description else []


def joined(log, url):
    engine = databases.engine(url)
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.begin()
            sync_of(log).append("s", notes(1), connection=connection)
            connection.commit()
    finally:
        engine.dispose()


def turned(log, url):
    with sync_of(log).turn("s") as turn:
        turn.message("user", "Hi")


def stored(log, url):
    spi.SnapshotTable(sync_of(log), "p").put("s", 0, 3, head=b"head")


WRITES = {
    "append": lambda log, url: log.append("s", notes(1)),
    "append behind": lambda log, url: log.append("s", notes(1), expected=log.head("s").version),
    "append a key": lambda log, url: log.append("s", notes(1), idempotency_key="k"),
    "append to a new session": lambda log, url: log.append("new", notes(1)),
    "append a new one": lambda log, url: log.append("new", notes(1), expected=0),
    "append to many": lambda log, url: log.append_many([("s", notes(1), None), ("new", notes(1), 0)]),
    "append to a known one of many": lambda log, url: log.append_many([("s", notes(1), None)]),
    "append in a transaction": joined,
    "a turn": turned,
    "describe": lambda log, url: log.describe("s", name="x", metadata={"a": 1}),
    "delete": lambda log, url: log.delete("s"),
    "fork": lambda log, url: log.fork("s", "t"),
    "import": lambda log, url: import_events(sync_of(log), EXPORTED),
    "a snapshot": stored,
    "a consumer": lambda log, url: log.consumer("c", lambda events: None).step(),
    "a sink": lambda log, url: log.consumer("c", lambda events, connection: None, transactional=True).step(),
}
with SessionLog("memory:") as _other:
    _other.append("other", notes(2))
    EXPORTED = list(_other.export("other"))


@pytest.mark.parametrize("write", WRITES)
def test_a_live_process_writes_no_more_once_the_schema_is_closed_to_it(facade_kind, loop, url, write):
    with facade.open_log(facade_kind, loop, url) as log:
        log.append("s", notes(3))
        log.head("s")
        before = [run(url, f"SELECT count(*) FROM kern_{each}") for each in TABLES]
        run(url, CLOSE)
        for _ in range(2):
            with pytest.raises(SchemaOutdated, match="upgrade kern-events"):
                WRITES[write](log, url)
    assert [run(url, f"SELECT count(*) FROM kern_{each}") for each in TABLES] == before


TABLES = ("sessions", "events", "snapshots", "consumers")


@pytest.mark.parametrize("backend", ["postgres"], indirect=True)
def test_no_append_that_has_begun_lands_behind_the_migration(url, monkeypatch):
    """It waits for the migration, and then looks."""
    migrations, known = migrate.migrations, migrate.latest("postgres")
    with SessionLog(url) as old, databases.connect(url) as holder:
        old.append("s", notes(1))
        holder.execute("SELECT pg_advisory_lock(1)")
        later = migrate.Migration(known + 1, "later", "SELECT pg_advisory_xact_lock(1)")
        monkeypatch.setattr(migrate, "migrations", lambda dialect: (*migrations(dialect), later))
        monkeypatch.setitem(migrate.MIN_WRITER, known + 1, known + 1)
        new, answers = SessionLog(url), []
        threads = [threading.Thread(target=each) for each in (new.migrate, lambda: tried(old, answers))]
        for count, thread in enumerate(threads, 1):
            thread.start()
            eventually(lambda count=count: len(waiting(url)) == count)
        holder.execute("SELECT pg_advisory_unlock(1)")
        for thread in threads:
            thread.join(PATIENCE_S)
        assert [type(answer) for answer in answers] == [SchemaOutdated]
        assert new.append("s", [note("new")]).version == 2
        new.close()


def tried(log, answers):
    try:
        answers.append(log.append("s", notes(1)))
    except SchemaOutdated as error:
        answers.append(error)


def waiting(url):
    return run(
        url,
        "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()",
    )
