"""The statements that the log really sends use the indexes that were made for them."""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import create_engine, event
from sqlalchemy.engine import make_url

from kern_events import Draft, SessionLog, import_events, spi
from kern_events.errors import VersionConflict
from kern_events.store import migrate, sql
from tests import databases
from tests.writers import note, notes

USES = {
    "namespaces": lambda log: spi.namespaces(log),
    "append": lambda log: log.append("s5", notes(1)),
    "append a key": lambda log: log.append("s5", [note("k")], idempotency_key="k"),
    "append to a new session": lambda log: log.append("new", notes(1), expected=0),
    "rename": lambda log: log.append("s5", [Draft("session.renamed", {"name": "n"})]),
    "look up": lambda log: _refused(log),
    "look up a key": lambda log: _repeated(log),
    "head": lambda log: log.head("s5"),
    "tail": lambda log: spi.tail(log, "s5", 80),
    "read": lambda log: list(log.read("s5", after=3, until=9)),
    "read all": lambda log: list(log.read_all(after=3, limit=9)),
    "a turn": lambda log: spi.point(log, "s5", log.head("s5"), turn=3),
    "a time": lambda log: spi.point(log, "s5", log.head("s5"), at=spi.to_datetime(2**50)),
    "sessions": lambda log: log.sessions(limit=3, after=log.sessions(limit=1)[-1].cursor),
    "sessions of a user": lambda log: log.sessions(limit=3, user_id="ada"),
    "append to many": lambda log: log.append_many([("s5", notes(1), None), ("newer", notes(1), 0)]),
    "fork": lambda log: log.fork("s5", "fork of a turn", turn=3),
    "fork of a fork": lambda log: log.fork("f2", "fork of a fork"),
    "branches": lambda log: log.branches("s5"),
    "restore": lambda log: spi.restore(log, "s5", 40, {}, log.head("s5"), actor=None),
    "live path": lambda log: spi.live_path(log, "f2", log.head("f2").version),
    "restores": lambda log: spi.restores(log, "s5"),
    "descendants": lambda log: spi.descendants(log, "s5"),
    "snapshot head": lambda log: spi.SnapshotTable(log, "p").head("s5", 50),
    "snapshot names": lambda log: spi.SnapshotTable(log, "p").names("s5"),
    "snapshot chunks": lambda log: spi.SnapshotTable(log, "p").chunks("s5", ["00", "01", "02"]),
    "put a snapshot": lambda log: _put(log, 60, drop=[50]),
    "import": lambda log: _imported(log),
    "import of a deletion": lambda log: _imported(log, delete=True),
    "export": lambda log: list(log.export("s5")),
    "snapshot plan": lambda log: spi.SnapshotTable(log, "p").plan("s3", 5),
    "other snapshots": lambda log: spi.SnapshotTable(log, "q").others("s5", "p"),
    "forget other snapshots": lambda log: spi.SnapshotTable(log, "q").forget_others("s7", "p"),
    "describe": lambda log: _described(log),
    "a turn for its user": lambda log: log.turn("s8", user_id="ada").__enter__(),
    "a turn that others append beside": lambda log: _taken(log),
    "consumers": lambda log: _consumed(log),
    "what is large": lambda log: _large(log),
    "delete": lambda log: log.delete("s6"),
    "delete in slices": lambda log: _sliced(log),
    "delete what has forks": lambda log: log.delete("s5"),
}
NOT_HOT = re.compile(
    r"orphan|NOT EXISTS \(SELECT (1 )?FROM kern_(events|sessions)|kern_migrations(?! WHERE)|sqlite_master"
    r"|pg_class|pg_locks|pg_sequence|pg_is_in_recovery"
    r"|pg_get_serial_sequence|last_value"  # once per connection
    r"|updated_at FROM kern_consumers"  # of all consumers, which are few
)


def _consumed(log):
    log.consumer("c", lambda events: None).step()
    log.append("s5", notes(1))
    assert log.consumers()[0].behind


