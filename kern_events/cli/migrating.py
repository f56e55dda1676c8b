"""`kern-events migrate`: the tables of the log, and those of an Agno Db."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import click

from kern_events.cli.opening import SCHEMA_KEY, database, refusing, sessions_at
from kern_events.cli.options import as_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kern_events.adapters.agno.deploying import SetUp
    from kern_events.store.base import Difference

_SESSIONS: Final = "agno_sessions"
_RUNS: Final = "agno_runs"


@click.command()
@click.option("--agno", is_flag=True, help="Set up an Agno database: its tables of sessions and runs, too.")
@click.option("--runs-table", metavar="NAME", help=f"Agno's table of runs.  [default: {_RUNS}]")
@database
@as_json
def migrate(agno: bool, runs_table: str | None, db: str, namespace: str, as_json: bool) -> None:
    """Create the tables, bring them up to date, or mend what is missing of them.

    With --agno, --namespace is Agno's table of sessions, agno_sessions if it is not given, and --schema
    that of its tables, ai if it is not given.
    """
    from kern_events.spi import differences

    if agno:
        _put(_set_up(db, namespace, runs_table or _RUNS), as_json=as_json)
        return
    if runs_table is not None:
        raise click.UsageError("--runs-table is for --agno")
    with sessions_at(db, namespace, create=True) as sessions:
        mended = differences(sessions)
        before, after = sessions.migrate()
    if as_json:
        _put_json(_numbers(before, after, mended))
    else:
        _put_numbers(before, after, mended)


def _set_up(db: str, namespace: str, runs_table: str) -> SetUp:
    with refusing(ImportError):
        from kern_events.adapters.agno.deploying import set_up
    from agno.exceptions import MigrationRequiredError

    from kern_events.spi import namespaces

    if db in ("memory:", "memory://"):
        raise click.UsageError("--agno is for a database: sqlite:///agno.db or postgresql://user@host/database")
    with sessions_at(db, namespace, create=True) as log:
        namespaces(log)  # It can be reached, then, or that is told as ever.
    schema = click.get_current_context().find_root().meta.get(SCHEMA_KEY)
    table = _SESSIONS if namespace == "default" else namespace.removeprefix(f"{schema or 'ai'}.")
    logging.getLogger("agno").setLevel(logging.CRITICAL + 1)  # It writes to where our output goes.
    with refusing(MigrationRequiredError):
        return set_up(db, table, runs_table, schema)


def _put(done: SetUp, *, as_json: bool) -> None:
    from kern_events.cli.text import one_line

    if as_json:
        agnos = {"sessions": done.sessions, "runs": done.runs, "namespace": done.namespace}
        numbers = _numbers(done.before, done.after, done.mended)
        _put_json({**numbers, "agno": {**agnos, "made": done.made}})
        return
    _put_numbers(done.before, done.after, done.mended)
    said = "set up" if done.made else "nothing to do"
    click.echo(one_line(f"Agno's tables {done.sessions}, {done.runs}: {said}; namespace {done.namespace}"))


def _numbers(before: int, after: int, mended: Sequence[Difference]) -> dict[str, Any]:
    return {"before": before, "after": after, "mended": [each._asdict() for each in mended]}


def _put_json(value: dict[str, Any]) -> None:
    from kern_events.cli.text import console, put_json

    put_json(console(), value)


def _put_numbers(before: int, after: int, mended: Sequence[Difference]) -> None:
    for each in mended:
        click.echo(f"mended: {each.what}")
    if mended and before == after:
        return
    click.echo(f"schema {before} -> {after}" if before != after else f"schema {after}: nothing to do")
