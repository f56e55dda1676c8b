"""AsyncSessionLog: the same verbs, awaited.

Each whole operation goes to a bounded thread pool of the log's own; an append to SQLite is queued
for the group commit and holds no thread while it waits.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import os
import weakref
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import datetime
from types import TracebackType
from typing import Any, Final, NamedTuple, ParamSpec, Self, TypeVar, overload

from msgspec import UNSET, UnsetType
from sqlalchemy import URL
from sqlalchemy.engine import Connection, Engine

from kern_events.batch import Batch
from kern_events.codec import MAX_BATCH_BYTES, MAX_PAYLOAD_BYTES
from kern_events.consumer import Consumer, ConsumerStatus, ConsumerStep, Handler, SQLHandler
from kern_events.errors import KernError
from kern_events.events import (
    Branches,
    Draft,
    Event,
    Head,
    Receipt,
    SessionInfo,
    message,
    state_changed,
    tool_called,
    tool_failed,
    tool_returned,
)
from kern_events.feed import AsyncSubscription, FeedHolder
from kern_events.frozen import Json, thaw
from kern_events.log import ManyAppends, PendingReceipt, SessionLog, checked_expected, checked_head
from kern_events.numbers import check_whole
from kern_events.store.base import AnswerLost, Expected, Landed, Parked, nothing
from kern_events.store.retry import record
from kern_events.turn import (
    Claims,
    TurnState,
    claim_at,
    completed,
    failed,
    new_call_id,
    opening_draft,
    outcome,
    path_of,
    paused,
    scope_of,
    telling,
)
from kern_events.upcast import NO_TYPES, EventTypes
from kern_events.verify import Progress, Report

P = ParamSpec("P")
T = TypeVar("T")

# More is encoded in a thread, so that the loop is not held up: this much takes it about 0.1 ms.
_INLINE_BYTES: Final = 16 << 10
_NODE_BYTES: Final = 16
_MAX_THREADS: Final = 10_000


class AsyncSessionLog:
    """SessionLog for asyncio: same verbs, same parameters, same errors.

    A cancelled await is decided before it returns: what is still queued is cancelled and never
    runs; what runs is waited for, and is then recorded or not like any other.

    Args:
        url_or_engine: As for SessionLog (a plain Engine, not an AsyncEngine), or a SessionLog to
            share with synchronous code; that one is not closed with this object.
        threads: The size of the pool.
        namespace, schema, pool_size, lock_timeout_s, timeout_s, max_payload_bytes, max_batch_bytes, types: As
            for SessionLog.
    """

    def __init__(
        self,
        url_or_engine: str | URL | Engine | SessionLog,
        *,
        namespace: str = "default",
        schema: str | None = None,
        pool_size: int = 8,
        lock_timeout_s: float = 5.0,
        timeout_s: float = 30.0,
        max_payload_bytes: int = MAX_PAYLOAD_BYTES,
        max_batch_bytes: int = MAX_BATCH_BYTES,
        types: EventTypes = NO_TYPES,
        threads: int = 8,
    ) -> None:
        self._owned = not isinstance(url_or_engine, SessionLog)
        limits = (pool_size, lock_timeout_s, timeout_s, max_payload_bytes, max_batch_bytes)
        options = (namespace, schema, types, *limits)
        defaults = ("default", None, NO_TYPES, 8, 5.0, 30.0, MAX_PAYLOAD_BYTES, MAX_BATCH_BYTES)
        if not self._owned and options != defaults:
            raise TypeError("a SessionLog has its options already: give it alone")
        self.log: Final = (
            url_or_engine
            if isinstance(url_or_engine, SessionLog)
            else SessionLog(
                url_or_engine,
                namespace=namespace,
                schema=schema,
                pool_size=pool_size,
                lock_timeout_s=lock_timeout_s,
                timeout_s=timeout_s,
                max_payload_bytes=max_payload_bytes,
                max_batch_bytes=max_batch_bytes,
                types=types,
            )
        )
        self._threads = check_whole("threads", threads, 1, _MAX_THREADS)
        self._pool: ThreadPoolExecutor | None = None

    @property
    def namespace(self) -> str:
        """The tenant."""
        return self.log.namespace

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.log._store.dialect} namespace={self.namespace!r}>"

    async def close(self) -> None:
        """See SessionLog.close."""
        if self._owned:
            await self._in_thread(self.log.close)
        if self._pool:
            self._pool.shutdown(wait=False)
            self._pool = None

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a whole operation on the pool, with the caller's context variables."""
        context = contextvars.copy_context()
        call = functools.partial(context.run, functools.partial(function, *args, **kwargs))
        return await decided(self._executor().submit(call))

    def _executor(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="kern_events")
            _pools.add(self)
        return self._pool

    @overload
    async def append(
        self,
        session_id: str,
        drafts: Sequence[Draft],
        *,
        expected: Expected = None,
        idempotency_key: str | None = None,
        connection: None = None,
    ) -> Receipt: ...

    @overload
    async def append(
        self,
        session_id: str,
        drafts: Sequence[Draft],
        *,
        expected: Expected = None,
        idempotency_key: str | None = None,
        connection: Connection,
    ) -> PendingReceipt: ...

    async def append(
        self,
        session_id: str,
        drafts: Sequence[Draft],
        *,
        expected: Expected = None,
        idempotency_key: str | None = None,
        connection: Connection | None = None,
    ) -> Receipt | PendingReceipt:
        """See SessionLog.append."""
        if connection is not None:
            return await self._in_thread(
                self.log.append, session_id, drafts,
                expected=expected, idempotency_key=idempotency_key, connection=connection,
            )  # fmt: skip
        expected = checked_expected(expected)
        if is_small(drafts):
            batch = self.log._prepare(session_id, drafts, idempotency_key=idempotency_key)
        else:
            batch = await self._in_thread(
                self.log._prepare, session_id, drafts, idempotency_key=idempotency_key
            )
        return (await self._record(batch, expected)).receipt

    async def _record(self, batch: Batch, expected: Expected = None) -> Landed:
        """Append a prepared batch; for the package's own recorders."""
        queued = self.log._store.submit(batch, expected)
        if queued is None:
            return await self._in_thread(record, self.log._store, batch, expected)
        try:
            answer = await decided(queued)
        except AnswerLost:
            answer = None
        if isinstance(answer, Landed):
            return answer
        # Refused, or the answer was lost: the retry rule goes on from there.
        work = self._in_thread(record, self.log._store, batch, expected, queued.result)
        if answer is not None:
            return await work
        done = await outlasted(work)  # What may be recorded is looked up, whatever is cancelled.
        if done.cancelled_by is not None:
            raise done.cancelled_by
        landed: Landed = done.result()
        return landed

    async def append_many(
        self, appends: ManyAppends, *, connection: Connection | None = None
    ) -> list[Receipt] | list[PendingReceipt]:
        """See SessionLog.append_many."""
        return await self._in_thread(self.log.append_many, appends, connection=connection)

    def turn(
        self,
        session_id: str,
        *,
        buffered: bool = False,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        parent_run_id: str | None = None,
        actor: str | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> AbstractAsyncContextManager[AsyncTurnRecorder]:
        """See SessionLog.turn: `async with log.turn("s1") as turn: await turn.message("user", "Hi")`."""
        started = {"run_id": run_id, "parent_run_id": parent_run_id, "agent_id": agent_id}
        recorder = AsyncTurnRecorder(
            self.log,
            session_id,
            started={key: value for key, value in started.items() if value is not None},
            opening=opening_draft(user_id=user_id, agent_id=agent_id),
            buffered=buffered,
            actor=actor,
            meta=meta,
        )
        recorder._outer = self
        return recorder

    def resume(
        self,
        session_id: str,
        turn: int,
        *,
        expected: Head,
        buffered: bool = False,
        actor: str | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> AbstractAsyncContextManager[AsyncTurnRecorder]:
        """See SessionLog.resume."""
        claims = claim_at(checked_head(expected), check_whole("turn", turn))
        return self._resumed(session_id, claims, buffered=buffered, actor=actor, meta=meta)

    def _resumed(
        self,
        session_id: str,
        claims: Claims,
        *,
        buffered: bool,
        actor: str | None,
        meta: Mapping[str, Any] | None,
    ) -> AsyncTurnRecorder:
        recorder = AsyncTurnRecorder(
            self.log,
            session_id,
            started={},
            opening=opening_draft(),
            buffered=buffered,
            actor=actor,
            meta=meta,
            claims=claims,
        )
        recorder._outer = self
        return recorder

    async def read(
        self, session_id: str, *, after: int = 0, until: int | None = None, limit: int | None = None
    ) -> AsyncIterator[Event]:
        """See SessionLog.read; SessionNotFound is raised when the first event is asked for."""
        pages = await self._in_thread(
            self.log._read_pages, session_id, after=after, until=until, limit=limit
        )
        async for event in self._pages(pages):
            yield event

    async def read_all(self, *, after: int = 0, limit: int | None = None) -> AsyncIterator[Event]:
        """See SessionLog.read_all."""
        pages = await self._in_thread(self.log._read_all_pages, after=after, limit=limit)
        async for event in self._pages(pages):
            yield event

    def subscribe(self, *, after: int = 0) -> AsyncSubscription:
        """See SessionLog.subscribe: `async for event in log.subscribe(): ...`; it waits without a thread."""
        return AsyncSubscription(self, check_whole("after", after))

    def consumer(
        self,
        name: str,
        handle: Handler | SQLHandler,
        *,
        after: int | None = 0,
        transactional: bool = False,
        batch_size: int = 500,
        attempts: int = 5,
    ) -> AsyncConsumer:
        """See SessionLog.consumer; `handle` may be a coroutine function where it is not transactional."""
        return AsyncConsumer(
            self,
            name,
            handle,
            after=after,
            transactional=transactional,
            batch_size=batch_size,
            attempts=attempts,
        )

    async def consumers(self) -> list[ConsumerStatus]:
        """See SessionLog.consumers."""
        return await self._in_thread(self.log.consumers)

    async def feed_held_by(self) -> list[FeedHolder]:
        """See SessionLog.feed_held_by."""
        return await self._in_thread(self.log.feed_held_by)

    async def export(self, session_id: str) -> AsyncIterator[bytes]:
        """See SessionLog.export; SessionNotFound is raised when the first line is asked for."""
        pages = await self._in_thread(self.log._export_pages, session_id)
        async for line in self._pages(pages):
            yield line

    async def _pages(self, pages: Iterator[Iterator[T]]) -> AsyncIterator[T]:
        while (page := await self._in_thread(_next_page, pages)) is not None:
            for item in page:
                yield item
            del page  # Two pages at once would be twice the memory.

    async def head(self, session_id: str) -> Head:
        """See SessionLog.head."""
        return await self._in_thread(self.log.head, session_id)

    async def sessions(
        self, *, user_id: str | None = None, after: str | None = None, limit: int = 100
    ) -> list[SessionInfo]:
        """See SessionLog.sessions."""
        return await self._in_thread(self.log.sessions, user_id=user_id, after=after, limit=limit)

    async def fork(
        self,
        session_id: str,
        into: str,
        *,
        turn: int | None = None,
        version: int | None = None,
        at: datetime | None = None,
        actor: str | None = None,
    ) -> Receipt:
        """See SessionLog.fork."""
        return await self._in_thread(
            self.log.fork, session_id, into, turn=turn, version=version, at=at, actor=actor
        )

    async def branches(self, session_id: str) -> Branches:
        """See SessionLog.branches."""
        return await self._in_thread(self.log.branches, session_id)

    async def describe(
        self,
        session_id: str,
        *,
        name: str | UnsetType | None = UNSET,
        user_id: str | UnsetType | None = UNSET,
        metadata: Mapping[str, Any] | UnsetType | None = UNSET,
        expected: Expected = None,
        actor: str | None = None,
    ) -> Receipt:
        """See SessionLog.describe."""
        return await self._in_thread(
            self.log.describe,
            session_id,
            name=name,
            user_id=user_id,
            metadata=metadata,
            expected=expected,
            actor=actor,
        )

    async def delete(
        self, session_id: str, *, actor: str | None = None, progress: Progress | None = None
    ) -> Receipt:
        """See SessionLog.delete; `progress` is called in another thread."""
        return await self._in_thread(self.log.delete, session_id, actor=actor, progress=progress)

    async def verify(self, session_id: str | None = None, *, progress: Progress | None = None) -> Report:
        """See SessionLog.verify."""
        return await self._in_thread(self.log.verify, session_id, progress=progress)

    async def migrate(self) -> tuple[int, int]:
        """See SessionLog.migrate."""
        return await self._in_thread(self.log.migrate)


def _next_page(pages: Iterator[Iterator[T]]) -> list[T] | None:
    page = next(pages, None)
    return None if page is None else list(page)


async def _awaited(awaitable: Awaitable[Any]) -> None:
    await awaitable


class AsyncConsumer:
    """Consumer, awaited; see SessionLog.consumer. It works in a thread of its own, coroutines on the loop."""

    def __init__(
        self,
        outer: AsyncSessionLog,
        name: str,
        handle: Handler | SQLHandler,
        *,
        after: int | None,
        transactional: bool,
        batch_size: int,
        attempts: int,
    ) -> None:
        self._outer = outer
        self._loop: asyncio.AbstractEventLoop | None = None
        if transactional and inspect.iscoroutinefunction(handle):
            raise TypeError("a transactional handler is a plain function: its connection is no async one")
        chosen: Any = handle if transactional else functools.partial(self._on_loop, handle)
        self._consumer = Consumer(
            outer.log,
            name,
            chosen,
            after=after,
            transactional=transactional,
            batch_size=batch_size,
            attempts=attempts,
        )
        self.name: Final = name

    def _on_loop(self, handle: Any, events: Sequence[Event]) -> None:
        """Hand events over; what there is to await, whatever kind of function gave it, the loop awaits."""
        result = handle(events)
        if inspect.isawaitable(result):
            assert self._loop is not None
            asyncio.run_coroutine_threadsafe(_awaited(result), self._loop).result()

    async def run(self, *, until_idle: bool = False) -> int:
        """See Consumer.run; if cancelled, it ends with the batch that it is at."""
        work = functools.partial(self._consumer.run, until_idle=until_idle)
        return await self._in_own_thread(work, self._consumer.stop)

    async def step(self) -> ConsumerStep:
        """See Consumer.step."""
        return await self._in_own_thread(self._consumer.step)

    async def _in_own_thread(self, function: Callable[[], T], stop: Callable[[], None] = nothing) -> T:
        self._loop = asyncio.get_running_loop()
        context = contextvars.copy_context()
        pool = ThreadPoolExecutor(1, thread_name_prefix="kern_consumer")
        try:
            return await decided(pool.submit(context.run, function), stop)
        finally:
            pool.shutdown(wait=False)

    def stop(self) -> None:
        """See Consumer.stop."""
        self._consumer.stop()

    async def position(self) -> int:
        """See Consumer.position."""
        return await self._outer._in_thread(self._consumer.position)

    async def parked(self) -> list[Parked]:
        """See Consumer.parked."""
        return await self._outer._in_thread(self._consumer.parked)

    async def retry(self, session_id: str) -> bool:
        """See Consumer.retry."""
        return await self._outer._in_thread(self._consumer.retry, session_id)

    async def skip(self, session_id: str, version: int) -> bool:
        """See Consumer.skip."""
        return await self._outer._in_thread(self._consumer.skip, session_id, version)


class AsyncTurnRecorder(TurnState):
    """TurnRecorder, awaited; see SessionLog.turn.

    Calls that are made at the same time, as by asyncio.gather, are recorded in the order in which they
    begin. A call that is cancelled is recorded whole or not at all; one that is made while its task is
    being cancelled, as in a `finally`, is recorded. The end of the turn always is: a cancellation that
    arrives meanwhile is raised afterwards.
    """

    _outer: AsyncSessionLog
    _last: Place | None = None

    async def __aenter__(self) -> Self:
        self._enter()
        try:
            await self._begin()
        except KernError:
            raise
        except BaseException:
            with telling():
                (await outlasted(self._outer._in_thread(self._abort))).result()
            raise
        return self

    async def _begin(self) -> None:
        if self._claims:
            await self._outer._in_thread(self._resume, self._claims)
            return
        if self._buffer is not None:
            await self._outer._in_thread(self._note_branch)
        if batch := self._started_batch():
            self._landed(await self._outer._record(batch))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.closed or self._is_unresolved(error):
            return
        with telling() if error else nullcontext():
            await self._close(lambda: outcome(error), error=error)

    async def record(self, *drafts: Draft) -> None:
        """See TurnRecorder."""
        await self._record_made(lambda: drafts, *drafts)

    async def message(
        self,
        role: str,
        content: str | list[dict[str, Any]] | None = None,
        *,
        name: str | None = None,
        tool_calls: Sequence[dict[str, Any]] | None = None,
        id: str | None = None,
    ) -> str:
        """See TurnRecorder."""
        draft = message(role, content, name=name, tool_calls=tool_calls, id=id)
        await self.record(draft)
        return id or draft.event_id.hex()

    async def tool_call(
        self, name: str, arguments: Mapping[str, Any] | str | None = None, *, call_id: str | None = None
    ) -> str:
        """See TurnRecorder."""
        id = call_id or new_call_id()
        await self._record_made(lambda: [tool_called(id, name, thaw(arguments))], arguments)
        return id

    async def tool_result(self, call_id: str, result: Json, *, duration_s: float | None = None) -> None:
        """See TurnRecorder."""
        await self.record(tool_returned(call_id, result, duration_s=duration_s))

    async def tool_error(self, call_id: str, error: str, *, duration_s: float | None = None) -> None:
        """See TurnRecorder."""
        await self.record(tool_failed(call_id, error, duration_s=duration_s))

    async def set_state(self, path: str | Sequence[str], value: Json, *, agent: bool = False) -> None:
        """See TurnRecorder."""
        await self._record_made(
            lambda: [state_changed([["set", path_of(path), thaw(value)]], scope=scope_of(agent))], value
        )

    async def unset_state(self, path: str | Sequence[str], *, agent: bool = False) -> None:
        """See TurnRecorder."""
        await self.record(state_changed([["unset", path_of(path)]], scope=scope_of(agent)))

    async def append_state(
        self, path: str | Sequence[str], items: Sequence[Json], *, agent: bool = False
    ) -> None:
        """See TurnRecorder."""
        await self._record_made(
            lambda: [state_changed([["append", path_of(path), thaw(items)]], scope=scope_of(agent))], items
        )

    async def complete(self, *, usage: Mapping[str, Any] | None = None) -> None:
        """See TurnRecorder."""
        await self._close(lambda: completed(usage), usage)

    async def fail(self, error: str) -> None:
        """See TurnRecorder."""
        await self._close(lambda: failed(error))

    async def pause(self, requirements: Json = None) -> None:
        """See TurnRecorder."""
        await self._close(lambda: paused(requirements), requirements)

    async def _record_made(self, make: Callable[[], Sequence[Draft]], *values: Any) -> None:
        """Record drafts that are made of these values, in the order of the calls."""
        work = self._place().then(lambda: self._write(make, values))
        if not is_being_cancelled():
            await work
            return
        done = await outlasted(work)
        if done.cancelled_by is not None:
            cancel_again(done.cancelled_by)
        done.result()

    async def _write(self, make: Callable[[], Sequence[Draft]], values: Sequence[Any]) -> None:
        if batch := await self._prepared_off_loop(values, lambda: self._batch(make())):
            self._landed(await self._outer._record(batch))

    async def _close(
        self, make: Callable[[], Draft], *values: Any, error: BaseException | None = None
    ) -> None:
        """Record the end of the turn, made of these values; `error` is what its block is being left with."""
        self._check_open()
        ended = await outlasted(self._place().then(lambda: self._write_end(make, values)))
        if ended.cancelled_by is None or isinstance(error, asyncio.CancelledError):
            ended.result()
            return
        with telling():
            ended.result()
        raise ended.cancelled_by

    async def _write_end(self, make: Callable[[], Draft], values: Sequence[Any]) -> None:
        waiting = [*values, *(self._buffer or ())]
        batch = await self._prepared_off_loop(waiting, lambda: self._flushed(make()))
        self._ended(await self._outer._record(batch))

    async def _prepared_off_loop(self, values: Sequence[Any], prepare: Callable[[], T]) -> T:
        return prepare() if is_small(values) else await self._outer._in_thread(prepare)

    def _place(self) -> Place:
        self._last = Place(self._last)
        return self._last


class Place:
    """A place in a row of calls: each begins when the one before it has ended, or has given up."""

    def __init__(self, before: Place | None) -> None:
        self._passed = asyncio.get_running_loop().create_future()
        self._before = before._passed if before else None

    async def then(self, work: Callable[[], Awaitable[T]]) -> T:
        """What the work gives, when it is its turn."""
        try:
            if self._before and not self._before.done():
                await waited(self._before)
            return await work()
        finally:
            self._pass()

    def _pass(self, *_: Any) -> None:
        if self._before and not self._before.done():
            self._before.add_done_callback(self._pass)  # It gave up, and lets nobody past those before it.
        else:
            self._passed.set_result(None)


class Outlasted(NamedTuple):
    """What work came to, and the cancellation that arrived meanwhile, if one did."""

    value: Any
    error: Exception | None
    cancelled_by: asyncio.CancelledError | None

    def result(self) -> Any:
        """What the work gave, or its error."""
        if self.error is not None:
            raise self.error
        return self.value


_held: contextvars.ContextVar[list[asyncio.CancelledError] | None] = contextvars.ContextVar(
    "kern_events_held", default=None
)
"""Where cancellations are put that arrive while work is outlasted."""


async def outlasted(work: Awaitable[Any]) -> Outlasted:
    """Await work of ours to its end, whatever is cancelled meanwhile.

    Not in a task of its own: a loop that is about to end cancels all of them.
    """
    held: list[asyncio.CancelledError] = []
    token = _held.set(held)
    value, error = None, None
    try:
        value = await work
    except Exception as failure:
        error = failure
    finally:
        _held.reset(token)
    return Outlasted(value, error, held[-1] if held else None)


def cancel_again(cancellation: asyncio.CancelledError) -> None:
    """Have a cancellation that was held back arrive at the next await, counted as the one that it is."""
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()
    task.cancel(*cancellation.args)


def is_being_cancelled() -> bool:
    """Whether the running task is being cancelled, and this is its clean-up."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def is_small(values: Any) -> bool:
    """Whether encoding these values would not hold up the event loop; looks at no more than it has to."""
    left = _INLINE_BYTES
    waiting = list(values) if isinstance(values, Iterable) else []
    while waiting:
        value = waiting.pop()
        left -= _NODE_BYTES
        if isinstance(value, (str, bytes)):
            left -= len(value)
        elif isinstance(value, Mapping):
            left -= _NODE_BYTES * len(value)
            waiting += value.values() if left > 0 else ()
        elif isinstance(value, (list, tuple)):
            left -= _NODE_BYTES * len(value)
            waiting += value if left > 0 else ()
        elif isinstance(value, Draft):
            waiting += (value.payload, value.meta, value.native)
        if left < 0:
            return False
    return True


async def decided(future: Future[T], ask_to_end: Callable[[], None] = nothing) -> T:
    """Await a future; if cancelled, cancel it where it has not begun and else wait until it ends."""
    waiter = asyncio.wrap_future(future)
    try:
        await waited(waiter)
    except asyncio.CancelledError:
        ask_to_end()
        if not future.cancel():
            await _wait_out(waiter, [])
        raise
    return waiter.result()


async def waited(future: asyncio.Future[Any]) -> None:
    """Wait until a future is done; a cancellation ends the waiting, if no work is being outlasted."""
    if (held := _held.get()) is not None:
        await _wait_out(future, held)
        return
    try:
        await asyncio.shield(future)
    except asyncio.CancelledError:
        raise
    except Exception:
        return  # It is done, and says so itself.


async def _wait_out(future: asyncio.Future[Any], held: list[asyncio.CancelledError]) -> None:
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as cancellation:  # Web servers cancel again at every await.
            held.append(cancellation)
    if not future.cancelled():
        future.exception()  # Whoever was cancelled does not fetch it.


# A forked child has no threads: it makes a pool of its own on first use.
_pools: weakref.WeakSet[AsyncSessionLog] = weakref.WeakSet()


def _forget_pools() -> None:
    for log in _pools:
        log._pool = None


os.register_at_fork(after_in_child=_forget_pools)
