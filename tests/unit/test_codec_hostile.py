"""Hostile values and ids: an exact round trip or InvalidEvent before any write, on every backend alike."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kern_events import Draft, SessionLog
from kern_events.errors import InvalidEvent
from tests import hostile
from tests.writers import note

EXACT = settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def log(backend_url):
    with SessionLog(backend_url) as log:
        yield log


def batches(values, size=100):
    return itertools.batched(values, size) if hasattr(itertools, "batched") else _batched(values, size)


def _batched(values, size):
    return [values[start : start + size] for start in range(0, len(values), size)]


def payloads(log, session_id):
    return [event.payload["text"] for event in log.read(session_id)]


def test_there_are_enough_of_them():
    values, ids = hostile.values(), hostile.ids()

    assert len(values) >= 2_000
    assert len(ids) >= 400
    assert 0.1 < sum(map(hostile.recordable, values)) / len(values) < 0.9
    assert 0.1 < sum(map(hostile.usable, ids)) / len(ids) < 0.9


def test_what_can_be_recorded_comes_back_exactly(log):
    """Alone and among others: the two go different ways through the codec."""
    values = [value for value in hostile.values() if hostile.recordable(value)]
    for value in values:
        log.append("alone", [note(value)])
    for batch in batches(values):
        log.append("together", [note(value) for value in batch])

    for session_id in ("alone", "together"):
        for given_, found in zip(values, payloads(log, session_id), strict=True):
            assert hostile.same(given_, found), (given_, found)
    assert log.verify().ok


def test_what_cannot_be_recorded_is_refused_before_any_write(log):
    """Alone, and as one of many: then nothing of the others is written either."""
    log.append("s", [note("first")])
    before = log.head("s")
    for value in hostile.values():
        if hostile.recordable(value):
            continue
        for drafts in (
            [note(value)],
            [note("good"), Draft("other.type", {"list": [value]}), note({"a": [1]})],
        ):
            with pytest.raises(InvalidEvent) as caught:
                log.append("s", drafts)
            assert caught.value.path.startswith(f"drafts[{len(drafts) // 2}].payload")
            assert str(caught.value).encode()  # It can be shown, whatever was in the value.

    assert log.head("s") == before
    assert payloads(log, "s") == ["first"]


def test_meta_is_guarded_like_a_payload(log):
    values = hostile.values()[::7]
    good = [value for value in values if hostile.recordable(value)]
    log.append("s", [note("x", meta={"value": value}) for value in good[:1_000]])
    for value in values:
        if not hostile.recordable(value):
            with pytest.raises(InvalidEvent) as caught:
                log.append("s", [note("x", meta={"value": value})])
            assert ".meta" in caught.value.path

    found = [event.meta["value"] for event in log.read("s")]
    assert all(map(hostile.same, good, found))


def test_ids_come_back_exactly_or_are_refused(log):
    good, bad = [], []
    for value in hostile.ids():
        (good if hostile.usable(value) else bad).append(value)
    good = list(dict.fromkeys(good))
    for batch in batches(good):
        log.append_many([(id, [Draft(id, {}, actor=id)], 0) for id in batch])
    for id in good[::5]:
        log.append(id, [Draft("session.created", {"user_id": id, "agent_id": id})], idempotency_key=id)
    recorded = len(list(log.read_all()))
    for value in bad:
        for append in (
            lambda: log.append(value, [note()]),  # noqa: B023 - called at once
            lambda: log.append("s", [Draft(value, {})]),  # noqa: B023
            lambda: log.append("s", [note(), note("x", actor=value)]),  # noqa: B023
            lambda: log.append("s", [note()], idempotency_key=value),  # noqa: B023
            lambda: log.append("s", [Draft("session.created", {"user_id": value})]),  # noqa: B023
        ):
            if value is not None:
                with pytest.raises(InvalidEvent):
                    append()

    events = list(log.read_all())
    assert len(events) == recorded
    assert {(event.session_id, event.type, event.actor) for event in events if event.version == 1} == {
        (id, id, id) for id in good
    }
    assert {info.user_id for info in log.sessions(limit=2_000) if info.user_id} == set(good[::5])
    assert log.verify().ok


def test_nul_and_four_byte_characters_come_back_in_every_place(log):
    text = "a\0b🦊\U0010ffff"
    log.append("s", [Draft("x.y", {text: [text]}, meta={text: text}, native=text.encode(), actor="🦊")])

    [event] = log.read("s")
    assert (event.payload, event.meta, event.native, event.actor) == (
        {text: [text]}, {text: text}, text.encode(), "🦊",
    )  # fmt: skip


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_the_limit_is_of_bytes_as_they_are_recorded(log, over):
    room = (1 << 20) - len('{"text":""}')
    for char, size in (("x", 1), ("ü", 2), ("🦊", 4), ("\0", 6)):
        draft = note(char * (room // size) + "x" * (room % size + over))
        if over <= 0:
            assert log.append("s", [draft]).version
        else:
            with pytest.raises(InvalidEvent, match="the limit is 1,048,576"):
                log.append("s", [draft])

    with pytest.raises(InvalidEvent, match="native"):
        log.append("s", [note("x", native=bytes((1 << 20) + 1))])
    assert log.head("s").version == (4 if over <= 0 else 0)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("payload", [None, [], "text", b"{}", hostile.Fields(a=1), 1, {1: 2}]),
        ("type_version", [0, -1, 1.0, True, "1", None, 2**31, 10**5_000, hostile.Whole(1)]),
        ("event_id", [b"", bytes(15), bytes(17), "x" * 16, bytearray(16), None, 1, [1]]),
        ("meta", [[], "text", 1, hostile.Fields(a=1), {1: 2}]),
        ("native", ["text", bytearray(b"x"), memoryview(b"x"), 1, []]),
        ("turn", [-1, 1.0, True, "1", 10**5_000, -(10**5_000), 1]),
    ],
)
def test_fields_of_a_draft_that_are_not_what_they_should_be(log, field, values):
    for value in values:
        draft = Draft(**{"type": "note.taken", "payload": {}, field: value})
        for drafts in ([draft], [note(), draft], [draft, draft]):
            with pytest.raises(InvalidEvent):
                log.append("s", drafts)

    assert log.head("s").version == 0


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(st.characters(exclude_categories=()), max_size=10), inner, max_size=5)
        | st.tuples(inner)
    ),
    max_leaves=20,
)


@EXACT
@given(value=JSON)
def test_any_value_comes_back_exactly_or_is_refused(log, value):
    before = log.head("s").version
    if hostile.recordable(value):
        log.append("s", [note(value), note([value])])
        alone, listed = payloads_after(log, before)
        assert hostile.same(value, alone)
        assert hostile.same([value], listed)
    else:
        with pytest.raises(InvalidEvent):
            log.append("s", [note(value)])
        assert log.head("s").version == before


def payloads_after(log, version):
    return [event.payload["text"] for event in log.read("s", after=version)]


@EXACT
@given(id=st.text(st.characters(exclude_categories=()), max_size=70))
def test_any_id_comes_back_exactly_or_is_refused(log, id):
    if hostile.usable(id):
        version = log.append(id, [note(id)]).version
        assert list(log.read(id))[-1].payload == {"text": id}
        assert log.head(id).version == version
    else:
        with pytest.raises(InvalidEvent):
            log.append(id, [note()])
