"""A primary is lost, and its synchronous standby takes over: what was acknowledged is there.

The standby hears nothing when the appends begin, so none of them may be acknowledged: their commits wait.
Then the sessions of those commits are ended, which leaves rows that can be read and that no standby has;
then the primary crashes and comes back, which shows the rest. Whoever looks them up has to wait as well.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack, suppress

import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from kern_events import SessionLog, import_transcripts
from kern_events.errors import AppendUnresolved, SessionNotFound, StoreBusy, StoreError, StoreUnavailable
from tests import databases, facade, faults, servers
from tests.writers import PATIENCE_S, eventually, notes, texts

SETTINGS = ["synchronous_commit = on", "wal_keep_size = '64MB'", "wal_receiver_status_interval = 1"]
WAITING = (
    "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND backend_type = 'client backend'"
)
LINE = b'{"id": "imported", "messages": [{"role": "user", "content": "Hi"}]}'


def cycles(short, long):
    return pytest.mark.parametrize(
        "count",
        [pytest.param(short, id=f"{short}"), pytest.param(long, id=f"{long}", marks=pytest.mark.long)],
    )


class Pair:
    """A primary, its synchronous standby, the line between them, and the address of both."""

    def __init__(self, stack):
        self.primary = stack.enter_context(servers.postgres_process(settings=SETTINGS))
        self.line = faults.CuttingProxy("127.0.0.1", self.primary.port)
        stack.callback(self.line.close)
        standby = servers.postgres_process(settings=SETTINGS, primary_port=self.line.port)
        self.standby = stack.enter_context(standby)
        hosts = [f"127.0.0.1:{each.port}" for each in (self.primary, self.standby)]
        query = {"host": hosts, "target_session_attrs": "read-write", "connect_timeout": "2"}
        self.url = make_url(self.primary.url).set(host=None, port=None, query=query)

    def follow(self):
        """From here on, a commit waits for the standby."""
        with databases.connect(self.primary.url) as admin:
            admin.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            admin.execute("SELECT pg_reload_conf()")
            synced = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"
            eventually(lambda: admin.execute(synced).fetchall())

    def waiting(self, count):
        """The sessions whose commits wait for the standby, once there are so many."""
        with databases.connect(self.primary.url) as admin:
            return eventually(
                lambda: len(found := [row[0] for row in admin.execute(WAITING)]) >= count and found,
                f"{count} commits wait",
            )

    def end(self, sessions):
        """End sessions of the primary, as an administrator does."""
        with databases.connect(self.primary.url) as admin:
            for session in sessions:
                admin.execute("SELECT pg_terminate_backend(%s)", (session,))

    def cancel(self, *names):
        """Cancel the wait of sessions with these names, which nobody should do."""
        waits = f"SELECT pg_cancel_backend(pid) FROM ({WAITING} AND application_name = %s) AS waiting"
        with databases.connect(self.primary.url) as admin:
            for name in names:
                eventually(lambda name=name: admin.execute(waits, (name,)).fetchall())

    def named(self, name):
        """The address, for a session with a name."""
        return self.url.update_query_dict({"application_name": name})

    def fail_over(self):
        """Lose the primary; the standby, which need not wait for anybody, takes its place."""
        self.primary.kill()
        self.line.down()
        self.standby.promote()
        with databases.connect(self.standby.url) as admin:
            admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
            admin.execute("SELECT pg_reload_conf()")


class Hasty:
    """A store that believes what it reads: the control."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def look_up(self, batch, base, count, *, durable):
        return self._inner.look_up(batch, base, count)


class Users:
    """Threads that each do something until it is acknowledged, as the README says."""

    def __init__(self):
        self.acknowledged = {}
        self._threads = []

    def start(self, name, work):
        self._threads.append(threading.Thread(target=self._run, args=(name, work), daemon=True))
        self._threads[-1].start()

    def join(self):
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    def _run(self, name, work):
        base = None
        while name not in self.acknowledged:
            try:
                self.acknowledged[name] = work(base)
            except AppendUnresolved as error:
                base = error.base
            except (StoreBusy, StoreUnavailable):  # Nothing was written.
                base = None


