"""AsyncSessions: the same verbs and parameters as Sessions, with the same answers."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from typing import Any

import pytest

from kern_events import Event
from kern_events.errors import SessionNotFound, StoreError
from projections import AsyncSessions, MemoryCache, Sessions


class Counter:
    """Counts events."""

    name, version, scope = "counter", 1, "live"

    def initial(self) -> int:
        return 0

    def evolve(self, view: int, event: Event) -> int:
        return view + 1


def run(act: Any, **options: Any) -> Any:
    async def opened() -> Any:
        async with AsyncSessions.open("memory:", **options) as sessions:
            async with sessions.turn("s") as turn:
                await turn.message("user", "Hi")
            return await act(sessions)

    return asyncio.run(opened())


def test_it_loads_what_it_recorded() -> None:
    async def act(sessions: AsyncSessions) -> Any:
        view = await sessions.load("s")
        return (
            view,
            await sessions.load("s"),
            await sessions.load("s", version=0),
            await sessions.history("s"),
        )

    view, again, empty, history = run(act)

    assert again is view
    assert [each.content for each in view.messages] == ["Hi"]
    assert (empty.version, empty.head) == (0, view.head)
    assert history.to_openai() == [{"role": "user", "content": "Hi"}]


def test_it_takes_a_projector() -> None:
    async def act(sessions: AsyncSessions) -> int:
        return await sessions.load("s", projector=Counter())  # type: ignore[arg-type]

    assert run(act) == 4


def test_errors_are_the_same() -> None:
    async def act(sessions: AsyncSessions) -> None:
        await sessions.load("nobody")

    with pytest.raises(SessionNotFound):
        run(act)


def test_concurrent_loads_share_one_view() -> None:
    async def act(sessions: AsyncSessions) -> list[Any]:
        return await asyncio.gather(*[sessions.load("s") for _ in range(20)])

    views = run(act, threads=4, cache=MemoryCache())

    assert all(view is views[0] for view in views)


def test_it_closes_what_it_opened_and_nothing_else(tmp_path: Path) -> None:
    async def use(shared: Sessions) -> AsyncSessions:
        async with AsyncSessions(shared) as sessions:
            assert (await sessions.load("s")) is shared.load("s")
        async with AsyncSessions.open("memory:") as own:
            pass
        return own

    with Sessions.open(f"sqlite:///{tmp_path}/log.db") as shared:
        with shared.turn("s") as turn:
            turn.message("user", "Hi")
        own = asyncio.run(use(shared))

        assert shared.load("s").turn == 1
        with pytest.raises(StoreError):
            own.log.head("s")


@pytest.mark.parametrize(
    "verb", ["load", "history", "restore", "preview_restore", "diff", "replay", "resume", "fork", "branches"]
)
def test_the_parameters_are_those_of_sessions(verb: str) -> None:
    ours, theirs = (inspect.signature(getattr(kind, verb)) for kind in (AsyncSessions, Sessions))

    assert ours.parameters == theirs.parameters
