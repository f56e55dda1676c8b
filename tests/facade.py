"""One API for both facades, so that one test body serves SessionLog and AsyncSessionLog.

`Blocking` drives an AsyncSessionLog through an event loop in a thread of its own: what is awaited
there is simply returned here, and what is iterated over with `async for` becomes a list.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kern_events import AsyncConsumer, AsyncSessionLog, AsyncSubscription, AsyncTurnRecorder, SessionLog
from projections import AsyncSessions, Sessions

FACADES = ("sync", "async")
# Postgres through PgBouncer, as a parameter beside the other backends.
PGBOUNCER = pytest.param("pgbouncer", marks=pytest.mark.long)
_PATIENCE_S = 120.0
_AWAITED = (AsyncTurnRecorder, AsyncSubscription, AsyncConsumer)


class LoopThread:
    """An event loop that runs in a thread until it is closed."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="loop", daemon=True)
        self._thread.start()

    def run(self, awaitable: Awaitable[Any]) -> Any:
        """The result of an awaitable, or its exception."""
        return asyncio.run_coroutine_threadsafe(_awaited(awaitable), self.loop).result(_PATIENCE_S)

    def close(self) -> None:
        """Stop the loop and its thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_PATIENCE_S)
        self.loop.close()


class Blocking:
    """An async object as a synchronous one."""

    def __init__(self, loop: LoopThread, inner: Any) -> None:
        self.loop = loop
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.inner, name)
        return self._settling(value) if inspect.isroutine(value) else value

    def __repr__(self) -> str:
        return repr(self.inner)

    def __enter__(self) -> Any:
        self.loop.run(self.inner.__aenter__())
        return self

    def __exit__(self, *error: Any) -> None:
        self.loop.run(self.inner.__aexit__(*error))

    def _settling(self, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            answer = function(*args, **kwargs)
            if inspect.isasyncgen(answer):
                return self.loop.run(_collected(answer))
            if inspect.isawaitable(answer):
                return self.loop.run(answer)
            return Blocking(self.loop, answer) if isinstance(answer, _AWAITED) else answer

        return call


def open_log(facade: str, loop: LoopThread | None, url: Any, **options: Any) -> Any:
    """A log behind one of FACADES; as SessionLog, to be closed."""
    if facade == "sync":
        return SessionLog(url, **options)
    assert loop is not None
    return Blocking(loop, AsyncSessionLog(url, **options))


def open_sessions(facade: str, loop: LoopThread | None, url: Any, **options: Any) -> Any:
    """Sessions behind one of FACADES; as Sessions, to be closed."""
    if facade == "sync":
        return Sessions(url, **options)
    assert loop is not None
    return Blocking(loop, AsyncSessions(url, **options))


@contextmanager
def opened(facade: str, url: Any, **options: Any) -> Iterator[Any]:
    """As open_log, with a loop of its own: for a child process."""
    loop = LoopThread() if facade == "async" else None
    try:
        with open_log(facade, loop, url, **options) as log:
            yield log
    finally:
        if loop:
            loop.close()


def only_on(*backends: str) -> pytest.MarkDecorator:
    """For a test of what only these backends have; what Postgres has, it has through PgBouncer."""
    behind = [PGBOUNCER] if "postgres" in backends else []
    return pytest.mark.parametrize("backend", [*backends, *behind], indirect=True)


def store_of(log: Any) -> Any:
    """The store below either facade."""
    return log._store if isinstance(log, SessionLog) else log.inner.log._store


def sync_of(log: Any) -> SessionLog:
    """The SessionLog below either facade."""
    return log if isinstance(log, SessionLog) else log.inner.log


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


async def _collected(events: Any) -> list[Any]:
    return [event async for event in events]
