"""The commands that go back in a session: restore, fork, branches, replay, diff."""

from __future__ import annotations

import math
from datetime import datetime
from typing import TYPE_CHECKING, Final, TypedDict

import click
from click.core import ParameterSource

from kern_events.cli.opening import SCHEMA_KEY, SIGNED_BY, database, refusing, sessions_at, shown_url
from kern_events.cli.options import as_json, at_time

if TYPE_CHECKING:
    from kern_events import Receipt, Sessions
    from projections import Diff

_SLOWEST: Final = 0.001  # The operating system does not sleep for ages.


class _Point(TypedDict):
    to_turn: int | None
    to_version: int | None
    to_time: datetime | None


@click.command()
@click.argument("session")
@click.option("--turn", type=int, help="Back to the end of this turn: before the next one started.")
@click.option("--version", type=int, help="Back to this version, which may be one that was abandoned.")
@at_time("Back to this time")
@click.option("--reason", metavar="TEXT", help="Why; kept with the session.")
@click.option("--actor", metavar="ID", help="Who does it: a pseudonymous id, which cannot be erased.")
@click.option("--dry-run", is_flag=True, help="Only show what would no longer count.")
@database
@as_json
@click.pass_context
def restore(
    ctx: click.Context,
    session: str,
    turn: int | None,
    version: int | None,
    at: datetime | None,
    reason: str | None,
    actor: str | None,
    dry_run: bool,
    db: str,
    namespace: str,
    as_json: bool,
) -> None:
    """Take a session back to an earlier point.

    Nothing is deleted: what no longer counts stays readable, and can be restored to.
    """
    if (turn, version, at).count(None) != 2:
        raise click.UsageError("exactly one of --turn, --version and --at says where to go back to")
    from kern_events.cli.text import console, put_json
    from kern_events.cli.travel import command, put_preview, put_restored, receipt_json

    point = _Point(to_turn=turn, to_version=version, to_time=at)
    receipt: Receipt | None = None
    with sessions_at(db, namespace) as sessions, refusing(ValueError):
        if dry_run:
            diff = sessions.preview_restore(session, **point)
        else:
            diff, receipt = _restored(sessions, session, point, reason, actor)
        turn = sessions.load(session, version=diff.after).turn
    if as_json:
        shown = None if receipt is None else receipt_json(receipt)
        put_json(console(), {"dry_run": dry_run, "turn": turn, "receipt": shown, "diff": diff.to_dict()})
    elif receipt is None:
        put_preview(console(), diff, turn)
    else:
        undo = command("restore", session, "--version", str(diff.before), *_given(ctx))
        put_restored(console(), diff, receipt, turn, undo)


@click.command()
@click.argument("session")
@click.argument("into")
@click.option("--turn", type=int, help="As of this turn: before the next one started.")
@click.option("--version", type=int, help="As of this version, which may be one that was abandoned.")
@at_time("As of this time")
@database
@as_json
def fork(
    session: str,
    into: str,
    turn: int | None,
    version: int | None,
    at: datetime | None,
    db: str,
    namespace: str,
    as_json: bool,
) -> None:
    """Begin session INTO with the past of SESSION."""
    if (turn, version, at).count(None) < 2:
        raise click.UsageError("--turn, --version and --at exclude each other")
    from kern_events.cli.text import console, put_json
    from kern_events.cli.travel import put_forked, receipt_json

    with sessions_at(db, namespace) as sessions, refusing(ValueError):
        receipt = sessions.fork(session, into, turn=turn, version=version, at=at)
        turn = sessions.load(into, version=receipt.version).turn
    if as_json:
        place = {"fork_parent": session, "fork_version": receipt.first_version - 1, "turn": turn}
        put_json(console(), {**place, "receipt": receipt_json(receipt)})
    else:
        put_forked(console(), session, receipt, turn)


@click.command()
@click.argument("session")
@database
@as_json
def branches(session: str, db: str, namespace: str, as_json: bool) -> None:
    """Show the branches and forks of a session."""
    import msgspec

    from kern_events.cli.branches import put_branches
    from kern_events.cli.text import console, put_json

    with sessions_at(db, namespace) as sessions:
        tree = sessions.branches(session)
    if as_json:
        put_json(console(), msgspec.to_builtins(tree))
    else:
        put_branches(console(), tree)


@click.command()
@click.argument("session")
@click.option("--pace", type=float, metavar="FACTOR", help="Wait as it was: 1, or 10 times as fast: 10.")
@click.option("--log", "everything", is_flag=True, help="Everything, abandoned turns too.")
@click.option("--full", is_flag=True, help="With --json: the whole view after each event.")
@database
@as_json
def replay(
    session: str, pace: float | None, everything: bool, full: bool, db: str, namespace: str, as_json: bool
) -> None:
    """Show a session once more, event by event."""
    if full and not as_json:
        raise click.UsageError("--full goes with --json")
    if pace is not None and not _SLOWEST <= pace < math.inf:
        raise click.UsageError(f"--pace is a number from {_SLOWEST}, not {pace:g}")
    from kern_events.cli.show import live_on
    from kern_events.cli.text import console
    from kern_events.cli.travel import put_replay, put_replay_json
    from kern_events.spi import live_path

    out = console()
    with sessions_at(db, namespace) as sessions:
        steps = sessions.replay(session, scope="log" if everything else "live", pace=pace)
        live = live_on(live_path(sessions, session, sessions.head(session).version))
        if as_json:
            put_replay_json(out, steps, live, paced=pace is not None, full=full)
        else:
            put_replay(out, steps, live, paced=pace is not None)


@click.command()
@click.argument("session")
@click.argument("a", type=int)
@click.argument("b", type=int)
@click.option("--turns", is_flag=True, help="A and B are turns, each at its end.")
@database
@as_json
def diff(session: str, a: int, b: int, turns: bool, db: str, namespace: str, as_json: bool) -> None:
    """Show what differs between versions A and B."""
    from kern_events.cli.text import console, put_json
    from kern_events.cli.travel import put_difference

    with sessions_at(db, namespace) as sessions, refusing(ValueError):
        if turns:
            a, b = (sessions.load(session, turn=number).version for number in (a, b))
        found = sessions.diff(session, a, b)
    if as_json:
        put_json(console(), found.to_dict())
    else:
        put_difference(console(), found)


def _restored(
    sessions: Sessions, session: str, point: _Point, reason: str | None, actor: str | None
) -> tuple[Diff, Receipt]:
    """Restore, and say what exactly that changed."""
    from kern_events.errors import VersionConflict

    while True:
        found = sessions.preview_restore(session, **point)
        try:
            # The version, as what a turn or a time means may be another one a moment later.
            receipt = sessions.restore(
                session, to_version=found.after, reason=reason, actor=actor, expected=found.before
            )
        except VersionConflict:
            continue  # Somebody appended in between: the point that was asked for is still the one meant.
        return found, receipt


def _given(ctx: click.Context) -> list[str]:
    """The options that another command needs too, to find the same log."""
    given = []
    for name in ("db", "namespace"):
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            value = ctx.params[name]
            given += [f"--{name}", shown_url(value) if name == "db" else value]
    if SCHEMA_KEY in ctx.find_root().meta:
        given += ["--schema", ctx.find_root().meta[SCHEMA_KEY]]
    if SIGNED_BY in ctx.find_root().meta:
        given += ["--secret-file", ctx.find_root().meta[SIGNED_BY][0]]
    return given
