"""A Postgres database as this process is connected to it: sessions, schema, and what errors mean."""

from __future__ import annotations

import functools
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, TypeVar

import psycopg
from sqlalchemy import URL, create_engine, text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import PoolProxiedConnection

from kern_events.clock import now_us
from kern_events.errors import (
    FeedUnavailable,
    KernError,
    SchemaOutdated,
    StoreBusy,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreMissing,
    StoreUnavailable,
)
from kern_events.events import Head
from kern_events.store import exchange, migrate, pooler, postgres_schema, sql
from kern_events.store.base import AnswerLost, Difference, logger
from kern_events.store.connections import Connections, Lease, room_of
from kern_events.store.forks import leave_to_parent, survive_forks
from kern_events.store.pool import KeptPool
from kern_events.store.positions import Positions
from kern_events.store.wire import Cursor, binary_cursor, made_binary

T = TypeVar("T")

_RETRIES: Final = 5
_NAMED: Final = re.compile(r":([a-z]+)")  # a value in a statement for SQLAlchemy
_NOT_COMMITTED: Final = ("40001", "40P01")  # serialization failure, deadlock: safe to repeat
_BROKEN: Final = ("57P", "08")  # the server or the line went away
_FULL: Final = ("53100", "53400")  # the disk; a limit, as of an extension for quotas or of temporary files
# For these reasons the server gives no state of its own to a file that cannot grow.
_NO_ROOM: Final = ("Disk quota exceeded", "File too large", "No space left on device")
_LACKING: Final = ("42P01", "42703", "3F000")  # no such table, column or schema


class Session(NamedTuple):
    """A driver connection and the cursor that is used on it again and again."""

    connection: psycopg.Connection[Any]
    cursor: Cursor


