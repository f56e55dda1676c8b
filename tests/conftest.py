"""Fixtures for everybody: real servers, fresh databases, and one log address per backend.

A server that is missing fails the tests that need it. `KERN_EVENTS_TEST_ALLOW_SKIP=1` skips them.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from tests import servers, writers

ALLOW_SKIP = "KERN_EVENTS_TEST_ALLOW_SKIP"

# Hundreds of processes import the same modules. Where Python is told not to write what it has compiled (as in
# many images of containers), each would compile all of them anew.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(Path(__file__).parents[1] / ".pytest_cache" / "bytecode")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix

# Thousands of tests have a file of SQLite's each, whose every commit waits for the disk. Where there is room
# in memory (Linux, if it is no small container), pytest makes its folders there.
MEMORY = Path("/dev/shm")
if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 8 << 30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


@pytest.fixture(autouse=True)
def module_path() -> Iterator[None]:
    """What a command adds to the module search path, as for `--projector`, ends with its test."""
    before = sys.path[:]
    yield
    sys.path[:] = before


@pytest.fixture
def unchecked() -> Iterator[None]:
    """See tests/writers.py."""
    with writers.unchecked():
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests marked `long` too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # One worker with a test of half a minute at the end, the others would wait for it.
    items.sort(key=lambda item: item.get_closest_marker("early") is None)
    if config.getoption("--long"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    items[:] = [item for item in items if not item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)


def pytest_report_header() -> str:
    """The servers that the tests will use; none is started for it."""
    postgres = _in_use(servers.PG_DSN, servers.find_postgres)
    redis = _in_use(servers.REDIS_URL, servers.find_redis)
    return f"servers: {postgres}; {redis}"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The SQLAlchemy URL of a Postgres for the whole run, one per xdist worker; for its superuser."""
    server = functools.partial(servers.postgres, settings=["max_prepared_transactions = 8"])
    yield from map(_with_psycopg, _given_or_started(servers.PG_DSN, server))


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """The SQLAlchemy URL of a new, empty Postgres database; dropped afterwards."""
    name = f"kern_test_{uuid.uuid4().hex}"
    _execute(postgres_server, f"CREATE DATABASE {name} TEMPLATE template0")
    try:
        yield _with_database(postgres_server, name)
    finally:
        _execute(postgres_server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def pgbouncer_binary() -> Iterator[servers.Binary]:
    """A PgBouncer that can be started; only long tests need it, so they are skipped without one."""
    with ExitStack() as stack:
        try:
            binary = stack.enter_context(servers.pgbouncer_binary())
        except servers.NoServer as missing:
            pytest.skip(str(missing))
        yield binary


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """The URL of a Redis or Valkey for the whole run, one per xdist worker."""
    yield from _given_or_started(servers.REDIS_URL, servers.redis)


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """The URL of a Redis; empty, unless it was given in the environment: that one is left as it is."""
    if servers.REDIS_URL not in os.environ:
        assert servers.redis_says(redis_server, "FLUSHALL") == "+OK"
    return redis_server


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def backend_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a new, empty log; a test that asks for it runs once for each backend."""
    if request.param == "memory":
        return "memory:"
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/log.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


def _given_or_started(variable: str, start: Callable[[], AbstractContextManager[str]]) -> Iterator[str]:
    """The server of that environment variable, or else one of our own."""
    if given := os.environ.get(variable):
        yield given
        return
    missing = ""
    with ExitStack() as stack:
        try:
            yield stack.enter_context(start())
        except servers.NoServer as error:
            missing = str(error)
    if missing and os.environ.get(ALLOW_SKIP) == "1":
        pytest.skip(missing)
    if missing:
        pytest.fail(f"{missing}; {ALLOW_SKIP}=1 skips what needs it", pytrace=False)


def _in_use(variable: str, find: Callable[[], servers.Binary]) -> str:
    if os.environ.get(variable):
        return f"the one of {variable}"
    try:
        return str(find())
    except servers.NoServer as missing:
        return str(missing)


def _with_psycopg(dsn: str) -> str:
    scheme, separator, rest = dsn.partition("://")
    if not separator:
        raise pytest.UsageError(f"{servers.PG_DSN} has to be a URL like postgresql://user@host/database")
    return f"postgresql+psycopg://{rest}" if scheme in ("postgres", "postgresql") else dsn


def _with_database(url: str, name: str) -> str:
    from sqlalchemy.engine import make_url

    return make_url(url).set(database=name).render_as_string(hide_password=False)


def _execute(url: str, statement: str) -> None:
    import psycopg

    with psycopg.connect(url.replace("+psycopg", "", 1), autocommit=True) as connection:
        connection.execute(statement)
