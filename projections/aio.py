"""AsyncSessions: the same verbs as Sessions, awaited.

A load is one whole operation in a thread of the log's pool; a cancelled await is decided before it
returns.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack, overload

from kern_events import AsyncSessionLog, spi
from projections.caches import SnapshotCache
from projections.history import History
from projections.projector import Projector
from projections.session import View
from projections.sessions import LogOptions, Sessions

if TYPE_CHECKING:
    from sqlalchemy import URL
    from sqlalchemy.engine import Engine

V = TypeVar("V")


class AsyncSessions(AsyncSessionLog):
    """Sessions for asyncio: same verbs, same parameters, same errors.

    Args:
        url_or_engine: As for Sessions, or a Sessions to share with synchronous code; that one is
            not closed with this object, and keeps its own cache and options.
        cache: As for Sessions.
        namespace, threads: As for AsyncSessionLog, like the options.
    """

    def __init__(
        self,
        url_or_engine: str | URL | Engine | Sessions,
        *,
        cache: SnapshotCache | None = None,
        namespace: str = "default",
        threads: int = 8,
        **options: Unpack[LogOptions],
    ) -> None:
        self._shared = isinstance(url_or_engine, Sessions)
        if self._shared and (cache is not None or namespace != "default" or options):
            raise TypeError("a Sessions has its cache and options already: give it alone")
        self._sessions = (
            url_or_engine
            if isinstance(url_or_engine, Sessions)
            else Sessions(url_or_engine, cache=cache, namespace=namespace, **options)
        )
        super().__init__(self._sessions, threads=threads)

    @classmethod
    def open(
        cls,
        url_or_engine: str | URL | Engine | Sessions,
        *,
        cache: SnapshotCache | None = None,
        namespace: str = "default",
        threads: int = 8,
        **options: Unpack[LogOptions],
    ) -> Self:
        """See Sessions.open: `async with AsyncSessions.open("sqlite:///sessions.db") as sessions:`."""
        return cls(url_or_engine, cache=cache, namespace=namespace, threads=threads, **options)

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
