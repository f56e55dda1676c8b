"""What is stored of views, held against a fold of the events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from msgspec.structs import replace

from kern_events import Finding, Head
from kern_events.errors import DecodeError, SessionNotFound, StoreCorrupt, StoreUnavailable, UpcastFailed
from projections.caches.base import Snapshot, SnapshotKey
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
    """A session whose newest snapshots were compared: how many events were folded, what differs, and how
    many snapshots that were."""

    events: int
    findings: list[Finding]
    snapshots: int


def differs(stored: Snapshot, fresh: Snapshot) -> bool:
    """Whether a snapshot would be used at its version, and is not what a fold gives there, to the type."""
    if (stored.epoch, stored.hash) != (fresh.epoch, fresh.hash):
        return False  # Of another epoch or tail: a load passes it over.
    return bool(_exact(stored.view) != _exact(fresh.view))


class Comparison:
    """Compares the newest snapshots of sessions, in the database and in Redis, with folds of the events.

    Raises:
        StoreUnavailable: Redis does not answer.
    """

    def __init__(self, sessions: Sessions, projector: Projector[Any]) -> None:
        self._projector = projector
        self._fresh = Loader(sessions, MemoryCache(0), None, None)
        self._durable = DurableTier(sessions, sessions._secret)
        self._shared = sessions._loader.shared
        codec = self._fresh.codec(projector)
        assert codec is not None  # Views of sessions can be stored.
        self._codec = codec
        self._unsigned = self._unreached = 0
        if self._shared:
            self._shared.peek(self._fresh.key("", projector), codec)

    def run(self, session_id: str | None) -> Iterator[Compared]:
        """Compare those of one session or of all."""
        for each in self._ids() if session_id is None else [session_id]:
            try:
                yield self._compare(each)
            except SessionNotFound:  # It was deleted, perhaps just now.
                continue

    def notes(self) -> list[str]:
        """What was not compared so far."""
        notes = []
        if count := self._unsigned:
            notes.append(f"not compared: {count:,} under another secret or none, or of other event types")
        if count := self._unreached:
            notes.append(f"not compared: what Redis has of {count:,}, as it did not answer")
        return notes

    def _ids(self) -> Iterator[str]:
        table = self._durable.table(self._fresh.key("", self._projector), self._codec)
        after = ""
        while page := table.plan(after, _PAGE):
            yield from (standing.session_id for standing in page)
            after = page[-1].session_id

    def _compare(self, session_id: str) -> Compared:
        key = self._fresh.key(session_id, self._projector)
        found: list[tuple[str, int, Snapshot | None]] = []
        if lying := self._durable.peek(key, self._codec):
            found.append(("database", lying[0].version, lying[1]))
        if shared := self._in_redis(key):
            found.append(("redis", *shared))
        self._unsigned += self._durable.unsigned(key, self._codec)
        findings = []
        for tier, version, stored in found:
            if wrong := self._wrong(session_id, stored):
                expected = "the view that the events give"
                findings.append(Finding(session_id, version, "snapshot", tier, expected, wrong))
        return Compared(sum(version for _, version, _ in found), findings, len(found))

    def _in_redis(self, key: SnapshotKey) -> tuple[int, Snapshot | None] | None:
        try:
            return self._shared.peek(key, self._codec) if self._shared else None
        except StoreUnavailable:  # It answered when this began: the other sessions are compared.
            self._unreached += 1
            return None

    def _wrong(self, session_id: str, stored: Snapshot | None) -> str | None:
        """What is stored instead of what should be; None if it is that."""
        if stored is None:
            return "what cannot be read"
        try:
            fresh = self._fresh.past(session_id, self._projector, stored.version)
        except UNFOLDABLE as error:
            return f"what cannot be compared: {type(error).__name__}"
        return "another view" if differs(stored, fresh) else None


def _exact(view: Any) -> Any:
    """A view without what every load says anew, such that 1, 1.0 and True are three values."""
    if isinstance(view, View):
        view = replace(view, session_id="", head=Head(0, b"")).to_dict()
    try:
        return msgspec.msgpack.encode(view, order="deterministic")
    except (TypeError, ValueError, OverflowError):
        return view
