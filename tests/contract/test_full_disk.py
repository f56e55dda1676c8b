"""No room: what writes says StoreFull, what reads goes on, and with room again all does, without a restart.

On SQLite it is a limit on the size of files, as a quota; tests/crash/test_full_disk.py has the other errors,
at every call. On Postgres it is what the server says of a disk or a tablespace.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from kern_events import Draft, message
from kern_events.errors import StoreFull
from projections import Sessions
from tests import facade, room
from tests.contract.conftest import Address
from tests.writers import PATIENCE_S, eventually, notes, texts

on_disks = facade.only_on("sqlite", "postgres")

Full = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def full(address: Address) -> Full:
    """Nothing is written while its context lasts."""
    if address.backend == "sqlite":
        return room.no_files
    return lambda: room.no_rows(address.url, address.namespace)


@pytest.fixture
def sessions(facade_kind: str, address: Address, loop: facade.LoopThread) -> Iterator[Any]:
    with facade.open_sessions(facade_kind, loop, address.url, namespace=address.namespace) as sessions:
        yield sessions


def sync_of(sessions: Any) -> Sessions:
    return sessions if isinstance(sessions, Sessions) else sessions.inner._sessions


def large(count: int) -> list[Draft]:
    return [Draft("note.taken", {"text": number, "more": "x" * 3_000}) for number in range(count)]


WRITES: dict[str, Callable[[Any], Any]] = {
    "append": lambda log: log.append("s", large(9), expected=3),
    "append_many": lambda log: log.append_many([("s", large(9), None), ("new", large(9), 0)]),
    "many drafts": lambda log: log.append("s", notes(900)),
    "describe": lambda log: log.describe("s", name="a name"),
    "fork": lambda log: log.fork("s", "f"),
    "delete": lambda log: log.delete("s"),
}


@on_disks
@pytest.mark.parametrize("write", WRITES)
def test_a_write_without_room_says_so_and_succeeds_with_room(sessions: Any, full: Full, write: str) -> None:
    sessions.append("s", large(3))
    with full():
        with pytest.raises(StoreFull) as caught:
            WRITES[write](sessions)
        assert texts(sessions.read("s")) == [0, 1, 2]
        assert sessions.load("s").version == sessions.head("s").version == 3
    assert caught.value.__cause__ is not None

    WRITES[write](sessions)
    assert sessions.verify().ok


@on_disks
@pytest.mark.parametrize("buffered", [False, True])
def test_a_turn_without_room_is_ended_with_room(log: Any, full: Full, buffered: bool) -> None:
    log.append("other", notes(1))
    with full(), pytest.raises(StoreFull), log.turn("s", buffered=buffered) as turn:
        turn.message("user", "y" * 60_000)

    assert log.head("s").version == 0
    with log.turn("s", buffered=buffered) as turn:
        turn.message("user", "y" * 60_000)
    assert [event.type for event in log.read("s")][-1] == "turn.completed"


@on_disks
def test_a_consumer_waits_for_room_and_says_so(log: Any, full: Full, caplog: Any) -> None:
    log.append("s", large(9))
    taken: list[Any] = []
    consumer = log.consumer("c", lambda events: taken.extend(texts(events)), batch_size=2)
    consumer.step()
    with full():
        thread = threading.Thread(target=consumer.run, kwargs={"until_idle": True})
        thread.start()
        eventually(lambda: "consumer 'c' waits for the database" in caplog.text)
    thread.join(PATIENCE_S)

    assert not thread.is_alive()
    assert list(dict.fromkeys(taken)) == list(range(9))
    assert consumer.parked() == []


_FAILS = {
    "sqlite": "INSERT INTO sink VALUES (zeroblob(8000000))",  # More than stays in memory until COMMIT.
    "postgres": "DO $$ BEGIN RAISE EXCEPTION 'no room' USING ERRCODE = '53100'; END $$",
}


@pytest.mark.parametrize(
    ("backend", "hides"), [("sqlite", False), ("sqlite", True), ("postgres", False)], indirect=["backend"]
)
def test_a_sink_without_room_is_no_fault_of_the_event(
    log: Any, backend: str, caplog: Any, hides: bool
) -> None:
    """Not even where SQLite has undone the whole transaction for it, and the handler goes on in none."""
    log.append("s", large(4))
    failures = [True, True]

    def handle(events: Any, connection: Any) -> None:
        connection.execute(text("CREATE TABLE IF NOT EXISTS sink (taken text)"))
        connection.execute(text("INSERT INTO sink VALUES (:taken)"), {"taken": str(texts(events))})
        if failures:
            failures.pop()
            with room.no_files(), suppress(DBAPIError) if hides else nullcontext():
                connection.execute(text(_FAILS[backend]))

    consumer = log.consumer("c", handle, transactional=True, attempts=1)

    assert consumer.run(until_idle=True) == 4
    assert consumer.parked() == []
    assert caplog.text.count("consumer 'c' waits for the database") == 2


@on_disks
def test_a_load_without_room_for_its_snapshot_succeeds(sessions: Any, full: Full) -> None:
    sessions.append("s", [message("user", f"{number} {'x' * 3_000}") for number in range(200)])
    with full():
        assert sessions.load("s").version == 200
        sync_of(sessions)._loader._durable.settle()
        with pytest.raises(StoreFull):
            sessions.rebuild()

    assert sessions.rebuild().rebuilt == 1
    assert sessions.verify(snapshots=True).ok
