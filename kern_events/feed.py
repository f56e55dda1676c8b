"""Following the log: what is final, what is new, and being woken when there is more.

Postgres gives positions in another order than it commits, so a reader that simply goes on behind the highest
position it has seen loses events. `Follower` reads what is final only (see `feed_bound` of the stores).
`Wakeups` has one thread per log that looks at the last position; it alone has to work, and appends of
this process wake subscribers at once.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, Self

from kern_events.batch import StoredRow
from kern_events.errors import DecodeError, FeedRegressed, StoreBusy, UpcastFailed
from kern_events.events import Event
from kern_events.numbers import check_seconds, check_whole
from kern_events.store.base import Bound, Store, logger
from kern_events.store.forks import survive_forks

if TYPE_CHECKING:
    from kern_events.aio import AsyncSessionLog
    from kern_events.log import SessionLog

PAGE: Final = 1_000
SOONEST_S: Final = 0.005  # between two looks at the last position while there is something new
LATEST_S: Final = 0.1  # ... and while there is not
_HELD_S: Final = (0.001, 0.05)  # between two looks at a transaction that has not ended
_FALLBACK_S: Final = 1.0  # a subscriber looks by itself, whatever became of its waker


class FeedHolder(NamedTuple):
    """A transaction that has written to the log and not ended: the feed waits for it.

    Attributes:
        pid: Of the server process; None is a prepared transaction.
        age_s: Since it began, in seconds.
    """

    pid: int | None
    age_s: float


class Follower:
    """Reads a namespace behind a position, never past what is final."""

    def __init__(self, store: Store, namespace: str, after: int) -> None:
        self._store = store
        self._namespace = namespace
        self._bound = Bound(0, 0)
        self.position = after

    def go_to(self, position: int) -> None:
        """Go on from another position, to which somebody else may have come meanwhile."""
        self.position = position
        if position > self._bound.end:
            self._bound = Bound(0, 0)

    @property
    def held(self) -> bool:
        """Whether a transaction has to end before more can be read."""
        return bool(self._bound.waiting)

    def poll(self, limit: int = PAGE) -> Sequence[tuple[str, StoredRow]]:
        """What is new and final, at most `limit` rows with their sessions; never waits.

        Raises:
            FeedRegressed: The log ends before the position.
        """
        if self.position >= self._bound.settled:
            self._bound = self._store.feed_bound(self._bound)
            if self._bound.end < self.position:
                raise FeedRegressed(self.position, self._bound.end)
        until = self._bound.settled
        if until <= self.position:
            return ()
        rows = self._store.feed(self._namespace, self.position, until, limit)
        self.position = rows[-1][1][1] if rows.more else until
        return rows


def settled_end(store: Store, timeout_s: float) -> int:
    """The highest position, once nothing at or below it can appear any more.

    Raises:
        StoreBusy: A transaction has appended and not ended in time.
    """
    deadline = time.monotonic() + timeout_s
    bound = store.feed_bound(Bound(0, 0))
    while bound.waiting:
        if time.monotonic() > deadline:
            pids = ", ".join(str(pid) for pid in bound.waiting.values())
            raise StoreBusy(f"a transaction has appended and not ended for {timeout_s:g} s: {pids}")
        time.sleep(0.002)
        bound = store.feed_bound(bound)
    return bound.end


class Listener(Protocol):
    """Somebody who wants to know that there may be something new."""

    def wake(self) -> None:
        """Called from any thread; returns at once."""


class Wakeups:
    """Wakes listeners after commits: of this process at once, of others within a tenth of a second."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._listeners: weakref.WeakSet[Listener] = weakref.WeakSet()
        self._begin()
        store.on_commit = self.wake_all
        survive_forks(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._look = threading.Event()
        self._closed = False

    def forget(self) -> None:
        """In a forked child: no thread is here, and the parent's listeners are nobody's."""
        self._listeners = weakref.WeakSet()
        self._begin()

    def add(self, listener: Listener) -> None:
        """Wake this one from now on, until it is removed or gone."""
        with self._lock:
            self._listeners.add(listener)
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._poll, name="kern_feed", daemon=True)
                self._thread.start()

    def remove(self, listener: Listener) -> None:
        """Wake it no more."""
        with self._lock:
            self._listeners.discard(listener)
            if not self._listeners:
                self._look.set()

    def close(self) -> None:
        """Wake everybody a last time, and end the thread."""
        with self._lock:
            thread = self._thread
            self._closed = True
            self._look.set()
        self.wake_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def wake_all(self) -> None:
        """There may be something new."""
        if self._listeners:
            with self._lock:
                listeners = list(self._listeners)
            for listener in listeners:
                listener.wake()

    def _poll(self) -> None:
        last, pause_s = -1, SOONEST_S
        while not self._is_over(pause_s):
            try:
                now = self._store.feed_last()
            except Exception as error:  # Whoever follows finds out by looking; here nothing may end.
                logger.debug("the end of the log could not be read: %s", type(error).__name__)
                pause_s = LATEST_S
                self.wake_all()
                continue
            if now != last:
                self.wake_all()
                pause_s = SOONEST_S
            last, pause_s = now, min(2 * pause_s, LATEST_S)

    def _is_over(self, pause_s: float) -> bool:
        self._look.wait(pause_s)
        with self._lock:
            self._look.clear()
            if self._closed or not self._listeners:
                self._thread = None
                return True
        return False


