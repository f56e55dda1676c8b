"""Recompute everything the log claims: chain, versions, turns, head rows, listing columns.

A chain shows any change to what was recorded, as long as it is not re-chained to the end: who can
write the database can replace a whole history with another consistent one. Receipts kept elsewhere
show that; this module alone cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from kern_events import chain
from kern_events.batch import (
    HANDED_DOWN,
    LISTING,
    TOMBSTONES,
    StoredRow,
    expected_hash,
    is_clocked,
    listing_of,
)
from kern_events.clock import AHEAD_US
from kern_events.codec import decode
from kern_events.errors import ChainBroken, InvalidEvent, SessionNotFound, StoreError
from kern_events.events import Kind
from kern_events.store.base import ERASING, HOUR_US, PAGE_ROWS, HeadRow, Snapshot

SCHEMA: Final = "schema"
"""The problem of a finding that concerns the database, and no session."""

_LAST: Final = 2**63 - 1
_NAMED: Final = 10

Progress = Callable[[int, int], None]


class Finding(msgspec.Struct, frozen=True):
    """One thing that is not as it was recorded.

    Attributes:
        session_id: The session; empty where the problem is the schema.
        version: The event, or the head's version.
        problem: changed, missing, foreign, erased_without_tombstone, undecodable, head or orphan;
            snapshot where those are verified too. schema: the database has not all that it was made with,
            the triggers say, that keep the log append-only; `migrate` mends it.
        field: What of it: `hash`, `version`, or the column of the head row; where the snapshot lies; what
            of the schema, as in `trigger kern_events_rows`.
        expected: What the log should say.
        found: What it says.
    """

    session_id: str
    version: int
    problem: str
    field: str
    expected: str
    found: str


class Report(msgspec.Struct, frozen=True):
    """The outcome of verify.

    Attributes:
        sessions: How many sessions were verified.
        events: How many events.
        findings: Everything that is not as it was recorded; empty is good.
        notes: What whoever runs this should know; no finding.
        snapshots: How many stored snapshots were compared with the events; 0 where that was not asked for.
    """

    sessions: int
    events: int
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    snapshots: int = 0

    @property
    def ok(self) -> bool:
        """Whether there is no finding."""
        return not self.findings

    def check(self) -> None:
        """Raise ChainBroken for the first finding, if there is one; StoreError if it is of the schema."""
        if self.findings:
            first = self.findings[0]
            if first.problem == SCHEMA:
                raise StoreError(f"{first.field}: {first.found}; run `kern-events migrate --db URL`")
            raise ChainBroken(first.session_id, first.version, first.expected, first.found)

    def with_notes(self, notes: Sequence[str]) -> Report:
        """The same report with these notes instead."""
        return msgspec.structs.replace(self, notes=tuple(notes))


def verify_snapshot(
    snapshot: Snapshot,
    namespace: str,
    session_id: str | None,
    progress: Progress | None,
    now_us: int = _LAST,
) -> Report:
    """Verify one session or all of a namespace in one consistent state; what is later than now is noted.

    Raises:
        SessionNotFound: The session given was never recorded.
    """
    differences = snapshot.differences()
    amiss = [Finding("", 0, SCHEMA, *difference) for difference in differences]
    if any(difference.bars_reading for difference in differences):
        return Report(0, 0, tuple(amiss), ("no session was read, as the tables are others",))
    findings: list[Finding] = []
    misdated: list[str] = []
    sessions = events = 0
    ancestry = _Ancestry(snapshot, namespace)
    for head in snapshot.head_rows(namespace, session_id):
        try:
            walk = _Walk(namespace, head, ancestry.beginning(head))
        except UnicodeEncodeError:
            findings.append(_damaged(head))
            continue
        findings += walk.run(snapshot)
        sessions, events = sessions + 1, events + walk.events
        if (since := walk.misdated_since(now_us)) is not None:
            misdated.append(f"{head.session_id!r} from version {since:,}")
        if progress:
            progress(sessions, events)
    for orphan, count in snapshot.orphans(namespace):
        if session_id in (None, orphan):
            findings.append(Finding(orphan, 0, "orphan", "head", "a head row", f"{count} events without one"))
    if session_id is not None and not sessions and not findings:
        raise SessionNotFound(session_id)
    findings.sort(key=lambda finding: finding.session_id)
    return Report(sessions, events, (*findings, *amiss), _notes(misdated))


def _notes(misdated: Sequence[str]) -> tuple[str, ...]:
    """What there is to know of sessions whose times are ahead; some of them, as there may be many."""
    if not misdated:
        return ()
    more = f" and {len(misdated) - _NAMED:,} more" if len(misdated) > _NAMED else ""
    some = ", ".join(misdated[:_NAMED])
    return (f"dated ahead of the recorder's clock or of this one: {some}{more}",)


def _damaged(head: HeadRow) -> Finding:
    """A session whose id, or whose parent's id, is no text any more: nothing can be looked up by it."""
    return Finding(
        _text(head.session_id), head.version, "changed", "session_id", "text", "bytes that are none"
    )


