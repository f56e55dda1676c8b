"""Sessions: a SessionLog that can also load, so that one object serves an application."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Self, TypedDict, TypeVar, Unpack, overload

from msgspec.structs import replace

from kern_events import Head, SessionLog, spi
from kern_events.errors import SessionNotFound, VersionConflict
from projections.caches import MemoryCache, SnapshotCache
from projections.history import History, history
from projections.loading import Loader
from projections.projector import Projector
from projections.session import SessionProjector, View

if TYPE_CHECKING:
    from sqlalchemy import URL
    from sqlalchemy.engine import Engine

V = TypeVar("V")

_SESSION: Final = SessionProjector()


class LogOptions(TypedDict, total=False):
    """The options that SessionLog takes beside the namespace; see there."""

    schema: str | None
    pool_size: int
    lock_timeout_s: float
    max_payload_bytes: int


class Sessions(SessionLog):
    """A SessionLog with views: everything that it does, and `load` and `history`.

    Args:
        url_or_engine: As for SessionLog.
        cache: Where snapshots of this database are kept between loads; by default up to 256 MiB of
            this process.
        namespace: As for SessionLog, like the options.
    """

    def __init__(
        self,
        url_or_engine: str | URL | Engine,
        *,
        cache: SnapshotCache | None = None,
        namespace: str = "default",
        **options: Unpack[LogOptions],
    ) -> None:
        super().__init__(url_or_engine, namespace=namespace, **options)
        self._loader = Loader(self, MemoryCache() if cache is None else cache)

    @classmethod
    def open(
        cls,
        url_or_engine: str | URL | Engine,
        *,
        cache: SnapshotCache | None = None,
        namespace: str = "default",
        **options: Unpack[LogOptions],
    ) -> Self:
        """Open the sessions of a database: `with Sessions.open("sqlite:///sessions.db") as sessions:`.

        Connects on first use; creates the tables where there are none.
        """
        return cls(url_or_engine, cache=cache, namespace=namespace, **options)

    @overload
    def load(
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
    def load(
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

    def load(
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
        """A session as it is now, or as it was; always what the log says at the time of the call.

        Costs one query and what was recorded since the last load, at any length of the session. The
        view is shared with everybody who loads it, which is safe because nothing can change it.

        Args:
            session_id: The session.
            turn: As of a turn: before the next one started. 0 is before the first.
            version: As of a version; 0 is before the first event.
            at: As of an aware time: with all that was recorded by then.
            projector: Gives a view of another kind, its own.
            min_version: The session must have come at least this far.
            stale_ok: Ask the log only if it was not asked for a second; the view says `stale` where
                it was not. Of no meaning together with turn, version or at.

        Raises:
            SessionNotFound: The session has no events or was deleted.
            ValueError: The session has no such turn or version, or `at` has no time zone.
            TypeError: More than one of turn, version and at.
            VersionConflict: The session has not come to `min_version`.
            ProjectionFailed: The projector raised.
        """
        chosen: Projector[Any] = _SESSION if projector is None else projector
        if turn is None and version is None and at is None:
            return self._load_head(session_id, chosen, min_version, stale_ok)
        head = self.head(session_id)
        if head.version == 0 or head.status == "deleted":
            raise SessionNotFound(session_id)
        _check_reached(session_id, min_version, head.version)
        return self._loader.past(session_id, chosen, self._version_of(session_id, head, turn, version, at))

    def history(
        self, session_id: str, *, last_turns: int | None = None, last_messages: int | None = None
    ) -> History:
        """The messages for the next prompt; `.to_openai()` gives them as plain dicts.

        Args:
            session_id: The session.
            last_turns: Only what was recorded since that many turns ago began.
            last_messages: Only about so many messages: no call is parted from its result.

        Raises:
            SessionNotFound: The session has no events or was deleted.
        """
        return history(self.load(session_id), last_turns=last_turns, last_messages=last_messages)

    def _load_head(
        self, session_id: str, projector: Projector[Any], min_version: int | None, stale_ok: bool
    ) -> Any:
        if stale_ok:
            recent = self._loader.recent(session_id, projector)
            if recent is not None and recent.version >= (min_version or 0):
                return replace(recent.view, stale=True) if isinstance(recent.view, View) else recent.view
        snapshot = self._loader.current(session_id, projector)
        _check_reached(session_id, min_version, snapshot.version)
        return snapshot.view

    def _version_of(
        self, session_id: str, head: Head, turn: int | None, version: int | None, at: datetime | None
    ) -> int:
        """The version that a point in time means; what is recorded after this head does not count."""
        if (turn, version, at).count(None) < 2:
            raise TypeError("at most one of turn, version and at")
        if at is not None:
            return min(spi.version_at(self, session_id, spi.to_microseconds(at)), head.version)
        if turn is not None:
            next_turn = _within(session_id, "turn", turn, head.turn) + 1
            start = spi.turn_start(self, session_id, next_turn)
            return head.version if start is None else min(start - 1, head.version)
        return head.version if version is None else _within(session_id, "version", version, head.version)


def _within(session_id: str, what: str, value: int, last: int) -> int:
    if not 0 <= value <= last:
        raise ValueError(f"session {session_id!r} has no {what} {value}: there are 0 to {last}")
    return value


def _check_reached(session_id: str, min_version: int | None, version: int) -> None:
    if min_version is not None and version < min_version:
        raise VersionConflict(session_id, min_version, version)
