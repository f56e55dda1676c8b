"""Forks of a process that is using a log: nobody is locked out, and nothing is lost or doubled."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
import uuid
from collections import Counter

import pytest

from kern_events import SessionLog
from kern_events.store import forks
from kern_events.store.sqlite import SQLiteStore
from tests import databases, facade
from tests.facade import only_on, store_of
from tests.forks import Storm, account_of, forked
from tests.writers import PATIENCE_S, eventually, note, texts


@pytest.fixture
def sessions(facade_kind, address, loop):
    with facade.open_sessions(facade_kind, loop, address.url, namespace=address.namespace) as sessions:
        yield sessions


@pytest.mark.parametrize("count", [1, pytest.param(100, marks=pytest.mark.long)])
def test_two_who_fork_at_once_beside_others_at_work_harm_nobody(sessions, count):
    account = sum((account_of(Storm(sessions, 2, number)) for number in range(count)), Counter[str]())

    assert account["children"] == 4 * count
    assert account["acknowledged"] > 0
    for harm in ("locked out", "lost", "doubled", "findings"):
        assert account[harm] == 0, dict(account)


@only_on("sqlite")
@pytest.mark.parametrize("facade_kind", ["sync"], indirect=True)
def test_a_fork_that_waits_for_nobody_is_caught(sessions, monkeypatch):
    """Positive control: the harness sees children that are locked out."""
    monkeypatch.setattr(SQLiteStore, "before_fork", lambda *_: None)
    monkeypatch.setattr(SQLiteStore, "after_fork", lambda *_: None)

    try:
        account = account_of(Storm(sessions, 3, patience_s=1.0))
    except AssertionError as error:  # At times its own process is locked out as well.
        assert str(error) == "a thread does not end"
        forks._all.discard(store_of(sessions))  # It waits for ever, and no fork is to wait for that.
    else:
        assert account["locked out"] > 0


class Stuck:
    """A log of the process whose work never ends."""

    left_s = 0.0

    def before_fork(self, until):
        self.left_s = until - time.monotonic()
        eventually(lambda: time.monotonic() > until)

    def after_fork(self):
        pass

    def forget(self):
        pass


def test_a_log_that_is_stuck_leaves_the_others_time_to_end(monkeypatch):
    monkeypatch.setattr(forks, "PATIENCE_S", 0.1)
    many = [Stuck() for _ in range(3)]
    for stuck in many:
        forks.survive_forks(stuck)

    assert forked(lambda: "worked") == "worked"
    assert all(stuck.left_s > 0 for stuck in many)


@only_on("memory")
@pytest.mark.parametrize("facade_kind", ["sync"], indirect=True)
def test_a_fork_that_waits_in_vain_harms_only_its_child(log):
    """While it is made, whoever is at work in the parent goes on."""
    log.append("s", [note("before")])
    store = store_of(log)
    at_work, may_end, found = threading.Event(), threading.Event(), []

    def work():
        with store._lock:
            at_work.set()
            may_end.wait(PATIENCE_S)
            found.append(log.head("s").version)

    worker = threading.Thread(target=work)
    worker.start()
    assert at_work.wait(PATIENCE_S)
    store.before_fork(0)
    may_end.set()
    worker.join(PATIENCE_S)
    store.after_fork()
    assert found == [1]


@only_on("sqlite")
@pytest.mark.parametrize("facade_kind", ["sync"], indirect=True)
def test_of_two_forks_at_once_neither_lets_go_of_what_the_other_one_holds(log):
    log.append("s", [note("before")])
    holds, may_go = threading.Event(), threading.Event()

    def fork_too():
        forks._before_fork()
        holds.set()
        may_go.wait(PATIENCE_S)
        forks._after_fork()

    forks._before_fork()
    other = threading.Thread(target=fork_too)
    other.start()
    forks._after_fork()
    assert holds.wait(PATIENCE_S) and store_of(log)._group._paused
    may_go.set()
    other.join(PATIENCE_S)
    assert log.append("s", [note("after")]).version == 2


@only_on("sqlite")
@pytest.mark.parametrize("facade_kind", ["sync"], indirect=True)
def test_what_a_child_locks_is_locked_for_its_parent(log, address):
    """SQLite takes no lock where it believes to have one, as by a connection that came over the fork."""
    log.append("s", [note("parent")])
    path = address.url.removeprefix("sqlite:///")
    (ready, says_ready), (go, says_go) = os.pipe(), os.pipe()

    def hold():
        log.append("s", [note("child")])
        os.write(says_ready, b".")
        os.read(go, 1)
        log.append("s", [note("child again")])  # The WAL is the one that others have.
        store_of(log)._file.begin()
        os.write(says_ready, b".")
        os.read(go, 1)

    child = threading.Thread(target=forked, args=(hold,))
    child.start()
    os.read(ready, 1)
    log.close()
    os.write(says_go, b".")
    os.read(ready, 1)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        sqlite3.connect(path, timeout=0, isolation_level=None).execute("BEGIN IMMEDIATE")
    os.write(says_go, b".")
    child.join(PATIENCE_S)


@only_on("sqlite")
@pytest.mark.parametrize("facade_kind", ["sync"], indirect=True)
def test_a_child_of_a_transaction_is_told_so_and_writes_nothing(open_log, address):
    engine = databases.engine(address.url)
    log = open_log(engine)
    log.append("s", [note("before")])
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA synchronous = FULL")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        log.append("s", [note("within")], connection=connection)
        answer = forked(lambda: log.append("s", [note("child")]))
        connection.commit()
    engine.dispose()

    assert "StoreUnavailable" in answer and "forked" in answer
    assert texts(log.read("s")) == ["before", "within"]


@pytest.mark.parametrize("facade_kind", ["sync"], indirect=True)
def test_a_thread_forks_in_the_middle_of_a_look(log, facade_kind):
    """It does not wait for itself."""
    log.append("s", [note("before")])
    answers = []
    log.verify(progress=lambda *_: answers.append(forked(lambda: len(texts(log.read("s"))))))

    assert answers and all(answer == 1 or "StoreUnavailable" in answer for answer in answers)
    assert log.append("s", [note("after")]).version == 2


def test_a_child_does_not_keep_the_sessions_of_a_parent_that_was_killed(shared_postgres_url):
    """The server ends what the parent was doing at once, and lets go of its locks."""
    name = f"n{uuid.uuid4().hex}"
    log = SessionLog(f"{shared_postgres_url}?application_name={name}", namespace=name)
    go, says_go = os.pipe()
    if (parent := os.fork()) == 0:
        log.append("s", [note("parent")])
        if os.fork() == 0:
            os.close(says_go)
            os.read(go, 1)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    asked = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
    with databases.connect(shared_postgres_url) as admin:
        eventually(lambda: admin.execute(asked, (name,)).fetchone() == (0,), "its sessions end")
    os.write(says_go, b".")
    log.close()
