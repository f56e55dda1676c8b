"""Appending to one session: places, expectations, limits, and what is refused before any write."""

from __future__ import annotations

from datetime import UTC

import pytest

from kern_events import Draft, Head, chain
from kern_events.errors import InvalidEvent, SessionClosed, SessionNotFound, VersionConflict
from tests.writers import note, notes, texts

CREATED = Draft("session.created", {})
CLOSED = Draft("session.closed", {})


def test_the_first_append_creates_the_session(log):
    receipt = log.append("s", notes(3))

    assert (receipt.namespace, receipt.session_id) == (log.namespace, "s")
    assert (receipt.first_version, receipt.version) == (1, 3)
    assert [event.version for event in log.read("s")] == [1, 2, 3]


def test_a_receipt_names_the_recorded_event(log):
    receipt = log.append("s", notes(2))
    last = list(log.read("s"))[-1]

    assert (receipt.version, receipt.hash, receipt.position) == (last.version, last.hash, last.position)


def test_the_head_follows_every_append(log):
    log.append("s", notes(2))
    receipt = log.append("s", [note("third")])
    head = log.head("s")

    assert (head.version, head.hash, head.status) == (3, receipt.hash, "open")
    assert head.at == list(log.read("s"))[-1].at


def test_an_event_comes_back_as_it_was_given(log):
    draft = Draft(
        "weather.measured",
        {"celsius": 21.5, "where": {"city": "Zürich"}, "tags": ["a", None, True]},
        type_version=7,
        actor="sensor-1",
        meta={"run_id": "r1", "deep": [1, {"x": None}]},
        native=b"\x00\xff raw",
    )
    log.append("s", [draft])
    [event] = log.read("s")

    for field in ("type", "payload", "type_version", "actor", "meta", "native", "event_id"):
        assert getattr(event, field) == getattr(draft, field), field
    assert (event.namespace, event.session_id, event.kind, event.turn) == (log.namespace, "s", 0, 0)
    assert event.at.tzinfo is UTC


def test_the_drafts_keep_their_order(log):
    log.append("s", notes(10))

    assert texts(log.read("s")) == list(range(10))


# --------------------------------------------------------------------------------- expectations


@pytest.mark.parametrize("expected", [0, None])
def test_a_new_session_may_be_expected_to_be_new_or_not(log, expected):
    assert log.append("s", notes(1), expected=expected).version == 1


def test_the_version_seen_last_is_accepted(log):
    log.append("s", notes(2))

    assert log.append("s", notes(2), expected=2).version == 4


def test_the_head_seen_last_is_accepted(log):
    log.append("s", notes(2))
    head = log.head("s")

    assert log.append("s", notes(1), expected=head).version == 3


def test_the_head_of_an_unknown_session_is_accepted(log):
    assert log.append("s", notes(1), expected=log.head("s")).version == 1


@pytest.mark.parametrize("expected", [0, 1, 3, 99])
def test_another_version_is_a_conflict_that_tells_the_actual_one(log, expected):
    log.append("s", notes(2))

    with pytest.raises(VersionConflict) as caught:
        log.append("s", notes(1), expected=expected)
    assert (caught.value.session_id, caught.value.expected, caught.value.actual) == ("s", expected, 2)
    assert log.head("s").version == 2


def test_a_version_of_an_unknown_session_is_a_conflict(log):
    with pytest.raises(VersionConflict) as caught:
        log.append("s", notes(1), expected=1)

    assert (caught.value.expected, caught.value.actual) == (1, 0)
    with pytest.raises(SessionNotFound):
        list(log.read("s"))


@pytest.mark.parametrize("expected", [-1, 2**63, 2**70])
def test_a_version_that_cannot_be_is_a_conflict_too(log, expected):
    log.append("s", notes(1))

    with pytest.raises((VersionConflict, ValueError)):
        log.append("s", notes(1), expected=expected)
    assert log.head("s").version == 1


@pytest.mark.parametrize("expected", ["1", 1.0, True, b"1", [1]])
def test_what_is_no_version_is_not_taken_for_none(log, expected):
    log.append("s", notes(1))

    with pytest.raises((TypeError, ValueError)):
        log.append("s", notes(1), expected=expected)
    assert log.head("s").version == 1


def test_a_head_with_another_hash_is_a_conflict(log):
    log.append("s", notes(2))
    head = log.head("s")

    with pytest.raises(VersionConflict, match="another hash") as caught:
        log.append("s", notes(1), expected=Head(2, bytes(32), at_us=head.at_us))
    assert (caught.value.expected, caught.value.actual) == (2, 2)
    assert log.head("s") == head


