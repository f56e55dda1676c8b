"""The demo: an agent at work, recorded as it happens, then read back, taken to its past and verified.

The agent is scripted (no model, no network, no key), but its tools are real: what they return is
computed while the demo runs. With a file of conversations, those take the agent's place.
"""

from __future__ import annotations

import operator
import os
import re
import shlex
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from itertools import count, pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

from rich.console import Console
from sqlalchemy import make_url

from kern_events.cli.branches import put_branches
from kern_events.cli.opening import shown_url
from kern_events.cli.reports import put_imported, put_sessions, put_verified
from kern_events.cli.show import put_conversation
from kern_events.cli.text import console, counted, one_line, put
from kern_events.cli.travel import put_forked, put_restored
from kern_events.transfer import import_transcripts

if TYPE_CHECKING:
    from kern_events import Sessions
    from kern_events.turn import TurnRecorder

_PROMPT: Final = "You plan bicycle tours. Look distances up, and calculate with the tool, never in your head."
_DISTANCES_KM: Final = {
    ("Berlin", "Oranienburg"): 42,
    ("Oranienburg", "Fürstenberg"): 66,
    ("Fürstenberg", "Waren"): 64,
    ("Waren", "Rostock"): 98,
}
_OPERATORS: Final[dict[str, Callable[[float, float], float]]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
_SAID, _FORGED = b"Five days", b"Nine days"
_LARGE_BYTES: Final = 64 << 20  # no copy is made of a database of that size


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
        (
            ("distance", {"via": "Berlin, Oranienburg, Fürstenberg, Waren, Rostock"}),
            ("calculate", {"term": "{0}"}),
        ),
        "By Oranienburg, Fürstenberg and Waren it is {1} km.",
        {"tour": {"from": "Berlin", "to": "Rostock"}},
    ),
    Step(
        "Let's take three days.",
        (("calculate", {"term": "270 / 3"}),),
        "Three days then: {0} km a day.",
        {"days": 3},
    ),
    Step(
        "That is too much. Five days! And how long is a day at 15 km an hour?",
        (("calculate", {"term": "270 / 5"}), ("calculate", {"term": "{0} / 15"})),
        "With five days it is {0} km a day, {1} hours in the saddle.",
        {"days": 5},
    ),
)
INSTEAD: Final = Step(
    "Three days it is. How long is a day at 15 km an hour?",
    (("calculate", {"term": "90 / 15"}),),
    "{0} hours in the saddle, with time for a swim.",
    {"hours": 6},
)


def run(sessions: Sessions, db: str, file: IO[bytes] | None = None) -> None:
    """Run the demo in an open log, with the agent or with a file of conversations.

    Args:
        sessions: Where everything is recorded.
        db: The URL of that log, for the commands that are printed at the end.
        file: Conversations in OpenAI chat form, one JSON line each.
    """
    out = console()
    session_id = _agent(out, sessions, db) if file is None else _own(out, sessions, file)
    if session_id is not None and not db.startswith("memory:"):
        _put_next(out, db, session_id)


def distance(via: str) -> str:
    """The legs of a route in km, as a sum to calculate: a tool of the agent."""
    places = [place.strip() for place in via.split(",")]
    return " + ".join(str(_DISTANCES_KM[leg]) for leg in pairwise(places))


def calculate(term: str) -> str:
    """The value of a term of numbers, + - * / and brackets: a tool of the agent.

    Raises:
        ValueError: It is no such term.
    """
    tokens = re.findall(r"\d+\.?\d*|[-+*/()]", term)
    if "".join(tokens) != "".join(term.split()):
        raise ValueError(f"{term!r} is no term of numbers")
    tokens.reverse()
    value = _chain(tokens, "+-", lambda: _chain(tokens, "*/", lambda: _operand(tokens)))
    if tokens:
        raise ValueError(f"{term!r} cannot be read at {tokens[-1]!r}")
    return f"{value:g}"


TOOLS: Final[dict[str, Callable[..., str]]] = {"distance": distance, "calculate": calculate}


def _chain(tokens: list[str], signs: str, operand: Callable[[], float]) -> float:
    value = operand()
    while tokens and tokens[-1] in signs:
        value = _OPERATORS[tokens.pop()](value, operand())
    return value


def _operand(tokens: list[str]) -> float:
    item = tokens.pop() if tokens else ""
    if item == "(":
        value = _chain(tokens, "+-", lambda: _chain(tokens, "*/", lambda: _operand(tokens)))
        if not tokens or tokens.pop() != ")":
            raise ValueError("a bracket is not closed")
        return value
    return float(item)


