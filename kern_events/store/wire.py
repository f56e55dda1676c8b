"""Values in Postgres' binary format, made in one go.

The driver's own list dumper looks at every element in Python; a turn has a hundred of them. Here an
array is one join, and a column without values is NULL, which `unnest` pads to the others' length.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from struct import Struct
from typing import Any, Final

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format

from kern_events.batch import Row

Cursor = psycopg.Cursor[tuple[Any, ...]]

_I16: Final = Struct(">h").pack
_I32: Final = Struct(">i").pack
_I64: Final = Struct(">q").pack
_LONG: Final = Struct(">iq").pack
_INT: Final = Struct(">ii").pack
_SHORT: Final = Struct(">ih").pack
_HEAD: Final = Struct(">iiIii").pack
_NULL: Final = b"\xff\xff\xff\xff"
_BYTEA, _TEXT, _INT2, _INT4, _INT8 = 17, 25, 21, 23, 20


class _Bytea(bytes):
    """A bytea[] as it goes over the wire."""


class _Text(bytes):
    """A text[] as it goes over the wire."""


class _Int2(bytes):
    """An int2[] as it goes over the wire."""


class _Int4(bytes):
    """An int4[] as it goes over the wire."""


class _Int8(bytes):
    """An int8[] as it goes over the wire."""


class _Ready(Dumper):
    """The bytes are the value already."""

    format = Format.BINARY

    def dump(self, obj: Any) -> Any:
        return obj


class _Long(Dumper):
    """Every int is an int8, so that a statement has one set of types and is prepared once."""

    format = Format.BINARY
    oid = _INT8

    def dump(self, obj: Any) -> bytes:
        return _I64(obj)


def _dumper(array_oid: int) -> type[Dumper]:
    return type(f"_Ready{array_oid}", (_Ready,), {"oid": array_oid})


_DUMPERS: Final[dict[type, type[Dumper]]] = {
    int: _Long,
    _Bytea: _dumper(1001),
    _Text: _dumper(1009),
    _Int2: _dumper(1005),
    _Int4: _dumper(1007),
    _Int8: _dumper(1016),
}


def binary_cursor(connection: psycopg.Connection[Any]) -> Cursor:
    """A cursor that takes our arrays and answers in binary."""
    return made_binary(connection.cursor())


def made_binary(cursor: Cursor) -> Cursor:
    """The cursor, which takes our arrays and answers in binary from now on."""
    cursor.format = Format.BINARY
    for kind, dumper in _DUMPERS.items():
        cursor.adapters.register_dumper(kind, dumper)
    return cursor


def bytea_array(values: Sequence[bytes | None]) -> _Bytea | None:
    """A bytea[], or None if all values are."""
    return None if _all_null(values) else _Bytea(_joined(_BYTEA, values))


def digest_array(values: Sequence[bytes]) -> _Bytea:
    """A bytea[] of values of one length."""
    size = _I32(len(values[0]))
    return _Bytea(_HEAD(1, 0, _BYTEA, len(values), 1) + b"".join([size + value for value in values]))


def text_array(values: Sequence[str | None]) -> _Text | None:
    """A text[], or None if all values are."""
    if _all_null(values):
        return None
    return _Text(_joined(_TEXT, [None if value is None else value.encode() for value in values]))


def int2_array(values: Sequence[int]) -> _Int2:
    """An int2[]."""
    return _Int2(_HEAD(1, 0, _INT2, len(values), 1) + b"".join([_SHORT(2, value) for value in values]))


def int4_array(values: Sequence[int]) -> _Int4:
    """An int4[]."""
    return _Int4(_HEAD(1, 0, _INT4, len(values), 1) + b"".join([_INT(4, value) for value in values]))


def int8_array(values: Sequence[int | None]) -> _Int8 | None:
    """An int8[], or None if all values are."""
    if _all_null(values):
        return None
    parts = [_NULL if value is None else _LONG(8, value) for value in values]
    return _Int8(_HEAD(1, 1, _INT8, len(values), 1) + b"".join(parts))


def _all_null(values: Sequence[object]) -> bool:
    return values.count(None) == len(values)


def _joined(oid: int, values: Sequence[bytes | None]) -> bytes:
    parts = [_NULL if value is None else _I32(len(value)) + value for value in values]
    return _HEAD(1, 1, oid, len(values), 1) + b"".join(parts)


def copy_row(namespace: str, session_id: str, row: Row) -> bytes:
    """One event as a row of a binary COPY, in the order of ROW_COLUMNS after the session."""
    (
        version, event_id, type, type_version, kind, turn, ref, at, actor, meta, key, codec, key_commit,
        payload, native, salt, hash,
    ) = row  # fmt: skip
    return b"".join(
        (
            _copy_head(namespace, session_id), _LONG(8, version), _field(event_id), _name(type),
            _INT(4, type_version), _SHORT(2, kind), _LONG(8, turn), _NULL if ref is None else _LONG(8, ref),
            _LONG(8, at), _NULL if actor is None else _name(actor), _field(meta),
            _NULL if key is None else _name(key), _SHORT(2, codec), _field(key_commit), _field(payload),
            _field(native), _field(salt), _field(hash),
        )
    )  # fmt: skip


def adopted_row(namespace: str, session_id: str, row: Row, commit: bytes | None) -> bytes:
    """As copy_row, with what stands for the content of an event that is erased."""
    return _I16(20) + copy_row(namespace, session_id, row)[2:] + _field(commit)


@functools.lru_cache(maxsize=1024)
def _copy_head(namespace: str, session_id: str) -> bytes:
    return _I16(19) + _field(namespace.encode()) + _field(session_id.encode())


@functools.lru_cache(maxsize=1024)
def _name(text: str) -> bytes:
    return _field(text.encode())


def _field(value: bytes | None) -> bytes:
    return _NULL if value is None else _I32(len(value)) + value
