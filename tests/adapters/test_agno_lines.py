"""The lines to Postgres that Agno's Dbs of ours have."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine

from kern_events.adapters.agno import KernPostgresDb


def timeout_of(engine):
    with engine.connect() as connection:
        return connection.connection.driver_connection.info.get_parameters().get("tcp_user_timeout")


@pytest.mark.parametrize("place", ["postgres"], indirect=True)
def test_a_dead_line_is_found_unless_the_engine_is_the_callers(place, agno_postgres_url):
    ours, awaited = place.open(), place.open_async()
    said = KernPostgresDb(db_url=f"{agno_postgres_url}?tcp_user_timeout=7000")
    theirs = create_engine(agno_postgres_url)
    given = KernPostgresDb(db_engine=theirs)
    assert ours.sessions.head("s").version == 0  # The log's reads have connections apart.

    for engine in (ours.db_engine, ours._apart, awaited._twin.db_engine):
        assert timeout_of(engine) == "30000"
    assert timeout_of(said.db_engine) == "7000"
    assert timeout_of(given.db_engine) is None
    place.opened.extend((said, given, awaited._twin))
