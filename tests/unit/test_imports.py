"""Files of events that nobody exported: what is hostile is reported, and never recorded."""

from __future__ import annotations

import functools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kern_events import Draft, SessionLog, chain, import_events
from kern_events.errors import InvalidEvent
from tests.bundles import everything, exported, fill, forged, mutated
from tests.writers import note, notes


@pytest.fixture
def log():
    with SessionLog("memory:") as log:
        yield log


@pytest.fixture
def memory():
    with SessionLog("memory:") as memory:
        yield memory


def test_a_file_that_is_cut_off_is_told(log, memory):
    log.append("s", notes(4))
    report = import_events(memory, list(log.export("s"))[:-1])

    assert report.problems[0].reason == "its events end at version 3 of 4: the file is cut off"
    assert memory.head("s").version == 0


def test_what_does_not_hash_to_what_it_says_is_reported_by_its_line(log, memory):
    log.append("s", [note("one"), note("two"), note("three")])
    lines = [line.replace(b"two", b"2wo") for line in log.export("s")]
    report = import_events(memory, lines)

    [problem] = report.problems
    assert (problem.line, problem.kind, problem.session_id) == (4, "bad_line", "s")
    assert problem.reason == "hash: the event does not hash to what the line says"
    assert memory.head("s").version == 0


def test_the_other_sessions_of_a_file_are_recorded(log, memory):
    for session_id in "abc":
        log.append(session_id, notes(2))
    header, *lines = [line for session_id in "abc" for line in log.export(session_id)]
    lines = [line for line in lines if line != header]
    lines[4] = b"nonsense\n"
    report = import_events(memory, [header, *lines])

    assert (report.sessions, report.new, report.failed, report.bad_lines) == (3, 2, 1, 1)
    assert [memory.head(session_id).version for session_id in "abc"] == [2, 0, 2]


def deleted(last):
    """A deletion of everything up to a version."""
    return {"type": "session.deleted", "kind": 6, "payload": "{}", "meta": f'{{"erased":[[1,{last}]]}}'}


