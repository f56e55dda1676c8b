"""Going back: restore, preview, diff, replay, resume and fork as somebody who uses Sessions sees them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonpatch
import pytest
from msgspec.structs import replace

from kern_events import Draft, import_transcripts, message
from kern_events.errors import (
    SessionClosed,
    SessionNotFound,
    TurnAbandoned,
    TurnNotPaused,
    TurnTaken,
    VersionConflict,
)
from projections import MemoryCache, SessionProjector, Sessions, View
from projections.frozen import thaw
from tests import facade, transcripts
from tests.contract.conftest import Address
from tests.writers import in_threads

KEPT = ("version", "head", "status", "user_id", "name", "metadata")
TRANSCRIPTS = "KERN_EVENTS_TRANSCRIPTS"


@pytest.fixture
def open_sessions(
    facade_kind: str, address: Address, loop: facade.LoopThread
) -> Iterator[Callable[..., Any]]:
    """Opens Sessions at the address, behind either facade; in memory all share one log."""
    with ExitStack() as stack:
        first: list[Any] = []

        def opening(**options: Any) -> Any:
            if address.backend == "memory" and first:
                return first[0]
            options = {"namespace": address.namespace, **options}
            opened = facade.open_sessions(facade_kind, loop, address.url, **options)
            first.append(stack.enter_context(opened))
            return first[-1]

        yield opening


@pytest.fixture
def sessions(open_sessions: Callable[..., Any]) -> Any:
    return open_sessions()


def sync_of(sessions: Any) -> Sessions:
    """The Sessions below either facade."""
    return sessions if isinstance(sessions, Sessions) else sessions.inner._sessions


def ask(sessions: Any, session_id: str, *texts: str, **state: Any) -> None:
    """One turn for each text."""
    for text in texts:
        ops = [["set", [key], value] for key, value in {"last": text, **state}.items()]
        sessions.append(
            session_id,
            [
                Draft("turn.started", {}),
                message("user", text),
                Draft("state.changed", {"scope": "session", "ops": ops}),
                Draft("turn.completed", {"usage": {"tokens": len(text)}}),
            ],
        )


def said(view: View) -> list[Any]:
    return [each.content for each in view.messages]


def same_but_for_what_stays(view: View, other: View) -> bool:
    fields = [field for field in View.__struct_fields__ if field not in KEPT]
    return all(getattr(view, field) == getattr(other, field) for field in fields)


# ---------------------------------------------------------------------------------------- restore


def test_a_session_goes_on_from_where_it_was(sessions):
    ask(sessions, "s", "a", "b", "c")

    receipt = sessions.restore("s", to_turn=1)
    ask(sessions, "s", "d")

    view = sessions.load("s")
    assert (said(view), view.turn, view.state["last"]) == (["a", "d"], 2, "d")
    assert view.usage["tokens"] == 2
    assert receipt.first_version == receipt.version == 13


def test_every_point_of_a_session_can_be_restored(sessions):
    ask(sessions, "s", "a", "b")
    before = [sessions.load("s", version=version) for version in range(9)]

    for version, view in enumerate(before):
        sessions.restore("s", to_version=version)
        assert same_but_for_what_stays(sessions.load("s"), view)


def test_a_restore_is_undone_by_another_one(sessions):
    ask(sessions, "s", "a", "b", "c")
    before = sessions.load("s")
    sessions.restore("s", to_turn=0)
    assert (said(sessions.load("s")), sessions.load("s").turn) == ([], 0)

    sessions.restore("s", to_version=before.version)

    assert same_but_for_what_stays(sessions.load("s"), before)
    assert sessions.verify("s").ok


def test_a_time_means_what_was_recorded_by_then(sessions, clock):
    ask(sessions, "s", "a")
    clock.now_us += 10_000_000
    then = datetime.fromtimestamp(clock.now_us / 1e6, UTC) - timedelta(seconds=5)
    ask(sessions, "s", "b")

    sessions.restore("s", to_time=then)

    assert said(sessions.load("s")) == ["a"]


def test_what_is_not_of_the_conversation_stays(sessions):
    sessions.append("s", [Draft("session.created", {"user_id": "u", "name": "one", "metadata": {"n": 1}})])
    ask(sessions, "s", "a", "b")
    sessions.append("s", [Draft("session.renamed", {"name": "two"})])
    sessions.append("s", [Draft("session.described", {"metadata": {"n": [2]}})])

    sessions.restore("s", to_turn=1)

    view = sessions.load("s")
    assert (view.user_id, view.name, thaw(view.metadata), said(view)) == ("u", "two", {"n": [2]}, ["a"])
    assert sessions.sessions()[0].name == "two"


def test_who_restored_and_why_is_recorded(sessions):
    ask(sessions, "s", "a", "b")
    sessions.restore("s", to_turn=1, reason="astray", actor="ada")

    branch = sessions.branches("s").branches[-1]
    assert (branch.reason, branch.actor, branch.origin_version) == ("astray", "ada", 4)


@pytest.mark.parametrize(
    ("point", "error"),
    [
        ({}, TypeError),
        ({"to_turn": 1, "to_version": 1}, TypeError),
        ({"to_turn": 3}, ValueError),
        ({"to_turn": -1}, ValueError),
        ({"to_version": 9}, ValueError),
        ({"to_time": datetime(2024, 1, 1)}, ValueError),
    ],
)
def test_a_point_that_is_none_is_refused_and_nothing_recorded(sessions, point, error):
    ask(sessions, "s", "a", "b")

    for verb in (sessions.restore, sessions.preview_restore):
        with pytest.raises(error):
            verb("s", **point)
    assert sessions.head("s").version == 8


def test_a_session_that_is_closed_or_gone_is_not_restored(sessions):
    ask(sessions, "s", "a")
    sessions.append("s", [Draft("session.closed", {})])
    with pytest.raises(SessionClosed):
        sessions.restore("s", to_turn=0)

    sessions.delete("s")
    for session_id in ("s", "never"):
        with pytest.raises(SessionNotFound):
            sessions.restore(session_id, to_version=0)


def test_a_decision_on_another_state_is_refused(sessions):
    ask(sessions, "s", "a", "b")
    seen = sessions.load("s").head
    ask(sessions, "s", "c")

    for expected in (seen, seen.version):
        with pytest.raises(VersionConflict):
            sessions.restore("s", to_turn=1, expected=expected)
    assert sessions.restore("s", to_turn=1, expected=sessions.head("s")).version == 13


def test_writers_in_flight_are_told(sessions):
    ask(sessions, "s", "a", "b")
    seen = sessions.load("s").head
    turn = sessions.turn("s")
    recorder = turn.__enter__()
    recorder.message("user", "in flight")

    sessions.restore("s", to_turn=1)

    with pytest.raises(VersionConflict):
        sessions.append("s", [message("user", "late")], expected=seen)
    with pytest.raises(TurnAbandoned):
        recorder.message("assistant", "late")
    with pytest.raises(TurnAbandoned):
        turn.__exit__(None, None, None)
    sessions.append("s", [message("user", "plain")])
    assert said(sessions.load("s")) == ["a", "plain"]


def test_restores_and_writers_at_once_lose_nothing(sessions):
    """Whoever lands behind a restore began behind it."""
    ask(sessions, "s", "a")

    def work(number: int) -> None:
        for round in range(5):
            if number < 2:
                sessions.restore("s", to_turn=0)
            else:
                sessions.append("s", [message("user", f"{number}.{round}")])

    in_threads(4, work)

    events = list(sessions.read("s"))
    assert [event.version for event in events] == list(range(1, len(events) + 1))
    assert len(events) == 4 + 10 + 10
    assert sessions.load("s") == replayed(sessions)
    assert sessions.verify("s").ok


def replayed(sessions: Any, session_id: str = "s") -> View:
    return list(sessions.replay(session_id))[-1][1]


# ------------------------------------------------------------------------- real conversations


def conversations() -> list[Any]:
    if path := os.environ.get(TRANSCRIPTS):
        return [line for line in Path(path).read_bytes().splitlines() if line]
    return transcripts.jsonl(transcripts.conversations())


@pytest.mark.parametrize("facade_kind", ["sync"], indirect=True)
def test_every_turn_of_a_conversation_can_be_restored_and_undone(sessions):
    import_transcripts(sync_of(sessions), conversations())

    for info in sessions.sessions(limit=1_000):
        events, now = info.version, sessions.load(info.session_id)
        views = [sessions.load(info.session_id, turn=turn) for turn in range(info.turn + 1)]
        for turn, view in enumerate(views):
            sessions.restore(info.session_id, to_turn=turn)
            assert same_but_for_what_stays(sessions.load(info.session_id), view)
            sessions.restore(info.session_id, to_version=now.version)
            assert same_but_for_what_stays(sessions.load(info.session_id), now)
        recorded = list(sessions.read(info.session_id))
        assert len(recorded) == events + 2 * len(views)
        assert replayed(sessions, info.session_id) == sessions.load(info.session_id)


# ------------------------------------------------------------------------------ many restores


@pytest.mark.parametrize("facade_kind", ["sync"], indirect=True)
def test_a_thousand_restores_make_no_load_longer(sessions, open_sessions, address, monkeypatch):
    ask(sessions, "s", *"abcdef")
    views = [sessions.load("s", turn=turn) for turn in range(7)]
    whole = sessions.head("s").version
    asked = counted(monkeypatch)
    counts = []
    for number in range(1_000):
        sessions.restore("s", to_version=whole if number % 2 else views[number % 7].version)
        if number % 50 == 0:
            asked.clear()
            assert same_but_for_what_stays(sessions.load("s"), views[number % 7])
            counts.append(len(asked))

    assert set(counts) == {1}
    sync_of(sessions)._loader.settle()
    if address.backend != "memory":
        cold = open_sessions(cache=MemoryCache(0))
        asked.clear()
        assert same_but_for_what_stays(cold.load("s"), views[6])
        assert len(asked) <= 3


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions that loads ask the log."""
    from kern_events import spi

    asked: list[str] = []
    for name in ("tail", "page", "live_path", "own_path", "hash_at"):
        function = getattr(spi, name)

        def asking(*args: Any, function: Any = function, name: str = name, **options: Any) -> Any:
            asked.append(name)
            return function(*args, **options)

        monkeypatch.setattr(spi, name, asking)
    return asked


