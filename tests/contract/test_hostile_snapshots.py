"""Whoever can write snapshots shows what he likes where there is no secret, and never has it recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from msgspec.structs import replace

from kern_events import Draft, message
from projections.chunks import Chunks
from projections.frozen import FrozenDict
from tests import facade
from tests.forging import TIERS, cached_in, forge

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
