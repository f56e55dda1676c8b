"""The command line: what each command prints, how it fails, and that data never acts on a terminal."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kern_events import Draft, SessionLog, Sessions, message
from kern_events.cli.app import cli
from tests.transcripts import conversations, jsonl
from tests.writers import PATIENCE_S

Run = Callable[..., Result]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/log.db"


@pytest.fixture
def run(url: str) -> Run:
    def run(*arguments: str, env: dict[str, str] | None = None, **options: Any) -> Result:
        return CliRunner().invoke(cli, arguments, env={"KERN_EVENTS_DB": url} | (env or {}), **options)

    return run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "conversations.jsonl"
    path.write_bytes(b"".join(jsonl(conversations())))
    return path


@pytest.fixture
def imported(run: Run, file: Path) -> None:
    assert run("import", str(file)).exit_code == 0


@pytest.fixture
def log(url: str) -> Iterator[SessionLog]:
    with SessionLog(url) as log:
        yield log


def program(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kern_events", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", **options
    )


# -- import ------------------------------------------------------------------------------------------


def test_import_says_what_was_recorded_and_how_fast(run: Run, file: Path) -> None:
    result = run("import", str(file))

    assert result.exit_code == 0
    assert "10 conversations: 10 new" in result.stdout
    assert "56 turns, 50 tool calls, 41 with a result" in result.stdout
    assert "messages per second" in result.stdout


def test_import_of_the_same_file_records_nothing(run: Run, file: Path, imported: None) -> None:
    result = run("import", str(file), "--json")

    report = json.loads(result.stdout)
    assert (report["ok"], report["unchanged"], report["events"]) == (True, 10, 0)


def test_import_reads_stdin(run: Run, file: Path) -> None:
    result = run("import", "-", input=file.read_bytes())

    assert "10 new" in result.stdout


def test_import_of_a_bad_line_exits_1_and_names_it(run: Run) -> None:
    result = run("import", "-", input=b'{"id": "a", "messages": []}\n{"id"\n')

    assert result.exit_code == 1
    assert "line 2: bad line: not JSON" in result.stderr
    assert "1 new" in result.stdout


def test_a_file_that_is_something_else_is_told_in_few_lines(run: Run) -> None:
    data = b"# A heading\n" * 523
    result = run("import", "-", input=data)
    recorded = json.loads(run("import", "-", "--json", input=data).stdout)

    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 21
    assert result.stderr.splitlines()[-1].startswith("and 503 more")
    assert len(recorded["problems"]) == 523


def test_import_of_a_diverging_conversation_exits_1(run: Run) -> None:
    line = b'{"id": "a", "messages": [{"role": "user", "content": "%s"}]}\n'

    result = run("import", "-", input=line % b"one" + line % b"two")

    assert result.exit_code == 1
    assert "line 2 (a): diverged: message 0 differs" in result.stderr


def test_import_of_a_missing_file_is_wrong_usage(run: Run) -> None:
    result = run("import", "no-such-file")

    assert result.exit_code == 2


# -- ls ----------------------------------------------------------------------------------------------


def test_ls_pages_through_all_sessions(run: Run, imported: None) -> None:
    seen, cursor = [], ["--limit", "4"]
    while cursor:
        page = json.loads(run("ls", "--json", *cursor).stdout)
        seen += [session["session_id"] for session in page["sessions"]]
        cursor = ["--limit", "4", "--after", page["next"]] if page["next"] else []

    assert sorted(seen) == sorted(transcript["id"] for transcript in conversations())


def test_ls_says_how_to_get_the_next_page(run: Run, imported: None) -> None:
    result = run("ls", "--limit", "9")

    assert len(result.stdout.splitlines()) == 10
    assert "more: the same command with --after" in result.stderr


def test_ls_counts_turns_and_events(run: Run, imported: None) -> None:
    [line] = [line for line in run("ls").stdout.splitlines() if line.startswith("trip-0")]

    assert line.split()[1:3] == ["3", "17"]


def test_ls_lists_the_sessions_of_a_user(run: Run, log: SessionLog) -> None:
    for user in ("ada", "bob"):
        log.append(user, [Draft("session.created", {"user_id": user, "name": f"of {user}"})])

    result = run("ls", "--user", "ada")

    assert "of ada" in result.stdout
    assert "bob" not in result.stdout


def test_ls_of_an_empty_log_says_so(run: Run) -> None:
    run("migrate")

    assert run("ls").stdout == "no sessions\n"


def test_namespaces_are_apart(run: Run, file: Path) -> None:
    run("import", str(file), "--namespace", "other")

    assert run("ls").stdout == "no sessions\n"
    assert "trip-0" in run("ls", env={"KERN_EVENTS_NAMESPACE": "other"}).stdout


# -- show --------------------------------------------------------------------------------------------


def test_show_folds_results_under_their_calls(run: Run, log: SessionLog) -> None:
    calls = [{"id": "same", "name": name, "arguments": "{}"} for name in ("first", "second")]
    log.append("s", [message("assistant", None, tool_calls=calls)])
    for result in ("for the second", "for the first"):
        log.append("s", [Draft("tool.returned", {"call_id": "same", "result": result})])

    result = run("show", "s")

    assert result.stdout.splitlines()[1:] == [
        "assistant",
        "  → first {}",
        "    for the first",
        "  → second {}",
        "    for the second",
    ]


def test_show_marks_a_call_without_a_result(run: Run, imported: None) -> None:
    assert run("show", "trip-0").stdout.endswith('  → book {"seat": "12A"}\n    no result yet\n')


def test_show_names_parts_and_state(run: Run, log: SessionLog) -> None:
    parts = [{"type": "text", "text": "Look:"}, {"type": "image_url", "image_url": {"url": "u"}}]
    with log.turn("s") as turn:
        turn.message("user", [*parts, {"type": "reasoning", "text": "hm"}, {"type": "odd", "x": 1}])
        turn.set_state("count", 1)

    output = run("show", "s").stdout

    assert '  Look:\n  [image_url] {"url":"u"}\n  [reasoning] hm\n  [raw] {"type":"odd","x":1}\n' in output
    assert output.endswith('state\n  {"count":1}\n')


def test_show_names_how_a_turn_ended(run: Run, log: SessionLog) -> None:
    with pytest.raises(OSError, match="no wind"), log.turn("s"):
        raise OSError("no wind")
    with log.turn("s") as turn:
        turn.complete(usage={"input_tokens": 1_200})

    output = run("show", "s").stdout

    assert "── turn 1 · failed · " in output
    assert '{"type":"OSError","message":"no wind"}' in output
    assert "── turn 2 · completed · " in output
    assert "input_tokens 1,200" in output


def test_show_goes_back_to_a_turn_a_version_and_a_time(run: Run, log: SessionLog, url: str) -> None:
    for text in ("one", "two", "three"):
        with log.turn("s") as turn:
            turn.message("user", text)
    at = [event.at.isoformat() for event in log.read("s") if event.type == "turn.completed"]

    points = (["--turn", "2"], ["--version", "7"], ["--at", at[1]])
    outputs = [run("show", "s", *point).stdout for point in points]

    assert all("as of version 7 of 10" in output for output in outputs)
    assert all("two" in output and "three" not in output for output in outputs)


def test_show_of_events_is_raw(run: Run, imported: None) -> None:
    lines = run("show", "begun", "--events").stdout.splitlines()

    assert [line.split()[5] for line in lines] == ["session.created", "turn.started", "message.added"]
    assert '{"role":"user","content":"Hello?"}' in lines[2]


def test_show_of_events_goes_back_too(run: Run, imported: None) -> None:
    lines = run("show", "begun", "--events", "--json", "--version", "2").stdout.splitlines()

    assert [json.loads(line)["version"] for line in lines] == [1, 2]


def test_show_as_json_is_the_view(run: Run, url: str, imported: None) -> None:
    result = run("show", "odd/Ünï-42", "--json")

    with Sessions.open(url) as sessions:
        assert json.loads(result.stdout) == json.loads(json.dumps(sessions.load("odd/Ünï-42").to_dict()))
    assert result.stdout.isascii()


NUMBERS = [
    ["show", "begun", "--turn"], ["show", "begun", "--version"], ["restore", "begun", "--version"],
    ["restore", "begun", "--turn"], ["fork", "begun", "f", "--version"], ["fork", "begun", "f", "--turn"],
    ["diff", "begun", "1"], ["ls", "--limit"], ["import", "-", "--max-line-bytes"],
    ["import", "-", "--max-payload-bytes"], ["rebuild", "--workers"],
]  # fmt: skip


@pytest.mark.parametrize("command", NUMBERS, ids=" ".join)
def test_a_number_that_is_none_is_wrong_usage(run: Run, imported: None, command: list[str]) -> None:
    for number in ("1.5", "nan", "True", ""):
        result = run(*command, number)
        assert (result.exit_code, type(result.exception)) == (2, SystemExit), number
        assert "Error: Invalid value for" in result.stderr
    for number in (str(2**63), str(2**64)):  # No version, turn or size; the sentence says what there is.
        result = run(*command, number)
        assert (result.exit_code in (1, 2), type(result.exception)) == (True, SystemExit), number
        assert result.stderr.startswith(("Error: ", "Usage: "))


def test_times_at_the_ends_of_the_calendar_are_times(run: Run, imported: None) -> None:
    for at in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"):
        result = run("show", "begun", "--at", at)

        assert result.exit_code in (0, 1), result.exception
        assert isinstance(result.exception, (SystemExit, type(None)))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["show", "nope"], 1, "session 'nope' does not exist"),
        (["show", "begun", "--turn", "9"], 1, "no turn 9: there are 0 to 1"),
        (["show", "begun", "--version", "-1"], 1, "no version -1"),
        (["show", "begun", "--turn", "1", "--version", "1"], 2, "exclude each other"),
        (["show", "begun", "--at", "2026-01-31T14:00"], 2, "no time zone: add Z"),
        (["show", "begun", "--at", "yesterday"], 2, "not a time like"),
        (["show", "a\nb"], 1, "a control character"),
        (["tail", "nope"], 1, "does not exist"),
        (["verify", "nope"], 1, "does not exist"),
        (["ls", "--after", "x"], 1, "not the cursor of a session"),
        (["ls", "--limit", "0"], 2, "--limit"),
        (["ls", "--db", "not a url"], 2, "not a URL"),
        (["ls", "--db", "postgresql://ada:secret"], 2, "not a URL"),
        (["ls", "--db", "postgresql://ada:a@secret@127.0.0.1:1/d"], 2, "write %40"),
        (["ls", "--db", "mysql://root:secret@h/d"], 2, "'mysql' is not supported"),
        (["ls", "--db", "postgresql://ada:secret@127.0.0.1:1/d"], 1, "cannot be reached"),
        (["ls", "--namespace", ""], 2, "namespace: 0 bytes"),
        (["completion", "csh"], 2, "csh"),
    ],
)
def test_an_error_is_one_line_that_says_what_to_change(
    run: Run, imported: None, arguments: list[str], code: int, said: str
) -> None:
    result = run(*arguments)

    assert result.exit_code == code
    assert said in result.stderr
    assert "secret" not in result.output
    assert code == 2 or len(result.stderr.splitlines()) == 1


def test_without_a_database_the_usage_says_which_variable_to_set(run: Run) -> None:
    result = run("ls", env={"KERN_EVENTS_DB": ""})

    assert result.exit_code == 2
    assert "KERN_EVENTS_DB" in result.stderr


@pytest.mark.parametrize("command", [["ls"], ["show", "s"], ["tail", "s"], ["verify"]])
def test_reading_does_not_make_a_database(run: Run, tmp_path: Path, command: list[str]) -> None:
    result = run(*command)

    assert result.exit_code == 1
    assert "there is no database" in result.stderr
    assert not list(tmp_path.iterdir())


# -- hostile texts -----------------------------------------------------------------------------------

HOSTILE = {
    "ansi": ("\x1b[2J\x1b[31mred", "\\x1b[2J\\x1b[31mred"),
    "c1": ("\x9b31m", "\\x9b31m"),
    "link": ("\x1b]8;;http://evil\x1b\\text\x1b]8;;\x07", "\\x1b]8;;http://evil\\x1b\\text\\x1b]8;;\\x07"),
    "nul": ("a\x00b", "a\\x00b"),
    "overwrite": ("all good\rbad\x08", "all good\\rbad\\x08"),
    "bidi": ("\u202egnp.exe\u2066", "\\u202egnp.exe\\u2066"),
    "zero width": ("pass\u200bword\u2060\ufeff", "pass\\u200bword\\u2060\\ufeff"),
    "tags": ("hi\U000e0041", "hi\\U000e0041"),
    "variation": ("hi\ufe01\U000e0101", "hi\\ufe01\\U000e0101"),
    "fillers": ("\u3164\u2800\u115f", "\\u3164\\u2800\\u115f"),
    "line separators": ("a\u2028b\u2029c\x85", "a\\u2028b\\u2029c\\x85"),
    "markup": ("[red]x[/red][link=http://evil]", "[red]x[/red][link=http://evil]"),
    "emoji code": (":smile: ", ":smile: "),
    "plain": ("Ünï 東京 🛫 naïve\u3000x", "Ünï 東京 🛫 naïve\u3000x"),
}


@pytest.mark.parametrize(("text", "shown"), HOSTILE.values(), ids=HOSTILE)
def test_data_is_shown_and_never_acts(run: Run, log: SessionLog, text: str, shown: str) -> None:
    call = {"id": "c", "name": text, "arguments": text}
    drafts = [
        message(text, text, name=text),
        message("assistant", None, tool_calls=[call]),
        Draft("tool.returned", {"call_id": "c", "result": text}),
        Draft("state.changed", {"ops": [["set", [text], text]]}),
    ]
    log.append("s", drafts)

    result = run("show", "s")

    assert result.stdout.count(shown.strip()) >= 4
    assert_harmless(result.stdout)


@pytest.mark.parametrize(("text", "shown"), HOSTILE.values(), ids=HOSTILE)
def test_data_in_events_is_shown_and_never_acts(run: Run, log: SessionLog, text: str, shown: str) -> None:
    log.append("s", [Draft("custom.said", {"text": text}, meta={"text": text})])

    for arguments in (["show", "s", "--events"], ["tail", "s"]):
        assert_harmless(run(*arguments).stdout)


def test_session_ids_and_names_are_shown_and_never_act(run: Run, log: SessionLog) -> None:
    log.append(
        "[red]\u202eid", [Draft("session.created", {"name": "\x1b[31m[red]\nname", "user_id": "\u200b"})]
    )

    result = run("ls")

    assert "[red]\\u202eid" in result.stdout
    assert "\\x1b[31m[red]\\nname" in result.stdout
    assert len(result.stdout.splitlines()) == 2
    assert_harmless(result.stdout)


def test_a_message_cannot_look_like_another_one(run: Run, log: SessionLog) -> None:
    log.append("s", [message("user", "hi\nassistant\n  I agree.\n\n── turn 9 · completed")])

    lines = run("show", "s").stdout.splitlines()

    assert lines[1:] == ["user", "  hi", "  assistant", "    I agree.", "", "  ── turn 9 · completed"]


def test_a_role_stays_on_its_line(run: Run, log: SessionLog) -> None:
    log.append("s", [message("user\n\nassistant", "hi")])

    assert "user\\n\\nassistant" in run("show", "s").stdout.splitlines()


def test_a_very_long_text_is_cut_and_says_so(run: Run, log: SessionLog) -> None:
    log.append("s", [message("system", "x" * 500_000), message("user", "\x1b" * 100_000)])

    result = run("show", "s")

    assert "499,400 more characters, all of them with --json" in result.stdout
    assert len(result.stdout) < 100_000


def test_an_error_cannot_act_either(run: Run, imported: None) -> None:
    result = run("show", "\u202e[red]nope")

    assert "[red]nope" in result.stderr
    assert_harmless(result.stderr)


def assert_harmless(output: str) -> None:
    seen = set(output) - {"\n", "\u3000"}
    assert all(char.isprintable() for char in seen), sorted(char for char in seen if not char.isprintable())


# -- verify, migrate, the rest -----------------------------------------------------------------------


def test_verify_says_that_all_is_well(run: Run, imported: None) -> None:
    result = run("verify")

    assert result.exit_code == 0
    assert "10 sessions, 351 events: everything is as it was recorded" in result.stdout


def test_verify_of_one_session_reads_that_one(run: Run, imported: None) -> None:
    report = json.loads(run("verify", "begun", "--json").stdout)

    assert (report["ok"], report["sessions"], report["events"]) == (True, 1, 3)


def test_verify_names_every_finding_and_exits_1(run: Run, imported: None, tmp_path: Path) -> None:
    forge(tmp_path / "log.db", b"Hello?", b"Hello!")
    forge(tmp_path / "log.db", b"Book it.", b"Hook it.")

    result = run("verify")
    report = json.loads(run("verify", "--json").stdout)

    assert result.exit_code == 1
    assert "begun version 3: changed hash: expected" in result.stdout
    assert "2 findings" in result.stdout
    assert (report["ok"], len(report["findings"])) == (False, 2)


def forge(path: Path, said: bytes, forged: bytes) -> None:
    data = path.read_bytes()
    assert said in data
    path.write_bytes(data.replace(said, forged, 1))


def test_migrate_says_from_and_to(run: Run) -> None:
    first, second = run("migrate"), run("migrate")

    assert first.stdout.startswith("schema 0 -> ")
    assert "nothing to do" in second.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_and_how_to_install_it(run: Run, shell: str) -> None:
    result = run("completion", shell)

    assert result.stdout.startswith("# To install:")
    assert f"_KERN_EVENTS_COMPLETE={shell}_complete" in result.stdout


def test_the_version_is_the_package_s(run: Run) -> None:
    import kern_events

    assert run("--version").stdout.endswith(f" {kern_events.__version__}\n")


# -- as a program ------------------------------------------------------------------------------------


def test_help_needs_neither_a_database_nor_the_views() -> None:
    code = (
        "import sys, kern_events.cli.app as app; app.cli(['--help'], standalone_mode=False);"
        "sys.exit(bool({'rich', 'projections', 'psycopg', 'sqlalchemy', 'orjson'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert "Commands:" in done.stdout
    assert done.returncode == 0


def test_follow_shows_what_is_recorded_meanwhile_until_ctrl_c(log: SessionLog, url: str) -> None:
    log.append("s", [message("user", "before")])
    with program("tail", "s", "--follow", "--json", "--db", url) as following:
        assert following.stdout
        first = json.loads(following.stdout.readline())
        log.append("s", [message("user", "meanwhile")])
        second = json.loads(following.stdout.readline())
        following.send_signal(signal.SIGINT)
        rest, errors = following.communicate(timeout=PATIENCE_S)

    assert [event["payload"]["content"] for event in (first, second)] == ["before", "meanwhile"]
    assert (following.returncode, rest, errors.strip()) == (130, "", "")


@pytest.mark.skipif(sys.platform != "linux", reason="these files are of Linux")
@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("export s >/dev/full", "No space left on device"),
        ("show s --json >&-", "standard output: Bad file descriptor"),
        ("import - <&-", "Bad file descriptor"),
    ],
)
def test_streams_that_are_closed_or_full_are_one_line_on_stderr(
    log: SessionLog, url: str, command: str, said: str
) -> None:
    log.append("s", [message("user", "hello")])
    line, env = f"{sys.executable} -m kern_events {command}", {**os.environ, "KERN_EVENTS_DB": url}
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, env=env)

    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"Error: {said}\n")


def test_a_file_that_cannot_be_read_to_its_end_is_one_line_on_stderr(run: Run, tmp_path: Path) -> None:
    """As a file of which a disk has lost a part."""
    result = run("import", "/proc/self/mem" if sys.platform == "linux" else str(tmp_path))

    assert result.exit_code in (1, 2)
    assert result.stderr.splitlines()[-1].startswith("Error: ")


def test_json_is_json_whatever_the_numbers_are(run: Run, log: SessionLog) -> None:
    for _ in range(2):
        ended = Draft("turn.completed", {"usage": {"cost": 1.5e308}})
        log.append("s", [Draft("turn.started", {}), ended])

    for command in ("show s --json", "replay s --json --full", "diff s 0 4 --json"):
        for line in run(*command.split()).stdout.splitlines():
            json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert json.loads(run("show", "s", "--json").stdout)["usage"] == {"cost": sys.float_info.max}
    assert run("show", "s").exit_code == 0


@pytest.mark.parametrize("arguments", [["ls"], ["show", "long", "--events"], ["show", "long"]])
def test_a_reader_that_leaves_early_is_no_error(log: SessionLog, url: str, arguments: Sequence[str]) -> None:
    for _ in range(3):
        log.append("long", [message("user", "x" * 1_000) for _ in range(200)])

    with program(*arguments, "--db", url) as showing:
        assert showing.stdout and showing.stderr
        showing.stdout.close()
        errors = showing.stderr.read()

    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors


def test_a_terminal_gets_colours_and_a_progress_bar_but_no_data_that_acts(
    log: SessionLog, url: str, file: Path
) -> None:
    log.append("s", [message("user", "\x1b[2J[red]" + "long " * 50)])

    shown = in_terminal("show", "s", "--db", url)
    imported = in_terminal("import", str(file), "--db", url)

    assert "\x1b[1;36muser" in shown
    assert "\\x1b[2J[red]long" in shown
    assert "\x1b[2J" not in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert "importing" in imported
    assert "10 conversations: 10 new" in imported


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


def test_a_terminal_without_unicode_gets_escapes(log: SessionLog, url: str) -> None:
    log.append("s", [message("user", "Łódź")])

    with program("show", "s", "--db", url, env={**os.environ, "PYTHONIOENCODING": "ascii"}) as showing:
        output, errors = showing.communicate()

    assert (showing.returncode, errors) == (0, "")
    assert "  \\u0141\\xf3d\\u017a" in output


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://u:SECRET@h/a.db", "postgresql://h:1/x?port=2&host=a,b", "postgresql://h:SECRET", "nothing",
        "mysql://u:SECRET@h/x", "sqlite:///a.db?mode", "",
    ],
)  # fmt: skip
def test_a_url_that_is_none_is_wrong_usage_on_one_line(run: Run, tmp_path: Path, url: str) -> None:
    (tmp_path / "a.db").touch()
    for command in (["ls"], ["verify", "--cache", "redis://h/0"], ["export", "--output", "x"], ["migrate"]):
        refused = run(*command, "--db", url)
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
        assert "SECRET" not in refused.output and type(refused.exception) is SystemExit


@pytest.mark.parametrize("cache", ["nothing", "foo://h", "redis://u:SECRET@h:port/x"])
def test_a_cache_that_is_none_is_wrong_usage(run: Run, imported: None, cache: str) -> None:
    refused = run("verify", "--cache", cache)

    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "SECRET" not in refused.output
