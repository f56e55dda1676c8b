"""Exported sessions into a log, with the hashes that they have.

Importing is comparing: what is recorded already is skipped, what follows it is added, and what differs
is reported. A session is checked whole, line by line, before anything of it is written.
"""

from __future__ import annotations

import functools
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Final

import msgspec

from kern_events import chain, lineage
from kern_events.batch import Linked, Row, StoredRow
from kern_events.bundle import Section, is_header, namespace_of, parse, row_line
from kern_events.errors import InvalidEvent
from kern_events.events import LAST_US, Head
from kern_events.incoming import Beginning, Incoming
from kern_events.lines import MAX_LINE_BYTES, Line, Source, TooLong, lines_of
from kern_events.store.base import Adoption, AnswerLost
from kern_events.transfer import MAX_PROBLEMS, Problem

if TYPE_CHECKING:
    from kern_events.log import SessionLog

_PART_EVENTS: Final = 10_000  # in one transaction
_PART_BYTES: Final = 8 << 20
_ROW_BYTES: Final = 64 << 10  # what a line takes beside its contents, and more
_ATTEMPTS: Final = 5  # at one session that others append to


class EventsReport(msgspec.Struct):
    """What an import of exported sessions found and did; counted as it goes on.

    Attributes:
        sessions: Sessions read; the sum of new, extended, unchanged, diverged and failed.
        new: Recorded for the first time.
        extended: Recorded before in part; the rest was added.
        unchanged: Recorded already.
        diverged: Not imported, because something else is recorded.
        failed: Not imported, because a line of it is bad, its end is missing, or its parent is not in the
            file and may not be linked to.
        bad_lines: Lines that are no recorded event, or not one that can stand where it does.
        read: Events read.
        events: Events recorded by this import.
        size_bytes: Bytes read.
        seconds: Time taken.
        problems: The first 1,000 lines and sessions that were not imported.
    """

    sessions: int = 0
    new: int = 0
    extended: int = 0
    unchanged: int = 0
    diverged: int = 0
    failed: int = 0
    bad_lines: int = 0
    read: int = 0
    events: int = 0
    size_bytes: int = 0
    seconds: float = 0.0
    problems: list[Problem] = []

    @property
    def ok(self) -> bool:
        """Whether every line is recorded now."""
        return not (self.bad_lines or self.diverged or self.failed)

    @property
    def events_per_s(self) -> float:
        """Events read a second."""
        return self.read / self.seconds if self.seconds else 0.0


def import_events(
    log: SessionLog,
    lines: Source,
    *,
    max_line_bytes: int | None = None,
    link_parents: bool = False,
    progress: Callable[[EventsReport], None] | None = None,
) -> EventsReport:
    """Record what SessionLog.export gave, from the same or another log, with equal hashes.

    A session that is not there is recorded; of one that is there in part the rest is added; one that
    is there is left as it is, also if there is more of it. What differs from what is recorded is
    reported, and so is a session with a line that does not hash to what it says or could not have
    been recorded, as one later than now: nothing of it is written, the others go on. Positions are new ones.

    A session is one transaction, if it has at most 10,000 events and 8 MiB, and else several, each
    with events that go on from those before. An import that was cut off is completed by another one.

    Args:
        log: Where to; its namespace has to be the one of the events, which is part of their hashes.
        lines: What was exported: a path, a file, or an iterable of lines. Empty ones are skipped.
        max_line_bytes: A longer line is reported as bad; what is over it is never in memory. By default
            16 MiB, or what the largest event that the log takes can come to.
        link_parents: Whether a fork whose parent is not in the file may go on from one that is recorded
            here already, if both are of the same user or of none. Its hash is all that a file has to know
            of that parent, and whoever reads the fork reads what was said there. Without it, a parent has
            to be in the same file, in front of the fork, as `export` writes it.
        progress: Called after every line with the report so far.

    Returns:
        The report; `report.ok` says whether every line is recorded now.

    Raises:
        InvalidEvent: The first line does not say that this is an export that can be read, or it is
            of another namespace. Nothing was written.
        ValueError: `max_line_bytes` is less than 1.
        StoreError: The database failed. What is recorded is whole.
    """
    limit = line_limit(log) if max_line_bytes is None else max_line_bytes
    source = lines_of(lines, limit)
    importer = _Importer(log, link_parents, limit)
    started = time.perf_counter()
    try:
        for number, line in enumerate(source, 1):
            importer.take(number, line)
            if progress:
                importer.report.seconds = time.perf_counter() - started
                progress(importer.report)
        importer.finish()
        importer.settle()
    finally:
        importer.close()
    importer.report.seconds = time.perf_counter() - started
    return importer.report