# --------------------------------------------------------------------------------------- forks


def test_a_fork_goes_its_own_way(sessions):
    ask(sessions, "s", "a", "b")
    sessions.fork("s", "f", turn=1)
    ask(sessions, "f", "c")
    ask(sessions, "s", "d")

    fork, parent = sessions.load("f"), sessions.load("s")
    assert (said(fork), fork.session_id, fork.turn) == (["a", "c"], "f", 2)
    assert said(parent) == ["a", "b", "d"]


def test_a_fork_is_restored_into_its_parents_past(sessions):
    ask(sessions, "s", "a", "b", "c")
    sessions.restore("s", to_turn=1)
    ask(sessions, "s", "d")
    sessions.fork("s", "f")
    sessions.fork("f", "g")
    ask(sessions, "g", "e")

    sessions.restore("g", to_version=8)  # turn 2 of the grandparent, which was abandoned there

    assert said(sessions.load("g")) == ["a", "b"]
    ask(sessions, "g", "x")
    assert (said(sessions.load("g")), sessions.load("g").turn) == (["a", "b", "x"], 3)
    assert said(sessions.load("f")) == said(sessions.load("s")) == ["a", "d"]
    assert sessions.verify().ok


def test_the_past_of_a_fork_is_its_parents(sessions):
    ask(sessions, "s", "a", "b")
    sessions.fork("s", "f")
    ask(sessions, "f", "c")

    for version in range(9):
        ours, theirs = sessions.load("f", version=version), sessions.load("s", version=version)
        assert replace(ours, session_id="s", head=theirs.head) == theirs
    assert said(sessions.load("f", turn=1)) == ["a"]


