"""What `ls`, `verify` and `import` print, and how far a long one has come."""

from __future__ import annotations

import os
import shlex
import time
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, repeat
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from kern_events.bundle import is_header
from kern_events.cli.text import console, counted, moment, one_line, put_json
from kern_events.errors import StoreError
from kern_events.events import SessionInfo
from kern_events.imports import EventsReport, import_events, line_limit
from kern_events.lines import Line, TooLong, lines_of
from kern_events.transfer import MAX_PROBLEMS, ImportReport, Problem, import_transcripts
from kern_events.verify import SCHEMA, Finding, Report

if TYPE_CHECKING:
    from kern_events import Sessions
    from kern_events.log import SessionLog

_DRAW_EVERY_S: Final = 0.1
_PLAIN_EVERY_S: Final = 10.0
_SHOWN_PROBLEMS: Final = 20  # of an import; a file that is something else has one a line

R = TypeVar("R", EventsReport, ImportReport)

Advance = Callable[[int, str], None]  # how much is done of the total, and how to say it


def put_sessions(page: Sequence[SessionInfo], *, more: bool, as_json: bool = False) -> None:
    """Print a page of sessions, and how to get the next one."""
    cursor = page[-1].cursor if more else None
    out = console()
    if as_json:
        put_json(out, {"sessions": [_session_json(info) for info in page], "next": cursor})
        return
    if not page:
        out.print("no sessions")
        return
    out.print(_table(page))
    if cursor:
        console(stderr=True).print(
            f"more: the same command with --after {one_line(shlex.quote(cursor))}", soft_wrap=True
        )


def verify_sessions(
    sessions: Sessions, session_id: str | None, *, snapshots: bool = False, as_json: bool = False
) -> bool:
    """Verify one session or all, and print every finding; whether there is none."""
    with progress("verifying", None) as advance:
        report = sessions.verify(
            session_id,
            snapshots=snapshots,
            progress=lambda sessions, events: advance(
                events, f"{counted(sessions, 'session')}, {counted(events, 'event')}"
            ),
        )
    out = console()
    if as_json:
        put_json(out, {"ok": report.ok, **msgspec.to_builtins(report)})
    else:
        put_verified(out, report, snapshots=snapshots)
    return report.ok


def put_verified(out: Console, report: Report, *, snapshots: bool = False) -> None:
    """Print a report of verify: findings, notes, and the sum."""
    for finding in report.findings:
        out.print(_finding(finding), style="red", soft_wrap=True)
    for note in report.notes:
        out.print(f"note: {one_line(note)}", style="yellow", soft_wrap=True)
    read = f"{counted(report.sessions, 'session')}, {counted(report.events, 'event')}"
    if snapshots:
        read += f", {counted(report.snapshots, 'snapshot')} compared"
    if report.ok:
        out.print(f"{read}: everything is as it was recorded", style="green")
    else:
        out.print(f"{read}: {counted(len(report.findings), 'finding')}", style="bold red")


def import_file(
    log: SessionLog,
    file: IO[bytes],
    *,
    link_parents: bool = False,
    max_line_bytes: int | None = None,
    as_json: bool = False,
) -> bool:
    """Import transcripts or an export, and print what became of it; whether all of it is recorded."""
    limit = line_limit(log) if max_line_bytes is None else max_line_bytes
    lines = lines_of(file, limit)
    blank, first = _first(lines)
    whole = chain(repeat(b"\n", blank), [first], lines)
    if isinstance(first, bytes) and is_header(first):
        return _import_events(log, file, whole, limit, link_parents=link_parents, as_json=as_json)
    return _import_transcripts(log, file, whole, limit, as_json=as_json)


def _first(lines: Iterator[Line]) -> tuple[int, Line]:
    """How many blank lines come first, and the line behind them."""
    blank = 0
    for line in lines:
        if isinstance(line, TooLong) or line.removeprefix(BOM_UTF8).strip():
            return blank, line
        blank += 1
    return blank, b""


def _import_events(
    log: SessionLog, file: IO[bytes], lines: Iterable[Line], limit: int, *, link_parents: bool, as_json: bool
) -> bool:
    with progress("importing", _size_bytes(file)) as advance, _counting_anyway() as count:
        report = import_events(
            log,
            lines,
            max_line_bytes=limit,
            link_parents=link_parents,
            progress=lambda report: advance(
                count(report).size_bytes,
                f"{counted(report.read, 'event')}, {report.events_per_s:,.0f} per second",
            ),
        )
    if as_json:
        speed = {"ok": report.ok, "events_per_s": report.events_per_s}
        put_json(console(), {**speed, **msgspec.to_builtins(report)})
    else:
        put_imported_events(console(), console(stderr=True), report)
    return report.ok


def put_imported_events(out: Console, errors: Console, report: EventsReport) -> None:
    """Print a report of an import of events; what was not imported goes to `errors`."""
    _put_problems(errors, report.problems, report.bad_lines + report.diverged + report.failed)
    kinds = ("new", "extended", "unchanged", "diverged", "failed")
    counts = [f"{getattr(report, kind):,} {kind}" for kind in kinds if getattr(report, kind)]
    out.print(f"{counted(report.sessions, 'session')}: {', '.join(counts) or 'none'}")
    if report.bad_lines:
        out.print(counted(report.bad_lines, "bad line"))
    out.print(
        f"{counted(report.events, 'event')} of {report.read:,} recorded in {report.seconds:.2f} s, "
        f"{report.events_per_s:,.0f} events per second"
    )


