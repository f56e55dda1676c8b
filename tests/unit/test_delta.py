"""Ops from two states: they turn one into the other, and merge with what others did meanwhile."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kern_events.delta import apply_ops, state_ops
from kern_events.errors import InvalidEvent
from projections.frozen import apply_op, freeze, thaw

KEYS = st.sampled_from(["a", "b", "c", "", "é"])
SCALARS = st.sampled_from([None, True, False, 0, 1, 1.0, 0.0, -0.0, "", "x", "1"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)
STATES = st.dictionaries(KEYS, VALUES, max_size=4)


def said(state: Any) -> str:
    """The state as JSON, which tells True, 1 and 1.0 apart, and 0.0 and -0.0."""
    return json.dumps(state, sort_keys=True)


def applied(state: dict[str, Any], ops: list[Any]) -> dict[str, Any]:
    """The state after the ops, each of which has to find what it expects."""
    root = {key: freeze(value) for key, value in state.items()}
    for op in ops:
        assert apply_op(root, op) is None, op
    return {key: thaw(value) for key, value in root.items()}


@given(STATES, STATES)
def test_they_turn_one_state_into_the_other(before, after):
    given_before, given_after = copy.deepcopy(before), copy.deepcopy(after)

    result = applied(before, state_ops(before, after))

    assert said(result) == said(after)
    assert (said(before), said(after)) == (said(given_before), said(given_after))


@given(STATES)
def test_what_did_not_change_gives_none(state):
    assert state_ops(state, copy.deepcopy(state)) == []


@given(STATES, STATES, STATES)
def test_changes_of_different_keys_are_all_kept(shared, mine, theirs):
    base = {"mine": shared, "theirs": shared, "left": 1}

    ops = state_ops(base, {**base, "mine": mine})
    result = applied({**base, "theirs": theirs}, ops)

    assert said(result) == said({"mine": mine, "theirs": theirs, "left": 1})


def test_items_appended_by_two_writers_are_all_kept():
    base = {"log": ["a"]}
    one, two = state_ops(base, {"log": ["a", "b"]}), state_ops(base, {"log": ["a", "c", "d"]})

    assert one == [["append", ["log"], ["b"]]]
    assert applied(applied(base, one), two) == {"log": ["a", "b", "c", "d"]}


def test_the_first_items_of_an_empty_list_are_appended():
    assert state_ops({"log": []}, {"log": [1]}) == [["append", ["log"], [1]]]


@pytest.mark.parametrize("after", [["b"], ["b", "a"], [], [1, "a", "b"]])
def test_a_list_that_changed_otherwise_is_set_as_a_whole(after):
    assert state_ops({"log": ["a", "b"]}, {"log": after}) == [["set", ["log"], after]]


@pytest.mark.parametrize(("old", "new"), [(1, True), (1, 1.0), (0.0, -0.0), (0, False), ("1", 1), (None, {})])
def test_a_value_of_another_type_is_another_value(old, new):
    assert state_ops({"x": [old]}, {"x": [new]}) == [["set", ["x"], [new]]]
    assert state_ops({"x": old}, {"x": new}) == [["set", ["x"], new]]


def test_an_object_deeper_than_a_path_may_be_is_set_as_a_whole():
    def nested(depth: int, leaf: int) -> dict[str, Any]:
        return {"k": leaf} if depth == 1 else {"k": nested(depth - 1, leaf)}

    before, after = nested(70, 1), nested(70, 2)
    ops = state_ops(before, after)

    assert [(op[0], len(op[1])) for op in ops] == [("set", 64)]
    assert applied(before, ops) == after


@pytest.mark.parametrize("state", [None, [], "x", 1])
def test_a_state_that_is_no_object_is_refused(state):
    with pytest.raises(InvalidEvent, match="before"):
        state_ops(state, {})
    with pytest.raises(InvalidEvent, match="after"):
        state_ops({}, state)


@pytest.mark.parametrize(("before", "after"), [({}, {1: "x"}), ({1: "x"}, {}), ({"a": {}}, {"a": {None: 1}})])
def test_a_key_that_is_no_text_is_refused(before, after):
    with pytest.raises(InvalidEvent, match="not text"):
        state_ops(before, after)


@given(STATES, STATES)
def test_apply_ops_makes_of_a_state_what_the_view_makes_of_it(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    kept = said(before)

    assert said(apply_ops(before, state_ops(before, after))) == said(after)
    assert said(before) == kept


@given(
    STATES,
    st.lists(st.tuples(st.sampled_from(["set", "unset", "append"]), st.lists(KEYS, max_size=3), VALUES)),
)
def test_apply_ops_agrees_with_the_view_on_any_ops(state: dict[str, Any], drawn: list[Any]) -> None:
    ops = [[verb, path, *(() if verb == "unset" else (value,))] for verb, path, value in drawn]
    root = {key: freeze(value) for key, value in state.items()}
    for op in ops:
        apply_op(root, op)

    assert said(apply_ops(state, ops)) == said({key: thaw(value) for key, value in root.items()})
