"""Postgres behind a pooler that lends its server connections for one transaction, as PgBouncer can.

A session then belongs to nobody: what one client sets or prepares in it is met by the next, and is not
there when its own next statement comes. So nothing is prepared, and the lock timeout is set for one
transaction at a time; it costs no round trip, because it travels with the statement that it is for.
`plan_cache_mode` is left out: it is a matter of speed, and of prepared statements alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Self

import psycopg
from psycopg.pq import PipelineStatus, TransactionStatus
from sqlalchemy import URL, event
from sqlalchemy.engine import Connection, Engine

from kern_events.store import sql
from kern_events.store.wire import Cursor

_OPTION: Final = "prepare_threshold"


def prepare_threshold(url: URL) -> dict[str, int | None]:
    """The driver's argument that the URL asks for, or none; SQLAlchemy would hand it over as text.

    Raises:
        ValueError: It is something else than "none" or a number.
    """
    text = url.query.get(_OPTION)
    if text is None:
        return {}
    if isinstance(text, str) and text.lower() == "none":
        return {_OPTION: None}
    if isinstance(text, str) and re.fullmatch("[0-9]{1,9}", text):
        return {_OPTION: int(text)}
    # Neither the URL nor the value: a password may be in it.
    raise ValueError(f"{_OPTION}= in the URL has to be a whole number, or none for a pooler like PgBouncer")


def in_transaction_mode(url: URL) -> bool:
    """Whether nothing may be left in a session, which is what prepare_threshold=none says."""
    return prepare_threshold(url).get(_OPTION, 0) is None


class TransactionCursor(psycopg.Cursor[tuple[Any, ...]]):
    """A cursor that leaves nothing in its session: a lock timeout lasts for one transaction.

    It is for an autocommit connection whose transactions are begun by `begin`.
    """

    def __init__(self, connection: psycopg.Connection[Any], lock_timeout_ms: int) -> None:
        super().__init__(connection)
        self._limit = (str(lock_timeout_ms),)
        self._other = connection.cursor()  # This one is to have the rows of the statement alone.

    def execute(self, query: Any, params: Any = None, **options: Any) -> Self:
        """As ever; outside of a transaction with the lock timeout in front, in the same round trip."""
        if self.connection.pgconn.transaction_status != TransactionStatus.IDLE:
            return super().execute(query, params, **options)
        with self._one_trip():
            self.limit()
            super().execute(query, params, **options)
        return self

    def begin(self, statement: str) -> None:
        """Begin a transaction with the lock timeout, in one round trip."""
        with self._one_trip():
            super().execute(statement)
            self.limit()

    @contextmanager
    def _one_trip(self) -> Iterator[None]:
        """A pipeline: outside of a transaction its statements are one, which its end commits.

        The driver may be stuck in it when the server goes away, with a connection that looks usable
        and an error that hides the reason. It is closed then, so that the outcome counts as open.
        """
        connection = self.connection
        try:
            with connection.pipeline():
                yield
        except psycopg.Error:
            if connection.pgconn.pipeline_status != PipelineStatus.OFF:
                connection.close()
            raise
        if connection.closed:  # A result is not to be believed before the end of the pipeline was met.
            raise psycopg.OperationalError("the connection is lost")

    def limit(self) -> None:
        """Set the lock timeout of the transaction that is open."""
        self._other.execute(sql.POSTGRES_LOCK_TIMEOUT, self._limit)


def limit_transactions(engine: Engine, lock_timeout_ms: int) -> None:
    """The same for the transactions that SQLAlchemy begins on this engine: those of consumers."""

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        connection.exec_driver_sql(sql.POSTGRES_LOCK_TIMEOUT, (str(lock_timeout_ms),))


def begin(cursor: Cursor, statement: str) -> None:
    """Begin a transaction by that statement, on a cursor of either kind."""
    if isinstance(cursor, TransactionCursor):
        cursor.begin(statement)
    else:
        cursor.execute(statement)
