"""`export`: a session or all of them, to a file or to standard output."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Final, TypeVar

import click

from kern_events.cli.opening import check_output, database, failure, refusing, sessions_at

if TYPE_CHECKING:
    from kern_events import Sessions

_FORMATS: Final = ("jsonl", "cloudevents", "agui", "otel", "parquet")

T = TypeVar("T")


@click.command()
@click.argument("session", required=False)
@click.option("--format", "form", type=click.Choice(_FORMATS), default="jsonl", show_default=True)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="A file (- is stdout); it is there whole, or not at all.",
)
@database
def export(session: str | None, form: str, output: str | None, db: str, namespace: str) -> None:
    """Write SESSION, or all sessions, as JSON lines, or as a Parquet file.

    jsonl is everything that is recorded, for `kern-events import`; the others are for other programs.
    """
    from kern_events.cli.text import console

    output = None if output == "-" else output
    if form == "parquet" and output is None:
        raise click.UsageError("--format parquet needs --output FILE")
    if output is not None:
        check_output(output, db)
    with (
        sessions_at(db, namespace, recorded=True) as sessions,
        refusing(ImportError),
        _opened(output) as file,
    ):
        if form == "parquet":
            from kern_events.exports.parquet import write

            write(_of_each(sessions, session, sessions.read), file)
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
    from kern_events.exports import agui, cloudevents, otel
    from kern_events.exports.sessions import every_line, live_events

    if form == "jsonl":
        return every_line(sessions) if session is None else sessions.export(session)
    convert: Mapping[str, Callable[[str], Iterator[bytes]]] = {
        "cloudevents": lambda each: cloudevents.lines(sessions.read(each)),
        "agui": lambda each: agui.lines(live_events(sessions, each), each),
        "otel": lambda each: otel.lines(sessions.read(each)),
    }
    return _of_each(sessions, session, convert[form])


def _of_each(sessions: Sessions, session: str | None, convert: Callable[[str], Iterator[T]]) -> Iterator[T]:
    """What there is of the session, or of all but those that are deleted meanwhile."""
    from kern_events.errors import SessionNotFound
    from kern_events.exports.sessions import every_session

    if session is not None:
        yield from convert(session)
        return
    for info in every_session(sessions):
        with suppress(SessionNotFound):
            yield from convert(info.session_id)


@contextmanager
def _opened(output: str | None) -> Iterator[IO[bytes]]:
    """Standard output, or a file that gets its name when it is complete."""
    if output is None:
        yield sys.stdout.buffer
    elif os.path.exists(output) and not os.path.isfile(output):
        with _said(output), open(os.open(output, os.O_WRONLY), "wb") as file:  # A device or a pipe stays one.
            yield file
    else:
        with _replaced(os.path.realpath(output)) as file:
            yield file


@contextmanager
def _replaced(path: str) -> Iterator[IO[bytes]]:
    """A new file beside another one, whose place it takes at the end; nobody but its owner may read it."""
    # A name that nobody can foresee, and never where a link leads.
    part = os.path.join(os.path.dirname(path), f".kern-events-{secrets.token_hex(8)}.part")
    try:
        with _said(path), open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with _said(path):
            with suppress(FileNotFoundError):
                os.chmod(part, 0o600 & os.stat(path).st_mode)
            os.replace(part, path)
            _sync_folder(os.path.dirname(path))
    finally:
        with suppress(OSError):
            os.unlink(part)


def _sync_folder(path: str) -> None:
    """Have what was renamed in a folder be so after a power cut, too."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _said(path: str) -> Iterator[None]:
    """What the operating system has against a file, on one line."""
    try:
        yield
    except OSError as error:
        raise failure(ValueError(f"{path}: {error.strerror or error}")) from error
