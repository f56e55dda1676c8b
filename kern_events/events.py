"""What is appended (Draft), what is recorded (Event), and where a session stands (Head).

All are frozen values. Event types are past tense and dotted; the built-in vocabulary is in
TYPES below, applications add types of their own freely, and unknown types pass through.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Any, Final, Literal

import msgspec

from kern_events.clock import now_us
from kern_events.codec import encode
from kern_events.delta import check_ops
from kern_events.errors import InvalidEvent
from kern_events.frozen import DICTS, LISTS, Json

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
LAST_US: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
"""The last time that a datetime can say, in microseconds since 1970."""

WRITERS_CLOCK: Final = "kern.clock_us"
"""In the meta of an event that is dated by an earlier one: what the clock of its own writer said."""

Status = Literal["open", "closed", "deleted"]


class Kind(IntEnum):
    """What an event is to the log itself; hashed, and the key of the skeleton index."""

    OTHER = 0
    TURN_START = 1
    TURN_END = 2
    RESTORE = 3
    FORK = 4
    ERASURE = 5
    CLOSE = 6
    TURN_RESUME = 7


_KINDS: Final[dict[str, Kind]] = {
    "turn.started": Kind.TURN_START,
    "turn.completed": Kind.TURN_END,
    "turn.failed": Kind.TURN_END,
    "turn.cancelled": Kind.TURN_END,
    "turn.resumed": Kind.TURN_RESUME,
    "session.restored": Kind.RESTORE,
    "session.forked": Kind.FORK,
    "session.erased": Kind.ERASURE,
    "session.closed": Kind.CLOSE,
    "session.deleted": Kind.CLOSE,
}

TYPES: Final[frozenset[str]] = frozenset(_KINDS) | {
    "session.created",
    "session.renamed",
    "session.described",
    "session.summarized",
    "session.cleared",
    "turn.paused",
    "message.added",
    "message.replaced",
    "message.removed",
    "messages.compacted",
    "model.called",
    "model.responded",
    "tool.called",
    "tool.returned",
    "tool.failed",
    "approval.requested",
    "approval.resolved",
    "state.changed",
    "media.attached",
    "agent.handed_off",
}


_OF_TURNS: Final = (Kind.TURN_START, Kind.TURN_END, Kind.TURN_RESUME)


def kind_of(type: str, payload: Mapping[str, Any], meta: Mapping[str, Any] | None) -> int:
    """The kind of an event; a turn with a parent run id belongs to another turn and opens none."""
    kind = _KINDS.get(type)
    if kind is None:
        return 0
    return 0 if kind in _OF_TURNS and is_nested(payload, meta) else int(kind)


def is_nested(payload: Mapping[str, Any], meta: Mapping[str, Any] | None) -> bool:
    """Whether an event belongs to a run within a turn: it has a parent run id."""
    return payload.get("parent_run_id") is not None or (meta or {}).get("parent_run_id") is not None


# Ids need to be unique, not secret: a generator of our own, so that random.seed() elsewhere cannot
# repeat them, and seeded anew in a forked child.
_random = random.Random()
os.register_at_fork(after_in_child=_random.seed)
_UUID7_FIXED: Final = 0x7 << 76 | 0b10 << 62
_UUID7_RANDOM: Final = ~(0xF << 76 | 0b11 << 62) & (1 << 80) - 1


def new_event_id() -> bytes:
    """A UUIDv7 as 16 bytes: 48 bits of milliseconds, then randomness; InvalidEvent as from now_us."""
    tail = _random.getrandbits(80) & _UUID7_RANDOM | _UUID7_FIXED
    return (now_us() // 1_000 << 80 | tail).to_bytes(16, "big")


class Draft(msgspec.Struct, frozen=True):
    """An event to append. Its id is made with it, so the same draft is recognised when passed again.

    Attributes:
        type: Dotted and past tense, as in `message.added`; at most 200 bytes.
        payload: A dict of JSON values; recorded exactly or refused with InvalidEvent.
        type_version: The schema version of the payload, from 1.
        actor: Who did it: a pseudonymous id. Hashed and never erasable.
        meta: Run id, author, traceparent, source time ... Hashed and never erasable, so
            pseudonymous ids only; personal data belongs in the payload.
        native: The framework's own item, byte for byte. Erased together with the payload.
        turn: The turn that the event belongs to; None is the turn last started.
        event_id: 16 bytes, UUIDv7.
    """

    type: str
    payload: dict[str, Any]
    type_version: int = 1
    actor: str | None = None
    meta: dict[str, Any] | None = None
    native: bytes | None = None
    turn: int | None = None
    event_id: bytes = msgspec.field(default_factory=new_event_id)


class Erased(msgspec.Struct, frozen=True):
    """Stands in for a payload that was erased."""


ERASED: Final = Erased()


class Event(msgspec.Struct, frozen=True, gc=False):
    """A recorded event. `(namespace, session_id, version)` is its identity and the only order.

    Attributes:
        namespace: The tenant.
        session_id: The session.
        version: 1, 2, 3 ... within the session, dense.
        position: Order across sessions; may have gaps and is not hashed.
        event_id: 16 bytes, UUIDv7.
        type: As in Draft.
        type_version: As in Draft.
        kind: See Kind.
        turn: The turn that the event belongs to; 0 before the first.
        ref: A restore's target version or a fork's origin, else None.
        at_us: The recorder's clock in microseconds since 1970, UTC; never falls within a session.
        actor: As in Draft.
        meta: As in Draft, and see `clock_us`.
        idempotency_key: The key of the append call, on its first event.
        codec: How the payload's bytes are encoded; 0 is UTF-8 JSON.
        key_commit: Commits to the encryption key, if any.
        payload: Decoded from the stored bytes: a dict, or what its EventType declares; or ERASED.
        native: As in Draft.
        salt: 16 random bytes in the payload's commitment; None when erased.
        hash: The chain hash, 32 bytes.
    """

    namespace: str
    session_id: str
    version: int
    position: int
    event_id: bytes
    type: str
    type_version: int
    kind: int
    turn: int
    ref: int | None
    at_us: int
    actor: str | None
    meta: dict[str, Any] | None
    idempotency_key: str | None
    codec: int
    key_commit: bytes | None
    payload: Any
    native: bytes | None
    salt: bytes | None
    hash: bytes

    @property
    def at(self) -> datetime:
        """When it was recorded, aware UTC."""
        return to_datetime(self.at_us)

    @property
    def clock_us(self) -> int | None:
        """What the recorder's clock said, where the event before it is dated more than a minute later.

        Then `at` is that event's, because time never falls, and not when this one was recorded. On the
        first event of an append, in its meta as `kern.clock_us`; else None.
        """
        clock_us = self.meta.get(WRITERS_CLOCK) if self.meta else None
        return clock_us if type(clock_us) is int else None

    @property
    def erased(self) -> bool:
        """Whether the content is gone for good."""
        return isinstance(self.payload, Erased)


class Head(msgspec.Struct, frozen=True):
    """Where a session stands: its last version, that event's hash, and what the log tracks beside it.

    Attributes:
        version: The last version; 0 if the session is unknown.
        hash: The chain hash at that version (the genesis hash at version 0).
        turn: The highest turn started on the live path.
        branch: The version of the last restore or deletion, 0 if there was none.
        epoch: How many erasures touched the session.
        status: open, closed or deleted.
        at_us: When the last event was recorded, microseconds since 1970, UTC.
    """

    version: int
    hash: bytes
    turn: int = 0
    branch: int = 0
    epoch: int = 0
    status: Status = "open"
    at_us: int = 0

    @property
    def at(self) -> datetime:
        """When the last event was recorded, aware UTC."""
        return to_datetime(self.at_us)


class Receipt(msgspec.Struct, frozen=True):
    """Proof of what one append recorded: keep it, and `verify` can be held against it.

    Attributes:
        namespace: The tenant.
        session_id: The session.
        first_version: The version of the first event recorded.
        version: The version of the last one.
        hash: The chain hash at `version`.
        position: The log position of the last one, or None where the store has none.
    """

    namespace: str
    session_id: str
    first_version: int
    version: int
    hash: bytes
    position: int | None = None


class SessionInfo(msgspec.Struct, frozen=True):
    """One line of `sessions()`: what the session's head row says without reading its events."""

    session_id: str
    status: Status
    version: int
    turn: int
    session_type: str | None
    agent_id: str | None
    team_id: str | None
    workflow_id: str | None
    user_id: str | None
    name: str | None
    fork_parent: str | None
    fork_version: int | None
    created_us: int
    updated_us: int

    @property
    def created_at(self) -> datetime:
        """When the first event was recorded, aware UTC."""
        return to_datetime(self.created_us)

    @property
    def updated_at(self) -> datetime:
        """When the last event was recorded, aware UTC."""
        return to_datetime(self.updated_us)

    @property
    def cursor(self) -> str:
        """Pass as `after=` to get the sessions that follow this one."""
        return f"{self.updated_us}:{self.session_id}"


