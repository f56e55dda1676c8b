"""The private seam between the log and its databases, and the retry rule, which is the same for all.

A store answers one attempt at a time: it lands behind one base, or it does not. What to do when it
does not, or when the answer is lost, is decided here, once, so that it cannot differ by database.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple, Protocol

import stamina
from sqlalchemy.engine import Connection

from kern_events import chain
from kern_events.batch import LISTING, Batch, Linked, Prepared, StoredRow
from kern_events.codec import decode
from kern_events.errors import (
    AppendUnresolved,
    IdempotencyConflict,
    SessionClosed,
    StoreError,
    StoreUnavailable,
    TurnAbandoned,
    VersionConflict,
)
from kern_events.events import Head, Kind, Receipt, SessionInfo

logger: Final = logging.getLogger("kern_events")

HOUR_US: Final = 3_600_000_000
_MAX_ATTEMPTS: Final = 5  # at one base, before giving up
_LOCK_AFTER: Final = 2  # conflicts, before the head row is locked

Tombstone = Callable[[Head], Batch]  # the tombstone's batch, for the head that it is recorded behind
Base = Head | int | None
Expected = Head | int | None


class Landed(NamedTuple):
    """The append is recorded."""

    receipt: Receipt
    head: Head


class Refused(NamedTuple):
    """Nothing was written: the attempt's base is not (or no longer) where the session stands."""

    base: Head | int


class AnswerLost(Exception):  # noqa: N818 - a signal inside the package, never seen by users
    """The attempt at this base may or may not have landed."""

    def __init__(self, base: Head) -> None:
        super().__init__(base)
        self.base = base


class AnswersLost(AnswerLost):
    """As AnswerLost, for several batches in one transaction."""

    def __init__(self, bases: Sequence[Head]) -> None:
        super().__init__(bases[0])
        self.bases = bases


class Found(NamedTuple):
    """What a look-up saw in one statement: the head, the rows behind the base, the key's rows."""

    head: Head
    behind: Sequence[StoredRow]
    keyed: Sequence[StoredRow]


class HeadRow(NamedTuple):
    """A whole row of kern_sessions, for verify."""

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


class Snapshot(Protocol):
    """One consistent state of the log, as verify reads it."""

    def head_rows(self, namespace: str, session_id: str | None) -> Iterator[HeadRow]:
        """The head rows of one session or of all, deleted ones included."""

    def page(self, namespace: str, session_id: str, after: int, limit: int) -> Sequence[StoredRow]:
        """Events of one session by version."""

    def orphans(self, namespace: str) -> Sequence[tuple[str, int]]:
        """Sessions that have events and no head row, with how many."""


class Store(Protocol):
    """One database. Every method is one operation, safe from any thread; a driver's exception never leaves."""

    dialect: str

    def attempt(self, batch: Batch, base: Base, lock: bool = False) -> Landed | Refused:
        """Record a batch behind `base` (None: behind the head, whatever it is), or refuse. May raise AnswerLost."""

    def submit(self, batch: Batch, base: Base) -> Future[Landed | Refused] | None:
        """As attempt, without holding the thread; None where the store has no queue."""

    def look_up(self, batch: Batch, base: int, count: int) -> Found:
        """The head, the `count` rows behind `base` and the rows of the batch's key, in one statement."""

    def attempt_many(self, batches: Sequence[tuple[Batch, Base]]) -> list[Landed] | None:
        """Record several batches in one transaction; None if one is refused, which undoes all."""

    def within(
        self, connection: Connection, batch: Batch, base: Base
    ) -> tuple[Landed | Refused, Found | None]:
        """As attempt, in the caller's transaction; a refusal comes with its look-up."""

    def delete(self, namespace: str, session_id: str, tombstone: Tombstone) -> Landed | None:
        """Append the tombstone and erase what is before it; None if there is nothing to delete."""

    def head(self, namespace: str, session_id: str) -> Head | None:
        """The head, or None if the session is unknown."""

    def rows(
        self, namespace: str, session_id: str, after: int, until: int | None, limit: int
    ) -> Sequence[StoredRow]:
        """Events of one session by version."""

    def tail(
        self, namespace: str, session_id: str, after: int, limit: int
    ) -> tuple[Head | None, Sequence[StoredRow]]:
        """The head and the events after a version, in one statement."""

    def turn_start(self, namespace: str, session_id: str, turn: int) -> int | None:
        """The version at which a turn last started."""

    def version_at(self, namespace: str, session_id: str, at_us: int) -> int:
        """The highest version recorded by a time; 0 if there is none."""

    def feed_end(self) -> int:
        """The highest position that is final: nothing at or below it will appear any more."""

    def feed(
        self, namespace: str, after: int, until: int, limit: int
    ) -> Sequence[tuple[str, StoredRow]]:
        """Events of all sessions by position, with their session ids."""

    def sessions(
        self, namespace: str, user_id: str | None, after: tuple[int, str] | None, limit: int
    ) -> Sequence[SessionInfo]:
        """Sessions that are not deleted, the newest first."""

    def snapshot(self) -> AbstractContextManager[Snapshot]:
        """One consistent state, for reads that belong together."""

    def migrate(self) -> tuple[int, int]:
        """Bring the tables up to date: the schema numbers before and after."""

    def notes(self) -> Sequence[str]:
        """What whoever runs this should know, as verify shows it."""

    def close(self) -> None:
        """Finish what is queued and give every connection back."""


