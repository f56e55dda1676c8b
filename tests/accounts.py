"""Writers whose every append is acknowledged or denied, and the account of both against the log.

Each note has a number of its own. It is acknowledged if a call for it returned. It is denied if the log
said that nothing was written: an error that is not AppendUnresolved, or, after one, that the base is
somebody else's. What is unresolved is repeated as the README says, until it is one or the other.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from kern_events.errors import (
    AppendUnresolved,
    SessionNotFound,
    StoreBusy,
    StoreError,
    StoreUnavailable,
    VersionConflict,
)
from kern_events.store.base import AnswerLost
from tests import writers
from tests.writers import findings

_PAUSE_S = 0.01  # after an error, so that nobody turns around at a server that is away


class Account:
    """What was said of each note."""

    def __init__(self) -> None:
        self.acknowledged: dict[int, str] = {}
        self.denied: dict[int, str] = {}
        self.deleted: set[str] = set()
        self.unresolved = 0

    def against(self, log: Any) -> Counter[str]:
        """How many notes are lost, doubled, or there although that was denied; gaps and findings."""
        found: Counter[str] = Counter(lost=0, doubled=0, denied_but_there=0, gaps=0, findings=0, back=0)
        times: Counter[tuple[str, int]] = Counter()
        for session_id in {*self.acknowledged.values(), *self.denied.values()}:
            with suppress(SessionNotFound):
                events = list(log.read(session_id))
                found["gaps"] += [event.version for event in events] != list(range(1, len(events) + 1))
                times.update((session_id, number) for number in writers.texts(events))
        for number, session_id in self.acknowledged.items():
            found["lost"] += times[session_id, number] == 0
            found["doubled"] += times[session_id, number] > 1
        found["denied_but_there"] = sum(times[said, number] > 0 for number, said in self.denied.items())
        found["back"] = sum(log.head(session_id).status != "deleted" for session_id in self.deleted)
        found["findings"] = len(findings(log))
        return found


class Denying:
    """A store that takes a lost answer for none: the control. Whoever repeats after its errors doubles."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def attempt(self, *args: Any, **options: Any) -> Any:
        try:
            return self._inner.attempt(*args, **options)
        except AnswerLost as lost:
            raise StoreUnavailable("there was no answer") from lost


class Writer:
    """Appends in many ways, one after the other."""

    def __init__(self, log: Any, account: Account, number: int) -> None:
        self._log = log
        self._account = account
        self._name = f"w{number}"
        self._numbers = itertools.count(number * 1_000_000)
        self._stopped = threading.Event()
        self.kinds: list[Callable[[int], None]] = [
            self.append, self.keyed, self.shared, self.many, self.turn, self.fork, self.delete,
        ]  # fmt: skip

    def work(self, chance: random.Random) -> None:
        """One more append, or what else it does."""
        chance.choice(self.kinds)(next(self._numbers))

    def run(self, chance: random.Random) -> None:
        """Go on until `stop`."""
        while not self._stopped.is_set():
            self.work(chance)

    def stop(self) -> None:
        """Have `run` return once what it does is decided."""
        self._stopped.set()

    def append(self, number: int) -> None:
        self._decide(number, self._name, None)

    def keyed(self, number: int) -> None:
        self._decide(number, self._name, f"k{number}")

    def shared(self, number: int) -> None:
        self._decide(number, "shared", None)

    def carelessly(self, number: int) -> None:
        """None of the kinds: again after any error, with another draft."""
        while True:
            try:
                self._log.append(self._name, [writers.note(number)])
            except StoreError:
                self._stopped.wait(_PAUSE_S)
                continue
            self._account.acknowledged[number] = self._name
            return

    def many(self, number: int) -> None:
        sessions, drafts = (self._name, f"{self._name}-many"), [writers.note(number)]
        bases = dict.fromkeys(sessions)
        self._until_decided(
            lambda: self._log.append_many([(each, drafts, bases[each]) for each in sessions]),
            number, sessions[1], bases,
        )  # fmt: skip

    def turn(self, number: int) -> None:
        """Recorded as a whole, or not at all; what is unresolved is left so."""
        session_id = f"{self._name}-turns"
        try:
            with self._log.turn(session_id, buffered=True) as turn:
                turn.record(writers.note(number))
        except AppendUnresolved:
            self._account.unresolved += 1
        except (StoreBusy, StoreUnavailable):
            self._deny(number, session_id)
        else:
            self._account.acknowledged[number] = session_id

    def fork(self, number: int) -> None:
        """A fork of what is there; no note, but another session with a chain."""
        self._passing(lambda: self._log.fork(self._name, f"{self._name}-{number}"))

    def delete(self, number: int) -> None:
        """A session that is deleted again; that it was is final."""
        session_id = f"{self._name}-{number}"
        self._passing(lambda: self._log.append(session_id, [writers.note(number)], expected=0))
        if self._passing(lambda: self._log.delete(session_id)):
            self._account.deleted.add(session_id)

    def _passing(self, call: Callable[[], Any]) -> bool:
        try:
            call()
        except (SessionNotFound, VersionConflict):
            return False
        except (StoreBusy, StoreUnavailable):
            self._stopped.wait(_PAUSE_S)
            return False
        return True

    def _decide(self, number: int, session_id: str, key: str | None) -> None:
        drafts, bases = [writers.note(number)], dict[str, int | None]({session_id: None})
        self._until_decided(
            lambda: self._log.append(session_id, drafts, expected=bases[session_id], idempotency_key=key),
            number, session_id, bases,
        )  # fmt: skip

    def _until_decided(
        self, call: Callable[[], Any], number: int, session_id: str, bases: dict[str, int | None]
    ) -> None:
        while True:
            try:
                call()
            except AppendUnresolved as error:
                self._account.unresolved += 1
                bases.update(error.bases)
            except VersionConflict:
                return self._deny(number, session_id)
            except (StoreBusy, StoreUnavailable):
                if bases[session_id] is None:
                    return self._deny(number, session_id)
                self._stopped.wait(_PAUSE_S)
            else:
                self._account.acknowledged[number] = session_id
                return None

    def _deny(self, number: int, session_id: str) -> None:
        self._account.denied[number] = session_id
        self._stopped.wait(_PAUSE_S)
