"""The tables beside the log: Agno's two, which are the projection, and our two, which say of which version.

A trigger on Agno's tables marks a session that anybody else writes to, so that what happened without us is
found and recorded. Statements on Agno's tables use its own table objects and are therefore of its version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Table, func, select, text
from sqlalchemy.engine import Connection, Engine

from kern_events.adapters.agno.folding import Row, Turn

SESSIONS: Final = "kern_agno_sessions"
RUNS: Final = "kern_agno_runs"
_KEYS: Final = frozenset({"session_id", "runs"})  # `runs` is the frozen column of before Agno 3.
_RUN_KEYS: Final = frozenset({"session_id", "run_id"})
_JSON: Final = frozenset(
    {"session_data", "agent_data", "team_data", "workflow_data", "metadata", "summary", "run_data"}
)
_IN: Final = 500  # values of one IN


class Mark(NamedTuple):
    """What is known of a session: the version that its rows show, and whether others wrote to them."""

    version: int
    changed: bool
    system: str | None


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
        quote = engine.dialect.identifier_preparer.quote
        self._prefix = f"{quote(sessions.schema)}." if sessions.schema else ""
        self._marks, self._turns = self._prefix + SESSIONS, self._prefix + RUNS
        named = engine.dialect.identifier_preparer.format_table
        self._names = {table: named(table) for table in (sessions, runs)}
        self._sql = _statements(self._marks, self._turns)

    # ---------------------------------------------------------------------------------- setting up

    def create(self, connection: Connection) -> None:
        """Make our tables and the triggers where they are missing; what was written meanwhile is marked."""
        for statement in _TABLES:
            connection.execute(text(statement.format(marks=self._marks, turns=self._turns)))
        if missing := [name for name, _ in self._triggers() if not self._has_trigger(connection, name)]:
            connection.execute(self._sql["suspect"], {"namespace": self.namespace})
            if self.is_postgres:
                connection.execute(text(_FUNCTION.format(prefix=self._prefix, marks=self._marks)))
        for name, statement in self._triggers():
            if name in missing:
                connection.exec_driver_sql(statement)

    def drop(self, connection: Connection) -> None:
        """Take the triggers away, and forget which version the rows show."""
        for name, _ in self._triggers():
            on = f" ON {self._names[self._owner(name)]}" if self.is_postgres else ""
            connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {name}{on}")
        for statement in ("forget_all", "forget_all_runs"):
            connection.execute(self._sql[statement], {"namespace": self.namespace})

    def _owner(self, name: str) -> Table:
        return self.runs if name.startswith("kern_agno_r") else self.sessions

    def _triggers(self) -> list[tuple[str, str]]:
        """Name and statement of each; SQLite needs one for each kind of change."""
        tag = hashlib.sha256(self.namespace.encode()).hexdigest()[:12]
        namespace = "'" + self.namespace.replace("'", "''") + "'"
        made = []
        for letter, table in (("s", self.sessions), ("r", self.runs)):
            name, on = f"kern_agno_{letter}_{tag}", self._names[table]
            if self.is_postgres:
                values = {"prefix": self._prefix, "namespace": namespace}
                made.append((name, _TRIGGER.format(name=name, on=on, **values)))
                continue
            for verb in ("insert", "update", "delete"):
                row = "OLD" if verb == "delete" else "NEW"
                values = {"marks": self._marks, "namespace": namespace, "row": row}
                made.append((f"{name}_{verb}", _SQLITE_TRIGGER.format(
                    name=f"{name}_{verb}", verb=verb.upper(), on=on, **values
                )))  # fmt: skip
        return made

    def _has_trigger(self, connection: Connection, name: str) -> bool:
        values: dict[str, Any] = {"name": name}
        if self.is_postgres:
            values["schema"] = self.sessions.schema
        statement = _POSTGRES_HAS_TRIGGER if self.is_postgres else _SQLITE_HAS_TRIGGER
        return connection.execute(text(statement), values).first() is not None

    # --------------------------------------------------------------------------------------- marks

    def lock(self, connection: Connection, session_ids: Sequence[str]) -> None:
        """Hold sessions until the transaction ends; on SQLite it holds the whole file by now."""
        if self.is_postgres:
            for session_id in sorted(session_ids):
                key = hashlib.sha256(f"{self.namespace}\0{session_id}".encode()).digest()[:8]
                connection.execute(_LOCK, {"key": int.from_bytes(key, signed=True)})

    def mark(self, connection: Connection, session_id: str) -> Mark | None:
        """What is known of a session; None if it is nothing yet."""
        row = connection.execute(self._sql["mark"], self._of(session_id)).first()
        return Mark(row[0], bool(row[1]), row[2]) if row else None

    def set_mark(self, connection: Connection, session_id: str, version: int, system: str | None) -> None:
        """The rows show this version now, whatever was written in this transaction."""
        values = {**self._of(session_id), "version": version, "system": system}
        connection.execute(self._sql["set_mark"], values)

    def turns(self, connection: Connection, session_id: str, run_ids: Sequence[str]) -> dict[str, Turn]:
        """The turns of these runs, as far as they have one."""
        found = {}
        for run_id in run_ids:
            row = connection.execute(self._sql["turn"], {**self._of(session_id), "run_id": run_id}).first()
            if row:
                found[run_id] = Turn(row[0], bool(row[1]))
        return found

    def set_turns(self, connection: Connection, session_id: str, turns: Mapping[str, Turn]) -> None:
        """Note the turns of runs."""
        if turns:
            connection.execute(
                self._sql["set_turn"],
                [
                    {**self._of(session_id), "run_id": run_id, "turn": turn.number, "ended": int(turn.ended)}
                    for run_id, turn in turns.items()
                ],
            )

    def forget(self, connection: Connection, session_id: str) -> None:
        """Forget the turns of a session's runs."""
        connection.execute(self._sql["forget_runs"], self._of(session_id))

    def _of(self, session_id: str) -> dict[str, Any]:
        return {"namespace": self.namespace, "session_id": session_id}

    # ---------------------------------------------------------------------------------- Agno's rows

    def session(self, connection: Connection, session_id: str, *, hold: bool = False) -> Row | None:
        """A session's row without its id; `hold` keeps others from changing it."""
        statement = select(self.sessions).where(self.sessions.c.session_id == session_id)
        if hold and self.is_postgres:
            statement = statement.with_for_update(key_share=True)
        row = connection.execute(statement).mappings().first()
        return None if row is None else _plain(row, _KEYS)

    def legacy_runs(self, connection: Connection, session_id: str) -> list[Row]:
        """The runs in the column that Agno had them in before version 3, where there is that column."""
        column = self.sessions.c.get("runs")
        if column is None:
            return []
        found = connection.execute(select(column).where(self.sessions.c.session_id == session_id)).scalar()
        return [run for run in found if isinstance(run, dict)] if isinstance(found, list) else []

    def run_rows(
        self, connection: Connection, session_id: str, run_ids: Sequence[str] | None = None
    ) -> dict[str, Row]:
        """The rows of a session's runs, all or some, without their ids, in order."""
        columns = self.runs.c
        statement = select(self.runs).where(columns.session_id == session_id)
        statement = statement.order_by(columns.run_index, columns.created_at, columns.run_id)
        found: dict[str, Row] = {}
        pages = [None] if run_ids is None else [run_ids[i : i + _IN] for i in range(0, len(run_ids), _IN)]
        for page in pages:
            chosen = statement if page is None else statement.where(columns.run_id.in_(page))
            for row in connection.execute(chosen).mappings():
                found[row["run_id"]] = _plain(row, _RUN_KEYS)
        return found

    def sessions_of(self, connection: Connection, run_ids: Sequence[str]) -> dict[str, str]:
        """The session of each of these runs."""
        found: dict[str, str] = {}
        for start in range(0, len(run_ids), _IN):
            chosen = self.runs.c.run_id.in_(run_ids[start : start + _IN])
            rows = connection.execute(select(self.runs.c.run_id, self.runs.c.session_id).where(chosen))
            found |= {row[0]: row[1] for row in rows}
        return found

    def next_index(self, connection: Connection, session_id: str, run_id: str, given: int | None, *,
                   nested: bool) -> int:  # fmt: skip
        """The place of a new run: as given where that is free, and of a turn's own run past all others."""
        others = (self.runs.c.session_id == session_id) & (self.runs.c.run_id != run_id)
        last = connection.execute(select(func.max(self.runs.c.run_index)).where(others)).scalar()
        after = 0 if last is None else last + 1
        if given is None or given >= after:
            return after if given is None else given
        if nested:
            taken = select(self.runs.c.run_id).where(others & (self.runs.c.run_index == given))
            return after if connection.execute(taken).first() else given
        return after

    def write_session(self, connection: Connection, session_id: str, row: Row) -> None:
        """Make a session's row what it should be; the column of before Agno 3 says nothing then."""
        values = {key: value for key, value in row.items() if key in self.sessions.c and key not in _KEYS}
        if "runs" in self.sessions.c:
            values["runs"] = None
        table = self.sessions
        changed = connection.execute(table.update().where(table.c.session_id == session_id).values(**values))
        if changed.rowcount == 0:
            connection.execute(table.insert().values(session_id=session_id, **values))

    def write_runs(self, connection: Connection, session_id: str, rows: Mapping[str, Row]) -> None:
        """Make the rows of a session's runs what they should be."""
        table = self.runs
        connection.execute(table.delete().where(table.c.session_id == session_id))
        made = [
            {**{key: row.get(key) for key in table.c.keys() if key not in _RUN_KEYS},  # noqa: SIM118
             "run_id": run_id, "session_id": session_id}
            for run_id, row in rows.items()
        ]  # fmt: skip
        if made:
            connection.execute(table.insert(), made)

    def session_ids(self, connection: Connection, after: str, limit: int) -> list[str]:
        """A page of the ids in Agno's table, in the order of the ids."""
        column = self.sessions.c.session_id
        chosen = select(column).where(column > after).order_by(column).limit(limit)
        return list(connection.execute(chosen).scalars())

    def marked_ids(self, connection: Connection, after: str, limit: int) -> list[str]:
        """A page of the ids that others have written to."""
        values = {"namespace": self.namespace, "after": after, "limit": limit}
        return list(connection.execute(self._sql["marked"], values).scalars())