def line_limit(log: SessionLog) -> int:
    """How long a line may be by default: 16 MiB, or what the log's largest event can come to."""
    return max(MAX_LINE_BYTES, 4 * log._max_payload_bytes + _ROW_BYTES)


class _Failed(Exception):
    """A session that is not imported: `kind` and `version` as in Problem."""

    def __init__(self, reason: str, *, kind: str = "refused", version: int | None = None) -> None:
        super().__init__(reason)
        self.kind = kind
        self.version = version


class _Importer:
    """Takes lines, records a session when its last one was read, and counts."""

    def __init__(self, log: SessionLog, link_parents: bool, max_line_bytes: int) -> None:
        self.report = EventsReport()
        self._log = log
        self._max_line_bytes = max_line_bytes
        self._link_parents = link_parents
        self._whole: dict[str, int] = {}  # the sessions that are in the file from version 1, and up to where
        self._begun = False
        self._session: _Session | None = None
        self._recorded: str | None = None  # a session that was found to be recorded

    def take(self, number: int, line: Line) -> None:
        """One line of the file, from 1."""
        if isinstance(line, TooLong):
            self.report.size_bytes += line.size_bytes
            if not self._begun:
                raise line.error(self._max_line_bytes)
            self._bad(number, line.error(self._max_line_bytes))
            return
        self.report.size_bytes += len(line)
        if not line.strip():
            return
        if not self._begun:
            _check_namespace(line, self._log.namespace)
            self._begun = True
            return
        try:
            found = parse(line)
            if isinstance(found, Section):
                self._begin(number, found)
            else:
                self._add(found)
        except InvalidEvent as error:
            self._bad(number, error)

    def finish(self) -> None:
        """Record the session that was read last."""
        session, self._session = self._session, None
        if session is None or session.incoming is None:
            return  # There is none, or it is reported already.
        with session:
            try:
                self._record(session, session.incoming)
            except _Failed as failed:
                self._fail(session, failed)

    def settle(self) -> None:
        """What was found to be recorded is durable from here on."""
        if self._recorded is not None:
            self._log._settled(self._recorded)

    def close(self) -> None:
        """Let go of what was read."""
        if self._session:
            self._session.give_up()

    def _begin(self, number: int, section: Section) -> None:
        self.finish()
        self.report.sessions += 1
        self._session = session = _Session(number, section, self._log)
        try:
            self._check_parent(section)
            session.begin()
        except _Failed as failed:
            self._fail(session, failed)

    def _check_parent(self, section: Section) -> None:
        """_Failed if the file does not have what a session goes on from, and that may not be elsewhere.

        This says nothing of whether it is.
        """
        if section.fork_parent is None or self._has_parent(section) or self._link_parents:
            return
        raise _Failed(
            f"what it was forked from is not in the file up to version {section.origin}: export both, or "
            "use link_parents (--link-parents) where it is recorded here and of the same user",
            kind="no_parent",
        )

    def _has_parent(self, section: Section) -> bool:
        return self._whole.get(section.fork_parent or "", 0) >= section.origin

    def _add(self, row: StoredRow) -> None:
        if self._session is None:
            raise InvalidEvent("an event of no session", "line")
        self.report.read += 1
        self._session.add(row)

    def _bad(self, number: int, error: InvalidEvent) -> None:
        """A line that is none; the session that it stands in is not imported."""
        self.report.bad_lines += 1
        session = self._session
        self._list(
            Problem(number, "bad_line", _reason(error), session.section.session_id if session else None)
        )
        if session and session.incoming:
            self.report.failed += 1
            session.give_up()

    def _record(self, session: _Session, incoming: Incoming) -> None:
        """Add what is missing, until all is there."""
        session.check()
        whole = session.section.fork_parent is None or self._has_parent(session.section)
        if not whole:
            session.check_owner()
        first: Head | None = None
        known: int | None = None
        for _ in range(_ATTEMPTS):
            head = session.head()
            if known is None:
                first, known = head, session.known(head)
            self.report.events += session.known(head) - known
            known = session.known(head)
            if head is not None and session.is_there(head):
                break
            with suppress(AnswerLost):  # Then the next look tells.
                all(map(self._log._store.adopt, session.parts(head)))
        else:
            raise _Failed("somebody else is appending to it; import again")
        self._recorded = session.section.session_id
        if whole:
            self._whole[session.section.session_id] = incoming.version
        if first is None:
            self.report.new += 1
        elif session.known(first) < incoming.version:
            self.report.extended += 1
        else:
            self.report.unchanged += 1

    def _fail(self, session: _Session, failed: _Failed) -> None:
        if failed.kind == "diverged":
            self.report.diverged += 1
        else:
            self.report.failed += 1
        self._list(
            Problem(session.line, failed.kind, str(failed), session.section.session_id, failed.version)
        )
        session.give_up()

    def _list(self, problem: Problem) -> None:
        if len(self.report.problems) < MAX_PROBLEMS:
            self.report.problems.append(problem)


