"""The private seam between the log and its databases.

A store answers one attempt at a time: it lands behind one base, or it does not. What to do when it
does not, or when the answer is lost, is decided in retry.py, once for all databases.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from operator import itemgetter
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from sqlalchemy.engine import Connection

from kern_events import chain
from kern_events.batch import LISTING, Batch, Fence, Linked, StoredRow
from kern_events.errors import StoreCorrupt, StoreError
from kern_events.events import Head, Kind, Receipt, SessionInfo

logger: Final = logging.getLogger("kern_events")
logger.addHandler(logging.NullHandler())

HOUR_US: Final = 3_600_000_000
SLICE_ROWS: Final = 2_000
"""A deletion erases so many events in a transaction, or the content of a page; then others may write."""

ERASING: Final = (*["session.erased"] * 4, "session.deleted")  # five, see newest_of
DELETING: Final = ("session.deleted",) * 5

PAGE_BYTES: Final = 8 << 20
"""Rows are read in pages that end where their contents come to so much: the last row may go beyond it."""

PAGE_ROWS: Final = 1_000
"""The most rows of a page, whatever limit was asked for."""

NOBODY: Final[Mapping[str, int | None]] = MappingProxyType({})

T = TypeVar("T")
Tombstone = Callable[[Head], Batch]  # the tombstone's batch, for the head that it is recorded behind
Base = Head | int | None
Expected = Head | int | None


class Landed(NamedTuple):
    """The append is recorded."""

    receipt: Receipt
    head: Head


class Slice(NamedTuple):
    """How far a deletion has come: nothing is left up to a version, or at all."""

    version: int
    left: bool


class Refused(NamedTuple):
    """Nothing was written: the attempt's base is not (or no longer) where the session stands."""

    base: Head | int


class AnswerLost(Exception):
    """The attempt may or may not have landed; `bases` are the heads that its batches were linked to."""

    def __init__(self, *bases: Head) -> None:
        super().__init__(*bases)
        self.bases = bases

    @property
    def base(self) -> Head:
        """What the only batch was linked to."""
        return self.bases[0]


class Found(NamedTuple):
    """What a look-up saw: the head, the rows behind the base, the key's rows, all in one statement.

    `user_id` is whose session it is, `erased` whether a tombstone stands behind the key's rows, `barred`
    the first version that the batch's fence does not let it stand behind.
    """

    head: Head
    behind: Sequence[StoredRow] = ()
    keyed: Sequence[StoredRow] = ()
    user_id: str | None = None
    erased: bool = False
    barred: int | None = None


class Rows(list[T]):
    """A page of rows in order.

    `size_bytes` is what their payloads, natives and metas take; with `more`, the page ended at its limit
    or for its bytes, and there may be more rows than these.
    """

    size_bytes: int = 0
    more: bool = False


class HeadRow(NamedTuple):
    """A whole row of kern_sessions."""

    session_id: str
    version: int
    head_hash: bytes
    turn: int
    branch: int
    epoch: int
    status: Any
    listing: tuple[str | None, ...]
    fork_parent: str | None
    fork_version: int | None
    created_at: int
    updated_at: int
    updated_hour: int
    fork_owner: str | None

    @property
    def head(self) -> Head:
        """Where the session stands."""
        return Head(
            self.version, self.head_hash, self.turn, self.branch, self.epoch, self.status, self.updated_at
        )

    @property
    def described(self) -> dict[str, str]:
        """What the listing columns say, by column."""
        columns = zip(LISTING, self.listing, strict=True)
        return {column: value for column, value in columns if value is not None}


class Lineage(NamedTuple):
    """Where a session comes from, and the restores in it.

    `origin` is the last version that it shares with its parent, 0 where it has none. `restores` are
    (version, target), the oldest first. `owner` is the session in whose rows `origin` lies, or one on the
    way there: the parent, or one that the parent itself was forked from, at that version or behind it.
    """

    parent: str | None
    origin: int
    restores: Sequence[tuple[int, int]]
    owner: str | None


