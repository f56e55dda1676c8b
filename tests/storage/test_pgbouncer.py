"""Postgres through PgBouncer in transaction mode: many clients on two sessions, which nobody owns.

The contract suite runs through it as well: `pytest tests/contract --long -k pgbouncer`.
"""

from __future__ import annotations

import random
import threading
from contextlib import ExitStack, closing, suppress

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from kern_events import SessionLog
from kern_events.errors import AppendUnresolved, StoreBusy, StoreError, StoreUnavailable
from projections import Sessions
from tests import databases, servers, writers
from tests.writers import eventually, in_processes, in_threads, note, notes, texts

pytestmark = pytest.mark.long

SHARED = 2  # server connections, for all clients of a database
# What is set for this session alone: by a client, and not by the server's file, the role or the database.
SETTINGS = "SELECT name, setting FROM pg_settings WHERE source = 'session' ORDER BY name"
# What else a session can hold.
HELD = {
    "statements": "SELECT name FROM pg_prepared_statements",
    "temporary": "SELECT relname FROM pg_class WHERE relnamespace = pg_my_temp_schema()",
    "channels": "SELECT pg_listening_channels()",
    "cursors": "SELECT name FROM pg_cursors WHERE is_holdable",
    "locks": "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
}


@pytest.fixture(scope="module")
def bouncer(pgbouncer_binary, postgres_server):
    """The address of a PgBouncer as Debian sets it up."""
    with servers.pgbouncer(pgbouncer_binary, postgres_server, SHARED) as url:
        yield make_url(url)


@pytest.fixture(scope="module")
def lenient(pgbouncer_binary, postgres_server):
    """The address of one that drops the startup options that it does not know."""
    settings = ["ignore_startup_parameters = options"]
    with servers.pgbouncer(pgbouncer_binary, postgres_server, SHARED, settings) as url:
        yield make_url(url)


def through(address, postgres_url, **query):
    """The address of a database through a PgBouncer."""
    url = address.set(database=make_url(postgres_url).database).update_query_dict(query)
    return url.render_as_string(hide_password=False)


@pytest.fixture
def plain(bouncer, postgres_url):
    """The address of a new database through PgBouncer, for a client that knows nothing of it."""
    return through(bouncer, postgres_url)


@pytest.fixture
def url(bouncer, postgres_url):
    """The same, as a log needs it."""
    return through(bouncer, postgres_url, prepare_threshold="none")


def rows(url, statement):
    with databases.connect(url, prepare_threshold=None) as connection:
        return connection.execute(statement).fetchall()


# -------------------------------------------------------------------------------- many at once


def test_eight_threads_and_three_processes_append_to_one_session(url, postgres_url):
    options = {"lock_timeout_s": 30.0}
    with SessionLog(url, **options) as log:

        def work(number):
            if number < 8:
                return [writers.pile_up(log, "s", 25, number)]
            return in_processes(3, writers.pile_up_at, "sync", url, options, "s", 25)

        landed = [versions for some in in_threads(9, work) for versions in some]

        assert sorted(version for one in landed for version in one) == list(range(1, 11 * 25 + 1))
        assert all(one == sorted(one) for one in landed)
        assert [event.version for event in log.read("s")] == list(range(1, 11 * 25 + 1))
        assert log.verify().ok
        counted = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        assert rows(postgres_url, counted) == [(SHARED + 1,)]  # And the one that counts.


def test_eight_threads_and_three_processes_who_expect_a_version_take_turns(url):
    options = {"lock_timeout_s": 30.0}
    with SessionLog(url, **options) as log:

        def work(number):
            if number < 8:
                return [writers.compete(log, "s", 8, number)]
            return in_processes(3, writers.compete_at, "sync", url, options, "s", 8)

        met = [one for some in in_threads(9, work) for one in some]

        won = sorted(at for one in met for _, at, wins in one if wins)
        assert won == list(range(1, 11 * 8 + 1))
        assert any(not wins for one in met for *_, wins in one)
        assert log.verify().ok


