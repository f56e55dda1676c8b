"""Chat transcripts into the log: OpenAI-chat JSON lines, one conversation a line.

What a conversation is recorded as is a pure function of its line. So importing is comparing: what
is recorded already is skipped, what is new is appended, and what differs is reported.
"""

from __future__ import annotations

import re
import time
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import orjson
from msgspec.structs import replace

from kern_events.batch import event_of
from kern_events.bundle import is_header
from kern_events.codec import MAX_BATCH
from kern_events.errors import DecodeError, InvalidEvent, SessionClosed, SessionNotFound, VersionConflict
from kern_events.events import WRITERS_CLOCK, Draft, Event, Head
from kern_events.lines import MAX_LINE_BYTES, Line, Source, TooLong, lines_of
from kern_events.transcript import ORIGIN, Conversation, parse

if TYPE_CHECKING:
    from kern_events.batch import Batch
    from kern_events.log import SessionLog

MAX_PROBLEMS: Final = 1_000
"""A report lists so many problems; its counts go on."""

_GROUP_EVENTS: Final = 4_000  # in one transaction; more is not faster
_GROUP_BYTES: Final = 4 << 20
_AN_EXPORT: Final = InvalidEvent("the first line of an export of kern-events: import_events takes it", "line")
_ATTEMPTS: Final = 3  # at one conversation that others append to
_TYPES: Final = frozenset({"turn.started", "turn.completed", "message.added", "tool.called", "tool.returned"})
_ABOUT_TYPES: Final = ("session.created", "session.described")
_ABOUT: Final = (*["session.created"] * 4, "session.described")  # five, see newest_of
_DELETED: Final = ("session.deleted",) * 5
_CLOCKED_ORIGIN: Final = {**ORIGIN, WRITERS_CLOCK: None}
_LAST: Final = 2**63 - 1
_MESSAGE_TYPES: Final = ("message.added", "tool.returned")


class Problem(msgspec.Struct, frozen=True):
    """A conversation, or an exported session, that was not imported, and why.

    Attributes:
        line: The line of the file, from 1.
        kind: `bad_line` (nothing that can be recorded), `diverged` (something else is recorded),
            `no_parent` (a fork of what is neither in the file nor to be linked to) or `refused` (the
            session was closed, deleted or restored, or cannot be recorded here).
        reason: One sentence.
        session_id: The session, where the line says it.
        version: Where the session diverges: the recorded event; None if it ends before.
        message: The index of the message at fault, from 0.
    """

    line: int
    kind: str
    reason: str
    session_id: str | None = None
    version: int | None = None
    message: int | None = None


class ImportReport(msgspec.Struct):
    """What an import found and did; counted as it goes on.

    Attributes:
        conversations: Conversations read; the sum of new, extended, unchanged, diverged, refused.
        new: Recorded for the first time.
        extended: Recorded before, and longer or described otherwise now.
        unchanged: Recorded already.
        diverged: Not imported, because something else is recorded.
        refused: Not imported, because the session was closed, deleted or restored.
        bad_lines: Lines that are no conversation or hold what cannot be recorded.
        events: Events recorded by this import.
        messages: Messages in the conversations read.
        turns: Turns in them.
        tool_calls: Tool calls in them.
        tool_calls_paired: Tool calls that have their result.
        size_bytes: Bytes read.
        seconds: Time taken.
        problems: The first 1,000 conversations and lines that were not imported.
    """

    conversations: int = 0
    new: int = 0
    extended: int = 0
    unchanged: int = 0
    diverged: int = 0
    refused: int = 0
    bad_lines: int = 0
    events: int = 0
    messages: int = 0
    turns: int = 0
    tool_calls: int = 0
    tool_calls_paired: int = 0
    size_bytes: int = 0
    seconds: float = 0.0
    problems: list[Problem] = []

    @property
    def ok(self) -> bool:
        """Whether every line is recorded now."""
        return not (self.bad_lines or self.diverged or self.refused)

    @property
    def messages_per_s(self) -> float:
        """Messages read a second."""
        return self.messages / self.seconds if self.seconds else 0.0