class Branch(msgspec.Struct, frozen=True):
    """What was recorded in a session between two restores.

    Attributes:
        first_version: The restore that begins it; of the first branch, the session's first version.
        last_version: Its last version, abandoned or not.
        origin_version: The version that it goes on from: a restore's target, a fork's origin, else 0.
            It lies on an earlier branch, or in the session that this one was forked from.
        live_version: The last version of it that still counts; None if it was abandoned as a whole.
        turns: The turns that started on it, in order.
        at_us: When it began, microseconds since 1970, UTC.
        actor: Who restored or forked.
        reason: What the restore says about why.
    """

    first_version: int
    last_version: int
    origin_version: int
    live_version: int | None
    turns: tuple[int, ...]
    at_us: int
    actor: str | None = None
    reason: str | None = None

    @property
    def at(self) -> datetime:
        """When it began, aware UTC."""
        return to_datetime(self.at_us)


class Fork(msgspec.Struct, frozen=True):
    """A session that was forked from another: which one, where, and what became of it."""

    session_id: str
    version: int
    status: Status


class Branches(msgspec.Struct, frozen=True):
    """The tree of a session: its branches in the order of recording, and the forks made of it.

    Attributes:
        session_id: The session.
        parent: The session that it was forked from, or None.
        fork_version: The last version that it shares with its parent, or None.
        branches: At least one.
        forks: The sessions that were forked from this one, deleted ones included.
    """

    session_id: str
    parent: str | None
    fork_version: int | None
    branches: tuple[Branch, ...]
    forks: tuple[Fork, ...]