def test_an_erasure_reaches_the_views_of_forks(sessions):
    ask(sessions, "s", "secret")
    sessions.fork("s", "f")
    assert said(sessions.load("f")) == ["secret"]

    sessions.delete("s")

    view = sessions.load("f")
    assert (said(view), view.incomplete) == ([], True)
    assert sessions.history("f") == []


# --------------------------------------------------------------------------- own projectors


class Types:
    """The types that were folded, and what for."""

    version = 1

    def __init__(self, scope: Any) -> None:
        self.name, self.scope = f"types-{scope}", scope

    def initial(self) -> tuple[str, ...]:
        return ()

    def evolve(self, view: tuple[str, ...], event: Any) -> tuple[str, ...]:
        return (*view, f"{event.session_id}:{event.version}")


def test_a_projector_says_whether_it_counts_what_was_abandoned(sessions):
    sessions.append("s", [message("user", f"{n}") for n in range(3)])
    sessions.restore("s", to_version=1)
    sessions.fork("s", "f")

    live, log = Types("live"), Types("log")
    assert sessions.load("s", projector=live) == ("s:1", "s:4")
    assert sessions.load("s", projector=log) == ("s:1", "s:2", "s:3", "s:4")
    assert sessions.load("f", projector=live) == ("s:1", "s:4", "f:5")
    assert sessions.load("f", projector=log) == ("f:5",)


