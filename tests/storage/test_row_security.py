"""Row-level security on the tables of the log: it works within its policies, or says what hides the rows."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

import pytest

from kern_events import Draft, SessionLog
from kern_events.errors import SessionNotFound, StoreCorrupt, StoreError
from kern_events.imports import import_events
from projections import Sessions
from tests import facade
from tests.writers import notes, texts

NAMED = "row-level security"


@pytest.fixture
def dialect():
    return "postgres"


@pytest.fixture
def guarded(log, raw):
    """Puts policies on both tables of a log with three events: a condition on the rows seen, or None."""
    log.append("s", [Draft("session.created", {"name": "n"}), *notes(2)], idempotency_key="k")

    def guard(sessions, events):
        for table, seen in (("kern_sessions", sessions), ("kern_events", events)):
            raw.run(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
            if seen is not None:
                raw.run(f"CREATE POLICY p ON {table} USING ({seen}) WITH CHECK (true)")
        return raw

    return guard


@contextmanager
def opened(kind, url):
    with ExitStack() as stack:
        loop = None
        if kind == "async":
            loop = facade.LoopThread()
            stack.callback(loop.close)
        yield stack.enter_context(facade.open_sessions(kind, loop, url))


@pytest.mark.parametrize("kind", facade.FACADES)
def test_everything_works_within_a_namespace_that_is_seen(guarded, clerk, kind):
    guarded("namespace = 'default'", "namespace = 'default'")
    with opened(kind, clerk) as log:
        log.migrate()
        log.append("s", notes(1))
        assert [one.version for one in log.append_many([("s", notes(1), 4), ("t", notes(2), 0)])] == [5, 2]
        log.fork("s", "f", version=2)
        log.restore("s", to_version=2)
        assert texts(log.read("s")) == [0, 1, 0, 0]
        log.delete("s")

        assert log.verify().ok
        assert NAMED in log.verify().notes[-1]


def test_an_import_works_there_too(guarded, clerk):
    guarded("true", "true")
    with SessionLog("memory:") as source, SessionLog(clerk) as log:
        source.append("i", notes(2))
        source.append("i", [Draft("session.closed", {})])

        assert import_events(log, source.export("i")).ok
        assert log.head("i") == source.head("i")
        assert log.verify("i").ok


HIDDEN = {
    "read": lambda log: list(log.read("s")),
    "load": lambda log: log.load("s"),
    "export": lambda log: list(log.export("s")),
    "append": lambda log: log.append("s", notes(1)),
    "append_many": lambda log: log.append_many([("s", notes(1), None)]),
    "fork": lambda log: log.fork("s", "f", version=2),
    "delete": lambda log: log.delete("s"),
}


def test_verify_says_that_it_has_not_seen_everything(guarded, clerk):
    guarded("true", None)
    with SessionLog(clerk) as log:
        report = log.verify()

    assert not report.ok
    assert NAMED in report.notes[-1]


@pytest.mark.parametrize("use", HIDDEN)
@pytest.mark.parametrize("kind", facade.FACADES)
def test_an_error_says_what_hides_the_events(guarded, clerk, kind, use):
    raw = guarded("true", None)
    before = raw.dump()

    with opened(kind, clerk) as log, pytest.raises(StoreError, match=NAMED) as caught:
        HIDDEN[use](log)
    assert not isinstance(caught.value, StoreCorrupt)
    assert raw.dump() == before


@pytest.mark.parametrize("use", ["load", "fork", "delete"])
def test_an_error_says_what_hides_some_of_the_events(guarded, clerk, use):
    """A deletion that erased what it sees, and said that it is done, would leave the rest."""
    raw = guarded("true", "version > 2")
    before = raw.dump()

    with Sessions(clerk) as log, pytest.raises(StoreError, match=NAMED):
        HIDDEN[use](log)
    assert raw.dump() == before


def test_a_key_of_an_event_that_is_hidden_is_told(guarded, clerk):
    guarded("true", "version > 2")
    with SessionLog(clerk) as log, pytest.raises(StoreError, match=NAMED):
        log.append("s", notes(1), idempotency_key="k")


def test_a_session_that_is_hidden_is_unknown_and_cannot_be_begun_again(guarded, clerk):
    guarded("session_id <> 's'", "true")
    with SessionLog(clerk) as log:
        assert log.head("s").version == 0
        with pytest.raises(SessionNotFound):
            log.delete("s")
        for write in ("append", "append_many"):
            with pytest.raises(StoreError, match=NAMED):
                HIDDEN[write](log)
