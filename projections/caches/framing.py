"""How a value that is kept outside of the process is told apart from one that was changed or misplaced.

A value is sealed for an identity: whose it is, what it is, and which state of the session it belongs to.
The identity is not stored; it is put into the checksum, and whoever unseals has to know it. So a value
that was moved, swapped or kept from another state is as worthless as a corrupt one.

Without a secret the checksum is a CRC, which finds corruption and misplacement. Somebody who can write to
the store can compute a CRC too: against them it takes a secret, and the checksum is an HMAC.
"""

from __future__ import annotations

import hmac
import struct
import zlib
from typing import Final, NamedTuple

_CHECKED: Final = b"\x01"  # The first byte of a value says what follows: 4 bytes of CRC-32,
_SIGNED: Final = b"\x81"  # or 32 bytes of HMAC-SHA256; and then the body.
_CHECKED_AT: Final = 5
_SIGNED_AT: Final = 33

_NUMBERS: Final = struct.Struct(">QQB")


class Mark(NamedTuple):
    """Which state of a session a stored snapshot is.

    Attributes:
        epoch: The erasures that the session had seen.
        version: The last event that is in it.
        hash: The chain hash at `version`, at most 255 bytes.
    """

    epoch: int
    version: int
    hash: bytes


class Place(NamedTuple):
    """Where the snapshots of one session by one projector are kept.

    Attributes:
        namespace: The one of the session.
        session_id: Any text.
        projector: Its name.
        projector_version: Its version.
        fingerprint: What the projector reads and makes, as 8 bytes of a hash.
    """

    namespace: str
    session_id: str
    projector: str
    projector_version: int
    fingerprint: bytes


class Stored(NamedTuple):
    """A snapshot as it was stored, in parts.

    Attributes:
        mark: The state it is.
        head: Everything but the items of the open chunks.
        open: The items of the open chunks as they were at the last replacement, then what each extension
            added, in order.
    """

    mark: Mark
    head: bytes
    open: tuple[bytes, ...]


def check_secret(secret: object) -> None:
    """Refuse what cannot sign: an empty secret, or one that is no bytes."""
    if secret is not None and not isinstance(secret, bytes):
        raise TypeError(f"a secret is bytes, not {type(secret).__name__}")
    if secret == b"":
        raise ValueError("the secret is empty")


def seal(identity: bytes, body: bytes, secret: bytes | None = None) -> bytes:
    """The body as it may be stored: whoever does not know the identity cannot unseal it."""
    if secret is None:
        return b"".join((_CHECKED, _checksum(identity, body), body))
    return b"".join((_SIGNED, _signature(identity, body, secret), body))


def unseal(identity: bytes, value: bytes | None, secret: bytes | None = None) -> bytes | None:
    """The body of a sealed value, or None if it is not exactly what was sealed; never raises.

    With a secret, a value that was sealed without one is refused as well.
    """
    body = unsealed(identity, value, secret)
    return None if body is None else bytes(body)


def unsealed(identity: bytes, value: bytes | None, secret: bytes | None = None) -> memoryview | None:
    """As unseal, in place: to copy 64 kB takes as long as to check them."""
    if not isinstance(value, bytes):
        return None
    view = memoryview(value)
    if secret is None:
        right = value[:1] == _CHECKED and view[1:_CHECKED_AT] == _checksum(identity, view[_CHECKED_AT:])
        return view[_CHECKED_AT:] if right else None
    if value[:1] != _SIGNED:
        return None
    expected = _signature(identity, view[_SIGNED_AT:], secret)
    return view[_SIGNED_AT:] if hmac.compare_digest(value[1:_SIGNED_AT], expected) else None


def keyed(fingerprint: bytes, secret: bytes | None) -> bytes:
    """A fingerprint for what is sealed with a secret: others have another, and look elsewhere."""
    return fingerprint if secret is None else _signature(b"fingerprint", fingerprint, secret)[:8]


def joined(*parts: bytes) -> bytes:
    """Byte strings as one, such that other parts never give the same."""
    return b"".join(part for each in parts for part in (len(each).to_bytes(4, "big"), each))


def pack_mark(mark: Mark) -> bytes:
    """A mark as bytes that say where they end."""
    return _NUMBERS.pack(mark.epoch, mark.version, len(mark.hash)) + mark.hash


def unpack_mark(value: object) -> tuple[Mark, bytes] | None:
    """The mark that a value begins with, and what follows it; None if it does not; never raises."""
    if not isinstance(value, bytes) or len(value) < _NUMBERS.size:
        return None
    epoch, version, length = _NUMBERS.unpack_from(value)
    end = _NUMBERS.size + length
    if len(value) < end:
        return None
    return Mark(epoch, version, value[_NUMBERS.size : end]), value[end:]


def _checksum(identity: bytes, body: bytes | memoryview) -> bytes:
    return zlib.crc32(body, zlib.crc32(identity, zlib.crc32(_length(identity)))).to_bytes(4, "big")


def _signature(identity: bytes, body: bytes | memoryview, secret: bytes) -> bytes:
    signature = hmac.new(secret, _length(identity), "sha256")
    signature.update(identity)
    signature.update(body)
    return signature.digest()


def _length(identity: bytes) -> bytes:
    # Without it the end of an identity could pass for the beginning of a body.
    return len(identity).to_bytes(4, "big")