class Origin(NamedTuple):
    """The point that a fork goes on from: in `parent`, whose version lies in the rows of `owner`.

    `epoch` is the parent's when it was described: what was erased since must not come back in a fork.
    """

    parent: str
    owner: str
    version: int
    turn: int
    epoch: int


class Adoption(NamedTuple):
    """Rows of another log, checked, to be recorded as they are.

    `whose` is a batch without events, `base` exactly the head that the rows go on from, or None if the
    session must be new. `linked` sets every listing column, `commits` are what stands for the content
    of each row, if it is erased. A new fork needs its parent to be of `parent_epoch`. `erasures` of the
    rows are tombstones; what is before `erase_before` loses its content.
    """

    whose: Batch
    base: Head | None
    linked: Linked
    commits: Sequence[bytes | None]
    created_us: int
    fork_parent: str | None
    fork_version: int | None
    fork_owner: str | None
    parent_epoch: int
    erasures: int
    erase_before: int

    @property
    def namespace(self) -> str:
        """The tenant."""
        return self.whose.namespace

    @property
    def session_id(self) -> str:
        """The session."""
        return self.whose.session_id


class StoredChunk(NamedTuple):
    """One row of kern_snapshots: opaque bytes under a name, and the version that they are of."""

    name: str
    version: int
    data: bytes


class Bound(NamedTuple):
    """How far the feed can be read.

    Everything at or below `settled` is final: there, or never to be. `end` is the highest position that
    could be seen. In between, the transactions `waiting` (with their pids; None is a prepared one) may
    still place events; those of another `server`, after a failover, say nothing.
    """

    settled: int
    end: int
    waiting: Mapping[str, int | None] = NOBODY
    server: Any = None


class Parked(NamedTuple):
    """A session that a consumer has set aside: its events from `version` on wait.

    Attributes:
        session_id: The session.
        version: The event that failed.
        attempts: How often it was tried.
        retry_us: When it is tried again, microseconds since 1970; None: when somebody says so.
        parked_us: When it was set aside.
        error: The type of what the handler raised, and where; never its text, which may hold content.
    """

    session_id: str
    version: int
    attempts: int
    retry_us: int | None
    parked_us: int
    error: str


class Due(NamedTuple):
    """A session that is to be tried again, as it is set aside."""

    session_id: str
    version: int
    attempts: int
    retry_us: int


class ConsumerRow(NamedTuple):
    """One row of kern_consumers."""

    name: str
    position: int
    owner: str | None
    expires_at: int | None
    updated_at: int


class Held(Protocol):
    """A consumer that is ours to work on, for the length of a batch.

    In a sink's transaction all of it takes effect at its commit, or nothing does; else each method is
    a transaction of its own, and none has an effect once the lease is somebody else's.
    """

    connection: Connection | None
    position: int

    def attempt(self) -> AbstractContextManager[None]:
        """What is done within is undone together if it raises."""

    def renew(self) -> None:
        """Make it last, while it is ours."""

    def move(self, position: int) -> None:
        """Everything at or below a position is done."""

    def parked_ids(self) -> set[str]:
        """The sessions that are set aside."""

    def due(self) -> Due | None:
        """The first that is to be tried again, for whoever holds the consumer."""

    def park(
        self, session_id: str, version: int, attempts: int, delay_us: int | None, error: str,
        was: Due | None = None,
    ) -> None:  # fmt: skip
        """Set a session aside; it is tried again after a delay, or when somebody says so.

        With `was`, nothing if it is not set aside like that any more: somebody said otherwise meanwhile.
        """

    def unpark(self, session_id: str, was: Due) -> None:
        """Its events follow those of the others again, unless somebody said otherwise meanwhile."""


