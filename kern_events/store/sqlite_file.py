"""A SQLite file as this process has it open: its connections, settings, schema and state of health.

The file is opened by SQLite alone, never with `open()`: closing such a file would cancel SQLite's
locks in this process, and the next acknowledged append could be lost. A new one is its owner's alone.
"""

from __future__ import annotations

import os
import random
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

from sqlalchemy import URL, create_engine, event, text
from sqlalchemy.engine import Connection, Engine
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
    StoreMissing,
    StoreUnavailable,
)
from kern_events.store import migrate, sql, sqlite_schema, still
from kern_events.store.base import Rows, logger, page_of
from kern_events.store.connections import Connections, Lease, room_of
from kern_events.store.forks import (
    close_before_forks,
    is_inherited,
    keep_inherited,
    survive_forks,
    taken,
)
from kern_events.store.inodes import Watch, flush
from kern_events.store.pool import KeptPool
from kern_events.store.sqlite_errors import is_busy, told

_OLDEST: Final = (3, 37, 0)
_SETUP_TIMEOUT_S: Final = 30.0  # many processes may open a fresh file at once
_NETWORK: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "fuse.sshfs"}
)

_readers: Final = threading.local()  # `here` while this thread connects to read

Driver = sqlite3.Connection
Values = tuple[Any, ...] | dict[str, Any]


class _Writer(NamedTuple):
    """The connection that writes: SQLAlchemy's, and the driver's behind it."""

    checked_out: PoolProxiedConnection
    driver: Driver


