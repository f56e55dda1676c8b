"""The database itself refuses to change what was recorded; only a true erasure passes."""

from __future__ import annotations

import re
import sqlite3

import psycopg
import pytest

from kern_events import Draft, spi
from tests.writers import note, notes

REFUSED = (sqlite3.IntegrityError, psycopg.errors.RestrictViolation, psycopg.errors.GeneratedAlways)
WORDS = re.compile("append-only|rows stay|keep their identity|can only be updated to DEFAULT")

VALUES = {
    "event_id": bytes(16), "type": "other", "type_version": 2, "kind": 1, "turn": 5, "ref": 1, "at": 5,
    "actor": "eve", "meta": b"{}", "idempotency_key": "other", "codec": 1, "key_commit": b"{}",
    "payload": b"{}", "native": b"{}", "salt": bytes(16), "hash": bytes(32), "payload_commit": bytes(32),
    "version": 9, "position": 99,
}  # fmt: skip
CONTENT = ("payload", "native", "salt", "payload_commit")
ERASE = "UPDATE kern_events SET payload = NULL, native = NULL, salt = NULL, payload_commit = ?"


def on(*modes):
    return pytest.mark.parametrize("mode", modes, indirect=True)


@pytest.fixture(params=["sqlite", "postgres", "replica"])
def mode(request):
    """The database; Postgres once more as a replica, which ordinary triggers do not fire for."""
    return request.param


@pytest.fixture
def dialect(mode):
    return "sqlite" if mode == "sqlite" else "postgres"


@pytest.fixture
def raw(mode, raw, log):
    """Below a log that has something of everything."""
    log.append("s", [note("a", native=b"n", actor="ada", meta={"m": 1}), note("b")], idempotency_key="k")
    log.append("s", [note("c"), Draft("session.closed", {}), Draft("session.created", {})])
    log.append("other", notes(1))
    if mode == "replica":
        raw.run("SET session_replication_role = replica")
    return raw


def refused(raw, statement, *values):
    """The database refuses the statement, and nothing is changed by it."""
    before = raw.dump()
    with pytest.raises(REFUSED, match=WORDS):
        raw.run(statement, *values)
    assert raw.dump() == before, statement


def first(raw):
    return f"WHERE {raw.where('s')} AND version = 1"


def tombstone(raw, version=6):
    """A `session.erased` as its verb will record it."""
    names, place = ("namespace, session_id", "'default', 's'")
    if raw.dialect == "sqlite":
        names, place = ("session", "(SELECT id FROM kern_sessions WHERE session_id = 's')")
    raw.run(
        f"INSERT INTO kern_events ({names}, version, event_id, type, type_version, kind, turn, at, codec, "
        f"payload, salt, hash) VALUES ({place}, {version}, ?, 'session.erased', 1, 5, 0, 0, 0, ?, ?, ?)",
        bytes(16), b"{}", bytes(16), bytes(32),
    )  # fmt: skip


# -------------------------------------------------------------------------------------- events


def test_no_column_of_an_event_can_be_updated(raw):
    for column, value in VALUES.items():
        refused(raw, f"UPDATE kern_events SET {column} = ? {first(raw)}", value)


def test_no_column_of_an_event_can_be_emptied(raw):
    for column in ("actor", "meta", "idempotency_key", "native", "salt", "payload"):
        refused(raw, f"UPDATE kern_events SET {column} = NULL {first(raw)}")


def test_an_update_that_changes_nothing_is_refused_too(raw):
    refused(raw, "UPDATE kern_events SET version = version")


def test_no_event_can_be_deleted(raw):
    for condition in ("", "WHERE version = 2", "WHERE version = 5"):
        refused(raw, f"DELETE FROM kern_events {condition}")


def forged(or_what, version, position, key):
    return (
        f"INSERT {or_what} INTO kern_events (session, version, position, event_id, type, type_version, kind, "
        "turn, at, codec, idempotency_key, hash) "
        "VALUES ((SELECT id FROM kern_sessions WHERE session_id = 's'), "
        f"{version}, {position}, zeroblob(16), 'forged', 1, 0, 0, 0, 0, {key}, zeroblob(32))"
    )


