"""Whether the log of an Agno Db tells exactly what Agno's tables hold."""

from __future__ import annotations

import json
from typing import Any


def stored_rows(db: Any, session_id: str) -> tuple[str, str]:
    """A session's row and those of its runs as Agno's tables have them, as text to compare."""
    db = getattr(db, "_twin", db)
    tables = db._kern.tables
    with db.db_engine.connect() as connection:
        session = tables.session(connection, session_id)
        runs = tables.run_rows(connection, session_id)
    return _text(session), _text(runs)


def replayed_rows(db: Any, session_id: str, **point: int) -> tuple[str, str]:
    """The same, folded from the log alone."""
    db = getattr(db, "_twin", db)
    stored = db.sessions.stored(session_id, **point)
    return _text(stored.session), _text(dict(stored.runs))


def check_replay(db: Any, session_id: str) -> None:
    """The log tells the rows, the built-in view is complete, and the chain verifies."""
    db = getattr(db, "_twin", db)
    told, held = replayed_rows(db, session_id), stored_rows(db, session_id)
    assert told == held, f"the log says\n{told}\nand the tables\n{held}"
    view = db.sessions.load(session_id)
    assert not view.incomplete, view.problems
    assert db.sessions.verify(session_id).ok


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=dict)
