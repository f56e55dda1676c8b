"""Verifying what was recorded honestly; what tampering looks like is in tests/storage."""

from __future__ import annotations

import pytest

from kern_events import Draft
from kern_events.errors import SessionNotFound, StoreMissing
from tests.facade import store_of
from tests.writers import in_threads, note, notes


def test_an_honest_history_has_no_findings(log):
    log.append("a", [Draft("session.created", {"user_id": "ada", "name": "n"}), *notes(3)])
    with log.turn("a", actor="ada", meta={"run_id": "r"}) as turn:
        turn.message("user", "Hi")
        turn.record(Draft("raw.seen", {}, native=b"raw"))
    log.append("a", [Draft("session.renamed", {"name": "m"})], idempotency_key="k")
    log.append("a", [Draft("session.closed", {})])
    log.append("b", notes(1))
    log.delete("b")

    report = log.verify()
    assert (report.sessions, report.events, report.findings) == (2, 12, ())
    assert report.ok
    report.check()


def test_an_empty_log_is_not_verified(log):
    """It may be another one than was meant."""
    with pytest.raises(StoreMissing):
        log.verify()
    log.append("s", notes(1))
    log.delete("s")

    assert log.verify().events == 2


def test_one_session_is_verified_alone(log):
    log.append("a", notes(3))
    log.append("b", notes(5))

    report = log.verify("a")
    assert (report.sessions, report.events) == (1, 3)


def test_an_unknown_session_is_not_found(log):
    with pytest.raises(SessionNotFound):
        log.verify("nobody")


@pytest.mark.parametrize("count", [1_999, 2_000, 2_001, 4_100])
def test_a_long_session_is_verified_in_pages(log, count):
    for start in range(0, count, 1_000):
        log.append("s", notes(min(1_000, count - start)))

    assert log.verify("s").events == count
    assert log.verify("s").ok


def test_many_sessions_are_verified_in_pages(log):
    log.append_many([(f"s{number}", notes(1), 0) for number in range(1_100)])

    report = log.verify()
    assert (report.sessions, report.events, report.ok) == (1_100, 1_100, True)


def test_progress_is_told_per_session(log):
    log.append("a", notes(3))
    log.append("b", notes(5))
    told = []
    log.verify(progress=lambda sessions, events: told.append((sessions, events)))

    assert told == [(1, 3), (2, 8)]


def test_verifying_while_others_append_finds_nothing(log):
    def work(number):
        for round in range(15):
            if number < 3:
                log.append(f"s{number % 2}", [note(round), Draft("session.renamed", {"name": f"{round}"})])
            else:
                assert log.verify().findings == ()

    log.append("s0", notes(1))
    in_threads(4, work)
    assert log.verify().events == 91


def test_the_report_carries_the_notes_of_the_store(log):
    log.append("s", notes(1))
    assert log.verify().notes == tuple(store_of(log).notes())
