"""The projectors in the documents pass a strict type checker."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.documents import DOCUMENTS, ROOT, blocks


@pytest.mark.early
def test_every_projector_that_is_shown_passes_mypy(tmp_path: Path) -> None:
    """In one run, with what the check of the library itself has cached."""
    shown = [block for document in DOCUMENTS for block in blocks(document) if "def evolve(" in block.text]
    for number, block in enumerate(shown):
        (tmp_path / f"example_{number}.py").write_text(block.text, encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", ROOT / ".mypy_cache", *tmp_path.glob("*.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert len(shown) >= 2
    assert done.returncode == 0, done.stdout + done.stderr
