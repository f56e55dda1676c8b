"""Exports in the formats of others, each read back with the library of its standard."""

from __future__ import annotations

import json
import sys
from base64 import b64decode, b64encode

import jsonpatch
import pyarrow.parquet
import pytest
from ag_ui.core import Event as AgUiEvent
from cloudevents.core.formats.json import JSONFormat
from google.protobuf.json_format import Parse
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData
from pydantic import TypeAdapter

from kern_events import Draft, Sessions, message, spi, tool_called, tool_failed, tool_returned
from kern_events.delta import StateEditor, op_problem
from kern_events.exports import agui, cloudevents, otel, parquet
from kern_events.exports.patches import patch_of
from kern_events.exports.sessions import every_line, every_session, live_events
from tests.bundles import fill
from tests.transcripts import conversations, jsonl
from tests.writers import note, notes, pick

AG_UI = TypeAdapter(AgUiEvent)
HOSTILE = "\x1b[31m \x9b \u202e \0 é 東京 🦊"


@pytest.fixture
def log():
    with Sessions.open("memory:") as log:
        yield log


@pytest.fixture
def filled(log):
    """A log with a bit of everything."""
    fill(log)
    return log


def parsed(lines):
    """JSON lines, which move no terminal."""
    lines = list(lines)
    assert all(line.isascii() and line.decode()[:-1].isprintable() for line in lines)
    return [json.loads(line) for line in lines]


def turn(log, session_id, *drafts, end="turn.completed", payload=None):
    log.append(session_id, [Draft("turn.started", {}), *drafts, Draft(end, payload or {})])


# ------------------------------------------------------------------------------------- CloudEvents


def cloud(log, session_id):
    lines = list(cloudevents.lines(log.read(session_id)))
    return [(JSONFormat().read(None, line), json.loads(line)) for line in lines]


@pytest.mark.parametrize("session_id", ["s", "fork", "fork of it", "gone", "orphan"])
def test_cloudevents_are_read_by_the_library_of_the_standard(filled, session_id):
    events = list(filled.read(session_id))
    found = cloud(filled, session_id)

    assert len(found) == len(events)
    for event, (cloud_event, _) in zip(events, found, strict=True):
        assert cloud_event.get_data() == (None if event.erased else event.payload)
        assert cloud_event.get_type() == f"dev.kern.{event.type}.v{event.type_version}"
        assert (cloud_event.get_time(), cloud_event.get_subject()) == (event.at, session_id)
        assert cloud_event.get_extension("hash") == event.hash.hex()


def test_a_cloudevent_carries_actor_meta_native_and_trace(log):
    meta = {"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01", "run": 1}
    log.append("s", [note("a", native=b"\xff\0", actor="ada", meta=meta)])
    [(event, _)] = cloud(log, "s")

    assert event.get_extension("actor") == "ada"
    assert json.loads(event.get_extension("meta")) == meta
    assert event.get_extension("traceparent") == meta["traceparent"]
    assert b64decode(event.get_extension("native")) == b"\xff\0"


def test_an_erased_cloudevent_says_so_and_has_no_data(filled):
    erased = [raw for event, raw in cloud(filled, "gone") if event.get_extension("erased")]

    assert erased and all(raw["data"] is None for raw in erased)
    assert "secret" not in str(cloud(filled, "gone"))


def test_source_and_id_of_cloudevents_are_unique(filled):
    found = [
        (raw["source"], raw["id"])
        for info in every_session(filled)
        for _, raw in cloud(filled, info.session_id)
    ]

    assert len(set(found)) == len(found)


# ------------------------------------------------------------------------------------------- AG-UI


def streamed(log, session_id):
    """The AG-UI events of a session, checked by the library's models and by the order they may have."""
    made = parsed(agui.lines(live_events(log, session_id), session_id))
    for event in made:
        model = AG_UI.validate_python(event)
        assert json.loads(model.model_dump_json(by_alias=True)) == event
    assert_in_order(made)
    return made


