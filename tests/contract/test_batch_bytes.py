"""How much one transaction takes: refused by bytes, before anything is written, and alike everywhere."""

from __future__ import annotations

import orjson
import pytest

from kern_events import Draft, SessionLog, import_events, import_transcripts
from kern_events.errors import InvalidEvent
from tests.facade import only_on, sync_of

MIB = 1 << 20
PHOTO = {"photo": "x" * (MIB - 100)}


def photos(count, **fields):
    """So many large drafts, of one object in memory."""
    return [Draft("photo.taken", PHOTO, **fields) for _ in range(count)]


@pytest.fixture
def log(open_log):
    return open_log(max_batch_bytes=3 * MIB)


def test_an_append_is_refused_by_its_bytes(log):
    for too_much in (
        photos(4),
        photos(3, meta={"a": "b" * 300}),
        photos(3, native=b"x" * 300),
        [Draft("photo.taken", {"a": 1.5}, native=b"x" * MIB) for _ in range(3)],
    ):
        with pytest.raises(InvalidEvent, match="more than 3,145,728 bytes in one transaction") as refused:
            log.append("s", too_much)
        assert refused.value.path == "drafts"

    assert log.head("s").version == 0
    assert log.append("s", photos(3)).version == 3


def test_append_many_is_refused_by_what_its_sessions_come_to(log):
    with pytest.raises(InvalidEvent, match="more than 3,145,728 bytes"):
        log.append_many([(each, photos(2), None) for each in "ab"])

    assert (log.head("a").version, log.head("b").version) == (0, 0)
    assert len(log.append_many([("a", photos(2), None), ("b", photos(1), None)])) == 2


def test_a_buffered_turn_refuses_it_where_it_is_said(log):
    with log.turn("s", buffered=True) as turn:
        turn.record(*photos(2))
        with pytest.raises(InvalidEvent, match="more than 3,145,728 bytes"):
            turn.record(*photos(1))
        turn.message("assistant", "too much")

    assert [event.type for event in log.read("s")][-2:] == ["message.added", "turn.completed"]


@only_on("memory")
def test_no_more_is_encoded_than_is_taken(open_log, monkeypatch):
    log, encoded, dumps = open_log(), [], orjson.dumps

    def counted(value, *options):
        encoded.append(dumps(value, *options))
        return encoded[-1]

    monkeypatch.setattr("kern_events.codec.orjson.dumps", counted)
    with pytest.raises(InvalidEvent, match="more than 268,435,456 bytes in one transaction; max_batch_bytes"):
        log.append("s", photos(1_000))

    assert len(encoded) < 270  # Of one object in memory; a gigabyte would be made of it.


def test_imports_stay_below_it(open_log):
    log, line = sync_of(open_log(max_batch_bytes=MIB)), b'{"id": "%d", "messages": [%b]}'
    said = b'{"role": "user", "content": "%b"}' % (b"x" * 300_000)
    lines = [line % (number, b", ".join([said] * 5)) for number in range(3)]
    report = import_transcripts(log, lines)
    with SessionLog("memory:", namespace=log.namespace) as other:
        other.append_many([(f"e{number}", photos(2), None) for number in range(2)])
        exported = [*other.export("e0"), *list(other.export("e1"))[1:]]

    assert (report.new, report.messages, report.problems) == (3, 15, [])
    assert import_events(log, exported).new == 2
    assert [log.head(each).version for each in ("0", "2", "e0")] == [15, 15, 2]
    assert len({event.at_us for event in log.read("0")}) > 2