def _agent(out: Console, sessions: Sessions, db: str) -> str:
    """Record the agent in a new session, and look at what is recorded."""
    session_id = next(name for name in map("demo-{}".format, count(1)) if not sessions.head(name).version)
    _title(out, f"An agent talks, and what it does is recorded as it happens: session {session_id}")
    for step in SCRIPT:
        _record(out, sessions, session_id, step)
    _title(out, "The session is loaded: what its events add up to")
    put_conversation(out, sessions.load(session_id))
    _look_back(out, sessions, session_id)
    _go_back(out, sessions, session_id)
    _title(out, "The hash chain is recomputed: was anything changed?")
    put_verified(out, sessions.verify(session_id))
    path = make_url(db).database if db.startswith("sqlite") else None
    if path and os.path.exists(path) and os.path.getsize(path) < _LARGE_BYTES:
        _forge(out, path, session_id)
    return session_id


def _own(out: Console, sessions: Sessions, file: IO[bytes]) -> str | None:
    """Import the user's conversations, and look at one; None if there is none."""
    _title(out, "Your conversations are recorded")
    put_imported(out, out, import_transcripts(sessions, file))
    page = sessions.sessions(limit=10)
    _title(out, "The sessions, the most recently active first")
    put_sessions(page, more=False)
    if not page:
        return None
    longest = max(page, key=lambda info: info.turn)
    turn = min(2, longest.turn)
    _title(out, f"One of them, as it was at the end of turn {turn}")
    put_conversation(out, sessions.load(longest.session_id, turn=turn))
    _title(out, "The hash chains are recomputed: was anything changed?")
    put_verified(out, sessions.verify())
    return longest.session_id


def _record(out: Console, sessions: Sessions, session_id: str, step: Step) -> None:
    with sessions.turn(session_id, user_id="ada", agent_id="tour-planner") as turn:
        if turn.number == 1:
            turn.message("system", _PROMPT)
        _play(turn, step)
    put(out, f"turn {turn.number}  {step.user}", "cyan", indent=2)
    calls, version = counted(len(step.calls), "tool call"), sessions.head(session_id).version
    put(out, f"{calls}, an answer and a note; the log is at version {version}", "dim", indent=10)


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


def _look_back(out: Console, sessions: Sessions, session_id: str) -> None:
    now, then = sessions.load(session_id), sessions.load(session_id, turn=2)
    _title(out, "And as it was at the end of turn 2: nothing is overwritten, so nothing is lost")
    put(out, f"then  {len(then.messages)} messages, {then.state['days']} days: {then.messages[-1].content}")
    put(out, f"now   {len(now.messages)} messages, {now.state['days']} days: {now.messages[-1].content}")


def _go_back(out: Console, sessions: Sessions, session_id: str) -> None:
    """Take the session back, let the agent go on from there, and keep the other way as a fork."""
    _title(out, "Ada thinks again: the session goes back to the end of turn 2, when it was three days")
    diff = sessions.preview_restore(session_id, to_turn=2)
    receipt = sessions.restore(session_id, to_turn=2, reason="three days are better", actor="ada")
    put_restored(out, diff, receipt, 2)
    _title(out, "The agent goes on from there, and knows of three days only")
    _record(out, sessions, session_id, INSTEAD)
    put(out, f"now   {sessions.load(session_id).messages[-1].content}")
    _title(out, "The five days are abandoned, not lost: a fork goes on with them beside the session")
    forked = sessions.fork(session_id, f"{session_id}-five-days", version=diff.before)
    put_forked(out, session_id, forked, 3)
    put(out, f"there {sessions.load(forked.session_id).messages[-1].content}\n")
    put_branches(out, sessions.branches(session_id))


def _forge(out: Console, path: str, session_id: str) -> None:
    """Change bytes in a copy of the file, past the database and its rules, and verify that."""
    from kern_events import SessionLog

    _title(out, "In a copy of the file, somebody makes five days nine: does verify notice?")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "forged.db"
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
        # Snapshots hold it too, and may lie before the event in the file.
        copy.write_bytes(copy.read_bytes().replace(_SAID, _FORGED))
        with SessionLog(f"sqlite:///{copy}") as log:
            put_verified(out, log.verify(session_id).with_notes(()))


def _put_next(out: Console, db: str, session_id: str) -> None:
    command = "kern-events"
    if shutil.which(command) is None:
        command = f"{shlex.quote(os.path.relpath(sys.executable))} -m kern_events"
    url = shlex.quote(shown_url(db))
    session = one_line(shlex.quote(session_id))
    _title(out, "To go on from here")
    for line in (
        f"ls --db {url}",
        f"show {session} --db {url}",
        f"show {session} --turn 1 --db {url}",
        f"show {session} --events --db {url}",
        f"branches {session} --db {url}",
        f"restore {session} --turn 1 --dry-run --db {url}",
        f"verify --db {url}",
        f"demo FILE.jsonl --db {url}      # your own conversations",
    ):
        out.print(f"  {command} {line}", soft_wrap=True)


def _title(out: Console, text: str) -> None:
    put(out, f"\n{text}", "bold yellow")
