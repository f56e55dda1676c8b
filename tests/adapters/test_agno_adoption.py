"""Drop in, drop out: what is there already is taken over, and so is what others write meanwhile."""

from __future__ import annotations

import json
import threading

import pytest
from sqlalchemy import text

from kern_events.errors import SessionNotFound
from tests.agno_replay import check_replay
from tests.agno_scenarios import SCENARIOS, _agent, call, note
from tests.writers import PATIENCE_S, eventually


def say(db, words, session_id="s", **options):
    script = [[call("note", item=words)], f"noted {words}"]
    return _agent(db, script, session_id, tools=[note], **options).run(words)


@pytest.mark.parametrize("name", SCENARIOS)
def test_an_existing_database_is_taken_over_as_it_is(place, name):
    session_ids = [each for each in SCENARIOS[name](place.plain) if not each.startswith("gone")]
    db = place.open()
    before = {each: db.get_session(each, deserialize=False) for each in session_ids}

    assert db.adopt() == len(session_ids)
    for each in session_ids:
        check_replay(db, each)
        assert db.get_session(each, deserialize=False) == before[each]
        top = [run for run in before[each]["runs"] if not run.get("parent_run_id")]
        assert len(db.sessions.load(each).turns) == len(top)


def test_adopted_turns_have_their_history_and_state(place):
    for words in ("tea", "cake"):
        say(place.plain(), words)
    db = place.open()

    assert list(db.sessions.load("s", turn=1).state["items"]) == ["tea"]
    assert list(db.sessions.load("s").state["items"]) == ["tea", "cake"]
    asked = [m["content"] for m in db.sessions.history("s").to_openai() if m["role"] == "user"]
    assert asked == ["tea", "cake"]
    db.sessions.restore("s", to_turn=1)
    assert len(place.plain().get_session("s").runs) == 1


def test_an_adopted_session_goes_on(place):
    say(place.plain(), "tea")
    db = place.open()
    say(db, "cake")

    assert [turn.status for turn in db.sessions.load("s").turns] == ["completed"] * 2
    check_replay(db, "s")


def test_what_a_plain_db_writes_meanwhile_is_found(place):
    db, plain = place.open(), place.plain()
    say(db, "tea")
    say(plain, "cake")
    say(db, "milk")

    assert list(db.sessions.load("s").state["items"]) == ["tea", "cake", "milk"]
    assert len(db.sessions.load("s").turns) == 3
    assert list(db.sessions.load("s", turn=2).state["items"]) == ["tea", "cake"]
    check_replay(db, "s")


def test_what_somebody_changes_by_hand_is_found(place):
    db = place.open()
    run = say(db, "tea")
    table = db._kern.tables._names[db._kern.tables.runs]
    with db.db_engine.begin() as connection:
        connection.execute(
            text(f"UPDATE {table} SET status = 'ERROR' WHERE run_id = :id"), {"id": run.run_id}
        )

    assert db.sessions.stored("s").runs[run.run_id]["status"] == "ERROR"
    check_replay(db, "s")


def test_what_somebody_deletes_by_hand_is_erased(place):
    db = place.open()
    say(db, "tea")
    place.plain().delete_session("s")
    db.adopt()

    assert db.sessions.head("s").status == "deleted"
    assert all(event.erased for event in db.sessions.read_all() if event.type.startswith("message."))
    assert db.sessions.verify("s").ok


def test_a_deleted_session_begins_again_under_its_id(place):
    db = place.open()
    say(db, "tea")
    version = db.sessions.head("s").version
    assert db.delete_session("s")
    assert db.get_session("s") is None
    say(db, "cake")

    assert db.sessions.head("s").version > version + 1
    assert list(db.sessions.load("s").state["items"]) == ["cake"]
    check_replay(db, "s")


def test_going_back_to_the_plain_class_loses_nothing(place):
    db = place.open()
    say(db, "tea")
    before = db.get_session("s", deserialize=False)
    db.detach()
    plain = place.plain()

    assert plain.get_session("s", deserialize=False) == before
    say(plain, "cake")
    again = place.open()
    say(again, "milk")
    assert list(again.sessions.load("s").state["items"]) == ["tea", "cake", "milk"]
    check_replay(again, "s")


def test_tables_have_sessions_of_their_own(place):
    one, two = (
        place.open(session_table="one", runs_table="one_runs"),
        place.open(session_table="two", runs_table="two_runs"),
    )
    say(one, "tea")
    say(two, "cake")

    assert one.sessions.namespace != two.sessions.namespace
    assert list(one.sessions.load("s").state["items"]) == ["tea"]
    assert list(two.sessions.load("s").state["items"]) == ["cake"]


def test_runs_from_before_agno_3_are_taken_over(place):
    run = say(place.plain(), "tea")
    db = place.plain()
    table = db._get_table(table_type="sessions")
    kind = "JSON" if place.backend == "sqlite" else "JSONB"
    name = db.db_engine.dialect.identifier_preparer.format_table(table)
    old = db.get_run(run.run_id, deserialize=False)["run_data"]
    with db.db_engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {name} ADD COLUMN runs {kind}"))
        connection.execute(
            text(f"UPDATE {name} SET runs = :runs"), {"runs": json.dumps([{**old, "run_id": "old"}, old])}
        )
    db = place.open()
    say(db, "cake")

    assert [run.run_id for run in db.get_session("s").runs][:2] == ["old", run.run_id]
    assert len(db.sessions.load("s").turns) == 3
    check_replay(db, "s")
    db.sessions.restore("s", to_turn=1)
    assert [run.run_id for run in place.plain().get_session("s").runs] == ["old"]


def is_waiting(db):
    """Whether somebody waits for a lock in this database."""
    with db.db_engine.connect() as connection:
        return connection.execute(text(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )).first() is not None  # fmt: skip


def test_a_write_of_others_during_one_of_ours_is_found(place):
    """On Postgres both can be under way at the same time; SQLite has one writer."""
    db, plain = place.open(), place.plain()
    run = say(db, "tea")
    theirs = []

    def meanwhile():
        plain.upsert_run({**run.to_dict(), "content": "theirs"}, "s", run.user_id)

    def work(connection, held):
        thread = threading.Thread(target=meanwhile)
        thread.start()
        if place.backend == "postgres":
            eventually(lambda: is_waiting(plain) or not thread.is_alive())
        theirs.append(thread)

    db._kern.write(["s"], work)
    theirs[0].join(PATIENCE_S)

    assert not theirs[0].is_alive()
    assert db.sessions.stored("s").runs[run.run_id]["run_data"]["content"] == "theirs"
    check_replay(db, "s")


def test_looking_for_a_session_that_is_not_there_leaves_nothing(place):
    db = place.open()
    with pytest.raises(SessionNotFound):
        db.sessions.load("nobody")

    assert db.get_session("nobody") is None
    with db.db_engine.connect() as connection:
        assert db._kern.tables.marked_ids(connection, "", 10) == []
