"""The methods of Agno's Db classes that write sessions and runs: Agno's own, recorded.

`KernDb` is mixed in before SqliteDb or PostgresDb. It changes neither what Agno writes nor what it reads,
with three exceptions that are its purpose: a session is written as what changed since it was read, a new
run is written with the session that it changed, and a run that is new comes after those that are there.
"""

from __future__ import annotations

import copy
import inspect
import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from agno.db.utils import deserialize_session
from agno.run.base import RunStatus
from agno.run.concurrency import is_worker_managed
from agno.session.workflow import WorkflowSession
from cachetools import LRUCache
from sqlalchemy import URL, Table, select
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, StatementError

from kern_events.adapters.agno.approving import Approving, is_id
from kern_events.adapters.agno.asking import Hook, Question, question
from kern_events.adapters.agno.folding import Row
from kern_events.adapters.agno.legacy import check_migrated
from kern_events.adapters.agno.media import data_of, has_media, leaves_out_media
from kern_events.adapters.agno.merging import merged_data, merged_object
from kern_events.adapters.agno.outline import Outline
from kern_events.adapters.agno.recorder import Joining, Recorder
from kern_events.adapters.agno.sessions import AgnoSessions
from kern_events.adapters.agno.tables import UNDER_WAY, Held, Tables
from kern_events.codec import LARGEST_PAYLOAD_BYTES
from kern_events.delta import state_ops
from kern_events.errors import InvalidEvent, OwnerMismatch, SessionDeleted
from kern_events.store.forks import ForkLock, close_before_forks, leave_to_parent
from kern_events.store.sqlite_file import path_of

if TYPE_CHECKING:
    from collections.abc import Iterable

logger: Final = logging.getLogger("kern_events.agno")
OnError = Callable[["NotStored"], None]
Serialise = Callable[[Any], str]
Written = tuple[Any, Outline, str | None]  # a run that was stored with its session, as it was, and its user

_MERGED: Final = ("session_data", "metadata", "agent_data", "team_data", "workflow_data")
_REMEMBERED: Final = 256  # runs written with their session, and sessions not found, until they are written
_NOTHING: Final = "{}"
_OWN_PATHS: Final = frozenset({"session_id", "namespace"})


class Place(NamedTuple):
    """Where the log of a Db is."""

    address: str | URL | Engine
    namespace: str
    schema: str | None = None


class NotStored(BaseException):
    """Agno's data could not be stored, so its answer must not pass for one that was.

    Agno catches every Exception around its writes, logs it and answers as if it had stored them. So this
    is none: it goes through. The error itself is its `__cause__`.

    Attributes:
        operation: The method of the Db.
        session_id: The session.
        run_id: The run, where it was the write of one.
    """

    def __init__(self, operation: str, session_id: str, run_id: str | None, error: BaseException) -> None:
        self.operation, self.session_id, self.run_id = operation, session_id, run_id
        whose = f"session {session_id!r}" + (f", run {run_id!r}" if run_id else "")
        super().__init__(f"{operation} stored nothing of {whose}: {_reason(error)}")


def _reason(error: BaseException) -> str:
    """What went wrong, without what was said: a database quotes the row that it refuses."""
    if isinstance(error, DBAPIError):
        error = error.orig or error
        said = getattr(getattr(error, "diag", None), "message_primary", None)
        text = said if isinstance(said, str) else str(error) if isinstance(error, sqlite3.Error) else ""
    else:
        if isinstance(error, StatementError) and error.orig is not None:  # Of a value on its way there.
            error = error.orig
        text = str(error)
        if isinstance(error, InvalidEvent):  # A path into a payload has its keys, which are content.
            text = f"{error.path}: {error.reason}" if error.path in _OWN_PATHS else error.reason
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class _Base:
    """What a session object was when it was read: the row as text, and its runs. Copies share it.

    `branch` says of which life of the session: the version of its last restore or deletion. None is that of
    a session that was not there, or where that is not known.
    """

    __slots__ = ("_ids", "_runs", "branch", "db", "session_id", "text")

    def __init__(
        self, db: KernDb, session_id: str, text: str, runs: Iterable[Any], branch: int | None
    ) -> None:
        self.db, self.session_id, self.text, self.branch = db, session_id, text, branch
        self.know(runs)

    def know(self, runs: Iterable[Any]) -> None:
        """These are its runs now."""
        self._runs = list(runs)  # The objects themselves, so that no other gets their id().
        self._ids: Set[int] | None = None

    def had(self, at: int, run: Any) -> bool:
        """Whether the run at a place was this one, as another object."""
        return at < len(self._runs) and getattr(self._runs[at], "run_id", None) == run.run_id

    @property
    def ids(self) -> Set[int]:
        """The id() of each of its runs; they are many, so they are looked at once, and only by who asks."""
        if self._ids is None:
            self._ids = frozenset(map(id, self._runs))
        return self._ids


