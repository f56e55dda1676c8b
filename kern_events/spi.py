"""The second door, for authors of projectors and snapshot caches.

Everything else needs only `from kern_events import ...`. What stands here reads the log in bulk, in
the shape in which a projection wants it, and is as stable as the front door. Events come one for each
version, as recorded; `log.types.upcast` makes of them what they are today.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

from kern_events import chain, lineage
from kern_events.batch import event_of, expected_hash
from kern_events.codec import check_id
from kern_events.delta import StateEditor
from kern_events.errors import StoreError
from kern_events.events import TYPES, Draft, Event, Head, Kind, Receipt, to_datetime, to_microseconds
from kern_events.frozen import NOTHING, FrozenDict, FrozenList, freeze, thaw
from kern_events.lineage import Range
from kern_events.log import checked_expected, checked_head
from kern_events.numbers import LARGEST, check_optional, check_seconds, check_whole, whole
from kern_events.store import base
from kern_events.store.base import Difference, SnapshotPut, StoredChunk, head_name
from kern_events.turn import Claim, Claims, TurnRecorder

if TYPE_CHECKING:
    from kern_events.aio import AsyncSessionLog, AsyncTurnRecorder
    from kern_events.log import SessionLog

__all__ = [
    "NOTHING",
    "TYPES",
    "Claim",
    "Difference",
    "FrozenDict",
    "FrozenList",
    "Kind",
    "NewSnapshot",
    "Range",
    "SnapshotTable",
    "Standing",
    "StateEditor",
    "StoredHead",
    "Tail",
    "check_optional",
    "check_seconds",
    "check_whole",
    "checked_expected",
    "checked_head",
    "descendants",
    "described",
    "differences",
    "forget_snapshots",
    "freeze",
    "hash_at",
    "in_thread",
    "live_parts",
    "live_path",
    "missing",
    "namespaces",
    "own_path",
    "page",
    "point",
    "restore",
    "restores",
    "resumed",
    "resumed_async",
    "sizes",
    "tail",
    "thaw",
    "to_datetime",
    "to_microseconds",
    "whole",
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
    after, limit = check_whole("after", after), check_whole("limit", limit)
    head, rows = log._store.tail(log.namespace, session_id, after, limit)
    if head is None:
        return Tail(log._scope_of(session_id).empty_head(), (), 0)
    if not rows:
        return Tail(head, (), 0, after_hash is None or head.version != after or head.hash == after_hash)
    follows = after_hash is None or expected_hash(
        after_hash, chain.scope(log.namespace, session_id), rows[0]
    ) == bytes(rows[0][18])
    events = [event_of(log.namespace, session_id, row, log.types) for row in rows]
    return Tail(head, events, rows.size_bytes, follows)


def page(
    log: SessionLog, session_id: str, after: int, until: int, limit: int = 5_000
) -> tuple[Sequence[Event], int]:
    """Events recorded in the rows of a session, deleted or not, and about how many bytes they take.

    At least one, if there is one, and at most as many as `limit` and as a page takes: 8 MiB.
    """
    place = (check_id(session_id, "session_id"), check_whole("after", after), check_whole("until", until))
    rows = log._store.rows(log.namespace, *place, check_whole("limit", limit))
    return [event_of(log.namespace, session_id, row, log.types) for row in rows], rows.size_bytes


def live_path(log: SessionLog, session_id: str, version: int) -> Sequence[Range]:
    """The versions that count at a version, in order: ranges in the rows of this session and its parents."""
    place = (check_id(session_id, "session_id"), check_whole("version", version))
    return lineage.live_path(log._store, log.namespace, *place)


def live_parts(log: SessionLog, session_id: str, version: int) -> Iterator[Sequence[Range]]:
    """live_path by session, from its end: this session's part, then its parent's, as asked for."""
    place = (check_id(session_id, "session_id"), check_whole("version", version))
    return lineage.live_parts(log._store, log.namespace, *place)


def restores(log: SessionLog, session_id: str) -> Sequence[tuple[int, int]]:
    """The restores of a session: version and target of each, the oldest first."""
    return log._store.lineage(log.namespace, check_id(session_id, "session_id")).restores


def own_path(log: SessionLog, session_id: str, version: int) -> Sequence[Range]:
    """All versions in the rows of the session itself up to a version, abandoned ones included."""
    origin = log._store.lineage(log.namespace, check_id(session_id, "session_id")).origin
    version = check_whole("version", version)
    return [Range(session_id, origin + 1, version)] if version > origin else []


def hash_at(log: SessionLog, session_id: str, version: int) -> bytes | None:
    """The chain hash of a version in the rows of a session, None if it is not there."""
    check_id(session_id, "session_id")
    version = check_whole("version", version)
    rows = log._store.rows(log.namespace, session_id, version - 1, version, 1)
    return bytes(rows[0][18]) if rows else None


def point(
    log: SessionLog,
    session_id: str,
    head: Head,
    *,
    turn: int | None = None,
    version: int | None = None,
    at: datetime | None = None,
) -> int:
    """The version that a turn, a version or an aware time means in a session that stands at this head.

    A turn is one of the live path, and means the version before the next one started; a time means
    the highest version recorded by then; none of them means the head's version.

    Raises:
        SessionNotFound: The session has no events or was deleted.
        ValueError: There is no such turn or version, or `at` has no time zone.
        TypeError: More than one is given.
    """
    at_us = None if at is None else to_microseconds(at)
    return lineage.point(log._store, log.namespace, session_id, head, turn, version, at_us)


def described(log: SessionLog, session_id: str) -> dict[str, Any]:
    """What the log says a session is: its listing columns, as far as it has them, and `metadata`.

    It is read from the log's own tables, so it may be recorded again.
    """
    return log._described(check_id(session_id, "session_id"))


def restore(
    log: SessionLog, session_id: str, target: int, payload: dict[str, Any], head: Head, *, actor: str | None
) -> Receipt:
    """Record `session.restored` behind a head: from there on, the session goes on from the target.

    Raises:
        VersionConflict: The session does not stand at this head any more.
        As SessionLog.append beside that.
    """
    target = check_whole("target", target)
    turn = lineage.turn_at(log._store, log.namespace, check_id(session_id, "session_id"), target)
    draft = Draft("session.restored", payload, actor=actor, turn=turn)
    return log._record(log._prepare(session_id, [draft], ref=target, reserved=True), head).receipt


def descendants(log: SessionLog, session_id: str) -> Sequence[str]:
    """The forks of a session, and theirs: whom an erasure reaches."""
    return log._store.descendants(log.namespace, check_id(session_id, "session_id"))


class SnapshotTable:
    """Where snapshots by one projector lie in the log's own database: opaque bytes, which may vanish.

    Heads are found by version; chunks by name, which has to say what their content is (hex digits):
    what is stored again under a name has to be the same.
    """

    def __init__(self, log: SessionLog, projector: str) -> None:
        self._log = log
        self._projector = projector

    def head(self, session_id: str, until: int) -> StoredHead | None:
        """The newest one stored at or below a version."""
        until = check_whole("until", until)
        found = self._log._store.snapshot_head(self._log.namespace, session_id, self._projector, until)
        return None if found is None else StoredHead(found.name, _version_in(found.name), bytes(found.data))

    def names(self, session_id: str) -> tuple[list[int], set[str]]:
        """The versions that there are heads of, the oldest first, and the names of all chunks."""
        names = self._log._store.snapshot_names(self._log.namespace, session_id, self._projector)
        heads = [version for version in map(_version_in, names) if version]
        return heads, {name for name in names if not name.startswith("@")}

    def chunks(self, session_id: str, names: Sequence[str]) -> dict[str, bytes]:
        """Those of the chunks that there are."""
        return self._log._store.snapshot_chunks(self._log.namespace, session_id, self._projector, names)

    def put(
        self,
        session_id: str,
        epoch: int,
        version: int,
        *,
        chunks: Mapping[str, bytes] = NOTHING,
        head: bytes | None = None,
        drop: Sequence[int | str] = (),
    ) -> bool:
        """Store chunks and a head, and drop heads of other versions or names, in one transaction.

        Returns:
            False if the session is of another epoch by now, or deleted: nothing is stored then.
        """
        one = NewSnapshot(session_id, epoch, version, chunks, head, drop)
        return self.put_all([one])[0]

    def put_all(self, snapshots: Sequence[NewSnapshot]) -> list[bool]:
        """As put, for several sessions in one transaction."""
        puts = [each.rows() for each in snapshots]
        return self._log._store.put_snapshots(self._log.namespace, self._projector, puts)

    def plan(self, after: str, limit: int) -> list[Standing]:
        """Sessions by id, and how far each is stored; deleted ones are left out."""
        limit = check_whole("limit", limit)
        rows = self._log._store.snapshot_plan(self._log.namespace, self._projector, after, limit)
        return [
            Standing(session_id, version, first, 0 if name is None else _version_in(name))
            for session_id, version, first, name in rows
        ]

    def others(self, session_id: str, projectors: str) -> int:
        """Under how many other names that begin with `projectors` there are heads of a session."""
        return self._log._store.other_snapshots(self._log.namespace, session_id, projectors, self._projector)

    def forget_others(self, session_id: str, projectors: str) -> int:
        """Drop what is stored under other names that begin with `projectors`; how many rows that was."""
        return self._log._store.forget_snapshots(self._log.namespace, session_id, projectors, self._projector)


def forget_snapshots(log: SessionLog, session_id: str) -> int:
    """Drop what is stored of a session's views, by whatever projector; how many rows that was."""
    return log._store.forget_snapshots(log.namespace, check_id(session_id, "session_id"), "", "")


