"""Agno's Db classes with an append-only log: `from kern_events.adapters.agno import KernSqliteDb`.

Agno goes on writing its own tables, so everything that reads them works as before; every change is
recorded in the same transaction. `db.sessions` is the log: history, restore, fork, diff, verify.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from kern_events import _check_projections

_OLDEST, _BELOW = (3, 0), (4, 0)


def _check_agno() -> None:
    try:
        found = version("agno")
    except PackageNotFoundError:
        raise ImportError("this needs Agno: pip install 'kern-events[agno]'") from None
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    if not _OLDEST <= numbers < _BELOW:
        raise ImportError(
            f"Agno {found} is installed; this is for Agno 3.0 and later 3.x: pip install 'agno>=3.0,<4'"
        )


_check_agno()
_check_projections()

from kern_events.adapters.agno.aio import KernAsyncPostgresDb, KernAsyncSqliteDb  # noqa: E402
from kern_events.adapters.agno.db import NotStored  # noqa: E402
from kern_events.adapters.agno.folding import AgnoProjector, Stored  # noqa: E402
from kern_events.adapters.agno.memory import KernInMemoryDb  # noqa: E402
from kern_events.adapters.agno.postgres import KernPostgresDb  # noqa: E402
from kern_events.adapters.agno.running import RunNotStored  # noqa: E402
from kern_events.adapters.agno.sessions import AgnoSessions, AsyncAgnoSessions  # noqa: E402
from kern_events.adapters.agno.sqlite import KernSqliteDb  # noqa: E402

__all__ = [
    "AgnoProjector",
    "AgnoSessions",
    "AsyncAgnoSessions",
    "KernAsyncPostgresDb",
    "KernAsyncSqliteDb",
    "KernInMemoryDb",
    "KernPostgresDb",
    "KernSqliteDb",
    "NotStored",
    "RunNotStored",
    "Stored",
]