class Consumers(Protocol):
    """The consumers of one database."""

    def check_room(self, transactional: bool) -> None:
        """ValueError if the engine can never give the connections that a consumer uses at once."""

    def begin(self, namespace: str, name: str, after: int) -> None:
        """A consumer that is new begins behind this position."""

    def in_transaction(
        self, namespace: str, name: str, owner: str, lease_us: int
    ) -> AbstractContextManager[Held | None]:
        """A sink's transaction; None while somebody else works on this consumer."""

    def leased(self, namespace: str, name: str, owner: str, lease_us: int) -> Held | None:
        """A lease, taken or renewed; None while somebody else has it."""

    def release(self, namespace: str, name: str, owner: str) -> None:
        """Give a lease back, if it is ours."""

    def all(self, namespace: str) -> Sequence[ConsumerRow]:
        """How far each consumer has come."""

    def parked(self, namespace: str, name: str) -> Sequence[Parked]:
        """What is set aside, the oldest first."""

    def retry(self, namespace: str, name: str, session_id: str) -> bool:
        """Have a session tried again now; False if it is not set aside."""

    def skip(self, namespace: str, name: str, session_id: str, version: int) -> bool:
        """Have the session go on behind this version; False if it does not wait there."""


class SnapshotPut(NamedTuple):
    """What is to be stored of one session, if it still is of that epoch and not deleted, and what goes."""

    session_id: str
    epoch: int
    chunks: Sequence[StoredChunk]
    drop: Sequence[str] = ()


ROW_SECURITY: Final = "row-level security is in force for this role, and what its policies hide is not seen"


def missing(said: str, is_hidden: bool) -> StoreError:
    """The error for rows that have to be there, and are not seen."""
    if is_hidden:
        return StoreError(f"{said}: {ROW_SECURITY}")
    return StoreCorrupt(f"{said}; run `kern-events verify`")


class Difference(NamedTuple):
    """One thing that the database has not, or has otherwise.

    Attributes:
        what: What it is, as in `trigger kern_events_rows`, or `positions`.
        expected: How it should be.
        found: How it is.
    """

    what: str
    expected: str
    found: str

    @property
    def bars_reading(self) -> bool:
        """Whether the log cannot be read like this: tables or columns are missing, or others."""
        kind, _, name = self.what.partition(" ")
        return kind in ("table", "column") and name.startswith(("kern_sessions", "kern_events"))

    def __str__(self) -> str:
        return f"{self.what}: {self.found}"


class Snapshot(Protocol):
    """One consistent state of the log, as verify reads it."""

    def head_rows(self, namespace: str, session_id: str | None) -> Iterator[HeadRow]:
        """The head rows of one session or of all, deleted ones included."""

    def page(self, namespace: str, session_id: str, after: int, limit: int) -> Rows[StoredRow]:
        """Events of one session by version."""

    def newest_of(
        self, namespace: str, session_id: str, types: Sequence[str], before: int
    ) -> StoredRow | None:
        """As in Store."""

    def orphans(self, namespace: str) -> Sequence[tuple[str, int]]:
        """Sessions that have events and no head row, with how many."""

    def differences(self) -> Sequence[Difference]:
        """What the database has not, or has otherwise than this release makes it."""


