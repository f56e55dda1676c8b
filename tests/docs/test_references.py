"""Every file, function and test that a document names exists, and links lead somewhere."""

from __future__ import annotations

import re

import pytest

from tests.docs.documents import DOCUMENTS, ROOT, text_of

_FILE = re.compile(
    r"`((?:kern_events|projections|tests|benchmarks|docs)/[\w/.-]+\.\w+)(?:::(\w+))?(?:\[[^]]*\])?`"
)
_LINK = re.compile(r"\]\(([^)#:]+)\)")


@pytest.mark.parametrize("document", [*DOCUMENTS, "CHANGELOG.md"])
def test_what_a_document_names_exists(document: str) -> None:
    for path, name in _FILE.findall(text_of(document)):
        assert (ROOT / path).is_file(), path
        defined = rf"^\s*(?:(?:async )?def|class) {name}\b"
        if name:
            assert re.search(defined, (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), (
                f"{path}::{name}"
            )


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    folder = (ROOT / document).parent
    for target in _LINK.findall(text_of(document)):
        assert (folder / target).exists(), target


def test_every_module_has_its_place_in_the_table() -> None:
    """A folder counts as named where one of its files is."""
    named = {path for path, _ in _FILE.findall(text_of("ARCHITECTURE.md"))}
    folders = {path.rpartition("/")[0] for path in named} - {
        "kern_events",
        "kern_events/store",
        "projections",
    }
    for file in [*ROOT.glob("kern_events/*.py"), *ROOT.glob("kern_events/store/*.py")]:
        path = file.relative_to(ROOT).as_posix()
        assert file.stem.startswith("__") or path in named or path.rpartition("/")[0] in folders, path


def test_the_architecture_stays_short() -> None:
    assert text_of("ARCHITECTURE.md").count("\n") < 300


def test_no_document_names_a_machine() -> None:
    for document in DOCUMENTS:
        assert not re.search(r"(?<!\w)/(?:home|root|tmp|work|Users)/", text_of(document)), document
