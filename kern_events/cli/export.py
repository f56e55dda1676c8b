"""`export`: a session or all of them, to a file or to standard output."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Final

import click

from kern_events.cli.opening import database, failure, refusing, sessions_at

if TYPE_CHECKING:
    from kern_events import Event, Sessions

_FORMATS: Final = ("jsonl", "cloudevents", "agui", "otel", "parquet")

Counted = Callable[[bytes], None]


@click.command()
@click.argument("session", required=False)
@click.option("--format", "form", type=click.Choice(_FORMATS), default="jsonl", show_default=True)
@click.option(
    "--output", "-o", type=click.Path(dir_okay=False), help="A file; it is there whole, or not at all."
)
@database
def export(session: str | None, form: str, output: str | None, db: str, namespace: str) -> None:
    """Write SESSION, or all sessions, as JSON lines, or as a Parquet file.

    jsonl is everything that is recorded, for `kern-events import`; the others are for other programs.
    """
    from kern_events.cli.text import console

    if form == "parquet" and output is None:
        raise click.UsageError("--format parquet needs --output FILE")
    with sessions_at(db, namespace) as sessions, refusing(ImportError), _opened(output) as file:
        if form == "parquet":
            from kern_events.exports.parquet import write

            write(_events(sessions, session), file)
        else:
            _put(file, _lines(sessions, session, form))
    if output is not None and os.path.isfile(output):
        console(stderr=True).print(f"{os.path.getsize(output):,} bytes written")


def _put(file: IO[bytes], lines: Iterator[bytes]) -> None:
    """Write lines; how far it has come is shown where that does not stand between them."""
    from kern_events.cli.reports import progress
    from kern_events.cli.text import console, counted

    if not console(stderr=True).is_terminal or file.isatty():
        file.writelines(lines)
        return
    size_bytes = count = 0
    with progress("exporting", None) as advance:
        for line in lines:
            file.write(line)
            size_bytes, count = size_bytes + len(line), count + 1
            advance(size_bytes, f"{counted(count, 'line')}, {size_bytes:,} bytes")


def _lines(sessions: Sessions, session: str | None, form: str) -> Iterator[bytes]:
    from kern_events.exports.sessions import every_line

    if form == "jsonl":
        return every_line(sessions) if session is None else sessions.export(session)
    made = (_converted(sessions, each, form) for each in _ids(sessions, session))
    return (line for lines in made for line in lines)


def _converted(sessions: Sessions, session: str, form: str) -> Iterator[bytes]:
    """One session in a format of others."""
    from kern_events.exports import agui, cloudevents, otel
    from kern_events.exports.sessions import live_events

    if form == "agui":
        return agui.lines(live_events(sessions, session), session)
    events = sessions.read(session)
    return cloudevents.lines(events) if form == "cloudevents" else otel.lines(events)


def _events(sessions: Sessions, session: str | None) -> Iterator[Event]:
    return (event for each in _ids(sessions, session) for event in sessions.read(each))


def _ids(sessions: Sessions, session: str | None) -> Iterator[str]:
    """The session, or all of them but those that are deleted meanwhile."""
    from kern_events.exports.sessions import every_session

    if session is not None:
        yield session
        return
    for info in every_session(sessions):
        if sessions.head(info.session_id).status != "deleted":
            yield info.session_id


@contextmanager
def _opened(output: str | None) -> Iterator[IO[bytes]]:
    """Standard output, or a file that gets its name when it is complete."""
    if output is None:
        yield sys.stdout.buffer
        return
    if os.path.exists(output) and not os.path.isfile(output):
        with _said(output), open(output, "wb") as file:  # A device or a pipe stays what it is.
            yield file
        return
    output = os.path.realpath(output)
    part = f"{output}.part"
    try:
        with _said(part), open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with _said(output):
            os.replace(part, output)
    except BaseException:
        if os.path.isfile(part):
            os.unlink(part)
        raise


@contextmanager
def _said(path: str) -> Iterator[None]:
    """What the operating system has against a file, on one line."""
    try:
        yield
    except OSError as error:
        raise failure(ValueError(f"{path}: {error.strerror or error}")) from error