def import_transcripts(
    log: SessionLog,
    lines: Source,
    *,
    max_line_bytes: int = MAX_LINE_BYTES,
    progress: Callable[[ImportReport], None] | None = None,
) -> ImportReport:
    """Record conversations in OpenAI chat form: `{"id", "metadata"?, "messages": [...]}` a line.

    A user message opens a turn and closes the one before it as completed; the last turn stays open.
    A tool message is the result of the latest open call of its id. Importing a line again records
    nothing, importing a longer version of it records what is new. A conversation that differs from
    what is recorded is reported and not mixed in, and so is a line that cannot be recorded exactly;
    the rest goes on.

    Many conversations share a transaction, and a long one has several. If the import is cut off, importing
    again completes it. However long the file is, about as much of it is in memory as one line takes,
    twice: a line is taken apart a megabyte at a time.

    Args:
        log: Where to; the id of a conversation becomes the id of its session.
        lines: JSON lines in UTF-8: a path, a file, or an iterable of lines. Empty ones are skipped.
        max_line_bytes: A longer line is reported as bad, and so is one with more messages than this by
            128, or with a message of more values. What is over it is never in memory.
        progress: Called after every line with the report so far.

    Returns:
        The report; `report.ok` says whether every line is recorded now.

    Raises:
        ValueError: `max_line_bytes` is less than 1.
        StoreError: The database failed. What is recorded is whole.
    """
    source = lines_of(lines, max_line_bytes)
    importer = _Importer(log, max_line_bytes)
    started = time.perf_counter()
    for number, line in enumerate(source, 1):
        importer.take(number, line)
        if progress:
            importer.report.seconds = time.perf_counter() - started
            progress(importer.report)
    importer.finish()
    importer.report.seconds = time.perf_counter() - started
    return importer.report


class _Job(NamedTuple):
    """A conversation with something to record behind `head`."""

    line: int
    conversation: Conversation
    head: Head
    batches: Iterable[Batch]  # of a long conversation, made anew whenever it is gone through
    events: int
    size_bytes: int

    @property
    def alone(self) -> bool:
        """Whether it is too much for one append."""
        return not isinstance(self.batches, list) or len(self.batches) > 1


class _Refused(Exception):
    """A conversation that differs from what is recorded, or whose session takes nothing more."""

    def __init__(
        self, reason: str, *, kind: str = "refused", version: int | None = None, message: int | None = None
    ) -> None:
        super().__init__(reason)
        self.kind = kind
        self.version = version
        self.message = message


