"""What verify finds when somebody who owns the database has switched the triggers off."""

from __future__ import annotations

import os

import pytest

from kern_events import Draft, chain
from kern_events.batch import prepare, prepare_draft
from kern_events.errors import ChainBroken, StoreCorrupt
from kern_events.verify import SCHEMA
from tests.writers import note, notes

LAST = 7  # the version of the last event of "s"


@pytest.fixture
def raw(raw, log):
    """Below a log whose session "s" has every column in use, with the triggers off."""
    created = Draft("session.created", {"user_id": "ada", "agent_id": "bot", "name": "nämé"})
    rich = note("prösa", native=b"\x00native", actor="ada", meta={"run_id": "r1"})
    log.append("s", [created, Draft("turn.started", {})])
    log.append("s", [rich, note("plain")], idempotency_key="k1")
    restored = Draft("session.restored", {}, turn=0)
    batch = prepare("default", "s", [restored], reserved=True)
    log._record(batch._replace(events=(prepare_draft(restored, os.urandom(16), ref=2, reserved=True),)))
    log.append("s", [Draft("turn.started", {}), note("last")])
    log.append("other", notes(2))
    raw.disarm()
    assert is_honest(log)
    return raw


def findings(log, session_id="s"):
    """What is found of sessions: that the triggers are off is found as well."""
    return tuple(finding for finding in log.verify(session_id).findings if finding.problem != SCHEMA)


def is_honest(log):
    return not findings(log, None)


def each_change(value):
    """Every value that differs from this one in one byte, or by one."""
    if isinstance(value, int):
        return [value + 1, value - 1, value + 256]
    if isinstance(value, bytes):
        return [value[:i] + bytes([value[i] ^ 1]) + value[i + 1 :] for i in range(len(value))]
    return [value[:i] + chr(ord(value[i]) ^ 1) + value[i + 1 :] for i in range(len(value))]


def changed(raw, table, column, where, value):
    """Change one column of one row; returns how to undo it."""
    [(before,)] = raw.run(f"SELECT {column} FROM {table} WHERE {where}")
    raw.run(f"UPDATE {table} SET {column} = ? WHERE {where}", value)
    return lambda: raw.run(f"UPDATE {table} SET {column} = ? WHERE {where}", before)


# -------------------------------------------------------------------------- one changed field

ALWAYS = {"event_id", "type", "type_version", "kind", "turn", "at", "codec", "payload", "salt", "hash"}
SOMETIMES = {"native", "meta", "actor", "idempotency_key"}


@pytest.mark.parametrize("column", sorted(ALWAYS | SOMETIMES))
def test_any_changed_byte_of_a_hashed_field_is_found(raw, log, column):
    where = f"{raw.where('s')} AND version = 3"
    [(value,)] = raw.run(f"SELECT {column} FROM kern_events WHERE {where}")
    for change in each_change(value):
        undo = changed(raw, "kern_events", column, where, change)
        found = findings(log)
        undo()

        assert found, change
        # A changed hash shows in the event that it stands with and in the next, which links to it.
        assert {one.version for one in found} <= ({3, 4} if column == "hash" else {3, LAST})
        assert {one.session_id for one in found} == {"s"}
    assert is_honest(log)


@pytest.mark.parametrize("version", range(1, LAST + 1))
def test_a_change_is_found_wherever_it_is(raw, log, version):
    where = f"{raw.where('s')} AND version = {version}"
    for column, value in {"payload": b'{"forged":1}', "at": 1, "type": "forged", "ref": 1, "turn": 9}.items():
        undo = changed(raw, "kern_events", column, where, value)
        found = findings(log)
        undo()

        assert version in {one.version for one in found}, column


@pytest.mark.parametrize("column", ["native", "meta", "actor", "idempotency_key", "salt", "payload"])
def test_what_was_taken_away_is_found(raw, log, column):
    where = f"{raw.where('s')} AND version = 3"
    undo = changed(raw, "kern_events", column, where, None)

    assert findings(log)
    undo()
    assert is_honest(log)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("native", b"x"), ("native", b""), ("meta", b"{}"), ("actor", "eve"), ("actor", ""),
        ("idempotency_key", "k2"), ("ref", 1), ("key_commit", bytes(32)), ("payload_commit", bytes(32)),
    ],
)  # fmt: skip
def test_what_was_added_is_found(raw, log, column, value):
    where = f"{raw.where('s')} AND version = 4"
    undo = changed(raw, "kern_events", column, where, value)

    assert findings(log), column
    undo()
    assert is_honest(log)


def test_a_restores_target_is_hashed(raw, log):
    where = f"{raw.where('s')} AND version = 5"
    for change in (1, 3, None):
        undo = changed(raw, "kern_events", "ref", where, change)

        assert findings(log)
        undo()


