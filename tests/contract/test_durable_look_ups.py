"""What is acknowledged because it was found, and not because the database has answered, is durable, too.

What that takes is each database's own business: on Postgres see tests/crash/test_failover.py.
"""

from __future__ import annotations

import os

import pytest
import stamina

from kern_events import PendingReceipt, import_events, import_transcripts
from kern_events.errors import AppendUnresolved, SessionNotFound, StoreUnavailable
from tests.facade import store_of, sync_of
from tests.writers import note, notes, texts

LINE = b'{"id": "chat", "messages": [{"role": "user", "content": "Hi"}]}'


class Unflushed:
    """A store in which what was found never becomes durable."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def look_up(self, batch, base, count, *, durable=False):
        if durable:
            raise StoreUnavailable("the standby does not answer")
        return self._inner.look_up(batch, base, count)


@pytest.fixture
def once():
    """A look-up is not repeated."""
    stamina.set_testing(True, attempts=1)
    yield
    stamina.set_testing(False)


def _again(log):
    """Calls that find what they would record."""
    drafts = notes(2)
    keyed = log.append("keyed", notes(1), idempotency_key="k")
    log.append("plain", drafts)
    log.append_many([("a", drafts, 0), ("b", drafts, 0)])
    log.append("gone", notes(1))
    log.delete("gone")
    import_transcripts(sync_of(log), [LINE])
    lines = list(sync_of(log).export("plain"))
    return {
        "key": lambda: log.append("keyed", notes(1), idempotency_key="k"),
        "drafts": lambda: log.append("plain", drafts, expected=0),
        "many": lambda: log.append_many([("a", drafts, 0), ("b", drafts, 0)]),
        "deletion": lambda: log.delete("gone"),
        "confirmation": PendingReceipt(sync_of(log), keyed).confirm,
        "conversation": lambda: import_transcripts(sync_of(log), [LINE]),
        "export": lambda: import_events(sync_of(log), lines),
    }


def test_what_is_found_is_acknowledged_once_it_is_durable(log, once):
    calls = _again(log)
    sync_of(log)._store = Unflushed(store_of(log))
    for name, call in calls.items():
        with pytest.raises(StoreUnavailable) as caught:
            call()
        assert (type(caught.value) is AppendUnresolved) == (name in ("key", "drafts", "many")), name
    sync_of(log)._store = store_of(log)._inner

    with pytest.raises(SessionNotFound):
        calls.pop("deletion")()
    assert all(call() for call in calls.values())
    assert texts(log.read("plain")) == [0, 1]
    assert log.verify().ok


def test_what_is_answered_is_looked_up_by_nobody(log):
    sync_of(log)._store = Unflushed(store_of(log))
    log.append("s", notes(1), idempotency_key="k")
    log.append_many([("s", notes(1), None), ("t", notes(1), 0)])
    with log.turn("s") as turn:
        turn.record(note("in a turn"))
    log.fork("s", "f")
    log.delete("s")

    assert log.head("f").version == 6


def test_on_sqlite_the_wal_is_flushed(tmp_path, log, backend, monkeypatch):
    """Who was killed within COMMIT has written to it, and not flushed it; others read it all the same."""
    log.append("s", notes(1), idempotency_key="k")
    flushed, flush = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (flushed.append(os.fstat(file).st_ino), flush(file)))
    log.append("s", notes(1), idempotency_key="k")

    wal = [(tmp_path / "log.db-wal").stat().st_ino] if backend == "sqlite" else []
    assert flushed == wal
