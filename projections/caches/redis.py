"""Snapshots in Redis or Valkey: parts of a view as bytes, written at the cost of a turn.

A snapshot is three keys with one hash tag per session: a HASH `…:h` with its mark and the head, a LIST
`…:o` with the open items as they were at the last replacement and then one delta per extension, and a HASH
`…:c` with the closed chunks by name. A fourth, `{tag}:i`, says which of them a session has and below which
epoch nothing is accepted any more. All of them expire.

Nothing that is read is trusted. Each value is sealed (see framing.py) for its place, its kind and its mark,
so that the marks in clear, by which the scripts compare, cannot say anything else either. Values that do
not fit each other are forgotten. Two snapshots of one mark may not differ in where closed chunks end and
open items begin: that is what a delta relies on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from kern_events.errors import StoreUnavailable
from kern_events.spi import check_seconds, check_whole
from projections.caches.base import SnapshotCache, check_cache
from projections.caches.framing import (
    Mark,
    Place,
    Stored,
    check_secret,
    joined,
    pack_mark,
    seal,
    unpack_mark,
    unseal,
    unsealed,
)
from projections.caches.memory import MemoryCache

if TYPE_CHECKING:
    from projections.caches.redis_link import Budget, Reply, Script

MISSING: Final = "Redis snapshots need: pip install 'kern-events[redis]'"

# A chunk has some 64 kB. More than 1 MiB of them at a time takes longer to read, for the memory it needs,
# and holds up others in Redis. A turn that has more than 4 MiB to write leaves the rest to the next one.
READ_AT_ONCE: Final = 16
WRITE_PER_COMMAND: Final = 1 << 20
WRITE_PER_CALL: Final = 4 << 20
_LONGEST_TTL_S: Final = 100 * 365 * 86_400


class RedisCache:
    """The snapshots that processes share. Called by many threads; never raises for what Redis does.

    What is lost, late, foreign, changed or out of reach is a miss, or False where something was to be
    written. A Redis that does not answer costs its callers one timeout; from then on nothing is tried
    until a thread has seen it answer again.

    Args:
        url: `redis://`, `rediss://` or `unix://`, as redis-py reads it; `valkey://` and `valkeys://` are
            the same; `redis+cluster://` and `rediss+cluster://` for a cluster. Nothing is opened yet.
        secret: Signs each value, against others who can write to that Redis. All processes need the same.
        ttl_s: How long what nobody writes to is kept, in seconds.
        prefix: How the keys begin.
        timeout_s: How long a call may take: to send, and to receive the whole reply. What is moved meanwhile
            adds a second per 64 MiB. A connection that has to be made before it may take as long.
        max_reply_bytes: A reply that is longer is not read to its end, and what it is of is removed. 32 MiB
            are twice what is read at a time where no event has more than the default of 1 MiB.
        memory: The tier in front; by default a MemoryCache of its own.

    Raises:
        ValueError: The URL is not one, the secret is empty, or nothing would be kept.
        TypeError: The URL is no text, the secret no bytes, or the memory no cache.
        ImportError: redis-py is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        secret: bytes | None = None,
        ttl_s: int = 7 * 86400,
        prefix: str = "kern",
        timeout_s: float = 0.1,
        max_reply_bytes: int = 32 << 20,
        memory: SnapshotCache | None = None,
    ) -> None:
        if not isinstance(url, str):
            raise TypeError(
                f"a RedisCache takes the URL of a Redis ('redis://host'), not {type(url).__name__}"
            )
        check_secret(secret)
        if memory is not None:
            check_cache(memory)
        ttl_s = check_whole("ttl_s", ttl_s, 1, _LONGEST_TTL_S)
        max_reply_bytes = check_whole("max_reply_bytes", max_reply_bytes, 1)
        timeout_s = check_seconds("timeout_s", timeout_s, 0.001)
        try:
            from projections.caches import redis_link
        except ImportError as missing:
            raise ImportError(MISSING) from missing
        self.memory: Final[SnapshotCache] = MemoryCache() if memory is None else memory
        self.secret: Final = secret
        self._prefix = prefix.encode()
        self._ttl = b"%d" % ttl_s
        self._wrong_type = redis_link.WrongType
        self._too_large = redis_link.TooLarge
        self._scripts = _Scripts(*map(redis_link.Script.of, _LUA))
        self._link = redis_link.Link(url, timeout_s, max_reply_bytes, self._prefix + b":probe")

    @property
    def available(self) -> bool:
        """Whether Redis is asked at all, which it is not between a failure and its next answer."""
        return self._link.available

    @property
    def failures(self) -> int:
        """How many calls were not answered, or by an error."""
        return self._link.failures

    def close(self) -> None:
        """Close every connection; from now on everything is a miss."""
        self._link.close()

    # ------------------------------------------------------------------------------------- reading

    def fetch(self, place: Place) -> Stored | None:
        """The mark, the head and the open items of what is stored at a place; one round trip.

        What is there but makes no sense is removed.
        """
        spot = _spot(self._prefix, place)
        # Two commands take 30 µs less than a script, and nothing rests on what may happen between them:
        # then the open items do not lead to the mark, and what is there has another mark than was seen.
        match self._ask(spot.tag, spot.reading, (spot.head, spot.open)):
            case [[*plain, head], items] if len(plain) == 3 and any((*plain, head)):
                stored = self._stored(spot, plain, head, items)
            case _:
                return None
        if stored is None:
            self._forget(spot, [part if isinstance(part, bytes) else b"" for part in plain])
        return stored

    def peek(self, place: Place) -> tuple[bool, Stored | None]:
        """Whether something is stored at a place, and what, if it can be read; all is left as it is.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        spot = _spot(self._prefix, place)
        try:
            replies = self._link.ask(spot.tag, spot.reading)
        except (self._wrong_type, self._too_large):
            return True, None
        match replies:
            case None:
                raise StoreUnavailable("Redis does not answer: what is stored there cannot be told")
            case [[*plain, head], items] if len(plain) == 3:
                there = any(part is not None for part in (*plain, head))
                return there, self._stored(spot, plain, head, items) if there else None
        return True, None

    def chunks(
        self, place: Place, names: Sequence[bytes], *, leave: bool = False
    ) -> list[memoryview] | None:
        """The chunks of those names, in that order; None if one is missing or is not what it was.

        What is too long or of another type is removed, unless all is to be left as it is.
        """
        spot, bodies, budget = _spot(self._prefix, place), [], self._link.budget()
        removable = () if leave else (spot.chunks,)
        for some in _batches(names, READ_AT_ONCE):
            values = self._values(spot, some, budget, removable)
            if values is None:
                return None
            for name, value in zip(some, values, strict=True):
                body = unsealed(spot.chunk(name), value, self.secret)
                if body is None:
                    return None
                bodies.append(body)
        return bodies

    def _stored(self, spot: _Spot, plain: Sequence[Reply], head: Reply, items: Reply) -> Stored | None:
        """What the values mean, if each is right and the marks lead from one to the next."""
        mark = _mark(plain)
        if mark is None or not isinstance(head, bytes) or not isinstance(items, list):
            return None
        body = unseal(spot.identity(b"h", mark), head, self.secret)
        opened, reached = self._opened(spot, items)
        return Stored(mark, body, opened) if body is not None and reached == mark else None

    def _opened(self, spot: _Spot, items: Sequence[Reply]) -> tuple[tuple[bytes, ...], Mark | None]:
        """The open items and their deltas, and which mark they reach; None if the chain is broken."""
        bodies: list[bytes] = []
        reached: Mark | None = None
        for item in items:
            found = unpack_mark(item)
            if found is None:
                return (), None
            mark, sealed = found
            body = unseal(spot.item(reached, mark), sealed, self.secret)
            if body is None:
                return (), None
            bodies.append(body)
            reached = mark
        return tuple(bodies), reached

    def _values(
        self, spot: _Spot, names: Sequence[bytes], budget: Budget, removable: Sequence[bytes]
    ) -> list[bytes | None] | None:
        try:
            replies = self._asked(spot.tag, [(b"HMGET", spot.chunks, *names)], removable, budget=budget)
        except self._too_large:
            return self._halves(spot, names, budget, removable)
        match replies:
            case [list(values)] if len(values) == len(names):
                return [value if isinstance(value, bytes) else None for value in values]
        return None

    def _halves(
        self, spot: _Spot, names: Sequence[bytes], budget: Budget, removable: Sequence[bytes]
    ) -> list[bytes | None] | None:
        """What is too much at once, in two parts: chunks may hold values that are large by themselves."""
        if len(names) == 1:
            self._remove(spot.tag, removable)
            return None
        found: list[bytes | None] = []
        for half in _batches(names, (len(names) + 1) // 2):
            values = self._values(spot, half, budget, removable)
            if values is None:
                return None
            found += values
        return found

    # ------------------------------------------------------------------------------------- writing

    def extend(self, place: Place, base: Mark, mark: Mark, head: bytes, delta: bytes) -> bool:
        """Replace the head and add to the open items, if what is stored has exactly the mark `base`.

        Returns:
            Whether it was done. False is also the answer if it may have been done, but Redis did not say.
        """
        spot = _spot(self._prefix, place)
        return self._step(spot, base, mark, head, self._item(spot, base, mark, delta), b"extend")

    def advance(
        self,
        place: Place,
        base: Mark,
        mark: Mark,
        head: bytes,
        open: bytes,
        chunks: Mapping[bytes, Callable[[], bytes]],
    ) -> bool:
        """Replace the head and the open items and add chunks, if what is stored has exactly the mark `base`.

        Args:
            place: Where.
            base: The state that was stored there, as far as is known.
            mark: The state it will be.
            head: Everything but the items of the open chunks.
            open: The items of the open chunks.
            chunks: Those that the head refers to and the one before it did not, as for `replace`.

        Returns:
            Whether it was done, as for `extend`; False also if the chunks have more than 4 MiB.
        """
        spot = _spot(self._prefix, place)
        return self._upload(spot, mark, tuple(chunks), chunks) and self._step(
            spot, base, mark, head, self._item(spot, None, mark, open), b"advance"
        )

    def _step(self, spot: _Spot, base: Mark, mark: Mark, head: bytes, item: bytes, how: bytes) -> bool:
        sealed = seal(spot.identity(b"h", mark), head, self.secret)
        args = (*_texts(base), *_texts(mark), sealed, item, self._ttl, how, spot.suffix)
        return self._run(spot.tag, self._scripts.step, spot.keys, args) == 1

    def replace(
        self,
        place: Place,
        mark: Mark,
        head: bytes,
        open: bytes,
        chunks: Mapping[bytes, Callable[[], bytes]],
        *,
        prune: bool = False,
    ) -> bool:
        """Store a whole snapshot, if what is stored is older or another one of that version.

        Args:
            place: Where.
            mark: The state it is.
            head: Everything but the items of the open chunks.
            open: The items of the open chunks.
            chunks: Each chunk that the head refers to, by name: a function that gives its bytes, called
                for those that are not stored. A name is never given to other bytes.
            prune: Remove the chunks that are not among these.

        Returns:
            Whether a snapshot of that mark is stored now. False if Redis has a newer one, was not reached,
            or if there were more than 4 MiB of chunks to write: what was written stays, and the next call
            goes on.
        """
        spot, names = _spot(self._prefix, place), tuple(chunks)
        planned = self._run(spot.tag, self._scripts.plan, spot.keys, (*_texts(mark), *names))
        if planned == 1:
            return True
        if not isinstance(planned, list):
            return False
        missing = [names[at - 1] for at in planned if isinstance(at, int) and 0 < at <= len(names)]
        if not self._upload(spot, mark, missing, chunks):
            return False
        sealed = seal(spot.identity(b"h", mark), head, self.secret)
        args = (*_texts(mark), sealed, self._item(spot, None, mark, open), self._ttl, spot.suffix)
        kept = (b"1", *names) if prune else (b"0",)
        return self._run(spot.tag, self._scripts.replace, spot.keys, (*args, *kept)) == 1

    def wants(self, place: Place, mark: Mark) -> bool:
        """Whether a snapshot of that mark is newer than what is stored, or heals it; one round trip."""
        spot = _spot(self._prefix, place)
        return isinstance(self._run(spot.tag, self._scripts.plan, spot.keys, _texts(mark)), list)

    def _upload(
        self, spot: _Spot, mark: Mark, missing: Sequence[bytes], chunks: Mapping[bytes, Callable[[], bytes]]
    ) -> bool:
        """Write the chunks that are missing, as far as a call may; whether that was all of them."""
        pairs: list[bytes] = []
        size, room = 0, WRITE_PER_CALL
        for name in missing:
            value = seal(spot.chunk(name), chunks[name](), self.secret)
            if size + len(value) > room and room - size < WRITE_PER_CALL:
                self._write(spot, mark, pairs)
                return False
            pairs += (name, value)
            size += len(value)
            if size >= WRITE_PER_COMMAND:
                if not self._write(spot, mark, pairs):
                    return False
                pairs, size, room = [], 0, room - size
        return self._write(spot, mark, pairs)

    def _write(self, spot: _Spot, mark: Mark, pairs: Sequence[bytes]) -> bool:
        args = (b"%d" % mark.epoch, self._ttl, spot.suffix, *pairs)
        keys = (spot.chunks, spot.registry, spot.head)
        return not pairs or self._run(spot.tag, self._scripts.upload, keys, args) == 1

    def _item(self, spot: _Spot, base: Mark | None, mark: Mark, body: bytes) -> bytes:
        return pack_mark(mark) + seal(spot.item(base, mark), body, self.secret)

    # ------------------------------------------------------------------------------------ removing

    def forget(self, place: Place, mark: Mark | None = None) -> None:
        """Remove what is stored at a place, its chunks too; with a mark, only if it still is that one."""
        self._forget(_spot(self._prefix, place), () if mark is None else _texts(mark))

    def _forget(self, spot: _Spot, seen: Sequence[bytes]) -> None:
        self._run(spot.tag, self._scripts.forget, spot.keys[:3], seen)

    def purge(self, namespace: str, session_id: str, epoch: int | None) -> bool:
        """Remove what is stored of a session from before that epoch, and accept nothing from there any more.

        Without an epoch, all that is stored now is removed; whoever does not know it has to come again.

        Returns:
            Whether it was done. If not, and there is an epoch, it is tried again as soon as Redis answers,
            as long as this cache is open, and once when it is closed. What could not be removed expires.
        """
        tag = _tag(namespace, session_id)
        done = self._purged(tag, epoch)
        if not done and epoch is not None:
            self._link.owe(tag, epoch, self._purged)
        return done

    def owe(self, namespace: str, session_id: str, pay: Callable[[], bool]) -> None:
        """Have `pay`, which purges that session, called by a thread of this cache until it returns True."""
        self._link.owe(_tag(namespace, session_id), 0, lambda tag, epoch: pay())

    def _purged(self, tag: bytes, epoch: int | None) -> bool:
        begin = b"%b:{%b}:" % (self._prefix, tag)
        # The epoch is written first: what is still written of an older one after that is an extension
        # of something that the list has, and removed with it.
        suffixes = self._run(tag, self._scripts.purge, (begin + b"i",), (b"%d" % (epoch or 0), self._ttl))
        floored = isinstance(suffixes, list)
        if not floored and self._link.available:  # A Redis that is full does not write, but can remove.
            suffixes = next(iter(self._ask(tag, [(b"HKEYS", begin + b"i")]) or ()), None)
        found = [each for each in suffixes if isinstance(each, bytes)] if isinstance(suffixes, list) else []
        below = self._scripts.below
        limit = b"" if epoch is None else b"%d" % epoch
        commands = [below.command([begin + each + kind for kind in _KINDS], (limit,)) for each in found]
        return (not commands or self._ask(tag, commands, script=below) is not None) and floored

    # ------------------------------------------------------------------------------------- asking

    def _run(self, tag: bytes, script: Script, keys: Sequence[bytes], args: Iterable[bytes] = ()) -> Reply:
        """What a script returns, or None."""
        replies = self._ask(tag, (script.command(keys, args),), keys, script)
        return replies[0] if replies else None

    def _ask(
        self,
        tag: bytes,
        commands: Sequence[Sequence[bytes]],
        keys: Sequence[bytes] = (),
        script: Script | None = None,
    ) -> list[Reply] | None:
        """The replies, or None; what has another type than ours, or a reply too long, is removed."""
        try:
            return self._asked(tag, commands, keys, script)
        except self._too_large:
            self._remove(tag, keys)
            return None

    def _asked(
        self,
        tag: bytes,
        commands: Sequence[Sequence[bytes]],
        keys: Sequence[bytes],
        script: Script | None = None,
        budget: Budget | None = None,
    ) -> list[Reply] | None:
        try:
            return self._link.ask(tag, commands, script, budget)
        except self._wrong_type:
            heal = self._scripts.heal
            with suppress(self._wrong_type, self._too_large):
                if keys:
                    self._link.ask(tag, (heal.command(keys, ()),), heal)
            return None

    def _remove(self, tag: bytes, keys: Sequence[bytes]) -> None:
        if keys:
            with suppress(self._wrong_type, self._too_large):
                self._link.ask(tag, [(b"UNLINK", *keys)])


_FIELDS: Final = (b"e", b"v", b"x", b"s")  # Epoch, version and hash, and the head.
_KINDS: Final = (b":h", b":o", b":c")


class _Spot(NamedTuple):
    """A place as Redis knows it: its keys, and what its values are sealed for."""

    tag: bytes
    suffix: bytes
    begin: bytes
    registry: bytes
    name: bytes

    @property
    def head(self) -> bytes:
        return self.begin + b":h"

    @property
    def open(self) -> bytes:
        return self.begin + b":o"

    @property
    def chunks(self) -> bytes:
        return self.begin + b":c"

    @property
    def reading(self) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        """The commands that read the head and the open items."""
        return (b"HMGET", self.head, *_FIELDS), (b"LRANGE", self.open, b"0", b"-1")

    @property
    def keys(self) -> tuple[bytes, bytes, bytes, bytes]:
        return self.head, self.open, self.chunks, self.registry

    def identity(self, kind: bytes, *marks: Mark) -> bytes:
        # The name and each mark say where they end, and a kind is one byte.
        return b"".join((self.name, kind, *map(pack_mark, marks)))

    def item(self, base: Mark | None, mark: Mark) -> bytes:
        """Of the open items as they were at a mark, or of what was added to those of `base`."""
        return self.identity(b"o", mark) if base is None else self.identity(b"d", base, mark)

    def chunk(self, name: bytes) -> bytes:
        return self.name + b"c" + name


def _tag(namespace: str, session_id: str) -> bytes:
    # Only hashes in the keys: they are shown and logged in places where no text of a user should be.
    return hashlib.sha256(f"{namespace}\0{session_id}".encode()).hexdigest()[:32].encode()


def _spot(prefix: bytes, place: Place) -> _Spot:
    tag = _tag(place.namespace, place.session_id)
    kind = joined(place.projector.encode(), b"%d" % place.projector_version, place.fingerprint)
    suffix = hashlib.sha256(kind).hexdigest()[:16].encode()
    session = b"%b:{%b}:" % (prefix, tag)
    # The whole text, as hashes that were cut short may meet.
    name = joined(place.namespace.encode(), place.session_id.encode(), kind)
    return _Spot(tag, suffix, session + suffix, session + b"i", name)


def _texts(mark: Mark) -> tuple[bytes, bytes, bytes]:
    return b"%d" % mark.epoch, b"%d" % mark.version, mark.hash


def _mark(plain: Sequence[Reply]) -> Mark | None:
    """The mark that the plain fields say, if they are numbers as we write them."""
    match plain:
        case [bytes(epoch), bytes(version), bytes(digest)] if len(digest) < 256:
            mark = Mark(_number(epoch), _number(version), digest)
            return mark if _texts(mark) == (epoch, version, digest) else None
    return None


def _number(text: bytes) -> int:
    # 2^63 - 1 has 19 digits.
    return int(text) if len(text) <= 19 and text.isdigit() else -1


def _batches(names: Sequence[bytes], size: int) -> list[Sequence[bytes]]:
    return [names[at : at + size] for at in range(0, len(names), size)]


# ------------------------------------------------------------------------------------------ scripts


class _Scripts(NamedTuple):
    step: Script
    plan: Script
    upload: Script
    replace: Script
    forget: Script
    purge: Script
    below: Script
    heal: Script


# Numbers are compared as text, for those of Lua end at 2^53: the longer one is greater, and of two that
# are equally long, the one that sorts later.
_ABOVE: Final = """
local function above(a, b)
  if #a ~= #b then return #a > #b end
  return a > b
