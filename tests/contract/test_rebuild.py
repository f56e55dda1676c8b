"""Rebuilding snapshots: what is stored afterwards, what is passed over, and what may happen meanwhile."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest

from kern_events import Draft, SessionLog, message
from projections import RebuildReport, SessionProjector, Sessions
from projections import rebuild as rebuilding
from projections.caches.memory import MemoryCache
from projections.caches.tiers import DurableTier
from projections.loading import Loader
from tests import facade, writers
from tests.contract.conftest import Address
from tests.writers import Counted

LONG = 100  # events; from 64 on a snapshot is stored


@pytest.fixture
def sessions(facade_kind: str, address: Address, loop: facade.LoopThread) -> Iterator[Any]:
    with facade.open_sessions(facade_kind, loop, address.url, namespace=address.namespace) as sessions:
        yield sessions


def sync_of(sessions: Any) -> Sessions:
    return sessions if isinstance(sessions, Sessions) else sessions.inner._sessions


def filled(sessions: Any, count: int, events: int = LONG) -> list[str]:
    """So many sessions of so many events; their ids, the most active first."""
    names = [f"s{number:03d}" for number in range(count)]
    for name in names:
        sessions.append(name, [message("user", f"{name}.{each}") for each in range(events)])
    return names[::-1]


def stored(sessions: Any, name: str, projector: Any = None) -> Any:
    """The snapshot that lies in the database."""
    sync = sync_of(sessions)
    loader = Loader(sync, MemoryCache(0), None, None)
    chosen = sync._chosen(projector)
    codec = loader.codec(chosen)
    assert codec is not None
    return DurableTier(sync).newest(loader.key(name, chosen), codec, 2**63 - 1)


def counts(report: RebuildReport) -> tuple[int, ...]:
    return report.rebuilt, report.current, report.short, report.gone, report.failed


def test_every_long_session_is_stored_and_the_next_rebuild_passes_over_it(sessions: Any) -> None:
    names = filled(sessions, 5)
    filled(sessions, 6, 3)  # s005 is short, the others have three more.

    first = sessions.rebuild()
    second = sessions.rebuild()

    assert counts(first) == (5, 0, 1, 0, 0)
    assert counts(second) == (0, 5, 1, 0, 0)
    assert (first.total_sessions, first.sessions) == (6, 6)
    assert first.total_events == first.events == 5 * (LONG + 3) + 3
    for name in names:
        assert stored(sessions, name).view.messages == sessions.load(name).messages
    assert sessions.rebuild(check=True).ok


def test_what_grew_meanwhile_is_stored_again(sessions: Any) -> None:
    filled(sessions, 2)
    sessions.rebuild()
    sessions.append("s000", [message("user", str(number)) for number in range(LONG)])

    assert counts(sessions.rebuild()) == (1, 1, 0, 0, 0)
    assert stored(sessions, "s000").version == 2 * LONG


def test_the_most_active_sessions_go_first(sessions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuilding, "_HOTTEST", 2)
    names = filled(sessions, 4)
    order: list[str] = []
    made = rebuilding.Worker._made
    monkeypatch.setattr(
        rebuilding.Worker, "_made", lambda self, name, out: order.append(name) or made(self, name, out)
    )

    sessions.rebuild()

    assert order == [*names[:2], "s000", "s001"]


class Fails(Counted):
    name = "fails"

    def evolve(self, view: int, event: Any) -> int:
        if event.payload.get("content") == "s001.7":
            raise ZeroDivisionError("secret")
        return view + 1


def test_a_session_that_fails_is_reported_and_the_others_are_done(sessions: Any) -> None:
    filled(sessions, 3)

    report = sessions.rebuild(Fails())

    assert counts(report) == (2, 0, 0, 0, 1)
    [failure] = report.failures
    assert (failure.session_id, failure.version) == ("s001", 8)
    assert "secret" not in failure.reason
    assert not report.ok


def test_a_projector_of_ones_own_is_rebuilt(sessions: Any) -> None:
    filled(sessions, 3)

    assert counts(sessions.rebuild(Counted())) == (3, 0, 0, 0, 0)
    assert stored(sessions, "s001", Counted()).view == LONG
    assert sessions.load("s001", projector=Counted()) == LONG


class InMemory(Counted):
    name = "in-memory"
    view_type = None


def test_a_projector_whose_views_cannot_be_stored_is_refused(sessions: Any) -> None:
    with pytest.raises(ValueError, match="view_type"):
        sessions.rebuild(InMemory())


class Unstorable(Counted):
    name = "unstorable"
    view_type = dict[str, int]

    def initial(self) -> Any:
        return object()

    def evolve(self, view: Any, event: Any) -> Any:
        return view


def test_a_view_that_cannot_be_stored_is_reported(sessions: Any) -> None:
    filled(sessions, 2)

    assert counts(sessions.rebuild(Unstorable())) == (0, 0, 0, 0, 2)


class Impure(Counted):
    name = "impure"
    start = 0

    def initial(self) -> int:
        return Impure.start


def test_check_finds_a_snapshot_that_differs_from_a_fresh_fold(
    sessions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(sessions, 2)
    sessions.rebuild(Impure())
    assert sessions.rebuild(Impure(), check=True).ok
    monkeypatch.setattr(Impure, "start", 1)

    report = sessions.rebuild(Impure(), check=True)

    assert counts(report) == (0, 0, 0, 0, 2)
    assert {failure.version for failure in report.failures} == {LONG}
    assert counts(sessions.rebuild(Impure())) == (0, 2, 0, 0, 0), "check stores and drops nothing"


class Second(Counted):
    version = 2


def test_prune_drops_what_other_versions_of_the_projector_stored(sessions: Any) -> None:
    filled(sessions, 2)
    sessions.rebuild(Counted())
    sessions.rebuild()

    report = sessions.rebuild(Second(), prune=True)

    assert (report.rebuilt, report.pruned) == (2, 2)
    assert stored(sessions, "s000", Counted()) is None
    assert stored(sessions, "s000", Second()).view == LONG
    assert stored(sessions, "s000") is not None


class Daily(Counted):
    name = "counted:daily"


def test_prune_leaves_a_projector_whose_name_begins_alike(sessions: Any) -> None:
    filled(sessions, 1)
    sessions.rebuild(Daily())

    assert sessions.rebuild(Second(), prune=True).pruned == 0
    assert stored(sessions, "s000", Daily()).view == LONG


def test_a_session_that_is_deleted_before_it_is_stored_is_gone(
    sessions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(sessions, 2)
    made = rebuilding.Worker._made

    def make_and_delete(self: Any, name: str, outcome: Any) -> Any:
        snapshot = made(self, name, outcome)
        if name == "s001":
            sync_of(sessions).delete(name)
        return snapshot

    monkeypatch.setattr(rebuilding.Worker, "_made", make_and_delete)

    assert counts(sessions.rebuild()) == (1, 0, 0, 1, 0)


def test_a_check_that_prunes_is_refused(sessions: Any) -> None:
    with pytest.raises(ValueError, match="drops nothing"):
        sessions.rebuild(check=True, prune=True)


def test_deleted_sessions_are_left_out(sessions: Any) -> None:
    filled(sessions, 3)
    sessions.delete("s001")

    assert counts(sessions.rebuild()) == (2, 0, 0, 0, 0)


def test_forks_and_restores_are_rebuilt_as_they_count(sessions: Any) -> None:
    for turn in range(30):
        sessions.append("s", [Draft("turn.started", {}), message("user", f"{turn}")])
        sessions.append("s", [Draft("turn.completed", {})])
    sessions.restore("s", to_turn=20)
    sessions.fork("s", "child", turn=15)
    sessions.append("child", [message("user", str(number)) for number in range(LONG)])

    assert sessions.rebuild().ok
    for name in ("s", "child"):
        found = stored(sessions, name)
        fresh = SessionProjector().initial()
        for _, view in sync_of(sessions).replay(name):
            fresh = view
        assert found.view.messages == fresh.messages
    assert sessions.rebuild(check=True).ok


def test_appends_during_a_rebuild_are_in_what_is_loaded(sessions: Any) -> None:
    names = filled(sessions, 20)
    over = threading.Event()
    written = dict.fromkeys(names, LONG)

    def write() -> None:
        chance = random.Random(3)
        while not over.is_set():
            name = chance.choice(names)
            written[name] = sync_of(sessions).append(name, [message("user", "meanwhile")]).version

    thread = threading.Thread(target=write)
    thread.start()
    report = sessions.rebuild()
    over.set()
    thread.join()

    assert report.ok
    assert report.rebuilt == 20
    for name in names:
        assert len(sessions.load(name).messages) == written[name]
    assert sessions.rebuild(check=True).ok


def test_progress_is_told_and_ends_with_the_report(sessions: Any) -> None:
    filled(sessions, 3)
    told: list[int] = []

    report = sessions.rebuild(progress=lambda report: told.append(report.sessions))

    assert told[-1] == report.sessions == 3
    assert told == sorted(told)


def test_threads_of_an_executor_share_the_work(sessions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuilding, "_TASK_EVENTS", LONG)
    filled(sessions, 12)

    with ThreadPoolExecutor(3) as executor:
        report = sessions.rebuild(executor=executor)

    assert counts(report) == (12, 0, 0, 0, 0)


@pytest.mark.parametrize("workers", [0, -1])
def test_workers_are_a_number_from_1(sessions: Any, workers: int) -> None:
    with pytest.raises(ValueError, match="from 1"):
        sessions.rebuild(workers=workers)


@pytest.mark.parametrize("backend", ["memory"])
def test_other_processes_do_not_see_a_log_in_memory(sessions: Any, backend: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        sessions.rebuild(workers=2)


# --------------------------------------------------------------------------- in other processes


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Any) -> str:
    """The URL of a database of this test."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/log.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


