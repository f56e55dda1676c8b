"""Text for a terminal: what comes out of a log is data, so nothing in it may act or hide.

Control characters (ANSI codes with them), bidirectional and other invisible characters are shown as
escapes like \\x1b or \\u202e. A text that holds such letters itself looks the same; `--json` is exact.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime
from typing import IO, Any, Final

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from kern_events.exports.lines import json_text

_SUSPECT: Final = re.compile(r"[^\n\t -~]")
_PIPED_WIDTH: Final = 10_000  # so that nothing is wrapped for a program

# They count as letters, marks and symbols, and show as nothing.
_BLANK: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def visible(text: str) -> str:
    """The text with everything escaped that is not seen, or does more than be seen; lines stay lines."""
    return _SUSPECT.sub(lambda match: _escaped(match[0]), text)


def one_line(text: str) -> str:
    """As visible, on one line whatever the text holds."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def clipped(text: str, limit: int) -> str:
    """The first `limit` characters, and how many more there are."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]} … {len(text) - limit:,} more characters, all of them with --json"


def console(file: IO[str] | None = None, *, stderr: bool = False) -> Console:
    """A console that interprets no markup and wraps only for a terminal."""
    out = Console(file=file, stderr=stderr, markup=False, highlight=False, emoji=False)
    if not out.is_terminal:
        out.width = _PIPED_WIDTH
    return out


def put(out: Console, text: str | Text, style: str = "", *, indent: int = 0) -> None:
    """Print lines, wrapped and indented for a terminal, as they are for a pipe."""
    shown = Text(text, style) if isinstance(text, str) else text
    if out.is_terminal:
        out.print(Padding(shown, (0, 0, 0, indent), expand=False))
        return
    for line in shown.split("\n", allow_blank=True):
        out.print(Text(" " * indent if line else "").append(line), soft_wrap=True)


def put_json(out: Console, value: Any) -> None:
    """Print one JSON document on one line, in ASCII, so that no terminal is moved by it.

    A number that JSON does not have is null: a sum of usage may have become infinite.
    """
    out.file.write(json_text(value) + "\n")


def moment(at: datetime) -> str:
    """A time in UTC, to the second."""
    return at.strftime("%Y-%m-%d %H:%M:%SZ")


def counted(count: int, noun: str) -> str:
    """As in `1 turn` and `1,200 turns`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _escaped(char: str) -> str:
    seen = char.isprintable() or unicodedata.category(char) == "Zs"
    if seen and not _BLANK.match(char):
        return char
    return char.encode("unicode_escape").decode()
