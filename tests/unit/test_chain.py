"""The hash chain is the one of its golden vectors, on every backend."""

from __future__ import annotations

import inspect
import json
from hashlib import sha256
from pathlib import Path

import pytest

import tests.chain_reference as reference
from kern_events import Draft, SessionLog, chain
from kern_events.batch import prepare, prepare_draft

GOLDEN = json.loads((Path(__file__).parent.parent / "golden_chain.json").read_text(encoding="utf-8"))
SESSIONS = GOLDEN["sessions"]
CASES = pytest.mark.parametrize("session", SESSIONS, ids=lambda session: session["session_id"])


def unhex(value):
    return None if value is None else bytes.fromhex(value)


def events_of(session):
    return [event for append in session["appends"] for event in append["events"]]


def drafts_of(append):
    return [
        Draft(
            event["type"],
            json.loads(event["payload"]),
            type_version=event["type_version"],
            actor=event["actor"],
            meta=event["meta"] and json.loads(event["meta"]),
            native=unhex(event["native"]),
            turn=event["turn"] if event["kind"] == 3 else None,
            event_id=unhex(event["event_id"]),
        )
        for event in append["events"]
    ]


def record(log, session, append):
    """One append of the table; a restore by the door that its verb will use."""
    [first, *_] = append["events"]
    if first["kind"] != 3:
        return log.append(session["session_id"], drafts_of(append), idempotency_key=first["idempotency_key"])
    [draft] = drafts_of(append)
    batch = prepare(session["namespace"], session["session_id"], [draft], reserved=True)
    event = prepare_draft(draft, unhex(first["salt"]), ref=first["ref"], reserved=True)
    return log._record(batch._replace(events=(event,))).receipt


@CASES
def test_the_reference_gives_the_golden_numbers(session):
    previous = reference.genesis(session["namespace"], session["session_id"])
    assert previous.hex() == session["genesis"]
    for event in events_of(session):
        previous = reference.event_hash(previous, session["namespace"], session["session_id"], event)

        assert previous.hex() == event["hash"]


@CASES
def test_every_backend_gives_the_golden_numbers(backend_url, session, monkeypatch):
    """With the clock, the ids and the salts of the table, the recorded hashes are those of the table."""
    with SessionLog(backend_url, namespace=session["namespace"]) as log:
        assert log.head(session["session_id"]).hash.hex() == session["genesis"]
        for append in session["appends"]:
            salts = b"".join(unhex(event["salt"]) for event in append["events"])
            with monkeypatch.context() as fixed:
                fixed.setattr("os.urandom", lambda size, salts=salts: salts[:size])
                fixed.setattr("time.time_ns", lambda append=append: append["clock_us"] * 1_000)
                receipt = record(log, session, append)
            assert receipt.hash.hex() == append["events"][-1]["hash"]

        recorded = list(log.read(session["session_id"]))
        rows = log._store.rows(session["namespace"], session["session_id"], 0, None, 99)
        assert log.verify().ok
    for event, row, wanted in zip(recorded, rows, events_of(session), strict=True):
        assert (event.version, event.kind, event.turn) == (wanted["version"], wanted["kind"], wanted["turn"])
        assert (event.at_us, event.ref, event.hash.hex()) == (wanted["at_us"], wanted["ref"], wanted["hash"])
        assert bytes(row[14]) == wanted["payload"].encode()  # The exact bytes of the table.


def test_forks_link_to_their_parents():
    for fork in GOLDEN["forks"]:
        parent_hash, scope = unhex(fork["parent_hash"]), chain.scope(fork["namespace"], fork["session_id"])
        ours = chain.fork_genesis(scope, fork["parent"], fork["version"], parent_hash)
        theirs = reference.fork_genesis(
            fork["namespace"], fork["session_id"], fork["parent"], fork["version"], parent_hash
        )

        assert ours.hex() == theirs.hex() == fork["genesis"]


def test_a_genesis_is_of_one_session_alone():
    pairs = [("a", "bc"), ("ab", "c"), ("abc", ""), ("", "abc"), ("a", "b c"), ("default", "s")]

    assert len({chain.genesis(chain.scope(*pair)) for pair in pairs}) == len(pairs)


def test_an_empty_native_item_is_not_a_missing_one():
    commits = {chain.payload_commit(bytes(16), b"{}", native) for native in (None, b"", b"\0")}

    assert len(commits) == 3


def test_a_commitment_depends_on_its_salt():
    assert chain.payload_commit(bytes(16), b"{}", None) != chain.payload_commit(b"x" * 16, b"{}", None)


@pytest.mark.parametrize("a", range(4))
def test_no_two_fields_can_be_taken_for_each_other(a):
    """Lengths stand before texts, so that moving a byte from one to the next changes the hash."""
    event = dict(events_of(SESSIONS[1])[0])
    moved = {**event, **[{"actor": "importe", "meta": "r" + event["meta"]},
                         {"meta": event["meta"] + "j", "idempotency_key": "ob-1"},
                         {"actor": None, "meta": event["actor"] + event["meta"]},
                         {"type": "session.create", "type_version": 0x64000001 & 0xFFFFFFFF}][a]}  # fmt: skip
    scope = (b"\0" * 32, "acme/eu", "s")

    assert reference.event_hash(*scope, event) != reference.event_hash(*scope, moved)


def test_the_layout_is_written_where_it_is_implemented():
    for words in ("kern/payload/v1", "kern/event/v1", "kern/genesis/v1", "kern/fork/v1", "big-endian"):
        assert words in (inspect.getdoc(chain) or "")


def test_the_golden_numbers_are_the_ones_that_were_released():
    """The table itself is pinned: a released chain never changes."""
    hashes = [event["hash"] for session in SESSIONS for event in events_of(session)]
    hashes += [fork["genesis"] for fork in GOLDEN["forks"]]

    assert sha256("".join(hashes).encode()).hexdigest() == PINNED


PINNED = "19b3bdc29439764ea013065d0d4e2cf9ab4edb42fda6c02866d7bef95cac9c96"
