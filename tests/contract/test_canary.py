"""What was deleted is nowhere, where the documents say so; what they say remains is counted."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import pytest

from kern_events.errors import SessionNotFound
from tests import canaries, databases, facade


@pytest.fixture
def sessions(facade_kind, address, loop):
    with facade.open_sessions(facade_kind, loop, address.url, namespace=address.namespace) as opened:
        yield opened


def planted(sessions):
    canary = canaries.new()
    canaries.plant(sessions, "s", canary)
    return canary


def seen(sessions, canary):
    """How often it is in what the log and its views say, by whatever verb."""
    said = [repr(list(sessions.read_all())), repr(sessions.sessions())]
    for session_id in ("s", "s-fork", "s-fork-fork"):
        reads = (sessions.load, sessions.history, sessions.branches, lambda one: list(sessions.read(one)))
        for verb in reads:
            with suppress(SessionNotFound):
                said.append(repr(verb(session_id)))
    return sum(text.count(canary) for text in said)


def test_no_verb_shows_a_deleted_text(sessions):
    canary = planted(sessions)
    assert seen(sessions, canary) > 50
    sessions.delete("s")

    assert seen(sessions, canary) == 0
    assert sessions.verify().findings == ()
    assert [event.payload for event in sessions.read("s-fork") if event.type == "note.made"] == [
        {"text": "of its own"}
    ]


@facade.only_on("sqlite")
def test_a_deleted_text_is_in_no_file_while_the_log_is_open(sessions, tmp_path):
    canary = planted(sessions)
    assert canaries.in_files(tmp_path, canary) > 50
    sessions.delete("s")

    assert canaries.in_files(tmp_path, canary) == 0
    assert canaries.in_sqlite_rows(tmp_path / "log.db", canary) == 0


@facade.only_on("sqlite")
def test_a_delete_does_not_wait_for_who_reads(sessions, tmp_path):
    """Who reads an older state needs the WAL; the next delete empties it."""
    canary = planted(sessions)
    canaries.plant(sessions, "other", canaries.new(), fork=False)
    with closing(sqlite3.connect(tmp_path / "log.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        before = reader.execute("SELECT count(*) FROM kern_events").fetchone()
        sessions.delete("s")
        assert reader.execute("SELECT count(*) FROM kern_events").fetchone() == before
        assert canaries.in_files(tmp_path, canary) > 0
    sessions.delete("other")

    assert canaries.in_files(tmp_path, canary) == 0


@pytest.mark.parametrize("backend", ["postgres"], indirect=True)
def test_a_deleted_text_is_in_no_row(sessions, address):
    canary = planted(sessions)
    assert canaries.in_postgres_rows(address.url, "public", canary) > 50
    sessions.delete("s")

    assert canaries.in_postgres_rows(address.url, "public", canary) == 0


@pytest.mark.long
@pytest.mark.parametrize("backend", ["postgres"], indirect=True)
def test_the_pages_of_postgres_keep_it_until_they_are_written_anew(sessions, address, record_property):
    canary = planted(sessions)
    sessions.delete("s")
    with databases.connect(address.url) as connection:
        folder = Path(connection.execute("SHOW data_directory").fetchone()[0]) / "base"
        found = {}
        for statement in ("CHECKPOINT", "VACUUM", "VACUUM FULL"):
            connection.execute(statement)
            connection.execute("CHECKPOINT")
            found[statement] = canaries.in_files(folder, canary)
    record_property("found", found)

    assert found["VACUUM"] > 0  # Else the documents say too little of it.
    assert found["VACUUM FULL"] == 0
