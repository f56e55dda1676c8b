"""The pool of the engines that a log makes for itself.

SQLAlchemy's own queue is guarded by conditions, and Ctrl-C in the wrong moment leaves one of them held for
ever: see ForkLock. A list needs no guard.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from sqlalchemy.pool import ConnectionPoolEntry, Pool


class KeptPool(Pool):
    """Keeps so many idle connections, the last one that came back first; makes one where there is none.

    How many there are at once is for whoever takes them.
    """

    def __init__(self, creator: Any, pool_size: int = 5, **options: Any) -> None:
        super().__init__(creator, **options)
        self._size = pool_size
        self._kept: list[ConnectionPoolEntry] = []

    def _do_get(self) -> ConnectionPoolEntry:
        try:
            return self._kept.pop()
        except IndexError:
            return self._create_connection()

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        if len(self._kept) < self._size:
            self._kept.append(record)
        else:
            record.close()

    def dispose(self) -> None:
        """Close those that are idle."""
        with suppress(IndexError):
            while True:
                self._kept.pop().close()

    def recreate(self) -> KeptPool:
        """A new one, as the engine asks for after a fork."""
        return type(self)(
            self._creator,
            self._size,
            recycle=self._recycle,
            echo=self.echo,
            pre_ping=self._pre_ping,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )

    def status(self) -> str:
        """For people."""
        return f"{len(self._kept)} idle connections of at most {self._size}"
