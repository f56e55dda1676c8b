"""Immutable sequences that grow at the same cost at any length.

A tuple copies everything to grow by one; here only an open chunk at the end is copied, and the
closed chunks before it are shared by all versions of the sequence. A chunk is closed at 256 items or
64 kB, whichever comes first, so that caches can store chunks and a turn costs them a turn.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, Final, Generic, NoReturn, TypeVar, overload

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

CHUNK_ITEMS: Final = 256
CHUNK_BYTES: Final = 64_000

_set = object.__setattr__


class Chunk(tuple[T_co, ...]):
    """A closed chunk. `name` says what it holds, once somebody has stored it (see stored.py)."""

    name: bytes | None = None


class Closed(tuple[Sequence[T_co], ...]):
    """The closed chunks of a sequence. `listing` is how they were last listed (see stored.py)."""

    listing: object = None


class Chunks(Sequence[T_co]):
    """A frozen sequence under a spine of chunks. Changes go through `edit` and share what stays.

    A slice is a tuple. Equal to any sequence of the same items, and not hashable.
    """

    __slots__ = ("_closed", "_ends", "_open", "_weight")

    _closed: Closed[T_co]
    _ends: tuple[int, ...]  # how many items there are up to and with each closed chunk
    _open: tuple[T_co, ...]
    _weight: int  # of the open chunk, in bytes

    def __new__(cls, items: Iterable[T_co] = ()) -> Chunks[T_co]:
        editor: Editor[T_co] = Editor(_made(Closed(), (), (), 0))
        for item in items:
            editor.append(item)
        return editor.freeze()

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("Chunks cannot be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("Chunks cannot be changed")

    def __len__(self) -> int:
        return (self._ends[-1] if self._ends else 0) + len(self._open)

    @overload
    def __getitem__(self, index: int) -> T_co: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[T_co, ...]: ...

    def __getitem__(self, index: int | slice) -> T_co | tuple[T_co, ...]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return tuple(islice(self._from(start), max(0, stop - start)))
            return tuple([self[i] for i in range(start, stop, step)])
        chunk, offset = _find(self._ends, len(self), index)
        return (self._open if chunk is None else self._closed[chunk])[offset]

    def __iter__(self) -> Iterator[T_co]:
        return chain(chain.from_iterable(self._closed), self._open)

    def __reversed__(self) -> Iterator[T_co]:
        yield from reversed(self._open)
        for chunk in reversed(self._closed):
            yield from reversed(chunk)

    def _from(self, start: int) -> Iterator[T_co]:
        if start >= len(self):
            return iter(())
        chunk, offset = _find(self._ends, len(self), start)
        if chunk is None:
            return iter(self._open[offset:])
        later = (self._closed[i] for i in range(chunk + 1, len(self._closed)))
        return chain(self._closed[chunk][offset:], chain.from_iterable(later), self._open)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Sequence) or isinstance(other, (str, bytes)):
            return NotImplemented
        return len(self) == len(other) and all(map(_same, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, islice(self, 3)))
        return f"Chunks([{shown}{', ...' if len(self) > 3 else ''}], len={len(self)})"

    @classmethod
    def of_parts(cls, closed: Sequence[Sequence[T_co]], open: Sequence[T_co], weight: int) -> Chunks[T_co]:
        """Chunks put together from what `closed`, `open` and `weight` say of others."""
        closed = Closed(closed)
        return _made(closed, tuple(_ends_of(closed)), tuple(open), weight)

    @property
    def closed(self) -> Closed[T_co]:
        """The closed chunks: the same objects as long as nothing in them changes."""
        return self._closed

    @property
    def open(self) -> Sequence[T_co]:
        """The items of the open chunk at the end."""
        return self._open

    @property
    def weight(self) -> int:
        """About how many bytes the items of the open chunk take."""
        return self._weight

    def edit(self) -> Editor[T_co]:
        """An editor that begins with these items; this sequence stays as it is."""
        return Editor(self)


class Editor(Generic[T]):
    """Collects changes to a Chunks; `freeze` gives the result, the same object if nothing changed."""

    __slots__ = ("_base", "_changed", "_closed", "_ends", "_open", "_weight")

    def __init__(self, base: Chunks[T]) -> None:
        self._base = base
        self._closed: Sequence[Sequence[T]] = base._closed
        self._ends: Sequence[int] = base._ends
        self._open = list(base._open)
        self._weight = base._weight
        self._changed = False

    def __len__(self) -> int:
        return (self._ends[-1] if self._ends else 0) + len(self._open)

    def __getitem__(self, index: int) -> T:
        chunk, offset = _find(self._ends, len(self), index)
        return self._open[offset] if chunk is None else self._closed[chunk][offset]

    def __reversed__(self) -> Iterator[T]:
        yield from reversed(self._open)
        for chunk in reversed(self._closed):
            yield from reversed(chunk)

    def last(self) -> T | None:
        """The last item, or None if there is none."""
        return self._open[-1] if self._open else self[-1] if self._ends else None

    def append(self, item: T, size_bytes: int = 0) -> None:
        """Add an item of about that size."""
        open = self._open
        if len(open) >= CHUNK_ITEMS or (self._weight + size_bytes > CHUNK_BYTES and open):
            self._close()
            open = self._open
        open.append(item)
        self._weight += size_bytes
        self._changed = True

    def replace(self, index: int, item: T, grown_bytes: int = 0) -> None:
        """Put another item in a place. It stays in its chunk, which may so become heavier than 64 kB."""
        chunk, offset = _find(self._ends, len(self), index)
        self._changed = True
        if chunk is None:
            self._open[offset] = item
            self._weight += grown_bytes
        else:
            items = self._closed[chunk]
            self._put(chunk, Chunk((*items[:offset], item, *items[offset + 1 :])))

    def replace_last(self, item: T, grown_bytes: int = 0) -> None:
        """Put another item in the last place, which there must be."""
        if not self._open:
            return self.replace(-1, item, grown_bytes)
        self._open[-1] = item
        self._weight += grown_bytes
        self._changed = True

    def remove(self, index: int) -> None:
        """Take an item out; costs O(chunks) where it is not in the open one."""
        chunk, offset = _find(self._ends, len(self), index)
        self._changed = True
        if chunk is None:
            del self._open[offset]
            return
        items = self._closed[chunk]
        self._put(chunk, Chunk((*items[:offset], *items[offset + 1 :])))
        self._closed = [items for items in self._closed if items]
        self._ends = list(_ends_of(self._closed))

    def freeze(self) -> Chunks[T]:
        """The sequence as it is now."""
        if not self._changed:
            return self._base
        closed = self._closed if isinstance(self._closed, Closed) else Closed(self._closed)
        return _made(closed, tuple(self._ends), tuple(self._open), self._weight)

    def _close(self) -> None:
        # The spine is copied once per edit, and only by one that closes a chunk.
        if type(self._closed) is not list or type(self._ends) is not list:
            self._closed, self._ends = list(self._closed), list(self._ends)
        self._ends.append(len(self))
        self._closed.append(Chunk(self._open))
        self._open, self._weight = [], 0

    def _put(self, chunk: int, items: Chunk[T]) -> None:
        self._closed = [*self._closed]
        self._closed[chunk] = items


def _made(closed: Closed[T], ends: tuple[int, ...], open: tuple[T, ...], weight: int) -> Chunks[T]:
    chunks: Chunks[T] = object.__new__(Chunks)
    _set(chunks, "_closed", closed)
    _set(chunks, "_ends", ends)
    _set(chunks, "_open", open)
    _set(chunks, "_weight", weight)
    return chunks


def _find(ends: Sequence[int], length: int, index: int) -> tuple[int | None, int]:
    """The chunk (None is the open one) and the place in it of an index."""
    if index < 0:
        index += length
    if not 0 <= index < length:
        raise IndexError(f"index out of range: there are {length} items")
    if not ends or index >= ends[-1]:
        return None, index - (ends[-1] if ends else 0)
    chunk = bisect_right(ends, index)
    return chunk, index - (ends[chunk - 1] if chunk else 0)


def _ends_of(closed: Sequence[Sequence[Any]]) -> Iterator[int]:
    total = 0
    for chunk in closed:
        total += len(chunk)
        yield total


def _same(a: object, b: object) -> bool:
    return a is b or a == b
