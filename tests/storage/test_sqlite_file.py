"""The SQLite file: how it is opened, what is left in it, and what is told of one that is harmed."""

from __future__ import annotations

import io
import json
import os
import pydoc
import re
import sqlite3
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import create_engine, event
from sqlalchemy.pool import AssertionPool, SingletonThreadPool, StaticPool

from kern_events import Draft, SessionLog
from kern_events.errors import KernError, StoreCorrupt, StoreError, StoreFull, StoreUnavailable
from kern_events.store import inodes
from tests import room
from tests.writers import note, notes, texts

SECRET = "a word that nobody else would write"


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "log.db"


@pytest.fixture
def url(path):
    return f"sqlite:///{path}"


def elsewhere(code, *args):
    """What another process prints."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def seen_elsewhere(path):
    """How many events another process sees."""
    code = (
        "import sqlite3, sys; "
        "print(sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM kern_events').fetchone()[0])"
    )
    return int(elsewhere(code, path))


# ------------------------------------------------------------------------------------ settings


@pytest.fixture
def statements(monkeypatch):
    """The connections that are made, with what each of them is sent."""
    made, connect = [], sqlite3.connect

    def traced(*args, **options):
        connection = connect(*args, **options)
        sent = []
        connection.set_trace_callback(sent.append)
        made.append((connection, sent))
        return connection

    monkeypatch.setattr("sqlite3.dbapi2.connect", traced)
    return made


def test_what_writes_is_durable_and_leaves_nothing_behind(url, statements):
    with SessionLog(url) as log:
        log.append("s", notes(1))
        log.append("s", notes(1))
        [writer] = [
            made for made, sent in statements if any("INSERT INTO kern_events" in one for one in sent)
        ]
        settings = {
            name: writer.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "secure_delete", "trusted_schema")
        }

        assert settings == {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1, "trusted_schema": 0}


def test_what_reads_cannot_write(url, statements):
    with SessionLog(url) as log:
        log.append("s", notes(1))
        assert texts(log.read("s")) == [0]
        readers = [made for made, sent in statements if not any("INSERT INTO" in one for one in sent)]

        assert readers
        for reader in readers:
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                reader.execute("CREATE TABLE forged (x)")


def test_the_file_is_never_opened_but_by_sqlite(url, path, monkeypatch):
    """Closing a file that this process has opened by itself would cancel SQLite's locks."""
    opened = []
    for name in ("builtins.open", "io.open", "os.open"):
        monkeypatch.setattr(name, _spied(opened, pydoc.locate(name)))
    with SessionLog(url) as log:
        log.append("s", notes(3))
        list(log.read("s"))
        log.verify()
        log.delete("s")

    assert not [one for one in opened if one.startswith(str(path))]
    with open(path, "rb"):  # Positive control: it would have been seen.
        assert opened[-1] == str(path)


def _spied(opened, function):
    def spy(file, *args, **options):
        opened.append(str(file))
        return function(file, *args, **options)

    return spy


# ------------------------------------------------------------------------- whose the files are


def modes(folder) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir() if not path.is_symlink()}


