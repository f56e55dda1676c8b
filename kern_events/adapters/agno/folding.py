"""From events to what Agno stores: the session's row without its runs, and the rows of its runs.

`Fold` is what an event does to them. Recording uses it too: what it does not make of the events, the last
of them says as ops in its native, so whatever Agno stores comes back exactly.

It is total: events and natives may have been recorded by anybody, and what is of another shape is passed
over. What it makes of them costs what they say, whatever they repeat.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from kern_events import Event
from kern_events.adapters.agno.calls import calls_after
from kern_events.adapters.agno.contents import LEFT, with_parts
from kern_events.adapters.agno.native import PART, load
from kern_events.codec import MAX_DEPTH
from kern_events.delta import apply_ops
from kern_events.spi import Kind

Row = dict[str, Any]
Messages = list[Any]

RUN_CHANGED: Final = "agno.run.changed"
RUN_DELETED: Final = "agno.run.deleted"
SESSION_CHANGED: Final = "agno.session.changed"
OWNERS: Final = ("agent_id", "team_id", "workflow_id")
LISTED: Final = ("session_type", *OWNERS, "user_id")
NO_RUN: Final[Row] = {"run_data": {}}
STATUS: Final = {
    "turn.completed": "COMPLETED",
    "turn.failed": "ERROR",
    "turn.cancelled": "CANCELLED",
    "turn.paused": "PAUSED",
}
STATE: Final = ["session_data", "session_state"]
_OF_RUNS: Final = ("turn.", "agno.run.")
_ASKED: Final = ":asked"
_GOING_BACK: Final = frozenset({"session.forked", "session.restored"})
_RESULTS: Final = {"tool.returned": "result", "tool.failed": "error"}
_SAID: Final = frozenset(  # What was said, and the application's own, whatever its keys are.
    {"session_state", "content", "arguments", "tool_args", "metadata", "input", "input_content", "result"}
    | {"model_provider_data", "provider_data", "additional_input", "references", "dependencies"}
)
_OWN_IDS: Final = frozenset({"run_id", "parent_run_id", "child_run_id", "member_run_id", "step_run_id"})


class Turn(msgspec.Struct, frozen=True):
    """The turn of a run, whether it has its end, and whether its question is on record without the run."""

    number: int
    ended: bool = False
    asked: bool = False


class Stored(msgspec.Struct, frozen=True):
    """A session as Agno stores it.

    Attributes:
        session: The row of the sessions table without its id and its runs; None if there is none.
        runs: The rows of the runs table by run id, without run and session id, in order.
        turns: The turn of each top-level run.
        messages: Messages recorded for a run whose own event is yet to come.
        parts: Parts of a native whose event is yet to come.
        session_id: The session of the last event.
    """

    session: Row | None = None
    runs: Mapping[str, Row] = {}
    turns: Mapping[str, Turn] = {}
    messages: tuple[Any, ...] = ()
    parts: tuple[bytes, ...] = ()
    session_id: str = ""


class Fold:
    """A `Stored`, free to change. What it holds is never changed in place, only replaced."""

    def __init__(self, stored: Stored) -> None:
        self.session = stored.session
        self.runs = dict(stored.runs)
        self.turns = dict(stored.turns)
        self.messages: Messages = list(stored.messages)
        self._parts = list(stored.parts)
        self._session_id = stored.session_id

    def finish(self) -> Stored:
        """What is stored now."""
        messages, parts = tuple(self.messages), tuple(self._parts)
        return Stored(self.session, self.runs, self.turns, messages, parts, self._session_id)

    def take(self, event: Event) -> None:
        """One more event, of whatever type."""
        payload = event.payload if type(event.payload) is dict else {}
        parent, self._session_id = self._session_id, event.session_id
        if event.type in _GOING_BACK:
            self.messages, self._parts = [], []  # Of a run whose end is not on this way is no row.
        if event.type in _GOING_BACK and parent not in ("", event.session_id):
            self._fork(parent, payload, event.at_us // 1_000_000)
            return
        if event.type.startswith(_OF_RUNS):
            self._begin(event, payload.get("run_id"), payload.get("parent_run_id"))
        self.apply(event.type, payload, event.native)

    def _begin(self, event: Event, run_id: Any, parent_run_id: Any) -> None:
        """A turn, or a run within one; what runs within it may have been recorded first."""
        if event.kind == Kind.TURN_START and isinstance(run_id, str):
            self.turns[run_id] = Turn(event.turn)
        elif isinstance(run_id, str) and isinstance(parent_run_id, str):
            self.turns.setdefault(run_id, Turn(event.turn))
            self.turns.setdefault(parent_run_id, Turn(event.turn))

    def apply(self, type: str, payload: Mapping[str, Any], native: bytes | None) -> None:
        """What an event of this type, payload and native does."""
        if type == PART:
            self._parts.append(native or b"")
            return
        said = load(native, self._parts) if native else {}
        if native:
            self._parts = []
        if type.startswith("session.") or type == "state.changed":
            self.session = session_after(self.session, type, payload)
            if type == "session.deleted" or (type == "session.created" and "session" in said):
                self.runs, self.turns, self.messages = {}, {}, []  # Agno begins it where it has no rows.
        if "session" in said:
            self.session = apply_ops(self.session or {}, said["session"])
        if "message" in said:
            message = with_parts(message_of(type, payload), said.get(LEFT))
            self.messages.append(apply_ops(message, said["message"]))
        if "asked" in said:
            self._ask(said["asked"], asked=True)
        elif type == "message.removed" and str(payload.get("id")).endswith(_ASKED):
            self._ask(str(payload["id"]).removesuffix(_ASKED), asked=False)
        run_id = said.get("run")
        if isinstance(run_id, str):
            self._run(type, run_id, said)
        elif type == RUN_DELETED and isinstance(payload.get("run_id"), str):
            self.runs.pop(payload["run_id"], None)

    def _run(self, type: str, run_id: str, said: Mapping[str, Any]) -> None:
        before = self.runs.get(run_id)
        if before is None and said.get("known"):
            self.messages = []  # What a fork has changed in a run that was erased with its parent is no run.
            return
        messages = placed(said.get("messages"), [*(had_messages(before) or ()), *self.messages])
        after = run_after(self.session, self._session_id, run_id, before, type, messages)
        if "calls" in said:
            had = after["run_data"].get("tools")
            after = with_calls(after, calls_after(had, messages or (), said["calls"]))
        self.runs[run_id] = apply_ops(after, said.get("ops"))
        self.messages = []
        turn = self.turns.get(run_id)
        if turn and type in STATUS:
            self.turns[run_id] = Turn(turn.number, type != "turn.paused", turn.asked)

    def _ask(self, run_id: Any, *, asked: bool) -> None:
        turn = self.turns.get(run_id) if isinstance(run_id, str) else None
        if turn is not None:
            self.turns[run_id] = Turn(turn.number, turn.ended, asked)

    def _fork(self, parent: str, payload: Mapping[str, Any], at_s: int) -> None:
        """Another session now: run ids are keys over all sessions, so its runs get their own."""
        if self.session is None:
            return
        names = {old: forked_id(self._session_id, old) for old in self.runs}
        self.turns = {names.get(old, old): turn for old, turn in self.turns.items()}
        self.runs = {
            names[old]: _renamed(row, names, {parent: self._session_id}) for old, row in self.runs.items()
        }
        described = session_after(self.session, "session.restored", payload) or {}
        origin = ["set", ["session_data", "forked_from_session_id"], parent]
        self.session = apply_ops({**described, "created_at": at_s, "updated_at": at_s}, [origin])


def asked_id(run_id: str) -> str:
    """The id of the message that says what a run was asked, before it says so itself."""
    return run_id + _ASKED


def session_after(session: Row | None, type: str, payload: Mapping[str, Any]) -> Row | None:
    """The session's row after one of our events."""
    if type == "session.deleted":
        return None
    if type == "session.created":
        return _created(payload)
    if session is None:
        return None
    if type == "session.renamed":
        return apply_ops(session, [["set", ["session_data", "session_name"], payload.get("name")]])
    if type == "session.summarized":
        return {**session, "summary": payload.get("summary")}
    if type == "state.changed" and payload.get("scope", "session") == "session":
        before = state_of(session)
        after = apply_ops(before or {}, payload.get("ops"))
        # Ops that do nothing, or are none, make no state where there is none.
        return apply_ops(session, [["set", STATE, after]]) if after or before else session
    if type == "session.described":
        return {**session, **{key: payload[key] for key in ("user_id", "metadata") if key in payload}}
    if type == "session.restored":
        return _kept(session, payload)
    return session


