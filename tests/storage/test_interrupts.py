"""Ctrl-C in a process that writes to SQLite and then idles, as a notebook does."""

from __future__ import annotations

import sqlite3
import sys
import threading

import pytest

from kern_events import SessionLog
from kern_events.store import forks
from tests.interrupts import at_every_place
from tests.sigints import Plan, interrupts
from tests.writers import PATIENCE_S, eventually, note, pick, texts


class TimeIsUp(Exception):
    """What a signal handler of an application raises."""


def test_an_interrupted_append_leaves_nobody_waiting(tmp_path):
    """Wherever it comes, others can write at once, and so can this process."""
    other = sqlite3.connect(tmp_path / "log.db", isolation_level=None, timeout=0)
    with SessionLog(f"sqlite:///{tmp_path}/log.db") as log:
        log.append("s", [note()])

        def act(place, interrupt):
            interrupt.arm()
            log.append("s", [note(place)])

        for _, where in at_every_place(act):
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                raise AssertionError(f"the lock is held after an interrupt at {where}") from error
            other.execute("ROLLBACK")
        other.close()
        log.append("s", [note("last")])
        assert log.verify().ok


# What is open at that moment is closed when it is collected.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_while_it_connects_locks_nobody_out(tmp_path):
    """What all logs of a process share is free again."""
    url = f"sqlite:///{tmp_path}/log.db"
    with SessionLog(url) as log:
        log.append("s", [note()])

    def act(place, interrupt):
        with SessionLog(url) as log:
            interrupt.arm()
            log.head("s")
            sys.setprofile(None)

    for _, where in at_every_place(act):
        for shared in (forks._door, forks._registering, forks._forking):
            assert shared.acquire(blocking=False), where
            shared.release()
    with SessionLog(url) as log:
        assert log.verify().ok


def test_what_a_signal_handler_raises_is_seen_by_its_thread(tmp_path):
    """Also where that thread is committing for others: they get their receipts."""
    other = sqlite3.connect(tmp_path / "log.db", isolation_level=None, check_same_thread=False)
    with SessionLog(f"sqlite:///{tmp_path}/log.db", lock_timeout_s=PATIENCE_S) as log:
        log.append("s", [note("begins")])
        group, expected = log._store._group, ["begins"]

        def act(place, interrupt):
            gone = threading.Event()
            other.execute("BEGIN IMMEDIATE")
            first = threading.Thread(target=log.append, args=("s", [note(f"{place} first")]))
            first.start()
            eventually(lambda: group._leader is not None and not group._queue, "somebody leads")

            def follow():
                eventually(lambda: group._queue or gone.is_set(), "the thread that leads next waits")
                log.append("s", [note(f"{place} follows")])

            def let_go():
                eventually(lambda: len(group._queue) == 2 or gone.is_set(), "both wait")
                other.execute("ROLLBACK")

            threads = [first, *(threading.Thread(target=work) for work in (follow, let_go))]
            for thread in threads[1:]:
                thread.start()
            try:
                interrupt.arm()
                log.append("s", [note(f"{place} leads")])
            finally:
                sys.setprofile(None)
                gone.set()
                for thread in threads:
                    thread.join(PATIENCE_S)
                    assert not thread.is_alive()

        for place, _ in at_every_place(act, step=3, kind=TimeIsUp):
            expected += [f"{place} first", f"{place} follows"]
        assert {text for text in expected} <= set(texts(log.read("s")))
        assert len(texts(log.read("s"))) == len(set(texts(log.read("s"))))
        assert log.verify().ok
    other.close()


def sigints(short, long):
    counts = [pytest.param(short, id=f"{short}"), pytest.param(long, id=f"{long}", marks=pytest.mark.long)]
    return pytest.mark.parametrize("count", counts)


def assert_nothing_stays(account, count):
    assert account["signals"] == account["arrived"] == count, dict(account)
    assert account["acknowledged"] > count
    for harm in ("held", "lost", "doubled", "untrue", "findings"):
        assert account[harm] == 0, dict(account)


@sigints(240, 7_000)
def test_whatever_a_signal_interrupts_on_sqlite_nothing_is_held_or_lost(tmp_path, count):
    plan = Plan(f"sqlite:///{tmp_path}/log.db", "n")

    assert_nothing_stays(interrupts(plan, count, pick("sigint")), count)


@sigints(60, 3_000)
def test_whatever_a_signal_interrupts_on_postgres_nothing_is_held_or_lost(postgres_url, count):
    plan = Plan(f"{postgres_url}?application_name=interrupted", "n")

    assert_nothing_stays(interrupts(plan, count, pick("sigint")), count)


def test_a_process_that_does_not_look_after_its_lock_is_caught(tmp_path):
    """Positive control: the harness sees a lock that stays."""
    plan = Plan(f"sqlite:///{tmp_path}/log.db", "n", keeps_lock=True)

    assert interrupts(plan, 100, pick("keeps"))["held"] > 0
