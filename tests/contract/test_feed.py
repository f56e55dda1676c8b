"""Following the log, and consumers that hand it on, on every backend behind both facades."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from kern_events import Draft, EventType, EventTypes, SessionLog, Split, feed
from kern_events.errors import FeedRegressed, StoreBusy, UpcastFailed
from kern_events.store.base import Due
from kern_events.store.consumers import Fenced
from projections import Sessions
from tests.writers import eventually, note, notes, texts

SOON_S = 60.0  # a deadline for what takes milliseconds


def sync_of(log: Any) -> SessionLog:
    return log if isinstance(log, SessionLog) else log.inner.log


def taken(subscription: Any, count: int) -> list[Any]:
    """So many events, however they are batched."""
    events: list[Any] = []
    while len(events) < count:
        some = subscription.batch(limit=count - len(events), timeout_s=SOON_S)
        assert some, f"only {len(events)} of {count} events"
        events += some
    return events


# ------------------------------------------------------------------------------ subscriptions


def test_a_subscription_gives_what_is_there_and_then_what_comes(log: Any) -> None:
    log.append("s", notes(2))
    following = log.subscribe()

    assert texts(taken(following, 2)) == [0, 1]
    assert following.batch(timeout_s=0.01) == []
    log.append("t", [note("new")])
    assert texts(taken(following, 1)) == ["new"]
    following.close()


def test_it_goes_on_where_another_one_was_left(log: Any) -> None:
    log.append("s", notes(5))
    first = log.subscribe()
    taken(first, 3)
    first.close()

    second = log.subscribe(after=first.position)

    assert texts(taken(second, 2)) == [3, 4]
    second.close()


@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
def test_appends_of_another_log_are_seen(open_log: Callable[..., Any], backend: str) -> None:
    here, there = open_log(), open_log()
    following = here.subscribe()
    assert following.batch(timeout_s=0) == []

    there.append("s", notes(1))

    assert texts(taken(following, 1)) == [0]
    following.close()


def test_appends_of_this_process_wake_without_a_look(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "SOONEST_S", 3600.0)
    monkeypatch.setattr(feed, "_FALLBACK_S", 3600.0)
    following = log.subscribe()
    assert following.batch(timeout_s=0) == []
    timer = threading.Timer(0.05, lambda: sync_of(log).append("s", notes(1)))
    timer.start()

    assert texts(taken(following, 1)) == [0]
    following.close()
    timer.join()


def test_a_subscription_sees_its_own_namespace_alone(open_log: Callable[..., Any], address: Any) -> None:
    mine, other = open_log(), open_log(namespace=address.namespace + "2")
    following = mine.subscribe()

    for number in range(3):
        other.append("s", [note("not mine")])
        mine.append("s", [note(number)])

    assert texts(taken(following, 3)) == [0, 1, 2]
    following.close()


def test_a_position_past_the_end_is_told(log: Any) -> None:
    log.append("s", notes(1))
    following = log.subscribe(after=10**12)

    with pytest.raises(FeedRegressed):
        following.batch(timeout_s=SOON_S)
    following.close()


@pytest.mark.parametrize("after", [-1, 2**63])
def test_what_is_no_position_is_refused(log: Any, after: int) -> None:
    with pytest.raises(ValueError, match="after"):
        log.subscribe(after=after)


@pytest.mark.parametrize("ends", ["subscription", "log"])
def test_closing_ends_whoever_waits(address: Any, ends: str) -> None:
    log = SessionLog(address.url, namespace=address.namespace)
    following = log.subscribe()
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.extend(following))
    thread.start()
    log.append("s", notes(2))
    eventually(lambda: len(got) == 2)

    (following if ends == "subscription" else log).close()
    thread.join(SOON_S)

    assert not thread.is_alive()
    assert texts(got) == [0, 1]
    log.close()


def test_an_event_that_was_split_is_given_whole(open_log: Callable[..., Any]) -> None:
    parts = Split(lambda old: [("a.b", {"text": 1}), ("a.b", {"text": 2})], {"a.b": 1})
    types = EventTypes(EventType("a.old", None, 2, [parts]), EventType("a.b"))
    log = open_log(types=types)
    plain = SessionLog.__new__(SessionLog)
    plain.__dict__.update({**sync_of(log).__dict__, "types": EventTypes()})
    plain.append("s", [Draft("a.old", {}), Draft("a.old", {})])
    following = log.subscribe()

    first = taken(following, 1)
    between = following.position
    rest = taken(following, 1)

    assert [event.payload["text"] for event in first + rest] == [1, 2, 1, 2]
    assert first[0].position == between < following.position
    following.close()


@pytest.mark.parametrize("facade_kind", ["async"])
def test_idle_subscriptions_hold_no_thread(open_log: Callable[..., Any], facade_kind: str) -> None:
    log = open_log(threads=1)
    idle = [log.subscribe() for _ in range(20)]
    futures = [asyncio.run_coroutine_threadsafe(each.inner.batch(), log.loop.loop) for each in idle]
    log.append("s", notes(1))

    assert [texts(future.result(SOON_S)) for future in futures] == [[0]] * 20
    for each in idle:
        each.close()


# ----------------------------------------------------------------------------------- consumers


def pictured(events: Any) -> list[tuple[str, Any]]:
    return [(event.session_id, event.payload["text"]) for event in events]


class Sink:
    """A handler that remembers what it took, and refuses what it is told to."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, Any]] = []
        self.refused: set[tuple[str, Any]] = set()

    def __call__(self, events: Any, connection: Any = None) -> None:
        some = pictured(events)
        for each in some:
            if each in self.refused:
                raise LookupError(f"secret {each}")
        self.taken += some


