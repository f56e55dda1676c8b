"""Where events are kept: the private seam, and one module per database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import URL, make_url
from sqlalchemy.engine import Engine
from sqlalchemy.exc import ArgumentError

from kern_events.store.base import Store


def open_store(
    url_or_engine: str | URL | Engine,
    *,
    schema: str | None,
    pool_size: int,
    lock_timeout_s: float,
    timeout_s: float,
) -> Store:
    """The store behind a URL or an Engine. No I/O: it connects on first use.

    Raises:
        ValueError: The URL is not one of a database that this project works with.
        ImportError: The driver's extra is not installed.
    """
    if isinstance(url_or_engine, str) and url_or_engine in ("memory:", "memory://"):
        from kern_events.store.memory import MemoryStore

        return MemoryStore()
    engine = url_or_engine if isinstance(url_or_engine, Engine) else None
    url = engine.url if engine is not None else _parsed(url_or_engine)
    if url.get_backend_name() == "sqlite" and url.get_driver_name() == "pysqlite":
        if schema is not None:
            raise ValueError("schema= is for Postgres; a SQLite file has none")
        from kern_events.store.sqlite import SQLiteStore

        return SQLiteStore(url, engine, pool_size=pool_size, lock_timeout_s=lock_timeout_s)
    if url.get_backend_name() == "postgresql":
        _check_psycopg(url)
        from kern_events.store.postgres import PostgresStore

        try:
            return PostgresStore(
                url,
                engine,
                schema=schema,
                pool_size=pool_size,
                lock_timeout_s=lock_timeout_s,
                timeout_s=timeout_s,
            )
        except ArgumentError:  # Its text may have what is secret in a URL.
            raise ValueError("the Postgres URL has not one port for each of its hosts") from None
    raise ValueError(
        f"{url.drivername!r} is not supported: use memory:, sqlite:///file.db or postgresql://..."
    )


def _parsed(url: Any) -> URL:
    if type(url).__name__ == "AsyncEngine":
        raise ValueError(
            "an AsyncEngine is not taken: AsyncSessionLog runs whole operations in threads, which "
            "is faster than one await per statement; pass a URL or a plain Engine"
        )
    if not isinstance(url, (str, URL)):
        raise ValueError(f"{type(url).__name__} is neither a URL nor an SQLAlchemy Engine")
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Never the URL itself: it may hold a password.
        raise ValueError(
            "this is not a database URL: use memory:, sqlite:///file.db or postgresql://..."
        ) from None
    if parsed.get_backend_name() == "sqlite" and isinstance(url, str):
        for option in filter(None, url.partition("?")[2].split("&")):
            if "=" not in option:  # SQLAlchemy would drop it, and open the file named before the ?.
                raise ValueError(f"a SQLite URL takes no {option}: a ? in the name of a file is written %3F")
    if parsed.get_backend_name() == "sqlite" and (parsed.host or parsed.username or parsed.password):
        raise ValueError("a SQLite URL has no host and no user: use sqlite:///file.db")
    if "@" in (parsed.host or ""):  # The driver would tell the rest of the password as the host's name.
        raise ValueError("the password in the URL has an @: write %40")
    return parsed


def _check_psycopg(url: URL) -> None:
    if "+" in url.drivername and url.get_driver_name() != "psycopg":
        raise ValueError(f"{url.drivername!r}: Postgres is reached through psycopg 3, as in postgresql://...")
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise ImportError("Postgres needs: pip install 'kern-events[postgres]'") from error
