"""Recorded rows as JSON lines and back, bit for bit.

::

    {"format": "kern-events", "version": 1, "namespace": "default"}
    {"session_id": "s1", "version": 2, "fork_parent": null, "fork_version": null}
    {"version": 1, "position": 1, "event_id": "0199...", "type": "session.created", ...}
    {"version": 2, ...}

One line says what the file is. Then come sessions, parents before their forks: each with a line that
says whose rows follow, up to which version at least, and what it was forked from; and then its rows
with every stored column.
Ids, salts and hashes are hex. `meta`, `payload` and `native` are the exact bytes: as text, or as
`{"base64": ...}` where they are no UTF-8 or over 1 MiB. All of it is ASCII, so no terminal acts on it.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from codecs import BOM_UTF8
from contextlib import suppress
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from kern_events.batch import STORED_COLUMNS, StoredRow
from kern_events.codec import check_id
from kern_events.errors import InvalidEvent
from kern_events.lines import check_keys

FORMAT: Final = "kern-events"
FORMAT_VERSION: Final = 1

_MAX_TEXT_BYTES: Final = 1 << 20
_LONGEST_SECTION: Final = 4_000  # bytes: two ids of 200, every character escaped
_HEX: Final = frozenset({"event_id", "key_commit", "payload_commit", "salt", "hash"})
_EXACT: Final = frozenset({"meta", "payload", "native"})

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Section(NamedTuple):
    """Whose rows follow, up to which version at least, and the point that the session was forked from."""

    session_id: str
    version: int
    fork_parent: str | None = None
    fork_version: int | None = None

    @property
    def origin(self) -> int:
        """The last version that is its parent's; 0 without one."""
        return self.fork_version or 0


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    format: str
    version: int
    namespace: str


class _SectionLine(msgspec.Struct, forbid_unknown_fields=True):
    session_id: str
    version: _Count
    fork_parent: str | None
    fork_version: _Count | None


class _Base64(msgspec.Struct, forbid_unknown_fields=True):
    base64: str


_Bytes = str | _Base64 | None


class _RowLine(msgspec.Struct, forbid_unknown_fields=True):
    version: _Count
    position: _Count
    event_id: str
    type: str
    type_version: _Count
    kind: _Count
    turn: _Count
    ref: _Count | None
    at: _Count
    actor: str | None
    meta: _Bytes
    idempotency_key: str | None
    codec: _Count
    key_commit: str | None
    payload: _Bytes
    native: _Bytes
    payload_commit: str | None
    salt: str | None
    hash: str


_headers: Final = msgspec.json.Decoder(_Header)
_sections: Final = msgspec.json.Decoder(_SectionLine)
_rows: Final = msgspec.json.Decoder(_RowLine)


def header_line(namespace: str) -> bytes:
    """The line that begins a file."""
    return _line({"format": FORMAT, "version": FORMAT_VERSION, "namespace": namespace})


def section_line(section: Section) -> bytes:
    """The line in front of a session's rows."""
    return _line(section._asdict())


def row_line(row: StoredRow) -> bytes:
    """The line of one recorded row."""
    return _line({column: _shown(column, value) for column, value in zip(STORED_COLUMNS, row, strict=True)})


def is_header(line: bytes) -> bool:
    """Whether a file that begins with this line is one of ours, of whatever version."""
    try:
        value = msgspec.json.decode(line.removeprefix(BOM_UTF8)) if len(line) < _LONGEST_SECTION else None
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("format") == FORMAT


def namespace_of(line: bytes) -> str:
    """Whose events a file holds, by its first line; InvalidEvent where it cannot be read here."""
    line = line.removeprefix(BOM_UTF8)
    found = _unique(line, _decoded(_headers, line))
    if (found.format, found.version) != (FORMAT, FORMAT_VERSION):
        raise InvalidEvent(f"not a file of {FORMAT}, version {FORMAT_VERSION}", "line 1")
    return check_id(found.namespace, "namespace")


def parse(line: bytes) -> Section | StoredRow:
    """What a line says: whose rows follow, or one of them, with the position of another log.

    Raises:
        InvalidEvent: It says neither. The reason tells no content.
    """
    if len(line) < _LONGEST_SECTION:
        found = None
        with suppress(ValueError, RecursionError):
            found = _sections.decode(line)
        if found is not None:
            return _section(_unique(line, found))
    if line.startswith(b'{"session_id"'):
        return _section(_unique(line, _decoded(_sections, line)))
    row = _unique(line, _decoded(_rows, line))
    return tuple(_value(column, getattr(row, column)) for column in STORED_COLUMNS)


def _section(found: _SectionLine) -> Section:
    section = Section(
        check_id(found.session_id, "session_id"),
        found.version,
        None if found.fork_parent is None else check_id(found.fork_parent, "fork_parent"),
        found.fork_version,
    )
    if (section.fork_parent is None) != (section.fork_version is None) or section.fork_version == 0:
        raise InvalidEvent("a fork has a parent and a version of it", "fork_version")
    if section.fork_parent == section.session_id:
        raise InvalidEvent("a session is not forked from itself", "fork_parent")
    if section.version <= section.origin:
        raise InvalidEvent("a session has events", "version")
    return section


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"


def _shown(column: str, value: Any) -> Any:
    if value is None or column not in _HEX | _EXACT:
        return value
    if column in _HEX:
        return bytes(value).hex()
    try:
        if len(value) <= _MAX_TEXT_BYTES:
            return bytes(value).decode()
    except UnicodeDecodeError:
        pass
    return {"base64": b64encode(value).decode("ascii")}


def _value(column: str, value: Any) -> Any:
    if value is None or column not in _HEX | _EXACT:
        return value
    try:
        if isinstance(value, _Base64):
            return b64decode(value.base64, validate=True)
        return bytes.fromhex(value) if column in _HEX else value.encode()
    except ValueError:
        raise InvalidEvent("not bytes in this form", column) from None


def _unique(line: bytes, found: Any) -> Any:
    """What was read of a line in which no key stands twice."""
    check_keys(line, found)
    return found


def _decoded(decoder: Any, line: bytes) -> Any:
    try:
        return decoder.decode(line)
    except msgspec.ValidationError as error:
        reason = str(error)
        # It would say which, and that is content.
        raise InvalidEvent("a field that is not known" if "unknown" in reason else reason, "line") from None
    except msgspec.DecodeError as error:
        raise InvalidEvent(f"not JSON ({error})", "line") from None
    except (ValueError, RecursionError):
        raise InvalidEvent("not JSON in UTF-8", "line") from None
