"""Opening, sharing, forking and closing a log."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
from sqlalchemy.engine import make_url

from kern_events import AsyncSessionLog, SessionLog
from kern_events.errors import InvalidEvent, KernError, StoreError
from tests.facade import only_on, store_of, sync_of
from tests.forks import forked
from tests.writers import in_threads, note, notes, texts


@only_on("sqlite", "postgres")
def test_what_was_recorded_is_there_after_reopening(open_log):
    with open_log() as first:
        receipt = first.append("s", notes(3))

    second = open_log()
    assert texts(second.read("s")) == [0, 1, 2]
    assert second.head("s").hash == receipt.hash
    assert second.append("s", notes(1), expected=receipt.version).version == 4


@only_on("memory")
def test_two_logs_in_memory_are_two(open_log):
    open_log().append("s", notes(1))

    assert open_log().sessions() == []


@pytest.mark.parametrize(
    "use",
    [
        lambda log: log.append("s", notes(1)),
        lambda log: log.append_many([("s", notes(1), None)]),
        lambda log: list(log.read("s")),
        lambda log: list(log.read_all()),
        lambda log: log.head("s"),
        lambda log: log.sessions(),
        lambda log: log.delete("s"),
        lambda log: log.verify(),
        lambda log: log.turn("s").__enter__(),
    ],
)
@pytest.mark.parametrize("used_before", [True, False])
def test_a_closed_log_says_so(open_log, use, used_before):
    log = open_log()
    if used_before:
        log.append("s", notes(1))
    log.close()

    with pytest.raises(StoreError, match="closed"):
        use(log)
    log.close()


def test_nothing_is_touched_before_the_first_use(tmp_path, loop):
    SessionLog(f"sqlite:///{tmp_path}/log.db").close()
    SessionLog("postgresql://nobody:secret@192.0.2.1:1/none").close()
    loop.run(AsyncSessionLog(f"sqlite:///{tmp_path}/log.db").close())

    assert list(tmp_path.iterdir()) == []


def test_a_log_tells_what_it_is_and_no_password(loop):
    with SessionLog("postgresql://ada:secret@localhost/db", namespace="n") as log:
        shared = AsyncSessionLog(log)

        assert repr(log) == "<SessionLog postgres namespace='n'>"
        assert repr(shared) == "<AsyncSessionLog postgres namespace='n'>"
        loop.run(shared.close())


NO_ADDRESSES = [
    "", "s.db", "sqlite://", "sqlite:///:memory:", "sqlite+aiosqlite:///s.db", "mysql://ada:secret@h/db",
    "postgresql+asyncpg://ada:secret@h/db", "postgresql+psycopg2://ada:secret@h/db", "://ada:secret@h",
    "postgresql://ada:secret@h:secret/db", 7, None,
]  # fmt: skip


@pytest.mark.parametrize("url", NO_ADDRESSES)
def test_other_addresses_are_refused_at_once_without_their_password(url):
    with pytest.raises((ValueError, TypeError)) as caught:
        SessionLog(url)

    assert "secret" not in str(caught.value)


def test_a_password_is_in_no_error_and_no_log_message(caplog):
    url = "postgresql://ada:secret-word@127.0.0.1:1/db"
    with caplog.at_level(logging.DEBUG), SessionLog(url) as log, pytest.raises(KernError) as caught:
        log.append("s", notes(1))

    error = caught.value
    while error is not None:
        assert "secret-word" not in str(error)
        error = error.__cause__
    assert "secret-word" not in caplog.text


@pytest.mark.parametrize("namespace", ["", "x" * 201, "a\0b", None, 7])
def test_a_namespace_is_an_id(namespace):
    with pytest.raises(InvalidEvent) as caught:
        SessionLog("memory:", namespace=namespace)

    assert caught.value.path == "namespace"


@pytest.mark.parametrize("limit", [0, -1, 16 * 1024 * 1024 + 1])
def test_the_payload_limit_is_limited(limit):
    with pytest.raises(ValueError, match="max_payload_bytes"):
        SessionLog("memory:", max_payload_bytes=limit)


def test_a_relative_path_is_of_the_folder_at_the_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with SessionLog("sqlite:///log.db") as log:
        monkeypatch.chdir("/")
        log.append("s", notes(1))

    assert (tmp_path / "log.db").exists()


@pytest.mark.parametrize("name", ["with space.db", "ümlaut.db", "per%20cent.db", "a'b.db", "hash#.db"])
def test_a_file_may_have_any_name(tmp_path, name):
    from sqlalchemy import URL

    with SessionLog(URL.create("sqlite", database=str(tmp_path / name))) as log:
        log.append("s", notes(1))

        assert log.verify().ok
    assert (tmp_path / name).exists()


def test_an_async_log_shares_a_sync_one_and_leaves_it_open(loop):
    with SessionLog("memory:") as log:
        shared = AsyncSessionLog(log)
        loop.run(shared.append("s", notes(1)))
        loop.run(shared.close())

        assert log.append("s", notes(1)).version == 2


def test_eight_threads_share_a_log(log):
    def work(number):
        return [log.append(f"s{i % 3}", [note(f"{number}.{i}")]).version for i in range(20)]

    in_threads(8, work)
    assert sorted(text for i in range(3) for text in texts(log.read(f"s{i}"))) == sorted(
        f"{number}.{i}" for number in range(8) for i in range(20)
    )
    assert log.verify().ok


def test_a_forked_child_uses_the_log(open_log):
    """The child reconnects, and what the parent does then is not disturbed by its end."""
    log = open_log()
    log.append("s", [note("before")])
    head = log.head("s")

    answer = forked(lambda: _used_in_child(sync_of(log)))
    assert answer == ["before", "child"]
    assert log.append("s", [note("after")]).version == (2 if store_of(log).dialect == "memory" else 3)
    assert log.head("s").version > head.version
    assert log.verify().ok


def test_a_forked_child_uses_an_async_log(address, loop):
    """With a loop of its own: the pool's threads stay in the parent."""
    import asyncio

    log = AsyncSessionLog(address.url, namespace=address.namespace)
    loop.run(log.append("s", [note("before")]))
    loop.run(log.head("s"))

    async def use():
        await log.append("s", [note("child")])
        answer = texts([event async for event in log.read("s")])
        await log.close()
        return answer

    assert forked(lambda: asyncio.run(use())) == ["before", "child"]
    loop.run(log.append("s", [note("after")]))
    loop.run(log.close())


