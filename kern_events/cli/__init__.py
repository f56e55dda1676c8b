"""`kern-events`: import and export, list and show sessions, follow them, go back in them, verify them.

The commands are in app.py, export.py and past.py. What they need is imported when they run, so that
`--help` is fast.
"""

from __future__ import annotations

import io
import os
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; exits with 0, 1 (an error or a finding), 2 (wrong usage) or 130 (Ctrl-C)."""
    try:
        sys.exit(_run())
    except KeyboardInterrupt:
        sys.exit(130)


def _run() -> int:
    _open_standard_streams()
    # Nor do processes that `rebuild --workers` starts look for Python's own modules where the user is.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets an escape instead of a traceback.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    from kern_events.cli.app import cli

    try:
        cli.main(prog_name="kern-events")
    except SystemExit as end:
        return _flushed(end.code if isinstance(end.code, int) else 0)


def _open_standard_streams() -> None:
    """Take the place of streams that are closed, so that no file gets their numbers and is written to.

    What is read from standard input or written to standard output is an error then.
    """
    for number, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # Open as long as the process is there.
            file = open(number, "rb" if number == 0 else "wb", closefd=False)  # noqa: SIM115
            setattr(sys, name, io.TextIOWrapper(file, "utf-8"))


def _flushed(code: int) -> int:
    """The exit code, once all is written."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # The interpreter would complain on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if code == 0 and not isinstance(error, BrokenPipeError):  # `| head` has enough, and that is all.
            print(f"Error: standard output: {error.strerror}", file=sys.stderr)
            return 1
    return code
