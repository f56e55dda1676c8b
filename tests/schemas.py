"""What Postgres says of its tables: `python -m tests.schemas` writes it for verify to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kern_events.store
from kern_events import SessionLog, message
from kern_events.store import migrate, schema, sql
from tests import databases, servers


def objects(connection: Any) -> schema.Objects:
    """What there is of our schema where a connection's search path leads."""
    return schema.objects_of(connection.execute(sql.POSTGRES_OBJECTS, {"schema": None}).fetchall())


if __name__ == "__main__":
    path = Path(kern_events.store.__file__).with_name("postgres_schema.sql")
    with servers.postgres() as url, SessionLog(url) as log:
        log.append("s", [message("user", "Hello")])
        with databases.connect(url) as connection:
            text = schema.described(migrate.latest("postgres"), objects(connection))
            path.write_text(text, encoding="utf-8")
