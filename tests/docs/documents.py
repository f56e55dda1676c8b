"""The examples in the documents: which blocks there are, and how one is run.

A comment in front of a block says what is special about it: `<!-- file: NAME -->` puts it into the
folder that the examples run in, `<!-- needs: postgres -->` gives it a database, `<!-- needs: redis -->` a
Redis. Otherwise a document's
blocks run one after the other in one folder, as a reader would type them. What a Python block prints
has to be what the comments behind its prints say; what a command prints has to be what is shown.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import click
from click.testing import CliRunner
from sqlalchemy.engine import Engine

from kern_events.cli.app import cli

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    *("README.md", "ARCHITECTURE.md", "docs/events.md", "docs/export.md", "docs/robustness.md"),
    *("docs/schema-changes.md", "docs/feed.md", "docs/agno.md"),
)
POSTGRES_URL = "postgresql+psycopg://user@host/database"
REDIS_URL = "redis://localhost"

_BLOCK = re.compile(r"(?:^<!-- (\w+): (\S+) -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SAID = re.compile(r"print\(.*\)  # (.*)|^    # (.*)")  # or, where a loop prints, comments below it
# What differs from run to run: times, speeds, ids and hashes; and a note about this machine's SQLite.
_MASKS = (
    (re.compile(r"^note: SQLite .*\n", re.MULTILINE), ""),
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ"), "TIME"),
    (re.compile(r"\d+\.\d\d s, [\d,]+ (messages|events) per second"), "SPEED"),
    (re.compile(r"\b[0-9a-f]{32,64}\b"), "HEX"),
)


class Block(NamedTuple):
    """A fenced block: where it stands, what language it is in, and what is said in front of it."""

    document: str
    line: int
    language: str
    text: str
    key: str | None
    value: str | None

    @property
    def postgres(self) -> bool:
        """Whether it needs a Postgres."""
        return (self.key, self.value) == ("needs", "postgres")


def text_of(document: str) -> str:
    """The text of a document."""
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str) -> Iterator[Block]:
    """The fenced blocks of a document, in order."""
    text = text_of(document)
    for found in _BLOCK.finditer(text):
        key, value, language, body = found.groups()
        yield Block(document, text.count("\n", 0, found.start(4)), language, body, key, value)


def run(
    block: Block,
    folder: Path,
    environment: dict[str, str],
    *,
    postgres_url: str = POSTGRES_URL,
    redis_url: str = REDIS_URL,
) -> None:
    """Run one block in the folder, which has to be the current one."""
    if block.key == "file":
        assert block.value
        (folder / block.value).write_text(block.text, encoding="utf-8")
    elif block.language == "python":
        run_python(block, {POSTGRES_URL: postgres_url, REDIS_URL: redis_url})
    elif block.language == "console":
        run_console(block, environment)


def run_python(block: Block, urls: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """Run a Python block, with servers of ours in the place of those it names; its names."""
    text = block.text
    for shown, ours in urls.items():
        text = text.replace(shown, ours)
    # Empty lines in front, so that a traceback shows the line in the document.
    code = compile("\n" * block.line + text, str(ROOT / block.document), "exec")
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(code, names)
    finally:
        for value in list(names.values()):
            if isinstance(value, Engine):
                value.dispose()
    shown = [line[1] or line[2] for line in map(_SAID.search, text.splitlines()) if line]
    assert printed.getvalue().splitlines() == shown, f"{block.document}, line {block.line}"
    return names


def run_console(block: Block, environment: dict[str, str]) -> None:
    """Run the commands of a console block, each behind a `$`, and compare what they print."""
    for command, shown in commands(block):
        where = f"{block.document}, line {block.line}: {command}"
        if command.startswith("export "):
            name, _, value = command.removeprefix("export ").partition("=")
            environment[name] = value
            continue
        said = run_command(command, environment)
        if shown:
            assert alike(said, shown), f"{where}\n{said}"


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """The commands of a console block, and what is shown below each."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        yield command.partition("  # ")[0], shown


def run_command(command: str, environment: Mapping[str, str]) -> str:
    """What a `kern-events` command prints, which may stand in an `eval`; it has to succeed."""
    found = re.search(r"kern-events ([^)]*)", command)
    assert found, command
    arguments = shlex.split(found[1])
    with _interrupted_when_it_waits():
        result = CliRunner().invoke(cli, arguments, env=environment)
    assert result.exit_code in ((130,) if "--follow" in arguments else (0,)), result.output
    return result.stdout


def alike(said: str, shown: str) -> bool:
    """Whether two outputs are the same but for times, speeds, hashes and blanks; `...` is anything."""
    for mask, word in _MASKS:
        said, shown = mask.sub(word, said), mask.sub(word, shown)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(shown, said, flags)


@contextlib.contextmanager
def _interrupted_when_it_waits() -> Iterator[None]:
    """Ctrl-C for a command that waits for more."""

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    sleep, time.sleep = time.sleep, interrupt
    try:
        yield
    finally:
        time.sleep = sleep


def known_commands() -> set[str]:
    """The subcommands of kern-events."""
    assert isinstance(cli, click.Group)
    return set(cli.commands)