class KernDb(Approving):
    """Mixed into a Db class of Agno's: what it writes to its two tables is recorded.

    Attributes:
        write_errors: How many writes were not stored.
        shared: Whether runs of others than the user whose session it is are recorded in it.
    """

    write_errors: int
    shared: bool

    def _begin(self, on_error: OnError | None, shared: bool) -> None:
        """After Agno's own constructor; the log is opened by what needs it first."""
        this: Any = self
        self.write_errors = 0
        self.shared = shared
        self._on_error = on_error
        self._lock = ForkLock()
        self._written: LRUCache[tuple[str, str], Written] = LRUCache(_REMEMBERED)
        self._updated: LRUCache[str, tuple[Any, str]] = LRUCache(_REMEMBERED)
        self._missed: LRUCache[str, int] = LRUCache(_REMEMBERED)
        self._log: tuple[AgnoSessions, Recorder] | None = None
        self._current = threading.local()
        # As the engine was made with, so that what it makes of a value is what we see, too.
        self._serialise: Serialise = this.db_engine.dialect._json_serializer or json.dumps
        this.Session = Joining(this.Session, self._current)
        if this.db_engine.dialect.name == "sqlite":
            close_before_forks(this.db_engine, path_of)
        else:
            leave_to_parent(this.db_engine)

    def _place(self) -> Place:
        """Where the log is; ValueError where there cannot be one."""
        raise NotImplementedError

    @property
    def sessions(self) -> AgnoSessions:
        """The log of this session table."""
        return self._opened()[0]

    @property
    def _kern(self) -> Recorder:
        return self._opened()[1]

    def _opened(self) -> tuple[AgnoSessions, Recorder]:
        made = self._log
        if made is None:
            with self._lock.lock:
                made = self._log = self._log or self._open()
        return made

    def _open(self) -> tuple[AgnoSessions, Recorder]:
        this: Any = self
        address, namespace, schema = self._place()
        limit = LARGEST_PAYLOAD_BYTES
        sessions = AgnoSessions(
            address, durable=False, namespace=namespace, schema=schema, max_payload_bytes=limit
        )
        recorder = Recorder(
            sessions,
            this.db_engine,
            self._current,
            self._agno_tables,
            self._store_run,
            self._has_row,
            lambda: check_migrated(this),
            self._delete_row,
        )
        sessions.bind(recorder)
        return sessions, recorder

    def _invalidate_table_cache(self, table_name: str) -> None:
        """A migration of Agno's has changed a table."""
        this: Any = super()
        this._invalidate_table_cache(table_name)
        if self._log is not None:
            self._log[1].reset()

    def _agno_tables(self, make: bool) -> Tables | None:
        this: Any = self
        found = [this._get_table(table_type=name) for name in ("sessions", "runs")]
        if None in found and make:
            found = [
                this._get_table(table_type=name, create_table_if_not_found=True)
                for name in ("sessions", "runs")
            ]
        if None in found:
            return None
        sessions, runs = found
        return Tables(this.db_engine, sessions, runs, self.sessions.namespace)

    def _has_row(self, session_id: str) -> bool:
        return self._row_of(session_id) is not None

    def _row_of(self, session_id: str) -> Any:
        """A session's row in Agno's table, which need not be there, as Agno reads it."""
        this: Any = self
        table = this._get_table(table_type="sessions")
        if table is None:
            return None
        with this.db_engine.connect() as connection:
            asked = select(table.c.user_id).where(table.c.session_id == session_id)
            return connection.execute(asked).first()

    def _delete_row(self, session_id: str) -> None:
        this: Any = super()
        this.delete_session(session_id)

    def _store_run(self, run: Row, session_id: str, user_id: str | None, index: int | None) -> None:
        this: Any = super()
        this.upsert_run(run, session_id, user_id, index)

    def close(self) -> None:
        """Close the log's connections and Agno's."""
        this: Any = super()
        if self._log is not None:
            self._log[0].close()
        this.close()

    def adopt(self, progress: Callable[[int], None] | None = None) -> int:
        """Record what is in Agno's tables and not in the log; returns how many sessions are in both then.

        Happens by itself before the first write to a session. Doing it at once makes old sessions
        readable through `sessions` too, and records what a plain Db wrote meanwhile.

        Args:
            progress: Called with the number of sessions done.
        """
        return self._kern.adopt_all(progress)

    def set_up(self) -> tuple[int, int]:
        """Make, by a role that may, what is missing: Agno's two tables, the log, ours and the triggers.

        Happens by itself before the first write. As `kern-events migrate --agno` does it, what is not as
        it was made is mended, too.

        Returns:
            The schema numbers of the log before and after.

        Raises:
            MigrationRequiredError: Agno's own migrations come first.
            StoreError: Something cannot be made by this role.
        """
        return self._kern.set_up()

    def detach(self) -> None:
        """Take our triggers off Agno's tables; the log stays, and goes on when a Kern class is used again."""
        tables = self._kern.tables
        with self._kern._begun(tables) as connection:
            tables.drop(connection)
        self._kern.reset()

    # ------------------------------------------------------------------------------------- reading

    def get_session(self, session_id: str, *args: Any, **options: Any) -> Any:
        """See Agno; a restore or an import of the log shows at once."""
        this: Any = super()
        session, branch = self._kern.read(
            session_id, lambda: this.get_session(session_id, *args, **options)
        )
        if session is not None:
            return self._based(session, branch)
        self._note_missing(session_id, options["user_id"] if "user_id" in options else (*args, None, None)[1])
        return None

    def _note_missing(self, session_id: str, user_id: str | None) -> None:
        """A session was not there: who writes it next has begun it, maybe beside others who do so too."""
        row = self._row_of(session_id)
        # Somebody may have begun it since; if it is another user's, it was there, and not for this one.
        if row is None or user_id is None or row.user_id in (None, user_id):
            with self._lock.lock:
                self._missed[session_id] = self._missed.get(session_id, 0) + 1

    def get_sessions(self, *args: Any, **options: Any) -> Any:
        """See Agno; what was restored, forked or deleted elsewhere shows at once.

        A session of which Agno cannot make an object is left out and logged; it is where it was.
        """
        this: Any = super()
        self._kern.show_all()
        found = _listed(this.get_sessions, args, options)
        if isinstance(found, list):
            for session in found:
                self._based(session)
        return found

    def get_run(self, run_id: str, *args: Any, **options: Any) -> Any:
        """See Agno; what was restored, forked or deleted elsewhere shows at once."""
        this: Any = super()
        return self._kern.read_run(run_id, lambda: this.get_run(run_id, *args, **options))

    def get_runs(self, session_id: str | None = None, *args: Any, **options: Any) -> Any:
        """See Agno and get_run."""
        this: Any = super()

        def work() -> Any:
            return this.get_runs(session_id, *args, **options)

        if session_id is not None:
            return self._kern.read(session_id, work)[0]
        self._kern.show_all()
        return work()

    def _get_session_run_rows(self, sess: Any, runs_table: Table, session_id: str) -> list[tuple[str, str]]:
        """See Agno: the text of each run, for its cache of run objects; here read below the ORM."""
        tables = self._kern.at_hand()
        if tables is None:
            this: Any = super()
            return list(this._get_session_run_rows(sess, runs_table, session_id))
        return tables.run_texts(sess.connection(), session_id)

    def _based(self, session: Any, branch: int | None = None) -> Any:
        if session is not None and hasattr(session, "to_dict"):
            text = _read_text(session, self._serialise)
            base = _Base(self, session.session_id, text, session.runs or (), branch)
            session.__dict__["_kern"] = base
        return session

    # ------------------------------------------------------------------------------------- writing

    def upsert_session(self, session: Any, deserialize: bool | None = True) -> Any:
        """See Agno; what others changed since the session was read stays, unless it is the same key."""
        return self._stored(
            "upsert_session",
            session.session_id,
            None,
            lambda: self._upsert_session(session, deserialize),
            lambda: brought(session),
        )

    def _upsert_session(self, session: Any, deserialize: bool | None) -> Any:
        this: Any = super()
        session_id = session.session_id
        base = self._known_base(session)
        unknown = _unknown(session, base)
        fresh = [each for each in unknown if _is_turn(each[1])]
        written: dict[tuple[str, str], Written] = {}
        texts: list[str] = []
        branch: list[int] = []

        def work(connection: Connection, held: Mapping[str, Held]) -> Any:
            before = held[session_id]
            self._check_there(session_id, base, before)
            taken = unknown if base is not None or before.session is None else unknown[-1:]
            self._check_runs(connection, session_id, [run.run_id for _, run in taken], new, before.whose)
            branch[:] = [before.branch]
            written.clear()
            row = session.to_dict(include_runs=False)
            texts[:] = [self._serialise(_said(row))]
            row |= _changes(base, texts[0], before.session)
            done = this.upsert_session(_given(session, row), deserialize=deserialize)
            if done is not None and (base is not None or before.session is None):
                written.update(self._write_new_runs(connection, session, fresh, before))
            return done

        new = fresh[0][1].run_id if len(fresh) == 1 else None
        again = {session_id: [new]} if base is not None and new is not None and base.had(*fresh[0]) else {}
        done = self._kern.write([session_id], work, again, new=new)
        if done is None:
            return None
        with self._lock.lock:
            self._written.update(written)
        self._rebase(session, base, texts[0], branch[0])
        return self._based(done, branch[0]) if deserialize and done is not session else done

    def _check_there(self, session_id: str, base: _Base | None, held: Held) -> None:
        """That a session which was there when it was read has not been deleted since.

        Raises:
            SessionDeleted: It has, whether or not it was begun again.
        """
        if base is None or base.branch is None:
            return
        changed = held.branch > base.branch  # By a restore, or by a deletion.
        if held.session is None or (changed and self._kern.is_erased_since(session_id, base.branch)):
            raise SessionDeleted(session_id)

    def _check_runs(
        self,
        connection: Connection,
        session_id: str,
        run_ids: Sequence[str],
        known: str | None,
        whose: str | None,
    ) -> None:
        """That no run which comes with a session is one of another session, which it would overwrite.

        Args:
            connection: With the transaction.
            session_id: The session.
            run_ids: The runs.
            known: The one whose session has been looked up.
            whose: That session.
        """
        asked = [run_id for run_id in run_ids if run_id != known]
        found = self._kern.tables.sessions_of(connection, asked)
        for run_id, owner in [(known, whose), *found.items()]:
            if owner not in (None, session_id):
                raise _of_another(run_id, owner)

    def _known_base(self, session: Any) -> _Base | None:
        """What the object was when it was read here, if it was; nothing, for a session that was not there."""
        base: _Base | None = session.__dict__.get("_kern")
        if base is None or base.db is not self or base.session_id != session.session_id:
            return self._new(session.session_id)
        with self._lock.lock:
            data, text = self._updated.get(session.session_id, (None, ""))
        if data is not None and data is session.session_data:
            base.text = self._serialise({**json.loads(base.text), "session_data": json.loads(text)})
        return base

    def _note_update(self, session_id: str, data: Any) -> None:
        """Agno has stored the data of a session object on the way: it does not count as a change any more."""
        with self._lock.lock:
            self._written.clear()
            if data is not None:
                self._updated[session_id] = (data, self._serialise(data))

    def _new(self, session_id: str) -> _Base | None:
        """The base of an object for a session that was not there: others may have begun it too."""
        with self._lock.lock:
            missed = self._missed.pop(session_id, 0)
            if missed > 1:
                self._missed[session_id] = missed - 1
        return _Base(self, session_id, _NOTHING, (), None) if missed else None

    def _rebase(self, session: Any, base: _Base | None, text: str, branch: int | None) -> None:
        """The object stands for what was written: what it changes next counts from here."""
        if base is None:
            base = _Base(self, session.session_id, text, (), branch)
        base.text, base.branch = text, branch
        base.know(session.runs or ())
        session.__dict__["_kern"] = base

    def _write_new_runs(
        self, connection: Connection, session: Any, fresh: Sequence[tuple[int, Any]], held: Held
    ) -> dict[tuple[str, str], Written]:
        """Turns that the session object has beyond what was read: stored with the state that they made.

        One that was there goes with the state if it was running: this is a checkpoint of it, or its end.
        """
        this: Any = super()
        tables, session_id, user_id = self._kern.tables, session.session_id, session.user_id
        written = {}
        for index, run in fresh:
            if len(fresh) > 1:
                held = tables.held(connection, session_id, (), run.run_id)
            place: int | None = None
            if held.whose is None:
                place = tables.place(connection, session_id, run.run_id, index, held.last, nested=False)
            elif held.runs.get(run.run_id, {}).get("status") != RunStatus.running.value:
                continue
            elif is_worker_managed(run.run_id):
                continue  # Agno writes it, if no later attempt has taken it over.
            serialised = _serialised(run)
            if isinstance(session, WorkflowSession) and has_media(serialised.to_dict()):
                continue  # Agno stores them elsewhere, or nowhere, on its way to write the run itself.
            self._kern.touch(session_id, run.run_id)
            this.upsert_run(serialised, session_id, user_id, place)
            said = serialised.__dict__
            written[session_id, run.run_id] = (said["_kern_original"], said["_kern_outline"], user_id)
        return written

    def upsert_run(
        self, run: Any, session_id: str, user_id: str | None = None, run_index: int | None = None
    ) -> None:
        """See Agno; a run that is new comes after those that are there, wherever it was thought to be."""
        run_id = run.get("run_id") if isinstance(run, dict) else getattr(run, "run_id", None)
        if run_id is None:
            raise ValueError("Run must have a run_id")
        self._stored(
            "upsert_run",
            session_id,
            run_id,
            lambda: self._upsert_run(run, run_id, session_id, user_id, run_index),
            lambda: [run_id],
        )

    def _upsert_run(
        self, run: Any, run_id: str, session_id: str, user_id: str | None, run_index: int | None
    ) -> None:
        this: Any = super()
        if self._is_written(run, run_id, session_id, user_id):
            return

        def work(connection: Connection, held: Mapping[str, Held]) -> None:
            before, place = held[session_id], run_index
            if before.session is None and before.branch and self._kern.is_erased_since(session_id, 0):
                raise SessionDeleted(session_id)
            self._check_owner(session_id, before.session, user_id)
            if run_id not in before.runs:
                if before.whose is not None:
                    raise _of_another(run_id, before.whose)
                data = run if isinstance(run, dict) else vars(run)
                parent = data.get("parent_run_id")
                given = run_index if run_index is not None else data.get("run_index")
                place = self._kern.tables.place(
                    connection, session_id, run_id, given, before.last, nested=bool(parent)
                )
                self._kern.touch(session_id, run_id, parent)
            given = _serialised(run) if leaves_out_media(run) else run
            this.upsert_run(given, session_id, user_id, place)

        self._kern.write([session_id], work, {session_id: [run_id]}, new=run_id)

    def _is_written(self, run: Any, run_id: str, session_id: str, user_id: str | None) -> bool:
        """Whether a run was stored together with its session, just now, as it is."""
        with self._lock.lock:
            done = self._written.pop((session_id, run_id), None)
        return done is not None and done[0] is run and done[2] == user_id and done[1].is_of(run)

    def _check_owner(self, session_id: str, session: Row | None, user_id: str | None) -> None:
        """That a run is of the user whose session it is, of a session that is nobody's, or of nobody.

        Raises:
            OwnerMismatch: It is another user's, and this Db is not shared.
        """
        owner = None if session is None else session.get("user_id")
        if not self.shared and None not in (owner, user_id) and owner != user_id:
            raise OwnerMismatch(session_id, str(user_id))

    @property
    def asked(self) -> Hook:
        """A hook, as in `pre_hooks=[db.asked]`: puts the question on record before the model is asked.

        Without it a run that dies leaves nothing. For agents and teams; of one within a team or a workflow it
        records nothing. It raises NotStored where the question cannot be stored, and the model is not asked.
        """

        def asked(
            run_input: Any, run_context: Any, session: Any,
            agent: Any = None, team: Any = None, user_id: str | None = None,
        ) -> None:  # fmt: skip
            asking = self._question(run_input, run_context, session, agent or team, user_id)
            if asking is not None:
                if not self._has_stored(session):
                    self.upsert_session(session)
                self._ask(session, asking)

        return asked  # No method: those are copied with their object, where Agno copies an agent.

    def _question(self, run_input: Any, run_context: Any, session: Any, *whose: Any) -> Question | None:
        place = ("asked", session.session_id, run_context.run_id)
        asking: Question | None = self._stored(
            *place, lambda: question(run_input, run_context, session, *whose)
        )
        return asking

    def _has_stored(self, session: Any) -> bool:
        """Whether a session object is of a session that is stored, as far as is known."""
        base: _Base | None = session.__dict__.get("_kern")
        return base is not None and base.db is self and base.branch is not None

    def _ask(self, session: Any, asking: Question) -> None:
        base: _Base | None = session.__dict__.get("_kern")

        def check(held: Held) -> None:
            self._check_there(asking.session_id, base, held)
            self._check_owner(asking.session_id, held.session, asking.row["user_id"])

        self._stored("asked", asking.session_id, asking.run_id, lambda: self._kern.ask(asking, check))

    def upsert_sessions(self, sessions: Any, *args: Any, **options: Any) -> Any:
        """See Agno; all of them or none."""
        this: Any = super()
        ids = list(dict.fromkeys(session.session_id for session in sessions or ()))
        if not ids:
            return this.upsert_sessions(sessions, *args, **options)

        def work(connection: Connection, held: Mapping[str, Held]) -> Any:
            for session in sessions:
                _row_text(session, self._serialise)
            done = this.upsert_sessions(sessions, *args, **options)
            for session_id in ids:  # Agno may have caught what went wrong.
                if self._kern.tables.session(connection, session_id) is None:
                    raise ValueError(f"session {session_id!r} was not stored")
            return done

        done = self._stored(
            "upsert_sessions", ids[0], None, lambda: self._kern.write(ids, work, savepoint=True)
        )
        for session in sessions:
            self._rebase(session, None, _row_text(session, self._serialise), None)
        return done

    def reassign_session_owner(self, session_id: str, **options: Any) -> bool:
        """See Agno."""
        this: Any = super()
        done: bool = self._kern.write(
            [session_id], lambda *_: this.reassign_session_owner(session_id, **options)
        )
        return done

    def cancel_pending_run(self, run_id: str, *, session_id: str, **options: Any) -> bool:
        """See Agno."""
        this: Any = super()
        done: bool = self._kern.write(
            [session_id],
            lambda *_: this.cancel_pending_run(run_id, session_id=session_id, **options),
            {session_id: [run_id]},
        )
        return done

    def delete_run(self, run_id: str) -> bool:
        """See Agno; the run leaves the session's transcript, and a restore can bring it back."""
        this: Any = super()
        deleted: bool = self._of_runs([run_id], lambda: this.delete_run(run_id))
        self._forget()
        return deleted

    def delete_runs(self, run_ids: list[str]) -> None:
        """See Agno and delete_run."""
        this: Any = super()
        self._of_runs(run_ids, lambda: this.delete_runs(run_ids))
        self._forget()

    def _forget(self) -> None:
        """Something was deleted: what was written before need not be there."""
        with self._lock.lock:
            self._written.clear()

    def _of_runs(self, run_ids: Sequence[str], work: Callable[[], Any]) -> Any:
        with self._kern._engine.connect() as connection:
            found = self._kern.tables.sessions_of(connection, run_ids)
        runs: dict[str, list[str]] = {}
        for run_id, session_id in found.items():
            runs.setdefault(session_id, []).append(run_id)
        return self._kern.write(list(runs), lambda *_: work(), runs)

    def delete_session(self, session_id: str, user_id: str | None = None) -> bool:
        """See Agno; what was said is erased in the log too, whose chain stays."""
        this: Any = super()
        if not is_id(session_id):
            with self._kern._begun(self._kern.tables):
                return bool(this.delete_session(session_id, user_id))

        def work(connection: Connection, held: Mapping[str, Held]) -> Any:
            return this.delete_session(session_id, user_id)

        deleted: bool = self._kern.write([session_id], work, savepoint=True)
        self._forget()
        self.sessions.forget(session_id)
        return deleted

    def delete_sessions(self, session_ids: list[str], user_id: str | None = None) -> None:
        """See Agno and delete_session."""
        this: Any = super()
        ids = list(filter(is_id, dict.fromkeys(session_ids)))
        with self._kern._engine.connect() as connection:
            # Of a session that stays, because it is another user's, Agno deletes this user's runs.
            runs = {each: list(self._kern.tables.run_rows(connection, each)) for each in ids if user_id}

        def work(connection: Connection, held: Mapping[str, Held]) -> None:
            this.delete_sessions(session_ids, user_id)

        self._kern.write(ids, work, runs, savepoint=True)
        self._forget()
        for session_id in ids:
            self.sessions.forget(session_id)

    def _stored(
        self,
        operation: str,
        session_id: str,
        run_id: str | None,
        work: Callable[[], Any],
        runs: Callable[[], list[str]] = list,
    ) -> Any:
        """Work of which Agno would swallow the error: counted, logged, told, and raised past Agno.

        Args:
            operation, session_id, run_id: For the error.
            work: What is to be done.
            runs: Gives the runs that it was to store.
        """
        try:
            return work()
        except Exception as error:
            failure = NotStored(operation, session_id, run_id, error)
            with self._lock.lock:
                self.write_errors += 1
            logger.error("%s", failure)
            self._end(session_id, runs(), str(failure))
            if self._on_error is not None:
                self._on_error(failure)
            raise failure from error

    def _end(self, session_id: str, run_ids: Sequence[str], said: str) -> None:
        """Have runs that are stored as under way end as an error: who ran them will not come back to it."""
        this: Any = super()

        def work(connection: Connection, held: Mapping[str, Held]) -> None:
            for run_id, row in held[session_id].runs.items():
                data = row.get("run_data")
                if row.get("status") in UNDER_WAY and isinstance(data, dict):
                    ended = {**data, "run_id": run_id, "status": "ERROR", "content": said}
                    this.upsert_run(ended, session_id, row.get("user_id"), row.get("run_index"))

        try:
            within = getattr(self._current, "connection", None) is not None  # It is rolled back.
            if within or not run_ids or (tables := self._kern.known()) is None:
                return
            with self._kern._engine.connect() as connection:
                under_way = set(tables.under_way(connection, session_id)).intersection(run_ids)
            if under_way:
                self._kern.write([session_id], work, {session_id: sorted(under_way)})
        except Exception as error:
            logger.error("runs of session %r stay as they are: %s", session_id, type(error).__name__)