class _Beginning(NamedTuple):
    """What a session's first event goes on from."""

    hash: bytes
    epoch: int = 0
    owner: str | None = None


class _Origin(NamedTuple):
    """What a head row says of where its session comes from."""

    epoch: int
    parent: str | None
    version: int


def _is_parent_erased(snapshot: Snapshot, namespace: str, head: HeadRow) -> bool:
    """Whether a fork's parent was erased since, or has lost what it was handed down itself."""
    if head.fork_parent is None:
        return False
    tombstone = snapshot.newest_of(namespace, head.fork_parent, ERASING, _LAST)
    if tombstone is not None and tombstone[0] > (head.fork_version or 0):
        return True
    parent = next(iter(snapshot.head_rows(namespace, head.fork_parent)), None)
    if parent is None or parent.fork_version is None:
        return False
    first = snapshot.page(namespace, parent.session_id, parent.fork_version, 1)
    return bool(first) and first[0][5] == Kind.FORK and first[0][14] is None


class _Ancestry:
    """Where forks come from, over all of one snapshot: each head row that forks share is read once."""

    def __init__(self, snapshot: Snapshot, namespace: str) -> None:
        self._snapshot = snapshot
        self._namespace = namespace
        self._origins: dict[str, _Origin | None] = {}
        self._skips: dict[str, str | None] = {}

    def beginning(self, head: HeadRow) -> _Beginning:
        """What a session's first event goes on from."""
        scope = chain.scope(self._namespace, head.session_id)
        if head.fork_parent is None or head.fork_version is None:
            return _Beginning(chain.genesis(scope))
        parent = self._origin(head.fork_parent)
        epoch = parent.epoch if parent else 0
        if head.fork_version < 1:
            return _Beginning(b"", epoch)  # Nothing begins there.
        owner = self._owner(head.fork_parent, head.fork_version)
        rows = self._snapshot.page(self._namespace, owner, head.fork_version - 1, 1)
        parent_hash = rows[0][18] if rows and rows[0][0] == head.fork_version else b""
        genesis = chain.fork_genesis(scope, head.fork_parent, head.fork_version, parent_hash)
        return _Beginning(genesis, epoch, owner)

    def _owner(self, session_id: str, version: int) -> str:
        """The session in whose rows a version of this one lies: itself, or one that it was forked from."""
        owner: str | None = session_id
        while owner is not None and (origin := self._origin(owner)) is not None:
            if origin.parent is None or version > origin.version:
                return owner
            owner = self._skip(owner)
        return ""

    def _skip(self, session_id: str) -> str | None:
        """The nearest ancestor that shares less with its own parent than this session does.

        What a session shares, none of those between has in rows of its own. None if there is no such
        ancestor: a head row is missing, or a damaged one names its own child as its parent.
        """
        waiting: dict[str, _Origin] = {}
        node: str | None = session_id
        while node is not None and node not in self._skips and node not in waiting:
            origin = self._origin(node)
            if origin is None or origin.parent is None:
                break
            waiting[node] = origin
            node = origin.parent
        for node, origin in reversed(waiting.items()):
            above = origin.parent
            while above is not None and self._shares(above, origin.version):
                above = self._skips.get(above)
            self._skips[node] = above
        return self._skips[session_id]

    def _shares(self, session_id: str, version: int) -> bool:
        origin = self._origin(session_id)
        return origin is not None and origin.parent is not None and origin.version >= version

    def _origin(self, session_id: str) -> _Origin | None:
        if session_id not in self._origins:
            try:
                row = next(iter(self._snapshot.head_rows(self._namespace, session_id)), None)
            except UnicodeEncodeError:  # An id that is no text any more; its own fork is reported.
                row = None
            self._origins[session_id] = row and _Origin(row.epoch, row.fork_parent, row.fork_version or 0)
        return self._origins[session_id]