class SQLiteFile:
    """The connections to one file: a writer that is held, and readers."""

    def __init__(self, url: URL, engine: Engine | None, *, pool_size: int, lock_timeout_s: float) -> None:
        name = str(url.database or "")
        path = unquote(urlsplit(name).path) if name.startswith("file:") else name
        if path in ("", ":memory:") or "memory" in url.query.get("mode", ""):
            raise ValueError("an in-memory SQLite is a database per connection: use the URL memory:")
        self._own = engine is None
        self._lock_timeout_s = lock_timeout_s
        self._path = os.path.abspath(path)
        self._read_only = url.query.get("mode") == "ro" or "immutable" in url.query
        self._engine = engine or self._create_engine(_uri(url, self._path), pool_size)
        keep_private(self._engine)
        close_before_forks(self._engine, path_of)
        self._may_be_still = self._own and not _CHANGING & set(url.query)
        self._readers = Connections(
            self._engine,
            self._prepare_reader,
            _restore_reader,
            keep=pool_size if self._own else 0,
            least=2,
            connect=self._connect_reader,
        )
        self._latest: Final = migrate.latest("sqlite")
        self._writer: _Writer | None = None
        self._watch: Watch | None = None
        self._replaced = False
        self._wal_mode = True
        self._ready = False  # For writing.
        self._readable = False  # By connections that are kept.
        self._applied = 0  # The schema number, once it was looked at.
        self._has_warned = False
        self._closed = False
        self._failed: StoreError | None = None
        self._joined = threading.local()
        self._reading = threading.local()
        self._setup = threading.Lock()
        self._held = False
        survive_forks(self)

    def forget(self) -> None:
        """In a forked child: open anew on the next use."""
        keep_inherited(self._writer)
        self._writer = None
        self._ready = self._readable = self._held = False
        self._setup = threading.Lock()
        if is_inherited(self._path):
            self._failed = StoreUnavailable(
                f"this process was forked while {self._path} was in use and could not be closed, as by a "
                "transaction of the thread that forked: use it in a process that is started anew"
            )

    def hold(self, until: float, *, idle: bool) -> None:
        """Have nothing open before the process forks; not the writer, if it is not `idle`."""
        self._held = self._setup.acquire(timeout=max(0.0, until - time.monotonic()))
        if self._held and idle:
            self.drop_writer()
        self._readers.hold(until, wait=not getattr(self._reading, "here", False))

    def release(self) -> None:
        """Go on after `hold`."""
        self._readers.release()
        if self._held:
            self._held = False
            self._setup.release()

    @property
    def is_open(self) -> bool:
        """Whether there are connections."""
        return self._writer is not None or self._readers.is_open

    def close(self) -> None:
        """Give every connection back."""
        self._closed = True
        self._readers.close()
        self.drop_writer()
        if self._own:
            self._engine.dispose()

    # --------------------------------------------------------------------------------- writing

    def begin(self) -> Driver:
        """The writer's connection with the write lock taken.

        The driver's own wait sleeps ever longer and starves a writer among many for seconds; short
        random sleeps do not.
        """
        driver = self._writing()
        deadline = time.monotonic() + self._lock_timeout_s
        while True:
            try:
                roll_back(driver)  # Of a writer that was interrupted.
                driver.execute(sql.SQLITE_BEGIN)
                self.check_files()
                self.check_writer(driver)
                return driver
            except SchemaOutdated:
                roll_back(driver)
                raise
            except StoreUnavailable:
                self.drop_writer()
                raise
            except sqlite3.Error as error:
                if not is_busy(error):
                    raise self.translated(error) from error
                if time.monotonic() > deadline:
                    raise StoreBusy(self._busy_text()) from error
            time.sleep(random.uniform(0.0002, 0.002))

    def check_writer(self, driver: Driver) -> None:
        """Refuse to write where a newer release has closed the schema to this one since it was opened.

        The transaction has the write lock, so nobody closes it before the commit.
        """
        if driver.execute(sql.SQLITE_CLOSED, (self._latest,)).fetchone():
            self._ready = self._readable = False  # What reads is refused from now on, too, as when it opens.
            raise SchemaOutdated(driver.execute(sql.SQLITE_APPLIED).fetchone()[0], self._latest)

    def end_writing(self) -> None:
        """Undo what a writer has left open; where that fails, its connection goes, and its lock with it."""
        if self._writer is None:
            return
        try:
            roll_back(self._writer.driver)
        except sqlite3.Error:
            self.drop_writer()

    def _busy_text(self) -> str:
        text = f"the database is locked by another writer, waited {self._lock_timeout_s:g} s"
        if getattr(self._joined, "here", False):
            text += "; this thread's own transaction, opened for append(connection=), may be what holds it"
        return text

    def joined(self) -> None:
        """Note that this thread appends in a transaction of its own."""
        self._joined.here = True

    # --------------------------------------------------------------------------------- reading

    def query(
        self,
        statement: str,
        values: Values,
        fetch: Callable[[sqlite3.Cursor], list[Any]] = sqlite3.Cursor.fetchall,
        absent: Sequence[Any] = (),
    ) -> list[Any]:
        """The rows of one read; where there is no log, those of `absent`."""
        if not self._readable and not self.is_there():
            return self._read_still(statement, values, fetch, absent)
        try:
            lease = self._take_reader()
        except StoreMissing:  # It was removed, and is not to be made by a reader.
            return Rows(absent)
        try:
            rows = fetch(lease.driver.execute(statement, values))
        except sqlite3.Error as error:
            self._readers.drop(lease)
            if _is_lacking(error) and self._look() is None:
                return Rows(absent)
            raise self._unread(error) from error
        except BaseException:
            self._readers.drop(lease)
            raise
        self._readers.give(lease)
        return rows

    def page(self, statement: str, values: tuple[Any, ...], limit: int, at: int = 0) -> Rows[Any]:
        """A page of the rows of one read, with events from a column on."""
        page: Any = self.query(statement, values, lambda cursor: page_from(cursor, limit, at))
        return page  # type: ignore[no-any-return]

    @contextmanager
    def reading(self) -> Iterator[Driver]:
        """A reader's connection.

        Raises:
            StoreMissing: There is no log.
        """
        if not self.is_there():
            with self._opened_still() as driver:
                yield driver
            return
        lease = self._take_reader()
        self._reading.here = True
        try:
            yield lease.driver
        except sqlite3.Error as error:
            self._readers.drop(lease)
            raise self._unread(error) from error
        except BaseException:
            self._readers.drop(lease)
            raise
        finally:
            self._reading.here = False
        self._readers.give(lease)

    def is_there(self) -> bool:
        """Whether there is a log, which connections that are kept can read; one that is still, they cannot.

        Nothing is made and nothing is migrated, and what is not there is looked for again each time.
        """
        if not self._readable:
            self._check_usable()
            self._check_place()
            if not self._is_still():
                self._look()
        return self._readable

    def _look(self) -> int | None:
        """The schema number of what is there; None if there is no log."""
        self._readable = False
        try:
            lease = self._take_reader()
        except StoreMissing:
            return None
        try:
            found = self._number_of(lease.driver)
        except sqlite3.Error as error:
            self._readers.drop(lease)
            raise self.translated(error) from error
        except BaseException:
            self._readers.drop(lease)
            raise
        if found is None:
            self._readers.drop(lease)  # What is there later may be another file.
        else:
            self._readers.give(lease)
            self._readable = True
        return found

    def _warn(self, driver: Driver) -> None:
        if not self._has_warned and self._applied == self._latest:
            self._has_warned = True
            sqlite_schema.warn_of_triggers(driver)

    def _number_of(self, driver: Driver) -> int | None:
        tables = _tables(driver)
        migrate.check_foreign(tables)
        if "kern_migrations" not in tables:
            return None
        self._applied, min_writer = driver.execute(sql.SQLITE_APPLIED).fetchone()
        migrate.check_writer("sqlite", self._applied, min_writer)
        self._warn(driver)
        return self._applied

    def _is_still(self) -> bool:
        return self._may_be_still and still.is_still(self._path, read_only=self._read_only)

    @contextmanager
    def _opened_still(self) -> Iterator[Driver]:
        """A connection to a file that is still, for one read; see still.py."""
        if not self._is_still():
            raise StoreMissing(f"there is no log in {self._path}")
        try:
            with still.opened(self._path) as driver:
                if self._number_of(driver) is None:
                    raise StoreMissing(f"there is no log in {self._path}")
                yield driver
        except sqlite3.Error as error:
            raise self._unread(error) from error

    def _read_still(
        self,
        statement: str,
        values: Values,
        fetch: Callable[[sqlite3.Cursor], list[Any]],
        absent: Sequence[Any],
    ) -> list[Any]:
        try:
            with self._opened_still() as driver:
                return fetch(driver.execute(statement, values))
        except StoreMissing:
            return Rows(absent)

    def _unread(self, error: sqlite3.Error) -> KernError:
        """What the error of a read is to the log: a schema that is older may lack what was asked for."""
        if _is_lacking(error) and self._applied < self._latest:
            return SchemaOutdated(self._applied, self._latest)
        return self.translated(error)

    def _connect_reader(self) -> PoolProxiedConnection:
        """A connection to a file that is there: SQLite would make one."""
        _readers.here = True
        try:
            if self._own and not still.exists(self._path):
                raise StoreMissing(f"there is no file {self._path}")
            return taken(self._engine)
        except StoreMissing:
            self._readable = False
            raise
        finally:
            _readers.here = False

    def _take_reader(self) -> Lease:
        if self._failed or self._closed:
            self._check_usable()
        try:
            return self._readers.take()
        except sqlite3.Error as error:
            raise self.translated(error) from error
        except PoolTimeout as error:
            raise StoreBusy(f"the engine has no connection to spare: {error}") from error

    # ------------------------------------------------------------------- opening and migrating

    def migrate(self) -> tuple[int, int]:
        """The schema numbers before and after bringing the tables up to date."""
        before = self._schema_number()
        self.ensure()
        self._mend(self._writing())
        return before, self._schema_number()

    def _mend(self, driver: Driver) -> None:
        if not sqlite_schema.differences(driver):
            return
        try:
            self._begin_setup(driver)
            try:
                sqlite_schema.mend(driver)
                driver.execute(sql.COMMIT)
            finally:
                roll_back(driver)
        except sqlite3.Error as error:
            raise self.translated(error) from error

    def _create_engine(self, url: URL, pool_size: int) -> Engine:
        return create_engine(
            url,
            poolclass=KeptPool,
            pool_size=pool_size,
            connect_args={
                "check_same_thread": False,
                "cached_statements": 256,
                "timeout": self._lock_timeout_s,
            },
        )

    def _check_usable(self) -> None:
        if self._failed:
            raise type(self._failed)(str(self._failed)) from self._failed
        if self._closed:
            raise StoreError("this log is closed")

    def ensure(self) -> None:
        """Open, check and create what is missing; once per process."""
        self._check_usable()
        if self._ready:
            return
        with self._setup:
            self._open()

    def _open(self) -> None:
        if not self._ready:
            self._check_place()
            try:
                self._migrate(self._writer.driver if self._writer else self._open_writer())
            except sqlite3.Error as error:
                raise self.translated(error) from error
            _warn_once()
            self._applied = self._latest
            self._ready = self._readable = True

    def _check_place(self) -> None:
        if sqlite3.sqlite_version_info < _OLDEST:
            raise StoreError(f"SQLite 3.37 or newer is needed, this is {sqlite3.sqlite_version}")
        if self._own and (kind := _network_filesystem(self._path)):
            raise StoreError(f"{self._path} is on a network file system ({kind}), where WAL is not safe")

    def _schema_number(self) -> int:
        try:
            driver = self._writer.driver if self._writer else self._open_writer()
            if "kern_migrations" not in _tables(driver):
                return 0
            number: int = driver.execute(sql.SQLITE_APPLIED).fetchone()[0]
            return number
        except sqlite3.Error as error:
            raise self.translated(error) from error

    def _migrate(self, driver: Driver) -> None:
        tables = _tables(driver)
        migrate.check_foreign(tables)
        if "kern_migrations" in tables:
            applied, min_writer = driver.execute(sql.SQLITE_APPLIED).fetchone()
            if not migrate.pending("sqlite", applied):
                migrate.check_number("sqlite", applied, min_writer)
                self._applied = applied
                self._warn(driver)
                self._wait_in_begin(driver)
                return
        self._wait_in_begin(driver)
        self._begin_setup(driver)
        try:
            _apply(driver)
            driver.execute(sql.COMMIT)
        except BaseException:
            roll_back(driver)
            raise

    def _begin_setup(self, driver: Driver) -> None:
        deadline = self._setup_deadline()
        while True:
            try:
                driver.execute(sql.SQLITE_BEGIN)
                return
            except sqlite3.Error as error:
                if not is_busy(error) or time.monotonic() > deadline:
                    raise
            time.sleep(random.uniform(0.001, 0.01))

    def _setup_deadline(self) -> float:
        # This thread's own transaction would be waited for in vain.
        mine = getattr(self._joined, "here", False)
        return time.monotonic() + (min(self._lock_timeout_s, 1.0) if mine else _SETUP_TIMEOUT_S)

    def _writing(self) -> Driver:
        self.ensure()
        if self._writer is None:
            self._wait_in_begin(self._open_writer())
        assert self._writer is not None
        return self._writer.driver

    def only_reads(self) -> bool:
        """Whether the file is there and is not to be written, by its URL or its mode."""
        return self._own and still.exists(self._path) and (self._read_only or not still.may_write(self._path))

    def _open_writer(self) -> Driver:
        if self.only_reads():
            raise StoreUnavailable(f"{self._path} cannot be written: it is open for reading only")
        try:
            checked_out = taken(self._engine)
        except sqlite3.Error as error:
            raise self.translated(error) from error
        except PoolTimeout as error:
            raise StoreBusy(f"the engine has no connection to spare: {error}") from error
        driver = checked_out.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        driver.isolation_level = None
        try:
            if self._own:
                self._switch_to_wal(driver)
            for setting in sql.SQLITE_SETTINGS:
                driver.execute(setting)
            self._wal_mode = driver.execute(sql.SQLITE_JOURNAL).fetchone()[0] == "wal"
            self._path = driver.execute(sql.SQLITE_FILE).fetchone()[0] or self._path
            if self._own and not (self._wal_mode or self._read_only):
                raise StoreError(f"{self._path} cannot be used in WAL mode, which this log rests on")
            _tables(driver)  # Reading makes SQLite open the WAL; still with the driver's own wait.
            if self._replaced:
                self._check_whole(driver)
        except BaseException:
            checked_out.invalidate()
            raise
        self._writer = _Writer(checked_out, driver)
        suffixes = ("", "-wal", "-shm") if self._wal_mode else ("",)
        self._watch = Watch([self._path + suffix for suffix in suffixes])
        return driver

    def _wait_in_begin(self, driver: Driver) -> None:
        """From here on, in WAL mode, only BEGIN waits for others, in a loop of ours.

        Not before the schema is read: whoever opens a file that others open has to wait for them.
        """
        wait_ms = 0 if self._wal_mode else int(self._lock_timeout_s * 1000)
        driver.execute(sql.SQLITE_BUSY_TIMEOUT.format(wait_ms))

    def _switch_to_wal(self, driver: Driver) -> None:
        # Several processes may open a fresh file at once, and the switch does not wait by itself.
        deadline = self._setup_deadline()
        while True:
            try:
                driver.execute(sql.SQLITE_PAGE_SIZE)
                driver.execute(sql.SQLITE_WAL)
                return
            except sqlite3.Error as error:
                if not is_busy(error) or time.monotonic() > deadline:
                    raise
            time.sleep(random.uniform(0.001, 0.01))

    def drop_writer(self) -> None:
        """Close every connection: whoever reads through an old WAL would see what nobody else does."""
        self._ready = self._readable = False  # What is at the path then may be another file.
        self._readers.renew()
        writer, self._writer = self._writer, None
        if writer:
            writer.checked_out.invalidate()

    def _prepare_reader(self, checked_out: PoolProxiedConnection) -> Driver:
        driver = checked_out.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        checked_out.info["kern_isolation_level"] = driver.isolation_level
        driver.isolation_level = None
        if self._own:
            driver.execute(sql.SQLITE_QUERY_ONLY)
        return driver

    def check_files(self) -> None:
        """Write nothing, and acknowledge nothing, where others see another file than the one that is open.

        A backup was moved over it, or it was removed, with or without its `-wal` and `-shm`. Or somebody
        who opened and closed the database file in this process has cancelled SQLite's locks, and another
        process has unlinked the WAL below us.
        """
        if self._watch is not None and not self._watch.holds():
            self._replaced = True
            logger.error("a database file was replaced or removed while it was in use; reopening")
            raise StoreUnavailable(
                f"{self._path}, its -wal or its -shm was replaced or removed while it was in use: "
                "what is there now is opened by the next call"
            )

    def checkpoint(self, driver: Driver) -> None:
        """Leave nothing of what was erased in the WAL, if nobody is in the way.

        A reader of an older state needs the WAL, and is not waited for: the text stays in it until the next
        checkpoint that empties it, or until the last connection is closed.
        """
        if self._wal_mode:
            with suppress(sqlite3.Error):  # The erasure itself is done.
                driver.execute(sql.SQLITE_CHECKPOINT).fetchall()

    def _check_whole(self, driver: Driver) -> None:
        """What was put in the place of an open file may not fit to what of it is still in use."""
        found = driver.execute(sql.SQLITE_QUICK_CHECK).fetchall()
        if found != [("ok",)]:
            self._failed = StoreCorrupt(
                f"{self._path} was replaced while it was in use, and is damaged: {found[0][0]}; keep the file"
            )
            raise StoreCorrupt(str(self._failed))
        self._replaced = False

    def flush(self) -> None:
        """Have on the disk what can be read: who is killed within COMMIT may have written, not flushed it."""
        try:
            flush(self._path + "-wal")
        except OSError as error:
            raise StoreUnavailable(f"{self._path}-wal cannot be flushed: {error.strerror}") from error

    def translated(self, error: sqlite3.Error) -> StoreError:
        """What the driver's error is to the log; damage latches the store to failed."""
        if is_busy(error):
            found: StoreError = StoreBusy(self._busy_text())
        else:
            found = told(error, self._path)
        found.__cause__ = error
        if isinstance(found, StoreCorrupt):
            self._failed = StoreCorrupt(str(found))
            self._failed.__cause__ = error
        return found


