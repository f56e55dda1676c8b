"""`kern-events export`, and `import` of what it wrote."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from click.testing import CliRunner, Result

from kern_events import SessionLog, message
from kern_events.cli.app import cli
from tests.bundles import everything, fill
from tests.transcripts import conversations, jsonl
from tests.writers import PATIENCE_S, eventually, notes

Run = Callable[..., Result]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/log.db"


@pytest.fixture
def run(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, db: str = url, **options: Any) -> Result:
        return CliRunner().invoke(cli, arguments, env={"KERN_EVENTS_DB": db}, **options)

    return run


@pytest.fixture
def log(url: str) -> Iterator[SessionLog]:
    with SessionLog(url) as log:
        yield log


def program(url: str, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "kern_events", *arguments]
    environment = {**os.environ, "KERN_EVENTS_DB": url}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def test_a_session_goes_to_standard_output(run: Run, log: SessionLog) -> None:
    fill(log)

    assert run("export", "fork").stdout_bytes == b"".join(log.export("fork"))


def test_a_dash_is_standard_output(run: Run, log: SessionLog, tmp_path: Path) -> None:
    log.append("s", notes(1))

    assert run("export", "s", "--output", "-").stdout_bytes == run("export", "s").stdout_bytes
    assert run("export", "--format", "parquet", "--output", "-").exit_code == 2
    assert not (tmp_path / "-").exists()


def test_all_sessions_come_back_from_a_file(run: Run, log: SessionLog, tmp_path: Path) -> None:
    ids = fill(log)
    exported = run("export", "--output", "all.jsonl")
    imported = run("import", "all.jsonl", db="sqlite:///other.db")
    again = run("import", "all.jsonl", "--json", db="sqlite:///other.db")

    assert "bytes written" in exported.stderr
    assert "8 sessions: 8 new" in imported.stdout
    report = json.loads(again.stdout)
    assert (report["ok"], report["unchanged"], report["events"]) == (True, 8, 0)
    assert sorted(path.name for path in tmp_path.glob("all*")) == ["all.jsonl"]
    with SessionLog("sqlite:///other.db") as other:
        assert everything(other, ids) == everything(log, ids)


def test_import_tells_an_export_from_transcripts_by_the_first_line(run: Run, log: SessionLog) -> None:
    log.append("s", notes(2))
    lines = b"".join(log.export("s"))
    transcripts = b"".join(jsonl(conversations()))

    assert "1 session: 1 unchanged" in run("import", "-", input=lines).stdout
    assert "1 session: 1 unchanged" in run("import", "-", input=b"\xef\xbb\xbf" + lines).stdout
    assert "10 conversations: 10 new" in run("import", "-", input=transcripts).stdout


def test_a_bad_line_is_named_and_exits_1(run: Run, log: SessionLog) -> None:
    log.append("s", [message("user", "\x1b[31m secret")])
    data = b"".join(log.export("s")).replace(b"secret", b"sacred")
    result = run("import", "-", input=data, db="sqlite:///other.db")

    assert result.exit_code == 1
    assert "line 3 (s): bad line: hash: the event does not hash to what the line says" in result.stderr
    assert "1 session: 1 failed" in result.stdout
    assert "sacred" not in result.output


def test_a_fork_is_linked_to_a_parent_outside_its_file_only_if_asked(run: Run, log: SessionLog) -> None:
    log.append("s", notes(1))
    log.fork("s", "f")
    header, *lines = log.export("f")
    parent, fork = [header, *lines[:2]], b"".join([header, *lines[2:]])
    assert run("import", "-", input=b"".join(parent), db="sqlite:///other.db").exit_code == 0
    refused = run("import", "-", input=fork, db="sqlite:///other.db")
    linked = run("import", "-", "--link-parents", input=fork, db="sqlite:///other.db")

    assert refused.exit_code == 1 and "(f): no parent: " in refused.stderr
    assert "--link-parents" in refused.stderr
    assert "1 session: 1 new" in linked.stdout


def test_another_namespace_or_version_is_one_line_on_stderr(run: Run, log: SessionLog) -> None:
    log.append("s", notes(1))
    data = b"".join(log.export("s"))
    other = run("import", "-", "--namespace", "other", input=data)
    newer = run("import", "-", input=data.replace(b'"version":1,"namespace"', b'"version":2,"namespace"'))

    assert (other.exit_code, newer.exit_code) == (1, 1)
    assert "the file is of namespace 'default'" in other.stderr
    assert "not a file of kern-events, version 1" in newer.stderr
    assert len(other.stderr.splitlines()) == len(newer.stderr.splitlines()) == 1


@pytest.mark.parametrize("form", ["cloudevents", "agui", "otel"])
@pytest.mark.parametrize("session", ["s", None])
def test_other_formats_are_lines_of_json(run: Run, log: SessionLog, form: str, session: str | None) -> None:
    fill(log)
    result = run("export", *([session] if session else []), "--format", form)

    assert result.exit_code == 0
    assert result.stdout.isascii() and len(result.stdout.splitlines()) > 1
    assert all(json.loads(line) for line in result.stdout.splitlines())


def test_parquet_needs_a_file(run: Run, log: SessionLog) -> None:
    fill(log)

    assert run("export", "--format", "parquet").exit_code == 2
    assert run("export", "--format", "parquet", "--output", "log.parquet").exit_code == 0
    assert pyarrow.parquet.read_table("log.parquet").num_rows == 29


@pytest.mark.parametrize("form", ["jsonl", "cloudevents", "agui", "otel", "parquet"])
def test_an_unknown_session_is_told_and_leaves_no_file(
    run: Run, log: SessionLog, tmp_path: Path, form: str
) -> None:
    log.append("s", notes(1))
    result = run("export", "nobody", "--format", form, "--output", "out")

    assert (result.exit_code, result.stderr) == (1, "Error: session 'nobody' does not exist\n")
    assert not list(tmp_path.glob("out*")) and not list(tmp_path.glob("*.part"))


def test_a_file_that_cannot_be_written_is_one_line_on_stderr(run: Run, log: SessionLog) -> None:
    log.append("s", notes(1))
    result = run("export", "s", "--output", "no/such/folder")

    assert result.exit_code == 1
    assert "no/such/folder: No such file or directory" in result.stderr


def test_a_device_stays_one_and_a_link_leads_to_its_file(run: Run, log: SessionLog, tmp_path: Path) -> None:
    log.append("s", notes(1))
    (tmp_path / "link").symlink_to("target")

    assert run("export", "s", "--output", "/dev/null").exit_code == 0
    assert run("export", "s", "--output", "link").exit_code == 0
    assert not Path("/dev/null").is_file()
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").is_file()


@pytest.mark.parametrize("form", ["jsonl", "cloudevents", "agui", "otel", "parquet"])
@pytest.mark.parametrize(("before", "after"), [(None, 0o600), (0o644, 0o600), (0o600, 0o600), (0o400, 0o400)])
def test_a_file_is_its_owner_s_alone(
    run: Run, log: SessionLog, form: str, before: int | None, after: int
) -> None:
    log.append("s", notes(1))
    if before is not None:
        Path("out").touch(before)
        Path("out").chmod(before)

    assert run("export", "s", "--format", form, "--output", "out").exit_code == 0
    assert Path("out").stat().st_mode & 0o777 == after


@pytest.mark.parametrize("name", ["out.part", ".kern-events-x.part"])
def test_a_link_beside_the_output_is_not_followed(
    run: Run, log: SessionLog, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.append("s", notes(1))
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / name).symlink_to("precious")
    monkeypatch.setattr("secrets.token_hex", lambda size: "x")  # As if somebody had foreseen it.

    assert run("export", "s", "--output", "out").exit_code == (name != "out.part")
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert not (tmp_path / "out").is_symlink()


def test_a_missing_extra_is_one_line_on_stderr(
    run: Run, log: SessionLog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log.append("s", notes(1))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = run("export", "s", "--format", "parquet", "--output", "out")

    assert result.stderr == "Error: Parquet export needs: pip install 'kern-events[parquet]'\n"
    assert not list(tmp_path.glob("out*")) and not list(tmp_path.glob("*.part"))


def test_progress_is_shown_beside_the_lines(url: str, log: SessionLog) -> None:
    log.append("s", [message("user", "\x1b[31m")])
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "kern_events", "export", "--db", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, stdin=theirs) as process:
        os.close(theirs)
        output, _ = process.communicate()
    shown = os.read(ours, 65_536)
    os.close(ours)

    assert output == b"".join(log.export("s"))
    assert b"exporting" in shown and b"\x1b[31m" not in output


def test_a_session_that_is_deleted_meanwhile_is_left_out(
    run: Run, log: SessionLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.append_many([("a", notes(1), 0), ("b", notes(1), 0)])
    found = log.sessions()
    log.delete("a")
    monkeypatch.setattr("kern_events.exports.sessions.every_session", lambda log: iter(found))

    lines = run("export", "--format", "cloudevents").stdout.splitlines()
    assert [json.loads(line)["subject"] for line in lines] == ["b"]


def test_whoever_reads_may_go_away(url: str, log: SessionLog) -> None:
    log.append("s", [message("user", "x" * 100_000) for _ in range(50)])
    with program(url, "export", "s") as process:
        assert process.stdout and process.stderr
        process.stdout.read(10)
        process.stdout.close()

        assert b"Traceback" not in process.stderr.read()


def test_ctrl_c_leaves_no_half_file(url: str, log: SessionLog, tmp_path: Path) -> None:
    for _ in range(40):
        log.append("s", [message("user", "x" * 50_000) for _ in range(50)])
    with program(url, "export", "s", "--output", str(tmp_path / "out"), cwd=tmp_path) as process:
        eventually(lambda: list(tmp_path.glob(".kern-events-*.part")))
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE_S)

        assert process.returncode == 130
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("log.db")] == []


def test_a_line_over_a_limit_of_ones_own_is_passed_over(run: Run, log: SessionLog) -> None:
    log.append("s", notes(1))
    log.append("t", [message("user", "x" * 2_000)])
    data = b"".join([*log.export("s"), *list(log.export("t"))[1:]])
    result = run("import", "-", "--max-line-bytes", "1000", input=data, db="sqlite:///other.db")

    assert result.exit_code == 1
    assert "line 5 (t): bad line: longer than 1,000 bytes" in result.stderr
    assert "2 sessions: 1 new, 1 failed" in result.stdout


@pytest.mark.parametrize("form", ["jsonl", "cloudevents", "agui", "otel", "parquet"])
def test_an_export_never_takes_the_place_of_what_it_reads(
    run: Run, log: SessionLog, tmp_path: Path, form: str
) -> None:
    log.append("s", notes(1))
    (tmp_path / "link").symlink_to("log.db")
    (tmp_path / "hard").hardlink_to(tmp_path / "log.db")
    (tmp_path / "secret").write_bytes(b"k" * 32)
    wanted = ["log.db", "./../" + tmp_path.name + "/log.db", "link", "hard", "log.db-wal", "log.db-shm"]
    wanted += ["log.db-journal", "secret"]
    before = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}

    for output in wanted:
        for db in ("sqlite:///log.db", "sqlite:///file:log.db?uri=true", "sqlite:///link"):
            refused = run(
                "export", "--format", form, "--output", output, "--secret-file", "secret", "--db", db
            )
            assert refused.exit_code == 2 and "is a file that this command reads" in refused.stderr
    assert {path.name: path.stat().st_ino for path in tmp_path.iterdir()} == before


def test_blank_lines_in_front_do_not_hide_an_export(run: Run, log: SessionLog) -> None:
    log.append("s", notes(2))
    lines = b"".join(log.export("s"))

    for blank in (b"\n", b" \r\n\n", b"\xef\xbb\xbf\n"):
        assert "1 session: 1 unchanged" in run("import", "-", input=blank + lines).stdout
    assert "line 3: bad line" in run("import", "-", input=b'\n\n{"id"\n').stderr


def test_an_export_of_large_payloads_is_imported_if_asked(run: Run, url: str) -> None:
    with SessionLog(url, max_payload_bytes=4 << 20) as larger:
        larger.append("s", [message("user", "x" * (2 << 20))])
        data = b"".join(larger.export("s"))
    refused = run("import", "-", input=data, db="sqlite:///other.db")
    taken = run("import", "-", "--max-payload-bytes", str(4 << 20), input=data, db="sqlite:///other.db")

    assert refused.exit_code == 1 and "--max-payload-bytes" in refused.stderr
    assert taken.exit_code == 0 and "1 session: 1 new" in taken.stdout


def test_a_session_that_diverges_is_named_with_the_version(run: Run, log: SessionLog) -> None:
    with SessionLog("memory:") as other:
        other.append("s", notes(2))
        log.append("s", notes(2))
        result = run("import", "-", input=b"".join(other.export("s")))

    assert "line 2 (s): diverged: something else is recorded at version 1" in result.stderr
