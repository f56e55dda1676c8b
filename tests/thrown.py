"""Exceptions thrown into threads that share a log, as PyThreadState_SetAsyncExc does.

Frameworks stop threads in that way. Some of the threads lead the group commit at that moment, others follow;
on Postgres each is in the middle of its own exchange.
"""

from __future__ import annotations

import ctypes
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from kern_events.errors import AppendUnresolved, KernError
from tests.writers import PATIENCE_S, eventually, findings, note, texts

_THREADS = 4
_MOST_S = 0.004
_set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc


class Stopped(BaseException):
    """What is thrown."""


class _Worker:
    """Appends until it is stopped, and then goes on with the next."""

    def __init__(self, log: Any, number: int) -> None:
        self.said: list[str] = []
        self.unsaid: list[str] = []
        self.arrived = 0
        self.over = False
        self.catches = False
        self._log, self._number = log, number
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while not self.over:
            try:
                self._work()
            except Stopped:
                self.catches = False
                self.arrived += 1

    def _work(self) -> None:
        self.catches = True
        while not self.over:
            text = f"{self._number}.{len(self.said)}.{self.arrived}.{len(self.unsaid)}"
            try:
                self._log.append(f"s{self._number % 2}", [note(text)])
                self.said.append(text)
            except AppendUnresolved:
                continue
            except KernError:
                self.unsaid.append(text)

    def throw(self) -> None:
        assert self.thread.ident is not None
        _set_exception(ctypes.c_ulong(self.thread.ident), ctypes.py_object(Stopped))


def _throw_again(unraisable: Any) -> None:
    """Python drops what is raised in a finalizer, as the driver's of a connection."""
    if unraisable.exc_type is Stopped:
        thread = ctypes.c_ulong(threading.get_ident())
        # A moment later: at once, it would be raised in here, and dropped as well.
        threading.Timer(0.001, _set_exception, (thread, ctypes.py_object(Stopped))).start()


@contextmanager
def _at_work(log: Any) -> Iterator[list[_Worker]]:
    before, sys.unraisablehook = sys.unraisablehook, _throw_again
    workers = [_Worker(log, number) for number in range(_THREADS)]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.over = True
        sys.unraisablehook = before


def account_of(log: Any, count: int, chance: random.Random, patience_s: float = PATIENCE_S) -> Counter[str]:
    """Throw so often into one of the threads, and hold the log against what they were told.

    Returns:
        How many exceptions were thrown and arrived; how many threads hang; how many appends were
        acknowledged, and of those lost and doubled; of how many it was said wrongly that nothing was
        written; how many findings verify had.
    """
    account: Counter[str] = Counter(thrown=count)
    with _at_work(log) as workers:
        for _ in range(count):
            worker = chance.choice(workers)
            eventually(lambda worker=worker: worker.catches, "it is at work again")
            before = worker.arrived
            time.sleep(chance.uniform(0, _MOST_S))
            worker.throw()
            deadline = time.monotonic() + patience_s
            while worker.arrived == before and time.monotonic() < deadline:
                time.sleep(0.0005)
            if worker.arrived == before:
                break  # The account says so.
    for worker in workers:
        worker.thread.join(patience_s)
    account["arrived"] = sum(worker.arrived for worker in workers)
    account["hang"] = sum(worker.thread.is_alive() for worker in workers)
    if account["hang"]:
        _end_search()
        return account
    said = [text for worker in workers for text in worker.said]
    times = Counter(text for number in range(2) for text in texts(log.read(f"s{number}")))
    account["acknowledged"] = len(said)
    account["lost"] = sum(times[text] == 0 for text in said)
    account["doubled"] = sum(count > 1 for count in times.values())
    account["untrue"] = sum(times[text] > 0 for worker in workers for text in worker.unsaid)
    account["findings"] = len(findings(log))
    return account


def _end_search() -> None:
    """Have Python look no more for an exception that waits for a thread that hangs, until one arrives here.

    It would at every step of every thread, and under a profiler it would come no further for that.
    """
    with suppress(Stopped):
        _set_exception(ctypes.c_ulong(threading.get_ident()), ctypes.py_object(Stopped))
        eventually(lambda: None)
