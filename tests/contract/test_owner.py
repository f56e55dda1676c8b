"""A turn, or the beginning of a session, for one user does not land in the session of another."""

from __future__ import annotations

import pytest

from kern_events import Draft
from kern_events.errors import InvalidEvent, OwnerMismatch, SessionClosed, VersionConflict
from tests.facade import only_on
from tests.writers import in_threads, note, texts


def created(user_id):
    return Draft("session.created", {"user_id": user_id})


def of_ada(log, **options):
    with log.turn("s", user_id="ada", **options) as turn:
        turn.record(note("ada's"))
    return log.head("s")


@pytest.mark.parametrize("buffered", [False, True])
def test_a_turn_of_another_user_is_refused_before_its_block(log, buffered):
    head = of_ada(log)
    with pytest.raises(OwnerMismatch) as caught, log.turn("s", user_id="bob", buffered=buffered):
        raise AssertionError("it was entered")

    assert (caught.value.session_id, caught.value.user_id, "ada" in str(caught.value)) == ("s", "bob", False)
    assert log.head("s") == head
    assert log.sessions(user_id="bob") == []


@pytest.mark.parametrize("buffered", [False, True])
def test_an_id_that_is_none_is_refused_before_the_block(log, buffered):
    for bad in ({"user_id": ""}, {"user_id": 5}, {"agent_id": "a\nb"}):
        with pytest.raises(InvalidEvent), log.turn("s", buffered=buffered, **bad):
            raise AssertionError("it was entered")

    assert log.head("s").version == 0


@only_on("sqlite", "postgres")
@pytest.mark.parametrize("buffered", [False, True])
def test_another_process_refuses_it_too(open_log, buffered):
    head, there = of_ada(open_log()), open_log()
    with pytest.raises(OwnerMismatch), there.turn("s", user_id="bob", buffered=buffered):
        raise AssertionError("it was entered")

    assert there.head("s") == head


def test_a_buffered_turn_is_refused_where_another_began_the_session_meanwhile(log):
    with pytest.raises(OwnerMismatch), log.turn("s", user_id="bob", buffered=True) as turn:
        turn.record(note("bob's"))
        of_ada(log)

    assert texts(log.read("s")) == ["ada's"]


@pytest.mark.parametrize("buffered", [False, True])
def test_its_own_user_goes_on_and_so_does_a_turn_for_nobody_in_particular(log, buffered):
    of_ada(log)
    for user_id in ("ada", None):
        with log.turn("s", user_id=user_id, buffered=buffered) as turn:
            turn.record(note("more"))

    assert texts(log.read("s")) == ["ada's", "more", "more"]
    assert [info.session_id for info in log.sessions(user_id="ada")] == ["s"]


def test_a_session_of_nobody_takes_everybody_and_stays_nobodys(log):
    log.append("s", [note("nobody's")])
    for user_id in ("ada", "bob"):
        with log.turn("s", user_id=user_id):
            pass

    assert [info.user_id for info in log.sessions()] == [None]


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("closed", [False, True])
def test_a_session_is_not_begun_again_for_another_user(log, key, closed):
    of_ada(log)
    if closed:
        log.append("s", [Draft("session.closed", {})])
    head = log.head("s")
    for expected in (None, head, head.version):
        with pytest.raises(OwnerMismatch):
            log.append("s", [created("bob"), note()], expected=expected, idempotency_key=key)
    with pytest.raises(OwnerMismatch):
        log.append_many([("t", [note()], None), ("s", [created("bob")], None)])

    assert (log.head("s"), log.head("t").version) == (head, 0)
    log.append("s", [created("ada")], idempotency_key=key)


def test_of_two_users_who_begin_a_session_at_once_one_does(log):
    def work(number):
        try:
            with log.turn("s", user_id=f"u{number}") as turn:
                turn.record(note(number))
        except OwnerMismatch:
            return None
        return number

    [owner] = [number for number in in_threads(4, work) if number is not None]
    assert texts(log.read("s")) == [owner]
    assert [info.user_id for info in log.sessions()] == [f"u{owner}"]


def test_a_deleted_session_is_anybodys_to_begin_anew(log):
    of_ada(log)
    log.delete("s")
    with pytest.raises(SessionClosed), log.turn("s", user_id="bob"):
        pass
    log.append("s", [created("bob")])

    assert [info.user_id for info in log.sessions()] == ["bob"]
    with pytest.raises(OwnerMismatch), log.turn("s", user_id="ada"):
        pass


def test_whose_a_session_is_can_be_said_anew(log):
    of_ada(log)
    log.append("s", [Draft("session.described", {"user_id": "bob"})])
    with log.turn("s", user_id="bob"):
        pass

    with pytest.raises(OwnerMismatch), log.turn("s", user_id="ada"):
        pass


def test_a_fork_is_its_parents_users(log):
    of_ada(log)
    log.fork("s", "f")
    with log.turn("f", user_id="ada"):
        pass

    with pytest.raises(OwnerMismatch), log.turn("f", user_id="bob"):
        pass


def test_a_fork_of_a_deleted_session_is_nobodys_until_it_is_described(log):
    of_ada(log)
    log.fork("s", "kid")
    with log.turn("kid", user_id="ada") as turn:
        turn.record(note("ada's"))
    log.delete("s")

    assert log.sessions(user_id="ada") == []
    log.describe("kid", user_id="ada")
    assert [each.session_id for each in log.sessions(user_id="ada")] == ["kid"]
    with pytest.raises(OwnerMismatch), log.turn("kid", user_id="mallory"):
        raise AssertionError("it was entered")


def test_who_expects_another_version_is_told_that(log):
    of_ada(log)
    with pytest.raises(VersionConflict):
        log.append("s", [created("bob")], expected=0)
