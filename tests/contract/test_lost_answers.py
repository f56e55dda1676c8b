"""Real lost answers: SQLite's COMMIT that raises though it took effect, and Postgres behind a bad line.

Each has its control: whoever repeats an append after an error without the retry rule doubles it.
"""

from __future__ import annotations

import sqlite3
import threading
import uuid

import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

from kern_events import SessionLog, spi
from kern_events.errors import AppendUnresolved, KernError, StoreError, StoreFull, StoreUnavailable
from tests import databases, faults
from tests.writers import PATIENCE_S, eventually, in_threads, note, notes, pick, texts

COMMIT = b"COMMIT\0"  # and not READ COMMITTED
CUTS = [pytest.param(100, id="100"), pytest.param(2_000, id="2000", marks=pytest.mark.long)]

# -------------------------------------------------------------------------------------- SQLite


class Fragile(sqlite3.Connection):
    """Raises at COMMIT when it is told to: before it, so that nothing is written, or after it."""

    fault: str | None = None
    commits = 0

    def execute(self, statement, *values):
        if Fragile.fault == "neither" and statement in ("COMMIT", "ROLLBACK"):
            raise failed("SQLITE_FULL" if statement == "COMMIT" else "SQLITE_IOERR_WRITE")
        if statement != "COMMIT" or Fragile.fault is None:
            return super().execute(statement, *values)
        fault = Fragile.fault
        if fault != "broken":  # That one stays.
            Fragile.fault = None
        if fault == "after":
            super().execute(statement)
        raise failed("SQLITE_IOERR_FSYNC" if fault == "broken" else "SQLITE_ERROR")


def failed(name):
    error = sqlite3.OperationalError("the answer was lost")
    error.sqlite_errorname = name
    return error


@pytest.fixture
def fragile(tmp_path):
    """A log in a file, whose COMMITs fail at will."""
    with SessionLog(f"sqlite:///{tmp_path}/log.db") as first:
        first.append("s", [note("first")])
    engine = create_engine(
        "sqlite:///log.db",
        creator=lambda: _durable(
            sqlite3.connect(tmp_path / "log.db", factory=Fragile, check_same_thread=False)
        ),
    )
    with SessionLog(engine) as log:
        yield log
    Fragile.fault = None
    engine.dispose()


def _durable(connection):
    connection.execute("PRAGMA synchronous = FULL")
    return connection


@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("expected", [None, 1, "head"])
def test_a_commit_whose_answer_is_lost_is_recorded_once(fragile, fault, expected):
    expected = fragile.head("s") if expected == "head" else expected
    drafts = notes(2)
    Fragile.fault = fault
    receipt = fragile.append("s", drafts, expected=expected)

    assert (receipt.first_version, receipt.version) == (2, 3)
    assert texts(fragile.read("s")) == ["first", 0, 1]
    assert Fragile.fault is None
    assert fragile.verify().ok


@pytest.mark.parametrize("fault", ["before", "after"])
def test_many_whose_answer_is_lost_are_recorded_once(fragile, fault):
    Fragile.fault = fault
    receipts = fragile.append_many([("s", notes(1), None), ("t", notes(2), 0)])

    assert [receipt.version for receipt in receipts] == [2, 2]
    assert [fragile.head(one).version for one in "st"] == [2, 2]
    assert fragile.verify().ok


@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_deletion_whose_answer_is_lost_is_recorded_once(fragile, fault):
    Fragile.fault = fault

    assert fragile.delete("s").version == 2
    assert [event.type for event in fragile.read_all()] == ["note.taken", "session.deleted"]
    assert fragile.verify().ok


@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_fork_whose_answer_is_lost_is_recorded_once(fragile, fault):
    Fragile.fault = fault
    receipt = fragile.fork("s", "f")

    assert Fragile.fault is None
    assert [(event.session_id, event.type) for event in fragile.read_all()] == [
        ("s", "note.taken"), ("f", "session.forked"),
    ]  # fmt: skip
    assert receipt.hash == fragile.head("f").hash
    assert fragile.verify().ok


@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_deletion_with_forks_whose_answer_is_lost_is_recorded_once(fragile, fault):
    fragile.fork("s", "f")
    fragile.fork("f", "g")
    Fragile.fault = fault
    fragile.delete("s")

    assert [fragile.head(one).epoch for one in "sfg"] == [1, 1, 1]
    assert fragile.verify().ok


