"""`rebuild`, `project`, `status` and `parked`: keeping snapshots warm, and seeing who follows the log."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import click

from kern_events.cli.named import failing, named
from kern_events.cli.opening import database, failure, refusing, sessions_at
from kern_events.cli.options import as_json

if TYPE_CHECKING:
    from kern_events.consumer import ConsumerStatus
    from projections import RebuildReport


def _projector(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """The projector that the command line names; a class is called without arguments."""
    if value is None:
        return None
    found = named("a projector", value, "shop.views:Totals")
    try:
        found = found() if isinstance(found, type) else found
    except Exception as error:
        raise failing(repr(value), error) from error
    missing = [each for each in ("name", "version", "scope", "initial", "evolve") if not hasattr(found, each)]
    if missing:
        raise click.BadParameter(f"{value!r} is no projector: it has no {', '.join(missing)}")
    return found


projector_option = click.option(
    "--projector",
    metavar="MODULE:NAME",
    callback=_projector,
    help="One of your own; without it, the session view.",
)
cache_option = click.option(
    "--cache", metavar="URL", envvar="KERN_EVENTS_CACHE", show_envvar=True, help="redis://… as well."
)


@click.command()
@projector_option
@cache_option
@click.option("--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes.")
@click.option("--check", is_flag=True, help="Compare what is stored with fresh folds; store nothing.")
@click.option("--prune", is_flag=True, help="Drop the snapshots by other versions of the projector.")
@database
@as_json
def rebuild(
    projector: Any, cache: str | None, workers: int, check: bool, prune: bool, db: str, namespace: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Make the stored snapshots anew, after a projector or event types have changed.

    May be stopped at any time, and goes on where it was; appends and loads go on meanwhile. Exit code 1:
    a session failed, or a snapshot differs with --check.
    """
    from kern_events.cli.reports import progress
    from kern_events.cli.text import console, put_json
    from kern_events.spi import sizes

    with sessions_at(db, namespace, cache=cache, empty=True) as sessions, refusing(ValueError):
        total = sizes(sessions)[1]
        with progress("comparing" if check else "rebuilding", total) as advance:
            report = sessions.rebuild(
                projector,
                workers=workers,
                check=check,
                prune=prune,
                progress=lambda report: advance(report.events, _so_far(report)),
            )
    if as_json:
        put_json(console(), _report_json(report))
    else:
        _put_report(report, check)
    raise click.exceptions.Exit(0 if report.ok else 1)


def _so_far(report: RebuildReport) -> str:
    from kern_events.cli.text import counted

    left = max(0, report.total_events - report.events)
    estimate = f", about {left / report.events_per_s:,.0f} s left" if report.events_per_s else ""
    return f"{counted(report.sessions, 'session')}, {report.events_per_s:,.0f} events per second{estimate}"


def _report_json(report: RebuildReport) -> dict[str, Any]:
    import msgspec

    return {"ok": report.ok, "events_per_s": report.events_per_s, **msgspec.to_builtins(report)}


def _put_report(report: RebuildReport, check: bool) -> None:
    from kern_events.cli.text import console, counted, one_line
    from projections.caches.tiers import AT_LEAST

    errors = console(stderr=True)
    for each in report.failures:
        at = "" if each.version is None else f", version {each.version}"
        said = f"{one_line(each.session_id)}{at}: {one_line(each.reason)}"
        errors.print(said, style="red", soft_wrap=True)
    if report.failed > len(report.failures):
        errors.print(f"and {report.failed - len(report.failures):,} more", style="red")
    words = {
        "short": f"not stored (fewer than {AT_LEAST} events, or incomplete)",
        "rebuilt": "equal" if check else "stored",
        "current": "stored already",
        "gone": "deleted or erased meanwhile",
    }
    kinds = ("rebuilt", "current", "short", "gone", "failed")
    counts = [f"{getattr(report, kind):,} {words.get(kind, kind)}" for kind in kinds if getattr(report, kind)]
    out = console()
    out.print(
        f"{one_line(report.projector)}: {counted(report.sessions, 'session')}: {', '.join(counts) or 'none'}"
    )
    if report.pruned:
        out.print(f"{counted(report.pruned, 'row')} by other versions dropped")
    out.print(
        f"{counted(report.events, 'event')} in {report.seconds:.2f} s, "
        f"{report.events_per_s:,.0f} events per second"
    )


