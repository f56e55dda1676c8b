"""Which versions of a session count, and where they lie: restores and forks, walked backwards.

A restore at version r goes on from its target b, so what lies between counts no more; a fork's
first versions are its parent's. So the live path of a version is a few ranges of versions, each
in the rows of one session. Nothing here reads a payload.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from kern_events.errors import PointErased, SessionNotFound, StoreCorrupt
from kern_events.events import Branch, Branches, Fork, Head
from kern_events.numbers import whole
from kern_events.store.base import ERASING, Lineage, Store

_LAST: Final = 2**63 - 1
_DELETED: Final = ("session.deleted",) * 5  # five, see newest_of


class Range(NamedTuple):
    """Versions `first` to `last`, both included, in the rows of a session."""

    session_id: str
    first: int
    last: int


class Segment(NamedTuple):
    """A session's own rows up to a version, and what it was forked from: `parent` at `origin`."""

    session_id: str
    parent: str | None
    origin: int
    version: int


class Mark(NamedTuple):
    """What begins a branch: its first event, and where it goes on from."""

    version: int
    origin: int
    at_us: int
    actor: str | None
    reason: str | None


def live_path(store: Store, namespace: str, session_id: str, version: int) -> list[Range]:
    """The versions that a version's state is made of, in order; nothing for version 0."""
    parts = list(live_parts(store, namespace, session_id, version))
    return [part for owned in reversed(parts) for part in owned]


def live_parts(store: Store, namespace: str, session_id: str, version: int) -> Iterator[list[Range]]:
    """The live path of a version, taken apart by whose rows it lies in: the session's own part comes first.

    Each part is in order and asked for when it is called for, so whoever knows the state at the end of
    one need not go on to where the path begins.
    """
    for owner, lineage in _owners(store, namespace, session_id):
        ranges: list[Range] = []
        version = _walk(owner, lineage, version, ranges)
        if ranges:
            yield ranges[::-1]
        if version == 0:
            return


def _owners(store: Store, namespace: str, session_id: str) -> Iterator[tuple[str, Lineage]]:
    """A session and those in whose rows its versions lie, each with its lineage.

    Those between, which share all that the session shares, are passed over.
    """
    return _line(store, namespace, session_id, lambda lineage: lineage.owner)


def _line(
    store: Store,
    namespace: str,
    session_id: str,
    above: Callable[[Lineage], str | None] = lambda lineage: lineage.parent,
) -> Iterator[tuple[str, Lineage]]:
    """A session and those that it was forked from, each with its lineage.

    Raises:
        StoreCorrupt: A head row names one of its own forks as its parent.
    """
    owner: str | None = session_id
    seen: set[str] = set()
    while owner is not None:
        if owner in seen:
            raise StoreCorrupt(f"session {session_id!r} descends from itself; run `kern-events verify`")
        seen.add(owner)
        lineage = store.lineage(namespace, owner)
        yield owner, lineage
        owner = above(lineage)


def _walk(session_id: str, lineage: Lineage, version: int, ranges: list[Range]) -> int:
    """Add a session's own ranges, the newest first; returns where the path goes on in its parent."""
    restores, last = lineage.restores, version
    while last > lineage.origin:
        # The newest restore at or below `last`.
        index = bisect_left(restores, (last + 1,)) - 1
        if index < 0:
            ranges.append(Range(session_id, lineage.origin + 1, last))
            return lineage.origin
        first, target = restores[index]
        ranges.append(Range(session_id, first, last))
        last = target
    return last


def owner_of(store: Store, namespace: str, session_id: str, version: int) -> str:
    """The session in whose rows a version of this session lies."""
    line = _owners(store, namespace, session_id)
    return next((owner for owner, lineage in line if version > lineage.origin), session_id)


def segments(store: Store, namespace: str, session_id: str, version: int) -> list[Segment]:
    """A session up to a version and those that it was forked from, the one without a parent first.

    Each has at least its first event: a fork may go on from a version that its parent itself shares
    with another one, and yet that parent is what its hashes begin with.
    """
    found: list[Segment] = []
    for owner, lineage in _line(store, namespace, session_id):
        found.append(Segment(owner, lineage.parent, lineage.origin, max(version, lineage.origin + 1)))
        version = lineage.origin
    found.reverse()
    return found


def erased_until(store: Store, namespace: str, session_id: str) -> int:
    """The version of the last tombstone in the rows of a session; 0 if there is none."""
    row = store.newest_of(namespace, session_id, ERASING, _LAST)
    return row[0] if row else 0


def check_kept(store: Store, namespace: str, session_id: str, version: int) -> None:
    """Refuse a version to go on from that is erased; 0, where there is nothing yet, never is.

    A restore says nothing of its own: it is what it went back to.

    Raises:
        PointErased: Its event is erased, or of before a deletion.
    """
    at = version
    for owner, lineage in _owners(store, namespace, session_id):
        targets = dict(lineage.restores)
        while at in targets:
            at = targets[at]
        if at > lineage.origin and _is_erased(store, namespace, owner, at):
            raise PointErased(session_id, version)
        if at == 0 or at > lineage.origin:
            return


