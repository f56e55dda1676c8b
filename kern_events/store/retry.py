"""The retry rule: what to do when an attempt does not land, or when its answer is lost.

An attempt at base b can land only at b+1 ... b+k, and never once the head is past b without it. So a
lost answer is looked up, never guessed, and the base moves only after a look-up has shown that the
events are not behind it. What can be read need not be durable yet, so a look-up that acknowledges
something waits for that. It is decided here, once, so that it cannot differ by database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import stamina

from kern_events.batch import Batch, Prepared, StoredRow
from kern_events.clock import AHEAD_US
from kern_events.codec import decode
from kern_events.errors import (
    AppendUnresolved,
    ErasureUnfinished,
    IdempotencyConflict,
    OwnerMismatch,
    SchemaOutdated,
    SessionClosed,
    SessionDeleted,
    SessionExists,
    StoreBusy,
    StoreError,
    StoreUnavailable,
    TurnAbandoned,
    TurnTaken,
    VersionConflict,
)
from kern_events.events import Head, Receipt
from kern_events.store.base import (
    AnswerLost,
    Base,
    Expected,
    Found,
    Landed,
    Origin,
    Refused,
    Slice,
    Store,
    Tombstone,
    is_of_another,
    missing,
    version_of,
)

_MAX_ATTEMPTS: Final = 5  # at one base, before giving up
_ABANDONED: Final = -1  # no branch that a session can be on
_LOCK_AFTER: Final = 2  # conflicts, before the head row is locked
_PAGE: Final = 500


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
        VersionConflict, TurnAbandoned, TurnTaken, OwnerMismatch, SessionClosed, IdempotencyConflict:
            Nothing was written.
        AppendUnresolved: The answer was lost and could not be looked up.
    """
    base: Base = expected
    conflicts = same_base = 0
    cause: BaseException | None = None  # of an answer that was lost at this base, and may land yet
    while True:
        try:
            answer = first() if first else store.attempt(batch, base, lock=conflicts >= _LOCK_AFTER)
        except AnswerLost as lost:
            answer, cause = Refused(lost.base if base is None else base), lost.__cause__ or lost
        except (StoreError, SchemaOutdated) as error:
            if cause is None:
                raise
            raise AppendUnresolved(batch.session_id, version_of(base or 0)) from error
        first = None
        if isinstance(answer, Landed):
            return answer
        used = answer.base
        landed, found = _found(store, batch, used, cause)
        if landed:
            return landed
        head = found.head
        if head.status == "deleted":
            erase_on(store, batch.namespace, batch.session_id)  # Before it begins again.
        if head.version == version_of(used):
            _same_base(batch, expected, found)
            base, same_base = head, same_base + 1
            if same_base >= _MAX_ATTEMPTS:
                raise _give_up(store, batch, head.version, cause)
        elif expected == 0 and head.status == "deleted" and base == 0:
            base, cause = head, None  # A deleted session is new again; its head is pinned once.
        elif expected is not None:
            raise VersionConflict(batch.session_id, version_of(expected), head.version)
        else:
            _check_open(batch, found)
            conflicts += 1
            # An attempt that locks the head row links to whatever it then finds there.
            base, same_base, cause = None if conflicts >= _LOCK_AFTER else head, 0, None


def recorded(store: Store, batch: Batch) -> Landed | None:
    """Whether a batch is recorded, whose append an exception from outside has broken off.

    By then it is decided: stores wait for what they have begun. Only what was recorded since the first
    draft was made is looked at, with some room for clocks that differ; everything, where one was made in
    a time that is still to come.
    """
    first = batch.events[0].draft.event_id
    made_us, after = int.from_bytes(first[:6], "big") * 1_000, 0
    if made_us <= store.now_us():
        after = store.version_at(batch.namespace, batch.session_id, made_us - AHEAD_US)
    began = batch.opening.draft.event_id if batch.opening else None
    while rows := store.rows(batch.namespace, batch.session_id, after, None, _PAGE):
        for row in rows:
            if row[2] == began or row[2] == first:
                count = len(batch.events) + (row[2] == began)
                found = _looked_up(store, batch, row[0] - 1, count, None, durable=True)
                there = found.behind and found.behind[0][2] == row[2]
                return _landed_before(batch, found.behind, found.head) if there else None
        after = rows[-1][0]
    return None


