"""Postgres: an append is one guarded statement, so one round trip, on an autocommit connection.

The head that it links to comes from a cache of this process; the guard compares the whole head, so
a stale one lands nowhere and costs one look-up. Values go over the wire in binary, events as arrays.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, TypeVar

import psycopg
from cachetools import LRUCache
from sqlalchemy import URL
from sqlalchemy.engine import Connection, Engine

from kern_events import chain
from kern_events.batch import DESCRIBING, LISTING, TOMBSTONES, Batch, Linked, StoredRow, handed_down, link
from kern_events.clock import said_us
from kern_events.errors import FeedUnavailable, InvalidEvent, SchemaOutdated, StoreError, StoreUnavailable
from kern_events.events import Head, SessionInfo
from kern_events.numbers import LARGEST
from kern_events.store import sql
from kern_events.store.base import (
    DELETING,
    HOUR_US,
    PAGE_ROWS,
    ROW_SECURITY,
    SLICE_ROWS,
    Adoption,
    AnswerLost,
    Base,
    Bound,
    Consumers,
    Difference,
    Found,
    HeadRow,
    Landed,
    Lineage,
    Origin,
    Refused,
    Rows,
    Slice,
    SnapshotPut,
    StoredChunk,
    Tombstone,
    barred_by,
    feed_of,
    fork_head,
    found_of,
    head_name,
    head_row_of,
    is_past_fence,
    landed,
    listing_values,
    missing,
    newest_version,
    nothing,
    page_of,
    parents_first,
    refuses,
    rewrites_listing,
    shown,
    shown_row,
    shown_tail,
    tail_of,
    unknown_head,
    version_of,
)
from kern_events.store.consumers import SQLConsumers
from kern_events.store.exchange import unhurried
from kern_events.store.forks import survive_forks
from kern_events.store.positions import HIDDEN
from kern_events.store.postgres_server import PostgresServer, PostgresSinks, Session, translated
from kern_events.store.server_clock import ServerClock
from kern_events.store.wire import (
    Cursor,
    adopted_row,
    binary_cursor,
    bytea_array,
    copy_row,
    digest_array,
    int2_array,
    int4_array,
    int8_array,
    text_array,
)

T = TypeVar("T")

_HEADS_CACHED: Final = 10_000
_HEADS_PAGE: Final = 500
_FORKS_AT_ONCE: Final = 1_000
_LARGE_KNOWN: Final = 4_096  # sessions
_HEAD_COLUMNS: Final = 7  # in front of the events of a tail
_FOREVER: Final = 2**62
_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_COPY_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_TRAILER: Final = b"\xff\xff"


class PostgresStore:
    """A Store in a Postgres database."""

    dialect = "postgres"

    def __init__(
        self,
        url: URL,
        engine: Engine | None,
        *,
        schema: str | None,
        pool_size: int,
        lock_timeout_s: float,
        timeout_s: float,
    ) -> None:
        if schema is not None and not _IDENTIFIER.fullmatch(schema):
            raise ValueError(f"{schema!r} is not a schema name: letters, digits and underscores")
        self._server = PostgresServer(
            url,
            engine,
            schema=schema,
            pool_size=pool_size,
            lock_timeout_s=lock_timeout_s,
            timeout_s=timeout_s,
        )
        self._sql = self._server.sql
        self._heads: LRUCache[tuple[str, str], Head] = LRUCache(_HEADS_CACHED)
        self._heads_lock = threading.Lock()
        self._clock = ServerClock()
        self._pages = _Pages()
        self._feed_checked = False
        self.on_commit: Callable[[], None] = nothing
        self.consumers: Consumers = SQLConsumers(PostgresSinks(self._server))
        survive_forks(self)

    def forget(self) -> None:
        """In a forked child: the lock may have been held by a thread that is not here."""
        self._heads_lock = threading.Lock()

    # ------------------------------------------------------------------------------- appending

    def attempt(self, batch: Batch, base: Base, lock: bool = False) -> Landed | Refused:
        """See Store."""
        self._server.ensure()
        if lock:
            return self._transact(lambda session, bases: self._locked(session, bases, batch, base))
        head = self._head_for(batch, base)
        if head.status == "deleted":
            return self._transact(lambda session, bases: self._locked(session, bases, batch, base))
        linked = _try_link(batch, base, head, self._clock.now_us())
        if linked is None:
            head = self._read_head(batch)  # The one at hand may be behind.
            if refuses(batch, base, head):
                return Refused(head if base is None else base)
            linked = link(batch, head, self._clock.now_us())
        # Behind a head that others have moved: the guard does not tell what they have appended.
        if is_past_fence(batch, head) and self._barred(batch, head) is not None:
            return Refused(head)
        statement, values = self._statement(batch, head, linked)
        before = self._server.positions.highest
        rows = self._server.send(statement, values, head)
        if not rows:
            self._remember(batch, None)
            return Refused(head)
        self._remember(batch, linked.head)
        self.on_commit()
        position = max(row[0] for row in rows)
        self._server.positions.drawn(before, position)
        return landed(batch, linked, position)

    def submit(self, batch: Batch, base: Base) -> Future[Landed | Refused] | None:
        """See Store: there is no queue; concurrent appends share the server's own group commit."""
        return None

    def attempt_many(self, batches: Sequence[tuple[Batch, Base]]) -> list[Landed] | None:
        """See Store."""
        self._server.ensure()
        return self._transact(lambda session, bases: self._many(session, bases, batches))

    def _transact(self, work: Callable[[Session, list[Head]], T]) -> T:
        def checked(session: Session, bases: list[Head]) -> T:
            self._server.positions.check(*session)
            return work(session, bases)

        result = self._server.in_transaction(checked)
        self.on_commit()
        return result

    def holding(self, namespace: str, session_id: str) -> tuple[str, tuple[Any, ...]] | None:
        """See Store."""
        return self._sql.joined_head, (namespace, session_id)

    def within(
        self, connection: Connection, batch: Batch, base: Base, held: Sequence[Any] | None = None
    ) -> tuple[Landed | Refused, Found | None]:
        """See Store."""
        cursor = self._callers_cursor(connection)
        try:
            self._server.positions.check(cursor.connection, cursor)
            answer = self._joined(cursor, batch, base, held)
            if isinstance(answer, Landed):
                return answer, None
            return answer, self._looked_up(cursor, batch, version_of(answer.base), len(batch.events))
        except psycopg.Error as error:
            raise translated(error) from error

    def delete(self, namespace: str, session_id: str, tombstone: Tombstone) -> Landed | None:
        """See Store."""
        self._server.ensure()

        def work(session: Session, bases: list[Head]) -> Landed | None:
            return self._deleted(session.cursor, bases, namespace, session_id, tombstone, whole=False)

        return self._transact(work)

    def delete_within(
        self, connection: Connection, namespace: str, session_id: str, tombstone: Tombstone, *, whole: bool
    ) -> Landed | None:
        """See Store."""
        cursor = self._callers_cursor(connection)
        try:
            if cursor.execute(sql.POSTGRES_ISOLATION).fetchall()[0][0] != "read committed":
                raise ValueError("delete(connection=) needs READ COMMITTED")
            self._server.positions.check(cursor.connection, cursor)
            return self._deleted(cursor, [], namespace, session_id, tombstone, whole=whole)
        except psycopg.Error as error:
            raise translated(error) from error

    def erase_on(self, namespace: str, session_id: str, after: int) -> Slice:
        """See Store."""
        self._server.ensure()

        def work(session: Session, bases: list[Head]) -> Slice:
            return self._erase_on(session.cursor, (namespace, session_id), after, whole=False)

        try:
            return self._server.in_transaction(work)
        except AnswerLost as lost:  # It is done again, or was done.
            raise StoreUnavailable("Postgres: it is not known whether a part was erased") from lost

    def unfinished(self, namespace: str) -> Sequence[str]:
        """See Store."""
        return [row[0] for row in self._server.query(self._sql.unfinished, (namespace,))]

    def head_within(self, connection: Connection, namespace: str, session_id: str) -> Head | None:
        """See Store."""
        cursor = self._callers_cursor(connection)
        try:
            row = cursor.execute(self._sql.head, (namespace, session_id)).fetchone()
        except psycopg.Error as error:
            raise translated(error) from error
        return Head(*row) if row else None

    def _deleted(
        self,
        cursor: Cursor,
        bases: list[Head],
        namespace: str,
        session_id: str,
        tombstone: Tombstone,
        *,
        whole: bool,
    ) -> Landed | None:
        row = cursor.execute(self._sql.locked_head, (namespace, session_id)).fetchone()
        head = Head(*row[:7]) if row else None
        if head is None or head.status == "deleted":
            return None
        all_of_it = {"namespace": namespace, "session_id": session_id, "version": head.version}
        if cursor.execute(self._sql.hides_events, all_of_it).fetchall()[0][0]:
            raise StoreError(f"session {session_id!r} cannot be erased as a whole: {ROW_SECURITY}")
        bases.append(head)
        batch = tombstone(head)
        outcome = self._write(cursor, batch, head)
        assert isinstance(outcome, Landed)
        scope, version = (namespace, session_id), outcome.head.version
        earlier = (*scope, version, text_array(DELETING))
        found = cursor.execute(self._sql.newest_tombstone, earlier).fetchone()
        if self._erase(cursor, scope, version, found[0] if found else 0, whole=whole).left:
            cursor.execute(self._sql.set_erasing, (version, *scope))
        self._erase_from_forks(cursor, batch, self._touch(cursor, batch))
        self._remember(batch, None)
        return outcome

    def _callers_cursor(self, connection: Connection) -> Cursor:
        """A cursor in the open transaction of a caller's connection."""
        self._server.ensure()
        driver = connection.connection.driver_connection
        if not isinstance(driver, psycopg.Connection):
            raise ValueError("the connection given is not one to Postgres through psycopg 3")
        if not connection.in_transaction() or driver.autocommit:
            raise ValueError("the connection has no open transaction: begin one first")
        return binary_cursor(driver)

    def _touch(self, cursor: Cursor, batch: Batch, erasures: int = 1) -> list[str]:
        """What an erasure does beyond its own session: its forks, returned, are of another epoch now."""
        scope = {"namespace": batch.namespace, "session_id": batch.session_id}
        forks: list[str] = []
        while True:
            found = [row[0] for row in cursor.execute(self._sql.descendants, scope)]
            if len(found) == len(forks):
                break
            forks = found
            # While we waited for a lock, somebody may have forked what we are about to lock.
            cursor.execute(self._sql.locked_forks, (batch.namespace, text_array(forks)))
        for _ in range(erasures if forks else 0):
            cursor.execute(self._sql.touch, (batch.namespace, text_array(forks)))
        cursor.execute(self._sql.forget, (batch.namespace, text_array([batch.session_id, *forks])))
        return forks

    def _erase_from_forks(self, cursor: Cursor, whose: Batch, forks: Sequence[str]) -> None:
        """Erase what the forks of an erased session say of it; those are held."""
        namespace, types = whose.namespace, text_array(DESCRIBING)
        found = cursor.execute(self._sql.parents, (namespace, text_array(forks))) if forks else ()
        ordered = parents_first(whose.session_id, {row[0]: row[1] for row in found})
        for start in range(0, len(ordered), _FORKS_AT_ONCE):
            some = text_array(ordered[start : start + _FORKS_AT_ONCE])
            rows = cursor.execute(self._sql.describing, (some, namespace, types)).fetchall()
            self._erase_handed_down(cursor, namespace, rows)

    def _erase_handed_down(self, cursor: Cursor, namespace: str, rows: Sequence[Any]) -> None:
        """Erase what rows that describe forks, each with its session, have of where those come from."""
        erased: list[Any] = []
        listings: list[tuple[str | None, ...]] = []
        for fork, some in groupby(rows, key=itemgetter(19)):
            gone, listing = handed_down(some)
            erased += gone
            if gone:
                listings.append((fork, *listing.values()))
        if erased:
            commits = bytea_array([chain.payload_commit(row[17], row[14], row[15]) for row in erased])
            places = text_array([row[19] for row in erased]), int8_array([row[0] for row in erased])
            cursor.execute(self._sql.erase, (*places, commits, namespace))
            columns = map(text_array, zip(*listings, strict=True))
            cursor.execute(self._sql.relist, (*columns, namespace))

    def fork(self, batch: Batch, origin: Origin) -> Landed | Refused | None:
        """See Store."""
        self._server.ensure()

        def work(session: Session, bases: list[Head]) -> Landed | Refused | None:
            cursor, namespace = session.cursor, batch.namespace
            parent = cursor.execute(self._sql.parent_head, (namespace, origin.parent)).fetchone()
            if parent is None or parent[5] == "deleted" or parent[4] != origin.epoch:
                return None
            owner = (namespace, origin.owner)
            place = (*owner, *owner, origin.version - 1, origin.version, 1)
            row = cursor.execute(self._sql.rows.by_bytes, place).fetchone()
            if row is None:
                said = f"version {origin.version} of session {origin.owner!r} is not there"
                raise missing(said, self._server.hides_rows(cursor))
            head = fork_head(batch, origin, parent[4], row[18], row[8])
            linked = link(batch, head, self._clock.now_us())
            bases.append(head)
            forked = (*_created(batch, linked), origin.parent, origin.version, origin.owner)
            values = (*forked, linked.head.at_us, head.at_us)
            rows = cursor.execute(self._sql.fork, (*values, *_row_values(batch, head, linked))).fetchall()
            if not rows:
                self._server.check_writer(cursor)
                return Refused(head)
            return landed(batch, linked, max(row[0] for row in rows))

        return self._transact(work)

    def adopt(self, adoption: Adoption) -> bool:
        """See Store."""
        self._server.ensure()
        whose, parent = adoption.whose, adoption.fork_parent
        scope = (adoption.namespace, adoption.session_id)

        def work(session: Session, bases: list[Head]) -> bool | None:
            cursor = session.cursor
            self._server.positions.check(*session)
            row = cursor.execute(self._sql.locked_head, scope).fetchone()
            if (Head(*row[:7]) if row else None) != adoption.base:
                return None
            if row is None and parent is not None:
                begun = cursor.execute(self._sql.parent_head, (scope[0], parent)).fetchone()
                if begun is None or begun[4] != adoption.parent_epoch:
                    return None
            bases.append(adoption.base or unknown_head(whose))
            if adoption.base is not None and adoption.base.status == "deleted":
                self._erase_on(cursor, scope, 0, whole=True)
            if not self._adopt_head(cursor, adoption):
                self._server.check_writer(cursor)
                return None
            if self._server.row_security:
                pairs = zip(adoption.linked.rows, adoption.commits, strict=True)
                cursor.executemany(self._sql.insert, [(*scope, *row, commit) for row, commit in pairs])
            else:
                _adopt_rows(cursor, self._sql.adopt, adoption)
            if adoption.erasures:
                self._erase(cursor, scope, adoption.erase_before, whole=True)
                forks = self._touch(cursor, whose, adoption.erasures)
                if adoption.erase_before:
                    self._erase_from_forks(cursor, whose, forks)
            self._remember(whose, None)
            return True

        return bool(self._server.in_transaction(work))

    def _adopt_head(self, cursor: Cursor, adoption: Adoption) -> bool:
        """False if somebody else has just created the session, or the schema is closed."""
        linked = adoption.linked
        if adoption.base is not None:
            place = (adoption.namespace, adoption.session_id)
            cursor.execute(self._sql.move_locked, (*_rewritten(linked), *place))
            return cursor.rowcount == 1
        values = list(_created(adoption.whose, linked))
        values[10] = adoption.created_us
        origin = (adoption.fork_parent, adoption.fork_version, adoption.fork_owner)
        cursor.execute(self._sql.adopt_head, (*values, *origin))
        return cursor.rowcount == 1

    def _head_for(self, batch: Batch, base: Base) -> Head:
        """The head to link to, from what is at hand: the guard decides whether it is the right one."""
        if isinstance(base, Head):
            return base
        with self._heads_lock:
            head = self._heads.get((batch.namespace, batch.session_id))
        if head is not None and base in (None, head.version):
            return head
        # A session that must be new is tried without asking.
        return unknown_head(batch) if base == 0 else self._read_head(batch)

    def _read_head(self, batch: Batch) -> Head:
        head = self.head(batch.namespace, batch.session_id)
        if head is not None:
            self._remember(batch, head)
        return head or unknown_head(batch)

    def _remember(self, batch: Batch, head: Head | None) -> None:
        with self._heads_lock:
            if head is None:
                self._heads.pop((batch.namespace, batch.session_id), None)
                return
            known = self._heads.get((batch.namespace, batch.session_id))
            if known is None or known.version <= head.version:  # Another thread may have been faster.
                self._heads[batch.namespace, batch.session_id] = head

    def _statement(self, batch: Batch, head: Head, linked: Linked) -> tuple[str, tuple[Any, ...]]:
        """The guarded append behind a head, and its values."""
        rows = _row_values(batch, head, linked)
        scope = (batch.namespace, batch.session_id)
        if head.version == 0:
            return self._sql.create, (*_created(batch, linked), linked.head.at_us, head.at_us, *rows)
        guard = (*scope, *_moved(head), linked.head.at_us)
        key = batch.idempotency_key
        unused = () if key is None else (*scope, key)
        if batch.user_id is not None:
            statement = self._sql.append_owned if key is None else self._sql.append_owned_keyed
            return statement, (*_rewritten(linked), *guard, batch.user_id, *unused, *rows)
        if rewrites_listing(linked, head):
            statement = self._sql.append_listing if key is None else self._sql.append_listing_keyed
            return statement, (*_rewritten(linked), *guard, *unused, *rows)
        statement = self._sql.append if key is None else self._sql.append_keyed
        return statement, (*_moved(linked.head), *guard, *unused, *rows)

    def _locked(self, session: Session, bases: list[Head], batch: Batch, base: Base) -> Landed | Refused:
        """An attempt that holds the head row, so that a busy session starves nobody."""
        row = session.cursor.execute(self._sql.locked_head, (batch.namespace, batch.session_id)).fetchone()
        head, user_id = (Head(*row[:7]), row[7]) if row else (unknown_head(batch), None)
        if refuses(batch, base, head, user_id) or _barred(session.cursor, self._sql, batch, head) is not None:
            return Refused(head if base is None else base)
        if self._is_erasing(session.cursor, batch, head):
            return Refused(head)
        bases.append(head)
        outcome = self._write(session.cursor, batch, head)
        self._remember(batch, outcome.head if isinstance(outcome, Landed) else None)
        return outcome

    def _joined(
        self, cursor: Cursor, batch: Batch, base: Base, held: Sequence[Any] | None
    ) -> Landed | Refused:
        """An attempt in the caller's transaction: no cache of this process is read or written."""
        while True:
            scope = batch.namespace, batch.session_id
            row = held or cursor.execute(self._sql.joined_head, scope).fetchone()
            level = row[8] if row else cursor.execute(sql.POSTGRES_ISOLATION).fetchall()[0][0]
            if level != "read committed":
                raise ValueError(
                    f"the transaction is {level.upper()}: append(connection=) needs READ COMMITTED"
                )
            head, user_id = (Head(*row[:7]), row[7]) if row else (unknown_head(batch), None)
            if refuses(batch, base, head, user_id) or _barred(cursor, self._sql, batch, head) is not None:
                return Refused(head if base is None else base)
            if head.status == "deleted":
                self._erase_on(cursor, (batch.namespace, batch.session_id), 0, whole=True)
            answer = self._write(cursor, batch, head)
            if isinstance(answer, Landed) or row is not None or base is not None:
                return answer
            # Somebody created the session meanwhile: its head is there now, to be held.

    def _write(self, cursor: Cursor, batch: Batch, head: Head) -> Landed | Refused:
        while True:
            linked = link(batch, head, self._clock.now_us())
            statement, values = self._statement(batch, head, linked)
            if rows := cursor.execute(statement, values).fetchall():
                return landed(batch, linked, max(row[0] for row in rows))
            self._server.check_writer(cursor)
            if not self._clock.is_ahead(_server_us(cursor)):
                return Refused(head)

    def _many(
        self, session: Session, bases: list[Head], batches: Sequence[tuple[Batch, Base]]
    ) -> list[Landed] | None:
        """All batches with their heads locked: a statement for new heads, one per moved head, one COPY."""
        cursor, namespace = session.cursor, batches[0][0].namespace
        ids = text_array([batch.session_id for batch, _ in batches])
        rows = cursor.execute(self._sql.locked_heads, (namespace, ids)).fetchall()
        known = {row[0]: Head(*row[1:8]) for row in rows}
        users = {row[0]: row[8] for row in rows}
        linked: list[Linked] = []
        for batch, base in batches:
            head = known.get(batch.session_id) or unknown_head(batch)
            user_id = users.get(batch.session_id)
            if refuses(batch, base, head, user_id) or _barred(cursor, self._sql, batch, head) is not None:
                return None
            if self._is_erasing(cursor, batch, head):
                return None
            bases.append(head)
            linked.append(link(batch, head, self._clock.now_us()))
        if not self._write_heads(session, batches, known, linked):
            self._server.check_writer(cursor)
            return None
        if self._server.row_security:
            places = [(namespace, batch.session_id) for batch, _ in batches]
            rows = [(*at, *row, None) for at, one in zip(places, linked, strict=True) for row in one.rows]
            cursor.executemany(self._sql.insert, rows)
        else:
            _copy(cursor, self._sql.copy, [batch for batch, _ in batches], linked)
        last = int8_array([one.head.version for one in linked])
        positions = cursor.execute(self._sql.positions, (ids, last, namespace)).fetchall()
        if len(positions) != len(batches):
            raise missing("what was just appended is not there", self._server.hides_rows(cursor))
        for batch, _ in batches:
            self._remember(batch, None)
        if self._clock.is_ahead(positions[0][1]):
            return None
        return [
            landed(batch, one, row[0])
            for (batch, _), one, row in zip(batches, linked, positions, strict=True)
        ]

    def _write_heads(
        self,
        session: Session,
        batches: Sequence[tuple[Batch, Base]],
        known: dict[str, Head],
        linked: Sequence[Linked],
    ) -> bool:
        """False if somebody else has just created one of the new sessions, or the schema is closed."""
        new = [(batch, one) for (batch, _), one in zip(batches, linked, strict=True)
               if batch.session_id not in known]  # fmt: skip
        if new:
            columns = list(zip(*(_created(batch, one)[1:] for batch, one in new), strict=True))
            session.cursor.execute(self._sql.create_heads, (new[0][0].namespace, *_head_arrays(columns)))
            if session.cursor.rowcount != len(new):
                return False
        moved = [
            (*_rewritten(one), batch.namespace, batch.session_id)
            for (batch, _), one in zip(batches, linked, strict=True)
            if batch.session_id in known
        ]
        if moved:
            session.cursor.executemany(self._sql.move_locked, moved)
            return session.cursor.rowcount == len(moved)
        return True

    def _erase(
        self, cursor: Cursor, scope: tuple[str, str], before: int, after: int = 0, *, whole: bool
    ) -> Slice:
        """Erase the content of the rows before a tombstone: all of them, or a slice."""
        count = 0
        while whole or count < SLICE_ROWS:
            values = (*scope, after, before, SLICE_ROWS)
            last, some = cursor.execute(self._sql.erasable, values).fetchall()[0]
            if last is None:
                return Slice(before, False)
            if count and not whole:
                break
            cursor.execute(self._sql.erase_range, (*scope, after, last))
            if cursor.rowcount != some:
                raise StoreError(f"{cursor.rowcount} of {some} events were erased; nothing was")
            after, count = last, count + some
        return Slice(after, True)

    def _erase_on(self, cursor: Cursor, scope: tuple[str, str], after: int, *, whole: bool) -> Slice:
        """A slice of what a deletion has left above a version, or all of it; the session is held then."""
        row = cursor.execute(self._sql.erasing, scope).fetchone()
        if row is None or row[0] is None:
            return Slice(0, False)
        done = self._erase(cursor, scope, row[0], after, whole=whole)
        if not done.left:
            cursor.execute(self._sql.set_erasing, (None, *scope))
        return done

    def _is_erasing(self, cursor: Cursor, batch: Batch, head: Head) -> bool:
        """Whether the deletion of a session has something left to do: it does not begin again before."""
        if head.status != "deleted":
            return False
        row = cursor.execute(self._sql.erasing, (batch.namespace, batch.session_id)).fetchone()
        return row is not None and row[0] is not None

    # --------------------------------------------------------------------------------- reading

    def head(self, namespace: str, session_id: str) -> Head | None:
        """See Store."""
        rows = self._server.query(self._sql.head, (namespace, session_id))
        return Head(*rows[0]) if rows else None

    def look_up(self, batch: Batch, base: int, count: int, *, durable: bool = False) -> Found:
        """See Store."""
        if not self._server.is_there():
            return Found(unknown_head(batch))

        def look(session: Session) -> Found:
            found = self._looked_up(session.cursor, batch, base, count)
            if found.head.version <= base:
                # Nobody came between, so it was refused for something else: for the time, perhaps.
                self._server.check_writer(session.cursor)
                self._clock.is_ahead(_server_us(session.cursor))
            return found

        found = self._server.read_durably(look) if durable else self._server.read(look)
        self._remember(batch, found.head if found.head.version else None)
        return found

    def now_us(self) -> int:
        """See Store: the server's."""
        return self._server.read(lambda session: _server_us(session.cursor))

    def _looked_up(self, cursor: Cursor, batch: Batch, base: int, count: int) -> Found:
        values: dict[str, Any] = {
            "base": base, "last": min(base + count, LARGEST), "count": len(batch.events),
            "key": batch.idempotency_key, "namespace": batch.namespace, "session_id": batch.session_id,
        }  # fmt: skip
        keyed = batch.idempotency_key is not None
        statement = self._sql.look_up_keyed if keyed else self._sql.look_up
        found = found_of(batch, cursor.execute(statement, values).fetchall())
        return found._replace(barred=_barred(cursor, self._sql, batch, found.head))

    def _barred(self, batch: Batch, head: Head) -> int | None:
        return self._server.read(lambda session: _barred(session.cursor, self._sql, batch, head))

    def rows(
        self, namespace: str, session_id: str, after: int, until: int | None, limit: int
    ) -> Rows[StoredRow]:
        """See Store."""
        last, scope = _FOREVER if until is None else until, (namespace, session_id)
        values = (*scope, *scope, after, last, min(limit, PAGE_ROWS))
        return shown(self._pages.read(self._server.query, self._sql.rows, values, scope))

    def tail(
        self, namespace: str, session_id: str, after: int, limit: int
    ) -> tuple[Head | None, Rows[StoredRow]]:
        """See Store."""
        scope, most = (namespace, session_id), min(limit, PAGE_ROWS)
        values = (after, most, *scope)
        page = self._pages.read_tail(self._server.query, self._sql.tail, values, scope, after, most)
        return shown_tail(*tail_of(page))

    def head_row(self, namespace: str, session_id: str) -> HeadRow | None:
        """See Store."""
        rows = self._server.query(self._sql.head_row, (namespace, session_id))
        return head_row_of(rows[0]) if rows else None

    def lineage(self, namespace: str, session_id: str) -> Lineage:
        """See Store."""
        scope = (namespace, session_id)
        rows = self._server.query(self._sql.parent, scope)
        parent, origin, owner = rows[0] if rows else (None, None, None)
        restores = self._server.query(self._sql.restores, scope) if rows else []
        return Lineage(parent, origin or 0, sorted(restores), owner)

    def turn_starts(self, namespace: str, session_id: str, turn: int) -> Sequence[int]:
        """See Store."""
        return [row[0] for row in self._server.query(self._sql.turn_starts, (namespace, session_id, turn))]

    def all_turn_starts(self, namespace: str, session_id: str) -> Sequence[tuple[int, int]]:
        """See Store."""
        return self._server.query(self._sql.all_turn_starts, (namespace, session_id))

    def turn_at(self, namespace: str, session_id: str, version: int) -> int:
        """See Store."""
        rows = self._server.query(self._sql.turn_at, (namespace, session_id, version))
        return rows[0][0] if rows else 0

    def marks(self, namespace: str, session_id: str, after: int, until: int) -> Rows[StoredRow]:
        """See Store."""
        scope = (namespace, session_id)
        values = (*scope, after, until, PAGE_ROWS)
        return self._pages.read(self._server.query, self._sql.marks, values, scope)

    def newest_of(
        self, namespace: str, session_id: str, types: Sequence[str], before: int
    ) -> StoredRow | None:
        """See Store."""
        rows = self._server.query(*_newest_of(self._sql, namespace, session_id, types, before))
        return shown_row(rows[0]) if rows else None

    def forks(self, namespace: str, session_id: str) -> Sequence[tuple[str, int, Any]]:
        """See Store."""
        return sorted(self._server.query(self._sql.forks, (namespace, session_id)))

    def descendants(self, namespace: str, session_id: str) -> Sequence[str]:
        """See Store."""
        scope = {"namespace": namespace, "session_id": session_id}
        return [row[0] for row in self._server.query(self._sql.descendants, scope)]

    def version_at(self, namespace: str, session_id: str, at_us: int) -> int:
        """See Store."""

        def probe(version: int) -> tuple[int, int] | None:
            rows = self._server.query(self._sql.at, (namespace, session_id, version))
            return rows[0] if rows else None

        return newest_version(self.head(namespace, session_id), at_us, probe)

    def feed_last(self) -> int:
        """See Store."""
        last: int = self._server.query(self._sql.last_position, (), absent=[(0,)])[0][0]
        return last

    def feed_bound(self, before: Bound) -> Bound:
        """See Store.

        The order of positions is not the order of commits. So: note the highest position that can
        be seen, list the transactions that have taken positions (they hold a lock on the table), and
        once those are gone, what they took is there or never will be.
        """
        if not self._server.is_there():
            return Bound(0, 0)
        if before.waiting:
            server, now = self._lockers()
            if server == before.server:
                waiting = {each: pid for each, pid in before.waiting.items() if each in now}
                return before._replace(settled=before.settled if waiting else before.end, waiting=waiting)
        else:
            self._check_feed()
        end = self.feed_last()
        if end == before.settled:
            return before
        server, now = self._lockers()
        return Bound(before.settled if now else end, end, now, server)

    def feed_held_by(self) -> Sequence[tuple[int | None, float]]:
        """See Store."""
        return [(row[0], row[1]) for row in self._server.query(self._sql.feed_held_by, ())]

    def feed(self, namespace: str, after: int, until: int, limit: int) -> Rows[tuple[str, StoredRow]]:
        """See Store."""
        values, scope = (namespace, after, until, min(limit, PAGE_ROWS)), (namespace, "")
        query = self._server.query
        try:
            page = self._pages.read(query, self._sql.feed, (namespace, *values), scope, at=1)
        except SchemaOutdated:
            page = self._pages.read(query, self._sql.older_feed, values, scope, at=1)
        return feed_of(shown(page, 1))

    def _lockers(self) -> tuple[Any, dict[str, int | None]]:
        """Which server this is, and the other transactions that may have taken positions: id and pid."""
        rows = self._server.query(self._sql.lockers, (), absent=[(False, None, None, None)])
        if rows[0][0]:
            raise FeedUnavailable("this is a standby: the feed reads from the primary")
        return rows[0][1], {row[2]: row[3] for row in rows if row[2] is not None}

    def _check_feed(self) -> None:
        if self._feed_checked:
            return
        cache = self._server.query(self._sql.sequence_cache, (), absent=[(1,)])
        if not cache or cache[0][0] != 1:
            raise FeedUnavailable("positions must be drawn one by one: the sequence has to have CACHE 1")
        self._feed_checked = True

    def feed_count(self, namespace: str, after: int, limit: int) -> int:
        """See Store."""
        values = (namespace, after, limit)
        count: int = self._server.query(self._sql.feed_count, values, absent=[(0,)])[0][0]
        return count

    def sessions(
        self, namespace: str, user_id: str | None, after: tuple[int, str] | None, limit: int
    ) -> Sequence[SessionInfo]:
        """See Store."""
        at_us, session_id = after or (_FOREVER, "")
        values = {
            "namespace": namespace, "hour": at_us // HOUR_US, "at": at_us, "session_id": session_id,
            "limit": limit, "user_id": user_id,
        }  # fmt: skip
        statement = self._sql.sessions if user_id is None else self._sql.user_sessions
        return [SessionInfo(*row) for row in self._server.query(statement, values)]

    def snapshot_head(
        self, namespace: str, session_id: str, projector: str, until: int
    ) -> StoredChunk | None:
        """See Store."""
        values = (namespace, session_id, projector, head_name(until))
        rows = self._server.query(self._sql.snapshot_head, values)
        return StoredChunk(*rows[0]) if rows else None

    def snapshot_names(self, namespace: str, session_id: str, projector: str) -> Sequence[str]:
        """See Store."""
        rows = self._server.query(self._sql.snapshot_names, (namespace, session_id, projector))
        return [row[0] for row in rows]

    def snapshot_chunks(
        self, namespace: str, session_id: str, projector: str, names: Sequence[str]
    ) -> dict[str, bytes]:
        """See Store."""
        values = (namespace, session_id, projector, text_array(names))
        return dict(self._server.query(self._sql.snapshot_chunks, values))

    def put_snapshots(self, namespace: str, projector: str, puts: Sequence[SnapshotPut]) -> list[bool]:
        """See Store."""
        self._server.ensure()
        # Everybody locks in the same order, so nobody deadlocks.
        ordered = sorted(range(len(puts)), key=lambda index: puts[index].session_id.encode())

        def work(session: Session, bases: list[Head]) -> dict[int, bool]:
            return {
                index: self._put_snapshot(session.cursor, namespace, projector, puts[index])
                for index in ordered
            }

        stored = self._server.in_transaction(work)
        return [stored[index] for index in range(len(puts))]

    def _put_snapshot(self, cursor: Cursor, namespace: str, projector: str, put: SnapshotPut) -> bool:
        if not cursor.execute(self._sql.snapshot_guard, (namespace, put.session_id, put.epoch)).fetchone():
            self._server.check_writer(cursor)
            return False
        place = (namespace, put.session_id, projector)
        names, versions, bodies = zip(*put.chunks, strict=True) if put.chunks else ((), (), ())
        if put.drop:
            cursor.execute(self._sql.drop_snapshots, (*place, text_array(put.drop)))
        arrays = (text_array(names), int8_array(versions), bytea_array(bodies))
        cursor.execute(self._sql.put_snapshot, (*place, put.epoch, said_us(), *arrays))
        return True

    def snapshot_plan(
        self, namespace: str, projector: str, after: str, limit: int
    ) -> Sequence[tuple[str, int, int, str | None]]:
        """See Store."""
        return self._server.query(self._sql.snapshot_plan, (projector, namespace, after, limit))

    def forget_snapshots(self, namespace: str, session_id: str, projectors: str, kept: str) -> int:
        """See Store."""
        self._server.ensure()
        values = (namespace, session_id, kept, projectors)

        def work(session: Session, bases: list[Head]) -> int:
            session.cursor.execute(self._sql.forget_others, values)
            return session.cursor.rowcount

        return self._server.in_transaction(work)

    def other_snapshots(self, namespace: str, session_id: str, projectors: str, kept: str) -> int:
        """See Store."""
        values = (namespace, session_id, kept, projectors)
        [[count]] = self._server.query(self._sql.other_snapshots, values, absent=[(0,)])
        return int(count)

    def namespaces(self) -> Sequence[str] | None:
        """See Store."""
        rows = self._server.query(self._sql.namespaces, (), absent=[None])
        return None if rows == [None] else [row[0] for row in rows]

    def sizes(self, namespace: str) -> tuple[int, int]:
        """See Store."""

        def read(session: Session) -> tuple[int, int]:
            with unhurried(session.connection):
                [(sessions, events)] = session.cursor.execute(self._sql.sizes, (namespace,)).fetchall()
            return sessions, int(events)

        return self._server.look(read, (0, 0))

    @contextmanager
    def snapshot(self) -> Iterator[_Snapshot]:
        """See Store."""
        with self._server.looking() as cursor:
            yield _Snapshot(cursor, self._server, self._pages)

    def differences(self) -> Sequence[Difference]:
        """See Store."""
        return self._server.read(lambda session: self._server.differences(session.cursor))

    def hides_rows(self) -> bool:
        """See Store."""
        return self._server.read(lambda session: self._server.hides_rows(session.cursor))

    def migrate(self) -> tuple[int, int]:
        """See Store."""
        return self._server.migrate()

    def notes(self) -> Sequence[str]:
        """See Store."""
        hidden = (HIDDEN,) if self._server.positions.hidden else ()
        return (*hidden, ROW_SECURITY) if self._server.row_security else hidden

    @property
    def is_open(self) -> bool:
        """See Store."""
        return self._server.is_open

    def close(self) -> None:
        """See Store."""
        self._server.close()


