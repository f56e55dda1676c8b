"""The session view: messages, parts and tool calls, as the transcript shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from kern_events import (
    Draft,
    Event,
    SessionLog,
    message,
    state_changed,
    tool_called,
    tool_failed,
    tool_returned,
)
from kern_events.errors import InvalidEvent
from projections import Message, SessionProjector, Sessions, ToolCall, View
from projections.chunks import Chunks
from projections.frozen import FrozenDict, FrozenList
from projections.session import Media, Raw, Reasoning, Refusal, Text

CALL = {"id": "c1", "name": "search", "arguments": '{"q": 1}'}


def recorded(*drafts: Draft) -> list[Event]:
    with SessionLog("memory:") as log:
        log.append("s", drafts)
        return list(log.read("s"))


def view_of(*drafts: Draft) -> View:
    projector = SessionProjector()
    return projector.fold(projector.initial(), recorded(*drafts))


def started() -> Draft:
    return Draft("turn.started", {})


def test_messages_are_the_transcript_in_order() -> None:
    view = view_of(message("system", "Be brief."), started(), message("user", "Hi", name="ada", id="m1"))

    assert [each.to_openai() for each in view.messages] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi", "name": "ada"},
    ]
    assert view.context is view.messages
    assert not view.incomplete


def test_a_message_says_when_it_was_recorded() -> None:
    events = recorded(started(), message("user", "Hi"))
    projector = SessionProjector()

    said = projector.fold(projector.initial(), events).messages[0]

    assert (said.id, said.turn, said.version, said.at) == (
        events[1].event_id.hex(), 1, 2, events[1].at,
    )  # fmt: skip


def test_an_empty_view_has_no_version() -> None:
    view = SessionProjector().initial()

    assert (view.version, view.turn, view.status, view.incomplete) == (0, 0, "open", False)
    assert view.context is view.messages


@pytest.mark.parametrize(
    ("part", "typed"),
    [
        ({"type": "text", "text": "a"}, Text("a")),
        ({"type": "refusal", "refusal": "no"}, Refusal("no")),
        (
            {"type": "image_url", "image_url": {"url": "u", "detail": ["low"]}},
            Media("image_url", FrozenDict({"url": "u", "detail": FrozenList(["low"])})),
        ),
        (
            {"type": "text", "text": "a", "cache_control": {}},
            Raw(FrozenDict({"type": "text", "text": "a", "cache_control": FrozenDict({})})),
        ),
        ({"type": "text", "text": 1}, Raw(FrozenDict({"type": "text", "text": 1}))),
        ({"type": ["text"], "text": "a"}, Raw(FrozenDict({"type": ("text",), "text": "a"}))),
        ({"type": "hologram"}, Raw(FrozenDict({"type": "hologram"}))),
    ],
)
def test_parts_are_typed_and_come_back_as_recorded(part: dict[str, Any], typed: Any) -> None:
    said = view_of(message("user", [part])).messages[0]

    assert said.content == (typed,)
    assert said.to_openai()["content"] == [part]


def test_reasoning_is_kept_but_not_sent_to_the_chat_api() -> None:
    said = view_of(message("assistant", [{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "4"}]))

    assert said.messages[0].content == (Reasoning("hm"), Text("4"))
    assert said.messages[0].to_openai()["content"] == [{"type": "text", "text": "4"}]


def test_a_call_is_pending_until_its_result() -> None:
    calling = (message("assistant", None, tool_calls=[CALL]), tool_called("c1"))
    waiting, done = view_of(*calling), view_of(*calling, tool_returned("c1", {"n": [1, 2]}))

    assert [(call.id, call.called) for call in waiting.pending_calls] == [("c1", 2)]
    assert done.pending_calls == ()
    assert done.messages[1].to_openai() == {"role": "tool", "content": '{"n":[1,2]}', "tool_call_id": "c1"}


def test_a_call_that_was_not_started_shows_it() -> None:
    view = view_of(message("assistant", None, tool_calls=[CALL]))

    assert [call.called for call in view.pending_calls] == [None]


def test_a_failed_call_has_its_error_as_result() -> None:
    view = view_of(tool_called("c1", "search", {}), tool_failed("c1", "no route"))

    assert view.messages[-1] == view.messages[1]
    assert (view.messages[1].role, view.messages[1].content) == ("tool", "no route")
    assert view.pending_calls == ()


def test_calls_without_a_message_become_one_and_parallel_ones_share_it() -> None:
    view = view_of(started(), tool_called("a", "f", "{}"), tool_called("b", "g", {"x": 1}))

    assert [each.to_openai()["tool_calls"] for each in view.messages] == [
        [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"id": "b", "type": "function", "function": {"name": "g", "arguments": '{"x":1}'}},
        ]
    ]
    assert [call.message_id for call in view.pending_calls] == [view.messages[0].id] * 2


@pytest.mark.parametrize(
    "between", [tool_returned("a", "1"), message("assistant", "wait"), started(), message("user", "and?")]
)
def test_a_call_after_something_else_is_a_message_of_its_own(between: Draft) -> None:
    view = view_of(started(), tool_called("a", "f"), between, tool_called("b", "f"))

    callers = [[call.id for call in each.tool_calls] for each in view.messages if each.tool_calls]
    assert callers == [["a"], ["b"]]


def test_a_recorded_message_is_never_extended() -> None:
    view = view_of(
        message("assistant", None, tool_calls=[CALL]), tool_called("c1"), tool_called("c2", "other")
    )

    assert [len(each.tool_calls) for each in view.messages] == [1, 1]


def test_a_reused_id_means_its_latest_open_call() -> None:
    view = view_of(
        tool_called("x", "f"), tool_returned("x", "1"), tool_called("x", "g"), tool_returned("x", "2")
    )

    assert [each.content for each in view.messages] == [None, "1", None, "2"]
    assert view.pending_calls == ()
    assert not view.incomplete


def test_of_two_open_calls_of_one_id_the_latest_gets_the_result() -> None:
    view = view_of(tool_called("x", "f"), message("user", "?"), tool_called("x", "g"), tool_returned("x", 1))

    assert [call.name for call in view.pending_calls] == ["f"]


def test_a_message_of_role_tool_is_an_outcome_too() -> None:
    result = Draft("message.added", {"role": "tool", "content": "1", "tool_call_id": "c1"})

    view = view_of(message("assistant", "", tool_calls=[CALL]), result)

    assert view.pending_calls == ()
    assert not view.incomplete


def test_a_result_without_a_call_stays_and_is_a_problem() -> None:
    view = view_of(tool_returned("nobody", "1"))

    assert view.messages[0].content == "1"
    assert view.problems == ("version 1, tool.returned: no open call of that id",)


def test_a_replaced_message_keeps_its_place() -> None:
    new = Draft("message.replaced", {"id": "m1", "content": "Hello"})

    view = view_of(message("user", "Hi", id="m1"), message("assistant", "Yes?"), new)

    assert [(each.role, each.content) for each in view.messages] == [("user", "Hello"), ("assistant", "Yes?")]
    assert view.messages[0].version == 1


def test_replacing_a_message_changes_its_calls() -> None:
    other = {"id": "c2", "name": "book", "arguments": "{}"}
    new = Draft("message.replaced", {"id": "m1", "content": None, "tool_calls": [other]})

    view = view_of(message("assistant", None, id="m1", tool_calls=[CALL]), new)

    assert [call.id for call in view.pending_calls] == ["c2"]


def test_a_removed_message_takes_its_open_calls_along() -> None:
    view = view_of(
        message("user", "Hi"),
        message("assistant", None, id="m1", tool_calls=[CALL]),
        Draft("message.removed", {"id": "m1"}),
    )

    assert [each.content for each in view.messages] == ["Hi"]
    assert view.pending_calls == ()


def test_compaction_changes_the_context_and_not_the_transcript() -> None:
    view = view_of(
        message("system", "Be brief."),
        message("user", "Hi"),
        message("assistant", "Hello", id="m2"),
        message("user", "Bye"),
        Draft("messages.compacted", {"through": "m2", "summary": "They met."}),
        message("assistant", "Bye"),
    )

    assert [each.content for each in view.messages] == ["Be brief.", "Hi", "Hello", "Bye", "Bye"]
    assert [(each.role, each.content) for each in view.context] == [
        ("system", "Be brief."), ("system", "They met."), ("user", "Bye"), ("assistant", "Bye"),
    ]  # fmt: skip


def test_a_later_compaction_takes_the_earlier_summary_away() -> None:
    view = view_of(
        message("system", "Be brief."),
        message("user", "1", id="m1"),
        Draft("messages.compacted", {"through": "m1", "summary": "One."}),
        message("user", "2", id="m2"),
        Draft("messages.compacted", {"through": "m2", "summary": "Two."}),
    )

    assert [each.content for each in view.context] == ["Be brief.", "Two."]


def test_a_replacement_may_bring_its_own_instructions() -> None:
    own = [{"role": "developer", "content": "New."}, {"role": "user", "content": "1"}]

    view = view_of(
        message("system", "Old."),
        message("user", "1", id="m1"),
        Draft("messages.compacted", {"through": "m1", "replacement": own}),
    )

    assert [each.content for each in view.context] == ["New.", "1"]


def test_compacting_through_an_unknown_message_changes_nothing() -> None:
    view = view_of(message("user", "Hi"), Draft("messages.compacted", {"through": "?", "summary": "x"}))

    assert [each.content for each in view.context] == ["Hi"]
    assert view.incomplete


def test_changes_after_a_compaction_reach_both() -> None:
    view = view_of(
        message("user", "1", id="m1"),
        message("user", "2", id="m2"),
        message("user", "3", id="m3"),
        Draft("messages.compacted", {"through": "m1", "summary": "One."}),
        Draft("message.replaced", {"id": "m2", "content": "two"}),
        Draft("message.removed", {"id": "m3"}),
    )

    assert [each.content for each in view.messages] == ["1", "two"]
    assert [each.content for each in view.context] == ["One.", "two"]


def test_clearing_empties_the_context_alone() -> None:
    view = view_of(message("user", "1"), Draft("session.cleared", {}), message("user", "2"))

    assert [each.content for each in view.messages] == ["1", "2"]
    assert [each.content for each in view.context] == ["2"]


@pytest.mark.parametrize(
    ("type", "payload", "problem"),
    [
        ("message.added", {"content": "x"}, "no role"),
        ("message.added", {"role": "user", "content": {"x": 1}}, "content is neither text nor parts"),
        ("message.added", {"role": "user", "content": ["x"]}, "a content part is no object"),
        ("message.added", {"role": "user", "name": 1}, "a name or an id is no text"),
        ("message.added", {"role": "user", "tool_calls": {"id": "a"}}, "tool calls are no list"),
        ("message.added", {"role": "user", "tool_calls": ["a"]}, "a tool call is no object"),
        ("message.added", {"role": "user", "tool_calls": [{"id": "a"}]}, "a tool call without id or name"),
        ("message.replaced", {"id": 1}, "no message of that id"),
        ("message.removed", {}, "no message of that id"),
        ("messages.compacted", {"through": ["x"]}, "no message of that id in the context"),
        ("tool.called", {"name": "f"}, "no call id"),
        ("tool.called", {"call_id": "a"}, "no open call of that id"),
        ("tool.called", {"call_id": "a", "name": 1}, "a tool call without id or name"),
        (
            "tool.called",
            {"call_id": "a", "name": "f", "arguments": [1]},
            "the arguments of a call are no text",
        ),
        ("tool.returned", {"result": 1}, "no call id"),
        ("tool.returned", {"call_id": "a"}, "no result"),
        ("tool.failed", {"call_id": "a", "error": "x", "name": 1}, "the name is no text"),
    ],
)
def test_what_is_malformed_is_said(type: str, payload: dict[str, Any], problem: str) -> None:
    view = view_of(Draft(type, payload))

    assert view.incomplete
    assert view.problems == (f"version 1, {type}: {problem}",)


def test_a_compaction_without_anything_instead_changes_nothing() -> None:
    view = view_of(message("user", "1", id="m1"), Draft("messages.compacted", {"through": "m1"}))

    assert len(view.context) == 1
    assert view.problems == ("version 2, messages.compacted: neither a replacement nor a summary",)


def test_a_replacement_without_a_role_keeps_the_old_message() -> None:
    view = view_of(message("user", "1", id="m1"), Draft("message.replaced", {"id": "m1", "role": None}))

    assert [each.content for each in view.messages] == ["1"]
    assert view.incomplete


def test_to_dict_is_plain_and_free_to_change() -> None:
    view = view_of(
        message("user", [{"type": "text", "text": "Hi"}]),
        message("assistant", None, tool_calls=[CALL]),
        state_changed([["set", ["cart"], {"items": [1]}]]),
    )

    copy = view.to_dict()
    copy["state"]["cart"]["items"].append(2)

    assert msgspec.json.decode(msgspec.json.encode(copy)) == copy
    assert copy["messages"][0]["content"] == [{"type": "text", "text": "Hi"}]
    assert copy["pending_calls"][0]["id"] == "c1"
    assert view.state["cart"]["items"] == (1,)


def test_a_view_is_frozen_all_the_way_down() -> None:
    view = view_of(
        Draft("session.created", {"metadata": {"a": [{}]}, "state": {"b": [{"c": []}]}}),
        started(),
        message("user", [{"type": "file", "file": {"ids": [1]}}, {"type": "other", "x": [{}]}]),
        tool_called("a", "f"),
        state_changed([["set", ["x", "y"], [{}]], ["append", ["z"], [[1]]]]),
        state_changed([["set", ["x"], [{}]]], scope="agent", agent_id="a1"),
        Draft("session.summarized", {"summary": {"topics": ["a"]}}),
        Draft("turn.paused", {"requirements": [{"tool": "a"}]}),
        Draft("turn.failed", {"error": {"type": "E", "at": [1]}, "usage": {"input_tokens": 1}}),
        started(),
        Draft("turn.paused", {"requirements": {"a": []}}),
    )

    assert_frozen(view)


def assert_frozen(value: Any) -> None:
    if isinstance(value, msgspec.Struct):
        assert value.__struct_config__.frozen
        with pytest.raises(AttributeError):
            setattr(value, value.__struct_fields__[0], None)
        value = [getattr(value, field) for field in value.__struct_fields__]
    elif isinstance(value, Mapping):
        assert type(value) is FrozenDict
        value = value.values()
    elif isinstance(value, (tuple, Chunks)):
        pass
    else:
        assert value is None or type(value) in (str, int, float, bool, bytes)
        return
    for item in value:
        assert_frozen(item)


def test_values_are_equal_by_content() -> None:
    assert Message("m", "user", "Hi") == Message("m", "user", "Hi")
    assert ToolCall("c", "f", "{}") != ToolCall("c", "f", "{ }")


@pytest.mark.parametrize("session_id", [{}, ["s"], None, 5])
def test_what_is_no_id_is_refused_before_a_cache_is_asked(session_id: Any) -> None:
    with Sessions("memory:") as sessions, pytest.raises(InvalidEvent, match="session_id"):
        sessions.load(session_id)
