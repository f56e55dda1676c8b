"""Snapshots as bytes: a small head, and chunks that never change once they are stored.

A session view is taken apart into what is small, the items of its open chunks, and its closed
chunks. Those are named by what they hold, so the next snapshot stores only what is new, branches share
what they have in common, and nothing is overwritten. What is read back is decoded into typed
structs and frozen again, with limits for depth and numbers; whatever does not fit raises Unreadable,
which is a miss.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from operator import attrgetter, is_
from struct import Struct
from typing import Annotated, Any, Final, Generic, NamedTuple, Protocol, TypeVar, get_type_hints

import msgspec

from kern_events import Head
from kern_events.spi import TYPES
from projections.caches.base import Snapshot
from projections.chunks import CHUNK_BYTES, CHUNK_ITEMS, Chunk, Chunks
from projections.frozen import Frozen, FrozenDict, FrozenList
from projections.projector import Projector
from projections.session import SessionProjector, View
from projections.session.builder import INSTRUCTIONS, MESSAGE_BYTES
from projections.session.content import Media, Raw, Reasoning, Refusal, Text
from projections.session.projector import HANDLED
from projections.session.turns import TURN_BYTES
from projections.session.view import Message, Pause, PendingCall, ToolCall, Turn

T = TypeVar("T")
V = TypeVar("V")

LAYOUT: Final = 1
"""To be raised with every change of what is stored here."""

NAME_BYTES: Final = 16
_LISTED: Final = 256  # chunks in the head itself; more are listed in blocks, which are chunks too
_ENTRY: Final = Struct(f">{NAME_BYTES}sI")  # a chunk's name, and how many items it or its block has
_BLOCK_BYTES: Final = _LISTED * _ENTRY.size
_MAX_OPEN: Final = 1 << 16
_MAX_DEPTH: Final = 128  # A path of 64 keys, and a value of 64 levels at its end.
_MAX_INT: Final = 2**63 - 1

Count = Annotated[int, msgspec.Meta(ge=0, le=_MAX_INT)]

Bytes = bytes | memoryview
Fetch = Callable[[Sequence[bytes]], Sequence[Bytes]]
"""Gives the chunks of these names, in their order, or raises Unreadable."""

Chunked = dict[bytes, Callable[[], bytes]]
"""Chunks by name; each is encoded when it is called for."""


class Unreadable(Exception):
    """What is stored is not there, or not what this code would have stored."""


class Dumped(NamedTuple):
    """A snapshot as bytes, without its chunks."""

    head: bytes
    open: bytes


class Codec(Protocol):
    """How the views of one projector become bytes, and views again."""

    @property
    def fingerprint(self) -> bytes:
        """8 bytes that are others whenever what is stored would be read wrongly."""

    def dump(self, snapshot: Snapshot, base: Snapshot | None = None) -> Dumped:
        """A snapshot as bytes; quicker with the one that it was folded from."""

    def delta(self, base: Snapshot, snapshot: Snapshot) -> Dumped | None:
        """The head, and what to add to the open items of the base; None if more than those has changed."""

    def listings(self, snapshot: Snapshot) -> tuple[bytes, ...]:
        """Which chunks a snapshot refers to."""

    def chunks(self, snapshot: Snapshot, known: Sequence[bytes] = ()) -> Chunked:
        """The chunks of a snapshot that are not in listings which are known."""

    def load(self, head: bytes, open: Sequence[bytes], fetch: Fetch, *, lazily: bool = False) -> Snapshot:
        """The snapshot again, from a head, the open items and every delta since.

        Args:
            head: As dumped.
            open: As dumped, the oldest first.
            fetch: Gives closed chunks.
            lazily: Closed chunks are fetched when they are looked into; for a moment's use only.

        Raises:
            Unreadable: The bytes are not what this codec gave.
        """


def codec_of(projector: Projector[Any], types: bytes = b"") -> Codec | None:
    """How to store a projector's views; None if they can only be kept in memory.

    `types` is the digest of the event types that the log knows.
    """
    if isinstance(projector, SessionProjector):
        return _session_codec(projector.types.digest)
    view_type = getattr(projector, "view_type", None)
    if view_type is None:
        return None
    facts = (projector.name, projector.version, projector.scope, view_type, types)
    try:
        return _plain_codec(*facts)
    except TypeError:  # A type that cannot be hashed.
        return PlainCodec(*facts)


# ---------------------------------------------------------------------------- sequences of items


class Listing(NamedTuple):
    """The chunks of a sequence: an entry of each, and where there are many, of each full block of entries."""

    entries: bytes
    blocks: bytes

    @property
    def rest(self) -> bytes:
        """The entries that are in no block."""
        return self.entries[len(self.blocks) * _LISTED :]

    def with_entries(self, new: bytes) -> Listing:
        """A listing with more entries."""
        entries, blocks = self.entries + new, self.blocks
        while len(entries) > _BLOCK_BYTES and len(entries) - len(blocks) * _LISTED >= _BLOCK_BYTES:
            block = entries[len(blocks) * _LISTED :][:_BLOCK_BYTES]
            blocks += _ENTRY.pack(_named(block), sum(length for _, length in _entries(block)))
        return Listing(entries, blocks)


_NO_CHUNKS: Final = Listing(b"", b"")


class Spine(msgspec.Struct, frozen=True, array_like=True):
    """A sequence without its items.

    Attributes:
        blocks: Entries of blocks, each a list of 256 entries of chunks.
        chunks: Entries of the chunks after them.
        weight: Of the open chunk.
    """

    blocks: bytes
    chunks: bytes
    weight: Count


class LazyChunk(Sequence[T]):
    """A closed chunk that is fetched when it is looked into.

    `leading` is how many messages at its start are instructions, where that is known.
    """

    __slots__ = ("_items", "_length", "_open", "leading", "name", "places")

    def __init__(self, name: bytes, length: int, open: Callable[[], Chunk[T]]) -> None:
        self.name: bytes | None = name
        self._length = length
        self._open = open
        self._items: Chunk[T] | None = None
        self.leading: int | None = None
        self.places: dict[str, int] | None = None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        return self._fetched()[index]

    def __iter__(self) -> Iterator[T]:
        return iter(self._fetched())

    def __reversed__(self) -> Iterator[T]:
        return reversed(self._fetched())

    def _fetched(self) -> Chunk[T]:
        if self._items is None:
            self._items = self._open()
        return self._items


class Items(Generic[T]):
    """How a sequence of one type of items is taken apart and put together."""

    def __init__(self, item: type[T], refrozen: Callable[[list[T]], list[T]]) -> None:
        self._decoder = msgspec.msgpack.Decoder(list[item], dec_hook=_frozen)  # type: ignore[valid-type]
        self._refrozen = refrozen

    def listing(self, items: Chunks[T], base: Chunks[T] | None = None) -> Listing:
        """What the closed chunks of a sequence are; costs what is new since `base`, and is kept."""
        closed = items.closed
        if isinstance(closed.listing, Listing):
            return closed.listing
        before = _NO_CHUNKS
        if base is not None and isinstance(base.closed.listing, Listing):
            same = len(base.closed) <= len(closed) and all(map(is_, base.closed, closed))
            before = base.closed.listing if same else _NO_CHUNKS
        new = closed[len(before.entries) // _ENTRY.size :]
        listing = before.with_entries(b"".join([_ENTRY.pack(_name_of(chunk), len(chunk)) for chunk in new]))
        closed.listing = listing
        return listing

    def chunks(self, items: Chunks[T], known: bytes, found: Chunked) -> None:
        """Add the chunks of a sequence that are not in a listing which is known, and the blocks."""
        listing, first, names = self.listing(items), 0, set[bytes]()
        if listing.entries.startswith(known):
            first = len(known) // _ENTRY.size
        else:
            names = {name for name, _ in _entries(known)}
        for chunk in items.closed[first:]:
            if (name := _name_of(chunk)) not in names:
                found[name] = functools.partial(_encode, chunk)
        # A list of up to so many chunks has no blocks, so the first one may be new with the next chunk.
        for start in range(first // _LISTED if first > _LISTED else 0, len(listing.blocks) // _ENTRY.size):
            block = listing.entries[start * _BLOCK_BYTES :][:_BLOCK_BYTES]
            found[_named(block)] = functools.partial(bytes, block)

    def sequence(self, spine: Spine, open: Sequence[T], fetch: Fetch, lazily: bool) -> Chunks[T]:
        """The sequence again."""
        entries = _entries(spine.chunks)
        blocks = [name for name, _ in _entries(spine.blocks)]
        if blocks:
            entries = [entry for block in fetch(blocks) for entry in _entries(block)] + entries
        closed: list[Sequence[T]]
        if lazily:
            closed = [LazyChunk(*entry, functools.partial(self._fetched, fetch, *entry)) for entry in entries]
        else:
            bodies = fetch([name for name, _ in entries]) if entries else ()
            closed = [self._chunk(*entry, body) for entry, body in zip(entries, bodies, strict=True)]
        return Chunks.of_parts(closed, open, spine.weight)

    def decode(self, data: Bytes) -> list[T]:
        """The items of an encoded list."""
        try:
            return self._refrozen(self._decoder.decode(data))
        except Exception as error:  # Whoever made these bytes may have aimed at any.
            raise Unreadable("other items") from error

    def _fetched(self, fetch: Fetch, name: bytes, length: int) -> Chunk[T]:
        return self._chunk(name, length, fetch([name])[0])

    def _chunk(self, name: bytes, length: int, data: Bytes) -> Chunk[T]:
        chunk = Chunk(self.decode(data))
        if len(chunk) != length:
            raise Unreadable("a chunk of another length")
        chunk.name = name
        return chunk


def _name_of(chunk: Sequence[Any]) -> bytes:
    assert isinstance(chunk, (Chunk, LazyChunk))
    if chunk.name is None:
        chunk.name = _named(_encode(chunk))
    return chunk.name


def _named(data: bytes) -> bytes:
    """The name of a chunk: a digest of what it holds."""
    return hashlib.sha256(data).digest()[:NAME_BYTES]


def _entries(data: Bytes) -> list[tuple[bytes, int]]:
    if len(data) % _ENTRY.size:
        raise Unreadable("a list of chunks that is cut off")
    return list(_ENTRY.iter_unpack(data))


def _encode(value: Any) -> bytes:
    return _encoder.encode(list(value) if isinstance(value, LazyChunk) else value)


_encoder: Final = msgspec.msgpack.Encoder()


def _frozen(kind: Any, value: Any) -> Any:
    if type(value) is not dict:
        raise Unreadable("not an object")
    for key, item in value.items():
        if type(item) is not int or type(key) is not str:
            return _checked(value)
    return FrozenDict(value)  # Of counts, as the usage of a turn is; nobody else has this dict.


def _checked(value: Any, depth: int = _MAX_DEPTH) -> Frozen:
    """A JSON value, frozen; Unreadable where it is none, or one that no event can have made."""
    kind = type(value)
    if kind is str or value is None or kind is bool:
        return value
    if kind is int and -_MAX_INT - 1 <= value <= _MAX_INT:
        return value
    if kind is float and math.isfinite(value):
        return value
    if depth and kind is list:
        return FrozenList([_checked(item, depth - 1) for item in value])
    if depth and kind is dict and all(type(key) is str for key in value):
        return FrozenDict({key: _checked(item, depth - 1) for key, item in value.items()})
    raise Unreadable("no value that is recorded")


_content: Final = attrgetter("content")


def _messages(found: list[Message]) -> list[Message]:
    # Raw parts alone hold JSON of any kind, which comes back as what can be changed; parts are rare.
    if tuple in set(map(type, map(_content, found))):
        return [_with_raw(message) for message in found]
    return found


def _with_raw(message: Message) -> Message:
    content = message.content
    if not isinstance(content, tuple):
        return message
    parts = tuple(Raw(_checked(part.value)) if isinstance(part, Raw) else part for part in content)
    return msgspec.structs.replace(message, content=parts)


def _turns(found: list[Turn]) -> list[Turn]:
    return [
        turn if turn.error is None else msgspec.structs.replace(turn, error=_checked(turn.error))
        for turn in found
    ]


# --------------------------------------------------------------------------------- session views


class Rest(msgspec.Struct, frozen=True, array_like=True):
    """The fields of a view that are neither sequences nor told by the log at every load."""

    turn: Count
    status: str
    user_id: str | None
    state: Mapping[str, Any]
    agent_state: Mapping[str, Mapping[str, Any]]
    usage: Mapping[str, int | float]
    pending_calls: tuple[PendingCall, ...]
    paused: tuple[Pause, ...]
    name: str | None
    metadata: Mapping[str, Any]
    summary: Any
    incomplete: bool
    problems: tuple[str, ...]


class StoredView(msgspec.Struct, frozen=True, array_like=True):
    """A snapshot without the items of its view."""

    version: Count
    epoch: Count
    hash: bytes
    size_bytes: Count
    durable: Count
    rest: Rest
    spines: tuple[Spine, ...]  # messages, turns, and the context where it is another sequence
    leading: Count  # instructions at the start of the context


class Added(msgspec.Struct, frozen=True, array_like=True):
    """What becomes of the open items of a sequence.

    Attributes:
        start: How many items are in closed chunks before them.
        before: How many open items there were.
        kept: So many of them stay.
        items: These follow.
    """

    start: Count
    before: Count
    kept: Count
    items: msgspec.Raw


_ITEMS: Final[tuple[Items[Any], ...]] = (
    Items(Message, _messages),
    Items(Turn, _turns),
    Items(Message, _messages),
)
_views: Final = msgspec.msgpack.Decoder(StoredView)
_added: Final = msgspec.msgpack.Decoder(list[Added])


class SessionCodec:
    """Stores the views of SessionProjector, so that a turn costs a turn, however long the session is."""

    def __init__(self, types: bytes = b"") -> None:
        structs = (
            StoredView, Rest, Spine, Added, Message, ToolCall, PendingCall, Pause, Turn,
            Text, Reasoning, Refusal, Media, Raw,
        )  # fmt: skip
        projector = SessionProjector()
        # Where chunks end is part of it: a delta is only right for open items that begin at the same place.
        self.fingerprint: Final = _fingerprint(
            projector.name, projector.version, CHUNK_ITEMS, CHUNK_BYTES, MESSAGE_BYTES, TURN_BYTES,
            *map(_shape, structs), *sorted(HANDLED), types.hex(),
        )  # fmt: skip

    def dump(self, snapshot: Snapshot, base: Snapshot | None = None) -> Dumped:
        """See Codec."""
        added = [_added_to(0, 0, items) for items in _sequences(snapshot)]
        return Dumped(self._head(snapshot, base), _encode(added))

    def delta(self, base: Snapshot, snapshot: Snapshot) -> Dumped | None:
        """See Codec."""
        before, after = _sequences(base), _sequences(snapshot)
        if len(before) != len(after) or any(
            old.closed is not new.closed for old, new in zip(before, after, strict=True)
        ):
            return None
        added = [
            _added_to(len(old.open), _common(old.open, new.open), new)
            for old, new in zip(before, after, strict=True)
        ]
        return Dumped(self._head(snapshot, base), _encode(added))

    def listings(self, snapshot: Snapshot) -> tuple[bytes, ...]:
        """See Codec."""
        pairs = zip(_ITEMS, _sequences(snapshot), strict=False)
        return tuple(kind.listing(items).entries for kind, items in pairs)

    def chunks(self, snapshot: Snapshot, known: Sequence[bytes] = ()) -> Chunked:
        """See Codec."""
        found: Chunked = {}
        sequences = _sequences(snapshot)
        listings = [*known, b"", b"", b""]
        for kind, items, listing in zip(_ITEMS, sequences, listings, strict=False):
            kind.chunks(items, listing, found)
        return found

    def load(self, head: bytes, open: Sequence[bytes], fetch: Fetch, *, lazily: bool = False) -> Snapshot:
        """See Codec."""
        try:
            found = _views.decode(head)
            parts = [_added.decode(part) for part in open]
        except Exception as error:  # Whoever made these bytes may have aimed at any.
            raise Unreadable("a head of another shape") from error
        _check_numbers(found)
        count = len(found.spines)
        if count not in (2, 3) or not parts:
            raise Unreadable("a head of other sequences")
        opened = [_replayed(parts, place, count) for place in range(count)]
        if lazily:
            fetch = _ahead(found, fetch)
        sequences = [
            kind.sequence(spine, some, fetch, lazily)
            for kind, spine, some in zip(_ITEMS, found.spines, opened, strict=False)
        ]
        for place, items in enumerate(sequences):
            if any(part[place].start != len(items) - len(items.open) for part in parts):
                raise Unreadable("open items that follow on other chunks")
        view = _view(found, sequences)
        if lazily and view.context.closed and isinstance(first := view.context.closed[0], LazyChunk):
            first.leading = found.leading
        return Snapshot(
            view, found.version, found.epoch, found.hash, found.size_bytes, found.durable,
            incomplete=view.incomplete,
        )  # fmt: skip

    def _head(self, snapshot: Snapshot, base: Snapshot | None) -> bytes:
        view, sequences = snapshot.view, _sequences(snapshot)
        before = () if base is None else _sequences(base)[: len(sequences)]
        spines = []
        for kind, items, old in zip_longest(_ITEMS[: len(sequences)], sequences, before):
            listing = kind.listing(items, old)
            spines.append(Spine(listing.blocks, listing.rest, items.weight))
        rest = Rest(*(getattr(view, field) for field in Rest.__struct_fields__))
        head = StoredView(
            snapshot.version, snapshot.epoch, snapshot.hash, snapshot.size_bytes, snapshot.durable, rest,
            tuple(spines), _leading(view),
        )  # fmt: skip
        return _encode(head)


def _sequences(snapshot: Snapshot) -> tuple[Chunks[Any], ...]:
    view: View = snapshot.view
    if view.context is view.messages:
        return view.messages, view.turns
    return view.messages, view.turns, view.context


def _leading(view: View) -> int:
    count = 0
    for message in view.context:
        if message.role not in INSTRUCTIONS:
            break
        count += 1
    return count


def _added_to(before: int, kept: int, items: Chunks[Any]) -> Added:
    start = len(items) - len(items.open)
    return Added(start, before, kept, msgspec.Raw(_encode(items.open[kept:])))


def _common(old: Sequence[Any], new: Sequence[Any]) -> int:
    """How many items at the start are the very same objects."""
    count = 0
    for same in map(is_, old, new):
        if not same:
            break
        count += 1
    return count


def _replayed(parts: Sequence[Sequence[Added]], place: int, count: int) -> list[Any]:
    """The open items of a sequence: as they were first stored, and what every delta made of them."""
    found: list[Any] = []
    for part in parts:
        if len(part) != count or part[place].before != len(found) or not 0 <= part[place].kept <= len(found):
            raise Unreadable("open items of another snapshot")
        found[part[place].kept :] = _ITEMS[place].decode(bytes(part[place].items))
        if len(found) > _MAX_OPEN:
            raise Unreadable("more open items than there can be")
    return found


def _ahead(head: StoredView, fetch: Fetch) -> Fetch:
    """Fetches together what a window most likely looks into: the last closed chunks, and the first of
    the context if instructions stand in it."""
    context = _entries(head.spines[-1 if len(head.spines) == 3 else 0].chunks)
    entries = [*context[-1:], *_entries(head.spines[1].chunks)[-1:]]
    if head.leading:
        entries += context[:1]
    likely = list(dict.fromkeys(name for name, _ in entries))
    kept: dict[bytes, Bytes] = {}

    def fetching(names: Sequence[bytes]) -> Sequence[Bytes]:
        if not kept and set(names) <= set(likely):
            kept.update(zip(likely, fetch(likely), strict=True))
        return [kept[name] for name in names] if set(names) <= kept.keys() else fetch(names)

    return fetching


def _view(head: StoredView, sequences: Sequence[Chunks[Any]]) -> View:
    rest, (messages, turns, *other) = head.rest, sequences
    if rest.status not in ("open", "closed", "deleted"):
        raise Unreadable("a status of another release")
    agents = {agent: _checked(state) for agent, state in rest.agent_state.items()}
    paused = tuple(Pause(each.turn, _checked(each.requirements), each.version) for each in rest.paused)
    return View(
        "", head.version, Head(0, b""), rest.turn, rest.status, rest.user_id,  # type: ignore[arg-type]
        messages, other[0] if other else messages, _checked(rest.state), FrozenDict(agents), turns,
        _checked(rest.usage), rest.pending_calls, paused, rest.name, _checked(rest.metadata),
        _checked(rest.summary), rest.incomplete, rest.problems,
    )  # fmt: skip


# ------------------------------------------------------------------------- views of other projectors


class PlainView(msgspec.Struct, frozen=True, array_like=True):
    """A snapshot with its view as a whole."""

    version: Count
    epoch: Count
    hash: bytes
    size_bytes: Count
    durable: Count
    view: msgspec.Raw


_plain_views: Final = msgspec.msgpack.Decoder(PlainView)


class PlainCodec(Generic[V]):
    """Stores a view as a whole, by the `view_type` that its projector declares: any type msgspec reads."""

    def __init__(self, name: str, version: int, scope: str, view_type: Any, types: bytes = b"") -> None:
        self._views = msgspec.msgpack.Decoder(view_type)
        self.fingerprint: Final = _fingerprint(
            name, version, scope, _shape(PlainView), msgspec.json.schema(view_type), types.hex()
        )

    def dump(self, snapshot: Snapshot, base: Snapshot | None = None) -> Dumped:
        """See Codec."""
        view = msgspec.Raw(_encode(snapshot.view))
        head = PlainView(
            snapshot.version, snapshot.epoch, snapshot.hash, snapshot.size_bytes, snapshot.durable, view
        )
        return Dumped(_encode(head), b"")

    def delta(self, base: Snapshot, snapshot: Snapshot) -> Dumped | None:
        """See Codec: there is none."""
        return None

    def listings(self, snapshot: Snapshot) -> tuple[bytes, ...]:
        """See Codec: there are no chunks."""
        return ()

    def chunks(self, snapshot: Snapshot, known: Sequence[bytes] = ()) -> Chunked:
        """See Codec: there are none."""
        return {}

    def load(self, head: bytes, open: Sequence[bytes], fetch: Fetch, *, lazily: bool = False) -> Snapshot:
        """See Codec."""
        try:
            found = _plain_views.decode(head)
            view = self._views.decode(found.view)
        except Exception as error:  # Of a type of the application's own, too.
            raise Unreadable("a view of another shape") from error
        _check_numbers(found)
        return Snapshot(view, found.version, found.epoch, found.hash, found.size_bytes, found.durable)


def _check_numbers(found: StoredView | PlainView) -> None:
    if found.durable > found.version:
        raise Unreadable("a snapshot that was stored before it was folded")


def _fingerprint(*facts: object) -> bytes:
    """What decides how stored bytes are read: shapes, handled types and the types that are known."""
    known = (LAYOUT, *facts, *sorted(TYPES))
    return hashlib.sha256("\0".join(map(str, known)).encode()).digest()[:8]


def _shape(struct: Any) -> str:
    """A struct's fields as they are declared."""
    hints = get_type_hints(struct)
    config = struct.__struct_config__
    fields = [f"{field}:{hints[field]}" for field in struct.__struct_fields__]
    return f"{struct.__name__} {config.tag} {config.array_like} {fields}"


@functools.lru_cache(maxsize=16)
def _session_codec(types: bytes) -> SessionCodec:
    return SessionCodec(types)


@functools.lru_cache(maxsize=256)
def _plain_codec(name: str, version: int, scope: str, view_type: Any, types: bytes) -> PlainCodec[Any]:
    return PlainCodec(name, version, scope, view_type, types)