class _Following:
    """What both kinds of subscriptions share: a follower, and the rows that it has read."""

    def __init__(self, log: SessionLog, after: int) -> None:
        self._log = log
        self._follower = Follower(log._store, log.namespace, after)
        self._rows: deque[tuple[str, StoredRow]] = deque()
        self._parts: deque[Event] = deque()  # of a recorded event that was split
        self._after = after
        self._pause_s = _HELD_S[0]
        self._closed = False

    @property
    def position(self) -> int:
        """Where to go on from: `subscribe(after=position)` gives what this one has not given yet.

        An event that upcasters have split counts as given once its last part was.
        """
        return self._after

    def _ready(self) -> Event | None:
        """The next event, if it was read already."""
        while not self._parts and self._rows:
            session_id, row = self._rows[0]
            self._parts.extend(self._log._events_of(session_id, row))
            self._rows.popleft()
            if not self._parts:
                self._after = row[1]
        if not self._parts:
            return None
        event = self._parts.popleft()
        if not self._parts:
            self._after = event.position
        return event

    def _batch(self, first: Event, limit: int) -> list[Event]:
        """A first event and what else was read already: no more recorded ones than the limit, each whole.

        It ends before one that cannot be read: the next call raises for that.
        """
        events = [first]
        with suppress(DecodeError, UpcastFailed):
            while self._parts or limit > 1:
                limit -= 0 if self._parts else 1
                if (event := self._ready()) is None:
                    break
                events.append(event)
        return events

    def _poll(self) -> bool:
        """Read more; whether there was something."""
        rows = self._follower.poll()
        self._rows.extend(rows)
        if not rows:
            self._after = self._follower.position
        held = self._follower.held and not rows
        self._pause_s = min(2 * self._pause_s, _HELD_S[1]) if held else _HELD_S[0]
        return bool(rows)

    def _patience_s(self) -> float:
        """How long to wait for a wake-up before looking by oneself."""
        return self._pause_s if self._follower.held else _FALLBACK_S


def _deadline(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + check_seconds("timeout_s", timeout_s)


class Subscription(_Following):
    """Events as they are committed: `for event in log.subscribe(after=position): ...`, without an end.

    Waits where there is nothing new. `close`, from any thread, ends it, and so does closing the log.
    """

    def __init__(self, log: SessionLog, after: int) -> None:
        super().__init__(log, after)
        self._woken = threading.Event()
        log._wakeups.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        event = self._next(None)
        if event is None:
            raise StopIteration
        return event

    def batch(self, *, limit: int = PAGE, timeout_s: float | None = None) -> list[Event]:
        """The next events, as many as are there: at least one, unless it is closed or the time is up.

        Args:
            limit: At most so many recorded events, at least one. What upcasters make of one is given whole,
                so that `position` never stays within it; what they leave out does not count.
            timeout_s: How long to wait for the first; None is without an end.
        """
        limit, deadline = check_whole("limit", limit, 1), _deadline(timeout_s)
        first = self._next(deadline)
        return [] if first is None else self._batch(first, limit)

    def close(self) -> None:
        """End the subscription; whoever waits for its next event gets none."""
        self._closed = True
        self._log._wakeups.remove(self)
        self.wake()

    def wake(self) -> None:
        """See Listener."""
        self._woken.set()

    def _next(self, deadline: float | None) -> Event | None:
        while not self._closed and not self._log._closing:
            if (event := self._ready()) is not None:
                return event
            self._woken.clear()
            if self._poll():
                continue
            wait_s = self._patience_s()
            if deadline is not None:
                wait_s = min(wait_s, deadline - time.monotonic())
            if wait_s <= 0:
                return None
            self._woken.wait(wait_s)
        return None


class AsyncSubscription(_Following):
    """As Subscription, for `async for`; holds no thread of the pool while it waits."""

    def __init__(self, outer: AsyncSessionLog, after: int) -> None:
        super().__init__(outer.log, after)
        self._outer = outer
        self._woken = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        event = await self._next(None)
        if event is None:
            raise StopAsyncIteration
        return event

    async def batch(self, *, limit: int = PAGE, timeout_s: float | None = None) -> list[Event]:
        """See Subscription."""
        limit, deadline = check_whole("limit", limit, 1), _deadline(timeout_s)
        first = await self._next(deadline)
        return [] if first is None else self._batch(first, limit)

    async def close(self) -> None:
        """See Subscription."""
        self._closed = True
        self._log._wakeups.remove(self)
        self._woken.set()

    def wake(self) -> None:
        """See Listener."""
        try:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._woken.set)
        except RuntimeError:  # The loop is closed, and nobody waits.
            self._log._wakeups.remove(self)

    async def _next(self, deadline: float | None) -> Event | None:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._log._wakeups.add(self)
        while not self._closed and not self._log._closing:
            if (event := self._ready()) is not None:
                return event
            self._woken.clear()
            if await self._outer._in_thread(self._poll):
                continue
            wait_s = self._patience_s()
            if deadline is not None:
                wait_s = min(wait_s, deadline - time.monotonic())
            if wait_s <= 0:
                return None
            await self._wait(wait_s)
        return None

    async def _wait(self, wait_s: float) -> None:
        try:
            async with asyncio.timeout(wait_s):
                await self._woken.wait()
        except TimeoutError:
            pass
