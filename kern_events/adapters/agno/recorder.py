"""Agno's own writes, and the events of what they changed, in one transaction.

`write` holds the session, brings its rows and the log together, lets Agno write as it always does, and
records the difference. Agno's methods open their own transactions; here they join ours (`Joining`).
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session as OrmSession
from sqlalchemy.orm import scoped_session

from kern_events import Draft, Head, SessionLog, lineage, spi
from kern_events.adapters.agno.approving import Approval
from kern_events.adapters.agno.asking import Question
from kern_events.adapters.agno.drafting import Drafting, Fits, Place, RunChange, anything, fits_within
from kern_events.adapters.agno.folding import (
    OWNERS,
    SESSION_CHANGED,
    Fold,
    Row,
    Stored,
    Turn,
    had_messages,
    state_of,
)
from kern_events.adapters.agno.listing import Shown
from kern_events.adapters.agno.native import with_native
from kern_events.adapters.agno.tables import AS_NOTED, CHANGED, DELETED, NO_ROW, Asked, Held, Mark, Tables
from kern_events.adapters.agno.wholes import step_back
from kern_events.batch import event_of
from kern_events.codec import MAX_BATCH
from kern_events.delta import apply_ops, is_same, state_ops
from kern_events.errors import (
    InvalidEvent,
    SessionDeleted,
    StoreBusy,
    StoreError,
    StoreFull,
    StoreUnavailable,
    VersionConflict,
)
from kern_events.numbers import LARGEST
from kern_events.store import sql
from kern_events.store.forks import ForkLock
from projections.paths import events_on

if TYPE_CHECKING:
    from projections.sessions import Sessions

T = TypeVar("T")

logger: Final = logging.getLogger("kern_events.agno")
_ATTEMPTS: Final = 10
_PAGE: Final = 1_000
_REMEMBERED: Final = 10_000
_LEVEL: Final = "READ COMMITTED"
_WHOSE: Final = ("session_type", *OWNERS)
_DENIED: Final = "42501"  # Postgres: insufficient_privilege
_RETRIED: Final = frozenset({"40P01", "40001"})  # Postgres: deadlock, and a serialization failure


class Joining(scoped_session[OrmSession]):
    """Stands for Agno's session factory: within a write of ours, its sessions join the transaction."""

    def __init__(self, factory: scoped_session[OrmSession], current: threading.local) -> None:
        super().__init__(factory.session_factory)
        self.registry = factory.registry
        self._current = current

    def __call__(self, **options: Any) -> OrmSession:
        """A session of Agno's, or one in our transaction."""
        connection = getattr(self._current, "connection", None)
        if connection is None:
            return super().__call__(**options)
        return OrmSession(bind=connection, join_transaction_mode=self._current.mode)


