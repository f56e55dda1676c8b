"""From what Agno stores to events: what changed in a session's row and in the rows of its runs.

Everything here is a pure function of rows, so it does not depend on Agno's version: a field that is new
to us is kept like any other. A value that our vocabulary has no word for, or that the log's guard refuses,
is in a native alone (see native.py).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from kern_events import Draft, SessionLog
from kern_events.adapters.agno.calls import call_ops
from kern_events.adapters.agno.contents import LEFT, content_of, left_of, made_by, plain, with_parts
from kern_events.adapters.agno.folding import (
    LISTED,
    OWNERS,
    RUN_CHANGED,
    RUN_DELETED,
    SESSION_CHANGED,
    Messages,
    Row,
    Turn,
    asked_id,
    had_messages,
    message_of,
    placed,
    run_after,
    session_after,
    state_of,
    with_calls,
)
from kern_events.adapters.agno.native import with_native
from kern_events.delta import is_same, state_ops
from kern_events.errors import InvalidEvent
from kern_events.events import message, state_changed, tool_called, tool_failed, tool_returned

Fits = Callable[[Draft], bool]

_ENDS: Final = {
    "COMPLETED": "turn.completed",
    "ERROR": "turn.failed",
    "CANCELLED": "turn.cancelled",
    "PAUSED": "turn.paused",
    "REGENERATED": "turn.completed",
}
_SHOWN: Final = 1_000_000  # characters
_DEPTH: Final = 20
_USAGE: Final = (
    *("input_tokens", "output_tokens", "total_tokens", "audio_input_tokens", "audio_output_tokens"),
    *("cache_read_tokens", "cache_write_tokens", "reasoning_tokens", "cost"),
)


class RunChange(NamedTuple):
    """A run's row before and after; None where there is none."""

    run_id: str
    before: Row | None
    after: Row | None


class Place(NamedTuple):
    """What is known of a session beside its rows: its turns, and the last instructions recorded."""

    turn: int
    turns: Mapping[str, Turn]
    system: str | None = None


def _differs(run: RunChange) -> bool:
    return run.before is None or run.after is None or not is_same(run.before, run.after)


def anything(draft: Draft) -> bool:
    """Takes every draft; for the first attempt."""
    return True


def fits_within(log: SessionLog, session_id: str) -> Fits:
    """Whether the log takes a draft; for the second attempt, where it refused one."""

    def fits(draft: Draft) -> bool:
        try:
            log._prepare(session_id, [draft])
        except InvalidEvent:
            return False
        return True

    return fits


