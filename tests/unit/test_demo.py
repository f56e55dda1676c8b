"""The demo: that it does what it says, with the agent and with a file, in a terminal of any kind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from kern_events import Sessions
from kern_events.cli.app import cli
from kern_events.demo import calculate, distance
from tests.transcripts import conversations, jsonl


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def demo(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["demo", *arguments])
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def test_the_demo_records_loads_looks_back_and_verifies() -> None:
    output = demo()

    assert "session demo-1 · user ada · 3 turns · version 27 · open" in output
    assert "then  11 messages, 3 days: Three days then: 90 km a day." in output
    assert "now   17 messages, 5 days: With five days it is 54 km a day, 3.6 hours" in output
    assert "1 session, 35 events: everything is as it was recorded" in output
    assert "demo-1 version 20: changed hash" in output


def test_the_demo_goes_back_goes_on_and_keeps_the_other_way() -> None:
    output = demo()

    assert "session demo-1 went back to version 18, turn 2; it is at version 28 now" in output
    assert "now   6 hours in the saddle" in output
    assert "there With five days it is 54 km a day" in output
    assert "\n`-- versions 1 to 27 · live up to 18 · turns 1 to 3" in output
    assert "\n    +-- versions 28 to 35 · live · turn 3" in output
    assert "\n    `-- fork demo-1-five-days at version 27\n" in output


def test_what_the_demo_shows_is_in_the_file() -> None:
    demo()

    with Sessions.open("sqlite:///kern-events-demo.db") as sessions:
        view = sessions.load("demo-1")
        assert (view.turn, view.pending_calls, view.problems) == (3, (), ())
        assert (view.state["days"], sessions.load("demo-1-five-days").state["days"]) == (3, 5)
        assert sessions.verify().ok


def test_a_second_demo_goes_on_in_a_new_session() -> None:
    demo()

    output = demo()

    assert "session demo-2" in output


def test_the_commands_that_are_printed_work() -> None:
    output = demo()

    lines = [line for line in output.splitlines() if " --db sqlite:///kern-events-demo.db" in line]
    commands = [line.split("kern_events ")[-1].split("kern-events ")[-1].split() for line in lines]
    assert len(commands) == 8
    for command in commands[:-1]:
        assert CliRunner().invoke(cli, command).exit_code == 0


def test_the_demo_takes_conversations_of_the_user_s_own(folder: Path) -> None:
    (folder / "own.jsonl").write_bytes(b"".join(jsonl(conversations())))

    output = demo("own.jsonl")

    assert "10 conversations: 10 new" in output
    assert "session trip-7 · 2 turns · as of version" in output
    assert "10 sessions, 351 events: everything is as it was recorded" in output


def test_the_demo_takes_an_empty_file(folder: Path) -> None:
    (folder / "own.jsonl").touch()

    assert "no sessions" in demo("own.jsonl")


def test_the_demo_runs_in_memory() -> None:
    assert "35 events: everything is as it was recorded" in demo("--db", "memory:")


def test_the_demo_runs_as_a_program(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kern_events", "demo"], cwd=folder, capture_output=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, b"")


def test_the_demo_does_not_use_the_database_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERN_EVENTS_DB", "postgresql://nobody@127.0.0.1:1/production")

    assert "demo-1" in demo()


def test_the_demo_leaves_one_file_which_is_its_owner_s_alone(folder: Path) -> None:
    demo()

    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
        "kern-events-demo.db": 0o600
    }


@pytest.mark.parametrize(
    ("term", "value"),
    [("2 + 3 * 4", "14"), ("(2 + 3) * 4", "20"), ("10 / 4 - 1", "1.5"), ("2*(3-(1+1))", "2")],
)
def test_the_calculator_takes_terms(term: str, value: str) -> None:
    assert calculate(term) == value


@pytest.mark.parametrize("term", ["", "1 +", "(1", "1)", "2 ** 3", ".5", "1 2", "__import__('os')"])
def test_the_calculator_takes_nothing_else(term: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        calculate(term)


def test_the_legs_of_a_route_are_looked_up() -> None:
    assert distance("Berlin, Oranienburg, Fürstenberg") == "42 + 66"
