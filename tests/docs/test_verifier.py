"""The verifier in docs/events.md, which knows nothing of this project, finds whatever is changed."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from kern_events import Draft, SessionLog, import_transcripts, message
from tests.docs import documents
from tests.transcripts import conversations, jsonl

Verify = Callable[[str], dict[tuple[str, str], int]]

CHANGES = [
    "version = version + 10", "event_id = zeroblob(16)", "type = 'a.b'", "type_version = 2", "kind = 2",
    "turn = turn + 1", "ref = 1", "at = at + 1", "actor = 'eve'", "meta = CAST('{}' AS BLOB)",
    "idempotency_key = 'other'", "codec = 1", "key_commit = zeroblob(32)", "payload = CAST('{}' AS BLOB)",
    "native = CAST('x' AS BLOB)", "salt = zeroblob(16)", "hash = zeroblob(32)",
]  # fmt: skip


@pytest.fixture
def verify(log: str) -> Verify:
    """The function of the document, made where its own example finds a log too."""
    [block] = [each for each in documents.blocks("docs/events.md") if "def verify(" in each.text]
    assert block.text.count("\n") <= 45
    found: Verify = documents.run_python(block)["verify"]
    return found


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A log with all that an event can have: keys, actors, meta, native, erasures, any text."""
    monkeypatch.chdir(tmp_path)
    with (
        SessionLog("sqlite:///sessions.db") as log,
        SessionLog("sqlite:///sessions.db", namespace="ü") as other,
    ):
        import_transcripts(log, jsonl(conversations()))
        log.append("plain", [message("user", "one"), message("user", "two"), message("user", "three")])
        rich = Draft("a.b", {"\0": [1.5]}, 7, "u-1", {"trace": "é"}, b"\xff", event_id=b"\1" * 16)
        other.append("plain", [rich, message("user", "x", actor="u-2")], idempotency_key="key-€")
        other.append("gone", [message("user", "x"), rich], idempotency_key="k")
        other.delete("gone")
    return "sessions.db"


def change(log: str, statement: str) -> None:
    with closing(sqlite3.connect(log)) as db:
        for (trigger,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {trigger}")
        assert db.execute(statement).rowcount > 0
        db.commit()


def test_an_honest_log_verifies(verify: Verify, log: str) -> None:
    assert verify(log) == {}


@pytest.mark.parametrize("field", CHANGES)
def test_a_changed_field_is_found(verify: Verify, log: str, field: str) -> None:
    change(
        log,
        f"UPDATE kern_events SET {field} WHERE version = 2 AND session = "
        "(SELECT id FROM kern_sessions WHERE namespace = 'default' AND session_id = 'plain')",
    )

    assert set(verify(log)) == {("default", "plain")}


@pytest.mark.parametrize("version", [1, 2, 3])
def test_an_event_that_is_gone_is_found(verify: Verify, log: str, version: int) -> None:
    change(
        log,
        f"DELETE FROM kern_events WHERE version = {version} AND session = "
        "(SELECT id FROM kern_sessions WHERE namespace = 'default' AND session_id = 'plain')",
    )

    assert set(verify(log)) == {("default", "plain")}


def test_a_head_that_disagrees_is_found(verify: Verify, log: str) -> None:
    change(log, "UPDATE kern_sessions SET version = version - 1 WHERE session_id = 'gone'")

    assert set(verify(log)) == {("ü", "gone")}
