"""What a verb asks of the database does not grow with what there is: counted in calls of the store."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from kern_events import message, spi
from kern_events.verify import uncovered, verify_snapshot
from projections import Sessions
from tests.writers import notes, pick

SYNC = pytest.mark.parametrize("facade_kind", ["sync"], indirect=True)


class Counted:
    """A store, or a snapshot of one, that counts how often it is asked."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.calls = self.rows_read = 0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        if not callable(value):
            return value

        @functools.wraps(value)
        def counting(*args: Any, **kwargs: Any) -> Any:
            answer = value(*args, **kwargs)
            self.calls += 1
            self.rows_read += len(answer) if name in ("rows", "page") else 0
            return answer

        return counting


@pytest.fixture
def calls(log: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], int]:
    """How often the store is asked while something is done."""
    counted = Counted(log._store)
    monkeypatch.setattr(log, "_store", counted)

    def count(work: Callable[[], object]) -> int:
        before = counted.calls
        work()
        return counted.calls - before

    return count


@SYNC
@pytest.mark.parametrize("shared", [True, False])
def test_a_fork_of_many_forks_costs_what_the_first_one_costs(log: Any, calls: Any, shared: bool) -> None:
    log.append("f0", [message("user", "first")])
    taken = []
    for number in range(24):
        version = 1 if shared else None
        taken.append(calls(lambda n=number, v=version: log.fork(f"f{n}", f"f{n + 1}", version=v)))

    assert max(taken[12:]) <= max(taken[:3])
    assert log.verify().ok


@SYNC
def test_many_forks_of_one_cost_no_more_each(log: Any, calls: Any) -> None:
    log.append("s", [message("user", "first")])
    taken = [calls(lambda n=number: log.fork("s", f"f{n}")) for number in range(24)]

    assert max(taken) == taken[0]


@SYNC
def test_verify_reads_each_head_that_forks_share_once(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    log.append("f0", [message("user", "first")])
    asked = []
    for number in range(24):
        log.fork(f"f{number}", f"f{number + 1}", version=1)
        if number in (5, 11, 23):
            with log._store.snapshot() as snapshot:
                counted = Counted(snapshot)
                assert verify_snapshot(counted, log.namespace, None, None).ok
            asked.append(counted.calls)

    assert asked[2] - asked[1] <= 2 * (asked[1] - asked[0])


@SYNC
def test_a_load_after_a_restore_does_not_read_what_was_abandoned(
    address: Any, facade_kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sessions(address.url, namespace=address.namespace) as sessions:
        sessions.append("s", [message("user", "first")])
        for _ in range(3):
            sessions.append("s", notes(200))
            sessions.load("s")
            spi.restore(sessions, "s", 1, {}, sessions.head("s"), actor=None)
        counted = Counted(sessions._store)
        monkeypatch.setattr(sessions, "_store", counted)

        assert len(sessions.load("s").messages) == 1
        assert counted.rows_read <= 8


@pytest.mark.parametrize("seed", range(20))
def test_what_no_tombstone_covers_is_found_in_one_walk(seed: int) -> None:
    chance = pick(seed)
    versions = sorted(chance.randint(1, 40) for _ in range(12))
    ranges = [(first := chance.randint(-2, 40), first + chance.randint(-3, 6)) for _ in range(8)]

    expected = [v for v in versions if not any(first <= v <= last for first, last in ranges)]
    assert list(uncovered(versions, ranges)) == expected


def test_many_ranges_are_gone_through_once() -> None:
    class Range(tuple[int, int]):
        read = 0

        def __getitem__(self, index: Any) -> Any:
            Range.read += 1
            return super().__getitem__(index)

    ranges = [Range((number, number)) for number in range(2_000)]

    assert list(uncovered(range(2_000), ranges)) == []
    assert Range.read <= 10 * len(ranges)
