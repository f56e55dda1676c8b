"""Ops from two states: they turn one into the other, and merge with what others did meanwhile."""

from __future__ import annotations

import copy
import json
from typing import Any

import jsonpatch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kern_events.delta import StateEditor, apply_ops, op_problem, state_ops
from kern_events.errors import InvalidEvent
from kern_events.exports.patches import patch_of
from kern_events.frozen import FrozenDict, FrozenList, freeze, thaw

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
    editor = StateEditor(freeze(state), frozen=True)
    for op in ops:
        assert editor.apply(op) is None, op
    after: dict[str, Any] = thaw(editor.finish())
    return after


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


OPS = st.tuples(
    st.sampled_from(["set", "unset", "append", "move", 1, None, []]),
    st.lists(KEYS, max_size=3) | st.lists(VALUES, max_size=2) | VALUES | st.just(["a"] * 65),
    VALUES,
    VALUES,
)
ANY_OPS = st.builds(lambda op, size: list(op[:size]), OPS, st.integers(0, 4)) | VALUES


@given(STATES, st.lists(ANY_OPS, max_size=6))
def test_the_view_the_plain_fold_and_the_patches_agree_on_any_ops(
    state: dict[str, Any], ops: list[Any]
) -> None:
    kept, given_ops = said(state), copy.deepcopy(ops)
    view, stream, patched = StateEditor(freeze(state), frozen=True), StateEditor(state), state
    for op in ops:
        assert (view.apply(op) == "not an op") == (op_problem(op) is not None)
        patched = jsonpatch.apply_patch(patched, patch_of(stream, op))

    assert said(apply_ops(state, ops)) == said(view.finish()) == said(patched) == said(stream.finish())
    assert (said(state), ops) == (kept, given_ops)
    assert_frozen(view.finish())


def assert_frozen(value: Any) -> None:
    assert type(value) not in (dict, list)
    if isinstance(value, (FrozenDict, FrozenList)):
        for item in value.values() if isinstance(value, FrozenDict) else value:
            assert_frozen(item)


@pytest.mark.parametrize("ops", [None, 5, "set", {}, {"set": 1}, [5], [None, [], [[]]], [["set"]]])
def test_what_are_no_ops_leave_the_very_same_state(ops: Any) -> None:
    state = {"a": {"b": [1]}}

    assert apply_ops(state, ops) is state


def test_the_ops_of_a_batch_copy_what_they_touch_once() -> None:
    rest = freeze({"x": [1]})
    editor = StateEditor(FrozenDict(log=FrozenList(range(1_000)), rest=rest), frozen=True)
    editor.apply(["append", ["log"], [0]])
    opened = editor.now["log"]
    for n in range(1_000):
        editor.apply(["append", ["log"], [n]])
        editor.apply(["set", ["deep", "er"], n])

    assert editor.now["log"] is opened  # Extended in place.
    after = editor.finish()
    assert (len(after["log"]), after["deep"], after["rest"] is rest) == (2_001, {"er": 999}, True)


def test_ops_come_from_what_a_view_holds_too() -> None:
    before = freeze({"log": [1, {"a": [2]}], "kept": {"x": [1]}})

    ops = state_ops(before, {**before, "log": [*before["log"], 3], "new": before["kept"]})

    assert ops == [["append", ["log"], [3]], ["set", ["new"], {"x": (1,)}]]
    assert said(applied(before, ops)) == said({**before, "log": [1, {"a": [2]}, 3], "new": {"x": [1]}})
