"""`kern-events`: import and export, list and show sessions, follow them, go back in them, verify them.

The commands are in app.py, export.py and past.py. What they need is imported when they run, so that
`--help` is fast.
"""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; exits with 0, 1 (an error or a finding), 2 (wrong usage) or 130 (Ctrl-C)."""
    from kern_events.cli.app import cli

    # Nor do processes that `rebuild --workers` starts look for Python's own modules where the user is.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets an escape instead of a traceback.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        cli.main(prog_name="kern-events")
    finally:
        _flush()


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has gone (`| head`); the interpreter would complain on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