class _Session:
    """A session of the file: its rows, checked, in memory or in a temporary file if they are many."""

    def __init__(self, line: int, section: Section, log: SessionLog) -> None:
        self.line = line
        self.section = section
        self.incoming: Incoming | None = None
        """None if it is not to be imported."""
        self._log = log
        self._beginning: Beginning | None = None
        self._rows: list[StoredRow] = []
        self._size_bytes = 0
        self._part_bytes = min(_PART_BYTES, log._max_batch_bytes)
        self._file: IO[bytes] | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self.give_up()

    def begin(self) -> None:
        """Find what its first row goes on from; _Failed if that is not there."""
        self._beginning = _beginning(self._log, self.section)
        self.incoming = self._walk(self._beginning, self._log._store.now_us)

    def give_up(self) -> None:
        """It takes no more rows, and forgets those that it has."""
        self.incoming = None
        self._rows.clear()
        if self._file:
            self._file.close()
            self._file = None

    def add(self, row: StoredRow) -> None:
        """The next row; InvalidEvent if it cannot stand there."""
        if self.incoming is None:
            return
        self.incoming.take(row)
        if self._file is None:
            self._rows.append(row)
            self._size_bytes += _size_bytes(row)
            if len(self._rows) > _PART_EVENTS or self._size_bytes > self._part_bytes:
                self._spill()
        else:
            self._file.write(row_line(row))

    def check(self) -> None:
        """Whether it has come to its end; _Failed if not."""
        assert self.incoming is not None
        try:
            self.incoming.finish()
        except InvalidEvent as error:
            raise _Failed(_reason(error)) from None
        last, said = self.incoming.version, self.section.version
        if last < said:
            raise _Failed(f"its events end at version {last} of {said}: the file is cut off")

    def check_owner(self) -> None:
        """Whether it is of the same user as the recorded session that it goes on from; _Failed if not."""
        assert self.incoming is not None
        row = self._log._store.head_row(self._log.namespace, self.section.fork_parent or "")
        if (row.described.get("user_id") if row else None) != self.incoming.listing["user_id"]:
            raise _Failed("what it was forked from is of another user", kind="no_parent")

    def head(self) -> Head | None:
        """Where it stands in the log."""
        head = self._log.head(self.section.session_id)
        return head if head.version else None

    def known(self, head: Head | None) -> int:
        """Up to which version of the file it is recorded, if the log has the same."""
        assert self.incoming is not None
        return min(head.version, self.incoming.version) if head else self.section.origin

    def is_there(self, head: Head) -> bool:
        """Whether all of it is recorded; _Failed if something else is."""
        assert self.incoming is not None
        last = self.known(head)
        if not self._same(last):
            version = self._first_difference(last)
            reason = f"something else is recorded at version {version:,}"
            raise _Failed(reason, kind="diverged", version=version)
        if last < self.incoming.partly_erased and last > self.section.origin:
            raise _Failed("a part of it was erased since, which this release cannot do here")
        return last == self.incoming.version

    def parts(self, head: Head | None) -> Iterator[Adoption]:
        """What is missing behind a head, a transaction each."""
        assert self._beginning is not None and self.incoming is not None
        epoch = head.epoch if head else _epoch_of(self._log, self.section.fork_parent)
        if self._file is None:
            after = head.version if head else 0
            yield self._part(self.incoming, head, epoch, [row for row in self._rows if row[0] > after])
            return
        walk, rows, size_bytes = self._walk(self._beginning, lambda: LAST_US), [], 0
        for row in self._replayed(self._file):
            walk.take(row)
            if head is not None and row[0] <= head.version:
                continue
            rows.append(row)
            size_bytes += _size_bytes(row)
            if len(rows) >= _PART_EVENTS or size_bytes > self._part_bytes:
                yield (part := self._part(walk, head, epoch, rows))
                head, epoch, rows, size_bytes = part.linked.head, part.linked.head.epoch, [], 0
        if rows:
            yield self._part(walk, head, epoch, rows)

    def _replayed(self, file: IO[bytes]) -> Iterator[StoredRow]:
        file.seek(0)
        for line in file:
            row = parse(line)
            assert not isinstance(row, Section)
            yield row

    def _part(self, walk: Incoming, base: Head | None, epoch: int, rows: Sequence[StoredRow]) -> Adoption:
        before = base.version if base else self.section.origin
        erasures = sum(version > before for version in walk.tombstones)
        made: list[Row] = [(row[0], *row[2:16], *row[17:]) for row in rows]
        return Adoption(
            self._log._scope_of(self.section.session_id),
            base,
            Linked(made, walk.head(epoch + erasures), walk.listing),
            [row[16] for row in rows],
            walk.created_us,
            self.section.fork_parent,
            self.section.fork_version,
            self._beginning.owner if self._beginning else None,
            parent_epoch=epoch,
            erasures=erasures,
            erase_before=walk.deleted if walk.deleted > before else 0,
        )

    def _walk(self, beginning: Beginning, now_us: Callable[[], int]) -> Incoming:
        limit = self._log._max_payload_bytes
        return Incoming(self._log.namespace, self.section.session_id, beginning, limit, now_us)

    def _spill(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the session is.
        self._file.writelines(map(row_line, self._rows))
        self._rows.clear()

    def _same(self, version: int) -> bool:
        """Whether the log has what the file has up to a version."""
        assert self.incoming is not None
        place = (self._log.namespace, self.section.session_id, version - 1, version, 1)
        rows = self._log._store.rows(*place)
        return bool(rows) and rows[0][18] == self.incoming.hash_at(version)

    def _first_difference(self, last: int) -> int:
        # Hashes go on from each other, so once they differ they always do.
        versions = range(self.section.origin + 1, last + 1)
        return self.section.origin + 1 + bisect_left(versions, True, key=lambda each: not self._same(each))


def _beginning(log: SessionLog, section: Section) -> Beginning:
    store, namespace, parent = log._store, log.namespace, section.fork_parent
    scope = chain.scope(namespace, section.session_id)
    if parent is None:
        return Beginning(Head(0, chain.genesis(scope)))
    version, head = section.origin, store.head(namespace, parent)
    owner = lineage.owner_of(store, namespace, parent, version)
    rows = store.rows(namespace, owner, version - 1, version, 1)
    if head is None or not rows:
        raise _Failed(
            f"version {version} of the session that it was forked from is not recorded", kind="no_parent"
        )
    genesis = chain.fork_genesis(scope, parent, version, rows[0][18])

    def turn_at(version: int) -> int:
        return lineage.turn_at(store, namespace, parent, version)

    start = Head(version, genesis, turn_at(version), at_us=rows[0][8])
    @functools.cache  # The rows of a fork can be many.
    def erased() -> bool:
        return lineage.is_handed_down_erased(store, namespace, parent, version)

    return Beginning(start, turn_at, parent, owner, erased)


def _epoch_of(log: SessionLog, parent: str | None) -> int:
    """The epoch that a session begins with: its parent's."""
    head = None if parent is None else log._store.head(log.namespace, parent)
    return head.epoch if head else 0


def _check_namespace(line: bytes, namespace: str) -> None:
    if not is_header(line):
        raise InvalidEvent("not an export of kern-events; import_transcripts takes conversations", "line 1")
    found = namespace_of(line)
    if found != namespace:
        raise InvalidEvent(
            f"the file is of namespace {found!r}, which its hashes hold; the log is of {namespace!r}",
            "line 1",
        )


def _reason(error: InvalidEvent) -> str:
    return error.reason if error.path == "line" else str(error)


def _size_bytes(row: StoredRow) -> int:
    return sum(len(row[column]) for column in (10, 14, 15) if row[column] is not None)
