"""A disk that can be watched, can be full, and whose power can be cut.

A process under `disk.c` records what it does to the files of a folder: every write, every sync, every name
that comes or goes. What is on the disk after a power cut is then made from the record: all that was synced,
and of what was not, what chance has left. So one run of a workload serves for any number of cuts.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
WRITES, SYNCS, NAMES = 1, 2, 4  # What can be made to fail; see disk.c.
ACK = "acknowledged"
_HEAD = struct.Struct("<ciqq")
_SECTOR = 512
LEFT = ("dropped", "kept", "some", "torn")  # What may be left of what was not synced.


def compiled(folder: Path) -> Path:
    """The library of disk.c; without a C compiler there is no such test, and that is a failure."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    assert compiler, "full disks and power cuts need a C compiler: install gcc or clang, or set CC"
    library = folder / "disk.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, ROOT / "tests/disk.c"], check=True)
    return library


def run(library: Path, work: str, *args: Any) -> str:
    """What a process under the library prints: `work` is the name of a function, `module:function`."""
    module, _, function = work.partition(":")
    code = f"import sys, {module}; {module}.{function}(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, args)],
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Disk:
    """In a process under the library: its disk."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._library.disk_calls.restype = ctypes.c_long

    def record(self, folder: str, trace: str) -> None:
        """Write down what is done to the files of a folder from here on."""
        assert self._library.disk_record(folder.encode(), trace.encode()) >= 0

    def fail(self, kinds: int, nth: int, error: int, *, times: int = -1, half: bool = False) -> None:
        """Have the n-th call fail, from 1, and those after it; or so many."""
        self._library.disk_fail(*map(ctypes.c_long, (kinds, nth, times)), error, half)

    def die(self, kinds: int, nth: int) -> None:
        """Have this process gone at the n-th call, from 1, as after kill -9."""
        self.fail(kinds, nth, 0)

    def works(self) -> int:
        """Have nothing fail any more; gives how many calls there were that could."""
        calls = int(self._library.disk_calls())
        self._library.disk_fail(*map(ctypes.c_long, (0, 1, 0)), 0, 0)
        return calls


# --------------------------------------------------------------------------------- power cuts


class Op(NamedTuple):
    """One line of a record."""

    kind: str
    file: int
    offset: int
    data: bytes


def recorded(trace: Path) -> Iterator[Op]:
    """What was done to the disk, in order."""
    data, at = trace.read_bytes(), 0
    while at < len(data):
        kind, file, offset, length = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        yield Op(kind.decode(), file, offset, data[at : at + length])
        at += length


class _File:
    """What of a file is on the disk, and what has been done to it since."""

    def __init__(self) -> None:
        self.synced = bytearray()
        self.since: list[Op] = []

    def sync(self) -> None:
        for op in self.since:
            _apply(self.synced, op)
        self.since = []

    def after(self, cut: Callable[[Op], Iterator[Op]]) -> bytes:
        left = bytearray(self.synced)
        for op in self.since:
            for part in cut(op):
                _apply(left, part)
        return bytes(left)


def _apply(content: bytearray, op: Op) -> None:
    if op.kind == "T":
        del content[op.offset :]
    content.extend(bytes(max(0, op.offset - len(content))))
    content[op.offset : op.offset + len(op.data)] = op.data


class Image(NamedTuple):
    """What is on the disk after a power cut, and what had been acknowledged before it."""

    files: dict[str, bytes]
    acknowledged: list[str]
    left: str


class Replay:
    """Goes through a record, and cuts the power wherever it is asked to.

    Args:
        lies: The disk says that it has synced, and has not: a control.
    """

    def __init__(self, ops: list[Op], chance: random.Random, *, lies: bool = False) -> None:
        self._ops = ops
        self._chance = chance
        self._lies = lies
        self._acknowledged: list[str] = []
        self._open: dict[int, _File | None] = {}
        self._names: dict[str, _File] = {}  # as processes see them
        self._on_disk: dict[str, _File] = {}  # as they are after a power cut
        self._names_since: list[dict[str, _File | None]] = []

    def cuts(self, points: list[int]) -> Iterator[Image]:
        """The images of power cuts behind these operations, counted from 0, in their order."""
        points = sorted(points, reverse=True)
        for number, op in enumerate(self._ops):
            self._do(op)
            while points and points[-1] == number:
                points.pop()
                yield self._cut()

    def _do(self, op: Op) -> None:
        if op.kind in "OC":
            name = op.data.decode()
            if op.kind == "C":
                self._rename({name: _File()})
            self._open[op.file] = self._names.get(name)
        elif op.kind == "X":
            self._open.pop(op.file)
        elif op.kind in "ULR":
            old, new = op.data.decode().split("\0")
            changes: dict[str, _File | None] = {} if op.kind == "U" else {new: self._names[old]}
            self._rename(changes if op.kind == "L" else {old: None, **changes})
        elif (file := self._open[op.file]) is None:  # The folder.
            self._sync_names()
        elif op.kind == "S":
            if not self._lies:
                file.sync()
        else:
            file.since.append(op)
            if file is self._names.get(ACK):
                self._acknowledged += op.data.decode().split()

    def _rename(self, changes: dict[str, _File | None]) -> None:
        _update(self._names, changes)
        self._names_since.append(changes)

    def _sync_names(self) -> None:
        for changes in self._names_since:
            _update(self._on_disk, changes)
        self._names_since = []

    def _cut(self) -> Image:
        left = self._chance.choice(LEFT)
        names = dict(self._on_disk)
        kept = {"dropped": 0, "kept": len(self._names_since)}.get(left)
        if kept is None:  # File systems keep the order of names.
            kept = self._chance.randint(0, len(self._names_since))
        for changes in self._names_since[:kept]:
            _update(names, changes)
        files = {name: file.after(self._part[left]) for name, file in names.items() if name != ACK}
        return Image(files, list(self._acknowledged), left)

    @property
    def _part(self) -> dict[str, Callable[[Op], Iterator[Op]]]:
        """What is left of an operation that was not synced."""
        return {
            "dropped": lambda op: iter(()),
            "kept": lambda op: iter((op,)),
            "some": lambda op: iter((op,) if self._chance.random() < 0.5 else ()),
            "torn": self._sectors,
        }

    def _sectors(self, op: Op) -> Iterator[Op]:
        for start in range(0, max(1, len(op.data)), _SECTOR):
            if self._chance.random() < 0.5:
                yield op._replace(offset=op.offset + start, data=op.data[start : start + _SECTOR])


def _update(names: dict[str, _File], changes: dict[str, _File | None]) -> None:
    for name, file in changes.items():
        if file is None:
            names.pop(name, None)
        else:
            names[name] = file
