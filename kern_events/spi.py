"""The second door, for authors of projectors and snapshot caches.

Everything else needs only `from kern_events import ...`. What stands here reads the log in bulk, in
the shape in which a projection wants it, and is as stable as the front door.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, ParamSpec, TypeVar

from kern_events import chain
from kern_events.batch import event_of, expected_hash
from kern_events.codec import check_id
from kern_events.events import Event, Head, Kind, to_datetime, to_microseconds

if TYPE_CHECKING:
    from kern_events.aio import AsyncSessionLog
    from kern_events.log import SessionLog

__all__ = [
    "Kind",
    "Tail",
    "in_thread",
    "tail",
    "to_datetime",
    "to_microseconds",
    "turn_start",
    "version_at",
]

P = ParamSpec("P")
T = TypeVar("T")


class Tail(NamedTuple):
    """A session's head and what was recorded after a version, read in one query."""

    head: Head
    events: Sequence[Event]
    size_bytes: int
    follows: bool = True


def tail(
    log: SessionLog, session_id: str, after: int, limit: int = 5_000, *, after_hash: bytes | None = None
) -> Tail:
    """The head, and at most `limit` events above version `after`; nothing new is the freshness check.

    An unknown session has head version 0, a deleted one the status `deleted`. With `after_hash`, the
    chain hash that the caller knows of version `after`, `follows` says whether what is recorded
    there still is what the caller has seen: a database may have lost its tail and grown another.
    """
    check_id(session_id, "session_id")
    head, rows = log._store.tail(log.namespace, session_id, after, limit)
    if head is None:
        return Tail(log._scope_of(session_id).empty_head(), (), 0)
    if not rows:
        return Tail(head, (), 0, after_hash is None or head.version != after or head.hash == after_hash)
    size_bytes = sum(len(row[14] or b"") for row in rows)
    follows = after_hash is None or expected_hash(
        after_hash, chain.scope(log.namespace, session_id), rows[0]
    ) == bytes(rows[0][18])
    events = [event_of(log.namespace, session_id, row) for row in rows]
    return Tail(head, events, size_bytes, follows)


def turn_start(log: SessionLog, session_id: str, turn: int) -> int | None:
    """The version at which a turn last started, or None if it did not."""
    return log._store.turn_start(log.namespace, check_id(session_id, "session_id"), turn)


def version_at(log: SessionLog, session_id: str, at_us: int) -> int:
    """The highest version recorded by a time (microseconds since 1970, UTC); 0 if there is none."""
    return log._store.version_at(log.namespace, check_id(session_id, "session_id"), at_us)


def in_thread(
    log: AsyncSessionLog, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> Awaitable[T]:
    """Run a whole operation on the log's pool; a cancelled await is decided before it returns."""
    return log._in_thread(function, *args, **kwargs)