def _created(payload: Mapping[str, Any]) -> Row:
    session: Row = {key: payload.get(key) for key in LISTED}
    session["metadata"] = payload.get("metadata")
    session["session_data"] = {"session_state": payload["state"]} if "state" in payload else None
    return session


def _kept(session: Row, payload: Mapping[str, Any]) -> Row:
    """A row that went back: name, user and metadata are not rewound."""
    named = _metadata_like(session, payload)
    name = payload.get("name")
    data = named.get("session_data")
    if name is not None:
        return apply_ops(named, [["set", ["session_data", "session_name"], name]])
    if type(data) is dict and "session_name" in data:
        return apply_ops(named, [["unset", ["session_data", "session_name"]]])
    return named


def _metadata_like(session: Row, payload: Mapping[str, Any]) -> Row:
    """User and metadata of the payload; no metadata stays the kind of nothing that it was."""
    metadata = payload.get("metadata") or ({} if session.get("metadata") else session.get("metadata"))
    return {**session, "user_id": payload.get("user_id"), "metadata": metadata}


def message_of(event_type: str, payload: Mapping[str, Any]) -> Row:
    """Agno's message as far as our event says it."""
    if event_type in _RESULTS:
        return {
            "role": "tool",
            "content": payload.get(_RESULTS[event_type]),
            "tool_call_id": payload.get("call_id"),
            **({"tool_name": payload["name"]} if "name" in payload else {}),
        }
    message = {
        key: payload[key] for key in ("id", "role", "content", "name", "tool_call_id") if key in payload
    }
    calls = payload.get("tool_calls")
    if type(calls) is list:
        message["tool_calls"] = [
            {"id": call.get("id"), "type": "function", "function": _function(call)}
            for call in calls
            if type(call) is dict
        ]
    return message


