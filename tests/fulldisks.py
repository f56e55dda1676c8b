"""What a process says of a disk that is full, or fails, at any one of the calls that a log makes.

Its disk is that of disk.c. For each call in turn: it fails, and those after it or it alone; then the disk
works again, and what was refused is done again as its error says.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from kern_events import Draft, SessionLog
from kern_events.errors import AppendUnresolved, KernError
from kern_events.store import sql
from kern_events.store.sqlite import SQLiteStore
from tests import disks
from tests.writers import findings

_EVENTS = 3
_CALLS = disks.WRITES | disks.SYNCS | disks.NAMES
HARMS = ("lost", "not refused", "doubled", "not repeated", "not read", "findings", "unsound")


class Fault(NamedTuple):
    """How the disk fails: with which error, for how many calls (-1: from there on), after half a write."""

    error: int
    times: int = -1
    half: bool = False


FAULTS = (
    *(Fault(errno.ENOSPC), Fault(errno.ENOSPC, half=True), Fault(errno.EDQUOT), Fault(errno.EFBIG)),
    *(Fault(errno.EDQUOT, 1), Fault(errno.EIO, 1), Fault(errno.EIO)),
)


def accounts(folder: str, step: str) -> None:
    """In a process under disk.c: print what became of appends, by name.

    `append` is one to a file that is open, at each of its calls; `opening` one to a new file, which is made
    for it, at every so many. `deaf` is a control, which takes what a COMMIT raises for success.
    """
    found = {"append": _each_call(f"{folder}/append"), "opening": _each_call(f"{folder}/opening", int(step))}
    SQLiteStore._commit_failed = _deaf  # type: ignore[method-assign]
    print(json.dumps({**found, "deaf": _each_call(f"{folder}/deaf", faults=FAULTS[:1])}))


def _each_call(folder: str, step: int = 0, faults: Sequence[Fault] = FAULTS) -> Counter[str]:
    """The account of an append at each of its calls; with a step, of one to a new file at so many."""
    os.mkdir(folder)
    disk, account = disks.Disk(), Counter[str](dict.fromkeys(HARMS, 0))
    disk.record(folder, os.devnull)
    # So that an append moves pages from the WAL to the file, too.
    sql.SQLITE_SETTINGS = (*sql.SQLITE_SETTINGS, "PRAGMA wal_autocheckpoint = 4")  # type: ignore[misc]
    numbers = itertools.count()

    def anew() -> tuple[str, SessionLog]:
        path = f"{folder}/{next(numbers)}.db"
        return path, SessionLog(f"sqlite:///{path}")

    path, log = anew()
    log.append("s", [_note()])
    for fault in faults:
        for point in itertools.count(1, step or 1):
            if step:
                log.close()
                path, log = anew()
            if not _append_at(disk, point, fault, path, log, account):
                break
    account["findings"] += len(findings(log))
    account["unsound"] += _one(path, "PRAGMA integrity_check") != "ok"
    log.close()
    return account


def _note() -> Draft:
    return Draft("note.taken", {"text": "x" * 3_000})


def _append_at(
    disk: disks.Disk, point: int, fault: Fault, path: str, log: SessionLog, account: Counter[str]
) -> bool:
    """Append while the disk fails at the n-th call; whether there were so many."""
    drafts, expected = [_note() for _ in range(_EVENTS)], None
    disk.fail(_CALLS, point, fault.error, times=fault.times, half=fault.half)
    said = _said(lambda: log.append("s", drafts))
    if fault.times < 0 and log._store._file._ready:  # type: ignore[attr-defined]
        account["not read"] += _said(lambda: log.head("s")) is not None
    reached = disk.works() >= point
    there = _recorded(path, drafts)
    if said is None:
        account["lost"] += there != _EVENTS
    elif isinstance(said, AppendUnresolved):
        expected = said.base
    else:
        account["not refused"] += there != 0
    if said is not None:
        account["not repeated"] += _said(lambda: log.append("s", drafts, expected=expected)) is not None
    account["doubled"] += _recorded(path, drafts) != _EVENTS
    _one(path, "PRAGMA wal_checkpoint(TRUNCATE)")  # All that is left, so that each append finds the same.
    how = f"{errno.errorcode[fault.error]} {'once' if fault.times == 1 else 'for good'}"
    account[f"{how}: {type(said).__name__ if said else 'recorded'}"] += 1
    return reached


def _deaf(store: SQLiteStore, group: Any, results: Any, error: Exception) -> None:
    store._file.end_writing()
    for job, result in zip(group, results, strict=True):
        job.settle(result)


def _said(act: Callable[[], object]) -> KernError | None:
    try:
        act()
    except KernError as error:
        return error
    return None


def _recorded(path: str, drafts: list[Draft]) -> int:
    """How many of the drafts are in the file for everybody."""
    ids = ", ".join(f"x'{draft.event_id.hex()}'" for draft in drafts)
    try:
        return int(_one(path, f"SELECT count(*) FROM kern_events WHERE event_id IN ({ids})"))
    except sqlite3.OperationalError:  # There is no table yet.
        return 0


def _one(path: str, statement: str) -> object:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchone()[0]
