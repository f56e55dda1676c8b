"""Agno's async Db classes, recorded: what writes sessions and runs is done whole, in a thread.

One thread per operation beats one await per statement, and there is one implementation of what has to be
right. Everything else of Agno's class (memories, knowledge, evals ...) stays as it is.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from agno.db.base import BaseDb
from agno.db.postgres import AsyncPostgresDb, PostgresDb
from agno.db.sqlite import AsyncSqliteDb, SqliteDb
from sqlalchemy import URL, create_engine, make_url

from kern_events.adapters.agno.asking import Hook
from kern_events.adapters.agno.db import OnError, brought, run_snapshot, snapshot, written
from kern_events.adapters.agno.postgres import KernPostgresDb, find_dead_lines
from kern_events.adapters.agno.reopening import marked, stands_for
from kern_events.adapters.agno.sessions import AsyncAgnoSessions
from kern_events.adapters.agno.sqlite import KernSqliteDb
from kern_events.store.forks import ForkLock, leave_to_parent, refuse_in_children
from kern_events.store.sqlite_file import keep_private

_PLACES = frozenset({"self", "db_url", "db_engine", "db_file"})
_DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}
_HANDED_ON = (
    *("get_run", "get_runs"),
    *("get_session", "get_sessions", "upsert_sessions", "rename_session", "reassign_session_owner"),
    *("delete_session", "delete_sessions", "delete_run", "delete_runs", "cancel_pending_run"),
    *("create_approval", "update_approval"),
    *("update_run_in_session", "append_run_to_session_if_absent", "insert_session_if_absent"),
)


# Threads take turns with the loop: of many at work the loop gets a small part, and all stands still.
_AT_ONCE = 2
_slots: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


def _handed_on(name: str) -> Callable[..., Any]:
    async def method(self: Any, *args: Any, **options: Any) -> Any:
        return await _whole(getattr(self._twin, name), *args, **options)

    method.__name__ = name
    method.__doc__ = f"See {name} of the synchronous class."
    return method


async def _whole(work: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Work done in a thread; a cancelled await ends when it is decided, so that what follows comes after."""
    loop = asyncio.get_running_loop()
    async with _slots.setdefault(loop, asyncio.Semaphore(_AT_ONCE)):
        task = asyncio.ensure_future(asyncio.to_thread(work, *args, **options))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            while not task.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # Looked at, so that nobody complains that it was not.
            raise


