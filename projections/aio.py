"""AsyncSessions: the same verbs as Sessions, awaited.

A load is one whole operation in a thread of the log's pool; a cancelled await is decided before it
returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar, Unpack, overload

from kern_events import AsyncConsumer, AsyncSessionLog, AsyncTurnRecorder, Event, Head, Receipt, Report, spi
from projections.history import History
from projections.projector import Projector
from projections.rebuild import RebuildReport
from projections.session import View
from projections.sessions import Cache, DeleteReceipt, LogOptions, Progress, Sessions
from projections.travel import Diff

if TYPE_CHECKING:
    from sqlalchemy import URL
    from sqlalchemy.engine import Engine

V = TypeVar("V")

_PAGE: Final = 256


class AsyncSessions(AsyncSessionLog):
    """Sessions for asyncio: same verbs, same parameters, same errors.

    Args:
        url_or_engine: As for Sessions, or a Sessions to share with synchronous code; that one is
            not closed with this object, and keeps its own cache and options.
        cache, durable, secret: As for Sessions.
        namespace, threads: As for AsyncSessionLog, like the options.
    """

    def __init__(
        self,
        url_or_engine: str | URL | Engine | Sessions,
        *,
        cache: Cache | None = None,
        durable: bool = True,
        secret: bytes | None = None,
        namespace: str = "default",
        threads: int = 8,
        **options: Unpack[LogOptions],
    ) -> None:
        self._shared = isinstance(url_or_engine, Sessions)
        given = cache is not None or not durable or secret is not None or namespace != "default"
        if self._shared and (given or options):
            raise TypeError("a Sessions has its cache and options already: give it alone")
        self._sessions = (
            url_or_engine
            if isinstance(url_or_engine, Sessions)
            else Sessions(
                url_or_engine, cache=cache, durable=durable, secret=secret, namespace=namespace, **options
            )
        )
        super().__init__(self._sessions, threads=threads)

    @classmethod
    def open(
        cls,
        url_or_engine: str | URL | Engine | Sessions,
        *,
        cache: Cache | None = None,
        durable: bool = True,
        secret: bytes | None = None,
        namespace: str = "default",
        threads: int = 8,
        **options: Unpack[LogOptions],
    ) -> Self:
        """See Sessions.open: `async with AsyncSessions.open("sqlite:///sessions.db") as sessions:`."""
        return cls(
            url_or_engine,
            cache=cache,
            durable=durable,
            secret=secret,
            namespace=namespace,
            threads=threads,
            **options,
        )

    async def close(self) -> None:
        """See Sessions.close."""
        if not self._shared:
            await spi.in_thread(self, self._sessions.close)
        await super().close()

    @overload
    async def load(
        self,
        session_id: str,
        *,
        turn: int | None = None,
        version: int | None = None,
        at: datetime | None = None,
        projector: None = None,
        min_version: int | None = None,
        stale_ok: bool = False,
    ) -> View: ...

    @overload
    async def load(
        self,
        session_id: str,
        *,
        turn: int | None = None,
        version: int | None = None,
        at: datetime | None = None,
        projector: Projector[V],
        min_version: int | None = None,
        stale_ok: bool = False,
    ) -> V: ...

    async def load(
        self,
        session_id: str,
        *,
        turn: int | None = None,
        version: int | None = None,
        at: datetime | None = None,
        projector: Projector[Any] | None = None,
        min_version: int | None = None,
        stale_ok: bool = False,
    ) -> Any:
        """See Sessions.load."""
        chosen: Any = projector  # which of the two overloads is the caller's business

        def load() -> Any:
            return self._sessions.load(
                session_id,
                turn=turn,
                version=version,
                at=at,
                projector=chosen,
                min_version=min_version,
                stale_ok=stale_ok,
            )

        return await spi.in_thread(self, load)

    async def history(
        self, session_id: str, *, last_turns: int | None = None, last_messages: int | None = None
    ) -> History:
        """See Sessions.history."""
        return await spi.in_thread(
            self, self._sessions.history, session_id, last_turns=last_turns, last_messages=last_messages
        )

    async def restore(
        self,
        session_id: str,
        *,
        to_turn: int | None = None,
        to_version: int | None = None,
        to_time: datetime | None = None,
        reason: str | None = None,
        actor: str | None = None,
        expected: int | Head | None = None,
    ) -> Receipt:
        """See Sessions.restore."""
        return await spi.in_thread(
            self,
            self._sessions.restore,
            session_id,
            to_turn=to_turn,
            to_version=to_version,
            to_time=to_time,
            reason=reason,
            actor=actor,
            expected=expected,
        )

    async def verify(
        self, session_id: str | None = None, *, snapshots: bool = False, progress: Progress | None = None
    ) -> Report:
        """See Sessions.verify."""
        return await spi.in_thread(
            self, self._sessions.verify, session_id, snapshots=snapshots, progress=progress
        )

    async def delete(
        self, session_id: str, *, actor: str | None = None, progress: Progress | None = None
    ) -> DeleteReceipt:
        """See Sessions.delete; `progress` is called in another thread."""
        return await spi.in_thread(self, self._sessions.delete, session_id, actor=actor, progress=progress)

    async def preview_restore(
        self,
        session_id: str,
        *,
        to_turn: int | None = None,
        to_version: int | None = None,
        to_time: datetime | None = None,
    ) -> Diff:
        """See Sessions.preview_restore."""
        return await spi.in_thread(
            self,
            self._sessions.preview_restore,
            session_id,
            to_turn=to_turn,
            to_version=to_version,
            to_time=to_time,
        )

    async def diff(self, session_id: str, a: int, b: int) -> Diff:
        """See Sessions.diff."""
        return await spi.in_thread(self, self._sessions.diff, session_id, a, b)

    @overload
    def replay(
        self,
        session_id: str,
        *,
        scope: Literal["live", "log"] = "live",
        projector: None = None,
        pace: float | None = None,
    ) -> AsyncIterator[tuple[Event, View]]: ...

    @overload
    def replay(
        self,
        session_id: str,
        *,
        scope: Literal["live", "log"] = "live",
        projector: Projector[V],
        pace: float | None = None,
    ) -> AsyncIterator[tuple[Event, V]]: ...

    async def replay(
        self,
        session_id: str,
        *,
        scope: Literal["live", "log"] = "live",
        projector: Projector[Any] | None = None,
        pace: float | None = None,
    ) -> AsyncIterator[tuple[Event, Any]]:
        """See Sessions.replay; what it raises is raised when the first event is asked for."""
        steps = await spi.in_thread(self, self._sessions._replayed, session_id, scope, projector, pace)
        while page := await spi.in_thread(self, list, islice(steps, _PAGE)):
            for event, view, after_s in page:
                if pace is not None and after_s > 0:
                    await asyncio.sleep(after_s / pace)
                yield event, view

    def warmer(self, projector: Projector[Any] | None = None) -> AsyncConsumer:
        """See Sessions.warmer: `await sessions.warmer().run()`."""
        return self.consumer(*self._sessions._warming(projector), after=None)

    async def rebuild(
        self,
        projector: Projector[Any] | None = None,
        *,
        workers: int = 1,
        executor: Executor | None = None,
        check: bool = False,
        prune: bool = False,
        progress: Callable[[RebuildReport], None] | None = None,
    ) -> RebuildReport:
        """See Sessions.rebuild."""
        return await spi.in_thread(
            self,
            self._sessions.rebuild,
            projector,
            workers=workers,
            executor=executor,
            check=check,
            prune=prune,
            progress=progress,
        )

    def resume(
        self,
        session_id: str,
        turn: int | None = None,
        *,
        expected: Head | None = None,
        buffered: bool = False,
        actor: str | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> AbstractAsyncContextManager[AsyncTurnRecorder]:
        """See Sessions.resume: `async with sessions.resume("s1") as turn: ...`."""
        return spi.resumed_async(
            self,
            session_id,
            self._sessions._claims(session_id, turn, expected),
            buffered=buffered,
            actor=actor,
            meta=meta,
        )
