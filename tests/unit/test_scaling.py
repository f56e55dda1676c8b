"""Ten times as much of anything costs about ten times the work: counted in lines of code that run.

Time is measured by `python -m benchmarks scaling`; here nothing depends on the machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from benchmarks.scaling import FOLDS, events_of
from kern_events import Event
from projections import SessionProjector, chunks

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
