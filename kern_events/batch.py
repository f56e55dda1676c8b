"""From drafts to rows, and from rows to events.

`prepare` guards, encodes, salts and commits; a retry never does that again. `link` gives the events
their versions, turns, time and hashes behind a given head. Both are pure but for a draft's salt.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from itertools import count
from typing import Any, Final, NamedTuple

import msgspec

from kern_events import chain
from kern_events.clock import AHEAD_US
from kern_events.codec import (
    JSON,
    LARGEST_BATCH_BYTES,
    LARGEST_PAYLOAD_BYTES,
    MAX_BATCH,
    MAX_PAYLOAD_BYTES,
    TooMuch,
    check_id,
    check_text,
    decode,
    encode,
    encode_plain,
    misfit,
    too_large,
)
from kern_events.delta import check_change
from kern_events.errors import DecodeError, InvalidEvent
from kern_events.events import ERASED, WRITERS_CLOCK, Draft, Event, Head, Kind, kind_of
from kern_events.frozen import DICTS
from kern_events.upcast import NO_TYPES, EventTypes

LISTING: Final = ("session_type", "agent_id", "team_id", "workflow_id", "user_id", "name")
"""The columns of a head row that come from `session.*` payloads."""

TOMBSTONES: Final = frozenset({"session.erased", "session.deleted"})
"""The types whose events cover erased ones."""

_CHECKS: Final[Mapping[str, Callable[[Mapping[str, Any], str], None]]] = {"state.changed": check_change}
"""What a payload of the vocabulary is held against on write; each raises InvalidEvent with the path."""

_DESCRIBING: Final = frozenset({"session.created", "session.described", "session.forked"})
DESCRIBING: Final = (*sorted(_DESCRIBING), "session.renamed", "session.restored", "session.deleted")
"""The types that say what a session is, beside what was said in it; six, see SQLITE_DESCRIBING."""

HANDED_DOWN: Final = frozenset({Kind.RESTORE, Kind.FORK})
"""The kinds of a fork's events that an erasure in what it was forked from covers: see handed_down."""

_CARRIED: Final = ("user_id", "name", "metadata")  # what a restore says, because it is not rewound
_RESERVED: Final = frozenset({Kind.RESTORE, Kind.FORK, Kind.ERASURE})
_MAX_TYPE_VERSION: Final = 2**31 - 1
_PARTS: Final = 3  # of an event that are limited: payload, meta and native
_CLOCKED: Final = f'"{WRITERS_CLOCK}":'.encode()

# One linked row, in the order in which every store writes it.
Row = tuple[
    int, bytes, str, int, int, int, int | None, int, str | None, bytes | None, str | None,
    int, bytes | None, bytes, bytes | None, bytes, bytes,
]  # fmt: skip
ROW_COLUMNS: Final = (
    "version", "event_id", "type", "type_version", "kind", "turn", "ref", "at", "actor", "meta",
    "idempotency_key", "codec", "key_commit", "payload", "native", "salt", "hash",
)  # fmt: skip


# One recorded row, in the order in which every store reads it.
StoredRow = tuple[Any, ...]
STORED_COLUMNS: Final = (
    "version", "position", "event_id", "type", "type_version", "kind", "turn", "ref", "at", "actor", "meta",
    "idempotency_key", "codec", "key_commit", "payload", "native", "payload_commit", "salt", "hash",
)  # fmt: skip


class Prepared(msgspec.Struct, frozen=True, gc=False):
    """A draft whose bytes are final: only its place in the session is open."""

    draft: Draft
    kind: int
    ref: int | None
    meta: bytes | None
    payload: bytes
    salt: bytes
    commit: bytes
    header: bytes
    trailer: bytes
    listing: Mapping[str, str | None] | None

    @property
    def size_bytes(self) -> int:
        """What it takes of what one append may hold."""
        return len(self.payload) + len(self.meta or b"") + len(self.draft.native or b"")


class Fence(NamedTuple):
    """What a batch must not stand behind, wherever it lands.

    `seen` is the last version that its maker knows, so nothing up to it has to be looked at. For a running
    turn it is somebody else who resumed it, or ended it: an event of `kinds` in the turn `turn` that is not
    among its `own`. For whoever has read a part of the session and changes it: an event of these `types`.
    """

    seen: int
    turn: int = 0
    kinds: tuple[int, ...] = ()
    own: Set[bytes] = frozenset()
    types: tuple[str, ...] = ()


