"""Processes that append until they are killed, and the account of what they acknowledged.

A child appends batches in streams: numbered from where the stream was last acknowledged, each under
its number as idempotency key, as a queue would deliver it again. It acknowledges over a pipe what
`append` has returned. The parent kills it at a random moment and starts the next.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from typing import Any, NamedTuple

from kern_events import SessionLog
from tests import facade, writers
from tests.writers import findings

_STREAM_EVENTS = (1, 2, 3)


class Plan(NamedTuple):
    """How a harness runs."""

    url: str
    processes: int = 1
    threads: int = 1
    facade: str = "sync"
    early: bool = False  # acknowledge before the commit: what the harness has to catch
    most_s: float = 0.03  # how long a process lives at the most, after its first acknowledgement


def cycles(plan: Plan, count: int, chance: random.Random) -> Counter[str]:
    """So many times: start the processes, kill each at a random moment, hold the log against them.

    Returns:
        How many batches were acknowledged, and of those lost, doubled or recorded in part; how often
        a session had a gap; how many findings verify had.
    """
    streams = [
        [f"p{process}.t{thread}" for thread in range(plan.threads)] for process in range(plan.processes)
    ]
    acknowledged = dict.fromkeys(itertools.chain(*streams), 0)
    account: Counter[str] = Counter(kills=0)
    for _ in range(count):
        children = [
            writers.start(_appender, plan, {name: acknowledged[name] + 1 for name in names})
            for names in streams
        ]
        for process, pipe in children:
            acknowledged.update([writers.answer_of(pipe)])
            time.sleep(chance.uniform(0, plan.most_s))
            process.kill()
            account["kills"] += 1
        for process, pipe in children:
            acknowledged.update(_left_in(pipe))
            writers.stop(process, pipe)
        account.update(_held_against(plan.url, acknowledged))
    account["acknowledged"] = sum(acknowledged.values())
    return account


def _left_in(pipe: Any) -> list[tuple[str, int]]:
    """What a dead child had acknowledged."""
    left = []
    try:
        while True:
            left.append(pipe.recv())
    except (EOFError, OSError):
        return left


def _held_against(url: str, acknowledged: dict[str, int]) -> Counter[str]:
    found: Counter[str] = Counter(lost=0, doubled=0, part=0, gaps=0, findings=0)
    with SessionLog(url) as log:
        for stream, last in acknowledged.items():
            events = list(log.read(stream)) if log.head(stream).version else []
            found["gaps"] += [event.version for event in events] != list(range(1, len(events) + 1))
            times = Counter(event.payload["text"] for event in events)
            for number in range(1, last + 2):  # One more may have been committed and not acknowledged.
                there = [times[text] for text in _said(number)]
                found["lost"] += number <= last and 0 in there
                found["part"] += 0 in there and any(there)
                found["doubled"] += max(there) > 1
            found["unknown"] += len(events) - sum(
                len(_said(n)) for n in range(1, last + 2) if times[_said(n)[0]]
            )
        found["findings"] += len(findings(log))
    return found


def _said(number: int) -> list[str]:
    return [f"{number}/{part}" for part in range(_STREAM_EVENTS[number % len(_STREAM_EVENTS)])]


def _appender(pipe: Any, plan: Plan, streams: dict[str, int]) -> None:
    sending = threading.Lock()

    def acknowledge(stream: str, number: int) -> None:
        with sending:
            pipe.send((stream, number))

    def run(log: Any, stream: str, first: int) -> None:
        for number in itertools.count(first):
            drafts = [writers.note(text) for text in _said(number)]
            if plan.early:
                acknowledge(stream, number)
            log.append(stream, drafts, idempotency_key=f"{number}")
            if not plan.early:
                acknowledge(stream, number)

    with facade.opened(plan.facade, plan.url, lock_timeout_s=30.0) as log:
        threads = [
            threading.Thread(target=run, args=(log, *stream), daemon=True) for stream in streams.items()
        ]
        for thread in threads[1:]:
            thread.start()
        threads[0].run()