def record(
    store: Store,
    batch: Batch,
    expected: Expected,
    first: Callable[[], Landed | Refused] | None = None,
) -> Landed:
    """Append one batch by the retry rule.

    An attempt at base b can land only at b+1 ... b+k, and never once the head is past b without it.
    So the base moves only after a look-up has shown that the events are not there. `first` is the
    outcome of an attempt that was already made (by the async facade).

    Raises:
        VersionConflict, TurnAbandoned, SessionClosed, IdempotencyConflict: Nothing was written.
        AppendUnresolved: The answer was lost and could not be looked up.
    """
    base: Base = expected
    conflicts = same_base = 0
    while True:
        cause: BaseException | None = None
        try:
            answer = first() if first else store.attempt(batch, base, lock=conflicts >= _LOCK_AFTER)
        except AnswerLost as lost:
            answer, cause = Refused(lost.base), lost.__cause__ or lost
        first = None
        if isinstance(answer, Landed):
            return answer
        used = answer.base
        found = _look_up(store, batch, used, cause)
        if landed := _already(batch, used, found):
            return landed
        head = found.head
        if head.version == _version(used):
            _same_base(batch, expected, head)
            base, same_base = head, same_base + 1
            if same_base >= _MAX_ATTEMPTS:
                raise _give_up(batch, head.version, cause)
        elif expected == 0 and head.status == "deleted" and base == 0:
            base = head  # A deleted session is new again; its head is pinned once.
        elif expected is not None:
            raise VersionConflict(batch.session_id, _version(expected), head.version)
        else:
            _check_open(batch, head)
            conflicts += 1
            # An attempt that locks the head row links to whatever it then finds there.
            base, same_base = None if conflicts >= _LOCK_AFTER else head, 0


def record_many(store: Store, batches: Sequence[tuple[Batch, Expected]]) -> list[Landed]:
    """Append several batches in one transaction, by the same rule: all of them or none."""
    lost: AnswersLost | None = None
    for _ in range(_MAX_ATTEMPTS):
        try:
            answer = store.attempt_many(batches)
        except AnswersLost as error:
            lost, answer = error, None
        if answer is not None:
            return answer
        bases = lost.bases if lost else [expected or 0 for _, expected in batches]
        landed = [
            _landed_or_free(store, batch, base, expected, lost)
            for (batch, expected), base in zip(batches, bases, strict=True)
        ]
        if all(landed):
            return [one for one in landed if one]
        # The transaction was atomic: where one batch is missing, none of this attempt landed.
    raise _give_up(batches[0][0], _version(bases[0]), lost)


def _landed_or_free(
    store: Store, batch: Batch, base: Head | int, expected: Expected, lost: AnswerLost | None
) -> Landed | None:
    found = _look_up(store, batch, base, lost)
    if landed := _already(batch, base, found):
        return landed
    if expected is not None and found.head.version != _version(expected):
        raise VersionConflict(batch.session_id, _version(expected), found.head.version)
    _same_base(batch, expected, found.head)
    return None


def delete(store: Store, namespace: str, session_id: str, tombstone: Tombstone) -> Landed | None:
    """Delete a session; None if there is nothing to delete. A lost answer is looked up like an append's."""
    for _ in range(_MAX_ATTEMPTS):
        try:
            return store.delete(namespace, session_id, tombstone)
        except AnswerLost as lost:
            base = lost.base
            batch = tombstone(base)
            found = _look_up(store, batch, base, lost)
            if landed := _already(batch, base, found):
                return landed
    raise _give_up(batch, base.version, lost)


def check_within(
    batch: Batch, expected: Expected, answer: Landed | Refused, found: Found | None
) -> Landed:
    """The outcome of an append in the caller's transaction, which is never retried here."""
    if isinstance(answer, Landed):
        return answer
    assert found is not None
    if landed := _already(batch, answer.base, found):
        return landed
    if expected is not None and found.head.version == _version(expected):
        _same_base(batch, expected, found.head)
    else:
        _check_open(batch, found.head)
    raise VersionConflict(
        batch.session_id, _version(answer.base if expected is None else expected), found.head.version
    )


def refuses(batch: Batch, base: Base, head: Head) -> bool:
    """Whether an attempt at `base` must not land behind this head, as far as the head tells."""
    if isinstance(base, Head) and (base.version != head.version or base.hash != head.hash):
        return True
    if type(base) is int and base != head.version:
        return True
    if batch.branch is not None and batch.branch != head.branch:
        return True
    return head.status != "open" and batch.at(head)[0].draft.type != "session.created"


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


def _version(base: Head | int) -> int:
    return base.version if isinstance(base, Head) else base


def _events(batch: Batch, base: Head | int) -> tuple[Prepared, ...]:
    return batch.at(base) if isinstance(base, Head) else batch.events


