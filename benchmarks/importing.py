"""P12: how fast are transcripts imported?

The floor has every row ready and writes it to the plainest table in one transaction: by executemany
on SQLite, by COPY on Postgres. The import parses, guards, hashes and can be repeated.
`KERN_EVENTS_TRANSCRIPTS` names a file of real conversations to import as well.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import orjson

from benchmarks import floors, workload
from benchmarks.measure import Bench, Result
from kern_events import SessionLog
from kern_events.transfer import ImportReport, conversation_of, import_transcripts

_TURNS: Final = 7  # of each conversation, like the real ones
_VARIABLE: Final = "KERN_EVENTS_TRANSCRIPTS"

Floor = Callable[[Sequence[floors.Row]], None]


def run(bench: Bench) -> Iterator[Result]:
    """Made-up conversations, and real ones where there are any."""
    rounds, conversations = (3, 150) if bench.quick else (7, 600)
    yield from _both(
        bench, workload.transcripts(conversations, _TURNS), rounds, "made-up conversations", 0.45
    )
    if path := os.environ.get(_VARIABLE):
        lines = Path(path).read_bytes().splitlines(keepends=True)
        yield from _both(bench, lines, rounds, f"  {Path(path).stem}", None)


def _both(
    bench: Bench, lines: Sequence[bytes], rounds: int, what: str, at_least: float | None
) -> Iterator[Result]:
    rows = _rows(lines)
    databases: dict[str, tuple[Callable[[], str], Callable[[], Floor]]] = {
        "SQLite, executemany": (lambda: f"sqlite:///{bench.sqlite()}", lambda: _executemany(bench)),
        "Postgres, COPY": (bench.postgres, lambda: _copy(bench)),
    }
    for name, (database, floor) in databases.items():
        ours, theirs, reports = [], [], []
        for number in range(-1, rounds):
            reports.append(_import(database(), lines))
            write = floor()
            began = time.perf_counter()
            write(rows)
            rate = len(rows) / (time.perf_counter() - began)
            if number >= 0:
                theirs.append(rate)
                ours.append(reports[-1].events / reports[-1].seconds)
            bench.clean()
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        yield _result(f"import, {what}, {name}", reports[-1], ours, theirs, ratio, at_least)


def _result(
    what: str,
    report: ImportReport,
    ours: list[float],
    theirs: list[float],
    ratio: float,
    at_least: float | None,
) -> Result:
    events, raw = statistics.median(ours), statistics.median(theirs)
    messages = events * report.messages / report.events
    numbers = {
        "events_per_s": events,
        "messages_per_s": messages,
        "raw_events_per_s": raw,
        "events": report.events,
    }
    return Result(
        "P12", f"{what} ({messages:,.0f} messages/s)", f"{events:,.0f} ev/s", f"{raw:,.0f} ev/s", ratio,
        "" if at_least is None else f"≥ {at_least:.2f}x", None if at_least is None else ratio >= at_least,
        numbers,
    )  # fmt: skip


def _import(url: str, lines: Sequence[bytes]) -> ImportReport:
    with SessionLog(url) as log:
        log.migrate()
        report = import_transcripts(log, lines)
    if not report.ok:
        raise RuntimeError(f"not imported: {report.problems[0]}")
    return report


def _rows(lines: Sequence[bytes]) -> list[floors.Row]:
    """What the import records, as rows of the plainest table."""
    rows = []
    for line in lines:
        conversation = conversation_of(orjson.loads(line))
        drafts = enumerate(conversation.drafts, 1)
        rows += [
            (
                conversation.session_id,
                version,
                draft.type,
                time.time_ns() // 1_000,
                orjson.dumps(draft.payload),
            )
            for version, draft in drafts
        ]
    return rows


def _executemany(bench: Bench) -> Floor:
    connection = floors.sqlite_bare(bench.sqlite())

    def write(rows: Sequence[floors.Row]) -> None:
        with closing(connection):
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(floors.sqlite_insert(1), rows)
            connection.execute("COMMIT")

    return write


def _copy(bench: Bench) -> Floor:
    cursor = floors.postgres_bare(bench.postgres())

    def write(rows: Sequence[Any]) -> None:
        with closing(cursor.connection), cursor.copy(floors.POSTGRES_COPY) as copy:
            copy.set_types(("text", "int8", "text", "int8", "bytea"))
            for row in rows:
                copy.write_row(row)

    return write
