"""The tables beside the log: Agno's two, which are the projection, and our two, which say of which version.

A trigger on Agno's tables marks a session that anybody else writes to, so that what happened without us is
found and recorded. Statements on Agno's tables use its own table objects and are therefore of its version.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any, Final, NamedTuple

from sqlalchemy import JSON, Column, Integer, Table, inspect, select, text
from sqlalchemy.engine import Connection, Engine, RootTransaction
from sqlalchemy.exc import DataError, IntegrityError, InterfaceError, ProgrammingError

from kern_events.adapters.agno.folding import Row, Turn

logger: Final = logging.getLogger("kern_events.agno")

SESSIONS: Final = "kern_agno_sessions"
RUNS: Final = "kern_agno_runs"
_KEYS: Final = frozenset({"session_id", "runs"})  # `runs` is the frozen column of before Agno 3.
_RUN_KEYS: Final = frozenset({"session_id", "run_id"})
_REFUSED: Final = (DataError, IntegrityError, InterfaceError, ProgrammingError)  # For what is in a row.
_JSON: Final = frozenset(
    {"session_data", "agent_data", "team_data", "workflow_data", "metadata", "summary", "run_data"}
)


NO_ROW: Final = -1  # The session has no row, and is to have none.
AS_NOTED: Final = 0  # Its rows are as they were noted.
CHANGED: Final = 1  # Others have written to them, or may have.
DELETED: Final = 2  # Others have deleted its row: a trigger said so, and nothing else can.

UNDER_WAY: Final = ("PENDING", "RUNNING")
_STATES: Final = {"NO_ROW": str(NO_ROW), "CHANGED": str(CHANGED), "DELETED": str(DELETED)}

_IDLE: Final = 0  # psycopg's TransactionStatus, which need not be there for SQLite.

Asked = tuple[str, tuple[Any, ...]]


class Mark(NamedTuple):
    """What is known of a session.

    Attributes:
        version: The version of the log that its rows show.
        turn: The highest turn at that version.
        system: A digest of the last instructions recorded.
        changed: NO_ROW, AS_NOTED, CHANGED or DELETED.
    """

    version: int
    turn: int
    system: str | None = None
    changed: int = AS_NOTED

    def is_of(self, version: int, *, has_row: bool) -> bool:
        """Whether rows and log are together, where the log is at a version."""
        return self.version == version and self.changed == (AS_NOTED if has_row else NO_ROW)


class Look(NamedTuple):
    """What is known of a session, the version and status that it has in the log, whether it has a row.

    `branch` is that of Held.
    """

    mark: Mark | None
    version: int
    status: str | None
    has_row: bool
    branch: int

    @property
    def is_deleted_by_others(self) -> bool:
        """Whether somebody has deleted it in Agno's tables, which the log does not have yet."""
        return self.mark is not None and self.mark.changed == DELETED

    @property
    def is_ahead_of_the_log(self) -> bool:
        """Whether the rows may have, or have lost, what the log does not know of."""
        if self.mark is None:
            return self.has_row
        return self.mark.changed in (CHANGED, DELETED)

    @property
    def is_shown(self) -> bool:
        """Whether the rows, whoever wrote them, have what the log has."""
        if self.status == "deleted" and self.mark is None:
            return True
        if self.mark is None or self.mark.version != self.version:
            return self.version == (self.mark.version if self.mark else 0)
        return self.has_row or self.mark.changed == NO_ROW or self.status in (None, "deleted")


class Moved(NamedTuple):
    """A session that may have to be shown: where it stands in the log, and its status."""

    session_id: str
    version: int
    status: str


class Held(NamedTuple):
    """A session that is held: its rows as Agno has them, and what we know of it.

    Attributes:
        session: The row of the session.
        mark: What is known of it.
        runs: The rows of the runs asked for.
        turns: Their turns.
        whose: The session of the run that may be new, if it is not.
        last: The last place that a run of the session has.
        branch: The version of its last restore or deletion, 0 if there was none.
        head: Its head in the log, where that was asked for and is there.
    """

    session: Row | None
    mark: Mark | None
    runs: Mapping[str, Row]
    turns: Mapping[str, Turn]
    whose: str | None = None
    last: int | None = None
    branch: int = 0
    head: Sequence[Any] | None = None


