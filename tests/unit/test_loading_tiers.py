"""The tiers behind the memory: whatever they do, and in whichever order, a load is right and not old.

Two processes share a tier that is made of dicts. Of one, every load is cut where it asks the log or the
tier, and what the other does comes in between, in all orders that there are.
"""

from __future__ import annotations

import itertools
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy.engine import make_url

from kern_events import Draft, message, spi
from kern_events.errors import SessionNotFound, StoreBusy
from kern_events.store.memory import MemoryStore
from projections import MemoryCache, SessionProjector, Sessions, View, chunks, history, loading
from projections.caches import SnapshotKey, tiers
from projections.caches.framing import Mark, Place, Stored
from projections.caches.tiers import DurableTier, SharedTier
from projections.loading import Loader
from projections.stored import codec_of
from tests import databases

PROJECTOR: Final = SessionProjector()
CODEC: Final = codec_of(PROJECTOR)


@pytest.fixture(autouse=True)
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_ITEMS", 3)
    monkeypatch.setattr(loading, "_FAR", 3)
    monkeypatch.setattr(tiers, "AT_LEAST", 3)


class Shared:
    """What RedisCache does, in dicts; `between` is called before each of its answers."""

    available = True

    def __init__(self) -> None:
        self.heads: dict[Place, tuple[Mark, bytes, list[bytes]]] = {}
        self.bodies: dict[Place, dict[bytes, bytes]] = {}
        self.floor = 0
        self.fetched: list[bytes] = []

    def fetch(self, place: Place) -> Stored | None:
        found = self.heads.get(place)
        return None if found is None else Stored(found[0], found[1], tuple(found[2]))

    def chunks(self, place: Place, names: Sequence[bytes]) -> list[bytes] | None:
        self.fetched += names
        kept = self.bodies.get(place, {})
        return [kept[name] for name in names] if set(names) <= kept.keys() else None

    def extend(self, place: Place, base: Mark, mark: Mark, head: bytes, delta: bytes) -> bool:
        found = self.heads.get(place)
        if found is None or found[0] != base:
            return False
        self.heads[place] = (mark, head, [*found[2], delta])
        return True

    def advance(
        self,
        place: Place,
        base: Mark,
        mark: Mark,
        head: bytes,
        open: bytes,
        new: Mapping[bytes, Callable[[], bytes]],
    ) -> bool:
        if place not in self.heads or self.heads[place][0] != base:
            return False
        self._put(place, mark, head, open, new)
        return True

    def wants(self, place: Place, mark: Mark) -> bool:
        found = self.heads.get(place)
        newer = found is not None and found[0][:2] > mark[:2]
        return mark.epoch >= self.floor and not newer and (found is None or found[0] != mark)

    def replace(
        self,
        place: Place,
        mark: Mark,
        head: bytes,
        open: bytes,
        new: Mapping[bytes, Callable[[], bytes]],
        *,
        prune: bool = False,
    ) -> bool:
        if not self.wants(place, mark):
            return place in self.heads and self.heads[place][0] == mark
        self._put(place, mark, head, open, new)
        self.bodies[place] = {name: self.bodies[place][name] for name in new}
        return True

    def _put(self, place: Place, mark: Mark, head: bytes, open: bytes, new: Any) -> None:
        self.bodies.setdefault(place, {}).update({name: body() for name, body in new.items()})
        self.heads[place] = (mark, head, [open])

    def forget(self, place: Place, mark: Mark | None = None) -> None:
        if mark is None or (place in self.heads and self.heads[place][0] == mark):
            self.heads.pop(place, None)
            self.bodies.pop(place, None)

    def purge(self, namespace: str, session_id: str, epoch: int) -> bool:
        self.floor = max(self.floor, epoch)
        self.heads.clear()
        self.bodies.clear()
        return True

    def close(self) -> None: ...


