"""SIGINT, the signal itself, into a process that works on a log and then idles, as a notebook does.

Half of the time another thread works beside it. Half of the signals come at a random moment, half at one of
the places at which Python looks for them. The process tells what was acknowledged, and of what it was said
that nothing was written; while it idles, others look whether it holds a lock.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy.engine import make_url

from kern_events import import_transcripts
from kern_events.errors import AppendUnresolved, KernError
from kern_events.store.sqlite import SQLiteStore
from projections import Sessions
from tests import databases, writers
from tests.interrupts import Interrupt
from tests.writers import findings

_PLACES = 900  # of a round of all that it does, or a few more
_MOST_S = 0.006
_PATIENCE_S = 30.0
_LATER_S = 0.01


class Plan(NamedTuple):
    """What is interrupted."""

    url: str
    namespace: str
    keeps_lock: bool = False  # as if nobody looked after what was interrupted: what has to be caught


def interrupts(plan: Plan, count: int, chance: random.Random) -> Counter[str]:
    """Interrupt so often, and hold the log against what was said.

    Returns:
        How many signals there were, how many arrived, and after how many a lock was held; how many appends
        were acknowledged, and of those lost and doubled; of how many it was said wrongly that nothing was
        written; how many findings verify had.
    """
    account: Counter[str] = Counter(held=0, acknowledged=0, lost=0, doubled=0, untrue=0)
    process, pipe = writers.start(_worker, plan)
    said: list[str] = []
    unsaid: list[str] = []
    try:
        writers.answer_of(pipe)
        with _looking(plan) as is_held:
            for number in range(count):
                place = chance.randrange(_PLACES) if number % 2 else None
                pipe.send((place, number % 4 < 2))
                writers.answer_of(pipe)
                if place is None:
                    time.sleep(chance.uniform(0, _MOST_S))
                    os.kill(process.pid, signal.SIGINT)
                account["signals"] += 1
                if not pipe.poll(_PATIENCE_S):
                    os.kill(process.pid, signal.SIGINT)  # The one before was swallowed.
                    account["arrived"] -= 1
                acknowledged, refused = writers.answer_of(pipe)
                account["arrived"] += 1
                account["held"] += is_held()
                said += acknowledged
                unsaid += refused
    finally:
        writers.stop(process, pipe)
    with Sessions(plan.url, namespace=plan.namespace) as log:
        times = Counter(writers.texts(event for event in log.read_all() if event.session_id[0] != "d"))
        account["findings"] = len(findings(log))
    account["acknowledged"] = len(said)
    account["lost"] = sum(times[text] == 0 for text in said)
    account["doubled"] = sum(count > 1 for count in times.values())
    account["untrue"] = sum(times[text] > 0 for text in unsaid)
    return account


@contextmanager
def _looking(plan: Plan) -> Iterator[Callable[[], bool]]:
    """Tells whether somebody holds a lock, or has a transaction open.

    A Postgres may take a moment to see that a connection was closed, so there it is one that stays.
    """
    url = make_url(plan.url)
    if url.get_backend_name() == "sqlite":
        other = sqlite3.connect(url.database or "", isolation_level=None, timeout=0)
        yield lambda: _is_locked(other)
        other.close()
        return
    asked = "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND state LIKE 'idle in %%'"
    with databases.connect(plan.url, application_name="looks") as admin:
        yield lambda: _stays(lambda: bool(admin.execute(asked, (url.query["application_name"],)).fetchall()))


def _stays(is_held: Callable[[], bool]) -> bool:
    until = time.monotonic() + _PATIENCE_S
    while is_held():
        if time.monotonic() > until:
            return True
        time.sleep(0.01)
    return False


def _is_locked(other: sqlite3.Connection) -> bool:
    try:
        other.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return True
    other.execute("ROLLBACK")
    return False


def _worker(pipe: Any, plan: Plan) -> None:
    for number in (signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.default_int_handler)
    sys.unraisablehook = _send_again
    if plan.keeps_lock:
        SQLiteStore._commit_group = SQLiteStore._commit  # type: ignore[method-assign]
    numbers = iter(range(1 << 60))
    with Sessions(plan.url, namespace=plan.namespace) as log:
        log.append("s", [writers.note("begins")])
        pipe.send(None)
        while True:
            pipe.send(_round(pipe, log, numbers))


def _send_again(unraisable: Any) -> None:
    """Python drops what is raised in a finalizer, as that of a WeakSet, whoever made it."""
    if unraisable.exc_type is KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, _LATER_S)  # At once, it would be raised in here.


def _round(pipe: Any, log: Sessions, numbers: Any) -> tuple[list[str], list[str]]:
    """Work until the signal comes."""
    said: list[str] = []
    unsaid: list[str] = []
    over = threading.Event()
    other = threading.Thread(target=_write_beside, args=(log, numbers, over, said, unsaid))
    place, is_beside = pipe.recv()
    if is_beside:
        other.start()
    try:
        try:
            pipe.send(None)
            if place is not None:
                Interrupt(place, act=lambda: signal.raise_signal(signal.SIGINT)).arm()
            while True:
                for act in (_append, _turn, _load, _delete, _import):
                    act(log, f"{next(numbers)}", said)
        finally:
            sys.setprofile(None)
            over.set()
    except KeyboardInterrupt:
        pass
    if is_beside:
        other.join(_PATIENCE_S / 2)  # Before somebody takes the signal for swallowed.
    assert not other.is_alive(), "the other thread waits for ever"
    return said, unsaid


def _write_beside(
    log: Sessions, numbers: Any, over: threading.Event, said: list[str], unsaid: list[str]
) -> None:
    while not over.is_set():
        text = f"{next(numbers)}"
        try:
            _append(log, text, said)
        except AppendUnresolved:
            pass
        except KernError:
            unsaid.append(text)


def _append(log: Sessions, text: str, said: list[str]) -> None:
    log.append("s", [writers.note(text)])
    said.append(text)


def _turn(log: Sessions, text: str, said: list[str]) -> None:
    with log.turn("t") as turn:
        turn.record(writers.note(text))
        said.append(text)


def _load(log: Sessions, text: str, said: list[str]) -> None:
    log.load("s")


def _delete(log: Sessions, text: str, said: list[str]) -> None:
    log.append("d" + text, [writers.note(f"gone {text}")])
    log.delete("d" + text)


def _import(log: Sessions, text: str, said: list[str]) -> None:
    line = {"id": "i" + text, "messages": [{"role": "user", "content": text}]}
    import_transcripts(log, [json.dumps(line).encode()])