def test_content_and_salt_and_commitment_do_not_cover_for_each_other(raw, log):
    """A payload with the commitment of the true one beside it is not taken for it."""
    where = f"{raw.where('s')} AND version = 3"
    [(payload, salt)] = raw.run(f"SELECT payload, salt FROM kern_events WHERE {where}")
    commit = chain.payload_commit(salt, payload, b"\x00native")
    raw.run(f"UPDATE kern_events SET payload = ?, payload_commit = ? WHERE {where}", b'{"forged":1}', commit)

    assert findings(log)


# ------------------------------------------------------------------------------ erased events


@pytest.fixture
def erased(raw, log):
    """The first events of "s" are gone lawfully."""
    log.delete("s")
    assert is_honest(log)
    return raw


@pytest.mark.parametrize("column", ["native", "salt", "payload"])
def test_content_put_back_into_an_erased_event_is_found(erased, log, column):
    erased.run(f"UPDATE kern_events SET {column} = ? WHERE {erased.where('s')} AND version = 3", bytes(16))

    assert findings(log)


def test_a_changed_commitment_of_an_erased_event_is_found(erased, log):
    where = f"{erased.where('s')} AND version = 3"
    [(commit,)] = erased.run(f"SELECT payload_commit FROM kern_events WHERE {where}")
    for change in [*each_change(commit)[:4], None, b"", commit + b"x"]:
        undo = changed(erased, "kern_events", "payload_commit", where, change)

        assert findings(log), change
        undo()


def test_an_erasure_without_a_tombstone_is_found(raw, log):
    where = f"{raw.where('s')} AND version = 3"
    [(payload, native, salt)] = raw.run(f"SELECT payload, native, salt FROM kern_events WHERE {where}")
    commit = chain.payload_commit(salt, payload, native)
    raw.run(
        "UPDATE kern_events SET payload = NULL, native = NULL, salt = NULL, payload_commit = ? "
        f"WHERE {where}",
        commit,
    )

    [found] = findings(log)
    assert (found.version, found.problem) == (3, "erased_without_tombstone")


def test_a_tombstone_covers_what_it_names_and_no_more(raw, log):
    """An event after a deletion that was erased by hand is not covered by the deletion before it."""
    log.delete("s")
    log.append("s", [Draft("session.created", {}), note("later")])
    where = f"{raw.where('s')} AND version = {LAST + 3}"
    [(payload, salt)] = raw.run(f"SELECT payload, salt FROM kern_events WHERE {where}")
    raw.run(
        f"UPDATE kern_events SET payload = NULL, salt = NULL, payload_commit = ? WHERE {where}",
        chain.payload_commit(salt, payload, None),
    )

    assert [one.problem for one in findings(log)] == ["erased_without_tombstone"]


# ---------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("version", range(1, LAST))
def test_a_deleted_row_is_found(raw, log, version):
    raw.run(f"DELETE FROM kern_events WHERE {raw.where('s')} AND version = {version}")

    assert version + 1 in {one.version for one in findings(log) if one.problem == "missing"}


@pytest.mark.parametrize("count", range(1, LAST + 1))
def test_a_tail_cut_off_is_found_while_the_head_row_stays(raw, log, count):
    raw.run(f"DELETE FROM kern_events WHERE {raw.where('s')} AND version > {LAST - count}")

    assert {one.field for one in findings(log)} >= {"version", "head_hash"}


def renumbered(raw, old, new):
    raw.run(f"UPDATE kern_events SET version = {new} WHERE {raw.where('s')} AND version = {old}")


@pytest.mark.parametrize(("a", "b"), [(1, 2), (3, 4), (2, 6), (6, 7)])
def test_a_swapped_pair_is_found(raw, log, a, b):
    for old, new in ((a, 99), (b, a), (99, b)):
        renumbered(raw, old, new)

    assert {a, b} <= {one.version for one in findings(log)}


def test_swapped_contents_are_found(raw, log):
    where = [f"{raw.where('s')} AND version = {version}" for version in (4, 7)]
    contents = [raw.run(f"SELECT payload, salt FROM kern_events WHERE {one}")[0] for one in where]
    for one, content in zip(where, contents[::-1], strict=True):
        raw.run(f"UPDATE kern_events SET payload = ?, salt = ? WHERE {one}", *content)

    assert {one.version for one in findings(log)} == {4, 7}


def copied(raw, session_id, version, into, new):
    """A copy of an event at another place."""
    columns = (
        "event_id, type, type_version, kind, turn, ref, at, actor, meta, codec, key_commit, payload, native, "
        "payload_commit, salt, hash"
    )
    if raw.dialect == "postgres":
        names, place = "namespace, session_id", f"'default', '{into}'"
    else:
        names, place = "session", f"(SELECT id FROM kern_sessions WHERE session_id = '{into}')"
    raw.run(
        f"INSERT INTO kern_events ({names}, version, {columns}) SELECT {place}, {new}, {columns} "
        f"FROM kern_events WHERE {raw.where(session_id)} AND version = {version}"
    )