class _Walk:
    """One session from its genesis to its head: what the events say, against what the head row says."""

    def __init__(self, namespace: str, head: HeadRow, beginning: _Beginning) -> None:
        self.events = 0
        self._namespace = namespace
        self._head = head
        self._scope = chain.scope(namespace, head.session_id)
        self._version = head.fork_version or 0
        self._hash, self._epoch, self._owner = beginning
        self._turn = self._branch = self._at = self._created = self._position = 0
        self._status = "open"
        self._listing: dict[str, str | None] = dict.fromkeys(LISTING)
        self._erased: list[int] = []
        self._handed_down: list[int] = []  # of those, what may have gone with the parent
        self._covered: list[tuple[int, int]] = []
        self._findings: list[Finding] = []
        self._clocked = 0  # the first version that says so

    def misdated_since(self, now_us: int) -> int | None:
        """From which version on times are not those of recording, as far as that can be seen at this time."""
        if self._clocked:
            return self._clocked
        return self._version if self._at - now_us > AHEAD_US else None

    def run(self, snapshot: Snapshot) -> list[Finding]:
        for row in self._rows(snapshot):
            self._event(row)
        self._check_erasures(snapshot)
        self._check_head()
        return self._findings

    def _rows(self, snapshot: Snapshot) -> Iterator[StoredRow]:
        after = -1
        while rows := snapshot.page(self._namespace, self._head.session_id, after, PAGE_ROWS):
            after = rows[-1][0]
            yield from rows
            del rows  # Two pages at once would be twice the memory.

    def _find(self, version: int, problem: str, field: str, expected: Any, found: Any) -> None:
        self._findings.append(
            Finding(self._head.session_id, version, problem, field, _text(expected), _text(found))
        )

    def _event(self, row: StoredRow) -> None:
        version, hash = row[0], row[18]
        if version != self._version + 1:
            self._find(version, "missing", "version", self._version + 1, version)
        expected = expected_hash(self._hash, self._scope, row)
        if hash != expected:
            self._find(version, "changed", "hash", expected, hash)
        if row[1] <= self._position:  # Whoever follows has passed it by.
            self._find(version, "changed", "position", f"above {self._position}", row[1])
        self._position = row[1]
        # The next event is held against the stored hash, so that one change is one finding.
        self._version, self._hash = version, hash
        self.events += 1
        self._follow(row)

    def _follow(self, row: StoredRow) -> None:
        version, type, kind, turn = row[0], row[3], row[5], row[6]
        self._created = self._created or row[8]
        self._at = row[8]
        if not self._clocked and is_clocked(row):
            self._clocked = version
        if kind == Kind.TURN_START:
            self._turn = max(self._turn, turn)
        elif kind == Kind.RESTORE:
            self._turn, self._branch = turn, version
        elif kind == Kind.FORK:
            self._turn = turn
        elif type == "session.deleted":
            self._branch = version
        payload = self._payload(row)
        if type.startswith("session."):
            self._follow_session(type, version, payload, row)

    def _payload(self, row: StoredRow) -> Any:
        if row[14] is None:
            self._erased.append(row[0])
            if row[5] in HANDED_DOWN:
                self._handed_down.append(row[0])
            return None
        try:
            return decode(row[14]) if row[12] == 0 else None
        except ValueError:
            self._find(row[0], "undecodable", "payload", "JSON", "something else")
            return None

    def _follow_session(self, type: str, version: int, payload: Any, row: StoredRow) -> None:
        if type in TOMBSTONES:
            self._epoch += 1
            self._covered += _ranges(row)
        if type == "session.deleted":
            self._status, self._listing = "deleted", dict.fromkeys(LISTING)
        elif type == "session.closed":
            self._status = "closed"
        elif type == "session.created":
            self._status = "open"
        if isinstance(payload, dict):
            try:
                self._listing |= listing_of(type, payload) or {}
            except InvalidEvent:
                self._find(version, "changed", "payload", "valid listing columns", "others")

    def _check_erasures(self, snapshot: Snapshot) -> None:
        if self._handed_down and _is_parent_erased(snapshot, self._namespace, self._head):
            self._covered += [(version, version) for version in self._handed_down]
        for version in uncovered(self._erased, self._covered):
            self._find(version, "erased_without_tombstone", "payload", "a tombstone", "none")

    def _check_head(self) -> None:
        head, hour = self._head, self._at // HOUR_US
        columns = [
            ("version", self._version, head.version),
            ("head_hash", self._hash, head.head_hash),
            ("turn", self._turn, head.turn),
            ("branch", self._branch, head.branch),
            ("epoch", self._epoch, head.epoch),
            ("status", self._status, head.status),
            ("created_at", self._created, head.created_at),
            ("updated_at", self._at, head.updated_at),
            ("updated_hour", hour, head.updated_hour),
            ("fork_version", head.fork_parent is not None, head.fork_version is not None),
            # Of a fork that was made before this column there is none.
            ("fork_owner", self._owner if head.fork_owner is not None else None, head.fork_owner),
            *zip(LISTING, self._listing.values(), head.listing, strict=True),
        ]
        for field, expected, found in columns:
            if expected != found:
                self._find(head.version, "head", field, expected, found)


def uncovered(versions: Sequence[int], ranges: Sequence[tuple[int, int]]) -> Iterator[int]:
    """Which versions lie in none of the ranges, both ends included; the lowest first."""
    waiting = iter(sorted(ranges))
    reach = next(waiting, None)
    covered = -1
    for version in sorted(versions):
        while reach is not None and reach[0] <= version:
            covered, reach = max(covered, reach[1]), next(waiting, None)
        if covered < version:
            yield version


def _ranges(row: StoredRow) -> list[tuple[int, int]]:
    try:
        ranges = decode(row[10])["erased"]
        return [(int(first), int(last)) for first, last in ranges]
    except (ValueError, TypeError, KeyError):
        return []


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.hex()
    # What is no text is shown, and cannot stop the report from being printed.
    return "nothing that fits" if value is None else str(value).encode("utf-8", "backslashreplace").decode()