def test_processes_that_open_one_empty_database_make_the_tables_once(url, postgres_url):
    landed = in_processes(4, writers.pile_up_at, "sync", url, {}, "s", 3)

    assert sorted(version for one in landed for version in one) == list(range(1, 13))
    numbers = rows(postgres_url, "SELECT number FROM kern_migrations ORDER BY number")
    assert numbers == [(number,) for number in range(1, len(numbers) + 1)]


@pytest.mark.parametrize("schema", [None, "tenant"])
def test_logs_that_migrate_at_once_agree(url, schema):
    def work(number):
        with SessionLog(url, schema=schema) as log:
            return log.migrate()[1]

    assert len(set(in_threads(6, work))) == 1
    with SessionLog(url, schema=schema) as log:
        log.append("s", notes(1))
        assert log.verify().ok


def test_keys_that_eight_threads_send_are_recorded_once(url):
    keys = [f"k{number}" for number in range(20)]
    with SessionLog(url) as log:

        def work(number):
            mine = random.Random(number).sample(keys, len(keys))
            return {key: log.append("s", [note(key), note(key)], idempotency_key=key) for key in mine}

        first, *others = in_threads(8, work)

        assert all(other == first for other in others)
        assert sorted(texts(log.read("s"))) == sorted(keys * 2)
        assert log.verify().ok


def test_appends_to_many_sessions_at_once_are_all_or_none(url):
    names = [f"s{number}" for number in range(6)]
    with SessionLog(url, lock_timeout_s=30.0) as log:

        def work(number):
            for round in range(6):
                mine = random.Random(repr((number, round))).sample(names, 4)
                log.append_many(
                    [(name, [note(f"{number}.{round}") for _ in range(3)], None) for name in mine]
                )

        in_threads(8, work)

        said = [entry for name in names for entry in texts(log.read(name))]
        assert sorted(said) == sorted(
            f"{n}.{round}" for n in range(8) for round in range(6) for _ in range(12)
        )
        assert log.verify().ok


def test_the_feed_skips_nothing_that_eight_threads_write(url):
    done, read = threading.Event(), []
    with SessionLog(url) as log, SessionLog(url) as other:
        log.migrate()

        def follow():
            last = False
            while not last:
                last = done.is_set()
                read.extend(other.read_all(after=read[-1].position if read else 0))

        def work(number):
            if number == 8:
                return follow()
            try:
                return writers.pile_up(log, f"s{number % 3}", 30, number)
            finally:
                with counted:
                    left.pop()
                    if not left:
                        done.set()

        left, counted = list(range(8)), threading.Lock()
        in_threads(9, work)

        positions = [event.position for event in read]
        assert positions == sorted(set(positions))
        assert len(positions) == 8 * 30


@pytest.mark.parametrize("transactional", [False, True])
def test_eight_workers_of_one_consumer_take_every_event_once(url, postgres_url, transactional):
    with databases.connect(postgres_url) as connection:
        connection.execute("CREATE TABLE sink (session_id text, version bigint)")
    taken = []

    def take(events, connection=None):
        if connection is not None:
            writers.into_sink(events, connection)
        taken.extend(event.version for event in events)

    with SessionLog(url, lock_timeout_s=30.0) as log:
        consumers = [log.consumer("c", take, transactional=transactional, batch_size=5) for _ in range(8)]

        def work(number):
            if number < 8:
                return consumers[number].run()
            for count in range(40):
                log.append("s", notes(1 + count % 3))
            eventually(lambda: len(taken) >= log.head("s").version)
            for consumer in consumers:
                consumer.stop()

        in_threads(9, work)

        assert taken == list(range(1, log.head("s").version + 1))
        if transactional:
            assert rows(postgres_url, "SELECT version FROM sink") == [(version,) for version in taken]


def test_conversations_are_loaded_restored_forked_and_deleted_at_once(url, postgres_url):
    with Sessions(url, lock_timeout_s=30.0) as sessions:
        in_threads(8, lambda number: converse(sessions, url, f"s{number}", delete=number % 2 == 0))

        assert sessions.verify().ok
        assert len(list(sessions.read_all())) > 8 * 600
    stored = rows(postgres_url, "SELECT DISTINCT session_id FROM kern_snapshots")
    assert {f"s{number}" for number in (1, 3, 5, 7)} <= {name for (name,) in stored}
    assert not {f"s{number}" for number in (0, 2, 4, 6)} & {name for (name,) in stored}