@pytest.mark.parametrize("place", [1, 3, LAST])
def test_an_inserted_row_is_found(raw, log, place):
    """Room is made by moving what follows, so that the versions are dense again."""
    for version in range(LAST, place - 1, -1):
        renumbered(raw, version, version + 1)
    copied(raw, "other", 1, "s", place)
    raw.run(f"UPDATE kern_sessions SET version = {LAST + 1} WHERE session_id = 's'")

    assert place in {one.version for one in findings(log)}


def test_an_appended_row_is_found(raw, log):
    copied(raw, "s", LAST, "s", LAST + 1)

    assert LAST + 1 in {one.version for one in findings(log)}


def test_a_row_of_another_session_is_found(raw, log):
    raw.run(f"DELETE FROM kern_events WHERE {raw.where('s')} AND version = 4")
    copied(raw, "other", 2, "s", 4)

    first = findings(log)[0]
    assert (first.version, first.problem) == (4, "changed")
    assert findings(log, "other") == ()


def test_events_without_a_head_row_are_found(raw, log):
    raw.run("DELETE FROM kern_sessions WHERE session_id = 's'")

    assert [one.problem for one in findings(log, None)] == ["orphan"]


def test_a_head_row_without_events_is_found(raw, log):
    raw.run(f"DELETE FROM kern_events WHERE {raw.where('s')}")

    assert {one.problem for one in findings(log)} == {"head"}


def test_a_renamed_session_is_found(raw, log):
    raw.run("UPDATE kern_sessions SET session_id = 'stolen' WHERE session_id = 's'")
    if raw.dialect == "postgres":
        raw.run("UPDATE kern_events SET session_id = 'stolen' WHERE session_id = 's'")

    assert len(findings(log, "stolen")) >= LAST - 1


# ------------------------------------------------------------------------------- the head row

HEAD = {
    "version": [LAST - 1, LAST + 1, 0], "turn": [0, 2, 9], "branch": [0, 4], "epoch": [1],
    "status": ["closed", "deleted"],
    "created_at": [1], "updated_at": [1], "updated_hour": [1], "fork_version": [1], "fork_parent": ["other"],
    "session_type": ["team"], "agent_id": ["other", None], "team_id": ["t"], "workflow_id": ["w"],
    "user_id": ["eve", "ad", None], "name": ["name", "nämé ", None],
}  # fmt: skip


@pytest.mark.parametrize("column", [*HEAD, "head_hash"])
def test_a_changed_head_row_is_found(raw, log, column):
    [(head_hash,)] = raw.run("SELECT head_hash FROM kern_sessions WHERE session_id = 's'")
    for value in HEAD.get(column) or each_change(head_hash):
        undo = changed(raw, "kern_sessions", column, "session_id = 's'", value)

        assert findings(log), (column, value)
        undo()
    assert is_honest(log)


# --------------------------------------------------------------------------------------- forks


@pytest.fixture
def forked(raw, log):
    """Forks of "s" at its version 4, and of that in its grandparent; "s" was erased from since."""
    log.fork("s", "child", version=4)
    log.append("child", notes(2))
    log.fork("child", "grandchild", version=3)
    log.delete("s")
    log.append("other", notes(3))
    assert is_honest(log)
    return raw


FORK = {
    "fork_parent": ["other", "grandchild", "child", "nobody", None],
    "fork_version": [3, 5, 0, -1, -(2**63), 2**63 - 1, None],
    "epoch": [0, 2], "version": [4, 6, 8], "branch": [5, 4], "turn": [0, 2], "user_id": ["eve", "ada"],
    "created_at": [1],
}  # fmt: skip


@pytest.mark.parametrize("column", FORK)
def test_a_changed_head_row_of_a_fork_is_found(forked, log, column):
    for value in FORK[column]:
        undo = changed(forked, "kern_sessions", column, "session_id = 'child'", value)

        assert findings(log, "child"), (column, value)
        undo()
    assert is_honest(log)


def test_a_session_that_is_made_a_fork_is_found(forked, log):
    forked.run("UPDATE kern_sessions SET fork_parent = 's', fork_version = 1 WHERE session_id = 'other'")

    assert findings(log, "other")


@pytest.mark.parametrize("column", ["ref", "payload", "turn", "kind", "at", "actor"])
def test_a_changed_beginning_of_a_fork_is_found(forked, log, column):
    where = f"{forked.where('child')} AND version = 5"
    value = {"payload": b"{}", "actor": "eve", "kind": 0}.get(column, 7)
    changed(forked, "kern_events", column, where, value)

    assert 5 in {one.version for one in findings(log, "child")}


