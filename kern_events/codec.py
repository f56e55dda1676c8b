"""Values to bytes and back, and the guard against values that do not survive the trip.

The fast path encodes strictly, decodes again and compares; only what fails there is walked to
find the place and the reason. So the guard costs a decode, not a walk in Python.
"""

from __future__ import annotations

import enum
import functools
import math
import re
import unicodedata
from typing import Any, Final

import msgspec
import orjson

from kern_events.errors import InvalidEvent
from kern_events.frozen import DICTS, LISTS, FrozenDict, FrozenList

JSON: Final = 0
"""The codec number of UTF-8 JSON."""

MAX_DEPTH: Final = 64
MAX_ID_BYTES: Final = 200
MAX_PAYLOAD_BYTES: Final = 1 << 20
LARGEST_PAYLOAD_BYTES: Final = 16 << 20
MAX_BATCH: Final = 1_000
MAX_BATCH_BYTES: Final = 256 << 20
_SOME: Final = 8  # values, between two looks at how many bytes they come to
LARGEST_BATCH_BYTES: Final = 512 << 20  # Postgres takes 1 GiB in a message, with what it is wrapped in.

_MAX_INT: Final = 2**63 - 1
_MIN_INT: Final = -(2**63)

# Subclasses, dataclasses and datetimes would be turned into something else silently; integers
# beyond 53 bits take the slow path, because orjson lets unsigned ones through up to 64 bits.
_STRICT: Final = (
    orjson.OPT_PASSTHROUGH_SUBCLASS
    | orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_STRICT_INTEGER
)
_WIDE: Final = _STRICT & ~orjson.OPT_STRICT_INTEGER


def encode(value: Any, path: str, limit: int = MAX_PAYLOAD_BYTES) -> bytes:
    """The bytes to record for a JSON value.

    Raises:
        InvalidEvent: It would not come back exactly as it is: NaN, infinities, integers outside
            64 bits, lone surrogates, keys that are not text, nesting over 64, bytes, tuples and
            other types that JSON does not have, or more than `limit` bytes. The frozen values of a
            view are recorded as the dicts and lists that they are made of.
    """
    if not _is_encodable(value):
        _check(value, path)
    try:
        data = orjson.dumps(value, _plain, _STRICT)
        exact = _is_long_text(value, data) or (orjson.loads(data) == value and _shallow(data))
    except (orjson.JSONEncodeError, RecursionError, ValueError):
        exact = False
    if not exact:
        _check(value, path)
        data = orjson.dumps(value, _plain, _WIDE)
    if len(data) > limit:
        raise too_large(len(data), limit, path)
    return data


class TooMuch(Exception):
    """Values that are too large together."""


def too_large(size_bytes: int, limit: int, path: str) -> InvalidEvent:
    """What is wrong with a payload of more than so many bytes."""
    more = "; max_payload_bytes (--max-payload-bytes) can be raised" if limit < LARGEST_PAYLOAD_BYTES else ""
    return InvalidEvent(f"{size_bytes:,} bytes, the limit is {limit:,}{more}", path)


def encode_plain(
    values: list[Any], limit: int = MAX_PAYLOAD_BYTES, together: int | None = None
) -> list[bytes] | None:
    """As encode for several values at once, or None where one needs a closer look.


    Raises:
        TooMuch: They come to more than so many bytes together; nothing more is encoded then.

    Flat dicts of text and numbers, which most payloads are, need no decode; the others share one.
    """
    nested = [i for i, value in enumerate(values) if not _is_flat(value)]
    if not all(_is_encodable(values[i]) for i in nested):
        return None
    try:
        if together is None:
            encoded = [orjson.dumps(value, None, _STRICT) for value in values]
        else:
            encoded = []
            for start in range(0, len(values), _SOME):
                encoded += [orjson.dumps(value, None, _STRICT) for value in values[start : start + _SOME]]
                if sum(map(len, encoded)) > together:
                    raise TooMuch
    except (orjson.JSONEncodeError, RecursionError):
        return None
    if max(map(len, encoded)) > limit:
        return None
    nested = [i for i in nested if not _is_long_text(values[i], encoded[i])]
    if not nested:
        return encoded
    parts = [encoded[i] for i in nested]
    try:
        decoded = orjson.loads(b"[%b]" % b",".join(parts))
    except ValueError:  # An orjson.Fragment may hold anything.
        return None
    exact = all(map(_shallow, parts)) and decoded == [values[i] for i in nested]
    return encoded if exact else None


# What the strict encoder either records exactly or refuses, when it stands directly in a dict.
_FLAT: Final = frozenset({str, int, bool, type(None)})
_PLAIN: Final = _FLAT | {float}


def _plain(value: Any) -> Any:
    """What the encoder asks for a type that it does not know."""
    kind = type(value)
    if kind is FrozenDict:
        return dict(value)
    if kind is FrozenList:
        return list(value)
    raise TypeError(f"{kind.__name__} is not a JSON type")


def _is_flat(value: Any) -> bool:
    return type(value) is dict and _FLAT.issuperset(map(type, value.values()))