class SQLiteSinks:
    """SQLite: whoever writes is alone, and a lease says who works on a consumer between transactions."""

    def __init__(self, file: SQLiteFile) -> None:
        self.sql = sql.ConsumerSQL("", sql.SQLITE_NOW, "")
        self._file = file

    def room(self) -> int | None:
        """See Sinks: the writer keeps one connection."""
        room = room_of(self._file._engine)
        return None if room is None else room - 1

    def engine(self) -> Engine:
        """See Sinks."""
        try:
            self._file.ensure()
        except StoreUnavailable as error:
            if not self._file.only_reads():
                raise
            raise FeedUnavailable(f"a consumer stores its position, and that cannot be: {error}") from error
        return self._file._engine

    def handing(self, connection: Connection) -> AbstractContextManager[Any]:
        """See Sinks."""
        return connection.begin_nested()

    def begin(self, connection: Connection) -> None:
        """See Sinks."""
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        try:
            # The connection may have been one that only reads.
            for setting in (*sql.SQLITE_SETTINGS, sql.SQLITE_WRITES):
                driver.execute(setting)
            connection.begin()
            # An engine may be set up to tell the driver of that; a write then takes the lock.
            self._take_lock(driver, sql.SQLITE_TAKE_LOCK if driver.in_transaction else sql.SQLITE_BEGIN)
            self._file.check_writer(driver)
        except sqlite3.Error as error:
            raise self.translated(error) from error

    def rows(self, statement: str, values: dict[str, Any]) -> list[Any]:
        """See Sinks."""
        return self._file.query(statement, values)

    def _take_lock(self, driver: Driver, statement: str) -> None:
        """As the writer does: the driver's own wait takes longer among many writers than a lease lasts."""
        wait_ms = driver.execute(sql.SQLITE_BUSY_WAIT).fetchone()[0]
        driver.execute(sql.SQLITE_BUSY_TIMEOUT.format(0))
        deadline = time.monotonic() + self._file._lock_timeout_s
        try:
            while True:
                try:
                    driver.execute(statement)
                    return
                except sqlite3.Error as error:
                    if not is_busy(error) or time.monotonic() > deadline:
                        raise
                time.sleep(random.uniform(0.0002, 0.002))
        finally:
            driver.execute(sql.SQLITE_BUSY_TIMEOUT.format(wait_ms))

    def is_over(self) -> bool:
        """See Sinks."""
        return self._file._closed and self._file._own

    def hold(self, connection: Connection, key: dict[str, Any], lease_us: int) -> int | None:
        """See Sinks."""
        row = connection.execute(text(self.sql.lease), {**key, "lease_us": lease_us}).fetchone()
        return None if row is None else row[0]

    def is_open(self, connection: Connection) -> bool:
        """See Sinks: SQLite ends a transaction by itself where a disk is full or fails."""
        driver = connection.connection.driver_connection
        return isinstance(driver, sqlite3.Connection) and driver.in_transaction

    def translated(self, error: BaseException | None) -> StoreError:
        """See Sinks."""
        if not isinstance(error, sqlite3.Error):
            return StoreError(str(error))
        if getattr(error, "sqlite_errorname", "") == "SQLITE_READONLY":
            return FeedUnavailable(
                f"a consumer stores its position, and {self._file._path} cannot be written: {error}"
            )
        return self._file.translated(error)


