"""Clocks that are wrong: whom they date, for how long, and who is told. What a wrong clock writes is kept."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from kern_events import Draft, SessionLog, import_events, import_transcripts, message
from kern_events.errors import InvalidEvent
from tests import databases
from tests.facade import only_on, open_sessions, sync_of

YEAR_S = 365 * 86_400
REAL = time.time_ns


@pytest.fixture
def ahead(monkeypatch):
    """Sets this machine's clock ahead, by seconds."""

    def set_ahead(by_s: float) -> None:
        monkeypatch.setattr("time.time_ns", lambda: REAL() + int(by_s * 1e9))

    return set_ahead


@pytest.fixture
def sessions(facade_kind, address, loop):
    with open_sessions(facade_kind, loop, address.url, namespace=address.namespace) as opened:
        yield opened


def note(text="hi", **fields):
    return Draft("note.added", {"text": text}, **fields)


def by_append(log):
    log.append("s", [message("user", "hi")])


def by_append_many(log):
    log.append_many([("s", [message("user", "hi")], None), ("t", [message("user", "hi")], None)])


def by_key(log):
    log.append("s", [message("user", "hi")], idempotency_key="k")


def by_describing(log):
    log.append("s", [Draft("session.created", {"user_id": "ada", "name": "a trip"})])


def by_turn(log):
    with sync_of(log).turn("s", buffered=True, user_id="ada") as turn:
        turn.message("user", "hi")


def by_transcript(log):
    import_transcripts(sync_of(log), [b'{"id": "s", "messages": [{"role": "user", "content": "hi"}]}'])


WRITES = (by_append, by_append_many, by_key, by_describing, by_turn, by_transcript)


def year(log, session_id="s"):
    return datetime.fromtimestamp(list(log.read(session_id))[-1].at_us / 1e6, UTC).year


@pytest.mark.parametrize("known", [False, True], ids=["new session", "known session"])
@pytest.mark.parametrize("write", WRITES)
@only_on("postgres")
def test_the_database_s_clock_dates_what_is_ahead_of_it(sessions, ahead, write, known):
    if known:
        sessions.append("s", [message("system", "hello")])
    ahead(10 * YEAR_S)
    write(sessions)
    ahead(0)

    assert year(sessions) == datetime.now(UTC).year
    assert not sessions.load("s").problems
    assert sessions.verify().ok


@only_on("postgres")
def test_forks_restores_and_deletions_are_dated_by_it_too(sessions, ahead):
    sessions.append("s", [message("user", "one"), message("user", "two")])
    ahead(YEAR_S)
    sessions.fork("s", "f")
    sessions.restore("s", to_version=1)
    last = [sessions.head(each).at.year for each in ("s", "f")]
    sessions.delete("f")

    assert last == [datetime.now(UTC).year] * 2
    assert sessions.head("f").at.year == datetime.now(UTC).year


@only_on("postgres")
def test_so_is_what_joins_a_caller_s_transaction(log, address, ahead):
    engine = databases.engine(address.url)
    ahead(YEAR_S)
    with engine.begin() as connection:
        log.append("s", [note()], connection=connection)
        log.append_many([("s", [note()], None), ("t", [note()], None)], connection=connection)
        log.append("s", [note()], expected=2, connection=connection)
    engine.dispose()

    assert (year(log), year(log, "t")) == (datetime.now(UTC).year,) * 2


@only_on("postgres")
def test_a_clock_that_is_set_right_is_used_again(log, ahead, monkeypatch):
    ahead(YEAR_S)
    log.append("s", [note()])
    ahead(-7_200)
    log.append("s", [note()])
    monkeypatch.setattr("kern_events.store.server_clock._TRUSTED_S", 0.0)  # The minute has passed.
    log.append("t", [note()])

    clocks = [event.clock_us is None for event in log.read("s")]
    assert clocks == [True, True]
    assert log.head("s").at_us - log.head("t").at_us > 3_600_000_000


@only_on("postgres")
def test_a_clock_within_a_minute_is_taken_for_right(log, ahead):
    ahead(50)
    log.append("s", [note()])

    assert log.head("s").at_us > REAL() // 1_000 + 30_000_000


@pytest.mark.parametrize("write", [each for each in WRITES if each is not by_transcript])
@only_on("memory", "sqlite")
def test_what_follows_a_wrong_clock_says_so(sessions, ahead, write):
    ahead(10 * YEAR_S)
    sessions.append("s", [message("system", "hello")])
    before = sessions.load("s").problems
    ahead(0)
    write(sessions)
    sessions.append("s", [message("user", "again", meta={"run_id": "r1"})])

    view, report = sessions.load("s"), sessions.verify()
    assert before == ()
    assert [each.endswith("ahead of its recorder's clock") for each in view.problems] == [True]  # And once.
    assert not view.incomplete
    assert "'s' from version 2" in report.notes[0]
    assert report.ok