def converse(sessions, url, name, delete):
    """A long session: go back in it, go on from a copy, and read both without anything in memory."""
    talk(sessions, name, turns=30)
    before = sessions.load(name, turn=20).messages
    sessions.restore(name, to_turn=20)
    sessions.fork(name, f"{name}-fork", turn=10)
    talk(sessions, f"{name}-fork", turns=2)
    with Sessions(url) as first:
        first.load(name)  # It is stored when these are closed, at the latest.
    with Sessions(url) as cold:
        assert cold.load(name).messages == before
        assert len(cold.load(f"{name}-fork").messages) == 12 * 20
    if delete:
        sessions.delete(name)
        # What the fork had of its parent is erased.
        assert len(sessions.load(f"{name}-fork").messages) == 2 * 20


def talk(sessions, name, turns):
    for _ in range(turns):
        with sessions.turn(name) as turn:
            for number in range(10):
                turn.message("user", f"{number}?")
                turn.message("assistant", f"{number}!")


def test_server_connections_that_are_terminated_lose_and_double_nothing(url, postgres_url):
    """PgBouncer ends the client's connection then: the log looks up what was recorded."""
    with SessionLog(url) as log, databases.connect(postgres_url) as admin:
        log.migrate()

        def work(number):
            if number == 0:
                return [terminate(admin, 60)]
            return [recorded(log, f"{number}.{i}") for i in range(40)]

        in_threads(5, work)

        eventually(lambda: works(log))
        assert sorted(texts(log.read("s"))) == sorted(f"{n}.{i}" for n in range(1, 5) for i in range(40))
        assert log.verify().ok


def terminate(admin, count):
    """End so many server connections of others, as they come."""
    while count > 0:
        count -= len(
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            ).fetchall()
        )


def recorded(log, said):
    """Append a note once, as often as that takes."""
    draft = note(said)

    def attempt():
        with suppress(StoreUnavailable, StoreBusy, AppendUnresolved):
            return log.append("s", [draft], idempotency_key=said)

    return eventually(attempt)


def works(log):
    with suppress(StoreUnavailable):
        return log.head("s")


# --------------------------------------------------------------------------------------- locks


@pytest.fixture
def busy(url):
    """A log that does not wait long, with a session in it."""
    with SessionLog(url, lock_timeout_s=0.2) as log:
        log.append("s", notes(1))
        yield log


@pytest.mark.parametrize(
    ("lock", "use"),
    [
        ("SELECT 1 FROM kern_sessions FOR UPDATE", lambda log: log.append("s", notes(1))),
        ("SELECT 1 FROM kern_sessions FOR UPDATE", lambda log: log.append_many([("s", notes(1), None)])),
        ("SELECT 1 FROM kern_sessions FOR UPDATE", lambda log: log.delete("s")),
        ("LOCK TABLE kern_events", lambda log: log.append("s", notes(1))),
        ("LOCK TABLE kern_events", lambda log: list(log.read("s"))),
        ("LOCK TABLE kern_events", lambda log: log.verify()),
        ("LOCK TABLE kern_consumers", lambda log: log.consumer("c", lambda events: None).step()),
        ("LOCK TABLE kern_consumers", lambda log: log.consumer("c", lambda events: None).position()),
        ("SELECT pg_advisory_xact_lock(7308332046109602405)", lambda log: log.migrate()),
    ],
)
def test_a_lock_that_is_held_too_long_is_busy(busy, plain, postgres_url, lock, use):
    with databases.connect(postgres_url) as other, other.transaction():
        other.execute(lock)
        with pytest.raises(StoreBusy, match="lock timeout"):
            use(busy)

    assert busy.append("s", notes(1)).version == 2
    assert rows(plain, "SHOW lock_timeout") == [("0",)]


# ---------------------------------------------------------------------- what is left in a session


