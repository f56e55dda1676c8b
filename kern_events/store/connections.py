"""Driver connections of checked-out SQLAlchemy connections, kept for the hot path.

SQLAlchemy owns the engine, the pool and the connecting; a checkout costs as much as a query on
SQLite, so connections of the store's own engine stay checked out and are handed around here. Of a
caller's engine one connection at most is held; the others are checked out per operation.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from sqlalchemy.engine import Engine
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import (
    AssertionPool,
    PoolProxiedConnection,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
)

from kern_events.store.forks import keep_inherited, survive_forks, taken

_PATIENCE_S: Final = 30.0  # before all connections in use is an error
_POLL_S: Final = 0.1


class Lease:
    """A connection in use: SQLAlchemy's, and what `prepare` made of the driver's behind it."""

    __slots__ = ("__weakref__", "checked_out", "driver", "generation")

    checked_out: PoolProxiedConnection
    driver: Any
    generation: int


def room_of(engine: Engine) -> int | None:
    """How many connections an engine's pool gives at once; None is any number."""
    pool = engine.pool
    if not isinstance(pool, QueuePool) or pool._max_overflow == -1:
        return None
    return pool.size() + pool._max_overflow


class Connections:
    """Hands out leases. `prepare` gets a connection ready, `restore` undoes it for a caller's engine.

    In a forked child `abandon` gets what `prepare` made of each connection of its parent's.

    Raises:
        ValueError: The engine's pool gives one connection to several callers, or fewer than `least`.
    """

    def __init__(
        self,
        engine: Engine,
        prepare: Callable[[PoolProxiedConnection], Any],
        restore: Callable[[PoolProxiedConnection], None],
        *,
        keep: int,
        limit: int | None = None,
        abandon: Callable[[Any], None] | None = None,
        least: int = 1,
        connect: Callable[[], PoolProxiedConnection] | None = None,
    ) -> None:
        if isinstance(engine.pool, (AssertionPool, SingletonThreadPool, StaticPool)):
            raise ValueError(
                f"the engine's pool is a {type(engine.pool).__name__}, which gives one connection to several "
                "callers: use QueuePool or NullPool"
            )
        if (room := room_of(engine)) is not None and room < least:
            raise ValueError(
                f"the engine's pool gives {room} connection at the most, and this log uses {least} at once: "
                "set its pool_size or max_overflow"
            )
        self._engine = engine
        self._connect = connect or partial(taken, engine)
        self._prepare = prepare
        self._restore = restore
        self._keep = keep
        self._idle: list[Lease] = []
        self._closed = self._held = False
        self._generation = 0
        self._abandon = abandon
        self._limit = limit
        self._begin()
        survive_forks(self)

    def take(self) -> Lease:
        """A lease, idle or new; to be given back or dropped.

        Raises:
            sqlalchemy.exc.TimeoutError: All connections are in use, for a long time.
        """
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            if lease := self._pop() or self._room():
                return lease
            if time.monotonic() > deadline:
                raise PoolTimeout(f"all {self._limit} connections have been in use for {_PATIENCE_S:g} s")
            with self._lock:  # By itself: a Condition can be interrupted when it has it. See ForkLock.
                if not self._idle:
                    self._returned.wait(_POLL_S)

    def _pop(self) -> Lease | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _room(self) -> Lease | None:
        """A new lease, or None if there are as many as there may be.

        They are counted as what is alive, not by a number: one that Ctrl-C loses is not missed.
        """
        lease = Lease()
        with self._lock:
            if self._held or (self._limit is not None and len(self._out) >= self._limit):
                return None
            self._out.add(lease)
        try:
            lease.generation, lease.checked_out = self._generation, self._connect()
            self._open(lease)
        except BaseException:
            self._out.discard(lease)
            raise
        return lease

    def _open(self, lease: Lease) -> None:
        try:
            lease.driver = self._prepare(lease.checked_out)
        except BaseException:
            lease.checked_out.invalidate()
            raise

    def give(self, lease: Lease) -> None:
        """Give a lease back for the next."""
        with self._lock:
            current = lease.generation == self._generation and not self._held
            if current and not self._closed and len(self._idle) < self._keep:
                self._idle.append(lease)
                if self._limit is not None:
                    self._returned.notify()
                return
        # One that comes back late must not go to a pool of the store's own, which was disposed of.
        if current and not (self._closed and self._keep):
            self._release(lease)
        else:
            self.drop(lease)

    def drop(self, lease: Lease) -> None:
        """Close a connection that is not to be used again."""
        try:
            lease.checked_out.invalidate()
        finally:
            self._ended(lease)

    def renew(self) -> None:
        """Close every connection: the idle ones now, the others when they are given back."""
        with self._lock:
            idle, self._idle, self._generation = self._idle, [], self._generation + 1
        _each(idle, self.drop)

    def hold(self, until: float, *, wait: bool = True) -> None:
        """Close every connection, those in use when their use ends; open none before `release`."""
        self._held = True
        self.renew()
        with self._lock:
            while wait and self._out and (left_s := until - time.monotonic()) > 0:
                self._returned.wait(left_s)

    def release(self) -> None:
        """Go on after `hold`."""
        with self._lock:
            self._held = False
            self._returned.notify_all()

    def drop_all(self, broken: Lease) -> None:
        """Close every connection, as one was found broken: those in the engine's pool when next asked for."""
        self.renew()
        try:
            self._engine.pool._invalidate(broken.checked_out)  # As SQLAlchemy does where it finds one itself.
        finally:
            self._ended(broken)

    def _ended(self, lease: Lease) -> None:
        self._out.discard(lease)
        if self._held:
            with self._lock:
                self._returned.notify_all()

    @property
    def is_open(self) -> bool:
        """Whether there are leases, in use or idle."""
        return bool(self._out)

    def close(self) -> None:
        """Give every idle connection back to the engine; later ones follow when their use ends."""
        with self._lock:
            self._closed, idle, self._idle = True, self._idle, []
        _each(idle, self._release)

    def forget(self) -> None:
        """In a forked child: the connections are the parent's."""
        inherited = list(self._out)
        keep_inherited(inherited)
        if self._abandon is not None:
            for lease in inherited:
                self._abandon(getattr(lease, "driver", None))
        self._idle, self._held = [], False
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._returned = threading.Condition(self._lock)
        self._out: weakref.WeakSet[Lease] = weakref.WeakSet()

    def _release(self, lease: Lease) -> None:
        self._out.discard(lease)
        try:
            self._restore(lease.checked_out)
        except BaseException:
            lease.checked_out.invalidate()
            raise
        lease.checked_out.close()


def _each(idle: list[Lease], do: Callable[[Lease], None]) -> None:
    """Whoever takes one of these at the same moment has it alone."""
    with suppress(IndexError):
        while True:
            do(idle.pop())
