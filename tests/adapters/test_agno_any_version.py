"""Going back to any version, within a run too: what Agno stores at once is many events, and one step."""

from __future__ import annotations

import json

import pytest

from kern_events import Sessions
from kern_events.errors import PointErased
from tests.agno_clients import Client, only
from tests.facade import LoopThread


@pytest.fixture(scope="module")
def loop():
    thread = LoopThread()
    yield thread
    thread.close()


@pytest.fixture(params=["sync", "async"])
def client(request, place, loop):
    """A session `s` of two runs; `ends` of it are the version and the rows after each, nothing first."""
    db = place.open() if request.param == "sync" else place.open_async()
    client = Client(db, loop)
    client.ends = [(0, ("null", "{}"))]
    for words in ("one", "two"):
        client.say(words)
        client.ends.append((client.log.head("s").version, client.rows()))
    yield client
    if client.is_async:
        client.db.close()


on_two = pytest.mark.parametrize(
    ("place", "client"), [("sqlite", "sync"), ("postgres", "async")], indirect=True
)  # What they do is the same on all four, and they do it at every version.


def end_of(client, version):
    """Version and rows of the last run that was over by a version, and how many were."""
    number = max(n for n, (end, _) in enumerate(client.ends) if end <= version)
    return number, *client.ends[number]


def user_message(client, number):
    """The version of what the user said in a run."""
    events = client.log.read("s")
    return [e.version for e in events if e.type == "message.added" and e.payload["role"] == "user"][number]


@on_two
def test_every_version_can_be_restored_to_and_is_what_agno_had_then(client):
    for version in range(client.log.head("s").version + 1):
        _, _, rows = end_of(client, version)
        assert only(client.fold(version=version)) == only(rows)
        client.log.restore("s", to_version=version)
        assert client.rows() == client.fold()
        assert only(client.rows()) == only(rows)
    assert client.log.verify().ok


@on_two
def test_every_version_can_be_forked_from(client):
    for version in range(1, client.log.head("s").version + 1):
        number, _, rows = end_of(client, version)
        into = f"fork {version}"
        client.log.fork("s", into, version=version)
        assert client.rows(into) == client.fold(into)
        assert client.asked(into) == ["one", "two"][:number]
        assert only(client.rows(into))[0] == only(rows)[0]


def test_a_run_after_going_back_to_a_message_goes_on_from_before_it(client):
    client.log.restore("s", to_version=user_message(client, 1))
    client.say("three")

    assert client.sent_texts() == ["one", "answer to one", "three"]
    assert client.rows() == client.fold()
    assert client.said() == ["one", "three"]
    client.log.fork("s", "t")
    client.say("four", "t")
    assert client.sent_texts() == ["one", "answer to one", "three", "answer to three", "four"]


@on_two
@pytest.mark.parametrize("verb", ["restore", "fork"])
def test_going_back_to_a_message_by_other_means_is_going_back_to_before_it(client, verb):
    db = getattr(client.own, "_twin", client.own)
    address = {"namespace": db.sessions.namespace, "schema": getattr(db, "db_schema", None)}
    version, session_id = user_message(client, 1), "s" if verb == "restore" else "t"
    with Sessions(db.db_engine.url, **address) as elsewhere:
        if verb == "restore":
            elsewhere.restore("s", to_version=version, reason="by hand")
        else:
            elsewhere.fork("s", "t", version=version)
    assert client.asked(session_id) == ["one"]
    client.say("three", session_id)

    assert client.asked(session_id) == ["one", "three"]
    assert client.rows(session_id) == client.fold(session_id)
    assert client.said(session_id) == ["one", "three"]


@on_two
def test_going_back_within_a_checkpointed_run_goes_back_to_its_last_checkpoint(client):
    client.say("three", checkpoint="tool-batch")
    turn = client.log.load("s").turns[-1]
    events = [event for event in client.log.read("s", after=turn.started_version)]
    checkpoint = next(event.version for event in events if event.type == "agno.run.changed")
    running = client.fold(version=checkpoint)

    for version in (checkpoint, checkpoint + 1, turn.ended_version - 1):
        client.log.restore("s", to_version=version)
        assert only(client.rows()) == only(running)
    assert '"RUNNING"' in running[1]
    client.say("four")
    assert client.rows() == client.fold()


@on_two
def test_what_a_fork_changed_in_a_run_goes_with_that_run(client):
    client.log.fork("s", "t")
    shared = client.db.get_session("t").runs[-1].run_id
    client.regenerate(shared, "t")
    assert "REGENERATED" in client.rows("t")[1]
    client.log.delete("s")

    assert client.asked("t") == ["two"]  # As it was asked anew in the fork.
    assert client.rows("t") == client.fold("t")
    assert json.loads(client.rows("t")[0])["agent_data"] is None


@on_two
@pytest.mark.parametrize("number", [0, 1])
def test_going_back_to_a_message_is_going_back_to_before_it_was_asked(client, number):
    client.say("three", pre_hooks=[client.own.asked])
    said = [e.version for e in client.log.read("s") if e.payload.get("content") == "three"]
    client.log.restore("s", to_version=said[number])
    client.say("four", pre_hooks=[client.own.asked])

    assert client.said() == client.asked() == ["one", "two", "four"]
    assert client.rows() == client.fold()


def test_a_point_of_before_a_deletion_is_refused_and_nothing_is_parted(client):
    client.db.delete_session("s")
    for words in ("three", "four", "five"):
        client.say(words)
    before = client.log.head("s"), client.rows()
    points = (("restore", {"to_turn": 1}), ("restore", {"to_version": 12}), ("fork", {"version": 9}))
    for verb, point in points:
        with pytest.raises(PointErased):
            getattr(client.log, verb)("s", *(["t"] if verb == "fork" else []), **point)

    assert (client.log.head("s"), client.rows()) == before
    client.log.restore("s", to_turn=3)
    assert client.asked() == client.said() == ["three"]
    assert client.rows() == client.fold()