class KernAsyncDb:
    """Mixed into an async Db class of Agno's: its sessions and runs are written by a synchronous twin."""

    def _begin(
        self,
        twin: Callable[..., Any],
        plain: type[BaseDb],
        given: dict[str, Any],
        on_error: OnError | None,
        shared: bool,
    ) -> None:
        taken = inspect.signature(plain).parameters
        named = {key: value for key, value in given.items() if key in taken and key not in _PLACES}
        self._make = partial(twin, **named, on_error=on_error)
        self.shared = shared
        self._made: Any = None
        self._shared: AsyncAgnoSessions | None = None
        self._lock = ForkLock()
        this: Any = self
        leave_to_parent(this.db_engine.sync_engine)

    @property
    def _twin(self) -> Any:
        """The synchronous Db on the same tables."""
        if self._made is None:
            this: Any = self
            with self._lock.lock:
                if self._made is None:
                    given = this.db_engine.sync_engine.dialect
                    engine = create_engine(
                        _sync(this.db_engine.url),
                        json_serializer=given._json_serializer,
                        json_deserializer=given._json_deserializer,
                    )
                    find_dead_lines(engine)
                    self._made = self._make(db_engine=engine, id=this.id, shared=self.shared)
        return self._made

    @property
    def sessions(self) -> AsyncAgnoSessions:
        """The log of this session table, awaited."""
        if self._shared is None:
            self._shared = AsyncAgnoSessions(self._twin.sessions)
        return self._shared

    def _invalidate_table_cache(self, table_name: str) -> None:
        this: Any = super()
        this._invalidate_table_cache(table_name)
        if self._made is not None:
            self._made._invalidate_table_cache(table_name)

    @property
    def write_errors(self) -> int:
        """How many writes were not stored."""
        return 0 if self._made is None else int(self._made.write_errors)

    async def upsert_session(self, session: Any, deserialize: bool | None = True) -> Any:
        """See KernDb.upsert_session; the session is written as it is at the call."""
        twin, session_id = self._twin, session.session_id
        copied = await self._taken(
            "upsert_session",
            session_id,
            None,
            lambda: snapshot(session, twin._serialise),
            lambda: brought(session),
        )
        done = await _whole(twin.upsert_session, copied, deserialize)
        written(session, copied)
        return done

    async def upsert_run(
        self, run: Any, session_id: str, user_id: str | None = None, run_index: int | None = None
    ) -> None:
        """See KernDb.upsert_run; the run is written as it is at the call."""
        run_id = run.get("run_id") if isinstance(run, dict) else getattr(run, "run_id", None)
        if self._twin._is_written(run, run_id, session_id, user_id):
            return
        copied = await self._taken(
            "upsert_run", session_id, run_id, lambda: run_snapshot(run), lambda: [run_id]
        )
        await _whole(self._twin.upsert_run, copied, session_id, user_id, run_index)

    async def _taken(
        self,
        operation: str,
        session_id: str,
        run_id: str | None,
        work: Callable[[], Any],
        runs: Callable[[], list[Any]],
    ) -> Any:
        """A copy, taken now; what becomes of one that cannot be taken is done in a thread."""
        try:
            return work()
        except Exception as error:
            failed = error

        def fail() -> None:
            raise failed

        return await _whole(self._twin._stored, operation, session_id, run_id, fail, runs)

    @property
    def asked(self) -> Hook:
        """See KernDb.asked; the hook is awaited, so it is for `arun`."""

        async def asked(
            run_input: Any, run_context: Any, session: Any,
            agent: Any = None, team: Any = None, user_id: str | None = None,
        ) -> None:  # fmt: skip
            asking = self._twin._question(run_input, run_context, session, agent or team, user_id)
            if asking is not None:
                if not self._twin._has_stored(session):
                    await self.upsert_session(session)
                await _whole(self._twin._ask, session, asking)

        return asked

    async def adopt(self, progress: Callable[[int], None] | None = None) -> int:
        """See KernDb.adopt."""
        done: int = await asyncio.to_thread(self._twin.adopt, progress)
        return done

    async def set_up(self) -> tuple[int, int]:
        """See KernDb.set_up."""
        done: tuple[int, int] = await asyncio.to_thread(self._twin.set_up)
        return done

    async def detach(self) -> None:
        """See KernDb.detach."""
        await asyncio.to_thread(self._twin.detach)

    async def close(self) -> None:
        """Close the log's connections and Agno's."""
        if self._shared is not None:
            await self._shared.close()
        if self._made is not None:
            await asyncio.to_thread(self._made.close)
        this: Any = super()
        await this.close()


@stands_for(AsyncSqliteDb, "async_sqlite")
class KernAsyncSqliteDb(KernAsyncDb, AsyncSqliteDb):
    """`AsyncSqliteDb` with every turn in an append-only log.

    Args:
        args, options: As for AsyncSqliteDb.
        on_error: As for KernSqliteDb; called in another thread.
        shared: As for KernSqliteDb.
    """

    def __init__(
        self, *args: Any, on_error: OnError | None = None, shared: bool = False, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        keep_private(self.db_engine.sync_engine)
        refuse_in_children(self.db_engine.sync_engine)
        given = inspect.signature(AsyncSqliteDb.__init__).bind(self, *args, **options).arguments
        self._begin(KernSqliteDb, SqliteDb, given, on_error, shared)

    def to_dict(self) -> dict[str, Any]:
        """See Agno."""
        return {**super().to_dict(), **marked(self)}


@stands_for(AsyncPostgresDb, "async_postgres")
class KernAsyncPostgresDb(KernAsyncDb, AsyncPostgresDb):
    """`AsyncPostgresDb` with every turn in an append-only log.

    Args:
        args, options: As for AsyncPostgresDb, with whatever async driver; the log itself uses psycopg 3.
        on_error: As for KernPostgresDb; called in another thread.
        shared: As for KernSqliteDb.
    """

    def __init__(
        self, *args: Any, on_error: OnError | None = None, shared: bool = False, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        given = inspect.signature(AsyncPostgresDb.__init__).bind(self, *args, **options).arguments
        self._begin(KernPostgresDb, PostgresDb, given, on_error, shared)

    def to_dict(self) -> dict[str, Any]:
        """See Agno."""
        return {**super().to_dict(), **marked(self)}


def _sync(url: URL) -> URL:
    return make_url(url).set(drivername=_DRIVERS[url.get_backend_name()])


for _own, _plain in ((KernAsyncSqliteDb, AsyncSqliteDb), (KernAsyncPostgresDb, AsyncPostgresDb)):
    for _name in _HANDED_ON:
        if hasattr(_plain, _name):
            setattr(_own, _name, _handed_on(_name))