class Tables:
    """The four tables of one session table of Agno's.

    Args:
        engine: Agno's own.
        sessions, runs: Agno's tables.
        namespace: Of the sessions in the log.
    """

    def __init__(self, engine: Engine, sessions: Table, runs: Table, namespace: str) -> None:
        self.sessions = sessions
        self.runs = runs
        self.namespace = namespace
        self.is_postgres: Final = engine.dialect.name == "postgresql"
        preparer = engine.dialect.identifier_preparer

        def quote(name: str) -> str:
            return preparer.quote(name).replace("%%", "%")  # Which it doubles for drivers that need that.

        self._prefix = f"{quote(sessions.schema)}." if sessions.schema else ""
        self._marks, self._turns = self._prefix + SESSIONS, self._prefix + RUNS
        self._names = {table: self._prefix + quote(table.name) for table in (sessions, runs)}
        self._session_columns = [str(name) for name in sessions.c.keys() if name not in _KEYS]  # noqa: SIM118
        self._run_columns = [str(name) for name in runs.c.keys() if name not in _RUN_KEYS]  # noqa: SIM118
        self._sql = self._statements(quote)

    def _since(self) -> str:
        return _POSTGRES_SINCE if self.is_postgres else _SQLITE_SINCE

    def _statements(self, quote: Callable[[str], str]) -> dict[str, str]:
        """Our statements, as the driver takes them."""
        names = {
            "marks": self._marks,
            "turns": self._turns,
            "heads": f"{self._prefix}kern_sessions",
            "prefix": self._prefix,
            "sessions": self._names[self.sessions],
            "runs": self._names[self.runs],
            "session_columns": ", ".join(map(quote, self._session_columns)),
            "run_columns": ", ".join(f"r.{quote(name)}" for name in self._run_columns),
            "hold": " FOR NO KEY UPDATE" if self.is_postgres else "",
            **_STATES,
        }
        templates = dict(_SQL)
        for part, said in (("{moved}", self._since()), ("{joined}", _JOINED), ("{is_behind}", _IS_BEHIND)):
            templates = {name: statement.replace(part, said) for name, statement in templates.items()}
        if self.is_postgres:  # Names may have what a placeholder has.
            templates = {name: statement.replace("?", "%s") for name, statement in templates.items()}
            names = {key: name.replace("%", "%%") for key, name in names.items()}
        made = {name: statement.format(**names) for name, statement in templates.items()}
        made["set_both"] = f"WITH turned AS ({made['set_turn']}) {made['set_mark']}"
        return made

    # ---------------------------------------------------------------------------------- setting up

    def are_there(self, connection: Connection) -> bool:
        """Whether our tables and triggers are, as this release makes them."""
        found = inspect(connection)
        return (
            all(found.has_table(name, schema=self.sessions.schema) for name in (SESSIONS, RUNS))
            and all(self._trigger(connection, name) == made.strip() for name, made in self._triggers())
            and not (self.is_postgres and self._may_make_function(connection))
        )

    def create(self, connection: Connection) -> None:
        """Make our tables and the triggers where they are missing; what was written meanwhile is marked."""
        names = {"marks": self._marks, "turns": self._turns}
        for statement in _TABLES:
            keyed = "" if self.is_postgres else " WITHOUT ROWID"  # One tree less, for a row of each run.
            connection.execute(text(statement.format(**names, keyed=keyed)))
        found = {name: self._trigger(connection, name) for name, _ in self._triggers()}
        if None in found.values():
            self.ask(connection, (self._sql["suspect"], (self.namespace,)))
        if self.is_postgres and self._may_make_function(connection):
            self._make_function(connection)
        for name, statement in self._triggers():
            if found[name] == statement.strip():
                continue
            if found[name] is not None:  # One that an earlier release has made.
                self._drop_trigger(connection, name)
            self.ask(connection, (statement, ()))

    def drop(self, connection: Connection) -> None:
        """Take the triggers away; from now on anything may be written."""
        for name, _ in self._triggers():
            self._drop_trigger(connection, name)
        self.ask(connection, (self._sql["suspect"], (self.namespace,)))

    def _drop_trigger(self, connection: Connection, name: str) -> None:
        on = f" ON {self._names[self._owner(name)]}" if self.is_postgres else ""
        self.ask(connection, (f"DROP TRIGGER IF EXISTS {name}{on}", ()))

    def _may_make_function(self, connection: Connection) -> bool:
        """Whether the function of the triggers is to be made, or made anew: it is no other role's."""
        found = self.ask(connection, (_POSTGRES_FUNCTION, (self.sessions.schema or "",)))[0]
        if not found:
            return True
        body, is_anybodys, is_ours = found[0]
        if (body, is_anybodys) == (self._function_body(), False):
            return False
        if not is_ours:
            logger.warning(
                "the function kern_agno_changed() in schema %r is of an earlier release, and another role's: "
                "open this database once as its owner",
                self.sessions.schema,
            )
        return bool(is_ours)

    def _function_body(self) -> str:
        names = {"marks": self._marks, "turns": self._turns, "schema": _literal(self.sessions.schema or "")}
        return _FUNCTION_BODY.format(**names, **_STATES)

    def _make_function(self, connection: Connection) -> None:
        """The function of the triggers, for nobody else; also in place of one of an earlier release."""
        name, body = f"{self._prefix}kern_agno_changed()", self._function_body()
        for statement in (
            f"CREATE OR REPLACE FUNCTION {name} RETURNS trigger LANGUAGE plpgsql"
            f" SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $${body}$$",
            f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC",
        ):
            self.ask(connection, (statement, ()))

    def _owner(self, name: str) -> Table:
        return self.runs if name.startswith("kern_agno_r") else self.sessions

    def _triggers(self) -> list[tuple[str, str]]:
        """Name and statement of each; SQLite needs one for each kind of change."""
        tag = hashlib.sha256(f"{self.namespace}\0{self.runs.name}".encode()).hexdigest()[:12]
        namespace = _literal(self.namespace)
        made = []
        for letter, table in (("s", self.sessions), ("r", self.runs)):
            name, on = f"kern_agno_{letter}_{tag}", self._names[table]
            if self.is_postgres:
                values = {"prefix": self._prefix, "namespace": namespace}
                what = "sessions" if letter == "s" else "runs"
                made.append((name, _TRIGGER.format(name=name, on=on, what=what, **values)))
                continue
            for verb in ("insert", "update", "delete"):
                rows = {"insert": "NEW", "delete": "OLD"}.get(verb)
                whose = f"= {rows}.session_id" if rows else "IN (OLD.session_id, NEW.session_id)"
                said = DELETED if (letter, verb) == ("s", "delete") else CHANGED
                gone = ""
                if letter == "r" and verb != "insert":
                    gone = _SQLITE_RUN_GONE.format(turns=self._turns, namespace=namespace)
                    gone += ";" if verb == "delete" else f"{_SQLITE_RUN_MOVED};"
                values = {"marks": self._marks, "namespace": namespace, "whose": whose, "gone": gone}
                made.append((f"{name}_{verb}", _SQLITE_TRIGGER.format(
                    name=f"{name}_{verb}", verb=verb.upper(), on=on, said=said, **values
                )))  # fmt: skip
        return made

    def _trigger(self, connection: Connection, name: str) -> str | None:
        """What a trigger is on this database, None if it is not there."""
        if not self.is_postgres:
            return connection.execute(text(_SQLITE_TRIGGER_TEXT), {"name": name}).scalar()
        values = {"name": name, "schema": self.sessions.schema}
        is_ours = connection.execute(text(_POSTGRES_TRIGGER), values).scalar()
        # Postgres has them in words of its own; those that earlier releases have made differ in one thing.
        return None if is_ours is None else dict(self._triggers())[name].strip() if is_ours else ""

    # ------------------------------------------------------------------------------------- reading

    def ask(self, connection: Connection, *asked: Asked) -> list[list[Any]]:
        """The rows of several statements on the driver below SQLAlchemy; on Postgres in one round trip."""
        driver: Any = connection.connection.driver_connection
        if not self.is_postgres:
            return [driver.execute(statement, values).fetchall() for statement, values in asked]
        if len(asked) == 1 and driver.info.transaction_status != _IDLE:  # Else BEGIN is to go with it.
            return [_fetched(driver.execute(asked[0][0], asked[0][1] or None))]
        with driver.pipeline():
            cursors = [driver.execute(statement, values or None) for statement, values in asked]
        return [_fetched(cursor) for cursor in cursors]

    def end(self, connection: Connection, transaction: RootTransaction, asked: Sequence[Asked]) -> None:
        """Ask these last, and commit; on Postgres in one round trip."""
        driver: Any = connection.connection.driver_connection
        try:
            with driver.pipeline() if self.is_postgres else nullcontext():
                for statement, values in asked:
                    driver.execute(statement, values)
                transaction.commit()
        except BaseException:
            with suppress(connection.dialect.loaded_dbapi.Error):  # Of a connection that is lost.
                driver.rollback()  # To SQLAlchemy a COMMIT that failed has ended the transaction.
            raise

    def hold(self, connection: Connection, session_id: str = "") -> None:
        """Hold a session that has no row yet, until the transaction ends; on SQLite that holds the file."""
        self.ask(connection, *self._locking(session_id))

    def _locking(self, session_id: str) -> list[Asked]:
        if not self.is_postgres:
            return []
        key = hashlib.sha256(f"{self.namespace}\0{session_id}".encode("utf-8", "replace")).digest()[:8]
        return [(_LOCK, (int.from_bytes(key, signed=True),))]

    def held(
        self,
        connection: Connection,
        session_id: str,
        run_ids: Sequence[str],
        new: str | None,
        head: Asked | None = None,
    ) -> Held:
        """A session, which nobody else changes before the transaction ends, and some of its runs.

        Args:
            connection: With the transaction.
            session_id: The session.
            run_ids: The runs.
            new: A run that may have to be given a place.
            head: What holds the session's head in the log, where it is to be held too.
        """
        asked = self._holding(session_id, run_ids, new, head)
        return self._held_of(self.ask(connection, *asked), len(run_ids), new, head)

    def begun(
        self,
        connection: Connection,
        session_id: str,
        run_ids: Sequence[str],
        new: str | None,
        head: Asked | None,
    ) -> tuple[Held, bool]:
        """As held, of a session without a row: the first of those who begin it goes on, the others wait.

        Returns:
            The session as whoever was faster has made it, and whether its mark was made now (see claim).
        """
        locking, claiming = self._locking(session_id), (self._sql["claim"], (self.namespace, session_id))
        asked = self._holding(session_id, run_ids, new, head)
        pages = self.ask(connection, *locking, claiming, *asked)[len(locking) :]
        return self._held_of(pages[1:], len(run_ids), new, head), bool(pages[0])

    def _holding(
        self, session_id: str, run_ids: Sequence[str], new: str | None, head: Asked | None
    ) -> list[Asked]:
        placing = [] if new is None else [(self._sql["place"], (new, session_id, new))]
        marked = self._sql["hold_mark"], (self.namespace, session_id)
        held = [(self._sql["hold_session"], (session_id,)), marked]
        return [*held, *self._runs(session_id, run_ids), *placing, *([] if head is None else [head])]

    def _held_of(
        self, pages: Sequence[Sequence[Any]], runs: int, new: str | None, head: Asked | None
    ) -> Held:
        """What _holding has asked for."""
        sessions, marks, rest = pages[0], pages[1], pages[2 + runs :]
        rows, turns = self._runs_of(pages[2 : 2 + runs])
        whose, last = (None, None) if new is None else rest[0][0]
        branch = (marks[0][4] or 0) if marks else 0
        of_head = rest[-1][0] if head is not None and rest[-1] else None
        return Held(self._session_of(sessions), _mark_of(marks), rows, turns, whose, last, branch, of_head)

    def now(
        self, connection: Connection, session_id: str, run_ids: Sequence[str], owners: Sequence[str] = ()
    ) -> tuple[Row | None, dict[str, Row], dict[str, Turn]]:
        """The row of a session, those of some of its runs, and the turns of these and of other runs."""
        asked = [(self._sql["session"], (session_id,)), *self._runs(session_id, run_ids)]
        asked += [(self._sql["turn"], (self.namespace, session_id, run_id)) for run_id in owners]
        sessions, *pages = self.ask(connection, *asked)
        rows, turns = self._runs_of(pages[: len(run_ids)])
        above = zip(owners, pages[len(run_ids) :], strict=True)
        turns |= {run_id: _turn(*page[0]) for run_id, page in above if page}
        return self._session_of(sessions), rows, turns

    def look(self, connection: Connection, session_id: str) -> Look:
        """What is known of a session, here and in the log."""
        scope = (self.namespace, session_id)
        [row] = self.ask(connection, (self._sql["look"], (session_id, *scope, *scope)))[0]
        mark = _mark_of([row[:4]] if row[0] is not None else [])
        return Look(mark, row[4] or 0, row[5], row[7] is not None, row[6] or 0)

    def claim(self, connection: Connection, session_id: str) -> bool:
        """Make the mark of a session that has none, so that it can be held; False if somebody else has."""
        claimed = self.ask(connection, (self._sql["claim"], (self.namespace, session_id)))[0]
        return bool(claimed)

    def unclaim(self, connection: Connection, session_id: str) -> None:
        """Forget the mark of a session that has turned out not to be there."""
        self.ask(connection, (self._sql["unclaim"], (self.namespace, session_id)))

    def session(self, connection: Connection, session_id: str) -> Row | None:
        """A session's row without its id."""
        return self._session_of(self.ask(connection, (self._sql["session"], (session_id,)))[0])

    def run_rows(self, connection: Connection, session_id: str) -> dict[str, Row]:
        """The rows of all runs of a session, without their ids, in order."""
        return self._runs_of(self.ask(connection, (self._sql["runs"], (self.namespace, session_id))))[0]

    def run_texts(self, connection: Connection, session_id: str) -> list[tuple[str, str]]:
        """Id and data, as text, of all runs of a session in order, for Agno's cache of run objects."""
        found: list[tuple[str, str]] = self.ask(connection, (self._sql["texts"], (session_id,)))[0]
        return found

    def _runs(self, session_id: str, run_ids: Sequence[str]) -> list[Asked]:
        return [(self._sql["run"], (self.namespace, session_id, run_id)) for run_id in run_ids]

    def _session_of(self, rows: Sequence[Any]) -> Row | None:
        return _plain(self._session_columns, rows[0]) if rows else None

    def _runs_of(self, pages: Sequence[Sequence[Any]]) -> tuple[dict[str, Row], dict[str, Turn]]:
        rows = [row for page in pages for row in page]
        turns = {row[0]: _turn(row[1], row[2]) for row in rows if row[1] is not None}
        return {row[0]: _plain(self._run_columns, row[3:]) for row in rows}, turns

    def legacy_runs(self, connection: Connection, session_id: str) -> list[Row]:
        """The runs in the column that Agno had them in before version 3, where there is that column."""
        column = self.sessions.c.get("runs")
        if column is None:
            return []
        found = connection.execute(select(column).where(self.sessions.c.session_id == session_id)).scalar()
        found = _decoded("run_data", found)
        return [run for run in found if isinstance(run, dict)] if isinstance(found, list) else []

    def sessions_of(self, connection: Connection, run_ids: Sequence[str]) -> dict[str, str]:
        """The session of each of these runs."""
        pages = (
            self.ask(connection, *((self._sql["whose"], (run_id,)) for run_id in run_ids)) if run_ids else []
        )
        return {run_id: page[0][0] for run_id, page in zip(run_ids, pages, strict=True) if page}

    def place(
        self, connection: Connection, session_id: str, run_id: str, given: int | None, last: int | None,
        *, nested: bool,
    ) -> int:  # fmt: skip
        """The place of a new run: as given where nobody has it, and of a turn's own run after all others."""
        after = 0 if last is None else last + 1
        if given is None or given >= after:
            return after if given is None else given
        if nested and not self.ask(connection, (self._sql["taken"], (session_id, given, run_id)))[0]:
            return given
        return after

    def under_way(self, connection: Connection, session_id: str) -> list[str]:
        """The ids of the runs of a session that wait or run."""
        asked = (self._sql["under_way"], (session_id, *UNDER_WAY))
        return [row[0] for row in self.ask(connection, asked)[0]]

    def session_ids(self, connection: Connection, after: str, limit: int) -> list[str]:
        """A page of the ids in Agno's table, in the order of the ids."""
        return [row[0] for row in self.ask(connection, (self._sql["ids"], (after, limit)))[0]]

    def behind(self, connection: Connection) -> list[Moved]:
        """The sessions whose rows do not show what the log has."""
        return [Moved(*row) for row in self.ask(connection, (self._sql["behind"], (self.namespace,)))[0]]

    def moved(self, connection: Connection, position: int) -> list[Moved]:
        """As behind, of those with events behind a position, and whatever was deleted there."""
        values = (*((self.namespace,) if self.is_postgres else ()), position, self.namespace)
        return [Moved(*row) for row in self.ask(connection, (self._sql["moved"], values))[0]]

    def is_empty(self, connection: Connection) -> bool:
        """Whether Agno's table has no session at all, as after TRUNCATE."""
        return not self.ask(connection, (self._sql["any"], ()))[0]

    def marked_ids(self, connection: Connection, after: str, limit: int) -> list[str]:
        """A page of the ids that others have written to."""
        return [
            row[0] for row in self.ask(connection, (self._sql["marked"], (self.namespace, after, limit)))[0]
        ]

    # ------------------------------------------------------------------------------------- writing

    def note(self, connection: Connection, session_id: str, mark: Mark, turns: Mapping[str, Turn]) -> None:
        """The rows are as the mark says, whatever was written in this transaction; and the turns of runs."""
        self.ask(connection, *self.noting(session_id, mark, turns))

    def noting(self, session_id: str, mark: Mark, turns: Mapping[str, Turn]) -> list[Asked]:
        """What notes it."""
        scope = (self.namespace, session_id)
        noted = [
            (self._sql["set_turn"], (*scope, run_id, _numbered(turn), int(turn.ended)))
            for run_id, turn in turns.items()
        ]
        marked = (*scope, mark.version, mark.turn, mark.system, mark.changed)
        if len(noted) == 1 and self.is_postgres:  # The one statement that most writes need.
            return [(self._sql["set_both"], (*noted[0][1], *marked))]
        return [*noted, (self._sql["set_mark"], marked)]

    def outdate(self, connection: Connection, session_ids: Sequence[str]) -> None:
        """The rows of these sessions show no version of the log any more."""
        if session_ids:
            self.ask(connection, *((self._sql["outdate"], (self.namespace, each)) for each in session_ids))

    def forget(self, connection: Connection, session_id: str) -> None:
        """Forget the turns of a session's runs."""
        self.ask(connection, (self._sql["forget_runs"], (self.namespace, session_id)))

    def deleted_runs(self, connection: Connection, session_id: str) -> set[str]:
        """The runs that others have deleted, as the trigger has noted it."""
        asked = (self._sql["deleted_runs"], (self.namespace, session_id))
        return {row[0] for row in self.ask(connection, asked)[0]}

    def note_deleted(self, connection: Connection, session_id: str, run_ids: Sequence[str]) -> None:
        """These runs were deleted, which is yet to be recorded."""
        scope = (self.namespace, session_id)
        self.ask(connection, *((self._sql["set_turn"], (*scope, run_id, 0, -2)) for run_id in run_ids))

    def forget_deleted(self, connection: Connection, session_id: str) -> None:
        """What was deleted of a session's runs is recorded."""
        self.ask(connection, (self._sql["forget_deleted"], (self.namespace, session_id)))

    def write_session(self, connection: Connection, session_id: str, row: Row) -> None:
        """Make a session's row what it should be; the column of before Agno 3 says nothing then."""
        table = self.sessions
        # What the row does not say is not there: with the parent of a fork some of it may have gone.
        values = {key: row.get(key) for key in table.c.keys() if key not in _KEYS}  # noqa: SIM118
        values = {key: value if _fits(table.c[key], value) else None for key, value in values.items()}
        if "runs" in table.c:
            values["runs"] = None
        try:
            self._write_session(connection, session_id, values)
        except _REFUSED:  # JSON may have a NUL, which Postgres has not: the row is shown without.
            with_nul = [key for key in _JSON & values.keys() if "\\u0000" in json.dumps(values[key])]
            if not with_nul:
                raise
            logger.error("session %r is shown without %s, for a NUL in it", session_id, ", ".join(with_nul))
            blank: Row = {key: {} if key == "session_data" else None for key in with_nul}
            self._write_session(connection, session_id, {**values, **blank})

    def _write_session(self, connection: Connection, session_id: str, values: Row) -> None:
        table = self.sessions
        with connection.begin_nested():
            update = table.update().where(table.c.session_id == session_id)
            found = connection.execute(update.values(**values))
            if found.rowcount == 0:
                connection.execute(table.insert().values(session_id=session_id, **values))

    def can_show(self, row: Row) -> bool:
        """Whether a session's row has what the table cannot be without."""
        needed = [column for column in self.sessions.c if not column.nullable and column.key not in _KEYS]
        return all(_fits(column, row.get(column.key)) for column in needed)

    def write_runs(self, connection: Connection, session_id: str, rows: Mapping[str, Row]) -> None:
        """Make the rows of a session's runs what they should be."""
        connection.execute(self.runs.delete().where(self.runs.c.session_id == session_id))
        self.add_runs(connection, session_id, rows)
        self.forget(connection, session_id)  # The trigger takes it for a deletion.

    def add_runs(self, connection: Connection, session_id: str, rows: Mapping[str, Row]) -> None:
        """Put back the rows of runs that are missing, but for what is no row: whoever recorded it.

        The id of a run is a key over all sessions, so the run of another session is none of this one.
        """
        table = self.runs
        made = [
            {**{key: row.get(key) for key in table.c.keys() if key not in _RUN_KEYS},  # noqa: SIM118
             "run_id": run_id, "session_id": session_id}
            for run_id, row in rows.items()
        ]  # fmt: skip
        fitting = [each for each in made if all(_fits(column, each[column.key]) for column in table.c)]
        left_out = len(made) - len(fitting)
        try:
            self._insert_runs(connection, fitting)
        except _REFUSED:
            for each in fitting:
                try:
                    self._insert_runs(connection, [each])
                except _REFUSED:
                    left_out += 1
        if left_out:
            logger.error("session %r is shown without %d of its runs: no rows", session_id, left_out)

    def _insert_runs(self, connection: Connection, rows: Sequence[Row]) -> None:
        if rows:
            with connection.begin_nested():
                connection.execute(self.runs.insert(), rows)