def _plain(row: Mapping[Any, Any], without: frozenset[str]) -> Row:
    """A row with its JSON decoded: older versions encode it before SQLAlchemy does so again."""
    return {str(key): _decoded(key, value) for key, value in row.items() if key not in without}


def _decoded(key: str, value: Any) -> Any:
    while isinstance(value, str) and key in _JSON:
        try:
            value = json.loads(value)
        except ValueError:
            break
    return value


def _statements(marks: str, turns: str) -> dict[str, Any]:
    one = "namespace = :namespace AND session_id = :session_id"
    names = {"marks": marks, "turns": turns, "one": one}
    return {name: text(statement.format(**names)) for name, statement in _SQL.items()}


_LOCK: Final = text("SELECT pg_advisory_xact_lock(:key)")

_SQL: Final = {
    # What is known of a session.
    "mark": "SELECT version, changed, system FROM {marks} WHERE {one}",
    # The rows show this version.
    "set_mark": "INSERT INTO {marks} (namespace, session_id, version, changed, system)"
    " VALUES (:namespace, :session_id, :version, 0, :system)"
    " ON CONFLICT (namespace, session_id) DO UPDATE"
    " SET version = excluded.version, changed = 0, system = excluded.system",
    # Without triggers for a while, anything may have been written.
    "suspect": "UPDATE {marks} SET changed = 1 WHERE namespace = :namespace",
    # Sessions that others wrote to.
    "marked": "SELECT session_id FROM {marks} WHERE namespace = :namespace AND changed <> 0"
    " AND session_id > :after ORDER BY session_id LIMIT :limit",
    # The turn of a run.
    "turn": "SELECT turn, ended FROM {turns} WHERE {one} AND run_id = :run_id",
    # Note the turn of a run.
    "set_turn": "INSERT INTO {turns} (namespace, session_id, run_id, turn, ended)"
    " VALUES (:namespace, :session_id, :run_id, :turn, :ended)"
    " ON CONFLICT (namespace, session_id, run_id) DO UPDATE SET turn = excluded.turn, ended = excluded.ended",
    # Forget the turns of a session's runs.
    "forget_runs": "DELETE FROM {turns} WHERE {one}",
    # Forget everything about a namespace.
    "forget_all": "DELETE FROM {marks} WHERE namespace = :namespace",
    "forget_all_runs": "DELETE FROM {turns} WHERE namespace = :namespace",
}

