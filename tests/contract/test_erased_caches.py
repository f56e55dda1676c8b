"""What was deleted is gone from every cache, whoever deleted it and whatever Redis does meanwhile."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pytest
import redis
from sqlalchemy import make_url

from kern_events import Draft, SessionLog, message
from kern_events.errors import SessionNotFound, StoreUnavailable
from projections import DeleteReceipt, MemoryCache, RedisCache, SessionProjector, Sessions
from projections.caches import redis_link
from projections.caches.framing import Mark, Place
from tests import canaries, facade, forging, servers
from tests.canaries import CANARY, in_memory, in_redis
from tests.writers import eventually


class Words:
    """A projector of another kind, whose views are stored as well."""

    name, version, scope, view_type = "words", 1, "live", list[str]

    def initial(self) -> list[str]:
        return []

    def evolve(self, view: list[str], event: Any) -> list[str]:
        return [*view, repr(event.payload)]


WORDS = Words()
IDS = ("s", "s-fork", "s-fork-fork")


@pytest.fixture
def server() -> Iterator[servers.RedisProcess]:
    """A Redis for a test that does something to it."""
    with servers.redis_process() as started:
        yield started


@pytest.fixture
def open_at(facade_kind, address, loop) -> Iterator[Callable[..., Any]]:
    """Opens sessions with the Redis of that URL, as another process would."""
    with ExitStack() as stack:

        def opening(url: str, **options: Any) -> Any:
            cache = RedisCache(url, **{"timeout_s": 5.0, **options})
            options = {"namespace": address.namespace, "cache": cache}
            return stack.enter_context(facade.open_sessions(facade_kind, loop, address.url, **options))

        yield opening


@contextmanager
def beside(sessions: Any, url: str) -> Iterator[Any]:
    """Another process with a memory of its own over the same log."""
    one = facade.sync_of(sessions)
    with Sessions("memory:", cache=RedisCache(url, timeout_s=5.0), namespace=one.namespace) as other:
        own, other._store = other._store, one._store
        yield other
        other._store = own


def plant(sessions: Any) -> None:
    """The text in all that can be erased of a session with forks, and in every cache."""
    canaries.plant(sessions, "s", CANARY)
    load_all(sessions)


def load_all(sessions: Any) -> None:
    for session_id in IDS:
        sessions.load(session_id)
        sessions.load(session_id, projector=WORDS)


def kept(sessions: Any, url: str) -> tuple[int, int]:
    return in_memory(facade.sync_of(sessions)), in_redis(url)


def test_nothing_that_was_deleted_stays_in_any_cache(open_at, redis_url):
    sessions = open_at(redis_url)
    plant(sessions)
    with beside(sessions, redis_url) as other:
        load_all(other)
        assert min(*kept(sessions, redis_url), in_memory(other)) > 0

        receipt = sessions.delete("s")
        for each in (sessions, other):
            with pytest.raises(SessionNotFound):
                each.load("s")
            for forked in IDS[1:]:
                assert CANARY not in repr(each.load(forked).to_dict())

        assert isinstance(receipt, DeleteReceipt)
        assert receipt.purged
        assert (*kept(sessions, redis_url), in_memory(other)) == (0, 0, 0)


def test_a_load_that_finds_it_gone_drops_every_tier(open_at, redis_url):
    sessions = open_at(redis_url)
    plant(sessions)

    SessionLog.delete(facade.sync_of(sessions), "s")  # As another program does that knows no caches.
    with pytest.raises(SessionNotFound):
        sessions.load("s")

    assert kept(sessions, redis_url) == (0, 0)
    with pytest.raises(SessionNotFound):
        sessions.load("s", stale_ok=True)


@pytest.mark.parametrize("point", [{"version": 2}, {"turn": 1}])
def test_so_does_a_look_into_its_past(open_at, redis_url, point):
    sessions = open_at(redis_url)
    plant(sessions)

    SessionLog.delete(facade.sync_of(sessions), "s")
    with pytest.raises(SessionNotFound):
        sessions.load("s", **point)

    assert kept(sessions, redis_url) == (0, 0)


def test_a_read_of_a_deleted_session_spares_its_live_forks(open_at, redis_url):
    sessions = open_at(redis_url)
    plant(sessions)
    SessionLog.delete(facade.sync_of(sessions), "s")
    for forked in IDS[1:]:
        sessions.load(forked)
    loader = facade.sync_of(sessions)._loader
    key = loader.key("s-fork", facade.sync_of(sessions)._projector)
    fresh, shared = loader._memory.get(key), loader.shared.get(key, loader.codec(SessionProjector()))

    for how in ({}, {"version": 1}, {}):
        with pytest.raises(SessionNotFound):
            sessions.load("s", **how)

    assert loader._memory.get(key) is fresh
    again = loader.shared.get(key, loader.codec(SessionProjector()))
    assert (shared.version, shared.hash) == (again.version, again.hash)


def test_a_deleted_session_is_forgotten_once_and_nothing_is_written(open_at, redis_url, monkeypatch):
    sessions = open_at(redis_url)
    plant(sessions)
    one = facade.sync_of(sessions)
    SessionLog.delete(one, "s")
    asked: list[str] = []
    for verb in ("descendants", "forget_snapshots", "put_snapshots"):
        real = getattr(one._store, verb)
        monkeypatch.setattr(one._store, verb, lambda *a, r=real, v=verb: (asked.append(v), r(*a))[1])

    for how in ({}, {"version": 1}, {"projector": WORDS}, {}):
        with pytest.raises(SessionNotFound):
            sessions.load("s", **how)

    one._loader.settle()
    assert asked == ["descendants"]


@facade.only_on("sqlite")
def test_rows_that_somebody_has_put_back_are_dropped_when_they_are_found(open_at, redis_url, address):
    sessions = open_at(redis_url)
    plant(sessions)
    one = facade.sync_of(sessions)
    with Sessions.open(address.url, namespace=address.namespace, cache=MemoryCache(0)) as other:
        forging.forge(other, "database", "", lambda view: view)
    with closing(sqlite3.connect(make_url(address.url).database)) as raw:
        rows = raw.execute("SELECT * FROM kern_snapshots").fetchall()
        sessions.delete("s")
        raw.executemany(f"INSERT INTO kern_snapshots VALUES ({', '.join('?' * len(rows[0]))})", rows)
        raw.commit()
        with pytest.raises(SessionNotFound):
            sessions.load("s")
        one._loader.settle()
        assert raw.execute("SELECT count(*) FROM kern_snapshots WHERE session_id = 's'").fetchone() == (0,)


def test_where_the_log_was_away_redis_learns_the_epoch_later(open_at, redis_url, monkeypatch):
    sessions = open_at(redis_url)
    plant(sessions)
    one = facade.sync_of(sessions)
    SessionLog.delete(one, "s")
    away = StoreUnavailable("away")

    def unreachable(*args: Any) -> Any:
        raise away

    with monkeypatch.context() as patched:
        patched.setattr(one._store, "descendants", unreachable)
        assert not one._loader.erased("s")
    link = one._loader.shared.redis._link
    eventually(lambda: not link._owed, "the epoch")

    place = Place(one.namespace, "s", "words", 1, b"12345678")
    assert not one._loader.shared.redis.replace(place, Mark(0, 9, b"x" * 32), b"old", b"old", {})
    assert kept(sessions, redis_url) == (0, 0)


def test_a_stale_load_never_shows_what_this_process_has_deleted(open_at, redis_url):
    sessions = open_at(redis_url)
    plant(sessions)

    sessions.delete("s")

    with pytest.raises(SessionNotFound):
        sessions.load("s", stale_ok=True)
    assert CANARY not in repr(sessions.load("s-fork", stale_ok=True).to_dict())


def test_a_session_made_again_takes_all_of_before_with_it(open_at, redis_url):
    sessions = open_at(redis_url)
    plant(sessions)

    SessionLog.delete(facade.sync_of(sessions), "s")
    sessions.append("s", [Draft("session.created", {}), message("user", "anew")])
    for session_id in IDS:
        sessions.load(session_id)

    assert kept(sessions, redis_url) == (0, 0)


def test_the_warmer_purges_what_others_delete(open_at, redis_url):
    sessions = open_at(redis_url)
    warmer = sessions.warmer()
    warmer.run(until_idle=True)
    plant(sessions)
    SessionLog.delete(facade.sync_of(sessions), "s")
    sessions.append("s", [Draft("session.created", {}), message("user", "anew")])

    warmer.run(until_idle=True)

    assert kept(sessions, redis_url) == (0, 0)


@facade.only_on("sqlite")
def test_a_purge_that_failed_is_tried_again(open_at, server):
    sessions = open_at(server.url)
    plant(sessions)
    server.pause()
    facade.sync_of(sessions)._loader.shared.redis._link._timeout_s = 0.1

    receipt = sessions.delete("s")
    server.resume()

    assert not receipt.purged
    eventually(lambda: in_redis(server.url) == 0, "the purge")


@pytest.mark.parametrize(("count", "said"), [(1, "1 erased session stay"), (2, "2 erased sessions stay")])
def test_what_could_not_be_purged_is_counted_at_the_end(count, said, caplog):
    cache = RedisCache("redis://127.0.0.1:1")
    for number in range(count):
        cache.purge("default", f"s{number}", 1)
    cache.close()

    assert said in caplog.text


@facade.only_on("sqlite")
def test_a_purge_that_failed_is_tried_when_the_sessions_are_closed(open_at, server, monkeypatch):
    sessions = open_at(server.url)
    plant(sessions)
    cache = facade.sync_of(sessions)._loader.shared.redis
    monkeypatch.setattr(cache._link, "_watch", lambda: False)  # There can be no more threads.
    server.pause()
    cache._link._timeout_s = 0.1

    assert not sessions.delete("s").purged
    server.resume()
    cache._link._timeout_s = 5.0
    cache.close()

    assert in_redis(server.url) == 0


@facade.only_on("sqlite")
def test_a_full_redis_can_still_forget(open_at, server):
    sessions = open_at(server.url)
    plant(sessions)
    with redis.Redis.from_url(server.url) as raw:
        raw.config_set("maxmemory", 1)
        assert not sessions.delete("s").purged
        assert in_redis(server.url) == 0

        raw.config_set("maxmemory", 0)
        link = facade.sync_of(sessions)._loader.shared.redis._link
        eventually(lambda: not link._owed, "the epoch to be told")


@facade.only_on("sqlite")
def test_what_is_folded_during_a_deletion_is_not_kept(open_at, redis_url, monkeypatch):
    sessions = open_at(redis_url)
    plant(sessions)
    one = facade.sync_of(sessions)
    one._loader._memory = MemoryCache()
    kept_, deleted = one._loader._kept, []

    def late(*args: Any) -> None:
        if not deleted:
            deleted.append(one.delete("s"))
        kept_(*args)

    monkeypatch.setattr(one._loader, "_kept", late)
    sessions.load("s")

    assert kept(sessions, redis_url) == (0, 0)


def test_only_so_much_is_remembered_of_what_could_not_be_purged(monkeypatch):
    monkeypatch.setattr(redis_link, "MOST_OWED", 10)
    cache = RedisCache("redis://127.0.0.1:1")
    for number in range(20):
        assert not cache.purge("default", f"s{number}", 1)

    assert len(cache._link._owed) == 10
    cache.close()


def test_the_caches_of_others_are_told_to_drop():
    dropped: list[Any] = []

    class Kept(dict):  # type: ignore[type-arg]
        put = dict.__setitem__

        def drop(self, key: Any) -> None:
            dropped.append(self.pop(key, None))

    with Sessions.open("memory:", cache=Kept()) as sessions:
        sessions.append("s", [message("user", CANARY)])
        sessions.load("s")
        sessions.load("s", projector=WORDS)
        sessions.delete("s")

        assert len(list(filter(None, dropped))) == 2
