"""A database that has not all that it was made with: told at open and by verify, and mended by migrate."""

from __future__ import annotations

import json
import sqlite3

import psycopg
import pytest
from click.testing import CliRunner

from kern_events import SessionLog
from kern_events.cli.app import cli
from kern_events.errors import SessionNotFound, StoreError
from kern_events.store import migrate, schema
from tests import databases, facade, schemas
from tests.writers import notes

ALL_TRIGGERS = {
    "sqlite": [
        "kern_events_append_only", "kern_events_no_delete", "kern_events_no_replace",
        "kern_sessions_identity", "kern_sessions_no_delete", "kern_sessions_no_replace",
    ],
    "postgres": [
        "kern_events_rows", "kern_events_truncate", "kern_events_update", "kern_events_erased",
        "kern_sessions_delete", "kern_sessions_identity", "kern_sessions_truncate",
    ],
}  # fmt: skip
LOOSE_INDEX = ("DROP INDEX kern_sessions_user", "CREATE INDEX kern_sessions_user ON kern_sessions (user_id)")
DO_NOTHING = "SET search_path = pg_catalog, pg_temp AS 'BEGIN RETURN NEW; END'"
HARMS = [
    ("sqlite", "trigger kern_events_no_replace", ["DROP TRIGGER kern_events_no_replace"]),
    ("sqlite", "trigger kern_sessions_no_delete", [
        "DROP TRIGGER kern_sessions_no_delete",
        "CREATE TRIGGER kern_sessions_no_delete BEFORE DELETE ON kern_sessions BEGIN SELECT 1; END",
    ]),
    ("sqlite", "index kern_events_key", ["DROP INDEX kern_events_key"]),
    ("sqlite", "index kern_sessions_user", LOOSE_INDEX),
    ("sqlite", "table kern_parked", ["DROP TABLE kern_parked"]),
    ("postgres", "trigger kern_events_rows", ["DROP TRIGGER kern_events_rows ON kern_events"]),
    ("postgres", "trigger kern_events_rows", ["ALTER TABLE kern_events ENABLE TRIGGER kern_events_rows"]),
    ("postgres", "trigger kern_events_update", ["DROP TRIGGER kern_events_update ON kern_events"]),
    ("postgres", "trigger kern_events_erased", ["DROP TRIGGER kern_events_erased ON kern_events"]),
    ("postgres", "trigger kern_sessions_delete",
        ["ALTER TABLE kern_sessions DISABLE TRIGGER kern_sessions_delete"]),
    ("postgres", "function kern_append_only",
        [f"CREATE OR REPLACE FUNCTION kern_append_only() RETURNS trigger LANGUAGE plpgsql {DO_NOTHING}"]),
    ("postgres", "function kern_heads_stay", ["ALTER FUNCTION kern_heads_stay() SET search_path = public"]),
    ("postgres", "index kern_events_key", ["DROP INDEX kern_events_key"]),
    ("postgres", "index kern_sessions_user", LOOSE_INDEX),
    ("postgres", "table kern_parked", ["DROP TABLE kern_parked"]),
    ("postgres", "column kern_sessions.fork_owner", ["ALTER TABLE kern_sessions DROP COLUMN fork_owner"]),
    ("postgres", "constraint kern_events_hash_check",
        ["ALTER TABLE kern_events DROP CONSTRAINT kern_events_hash_check"]),
    ("postgres", "constraint kern_consumers_pkey",
        ["ALTER TABLE kern_consumers DROP CONSTRAINT kern_consumers_pkey"]),
]  # fmt: skip


def told(log, session_id=None):
    return [(one.session_id, one.problem, one.field) for one in log.verify(session_id).findings]


@pytest.mark.parametrize(("dialect", "what", "statements"), HARMS, indirect=["dialect"])
def test_what_is_missing_or_another_one_is_found_and_mended(log, raw, what, statements):
    log.append("s", notes(2))
    for statement in statements:
        raw.run(statement)

    assert told(log, "s") == told(log) == [("", "schema", what)]
    log.migrate()
    assert log.verify().ok


def test_a_log_without_its_events_is_told_and_not_read(log, url, raw):
    log.append("s", notes(2))
    raw.run("DROP TABLE kern_events" + (" CASCADE" if raw.dialect == "postgres" else ""))

    with SessionLog(url) as late:
        report = late.verify()
        assert ("table kern_events", "missing") in [(one.field, one.found) for one in report.findings]
        assert "no session was read" in report.notes[0]
        late.migrate()
        assert {problem for _, problem, _ in told(late)} == {"head"}


def test_an_async_log_finds_and_mends_it_too(log, url, raw):
    log.append("s", notes(1))
    raw.run("DROP INDEX kern_events_key")

    with facade.opened("async", url) as late:
        assert told(late) == [("", "schema", "index kern_events_key")]
        late.migrate()
        assert late.verify().ok