class _Pages:
    """Reads rows a page at a time: by rows, or by bytes where something large was met in a session."""

    def __init__(self) -> None:
        self._large: LRUCache[tuple[str, str], bool] = LRUCache(_LARGE_KNOWN)
        self._lock = threading.Lock()
        survive_forks(self)

    def forget(self) -> None:
        """In a forked child: the lock may have been held by a thread that is not here."""
        self._lock = threading.Lock()

    def read(
        self,
        query: Callable[[str, tuple[Any, ...]], list[Any]],
        statement: sql.Paged,
        values: tuple[Any, ...],
        scope: tuple[str, str],
        limit: int | None = None,
        at: int = 0,
    ) -> Rows[Any]:
        """The next page; events begin at a column, and the limit is the last of the values by default."""
        limit = values[-1] if limit is None else limit
        if scope not in self._large:
            rows = query(statement.by_rows, values)
            whole = _before_large(rows, at)
            if whole == len(rows):
                return page_of(rows, limit, at)
            with self._lock:
                self._large[scope] = True
            if whole:
                page = page_of(rows[:whole], limit, at)
                page.more = True
                return page
        return page_of(query(statement.by_bytes, values), limit, at)


    def read_tail(
        self,
        query: Callable[[str, tuple[Any, ...]], list[Any]],
        statement: sql.Paged,
        values: tuple[Any, ...],
        scope: tuple[str, str],
        after: int,
        limit: int,
    ) -> Rows[Any]:
        """As read, of head columns and events after a version; by rows, it passes over what is large."""
        if scope in self._large:
            return page_of(query(statement.by_bytes, values), limit, _HEAD_COLUMNS)
        rows = query(statement.by_rows, values)
        whole, is_complete = _before_gap(rows, after, limit)
        if is_complete:
            return page_of(rows, limit, _HEAD_COLUMNS)
        page = page_of(rows[:whole] if whole else query(statement.by_bytes, values), limit, _HEAD_COLUMNS)
        if page and page[0][_HEAD_COLUMNS] == after + 1:  # So it was no fork's first version.
            with self._lock:
                self._large[scope] = True
        page.more = page.more or whole > 0
        return page


