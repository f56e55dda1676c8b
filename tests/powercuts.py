"""What a process does to a SQLite log until the power is cut, and the account of what is there afterwards.

The process acknowledges in a file of its own what has returned to it: `a7` an append of event 7, `m7` one to
two sessions at once, `d7` the deletion of session 7. See disks.py for how the disk is made anew.
"""

from __future__ import annotations

import hashlib
import os
import random
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kern_events import Draft, SessionLog
from kern_events.cli.export import _replaced
from kern_events.errors import KernError
from kern_events.store import sql
from tests import disks

_SESSIONS = 3
_ROUNDS = 25
_THREADS = 3
_CHECKPOINT_PAGES = 24
EXPORTS = [[b"%d %d\n" % (size, line) for line in range(size)] for size in (900, 2_000)]
HARMS = ("lost", "doubled", "in part", "undeleted", "findings", "unsound", "unreadable")


def work(folder: str, trace: str, seed: str, synchronous: str) -> None:
    """In a process under disk.c: use a log in every way that writes."""
    sql.SQLITE_SETTINGS = (  # type: ignore[misc]
        *sql.SQLITE_SETTINGS,
        f"PRAGMA synchronous = {synchronous}",
        f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}",
    )
    disks.Disk().record(folder, trace)
    acks = os.open(f"{folder}/{disks.ACK}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    with SessionLog(f"sqlite:///{folder}/log.db") as log:
        worker = _Worker(log, random.Random(seed), lambda what: os.write(acks, f"{what}\n".encode()))
        for number in range(_ROUNDS):
            worker.turn_of(number)
        threads = [threading.Thread(target=worker.append_each, args=(_ROUNDS + n,)) for n in range(_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def repeat(folder: str, trace: str) -> None:
    """In a process under disk.c: append after another one was killed within the COMMIT of the same append."""
    disk = disks.Disk()
    disk.record(folder, trace)
    acks = os.open(f"{folder}/{disks.ACK}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    child = os.fork()
    with SessionLog(f"sqlite:///{folder}/log.db") as log:
        if child == 0:
            log.append("s0", [_note(0, 50)])
            disk.die(disks.SYNCS, 1)
        else:
            assert os.waitpid(child, 0)[1] == 9 << 8
        log.append("s0", [_note(1, 50)], idempotency_key="1")
        os.write(acks, b"a1\n")
        os._exit(0)  # Closing the file would have it on the disk.


def export(folder: str, trace: str) -> None:
    """In a process under disk.c: write a file as `export --output` does, in the place of another one."""
    disks.Disk().record(folder, trace)
    acks = os.open(f"{folder}/{disks.ACK}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for number, content in enumerate(EXPORTS):
        with _replaced(f"{folder}/out") as file:
            file.writelines(content)
        os.write(acks, f"e{number}\n".encode())


class _Worker:
    """Does this and that, and acknowledges it."""

    def __init__(self, log: SessionLog, chance: random.Random, acknowledge: Callable[[str], Any]) -> None:
        self._log = log
        self._chance = chance
        self._acknowledge = acknowledge

    def turn_of(self, number: int) -> None:
        """One call or a few, and what they come to."""
        session = f"s{number % _SESSIONS}"
        how = self._chance.choice(("append", "append", "turn", "buffered", "many", "deleted", "forked"))
        if how == "append":
            size = self._chance.choice((50, 300, 9_000))
            self._log.append(session, [_note(number, size)], idempotency_key=f"k{number}")
        elif how == "many":
            drafts: list[Any] = [(name, [_note(number, 50)], None) for name in ("left", "right")]
            self._log.append_many(drafts)
            self._acknowledge(f"m{number}")
            return
        elif how in ("turn", "buffered"):
            with self._log.turn(session, buffered=how == "buffered") as turn:
                turn.message("user", "y" * self._chance.choice((50, 2_000)))
                turn.record(_note(number, 50))
                turn.set_state("number", number)
        else:
            name = f"x{number}"
            self._log.append(name, [_note(number, 3_000)])
            if how == "deleted":
                self._log.delete(name)
                self._acknowledge(f"d{number}")
                return
            self._log.fork(name, f"f{number}")
        self._acknowledge(f"a{number}")

    def append_each(self, first: int) -> None:
        """Beside other threads, whose appends come into the same transactions."""
        for number in range(first, first + 4 * _THREADS, _THREADS):
            self._log.append(f"s{number % _SESSIONS}", [_note(number, 200)])
            self._acknowledge(f"a{number}")


def _note(number: int | None, size: int) -> Draft:
    return Draft("note.taken", {"number": number, "text": "x" * size})


def cuts(trace: Path, folder: Path, count: int, chance: random.Random, *, lies: bool = False) -> Counter[str]:
    """Cut the power so many times, and hold what is on the disk against what was acknowledged.

    Returns:
        How many cuts did which harm, in HARMS; `acknowledged` and `cuts`.
    """
    ops = list(disks.recorded(trace))
    points = [chance.randrange(len(ops)) for _ in range(count - 1)] + [len(ops) - 1]
    account: Counter[str] = Counter({"cuts": count, **dict.fromkeys(HARMS, 0)})
    known: dict[bytes, Counter[str]] = {}
    for image in disks.Replay(ops, chance, lies=lies).cuts(points):
        account.update({image.left: 1, "acknowledged": len(image.acknowledged)})
        key = _digest(image)
        if key not in known:  # Many cuts leave the same.
            known[key] = _held_against(image, folder, chance)
        account.update(known[key])
    account["different"] = len(known)
    return account


def _digest(image: disks.Image) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for name, content in sorted(image.files.items()):
        if not name.endswith("-shm"):
            found.update(b"%s %d " % (name.encode(), len(content)))
            found.update(content)
    found.update(" ".join(image.acknowledged).encode())
    return found.digest()


def _held_against(image: disks.Image, folder: Path, chance: random.Random) -> Counter[str]:
    for name in os.listdir(folder):
        os.unlink(folder / name)
    for name, content in image.files.items():
        if not name.endswith("-shm"):
            (folder / name).write_bytes(content)
        elif chance.random() < 0.5:  # It is no file that anybody syncs: anything may be in it.
            (folder / name).write_bytes(chance.randbytes(len(content)))
    found: Counter[str] = Counter()
    try:
        with SessionLog(f"sqlite:///{folder}/log.db") as log:
            found.update(_missing(log, image.acknowledged))
            log.append("after", [_note(None, 50)])
            found["findings"] += bool(log.verify().findings)
        found["unsound"] += not _is_sound(folder / "log.db")
    except (KernError, sqlite3.Error) as error:
        print(image.left, type(error).__name__, error, error.__cause__, file=sys.stderr)
        found["unreadable"] += 1
    return found


def _missing(log: SessionLog, acknowledged: list[str]) -> Iterator[str]:
    """The harms done to what was acknowledged; each once."""
    times: Counter[Any] = Counter()
    sides: dict[Any, set[str]] = {}
    for event in log.read_all():
        number = event.payload.get("number") if event.type == "note.taken" and not event.erased else None
        if number is not None and event.session_id in ("left", "right"):
            sides.setdefault(number, set()).add(event.session_id)
        elif number is not None and not event.session_id.startswith("f"):
            times[number] += 1
    said: dict[str, list[int]] = {"a": [], "m": [], "d": []}
    for each in acknowledged:
        said[each[0]].append(int(each[1:]))
    if not (all(times[number] for number in said["a"]) and all(number in sides for number in said["m"])):
        yield "lost"
    if any(count > 1 for count in times.values()):
        yield "doubled"
    if any(len(each) < 2 for each in sides.values()):
        yield "in part"
    if any(times[number] for number in said["d"]):
        yield "undeleted"


def _is_sound(path: Path) -> bool:
    with sqlite3.connect(path) as connection:
        found = connection.execute("PRAGMA integrity_check").fetchall()
    connection.close()
    return found == [("ok",)]
