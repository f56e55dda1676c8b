"""What every verb takes: plain JSON and the values of a view; nothing that would have to be converted."""

from __future__ import annotations

import collections
import copy
import json
import pickle
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kern_events import (
    Draft,
    SessionLog,
    import_events,
    message,
    state_changed,
    tool_called,
    tool_returned,
)
from kern_events.errors import InvalidEvent
from kern_events.frozen import freeze, thaw
from tests import facade
from tests.facade import only_on
from tests.hostile import Number, Word
from tests.writers import note, unchecked

BAD_CHANGES = [
    ({"ops": [5]}, "ops[0]"),
    ({"ops": None}, "ops"),
    ({}, "ops"),
    ({"ops": "set"}, "ops"),
    ({"ops": {"set": ["a"]}}, "ops"),
    ({"ops": [["set", ["a"], 1], ["move", ["a"], 1]]}, "ops[1][0]"),
    ({"ops": [[]]}, "ops[0][0]"),
    ({"ops": [[["set"], ["a"], 1]]}, "ops[0][0]"),
    ({"ops": [["set", ["a"]]]}, "ops[0]"),
    ({"ops": [["unset", ["a"], 1]]}, "ops[0]"),
    ({"ops": [["set", "a", 1]]}, "ops[0][1]"),
    ({"ops": [["set", ["a"] * 65, 1]]}, "ops[0][1]"),
    ({"ops": [["set", ["a", 0], 1]]}, "ops[0][1][1]"),
    ({"ops": [["set", [], [1]]]}, "ops[0][2]"),
    ({"ops": [["append", [], [1]]]}, "ops[0][1]"),
    ({"ops": [["append", ["a"], "text"]]}, "ops[0][2]"),
    ({"ops": [], "scope": "user"}, "scope"),
    ({"ops": [], "scope": ["session"]}, "scope"),
    ({"ops": [], "scope": "agent", "agent_id": 7}, "agent_id"),
]


@pytest.fixture
def sessions(facade_kind: str, address: Any, loop: Any) -> Iterator[Any]:
    with facade.open_sessions(facade_kind, loop, address.url, namespace=address.namespace) as sessions:
        yield sessions


@only_on("memory")
@pytest.mark.parametrize(("payload", "path"), BAD_CHANGES)
def test_ops_that_are_none_are_refused_with_their_place(
    log: Any, payload: dict[str, Any], path: str
) -> None:
    draft = Draft("state.changed", payload)
    for write in (
        lambda: log.append("s", [draft]),
        lambda: log.append_many([("s", [draft], None)]),
    ):
        with pytest.raises(InvalidEvent) as refused:
            write()
        assert refused.value.path == f"drafts[0].payload.{path}"
    assert log.head("s").version == 0


@pytest.mark.parametrize(("payload", "path"), [each for each in BAD_CHANGES if list(each[0]) == ["ops"]])
def test_the_helper_refuses_them_already(payload: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidEvent) as refused:
        state_changed(payload["ops"])

    assert refused.value.path == path


def test_the_recorder_refuses_them_and_goes_on(log: Any) -> None:
    with log.turn("s") as turn:
        for wrong in (lambda: turn.append_state("a", "text"), lambda: turn.set_state([], 1)):
            with pytest.raises(InvalidEvent):
                wrong()
        turn.set_state(["a", "b"], 1)

    assert [event.type for event in log.read("s")][2:] == ["state.changed", "turn.completed"]


def test_rows_that_hold_others_are_imported_and_folded(sessions: Any) -> None:
    with SessionLog("memory:", namespace=sessions.namespace) as earlier:
        with unchecked():
            earlier.append("s", [Draft("state.changed", {"ops": [5, ["set", ["a"], 1]]}), note("more")])
        assert import_events(_sync(sessions), earlier.export("s")).ok

    view = sessions.load("s")
    assert (view.version, view.state, view.incomplete) == (2, {"a": 1}, True)
    assert view.problems == ("version 1, state.changed: not an op", *view.problems[1:])
    with sessions.turn("s") as turn:
        turn.set_state("b", 2)
    assert sessions.load("s").state == {"a": 1, "b": 2}


def _sync(sessions: Any) -> SessionLog:
    return sessions if isinstance(sessions, SessionLog) else sessions.inner._sessions


