"""Every error this project raises.

::

    KernError
    ├── SessionNotFound        also LookupError
    ├── SessionExists
    ├── VersionConflict
    │   └── TurnAbandoned
    │       └── TurnTaken
    ├── SessionClosed
    │   └── SessionDeleted     also SessionNotFound
    ├── OwnerMismatch
    ├── PointErased            also ValueError
    ├── TurnNotPaused
    ├── IdempotencyConflict
    ├── InvalidEvent           also ValueError
    ├── ChainBroken
    ├── DecodeError
    ├── UpcastFailed
    ├── UnknownEventType       only from typed access to a payload
    ├── SchemaOutdated
    └── StoreError             the driver's exception is __cause__
        ├── StoreBusy          safe to retry
        ├── StoreFull          safe to retry, once there is room
        ├── StoreUnavailable   no connection
        │   └── AppendUnresolved
        ├── ErasureUnfinished  deleted, but not overwritten yet
        ├── StoreMissing       also LookupError
        ├── FeedUnavailable
        ├── FeedRegressed
        └── StoreCorrupt       never answered as "missing"

Missing, corrupt and unreachable are three different errors. The fields of an error are
attributes; an error survives pickling, so it can cross a process boundary.
"""

from __future__ import annotations

from typing import Any


def _rebuild(cls: type[KernError], args: tuple[Any, ...], fields: dict[str, Any]) -> KernError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(fields)
    return error


class KernError(Exception):
    """The base of every error raised by kern_events and projections."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__.copy())


class SessionNotFound(KernError, LookupError):
    """The session has no events, or was deleted: the same for every verb that needs it to be there."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"session {session_id!r} does not exist")
        self.session_id = session_id


class SessionExists(KernError):
    """The target of a fork or an import exists already."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"session {session_id!r} exists already")
        self.session_id = session_id


class VersionConflict(KernError):
    """Somebody else appended first: re-read the session and decide again.

    `expected` and `actual` are versions; they are equal when the versions agree but the chain
    hash of the expected Head does not (the database lost its tail and was written again).
    """

    def __init__(self, session_id: str, expected: int, actual: int) -> None:
        detail = f"expected version {expected}, found {actual}"
        if expected == actual:
            detail = f"version {actual} has another hash than the one expected"
        super().__init__(f"session {session_id!r} was changed by somebody else: {detail}")
        self.session_id = session_id
        self.expected = expected
        self.actual = actual


class TurnAbandoned(VersionConflict):
    """The session was restored to a point before this turn, or deleted, while the turn was running.

    Nothing was written. `branch` is the version of the restore or deletion that abandoned it, `turn` is 0
    if the turn was buffered and had no number yet.
    """

    def __init__(self, session_id: str, turn: int, branch: int, expected: int, actual: int) -> None:
        KernError.__init__(
            self,
            f"{f'turn {turn}' if turn else 'a turn'} of session {session_id!r} was abandoned by the "
            f"restore or deletion at version {branch}",
        )
        self.session_id = session_id
        self.turn = turn
        self.branch = branch
        self.expected = expected
        self.actual = actual


class TurnTaken(TurnAbandoned):
    """Somebody else goes on with this turn, or has ended it: nothing more is recorded by this recorder.

    `by_version` is the `turn.resumed` that took it over, or the end of the turn. `expected` is the
    last version that the recorder knew, `actual` the one that was found.
    """

    def __init__(
        self, session_id: str, turn: int, branch: int, by_version: int, expected: int, actual: int
    ) -> None:
        KernError.__init__(
            self,
            f"turn {turn} of session {session_id!r} is somebody else's: it was resumed or ended "
            f"at version {by_version}",
        )
        self.session_id = session_id
        self.turn = turn
        self.branch = branch
        self.by_version = by_version
        self.expected = expected
        self.actual = actual


class SessionClosed(KernError):
    """The session was closed or deleted, and the first draft is not `session.created`."""

    def __init__(self, session_id: str, status: str) -> None:
        KernError.__init__(self, f"session {session_id!r} is {status}; a session.created event reopens it")
        self.session_id = session_id
        self.status = status


class SessionDeleted(SessionClosed, SessionNotFound):
    """The session was deleted, and something is appended that does not begin it anew.

    An append and a turn begin a session that never was, but not one that was deleted: they say so. It is
    a SessionNotFound like that of every other verb; `status` is always "deleted".
    """

    def __init__(self, session_id: str) -> None:
        SessionClosed.__init__(self, session_id, "deleted")


class OwnerMismatch(KernError):
    """The session is another user's than the one that the turn or the `session.created` names.

    Nothing was written. `user_id` is the one that was named; the owner is not told.
    """

    def __init__(self, session_id: str, user_id: str) -> None:
        super().__init__(f"session {session_id!r} belongs to another user than {user_id!r}")
        self.session_id = session_id
        self.user_id = user_id


class PointErased(KernError, ValueError):
    """What was recorded at that point is erased, so the session cannot go on from there.

    Nothing was written. It is of before the session was deleted and began again, or before what a fork
    shares with another session was deleted with that one. Where the session stands now is never refused.
    """

    def __init__(self, session_id: str, version: int) -> None:
        super().__init__(f"session {session_id!r} cannot go on from version {version}: that is erased")
        self.session_id = session_id
        self.version = version


class TurnNotPaused(KernError):
    """There is no such turn to continue: `status` says what it is, None if there is none at all.

    `turn` is None where none was named and none is paused. Somebody else may have continued it. One that is
    open, as a crash or a hang leaves it, is taken over with `resume(id, turn, expected=view.head)`.
    """

    def __init__(self, session_id: str, turn: int | None, status: str | None) -> None:
        if turn is None:
            said = f"no turn of session {session_id!r} is paused"
        elif status is None:
            said = f"session {session_id!r} has no turn {turn}"
        else:
            said = f"turn {turn} of session {session_id!r} is {status}, not paused"
        over = ": to take it over pass its number and expected=view.head" if status == "open" else ""
        super().__init__(said + over)
        self.session_id = session_id
        self.turn = turn
        self.status = status


class IdempotencyConflict(KernError):
    """The key is recorded in this session already, at `version`: nothing was written.

    With other content; or before the session was deleted or erased from (`erased`), and what was
    recorded then cannot be compared, or counts no more. To record it anew, use a key of its own.
    """

    def __init__(self, key: str, session_id: str, version: int, erased: bool = False) -> None:
        why = "before an erasure: record it anew with another key" if erased else "for other content"
        super().__init__(
            f"idempotency key {key!r} is already used in session {session_id!r} at version {version} {why}"
        )
        self.key = key
        self.session_id = session_id
        self.version = version
        self.erased = erased


class InvalidEvent(KernError, ValueError):
    """The value cannot be recorded exactly. Nothing was written.

    `path` names the place, as in `drafts[0].payload.messages[2]`.
    """

    def __init__(self, reason: str, path: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason
        self.path = path


class ChainBroken(KernError):
    """The recorded history does not verify. `expected` and `found` say what differs."""

    def __init__(self, session_id: str, version: int, expected: str, found: str) -> None:
        super().__init__(
            f"session {session_id!r} does not verify at version {version}: expected {expected}, found {found}"
        )
        self.session_id = session_id
        self.version = version
        self.expected = expected
        self.found = found


class DecodeError(KernError):
    """The stored bytes of one event cannot be decoded."""

    def __init__(self, session_id: str, version: int, type: str, type_version: int) -> None:
        super().__init__(
            f"event {version} of session {session_id!r} ({type} version {type_version}) cannot be decoded"
        )
        self.session_id = session_id
        self.version = version
        self.type = type
        self.type_version = type_version


class UpcastFailed(KernError):
    """An upcaster of the application failed at one event; what it raised is `__cause__`."""

    def __init__(self, session_id: str, version: int, type: str, type_version: int) -> None:
        super().__init__(
            f"event {version} of session {session_id!r} ({type} version {type_version}) cannot be read as a "
            "later version: its upcaster failed"
        )
        self.session_id = session_id
        self.version = version
        self.type = type
        self.type_version = type_version


class UnknownEventType(KernError):
    """The event is of a type, or of a version of it, that this code does not know."""

    def __init__(self, session_id: str, version: int, type: str, type_version: int) -> None:
        super().__init__(
            f"event {version} of session {session_id!r} is of {type} version {type_version}, "
            "which is not known here"
        )
        self.session_id = session_id
        self.version = version
        self.type = type
        self.type_version = type_version


class SchemaOutdated(KernError):
    """The database's tables are of another schema number than this release works with."""

    def __init__(self, found: int, needed: int) -> None:
        remedy = "run `kern-events migrate --db URL`" if found < needed else "upgrade kern-events"
        super().__init__(f"the database has schema {found}, this release needs {needed}: {remedy}")
        self.found = found
        self.needed = needed


