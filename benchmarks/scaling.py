"""What costs what it says, and what costs the square of it? Ten times as much of the same, and the ratio.

Each case is a session, or a log, with much of one thing that could go through all that there is for
each of it: old messages that are replaced, compactions, restores, forks of forks. Near-linear is up to 15
times the time for ten times as much.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Final

from benchmarks.measure import Bench, Result, duration
from kern_events import Draft, Event, Sessions, message, spi, state_changed, tool_called, tool_returned
from kern_events.batch import event_of, link, prepare
from projections import SessionProjector, View

_NEAR: Final = 15.0
_ROUNDS: Final = 3

Drafts = Callable[[int], Iterator[Draft]]


def run(bench: Bench) -> Iterator[Result]:
    """Folds, then loads one after the other, then what goes through the database."""
    small = 1_000 if bench.quick else 4_000
    for what, drafts in FOLDS.items():
        yield _compared(f"fold {what}", small, lambda n, drafts=drafts: _folded(drafts, n))
    for what, drafts in FOLDS.items():
        yield _compared(f"one load more after {what}", small, lambda n, drafts=drafts: _one_more(drafts, n))
    for what, work in LOGS.items():
        yield _compared(what, 40 if bench.quick else 160, work)


def _compared(what: str, small: int, work: Callable[[int], float]) -> Result:
    few = min(work(small) for _ in range(_ROUNDS))
    many = min(work(10 * small) for _ in range(_ROUNDS - 1))
    ratio = many / few
    return Result(
        "scaling", f"{what}: {10 * small:,} / {small:,}", duration(many), duration(few), ratio,
        f"≤ {_NEAR:g}x", ratio <= _NEAR, {"small": small, "small_s": few, "large_s": many},
    )  # fmt: skip


# --------------------------------------------------------------------------------- one session's view


def compactions(n: int, *, through: Callable[[int], int] = lambda number: number) -> Iterator[Draft]:
    """Messages, then as many compactions, each through one message more."""
    yield from _messages(n)
    for number in range(n):
        yield Draft("messages.compacted", {"through": f"m{through(number)}", "summary": f"until {number}"})


def replacements(n: int) -> Iterator[Draft]:
    """Messages, then as many replacements, of the oldest again and again and of each once."""
    yield from _messages(n)
    for number in range(n):
        for id in ("m0", f"m{number}"):
            yield Draft("message.replaced", {"id": id, "role": "user", "content": f"once more {number}"})


def removals(n: int) -> Iterator[Draft]:
    """Messages, then all of them are removed, the oldest first."""
    yield from _messages(n)
    for number in range(n):
        yield Draft("message.removed", {"id": f"m{number}"})


def appended_state(n: int) -> Iterator[Draft]:
    """So many items, one by one, to a list in the state."""
    for number in range(n):
        yield state_changed([["append", ["deep", "list"], [number]]])


def many_keys(n: int) -> Iterator[Draft]:
    """So many keys in the state."""
    for number in range(n):
        yield state_changed([["set", ["deep", f"k{number}"], number]])


def agent_states(n: int) -> Iterator[Draft]:
    """So many agents, each with a state."""
    for number in range(n):
        ops = [["set", ["n"], number]]
        yield Draft("state.changed", {"scope": "agent", "agent_id": f"a{number}", "ops": ops})


def open_calls(n: int) -> Iterator[Draft]:
    """So many calls of one message at once, then their results, the first first."""
    yield Draft("turn.started", {})
    for number in range(n):
        yield tool_called(f"c{number}", "f", {})
    for number in range(n):
        yield tool_returned(f"c{number}", "done")


def same_calls(n: int) -> Iterator[Draft]:
    """So many open calls of the same id, then their results."""
    calls = [{"id": "c", "name": "f", "arguments": "{}"}]
    for _ in range(n):
        yield message("assistant", tool_calls=calls)
    for _ in range(n):
        yield tool_returned("c", "done")


def open_turns(n: int) -> Iterator[Draft]:
    """So many turns that pause, then go on, then end, the first first."""
    for number in range(1, n + 1):
        yield Draft("turn.started", {})
        yield Draft("turn.paused", {"requirements": number}, turn=number)
    for type in ("turn.resumed", "turn.completed"):
        for number in range(1, n + 1):
            yield Draft(type, {}, turn=number)


def _messages(n: int) -> Iterator[Draft]:
    for number in range(n):
        yield message("user", f"message {number}", id=f"m{number}")


FOLDS: Final[dict[str, Drafts]] = {
    "compactions": compactions,
    "replacements of old messages": replacements,
    "removals": removals,
    "items appended to the state": appended_state,
    "keys of the state": many_keys,
    "agent states": agent_states,
    "open calls": open_calls,
    "open calls of one id": same_calls,
    "paused turns": open_turns,
}


def events_of(drafts: Iterator[Draft]) -> list[Event]:
    """Drafts as the events of one session, without a database."""
    events: list[Event] = []
    head = prepare("n", "s", [Draft("x", {})]).empty_head()
    while some := list(itertools.islice(drafts, 500)):
        linked = link(prepare("n", "s", some), head, 0)
        head = linked.head
        for row in linked.rows:
            stored = (row[0], 0, *row[1:15], None, *row[15:])
            events.append(event_of("n", "s", stored))
    return events


def _folded(drafts: Drafts, n: int) -> float:
    events, projector = events_of(drafts(n)), SessionProjector()
    return _timed(lambda: projector.fold(projector.initial(), events))


def _one_more(drafts: Drafts, n: int) -> float:
    """What the last event costs whoever has the view up to it; ten times as much may cost ten times more."""
    *events, last = events_of(drafts(n))
    projector = SessionProjector()
    view: View = projector.fold(projector.initial(), events)
    projector.evolve(view, last)
    return min(_timed(lambda: projector.evolve(view, last)) for _ in range(20))


def _timed(work: Callable[[], object]) -> float:
    """The seconds that something takes, without those of the garbage collector, as timeit has it."""
    gc.collect()
    gc.disable()
    try:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started
    finally:
        gc.enable()


# ---------------------------------------------------------------------------------------- one log


def _forked(n: int, version: int | None = None) -> Sessions:
    log = Sessions("memory:", durable=False)
    log.append("f0", [message("user", "first")])
    for number in range(n):
        log.fork(f"f{number}", f"f{number + 1}", version=version)
    return log


def _forks_made(n: int, version: int | None = None) -> float:
    started = time.perf_counter()
    with _forked(n, version):
        return time.perf_counter() - started


def _forks_verified(n: int) -> float:
    with _forked(n) as log:
        started = time.perf_counter()
        log.verify().check()
        return time.perf_counter() - started


def _restored(n: int) -> float:
    with Sessions("memory:", durable=False) as log:
        log.append("s", [message("user", "first")])
        started = time.perf_counter()
        for number in range(n):
            log.append("s", [message("user", f"message {number}")])
            spi.restore(log, "s", 1, {}, log.head("s"), actor=None)
            log.load("s")
        return time.perf_counter() - started


LOGS: Final[dict[str, Callable[[int], float]]] = {
    "make a chain of forks": _forks_made,
    "make a chain of forks of one version": lambda n: _forks_made(n, 1),
    "verify a chain of forks": _forks_verified,
    "restore and load again and again": _restored,
}

