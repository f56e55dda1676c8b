"""Clients that append and read at once while what they use fails, and the history of their calls.

Each client is a thread of its own, in this process or in another one. It tells of a call before it begins
and again when it has ended, so of one that is killed it is known what it was about to do.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import connection
from typing import Any, NamedTuple

from kern_events import AsyncSessionLog, Draft, SessionLog
from kern_events.batch import link
from kern_events.clock import now_us
from kern_events.errors import (
    AppendUnresolved,
    SessionNotFound,
    StoreBusy,
    StoreError,
    StoreUnavailable,
    VersionConflict,
)
from kern_events.store.base import AnswerLost, Landed, Refused, Rows, landed, refuses, unknown_head
from tests import facade, faults, writers
from tests.histories import ALL, NEVER, Append, Call, Entry, Final, Look, Place
from tests.writers import PATIENCE_S, note

SESSIONS = ("s", "t")
Tell = Callable[[tuple[str, int], Call], None]


class Plan(NamedTuple):
    """What one process does, or what stands for one in memory.

    Attributes:
        url, namespace: The log.
        line: One of LINES, between the clients and the database; each client has one of its own. None is
            a log without any, which they share.
        kind: sync or async.
        clients: How many threads.
        calls: How many calls each of them makes.
        mortal: It is killed at some moment, and another one follows it.
    """

    url: str
    namespace: str
    line: str | None = None
    kind: str = "sync"
    clients: int = 2
    calls: int = 10
    mortal: bool = False


# ------------------------------------------------------------------------------------- a client


class Client:
    """Makes calls at random, and tells of them under its name and their number."""

    def __init__(self, log: Any, name: str, chance: random.Random, tell: Tell) -> None:
        self._log = log
        self._name = name
        self._chance = chance
        self._tell = tell
        self._number = 0

    def run(self, calls: int) -> None:
        """So many calls."""
        for _ in range(calls):
            self._append() if self._chance.random() < 0.5 else self._look()

    def _append(self) -> None:
        self._number += 1
        chance, number = self._chance, self._number
        sessions = chance.sample(SESSIONS, chance.choice((1, 1, 1, 2)))
        texts = {
            one: [f"{self._name}/{number}{one}{part}" for part in range(chance.randint(1, 3))]
            for one in sessions
        }
        bases = {one: self._base(one) for one in sessions}
        key = f"{self._name}/{number}" if len(sessions) == 1 and chance.random() < 0.3 else None
        call = Append(_now(), NEVER, texts, "open", {})
        self._tell((self._name, number), call)
        outcome, places = self._until_known(call, bases, key)
        call = call._replace(outcome=outcome, places=places, ended=NEVER if outcome == "open" else _now())
        self._tell((self._name, number), call)
        if key and outcome == "recorded":
            self._append_again(call, key)

    def _append_again(self, call: Append, key: str) -> None:
        """As a queue that delivers a second time what was recorded."""
        with suppress(StoreBusy, StoreUnavailable):
            places = self._sent(_drafts(call.texts), dict.fromkeys(call.texts), key)
            self._told(call._replace(places=places, again=True))

    def _until_known(
        self, call: Append, bases: Mapping[str, Any], key: str | None
    ) -> tuple[str, Mapping[str, Place]]:
        """Call, and mostly call again if it is unresolved, as the error says."""
        drafts, open_ = _drafts(call.texts), False
        while True:
            try:
                return "recorded", self._sent(drafts, bases, key)
            except AppendUnresolved as error:
                if self._chance.random() < 0.3:
                    return "open", {}
                bases, open_ = error.bases, True
            except VersionConflict as conflict:
                self._told(Look(call.began, _now(), conflict.session_id, conflict.actual))
                return "nothing", {}
            except (StoreBusy, StoreUnavailable):
                return "open" if open_ else "nothing", {}

    def _sent(
        self, drafts: Mapping[str, Sequence[Draft]], bases: Mapping[str, Any], key: str | None
    ) -> Mapping[str, Place]:
        if len(drafts) == 1:
            ((session, ones),) = drafts.items()
            receipts = [self._log.append(session, ones, expected=bases[session], idempotency_key=key)]
        else:
            receipts = self._log.append_many([(one, drafts[one], bases[one]) for one in drafts])
        return {one.session_id: Place(one.first_version, one.version, one.position) for one in receipts}

    def _base(self, session: str) -> Any:
        """At the end, or behind what was just seen."""
        if self._chance.random() < 0.6:
            return None
        head = self._head(session)
        return self._chance.choice((head, head and head.version))

    def _head(self, session: str) -> Any:
        began = _now()
        with suppress(StoreBusy, StoreUnavailable):
            head = self._log.head(session)
            self._told(Look(began, _now(), session, head.version))
            return head
        return None

    def _look(self) -> None:
        session = self._chance.choice((*SESSIONS, ALL))
        began = _now()
        try:
            events = list(self._log.read(session) if session else self._log.read_all())
        except SessionNotFound:
            events = []
        except (StoreBusy, StoreUnavailable):
            return
        last = events[-1] if events else None
        level = (last.version if session else last.position) if last else 0
        self._told(Look(began, _now(), session, level, writers.texts(events)))

    def _told(self, call: Call) -> None:
        self._number += 1
        self._tell((self._name, self._number), call)


def _drafts(texts: Mapping[str, Sequence[str]]) -> dict[str, list[Draft]]:
    return {session: [note(text) for text in ones] for session, ones in texts.items()}


def _now() -> int:
    # The same clock in all processes of a machine.
    return time.monotonic_ns()


# ------------------------------------------------------------------- what stands before a database


class BadLine(faults.FaultyStore):
    """Loses answers, delivers late, and finds the database busy now and then."""

    def __init__(self, inner: Any, chance: random.Random) -> None:
        super().__init__(inner, chance, lambda: None)

    def attempt(self, batch: Any, base: Any, lock: bool = False) -> Any:
        if self._chance.random() < 0.1:
            raise StoreBusy("others are writing")
        return super().attempt(batch, base, lock)

    def _arrive(self) -> None:
        # What fails behind the line is nobody's business any more.
        with suppress(StoreError, AnswerLost):
            super()._arrive()


class EarlyStore:
    """Wrong: says that an append is recorded, and records it when it is asked for the next one."""

    def __init__(self, inner: Any, chance: random.Random) -> None:
        self._inner = inner
        self._owed: Callable[[], Any] = lambda: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def attempt(self, batch: Any, base: Any, lock: bool = False) -> Any:
        self._owed()
        head = self._inner.head(batch.namespace, batch.session_id) or unknown_head(batch)
        if refuses(batch, base, head):
            return Refused(head if base is None else base)
        self._owed = lambda: self._inner.attempt(batch, head)
        return landed(batch, link(batch, head, now_us()), None)


class RereadingStore(BadLine):
    """Wrong: after a lost answer it appends once more, wherever the session stands by then."""

    def attempt(self, batch: Any, base: Any, lock: bool = False) -> Any:
        try:
            return super().attempt(batch, base, lock)
        except AnswerLost:
            answer = self._inner.attempt(batch, None)
            if isinstance(answer, Landed):
                return answer
            raise


class StaleStore:
    """Wrong: answers a read with what the same read gave the time before."""

    def __init__(self, inner: Any, chance: random.Random) -> None:
        self._inner = inner
        self._before: dict[Any, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def tail(self, *where: Any) -> Any:
        now = self._inner.tail(*where)
        then, self._before[where] = self._before.get(where, now), now
        return then

    def rows(self, *where: Any) -> Any:
        return Rows()  # There is no second page.


LINES: dict[str, Any] = {
    "bad": BadLine,
    "early": EarlyStore,
    "rereading": RereadingStore,
    "stale": StaleStore,
}


@contextmanager
def _logs(base: SessionLog, plan: Plan, chance: random.Random) -> Iterator[list[Any]]:
    """The log of each client."""
    with ExitStack() as stack:
        inners = [base] * plan.clients
        if plan.line:
            stack.enter_context(faults.impatient())
            lines = [LINES[plan.line](base._store, chance) for _ in inners]
            inners = [_over(line, base.namespace) for line in lines]
            for line in lines:
                stack.callback(getattr(line, "settle", lambda: None))
        if plan.kind == "async":
            loop = facade.LoopThread()
            stack.callback(loop.close)
            yield [facade.Blocking(loop, AsyncSessionLog(one)) for one in inners]
        else:
            yield inners


def _over(store: Any, namespace: str) -> SessionLog:
    log = SessionLog("memory:", namespace=namespace)
    log._store = store
    return log


# ---------------------------------------------------------------------------------- histories


class History:
    """The calls of one scene; `account` counts their outcomes, and the processes that were killed."""

    def __init__(self) -> None:
        self._calls: dict[tuple[str, int], Call] = {}
        self.kills = 0

    @property
    def calls(self) -> list[Call]:
        """As far as they are known."""
        return list(self._calls.values())

    @property
    def account(self) -> Counter[str]:
        """What became of the appends, and how many looks and kills there were."""
        outcomes = Counter(call.outcome if isinstance(call, Append) else "look" for call in self.calls)
        return outcomes + Counter(kills=self.kills)

    def tell(self, key: tuple[str, int], call: Call) -> None:
        """A call begins, or has ended."""
        self._calls[key] = call


def final(log: SessionLog) -> Final:
    """What is recorded in the end."""
    found: dict[str, list[Entry]] = {}
    for session in SESSIONS:
        events = list(log.read(session)) if log.head(session).version else []
        found[session] = [Entry(event.version, event.position, event.payload["text"]) for event in events]
    return found


def in_threads(base: SessionLog, plans: Sequence[Plan], seed: Any) -> History:
    """All clients in this process, over the store of one log."""
    history, work = History(), []
    with ExitStack() as stack:
        for place, plan in enumerate(plans):
            chance = writers.pick((seed, place))
            logs = stack.enter_context(_logs(base, plan, chance))
            work += _work(logs, plan, f"p{place}", seed, history.tell)
        writers.in_threads(len(work), lambda number: work[number]())
    return history


def in_processes(plans: Sequence[Plan], seed: Any, trouble: Callable[[Call], None]) -> History:
    """A process for each plan; `trouble` is called with everything that they tell, as it comes."""
    history, chance = History(), writers.pick(seed)
    running: dict[Any, _Process] = {}
    for plan in plans:
        one = _Process(plan, f"p{len(running)}", seed, chance)
        running[one.pipe] = one
    while running:
        ready = connection.wait(list(running), PATIENCE_S)
        assert ready, "no process tells anything"
        for one in [running[pipe] for pipe in ready]:
            told = one.told()
            if isinstance(told, BaseException):
                raise told
            if told is not None:
                history.tell(*told)
                trouble(told[1])
                continue
            del running[one.pipe]
            writers.stop(one.process, one.pipe)
            if one.killed:
                history.kills += 1
                after = _Process(one.plan._replace(mortal=False), f"{one.name}+", seed, chance)
                running[after.pipe] = after
    return history


class _Process:
    """One that is running, or has been killed and not been heard to its end yet."""

    def __init__(self, plan: Plan, name: str, seed: Any, chance: random.Random) -> None:
        self.plan = plan
        self.name = name
        self.killed = False
        self._left = chance.randrange(4, 25) if plan.mortal else NEVER
        self.process, self.pipe = writers.start(_in_child, plan, name, seed)

    def told(self) -> Any:
        """What it tells next; None if that was all. It may be killed then."""
        self._left -= 1
        if self._left == 0:
            self.process.kill()
            self.killed = True
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            return None


def _in_child(pipe: Any, plan: Plan, name: str, seed: Any) -> None:
    sending = threading.Lock()

    def tell(key: tuple[str, int], call: Call) -> None:
        with sending:
            pipe.send((key, call))

    try:
        with (
            SessionLog(plan.url, namespace=plan.namespace, lock_timeout_s=0.1) as base,
            _logs(base, plan, writers.pick((seed, name))) as logs,
        ):
            work = _work(logs, plan, name, seed, tell)
            writers.in_threads(len(work), lambda number: work[number]())
    except BaseException as error:
        with sending:
            pipe.send(error)
    pipe.send(None)


def _work(logs: Sequence[Any], plan: Plan, name: str, seed: Any, tell: Tell) -> list[Callable[[], None]]:
    clients = [
        Client(log, f"{name}.{number}", writers.pick((seed, name, number)), tell)
        for number, log in enumerate(logs)
    ]
    return [lambda client=client: client.run(plan.calls) for client in clients]