def test_a_parent_that_is_chained_anew_is_found_by_its_forks(forked, log):
    """The hash at the point of the fork is in the fork's own chain."""
    changed(forked, "kern_events", "hash", f"{forked.where('s')} AND version = 4", bytes(32))

    assert {one.version for one in findings(log)} >= {4}
    assert [(one.version, one.field) for one in findings(log, "child")] == [(5, "hash")]
    assert findings(log, "grandchild") == ()  # It was forked at version 3, which is as it was.


def test_a_point_of_a_fork_that_is_gone_is_found(forked, log):
    forked.run(f"DELETE FROM kern_events WHERE {forked.where('s')} AND version = 3")

    assert [(one.version, one.field) for one in findings(log, "grandchild")] == [(4, "hash")]
    assert findings(log, "child") == ()


def test_an_erasure_that_did_not_reach_a_fork_is_found(forked, log):
    changed(forked, "kern_sessions", "epoch", "session_id = 'grandchild'", 0)

    assert [(one.session_id, one.field) for one in findings(log, None)] == [("grandchild", "epoch")]


@pytest.mark.parametrize("parent", ["child", "grandchild"])
def test_a_session_that_is_its_own_ancestor_is_found_in_finite_time(forked, log, parent):
    forked.run("UPDATE kern_sessions SET fork_parent = ? WHERE session_id = 'child'", parent)

    assert "child" in {one.session_id for one in findings(log, None)}
    assert findings(log, "child")


def test_a_change_in_what_a_fork_shares_is_a_finding_of_its_parent(forked, log):
    changed(forked, "kern_events", "actor", f"{forked.where('s')} AND version = 2", "eve")

    assert {one.session_id for one in findings(log, None)} == {"s"}


# ----------------------------------------------------------------------------- the whole report


def test_every_finding_is_told_and_the_first_is_raised(raw, log):
    for version in (3, 6):
        raw.run(f"UPDATE kern_events SET actor = 'eve' WHERE {raw.where('s')} AND version = {version}")
    raw.run(f"UPDATE kern_events SET actor = 'eve' WHERE {raw.where('other')} AND version = 1")

    report = log.verify()
    found = [(one.session_id, one.version) for one in report.findings if one.problem != SCHEMA]
    assert found == [("other", 1), ("s", 3), ("s", 6)]
    assert not report.ok
    with pytest.raises(ChainBroken) as caught:
        report.check()
    assert (caught.value.session_id, caught.value.version) == ("other", 1)
    assert (caught.value.expected, caught.value.found) == (
        report.findings[0].expected,
        report.findings[0].found,
    )


@pytest.mark.parametrize(
    ("column", "value"),
    [("payload", b"{"), ("payload", b"\xff"), ("meta", b"[1]"), ("meta", b"no"), ("codec", 7)],
)
def test_nothing_that_stands_in_a_row_makes_verify_fail(raw, log, column, value):
    raw.run(f"UPDATE kern_events SET {column} = ?", value)

    assert len(findings(log)) >= LAST


def test_a_position_is_not_hashed(raw, log):
    if raw.dialect == "postgres":
        raw.run("ALTER TABLE kern_events ALTER position DROP IDENTITY")
    raw.run("UPDATE kern_events SET position = position + 1000")

    assert is_honest(log)


def test_a_history_that_is_chained_anew_to_its_end_cannot_be_told(raw, log):
    """What a chain alone cannot see, as the documentation says: keep receipts elsewhere for that."""
    receipt = log.append("other", notes(1))
    where = f"{raw.where('other')} AND version = 3"
    [(salt, event_id, at)] = raw.run(f"SELECT salt, event_id, at FROM kern_events WHERE {where}")
    [(previous,)] = raw.run(f"SELECT hash FROM kern_events WHERE {raw.where('other')} AND version = 2")
    payload = b'{"text":"forged"}'
    scope, commit = chain.scope("default", "other"), chain.payload_commit(salt, payload, None)
    header = event_id + chain.header("note.taken", 1, 0)
    [forged] = chain.extend(
        previous, scope, 2, at, [(header, 0, None, chain.trailer(0, None, None, None), None, commit)]
    )
    raw.run(f"UPDATE kern_events SET payload = ?, hash = ? WHERE {where}", payload, forged)
    raw.run("UPDATE kern_sessions SET head_hash = ? WHERE session_id = 'other'", forged)

    assert is_honest(log)
    assert list(log.read("other"))[-1].hash != receipt.hash


# ------------------------------------------------------------------------------- missing events


def test_a_session_without_its_events_is_corrupt_and_not_empty(raw, log):
    raw.run(f"DELETE FROM kern_events WHERE {raw.where('s')}")

    for use in (lambda: list(log.read("s")), lambda: log.fork("s", "f", version=2)):
        with pytest.raises(StoreCorrupt, match="kern-events verify"):
            use()