class Batch(NamedTuple):
    """The prepared events of one append to one session.

    `opening` is a `session.created` that goes first where the session is new, and is dropped where it
    is not. `branch` is the branch that a running turn began on, None for everybody else. `user_id` is
    whom it begins a session for, or a turn; a session of another user refuses it.
    """

    namespace: str
    session_id: str
    scope: bytes
    events: tuple[Prepared, ...]
    opening: Prepared | None = None
    idempotency_key: str | None = None
    branch: int | None = None
    turn: int = 0
    fence: Fence | None = None
    user_id: str | None = None

    def at(self, head: Head) -> tuple[Prepared, ...]:
        """The events that an attempt behind this head records."""
        return (self.opening, *self.events) if self.opening and head.version == 0 else self.events

    @property
    def size_bytes(self) -> int:
        """What the payloads, natives and metas of its events come to."""
        return sum(event.size_bytes for event in self.events)

    def split(self, limit_bytes: int) -> Iterator[Batch]:
        """The same events in batches of at most so many bytes.

        Raises:
            InvalidEvent: One event has more.
        """
        start = size_bytes = 0
        for index, event in enumerate(self.events):
            size_bytes += event.size_bytes
            if size_bytes > limit_bytes and index > start:
                yield self._replace(events=self.events[start:index])
                start, size_bytes = index, event.size_bytes
            if size_bytes > limit_bytes:
                raise InvalidEvent(_too_much(limit_bytes), f"drafts[{index}]")
        yield self if start == 0 else self._replace(events=self.events[start:])

    def empty_head(self) -> Head:
        """The head of this session while it has no events."""
        return Head(0, chain.genesis(self.scope))


class Linked(NamedTuple):
    """A batch at its place: the rows to insert, and the head row after them."""

    rows: list[Row]
    head: Head
    listing: Mapping[str, str | None] | None


def prepare(
    namespace: str,
    session_id: str,
    drafts: Sequence[Draft],
    *,
    idempotency_key: str | None = None,
    opening: Draft | None = None,
    branch: int | None = None,
    turn: int = 0,
    fence: Fence | None = None,
    max_payload_bytes: int = MAX_PAYLOAD_BYTES,
    max_batch_bytes: int | None = None,
    spent_bytes: int = 0,
    ref: int | None = None,
    reserved: bool = False,
) -> Batch:
    """Guard and encode the drafts of one append; `ref` and `reserved` are those of prepare_draft.

    Of `max_batch_bytes`, others of the same transaction have taken `spent_bytes`. It is held against what
    is encoded while it is encoded, so that no more than it is in memory.

    Raises:
        InvalidEvent: A value cannot be recorded exactly, or the batch is empty, too long or too large.
    """
    check_id(session_id, "session_id")
    if idempotency_key is not None:
        check_id(idempotency_key, "idempotency_key")
    given: Any = drafts
    if not isinstance(given, Collection) or not all(isinstance(draft, Draft) for draft in given):
        raise TypeError("drafts is a list of Draft")
    if not 1 <= len(drafts) <= MAX_BATCH:
        raise InvalidEvent(f"{len(drafts):,} drafts; an append takes 1 to {MAX_BATCH:,}", "drafts")
    left = None if max_batch_bytes is None else max_batch_bytes - spent_bytes
    if left is not None and _PARTS * max_payload_bytes * len(drafts) <= left:
        left = None  # However large they are, they are not too large together.
    try:
        encoded = encode_plain([draft.payload for draft in drafts], max_payload_bytes, left)
    except TooMuch:
        raise InvalidEvent(_too_much(max_batch_bytes), "drafts") from None
    if left is not None and encoded:
        left -= sum(map(len, encoded))
    salts = os.urandom(16 * len(drafts))
    events: list[Prepared] = []
    begins = False
    try:
        for i, draft in enumerate(drafts):
            begins = begins or draft.type == "session.created"
            salt, payload = salts[16 * i : 16 * i + 16], encoded[i] if encoded else None
            event = prepare_draft(draft, salt, max_payload_bytes, payload=payload, ref=ref, reserved=reserved)
            events.append(event)
            if left is not None and not (payload and draft.meta is None and draft.native is None):
                left -= event.size_bytes - len(payload or b"")
                if left < 0:
                    break
    except InvalidEvent as error:
        raise InvalidEvent(error.reason, f"drafts[{len(events)}].{error.path}") from None
    if left is not None and left < 0:
        raise InvalidEvent(_too_much(max_batch_bytes), "drafts")
    if len({draft.event_id for draft in drafts}) < len(drafts):
        raise InvalidEvent("the same draft twice in one append", "drafts")
    first = prepare_draft(opening, os.urandom(16), max_payload_bytes) if opening else None
    user_id = _user_of([first, *events] if first else events) if first or begins else None
    scope = chain.scope(namespace, session_id)
    return Batch(
        namespace, session_id, scope, tuple(events), first, idempotency_key, branch, turn, fence, user_id
    )


