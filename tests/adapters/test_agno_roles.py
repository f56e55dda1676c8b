"""Deployments where Agno's own classes work: a role that may make nothing, and an engine in AUTOCOMMIT."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine, make_url

from kern_events.adapters.agno import KernAsyncPostgresDb, KernPostgresDb, KernSqliteDb, NotStored
from kern_events.cli.app import cli
from kern_events.errors import StoreError
from tests import databases
from tests.adapters.conftest import Place
from tests.adapters.test_agno_edges import begun, run_ids, run_of, session_of
from tests.adapters.test_agno_reading import before_agno_3, everything
from tests.agno_replay import check_replay

DOCS = Path(__file__).parents[2] / "docs" / "agno.md"


def url_of(place):
    return place.options.get("db_url") or f"sqlite:///{place.options['db_file']}"


def migrate(place, *options, url=None):
    schema = [f"--schema={place.options['db_schema']}"] if "db_schema" in place.options else []
    return CliRunner().invoke(cli, ["migrate", "--agno", f"--db={url or url_of(place)}", *schema, *options])


@pytest.fixture
def guest(agno_postgres_url):
    """A place on Postgres, its URL for a role that may make nothing, and what grants it what the page has."""
    place = Place("postgres", {"db_url": agno_postgres_url, "db_schema": f"s{uuid.uuid4().hex[:12]}"}, [])
    role = f"r{uuid.uuid4().hex[:12]}"
    grants = re.search(r"```\w*\n(GRANT .*?)```", DOCS.read_text(), re.DOTALL)[1]

    def run(*statements):
        with databases.connect(agno_postgres_url) as owner:
            for statement in statements:
                owner.execute(statement)

    def grant():
        granted = re.sub(r"\bai\b", place.options["db_schema"], grants).replace("TO app", f"TO {role}")
        run(*granted.split(";\n")[:-1])

    run(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    url = make_url(agno_postgres_url).set(username=role, password="x").render_as_string(hide_password=False)
    yield place, url, grant
    for db in place.opened:
        db.close()
    run(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_a_role_that_may_make_nothing_runs_with_the_grants_of_the_page(guest):
    place, url, grant = guest
    assert json.loads(migrate(place, "--json").stdout)["agno"]["made"]
    grant()
    options = {"db_schema": place.options["db_schema"], "create_schema": False}
    db = KernPostgresDb(url, **options)
    awaited = KernAsyncPostgresDb(db_url=url.replace("postgresql:", "postgresql+psycopg_async:"), **options)
    begun(db, "r1", "r2")

    async def more():
        await awaited.upsert_run(run_of("r3"), "s", "ada")
        await awaited.sessions.restore("s", to_turn=1)
        await awaited.sessions.fork("s", "t")
        await awaited.close()

    asyncio.run(more())
    place.plain().upsert_run(run_of("r4"), "s", "ada", 5)
    assert run_ids(db) == ["r1", "r4"]
    db.delete_run("r1")
    check_replay(db, "s")
    assert db.delete_session("t") and db.adopt() == 1 and db.sessions.verify().ok
    db.close()


def test_a_role_that_may_make_nothing_is_told_what_to_run(guest):
    place, url, _ = guest
    begun(place.plain(), "r1")
    schema = place.options["db_schema"]
    with databases.connect(place.options["db_url"]) as owner:
        role = make_url(url).username
        owner.execute(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
        owner.execute(f"GRANT ALL ON {schema}.agno_sessions, {schema}.agno_runs TO {role}")
    db = KernPostgresDb(url, db_schema=schema, create_schema=False)

    assert run_ids(db) == ["r1"]
    with pytest.raises(NotStored, match="run `kern-events migrate --agno --db URL` with one that may"):
        db.upsert_session(session_of())
    with pytest.raises(StoreError, match="kern-events migrate --agno"):
        db.sessions.load("s")
    refused = migrate(place, url=url)
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert "this role may not make them" in refused.stderr
    db.close()


def test_migrate_sets_up_an_agno_database_before_its_first_run(place):
    table = "one" if place.backend == "sqlite" else f"{place.options['db_schema']}.one"
    options = (f"--namespace={table}", "--runs-table=one_runs")
    first, again = migrate(place, *options), json.loads(migrate(place, *options, "--json").stdout)
    made = everything(place)

    assert first.stdout.startswith("schema 0 -> ") and "set up" in first.stdout, first.output
    assert again["mended"] == [] and again["before"] == again["after"]
    assert again["agno"] == {
        "sessions": table, "runs": table + "_runs", "namespace": table, "made": False
    }  # fmt: skip
    begun(place.open(session_table="one", runs_table="one_runs"), "r1")
    assert everything(place) == made
    assert "nothing to do" in migrate(place, *options).stdout


def test_a_db_sets_itself_up_ahead(side):
    db = side.open()
    before, after = side.do(db.set_up)
    made = everything(side.place)
    begun(side.place.open(), "r1")

    assert before == 0 < after and side.do(db.set_up) == (after, after)
    assert everything(side.place) == made


def test_migrate_says_what_is_wrong_in_one_line(place):
    if place.backend == "postgres":
        before_agno_3(place)
        assert "migrate it first" in migrate(place).stderr
    for options in (["--agno", "--db=memory:"], ["--runs-table=x", f"--db={url_of(place)}"]):
        assert CliRunner().invoke(cli, ["migrate", *options]).exit_code == 2
    refused = CliRunner().invoke(cli, ["migrate", "--agno", "--db=postgresql://nobody@127.0.0.1:1/x"])
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)


def test_an_engine_in_autocommit_is_taken_as_any_other(place):
    url = url_of(place).replace("postgresql:", "postgresql+psycopg:")
    kind = {"sqlite": KernSqliteDb, "postgres": KernPostgresDb}[place.backend]
    options = {key: value for key, value in place.options.items() if key == "db_schema"}
    db = kind(db_engine=create_engine(url, isolation_level="AUTOCOMMIT"), **options)
    begun(db, "r1", "r2")
    bad = session_of("two")
    bad.session_data["x"] = object()
    with pytest.raises(NotStored):
        db.upsert_sessions([session_of("one"), bad])

    assert db.get_session("one") is None
    db.sessions.restore("s", to_turn=1)
    assert run_ids(db) == ["r1"]
    check_replay(db, "s")
    assert db.delete_session("s") and db.sessions.verify().ok
    db.close()
