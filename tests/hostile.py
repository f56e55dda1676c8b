"""Values and ids that nobody should record, and some that look like it: what JSON can say is recorded.

`recordable` and `usable` are the rules once more, written without the code under test: what a value or
an id is allowed to be. Everything is made anew in the same order each time.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import itertools
import math
import pathlib
import random
import struct
import types
import unicodedata
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import orjson

DEPTH = 64  # of lists and dicts in each other, the payload itself included
SQL = [
    "'; DROP TABLE kern_events; --",
    '"',
    "%s",
    "%(x)s",
    "%b",
    "?",
    ":name",
    "{s}",
    "$1",
    "\\",
    "\\x00",
    "E'\\\\'",
]
MARKERS = [
    "__class__",
    "$type",
    "!!python/object",
    "py/object",
    "lc",
    "_type",
    "\\u0000",
    "NaN",
    "null",
    "1e400",
]


class Colour(enum.Enum):
    RED = "red"


class Word(enum.StrEnum):
    YES = "yes"


class Number(enum.IntEnum):
    ONE = 1


class Text(str):
    """A str that is none."""


class Whole(int):
    """An int that is none."""


class Real(float):
    """A float that is none."""


class Items(list):  # type: ignore[type-arg]
    """A list that is none."""


class Fields(dict):  # type: ignore[type-arg]
    """A dict that is none."""


class Pair(NamedTuple):
    left: int
    right: int


@dataclasses.dataclass
class Data:
    x: int = 1


class Struct(msgspec.Struct):
    x: int = 1


class Broken:
    """Raises whatever is done to it."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("do not compare me")

    def __repr__(self) -> str:
        raise RuntimeError("do not show me")

    __hash__ = object.__hash__


def recordable(value: Any, depth: int = 2) -> bool:
    """Whether a value inside a payload can be recorded exactly."""
    kind = type(value)
    if value is None or kind is bool:
        return True
    if kind is int:
        return -(2**63) <= value < 2**63
    if kind is float:
        return math.isfinite(value)
    if kind is str:
        return not any("\ud800" <= char <= "\udfff" for char in value)
    if kind is list:
        return depth <= DEPTH and all(recordable(item, depth + 1) for item in value)
    if kind is dict:
        return depth <= DEPTH and all(
            type(key) is str and recordable(key) and recordable(item, depth + 1)
            for key, item in value.items()
        )
    return False


