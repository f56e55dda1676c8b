"""Where the consumers of the feed stand, and what they have set aside; SQLAlchemy does the work here.

A consumer is worked on by one process at a time. A sink in the log's own database does so in a transaction
that holds the consumer's row, so position and effect are committed together, and a process that dies gives
both back. Other sinks take a lease that ends by itself; whoever lost one cannot move the position.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final, Protocol, TypeVar

from sqlalchemy import text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from kern_events.clock import now_us
from kern_events.errors import StoreBusy, StoreError, StoreFull, StoreUnavailable
from kern_events.store import sql
from kern_events.store.base import ConsumerRow, Due, Held, Parked
from kern_events.store.forks import survive_forks

T = TypeVar("T")

RETRY_MOST_US: Final = 60_000_000
"""The longest pause before a session that was set aside is tried again."""


class Fenced(Exception):
    """The lease is somebody else's by now; nothing was changed."""


class Sinks(Protocol):
    """What differs between the databases."""

    sql: sql.ConsumerSQL

    def room(self) -> int | None:
        """How many connections its pool gives at once, beside what is always in use; None is any number."""

    def engine(self) -> Engine:
        """The engine, with the tables in place."""

    def begin(self, connection: Connection) -> None:
        """Begin a durable transaction that writes."""

    def handing(self, connection: Connection) -> AbstractContextManager[Any]:
        """A savepoint in which a handler does with the connection what it likes."""

    def rows(self, statement: str, values: dict[str, Any]) -> list[Any]:
        """The rows of a read; none where there is no log yet."""

    def is_over(self) -> bool:
        """Whether the pool of connections was disposed of: what comes back late is to be closed."""

    def hold(self, connection: Connection, key: dict[str, Any], lease_us: int) -> int | None:
        """The position of a consumer that is ours until the end of the transaction."""

    def is_open(self, connection: Connection) -> bool:
        """Whether the transaction is still there, after an error in it."""

    def translated(self, error: BaseException | None) -> StoreError:
        """What the driver's error is to the log."""


