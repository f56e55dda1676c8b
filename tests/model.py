"""What a log of sessions means, told naively; and random drafts that make sense in a session.

The model keeps every event that was recorded and knows two rules: a restore goes on from the state of
its target, and a fork's first versions are its parent's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec.structs import replace

from kern_events import Draft, Event, Head, message, state_changed, tool_called, tool_failed, tool_returned
from kern_events.events import ERASED, Kind
from projections import SessionProjector, View

_PROJECTOR: Final = SessionProjector()


@dataclass
class Told:
    """One session: where it comes from, and its own events by version."""

    parent: str | None = None
    origin: int = 0
    events: dict[int, Event] = field(default_factory=dict)

    @property
    def version(self) -> int:
        return max(self.events, default=self.origin)


class Model:
    """All sessions."""

    def __init__(self) -> None:
        self.sessions: dict[str, Told] = {}
        self._states: dict[tuple[str, int], View] = {}

    def event(self, session_id: str, version: int) -> Event:
        told = self.sessions[session_id]
        if told.parent is not None and version <= told.origin:
            return self.event(told.parent, version)
        return told.events[version]

    def path(self, session_id: str, version: int) -> list[Event]:
        """The events that count at a version, in order."""
        found: list[Event] = []
        while version:
            found.append(self.event(session_id, version))
            version = _before(found[-1])
        return found[::-1]

    def view(self, session_id: str, version: int, head: Head) -> View:
        """What a load has to give: folded one by one."""
        return replace(self._state(session_id, version), session_id=session_id, head=head)

    def _state(self, session_id: str, version: int) -> View:
        new: list[Event] = []
        view = _PROJECTOR.initial()
        while version:
            event = self.event(session_id, version)
            if (event.session_id, version) in self._states:
                view = self._states[event.session_id, version]
                break
            new.append(event)
            version = _before(event)
        for event in reversed(new):
            view = self._states[event.session_id, event.version] = _PROJECTOR.evolve(view, event)
        return view

    def now(self, session_id: str) -> View:
        """The session as it is now."""
        return self.view(session_id, self.sessions[session_id].version, Head(0, b""))

    def delete(self, session_id: str, tombstone: Event) -> None:
        """Erase what was recorded before; what others share of it is gone for them as well."""
        told = self.sessions[session_id]
        told.events = {
            version: event if event.kind in (Kind.ERASURE, Kind.CLOSE) else replace(event, payload=ERASED)
            for version, event in told.events.items()
        }
        told.events[tombstone.version] = tombstone
        self._take_back(session_id)
        self._states.clear()

    def is_erased(self, session_id: str, version: int) -> bool:
        """Whether nobody goes on from a version: its event is erased, or of before a deletion."""
        if version in (0, self.sessions[session_id].version):
            return False
        event = self.event(session_id, version)
        while event.kind == Kind.RESTORE:
            if not event.ref:
                return False
            event = self.event(session_id, event.ref)
        rows = self.sessions[event.session_id].events.values()
        return event.erased or any(e.type == "session.deleted" and e.version >= event.version for e in rows)

    def _take_back(self, parent: str) -> None:
        """What the forks of a session say of it goes with it: name, user and metadata, and how they began."""
        for session_id, told in self.sessions.items():
            if told.parent == parent:
                for event in _handed_down(told):
                    told.events[event.version] = replace(event, payload=ERASED)
                self._take_back(session_id)

    def version_of_turn(self, session_id: str, turn: int) -> int:
        """Before the next turn of the live path started."""
        version = self.sessions[session_id].version
        for event in self.path(session_id, version):
            if event.kind == Kind.TURN_START and event.turn == turn + 1:
                return event.version - 1
        return version

    def version_at(self, session_id: str, at_us: int) -> int:
        """The highest version recorded by a time."""
        versions = range(1, self.sessions[session_id].version + 1)
        return max((v for v in versions if self.event(session_id, v).at_us <= at_us), default=0)


def _handed_down(told: Told) -> list[Event]:
    """The first event of a fork, and restores that carry on what was never described in the fork itself."""
    gone, own = [], set()
    for event in map(told.events.__getitem__, sorted(told.events)):
        if event.type == "session.deleted":
            own = {"name", "user_id", "metadata"}
        elif event.erased:
            continue
        elif event.type == "session.forked":
            gone.append(event)
        elif event.type in ("session.created", "session.described", "session.renamed"):
            own |= event.payload.keys()
        elif event.type == "session.restored" and any(
            event.payload.get(key) for key in {"name", "user_id", "metadata"} - own
        ):
            gone.append(event)
    return gone


def _before(event: Event) -> int:
    """The version that an event goes on from."""
    return event.ref or 0 if event.kind == Kind.RESTORE else event.version - 1


# ------------------------------------------------------------------------------------------- drafts


def drafts_of(kind: str, n: int, view: View) -> list[Draft]:
    """Drafts of a kind, which fit the session as it is; a plain message where the kind does not."""
    return _KINDS[kind](n, view) or [message("user", f"plain {n}")]


def _said(n: int, view: View) -> list[Draft]:
    contents: list[Any] = [
        f"text {n}", "ü\x00" * n, None,
        [{"type": "text", "text": f"part {n}"}, {"type": "image_url", "image_url": {"url": "x", "n": n}}],
        [{"type": "odd", "values": [1, 1.0, True, None, {"a": [n]}]}, {"type": "reasoning", "text": "hm"}],
    ]  # fmt: skip
    roles = ["user", "assistant", "system", "developer"]
    return [message(roles[n % 4], contents[n % 5], id=f"m{n}" if n % 3 else None)]


def _turn(n: int, view: View) -> list[Draft]:
    calls = [{"id": "c", "name": "look", "arguments": str(n)}, {"id": "d", "name": "look", "arguments": ""}]
    return [
        Draft("turn.started", {"run_id": f"r{n}"}), message("user", f"question {n}"),
        message("assistant", None, tool_calls=calls), tool_called("c"), tool_returned("c", {"n": n}),
        tool_failed("d", "no"), Draft("model.responded", {"usage": {"tokens": n}}),
        Draft("turn.completed", {"usage": {"tokens": n, "cost": n / 8}}),
    ]  # fmt: skip


def _begun(n: int, view: View) -> list[Draft]:
    return [Draft("turn.started", {}), message("user", f"begun {n}")]


def _ended(n: int, view: View) -> list[Draft]:
    if not view.turns or view.turns[-1].ended_version is not None:
        return []
    types = ["turn.completed", "turn.failed", "turn.cancelled", "turn.paused"]
    payloads: list[dict[str, Any]] = [
        {"usage": {"tokens": n}}, {"error": {"type": "E", "list": [n, 1.5]}}, {},
        {"requirements": {"a": [n]}},
    ]  # fmt: skip
    return [Draft(types[n % 4], payloads[n % 4])]


def _state(n: int, view: View) -> list[Draft]:
    values: list[Any] = [n, float(n), True, None, {"deep": {"list": [n, {}]}}, [], "text"]
    ops: list[list[Any]] = [["set", [f"k{n % 3}"], values[n % 7]], ["set", ["list"], [n]]]
    if isinstance(view.state.get("list"), tuple):
        ops[1] = ["append", ["list"], [n, float(n)]]
    if n % 4 == 0:
        ops.append(["unset", [f"k{n % 2}"]])
    if n % 5 == 4:
        return [Draft("state.changed", {"scope": "agent", "agent_id": f"a{n % 2}", "ops": [ops[0]]})]
    return [state_changed(ops)]


def _tool(n: int, view: View) -> list[Draft]:
    if n % 2 or not view.pending_calls:
        return [tool_called(f"t{n}", "find", {"n": n})]
    call = view.pending_calls[n % len(view.pending_calls)]
    return [tool_returned(call.id, [n, None])] if n % 3 else [tool_failed(call.id, f"error {n}")]


def _replaced(n: int, view: View) -> list[Draft]:
    if not view.messages:
        return []
    id = view.messages[n % len(view.messages)].id
    return [Draft("message.replaced", {"id": id, "content": f"again {n}"})]


def _removed(n: int, view: View) -> list[Draft]:
    if not view.messages:
        return []
    return [Draft("message.removed", {"id": view.messages[n % len(view.messages)].id})]


def _compacted(n: int, view: View) -> list[Draft]:
    if not view.context:
        return []
    through = {"through": view.context[n % len(view.context)].id}
    if n % 2:
        return [Draft("messages.compacted", {**through, "summary": f"summary {n}"})]
    replacement = [{"role": "system", "content": f"kept {i}"} for i in range(n % 6)]
    return [Draft("messages.compacted", {**through, "replacement": replacement})]


def _described(n: int, view: View) -> list[Draft]:
    each: list[Draft] = [
        Draft("session.renamed", {"name": f"name {n}"}),
        Draft("session.described", {"metadata": {"n": [n, {"x": float(n)}]}}),
        Draft("session.described", {"user_id": f"user-{n}", "name": f"described {n}"}),
        Draft("session.summarized", {"summary": {"short": [n]}}),
        Draft("session.created", {"state": {"made": n}}),
    ]
    return [each[n % 5]]


_KINDS: Final[dict[str, Callable[[int, View], list[Draft]]]] = {
    "said": _said,
    "turn": _turn,
    "begun": _begun,
    "ended": _ended,
    "state": _state,
    "tool": _tool,
    "replaced": _replaced,
    "removed": _removed,
    "compacted": _compacted,
    "described": _described,
    "cleared": lambda n, view: [Draft("session.cleared", {})],
    "closed": lambda n, view: [Draft("session.closed", {})],
    "unknown": lambda n, view: [Draft("app.custom", {"n": n})] if n == 7 else [],
}

KINDS: Final = tuple(_KINDS)
