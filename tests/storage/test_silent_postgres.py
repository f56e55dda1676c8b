"""A Postgres that says nothing, on a connection that stays whole: how long it is waited for."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import stamina
from sqlalchemy import text
from sqlalchemy.engine import make_url

from kern_events import SessionLog
from kern_events.errors import AppendUnresolved, StoreUnavailable
from kern_events.store import migrate
from tests import facade, faults
from tests.writers import in_threads, note, notes, texts

SOON = {"timeout_s": 0.3, "lock_timeout_s": 0.2}
SLOW = "SELECT pg_sleep(0.7)"


@pytest.fixture
def proxy(postgres_url):
    url = make_url(postgres_url)
    proxy = faults.CuttingProxy(url.host, url.port)
    yield proxy
    proxy.close()


@pytest.fixture
def address(proxy, postgres_url):
    """The address of the database through the proxy."""
    query = {"sslmode": "disable", "gssencmode": "disable"}
    return make_url(postgres_url).set(host="127.0.0.1", port=proxy.port, query=query)


@pytest.fixture(params=["session", "transaction"])
def through(request, address):
    """The same, as it is and as behind a pooler."""
    return address.update_query_dict({"prepare_threshold": "none"} if request.param == "transaction" else {})


@pytest.mark.parametrize("kind", facade.FACADES)
def test_an_append_that_nobody_answers_is_recorded_once(through, proxy, postgres_url, kind):
    loop = facade.LoopThread()
    with facade.open_log(kind, loop, through, **SOON) as log:
        log.append("s", [note("first")])
        proxy.freeze(new=False)
        receipt = log.append("s", notes(2))
        proxy.thaw()  # What was held back arrives now.
        log.append("s", [note("last")])

        assert (receipt.first_version, receipt.version) == (2, 3)
        assert texts(log.read("s")) == ["first", 0, 1, "last"]
        assert log.verify().ok
    loop.close()


def test_a_commit_that_nobody_answers_is_left_open(through, proxy):
    """The server has not heard it, so it holds its locks: nobody can tell yet."""
    with SessionLog(through, **SOON) as log:
        log.append("s", [note("first")])
        drafts = [note("last")]
        proxy.cut_next("freeze", b"COMMIT\0")
        with pytest.raises(AppendUnresolved) as caught:
            log.append_many([("s", drafts, None), ("t", drafts, None)])
        assert caught.value.bases == {"s": 1, "t": 0}
        proxy.thaw()

        log.append_many([(each, drafts, base) for each, base in caught.value.bases.items()])
        assert [texts(log.read(each)) for each in "st"] == [["first", "last"], ["last"]]
        assert log.verify().ok


def test_who_reads_and_follows_notices_a_silent_line_and_goes_on(through, proxy):
    with SessionLog(through, **SOON) as log, log.subscribe() as following:
        log.append("s", notes(1))
        assert texts(following.batch(limit=1)) == [0]
        proxy.freeze(new=False)
        assert log.head("s").version == 1
        log.append("s", notes(1))

        assert texts(following.batch(limit=1)) == [0]


def test_a_silent_server_ends_every_call(address, proxy, once):
    with ExitStack() as stack:
        log, other = (stack.enter_context(SessionLog(address, **SOON)) for _ in range(2))
        for each in (log, other):
            each.append("s", notes(1))
        consumer, following = log.consumer("c", list), stack.enter_context(log.subscribe())
        consumer.step()
        calls = (lambda: other.append("s", notes(1)), lambda: log.head("s"), log.verify, consumer.step,
                 following.batch)  # fmt: skip
        proxy.freeze()
        ended = in_threads(len(calls), lambda number: _error_of(calls[number]))

        assert [type(each) for each in ended] == [AppendUnresolved, *[StoreUnavailable] * 4]
        proxy.thaw()
        assert log.append("s", notes(1)).version in (3, 4)
        assert log.verify().ok


@pytest.fixture
def once():
    """A look-up is not repeated."""
    stamina.set_testing(True, attempts=1)
    yield
    stamina.set_testing(False)


def _error_of(call):
    with pytest.raises(StoreUnavailable) as caught:
        call()
    return caught.value


def test_what_is_slow_is_not_taken_for_silent(postgres_url, monkeypatch):
    """Migrations, counts over everything and what a consumer's handler does; a dead line would end them."""
    with SessionLog(postgres_url, **SOON) as log:
        steps = migrate.pending("postgres", 0)
        slow = [steps[0]._replace(text=f"{SLOW};" + steps[0].text), *steps[1:]]
        monkeypatch.setattr(migrate, "pending", lambda dialect, applied: slow if applied == 0 else [])
        log.migrate()
        log.append("s", notes(1))
        for name in ("sizes", "orphans"):
            statement = getattr(log._store._sql, name)
            slowly = statement.replace("WHERE", "WHERE pg_sleep(0.7)::text = '' AND", 1)
            monkeypatch.setattr(log._store._sql, name, slowly)
        assert log._store.sizes("default") == (1, 1)
        assert log.verify().ok
        consumer = log.consumer("c", lambda events, inside: inside.execute(text(SLOW)), transactional=True)
        assert consumer.run(until_idle=True) == 1


def test_a_slow_statement_of_the_hot_path_is_given_up(postgres_url):
    """Positive control: the same statement, where an answer is due."""
    given_up = pytest.raises(StoreUnavailable, match=r"no answer within 0\.5 s")
    with SessionLog(postgres_url, **SOON) as log:
        log.append("s", notes(1))
        with given_up:
            log._store._server.query(SLOW, ())


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", ["30000", "10", "5", "4", "10"]),
        ("?tcp_user_timeout=1000&connect_timeout=3", ["1000", "10", "5", "4", "3"]),
    ],
)
def test_the_kernel_is_told_to_find_a_dead_line_and_the_url_counts(postgres_url, query, found):
    names = [f"keepalives_{each}" for each in ("idle", "interval", "count")]
    with SessionLog(postgres_url + query) as log:
        log.migrate()
        lease = log._store._server._connections.take()
        parameters = lease.driver.connection.info.get_parameters()
        log._store._server._connections.give(lease)

    names = ["tcp_user_timeout", *names, "connect_timeout"]
    assert [parameters[name] for name in names] == found


def test_a_timeout_may_be_of_weeks(postgres_url):
    """libpq and the kernel take less; they get what they take."""
    with SessionLog(postgres_url, timeout_s=2_000_000) as log:
        assert log.append("s", notes(1)).version == 1