def appending(log, session_id, key=None):
    drafts = notes(2)
    return lambda base: log.append(session_id, drafts, expected=base, idempotency_key=key)


def appending_many(log):
    drafts = notes(2)
    return lambda base: log.append_many([("many", drafts, base), ("more", drafts, base)])


def deleting(log):
    def work(base):
        with suppress(SessionNotFound):  # It is deleted already.
            log.delete("secret")

    return work


def confirming(log, engine):
    """In a transaction of the caller's, who asks what became of it."""
    pending = []

    def work(base):
        if not pending:
            with suppress(DBAPIError), engine.begin() as connection:
                pending.append(log.append("own", notes(2), connection=connection))
        try:
            return pending[0].confirm()
        except StoreUnavailable:
            raise
        except StoreError:
            return None  # It is not there.

    return work


def consuming(log):
    """One whose row is new, and may be gone after the failover."""
    consumer = log.consumer("c", lambda events, connection: None, transactional=True)
    return lambda base: consumer.run(until_idle=True)


@cycles(1, 20)
def test_what_was_acknowledged_is_not_lost_with_the_primary(count):
    for _ in range(count):
        with ExitStack() as stack:
            _fail_over_under_users(stack)


def _fail_over_under_users(stack):
    two, loop, users = Pair(stack), facade.LoopThread(), Users()
    stack.callback(loop.close)
    log, hasty = (stack.enter_context(SessionLog(two.url, timeout_s=2 * PATIENCE_S)) for _ in range(2))
    hasty._store = Hasty(hasty._store)
    awaited = stack.enter_context(facade.open_log("async", loop, two.url, timeout_s=2 * PATIENCE_S))
    engine = create_engine(two.url)
    stack.callback(engine.dispose)
    log.append_many([("secret", notes(1), 0), ("parent", notes(1), 0)])
    two.follow()
    two.line.freeze()
    users.start("plain", appending(log, "plain"))
    users.start("awaited", appending(awaited, "awaited"))
    users.start("keyed", appending(log, "keyed", "k"))
    users.start("many", appending_many(awaited))
    users.start("delete", deleting(log))
    users.start("fork", lambda base: log.fork("parent", "fork"))
    users.start("import", lambda base: import_transcripts(log, [LINE]))
    users.start("own", confirming(log, engine))
    users.start("consumer", consuming(log))
    users.start("hasty", appending(hasty, "hasty"))
    two.end(two.waiting(10))
    two.waiting(9)
    cancelled = stack.enter_context(SessionLog(two.named("cancelled")))
    others = create_engine(two.named("others"))  # The log hears no warnings there.
    stack.callback(others.dispose)
    fooled = stack.enter_context(SessionLog(others))
    users.start("cancelled", appending(cancelled, "cancelled"))
    users.start("fooled", appending(fooled, "fooled"))
    two.cancel("cancelled", "others")
    two.waiting(10)
    eventually(lambda: len(users.acknowledged) == 2)
    two.primary.kill()
    two.primary.start()  # Now all that is in its WAL can be read there.
    again = stack.enter_context(SessionLog(two.url))  # As another process does after a crash.
    users.start("redelivered", appending(again, "keyed", "k"))
    users.start("deleted", deleting(again))
    users.start("imported", lambda base: import_transcripts(again, [LINE]))
    two.waiting(12)
    assert users.acknowledged.keys() == {"hasty", "fooled"}
    two.fail_over()
    users.join()

    with SessionLog(two.standby.url) as left:
        for session_id in ("hasty", "fooled"):  # Positive controls: they were acknowledged.
            assert left.head(session_id).version == 0
        for session_id in ("plain", "awaited", "keyed", "many", "more", "cancelled"):
            assert texts(left.read(session_id)) == [0, 1]
        assert [left.head(each).version for each in ("own", "fork", "imported")] == [0, 2, 3]
        assert left.head("secret").status == "deleted"
        assert users.acknowledged["redelivered"] == users.acknowledged["keyed"]
        assert users.acknowledged["own"] is None
        assert users.acknowledged["consumer"] > 0
        # Whoever remembers what is lost goes on from what there is.
        assert hasty.append("hasty", notes(1)).version == 1
        assert left.verify().ok
