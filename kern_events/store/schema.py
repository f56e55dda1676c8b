"""What the database should have and what it has: tables, columns, constraints, indexes, triggers, functions.

An object is known by its kind and name, and is the statement that makes it. SQLite keeps what was
written, so the migrations are applied in memory and compared. Postgres tells it in words of its
own: those of a fresh database stand in `postgres_schema.sql`, which a test holds against one. What
is there beyond ours is nobody's business here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from itertools import zip_longest
from typing import Final

from kern_events.store.base import Difference, logger

Key = tuple[str, str]
Objects = Mapping[Key, str]

KINDS: Final = ("table", "column", "constraint", "index", "function", "trigger", "view")
"""In the order in which they are made."""

_HEADING: Final = re.compile(r"^-- ([a-z]+) (\S+)\n", re.MULTILINE)
_NOISE: Final = re.compile(r"[\s()\"]+|::text")  # what the releases of a database print in other ways
_WORD: Final = re.compile(r"\w+")
_SHOWN: Final = 200  # characters of a definition


def objects_of(rows: Iterable[tuple[str, str, str]]) -> Objects:
    """Objects from rows of kind, name and statement."""
    return {(kind, name): text for kind, name, text in rows}


def differing(expected: Objects, found: Objects) -> list[Key]:
    """What is not there, or is otherwise, in the order in which it can be made.

    With a function the triggers that call it: they may call one that was left behind elsewhere.
    """
    keys = [key for key in expected if key not in found or not _is_same(key[0], expected[key], found[key])]
    if any(kind == "function" for kind, _ in keys):
        keys += [key for key in expected if key[0] == "trigger" and key not in keys]
    return sorted(keys, key=lambda key: KINDS.index(key[0]))


def differences(expected: Objects, found: Objects) -> list[Difference]:
    """The same, as it is told: nothing more of a missing table, nothing of a view, which guards nothing."""
    missing = {name for kind, name in expected if kind == "table" and (kind, name) not in found}
    return [
        Difference(" ".join(key), *_told(key[0], expected[key], found.get(key)))
        for key in differing(expected, found)
        if key[0] != "view"
        and not (key in found and _is_same(key[0], expected[key], found[key]))
        and (key[1] in missing or missing.isdisjoint(_WORD.findall(expected[key])))
    ]


def _is_same(kind: str, one: str, other: str) -> bool:
    return kind == "view" or _plain(one) == _plain(other)


def _plain(definition: str) -> str:
    return _NOISE.sub("", definition)


def _told(kind: str, expected: str, found: str | None) -> tuple[str, str]:
    if kind == "function" or found is None:
        return "as it was made", "missing" if found is None else "another one"
    pairs = zip_longest(expected.split("; "), found.split("; "), fillvalue="nothing")
    parts = [pair for pair in pairs if _plain(pair[0]) != _plain(pair[1])]
    return _short("; ".join(part for part, _ in parts)), _short("; ".join(part for _, part in parts))


def _short(definition: str) -> str:
    line = " ".join(definition.split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"


def warn_of_missing(triggers: Sequence[str]) -> None:
    """Say it where nothing refuses to change what was recorded: triggers are not there, or switched off."""
    if triggers:
        logger.warning(
            "the database does not keep the log append-only: %s missing, or off for some or all sessions; "
            "run `kern-events verify`, and `kern-events migrate` to mend it",
            ", ".join(triggers),
        )


def for_postgres() -> Objects:
    """What there should be in a database of this release."""
    return _described()[1]


def is_described(applied: int) -> bool:
    """Whether it is known what a Postgres database of this schema number has."""
    return applied == _described()[0]


@functools.cache
def _described() -> tuple[int, Objects]:
    text = (resources.files("kern_events.store") / "postgres_schema.sql").read_text(encoding="utf-8")
    return int(text.split(None, 3)[2]), dict(_sections(text))


def _sections(text: str) -> Iterator[tuple[Key, str]]:
    headings = list(_HEADING.finditer(text))
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    for heading, end in zip(headings, ends, strict=True):
        yield (heading[1], heading[2]), text[heading.end() : end].strip()


def described(number: int, objects: Objects) -> str:
    """The text of `postgres_schema.sql` for what a fresh database has."""
    ordered = sorted(objects, key=lambda key: (KINDS.index(key[0]), key[1]))
    parts = [f"-- {kind} {name}\n{objects[kind, name].strip()}\n" for kind, name in ordered]
    title = f"-- Schema {number} in the words of Postgres: what verify compares with, and migrate mends.\n"
    return "\n".join([title, *parts])
