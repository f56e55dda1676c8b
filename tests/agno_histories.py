"""Random histories of Agno sessions, by Dbs of ours and by a plain one in turn.

After every step Agno's rows have to be what the log says that they are. Who goes back finds the rows as they
were noted at that version, or as the log says that they were.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from kern_events.errors import PointErased, SessionClosed, SessionNotFound
from tests.agno_clients import Client, only

Rows = tuple[str, str]
NOTHING: Rows = ("null", "{}")
MOST_SESSIONS = 4


class History:
    """One history of a few sessions, of one or several clients that stand for processes.

    Args:
        ours: Clients of Dbs of ours.
        plain: A client of Agno's own Db.
        elsewhere: Sessions on the same log, as the command line opens them.
        name: Names the sessions, and is what the steps are chosen by.
    """

    def __init__(self, ours: Sequence[Client], plain: Client, elsewhere: Any, name: str) -> None:
        self.chance = random.Random(name)
        self.ours, self.plain, self.elsewhere = ours, plain, elsewhere
        self.name = name
        self.sessions = [f"{name} 0"]
        self.parents: dict[str, str] = {}
        self.noted: dict[tuple[str, int], Any] = {}  # state and runs at a version
        self.erased: set[str] = set()  # sessions of which something is
        self.told: list[str] = []

    def play(self, steps: int) -> None:
        """So many steps, each held against the rows; the last thing to be said when one fails is which."""
        self.say()
        for _ in range(steps):
            self.chance.choice(STEPS)(self)
        for session_id in self.sessions:
            assert self.ours[0].log.verify(session_id).ok, self.told

    # ------------------------------------------------------------------------------------ choosing

    def client(self, *, plain: bool = True) -> Client:
        return self.chance.choice([*self.ours, self.plain] if plain else self.ours)

    def session(self) -> str:
        return self.chance.choice(self.sessions)

    def runs(self, session_id: str, status: str) -> list[str]:
        """The runs of a session in its rows that have this status."""
        _, runs = only(self.ours[0].rows(session_id))
        return [run_id for run_id, row in runs.items() if row["status"] == status]

    def version(self, session_id: str) -> int:
        return self.chance.randint(0, self.elsewhere.head(session_id).version)

    # --------------------------------------------------------------------------------------- steps

    def say(self) -> None:
        client, session_id = self.client(), self.session()
        options: dict[str, Any] = {"checkpoint": "tool-batch"} if self.chance.random() < 0.3 else {}
        if client is not self.plain and self.chance.random() < 0.3:
            options["pre_hooks"] = [client.own.asked]
        self.did("say", client, session_id, *options)
        client.say(f"words {len(self.told)}", session_id, **options)
        self.check(session_id)

    def pause(self) -> None:
        client, session_id = self.client(), self.session()
        self.did("pause", client, session_id)
        client.ask_to_pay(f"pay {len(self.told)}", session_id)
        self.check(session_id)

    def go_on(self) -> None:
        self.with_a_run("PAUSED", "confirm")

    def regenerate(self) -> None:
        self.with_a_run("COMPLETED", "regenerate")

    def with_a_run(self, status: str, verb: str) -> None:
        client, session_id = self.client(), self.session()
        runs = self.runs(session_id, status)
        if runs:
            run_id = self.chance.choice(runs)
            self.did(verb, client, session_id, run_id)
            getattr(client, verb)(run_id, session_id)
            self.check(session_id)

    def delete_run(self) -> None:
        client, session_id = self.client(), self.session()
        runs = [*only(self.ours[0].rows(session_id))[1]]
        if runs:
            run_id = self.chance.choice(runs)
            self.did("delete_run", client, session_id, run_id)
            client.db.delete_run(run_id)
            self.check(session_id)

    def delete(self) -> None:
        client, session_id = self.client(), self.session()
        self.did("delete", client, session_id)
        client.db.delete_session(session_id)
        self.erased.add(session_id)
        self.check(session_id)

    def restore(self) -> None:
        session_id = self.session()
        version = self.version(session_id)
        log, client = self.way_back()
        self.did("restore", client, session_id, version, log)
        if self.goes(session_id, version, lambda: log.restore(session_id, to_version=version)):
            self.check(session_id, self.then)

    def fork(self) -> None:
        session_id, into = self.session(), f"{self.name} {len(self.sessions)}"
        version = self.version(session_id)
        if len(self.sessions) < MOST_SESSIONS and version:
            log, client = self.way_back()
            self.did("fork", client, session_id, version, log)
            if self.goes(session_id, version, lambda: log.fork(session_id, into, version=version)):
                self.sessions.append(into)
                self.parents[into] = session_id
                self.check(into, self.then)

    def way_back(self) -> tuple[Any, Client]:
        """By what to restore or fork, and who looks at the rows then."""
        client = self.client(plain=False)
        return (self.elsewhere if self.chance.random() < 0.3 else client.log), client

    def goes(self, session_id: str, version: int, work: Callable[[], Any]) -> bool:
        """Go back, unless that point is erased or there is no session; notes what there was then."""
        before = self.elsewhere.head(session_id)
        try:
            self.then = self.past(session_id, version)
            work()
        except PointErased:
            assert self.is_touched_by_erasure(session_id), self.told
        except (SessionNotFound, SessionClosed):
            assert self.look(session_id) == NOTHING, self.told
        else:
            return True
        assert self.elsewhere.head(session_id) == before
        return False

    def past(self, session_id: str, version: int) -> Any:
        """State and runs at a version, as noted, or else as the log tells them."""
        told = only(self.client(plain=False).fold(session_id, version=version))
        noted = None if self.is_touched_by_erasure(session_id) else self.noted.get((session_id, version))
        assert noted in (None, told), self.told
        return told

    # ------------------------------------------------------------------------------------- looking

    def did(self, verb: str, client: Client, session_id: str, *more: Any) -> None:
        self.told.append(f"{verb} {session_id!r} by {client.own.__class__.__qualname__} {more}")

    def is_touched_by_erasure(self, session_id: str) -> bool:
        parent = self.parents.get(session_id)
        return session_id in self.erased or (parent is not None and self.is_touched_by_erasure(parent))

    def look(self, session_id: str) -> Rows:
        """What the log says of a session, for whom one of ours brings rows and log together."""
        client = self.client(plain=False)
        session = client.db.get_session(session_id)
        if session is not None and session_id in self.erased:
            client.db.upsert_session(session)  # What others have deleted is erased with the next write.
        try:
            return client.fold(session_id)
        except SessionNotFound:
            return NOTHING

    def check(self, session_id: str, then: Any = None) -> None:
        """The rows are what the log says, of this session and of those that share something with it."""
        for each in [session_id, *(child for child in self.sessions if self.is_below(child, session_id))]:
            told, rows = self.look(each), self.ours[0].rows(each)
            assert told == rows, f"{self.told}: the log says\n{told}\nand the tables\n{rows}"
        now = only(self.ours[0].rows(session_id))
        if then is not None:
            same = said if session_id in self.parents else lambda past: past
            assert same(now) == same(then), f"{self.told}: {now} after {then}"
        self.noted[session_id, self.elsewhere.head(session_id).version] = now

    def is_below(self, session_id: str, other: str) -> bool:
        parent = self.parents.get(session_id)
        return parent is not None and (parent == other or self.is_below(parent, other))


def said(past: Any) -> Any:
    """State and runs to compare where runs have other ids, in a fork and in what it shares."""
    state, runs = past
    fields = ("input", "content", "status", "metrics")
    told = [[row["run_index"], *(row["run_data"].get(each) for each in fields)] for row in runs.values()]
    return state, sorted(map(repr, told))


STEPS = (
    *[History.say] * 4, *[History.restore] * 4, *[History.fork] * 2, *[History.pause] * 2,
    *[History.go_on] * 2, *[History.regenerate] * 2, History.delete_run, History.delete,
)  # fmt: skip
