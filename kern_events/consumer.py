"""Consumers: the feed handed on to another system, from where it was left, by one of several workers.

A sink in the log's own database gets the connection of the transaction in which its position is stored, so
every event has its effect exactly once. Any other sink gets every event at least once. An event that the
sink refuses sets its session aside: that session's later events wait, all others go on.
"""

from __future__ import annotations

import inspect
import logging
import os
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy.engine import Connection

from kern_events.batch import StoredRow
from kern_events.clock import said_us
from kern_events.codec import check_id
from kern_events.errors import (
    DecodeError,
    KernError,
    StoreBusy,
    StoreError,
    StoreFull,
    StoreUnavailable,
    UpcastFailed,
)
from kern_events.events import Event
from kern_events.feed import LATEST_S, Follower, settled_end
from kern_events.numbers import check_optional, check_whole
from kern_events.store.base import ConsumerRow, Due, Held, Parked, Store
from kern_events.store.consumers import RETRY_MOST_US, Fenced

if TYPE_CHECKING:
    from kern_events.log import SessionLog

logger: Final = logging.getLogger("kern_events")

LEASE_S: Final = 0.7  # so that the next one takes over within a second of a death
_RENEWED_S: Final = LEASE_S / 3
_RETRY_S: Final = (0.1, RETRY_MOST_US / 1e6)  # before the second attempt at an event, and a later one at most
_DOUBLINGS: Final = 10  # Then the pause has long been the longest.
_COUNTED: Final = 10_000
_NEWEST: Final = 2**62
_FAR: Final = 10_000  # positions of other namespaces that are not to be passed over again
_DOWN_S: Final = (0.05, 2.0)  # between attempts while the database does not answer

Handler = Callable[[Sequence[Event]], object]
SQLHandler = Callable[[Sequence[Event], Connection], object]


class NotAwaited(TypeError):
    """A handler gave a coroutine where nobody awaits it: nothing was handed over."""


class ConsumerStep(NamedTuple):
    """What one step of a consumer did.

    Attributes:
        events: Events that the handler took.
        parked: Sessions that were set aside.
        position: Everything at or below it is done, or waits in a session that is set aside.
        active: Whether this worker is the one that works; the others stand by.
        more: Whether there is something to do at once.
    """

    events: int
    parked: int
    position: int
    active: bool
    more: bool


