"""One turn as it happens: what a recorder's calls record, and how the turn is closed.

TurnState knows where the turn stands and what is to be committed; TurnRecorder commits it, and its
async twin in aio.py awaits the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import msgspec

from kern_events.batch import Fence
from kern_events.codec import MAX_BATCH, check_id
from kern_events.errors import AppendUnresolved, InvalidEvent, KernError, VersionConflict
from kern_events.events import (
    Draft,
    Head,
    Kind,
    Receipt,
    is_nested,
    message,
    new_event_id,
    state_changed,
    tool_called,
    tool_failed,
    tool_returned,
)
from kern_events.frozen import DICTS, Json, thaw

if TYPE_CHECKING:
    from kern_events.batch import Batch
    from kern_events.log import SessionLog
    from kern_events.store.base import Landed

logger: Final = logging.getLogger("kern_events")
_MAX_ERROR_CHARS: Final = 10_000
_MAX_BUFFER: Final = MAX_BATCH - 2  # with its end, and a session.created
_END_BYTES: Final = 64 << 10  # what is left for them
_RUN_IDS: Final = ("run_id", "parent_run_id")
_TAKING: Final = (int(Kind.TURN_END), int(Kind.TURN_RESUME))  # plain, without the cost of an enum
_TAKING_NESTED: Final = (_TAKING[1], _TAKING[1])  # the turn that it is counted to may end before it does
_CANCELLED: Final = (KeyboardInterrupt, asyncio.CancelledError, GeneratorExit)


def opening_draft(**fields: str | None) -> Draft:
    """The `session.created` that a turn records first where the session is new."""
    payload = {key: value for key, value in fields.items() if value is not None}
    return Draft("session.created", {"session_type": "agent", **payload})


def outcome(error: BaseException | None) -> Draft:
    """The event that closes a turn which was left with this error, or with none."""
    if error is None:
        return Draft("turn.completed", {})
    if isinstance(error, _CANCELLED):
        return Draft("turn.cancelled", {})
    text = str(error)
    shown = text[:_MAX_ERROR_CHARS].encode("utf-8", "backslashreplace").decode()
    details: dict[str, Any] = {"type": type(error).__name__, "message": shown}
    if len(text) > _MAX_ERROR_CHARS:
        details["omitted_chars"] = len(text) - _MAX_ERROR_CHARS
    return Draft("turn.failed", {"error": details})


def completed(usage: Mapping[str, Any] | None) -> Draft:
    """The end of a turn that did what it should, with its token usage."""
    return Draft("turn.completed", {} if usage in (None, {}) else {"usage": thaw(usage)})


def failed(error: str) -> Draft:
    """The end of a turn that failed without an exception."""
    return Draft("turn.failed", {"error": {"message": error}})


def paused(requirements: Json) -> Draft:
    """The end of a turn's work, but not of the turn."""
    return Draft("turn.paused", {} if requirements is None else {"requirements": thaw(requirements)})


@contextmanager
def telling() -> Iterator[None]:
    """Log what kept a turn from its end, where the error that left its block says more."""
    try:
        yield
    except KernError as failure:
        # Not exc_info: its context may hold what was said.
        logger.warning("the end of a turn could not be recorded: %s", failure)


class Claim(NamedTuple):
    """A turn to be continued: right behind the head at which it was seen to wait, or not at all."""

    turn: int
    expected: Head


Claims = Callable[[VersionConflict | None], Claim]
"""Says which turn to continue; asked again, with the conflict, where somebody came between. May raise it."""


def claim_at(expected: Head, turn: int) -> Claims:
    """The claim of a turn that the caller names, at a head that the caller has seen."""
    def claims(conflict: VersionConflict | None) -> Claim:
        if conflict is not None:
            raise conflict
        return Claim(turn, expected)

    return claims