def _before_gap(rows: list[Any], after: int, limit: int) -> tuple[int, bool]:
    """How many rows of a tail stand before the first version that was passed over, and whether none was.

    A fork's own versions may begin later than what was asked for: that looks like one.
    """
    if not rows or rows[0][0] <= after:
        return len(rows), True
    dense = sum(row[_HEAD_COLUMNS] == version for version, row in enumerate(rows, after + 1))
    return dense, dense == len(rows) and (dense == limit or after + dense == rows[0][0])


def _before_large(rows: list[Any], at: int) -> int:
    """How many rows came with what they hold, before the first one that did not."""
    hash = at + 18
    if None not in map(itemgetter(hash), rows):
        return len(rows)
    # Where there is no event at all, in the tail of a head, nothing is left out.
    return next((i for i, row in enumerate(rows) if row[hash] is None and row[at] is not None), len(rows))


def _fetched(cursor: Cursor, statement: str, values: tuple[Any, ...]) -> list[Any]:
    return cursor.execute(statement, values).fetchall()


class _Snapshot:
    """See Snapshot."""

    def __init__(self, cursor: Cursor, server: PostgresServer, pages: _Pages) -> None:
        self._cursor = cursor
        self._server = server
        self._sql = server.sql
        self._pages = pages

    def differences(self) -> Sequence[Difference]:
        return self._server.differences(self._cursor)

    def head_rows(self, namespace: str, session_id: str | None) -> Iterator[HeadRow]:
        if session_id is not None:
            rows = self._cursor.execute(self._sql.head_row, (namespace, session_id)).fetchall()
            yield from map(head_row_of, rows)
            return
        after = ""
        while rows := self._cursor.execute(self._sql.head_rows, (namespace, after, _HEADS_PAGE)).fetchall():
            yield from map(head_row_of, rows)
            after = rows[-1][0]

    def page(self, namespace: str, session_id: str, after: int, limit: int) -> Rows[StoredRow]:
        scope = (namespace, session_id)
        values = (*scope, *scope, after, _FOREVER, min(limit, PAGE_ROWS))
        query = functools.partial(_fetched, self._cursor)
        return shown(self._pages.read(query, self._sql.rows, values, scope))

    def newest_of(
        self, namespace: str, session_id: str, types: Sequence[str], before: int
    ) -> StoredRow | None:
        found = self._cursor.execute(*_newest_of(self._sql, namespace, session_id, types, before))
        return shown_row(found.fetchone())

    def orphans(self, namespace: str) -> Sequence[tuple[str, int]]:
        with unhurried(self._cursor.connection):
            return self._cursor.execute(self._sql.orphans, (namespace,)).fetchall()