def _import_transcripts(
    log: SessionLog, file: IO[bytes], lines: Iterable[Line], limit: int, *, as_json: bool
) -> bool:
    with progress("importing", _size_bytes(file)) as advance, _counting_anyway() as count:
        report = import_transcripts(
            log,
            lines,
            max_line_bytes=limit,
            progress=lambda report: advance(
                count(report).size_bytes,
                f"{counted(report.messages, 'message')}, {report.messages_per_s:,.0f} per second",
            ),
        )
    if as_json:
        speed = {"ok": report.ok, "messages_per_s": report.messages_per_s}
        put_json(console(), {**speed, **msgspec.to_builtins(report)})
    else:
        put_imported(console(), console(stderr=True), report)
    return report.ok


def put_imported(out: Console, errors: Console, report: ImportReport) -> None:
    """Print a report of an import; what was not imported goes to `errors`."""
    _put_problems(errors, report.problems, report.bad_lines + report.diverged + report.refused)
    kinds = ("new", "extended", "unchanged", "diverged", "refused")
    counts = [f"{getattr(report, kind):,} {kind}" for kind in kinds if getattr(report, kind)]
    out.print(f"{counted(report.conversations, 'conversation')}: {', '.join(counts) or 'none'}")
    if report.bad_lines:
        out.print(counted(report.bad_lines, "bad line"))
    out.print(
        f"{counted(report.messages, 'message')}, {counted(report.turns, 'turn')}, "
        f"{counted(report.tool_calls, 'tool call')}, {report.tool_calls_paired:,} with a result"
    )
    out.print(
        f"{counted(report.events, 'event')} recorded in {report.seconds:.2f} s, "
        f"{report.messages_per_s:,.0f} messages per second"
    )


@contextmanager
def _counting_anyway() -> Iterator[Callable[[R], R]]:
    """Say what is recorded also where the database fails in the middle: by the last report that was given."""
    latest: list[Any] = []

    def keep(report: R) -> R:
        latest[:] = [report]
        return report

    try:
        yield keep
    except StoreError:
        events = latest[0].events if latest else 0
        console(stderr=True).print(
            f"{counted(events, 'event')} recorded before the database failed: import it again to go on there",
            soft_wrap=True,
        )
        raise


def _put_problems(errors: Console, problems: Sequence[Problem], failed: int) -> None:
    for problem in problems[:_SHOWN_PROBLEMS]:
        session = f" ({one_line(problem.session_id)})" if problem.session_id else ""
        said = f"line {problem.line:,}{session}: {problem.kind.replace('_', ' ')}: {one_line(problem.reason)}"
        errors.print(said, style="red", soft_wrap=True)
    more = (failed if len(problems) == MAX_PROBLEMS else len(problems)) - _SHOWN_PROBLEMS
    if more > 0:
        errors.print(f"and {more:,} more; --json has the first {MAX_PROBLEMS:,}", style="red")


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Advance]:
    """A progress bar on stderr, or a plain line now and then where that is no terminal."""
    out = console(stderr=True)
    if not out.is_terminal:
        yield _now_and_then(_PLAIN_EVERY_S, lambda done, said: _put_plain(out, f"{what} {said}", done, total))
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    # A thread that refreshes on its own would halve the speed of what it shows.
    with Progress(*columns, console=out, transient=True, auto_refresh=False) as bar:
        task = bar.add_task(what, total=total)
        yield _now_and_then(
            _DRAW_EVERY_S,
            lambda done, said: bar.update(task, completed=done, description=f"{what} {said}", refresh=True),
        )


def _now_and_then(every_s: float, advance: Advance) -> Advance:
    last_s = time.monotonic()

    def throttled(done: int, said: str) -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= every_s:
            last_s = time.monotonic()
            advance(done, said)

    return throttled


def _put_plain(out: Console, said: str, done: int, total: int | None) -> None:
    out.print(said + (f", {done / total:.0%}" if total else ""))


def _size_bytes(file: IO[bytes]) -> int | None:
    try:
        return os.fstat(file.fileno()).st_size or None
    except (OSError, ValueError):
        return None


def _session_json(info: SessionInfo) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(info)
    return {**fields, "events": _events(info), "cursor": info.cursor}


def _events(info: SessionInfo) -> int:
    # A fork goes on from its parent's version, and holds what came since.
    return info.version - (info.fork_version or 0)


def _table(page: Sequence[SessionInfo]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("session", overflow="fold")
    table.add_column("turns", justify="right")
    table.add_column("events", justify="right")
    table.add_column("last activity", no_wrap=True)
    optional = [field for field in ("user_id", "name") if any(getattr(info, field) for info in page)]
    for field in optional:
        table.add_column(field.removesuffix("_id"), overflow="fold")
    if any(info.status != "open" for info in page):
        optional.append("status")
        table.add_column("status")
    forks = any(info.fork_parent is not None for info in page)
    if forks:
        table.add_column("forked from", overflow="fold")
    for info in page:
        cells = [one_line(getattr(info, field) or "") for field in optional]
        cells += [_origin(info)] if forks else []
        shown = (one_line(info.session_id), f"{info.turn:,}", f"{_events(info):,}", moment(info.updated_at))
        table.add_row(*shown, *cells)
    return table


def _origin(info: SessionInfo) -> str:
    return "" if info.fork_parent is None else f"{one_line(info.fork_parent)}@{info.fork_version}"


def _finding(finding: Finding) -> str:
    said = f"expected {one_line(finding.expected)}, found {one_line(finding.found)}"
    if finding.problem == SCHEMA:
        return f"schema: {one_line(finding.field)}: {said}"
    place = f"{one_line(finding.session_id)} version {finding.version:,}"
    return f"{place}: {finding.problem} {finding.field}: {said}"