def _listed(get_sessions: Callable[..., Any], args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """What Agno lists; where it cannot read all of it, what it can."""
    try:
        return get_sessions(*args, **options)
    except Exception:
        asked = inspect.signature(get_sessions).bind(*args, **options).arguments
        if not asked.get("deserialize", True):
            raise
        records, _ = get_sessions(**{**asked, "deserialize": False})
    found = []
    for record in records:
        try:
            found.append(deserialize_session(asked.get("session_type"), record))
        except Exception as error:  # Its text may be content.
            logger.error("session %r cannot be listed: %s", record.get("session_id"), type(error).__name__)
    return found


def _unknown(session: Any, base: _Base | None) -> list[tuple[int, Any]]:
    """The runs of an object that are none of those that were read, and where they stand."""
    known = base.ids if base is not None else frozenset()
    unknown = [each for each in enumerate(session.runs or ()) if id(each[1]) not in known]
    return [(at, run) for at, run in unknown if getattr(run, "run_id", None) is not None]


def brought(session: Any) -> list[str]:
    """The runs that a session object has beyond what was read, or that are over: ids of those it is to store.

    What it has as it was read, maybe under way for somebody else, is none of them.
    """
    base: _Base | None = session.__dict__.get("_kern")
    new = {id(run) for _, run in _unknown(session, base)} if base is not None else ()
    return [
        run.run_id
        for run in session.runs or ()
        if id(run) in new or getattr(run.status, "value", run.status) not in UNDER_WAY
    ]


def _is_turn(run: Any) -> bool:
    return not getattr(run, "parent_run_id", None)


def _of_another(run_id: str | None, session_id: str | None) -> ValueError:
    return ValueError(f"run {run_id!r} is one of session {session_id!r}, which it would overwrite")


def _row_text(session: Any, serialise: Serialise) -> str:
    """What a session's row says that writers may change, as Agno stores it; raises what that raises."""
    return serialise(_said(session.to_dict(include_runs=False)))


def _said(row: Row) -> Row:
    return {field: row.get(field) for field in (*_MERGED, "summary")}


def _read_text(session: Any, serialise: Serialise) -> str:
    """As _row_text, of an object that was just read: what it has is JSON, and need not be converted."""
    said = {field: getattr(session, field, None) for field in _MERGED}
    summary: Any = getattr(session, "summary", None)
    return serialise({**said, "summary": summary.to_dict() if summary else None})


def _given(session: Any, row: Row) -> Any:
    """A copy of a session object of which this is the row, so that Agno need not convert it again."""
    copied = copy.copy(session)
    copied.__dict__["to_dict"] = lambda include_runs=False: dict(row)
    return copied


def _serialised(run: Any) -> Any:
    """A copy of a run as it is now, which is serialised already, so that Agno need not do it again."""
    if "_kern_original" in run.__dict__:
        return run
    copied, data = copy.copy(run), data_of(run)
    copied.__dict__ |= {"to_dict": lambda: data, "_kern_original": run, "_kern_outline": Outline(run)}
    return copied


def snapshot(session: Any, serialise: Serialise) -> Any:
    """A copy of a session object as it is now, for another thread to write; it shares the base."""
    row = session.to_dict(include_runs=False)
    said = json.loads(serialise(_said(row)))
    copied = _given(session, {key: said.get(key, value) for key, value in row.items()})
    for field in _MERGED:
        if hasattr(session, field):
            setattr(copied, field, said[field])
    copied.runs = list(session.runs or ())
    for at, run in _unknown(session, session.__dict__.get("_kern")):
        if _is_turn(run):
            copied.runs[at] = _serialised(run)
    return copied


def written(session: Any, copied: Any) -> None:
    """What a snapshot was written as, told to the object that it was taken of."""
    base: _Base | None = copied.__dict__.get("_kern")
    if base is not None:
        base.know(run.__dict__.get("_kern_original", run) for run in copied.runs)
        session.__dict__["_kern"] = base


def run_snapshot(run: Any) -> Any:
    """A copy of a run as it is now, for another thread to write."""
    return dict(run) if isinstance(run, dict) else _serialised(run)


def _changes(base: _Base | None, text: str, before: Row | None) -> Row:
    """What others wrote since a session was read, with its changes: what its row has otherwise than it."""
    changes: Row = {}
    if base is None or before is None:
        return changes
    old, new = json.loads(base.text), json.loads(text)
    for field in _MERGED:
        had, have, now = old.get(field) or {}, new.get(field) or {}, before.get(field) or {}
        if not all(isinstance(each, dict) for each in (had, have, now)) or not state_ops(had, now):
            continue
        if field == "session_data":
            changes[field] = merged_data(had, have, now)
        else:
            changes[field] = merged_object(had, have, now)
    summary = before.get("summary")
    if old.get("summary") == new.get("summary") and summary != new.get("summary"):
        changes["summary"] = summary
    return changes
