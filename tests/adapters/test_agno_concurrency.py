"""Two processes with ten runs each on one session: nothing is lost, where Agno's own Dbs lose some."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.agno_replay import check_replay

KEYS = [f"k{number}" for number in range(20)]
OURS = "kern_events.adapters.agno"


@pytest.fixture(scope="module")
def workers():
    """What starts the processes."""
    command = [sys.executable, "-m", "tests.agno_worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.stdin.close()


@pytest.fixture(params=["new", "known"])
def begun(request, place, workers):
    """Whether the session is there before."""
    if request.param == "known":
        run_in_processes(workers, place, f"{OURS}:{kind(place)}", [["first"]])
    return request.param == "known"


def kind(place, *, is_async=False, ours=True):
    names = {"sqlite": "SqliteDb", "postgres": "PostgresDb"}
    return ("Kern" if ours else "") + ("Async" if is_async else "") + names[place.backend]


def run_in_processes(workers, place, name, parts):
    options = dict(place.options)
    if "Async" in name and place.backend == "postgres":
        options["db_url"] = options["db_url"].replace("+psycopg:", "+psycopg_async:")
    print(json.dumps([[name, options, part] for part in parts]), file=workers.stdin, flush=True)
    assert json.loads(workers.stdout.readline()) == [0] * len(parts)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_twenty_runs_on_one_session_are_all_kept(place, begun, workers, is_async):
    run_in_processes(workers, place, f"{OURS}:{kind(place, is_async=is_async)}", [KEYS[:10], KEYS[10:]])
    db = place.open()
    session = db.get_session("s")

    more = int(begun)
    data = session.session_data
    assert len(session.runs) == 20 + more
    assert {*KEYS} <= data["session_state"].keys()
    assert data["session_metrics"]["input_tokens"] == (20 + more) * 20
    assert data["session_metrics"]["output_tokens"] == (20 + more) * 10
    rows, _ = db.get_runs(session_id="s", deserialize=False)
    assert [row["run_index"] for row in rows] == list(range(20 + more))
    assert [turn.status for turn in db.sessions.load("s").turns] == ["completed"] * (20 + more)
    check_replay(db, "s")


def test_agnos_own_dbs_lose_some(place, workers):
    """The control: without it, the test above might run one after the other."""
    package = {"sqlite": "agno.db.sqlite", "postgres": "agno.db.postgres"}[place.backend]
    run_in_processes(workers, place, f"{package}:{kind(place, ours=False)}", [KEYS[:10], KEYS[10:]])

    data = place.plain().get_session("s").session_data
    lost = len(KEYS) - len(data["session_state"])
    assert lost > 0
    assert data["session_metrics"]["input_tokens"] < 20 * 20