@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_snapshot_whose_answer_is_lost_is_not_said_to_be_stored(fragile, fault):
    table = spi.SnapshotTable(fragile, "p")
    Fragile.fault = fault
    with pytest.raises(StoreUnavailable):
        table.put("s", 0, 1, head=b"head")

    stored = table.head("s", 1)
    assert stored is None if fault == "before" else stored[1:] == (1, b"head")
    assert table.put("s", 0, 1, head=b"head")
    assert table.head("s", 1)[1:] == (1, b"head")


def test_a_fork_on_a_broken_disk_is_left_open(fragile):
    Fragile.fault = "broken"
    with pytest.raises(AppendUnresolved) as caught:
        fragile.fork("s", "f")

    assert (caught.value.session_id, caught.value.base) == ("f", 1)


def test_a_group_whose_answer_is_lost_is_recorded_once_each(fragile):
    def work(number):
        for round in range(10):
            if number == 0:
                Fragile.fault = ("before", "after")[round % 2]
            fragile.append("s", [note(f"{number}.{round}")])

    in_threads(4, work)
    Fragile.fault = None
    assert sorted(texts(fragile.read("s"))) == sorted(
        ["first", *(f"{n}.{r}" for n in range(4) for r in range(10))]
    )
    assert fragile.verify().ok


def test_the_control_that_repeats_after_an_error_doubles(fragile):
    """Positive control: without the look-up the same fault records the event twice."""
    Fragile.fault = "after"
    store, batch = fragile._store, fragile._prepare("s", [note("twice")])
    try:
        store.attempt(batch, None)
    except Exception:
        store.attempt(batch, None)

    assert texts(fragile.read("s")) == ["first", "twice", "twice"]


def test_a_broken_disk_leaves_it_open_and_is_used_again_when_it_works(fragile):
    """No sync succeeds, so nobody knows what is on the disk; the next commit writes over it."""
    drafts = notes(1)
    Fragile.fault = "broken"
    with pytest.raises(AppendUnresolved) as caught:
        fragile.append("s", drafts)
    assert (caught.value.session_id, caught.value.base) == ("s", 1)
    assert texts(fragile.read("s")) == ["first"]

    Fragile.fault = None
    for _ in range(2):
        assert fragile.append("s", drafts, expected=caught.value.base).version == 2
    assert texts(fragile.read("s")) == ["first", 0]
    assert fragile.verify().ok


def test_what_cannot_be_undone_either_is_told_and_holds_no_lock(fragile, tmp_path):
    Fragile.fault = "neither"
    with pytest.raises(StoreFull):
        fragile.append("s", notes(1))
    with pytest.raises(StoreFull):
        spi.SnapshotTable(fragile, "session:1:ab").forget_others("s", "session:")

    other = sqlite3.connect(tmp_path / "log.db", timeout=0)
    other.execute("BEGIN IMMEDIATE")
    other.close()
    Fragile.fault = None
    assert fragile.append("s", notes(1)).version == 2


# ------------------------------------------------------------------------------------ Postgres


@pytest.fixture
def proxy(postgres_server):
    url = make_url(postgres_server)
    proxy = faults.CuttingProxy(url.host, url.port)
    yield proxy
    proxy.close()


@pytest.fixture(params=["session", "transaction"])
def behind(request, proxy, shared_postgres_url):
    """A log whose connections go through the proxy, and one whose do not.

    With a setting for each session, and with one for each transaction, as behind a pooler.
    """
    url = make_url(shared_postgres_url)
    query = {"sslmode": "disable", "gssencmode": "disable"}
    query |= {"prepare_threshold": "none"} if request.param == "transaction" else {}
    through = url.set(host="127.0.0.1", port=proxy.port, query=query)
    options = {"namespace": f"n{uuid.uuid4().hex}"}
    with SessionLog(through, **options) as log, SessionLog(url, **options) as honest:
        honest.append("s", [note("first")])
        log.head("s")
        yield log, honest


@pytest.mark.parametrize("mode", ["before", "during", "after"])
@pytest.mark.parametrize("expected", [None, 1])
def test_an_append_that_is_cut_is_recorded_once(behind, proxy, mode, expected):
    log, honest = behind
    proxy.cut_next(mode, b"note.taken")
    receipt = log.append("s", notes(2), expected=expected)

    assert proxy.cuts == 1
    assert (receipt.first_version, receipt.version) == (2, 3)
    assert texts(honest.read("s")) == ["first", 0, 1]
    assert honest.verify().ok