Write = Callable[[Any, Any, Any], object]
WRITES: dict[str, Write] = {
    "set_state": lambda log, turn, value: turn.set_state("x", value),
    "set_state, deep": lambda log, turn, value: turn.set_state(["x", "y"], {"z": [value]}),
    "append_state, an item": lambda log, turn, value: turn.append_state("x", [value]),
    "tool_call": lambda log, turn, value: turn.tool_call("f", {"x": value}),
    "tool_result": lambda log, turn, value: turn.tool_result("c", value),
    "message": lambda log, turn, value: turn.message("user", [{"type": "json", "json": value}]),
    "message, a call": lambda log, turn, value: turn.message(
        "assistant", tool_calls=[{"id": "c", "name": "f", "arguments": "{}", "more": value}]
    ),
    "record": lambda log, turn, value: turn.record(Draft("app.said", {"x": value})),
    "complete": lambda log, turn, value: turn.complete(usage={"details": value}),
    "pause": lambda log, turn, value: turn.pause(value),
    "append": lambda log, turn, value: log.append("t", [Draft("app.said", {"x": value})]),
    "append, meta": lambda log, turn, value: log.append("t", [Draft("app.said", {}, meta={"x": value})]),
    "append_many": lambda log, turn, value: log.append_many([("t", [Draft("app.said", {"x": value})], None)]),
    "message()": lambda log, turn, value: log.append("t", [message("user", [{"type": "x", "x": value}])]),
    "tool_called()": lambda log, turn, value: log.append("t", [tool_called("c", "f", {"x": value})]),
    "tool_returned()": lambda log, turn, value: log.append("t", [tool_returned("c", value)]),
    "state_changed()": lambda log, turn, value: log.append("t", [state_changed([["set", ["x"], value]])]),
    "turn, meta": lambda log, turn, value: enter(log.turn("t", meta={"x": value})),
}
# What is given whole, where nothing but an object or an array would do.
WHOLE: dict[str, tuple[Write, str]] = {
    "append_state": (lambda log, turn, value: turn.append_state("x", value), "list"),
    "state_changed()": (lambda log, turn, value: state_changed(value), "ops"),
    "an op": (lambda log, turn, value: log.append("t", [state_changed([value])]), "op"),
    "a path": (lambda log, turn, value: log.append("t", [state_changed([["set", value, 1]])]), "path"),
    "content": (lambda log, turn, value: turn.message("user", value), "parts"),
    "tool_calls": (lambda log, turn, value: turn.message("assistant", tool_calls=value), "calls"),
    "a call": (lambda log, turn, value: turn.message("assistant", tool_calls=[value]), "call"),
    "arguments": (lambda log, turn, value: turn.tool_call("f", value), "dict"),
    "usage": (lambda log, turn, value: turn.complete(usage=value), "dict"),
    "meta": (lambda log, turn, value: log.append("t", [Draft("app.said", {}, meta=value)]), "dict"),
    "payload": (lambda log, turn, value: log.append("t", [Draft("app.said", value)]), "dict"),
    "turn, meta": (lambda log, turn, value: enter(log.turn("t", meta=value)), "dict"),
}
# As JSON has them; a tuple or a mapping can stand for each.
SHAPES: dict[str, Any] = {
    "list": [1, [2, {"a": [3]}]], "ops": [["set", ["a"], [1]]], "op": ["set", ["a"], [1]], "path": ["a", "b"],
    "parts": [{"type": "text", "text": "a"}], "calls": [{"id": "c", "name": "f", "arguments": "{}"}],
    "call": {"id": "c", "name": "f", "arguments": "{}"}, "dict": {"a": [1, {"b": [2]}]},
}  # fmt: skip


def enter(turn: Any) -> None:
    with turn:
        pass


class Items(list[Any]):
    """A list of somebody's own."""


def deep() -> list[Any]:
    """Values that nest in thousands, at which the encoder would end the process, or without an end."""
    endless: list[Any] = []
    endless.append(endless)
    lists: Any = []
    doubled: Any = []
    tuples: Any = ()
    for _ in range(4_000):
        lists, tuples, doubled = [lists], (tuples,), [doubled, doubled]
    return [endless, [endless, endless], lists, tuples, {"a": [tuples]}, doubled]


def enums() -> list[Any]:
    """What compares equal to a value, and would come back as that."""
    return [Word.YES, Number.ONE, [Word.YES], {"a": Number.ONE}, {Word.YES: 1}]


def others(value: Any) -> list[Any]:
    """What is like this value and would not come back as it is."""
    if isinstance(value, dict):
        return [types.MappingProxyType(value), collections.OrderedDict(value)]
    return [tuple(value), Items(value)]