def _too_much(limit_bytes: int | None) -> str:
    more = "; max_batch_bytes can be raised" if (limit_bytes or 0) < LARGEST_BATCH_BYTES else ""
    return f"more than {limit_bytes:,} bytes in one transaction{more}"


def _user_of(events: Sequence[Prepared]) -> str | None:
    """Whose session the `session.created` among these events say that it is."""
    created = [event.listing for event in events if event.listing and event.draft.type == "session.created"]
    users = {listing["user_id"] for listing in created if listing.get("user_id") is not None}
    if len(users) > 1:
        raise InvalidEvent("session.created for two users in one append", "drafts")
    return next(iter(users), None)


def prepare_draft(
    draft: Draft,
    salt: bytes,
    limit: int = MAX_PAYLOAD_BYTES,
    *,
    payload: bytes | None = None,
    ref: int | None = None,
    reserved: bool = False,
) -> Prepared:
    """Guard and encode one draft.

    Args:
        draft: What to record.
        salt: 16 random bytes.
        limit: Of the encoded payload, in bytes.
        payload: The encoded payload, where it is known to be exact.
        ref: For a restore or a fork.
        reserved: Allow the types that only their own verbs record.
    """
    facts = _facts_of(draft.type, draft.type_version)
    if facts.kind == Kind.CLOSE and (draft.payload or draft.native) and not reserved:
        raise InvalidEvent(f"{draft.type} carries no content: it could never be erased", "payload")
    if facts.reserved and not reserved:
        raise InvalidEvent(f"{draft.type} is recorded by its own verb, not by append", "type")
    if type(draft.payload) not in DICTS:
        raise InvalidEvent(f"{type(draft.payload).__name__} is not a dict", "payload")
    if facts.check is not None:
        facts.check(draft.payload, "payload")
    if type(draft.event_id) is not bytes or len(draft.event_id) != 16:
        raise InvalidEvent("not 16 bytes", "event_id")
    if payload is None:
        payload = encode(draft.payload, "payload", limit)
    meta, native, trailer = None, draft.native, chain.PLAIN_TRAILER
    if not (draft.actor is None and draft.meta is None and draft.turn is None and native is None):
        _check_details(draft, limit)
        meta = None if draft.meta is None else encode(draft.meta, "meta", limit)
        trailer = chain.trailer(JSON, None, draft.actor, meta)
    kind = facts.kind and kind_of(draft.type, draft.payload, draft.meta)
    return Prepared(
        draft,
        kind,
        ref,
        meta,
        payload,
        salt,
        chain.payload_commit(salt, payload, native),
        draft.event_id + (facts.header if kind else facts.other_header),
        trailer,
        listing_of(draft.type, draft.payload) if facts.is_session else None,
    )


class _Facts(NamedTuple):
    """What a type says by itself, worked out once."""

    kind: int
    header: bytes
    other_header: bytes
    reserved: bool
    is_session: bool
    check: Callable[[Mapping[str, Any], str], None] | None


def _facts_of(name: Any, type_version: Any) -> _Facts:
    try:
        return _facts(name, type_version)
    except TypeError:  # Not hashable, so neither a text nor a number.
        check_id(name, "type")
        raise InvalidEvent("not a version from 1", "type_version") from None


@functools.lru_cache(maxsize=1024, typed=True)
def _facts(name: str, type_version: int) -> _Facts:
    check_id(name, "type")
    if type(type_version) is not int or not 1 <= type_version <= _MAX_TYPE_VERSION:
        raise InvalidEvent("not a version from 1", "type_version")
    kind = kind_of(name, {}, None)
    return _Facts(
        kind,
        chain.header(name, type_version, kind),
        chain.header(name, type_version, 0),
        kind in _RESERVED or name in TOMBSTONES,
        name.startswith("session."),
        _CHECKS.get(name) if type_version == 1 else None,
    )