class Cut(Shared):
    """The same tier as one process sees it: something else may happen before each answer."""

    def __init__(self, whole: Shared, between: Callable[[], None]) -> None:
        self.__dict__ = whole.__dict__
        self._between = between

    def fetch(self, place: Place) -> Stored | None:
        self._between()
        return super().fetch(place)

    def extend(self, *args: Any) -> bool:
        self._between()
        return super().extend(*args)

    def wants(self, place: Place, mark: Mark) -> bool:
        self._between()
        return super().wants(place, mark)


class Process:
    """One of those that share a log and a tier, and what it has seen."""

    def __init__(self, store: MemoryStore, shared: Any) -> None:
        self.sessions, self.bare = Sessions("memory:"), Sessions("memory:", durable=False)
        self.sessions._store = self.bare._store = store  # type: ignore[misc]
        self.memory = MemoryCache()
        self.sessions._loader = Loader(self.sessions, self.memory, SharedTier(shared), None)
        self.seen = (0, 0)

    def load(self) -> None:
        """The newest at the time of the call, or newer; and what its version says."""
        asked = self.bare.head("s")
        view = self.sessions.load("s")
        found = (view.head.epoch, view.version)
        assert found >= (asked.epoch, asked.version)
        assert found >= self.seen
        self.seen = found
        if view.head.epoch == self.bare.head("s").epoch:
            cold = Loader(self.bare, MemoryCache(0), None, None).past("s", PROJECTOR, view.version)
            assert (view.messages, view.turns) == (cold.view.messages, cold.view.turns)

    def commit(self) -> None:
        self.sessions.append("s", [message("user", "more"), message("assistant", "yes")])

    def restore(self) -> None:
        """Also to what is erased, as logs of before have it."""
        head = self.sessions.head("s")
        spi.restore(self.sessions, "s", head.version // 2, {"metadata": {}}, head, actor=None)

    def make_again(self) -> None:
        self.sessions.delete("s")
        self.sessions.append("s", [Draft("session.created", {}), message("user", "anew")])

    def evict(self) -> None:
        self.memory.purge("default", "s")

    def rebuild(self) -> None:
        self.evict()
        snapshot = self.sessions._loader.current("s", PROJECTOR)
        self.sessions._loader.keep("s", PROJECTOR, snapshot)


ACTS: Final = (Process.commit, Process.load, Process.restore, Process.make_again, Process.rebuild)
CUTS: Final = 5  # A cold load asks the tier, then the log, then the tier to keep it; and so again.


def schedules(acts: int) -> Iterator[tuple[tuple[Callable[[Process], None], int], ...]]:
    """What the other process does, and at which cut."""
    for done in itertools.product(ACTS, repeat=acts):
        for cuts in itertools.combinations_with_replacement(range(CUTS), acts):
            yield tuple(zip(done, cuts, strict=True))


def play(schedule: Sequence[tuple[Callable[[Process], None], int]]) -> None:
    store, whole, waiting, cut = MemoryStore(), Shared(), list(schedule), itertools.count()

    def between() -> None:
        now = next(cut)
        while waiting and waiting[0][1] <= now:
            act, _ = waiting.pop(0)
            act(other)

    ours, other = Process(store, Cut(whole, between)), Process(store, whole)
    other.commit()
    other.load()
    with asked_through(ours, store, between):
        ours.load()
        ours.evict()
        ours.load()
    for act, _ in waiting:
        act(other)
    ours.load()
    other.load()


@contextmanager
def asked_through(process: Process, store: MemoryStore, between: Callable[[], None]) -> Iterator[None]:
    """Something else may happen before the log tells this process its tail; the other's log is as before."""

    class Through:
        def __getattr__(self, name: str) -> Any:
            if name == "tail":
                between()
            return getattr(store, name)

    process.sessions._store = Through()  # type: ignore[misc, assignment]
    yield
    process.sessions._store = store  # type: ignore[misc]


def test_no_order_of_two_processes_gives_an_old_load() -> None:
    """4,375 of them, which are all."""
    for schedule in schedules(3):
        play(schedule)


@pytest.mark.long
def test_no_longer_order_gives_an_old_load() -> None:
    """43,750."""
    for schedule in schedules(4):
        play(schedule)


def _trusted_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_is_fresh", lambda *_: True)


def _any_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot of before an erasure is folded on."""
    monkeypatch.setattr(loading, "_is_baseline", lambda *_: True)


@pytest.mark.parametrize("broken", [_trusted_memory, _any_epoch])
def test_an_old_load_is_noticed(
    broken: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch)

    with pytest.raises((AssertionError, SessionNotFound)):
        for schedule in schedules(3):
            play(schedule)


# --------------------------------------------------------------------------- the log's own database


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/log.db"


def converse(sessions: Sessions, turns: int = 6) -> None:
    for number in range(turns):
        with sessions.turn("s") as turn:
            turn.message("user", f"question {number}")
            turn.message("assistant", f"answer {number}")
        sessions.load("s")
    sessions._loader.settle()


def sql(url: str, statement: str, *values: Any) -> list[Any]:
    with sqlite3.connect(make_url(url).database or "") as connection:
        rows = connection.execute(statement, values).fetchall()
    connection.close()
    return rows


def base_of(sessions: Sessions) -> int:
    """The version that a cold load goes on from."""
    key = SnapshotKey(sessions.namespace, "s", "session", 1)
    base = sessions._loader._folded(key, PROJECTOR, None, None).base
    return 0 if base is None else base.version


def test_a_cold_load_goes_on_from_what_is_stored(url: str) -> None:
    with Sessions.open(url) as sessions:
        converse(sessions)
        warm = sessions.load("s")
    with Sessions.open(url) as cold:
        assert base_of(cold) > 0
        assert cold.load("s") == warm


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE kern_snapshots SET data = x'0100' WHERE chunk LIKE '@%'",
        "UPDATE kern_snapshots SET data = substr(data, 1, length(data) - 1) WHERE chunk LIKE '@%'",
        "UPDATE kern_snapshots SET data = x'' WHERE chunk NOT LIKE '@%'",
        "DELETE FROM kern_snapshots WHERE chunk NOT LIKE '@%'",
        "DELETE FROM kern_snapshots",
        "UPDATE kern_snapshots SET data = (SELECT data FROM kern_snapshots WHERE chunk NOT LIKE '@%')",
    ],
)
def test_what_is_damaged_is_a_miss_and_heals(url: str, damage: str) -> None:
    with Sessions.open(url) as sessions:
        converse(sessions)
        warm = sessions.load("s")
    sql(url, damage)

    with Sessions.open(url) as cold:
        assert base_of(cold) == 0
        assert cold.load("s") == warm
        cold._loader.settle()

    with Sessions.open(url) as healed:
        assert base_of(healed) == warm.version
        assert healed.load("s") == warm


def test_a_snapshot_of_another_epoch_is_not_used_and_goes(url: str) -> None:
    with Sessions.open(url) as sessions:
        converse(sessions)
        sessions.fork("s", "fork")
        sessions.load("s")
        key = SnapshotKey("default", "s", "session", 1)
        kept = sql(url, "SELECT * FROM kern_snapshots")
        sessions.delete("s")
        assert sql(url, "SELECT * FROM kern_snapshots") == []
        sessions.append("s", [Draft("session.created", {}), message("user", "anew")])
        # As if a writer had been behind the erasure with it.
        for row in kept:
            sql(url, f"INSERT INTO kern_snapshots VALUES ({', '.join('?' * len(row))})", *row)

        with Sessions.open(url) as cold:
            assert [each.content for each in cold.load("s").messages] == ["anew"]
            assert not cold.load("s").incomplete
        assert DurableTier(sessions).newest(key, CODEC, loading._NEWEST) is None  # type: ignore[arg-type]


def test_nothing_of_before_an_erasure_is_stored_behind_it(url: str) -> None:
    with Sessions.open(url) as late, Sessions.open(url) as sessions:
        converse(sessions)
        snapshot = late._loader._folded(SnapshotKey("default", "s", "session", 1), PROJECTOR, None, None)
        sessions.delete("s")
        sessions.append("s", [Draft("session.created", {})])

        late._loader.keep("s", PROJECTOR, snapshot.snapshot)
        late._loader.settle()

        assert sql(url, "SELECT * FROM kern_snapshots") == []
        assert list(late.load("s").messages) == []


def test_a_busy_database_is_no_error_of_a_load(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Sessions.open(url) as sessions:

        def busy(*_: Any) -> bool:
            raise StoreBusy("a lock was not granted")

        monkeypatch.setattr(sessions._store, "put_snapshots", busy)
        converse(sessions)

        assert len(sessions.load("s").messages) == 12
        assert sql(url, "SELECT * FROM kern_snapshots") == []

        monkeypatch.undo()
        converse(sessions)
    with Sessions.open(url) as cold:
        assert len(cold.load("s").messages) == 24


def test_a_role_that_may_not_write_snapshots_still_loads(postgres_url: str) -> None:
    role = f"reader_{uuid.uuid4().hex}"
    with Sessions.open(postgres_url) as sessions:
        converse(sessions)
        warm = sessions.load("s")
    with databases.connect(postgres_url) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN")
        admin.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        try:
            address = make_url(postgres_url).set(username=role).render_as_string(hide_password=False)
            with Sessions.open(address) as reader:
                assert base_of(reader) > 0
                assert reader.load("s") == warm
            admin.execute("DELETE FROM kern_snapshots")
            with Sessions.open(address) as reader:
                assert reader.load("s") == warm
                reader._loader.settle()
            admin.execute(f"REVOKE SELECT ON kern_snapshots FROM {role}")
            with Sessions.open(address) as reader:
                assert reader.load("s") == warm
                assert reader.load("s", turn=2).turn == 2
        finally:
            admin.execute(f"DROP OWNED BY {role}")
            admin.execute(f"DROP ROLE {role}")


# ------------------------------------------------------------------------------------------ windows


def counted(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The chunks that are read from the log's own database."""
    asked: list[str] = []
    read = sessions._store.snapshot_chunks

    def reading(*args: Any) -> dict[str, bytes]:
        asked.extend(args[3])
        return read(*args)

    monkeypatch.setattr(sessions._store, "snapshot_chunks", reading)
    return asked


@pytest.mark.parametrize("window", [{"last_turns": 1}, {"last_messages": 2}, {"last_turns": 0}])
def test_a_window_reads_the_newest_chunks_of_the_database(
    url: str, window: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sessions.open(url) as sessions:
        converse(sessions, 40)
        view = sessions.load("s")
    with Sessions.open(url) as cold:
        asked = counted(cold, monkeypatch)

        assert cold.history("s", **window) == history(view, **window)

        assert len(set(asked)) <= 3 < len(view.messages.closed)


def test_a_window_reads_the_newest_chunks_of_the_shared_tier() -> None:
    store, shared = MemoryStore(), Shared()
    first, second = Process(store, shared), Process(store, shared)
    converse(first.sessions, 40)
    view = first.sessions.load("s")
    shared.fetched.clear()

    assert second.sessions.history("s", last_turns=2) == history(view, last_turns=2)

    assert len(set(shared.fetched)) <= 3 < len(view.messages.closed)


def test_a_window_that_finds_a_chunk_missing_is_read_from_the_log() -> None:
    store, shared = MemoryStore(), Shared()
    first, second = Process(store, shared), Process(store, shared)
    converse(first.sessions, 10)
    view: View = first.sessions.load("s")
    for kept in shared.bodies.values():
        kept.clear()

    assert second.sessions.history("s", last_messages=5) == history(view, last_messages=5)
