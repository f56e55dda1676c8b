"""Databases in a Postgres server that many tests share, each with a corner of its own."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import Engine, make_url

from kern_events.store import migrate


def connect(url: str, **options: Any) -> psycopg.Connection[Any]:
    """A psycopg connection to an SQLAlchemy URL, in autocommit."""
    plain = make_url(url).set(drivername="postgresql").difference_update_query(["prepare_threshold"])
    return psycopg.connect(plain.render_as_string(hide_password=False), autocommit=True, **options)


def engine(url: str) -> Engine:
    """An SQLAlchemy engine of the caller's own; the log's option in a URL is set as its driver wants it."""
    address = make_url(url)
    pooled = {"prepare_threshold": None} if address.query.get("prepare_threshold") == "none" else {}
    return create_engine(address.difference_update_query(pooled), connect_args=pooled)


@contextmanager
def database(server: str, options: str = "", template: str = "template0") -> Iterator[str]:
    """A new database while the context lasts, with these options of CREATE DATABASE; its URL.

    It is a copy of `template`, to which nobody may be connected.
    """
    name = f"kern_shared_{uuid.uuid4().hex}"
    with connect(server) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE {template} {options}".encode())
    yield make_url(server).set(database=name).render_as_string(hide_password=False)
    with connect(server) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def release(number: int) -> Iterator[None]:
    """Code of a release that knows the first so many migrations alone, while the context lasts."""
    known = migrate.migrations
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrate, "migrations", lambda dialect: known(dialect)[:number])
        yield


@contextmanager
def schema(url: str) -> Iterator[str]:
    """A new schema of a database while the context lasts: a URL whose search path is that alone."""
    name = f"s{uuid.uuid4().hex}"
    with connect(url) as admin:
        admin.execute(f"CREATE SCHEMA {name}")
        address = make_url(url).update_query_dict({"options": f"-csearch_path={name}"})
        yield address.render_as_string(hide_password=False)
        admin.execute(f"DROP SCHEMA {name} CASCADE")
