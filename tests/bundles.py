"""Exports for tests: a log with everything that can be recorded, and hostile copies of its files."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

from kern_events import Draft, SessionLog, chain, message, spi
from kern_events.batch import StoredRow, expected_hash
from kern_events.bundle import Section, parse, row_line
from kern_events.errors import PointErased
from tests.facade import sync_of
from tests.writers import note

NATIVE = bytes(range(256))


def fill(log: Any) -> list[str]:
    """Sessions with restores, forks of forks, erased parents, native bytes and the rest; their ids."""
    with log.turn("s", user_id="ada", actor="agent-1", meta={"run": [1, None]}) as turn:
        turn.message("user", "Grüße, 東京 \x1b[31m \u202e \0")
        turn.set_state("seat", {"row": 12})
        turn.tool_result(turn.tool_call("look_up", {"q": 1}), {"found": []})
    log.append("s", [note("native", native=NATIVE, type_version=7)], idempotency_key="delivery 1")
    log.append("s", [message("user", "again"), Draft("session.renamed", {"name": "Übung"})])
    restore(log, "s", 4)
    with log.turn("s", run_id="r2") as turn:
        turn.message("user", "the other way")
    log.fork("s", "fork", version=6)
    log.append("fork", [message("user", "in the fork")])
    restore(log, "fork", 3)
    log.fork("fork", "fork of it", actor="bob")
    log.append("gone", [note("secret"), Draft("session.closed", {})])
    log.append("gone", [Draft("session.created", {"name": "again"}), note("secret too")])
    log.fork("gone", "orphan", version=3)
    log.append("orphan", [note("kept")])
    log.delete("gone")
    log.append("gone", [Draft("session.created", {"user_id": "eve"}), note("after")])
    log.fork("gone", "second orphan")
    log.append("left", [note("secret")])
    log.fork("left", "third orphan")
    log.delete("left")
    return ["s", "fork", "fork of it", "gone", "orphan", "second orphan", "left", "third orphan"]


def grow(log: SessionLog, chance: random.Random, steps: int) -> list[str]:
    """Sessions of random appends, turns, restores, forks, deletions and reopenings; their ids."""
    ids = ["s0"]
    log.append("s0", [note(0)])
    for step in range(steps):
        id = chance.choice(ids)
        head = log.head(id)
        match chance.randrange(8):
            case 0 if head.status == "open" and chance.random() < 0.3:
                log.delete(id)
            case _ if head.status != "open":
                log.append(id, [Draft("session.created", {"name": f"again {step}"})])
            case 1 | 2:
                into = f"s{len(ids)}"
                with suppress(PointErased):
                    log.fork(id, into, version=chance.randint(1, head.version))
                    ids.append(into)
            case 3:
                restore(log, id, chance.randint(0, head.version))
            case 4 | 5:
                log.append(id, [Draft("turn.started", {}), note(step), Draft("turn.completed", {})])
            case 6 if chance.random() < 0.2:
                log.append(id, [Draft("session.closed", {})])
            case _:
                log.append(id, [note(step, native=b"\xff", actor="a")], idempotency_key=f"k{step}")
    return ids


def restore(log: Any, session_id: str, target: int) -> None:
    spi.restore(sync_of(log), session_id, target, {}, log.head(session_id), actor=None)


def everything(log: Any, session_ids: Iterable[str]) -> dict[str, Any]:
    """All that is recorded of sessions, but for positions: head rows and rows."""
    store, namespace = sync_of(log)._store, log.namespace
    with store.snapshot() as snapshot:
        heads = {id: next(iter(snapshot.head_rows(namespace, id)), None) for id in session_ids}
        rows = {id: [_unplaced(row) for row in _rows(snapshot, namespace, id)] for id in heads}
    return {id: (heads[id], rows[id]) for id in heads}


def _rows(snapshot: Any, namespace: str, session_id: str) -> Iterator[StoredRow]:
    after = 0
    while page := snapshot.page(namespace, session_id, after, 10_000):
        yield from page
        after = page[-1][0]


def _unplaced(row: StoredRow) -> StoredRow:
    return (row[0], *row[2:])


def forged(
    lines: Iterable[bytes],
    namespace: str,
    change: Callable[[dict[str, Any]], object],
    parent_hash: bytes | None = None,
) -> list[bytes]:
    """The lines of one session after a change to its rows, with hashes that fit again."""
    header, head, *rest = lines
    section = parse(head)
    assert isinstance(section, Section)
    scope = chain.scope(namespace, section.session_id)
    previous, made = chain.genesis(scope), [header, head]
    if section.fork_parent is not None and parent_hash is not None:
        previous = chain.fork_genesis(scope, section.fork_parent, section.origin, parent_hash)
    for line in rest:
        fields = json.loads(line)
        change(fields)
        row = parse(json.dumps(fields).encode())
        assert not isinstance(row, Section)
        previous = expected_hash(previous, scope, row) or bytes(32)
        made.append(row_line((*row[:-1], previous)))
    return made


def mutated(data: bytes, at: int, how: str, byte: int) -> bytes:
    """A file with one byte changed, taken out or put in."""
    kept = data[at:] if how == "insert" else data[at + 1 :]
    return data[:at] + (b"" if how == "drop" else bytes([byte])) + kept


def exported(log: SessionLog, *session_ids: str) -> bytes:
    """A file of several sessions: their own, one after the other, without the first lines in between."""
    files = [list(log.export(session_id)) for session_id in session_ids]
    return b"".join(files[0][:1] + [line for file in files for line in file[1:]])