def assert_in_order(events):
    """What the protocol demands of the order: runs around all, what was begun is ended within its run."""
    run, open_text, open_call, called = None, None, None, set()
    for event in events:
        kind = event["type"]
        if kind == "RUN_STARTED":
            assert run is None
            run = event["runId"]
            continue
        assert run is not None, event
        if kind in ("RUN_FINISHED", "RUN_ERROR"):
            assert (open_text, open_call) == (None, None)
            assert event.get("runId", run) == run
            run = None
        elif kind.endswith("MESSAGE_START"):
            assert (open_text, open_call) == (None, None)
            open_text = event["messageId"]
        elif kind.endswith(("MESSAGE_CONTENT", "MESSAGE_END")):
            assert event["messageId"] == open_text
            assert event.get("delta", "some")
            open_text = open_text if kind.endswith("CONTENT") else None
        elif kind == "TOOL_CALL_START":
            assert (open_text, open_call) == (None, None)
            open_call = event["toolCallId"]
            called.add(open_call)
        elif kind in ("TOOL_CALL_ARGS", "TOOL_CALL_END"):
            assert event["toolCallId"] == open_call
            assert event.get("delta", "some")
            open_call = open_call if kind.endswith("ARGS") else None
    assert run is None


def told(events):
    """State and messages as somebody has them who followed the stream."""
    state, messages = {}, []
    for event in events:
        match event["type"]:
            case "STATE_SNAPSHOT":
                state = event["snapshot"]
            case "STATE_DELTA":
                state = jsonpatch.apply_patch(state, event["delta"])
            case "MESSAGES_SNAPSHOT":
                messages = [dict(each) for each in event["messages"]]
            case "TEXT_MESSAGE_START":
                messages.append({"id": event["messageId"], "role": event["role"], "content": ""})
            case "TEXT_MESSAGE_CONTENT":
                messages[-1]["content"] += event["delta"]
            case "TOOL_CALL_START" if not messages or messages[-1]["id"] != event["parentMessageId"]:
                messages.append({"id": event["parentMessageId"], "role": "assistant", "content": ""})
            case "TOOL_CALL_RESULT":
                messages.append({"id": event["messageId"], "role": "tool", "content": event["content"]})
    return state, [(each["id"], each["role"], each["content"]) for each in messages]


def viewed(log, session_id):
    """The same from the view."""
    view = log.load(session_id).to_dict()
    return view["state"], [(each["id"], each["role"], each["content"] or "") for each in view["messages"]]


@pytest.mark.parametrize("session_id", ["s", "fork", "fork of it", "gone", "orphan", "second orphan"])
def test_agui_events_are_valid_and_in_order(filled, session_id):
    assert streamed(filled, session_id)


def test_whoever_follows_the_stream_has_the_messages_of_the_view(log):
    from kern_events import import_transcripts

    import_transcripts(log, jsonl(conversations()[:8]))
    for info in every_session(log):
        assert told(streamed(log, info.session_id)) == viewed(log, info.session_id)


def test_a_tool_call_is_started_filled_ended_and_answered(log):
    call = {"id": "c", "name": "look_up", "arguments": '{"q":1}'}
    calling = message("assistant", None, tool_calls=[call], id="m")
    turn(log, "s", message("user", HOSTILE), calling, tool_called("c"), tool_returned("c", {"n": 1}))
    made = streamed(log, "s")

    assert [event["type"] for event in made][4:-1] == [
        "TOOL_CALL_START", "TOOL_CALL_ARGS", "TOOL_CALL_END", "TOOL_CALL_RESULT",
    ]  # fmt: skip
    assert made[2]["delta"] == HOSTILE
    assert (made[4]["parentMessageId"], made[4]["toolCallName"]) == ("m", "look_up")
    assert made[7]["content"] == '{"n":1}'


def test_calls_without_a_message_are_carried_as_the_view_has_them(log):
    with log.turn("s") as recorder:
        first, second = recorder.tool_call("a", {"x": 1}), recorder.tool_call("b")
        recorder.tool_result(first, "one")
        recorder.tool_error(second, "two")
        recorder.tool_call("c")
        recorder.message("assistant", "done", id="m")
        recorder.record(Draft("message.replaced", {"id": "m", "content": "really done"}))
    made = streamed(log, "s")
    parents = [event["parentMessageId"] for event in made if event["type"] == "TOOL_CALL_START"]
    [snapshot] = [event["messages"] for event in made if event["type"] == "MESSAGES_SNAPSHOT"]

    assert parents[0] == parents[1] != parents[2]
    assert told(made) == viewed(log, "s")
    assert [len(each.get("toolCalls", ())) for each in snapshot] == [2, 0, 0, 1, 0]


