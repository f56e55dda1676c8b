"""A turn that is left open is continued, by whoever gets there first."""

from __future__ import annotations

import pytest

from kern_events import Draft, spi
from kern_events.errors import InvalidEvent, SessionClosed, SessionNotFound, TurnAbandoned, VersionConflict
from tests.facade import only_on, sync_of
from tests.writers import in_threads, note, notes, texts


def pause(log, session_id="s", **options):
    """A turn that waits, and where the session stands then."""
    with log.turn(session_id, **options) as turn:
        turn.message("user", "pay")
        turn.pause({"confirm": 49})
    return log.head(session_id)


def types(log, session_id="s"):
    return [event.type for event in log.read(session_id)]


def test_a_paused_turn_stays_open(log):
    head = pause(log)

    events = list(log.read("s"))
    assert [event.type for event in events[1:]] == ["turn.started", "message.added", "turn.paused"]
    assert (events[-1].payload, events[-1].turn, events[-1].kind) == ({"requirements": {"confirm": 49}}, 1, 0)
    assert (head.version, head.turn) == (4, 1)


@pytest.mark.parametrize("requirements", [None, {}, [], "text", 0, False])
def test_what_it_waits_for_is_any_value(log, requirements):
    with log.turn("s") as turn:
        turn.pause(requirements)

    payload = list(log.read("s"))[-1].payload
    assert payload == ({} if requirements is None else {"requirements": requirements})


def test_after_a_pause_this_recorder_records_no_more(log):
    with log.turn("s") as turn:
        turn.pause()
        for use in (turn.pause, turn.complete, lambda: turn.message("user", "Hi")):
            with pytest.raises(RuntimeError, match="closed"):
                use()

    assert turn.closed
    assert types(log) == ["session.created", "turn.started", "turn.paused"]


def test_an_error_behind_a_pause_does_not_end_the_turn(log):
    with pytest.raises(ZeroDivisionError), log.turn("s") as turn:
        turn.pause()
        raise ZeroDivisionError

    assert types(log)[-1] == "turn.paused"


def test_a_buffered_turn_is_recorded_when_it_is_paused(log):
    pause(log, buffered=True, run_id="r")

    assert types(log) == ["session.created", "turn.started", "message.added", "turn.paused"]
    assert list(log.read("s"))[-1].payload["run_id"] == "r"


def test_a_resumed_turn_goes_on_under_its_number(log):
    head = pause(log)
    with log.turn("s") as other:
        pass
    with log.resume("s", 1, expected=log.head("s"), actor="ada", meta={"run_id": "r"}) as turn:
        turn.message("assistant", "paid")

    assert head.version == 4
    assert (turn.number, other.number, log.head("s").turn) == (1, 2, 2)
    resumed, said, completed = list(log.read("s"))[-3:]
    assert [one.type for one in (resumed, said, completed)] == [
        "turn.resumed", "message.added", "turn.completed",
    ]  # fmt: skip
    assert {(one.turn, one.actor, one.meta["run_id"]) for one in (resumed, said, completed)} == {
        (1, "ada", "r")
    }
    assert log.verify().ok


def test_of_eight_who_resume_from_one_head_one_does(log):
    head = pause(log)

    def work(number):
        try:
            with log.resume("s", 1, expected=head) as turn:
                turn.record(note(number))
        except VersionConflict as error:
            assert (error.expected, error.actual >= 5) == (4, True)
            return False
        return True

    assert sum(in_threads(8, work)) == 1
    assert types(log).count("turn.resumed") == 1
    assert len(texts(log.read("s"))) == 1


@pytest.mark.parametrize("buffered", [False, True])
def test_who_comes_second_is_told_at_once(log, buffered):
    head = pause(log)
    first, second = (log.resume("s", 1, expected=head, buffered=buffered) for _ in range(2))
    with first, pytest.raises(VersionConflict), second:
        raise AssertionError("it was entered")

    assert types(log)[-2:] == ["turn.resumed", "turn.completed"]


