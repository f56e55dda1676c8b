"""Numbers that nobody should pass, to every public verb: one typed error, and nothing is done."""

from __future__ import annotations

import decimal
import enum
import math
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace

from kern_events import AsyncSessionLog, Draft, Head, import_events, import_transcripts, message, spi
from kern_events.errors import FeedRegressed, InvalidEvent, TurnNotPaused, VersionConflict
from projections import MemoryCache, RedisCache, history
from tests.facade import open_sessions, sync_of

LARGEST = 2**63 - 1


class Number(enum.IntEnum):
    ONE = 1


NO_NUMBERS = [
    *(True, False, 1.0, 0.5, 2.0**63, math.nan, math.inf, "1", b"1", [1], {}, object(), int, 1j),
    *(decimal.Decimal(1), decimal.Decimal("NaN")),
]
TOO_LARGE = [2**63, 2**64, 10**30, -(2**63) - 1]
SECONDS = [True, "1", b"1", None.__class__, [1], 1j, math.nan, math.inf, -math.inf, -1, 10**30, 2**64]


class Verb(NamedTuple):
    """A parameter: how it is given, its lowest and highest value, and what comes of one that is far out."""

    call: Any
    low: int = 0
    high: int = LARGEST
    far: type[Exception] | None = None


def listed(found: Any) -> Any:
    return list(found) if hasattr(found, "__next__") else found


def draft() -> Draft:
    return message("user", "never recorded")


def stepped(consumer: Any) -> Any:
    return consumer.step()


def resumed(turn: Any) -> None:
    with turn:
        raise AssertionError("there is none")


VERBS = {
    "append.expected": Verb(lambda s, n: s.append("s", [draft()], expected=n), far=VersionConflict),
    "append.expected, new": Verb(lambda s, n: s.append("new", [draft()], expected=n), far=VersionConflict),
    "append_many.expected": Verb(
        lambda s, n: s.append_many([("s", [draft()], n), ("t", [draft()], None)]), far=VersionConflict
    ),
    "describe.expected": Verb(lambda s, n: s.describe("s", name="x", expected=n), far=VersionConflict),
    "restore.expected": Verb(lambda s, n: s.restore("s", to_version=1, expected=n), far=VersionConflict),
    "restore.to_version": Verb(lambda s, n: s.restore("s", to_version=n), far=ValueError),
    "restore.to_turn": Verb(lambda s, n: s.restore("s", to_turn=n), far=ValueError),
    "preview_restore.to_turn": Verb(lambda s, n: s.preview_restore("s", to_turn=n), far=ValueError),
    "preview_restore.to_version": Verb(lambda s, n: s.preview_restore("s", to_version=n), far=ValueError),
    "fork.version": Verb(lambda s, n: s.fork("s", "new", version=n), far=ValueError),
    "fork.turn": Verb(lambda s, n: s.fork("s", "new", turn=n), far=ValueError),
    "load.version": Verb(lambda s, n: s.load("s", version=n), far=ValueError),
    "load.turn": Verb(lambda s, n: s.load("s", turn=n), far=ValueError),
    "load.min_version": Verb(lambda s, n: s.load("s", min_version=n), far=VersionConflict),
    "history.last_turns": Verb(lambda s, n: s.history("s", last_turns=n)),
    "history.last_messages": Verb(lambda s, n: s.history("s", last_messages=n)),
    "diff.a": Verb(lambda s, n: s.diff("s", n, 1), far=ValueError),
    "diff.b": Verb(lambda s, n: s.diff("s", 1, n), far=ValueError),
    "resume.turn": Verb(lambda s, n: resumed(sync_of(s).resume("s", n)), far=TurnNotPaused),
    "read.after": Verb(lambda s, n: s.read("s", after=n)),
    "read.until": Verb(lambda s, n: s.read("s", until=n)),
    "read.limit": Verb(lambda s, n: s.read("s", limit=n)),
    "read_all.after": Verb(lambda s, n: s.read_all(after=n), far=FeedRegressed),
    "read_all.limit": Verb(lambda s, n: s.read_all(limit=n)),
    "subscribe.after": Verb(
        lambda s, n: sync_of(s).subscribe(after=n).batch(timeout_s=0), far=FeedRegressed
    ),
    "batch.limit": Verb(lambda s, n: s.subscribe().batch(limit=n, timeout_s=0), low=1),
    "consumer.after": Verb(lambda s, n: stepped(s.consumer(f"c{n}", ignored, after=n)), far=FeedRegressed),
    "consumer.batch_size": Verb(lambda s, n: stepped(s.consumer("d", ignored, batch_size=n)), low=1),
    "consumer.attempts": Verb(lambda s, n: stepped(s.consumer("e", ignored, attempts=n)), low=1),
    "consumer.skip": Verb(lambda s, n: s.consumer("f", ignored).skip("s", n)),
    "sessions.limit": Verb(lambda s, n: s.sessions(limit=n)),
    "rebuild.workers": Verb(lambda s, n: s.rebuild(workers=n), low=1, high=256),
    "import_transcripts": Verb(
        lambda s, n: import_transcripts(sync_of(s), [], max_line_bytes=n), low=1, high=1 << 40
    ),
    "import_events": Verb(lambda s, n: import_events(sync_of(s), [], max_line_bytes=n), low=1, high=1 << 40),
    "spi.tail.after": Verb(lambda s, n: spi.tail(sync_of(s), "s", n)),
    "spi.tail.limit": Verb(lambda s, n: spi.tail(sync_of(s), "s", 0, n)),
    "spi.page.after": Verb(lambda s, n: spi.page(sync_of(s), "s", n, 9)),
    "spi.page.until": Verb(lambda s, n: spi.page(sync_of(s), "s", 0, n)),
    "spi.page.limit": Verb(lambda s, n: spi.page(sync_of(s), "s", 0, 9, n)),
    "spi.live_path": Verb(lambda s, n: spi.live_path(sync_of(s), "s", n)),
    "spi.live_parts": Verb(lambda s, n: list(spi.live_parts(sync_of(s), "s", n))),
    "spi.own_path": Verb(lambda s, n: spi.own_path(sync_of(s), "s", n)),
    "spi.hash_at": Verb(lambda s, n: spi.hash_at(sync_of(s), "s", n)),
    "spi.table.head": Verb(lambda s, n: spi.SnapshotTable(sync_of(s), "p").head("s", n)),
    "spi.table.put.epoch": Verb(
        lambda s, n: spi.SnapshotTable(sync_of(s), "p").put("s", n, 1, head=b""), low=-LARGEST
    ),
    "spi.table.put.version": Verb(lambda s, n: spi.SnapshotTable(sync_of(s), "p").put("s", 9, n, head=b"")),
    "spi.table.plan": Verb(lambda s, n: spi.SnapshotTable(sync_of(s), "p").plan("", n)),
}
OPTIONS = {
    "pool_size": Verb(lambda open_, n: open_(pool_size=n), low=1, high=10_000),
    "max_payload_bytes": Verb(lambda open_, n: open_(max_payload_bytes=n), low=1, high=16 << 20),
    "max_batch_bytes": Verb(lambda open_, n: open_(max_batch_bytes=n), low=1 << 20, high=512 << 20),
    "MemoryCache": Verb(lambda open_, n: MemoryCache(n)),
    "RedisCache.ttl_s": Verb(lambda open_, n: RedisCache("redis://x", ttl_s=n), low=1, high=3_153_600_000),
    "RedisCache.max_reply_bytes": Verb(lambda open_, n: RedisCache("redis://x", max_reply_bytes=n), low=1),
}


