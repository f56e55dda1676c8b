"""A text that is to be nowhere once its session is deleted: planted in every place, and looked for in all."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import redis

from kern_events import Draft, tool_returned
from tests import databases

CANARY = "canary-7f3a"

_COUNT = """
import pathlib, sys
folder, words = pathlib.Path(sys.argv[1]), [word.encode() for word in sys.argv[2:]]
files = [path for path in folder.rglob("*") if path.is_file()]
print(sum(path.read_bytes().count(word) for path in files for word in words))
"""


def new() -> str:
    """A text that is nowhere yet; of hex digits alone, so that no encoding changes it."""
    return f"cafe{uuid.uuid4().hex}"


def plant(sessions: Any, session_id: str, canary: str, *, fork: bool = True) -> None:
    """Record a session with the canary in all that can be erased; some of it is behind a restore.

    Two forks go on from it: `<id>-fork` and `<id>-fork-fork`, which say nothing of it themselves.
    """
    described = {"user_id": canary, "name": canary, "metadata": {"who": canary}, "state": {"likes": canary}}
    sessions.append(session_id, [Draft("session.created", described)])
    for round in range(4):
        with sessions.turn(session_id) as turn:
            turn.message("user", f"{canary} {'x' * 3_000} {round}")
            said = tool_returned(f"c{round}", {"said": canary}, name="look")
            state = Draft("state.changed", {"ops": [["set", [canary], canary]]})
            native = Draft("raw.seen", {canary: 1}, native=canary.encode() * 50)
            sessions.append(session_id, [said, state, native])
    sessions.restore(session_id, to_turn=2, reason=canary)
    sessions.append(session_id, [Draft("session.summarized", {"summary": canary})])
    if fork:
        fork_id = f"{session_id}-fork"
        sessions.fork(session_id, fork_id)
        sessions.append(fork_id, [Draft("note.made", {"text": "of its own"})])
        sessions.restore(fork_id, to_turn=1)
        sessions.fork(fork_id, f"{fork_id}-fork")
    for each in [session_id, f"{session_id}-fork", f"{session_id}-fork-fork"][: 3 if fork else 1]:
        sessions.load(each)


def in_files(folder: Path, canary: str) -> int:
    """How often it is in the files of a folder; read in a process of its own, or SQLite's locks would go."""
    command = [sys.executable, "-c", _COUNT, str(folder), canary]
    return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def in_sqlite_rows(path: Path, canary: str) -> int:
    """How often it is in rows that can be read, as text or as bytes."""
    with closing(sqlite3.connect(path)) as connection:
        return _occurrences("\n".join(connection.iterdump()), canary)


def in_postgres_rows(url: str, schema: str, canary: str) -> int:
    """As in_sqlite_rows, in all tables of a schema."""
    with databases.connect(url) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", (schema,))
        found = 0
        for (table,) in tables.fetchall():
            rows = connection.execute(f'SELECT t::text FROM "{schema}"."{table}" AS t').fetchall()
            found += sum(_occurrences(row, canary) for (row,) in rows)
        return found


def _occurrences(text: str, canary: str) -> int:
    lower = text.lower()
    return lower.count(canary) + lower.count(canary.encode().hex())


def in_redis(url: str, text: str = CANARY) -> int:
    """How often a text stands in a Redis: in keys and values of every type that there is."""
    wanted = text.encode()
    with redis.Redis.from_url(url) as client:
        return sum(
            b"\n".join((key, *_values(client, key))).count(wanted) for key in client.scan_iter(count=1000)
        )


def in_memory(sessions: Any, text: str = CANARY) -> int:
    """How often a text stands in the views that sessions keep in memory."""
    memory = sessions._loader._memory
    return sum(repr(_plain(kept.view)).count(text) for kept in memory._snapshots.values())


def _values(client: Any, key: bytes) -> list[bytes]:
    kind = client.type(key)
    if kind == b"hash":
        return [part for pair in client.hgetall(key).items() for part in pair]
    return client.lrange(key, 0, -1) if kind == b"list" else [client.dump(key) or b""]


def _plain(view: Any) -> Any:
    return view.to_dict() if hasattr(view, "to_dict") else view
