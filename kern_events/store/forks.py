"""Forks: what is under way ends first, nothing begins meanwhile, and a child inherits nothing that is in use.

A child has one thread. A lock that another one held at that moment is held in it for ever, and so are those
inside of SQLite. And SQLite counts the locks of a process by file: a child that inherits an open connection
takes no lock of its own where its parent had one, and would write while others do. So every connection to
SQLite is closed before a fork, and parent and child open others. Where that cannot be had in time, as for a
transaction of the very thread that forks, the child is told so, and does not touch the file.
"""

from __future__ import annotations

# Its hooks for a fork have to be registered before ours, which then run first: with its lock held already, a
# leader that we wait for could not hand over to its thread.
import concurrent.futures.thread  # noqa: F401
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.pool import PoolProxiedConnection

PATIENCE_S: Final = 10.0  # for callers' transactions to end before a fork, and as much again for ours
_TURNS: Final = 10  # So many forks at once wait for each other.
_BRIEFLY_S: Final = 1.0
_AT_LEAST_S: Final = 0.1
_POLL_S: Final = 0.001
_TAKEN: Final = "kern_taken"  # under which a connection's record says by whom it was taken, and when


class _Taken(NamedTuple):
    thread: int
    since: float
    ours: bool
    forks: int  # that there were before
    arrived: bool  # at its caller; else it is only being opened


class Survivor(Protocol):
    """Something with state that a child has to make anew."""

    def forget(self) -> None:
        """In a forked child."""


@runtime_checkable
class Holder(Protocol):
    """Something with work that has to end before a fork."""

    def before_fork(self, until: float) -> None:
        """Let what is under way end, until then at the latest, and nothing begin."""

    def after_fork(self) -> None:
        """In the parent: go on."""


class ForkLock:
    """A lock that is free in a forked child; what it guards is whole there, if it is not held for long.

    It is taken by `with it.lock:`. A context manager in Python, as this one or a Condition would be, can be
    interrupted by Ctrl-C when it has the lock and nobody yet knows it.
    """

    lock: threading.Lock

    def __init__(self) -> None:
        self.forget()
        survive_forks(self)

    def before_fork(self, until: float) -> None:
        """See Holder."""
        self._held = self.lock.acquire(timeout=max(0.0, min(until - time.monotonic(), _BRIEFLY_S)))

    def after_fork(self) -> None:
        """See Holder."""
        if self._held:
            self.lock.release()

    def forget(self) -> None:
        """See Survivor."""
        self.lock, self._held = threading.Lock(), False


def survive_forks(owner: Survivor) -> None:
    """Have `owner.forget()` called in every forked child, and the methods of a Holder around the fork."""
    with _registering:
        _all.add(owner)


def keep_inherited(connections: Any) -> None:
    """Keep a parent's connections alive in its child.

    They are neither to be used nor to be closed: closing one would end the parent's session on
    Postgres, and is forbidden by SQLite.
    """
    _inherited.append(connections)


def leave_to_parent(engine: Engine) -> None:
    """Have a forked child connect anew: the connections of this engine are its parent's."""
    with _registering:
        _engines.add(engine)


def close_before_forks(engine: Engine, path: Callable[[Sequence[Any], Any], str]) -> None:
    """As leave_to_parent, for SQLite: nothing of this engine is open when the process forks, if possible.

    Args:
        engine: The engine; the same one may be given again.
        path: Which file a connection is to, from the arguments of its making.
    """
    leave_to_parent(engine)
    with _registering:
        if engine in _watched:
            return
        _watched[engine] = True
    event.listen(engine, "do_connect", _connecting(path))
    event.listen(engine, "checkout", _note_checkout)
    event.listen(engine, "checkin", _close_at_return)


def refuse_in_children(engine: Engine) -> None:
    """For SQLite through a driver whose connections cannot be closed from here: a child finds them open."""
    path = os.path.realpath(str(engine.url.database))

    def note(_: Any, record: Any) -> None:
        _foreign[record] = path

    event.listen(engine, "connect", note)


def taken(engine: Engine) -> PoolProxiedConnection:
    """A connection for the log itself, which gives it back or closes it when it is held before a fork."""
    _local.ours = True
    try:
        return engine.raw_connection()
    finally:
        _local.ours = False


def is_inherited(path: str) -> bool:
    """In a forked child: whether a connection to this file was open when it was forked."""
    return os.path.realpath(path) in _inherited_files


_registering = threading.Lock()
_all: weakref.WeakSet[Survivor] = weakref.WeakSet()
_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_watched: weakref.WeakKeyDictionary[Engine, bool] = weakref.WeakKeyDictionary()
_inherited: list[Any] = []
_inherited_files: frozenset[str] = frozenset()
_local = threading.local()

