"""Every example in the documents runs, and prints what the document says."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.docs import documents
from tests.docs.documents import DOCUMENTS, ROOT


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "shop", raising=False)  # Of another document's folder.
    for name in ("KERN_EVENTS_DB", "KERN_EVENTS_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_examples_of_a_document_run_one_after_the_other(
    document: str, folder: Path, redis_url: str
) -> None:
    environment: dict[str, str] = {}

    for block in documents.blocks(document):
        if not block.postgres:
            documents.run(block, folder, environment, redis_url=redis_url)


POSTGRES = [block for document in DOCUMENTS for block in documents.blocks(document) if block.postgres]


@pytest.mark.parametrize("block", POSTGRES, ids=lambda block: f"{block.document}:{block.line}")
def test_an_example_runs_on_postgres(block: documents.Block, folder: Path, postgres_url: str) -> None:
    documents.run(block, folder, {}, postgres_url=postgres_url)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_block_says_what_it_is(document: str) -> None:
    fences = re.findall(r"^```(.*)$", documents.text_of(document), re.MULTILINE)

    assert set(fences[::2]) <= {"python", "console", "sh", "json", "text"}
    assert set(fences[1::2]) <= {""}
    assert len(fences) == 2 * len(list(documents.blocks(document)))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_that_is_named_exists(document: str) -> None:
    text = documents.text_of(document)
    for name in re.findall(r"(?:^\$ |`|\()kern-events ([a-z]+)", text, re.MULTILINE):
        assert name in documents.known_commands()
    for name in re.findall(r"python3 dev\.py ([a-z]+)", text):
        assert f"python3 dev.py {name}" in (ROOT / "dev.py").read_text(encoding="utf-8")


def test_a_wrong_output_is_noticed() -> None:
    block = documents.Block("README.md", 1, "python", "print(1 + 1)  # 3\n", None, None)

    with pytest.raises(AssertionError):
        documents.run_python(block)
