"""A disk that is full or fails, at every call of an append: a typed error, and the log goes on.

A process under disk.c appends while one call after the other fails, with every error that a full disk, a
quota, a limit and a broken disk give, for good or once. No right to mount anything is needed.
"""

from __future__ import annotations

import json

import pytest

from tests import disks, fulldisks


@pytest.fixture(
    scope="module", params=[17, pytest.param(1, marks=pytest.mark.long)], ids=["some", "every call"]
)
def accounts(request, library, fast_path):
    folder = fast_path / f"{request.param}"
    folder.mkdir()
    return json.loads(disks.run(library, "tests.fulldisks:accounts", folder, request.param))


def test_a_disk_that_fails_at_any_call_of_an_append_is_told_and_waited_for(accounts):
    found = accounts["append"]

    assert_told(found)
    assert found["EIO for good: StoreUnavailable"] > 5
    assert found["EIO for good: AppendUnresolved"] > 0  # A sync that failed leaves it open.


def test_a_disk_that_fails_while_a_file_is_made_is_told_and_waited_for(accounts):
    assert_told(accounts["opening"])


def test_a_log_that_acknowledges_in_spite_of_it_is_caught(accounts):
    """Positive control: it takes what a COMMIT raises for success."""
    assert accounts["deaf"]["lost"] > 0


def assert_told(account):
    assert {harm: account[harm] for harm in fulldisks.HARMS} == dict.fromkeys(fulldisks.HARMS, 0), account
    said = {how.partition(": ")[2] for how in account if ": " in how}
    assert said <= {"recorded", "StoreFull", "StoreUnavailable", "AppendUnresolved"}
    for error in ("ENOSPC", "EDQUOT", "EFBIG"):
        assert account[f"{error} for good: StoreFull"] > 5
        assert f"{error} for good: StoreUnavailable" not in account