def sessions_of(url):
    """What every server connection behind PgBouncer is like, as another client meets it."""
    found = {}
    with ExitStack() as stack:
        for _ in range(SHARED):  # All at once, in transactions: so each has another one.
            other = stack.enter_context(closing(databases.connect(url, prepare_threshold=None)))
            stack.enter_context(other.transaction())
            [(pid,)] = other.execute("SELECT pg_backend_pid()").fetchall()
            found[pid] = {name: other.execute(statement).fetchall() for name, statement in HELD.items()}
            found[pid]["settings"] = other.execute(SETTINGS).fetchall()
    assert len(found) == SHARED
    return list(found.values())


def use_all(url):
    """Everything that a log does, by more threads than there are server connections."""
    with Sessions(url) as log:
        log.migrate()

        def work(number):
            for round in range(3):
                use(f"s{round}.{number}")

        def use(name):
            log.append(name, notes(3), idempotency_key="k")
            log.append(name, notes(3), idempotency_key="k")
            with log.turn(name) as turn:
                turn.message("user", "Hi")
            log.append_many([("many", notes(1), None), (name, notes(1), None), (f"new-{name}", notes(1), 0)])
            log.fork(name, f"fork-{name}")
            log.load(name)
            log.restore(name, to_turn=1)
            log.verify(name)
            log.delete(name)
            list(log.read_all())
            log.sessions()

        in_threads(8, work)
        # One at a time: who holds a transaction and reads beside it needs two server connections.
        log.consumer("leased", lambda events: None).run(until_idle=True)
        log.consumer("held", lambda events, connection: None, transactional=True).run(until_idle=True)
        assert log.verify().ok


def test_nothing_is_left_in_a_session(plain, url):
    before = sessions_of(plain)
    use_all(url)

    assert sessions_of(plain) == before
    assert all(held == [] for one in before for name, held in one.items() if name != "settings")


def test_what_is_left_in_a_session_is_seen(plain):
    """Positive control of the test before: a client that does what the log must not do."""
    before = sessions_of(plain)
    with databases.connect(plain, prepare_threshold=0) as careless:
        careless.execute("SELECT set_config('lock_timeout', '7', false), pg_advisory_lock(1)")
        careless.execute("CREATE TEMPORARY TABLE left_over (id int)")
        careless.execute("LISTEN something")

    after = sessions_of(plain)
    changed = {name for old, new in zip(before, after, strict=True) for name in old if old[name] != new[name]}
    assert changed >= {"settings", "statements", "temporary", "channels", "locks"}


# ------------------------------------------------------------------------------------- engines


def test_an_engine_of_ones_own_works_with_the_drivers_own_option(plain):
    engine = create_engine(plain, connect_args={"prepare_threshold": None})
    before = sessions_of(plain)
    with SessionLog(engine) as log:
        in_threads(8, lambda number: writers.pile_up(log, "s", 20, number))
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE orders (name text)"))
            log.append("s", notes(1), connection=connection)

        assert log.head("s").version == 161
        assert log.verify().ok
    engine.dispose()
    assert sessions_of(plain) == before


# ------------------------------------------------------------------------------------ controls


def test_without_the_option_the_connection_is_refused(plain):
    with SessionLog(plain) as log, pytest.raises(StoreUnavailable, match="startup parameter: options"):
        log.append("s", notes(1))


def test_without_the_option_prepared_statements_are_mixed_up(lenient, postgres_url, pgbouncer_binary):
    """What the option is for: a statement prepared in one session is missed, or met, in another."""
    if tuple(map(int, pgbouncer_binary.version.split("."))) >= (1, 21):
        pytest.skip("PgBouncer 1.21 and newer can follow prepared statements")
    with SessionLog(through(lenient, postgres_url, prepare_threshold="none")) as log:
        log.migrate()

    def work(number):
        with SessionLog(through(lenient, postgres_url, prepare_threshold="1")) as log:
            for _ in range(50):
                log.append(f"s{number}", notes(1))

    with pytest.raises(StoreError, match=r"prepared statement .* (already exists|does not exist)"):
        in_threads(8, work)