class SQLConsumers:
    """See Consumers."""

    def __init__(self, sinks: Sinks) -> None:
        self._sinks = sinks

    def check_room(self, transactional: bool) -> None:
        """See Consumers."""
        needed, room = (2 if transactional else 1), self._sinks.room()
        if room is not None and room < needed:
            raise ValueError(
                f"the engine's pool is too small by {needed - room}: a consumer uses {needed} connections at "
                "once. Set its pool_size or max_overflow"
            )

    def begin(self, namespace: str, name: str, after: int) -> None:
        """See Consumers."""
        self._changes(self._sinks.sql.begin, {"namespace": namespace, "name": name, "after": after})

    @contextmanager
    def in_transaction(self, namespace: str, name: str, owner: str, lease_us: int) -> Iterator[Held | None]:
        """See Consumers."""
        key = {"namespace": namespace, "name": name, "owner": owner}
        with self._beginning(lambda it: self._sinks.hold(it, key, lease_us)) as (connection, position):
            yield None if position is None else _InTransaction(self._sinks, key, connection, position)

    def leased(self, namespace: str, name: str, owner: str, lease_us: int) -> Held | None:
        """See Consumers."""
        key = {"namespace": namespace, "name": name, "owner": owner}
        with self._transaction(self._sinks.sql.lease, {**key, "lease_us": lease_us}) as (_, found):
            row = found.fetchone()
        if row is None:
            return None
        leased = {**key, "epoch": row[1], "lease_us": lease_us}
        return _Leased(self._sinks.sql, leased, self._transaction, row[0])

    def release(self, namespace: str, name: str, owner: str) -> None:
        """See Consumers."""
        key = {"namespace": namespace, "name": name, "owner": owner}
        self._changes(self._sinks.sql.release, key)

    def all(self, namespace: str) -> Sequence[ConsumerRow]:
        """See Consumers."""
        rows = self._sinks.rows(self._sinks.sql.all, {"namespace": namespace})
        return [ConsumerRow(*row) for row in rows]

    def parked(self, namespace: str, name: str) -> Sequence[Parked]:
        """See Consumers."""
        rows = self._sinks.rows(self._sinks.sql.parked, {"namespace": namespace, "name": name})
        return [Parked(*row) for row in rows]

    def retry(self, namespace: str, name: str, session_id: str) -> bool:
        """See Consumers."""
        key = {"namespace": namespace, "name": name, "session_id": session_id}
        return self._has_parked(namespace, name) and self._changes(self._sinks.sql.retry, key)

    def skip(self, namespace: str, name: str, session_id: str, version: int) -> bool:
        """See Consumers."""
        key = {"namespace": namespace, "name": name, "session_id": session_id, "version": version}
        return self._has_parked(namespace, name) and self._changes(self._sinks.sql.skip, key)

    def _has_parked(self, namespace: str, name: str) -> bool:
        """Whether there is anything to change: else nothing is to be written, and no tables to be made."""
        return bool(self.parked(namespace, name))

    def _changes(self, statement: str, values: dict[str, Any]) -> bool:
        with self._transaction(statement, values) as (_, found):
            return bool(found.rowcount)

    def _transaction(
        self, statement: str, values: dict[str, Any], *, writes: bool = True
    ) -> AbstractContextManager[tuple[Connection, Any]]:
        """A transaction that begins with a statement, and what that found."""
        return self._beginning(lambda connection: connection.execute(text(statement), values), writes=writes)

    @contextmanager
    def _beginning(
        self, first: Callable[[Connection], T], *, writes: bool = True
    ) -> Iterator[tuple[Connection, T]]:
        """A transaction that begins with some work, and what that gave."""
        try:
            connection, answer = self._begun(first, writes)
            try:
                yield connection, answer
                connection.commit()
            finally:
                self._end(connection)
        except DBAPIError as error:
            raise self._sinks.translated(error.orig) from error
        except PoolTimeout as error:
            raise StoreBusy(f"the engine has no connection to spare: {error}") from error

    def _begun(self, first: Callable[[Connection], T], writes: bool) -> tuple[Connection, T]:
        """Begin; once more on a new connection, if one that had been idle turns out to be dead."""
        engine = self._sinks.engine()
        for last in (False, True):
            connection = engine.connect()
            try:
                if writes:
                    self._sinks.begin(connection)
                return connection, first(connection)
            except DBAPIError as error:
                self._end(connection)
                if last or not error.connection_invalidated:
                    raise
            except BaseException:
                self._end(connection)
                raise
        raise AssertionError("unreachable")  # pragma: no cover

    def _end(self, connection: Connection) -> None:
        if self._sinks.is_over():
            connection.invalidate()
        connection.close()


class _Parking:
    """What a transaction can do about sessions that are set aside."""

    def __init__(self, statements: sql.ConsumerSQL, key: dict[str, Any]) -> None:
        self._sql = statements
        self._key = {**key, "retry_most_us": RETRY_MOST_US}

    def park_in(
        self, connection: Connection, session_id: str, version: int, attempts: int,
        delay_us: int | None, error: str, was: Due | None,
    ) -> None:  # fmt: skip
        values = {
            **self._key, "session_id": session_id, "version": version, "attempts": attempts,
            "again": delay_us is not None, "delay_us": delay_us or 0, "error": error,
        }  # fmt: skip
        if was is None:
            connection.execute(text(self._sql.park), values)
        else:
            connection.execute(text(self._sql.park_again), {**values, **_as_it_was(was)})

    def unpark_in(self, connection: Connection, session_id: str, was: Due) -> None:
        values = {**self._key, "session_id": session_id, **_as_it_was(was)}
        connection.execute(text(self._sql.unpark), values)


