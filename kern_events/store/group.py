"""Group commit: whoever finds nobody writing writes for everybody who waits.

There is no writer thread to hand over to, so a single caller pays nothing; under load one leader
commits what all the others have queued meanwhile, then hands over to the first who came after.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

from kern_events.errors import StoreError, StoreUnavailable
from kern_events.events import Head
from kern_events.store.base import AnswerLost

D = TypeVar("D")

_MAX_GROUP: Final = 256  # jobs; a longer transaction would keep other processes waiting


class Job(Generic[D]):
    """Something to do in the writer's transaction, and who waits for it.

    `work` gets the driver's connection and a list, to which it adds each head that it links to.
    """

    def __init__(self, work: Callable[[D, list[Head]], Any], future: Future[Any] | None = None) -> None:
        self.work = work
        self.future = future
        self.gate: threading.Lock | None = None
        self.done = False
        self.called = False
        self.wanted = True
        self._started = False
        self.bases: list[Head] = []
        self._result: Any = None
        self._error: BaseException | None = None

    def settle(self, result: Any = None, error: BaseException | None = None) -> None:
        """The outcome; wakes whoever waits."""
        self._result, self._error, self.done = result, error, True
        self.wake()

    def wake(self) -> None:
        """Let whoever waits go on; once more does no harm, as after Ctrl-C in the middle."""
        if self.future is None:
            if self.gate:
                with suppress(RuntimeError):  # It was open already.
                    self.gate.release()
        elif self.done and not self.future.done():
            if self._error is not None:
                self.future.set_exception(self._error)
            else:
                self.future.set_result(self._result)

    def failed_with(self, kind: type[BaseException]) -> bool:
        """Whether its outcome is an error of this type."""
        return type(self._error) is kind

    def result(self) -> Any:
        """The outcome, for the thread that waited."""
        if self._error is not None:
            raise self._error
        return self._result

    def lost(self, cause: BaseException) -> BaseException:
        """What its caller is told when the answer to COMMIT was lost."""
        if not self.bases:
            return cause
        error = AnswerLost(*self.bases)
        error.__cause__ = cause
        return error

    def starts(self) -> bool:
        """Whether it is still wanted; a future that was cancelled in the queue is not."""
        if not self._started:
            self._started = self.future is None or self.future.set_running_or_notify_cancel()
        return self._started


class GroupCommit(Generic[D]):
    """The queue and its leader. `commit` gets a group of jobs and settles every one of them."""

    def __init__(self, commit: Callable[[list[Job[D]]], None]) -> None:
        self._commit = commit
        self._mutex = threading.Lock()
        self._idle = threading.Condition(self._mutex)
        self._queue: list[Job[D]] = []
        self._leader: Job[D] | None = None
        self._closed = self._paused = False
        self._awaited = 0
        self._leading: int | None = None  # the thread that commits
        self._starter: ThreadPoolExecutor | None = None

    def run(self, work: Callable[[D, list[Head]], Any]) -> Any:
        """Do a job as the leader, or wait until a leader has done it."""
        job = Job(work)
        try:
            self._join(job)
            if job.gate is not None:
                job.gate.acquire()  # Released when the job is done, or when it is to lead.
            if not job.done:
                self._commit_queue()
            return job.result()
        except BaseException:
            self._decide(job)
            raise
        finally:
            try:
                self._leave(job)
            except BaseException:
                self._leave(job)  # Ctrl-C came in the middle of it.
                raise

    def _decide(self, job: Job[D]) -> None:
        """Its caller was interrupted: what another leader has begun of it ends first."""
        with self._mutex:
            job.wanted = False
            begun = not job.done and job not in self._queue and self._leader is not job
        if begun and job.gate is not None:
            job.gate.acquire()

    def submit(self, work: Callable[[D, list[Head]], Any]) -> Future[Any]:
        """Queue a job without holding the thread."""
        future: Future[Any] = Future()
        job = Job(work, future)
        with self._mutex:
            self._enqueue(job)
            if self._leader is None and not self._paused:
                self._leader = job
                self._start_leader(job)
        return future

    def close(self) -> None:
        """Finish what is queued; later jobs are refused."""
        with self._mutex:
            self._closed = True
            self._wait_until_idle()
            starter, self._starter = self._starter, None
        if starter:
            starter.shutdown(wait=True)

    def hold(self, until: float) -> bool:
        """Let what is being written end, and nothing begin before `release`: the process forks.

        Returns:
            False if it has not ended by then, or is done by the thread that asks.
        """
        with self._mutex:
            self._paused = True
            while self._leader is not None and self._leading != threading.get_ident():
                if (left_s := until - time.monotonic()) <= 0:
                    break
                self._idle.wait(left_s)
            return self._leader is None

    def release(self) -> None:
        """Go on after `hold`, with who came meanwhile."""
        with self._mutex:
            self._paused = False
            if self._leader is None and self._queue:
                self._leader = self._queue[0]
                self._call(self._leader)

    def _wait_until_idle(self) -> None:
        self._awaited += 1
        while self._leader is not None or (self._paused and self._queue):
            self._idle.wait()
        self._awaited -= 1

    def _enqueue(self, job: Job[D]) -> None:
        if self._closed:
            raise StoreError("this log is closed")
        self._queue.append(job)

    def _join(self, job: Job[D]) -> None:
        with self._mutex:
            self._enqueue(job)
            if self._leader is not None or self._paused:
                job.gate = threading.Lock()
                job.gate.acquire()
            else:
                self._leader = job

    def _leave(self, job: Job[D]) -> None:
        """Hand over to the first who came meanwhile, if this job led; forget it, if it never was done."""
        with self._mutex:
            if not job.done and job in self._queue:
                self._queue.remove(job)
            if self._leader is job:
                self._leader = self._queue[0] if self._queue and not self._paused else None
                if self._leader is None and (self._awaited or self._paused):
                    self._idle.notify_all()
            if self._leader is not None and self._leader is not job and not self._leader.done:
                self._call(self._leader)

    def _call(self, leader: Job[D]) -> None:
        if leader.future is None:
            leader.wake()
        elif not leader.called:
            self._start_leader(leader)

    def _commit_queue(self) -> None:
        """Commit what is queued as one group."""
        group: list[Job[D]] = []
        self._leading = threading.get_ident()
        try:
            with self._mutex:
                group, self._queue = self._queue[:_MAX_GROUP], self._queue[_MAX_GROUP:]
            group = [job for job in group if job.starts()]
            if group:
                self._commit(group)
        except BaseException as error:
            try:
                self._give_back(group, error)
            except BaseException:
                self._give_back(group, error)  # Ctrl-C came in the middle of it.
                raise
            raise
        finally:
            self._leading = None

    def _give_back(self, group: list[Job[D]], error: BaseException) -> None:
        """The leader was interrupted: what it had begun is lost, the rest is for the next leader."""
        with self._mutex:
            waiting = [job for job in group if job.wanted and not job.done and not job.bases]
            self._queue[:0] = [job for job in waiting if job not in self._queue]
        for job in group:
            if not job.done and job not in waiting:
                job.settle(error=job.lost(StoreUnavailable(f"the writer was interrupted: {error!r}")))
            if job.done:
                job.wake()

    def _start_leader(self, job: Job[D]) -> None:
        # Nobody's thread waits for a queued future, so one of the store's own does the writing.
        if self._starter is None:
            self._starter = ThreadPoolExecutor(1, thread_name_prefix="kern_events_writer")
        job.called = True
        self._starter.submit(self._lead_for, job)

    def _lead_for(self, job: Job[D]) -> None:
        try:
            self._commit_queue()
        finally:
            self._leave(job)
