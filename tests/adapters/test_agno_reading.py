"""Reading through a Db of ours makes no tables where there are none of Agno's."""

from __future__ import annotations

import pytest
from agno.db.base import SessionType
from sqlalchemy import create_engine, inspect

from kern_events.errors import SessionNotFound


def tables(place):
    url = place.options.get("db_url") or f"sqlite:///{place.options['db_file']}"
    engine = create_engine(url)
    try:
        return inspect(engine).get_table_names(schema=place.options.get("db_schema"))
    finally:
        engine.dispose()


def test_what_reads_makes_no_tables(place):
    db = place.open()
    assert db.get_session("s", SessionType.AGENT) is None
    assert db.get_sessions(SessionType.AGENT) == []
    for read in (db.sessions.load, db.sessions.branches, db.sessions.stored, db.sessions.verify):
        with pytest.raises(SessionNotFound):
            read("s")
    assert (db.sessions.head("s").version, db.sessions.sessions()) == (0, [])
    assert tables(place) == []