def record_many(store: Store, batches: Sequence[tuple[Batch, Expected]]) -> list[Landed]:
    """Append several batches in one transaction, by the same rule: all of them or none."""
    bases: list[Base] = [expected for _, expected in batches]
    cause: BaseException | None = None  # of an answer that was lost at these bases, and may land yet
    for _ in range(_MAX_ATTEMPTS):
        try:
            answer = store.attempt_many(
                [(batch, base) for (batch, _), base in zip(batches, bases, strict=True)]
            )
        except AnswerLost as lost:
            answer = None
            if len(lost.bases) == len(batches):  # Else it was lost before COMMIT, and nothing landed.
                cause = lost.__cause__ or lost
                bases = [
                    known if base is None else base for base, known in zip(bases, lost.bases, strict=True)
                ]
        except (StoreError, SchemaOutdated) as error:
            if cause is None:
                raise
            raise _unresolved(batches, bases) from error
        if answer is not None:
            return answer
        try:
            landed, places = _places(store, batches, bases, cause)
            if landed and cause is not None:
                # The commit that was lost may have arrived between two look-ups: then all are there now.
                landed, places = _places(store, batches, bases, cause)
        except AppendUnresolved as error:
            raise _unresolved(batches, bases) from error.__cause__
        if len(landed) == len(batches):
            return landed
        if landed:
            # One transaction, so these were recorded by another call: a part of this one is done.
            part = landed[0]
            raise VersionConflict(part.receipt.session_id, part.receipt.first_version - 1, part.head.version)
        free: list[Base] = [place for place in places if not isinstance(place, Landed)]
        if any(place is None and base is not None for place, base in zip(free, bases, strict=True)):
            cause = None  # A head went past its base, so nothing sent so far can land any more.
        bases = free
    if cause is not None:
        raise _unresolved(batches, bases) from cause
    if store.hides_rows():
        raise missing("one of several appends was refused again and again", True)
    raise StoreBusy(f"others appended {_MAX_ATTEMPTS} times in between; nothing is recorded, try again")


def _unresolved(batches: Sequence[tuple[Batch, Expected]], bases: Sequence[Base]) -> AppendUnresolved:
    versions = {
        batch.session_id: version_of(base or 0) for (batch, _), base in zip(batches, bases, strict=True)
    }
    return AppendUnresolved(batches[0][0].session_id, version_of(bases[0] or 0), versions)


def _places(
    store: Store,
    batches: Sequence[tuple[Batch, Expected]],
    bases: Sequence[Base],
    cause: BaseException | None,
) -> tuple[list[Landed], list[Landed | Base]]:
    """What has landed, and for every batch where it did or where to try it next."""
    places = [
        _place(store, batch, base, expected, cause)
        for (batch, expected), base in zip(batches, bases, strict=True)
    ]
    return [place for place in places if isinstance(place, Landed)], places


def _place(
    store: Store, batch: Batch, base: Base, expected: Expected, cause: BaseException | None
) -> Landed | Base:
    """Where one batch of several landed, or the base of its next attempt."""
    used = 0 if base is None else base
    landed, found = _found(store, batch, used, cause)
    if landed:
        return landed
    if found.head.status == "deleted":
        erase_on(store, batch.namespace, batch.session_id)  # Before it begins again.
    if expected == 0 and base == 0 and found.head.status == "deleted":
        return found.head  # A deleted session is new again; its head is pinned once.
    if expected is not None and found.head.version != version_of(used):
        raise VersionConflict(batch.session_id, version_of(expected), found.head.version)
    _same_base(batch, expected, found)
    # Pinned as long as the head stands there; once it is past, that attempt can land no more.
    return found.head if base is not None and found.head.version == version_of(used) else None


class _Moved(Exception):
    """The session does not stand where the attempt before found it."""


