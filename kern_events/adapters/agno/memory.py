"""A Db for tests: everything works as on a database, and nothing is left behind."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from typing import Any, Final

from kern_events.adapters.agno.db import OnError
from kern_events.adapters.agno.sqlite import KernSqliteDb

_MEMORY: Final = "/dev/shm"  # noqa: S108 - A directory in memory, where there is one; the names in it are random.


class KernInMemoryDb(KernSqliteDb):
    """A KernSqliteDb in a directory of its own, in memory where the system has that; gone with the object.

    Args:
        on_error, shared, options: As for KernSqliteDb.
    """

    def __init__(self, *, on_error: OnError | None = None, shared: bool = False, **options: Any) -> None:
        where = _MEMORY if os.access(_MEMORY, os.W_OK) else None
        folder = tempfile.mkdtemp(prefix="kern-agno-", dir=where)
        self._gone = weakref.finalize(self, _remove, folder, os.getpid())
        super().__init__(os.path.join(folder, "agno.db"), on_error=on_error, shared=shared, **options)

    def close(self) -> None:
        """Close the connections and forget everything."""
        super().close()
        self._gone()


def _remove(folder: str, process: int) -> None:
    if os.getpid() == process:  # A forked child ends before its parent.
        shutil.rmtree(folder, ignore_errors=True)
