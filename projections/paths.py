"""Reading the events that count: the ranges of a live path, page by page.

Where the gaps are small, as after many restores, one page covers several ranges; what was abandoned
between them is passed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from typing import Final, NamedTuple

from kern_events import Event, SessionLog, spi
from kern_events.errors import StoreError
from kern_events.spi import Range

PAGE: Final = 1_000  # more are slower: so many dicts at once make the garbage collector look at them again


_WIDE: Final = 64  # of so many abandoned events: to ask once more costs less than to read them


class Page(NamedTuple):
    """Some events in order, and about how many bytes their payloads take."""

    events: Sequence[Event]
    size_bytes: int


def behind(path: Sequence[Range], session_id: str, version: int) -> list[Range] | None:
    """What follows a version on a path; None if that version of that session is not on it."""
    if version == 0:
        return list(path)
    for index, part in enumerate(path):
        if part.session_id == session_id and part.first <= version <= part.last:
            rest = [] if version == part.last else [part._replace(first=version + 1)]
            return [*rest, *path[index + 1 :]]
    return None


def events_on(log: SessionLog, path: Sequence[Range]) -> Iterator[Page]:
    """The events of a path.

    Raises:
        StoreCorrupt: One that has to be there is not; a StoreError where row-level security may hide it.
    """
    for owner, parts in groupby(path, key=lambda part: part.session_id):
        yield from _events_of(log, owner, list(parts))


def _events_of(log: SessionLog, session_id: str, parts: list[Range]) -> Iterator[Page]:
    index, after = 0, parts[0].first - 1
    while index < len(parts):
        begin = index
        events, size_bytes = spi.page(log, session_id, after, _reach(parts, index), PAGE)
        kept: list[Event] = []
        for event in events:
            if index < len(parts) and event.version >= parts[index].first:
                kept.append(event)
                index += event.version == parts[index].last
        read = events[-1].version if events else after
        if not _is_whole(kept, parts[begin : index + 1], after, read) or not events:
            raise gap(log, session_id, after + 1)
        if kept:
            yield Page(kept, size_bytes * len(kept) // len(events))
        # What was abandoned is skipped as a whole where it reaches beyond this page.
        after = read if index == len(parts) else max(read, parts[index].first - 1)


def _reach(parts: Sequence[Range], index: int) -> int:
    """Where the ranges end that are read together from one on: before a wide gap, or where a page may end."""
    last, enough = parts[index].last, parts[index].first + PAGE
    for part in islice(parts, index + 1, None):
        if part.first - last > _WIDE or last > enough:
            break
        last = part.last
    return last


def _is_whole(kept: Sequence[Event], parts: Sequence[Range], after: int, read: int) -> bool:
    """Whether every event of the parts within what was read is there."""
    expected = sum(
        max(0, min(part.last, read) - max(part.first - 1, after))
        for part in parts
        if part.first <= read and part.last > after
    )
    return len(kept) == expected


def gap(log: SessionLog, session_id: str, version: int) -> StoreError:
    """The error for an event that is not there."""
    said = f"the events of session {session_id!r} from version {version} on are not all there"
    return spi.missing(log, said)
