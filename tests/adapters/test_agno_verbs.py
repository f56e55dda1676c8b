"""Every verb of `db.sessions` that is about a session finds one that only Agno has, and keeps its order."""

from __future__ import annotations

import inspect

import pytest

from kern_events import Draft, import_transcripts, message
from kern_events.adapters.agno import AgnoSessions, AsyncAgnoSessions
from kern_events.errors import SessionDeleted, SessionNotFound, VersionConflict
from tests.adapters.test_agno_time_travel import agent, say
from tests.agno_replay import check_replay
from tests.agno_scenarios import _agent, _pay_tool, call

NEW = [message("user", "new")]
READS = {
    "load": lambda s, id: s.load(id).messages,
    "stored": lambda s, id: s.stored(id).runs,
    "history": lambda s, id: s.history(id),
    "head": lambda s, id: s.head(id).version,
    "read": lambda s, id: list(s.read(id)),
    "replay": lambda s, id: list(s.replay(id)),
    "export": lambda s, id: list(s.export(id)),
    "branches": lambda s, id: s.branches(id).branches[0].turns,
    "diff": lambda s, id: s.diff(id, 1, 4),
    "preview_restore": lambda s, id: s.preview_restore(id, to_turn=0),
    "verify": lambda s, id: s.verify(id).events,
}
WRITES = {
    "describe": lambda s, id: s.describe(id, name="N"),
    "restore": lambda s, id: s.restore(id, to_turn=1),
    "fork": lambda s, id: s.fork(id, f"fork of {id}"),
    "delete": lambda s, id: s.delete(id),
}
APPENDS = {
    "append": lambda s, id: s.append(id, NEW),
    "append_many": lambda s, id: s.append_many([(id, NEW, None)]),
    "turn": lambda s, id: in_turn(s.turn(id)),
    "buffered": lambda s, id: in_turn(s.turn(id, buffered=True)),
}


def in_turn(turn):
    with turn as recorder:
        recorder.message("user", "new")


def told(place, *session_ids):
    db = place.plain()
    for session_id in session_ids or ["s"]:
        say(db, 1, session_id)


def said(sessions, session_id, role="user"):
    return [each.content for each in sessions.load(session_id).messages if each.role == role]


@pytest.mark.parametrize("kind", [AgnoSessions, AsyncAgnoSessions])
def test_the_verbs_here_are_all_that_there_are(kind):
    """So that one that comes is thought of."""
    named = {
        name for name, verb in inspect.getmembers(kind, callable)
        if not name.startswith("_") and "session_id" in inspect.signature(verb).parameters
    }  # fmt: skip
    assert named - {"forget"} == {*READS, *WRITES, "append", "turn", "resume"}


def test_every_verb_finds_a_session_that_agnos_tables_alone_have(side):
    told(side.place, *READS, *WRITES)
    sessions = side.sessions(side.open())

    for name, read in READS.items():
        assert read(sessions, name), name
    for name, write in WRITES.items():
        assert write(sessions, name).version > 5, name
    assert sessions.verify().ok


def test_what_is_appended_comes_after_what_agnos_tables_have(side):
    told(side.place, *APPENDS)
    sessions = side.sessions(side.open())

    for name, append in APPENDS.items():
        append(sessions, name)
        assert said(sessions, name) == ["question 1", "new"], name


def test_a_turn_that_agno_paused_is_resumed(side):
    _agent(side.place.plain(), [[call("pay", amount=3)]], "s", tools=[_pay_tool()]).run("pay 3")
    sessions = side.sessions(side.open())
    in_turn(sessions.resume("s"))

    assert [turn.status for turn in sessions.load("s").turns] == ["completed"]


@pytest.mark.parametrize("verb", ["append", "append_many"])
def test_an_append_in_the_callers_transaction_comes_after_what_was_there(place, verb):
    told(place)
    db = place.open()
    db.sessions.migrate()
    with db.db_engine.connect() as connection:
        if place.backend == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        if verb == "append":
            db.sessions.append("s", NEW, connection=connection)
        else:
            db.sessions.append_many([("s", NEW, None)], connection=connection)
        connection.commit()

    assert said(db.sessions, "s") == ["question 1", "new"]
    check_replay(db, "s")


def test_what_a_plain_db_wrote_since_comes_before_what_is_appended(side):
    sessions = side.sessions(side.open())
    told(side.place)
    with pytest.raises(VersionConflict):
        sessions.append("s", NEW, expected=0)
    sessions.append("s", NEW)
    made, _ = agent(side.place.plain(), ["answer 2"])
    made.run("question 2")
    sessions.append("s", [message("user", "newer")])

    assert said(sessions, "s") == ["question 1", "new", "question 2", "newer"]


def test_a_session_that_others_have_deleted_is_not_gone_on_with(side):
    sessions = side.sessions(side.open())
    told(side.place)
    sessions.load("s")
    side.place.plain().delete_session("s")
    for read in (sessions.load, sessions.export, sessions.read, sessions.replay, sessions.branches):
        with pytest.raises(SessionNotFound):
            list(read("s"))
    with pytest.raises(SessionDeleted):
        sessions.append("s", NEW)
    sessions.append("s", [Draft("session.created", {}), *NEW])

    assert said(sessions, "s") == ["new"]


def test_what_is_imported_under_the_id_of_a_session_of_agnos_is_refused(place):
    told(place)
    db = place.open()
    line = '{"session_id": "s", "messages": [{"role": "user", "content": "other"}]}'
    report = import_transcripts(db.sessions, [line.encode()])

    assert not report.ok
    assert said(db.sessions, "s") == ["question 1"]