def delete(store: Store, namespace: str, session_id: str, tombstone: Tombstone) -> Landed | None:
    """Delete a session; None if there is nothing to delete. A lost answer is looked up like an append's."""
    base: Head | None = None  # of an attempt whose answer was lost, and which may land yet
    cause: BaseException | None = None

    def pinned(head: Head) -> Batch:
        if base is not None and (base.version, base.hash) != (head.version, head.hash):
            raise _Moved
        return tombstone(head)

    for _ in range(_MAX_ATTEMPTS):
        try:
            landed = store.delete(namespace, session_id, pinned)
            if landed or base is None:
                return landed
        except AnswerLost as lost:
            base, cause = lost.base, lost.__cause__ or lost
        except _Moved:
            assert base is not None
        except (StoreError, SchemaOutdated) as error:
            if base is None:
                raise
            raise AppendUnresolved(session_id, base.version) from error
        landed, found = _found(store, tombstone(base), base, cause)
        if landed:
            return landed
        if found.head.status == "deleted":
            return None
        if found.head.version != base.version:
            base = cause = None  # It can land no more, so the base may move.
    if base is None:
        raise StoreBusy(f"others appended {_MAX_ATTEMPTS} times in between; nothing is recorded, try again")
    raise _give_up(store, tombstone(base), base.version, cause)


def erase_on(
    store: Store, namespace: str, session_id: str, progress: Callable[[int, int], None] | None = None
) -> None:
    """Erase what a deletion has left of a session, in slices, between which others write.

    Args:
        progress: Called with the version up to which nothing is left, and the last one.

    Raises:
        ErasureUnfinished: The database failed; whoever is next goes on.
    """
    head = store.head(namespace, session_id)
    done = Slice(0, True)
    while done.left:
        try:
            for attempt in _patiently():
                with attempt:
                    done = store.erase_on(namespace, session_id, done.version)
        except (StoreError, SchemaOutdated) as error:
            raise ErasureUnfinished(session_id) from error
        if progress and head and done.version:
            progress(done.version, head.version)


def _patiently() -> Iterable[stamina.Attempt]:
    return stamina.retry_context(
        on=StoreUnavailable, attempts=6, timeout=10.0, wait_initial=0.02, wait_max=1.0, wait_jitter=0.05
    )


def fork(store: Store, batch: Batch, origin: Origin) -> Landed | None:
    """Begin a session as a fork; a lost answer is looked up like an append's.

    Returns:
        None if something of the parent was erased since it was described; nothing is recorded then.

    Raises:
        SessionExists: There is a session of that id, deleted or not.
        AppendUnresolved: The answer was lost and could not be looked up.
    """
    cause: BaseException | None = None  # of an answer that was lost, and may land yet
    for _ in range(_MAX_ATTEMPTS):
        answer: Landed | Refused | None
        try:
            answer = store.fork(batch, origin)
        except AnswerLost as lost:
            answer, cause = Refused(lost.base), lost.__cause__ or lost
        except (StoreError, SchemaOutdated) as error:
            if cause is None:
                raise
            raise AppendUnresolved(batch.session_id, origin.version) from error
        if isinstance(answer, Landed) or (answer is None and cause is None):
            return answer
        landed, found = _found(store, batch, origin.version, cause)
        if landed:
            return landed
        if found.head.version:
            raise SessionExists(batch.session_id)
        if answer is None:
            return None
    raise _give_up(store, batch, origin.version, cause)


def check_within(batch: Batch, expected: Expected, answer: Landed | Refused, found: Found | None) -> Landed:
    """The outcome of an append in the caller's transaction, which is never retried here."""
    if isinstance(answer, Landed):
        return answer
    assert found is not None
    if landed := _already(batch, answer.base, found):
        return landed
    if expected is not None and found.head.version == version_of(expected):
        _same_base(batch, expected, found)
    else:
        _check_open(batch, found)
    raise VersionConflict(
        batch.session_id, version_of(answer.base if expected is None else expected), found.head.version
    )


def _found(
    store: Store, batch: Batch, base: Head | int, cause: BaseException | None
) -> tuple[Landed | None, Found]:
    """Where a look-up finds the batch, if it does, and what else it saw.

    What is there is looked up once more, durably. That counts alone: in between, another server may have
    become the primary, and there it need not be.
    """
    found = _look_up(store, batch, base, cause)
    landed = _already(batch, base, found)
    if landed:
        found = _look_up(store, batch, base, cause, durable=True)
        landed = _already(batch, base, found)
    return landed, found


