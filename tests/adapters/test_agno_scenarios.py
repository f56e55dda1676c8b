"""Whatever Agno does with a session, the log tells exactly what it has stored."""

from __future__ import annotations

import asyncio

import pytest

from tests.agno_replay import check_replay, stored_rows
from tests.agno_scenarios import ASYNC_SCENARIOS, SCENARIOS


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_log_tells_what_agno_has_stored(place, name):
    session_ids = SCENARIOS[name](place.open)

    check_all(place, session_ids)


@pytest.mark.parametrize("name", ASYNC_SCENARIOS)
def test_the_log_tells_what_agno_has_stored_from_a_loop(place, name):
    session_ids = asyncio.run(ASYNC_SCENARIOS[name](place.open_async))

    check_all(place, session_ids)


def check_all(place, session_ids):
    db = place.open()
    gone = [each for each in session_ids if stored_rows(db, each)[0] == "null"]
    for session_id in session_ids:
        if session_id in gone:
            assert db.sessions.head(session_id).status == "deleted"
            assert db.sessions.verify(session_id).ok
        else:
            check_replay(db, session_id)
    assert gone == [each for each in session_ids if "gone" in each]
    assert db.write_errors == 0
