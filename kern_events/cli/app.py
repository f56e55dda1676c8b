"""The commands, each with what it takes and prints."""

from __future__ import annotations

import time
from datetime import datetime
from typing import IO, Any, Final

import click

from kern_events import __version__
from kern_events.cli.erase import delete
from kern_events.cli.export import export
from kern_events.cli.migrating import migrate
from kern_events.cli.opening import database, failure, refusing, sessions_at
from kern_events.cli.options import as_json, at_time
from kern_events.cli.past import branches, diff, fork, replay, restore
from kern_events.cli.work import cache_option, parked, project, rebuild, status

_POLL_S: Final = 0.25
_TAIL: Final = 10
_INSTALL: Final = {
    "bash": "# To install: echo 'eval \"$(kern-events completion bash)\"' >> ~/.bashrc",
    "zsh": "# To install: echo 'eval \"$(kern-events completion zsh)\"' >> ~/.zshrc",
    "fish": "# To install: kern-events completion fish > ~/.config/fish/completions/kern-events.fish",
}


class _Commands(click.Group):
    """A group whose commands fail with one line instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        from kern_events import _check_projections
        from kern_events.errors import KernError

        with refusing(ImportError):
            _check_projections()
        try:
            return super().invoke(ctx)
        except KernError as error:
            raise failure(error) from error
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            said = error.strerror or str(error)
            raise failure(ValueError(f"{error.filename}: {said}" if error.filename else said)) from error
        except KeyboardInterrupt:
            raise click.exceptions.Exit(130) from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Append-only logs of agent conversations: import, read, go back, verify."""


@cli.command("import")
@click.argument("file", type=click.File("rb"))
@click.option(
    "--link-parents",
    is_flag=True,
    help="Let forks go on from sessions of the same user that are recorded here, and not in FILE.",
)
@click.option(
    "--max-line-bytes",
    type=click.IntRange(1, 1 << 40),
    metavar="N",
    help="A longer line is bad, and passed over; by default 16 MiB, or enough for --max-payload-bytes.",
)
@click.option(
    "--max-payload-bytes",
    type=click.IntRange(1, 16 << 20),
    metavar="N",
    help="A larger payload is bad; 1 MiB by default, 16 MiB at most.",
)
@database
@as_json
def import_(
    file: IO[bytes],
    link_parents: bool,
    max_line_bytes: int | None,
    max_payload_bytes: int | None,
    db: str,
    namespace: str,
    as_json: bool,
) -> None:
    """Record FILE (- is stdin): conversations, one JSON line each, in OpenAI chat form; or an export.

    The first line that is not blank tells which. Importing a file again records only what is new. Exit
    code 1: a line is bad, or a conversation or session differs from what is recorded.
    """
    from kern_events.cli.reports import import_file

    with sessions_at(db, namespace, create=True, max_payload_bytes=max_payload_bytes) as sessions:
        ok = import_file(
            sessions, file, link_parents=link_parents, max_line_bytes=max_line_bytes, as_json=as_json
        )
    raise click.exceptions.Exit(0 if ok else 1)


@cli.command()
@click.option("--user", metavar="ID", help="Only sessions of this user.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@click.option("--after", metavar="CURSOR", help="Go on behind the page before.")
@database
@as_json
def ls(user: str | None, limit: int, after: str | None, db: str, namespace: str, as_json: bool) -> None:
    """List sessions, the most recently active first; of an empty namespace, say which others there are."""
    from kern_events.cli.reports import put_sessions

    with sessions_at(db, namespace, empty=True) as sessions, refusing(ValueError):
        page = sessions.sessions(user_id=user, after=after, limit=limit + 1)
    put_sessions(page[:limit], more=len(page) > limit, as_json=as_json)


@cli.command()
@click.argument("session")
@click.option("--turn", type=int, help="As of this turn: before the next one started.")
@click.option("--version", type=int, help="As of this version.")
@at_time("As of this time")
@click.option("--events", is_flag=True, help="The events as they are recorded.")
@database
@as_json
def show(
    session: str,
    turn: int | None,
    version: int | None,
    at: datetime | None,
    events: bool,
    db: str,
    namespace: str,
    as_json: bool,
) -> None:
    """Show a conversation, now or as it was."""
    from kern_events.cli.show import put_conversation, put_recorded
    from kern_events.cli.text import console, put_json

    points = [point for point in (turn, version, at) if point is not None]
    if len(points) > 1:
        raise click.UsageError("--turn, --version and --at exclude each other")
    out = console()
    with sessions_at(db, namespace) as sessions:
        if events and not points:
            put_recorded(out, sessions, session, sessions.head(session).version, as_json=as_json)
            return
        with refusing(ValueError):
            view = sessions.load(session, turn=turn, version=version, at=at)
        if events:
            put_recorded(out, sessions, session, view.version, as_json=as_json)
        elif as_json:
            put_json(out, view.to_dict())
        else:
            put_conversation(out, view)


@cli.command()
@click.argument("session")
@click.option("--follow", "-f", is_flag=True, help="Go on as events are recorded, until Ctrl-C.")
@database
@as_json
def tail(session: str, follow: bool, db: str, namespace: str, as_json: bool) -> None:
    """Show the last events of a session."""
    from kern_events.cli.show import put_events
    from kern_events.cli.text import console

    out = console()
    with sessions_at(db, namespace) as sessions:
        last = max(0, sessions.head(session).version - _TAIL)
        while True:
            last = put_events(out, sessions.read(session, after=last), as_json=as_json) or last
            if not follow:
                return
            out.file.flush()
            time.sleep(_POLL_S)


@cli.command()
@click.argument("session", required=False)
@click.option("--snapshots", is_flag=True, help="Compare the newest stored snapshots with the events, too.")
@cache_option
@database
@as_json
def verify(
    session: str | None, snapshots: bool, cache: str | None, db: str, namespace: str, as_json: bool
) -> None:
    """Recompute the hash chain of SESSION, or of all. Exit code 1: something is not as recorded."""
    from kern_events.cli.reports import verify_sessions

    with sessions_at(db, namespace, cache=cache) as sessions:
        ok = verify_sessions(sessions, session, snapshots=snapshots, as_json=as_json)
    raise click.exceptions.Exit(0 if ok else 1)


@cli.command()
@click.argument("file", type=click.File("rb"), required=False)
@click.option("--db", metavar="URL", default="sqlite:///kern-events-demo.db", show_default=True)
def demo(file: IO[bytes] | None, db: str) -> None:
    """Record a small agent at work, or your own conversations (FILE), and look back."""
    from kern_events.demo import run

    with sessions_at(db, "default", create=True) as sessions:
        run(sessions, db, file)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands and options in a shell."""
    from click.shell_completion import get_completion_class

    completer = get_completion_class(shell)
    assert completer is not None
    click.echo(_INSTALL[shell])
    click.echo(completer(cli, {}, "kern-events", "_KERN_EVENTS_COMPLETE").source())


_OTHERS: Final = (
    *(export, restore, fork, delete, branches, replay, diff),
    *(rebuild, project, status, parked, migrate),
)
for command in _OTHERS:
    cli.add_command(command)