class TurnState:
    """Where a turn stands: its number, the branch it began on, and what waits to be committed."""

    def __init__(
        self,
        log: SessionLog,
        session_id: str,
        *,
        started: dict[str, Any],
        opening: Draft,
        buffered: bool,
        actor: str | None,
        meta: Mapping[str, Any] | None,
        claims: Claims | None = None,
    ) -> None:
        self.session_id = session_id
        self.number: int | None = None
        self.receipt: Receipt | None = None
        self.closed = False
        self._log = log
        self._opening = opening
        self._started = started
        self._actor = actor
        self._meta = thaw(meta) if meta else None
        self._branch: int | None = None
        self._claims = claims
        self._buffer: list[Draft] | None = [] if buffered else None
        self._buffer_bytes = 0
        self._own: set[bytes] = set()  # the ids of its own ends and resumptions, recorded or not
        self._entered = False
        self._beginning: Batch | None = None

    def _enter(self) -> None:
        if self._entered:
            raise RuntimeError("a turn is entered once; begin another one with turn()")
        self._entered = True

    def _check_open(self) -> None:
        if not self._entered:
            raise RuntimeError("the turn has not begun: enter its block, as in `with log.turn(...) as turn:`")
        if self.closed:
            raise RuntimeError("this turn is closed")

    def _started_batch(self) -> Batch | None:
        """What begins the turn; None if it is buffered."""
        self._beginning = self._batch([Draft("turn.started", self._started)])
        return self._beginning

    def _resume(self, claims: Claims) -> None:
        """Record `turn.resumed` at once, also in a buffered turn: of those who try, one continues it."""
        conflict: VersionConflict | None = None
        draft = Draft("turn.resumed", {})
        while True:
            claim = claims(conflict)
            self.number, self._branch = claim.turn, claim.expected.branch
            self._started = self._log._turn_started(self.session_id, claim.expected, claim.turn)
            self._beginning = batch = self._prepared(self._stamped([draft]))
            try:
                self.receipt = self._log._record(batch, claim.expected).receipt
            except VersionConflict as error:
                conflict = error
            else:
                return

    def _note_branch(self) -> None:
        """A buffered turn records nothing yet, but a restore from now on abandons it too."""
        for field, value in self._opening.payload.items():
            check_id(value, field)  # So that a bad one is refused here.
        user_id = self._opening.payload.get("user_id")
        self._branch = self._log._head_for(self.session_id, user_id).branch

    def _stamped(self, drafts: Sequence[Draft]) -> list[Draft]:
        return [
            msgspec.structs.replace(
                draft,
                turn=self.number,
                actor=draft.actor or self._actor,
                meta=draft.meta or self._meta,
                payload=self._with_agent(draft) if draft.type == "state.changed" else draft.payload,
            )
            for draft in drafts
        ]

    def _with_agent(self, draft: Draft) -> dict[str, Any]:
        """The payload of a `state.changed`; of an agent that it does not name, it is the turn's own."""
        payload, agent_id = draft.payload, self._started.get("agent_id")
        if agent_id is None or type(payload) not in DICTS or payload.get("scope") != "agent":
            return payload
        return {**payload, "agent_id": payload.get("agent_id") or agent_id}

    def _batch(self, drafts: Sequence[Draft]) -> Batch | None:
        """What to commit now: None while the turn is buffered and still open."""
        self._check_open()
        stamped = self._stamped(drafts)
        if self._buffer is None:
            return self._prepared(stamped)
        if len(self._buffer) + len(stamped) > _MAX_BUFFER:
            raise InvalidEvent(
                f"a buffered turn takes {_MAX_BUFFER} events; record it as it happens", "drafts"
            )
        # So that a bad value is refused where it is made, and so is what would be too much in the end.
        spent_bytes = self._buffer_bytes + _END_BYTES
        made = self._log._prepare(self.session_id, stamped, spent_bytes=spent_bytes)
        self._buffer_bytes += made.size_bytes
        self._buffer += stamped
        return None

    def _prepared(self, drafts: Sequence[Draft]) -> Batch:
        batch = self._log._prepare(
            self.session_id,
            drafts,
            opening=self._opening if self.number is None else None,
            branch=self._branch,
            turn=self.number or 0,
            fence=self._fence(),
        )
        for event in batch.events:
            if event.kind in _TAKING:
                self._own.add(event.draft.event_id)
        return batch

    def _fence(self) -> Fence | None:
        """What this turn must not write behind. Up to its last commit there was nothing of the kind."""
        if self.number is None or self.receipt is None:
            return None
        kinds = _TAKING_NESTED if is_nested(self._started, self._meta) else _TAKING
        return Fence(self.receipt.version, self.number, kinds, self._own)

    def _flushed(self, closing: Draft) -> Batch:
        """The end of the turn, with what waits before it; that waits until it has landed."""
        self._check_open()
        ids = {key: self._started[key] for key in _RUN_IDS if key in self._started}
        closing = msgspec.structs.replace(closing, payload={**ids, **closing.payload})
        return self._prepared([*(self._buffer or ()), *self._stamped([closing])])

    def _is_unresolved(self, error: BaseException | None) -> bool:
        # What waits may have been recorded: with another end it would be recorded twice.
        return self._buffer is not None and isinstance(error, AppendUnresolved)

    def _landed(self, landed: Landed) -> None:
        self.receipt, self._buffer = landed.receipt, None
        if self.number is None:
            self.number, self._branch = landed.head.turn, landed.head.branch

    def _end(self, closing: Draft) -> None:
        """Record the end of the turn, and what waits before it.

        Ctrl-C, or what else a signal handler raises, does not keep the turn from its end: it is raised
        when that is recorded.
        """
        batch: Batch | None = None
        try:
            batch = self._flushed(closing)
            self._ended(self._log._record(batch))
        except KernError:
            raise
        except BaseException:
            if not self.closed:
                with telling():
                    landed = self._log._recorded(batch) if batch else None
                    self._ended(landed or self._log._record(self._flushed(closing)))
            raise

    def _ended(self, landed: Landed) -> None:
        self._landed(landed)
        self.closed = True

    def _abort(self) -> None:
        """Close a turn whose block was not entered, if its beginning is recorded: nobody else could."""
        if self._beginning and (landed := self._log._recorded(self._beginning)):
            self._landed(landed)
            self._end(Draft("turn.cancelled", {}))


