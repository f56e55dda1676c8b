"""A long deletion erases in slices: others write between them, and what is left is nobody's to see."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pytest
import stamina

from kern_events import Draft, spi
from kern_events.errors import ErasureUnfinished, SessionNotFound, StoreUnavailable
from kern_events.store import retry
from tests import databases, facade
from tests.writers import note, notes, texts

DURABLE = facade.only_on("sqlite", "postgres")
COUNT = 23


def created():
    return Draft("session.created", {})


@pytest.fixture(autouse=True)
def small_slices(monkeypatch):
    for store in ("sqlite", "postgres"):
        monkeypatch.setattr(f"kern_events.store.{store}.SLICE_ROWS", 4)
    monkeypatch.setattr("kern_events.store.sqlite.PAGE_ROWS", 4)


def left(address):
    """How many events still have content in the database, but for those that always have."""
    asked = "SELECT count(*) FROM kern_events WHERE payload IS NOT NULL AND kind NOT IN (5, 6)"
    if address.backend == "sqlite":
        with closing(sqlite3.connect(address.url.removeprefix("sqlite:///"))) as connection:
            return connection.execute(asked).fetchone()[0]
    with databases.connect(address.url.partition("?")[0]) as connection:
        return connection.execute(f"{asked} AND namespace = '{address.namespace}'").fetchone()[0]


def cut_short(log, session_id):
    """Delete a session as a process does that is killed after the first slice."""
    inner = facade.sync_of(log)
    assert retry.delete(inner._store, inner.namespace, session_id, inner._tombstones(session_id, None))
    assert inner._store.unfinished(inner.namespace) == [session_id]


@pytest.fixture
def killed(log, address):
    """A log in which the deletion of a long session was broken off; one fork of it has its own event."""
    log.append("s", [created(), *[note("secret") for _ in range(COUNT)]])
    log.fork("s", "f")
    log.append("f", [note("own")])
    cut_short(log, "s")
    assert left(address) > COUNT - 5
    return log


def is_finished(log, address, kept=1):
    return facade.store_of(log).unfinished(log.namespace) == [] and left(address) == kept


@DURABLE
def test_nobody_sees_what_a_killed_delete_has_left(killed):
    inner = facade.sync_of(killed)
    pages = [spi.page(inner, "s", 0, 100)[0], spi.tail(inner, "s", 3).events]
    pages.append([event for event in killed.read_all() if event.session_id == "s"])
    lines = [json.loads(line) for line in killed.export("f")]

    for events in pages:
        assert {event.erased for event in events if event.type == "note.taken"} == {True}
        assert all(event.salt is None and event.native is None for event in events if event.erased)
    assert texts(event for event in killed.read("f") if not event.erased) == ["own"]
    assert "secret" not in str(lines)
    assert [line["payload_commit"] is None for line in lines if line.get("type") == "note.taken"] == (
        [False] * COUNT + [True]
    )


@DURABLE
def test_a_fork_is_loaded_without_what_a_killed_delete_has_left(killed, facade_kind, address, loop):
    with facade.open_sessions(facade_kind, loop, address.url, namespace=address.namespace) as sessions:
        assert sessions.load("f").head.version == COUNT + 3
        erased = {event.erased for event, *_ in sessions.replay("f") if event.type == "note.taken"}
        assert erased == {True, False}
        assert spi.described(facade.sync_of(killed), "f")["metadata"] == {}


@DURABLE
def test_what_a_killed_delete_has_left_verifies(killed):
    assert killed.verify().ok


@DURABLE
def test_the_next_delete_goes_on_with_a_killed_one(killed, address):
    killed.append("other", notes(1))
    killed.delete("other")

    assert is_finished(killed, address)
    assert killed.verify().ok


@DURABLE
def test_who_deletes_it_again_is_told_that_it_is_gone_and_it_is(killed, address):
    with pytest.raises(SessionNotFound):
        killed.delete("s")
    assert is_finished(killed, address)


BEGINNINGS = {
    "append": lambda log: log.append("s", [created()]),
    "append to a new one": lambda log: log.append("s", [created()], expected=0),
    "append at a head": lambda log: log.append("s", [created()], expected=log.head("s")),
    "append to many": lambda log: log.append_many([("t", [created()], None), ("s", [created()], None)]),
}


@DURABLE
@pytest.mark.parametrize("begin", BEGINNINGS.values(), ids=BEGINNINGS)
def test_it_begins_again_behind_nothing_that_is_left(killed, address, begin):
    begin(killed)

    kept = left(address)
    assert is_finished(killed, address, kept)
    assert kept <= 3
    assert (killed.head("s").status, killed.verify().ok) == ("open", True)


@DURABLE
def test_in_a_transaction_of_the_caller_it_begins_again_behind_nothing_that_is_left(killed, address):
    engine = databases.engine(address.url)
    with engine.begin() as connection:
        if address.backend == "sqlite":
            connection.exec_driver_sql("PRAGMA synchronous = FULL")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        facade.sync_of(killed).append("s", [created()], connection=connection)
    engine.dispose()

    assert is_finished(killed, address, 2)
    assert killed.verify().ok


@DURABLE
def test_others_write_between_two_slices(log):
    log.append("s", [note("secret") for _ in range(COUNT)])
    seen = []

    def between(done, of):
        log.append("other", notes(1))
        seen.append((done, of))

    receipt = log.delete("s", progress=between)
    assert len(seen) >= COUNT // 4 - 1
    assert seen == sorted(seen)
    assert seen[-1] == (receipt.version, receipt.version)
    assert log.head("other").version == len(seen)


@DURABLE
def test_a_database_that_fails_between_two_slices_is_told_and_gone_on_with(log, address, monkeypatch):
    log.append("s", [note("secret") for _ in range(COUNT)])
    store = facade.store_of(log)

    def fails(*place):
        raise StoreUnavailable("gone")

    with monkeypatch.context() as patch:
        patch.setattr(store, "erase_on", fails)
        patch.setattr(retry, "_patiently", lambda: stamina.retry_context(on=StoreUnavailable, attempts=1))
        with pytest.raises(ErasureUnfinished):
            log.delete("s")
    assert log.head("s").status == "deleted"
    with pytest.raises(SessionNotFound):
        log.delete("s")
    assert is_finished(log, address, 0)


def test_it_is_erased_whole_when_it_returns(log):
    log.append("s", [note("secret") for _ in range(COUNT)])
    log.delete("s")
    log.append("s", [created(), *notes(COUNT)])
    log.delete("s")

    assert facade.store_of(log).unfinished(log.namespace) in ([], ())
    erased = [event.erased for event in log.read_all()]
    assert erased == [*[True] * COUNT, False, *[True] * (COUNT + 1), False]
    assert log.verify("s").ok
