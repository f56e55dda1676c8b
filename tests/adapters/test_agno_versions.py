"""The versions of Agno that are supported: the oldest one works like the newest, others are refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import servers

OLDEST = Path(sys.prefix) / "agno-oldest"
TESTS = ["scenarios", "time_travel"]


def python(*arguments, path="", **environment):
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.early
def test_the_oldest_version_works_like_the_newest(postgres_server):
    """In a process of its own, with `dev.py`'s other Agno in front of the one in .venv."""
    assert OLDEST.is_dir(), "python3 dev.py test installs it"
    found = python("-c", "import importlib.metadata as m; print(m.version('agno'))", path=str(OLDEST))
    assert found.stdout == "3.0.0\n"
    files = [f"tests/adapters/test_agno_{name}.py" for name in TESTS]
    options = ("-q", "-p", "no:cacheprovider", "-n", "0")
    server = {servers.PG_DSN: postgres_server}
    done = python("-m", "pytest", *options, *files, path=str(OLDEST), **server)

    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


@pytest.mark.parametrize("version", ["2.9.0", "4.0.0", "4.1"])
def test_another_version_is_refused_at_import(version):
    code = f"import importlib.metadata as m; m.version = lambda name: {version!r}\n"
    code += "import kern_events.adapters.agno"
    refused = python("-c", code)

    assert refused.returncode == 1
    assert f"ImportError: Agno {version} is installed; this is for Agno 3.0 and later 3.x" in refused.stderr


def test_without_agno_the_extra_is_named():
    code = (
        "import importlib.metadata as m\n"
        "def missing(name): raise m.PackageNotFoundError(name)\n"
        "m.version = missing\n"
        "import kern_events.adapters.agno"
    )
    refused = python("-c", code)

    assert "pip install 'kern-events[agno]'" in refused.stderr