def test_an_old_head_is_a_conflict(log):
    log.append("s", notes(1))
    head = log.head("s")
    log.append("s", notes(1))

    with pytest.raises(VersionConflict) as caught:
        log.append("s", notes(1), expected=head)
    assert (caught.value.expected, caught.value.actual) == (1, 2)


# --------------------------------------------------------------- the same drafts, passed again


@pytest.mark.parametrize("others", [0, 1, 5])
def test_the_same_drafts_at_the_same_base_give_the_first_receipt(log, others):
    log.append("s", notes(2))
    drafts = notes(3)
    first = log.append("s", drafts, expected=2)
    for number in range(others):
        log.append("s", [note(f"other {number}")])

    assert log.append("s", drafts, expected=2) == first
    assert log.head("s").version == 5 + others


def test_the_same_drafts_as_a_head_expected_give_the_first_receipt(log):
    log.append("s", notes(2))
    head, drafts = log.head("s"), notes(2)
    first = log.append("s", drafts, expected=head)

    assert log.append("s", drafts, expected=head) == first


def test_the_same_first_drafts_of_a_session_give_the_first_receipt(log):
    drafts = notes(2)
    first = log.append("s", drafts, expected=0)
    log.append("s", notes(1))

    assert log.append("s", drafts, expected=0) == first


def test_a_beginning_of_those_drafts_gives_the_receipt_of_that_beginning(log):
    drafts = notes(3)
    log.append("s", drafts, expected=0)

    assert log.append("s", drafts[:2], expected=0).version == 2
    assert log.head("s").version == 3


@pytest.mark.parametrize("change", [lambda drafts: drafts[::-1], lambda drafts: [*drafts, note("more")]])
def test_other_drafts_at_that_base_are_a_conflict(log, change):
    drafts = notes(3)
    log.append("s", drafts, expected=0)

    with pytest.raises(VersionConflict):
        log.append("s", change(drafts), expected=0)
    assert log.head("s").version == 3


def test_the_same_id_with_other_content_is_a_conflict(log):
    draft = note("first")
    log.append("s", [draft], expected=0)

    with pytest.raises(VersionConflict):
        log.append("s", [Draft(draft.type, {"text": "second"}, event_id=draft.event_id)], expected=0)
    assert texts(log.read("s")) == ["first"]


# ------------------------------------------------------------------------------------- closing


def test_a_closed_session_takes_nothing_more(log):
    log.append("s", [note(), CLOSED])

    with pytest.raises(SessionClosed) as caught:
        log.append("s", [note()])
    assert (caught.value.session_id, caught.value.status) == ("s", "closed")
    assert log.head("s").version == 2
    assert log.head("s").status == "closed"


@pytest.mark.parametrize("expected", ["version", "head"])
def test_a_closed_session_is_closed_to_who_expects_its_head_as_well(log, expected):
    log.append("s", [note(), CLOSED])

    with pytest.raises(SessionClosed):
        log.append("s", [note()], expected=2 if expected == "version" else log.head("s"))
    assert log.head("s").version == 2


def test_a_closed_session_can_still_be_read(log):
    log.append("s", [note("kept"), CLOSED])

    assert texts(log.read("s")) == ["kept"]


def test_session_created_opens_it_again(log):
    log.append("s", [note(), CLOSED])
    receipt = log.append("s", [CREATED, note("later")])

    assert (receipt.first_version, receipt.version) == (3, 4)
    assert log.append("s", [note()]).version == 5
    assert log.head("s").status == "open"


def test_closing_again_with_the_same_draft_gives_the_first_receipt(log):
    log.append("s", notes(1))
    closing = [Draft("session.closed", {})]
    first = log.append("s", closing, expected=1)

    assert log.append("s", closing, expected=1) == first


# ------------------------------------------------------------------- limits and refused drafts


@pytest.mark.parametrize("count", [1, 49, 50, 51, 999, 1_000])
def test_a_batch_of_up_to_a_thousand_is_recorded(log, count):
    receipt = log.append("s", notes(count))

    assert receipt.version == count
    assert texts(log.read("s")) == list(range(count))
    assert log.verify("s").ok


@pytest.mark.parametrize("count", [0, 1_001])
def test_a_batch_of_any_other_size_is_refused(log, count):
    with pytest.raises(InvalidEvent, match="1 to 1,000") as caught:
        log.append("s", notes(count))

    assert caught.value.path == "drafts"
    assert log.head("s").version == 0


def test_one_bad_draft_refuses_the_whole_batch(log):
    drafts = [note("good"), note(float("nan")), note("good")]

    with pytest.raises(InvalidEvent) as caught:
        log.append("s", drafts)
    assert caught.value.path == "drafts[1].payload.text"
    assert log.head("s").version == 0