def _apply(driver: Driver) -> None:
    """Apply what is missing, under the write lock; another process may have been first."""
    if "kern_migrations" not in _tables(driver):
        driver.execute(sql.SQLITE_CREATE_MIGRATIONS)
    applied, min_writer = driver.execute(sql.SQLITE_APPLIED).fetchone()
    for step in migrate.pending("sqlite", applied):
        for statement in migrate.statements(step.text):
            driver.execute(statement)
        note = (step.number, step.name, step.sha256, migrate.MIN_WRITER[step.number], now_us())
        driver.execute(sql.SQLITE_NOTE_MIGRATION, note)
    applied, min_writer = driver.execute(sql.SQLITE_APPLIED).fetchone()
    migrate.check_number("sqlite", applied, min_writer)


def _tables(driver: Driver) -> set[str]:
    return {row[0] for row in driver.execute(sql.SQLITE_TABLES)}


def _restore_reader(checked_out: PoolProxiedConnection) -> None:
    driver = checked_out.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    driver.isolation_level = checked_out.info.pop("kern_isolation_level")


def page_from(cursor: sqlite3.Cursor, limit: int, at: int = 0) -> Rows[Any]:
    """A page of the rows of a statement, which is stepped no further than that."""
    try:
        return page_of(cursor, limit, at)
    finally:
        cursor.close()


