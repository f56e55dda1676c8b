"""The command line where a disk is full: one line, exit code 1, nothing half there, and it can go on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kern_events import SessionLog, transfer
from kern_events.cli.app import cli
from tests import room
from tests.transcripts import jsonl
from tests.writers import notes

Run = Callable[..., Result]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/log.db"


@pytest.fixture
def run(url: str) -> Run:
    return lambda *arguments: CliRunner().invoke(cli, [*map(str, arguments), "--db", url])


def test_an_import_says_what_it_recorded_and_goes_on(
    run: Run, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_GROUP_EVENTS", 4)  # So that a transaction has a conversation or two.
    said = [{"role": "user", "content": "said " * 500}, {"role": "assistant", "content": "heard " * 500}]
    lines = jsonl({"id": f"c{number}", "messages": said} for number in range(40))
    (tmp_path / "many.jsonl").write_bytes(b"".join(lines))

    with room.no_files(500_000):
        full = run("import", tmp_path / "many.jsonl")
    again = run("import", tmp_path / "many.jsonl")

    assert full.exit_code == 1
    recorded, why = full.stderr.strip().splitlines()
    assert recorded.endswith("events recorded before the database failed: import it again to go on there")
    assert why.startswith(f"Error: there is no room to write to {tmp_path}/log.db: the disk, a quota")
    assert again.exit_code == 0
    assert 0 < int(recorded.split()[0]) < 120
    with SessionLog(url) as log:
        assert len(log.sessions()) == 40
        assert log.verify().ok


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_an_export_without_room_leaves_what_was_there(run: Run, url: str, tmp_path: Path, form: str) -> None:
    with SessionLog(url) as log:
        log.append("s", notes(900))
        log.append("t", notes(900))
    (tmp_path / "out").write_bytes(b"as it was")

    with room.no_files(40_000):
        full = run("export", "--output", tmp_path / "out", "--format", form)

    assert (full.exit_code, full.stdout) == (1, "")
    assert full.stderr.strip() == f"Error: {tmp_path}/out: File too large"
    assert (tmp_path / "out").read_bytes() == b"as it was"
    assert not list(tmp_path.glob(".kern-events*"))
    assert run("export", "--output", tmp_path / "out", "--format", form).exit_code == 0


def test_an_export_to_a_full_standard_output_fails(url: str) -> None:
    with SessionLog(url) as log:
        log.append("s", notes(900))
    command = [sys.executable, "-m", "kern_events", "export", "--db", url]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)

    assert (done.returncode, done.stderr) == (1, "Error: No space left on device\n")
