"""What a fork was handed down (name, user and metadata of its parent) goes with the parent; its own stays."""

from __future__ import annotations

import pytest

from kern_events import Draft, SessionLog, import_events, spi
from tests import facade
from tests.writers import note

SECRET = "Ada Lovelace"
CREATED = Draft(
    "session.created", {"user_id": "ada", "agent_id": "a", "name": SECRET, "metadata": {"who": SECRET}}
)


def described(log, session_id):
    """What is listed of a session, and its metadata."""
    [info] = [info for info in log.sessions() if info.session_id == session_id]
    return info.user_id, info.name, facade.sync_of(log)._metadata(session_id)


def family(log):
    """A session, a fork of it that was restored, and a fork of that one."""
    log.append("s", [CREATED, note("said")])
    log.fork("s", "f")
    log.append("f", [note("own")])
    restored(log, "f")
    log.fork("f", "g")


def restored(log, session_id):
    """Go back to the beginning, which carries on what is not rewound."""
    user_id, name, metadata = described(log, session_id)
    kept = {"user_id": user_id, "name": name, "metadata": metadata}
    spi.restore(facade.sync_of(log), session_id, 1, kept, log.head(session_id), actor=None)


def payloads(log):
    return repr([(event.payload, event.native) for event in log.read_all()])


def test_name_user_and_metadata_go_with_the_parent(log):
    family(log)
    assert described(log, "g") == ("ada", SECRET, {"who": SECRET})
    log.delete("s")

    for session_id in "fg":
        assert described(log, session_id) == (None, None, {})
    assert SECRET not in payloads(log)
    assert log.verify().findings == ()


def test_a_fork_goes_on_and_keeps_what_it_says_itself(log):
    family(log)
    log.append("f", [Draft("session.described", {"name": "mine", "metadata": {"n": 1}})])
    log.delete("s")
    assert described(log, "f") == (None, "mine", {"n": 1})

    restored(log, "f")
    log.append("f", [note("more"), Draft("session.renamed", {"name": "later"})])
    log.fork("f", "h")
    for session_id in "fh":
        assert described(log, session_id) == (None, "later", {"n": 1})
    assert log.verify().findings == ()


def test_it_goes_through_every_fork_below_and_no_other(log):
    family(log)
    log.append("other", [CREATED])
    log.fork("other", "others")
    log.delete("f")

    assert described(log, "g") == (None, None, {"who": SECRET})  # s has it, and g goes on from it.
    assert described(log, "s") == described(log, "others") == ("ada", SECRET, {"who": SECRET})
    assert log.verify().findings == ()


def test_a_fork_of_what_began_again_is_told_anew(log):
    family(log)
    log.delete("s")
    log.append("s", [Draft("session.created", {"name": "again"})])
    log.fork("s", "h")

    assert described(log, "h") == (None, "again", {})
    assert log.verify().findings == ()
    log.delete("s")
    assert described(log, "h") == (None, None, {})
    assert log.verify().findings == ()


def test_the_feed_shows_an_event_without_content(log):
    family(log)
    log.delete("s")

    erased = {event.session_id: event.erased for event in log.read_all() if event.type == "session.forked"}
    assert erased == {"f": True, "g": True}


@pytest.mark.parametrize("before", [False, True])
def test_an_export_takes_the_erasure_along(log, before, tmp_path):
    family(log)
    sync = facade.sync_of(log)
    early = [line for session_id in "sfg" for line in list(sync.export(session_id))[1:]]
    header = next(iter(sync.export("s")))
    log.delete("s")
    late = list(sync.export("g"))
    with SessionLog(f"sqlite:///{tmp_path}/other.db", namespace=log.namespace) as other:
        if before:  # The other log has it all, and hears of the deletion by the file.
            assert import_events(other, [header, *early]).ok
        assert import_events(other, late).ok

        assert SECRET not in payloads(other)
        assert described(other, "g") == (None, None, {})
        assert other.verify().findings == ()


@facade.only_on("sqlite", "postgres")
def test_nobody_erases_it_by_hand(log):
    family(log)
    with pytest.raises(Exception, match="append-only"):
        erase_by_hand(facade.store_of(log), log.namespace, "f")

    assert described(log, "f")[1] == SECRET


def erase_by_hand(store, namespace, session_id):
    """The statement of an erasure, where nothing was erased."""
    commit = bytes(32)
    if store.dialect == "sqlite":
        with store._file.reading() as driver:
            driver.execute("PRAGMA query_only = OFF")
            driver.execute(
                "UPDATE kern_events SET payload = NULL, native = NULL, salt = NULL, payload_commit = ? "
                "WHERE kind = 4 AND session = "
                "(SELECT id FROM kern_sessions WHERE namespace = ? AND session_id = ?)",
                (commit, namespace, session_id),
            )
    else:
        store._server.in_transaction(
            lambda session, bases: session.cursor.execute(
                "UPDATE kern_events SET payload = NULL, native = NULL, salt = NULL, payload_commit = %b "
                "WHERE kind = 4 AND namespace = %b AND session_id = %b",
                (commit, namespace, session_id),
            )
        )
