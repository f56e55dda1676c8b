"""Idempotency keys: an append that is delivered twice is recorded once."""

from __future__ import annotations

from itertools import product

import pytest

from kern_events import Draft
from kern_events.errors import IdempotencyConflict, InvalidEvent, VersionConflict
from tests.facade import store_of, sync_of
from tests.faults import LosingStore
from tests.writers import in_threads, note, notes, texts


def delivered(log, *said, key="k1", **options):
    """What a queue does: the drafts are made anew on every delivery, so their ids differ."""
    return log.append("s", [note(text) for text in said], idempotency_key=key, **options)


@pytest.mark.parametrize("others", [0, 1, 4])
@pytest.mark.parametrize("count", [1, 3, 1_000])
def test_a_second_delivery_gives_the_first_receipt(log, others, count):
    said = [f"said {number}" for number in range(count)]
    first = delivered(log, *said)
    for _ in range(others):
        log.append("s", [note("other")])

    assert delivered(log, *said) == first
    assert log.head("s").version == count + others


def test_a_second_delivery_gives_the_first_receipt_whatever_it_expects(log):
    first = delivered(log, "a", expected=0)

    assert delivered(log, "a", expected=0) == first
    assert delivered(log, "a", expected=1) == first
    assert delivered(log, "a", expected=log.head("s")) == first
    assert log.head("s").version == 1


@pytest.mark.parametrize(
    "other",
    [
        [note("b")],
        [Draft("note.written", {"text": "a"})],
        [note("a", type_version=2)],
        [note("a"), note("more")],
    ],
)
@pytest.mark.parametrize("others", [0, 2])
def test_other_content_under_the_same_key_is_a_conflict(log, other, others):
    log.append("s", notes(2))
    delivered(log, "a")
    log.append_many([("s", notes(others), None)] if others else [])

    with pytest.raises(IdempotencyConflict) as caught:
        log.append("s", other, idempotency_key="k1")
    assert (caught.value.key, caught.value.session_id, caught.value.version) == ("k1", "s", 3)
    assert log.head("s").version == 3 + others


def test_a_key_is_recorded_with_the_first_event(log):
    delivered(log, "a", "b")

    assert [event.idempotency_key for event in log.read("s")] == ["k1", None]
    assert log.verify().ok


def test_keys_are_those_of_a_session(log):
    delivered(log, "a")

    assert log.append("t", [note("b")], idempotency_key="k1").version == 1
    assert delivered(log, "c", key="k2").version == 2


def test_a_key_does_not_lift_an_expectation(log):
    delivered(log, "a")

    with pytest.raises(VersionConflict):
        delivered(log, "b", key="k2", expected=0)
    assert texts(log.read("s")) == ["a"]


def test_a_closed_session_still_knows_its_keys(log):
    first = delivered(log, "a")
    log.append("s", [Draft("session.closed", {})])

    assert delivered(log, "a") == first


@pytest.mark.parametrize("again", [False, True])
def test_a_key_from_before_a_deletion_is_a_conflict_and_no_receipt(log, again):
    """Neither swallows what is new nor brings back what was deleted."""
    delivered(log, "x", key="k0")
    delivered(log, "a")
    log.delete("s")
    if again:
        log.append("s", [Draft("session.created", {}), note("new")])
    head = log.head("s")
    for said, expected in product("ab", (None, head, head.version, 1)):
        with pytest.raises(IdempotencyConflict, match="before an erasure") as caught:
            delivered(log, said, expected=expected)

        assert (caught.value.version, caught.value.erased) == (2, True)
    assert log.head("s") == head


def test_a_key_that_closed_a_session_closes_no_later_one(log):
    """Though an event without content is erased by nothing."""
    close = lambda: log.append("s", [Draft("session.closed", {})], idempotency_key="k1")  # noqa: E731
    log.append("s", [note("a")])
    assert close() == close()
    log.delete("s")
    log.append("s", [Draft("session.created", {})])

    with pytest.raises(IdempotencyConflict):
        close()


def test_a_key_from_before_an_erasure_is_a_conflict(log):
    delivered(log, "a")
    inner = sync_of(log)
    tombstone = Draft("session.erased", {}, meta={"erased": [[1, 1]]})
    inner._record(inner._prepare("s", [tombstone], reserved=True))
    later = delivered(log, "b", key="k2")

    with pytest.raises(IdempotencyConflict):
        delivered(log, "a")
    assert delivered(log, "b", key="k2") == later


def test_keys_after_a_deletion_are_as_before(log):
    delivered(log, "a")
    log.delete("s")
    log.append("s", [Draft("session.created", {})])
    first = delivered(log, "a", key="k2")

    assert delivered(log, "a", key="k2") == first


@pytest.mark.parametrize("expected", [None, 0])
def test_an_append_whose_answer_was_lost_and_that_was_deleted_then_is_recorded(log, monkeypatch, expected):
    """It is the very append that was recorded; by its events' ids, which no erasure removes."""
    store = LosingStore(store_of(log), lambda: log.delete("s"))
    monkeypatch.setattr(sync_of(log), "_store", store)
    receipt = delivered(log, "a", expected=expected)

    assert (receipt.first_version, receipt.version) == (1, 1)
    assert log.head("s").status == "deleted"


def test_a_key_of_other_content_is_a_conflict_for_drafts_that_are_recorded_too(log):
    drafts = [note("a")]
    log.append("s", drafts)
    delivered(log, "b")

    with pytest.raises(IdempotencyConflict):
        log.append("s", drafts, idempotency_key="k1", expected=0)
    assert log.append("s", drafts, idempotency_key="k2", expected=0).version == 1


def test_who_calls_again_at_the_base_is_answered_exactly_after_a_deletion(log):
    drafts = [note("a")]
    first = log.append("s", drafts, idempotency_key="k1", expected=0)
    log.delete("s")

    assert log.append("s", drafts, idempotency_key="k1", expected=0) == first
    with pytest.raises(IdempotencyConflict):
        log.append("s", drafts, idempotency_key="k1")


@pytest.mark.parametrize("key", ["", "x" * 201, "a\0b", "\ud800", 1, b"k"])
def test_a_key_is_an_id(log, key):
    with pytest.raises(InvalidEvent) as caught:
        delivered(log, "a", key=key)

    assert caught.value.path == "idempotency_key"
    assert log.head("s").version == 0


def test_a_key_may_be_any_id(log):
    for number, key in enumerate(["'; --", "%s", "🦊", "x" * 200]):
        receipt = delivered(log, number, key=key)

        assert delivered(log, number, key=key) == receipt


def test_of_eight_deliveries_at_once_one_is_recorded(log):
    receipts = in_threads(8, lambda number: delivered(log, "a", "b"))

    assert set(map(repr, receipts)) == {repr(receipts[0])}
    assert texts(log.read("s")) == ["a", "b"]


def test_deliveries_among_other_appends_are_recorded_once_each(log):
    def work(number):
        for round in range(10):
            delivered(log, f"job {round}", key=f"job {round}")
            log.append("s", [note(f"other {number}.{round}")])

    in_threads(4, work)
    said = texts(log.read("s"))
    assert sorted(text for text in said if text.startswith("job")) == sorted(f"job {r}" for r in range(10))
    assert len(said) == 10 + 40
