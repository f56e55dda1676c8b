"""The snapshots that outlive a process: in Redis, for all processes, and in the log's own database.

Both keep bytes (stored.py says which) and are never trusted: what they give is only a baseline, and
whatever fails is a miss. So nothing here raises but Ctrl-C.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from kern_events import SessionLog, spi
from kern_events.errors import KernError, StoreUnavailable
from projections.caches.base import Snapshot, SnapshotKey
from projections.caches.framing import Mark, Place, joined, keyed, seal, unseal, unsealed
from projections.session import View
from projections.stored import Bytes, Chunked, Codec, Unreadable

if TYPE_CHECKING:
    from projections.caches.redis import RedisCache

T = TypeVar("T")

logger: Final = logging.getLogger("projections")

AT_LEAST: Final = 64
"""Fewer events are folded as quickly as a snapshot is read."""

LADDER: Final = 2_048
"""Of the heads stored in the log's database, one is kept for so many versions, and the newest."""

_DUE_EVENTS: Final = 1_000  # a snapshot is due after so many events, wherever the chunks end
_BATCH_BYTES: Final = 4 << 20  # in one transaction, so that no writer waits long
_HEAD: Final = b"head"
_NEWEST: Final = 2**63 - 1
_MAX_WAITING: Final = 64
_PEEKS: Final = 3