class Store(Protocol):
    """One database. Each method is one operation, safe from any thread; drivers' exceptions stay in it."""

    dialect: str
    consumers: Consumers
    on_commit: Callable[[], None]
    """Called after each commit of this process that may have recorded events."""

    def attempt(self, batch: Batch, base: Base, lock: bool = False) -> Landed | Refused:
        """Record a batch behind `base` (None: the head, whatever it is), or refuse. May raise AnswerLost."""

    def submit(self, batch: Batch, base: Base) -> Future[Landed | Refused] | None:
        """As attempt, without holding the thread; None where the store has no queue."""

    def look_up(self, batch: Batch, base: int, count: int, *, durable: bool = False) -> Found:
        """The head, the `count` rows behind `base` and the rows of the batch's key; what its fence bars.

        With `durable`, once all of it is as safe as what an attempt has answered: what can be read may be
        less than that, as where the wait of a commit for its standby was broken off.
        """

    def attempt_many(self, batches: Sequence[tuple[Batch, Base]]) -> list[Landed] | None:
        """Record several batches in one transaction; None if one is refused, which undoes all."""

    def within(
        self, connection: Connection, batch: Batch, base: Base, held: Sequence[Any] | None = None
    ) -> tuple[Landed | Refused, Found | None]:
        """As attempt, in the caller's transaction; a refusal comes with its look-up.

        `held` is what holding has given in this transaction, since which nothing was appended.
        """

    def holding(self, namespace: str, session_id: str) -> tuple[str, tuple[Any, ...]] | None:
        """The statement that holds a head for within, and its values, for whoever can send it with others.

        None where within has no need of it. Its one row is None for a session that is not there.
        """

    def delete(self, namespace: str, session_id: str, tombstone: Tombstone) -> Landed | None:
        """Append the tombstone and erase a slice of what is before it; None if there is nothing to delete.

        From then on nobody sees what is left, and `erase_on` has to be called until nothing is.
        """

    def delete_within(
        self, connection: Connection, namespace: str, session_id: str, tombstone: Tombstone, *, whole: bool
    ) -> Landed | None:
        """As delete, in the caller's transaction; with `whole`, nothing is left."""

    def erase_on(self, namespace: str, session_id: str, after: int) -> Slice:
        """Erase a slice more of what a deletion has left above a version, and let others write then."""

    def unfinished(self, namespace: str) -> Sequence[str]:
        """The sessions whose deletion has left something: one is at work, or was killed."""

    def head_within(self, connection: Connection, namespace: str, session_id: str) -> Head | None:
        """As head, in the caller's transaction, with what that has appended."""

    def fork(self, batch: Batch, origin: Origin) -> Landed | Refused | None:
        """Begin a session with the batch; refused if it exists, None if the parent is gone or erased from."""

    def adopt(self, adoption: Adoption) -> bool:
        """Record rows of another log; False if the session, or a fork's parent, is not where they go on."""

    def now_us(self) -> int:
        """The time by the clock that all writers of this database are held against."""

    def head(self, namespace: str, session_id: str) -> Head | None:
        """The head, or None if the session is unknown."""

    def rows(
        self, namespace: str, session_id: str, after: int, until: int | None, limit: int
    ) -> Rows[StoredRow]:
        """A page of the events of one session by version; empty only if there are none."""

    def tail(
        self, namespace: str, session_id: str, after: int, limit: int
    ) -> tuple[Head | None, Rows[StoredRow]]:
        """The head and a page of the events after a version, in one statement."""

    def head_row(self, namespace: str, session_id: str) -> HeadRow | None:
        """The whole head row, or None if the session is unknown."""

    def lineage(self, namespace: str, session_id: str) -> Lineage:
        """The session's parent and restores; neither, if it is unknown."""

    def turn_starts(self, namespace: str, session_id: str, turn: int) -> Sequence[int]:
        """The versions at which turns of that number started, on whatever branch, the newest first."""

    def all_turn_starts(self, namespace: str, session_id: str) -> Sequence[tuple[int, int]]:
        """Version and number of every turn, on whatever branch, by number."""

    def turn_at(self, namespace: str, session_id: str, version: int) -> int:
        """The highest turn that had started on the branch of a version of the session's own."""

    def marks(self, namespace: str, session_id: str, after: int, until: int) -> Rows[StoredRow]:
        """A page of the events between versions that begin a branch: restores, and a fork's first."""

    def newest_of(
        self, namespace: str, session_id: str, types: Sequence[str], before: int
    ) -> StoredRow | None:
        """The newest event of one of five types below a version."""

    def forks(self, namespace: str, session_id: str) -> Sequence[tuple[str, int, Any]]:
        """The sessions forked from this one: id, version and status of each."""

    def descendants(self, namespace: str, session_id: str) -> Sequence[str]:
        """The forks of a session, and theirs."""

    def version_at(self, namespace: str, session_id: str, at_us: int) -> int:
        """The highest version recorded by a time; 0 if there is none."""

    def feed_last(self) -> int:
        """The highest position that can be seen."""

    def feed_bound(self, before: Bound) -> Bound:
        """How far the feed can be read by now; never waits."""

    def feed_held_by(self) -> Sequence[tuple[int | None, float]]:
        """The transactions that may hold the feed up: pid, and age in seconds."""

    def feed(self, namespace: str, after: int, until: int, limit: int) -> Rows[tuple[str, StoredRow]]:
        """A page of the events of all sessions by position, with their session ids."""

    def feed_count(self, namespace: str, after: int, limit: int) -> int:
        """How many events there are behind a position, counted up to a limit."""

    def sessions(
        self, namespace: str, user_id: str | None, after: tuple[int, str] | None, limit: int
    ) -> Sequence[SessionInfo]:
        """Sessions that are not deleted, the newest first."""

    def snapshot_head(
        self, namespace: str, session_id: str, projector: str, until: int
    ) -> StoredChunk | None:
        """The newest head among stored snapshots (its name begins with @) at or below a version."""

    def snapshot_names(self, namespace: str, session_id: str, projector: str) -> Sequence[str]:
        """The names of everything that is stored, in their order."""

    def snapshot_chunks(
        self, namespace: str, session_id: str, projector: str, names: Sequence[str]
    ) -> dict[str, bytes]:
        """Those of the named chunks that there are."""

    def put_snapshots(self, namespace: str, projector: str, puts: Sequence[SnapshotPut]) -> list[bool]:
        """Store snapshots of several sessions in one transaction; False for each that comes too late."""

    def snapshot_plan(
        self, namespace: str, projector: str, after: str, limit: int
    ) -> Sequence[tuple[str, int, int, str | None]]:
        """Sessions by id: last version, versions before its own, and the newest head stored."""

    def forget_snapshots(self, namespace: str, session_id: str, projectors: str, kept: str) -> int:
        """Drop what is stored by projectors whose names begin so, but for one; how much it was."""

    def other_snapshots(self, namespace: str, session_id: str, projectors: str, kept: str) -> int:
        """By how many projectors, whose names begin so, but for one, heads are stored of a session."""

    def namespaces(self) -> Sequence[str] | None:
        """In which namespaces there are sessions, deleted ones included; None if there is no log."""

    def sizes(self, namespace: str) -> tuple[int, int]:
        """How many sessions there are that are not deleted, and events in them."""

    def snapshot(self) -> AbstractContextManager[Snapshot]:
        """One consistent state, for reads that belong together."""

    def differences(self) -> Sequence[Difference]:
        """As in Snapshot."""

    def hides_rows(self) -> bool:
        """Whether the database may keep rows from this role: row-level security is in force for it."""

    def migrate(self) -> tuple[int, int]:
        """Bring the tables up to date: the schema numbers before and after."""

    def notes(self) -> Sequence[str]:
        """What whoever runs this should know, as verify shows it."""

    @property
    def is_open(self) -> bool:
        """Whether it has connections."""

    def close(self) -> None:
        """Finish what is queued and give every connection back."""


