"""What must hold of appends and reads that go on at once, whatever fails meanwhile.

A history is every call with the moment at which it began and the one at which it ended, on a clock that
all processes share, and what it answered. It is held against what is recorded in the end. The one rule of
order: of two calls of which one ended before the other began, the second one sees the first.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

NEVER = sys.maxsize
ALL = ""  # in the place of a session: the whole log, whose order is that of the positions


class Place(NamedTuple):
    """Where an append says that it is: the first version and the last one, and the last position."""

    first: int
    version: int
    position: int


class Append(NamedTuple):
    """A call of append or append_many, with its repetitions if it had any.

    Attributes:
        began, ended: Nanoseconds; one that was killed or that is unresolved has never ended.
        texts: What it records in each session, in order; no other event says the same.
        outcome: `recorded`, `nothing` (it says that nothing was written), or `open`.
        places: Of a recorded one, by session.
        again: It repeats one that is recorded, under its key.
    """

    began: int
    ended: int
    texts: Mapping[str, Sequence[str]]
    outcome: str
    places: Mapping[str, Place]
    again: bool = False


class Look(NamedTuple):
    """A call that says where a session stands (or all of the log), and perhaps what is in it.

    Attributes:
        began, ended: Nanoseconds.
        session: The session, or ALL.
        level: The version that it saw, or the position; 0 if there was nothing.
        shown: What the events said, from the first one to that level; None if it did not ask.
    """

    began: int
    ended: int
    session: str
    level: int
    shown: Sequence[str] | None = None


class Entry(NamedTuple):
    """An event as it is recorded in the end."""

    version: int
    position: int
    text: str


Call = Append | Look
Final = Mapping[str, Sequence[Entry]]


def violations(history: Iterable[Call], final: Final) -> Counter[str]:
    """What is wrong, and how often; nothing of a history as it has to be.

    Returns:
        `gap`: Versions are not 1, 2, 3 ..., or positions fall, or are there twice.
        `doubled`, `lost`, `part`, `unknown`: An event is there twice; is missing although its append was
        acknowledged; is there without others of its append, or apart from them; was not appended there.
        `moved`: An acknowledged append is not where its receipt says.
        `unsaid`: An append said that nothing was written, and something was.
        `torn`: What a read showed is no beginning of what is recorded.
        `order`: A call did not see one that had ended before it began.
    """
    calls = list(history)
    appends = [call for call in calls if isinstance(call, Append)]
    entries = [entry for recorded in final.values() for entry in recorded]
    times = Counter(entry.text for entry in entries)
    lines = _lines(final)

    found: Counter[str] = Counter()
    found["gap"] = sum(map(_has_gap, final.values())) + _repeated(entry.position for entry in entries)
    found["doubled"] = sum(count > 1 for count in times.values())
    found["unknown"] = len(_said(final) - _meant(appends))
    found.update(kind for call in appends for kind in _misplaced(call, final))
    found["torn"] = sum(_is_torn(call, lines) for call in calls if isinstance(call, Look))
    found["order"] = sum(_unordered(calls, name, line) for name, line in lines.items())
    return +found


def _lines(final: Final) -> dict[str, dict[str, int]]:
    """The orders there are, of each session by version and of the log by position: what is said where."""
    lines = {session: {entry.text: entry.version for entry in entries} for session, entries in final.items()}
    everything = sorted(itertools.chain(*final.values()), key=lambda entry: entry.position)
    return {**lines, ALL: {entry.text: entry.position for entry in everything}}


def _said(final: Final) -> set[tuple[str, str]]:
    return {(session, entry.text) for session, entries in final.items() for entry in entries}


def _meant(appends: Iterable[Append]) -> set[tuple[str, str]]:
    return {(session, text) for call in appends for session in call.texts for text in call.texts[session]}


def _all_texts(call: Append) -> Iterable[str]:
    return itertools.chain(*call.texts.values())


def _has_gap(entries: Sequence[Entry]) -> bool:
    dense = [entry.version for entry in entries] == list(range(1, len(entries) + 1))
    return not dense or any(a.position >= b.position for a, b in itertools.pairwise(entries))


def _repeated(numbers: Iterable[int]) -> int:
    return sum(count > 1 for count in Counter(numbers).values())


def _misplaced(call: Append, final: Final) -> Iterator[str]:
    """What is wrong with where the events of an append are."""
    found = {
        session: [entry for entry in final.get(session, ()) if entry.text in texts]
        for session, texts in call.texts.items()
    }
    missing = set(_all_texts(call)) - {entry.text for entries in found.values() for entry in entries}
    if call.outcome == "nothing":
        yield from ["unsaid"] if any(found.values()) else []
    elif missing and call.outcome == "recorded":
        yield "lost"
    elif missing and any(found.values()):
        yield "part"
    elif not missing:
        yield from (kind for session in found if (kind := _apart(call, session, found[session])))


def _apart(call: Append, session: str, entries: Sequence[Entry]) -> str | None:
    """What is wrong with the events of an append in one session, where all of them are there."""
    first, last = entries[0], entries[-1]
    in_order = [entry.text for entry in entries] == list(call.texts[session])
    if not in_order or last.version - first.version != len(entries) - 1:
        return "part"
    there = Place(first.version, last.version, last.position)
    return "moved" if call.outcome == "recorded" and call.places[session] != there else None


def _is_torn(look: Look, lines: Mapping[str, Mapping[str, int]]) -> bool:
    if look.shown is None:
        return False
    line = lines.get(look.session, {})
    return list(look.shown) != [text for text, number in line.items() if number <= look.level]


class _Span(NamedTuple):
    """A call as a stretch of time, and what it has of a line: an append from where to where."""

    began: int
    ended: int
    first: int | None  # None of a look
    last: int


def _unordered(calls: Sequence[Call], name: str, line: Mapping[str, int]) -> int:
    """How many calls did not see one that had ended before they began.

    An append stands above all that is known by then, and a look shows all of it.
    """
    spans = [span for call in calls if (span := _span(call, name, line))]
    ended = sorted((span.ended, span.last) for span in spans)
    known = passed = bad = 0
    for span in sorted(spans, key=lambda span: span.began):
        while passed < len(ended) and ended[passed][0] < span.began:
            known = max(known, ended[passed][1])
            passed += 1
        bad += span.last < known if span.first is None else span.first <= known
    return bad


def _span(call: Call, name: str, line: Mapping[str, int]) -> _Span | None:
    if isinstance(call, Look):
        return _Span(call.began, call.ended, None, call.level) if call.session == name else None
    numbers = [line[text] for text in _all_texts(call) if text in line]
    if not numbers or call.again:
        return None
    return _Span(call.began, call.ended, min(numbers), max(numbers))
