"""P12: how fast are transcripts imported?

Two floors with every value ready, by executemany on SQLite and by COPY on Postgres: the same rows,
which the import made, into the same tables; and the payloads alone as rows of the plainest table. The
import parses, guards, hashes and can be repeated.
`KERN_EVENTS_TRANSCRIPTS` names a file of real conversations to import as well.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from benchmarks import floors, workload
from benchmarks.measure import Bench, Result, Timings
from kern_events import SessionLog
from kern_events.batch import ROW_COLUMNS
from kern_events.store import migrate, sql
from kern_events.store.wire import Cursor
from kern_events.transfer import ImportReport, import_transcripts

_TURNS: Final = 7  # of each conversation, like the real ones
_GROUP: Final = 4_000  # rows in a transaction on SQLite, where one for all does not fit its cache
_VARIABLE: Final = "KERN_EVENTS_TRANSCRIPTS"

_COLUMNS: Final = ", ".join(ROW_COLUMNS)

Write = Callable[[], None]


def run(bench: Bench) -> Iterator[Result]:
    """Made-up conversations, and real ones where there are any."""
    rounds, conversations = (3, 100) if bench.quick else (9, 600)
    made_up = workload.transcripts(conversations, _TURNS)
    yield from _compared(bench, _SQLite(bench), made_up, rounds, "made-up conversations", 0.45)
    yield from _compared(bench, _Postgres(bench), made_up, rounds, "made-up conversations", 0.45)
    if path := os.environ.get(_VARIABLE):
        real, name = Path(path).read_bytes().splitlines(keepends=True), Path(path).stem
        yield from _compared(bench, _SQLite(bench), real, rounds, name)
        yield from _compared(bench, _Postgres(bench), real, rounds, name)


class _SQLite:
    """What is written how, on SQLite."""

    name = "SQLite"
    how = "executemany"

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def new(self) -> str:
        """The URL of a new database."""
        return f"sqlite:///{self._bench.sqlite()}"

    def recorded(self, url: str) -> tuple[list[Any], list[Any]]:
        """The rows that an import made, and the same as bare ones."""
        with closing(sqlite3.connect(floors.sqlite_path(url))) as connection:
            rows = connection.execute(
                f"SELECT session, {_COLUMNS} FROM kern_events ORDER BY position"
            ).fetchall()
            bare = connection.execute(
                "SELECT s.session_id, e.version, e.type, e.at, e.payload FROM kern_events AS e "
                "JOIN kern_sessions AS s ON s.id = e.session ORDER BY e.position"
            ).fetchall()
        return rows, bare

    def same(self, url: str, rows: Sequence[Any]) -> Write:
        """Writes these rows to the tables of a new database."""
        return self._many(floors.sqlite_ours(floors.sqlite_path(url)), sql.sqlite_insert(1), rows)

    def bare(self, rows: Sequence[floors.Row]) -> Write:
        """Writes rows to the plainest table."""
        return self._many(floors.sqlite_bare(self._bench.sqlite()), floors.sqlite_insert(1), rows)

    def _many(self, connection: sqlite3.Connection, insert: str, rows: Sequence[Any]) -> Write:
        def write() -> None:
            with closing(connection):
                for start in range(0, len(rows), _GROUP):
                    connection.execute("BEGIN IMMEDIATE")
                    connection.executemany(insert, rows[start : start + _GROUP])
                    connection.execute("COMMIT")

        return write


class _Postgres:
    """What is written how, on Postgres."""

    name = "Postgres"
    how = "COPY"

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def new(self) -> str:
        """See _SQLite."""
        return self._bench.postgres()

    def recorded(self, url: str) -> tuple[list[Any], list[Any]]:
        """See _SQLite."""
        cursor = floors.postgres_ours(url)
        with closing(cursor.connection):
            rows = cursor.execute(
                f"SELECT namespace, session_id, {_COLUMNS} FROM kern_events ORDER BY position".encode()
            ).fetchall()
        return rows, [(row[1], row[2], row[4], row[9], row[15]) for row in rows]

    def same(self, url: str, rows: Sequence[Any]) -> Write:
        """See _SQLite."""
        statements = sql.PostgresSQL("", migrate.latest("postgres"))
        return self._copy(floors.postgres_ours(url), statements.copy, _OUR_TYPES, rows)

    def bare(self, rows: Sequence[floors.Row]) -> Write:
        """See _SQLite."""
        cursor = floors.postgres_bare(self._bench.postgres())
        return self._copy(cursor, floors.POSTGRES_COPY, _BARE_TYPES, rows)

    def _copy(self, cursor: Cursor, statement: str, types: Sequence[str], rows: Sequence[Any]) -> Write:
        def write() -> None:
            with closing(cursor.connection), cursor.copy(statement) as copy:
                copy.set_types(types)
                for row in rows:
                    copy.write_row(row)

        return write


_BARE_TYPES: Final = ("text", "int8", "text", "int8", "bytea")
_OUR_TYPES: Final = (
    "text", "text", "int8", "bytea", "text", "int4", "int2", "int8", "int8", "int8", "text", "bytea", "text",
    "int2", "bytea", "bytea", "bytea", "bytea", "bytea",
)  # fmt: skip


def _compared(
    bench: Bench, database: _SQLite | _Postgres, lines: Sequence[bytes], rounds: int, what: str,
    at_least: float | None = None,
) -> Iterator[Result]:  # fmt: skip
    url = database.new()
    report, _ = _import(url, lines)
    recorded, bare = database.recorded(url)
    timings = Timings(("import", "same", "bare"))
    for number in range(-1, rounds):
        bench.clean()
        empty = database.new()
        with SessionLog(empty) as log:
            log.migrate()
        taken = {
            "import": _import(database.new(), lines)[1],
            "same": _seconds(database.same(empty, recorded)),
            "bare": _seconds(database.bare(bare)),
        }
        for name in taken if number >= 0 else ():
            timings.add(name, [taken[name]])
    ours = report.events / timings.median("import")
    for floor, said in (("same", "same rows"), ("bare", "bare rows")):
        ratio = timings.ratio(floor, "import")
        target = at_least if floor == "same" else None
        raw = report.events / timings.median(floor)
        numbers = {"events_per_s": ours, "raw_events_per_s": raw, "events": report.events}
        messages = ours * report.messages / report.events
        question = f"import, {what}, {database.name} ({messages:,.0f} messages/s), {database.how} of {said}"
        yield Result(
            "P12", question, f"{ours:,.0f} ev/s", f"{raw:,.0f} ev/s", ratio,
            "" if target is None else f"≥ {target:.2f}x", None if target is None else ratio >= target,
            {**numbers, "messages_per_s": messages},
        )  # fmt: skip


def _seconds(write: Write) -> float:
    began = time.perf_counter()
    write()
    return time.perf_counter() - began


def _import(url: str, lines: Sequence[bytes]) -> tuple[ImportReport, float]:
    with SessionLog(url) as log:
        log.migrate()
        began = time.perf_counter()
        report = import_transcripts(log, lines)
        taken = time.perf_counter() - began
    if not report.ok:
        raise RuntimeError(f"not imported: {report.problems[0]}")
    return report, taken