class Consumer:
    """Hands the events of a log to a handler, and remembers how far it has come. See SessionLog.consumer."""

    def __init__(
        self,
        log: SessionLog,
        name: str,
        handle: Handler | SQLHandler,
        *,
        after: int | None,
        transactional: bool,
        batch_size: int,
        attempts: int,
    ) -> None:
        if inspect.iscoroutinefunction(handle):
            raise TypeError("a coroutine function is awaited by AsyncSessionLog.consumer")
        self.name: Final = check_id(name, "name")
        log._store.consumers.check_room(transactional)
        self._log = log
        self._handle: Callable[..., object] = handle
        self._after = check_optional("after", after)
        self._begun = False
        self._handed = _Handed(0, 0, 0)
        self._transactional = transactional
        self._batch_size = check_whole("batch_size", batch_size, 1)
        self._attempts = check_whole("attempts", attempts, 1)
        self._name_owner()
        self._follower = Follower(log._store, log.namespace, 0)
        self._stopping = False
        self._woken = threading.Event()

    def _name_owner(self) -> None:
        """Who holds the lease: this object in this process, not its copy in a forked one."""
        self._process = os.getpid()
        self._owner = f"{self._process}-{uuid.uuid4().hex[:12]}"

    # --------------------------------------------------------------------------------- working

    def run(self, *, until_idle: bool = False) -> int:
        """Work until `stop` is called, or until nothing is left; gives the number of events handled.

        Of several workers of one name, in whatever processes, one works and the others stand by; when
        it dies, another one goes on within a second. A database that does not answer, or has no room, is
        waited for, with a warning in the log.

        Args:
            until_idle: Return once everything that is final is done.

        Raises:
            FeedRegressed: The log ends before the consumer's position.
            FeedUnavailable: This server cannot give a gap-safe feed, or takes no writes: a standby, or a
                role or database with `default_transaction_read_only`, or a read-only SQLite file.
        """
        self._log._wakeups.add(self)
        handled, down_s = 0, _DOWN_S[0]
        try:
            while not self._is_over():
                self._woken.clear()
                try:
                    step = self.step()
                except StoreError as error:
                    if self._is_over():
                        break
                    if not _passes(error):
                        raise
                    logger.warning("consumer %r waits for the database: %s", self.name, error)
                    self._woken.wait(down_s)
                    down_s = min(2 * down_s, _DOWN_S[1])
                    continue
                handled, down_s = handled + step.events, _DOWN_S[0]
                if step.more:
                    continue
                if until_idle and step.active and not self._follower.held:
                    break
                self._woken.wait(LATEST_S if step.active or self._follower.held else _RENEWED_S)
        finally:
            self._log._wakeups.remove(self)
            self._give_back()
        return handled

    def _is_over(self) -> bool:
        return self._stopping or self._log._closing

    def step(self) -> ConsumerStep:
        """Handle one batch, if this worker is the one that works and there is something new."""
        if self._process != os.getpid():
            self._name_owner()
        consumers, key = self._log._store.consumers, (self._log.namespace, self.name, self._owner)
        self._begin()
        lease_us = int(LEASE_S * 1_000_000)
        if self._transactional:
            with consumers.in_transaction(*key, lease_us) as held:
                return self._worked(held)
        held = consumers.leased(*key, lease_us)
        if held is None:
            return self._worked(None)
        try:
            with self._renewed(held):
                return self._worked(held)
        except Fenced:
            return ConsumerStep(0, 0, self._follower.position, False, False)

    def _begin(self) -> None:
        """The consumer's row, which is there from then on, but for a failover."""
        if not self._begun:
            store = self._log._store
            if self._after is None:
                self._after = settled_end(store, self._log._lock_timeout_s)
            store.consumers.begin(self._log.namespace, self.name, self._after)
            self._begun = True

    def stop(self) -> None:
        """Have `run` return after the batch that it is at, within a quarter of a second where there is none.

        From any thread or signal handler.
        """
        # Nothing else: a lock that the interrupted thread holds would be waited for in a signal handler.
        self._stopping = True

    def wake(self) -> None:
        """Look for new events now."""
        self._woken.set()

    # ------------------------------------------------------------------------------ inspecting

    def position(self) -> int:
        """Everything at or below this position is done, or waits in a session that is set aside."""
        rows = self._log._store.consumers.all(self._log.namespace)
        return next((row.position for row in rows if row.name == self.name), 0)

    def parked(self) -> list[Parked]:
        """The sessions that are set aside, the longest first."""
        return list(self._log._store.consumers.parked(self._log.namespace, self.name))

    def retry(self, session_id: str) -> bool:
        """Try a session that was set aside again, from the event that failed; False if it is not."""
        check_id(session_id, "session_id")
        return self._log._store.consumers.retry(self._log.namespace, self.name, session_id)

    def skip(self, session_id: str, version: int) -> bool:
        """Pass over the event that a session was set aside for; False if it does not wait there."""
        check_id(session_id, "session_id")
        version = check_whole("version", version)
        return self._log._store.consumers.skip(self._log.namespace, self.name, session_id, version)

    # ------------------------------------------------------------------------------- one batch

    def _worked(self, held: Held | None) -> ConsumerStep:
        if held is None:
            self._begun = False  # Somebody else has it, or a failover took its row.
            return ConsumerStep(0, 0, self._follower.position, False, False)
        before = self._catch_up(held)
        self._follower.go_to(held.position)
        tried = self._try_again(held)
        rows = self._follower.poll(self._batch_size)
        taken, parked = self._take(held, rows)
        position = self._follower.position
        if rows or position - held.position >= _FAR:
            self._note_handed(held, position, taken)
            held.move(position)
            self._handed = _Handed(0, 0, 0)
        return ConsumerStep(before + taken, parked, position, True, bool(tried or rows))

    def _note_handed(self, held: Held, position: int, events: int) -> None:
        """The handler has everything up to a position; in a transaction of ours that may be undone yet."""
        if held.connection is None:
            self._handed = _Handed(held.position, position, events)

    def _catch_up(self, held: Held) -> int:
        """Store how far the handler came before the database failed us; how many events it had taken."""
        after, until, events = self._handed
        if held.position == after < until:
            held.move(until)
        self._handed = _Handed(0, 0, 0)
        return events

    def _take(self, held: Held, rows: Sequence[tuple[str, StoredRow]]) -> tuple[int, int]:
        """Hand a batch over: together, or, where that fails, one recorded event after the other."""
        aside = held.parked_ids() if rows else set[str]()
        found = [self._read(session_id, row) for session_id, row in rows if session_id not in aside]
        events = [event for each in found for event in each.events]
        if not any(each.problem for each in found) and (not events or self._accepts(held, events) is None):
            return len(events), 0
        taken, parked = 0, set[str]()
        for each in found:
            if each.session_id in parked:
                continue
            problem = each.problem or self._accepts(held, each.events)
            if problem is None:
                taken += len(each.events)
            else:
                parked.add(each.session_id)
                self._set_aside(held, each.session_id, each.version, 1, problem)
            self._note_handed(held, each.position, taken)
        return taken, len(parked)

    def _read(self, session_id: str, row: StoredRow) -> _Recorded:
        try:
            return _Recorded(session_id, row[0], row[1], self._log._events_of(session_id, row), None)
        except (DecodeError, UpcastFailed) as error:
            return _Recorded(session_id, row[0], row[1], (), _described(error))

    def _accepts(self, held: Held, events: Sequence[Event]) -> str | None:
        """Whether the handler takes some events; if not, what it raised, without its text."""
        if not events:
            return None
        try:
            with held.attempt():
                self._call(events, held.connection)
        except (Fenced, NotAwaited):
            raise
        except Exception as error:
            # On SQLite nobody else has the lock that a sink's own transaction holds.
            holds_lock = held.connection is not None and self._log._store.dialect == "sqlite"
            deadlocked = holds_lock and isinstance(error, StoreBusy)
            if isinstance(error, StoreError) and _passes(error) and not deadlocked:
                raise
            if held.connection is not None and held.connection.invalidated:
                raise StoreUnavailable(f"the database went away in a transaction of {self.name!r}") from error
            return _described(error)
        return None

    def _call(self, events: Sequence[Event], connection: Connection | None) -> None:
        result = self._handle(events, connection) if self._transactional else self._handle(events)
        if inspect.isawaitable(result):
            getattr(result, "close", lambda: None)()
            raise NotAwaited(
                f"the handler of consumer {self.name!r} gave something to await: use "
                "AsyncSessionLog.consumer, and a plain function where it is transactional"
            )

    def _set_aside(
        self, held: Held, session_id: str, version: int, attempts: int, problem: str, was: Due | None = None
    ) -> None:
        """The event failed so many times by now; `was` is what was tried again."""
        given_up = attempts >= self._attempts
        delay_s = min(_RETRY_S[0] * 4 ** min(attempts - 1, _DOUBLINGS), _RETRY_S[1])
        delay_us = None if given_up else int(delay_s * 1_000_000)
        held.park(session_id, version, attempts, delay_us, problem, was)
        logger.log(
            logging.ERROR if given_up else logging.WARNING,
            "consumer %r failed at version %d of session %r, attempt %d of %d: %s",
            self.name, version, session_id, attempts, self._attempts, problem,
        )  # fmt: skip

    def _try_again(self, held: Held) -> bool:
        """One session that was set aside and is due: from the event that failed up to the position."""
        due = held.due()
        if due is None:
            return False
        session_id, version, attempts = due.session_id, due.version, due.attempts
        for each in self._waiting(session_id, version, held.position):
            problem = each.problem or self._accepts(held, each.events)
            if problem is not None:
                again = attempts + 1 if each.version == version else 1
                self._set_aside(held, session_id, each.version, again, problem, due)
                return True
        held.unpark(session_id, due)
        return True

    def _waiting(self, session_id: str, version: int, position: int) -> Iterator[_Recorded]:
        """What waits of a session, one recorded event after the other."""
        after, namespace = version - 1, self._log.namespace
        while rows := self._log._store.rows(namespace, session_id, after, None, self._batch_size):
            yield from (self._read(session_id, row) for row in rows if row[1] <= position)
            after = rows[-1][0]

    # ---------------------------------------------------------------------------------- leases

    @contextmanager
    def _renewed(self, held: Held) -> Iterator[None]:
        """Keep the lease while the handler is at work, however long that takes."""
        over = threading.Event()

        def renew() -> None:
            while not over.wait(_RENEWED_S):
                try:
                    held.renew()
                except Fenced:
                    return  # Whatever the handler does now, its successor does as well.
                except KernError as error:
                    logger.debug("the lease of consumer %r was not renewed: %s", self.name, error)

        thread = threading.Thread(target=renew, name="kern_lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _give_back(self) -> None:
        """The next one need not wait for the end of the lease."""
        if self._transactional and self._log._store.dialect == "postgres":
            return  # There is none: the row's lock ended with the transaction.
        try:
            self._log._store.consumers.release(self._log.namespace, self.name, self._owner)
        except KernError as error:
            logger.debug("the lease of consumer %r was not given back: %s", self.name, error)


class ConsumerStatus(NamedTuple):
    """How far a consumer has come.

    Attributes:
        name: The consumer.
        position: Everything at or below it is done, or waits in a session that is set aside.
        behind: Events that it has not come to, counted up to 10,000.
        lag_s: The age of the oldest of those, in seconds; 0 if there is none.
        updated_us: When it last moved or was taken over, microseconds since 1970.
        parked: Sessions that are set aside.
        given_up: Those of them that wait for somebody.
    """

    name: str
    position: int
    behind: int
    lag_s: float
    updated_us: int
    parked: int
    given_up: int


def statuses(store: Store, namespace: str) -> list[ConsumerStatus]:
    """How far each consumer of a namespace has come."""
    return [_status(store, namespace, row) for row in store.consumers.all(namespace)]


def _status(store: Store, namespace: str, row: ConsumerRow) -> ConsumerStatus:
    behind = store.feed_count(namespace, row.position, _COUNTED)
    oldest = store.feed(namespace, row.position, _NEWEST, 1) if behind else ()
    lag_s = max(0.0, (said_us() - oldest[0][1][8]) / 1e6) if oldest else 0.0
    parked = store.consumers.parked(namespace, row.name)
    given_up = sum(each.retry_us is None for each in parked)
    return ConsumerStatus(row.name, row.position, behind, lag_s, row.updated_at, len(parked), given_up)


class _Handed(NamedTuple):
    """What the handler has taken between two positions, while the second is not stored for sure."""

    after: int
    until: int
    events: int


class _Recorded(NamedTuple):
    """A recorded event as what it is today, or why that cannot be said."""

    session_id: str
    version: int
    position: int
    events: Sequence[Event]
    problem: str | None


def _passes(error: StoreError) -> bool:
    """Whether it may be otherwise in a moment."""
    return isinstance(error, (StoreBusy, StoreFull, StoreUnavailable))


def _described(error: BaseException) -> str:
    """The type of an exception and where it was raised; never its text, which may hold content."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"[:200]
