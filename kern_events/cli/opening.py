"""From `--db` to an open log, and from errors to one line on stderr."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

import click

from kern_events.cli.named import named

if TYPE_CHECKING:
    from sqlalchemy import URL

    from kern_events import Sessions
    from projections.sessions import LogOptions

F = TypeVar("F", bound=Callable[..., Any])

# What may be printed of a URL. Everything else is hidden: `password`, of course, but also `options`, which
# may set anything, the names of files with keys and passwords, and what a later driver may take.
_NO_SECRETS: Final = frozenset(
    {
        *("host", "hostaddr", "port", "dbname", "user", "service", "connect_timeout", "application_name"),
        *("client_encoding", "sslmode", "sslnegotiation", "sslrootcert", "channel_binding", "require_auth"),
        *("gssencmode", "krbsrvname", "target_session_attrs", "load_balance_hosts", "keepalives"),
        *("keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
        *("prepare_threshold", "uri", "mode", "cache", "immutable", "nolock", "timeout"),
    }
)

_FILES: Final = frozenset({"passfile", "sslcert", "sslcrl", "sslkey", "sslrootcert"})

_NAMED: Final = 20  # namespaces; there may be any number

_TYPES_KEY: Final = "kern_events.types"
SCHEMA_KEY: Final = "kern_events.schema"
SIGNED_BY: Final = "kern_events.signed_by"  # Of the file's path, and what is in it.


class _WrongUsage(click.ClickException):
    """One line without the usage of the command, which would not help."""

    exit_code = 2


_DB: Final = click.option(
    "--db",
    metavar="URL",
    required=True,
    envvar="KERN_EVENTS_DB",
    show_envvar=True,
    help="sqlite:///file.db or postgresql://user@host/database",
)
_NAMESPACE: Final = click.option(
    "--namespace",
    metavar="NAME",
    default="default",
    envvar="KERN_EVENTS_NAMESPACE",
    show_envvar=True,
    help="The tenant.",
)


def _event_types(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Leaves the event types that the command line names where `sessions_at` finds them."""
    if value is None:
        return
    from kern_events import EventTypes

    types = named("event types", value, "shop.events:TYPES")
    if not isinstance(types, EventTypes):
        raise click.BadParameter(f"{value!r} is {type(types).__name__}, not an EventTypes")
    ctx.find_root().meta[_TYPES_KEY] = types


_TYPES: Final = click.option(
    "--types",
    metavar="MODULE:NAME",
    envvar="KERN_EVENTS_TYPES",
    show_envvar=True,
    callback=_event_types,
    expose_value=False,
    help="The application's event types.",
)


