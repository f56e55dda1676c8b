"""Reading all sessions in log order, from a cursor on."""

from __future__ import annotations

import pytest

from kern_events.errors import FeedRegressed
from tests.writers import in_threads, note, notes, texts


def places(events):
    return [(event.session_id, event.version) for event in events]


def test_all_sessions_come_in_the_order_of_the_log(log):
    log.append("b", notes(2))
    log.append("a", notes(1))
    log.append("b", notes(1))

    events = list(log.read_all())
    assert places(events) == [("b", 1), ("b", 2), ("a", 1), ("b", 3)]
    assert [event.position for event in events] == sorted({event.position for event in events})


def test_an_empty_log_has_nothing(log):
    assert list(log.read_all()) == []


def test_a_position_is_a_cursor(log):
    log.append("a", notes(2))
    seen = list(log.read_all())
    log.append("b", notes(1))
    log.append("a", notes(1))

    assert places(log.read_all(after=seen[-1].position)) == [("b", 1), ("a", 3)]
    assert places(log.read_all(after=seen[0].position, limit=2)) == [("a", 2), ("b", 1)]


def test_a_cursor_at_the_end_has_nothing_more(log):
    receipt = log.append("a", notes(2))

    assert list(log.read_all(after=receipt.position)) == []


@pytest.mark.parametrize("limit", [0, 1, 999, 1_000, 1_001, 2_100, None])
def test_a_long_log_is_read_in_pages(log, limit):
    for start in (0, 700, 1_400):
        log.append("a", [note(start + number) for number in range(700)])

    assert texts(log.read_all(limit=limit)) == list(range(2_100 if limit is None else limit))


def test_a_cursor_past_the_end_says_that_the_log_lost_something(log):
    end = log.append("a", notes(1)).position + 1_000_000

    with pytest.raises(FeedRegressed) as caught:
        list(log.read_all(after=end))
    assert caught.value.after == end
    assert caught.value.last < end


def test_the_events_of_a_deleted_session_stay_in_it(log):
    log.append("a", notes(2))
    log.delete("a")

    assert [event.erased for event in log.read_all()] == [True, True, False]


def test_who_reads_while_others_append_misses_nothing(log):
    written, read = [], []

    def work(number):
        if number < 3:
            for round in range(30):
                written.append(log.append(f"s{number}", [note(f"{number}.{round}")]))
            return
        while len(read) < 90:
            read.extend(log.read_all(after=read[-1].position if read else 0))

    in_threads(4, work)
    assert sorted(places(read)) == sorted((one.session_id, one.version) for one in written)
    for number in range(3):
        assert [event.version for event in read if event.session_id == f"s{number}"] == list(range(1, 31))
