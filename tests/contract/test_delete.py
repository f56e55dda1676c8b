"""Deleting a session: its content is gone, its chain and its numbers are not."""

from __future__ import annotations

from contextlib import suppress

import pytest

from kern_events import Draft, Erased
from kern_events.errors import SessionClosed, SessionDeleted, SessionNotFound, TurnAbandoned, VersionConflict
from tests import facade
from tests.writers import in_threads, note, notes, texts

CREATED = Draft("session.created", {})


def recorded(log, session_id):
    """The events of a session, deleted or not."""
    return [event for event in log.read_all() if event.session_id == session_id]


def test_a_deleted_session_is_not_found(log):
    log.append("s", notes(2))
    receipt = log.delete("s")

    assert (receipt.first_version, receipt.version) == (3, 3)
    assert log.head("s").status == "deleted"
    with pytest.raises(SessionNotFound):
        list(log.read("s"))
    assert log.sessions() == []


def test_only_a_session_can_be_deleted(log):
    log.append("s", notes(1))
    log.delete("s")

    for session_id in ("s", "nobody"):
        with pytest.raises(SessionNotFound):
            log.delete(session_id)
    assert log.head("s").version == 2


def test_the_content_is_erased_and_the_rest_stays(log):
    log.append("s", [note("secret", native=b"secret", actor="a", meta={"run_id": "r"})])
    before = recorded(log, "s")[0]
    log.delete("s", actor="admin")

    event, tombstone = recorded(log, "s")
    assert isinstance(event.payload, Erased)
    assert (event.native, event.salt) == (None, None)
    for field in ("version", "event_id", "type", "actor", "meta", "at_us", "hash", "position"):
        assert getattr(event, field) == getattr(before, field), field
    assert (tombstone.type, tombstone.actor, tombstone.meta) == (
        "session.deleted", "admin", {"erased": [[1, 1]]},
    )  # fmt: skip


@pytest.mark.parametrize("count", [1, 499, 500, 501, 1_700])
def test_every_event_of_a_long_session_is_erased(log, count):
    for start in range(0, count, 1_000):
        log.append("s", [note("secret") for _ in range(min(1_000, count - start))])
    log.delete("s")

    assert [event.erased for event in recorded(log, "s")] == [True] * count + [False]
    assert log.verify("s").ok


def test_the_chain_of_a_deleted_session_verifies(log):
    log.append("s", [CREATED, *notes(3)])
    log.delete("s")

    report = log.verify("s")
    assert report.ok
    assert (report.sessions, report.events) == (1, 5)
    assert log.verify().ok


def test_a_deleted_session_takes_nothing_but_session_created(log):
    log.append("s", notes(1))
    log.delete("s")

    with pytest.raises(SessionClosed) as caught:
        log.append("s", notes(1))
    assert caught.value.status == "deleted"
    assert log.head("s").version == 2


@pytest.mark.parametrize("expected", [None, 0, 3, "head"])
def test_it_begins_again_where_it_ended(log, expected):
    log.append("s", [CREATED, note("before")])
    tombstone = log.delete("s")
    receipt = log.append(
        "s", [CREATED, note("after")], expected=log.head("s") if expected == "head" else expected
    )

    assert (receipt.first_version, receipt.version) == (tombstone.version + 1, tombstone.version + 2)
    assert texts(event for event in log.read("s") if not event.erased) == ["after"]
    assert [event.erased for event in log.read("s")] == [True, True, False, False, False]
    assert [info.session_id for info in log.sessions()] == ["s"]
    assert log.verify("s").ok


@pytest.mark.parametrize("expected", [1, 2, 4])
def test_another_version_of_a_deleted_session_is_a_conflict(log, expected):
    log.append("s", notes(2))
    log.delete("s")

    with pytest.raises(VersionConflict) as caught:
        log.append("s", [CREATED], expected=expected)
    assert (caught.value.expected, caught.value.actual) == (expected, 3)


def test_a_new_session_is_expected_by_one_writer_only(log):
    log.append("s", notes(2))
    log.delete("s")
    log.append("s", [CREATED], expected=0)

    with pytest.raises(VersionConflict) as caught:
        log.append("s", [Draft("session.created", {})], expected=0)
    assert (caught.value.expected, caught.value.actual) == (0, 4)


def test_the_same_drafts_reopen_it_once(log):
    log.append("s", notes(2))
    log.delete("s")
    drafts = [Draft("session.created", {}), note()]
    base = log.head("s").version
    first = log.append("s", drafts, expected=base)

    assert log.append("s", drafts, expected=base) == first


def test_turns_go_on_counting(log):
    for _ in range(2):
        with log.turn("s") as turn:
            turn.message("user", "Hi")
    log.delete("s")
    log.append("s", [Draft("session.created", {})])
    with log.turn("s") as turn:
        turn.message("user", "Hi again")

    assert turn.number == 3
    assert [event.type for event in recorded(log, "s")][-4:] == [
        "session.created", "turn.started", "message.added", "turn.completed",
    ]  # fmt: skip
    assert log.verify("s").ok


