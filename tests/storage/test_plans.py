"""The statements that the log really sends use the indexes that were made for them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import create_engine, event
from sqlalchemy.engine import make_url

from kern_events import Draft, SessionLog, spi
from tests.writers import note, notes

USES = {
    "append": lambda log: log.append("s5", notes(1)),
    "append a key": lambda log: log.append("s5", [note("k")], idempotency_key="k"),
    "append to a new session": lambda log: log.append("new", notes(1), expected=0),
    "rename": lambda log: log.append("s5", [Draft("session.renamed", {"name": "n"})]),
    "look up": lambda log: _conflict(log),
    "head": lambda log: log.head("s5"),
    "tail": lambda log: spi.tail(log, "s5", 80),
    "read": lambda log: list(log.read("s5", after=3, until=9)),
    "read all": lambda log: list(log.read_all(after=3, limit=9)),
    "turn start": lambda log: spi.turn_start(log, "s5", 3),
    "version at": lambda log: spi.version_at(log, "s5", 2**60),
    "sessions": lambda log: log.sessions(limit=3, after=log.sessions(limit=1)[-1].cursor),
    "delete": lambda log: log.delete("s6"),
}
NOT_HOT = re.compile(
    r"orphan|NOT EXISTS|migrations|sqlite_master|pg_class|pg_locks|pg_sequence|pg_is_in_recovery"
)


def _conflict(log):
    receipt = log.append("s5", [note("twice")], idempotency_key="twice")
    assert log.append("s5", [note("twice")], idempotency_key="twice") == receipt


@pytest.fixture
def log(log):
    """Twenty sessions; one is twenty turns long."""
    log.append_many([(f"s{number}", notes(30), 0) for number in range(20)])
    for _ in range(20):
        log.append("s5", [Draft("turn.started", {}), note(), Draft("turn.completed", {})])
    return log


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
        traced.head("s1")
        sent.clear()
        yield traced, sent
    engine.dispose()


def sqlite_plans(raw, sent):
    """The plans of the queries and changes among these statements; a trigger's are its own."""
    plans = {}
    for statement in sent:
        if re.match(r"(?i)\s*(SELECT|UPDATE|DELETE)\b", statement) and not NOT_HOT.search(statement):
            rows = raw.connection.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
            plans[statement] = "\n".join(row[3] for row in rows)
    return plans


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.parametrize("use", USES)
def test_sqlite_searches_and_never_scans(traced, raw, use):
    log, sent = traced
    USES[use](log)

    plans = sqlite_plans(raw, sent)
    assert plans
    for statement, plan in plans.items():
        scans = [line for line in plan.splitlines() if line.startswith("SCAN") and "CONSTANT" not in line]
        assert not scans, (statement, plan)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.parametrize("use", ["append", "head", "tail", "read", "read all", "turn start", "look up"])
def test_sqlite_sorts_nothing_on_the_hot_path(traced, raw, use):
    log, sent = traced
    USES[use](log)

    for statement, plan in sqlite_plans(raw, sent).items():
        assert "TEMP B-TREE" not in plan, (statement, plan)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("use", "index"),
    [
        ("turn start", "COVERING INDEX kern_events_skeleton"),
        ("append a key", "COVERING INDEX kern_events_key"),
        ("sessions", "INDEX kern_sessions_recent"),
        ("read all", "INTEGER PRIMARY KEY"),
        ("tail", "sqlite_autoindex_kern_events_1"),
    ],
)
def test_sqlite_uses_the_index_that_was_made_for_it(traced, raw, use, index):
    log, sent = traced
    USES[use](log)

    assert any(index in plan for plan in sqlite_plans(raw, sent).values()), sqlite_plans(raw, sent)


# ------------------------------------------------------------------------------------ Postgres


@pytest.fixture
def explained(url, log, raw, monkeypatch) -> Iterator[tuple[SessionLog, dict[str, str]]]:
    """A log, and the plans of the statements that it sends.

    Sequential scans are off: in so small a table they would be right, in a large one not.
    """
    raw.run("ANALYZE")
    execute, plans = psycopg.Cursor.execute, {}
    given = make_url(url).query["options"]
    options = f"{given} -cenable_seqscan=off -cenable_bitmapscan=off"
    with SessionLog(make_url(url).update_query_dict({"options": options})) as explained:
        explained.head("s1")

        def explaining(cursor, query, params=None, **options):
            text = query.decode() if isinstance(query, bytes) else str(query)
            if re.match(r"\s*(SELECT|UPDATE|INSERT|WITH)\b", text) and not NOT_HOT.search(text):
                rows = execute(cursor, f"EXPLAIN {text}", params, **options).fetchall()
                plans[text] = "\n".join(str(line) for (line,) in rows)
            return execute(cursor, query, params, **options)

        monkeypatch.setattr(psycopg.Cursor, "execute", explaining)
        yield explained, plans
        monkeypatch.undo()


@pytest.mark.parametrize("dialect", ["postgres"], indirect=True)
@pytest.mark.parametrize("use", USES)
def test_postgres_finds_everything_by_an_index(explained, use):
    log, plans = explained
    USES[use](log)

    assert plans
    for statement, plan in plans.items():
        assert "Seq Scan" not in plan, (statement, plan)


@pytest.mark.parametrize("dialect", ["postgres"], indirect=True)
@pytest.mark.parametrize(
    ("use", "index"),
    [
        ("turn start", "kern_events_skeleton"),
        ("look up", "kern_events_key"),
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
def test_no_index_has_a_column_that_every_append_changes(raw):
    """So that most updates of a head row stay HOT."""
    indexed = raw.run(
        "SELECT DISTINCT a.attname::text FROM pg_index AS i JOIN pg_attribute AS a "
        "ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey) WHERE i.indrelid = 'kern_sessions'::regclass"
    )

    assert {name for (name,) in indexed} == {"namespace", "session_id", "user_id", "updated_hour"}


@pytest.mark.parametrize("dialect", ["postgres"], indirect=True)
def test_one_append_is_one_statement(url, log, monkeypatch):
    """One round trip: no head is read, nothing is begun, nothing is committed."""
    execute, sent = psycopg.Cursor.execute, []
    monkeypatch.setattr(
        psycopg.Cursor,
        "execute",
        lambda *args, **options: (sent.append(args[1]), execute(*args, **options))[1],
    )
    log.append("s5", notes(3))
    sent.clear()
    log.append("s5", notes(3))

    assert len(sent) == 1
