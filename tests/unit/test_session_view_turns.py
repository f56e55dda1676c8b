"""The session view: turns, usage, state, and the session's own events."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from msgspec.structs import replace

from kern_events import Draft, Erased, Event, SessionLog, message, state_changed
from projections import SessionProjector, View


def recorded(*drafts: Draft) -> list[Event]:
    with SessionLog("memory:") as log:
        log.append("s", drafts)
        return list(log.read("s"))


def folded(events: list[Event]) -> View:
    projector = SessionProjector()
    return projector.fold(projector.initial(), events)


def view_of(*drafts: Draft) -> View:
    return folded(recorded(*drafts))


def started(**payload: Any) -> Draft:
    return Draft("turn.started", payload)


def completed(**usage: Any) -> Draft:
    return Draft("turn.completed", {"usage": usage})


def responded(turn: int | None = None, meta: dict[str, Any] | None = None, **usage: Any) -> Draft:
    return Draft("model.responded", {"usage": usage}, turn=turn, meta=meta)


def statuses(view: View) -> list[str]:
    return [turn.status for turn in view.turns]


def test_a_turn_is_open_until_its_end() -> None:
    events = recorded(started(run_id="r1"), completed(input_tokens=3))
    open, done = folded(events[:1]).turns[0], folded(events).turns[0]

    assert (open.number, open.status, open.run_id, open.ended_at) == (1, "open", "r1", None)
    assert (done.status, done.started_version, done.ended_version) == ("completed", 1, 2)
    assert (done.started_at, done.ended_at) == (events[0].at, events[1].at)
    assert done.usage == {"input_tokens": 3}


@pytest.mark.parametrize(("type", "status"), [("turn.failed", "failed"), ("turn.cancelled", "cancelled")])
def test_a_turn_may_end_otherwise(type: str, status: str) -> None:
    turn = view_of(started(), Draft(type, {"error": {"message": "no"}})).turns[0]

    assert (turn.status, turn.error) == (status, {"message": "no"})


def test_a_turn_without_an_end_is_interrupted_by_the_next() -> None:
    view = view_of(started(), started())

    assert statuses(view) == ["interrupted", "open"]
    assert view.turn == 2


def test_an_end_that_arrives_late_still_closes_its_turn() -> None:
    view = view_of(started(), started(), Draft("turn.completed", {}, turn=1))

    assert statuses(view) == ["completed", "open"]


def test_the_first_end_stands() -> None:
    view = view_of(started(), completed(input_tokens=1), completed(input_tokens=1))

    assert view.usage == {"input_tokens": 1}
    assert view.problems == ("version 3, turn.completed: the turn has ended before",)


def test_a_paused_turn_waits_through_a_later_one() -> None:
    pause = Draft("turn.paused", {"requirements": [{"tool": "pay"}]})

    view = view_of(started(), pause, started(), completed())

    assert statuses(view) == ["paused", "completed"]
    assert [(each.turn, each.requirements) for each in view.paused] == [(1, ({"tool": "pay"},))]


@pytest.mark.parametrize(
    ("then", "status"),
    [("turn.resumed", "open"), ("turn.completed", "completed"), ("turn.cancelled", "cancelled")],
)
def test_a_pause_is_over_when_the_turn_goes_on_or_ends(then: str, status: str) -> None:
    view = view_of(started(), Draft("turn.paused", {}), Draft(then, {}))

    assert view.paused == ()
    assert statuses(view) == [status]


def test_a_nested_run_opens_no_turn_and_its_usage_counts() -> None:
    nested = {"parent_run_id": "r1", "run_id": "r2"}
    view = view_of(
        started(run_id="r1"),
        started(**nested),
        Draft("turn.completed", {**nested, "usage": {"input_tokens": 5}}),
        completed(input_tokens=3),
    )

    assert statuses(view) == ["completed"]
    assert view.usage == view.turns[0].usage == {"input_tokens": 8}


def test_the_end_of_a_turn_replaces_what_its_responses_used() -> None:
    turn = (started(), responded(input_tokens=2), responded(input_tokens=3, cost=0.5))
    before, after = view_of(*turn), view_of(*turn, completed(input_tokens=6, cost=1.0))

    assert before.usage == before.turns[0].usage == {"input_tokens": 5, "cost": 0.5}
    assert after.usage == after.turns[0].usage == {"input_tokens": 6, "cost": 1.0}


def test_without_usage_at_the_end_the_responses_count() -> None:
    view = view_of(
        started(), responded(input_tokens=2), Draft("turn.completed", {}), responded(input_tokens=1)
    )

    assert view.usage == view.turns[0].usage == {"input_tokens": 3}


def test_a_response_after_the_end_said_its_usage_counts_no_more() -> None:
    view = view_of(started(), completed(input_tokens=2), responded(input_tokens=2))

    assert view.usage == {"input_tokens": 2}


def test_responses_of_a_nested_run_count_by_its_end() -> None:
    meta = {"parent_run_id": "r1"}
    view = view_of(
        started(),
        responded(meta=meta, input_tokens=5),
        Draft("turn.completed", {"usage": {"input_tokens": 5}}, meta=meta),
        Draft("turn.completed", {}),
    )

    assert view.usage == {"input_tokens": 5}


def test_usage_outside_a_turn_counts_in_the_session() -> None:
    assert view_of(responded(input_tokens=2)).usage == {"input_tokens": 2}


def test_only_numbers_are_summed() -> None:
    view = view_of(started(), completed(input_tokens=1, cached=True, model="m", details={"n": 1}))

    assert view.usage == {"input_tokens": 1}


def test_state_changes_by_ops() -> None:
    view = view_of(
        Draft("session.created", {"state": {"cart": {"items": [1]}, "old": 1}}),
        state_changed(
            [["set", ["cart", "n"], 2], ["append", ["cart", "items"], [2, {}]], ["unset", ["old"]]]
        ),
    )

    assert view.state == {"cart": {"items": (1, 2, {}), "n": 2}}
    assert not view.incomplete


@pytest.mark.parametrize(
    ("op", "state"),
    [
        (["set", ["a", "b"], 1], {"a": {"b": 1}, "n": 1, "l": (1,)}),
        (["set", ["n", "b"], 1], {"n": {"b": 1}, "l": (1,)}),
        (["append", ["n"], [1]], {"n": (1,), "l": (1,)}),
        (["append", ["a", "b"], [1]], {"a": {"b": (1,)}, "n": 1, "l": (1,)}),
    ],
)
def test_what_an_op_does_not_find_is_invented_and_said(op: list[Any], state: dict[str, Any]) -> None:
    view = view_of(Draft("session.created", {"state": {"n": 1, "l": [1]}}), state_changed([op]))

    assert view.state == state
    assert view.incomplete


@pytest.mark.parametrize(
    "op",
    [
        ["set", ["l", 0], 1], ["set", "l", 1], ["set", ["l"]], ["unset"], ["unset", ["l"], 1],
        ["move", ["l"], 1], ["append", ["l"], 1], ["append", [], [1]], ["set", [], 1], "set",
        ["set", ["a"] * 65, 1],
    ],
)  # fmt: skip
def test_what_is_no_op_is_skipped_and_said(op: Any) -> None:
    created, change = recorded(
        Draft("session.created", {"state": {"l": [1]}}), state_changed([["set", ["m"], 1]])
    )

    # Refused today, but rows may say it.
    view = folded([created, replace(change, payload={"ops": [op, ["set", ["m"], 1]]})])

    assert view.state == {"l": (1,), "m": 1}
    assert view.incomplete


def test_an_empty_path_is_the_whole_state() -> None:
    view = view_of(state_changed([["set", ["a"], 1], ["set", [], {"b": [1]}]]))

    assert view.state == {"b": (1,)}
    assert not view.incomplete


def test_unsetting_nothing_does_nothing() -> None:
    view = view_of(state_changed([["unset", ["a"]], ["unset", ["a", "b"]], ["set", ["c"], 1], ["unset", []]]))

    assert view.state == {}
    assert not view.incomplete


def test_a_change_shares_the_rest_of_the_state() -> None:
    events = recorded(
        Draft("session.created", {"state": {"a": {"x": {}}, "b": {"y": {}}}}),
        state_changed([["set", ["a", "x"], 1]]),
    )
    before, after = folded(events[:1]), folded(events[:1])
    after = SessionProjector().evolve(before, events[1])

    assert before.state == {"a": {"x": {}}, "b": {"y": {}}}
    assert after.state["b"] is before.state["b"]


def test_an_agent_has_a_state_of_its_own() -> None:
    change = Draft("state.changed", {"scope": "agent", "agent_id": "a1", "ops": [["set", ["n"], 1]]})

    view = view_of(change, state_changed([["set", ["n"], 2]]))

    assert view.agent_state == {"a1": {"n": 1}}
    assert view.state == {"n": 2}


def test_the_session_describes_itself() -> None:
    view = view_of(
        Draft("session.created", {"user_id": "ada", "name": "Trip", "metadata": {"tags": ["a"]}}),
        Draft("session.renamed", {"name": "Journey"}),
        Draft("session.described", {"metadata": {"tags": []}}),
        Draft("session.summarized", {"summary": "Short."}),
        Draft("session.closed", {}),
    )

    assert (view.user_id, view.name, view.metadata, view.summary, view.status) == (
        "ada", "Journey", {"tags": ()}, "Short.", "closed",
    )  # fmt: skip


def test_a_closed_session_is_opened_again_with_what_it_had() -> None:
    view = view_of(message("user", "Hi"), Draft("session.closed", {}), Draft("session.created", {}))

    assert view.status == "open"
    assert len(view.messages) == 1


def test_a_deleted_session_begins_again_while_versions_and_turns_go_on() -> None:
    with SessionLog("memory:") as log:
        log.append("s", [started(), message("user", "secret")])
        log.delete("s")
        log.append("s", [Draft("session.created", {}), started(), message("user", "Hi")])
        events = list(log.read("s"))

    view = folded(events)

    assert folded(events[:3]).status == "deleted"
    assert [each.content for each in view.messages] == ["Hi"]
    assert (view.version, view.turn, view.status, view.incomplete) == (6, 2, "open", False)
    assert [turn.number for turn in view.turns] == [2]


@pytest.mark.parametrize("type", ["app.custom", "session.mended"])
def test_an_unknown_type_passes_through_and_is_said(type: str) -> None:
    event = replace(recorded(message("user", "Hi"))[0], type=type)

    view = folded([event])

    assert (view.version, view.incomplete) == (1, True)
    assert view.problems == (f"version 1, {type}: an unknown type",)


def test_a_newer_type_version_is_not_read() -> None:
    event = replace(recorded(message("user", "Hi"))[0], type_version=2)

    view = folded([event])

    assert len(view.messages) == 0
    assert view.problems == ("version 1, message.added: a newer type version, 2",)


def test_an_erased_event_leaves_a_hole_and_what_its_header_says() -> None:
    events = [
        replace(event, payload=Erased()) for event in recorded(started(), message("user", "Hi"), completed())
    ]

    view = folded(events)

    assert statuses(view) == ["completed"]
    assert len(view.messages) == 0
    assert [problem.rpartition(": ")[2] for problem in view.problems] == ["erased"] * 3


def test_an_erased_event_that_the_view_does_not_read_is_no_problem() -> None:
    events = recorded(Draft("model.called", {"model": "m"}))

    assert not folded([replace(events[0], payload=Erased())]).incomplete


def test_problems_are_bounded_and_never_quote_a_payload() -> None:
    events = recorded(*[Draft("message.added", {"role": ["secret"], "content": "secret"}) for _ in range(50)])

    view = folded(events)

    assert len(view.problems) == 20
    assert "secret" not in "".join(view.problems)


def test_a_sum_stays_a_number_that_json_has() -> None:
    most = 1.7e308
    view = view_of(
        started(), responded(n=most), responded(n=most), completed(n=-most),
        started(), completed(n=most), started(), completed(n=most), started(), completed(n=2**63 - 1),
    )  # fmt: skip

    sums = [view.usage["n"], *(turn.usage["n"] for turn in view.turns)]
    assert all(map(math.isfinite, sums)), sums
    json.dumps(view.to_dict(), allow_nan=False)