@pytest.mark.parametrize("mode", ["before", "during", "after"])
@pytest.mark.parametrize("statement", [b"BEGIN", b"FOR UPDATE", b"COPY", COMMIT])
def test_many_that_are_cut_are_recorded_once(behind, proxy, mode, statement):
    log, honest = behind
    proxy.cut_next(mode, statement)
    try:
        receipts = log.append_many([("s", notes(1), None), ("t", notes(2), None)])
    except AppendUnresolved:
        raise
    except StoreUnavailable:  # It says that nothing was written, so it may be called again.
        receipts = log.append_many([("s", notes(1), None), ("t", notes(2), None)])

    assert proxy.cuts == 1
    assert [receipt.version for receipt in receipts] == [2, 2]
    assert [honest.head(one).version for one in "st"] == [2, 2]
    assert honest.verify().ok


@pytest.mark.parametrize("mode", ["before", "during", "after"])
@pytest.mark.parametrize("statement", [b"FOR UPDATE", b"session.deleted", COMMIT])
def test_a_deletion_that_is_cut_is_recorded_once(behind, proxy, mode, statement):
    log, honest = behind
    proxy.cut_next(mode, statement)
    try:
        log.delete("s")
    except AppendUnresolved:
        raise
    except StoreUnavailable:
        log.delete("s")

    assert [event.type for event in honest.read_all()] == ["note.taken", "session.deleted"]
    assert honest.verify().ok


FORKING = [b"BEGIN", b"FOR KEY SHARE", b"kern_events WHERE", b"session.forked", COMMIT]


@pytest.mark.parametrize("mode", ["before", "during", "after"])
@pytest.mark.parametrize("statement", FORKING)
def test_a_fork_that_is_cut_is_recorded_once(behind, proxy, mode, statement):
    log, honest = behind
    proxy.cut_next(mode, statement)
    receipt = log.fork("s", "f")

    assert proxy.cuts == 1
    assert [event.type for event in honest.read_all()] == ["note.taken", "session.forked"]
    assert receipt.hash == honest.head("f").hash
    assert honest.verify().ok


DELETING = [
    b"BEGIN", b"session_id = $2 FOR UPDATE", b"session.deleted", b"payload IS NOT NULL", b"sha256(",
    b"RECURSIVE", b"ORDER BY session_id FOR UPDATE", b"epoch + 1", b"DELETE FROM", COMMIT,
]  # fmt: skip


@pytest.mark.parametrize("mode", ["before", "during", "after"])
@pytest.mark.parametrize("statement", DELETING)
def test_a_deletion_with_forks_that_is_cut_is_recorded_once(behind, proxy, mode, statement):
    log, honest = behind
    honest.fork("s", "f")
    honest.fork("f", "g")
    proxy.cut_next(mode, statement)
    log.delete("s")

    assert proxy.cuts == 1
    assert [event.type for event in honest.read_all()].count("session.deleted") == 1
    assert [honest.head(one).epoch for one in "sfg"] == [1, 1, 1]
    assert honest.verify().ok


@pytest.mark.parametrize("mode", ["before", "during", "after"])
@pytest.mark.parametrize("statement", [b"BEGIN", b"FOR KEY SHARE", b"kern_snapshots", COMMIT])
def test_a_snapshot_that_is_cut_is_stored_whole(behind, proxy, mode, statement):
    log, honest = behind
    proxy.cut_next(mode, statement)
    assert spi.SnapshotTable(log, "p").put("s", 0, 1, chunks={"aa": b"chunk"}, head=b"head")

    assert proxy.cuts == 1
    assert spi.SnapshotTable(honest, "p").names("s") == ([1], {"aa"})


def test_a_fork_that_cannot_be_looked_up_is_told(behind, proxy):
    log, honest = behind
    proxy.cut_next("after", COMMIT, then_down=True)
    with pytest.raises(AppendUnresolved) as caught:
        log.fork("s", "f")

    assert (caught.value.session_id, caught.value.base) == ("f", 1)
    assert honest.head("f").version == 2