def _function(call: Mapping[str, Any]) -> Row:
    return {"name": call.get("name"), "arguments": call.get("arguments")}


def placed(layout: Any, known: Messages) -> Messages | None:
    """A run's messages: ranges of those it had followed by those recorded since, or messages in full."""
    if type(layout) is not list:
        return None
    messages: Messages = []
    left = len(known)  # Each is placed once, so a layout makes no more of them than there are.
    for item in layout:
        if type(item) is not list:
            messages.append(item)
        elif len(item) == 2 and all(type(each) is int and each >= 0 for each in item):
            part = known[item[0] : min(item[1], item[0] + left)]
            messages += part
            left -= len(part)
    return messages


def had_messages(row: Row | None) -> Messages | None:
    """The messages of a run's row, if it has a list of them."""
    data = row.get("run_data") if row else None
    messages = data.get("messages") if type(data) is dict else None
    return messages if type(messages) is list else None


def run_after(
    session: Row | None,
    session_id: str,
    run_id: str,
    before: Row | None,
    type: str,
    messages: Messages | None,
) -> Row:
    """A run's row as far as its events and what was known before say it."""
    row = dict(before or NO_RUN)
    data = dict(row["run_data"]) if isinstance(row.get("run_data"), dict) else {}
    data["run_id"], data["session_id"] = run_id, session_id
    if type in STATUS:
        row["status"] = data["status"] = STATUS[type]
    if messages is not None:
        data["messages"] = messages
        data |= _spoken(messages, new=before is None)
    state = state_of(session)
    if state is not None:
        data["session_state"] = state
    row["run_data"] = data
    return row


def with_calls(row: Row, calls: list[Any]) -> Row:
    """A run's row with these calls of tools."""
    return {**row, "run_data": {**row["run_data"], "tools": calls}}


def _spoken(messages: Messages, *, new: bool) -> Row:
    """What a run says a second time: its input, and its content."""
    spoken: Row = {}
    first = next((m for m in messages if _is(m, "user")), None)
    if new and first is not None:
        spoken["input"] = {"input_content": first.get("content")}
    if messages and _is(messages[-1], "assistant") and messages[-1].get("content") is not None:
        spoken["content"] = messages[-1]["content"]
    return spoken


def _is(message: Any, role: str) -> bool:
    return type(message) is dict and message.get("role") == role and not message.get("from_history")


def state_of(session: Row | None) -> Row | None:
    """The session state in a session's row."""
    data = session.get("session_data") if session else None
    state = data.get("session_state") if type(data) is dict else None
    return state if type(state) is dict else None


def forked_id(session_id: str, run_id: str) -> str:
    """The id that a run has in a fork of its session."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, json.dumps([session_id, run_id])))


def _renamed(value: Any, names: Mapping[str, str], sessions: Mapping[str, str], depth: int = 0) -> Any:
    """A run's row in a fork: its own ids and those of runs that came along, wherever Agno names them."""
    if depth > MAX_DEPTH:
        return value  # Agno names nothing so deep down.
    if type(value) is list:
        return [_renamed(item, names, sessions, depth + 1) for item in value]
    if type(value) is not dict:
        return value
    renamed = {}
    for key, item in value.items():
        if key in _OWN_IDS and type(item) is str:
            renamed[key] = names.get(item, item)
        elif key == "session_id" and type(item) is str:
            renamed[key] = sessions.get(item, item)
        elif key in _SAID:
            renamed[key] = item
        else:
            renamed[key] = _renamed(item, names, sessions, depth + 1)
    return renamed


class AgnoProjector:
    """Folds a session into a `Stored`: `sessions.load(session_id, turn=3, projector=AgnoProjector())`."""

    name: Final = "agno"
    version: Final = 2
    scope: Final[Literal["live", "log"]] = "live"

    def initial(self) -> Stored:
        """Nothing stored."""
        return Stored()

    def evolve(self, view: Stored, event: Event) -> Stored:
        """What is stored after one more event."""
        return self.fold(view, (event,))

    def fold(self, view: Stored, events: Sequence[Event]) -> Stored:
        """What is stored after these events."""
        if not events:
            return view
        fold = Fold(view)
        for event in events:
            fold.take(event)
        return fold.finish()
