"""The hash chain: one fixed binary layout, pure functions over SHA-256.

::

    payload_commit = SHA256("kern/payload/v1\\0" || salt[16] || LP(payload) || N(native))
    event_hash     = SHA256("kern/event/v1\\0" || prev_hash || LP(namespace) || LP(session_id)
                            || u64(version) || event_id[16] || LP(type) || u32(type_version)
                            || u8(kind) || u64(turn) || u64(ref, 0 when NULL) || i64(at_us)
                            || u8(codec) || N(key_commit) || N(actor) || N(meta)
                            || N(idempotency_key) || payload_commit)
    genesis        = SHA256("kern/genesis/v1\\0" || LP(namespace) || LP(session_id))
    fork genesis   = SHA256("kern/fork/v1\\0" || LP(namespace) || LP(session_id)
                            || LP(parent session id) || u64(p) || the parent's event_hash at p)

    LP(x) = u32 length || bytes;  N(x) = 0xFFFFFFFF for NULL, else LP(x);  big-endian;  UTF-8

The position is not hashed. An event is hashed in three parts, so that an append hashes what a
retry does not change once: `scope` (whose it is), `header` and `trailer` (what it is).
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from struct import Struct
from typing import Final

PAYLOAD: Final = b"kern/payload/v1\0"
"""What every commitment to content begins with, so that it is no other hash."""
_EVENT: Final = b"kern/event/v1\0"
_GENESIS: Final = b"kern/genesis/v1\0"
_FORK: Final = b"kern/fork/v1\0"

_U32: Final = Struct(">I").pack
_U64: Final = Struct(">Q").pack
_PLACE: Final = Struct(">QQq").pack
_TYPE_KIND: Final = Struct(">IB").pack
_NULL: Final = b"\xff\xff\xff\xff"


def _lp(data: bytes) -> bytes:
    return _U32(len(data)) + data


def _n(data: bytes | None) -> bytes:
    return _NULL if data is None else _U32(len(data)) + data


def scope(namespace: str, session_id: str) -> bytes:
    """The part of an event's hash that says whose it is."""
    return _lp(namespace.encode()) + _lp(session_id.encode())


def genesis(scope: bytes) -> bytes:
    """What the first event of a session links to."""
    return sha256(_GENESIS + scope).digest()


def fork_genesis(scope: bytes, parent: str, version: int, parent_hash: bytes) -> bytes:
    """What the first event of a fork of `parent` at `version` links to."""
    return sha256(_FORK + scope + _lp(parent.encode()) + _U64(version) + parent_hash).digest()

_LONG: Final = 64 << 10


def payload_commit(salt: bytes, payload: bytes, native: bytes | None) -> bytes:
    """The commitment to an event's content; it stays when the content is erased."""
    last = _NULL if native is None else _lp(native)
    if len(payload) > _LONG:
        commit = sha256(PAYLOAD + salt + _U32(len(payload)))
        commit.update(payload)  # Without a copy, and other threads go on.
        commit.update(last)
        return commit.digest()
    return sha256(b"".join((PAYLOAD, salt, _U32(len(payload)), payload, last))).digest()


def header(type: str, type_version: int, kind: int) -> bytes:
    """The fixed fields between the event's id and its place."""
    return _lp(type.encode()) + _TYPE_KIND(type_version, kind)


def trailer(codec: int, key_commit: bytes | None, actor: str | None, meta: bytes | None) -> bytes:
    """The fixed fields that stand after the event's place."""
    return bytes((codec,)) + _n(key_commit) + _n(None if actor is None else actor.encode()) + _n(meta)


PLAIN_TRAILER: Final = trailer(0, None, None, None)
"""The trailer of JSON without a key, an actor or meta, which most events have."""


# What an event adds to the hash of the one before it, besides its version and time:
# id and header, turn, ref, trailer, idempotency key, payload commitment.
Link = tuple[bytes, int, int | None, bytes, str | None, bytes]


def extend(previous: bytes, scope: bytes, version: int, at_us: int, links: Iterable[Link]) -> list[bytes]:
    """The hashes of consecutive events behind `version`, whose hash is `previous`; all at one time."""
    hashes = []
    for header, turn, ref, trailer, key, commit in links:
        version += 1
        place = _PLACE(turn, ref or 0, at_us)
        named = _NULL if key is None else _lp(key.encode())
        data = b"".join((_EVENT, previous, scope, _U64(version), header, place, trailer, named, commit))
        previous = sha256(data).digest()
        hashes.append(previous)
    return hashes
