"""The commands that go back: restore, fork, branches, replay, diff; and what show and ls say of it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kern_events import Draft, Sessions, message, state_changed
from kern_events.cli.app import cli
from kern_events.cli.opening import shown_url
from tests.writers import PATIENCE_S

Run = Callable[..., Result]

HOSTILE = "\x1b[2J\x9b31m\u202egnp\u200b\x07\n\r\t\U000e0041[red]x[/red]:smile:"
SHOWN = "\\x1b[2J\\x9b31m\\u202egnp\\u200b\\x07\\n\\r\\t\\U000e0041[red]x[/red]:smile:"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/log.db"


@pytest.fixture
def run(url: str) -> Run:
    def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
        return CliRunner().invoke(cli, arguments, env={"KERN_EVENTS_DB": url} | (env or {}))

    return run


@pytest.fixture
def sessions(url: str) -> Iterator[Sessions]:
    with Sessions.open(url) as sessions:
        yield sessions


@pytest.fixture
def talk(sessions: Sessions) -> Sessions:
    """Session `s`: three turns of a message, a note and an end; versions 2-5, 6-9 and 10-13."""
    for text in ("one", "two", "three"):
        said(sessions, text)
    return sessions


def said(sessions: Sessions, text: str, session_id: str = "s") -> None:
    with sessions.turn(session_id) as turn:
        turn.message("user", text)
        turn.set_state("last", text)


def program(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kern_events", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")


def assert_harmless(output: str) -> None:
    seen = set(output) - {"\n"}
    assert all(char.isprintable() for char in seen), sorted(char for char in seen if not char.isprintable())


# -- restore -----------------------------------------------------------------------------------------


def test_restore_says_what_it_did_and_how_to_undo_it(run: Run, talk: Sessions) -> None:
    result = run("restore", "s", "--turn", "1", "--reason", "wrong way", "--actor", "ada")

    assert result.stdout.splitlines() == [
        "session s went back to version 5, turn 1; it is at version 14 now",
        "no longer count: 2 turns, 2 messages",
        "to undo it: kern-events restore s --version 13",
    ]
    assert [each.content for each in talk.load("s").messages] == ["one"]
    assert (talk.branches("s").branches[1].reason, talk.branches("s").branches[1].actor) == (
        "wrong way",
        "ada",
    )


def test_the_command_that_undoes_a_restore_works(run: Run, talk: Sessions, url: str) -> None:
    restored = run("restore", "s", "--turn", "1", "--db", url, "--namespace", "default")
    undo = restored.stdout.splitlines()[-1].partition("kern-events ")[2].split()

    result = run(*undo, env={"KERN_EVENTS_DB": ""})

    assert "count again: 2 turns, 2 messages" in result.stdout
    assert talk.load("s").state == {"last": "three"}


def test_the_undo_never_prints_a_password(run: Run, postgres_url: str, tmp_path: Path) -> None:
    with Sessions.open(postgres_url) as sessions:
        said(sessions, "one")
    secrets = f"password=hunter2&passfile={tmp_path}/hunter2&sslpassword=hunter2&options=-c%20a.b%3Dhunter2"

    url = postgres_url.replace("@", ":hunter2@", 1)
    url += f"{'&' if '?' in url else '?'}{secrets}&application_name=shown"
    output = run("restore", "s", "--turn", "0", "--db", url).output

    assert "to undo it: kern-events restore s --version 5 --db 'postgresql+psycopg://" in output
    assert "application_name=shown" in output and "password=***" in output
    assert "hunter2" not in output


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:hunter2@h:1/d", "postgresql://u:***@h:1/d"),
        ("postgresql://h/d?PASSWORD=hunter2&sslmode=require", "postgresql://h/d?PASSWORD=***&sslmode=require"),
        ("postgresql://h/d?host=a&host=b&key=hunter2&key=hunter2", "postgresql://h/d?host=a&host=b&key=***"),
        ("sqlite:///a.db?uri=true&key=hunter2", "sqlite:///a.db?uri=true&key=***"),
        ("redis://:hunter2@h/0?password=hunter2&token=hunter2", "redis://:***@h/0?password=***&token=***"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert sorted(re.split("[?&]", shown_url(url))) == sorted(re.split("[?&]", shown))


def test_a_password_with_an_at_is_refused_before_a_driver_tells_it(run: Run) -> None:
    result = run("ls", "--db", "postgresql://u:hunt@er2@127.0.0.1:1/d")

    assert (result.exit_code, result.stderr) == (2, "Error: the password in the URL has an @: write %40\n")


def test_an_id_that_looks_like_an_option_can_be_undone(run: Run, sessions: Sessions) -> None:
    said(sessions, "one", "--json")

    result = run("restore", "--turn", "0", "--", "--json")

    assert "to undo it: kern-events restore --version 5 -- --json" in result.stdout


@pytest.mark.parametrize("point", [["--turn", "2"], ["--version", "9"], ["--at"]], ids=lambda each: each[0])
def test_restore_takes_a_turn_a_version_and_a_time(run: Run, talk: Sessions, point: list[str]) -> None:
    [at] = [event.at.isoformat() for event in talk.read("s") if event.version == 9]

    receipt = json.loads(run("restore", "s", *point, *([at] * (len(point) == 1)), "--json").stdout)

    assert (receipt["diff"]["after"], receipt["turn"], receipt["dry_run"]) == (9, 2, False)
    assert receipt["receipt"]["hash"] == talk.head("s").hash.hex()
    assert talk.head("s").version == receipt["receipt"]["version"] == 14


def test_a_dry_run_shows_what_would_no_longer_count_and_records_nothing(run: Run, talk: Sessions) -> None:
    with talk.turn("s") as turn:
        turn.unset_state("last")

    result = run("restore", "s", "--turn", "2", "--dry-run")

    lines = result.stdout.splitlines()
    assert lines[0] == "session s would go back from version 16 to version 9, turn 2"
    assert lines[3].startswith("  - turn 3 · completed · 2")
    assert lines[5:] == [
        "messages",
        "  - user: three",
        "state",
        '  + /last: "two"',
        "nothing was recorded: this was a dry run",
    ]
    assert talk.head("s").version == 16


def test_a_dry_run_as_json_has_the_difference_and_no_receipt(run: Run, talk: Sessions) -> None:
    shown = json.loads(run("restore", "s", "--turn", "2", "--dry-run", "--json").stdout)

    assert (shown["dry_run"], shown["receipt"], shown["turn"]) == (True, None, 2)
    assert [each["content"] for each in shown["diff"]["dropped"]] == ["three"]
    assert shown["diff"]["state"] == [{"op": "replace", "path": "/last", "value": "two"}]
    assert talk.head("s").version == 13


def test_what_is_appended_in_between_is_part_of_what_no_longer_counts(
    run: Run, talk: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    preview = Sessions.preview_restore

    def preview_then_append(self: Sessions, *arguments: Any, **options: Any) -> Any:
        found = preview(self, *arguments, **options)
        if talk.head("s").version == 13:
            said(talk, "four")
        return found

    monkeypatch.setattr(Sessions, "preview_restore", preview_then_append)

    assert "no longer count: 2 turns, 2 messages" in run("restore", "s", "--turn", "2").stdout


# -- fork --------------------------------------------------------------------------------------------


def test_fork_says_where_it_forked(run: Run, talk: Sessions) -> None:
    result = run("fork", "s", "other", "--turn", "2")

    assert result.stdout == (
        "session other · forked from s at version 9, turn 2\nits first version of its own is 10\n"
    )
    assert [each.content for each in talk.load("other").messages] == ["one", "two"]


def test_fork_as_of_a_time(run: Run, talk: Sessions) -> None:
    last = talk.head("s")
    result = run("fork", "s", "other", "--at", last.at.isoformat())

    assert f"forked from s at version {last.version}" in result.stdout


def test_fork_as_json_has_the_receipt(run: Run, talk: Sessions) -> None:
    shown = json.loads(run("fork", "s", "other", "--version", "4", "--json").stdout)

    assert (shown["fork_parent"], shown["fork_version"], shown["turn"]) == ("s", 4, 1)
    assert shown["receipt"]["hash"] == talk.head("other").hash.hex()


def test_a_fork_is_shown_at_the_turns_that_it_shares(run: Run, talk: Sessions) -> None:
    run("fork", "s", "other", "--turn", "2")
    said(talk, "another three", "other")

    outputs = [run("show", "other", "--turn", turn).stdout for turn in "123"]

    assert [output.splitlines()[-1] for output in outputs] == [
        '  {"last":"one"}',
        '  {"last":"two"}',
        '  {"last":"another three"}',
    ]


def test_the_events_of_a_fork_are_its_own_and_say_so(run: Run, talk: Sessions) -> None:
    run("fork", "s", "other", "--turn", "2")

    result = run("show", "other", "--events")

    assert result.stdout.split()[5] == "session.forked"
    assert result.stderr == "a fork: before its own events are those of s up to version 9\n"


def test_ls_names_the_origin_of_forks_where_there_are_some(run: Run, talk: Sessions) -> None:
    before = run("ls").stdout
    run("fork", "s", "other", "--turn", "2")

    after = run("ls").stdout.splitlines()

    assert "forked" not in before
    assert after[0].rstrip().endswith("  forked from")
    assert "s@9" in after[1]


# -- branches ----------------------------------------------------------------------------------------


def test_branches_are_a_tree_in_ascii(run: Run, talk: Sessions) -> None:
    talk.restore("s", to_turn=1, reason="no", actor="ada")
    said(talk, "two again")
    talk.restore("s", to_version=13)
    talk.fork("s", "other", version=9)
    talk.fork("s", "gone", version=18)
    talk.delete("gone")

    lines = [line.split(" · 20")[0] for line in run("branches", "s").stdout.splitlines()]

    assert lines == [
        "session s · 3 branches · 2 forks",
        "`-- versions 1 to 13 · live · turns 1 to 3",
        "    +-- versions 14 to 18 · abandoned · turn 2",
        "    |   `-- fork gone at version 18 · deleted",
        "    +-- version 19 · live",
        "    `-- fork other at version 9",
    ]
    assert " · from version 5 · actor ada · “no”\n" in run("branches", "s").stdout


def test_branches_name_the_parent_of_a_fork_first(run: Run, talk: Sessions) -> None:
    talk.fork("s", "other", turn=2)
    talk.restore("other", to_turn=1)

    lines = run("branches", "other").stdout.splitlines()

    assert lines[0] == "session other · forked from s at version 9 · 2 branches"
    assert [line[:16] for line in lines[1:]] == ["+-- version 10 ·", "`-- version 11 ·"]


def test_branches_as_json_are_the_tree(run: Run, talk: Sessions) -> None:
    talk.restore("s", to_turn=2)

    tree = json.loads(run("branches", "s", "--json").stdout)

    assert [(each["origin_version"], each["live_version"]) for each in tree["branches"]] == [(0, 9), (9, 14)]
    assert (tree["parent"], tree["forks"]) == (None, [])


def test_a_thousand_restores_are_readable(run: Run, talk: Sessions) -> None:
    for _ in range(1_000):
        talk.restore("s", to_version=talk.head("s").version)

    lines = run("branches", "s").stdout.splitlines()

    assert len(lines) == 1_002
    assert max(map(len, lines)) < 120
    assert "version 1,013 · live · 2" in lines[-1]
    assert lines[-1].endswith("from version 1,012")


# -- replay ------------------------------------------------------------------------------------------


def test_replay_shows_each_event_and_what_it_makes(run: Run, talk: Sessions) -> None:
    lines = run("replay", "s").stdout.splitlines()

    assert len(lines) == 26
    assert [line.split()[5] for line in lines[4:8:2]] == ["message.added", "state.changed"]
    assert lines[5] == "        → turn 1 · 1 message (+1)"
    assert lines[7] == '        → turn 1 · 1 message · state + /last: "one"'


def test_replay_of_the_log_has_what_was_abandoned(run: Run, talk: Sessions) -> None:
    talk.restore("s", to_turn=1)

    live, log = (run("replay", "s", *options).stdout.splitlines() for options in ([], ["--log"]))

    assert (len(live), len(log)) == (12, 28)
    assert [line.split()[5] for line in log[8:26:8]] == ["turn.completed", "abandoned", "abandoned"]
    assert log[-1] == '        → turn 1 · 1 message (-2) · state ~ /last: "one"'
    assert "abandoned" not in "".join(live)


def test_replay_as_json_is_a_document_per_event(run: Run, talk: Sessions) -> None:
    talk.restore("s", to_turn=1)

    short = [json.loads(line) for line in run("replay", "s", "--json", "--log").stdout.splitlines()]
    full = [json.loads(line) for line in run("replay", "s", "--json", "--full").stdout.splitlines()]

    assert short[8]["view"] == {
        "version": 9,
        "turn": 2,
        "status": "open",
        "messages": 2,
        "state": {"last": "two"},
    }
    assert [line["event"]["live"] for line in short] == [True] * 5 + [False] * 8 + [True]
    assert full[-1]["view"]["messages"][0]["content"] == "one"


def test_replay_of_a_fork_begins_with_what_it_shares(run: Run, talk: Sessions) -> None:
    talk.fork("s", "other", turn=1)

    lines = run("replay", "other").stdout.splitlines()

    assert [line.split()[0] for line in lines[::2]] == ["1", "2", "3", "4", "5", "6"]


def test_a_paced_replay_waits_as_it_was(
    run: Run, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    apart(sessions, 0.3)
    monkeypatch.setattr("projections.sessions.time.sleep", waited.append)

    assert len(run("replay", "s", "--pace", "1").stdout.splitlines()) == 4
    assert waited == [0.3]


def test_a_wait_is_never_longer_than_can_be_waited(
    run: Run, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    apart(sessions, 1e9)
    monkeypatch.setattr("projections.sessions.time.sleep", waited.append)

    assert run("replay", "s", "--pace", "0.001").exit_code == 0
    assert waited == [threading.TIMEOUT_MAX]


def apart(sessions: Sessions, seconds: float) -> None:
    """Two messages that are so far apart."""
    with pytest.MonkeyPatch.context() as patch:
        for number, text in enumerate(("one", "two")):
            at_ns = 1_700_000_000_000_000_000 + int(number * seconds * 1e9)
            patch.setattr("time.time_ns", lambda at_ns=at_ns: at_ns)
            sessions.append("s", [message("user", text)])


def test_ctrl_c_ends_a_paced_replay(sessions: Sessions, url: str) -> None:
    apart(sessions, 3600)

    with program("replay", "s", "--pace", "1", "--db", url) as replaying:
        assert replaying.stdout
        first = [replaying.stdout.readline() for _ in range(2)]
        replaying.send_signal(signal.SIGINT)
        rest, errors = replaying.communicate(timeout=PATIENCE_S)

    assert '"one"' in first[0]
    assert (replaying.returncode, rest, errors.strip()) == (130, "", "")


@pytest.mark.parametrize("arguments", [["replay"], ["replay", "--pace", "1000000"], ["branches"]])
def test_a_reader_that_leaves_early_is_no_error(sessions: Sessions, url: str, arguments: list[str]) -> None:
    for _ in range(3):
        sessions.append("s", [message("user", "x" * 1_000) for _ in range(200)])

    with program(*arguments, "s", "--db", url) as showing:
        assert showing.stdout and showing.stderr
        showing.stdout.close()
        errors = showing.stderr.read()

    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors


# -- diff, show --------------------------------------------------------------------------------------


def test_diff_shows_what_was_dropped_and_added(run: Run, talk: Sessions) -> None:
    talk.restore("s", to_turn=2)
    said(talk, "another")

    lines = run("diff", "s", "13", "18").stdout.splitlines()

    assert lines[0] == "session s · from version 13 to version 18"
    assert [line[:11] for line in lines[2:4]] == ["  - turn 3 ", "  + turn 3 "]
    assert lines[4:] == ["messages", "  - user: three", "  + user: another", "state", '  ~ /last: "another"']


def test_diff_takes_turns(run: Run, talk: Sessions) -> None:
    found = json.loads(run("diff", "s", "1", "3", "--turns", "--json").stdout)

    assert (found["before"], found["after"]) == (5, 13)
    assert [each["content"] for each in found["added"]] == ["two", "three"]


def test_no_difference_is_said(run: Run, talk: Sessions) -> None:
    result = run("diff", "s", "9", "9")

    assert (result.exit_code, result.stdout.splitlines()[1:]) == (0, ["no difference"])


def test_a_message_that_was_replaced_is_dropped_and_added(run: Run, sessions: Sessions) -> None:
    sessions.append("s", [message("user", "one", id="m"), message("user", "two")])
    sessions.append("s", [Draft("message.replaced", {"id": "m", "role": "user", "content": "uno"})])

    lines = run("diff", "s", "2", "3").stdout.splitlines()

    assert lines[2:] == ["  - user: one", "  + user: uno"]
    assert "no longer count: 0 turns, 0 messages\n" in run("restore", "s", "--version", "2").stdout


def test_show_of_events_marks_what_no_longer_counts(run: Run, talk: Sessions) -> None:
    talk.restore("s", to_turn=2)

    lines = run("show", "s", "--events").stdout.splitlines()
    shown = [json.loads(line) for line in run("show", "s", "--events", "--json").stdout.splitlines()]
    then = run("show", "s", "--events", "--version", "13").stdout

    assert ["abandoned" in line for line in lines] == [False] * 9 + [True] * 4 + [False]
    assert [event["live"] for event in shown] == [True] * 9 + [False] * 4 + [True]
    assert "abandoned" not in then


def test_show_goes_back_to_turns_of_the_live_path(run: Run, talk: Sessions) -> None:
    talk.restore("s", to_turn=1)
    said(talk, "two again")

    outputs = [run("show", "s", "--turn", turn).stdout.splitlines()[-1] for turn in "12"]

    assert outputs == ['  {"last":"one"}', '  {"last":"two again"}']


# -- for all of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["restore", "nope", "--turn", "1"], 1, "session 'nope' does not exist"),
        (["restore", "nope", "--turn", "1", "--dry-run"], 1, "does not exist"),
        (["restore", "s", "--turn", "9"], 1, "no turn 9: there are 0 to 3"),
        (["restore", "s", "--version", "99999999999999999999999"], 1, "there are 0 to 13"),
        (["restore", "s", "--turn", "1", "--dry-run", "--version", "1"], 2, "exactly one of"),
        (["restore", "s"], 2, "exactly one of"),
        (["restore", "s", "--at", "2026-01-31T14:00"], 2, "no time zone: add Z"),
        (["restore", "s", "--turn", "1", "--actor", "a\x1bb"], 1, "a control character"),
        (["restore", "s", "--turn", "1", "--reason", "\udcff"], 1, "a lone surrogate"),
        (["restore", "closed", "--turn", "0"], 1, "is closed"),
        (["fork", "nope", "other"], 1, "does not exist"),
        (["fork", "s", "closed"], 1, "exists already"),
        (["fork", "s", "other", "--turn", "9"], 1, "no turn 9"),
        (["fork", "s", "other", "--version", "0"], 1, "nothing before that point"),
        (["fork", "s", "other", "--turn", "1", "--version", "1"], 2, "exclude each other"),
        (["fork", "s", "other", "--turn", "1", "--at", "2026-01-31T14:00:00Z"], 2, "exclude each other"),
        (["fork", "s", "other", "--at", "1999-01-31T14:00:00Z"], 1, "nothing before that point"),
        (["fork", "s", "a\nb"], 1, "a control character"),
        (["fork", "s"], 2, "INTO"),
        (["branches", "nope"], 1, "does not exist"),
        (["replay", "nope"], 1, "does not exist"),
        (["replay", "s", "--pace", "0"], 2, "a number from 0.001, not 0"),
        (["replay", "s", "--pace", "-1"], 2, "a number from 0.001, not -1"),
        (["replay", "s", "--pace", "nan"], 2, "a number from 0.001, not nan"),
        (["replay", "s", "--pace", "inf"], 2, "a number from 0.001, not inf"),
        (["replay", "s", "--pace=-inf"], 2, "a number from 0.001, not -inf"),
        (["replay", "s", "--full"], 2, "--full goes with --json"),
        (["diff", "nope", "1", "2"], 1, "does not exist"),
        (["diff", "s", "1", "99"], 1, "no version 99"),
        (["diff", "s", "1", "9", "--turns"], 1, "no turn 9"),
        (["diff", "s", "1"], 2, "'B'"),
    ],
)
def test_an_error_is_one_line_that_says_what_to_change(
    run: Run, talk: Sessions, arguments: list[str], code: int, said: str
) -> None:
    talk.append("closed", [message("user", "hi"), Draft("session.closed", {})])

    result = run(*arguments)

    assert result.exit_code == code
    assert said in result.stderr
    assert result.stdout == ""
    assert code == 2 or len(result.stderr.splitlines()) == 1
    assert talk.head("s").version == 13


@pytest.mark.parametrize(
    "command",
    [
        ["restore", "s", "--turn", "0"],
        ["fork", "s", "t"],
        ["branches", "s"],
        ["replay", "s"],
        ["diff", "s", "1", "2"],
    ],
)
def test_none_of_them_makes_a_database(run: Run, tmp_path: Path, command: list[str]) -> None:
    result = run(*command)

    assert result.exit_code == 1
    assert "there is no database" in result.stderr
    assert not list(tmp_path.iterdir())


def test_data_is_shown_and_never_acts(run: Run, sessions: Sessions) -> None:
    odd = "[red]\u202eid"
    sessions.append(odd, [message("user", "hi")])
    call = {"id": "c", "name": HOSTILE, "arguments": HOSTILE}
    state = state_changed([["set", [HOSTILE], HOSTILE]])
    sessions.append(odd, [message(HOSTILE, HOSTILE, name=HOSTILE, tool_calls=[call]), state])
    sessions.fork(odd, f"{odd} fork")
    sessions.restore(odd, to_version=2, reason=HOSTILE, actor="[red]\u202e")

    commands = [
        ["diff", odd, "1", "3"],
        ["restore", odd, "--version", "1", "--dry-run"],
        ["restore", odd, "--version", "3"],
        ["fork", odd, f"{odd}2"],
        ["branches", odd],
        ["branches", f"{odd} fork"],
        ["replay", odd, "--log"],
        ["show", odd, "--events"],
        ["ls"],
    ]
    outputs = [run(*command) for command in commands]

    for result in outputs:
        assert result.exit_code == 0
        assert_harmless(result.output)
    assert outputs[0].stdout.count(SHOWN) >= 5
    assert f"“{SHOWN}”" in outputs[4].stdout


def test_a_long_text_is_cut_in_a_difference(run: Run, sessions: Sessions) -> None:
    sessions.append(
        "s", [message("user", "x" * 100_000), state_changed([["set", ["k" * 999], "y" * 100_000]])]
    )

    output = run("diff", "s", "0", "2").stdout

    assert "99,800 more characters, all of them with --json" in output
    assert len(output) < 1_500


def test_a_terminal_gets_a_tree_and_colours_but_no_data_that_acts(talk: Sessions, url: str) -> None:
    talk.restore("s", to_turn=1, reason=HOSTILE + " long" * 50)
    for _ in range(50):
        talk.restore("s", to_version=talk.head("s").version)

    tree, replayed = (in_terminal(command, "s", "--db", url) for command in ("branches", "replay"))

    assert "├── " in tree and "\x1b[" in tree
    assert "\x1b[2J" not in tree + replayed
    assert len(tree.splitlines()) < 52 * 12


def in_terminal(*arguments: str) -> str:
    """What a program writes into a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "COLUMNS": "80", "TERM": "xterm-256color"}
    env.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "kern_events", *arguments]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env):
        os.close(theirs)
        return b"".join(iter(lambda: _read(ours), b"")).decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # Linux says so when the other side is closed.
        os.close(terminal)
        return b""


def test_all_of_it_works_on_postgres(run: Run, postgres_url: str) -> None:
    with Sessions.open(postgres_url) as sessions:
        for text in ("one", "two"):
            said(sessions, text)
    env = {"KERN_EVENTS_DB": postgres_url}

    commands = ["restore s --turn 1", "fork s t --version 9", "branches s", "replay t", "diff s 5 9", "ls"]
    outputs = [run(*command.split(), env=env).stdout for command in commands]

    assert "no longer count: 1 turn, 1 message\n" in outputs[0]
    assert "forked from s at version 9, turn 2" in outputs[1]
    assert "    `-- fork t at version 9\n" in outputs[2]
    assert outputs[3].endswith("→ turn 2 · 2 messages\n")
    assert "  + user: two\n" in outputs[4]
    assert "s@9" in outputs[5]
