"""Ctrl-C in a process that writes to SQLite and then idles, as a notebook does."""

from __future__ import annotations

import sqlite3

from kern_events import SessionLog
from tests.interrupts import at_every_place
from tests.writers import note


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
