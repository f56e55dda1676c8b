"""Lines of JSON from outside: no more of one in memory than a limit, and no key in it twice.

What is read may be of anybody and of any size, and who opened it does not matter: a path, a file, or
whatever gives one line after the other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, Final, NamedTuple

import msgspec

from kern_events.errors import InvalidEvent
from kern_events.numbers import check_whole

MAX_LINE_BYTES: Final = 16 << 20
"""A longer line is not read, unless the caller says otherwise."""

_LONGEST: Final = 1 << 40  # A file cannot be asked for a line of any length.
_LONG: Final = 1 << 20  # Another text of it would take as much memory once more.
_PASSED_OVER: Final = 64 << 10  # at a time


class TooLong(NamedTuple):
    """A line that was not read, of so many bytes at least."""

    size_bytes: int

    def error(self, max_line_bytes: int) -> InvalidEvent:
        """What is wrong with it."""
        return InvalidEvent(
            f"longer than {max_line_bytes:,} bytes; max_line_bytes (--max-line-bytes) can be raised", "line"
        )


Line = bytes | TooLong
Source = str | os.PathLike[str] | IO[bytes] | IO[str] | Iterable[bytes | str | TooLong]


def lines_of(source: Source, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Line]:
    """The lines of a path, of a binary or text file, or of an iterable, with their line breaks.

    Of one over the limit the rest is passed over while it is read.
    """
    max_line_bytes = check_whole("max_line_bytes", max_line_bytes, 1, _LONGEST)
    if isinstance(source, (str, os.PathLike)):
        return _lines_at(source, max_line_bytes)
    if callable(readline := getattr(source, "readline", None)):
        return _read(readline, max_line_bytes)
    return (_checked(line, max_line_bytes) for line in source)


def _lines_at(path: str | os.PathLike[str], limit: int) -> Iterator[Line]:
    with open(path, "rb") as file:
        yield from _read(file.readline, limit)


def _read(readline: Callable[[int], bytes | str], limit: int) -> Iterator[Line]:
    while line := readline(limit + 2):
        if len(line) < limit + 2 or line[-1] in ("\n", 10):
            yield _checked(line, limit)
            continue
        size_bytes, last = len(line), line[-1]
        del line  # It is as long as a line may be.
        while last not in ("\n", 10) and (more := readline(_PASSED_OVER)):
            size_bytes, last = size_bytes + len(more), more[-1]
        yield TooLong(size_bytes)


def _checked(line: bytes | str | TooLong, limit: int) -> Line:
    if isinstance(line, TooLong):
        return line
    if len(line) > limit + 2:
        return TooLong(len(line))
    # What is no UTF-8 is told as bad JSON.
    data = line.encode("utf-8", "surrogatepass") if isinstance(line, str) else line
    return TooLong(len(data)) if len(data) > limit and len(data.rstrip(b"\r\n")) > limit else data


def colons(data: bytes) -> int:
    """The most colons that there can be in what is read of a JSON text: its own, and escaped ones."""
    return data.count(b":") + data.count(b"\\u003a") + data.count(b"\\u003A")


def check_keys(data: bytes, value: Any) -> None:
    """InvalidEvent if an object in the JSON text has a key twice; `value` is what was read of it.

    A reader takes the last of them and another one the first, so one can hide behind the other. What is
    not in the value is not in its text either, and every key has a colon: only where the numbers of
    colons differ is the text read once more.
    """
    try:
        count = _colons_of(value) if len(data) > _LONG else msgspec.json.encode(value).count(b":")
        if count == colons(data):
            return
    except (TypeError, ValueError, OverflowError, RecursionError):
        pass  # It holds what has no JSON: that is told by whoever records it.
    try:
        json.loads(data, object_pairs_hook=_refuse_twice)
    except InvalidEvent:
        raise
    except (ValueError, RecursionError):
        raise InvalidEvent("not JSON in UTF-8", "line") from None


def _colons_of(value: Any) -> int:
    """How many colons there are in the JSON text of a value: one of each key, and those in texts."""
    if isinstance(value, str):
        return value.count(":")
    if isinstance(value, dict):
        return len(value) + sum(map(_colons_of, value)) + sum(map(_colons_of, value.values()))
    return sum(map(_colons_of, value)) if isinstance(value, list) else 0


def _refuse_twice(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise InvalidEvent(f"the key {key[:80]!a} twice in one object", "line")
        seen.add(key)
