"""Events that anybody may have recorded: what folding cannot use it passes over, and others are not hurt."""

from __future__ import annotations

import json
import logging

import pytest
from agno.db.base import SessionType
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from kern_events import Draft, Event
from kern_events.adapters.agno.folding import AgnoProjector, Fold, Stored
from kern_events.adapters.agno.tables import Tables
from kern_events.spi import Kind
from tests.adapters.test_agno_edges import begun, run_ids
from tests.agno_replay import check_replay

TYPES = (
    *("session.created", "session.renamed", "session.described", "session.summarized", "session.restored"),
    *("session.forked", "session.cleared", "session.deleted", "state.changed", "message.added"),
    *("message.replaced", "message.removed", "tool.called", "tool.returned", "tool.failed", "turn.started"),
    *("turn.paused", "turn.completed", "agno.run.changed", "agno.run.deleted", "agno.session.changed"),
    *("agno.part.added", "note.made"),
)
KEYS = (
    *("session", "message", "run", "ops", "messages", "parts", "run_id", "parent_run_id", "run_data", "role"),
    *("session_data", "session_state", "session_name", "name", "metadata", "user_id", "state", "scope"),
    *("tool_calls", "id", "content", "result", "error", "call_id", "summary", "session_type", "created_at"),
)
ids = st.sampled_from(["r1", "r2", "s", "p"])
scalars = st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | ids | st.text(max_size=3)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=8,
)
paths = st.lists(st.sampled_from(KEYS) | values, max_size=3) | values
ops = st.lists(
    st.tuples(st.sampled_from(["set", "unset", "append"]), paths, values).map(list) | values, max_size=3
)
layouts = st.lists(st.tuples(st.integers(-2, 3), st.integers(-2, 9)).map(list) | values, max_size=4) | values
natives = st.fixed_dictionaries(
    {},
    optional={
        "session": ops | values, "message": ops | values, "run": ids | values, "ops": ops | values,
        "messages": layouts, "parts": values,
    },
)  # fmt: skip
payloads = st.fixed_dictionaries(
    {}, optional={"ops": ops | values, "run_id": ids | values, "parent_run_id": ids | values}
) | st.dictionaries(st.sampled_from(KEYS), values, max_size=5)


def as_bytes(value):
    return json.dumps(value).encode()


events = st.builds(
    lambda type, payload, native, kind, session_id, version: Event(
        "n", session_id, version, 1, bytes(16), type, 1, kind, 1, None, 1, None, None, None, 0, None,
        payload, native, bytes(16), bytes(32),
    ),
    st.sampled_from(TYPES),
    payloads | values,
    st.none() | natives.map(as_bytes) | values.map(as_bytes) | st.binary(max_size=20),
    st.sampled_from([0, int(Kind.TURN_START)]),
    st.sampled_from(["s", "p"]),
    st.integers(1, 9),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(events, max_size=12))
def test_whatever_is_recorded_can_be_folded(recorded):
    stored = AgnoProjector().fold(Stored(), recorded)

    assert stored.session is None or type(stored.session) is dict
    assert all(type(run_id) is str and type(row) is dict for run_id, row in stored.runs.items())


@pytest.mark.parametrize("data", [b"[" * 100_000, b"\xff", b"9" * 5_000, b"null", as_bytes([[]])])
def test_bytes_that_are_no_native_say_nothing(data):
    fold = Fold(Stored({"session_type": "agent"}))
    fold.apply("agno.run.changed", {}, data)

    assert fold.finish().session == {"session_type": "agent"}


def test_a_layout_makes_no_more_messages_than_there_are():
    fold = Fold(Stored({}))
    fold.messages = [{"role": "user"}] * 100
    fold.apply("agno.run.changed", {}, as_bytes({"run": "r", "messages": [[0, 100]] * 1_000}))

    assert len(fold.finish().runs["r"]["run_data"]["messages"]) == 100