def test_what_postgres_has_is_what_the_file_says(harmed_postgres_url):
    """If not: `python -m tests.schemas`."""
    with databases.schema(harmed_postgres_url) as url, SessionLog(url) as log:
        log.migrate()
        with databases.connect(url) as connection:
            found = schemas.objects(connection)

    assert schema.is_described(migrate.latest("postgres"))
    assert schema.for_postgres().keys() == found.keys()
    assert schema.differing(schema.for_postgres(), found) == []


@pytest.mark.parametrize("dialect", ["postgres"], indirect=True)
def test_a_restore_without_triggers_leaves_them_off_for_replicas(log, raw):
    """As `pg_restore --disable-triggers` does, which switches them on again as ordinary ones."""
    raw.disarm()
    raw.run("ALTER TABLE kern_events ENABLE TRIGGER ALL")
    [rows] = [one for one in log.verify().findings if one.field == "trigger kern_events_rows"]

    assert rows.expected == "ALTER TABLE kern_events ENABLE ALWAYS TRIGGER kern_events_rows"
    assert rows.found == "ALTER TABLE kern_events ENABLE TRIGGER kern_events_rows"


@pytest.mark.parametrize("dialect", ["postgres"], indirect=True)
def test_a_dump_of_the_tables_alone_is_mended(log, raw):
    log.append("s", notes(2))
    for name in ("kern_append_only", "kern_heads_stay", "kern_only_under_tombstones"):
        raw.run(f"DROP FUNCTION {name} CASCADE")
    assert {field.split()[0] for _, _, field in told(log)} == {"function", "trigger"}

    log.migrate()
    assert log.verify().ok
    with pytest.raises(psycopg.errors.RestrictViolation):
        raw.run("TRUNCATE kern_events")


def drop_triggers(raw):
    for name in ALL_TRIGGERS[raw.dialect]:
        table = f" ON {'_'.join(name.split('_')[:2])}" if raw.dialect == "postgres" else ""
        raw.run(f"DROP TRIGGER {name}{table}")


def switch_off(raw):
    raw.disarm()


@pytest.mark.parametrize("harm", [drop_triggers, switch_off])
def test_an_open_says_that_nothing_is_append_only(log, url, raw, harm, caplog):
    harm(raw)
    with SessionLog(url) as late:
        late.append("s", notes(1))

    [warning] = [line for line in caplog.messages if "append-only" in line]
    assert all(name in warning for name in ALL_TRIGGERS[raw.dialect])


def test_an_open_of_what_is_whole_says_nothing(log, url, caplog):
    with SessionLog(url) as late:
        late.append("s", notes(1))

    assert "append-only" not in caplog.text


def test_after_a_mend_the_log_is_append_only_and_readable_again(log, url, raw):
    drop_triggers(raw)
    raw.run("DROP VIEW kern_events_readable")
    log.append("s", notes(1))
    log.migrate()

    assert raw.run("SELECT count(*) FROM kern_events_readable") == [(1,)]
    with pytest.raises((sqlite3.IntegrityError, psycopg.errors.RestrictViolation)):
        raw.run("DELETE FROM kern_events")


def test_a_session_that_was_never_recorded_is_not_found_beside_findings(log, raw):
    drop_triggers(raw)
    with pytest.raises(SessionNotFound):
        log.verify("never")


def test_the_check_of_a_report_names_the_remedy(log, raw):
    log.append("s", notes(1))
    drop_triggers(raw)
    with pytest.raises(StoreError, match=r"trigger kern_\w+: missing; run `kern-events migrate"):
        log.verify().check()


def test_what_cannot_be_mended_is_told(log, raw):
    """Two rows of one key: whoever put them there has to say which is right."""
    log.append("s", notes(2))
    drop_triggers(raw)
    raw.run("DROP INDEX kern_events_key")
    raw.run("UPDATE kern_events SET idempotency_key = 'k'")

    with pytest.raises(StoreError, match="index kern_events_key cannot be mended: "):
        log.migrate()
    assert ("", "schema", "index kern_events_key") in told(log)


@pytest.mark.parametrize(("command", "code"), [("verify", 1), ("status", 0)])
def test_the_command_line_says_it_until_migrate_has_mended_it(log, url, raw, command, code):
    log.append("s", notes(1))
    drop_triggers(raw)
    name = ALL_TRIGGERS[raw.dialect][0]

    before = CliRunner().invoke(cli, [command, "--db", url])
    mended = CliRunner().invoke(cli, ["migrate", "--db", url])
    after = CliRunner().invoke(cli, [command, "--json", "--db", url])

    assert (before.exit_code, after.exit_code) == (code, 0)
    assert f"schema: trigger {name}: " in before.stdout
    assert f"mended: trigger {name}" in mended.stdout
    assert "trigger" not in json.dumps(json.loads(after.stdout))
