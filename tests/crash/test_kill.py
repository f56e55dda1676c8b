"""kill -9 of appending processes: nothing acknowledged is lost, nothing is doubled, no gap, chain whole.

50 cycles on SQLite here, 1,000 with `--long`; fewer where several processes die in each. A child that
acknowledges before the commit has to be caught by the same harness.
"""

from __future__ import annotations

import pytest

from tests import crashes, databases
from tests.writers import eventually, pick


def cycles(short, long):
    return pytest.mark.parametrize(
        "count",
        [pytest.param(short, id=f"{short}"), pytest.param(long, id=f"{long}", marks=pytest.mark.long)],
    )


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/log.db"


def assert_whole(account, kills):
    assert account["kills"] == kills
    assert account["acknowledged"] > kills  # They were killed at work, not before it.
    for harm in ("lost", "doubled", "part", "gaps", "unknown", "findings"):
        assert account[harm] == 0, dict(account)


@cycles(50, 1_000)
def test_a_process_killed_at_any_moment_loses_nothing(url, count):
    account = crashes.cycles(crashes.Plan(url), count, pick("kill"))

    assert_whole(account, count)


def test_a_process_that_acknowledges_too_early_is_caught(url):
    """Positive control: the harness sees what an honest log does not do."""
    account = crashes.cycles(crashes.Plan(url, early=True), 50, pick("early"))

    assert account["lost"] > 0


@cycles(12, 300)
def test_three_processes_on_one_file_lose_nothing(url, count):
    account = crashes.cycles(crashes.Plan(url, processes=3), count, pick("three"))

    assert_whole(account, 3 * count)


@cycles(12, 300)
@pytest.mark.parametrize("facade", ["sync", "async"])
def test_a_group_commit_killed_at_any_moment_loses_nothing(url, facade, count):
    account = crashes.cycles(crashes.Plan(url, threads=4, facade=facade), count, pick("group"))

    assert_whole(account, count)


@cycles(10, 300)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_client_of_postgres_killed_at_any_moment_loses_nothing(postgres_url, threads, count):
    account = crashes.cycles(crashes.Plan(postgres_url, threads=threads), count, pick("client"))

    assert_whole(account, count)
    assert eventually(lambda: not others(postgres_url))


def others(url):
    with databases.connect(url) as connection:
        return connection.execute(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchone()[0]
