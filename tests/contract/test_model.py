"""Everything at once, in any order, against a model that is told naively.

Two processes with a memory each append, restore, fork, delete, look back, lose their caches and start
anew; after every step one of them loads some session at some point. The limits are so low that small
sessions meet every way in which a view comes about.
"""

from __future__ import annotations

import functools
import random
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import jsonpatch
import orjson
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from kern_events import Draft, Event, lineage, spi
from kern_events.errors import (
    KernError,
    PointErased,
    SessionClosed,
    SessionExists,
    SessionNotFound,
    TurnAbandoned,
    TurnNotPaused,
    VersionConflict,
)
from kern_events.store.memory import MemoryStore
from projections import RedisCache, SessionProjector, View, chunks, history, loading, paths, stored
from projections.caches import tiers
from projections.frozen import thaw
from tests import databases, facade
from tests.model import KINDS, Model, Told, drafts_of

MOST_SESSIONS = 6

process = st.integers(0, 1)
which = st.integers(0, MOST_SESSIONS - 1)
small = st.integers(0, 30)
point = st.tuples(st.sampled_from(["turn", "version", "time"]), st.integers(0, 1_000))
batches = st.lists(st.tuples(st.sampled_from(KINDS), small), min_size=1, max_size=4)


class Tally:
    """Counts events; stored as a whole."""

    version = 1
    view_type = dict[str, int]

    def __init__(self, scope: Literal["live", "log"]) -> None:
        self.scope: Literal["live", "log"] = scope
        self.name = f"tally-{scope}"

    def initial(self) -> dict[str, int]:
        return {}

    def evolve(self, view: dict[str, int], event: Event) -> dict[str, int]:
        return {**view, event.type: view.get(event.type, 0) + 1}


@dataclass(frozen=True)
class World:
    """Where a machine runs: a backend, one facade, with or without Redis."""

    backend: str
    facade_kind: str
    loop: facade.LoopThread
    url: str
    redis_url: str | None
    sql: Callable[..., list[Any]]


class Kept(MemoryStore):
    """Outlives the Sessions that it is opened by, as a database does."""

    def close(self) -> None: ...