@pytest.fixture(params=[False, True], ids=["leased", "transactional"])
def transactional(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_a_consumer_takes_every_event_once_and_remembers_where_it_was(log: Any, transactional: bool) -> None:
    sink = Sink()
    log.append("s", notes(7))

    first = log.consumer("c", sink, transactional=transactional, batch_size=3)
    assert first.run(until_idle=True) == 7
    log.append("t", notes(2))
    second = log.consumer("c", sink, transactional=transactional, batch_size=3)
    assert second.run(until_idle=True) == 2

    assert sink.taken == [("s", number) for number in range(7)] + [("t", 0), ("t", 1)]
    assert second.position() == [event.position for event in log.read_all()][-1]


def test_a_new_consumer_may_begin_at_the_end(log: Any, transactional: bool) -> None:
    sink = Sink()
    log.append("s", notes(2))
    consumer = log.consumer("c", sink, after=None, transactional=transactional)
    assert consumer.run(until_idle=True) == 0

    log.append("s", [note("new")])
    assert log.consumer("c", sink, transactional=transactional).run(until_idle=True) == 1

    assert sink.taken == [("s", "new")]


def test_how_far_each_consumer_has_come_is_told(log: Any, transactional: bool) -> None:
    sink = Sink()
    sink.refused = {("t", 1)}
    log.append_many([("s", notes(2), None), ("t", notes(2), None)])
    log.consumer("c", sink, transactional=transactional, attempts=1).run(until_idle=True)
    log.append("s", notes(3))

    [status] = log.consumers()

    assert (status.name, status.behind, status.parked, status.given_up) == ("c", 3, 1, 1)
    assert status.lag_s > 0
    log.consumer("c", sink, transactional=transactional).run(until_idle=True)
    assert (log.consumers()[0].behind, log.consumers()[0].lag_s) == (0, 0.0)


def test_consumers_of_different_names_have_a_position_each(log: Any, transactional: bool) -> None:
    log.append("s", notes(2))
    sinks = {name: Sink() for name in ("a", "b")}
    for name, sink in sinks.items():
        log.consumer(name, sink, transactional=transactional).run(until_idle=True)

    assert [sink.taken for sink in sinks.values()] == [[("s", 0), ("s", 1)]] * 2


def test_a_session_that_fails_is_set_aside_and_the_others_go_on(log: Any, transactional: bool) -> None:
    sink = Sink()
    sink.refused = {("s", 1)}
    log.append_many([("s", notes(3), None), ("t", notes(3), None)])
    consumer = log.consumer("c", sink, transactional=transactional, attempts=2)

    consumer.step()

    assert [each for each in sink.taken if each[0] == "t"] == [("t", 0), ("t", 1), ("t", 2)]
    assert [each for each in sink.taken if each[0] == "s"] == [("s", 0)]
    [parked] = consumer.parked()
    assert (parked.session_id, parked.version, parked.attempts) == ("s", 2, 1)
    assert parked.retry_us is not None
    assert "LookupError" in parked.error
    assert "secret" not in parked.error


def test_it_is_tried_again_and_in_the_end_waits_for_somebody(log: Any, transactional: bool) -> None:
    sink = Sink()
    sink.refused = {("s", 1)}
    log.append("s", notes(3))
    consumer = log.consumer("c", sink, transactional=transactional, attempts=2)
    consumer.step()

    eventually(lambda: consumer.step().more and consumer.parked()[0].attempts == 2)
    assert consumer.parked()[0].retry_us is None
    log.append("s", [note("later")])
    assert consumer.run(until_idle=True) == 0
    sink.refused = set()
    assert consumer.retry("s")
    consumer.run(until_idle=True)

    assert sink.taken == [("s", 0), ("s", 1), ("s", 2), ("s", "later")]
    assert consumer.parked() == []
    assert not consumer.retry("s")


def test_the_event_that_fails_can_be_passed_over(log: Any, transactional: bool) -> None:
    sink = Sink()
    sink.refused = {("s", 1)}
    log.append("s", notes(4))
    consumer = log.consumer("c", sink, transactional=transactional, attempts=1)
    consumer.step()

    assert not consumer.skip("s", 1)
    assert consumer.skip("s", 2)
    consumer.run(until_idle=True)

    assert sink.taken == [("s", 0), ("s", 2), ("s", 3)]
    assert consumer.parked() == []


def test_an_event_that_cannot_be_read_sets_its_session_aside(
    open_log: Callable[..., Any], transactional: bool
) -> None:
    def fails(old: Any) -> Any:
        raise ZeroDivisionError

    log = open_log(types=EventTypes(EventType("a.old", None, 2, [fails])))
    plain = SessionLog.__new__(SessionLog)
    plain.__dict__.update({**sync_of(log).__dict__, "types": EventTypes()})
    plain.append("s", [note(0), Draft("a.old", {"text": 1}), note(2)])
    plain.append("t", [note(0)])
    sink = Sink()

    consumer = log.consumer("c", sink, transactional=transactional, attempts=1)
    consumer.run(until_idle=True)

    assert sink.taken == [("s", 0), ("t", 0)]
    assert [(each.session_id, each.version) for each in consumer.parked()] == [("s", 2)]


@pytest.mark.parametrize(
    ("backend", "transactional"),  # In a sink on SQLite the lock is its own, see below.
    [("memory", False), ("memory", True), ("sqlite", False), ("postgres", False), ("postgres", True)],
)
def test_a_busy_database_is_no_fault_of_the_event(log: Any, backend: str, transactional: bool) -> None:
    sink, busy = Sink(), [StoreBusy("busy"), StoreBusy("busy")]

    def handle(events: Any, connection: Any = None) -> None:
        if busy:
            raise busy.pop()
        sink(events)

    log.append("s", notes(2))
    consumer = log.consumer("c", handle, transactional=transactional)

    assert consumer.run(until_idle=True) == 2
    assert sink.taken == [("s", 0), ("s", 1)]
    assert consumer.parked() == []


def test_of_two_workers_one_works_and_the_other_follows_it(
    open_log: Callable[..., Any], backend: str, transactional: bool
) -> None:
    here = open_log()
    there = here if backend == "memory" else open_log()
    first, second = Sink(), Sink()
    one = here.consumer("c", first, transactional=transactional)
    other = there.consumer("c", second, transactional=transactional)
    here.append("s", notes(1))
    assert one.step().active
    one_works = threading.Event()
    go_on = threading.Event()

    def slow(events: Any, connection: Any = None) -> None:
        one_works.set()
        assert go_on.wait(SOON_S)
        first(events)

    busy = here.consumer("c", slow, transactional=transactional)
    sync_of_busy = busy.inner._consumer if hasattr(busy, "inner") else busy
    sync_of_one = one.inner._consumer if hasattr(one, "inner") else one
    sync_of_busy._owner = sync_of_one._owner
    here.append("s", [note("slow")])
    thread = threading.Thread(target=busy.step)
    thread.start()
    assert one_works.wait(SOON_S)
    if not (backend == "sqlite" and transactional):  # There nobody else can even ask.
        assert not other.step().active
    go_on.set()
    thread.join(SOON_S)
    here.append("s", [note("next")])

    eventually(lambda: other.step().active)
    other.run(until_idle=True)

    assert first.taken == [("s", 0), ("s", "slow")]
    assert second.taken == [("s", "next")]


def test_who_has_lost_the_lease_does_not_move_the_position(
    log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kern_events.consumer.LEASE_S", 60.0)
    log.append("s", notes(1))
    consumer = log.consumer("c", Sink())
    sync = sync_of(log)
    sync._store.consumers.begin(sync.namespace, "c", 0)
    mine = sync._store.consumers.leased(sync.namespace, "c", "me", 0)
    theirs = eventually(lambda: sync._store.consumers.leased(sync.namespace, "c", "them", 60_000_000))
    assert mine is not None
    assert theirs is not None

    for act in (
        lambda: mine.move(1),
        lambda: mine.renew(),
        lambda: mine.park("s", 1, 1, None, "E"),
        lambda: mine.unpark("s", Due("s", 1, 1, 0)),
    ):
        with pytest.raises(Fenced):
            act()
    assert not consumer.step().active
    assert consumer.position() == 0


@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
def test_a_sink_and_its_position_are_committed_together_or_not_at_all(log: Any, backend: str) -> None:
    fail = [True]
    table = f"sink_{sync_of(log).namespace}"
    log.append("s", notes(3))

    def handle(events: Any, connection: Any) -> None:
        connection.execute(text(f"CREATE TABLE IF NOT EXISTS {table} (n bigint)"))
        for event in events:
            values = {"n": event.payload["text"]}
            connection.execute(text(f"INSERT INTO {table} VALUES (:n)"), values)
        if fail.pop() if fail else False:
            raise KeyboardInterrupt  # As if the process ended here.

    with pytest.raises(KeyboardInterrupt):
        sync_of(log).consumer("c", handle, transactional=True).step()
    assert log.consumer("c", handle, transactional=True).position() == 0
    log.consumer("c", handle, transactional=True).run(until_idle=True)

    found: list[Any] = []
    reader = lambda events, connection: found.extend(  # noqa: E731
        row[0] for row in connection.execute(text(f"SELECT n FROM {table} ORDER BY n"))
    )
    log.consumer("reader", reader, transactional=True).step()
    assert found == [0, 1, 2]


def test_a_consumer_that_is_stopped_ends_with_its_batch(log: Any, transactional: bool) -> None:
    sink = Sink()
    consumer = log.consumer("c", sink, transactional=transactional)
    thread = threading.Thread(target=consumer.run)
    thread.start()
    log.append("s", notes(2))
    eventually(lambda: len(sink.taken) == 2)

    consumer.stop()
    thread.join(SOON_S)

    assert not thread.is_alive()


@pytest.mark.parametrize("facade_kind", ["async"])
def test_a_coroutine_function_is_awaited_on_the_loop(log: Any, facade_kind: str) -> None:
    sink, threads = Sink(), set()

    async def handle(events: Any) -> None:
        threads.add(threading.current_thread().name)
        sink(events)

    log.append("s", notes(2))
    assert log.consumer("c", handle).run(until_idle=True) == 2

    assert threads == {"loop"}
    assert sink.taken == [("s", 0), ("s", 1)]


@pytest.mark.parametrize("facade_kind", ["sync"])
def test_a_coroutine_function_is_refused_where_nobody_awaits_it(log: Any, facade_kind: str) -> None:
    async def handle(events: Any) -> None: ...

    with pytest.raises(TypeError, match="AsyncSessionLog"):
        log.consumer("c", handle)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"attempts": 0}])
