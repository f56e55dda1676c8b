"""The transcript importer: what is recorded, what is recorded only once, and what is reported."""

from __future__ import annotations

import copy
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from kern_events import Draft, SessionLog, Sessions, message
from kern_events.errors import InvalidEvent
from kern_events.transcript import conversation_of
from kern_events.transfer import import_transcripts
from tests.transcripts import Transcript, conversations, jsonl, source_messages


@pytest.fixture
def log(backend_url: str) -> Iterator[SessionLog]:
    with SessionLog(backend_url) as log:
        yield log


@pytest.fixture
def memory() -> Iterator[SessionLog]:
    with SessionLog("memory:") as log:
        yield log


def chat(*messages: dict[str, Any], id: str = "chat", **fields: Any) -> Transcript:
    return {"id": id, "messages": list(messages), **fields}


def said(role: str, content: Any = "words", **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


def recorded(log: SessionLog, session_id: str = "chat") -> list[tuple[str, Any]]:
    return [(event.type, event.payload) for event in log.read(session_id)]


def assert_loaded_equals(url: str, transcripts: list[Transcript]) -> None:
    with Sessions.open(url) as sessions:
        import_transcripts(sessions, jsonl(transcripts))

        for transcript in transcripts:
            view = sessions.load(transcript["id"])
            assert [message.to_openai() for message in view.messages] == source_messages(transcript)
            assert not view.problems


def test_loaded_conversations_equal_their_source(backend_url: str) -> None:
    assert_loaded_equals(backend_url, conversations())


@pytest.mark.skipif("KERN_EVENTS_TRANSCRIPTS" not in os.environ, reason="the file is not at hand")
def test_given_conversations_equal_their_source(backend_url: str) -> None:
    lines = Path(os.environ["KERN_EVENTS_TRANSCRIPTS"]).read_bytes().splitlines(keepends=True)
    transcripts = [json.loads(line) for line in lines]

    assert_loaded_equals(backend_url, transcripts)


@pytest.mark.skipif("KERN_EVENTS_TRANSCRIPTS" not in os.environ, reason="the file is not at hand")
def test_given_conversations_are_counted(log: SessionLog) -> None:
    with open(os.environ["KERN_EVENTS_TRANSCRIPTS"], "rb") as file:
        report = import_transcripts(log, file)

    assert (report.new, report.turns, report.messages) == (100, 757, 2658)
    assert (report.tool_calls, report.tool_calls_paired) == (572, 572)
    assert log.verify().ok


def test_a_report_counts_what_was_read_and_recorded(log: SessionLog) -> None:
    lines = jsonl(conversations())

    report = import_transcripts(log, lines)

    assert report.ok
    assert (report.conversations, report.new, report.turns) == (10, 10, 56)
    assert (report.tool_calls, report.tool_calls_paired) == (50, 41)
    assert report.events == sum(session.version for session in log.sessions())
    assert report.size_bytes == sum(map(len, lines))
    assert report.messages_per_s > 0


def test_importing_again_records_nothing(log: SessionLog) -> None:
    lines = jsonl(conversations())
    import_transcripts(log, lines)

    report = import_transcripts(log, lines)

    assert (report.unchanged, report.events) == (10, 0)
    assert report.ok


def test_a_longer_version_records_what_is_new(log: SessionLog) -> None:
    whole = conversations()[3]
    for length in range(len(whole["messages"]) + 1):
        import_transcripts(log, jsonl([{**whole, "messages": whole["messages"][:length]}]))

    import_transcripts(log, jsonl([{**whole, "id": "at once"}]))

    assert recorded(log, whole["id"]) == recorded(log, "at once")
    assert log.verify().ok


def test_a_shorter_version_changes_nothing(memory: SessionLog) -> None:
    import_transcripts(memory, jsonl([chat(said("user"), said("assistant"))]))

    report = import_transcripts(memory, jsonl([chat(said("user"))]))

    assert (report.unchanged, report.events) == (1, 0)


@pytest.mark.parametrize(
    "other",
    [said("assistant", "else"), said("system"), said("assistant", name="bob"), said("assistant", flag=1)],
)
def test_a_diverging_version_is_reported_and_not_mixed_in(memory: SessionLog, other: dict[str, Any]) -> None:
    import_transcripts(memory, jsonl([chat(said("user"), said("assistant", flag=True))]))
    before = recorded(memory)

    report = import_transcripts(memory, jsonl([chat(said("user"), other, said("user"))]))

    assert recorded(memory) == before
    assert (report.diverged, report.events, report.ok) == (1, 0, False)
    [problem] = report.problems
    assert (problem.kind, problem.line, problem.version, problem.message) == ("diverged", 1, 4, 1)


def test_what_an_application_recorded_diverges(memory: SessionLog) -> None:
    memory.append("chat", [message("user", "recorded without a turn")])

    report = import_transcripts(memory, jsonl([chat(said("user"))]))

    assert [problem.kind for problem in report.problems] == ["diverged"]


def test_changed_metadata_is_recorded_once(log: SessionLog) -> None:
    import_transcripts(log, jsonl([chat(said("user"), metadata={"score": 1})]))

    reports = [import_transcripts(log, jsonl([chat(metadata={"score": 1.0})])) for _ in range(2)]

    assert [report.events for report in reports] == [1, 0]
    assert recorded(log)[-1] == ("session.described", {"metadata": {"score": 1.0}})


def test_what_the_application_says_about_a_session_stays(memory: SessionLog) -> None:
    lines = jsonl([chat(said("user"), metadata={"score": 1})])
    import_transcripts(memory, lines)
    memory.append("chat", [Draft("session.described", {"metadata": {"score": 2}})])

    report = import_transcripts(memory, lines)

    assert report.events == 0


def test_a_deleted_session_stays_deleted(log: SessionLog) -> None:
    lines = jsonl([chat(said("user"))])
    import_transcripts(log, lines)
    log.delete("chat")

    report = import_transcripts(log, lines)

    assert (report.refused, report.events, report.ok) == (1, 0, False)
    assert log.head("chat").status == "deleted"


def test_a_closed_session_stays_closed(log: SessionLog) -> None:
    import_transcripts(log, jsonl([chat(said("user"))]))
    log.append("chat", [Draft("session.closed", {})])

    same = import_transcripts(log, jsonl([chat(said("user"))]))
    more = import_transcripts(log, jsonl([chat(said("user"), said("assistant"))]))

    assert (same.unchanged, more.refused, same.ok, more.ok) == (1, 1, True, False)
    assert log.head("chat").status == "closed"


def test_a_session_created_anew_after_its_deletion_is_compared_from_there(memory: SessionLog) -> None:
    import_transcripts(memory, jsonl([chat(said("user", "old"))]))
    memory.delete("chat")
    memory.append("chat", [Draft("session.created", {})])

    report = import_transcripts(memory, jsonl([chat(said("user", "new"))]))

    assert (report.extended, report.events) == (1, 2)


def test_the_same_id_twice_in_a_file_is_one_conversation(log: SessionLog) -> None:
    short, whole = chat(said("user")), chat(said("user"), said("assistant"))

    report = import_transcripts(log, jsonl([short, whole, whole]))

    assert (report.new, report.extended, report.unchanged) == (1, 1, 1)
    assert log.head("chat").version == report.events == 4


def test_what_was_restored_is_not_continued(memory: SessionLog, monkeypatch: pytest.MonkeyPatch) -> None:
    import_transcripts(memory, jsonl([chat(said("user"))]))
    restored = replace(memory.head("chat"), branch=3)
    monkeypatch.setattr(memory, "head", lambda session_id: restored)

    report = import_transcripts(memory, jsonl([chat(said("user"), said("assistant"))]))

    assert [problem.kind for problem in report.problems] == ["refused"]
    assert "version 3 restored an earlier state" in report.problems[0].reason


def test_a_damaged_session_does_not_stop_the_import(tmp_path: Path) -> None:
    path, lines = tmp_path / "log.db", jsonl([chat(said("user", "secret")), chat(id="next")])
    with SessionLog(f"sqlite:///{path}") as log:
        import_transcripts(log, lines[:1])
    path.write_bytes(path.read_bytes().replace(b'"content":"secret"', b'"content":"secret!'))

    with SessionLog(f"sqlite:///{path}") as log:
        report = import_transcripts(log, lines)

    assert (report.refused, report.new) == (1, 1)
    assert "cannot be decoded" in report.problems[0].reason


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "list, not dict"),
        (b"{}", "id: missing"),
        (b'{"id": 7, "messages": []}', "id: int, not str"),
        (b'{"id": "", "messages": []}', "session_id: 0 bytes"),
        (b'{"id": "a\\nb", "messages": []}', "session_id: a control character"),
        (b'{"id": "x"}', "messages: missing"),
        (b'{"id": "x", "messages": {}}', "messages: dict, not list"),
        (b'{"id": "x", "messages": [], "metadata": 1}', "metadata: int, not dict"),
        (b'{"id": "x", "messages": [], "metadata": {"n": 1e400}}', "not JSON"),
        (b'{"id": "x", "messages": [], "metadata": {"n": 99999999999999999999}}', "metadata.n: an integer"),
        (b'{"id": "x", "messages": ["hi"]}', "messages[0]: str, not dict"),
        (b'{"id": "x", "messages": [{}]}', "messages[0].role: missing"),
        (b'{"id": "x", "messages": [{"role": "user", "content": 1}]}', "messages[0].content: int"),
        (b'{"id": "x", "messages": [{"role": "user", "content": [1]}]}', "messages[0].content[0]: int"),
        (
            b'{"id": "x", "messages": [{"role": "a", "tool_calls": [{}]}]}',
            "messages[0].tool_calls[0].function",
        ),
        (
            b'{"id": "x", "messages": [{"role": "a", "n": 99999999999999999999}]}',
            "messages[0].extra.n: an int",
        ),
        (b'{"id": "x", "messages": [{"role": "a", "content": "\\ud800"}]}', "not JSON"),
    ],
)
def test_a_bad_line_is_reported_with_its_number_and_the_rest_goes_on(
    memory: SessionLog, line: bytes, reason: str
) -> None:
    lines = [jsonl([chat(id="first")])[0], b"\n", line, jsonl([chat(id="last")])[0]]

    report = import_transcripts(memory, lines)

    [problem] = report.problems
    assert (problem.kind, problem.line) == ("bad_line", 3)
    assert problem.reason.startswith(reason)
    assert (report.bad_lines, report.new, report.ok) == (1, 2, False)
    assert {session.session_id for session in memory.sessions()} == {"first", "last"}


