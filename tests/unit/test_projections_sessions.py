"""Sessions: every load is what the log says at the time of the call, whatever the cache holds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kern_events import Draft, Event, message, spi
from kern_events.errors import SessionNotFound, StoreCorrupt, VersionConflict
from projections import MemoryCache, ProjectionFailed, SessionProjector, Sessions, View, loading, paths
from projections.caches import Snapshot, SnapshotKey


class Counter:
    """Counts events, and how often it was asked to."""

    name = "counter"
    version = 1
    scope: Literal["live"] = "live"

    def __init__(self) -> None:
        self.evolved = 0

    def initial(self) -> int:
        return 0

    def evolve(self, view: int, event: Event) -> int:
        self.evolved += 1
        return view + 1


class NoCache:
    """Keeps nothing."""

    def get(self, key: SnapshotKey) -> Snapshot | None:
        return None

    def put(self, key: SnapshotKey, snapshot: Snapshot) -> None: ...

    def drop(self, key: SnapshotKey) -> None: ...


class Queries(list[int]):
    """The `after` of every tail query, which may be changed on its way back."""

    def __init__(self) -> None:
        self.change: Callable[[spi.Tail], spi.Tail] = lambda tail: tail
        self._ask = spi.tail

    def __call__(self, log: Any, session_id: str, after: int, limit: int = 5_000, **options: Any) -> spi.Tail:
        self.append(after)
        return self.change(self._ask(log, session_id, after, limit, **options))


@pytest.fixture
def sessions() -> Iterator[Sessions]:
    with Sessions.open("memory:") as sessions:
        yield sessions


@pytest.fixture
def queries(monkeypatch: pytest.MonkeyPatch) -> Queries:
    queries = Queries()
    monkeypatch.setattr("kern_events.spi.tail", queries)
    return queries


def converse(sessions: Sessions, turns: int = 3, session_id: str = "s") -> None:
    for number in range(1, turns + 1):
        with sessions.turn(session_id) as turn:
            turn.message("user", f"question {number}")
            turn.message("assistant", f"answer {number}")


def said(view: View) -> list[Any]:
    return [each.content for each in view.messages]


def test_a_load_is_the_fold_of_all_events(sessions: Sessions) -> None:
    converse(sessions)

    view = sessions.load("s")

    projector = SessionProjector()
    folded = projector.fold(projector.initial(), list(sessions.read("s")))
    assert view == replace(folded, head=sessions.head("s"))
    assert (view.session_id, view.turn, view.head.version) == ("s", 3, view.version)


def test_a_load_with_nothing_new_is_the_same_object_for_one_query(
    sessions: Sessions, queries: Queries
) -> None:
    converse(sessions)
    view = sessions.load("s")
    queries.clear()

    assert sessions.load("s") is view
    assert queries == [view.version]


def test_a_load_sees_what_another_process_appended(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/log.db"
    with Sessions.open(url) as ours, Sessions.open(url) as theirs:
        converse(ours, 1)
        before = ours.load("s")
        theirs.append("s", [message("user", "more")])

        assert said(ours.load("s")) == [*said(before), "more"]


def test_the_head_of_a_view_guards_an_append(sessions: Sessions) -> None:
    converse(sessions)
    view = sessions.load("s")

    sessions.append("s", [message("user", "first")], expected=view.head)

    with pytest.raises(VersionConflict):
        sessions.append("s", [message("user", "second")], expected=view.head)


def test_only_what_is_new_is_folded(sessions: Sessions) -> None:
    counter = Counter()
    converse(sessions)
    seen = sessions.load("s", projector=counter)
    counter.evolved = 0

    sessions.append("s", [message("user", "more")])

    assert sessions.load("s", projector=counter) == seen + 1
    assert counter.evolved == 1


def test_projectors_do_not_see_each_others_snapshots(sessions: Sessions) -> None:
    converse(sessions, 1)

    assert sessions.load("s", projector=Counter()) == sessions.load("s").version


def test_an_unknown_session_is_not_found(sessions: Sessions) -> None:
    for load in (sessions.load, sessions.history):
        with pytest.raises(SessionNotFound):
            load("nobody")
    with pytest.raises(SessionNotFound):
        sessions.load("nobody", version=0)


def test_a_deleted_session_is_not_found_although_its_view_was_kept(sessions: Sessions) -> None:
    converse(sessions)
    sessions.load("s")

    sessions.delete("s")

    with pytest.raises(SessionNotFound):
        sessions.load("s")
    with pytest.raises(SessionNotFound):
        sessions.load("s", version=1)


def test_a_session_made_again_has_nothing_of_the_deleted_one(sessions: Sessions) -> None:
    converse(sessions)
    sessions.load("s")
    sessions.delete("s")

    sessions.append("s", [Draft("session.created", {}), message("user", "new")])

    assert said(sessions.load("s")) == ["new"]
    assert not sessions.load("s").incomplete


def test_a_turn_as_a_point_in_time_is_before_the_next_one_starts(sessions: Sessions) -> None:
    sessions.append("s", [message("system", "Be brief.")])
    converse(sessions, 2)
    sessions.append("s", [message("user", "after the turn")])

    shown = [said(sessions.load("s", turn=turn))[1:] for turn in range(3)]

    assert shown == [
        [],
        ["question 1", "answer 1"],
        ["question 1", "answer 1", "question 2", "answer 2", "after the turn"],
    ]


def test_a_view_of_the_past_knows_where_the_session_stands_now(sessions: Sessions) -> None:
    converse(sessions)

    view = sessions.load("s", version=2)

    assert (view.version, view.head) == (2, sessions.head("s"))


def test_version_0_is_the_session_before_its_first_event(sessions: Sessions) -> None:
    converse(sessions)

    view = sessions.load("s", version=0)

    assert view == replace(View(), session_id="s", head=sessions.head("s"))


def test_a_time_means_what_was_recorded_by_then(sessions: Sessions) -> None:
    converse(sessions)
    events = list(sessions.read("s"))
    at = events[4].at

    version = max(event.version for event in events if event.at <= at)
    assert sessions.load("s", at=at).version == version
    assert sessions.load("s", at=events[0].at - timedelta(days=1)).version == 0
    assert sessions.load("s", at=datetime.now(UTC) + timedelta(days=1)).version == events[-1].version


@pytest.mark.parametrize(
    ("point", "error", "words"),
    [
        ({"turn": 4}, ValueError, "no turn 4: there are 0 to 3"),
        ({"turn": -1}, ValueError, "no turn -1: there are 0 to 3"),
        ({"version": 99}, ValueError, "no version 99: there are 0 to 13"),
        ({"at": datetime(2024, 1, 1)}, ValueError, "no time zone"),
        ({"turn": 1, "version": 1}, TypeError, "one of a turn, a version and a time"),
    ],
)
def test_a_point_that_is_not_there_is_refused(
    sessions: Sessions, point: dict[str, Any], error: type[Exception], words: str
) -> None:
    converse(sessions)

    with pytest.raises(error, match=words):
        sessions.load("s", **point)


def test_looking_back_leaves_what_is_cached_alone(sessions: Sessions, queries: Queries) -> None:
    converse(sessions)
    view = sessions.load("s")

    sessions.load("s", turn=1)

    assert sessions.load("s") is view
    assert queries[-1] == view.version


def test_looking_back_goes_on_from_a_snapshot_that_is_old_enough(
    sessions: Sessions, queries: Queries
) -> None:
    converse(sessions, 2)
    old = sessions.load("s")
    converse(sessions, 2)
    queries.clear()

    sessions.load("s", turn=3)

    assert queries == [old.version]


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_every_version_is_the_fold_of_its_prefix(data: st.DataObject) -> None:
    with Sessions.open("memory:") as sessions:
        converse(sessions, data.draw(st.integers(1, 4)))
        if data.draw(st.booleans()):
            sessions.load("s")
        converse(sessions, data.draw(st.integers(0, 2)))
        events = list(sessions.read("s"))
        version = data.draw(st.integers(0, len(events)))

        view = sessions.load("s", version=version)

        folded = SessionProjector().fold(View(), events[:version])
        assert view == replace(folded, session_id="s", head=sessions.head("s"))


def test_min_version_is_reached_or_refused(sessions: Sessions) -> None:
    receipt = sessions.append("s", [message("user", "Hi")])

    assert sessions.load("s", min_version=receipt.version).version == receipt.version
    with pytest.raises(VersionConflict, match="expected version 2, found 1"):
        sessions.load("s", min_version=2)
    with pytest.raises(VersionConflict, match="expected version 2, found 1"):
        sessions.load("s", version=1, min_version=2)


def test_a_stale_load_asks_nothing_for_a_second_and_says_so(sessions: Sessions, queries: Queries) -> None:
    converse(sessions)
    view = sessions.load("s", stale_ok=True)
    sessions.append("s", [message("user", "more")])
    queries.clear()

    stale = sessions.load("s", stale_ok=True)

    assert queries == []
    assert stale == replace(view, stale=True)
    assert not view.stale


def test_a_stale_load_is_never_older_than_a_second(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    converse(sessions)
    old = sessions.load("s")
    sessions.append("s", [message("user", "more")])
    now_s = loading.time.monotonic() + loading.MAX_AGE_S
    monkeypatch.setattr("projections.loading.time.monotonic", lambda: now_s)

    fresh = sessions.load("s", stale_ok=True)

    assert fresh.version == old.version + 1
    assert not fresh.stale


def test_a_stale_load_asks_where_what_it_has_is_too_old(sessions: Sessions) -> None:
    converse(sessions)
    sessions.load("s")
    receipt = sessions.append("s", [message("user", "more")])

    view = sessions.load("s", stale_ok=True, min_version=receipt.version)

    assert (view.version, view.stale) == (receipt.version, False)


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pages of five events; the `after` of each that is read behind the first."""
    asked, page = [], spi.page

    def asking(log: Any, session_id: str, after: int, until: int, limit: int = 5_000) -> Any:
        asked.append(after)
        return page(log, session_id, after, until, limit)

    monkeypatch.setattr(loading, "PAGE", 5)
    monkeypatch.setattr(paths, "PAGE", 5)
    monkeypatch.setattr("kern_events.spi.page", asking)
    return asked