end
"""

# Whether a mark may be stored: 0 if something newer is, 1 if this very mark is already, 2 if it may.
# What is stored in a form that we do not write is worth nothing.
_VERDICT: Final = (
    _ABOVE
    + """
local function verdict(head, index, epoch, version, hash)
  local floor = redis.call('HGET', index, 'epoch')
  if floor and above(floor, epoch) then return 0 end
  local at = redis.call('HMGET', head, 'e', 'v', 'x', 's')
  if not (at[1] and at[2] and at[3] and at[4]) then return 2 end
  if not (at[1]:find('^%d+$') and at[2]:find('^%d+$')) then return 2 end
  if at[1] ~= epoch then return above(at[1], epoch) and 0 or 2 end
  if at[2] ~= version then return above(at[2], version) and 0 or 2 end
  return at[3] == hash and 1 or 2
end
"""
)

_EXPIRE: Final = """
local function expire(keys, ttl)
  for _, key in ipairs(keys) do redis.call('EXPIRE', key, ttl) end
end
"""

# Keys: all. Arguments: base mark, mark, head, item, ttl, what becomes of the item, and the suffix, which
# may have been evicted from the index.
_STEP: Final = (
    _EXPIRE
    + """
local at = redis.call('HMGET', KEYS[1], 'e', 'v', 'x')
if at[1] ~= ARGV[1] or at[2] ~= ARGV[2] or at[3] ~= ARGV[3] then return 0 end
if ARGV[10] == 'extend' then
  if redis.call('RPUSHX', KEYS[2], ARGV[8]) == 0 then return 0 end