def ignored(events: Any) -> None:
    """A handler."""


@pytest.fixture
def sessions(facade_kind, address, loop):
    with open_sessions(facade_kind, loop, address.url, namespace=address.namespace) as opened:
        opened.append("s", [message("user", "one"), Draft("turn.started", {}), message("user", "two")])
        yield opened


def written(sessions: Any) -> Any:
    heads = [sessions.head(each) for each in ("s", "t", "new")]
    consumers = [(each.name, each.position, each.parked) for each in sessions.consumers()]
    return heads, spi.sizes(sync_of(sessions)), consumers


def outcome(call: Any) -> Any:
    """What a call raises, or None."""
    try:
        listed(call())
    except Exception as error:
        return error
    return None


def of_other_kinds(sessions: Any, kind: type[Exception], hostile: Any) -> dict[str, Any]:
    """Which verbs raise something else for numbers of theirs."""
    found = {
        f"{name}({number!r:.40})": outcome(lambda call=call, number=number: call(sessions, number))
        for name, verb in VERBS.items()
        for call, number in ((verb.call, number) for number in hostile(verb))
    }
    return {each: error for each, error in found.items() if not isinstance(error, kind)}


def test_what_is_no_number_is_a_type_error(sessions):
    before = written(sessions)

    assert of_other_kinds(sessions, TypeError, lambda verb: NO_NUMBERS) == {}
    assert written(sessions) == before


def test_what_is_out_of_range_is_a_value_error(sessions):
    before = written(sessions)

    assert of_other_kinds(sessions, ValueError, lambda verb: [*TOO_LARGE, verb.low - 1, verb.high + 1]) == {}
    assert written(sessions) == before


def test_what_is_far_is_answered_alike_on_every_database(sessions):
    before, wrong = written(sessions), {}
    for name, (call, _, high, far) in VERBS.items():
        for number in {2**31, high} if high == LARGEST else {high} - {256}:  # So many processes are too many.
            error = outcome(lambda call=call, number=number: call(sessions, number))
            if type(error) is not (far or type(None)) and name != "import_events":
                wrong[f"{name}({number})"] = error

    assert wrong == {}
    assert written(sessions)[:2] == before[:2]


