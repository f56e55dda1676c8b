"""Folding: all at once equals one by one, nothing makes the session view fail, and failures are named."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kern_events import Draft, Erased, Event, EventTypes, SessionLog
from projections import ProjectionFailed, SessionProjector, View
from projections.fold import fold
from projections.session.projector import _HANDLERS

words = st.sampled_from(["", "a", "b", "user", "assistant", "tool", "system", "session", "agent", "\0", "ü"])
ids = st.sampled_from("abc")
values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**60) | st.sampled_from([0.5, -2.0]) | words,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2),
    max_leaves=4,
)
maybe_ids = ids | ids | ids | values
calls = st.fixed_dictionaries({"id": maybe_ids, "name": maybe_ids, "arguments": words | values})
parts = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "refusal", "file", "x"]), "text": words | values}
)
contents = st.none() | words | st.lists(parts | values, max_size=2) | values
messages = st.fixed_dictionaries(
    {"role": words | words | values, "content": contents, "id": maybe_ids, "tool_call_id": st.none() | ids},
    optional={"tool_calls": st.lists(calls | values, max_size=3), "name": words | values},
)
usages = st.fixed_dictionaries({"input_tokens": st.integers(0, 9)}) | values
paths = st.lists(ids, max_size=3) | values
ops = (
    st.tuples(st.just("set"), paths, values)
    | st.tuples(st.just("unset"), paths)
    | st.tuples(st.just("append"), paths, st.lists(values, max_size=2))
).map(list)
run = {"usage": usages, "error": values, "run_id": values, "requirements": values, "agent_id": words}
shapes: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "session": {"user_id": values, "name": values, "metadata": values, "state": values, "summary": values},
    "turn": run,
    "model": run,
    "messages": {
        "through": ids,
        "summary": words | values,
        "replacement": st.lists(messages | values, max_size=2),
    },
    "tool": {
        "call_id": maybe_ids,
        "name": st.none() | ids,
        "arguments": words,
        "result": values,
        "error": words,
    },
    "state": {
        "scope": st.sampled_from(["session", "agent", "x"]),
        "ops": st.lists(ops | values, max_size=3) | values,
    },
}
types = st.sampled_from([*_HANDLERS, *["message.added", "tool.called", "tool.returned"] * 5, "app.custom"])


def payloads(type: str) -> st.SearchStrategy[Any]:
    family = type.partition(".")[0]
    shape = messages if family == "message" else st.fixed_dictionaries({}, optional=shapes.get(family, {}))
    return shape | shape | shape | values | st.just(Erased())


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """Events as no log would record them: any type with any payload, kind, turn and type version."""
    count = draw(st.integers(0, 20))
    return [draw(events(version)) for version in range(1, count + 1)]


@st.composite
def events(draw: st.DrawFn, version: int) -> Event:
    type = draw(types)
    kind = draw(st.integers(0, 2)) if type.startswith("turn.") else 0
    type_version = draw(st.sampled_from([1] * 19 + [2]))
    meta = draw(st.sampled_from([None, {"parent_run_id": "r"}, {"agent_id": "a"}]))
    return Event(
        "default", "s", version, version, version.to_bytes(16, "big"), type, type_version, kind,
        draw(st.integers(0, 3)), None, 1_000 * version, None, meta, None, 0, None, draw(payloads(type)), None,
        None, bytes(32),
    )  # fmt: skip


@given(histories(), st.integers(0, 20))
def test_folding_all_at_once_equals_evolving_one_by_one(history: list[Event], cut: int) -> None:
    projector = SessionProjector()
    one_by_one = projector.initial()
    for event in history:
        one_by_one = projector.evolve(one_by_one, event)

    at_once = projector.fold(projector.initial(), history)
    in_two = projector.fold(projector.fold(projector.initial(), history[:cut]), history[cut:])

    assert at_once == one_by_one == in_two
    assert (at_once.context is at_once.messages) == (one_by_one.context is one_by_one.messages)


@given(histories())
def test_whatever_is_recorded_makes_a_view_that_json_can_say(history: list[Event]) -> None:
    view = SessionProjector().fold(View(), history)

    copy = view.to_dict()
    assert msgspec.json.decode(msgspec.json.encode(copy)) == copy
    assert view.version == len(history)
    assert view.incomplete == bool(view.problems)
    assert all(len(message.to_openai()) >= 2 for message in view.messages)


@given(histories(), histories())
@settings(max_examples=50)
def test_folding_on_never_changes_the_view_before(before: list[Event], after: list[Event]) -> None:
    projector = SessionProjector()
    view = projector.fold(projector.initial(), before)
    copy = view.to_dict()

    projector.fold(view, after)

    assert view.to_dict() == copy


class Failing:
    """Counts events, and fails at those of one type."""

    name = "failing"
    version = 1
    scope: Literal["live"] = "live"

    def initial(self) -> int:
        return 0

    def evolve(self, view: int, event: Event) -> int:
        if event.type == "app.poison":
            raise ValueError("poison")
        return view + 1


class Quick(Failing):
    """Has a fold that is never right."""

    def fold(self, view: int, events: Sequence[Event]) -> int:
        raise KeyError("quick")


def recorded(*types: str) -> list[Event]:
    with SessionLog("memory:") as log:
        log.append("s", [Draft(type, {}) for type in types])
        return list(log.read("s"))


@pytest.mark.parametrize("projector", [Failing(), Quick()])
def test_a_failure_names_projector_session_and_version(projector: Failing) -> None:
    with pytest.raises(ProjectionFailed) as caught:
        fold(projector, 0, recorded("app.fine", "app.poison"), EventTypes())

    assert (caught.value.projector, caught.value.session_id, caught.value.version) == ("failing", "s", 2)
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_fold_that_raises_does_no_harm_where_evolve_does_not() -> None:
    assert fold(Quick(), 0, recorded("a", "b"), EventTypes()).view == 2


def test_the_error_survives_a_process_boundary() -> None:
    error: Any = pickle.loads(pickle.dumps(ProjectionFailed("p", "s", 3)))

    assert (error.projector, error.session_id, error.version) == ("p", "s", 3)
    assert str(error) == "projector 'p' failed at version 3 of session 's'"
