"""The demo: an agent at work, recorded as it happens, then read back, taken to its past and verified.

The agent is scripted (no model, no network, no key), but its tools are real: what they return is
computed while the demo runs. With a file of conversations, those take the agent's place.
"""

from __future__ import annotations

import operator
import re
import shlex
from collections.abc import Callable, Iterator
from itertools import count
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

import orjson
from rich.console import Console

from kern_events.cli.reports import put_imported, put_sessions, put_verified
from kern_events.cli.show import put_conversation
from kern_events.cli.text import console, one_line, put
from kern_events.transfer import import_transcripts, lines_of

if TYPE_CHECKING:
    from kern_events import Sessions
    from kern_events.turn import TurnRecorder

_FIRST_LINES: Final = 25  # of a conversation of the user's own
_PROMPT: Final = "You plan bicycle tours. Look distances up, and calculate with the tool, never in your head."
_DISTANCES_KM: Final = {
    ("Berlin", "Oranienburg"): 42,
    ("Oranienburg", "Fürstenberg"): 66,
    ("Fürstenberg", "Waren"): 64,
    ("Waren", "Rostock"): 98,
}


class Step(NamedTuple):
    """One turn of the script: what the user says, the calls of the agent, its answer, what it notes.

    `{0}`, `{1}` ... stand for the results of the turn's calls.
    """

    user: str
    calls: tuple[tuple[str, dict[str, str]], ...]
    answer: str
    state: dict[str, Any]


SCRIPT: Final = (
    Step(
        "How far is it from Berlin to Rostock by bicycle?",
        (("distance", {"via": "Berlin, Oranienburg, Fürstenberg, Waren, Rostock"}), ("calculate", {"term": "{0}"})),
        "By Oranienburg, Fürstenberg and Waren it is {1} km.",
        {"route": ["Berlin", "Oranienburg", "Fürstenberg", "Waren", "Rostock"]},
    ),
    Step(
        "Let's take three days.",
        (("calculate", {"term": "(42 + 66 + 64 + 98) / 3"}),),
        "Three days then: {0} km a day.",
        {"days": 3},
    ),
    Step(
        "That is too much. Five days! And how long is a day at 15 km an hour?",
        (("calculate", {"term": "(42 + 66 + 64 + 98) / 5"}), ("calculate", {"term": "{0} / 15"})),
        "With five days it is {0} km a day, {1} hours in the saddle.",
        {"days": 5},
    ),
)


def run(sessions: Sessions, db: str, file: IO[bytes] | None = None) -> None:
    """Run the demo in an open log, with the agent or with a file of conversations."""
    out = console()
    session_id = _record(out, sessions) if file is None else _import(out, sessions, file)
    if session_id is None:
        return
    _look_back(out, sessions, session_id, whole=file is None)
    _title(out, "Nothing was changed since: the hash chain is recomputed")
    put_verified(out, sessions.verify())
    _put_next(out, db, session_id)


def distance(via: str) -> str:
    """The legs of a route, as a term to calculate: a tool of the agent."""
    places = [place.strip() for place in via.split(",")]
    return " + ".join(str(_DISTANCES_KM[leg]) for leg in zip(places, places[1:], strict=False))


def calculate(term: str) -> str:
    """The value of a term of numbers, + - * / and brackets: a tool of the agent.

    Raises:
        ValueError: It is no such term.
    """
    tokens = re.findall(r"\d+\.?\d*|[-+*/()]", term)
    if "".join(tokens) != re.sub(r"\s", "", term):
        raise ValueError(f"{term!r} is no term of numbers")
    stack = [*reversed(tokens)]
    value = _sum(stack)
    if stack:
        raise ValueError(f"{term!r} ends at {stack[-1]!r}")
    return f"{value:g}"


TOOLS: Final[dict[str, Callable[..., str]]] = {"distance": distance, "calculate": calculate}


def _record(out: Console, sessions: Sessions) -> str:
    session_id = next(name for name in _names() if sessions.head(name).version == 0)
    _title(out, f"An agent talks, and every step is recorded as it happens: session {session_id}")
    for number, step in enumerate(SCRIPT):
        with sessions.turn(session_id, user_id="ada", agent_id="tour-planner") as turn:
            if number == 0:
                turn.message("system", _PROMPT)
            _play(turn, step)
        version = sessions.head(session_id).version
        put(out, f"turn {turn.number}: {step.user}", "cyan", indent=2)
        put(out, f"{len(step.calls)} tool calls; recorded up to version {version}", "dim", indent=4)
    return session_id


def _play(turn: TurnRecorder, step: Step) -> None:
    turn.message("user", step.user)
    results: list[str] = []
    for name, template in step.calls:
        arguments = {key: value.format(*results) for key, value in template.items()}
        # The call is recorded before the tool runs: a crash would show as a call without a result.
        call_id = turn.tool_call(name, arguments)
        results.append(TOOLS[name](**arguments))
        turn.tool_result(call_id, results[-1])
    turn.message("assistant", step.answer.format(*results))
    for key, value in step.state.items():
        turn.set_state(key, value)


def _names() -> Iterator[str]:
    return (f"demo-{number}" for number in count(1))


def _import(out: Console, sessions: Sessions, file: IO[bytes]) -> str | None:
    _title(out, "Your conversations are recorded")
    report = import_transcripts(sessions, lines_of(file))
    put_imported(out, out, report)
    page = sessions.sessions(limit=5)
    if not page:
        return None
    _title(out, "Sessions, the most recently active first")
    put_sessions(page, more=False)
    return max(page, key=lambda info: info.turn).session_id


def _look_back(out: Console, sessions: Sessions, session_id: str, *, whole: bool) -> None:
    view = sessions.load(session_id)
    if whole:
        _title(out, "It is loaded: what the events add up to")
        put_conversation(out, view)
    earlier = max(0, view.turn - 1)
    past = sessions.load(session_id, turn=earlier)
    _title(out, f"And as it was after turn {earlier}, {view.version - past.version} events ago")
    ...