def _put(log, version, session_id="s5", drop=()):
    chunks = {f"{number:02x}": b"chunk" for number in range(20)}
    return spi.SnapshotTable(log, "p").put(session_id, 0, version, chunks=chunks, head=b"head", drop=drop)


def _imported(log, delete=False):
    """A session, a fork of it, and what came later."""
    with SessionLog("memory:") as other:
        for text in ("first", "later"):
            other.append(f"imported {delete}", [note(text)])
            if text == "first":
                other.fork(f"imported {delete}", f"fork {delete}")
            elif delete:
                other.delete(f"imported {delete}")
            assert import_events(log, other.export(f"fork {delete}")).ok
            assert delete or import_events(log, other.export(f"imported {delete}")).ok


def _refused(log):
    with pytest.raises(VersionConflict):
        log.append("s5", notes(1), expected=1)


def _repeated(log):
    receipt = log.append("s5", [note("twice")], idempotency_key="twice")
    assert log.append("s5", [note("twice")], idempotency_key="twice") == receipt


def _described(log):
    """Others append while it is worked out what the metadata is, from this log."""
    read = log._metadata
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "_metadata", lambda one: (read(one), log.append(one, notes(1)))[0])
        log.describe("s9", metadata={"a": 1})


def _large(log):
    """By bytes, from then on."""
    log.append("s9", [note("x" * 10_000)])
    after = log.head("s9").version - 1
    assert len(list(log.read("s9", after=after))) == len(list(log.read("s9", after=after, until=after + 1)))
    log.branches("s9")
    list(log.read_all(after=100))
    log.delete("s9")


