"""`python -m benchmarks [NAME ...] [--quick] [--json FILE]`: all questions, one table."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks import workload
from benchmarks.measure import Bench, Result

NAMES: Final = (
    "append",
    "length",
    "load",
    "snapshots",
    "scaling",
    "size",
    "writers",
    "group_commit",
    "importing",
    "replay",
    "feed",
    "agno",
)


def main() -> int:
    """Run what was asked for; 1 if a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--quick", action="store_true", help="less than a minute, with more noise")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers too")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    console = Console(width=None if sys.stdout.isatty() else 120)
    with Bench(quick=options.quick) as bench:
        facts = bench.facts()
        results, failed = _run(bench, console, options.names or NAMES)
        facts["load_after"] = round(os.getloadavg()[0], 2)
        _print(console, facts, results)
        if options.json:
            document = {**facts, "failed": failed, "results": [result._asdict() for result in results]}
            options.json.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return int(bool(failed) or any(result.held is False for result in results))


def _run(bench: Bench, console: Console, names: Sequence[str]) -> tuple[list[Result], list[str]]:
    """The results, and which questions could not be answered."""
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in names}
    results: list[Result] = []
    failed: list[str] = []
    for name, module in modules.items():
        started = time.perf_counter()
        try:
            with console.status(f"{name} ..."):
                results += module.run(bench)
                bench.clean()
        except Exception:  # The other answers are worth having.
            console.print_exception()
            failed.append(name)
        console.print(f"{name}: {time.perf_counter() - started:.0f} s", style="dim")
    return results, failed


def _print(console: Console, facts: dict[str, Any], results: Sequence[Result]) -> None:
    table = Table(title="kern-events: what it costs, beside the raw driver in the same run")
    table.add_column("")
    table.add_column("question")
    for column in ("ours", "floor", "ratio", "target"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    for result in results:
        ratio = "" if result.ratio is None else f"{result.ratio:.2f}x"
        verdict = {None: "", True: "[green]held", False: "[red]missed"}[result.held]
        table.add_row(*result[:4], ratio, result.target, verdict)
    console.print(table)
    console.print(_about(facts), style="dim", highlight=False)


def _about(facts: dict[str, Any]) -> str:
    turns = list(workload.turns(256))
    size = workload.payload_bytes(turns) / len(turns)
    machine = facts["machine"]
    load = f"load {machine['load_1m']} to {facts['load_after']}"
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return (
        f"One turn: 8 events, {size:,.0f} bytes of payload, seed {facts['seed']}. "
        f"{machine['processor']}, {machine['cores']} cores, {load}, "
        f"fdatasync {machine['fdatasync_ms']} ms; {versions}; commit {facts['commit']}"
        + (", --quick" if facts["quick"] else "")
    )


if __name__ == "__main__":
    sys.exit(main())