class Machine(RuleBasedStateMachine):
    """What may happen to sessions."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.namespace = f"n{uuid.uuid4().hex}"
        self.model = Model()
        self.random = random.Random(0)
        self.store = Kept() if self.world.backend == "memory" else None
        self.processes = [self._opened(redis=True), self._opened(redis=True)]

    def _opened(self, *, redis: bool) -> Any:
        world, cache = self.world, None
        if world.redis_url and redis:
            cache = RedisCache(world.redis_url, prefix=self.namespace, timeout_s=5.0)
        options = {"namespace": self.namespace, "cache": cache}
        opened = facade.open_sessions(world.facade_kind, world.loop, world.url, **options)
        if self.store is not None:
            facade.sync_of(opened)._store = self.store
        return opened

    def teardown(self) -> None:
        try:
            assert not self.processes[0].verify().findings
        finally:
            for each in self.processes:
                each.close()

    # ------------------------------------------------------------------------------------ helpers

    def pick(self, number: int) -> str:
        names = sorted(self.model.sessions)
        return names[number % len(names)]

    def version_of(self, session_id: str, where: tuple[str, int]) -> tuple[int, Any]:
        """A point as the model understands it: its version, and the value to ask for it with."""
        kind, number = where
        now = self.model.now(session_id)
        if kind == "turn":
            turn = number % (now.turn + 1)
            return self.model.version_of_turn(session_id, turn), turn
        version = number % (now.version + 1)
        if kind == "version":
            return version, version
        event = self.model.event(session_id, max(version, 1))
        at = event.at + timedelta(microseconds=number % 3 - 1)
        return self.model.version_at(session_id, event.at_us + number % 3 - 1), at

    def took(
        self, session_id: str, receipt: Any, *expected: tuple[str, dict[str, Any] | None]
    ) -> list[Event]:
        """Put into the model what was recorded, which has to be this and nothing else."""
        told = self.model.sessions[session_id]
        log = facade.sync_of(self.processes[0])
        events, _ = spi.page(log, session_id, told.version, 2**62)
        assert [event.version for event in events] == [*range(told.version + 1, receipt.version + 1)]
        for event, (type, payload) in zip(events, expected, strict=True):
            assert event.type == type
            assert payload is None or exact(event.payload) == exact(payload)
        told.events |= {event.version: event for event in events}
        head, now = log.head(session_id), self.model.now(session_id)
        assert (head.version, head.turn, head.status) == (now.version, now.turn, now.status)
        return list(events)

    def drafts(self, session_id: str, batch: list[tuple[str, int]]) -> list[Draft]:
        """Drafts that fit: only the first looks at the session, the others have to be plain."""
        now = self.model.now(session_id)
        made = [] if now.status == "open" else [Draft("session.created", {})]
        if now.status == "deleted":
            now = View()
        for place, (kind, number) in enumerate(batch):
            plain = kind in ("said", "turn", "unknown", "described", "begun")
            made += drafts_of(kind if place == 0 or plain else "said", number, now)
        return made

    def is_deleted(self, session_id: str) -> bool:
        return self.model.now(session_id).status == "deleted"

    # -------------------------------------------------------------------------------------- rules

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.random.seed(seed)
        self.model.sessions["s0"] = Told()
        drafts = drafts_of("turn", seed % 30, View())
        receipt = self.processes[0].append("s0", drafts, expected=0)
        self.took("s0", receipt, *((draft.type, draft.payload) for draft in drafts))

    @precondition(lambda self: len(self.model.sessions) < MOST_SESSIONS)
    @rule(who=process, batch=batches)
    def another(self, who: int, batch: list[tuple[str, int]]) -> None:
        session_id = f"s{len(self.model.sessions)}"
        drafts = [draft for kind, n in batch for draft in drafts_of(kind, n, View())]
        drafts = drafts if drafts[0].type == "session.created" else [Draft("session.created", {}), *drafts]
        with suppress(SessionClosed):
            receipt = self.processes[who].append(session_id, drafts)
            self.model.sessions[session_id] = Told()
            self.took(session_id, receipt, *((draft.type, draft.payload) for draft in drafts))

    @rule(who=process, at=which, batch=batches, how=st.sampled_from(["end", "version", "head"]))
    def append(self, who: int, at: int, batch: list[tuple[str, int]], how: str) -> None:
        session_id = self.pick(at)
        drafts = self.drafts(session_id, batch)
        head = self.processes[who].head(session_id)
        expected = {"end": None, "version": head.version, "head": head}[how]

        receipt = self.processes[who].append(session_id, drafts, expected=expected)

        self.took(session_id, receipt, *((draft.type, draft.payload) for draft in drafts))

    @rule(who=process, at=which, batch=batches, key=st.booleans())
    def append_twice(self, who: int, at: int, batch: list[tuple[str, int]], key: bool) -> None:
        session_id = self.pick(at)
        drafts = self.drafts(session_id, batch)
        base = self.processes[who].head(session_id).version
        how: dict[str, Any] = {"idempotency_key": uuid.uuid4().hex} if key else {"expected": base}

        receipts = [each.append(session_id, drafts, **how) for each in self.processes]

        assert receipts[0].version == receipts[1].version == base + len(drafts)
        self.took(session_id, receipts[0], *((draft.type, draft.payload) for draft in drafts))
        with pytest.raises(VersionConflict):
            self.processes[who].append(session_id, [Draft("session.created", {})], expected=base)

    @rule(who=process, at=which, where=point, guard=st.sampled_from(["", "version", "head"]))
    def restore(self, who: int, at: int, where: tuple[str, int], guard: str) -> None:
        session_id, log = self.pick(at), self.processes[who]
        before = self.model.now(session_id)
        target, asked = self.version_of(session_id, where)
        how: dict[str, Any] = {f"to_{where[0]}": asked}
        if guard:
            head = log.head(session_id)
            how["expected"] = head if guard == "head" else head.version
        if before.status != "open":
            closed = SessionClosed if before.status == "closed" else SessionNotFound
            with pytest.raises((closed, PointErased) if self.model.is_erased(session_id, target) else closed):
                log.restore(session_id, **how)
            return
        if self.model.is_erased(session_id, target):
            for refused in (log.restore, log.preview_restore):
                with pytest.raises(PointErased):
                    refused(session_id, **{f"to_{where[0]}": asked})
            return

        receipt = log.restore(session_id, **how, reason="why")

        [event] = self.took(session_id, receipt, ("session.restored", None))
        after, then = self.model.now(session_id), self.model.view(session_id, target, before.head)
        assert event.ref == target
        assert (after.name, after.user_id, after.metadata) == (before.name, before.user_id, before.metadata)
        assert after.status == "open"
        for same in ("messages", "context", "state", "turns", "usage", "turn", "paused", "pending_calls"):
            assert getattr(after, same) == getattr(then, same)

    @rule(who=process, at=which, where=point)
    def fork(self, who: int, at: int, where: tuple[str, int]) -> None:
        session_id, log = self.pick(at), self.processes[who]
        parent = self.model.now(session_id)
        into = f"s{len(self.model.sessions)}"
        origin, asked = self.version_of(session_id, where)
        how = {where[0]: asked} if where[0] != "time" else {}
        origin = origin if how else parent.version
        if parent.status == "deleted" or origin == 0:
            with pytest.raises((SessionNotFound, ValueError)):
                log.fork(session_id, into, **how)
            return
        if self.model.is_erased(session_id, origin):
            with pytest.raises(PointErased):
                log.fork(session_id, into, **how)
            return
        if len(self.model.sessions) >= MOST_SESSIONS:
            with pytest.raises(SessionExists):
                log.fork(session_id, self.pick(who), **how)
            return

        receipt = log.fork(session_id, into, **how)

        self.model.sessions[into] = Told(session_id, origin)
        self.took(into, receipt, ("session.forked", None))
        forked = self.model.now(into)
        assert (forked.name, forked.user_id, forked.metadata, forked.status) == (
            parent.name, parent.user_id, parent.metadata, "open",
        )  # fmt: skip
        assert forked.messages == self.model.view(session_id, origin, parent.head).messages

    @rule(who=process, at=which, sure=st.integers(0, 2))
    def delete(self, who: int, at: int, sure: int) -> None:
        if sure:
            return
        session_id = self.pick(at)
        if self.is_deleted(session_id):
            with pytest.raises(SessionNotFound):
                self.processes[who].delete(session_id)
            return
        receipt = self.processes[who].delete(session_id)
        [tombstone] = self.took(session_id, receipt, ("session.deleted", {}))
        self.model.delete(session_id, tombstone)

    @rule(who=process, at=which, where=point)
    def abandon_a_turn(self, who: int, at: int, where: tuple[str, int]) -> None:
        session_id, log, other = self.pick(at), self.processes[who], self.processes[1 - who]
        if self.model.now(session_id).status != "open":
            return
        with pytest.raises(TurnAbandoned), log.turn(session_id) as turn:
            turn.message("user", "soon gone")
            self.took(session_id, turn.receipt, ("turn.started", {}), ("message.added", None))
            target, asked = self.version_of(session_id, where)
            if self.model.is_erased(session_id, target):
                where, asked = ("version", 0), 0
            receipt = other.restore(session_id, **{f"to_{where[0]}": asked})
            self.took(session_id, receipt, ("session.restored", None))
            turn.message("user", "too late")

    @rule(who=process, at=which, ends=st.booleans())
    def resume(self, who: int, at: int, ends: bool) -> None:
        session_id, log = self.pick(at), self.processes[who]
        if self.model.now(session_id).status != "open":
            return
        if not self.model.now(session_id).paused:
            with log.turn(session_id) as turn:
                turn.pause({"wait": ["for", 1]})
            self.took(session_id, turn.receipt, ("turn.started", {}), ("turn.paused", None))
        number = self.model.now(session_id).paused[-1].turn
        with log.resume(session_id, number) as turn:
            turn.message("assistant", "goes on")
            with pytest.raises(TurnNotPaused), self.processes[1 - who].resume(session_id, number):
                pass
            turn.complete() if ends else turn.pause(["more"])
        recorded = ["turn.resumed", "message.added", "turn.completed" if ends else "turn.paused"]
        events = self.took(session_id, turn.receipt, *((type, None) for type in recorded))
        assert {event.turn for event in events} == {number}

    @rule(who=process, at=which, cold=st.booleans(), turns=st.integers(0, 5), messages=st.integers(0, 12))
    def windows(self, who: int, at: int, cold: bool, turns: int, messages: int) -> None:
        session_id, log = self.pick(at), self.processes[who]
        if self.is_deleted(session_id):
            return
        view = self.model.now(session_id)
        for window in ({"last_turns": turns}, {"last_messages": messages}, {}):
            if cold:
                self.evict(who, at)
            assert log.history(session_id, **window) == history(view, **window)

    @rule(who=process, at=which)
    def keep(self, who: int, at: int) -> None:
        session_id, loader = self.pick(at), facade.sync_of(self.processes[who])._loader
        if not self.is_deleted(session_id):
            projector = SessionProjector()
            loader.keep(session_id, projector, loader.current(session_id, projector))

    @rule(who=process, at=which, scope=st.sampled_from(["live", "log"]), where=point)
    def tally(self, who: int, at: int, scope: Literal["live", "log"], where: tuple[str, int]) -> None:
        session_id, log = self.pick(at), self.processes[who]
        if self.is_deleted(session_id):
            return
        now = self.model.now(session_id).version
        for version, how in ((now, {}), (self.version_of(session_id, ("version", where[1]))[0], None)):
            asked = {"version": version} if how is None else how
            own = range(self.model.sessions[session_id].origin + 1, version + 1)
            log_events = [self.model.event(session_id, each) for each in own]
            events = self.model.path(session_id, version) if scope == "live" else log_events
            projector = Tally(scope)
            expected = functools.reduce(projector.evolve, events, projector.initial())
            assert log.load(session_id, projector=projector, **asked) == expected

    @rule(who=process, at=which, scope=st.sampled_from(["live", "log"]))
    def replay(self, who: int, at: int, scope: str) -> None:
        session_id, log = self.pick(at), self.processes[who]
        if self.is_deleted(session_id):
            return
        told, head = self.model.sessions[session_id], log.head(session_id)
        if scope == "live":
            events = self.model.path(session_id, told.version)
        else:
            events = [*self.model.path(session_id, told.origin), *told.events.values()]

        steps = list(log.replay(session_id, scope=scope))

        assert [(e.session_id, e.version) for e, _ in steps] == [(e.session_id, e.version) for e in events]
        for event, view in steps:
            assert_same(view, self.model.view(session_id, event.version, head))

    @rule(who=process, at=which, one=point, other=point)
    def diff(self, who: int, at: int, one: tuple[str, int], other: tuple[str, int]) -> None:
        session_id, log = self.pick(at), self.processes[who]
        if self.is_deleted(session_id):
            return
        (a, _), (b, asked) = self.version_of(session_id, one), self.version_of(session_id, other)
        head = log.head(session_id)
        old, new = (self.model.view(session_id, version, head) for version in (a, b))

        assert_leads(log.diff(session_id, a, b), old, new)
        if self.model.is_erased(session_id, b):
            return
        preview = log.preview_restore(session_id, **{f"to_{other[0]}": asked})
        assert_leads(preview, self.model.now(session_id), new)

    @rule(who=process, at=which)
    def evict(self, who: int, at: int) -> None:
        facade.sync_of(self.processes[who])._loader._memory.purge(self.namespace, self.pick(at))

    @precondition(lambda self: self.world.redis_url)
    @rule(all=st.booleans())
    def lose_redis(self, all: bool) -> None:
        import redis

        with redis.Redis.from_url(self.world.redis_url) as client:
            keys = sorted(client.scan_iter(f"{self.namespace}:*", count=1_000))
            keys = keys if all or not keys else [self.random.choice(keys)]
            if keys:
                client.delete(*keys)

    @rule(how=st.sampled_from(["all", "one", "damage"]))
    def lose_durable(self, how: str) -> None:
        if self.store is not None:
            return self._lose_in_memory(how)
        sql = self.world.sql
        if how == "all":
            sql("DELETE FROM kern_snapshots WHERE namespace = ?", self.namespace)
            return
        rows = sql(
            "SELECT session_id, projector, chunk FROM kern_snapshots WHERE namespace = ?", self.namespace
        )
        if rows:
            row = self.random.choice(sorted(rows))
            change = "DELETE FROM kern_snapshots" if how == "one" else "UPDATE kern_snapshots SET data = ?"
            place = " WHERE namespace = ? AND session_id = ? AND projector = ? AND chunk = ?"
            data = () if how == "one" else (b"\x01" + self.random.randbytes(40),)
            sql(change + place, *data, self.namespace, *row)

    def _lose_in_memory(self, how: str) -> None:
        assert self.store is not None
        found = [(rows, name) for rows in self.store._snapshots.values() for name in rows]
        if how == "all" or not found:
            self.store._snapshots.clear()
            return
        rows, name = self.random.choice(found)
        if how == "one":
            del rows[name]
        else:
            rows[name] = rows[name]._replace(data=b"\x01" + self.random.randbytes(40))

    @rule(who=process, redis=st.booleans())
    def restart(self, who: int, redis: bool) -> None:
        self.processes[who].close()
        self.processes[who] = self._opened(redis=redis)

    @invariant()
    def every_load_is_the_fold_of_what_counts(self) -> None:
        session_id = self.random.choice(sorted(self.model.sessions))
        log = self.random.choice(self.processes)
        kind = self.random.choice(["now", "now", "turn", "version", "time"])
        where = (kind, self.random.randrange(1_000))
        if self.is_deleted(session_id):
            with pytest.raises(SessionNotFound):
                log.load(session_id)
            return
        head = log.head(session_id)
        version, how = head.version, {}
        if kind != "now":
            version, asked = self.version_of(session_id, where)
            how = {"at" if kind == "time" else kind: asked}

        view = log.load(session_id, **how)

        assert_same(view, self.model.view(session_id, version, head))


def assert_same(view: View, expected: View) -> None:
    """Equal, by type too, and in equal chunks."""
    assert view == expected
    assert exact(view.to_dict()) == exact(expected.to_dict())
    for field in ("messages", "context", "turns"):
        ours, theirs = getattr(view, field), getattr(expected, field)
        assert [*map(len, ours.closed)] == [*map(len, theirs.closed)]
        assert ours.weight == theirs.weight
    assert (view.context is view.messages) == (expected.context is expected.messages)


def assert_leads(diff: Any, old: View, new: View) -> None:
    """Applied to the old, a diff gives the new."""
    for field, key in (("", lambda m: (m.version, m.id)), ("turns_", lambda turn: turn.started_version)):
        before, after = (getattr(view, "turns" if field else "messages") for view in (old, new))
        items = {key(each): each for each in before}
        for each in getattr(diff, f"{field}dropped"):
            assert items.pop(key(each)) == each
        items |= {key(each): each for each in getattr(diff, f"{field}added")}
        assert items == {key(each): each for each in after}
    state = jsonpatch.apply_patch(thaw(old.state), list(diff.state))
    assert exact(state) == exact(thaw(new.state))


def exact(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


# ------------------------------------------------------------------------------------------- runs


@pytest.fixture(autouse=True)
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a session of twenty events is a long one."""
    monkeypatch.setattr(chunks, "CHUNK_ITEMS", 3)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 400)
    monkeypatch.setattr(tiers, "AT_LEAST", 4)
    monkeypatch.setattr(tiers, "_DUE_EVENTS", 12)
    monkeypatch.setattr(tiers, "LADDER", 16)
    monkeypatch.setattr(loading, "PAGE", 5)
    monkeypatch.setattr(paths, "PAGE", 5)
    monkeypatch.setattr(loading, "_FAR", 3)
    monkeypatch.setattr(stored, "_LISTED", 2)
    monkeypatch.setattr(stored, "_BLOCK_BYTES", 2 * stored._ENTRY.size)