def test_processes_share_the_work(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuilding, "_TASK_EVENTS", 3 * LONG)
    with Sessions.open(place) as sessions:
        filled(sessions, 20)
        report = sessions.rebuild(Counted(), workers=2)

        assert counts(report) == (20, 0, 0, 0, 0)
        assert sessions.rebuild(Counted(), check=True).ok


def test_what_a_dead_worker_leaves_is_done_here(
    place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rebuilding, "_TASK_EVENTS", 3 * LONG)
    with Sessions.open(place) as sessions, caplog.at_level(logging.WARNING, logger="projections"):
        filled(sessions, 20)
        with ProcessPoolExecutor(2, writers._context) as executor:
            report = sessions.rebuild(writers.Deadly(), executor=executor)

        assert counts(report) == (20, 0, 0, 0, 0)
        assert "done in this process" in caplog.text


@pytest.mark.early
def test_dask_spreads_the_work_and_survives_a_dead_worker(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import distributed  # Takes a second to import, which only this test needs.

    monkeypatch.setattr(rebuilding, "_TASK_EVENTS", 3 * LONG)
    with Sessions.open(place) as sessions:
        filled(sessions, 30)
        cluster = distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,
        )
        with cluster, distributed.Client(cluster) as client:
            executor = client.get_executor(retries=3)
            killed = threading.Timer(0.3, lambda: _kill_one(cluster))
            killed.start()
            report = sessions.rebuild(writers.Slow(), executor=executor)
            assert not killed.is_alive(), "the worker was to be killed before the end"
            killed.join()

        assert counts(report) == (30, 0, 0, 0, 0)
        assert sessions.rebuild(writers.Slow(), check=True).ok


