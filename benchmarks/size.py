"""P9: how many bytes on the disk does a byte of payload take, hash chain included?

Turns of 20 sessions arrive in random order, as in life. SQLite's file is measured after a
checkpoint, Postgres' relations as they are, with whatever dead rows the appends left.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from benchmarks import floors, workload
from benchmarks.measure import Bench, Result
from benchmarks.workload import Turn
from kern_events import SessionLog

_SESSIONS: Final = 20
_TURNS: Final = 2_000
_SQLITE_SIZES: Final = "SELECT name, sum(pgsize) FROM dbstat GROUP BY name"
_POSTGRES_SIZES: Final = (
    "SELECT relname, pg_relation_size(oid) FROM pg_class WHERE relkind IN ('r', 'i') AND relname ~ '^kern_' "
    "UNION ALL SELECT relname || ' (toast)', pg_total_relation_size(reltoastrelid) FROM pg_class "
    "WHERE relkind = 'r' AND relname ~ '^kern_' AND reltoastrelid <> 0"
)
_POSTGRES_TOTAL: Final = (
    "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r' AND relname ~ %s"
)


def run(bench: Bench) -> Iterator[Result]:
    """SQLite, then Postgres."""
    payload = workload.payload_bytes(list(workload.turns(_TURNS)))
    yield from _sqlite(bench, payload)
    yield from _postgres(bench, payload)


def _sqlite(bench: Bench, payload: int) -> Iterator[Result]:
    ours, bare = bench.sqlite(), bench.sqlite()
    with SessionLog(f"sqlite:///{ours}") as log:
        _in_life(lambda session, after, turn: log.append(session, turn.drafts()))
    with closing(floors.sqlite_bare(bare)) as connection:
        insert = floors.sqlite_insert(8)
        _in_life(
            lambda session, after, turn: connection.execute(
                insert, floors.flat(floors.bare_rows(session, turn, after))
            )
        )
    yield _result("SQLite", _file_size(ours), _file_size(bare), payload, 1.45)
    with closing(sqlite3.connect(ours)) as connection:
        yield from _parts(connection.execute(_SQLITE_SIZES).fetchall(), payload)


def _postgres(bench: Bench, payload: int) -> Iterator[Result]:
    url = bench.postgres()
    with SessionLog(url) as log:
        _in_life(lambda session, after, turn: log.append(session, turn.drafts()))
    cursor, insert = floors.postgres_bare(url), floors.postgres_insert(8)
    _in_life(
        lambda session, after, turn: cursor.execute(
            insert, floors.flat(floors.bare_rows(session, turn, after))
        )
    )
    with closing(cursor.connection) as connection:
        ours, bare = (
            int(connection.execute(_POSTGRES_TOTAL, (name,)).fetchall()[0][0])
            for name in ("^kern_", "^bare$")
        )
        yield _result("Postgres", ours, bare, payload, 1.60)
        yield from _parts(connection.execute(_POSTGRES_SIZES).fetchall(), payload)


def _in_life(append: Callable[[str, int, Turn], object]) -> None:
    """Every turn, each of a session picked at random, by what appends one behind a version."""
    rng, versions = random.Random(workload.SEED), dict.fromkeys(range(_SESSIONS), 0)
    for turn in workload.turns(_TURNS):
        number = rng.randrange(_SESSIONS)
        append(f"session-{number:04}", versions[number], turn)
        versions[number] += 8


def _file_size(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path.stat().st_size


def _result(name: str, ours: int, bare: int, payload: int, at_most: float) -> Result:
    return Result(
        "P9", f"bytes on disk per turn over its payload, {name}",
        f"{ours / _TURNS:,.0f} B", f"{bare / _TURNS:,.0f} B", ours / payload,
        f"≤ {at_most:.2f}x", ours / payload <= at_most,
        {"ours_bytes": ours, "bare_bytes": bare, "payload_bytes": payload, "bare_ratio": bare / payload},
    )  # fmt: skip


def _parts(sizes: list[tuple[str, int]], payload: int) -> Iterator[Result]:
    for name, size in sorted(sizes, key=lambda one: -one[1]):
        if size / payload >= 0.005:
            yield Result("", f"  {name}", f"{size / _TURNS:,.0f} B", "", size / payload)
