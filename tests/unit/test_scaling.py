"""Ten times as much of anything costs about ten times the work: counted in lines of code that run.

Time is measured by `python -m benchmarks scaling`; here nothing depends on the machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from benchmarks.scaling import FOLDS, events_of
from kern_events import Draft, Event, message, tool_returned
from projections import SessionProjector, chunks, history

NEAR = 13.0


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that few messages are many chunks."""
    monkeypatch.setattr(chunks, "CHUNK_ITEMS", 16)


def lines_run(work: Callable[[], object]) -> int:
    """How many lines of Python run in a call, those of every turn of a loop included."""
    count, before = 0, sys.gettrace()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += 1
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("what", FOLDS)
def test_ten_times_the_events_are_folded_with_ten_times_the_work(what: str) -> None:
    few, many = events_of(FOLDS[what](100)), events_of(FOLDS[what](1_000))

    assert lines_run(lambda: folded(many)) <= NEAR * lines_run(lambda: folded(few))


@pytest.mark.parametrize("what", FOLDS)
def test_one_event_more_costs_no_more_in_a_long_session(what: str) -> None:
    few, many = (one_more(events_of(FOLDS[what](n))) for n in (100, 1_000))

    assert lines_run(many) <= 2 * lines_run(few)


def folded(events: list[Event]) -> Any:
    projector = SessionProjector()
    return projector.fold(projector.initial(), events)


def one_more(events: list[Event]) -> Callable[[], object]:
    view, projector = folded(events[:-1]), SessionProjector()
    projector.evolve(view, events[-1])  # What looks an id up in a chunk lists that chunk once.
    return lambda: projector.evolve(view, events[-1])


def leading(n: int) -> Iterator[Draft]:
    """Instructions, then as many compactions through the last of them, and of what came in its place."""
    yield from (message("system", "x", id=f"m{number}") for number in range(n))
    last = {"role": "user", "content": "x", "id": f"m{n - 1}"}
    yield from (Draft("messages.compacted", {"through": last["id"], "replacement": [last]}) for _ in range(n))


def leading_and_replaced(n: int) -> Iterator[Draft]:
    """The same, and one of the instructions is replaced or removed in between."""
    yield from (message("system", "x", id=f"m{number}") for number in range(2 * n))
    through = f"m{2 * n - 1}"
    last = {"role": "user", "content": "x", "id": through}
    for number in range(n):
        yield Draft("messages.compacted", {"through": through, "replacement": [last]})
        yield Draft("message.replaced", {"id": f"m{2 * n - 9 - number}", "role": "system", "content": "y"})
        yield Draft("message.removed", {"id": f"m{2 * n - 2 - number}"})


def used(n: int) -> Iterator[Draft]:
    """Responses of one turn, and nested runs in it, each with usage of another name; the turn pauses."""
    yield Draft("turn.started", {})
    for number in range(n):
        yield Draft("model.responded", {"usage": {f"a{number}": 1}})
        yield Draft("turn.paused", {"requirements": number})
        yield Draft("turn.resumed", {})


@pytest.mark.parametrize("drafts", [leading, leading_and_replaced, used])
def test_ten_times_of_what_leads_or_is_summed_is_ten_times_the_work(
    drafts: Callable[[int], Iterator[Draft]]
) -> None:
    few, many = events_of(drafts(100)), events_of(drafts(1_000))
    small = lines_run(lambda: folded(few))

    assert lines_run(lambda: folded(many)) <= NEAR * small


def calls_and_results(n: int, order: int = 1) -> list[Draft]:
    """Calls of one message each, and their results behind them all, in the order of the calls or back."""
    called = ([{"id": f"c{i}", "name": "f", "arguments": "{}"}] for i in range(n))
    calls = [message("assistant", tool_calls=each) for each in called]
    return [*calls, *[tool_returned(f"c{i}", "done") for i in range(n)][::order]]


def results_alone(n: int) -> list[Draft]:
    """Results without a call, after a user's message."""
    return [message("user", "x"), *(tool_returned(f"c{i}", "done") for i in range(n))]


def overlapping(n: int) -> list[Draft]:
    """Each result stands behind the next call, so the window goes back from one to the one before."""
    calls = calls_and_results(n)
    return [draft for pair in zip(calls[1:n], calls[n : 2 * n - 1], strict=True) for draft in pair]


@pytest.mark.parametrize("window", [{}, {"last_messages": 1}, {"last_messages": 50}])
@pytest.mark.parametrize(
    "drafts", [calls_and_results, lambda n: calls_and_results(n, -1), results_alone, overlapping]
)
def test_history_of_ten_times_the_calls_is_ten_times_the_work(
    drafts: Callable[[int], list[Draft]], window: dict[str, int]
) -> None:
    few, many = (folded(events_of(iter(drafts(n)))) for n in (100, 1_000))
    small = lines_run(lambda: history(few, **window))

    assert lines_run(lambda: history(many, **window)) <= NEAR * small