@contextmanager
def overwriting(driver: Driver) -> Iterator[None]:
    """On a connection of the caller's: what is erased within is overwritten in the file."""
    before = driver.execute(sql.SQLITE_SECURE_DELETE).fetchone()[0]
    driver.execute(sql.SQLITE_OVERWRITES.format(1))
    try:
        yield
    finally:
        driver.execute(sql.SQLITE_OVERWRITES.format(before))


def roll_back(driver: Driver) -> None:
    """End a transaction, if one is open, without a trace."""
    if driver.in_transaction:
        driver.execute(sql.ROLLBACK)


def _is_lacking(error: sqlite3.Error) -> bool:
    """Whether what was asked for is not in the schema."""
    return str(error).startswith(("no such table", "no such column"))


_URI_OPTIONS: Final = frozenset({"cache", "immutable", "mode", "nolock", "psow", "vfs"})
_CHANGING: Final = _URI_OPTIONS - {"mode"}  # How the file is opened, beside whether it may be written to.
_DRIVER_OPTIONS: Final = frozenset({"uri", "timeout", "cached_statements", "check_same_thread"})


def _uri(url: URL, path: str) -> URL:
    """The URL by which SQLite opens a path, with the options that it takes itself."""
    asked = set(url.query)
    if unknown := asked - _URI_OPTIONS - _DRIVER_OPTIONS:
        raise ValueError(f"a SQLite URL takes no {min(unknown)}: a ? in the name of a file is written %3F")
    if str(url.database).startswith("file:"):
        return url.update_query_dict({"uri": "true"})
    if not asked & _URI_OPTIONS:
        return url.set(database=path)
    return url.set(database="file:" + quote(path)).update_query_dict({"uri": "true"})