@pytest.fixture(params=["", "redis"])
def redis_or_none(request: pytest.FixtureRequest) -> str | None:
    return request.getfixturevalue("redis_server") if request.param else None


@pytest.fixture
def world(
    backend: str,
    facade_kind: str,
    redis_or_none: str | None,
    loop: facade.LoopThread,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[World]:
    options = (backend, facade_kind, loop)
    if backend == "memory":
        yield World(*options, "memory:", redis_or_none, lambda *_: [])
    elif backend == "sqlite":
        file = tmp_path / "log.db"
        yield World(*options, f"sqlite:///{file}", redis_or_none, functools.partial(_sqlite, file))
    else:
        url = request.getfixturevalue("shared_postgres_url")
        with databases.connect(url) as connection:
            yield World(*options, url, redis_or_none, functools.partial(_postgres, connection))


def _sqlite(file: Path, statement: str, *values: Any) -> list[Any]:
    with sqlite3.connect(file, timeout=10) as connection:
        rows = connection.execute(statement, values).fetchall()
    connection.close()
    return rows


def _postgres(connection: Any, statement: str, *values: Any) -> list[Any]:
    cursor = connection.execute(statement.replace("?", "%s"), values)
    return cursor.fetchall() if cursor.description else []


def run(world: World, examples: int, steps: int, *, phases: Any = tuple(Phase)) -> None:
    machine = type(f"MachineOn{world.backend}", (Machine,), {"world": world})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            print_blob=True,
            derandomize=phases != tuple(Phase),  # A control finds it every time, or never.
            database=None,
            report_multiple_bugs=False,
            phases=phases,
            suppress_health_check=list(HealthCheck),
        ),
    )


