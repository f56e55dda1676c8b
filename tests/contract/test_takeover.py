"""A worker that was taken over from writes nothing more into a turn that is somebody else's."""

from __future__ import annotations

import pytest

from kern_events import Draft, SessionLog, import_events
from kern_events.errors import TurnTaken
from tests.facade import only_on, store_of, sync_of
from tests.faults import LosingStore
from tests.writers import in_threads, note, texts


def types(log, session_id="s"):
    return [event.type for event in log.read(session_id)]


def resume(log, turn=1, **options):
    return log.resume("s", turn, expected=log.head("s"), **options)


def test_a_resumption_is_of_a_kind_of_its_own(log):
    with log.turn("s", run_id="r") as turn:
        turn.record(Draft("turn.resumed", {"parent_run_id": "r"}), Draft("turn.paused", {}))
        turn.pause()
    with resume(log):
        pass

    assert [event.kind for event in log.read("s")] == [0, 1, 0, 0, 0, 7, 2]
    assert log.verify().ok


def test_a_resumption_is_imported_erased_or_not(log):
    with log.turn("s") as turn:
        turn.record(Draft("turn.resumed", {"parent_run_id": "r"}))
        turn.pause()
    with resume(log):
        pass
    log.delete("s")
    log.append("s", [Draft("session.created", {}), Draft("turn.started", {}), Draft("turn.resumed", {})])
    with SessionLog("memory:", namespace=log.namespace) as other:
        report = import_events(other, log.export("s"))

        assert (report.ok, other.head("s").hash) == (True, log.head("s").hash)


@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize("held", ["started", "resumed"])
def test_who_was_taken_over_from_writes_no_more(log, held, buffered):
    """The successor goes on, whatever was recorded by others in between."""
    with log.turn("s") as first:
        first.pause()
    hung = log.turn("s") if held == "started" else resume(log, buffered=buffered)
    with pytest.raises(TurnTaken) as caught, hung as turn, resume(log, turn.number) as successor:
        taken = successor.receipt.version
        log.append("s", [note("other")])
        turn.record(note("late"))
        turn.complete()

    error = caught.value
    assert (error.session_id, error.turn, error.by_version) == ("s", turn.number, taken)
    assert (error.expected, error.actual) == (taken - 1, taken + 1)
    assert texts(log.read("s")) == ["other"]
    assert log.verify().ok


def test_a_turn_that_somebody_else_ended_takes_no_more(log):
    for number, end in enumerate(["turn.completed", "turn.failed", "turn.cancelled"], 1):
        with pytest.raises(TurnTaken) as caught, log.turn("s") as turn:
            log.append("s", [Draft(end, {}, turn=number)])
            turn.record(note("late"))

        assert caught.value.by_version == log.head("s").version
    assert types(log)[-2:] == ["turn.started", "turn.cancelled"]
    assert texts(log.read("s")) == []


def test_nothing_is_written_after_the_successor_has_ended_and_others_have_begun(log):
    with pytest.raises(TurnTaken), log.turn("s") as turn:
        with resume(log) as successor:
            successor.record(note("paid"))
        with log.turn("s"):
            pass
        turn.record(note("late"))

    assert texts(log.read("s")) == ["paid"]
    assert types(log)[-2:] == ["turn.started", "turn.completed"]


@only_on("sqlite", "postgres")
def test_it_is_told_by_another_process_too(open_log):
    """Whose log knows nothing of what the head is by now."""
    here, there = open_log(), open_log()
    with pytest.raises(TurnTaken), here.turn("s") as turn:
        with resume(there) as successor:
            pass
        turn.record(note("late"))

    assert types(here)[-1] == "turn.completed"
    assert successor.receipt.version == here.head("s").version


@only_on("sqlite", "postgres")
def test_others_may_append_and_the_turn_goes_on(open_log):
    here, there = open_log(), open_log()
    with here.turn("s") as turn, there.turn("s") as other:
        for number in range(3):
            there.append("s", [note(number)])
            turn.record(note(f"turn {number}"))
        other.complete()
        turn.record(note("more"))

    assert texts(here.read("s")) == [0, "turn 0", 1, "turn 1", 2, "turn 2", "more"]
    assert types(here)[-1] == "turn.completed"


def test_its_own_end_and_resumption_bar_no_recorder(log):
    with log.turn("s") as turn:
        log.append("s", [note("other")])
        turn.record(Draft("turn.completed", {}), Draft("turn.resumed", {}))
        log.append("s", [note("other")])
        turn.record(note("more"))

    assert texts(log.read("s")) == ["other", "other", "more"]


def test_a_turn_may_go_on_by_itself_from_many_threads(log):
    with log.turn("s") as turn:
        in_threads(8, lambda number: turn.record(note(number)))

    assert sorted(texts(log.read("s"))) == list(range(8))


def test_a_nested_run_outlives_the_turn_that_it_is_counted_to(log):
    with log.turn("s", run_id="parent") as outer:
        nested = log.turn("s", run_id="child", parent_run_id="parent")
        with nested as inner:
            outer.complete()
            inner.record(note("late"))

    assert texts(log.read("s")) == ["late"]


def test_a_nested_run_is_fenced_with_its_turn(log):
    outer, nested = log.turn("s", run_id="parent"), log.turn("s", parent_run_id="parent")
    with pytest.raises(TurnTaken), outer, nested as inner:
        with resume(log):
            pass
        inner.record(note("late"))

    assert types(log)[-2:] == ["turn.resumed", "turn.completed"]


def test_the_end_of_another_turn_is_no_end_of_this_one(log):
    with log.turn("s") as first, log.turn("s") as second:
        first.complete()
        second.record(note("goes on"))

    assert types(log)[-1] == "turn.completed"


def test_an_append_whose_answer_was_lost_and_that_landed_first_is_recorded(log, monkeypatch):
    """What landed before the turn was taken over landed, and only what comes after it is refused."""
    with pytest.raises(TurnTaken), log.turn("s") as turn:
        store = LosingStore(store_of(log), lambda: resume(log).__enter__())
        monkeypatch.setattr(sync_of(log), "_store", store)
        turn.record(note("landed"))
        turn.record(note("late"))

    assert texts(log.read("s")) == ["landed"]