def _try_link(batch: Batch, base: Base, head: Head, now_us: int) -> Linked | None:
    """Link to a head that may be behind; None if it does not take the batch."""
    if refuses(batch, base, head):
        return None
    try:
        return link(batch, head, now_us)
    except InvalidEvent:  # A turn that this head does not know of.
        return None


def _server_us(cursor: Cursor) -> int:
    now: int = cursor.execute(sql.POSTGRES_CLOCK).fetchall()[0][0]
    return now


def _newest_of(
    statements: sql.PostgresSQL, namespace: str, session_id: str, types: Sequence[str], before: int
) -> tuple[str, tuple[Any, ...]]:
    scope, values = (namespace, session_id), (namespace, session_id, before, text_array(types))
    if TOMBSTONES.issuperset(types):
        return statements.newest_tombstone, values
    return statements.newest_of, (*scope, *values)


def _barred(cursor: Cursor, statements: sql.PostgresSQL, batch: Batch, head: Head) -> int | None:
    """The first version up to this head that the batch's fence does not let it stand behind."""
    if (fence := batch.fence) is None or not is_past_fence(batch, head):
        return None
    span = (batch.namespace, batch.session_id, fence.seen, head.version)
    if fence.types:
        rows = cursor.execute(statements.of_types, (*span, text_array(fence.types))).fetchall()
    else:
        rows = cursor.execute(statements.resumed_or_ended, (*span, fence.turn, *fence.kinds)).fetchall()
    return barred_by(fence, rows)


