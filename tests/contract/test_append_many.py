"""Appending to several sessions in one transaction: all of them or none."""

from __future__ import annotations

import pytest

from kern_events import Draft
from kern_events.errors import InvalidEvent, SessionClosed, VersionConflict
from tests.writers import in_threads, note, notes, texts


def test_receipts_come_in_the_order_of_the_call(log):
    log.append("b", notes(1))
    receipts = log.append_many([("c", notes(1), None), ("a", notes(2), 0), ("b", notes(3), 1)])

    assert [(one.session_id, one.first_version, one.version) for one in receipts] == [
        ("c", 1, 1), ("a", 1, 2), ("b", 2, 4),
    ]  # fmt: skip
    for receipt in receipts:
        last = list(log.read(receipt.session_id))[-1]
        assert (receipt.hash, receipt.position) == (last.hash, last.position)
    assert log.verify().ok


def test_one_conflict_undoes_all(log):
    log.append("b", notes(2))

    with pytest.raises(VersionConflict) as caught:
        log.append_many([("a", notes(1), None), ("b", notes(1), 1), ("c", notes(1), None)])
    assert (caught.value.session_id, caught.value.expected, caught.value.actual) == ("b", 1, 2)
    assert [log.head(one).version for one in "abc"] == [0, 2, 0]


def test_one_closed_session_undoes_all(log):
    log.append("b", [Draft("session.closed", {})])

    with pytest.raises(SessionClosed) as caught:
        log.append_many([("a", notes(1), None), ("b", notes(1), None)])
    assert caught.value.session_id == "b"
    assert log.head("a").version == 0


def test_one_head_of_another_hash_undoes_all(log):
    log.append("b", notes(1))
    log.append("c", notes(1))

    with pytest.raises(VersionConflict, match="another hash"):
        log.append_many([("a", notes(1), None), ("b", notes(1), log.head("c"))])
    assert [log.head(one).version for one in "ab"] == [0, 1]


def test_one_bad_draft_undoes_all(log):
    with pytest.raises(InvalidEvent):
        log.append_many([("a", notes(1), None), ("b", [note(2**80)], None)])

    assert log.head("a").version == 0


def test_one_turn_that_has_not_started_undoes_all(log):
    with pytest.raises(InvalidEvent):
        log.append_many([("a", notes(1), None), ("b", [note(turn=1)], None)])

    assert log.head("a").version == 0


def test_a_session_stands_in_it_once(log):
    with pytest.raises(InvalidEvent, match="twice"):
        log.append_many([("a", notes(1), None), ("b", notes(1), None), ("a", notes(1), None)])

    assert log.sessions() == []


def test_nothing_to_append_is_nothing(log):
    assert log.append_many([]) == []


def test_the_same_call_again_gives_the_first_receipts(log):
    log.append("b", notes(1))
    appends = [("a", notes(2), 0), ("b", notes(1), 1)]
    first = log.append_many(appends)
    log.append("a", [note("other")])

    assert log.append_many(appends) == first
    assert [log.head(one).version for one in "ab"] == [3, 2]


def test_a_call_of_which_a_part_was_recorded_before_is_a_conflict(log):
    drafts = notes(1)
    log.append("a", drafts, expected=0)

    with pytest.raises(VersionConflict) as caught:
        log.append_many([("a", drafts, 0), ("b", notes(1), 0)])
    assert (caught.value.session_id, caught.value.expected, caught.value.actual) == ("a", 0, 1)
    assert log.head("b").version == 0


def test_a_thousand_events_each_to_ten_sessions(log):
    receipts = log.append_many([(f"s{number}", notes(1_000), 0) for number in range(10)])

    assert [receipt.version for receipt in receipts] == [1_000] * 10
    assert texts(log.read("s9")) == list(range(1_000))


def test_listing_columns_are_set_as_by_append(log):
    created = Draft("session.created", {"user_id": "ada", "name": "Ümlaut", "agent_id": None})
    log.append_many([("a", [created], 0), ("b", notes(1), 0)])

    info = {one.session_id: one for one in log.sessions()}
    assert (info["a"].user_id, info["a"].name, info["a"].agent_id) == ("ada", "Ümlaut", None)
    assert info["b"].user_id is None
    assert log.verify().ok


def test_many_who_append_to_the_same_sessions_neither_deadlock_nor_lose(log):
    orders = ["abc", "cba", "bac", "cab"]

    def work(number):
        for round in range(10):
            log.append_many([(one, [note(f"{number}.{round}")], None) for one in orders[number]])

    in_threads(4, work)
    for one in "abc":
        assert sorted(texts(log.read(one))) == sorted(f"{n}.{r}" for n in range(4) for r in range(10))
    assert log.verify().ok
