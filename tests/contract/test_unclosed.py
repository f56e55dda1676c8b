"""Logs that nobody closes."""

from __future__ import annotations

import asyncio
import gc
import os

import pytest

from kern_events import AsyncSessionLog, SessionLog
from tests.facade import only_on
from tests.writers import eventually, note


def descriptors():
    return len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0


async def use(log):
    await log.append("s", [note()])
    await anext(log.read("s"))


@only_on("sqlite", "postgres")
@pytest.mark.parametrize("kind", [SessionLog, AsyncSessionLog])
def test_a_log_that_goes_out_of_scope_keeps_nothing_open_and_says_so(address, kind):
    """Also where the loop of an async one is gone."""
    log = kind(address.url, namespace=address.namespace)
    before = descriptors()
    if kind is SessionLog:
        log.append("s", [note()])
        assert next(log.read("s"))
    else:
        asyncio.run(use(log))
    assert descriptors() > before
    with pytest.warns(ResourceWarning, match="unclosed <SessionLog") as said:
        del log
        gc.collect()
        # A thread that worked for it may hold it for a moment longer.
        eventually(lambda: len(said))

    assert descriptors() == before


def test_a_log_that_was_not_used_or_was_closed_says_nothing(open_log, address):
    log = SessionLog(address.url, namespace=address.namespace)
    del log
    log = SessionLog(address.url, namespace=address.namespace)
    log.append("s", [note()])
    log.close()
    del log
