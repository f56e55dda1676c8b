"""From `--db` to an open log, and from errors to one line on stderr."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from kern_events import Sessions

F = TypeVar("F", bound=Callable[..., Any])

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


def database(command: F) -> F:
    """Give a command the options that say which log it works on."""
    return _DB(_NAMESPACE(command))


@contextmanager
def sessions_at(db: str, namespace: str, *, create: bool = False) -> Iterator[Sessions]:
    """The sessions of a database; a SQLite file that is not there is made only with `create`."""
    from kern_events import Sessions

    with refusing(ValueError, ImportError):
        sessions = Sessions.open(db, namespace=namespace)
        if not create:
            _check_exists(db)
    with sessions:
        yield sessions


@contextmanager
def refusing(*errors: type[Exception]) -> Iterator[None]:
    """Turn errors that say what the user has to change into one line and exit code 1."""
    try:
        yield
    except errors as error:
        raise failure(error) from error


def failure(error: Exception) -> click.ClickException:
    """An error as click shows it: one line on stderr, exit code 1."""
    from kern_events.cli.text import one_line

    return click.ClickException(one_line(" ".join(str(error).split())))


def _check_exists(db: str) -> None:
    from sqlalchemy import make_url

    url = make_url(db) if db not in ("memory:", "memory://") else None
    path = url.database if url is not None and url.get_backend_name() == "sqlite" else None
    if path and path != ":memory:" and not path.startswith("file:") and not os.path.exists(path):
        raise ValueError(f"there is no database {path!r}: `kern-events import FILE` and `migrate` make one")
