"""Where following the log stopped, stood still or repeated itself, on every backend behind both facades."""

from __future__ import annotations

import itertools
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.pool import QueuePool

from kern_events import Draft, EventType, EventTypes, SessionLog, Split
from kern_events.errors import FeedUnavailable, StoreBusy
from kern_events.store.consumers import Fenced
from tests.facade import only_on, store_of, sync_of
from tests.writers import PATIENCE_S, eventually, note, notes, texts

HOUR_US = 3_600_000_000


@pytest.fixture(params=[False, True], ids=["leased", "transactional"])
def transactional(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


# --------------------------------------------------------------------- databases that only read


@pytest.fixture
def read_only_url(address: Any) -> str:
    """The log, with a session, as somebody sees it who may only read it."""
    with SessionLog(address.url, namespace=address.namespace) as log:
        log.append("s", notes(2))
    read_only = {"options": "-cdefault_transaction_read_only=on"}
    only = {"mode": "ro"} if address.backend == "sqlite" else read_only
    return make_url(address.url).update_query_dict(only).render_as_string(hide_password=False)


@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
def test_a_consumer_does_not_wait_for_a_database_that_only_reads(
    open_log: Callable[..., Any], backend: str, read_only_url: str, transactional: bool
) -> None:
    log = open_log(read_only_url)

    for after in (0, None):
        with pytest.raises(FeedUnavailable, match="position"):
            log.consumer("c", lambda *_: None, after=after, transactional=transactional).run(until_idle=True)


@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
def test_what_only_reads_can_be_followed_all_the_same(
    open_log: Callable[..., Any], backend: str, read_only_url: str
) -> None:
    log = open_log(read_only_url)
    following = log.subscribe()

    assert texts(following.batch(timeout_s=PATIENCE_S)) == texts(log.read_all()) == [0, 1]
    assert log.consumers() == []
    following.close()


# ------------------------------------------------------------------------------- wrong clocks


def test_a_lease_of_a_clock_that_was_ahead_holds_nobody_up(log: Any, transactional: bool) -> None:
    log.append("s", notes(1))
    sync, taken = sync_of(log), list[Any]()
    sync._store.consumers.begin(sync.namespace, "c", 0)
    assert sync._store.consumers.leased(sync.namespace, "c", "ahead", HOUR_US)

    handle = lambda events, *_: taken.extend(texts(events))  # noqa: E731
    assert log.consumer("c", handle, transactional=transactional).run(until_idle=True) == 1

    assert taken == [0]


def test_whose_lease_was_of_a_wrong_clock_works_no_more(log: Any) -> None:
    log.append("s", notes(1))
    consumers, namespace = store_of(log).consumers, sync_of(log).namespace
    consumers.begin(namespace, "c", 0)
    ahead = consumers.leased(namespace, "c", "ahead", HOUR_US)
    assert consumers.leased(namespace, "c", "next", HOUR_US // 60)

    for act in (ahead.renew, lambda: ahead.move(1)):
        with pytest.raises(Fenced):
            act()


def test_a_session_set_aside_by_a_clock_that_was_ahead_is_tried_again(log: Any, transactional: bool) -> None:
    log.append("s", notes(2))
    consumers, namespace, taken = store_of(log).consumers, sync_of(log).namespace, list[Any]()
    consumers.begin(namespace, "c", 2**62)
    with consumers.in_transaction(namespace, "c", "ahead", 0) as held:
        held.park("s", 1, 1, HOUR_US, "E")
        held.move([event.position for event in log.read_all()][-1])
    consumers.release(namespace, "c", "ahead")

    handle = lambda events, *_: taken.extend(texts(events))  # noqa: E731
    consumer = log.consumer("c", handle, transactional=transactional)
    eventually(lambda: consumer.step().more)

    assert (taken, consumer.parked()) == ([0, 1], [])


# --------------------------------------------------------------------- small limits and upcasters


PARTS = Split(lambda old: [("a.b", {"text": f"{old['text']}{part}"}) for part in "xy"], {"a.b": 1})
TYPES = EventTypes(
    EventType("a.old", None, 2, [PARTS]), EventType("a.b"), EventType("a.gone", None, 2, [lambda old: None])
)


@pytest.fixture
def upcasting(open_log: Callable[..., Any]) -> Any:
    """A log in which old events are split, and others left out."""
    log = open_log(types=TYPES)
    old = [
        *(Draft("a.gone", {}) for _ in range(3)),
        *(Draft("a.old", {"text": number}) for number in range(2)),
        *(Draft("a.gone", {}) for _ in range(3)),
    ]
    sync = sync_of(log)
    with_no_types = SessionLog.__new__(SessionLog)
    with_no_types.__dict__.update({**sync.__dict__, "types": EventTypes()})
    with_no_types.append("s", [*old, note("last")])
    return log


WHOLE = [["0x", "0y"], ["1x", "1y"], ["last"]]


def said(events: Any) -> list[Any]:
    return [event.payload["text"] for event in events]


def test_a_split_event_is_given_whole_whatever_the_limit(upcasting: Any) -> None:
    position, batches = 0, []
    for _ in WHOLE:
        following = upcasting.subscribe(after=position)
        batches.append(said(following.batch(limit=1, timeout_s=PATIENCE_S)))
        position = following.position
        following.close()

    assert batches == WHOLE


def test_what_upcasters_leave_out_is_no_end(upcasting: Any) -> None:
    """Whoever reads in pages until nothing comes would never see what is behind it."""
    position = version = 0
    by_position, by_version = [], []
    while events := list(upcasting.read_all(after=position, limit=1)):
        by_position.append(said(events))
        position = events[-1].position
    while events := list(upcasting.read("s", after=version, limit=1)):
        by_version.append(said(events))
        version = events[-1].version

    assert by_position == by_version == WHOLE
    assert said(upcasting.read("s", limit=2)) == said(upcasting.read_all(limit=2)) == WHOLE[0] + WHOLE[1]


def test_a_consumer_takes_split_events_whole_whatever_its_batch(upcasting: Any, transactional: bool) -> None:
    batches: list[Any] = []
    handle = lambda events, *_: batches.append(said(events))  # noqa: E731

    consumer = upcasting.consumer("c", handle, batch_size=1, transactional=transactional)

    assert consumer.run(until_idle=True) == 5
    assert batches == WHOLE


# -------------------------------------------------------------------- given twice without a crash


class Failing:
    """The consumers of a store, whose positions cannot be stored for a while."""

    def __init__(self, inner: Any, failures: Iterator[bool]) -> None:
        self._inner = inner
        self._failures = failures

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def leased(self, *args: Any) -> Any:
        held = self._inner.leased(*args)
        move = held.move

        def failing(position: int) -> None:
            if next(self._failures):
                raise StoreBusy("busy")
            move(position)
            if next(self._failures):
                raise StoreBusy("the answer is lost")

        held.move = failing
        return held


@pytest.mark.parametrize("refused", [None, 3])
def test_what_was_handed_over_is_not_again_when_its_position_could_not_be_stored(
    log: Any, refused: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.append_many([("s", notes(5), None), ("t", notes(5), None)])
    failures = itertools.chain([True, True, False, True], itertools.repeat(False))
    monkeypatch.setattr(store_of(log), "consumers", Failing(store_of(log).consumers, failures))
    taken: list[Any] = []

    def handle(events: Any) -> None:
        if any(event.session_id == "s" and event.payload["text"] == refused for event in events):
            raise LookupError
        taken.extend((event.session_id, event.version) for event in events)

    consumer = log.consumer("c", handle, batch_size=6, attempts=1)

    assert consumer.run(until_idle=True) == len(taken) == len(set(taken)) == (10 if refused is None else 8)
    assert consumer.position() == [event.position for event in log.read_all()][-1]


@only_on("sqlite")
def test_a_worker_waits_for_the_lock_as_writers_do(
    log: Any, address: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's own wait took longer than the lease among busy writers: a second worker took over."""
    log.append("s", notes(1))
    log.consumer("c", lambda events: None).step()
    consumers, sleep = store_of(log).consumers, time.sleep
    with closing(sqlite3.connect(make_url(address.url).database, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")

        def tried_in_vain(seconds: float) -> None:
            other.rollback()
            sleep(0)

        monkeypatch.setattr("kern_events.store.sqlite_file.time.sleep", tried_in_vain)
        assert consumers.leased(sync_of(log).namespace, "c", "me", 1)


# -------------------------------------------------------------------------------- small pools


@pytest.fixture
def engine_of(address: Any) -> Iterator[Callable[[int], Engine]]:
    """An engine of the caller's whose pool gives so many connections at once; it outlives its log."""
    made: list[Engine] = []

    def make(room: int) -> Engine:
        made.append(create_engine(address.url, poolclass=QueuePool, pool_size=1, max_overflow=room - 1))
        return made[-1]

    yield make
    for engine in made:
        engine.dispose()


@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
def test_a_pool_that_is_too_small_for_a_consumer_is_refused_at_once(
    engine_of: Callable[[int], Engine], open_log: Callable[..., Any], backend: str, transactional: bool
) -> None:
    needed = (2 if transactional else 1) + (backend == "sqlite")
    handle, taken = (lambda events, *_: taken.extend(texts(events))), list[Any]()

    for room in range(2 if backend == "sqlite" else 1, needed):
        with pytest.raises(ValueError, match=r"pool_size or max_overflow"):
            open_log(engine_of(room)).consumer("c", handle, transactional=transactional)
    log = open_log(engine_of(needed))
    log.append("s", notes(2))

    assert log.consumer("c", handle, transactional=transactional).run(until_idle=True) == 2
    assert taken == [0, 1]


@only_on("sqlite")
def test_a_pool_that_gives_a_writer_and_no_reader_is_refused(
    engine_of: Callable[[int], Engine], open_log: Callable[..., Any]
) -> None:
    with pytest.raises(ValueError, match=r"1 connection at the most.* 2 at once.*max_overflow"):
        open_log(engine_of(1))


@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
def test_a_small_pool_of_the_logs_own_is_enough(
    open_log: Callable[..., Any], backend: str, transactional: bool
) -> None:
    log = open_log(pool_size=1)
    log.append("s", notes(2))

    assert log.consumer("c", lambda *_: None, transactional=transactional).run(until_idle=True) == 2
