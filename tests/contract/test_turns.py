"""Recording turns as they happen."""

from __future__ import annotations

import asyncio
import os

import pytest

from kern_events import Draft
from kern_events.batch import prepare, prepare_draft
from kern_events.errors import SessionClosed, TurnAbandoned, VersionConflict
from tests.facade import only_on, sync_of
from tests.writers import in_threads, note, notes


def types(log, session_id="s"):
    return [event.type for event in log.read(session_id)]


def restored(log, session_id, to_version, to_turn):
    """A restore as its verb will record it: one event that lowers the turn and begins a branch."""
    draft = Draft("session.restored", {}, turn=to_turn)
    batch = prepare(log.namespace, session_id, [draft], reserved=True)
    event = prepare_draft(draft, os.urandom(16), ref=to_version, reserved=True)
    return sync_of(log)._record(batch._replace(events=(event,)))


def test_a_turn_is_recorded_as_it_happens(log):
    with log.turn("s") as turn:
        turn.message("user", "Hi")
        assert types(log) == ["session.created", "turn.started", "message.added"]
        turn.message("assistant", "Hello")

    assert types(log)[3:] == ["message.added", "turn.completed"]
    assert (turn.number, turn.closed, turn.receipt.version) == (1, True, 5)
    assert log.verify("s").ok


def test_every_call_records_one_event(log):
    with log.turn("s") as turn:
        message = turn.message("user", "Hi", name="ada", id="m1")
        call = turn.tool_call("search", {"q": "ü"})
        turn.tool_result(call, {"hits": 3}, duration_s=0.5)
        failed = turn.tool_call("search", "not json", call_id="c2")
        turn.tool_error(failed, "bad arguments")
        turn.set_state("city", "Zürich")
        turn.set_state(["deep", "key"], [1, 2])
        turn.unset_state("city")
        turn.append_state("list", [1])
        turn.record(note("own"), note("types"))
        turn.complete(usage={"input_tokens": 3})

    events = list(log.read("s"))[2:]
    assert message == "m1"
    assert failed == "c2"
    assert [event.payload for event in events] == [
        {"role": "user", "content": "Hi", "name": "ada", "id": "m1"},
        {"call_id": call, "name": "search", "arguments": '{"q":"ü"}'},
        {"call_id": call, "result": {"hits": 3}, "duration_s": 0.5},
        {"call_id": "c2", "name": "search", "arguments": "not json"},
        {"call_id": "c2", "error": "bad arguments"},
        {"scope": "session", "ops": [["set", ["city"], "Zürich"]]},
        {"scope": "session", "ops": [["set", ["deep", "key"], [1, 2]]]},
        {"scope": "session", "ops": [["unset", ["city"]]]},
        {"scope": "session", "ops": [["append", ["list"], [1]]]},
        {"text": "own"},
        {"text": "types"},
        {"usage": {"input_tokens": 3}},
    ]


def test_a_message_without_an_id_has_that_of_its_event(log):
    with log.turn("s") as turn:
        given = turn.message("user", "Hi")

    assert list(log.read("s"))[2].event_id.hex() == given