class _Importer:
    """Takes lines, records them in groups, and counts."""

    def __init__(self, log: SessionLog, max_line_bytes: int) -> None:
        self.report = ImportReport()
        self._log = log
        self._max_line_bytes = max_line_bytes
        self._group: dict[str, _Job] = {}
        self._group_events = self._group_bytes = 0
        self._known: str | None = None  # a session that something of is recorded already

    def take(self, number: int, line: Line) -> None:
        """Record one line, now or with a later one."""
        if isinstance(line, TooLong):
            self.report.size_bytes += line.size_bytes
            self._bad(number, line.error(self._max_line_bytes))
            return
        self.report.size_bytes += len(line)
        if number == 1:
            line = line.removeprefix(BOM_UTF8)
        if not line.strip():
            return
        try:
            conversation = parse(line, self._max_line_bytes)
        except InvalidEvent as error:
            self._bad(number, _AN_EXPORT if is_header(line) else error)
            return
        if conversation.session_id in self._group:
            self.flush()
        if job := self._plan(number, conversation):
            self._enqueue(job)

    def finish(self) -> None:
        """Record what is left; what was found recorded is durable then, too."""
        self.flush()
        if self._known is not None:
            self._log._settled(self._known)

    def flush(self) -> None:
        """Record the group in one transaction; if one of it is refused, each on its own."""
        jobs = list(self._group.values())
        self._group, self._group_events, self._group_bytes = {}, 0, 0
        try:
            self._log._record_batches([(batch, job.head) for job in jobs for batch in job.batches])
        except (VersionConflict, SessionClosed):
            for job in jobs:
                self._record_alone(job)
        else:
            for job in jobs:
                self.report.events += job.events
                self._settle(job)

    def _enqueue(self, job: _Job) -> None:
        if job.alone:
            self._record_alone(job)
            return
        if self._group_bytes + job.size_bytes > self._log._max_batch_bytes:
            self.flush()
        self._group[job.conversation.session_id] = job
        self._group_events += job.events
        self._group_bytes += job.size_bytes
        if self._group_events >= _GROUP_EVENTS or self._group_bytes >= _GROUP_BYTES:
            self.flush()

    def _record_alone(self, job: _Job) -> None:
        for _ in range(_ATTEMPTS):
            try:
                self._record(job)
            except (VersionConflict, SessionClosed):
                again = self._plan(job.line, job.conversation)
                if again is None:
                    return
                job = again
            else:
                self._settle(job)
                return
        self._refuse(job.line, job.conversation, _Refused("somebody else is appending to it; import again"))

    def _record(self, job: _Job) -> None:
        head = job.head
        for batch in job.batches:
            head = self._log._record(batch, head).head
            self.report.events += len(batch.events)

    def _plan(self, line: int, conversation: Conversation) -> _Job | None:
        """What is to be recorded of a conversation; None, and counted, if nothing is."""
        try:
            head = self._log.head(conversation.session_id)
            if head.version:
                self._known = conversation.session_id
            batches = _Batches(self._log, conversation, _missing(self._log, conversation, head))
            made = list(batches) if isinstance(conversation.pieces, list) else batches
            events = size_bytes = 0
            for batch in made:  # Of a long one too: nothing of it is recorded if its end cannot be.
                events += len(batch.events)
                size_bytes += batch.size_bytes
        except InvalidEvent as error:
            self._bad(line, error, conversation.session_id)
        except _Refused as refused:
            self._refuse(line, conversation, refused)
        else:
            if events:
                return _Job(line, conversation, head, made, events, size_bytes)
            self._count(conversation)
            self.report.unchanged += 1
        return None

    def _settle(self, job: _Job) -> None:
        self._count(job.conversation)
        if job.head.version:
            self.report.extended += 1
        else:
            self.report.new += 1

    def _refuse(self, line: int, conversation: Conversation, why: _Refused) -> None:
        self._count(conversation)
        if why.kind == "diverged":
            self.report.diverged += 1
        else:
            self.report.refused += 1
        self._list(Problem(line, why.kind, str(why), conversation.session_id, why.version, why.message))

    def _bad(self, line: int, error: InvalidEvent, session_id: str | None = None) -> None:
        self.report.bad_lines += 1
        reason = error.reason if error.path == "line" else str(error)
        self._list(Problem(line, "bad_line", reason, session_id))

    def _count(self, conversation: Conversation) -> None:
        report = self.report
        report.conversations += 1
        report.messages += conversation.messages
        report.turns += conversation.turns
        report.tool_calls += conversation.tool_calls
        report.tool_calls_paired += conversation.tool_calls_paired

    def _list(self, problem: Problem) -> None:
        if len(self.report.problems) < MAX_PROBLEMS:
            self.report.problems.append(problem)


class _Missing(NamedTuple):
    """What is to be recorded of a conversation: something about it, and its drafts but for so many."""

    about: list[Draft]
    recorded: int


def _missing(log: SessionLog, conversation: Conversation, head: Head) -> _Missing:
    """What is not recorded yet; _Refused if it cannot follow what is."""
    if head.version == 0:
        created = {"session_type": "agent", **conversation.about}
        return _Missing([Draft("session.created", created, meta=ORIGIN)], 0)
    if head.status == "deleted":
        raise _Refused("the session was deleted")
    session_id = conversation.session_id
    deleted = log._store.newest_of(log.namespace, session_id, _DELETED, _LAST)
    begun = deleted[0] if deleted else 0
    try:
        recorded = (event for event in log.read(session_id, after=begun) if event.type in _TYPES)
        count, more = _compared(recorded, conversation.drafts)
        said = _said(log, session_id, begun)
    except (DecodeError, SessionNotFound) as error:
        raise _Refused(str(error)) from None
    about: list[Draft] = []
    if conversation.about and not _same(said, conversation.about):
        about = [Draft("session.described", conversation.about, meta=ORIGIN)]
    if (about or more) and head.status == "closed":
        raise _Refused("there is more to import, but the session was closed")
    if (about or more) and head.branch > begun:  # A deletion begins one as well.
        raise _Refused(f"there is more to import, but version {head.branch} restored an earlier state")
    return _Missing(about, count)