def _sliced(log):
    """A deletion of more than one transaction."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"kern_events.store.{log._store.dialect}.SLICE_ROWS", 10)
        patch.setattr("kern_events.store.sqlite.PAGE_ROWS", 10)
        log.delete("s7")


def _taken(log):
    """Others append while a turn is open, from this log, and it goes on."""
    with log.turn("s7") as turn:
        log.append("s7", notes(1))
        turn.message("user", "Hi")


def fill(log):
    """Twenty sessions; one is twenty turns long, was restored, and has forks. All have snapshots."""
    log.append_many([(f"s{number}", notes(30), 0) for number in range(20)])
    for number in range(20):
        log.append("s5", [Draft("turn.started", {}), note(), Draft("turn.completed", {})])
        _put(log, 30, f"s{number}")
    spi.restore(log, "s5", 70, {}, log.head("s5"), actor=None)
    log.fork("s5", "f1", turn=12)
    log.fork("f1", "f2", turn=9)
    _put(log, 50)


@pytest.fixture(scope="module")
def filled_file(tmp_path_factory):
    """A file to be copied."""
    file = tmp_path_factory.mktemp("filled") / "log.db"
    with SessionLog(f"sqlite:///{file}") as log:
        fill(log)
    return file


@pytest.fixture(scope="module")
def filled_database(postgres_server):
    """The name of a database to be copied."""
    with databases.database(postgres_server) as url:
        with SessionLog(url) as log:
            fill(log)
        yield make_url(url).database


@pytest.fixture
def url(dialect, tmp_path, request):
    """The address of a log that has been filled, and that nobody has open."""
    if dialect == "sqlite":
        file = shutil.copy(request.getfixturevalue("filled_file"), tmp_path / "log.db")
        yield f"sqlite:///{file}"
        return
    server, filled = map(request.getfixturevalue, ("postgres_server", "filled_database"))
    with databases.database(server, template=filled) as url:
        yield url


@pytest.fixture
def log(url):
    """The log in it."""
    with SessionLog(url) as log:
        yield log


# -------------------------------------------------------------------------------------- SQLite


@pytest.fixture
def traced(url, log, raw) -> Iterator[tuple[SessionLog, list[str]]]:
    """A log, and the statements that it sends, with their values."""
    engine, sent = create_engine(url), []

    @event.listens_for(engine, "connect")
    def connected(driver, record):
        driver.execute("PRAGMA synchronous = FULL")
        driver.set_trace_callback(sent.append)

    with SessionLog(engine) as traced:
        traced.migrate()  # Nothing but to open it, for writing and for reading.
        traced.head("s1")
        sent.clear()
        yield traced, sent
    engine.dispose()


def sqlite_plans(raw, sent):
    """The plans of the queries and changes among these statements; a trigger's are its own."""
    plans = {}
    for statement in sent:
        if re.match(r"(?i)\s*(SELECT|UPDATE|DELETE|WITH)\b", statement) and not NOT_HOT.search(statement):
            rows = raw.connection.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
            plans[statement] = "\n".join(row[3] for row in rows)
    return plans


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("statistics", [False, True])
def test_sqlite_searches_and_never_scans(traced, raw, use, statistics):
    log, sent = traced
    if statistics:
        raw.run("ANALYZE")
    USES[use](log)

    plans = sqlite_plans(raw, sent)
    assert plans
    for statement, plan in plans.items():
        # `found` is what a recursive query has found, which is as long as its answer, like a subquery.
        allowed = r"CONSTANT|SCAN found$|SCAN \(subquery|SCAN kern_migrations"  # A few rows, for ever.
        scans = [one for one in re.findall("SCAN .*", plan) if not re.search(allowed, one)]
        assert not scans, (statement, plan)
        plan = plan.replace("kern_sessions_erasing (namespace=?)", "")  # Few, as long as it takes.
        assert "(namespace=?)" not in plan, (statement, plan)  # Everything that there is, in order.


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "use", ["append", "head", "tail", "read", "read all", "a turn", "look up", "snapshot head", "restores"]
)
def test_sqlite_sorts_nothing_on_the_hot_path(traced, raw, use):
    log, sent = traced
    USES[use](log)

    for statement, plan in sqlite_plans(raw, sent).items():
        assert "TEMP B-TREE" not in plan, (statement, plan)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("use", "index"),
    [
        ("restores", "COVERING INDEX kern_events_skeleton (session=? AND kind=?)"),
        ("a turn", "COVERING INDEX kern_events_skeleton (session=? AND kind=? AND turn=?)"),
        ("descendants", "INDEX kern_sessions_forks (namespace=? AND fork_parent=?)"),
        ("branches", "INDEX kern_sessions_forks (namespace=? AND fork_parent=?)"),
        (
            "snapshot head",
            "autoindex_kern_snapshots_1 (namespace=? AND session_id=? AND projector=? AND chunk>?",
        ),
        ("append a key", "COVERING INDEX kern_events_key"),
        ("look up a key", "SEARCH t USING INDEX kern_events_skeleton (session=? AND kind=?)"),
        ("a turn that others append beside", "INDEX kern_events_skeleton (session=? AND kind=? AND turn=?)"),
        ("branches", "SEARCH e USING INDEX kern_events_skeleton (session=? AND kind=?)"),
        ("delete what has forks", "INDEX kern_events_describing (session=? AND type>? AND type<?)"),
        ("export", "SEARCH e USING INDEX kern_events_skeleton (session=? AND kind=?)"),
        ("sessions", "INDEX kern_sessions_recent"),
        ("read all", "INTEGER PRIMARY KEY"),
        ("tail", "sqlite_autoindex_kern_events_1"),
    ],
)
def test_sqlite_uses_the_index_that_was_made_for_it(traced, raw, use, index):
    log, sent = traced
    USES[use](log)

    assert any(index in plan for plan in sqlite_plans(raw, sent).values()), sqlite_plans(raw, sent)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.parametrize("use", ["fork", "restore"])