class Recorder:
    """Records what Agno writes to its tables; one for each Db.

    Args:
        sessions: The log.
        engine: Agno's, on whose connections everything is written.
        current: Where each thread has its transaction, for Joining.
        tables: Gives Agno's tables, which it makes where they are missing if it is told to.
        store_run: Agno's own way to write the row of a run.
        has_row: Whether Agno's table of sessions is there, and has a session.
        check: Raises where something has to be done to Agno's tables before any is made.
        delete: Agno's own way to delete a session, with what it keeps of it beside those two tables.
    """

    def __init__(
        self,
        sessions: Sessions,
        engine: Engine,
        current: threading.local,
        tables: Callable[[bool], Tables | None],
        store_run: Callable[[Row, str, str | None, int | None], None],
        has_row: Callable[[str], bool],
        check: Callable[[], None],
        delete: Callable[[str], None],
    ) -> None:
        self.current: Final = current
        self._sessions = sessions
        self._log: SessionLog = sessions
        self._engine = engine
        self._find = tables
        self._store_run = store_run
        self._has_row = has_row
        self._delete_row = delete
        self._check = check
        self._made: Tables | None = None
        self._seen: Tables | None = None  # as they are, of whatever release the log's own may be
        self._shown = Shown(self._log._store)
        self._not_shown: dict[str, int] = {}  # sessions that could not be, at that version
        self._later: dict[tuple[str, str], list[Approval]] = {}  # said of runs that are yet to be stored
        self._setup = ForkLock()
        self._other_level: bool | None = None

    @property
    def tables(self) -> Tables:
        """The tables, made on first use; the same throughout a write."""
        made = getattr(self.current, "tables", None) or self._made
        if made is None:
            with self._setup.lock:
                made = self._made or self._create()
                self._made = made
        return made

    def known(self) -> Tables | None:
        """The tables where rows and log are kept together already: who only reads makes none."""
        known = self.at_hand()
        if known is None:
            known = self._seen = self._looked_for()
        if known is None and self._sessions.namespace in (spi.namespaces(self._sessions) or ()):
            return self.tables  # What the log has is to be shown.
        return known

    def at_hand(self) -> Tables | None:
        """The tables if they are known here already."""
        known: Tables | None = getattr(self.current, "tables", None) or self._made or self._seen
        return known

    def _looked_for(self) -> Tables | None:
        tables = self._find(False)
        if tables is None:
            return None
        with self._engine.connect() as connection:
            return tables if tables.are_there(connection) else None

    def _known_for(self, session_id: str) -> Tables | None:
        """The tables where there may be something of a session to show or to record."""
        return self.known() or (self.tables if self._has_row(session_id) else None)

    def reset(self) -> None:
        """Look at Agno's tables anew, and make what is missing, before the next use."""
        self._shown.reset()
        self._made = self._seen = None

    def set_up(self) -> tuple[int, int]:
        """Make what is missing, and return the schema numbers of the log before and after."""
        self._check()
        numbers = self._migrate()
        self.reset()
        self._made = self._create()
        return numbers

    def _migrate(self) -> tuple[int, int]:
        try:
            return self._sessions.migrate()
        except StoreError as error:
            check_allowed(error)
            raise

    def is_set_up(self) -> bool:
        """Whether Agno's tables, ours beside them and the triggers are there."""
        return self._looked_for() is not None

    def _create(self) -> Tables:
        for _ in range(_ATTEMPTS):
            try:
                return self._try_to_create()
            except DBAPIError as error:  # Another process made the same table, or its schema, at once.
                check_allowed(error)
                logger.info("setting up the tables of %r again", self._sessions.namespace)
        return self._try_to_create()

    def _try_to_create(self) -> Tables:
        self._check()
        self._migrate()
        tables = self._made_by_agno()
        with self._begun() as connection:
            return self._created(connection, tables)

    def _made_by_agno(self) -> Tables:
        tables = self._find(True)
        assert tables is not None
        return tables

    def _created(self, connection: Connection, tables: Tables) -> Tables:
        """Our tables, in this transaction: they are there for all once it is committed."""
        tables.hold(connection)
        if not tables.are_there(connection):  # Else no rights are needed for it.
            tables.create(connection)
        return tables

    # ------------------------------------------------------------------------------------- writing

    def write(
        self,
        session_ids: Sequence[str],
        work: Callable[[Connection, Mapping[str, Held]], T],
        runs: Mapping[str, Sequence[str]] | None = None,
        *,
        new: str | None = None,
        savepoint: bool = False,
    ) -> T:
        """Do Agno's work, and record in the same transaction what became of these sessions.

        Args:
            session_ids: The sessions that the work may change.
            work: Gets the connection, and each session as it is.
            runs: The runs of each session that the work may change, beside those that it says it
                touched (see `touch`).
            new: A run that may have to be given a place, where there is one session.
            savepoint: Whether the work may fail and the transaction go on.

        Raises:
            Whatever the work raises; nothing is written then.
        """
        tables, wanted = self.tables, runs or {}
        within: Connection | None = getattr(self.current, "connection", None)
        if within is not None:  # Agno's own method calls another one: the outer write records it all.
            return work(
                within, {each: tables.held(within, each, wanted.get(each, ()), new) for each in session_ids}
            )

        def attempt(number: int) -> T:
            with self._begun(tables, savepoint=savepoint) as connection:
                found = {
                    each: self._found(connection, each, wanted.get(each, ()), new, careful=number > 0)
                    for each in sorted(session_ids)
                }
                self.current.touched = {}
                done = work(connection, found)
                transaction = connection.get_transaction()
                if transaction is None or not transaction.is_active:
                    raise StoreError("the database refused it, and Agno has caught the error")
                for each, held in found.items():
                    self._record(connection, each, held, wanted.get(each, ()))
            return done

        done = _retried(attempt)
        self._erase_on()
        return done

    def ask(self, question: Question, check: Callable[[Held], None]) -> None:
        """Record what a run is asked, unless that is on record.

        Args:
            question: What it is asked.
            check: Raises where the session takes no such run.

        Raises:
            SessionDeleted: There is no such session any more.
        """
        tables, session_id, run_id = self.tables, question.session_id, question.run_id

        def attempt(number: int) -> None:
            with self._begun(tables) as connection:
                held = self._found(connection, session_id, [run_id], None, careful=number > 0)
                check(held)
                if held.session is None or held.mark is None:
                    raise SessionDeleted(session_id)
                _, _, turns = tables.now(connection, session_id, (), [run_id])
                turn = turns.get(run_id)
                if (turn is not None and turn.asked) or had_messages(held.runs.get(run_id)):
                    return  # By an attempt before this one; or the run has been, and the hook came after.
                place = Place(held.mark.turn, turns, held.mark.system)

                def make(fits: Fits) -> Drafting:
                    drafting = Drafting(session_id, held.session, place, fits)
                    drafting.ask(run_id, question.row, question.content)
                    return drafting

                self._commit(connection, session_id, held.mark, make)

        _retried(attempt)

    def beside(
        self, session_id: str, run_id: str, work: Callable[[], tuple[T, Approval | None]]
    ) -> T:
        """Do Agno's work on another table, and record in the same transaction what it says of a run.

        Of a run that is yet to be stored, and whose turn is not known, it is recorded with the run.
        """
        tables = self.tables

        def attempt(number: int) -> T:
            with self._begun(tables, savepoint=True) as connection:
                held = self._found(connection, session_id, [run_id], None, careful=number > 0)
                done, approval = work()
                if approval is None or not self._record_beside(connection, held, approval):
                    if held.session is None and held.mark is not None and held.mark.version == 0:
                        tables.unclaim(connection, session_id)
                    if approval is not None:
                        self._later.setdefault((session_id, run_id), []).append(approval)
                        if len(self._later) > _REMEMBERED:  # Of runs that were never stored.
                            del self._later[next(iter(self._later))]
            return done

        return _retried(attempt)

    def _record_beside(self, connection: Connection, held: Held, approval: Approval) -> bool:
        """Record what is said of a run; False if that has to wait for the run."""
        session_id, run_id, drafts = approval
        mark, row = held.mark, held.session
        if mark is None or row is None:
            return False
        _, _, turns = self.tables.now(connection, session_id, (), [run_id])
        if run_id not in turns and row.get("session_type") != "agent":
            return False  # It may be one within a run of a team.
        whose = {"agent_id": row.get("agent_id")}

        def make(fits: Fits) -> Drafting:
            drafting = Drafting(session_id, row, Place(mark.turn, turns, mark.system), fits)
            drafting.beside(run_id, whose, drafts)
            return drafting

        self._commit(connection, session_id, mark, make)
        return True

    def has_recorded(self, session_id: str, type: str, approval_id: str) -> bool:
        """Whether an event of a type says this approval, or will with its run."""
        for (owner, _), waiting in self._later.items():
            drafts = (draft for approval in waiting for draft in approval.drafts)
            if owner == session_id and any(each.payload.get("approval_id") == approval_id for each in drafts):
                return True
        store, namespace, before = self._log._store, self._sessions.namespace, LARGEST
        while row := store.newest_of(namespace, session_id, [type] * 5, before):
            payload = event_of(namespace, session_id, row).payload
            if isinstance(payload, dict) and payload.get("approval_id") == approval_id:
                return True
            before = row[0]
        return False

    def touch(self, session_id: str, run_id: str, parent_run_id: str | None = None) -> None:
        """Say, within the work, that it writes a run that was not there before."""
        self.current.touched.setdefault(session_id, {})[run_id] = parent_run_id

    def read(self, session_id: str, work: Callable[[], T]) -> tuple[T, int | None]:
        """Let Agno read; first, if the log has gone on without the rows, they are made to show it.

        Returns:
            What was read, and the version of the last restore or deletion before that: 0 if there was none,
            None if that is not known.
        """
        if getattr(self.current, "connection", None) is not None:
            return work(), None  # Within a write, which has done that.
        tables = self.known()
        if tables is None:
            return work(), 0  # The log has nothing of this table.
        if (found := self._try_to_read(tables, session_id, work, shown=True)) is None:
            self._bring_together(session_id)
            found = self._try_to_read(tables, session_id, work, shown=False)
        assert found is not None
        return found

    def _try_to_read(
        self, tables: Tables, session_id: str, work: Callable[[], T], *, shown: bool
    ) -> tuple[T, int | None] | None:
        """What Agno reads, and of when; None where only what shows the log is to be read, and it does not."""
        with self._begun(tables, reading=True) as connection:
            look = tables.look(connection, session_id)
            if shown and not (look.is_deleted_by_others or look.is_shown):
                return None
            return work(), look.branch

    def is_erased_since(self, session_id: str, version: int) -> bool:
        """Whether the log has a deletion of a session after a version."""
        return lineage.erased_until(self._log._store, self._sessions.namespace, session_id) > version

    def settle(self, session_id: str, *, erasing: bool = False) -> bool:
        """Before the log is read: what the rows have and the log does not is recorded too.

        Args:
            session_id: The session.
            erasing: Where others have deleted it, erase it in the log: not for who only reads.

        Returns:
            False if others have deleted it, and the log still has it.
        """
        tables = self._known_for(session_id)
        if tables is None:
            return True
        with self._engine.connect() as connection:
            look = tables.look(connection, session_id)
        if look.mark is None or not look.mark.is_of(look.version, has_row=look.has_row):
            return self._bring_together(session_id, erasing=erasing)
        return True

    def take_over(
        self, session_id: str, *, erasing: bool = False, within: Connection | None = None
    ) -> None:
        """Before the log goes on: what the rows have and the log does not is recorded first.

        What the log has and the rows do not stays so, until they are asked for.

        Args:
            session_id: The session.
            erasing: As for settle.
            within: The caller's transaction, where there is one.
        """
        if getattr(self.current, "connection", None) is not None:
            return
        if within is not None:
            if self._looked_for() or self._has_row(session_id):
                made = self._made or self._created(within, self._made_by_agno())
                with self._joined(within, made, is_callers=True):
                    self._found(within, session_id, (), None, careful=True, erasing=erasing)
            return
        tables = self._known_for(session_id)
        if tables is None:
            return
        with self._engine.connect() as connection:
            look = tables.look(connection, session_id)
        if look.is_ahead_of_the_log:
            self._bring_together(session_id, erasing=erasing)

    def _bring_together(self, session_id: str, *, erasing: bool = False) -> bool:
        """As settle, whatever it looks like."""

        def attempt(number: int) -> bool:
            with self._begun(self.tables) as connection:
                held = self._found(connection, session_id, (), None, careful=True, erasing=erasing)
                if held.session is None and held.mark is not None and held.mark.version == 0:
                    self.tables.unclaim(connection, session_id)
                return held.mark is None or held.mark.changed != DELETED

        there = _retried(attempt)
        self._erase_on()
        return _retried(attempt) if there and step_back(self._log, session_id) else there

    @contextmanager
    def _begun(
        self, tables: Tables | None = None, *, savepoint: bool = False, reading: bool = False
    ) -> Iterator[Connection]:
        """A transaction that Agno's sessions of this thread join."""
        with self._engine.connect() as connection:
            if self._is_other_level(connection):
                connection = connection.execution_options(isolation_level=_LEVEL)
            with connection.begin() as transaction:
                if self._engine.dialect.name == "sqlite" and not reading and not _is_begun(connection):
                    connection.exec_driver_sql(sql.SQLITE_OVERWRITES.format(1))
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                last: list[Asked] = []
                self.current.last = last
                with self._joined(connection, tables, savepoint=savepoint):
                    yield connection
                if last:
                    (tables or self.tables).end(connection, transaction, last)

    @contextmanager
    def _joined(
        self,
        connection: Connection,
        tables: Tables | None = None,
        *,
        savepoint: bool = False,
        is_callers: bool = False,
    ) -> Iterator[None]:
        """Have Agno's sessions of this thread join a transaction."""
        self.current.connection, self.current.tables = connection, tables
        self.current.is_callers = is_callers
        self.current.mode = "create_savepoint" if savepoint else "rollback_only"
        try:
            yield
        finally:
            self.current.connection = self.current.tables = None

    def _is_other_level(self, connection: Connection) -> bool:
        """Whether Agno's engine has transactions of another kind than the log can join; asked once."""
        if self._other_level is None:
            is_postgres = self._engine.dialect.name == "postgresql"
            driver: Any = connection.connection.driver_connection
            self._other_level = is_postgres and (
                connection.get_isolation_level() != _LEVEL or driver.autocommit  # Which has no level.
            )
            connection.rollback()
        return self._other_level

    def _found(
        self,
        connection: Connection,
        session_id: str,
        run_ids: Sequence[str],
        new: str | None,
        *,
        careful: bool,
        erasing: bool = True,
    ) -> Held:
        """A session as it is, in the log as in its rows.

        That the log has not gone on alone is only looked at when `careful`: where it has, the append is
        refused, and the write is done again with care. `erasing` is that of settle.
        """
        tables, wanted = self.tables, (session_id, run_ids, new, self._log._holding(session_id))
        claimed = False
        held = tables.held(connection, *wanted)
        if held.session is None:
            held, claimed = tables.begun(connection, *wanted)
        known = None if claimed else held.mark
        has_row = held.session is not None
        if known and not careful and known.version >= 0 and known.is_of(known.version, has_row=has_row):
            return held
        if known is None and not claimed and not tables.claim(connection, session_id):
            known = tables.held(connection, *wanted).mark
        mark = self._settled(connection, session_id, known, held.session, erasing=erasing)
        if mark == Mark(0, 0, changed=NO_ROW):
            return held._replace(mark=mark)  # There is nothing anywhere.
        return tables.held(connection, *wanted)._replace(mark=mark)

    def _record(self, connection: Connection, session_id: str, held: Held, wanted: Sequence[str]) -> None:
        """The difference between before and now, as events, and that the rows show them."""
        owners: dict[str, str | None] = dict.fromkeys(wanted)
        owners |= {run_id: row.get("parent_run_id") for run_id, row in held.runs.items()}
        owners |= self.current.touched.get(session_id, {})
        run_ids, above = list(owners), sorted({each for each in owners.values() if each})
        after, rows, turns = self.tables.now(connection, session_id, run_ids, above)
        mark = held.mark or Mark(0, 0)
        if after is None:
            if held.session is not None:
                self._delete(connection, session_id)
            elif mark.version == 0:
                self.tables.unclaim(connection, session_id)
            return
        parents = {row["parent_run_id"] for row in rows.values() if row.get("parent_run_id")}
        if missing := sorted(parents.difference(above, run_ids)):
            turns |= self.tables.now(connection, session_id, (), missing)[2]
        changes = [RunChange(each, held.runs.get(each), rows.get(each)) for each in run_ids]
        changes = [change for change in changes if change.before is not None or change.after is not None]
        place = Place(mark.turn, {**held.turns, **turns}, mark.system)

        def make(fits: Fits) -> Drafting:
            drafting = Drafting(session_id, held.session, place, fits)
            drafting.change(after, changes)
            for approval in waiting:
                drafting.beside(approval.run_id, {}, approval.drafts)
            return drafting

        waiting = [each for change in changes for each in self._later.get((session_id, change.run_id), ())]
        self._commit(connection, session_id, mark, make, held.head)
        for approval in waiting:
            self._later.pop((session_id, approval.run_id), None)
        if any(change.after is None for change in changes):
            self.tables.forget_deleted(connection, session_id)

    def _commit(
        self,
        connection: Connection,
        session_id: str,
        mark: Mark,
        make: Callable[[Fits], Drafting],
        head: Sequence[Any] | None = None,
    ) -> Mark:
        """Append what a drafting gives, without what the guard refuses where it refuses something.

        With the `head` of a write of ours, the transaction ends with it: what was appended is noted then.
        """
        drafting = make(anything)
        try:
            # The first batch is guarded before anything is written, so the others have to be too.
            for start in range(MAX_BATCH, len(drafting.drafts), MAX_BATCH):
                list(self._log._batches(session_id, drafting.drafts[start : start + MAX_BATCH]))
            version = self._append(connection, session_id, drafting.drafts, mark.version, head)
        except InvalidEvent:
            drafting = make(fits_within(self._log, session_id))
            version = self._append(connection, session_id, drafting.drafts, mark.version, head)
        after = Mark(version, drafting.turn, drafting.system)
        if head is None:
            self.tables.note(connection, session_id, after, drafting.turns)
        else:
            self.current.last += self.tables.noting(session_id, after, drafting.turns)
        return after

    def _append(
        self,
        connection: Connection,
        session_id: str,
        drafts: Sequence[Draft],
        version: int,
        head: Sequence[Any] | None = None,
    ) -> int:
        for batch in self._log._batches(session_id, drafts):
            version = self._log._within(connection, batch, version, head).receipt.version
            head = None  # It is past that now.
        return version

    def _delete(self, connection: Connection, session_id: str) -> Mark:
        """The session is gone from Agno's tables: its content goes from the log, its chain stays.

        In a transaction of ours, what is left of a long one goes after it: see _erase_on.
        """
        self._log._delete_within(connection, session_id, whole=self.current.is_callers)
        self.current.deleted = None if self.current.is_callers else session_id
        self.tables.forget(connection, session_id)
        self._outdate_forks(connection, session_id)
        return self._noted(connection, session_id, NO_ROW)

    def _erase_on(self) -> None:
        """After a transaction that has deleted a session: erase what it has left, while others write."""
        if deleted := getattr(self.current, "deleted", None):
            self.current.deleted = None
            self._log._erase_on(deleted)

    def leave_nothing(self) -> None:
        """After a deletion on a connection of Agno's: empty the WAL, if nobody is in the way."""
        if self._engine.dialect.name != "sqlite":
            return
        with self._engine.connect() as connection, suppress(sqlite3.Error):  # The deletion itself is done.
            driver: Any = connection.connection.driver_connection
            waited = driver.execute(sql.SQLITE_BUSY_WAIT).fetchone()[0]
            try:
                driver.execute(sql.SQLITE_BUSY_TIMEOUT.format(0))
                driver.execute(sql.SQLITE_CHECKPOINT).fetchall()
            finally:
                driver.execute(sql.SQLITE_BUSY_TIMEOUT.format(waited))

    def _outdate_forks(self, connection: Connection, session_id: str) -> None:
        """What forks share with a deleted session is erased for them too, which their rows have to show."""
        self.tables.outdate(connection, spi.descendants(self._sessions, session_id))

    def _noted(
        self, connection: Connection, session_id: str, changed: int, turns: Mapping[str, Turn] | None = None
    ) -> Mark:
        """The rows show what the log has now."""
        head = self._log._head_within(connection, session_id)
        mark = Mark(head.version, head.turn, changed=changed)
        self.tables.note(connection, session_id, mark, turns or {})
        return mark

    # ------------------------------------------------------------------------ log and rows together

    def _settled(
        self,
        connection: Connection,
        session_id: str,
        mark: Mark | None,
        session: Row | None,
        *,
        erasing: bool,
    ) -> Mark:
        """Bring rows and log together: what others wrote is recorded, what others recorded is shown.

        A row that is not there says nothing: only what a trigger has noted is a deletion.
        """
        head = self._log._head_within(connection, session_id)
        if mark is not None and mark.is_of(head.version, has_row=session is not None):
            return mark
        if mark is None and session is None and (head.version == 0 or head.status == "deleted"):
            return self._noted(connection, session_id, NO_ROW) if head.version else Mark(0, 0, changed=NO_ROW)
        if head.status == "deleted" and mark is not None and 0 <= mark.version < head.version:
            return self._project(connection, session_id, head, session)  # What was written since goes, too.
        if mark is not None and mark.changed == DELETED and not self._is_begun_since(session_id, mark):
            if not erasing:
                return mark
            mark = self._delete(connection, session_id)
            if session is None:
                return mark
            head = self._log._head_within(connection, session_id)  # Somebody has begun it again.
        if session is not None and (mark is None or mark.changed != AS_NOTED):
            if mark is not None and mark.changed == CHANGED and 0 < mark.version < head.version:
                session = self._rebased(connection, session_id, mark.version, head, session)
            return self._adopt(connection, session_id, head, session)
        return self._project(connection, session_id, head, session)

    def _is_begun_since(self, session_id: str, mark: Mark) -> bool:
        """Whether the log has a deletion since the rows were noted: then theirs is no other one."""
        return mark.version > 0 and self.is_erased_since(session_id, mark.version)

    def _rebased(
        self, connection: Connection, session_id: str, version: int, head: Head, session: Row
    ) -> Row:
        """Rows and log have both gone on: what others changed in the rows, on what the log says now."""
        tables = self.tables
        then, now = self._stored(session_id, head, version), self._stored(session_id, head)
        if then.session is None or now.session is None:
            return session
        rows, merged = tables.run_rows(connection, session_id), dict(now.runs)
        deleted = tables.deleted_runs(connection, session_id)
        for run_id in {**then.runs, **rows}:
            old, new = then.runs.get(run_id), rows.get(run_id)
            if new is None:
                if run_id in deleted:
                    merged.pop(run_id, None)
            elif old is None or not is_same(old, new):
                merged[run_id] = new
        row = apply_ops(now.session, state_ops(then.session, session))
        tables.write_session(connection, session_id, row)
        tables.write_runs(connection, session_id, merged)
        tables.note_deleted(connection, session_id, [each for each in now.runs if each not in merged])
        return row

    def _stored(self, session_id: str, head: Head, version: int | None = None) -> Stored:
        """What the log says is stored, now or at a version."""
        fold, until = Fold(Stored()), head.version if version is None else version
        if until and head.status != "deleted":
            for page in events_on(self._sessions, spi.live_path(self._sessions, session_id, until)):
                for event in page.events:
                    fold.take(event)
        return fold.finish()

    def _project(self, connection: Connection, session_id: str, head: Head, session: Row | None) -> Mark:
        """Make the rows what the log says. What is no session of Agno's has none."""
        tables = self.tables
        stored = self._stored(session_id, head)
        if head.status == "deleted":
            self._outdate_forks(connection, session_id)
            if session is not None:
                self._delete_row(session_id)
        row = stored.session
        if row is None:
            if session is not None or head.status == "deleted":
                tables.write_runs(connection, session_id, {})
                connection.execute(tables.sessions.delete().where(tables.sessions.c.session_id == session_id))
            return self._noted(connection, session_id, NO_ROW, stored.turns)
        if row.get("session_type") is None:
            known = session or self._parents_row(connection, session_id)
            row = self._known_by_its_row(connection, session_id, head, row, known) if known else row
        if tables.can_show(row):
            tables.write_session(connection, session_id, row)
            tables.write_runs(connection, session_id, stored.runs)
            session = row
        return self._noted(connection, session_id, NO_ROW if session is None else AS_NOTED, stored.turns)

    def _parents_row(self, connection: Connection, session_id: str) -> Row | None:
        parent = self._log._store.lineage(self._sessions.namespace, session_id).parent
        return None if parent is None else self.tables.session(connection, parent)

    def _known_by_its_row(
        self, connection: Connection, session_id: str, head: Head, row: Row, session: Row
    ) -> Row:
        """What a session is goes with an erasure in what it was forked from; its row, or that one's, says it.

        What else the row has of before the erasure goes, too.
        """
        gone = {key: None for key in session if key not in row}
        kept = gone | {key: session.get(key) for key in _WHOSE if session.get(key) is not None}
        ops = [["set", [key], value] for key, value in kept.items()]
        draft = with_native(Draft(SESSION_CHANGED, {}), {"session": ops})
        self._append(connection, session_id, draft, head.version)
        return {**row, **kept}

    def _adopt(self, connection: Connection, session_id: str, head: Head, after: Row) -> Mark:
        """Record what is in the rows and not in the log: a session from before, or others' writes."""
        tables = self.tables
        self._move_legacy_runs(connection, session_id, after)
        stored = self._stored(session_id, head)
        rows, deleted = tables.run_rows(connection, session_id), tables.deleted_runs(connection, session_id)
        missing = {each: row for each, row in stored.runs.items() if each not in rows}
        tables.add_runs(connection, session_id, {e: row for e, row in missing.items() if e not in deleted})
        gone = [RunChange(each, row, None) for each, row in missing.items() if each in deleted]
        changes = [*gone, *(RunChange(each, stored.runs.get(each), row) for each, row in rows.items())]

        def make(fits: Fits) -> Drafting:
            drafting = Drafting(session_id, stored.session, Place(head.turn, stored.turns), fits)
            adopt(drafting, stored.session, after, changes)
            return drafting

        tables.forget(connection, session_id)
        mark = self._commit(connection, session_id, Mark(head.version, head.turn), make)
        tables.note(connection, session_id, mark, stored.turns)
        return mark

    def _move_legacy_runs(self, connection: Connection, session_id: str, session: Row) -> None:
        """Runs of before Agno 3 become rows, ahead of those that are rows already."""
        tables = self.tables
        legacy = {str(run.get("run_id")): run for run in tables.legacy_runs(connection, session_id)}
        rows = tables.run_rows(connection, session_id) if legacy else {}
        missing = {run_id: run for run_id, run in legacy.items() if run_id not in rows}
        first = min((row["run_index"] or 0 for row in rows.values()), default=len(missing))
        for index, run in enumerate(missing.values(), min(0, first - len(missing))):
            self._store_run(run, session_id, session.get("user_id"), index)

    def _try_to_adopt(self, session_id: str, *, erasing: bool = False) -> bool:
        """As settle; one session that cannot be recorded or shown is no reason to stop at the others."""
        try:
            self._bring_together(session_id, erasing=erasing)
        except InvalidEvent as error:  # An id that the log cannot have.
            logger.error("a session cannot be recorded: %s: %s", error.path, error.reason)
            return False
        except (StoreBusy, StoreFull, StoreUnavailable):
            raise
        except Exception as error:  # Its text may be content: a database quotes the row that it refuses.
            logger.error("session %r cannot be shown in Agno's tables: %s", session_id, type(error).__name__)
            return False
        return True

    def show_all(self) -> None:
        """Before Agno lists: what the log has gone on with alone, shows in the rows."""
        tables = self.known()
        if tables is None:
            return
        now = self._shown.now()
        with self._engine.connect() as connection:
            moved = self._shown.moved(tables, connection, now)
        for each in moved:
            if each.status != "deleted":
                self._show(each.session_id, each.version)
                continue
            # Forks do not move by it, and lose what they shared.
            for session_id in (each.session_id, *spi.descendants(self._sessions, each.session_id)):
                with self._engine.connect() as connection:
                    look = tables.look(connection, session_id)
                if not (look.is_shown or look.is_deleted_by_others):
                    self._show(session_id, look.version)
        self._shown.reach(now)

    def _show(self, session_id: str, version: int) -> None:
        if self._not_shown.get(session_id) == version:
            return  # It would not be now either.
        if not self._try_to_adopt(session_id):
            self._not_shown[session_id] = version
            if len(self._not_shown) > _REMEMBERED:
                del self._not_shown[next(iter(self._not_shown))]

    def read_run(self, run_id: str, work: Callable[[], T]) -> T:
        """As read, of the session that a run is of."""
        tables = self.known()
        if tables is None or getattr(self.current, "connection", None) is not None:
            return work()
        with self._engine.connect() as connection:
            found = tables.sessions_of(connection, [run_id])
        if run_id in found:
            return self.read(found[run_id], work)[0]
        self.show_all()  # It may be one that was abandoned, and counts again.
        return work()

    def adopt_all(self, progress: Callable[[int], None] | None = None) -> int:
        """Bring all sessions of the table together with the log; returns how many are."""
        self.show_all()
        done, after = 0, ""
        while True:
            with self._engine.connect() as connection:
                page = self.tables.session_ids(connection, after, _PAGE)
            for session_id in page:
                done += self._try_to_adopt(session_id, erasing=True)
                if progress:
                    progress(done)
            if len(page) < _PAGE:
                break
            after = page[-1]
        after = ""
        while True:  # Sessions that others deleted.
            with self._engine.connect() as connection:
                page = self.tables.marked_ids(connection, after, _PAGE)
            for session_id in page:
                self._try_to_adopt(session_id, erasing=True)
            if len(page) < _PAGE:
                break
            after = page[-1]
        self.show_all()  # Forks of what others have deleted.
        self.leave_nothing()
        return done