def test_a_report_lists_the_first_problems_and_counts_all(memory: SessionLog) -> None:
    report = import_transcripts(memory, [b"{"] * 1_002)

    assert (len(report.problems), report.bad_lines) == (1_000, 1_002)


def test_a_message_over_the_limit_is_named(memory: SessionLog) -> None:
    report = import_transcripts(memory, jsonl([chat(said("user"), said("user", "x" * (1 << 20)))]))

    assert report.problems[0].reason.startswith("messages[1]: 1,048,")
    assert memory.head("chat").version == 0


def test_a_line_over_the_limit_is_read_over(memory: SessionLog) -> None:
    lines = jsonl([chat(said("user", "x" * length), id=str(length)) for length in (1, 1_000, 2)])

    report = import_transcripts(memory, io.BytesIO(b"".join(lines)), max_line_bytes=100)

    assert [(problem.line, problem.reason[:11]) for problem in report.problems] == [(2, "longer than")]
    assert report.new == 2


def test_a_byte_order_mark_is_skipped(memory: SessionLog) -> None:
    report = import_transcripts(memory, [b"\xef\xbb\xbf" + jsonl([chat()])[0]])

    assert report.new == 1


def test_a_long_conversation_is_split_into_batches(log: SessionLog) -> None:
    long = chat(*[said("user"), said("assistant")] * 600)

    report = import_transcripts(log, jsonl([long, chat(id="short")]))

    assert (report.new, report.turns) == (2, 600)
    assert log.head("chat").version == 2_400
    assert import_transcripts(log, jsonl([long])).unchanged == 1