def _kill_one(cluster: Any) -> None:
    worker = next(iter(cluster.workers.values()))
    worker.process.process._process.kill()


def test_a_rebuild_that_is_killed_goes_on_where_it_was(place: str, request: pytest.FixtureRequest) -> None:
    long = request.config.getoption("--long")
    count, events = (1_000, 500) if long else (150, 150)
    chance = random.Random(7)
    with Sessions.open(place) as sessions:
        names = filled(sessions, count, events)
        before: list[int] = []
        for _ in range(3):
            process, pipe = writers.start(writers.rebuild_and_tell, place)
            stop_at = chance.randrange(1, count // 4)
            current, rebuilt = writers.answer_of(pipe)
            while rebuilt < stop_at:
                current, rebuilt = writers.answer_of(pipe)
            writers.stop(process, pipe)
            before.append(current)
            sessions.append(chance.choice(names), [message("user", "meanwhile")])
        report = sessions.rebuild()

        assert report.ok
        assert before[0] == 0 < before[1] < before[2] < report.current < count
        assert report.rebuilt + report.current == count
        assert sessions.rebuild(check=True).rebuilt == count
        killed = {name: stored(sessions, name) for name in names}
        _forget_all(sessions)
        assert sessions.rebuild().rebuilt == count
        for name in names:
            at_once = stored(sessions, name)
            if at_once.version == killed[name].version:
                assert at_once.view == killed[name].view
            assert sessions.load(name).messages == at_once.view.messages


def _forget_all(sessions: SessionLog) -> None:
    for info in sessions.sessions(limit=10_000):
        sessions._store.forget_snapshots(sessions.namespace, info.session_id, "", "")