def refuses(batch: Batch, base: Base, head: Head, user_id: str | None = None) -> bool:
    """Whether an attempt at `base` must not land behind this head, in the session of this user."""
    if isinstance(base, Head) and (base.version != head.version or base.hash != head.hash):
        return True
    if type(base) is int and base != head.version:
        return True
    if batch.branch is not None and batch.branch != head.branch:
        return True
    if is_of_another(batch, user_id):
        return True
    return head.status != "open" and batch.at(head)[0].draft.type != "session.created"


def is_of_another(batch: Batch, user_id: str | None) -> bool:
    """Whether a session of this user is not for the batch; one of nobody is for everybody."""
    return batch.user_id is not None and user_id is not None and user_id != batch.user_id


def is_past_fence(batch: Batch, head: Head) -> bool:
    """Whether others have appended what the batch's maker does not know: its fence has to be looked at."""
    return batch.fence is not None and head.version > batch.fence.seen


def barred_by(fence: Fence, found: Iterable[Sequence[Any]]) -> int | None:
    """The first version, of versions and event ids that were found, that is not the recorder's own."""
    return next((version for version, event_id in found if bytes(event_id) not in fence.own), None)


def landed(batch: Batch, linked: Linked, position: int | None) -> Landed:
    """The outcome of an attempt whose rows were written."""
    receipt = Receipt(
        batch.namespace, batch.session_id, linked.rows[0][0], linked.head.version, linked.head.hash, position
    )
    return Landed(receipt, linked.head)