def _look_up(store: Store, batch: Batch, base: Head | int, cause: BaseException | None) -> Found:
    try:
        for attempt in stamina.retry_context(
            on=StoreUnavailable, attempts=6, timeout=10.0, wait_initial=0.02, wait_max=1.0, wait_jitter=0.05
        ):
            with attempt:
                return store.look_up(batch, _version(base), len(_events(batch, base)))
    except StoreError as error:
        if cause is None:
            raise  # The attempt is known not to have landed.
        raise AppendUnresolved(batch.session_id, _version(base)) from error
    raise AssertionError("unreachable")  # pragma: no cover


def _already(batch: Batch, base: Head | int, found: Found) -> Landed | None:
    if found.keyed:
        same = len(found.keyed) == len(batch.events) and all(
            _same_content(event, row) for event, row in zip(batch.events, found.keyed, strict=True)
        )
        if not same:
            assert batch.idempotency_key is not None
            raise IdempotencyConflict(batch.idempotency_key, batch.session_id, found.keyed[0][0])
        return _landed_before(batch, found.keyed, found.head)
    events = _events(batch, base)
    ours = len(found.behind) == len(events) and all(
        event.draft.event_id == row[2] and _same_content(event, row)
        for event, row in zip(events, found.behind, strict=True)
    )
    return _landed_before(batch, found.behind, found.head) if ours else None


def _same_content(event: Prepared, row: StoredRow) -> bool:
    if (event.draft.type, event.draft.type_version) != (row[3], row[4]):
        return False
    payload = row[14]
    # What was erased cannot be compared.
    return payload is None or payload == event.payload or decode(payload) == decode(event.payload)


def _landed_before(batch: Batch, rows: Sequence[StoredRow], head: Head) -> Landed:
    first, last = rows[0], rows[-1]
    receipt = Receipt(batch.namespace, batch.session_id, first[0], last[0], last[18], last[1])
    if head.version != last[0]:
        head = Head(last[0], last[18], last[6], head.branch, head.epoch, head.status, last[8])
    return Landed(receipt, head)


def _same_base(batch: Batch, expected: Expected, head: Head) -> None:
    if isinstance(expected, Head) and expected.hash != head.hash:
        raise VersionConflict(batch.session_id, expected.version, head.version)
    _check_open(batch, head)


def _check_open(batch: Batch, head: Head) -> None:
    if batch.branch is not None and head.branch != batch.branch:
        raise TurnAbandoned(batch.session_id, batch.turn, head.branch, batch.branch, head.version)
    if head.status != "open" and batch.at(head)[0].draft.type != "session.created":
        raise SessionClosed(batch.session_id, head.status)


def _give_up(batch: Batch, base: int, cause: BaseException | None) -> StoreError:
    if cause is None:
        error = StoreError(
            f"the append to session {batch.session_id!r} was refused {_MAX_ATTEMPTS} times "
            f"although the session stands at version {base}"
        )
        return error
    unresolved = AppendUnresolved(batch.session_id, base)
    unresolved.__cause__ = cause
    return unresolved


def unknown_head(batch: Batch) -> Head:
    """The head of a session that has no events."""
    return Head(0, chain.genesis(batch.scope))


def tombstone_covers(row: StoredRow, version: int) -> bool:
    """Whether a tombstone at `version` erases this row: all before it but tombstones and closes."""
    return row[0] < version and row[5] not in (Kind.ERASURE, Kind.CLOSE) and row[14] is not None


def found_of(batch: Batch, rows: Sequence[Sequence[Any]]) -> Found:
    """A look-up's rows: head columns, whether the event is behind the base, event columns."""
    if not rows:
        return Found(unknown_head(batch), (), ())
    head = Head(*rows[0][:7])
    events = [(row[7], tuple(row[8:])) for row in rows if row[8] is not None]
    behind = [event for is_behind, event in events if is_behind]
    key = batch.idempotency_key
    start = next((i for i, (_, event) in enumerate(events) if key is not None and event[11] == key), None)
    keyed = [] if start is None else [event for _, event in events[start : start + len(batch.events)]]
    return Found(head, behind, keyed)


def tail_of(rows: Sequence[Sequence[Any]]) -> tuple[Head | None, Sequence[StoredRow]]:
    """A tail's rows: head columns, then event columns, which are NULL where there is no event."""
    if not rows:
        return None, ()
    first = rows[0]
    head = Head(*first[:7])
    return head, () if first[7] is None else [tuple(row[7:]) for row in rows]


def head_row_of(row: Sequence[Any]) -> HeadRow:
    """A row of the HEAD_ROWS statements."""
    session_id, version, hash, turn, branch, epoch, status, updated_at, *rest = row
    listing = tuple(rest[: len(LISTING)])
    parent, fork_version, created_at, updated_hour = rest[len(LISTING) :]
    return HeadRow(
        session_id, version, hash, turn, branch, epoch, status, listing, parent, fork_version,
        created_at, updated_at, updated_hour,
    )  # fmt: skip


def newest_version(
    head: Head | None, at_us: int, probe: Callable[[int], tuple[int, int] | None]
) -> int:
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
