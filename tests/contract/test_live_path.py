"""Which versions count, in random forests of restores and forks, against lists that are copied."""

from __future__ import annotations

import random
from typing import Any

import pytest

from kern_events import Draft, lineage, spi
from tests import facade
from tests.writers import note, pick


class Naive:
    """For each session, by version: the (session, version) pairs that count there; and their turns."""

    def __init__(self) -> None:
        self.paths: dict[str, list[list[tuple[str, int]]]] = {}
        self.turns: dict[tuple[str, int], int] = {}

    def appended(self, session_id: str, starts: bool) -> None:
        states = self.paths.setdefault(session_id, [[]])
        event = (session_id, len(states))
        states.append([*states[-1], event])
        if starts:
            self.turns[event] = self.turn(session_id, len(states) - 2) + 1

    def restored(self, session_id: str, target: int) -> None:
        states = self.paths[session_id]
        states.append([*states[target], (session_id, len(states))])

    def forked(self, parent: str, version: int, into: str) -> None:
        self.paths[into] = self.paths[parent][: version + 1]
        self.appended(into, False)

    def turn(self, session_id: str, version: int) -> int:
        """The highest turn that started on the path of a version."""
        return max((self.turns.get(event, 0) for event in self.paths[session_id][version]), default=0)

    def version_of_turn(self, session_id: str, turn: int) -> int:
        """The version before the next turn started on the path of the head."""
        for owner, version in self.paths[session_id][-1]:
            if self.turns.get((owner, version)) == turn + 1:
                return version - 1
        return len(self.paths[session_id]) - 1


def grow(sessions: Any, naive: Naive, random_: random.Random, steps: int) -> None:
    """Random appends, restores and forks; the session is one of those that there are."""
    naive.appended("s0", False)
    sessions.append("s0", [note()])
    for number in range(steps):
        session_id = random_.choice(list(naive.paths))
        last = len(naive.paths[session_id]) - 1
        match random_.randrange(6):
            case 0:
                target = random_.randint(0, last)
                spi.restore(sessions, session_id, target, {}, sessions.head(session_id), actor=None)
                naive.restored(session_id, target)
            case 1 if len(naive.paths) < 8:
                version, into = random_.randint(1, last), f"s{number + 1}"
                sessions.fork(session_id, into, version=version)
                naive.forked(session_id, version, into)
            case _:
                starts = random_.random() < 0.5
                sessions.append(session_id, [Draft("turn.started", {}) if starts else note()])
                naive.appended(session_id, starts)


def time_of(sessions: Any, session_id: str, version: int) -> int:
    """When a version in the rows of a session was recorded."""
    [event] = spi.page(sessions, session_id, version - 1, version)[0]
    return event.at_us


def check(sessions: Any, naive: Naive) -> int:
    """How many points were compared."""
    points = 0
    for session_id, states in naive.paths.items():
        head = sessions.head(session_id)
        assert head.version == len(states) - 1
        assert head.turn == naive.turn(session_id, head.version)
        for version, expected in enumerate(states):
            path = spi.live_path(sessions, session_id, version)
            assert [(one.session_id, v) for one in path for v in range(one.first, one.last + 1)] == expected
            assert all(one.first <= one.last for one in path)
            turn = lineage.turn_at(sessions._store, sessions.namespace, session_id, version)
            assert turn == naive.turn(session_id, version)
            points += 1
        middle = len(states) // 2
        at_us = time_of(sessions, *states[middle][-1])
        found = lineage.version_at(sessions._store, sessions.namespace, session_id, at_us)
        assert found >= middle and time_of(sessions, *states[found][-1]) == at_us
        for turn in range(head.turn + 1):
            assert spi.point(sessions, session_id, head, turn=turn) == naive.version_of_turn(session_id, turn)
    return points


CASES = {"memory": 300, "sqlite": 25, "postgres": 15, "pgbouncer": 15}


@pytest.mark.parametrize("facade_kind", ["sync"], indirect=True)
def test_live_paths_are_those_of_a_naive_fold(open_log, backend):
    for case in range(CASES[backend]):
        naive = Naive()
        log = facade.sync_of(open_log(namespace=f"case-{case}"))
        grow(log, naive, pick(("forest", backend, case)), steps=40)

        assert check(log, naive) > 30
        assert log.verify().ok


@pytest.mark.parametrize("facade_kind", ["sync"], indirect=True)
@facade.only_on("memory")
def test_a_path_that_forgets_a_restore_is_caught(open_log, monkeypatch):
    """The control."""
    walk = lineage._walk
    monkeypatch.setattr(
        lineage,
        "_walk",
        lambda session_id, found, version, ranges: walk(
            session_id, found._replace(restores=found.restores[:-1]), version, ranges
        ),
    )
    naive = Naive()
    log = facade.sync_of(open_log())

    with pytest.raises(AssertionError):
        grow(log, naive, pick("control"), steps=40)
        check(log, naive)