class PostgresServer:
    """The connections to one database, and the ways to use them: read, send, transact, look in peace."""

    def __init__(
        self,
        url: URL,
        engine: Engine | None,
        *,
        schema: str | None,
        pool_size: int,
        lock_timeout_s: float,
        timeout_s: float,
    ) -> None:
        self.prefix: Final = f'"{schema}".' if schema else ""
        self._latest: Final = migrate.latest("postgres")
        self.sql: Final = sql.PostgresSQL(self.prefix, self._latest)
        self.positions: Final = Positions(self.sql)
        self.row_security = False  # as it was when the tables were looked at
        self._schema = schema
        self._own = engine is None
        lock_timeout_ms = max(1, int(lock_timeout_s * 1000))
        self._engine = engine or _create_engine(url, pool_size, lock_timeout_ms, timeout_s)
        pooled = self._own and pooler.in_transaction_mode(url)
        self._connections = Connections(
            self._engine,
            functools.partial(_prepare, lock_timeout_ms=lock_timeout_ms if pooled else None),
            _restore,
            keep=pool_size if self._own else 0,
            limit=pool_size if self._own else None,
            abandon=_sever,
        )
        leave_to_parent(self._engine)
        self._ready = self._closed = False
        self._readable = False  # Tables were seen, of whatever schema number this release can read.
        self._setup = threading.Lock()
        survive_forks(self)

    def forget(self) -> None:
        """In a forked child: connect anew on the next use."""
        self._setup = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether there are connections."""
        return self._connections.is_open

    def close(self) -> None:
        """Give every connection back."""
        self._closed = True
        self._connections.close()
        if self._own:
            self._engine.dispose()

    def send(self, statement: str, values: tuple[Any, ...], base: Head) -> list[Any]:
        """One autocommit statement that appends; a broken connection leaves its outcome open."""
        for attempt in range(_RETRIES):
            lease = self._take()
            try:
                self.positions.check(*lease.driver)
                rows: list[Any] = lease.driver.cursor.execute(statement, values).fetchall()
            except psycopg.Error as error:
                if _broken(lease, error):
                    self._connections.drop_all(lease)
                    raise AnswerLost(base) from translated(error)
                self._connections.give(lease)
                if error.sqlstate not in _NOT_COMMITTED or attempt == _RETRIES - 1:
                    raise translated(error) from error
            except BaseException:
                self._connections.drop(lease)  # Interrupted: the answer is still on its way.
                raise
            else:
                self._connections.give(lease)
                return rows
            _back_off(attempt)
        raise AssertionError("unreachable")  # pragma: no cover

    def in_transaction(self, work: Callable[[Session, list[Head]], T]) -> T:
        """Do a job in a transaction of its own; `bases` tells what it linked to, if COMMIT is lost."""
        for attempt in range(_RETRIES):
            lease = self._take()
            bases: list[Head] = []
            try:
                pooler.begin(lease.driver.cursor, sql.POSTGRES_BEGIN)
                result = work(lease.driver, bases)
                lease.driver.cursor.execute(sql.COMMIT if result is not None else sql.ROLLBACK)
            except psycopg.Error as error:
                if _broken(lease, error):
                    self._connections.drop_all(lease)
                    if bases or attempt == _RETRIES - 1:
                        raise _lost(bases, error) from translated(error)
                    continue  # An idle connection was dead; nothing had been sent.
                self._connections.drop(lease)
                if error.sqlstate not in _NOT_COMMITTED or attempt == _RETRIES - 1:
                    raise translated(error) from error
            except BaseException:
                self._connections.drop(lease)
                raise
            else:
                self._connections.give(lease)
                return result
            _back_off(attempt)
        raise AssertionError("unreachable")  # pragma: no cover

    def query(
        self, statement: str, values: tuple[Any, ...] | dict[str, Any], absent: Sequence[Any] = ()
    ) -> list[Any]:
        """The rows of one read; where there is no log, those of `absent`."""

        def read(session: Session) -> list[Any]:
            return session.cursor.execute(statement, values).fetchall()

        return self.look(read, list(absent))

    def look(self, read: Callable[[Session], T], absent: T) -> T:
        """A read; what it gives where there is no log is given."""
        if not self._readable and not self.is_there():
            return absent
        try:
            return self.read(read)
        except StoreError as error:
            if (other := self._otherwise(error)) is error:
                raise
            if isinstance(other, StoreMissing):
                return absent
            raise other from error.__cause__

    def _otherwise(self, error: StoreError) -> KernError:
        """What the error of a read is, where the tables are not what they were taken for."""
        if getattr(error.__cause__, "sqlstate", None) not in _LACKING:
            return error
        self._ready = self._readable = False
        found = self._applied()
        if found is None:
            return StoreMissing(self._missing())
        self._readable = True
        return SchemaOutdated(found[0], self._latest) if found[0] < self._latest else error

    def is_there(self) -> bool:
        """Whether there are tables of ours; what is not there is looked for again each time.

        Nothing is made and nothing is migrated.

        Raises:
            SchemaOutdated: A newer release has closed them to this one.
        """
        if not self._readable and (found := self._applied()) is not None:
            migrate.check_writer("postgres", *found)
            self.read(lambda session: self._look(session.cursor, found[0]))
            self._readable = True
        return self._readable

    def check_writer(self, cursor: Cursor) -> None:
        """After a write that did nothing: whether a newer release has closed the schema since it was opened.

        Raises:
            SchemaOutdated: It has.
        """
        self.check_closed(*cursor.execute(self.sql.applied).fetchall()[0])

    def check_closed(self, applied: int, min_writer: int) -> None:
        """As check_writer, of what the tables were found to say."""
        if min_writer > self._latest:
            self._ready = self._readable = False  # What reads is refused from now on, too, as when it opens.
            raise SchemaOutdated(applied, self._latest)

    def _missing(self) -> str:
        return f"there is no log in schema {self._schema!r}" if self._schema else "there is no log"

    def read(self, read: Callable[[Session], T]) -> T:
        """A read: it is safe to repeat on another connection, once."""
        for last in (False, True):
            lease = self._take()
            try:
                result = read(lease.driver)
            except psycopg.Error as error:
                if not _broken(lease, error):
                    self._connections.give(lease)
                    raise translated(error) from error
                self._connections.drop_all(lease)
                if last:
                    raise StoreUnavailable(f"Postgres: {_text(error)}") from error
            except BaseException:
                self._connections.drop(lease)
                raise
            else:
                self._connections.give(lease)
                return result
        raise AssertionError("unreachable")  # pragma: no cover

    def read_durably(self, read: Callable[[Session], T]) -> T:
        """A read of what no failover takes away, as far as `synchronous_commit` says that of a commit.

        The primary shows a commit whose wait for a synchronous standby was broken off, and after a crash all
        that its WAL has. So something is committed behind it, which waits for both; on the connection that
        has read, because another one may lead to another server.
        """

        def work(session: Session, bases: list[Head]) -> T:
            result = read(session)
            session.cursor.execute(sql.POSTGRES_BARRIER)
            return result

        return self.in_transaction(work)

    def _take(self) -> Lease:
        if self._closed:
            raise StoreError("this log is closed")
        try:
            return self._connections.take()
        except psycopg.Error as error:
            raise StoreUnavailable(f"Postgres cannot be reached: {_text(error)}") from error
        except PoolTimeout as error:
            raise StoreBusy(f"the engine has no connection to spare: {error}") from error
        except DBAPIError as error:
            raise StoreUnavailable(f"Postgres cannot be reached: {_text(error.orig)}") from error

    @contextmanager
    def looking(self) -> Iterator[Cursor]:
        """A cursor that sees one consistent state.

        Raises:
            StoreMissing: There is no log.
        """
        if not self.is_there():
            raise StoreMissing(self._missing())
        lease = self._begun_reading()
        try:
            yield lease.driver.cursor
            lease.driver.cursor.execute(sql.COMMIT)
        except psycopg.Error as error:
            self._drop(lease, error)
            told = translated(error)
            told.__cause__ = error
            raise self._otherwise(told) from error
        except BaseException:
            self._connections.drop(lease)
            raise
        self._connections.give(lease)

    def _drop(self, lease: Lease, error: psycopg.Error) -> None:
        if _broken(lease, error):
            self._connections.drop_all(lease)
        else:
            self._connections.drop(lease)

    def _begun_reading(self) -> Lease:
        """A connection in a transaction that only reads; an idle one may turn out to be dead."""
        for last in (False, True):
            lease = self._take()
            try:
                pooler.begin(lease.driver.cursor, sql.POSTGRES_BEGIN_READ)
                return lease
            except psycopg.Error as error:
                if last or not _broken(lease, error):
                    self._drop(lease, error)
                    raise translated(error) from error
                self._connections.drop_all(lease)
            except BaseException:
                self._connections.drop(lease)
                raise
        raise AssertionError("unreachable")  # pragma: no cover

    # ------------------------------------------------------------------- opening and migrating

    def migrate(self) -> tuple[int, int]:
        """The schema numbers before and after bringing the tables up to date."""
        before = self._applied()
        if before is None or migrate.pending("postgres", before[0]):
            with self._migrating() as cursor:
                self._migrate(cursor)
        else:  # By a role, perhaps, that may make nothing.
            migrate.check_writer("postgres", *before)
        self.row_security = self.read(lambda session: self.hides_rows(session.cursor))
        if self.read(lambda session: self.differences(session.cursor)):
            with self._migrating() as cursor:
                self._find_tables(cursor)
                postgres_schema.mend(cursor, self._schema)
                self.positions.mend(cursor)
        self._ready = self._readable = True
        return (before or (0, 0))[0], migrate.latest("postgres")

    def differences(self, cursor: Cursor) -> list[Difference]:
        """What the database has not, or has otherwise; nothing where there are no tables yet."""
        tables = {row[0] for row in cursor.execute(sql.POSTGRES_TABLES, (self._schema,))}
        if "kern_migrations" not in tables:
            return []
        [[applied, _]] = cursor.execute(self.sql.applied).fetchall()
        found = postgres_schema.differences(cursor, self._schema, applied)
        if any(each.bars_reading for each in found):
            return found
        return found + self.positions.difference(cursor)

    def ensure(self) -> None:
        """Check the tables and create them where there are none; once per process."""
        if self._ready:
            return
        with self._setup:
            applied = self._applied()
            if applied is None:
                self._create()
            else:
                migrate.check_number("postgres", *applied)
                if not self._readable:
                    self.read(lambda session: self._look(session.cursor, applied[0]))
            self._ready = self._readable = True

    def hides_rows(self, cursor: Cursor) -> bool:
        """Whether row-level security is in force for this role."""
        return bool(cursor.execute(self.sql.row_security).fetchall()[0][0])

    def _look(self, cursor: Cursor, applied: int) -> None:
        self.row_security = self.hides_rows(cursor)
        postgres_schema.warn_of_triggers(cursor, self._schema, applied)
        for each in self.positions.difference(cursor):
            logger.warning("%s, expected %s; run `kern-events migrate`", each, each.expected)

    def _create(self) -> None:
        try:
            with self._migrating() as cursor:
                self._migrate(cursor)
        except StoreError as error:
            if getattr(error.__cause__, "sqlstate", None) != "42501":
                raise
            raise StoreError(
                "the tables do not exist and this role may not create them: "
                "run `kern-events migrate --db URL` with one that may"
            ) from error.__cause__

    def _applied(self) -> tuple[int, int] | None:
        """The schema number and the lowest that may write; None if there are no tables."""

        def read(session: Session) -> tuple[int, int] | None:
            _check_encoding(session.connection)
            cursor = session.cursor
            tables = {row[0] for row in cursor.execute(sql.POSTGRES_TABLES, (self._schema,))}
            migrate.check_foreign(tables)
            if "kern_migrations" not in tables:
                return None
            found = cursor.execute(self.sql.applied).fetchall()[0]
            return found[0], found[1]

        return self.read(read)

    @contextmanager
    def _migrating(self) -> Iterator[psycopg.Cursor[Any]]:
        lease = self._take()
        try:
            connection = lease.driver.connection
            # An index of a large table takes its time.
            unhurried = exchange.unhurried(connection)
            with unhurried, connection.transaction(), connection.cursor() as cursor:
                if isinstance(lease.driver.cursor, pooler.TransactionCursor):
                    lease.driver.cursor.limit()
                cursor.execute(sql.POSTGRES_MIGRATION_LOCK)
                yield cursor
        except psycopg.Error as error:
            self._connections.drop(lease)
            raise translated(error) from error
        except BaseException:
            self._connections.drop(lease)
            raise
        self._connections.give(lease)

    def _migrate(self, cursor: psycopg.Cursor[Any]) -> None:
        """Apply what is missing; another process may have been first while this one waited."""
        # IF NOT EXISTS asks for the right to make one also where it is there.
        if self._schema and not cursor.execute(sql.POSTGRES_SCHEMA_EXISTS, (self._schema,)).fetchall():
            cursor.execute(sql.POSTGRES_CREATE_SCHEMA.format(name=f'"{self._schema}"').encode())
        self._find_tables(cursor)
        tables = {row[0] for row in cursor.execute(sql.POSTGRES_TABLES, (self._schema,))}
        migrate.check_foreign(tables)
        if "kern_migrations" not in tables:
            cursor.execute(sql.CREATE_MIGRATIONS)
        applied, min_writer = cursor.execute(self.sql.applied).fetchall()[0]
        migrate.check_writer("postgres", applied, min_writer)
        if applied:
            cursor.execute(sql.POSTGRES_STOP_APPENDS)
        for step in migrate.pending("postgres", applied):
            # Many statements, which cannot be prepared: prepare_threshold=0 in the URL would.
            cursor.execute(step.text.encode(), prepare=False)
            note = (step.number, step.name, step.sha256, migrate.MIN_WRITER[step.number], now_us())
            cursor.execute(sql.POSTGRES_NOTE_MIGRATION, note)


    def _find_tables(self, cursor: psycopg.Cursor[Any]) -> None:
        if self._schema:
            cursor.execute(sql.POSTGRES_SCHEMA, (f'"{self._schema}"',))


class PostgresSinks:
    """Postgres: the lock on the consumer's row is lease, fence and checkpoint in one."""

    def __init__(self, server: PostgresServer) -> None:
        self.sql = sql.ConsumerSQL(server.prefix, sql.POSTGRES_NOW, sql.POSTGRES_LOCK)
        self._server = server

    def room(self) -> int | None:
        """See Sinks."""
        return room_of(self._server._engine)

    def engine(self) -> Engine:
        """See Sinks."""
        self._server.ensure()
        return self._server._engine

    def rows(self, statement: str, values: dict[str, Any]) -> list[Any]:
        """See Sinks."""
        return self._server.query(_NAMED.sub(r"%(\1)b", statement), values)

    def begin(self, connection: Connection) -> None:
        """See Sinks."""
        connection.execution_options(isolation_level="READ COMMITTED")
        self._server.check_closed(*connection.exec_driver_sql(self._server.sql.applied).one())

    def is_over(self) -> bool:
        """See Sinks."""
        return self._server._closed and self._server._own

    @contextmanager
    def handing(self, connection: Connection) -> Iterator[None]:
        """See Sinks: what the handler does may take its time."""
        with exchange.unhurried(connection.connection.driver_connection), connection.begin_nested():
            yield

    def hold(self, connection: Connection, key: dict[str, Any], lease_us: int) -> int | None:
        """See Sinks."""
        row = connection.execute(text(self.sql.hold), key).fetchone()
        return None if row is None else row[0]

    def is_open(self, connection: Connection) -> bool:
        """See Sinks: it ends with its connection."""
        return not connection.invalidated

    def translated(self, error: BaseException | None) -> StoreError:
        """See Sinks."""
        if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
            return FeedUnavailable(
                "a consumer stores its position, and nothing can be written here: this is a standby, or "
                "default_transaction_read_only is on"
            )
        return translated(error) if isinstance(error, psycopg.Error) else StoreError(str(error))


