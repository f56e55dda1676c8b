"""Ids that were used before: of a run, which nothing is stored of then, and of a message, which is."""

from __future__ import annotations

import pytest
from agno.models.message import Message
from agno.run.team import TeamRunOutput
from agno.session.team import TeamSession

from kern_events.adapters.agno import NotStored
from tests.adapters.test_agno_edges import begun, run_of, session_of
from tests.agno_clients import Client
from tests.agno_replay import check_replay
from tests.facade import LoopThread


@pytest.fixture(scope="module")
def loop():
    thread = LoopThread()
    yield thread
    thread.close()


@pytest.fixture(params=["sync", "async"])
def client(request, place, loop):
    client = Client(place.open() if request.param == "sync" else place.open_async(), loop)
    yield client
    if client.is_async:
        client.db.close()


@pytest.mark.parametrize("begun_before", [True, False])
def test_of_a_run_with_the_id_of_another_sessions_run_nothing_is_stored(client, begun_before):
    run_id = client.say("one").run_id
    if begun_before:
        client.say("one", "t")
    before = client.rows("t"), client.log.head("t")

    with pytest.raises(NotStored, match=f"run '{run_id}' is one of session 's'"):
        client.say("two", "t", run_id=run_id)

    assert (client.rows("t"), client.log.head("t")) == before
    client.say("three", "t")
    assert client.asked("t") == ["one", "three"][not begun_before :]
    check_replay(client.own, "t")


@pytest.mark.parametrize("how", ["member", "among others", "not read here"])
def test_other_ways_to_come_with_a_run_of_another_session(place, how):
    db = begun(place.open(), "r1", "r2")
    begun(db, session_id="t", items=1)
    session = (place.open() if how == "not read here" else db).get_session("t")
    session.session_data["session_state"]["items"] = 2
    session.runs = [run_of("r3", session_id="t"), run_of("r2", session_id="t")]
    if how == "member":
        session = TeamSession(session_id="u", team_id="b", created_at=1)
        team = TeamRunOutput(run_id="r9", session_id="u", team_id="b", messages=[])
        session.runs = [team, run_of("r2", session_id="u", parent_run_id="r9")]

    with pytest.raises(NotStored, match="run 'r2' is one of session 's'"):
        db.upsert_session(session)

    assert db.get_session("u") is None
    assert db.get_session("t").session_data["session_state"] == {"items": 1}
    check_replay(db, "t")


def tool_message(**said):
    fields = {"id": "m", "role": "tool", "content": "done", "tool_call_id": "c", "tool_name": "do", **said}
    return Message(**fields)


@pytest.mark.parametrize(
    ("other", "at_once"), [({}, True), ({"content": "else"}, False), ({"tool_call_error": True}, True)]
)
def test_a_tool_message_that_stands_twice_in_a_run_is_stored_as_agno_stores_it(place, other, at_once):
    db, plain = begun(place.open()), place.plain(session_table="p_sessions", runs_table="p_runs")
    plain.upsert_session(session_of())
    run = run_of()
    messages = [*run.messages, tool_message(), tool_message(**other)]
    for run.messages in [messages] if at_once else [messages[:-1], messages]:
        for each in (db, plain):
            each.upsert_run(run, "s", "ada")
        check_replay(db, "s")

    assert db.get_run("r1").to_dict() == plain.get_run("r1").to_dict()
    db.delete_run("r1")
    check_replay(db, "s")
    assert not [each for each in db.sessions.load("s").messages if each.role == "tool"]