def _check_details(draft: Draft, limit: int) -> None:
    if draft.actor is not None:
        check_id(draft.actor, "actor")
    if draft.meta is not None and type(draft.meta) not in DICTS:
        raise InvalidEvent(f"{type(draft.meta).__name__} is not a dict", "meta")
    if draft.turn is not None and (type(draft.turn) is not int or not 0 <= draft.turn < 2**63):
        raise InvalidEvent("not a turn number", "turn")
    if draft.native is not None and type(draft.native) is not bytes:
        raise InvalidEvent(f"{type(draft.native).__name__} is not bytes", "native")
    if draft.native is not None and len(draft.native) > limit:
        raise too_large(len(draft.native), limit, "native")


def listing_of(type: str, payload: Mapping[str, Any]) -> dict[str, str | None] | None:
    """What an event says of the listing columns: None for nothing, else the columns that it sets."""
    if type in _DESCRIBING:
        columns = {key: payload[key] for key in LISTING if key in payload}
    elif type == "session.renamed":
        columns = {"name": payload.get("name")}
    else:
        return None
    for key, value in columns.items():
        if value is not None:
            (check_text if key == "name" else check_id)(value, f"payload.{key}")
    return columns


def handed_down(rows: Iterable[StoredRow]) -> tuple[list[StoredRow], dict[str, str | None]]:
    """What a fork's rows say of the session that it was forked from, which goes when that is erased.

    Args:
        rows: Those of the fork that are of DESCRIBING types, in order.

    Returns:
        The rows that say so: `session.forked`, and each restore that carries on what was never described
        here; and the listing columns without them.
    """
    gone: list[StoredRow] = []
    listing: dict[str, str | None] = dict.fromkeys(LISTING)
    own: set[str] = set()
    for row in rows:
        type, payload = row[3], _readable(row)
        if type == "session.deleted":
            own, listing = set(_CARRIED), dict.fromkeys(LISTING)
        elif payload is None:
            continue
        elif type == "session.forked":
            gone.append(row)
        elif type != "session.restored":
            own |= payload.keys()
            listing |= listing_of(type, payload) or {}
        elif any(payload.get(key) and key not in own for key in _CARRIED):
            gone.append(row)
    return gone, listing


def _readable(row: StoredRow) -> dict[str, Any] | None:
    if row[14] is None or row[12] != JSON:
        return None
    payload = decode(row[14])
    return payload if type(payload) is dict else None


def link(batch: Batch, head: Head, now_us: int) -> Linked:
    """Place a batch behind a head, at this time or, as time never falls, at the head's.

    Raises:
        InvalidEvent: A draft is stamped with a turn that has not started.
    """
    events = batch.at(head)
    turn, branch, epoch, status = head.turn, head.branch, head.epoch, head.status
    first, at_us, key = head.version + 1, max(now_us, head.at_us), batch.idempotency_key
    if at_us - now_us > AHEAD_US:
        events = (_clocked(events[0], now_us), *events[1:])
    links: list[chain.Link] = []
    listing: dict[str, str | None] | None = None
    for version, event in enumerate(events, first):
        draft, kind = event.draft, event.kind
        stamp = draft.turn
        if kind == 1:  # Kind.TURN_START, without the cost of an enum
            stamp = turn = turn + 1
        elif kind == Kind.RESTORE:
            stamp = turn = stamp or 0
            branch = version
        elif stamp is None:
            stamp = turn
        elif stamp > turn:
            raise InvalidEvent(f"turn {stamp} has not started, the last is {turn}", "draft.turn")
        if draft.type.startswith("session."):
            listing, status = _listing_after(event, status, listing)
            epoch += draft.type in TOMBSTONES
            if draft.type == "session.deleted":
                branch = version  # What is begun after it belongs to no turn of before.
        links.append((event.header, stamp, event.ref, event.trailer, key, event.commit))
        key = None
    hashes = chain.extend(head.hash, batch.scope, head.version, at_us, links)
    rows: list[Row] = []
    for version, event, link, hash in zip(count(first), events, links, hashes, strict=False):
        draft = event.draft
        rows.append(
            (
                version, draft.event_id, draft.type, draft.type_version, event.kind, link[1], event.ref,
                at_us, draft.actor, event.meta, link[4], JSON, None, event.payload, draft.native,
                event.salt, hash,
            )
        )  # fmt: skip
    after = Head(head.version + len(rows), hashes[-1], turn, branch, epoch, status, at_us)
    return Linked(rows, after, listing)