def _create_engine(url: URL, pool_size: int, lock_timeout_ms: int, timeout_s: float) -> Engine:
    connect_args: dict[str, Any] = {**pooler.prepare_threshold(url)}
    if not pooler.in_transaction_mode(url):
        options = f"-c lock_timeout={lock_timeout_ms} -c plan_cache_mode=force_generic_plan"
        given = url.query.get("options")
        connect_args["options"] = f"{given} {options}" if given else options
    # Not what the environment says; and of a database in SQL_ASCII no text could be read else, nor told.
    connect_args["client_encoding"] = "utf8"
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        poolclass=KeptPool,
        pool_size=pool_size,
        connect_args=connect_args,
    )
    exchange.guard(engine, timeout_s, lock_timeout_ms / 1000)
    if pooler.in_transaction_mode(url):
        pooler.limit_transactions(engine, lock_timeout_ms)
    return engine


def _prepare(checked_out: PoolProxiedConnection, lock_timeout_ms: int | None) -> Session:
    """Ready for use; with a lock timeout if each transaction is to set it."""
    connection = checked_out.driver_connection
    assert isinstance(connection, psycopg.Connection)
    checked_out.info["kern_autocommit"] = connection.autocommit
    connection.autocommit = True
    if lock_timeout_ms is None:
        return Session(connection, binary_cursor(connection))
    return Session(connection, made_binary(pooler.TransactionCursor(connection, lock_timeout_ms)))


