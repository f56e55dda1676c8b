"""What tests write, and many who write at once: processes, threads and a condition to wait for.

Processes are forked from a server that has everything imported, so one costs milliseconds and none
inherits a connection. What they run has to stand in a module that they can import: here.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import text

from kern_events import Draft, SessionLog, batch
from kern_events.errors import StoreMissing, VersionConflict
from projections import Sessions, rebuild
from tests import facade

PATIENCE_S = 60.0

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["tests.writers", "tests.clients", "kern_events.store.sqlite", "kern_events.store.postgres"]
)


def note(text: Any = "something", **fields: Any) -> Draft:
    """A draft of a type that means nothing to the log."""
    return Draft("note.taken", {"text": text}, **fields)


def notes(count: int) -> list[Draft]:
    """So many of them, numbered from 0."""
    return [note(number) for number in range(count)]


def texts(events: Any) -> list[Any]:
    """What the notes among these events say."""
    return [event.payload["text"] for event in events if event.type == "note.taken"]


def findings(log: Any) -> Sequence[Any]:
    """What verify finds; nothing where nothing was recorded, which verify tells as an error."""
    with suppress(StoreMissing):
        return log.verify().findings  # type: ignore[no-any-return]
    return ()


def eventually(condition: Callable[[], Any], what: str = "") -> Any:
    """The first true answer of a condition, within a deadline."""
    deadline = time.monotonic() + PATIENCE_S
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"still not so after {PATIENCE_S:g} s: {what or condition}"
        time.sleep(0.001)
    return answer


# --------------------------------------------------------------------------------- many at once


def in_processes(count: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """The results of `work(*args, number)` in so many processes, which begin at the same moment."""
    barrier = _context.Barrier(count)
    children = [start(_in_child, barrier, work, args, number) for number in range(count)]
    try:
        answers = [answer_of(pipe) for _, pipe in children]
    finally:
        for process, pipe in children:
            stop(process, pipe)
    return _results(answers)


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """The results of `work(number)` in so many threads, which begin at the same moment."""
    barrier = threading.Barrier(count)
    answers: list[Any] = [None] * count

    def run(number: int) -> None:
        barrier.wait(PATIENCE_S)
        answers[number] = _outcome(work, (number,))

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "a thread does not end"
    return _results(answers)


def start(work: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    """A process that runs `work(pipe, *args)`, and our end of the pipe."""
    ours, theirs = _context.Pipe()
    process = _context.Process(target=work, args=(theirs, *args), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def stop(process: Any, pipe: Any) -> None:
    """End a process, however it is."""
    process.kill()
    process.join(PATIENCE_S)
    process.close()
    pipe.close()


def answer_of(pipe: Any) -> Any:
    """What a child sends, within a deadline."""
    assert pipe.poll(PATIENCE_S), "a child process does not answer"
    return pipe.recv()


def _in_child(pipe: Any, barrier: Any, work: Callable[..., Any], args: tuple[Any, ...], number: int) -> None:
    barrier.wait(PATIENCE_S)
    pipe.send(_outcome(work, (*args, number)))


def _outcome(work: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, BaseException | None]:
    try:
        return work(*args), None
    except BaseException as error:
        return None, error


def _results(answers: list[Any]) -> list[Any]:
    for _, error in answers:
        if error is not None:
            raise error
    return [result for result, _ in answers]


# ------------------------------------------------------------------------------- what they write


def compete(log: Any, session_id: str, wins: int, number: int) -> list[tuple[int, int, int]]:
    """Append with `expected=` until so many appends have won.

    Returns:
        What was met, in order: the version expected, and the version won or the actual head, with
        1 for a win and 0 for a conflict.
    """
    met = []
    while sum(won for *_, won in met) < wins:
        seen = log.head(session_id).version
        try:
            receipt = log.append(session_id, [note(f"{number}")], expected=seen)
        except VersionConflict as conflict:
            assert (conflict.session_id, conflict.expected) == (session_id, seen)
            met.append((seen, conflict.actual, 0))
        else:
            met.append((seen, receipt.version, 1))
    return met


def pile_up(log: Any, session_id: str, count: int, number: int) -> list[int]:
    """Append so often at the end, whatever is there; the versions."""
    return [log.append(session_id, [note(f"{number}.{i}")]).version for i in range(count)]


def compete_at(kind: str, url: str, options: dict[str, Any], *args: Any) -> Any:
    """`compete` with a log of this process's own."""
    with facade.opened(kind, url, **options) as log:
        return compete(log, *args)


def pile_up_at(kind: str, url: str, options: dict[str, Any], *args: Any) -> Any:
    """`pile_up` with a log of this process's own."""
    with facade.opened(kind, url, **options) as log:
        return pile_up(log, *args)


def pick(seed: Any) -> random.Random:
    """Randomness that a failing test can be repeated with."""
    return random.Random(repr(seed))


# ----------------------------------------------------------------------------------- consumers


def into_sink(events: Any, connection: Any) -> None:
    """A sink in the database: one row for each event."""
    for event in events:
        values = {"session_id": event.session_id, "version": event.version}
        connection.execute(
            text("INSERT INTO sink (session_id, version) VALUES (:session_id, :version)"), values
        )


def consume_into_sink(pipe: Any, url: str) -> None:
    """Until the process is killed."""
    with SessionLog(url) as log:
        log.consumer("sink", into_sink, transactional=True, batch_size=7).run()


def consume_and_tell(pipe: Any, url: str, transactional: bool) -> None:
    """As before; tells the sessions of each batch."""

    def handle(events: Any, connection: Any = None) -> None:
        pipe.send([event.session_id for event in events])

    with SessionLog(url) as log:
        log.consumer("c", handle, transactional=transactional).run()


# ---------------------------------------------------------------------------------- projectors


class Counted:
    """Counts the events of a session."""

    name, version, scope = "counted", 1, "live"
    view_type: Any = int

    def initial(self) -> Any:
        return 0

    def evolve(self, view: Any, event: Any) -> Any:
        return view + 1


class Slow(Counted):
    """Takes its time, so that something can happen meanwhile."""

    name = "slow"

    def evolve(self, view: Any, event: Any) -> Any:
        time.sleep(0.0005)
        return view + 1


class Deadly(Counted):
    """Ends every process but the one that the tests run in."""

    name = "deadly"

    def evolve(self, view: Any, event: Any) -> Any:
        if multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return view + 1


def rebuild_and_tell(pipe: Any, url: str) -> None:
    """Rebuilds until it is killed, and tells how much was stored before, and how much it has stored."""
    rebuild._TASK_EVENTS = 1_000
    with Sessions.open(url) as sessions:
        sessions.rebuild(progress=lambda report: pipe.send((report.current, report.rebuilt)))
        pipe.send(None)


@contextmanager
def unchecked() -> Iterator[None]:
    """Record payloads of the vocabulary whatever they hold, as rows of an earlier day may do."""
    checks, batch._CHECKS = batch._CHECKS, {}  # type: ignore[misc]
    batch._facts.cache_clear()
    try:
        yield
    finally:
        batch._CHECKS = checks  # type: ignore[misc]
        batch._facts.cache_clear()
