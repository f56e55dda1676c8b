"""Sessions: a SessionLog that can also load, so that one object serves an application."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypedDict, TypeVar, Unpack, overload

from msgspec import structs
from msgspec.structs import replace
from sqlalchemy import URL

from kern_events import (
    Consumer,
    Event,
    EventTypes,
    Finding,
    Head,
    Receipt,
    Report,
    SessionLog,
    TurnRecorder,
    spi,
)
from kern_events.errors import (
    AppendUnresolved,
    ErasureUnfinished,
    KernError,
    SessionNotFound,
    StoreError,
    TurnNotPaused,
    VersionConflict,
)
from projections.caches import MemoryCache, RedisCache, SnapshotCache
from projections.caches.base import check_cache
from projections.caches.framing import check_secret
from projections.caches.tiers import DurableTier, SharedTier
from projections.comparing import Comparison
from projections.history import History, history
from projections.loading import Loader
from projections.projector import Projector
from projections.rebuild import Place, Rebuild, RebuildReport, processes
from projections.session import SessionProjector, View
from projections.stored import Unreadable
from projections.travel import Diff, Replay, Step, diff_views

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

V = TypeVar("V")
Cache = SnapshotCache | RedisCache | str
Progress = Callable[[int, int], None]

logger: Final = logging.getLogger("projections")
_ERASING: Final = ("session.deleted", "session.erased")
_MAX_WORKERS: Final = 256
_OUTSTANDING: Final = 64  # tasks that an executor has at a time
_SLOWEST: Final = 0.001  # a thousandth of the original pace; a wait has to be one that can be waited for


class LogOptions(TypedDict, total=False):
    """The options that SessionLog takes beside the namespace; see there."""

    schema: str | None
    pool_size: int
    lock_timeout_s: float
    timeout_s: float
    max_payload_bytes: int
    max_batch_bytes: int
    types: EventTypes


class DeleteReceipt(Receipt, frozen=True):
    """The receipt of a deletion.

    Attributes:
        purged: Whether nothing of the session, and of what its forks share with it, is left in Redis and in
            the memory of this process. False where Redis was not reached: it is tried again until this
            process ends, and the copies expire after the `ttl_s` of the RedisCache.
    """

    purged: bool = True


class Sessions(SessionLog):
    """A SessionLog with views: everything that it does, and `load`, `history` and going back in time.

    Args:
        url_or_engine: As for SessionLog.
        cache: Where snapshots of this database are kept between loads. By default up to 256 MiB of
            this process; a Redis URL (`redis://…`, `redis+cluster://…`) or a RedisCache puts Redis
            behind that, for all processes. One Redis prefix serves one database.
        durable: Whether some snapshots are stored in the database itself, so that a process which
            starts cold, or looks far back, need not fold a long session from its beginning.
        secret: Signs every snapshot that is stored, in Redis and in the database, against others who
            can write there: bytes, the same for all processes. A RedisCache brings its own. What is
            not signed with it counts as not stored.
        namespace: As for SessionLog, like the options.

    Raises:
        TypeError: The cache is none, or the secret no bytes; or there is a RedisCache and a secret.
        ValueError: The URL is not one, or the secret is empty.
    """

    def __init__(
        self,
        url_or_engine: str | URL | Engine,
        *,
        cache: Cache | None = None,
        durable: bool = True,
        secret: bytes | None = None,
        namespace: str = "default",
        **options: Unpack[LogOptions],
    ) -> None:
        memory, redis = _opened(cache, secret)
        super().__init__(url_or_engine, namespace=namespace, **options)
        self._recipe = (
            url_or_engine,
            {"cache": cache, "durable": durable, "secret": secret, "namespace": namespace, **options},
        )
        self._projector: Final = SessionProjector(self.types)
        self._secret: Final = secret if redis is None else redis.secret
        shared = None if redis is None else SharedTier(redis)
        stored = DurableTier(self, self._secret) if durable else None
        self._loader = Loader(self, memory, shared, stored)

    @classmethod
    def open(
        cls,
        url_or_engine: str | URL | Engine,
        *,
        cache: Cache | None = None,
        durable: bool = True,
        secret: bytes | None = None,
        namespace: str = "default",
        **options: Unpack[LogOptions],
    ) -> Self:
        """Open the sessions of a database: `with Sessions.open("sqlite:///sessions.db") as sessions:`.

        Connects on first use; creates the tables where there are none.
        """
        return cls(
            url_or_engine, cache=cache, durable=durable, secret=secret, namespace=namespace, **options
        )

    def close(self) -> None:
        """See SessionLog.close."""
        self._loader.close()
        super().close()

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
        if min_version is not None:
            min_version = spi.check_whole("min_version", min_version)
        if type(session_id) is not str:  # The caches would ask for its hash.
            self.head(session_id)  # Which says that it is no id.
        chosen = self._chosen(projector)
        if turn is None and version is None and at is None:
            return self._load_head(session_id, chosen, min_version, stale_ok)
        head = self._standing(session_id)
        point = spi.point(self, session_id, head, turn=turn, version=version, at=at)
        _check_reached(session_id, min_version, head.version)
        return self._loader.past(session_id, chosen, point).view

    def history(
        self, session_id: str, *, last_turns: int | None = None, last_messages: int | None = None
    ) -> History:
        """The messages for the next prompt; `.to_openai()` gives them as plain dicts.

        A window is read from the newest chunks alone where the view is not in memory.

        Args:
            session_id: The session.
            last_turns: Only what was recorded since that many turns ago began.
            last_messages: Only about so many messages: no call is parted from its result.

        Raises:
            SessionNotFound: The session has no events or was deleted.
        """
        if last_turns is not None or last_messages is not None:
            snapshot = self._loader.window(session_id, self._projector)
            with suppress(Unreadable, StoreError):  # A chunk that is looked into is read only now.
                if snapshot is not None:
                    return history(snapshot.view, last_turns=last_turns, last_messages=last_messages)
        return history(self.load(session_id), last_turns=last_turns, last_messages=last_messages)

    def restore(
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
        """Go back to an earlier point: the session goes on from there, and nothing is deleted.

        Records one event, `session.restored`. Messages, state, turns and usage are those of the point
        again; name, user id, metadata and status stay. A turn that runs meanwhile is abandoned, and
        an append that expects an older version conflicts. What was abandoned stays readable by its
        versions, and can be restored to in the same way.

        Args:
            session_id: The session.
            to_turn: Back to a turn of the live path: before the next one started; 0 is before the first.
            to_version: Back to a version, on an abandoned branch too; 0 is before the first event.
            to_time: Back to an aware time: to the highest version recorded by then.
            reason: Why; recorded as content, so it can be erased.
            actor: Who does it: a pseudonymous id.
            expected: The version or Head that the caller decided on. By default the session may have
                gone on meanwhile.

        Returns:
            The receipt of the event.

        Raises:
            SessionNotFound: The session has no events or was deleted.
            SessionClosed: The session is closed.
            ValueError: The session has no such turn or version, or the time has no zone.
            PointErased: What was recorded there is erased.
            TypeError: Not exactly one of to_turn, to_version and to_time.
            VersionConflict: The session is past `expected`.
        """
        _check_one_point(to_turn, to_version, to_time)
        expected = spi.checked_expected(expected)
        at_us = None if to_time is None else spi.to_microseconds(to_time)
        while True:
            head = _agreeing(self._standing(session_id), session_id, expected)
            target = self._point_back(session_id, head, to_turn, to_version, at_us)
            described = spi.described(self, session_id)
            kept = {field: described.get(field) for field in ("user_id", "name", "metadata")}
            payload = kept if reason is None else {**kept, "reason": reason}
            try:
                receipt = spi.restore(self, session_id, target, payload, head, actor=actor)
            except VersionConflict:
                if expected is not None:
                    raise
            else:
                self._keep_now(session_id)
                return receipt

    def preview_restore(
        self,
        session_id: str,
        *,
        to_turn: int | None = None,
        to_version: int | None = None,
        to_time: datetime | None = None,
    ) -> Diff:
        """What a restore would change, without doing it: what it drops would no longer count.

        Args:
            session_id: The session.
            to_turn, to_version, to_time: As for restore.

        Raises:
            As restore.
        """
        _check_one_point(to_turn, to_version, to_time)
        now = self.load(session_id)
        at_us = None if to_time is None else spi.to_microseconds(to_time)
        then = self._point_back(session_id, now.head, to_turn, to_version, at_us)
        return diff_views(now, self._loader.past(session_id, self._projector, then).view)

    def diff(self, session_id: str, a: int, b: int) -> Diff:
        """What is different at version `b` from what was at version `a`, whichever is the later one.

        Raises:
            SessionNotFound: The session has no events or was deleted.
            ValueError: The session has no such version.
        """
        a, b = spi.whole("a", a), spi.whole("b", b)
        head = self._standing(session_id)
        points = [spi.point(self, session_id, head, version=version) for version in (a, b)]
        before, after = (self._loader.past(session_id, self._projector, point).view for point in points)
        return diff_views(before, after)

    @overload
    def replay(
        self,
        session_id: str,
        *,
        scope: Literal["live", "log"] = "live",
        projector: None = None,
        pace: float | None = None,
    ) -> Iterator[tuple[Event, View]]: ...

    @overload
    def replay(
        self,
        session_id: str,
        *,
        scope: Literal["live", "log"] = "live",
        projector: Projector[V],
        pace: float | None = None,
    ) -> Iterator[tuple[Event, V]]: ...

    def replay(
        self,
        session_id: str,
        *,
        scope: Literal["live", "log"] = "live",
        projector: Projector[Any] | None = None,
        pace: float | None = None,
    ) -> Iterator[tuple[Event, Any]]:
        """A session once more, event by event, each with the view after it.

        Goes up to where the session stands at the call. A fork begins with what it shares.

        Args:
            session_id: The session.
            scope: `live` replays what counts, `log` everything: abandoned turns, then the restore
                after which the view is the one that it went back to.
            projector: Gives views of another kind, its own.
            pace: Wait between events as it was then: 1 at the original pace, 10 ten times as fast.

        Raises:
            SessionNotFound: The session has no events or was deleted; raised at once.
            ValueError: The pace is not a number from 0.001, or there is no such scope.
            ProjectionFailed: The projector raised.
        """
        return _paced(self._replayed(session_id, scope, projector, pace), pace)

    def resume(
        self,
        session_id: str,
        turn: int | None = None,
        *,
        expected: Head | None = None,
        buffered: bool = False,
        actor: str | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> AbstractContextManager[TurnRecorder]:
        """Continue a paused turn, in whatever process: `with sessions.resume("s1") as turn: ...`.

        Entering the block records `turn.resumed`; from then on it is as with `turn`. Of those who try
        at the same time, one continues the turn.

        Args:
            session_id: The session.
            turn: The number of the turn; may be left out where one is paused.
            expected: The `view.head` at which the turn was seen to be open. With it, a turn that is not
                paused can be continued as well: one that was open at the target of a restore, or that
                a crash left open.
            buffered, actor, meta: As for turn; `turn.resumed` itself is recorded at once.

        Raises:
            TurnNotPaused: Entering the block: there is no such turn, or somebody else continues it.
            ValueError: Several turns are paused, and none is named.
            VersionConflict: The session is past `expected`.
        """
        return spi.resumed(
            self,
            session_id,
            self._claims(session_id, turn, expected),
            buffered=buffered,
            actor=actor,
            meta=meta,
        )

    def rebuild(
        self,
        projector: Projector[Any] | None = None,
        *,
        workers: int = 1,
        executor: Executor | None = None,
        check: bool = False,
        prune: bool = False,
        progress: Callable[[RebuildReport], None] | None = None,
    ) -> RebuildReport:
        """Make the stored snapshots of all sessions anew, after a projector or event types have changed.

        Never needed for a right answer: a load folds what is not stored. It may be stopped at any time,
        by kill -9 too, and goes on where it was when it is called again; appends go on meanwhile, and so
        do processes with other versions of the projector. A session that fails is reported, the others
        are done. Snapshots go into the database even if these sessions were opened with `durable=False`.
        Sessions of fewer than 64 events are folded, and stored in Redis alone.

        Args:
            projector: Whose snapshots; None is the session view. Another one needs a `view_type`.
            workers: How many processes; 1 works in this one.
            executor: Works there instead: any of `concurrent.futures` or with its interface, as Dask's.
            check: Compare what is stored with fresh folds, and store nothing; differences count as failed.
            prune: Drop the snapshots by other versions of the projector, of each session that is done.
            progress: Called now and then with the report so far.

        Returns:
            The report; `report.ok` says whether no session failed.

        Raises:
            ValueError: The projector has no `view_type`, other processes cannot open this log, or both
                check and prune.
            StoreError: The database failed. What is stored stays.
        """
        chosen = self._chosen(projector)
        workers = spi.check_whole("workers", workers, 1, _MAX_WORKERS)
        if check and prune:
            raise ValueError("a check stores and drops nothing: prune in a rebuild of its own")
        elsewhere = workers > 1 or not (executor is None or isinstance(executor, ThreadPoolExecutor))
        place = Place(self._address(elsewhere), projector, check, prune)
        rebuild = Rebuild(self, chosen, place, progress)
        if executor is not None:
            return rebuild.run(executor, _OUTSTANDING)
        if workers == 1:
            return rebuild.run(None, 0)
        pool = processes(workers)
        try:
            return rebuild.run(pool, 2 * workers)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def warmer(self, projector: Projector[Any] | None = None) -> Consumer:
        """A worker that loads what others append, so that it lies in Redis when it is asked for.

        For processes that only write, and to have snapshots in the database although nobody loads:
        `sessions.warmer().run()`. What it begins with is what is appended from then on; `rebuild` is for
        what was before. Any number may run, and one works; `consumers` tells its lag.

        Args:
            projector: Whose views; None is the session view.
        """
        return self.consumer(*self._warming(projector), after=None)

    def _warming(self, projector: Projector[Any] | None) -> tuple[str, Callable[[Sequence[Event]], None]]:
        """The name of a warmer, and what it does."""
        chosen = self._chosen(projector)

        def warm(events: Sequence[Event]) -> None:
            for session_id in {event.session_id for event in events if event.type in _ERASING}:
                self._loader.erased(session_id)
            for session_id in dict.fromkeys(event.session_id for event in events):
                with suppress(SessionNotFound):  # It was deleted since.
                    self._loader.current(session_id, chosen)

        return f"warmer:{chosen.name}:{chosen.version}", warm

    def _address(self, elsewhere: bool) -> tuple[type[Sessions], tuple[Any, ...], dict[str, Any]]:
        """How another process opens the same sessions."""
        url, options = self._recipe
        cache = options["cache"]
        if elsewhere and (not isinstance(url, (str, URL)) or self._store.dialect == "memory"):
            raise ValueError(
                "other processes need a URL: open the sessions with one, not memory: or an Engine"
            )
        if elsewhere and isinstance(cache, RedisCache):
            raise ValueError(
                "other processes need the URL of Redis: open the sessions with cache='redis://…'"
            )
        shareable = cache if isinstance(cache, str) else None
        return Sessions, (url,), {**options, "cache": shareable}

    def verify(
        self, session_id: str | None = None, *, snapshots: bool = False, progress: Progress | None = None
    ) -> Report:
        """See SessionLog.verify; with `snapshots`, what is stored of views is held against the events, too.

        Args:
            session_id: As for SessionLog.
            snapshots: Compare the newest snapshot of the session view, of each session, in the database
                and in Redis, with a fold of the events. One that differs, or cannot be read, is a finding
                `snapshot`; it is left where it is. What lies in the database under another secret, or
                under none, is never read; the notes of the report count it.
            progress: As for SessionLog; what is compared is counted on top.

        Returns:
            The report; `snapshots` of it is how many were compared.

        Raises:
            StoreUnavailable: Redis does not answer. Where it ceases to later, a note says so.
        """
        comparison = Comparison(self, self._projector) if snapshots else None
        report = super().verify(session_id, progress=progress)
        if comparison is None:
            return report
        findings: list[Finding] = []
        done, events, count = report.sessions, report.events, 0
        for each in comparison.run(session_id):
            findings += each.findings
            done, events, count = done + 1, events + each.events, count + each.snapshots
            if progress:
                progress(done, events)
        notes = (*report.notes, *comparison.notes())
        return replace(report, findings=(*report.findings, *findings), notes=notes, snapshots=count)

    def delete(
        self, session_id: str, *, actor: str | None = None, progress: Progress | None = None
    ) -> DeleteReceipt:
        """See SessionLog.delete; forgets the snapshots of the session and of its forks, in Redis too.

        Other processes forget theirs when they load the session, and with a `warmer` those in Redis go
        whoever deletes.
        """
        try:
            receipt = super().delete(session_id, actor=actor, progress=progress)
        except (SessionNotFound, AppendUnresolved, ErasureUnfinished):  # Others have, or perhaps this has.
            self._loader.erased(session_id)
            raise
        purged = self._loader.erased(session_id)
        return DeleteReceipt(**structs.asdict(receipt), purged=purged)

    def _standing(self, session_id: str) -> Head:
        """Where a session stands that there is; of one that was deleted, what is kept is forgotten."""
        head = self.head(session_id)
        self._loader.gone(session_id, head)
        spi.point(self, session_id, head)  # Raises where there is nothing.
        return head

    def _replayed(
        self,
        session_id: str,
        scope: Literal["live", "log"],
        projector: Projector[Any] | None,
        pace: float | None,
    ) -> Iterator[Step]:
        _check_pace(pace)
        chosen = self._chosen(projector)
        return Replay(self, self._loader, session_id, chosen, scope).steps()

    def _chosen(self, projector: Projector[Any] | None) -> Projector[Any]:
        """The projector given, or that of the session view, which knows the types of this log."""
        if projector is None or type(projector) is SessionProjector:
            return self._projector
        if isinstance(projector, type) or not isinstance(getattr(projector, "name", None), str):
            raise TypeError(f"projector is a Projector, not {projector!r}")
        return projector

    def _claims(
        self, session_id: str, turn: int | None, expected: Head | None
    ) -> Callable[[VersionConflict | None], spi.Claim]:
        turn = spi.check_optional("turn", turn)
        if expected is not None:
            expected = spi.checked_head(expected)

        def claims(conflict: VersionConflict | None) -> spi.Claim:
            if conflict is not None and expected is not None:
                raise conflict
            view = self._loader.recorded(session_id, self._projector).view
            _agreeing(view.head, session_id, expected)
            return _claim(view, turn, expected)

        return claims

    def _keep_now(self, session_id: str) -> None:
        """After a restore, so that no load has to look for the way back."""
        try:
            self._loader.keep(session_id, self._projector, self._loader.current(session_id, self._projector))
        except KernError as error:  # It is recorded; whoever loads next finds the way.
            logger.debug("the view after a restore was not kept: %s", error)

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


def _opened(cache: object, secret: bytes | None) -> tuple[SnapshotCache, RedisCache | None]:
    """The memory of a cache, and the Redis behind it, if there is one; see Sessions."""
    check_secret(secret)
    if isinstance(cache, str):
        cache = RedisCache(cache, secret=secret)
    elif isinstance(cache, RedisCache) and secret is not None:
        raise TypeError("a RedisCache has its own secret, which counts for the database too: give it there")
    if isinstance(cache, RedisCache):
        return cache.memory, cache
    memory: Any = MemoryCache() if cache is None else cache
    check_cache(memory)
    return memory, None


def _check_one_point(*points: object) -> None:
    if points.count(None) != len(points) - 1:
        raise TypeError("exactly one of to_turn, to_version and to_time")


def _check_pace(pace: Any) -> None:
    if pace is None:
        return
    if isinstance(pace, bool) or not isinstance(pace, (int, float)):
        raise TypeError(f"a pace is a number from {_SLOWEST}, not {type(pace).__name__}")
    if not _SLOWEST <= pace < math.inf:
        raise ValueError(f"a pace is a number from {_SLOWEST}, not {pace}")


def _agreeing(head: Head, session_id: str, expected: int | Head | None) -> Head:
    """The head, if it is the one that the caller decided on."""
    if isinstance(expected, Head):
        agrees = (expected.version, expected.hash) == (head.version, head.hash)
        version = expected.version
    else:
        agrees, version = expected in (None, head.version), expected or 0
    if not agrees:
        raise VersionConflict(session_id, version, head.version)
    return head


def _claim(view: View, turn: int | None, expected: Head | None) -> spi.Claim:
    """The turn to continue, as the view shows it."""
    paused = [pause.turn for pause in view.paused]
    if turn is None and len(paused) > 1:
        raise ValueError(f"turns {', '.join(map(str, paused))} are paused: say which one to continue")
    if turn is None and not paused:
        raise TurnNotPaused(view.session_id, None, None)
    number = paused[0] if turn is None else turn
    found = next((each for each in reversed(view.turns) if each.number == number), None)
    is_open = found is not None and found.ended_version is None
    if found is None or not (is_open if expected is not None else number in paused):
        raise TurnNotPaused(view.session_id, number, found.status if found else None)
    return spi.Claim(number, expected or view.head)


def _paced(steps: Iterator[Step], pace: float | None) -> Iterator[tuple[Event, Any]]:
    for event, view, after_s in steps:
        if pace is not None and after_s > 0:
            time.sleep(min(after_s / pace, threading.TIMEOUT_MAX))
        yield event, view


def _check_reached(session_id: str, min_version: int | None, version: int) -> None:
    if min_version is not None and version < min_version:
        raise VersionConflict(session_id, min_version, version)