@only_on("memory", "sqlite")
def test_an_import_goes_on_behind_a_wrong_clock(log, ahead):
    line = b'{"id": "s", "metadata": {"a": %d}, "messages": [{"role": "user", "content": "hi"}]}'
    lines = [line % 1, line % 2]
    ahead(YEAR_S)
    import_transcripts(sync_of(log), lines[:1])
    ahead(0)
    reports = [import_transcripts(sync_of(log), lines[1:]) for _ in range(2)]

    assert [(each.extended, each.unchanged) for each in reports] == [(1, 0), (0, 1)]


@only_on("memory", "sqlite")
def test_a_restore_and_a_fork_behind_a_wrong_clock_say_so(sessions, ahead):
    ahead(YEAR_S)
    sessions.append("s", [message("user", "one"), message("user", "two")])
    ahead(0)
    sessions.fork("s", "f")
    sessions.restore("s", to_version=1)

    assert "session.forked: dated by an earlier event" in sessions.load("f").problems[0]
    assert "session.restored: dated by an earlier event" in sessions.load("s").problems[0]
    assert not sessions.load("s").incomplete
    assert sessions.load("s", version=2).problems == ()


def test_an_event_that_is_dated_by_another_says_what_the_clock_was(log, address, ahead, clock):
    clock.now_us = REAL() // 1_000
    log.append("s", [note()])
    clock.now_us -= 61_000_000
    log.append("s", [note(meta={"run_id": "r1"}), note()])
    clock.now_us += 2_000_000
    log.append("s", [note()])

    first, second, third, fourth = log.read("s")
    assert second.meta == {"run_id": "r1", "kern.clock_us": second.clock_us}
    assert second.at_us - second.clock_us == 61_000_000
    assert [each.clock_us for each in (first, third, fourth)] == [None] * 3
    assert {each.at_us for each in (second, third, fourth)} == {first.at_us}


def test_verify_notes_a_session_that_is_ahead_of_it(log, address, ahead, clock):
    clock.now_us = REAL() // 1_000 + 30_000_000
    log.append("s", [note()])
    assert not any("ahead" in each for each in log.verify().notes)

    clock.now_us -= 100_000_000
    notes = " ".join(log.verify().notes)
    assert ("'s' from version 1" in notes) == (address.backend != "postgres")


@pytest.mark.parametrize("year", [datetime.now(UTC).year + 1, 2_199, 9_999])
def test_an_import_refuses_the_future(log, clock, year, monkeypatch):
    monkeypatch.setattr("kern_events.clock._LATEST_US", 2**62)  # So that there is such a file.
    clock.now_us = int(datetime(year, 12, 31, tzinfo=UTC).timestamp()) * 1_000_000
    with SessionLog("memory:", namespace=sync_of(log).namespace) as other:
        other.append("s", [note(), note()])
        other.append("t", [note()])
        lines = [*other.export("s"), *list(other.export("t"))[1:]]
    clock.now_us = REAL() // 1_000
    report = import_events(sync_of(log), lines)

    assert (report.failed, report.events, [each.kind for each in report.problems]) == (2, 0, ["bad_line"] * 2)
    assert "later than now" in report.problems[0].reason
    assert log.append("s", [note()]).version == 1
    assert log.head("s").at.year == datetime.now(UTC).year


def test_an_import_takes_what_is_as_good_as_now(log, clock):
    clock.now_us = REAL() // 1_000 + 20_000_000
    with SessionLog("memory:", namespace=sync_of(log).namespace) as other:
        other.append("s", [note()])
        lines = list(other.export("s"))
    clock.now_us -= 20_000_000

    assert import_events(sync_of(log), lines).ok


OUTSIDE = [-1, -YEAR_S * 1_000_000, 7_258_118_400_000_000, 253_402_300_800_000_000, 2**62]


@pytest.mark.parametrize("now_us", OUTSIDE)
def test_a_clock_before_1970_or_after_2200_records_nothing(log, clock, now_us):
    drafts = [note()]
    log.append("s", [note()])
    clock.now_us = now_us

    for refused in (
        lambda: log.append("s", drafts),
        lambda: log.append_many([("t", drafts, None)]),
        lambda: log.fork("s", "f"),
        lambda: log.delete("s"),
        note,
    ):
        with pytest.raises(InvalidEvent, match="clock of this machine is before 1970 or after 2200"):
            refused()
    assert [event.version for event in log.read("s")] == [1]
    assert (log.head("t").version, log.head("f").version) == (0, 0)
    assert log.verify().ok
    assert log.consumers() == []


@only_on("sqlite", "postgres")
def test_a_turn_that_was_broken_off_under_a_wrong_clock_is_found_again(log, ahead, monkeypatch):
    log = sync_of(log)
    with log.turn("s") as turn:
        turn.message("user", "before")
        ahead(YEAR_S)
        record, interrupted = log._record, []

        def interrupting(batch, expected=None):
            landed = record(batch, expected)
            if not interrupted:
                interrupted.append(landed)
                raise KeyboardInterrupt
            return landed

        monkeypatch.setattr(log, "_record", interrupting)
        with pytest.raises(KeyboardInterrupt):
            turn.complete()
    ahead(0)

    assert [event.type for event in log.read("s")].count("turn.completed") == 1