def adopt(drafting: Drafting, before: Row | None, after: Row, changes: Sequence[RunChange]) -> None:
    """The drafts of rows that were written without us, run by run, each with the state that it tells."""
    first = next((change for change in changes if change.before is None), None)
    if before is None and first is not None:
        drafting.change(_with_state(after, {}), [])
    for change in changes:
        row = change.after
        data = row.get("run_data") if row else None
        state = data.get("session_state") if isinstance(data, dict) else None
        begins = change.before is None and row is not None and not row.get("parent_run_id")
        if before is None and begins and isinstance(state, dict):
            drafting.change(_with_state(after, state), [change])
        else:
            drafting.run(change)
    drafting.change(after, [])


def _with_state(session: Row, state: Row) -> Row:
    """The session's row as it was with another state; a session without state stays one."""
    if state_of(session) is None:
        return session
    return apply_ops(session, [["set", ["session_data", "session_state"], state]])


def _retried(attempt: Callable[[int], T]) -> T:
    """What an attempt gives, tried again where somebody came between."""
    for number in range(_ATTEMPTS - 1):
        try:
            return attempt(number)
        except Exception as error:
            if not _is_retried(error):
                raise
    return attempt(_ATTEMPTS - 1)


def check_allowed(error: Exception) -> None:
    """Say what to do where this role may not make what is missing.

    Raises:
        StoreError: That is what the error says.
    """
    causes = (error, getattr(error, "orig", None), error.__cause__)
    if any(getattr(each, "sqlstate", None) == _DENIED for each in causes):
        raise StoreError(
            "tables are missing or of an earlier release, and this role may not make them: "
            "run `kern-events migrate --agno --db URL` with one that may"
        ) from error


def _is_retried(error: Exception) -> bool:
    """Whether an error only says that somebody came between."""
    if isinstance(error, VersionConflict):
        return True
    causes = (error, getattr(error, "orig", None), error.__cause__)
    return any(getattr(each, "sqlstate", None) in _RETRIED for each in causes)


def _is_begun(connection: Connection) -> bool:
    driver: Any = connection.connection.driver_connection
    return bool(driver.in_transaction)
