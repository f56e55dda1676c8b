"""Whose modules are imported: Python's own and ours, before those that lie where somebody happens to be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner

import kern_events
from kern_events.cli.app import cli

PLANTED = "import os\nprint('planted', __name__)\nos._exit(7)\n"
APPLICATION = """
from kern_events import EventType, EventTypes

TYPES = EventTypes(EventType("order.placed"))


class Failing:
    def __init__(self):
        raise OSError("not now")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where somebody is: an application's module, and a database."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("KERN_EVENTS_DB", "sqlite:///log.db")
    (tmp_path / "stall.py").write_text(APPLICATION)
    sys.modules.pop("stall", None)  # Another test's.
    with kern_events.SessionLog("sqlite:///log.db") as log:
        log.append("s", [kern_events.message("user", "hello")])
    yield tmp_path
    sys.modules.pop("stall", None)


def python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def planted(folder: Path) -> None:
    """Put modules with the names of Python's own there, but for those that Python imports before ours."""
    (folder / "nothing.py").write_text("import sys; print(*sys.modules)")
    taken = {name.partition(".")[0] for name in python("-m", "nothing").split()}
    there = [name for name in sys.stdlib_module_names - taken if find_spec(name)]
    for name in (*there, "click", "rich", "sqlalchemy", "msgspec", "orjson"):
        (folder / f"{name}.py").write_text(PLANTED)


def test_no_file_where_the_user_is_stands_for_another_module(folder: Path) -> None:
    planted(folder)

    # Neither where Python itself looks there first, nor in the processes that it starts.
    assert "1 session" in python("-m", "kern_events", "rebuild", "--workers", "2", "--types", "stall:TYPES")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("..x:y", "is not event types as in shop.events:TYPES"),
        (".stall:TYPES", "is not event types as in"),
        ("stall.:TYPES", "is not event types as in"),
        ("stall:TYPES.x", "is not event types as in"),
        ("./stall:TYPES", "is not event types as in"),
        ("\0:y", "is not event types as in"),
        (":", "is not event types as in"),
        ("stall:Absent", "stall.py) has no 'Absent'"),
        ("types:TYPES", "types.py) has no 'TYPES'"),
        ("sys:TYPES", "(built in) has no 'TYPES'"),
        ("broken:TYPES", "the module 'broken' fails: SyntaxError"),
        ("raising:TYPES", "the module 'raising' fails: RuntimeError: as it does"),
        ("needing:TYPES", "there is no module 'not_there'"),
    ],
)
def test_a_name_that_leads_nowhere_is_wrong_usage(folder: Path, value: str, said: str) -> None:
    (folder / "broken.py").write_text("def")
    (folder / "raising.py").write_text("raise RuntimeError('as it does')")
    (folder / "needing.py").write_text("import not_there")
    result = CliRunner().invoke(cli, ["ls", "--types", value])

    assert (result.exit_code, type(result.exception)) == (2, SystemExit)
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_projector_that_cannot_be_made_is_wrong_usage(folder: Path) -> None:
    result = CliRunner().invoke(cli, ["rebuild", "--projector", "stall:Failing"])

    assert result.exit_code == 2
    assert "'stall:Failing' fails: OSError: not now" in result.stderr


@pytest.mark.parametrize("name", ["projections.py", "projections/__init__.py", "projections/readme.txt"])
def test_who_shadows_our_projections_is_named_and_not_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("raise AssertionError('this was run')")
    # A folder alone is found only where ours is not.
    rest = [each for each in sys.path if name.endswith(".py") or not (Path(each) / "projections").exists()]
    monkeypatch.setattr(sys, "path", [str(folder), *rest])
    monkeypatch.delitem(sys.modules, "projections", raising=False)
    monkeypatch.delitem(vars(kern_events), "Sessions", raising=False)
    said = f"{folder / name.removesuffix('readme.txt')} shadows the package 'projections' of kern-events"

    result = CliRunner().invoke(cli, ["ls"])
    assert (result.exit_code, result.stderr[: len(said) + 7]) == (1, f"Error: {said}")
    with pytest.raises(ImportError) as caught:
        kern_events.Sessions  # noqa: B018 - it is looked up
    assert str(caught.value).startswith(said)
