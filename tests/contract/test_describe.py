"""What a session is, said by several at once: nobody undoes what another one says."""

from __future__ import annotations

import pytest

from kern_events import Draft, state_changed
from kern_events.errors import InvalidEvent, SessionClosed, SessionNotFound, VersionConflict
from tests import facade
from tests.facade import store_of, sync_of
from tests.faults import LosingStore
from tests.writers import in_threads, note, texts


@pytest.fixture
def sessions(facade_kind, address, loop):
    with facade.open_sessions(facade_kind, loop, address.url, namespace=address.namespace) as opened:
        yield opened


def begin(log, **said):
    log.append("s", [Draft("session.created", said)])
    return log


def last(log):
    return list(log.read("s"))[-1]


def test_metadata_is_merged_key_by_key(log):
    begin(log, metadata={"a": 1, "b": {"deep": 1}, "c": 3}, name="A trip", user_id="ada")
    log.describe("s", metadata={"a": 2, "b": {"other": 2}, "c": None, "d": [None]}, actor="ada")

    event = last(log)
    assert (event.type, event.actor) == ("session.described", "ada")
    assert event.payload == {"metadata": {"a": 2, "b": {"other": 2}, "d": [None]}}
    assert [(info.name, info.user_id) for info in log.sessions()] == [("A trip", "ada")]


def test_a_nested_object_is_replaced_whole(sessions):
    sessions.append("s", [note("it begins")])
    sessions.describe("s", metadata={"n": {"x": 1, "y": 2}, "m": 1})
    sessions.describe("s", metadata={"n": {"x": None}})

    assert sessions.load("s").to_dict()["metadata"] == {"n": {"x": None}, "m": 1}


def test_what_is_left_out_stays_and_none_clears_it(sessions):
    begin(sessions, metadata={"a": 1}, name="A trip", user_id="ada")
    sessions.describe("s", name=None)
    sessions.describe("s", user_id="bob", metadata={"b": 2})
    view = sessions.load("s")
    assert (view.name, view.user_id, view.metadata) == (None, "bob", {"a": 1, "b": 2})

    sessions.describe("s", metadata=None)
    assert sessions.load("s").metadata == {}


def test_eight_at_once_lose_nothing_of_each_other(sessions):
    begin(sessions)
    in_threads(8, lambda number: [sessions.describe("s", metadata={f"k{number}.{n}": n}) for n in range(3)])

    assert sessions.load("s").metadata == {f"k{number}.{n}": n for number in range(8) for n in range(3)}
    assert sessions.verify().ok


def test_appends_of_others_are_in_nobodys_way(log, monkeypatch):
    """It stands behind them, with the same draft."""
    begin(log, metadata={"a": 1})
    read = sync_of(log)._metadata

    def busy(session_id):
        found = read(session_id)
        sync_of(log).append("s", [note("meanwhile")])
        return found

    monkeypatch.setattr(sync_of(log), "_metadata", busy)
    log.describe("s", metadata={"b": 2})

    assert texts(log.read("s")) == ["meanwhile"]
    assert last(log).payload == {"metadata": {"a": 1, "b": 2}}


@pytest.mark.parametrize("said", [{"metadata": {"c": 3}}, {"name": "other", "metadata": {"c": 3}}])
def test_what_another_one_says_in_between_is_read_again(log, monkeypatch, said):
    begin(log, metadata={"a": 1})
    read, calls = sync_of(log)._metadata, []

    def described(session_id):
        found = read(session_id)
        calls.append(found)
        if len(calls) == 1:
            sync_of(log).append("s", [note(), Draft("session.described", said)])
        return found

    monkeypatch.setattr(sync_of(log), "_metadata", described)
    log.describe("s", metadata={"b": 2})

    assert calls == [{"a": 1}, {"c": 3}]
    assert last(log).payload == {"metadata": {"b": 2, "c": 3}}


def test_a_lost_answer_is_recorded_once(log, monkeypatch):
    begin(log)
    store = LosingStore(store_of(log), lambda: None)
    monkeypatch.setattr(sync_of(log), "_store", store)
    receipt = log.describe("s", metadata={"a": 1})

    assert (receipt.version, log.head("s").version) == (2, 2)


def test_it_may_expect_a_head(log):
    head = begin(log).head("s")
    log.describe("s", name="one", expected=head)

    with pytest.raises(VersionConflict):
        log.describe("s", metadata={"a": 1}, expected=head)
    assert log.describe("s", metadata={"a": 1}, expected=2).version == 3


def test_there_has_to_be_a_session_and_something_to_say(log):
    with pytest.raises(SessionNotFound):
        log.describe("s", name="A trip")
    begin(log)
    with pytest.raises(TypeError, match="at least one"):
        log.describe("s")
    for said in ({"metadata": [1]}, {"metadata": {"a": float("nan")}}, {"name": 5}, {"user_id": ""}):
        with pytest.raises(InvalidEvent):
            log.describe("s", **said)
    log.append("s", [Draft("session.closed", {})])
    with pytest.raises(SessionClosed):
        log.describe("s", name="A trip")
    log.delete("s")
    with pytest.raises(SessionNotFound):
        log.describe("s", name="A trip")


@pytest.mark.parametrize("buffered", [False, True])
def test_each_agent_has_a_state_of_its_own(sessions, buffered):
    for agent_id in ("planner", "writer"):
        with sessions.turn("s", agent_id=agent_id, buffered=buffered) as turn:
            turn.set_state("name", agent_id, agent=True)
            turn.set_state("log", [], agent=True)
            turn.append_state("log", [1], agent=True)
            turn.set_state("gone", 1, agent=True)
            turn.unset_state("gone", agent=True)
            turn.record(state_changed([["set", ["own"], agent_id]], scope="agent"))
            turn.record(state_changed([["set", ["by"], agent_id]], scope="agent", agent_id="third"))
            turn.set_state("shared", agent_id)

    view = sessions.load("s")
    assert view.agent_state == {
        "planner": {"name": "planner", "log": (1,), "own": "planner"},
        "writer": {"name": "writer", "log": (1,), "own": "writer"},
        "third": {"by": "writer"},
    }
    assert (view.state, view.problems) == ({"shared": "writer"}, ())


def test_a_resumed_turn_goes_on_for_its_agent(sessions):
    with sessions.turn("s", agent_id="planner", run_id="r") as turn:
        turn.pause()
    sessions.fork("s", "f")
    for session_id in ("s", "f"):
        with sessions.resume(session_id) as turn:
            turn.set_state("k", 1, agent=True)

        assert sessions.load(session_id).agent_state == {"planner": {"k": 1}}
        assert list(sessions.read(session_id))[-1].payload == {"run_id": "r"}


def test_the_state_of_no_agent_in_particular_is_refused(log):
    with pytest.raises(InvalidEvent, match="agent_id"), log.turn("s") as turn:
        turn.set_state("k", 1, agent=True)
    with pytest.raises(InvalidEvent, match="agent_id"):
        log.append("s", [state_changed([], scope="agent")])