EVERYWHERE = [
    (backend, kind, redis)
    for backend in ("memory", "sqlite", "postgres")
    for kind in facade.FACADES
    for redis in ("", "redis")
]
SHORT = [
    ("memory", "sync", "", 50),
    ("memory", "async", "redis", 50),
    ("sqlite", "sync", "redis", 25),
    ("sqlite", "async", "", 25),
    ("postgres", "sync", "", 25),
    ("postgres", "async", "redis", 25),
]
LONG = {"memory": 400, "sqlite": 113, "postgres": 113}  # 24 tests, 5,008 runs in some 20 minutes
IN = "backend, facade_kind, redis_or_none"
INDIRECT = ["backend", "facade_kind", "redis_or_none"]


@pytest.mark.early
@pytest.mark.parametrize(f"{IN}, examples", SHORT, indirect=INDIRECT)
def test_it_agrees_with_the_model(world: World, examples: int) -> None:
    run(world, examples, steps=40)


@pytest.mark.long
@pytest.mark.parametrize("part", range(2))
@pytest.mark.parametrize(IN, EVERYWHERE, indirect=INDIRECT)
def test_it_agrees_with_the_model_for_long(world: World, part: int) -> None:
    run(world, LONG[world.backend], steps=100)


# ------------------------------------------------------------------------------- positive controls