def _fits(column: Column[Any], value: Any) -> bool:
    """Whether a value is what a column takes: JSON may be any, a text is one that every database has."""
    if value is None:
        return bool(column.nullable)
    if isinstance(column.type, JSON):
        return True
    if isinstance(column.type, Integer):
        return type(value) is int and -(2**63) <= value < 2**63
    return isinstance(value, str) and "\0" not in value


def _mark_of(rows: Sequence[Any]) -> Mark | None:
    return Mark(*rows[0][:4]) if rows else None


def _literal(text: str) -> str:
    """A text in a trigger, which can have no bound values."""
    return "'" + text.replace("'", "''") + "'"


def _turn(number: int, ended: int) -> Turn:
    return Turn(abs(number), ended % 2 == 1, number < 0)


def _numbered(turn: Turn) -> int:
    """The number of a turn as it is stored: below zero where the question of its run is on record alone."""
    return -turn.number if turn.asked else turn.number


def _fetched(cursor: Any) -> list[Any]:
    result = cursor.pgresult  # Its `description` would describe each column.
    rows: list[Any] = cursor.fetchall() if result is not None and result.nfields else []
    return rows


def _plain(columns: Sequence[str], values: Sequence[Any]) -> Row:
    """A row with its JSON decoded: older versions encode it before SQLAlchemy does so again."""
    return {
        key: _decoded(key, value) if isinstance(value, str) else value
        for key, value in zip(columns, values, strict=True)
    }