class NewSnapshot(NamedTuple):
    """What is to be stored of one session; see SnapshotTable.put."""

    session_id: str
    epoch: int
    version: int
    chunks: Mapping[str, bytes] = NOTHING
    head: bytes | None = None
    drop: Sequence[int | str] = ()

    def rows(self) -> SnapshotPut:
        """As the store takes it."""
        # One that no session is of, as -1, is one that it is of no more.
        epoch, version = check_whole("epoch", self.epoch, -LARGEST), check_whole("version", self.version)
        rows = [StoredChunk(name, version, data) for name, data in self.chunks.items()]
        if self.head is not None:
            rows.append(StoredChunk(head_name(version), version, self.head))
        drop = [each if isinstance(each, str) else head_name(check_whole("drop", each)) for each in self.drop]
        return SnapshotPut(check_id(self.session_id, "session_id"), epoch, rows, drop)


class Standing(NamedTuple):
    """How far a session is stored.

    `version` is its last one, `origin` the last that it shares with its parent, `stored` that of the
    newest head stored, 0 if there is none.
    """

    session_id: str
    version: int
    origin: int
    stored: int


def missing(log: SessionLog, said: str) -> StoreError:
    """The error for events that have to be there, and are not seen: StoreCorrupt, or row-level security."""
    return base.missing(said, log._store.hides_rows())