def _all_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader that does not see that something was abandoned."""
    monkeypatch.setattr(loading, "_is_linear", lambda *_: True)


def _one_restore_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A live path that does not know of the first restore."""
    walk = lineage._walk

    def forgetting(session_id: str, found: Any, version: int, ranges: Any) -> int:
        return walk(session_id, found._replace(restores=found.restores[1:]), version, ranges)

    monkeypatch.setattr(lineage, "_walk", forgetting)


def _an_erasure_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader that goes on from a snapshot of another epoch."""
    fresh, baseline = loading._is_fresh, loading._is_baseline

    def as_if(snapshot: Any, head: Any) -> bool:
        return fresh(loading.replace(snapshot, epoch=head.epoch), head)

    def also(snapshot: Any, tail: Any) -> bool:
        return baseline(loading.replace(snapshot, epoch=tail.head.epoch), tail)

    monkeypatch.setattr(loading, "_is_fresh", as_if)
    monkeypatch.setattr(loading, "_is_baseline", also)


def _a_delta_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A codec that reads the open items as they were first stored."""
    replayed = stored._replayed
    monkeypatch.setattr(stored, "_replayed", lambda parts, place, count: replayed(parts[:1], place, count))


def _the_durable_head_is_of_another_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A way that begins at a snapshot wherever it lies."""
    monkeypatch.setattr(
        loading, "behind", lambda path, session_id, version: paths.behind(path, session_id, version)
        or [part._replace(first=max(part.first, version + 1)) for part in path if part.last > version],
    )  # fmt: skip


BROKEN: list[Any] = [
    pytest.param(_all_counts, "", id="all-counts"),
    pytest.param(_one_restore_is_forgotten, "", id="restore-forgotten"),
    pytest.param(_an_erasure_does_not_matter, "", id="other-epoch"),
    pytest.param(_a_delta_is_lost, "redis", id="delta-lost"),
    pytest.param(_the_durable_head_is_of_another_turn, "", id="other-branch"),
]


@pytest.mark.parametrize("backend", ["memory"], indirect=True)
@pytest.mark.parametrize("facade_kind", ["sync"], indirect=True)
@pytest.mark.parametrize("broken, redis_or_none", BROKEN, indirect=["redis_or_none"])
def test_a_broken_variant_is_caught(
    world: World, broken: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch)

    with pytest.raises((AssertionError, KernError)):
        run(world, examples=1_000, steps=40, phases=[Phase.generate])