def test_options_that_make_no_sense_are_refused(log: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="from 1"):
        log.consumer("c", Sink(), **options)


# ------------------------------------------------------------------------------------- warmers


@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
def test_a_warmer_loads_what_others_append(address: Any, backend: str, redis_url: str) -> None:
    place = {"namespace": address.namespace}
    with (
        SessionLog(address.url, **place) as writer,
        Sessions.open(address.url, cache=redis_url, **place) as warm,
        Sessions.open(address.url, cache=redis_url, **place) as reader,
    ):
        warmer = warm.warmer()
        warmer.step()
        writer.append_many([("s", notes(3), None), ("t", notes(2), None)])
        assert warmer.run(until_idle=True) == 5

        found = reader._loader.shared.get(
            reader._loader.key("s", reader._projector), reader._loader.codec(reader._projector)
        )
        assert found is not None
        assert found.version == 3
        writer.delete("t")
        assert warmer.step().events == 1
        assert warmer.parked() == []


# ------------------------------------------------------------------------ found by the review


def test_what_was_read_before_an_event_that_cannot_be_read_is_given(open_log: Callable[..., Any]) -> None:
    def fails(old: Any) -> Any:
        raise ZeroDivisionError

    log = open_log(types=EventTypes(EventType("a.old", None, 2, [fails])))
    plain = SessionLog.__new__(SessionLog)
    plain.__dict__.update({**sync_of(log).__dict__, "types": EventTypes()})
    plain.append("s", [note(0), note(1), Draft("a.old", {}), note(3)])
    following = log.subscribe()

    assert texts(following.batch(timeout_s=SOON_S)) == [0, 1]
    for _ in range(2):
        with pytest.raises(UpcastFailed):
            following.batch(timeout_s=SOON_S)
    following.close()