def test_a_buffered_resumption_is_recorded_at_its_end(log):
    head = pause(log)
    with log.resume("s", 1, expected=head, buffered=True) as turn:
        turn.record(note())
        assert types(log)[4:] == ["turn.resumed"]

    assert types(log)[4:] == ["turn.resumed", "note.taken", "turn.completed"]


def test_it_can_be_paused_and_resumed_again_and_again(log):
    pause(log)
    for _ in range(3):
        with log.resume("s", 1, expected=log.head("s")) as turn:
            turn.pause()

    assert types(log)[4:] == ["turn.resumed", "turn.paused"] * 3
    assert log.head("s").turn == 1


def test_a_resumed_turn_that_fails_has_failed(log):
    head = pause(log)
    with pytest.raises(ZeroDivisionError), log.resume("s", 1, expected=head):
        raise ZeroDivisionError

    assert types(log)[-1] == "turn.failed"


@only_on("sqlite", "postgres")
def test_it_is_resumed_by_another_log(open_log):
    here, there = open_log(), open_log()
    head = pause(here)
    with there.resume("s", 1, expected=there.head("s")) as turn:
        turn.record(note("there"))

    with pytest.raises(VersionConflict), here.resume("s", 1, expected=head):
        pass
    assert texts(here.read("s")) == ["there"]


def test_an_open_turn_at_the_target_of_a_restore_is_continued(log):
    head = pause(log)
    with log.resume("s", 1, expected=head) as turn:
        turn.record(note("wrong"))
    spi.restore(sync_of(log), "s", head.version, {}, log.head("s"), actor=None)
    with log.resume("s", 1, expected=log.head("s")) as turn:
        turn.record(note("right"))

    path = spi.live_path(sync_of(log), "s", log.head("s").version)
    assert [(part.first, part.last) for part in path] == [(1, 4), (8, 11)]
    assert turn.number == 1
    assert log.verify().ok


def test_a_resumed_turn_that_is_restored_away_is_abandoned(log):
    head = pause(log)
    with pytest.raises(TurnAbandoned), log.resume("s", 1, expected=head) as turn:
        spi.restore(sync_of(log), "s", 1, {}, log.head("s"), actor=None)
        turn.record(note())

    assert types(log)[-2:] == ["turn.resumed", "session.restored"]


def test_a_turn_from_before_a_restore_is_not_resumed_behind_it(log):
    head = pause(log)
    spi.restore(sync_of(log), "s", 1, {}, log.head("s"), actor=None)

    with pytest.raises(VersionConflict), log.resume("s", 1, expected=head):
        pass
    with pytest.raises(InvalidEvent, match="turn 1 has not started"):
        log.resume("s", 1, expected=log.head("s")).__enter__()
    assert types(log)[-1] == "session.restored"


def test_a_fork_resumes_what_waits_in_its_past(log):
    pause(log)
    log.fork("s", "f")
    with log.resume("f", 1, expected=log.head("f")) as turn:
        turn.record(note("in the fork"))

    assert types(log, "f") == ["session.forked", "turn.resumed", "note.taken", "turn.completed"]
    assert types(log)[-1] == "turn.paused"
    assert log.verify().ok


@pytest.mark.parametrize("end", ["closed", "deleted"])
def test_a_session_that_ended_meanwhile_is_not_resumed_in(log, end):
    pause(log)
    if end == "closed":
        log.append("s", [Draft("session.closed", {})])
    else:
        log.delete("s")

    with pytest.raises(SessionClosed) as caught, log.resume("s", 1, expected=log.head("s")):
        pass
    assert isinstance(caught.value, SessionNotFound) == (end == "deleted")


def test_a_turn_that_never_was_is_not_resumed(log):
    log.append("s", notes(1))

    with pytest.raises(InvalidEvent), log.resume("s", 1, expected=log.head("s")):
        pass
    assert types(log) == ["note.taken"]