def _decoded(key: str, value: Any) -> Any:
    while isinstance(value, str) and key in _JSON:
        try:
            value = json.loads(value)
        except ValueError:
            break
    return value


_LOCK: Final = "SELECT pg_advisory_xact_lock(%s)"

_JOINED: Final = (
    "LEFT JOIN {marks} AS m ON m.namespace = h.namespace AND m.session_id = h.session_id"
    " LEFT JOIN {sessions} AS a ON a.session_id = h.session_id"
)
_IS_BEHIND: Final = (
    "(m.changed IS NULL OR m.changed <> {DELETED}) AND (m.version <> h.version OR h.status <> 'deleted'"
    " AND (m.version IS NULL OR a.session_id IS NULL AND m.changed <> {NO_ROW}))"
)
# The order is fixed on SQLite: from the events to their sessions, whatever statistics there are.
_SQLITE_SINCE: Final = (
    "(SELECT DISTINCT session FROM kern_events WHERE position > ?) AS e"
    " CROSS JOIN kern_sessions AS h ON h.id = e.session"
)
_POSTGRES_SINCE: Final = (
    "(SELECT DISTINCT session_id FROM {prefix}kern_events WHERE namespace = ? AND position > ?) AS e"
    " JOIN {prefix}kern_sessions AS h ON h.session_id = e.session_id"
)
_SQL: Final = {
    # What is known of a session; whoever writes to its rows meanwhile waits to say so until we end.
    "hold_mark": "SELECT version, turn, system, changed, (SELECT h.branch FROM {heads} AS h"
    " WHERE h.namespace = m.namespace AND h.session_id = m.session_id) FROM {marks} AS m"
    " WHERE namespace = ? AND session_id = ?{hold}",
    # Something to hold where nothing is known yet.
    "claim": "INSERT INTO {marks} (namespace, session_id, version, turn, changed) VALUES (?, ?, 0, 0, 1)"
    " ON CONFLICT (namespace, session_id) DO NOTHING RETURNING 1",
    # There is no such session.
    "unclaim": "DELETE FROM {marks} WHERE namespace = ? AND session_id = ? AND version = 0",
    # What is known of a session, and where the log has it.
    "look": "SELECT m.version, m.turn, m.system, m.changed, h.version, h.status, h.branch,"
    " (SELECT 1 FROM {sessions} WHERE session_id = ?) FROM (SELECT 1 AS one) AS o"
    " LEFT JOIN {marks} AS m ON m.namespace = ? AND m.session_id = ?"
    " LEFT JOIN {heads} AS h ON h.namespace = ? AND h.session_id = ?",
    # The rows show this version.
    "set_mark": "INSERT INTO {marks} (namespace, session_id, version, turn, system, changed)"
    " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (namespace, session_id) DO UPDATE SET version = excluded.version,"
    " turn = excluded.turn, system = excluded.system, changed = excluded.changed",
    # Without triggers for a while, anything may have been written; what was deleted before that stays so.
    "suspect": "UPDATE {marks} SET changed = {CHANGED} WHERE namespace = ? AND changed < {CHANGED}",
    # Sessions whose rows do not show what the log has, but for those that others have deleted.
    "behind": "SELECT h.session_id, h.version, h.status FROM {heads} AS h {joined}"
    " WHERE h.namespace = ? AND {is_behind}",
    # The same of those with events behind a position, and those that were deleted since: forks go with them.
    "moved": "SELECT h.session_id, h.version, h.status FROM {moved} {joined}"
    " WHERE h.namespace = ? AND (h.status = 'deleted' OR {is_behind})",
    # Whether there is any session.
    "any": "SELECT 1 FROM {sessions} LIMIT 1",
    # Sessions that others wrote to.
    "marked": "SELECT session_id FROM {marks} WHERE namespace = ? AND changed >= {CHANGED}"
    " AND session_id > ? ORDER BY session_id LIMIT ?",
    # The turn of a run.
    "turn": "SELECT turn, ended FROM {turns} WHERE namespace = ? AND session_id = ? AND run_id = ?",
    # Note the turn of a run.
    "set_turn": "INSERT INTO {turns} (namespace, session_id, run_id, turn, ended) VALUES (?, ?, ?, ?, ?)"
    " ON CONFLICT (namespace, session_id, run_id) DO UPDATE SET turn = excluded.turn, ended = excluded.ended",
    # Forget the turns of a session's runs.
    "forget_runs": "DELETE FROM {turns} WHERE namespace = ? AND session_id = ?",
    # Runs whose row was deleted.
    "deleted_runs": "SELECT run_id FROM {turns} WHERE namespace = ? AND session_id = ? AND ended < 0",
    # ... which is recorded now.
    "forget_deleted": "UPDATE {turns} SET ended = ended + 2"
    " WHERE namespace = ? AND session_id = ? AND ended < 0",
    # The log has gone on in a way that its version does not tell.
    "outdate": "UPDATE {marks} SET version = -1 WHERE namespace = ? AND session_id = ?",
    # Agno's row of a session.
    "session": "SELECT {session_columns} FROM {sessions} WHERE session_id = ?",
    # The same, and nobody else changes it before we end.
    "hold_session": "SELECT {session_columns} FROM {sessions} WHERE session_id = ?{hold}",
    # Agno's row of a run, and its turn.
    "run": "SELECT r.run_id, t.turn, t.ended, {run_columns} FROM {runs} AS r LEFT JOIN {turns} AS t"
    " ON t.namespace = ? AND t.session_id = r.session_id AND t.run_id = r.run_id"
    " WHERE r.session_id = ? AND r.run_id = ?",
    # The same of all runs of a session.
    "runs": "SELECT r.run_id, t.turn, t.ended, {run_columns} FROM {runs} AS r LEFT JOIN {turns} AS t"
    " ON t.namespace = ? AND t.session_id = r.session_id AND t.run_id = r.run_id"
    " WHERE r.session_id = ? ORDER BY r.run_index, r.created_at, r.run_id",
    # Their data alone, not decoded.
    "texts": "SELECT run_id, CAST(run_data AS TEXT) FROM {runs} WHERE session_id = ?"
    " ORDER BY run_index, created_at, run_id",
    # The session of a run.
    "whose": "SELECT session_id FROM {runs} WHERE run_id = ?",
    # The session of a run, and the place of the last run of the session where it is to be.
    "place": "SELECT (SELECT session_id FROM {runs} WHERE run_id = ?),"
    " (SELECT max(run_index) FROM {runs} WHERE session_id = ? AND run_id <> ?)",
    # Whether another run has a place.
    "taken": "SELECT 1 FROM {runs} WHERE session_id = ? AND run_index = ? AND run_id <> ?",
    # Runs that wait or run.
    "under_way": "SELECT run_id FROM {runs} WHERE session_id = ? AND status IN (?, ?)",
    # Sessions of Agno's, page by page.
    "ids": "SELECT session_id FROM {sessions} WHERE session_id > ? ORDER BY session_id LIMIT ?",
}

