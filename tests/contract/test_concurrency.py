"""Many who append to one session: versions dense, one winner per version, losers told the actual head."""

from __future__ import annotations

import functools

import pytest

from tests import writers
from tests.facade import only_on
from tests.writers import in_processes, in_threads, note, texts

WINS = 12


def at_once(log, address, facade_kind, threads_work, process_work, *args):
    """Eight processes with a log each; in memory, eight threads of one log."""
    if address.backend == "memory":
        return in_threads(8, functools.partial(threads_work, log, *args))
    options = {"namespace": address.namespace, "lock_timeout_s": 30.0}
    return in_processes(8, process_work, facade_kind, address.url, options, *args)


def test_eight_who_expect_a_version_take_turns(log, address, facade_kind):
    met = at_once(log, address, facade_kind, writers.compete, writers.compete_at, "s", WINS)

    won = sorted(at for one in met for _, at, wins in one if wins)
    assert won == list(range(1, 8 * WINS + 1))  # Dense, and every version has one winner.
    assert all(at == seen + 1 for one in met for seen, at, wins in one if wins)
    assert [event.version for event in log.read("s")] == won
    assert log.verify().ok


def test_eight_who_expect_a_version_meet_each_other(log, address, facade_kind):
    """Positive control: without conflicts the test above would prove nothing."""
    met = at_once(log, address, facade_kind, writers.compete, writers.compete_at, "s", WINS)
    lost = [(seen, actual) for one in met for seen, actual, wins in one if not wins]

    assert lost or address.backend == "memory"  # Threads may well take turns by themselves.
    assert all(seen < actual <= 8 * WINS for seen, actual in lost)


def test_eight_who_append_at_the_end_all_land(log, address, facade_kind):
    landed = at_once(log, address, facade_kind, writers.pile_up, writers.pile_up_at, "s", 25)

    assert sorted(version for one in landed for version in one) == list(range(1, 201))
    assert all(one == sorted(one) for one in landed)  # Everybody's own come in order.
    said = texts(log.read("s"))
    assert sorted(said) == sorted(f"{number}.{i}" for number in range(8) for i in range(25))
    assert log.verify().ok


@only_on("sqlite")
@pytest.mark.parametrize("round", range(4))
def test_eight_processes_open_one_fresh_file(log, address, facade_kind, round):
    landed = at_once(log, address, facade_kind, None, writers.pile_up_at, "s", 3)

    assert sorted(version for one in landed for version in one) == list(range(1, 25))
    assert log.verify().ok


def test_eight_logs_of_one_process_open_one_fresh_file(tmp_path):
    """Many times, as it goes wrong at one moment of the opening alone."""
    for number in range(20):
        url = f"sqlite:///{tmp_path}/{number}.db"
        landed = in_threads(8, lambda i, url=url: writers.pile_up_at("sync", url, {}, "s", 2, i))

        assert sorted(version for one in landed for version in one) == list(range(1, 17))


@pytest.mark.parametrize("facade_kind", ["sync", "async"])
def test_eight_processes_open_one_fresh_postgres(postgres_url, facade_kind):
    landed = in_processes(8, writers.pile_up_at, facade_kind, postgres_url, {}, "s", 3)

    assert sorted(version for one in landed for version in one) == list(range(1, 25))


@only_on("sqlite", "postgres")
def test_two_logs_of_one_process_see_each_others_appends(open_log):
    logs = [open_log(), open_log()]
    for number in range(20):
        logs[number % 2].append("s", [note(number)], expected=number)
        assert logs[number % 2 - 1].head("s").version == number + 1

    assert texts(logs[0].read("s")) == list(range(20))


@only_on("sqlite", "postgres")
def test_a_busy_session_starves_nobody(open_log):
    """Two who hammer at the end do not keep a third from landing at the end."""
    logs = [open_log() for _ in range(3)]
    landed = in_threads(3, lambda number: writers.pile_up(logs[number], "s", 40, number))

    assert sorted(version for one in landed for version in one) == list(range(1, 121))
