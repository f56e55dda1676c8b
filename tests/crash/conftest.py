"""A folder for many small files, and the library that stands between a process and its disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import disks

_MEMORY = "/dev/shm"


@pytest.fixture(scope="module")
def fast_path() -> Iterator[Path]:
    """A folder in memory, where there is one: what is kept and lost is made from a record in any case."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See disk.c."""
    return disks.compiled(tmp_path_factory.mktemp("library"))