@pytest.fixture
def umask():
    """Sets the umask, as os.umask does, for one test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o022, 0o000])
@pytest.mark.parametrize("address", ["{}", "file:{}?uri=true", "file:{}?mode=rwc&uri=true", "engine"])
def test_a_new_file_is_its_owner_s_alone(path, umask, address, mask):
    umask(mask)
    given = create_engine(f"sqlite:///{path}") if address == "engine" else f"sqlite:///{address.format(path)}"
    with SessionLog(given) as log:
        log.append("s", notes(1))
        made = modes(path.parent)
    assert {"log.db"} <= set(made) <= {"log.db", "log.db-wal", "log.db-shm"}
    assert set(made.values()) == {0o600}


def test_a_stricter_umask_is_kept_to(url, path, umask):
    umask(0o277)
    # The owner cannot write it then, but for root.
    with suppress(StoreUnavailable), SessionLog(url) as log:
        log.append("s", notes(1))
    assert modes(path.parent)["log.db"] == 0o400


def test_a_file_that_is_there_keeps_its_mode(url, path, umask):
    path.touch(0o640)
    with SessionLog(url) as log:
        log.append("s", notes(1))
        assert set(modes(path.parent).values()) == {0o640}


def test_a_link_leads_to_a_file_that_is_its_owner_s_alone(path, umask):
    (path.parent / "link.db").symlink_to(path)
    with SessionLog(f"sqlite:///{path.parent}/link.db") as log:
        log.append("s", notes(1))
        assert set(modes(path.parent).values()) == {0o600}


def test_two_who_make_a_file_at_once_have_the_same_one(url, path, monkeypatch):
    """The second is done while the first one is about to give the file its name."""
    link = os.link

    def meanwhile(made, name):
        monkeypatch.setattr(os, "link", link)
        with SessionLog(url) as second:
            second.append("s", notes(1))
        link(made, name)

    monkeypatch.setattr(os, "link", meanwhile)
    with SessionLog(url) as first:
        assert first.append("s", notes(1)).version == 2
        assert modes(path.parent) == dict.fromkeys(("log.db", "log.db-wal", "log.db-shm"), 0o600)


# ---------------------------------------------------------------------------- a WAL that is lost


def unlinked(path):
    elsewhere("import os, sys; os.unlink(sys.argv[1] + '-wal')", path)


def renamed(path):
    elsewhere(
        "import os, sys; wal = sys.argv[1] + '-wal'; os.rename(wal, wal + '-old'); open(wal, 'wb').close()",
        path,
    )


def both_unlinked(path):
    elsewhere("import os, sys; [os.unlink(sys.argv[1] + end) for end in ('-wal', '-shm')]", path)


def locks_cancelled(path):
    """As it happens: this process opens the file by itself, then another believes to be the last."""
    with open(path, "rb"):
        pass
    elsewhere(
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); "
        "db.execute('SELECT count(*) FROM kern_events').fetchall(); "
        "db.execute('PRAGMA wal_checkpoint(TRUNCATE)'); db.close()",
        path,
    )


def shared_memory_unlinked(path):
    elsewhere("import os, sys; os.unlink(sys.argv[1] + '-shm')", path)


def all_unlinked(path):
    elsewhere("import os, sys; [os.unlink(sys.argv[1] + end) for end in ('', '-wal', '-shm')]", path)


def restored_over(path):
    """A backup is moved over the file, and the WAL stays."""
    elsewhere(
        "import os, sqlite3, sys; "
        "live, backup = (sqlite3.connect(sys.argv[1] + end) for end in ('', '.bak')); "
        "live.backup(backup); live.close(); backup.close(); os.rename(sys.argv[1] + '.bak', sys.argv[1])",
        path,
    )


HARMS = [unlinked, renamed, both_unlinked, locks_cancelled]
HARMS += [shared_memory_unlinked, all_unlinked, restored_over]


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("appended", [False, True])
@pytest.mark.parametrize("read", [False, True])
def test_nothing_is_acknowledged_into_a_wal_that_was_replaced(url, path, harm, appended, read, caplog):
    """What an append has returned is seen by another process, or it has not returned."""
    with SessionLog(url) as first:
        first.append("s", notes(1))
        first.append("s", notes(1))
    with SessionLog(url) as log:
        holder = sqlite3.connect(path)  # Keeps the WAL there while nothing was written.
        assert holder.execute("SELECT count(*) FROM kern_events").fetchone() == (2,)
        log.append("t", notes(1)) if appended else log.sessions()
        log.head("s") if read else None
        before = seen_elsewhere(path)
        harm(path)
        acknowledged = []
        for number in range(3):
            try:
                acknowledged.append(log.append("s", [note(f"later {number}")], idempotency_key=f"{number}"))
            except KernError:
                continue
        holder.close()
        seen = keyed_elsewhere(path)
    with SessionLog(url) as anew:  # Who opens it now, with nobody left in it, goes on.
        acknowledged.append(anew.append("s", [note("anew")], idempotency_key="anew"))
        assert acknowledged[-1].version in keyed_elsewhere(path)
        assert anew.verify().ok

    assert before == (3 if appended else 2)
    for receipt in acknowledged[:-1]:
        assert receipt.version in seen, (acknowledged, seen)


@pytest.fixture
def settle(monkeypatch, path, tmp_path_factory):
    """Lets the time since the folder's last change pass, as if it were hours."""
    monkeypatch.setattr(inodes, "_SETTLED_S", -3600)
    other = tmp_path_factory.mktemp("other") / "touched"

    def settle():
        while other.touch() or other.stat().st_ctime_ns <= path.parent.stat().st_ctime_ns:
            pass

    return settle