def test_a_subscription_right_after_another_one_is_woken(open_log: Callable[..., Any]) -> None:
    log = open_log()
    for _ in range(20):
        log.subscribe().close()
        following = log.subscribe()
        following.batch(timeout_s=0)
        eventually(lambda: not sync_of(log)._wakeups._look.is_set())
        assert sync_of(log)._wakeups._thread is not None
        following.close()


def test_what_somebody_says_during_a_retry_is_not_undone(log: Any) -> None:
    during: list[Callable[[], Any]] = []

    def handle(events: Any) -> None:
        if any(event.version == 2 for event in events):
            for act in during:
                assert act()
            during.clear()
            raise LookupError

    log.append("s", notes(3))
    sync = sync_of(log)
    consumer, other = sync.consumer("c", handle, attempts=2), sync.consumer("c", handle)
    consumer.step()
    during.append(lambda: other.skip("s", 2))
    eventually(lambda: consumer.step().more and not during)

    assert [(each.version, each.attempts) for each in consumer.parked()] == [(3, 0)]
    consumer.run(until_idle=True)
    assert consumer.parked() == []


@pytest.mark.parametrize("facade_kind", ["async"])
def test_whatever_gives_an_awaitable_is_awaited(log: Any, facade_kind: str) -> None:
    sink = Sink()

    async def push(events: Any) -> None:
        sink(events)

    log.append("s", notes(2))
    log.consumer("c", lambda events: push(events)).run(until_idle=True)

    assert sink.taken == [("s", 0), ("s", 1)]