DEEP = json.loads('{"a":' * 900 + "1" + "}" * 900)
HOSTILE = {
    "shapes": ("agno.session.changed", {"session": 5, "run": [], "ops": {}, "message": [5], "messages": 5}),
    "run data": ("agno.run.changed", {"run": "r1", "ops": [["unset", ["run_data"]]]}),
    "run of a list": ("agno.run.changed", {"run": "r1", "ops": [["set", ["run_data"], [5]]]}),
    "messages": ("agno.run.changed", {"run": "r1", "messages": [5, [1], {"role": 7}]}),
    "run index": ("agno.run.changed", {"run": "r1", "ops": [["set", ["run_index"], "never"]]}),
    "session data": ("agno.session.changed", {"session": [["set", ["session_data"], 5]]}),
    "time": ("agno.session.changed", {"session": [["set", ["created_at"], "never"]]}),
    "type": ("agno.session.changed", {"session": [["set", ["session_type"], ["never"]]]}),
    "depth": ("agno.session.changed", {"session": [["set", ["metadata"], DEEP]]}),
    "metrics": ("agno.session.changed", {"session": [["set", ["session_data", "session_metrics"], "never"]]}),
    "summary": ("agno.session.changed", {"session": [["set", ["summary"], {"never": 1}]]}),
    "role": ("agno.run.changed", {"run": "r1", "messages": [{"never": 5}]}),
    "tools": ("agno.run.changed", {"run": "r1", "ops": [["set", ["run_data", "tools"], [3]]]}),
    "deleted": ("agno.run.deleted", {}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_one_session_that_cannot_be_shown_hurts_no_other(place, name, caplog):
    db = begun(begun(place.open(), "r1"), "r9", session_id="t")
    type, native = HOSTILE[name]
    db.sessions.append("s", [Draft(type, {"run_id": ["r1"]}, native=as_bytes(native))])
    before = db.sessions.head("s")
    with caplog.at_level(logging.ERROR, "kern_events.agno"):
        found = {session.session_id for session in db.get_sessions()}

    assert "t" in found and run_ids(db, "t") == ["r9"]
    assert db.sessions.head("s") == before
    assert db.sessions.verify().ok
    said = [record.getMessage() for record in caplog.records if record.name.startswith("kern_events")]
    assert "never" not in repr(said)
    check_replay(db, "t")


def test_a_row_that_agno_cannot_read_is_left_out_of_the_list(place, caplog):
    db = begun(begun(place.open(), "r1"), "r9", session_id="t")
    schema = f'"{place.options["db_schema"]}".' if place.backend == "postgres" else ""
    with place.plain().db_engine.begin() as connection:
        change = text(f"UPDATE {schema}agno_sessions SET summary = :summary WHERE session_id = 's'")
        connection.execute(change, {"summary": '{"x": 1}'})
    with caplog.at_level(logging.ERROR, "kern_events.agno"):
        found = [session.session_id for session in db.get_sessions()]

    assert found == ["t"]
    assert "cannot be listed" in caplog.text
    assert {record["session_id"] for record in db.get_sessions(deserialize=False)[0]} == {"s", "t"}


ROWS = {
    "another's": {},
    "no type": {"ops": [["set", ["created_at"], 1]], "run": "r3"},
    "a dict": {"ops": [["set", ["run_type"], {"never": 1}], ["set", ["created_at"], 1]], "run": "r3"},
    "a time": {"ops": [["set", ["run_type"], "agent"], ["set", ["created_at"], "never"]], "run": "r3"},
    "far": {"ops": [["set", ["run_type"], "agent"], ["set", ["created_at"], 2**63]], "run": "r3"},
    "nul": {"ops": [["set", ["run_type"], "agent\0"], ["set", ["created_at"], 1]], "run": "r3"},
}


@pytest.mark.parametrize("name", ROWS)
def test_a_run_that_is_no_row_of_its_session_is_left_out(place, name, caplog):
    db = begun(begun(place.open(), "r1"), "r9", session_id="t")
    copied = [
        Draft(event.type, event.payload, native=as_bytes(ROWS[name]) if ROWS[name] else event.native)
        for event in db.sessions.read("t")
        if event.type == "turn.completed"
    ]
    db.sessions.append("s", [*copied, Draft("note.made", {})])
    with caplog.at_level(logging.ERROR, "kern_events.agno"):
        assert run_ids(db) == ["r1"] and run_ids(db, "t") == ["r9"]

    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and "without 1 of its runs" in said[0] and "never" not in said[0]
    begun(db, "r4")
    assert run_ids(db) == ["r1", "r4"] and db.sessions.verify().ok


def test_what_a_column_cannot_hold_does_not_hide_the_session(place):
    db = begun(place.open(), "r1")
    ops = [["set", ["user_id"], {"a": 1}], ["set", ["updated_at"], "x"], ["set", ["metadata"], {"a": "\0"}]]
    db.sessions.append("s", [Draft("agno.session.changed", {}, native=as_bytes({"session": ops}))])

    assert run_ids(db) == ["r1"]
    assert db.rename_session("s", SessionType.AGENT, "renamed").session_data["session_name"] == "renamed"


def test_a_session_that_cannot_be_shown_is_tried_once_for_each_version(place, monkeypatch, caplog):
    db = begun(place.open(), "r1")
    db.sessions.append("s", [Draft("note.made", {})])
    monkeypatch.setattr(Tables, "write_runs", lambda *given: 1 / 0)
    with caplog.at_level(logging.ERROR, "kern_events.agno"):
        counts = []
        for _ in range(3):
            db.get_sessions()
            counts.append(len(caplog.records))
        db.sessions.append("s", [Draft("note.made", {})])
        db.get_sessions()

    assert counts == [1, 1, 1] and len(caplog.records) == 2
    monkeypatch.undo()
    assert run_ids(db) == ["r1"]