# -------------------------------------------------------------------------------- diff, preview


def test_a_diff_says_what_came_and_what_went(sessions):
    ask(sessions, "s", "a", "b", n={"x": [1]})
    there = sessions.diff("s", 4, 8)
    back = sessions.diff("s", 8, 4)

    assert ([m.content for m in there.added], there.dropped) == (["b"], ())
    assert ([m.content for m in back.dropped], back.added) == (["b"], ())
    assert [turn.number for turn in there.turns_added] == [2]
    old, new = (thaw(sessions.load("s", version=version).state) for version in (4, 8))
    assert jsonpatch.apply_patch(old, list(there.state)) == new
    assert not sessions.diff("s", 8, 8)


@pytest.mark.parametrize(("old", "new"), [(True, 1), (1, 1.0), (0, False), ([1], [1.0]), ({}, []), ("1", 1)])
def test_a_diff_is_exact_by_type(sessions, old, new):
    sessions.append("s", [Draft("state.changed", {"ops": [["set", ["x"], value]]}) for value in (old, new)])

    [op] = sessions.diff("s", 1, 2).state
    patched = jsonpatch.apply_patch({"x": old}, [op])
    assert (patched, type(patched["x"])) == ({"x": new}, type(new))


def test_a_preview_changes_nothing(sessions):
    ask(sessions, "s", "a", "b", "c")

    preview = sessions.preview_restore("s", to_turn=1)

    assert [m.content for m in preview.dropped] == ["b", "c"]
    assert [turn.number for turn in preview.turns_dropped] == [2, 3]
    assert preview.state == ({"op": "replace", "path": "/last", "value": "a"},)
    assert sessions.head("s").version == 12


# -------------------------------------------------------------------------------------- replay


@pytest.mark.parametrize("scope", ["live", "log"])
def test_every_step_of_a_replay_is_the_view_of_its_version(sessions, scope):
    ask(sessions, "s", "a", "b")
    sessions.restore("s", to_turn=1)
    ask(sessions, "s", "c")
    sessions.fork("s", "f", version=10)
    sessions.restore("f", to_version=7)
    ask(sessions, "f", "d")

    for session_id in ("s", "f"):
        steps = list(sessions.replay(session_id, scope=scope))
        assert steps[-1][1] == sessions.load(session_id)
        for event, view in steps:
            assert view == sessions.load(session_id, version=event.version)
    assert len(list(sessions.replay("s", scope="log"))) == 13


def test_a_replay_keeps_the_pace(sessions, clock, monkeypatch):
    slept: list[float] = []

    async def sleep(seconds: float, *_: Any) -> None:
        slept.append(seconds)

    for after_s in (0, 3, 0.5):
        clock.now_us += int(after_s * 1e6)
        sessions.append("s", [message("user", "x")])
    monkeypatch.setattr("projections.sessions.time.sleep", slept.append)
    monkeypatch.setattr("projections.aio.asyncio.sleep", sleep)
    list(sessions.replay("s", pace=2))

    assert slept == [1.5, 0.25]


def test_a_replay_of_nothing_or_at_no_pace_is_refused(sessions):
    ask(sessions, "s", "a")

    with pytest.raises(SessionNotFound):
        list(sessions.replay("never"))
    for options in (
        {"pace": 0},
        {"pace": 1e-300},
        {"pace": float("nan")},
        {"pace": float("inf")},
        {"scope": "all"},
    ):
        with pytest.raises(ValueError):
            list(sessions.replay("s", **options))


# -------------------------------------------------------------------------------------- resume


def pause(sessions: Any, session_id: str = "s") -> None:
    with sessions.turn(session_id) as turn:
        turn.message("user", "pay")
        turn.tool_call("pay", {"amount": 49}, call_id="c")
        turn.pause({"confirm": ["pay", 49]})