def listing_values(linked: Linked) -> list[Any]:
    """Flag and value of each listing column, for `CASE WHEN flag THEN value ELSE column END`."""
    changes = linked.listing or {}
    values: list[Any] = []
    for column in LISTING:
        values += (column in changes, changes.get(column))
    return values


def rewrites_listing(linked: Linked, before: Head) -> bool:
    """Whether more of the head row changes than what every append changes."""
    return linked.listing is not None or linked.head.at_us // HOUR_US != before.at_us // HOUR_US


def version_of(base: Head | int) -> int:
    """The version of a base."""
    return base.version if isinstance(base, Head) else base


def fork_head(batch: Batch, origin: Origin, epoch: int, hash: bytes, at_us: int) -> Head:
    """What the first event of a fork is linked to.

    It begins with the epoch of its parent: erasures there reach it as well, so the parent's epoch
    and its own erasures together are what it always has.
    """
    genesis = chain.fork_genesis(batch.scope, origin.parent, origin.version, hash)
    return Head(origin.version, genesis, origin.turn, 0, epoch, "open", at_us)


def head_name(version: int) -> str:
    """The name of the head of a stored snapshot; names sort as versions do, and apart from chunks."""
    return f"@{version:019d}"


def unknown_head(batch: Batch) -> Head:
    """The head of a session that has no events."""
    return Head(0, chain.genesis(batch.scope))


def tombstone_covers(row: StoredRow, version: int) -> bool:
    """Whether a tombstone at `version` erases this row: all before it but tombstones and closes."""
    return row[0] < version and row[5] not in (Kind.ERASURE, Kind.CLOSE) and row[14] is not None


def shown(rows: Rows[Any], at: int = 0) -> Rows[Any]:
    """A page as it counts, its events beginning at a column.

    What a deletion covers is erased from its tombstone on, also where it has not come to it yet: the
    statements, which ask for the status of the session too, tell that by a commitment of no bytes. A
    session begins again only when nothing is left, so that the status is enough.
    """
    if b"" in map(itemgetter(at + 16), rows):
        for index, row in enumerate(rows):
            if row[at + 16] == b"":
                rows[index] = (*row[:at], *_covered((*row[at : at + 16], None, *row[at + 17 :])))
    return rows


def shown_tail(head: Head | None, rows: Rows[StoredRow]) -> tuple[Head | None, Rows[StoredRow]]:
    """A tail as it counts: of a session that is deleted nothing is left."""
    if head is not None and head.status == "deleted":
        rows[:] = map(_covered, rows)
    return head, rows


def shown_row(row: StoredRow | None) -> StoredRow | None:
    """As shown, of one event."""
    return shown(Rows([row]))[0] if row is not None else None


def _covered(row: StoredRow) -> StoredRow:
    """A row below a tombstone, as it is once its content is erased."""
    return without_content(row) if tombstone_covers(row, row[0] + 1) else row


def without_content(row: StoredRow) -> StoredRow:
    """A row as it is once its content is erased."""
    commit = chain.payload_commit(row[17], row[14], row[15])
    return (*row[:14], None, None, commit, None, row[18])