class StoreError(KernError):
    """The database refused or failed; the driver's exception is `__cause__`."""


class StoreBusy(StoreError):
    """A lock was not granted in time. Nothing was written; safe to retry."""


class StoreFull(StoreError):
    """There is no room to write: the disk, a quota, a tablespace or a limit is full.

    Nothing was written; safe to retry. What is recorded can be read, and once there is room, writing goes on
    by itself.
    """


class StoreUnavailable(StoreError):
    """The database cannot be reached. Nothing was written, but see AppendUnresolved."""


class AppendUnresolved(StoreUnavailable):
    """The answer to an append was lost and could not be looked up.

    The events may or may not be recorded. Calling again with `expected=error.base` and the same
    drafts is exact: what was recorded is recognised, what was not is recorded once. `bases` has the
    base of every session of an append_many, each to be passed as its `expected`.
    """

    def __init__(self, session_id: str, base: int, bases: dict[str, int] | None = None) -> None:
        super().__init__(
            f"it is not known whether the append to session {session_id!r} at version {base} was recorded; "
            f"call again with expected={base} and the same drafts"
        )
        self.session_id = session_id
        self.base = base
        self.bases = bases or {session_id: base}


class ErasureUnfinished(StoreError):
    """The session is deleted, and no reader is given what was said in it; but not all of it is overwritten.

    The database failed in the middle (`__cause__`). What is left goes with the next deletion of whatever
    session of the namespace, and before the session begins again.
    """

    def __init__(self, session_id: str) -> None:
        super().__init__(
            f"session {session_id!r} is deleted, but not all of its content is overwritten yet: "
            "the next deletion goes on with it"
        )
        self.session_id = session_id


class StoreMissing(StoreError, LookupError):
    """There is nothing to verify: no file, no schema or no tables, or nothing in the namespace.

    Only `verify` raises it; whatever else reads finds no sessions there, and the first write makes the log.
    """


class FeedUnavailable(StoreError):
    """This server cannot give a gap-safe feed (a standby, or a sequence with a cache), or store a position.

    A consumer's position is stored in the log's database: on one that only reads, none can work.
    """


class FeedRegressed(StoreError):
    """The cursor is past the end of the log: the database lost events or is another one."""

    def __init__(self, after: int, last: int) -> None:
        super().__init__(f"the feed was asked for events after position {after}, but the log ends at {last}")
        self.after = after
        self.last = last


class StoreCorrupt(StoreError):
    """The database file or a row in it is damaged. Nothing is answered as missing or overwritten."""