_guard = threading.Lock()  # taken by itself, and not through the condition: see ForkLock
_door = threading.Condition(_guard)
_shut = False
_forks = 0
_opening: list[str] = []
_records: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()  # to files
_foreign: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()  # the same

_forking = threading.Lock()
_forker: int | None = None
_held: list[Holder] = []


def _connecting(path: Callable[[Sequence[Any], Any], str]) -> Callable[..., Any]:
    def connect(dialect: Any, record: Any, args: Sequence[Any], options: Any) -> Any:
        with _through_door(os.path.realpath(path(args, options)), record):
            return dialect.connect(*args, **options)

    return connect


@contextmanager
def _through_door(path: str, record: Any) -> Iterator[None]:
    forks = _forks
    with _guard:
        if _shut and not _may_pass():
            _door.wait_for(lambda: not _shut, 3 * PATIENCE_S)
        _opening.append(path)
        _records[record] = path
    try:
        yield
        _note(record, forks, arrived=False)
    finally:
        with _guard:
            _opening.remove(path)


def _may_pass() -> bool:
    """Whether the fork waits for this thread anyhow, or for nothing of it."""
    me = threading.get_ident()
    if getattr(_local, "ours", False) or _forker == me:
        return True
    return any(record.in_use and _taken_by(record).thread == me for record in _records)


def _taken_by(record: Any) -> _Taken:
    taken: _Taken = record.record_info.get(_TAKEN, _Taken(0, 0.0, False, _forks, True))
    return taken


def _note_checkout(_: Any, record: Any, __: Any) -> None:
    _note(record, _taken_by(record).forks, arrived=True)


def _close_at_return(_: Any, record: Any) -> None:
    """Before a fork, or after one, when it comes back to a pool that was disposed of."""
    if _shut or _taken_by(record).forks != _forks:
        record.invalidate()


def _note(record: Any, forks: int, *, arrived: bool) -> None:
    ours = getattr(_local, "ours", False)
    record.record_info[_TAKEN] = _Taken(threading.get_ident(), time.monotonic(), ours, forks, arrived)


def _before_fork() -> None:
    global _forker, _shut, _forks
    # Of two that fork at once, the one would let go of what the other one holds.
    if _forker == threading.get_ident() or not _forking.acquire(timeout=_TURNS * PATIENCE_S):
        return
    _forker = threading.get_ident()
    with _registering:
        owners, engines = list(_all), list(_watched)
    with _guard:
        _shut, _forks = True, _forks + 1
    for engine in engines:
        engine.dispose()  # What is taken from now on is made, and so comes to the door.
    # Callers' transactions may need the log to come to their end, so they are waited for first.
    _wait_for_callers()
    until = time.monotonic() + PATIENCE_S
    for owner in owners:
        if isinstance(owner, Holder):
            _held.append(owner)
            # One that never comes to an end leaves the others some time, too.
            owner.before_fork(max(until, time.monotonic() + _AT_LEAST_S))


def _wait_for_callers() -> None:
    until = time.monotonic() + PATIENCE_S
    while True:
        with _guard:
            others = _opening or any(_is_at_work(record) for record in _records)
        if not others or time.monotonic() > until:
            return
        time.sleep(_POLL_S)


def _is_at_work(record: Any) -> bool:
    """Whether somebody else has a connection who will be done with it soon, as far as can be seen."""
    driver, taken = record.dbapi_connection, _taken_by(record)
    if taken.ours or taken.thread == threading.get_ident():
        return False
    recent = time.monotonic() < taken.since + _BRIEFLY_S
    if not taken.arrived:
        return recent
    return driver is not None and record.in_use and (driver.in_transaction or recent)


def _after_fork() -> None:
    global _forker, _shut
    if _forker != threading.get_ident():
        return
    while _held:
        _held.pop().after_fork()
    with _guard:
        _shut = False
        _door.notify_all()
    _forker = None
    _forking.release()


def _in_child() -> None:
    global _registering, _forking, _forker, _guard, _door, _shut, _inherited_files
    _registering, _forking, _guard = threading.Lock(), threading.Lock(), threading.Lock()
    _door = threading.Condition(_guard)
    _forker, _shut = None, False
    _held.clear()
    known = (*_records.items(), *_foreign.items())
    still_open = {path for record, path in known if record.dbapi_connection is not None}
    _inherited_files = _inherited_files | still_open | {*_opening}
    _opening.clear()
    for engine in list(_engines):
        keep_inherited(engine.pool)
        engine.dispose(close=False)
    for owner in list(_all):
        owner.forget()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)