def differences(log: SessionLog) -> Sequence[Difference]:
    """What the database has not, or has otherwise than it was made, as `verify` finds it."""
    return log._store.differences()


def namespaces(log: SessionLog) -> Sequence[str] | None:
    """In which namespaces there are sessions, deleted ones included, sorted; None if there is no log."""
    return log._store.namespaces()


def sizes(log: SessionLog) -> tuple[int, int]:
    """How many sessions there are that are not deleted, and how many events are in their rows."""
    return log._store.sizes(log.namespace)


class StoredHead(NamedTuple):
    """What is stored of a snapshot: under a name, which says its version; 0 if the name says none."""

    name: str
    version: int
    data: bytes


def _version_in(name: str) -> int:
    """The version that the name of a head says, as we write it; else 0."""
    digits = name[1:]
    version = int(digits) if digits.isascii() and digits.isdigit() and len(digits) == 19 else 0
    return version if name == head_name(version) else 0


def resumed(
    log: SessionLog,
    session_id: str,
    claims: Claims,
    *,
    buffered: bool,
    actor: str | None,
    meta: Mapping[str, Any] | None,
) -> TurnRecorder:
    """As SessionLog.resume, of the turn that `claims` names when the block is entered.

    It is called without a conflict first, and again with one where somebody came between; it raises
    that, or names a turn and a head anew.
    """
    return log._resumed(session_id, claims, buffered=buffered, actor=actor, meta=meta)


def resumed_async(
    log: AsyncSessionLog,
    session_id: str,
    claims: Claims,
    *,
    buffered: bool,
    actor: str | None,
    meta: Mapping[str, Any] | None,
) -> AsyncTurnRecorder:
    """As resumed; `claims` is called in a thread."""
    return log._resumed(session_id, claims, buffered=buffered, actor=actor, meta=meta)


def in_thread(
    log: AsyncSessionLog, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> Awaitable[T]:
    """Run a whole operation on the log's pool; a cancelled await is decided before it returns."""
    return log._in_thread(function, *args, **kwargs)