@on("sqlite")
@pytest.mark.parametrize("recursive_triggers", ["ON", "OFF"])
@pytest.mark.parametrize("or_what", ["OR REPLACE", "OR IGNORE", "OR FAIL", ""])
def test_sqlite_replaces_no_event_by_any_of_its_keys(raw, or_what, recursive_triggers):
    raw.run(f"PRAGMA recursive_triggers = {recursive_triggers}")

    refused(raw, forged(or_what, version=2, position="NULL", key="NULL"))
    refused(raw, forged(or_what, version=9, position=2, key="NULL"))
    refused(raw, forged(or_what, version=9, position="NULL", key="'k'"))
    refused(raw, forged(or_what, version=2, position=2, key="'k'"))


@on("sqlite")
def test_sqlite_takes_no_upsert(raw):
    for target in ("(session, version)", "(position)", ""):
        upsert = f"ON CONFLICT {target} DO UPDATE SET type = 'forged'"
        refused(raw, f"{forged('', version=2, position=2, key='NULL')} {upsert}")


@on("sqlite")
def test_sqlite_moves_no_event_over_another(raw):
    refused(raw, "UPDATE OR REPLACE kern_events SET version = 2 WHERE version = 1")


@on("postgres", "replica")
def test_postgres_truncates_nothing(raw):
    for what in ("kern_events", "kern_events, kern_sessions", "kern_events RESTART IDENTITY CASCADE"):
        refused(raw, f"TRUNCATE {what}")
    refused(raw, "TRUNCATE kern_sessions CASCADE")


SECOND = "SELECT * FROM kern_events WHERE session_id = 's' AND version = 2"


@on("postgres", "replica")
def test_postgres_takes_no_upsert(raw):
    refused(
        raw,
        f"INSERT INTO kern_events OVERRIDING SYSTEM VALUE {SECOND} "
        "ON CONFLICT (namespace, session_id, version) DO UPDATE SET type = 'forged'",
    )


@on("postgres", "replica")
@pytest.mark.parametrize("action", ["UPDATE SET type = 'forged'", "DELETE"])
def test_postgres_merges_nothing_into_what_is_there(raw, action):
    if raw.connection.info.server_version < 150000:
        pytest.skip("MERGE came with PostgreSQL 15")

    refused(
        raw,
        f"MERGE INTO kern_events AS e USING ({SECOND}) AS c ON e.namespace = c.namespace "
        f"AND e.session_id = c.session_id AND e.version = c.version WHEN MATCHED THEN {action}",
    )


@pytest.mark.parametrize("session_id", ["s", "fork"])
def test_the_event_that_begins_a_branch_is_kept_like_any_other(raw, log, session_id):
    spi.restore(log, "s", 1, {"reason": "wrong"}, log.head("s"), actor="ada")
    log.fork("s", "fork", version=1, actor="ada")
    [(version,)] = raw.run(
        f"SELECT version FROM kern_events WHERE {raw.where(session_id)} AND kind IN (3, 4)"
    )
    where = f"WHERE {raw.where(session_id)} AND version = {version}"

    for column, value in {**VALUES, "ref": 0, "kind": 0, "turn": 4, "version": 99}.items():
        refused(raw, f"UPDATE kern_events SET {column} = ? {where}", value)
    refused(raw, f"UPDATE kern_events SET ref = NULL {where}")
    refused(raw, f"{ERASE} {where}", bytes(32))
    refused(raw, f"DELETE FROM kern_events {where}")


# ------------------------------------------------------------------------------------ erasures


def test_what_begins_a_branch_is_erased_with_its_session(raw, log):
    spi.restore(log, "s", 1, {"reason": "secret"}, log.head("s"), actor=None)
    log.fork("s", "fork")
    log.delete("fork")
    log.delete("s")

    assert raw.run("SELECT count(*) FROM kern_events WHERE kind IN (3, 4) AND payload IS NOT NULL") == [(0,)]
    assert sorted(raw.run("SELECT kind, ref FROM kern_events WHERE kind IN (3, 4)")) == [(3, 1), (4, 6)]
    assert log.verify().ok