class TurnRecorder(TurnState):
    """Records one turn; see SessionLog.turn. Also a context manager, which closes the turn.

    Attributes:
        session_id: The session.
        number: The turn's number; None before it is committed.
        receipt: The receipt of the last commit.
        closed: Whether the turn has its end, or was paused: nothing more is recorded by this object.
    """

    def __enter__(self) -> Self:
        self._enter()
        try:
            self._begin()
        except KernError:
            raise
        except BaseException:
            with telling():
                self._abort()
            raise
        return self

    def _begin(self) -> None:
        if self._claims:
            self._resume(self._claims)
            return
        if self._buffer is not None:
            self._note_branch()
        if batch := self._started_batch():
            self._landed(self._log._record(batch))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._leave(error)
        except KernError:
            raise
        except BaseException:
            self._leave(error)
            raise

    def _leave(self, error: BaseException | None) -> None:
        if not self.closed and not self._is_unresolved(error):
            with telling() if error else nullcontext():
                self._end(outcome(error))

    def record(self, *drafts: Draft) -> None:
        """Record drafts of any type as part of this turn."""
        if batch := self._batch(drafts):
            self._landed(self._log._record(batch))

    def message(
        self,
        role: str,
        content: str | list[dict[str, Any]] | None = None,
        *,
        name: str | None = None,
        tool_calls: Sequence[dict[str, Any]] | None = None,
        id: str | None = None,
    ) -> str:
        """Record a message; returns its id."""
        draft = message(role, content, name=name, tool_calls=tool_calls, id=id)
        self.record(draft)
        return id or draft.event_id.hex()

    def tool_call(
        self, name: str, arguments: Mapping[str, Any] | str | None = None, *, call_id: str | None = None
    ) -> str:
        """Record that a tool is called, before it runs; returns the call id."""
        call_id = call_id or new_call_id()
        self.record(tool_called(call_id, name, thaw(arguments)))
        return call_id

    def tool_result(self, call_id: str, result: Json, *, duration_s: float | None = None) -> None:
        """Record what a tool returned: a text, or any JSON value."""
        self.record(tool_returned(call_id, result, duration_s=duration_s))

    def tool_error(self, call_id: str, error: str, *, duration_s: float | None = None) -> None:
        """Record that a tool failed."""
        self.record(tool_failed(call_id, error, duration_s=duration_s))

    def set_state(self, path: str | Sequence[str], value: Json, *, agent: bool = False) -> None:
        """Set the value at a path of keys (a text is a path of one key).

        With `agent`, in the state of the turn's own agent (`view.agent_state[agent_id]`); InvalidEvent
        where the turn was begun without an `agent_id`. So for the two below.
        """
        self.record(state_changed([["set", path_of(path), thaw(value)]], scope=scope_of(agent)))

    def unset_state(self, path: str | Sequence[str], *, agent: bool = False) -> None:
        """Remove what is at a path."""
        self.record(state_changed([["unset", path_of(path)]], scope=scope_of(agent)))

    def append_state(self, path: str | Sequence[str], items: Sequence[Json], *, agent: bool = False) -> None:
        """Append items to the list at a path."""
        self.record(state_changed([["append", path_of(path), thaw(items)]], scope=scope_of(agent)))

    def complete(self, *, usage: Mapping[str, Any] | None = None) -> None:
        """Close the turn as completed, with its token usage; leaving the block does no more then."""
        self._end(completed(usage))

    def fail(self, error: str) -> None:
        """Close the turn as failed, without an exception."""
        self._end(failed(error))

    def pause(self, requirements: Json = None) -> None:
        """Leave the turn open, waiting for somebody; leaving the block does no more then.

        Whoever has the answer, in this process or in another one and however long after, goes on
        with `resume` (see Sessions.resume).

        Args:
            requirements: What has to happen first, as `view.paused` shows it; any JSON value.
        """
        self._end(paused(requirements))


def new_call_id() -> str:
    """A call id for a tool call that has none."""
    return f"call_{new_event_id().hex()}"


def scope_of(agent: bool) -> str:
    """The scope of a `state.changed`."""
    return "agent" if agent else "session"


def path_of(path: Any) -> list[str]:
    """A path of keys; a text is one key."""
    if isinstance(path, str):
        return [path]
    if not isinstance(path, Sequence) or isinstance(path, (bytes, bytearray)):
        raise InvalidEvent(f"{type(path).__name__} is not a path, which is a text or a list of keys", "path")
    return list(path)