def keep_private(engine: Engine) -> None:
    """Have a file that an engine makes be its owner's alone, mode 0600; one that is there stays as it is."""
    event.listen(engine, "do_connect", _before_connecting)


def path_of(args: Sequence[Any], options: Mapping[str, Any]) -> str:
    """The file that SQLite is asked to open, from the arguments of `connect`."""
    name = os.fsdecode(args[0])
    is_uri = bool(options.get("uri")) and name.startswith("file:")
    return unquote(urlsplit(name).path) if is_uri else name


def _before_connecting(dialect: Any, record: Any, args: Sequence[Any], options: Mapping[str, Any]) -> None:
    path = _made_by(os.fsdecode(args[0]), is_uri=bool(options.get("uri")))
    if path is None or os.path.exists(path):
        return
    if getattr(_readers, "here", False):
        raise StoreMissing(f"there is no file {path}")
    path = os.path.realpath(path)
    # Made under another name, as it must not be closed under its own: see above. Where this fails, SQLite
    # says what is wrong; and file systems without links have no modes either.
    made = os.path.join(os.path.dirname(path), f".kern-events-{secrets.token_hex(8)}")
    with suppress(OSError):
        try:
            os.close(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            os.link(made, path)  # Fails if another process was first.
        finally:
            os.unlink(made)


def _made_by(name: str, *, is_uri: bool) -> str | None:
    """The file that SQLite makes when it opens a name, where it makes one."""
    if not (is_uri and name.startswith("file:")):
        return None if name in ("", ":memory:") else name
    uri = urlsplit(name)
    said = parse_qs(uri.query)
    makes = said.get("mode", ["rwc"])[-1] == "rwc" and "vfs" not in said
    path = unquote(uri.path)
    return path if makes and path not in ("", ":memory:") else None


def _network_filesystem(path: str) -> str | None:
    """The type of the network file system that a path is on, or None; Linux only."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            found = [_mount(line) for line in mounts]
    except OSError:
        return None
    path = os.path.realpath(path)
    below = [one for one in found if path.startswith(one[0].rstrip("/") + "/")]
    kind = max(below, key=lambda one: len(one[0]), default=("", ""))[1]
    return kind if kind in _NETWORK else None


def _mount(line: str) -> tuple[str, str]:
    before, _, after = line.partition(" - ")
    point = before.split(" ")[4].encode().decode("unicode_escape")
    return point, after.split(" ")[0]


WAL_RESET: Final = (
    f"SQLite {sqlite3.sqlite_version} can corrupt a WAL database when two connections write and "
    "checkpoint at the same moment (fixed in 3.51.3, 3.50.7 and 3.44.6): write from one process, or upgrade"
)
_warned = False


def has_wal_reset_bug() -> bool:
    """Whether this SQLite is one of those with the WAL-reset bug."""
    version = sqlite3.sqlite_version_info
    fixed = version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)
    return version >= (3, 7, 0) and not fixed


def _warn_once() -> None:
    global _warned
    if not _warned and has_wal_reset_bug():
        _warned = True
        logger.warning(WAL_RESET)