def to_datetime(at_us: int) -> datetime:
    """Microseconds since 1970 as an aware UTC datetime, at most the last that there is."""
    return _EPOCH + timedelta(microseconds=min(max(at_us, 0), LAST_US))


def to_microseconds(at: datetime) -> int:
    """An aware datetime as microseconds since 1970; a naive one raises ValueError."""
    if not isinstance(at, datetime):
        raise TypeError(f"a time is an aware datetime, not {type(at).__name__}")
    if at.tzinfo is None:
        raise ValueError(f"{at!r} has no time zone: pass an aware datetime")
    return (at - _EPOCH) // timedelta(microseconds=1)


def message(
    role: str,
    content: str | list[dict[str, Any]] | None = None,
    *,
    name: str | None = None,
    tool_calls: Sequence[dict[str, Any]] | None = None,
    id: str | None = None,
    actor: str | None = None,
    meta: dict[str, Any] | None = None,
) -> Draft:
    """A `message.added` draft.

    Args:
        role: system, developer, user, assistant ...
        content: Text, or a list of content parts (dicts with a `type`), or None.
        name: The author's name, where the model API has one.
        tool_calls: `{"id", "name", "arguments"}` each; arguments is the exact string received.
        id: The message id; defaults to the event's.
        actor: See Draft.
        meta: See Draft.
    """
    if content is not None and not isinstance(content, str) and type(content) not in LISTS:
        raise InvalidEvent(f"{type(content).__name__} is not a text, a list of parts or None", "content")
    payload: dict[str, Any] = {"role": role, "content": content}
    if name is not None:
        payload["name"] = name
    if tool_calls is not None and type(tool_calls) not in LISTS:
        raise InvalidEvent(f"{type(tool_calls).__name__} is not a list of calls", "tool_calls")
    if tool_calls:
        payload["tool_calls"] = [_copied(call, f"tool_calls[{i}]") for i, call in enumerate(tool_calls)]
    if id is not None:
        payload["id"] = id
    return Draft("message.added", payload, actor=actor, meta=meta)


def _copied(call: Any, path: str) -> dict[str, Any]:
    if type(call) not in DICTS:
        raise InvalidEvent(f"{type(call).__name__} is not an object", path)
    return dict(call)


def tool_called(
    call_id: str,
    name: str | None = None,
    arguments: Mapping[str, Any] | str | None = None,
    *,
    meta: dict[str, Any] | None = None,
) -> Draft:
    """A `tool.called` draft; name and arguments only where no message carries the call.

    A mapping of arguments is recorded as its JSON text, a string exactly as it is.
    """
    payload: dict[str, Any] = {"call_id": call_id}
    if name is not None:
        payload["name"] = name
    if arguments is not None or name is not None:
        given = {} if arguments is None else arguments
        payload["arguments"] = given if isinstance(given, str) else json_text(given, "arguments")
    return Draft("tool.called", payload, meta=meta)


def tool_returned(
    call_id: str,
    result: Json,
    *,
    name: str | None = None,
    duration_s: float | None = None,
    meta: dict[str, Any] | None = None,
) -> Draft:
    """A `tool.returned` draft: a text, or any JSON value, which becomes JSON text in the message."""
    payload: dict[str, Any] = {"call_id": call_id, "result": result}
    if name is not None:
        payload["name"] = name
    if duration_s is not None:
        payload["duration_s"] = duration_s
    return Draft("tool.returned", payload, meta=meta)


def tool_failed(
    call_id: str, error: str, *, duration_s: float | None = None, meta: dict[str, Any] | None = None
) -> Draft:
    """A `tool.failed` draft."""
    payload: dict[str, Any] = {"call_id": call_id, "error": error}
    if duration_s is not None:
        payload["duration_s"] = duration_s
    return Draft("tool.failed", payload, meta=meta)


def state_changed(
    ops: Sequence[Sequence[Any]], *, scope: str = "session", agent_id: str | None = None
) -> Draft:
    """A `state.changed` draft from ops.

    Args:
        ops: `["set", path, value]`, `["unset", path]` or `["append", path, [items]]`, where path is
            a list of keys, never a list index.
        scope: session or agent.
        agent_id: Whose state, of the scope agent; a recorder fills in its turn's own agent.

    Raises:
        InvalidEvent: One is no op; `path` says which and where.
    """
    check_ops(ops)
    named = {} if agent_id is None else {"agent_id": agent_id}
    return Draft("state.changed", {"scope": scope, **named, "ops": [list(op) for op in ops]})


def json_text(value: Json, path: str = "value") -> str:
    """A JSON value as compact text; InvalidEvent where JSON has no exact word for it."""
    return encode(value, path).decode()