def _schema(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Leaves the schema where `sessions_at` finds it."""
    if value is not None:
        ctx.find_root().meta[SCHEMA_KEY] = value


_SCHEMA: Final = click.option(
    "--schema",
    metavar="NAME",
    envvar="KERN_EVENTS_SCHEMA",
    show_envvar=True,
    callback=_schema,
    expose_value=False,
    help="The Postgres schema of the log's tables, if it is not the first of the search path.",
)


def _secret(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Leaves the secret where `sessions_at` finds it."""
    if value is None:
        return
    try:
        with open(value, "rb") as file:
            secret = file.read().rstrip(b"\r\n")
    except OSError as error:
        raise click.BadParameter(f"{value!r} cannot be read: {error.strerror}") from None
    if not secret:
        raise click.BadParameter(f"{value!r} is empty")
    ctx.find_root().meta[SIGNED_BY] = (value, secret)


_SECRET: Final = click.option(
    "--secret-file",
    metavar="FILE",
    envvar="KERN_EVENTS_SECRET_FILE",
    show_envvar=True,
    callback=_secret,
    expose_value=False,
    help="Holds the secret that signs stored snapshots; line breaks at its end do not count.",
)


def database(command: F) -> F:
    """Give a command the options that say which log it works on, and how it is read."""
    return _DB(_NAMESPACE(_SCHEMA(_TYPES(_SECRET(command)))))


@contextmanager
def sessions_at(
    db: str,
    namespace: str,
    *,
    create: bool = False,
    empty: bool = False,
    cache: str | None = None,
    recorded: bool = False,
    max_payload_bytes: int | None = None,
) -> Iterator[Sessions]:
    """The sessions of a database; one that is not there is made only with `create`, and else is an error.

    So is a namespace of which nothing is recorded; with `empty`, it is only told. With `recorded`, events
    are as they were recorded, whatever `--types` says.
    """
    from kern_events import Sessions

    with refusing(ImportError), refusing(ValueError, shown=_WrongUsage):
        path = _file_of(_url(db))
        ctx = click.get_current_context(silent=True)
        said = ctx.find_root().meta if ctx else {}
        options: LogOptions = {"schema": said[SCHEMA_KEY]} if SCHEMA_KEY in said else {}
        if _TYPES_KEY in said and not recorded:
            options["types"] = said[_TYPES_KEY]
        if max_payload_bytes is not None:
            options["max_payload_bytes"] = max_payload_bytes
        _, secret = said.get(SIGNED_BY, (None, None))
        sessions = Sessions.open(db, cache=cache, secret=secret, namespace=namespace, **options)
    with sessions:
        if not create:
            _check_there(sessions, db, path, empty=empty)
        yield sessions


def _check_there(sessions: Sessions, db: str, path: str | None, *, empty: bool) -> None:
    from kern_events.cli.text import console, one_line
    from kern_events.spi import namespaces

    found = namespaces(sessions)
    if found is None:
        where = _where(db, path)
        raise failure(ValueError(f"there is no {where}: `kern-events import FILE` and `migrate` make one"))
    if sessions.namespace in found:
        return
    said = f"nothing is recorded in namespace {sessions.namespace!r}"
    if found:
        others = ", ".join(map(repr, found[:_NAMED])) + (", ..." if len(found) > _NAMED else "")
        said += f": there are sessions in {others}"
    if not empty:
        raise failure(ValueError(said))
    console(stderr=True).print(one_line(said), style="yellow", soft_wrap=True)


def _where(db: str, path: str | None) -> str:
    """What is not there."""
    if path:
        is_there = path.startswith("file:") or os.path.exists(path)
        return f"log in {path!r}" if is_there else f"database {path!r}"
    ctx = click.get_current_context(silent=True)
    schema = ctx.find_root().meta.get(SCHEMA_KEY) if ctx else None
    return f"log in {f'schema {schema!r} of ' if schema else ''}{shown_url(db)}"


def check_output(output: str, db: str) -> None:
    """Refuse to write to a file that the command reads: the database, what belongs to it, the secret."""
    with refusing(ValueError, shown=_WrongUsage):
        url = _url(db)
    read = [str(value) for key, value in url.query.items() if key in _FILES] if url else []
    if path := _file_of(url):
        path = unquote(urlsplit(path).path) if path.startswith("file:") else path
        # SQLite puts them beside the file itself, wherever a link to it is.
        read += [os.path.realpath(path) + suffix for suffix in ("", "-wal", "-shm", "-journal")]
    read += click.get_current_context().find_root().meta.get(SIGNED_BY, ())[:1]
    if any(_is_same(output, each) for each in read):
        raise click.BadParameter(f"{output!r} is a file that this command reads", param_hint="'--output'")


def _is_same(path: str, other: str) -> bool:
    """Whether two paths lead to one file, or would."""
    with suppress(OSError):
        if os.path.samefile(path, other):
            return True
    return os.path.realpath(path) == os.path.realpath(other)


@contextmanager
def refusing(
    *errors: type[Exception], shown: type[click.ClickException] = click.ClickException
) -> Iterator[None]:
    """Turn errors that say what the user has to change into one line and exit code 1, or that of `shown`."""
    try:
        yield
    except errors as error:
        raise failure(error, shown) from error


def failure(
    error: Exception, shown: type[click.ClickException] = click.ClickException
) -> click.ClickException:
    """An error as click shows it: one line on stderr, exit code 1, or that of `shown`."""
    from kern_events.cli.text import one_line

    return shown(one_line(" ".join(str(error).split())))


def shown_url(url: str) -> str:
    """A URL as it may be printed: without the password, and of its options only what is no secret."""
    from sqlalchemy import make_url

    parsed = make_url(url)
    query = {name: value if name.lower() in _NO_SECRETS else "***" for name, value in parsed.query.items()}
    return parsed.set(query=query).render_as_string(hide_password=True).replace("%2A%2A%2A", "***")


def _url(db: str) -> URL | None:
    """The URL of a database, None for memory; ValueError, which never tells a password."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    if db in ("memory:", "memory://"):
        return None
    try:
        return make_url(db)
    except (ArgumentError, ValueError):
        # A part of the URL that is no port, say, may be a password without its host.
        raise ValueError(
            "--db is not a URL: use sqlite:///file.db or postgresql://user@host/database"
        ) from None


def _file_of(url: URL | None) -> str | None:
    """The file of a SQLite URL, or the URI of one; None of another URL."""
    if url is None or url.get_backend_name() != "sqlite" or url.database == ":memory:":
        return None
    return url.database
