"""Rows of another log, one after the other: whether each can stand behind those before it.

A file can be made by anybody, and its hashes with it. So besides the chain, everything is asked that
recording would have asked or made: kinds, turns, times, ids, payloads, what erasures cover. What the
head row has to say follows from the rows alone, as verify has it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from kern_events import chain
from kern_events.batch import HANDED_DOWN, LISTING, TOMBSTONES, StoredRow, expected_hash, listing_of
from kern_events.clock import AHEAD_US, said_us
from kern_events.codec import JSON, MAX_PAYLOAD_BYTES, check_id, decode, encode, too_large
from kern_events.errors import InvalidEvent
from kern_events.events import Head, Kind, Status, kind_of
from kern_events.lines import check_keys, colons

_MAX_TYPE_VERSION: Final = 2**31 - 1
_KEEPERS: Final = (Kind.TURN_START, Kind.RESTORE, Kind.FORK)  # whose `turn` is the highest so far
_OF_TURNS: Final = (Kind.TURN_START, Kind.TURN_END, Kind.TURN_RESUME)
_LASTING: Final = (Kind.ERASURE, Kind.CLOSE)  # which no erasure covers

TurnAt = Callable[[int], int]


class Beginning(msgspec.Struct, frozen=True):
    """What the first row of a session goes on from.

    Attributes:
        head: Version 0 and the genesis hash; or a fork's origin, with the fork's genesis hash, and
            the parent's turn and time there.
        turn_at: The highest turn started at a version of the parent.
        parent: The session that it was forked from.
        owner: The session in whose rows a fork's origin lies.
        handed_down_erased: Whether what it was handed down may have been erased with its parent; asked
            only where it is gone.
    """

    head: Head
    turn_at: TurnAt = lambda version: 0
    parent: str | None = None
    owner: str | None = None
    handed_down_erased: Callable[[], bool] = lambda: False


class Incoming:
    """A session as its rows arrive: where it stands, and what its head row says there."""

    def __init__(
        self,
        namespace: str,
        session_id: str,
        beginning: Beginning,
        max_payload_bytes: int = MAX_PAYLOAD_BYTES,
        now_us: Callable[[], int] = said_us,
    ) -> None:
        start = beginning.head
        self.version, self.hash, self.turn, self.at_us = start.version, start.hash, start.turn, start.at_us
        self.branch = self.created_us = 0
        self.status: Status = "open"
        self.listing: dict[str, str | None] = dict.fromkeys(LISTING)
        self.tombstones: list[int] = []
        self.deleted = 0
        """The version of the last `session.deleted`: everything before it has to be erased."""
        self.partly_erased = 0
        """The version of the last `session.erased`."""
        self._now_us, self._latest_us = now_us, 0
        self._begins = beginning
        self._scope = chain.scope(namespace, session_id)
        self._limit = max_payload_bytes
        self._turns: list[tuple[int, int]] = []
        self._keys: set[str] = set()
        self._erased: list[int] = []
        self._lasting: list[int] = []
        self._covered: list[tuple[int, int]] = []
        self._hashes = bytearray()

    def head(self, epoch: int) -> Head:
        """Where the session stands, in the epoch given."""
        return Head(self.version, self.hash, self.turn, self.branch, epoch, self.status, self.at_us)

    def hash_at(self, version: int) -> bytes | None:
        """The hash of a version that has arrived."""
        start = 32 * (version - self._begins.head.version - 1)
        return bytes(self._hashes[start : start + 32]) if start >= 0 and version <= self.version else None

    def take(self, row: StoredRow) -> None:
        """The next row.

        Raises:
            InvalidEvent: It cannot stand there. The reason tells no content.
        """
        self._check_place(row)
        payload, meta = _payload(row, self._limit), _meta(row, self._limit)
        _check_kind(row, payload, meta)
        self._check_turn(row)
        self._follow(row, payload, meta)
        self.version, self.hash, self.at_us = row[0], row[18], row[8]
        self._hashes += self.hash

    def finish(self) -> None:
        """After the last row.

        Raises:
            InvalidEvent: Something was erased, and no event tells so.
        """
        covered = iter(sorted(self._covered))
        last = 0
        for version in self._erased:
            while last < version and (reach := next(covered, None)) and reach[0] <= version:
                last = max(last, reach[1])
            if last < version:
                raise InvalidEvent(f"version {version} is erased, and no event says so", "payload")

    def _check_place(self, row: StoredRow) -> None:
        version, type, at_us, key = row[0], row[3], row[8], row[11]
        if version != self.version + 1:
            raise InvalidEvent(f"version {version} stands behind version {self.version}", "version")
        check_id(type, "type")
        _check_fields(row)
        if expected_hash(self.hash, self._scope, row) != row[18]:
            raise InvalidEvent("the event does not hash to what the line says", "hash")
        if at_us < self.at_us:
            raise InvalidEvent("earlier than the event before it", "at")
        if self._is_to_come(at_us):
            raise InvalidEvent("later than now: by a wrong clock, every event behind it would be too", "at")
        if key is not None and key in self._keys:
            raise InvalidEvent("the key of an earlier event", "idempotency_key")
        if self.status == "deleted" and type != "session.created":
            raise InvalidEvent("a deleted session begins again with session.created", "type")
        if (self._begins.parent is not None and self.version == self._begins.head.version) != (
            row[5] == Kind.FORK
        ):
            raise InvalidEvent("session.forked is the first event of a fork, and no other", "type")

    def _is_to_come(self, at_us: int) -> bool:
        """Whether a time is more than a minute ahead of the clock, which is asked where it might be."""
        if at_us > self._latest_us:
            self._latest_us = self._now_us() + AHEAD_US
        return at_us > self._latest_us

    def _check_turn(self, row: StoredRow) -> None:
        version, kind, turn, ref = row[0], row[5], row[6], row[7]
        if kind == Kind.RESTORE:
            right = ref is not None and 0 <= ref < version and turn == self._turn_at(ref)
        elif kind == Kind.FORK:
            right = ref == self._begins.head.version and turn == self.turn
        elif kind == Kind.TURN_START:
            right = ref is None and turn == self.turn + 1
        else:
            right = ref is None and 0 <= turn <= self.turn
        if not right:
            raise InvalidEvent("not what follows from the events before it", "turn")

    def _turn_at(self, version: int) -> int:
        """The highest turn that had started on the branch of a version."""
        origin = self._begins.head.version
        if version <= origin:
            return self._begins.turn_at(version) if version else 0
        index = bisect_right(self._turns, version, key=lambda found: found[0])
        return self._turns[index - 1][1] if index else 0

    def _follow(self, row: StoredRow, payload: Any, meta: Any) -> None:
        version, type, kind = row[0], row[3], row[5]
        self.created_us = self.created_us or row[8]
        if row[11] is not None:
            self._keys.add(row[11])
        if kind in _KEEPERS:
            self.turn = row[6]
            self._turns.append((version, row[6]))
        if kind == Kind.RESTORE or type == "session.deleted":
            self.branch = version
        if kind in _LASTING:
            self._lasting.append(version)
        if payload is None:
            self._erased.append(version)
            if kind in HANDED_DOWN and self._begins.handed_down_erased():
                self._covered.append((version, version))
        if type.startswith("session."):
            self._follow_session(version, type, payload, meta)

    def _follow_session(self, version: int, type: str, payload: Any, meta: Any) -> None:
        if type in TOMBSTONES:
            self.tombstones.append(version)
            self._cover(version, type, meta)
        if type == "session.deleted":
            self.status, self.listing, self.deleted = "deleted", dict.fromkeys(LISTING), version
        elif type == "session.closed":
            self.status = "closed"
        elif type == "session.created":
            self.status = "open"
        if payload is not None:
            self.listing |= listing_of(type, payload) or {}

    def _cover(self, version: int, type: str, meta: Any) -> None:
        """What a tombstone says that it covers; of session.deleted that is all there was."""
        ranges = meta.get("erased") if isinstance(meta, Mapping) else None
        if type == "session.deleted" and ranges != [[1, version - 1]]:
            raise InvalidEvent("not everything before it", "meta.erased")
        if not isinstance(ranges, list) or not all(_is_range(each, version) for each in ranges):
            raise InvalidEvent("not ranges of earlier versions", "meta.erased")
        self._covered += [(first, last) for first, last in ranges]
        if type != "session.deleted":
            self.partly_erased = version
            if not all(self._is_gone(*each) for each in ranges):
                raise InvalidEvent("what it covers is not erased", "meta.erased")

    def _is_gone(self, first: int, last: int) -> bool:
        """Whether nothing in a range has content, but for what is never erased."""
        first = max(first, self._begins.head.version + 1)
        gone = sum(
            bisect_right(versions, last) - bisect_left(versions, first)
            for versions in (self._erased, self._lasting)
        )
        return gone == max(0, last - first + 1)


def _is_range(value: Any, before: int) -> bool:
    return (
        type(value) is list
        and len(value) == 2
        and all(type(number) is int for number in value)
        and 1 <= value[0] <= value[1] < before
    )


def _check_fields(row: StoredRow) -> None:
    """What one field alone has to be."""
    if len(row[2]) != 16:
        raise InvalidEvent("not 16 bytes", "event_id")
    if not 1 <= row[4] <= _MAX_TYPE_VERSION:
        raise InvalidEvent("not a version from 1", "type_version")
    for column, value in (("actor", row[9]), ("idempotency_key", row[11])):
        if value is not None:
            check_id(value, column)
    if row[12] != JSON or row[13] is not None:
        raise InvalidEvent("this release does not know how the payload is encoded", "codec")
    if len(row[18]) != 32:
        raise InvalidEvent("not 32 bytes", "hash")
    payload, native, commit, salt = row[14], row[15], row[16], row[17]
    if payload is None:
        if native is not None or salt is not None or commit is None or len(commit) != 32:
            raise InvalidEvent(
                "an erased event has a commitment of 32 bytes and no content", "payload_commit"
            )
    elif salt is None or len(salt) != 16 or commit is not None:
        raise InvalidEvent("an event with content has 16 bytes of salt and no commitment beside it", "salt")


def _payload(row: StoredRow, limit: int) -> dict[str, Any] | None:
    """The payload, None where it is erased."""
    data, native = row[14], row[15]
    if native is not None and len(native) > limit:
        raise too_large(len(native), limit, "native")
    return None if data is None else _object(data, "payload", limit)


def _meta(row: StoredRow, limit: int) -> dict[str, Any] | None:
    return None if row[10] is None else _object(row[10], "meta", limit)


def _object(data: bytes, column: str, limit: int) -> dict[str, Any]:
    """A JSON object that could have been recorded."""
    if len(data) > limit:
        raise too_large(len(data), limit, column)
    try:
        # orjson would round what is over 64 bits, here it is refused; but what it reads is what counts.
        value = msgspec.json.decode(data)
        same = _has_keys_once(data, encode(value, column, limit)) and value == decode(data)
    except InvalidEvent as error:
        raise InvalidEvent(error.reason, column) from None  # The path has keys, which are content.
    except (ValueError, RecursionError):
        same = False
    if not same or type(value) is not dict:
        raise InvalidEvent("not a JSON object", column)
    return value


def _has_keys_once(data: bytes, again: bytes) -> bool:
    """Whether no object of a JSON text has a key twice; `again` is what was read of it, written again."""
    if again.count(b":") == colons(data):  # See check_keys.
        return True
    try:
        check_keys(data, None)
    except InvalidEvent:  # It names the key, and that is content.
        return False
    return True


def _check_kind(row: StoredRow, payload: dict[str, Any] | None, meta: dict[str, Any] | None) -> None:
    type, kind = row[3], row[5]
    expected = kind_of(type, payload or {}, meta)
    # What was erased may have been a nested run.
    nested = payload is None and kind == 0 and expected in _OF_TURNS
    if kind != expected and not nested:
        raise InvalidEvent("not the kind of an event of this type", "kind")
    if kind in _LASTING and payload is None:
        raise InvalidEvent("an event that is never erased", "payload")
    if kind == Kind.CLOSE and (payload or row[15] is not None):
        raise InvalidEvent("an event that carries no content", "payload")