def test_a_long_continuation_is_split_too(memory: SessionLog) -> None:
    import_transcripts(memory, jsonl([chat(said("user"))]))

    report = import_transcripts(memory, jsonl([chat(said("user"), *[said("assistant")] * 2_500)]))

    assert (report.extended, report.events) == (1, 2_500)


def test_one_conflict_is_settled_for_its_session_alone(
    log: SessionLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_batches = log._record_batches

    def late(batches: Any) -> Any:
        log.append("b", [message("user", "from somebody else")])
        return record_batches(batches)

    monkeypatch.setattr(log, "_record_batches", late)

    report = import_transcripts(log, jsonl([chat(said("user"), id=id) for id in "abc"]))

    assert (report.new, report.diverged) == (2, 1)
    assert [problem.session_id for problem in report.problems] == ["b"]
    assert [log.head(id).version for id in "abc"] == [3, 1, 3]


def test_two_imports_at_the_same_time_record_once(log: SessionLog, monkeypatch: pytest.MonkeyPatch) -> None:
    record_batches, lines = log._record_batches, jsonl(conversations())

    def late(batches: Any) -> Any:
        monkeypatch.undo()
        import_transcripts(log, lines)
        return record_batches(batches)

    monkeypatch.setattr(log, "_record_batches", late)

    report = import_transcripts(log, lines)

    assert (report.unchanged, report.events) == (10, 0)


def test_events_recorded_before_a_conflict_are_counted(
    memory: SessionLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = memory._record

    def late(batch: Any, expected: Any = None) -> Any:
        landed = record(batch, expected)
        monkeypatch.undo()
        memory.append("chat", [Draft("session.renamed", {"name": "meanwhile"})])
        return landed

    monkeypatch.setattr(memory, "_record", late)

    report = import_transcripts(memory, jsonl([chat(*[said("assistant")] * 1_500)]))

    assert (report.conversations, report.events) == (1, 1_501)
    assert memory.head("chat").version == 1_502


def test_a_session_that_never_rests_is_refused(memory: SessionLog, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = memory._prepare

    def busy(session_id: str, drafts: Any, **options: Any) -> Any:
        batch = prepare(session_id, drafts, **options)
        memory._record(prepare(session_id, [Draft("session.renamed", {"name": "again"})]))
        return batch

    monkeypatch.setattr(memory, "_prepare", busy)

    report = import_transcripts(memory, jsonl([chat(said("user"))]))

    assert [problem.kind for problem in report.problems] == ["refused"]


def test_turns_open_with_a_user_message_and_the_last_stays_open(memory: SessionLog) -> None:
    import_transcripts(memory, jsonl([chat(said("system"), said("user"), said("assistant"), said("user"))]))

    events = [(event.type, event.turn) for event in memory.read("chat")]

    assert events == [
        ("session.created", 0), ("message.added", 0),
        ("turn.started", 1), ("message.added", 1), ("message.added", 1),
        ("turn.completed", 1), ("turn.started", 2), ("message.added", 2),
    ]  # fmt: skip


def test_a_call_follows_its_message_and_a_result_is_paired_by_its_id() -> None:
    function = {"name": "add", "arguments": '{"a": 1e0}'}
    call = {"id": "c", "type": "function", "function": function}

    results = [said("tool", text, tool_call_id="c") for text in "12"]

    conversation = conversation_of(chat(said("assistant", None, tool_calls=[call]), *results))

    assert (conversation.tool_calls, conversation.tool_calls_paired) == (1, 1)
    assert [(draft.type, draft.payload) for draft in conversation.drafts] == [
        ("message.added", {"role": "assistant", "content": None, "tool_calls": [{"id": "c", **function}]}),
        ("tool.called", {"call_id": "c"}),
        ("tool.returned", {"call_id": "c", "result": "1"}),
        ("tool.returned", {"call_id": "c", "result": "2"}),
    ]


def test_fields_that_the_log_does_not_model_are_kept() -> None:
    call = {"id": "c", "index": 0, "function": {"name": "f", "arguments": "", "strict": True}}

    answer = said("tool", "", tool_call_id="c", is_error=True)

    conversation = conversation_of(
        chat(said("assistant", refusal=None, id=7, tool_calls=[call]), answer, model="m", metadata={})
    )

    assert conversation.about == {"metadata": {}, "extra": {"model": "m"}}
    asked, _, returned = (draft.payload for draft in conversation.drafts)
    assert asked["extra"] == {"refusal": None, "id": 7}
    assert asked["tool_calls"][0]["extra"] == {"index": 0, "function": {"strict": True}}
    assert returned["extra"] == {"is_error": True}


def test_a_custom_tool_call_is_a_tool_call() -> None:
    call = {"id": "c", "type": "custom", "custom": {"name": "sql", "input": "SELECT 1"}}

    conversation = conversation_of(chat(said("assistant", tool_calls=[call])))

    assert next(conversation.drafts).payload["tool_calls"] == [
        {"id": "c", "name": "sql", "arguments": "SELECT 1", "extra": {"type": "custom"}}
    ]


@pytest.mark.parametrize("time", [1_700_000_000, 1.5, "2024-05-15T15:00:00Z"])
def test_the_time_of_a_message_goes_to_meta(time: Any) -> None:
    [_, draft] = conversation_of(chat(said("user", timestamp=time))).drafts

    assert draft.meta == {"source_time": time}
    assert "extra" not in draft.payload


@pytest.mark.parametrize("time", ["yesterday, at Ada's", True, None, {}])
def test_what_is_no_time_stays_in_the_payload(time: Any) -> None:
    [_, draft] = conversation_of(chat(said("user", created_at=time))).drafts

    assert draft.meta is None
    assert draft.payload["extra"] == {"created_at": time}


def test_a_transcript_is_left_as_it_was() -> None:
    transcripts = conversations()
    before = copy.deepcopy(transcripts)

    for chat_line in transcripts:
        conversation_of(chat_line)

    assert transcripts == before


def test_a_transcript_in_another_form_is_refused() -> None:
    with pytest.raises(InvalidEvent, match=r"messages\[0\]\.tool_calls\[0\]\.function\.arguments: dict, not"):
        conversation_of(
            chat(said("assistant", tool_calls=[{"id": "c", "function": {"name": "f", "arguments": {}}}]))
        )


def test_progress_is_told_after_every_line(memory: SessionLog) -> None:
    seen: list[int] = []

    import_transcripts(memory, [b"{", b"\n", b"{"], progress=lambda report: seen.append(report.bad_lines))

    assert seen == [1, 1, 2]


def test_of_a_long_text_only_its_bytes_are_in_memory_while_it_is_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a str, one emoji makes it four times as large."""
    texts: list[str] = []
    others: list[int] = []
    with SessionLog("memory:", max_payload_bytes=4 << 20) as log:
        prepare, record = log._prepare, log._record

        def preparing(session_id: str, drafts: list[Draft], **options: Any) -> Any:
            texts[:] = [draft.payload["content"] for draft in drafts if draft.type == "message.added"]
            return prepare(session_id, drafts, **options)

        def recording(batch: Any, expected: Any = None) -> Any:
            others.append(sys.getrefcount(texts[0]) - 2)  # Those of the list and of the call itself.
            return record(batch, expected)

        monkeypatch.setattr(log, "_prepare", preparing)
        monkeypatch.setattr(log, "_record", recording)
        message = said("user", "x" * (2 << 20) + "🦊")
        report = import_transcripts(log, [json.dumps(chat(message), ensure_ascii=False)])

        assert (report.problems, set(others)) == ([], {0})
        assert list(log.read("chat"))[-1].payload == message
