"""Whoever can write snapshots shows what he likes where there is no secret, and never has it recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis
from msgspec.structs import replace

from kern_events import Draft, SessionLog, message
from kern_events.errors import StoreUnavailable
from projections import MemoryCache, RedisCache, Sessions
from projections.caches.redis import _tag
from projections.chunks import Chunks
from projections.frozen import FrozenDict
from tests import facade
from tests.forging import TIERS, cached_in, forge, true

SECRET = b"the same for all processes"


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest) -> str:
    """Where snapshots are kept, and forged."""
    name: str = request.param
    return name


@pytest.fixture
def open_in(facade_kind, address, loop, tier, redis_url) -> Iterator[Callable[..., Any]]:
    """Opens sessions whose only cache is that tier."""
    with ExitStack() as stack:

        def opening(secret: bytes | None = None) -> Any:
            options = {"namespace": address.namespace, **cached_in(tier, redis_url, secret)}
            return stack.enter_context(facade.open_sessions(facade_kind, loop, address.url, **options))

        yield opening


def begun(sessions: Any) -> Any:
    created = {"user_id": "alice", "name": "Trip", "metadata": {"admin": False}}
    sessions.append("s", [Draft("session.created", created), message("user", "pay 10")])
    return sessions


def flipped(raw: Any, name: bytes, kind: str) -> bytes:
    """Flip the last bit of a value in Redis; how the key lies there then."""
    if kind == ":o":
        value = raw.lindex(name, 0)
        raw.lset(name, 0, value[:-1] + bytes([value[-1] ^ 1]))
    else:
        field = b"s" if kind == ":h" else raw.hkeys(name)[0]
        value = raw.hget(name, field)
        raw.hset(name, field, value[:-1] + bytes([value[-1] ^ 1]))
    dumped: bytes = raw.dump(name)
    return dumped


def lie(view: Any) -> Any:
    turns = Chunks([replace(turn, run_id="mallory") for turn in view.turns])
    messages = Chunks([replace(each, content="pay 99") for each in view.messages])
    metadata = FrozenDict({"admin": True, "by": "mallory"})
    return replace(
        view, user_id="mallory", name="mallory", metadata=metadata, turns=turns, messages=messages,
        context=messages, paused=tuple(replace(each, turn=1) for each in view.paused),
    )  # fmt: skip


def recorded(sessions: Any, session_id: str) -> list[Any]:
    return [event.payload for event in sessions.read(session_id)]


def test_what_is_recorded_rests_on_no_snapshot(open_in, tier, redis_url):
    sessions = begun(open_in())
    forge(facade.sync_of(sessions), tier, redis_url, lie)
    assert sessions.load("s").user_id == "mallory"

    sessions.restore("s", to_version=1)
    forge(facade.sync_of(sessions), tier, redis_url, lie)
    sessions.fork("s", "fork")

    kept = {"user_id": "alice", "name": "Trip", "metadata": {"admin": False}}
    assert recorded(sessions, "s")[-1] == kept
    assert recorded(sessions, "fork")[0].items() >= kept.items()
    assert {each.user_id for each in sessions.sessions()} == {"alice"}


def test_a_turn_is_resumed_as_the_log_has_it(open_in, tier, redis_url):
    sessions = begun(open_in())
    for run_id in ("one", "two"):
        with sessions.turn("s", run_id=run_id) as turn:
            turn.message("user", "do it")
            turn.pause({"tool": "pay"})
    with sessions.resume("s", 1):
        pass
    forge(facade.sync_of(sessions), tier, redis_url, lie)

    with sessions.resume("s"):
        pass

    assert [event.turn for event in sessions.read("s") if event.type == "turn.resumed"] == [1, 2]
    assert "mallory" not in repr(recorded(sessions, "s"))


def test_a_forged_snapshot_is_a_miss_where_there_is_a_secret(open_in, tier, redis_url):
    sessions = begun(open_in(SECRET))
    true = sessions.load("s")

    for secret in (None, b"another", SECRET[:-1]):
        forge(facade.sync_of(sessions), tier, redis_url, lie, secret=secret)
        assert sessions.load("s") == true
        assert [each.content for each in sessions.history("s", last_messages=5)] == ["pay 10"]
    forge(facade.sync_of(sessions), tier, redis_url, lie, secret=SECRET)
    assert sessions.load("s") != true  # The control: so it is done by who has the secret.


def test_verify_compares_snapshots_with_the_events(open_in, tier, redis_url):
    sessions = begun(open_in())
    sessions.append("other", [message("user", "hello")])
    for session_id in ("s", "other"):
        forge(facade.sync_of(sessions), tier, redis_url, lambda view: view, session_id=session_id)
    counted: list[tuple[int, int]] = []
    assert sessions.verify(snapshots=True, progress=lambda *done: counted.append(done)).ok
    assert counted[-1] == (4, 6)

    forge(facade.sync_of(sessions), tier, redis_url, lie)
    assert sessions.verify().ok
    for report in (sessions.verify(snapshots=True), sessions.verify("s", snapshots=True)):
        found = [(each.session_id, each.version, each.problem, each.field) for each in report.findings]
        assert found == [("s", 2, "snapshot", tier)]
        assert "pay" not in repr(report)
    assert sessions.verify("other", snapshots=True).ok


@pytest.mark.parametrize("kind", [":h", ":o", ":c"])
@pytest.mark.parametrize("tier", ["redis"], indirect=True)
def test_verify_tells_a_value_of_redis_that_cannot_be_read_and_leaves_it(open_in, redis_url, kind):
    sessions = begun(open_in())
    sessions.append("s", [message("user", f"{number} {'x' * 2_000}") for number in range(200)])
    sessions.load("s")
    with redis.Redis.from_url(redis_url) as raw:
        tag = _tag(sessions.namespace, "s").decode()
        [name] = raw.keys(f"*{tag}*{kind}")
        before = flipped(raw, name, kind)

        for _ in range(2):
            (finding,) = sessions.verify(snapshots=True).findings
            assert (finding.field, finding.found) == ("redis", "what cannot be read")
        assert raw.dump(name) == before
    sessions.load("s")


def test_verify_says_how_many_it_compared_and_how_many_not(open_in, tier, redis_url):
    sessions = begun(open_in(SECRET))
    forge(facade.sync_of(sessions), "database", redis_url, lambda view: view)
    assert sessions.verify().snapshots == 0
    report = sessions.verify(snapshots=True)
    assert (report.ok, report.snapshots) == (True, 0)
    assert "1 under another secret or none" in report.notes[-1]

    forge(facade.sync_of(sessions), tier, redis_url, lambda view: view, secret=SECRET)
    assert sessions.verify(snapshots=True).snapshots == 1


def test_verify_needs_a_redis_that_answers():
    cache = RedisCache("redis://127.0.0.1:1")
    with Sessions("memory:", cache=cache) as sessions:
        begun(sessions)
        assert sessions.verify().ok
        with pytest.raises(StoreUnavailable, match="Redis does not answer"):
            sessions.verify(snapshots=True)


def test_verify_says_where_redis_ceased_to_answer(open_in, tier, redis_url, monkeypatch):
    sessions = begun(open_in())
    one = facade.sync_of(sessions)
    real = SessionLog.verify

    def gone(*args: Any, **options: Any) -> Any:
        if shared := one._loader.shared:
            shared.redis.close()
        return real(*args, **options)

    monkeypatch.setattr(SessionLog, "verify", gone)
    notes = " ".join(sessions.verify(snapshots=True).notes)
    assert ("what Redis has of 1, as it did not answer" in notes) == (tier == "redis")


@pytest.mark.parametrize("value", [True, 1.0, "1"])
def test_verify_tells_values_by_their_type(open_in, tier, redis_url, value):
    sessions = begun(open_in())
    sessions.append("s", [Draft("state.changed", {"scope": "session", "ops": [["set", ["n"], 1]]})])
    state = FrozenDict({"n": value})
    forge(facade.sync_of(sessions), tier, redis_url, lambda view: replace(view, state=state))

    assert [each.problem for each in sessions.verify(snapshots=True).findings] == ["snapshot"]


def test_verify_tells_a_row_that_cannot_be_read_and_leaves_it(open_log):
    log = facade.sync_of(open_log())
    with Sessions("memory:", cache=MemoryCache(0)) as sessions:
        own, sessions._store = sessions._store, log._store  # type: ignore[misc]
        begun(sessions)
        key, codec, snapshot = true(sessions)
        table = sessions._loader._durable.table(key, codec)  # type: ignore[union-attr]
        assert table.put("s", 0, 2, head=b"nothing of ours")

        for _ in range(2):
            (finding,) = sessions.verify(snapshots=True).findings
            assert (finding.version, finding.found) == (2, "what cannot be read")
        assert sessions.load("s") == snapshot.view
        assert sessions.verify(snapshots=True).ok  # A load has dropped it.
        sessions._store = own  # type: ignore[misc]
