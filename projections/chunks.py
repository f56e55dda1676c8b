"""Immutable sequences that grow at the same cost at any length.

A tuple copies everything to grow by one; here only an open chunk at the end is copied, and the
closed chunks before it are shared by all versions of the sequence. A chunk is closed at 256 items or
64 kB, whichever comes first, so that caches can store chunks and a turn costs them a turn.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain, islice
from operator import attrgetter
from typing import Any, Final, Generic, NamedTuple, NoReturn, TypeVar, overload

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

CHUNK_ITEMS: Final = 256
CHUNK_BYTES: Final = 64_000

_RECENT: Final = 16  # open items are looked at one by one, from the end; then all are listed
_NOWHERE: Final = -(1 << 60)  # the number of no chunk
_LOOKS: Final = 64  # listing the ids of a chunk costs about so many looks into one

_set = object.__setattr__
_id: Final = attrgetter("id")


class Chunk(tuple[T_co, ...]):
    """A closed chunk. `name` says what it holds, once somebody has stored it (see stored.py), and `places`
    where the last item of each id stands, once somebody has looked for one."""

    name: bytes | None = None
    places: dict[str, int] | None = None


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
        return _made(closed, tuple(accumulate(map(len, closed))), tuple(open), weight)

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


class Place(NamedTuple):
    """Where an item stands in an editor, until one is removed: its chunk (None is the open one) and there."""

    chunk: int | None
    offset: int


class _Opened(list[T]):
    """A closed chunk that an editor has copied, and may change."""

    __slots__ = ("places",)

    def __init__(self, chunk: Sequence[T]) -> None:
        super().__init__(chunk)
        self.places: dict[str, int] | None = chunk.places  # type: ignore[attr-defined]


class Editor(Generic[T]):
    """Collects changes to a Chunks; `freeze` gives the result, the same object if nothing changed.

    A closed chunk is copied by the first change in it, the spine by the first change of any. So a change
    costs a chunk at the most, and many of them what they change.
    """

    __slots__ = (
        "_base", "_changed", "_closed", "_ends", "_looked", "_open", "_open_places", "_opened", "_places",
        "_shift", "_weight",
    )  # fmt: skip

    def __init__(self, base: Chunks[T]) -> None:
        self._base = base
        self._closed: Sequence[Sequence[T]] = base._closed
        self._ends: Sequence[int] | None = base._ends  # None: to be counted again
        self._open = list(base._open)
        self._weight = base._weight
        self._changed = False
        self._opened: set[int] = set()  # the numbers of the closed chunks that are copies
        self._open_places: dict[str, int] | None = None
        # The number of each id's chunk, less the shift; None is one of several, or one to be looked for.
        self._places: dict[str, int | None] | None = None
        self._shift = 0
        self._looked = 0  # into so many closed chunks, for ids

    def __len__(self) -> int:
        return self._before_open() + len(self._open)

    def __getitem__(self, index: int) -> T:
        return self.at(self._place_of(index))

    def at(self, place: Place) -> T:
        """The item in a place."""
        chunk, offset = place
        return self._open[offset] if chunk is None else self._closed[chunk][offset]

    def index_of(self, place: Place) -> int:
        """How many items stand before a place."""
        chunk, offset = place
        if chunk is None:
            return self._before_open() + offset
        return offset + (self._counted()[chunk - 1] if chunk else 0)

    def find(self, id: str) -> Place | None:
        """Where the last item of that `id` stands; for items that have one."""
        offset = self._found_open(id)
        if offset is not None:
            return Place(None, offset)
        chunk = self._found_closed(id) if self._closed else None
        return None if chunk is None else Place(chunk, _places_of(self._closed[chunk])[id])

    def last(self) -> T | None:
        """The last item, or None if there is none."""
        return self._open[-1] if self._open else self[-1] if self._closed and len(self) else None

    def append(self, item: T, size_bytes: int = 0) -> None:
        """Add an item of about that size."""
        open = self._open
        if len(open) >= CHUNK_ITEMS or (self._weight + size_bytes > CHUNK_BYTES and open):
            self._close()
            open = self._open
        if self._open_places is not None:
            self._open_places[_id(item)] = len(open)
        open.append(item)
        self._weight += size_bytes
        self._changed = True

    def replace(self, index: int, item: T, grown_bytes: int = 0) -> None:
        """As put, in the place of an index."""
        self.put(self._place_of(index), item, grown_bytes)

    def put(self, place: Place, item: T, grown_bytes: int = 0) -> None:
        """Put another item, of the same id, in a place. Its chunk may so become heavier than 64 kB."""
        chunk, offset = place
        self._changed = True
        if chunk is None:
            self._open[offset] = item
            self._weight += grown_bytes
        else:
            self._to_change(chunk)[offset] = item

    def replace_last(self, item: T, grown_bytes: int = 0) -> None:
        """Put another item in the last place, which there must be."""
        if not self._open:
            return self.replace(-1, item, grown_bytes)
        self._open[-1] = item
        self._weight += grown_bytes
        self._changed = True

    def remove(self, index: int) -> None:
        """As take, in the place of an index."""
        self.take(self._place_of(index))

    def take(self, place: Place) -> None:
        """Take the item of a place out."""
        chunk, offset = place
        self._changed = True
        if chunk is None:
            del self._open[offset]
            self._open_places = None
            return
        if self._places is not None:
            self._places[_id(self.at(place))] = None
        opened = self._to_change(chunk)
        del opened[offset]
        opened.places = self._ends = None

    def replace_start(
        self, end: int, items: Iterable[T], weigh: Callable[[T], int], *, keep: int = 0
    ) -> None:
        """Put other items in the stead of the first ones up to `end`, from 1; the first `keep` stay.

        Costs those items and two chunks, however many items stay before or behind them: their chunks do.
        """
        self._settle()  # Which drops chunks that are empty.
        chunk, offset = self._place_of(end - 1)
        ends = self._counted()
        front = self._closed[: bisect_right(ends, keep)] if keep else ()
        begun = self._closed[len(front)] if len(front) < len(self._closed) else self._open
        kept = begun[: keep - (ends[len(front) - 1] if front else 0)]
        stay: Sequence[Sequence[T]] = ()
        if chunk is None:
            later = self._open[offset + 1 :]
        elif len(self) - end <= CHUNK_ITEMS:  # Else some of them are in closed chunks.
            later = [*self._closed[chunk][offset + 1 :], *chain.from_iterable(self._closed[chunk + 1 :])]
            later += self._open
        else:
            later, stay = [], self._closed[chunk + 1 :]
            if rest := self._closed[chunk][offset + 1 :]:
                stay = [Chunk(rest), *stay]
        start: Editor[T] = Editor(Chunks.of_parts(front, (), 0))
        for item in chain(kept, items, later):
            start.append(item, weigh(item))
        self._changed, self._ends = True, None
        if stay:
            if start._open:
                start._close()
            self._shift += len(start._closed) + len(stay) - len(self._closed)
            self._closed = [*start._closed, *stay]
        else:
            self._closed, self._open, self._weight = list(start._closed), start._open, start._weight
            self._open_places = None
        if bool(front) == bool(stay):  # None stays, or the numbers of some have changed and of others not.
            self._places, self._looked = None, 0
        elif self._places is not None:
            for number in range(len(front), len(self._closed) - len(stay) + bool(stay)):
                self._list(number, self._closed[number])

    def freeze(self) -> Chunks[T]:
        """The sequence as it is now."""
        if not self._changed:
            return self._base
        self._settle()
        closed = self._closed if isinstance(self._closed, Closed) else Closed(self._closed)
        return _made(closed, tuple(self._counted()), tuple(self._open), self._weight)

    def _close(self) -> None:
        chunk = Chunk(self._open)
        chunk.places = self._open_places
        if self._places is not None:
            self._list(len(self._closed), chunk)
        ends = self._counted()
        # The spine is copied once per edit, and only by one that closes a chunk.
        if type(self._closed) is not list:
            self._closed = list(self._closed)
        if type(ends) is not list:
            ends = list(ends)
        ends.append((ends[-1] if ends else 0) + len(chunk))
        self._closed.append(chunk)
        self._open, self._weight, self._open_places, self._ends = [], 0, None, ends

    def _to_change(self, chunk: int) -> _Opened[T]:
        if type(self._closed) is not list:
            self._closed = list(self._closed)
        items = self._closed[chunk]
        if type(items) is not _Opened:
            items = self._closed[chunk] = _Opened(items)
            self._opened.add(chunk)
        return items

    def _settle(self) -> None:
        """Make chunks of those that were copied, and drop the empty ones."""
        if not self._opened:
            return
        assert type(self._closed) is list
        for number in self._opened:
            opened = self._closed[number]
            self._closed[number] = chunk = Chunk(opened)
            chunk.places = opened.places
        self._opened = set()
        if not all(self._closed):
            self._closed = [chunk for chunk in self._closed if chunk]
            self._ends = self._places = None

    def _counted(self) -> Sequence[int]:
        if self._ends is None:
            self._ends = list(accumulate(map(len, self._closed)))
        return self._ends

    def _before_open(self) -> int:
        ends = self._counted()
        return ends[-1] if ends else 0

    def _place_of(self, index: int) -> Place:
        ends = self._counted()
        return Place(*_find(ends, (ends[-1] if ends else 0) + len(self._open), index))

    def _found_open(self, id: str) -> int | None:
        places, open = self._open_places, self._open
        if places is None:
            for offset in range(len(open) - 1, max(len(open) - _RECENT, 0) - 1, -1):
                if _id(open[offset]) == id:
                    return offset
            if len(open) <= _RECENT:
                return None
            places = self._open_places = _placed(open)
        return places.get(id)

    def _found_closed(self, id: str) -> int | None:
        """The last closed chunk with an item of that id.

        Looks chunk by chunk, and lists all ids once that has cost as much as listing them.
        """
        if self._places is None and self._looked > _LOOKS * len(self._closed):
            self._places, self._shift = {}, 0
            for number, items in enumerate(self._closed):
                self._list(number, items)
        if self._places is not None:
            listed = self._places.get(id, _NOWHERE)
            if listed is not None:
                return listed + self._shift if self._is_there(id, listed) else None
        for number in range(len(self._closed) - 1, -1, -1):
            self._looked += 1
            if id in _places_of(self._closed[number]):
                return number
        return None

    def _list(self, chunk: int, items: Sequence[T]) -> None:
        assert self._places is not None
        place = chunk - self._shift
        for id in _places_of(items):
            listed = self._places.get(id, _NOWHERE)
            several = listed is None or (listed != place and self._is_there(id, listed))
            self._places[id] = None if several else place

    def _is_there(self, id: str, listed: int) -> bool:
        """Whether a chunk of the list still is there, and has the id: a start that was replaced may have."""
        number = listed + self._shift
        return 0 <= number < len(self._closed) and id in _places_of(self._closed[number])


def _places_of(chunk: Any) -> dict[str, int]:
    """Where the last item of each id stands in a closed chunk, which keeps that."""
    if chunk.places is None:
        chunk.places = _placed(chunk)
    places: dict[str, int] = chunk.places
    return places


def _placed(items: Iterable[Any]) -> dict[str, int]:
    return {item.id: offset for offset, item in enumerate(items)}


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


def _same(a: object, b: object) -> bool:
    return a is b or a == b