@pytest.fixture
def turn(sessions: Any) -> Iterator[Any]:
    with sessions.turn("s") as turn:
        turn.set_state("seen", SHAPES)
        yield turn


@only_on("memory")  # What is refused is refused before there is a database.
@pytest.mark.parametrize("name", WRITES)
def test_a_value_is_taken_or_refused_whatever_the_verb(name: str, sessions: Any, turn: Any) -> None:
    write, before = WRITES[name], sessions.head("s")
    for wrong in (*others([1, 2]), [(1, 2)], {"a": ()}, *others({"a": 1}), {1}, b"x", *enums(), *deep()):
        with pytest.raises(InvalidEvent):
            write(sessions, turn, wrong)
    assert (sessions.head("s"), sessions.head("t").version) == (before, 0)

    write(sessions, turn, sessions.load("s").state["seen"])

    session_id = "s" if sessions.head("t").version == 0 else "t"
    recorded = json.dumps([[event.payload, event.meta] for event in sessions.read(session_id)])
    plain = json.dumps(SHAPES)
    assert recorded.replace(r"\"", '"').replace(" ", "").count(plain.replace(" ", "")) >= 1


@only_on("memory")
@pytest.mark.parametrize("name", WHOLE)
def test_so_is_what_is_given_whole(name: str, sessions: Any, turn: Any) -> None:
    write, shape = WHOLE[name]
    for wrong in others(SHAPES[shape]):
        with pytest.raises(InvalidEvent):
            write(sessions, turn, wrong)

    write(sessions, turn, sessions.load("s").state["seen"][shape])


@only_on("memory")
def test_texts_are_no_enums_either(log: Any) -> None:
    with log.turn("s") as turn:
        for say in (
            lambda: turn.message(Word.YES, "hi"),
            lambda: turn.message("user", Word.YES),
            lambda: turn.message("user", "hi", name=Word.YES),
            lambda: turn.tool_call(Word.YES),
            lambda: turn.tool_result(Word.YES, "ok"),
            lambda: turn.tool_error("c", Word.YES),
            lambda: turn.set_state(Word.YES, 1),
            lambda: turn.set_state(["a", Word.YES], 1),
            lambda: turn.unset_state(Word.YES),
            lambda: turn.fail(Word.YES),
            lambda: log.describe("s", name=Word.YES),
            lambda: log.describe("s", metadata={"a": Word.YES}),
            lambda: log.append(Word.YES, [note()]),
            lambda: log.append("s", [note()], idempotency_key=Word.YES),
        ):
            with pytest.raises(InvalidEvent):
                say()

    assert [event.type for event in log.read("s")] == ["session.created", "turn.started", "turn.completed"]


def test_a_buffered_turn_takes_the_same(sessions: Any) -> None:
    with sessions.turn("s", buffered=True) as turn:
        for wrong in others([1]):
            with pytest.raises(InvalidEvent):
                turn.set_state("x", wrong)
        turn.set_state("x", {"a": [1]})

    assert sessions.load("s").state == {"x": {"a": (1,)}}


def test_the_values_of_a_view_are_values(sessions: Any) -> None:
    with sessions.turn("s") as turn:
        turn.set_state("seen", SHAPES)
        turn.complete(usage={"tokens": 1})
    view = sessions.load("s")

    for value in (view.state, view.state["seen"]["list"], view.metadata, view.usage, view.agent_state):
        plain = json.loads(json.dumps(value))
        for same in (copy.deepcopy(value), copy.copy(value), pickle.loads(pickle.dumps(value))):
            assert (same, type(same), json.dumps(same)) == (value, type(value), json.dumps(plain))
    assert json.dumps(dict(view.state)) == json.dumps({"seen": SHAPES})


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.update(a=1), lambda state: state.pop("seen"), lambda state: state.clear(),
        lambda state: state.popitem(), lambda state: state.setdefault("a", 1),
        lambda state: state.__setitem__("a", 1), lambda state: state.__delitem__("seen"),
        lambda state: state.__ior__({"a": 1}), lambda state: state["seen"]["dict"].update(a=1),
        lambda state: state["seen"]["list"].append(1), lambda state: state["seen"]["list"].__setitem__(0, 1),
    ],
)  # fmt: skip
def test_and_nothing_can_change_them(change: Callable[[Any], object]) -> None:
    state = freeze({"seen": SHAPES})

    with pytest.raises((TypeError, AttributeError)):
        change(state)
    assert thaw(state) == {"seen": SHAPES}
