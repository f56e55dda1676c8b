"""Threads that are stopped by an exception from outside, while they share a log."""

from __future__ import annotations

import pytest

from kern_events import SessionLog
from kern_events.store import forks
from kern_events.store.group import GroupCommit
from tests.thrown import account_of
from tests.writers import note, pick

# What is thrown while the driver connects leaves a connection that nobody has. It is closed when collected.
pytestmark = pytest.mark.filterwarnings("ignore:.* was deleted while still open:ResourceWarning")


@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=pytest.mark.long)])
def test_a_thread_that_is_stopped_takes_nobody_with_it(url, count):
    with SessionLog(url, lock_timeout_s=30.0) as log:
        log.append("s0", [note("begins")])
        account = account_of(log, count, pick("thrown"))

        assert account["thrown"] == account["arrived"] == count, dict(account)
        for harm in ("hang", "lost", "doubled", "untrue", "findings"):
            assert account[harm] == 0, dict(account)
        with SessionLog(url) as other:
            other.append("s0", [note("last")])  # No lock is held.


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_leader_that_leaves_without_a_word_is_caught(url, monkeypatch):
    """Positive control: the harness sees those who wait for it."""
    monkeypatch.setattr(GroupCommit, "_give_back", lambda *_: None)
    with SessionLog(url) as log:
        log.append("s0", [note("begins")])
        account = account_of(log, 200, pick("leaves"), patience_s=0.5)
    forks._all.discard(log._store)  # It waits for ever, and no fork is to wait for that.

    assert account["hang"] > 0