def _look_up(
    store: Store, batch: Batch, base: Head | int, cause: BaseException | None, *, durable: bool = False
) -> Found:
    count = len(_events(batch, base))
    return _looked_up(store, batch, version_of(base), count, cause, durable=durable)


def _looked_up(
    store: Store, batch: Batch, base: int, count: int, cause: BaseException | None, *, durable: bool
) -> Found:
    try:
        for attempt in _patiently():
            with attempt:
                return store.look_up(batch, base, count, durable=durable)
    except (StoreError, SchemaOutdated) as error:
        if cause is None and not durable:
            raise  # The attempt is known not to have landed.
        raise AppendUnresolved(batch.session_id, base) from error
    raise AssertionError("unreachable")  # pragma: no cover


def _already(batch: Batch, base: Head | int, found: Found) -> Landed | None:
    """Where the batch is recorded: right behind the base by the ids of its events, or by its key."""
    events = _events(batch, base)
    ours = len(found.behind) == len(events) and all(
        event.draft.event_id == row[2] and _same_content(event, row)
        for event, row in zip(events, found.behind, strict=True)
    )
    if ours and not (found.keyed and found.keyed[0][0] != found.behind[0][0]):
        # Whatever was erased since: this very append is recorded, and its receipt holds.
        return _landed_before(batch, found.behind, found.head)
    if not found.keyed:
        return None
    assert batch.idempotency_key is not None
    erased = found.erased or any(row[14] is None for row in found.keyed)
    same = len(found.keyed) == len(batch.events) and all(
        _same_content(event, row) for event, row in zip(batch.events, found.keyed, strict=True)
    )
    if erased or not same:
        raise IdempotencyConflict(batch.idempotency_key, batch.session_id, found.keyed[0][0], erased)
    return _landed_before(batch, found.keyed, found.head)


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
        # A restore that came after these rows is none that a turn of theirs began on.
        branch = head.branch if head.branch <= last[0] else _ABANDONED
        head = Head(last[0], last[18], last[6], branch, head.epoch, head.status, last[8])
    return Landed(receipt, head)


def _same_base(batch: Batch, expected: Expected, found: Found) -> None:
    if isinstance(expected, Head) and expected.hash != found.head.hash:
        raise VersionConflict(batch.session_id, expected.version, found.head.version)
    _check_open(batch, found)


def _check_open(batch: Batch, found: Found) -> None:
    """Raise what bars the batch from the session, wherever it stands by now."""
    head, fence = found.head, batch.fence
    if head.status == "deleted" and batch.at(head)[0].draft.type != "session.created":
        raise SessionDeleted(batch.session_id)
    if batch.branch is not None and head.branch != batch.branch:
        raise TurnAbandoned(batch.session_id, batch.turn, head.branch, batch.branch, head.version)
    if fence is not None and found.barred is not None:
        if fence.types:
            raise VersionConflict(batch.session_id, fence.seen, head.version)
        raise TurnTaken(batch.session_id, fence.turn, head.branch, found.barred, fence.seen, head.version)
    if batch.user_id is not None and is_of_another(batch, found.user_id):
        raise OwnerMismatch(batch.session_id, batch.user_id)
    if head.status == "closed" and batch.at(head)[0].draft.type != "session.created":
        raise SessionClosed(batch.session_id, head.status)


def _give_up(store: Store, batch: Batch, base: int, cause: BaseException | None) -> StoreError:
    if cause is None:
        said = (
            f"the append to session {batch.session_id!r} was refused {_MAX_ATTEMPTS} times "
            f"although the session stands at version {base}"
        )
        return missing(said, True) if store.hides_rows() else StoreError(said)
    unresolved = AppendUnresolved(batch.session_id, base)
    unresolved.__cause__ = cause
    return unresolved


def _events(batch: Batch, base: Head | int) -> tuple[Prepared, ...]:
    return batch.at(base) if isinstance(base, Head) else batch.events