def test_turns_are_numbered(log):
    for number in (1, 2, 3):
        with log.turn("s") as turn:
            turn.message("user", "Hi")
        assert turn.number == number

    assert [event.turn for event in log.read("s")] == [0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert log.head("s").turn == 3


def test_the_session_is_created_once_with_what_the_turn_says(log):
    for _ in range(2):
        with log.turn("s", user_id="ada", agent_id="bot"):
            pass

    assert types(log).count("session.created") == 1
    assert next(iter(log.read("s"))).payload == {"session_type": "agent", "user_id": "ada", "agent_id": "bot"}
    assert log.sessions(user_id="ada")[0].agent_id == "bot"


def test_a_session_that_is_there_is_not_created(log):
    log.append("s", notes(1))
    with log.turn("s", user_id="ada"):
        pass

    assert types(log) == ["note.taken", "turn.started", "turn.completed"]


def test_of_eight_first_turns_one_creates_the_session(log):
    def work(number):
        with log.turn("s", user_id="ada") as turn:
            turn.message("user", "Hi")
        return turn.number

    assert sorted(in_threads(8, work)) == list(range(1, 9))
    assert types(log).count("session.created") == 1
    assert types(log)[0] == "session.created"
    assert log.verify("s").ok


def test_what_the_turn_is_given_stands_on_its_events(log):
    with log.turn("s", run_id="r1", agent_id="bot", actor="ada", meta={"traceparent": "00-1"}) as turn:
        turn.message("user", "Hi")
        turn.record(note(actor="tool", meta={"own": True}))

    created, started, message, own, completed = log.read("s")
    assert created.actor is None
    assert started.payload == {"run_id": "r1", "agent_id": "bot"}
    assert {(event.actor, event.meta["traceparent"]) for event in (started, message, completed)} == {
        ("ada", "00-1")
    }
    assert (own.actor, own.meta) == ("tool", {"own": True})


# ------------------------------------------------------------------------------------- endings


def test_a_turn_left_with_an_error_has_failed(log):
    with pytest.raises(ZeroDivisionError), log.turn("s") as turn:
        turn.message("user", "Hi")
        raise ZeroDivisionError("division by zero")

    last = list(log.read("s"))[-1]
    assert (last.type, last.turn) == ("turn.failed", 1)
    assert last.payload == {"error": {"type": "ZeroDivisionError", "message": "division by zero"}}


@pytest.mark.parametrize("error", [KeyboardInterrupt, asyncio.CancelledError, GeneratorExit])
def test_a_turn_that_was_interrupted_is_cancelled(log, error):
    turn = log.turn("s").__enter__()
    turn.__exit__(error, error(), None)

    assert types(log)[-1] == "turn.cancelled"


def test_an_error_that_no_text_can_hold_is_recorded_all_the_same(log):
    with pytest.raises(ValueError), log.turn("s"):
        raise ValueError("\ud800\0")

    assert list(log.read("s"))[-1].payload["error"]["message"] == "\\ud800\0"


@pytest.mark.parametrize("close", [lambda turn: turn.complete(), lambda turn: turn.fail("no answer")])
def test_a_turn_closed_by_hand_has_one_end(log, close):
    with log.turn("s") as turn:
        close(turn)
        with pytest.raises(RuntimeError, match="closed"):
            turn.message("user", "too late")

    assert types(log)[:2] == ["session.created", "turn.started"]
    assert len(types(log)) == 3


def test_a_turn_in_a_closed_session_does_not_begin(log):
    log.append("s", [note(), Draft("session.closed", {})])

    with pytest.raises(SessionClosed), log.turn("s"):
        pass
    assert log.head("s").version == 2


def test_a_turn_does_not_bring_a_deleted_session_back(log):
    log.append("s", notes(1))
    log.delete("s")

    with pytest.raises(SessionClosed), log.turn("s", user_id="ada"):
        pass

    assert log.head("s").version == 2


def test_the_error_of_the_block_is_raised_when_its_end_cannot_be_recorded(log, caplog):
    with pytest.raises(ZeroDivisionError), log.turn("s"):
        log.append("s", [Draft("session.closed", {})])
        raise ZeroDivisionError("division by zero")

    assert "the end of a turn could not be recorded" in caplog.text
    assert types(log)[-1] == "session.closed"


def test_an_end_that_cannot_be_recorded_is_raised(log):
    with pytest.raises(SessionClosed), log.turn("s"):
        log.append("s", [Draft("session.closed", {})])

    assert types(log)[-1] == "session.closed"


# ------------------------------------------------------------------------------------ buffered


def test_a_buffered_turn_is_recorded_at_its_end(log):
    with log.turn("s", buffered=True) as turn:
        turn.message("user", "Hi")
        turn.message("assistant", "Hello")
        assert log.head("s").version == 0

    events = list(log.read("s"))
    assert [event.type for event in events] == [
        "session.created", "turn.started", "message.added", "message.added", "turn.completed",
    ]  # fmt: skip
    assert [event.turn for event in events] == [0, 1, 1, 1, 1]
    assert (turn.number, turn.receipt.version) == (1, 5)


def test_a_buffered_turn_that_fails_is_recorded_too(log):
    with pytest.raises(ZeroDivisionError), log.turn("s", buffered=True) as turn:
        turn.message("user", "Hi")
        raise ZeroDivisionError("division by zero")

    assert types(log) == ["session.created", "turn.started", "message.added", "turn.failed"]


def test_of_a_buffered_turn_nothing_is_recorded_before_its_end(log):
    turn = log.turn("s", buffered=True).__enter__()
    turn.message("user", "Hi")

    assert log.sessions() == []


# ------------------------------------------------------------------------------------ together


def test_turns_may_overlap(log):
    with log.turn("s") as first:
        with log.turn("s") as second:
            second.message("user", "in the second")
            first.message("user", "in the first")
        log.append("s", [note("of nobody")])

    assert [(event.type, event.turn) for event in log.read("s")] == [
        ("session.created", 0), ("turn.started", 1), ("turn.started", 2), ("message.added", 2),
        ("message.added", 1), ("turn.completed", 2), ("note.taken", 2), ("turn.completed", 1),
    ]  # fmt: skip
    assert log.verify("s").ok


@only_on("sqlite", "postgres")
def test_an_event_may_belong_to_a_turn_that_began_elsewhere(open_log):
    here, elsewhere = open_log(), open_log()
    here.append("s", notes(1))
    turn = elsewhere.turn("s").__enter__()

    assert here.append("s", [note(turn=turn.number)]).version == 3


def test_a_turn_within_a_turn_keeps_the_number(log):
    outer, inner = log.turn("s", run_id="outer"), log.turn("s", run_id="inner", parent_run_id="outer")
    with outer, inner:
        inner.message("assistant", "working")

    assert (outer.number, inner.number) == (1, 1)
    assert log.head("s").turn == 1
    assert {event.turn for event in log.read("s")} == {0, 1}


def test_eight_turns_at_once_keep_their_events_together(log):
    def work(number):
        with log.turn("s") as turn:
            for _ in range(5):
                turn.record(note(number))
        return turn.number, number

    numbers = dict(in_threads(8, work))
    said = [(event.turn, event.payload["text"]) for event in log.read("s") if event.type == "note.taken"]
    assert sorted(said) == sorted((turn, number) for turn, number in numbers.items() for _ in range(5))
    assert log.verify("s").ok


# ------------------------------------------------------------------------------------ restored


def test_a_turn_that_was_restored_away_is_abandoned(log):
    log.append("s", notes(1))
    with pytest.raises(TurnAbandoned) as caught, log.turn("s") as turn:
        turn.message("user", "Hi")
        restored(log, "s", 1, 0)
        turn.message("assistant", "into the void")

    error = caught.value
    assert (error.session_id, error.turn, error.branch, error.actual) == ("s", 1, 4, 4)
    assert isinstance(error, VersionConflict)
    assert types(log) == ["note.taken", "turn.started", "message.added", "session.restored"]
    assert log.verify("s").ok


def test_a_turn_of_the_restored_branch_goes_on(log):
    with log.turn("s"):
        pass
    restored(log, "s", 1, 0)
    with log.turn("s") as turn:
        turn.message("user", "again")

    assert turn.number == 1
    head = log.head("s")
    assert (head.turn, head.branch) == (1, 4)
    assert log.verify("s").ok


def test_other_appends_do_not_abandon_a_turn(log):
    with log.turn("s") as turn:
        log.append("s", [Draft("session.renamed", {"name": "elsewhere"})])
        turn.message("user", "Hi")

    assert types(log)[-2:] == ["message.added", "turn.completed"]


def test_a_restore_is_told_from_all_turns_at_once(log):
    """Restores meet running turns: behind each restore stands nothing of a turn that began before it."""
    log.append("s", notes(1))

    def work(number):
        for _ in range(8):
            if number == 0:
                restored(log, "s", 1, 0)
                continue
            try:
                with log.turn("s") as turn:
                    began = turn.receipt.version
                    for _ in range(3):
                        turn.record(note(began))
            except TurnAbandoned:
                pass

    in_threads(4, work)
    events = list(log.read("s"))
    restores = [event.version for event in events if event.type == "session.restored"]
    for event in events[1:]:
        if event.type == "note.taken":
            began = event.payload["text"]
            assert not [version for version in restores if began < version < event.version]
    assert log.verify("s").ok