_TABLES: Final = (
    # The version of the log that the rows of a session show, and what others have done to them: see NO_ROW.
    "CREATE TABLE IF NOT EXISTS {marks} (namespace text NOT NULL, session_id text NOT NULL,"
    " version bigint NOT NULL, turn bigint NOT NULL, system text, changed integer NOT NULL,"
    " PRIMARY KEY (namespace, session_id))",
    # The turn of each run, below zero where its question alone is on record, and whether it has its end: 1 or
    # 0, and 2 less where the run was deleted since.
    "CREATE TABLE IF NOT EXISTS {turns} (namespace text NOT NULL, session_id text NOT NULL,"
    " run_id text NOT NULL, turn bigint NOT NULL, ended integer NOT NULL,"
    " PRIMARY KEY (namespace, session_id, run_id)){keyed}",
)
_SQLITE_TRIGGER: Final = """
CREATE TRIGGER {name} AFTER {verb} ON {on} BEGIN
    UPDATE {marks} SET changed = {said}
    WHERE namespace = {namespace} AND session_id {whose} AND changed < {said};{gone}
END"""
_SQLITE_RUN_GONE: Final = """
    UPDATE {turns} SET ended = ended - 2
    WHERE namespace = {namespace} AND session_id = OLD.session_id AND run_id = OLD.run_id AND ended >= 0"""
