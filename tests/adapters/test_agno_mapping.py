"""Rows to events and back, for rows of any shape: nothing is lost, whatever Agno will put into them."""

from __future__ import annotations

import json

from hypothesis import example, given, settings
from hypothesis import strategies as st

from kern_events import Sessions
from kern_events.adapters.agno.drafting import Drafting, Place, RunChange, fits_within
from kern_events.adapters.agno.folding import AgnoProjector
from kern_events.adapters.agno.merging import added_up, merged_data
from kern_events.codec import LARGEST_PAYLOAD_BYTES

KEYS = st.sampled_from(["a", "b", "id", "role", "messages", "session_state", ""])
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.text(max_size=5)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=4)
IDS = st.sampled_from(["m1", "m2", "m3", "m4"])
CALLS = st.lists(
    st.fixed_dictionaries(
        {"id": IDS, "type": st.just("function"), "function": st.just({"name": "f", "arguments": "{}"})}
    ),
    max_size=2,
)
MEDIA = st.lists(
    st.dictionaries(
        st.sampled_from(["content", "url", "mime_type", "format", "id"]),
        st.sampled_from(["YWJj", "data:x;base64,YQ==", "image/png"]) | VALUES,
        max_size=3,
    ),
    max_size=2,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"id": IDS, "role": st.sampled_from(["user", "assistant", "tool", "system"])},
        optional={
            "content": VALUES, "tool_call_id": IDS, "tool_calls": CALLS | VALUES, "metrics": OBJECTS,
            "from_history": st.booleans(), "tool_call_error": st.booleans(), "tool_name": VALUES,
            "tool_args": VALUES, "reasoning_content": st.text(max_size=3) | VALUES, "images": MEDIA | VALUES,
            "audio": MEDIA, "files": MEDIA,
        },
    ),
    max_size=5,
)  # fmt: skip
STATUSES = st.sampled_from(
    ["COMPLETED", "PAUSED", "RUNNING", "ERROR", "CANCELLED", "REGENERATED", None, "NEW"]
)
RUNS = st.fixed_dictionaries(
    {
        "run_type": st.sampled_from(["agent", "workflow"]),
        "parent_run_id": st.sampled_from([None, "r1", "r9"]),
        "status": STATUSES,
        "run_index": st.integers(0, 9),
        "run_data": st.fixed_dictionaries(
            {}, optional={"messages": MESSAGES | VALUES, "content": VALUES, "session_state": OBJECTS | VALUES,
                          "metrics": OBJECTS, "workflow_id": st.just("w"), "input": VALUES, "x": VALUES,
                          "images": MEDIA,
                          "reasoning_content": SCALARS, "response_audio": MEDIA | OBJECTS},
        ),
    }
)  # fmt: skip
SESSIONS = st.fixed_dictionaries(
    {"session_type": st.just("agent"), "user_id": st.sampled_from([None, "ada", "bob"])},
    optional={
        "session_data": st.none() | st.dictionaries(
            st.sampled_from(["session_state", "session_name", "session_metrics", "x"]), VALUES | OBJECTS
        ),
        "metadata": st.none() | OBJECTS, "summary": st.none() | OBJECTS,
        "agent_id": st.sampled_from([None, "a"]), "updated_at": st.integers(0, 9),
    },
)  # fmt: skip
STEPS = st.lists(
    st.tuples(SESSIONS, st.dictionaries(st.sampled_from(["r1", "r2", "r3"]), st.none() | RUNS, max_size=2)),
    min_size=1,
    max_size=5,
)


TWICE = {"id": "m1", "role": "tool", "tool_call_id": "m1"}
NO_TEXT = {"id": "m1", "role": "user", "tool_calls": [{"id": []}]}


def run_of(*messages):
    run = {"run_type": "agent", "parent_run_id": None, "status": "COMPLETED", "run_index": 0}
    said = {"messages": list(messages)}
    return [({"session_type": "agent", "user_id": None}, {"r1": {**run, "run_data": said}})]


@settings(max_examples=150, deadline=None)
@example(run_of({**TWICE, "content": None}, TWICE))
@example(run_of(NO_TEXT))
@given(STEPS)
def test_whatever_is_recorded_comes_back_at_every_step(steps):
    """Each step is a write of Agno's: the session's row, and rows that appear, change or go."""
    session, runs, turns, turn, system = None, {}, {}, 0, None
    with Sessions.open("memory:", durable=False, max_payload_bytes=LARGEST_PAYLOAD_BYTES) as log:
        for after, wanted in steps:
            changes = [
                RunChange(each, runs.get(each), row)
                for each, row in wanted.items()
                if row is not None or each in runs
            ]
            drafting = Drafting("s", session, Place(turn, turns, system), fits_within(log, "s"))
            drafting.change(after, changes)
            if drafting.drafts:
                log.append("s", drafting.drafts)
            session, runs = after, {k: v for k, v in {**runs, **wanted}.items() if v is not None}
            turns, turn, system = {**turns, **drafting.turns}, drafting.turn, drafting.system

            stored = log.load("s", projector=AgnoProjector())
            assert text(stored.session) == text(session)
            assert text(dict(stored.runs)) == text(runs)
            assert log.head("s").turn == turn
            assert {k: v.number for k, v in stored.turns.items()} == {k: v.number for k, v in turns.items()}
        log.load("s")


def text(value):
    return json.dumps(value, sort_keys=True)


COUNTS = st.dictionaries(st.sampled_from(["in", "out", "cost"]), st.integers(0, 100), max_size=3)
METRICS = st.builds(
    lambda counts, models: {**counts, "details": {"model": models}},
    COUNTS,
    st.lists(COUNTS, max_size=1).map(lambda each: [{**counts, "id": "m"} for counts in each]),
)


@given(METRICS, METRICS, METRICS)
def test_what_two_writers_have_counted_is_added_up(start, one, two):
    """Each adds its own to what it has read; in whichever order they are stored, the sum is the same."""
    mine, theirs = added_up({}, one, start), added_up({}, two, start)

    assert text(added_up(start, mine, theirs)) == text(added_up(start, theirs, mine))
    assert added_up(start, start, theirs) == theirs


def test_a_key_that_both_have_made_is_one():
    base = {}
    now = {"session_state": {"a": 1, "prefs": {"x": 1}}}
    new = {"session_state": {"b": 2, "prefs": {"y": 2}}}

    assert merged_data(base, new, now) == {"session_state": {"a": 1, "b": 2, "prefs": {"x": 1, "y": 2}}}


def test_what_a_writer_removes_is_gone_and_what_another_adds_stays():
    base = {"session_state": {"a": 1, "items": [1]}}
    now = {"session_state": {"a": 1, "items": [1, 2], "c": 3}}
    new = {"session_state": {"items": [1, 9]}}

    assert merged_data(base, new, now) == {"session_state": {"items": [1, 2, 9], "c": 3}}
