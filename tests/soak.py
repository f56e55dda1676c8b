"""Everything at once for a while, and the account of it: nothing lost, nothing double, nothing left behind.

Threads append, restore, fork, delete and load through Redis. One consumer works beside them without a
break, others in processes of their own that are killed again and again: one tells what it was given over a
pipe, one writes it into a table of the log's database. What is acknowledged, recorded and handed on is
compared in the end, and what the process holds then with what it held once it was warm.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from sqlalchemy import text

from kern_events import Draft, SessionLog
from kern_events.errors import SessionDeleted, SessionExists, SessionNotFound, VersionConflict
from projections import Sessions
from tests import writers
from tests.writers import findings

SESSIONS: Final = 12
WRITERS: Final = 2
BATCH: Final = 20
PAUSE_S: Final = 0.002  # of a writer, or consumers on a busy machine never come to the end

SPARE: Final = {"descriptors": 40, "threads": 8}  # what pools may still grow by
LEAK: Final = 50

Place = tuple[str, int]


class Plan(NamedTuple):
    """How long the soak takes, and what is wrong with it on purpose.

    With `late` a killed consumer keeps the last event of each batch to itself, to tell of them in the end,
    and by then their positions are stored. With `leaks` each round leaves files open.
    """

    url: str
    redis_url: str
    seconds: float
    seed: int = 1
    late: bool = False
    leaks: bool = False


def soak(plan: Plan) -> Counter[str]:
    """Run a plan; the account, with what must be 0 where the names say that something is wrong."""
    with Sessions.open(plan.url, cache=plan.redis_url, lock_timeout_s=30.0) as sessions:
        sessions.migrate()
        run = _Run(plan, sessions)
        try:
            run.work()
        finally:
            run.end()
        return run.account()


class _Run:
    def __init__(self, plan: Plan, sessions: Sessions) -> None:
        self._plan = plan
        self._sessions = sessions
        self._over = threading.Event()
        self._errors: list[BaseException] = []
        self._acknowledged: list[Place] = []
        self._steady: list[Place] = []
        self._told: list[Place] = []
        self._leaked: list[int] = []
        self._kills = 0
        self._held: list[Counter[str]] = []
        self._note("s0", 1, sessions.append("s0", writers.notes(1)).version)
        sessions.consumer("sink", _make_sink, transactional=True).step()
        self._consumer = sessions.consumer("steady", lambda each: self._steady.extend(_places(each)))
        jobs: list[tuple[Any, ...]] = [(self._consumer.run,)]
        jobs += [(self._write, random.Random(f"{plan.seed}.{number}")) for number in range(WRITERS)]
        self._threads = [threading.Thread(target=self._guarded, args=job) for job in jobs]

    def work(self) -> None:
        """Kill consumers until the time is up."""
        writers.in_processes(1, int)  # The first one takes its time.
        chance, deadline = random.Random(self._plan.seed), time.monotonic() + self._plan.seconds
        for thread in self._threads:
            thread.start()
        while (now := time.monotonic()) < deadline and not self._errors:
            self._live_and_die(min(chance.uniform(0.3, 2.0), deadline - now))

    def end(self) -> None:
        """Let everybody finish, and consumers come to the end."""
        self._over.set()
        self._consumer.stop()
        for thread in self._threads:
            thread.join(writers.PATIENCE_S)
            assert not thread.is_alive()
        if self._errors:
            raise self._errors[0]
        handle = lambda each: self._steady.extend(_places(each))  # noqa: E731
        self._sessions.consumer("steady", handle).run(until_idle=True)
        self._sessions.consumer("told", lambda each: self._told.extend(_places(each))).run(until_idle=True)
        self._sessions.consumer("sink", writers.into_sink, transactional=True).run(until_idle=True)

    def account(self) -> Counter[str]:
        """What was recorded, and what is not as it should be."""
        recorded = _places(self._sessions.read_all())
        found: Counter[str] = Counter(events=len(recorded), kills=self._kills)
        found["unrecorded"] = len(set(self._acknowledged) - set(recorded))
        found["acknowledged twice"] = len(self._acknowledged) - len(set(self._acknowledged))
        for name, given in (("steady", self._steady), ("sink", _in_sink(self._sessions))):
            found[f"{name}: lost"] = len(set(recorded) - set(given))
            found[f"{name}: doubled"] = len(given) - len(set(given))
        found["told: lost"] = len(set(recorded) - set(self._told))
        again = len(self._told) - len(set(self._told))
        found["told: doubled beyond a batch for each kill"] = max(0, again - BATCH * self._kills)
        found["findings"] = len(findings(self._sessions))
        found["wrong views"] = self._wrong_views()
        warm, hot = self._held[len(self._held) // 3], self._held[-1]
        for what, spare in SPARE.items():
            found[f"more {what}"] = max(0, hot[what] - warm[what] - spare)
        found["memory, kB"] = hot["memory, kB"] - warm["memory, kB"]
        for descriptor in self._leaked:
            os.close(descriptor)
        return found

    def _guarded(self, work: Any, *args: Any) -> None:
        try:
            work(*args)
        except BaseException as error:
            self._errors.append(error)

    def _live_and_die(self, life_s: float) -> None:
        """Two consumers in processes of their own, for so long and for some batches."""
        url, batches = self._plan.url, 0
        children = [
            writers.start(_tell, url, self._plan.late),
            writers.start(writers.consume_into_sink, url),
        ]
        telling, pipe = children[0]
        with suppress(EOFError, OSError):
            self._told += writers.answer_of(pipe)
            self._held.append(_held())
            until = time.monotonic() + life_s
            while batches < 2 or time.monotonic() < until:
                if pipe.poll(0.01):
                    self._told += pipe.recv()
                    batches += 1
            if self._plan.leaks:
                self._leaked += [os.open(os.devnull, os.O_RDONLY) for _ in range(LEAK)]
            self._held.append(_held())
            telling.kill()
            while True:
                self._told += pipe.recv()
        for process, end in children:
            writers.stop(process, end)
        self._kills += 1

    def _write(self, chance: random.Random) -> None:
        number = 0
        while not self._over.wait(PAUSE_S):
            number += 1
            session = f"s{chance.randrange(SESSIONS)}"
            acts = (self._append, self._load, self._restore, self._fork, self._delete)
            act = chance.choices(acts, _OFTEN)[0]
            with suppress(SessionNotFound, SessionExists, VersionConflict):
                act(session, chance, number)

    def _append(self, session: str, chance: random.Random, number: int) -> None:
        drafts = [writers.note(f"{number}.{part}") for part in range(chance.randrange(1, 5))]
        try:
            receipt = self._sessions.append(session, drafts)
        except SessionDeleted:
            receipt = self._sessions.append(session, [Draft("session.created", {}), *drafts])
        self._note(session, receipt.first_version, receipt.version)

    def _load(self, session: str, chance: random.Random, number: int) -> None:
        self._sessions.load(session)

    def _restore(self, session: str, chance: random.Random, number: int) -> None:
        version = self._sessions.head(session).version
        with suppress(ValueError):  # A fork of what was deleted has little to go back to.
            receipt = self._sessions.restore(session, to_version=chance.randint(1, max(1, version)))
            self._note(session, receipt.version, receipt.version)

    def _fork(self, session: str, chance: random.Random, number: int) -> None:
        into = f"{session}.{number}.{chance.randrange(10**9)}"
        receipt = self._sessions.fork(session, into=into)
        self._note(into, receipt.version, receipt.version)

    def _delete(self, session: str, chance: random.Random, number: int) -> None:
        self._sessions.delete(session)

    def _note(self, session: str, first: int, last: int) -> None:
        self._acknowledged += [(session, version) for version in range(first, last + 1)]

    def _wrong_views(self) -> int:
        """How many of the first sessions look otherwise without any cache."""
        wrong = 0
        with Sessions.open(self._plan.url, durable=False) as bare:
            for session in (f"s{number}" for number in range(SESSIONS)):
                with suppress(SessionNotFound):
                    wrong += self._sessions.load(session) != bare.load(session)
        return wrong


_OFTEN: Final = (40, 12, 2, 2, 1)


def _places(events: Any) -> list[Place]:
    return [(event.session_id, event.version) for event in events]


def _make_sink(events: Sequence[Any], connection: Any) -> None:
    serial = "bigserial" if connection.dialect.name == "postgresql" else "INTEGER PRIMARY KEY"
    connection.execute(text(f"CREATE TABLE sink (n {serial}, session_id text, version bigint)"))
    writers.into_sink(events, connection)


def _in_sink(sessions: Sessions) -> list[Place]:
    found: list[Place] = []

    def read(events: Sequence[Any], connection: Any) -> None:
        if not found:
            rows = connection.execute(text("SELECT session_id, version FROM sink ORDER BY n"))
            found.extend((row[0], row[1]) for row in rows)

    sessions.consumer("reader", read, transactional=True).step()
    return found


def _tell(pipe: Any, url: str, late: bool) -> None:
    """A consumer that tells what it was given, until it is killed."""

    def handle(events: Sequence[Any]) -> None:
        pipe.send(_places(events)[: -1 if late else None])

    with SessionLog(url, lock_timeout_s=30.0) as log:
        log.consumer("told", handle, batch_size=BATCH).run()


def _held() -> Counter[str]:
    """What this process holds."""
    with open("/proc/self/status", encoding="ascii") as status:
        lines = dict(line.split(":", 1) for line in status)
    return Counter(
        {
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
            "memory, kB": int(lines["VmRSS"].split()[0]),
        }
    )