def same(a: Any, b: Any) -> bool:
    """Whether two values are the same to the last bit: types, order of keys and the sign of zero."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack(">d", a) == struct.pack(">d", b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


def usable(value: Any) -> bool:
    """Whether a text can be an id."""
    return (
        type(value) is str
        and not any("\ud800" <= char <= "\udfff" for char in value)
        and 1 <= len(value.encode()) <= 200
        and unicodedata.is_normalized("NFC", value)
        and not any(unicodedata.category(char) in ("Cc", "Zl", "Zp") for char in value)
    )


def values() -> list[Any]:
    """More than 2,000 values."""
    chance = random.Random("hostile")
    return [
        *_numbers(chance),
        *_texts(chance),
        *([text] for text in _texts(chance)),
        *({text: 1} for text in _texts(chance)),
        *_containers(),
        *_strangers(),
        *([one] for one in _strangers()),
        *({"key": [{"deep": one}]} for one in _strangers()),
        *_keys(),
    ]


def ids() -> list[Any]:
    """Texts, and what is none, for every place that takes an id."""
    chance = random.Random("ids")
    sized = [
        char * count
        for char in ("x", "ü", "日", "🦊")
        for count in (1, 49, 50, 51, 66, 67, 100, 101, 200, 201)
    ]
    unnormalised = [
        "A\u030a",
        "e\u0301",
        "\u1112\u1161\u11ab",
        "\u212b",
        "ﬁ",
        "Ⅳ",
        "\u0344",
        "a\u0323\u0307",
        "a\u0307\u0323",
    ]
    strangers = [
        None,
        True,
        0,
        1,
        1.5,
        b"s",
        bytearray(b"s"),
        ("s",),
        ["s"],
        {"s": 1},
        object(),
        Text("s"),
        Word.YES,
    ]
    return [*_texts(chance), *sized, *unnormalised, "", " ", "  ", "\t", ".", "..", "/", "a/b", *strangers]


def _numbers(chance: random.Random) -> Iterator[Any]:
    for power in range(71):
        for near in (-1, 0, 1):
            yield from (2**power + near, -(2**power) + near)
    yield from (10**30, -(10**30), 10**400, 10**5_000, -(10**5_000), True, False, 0, -0)
    for text in (
        "0.1",
        "-0.0",
        "1e22",
        "1e23",
        "5e-324",
        "2.2250738585072011e-308",
        "1.7976931348623157e308",
        "1e16",
    ):
        yield float(text)
    yield from (
        float("nan"),
        float("inf"),
        float("-inf"),
        2.0**53,
        2.0**53 + 2,
        1 / 3,
        -1e-7,
        123456789012345680.0,
    )
    for _ in range(250):
        yield struct.unpack(">d", chance.randbytes(8))[0]
    for power in range(-1_074, 1_024, 37):
        yield math.ldexp(1.0, power)


def _texts(chance: random.Random) -> Iterator[str]:
    yield from (chr(code) for code in range(0xA1))
    yield from (
        f"a{chr(code)}b" for code in (0, 9, 10, 13, 27, 127, 0x85, 0xAD, 0x2028, 0x2029, 0xFEFF, 0x200B)
    )
    yield from (chr(code) for code in range(0x100, 0xD800, 997))
    yield from (
        chr(code) for code in (0xD7FF, 0xD800, 0xDBFF, 0xDC00, 0xDFFF, 0xE000, 0xFDD0, 0xFFFD, 0xFFFE, 0xFFFF)
    )
    yield from (chr(code) for code in (0x10000, 0x1F98A, 0x1FFFE, 0xE0001, 0x10FFFE, 0x10FFFF))
    yield from (
        "\ud83e\udd8a",
        "\udd8a\ud83e",
        "a\ud800",
        "\udfff" * 3,
        "e\u0301",
        "👩\u200d👩\u200d👧",
        "🇨🇭",
        "\u202eabc",
    )
    yield from (*SQL, *MARKERS, "[" * 70, "{" * 70, '"' * 10, "\\" * 9, "x" * 5_000, "\0" * 100, "🦊" * 1_000)
    for _ in range(150):
        codes = [chance.choice((0x7F, 0x7FF, 0xFFFF, 0x10FFFF)) for _ in range(chance.randint(0, 12))]
        yield "".join(chr(chance.randrange(code)) for code in codes)


def _containers() -> Iterator[Any]:
    yield from ([], {}, [[]], [{}], {"": ""}, {"a": []}, [None] * 1_000, {str(n): n for n in range(1_000)})
    for depth in (1, 2, 10, 60, 61, 62, 63, 64, 65, 100, 300, 5_000):
        yield _nested(depth, lambda inner: [inner])
        yield _nested(depth, lambda inner: {"k": inner})
        yield _nested(depth, lambda inner: [1, {"k": 2}, inner])
    endless: list[Any] = []
    endless.append(endless)
    wide: dict[str, Any] = {}
    wide.update({str(n): wide for n in range(20)})
    yield from (endless, wide, [endless, wide])
    yield from ({"b": 1, "a": 2}, {"a": {"z": 1, "b": 2}}, [True, 1, 1.0, "1", None, 0, False, 0.0, -0.0])
    shared = {"x": [1]}
    yield [shared, shared]


def _nested(depth: int, wrap: Any) -> Any:
    value: Any = "deep"
    for _ in range(depth):
        value = wrap(value)
    return value


def _strangers() -> Iterator[Any]:
    yield from (
        b"",
        b"bytes",
        bytearray(b"x"),
        memoryview(b"x"),
        {1},
        frozenset(),
        (),
        (1,),
        Pair(1, 2),
        range(3),
    )
    yield from (
        1j,
        decimal.Decimal("1.1"),
        decimal.Decimal("NaN"),
        fractions.Fraction(1, 3),
        uuid.UUID(int=1),
    )
    moment = datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC)
    yield from (moment, moment.date(), moment.time(), moment - moment, datetime.UTC, pathlib.PurePath("/x"))
    yield from (
        Colour.RED,
        Word.YES,
        Number.ONE,
        Text("x"),
        Whole(1),
        Real(1.5),
        Items([1]),
        Fields(a=1),
    )
    yield from (collections.OrderedDict(a=1), collections.defaultdict(list), collections.Counter("a"))
    yield from (
        collections.deque([1]),
        types.MappingProxyType({"a": 1}),
        types.SimpleNamespace(a=1),
        array.array("i"),
    )
    yield from (
        Data(),
        Struct(),
        msgspec.UNSET,
        msgspec.Raw(b"1"),
        orjson.Fragment(b"1"),
        orjson.Fragment(b'{"a":'),
    )
    yield from (
        object(),
        Broken(),
        Broken,
        Exception("x"),
        ...,
        NotImplemented,
        print,
        _keys,
        lambda: 1,
        iter([1]),
    )
    yield from ((x for x in [1]), types, itertools.count(), {}.items(), {"a": 1}.keys())


def _keys() -> Iterator[Any]:
    for key in (
        1,
        1.5,
        None,
        True,
        b"k",
        (1,),
        frozenset(),
        Word.YES,
        Number.ONE,
        Text("k"),
        10**5_000,
        Broken(),
    ):
        yield {key: 1}
        yield [{"fine": {key: 1}}]
    yield {"a": 1, 1: 2}
