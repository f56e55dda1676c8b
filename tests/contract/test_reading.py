"""Reading makes nothing and changes nothing: no file, no schema, no tables, no migration, no journal mode.

A database that is not there reads as an empty one, and its first write makes it.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import uuid
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

from kern_events import SessionLog, Sessions, spi
from kern_events.errors import FeedRegressed, SchemaOutdated, SessionNotFound, StoreError, StoreMissing
from kern_events.exports.sessions import every_line, every_session, live_events
from kern_events.store import migrate
from tests import databases, facade
from tests.facade import sync_of
from tests.writers import in_processes, note, notes, texts

NOW = datetime.now(UTC)
# Each verb that reads, and what it says of a database that is not there: an answer, or an error.
READS = {
    "branches": (lambda log: log.branches("s"), SessionNotFound),
    "consumers": (lambda log: log.consumers(), []),
    "diff": (lambda log: log.diff("s", 1, 2), SessionNotFound),
    "export": (lambda log: list(log.export("s")), SessionNotFound),
    "feed_held_by": (lambda log: log.feed_held_by(), []),
    "head": (lambda log: log.head("s").version, 0),
    "history": (lambda log: log.history("s"), SessionNotFound),
    "load": (lambda log: log.load("s"), SessionNotFound),
    "load at": (lambda log: log.load("s", at=NOW), SessionNotFound),
    "preview_restore": (lambda log: log.preview_restore("s", to_version=1), SessionNotFound),
    "read": (lambda log: list(log.read("s")), SessionNotFound),
    "read_all": (lambda log: list(log.read_all()), []),
    "read_all after": (lambda log: list(log.read_all(after=5)), FeedRegressed),
    "rebuild check": (lambda log: log.rebuild(check=True).sessions, 0),
    "rebuild": (lambda log: log.rebuild().sessions, 0),
    "replay": (lambda log: list(log.replay("s")), SessionNotFound),
    "sessions": (lambda log: log.sessions(), []),
    "sessions of": (lambda log: log.sessions(user_id="ada"), []),
    "subscribe": (lambda log: log.subscribe().batch(timeout_s=0.01), []),
    "verify": (lambda log: log.verify(), StoreMissing),
    "verify one": (lambda log: log.verify("s"), SessionNotFound),
    "verify snapshots": (lambda log: log.verify(snapshots=True), StoreMissing),
    # What needs a session that is there makes nothing where there is none.
    "delete": (lambda log: log.delete("s"), SessionNotFound),
    "describe": (lambda log: log.describe("s", name="x"), SessionNotFound),
    "fork": (lambda log: log.fork("s", "t"), SessionNotFound),
    "restore": (lambda log: log.restore("s", to_version=1), SessionNotFound),
    "resume": (lambda log: resumed(log), SessionNotFound),
    # Of a consumer, and below the facades.
    "consumer": (lambda log: consumer(log).position(), 0),
    "parked": (lambda log: consumer(log).parked(), []),
    "retry": (lambda log: consumer(log).retry("s"), False),
    "skip": (lambda log: consumer(log).skip("s", 1), False),
    "sizes": (lambda log: spi.sizes(of(log)), (0, 0)),
    "namespaces": (lambda log: spi.namespaces(of(log)), None),
    "differences": (lambda log: list(spi.differences(of(log))), []),
    "tail": (lambda log: spi.tail(of(log), "s", 0, 9).head.version, 0),
    "live_path": (lambda log: list(spi.live_path(of(log), "s", 0)), []),
    "descendants": (lambda log: list(spi.descendants(of(log), "s")), []),
    "restores": (lambda log: list(spi.restores(of(log), "s")), []),
    "described": (lambda log: spi.described(of(log), "s"), {"metadata": {}}),
    "hash_at": (lambda log: spi.hash_at(of(log), "s", 1), None),
    "snapshot head": (lambda log: spi.SnapshotTable(of(log), "p").head("s", 9), None),
    "snapshot names": (lambda log: spi.SnapshotTable(of(log), "p").names("s"), ([], set())),
    "snapshot chunks": (lambda log: spi.SnapshotTable(of(log), "p").chunks("s", ["a"]), {}),
    "snapshot plan": (lambda log: spi.SnapshotTable(of(log), "p").plan("", 9), []),
    "other snapshots": (lambda log: spi.SnapshotTable(of(log), "p").others("s", "p"), 0),
    "every_line": (lambda log: len(list(every_line(of(log)))), 1),
    "every_session": (lambda log: list(every_session(of(log))), []),
    "live_events": (lambda log: list(live_events(of(log), "s")), SessionNotFound),
}
WRITES = {"append", "append_many", "migrate", "turn", "warmer", "close", "open"}


def of(log):
    return sync_of(log)


def consumer(log):
    return log.consumer("c", lambda events: None)


def resumed(log):
    with of(log).resume("s"):
        pass


def outcome(use, log):
    try:
        return use(log)
    except (SessionNotFound, FeedRegressed, StoreMissing, SchemaOutdated) as error:
        return type(error)


@pytest.fixture(params=["sqlite", "postgres"])
def backend(request):
    return request.param


@pytest.fixture
def place(backend, tmp_path, request):
    """The address of a log that is not there, and the options to open it with."""
    if backend == "sqlite":
        return f"sqlite:///{tmp_path}/log.db", {}
    return request.getfixturevalue("shared_postgres_url"), {"schema": f"absent_{uuid.uuid4().hex[:12]}"}


@pytest.fixture
def open_sessions(facade_kind, loop, place):
    with ExitStack() as stack:

        def opening(url=None, **options):
            options = {**place[1], **options}
            return stack.enter_context(facade.open_sessions(facade_kind, loop, url or place[0], **options))

        yield opening


def state(place):
    """Everything that is there: the files with their bytes, or the catalogue and the rows of the schema."""
    url, options = place
    if not options:
        return files_in(Path(make_url(url).database).parent)
    with databases.connect(url) as raw:
        of_schema = "nspname = %s"
        found = raw.execute(f"SELECT oid, xmin, * FROM pg_namespace WHERE {of_schema}", [options["schema"]])
        rows = [found.fetchall()]
        for catalogue, space in (("pg_class", "relnamespace"), ("pg_proc", "pronamespace")):
            query = f"SELECT c.* FROM {catalogue} AS c JOIN pg_namespace AS n ON n.oid = c.{space}"
            rows.append(sorted(map(repr, raw.execute(f"{query} WHERE {of_schema}", [options["schema"]]))))
        rows.append(raw.execute("SELECT oid, relname FROM pg_class ORDER BY oid").fetchall())
        for (table,) in raw.execute(
            "SELECT quote_ident(schemaname) || '.' || tablename FROM pg_tables WHERE schemaname = %s",
            [options["schema"]],
        ).fetchall():
            rows.append(sorted(map(repr, raw.execute(f"SELECT xmin, t.* FROM {table} AS t"))))
        return rows


def files_in(folder):
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


def test_every_public_verb_is_known_here():
    public = {name for name in dir(Sessions) if not name.startswith("_")}
    assert public == WRITES | (public & set(READS))


@pytest.mark.parametrize("begun", [False, True])
def test_what_is_not_there_reads_as_empty_and_is_not_made(open_sessions, place, begun):
    """No file, or one of no bytes, as `touch` makes it; no schema, or one without tables."""
    begin(place) if begun else None
    before = state(place)
    for verb, (use, expected) in READS.items():
        with facade_closed(open_sessions()) as log:
            assert (verb, outcome(use, log)) == (verb, expected)
    assert state(place) == before


def begin(place):
    url, options = place
    if options:
        with databases.connect(url) as raw:
            raw.execute(f"CREATE SCHEMA {options['schema']}")
    else:
        open(make_url(url).database, "wb").close()


WRITING = {"delete", "describe", "fork", "restore", "resume", "retry", "skip", "rebuild"}


def test_an_engine_of_the_caller_s_makes_nothing_to_read(tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path}/log.db")
    with SessionLog(engine) as log:
        assert (log.head("s").version, log.sessions(), list(log.read_all())) == (0, [], [])
        assert files_in(tmp_path) == {}
        log.append("s", notes(1))
        assert texts(log.read("s")) == [0]
    engine.dispose()


@pytest.mark.parametrize("number", [1, 4])
def test_an_older_schema_is_read_or_named_and_stays(open_sessions, place, number):
    url, options = place
    with databases.release(number), SessionLog(url, **options) as old:
        old.append("s", notes(3))
    if not options:  # So that the switch to WAL would be seen, too.
        with sqlite3.connect(make_url(url).database) as raw:
            assert raw.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
        raw.close()
    before, outdated = state(place), set()
    for verb in READS.keys() - WRITING:
        with facade_closed(open_sessions()) as log:
            if outcome(READS[verb][0], log) is SchemaOutdated:
                outdated.add(verb)
    assert state(place) == before
    # What has come after the fourth is an index.
    assert not outdated if number == 4 else "verify" in outdated
    assert "read" not in outdated


@contextmanager
def facade_closed(log):
    try:
        yield log
    finally:
        log.close()


def test_what_an_older_schema_lacks_is_told(open_sessions, place):
    url, options = place
    with databases.release(1), SessionLog(url, **options) as old:
        old.append("s", notes(3))
    with pytest.raises(SchemaOutdated, match="kern-events migrate") as caught:
        open_sessions().verify()
    assert (caught.value.found, caught.value.needed) == (1, migrate.latest("sqlite"))


def test_what_another_one_makes_meanwhile_is_seen(open_sessions, place):
    log = open_sessions()
    assert log.head("s").version == 0
    begin(place)
    assert log.sessions() == []
    with SessionLog(place[0], **place[1]) as other:
        other.append("s", notes(2))
    assert texts(log.read("s")) == [0, 1]
    assert log.verify().events == 2


def test_the_namespaces_with_sessions_are_told(open_sessions, place):
    for namespace in ("b", "a", "b.c"):
        open_sessions(namespace=namespace).append("s", notes(1))
    open_sessions(namespace="a").append("t", notes(1))
    assert spi.namespaces(of(open_sessions(namespace="none"))) == ["a", "b", "b.c"]


def test_the_first_write_makes_it(open_sessions, place):
    log = open_sessions()
    assert log.sessions() == []
    assert log.append("s", [note("first")]).version == 1
    assert texts(log.read("s")) == ["first"]


def test_a_namespace_of_which_nothing_is_recorded_is_not_verified(open_sessions, place):
    open_sessions().append("s", notes(1))
    with pytest.raises(StoreMissing, match="nothing is recorded in namespace 'other'"):
        open_sessions(namespace="other").verify()


def test_what_is_taken_away_under_a_reader_is_not_made_anew(open_sessions, place):
    log, (url, options) = open_sessions(), place
    with SessionLog(url, **options) as other:
        other.append("s", notes(1))
    assert log.head("s").version == 1
    if options:
        with databases.connect(url) as raw:
            raw.execute(f"DROP SCHEMA {options['schema']} CASCADE")
    else:
        os.remove(make_url(url).database)
    before = state(place)
    store = facade.store_of(log)
    connections = store._server._connections if options else store._file._readers
    connections.renew()
    assert (log.head("s").version, log.sessions()) == (0, [])
    assert state(place) == before


# ------------------------------------------------------------------------ what may only be read


@pytest.fixture
def file():
    with tempfile.TemporaryDirectory() as name:  # Where others can come to, which pytest's are not.
        with SessionLog(f"sqlite:///{name}/log.db") as log:
            log.append("s", notes(3))
        yield Path(name, "log.db")
        os.chmod(name, 0o700)


def as_nobody(path, query, number):
    """What somebody who owns nothing reads of a file."""
    read_by_me(path, "?mode=ro")  # All that is needed is imported then, from where nobody else may read.
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    return read_by_me(path, query)


def read_by_me(path, query):
    with Sessions.open(f"sqlite:///{path}{query}") as log:
        found = [log.verify().ok, texts(log.read("s")), log.load("s").version, len(list(log.export("s")))]
        try:
            log.append("s", notes(1))
        except StoreError as error:
            return [*found, str(error)]
    return found


@pytest.mark.parametrize("query", ["", "?mode=ro"])
@pytest.mark.parametrize(("folder", "mode"), [(0o777, 0o444), (0o555, 0o444), (0o555, 0o666)])
def test_a_file_that_may_only_be_read_is_verified_and_stays(file, folder, mode, query):
    file.chmod(mode)
    file.parent.chmod(folder)
    before = files_in(file.parent)
    [(ok, said, version, lines, refused)] = in_processes(1, as_nobody, str(file), query)
    assert (ok, said, version, lines) == (True, [0, 1, 2], 3, 5)
    assert "cannot be written" in refused
    assert files_in(file.parent) == before