def test_a_true_erasure_passes(raw):
    tombstone(raw)
    raw.run(f"{ERASE} {first(raw)}", bytes(32))

    assert raw.run(f"SELECT payload, native, salt FROM kern_events {first(raw)}") == [(None, None, None)]


def test_an_erasure_needs_a_tombstone_behind_it_in_its_session(raw):
    refused(raw, f"{ERASE} {first(raw)}", bytes(32))
    tombstone(raw)

    refused(raw, f"{ERASE} WHERE {raw.where('other')}", bytes(32))
    refused(raw, f"{ERASE} WHERE {raw.where('s')} AND version = 6", bytes(32))


def test_closings_and_tombstones_are_never_erased(raw):
    tombstone(raw, version=6)
    tombstone(raw, version=7)

    refused(raw, f"{ERASE} WHERE {raw.where('s')} AND version = 4", bytes(32))
    refused(raw, f"{ERASE} WHERE {raw.where('s')} AND version = 6", bytes(32))


def test_an_erasure_changes_nothing_else(raw):
    tombstone(raw)

    for column, value in VALUES.items():
        if column not in CONTENT:
            refused(raw, f"{ERASE}, {column} = ? {first(raw)}", bytes(32), value)


def test_an_erasure_leaves_nothing_behind(raw):
    tombstone(raw)

    for stays in (("native",), ("salt",), ("payload",), ("payload", "native", "salt")):
        gone = "".join(f"{column} = NULL, " for column in CONTENT[:3] if column not in stays)
        refused(raw, f"UPDATE kern_events SET {gone} payload_commit = ? {first(raw)}", bytes(32))


def test_an_erasure_leaves_a_commitment(raw):
    tombstone(raw)

    refused(raw, f"{ERASE.replace('?', 'NULL')} {first(raw)}")
    for commit in (b"", bytes(31), bytes(33)):
        refused(raw, f"{ERASE} {first(raw)}", commit)


def test_what_was_erased_stays_erased(raw):
    tombstone(raw)
    raw.run(f"{ERASE} {first(raw)}", bytes(32))

    refused(raw, f"UPDATE kern_events SET payload = ?, salt = ? {first(raw)}", b"{}", bytes(16))
    refused(raw, f"{ERASE} {first(raw)}", b"x" * 32)


# --------------------------------------------------------------------------------------- heads


def test_a_head_row_stays_where_it_is(raw):
    refused(raw, "DELETE FROM kern_sessions")
    refused(raw, "DELETE FROM kern_sessions WHERE session_id = 'other'")
    refused(raw, "UPDATE kern_sessions SET session_id = 'stolen' WHERE session_id = 's'")
    refused(raw, "UPDATE kern_sessions SET namespace = 'theirs' WHERE session_id = 's'")


@on("sqlite")
def test_sqlite_replaces_no_head_row(raw):
    for id, name in (("(SELECT min(id) FROM kern_sessions)", "'new'"), ("NULL", "'s'")):
        refused(
            raw,
            "INSERT OR REPLACE INTO kern_sessions (id, namespace, session_id, version, head_hash, turn, "
            "branch, epoch, status, created_at, updated_at, updated_hour) "
            f"VALUES ({id}, 'default', {name}, 0, zeroblob(32), 0, 0, 0, 'open', 0, 0, 0)",
        )


@on("sqlite")
def test_sqlite_never_uses_a_position_again(raw, log):
    last = raw.run("SELECT max(position) FROM kern_events")[0][0]
    raw.disarm()
    raw.run("DELETE FROM kern_events WHERE position = ?", last)

    assert log.append("new", notes(1)).position == last + 1


def test_the_log_goes_on_after_all_refusals(raw, log):
    for statement in ("UPDATE kern_events SET type = 'x'", "DELETE FROM kern_events"):
        refused(raw, statement)

    assert log.append("s", notes(1), expected=5).version == 6
    assert log.verify().ok
