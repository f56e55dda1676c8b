"""Whether the files at some paths are still those of before, asked so that asking costs next to nothing.

`os.stat` also asks for the times of a file. Linux then gives the file's next write an exact time, which costs
that write tens of microseconds; `statx` can ask for the inode alone.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

_AT_FDCWD: Final = -100
_AT_STATX_DONT_SYNC: Final = 0x4000
_STATX_CTIME: Final = 0x80
_STATX_INO: Final = 0x100
_FILE: Final = struct.Struct("<32xQ96xII112x")  # the inode, the numbers of the device
_DIRECTORY: Final = struct.Struct("<32xQ56xqI28xII112x")  # the same, with the change time in between

# A change time is no finer than the clock that it is taken from: 2 s at worst.
_SETTLED_S: Final = 3

_Identity = tuple[int, ...] | None


class Watch:
    """The files that are at these paths, all of one directory, when it is made; one thread at a time asks.

    A file cannot be put there, moved or removed without a new change time of its directory, which nobody can
    set. As long as that is the same, there is nothing else to look at.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._directory = os.fsencode(os.path.dirname(paths[0]) or ".")
        self._paths = [os.fsencode(path) for path in paths]
        self._buffer = ctypes.create_string_buffer(_FILE.size)
        self._address = ctypes.addressof(self._buffer)
        self._unchanged: _Identity = None
        self._files = self._now()

    def holds(self) -> bool:
        """Whether all of them are still there, and none where there was none."""
        directory = self._changed()
        if directory is not None and directory == self._unchanged:
            return True
        if self._now() != self._files:
            return False
        # What changes in the same tick of the clock has the same time: not to be told apart yet.
        settled = directory is not None and directory[1] + _SETTLED_S < time.time()
        self._unchanged = directory if settled else None
        return True

    def _now(self) -> list[_Identity]:
        return [self._identity(path) for path in self._paths]

    def _identity(self, path: bytes) -> _Identity:
        if self._ask(path, _STATX_INO):
            return _FILE.unpack(self._buffer)
        try:
            stat = os.stat(path)  # Also where statx failed: this one says how.
        except FileNotFoundError:
            return None
        return stat.st_ino, os.major(stat.st_dev), os.minor(stat.st_dev)

    def _changed(self) -> _Identity:
        """Which directory it is, and when it was changed last; None where this cannot be asked."""
        if self._ask(self._directory, _STATX_INO | _STATX_CTIME):
            return _DIRECTORY.unpack(self._buffer)
        return None

    def _ask(self, path: bytes, wanted: int) -> bool:
        asked = (_AT_FDCWD, path, _AT_STATX_DONT_SYNC, wanted, self._address)
        return _statx is not None and _statx(*asked) == 0


def flush(path: str) -> None:
    """Have what was written to a file on the disk; nothing, where there is none.

    SQLite holds no lock on its WAL, so closing it here harms none.
    """
    with suppress(FileNotFoundError):
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def _statx_of(library: Any) -> Any:
    try:
        function = library.statx
    except AttributeError:  # Not Linux, or a C library from before 2018.
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)
    return function


_statx: Final = _statx_of(ctypes.CDLL(None))
