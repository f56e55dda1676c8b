"""What there is to export: the sessions of a namespace, each once; the events of one that count."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from kern_events import bundle, lineage, spi
from kern_events.errors import SessionNotFound
from kern_events.events import Event, SessionInfo

if TYPE_CHECKING:
    from kern_events.log import SessionLog

_PAGE: Final = 1_000


def every_session(log: SessionLog) -> Iterator[SessionInfo]:
    """The sessions of the namespace that are not deleted, each once, the newest first.

    One that somebody appends to meanwhile moves to the front of the listing, where we have been. So
    we look again, until there is none that we have not seen; new ones of that time may be missing.
    """
    seen: set[str] = set()
    newest = None
    while True:
        found = False
        for info in _pages(log):
            newest = info.updated_us if newest is None else newest
            if info.session_id not in seen and info.created_us <= newest:
                seen.add(info.session_id)
                found = True
                yield info
        if not found:
            return


def _pages(log: SessionLog) -> Iterator[SessionInfo]:
    after = None
    while page := log.sessions(after=after, limit=_PAGE):
        yield from page
        after = page[-1].cursor


def every_line(log: SessionLog) -> Iterator[bytes]:
    """The lines of SessionLog.export for all sessions of the namespace, each with all its events once.

    A parent comes before its forks, also one that was deleted.
    """
    yield bundle.header_line(log.namespace)
    done: dict[str, int] = {}
    for info in every_session(log):
        head = log.head(info.session_id)
        if head.status == "deleted":
            continue
        for segment in lineage.segments(log._store, log.namespace, info.session_id, head.version):
            session_id = segment.session_id
            if done.get(session_id, 0) < segment.version:
                done[session_id] = max(segment.version, log.head(session_id).version)
                for page in log._section(segment._replace(version=done[session_id])):
                    yield from page


def live_events(log: SessionLog, session_id: str) -> Iterator[Event]:
    """The events that count now, in order; of a fork, those that it shares with its parents as well.

    Raises:
        SessionNotFound: The session has no events or was deleted.
    """
    head = log.head(session_id)
    if head.version == 0 or head.status == "deleted":
        raise SessionNotFound(session_id)
    for part in spi.live_path(log, session_id, head.version):
        after = part.first - 1
        while after < part.last:
            events, _ = spi.page(log, part.session_id, after, part.last, _PAGE)
            if not events:
                break
            yield from events
            after = events[-1].version
