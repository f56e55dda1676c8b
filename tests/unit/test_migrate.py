"""The migrations: their texts are pinned, and a script is split where its statements end."""

from __future__ import annotations

import hashlib
import sqlite3
from importlib import resources

import pytest

from kern_events.errors import SchemaOutdated, StoreError
from kern_events.store import migrate

# A released migration is never edited: databases remember what they were made with. A number changes
# here only together with a file that was never released.
PINNED = {
    "0001_log.postgres.sql": "388a15e33950b9ffafe62c0ef378155d9162662cef4ba5cca81614cb7ea40d1b",
    "0001_log.sqlite.sql": "c3bcf5e7e8ca531663f4d16a3f3b9bec4fbf06fe1edc7c5c7b4db189bc6809b8",
    "0002_forks.postgres.sql": "9e965d3a7c381d2e5feb19814768e4de601f2cda20a1e56feb1de5a711575808",
    "0002_forks.sqlite.sql": "0b8ab3b89b2c811b0dcc4ce071f29c2de7f916769bb432b52c816ee4e5db8209",
    "0003_parked.postgres.sql": "cc8b70eef8b0e45a31ba65e1a3a638f7a47a9f8df017bd0bac9ad6f9d2f6c294",
    "0003_parked.sqlite.sql": "bceda7b0b3aa759495fe023e0f3793039bc560989008bd811fcdef74ba5fc3f4",
    "0004_fork_owners.postgres.sql": "13f9faa90500282fe6d015937c42a0b182e2283474d80a4d7de50a5aa586c285",
    "0004_fork_owners.sqlite.sql": "21df1472a6d13bf804e6306b67bf57172cfef05a1e72650e51bc3b3de7aa75e5",
    "0005_handed_down.postgres.sql": "5ab513bb97e25d1c90db55bf39e92f58e755985abc0a7a3ce823a74f61d58da1",
    "0005_handed_down.sqlite.sql": "a20efcdaecb044ef986e7ab05c0d7401e0b8efd17ef6a4299ab3ed0c8b598a3d",
    "0006_moved_schemas.postgres.sql": "a298e4a1a36f53477f6b095f594a19361a93205e7070af7457de7a952ae4375b",
    "0006_moved_schemas.sqlite.sql": "c3de85fff1c63a953a3a00e74268413b66243b3f31e8a2e6c01f7d702811d9da",
    "0007_erasing.postgres.sql": "5a97f93ff238e5f00c2bb775b2be30169b660b3e1bc9640078d1f52fc6c25517",
    "0007_erasing.sqlite.sql": "af480ac30b9dd9aeb5b25209d52b9bef919740a2cf96f702b192b6b8fc1796a2",
}
DIALECTS = ("sqlite", "postgres")


def test_no_released_migration_was_edited():
    files = {file.name: file for file in (resources.files("kern_events.store") / "migrations").iterdir()}
    found = {
        name: hashlib.sha256(file.read_bytes()).hexdigest()
        for name, file in files.items()
        if name.endswith(".sql")
    }

    assert found == PINNED


def test_every_migration_is_there_for_both_databases():
    steps = {dialect: [(one.number, one.name) for one in migrate.migrations(dialect)] for dialect in DIALECTS}

    assert steps["sqlite"] == steps["postgres"]
    assert [number for number, _ in steps["sqlite"]] == list(range(1, len(steps["sqlite"]) + 1))
    assert set(migrate.MIN_WRITER) == {number for number, _ in steps["sqlite"]}


def test_a_script_is_split_into_whole_statements():
    for step in migrate.migrations("sqlite"):
        statements = list(migrate.statements(step.text))

        assert "".join(statements).strip() == step.text.strip()
        assert all(sqlite3.complete_statement(one) for one in statements)


def test_the_body_of_a_trigger_is_part_of_its_statement():
    statements = list(migrate.statements(migrate.migrations("sqlite")[0].text))

    triggers = [one for one in statements if "CREATE TRIGGER" in one]
    assert len(triggers) == 6
    assert all(one.strip().endswith("END;") for one in triggers)


@pytest.mark.parametrize("tables", [["kern_events"], ["kern_sessions", "kern_events"], ["kern_consumers"]])
def test_tables_without_a_record_of_ours_are_foreign(tables):
    with pytest.raises(StoreError, match="did not make"):
        migrate.check_foreign(tables)


@pytest.mark.parametrize("tables", [[], ["theirs"], ["kern_migrations"], ["kern_migrations", "kern_events"]])
def test_our_own_tables_and_other_names_are_not(tables):
    migrate.check_foreign(tables)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_numbers_are_compared_both_ways(dialect):
    newest = migrate.latest(dialect)
    migrate.check_number(dialect, newest, 1)
    migrate.check_number(dialect, newest + 1, newest)

    for applied, min_writer in ((newest - 1, 0), (newest + 1, newest + 1)):
        with pytest.raises(SchemaOutdated) as caught:
            migrate.check_number(dialect, applied, min_writer)
        assert (caught.value.found, caught.value.needed) == (applied, newest)
