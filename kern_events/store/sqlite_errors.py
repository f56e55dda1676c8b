"""What SQLite's errors mean: a lock, no room, a disk that fails, or damage."""

from __future__ import annotations

import errno
import os
import secrets
import sqlite3
from contextlib import suppress
from typing import Final

from kern_events.errors import StoreCorrupt, StoreError, StoreFull, StoreUnavailable

_DAMAGE: Final = (
    *("SQLITE_CORRUPT", "SQLITE_NOTADB"),
    *("SQLITE_IOERR_SHORT_READ", "SQLITE_IOERR_CORRUPTFS", "SQLITE_IOERR_DATA"),
)
# SQLite says SQLITE_FULL where the operating system says ENOSPC to a write, and these for a quota, a limit on
# the size of files, and memory that it shares with other processes.
_NO_ROOM: Final = ("SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE")
_FULL_ERRNOS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TRIED_BYTES: Final = 1 << 16
# By what follows the last frame of a transaction a COMMIT may fail too, and the transaction be in the WAL.
_BEFORE_COMMIT: Final = ("SQLITE_FULL", "SQLITE_BUSY", "SQLITE_IOERR_WRITE")


def is_busy(error: sqlite3.Error) -> bool:
    """Whether somebody else holds the lock."""
    return _name(error).startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def is_io(error: BaseException) -> bool:
    """Whether it is about reading and writing, which may fail now and succeed in a moment."""
    return isinstance(error, sqlite3.Error) and _name(error).startswith("SQLITE_IOERR")


def is_before_commit(error: BaseException) -> bool:
    """Whether a COMMIT that raised this has left nothing that could count, now or after a crash."""
    return isinstance(error, sqlite3.Error) and _name(error) in _BEFORE_COMMIT


def told(error: sqlite3.Error, path: str) -> StoreError:
    """What an error that is not a lock is to the log; damage is StoreCorrupt."""
    name = _name(error)
    text = f"SQLite: {error}"
    if name.startswith(_DAMAGE):
        return StoreCorrupt(f"{text} ({name}): nothing more is written to {path}; keep the file")
    if name == "SQLITE_FULL":
        return _full(path, text)
    if name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN")):
        refused = _refused(path)
        if refused in _FULL_ERRNOS:
            return _full(path, f"{os.strerror(refused)}, {name}")
        if name in _NO_ROOM and refused is None:
            return _full(path, f"{text}, {name}, or the disk fails")
    if name.startswith("SQLITE_CANTOPEN"):
        return StoreUnavailable(f"cannot open {path}: does the folder exist, and may you write there?")
    if name.startswith("SQLITE_IOERR"):
        return StoreUnavailable(f"{text} ({name}): the disk of {path} fails, or does not answer")
    if name.startswith(("SQLITE_READONLY", "SQLITE_PERM")):
        return StoreUnavailable(f"{path} cannot be written: {error}")
    return StoreError(text)


def _name(error: sqlite3.Error) -> str:
    return getattr(error, "sqlite_errorname", "") or ""


def _full(path: str, why: str) -> StoreFull:
    return StoreFull(f"there is no room to write to {path}: the disk, a quota or a limit is full ({why})")


def _refused(path: str) -> int | None:
    """The errno of a write beside a file, of the size that it and its WAL have; None where it succeeds.

    SQLite does not tell why a write failed, and a quota is as much its reason as a broken disk.
    """
    name = os.path.join(os.path.dirname(path), f".kern-events-{secrets.token_hex(8)}")
    end = max(_size_bytes(path + suffix) for suffix in ("", "-wal", "-shm"))
    try:
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.unlink(name)
            done = os.pwrite(file, bytes(_TRIED_BYTES), end)
            os.pwrite(file, bytes(_TRIED_BYTES - done), end + done)  # Says why, if that was not all of it.
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        return error.errno
    return None


def _size_bytes(path: str) -> int:
    with suppress(OSError):
        return os.stat(path).st_size
    return 0
