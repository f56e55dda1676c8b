"""Corners that a review has found: each of these once lost, doubled or brought back something."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from agno.db import utils
from agno.models.message import Message
from agno.run.agent import RunOutput
from agno.run.base import RunStatus
from agno.session.agent import AgentSession
from sqlalchemy import text

from kern_events import Draft, Sessions
from kern_events.adapters.agno import KernAsyncSqliteDb, KernInMemoryDb, KernSqliteDb, NotStored
from kern_events.errors import SessionExists, StoreError
from tests.agno_replay import check_replay, stored_rows


def session_of(session_id="s", tokens=0, user_id="ada", **state):
    data = {"session_state": state, "session_metrics": {"input_tokens": tokens}}
    return AgentSession(session_id=session_id, agent_id="a", user_id=user_id, session_data=data, created_at=1)


def run_of(run_id="r1", words="hi", session_id="s", **fields):
    messages = [Message(role="user", content=f"say {words}"), Message(role="assistant", content=words)]
    return RunOutput(
        run_id=run_id, session_id=session_id, agent_id="a", content=words, messages=messages,
        status=RunStatus.completed, **fields,
    )  # fmt: skip


def begun(db, *run_ids, session_id="s", **state):
    """A session with these runs."""
    db.upsert_session(session_of(session_id, **state))
    for run_id in run_ids:
        db.upsert_run(run_of(run_id, f"words of {run_id}", session_id), session_id, "ada")
    return db


def run_ids(db, session_id="s"):
    session = db.get_session(session_id)
    return None if session is None else [run.run_id for run in session.runs]


def elsewhere(db):
    """The log as another program opens it."""
    schema = getattr(db, "db_schema", None)
    return Sessions(db.db_engine.url, namespace=db.sessions.namespace, schema=schema)


def test_a_run_that_a_worker_appends_is_recorded(place):
    if place.backend != "postgres":
        assert not hasattr(place.open(), "append_run_to_session_if_absent")
        return
    db = begun(place.open(), "r1")
    assert db.append_run_to_session_if_absent("s", run_of("r2").to_dict(), "ada") is True
    check_replay(db, "s")
    db.update_run_in_session("s", "r2", {"content": "more"}, user_id="ada")

    check_replay(db, "s")
    assert len(db.sessions.load("s").turns) == 2


def test_a_delete_in_the_log_stays_one_whatever_others_have_written(place):
    db = begun(place.open(), "r1")
    place.plain().upsert_run(run_of("r2"), "s", "ada")
    db.sessions.delete("s")

    assert db.sessions.head("s").status == "deleted"
    assert run_ids(db) is None


def test_a_fork_does_not_go_into_a_session_that_is_there(place):
    db = begun(place.open(), "r1")
    begun(place.plain(), "r2", session_id="t")

    with pytest.raises(SessionExists):
        db.sessions.fork("s", "t")
    assert run_ids(db, "t") == ["r2"]


@pytest.mark.parametrize("by", ["agno", "sessions", "elsewhere"])
def test_a_fork_loses_what_is_erased_in_its_parent_and_keeps_its_own(place, by):
    db = begun(place.open(), "r1")
    db.sessions.fork("s", "t")
    db.upsert_run(run_of("r9", session_id="t"), "t", "ada")
    if by == "elsewhere":
        with elsewhere(db) as log:
            log.delete("s")
        assert db.get_session("s") is None
    else:
        {"agno": db.delete_session, "sessions": db.sessions.delete}[by]("s")

    assert run_ids(db, "t") == ["r9"]
    assert "words of r1" not in stored_rows(db, "t")[1]
    assert db.sessions.verify().ok
    db.upsert_run(run_of("r10", session_id="t"), "t", "ada")
    assert run_ids(db, "t") == ["r9", "r10"]


def test_detaching_can_be_the_first_thing_that_happens(place):
    place.open().detach()
    plain = begun(place.plain(), "r1")
    again = place.open()

    assert run_ids(again) == ["r1"]
    assert len(again.sessions.load("s").turns) == 1
    plain.upsert_run(run_of("r2"), "s", "ada")  # The triggers are there again.
    assert len(again.sessions.load("s").turns) == 2
    check_replay(again, "s")


def test_an_error_in_what_agno_does_after_a_delete_does_not_undo_it(place, monkeypatch):
    db = begun(place.open(), "r1")

    def cascade(session_ids):
        with suppress(Exception), db.Session() as session, session.begin():
            session.execute(text("SELECT * FROM there_is_no_such_table"))

    monkeypatch.setattr(db, "_cascade_tool_results", cascade, raising=False)
    assert db.delete_session("s")
    assert run_ids(db) is None
    assert db.sessions.head("s").status == "deleted"


def test_several_sessions_are_stored_all_or_none(place):
    db = place.open()
    bad = session_of("two")
    bad.session_data["x"] = object()
    with pytest.raises(NotStored):
        db.upsert_sessions([session_of("one"), bad])
    assert db.get_session("one") is None

    good = [session_of("one", 10), session_of("two", 10)]
    db.upsert_sessions(good)
    db.upsert_session(good[0])
    assert db.get_session("one").session_data["session_metrics"]["input_tokens"] == 10
    for session_id in ("one", "two"):
        check_replay(db, session_id)


def test_an_object_that_is_written_back_unchanged_counts_nothing_twice(place):
    db = begun(place.open())
    session = db.get_session("s")
    session.session_data["session_metrics"] = {"input_tokens": 10}
    db.upsert_session(session)
    assert db.get_session("s", user_id="bob") is None
    for again in (db.get_session("s"), db.get_sessions()[0]):
        db.upsert_session(again)

    assert db.get_session("s").session_data["session_metrics"] == {"input_tokens": 10}


def test_a_run_is_written_again_after_it_was_deleted(place):
    db = place.open()
    session, run = session_of(), run_of()
    session.runs = [run]
    db.upsert_session(session)
    assert run_ids(db) == ["r1"]
    db.delete_run("r1")
    db.upsert_run(run, "s", "ada")

    assert run_ids(db) == ["r1"]
    check_replay(db, "s")


def test_runs_that_go_with_another_users_delete_are_recorded(place):
    db = begun(place.open(shared=True), "r1")
    db.upsert_run(run_of("r2"), "s", "bob")
    db.delete_sessions(["s"], user_id="bob")

    assert run_ids(db) == ["r1"]
    check_replay(db, "s")


def test_what_both_sides_have_changed_is_merged(place):
    db = begun(place.open(), "r1", "r2")
    with elsewhere(db) as log:
        log.restore("s", to_turn=1)
    place.plain().upsert_run(run_of("r3"), "s", "ada", 5)
    db.upsert_run(run_of("r4"), "s", "ada")

    assert run_ids(db) == ["r1", "r3", "r4"]
    check_replay(db, "s")


def test_a_session_of_somebody_else_is_left_alone(place):
    db = begun(place.open())
    with db.sessions.turn("other") as turn:
        turn.message("user", "Hello.")

    assert db.get_session("other") is None
    assert len(db.sessions.load("other").messages) == 1
    db.sessions.append("other", [Draft("note.made", {})])
    assert db.get_session("other") is None


@pytest.mark.parametrize("field", ["user_id", "agent_id", "name"])
def test_texts_over_our_limits_are_stored_all_the_same(place, field):
    db = place.open()
    session = session_of()
    if field == "name":
        session.session_data["session_name"] = "n" * 5000
    else:
        setattr(session, field, "x" * 250)
    db.upsert_session(session)

    check_replay(db, "s")


def test_one_session_that_the_log_cannot_have_does_not_stop_the_others(place):
    plain = place.plain()
    begun(plain, session_id="a" * 250)
    begun(plain, session_id="b")
    db = place.open()
    db.adopt()

    assert db.sessions.head("b").version > 0


def test_an_object_read_from_another_db_is_written_whole(place):
    one = begun(place.open(), v="new")
    session = one.get_session("s")
    other = begun(place.open(session_table="others", runs_table="other_runs"), v="stale")
    other.upsert_session(session)

    assert other.get_session("s").session_data["session_state"] == {"v": "new"}


def test_a_fork_leaves_what_was_said_as_it_was(place):
    db = begun(place.open())
    said = {"session_id": "mine", "run_id": "r1"}
    db.upsert_run(
        {**run_of().to_dict(), "input": {"input_content": said}, "model_provider_data": said}, "s", "ada"
    )
    db.sessions.fork("s", "t")

    run = db.get_session("t", deserialize=False)["runs"][0]
    assert run["input"]["input_content"] == said and run["model_provider_data"] == said
    assert run["session_id"] == "t" and run["run_id"] != "r1"


def test_what_was_taken_away_does_not_come_back_with_a_restore(place):
    db = begun(place.open(), "r1")
    session = db.get_session("s")
    session.metadata, session.session_data["session_name"] = {"a": 1}, "N"
    db.upsert_session(session)
    session.metadata = None
    del session.session_data["session_name"]
    db.upsert_session(session)
    db.sessions.restore("s", to_turn=1)

    session = db.get_session("s")
    assert not session.metadata and "session_name" not in session.session_data
    check_replay(db, "s")


def test_a_run_that_moves_marks_both_sessions(place):
    db = begun(begun(place.open(), "r1"), session_id="t")
    table = db._kern.tables._names[db._kern.tables.runs]
    with db.db_engine.begin() as connection:
        connection.execute(text(f"UPDATE {table} SET session_id = 't'"))
    db.adopt()

    for session_id in "st":
        check_replay(db, session_id)


@pytest.mark.parametrize("name", ["a b", "it's", "per%cent", 'quo"te', "wh?t", "{x}"])
def test_a_table_may_have_any_name(place, name):
    db = begun(place.open(session_table=name, runs_table=f"{name}r"), "r1")

    check_replay(db, "s")
    db.sessions.restore("s", to_turn=0)
    assert not run_ids(db)


def test_a_db_that_agno_makes_of_ours_is_one_of_ours(tmp_path):
    db = KernInMemoryDb()
    clone = utils._clone_db_with_table_overrides(db, {"session_table": "others"})
    again = utils.db_from_dict({**KernSqliteDb(db_file=f"{tmp_path}/x.db").to_dict(), "session_table": "z"})

    assert isinstance(clone, KernSqliteDb) and clone.session_table_name == "others"
    assert isinstance(again, KernSqliteDb) and again.session_table_name == "z"
    for each in (clone, again, db):
        each.close()
        each.close()


def test_the_files_of_agno_are_their_owner_s_alone(tmp_path):
    async def main():
        db = KernAsyncSqliteDb(db_file=f"{tmp_path}/async.db")
        assert await db.get_user_memories() == []  # Through Agno's own engine, before the log is there.
        await db.upsert_session(session_of())
        await db.close()

    asyncio.run(main())
    made, db = KernInMemoryDb(), KernSqliteDb(db_file=f"{tmp_path}/agno.db")
    for each in (made, db):
        each.upsert_session(session_of())
    folder = Path(made.db_engine.url.database).parent
    modes = {path.name: path.stat().st_mode & 0o777 for path in [*tmp_path.iterdir(), *folder.iterdir()]}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {"agno.db", "async.db"} <= set(modes) and set(modes.values()) == {0o600}
    for each in (made, db):
        each.close()


def test_from_a_loop_a_session_is_written_as_it_was_at_the_call(place):
    async def main():
        db = place.open_async()
        session = session_of(**{f"k{number}": number for number in range(20_000)})
        writing = asyncio.ensure_future(db.upsert_session(session))
        for number in range(200):
            await asyncio.sleep(0)
            session.session_data["session_state"][f"late{number}"] = 1
        await writing
        first = (await db.get_session("s")).session_data["session_state"]
        await db.upsert_session(session)
        second = (await db.get_session("s")).session_data["session_state"]
        await db.close()
        return len(first), len(second)

    first, second = asyncio.run(main())
    assert (first, second) == (20_000, 20_200)


def test_a_write_behind_a_cancelled_one_comes_after_it(place):
    async def main():
        db = place.open_async()
        await db.upsert_session(session_of())
        entered, go_on = threading.Event(), threading.Event()
        plain = db._twin._upsert_run

        def slow(run, *args):
            if run.content == "one":
                entered.set()
                assert go_on.wait(30)
            return plain(run, *args)

        db._twin._upsert_run = slow
        first = asyncio.ensure_future(db.upsert_run(run_of(words="one"), "s", "ada"))
        await asyncio.to_thread(entered.wait, 30)
        first.cancel()
        asyncio.get_running_loop().call_later(0.05, go_on.set)
        with pytest.raises(asyncio.CancelledError):
            await first
        await db.upsert_run(run_of(words="two"), "s", "ada")
        content = (await db.get_session("s")).runs[0].content
        await db.close()
        return content

    assert asyncio.run(main()) == "two"


@pytest.mark.parametrize("words", ["x" * (17 << 20), "R \ud800"], ids=["long", "surrogate"])
def test_what_the_log_refuses_is_shown_as_far_as_it_goes(tmp_path, words):
    db = begun(KernSqliteDb(db_file=f"{tmp_path}/agno.db"), state=1)
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        Message(role="user", content=words),
        Message(role="assistant", tool_calls=[call]),
        Message(role="tool", content=words, tool_call_id="c1", tool_name="f"),
    ]
    db.upsert_run(RunOutput(run_id="r1", session_id="s", agent_id="a", messages=messages), "s", "ada")
    session = db.get_session("s")
    session.session_data["session_state"]["state"] = [words, float("nan"), 2**70]
    db.upsert_session(session)

    view = db.sessions.load("s")
    assert [message.role for message in view.messages] == ["user", "assistant", "tool"]
    assert view.messages[0].content.startswith(words[:2])
    assert not view.pending_calls
    assert view.state["state"][1:] == ("nan", str(2**70))
    check_replay(db, "s")
    db.close()


def test_a_list_that_two_begin_at_once_has_the_items_of_both(place):
    db = begun(place.open())
    one, two = db.get_session("s"), db.get_session("s")
    for session, item in ((one, "a"), (two, "b")):
        session.session_data["session_state"]["items"] = ["first", item]
        db.upsert_session(session)

    assert db.get_session("s").session_data["session_state"]["items"] == ["first", "a", "b"]


def test_a_session_that_another_process_begins_between_our_read_and_our_write_is_merged(place, monkeypatch):
    db, other = place.open(), place.open()
    plain = db._note_missing

    def begun_meanwhile(session_id, user_id):
        begun(other, theirs=1)
        plain(session_id, user_id)

    monkeypatch.setattr(db, "_note_missing", begun_meanwhile)
    assert db.get_session("s", user_id="ada") is None
    db.upsert_session(session_of(ours=1))

    assert db.get_session("s").session_data["session_state"] == {"theirs": 1, "ours": 1}


def test_lists_show_what_was_restored_or_forked_elsewhere(place):
    db = begun(place.open(), "r1", "r2")
    with elsewhere(db) as log:
        log.restore("s", to_turn=1)
        log.fork("s", "t")

    found = {session.session_id: len(session.runs) for session in db.get_sessions()}
    assert found == {"s": 1, "t": 1}


def test_a_restore_elsewhere_shows_also_where_others_have_written_since(place):
    db = begun(place.open(), "r1", "r2")
    with elsewhere(db) as log:
        log.restore("s", to_turn=1)
    place.plain().upsert_run(run_of("r3"), "s", "ada", 2)

    assert run_ids(db) == ["r1", "r3"]


def test_a_session_with_an_id_that_the_log_cannot_have_can_be_deleted(place):
    begun(place.plain(), session_id="a" * 250)
    begun(place.plain(), session_id="b")
    db = place.open()
    with pytest.raises(NotStored, match="session_id: 250 bytes"):
        db.upsert_session(session_of("a" * 250))

    db.delete_sessions(["a" * 250, "b"])
    assert db.get_sessions() == []


def test_an_error_that_agno_catches_on_the_way_is_not_taken_for_success(place):
    db = begun(place.open(), "r1")
    before = stored_rows(db, "s"), db.sessions.head("s")

    def work(connection, held):
        with suppress(Exception), db.Session() as session, session.begin():
            session.execute(text("SELECT * FROM there_is_no_such_table"))

    with pytest.raises(StoreError, match="Agno has caught"):
        db._kern.write(["s"], work)
    assert (stored_rows(db, "s"), db.sessions.head("s")) == before
    check_replay(db, "s")