_TABLES: Final = (
    # The version of the log that the rows of a session show, and whether others have written to them.
    "CREATE TABLE IF NOT EXISTS {marks} (namespace text NOT NULL, session_id text NOT NULL,"
    " version bigint NOT NULL, changed integer NOT NULL, system text, PRIMARY KEY (namespace, session_id))",
    # The turn of each run, and whether it has its end.
    "CREATE TABLE IF NOT EXISTS {turns} (namespace text NOT NULL, session_id text NOT NULL,"
    " run_id text NOT NULL, turn bigint NOT NULL, ended integer NOT NULL,"
    " PRIMARY KEY (namespace, session_id, run_id))",
)
_SQLITE_TRIGGER: Final = """
CREATE TRIGGER {name} AFTER {verb} ON {on} BEGIN
    UPDATE {marks} SET changed = 1
    WHERE namespace = {namespace} AND session_id = {row}.session_id AND changed = 0;
END"""
_FUNCTION: Final = """
CREATE OR REPLACE FUNCTION {prefix}kern_agno_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE {marks} SET changed = 1 WHERE namespace = TG_ARGV[0] AND changed = 0
        AND session_id = CASE TG_OP WHEN 'DELETE' THEN OLD.session_id ELSE NEW.session_id END;
    RETURN NULL;
END $$"""
_TRIGGER: Final = """
CREATE TRIGGER {name} AFTER INSERT OR UPDATE OR DELETE ON {on}
    FOR EACH ROW EXECUTE FUNCTION {prefix}kern_agno_changed({namespace})"""
_SQLITE_HAS_TRIGGER: Final = "SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND name = :name"
_POSTGRES_HAS_TRIGGER: Final = """
SELECT 1 FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE t.tgname = :name AND NOT t.tgisinternal
    AND n.nspname = COALESCE(CAST(:schema AS text), current_schema())"""
