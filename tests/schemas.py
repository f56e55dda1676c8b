"""What Postgres says of its tables: `python -m tests.schemas` writes it for verify to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kern_events.store
from kern_events import SessionLog
from kern_events.store import migrate, schema, sql
from tests import databases, servers


def told_by(connection: Any) -> str:
    """The text that stands in the file, of the schema that a connection's search path leads to."""
    rows = connection.execute(sql.POSTGRES_OBJECTS, {"schema": None}).fetchall()
    return schema.described(migrate.latest("postgres"), schema.objects_of(rows))


if __name__ == "__main__":
    path = Path(kern_events.store.__file__).with_name("postgres_schema.sql")
    path.touch()
    with servers.postgres() as url, SessionLog(url) as log:
        log.head("s")
        with databases.connect(url) as connection:
            path.write_text(told_by(connection), encoding="utf-8")