def test_a_paused_turn_is_continued_by_another(sessions, open_sessions):
    pause(sessions)
    others = open_sessions()
    paused = others.load("s")
    assert (thaw(paused.paused[0].requirements), paused.turns[0].status) == (
        {"confirm": ["pay", 49]},
        "paused",
    )

    with others.resume("s") as turn:
        turn.tool_result("c", "paid")

    view = sessions.load("s")
    assert (turn.number, view.turns[0].status, view.paused, view.pending_calls) == (1, "completed", (), ())


def test_of_eight_resumers_one_wins(sessions):
    pause(sessions)

    def work(number: int) -> bool:
        try:
            with sessions.resume("s") as turn:
                turn.message("assistant", f"by {number}")
        except TurnNotPaused as error:
            assert (error.turn, error.status) == (None, None)
            return False
        return True

    assert sum(in_threads(8, work)) == 1
    assert len(said(sessions.load("s"))) == 3


def test_a_turn_that_is_not_paused_is_not_resumed(sessions):
    ask(sessions, "s", "a")
    pause(sessions)
    pause(sessions)
    with pytest.raises(ValueError, match="turns 2, 3 are paused"), sessions.resume("s"):
        pass
    for turn, status in ((1, "completed"), (9, None)):
        with pytest.raises(TurnNotPaused) as caught, sessions.resume("s", turn):
            pass
        assert (caught.value.turn, caught.value.status) == (turn, status)
    with sessions.resume("s", 2) as recorder:
        assert recorder.number == 2


def test_who_resumes_a_turn_that_is_open_is_told_how_to_take_it_over(sessions):
    with pytest.raises(TurnTaken), sessions.turn("s") as hung:
        hung.message("user", "hello")
        with pytest.raises(TurnNotPaused, match=r"open.*expected=view\.head"), sessions.resume("s", 1):
            pass
        with sessions.resume("s", 1, expected=sessions.load("s").head) as turn:
            turn.message("assistant", "Yes?")
        hung.message("assistant", "late")

    assert [each.content for each in sessions.load("s").messages] == ["hello", "Yes?"]


def test_an_open_turn_at_the_target_of_a_restore_is_resumed(sessions):
    sessions.append("s", [Draft("turn.started", {"run_id": "r"}), message("user", "a")])
    sessions.append("s", [message("assistant", "wrong"), Draft("turn.completed", {})])
    sessions.restore("s", to_version=2)
    view = sessions.load("s")
    assert view.turns[-1].status == "open"
    with pytest.raises(TurnNotPaused), sessions.resume("s", 1):
        pass

    with sessions.resume("s", 1, expected=view.head) as turn:
        turn.message("assistant", "right")

    after = sessions.load("s")
    assert (said(after), after.turns[-1].status, after.turns[-1].run_id) == (["a", "right"], "completed", "r")
    with pytest.raises(VersionConflict), sessions.resume("s", 1, expected=view.head):
        pass


def test_a_resumed_turn_is_recorded_as_a_whole_at_its_end(sessions):
    pause(sessions)

    with sessions.resume("s", buffered=True) as turn:
        turn.tool_result("c", "paid")
        assert sessions.load("s").turns[0].status == "open"
        assert sessions.load("s").pending_calls

    assert sessions.load("s").pending_calls == ()


PAUSING = """
import sys
from kern_events import Sessions
with Sessions.open(sys.argv[1]) as sessions:
    turn = sessions.turn("s").__enter__()
    turn.message("user", "pay")
    turn.tool_call("pay", {"amount": 49}, call_id="c")
    turn.pause({"confirm": 49})
    import os
    os._exit(9)
"""


def test_a_turn_outlives_the_process_that_paused_it(tmp_path):
    url = f"sqlite:///{tmp_path}/log.db"
    assert subprocess.run([sys.executable, "-c", PAUSING, url], check=False).returncode == 9

    with Sessions.open(url) as sessions:
        [call] = sessions.load("s").pending_calls
        with sessions.resume("s") as turn:
            turn.tool_result(call.id, "paid")

        assert sessions.load("s").turns[0].status == "completed"
        assert SessionProjector.version == 1


def test_no_snapshot_is_needed(address):
    with Sessions.open(address.url, namespace=address.namespace, durable=False) as sessions:
        ask(sessions, "s", "a", "b")
        sessions.restore("s", to_turn=1)
        assert said(sessions.load("s")) == ["a"]