@pytest.mark.parametrize("count", CUTS)
def test_random_cuts_lose_and_double_no_fork(behind, proxy, count):
    log, honest = behind
    chance, number = pick("cut forks"), 0
    while proxy.cuts < count:
        number += 1
        proxy.cut_next(chance.choice(["before", "during", "after"]))
        while True:
            try:
                log.fork("s", f"f{number}")
                break
            except AppendUnresolved:
                assert honest.head(f"f{number}").version in (0, 2)
                break
            except StoreUnavailable:  # It says that nothing was written.
                continue

    assert honest.verify().ok


@pytest.mark.parametrize("count", CUTS)
def test_random_cuts_lose_and_double_nothing(behind, proxy, count):
    log, honest = behind
    chance, said, number = pick("cuts"), ["first"], 0
    while proxy.cuts < count:
        number += 1
        proxy.cut_next(chance.choice(["before", "during", "after"]))
        drafts, expected = [note(number)], chance.choice([None, len(said)])
        while True:
            try:
                log.append("s", drafts, expected=expected)
                break
            except AppendUnresolved as error:
                expected = error.base
            except StoreUnavailable:
                continue
        said.append(number)

    assert texts(honest.read("s")) == said
    assert honest.verify().ok


def test_the_control_that_repeats_after_a_cut_doubles(behind, proxy):
    """Positive control: the same cuts, met by whoever just tries again."""
    log, honest = behind
    for number in range(20):
        batch = log._prepare("s", [note(number)])
        proxy.cut_next("after", b"note.taken")
        try:
            log._store.attempt(batch, honest.head("s"))
        except Exception:
            log._store.attempt(batch, honest.head("s"))

    said = texts(honest.read("s"))
    assert len(said) > len(set(said)) + 10


def test_an_answer_that_cannot_be_looked_up_is_told_and_can_be_settled(behind, proxy):
    log, honest = behind
    drafts = notes(2)
    proxy.cut_next("after", b"note.taken", then_down=True)
    with pytest.raises(AppendUnresolved) as caught:
        log.append("s", drafts)
    assert (caught.value.session_id, caught.value.base) == ("s", 1)
    honest.append("s", [note("meanwhile")])
    proxy.up()

    receipt = log.append("s", drafts, expected=caught.value.base)
    assert (receipt.first_version, receipt.version) == (2, 3)
    assert texts(honest.read("s")) == ["first", 0, 1, "meanwhile"]


def test_a_server_that_is_away_is_unavailable_and_may_come_back(behind, proxy):
    log, honest = behind
    proxy.down()
    for use in (lambda: log.append("s", notes(1)), lambda: log.head("s"), lambda: list(log.read("s"))):
        with pytest.raises(StoreUnavailable) as caught:
            use()
        assert isinstance(caught.value.__cause__, Exception)
    proxy.up()

    log.append("s", notes(1))
    assert honest.head("s").version == 2


@pytest.mark.parametrize(
    "count", [pytest.param(60, id="60"), pytest.param(5_000, id="5000", marks=pytest.mark.long)]
)
@pytest.mark.parametrize("query", ["", "?prepare_threshold=none"])
def test_backends_that_are_terminated_lose_and_double_nothing(postgres_url, query, count):
    """An administrator ends our sessions again and again, at any moment of an append."""
    killed, done = 0, threading.Event()

    def kill():
        nonlocal killed
        with databases.connect(postgres_url) as admin:
            while not done.is_set() and killed < count:
                rows = admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                ).fetchall()
                killed += len(rows)

    with SessionLog(postgres_url + query) as log:
        log.append("s", [note(0)])
        killer = threading.Thread(target=kill)
        killer.start()
        number = 0
        try:
            while killed < count:
                number += 1
                _until_recorded(log, [note(number)])
        finally:
            done.set()
            killer.join(PATIENCE_S)

        assert not killer.is_alive()
        eventually(lambda: _works(log))
        assert texts(log.read("s")) == list(range(number + 1))
        assert log.verify().ok


def _until_recorded(log, drafts):
    expected = None
    while True:
        try:
            log.append("s", drafts, expected=expected)
            return
        except AppendUnresolved as error:
            expected = error.base
        except StoreUnavailable:
            continue


def _works(log):
    try:
        return log.head("s").version
    except (KernError, StoreError):
        return 0