def _clocked(event: Prepared, now_us: int) -> Prepared:
    """An event that is dated by an earlier one, with what its own writer's clock says."""
    meta = encode({**(event.draft.meta or {}), WRITERS_CLOCK: now_us}, "meta", 2 * LARGEST_PAYLOAD_BYTES)
    trailer = chain.trailer(JSON, None, event.draft.actor, meta)
    return msgspec.structs.replace(event, meta=meta, trailer=trailer)


def is_clocked(row: StoredRow) -> bool:
    """Whether a recorded row says that it is dated by an earlier one; see Event.clock_us."""
    return row[10] is not None and _CLOCKED in row[10]


def _listing_after(
    event: Prepared, status: Any, listing: dict[str, str | None] | None
) -> tuple[dict[str, str | None] | None, Any]:
    """The pending listing columns and the status after one `session.*` event."""
    type = event.draft.type
    if type == "session.deleted":
        return dict.fromkeys(LISTING), "deleted"
    if type == "session.closed":
        return listing, "closed"
    if type == "session.created":
        status = "open"
    if event.listing:
        listing = {**(listing or {}), **event.listing}
    return listing, status


def event_of(namespace: str, session_id: str, row: StoredRow, types: EventTypes = NO_TYPES) -> Event:
    """A recorded row as an Event, in the version that it was recorded in.

    Raises:
        DecodeError: The stored bytes are not what their codec, or the type, says.
    """
    (
        version, position, event_id, type, type_version, kind, turn, ref, at_us, actor, meta,
        key, codec, key_commit, payload, native, _, salt, hash,
    ) = row  # fmt: skip
    try:
        if codec != JSON:
            raise ValueError(f"codec {codec} is not known")
        straight = types.decoder(type, type_version) if types else None
        content = ERASED if payload is None else (straight or decode)(payload)
        details = None if meta is None else decode(meta)
        if not isinstance(details, dict | None):
            raise ValueError("the meta is no object")
    except (ValueError, msgspec.MsgspecError) as error:
        # An error of the type's would quote the value.
        cause = ValueError(misfit(error)) if isinstance(error, msgspec.ValidationError) else error
        raise DecodeError(session_id, version, type, type_version) from cause
    return Event(
        namespace, session_id, version, position, event_id, type, type_version, kind, turn, ref, at_us,
        actor, details, key, codec, key_commit, content, native, salt, hash,
    )  # fmt: skip


def expected_hash(previous: bytes, scope: bytes, row: StoredRow) -> bytes | None:
    """What a recorded row should hash to behind `previous`; None if it cannot be hashed at all."""
    (
        version, _, event_id, type, type_version, kind, turn, ref, at_us, actor, meta,
        key, codec, key_commit, payload, native, commit, salt, _,
    ) = row  # fmt: skip
    if payload is not None and commit is None and salt is not None:
        commit = chain.payload_commit(salt, payload, native)
    elif not (payload is native is salt is None):
        return None  # Neither whole nor erased: a payload without its salt, or content put back.
    if commit is None or len(event_id) != 16 or not _hashable(version, type_version, kind, turn, ref, codec):
        return None
    try:
        header = event_id + chain.header(type, type_version, kind)
        link = (header, turn, ref, chain.trailer(codec, key_commit, actor, meta), key, commit)
        return chain.extend(previous, scope, version - 1, at_us, [link])[0]
    except UnicodeEncodeError:  # Bytes that are no text, see the snapshot of SQLite.
        return None


def _hashable(version: int, type_version: int, kind: int, turn: int, ref: int | None, codec: int) -> bool:
    """Whether the numbers fit the layout that is hashed; a row that was tampered with may hold any."""
    return (
        1 <= version < 2**63
        and 0 <= type_version < 2**32
        and 0 <= kind < 256
        and 0 <= turn < 2**63
        and 0 <= (ref or 0) < 2**63
        and 0 <= codec < 256
    )