def _is_encodable(value: Any, depth: int = MAX_DEPTH) -> bool:
    """Whether the encoder may be given a value: it records an Enum as something else, and tuples that are
    nested in thousands end the process there."""
    kind = type(value)
    if kind in DICTS:
        value = value.values()
    elif kind not in LISTS:
        return kind in _PLAIN
    if _PLAIN.issuperset(map(type, value)):
        return True
    # The first that is too deep ends it: what holds itself twice would else be looked at 2**64 times.
    return depth > 0 and all(_is_encodable(item, depth - 1) for item in value if type(item) not in _PLAIN)


# A decode of this much takes longer than a look at so few values.
_LONG: Final = 64 << 10
_FEW: Final = 64


def _is_long_text(value: Any, data: bytes) -> bool:
    """Whether a value is long because of its texts, as with a photo, and needs no decode: as if it were flat.

    A decode of 16 MiB would hold up every thread of the process meanwhile.
    """
    if len(data) < _LONG:
        return False
    items = [value]
    for item in items:
        kind = type(item)
        if kind is dict:
            items.extend(item.values())
        elif kind is list:
            items.extend(item)
        elif kind not in _FLAT:
            return False
        if len(items) > _FEW:
            return False
    return True


def decode(data: bytes | None) -> Any:
    """The value behind recorded JSON bytes; ValueError if they are not JSON."""
    return None if data is None else orjson.loads(data)


def _shallow(data: bytes) -> bool:
    # The brackets in the text bound the nesting from above, strings included.
    return data.count(b"{") + data.count(b"[") <= MAX_DEPTH


def _check(value: Any, path: str) -> None:
    """Walk a value and raise InvalidEvent at the first thing that cannot be recorded exactly."""
    stack: list[tuple[Any, str, int]] = [(value, path, 1)]
    while stack:
        item, where, depth = stack.pop()
        kind = type(item)
        if kind in DICTS or kind in LISTS:
            if depth > MAX_DEPTH:
                raise InvalidEvent(f"nested deeper than {MAX_DEPTH}", where[:200])
            stack.extend(_children(item, where, depth + 1))
        elif reason := _scalar_problem(item, kind):
            raise InvalidEvent(reason, where)


def _children(item: Any, where: str, depth: int) -> list[tuple[Any, str, int]]:
    if type(item) in LISTS:
        return [(child, f"{where}[{index}]", depth) for index, child in enumerate(item)]
    children = []
    for key, child in item.items():
        if type(key) is not str:
            raise InvalidEvent(f"a key is {type(key).__name__}, not text", where)
        if problem := _text_problem(key):
            raise InvalidEvent(f"a key has {problem}", where)
        children.append((child, f"{where}.{key:.80}", depth))
    return children


def _scalar_problem(item: Any, kind: type) -> str | None:
    if item is None or kind is bool:
        return None
    if kind is str:
        return _text_problem(item)
    if kind is int:
        return None if _MIN_INT <= item <= _MAX_INT else "an integer outside 64 bits"
    if kind is float:
        return None if math.isfinite(item) else f"{item!r} has no JSON form"
    if isinstance(item, enum.Enum):
        return f"an Enum would come back as {type(item.value).__name__}; pass its value"
    if kind is tuple:
        return "a tuple would come back as a list; pass a list"
    return f"{kind.__name__} is not a JSON type"


def _text_problem(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return "a lone surrogate, which UTF-8 cannot encode"
    return None


_SAID: Final = re.compile(r"(?:Expected|Object missing required field) `.*", re.DOTALL)
_PLACE: Final = re.compile(r" - at `\$(?:\.\w+|\[(?:\.\.\.|\d+)\])*`\Z")


def misfit(error: Exception) -> str:
    """Why a value does not fit a type, and where, as an error of msgspec's says it; without the value."""
    said = str(error)
    if not isinstance(error, msgspec.ValidationError) or error.__cause__ is not None:
        return "a value does not fit"  # The type's own code said it, and may quote what it likes.
    place = _PLACE.search(said)
    return said if _SAID.match(said) else "a value does not fit" + (place[0] if place else "")


def check_id(value: Any, path: str) -> str:
    """An id: 1 to 200 bytes of UTF-8 in NFC without control characters, else InvalidEvent."""
    # A cache of the ids seen is safe only for exact strings: 1 and True would share a slot.
    problem = _id_problem(value) if type(value) is str else f"{type(value).__name__} is not text"
    if problem:
        raise InvalidEvent(problem, path)
    return value  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=4096)
def _id_problem(value: str) -> str | None:
    if problem := _text_problem(value):
        return problem
    size = len(value.encode())
    if not 1 <= size <= MAX_ID_BYTES:
        return f"{size} bytes; an id has 1 to {MAX_ID_BYTES}"
    if any(unicodedata.category(char) in ("Cc", "Zl", "Zp") for char in value):
        return "a control character"
    if unicodedata.normalize("NFC", value) != value:
        return "not in Unicode normal form C"
    return None


def check_text(value: Any, path: str, limit: int = 1_000) -> str:
    """Free text for a listing column: valid UTF-8, no NUL, at most `limit` bytes."""
    if type(value) is not str:
        raise InvalidEvent(f"{type(value).__name__} is not text", path)
    if problem := _text_problem(value):
        raise InvalidEvent(problem, path)
    if "\0" in value:
        raise InvalidEvent("a NUL character", path)
    if len(value.encode()) > limit:
        raise InvalidEvent(f"{len(value.encode())} bytes, the limit is {limit}", path)
    return value