@click.command()
@projector_option
@cache_option
@click.option("--once", is_flag=True, help="Stop when everything is done.")
@database
def project(projector: Any, cache: str | None, once: bool, db: str, namespace: str) -> None:
    """Load what others append, until Ctrl-C or SIGTERM, so that Redis and stored snapshots are warm.

    Any number may run; one works, and another takes over within a second when it dies.
    """
    from kern_events.cli.text import console, counted

    with sessions_at(db, namespace, cache=cache, empty=True) as sessions, refusing(ValueError):
        worker = sessions.warmer(projector)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: worker.stop())
        console(stderr=True).print(f"following as {worker.name}", soft_wrap=True)
        events = worker.run(until_idle=once)
    console(stderr=True).print(f"{counted(events, 'event')} taken")


@click.command()
@database
@as_json
def status(db: str, namespace: str, as_json: bool) -> None:
    """Show how much there is, who follows it and how far behind, what holds the feed up, what is amiss."""
    from kern_events.cli.text import console, counted, one_line, put_json
    from kern_events.spi import differences, sizes

    with sessions_at(db, namespace, empty=True) as log:
        count, events = sizes(log)
        consumers, holders, wrong = log.consumers(), log.feed_held_by(), differences(log)
    out = console()
    if as_json:
        put_json(
            out,
            {
                "sessions": count,
                "events": events,
                "consumers": [each._asdict() for each in consumers],
                "feed_held_by": [each._asdict() for each in holders],
                "schema": [each._asdict() for each in wrong],
            },
        )
        return
    out.print(f"{counted(count, 'session')}, {counted(events, 'event')}")
    _put_consumers(consumers)
    for holder in holders:
        who = "a prepared transaction" if holder.pid is None else f"server process {holder.pid}"
        out.print(f"the feed waits for {who}, {holder.age_s:.1f} s old", style="yellow")
    for each in wrong:
        said = f"schema: {one_line(str(each))}; `kern-events migrate` mends it"
        out.print(said, style="red", soft_wrap=True)


def _put_consumers(consumers: list[ConsumerStatus]) -> None:
    from rich.table import Table

    from kern_events.cli.text import console, moment, one_line
    from kern_events.events import to_datetime

    if not consumers:
        console().print("no consumers")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("consumer", "position", "behind", "lag", "parked", "given up", "last moved"):
        table.add_column(column, justify="left" if column in ("consumer", "last moved") else "right")
    for each in consumers:
        more = "+" if each.behind >= 10_000 else ""
        table.add_row(
            one_line(each.name), f"{each.position:,}", f"{each.behind:,}{more}", f"{each.lag_s:.1f} s",
            f"{each.parked:,}", f"{each.given_up:,}", moment(to_datetime(each.updated_us)),
        )  # fmt: skip
    console().print(table)


@click.command()
@click.argument("consumer")
@click.option("--retry", metavar="SESSION", help="Try this one again.")
@click.option("--skip", metavar="SESSION", help="Pass over the event that this one fails at.")
@database
@as_json
def parked(
    consumer: str, retry: str | None, skip: str | None, db: str, namespace: str, as_json: bool
) -> None:
    """Show the sessions that CONSUMER has set aside, or have one tried again."""
    from kern_events.cli.text import console, moment, one_line, put_json
    from kern_events.events import to_datetime

    if retry and skip:
        raise click.UsageError("either --retry or --skip")
    with sessions_at(db, namespace, empty=True) as log, refusing(ValueError):
        worker = log.consumer(consumer, lambda events: None)
        found = worker.parked()
        if chosen := retry or skip:
            version = next((each.version for each in found if each.session_id == chosen), None)
            done = version is not None and (worker.retry(chosen) if retry else worker.skip(chosen, version))
            if not done:
                raise failure(ValueError(f"session {chosen!r} is not set aside by {consumer!r}"))
            found = worker.parked()
    if as_json:
        put_json(console(), {"parked": [each._asdict() for each in found]})
        return
    for each in found:
        when = "waits for --retry or --skip"
        if each.retry_us is not None:
            when = f"tried again at {moment(to_datetime(each.retry_us))}"
        said = f"{one_line(each.session_id)} from version {each.version}: {one_line(each.error)}"
        console().print(f"{said}, attempt {each.attempts}, {when}", soft_wrap=True)
    if not found:
        console().print("nothing is set aside")