class SharedTier:
    """Snapshots in Redis: whatever the newest is that some process has folded."""

    def __init__(self, redis: RedisCache) -> None:
        self.redis: Final = redis

    def get(self, key: SnapshotKey, codec: Codec, *, lazily: bool = False) -> Snapshot | None:
        """The newest snapshot, if it can be read."""
        place = _place(key, codec)
        stored = self.redis.fetch(place)
        if stored is None:
            return None

        def fetch(names: Sequence[bytes]) -> Sequence[Bytes]:
            found = self.redis.chunks(place, names)
            if found is None:
                self.redis.forget(place, stored.mark)
                raise Unreadable("a chunk is missing")
            return found

        snapshot = _loaded(lambda: codec.load(stored.head, stored.open, fetch, lazily=lazily))
        if snapshot is None or _mark(snapshot) != stored.mark:
            self.redis.forget(place, stored.mark)
            return None
        return snapshot

    def peek(self, key: SnapshotKey, codec: Codec) -> tuple[int, Snapshot | None] | None:
        """The version of what is stored, 0 where it does not say one, and what it is, if it can be read;
        None if nothing is stored. All is left as it is.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        found = None
        for _ in range(_PEEKS):  # What is replaced between head and chunks is not unreadable for that.
            found = self._peeked(_place(key, codec), codec)
            if found is None or found[1] is not None:
                break
        return found

    def _peeked(self, place: Place, codec: Codec) -> tuple[int, Snapshot | None] | None:
        there, stored = self.redis.peek(place)
        if stored is None:
            return (0, None) if there else None

        def fetch(names: Sequence[bytes]) -> Sequence[Bytes]:
            found = self.redis.chunks(place, names, leave=True)
            if found is None and not self.redis.available:
                raise StoreUnavailable("Redis does not answer: what is stored there cannot be told")
            if found is None:
                raise Unreadable("a chunk is missing")
            return found

        snapshot = _loaded(lambda: codec.load(stored.head, stored.open, fetch))
        whole = snapshot is not None and _mark(snapshot) == stored.mark
        return stored.mark.version, snapshot if whole else None

    def put(self, key: SnapshotKey, codec: Codec, snapshot: Snapshot, base: Snapshot | None) -> None:
        """Keep a snapshot that was folded from `base`: at best only what is new goes over the wire."""
        if not self.redis.available:
            return
        place, mark = _place(key, codec), _mark(snapshot)
        if base is not None and base.version and base.epoch == snapshot.epoch:
            delta = codec.delta(base, snapshot)
            if delta is not None and self.redis.extend(place, _mark(base), mark, delta.head, delta.open):
                return
            if delta is None:
                dumped = codec.dump(snapshot, base)
                new = codec.chunks(snapshot, codec.listings(base))
                if self.redis.advance(place, _mark(base), mark, dumped.head, dumped.open, new):
                    return
            if not self.redis.wants(place, mark):
                return  # Another process was faster, and the list of all chunks need not be made.
        dumped = codec.dump(snapshot, base)
        self.redis.replace(place, mark, dumped.head, dumped.open, codec.chunks(snapshot), prune=True)

    def drop(self, key: SnapshotKey, codec: Codec, snapshot: Snapshot) -> None:
        """Forget a snapshot that does not agree with the log, if it is still there."""
        self.redis.forget(_place(key, codec), _mark(snapshot))


class DurableTier:
    """Snapshots in the log's own database, some at every stretch of a session.

    They are written by a thread of its own: no load waits for a lock of the database. With a secret they
    are signed, against others who can write to that table.
    """

    def __init__(self, log: SessionLog, secret: bytes | None = None) -> None:
        self._log = log
        self._secret = secret
        self._writer = _Writer()
        self._unsure: set[SnapshotKey] = set()  # where something could not be written
        self._damaged: set[SnapshotKey] = set()  # where something could not be read: all is written anew

    def newest(self, key: SnapshotKey, codec: Codec, until: int, *, lazily: bool = False) -> Snapshot | None:
        """The newest snapshot at or below a version, if it can be read; it is dropped if it cannot."""
        return _quietly(lambda: self._newest(key, codec, until, lazily), None)

    def peek(self, key: SnapshotKey, codec: Codec) -> tuple[spi.StoredHead, Snapshot | None] | None:
        """The newest snapshot as it lies there, and what it says, if it can be read; all is left as it is.

        Raises:
            StoreError: The database failed.
        """
        table = self._table(key, codec)
        stored = table.head(key.session_id, _NEWEST)
        return None if stored is None else (stored, self._decoded(table, key, codec, stored, lazily=False))

    def unsigned(self, key: SnapshotKey, codec: Codec) -> int:
        """How many snapshots lie there that this secret has not signed, or that were made of other types.

        Raises:
            StoreError: The database failed.
        """
        prefix = f"{stored_as(key.projector)}{key.projector_version}:"
        return self._table(key, codec).others(key.session_id, prefix)

    def versions(self, key: SnapshotKey, codec: Codec) -> Sequence[int]:
        """The versions that there are snapshots of, the oldest first."""
        return _quietly(lambda: self._table(key, codec).names(key.session_id)[0], [])

    def put(self, key: SnapshotKey, codec: Codec, snapshot: Snapshot) -> None:
        """Store a snapshot soon, and say so in it; not at all while many wait to be stored."""
        listings = None if key in self._unsure or key in self._damaged else snapshot.listings
        job = _Job(key, codec, snapshot, snapshot.durable, listings)
        if self._writer.submit(lambda: self._write(job)):
            snapshot.durable, snapshot.listings = snapshot.version, codec.listings(snapshot)

    def purge(self, key: SnapshotKey, codec: Codec) -> None:
        """Drop soon what lies there of a session that was deleted, by whatever projector, if anything does.

        The deletion itself left nothing, and nothing is stored after it: somebody has put it back.
        """
        self._writer.submit(lambda: _quietly(lambda: self._forget_all(key, codec), None))

    def _forget_all(self, key: SnapshotKey, codec: Codec) -> None:
        if any(self._table(key, codec).names(key.session_id)):  # No reader writes for nothing.
            spi.forget_snapshots(self._log, key.session_id)

    def settle(self) -> None:
        """Wait until what was put is stored."""
        self._writer.settle()

    def close(self) -> None:
        """Store what waits, and end the thread."""
        self._writer.close()

    def drop(self, key: SnapshotKey, codec: Codec, snapshot: Snapshot) -> None:
        """Forget a snapshot that does not agree with the log."""
        _quietly(lambda: self._forget(self._table(key, codec), key.session_id, snapshot.version), None)

    def _forget(self, table: spi.SnapshotTable, session_id: str, head: int | str) -> None:
        table.put(session_id, self._log.head(session_id).epoch, 0, drop=[head])

    def _table(self, key: SnapshotKey, codec: Codec) -> spi.SnapshotTable:
        # Those of other secrets, and of none, lie beside it: nobody drops what he cannot check.
        fingerprint = keyed(codec.fingerprint, self._secret).hex()
        return spi.SnapshotTable(
            self._log, f"{stored_as(key.projector)}{key.projector_version}:{fingerprint}"
        )

    def _newest(self, key: SnapshotKey, codec: Codec, until: int, lazily: bool) -> Snapshot | None:
        table = self._table(key, codec)
        stored = table.head(key.session_id, until)
        if stored is None:
            return None
        snapshot = self._decoded(table, key, codec, stored, lazily)
        if snapshot is None:
            self._damaged.add(key)
            self._forget(table, key.session_id, stored.name)
            return None
        snapshot.durable = snapshot.version
        if not lazily:
            snapshot.listings = codec.listings(snapshot)
        return snapshot

    def _decoded(
        self, table: spi.SnapshotTable, key: SnapshotKey, codec: Codec, stored: spi.StoredHead, lazily: bool
    ) -> Snapshot | None:
        """The snapshot of a head, if it is what was stored under that name."""

        def fetch(names: Sequence[bytes]) -> Sequence[Bytes]:
            found = table.chunks(key.session_id, [name.hex() for name in names])
            bodies = [
                unsealed(_identity(key, codec, name), found.get(name.hex()), self._secret) for name in names
            ]
            if None in bodies:
                raise Unreadable("a chunk is missing")
            return [body for body in bodies if body is not None]

        def load() -> Snapshot:
            body = unseal(_identity(key, codec, _HEAD, b"%d" % stored.version), stored.data, self._secret)
            if body is None:
                raise Unreadable("a head that is damaged")
            size = int.from_bytes(body[:4], "big")
            return codec.load(body[4 : 4 + size], [body[4 + size :]], fetch, lazily=lazily)

        snapshot = _loaded(load)
        return None if snapshot is None or snapshot.version != stored.version else snapshot

    def _write(self, job: _Job) -> None:
        if _quietly(lambda: self._stored(job), False):
            self._unsure.discard(job.key)
            if job.listings is None:
                self._damaged.discard(job.key)
        else:
            self._unsure.add(job.key)

    def _stored(self, job: _Job) -> bool:
        table = self._table(job.key, job.codec)
        return all(table.put_all([put])[0] for put in self._puts(table, job))

    def _puts(self, table: spi.SnapshotTable, job: _Job) -> Iterator[spi.NewSnapshot]:
        """What is to be stored, in transactions of a bearable size: the chunks, and in the end the head."""
        key, codec, snapshot, before, listings = job
        chunks = codec.chunks(snapshot, listings or ())
        if listings is None:
            known = set() if key in self._damaged else table.names(key.session_id)[1]
            chunks = {name: body for name, body in chunks.items() if name.hex() not in known}
        place = (key.session_id, snapshot.epoch, snapshot.version)
        for batch in self._batches(key, codec, chunks):
            yield spi.NewSnapshot(*place, batch)
        dumped = codec.dump(snapshot)
        body = b"".join((len(dumped.head).to_bytes(4, "big"), dumped.head, dumped.open))
        # The head before stays where it is the last of its stretch.
        same = before // LADDER == snapshot.version // LADDER and before not in (0, snapshot.version)
        head = seal(_identity(key, codec, _HEAD, b"%d" % snapshot.version), body, self._secret)
        yield spi.NewSnapshot(*place, head=head, drop=[before] if same else ())

    def _batches(self, key: SnapshotKey, codec: Codec, chunks: Chunked) -> Iterator[dict[str, bytes]]:
        """Chunks as they are stored, so many that a transaction stays short."""
        batch: dict[str, bytes] = {}
        size = 0
        for name, encoded in chunks.items():
            sealed = batch[name.hex()] = seal(_identity(key, codec, name), encoded(), self._secret)
            size += len(sealed)
            if size > _BATCH_BYTES:
                yield batch
                batch, size = {}, 0
        if batch:
            yield batch

    def store_all(self, codec: Codec, snapshots: Sequence[tuple[SnapshotKey, Snapshot]]) -> int:
        """Store snapshots by one projector now, many in a transaction.

        Returns:
            How many: those of sessions that were deleted or erased from meanwhile are not.

        Raises:
            StoreError: The database failed; some may be stored.
            TypeError, ValueError, OverflowError: A view holds what cannot be encoded.
        """
        if not snapshots:
            return 0
        table = self._table(snapshots[0][0], codec)
        jobs = [_Job(key, codec, snapshot, snapshot.durable, None) for key, snapshot in snapshots]
        waiting: list[spi.NewSnapshot] = []
        size = stored = 0
        for put in (put for job in jobs for put in self._puts(table, job)):
            waiting.append(put)
            size += len(put.head or b"") + sum(map(len, put.chunks.values()))
            if size > _BATCH_BYTES:
                stored += _heads_put(table, waiting)
                waiting, size = [], 0
        return stored + _heads_put(table, waiting)

    def table(self, key: SnapshotKey, codec: Codec) -> spi.SnapshotTable:
        """Where the snapshots of one projector and fingerprint lie."""
        return self._table(key, codec)


class _Job(NamedTuple):
    """A snapshot to be stored, and what was stored before it."""

    key: SnapshotKey
    codec: Codec
    snapshot: Snapshot
    before: int
    listings: tuple[bytes, ...] | None


class _Writer:
    """One thread, made when there is something to do; in a forked child another one."""

    def __init__(self) -> None:
        self._begin()
        _writers.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._waiting: set[Future[None]] = set()
        self._executor: ThreadPoolExecutor | None = None

    def submit(self, work: Callable[[], None]) -> bool:
        """Do it later, in order; False if too much waits already, or there is no thread to be had."""
        with self._lock:
            if len(self._waiting) >= _MAX_WAITING:
                return False
            if self._executor is None:
                self._executor = ThreadPoolExecutor(1, thread_name_prefix="kern_snapshots")
            try:
                future = self._executor.submit(work)
            except RuntimeError:  # The interpreter is ending.
                return False
            self._waiting.add(future)
        future.add_done_callback(self._done)
        return True

    def _done(self, future: Future[None]) -> None:
        with self._lock:
            self._waiting.discard(future)

    def settle(self) -> None:
        with self._lock:
            waiting = list(self._waiting)
        wait(waiting)

    def close(self) -> None:
        with self._lock:
            executor, self._executor = self._executor, None
        if executor:
            executor.shutdown(wait=True)


def due(snapshot: Snapshot, codec: Codec) -> bool:
    """Whether a snapshot should be stored in the log's database.

    At the end of a turn, once a chunk was closed since the last one: then the chunk has to be stored
    once anyway, and what is left open is little. And after a thousand events whatever they are.
    """
    since = snapshot.version - snapshot.durable
    view = snapshot.view
    if snapshot.incomplete or since < AT_LEAST:
        return False
    if since >= _DUE_EVENTS or not isinstance(view, View):
        return since >= _DUE_EVENTS
    if len(view.turns) and view.turns[-1].status in ("open", "paused"):
        return False
    entries = codec.listings(snapshot)[0]
    known = snapshot.listings
    return len(entries) > 0 if known is None else entries != known[0]


def _heads_put(table: spi.SnapshotTable, puts: Sequence[spi.NewSnapshot]) -> int:
    """Store them, and count the heads among what was stored: each is the last of its snapshot."""
    return sum(done for put, done in zip(puts, table.put_all(puts), strict=True) if put.head is not None)


def stored_as(projector: str) -> str:
    """What the names begin with under which snapshots by a projector, of whatever version, are stored."""
    return projector.replace("%", "%25").replace(":", "%3A") + ":"


def _place(key: SnapshotKey, codec: Codec) -> Place:
    return Place(*key[:4], codec.fingerprint)


def _mark(snapshot: Snapshot) -> Mark:
    return Mark(snapshot.epoch, snapshot.version, snapshot.hash)


def _identity(key: SnapshotKey, codec: Codec, *what: bytes) -> bytes:
    """Whose it is, and what: the name of a chunk, or that it is a head, and its version."""
    version = b"%d" % key.projector_version
    texts = (key.namespace.encode(), key.session_id.encode(), key.projector.encode())
    return joined(*texts, version, codec.fingerprint, *what)


def _loaded(load: Callable[[], Snapshot]) -> Snapshot | None:
    """The snapshot, or None where it cannot be read, for whatever reason but a database that failed."""
    try:
        return load()
    except KernError:
        raise
    except Exception as error:
        logger.debug("a stored snapshot was dropped: %s", type(error).__name__)
        return None


def _quietly(work: Callable[[], T], otherwise: T) -> T:
    """A snapshot in the database is worth no error: a role may not write there, the log is busy, or the
    view holds what cannot be encoded."""
    try:
        return work()
    except (KernError, TypeError, ValueError, OverflowError) as error:
        logger.debug("a stored snapshot was passed over: %s", type(error).__name__)
        return otherwise


_writers: weakref.WeakSet[_Writer] = weakref.WeakSet()


def _begin_anew() -> None:
    # The thread, and whoever held the lock, do not exist in the child.
    for writer in _writers:
        writer._begin()


os.register_at_fork(after_in_child=_begin_anew)
