"""The command line where the database, the schema or the namespace is not there: named, and not made."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from kern_events import SessionLog
from kern_events.cli.app import cli
from tests import databases
from tests.writers import notes

MAKES = {"import", "migrate", "demo", "completion"}
COMMANDS = {
    "ls": [], "show": ["s"], "tail": ["s"], "verify": [], "export": [], "restore": ["s", "--version", "1"],
    "fork": ["s", "t"], "delete": ["s", "--yes"], "branches": ["s"], "replay": ["s"], "diff": ["s", "1", "2"],
    "rebuild": [], "project": ["--once"], "status": [], "parked": ["c"],
}  # fmt: skip
GO_ON = {"ls", "rebuild", "project", "status", "parked"}  # where a namespace is empty


def run(url, command, *options):
    return CliRunner().invoke(cli, [command, *COMMANDS[command], *options], env={"KERN_EVENTS_DB": url})


def test_every_command_is_known_here():
    assert set(cli.commands) == MAKES | set(COMMANDS)


@pytest.mark.parametrize("touched", [False, True])
def test_a_file_without_a_log_is_named_and_stays(tmp_path, touched):
    path = tmp_path / "misspelt.db"
    if touched:
        path.touch()
    for command in COMMANDS:
        result = run(f"sqlite:///{path}", command)
        assert (command, result.exit_code) == (command, 1)
        assert f"there is no {'log in' if touched else 'database'} '{path}'" in result.stderr
        assert "`migrate`" in result.stderr
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [(path.name, b"")] * touched


def test_a_schema_that_is_not_there_is_named_and_not_made(postgres_url):
    for command in COMMANDS:
        result = run(postgres_url, command, "--schema", "aap")
        assert (command, result.exit_code) == (command, 1)
        assert "there is no log in schema 'aap' of postgresql" in result.stderr
    with databases.connect(postgres_url) as raw:
        assert raw.execute("SELECT 1 FROM pg_namespace WHERE nspname = 'aap'").fetchall() == []
        assert raw.execute("SELECT 1 FROM pg_class WHERE relname LIKE 'kern%'").fetchall() == []


def test_a_namespace_of_which_nothing_is_recorded_is_named_with_those_that_there_are(tmp_path):
    url = f"sqlite:///{tmp_path}/log.db"
    for namespace in ("shop", "bookings"):
        with SessionLog(url, namespace=namespace) as log:
            log.append("s", notes(1))
    for command in COMMANDS:
        result = run(url, command)
        assert (command, result.exit_code) == (command, 0 if command in GO_ON else 1)
        assert "namespace 'default': there are sessions in 'bookings', 'shop'" in result.stderr
    assert json.loads(run(url, "ls", "--json").stdout)["sessions"] == []
    assert "namespace" not in run(url, "ls", "--namespace", "shop").stderr