def tamed(value: Any, depth: int = 0) -> Any:
    """Something like a value that the log refuses, which a transcript can show; the native has the value."""
    if isinstance(value, str):
        text = value.encode("utf-8", "backslashreplace").decode()
        return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if type(value) is int and value.bit_length() > 63:
        return str(value)
    if isinstance(value, (dict, list)) and depth > _DEPTH:
        return "…"
    if isinstance(value, dict):
        return {tamed(key, depth): tamed(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [tamed(item, depth + 1) for item in value]
    return value


class Drafting:
    """The drafts of one change of a session, in the order in which they are recorded.

    Attributes:
        drafts: The drafts so far.
        turn: The highest turn started.
        turns: The turn of each run that has one, as far as it changed.
        system: A digest of the last instructions recorded.
    """

    def __init__(self, session_id: str, session: Row | None, place: Place, fits: Fits = anything) -> None:
        self.drafts: list[Draft] = []
        self._ids: set[bytes] = set()  # of messages: a tool's answer has the same one every time
        self._removed: set[bytes] = set()  # which of these were taken out
        self._whole = 0  # drafts up to the last one at which the rows are as Agno has stored them
        self.turn = place.turn
        self.turns: dict[str, Turn] = {}
        self.system = place.system
        self._known = place.turns
        self._session_id = session_id
        self._session = session
        self._rest: list[Any] = []  # of what changed in the session's row
        self._fits = fits

    def change(self, after: Row | None, runs: Sequence[RunChange]) -> None:
        """All that a transaction changed; the state becomes what it is within the turn that changed it."""
        runs = [run for run in runs if _differs(run)]
        opened = next((run for run in runs if self._is_begun_by(run)), None)
        if self._session is None and after is not None:
            self._create(after, bare=opened is not None)
        if opened is not None:
            self._start(opened)
        if after is not None:
            self._describe(after, alone=not runs, goes_on=any(run.after is not None for run in runs))
        for run in runs:
            self.run(run)

    def ask(self, run_id: str, row: Row, content: Any) -> None:
        """What a run is asked that is yet to be stored: its turn begins, and has the user's message."""
        self._start(RunChange(run_id, None, row))
        turn = self._entry(run_id) or Turn(self.turn)
        said = message("user", content, id=asked_id(run_id))
        said.payload.update(self._whose(row))
        draft = self._fitting(_turned(said, turn.number))
        if draft is not None:
            self.turns[run_id] = Turn(turn.number, turn.ended, asked=True)
            self._close(draft, {"asked": run_id})

    def beside(self, run_id: str, row: Row, drafts: Sequence[Draft]) -> None:
        """What is said of a run beside what it says itself; its turn begins, if it has not."""
        self._start(RunChange(run_id, None, row))
        turn = self._entry(run_id) or Turn(self.turn)
        for each in drafts:
            draft = self._fitting(_turned(each, turn.number)) or Draft(each.type, {}, turn=turn.number)
            self._close(draft, {})

    def _answer(self, run_id: str) -> None:
        """A run says itself what it was asked."""
        turn = self._entry(run_id)
        if turn is not None and turn.asked:
            self._optional(Draft("message.removed", {"id": asked_id(run_id)}, turn=turn.number))
            self.turns[run_id] = Turn(turn.number, turn.ended)

    def run(self, run: RunChange) -> None:
        """What became of one run."""
        if run.after is None:
            self._delete(run)
        elif _differs(run):
            self._group(run, run.after)

    def _create(self, after: Row, *, bare: bool) -> None:
        """The first event of a session; `bare` where its state is that of a turn to come."""
        if bare:
            data = after.get("session_data")
            kept = {k: v for k, v in data.items() if k not in _RUNNING} if type(data) is dict else data
            after = {**after, "session_data": kept, "summary": None}
        payload = {key: after[key] for key in LISTED if isinstance(after.get(key), str)}
        data = after.get("session_data")
        if type(data) is dict and isinstance(data.get("session_name"), str):
            payload["name"] = data["session_name"]
        if type(after.get("metadata")) is dict:
            payload["metadata"] = after["metadata"]
        state = state_of(after)
        if state is not None:
            payload["state"] = state
        if not self._fits(Draft("session.created", payload)):
            payload = {k: v for k, v in payload.items() if self._fits(Draft("session.created", {k: v}))}
        draft = Draft("session.created", payload)
        derived = session_after(None, draft.type, draft.payload) or {}
        self._close(draft, {"session": state_ops(derived, after)})
        self._session = after

    def _describe(self, after: Row, *, alone: bool, goes_on: bool) -> None:
        """What changed in the session's row: in our words, and the rest in the native of what is there.

        Where it is not `alone`, it is one with the run that follows; where that run has a row (`goes_on`) and
        nothing else is there, the rest is in the native that ends it.
        """
        before = self._session or {}
        derived, said = before, []
        for described in _described(before, after):
            draft = self._fitting(described)
            if draft is None:
                continue
            derived = session_after(derived, draft.type, draft.payload) or {}
            said.append(draft)
        rest = state_ops(derived, after)
        if rest and not said and self.drafts and self.drafts[-1].type == "turn.started":
            said = [self.drafts.pop()]
        if rest and not said and goes_on:
            self._rest, rest = rest, []
        if rest and not said:
            said = [Draft(SESSION_CHANGED, {})]
        self._session = after
        if not said:
            return
        *earlier, last = said
        self.drafts += earlier
        native: Row = {"session": rest} if rest else {}
        if alone:
            self._close(last, native)
        else:
            self.drafts += with_native(last, native)

    def _close(self, draft: Draft, native: Row) -> None:
        """The last event of something that Agno has stored at once: none before it counts without it."""
        self.drafts += with_native(draft, native, before=len(self.drafts) - self._whole)
        self._whole = len(self.drafts)

    def _is_begun_by(self, run: RunChange) -> bool:
        return run.before is None and run.after is not None and self._turn_of(run)[0] not in self._known

    def _turn_of(self, run: RunChange) -> tuple[str, Row]:
        """The top-level run that a run belongs to, and the row that says whose it is."""
        row = run.after or run.before or {}
        return row.get("parent_run_id") or run.run_id, row

    def _entry(self, run_id: str) -> Turn | None:
        return self.turns.get(run_id) or self._known.get(run_id)

    def _start(self, run: RunChange) -> None:
        """Open the turn that a run belongs to, unless it is there."""
        owner, row = self._turn_of(run)
        if self._entry(owner) is not None:
            return
        begun = self._entry(run.run_id)
        if begun is not None:
            self.turns[owner] = begun  # A run within this one came first.
            return
        self.turn += 1
        self.turns[owner] = Turn(self.turn)
        own = {} if owner != run.run_id else {
            **{key: row[key] for key in OWNERS if isinstance(row.get(key), str)}, **self._whose(row)
        }  # fmt: skip
        self._say(Draft("turn.started", {"run_id": owner, **own}))

    def _whose(self, row: Row) -> Row:
        """The user of a run, if it is another one than the session's."""
        user_id = row.get("user_id")
        is_others = isinstance(user_id, str) and user_id != (self._session or {}).get("user_id")
        return {"user_id": user_id} if is_others else {}

    def _say(self, draft: Draft) -> None:
        self.drafts.append(self._fitting(draft) or Draft(draft.type, {}, turn=draft.turn))

    def _fitting(self, draft: Draft) -> Draft | None:
        """The draft, or one that shows what it says as far as the log takes it."""
        if self._fits(draft):
            return draft
        shown = Draft(draft.type, tamed(draft.payload), turn=draft.turn, event_id=draft.event_id)
        return shown if self._fits(shown) else None

    def _group(self, run: RunChange, after: Row) -> None:
        """The events of one run: its start, its new messages, and the event that has the rest of its row."""
        owner, _ = self._turn_of(run)
        nested = owner != run.run_id
        self._start(run)
        turn = self._entry(owner) or Turn(self.turn)
        layout: list[Any] | None = None
        known: Messages = []
        if nested:
            if run.before is None:
                self._say(Draft("turn.started", _ids(run.run_id, after), turn=turn.number))
                if self._entry(run.run_id) is None:
                    self.turns[run.run_id] = turn
        else:
            self._resume(run, after, turn)
            layout, known = self._messages(run, after, turn.number)
        draft = self._closing(run, after, turn, nested)
        messages = placed(layout, known)
        derived = run_after(self._session, self._session_id, run.run_id, run.before, draft.type, messages)
        native: Row = {"run": run.run_id} if run.before is None else {"run": run.run_id, "known": True}
        if self._rest:
            native["session"], self._rest = self._rest, []
        calls = _tools(after)
        ops = call_ops(_tools(derived), messages or (), calls)
        if ops is not None:
            native["calls"], derived = ops, with_calls(derived, calls)
        native["ops"] = state_ops(derived, after)
        if layout is not None:
            native["messages"] = layout
        self._close(draft, native)

    def _resume(self, run: RunChange, after: Row, turn: Turn) -> None:
        waited = run.before is not None and run.before.get("status") == "PAUSED"
        if waited and after.get("status") != "PAUSED" and not turn.ended:
            self._say(Draft("turn.resumed", {"run_id": run.run_id}, turn=turn.number))

    def _closing(self, run: RunChange, after: Row, turn: Turn, nested: bool) -> Draft:
        """The event that ends the group: the turn's end or pause if it is one, else that the run changed."""
        status = after.get("status")
        type_ = _ENDS.get(status, RUN_CHANGED) if isinstance(status, str) else RUN_CHANGED
        ended = turn.ended if not nested else run.before is not None and run.before.get("status") in _ENDS
        if ended or (nested and type_ == "turn.paused"):
            type_ = RUN_CHANGED
        payload = _ids(run.run_id, after)
        if type_ != RUN_CHANGED:
            payload |= _outcome(type_, after)
        draft = Draft(type_, payload, turn=turn.number)
        draft = self._fitting(draft) or Draft(type_, _ids(run.run_id, after), turn=turn.number)
        if not nested and type_ not in (RUN_CHANGED, "turn.paused"):
            asked = (self._entry(run.run_id) or turn).asked
            self.turns[run.run_id] = Turn(turn.number, ended=True, asked=asked)
        return draft

    def _delete(self, run: RunChange) -> None:
        """A run that was deleted: its messages leave the transcript."""
        owner, row = self._turn_of(run)
        turn = self._entry(owner)
        number = turn.number if turn else None
        if owner == run.run_id:
            self._answer(run.run_id)
            for old in had_messages(run.before) or ():
                self._remove(run.run_id, old, number)
        draft = Draft(RUN_DELETED, _ids(run.run_id, row), turn=number)
        self._close(self._fitting(draft) or Draft(RUN_DELETED, {}, turn=number), {})

    def _messages(self, run: RunChange, after: Row, turn: int) -> tuple[list[Any] | None, Messages]:
        """Drafts for what a top-level run newly says; where its messages come from, of those known then."""
        messages = had_messages(after)
        if messages is None:
            self._workflow_says(run, after, turn)
            return None, []
        before = list(had_messages(run.before) or ())
        if not all(type(each) is dict for each in (*before, *messages)):
            return None, []
        if any(new.get("role") == "user" and not new.get("from_history") for new in messages):
            self._answer(run.run_id)
        places = {_id(old): at for at, old in enumerate(before) if _id(old)}
        calls = {call["id"] for old in messages for call in _calls(old) if type(call.get("id")) is str}
        layout: list[Any] = []
        added: Messages = []
        by = self._whose(after)
        last = next((each for each in reversed(messages) if each.get("role") == "assistant"), None)
        made = made_by(after) if made_by(run.before) != made_by(after) else []
        for new in messages:
            at = places.get(_id(new))
            if at is not None and is_same(before[at], new):
                before[at] = new  # Which is found to be the same sooner than an equal one.
                layout.append([at, at + 1])
            elif at is not None or not self._is_said(new) or not self._add(
                run.run_id, new, turn, calls, by, made if new is last else ()
            ):
                layout.append(new)
                if at is not None:
                    self._replace(before[at], new, turn)
            else:
                at = len(before) + len(added)
                added.append(new)
                layout.append([at, at + 1])
        kept = {_id(new) for new in messages}
        for old in before:
            if _id(old) and _id(old) not in kept:
                self._remove(run.run_id, old, turn)
        return _joined(layout), before + added

    def _is_said(self, message: Any) -> bool:
        """Whether a message is to be one of the transcript: not what is from earlier runs or said before."""
        if (
            type(message) is not dict
            or message.get("from_history")
            or not isinstance(message.get("role"), str)
        ):
            return False
        if message["role"] in ("system", "developer"):
            digest = hashlib.sha256(repr(message.get("content")).encode("utf-8", "replace")).hexdigest()
            if digest == self.system:
                return False
            self.system = digest
        return True

    def _add(
        self, run_id: str, new: Row, turn: int, calls: set[Any], by: Row, made: Sequence[Row]
    ) -> bool:
        """Record a message, with what our event does not say of it in the native; False if it cannot be."""
        said = _drafted(run_id, new, turn, made)
        if said is not None and new["role"] == "user":
            said.payload.update(by)
        draft = None if said is None else self._fitting(said)
        if draft is None or draft.event_id in self._ids:
            return False
        self._ids.add(draft.event_id)
        if draft.type in ("tool.returned", "tool.failed"):
            called = self._fitting(_called(new, turn, known=new["tool_call_id"] in calls))
            if called is None:
                return False
            self.drafts.append(called)
        self._natively(draft, new, made)
        return True

    def _natively(self, draft: Draft, new: Row, made: Sequence[Row]) -> None:
        left = left_of(new, made) if draft.type == "message.added" else None
        ops = state_ops(with_parts(message_of(draft.type, draft.payload), left), new)
        native: Row = {"message": ops} if left is None else {LEFT: left, "message": ops}
        first, *rest = reversed(with_native(draft, native))
        # The event keeps its id, by which the transcript knows a tool's answer.
        self.drafts += [*reversed(rest), _with_id(first, draft.event_id)]

    def _replace(self, old: Row, new: Row, turn: int) -> None:
        draft = _drafted("", new, turn)
        if draft is None or draft.type != "message.added" or new.get("role") == "system":
            return
        before = _drafted("", old, turn)
        if before is not None and before.payload != draft.payload:
            self._optional(Draft("message.replaced", draft.payload, turn=turn))

    def _remove(self, run_id: str, old: Any, turn: int | None) -> None:
        """Take a message that was recorded out of the transcript."""
        if type(old) is not dict or old.get("from_history") or old.get("role") in ("system", "developer"):
            return
        draft = _drafted(run_id, old, None)
        if draft is None or draft.event_id in self._removed:
            return  # One that stands twice in a run is recorded once.
        self._removed.add(draft.event_id)
        id = draft.payload["id"] if draft.type == "message.added" else draft.event_id.hex()
        self._optional(Draft("message.removed", {"id": id}, turn=turn))

    def _workflow_says(self, run: RunChange, after: Row, turn: int) -> None:
        """A workflow's run has no messages: its input and its content stand for them."""
        data, before = after["run_data"], (run.before or {}).get("run_data") or {}
        if type(data) is not dict or "workflow_id" not in data:
            return
        for key, role in (("input", "user"), ("content", "assistant")):
            said = data.get(key)
            if said is not None and before.get(key) != said:
                draft = message(role, plain(said), id=f"{run.run_id}:{key}")
                draft.payload.update(self._whose(after) if role == "user" else {})
                self._optional(_turned(draft, turn))

    def _optional(self, draft: Draft) -> None:
        fitting = self._fitting(draft)
        if fitting is not None:
            self.drafts.append(fitting)


_RUNNING: Final = frozenset({"session_state", "session_metrics"})


def _described(before: Row, after: Row) -> Iterator[Draft]:
    """What changed in a session's row, in words of the vocabulary."""
    old, new = _name(before), _name(after)
    if new != old and (isinstance(new, str) or new is None):
        yield Draft("session.renamed", {"name": new})
    told = {}
    if before.get("user_id") != after.get("user_id"):
        told["user_id"] = after.get("user_id")
    if before.get("metadata") != after.get("metadata"):
        told["metadata"] = after["metadata"] if type(after.get("metadata")) is dict else {}
    if told:
        yield Draft("session.described", told)
    if before.get("summary") != after.get("summary"):
        yield Draft("session.summarized", {"summary": after.get("summary")})
    state = state_of(after)
    if state is not None and (ops := state_ops(state_of(before) or {}, state)):
        yield state_changed(ops)


def _name(row: Row) -> Any:
    data = row.get("session_data")
    return data.get("session_name") if type(data) is dict else None


def _ids(run_id: str, row: Row) -> Row:
    ids = {"run_id": run_id}
    if isinstance(row.get("parent_run_id"), str):
        ids["parent_run_id"] = row["parent_run_id"]
    return ids


def _outcome(type: str, row: Row) -> Row:
    """What the end of a turn says beside its ids: usage, error or requirements."""
    data = row["run_data"] if isinstance(row["run_data"], dict) else {}
    if type == "turn.paused":
        waits = data.get("requirements") or data.get("step_requirements")
        return {"requirements": waits} if waits else {}
    said: Row = {}
    metrics = data.get("metrics")
    if isinstance(metrics, dict):
        usage = {key: metrics[key] for key in _USAGE if isinstance(metrics.get(key), (int, float))}
        if usage:
            said["usage"] = usage
    if type == "turn.failed":
        content = data.get("content")
        said["error"] = {"message": content if isinstance(content, str) else "the run failed"}
    return said


def _drafted(run_id: str, message_: Row, turn: int | None, made: Sequence[Row] = ()) -> Draft | None:
    """Our event of a message of Agno's; None where there is no word for it."""
    if not isinstance(message_.get("role"), str) or not isinstance(message_.get("id"), str):
        return None
    call_id = message_.get("tool_call_id")
    if message_["role"] == "tool" and isinstance(call_id, str):
        return _answered(run_id, message_, turn, call_id)
    draft = message(
        message_["role"],
        content_of(message_, made),
        name=message_["name"] if isinstance(message_.get("name"), str) else None,
        tool_calls=[call for call in map(_call, _calls(message_)) if call is not None],
        id=message_["id"],
    )
    return _turned(draft, turn)


def _answered(run_id: str, message_: Row, turn: int | None, call_id: str) -> Draft:
    metrics = message_.get("metrics")
    duration = metrics.get("duration") if isinstance(metrics, dict) else None
    duration_s = float(duration) if isinstance(duration, (int, float)) and 0 <= duration < 1e9 else None
    content = message_.get("content")
    if message_.get("tool_call_error") is True and isinstance(content, str):
        draft = tool_failed(call_id, content, duration_s=duration_s)
    else:
        name = message_.get("tool_name")
        named = name if isinstance(name, str) else None
        draft = tool_returned(call_id, content, name=named, duration_s=duration_s)
    id = hashlib.sha256(f"{run_id}:{message_['id']}".encode("utf-8", "replace")).digest()[:16]
    return _with_id(_turned(draft, turn), id)


def _called(message_: Row, turn: int, *, known: bool) -> Draft:
    """That the tool was called: by its id, or in full where no message says it."""
    call_id, name, args = message_["tool_call_id"], message_.get("tool_name"), message_.get("tool_args")
    if known:
        return _turned(tool_called(call_id), turn)
    arguments = args if isinstance(args, dict) else None
    try:
        draft = tool_called(call_id, name if isinstance(name, str) else "unknown", arguments)
    except InvalidEvent:
        draft = tool_called(call_id, "unknown")
    return _turned(draft, turn)


def _calls(message_: Any) -> Sequence[Row]:
    calls = message_.get("tool_calls") if type(message_) is dict else None
    return [call for call in calls if type(call) is dict] if type(calls) is list else ()


def _call(call: Row) -> Row | None:
    function = call.get("function")
    if not isinstance(call.get("id"), str) or type(function) is not dict:
        return None
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, str):
        return None
    return {"id": call["id"], "name": name, "arguments": arguments}


def _tools(row: Row) -> Any:
    data = row.get("run_data")
    return data.get("tools") if type(data) is dict else None


def _id(message_: Any) -> str | None:
    id = message_.get("id") if type(message_) is dict else None
    return id if isinstance(id, str) else None


def _joined(layout: list[Any]) -> list[Any]:
    """Neighbouring ranges as one."""
    joined: list[Any] = []
    for item in layout:
        if type(item) is list and joined and type(joined[-1]) is list and joined[-1][1] == item[0]:
            joined[-1] = [joined[-1][0], item[1]]
        else:
            joined.append(item)
    return joined


def _turned(draft: Draft, turn: int | None) -> Draft:
    return Draft(draft.type, draft.payload, turn=turn, event_id=draft.event_id)


def _with_id(draft: Draft, event_id: bytes) -> Draft:
    return Draft(draft.type, draft.payload, turn=draft.turn, native=draft.native, event_id=event_id)