def test_the_same_draft_twice_in_a_batch_is_refused(log):
    draft = note()

    with pytest.raises(InvalidEvent, match="twice"):
        log.append("s", [draft, draft])
    assert log.head("s").version == 0


@pytest.mark.parametrize("type", ["session.restored", "session.forked", "session.erased", "session.deleted"])
def test_types_with_a_verb_of_their_own_are_not_appended(log, type):
    log.append("s", notes(1))

    with pytest.raises(InvalidEvent, match="its own verb"):
        log.append("s", [Draft(type, {})])
    assert log.head("s").version == 1


def test_a_turn_that_has_not_started_is_refused(log):
    log.append("s", [Draft("turn.started", {})])

    with pytest.raises(InvalidEvent, match="turn 2 has not started"):
        log.append("s", [note(turn=1), note(turn=2)])
    assert log.head("s").version == 1


def test_an_event_belongs_to_the_turn_it_names_or_to_the_last(log):
    started = [Draft("turn.started", {}) for _ in range(2)]
    log.append("s", [note(), started[0], note(), started[1], note(), note(turn=1)])

    assert [event.turn for event in log.read("s")] == [0, 1, 1, 2, 2, 1]
    assert log.head("s").turn == 2


def test_a_turn_of_a_turn_is_not_one_of_the_session(log):
    nested = Draft("turn.started", {"parent_run_id": "r1"})
    log.append("s", [Draft("turn.started", {}), nested, Draft("turn.completed", {"parent_run_id": "r1"})])

    assert [event.kind for event in log.read("s")] == [1, 0, 0]
    assert log.head("s").turn == 1


def test_payloads_up_to_the_limit_are_recorded(open_log):
    log = open_log(max_payload_bytes=1_000)
    fits = "x" * (1_000 - len('{"text":""}'))

    assert log.append("s", [note(fits)]).version == 1
    with pytest.raises(InvalidEvent, match="the limit is 1,000"):
        log.append("s", [note(fits + "x")])
    assert log.head("s").version == 1


def test_the_time_never_falls_within_a_session(log, clock):
    times = [1_700_000_000_000_000, 1_600_000_000_000_000, 1_700_000_000_000_001]
    for clock.now_us in times:
        log.append("s", [note()])

    assert [event.at_us for event in log.read("s")] == [times[0], times[0], times[2]]
    assert log.verify("s").ok


# ----------------------------------------------------------------------------------------- ids

HOSTILE = [
    "'; DROP TABLE kern_events; --", '"', "%s", "%(x)s", "%", "?", ":name", "{s}", "\\", "a\\'b", "$1", "$$",
    " ", " s ", "..", "../../etc/passwd", "s\u200b", "\ufeff", "\u202e", "Å", "日本語", "🦊",
    "👩‍👩‍👧", "\U0010ffff", "x" * 200, "ü" * 100, "🦊" * 50, "~user/ada", "null", "NaN", "-1", "0", "~",
    "\xa0",
]  # fmt: skip


def test_any_text_is_an_id_of_its_own(log):
    for number, session_id in enumerate(HOSTILE):
        log.append(session_id, [note(number)], expected=0)

    for number, session_id in enumerate(HOSTILE):
        assert texts(log.read(session_id)) == [number], session_id
    assert {info.session_id for info in log.sessions(limit=100)} == set(HOSTILE)
    assert log.verify().ok


NO_IDS = ["", "x" * 201, "ü" * 101, "a\0b", "a\nb", "\x1b[31m", "\x7f", "\u2028", "A\u030a", "\ud800"]


@pytest.mark.parametrize("session_id", [*NO_IDS, None, 1, b"s"])
def test_other_ids_are_refused_before_any_write(log, session_id):
    with pytest.raises(InvalidEvent) as caught:
        log.append(session_id, notes(1))

    assert caught.value.path == "session_id"
    assert log.sessions() == []
    with pytest.raises(InvalidEvent):
        log.head(session_id)
    with pytest.raises(InvalidEvent):
        list(log.read(session_id))


def test_ids_that_differ_in_case_or_width_are_different(log):
    for session_id in ("s", "S", "ｓ", "ſ"):
        log.append(session_id, [note(session_id)], expected=0)

    assert texts(log.read("S")) == ["S"]
    assert len(log.sessions()) == 4


def test_a_head_of_an_unknown_session_is_its_genesis(log):
    head = log.head("nobody")

    assert (head.version, head.turn, head.status) == (0, 0, "open")
    assert head.hash == chain.genesis(chain.scope(log.namespace, "nobody"))