class _InTransaction(_Parking):
    """See Held: everything in the one transaction."""

    def __init__(self, sinks: Sinks, key: dict[str, Any], connection: Connection, position: int) -> None:
        super().__init__(sinks.sql, key)
        self._sinks = sinks
        self.connection: Connection | None = connection
        self._within: Final = connection
        self.position = position

    @contextmanager
    def attempt(self) -> Iterator[None]:
        try:
            with self._sinks.handing(self._within):
                yield
        except Exception as error:
            # Undoing it may fail in turn, where the database has undone all by itself.
            for each in (error, error.__context__):
                if isinstance(each, DBAPIError) and isinstance(
                    full := self._sinks.translated(each.orig), StoreFull
                ):
                    raise full from each.orig
            if not (self._within.invalidated or self._sinks.is_open(self._within)):
                raise StoreUnavailable("the database has ended the transaction of a consumer") from error
            raise

    def move(self, position: int) -> None:
        self._within.execute(text(self._sql.move), {**self._key, "position": position})
        self.position = position

    def renew(self) -> None:
        """Not needed: the row is held."""

    def parked_ids(self) -> set[str]:
        return {row[0] for row in self._within.execute(text(self._sql.parked_ids), self._key)}

    def due(self) -> Due | None:
        row = self._within.execute(text(self._sql.due), self._key).fetchone()
        return None if row is None else Due(*row)

    def park(
        self, session_id: str, version: int, attempts: int, delay_us: int | None, error: str,
        was: Due | None = None,
    ) -> None:  # fmt: skip
        self.park_in(self._within, session_id, version, attempts, delay_us, error, was)

    def unpark(self, session_id: str, was: Due) -> None:
        self.unpark_in(self._within, session_id, was)


