"""`rebuild`, `project`, `status` and `parked` as somebody at a terminal meets them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from kern_events import Sessions, message
from kern_events.cli.app import cli
from tests import forging
from tests.writers import eventually

LONG = 100
MODULE = """
from kern_events import EventType, EventTypes

TYPES = EventTypes(EventType("order.placed"))


class Counted:
    name, version, scope, view_type = "counted", 1, "live", int

    def initial(self):
        return 0

    def evolve(self, view, event):
        if event.payload.get("content") == "poison":
            raise ValueError("secret")
        return view + 1
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a database and a module of the application's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERN_EVENTS_DB", "sqlite:///log.db")
    (tmp_path / "stall.py").write_text(MODULE)
    with Sessions.open("sqlite:///log.db") as sessions:
        for name in ("a", "b"):
            sessions.append(name, [message("user", str(number)) for number in range(LONG)])
    yield tmp_path
    sys.modules.pop("stall", None)


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, args)


def test_rebuild_says_what_it_did(place: Path) -> None:
    first, second = run("rebuild"), run("rebuild")

    assert first.exit_code == second.exit_code == 0
    assert "session 1: 2 sessions: 2 stored" in first.stdout
    assert "200 events" in first.stdout
    assert "2 stored already" in second.stdout
    assert "2 equal" in run("rebuild", "--check").stdout


def test_rebuild_as_json(place: Path) -> None:
    report = json.loads(run("rebuild", "--json").stdout)

    assert (report["ok"], report["rebuilt"], report["total_events"]) == (True, 2, 2 * LONG)


def test_rebuild_of_a_projector_of_ones_own_reports_what_fails(place: Path) -> None:
    with Sessions.open("sqlite:///log.db") as sessions:
        sessions.append("b", [message("user", "poison")])

    result = run("rebuild", "--projector", "stall:Counted")

    assert result.exit_code == 1
    assert "1 stored, 1 failed" in result.stdout
    assert f"b, version {LONG + 1}" in result.stderr
    assert "secret" not in result.output


def test_rebuild_in_processes_of_their_own(place: Path) -> None:
    result = run("rebuild", "--workers", "2", "--projector", "stall:Counted")

    assert result.exit_code == 0, result.output
    assert "2 stored" in result.stdout


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("stall", "is not a projector as in shop.views:Totals"),
        ("absent:Counted", "there is no module 'absent'"),
        ("stall:Absent", "has no 'Absent'"),
        ("stall:TYPES", "is no projector"),
    ],
)
def test_what_is_no_projector_is_refused(place: Path, value: str, said: str) -> None:
    result = run("rebuild", "--projector", value)

    assert result.exit_code == 2
    assert said in result.stderr


def test_types_that_the_command_line_names_make_views_complete(place: Path) -> None:
    from kern_events import Draft

    with Sessions.open("sqlite:///log.db") as sessions:
        sessions.append("c", [Draft("order.placed", {"n": 1})])

    assert "incomplete" in run("show", "c").stdout
    assert "incomplete" not in run("show", "c", "--types", "stall:TYPES").stdout
    refused = run("show", "c", "--types", "stall:Counted")
    assert refused.exit_code == 2
    assert "not an EventTypes" in refused.stderr


def test_status_shows_consumers_and_what_they_have_set_aside(place: Path) -> None:
    def refuse(events: Any) -> None:
        if any(event.session_id == "b" for event in events):
            raise ValueError("secret")

    assert "no consumers" in run("status").stdout
    with Sessions.open("sqlite:///log.db") as sessions:
        sessions.consumer("mail\u202e", refuse, attempts=1).run(until_idle=True)
        sessions.append("c", [message("user", "new")])

    shown = run("status")
    assert "\u202e" not in shown.stdout
    assert "mail\\u202e" in shown.stdout
    [consumer] = json.loads(run("status", "--json").stdout)["consumers"]
    assert (consumer["behind"], consumer["parked"], consumer["given_up"]) == (1, 1, 1)


def test_parked_sessions_are_shown_tried_again_and_passed_over(place: Path) -> None:
    def refuse(events: Any) -> None:
        if any(event.payload["content"] == "7" for event in events):
            raise ValueError("secret")

    with Sessions.open("sqlite:///log.db") as sessions:
        sessions.consumer("mail", refuse, attempts=1).run(until_idle=True)

        shown = run("parked", "mail")
        assert "a from version 8: ValueError" in shown.stdout
        assert "secret" not in shown.stdout
        assert "tried again at" in run("parked", "mail", "--retry", "a").stdout
        assert run("parked", "mail", "--skip", "b").exit_code == 0
        sessions.consumer("mail", refuse, attempts=1).run(until_idle=True)
    left = json.loads(run("parked", "mail", "--json").stdout)["parked"]
    assert [(each["session_id"], each["version"]) for each in left] == [("a", 8)]
    refused = run("parked", "mail", "--retry", "absent")
    assert refused.exit_code == 1
    assert "is not set aside" in refused.stderr


def test_project_takes_what_is_appended_until_it_is_told_to_stop(place: Path) -> None:
    command = [sys.executable, "-m", "kern_events", "project"]
    env = {**os.environ, "PYTHONPATH": os.getcwd() + os.pathsep + os.pathsep.join(sys.path)}
    with (
        subprocess.Popen(command, cwd=place, env=env, stderr=subprocess.PIPE, text=True) as process,
        Sessions.open("sqlite:///log.db") as sessions,
    ):
        assert process.stderr is not None
        assert "following as warmer:session:1" in process.stderr.readline()
        eventually(lambda: sessions.consumers())
        sessions.append("a", [message("user", str(number)) for number in range(1_000)])
        eventually(lambda: sessions.consumers()[0].behind == 0)
        process.send_signal(signal.SIGTERM)

        assert "1,000 events taken" in process.stderr.read()
        assert process.wait() == 0


def test_verify_compares_snapshots_under_their_secret(tmp_path: Path) -> None:
    url, secret = f"sqlite:///{tmp_path}/own.db", tmp_path / "secret"
    secret.write_text("the same for all\n")
    with Sessions.open(url, secret=b"the same for all") as sessions:
        sessions.append("s", [message("user", "pay 10")])
        lie = replace(forging.true(sessions)[2].view, user_id="mallory")
        forging.forge(sessions, "database", "", lambda view: lie, secret=b"the same for all")
    arguments = ["verify", "--snapshots", "--db", url]

    unsigned = CliRunner().invoke(cli, arguments)
    found = CliRunner().invoke(cli, [*arguments, "--secret-file", str(secret)])
    assert (unsigned.exit_code, found.exit_code) == (0, 1)
    assert "1 event, 0 snapshots compared" in unsigned.stdout
    assert "not compared: 1 under another secret or none" in unsigned.stdout
    assert "1 event, 1 snapshot compared" in found.stdout
    dead = CliRunner().invoke(cli, [*arguments, "--cache", "redis://127.0.0.1:1"])
    assert (dead.exit_code, "Redis does not answer" in dead.stderr) == (1, True)
    assert "s version 1: snapshot database" in found.stdout
    (tmp_path / "empty").write_text("\n")
    for wrong in ("empty", "nowhere"):
        refused = CliRunner().invoke(cli, arguments, env={"KERN_EVENTS_SECRET_FILE": str(tmp_path / wrong)})
        assert refused.exit_code == 2
        assert wrong in refused.stderr
