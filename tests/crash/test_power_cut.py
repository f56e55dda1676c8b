"""Power cuts: what was acknowledged is on the disk, and the file is whole, wherever the power goes.

A workload is recorded once, under disk.c, and 500 cuts are made of it, 20,000 with `--long` from ten of
them. A log that does not wait for the disk, and a disk that does not wait either, have to be caught.
"""

from __future__ import annotations

import functools
from collections import Counter

import pytest

from tests import disks, powercuts
from tests.writers import pick


@pytest.fixture(scope="module")
def record(library, fast_path):
    """The record of a workload; one is made once."""

    @functools.cache
    def record(work, *how):
        folder, trace = (fast_path / " ".join((what, work, *how)) for what in ("folder", "trace"))
        folder.mkdir()
        disks.run(library, f"tests.powercuts:{work}", folder, trace, *how)
        return trace

    return record


@pytest.fixture
def image(fast_path):
    """Where files are as they are after a power cut."""
    folder = fast_path / "image"
    folder.mkdir(exist_ok=True)
    return folder


def assert_whole(account):
    assert {harm: account[harm] for harm in powercuts.HARMS} == dict.fromkeys(powercuts.HARMS, 0), account
    assert account["acknowledged"] > account["cuts"]  # That is: cuts came behind much that had been.
    assert min(account[left] for left in disks.LEFT) > 0


def test_a_power_cut_at_any_moment_loses_nothing(record, image):
    account = powercuts.cuts(record("work", "short", "FULL"), image, 500, pick("power"))

    assert_whole(account)


@pytest.mark.long
def test_twenty_thousand_power_cuts_lose_nothing(record, image):
    account = Counter()
    for number in range(10):
        account += powercuts.cuts(record("work", f"long {number}", "FULL"), image, 2_000, pick(number))

    assert account["cuts"] == 20_000
    assert_whole(account)


def test_a_log_that_does_not_wait_for_the_disk_is_caught(record, image):
    """Positive control: with synchronous = NORMAL a commit is not on the disk when it returns."""
    account = powercuts.cuts(record("work", "short", "NORMAL"), image, 50, pick("normal"))

    assert account["lost"] > 0
    assert account["unsound"] == account["unreadable"] == 0  # It loses the end, and no more.


def test_a_disk_that_does_not_wait_is_caught(record, image):
    """Positive control: where a sync does nothing, the file is destroyed, too."""
    account = powercuts.cuts(record("work", "short", "FULL"), image, 50, pick("lies"), lies=True)

    assert account["lost"] > 0
    assert account["unreadable"] + account["unsound"] > 0


def test_an_append_that_was_killed_and_repeated_is_there_after_a_power_cut(record, image):
    """What a killed process has written can be read, and need not be on the disk."""
    account = powercuts.cuts(record("repeat"), image, 20, pick("repeat"))
    lying = powercuts.cuts(record("repeat"), image, 20, pick("repeat"), lies=True)

    assert account["lost"] == account["unsound"] == account["unreadable"] == 0
    assert lying["lost"] + lying["unreadable"] > 0  # Positive control.


@pytest.mark.parametrize("lies", [False, True])
def test_an_exported_file_is_whole_or_what_was_there_before(record, lies):
    """With its control: on a disk that does not wait, a file has its name and not its content."""
    ops = list(disks.recorded(record("export")))
    whole = {b"".join(lines): number for number, lines in enumerate(powercuts.EXPORTS, 1)}
    harms = 0
    for image in disks.Replay(ops, pick("export"), lies=lies).cuts(10 * list(range(len(ops)))):
        content = image.files.get("out")
        harms += (0 if content is None else whole.get(content, -1)) < len(image.acknowledged)

    assert (harms > 0) == lies
