"""What is stored of views, held against a fold of the events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from msgspec.structs import replace

from kern_events import Finding, Head, spi
from kern_events.errors import DecodeError, SessionNotFound, StoreCorrupt, UpcastFailed
from projections.caches.base import Snapshot
from projections.caches.memory import MemoryCache
from projections.caches.tiers import DurableTier
from projections.errors import ProjectionFailed
from projections.loading import Loader
from projections.projector import Projector
from projections.session import View

if TYPE_CHECKING:
    from projections.sessions import Sessions

UNFOLDABLE: Final = (ProjectionFailed, UpcastFailed, DecodeError, StoreCorrupt)
"""What the events of one session can be at fault for."""

_PAGE: Final = 500


class Compared(NamedTuple):
    """A session whose newest snapshots were compared: how many events were folded, and what differs."""

    events: int
    findings: list[Finding]


def compared(
    sessions: Sessions, projector: Projector[Any], session_id: str | None
) -> Iterator[Compared]:
    """Compare the newest snapshot of one session or of each, in the database and in Redis, with a fold."""
    comparison = _Comparison(sessions, projector)
    for each in _ids(sessions, comparison) if session_id is None else [session_id]:
        try:
            yield comparison.compare(each)
        except SessionNotFound:  # It was deleted, perhaps just now.
            continue


def differs(stored: Snapshot, fresh: Snapshot) -> bool:
    """Whether a snapshot would be used at its version, and is not what a fold gives there, to the type."""
    if (stored.epoch, stored.hash) != (fresh.epoch, fresh.hash):
        return False  # Of another epoch or tail: a load passes it over.
    return bool(_exact(stored.view) != _exact(fresh.view))


class _Comparison:
    def __init__(self, sessions: Sessions, projector: Projector[Any]) -> None:
        self._projector = projector
        self._fresh = Loader(sessions, MemoryCache(0), None, None)
        self._durable = DurableTier(sessions, sessions._secret)
        self._shared = sessions._loader.shared
        codec = self._fresh.codec(projector)
        assert codec is not None  # Views of sessions can be stored.
        self._codec = codec

    @property
    def table(self) -> spi.SnapshotTable:
        return self._durable.table(self._fresh.key("", self._projector), self._codec)

    def compare(self, session_id: str) -> Compared:
        key = self._fresh.key(session_id, self._projector)
        found: list[tuple[str, int, Snapshot | None]] = []
        if lying := self._durable.peek(key, self._codec):
            found.append(("database", lying[0].version, lying[1]))
        if self._shared and (shared := self._shared.get(key, self._codec)):
            found.append(("redis", shared.version, shared))
        findings = []
        for tier, version, stored in found:
            if wrong := self._wrong(session_id, stored):
                expected = "the view that the events give"
                findings.append(Finding(session_id, version, "snapshot", tier, expected, wrong))
        return Compared(sum(version for _, version, _ in found), findings)

    def _wrong(self, session_id: str, stored: Snapshot | None) -> str | None:
        """What is stored instead of what should be; None if it is that."""
        if stored is None:
            return "what cannot be read"
        try:
            fresh = self._fresh.past(session_id, self._projector, stored.version)
        except UNFOLDABLE as error:
            return f"what cannot be compared: {type(error).__name__}"
        return "another view" if differs(stored, fresh) else None


def _ids(sessions: Sessions, comparison: _Comparison) -> Iterator[str]:
    after = ""
    while page := comparison.table.plan(after, _PAGE):
        yield from (standing.session_id for standing in page)
        after = page[-1].session_id


def _exact(view: Any) -> Any:
    """A view without what every load says anew, such that 1, 1.0 and True are three values."""
    if isinstance(view, View):
        view = replace(view, session_id="", head=Head(0, b"")).to_dict()
    try:
        return msgspec.msgpack.encode(view, order="deterministic")
    except (TypeError, ValueError, OverflowError):
        return view