ENDS = {
    "turn.completed": ({"usage": {"input_tokens": 3}}, "RUN_FINISHED", {"type": "success"}),
    "turn.cancelled": ({}, "RUN_FINISHED", {"type": "cancelled"}),
    "turn.failed": ({"error": {"message": "no", "type": "Bad"}}, "RUN_ERROR", None),
    "turn.paused": ({"requirements": ["ask"]}, "RUN_FINISHED", "interrupt"),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_turn_is_a_run_that_ends_as_it_ended(log, end):
    payload, kind, outcome = ENDS[end]
    turn(log, "s", note(), end=end, payload=payload)
    last = streamed(log, "s")[-1]

    assert last["type"] == kind
    assert outcome in (None, last.get("outcome"), last.get("outcome", {}).get("type"))
    assert last.get("message", "no") == "no"
    assert last.get("usage", [{"inputTokens": 3}]) == [{"inputTokens": 3}]


def test_turns_that_overlap_or_never_end_are_runs_one_after_the_other(log):
    log.append("s", [note(), Draft("turn.started", {"run_id": "r1"}), Draft("turn.started", {})])
    log.append("s", [Draft("turn.completed", {}, turn=1), message("user", "still here")])
    ends = [event for event in streamed(log, "s") if event["type"] in ("RUN_ERROR", "RUN_FINISHED")]

    assert [end.get("code", "fine") for end in ends] == ["fine", "interrupted", "open"]


def test_a_paused_turn_goes_on_in_a_run_below_it(log):
    turn(log, "s", note(), end="turn.paused")
    log.append("s", [Draft("turn.resumed", {}, turn=1), Draft("turn.completed", {}, turn=1)])
    starts = [event for event in streamed(log, "s") if event["type"] == "RUN_STARTED"]

    assert starts[1]["parentRunId"] == starts[0]["runId"]


def test_a_message_that_is_replaced_or_removed_is_a_snapshot(log):
    turn(
        log, "s", message("user", "one", id="a"), message("assistant", "two", id="b"),
        Draft("message.replaced", {"id": "a", "content": "uno"}), Draft("message.removed", {"id": "b"}),
    )  # fmt: skip

    assert told(streamed(log, "s")) == viewed(log, "s")
    assert viewed(log, "s")[1] == [("a", "user", "uno")]


def test_reasoning_and_other_parts_are_told(log):
    parts = [
        {"type": "reasoning", "text": "hm"},
        {"type": "text", "text": "yes"},
        {"type": "image_url", "image_url": {"url": "x"}},
        {"type": "reasoning", "text": ""},
    ]
    turn(log, "s", message("assistant", parts))
    kinds = [event["type"] for event in streamed(log, "s")]

    assert kinds.count("REASONING_START") == kinds.count("REASONING_END") == 2
    assert "CUSTOM" in kinds and "TEXT_MESSAGE_CONTENT" in kinds


def test_what_was_restored_away_is_not_in_the_stream(log):
    turn(log, "s", message("user", "kept"))
    turn(log, "s", message("user", "abandoned"), Draft("state.changed", {"ops": [["set", ["a"], 1]]}))
    log.restore("s", to_turn=1)
    turn(log, "s", message("user", "instead"))

    assert told(streamed(log, "s")) == viewed(log, "s")
    assert "abandoned" not in str(streamed(log, "s"))


def random_op(chance, depth):
    path = [chance.choice(["a", "b", "~/", ""]) for _ in range(chance.randrange(depth))]
    value = chance.choice([1, None, [], {}, [1, {"a": 2}], {"a": {"b": []}}, "text"])
    verb = chance.choice(["set", "set", "unset", "append"])
    return {"set": [verb, path, value], "unset": [verb, path], "append": [verb, path, [value]]}[verb]


@pytest.mark.parametrize("seed", range(40))
def test_state_deltas_are_what_the_projector_makes_of_the_ops(log, seed):
    chance = pick(seed)
    log.append("s", [Draft("session.created", {"state": {"a": {"b": [1]}}})])
    for _ in range(20):
        ops = [random_op(chance, 4) for _ in range(chance.randrange(1, 4))]
        log.append("s", [Draft("state.changed", {"ops": [op for op in ops if op_problem(op) is None]})])

    assert told(streamed(log, "s"))[0] == viewed(log, "s")[0]


@pytest.mark.parametrize("op", [None, 7, [], ["set"], ["set", "a", 1], ["append", [], [1]], ["set", [], 1]])
def test_what_is_no_op_is_no_patch(op):
    state = StateEditor({"a": 1})

    assert (patch_of(state, op), state.finish()) == ([], {"a": 1})


# -------------------------------------------------------------------------------------------- OTel


def traces(log, session_id):
    """The spans of each trace, read by the classes of the protocol."""
    found = []
    for made in parsed(otel.lines(log.read(session_id))):
        for span in made["resourceSpans"][0]["scopeSpans"][0]["spans"]:
            assert (len(span["traceId"]), len(span["spanId"])) == (32, 16)
            for key in {"traceId", "spanId", "parentSpanId"} & span.keys():
                span[key] = b64encode(bytes.fromhex(span[key])).decode()  # as protobuf's own JSON has it
        data = Parse(json.dumps(made), TracesData())
        found.append(list(data.resource_spans[0].scope_spans[0].spans))
    return found


def attributes(span):
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def test_a_turn_is_a_trace_with_a_span_for_each_call(log):
    with log.turn("s", agent_id="planner") as recorder:
        recorder.message("user", "Weather?")
        recorder.record(Draft("model.called", {"model": "m-1"}))
        recorder.record(Draft("model.responded", {"finish_reason": "stop", "usage": {"output_tokens": 7}}))
        recorder.tool_result(recorder.tool_call("weather", {"city": "Bern"}), {"celsius": 3})
        recorder.message("assistant", "Cold.")
        recorder.complete(usage={"input_tokens": 5, "output_tokens": 7})
    [[root, chat, tool]] = traces(log, "s")

    assert [root.name, chat.name, tool.name] == ["invoke_agent planner", "chat m-1", "execute_tool weather"]
    assert chat.parent_span_id == tool.parent_span_id == root.span_id
    assert root.start_time_unix_nano <= chat.start_time_unix_nano <= tool.end_time_unix_nano
    assert attributes(root)["gen_ai.usage.input_tokens"] == 5
    assert attributes(root)["gen_ai.conversation.id"] == "s"
    assert json.loads(attributes(root)["gen_ai.input.messages"])[0] == {
        "role": "user", "parts": [{"type": "text", "content": "Weather?"}],
    }  # fmt: skip
    assert attributes(tool)["gen_ai.tool.call.result"] == '{"celsius":3}'


def test_the_attributes_have_the_names_of_the_conventions(log):
    from opentelemetry.semconv._incubating.attributes import gen_ai_attributes

    known = {value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_")}
    test_a_turn_is_a_trace_with_a_span_for_each_call(log)

    found = {key for spans in traces(log, "s") for span in spans for key in attributes(span)}
    assert {key for key in found if not key.startswith("kern.")} <= known


def test_a_failure_is_the_status_of_its_span(log):
    failed = Draft("turn.failed", {"error": {"type": "Timeout", "message": "too slow"}})
    log.append("s", [Draft("turn.started", {}), tool_called("c", "t"), tool_failed("c", "broken"), failed])
    [[root, tool]] = traces(log, "s")

    assert (root.status.code, root.status.message) == (2, "too slow")
    assert (tool.status.code, tool.status.message) == (2, "broken")
    assert attributes(root)["error.type"] == "Timeout"


def test_a_turn_with_a_traceparent_is_a_part_of_that_trace(log):
    parent = {"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01"}
    log.append("s", [Draft("turn.started", {}, meta=parent)])
    [[root]] = traces(log, "s")

    assert (root.trace_id.hex(), root.parent_span_id.hex()) == ("1" * 32, "2" * 16)
    assert attributes(root)["kern.outcome"] == "open"


@pytest.mark.parametrize("session_id", ["s", "fork", "gone", "second orphan"])
def test_traces_of_everything_can_be_read(filled, session_id):
    found = [span for spans in traces(filled, session_id) for span in spans]

    assert len({span.span_id for span in found}) == len(found)
    assert "secret" not in str(found)


# ----------------------------------------------------------------------------------------- Parquet


def test_a_parquet_file_has_a_row_for_each_event(filled, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_GROUP_ROWS", 3)
    events = [event for info in every_session(filled) for event in filled.read(info.session_id)]
    with (tmp_path / "log.parquet").open("wb") as file:
        parquet.write(events, file)
    rows = pyarrow.parquet.read_table(tmp_path / "log.parquet").to_pylist()

    assert len(rows) == len(events)
    for event, row in zip(events, rows, strict=True):
        assert (row["session_id"], row["version"], row["hash"]) == (
            event.session_id, event.version, event.hash,
        )  # fmt: skip
        assert (row["at"], row["native"], row["erased"]) == (event.at, event.native, event.erased)
        assert event.erased if row["payload"] is None else json.loads(row["payload"]) == event.payload


def test_no_events_are_a_file_without_rows(tmp_path):
    with (tmp_path / "empty.parquet").open("wb") as file:
        parquet.write([], file)

    assert pyarrow.parquet.read_table(tmp_path / "empty.parquet").num_rows == 0


@pytest.mark.parametrize(
    ("module", "use"),
    [
        ("opentelemetry.proto.trace.v1.trace_pb2", lambda: otel.lines([])),
        ("pyarrow", lambda: parquet.write([], None)),
    ],
)
def test_a_missing_extra_is_told_in_one_sentence(monkeypatch, module, use):
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(ImportError, match=r"export needs: pip install 'kern-events\[\w+\]'"):
        use()


# ----------------------------------------------------------------------------- hostile and everything

HANDLED = ["message.added", "message.replaced", "tool.called", "tool.returned", "state.changed"]
HANDLED += ["turn.started", "turn.failed", "turn.paused", "model.called", "model.responded", "tool.failed"]
ODD = [None, 7, "", HOSTILE, [], [7], {}, {"type": 7}, [{"type": "text"}], [{"id": "x", "name": "y"}]]
KEYS = ["role", "content", "id", "name", "tool_calls", "tool_call_id", "call_id", "arguments", "result"]
KEYS += ["error", "ops", "scope", "usage", "run_id", "agent_id", "model", "finish_reason", "requirements"]


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.usefixtures("unchecked")
def test_payloads_of_nonsense_are_exported_in_every_format(log, seed, tmp_path):
    chance = pick(seed)
    for _ in range(60):
        payload = {
            chance.choice(KEYS): chance.choice([*ODD, "user", "x"]) for _ in range(chance.randrange(5))
        }
        log.append("s", [Draft(chance.choice(HANDLED), payload)])

    assert streamed(log, "s")
    assert len(cloud(log, "s")) == 60
    assert traces(log, "s") is not None
    with (tmp_path / "odd.parquet").open("wb") as file:
        parquet.write(log.read("s"), file)


def test_every_session_is_listed_once_also_if_it_moves_to_the_front_meanwhile(log, monkeypatch):
    monkeypatch.setattr("kern_events.exports.sessions._PAGE", 2)
    for number in range(7):
        log.append(f"s{number}", notes(1))
    found = []
    for info in every_session(log):
        found.append(info.session_id)
        if len(found) < 5:
            log.append("s0", notes(1))

    assert sorted(found) == [f"s{number}" for number in range(7)]


def test_every_line_of_a_log_is_there_once(filled):
    from kern_events import SessionLog, import_events

    lines = list(every_line(filled))
    with SessionLog("memory:") as other:
        report = import_events(other, lines)

        assert (report.ok, report.new, report.sessions) == (True, 8, 8)
        assert other.verify().ok
        for info in every_session(filled):
            assert other.head(info.session_id) == filled.head(info.session_id)
    assert len(lines) == len(set(lines))


def test_events_that_count_are_those_of_the_live_path(filled):
    live = [(event.session_id, event.version) for event in live_events(filled, "fork of it")]
    ranges = spi.live_path(filled, "fork of it", filled.head("fork of it").version)

    assert live == [(part.session_id, v) for part in ranges for v in range(part.first, part.last + 1)]