def _row_values(batch: Batch, head: Head, linked: Linked) -> tuple[Any, ...]:
    """What the events' part of a guarded append takes: scalars, then one array per column."""
    (
        _, event_id, type, type_version, kind, turn, ref, at, actor, meta, _, codec, key_commit, payload,
        native, salt, hash,
    ) = zip(*linked.rows, strict=True)  # fmt: skip
    return (
        batch.namespace, batch.session_id, head.version, at[0], batch.idempotency_key,
        digest_array(event_id), text_array(type), int4_array(type_version), int2_array(kind),
        int8_array(turn), int8_array(ref), text_array(actor), bytea_array(meta), int2_array(codec),
        bytea_array(key_commit), bytea_array(payload), bytea_array(native), digest_array(salt),
        digest_array(hash),
    )  # fmt: skip


def _moved(head: Head) -> tuple[Any, ...]:
    """The columns of a head, in the order of the UPDATE and of its guard."""
    return (head.version, head.hash, head.turn, head.branch, head.epoch, head.status, head.at_us)


def _rewritten(linked: Linked) -> tuple[Any, ...]:
    return (*_moved(linked.head), linked.head.at_us // HOUR_US, *listing_values(linked))


def _created(batch: Batch, linked: Linked) -> tuple[Any, ...]:
    """The columns of a new head row."""
    after, listing = linked.head, linked.listing or {}
    return (
        batch.namespace, batch.session_id, *_moved(after), after.at_us // HOUR_US, after.at_us,
        *(listing.get(column) for column in LISTING),
    )  # fmt: skip


def _head_arrays(columns: Sequence[Sequence[Any]]) -> list[Any]:
    """The columns of several new head rows (without the namespace) as arrays."""
    makers: list[Callable[[Any], Any]] = [
        text_array, int8_array, bytea_array, int8_array, int8_array, int8_array, text_array, int8_array,
        int8_array, int8_array, *([text_array] * len(LISTING)),
    ]  # fmt: skip
    return [make(column) for make, column in zip(makers, columns, strict=True)]


def _copy(cursor: Cursor, statement: str, batches: Sequence[Batch], linked: Sequence[Linked]) -> None:
    """Send the rows of several sessions as one binary COPY."""
    with cursor.copy(statement) as copy:
        copy.write(_COPY_HEADER)
        for batch, one in zip(batches, linked, strict=True):
            copy.write(b"".join([copy_row(batch.namespace, batch.session_id, row) for row in one.rows]))
        copy.write(_COPY_TRAILER)


def _adopt_rows(cursor: Cursor, statement: str, adoption: Adoption) -> None:
    """Send rows of another log as one binary COPY."""
    with cursor.copy(statement) as copy:
        copy.write(_COPY_HEADER)
        for row, commit in zip(adoption.linked.rows, adoption.commits, strict=True):
            copy.write(adopted_row(adoption.namespace, adoption.session_id, row, commit))
        copy.write(_COPY_TRAILER)
