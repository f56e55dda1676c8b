"""Snapshots made anew for all sessions, after a projector or the event types have changed.

Nothing waits for it: every load folds what it needs by itself. A rebuild does the same for whoever comes
later, the most active sessions first, while appends go on. What is stored already is passed over, so
one that was killed goes on where it was.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from kern_events import spi
from kern_events.errors import KernError, SessionNotFound
from projections.caches.base import Snapshot
from projections.caches.memory import MemoryCache
from projections.caches.tiers import AT_LEAST, DurableTier, SharedTier, stored_as
from projections.comparing import UNFOLDABLE, differs
from projections.loading import Loader
from projections.projector import Projector
from projections.session import View
from projections.stored import Codec

if TYPE_CHECKING:
    from projections.sessions import Sessions

logger: Final = logging.getLogger("projections")

MAX_FAILURES: Final = 1_000
"""A report lists so many failures; its counts go on."""

_HOTTEST: Final = 256  # go first; the rest in the order of their ids
_PAGE: Final = 500
_TASK_EVENTS: Final = 20_000  # so that a task takes a fraction of a second
_STORED_TOGETHER: Final = 64  # snapshots in a transaction
_NEWEST: Final = 2**63 - 1
_UNSTORABLE: Final = (TypeError, ValueError, OverflowError)

Report = Callable[["RebuildReport"], None]


class Failure(msgspec.Struct, frozen=True):
    """A session whose snapshot could not be made, or is not what the log gives.

    Attributes:
        session_id: The session.
        version: The event at fault, or the version of the snapshot that differs; None if it is neither.
        reason: One sentence, never with content.
    """

    session_id: str
    version: int | None
    reason: str


class RebuildReport(msgspec.Struct):
    """What a rebuild found and did; counted as it goes on.

    Attributes:
        projector: Name and version of the projector.
        total_sessions: Sessions there were at the beginning.
        total_events: Events in them.
        sessions: Sessions done so far: the sum of rebuilt, current, short, gone and failed.
        events: Events in those.
        rebuilt: Snapshots stored; with `check`, snapshots compared and equal.
        current: Stored already, and less than 64 events behind.
        short: Sessions of which none is stored: they have fewer than 64 events, or their view is
            incomplete. They were folded all the same; with `check` there was nothing to compare.
        gone: Deleted, or erased from, meanwhile.
        failed: Sessions that failed; with `check`, also snapshots that differ.
        pruned: Rows by other versions of the projector that were dropped.
        seconds: Time taken.
        failures: The first 1,000 of those that failed.
    """

    projector: str
    total_sessions: int = 0
    total_events: int = 0
    sessions: int = 0
    events: int = 0
    rebuilt: int = 0
    current: int = 0
    short: int = 0
    gone: int = 0
    failed: int = 0
    pruned: int = 0
    seconds: float = 0.0
    failures: list[Failure] = []

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failed

    @property
    def events_per_s(self) -> float:
        """Events done a second."""
        return self.events / self.seconds if self.seconds else 0.0


class Place(NamedTuple):
    """Where another process finds the sessions. Holds the password of the URL: not to be shown."""

    opened: tuple[type[Sessions], tuple[Any, ...], dict[str, Any]]
    projector: Projector[Any] | None
    check: bool
    prune: bool

    def __repr__(self) -> str:
        return "Place(...)"


class Task(NamedTuple):
    """Sessions to be done together."""

    session_ids: Sequence[str]
    sessions: int
    events: int


class Outcome(msgspec.Struct):
    """What became of the sessions of a task."""

    rebuilt: int = 0
    short: int = 0
    gone: int = 0
    pruned: int = 0
    failures: list[Failure] = []


class Rebuild:
    """One rebuild; see Sessions.rebuild."""

    def __init__(
        self, sessions: Sessions, projector: Projector[Any], place: Place, progress: Report | None
    ) -> None:
        self._sessions = sessions
        self._worker = Worker(sessions, projector, check=place.check, prune=place.prune)
        self._place = place
        self._progress = progress
        self._started_s = time.perf_counter()
        total_sessions, total_events = spi.sizes(sessions)
        name = f"{projector.name} {projector.version}"
        self.report = RebuildReport(name, total_sessions, total_events)

    def run(self, executor: Executor | None, outstanding: int) -> RebuildReport:
        """Do everything, here or by an executor with so many tasks at a time."""
        if executor is None:
            for task in self._tasks():
                self._count(task, self._worker.work(task.session_ids))
        else:
            self._spread(executor, outstanding)
        self._tell()
        return self.report

    def _spread(self, executor: Executor, outstanding: int) -> None:
        waiting: dict[Future[Outcome], Task] = {}
        try:
            for task in self._tasks():
                if len(waiting) >= outstanding:
                    self._collect(waiting)
                waiting[self._submit(executor, task)] = task
            while waiting:
                self._collect(waiting)
        finally:
            for future in waiting:
                future.cancel()

    def _submit(self, executor: Executor, task: Task) -> Future[Outcome]:
        try:
            if isinstance(executor, ThreadPoolExecutor):
                return executor.submit(self._worker.work, task.session_ids)
            return executor.submit(work_at, self._place, task.session_ids)
        except RuntimeError as error:  # It is broken or shut down.
            failed: Future[Outcome] = Future()
            failed.set_exception(error)
            return failed

    def _collect(self, waiting: dict[Future[Outcome], Task]) -> None:
        done, _ = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            task = waiting.pop(future)
            try:
                outcome = future.result()
            except KernError:
                raise
            except Exception as error:
                # A worker died, or could not be sent the work. Here it can be done in any case.
                logger.warning("a task of a rebuild is done in this process: %s", type(error).__name__)
                outcome = self._worker.work(task.session_ids)
            self._count(task, outcome)

    def _count(self, task: Task, outcome: Outcome) -> None:
        report = self.report
        report.sessions += task.sessions
        report.events += task.events
        report.rebuilt += outcome.rebuilt
        report.short += outcome.short
        report.gone += outcome.gone
        report.pruned += outcome.pruned
        report.failed += len(outcome.failures)
        report.failures += outcome.failures[: MAX_FAILURES - len(report.failures)]
        self._tell()

    def _tell(self) -> None:
        self.report.seconds = time.perf_counter() - self._started_s
        if self._progress:
            self._progress(self.report)

    def _tasks(self) -> Iterator[Task]:
        """What is left to do, in pieces."""
        some: list[str] = []
        events = 0
        for standing in self._standings():
            size = standing.version - standing.origin
            if self._is_current(standing):
                self.report.sessions += 1
                self.report.events += size
                self.report.current += 1
                continue
            some.append(standing.session_id)
            events += size
            if events >= _TASK_EVENTS or len(some) >= _PAGE:
                yield Task(some, len(some), events)
                some, events = [], 0
        if some:
            yield Task(some, len(some), events)

    def _standings(self) -> Iterator[spi.Standing]:
        """Every session and how far it is stored: the most active first, then by id."""
        table = self._worker.table
        hot = set()
        for info in self._sessions.sessions(limit=_HOTTEST):
            hot.add(info.session_id)
            stored = table.head(info.session_id, _NEWEST)
            version = 0 if stored is None else stored.version
            yield spi.Standing(info.session_id, info.version, info.fork_version or 0, version)
        after = ""
        while page := table.plan(after, _PAGE):
            yield from (standing for standing in page if standing.session_id not in hot)
            after = page[-1].session_id

    def _is_current(self, standing: spi.Standing) -> bool:
        if self._place.check or self._place.prune:
            return False
        return standing.stored > 0 and standing.version - standing.stored < AT_LEAST


class Worker:
    """Makes snapshots of some sessions, or compares those that there are."""

    def __init__(self, sessions: Sessions, projector: Projector[Any], *, check: bool, prune: bool) -> None:
        shared = sessions._loader.shared
        self._durable = DurableTier(sessions, sessions._secret)
        self._shared: SharedTier | None = shared
        self._stored = Loader(sessions, MemoryCache(0), shared, self._durable)
        self._fresh = Loader(sessions, MemoryCache(0), None, None)
        codec = self._stored.codec(projector)
        if codec is None:
            raise ValueError(
                f"the views of projector {projector.name!r} are kept in memory only, so there is nothing to "
                "rebuild: give it a view_type"
            )
        self._codec: Codec = codec
        self._projector = projector
        self._check = check
        self._prune = prune
        self.table = self._durable.table(self._stored.key("", projector), codec)

    def work(self, session_ids: Sequence[str]) -> Outcome:
        """Do some sessions; those that fail are listed, and the others done."""
        outcome = Outcome()
        waiting: list[tuple[str, Snapshot]] = []
        for session_id in session_ids:
            try:
                if self._check:
                    self._compare(session_id, outcome)
                elif (snapshot := self._made(session_id, outcome)) is not None:
                    waiting.append((session_id, snapshot))
                if self._prune:
                    outcome.pruned += self.table.forget_others(session_id, stored_as(self._projector.name))
            except SessionNotFound:
                outcome.gone += 1
            except UNFOLDABLE as error:
                outcome.failures.append(Failure(session_id, getattr(error, "version", None), str(error)))
            if len(waiting) >= _STORED_TOGETHER:
                self._store(waiting, outcome)
                waiting = []
        self._store(waiting, outcome)
        return outcome

    def _made(self, session_id: str, outcome: Outcome) -> Snapshot | None:
        """A snapshot to be stored, if the session is long enough for one; Redis has it already."""
        snapshot, base = self._stored.folded(session_id, self._projector)
        if self._shared and (isinstance(snapshot.view, View) or not snapshot.incomplete):
            try:
                self._shared.put(self._stored.key(session_id, self._projector), self._codec, snapshot, base)
            except _UNSTORABLE as error:
                outcome.failures.append(_unstorable(session_id, snapshot, error))
                return None
        if snapshot.version < AT_LEAST or snapshot.incomplete:
            outcome.short += 1
            return None
        return snapshot

    def _store(self, waiting: list[tuple[str, Snapshot]], outcome: Outcome) -> None:
        keyed = [
            (self._stored.key(session_id, self._projector), snapshot) for session_id, snapshot in waiting
        ]
        try:
            stored = self._durable.store_all(self._codec, keyed)
            outcome.rebuilt += stored
            outcome.gone += len(waiting) - stored
        except _UNSTORABLE as error:
            if len(waiting) == 1:
                outcome.failures.append(_unstorable(*waiting[0], error))
                return
            for one in waiting:
                self._store([one], outcome)

    def _compare(self, session_id: str, outcome: Outcome) -> None:
        """Hold what is stored, in the database and in Redis, against a fresh fold."""
        key = self._stored.key(session_id, self._projector)
        lying = self.table.head(session_id, _NEWEST)
        stored = [self._durable.newest(key, self._codec, _NEWEST)]
        if self._shared:
            stored.append(self._shared.get(key, self._codec))
        if lying is not None and stored[0] is None:
            said = "the stored snapshot cannot be read, and was dropped: rebuild makes another one"
            outcome.failures.append(Failure(session_id, lying.version, said))
            return
        found = [each for each in stored if each is not None]
        for each in found:
            if reason := self._difference(session_id, each):
                outcome.failures.append(Failure(session_id, each.version, reason))
                return
        outcome.rebuilt += bool(found)
        outcome.short += not found

    def _difference(self, session_id: str, stored: Snapshot) -> str | None:
        fresh = self._fresh.past(session_id, self._projector, stored.version)
        return (
            f"the snapshot at version {stored.version} differs from a fresh fold"
            if differs(stored, fresh)
            else None
        )


def work_at(place: Place, session_ids: Sequence[str]) -> Outcome:
    """Do some sessions in another process."""
    cls, args, options = place.opened
    with cls(*args, **options) as sessions:
        projector = sessions._chosen(place.projector)
        return Worker(sessions, projector, check=place.check, prune=place.prune).work(session_ids)


def processes(workers: int) -> ProcessPoolExecutor:
    """Workers that leave Ctrl-C to whoever started them."""
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=_ignore_interrupts)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _unstorable(session_id: str, snapshot: Snapshot, error: Exception) -> Failure:
    return Failure(session_id, snapshot.version, f"the view cannot be stored: {type(error).__name__}")
