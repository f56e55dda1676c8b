"""`kern-events delete`."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kern_events import Sessions, message
from kern_events.cli.app import cli


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/log.db"
    with Sessions.open(url) as sessions:
        sessions.append("s", [message("user", "secret")])
        sessions.fork("s", "kid")
        sessions.fork("kid", "grandkid")
        sessions.delete("grandkid")
    return url


def run(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["delete", *arguments, "--db", url])


def is_there(url: str) -> bool:
    with Sessions.open(url) as sessions:
        return sessions.head("s").status != "deleted"


def test_it_erases_and_says_what_remains(url: str) -> None:
    result = run(url, "s", "--yes")

    assert (result.exit_code, result.stderr) == (0, "")
    assert "session s is deleted" in result.stdout
    assert "events up to version 2" in result.stdout
    assert "1 fork without an owner now, unless they were given one: kid\n" in result.stdout
    assert not is_there(url)


def test_a_long_one_shows_how_far_it_is(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Sessions.open(url) as sessions:
        sessions.append("long", [message("user", "secret") for _ in range(50)])
    for name in ("SLICE_ROWS", "PAGE_ROWS"):
        monkeypatch.setattr(f"kern_events.store.sqlite.{name}", 10)
    said: list[str] = []
    advance = nullcontext(lambda done, so_far: said.append(so_far))
    monkeypatch.setattr("kern_events.cli.reports.progress", lambda what, total: advance)

    assert run(url, "long", "--yes").exit_code == 0
    assert said[-2:] == ["50 of 51 versions", "51 of 51 versions"]


def test_it_is_json_for_programs(url: str) -> None:
    result = run(url, "s", "--yes", "--json")

    said = json.loads(result.stdout)
    assert (said["forks"], said["receipt"]["version"], said["receipt"]["purged"]) == (["kid"], 2, True)


def test_nobody_is_asked_where_there_is_no_terminal(url: str) -> None:
    result = run(url, "s")

    assert (result.exit_code, "--yes" in result.stderr) == (2, True)
    assert is_there(url)


def test_what_is_not_there_is_an_error(url: str) -> None:
    for gone in ("nowhere", "grandkid"):
        assert run(url, gone, "--yes").exit_code == 1


def test_copies_that_were_not_reached_are_told(url: str) -> None:
    result = run(url, "s", "--yes", "--cache", "redis://127.0.0.1:1")

    assert (result.exit_code, "copies there stay until they expire" in result.stderr) == (0, True)


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1)])
def test_a_terminal_is_asked(url: str, answer: str, code: int) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "kern_events", "delete", "s", "--db", url]
    os.write(ours, f"{answer}\n".encode())
    done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, check=False)
    os.close(ours)
    os.close(theirs)

    assert done.returncode == code
    assert "erase what was said in session s" in done.stderr
    assert is_there(url) == bool(code)