def test_an_int_enum_counts_as_its_number(sessions):
    """Where it is a number; where it is a value, it is refused: see test_values.py."""
    for verb in VERBS.values():
        error = outcome(lambda verb=verb: verb.call(sessions, Number.ONE))
        assert not isinstance(error, (TypeError, ArithmeticError)), error

    assert sessions.verify().ok


def test_a_time_is_an_aware_datetime(sessions):
    ends = [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=timezone(-timedelta(hours=14)))]
    before = written(sessions)
    for call in (
        lambda at: sessions.load("s", at=at),
        lambda at: sessions.fork("s", "new", at=at),
        lambda at: sessions.restore("s", to_time=at),
        lambda at: sessions.preview_restore("s", to_time=at),
    ):
        for hostile in (*NO_NUMBERS, *TOO_LARGE, 1, date(2026, 1, 1)):
            assert type(outcome(lambda call=call, at=hostile: call(at))) is TypeError, hostile
        for hostile in (datetime(2026, 1, 1), datetime.max):
            assert type(outcome(lambda call=call, at=hostile: call(at))) is ValueError, hostile
    assert written(sessions) == before

    assert [sessions.load("s", at=at).version for at in ends] == [0, 3]


@pytest.mark.parametrize("field", ["version", "turn", "branch", "epoch", "at_us", "hash", "status"])
def test_a_head_that_the_log_never_gave_is_refused(sessions, field):
    head, before = sessions.head("s"), written(sessions)
    wrong = [*NO_NUMBERS, *TOO_LARGE, LARGEST, -1, None, "", bytearray(32)]
    if field in ("hash", "status"):  # Bytes that are another hash are a conflict.
        wrong = [each for each in wrong if type(each) is not bytes]
    for hostile in wrong:
        made = replace(head, **{field: hostile})
        for call in (
            lambda made: sessions.append("s", [draft()], expected=made),
            lambda made: sessions.append_many([("s", [draft()], made)]),
            lambda made: sessions.describe("s", name="x", expected=made),
            lambda made: sessions.restore("s", to_version=1, expected=made),
            lambda made: resumed(sync_of(sessions).resume("s", 1, expected=made)),
        ):
            with pytest.raises(ValueError, match="expected is a Head as the log gives it"):
                call(made)
    assert written(sessions) == before


def test_a_resume_takes_nothing_but_a_head(sessions):
    for hostile in (*NO_NUMBERS, 3, LARGEST):
        with pytest.raises(TypeError):
            resumed(sync_of(sessions).resume("s", 1, expected=hostile))


def test_the_numbers_of_a_draft_are_refused_with_their_place(sessions):
    before = written(sessions)
    for hostile in (*NO_NUMBERS, *TOO_LARGE, -1, Number.ONE):
        for field in ("type_version", "turn"):
            with pytest.raises(InvalidEvent, match=rf"drafts\[0\]\.{field}"):
                sessions.append("s", [Draft("note.added", {}, **{field: hostile})])
    with pytest.raises(InvalidEvent, match="turn 9223372036854775807 has not started"):
        sessions.append("s", [Draft("note.added", {}, turn=LARGEST)])
    assert written(sessions) == before


def test_times_to_wait_are_finite(sessions, address, facade_kind, loop):
    for hostile in SECONDS:
        for call in (
            lambda hostile: sessions.subscribe().batch(timeout_s=hostile),
            lambda hostile: open_sessions(facade_kind, loop, address.url, lock_timeout_s=hostile),
            lambda hostile: RedisCache("redis://x", timeout_s=hostile),
        ):
            assert isinstance(outcome(lambda call=call, n=hostile: call(n)), (TypeError, ValueError)), hostile
        if hostile not in (10**30, 2**64):  # Of a pace, they make what is waited for short.
            pacing = outcome(lambda n=hostile: sessions.replay("s", pace=n))
            assert isinstance(pacing, (TypeError, ValueError)), hostile


@pytest.mark.parametrize("option", OPTIONS)
def test_options_are_checked_where_a_log_is_opened(facade_kind, loop, option):
    call, low, high, _ = OPTIONS[option]

    def open_(**options):
        open_sessions(facade_kind, loop, "memory:", **options).close()

    for hostile in NO_NUMBERS:
        with pytest.raises(TypeError):
            call(open_, hostile)
    for hostile in {*TOO_LARGE, low - 1, high + 1}:
        with pytest.raises(ValueError):
            call(open_, hostile)
    call(open_, low)


def test_threads_of_an_async_log_are_checked_too():
    for hostile in (*NO_NUMBERS, *TOO_LARGE, 0, -1, 2**31):
        with pytest.raises((TypeError, ValueError)):
            AsyncSessionLog("memory:", threads=hostile)


def test_windows_of_a_view_are_checked_too(sessions):
    view = sessions.load("s")
    for hostile in NO_NUMBERS:
        with pytest.raises(TypeError):
            history(view, last_turns=hostile)
    assert isinstance(view.head, Head)
