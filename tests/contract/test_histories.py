"""Appends and reads at once, whatever fails meanwhile, have one order, which everybody sees.

Clients in threads and processes append to two sessions and read them, while answers are lost, requests
come late, locks are held, connections cut, server sessions ended and processes killed with kill -9. All
that they were told is held against what is recorded in the end, see tests/histories.py. 5 histories on
each database, 100 with `--long`. Stores that are wrong have to be caught by the same harness.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import ExitStack, closing

import pytest
from sqlalchemy.engine import make_url

from kern_events import SessionLog
from tests import clients, databases, faults
from tests.clients import Plan
from tests.histories import violations
from tests.writers import PATIENCE_S, eventually, pick

HISTORIES = [pytest.param(5, id="5"), pytest.param(100, id="100", marks=pytest.mark.long)]


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def place(request, tmp_path):
    """Where the histories are played."""
    if request.param == "memory":
        yield InMemory()
    elif request.param == "sqlite":
        file = tmp_path / "log.db"
        with closing(sqlite3.connect(file, timeout=PATIENCE_S, isolation_level=None)) as other:
            yield OnSQLite(f"sqlite:///{tmp_path}/log.db", other)
    else:
        with ExitStack() as stack:
            yield OnPostgres(request.getfixturevalue("postgres_url"), stack)


class InMemory:
    """Threads of one process; what fails is the line between them and the store."""

    def play(self, number, lines):
        with SessionLog("memory:") as log:
            plans = [Plan("", "", line, kind) for line in lines for kind in ("sync", "async")]
            history = clients.in_threads(log, plans, ("memory", number))
            assert log.verify().ok
            return history, clients.final(log)


class OnSQLite:
    """Processes on one file; others hold the lock, and one is killed."""

    def __init__(self, url, other):
        self.url = url
        self.other = other

    def play(self, number, lines):
        return play(self, number, lines, self.url, Trouble([self.hold], ("sqlite", number)))

    def hold(self):
        self.other.execute("BEGIN IMMEDIATE")
        return lambda: self.other.execute("ROLLBACK")

    def settle(self):
        pass


class OnPostgres:
    """Processes whose connections are cut and ended; others hold locks, and one is killed."""

    def __init__(self, url, stack):
        self.url = url
        self.proxy = faults.CuttingProxy(make_url(url).host, make_url(url).port)
        stack.callback(self.proxy.close)
        self.admin = stack.enter_context(databases.connect(url))
        query = {"sslmode": "disable", "gssencmode": "disable"}
        self.through = make_url(url).set(host="127.0.0.1", port=self.proxy.port, query=query)

    def play(self, number, lines):
        trouble = Trouble([self.hold, self.cut, self.end], ("postgres", number))
        through = self.through.render_as_string(hide_password=False)
        return play(self, number, lines, through, trouble)

    def hold(self):
        self.admin.execute("BEGIN")
        self.admin.execute("SELECT 1 FROM kern_sessions FOR UPDATE")
        return lambda: self.admin.execute("ROLLBACK")

    def cut(self):
        self.proxy.cut_next(("before", "during", "after")[self.proxy.cuts % 3])

    def end(self):
        self.admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE " + OTHERS)

    def settle(self):
        """Wait for what the server still does for clients that are gone."""
        count = "SELECT count(*) FROM pg_stat_activity WHERE " + OTHERS
        eventually(lambda: self.admin.execute(count).fetchone() == (0,))


OTHERS = "datname = current_database() AND pid <> pg_backend_pid()"


class Trouble:
    """Makes it at random moments, of one kind after the other; a lock is held until somebody meets it."""

    def __init__(self, kinds, seed):
        self.kinds = kinds
        self.chance = pick(("trouble", *seed))
        self.release = None

    def __call__(self, call):
        if self.release:
            if getattr(call, "outcome", "") == "nothing":
                self.end()
        elif self.chance.random() < 0.05:
            self.release = self.chance.choice(self.kinds)()

    def end(self):
        release, self.release = self.release, None
        if release:
            release()


def play(place, number, lines, url, trouble):
    """One history in a namespace of its own; one process of each line and of each facade, one is killed."""
    namespace = f"n{number}"
    plans = [
        Plan(url, namespace, line, kind, mortal=(kind == "sync"))
        for line in lines
        for kind in ("sync", "async")
    ]
    with SessionLog(place.url, namespace=namespace) as log:
        log.migrate()
        history = clients.in_processes(plans, (url, number), trouble)
        trouble.end()
    place.settle()
    with SessionLog(place.url, namespace=namespace) as log:
        assert log.verify().ok
        return history, clients.final(log)


@pytest.mark.parametrize("count", HISTORIES)
def test_calls_at_once_have_one_order(place, count):
    account = Counter()
    for number in range(count):
        history, recorded = place.play(number, [None, "bad"])
        account += history.account

        assert violations(history.calls, recorded) == {}
    assert account["recorded"] > 10 * count and account["look"] > 10 * count
    assert account["nothing"] and (account["kills"] or isinstance(place, InMemory))  # There was trouble.


@pytest.mark.parametrize("line", ["early", "rereading", "stale"])
def test_a_store_that_is_wrong_is_caught(place, line):
    """Positive control."""
    played = (place.play(number, [line]) for number in range(5))

    assert any(violations(history.calls, recorded) for history, recorded in played)
