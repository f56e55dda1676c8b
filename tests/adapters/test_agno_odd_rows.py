"""Rows that this release would refuse, in a log that Agno's sessions are read from."""

from __future__ import annotations

from kern_events import Draft
from tests.adapters.test_agno_edges import begun, run_ids
from tests.agno_replay import replayed_rows, stored_rows
from tests.writers import unchecked

ODD = [[5], None, 5, [["set"]], [["set", "x", 1]], [["append", [], [1]]], {"a": 1}]


def test_ops_that_are_none_change_nothing_for_anybody(place):
    db = begun(place.open(), "r1", n=1)
    begun(db, "r2", session_id="other")
    with unchecked():
        db.sessions.append("s", [Draft("state.changed", {"ops": ops}) for ops in ODD])

    assert {session.session_id for session in db.get_sessions()} == {"s", "other"}
    assert db.get_session("s").session_data["session_state"] == {"n": 1}
    assert run_ids(db) == ["r1"]
    assert replayed_rows(db, "s") == stored_rows(db, "s")
