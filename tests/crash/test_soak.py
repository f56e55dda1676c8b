"""A soak: everything at once, short here, and for minutes with `--long`."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from typing import Any

import pytest

from tests import databases
from tests.soak import Plan, soak
from tests.writers import eventually

LONG_S = 150.0
MEMORY_KB = 96 << 10  # beside half a kilobyte for each event that the account itself remembers


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Any) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/log.db"
    address: str = request.getfixturevalue("postgres_url")
    return address


def is_clean(account: Counter[str]) -> bool:
    """Whether nothing is wrong in an account."""
    counts = {"events", "kills", "memory, kB"}
    return not any(count for what, count in account.items() if what not in counts)


def held(url: str, redis_url: str, seconds: float) -> Counter[str]:
    account = soak(Plan(url, redis_url, seconds))
    print(dict(account))
    assert is_clean(account), account
    if url.startswith("postgresql"):
        with closing(databases.connect(url)) as admin:
            others = (
                "SELECT FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            eventually(lambda: not admin.execute(others).fetchall(), "no session is left")
    return account


def test_a_little_of_everything_at_once_loses_and_doubles_nothing(url: str, redis_url: str) -> None:
    assert held(url, redis_url, 0.3)["kills"] > 0


@pytest.mark.long
def test_everything_at_once_for_minutes(url: str, redis_url: str) -> None:
    account = held(url, redis_url, LONG_S)

    assert account["kills"] > LONG_S / 4
    assert account["memory, kB"] < MEMORY_KB + account["events"] // 2


def test_a_consumer_that_tells_too_late_and_a_leak_are_caught(tmp_path: Any, redis_url: str) -> None:
    account = soak(Plan(f"sqlite:///{tmp_path}/log.db", redis_url, 0.3, late=True, leaks=True))

    assert account["told: lost"] > 0
    assert account["more descriptors"] > 0