def test_a_folder_in_which_nothing_changes_is_all_that_is_asked_for(url, path, settle, monkeypatch):
    with SessionLog(url) as log:
        log.append("s", notes(1))
        settle()
        log.append("s", notes(1))
        monkeypatch.setattr(inodes.Watch, "_now", lambda _: pytest.fail("looked at the files"))
        assert log.append("s", notes(1)).version == 3
        (path.parent / "another file").touch()
        with pytest.raises(pytest.fail.Exception, match="looked at the files"):
            log.append("s", notes(1))


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("settled", [False, True])
def test_a_log_that_is_alone_goes_on_in_a_new_wal(url, path, harm, settled, settle, caplog):
    with SessionLog(url) as log:
        log.append("s", notes(1))
        seen_elsewhere(path)
        if settled:
            settle()
            log.append("s", notes(1))
        harm(path)
        with suppress(KernError):
            log.append("s", [note("not known")], idempotency_key="lost")
        receipt = log.append("s", [note("later")], idempotency_key="later")
        assert receipt.version in keyed_elsewhere(path)


def keyed_elsewhere(path):
    """The versions of the events with a key that another process sees."""
    code = (
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); print([row[0] for row in db.execute("
        "'SELECT version FROM kern_events WHERE idempotency_key IS NOT NULL')]); "
        "assert db.execute('PRAGMA integrity_check').fetchall() == [('ok',)]"
    )
    return json.loads(elsewhere(code, path))


@pytest.mark.parametrize("harm", [both_unlinked, locks_cancelled])
def test_whoever_does_not_look_loses_what_was_acknowledged(url, path, harm):
    """Positive control: a commit into the replaced WAL succeeds, and nobody else ever sees it."""
    with SessionLog(url) as log:
        log.append("s", notes(1))
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("UPDATE kern_sessions SET name = 'before'")
    harm(path)
    writer.execute("UPDATE kern_sessions SET name = 'after'")  # No error: it was committed.

    names = (
        "import sqlite3, sys; print(*sqlite3.connect(sys.argv[1]).execute('SELECT name FROM kern_sessions'))"
    )
    try:
        assert "after" not in elsewhere(names, path)
    finally:
        writer.close()


# -------------------------------------------------------------------------- what is left of it


def grep(path, word):
    """Whether a process of its own finds this text in the file or beside it."""
    code = (
        "import pathlib, sys; path = pathlib.Path(sys.argv[1]); "
        "print(any(sys.argv[2].encode() in one.read_bytes() for one in path.parent.glob(path.name + '*')))"
    )
    return elsewhere(code, path, word) == "True"


def secrets():
    """The text in every erasable place, long enough for pages of its own."""
    drafts = [note(f"{SECRET} {'x' * length}") for length in (0, 100, 5_000, 60_000)]
    created = Draft("session.created", {"name": SECRET, "user_id": "ada"})
    return [created, *drafts, Draft("raw.seen", {}, native=SECRET.encode() * 300)]


def test_a_deleted_text_is_nowhere_in_the_file(url, path):
    with SessionLog(url) as log:
        for number in range(5):
            log.append(f"s{number}", secrets())
        for number in range(5):
            log.delete(f"s{number}")
        assert log.verify().ok

    assert not grep(path, SECRET)


def test_a_deleted_text_is_nowhere_after_a_checkpoint_while_the_log_is_open(url, path):
    with SessionLog(url) as log:
        log.append("s", secrets())
        log.delete("s")
        elsewhere(
            "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('PRAGMA wal_checkpoint(TRUNCATE)')",
            path,
        )

        assert not grep(path, SECRET)


def test_a_text_that_was_not_deleted_is_found(url, path):
    """Positive control."""
    with SessionLog(url) as log:
        log.append("s", secrets())

    assert grep(path, SECRET)


# ------------------------------------------------------------------------------- harmed files


def recorded(url):
    with SessionLog(url) as log:
        for number in range(40):
            log.append(f"s{number % 3}", [note("x" * 500) for _ in range(20)])


def garbage(path):
    path.write_bytes(b"this is no database " * 5_000)


def headless(path):
    data = path.read_bytes()
    path.write_bytes(bytes(100) + data[100:])


def halved(path):
    os.truncate(path, path.stat().st_size // 2)


def holed(path):
    data = bytearray(path.read_bytes())
    data[4_096 : len(data) - 4_096] = b"\xff" * (len(data) - 8_192)
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [garbage, headless, halved, holed])
def test_a_harmed_file_is_corrupt_and_never_missing(url, path, harm):
    recorded(url)
    harm(path)
    before = path.read_bytes()
    with SessionLog(url) as log:
        for use in (
            lambda: list(log.read("s0")),
            lambda: log.append("s0", notes(1)),
            lambda: log.verify(),
            lambda: log.head("s1"),
            lambda: log.append("new", notes(1), expected=0),
        ):
            with pytest.raises(StoreCorrupt):
                use()

    assert path.read_bytes() == before  # Nothing was written over it.


def test_a_log_that_met_damage_stays_failed(url, path, tmp_path):
    """Also when the file is whole again: what it has seen may have been written to."""
    recorded(url)
    whole = path.read_bytes()
    garbage(path)
    with SessionLog(url) as log:
        with pytest.raises(StoreCorrupt):
            log.head("s0")
        path.write_bytes(whole)
        with pytest.raises(StoreCorrupt):
            log.append("s0", notes(1))

    with SessionLog(url) as anew:
        assert anew.verify().ok


def test_damage_met_while_reading_is_told(url, path):
    recorded(url)
    with SessionLog(url) as log:
        assert log.head("s0").version > 0
        holed(path)
        with pytest.raises(StoreCorrupt) as caught:
            for _ in range(3):
                log.verify()
        with pytest.raises(StoreCorrupt):
            log.append("s0", notes(1))

    assert isinstance(caught.value.__cause__, sqlite3.DatabaseError)


@pytest.mark.parametrize("where", ["missing/log.db", "log.db/inside.db", "."])
def test_a_place_where_no_file_can_be_is_unavailable(tmp_path, where):
    (tmp_path / "log.db").write_bytes(b"")
    with SessionLog(f"sqlite:///{tmp_path}/{where}") as log, pytest.raises(StoreUnavailable):
        log.append("s", notes(1))


def test_a_full_disk_is_told_and_nothing_is_half_there(url, path):
    """The limit on pages stands in for the disk; with room again, the log goes on."""
    recorded(url)
    engine, made = create_engine(url), []

    @event.listens_for(engine, "connect")
    def connected(driver, record):
        driver.execute("PRAGMA synchronous = FULL")
        made.append(driver)

    def limit(pages):
        for driver in made:
            driver.execute(f"PRAGMA max_page_count = {pages}")

    with SessionLog(engine) as log:
        version = log.append("s0", notes(1)).version
        limit(1)  # That is: as many as there are.
        with pytest.raises(StoreFull, match=re.escape(f"no room to write to {path}")):
            log.append("s0", [note("x" * 100_000)])
        assert log.head("s0").version == version
        limit(1_000_000)

        assert log.append("s0", [note("x" * 100_000)], expected=version).version == version + 1
        assert log.verify().ok
    engine.dispose()


@pytest.mark.parametrize("size_bytes", [0, 10_000, 40_000, 100_000])
def test_a_limit_that_is_met_in_the_middle_of_a_write_is_told(url, path, size_bytes):
    with SessionLog(url) as log:
        with room.no_files(size_bytes), pytest.raises(StoreFull, match=f"{path}.*File too large"):
            log.append("s", notes(1))
        assert log.append("s", notes(1)).version == 1


# ------------------------------------------------------------------------ network file systems


def mounts(monkeypatch, *lines):
    """As if these file systems were mounted: pairs of a path and a type."""
    text = "".join(f"36 35 98:0 / {where} rw - {kind} host:/export rw\n" for where, kind in lines)
    real = open

    def opening(file, *args, **options):
        return io.StringIO(text) if file == "/proc/self/mountinfo" else real(file, *args, **options)

    monkeypatch.setattr("builtins.open", opening)


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs"])
def test_a_file_on_the_network_is_refused(tmp_path, monkeypatch, kind):
    mounts(monkeypatch, ("/", "ext4"), (tmp_path, kind))

    with (
        SessionLog(f"sqlite:///{tmp_path}/log.db") as log,
        pytest.raises(StoreError, match=f"network.*{kind}"),
    ):
        log.append("s", notes(1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "overlay", "tmpfs"])
def test_a_file_on_a_local_file_system_is_not(tmp_path, monkeypatch, kind):
    mounts(monkeypatch, ("/", "nfs4"), (tmp_path, kind))

    with SessionLog(f"sqlite:///{tmp_path}/log.db") as log:
        assert log.append("s", notes(1)).version == 1


def test_the_innermost_mount_counts_whatever_its_name(tmp_path, monkeypatch):
    inner = tmp_path / "with space"
    inner.mkdir()
    mounts(monkeypatch, (tmp_path, "ext4"), (str(inner).replace(" ", "\\040"), "nfs4"), (f"{inner}x", "ext4"))

    with SessionLog(f"sqlite:///{inner}/log.db") as log, pytest.raises(StoreError, match="network"):
        log.append("s", notes(1))


def test_a_link_to_the_network_is_followed(tmp_path, monkeypatch):
    (tmp_path / "share").mkdir()
    (tmp_path / "here").symlink_to(tmp_path / "share")
    mounts(monkeypatch, ("/", "ext4"), (tmp_path / "share", "nfs4"))

    with SessionLog(f"sqlite:///{tmp_path}/here/log.db") as log, pytest.raises(StoreError, match="network"):
        log.append("s", notes(1))


# --------------------------------------------------------------------------- how it is opened


@pytest.mark.parametrize("form", ["file:{}?uri=true", "{}?mode=rwc", "{}"])
def test_every_form_of_a_url_has_the_same_guards(path, form):
    with SessionLog("sqlite:///" + form.format(path)) as log:
        log.append("s", notes(1))
        unlinked(path)
        with suppress(KernError):
            log.append("s", [note("not known")], idempotency_key="lost")
        receipt = log.append("s", [note("later")], idempotency_key="later")
        assert receipt.version in keyed_elsewhere(path)


@pytest.mark.parametrize("form", ["{}?mode=ro", "file:{}?mode=ro&uri=true"])
def test_a_url_for_reading_neither_makes_nor_writes_a_file(url, path, form):
    with SessionLog("sqlite:///" + form.format(path)) as log:
        assert log.head("s").version == 0
        with pytest.raises(StoreUnavailable, match=re.escape(f"cannot open {path}")):
            log.append("s", notes(1))
        assert not path.exists()
    with SessionLog(url) as writer, SessionLog("sqlite:///" + form.format(path)) as log:
        writer.append("s", notes(1))
        with pytest.raises(StoreUnavailable, match=re.escape(f"{path} cannot be written")):
            log.append("s", notes(1))
        assert log.head("s").version == 1


@pytest.mark.parametrize("end", ["what?.db", "a.db?mode=memory", "a.db?journal=off", "a.db?x"])
def test_a_url_that_means_another_file_is_refused(path, end):
    with pytest.raises(ValueError, match="SQLite"):
        SessionLog(f"sqlite:///{path.parent}/{end}")
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("pool", [StaticPool, SingletonThreadPool, AssertionPool])
def test_an_engine_whose_pool_shares_a_connection_is_refused(path, pool):
    with pytest.raises(ValueError, match=pool.__name__):
        SessionLog(create_engine(f"sqlite:///{path}", poolclass=pool))


def test_an_engine_that_tells_the_driver_to_begin_serves_consumers(path):
    """SQLAlchemy's own recipe for transactions that are what they seem."""
    engine = create_engine(f"sqlite:///{path}")
    event.listen(engine, "connect", lambda driver, _: setattr(driver, "isolation_level", None))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    with SessionLog(engine) as log:
        log.append("s", notes(2))
        assert log.consumer("plain", lambda events: None).run(until_idle=True) == 2
        taken = log.consumer("sink", lambda events, connection: None, transactional=True)
        assert taken.run(until_idle=True) == 2
    engine.dispose()
