"""Processes that are forked while threads of their parent are at work on a log.

Threads append and load, several others fork at the same moment, and each child appends, reads and loads by
the log that it inherits. The account says what the log does not have of what was acknowledged, and which
children could not work.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.facade import store_of, sync_of
from tests.writers import PATIENCE_S, eventually, in_threads, note, texts

_FORKERS = 2
_WRITERS = 2


class Storm(NamedTuple):
    """What forks, and how often."""

    log: Any  # sessions, sync or async
    forks: int  # of each of the threads that fork
    number: int = 0  # of those before it on the same log
    patience_s: float = PATIENCE_S  # with a child


def forked(work: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """What `work` answers in a forked child, or the text of its error; which ends without any cleaning up."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Newer Pythons warn of forks beside threads; that is what this is about.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _answer(writing, work, patience_s)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    return pickle.loads(data) if data else "the child died or hung"


def _answer(writing: int, work: Callable[[], Any], patience_s: float) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, patience_s)
    try:
        data = pickle.dumps(work())
    except BaseException as error:
        data = pickle.dumps(repr(error))
    os.write(writing, data)
    os._exit(0)


def account_of(storm: Storm) -> Counter[str]:
    """Fork so often beside others who are at work, and hold the log against what was acknowledged.

    Returns:
        How many children there were, and of them those `locked out`; how many events were acknowledged,
        and of those lost and doubled; how many findings verify had, in the log and in the children.
    """
    log, account, over = storm.log, Counter[str](), threading.Event()
    session = f"s{storm.number}"
    log.append(session, [note("begins")])
    working = threading.Semaphore(0)

    def write(number: int) -> list[str]:
        said: list[str] = []
        while not over.is_set():
            text = f"{number}.{len(said)}"
            log.append(session, [note(text)])
            said.append(text)
            if number == 0:
                list(log.read(session, after=max(0, len(said) - 20)))
                log.load(session)
            working.release()
        return said

    def fork(number: int) -> list[str]:
        said = []
        for _ in range(_WRITERS):
            assert working.acquire(timeout=PATIENCE_S)
        for turn in range(storm.forks):
            text = f"child {number}.{turn}"
            answer = forked(lambda text=text: _in_child(sync_of(log), session, text), storm.patience_s)
            account["children"] += 1
            account["locked out"] += answer != "worked"
            if answer == "worked" and store_of(log).dialect != "memory":
                said.append(text)
        return said

    def work(number: int) -> list[str]:
        if number < _WRITERS:
            return write(number)
        try:
            return fork(number)
        finally:
            done.append(number)
            if len(done) == _FORKERS:
                over.set()

    done: list[int] = []
    acknowledged = [text for said in in_threads(_WRITERS + _FORKERS, work) for text in said]
    eventually(over.is_set)
    times = Counter(texts(log.read(session)))
    account["acknowledged"] = len(acknowledged)
    account["lost"] = sum(times[text] == 0 for text in acknowledged)
    account["doubled"] = sum(count > 1 for count in times.values())
    account["findings"] = len(log.verify(session).findings)
    return account


def _in_child(log: Any, session: str, text: str) -> str:
    version = log.append(session, [note(text)]).version
    said = texts(log.read(session, after=version - 1))[0]
    if said != text or log.load(session).version < version:
        return f"read {said!r}"
    log.close()
    return "worked"
