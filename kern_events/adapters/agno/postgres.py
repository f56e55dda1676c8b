"""Agno's PostgresDb, recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agno.db.postgres import PostgresDb
from sqlalchemy import make_url
from sqlalchemy.engine import Connection, Engine

from kern_events.adapters.agno.db import KernDb, OnError, Place
from kern_events.adapters.agno.reopening import marked, stands_for
from kern_events.adapters.agno.tables import Held

_DRIVER = "postgresql+psycopg"


@stands_for(PostgresDb, "postgres")
class KernPostgresDb(KernDb, PostgresDb):
    """`PostgresDb` with every turn in an append-only log: `Agent(db=KernPostgresDb(db_url=...))`.

    Args:
        db_url: As for PostgresDb, `postgresql://...` or `postgresql+psycopg://...`.
        db_engine: Instead of a URL, an engine on psycopg 3.
        on_error: Called with NotStored whenever something could not be stored, before that is raised.
        shared: As for KernSqliteDb.
        options: As for PostgresDb; an existing database is taken over as it is.

    Another driver than psycopg 3 is refused at the first use of a session.
    """

    def __init__(
        self,
        db_url: str | None = None,
        db_engine: Engine | None = None,
        *args: Any,
        on_error: OnError | None = None,
        shared: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(with_psycopg(db_url), db_engine, *args, **options)
        if db_engine is None:
            find_dead_lines(self.db_engine)
        self._apart: Engine | None = None
        self._begin(on_error, shared)

    def _place(self) -> Place:
        engine = self.db_engine
        if engine.url.get_driver_name() != "psycopg":
            raise ValueError(f"{engine.url.drivername!r}: the log needs psycopg 3, as in {_DRIVER}://...")
        # The log's reads have connections of their own: a write holds one of Agno's while they run.
        self._apart = Engine(engine.pool.recreate(), engine.dialect, engine.url)
        return Place(self._apart, f"{self.db_schema}.{self.session_table_name}", self.db_schema)

    def close(self) -> None:
        """See KernDb.close."""
        super().close()
        if self._apart is not None:
            self._apart.dispose()

    def to_dict(self) -> dict[str, Any]:
        """See Agno."""
        plain: dict[str, Any] = super().to_dict()  # type: ignore[no-untyped-call]
        return {**plain, **marked(self)}

    def rename_session(self, session_id: str, *args: Any, **options: Any) -> Any:
        """See Agno."""
        plain = super().rename_session
        return self._kern.write([session_id], lambda *_: plain(session_id, *args, **options))

    # Agno asks for the following with getattr, so they are only there where Agno's own are.

    if hasattr(PostgresDb, "update_run_in_session"):

        def update_run_in_session(self, session_id: str, run_id: str, *args: Any, **options: Any) -> Any:
            """See Agno."""
            plain = super().update_run_in_session
            done = self._kern.write(
                [session_id], lambda *_: plain(session_id, run_id, *args, **options), {session_id: [run_id]}
            )
            self._note_update(session_id, options.get("session_data"))
            return done

    if hasattr(PostgresDb, "append_run_to_session_if_absent"):

        def append_run_to_session_if_absent(
            self, session_id: str, run_dict: dict[str, Any], *args: Any, **options: Any
        ) -> Any:
            """See Agno."""
            plain = super().append_run_to_session_if_absent
            runs = {session_id: [run_dict["run_id"]]} if "run_id" in run_dict else {}
            user_id = (*args, options.get("user_id"))[0]

            def work(connection: Connection, held: Mapping[str, Held]) -> Any:
                self._check_owner(session_id, held[session_id].session, user_id)
                return plain(session_id, run_dict, *args, **options)

            return self._stored(
                "append_run_to_session_if_absent", session_id, run_dict.get("run_id"),
                lambda: self._kern.write([session_id], work, runs, savepoint=True),
            )  # fmt: skip

    if hasattr(PostgresDb, "insert_session_if_absent"):

        def insert_session_if_absent(self, session: Any) -> Any:
            """See Agno."""
            plain = super().insert_session_if_absent
            return self._kern.write([session.session_id], lambda *_: plain(session), savepoint=True)


def find_dead_lines(engine: Engine) -> None:
    """Have the kernel look after the line of an engine that nobody has given us."""
    if engine.url.get_driver_name() == "psycopg":
        from kern_events.store import exchange  # The driver is there, then.

        exchange.find_dead_lines(engine)


def with_psycopg(url: str | None) -> str | None:
    """A URL that names no driver, with ours: SQLAlchemy would take psycopg 2."""
    if url is None or make_url(url).drivername not in ("postgresql", "postgres"):
        return url
    return make_url(url).set(drivername=_DRIVER).render_as_string(hide_password=False)