def _said(log: SessionLog, session_id: str, after: int) -> dict[str, Any]:
    """What the last import said about a session.

    The application may describe it otherwise; importing again does not undo that.
    """
    before = _LAST
    while row := log._store.newest_of(log.namespace, session_id, _ABOUT, before):
        if row[0] <= after:
            break
        event = event_of(log.namespace, session_id, row)
        if not event.erased and event.meta and {**event.meta, WRITERS_CLOCK: None} == _CLOCKED_ORIGIN:
            return {key: value for key, value in event.payload.items() if key != "session_type"}
        before = row[0]
    return {}


def _compared(recorded: Iterable[Event], drafts: Iterator[Draft]) -> tuple[int, bool]:
    """How many of the drafts are recorded, and whether there are more."""
    count = messages = 0
    for event in recorded:
        draft = next(drafts, None)
        if draft is None:
            return count, False
        if event.type != draft.type:
            reason = f"{event.type} is recorded at version {event.version}, the file has {draft.type}"
        elif not event.erased and not _same(event.payload, draft.payload):
            reason = f"another {event.type} is recorded at version {event.version}"
        else:
            count, messages = count + 1, messages + (draft.type in _MESSAGE_TYPES)
            continue
        message = messages - (draft.type == "tool.called")
        raise _Refused(
            f"message {message} differs: {reason}", kind="diverged", version=event.version, message=message
        )
    return count, next(drafts, None) is not None


def _same(recorded: Any, derived: Any) -> bool:
    # By their bytes, because to Python 1, 1.0 and True are equal.
    return bool(recorded == derived) and _sorted(recorded) == _sorted(derived)


def _sorted(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


class _Batches:
    """What is missing of a conversation, prepared: made anew whenever it is gone through.

    Raises:
        InvalidEvent: From the iterator; names the message.
    """

    def __init__(self, log: SessionLog, conversation: Conversation, missing: _Missing) -> None:
        self._log = log
        self._conversation = conversation
        self._missing = missing

    def __iter__(self) -> Iterator[Batch]:
        about, recorded = self._missing
        messages = 0
        for piece in self._conversation.pieces:
            messages += _messages(piece[:recorded])
            drafts, recorded = piece[recorded:], max(0, recorded - len(piece))
            del piece  # What is recorded already need not be in memory as well.
            if drafts:
                drafts, about = [*about, *drafts], []
            while drafts:
                batches = self._prepared(drafts[:MAX_BATCH], messages)
                messages += _messages(drafts[:MAX_BATCH])
                drafts = drafts[MAX_BATCH:]
                yield from batches
        if about:
            yield from self._prepared(about, messages)

    def _prepared(self, chunk: list[Draft], messages: int) -> list[Batch]:
        try:
            return list(map(_without_values, self._log._batches(self._conversation.session_id, chunk)))
        except InvalidEvent as error:
            raise _in_source(error, chunk, messages) from None


def _without_values(batch: Batch) -> Batch:
    """A prepared batch without what was encoded: of a text with one emoji that is four times its bytes."""
    events = [replace(event, draft=replace(event.draft, payload={})) for event in batch.events]
    return batch._replace(events=tuple(events))


def _messages(drafts: Sequence[Draft]) -> int:
    return sum(draft.type in _MESSAGE_TYPES for draft in drafts)


def _in_source(error: InvalidEvent, chunk: Sequence[Draft], messages: int) -> InvalidEvent:
    """The error with the message instead of the draft, which whoever wrote the file does not know."""
    place = re.match(r"drafts\[(\d+)\]\.(?:payload)?(.*)", error.path, re.DOTALL)
    if place is None:
        return error
    index = int(place[1])
    draft = chunk[index]
    if draft.type in _ABOUT_TYPES:
        return InvalidEvent(error.reason, place[2].removeprefix("."))
    # A call follows its message, a turn precedes it.
    message = messages + _messages(chunk[:index]) - (draft.type == "tool.called")
    return InvalidEvent(error.reason, f"messages[{message}]{place[2]}")
