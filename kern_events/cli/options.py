"""Options that several commands take."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

as_json: Final = click.option("--json", "as_json", is_flag=True, help="For programs: JSON, exact, in ASCII.")


def at_time(help: str) -> Callable[[F], F]:
    """Give a command `--at`: an aware time."""
    return click.option(
        "--at", metavar="TIME", callback=_instant, help=f"{help}, as in 2026-01-31T14:00:00Z."
    )


def _instant(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
    """An ISO 8601 time with its zone."""
    if value is None:
        return None
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a time like 2026-01-31T14:00:00Z", ctx, param) from None
    if at.tzinfo is None:
        raise click.BadParameter(f"{value!r} has no time zone: add Z for UTC, or one like +02:00", ctx, param)
    return at
