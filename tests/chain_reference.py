"""The chain once more, written from its layout alone: nothing of kern_events is imported here.

`golden_chain.json` was computed by this file, once; a reader in another language can be held against
the same numbers.
"""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import Any


def lp(data: bytes) -> bytes:
    """A length and the bytes."""
    return struct.pack(">I", len(data)) + data


def n(data: bytes | None) -> bytes:
    """As lp, or the mark of NULL."""
    return b"\xff" * 4 if data is None else lp(data)


def text(value: str | None) -> bytes | None:
    """UTF-8, or NULL."""
    return None if value is None else value.encode("utf-8")


def genesis(namespace: str, session_id: str) -> bytes:
    """What the first event of a session links to."""
    return sha256(b"kern/genesis/v1\x00" + lp(namespace.encode()) + lp(session_id.encode())).digest()


def fork_genesis(namespace: str, session_id: str, parent: str, version: int, parent_hash: bytes) -> bytes:
    """What the first event of a fork links to."""
    own = lp(namespace.encode()) + lp(session_id.encode())
    return sha256(
        b"kern/fork/v1\x00" + own + lp(parent.encode()) + struct.pack(">Q", version) + parent_hash
    ).digest()


def event_hash(previous: bytes, namespace: str, session_id: str, event: dict[str, Any]) -> bytes:
    """The hash of one event of the golden table."""
    native = None if event["native"] is None else bytes.fromhex(event["native"])
    content = bytes.fromhex(event["salt"]) + lp(event["payload"].encode()) + n(native)
    fields = [
        b"kern/event/v1\x00",
        previous,
        lp(namespace.encode()),
        lp(session_id.encode()),
        struct.pack(">Q", event["version"]),
        bytes.fromhex(event["event_id"]),
        lp(event["type"].encode()),
        struct.pack(">I", event["type_version"]),
        struct.pack(">B", event["kind"]),
        struct.pack(">Q", event["turn"]),
        struct.pack(">Q", event["ref"] or 0),
        struct.pack(">q", event["at_us"]),
        struct.pack(">B", 0),  # the codec
        n(None),  # the key's commitment
        n(text(event["actor"])),
        n(text(event["meta"])),
        n(text(event["idempotency_key"])),
        sha256(b"kern/payload/v1\x00" + content).digest(),
    ]
    return sha256(b"".join(fields)).digest()