CLOSED = {"type": "session.closed", "kind": 6, "payload": None, "salt": None, "payload_commit": "00" * 32}
FORGERIES = {
    "a kind that does not fit the type": lambda row: row.update(kind=1),
    "a turn that has not started": lambda row: row.update(turn=5),
    "a turn that skips numbers": lambda row: row.update(type="turn.started", kind=1, turn=row["version"]),
    "a deleted session that goes on": lambda row: row["version"] == 2 and row.update(deleted(1)),
    "a closing that is erased": lambda row: row.update(deleted(2) if row["version"] == 3 else CLOSED),
    "a target for an event that has none": lambda row: row.update(ref=1),
    "a time that falls": lambda row: row.update(at=row["at"] - row["version"]),
    "a time past the year 9999": lambda row: row.update(at=2**63 - 1),
    "an actor with a control character": lambda row: row.update(actor="\x1b"),
    "a type that is no id": lambda row: row.update(type=""),
    "a schema version that no database holds": lambda row: row.update(type_version=2**31),
    "the same key twice": lambda row: row.update(idempotency_key="k"),
    "a payload that is no JSON": lambda row: row.update(payload="{"),
    "a payload that is no object": lambda row: row.update(payload="[]"),
    "a payload that is no UTF-8": lambda row: row.update(payload={"base64": "/w=="}),
    "an integer outside 64 bits": lambda row: row.update(payload=json.dumps({"n": 2**70})),
    "nesting": lambda row: row.update(payload='{"n":' + "[" * 70 + "]" * 70 + "}"),
    "a huge payload": lambda row: row.update(payload=json.dumps({"n": "x" * (1 << 20)})),
    "a number that is no float": lambda row: row.update(payload='{"n":1e999}'),
    "a key twice behind a colon": lambda row: row.update(payload='{"n":"10","n":"99\\u003a"}'),
    "a key of meta twice behind a colon": lambda row: row.update(meta='{"n":"10","n":"99\\u003A"}'),
    "meta that is no object": lambda row: row.update(meta="7"),
    "a codec that nobody knows": lambda row: row.update(codec=1),
    "a key that nobody has": lambda row: row.update(key_commit="00" * 32),
    "short salt": lambda row: row.update(salt="00"),
    "a commitment beside the content": lambda row: row.update(payload_commit="00" * 32),
    "erased without an erasure": lambda row: row.update(payload=None, salt=None, payload_commit="00" * 32),
    "a restore to the future": lambda row: row.update(type="session.restored", kind=3, ref=9),
    "a restore to a turn that was not there": lambda row: row.update(
        type="session.restored", kind=3, ref=0, turn=1
    ),
    "a fork in the middle": lambda row: row.update(type="session.forked", kind=4, ref=1),
    "a deletion of something else": lambda row: row.update(
        type="session.deleted", kind=6, payload="{}", meta='{"erased":[[1,1]]}'
    ),
    "an erasure that erased nothing": lambda row: row.update(
        type="session.erased", kind=5, payload="{}", meta='{"erased":[[1,1]]}'
    ),
    "an erasure of nonsense": lambda row: row.update(
        type="session.erased", kind=5, payload="{}", meta='{"erased":[[true,1e3]]}'
    ),
    "a close with content": lambda row: row.update(type="session.closed", kind=6),
    "a name that no listing takes": lambda row: row.update(type="session.renamed", payload='{"name":7}'),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_row_is_reported_although_it_hashes_to_what_it_says(log, memory, forgery):
    log.append("s", [note("one"), note("two"), note("three")])
    lines = forged(log.export("s"), log.namespace, lambda row: row["version"] > 1 and FORGERIES[forgery](row))
    report = import_events(memory, lines)

    assert not report.ok
    assert memory.head("s").version == 0


def test_what_is_forged_by_nothing_is_imported(log, memory):
    """Positive control of the test before."""
    log.append("s", notes(3))

    assert import_events(memory, forged(log.export("s"), log.namespace, lambda row: None)).ok


def test_a_payload_with_an_escaped_colon_is_imported(log, memory):
    log.append("s", notes(1))
    escaped = '{"\\u003a":"\\\\u003a:"}'
    lines = forged(log.export("s"), log.namespace, lambda row: row.update(payload=escaped))

    assert import_events(memory, lines).ok


def test_a_deletion_erases_what_the_file_has_before_it(log, memory):
    log.append("s", [note("secret"), note("secret"), note("three")])
    lines = forged(log.export("s"), "default", lambda row: row["version"] == 3 and row.update(deleted(2)))

    assert b"secret" in b"".join(lines)
    assert import_events(memory, lines).ok
    assert "secret" not in str(everything(memory, ["s"]))
    assert memory.verify().ok


@pytest.mark.parametrize("change", [{"ref": 1}, {"turn": 0}, {"turn": 2}, {"type": "note.taken", "kind": 0}])
def test_the_first_event_of_a_fork_says_where_it_goes_on(log, memory, change):
    log.append("s", [Draft("turn.started", {}), note()])
    log.fork("s", "f")
    header, *parent, fork, row = log.export("f")
    parent_hash = bytes.fromhex(json.loads(parent[-1])["hash"])
    changed = forged([header, fork, row], "default", lambda row: row.update(change), parent_hash)
    import_events(memory, [header, *parent])

    assert import_events(memory, changed, link_parents=True).bad_lines == 1
    assert import_events(memory, [header, fork, row], link_parents=True).ok


def partly_erased(row):
    """The first event erased, and the second one says so."""
    if row["version"] == 2:
        told_of(row, 1)
    else:
        erase(row)


def told_of(row, version):
    """The event says that another one was erased."""
    erased = json.dumps({"erased": [[version, version]]})
    row.update(type="session.erased", kind=5, payload="{}", meta=erased)


def erase(row):
    """The event has no content any more."""
    commit = chain.payload_commit(bytes.fromhex(row["salt"]), row["payload"].encode(), None)
    row.update(payload=None, salt=None, payload_commit=commit.hex())


def test_a_session_that_was_erased_in_part_is_imported_as_that(log, memory):
    log.append("s", notes(2))

    assert import_events(memory, forged(log.export("s"), "default", partly_erased)).ok
    assert [event.erased for event in memory.read("s")] == [True, False]
    assert memory.verify().ok


def test_metadata_of_a_fork_is_never_taken_from_behind_its_point(log, memory):
    log.append("a", [Draft("session.created", {"metadata": {"n": 1}})])
    log.append("a", [Draft("session.described", {"metadata": {"n": 2}})])
    log.fork("a", "b", version=2)
    log.fork("b", "c", version=1)
    log.append("c", notes(1))
    *parents, section, first, second = log.export("c")
    hash = bytes.fromhex(json.loads(parents[2])["hash"])

    def change(row):
        return erase(row) if row["version"] == 2 else told_of(row, 2)

    erased = forged([parents[0], section, first, second], "default", change, hash)

    assert import_events(memory, [*parents, *erased[1:]]).ok
    memory.fork("c", "d", version=1)
    assert next(memory.read("d")).payload["metadata"] == {"n": 1}


def test_a_part_that_is_there_and_was_erased_since_is_told(log, memory):
    log.append("s", notes(1))
    import_events(memory, log.export("s"))
    log.append("s", notes(1))
    report = import_events(memory, forged(log.export("s"), "default", partly_erased))

    assert report.problems[0].reason == "a part of it was erased since, which this release cannot do here"
    assert memory.head("s").version == 1


FIELDS = [
    *(None, True, -1, 2**63, 2**70, 1.5, "", "\x1b", "zz", [], {}, {"base64": "?"}, {"base64": 1}),
    "x" * 10_000,
]


def test_a_field_of_another_type_is_reported_and_never_raised(log, memory):
    log.append("s", [note("one")])
    header, section, line = log.export("s")
    lines = [header]
    for good in (section, line):
        for field in json.loads(good):
            for value in FIELDS:
                lines += [section, json.dumps({**json.loads(good), field: value}).encode()]
    report = import_events(memory, lines)

    assert report.bad_lines > 250
    assert "\x1b" not in str(report.problems) and "xxx" not in str(report.problems)
    assert memory.verify().ok


STRANGE = [
    b"\n", b"null\n", b"[]\n", b"7\n", b'"\n', b"{}\n", b"\xff\xfe\n", b"\0\n", b"[" * 200_000,
    b'{"version":1}\n', b'{"a":' * 200_000, b"9" * 5_000, b'{"version":' + b"9" * 5_000 + b"}",
    b'{"session_id"', b'{"session_id":"x","version":0,"fork_parent":null,"fork_version":null}',
    b'{"session_id":"x","version":3,"fork_parent":"x","fork_version":1}',
    b'{"session_id":"x","version":3,"fork_parent":null,"fork_version":1}',
    b'{"session_id":"\\u001b","version":3,"fork_parent":null,"fork_version":null}',
]  # fmt: skip


def test_a_line_that_is_none_is_reported_and_never_raised(log, memory):
    log.append("s", [note("one")])
    header, section, line = log.export("s")
    report = import_events(memory, [header, section, line, *STRANGE])

    assert report.bad_lines == len(STRANGE) - 1  # An empty line is skipped.
    assert memory.head("x").version == 0


@pytest.mark.parametrize("line", [line for line in STRANGE if line.strip()])
def test_a_file_that_does_not_begin_like_one_is_refused(memory, line):
    with pytest.raises(InvalidEvent):
        import_events(memory, [line])


# ---------------------------------------------------------------------------------- changed bytes


@functools.cache
def original():
    """Sessions of each kind: their ids, the bytes of a file of them, and what an import of it records."""
    with SessionLog("memory:") as log, SessionLog("memory:") as whole:
        ids = fill(log)
        data = exported(log, "fork of it", "second orphan")
        assert import_events(whole, data.splitlines(keepends=True)).ok
        return ids, data, everything(whole, ids)


@settings(deadline=None, max_examples=1_000)
@given(st.integers(0, 2**32), st.sampled_from(["change", "drop", "insert"]), st.integers(0, 255))
def test_any_changed_byte_is_reported_or_changes_nothing(place, how, byte):
    ids, data, whole = original()
    changed = mutated(data, place % len(data), how, byte)
    with SessionLog("memory:") as log:
        try:
            report = import_events(log, changed.splitlines(keepends=True))
        except InvalidEvent:
            assert not log.sessions()  # It was in the first line.
            return

        found = everything(log, ids)
        assert all(found[id] in (whole[id], (None, [])) for id in ids)
        assert not report.ok or found == whole
        assert log.verify().ok
