"""What turns, usage, state and the session's own events do to a session view.

The functions are like those in messages.py. What the log itself tracks (which turn, whether an event
starts or ends one) comes from the event's header, which no erasure removes.

Usage is counted once: a turn's own end says what the turn used. Until it does, or where it does not,
the responses of the model within the turn count instead. A nested run counts by its own end, and so
its responses do not.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec.structs import replace

from kern_events import Event
from projections.frozen import Frozen, freeze, weigh
from projections.session.builder import Builder, numbers, summed
from projections.session.messages import Payload
from projections.session.view import Pause, Turn, TurnStatus, View

_TURN_START: Final = 1  # Event.kind of an event that starts, ends or resumes a turn rather than a nested run
_TURN_END: Final = 2
_TURN_RESUME: Final = 7
# More than a turn takes, so that about 32 make a chunk: what is open is stored anew with every snapshot, and
# read for every window.
TURN_BYTES: Final = 2_000
_ENDS: Final[dict[str, TurnStatus]] = {
    "turn.completed": "completed",
    "turn.failed": "failed",
    "turn.cancelled": "cancelled",
}


def created(builder: Builder, event: Event, payload: Payload) -> str | None:
    """`session.created`: opens the session again if it was closed, and from nothing if it was deleted."""
    if builder.status == "deleted":
        builder.begin(View(session_id=builder.session_id, version=builder.version, turn=builder.turn))
    builder.status = "open"
    problem = described(builder, event, payload)
    if "state" in payload:
        state = payload["state"]
        if type(state) is not dict:
            return problem or "the state is no object"
        builder.states.begin(state)
    return problem


def described(builder: Builder, event: Event, payload: Payload) -> str | None:
    """`session.described`: what it names of user, name and metadata (replaced whole)."""
    problem = None
    for field in ("user_id", "name"):
        if field in payload:
            problem = _set_text(builder, field, payload[field]) or problem
    if "metadata" in payload:
        metadata = payload["metadata"]
        if metadata is not None and type(metadata) is not dict:
            return "the metadata is no object"
        builder.metadata = freeze(metadata or {})
    return problem


def renamed(builder: Builder, event: Event, payload: Payload) -> str | None:
    """`session.renamed`."""
    return _set_text(builder, "name", payload["name"]) if "name" in payload else "no name"


def summarized(builder: Builder, event: Event, payload: Payload) -> str | None:
    """`session.summarized`."""
    if "summary" not in payload:
        return "no summary"
    builder.summary = freeze(payload["summary"])
    return None


def closed(builder: Builder, event: Event, payload: Payload) -> None:
    """`session.closed`."""
    builder.status = "closed"


def deleted(builder: Builder, event: Event, payload: Payload) -> None:
    """`session.deleted`: what there is stays until the session is created again."""
    builder.status = "deleted"


def restored(builder: Builder, event: Event, payload: Payload) -> str | None:
    """`session.restored`: the view is that of the target by now; what was not rewound comes back."""
    builder.status = "open"  # Nothing else is recorded in a session that is closed or deleted.
    problem = described(builder, event, payload)
    return problem if "metadata" in payload else "erased"


def forked(builder: Builder, event: Event, payload: Payload) -> str | None:
    """`session.forked`: the view is that of the parent by now; whose session it is comes anew."""
    builder.status = "open"
    if payload:
        builder.user_id = builder.name = None
    return described(builder, event, payload)


def state_changed(builder: Builder, event: Event, payload: Payload) -> str | None:
    """`state.changed`: the ops of its scope, one after the other."""
    scope, ops = payload.get("scope", "session"), payload.get("ops")
    if type(ops) is not list:
        return "no ops"
    if scope == "session":
        editor = builder.states.session
    elif scope == "agent":
        editor = builder.states.agent(_agent_of(event, payload))
    else:
        return "an unknown scope"
    problem = None
    for op in ops:
        problem = editor.apply(op) or problem
    return problem


def started(builder: Builder, event: Event, payload: Payload) -> str | None:
    """`turn.started`: one more turn; one before it that is open is interrupted. A nested run opens none."""
    if event.kind != _TURN_START:
        return None
    last = builder.turns.last()
    if last is not None and last.status == "open":
        builder.turns.replace_last(replace(last, status="interrupted"))
    run_id = payload.get("run_id")
    known = run_id if type(run_id) is str else None
    builder.turns.append(Turn(event.turn, "open", known, event.version, event.at_us), TURN_BYTES)
    builder.turn = event.turn
    return None if run_id is None or known else "the run id is no text"


def paused(builder: Builder, event: Event, payload: Payload) -> str | None:
    """`turn.paused`: the turn waits, through restarts and later turns, until it is resumed or ends."""
    turn = builder.turn_of(event.turn)
    if turn is None or turn.ended_version is not None:
        return "no open turn of that number"
    builder.put_turn(replace(turn, status="paused"))
    builder.paused.add(Pause(event.turn, freeze(payload.get("requirements")), event.version))
    return None


def resumed(builder: Builder, event: Event, payload: Payload) -> str | None:
    """`turn.resumed`: the turn goes on; interrupted if a later one has started meanwhile."""
    if event.kind != _TURN_RESUME:
        return None  # Of a nested run.
    turn = builder.turn_of(event.turn)
    if turn is None or turn.ended_version is not None:
        return "no open turn of that number"
    builder.put_turn(replace(turn, status="open" if turn is builder.turns.last() else "interrupted"))
    builder.paused.drop(event.turn)
    return None


def ended(builder: Builder, event: Event, payload: Payload) -> str | None:
    """`turn.completed`, `turn.failed`, `turn.cancelled`: closes the turn, with what it used."""
    usage, problem = numbers(payload.get("usage"))
    turn = builder.turn_of(event.turn)
    if turn is None:
        builder.add_usage(usage)
        return problem or "no turn of that number"
    if event.kind != _TURN_END:
        builder.add_usage(usage)
        builder.add_turn_usage(turn, usage, responded=False)
        return problem
    if turn.ended_version is not None:
        return "the turn has ended before"
    if turn.status == "paused":
        builder.paused.drop(event.turn)
    builder.settle_usage(event.turn)
    turn = builder.turn_of(event.turn) or turn
    error = freeze(payload.get("error"))
    builder.put_turn(_closed(builder, turn, event, error, usage), weigh(error))
    return problem


def responded(builder: Builder, event: Event, payload: Payload) -> str | None:
    """`model.responded`: what it used counts until the turn's own end says it."""
    usage, problem = numbers(payload.get("usage"))
    if not usage or _is_nested(event, payload):
        return problem
    turn = builder.turn_of(event.turn)
    if turn is None:
        builder.add_usage(usage)
    elif turn.responded is not None:
        builder.add_usage(usage)
        builder.add_turn_usage(turn, usage, responded=True)
    return None


def _set_text(builder: Builder, field: str, value: Any) -> str | None:
    if value is not None and type(value) is not str:
        return f"the {field} is no text"
    setattr(builder, field, value)
    return None


def _agent_of(event: Event, payload: Payload) -> str:
    agent = payload.get("agent_id") or (event.meta or {}).get("agent_id")
    return agent if type(agent) is str else ""


def _is_nested(event: Event, payload: Payload) -> bool:
    parent = payload.get("parent_run_id") or (event.meta or {}).get("parent_run_id")
    return parent is not None


def _closed(builder: Builder, turn: Turn, event: Event, error: Frozen, usage: dict[str, int | float]) -> Turn:
    """The turn with its end, which replaces what its responses used by what the end says."""
    total, rest = turn.usage, turn.responded
    if usage:
        if rest:
            builder.add_usage(rest, -1)
            total = summed(total, {key: -value for key, value in rest.items()})
        builder.add_usage(usage)
        total, rest = summed(total, usage), None
    return Turn(
        turn.number, _ENDS[event.type], turn.run_id, turn.started_version, turn.started_us,
        event.version, event.at_us, error, total, rest,
    )  # fmt: skip