_SQLITE_RUN_MOVED: Final = " AND (OLD.session_id, OLD.run_id) IS NOT (NEW.session_id, NEW.run_id)"
# It has the rights of who made it, so it asks which table it was called for: a trigger can be on any. The
# name of the session table is the namespace without the schema, so only that table can say "deleted".
_FUNCTION_BODY: Final = """
DECLARE
    whose text := CASE TG_OP WHEN 'DELETE' THEN OLD.session_id ELSE NEW.session_id END;
    said integer := {CHANGED};
BEGIN
    IF TG_TABLE_SCHEMA <> {schema} THEN
        RAISE EXCEPTION 'kern_agno_changed() is not for %.%', TG_TABLE_SCHEMA, TG_TABLE_NAME
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF TG_OP = 'DELETE' AND TG_ARGV[0] = TG_TABLE_SCHEMA || '.' || TG_TABLE_NAME THEN
        said := {DELETED};
    ELSIF TG_OP <> 'INSERT' AND TG_ARGV[1] = 'runs' THEN
        UPDATE {turns} SET ended = ended - 2
            WHERE namespace = TG_ARGV[0] AND session_id = OLD.session_id AND run_id = OLD.run_id
            AND ended >= 0 AND (TG_OP = 'DELETE'
                                OR (NEW.session_id, NEW.run_id) <> (OLD.session_id, OLD.run_id));
    END IF;
    INSERT INTO {marks} AS mark (namespace, session_id, version, turn, changed)
        VALUES (TG_ARGV[0], whose, 0, 0, said)
        ON CONFLICT (namespace, session_id) DO UPDATE SET changed = said WHERE mark.changed < said;
    IF TG_OP = 'UPDATE' AND OLD.session_id <> NEW.session_id THEN
        UPDATE {marks} SET changed = {CHANGED}
            WHERE namespace = TG_ARGV[0] AND session_id = OLD.session_id AND changed < {CHANGED};
    END IF;
    RETURN NULL;
END """
_TRIGGER: Final = """
CREATE TRIGGER {name} AFTER INSERT OR UPDATE OR DELETE ON {on}
    FOR EACH ROW EXECUTE FUNCTION {prefix}kern_agno_changed({namespace}, '{what}')"""
_SQLITE_TRIGGER_TEXT: Final = "SELECT sql FROM sqlite_master WHERE type = 'trigger' AND name = :name"
# Whether it says which of the two tables it is on, which earlier ones did not; nothing where there is none.
_POSTGRES_TRIGGER: Final = """
SELECT t.tgnargs = 2 FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE t.tgname = :name AND NOT t.tgisinternal
    AND n.nspname = COALESCE(CAST(:schema AS text), current_schema())"""
# What the function says, whether everybody may call it, and whether it can be replaced.
_POSTGRES_FUNCTION: Final = """
SELECT p.prosrc, has_function_privilege('public', p.oid, 'EXECUTE'), pg_has_role(p.proowner, 'USAGE')
FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
WHERE p.proname = 'kern_agno_changed' AND p.pronargs = 0 AND n.nspname = %s"""