def test_a_fork_while_others_append_harms_nobody(open_log):
    log = open_log()
    log.append("s", [note("first")])

    def work(number):
        if number:
            return [log.append("s", [note(f"{number}.{i}")]) for i in range(40)]
        return [forked(lambda: _used_in_child(sync_of(log))) for _ in range(3)]

    [children, *_] = in_threads(4, work)
    assert [child[-1] for child in children] == ["child"] * 3, children
    assert set(texts(log.read("s"))) >= {f"{n}.{i}" for n in (1, 2, 3) for i in range(40)}
    assert log.verify().ok


def _used_in_child(log):
    version = log.append("s", [note("child")]).version
    answer = texts(log.read("s", until=version))
    log.close()
    return answer


@only_on("sqlite", "postgres")
def test_the_sqlalchemy_url_is_taken_as_well(address):
    with SessionLog(make_url(address.url), namespace=address.namespace) as log:
        assert log.append("s", notes(1)).version == 1


FORK_HOOKS = """
import os, sys
registered = []
plain = os.register_at_fork
def register(**hooks):
    registered.append(sys._getframe(1).f_globals["__name__"])
    plain(**hooks)
os.register_at_fork = register
import kern_events.store.forks
import kern_events.store.group
print(registered.index("concurrent.futures.thread") < registered.index("kern_events.store.forks"))
"""


def test_a_fork_takes_our_locks_before_those_of_the_threads_we_wait_for():
    """Else who forks holds the lock that a leader needs to hand over, and waits for that leader."""
    said = subprocess.run([sys.executable, "-c", FORK_HOOKS], capture_output=True, text=True, check=True)

    assert said.stdout == "True\n"
