"""Opening a file that another process is opening just then."""

import sqlite3
import subprocess
import sys

import pytest

from kern_events import SessionLog
from tests.writers import notes

RECOVERING = """
import fcntl, struct, sys, time
with open(sys.argv[1] + "-shm", "r+b") as shm:
    # The locks of the writer, of a checkpoint and of who makes the index.
    fcntl.fcntl(shm, fcntl.F_SETLK, struct.pack("hhqqi", fcntl.F_WRLCK, 0, 120, 3, 0))
    shm.write(bytes(96))  # the index of the WAL: whoever reads has to wait until it is made anew
    shm.flush()
    print("now", flush=True)
    time.sleep(0.5)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log.db"


@pytest.fixture
def url(path):
    return f"sqlite:///{path}"


def test_whoever_opens_a_file_that_others_open_waits_for_them(url, path, monkeypatch):
    """Another process makes the index of the WAL just then; it is met at one moment of the opening."""
    with SessionLog(url) as first:
        first.append("s", notes(1))
        holder, connect = [], sqlite3.connect

        def met(statement):
            if statement.startswith("PRAGMA busy_timeout") and not holder:
                command = [sys.executable, "-c", RECOVERING, path]
                holder.append(subprocess.Popen(command, stdout=subprocess.PIPE))
                assert holder[0].stdout.readline() == b"now\n"

        def traced(*args, **options):
            connection = connect(*args, **options)
            connection.set_trace_callback(met)
            return connection

        monkeypatch.setattr("sqlite3.dbapi2.connect", traced)
        with SessionLog(url) as second:
            version = second.append("s", notes(1)).version
        with holder[0] as process:
            process.wait()

    assert version == 2
