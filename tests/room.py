"""A disk without room, as a process is told of it: by a limit on its files, or by Postgres."""

from __future__ import annotations

import resource
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tests import databases

_TABLES: Final = ("kern_events", "kern_sessions", "kern_snapshots", "kern_consumers", "kern_parked")
_SAID: Final = "could not extend file: No space left on device"


@contextmanager
def no_files(size_bytes: int = 1 << 14) -> Iterator[None]:
    """No file of this process grows beyond so much, as under a quota: a few pages of SQLite's WAL."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def no_rows(url: str, namespace: str) -> Iterator[None]:
    """The tables in Postgres take no row of a namespace, as on a full disk or in a full tablespace."""
    name = f"full_{uuid.uuid4().hex}"
    with databases.connect(url) as admin:
        admin.execute(
            f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{_SAID}' USING ERRCODE = '53100'; END $$".encode()
        )
        for table in _TABLES:
            admin.execute(
                f"CREATE TRIGGER {name} BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW "
                f"WHEN (NEW.namespace = '{namespace}') EXECUTE FUNCTION {name}()".encode()
            )
        try:
            yield
        finally:
            admin.execute(f"DROP FUNCTION {name} CASCADE".encode())
