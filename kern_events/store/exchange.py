"""One exchange with Postgres: how long it may take, and when its answer does not count.

A line that is dead is found by the kernel, if it is told to look. A server that is stuck, or a line on which
a middleman answers for it, keeps a connection whole and silent: there the driver would wait without an end.
And a COMMIT is answered as done where its wait for a standby was cancelled; a warning tells, which the driver
leaves to others. In both cases the connection is closed: what was sent may be there, its answer is lost.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from sqlalchemy import event
from sqlalchemy.engine import Engine

_LOOK_S: Final = 0.1  # what the driver has itself
_PROBES: Final = 4
_DAY_S: Final = 86_400
_CONNECT_S: Final = 10
_WAITS_FOR_STANDBY: Final = "SyncRepWaitForLSN"  # the server's own name for what does


class _Silent(Exception):
    """Nothing came in time."""


class GuardedConnection(psycopg.Connection[Any]):
    """Closed by an exchange that takes longer than `patience_s` (None waits on) or is answered too early."""

    patience_s: float | None = None
    _unsynced = False

    def wait(self, gen: Any, interval: float = _LOOK_S, *args: Any, **options: Any) -> Any:
        """As psycopg's, with both."""
        if self.patience_s is not None:
            gen = _within(gen, self.patience_s)
        try:
            answer = super().wait(gen, interval, *args, **options)
        except _Silent:
            self.close()
            raise psycopg.OperationalError(f"no answer within {self.patience_s:g} s") from None
        if self._unsynced:
            self.close()
            raise psycopg.OperationalError("the wait for the standby was cancelled")
        return answer

    def _heard(self, notice: psycopg.errors.Diagnostic) -> None:
        # Its code is that of any warning, and its text is translated.
        if notice.source_function == _WAITS_FOR_STANDBY:
            self._unsynced = True


def _within(gen: Any, patience_s: float) -> Any:
    """The driver's steps, as long as something comes in time; the clock is read only where nothing does."""
    give_up_s = math.inf
    try:
        state = next(gen)
        while True:
            ready = yield state
            if not ready:
                now_s = time.monotonic()
                give_up_s = min(give_up_s, now_s + patience_s)
                if now_s >= give_up_s:
                    raise _Silent
            state = gen.send(ready)
    except StopIteration as done:
        return done.value


def guard(engine: Engine, timeout_s: float, lock_timeout_s: float) -> None:
    """Have every connection of an engine give up on an exchange after so long, or after a false answer."""
    find_dead_lines(engine, timeout_s)

    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, record: Any, args: Any, options: Any) -> GuardedConnection:
        connection = GuardedConnection.connect(*args, **options)
        connection.patience_s = timeout_s + lock_timeout_s  # The server may wait for a lock first.
        connection.add_notice_handler(connection._heard)
        return connection


def find_dead_lines(engine: Engine, timeout_s: float = 30.0) -> None:
    """Have the kernel find a line that is dead in that time; what the engine's URL says of it counts."""
    seconds = min(timeout_s, _DAY_S)
    wanted = {
        "tcp_user_timeout": math.ceil(seconds * 1_000),
        "keepalives_idle": max(1, int(seconds) // 3),
        "keepalives_interval": max(1, int(seconds) // 6),
        "keepalives_count": _PROBES,
        "connect_timeout": math.ceil(min(seconds, _CONNECT_S)),
    }

    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, record: Any, args: Any, options: Any) -> None:
        options.update({name: value for name, value in wanted.items() if name not in options})


@contextmanager
def unhurried(connection: Any) -> Iterator[None]:
    """What is done in here with a connection may take its time; only a line that is dead ends it."""
    if not isinstance(connection, GuardedConnection):
        yield
        return
    before, connection.patience_s = connection.patience_s, None
    try:
        yield
    finally:
        connection.patience_s = before