class _Leased(_Parking):
    """See Held: each method a transaction of its own, in which the lease has to be ours."""

    def __init__(
        self,
        statements: sql.ConsumerSQL,
        key: dict[str, Any],
        transaction: Callable[..., AbstractContextManager[tuple[Connection, Any]]],
        position: int,
    ) -> None:
        super().__init__(statements, key)
        self.connection: Connection | None = None
        self._transaction = transaction
        self.position = position

    def attempt(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def renew(self) -> None:
        self._is_ours(self._sql.renew, self._key)

    def move(self, position: int) -> None:
        self._is_ours(self._sql.move_leased, {**self._key, "position": position})
        self.position = position

    def _is_ours(self, statement: str, values: dict[str, Any]) -> None:
        with self._transaction(statement, values) as (_, found):
            if found.rowcount != 1:
                raise Fenced

    def parked_ids(self) -> set[str]:
        with self._transaction(self._sql.parked_ids, self._key, writes=False) as (_, found):
            return {row[0] for row in found}

    def due(self) -> Due | None:
        with self._transaction(self._sql.due, self._key, writes=False) as (_, found):
            row = found.fetchone()
        return None if row is None else Due(*row)

    def park(
        self, session_id: str, version: int, attempts: int, delay_us: int | None, error: str,
        was: Due | None = None,
    ) -> None:  # fmt: skip
        with self._held() as connection:
            self.park_in(connection, session_id, version, attempts, delay_us, error, was)

    def unpark(self, session_id: str, was: Due) -> None:
        with self._held() as connection:
            self.unpark_in(connection, session_id, was)

    @contextmanager
    def _held(self) -> Iterator[Connection]:
        with self._transaction(self._sql.held, self._key) as (connection, found):
            if found.fetchone() is None:
                raise Fenced
            yield connection


def _as_it_was(was: Due) -> dict[str, Any]:
    return {"was_version": was.version, "was_attempts": was.attempts, "was_retry_at": was.retry_us}


class MemoryConsumers:
    """See Consumers: in one process, where a handler that raises has no transaction to undo."""

    def __init__(self) -> None:
        self._positions: dict[tuple[str, str], ConsumerRow] = {}
        self._parked: dict[tuple[str, str], dict[str, Parked]] = {}
        self._owned: dict[tuple[str, str], tuple[str, int]] = {}
        self._lock = threading.RLock()
        survive_forks(self)

    def forget(self) -> None:
        """In a forked child: another thread of the parent may have held the lock."""
        self._lock = threading.RLock()

    def check_room(self, transactional: bool) -> None:
        """See Consumers."""

    def begin(self, namespace: str, name: str, after: int) -> None:
        """See Consumers."""
        with self._lock:
            self._positions.setdefault((namespace, name), ConsumerRow(name, after, None, None, now_us()))

    @contextmanager
    def in_transaction(self, namespace: str, name: str, owner: str, lease_us: int) -> Iterator[Held | None]:
        """See Consumers."""
        yield self.leased(namespace, name, owner, lease_us)

    def leased(self, namespace: str, name: str, owner: str, lease_us: int) -> Held | None:
        """See Consumers."""
        key = (namespace, name)
        with self._lock:
            now = now_us()
            whose, until = self._owned.get(key, (owner, 0))
            # One that ends later than a lease lasts is from a clock that was ahead.
            if whose != owner and now < until <= now + lease_us:
                return None
            self._owned[key] = (owner, now + lease_us)
            row = self._positions[key]
            return _InMemory(self, key, owner, lease_us, row.position)

    def release(self, namespace: str, name: str, owner: str) -> None:
        """See Consumers."""
        with self._lock:
            if self._owned.get((namespace, name), ("", 0))[0] == owner:
                del self._owned[namespace, name]

    def all(self, namespace: str) -> Sequence[ConsumerRow]:
        """See Consumers."""
        with self._lock:
            return sorted(row for key, row in self._positions.items() if key[0] == namespace)

    def parked(self, namespace: str, name: str) -> Sequence[Parked]:
        """See Consumers."""
        with self._lock:
            found = self._parked.get((namespace, name), {}).values()
            return sorted(found, key=lambda each: (each.parked_us, each.session_id))

    def retry(self, namespace: str, name: str, session_id: str) -> bool:
        """See Consumers."""
        return self._again(namespace, name, session_id, None)

    def skip(self, namespace: str, name: str, session_id: str, version: int) -> bool:
        """See Consumers."""
        return self._again(namespace, name, session_id, version)

    def _again(self, namespace: str, name: str, session_id: str, version: int | None) -> bool:
        with self._lock:
            parked = self._parked.get((namespace, name), {})
            found = parked.get(session_id)
            if found is None or (version is not None and version != found.version):
                return False
            parked[session_id] = found._replace(
                version=found.version + (version is not None), attempts=0, retry_us=now_us()
            )
            return True


def _is_as_it_was(found: Parked | None, was: Due) -> bool:
    return found is not None and (found.version, found.attempts, found.retry_us) == tuple(was[1:])


class _InMemory:
    """See Held."""

    connection: Connection | None = None

    def __init__(
        self, whole: MemoryConsumers, key: tuple[str, str], owner: str, lease_us: int, position: int
    ) -> None:
        self._whole = whole
        self._key = key
        self._owner = owner
        self._lease_us = lease_us
        self.position = position

    def attempt(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def renew(self) -> None:
        with self._mine():
            self._whole._owned[self._key] = (self._owner, now_us() + self._lease_us)

    def move(self, position: int) -> None:
        with self._mine():
            self._whole._positions[self._key] = ConsumerRow(
                self._key[1], position, self._owner, None, now_us()
            )
        self.position = position

    def parked_ids(self) -> set[str]:
        with self._whole._lock:
            return set(self._whole._parked.get(self._key, ()))

    def due(self) -> Due | None:
        now = now_us()
        with self._whole._lock:
            found = self._whole._parked.get(self._key, {}).values()
            ready = [
                each
                for each in found
                if each.retry_us is not None and not now < each.retry_us <= now + RETRY_MOST_US
            ]
        first = min(ready, key=lambda each: each.retry_us or 0, default=None)
        return (
            None
            if first is None
            else Due(first.session_id, first.version, first.attempts, first.retry_us or 0)
        )

    def park(
        self, session_id: str, version: int, attempts: int, delay_us: int | None, error: str,
        was: Due | None = None,
    ) -> None:  # fmt: skip
        with self._mine():
            parked = self._whole._parked.setdefault(self._key, {})
            if was is not None and not _is_as_it_was(parked.get(session_id), was):
                return
            since = parked[session_id].parked_us if session_id in parked else now_us()
            again = None if delay_us is None else now_us() + delay_us
            parked[session_id] = Parked(session_id, version, attempts, again, since, error)

    def unpark(self, session_id: str, was: Due) -> None:
        with self._mine():
            parked = self._whole._parked.get(self._key, {})
            if _is_as_it_was(parked.get(session_id), was):
                del parked[session_id]

    @contextmanager
    def _mine(self) -> Iterator[None]:
        with self._whole._lock:
            if self._whole._owned.get(self._key, ("", 0))[0] != self._owner:
                raise Fenced
            yield
