"""`delete`: a session and what was said in it, for good."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from kern_events.cli.opening import database, sessions_at
from kern_events.cli.options import as_json
from kern_events.cli.work import cache_option

if TYPE_CHECKING:
    from kern_events import Head, Sessions
    from projections import DeleteReceipt


@click.command()
@click.argument("session")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--actor", metavar="ID", help="Who does it: a pseudonymous id, which cannot be erased.")
@cache_option
@database
@as_json
def delete(
    session: str, yes: bool, actor: str | None, cache: str | None, db: str, namespace: str, as_json: bool
) -> None:
    """End SESSION and erase its content for good, for its forks too.

    Asks on a terminal; elsewhere it takes --yes. Exit code 1: there is no such session, or the answer was no.
    """
    from kern_events.cli.reports import progress
    from kern_events.cli.text import console, put_json
    from kern_events.cli.travel import receipt_json
    from kern_events.errors import SessionNotFound

    with sessions_at(db, namespace, cache=cache) as sessions:
        head = sessions.head(session)
        if head.status == "deleted" or not head.version:
            raise SessionNotFound(session)
        if not yes:
            _ask(session, head)
        with progress("erasing", head.version) as advance:
            receipt = sessions.delete(
                session, actor=actor, progress=lambda done, of: advance(done, f"{done:,} of {of:,} versions")
            )
        forks = _left(sessions, session)
    if as_json:
        put_json(console(), {"receipt": receipt_json(receipt), "forks": forks})
    else:
        _put_deleted(session, receipt, forks)


def _ask(session: str, head: Head) -> None:
    from kern_events.cli.text import one_line

    if not sys.stdin.isatty():
        raise click.UsageError("nobody can be asked here: --yes erases without asking")
    said = f"erase what was said in session {one_line(session)}, {head.version:,} versions, for good?"
    click.confirm(said, abort=True, err=True)


def _left(sessions: Sessions, session: str) -> list[str]:
    """The forks that go on, and theirs."""
    from kern_events import spi

    forks = spi.descendants(sessions, session)
    return [each for each in forks if sessions.head(each).status != "deleted"]


def _put_deleted(session: str, receipt: DeleteReceipt, forks: list[str]) -> None:
    from kern_events.cli.text import console, counted, one_line

    out = console()
    out.print(f"session {one_line(session)} is deleted, and its content erased", style="bold", soft_wrap=True)
    remains = f"ids, types, times, actor, meta and hashes of its events up to version {receipt.version:,}"
    out.print(f"what remains: {remains}", soft_wrap=True)
    if forks:
        said = f"{counted(len(forks), 'fork')} without an owner now, unless they were given one: "
        out.print(said + ", ".join(map(one_line, forks)), style="yellow", soft_wrap=True)
    if not receipt.purged:
        said = "Redis was not reached: copies there stay until they expire"
        console(stderr=True).print(said, style="yellow", soft_wrap=True)