def test_a_long_tail_is_read_in_pages(sessions: Sessions, queries: Queries, small_pages: list[int]) -> None:
    converse(sessions)

    view = sessions.load("s")

    assert (queries, small_pages) == ([0], [5, 10])
    assert said(view)[-1] == "answer 3"
    assert sessions.load("s", version=12).version == 12


def test_an_erasure_between_two_pages_begins_anew(
    sessions: Sessions, small_pages: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    converse(sessions)
    page, erased = spi.page, []

    def erasing(*args: Any) -> Any:
        if not erased:
            erased.append(sessions.delete("s"))
            sessions.append("s", [Draft("session.created", {}), message("user", "anew")])
        return page(*args)

    monkeypatch.setattr("kern_events.spi.page", erasing)
    view = sessions.load("s")

    assert (view.head.epoch, said(view), view.incomplete) == (1, ["anew"], False)


def in_epoch(tail: spi.Tail, epoch: int) -> spi.Tail:
    return tail._replace(head=replace(tail.head, epoch=epoch))


def with_hash(tail: spi.Tail, hash: bytes = b"x" * 32) -> spi.Tail:
    return tail._replace(head=replace(tail.head, hash=hash))


def without_last(tail: spi.Tail) -> spi.Tail:
    head = replace(tail.head, version=2)
    return tail._replace(head=head, events=[event for event in tail.events if event.version <= 2])


@pytest.mark.parametrize("change", [lambda tail: in_epoch(tail, 1), with_hash, without_last])
def test_a_snapshot_that_the_log_disowns_is_folded_again(
    sessions: Sessions, queries: Queries, change: Callable[[spi.Tail], spi.Tail]
) -> None:
    converse(sessions)
    sessions.load("s")
    queries.clear()
    queries.change = change

    view = sessions.load("s")

    assert queries == [13, 0]
    assert view.version == view.head.version


def test_a_snapshot_past_the_head_is_forgotten(sessions: Sessions, queries: Queries) -> None:
    converse(sessions)
    sessions.load("s")
    second = list(sessions.read("s"))[1]
    queries.change = lambda tail: with_hash(without_last(tail), second.hash)
    sessions.load("s")
    queries.clear()

    sessions.load("s")

    assert queries == [2]


@pytest.mark.parametrize(
    "lose",
    [lambda events: [], lambda events: events[1:], lambda events: [*events[:3], *events[4:]]],
)
def test_events_that_are_missing_are_an_error_and_no_shorter_view(
    sessions: Sessions,
    queries: Queries,
    lose: Callable[[Sequence[Event]], Sequence[Event]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    converse(sessions)
    page = spi.page
    queries.change = lambda tail: tail._replace(events=lose(tail.events))
    monkeypatch.setattr("kern_events.spi.page", lambda *args: (lose(page(*args)[0]), 0))

    with pytest.raises(StoreCorrupt, match="of session 's' from version 1 on are not all there"):
        sessions.load("s")


def test_concurrent_cold_loads_fold_once() -> None:
    class Slow(Counter):
        def evolve(self, view: int, event: Event) -> int:
            waiting.wait()
            return super().evolve(view, event)

    for cache in (MemoryCache(), NoCache()):
        waiting, counter, views = threading.Event(), Slow(), []
        with Sessions.open("memory:", cache=cache) as sessions:
            converse(sessions)

            def load(
                sessions: Sessions = sessions, counter: Slow = counter, views: list[int] = views
            ) -> None:
                views.append(sessions.load("s", projector=counter))

            threads = [threading.Thread(target=load) for _ in range(8)]
            for thread in threads:
                thread.start()
            until(lambda sessions=sessions: waiters(sessions) == 8)
            waiting.set()
            for thread in threads:
                thread.join()

        assert views == [13] * 8
        assert counter.evolved == 13
        assert waiters(sessions) == 0


def test_a_load_that_waited_still_sees_what_was_appended_before_it() -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Counter):
        def evolve(self, view: int, event: Event) -> int:
            begun.set()
            go_on.wait()
            return super().evolve(view, event)

    slow, views = Slow(), {}
    with Sessions.open("memory:") as sessions:
        sessions.append("s", [message("user", "1")])
        early = threading.Thread(target=lambda: views.update(early=sessions.load("s", projector=slow)))
        early.start()
        begun.wait()
        sessions.append("s", [message("user", "2")])
        late = threading.Thread(target=lambda: views.update(late=sessions.load("s", projector=slow)))
        late.start()
        until(lambda: waiters(sessions) == 2)
        go_on.set()
        early.join()
        late.join()

    assert views == {"early": 1, "late": 2}


def waiters(sessions: Sessions) -> int:
    return sum(flight.waiting for flight in sessions._loader._flights._flights.values())


def until(condition: Callable[[], bool], deadline_s: float = 60.0) -> None:
    pause = threading.Event()
    for _ in range(int(deadline_s / 0.005)):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError("did not come about")


def test_a_projector_that_fails_fails_alone(sessions: Sessions) -> None:
    class Failing(Counter):
        def evolve(self, view: int, event: Event) -> int:
            raise ValueError("poison")

    converse(sessions)

    with pytest.raises(ProjectionFailed):
        sessions.load("s", projector=Failing())

    sessions.append("s", [message("user", "more")])
    assert said(sessions.load("s"))[-1] == "more"
    assert waiters(sessions) == 0


def test_history_is_of_the_session_as_it_is_now(sessions: Sessions) -> None:
    converse(sessions)
    sessions.load("s")
    sessions.append("s", [message("user", "more")])

    assert [each.content for each in sessions.history("s", last_messages=2)] == ["answer 3", "more"]
    assert len(sessions.history("s", last_turns=1)) == 3


def test_the_front_door_is_the_same_class() -> None:
    import kern_events

    assert kern_events.Sessions is Sessions


@pytest.mark.parametrize("projector", [5, int, object()])
def test_what_is_no_projector_is_refused_by_its_name(projector):
    with Sessions("memory:") as sessions:
        sessions.append("s", [Draft("note.taken", {})])
        with pytest.raises(TypeError, match=r"^projector is a Projector"):
            sessions.load("s", projector=projector)