def found_of(batch: Batch, rows: Sequence[Sequence[Any]]) -> Found:
    """A look-up's rows: head columns, user, a tombstone behind the key, behind the base, event columns."""
    if not rows:
        return Found(unknown_head(batch))
    head = Head(*rows[0][:7])
    user_id, erased = rows[0][7], bool(rows[0][8])
    events = [(row[9], tuple(row[10:])) for row in rows if row[10] is not None]
    behind = [event for is_behind, event in events if is_behind]
    key = batch.idempotency_key
    start = next((i for i, (_, event) in enumerate(events) if key is not None and event[11] == key), None)
    keyed = [] if start is None else [event for _, event in events[start : start + len(batch.events)]]
    return Found(head, behind, keyed, user_id, erased)


def page_of(rows: Iterable[Any], limit: int, at: int = 0) -> Rows[Any]:
    """As many of the rows as a page takes, at least one; their events begin at a column.

    Where rows come one by one, no more than these are asked for.
    """
    page: Rows[Any] = Rows()
    size, payload, native, meta = 0, at + 14, at + 15, at + 10
    for row in rows:
        page.append(row)
        size += len(row[payload] or b"")
        if row[native] or row[meta]:
            size += len(row[native] or b"") + len(row[meta] or b"")
        if size >= PAGE_BYTES:
            page.more = True
            break
    page.size_bytes = size
    page.more = page.more or len(page) >= limit
    return page


def split(page: Rows[Any], columns: int) -> Rows[Any]:
    """The page with its events alone, without the columns in front of them."""
    rows: Rows[Any] = Rows([row[columns:] for row in page])
    rows.size_bytes, rows.more = page.size_bytes, page.more
    return rows


def tail_of(page: Rows[Any]) -> tuple[Head | None, Rows[StoredRow]]:
    """A tail's rows: head columns, then event columns, which are NULL where there is no event."""
    if not page:
        return None, page
    head = Head(*page[0][:7])
    return head, Rows() if page[0][7] is None else split(page, 7)


def feed_of(page: Rows[Any]) -> Rows[tuple[str, StoredRow]]:
    """A feed's rows: the session's id, then event columns."""
    rows: Rows[tuple[str, StoredRow]] = Rows([(row[0], row[1:]) for row in page])
    rows.size_bytes, rows.more = page.size_bytes, page.more
    return rows


def head_row_of(row: Sequence[Any]) -> HeadRow:
    """A row of the HEAD_ROWS statements."""
    session_id, version, hash, turn, branch, epoch, status, updated_at, *rest = row
    listing = tuple(rest[: len(LISTING)])
    parent, fork_version, created_at, updated_hour, owner = rest[len(LISTING) :]
    return HeadRow(
        session_id, version, hash, turn, branch, epoch, status, listing, parent, fork_version,
        created_at, updated_at, updated_hour, owner,
    )  # fmt: skip


def newest_version(head: Head | None, at_us: int, probe: Callable[[int], tuple[int, int] | None]) -> int:
    """The highest version recorded by a time. `probe(v)` gives version and time of the first row >= v.

    Times never fall within a session, so this is a binary search.
    """
    low, high = 0, head.version if head else 0
    while low < high:
        middle = (low + high + 1) // 2
        row = probe(middle)
        if row is not None and row[1] <= at_us:
            low = row[0]
        else:
            high = middle - 1
    return low


def parents_first(session_id: str, parents: Mapping[str, str]) -> list[str]:
    """The forks of a session and theirs, given the parent of each, in an order of descent."""
    forks: dict[str, list[str]] = {}
    for fork, parent in sorted(parents.items()):
        forks.setdefault(parent, []).append(fork)
    found = list(forks.get(session_id, ()))
    for fork in found:
        found += forks.get(fork, ())
    return found


def nothing() -> None:
    """Nobody listens."""
