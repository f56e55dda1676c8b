"""The logs under test: every backend behind both facades.

On Postgres all tests of a run share a database and have a namespace each, which is quick, and a
test of namespaces by itself. What harms a database takes `postgres_url` and has one of its own.
With `--long` most of them run once more on Postgres through PgBouncer: `-k pgbouncer`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import databases, facade, servers

BACKENDS = ("memory", "sqlite", "postgres", facade.PGBOUNCER)


class Address(NamedTuple):
    """Where a test has its log."""

    backend: str
    url: str
    namespace: str


@pytest.fixture(scope="session")
def loop() -> Iterator[facade.LoopThread]:
    """The event loop that all async logs of a run are driven through."""
    thread = facade.LoopThread()
    yield thread
    thread.close()


@pytest.fixture(scope="session")
def shared_postgres_url(postgres_server: str) -> Iterator[str]:
    """One database for all tests that leave it whole."""
    with databases.database(postgres_server) as url:
        yield url


@pytest.fixture(scope="session")
def pooled_postgres_url(postgres_server: str, pgbouncer_binary: servers.Binary) -> Iterator[str]:
    """One database more, through a PgBouncer with fewer server connections than a test has clients."""
    with (
        databases.database(postgres_server) as url,
        servers.pgbouncer(pgbouncer_binary, url, pool_size=3) as pooled,
    ):
        yield f"{pooled}?prepare_threshold=none"


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """The name of a backend."""
    name: str = request.param
    return name


@pytest.fixture(params=facade.FACADES)
def facade_kind(request: pytest.FixtureRequest) -> str:
    """sync or async."""
    kind: str = request.param
    return kind


@pytest.fixture
def address(backend: str, tmp_path: Path, request: pytest.FixtureRequest) -> Address:
    """A log that nobody else uses."""
    namespace = f"n{uuid.uuid4().hex}"
    if backend == "memory":
        return Address(backend, "memory:", namespace)
    if backend == "sqlite":
        return Address(backend, f"sqlite:///{tmp_path}/log.db", namespace)
    if backend == "pgbouncer":
        return Address("postgres", request.getfixturevalue("pooled_postgres_url"), namespace)
    return Address(backend, request.getfixturevalue("shared_postgres_url"), namespace)


@pytest.fixture
def open_log(facade_kind: str, address: Address, loop: facade.LoopThread) -> Iterator[Callable[..., Any]]:
    """Opens a log at the address, as often as a test likes; all are closed in the end."""
    with ExitStack() as stack:

        def opening(url: Any = None, **options: Any) -> Any:
            options = {"namespace": address.namespace, **options}
            log = facade.open_log(facade_kind, loop, address.url if url is None else url, **options)
            return stack.enter_context(log)

        yield opening


@pytest.fixture
def log(open_log: Callable[..., Any]) -> Any:
    """A log with the API of SessionLog, whichever facade is behind it."""
    return open_log()


class Clock:
    """The recorder's clock, set by hand, in microseconds."""

    def __init__(self, now_us: int) -> None:
        self.now_us = now_us


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Stands still until it is set."""
    clock = Clock(1_700_000_000_000_000)
    # Ids are of random bits beside the time, so they stay different.
    monkeypatch.setattr("time.time_ns", lambda: clock.now_us * 1_000)
    return clock