def _sever(session: Session | None) -> None:
    """In a forked child: what is said on a line of its parent's goes nowhere, and does not keep it open.

    The server ends what a parent was doing when that is gone, and not when all of its children are.
    """
    if session is None or session.connection.closed:
        return
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, session.connection.fileno(), inheritable=False)
    os.close(nowhere)


def _check_encoding(connection: psycopg.Connection[Any]) -> None:
    """Ids and texts may hold any character, so anything but UTF-8 would fail at one of them some day."""
    for setting in ("server_encoding", "client_encoding"):
        found = connection.info.parameter_status(setting) or "UTF8"
        if found.upper() not in ("UTF8", "UNICODE"):
            raise StoreError(
                f"the database's {setting} is {found}, and this log needs UTF8: "
                "make a database with ENCODING 'UTF8' TEMPLATE template0"
            )


def _restore(checked_out: PoolProxiedConnection) -> None:
    connection = checked_out.driver_connection
    assert isinstance(connection, psycopg.Connection)
    connection.autocommit = checked_out.info.pop("kern_autocommit")


def _lost(bases: list[Head], error: psycopg.Error) -> Exception:
    if not bases:
        return StoreUnavailable(f"Postgres: {_text(error)}")
    return AnswerLost(*bases)


def _broken(lease: Lease, error: psycopg.Error) -> bool:
    """Whether the connection is gone, and the outcome of what was sent with it."""
    return lease.driver.connection.closed or (error.sqlstate or "").startswith(_BROKEN)


def translated(error: psycopg.Error) -> StoreError:
    """What the driver's error is to the log."""
    state = error.sqlstate or ""
    text = f"Postgres: {_text(error)}"
    if state in (*_NOT_COMMITTED, "55P03", "57014"):
        return StoreBusy(text)
    if state[:2] in ("08", "57") or state in ("25006", "53300"):
        return StoreUnavailable(text)
    if state in _FULL or (state[:2] in ("XX", "58") and any(why in text for why in _NO_ROOM)):
        return StoreFull(text)
    if state[:2] == "XX" and state != "XX000":
        return StoreCorrupt(text)
    if state == "23505":  # Of a row that is seen it is known before.
        text += " (row-level security may hide the row that has it)"
    if not state and isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
        return StoreUnavailable(text)
    return StoreError(text)


def _text(error: BaseException | None) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _back_off(attempt: int) -> None:
    time.sleep(random.uniform(0.0, min(0.5, 0.01 * 2**attempt)))