def test_sqlite_finds_the_turn_of_a_version_a_few_rows_back(traced, raw, use):
    log, sent = traced
    USES[use](log)

    [plan] = [plan for one, plan in sqlite_plans(raw, sent).items() if "+e.kind IN (1, 3, 4)" in one]
    assert "sqlite_autoindex_kern_events_1 (session=? AND version<?)" in plan
    assert "TEMP B-TREE" not in plan


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_sqlite_finds_the_newest_description_by_version(traced, raw):
    log, sent = traced
    USES["fork"](log)

    plans = [plan for one, plan in sqlite_plans(raw, sent).items() if "e.type IN ('session.created'" in one]
    assert plans
    for plan in plans:
        assert "sqlite_autoindex_kern_events_1 (session=? AND version<?)" in plan
        assert "TEMP B-TREE" not in plan


def subqueries(text):
    """The subqueries of EXISTS in a trigger, with values instead of its row."""
    for found in re.finditer(r"EXISTS \(", text):
        depth = end = 1
        while depth:
            depth += {"(": 1, ")": -1}.get(text[found.end() + end - 1], 0)
            end += 1
        query = text[found.end() : found.end() + end - 2].replace("SELECT FROM", "SELECT 1 FROM")
        query = re.sub(r"\b(OLD|whose)\.namespace", "'default'", query)
        query = re.sub(r"\b(OLD|whose)\.session_id", "'f1'", query)
        yield re.sub(r"\b(OLD|whose)\.\w+", "1", query)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.parametrize("statistics", [False, True])
def test_what_an_erasure_is_held_against_is_in_the_skeleton_index(log, raw, statistics):
    if statistics:
        raw.run("ANALYZE")
    [(trigger,)] = raw.run("SELECT sql FROM sqlite_master WHERE name = 'kern_events_append_only'")
    queries = list(subqueries(trigger))

    assert len(queries) == 2
    for query in queries:
        plan = "\n".join(row[3] for row in raw.run(f"EXPLAIN QUERY PLAN {query}"))
        assert re.search(r"INDEX kern_events_skeleton \(session=\? AND kind=\?\)", plan), plan
        assert "kern_events_1" not in plan, plan


def steps_of(url, work, numbers):
    """How many steps SQLite takes for each."""
    engine, steps, taken = create_engine(url), [], []
    event.listen(
        engine, "connect", lambda driver, _: driver.set_progress_handler(lambda: steps.append(1), 10)
    )
    with SessionLog(engine) as counted:
        counted.head("s1")
        for number in numbers:
            steps.clear()
            work(counted, number)
            taken.append(len(steps))
    engine.dispose()
    return taken


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_deletion_does_ten_times_the_work_for_ten_times_the_events(log, url):
    for number in (100, 1_000):
        log.append(f"d{number}", notes(number))
        log.fork(f"d{number}", f"fork of {number}")
        log.append(f"fork of {number}", notes(number))
    taken = steps_of(url, lambda counted, number: counted.delete(f"d{number}"), (100, 1_000))

    assert taken[1] < 15 * taken[0], taken


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_deletion_reads_of_a_fork_only_what_it_says_of_itself(log, url):
    for number in (10, 1_000):
        log.append(f"d{number}", [Draft("session.created", {"name": "n"})])
        log.fork(f"d{number}", f"fork of {number}")
        log.append(f"fork of {number}", notes(number))
    few, many = steps_of(url, lambda counted, number: counted.delete(f"d{number}"), (10, 1_000))

    assert many < 2 * few


# ------------------------------------------------------------------------------------ Postgres


@pytest.fixture
def explained(url, log, raw, monkeypatch) -> Iterator[tuple[SessionLog, dict[str, str]]]:
    """A log, and the plans of the statements that it sends.

    Sequential scans and what reads all of a table are off: in so small a table they would be right, in
    a large one not.
    """
    raw.run("ANALYZE")
    execute, plans = psycopg.Cursor.execute, {}
    options = "-cenable_seqscan=off -cenable_bitmapscan=off -cenable_hashjoin=off -cenable_mergejoin=off"
    with SessionLog(make_url(url).update_query_dict({"options": options})) as explained:
        explained.migrate()

        def explaining(cursor, query, params=None, **options):
            text = query.decode() if isinstance(query, bytes) else str(query)
            if re.match(r"\s*(SELECT|UPDATE|INSERT|DELETE|WITH)\b", text) and not NOT_HOT.search(text):
                rows = execute(cursor, f"EXPLAIN {text}", params, **options).fetchall()
                plans[text] = "\n".join(str(line) for (line,) in rows)
            return execute(cursor, query, params, **options)

        monkeypatch.setattr(psycopg.Cursor, "execute", explaining)
        yield explained, plans
        monkeypatch.undo()


