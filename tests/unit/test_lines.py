"""Files that anybody may have made: how much of a line is read, and what it may hold."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tracemalloc

import pytest

from kern_events import SessionLog, import_events, import_transcripts, transcript, transfer
from kern_events.errors import InvalidEvent
from kern_events.lines import TooLong, lines_of
from tests.transcripts import conversations, jsonl
from tests.writers import notes


@pytest.fixture
def log(backend_url):
    with SessionLog(backend_url) as log:
        yield log


@pytest.fixture
def memory():
    with SessionLog("memory:") as memory:
        yield memory


@pytest.fixture
def pieces(monkeypatch):
    """As if every line were a long one, of three messages a piece."""
    monkeypatch.setattr(transcript, "_WHOLE_BYTES", 0)
    monkeypatch.setattr(transcript, "_PIECE_MESSAGES", 3)


def said(session_id, *messages):
    return jsonl([{"id": session_id, "messages": [{"role": "user", "content": one} for one in messages]}])[0]


def recorded(log):
    return [(event.session_id, event.type, event.turn, event.payload) for event in log.read_all()]


LINES = [said("first", "x"), said("long", "é" * 5_000), said("last", "x")]
OPENED = {
    "path": lambda path: path,
    "text path": str,
    "binary file": lambda path: path.open("rb"),
    "text file": lambda path: path.open(encoding="utf-8"),
    "bytes": lambda path: iter(LINES),
    "text": lambda path: [line.decode() for line in LINES],
}


@pytest.mark.parametrize("how", OPENED)
def test_a_long_line_is_passed_over_whoever_opened_the_file(memory, tmp_path, how):
    path = tmp_path / "file.jsonl"
    path.write_bytes(b"".join(LINES))
    opened = OPENED[how](path)
    report = import_transcripts(memory, opened, max_line_bytes=1_000)
    getattr(opened, "close", lambda: None)()

    [problem] = report.problems
    assert (problem.line, problem.kind, report.new) == (2, "bad_line", 2)
    assert problem.reason.startswith("longer than 1,000 bytes")


def test_no_more_of_a_line_is_read_at_a_time_than_its_limit():
    file, asked = io.BytesIO(b"x" * 1_000_000 + b"\nnext\n"), []
    readline = file.readline
    file.readline = lambda size: (asked.append(size), readline(size))[1]

    assert list(lines_of(file, 100_000)) == [TooLong(1_000_001), b"next\n"]
    assert max(asked) == 100_002


def test_a_line_of_the_limit_is_read_and_its_line_break_does_not_count():
    lines = [b"x" * 10 + end for end in (b"\n", b"\r\n", b"")]

    assert list(lines_of(io.BytesIO(b"".join(lines)), 10)) == lines
    assert list(lines_of(io.BytesIO(b"x" * 11 + b"\n" + lines[0]), 10)) == [TooLong(12), lines[0]]
    assert list(lines_of(lines, 10)) == lines
    assert list(lines_of([b"x" * 11], 10)) == [TooLong(11)]


BOMBS = {
    "messages": b'{"id":"x","messages":[' + b"{}," * 300_000 + b"{}]}",
    "roles": b'{"id":"x","messages":[' + b'{"role":"user"},' * 60_000 + b'{"role":"user"}]}',
    "values": b'{"id":"x","messages":[],"metadata":{"a":[' + b"[]," * 300_000 + b"[]]}}",
    "nested": b'{"id":"x","messages":[' + b"[" * 500_000 + b"]}",
    "a string without end": b'{"id":"' + b'\\",' * 131_000,
    "fields": b'{"id":"x","messages":[],' + b'"a":1,' * 150_000 + b'"b":1}',
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_line_full_of_values_is_refused_before_it_is_taken_apart(memory, bomb):
    tracemalloc.start()
    report = import_transcripts(memory, [BOMBS[bomb], LINES[0]], max_line_bytes=1 << 20)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert (report.bad_lines, report.new) == (1, 1)
    assert held < 2 << 20


def test_commas_in_text_are_no_values(memory):
    report = import_transcripts(memory, [said("s", ',[{":\\"' * 100_000)], max_line_bytes=1 << 21)

    assert report.ok
    assert len(next(e for e in memory.read("s") if e.type == "message.added").payload["content"]) == 700_000


# ------------------------------------------------------------------------------------ long lines


def test_a_long_line_is_recorded_as_a_short_one_is(log, memory, pieces, monkeypatch):
    lines = jsonl(conversations())
    report = import_transcripts(log, lines)
    monkeypatch.undo()
    whole = import_transcripts(memory, lines)

    assert (report.new, report.events, report.turns) == (whole.new, whole.events, whole.turns)
    for session in memory.sessions():
        id = session.session_id
        assert [(e.type, e.turn, e.payload) for e in log.read(id)] == [
            (e.type, e.turn, e.payload) for e in memory.read(id)
        ]
    assert import_transcripts(log, lines).unchanged == len(lines)


def test_a_long_line_that_grows_records_what_is_new(log, pieces):
    reports = [import_transcripts(log, [said("s", *"abcdefghij"[:count])]) for count in (4, 5, 10)]

    assert [report.events for report in reports] == [12, 3, 15]
    assert import_transcripts(log, [said("s", "a", "other")]).problems[0].message == 1


def test_nothing_of_a_long_line_is_recorded_if_its_end_cannot_be(log, pieces):
    lines = [said("a", *"123456", 7), said("b", *"123456", "x" * (1 << 20))]
    report = import_transcripts(log, lines)

    at_fault = [problem.reason.split(":")[0] for problem in report.problems]
    assert at_fault == ["messages[6].content", "messages[6]"]
    assert recorded(log) == []


def test_conversations_share_a_transaction_up_to_so_many_bytes(memory, monkeypatch):
    monkeypatch.setattr(transfer, "_GROUP_BYTES", 3_000)
    record, groups = memory._record_batches, []
    monkeypatch.setattr(memory, "_record_batches", lambda some: (groups.append(len(some)), record(some))[1])
    import_transcripts(memory, [said(str(number), "x" * 1_000) for number in range(10)])

    assert max(groups) == 3 and sum(groups) == 10


# ------------------------------------------------------------------------------------ keys twice

TWICE = {
    "of the line": b'{"id":"s","messages":[{"role":"user","content":"x"}],"id":"s"}',
    "messages": b'{"id":"s","messages":[{"role":"user","content":"hidden"}],"messages":[]}',
    "of a message": b'{"id":"s","messages":[{"role":"user","content":"hidden","content":"x"}]}',
    "deep": b'{"id":"s","messages":[],"metadata":{"a":[{"b":{"c":1,"c":1}}]}}',
    "behind a colon": b'{"id":"s","messages":[{"role":"user","content":"10","content":"99\\u003a"}]}',
    "behind two": b'{"id":"s","messages":[],"metadata":{"c":1,"c":"\\u003A\\u005cu003a"}}',
    "behind another field": b'{"id":"s\\u003a","id":"s","messages":[],"metadata":{"a":"\\u003A"}}',
    "in other words": b'{"id":"s","messages":[],"metadata":{"c:":1,"c\\u003a":2}}',
}


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("where", TWICE)
def test_a_key_twice_is_refused(memory, monkeypatch, where, long):
    if long:
        monkeypatch.setattr(transcript, "_WHOLE_BYTES", 0)
    report = import_transcripts(memory, [TWICE[where]])

    assert (report.bad_lines, report.events) == (1, 0)
    assert "twice in one object" in report.problems[0].reason


def test_what_only_looks_like_a_key_is_recorded(memory):
    line = b'{"id":"s","messages":[{"role":"user","content":"a\\u003ab: {\\"a\\":1,\\"a\\":1}"}]}'

    assert import_transcripts(memory, [line]).ok


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"session_id":"s",', b'{"session_id":"t","session_id":"s",'),
        (b'"type":"note', b'"type":"secret","type":"note'),
        (b'{\\"text\\":0}', b'{\\"text\\":1,\\"text\\":0}'),
        (b'"type":"note', b'"type":"\\u003a","type":"note'),
    ],
)
def test_a_key_twice_in_an_export_is_refused(memory, before, after):
    memory.append("s", notes(1))
    lines = [line.replace(before, after) for line in memory.export("s")]
    with SessionLog("memory:") as other:
        report = import_events(other, lines)

        assert report.bad_lines and other.head("s").version == 0
        assert report.problems[0].line in (2, 3)


@pytest.mark.parametrize("importing", [import_events, import_transcripts])
def test_a_limit_of_no_bytes_is_refused(memory, importing):
    with pytest.raises(ValueError, match="max_line_bytes"):
        importing(memory, [], max_line_bytes=0)


def test_each_import_names_the_other_one(memory):
    memory.append("s", notes(1))
    with SessionLog("memory:") as other, pytest.raises(InvalidEvent, match="import_transcripts"):
        import_events(other, [said("s", "x")])

    assert "import_events" in import_transcripts(memory, memory.export("s")).problems[0].reason


def test_a_long_line_of_an_export_is_passed_over(memory):
    memory.append("s", notes(1))
    header, section, row = memory.export("s")
    long = row.replace(b'{\\"text\\":0}', b'{\\"text\\":\\"' + b"x" * 5_000 + b'\\"}')
    with SessionLog("memory:") as other:
        file = io.BytesIO(b"".join([header, section, long, section, row]))
        report = import_events(other, file, max_line_bytes=1_000)

        assert (report.failed, report.new) == (1, 1)
        assert [problem.line for problem in report.problems] == [3]


# ---------------------------------------------------------------------------------------- memory

_CHILD = """
import sys
from kern_events import SessionLog, import_transcripts
with SessionLog(sys.argv[2]) as log:
    import_transcripts(log, sys.argv[1])
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def contents(megabytes):
    text = "x" * 900_000 + "\U0001f600"
    return json.dumps(
        {"id": "s", "messages": [{"role": "user", "content": text}] * megabytes}, ensure_ascii=False
    ).encode()


@pytest.mark.long
@pytest.mark.parametrize(
    "data",
    [
        b'{"id":"x","messages":[' + b"{}," * (64 << 18) + b"{}]}\n",
        b'{"id":"x","messages":[' + b'{"role":"user"},' * (8 << 16) + b'{"role":"user"}]}\n',
        b"".join(said(str(number), *["x" * 50_000] * 40) for number in range(300)),
        contents(17),
    ],
    ids=["values", "messages", "lines", "text"],
)
def test_an_import_takes_less_than_150_mib(tmp_path, data):
    path = tmp_path / "file.jsonl"
    path.write_bytes(data)
    url = f"sqlite:///{tmp_path}/log.db"
    child = subprocess.run([sys.executable, "-c", _CHILD, path, url], capture_output=True, check=True)

    assert int(child.stdout) < 150 << 10