else
  redis.call('DEL', KEYS[2])
  redis.call('RPUSH', KEYS[2], ARGV[8])
end
redis.call('HSET', KEYS[1], 'e', ARGV[4], 'v', ARGV[5], 'x', ARGV[6], 's', ARGV[7])
redis.call('HSET', KEYS[4], ARGV[11], '')
expire(KEYS, ARGV[9])
return 1
"""
)

# Keys: all. Arguments: mark, names of chunks. Returns the verdict, or which chunks are missing.
_PLAN: Final = (
    _VERDICT
    + """
local can = verdict(KEYS[1], KEYS[4], ARGV[1], ARGV[2], ARGV[3])
if can ~= 2 then return can end
local missing = {}
for i = 4, #ARGV do
  if redis.call('HEXISTS', KEYS[3], ARGV[i]) == 0 then missing[#missing + 1] = i - 3 end
end
return missing
"""
)

# Keys: chunks, index, head. Arguments: epoch, ttl, suffix, then name and value of each chunk.
# Under the head of an epoch there are no chunks of an older one: a purge that spares it relies on that.
_UPLOAD: Final = (
    _ABOVE
    + _EXPIRE
    + """
local floor = redis.call('HGET', KEYS[2], 'epoch')
if floor and above(floor, ARGV[1]) then return 0 end
local at = redis.call('HGET', KEYS[3], 'e')
if at and at:find('^%d+$') and above(at, ARGV[1]) then return 0 end
redis.call('HSET', KEYS[2], ARGV[3], '')
for i = 4, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
expire({KEYS[1], KEYS[2]}, ARGV[2])
return 1
"""
)

# Keys: all. Arguments: mark, head, open, ttl, suffix, whether to prune, and then the names to keep.
_REPLACE: Final = (
    _VERDICT
    + _EXPIRE
    + """
local can = verdict(KEYS[1], KEYS[4], ARGV[1], ARGV[2], ARGV[3])
if can ~= 2 then return can end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('HSET', KEYS[4], ARGV[7], '')
redis.call('RPUSH', KEYS[2], ARGV[5])
redis.call('HSET', KEYS[1], 'e', ARGV[1], 'v', ARGV[2], 'x', ARGV[3], 's', ARGV[4])
if ARGV[8] == '1' then
  local kept = {}
  for i = 9, #ARGV do kept[ARGV[i]] = true end
  for _, name in ipairs(redis.call('HKEYS', KEYS[3])) do
    if not kept[name] then redis.call('HDEL', KEYS[3], name) end
  end
end
expire(KEYS, ARGV[6])
return 1
"""
)

# Keys: head, open, chunks. Arguments: none, or the mark as it was seen.
_FORGET: Final = """
if #ARGV > 0 then
  local at = redis.call('HMGET', KEYS[1], 'e', 'v', 'x')
  for i = 1, 3 do
    if (at[i] or '') ~= ARGV[i] then return 0 end
  end
end
return redis.call('UNLINK', unpack(KEYS))
"""

# Keys: index. Arguments: epoch, ttl. Returns the suffixes of the session.
_PURGE: Final = (
    _ABOVE
    + """
local suffixes = redis.call('HKEYS', KEYS[1])
local floor = redis.call('HGET', KEYS[1], 'epoch')
if not floor or above(ARGV[1], floor) then redis.call('HSET', KEYS[1], 'epoch', ARGV[1]) end
redis.call('EXPIRE', KEYS[1], ARGV[2])
return suffixes
"""
)

# Keys: head, open, chunks. Arguments: an epoch, or nothing. Spares what is of that epoch or a later one.
_BELOW: Final = (
    _ABOVE
    + """
local at = redis.pcall('HGET', KEYS[1], 'e')
if ARGV[1] ~= '' and type(at) == 'string' and at:find('^%d+$') and not above(ARGV[1], at) then return 0 end
return redis.call('UNLINK', unpack(KEYS))
"""
)

# Keys: any. Removes those that are of another type than ours.
_HEAL: Final = """
for _, key in ipairs(KEYS) do
  local is, ours = redis.call('TYPE', key)['ok'], key:sub(-2) == ':o' and 'list' or 'hash'
  if is ~= ours and is ~= 'none' then redis.call('UNLINK', key) end
end
return 1
"""

_LUA: Final = (_STEP, _PLAN, _UPLOAD, _REPLACE, _FORGET, _PURGE, _BELOW, _HEAL)
