"""The line to Postgres is cut at any message, and Postgres itself stops at any moment.

What was acknowledged is there once, and what the log said was not written is not there: `tests/accounts.py`
keeps the account. Each harness has a control that it has to catch.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest
from sqlalchemy.engine import make_url

from kern_events import SessionLog
from tests import facade, messages, servers
from tests.accounts import Account, Denying, Writer
from tests.writers import PATIENCE_S, eventually, note, pick

WHOLE = {"lost": 0, "doubled": 0, "denied_but_there": 0, "gaps": 0, "findings": 0, "back": 0}


def counts(short, long):
    return pytest.mark.parametrize(
        "count",
        [pytest.param(short, id=f"{short}"), pytest.param(long, id=f"{long}", marks=pytest.mark.long)],
    )


@pytest.fixture
def proxy(postgres_url):
    url = make_url(postgres_url)
    proxy = messages.MessageProxy(url.host, url.port, pick("late"))
    yield proxy
    proxy.close()


@pytest.fixture
def through(proxy, postgres_url):
    query = {"sslmode": "disable", "gssencmode": "disable"}
    return make_url(postgres_url).set(host="127.0.0.1", port=proxy.port, query=query)


def cut(proxy, writer, count, chance):
    """So many cuts at whatever message, while the writer works."""
    while proxy.cuts < count:
        proxy.cut_at(chance.randint(1, 30), chance.choice(messages.MODES))
        writer.work(chance)


@counts(25, 500)
@pytest.mark.parametrize("query", [{}, {"prepare_threshold": "none"}], ids=["session", "transaction"])
@pytest.mark.parametrize("kind", facade.FACADES)
def test_a_cut_at_any_message_loses_and_doubles_nothing(proxy, through, postgres_url, kind, query, count):
    account, loop = Account(), facade.LoopThread()
    with facade.open_log(kind, loop, through.update_query_dict(query)) as log:
        log.append("w1", [note("first")])
        cut(proxy, Writer(log, account, 1), count, pick((kind, *query)))
    loop.close()

    with SessionLog(postgres_url) as honest:
        assert account.against(honest) == WHOLE
    assert len(account.acknowledged) > count // 2


def test_who_takes_a_lost_answer_for_none_is_caught(proxy, through, postgres_url):
    """Positive control: "nothing was written" is wrong then, and whoever repeats the append doubles it."""
    account = Account()
    with SessionLog(through) as log, SessionLog(postgres_url) as honest:
        log.append("w1", [note("first")])
        log._store = Denying(log._store)
        writer = Writer(log, account, 1)
        writer.kinds = [writer.append, writer.carelessly]
        cut(proxy, writer, 50, pick("denying"))
        found = account.against(honest)

    assert found["denied_but_there"] > 0
    assert found["doubled"] > 0


def stopped(count, writers=5, **settings):
    """So many immediate stops under writers, sync and async; the account and what it found."""
    lines = ["synchronous_commit = on", *(f"{name} = {value}" for name, value in settings.items())]
    account, chance, loop = Account(), pick("stops"), facade.LoopThread()
    with ExitStack() as stack:
        process = stack.enter_context(servers.postgres_process(settings=lines))
        logs = [stack.enter_context(facade.open_log(kind, loop, process.url)) for kind in facade.FACADES]
        working = [Writer(logs[number % 2], account, number) for number in range(1, writers + 1)]
        threads = [
            threading.Thread(target=each.run, args=(pick(number),), daemon=True)
            for number, each in enumerate(working)
        ]
        for thread in threads:
            thread.start()
        for _ in range(count):
            before, more = len(account.acknowledged), chance.randint(1, 200)
            eventually(lambda before=before, more=more: len(account.acknowledged) > before + more)
            process.kill()
            process.start()
        for each in working:
            each.stop()
        for thread in threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        with SessionLog(process.url) as log:
            return account, account.against(log)


@counts(5, 100)
def test_a_postgres_that_stops_at_once_loses_and_doubles_nothing(count):
    account, found = stopped(count)
    assert found == WHOLE
    assert account.denied


def test_a_postgres_that_commits_before_it_writes_is_caught():
    """Positive control: what was acknowledged was in no file yet."""
    lazy = {"wal_writer_delay": "'10s'", "wal_writer_flush_after": "'1GB'", "wal_buffers": "'64MB'"}
    _, found = stopped(3, synchronous_commit="off", **lazy)

    assert found["lost"] > 0