def test_it_can_be_deleted_again_and_again(log):
    for round in range(3):
        log.append("s", [Draft("session.created", {"name": f"round {round}"}), note("secret")])
        log.delete("s")

    assert [event.erased for event in recorded(log, "s")] == [True, True, False] * 3
    assert log.head("s").epoch == 3
    assert log.verify("s").ok


def test_what_is_listed_of_it_is_gone(log):
    log.append("s", [Draft("session.created", {"user_id": "u", "name": "secret"})])
    log.delete("s")
    log.append("s", [CREATED])

    [info] = log.sessions()
    assert (info.user_id, info.name) == (None, None)
    assert log.verify("s").ok


def test_a_closing_is_never_erased(log):
    log.append("s", [note(), Draft("session.closed", {})])
    log.delete("s")

    assert [event.erased for event in recorded(log, "s")] == [True, False, False]
    assert log.verify("s").ok


def test_others_keep_their_content(log):
    log.append("s", notes(1))
    log.append("other", [note("kept")])
    log.delete("s")

    assert texts(log.read("other")) == ["kept"]
    assert log.verify().ok


def test_one_of_many_deletes_it(log):
    log.append("s", notes(3))

    def work(number):
        try:
            return log.delete("s").version
        except SessionNotFound:
            return None

    assert sorted(filter(None, in_threads(8, work))) == [4]
    assert log.verify("s").ok


def test_deleting_meets_appending(log):
    log.append("s", [CREATED])

    def work(number):
        for _ in range(10):
            if number:
                log.append("s", [Draft("session.created", {}), note("secret")])
            else:
                with suppress(SessionNotFound):  # Deleted a moment ago.
                    log.delete("s")

    in_threads(3, work)
    assert log.verify("s").ok
    last = max((event.version for event in recorded(log, "s") if event.type == "session.deleted"), default=0)
    assert all(event.erased for event in recorded(log, "s") if event.version < last and event.kind == 0)


VERBS = {
    "read": lambda log: list(log.read("s")),
    "export": lambda log: list(log.export("s")),
    "branches": lambda log: log.branches("s"),
    "fork": lambda log: log.fork("s", "f"),
    "describe": lambda log: log.describe("s", name="n"),
    "delete": lambda log: log.delete("s"),
    "load": lambda log: log.load("s"),
    "load of the past": lambda log: log.load("s", version=1),
    "history": lambda log: log.history("s"),
    "diff": lambda log: log.diff("s", 0, 1),
    "replay": lambda log: list(log.replay("s")),
    "restore": lambda log: log.restore("s", to_turn=0),
    "preview of a restore": lambda log: log.preview_restore("s", to_turn=0),
    "resume": lambda log: log.resume("s", 1).__enter__(),
}
WRITES = {
    "append": lambda log: log.append("s", [note()]),
    "append a key": lambda log: log.append("s", [note()], idempotency_key="k"),
    "append at a head": lambda log: log.append("s", [note()], expected=log.head("s")),
    "append to many": lambda log: log.append_many([("t", [note()], None), ("s", [note()], None)]),
    "turn": lambda log: log.turn("s").__enter__(),
    "turn for a user": lambda log: log.turn("s", user_id="bob").__enter__(),
}


@pytest.fixture
def gone(facade_kind, address, loop):
    """Sessions, one of which was deleted."""
    with facade.open_sessions(facade_kind, loop, address.url, namespace=address.namespace) as sessions:
        with sessions.turn("s", user_id="ada") as turn:
            turn.pause()
        sessions.load("s")
        sessions.delete("s")
        yield sessions


def test_a_deleted_session_is_not_found_by_any_verb(gone):
    head = gone.head("s")
    for verb, use in {**VERBS, **WRITES}.items():
        with pytest.raises(SessionNotFound) as caught:
            use(gone)

        # What would begin a session that never was says that this one has to be begun anew.
        assert isinstance(caught.value, SessionClosed) == (verb in WRITES), verb
    assert (gone.head("s"), gone.head("t").version, gone.head("f").version) == (head, 0, 0)


@pytest.mark.parametrize("buffered", [False, True])
def test_a_turn_of_before_a_deletion_says_nothing_in_the_session_after_it(log, buffered):
    """It may belong to another user."""
    with pytest.raises(TurnAbandoned), log.turn("s", user_id="ada", buffered=buffered) as turn:
        turn.message("user", "from ada")
        if buffered:
            log.append("s", [Draft("session.created", {"user_id": "ada"})])
        log.delete("s")
        log.append("s", [Draft("session.created", {"user_id": "bob"})])
        turn.message("assistant", "to ada")
        turn.complete()

    assert [event.type for event in log.read("s", after=log.head("s").version - 2)] == [
        "session.deleted",
        "session.created",
    ]
    assert log.verify().ok


@pytest.mark.parametrize("buffered", [False, True])
def test_a_turn_in_a_session_that_is_deleted_is_told_so(log, buffered):
    log.append("s", notes(1))
    with pytest.raises(SessionDeleted), log.turn("s", buffered=buffered) as turn:
        log.delete("s")
        turn.message("user", "late")
        turn.complete()
    assert log.head("s").status == "deleted"