@pytest.mark.parametrize("dialect", ["postgres"], indirect=True)
def test_a_deletion_reads_ten_times_the_rows_for_ten_times_the_events(log, url):
    """Under plans that were made for few rows, too: it was the square of it."""
    read = "SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'kern_events'"
    engine, taken = create_engine(url), []
    for number in (60, 600):
        for _ in range(number // 3):
            log.append(f"d{number}", [Draft("turn.started", {}), note(), Draft("turn.completed", {})])
        with engine.begin() as connection:
            assert log._delete_within(connection, f"d{number}")
            taken.append(connection.exec_driver_sql(read).scalar())
    engine.dispose()

    assert taken[1] < 15 * taken[0], taken


@pytest.mark.parametrize("dialect", ["postgres"], indirect=True)
def test_postgres_holds_an_erasure_against_few_rows(log, raw):
    raw.run("ANALYZE")
    [(trigger,)] = raw.run("SELECT prosrc FROM pg_proc WHERE oid = 'kern_only_under_tombstones'::regproc")
    queries = [query for query in subqueries(trigger) if "FROM erased" not in query]

    assert len(queries) == 2
    for query in queries:
        plan = "\n".join(row[0] for row in raw.run(f"EXPLAIN {query}"))
        index = r"kern_events_(skeleton|describing) on .*\n\s*Index Cond: .*_id = .*(kind >=|type = ANY)"
        assert re.search(index, plan), plan


@pytest.mark.parametrize("dialect", ["postgres"], indirect=True)
@pytest.mark.parametrize("use", USES)
def test_postgres_finds_everything_by_an_index(explained, use):
    log, plans = explained
    USES[use](log)

    assert plans
    for statement, plan in plans.items():
        assert not re.search("Seq Scan on (?!kern_migrations)", plan), (statement, plan)
        plan = re.sub(r"using kern_sessions_erasing .*\n.*Index Cond: .*", "", plan)  # Few, for a while.
        assert not re.search(r"Index Cond: \(namespace = '\w+'::text\)$", plan, re.M), (statement, plan)


@pytest.mark.parametrize("dialect", ["postgres"], indirect=True)
@pytest.mark.parametrize(
    ("use", "index"),
    [
        ("restores", "Index Only Scan using kern_events_skeleton"),
        ("a turn", "Index Only Scan Backward using kern_events_skeleton"),
        ("branches", "Index Only Scan using kern_events_skeleton"),
        ("branches", "kern_sessions_forks"),
        ("delete what has forks", "Index Scan using kern_events_describing"),
        ("export", "Index Scan using kern_events_skeleton"),
        ("descendants", "kern_sessions_forks"),
        ("snapshot head", "Index Scan Backward using kern_snapshots_pkey"),
        ("look up a key", "kern_events_key"),
        ("sessions", "kern_sessions_recent"),
        ("read all", "kern_events_position"),
        ("tail", "kern_events_pkey"),
        ("append", "kern_sessions_pkey"),
    ],
)
def test_postgres_uses_the_index_that_was_made_for_it(explained, use, index):
    log, plans = explained
    USES[use](log)

    assert any(index in plan for plan in plans.values()), plans


@pytest.mark.parametrize("dialect", ["postgres"], indirect=True)
@pytest.mark.parametrize("statement", ["turn_at", "newest_of", "tail"])
def test_postgres_goes_back_by_version_and_sorts_nothing(explained, statement):
    log, plans = explained
    USES["fork"](log)
    USES["tail"](log)

    [plan] = [plans[text] for name, text in statements() if name in (statement, f"{statement}.by_rows")]
    assert re.search("Index Scan (Backward )?using kern_events_pkey", plan), plan
    assert "version" in "".join(re.findall(r"Index Cond: .*", plan)), plan
    assert statement == "tail" or "Sort" not in plan, plan


def statements():
    """Every statement by its name; those of pages are two each."""
    for name, text in vars(sql.PostgresSQL("", migrate.latest("postgres"))).items():
        if isinstance(text, str):
            yield name, text
        else:
            yield from ((f"{name}.{way}", each) for way, each in text._asdict().items())


UNEXPLAINED = {
    "copy", "adopt",  # not sent through execute
    "older_feed.by_rows", "older_feed.by_bytes",  # as feed, of an older schema
    "row_security", "insert",  # of no row; of one, under row-level security
    "joined_head", "append_listing_keyed",  # as locked_head and append_listing
    "head_rows", "orphans", "applied", "lockers", "feed_held_by", "sequence_cache", "sizes",  # of all
    "sequence", "positions_of", "lock_events",  # of the sequence
    "append_keyed", "append_owned_keyed",  # NOT EXISTS, see kern_events_key
}  # fmt: skip


@pytest.mark.parametrize("dialect", ["postgres"], indirect=True)
def test_every_statement_about_a_session_is_explained_here(explained):
    """So that no new one is forgotten above; SQLite's are sent by the same uses."""
    log, plans = explained
    for use in USES.values():
        use(log)

    assert {name for name, text in statements() if text not in plans} == UNEXPLAINED


@pytest.mark.parametrize("dialect", ["postgres"], indirect=True)
def test_no_index_has_a_column_that_every_append_changes(raw):
    """So that most updates of a head row stay HOT."""
    indexed = raw.run(
        "SELECT DISTINCT a.attname::text FROM pg_index AS i JOIN pg_attribute AS a "
        "ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey) WHERE i.indrelid = 'kern_sessions'::regclass"
    )

    assert {name for (name,) in indexed} == {
        "namespace", "session_id", "user_id", "updated_hour", "fork_parent",
    }  # fmt: skip


@pytest.fixture
def sent(monkeypatch):
    """The statements that are sent."""
    execute, sent = psycopg.Cursor.execute, []
    monkeypatch.setattr(
        psycopg.Cursor,
        "execute",
        lambda *args, **options: (sent.append(args[1]), execute(*args, **options))[1],
    )
    return sent


@pytest.mark.parametrize("dialect", ["postgres"], indirect=True)
def test_one_append_is_one_statement(log, sent):
    """One round trip: no head is read, nothing is begun, nothing is committed."""
    log.append("s5", notes(3))
    sent.clear()
    log.append("s5", notes(3))

    assert len(sent) == 1


@pytest.mark.parametrize("dialect", ["postgres"], indirect=True)
def test_whose_a_session_is_and_who_took_a_turn_costs_nothing_more(log, sent):
    log.append("s5", [Draft("session.described", {"user_id": "ada"})])
    sent.clear()
    with log.turn("s5", user_id="ada") as turn:
        turn.message("user", "Hi")
    assert len(sent) == 3

    with log.turn("s5") as turn:
        log.append("s5", notes(1))
        sent.clear()
        turn.message("user", "It was looked at what they have appended.")
        assert len(sent) == 2


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_sqlite_plans_no_statement_anew(log):
    """It does where the condition of an index has to be compared with the value that a statement is given."""
    log.append("s", notes(9))
    log._store.tail("default", "s", 0, 100)
    planned = []
    with log._store._file.reading() as driver:
        driver.set_authorizer(lambda *about: planned.append(about) or sqlite3.SQLITE_OK)
    log._store.tail("default", "s", 1, 100)
    assert planned
    planned.clear()

    for after in range(2, 9):
        log._store.tail("default", "s", after, 100)
    with log._store._file.reading() as driver:
        driver.set_authorizer(None)
    assert planned == []
