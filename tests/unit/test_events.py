"""Drafts, events and heads: ids, kinds, times and the helpers that make drafts."""

from __future__ import annotations

import os
import random
import warnings
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest

from kern_events import Draft, Head, message, state_changed, tool_called, tool_failed, tool_returned
from kern_events.events import TYPES, Kind, kind_of, new_event_id, to_datetime, to_microseconds

VOCABULARY = """
session.created session.renamed session.described session.summarized session.cleared session.closed
session.deleted session.restored session.forked session.erased
turn.started turn.paused turn.resumed turn.completed turn.failed turn.cancelled
message.added message.replaced message.removed messages.compacted model.called model.responded
tool.called tool.returned tool.failed approval.requested approval.resolved state.changed media.attached
agent.handed_off
"""


def test_the_vocabulary_is_the_one_that_was_designed():
    assert set(VOCABULARY.split()) == TYPES


@pytest.mark.parametrize(
    ("type", "kind"),
    [
        ("turn.started", 1), ("turn.completed", 2), ("turn.failed", 2), ("turn.cancelled", 2),
        ("session.restored", 3), ("session.forked", 4), ("session.erased", 5), ("session.closed", 6),
        ("session.deleted", 6), ("turn.paused", 0), ("turn.resumed", 7), ("session.created", 0), ("x.y", 0),
    ],
)  # fmt: skip
def test_kinds_are_numbers_that_never_change(type, kind):
    """They are hashed."""
    assert kind_of(type, {}, None) == Kind(kind) == kind


@pytest.mark.parametrize("type", ["turn.started", "turn.completed", "turn.failed", "turn.cancelled"])
def test_a_run_with_a_parent_opens_and_closes_no_turn(type):
    assert kind_of(type, {"parent_run_id": "r"}, None) == 0
    assert kind_of(type, {}, {"parent_run_id": "r"}) == 0
    assert kind_of(type, {"parent_run_id": None}, {}) != 0


# ----------------------------------------------------------------------------------------- ids


def test_ids_are_uuids_of_version_7_and_all_different():
    ids = [new_event_id() for _ in range(20_000)]

    assert len(set(ids)) == len(ids)
    assert {len(id) for id in ids} == {16}
    assert {id[6] >> 4 for id in ids} == {7}
    assert {id[8] >> 6 for id in ids} == {0b10}


def test_ids_begin_with_their_time(monkeypatch):
    monkeypatch.setattr("time.time_ns", lambda: 1_700_000_000_123 * 1_000_000)

    assert int.from_bytes(new_event_id()[:6], "big") == 1_700_000_000_123


def test_seeding_the_global_generator_repeats_no_id():
    random.seed(1)
    first = new_event_id()
    random.seed(1)

    assert new_event_id()[6:] != first[6:]


def test_a_forked_child_makes_ids_of_its_own(monkeypatch):
    monkeypatch.setattr("time.time_ns", lambda: 1)
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Newer Pythons warn of forks beside threads.
        pid = os.fork()
    if pid == 0:
        os.write(writing, b"".join(new_event_id() for _ in range(100)))
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()

    theirs = {data[start : start + 16] for start in range(0, len(data), 16)}
    assert len(theirs) == 100
    assert not theirs & {new_event_id() for _ in range(100)}


# -------------------------------------------------------------------------------------- values


def test_drafts_and_heads_are_frozen():
    for value, field in ((Draft("a.b", {}), "type"), (Head(0, b""), "version")):
        with pytest.raises(AttributeError):
            setattr(value, field, "x")


def test_a_changed_copy_of_a_draft_keeps_its_id():
    draft = Draft("a.b", {})

    assert msgspec.structs.replace(draft, turn=3).event_id == draft.event_id


@pytest.mark.parametrize("at_us", [0, 1, 1_700_000_000_123_456, 4_102_444_800_000_001])
def test_times_are_exact_to_the_microsecond(at_us):
    at = to_datetime(at_us)

    assert at.tzinfo is UTC
    assert to_microseconds(at) == at_us
    assert to_microseconds(at.astimezone(timezone(timedelta(hours=5, minutes=45)))) == at_us
    assert Head(1, b"", at_us=at_us).at == at


def test_a_naive_time_is_refused():
    with pytest.raises(ValueError, match="time zone"):
        to_microseconds(datetime(2024, 1, 1))


# ------------------------------------------------------------------------------------- helpers


def test_a_message_says_what_it_is_given_and_no_more():
    assert message("user", "Hi").payload == {"role": "user", "content": "Hi"}
    assert message("assistant", None, tool_calls=[{"id": "c1", "name": "f", "arguments": "{}"}]).payload == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "name": "f", "arguments": "{}"}],
    }
    parts = [{"type": "text", "text": "Hi"}]
    assert message("user", parts, name="ada", id="m1").payload == {
        "role": "user",
        "content": [{"type": "text", "text": "Hi"}],
        "name": "ada",
        "id": "m1",
    }


def test_a_tool_call_keeps_the_exact_text_of_its_arguments():
    assert tool_called("c1").payload == {"call_id": "c1"}
    assert tool_called("c1", "f").payload == {"call_id": "c1", "name": "f", "arguments": "{}"}
    assert tool_called("c1", "f", {"b": 1, "a": "ü"}).payload["arguments"] == '{"b":1,"a":"ü"}'
    assert tool_called("c1", "f", '{"b": 1 }').payload["arguments"] == '{"b": 1 }'


def test_a_result_is_any_json_value():
    for result in ("text", {"a": 1}, [1], None, 3):
        assert tool_returned("c1", result).payload == {"call_id": "c1", "result": result}
    assert tool_returned("c1", 1, name="f", duration_s=0.5).payload["duration_s"] == 0.5
    assert tool_failed("c1", "boom").payload == {"call_id": "c1", "error": "boom"}


def test_ops_are_lists():
    assert state_changed([["set", ["a"], 1]]).payload == {"scope": "session", "ops": [["set", ["a"], 1]]}
    assert state_changed([], scope="agent").payload == {"scope": "agent", "ops": []}
    named = state_changed([], scope="agent", agent_id="a1")
    assert named.payload == {"scope": "agent", "agent_id": "a1", "ops": []}