@pytest.mark.parametrize("facade_kind", ["sync"])
def test_what_nobody_awaits_is_told_and_hands_nothing_over(log: Any, facade_kind: str) -> None:
    async def push(events: Any) -> None: ...

    log.append("s", notes(2))
    consumer = log.consumer("c", lambda events: push(events))

    with pytest.raises(TypeError, match="await"):
        consumer.run(until_idle=True)
    assert (consumer.position(), consumer.parked()) == (0, [])


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_sink_that_waits_for_its_own_transaction_is_set_aside(
    open_log: Callable[..., Any], backend: str
) -> None:
    log = open_log(lock_timeout_s=0.05)
    log.append("s", notes(1))
    consumer = log.consumer(
        "c", lambda events, connection: sync_of(log).append("audit", notes(1)), transactional=True, attempts=1
    )
    consumer.step()

    assert ["StoreBusy" in each.error for each in consumer.parked()] == [True]


@pytest.mark.parametrize("backend", ["postgres"])
def test_workers_that_take_turns_see_no_end_that_is_past(
    open_log: Callable[..., Any], backend: str, address: Any
) -> None:
    here, there = open_log(), open_log()
    taken: list[Any] = []
    handle = lambda events, connection: taken.extend(texts(events))  # noqa: E731
    one, other = (each.consumer("c", handle, transactional=True) for each in (here, there))
    here.append("s", notes(1))
    one.step()
    engine = create_engine(address.url)
    with SessionLog(engine, namespace=address.namespace) as late, engine.connect() as connection:
        connection.begin()
        late.append("late", [note("late")], connection=connection)
        here.append("s", [note("next")])
        one.step()
        connection.commit()
        eventually(lambda: other.step().events)
        here.append("s", notes(3))
        other.run(until_idle=True)

        one.step()
    engine.dispose()

    assert sorted(map(str, taken)) == sorted(map(str, [0, "late", "next", 0, 1, 2]))
