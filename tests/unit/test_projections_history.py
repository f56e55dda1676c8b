"""History: windows on a conversation that a model API accepts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kern_events import Draft, SessionLog, message, tool_called, tool_returned
from projections import SessionProjector, View, history
from projections.session import Message


def view_of(*drafts: Draft) -> View:
    with SessionLog("memory:") as log:
        log.append("s", drafts)
        projector = SessionProjector()
        return projector.fold(projector.initial(), list(log.read("s")))


def turn(*drafts: Draft) -> tuple[Draft, ...]:
    return (Draft("turn.started", {}), *drafts, Draft("turn.completed", {}))


def calling(*ids: str, content: str | None = None) -> Draft:
    return message(
        "assistant", content, tool_calls=[{"id": id, "name": "f", "arguments": "{}"} for id in ids]
    )


def said(view: View, **window: int) -> list[Any]:
    return [each.content or [call.id for call in each.tool_calls] for each in history(view, **window)]


CONVERSATION = (
    message("system", "Be brief."),
    message("developer", "Use tools."),
    *turn(message("user", "1"), message("assistant", "one")),
    *turn(message("user", "2"), calling("c"), tool_returned("c", "r2"), message("assistant", "two")),
    *turn(message("user", "3"), calling("c"), tool_returned("c", "r3"), message("assistant", "three")),
)


@pytest.mark.parametrize(
    ("window", "shown"),
    [
        ({}, ["1", "one", "2", ["c"], "r2", "two", "3", ["c"], "r3", "three"]),
        ({"last_turns": 0}, []),
        ({"last_turns": 1}, ["3", ["c"], "r3", "three"]),
        ({"last_turns": 2}, ["2", ["c"], "r2", "two", "3", ["c"], "r3", "three"]),
        ({"last_turns": 9}, ["1", "one", "2", ["c"], "r2", "two", "3", ["c"], "r3", "three"]),
        ({"last_messages": 0}, []),
        ({"last_messages": 1}, ["three"]),
        ({"last_messages": 2}, [["c"], "r3", "three"]),
        ({"last_messages": 4}, ["3", ["c"], "r3", "three"]),
        ({"last_messages": 99}, ["1", "one", "2", ["c"], "r2", "two", "3", ["c"], "r3", "three"]),
    ],
)
def test_a_window_keeps_instructions_and_pairs(window: dict[str, int], shown: list[Any]) -> None:
    assert said(view_of(*CONVERSATION), **window) == ["Be brief.", "Use tools.", *shown]


def test_a_call_without_a_result_is_left_out_and_its_words_stay() -> None:
    view = view_of(message("user", "1"), calling("a", "b", content="Let me see."), tool_returned("b", "r"))

    shown = history(view)

    assert [each.content for each in shown] == ["1", "Let me see.", "r"]
    assert [call.id for call in shown[1].tool_calls] == ["b"]


def test_a_message_that_only_calls_goes_with_its_call() -> None:
    assert said(view_of(message("user", "1"), calling("a"), message("user", "2"))) == ["1", "2"]


def test_a_result_without_a_call_is_left_out() -> None:
    assert said(view_of(message("user", "1"), tool_returned("x", "r"))) == ["1"]


def test_a_result_stands_behind_its_call_whatever_came_between() -> None:
    view = view_of(
        calling("a", "b"), tool_returned("b", "rb"), message("user", "hurry"), tool_returned("a", "ra")
    )

    assert said(view) == [["a", "b"], "rb", "ra", "hurry"]


def test_a_reused_id_pairs_with_its_latest_open_call() -> None:
    view = view_of(
        tool_called("x", "f"), tool_returned("x", "1"), tool_called("x", "g"), message("user", "?"),
        tool_called("x", "h"), tool_returned("x", "2"),
    )  # fmt: skip

    assert [each.tool_calls[0].name for each in history(view) if each.tool_calls] == ["f", "h"]
    assert said(view) == [["x"], "1", "?", ["x"], "2"]


def test_it_reads_the_context_and_not_the_transcript() -> None:
    view = view_of(
        message("system", "Be brief."),
        *turn(message("user", "1", id="m")),
        Draft("messages.compacted", {"through": "m", "summary": "One."}),
        *turn(message("user", "2")),
    )

    assert said(view, last_turns=1) == ["Be brief.", "One.", "2"]


def test_it_is_a_sequence_of_messages() -> None:
    view = view_of(message("user", "1"), message("user", "2"))

    shown = history(view)

    assert shown == list(view.messages)
    assert (len(shown), shown[-1], shown[:1]) == (2, view.messages[1], (view.messages[0],))
    assert shown.to_openai() == [{"role": "user", "content": "1"}, {"role": "user", "content": "2"}]


def test_it_costs_the_window_and_not_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    view = view_of(*[draft for _ in range(300) for draft in turn(message("user", "x"))])
    seen: list[int] = []
    monkeypatch.setattr("projections.chunks.Chunks.__iter__", lambda chunks: iter(counted(chunks, seen)))

    shown = history(view, last_turns=5)

    assert len(shown) == 5
    assert len(seen) < 50


def counted(chunks: Any, seen: list[int]) -> Any:
    for index in range(len(chunks)):
        seen.append(index)
        yield chunks[index]


@pytest.mark.parametrize(
    ("window", "error"),
    [
        ({"last_turns": 1, "last_messages": 1}, TypeError),
        ({"last_turns": -1}, ValueError),
        ({"last_messages": -1}, ValueError),
    ],
)
def test_a_window_that_makes_no_sense_is_refused(window: dict[str, int], error: type[Exception]) -> None:
    with pytest.raises(error):
        history(view_of(message("user", "1")), **window)


steps = st.one_of(
    st.sampled_from(["user", "assistant", "system"]).map(lambda role: message(role, "words")),
    st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True).map(lambda ids: calling(*ids)),
    st.sampled_from("abc").map(lambda id: tool_returned(id, "r")),
    st.sampled_from("abc").map(lambda id: tool_called(id, "f")),
    st.just(None).map(lambda _: Draft("turn.started", {})),
)


@given(
    st.lists(steps, min_size=1, max_size=30),
    st.integers(0, 12),
    st.sampled_from(["last_turns", "last_messages"]),
)
def test_every_window_is_valid_for_the_chat_api(drafts: list[Draft], size: int, window: str) -> None:
    view = view_of(*[Draft(draft.type, draft.payload) for draft in drafts])

    shown = history(view, **{window: size})

    assert_valid(shown[:])
    assert_valid(history(view)[:])


def assert_valid(messages: tuple[Message, ...]) -> None:
    """As the chat API checks it: after a message that calls, exactly the results of its calls."""
    waiting: list[str] = []
    for each in messages:
        if each.role == "tool":
            assert each.tool_call_id in waiting
            waiting.remove(each.tool_call_id)
            continue
        assert not waiting
        waiting = [call.id for call in each.tool_calls]
        assert each.content or each.tool_calls
    assert not waiting


def test_a_window_widens_to_the_call_of_a_result_that_came_in_a_later_turn() -> None:
    view = view_of(
        *turn(message("user", "Pay it."), calling("c")),
        *turn(tool_returned("c", "paid"), message("assistant", "Done.")),
    )

    shown = history(view, last_turns=1)

    assert [each.role for each in shown] == ["assistant", "tool", "assistant"]
