"""Whatever happens to Agno's sessions, by whomever, in any order: rows and log agree after each step."""

from __future__ import annotations

import pytest

from kern_events import Sessions
from tests.agno_clients import Client
from tests.agno_histories import History
from tests.facade import LoopThread

COUNTS = {"sqlite": 30, "postgres": 20}
TIMES = [pytest.param(1, id="50"), pytest.param(10, id="500", marks=pytest.mark.long)]
STEPS = 6


@pytest.fixture
def loop():
    thread = LoopThread()
    yield thread
    thread.close()


@pytest.mark.parametrize("times", TIMES)
def test_rows_and_log_agree_after_each_step(place, loop, times):
    """50 on both databases together; Dbs of ours, sync and async, and a plain one take the steps in turn."""
    ours = [Client(place.open(), loop), Client(place.open_async(), loop)]
    plain, log = Client(place.plain(), loop), ours[0].log
    address, schema = ours[0].own.db_engine.url, getattr(ours[0].own, "db_schema", None)
    with Sessions(address, namespace=log.namespace, schema=schema) as elsewhere:
        for number in range(times * COUNTS[place.backend]):
            History(ours, plain, elsewhere, f"{place.backend} {number}").play(STEPS)
    ours[1].db.close()