def _is_erased(store: Store, namespace: str, owner: str, version: int) -> bool:
    deleted = store.newest_of(namespace, owner, _DELETED, _LAST)
    if deleted is not None and version <= deleted[0]:
        return True
    rows = store.rows(namespace, owner, version - 1, version, 1)
    return bool(rows) and rows[0][14] is None


def is_handed_down_erased(store: Store, namespace: str, parent: str, version: int) -> bool:
    """Whether what a fork of `parent` at a version was handed down may be gone: with an erasure above it."""
    if erased_until(store, namespace, parent) > version:
        return True
    above = store.lineage(namespace, parent)
    if above.parent is None:
        return False
    rows = store.rows(namespace, parent, above.origin, above.origin + 1, 1)
    return bool(rows) and rows[0][14] is None


def turn_at(store: Store, namespace: str, session_id: str, version: int) -> int:
    """The highest turn started on the live path of a version."""
    owner = owner_of(store, namespace, session_id, version)
    return store.turn_at(namespace, owner, version) if version else 0


def version_of_turn(store: Store, namespace: str, session_id: str, head: Head, turn: int) -> int:
    """The version before the next turn started on the live path, or the head if it did not.

    Raises:
        ValueError: There is no such turn on the live path.
    """
    if not 0 <= turn <= head.turn:
        raise ValueError(f"session {session_id!r} has no turn {turn}: there are 0 to {head.turn}")
    if turn == head.turn:
        return head.version
    start = turn_start(store, namespace, session_id, head.version, turn + 1)
    return head.version if start is None else start[1] - 1


def turn_start(
    store: Store, namespace: str, session_id: str, version: int, turn: int
) -> tuple[str, int] | None:
    """Where a turn of the live path of a version started, and in whose rows; None if it did not."""
    for part in reversed(live_path(store, namespace, session_id, version)):
        for start in store.turn_starts(namespace, part.session_id, turn):
            if part.first <= start <= part.last:
                return part.session_id, start
    return None


def version_at(store: Store, namespace: str, session_id: str, at_us: int) -> int:
    """The highest version recorded by a time, whatever became of its branch; 0 if there is none."""
    last: int | None = None
    for owner, lineage in _owners(store, namespace, session_id):
        version = store.version_at(namespace, owner, at_us)
        if version or lineage.parent is None:
            return version if last is None else min(version, last)
        last = lineage.origin if last is None else min(last, lineage.origin)
    return 0


def point(
    store: Store,
    namespace: str,
    session_id: str,
    head: Head,
    turn: int | None,
    version: int | None,
    at_us: int | None,
) -> int:
    """The version that a turn, a version or a time means; the head's own for none of them.

    Raises:
        SessionNotFound: The session has no events or was deleted.
        ValueError: The session has no such turn or version.
        TypeError: More than one of them.
    """
    if (turn, version, at_us).count(None) < 2:
        raise TypeError("a point in time is one of a turn, a version and a time")
    if head.version == 0 or head.status == "deleted":
        raise SessionNotFound(session_id)
    turn = None if turn is None else whole("turn", turn)
    version = None if version is None else whole("version", version)
    if at_us is not None:
        return min(version_at(store, namespace, session_id, at_us), head.version)
    if turn is not None:
        return version_of_turn(store, namespace, session_id, head, turn)
    if version is None:
        return head.version
    if not 0 <= version <= head.version:
        raise ValueError(f"session {session_id!r} has no version {version}: there are 0 to {head.version}")
    return version


def branches(store: Store, namespace: str, session_id: str, head: Head, marks: Sequence[Mark]) -> Branches:
    """The tree of a session, from the events that begin its branches."""
    lineage = store.lineage(namespace, session_id)
    live = {
        part.first: part.last
        for part in live_path(store, namespace, session_id, head.version)
        if part.session_id == session_id
    }
    starts = sorted(store.all_turn_starts(namespace, session_id))
    begins = [mark.version for mark in marks]
    ends = [*(version - 1 for version in begins[1:]), head.version]
    found = tuple(
        Branch(
            mark.version, last, mark.origin, live.get(mark.version),
            _turns(starts, mark.version, last), mark.at_us, mark.actor, mark.reason,
        )
        for mark, last in zip(marks, ends, strict=True)
    )  # fmt: skip
    forks = tuple(Fork(*row) for row in store.forks(namespace, session_id))
    return Branches(session_id, lineage.parent, lineage.origin or None, found, forks)


def _turns(starts: Sequence[tuple[int, int]], first: int, last: int) -> tuple[int, ...]:
    begin, end = bisect_left(starts, (first,)), bisect_left(starts, (last + 1,))
    return tuple(turn for _, turn in starts[begin:end])
