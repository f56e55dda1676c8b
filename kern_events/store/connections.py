"""Driver connections of checked-out SQLAlchemy connections, kept for the hot path.

SQLAlchemy owns the engine, the pool and the connecting; a checkout costs as much as a query on
SQLite, so connections of the store's own engine stay checked out and are handed around here. Of a
caller's engine one connection at most is held; the others are checked out per operation.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

from sqlalchemy.engine import Engine
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import PoolProxiedConnection

_PATIENCE_S: Final = 30.0


class Lease(NamedTuple):
    """A connection in use: SQLAlchemy's, and what `prepare` made of the driver's behind it."""

    checked_out: PoolProxiedConnection
    driver: Any
    generation: int


class Connections:
    """Hands out leases. `prepare` gets a connection ready, `restore` undoes it for a caller's engine."""

    def __init__(
        self,
        engine: Engine,
        prepare: Callable[[PoolProxiedConnection], Any],
        restore: Callable[[PoolProxiedConnection], None],
        *,
        keep: int,
        limit: int | None = None,
    ) -> None:
        self._engine = engine
        self._prepare = prepare
        self._restore = restore
        self._keep = keep
        self._idle: list[Lease] = []
        self._closed = False
        self._generation = 0
        self._limit = limit
        self._free = threading.Semaphore(limit) if limit else None
        self._lock = threading.Lock()
        survive_forks(self)

    def take(self) -> Lease:
        """A lease, idle or new; to be given back or dropped.

        Raises:
            sqlalchemy.exc.TimeoutError: All connections are in use, for a long time.
        """
        if self._free and not self._free.acquire(timeout=_PATIENCE_S):
            raise PoolTimeout(f"all {self._limit} connections have been in use for {_PATIENCE_S:g} s")
        try:
            return self._idle.pop()
        except IndexError:
            pass
        try:
            return self._new()
        except BaseException:
            self._freed()
            raise

    def _new(self) -> Lease:
        checked_out = self._engine.raw_connection()
        try:
            return Lease(checked_out, self._prepare(checked_out), self._generation)
        except BaseException:
            checked_out.invalidate()
            raise

    def _freed(self) -> None:
        if self._free:
            self._free.release()

    def give(self, lease: Lease) -> None:
        """Give a lease back for the next."""
        with self._lock:
            current = lease.generation == self._generation
            if current and not self._closed and len(self._idle) < self._keep:
                self._idle.append(lease)
                self._freed()
                return
        if current:
            self._release(lease)
            self._freed()
        else:
            self.drop(lease)

    def drop(self, lease: Lease) -> None:
        """Close a connection that is not to be used again."""
        self._freed()
        lease.checked_out.invalidate()

    def renew(self) -> None:
        """Close every connection: the idle ones now, the others when they are given back."""
        with self._lock:
            idle, self._idle, self._generation = self._idle, [], self._generation + 1
        for lease in idle:
            lease.checked_out.invalidate()

    def close(self) -> None:
        """Give every idle connection back to the engine; later ones follow when their use ends."""
        with self._lock:
            self._closed, idle, self._idle = True, self._idle, []
        for lease in idle:
            self._release(lease)

    def forget(self) -> None:
        """In a forked child: the connections are the parent's."""
        keep_inherited(self._idle)
        self._idle = []
        self._lock = threading.Lock()
        self._free = threading.Semaphore(self._limit) if self._limit else None

    def _release(self, lease: Lease) -> None:
        try:
            self._restore(lease.checked_out)
        except BaseException:
            lease.checked_out.invalidate()
            raise
        lease.checked_out.close()


class _Forgets(Protocol):
    def forget(self) -> None: ...


_all: weakref.WeakSet[_Forgets] = weakref.WeakSet()
_inherited: list[Any] = []


def survive_forks(owner: _Forgets) -> None:
    """Have `owner.forget()` called in every forked child."""
    _all.add(owner)


def keep_inherited(connections: Any) -> None:
    """Keep a parent's connections alive in its child.

    They are neither to be used nor to be closed: closing one would end the parent's session on
    Postgres, and is forbidden by SQLite.
    """
    _inherited.append(connections)


_held: list[Any] = []


def _before_fork() -> None:
    for owner in list(_all):
        if hasattr(owner, "before_fork"):
            owner.before_fork()
            _held.append(owner)


def _in_parent() -> None:
    while _held:
        _held.pop().after_fork()


def _in_child() -> None:
    _held.clear()
    for owner in list(_all):
        owner.forget()


os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
