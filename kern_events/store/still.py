"""A SQLite file that this process may only read, and that nobody has open for writing just now.

SQLite reads a file in WAL mode through two more files, which it makes beside it: where it may not, it reads
nothing, and where it may, they stay. Told that the file never changes, it needs neither. It is told so for
one read at a time, and what it has read counts if nobody has begun to write meanwhile: whoever does makes a
WAL, and moves what is in it into the file in the end.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

from kern_events.errors import StoreUnavailable

_BESIDE = ("-wal", "-journal")  # of somebody who writes, or who has died while writing


def exists(path: str) -> bool:
    """Whether there is anything at a path; where that cannot be told, SQLite shall say why."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def is_still(path: str, *, read_only: bool) -> bool:
    """Whether a file is there, nobody writes to it, and this process will not, or may not, either."""
    if any(exists(path + end) for end in _BESIDE) or not exists(path):
        return False
    return read_only or not (may_write(path) and may_write(os.path.dirname(path)))


@contextmanager
def opened(path: str) -> Iterator[sqlite3.Connection]:
    """A connection to such a file, which neither makes nor leaves anything.

    Raises:
        StoreUnavailable: In the end: somebody has begun to write, and what was read may be wrong.
    """
    before = _state(path)
    driver = sqlite3.connect(f"file:{quote(path)}?mode=ro&immutable=1", uri=True, isolation_level=None)
    try:
        yield driver
    finally:
        driver.close()
        if _state(path) != before:
            raise StoreUnavailable(f"{path} was written to while it was read: read it again")


def may_write(path: str) -> bool:
    """Whether this process has the right to."""
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _state(path: str) -> list[tuple[int, int, int, int] | None]:
    return [_seen(path + end) for end in ("", *_BESIDE)]


def _seen(path: str) -> tuple[int, int, int, int] | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
