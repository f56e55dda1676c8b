"""The checker of histories itself: what is right passes, and each thing that can be wrong is told."""

from __future__ import annotations

from collections import Counter
from itertools import count

import pytest

from tests.histories import ALL, NEVER, Append, Entry, Look, Place, violations
from tests.writers import pick


def appended(began, ended, *texts, at=1, position=None, session="s", **fields):
    """An append of one session that was acknowledged, by default at positions that are its versions."""
    last = at + len(texts) - 1
    place = Place(at, last, position or last)
    return Append(
        began, ended, {session: texts}, **{"outcome": "recorded", "places": {session: place}, **fields}
    )


def written(*texts):
    """Sessions of which each text is an event, at positions that are its versions."""
    return {"s": [Entry(at, at, text) for at, text in enumerate(texts, 1)]}


def test_a_history_as_it_has_to_be_is_not_blamed():
    history = [
        appended(1, 2, "a"),
        Look(3, 4, "s", 1, ["a"]),
        appended(3, 9, "b", "c", at=2),
        Look(5, 6, "s", 3),
        Look(7, 8, ALL, 3, ["a", "b", "c"]),
        appended(10, NEVER, "d", outcome="open", places={}),
        appended(10, 11, "e", outcome="nothing", places={}),
        appended(12, 13, "a", again=True),
    ]

    assert violations(history, written("a", "b", "c")) == {}
    assert violations(history, written("a", "b", "c", "d")) == {}


def test_what_overlaps_may_have_either_order():
    history = [
        appended(1, 9, "a", at=2),
        appended(2, 8, "b", at=1),
        Look(3, 7, "s", 0, []),
        Look(3, 7, "s", 2),
    ]

    assert violations(history, written("b", "a")) == {}


@pytest.mark.parametrize(
    "entries",
    [
        [Entry(1, 1, "a"), Entry(3, 3, "b")],
        [Entry(1, 1, "a"), Entry(1, 2, "b")],
        [Entry(1, 2, "a"), Entry(2, 1, "b")],
    ],
    ids=["missing", "twice", "positions"],
)
def test_a_gap_is_told(entries):
    history = [appended(1, NEVER, text, outcome="open") for text in "ab"]

    assert violations(history, {"s": entries})["gap"] == 1


def test_a_position_of_two_sessions_is_told():
    history = [appended(1, 2, "a"), appended(1, 2, "b", session="t")]

    assert violations(history, {"s": [Entry(1, 1, "a")], "t": [Entry(1, 1, "b")]}) == {"gap": 1}


def test_an_acknowledged_append_that_is_missing_is_lost():
    assert violations([appended(1, 2, "a", "b")], written("a")) == {"lost": 1}
    assert violations([appended(1, 2, "a")], {}) == {"lost": 1}


def test_an_append_that_is_there_twice_is_doubled():
    assert violations([appended(1, 2, "a")], written("a", "a"))["doubled"] == 1


def test_events_of_nobody_are_told():
    assert violations([], written("a")) == {"unknown": 1}
    assert violations([Append(1, NEVER, {"t": ["a"]}, "open", {})], written("a")) == {"unknown": 1}


@pytest.mark.parametrize("entries", [written("a"), written("b", "a")])
def test_an_unresolved_append_is_there_as_a_whole_or_not_at_all(entries):
    call = Append(1, NEVER, {"s": ["a", "b"]}, "open", {})

    assert violations([call], entries)["part"] == 1
    assert violations([call], written("a", "b")) == violations([call], {}) == {}


def test_of_many_sessions_none_is_left_out():
    call = Append(1, NEVER, {"s": ["a"], "t": ["b"]}, "open", {})

    assert violations([call], written("a")) == {"part": 1}


def test_events_that_stand_apart_are_told():
    history = [Append(1, NEVER, {"s": ["a", "c"]}, "open", {}), appended(1, NEVER, "b", outcome="open")]

    assert violations(history, written("a", "b", "c")) == {"part": 1}


def test_what_is_not_where_its_receipt_says_is_told():
    history = [appended(1, NEVER, "a"), appended(1, NEVER, "b")]

    assert violations(history, written("a", "b")) == {"moved": 1}
    assert violations([appended(1, 2, "a", position=7)], written("a")) == {"moved": 1}


def test_nothing_means_nothing():
    assert violations([appended(1, 2, "a", outcome="nothing")], written("a")) == {"unsaid": 1}


@pytest.mark.parametrize("shown", [["a"], ["b", "a"], ["a", "c"], ["a", "b", "c"]])
@pytest.mark.parametrize("session", ["s", ALL])
def test_a_read_that_shows_anything_but_a_beginning_is_torn(session, shown):
    history = [appended(1, 9, "a"), appended(1, 9, "b", at=2), Look(1, 9, session, 2, shown)]

    assert violations(history, written("a", "b")) == {"torn": 1}


def test_an_append_below_one_that_had_ended_is_told():
    assert violations([appended(1, 2, "a", at=2), appended(3, 4, "b")], written("b", "a")) == {"order": 2}


def test_a_position_below_one_of_another_session_that_had_ended_is_told():
    final = {"s": [Entry(1, 2, "a")], "t": [Entry(1, 1, "b")]}
    history = [appended(1, 2, "a", position=2), appended(3, 4, "b", session="t")]

    assert violations(history, final) == {"order": 1}


@pytest.mark.parametrize("level", [0, 1])
def test_a_read_that_does_not_see_what_had_ended_is_told(level):
    history = [appended(1, 2, "a", "b"), Look(3, 4, "s", level, ["a", "b"][:level])]

    assert violations(history, written("a", "b")) == {"order": 1}


def test_a_read_that_sees_what_has_not_begun_is_told():
    assert violations([Look(1, 2, "s", 1), appended(3, 4, "a")], written("a")) == {"order": 1}


def test_a_read_that_is_behind_another_that_had_ended_is_told():
    history = [appended(1, 9, "a"), Look(2, 3, "s", 1), Look(4, 5, "s", 0)]

    assert violations(history, written("a")) == {"order": 1}


# ----------------------------------------------------------------------- histories at random


def played(chance):
    """Calls that take effect one by one, at a moment between their beginning and their end."""
    final: dict[str, list[Entry]] = {"s": [], "t": []}
    history, positions = [], count(1)
    for moment in range(0, 400, 10):
        began, ended = moment - chance.randrange(1, 60), moment + chance.randrange(1, 60)
        session = chance.choice("st")
        if chance.random() < 0.5:
            entries = final[session]
            history.append(Look(began, ended, session, len(entries), [entry.text for entry in entries]))
            continue
        texts = [f"{moment}.{part}" for part in range(chance.randint(1, 3))]
        outcome = chance.choice(["recorded", "recorded", "open", "nothing"])
        places = {}
        if outcome == "recorded" or (outcome == "open" and chance.random() < 0.5):
            first = len(final[session]) + 1
            final[session] += [Entry(at, next(positions), text) for at, text in enumerate(texts, first)]
            places[session] = Place(first, *final[session][-1][:2])
        history.append(
            Append(began, NEVER if outcome == "open" else ended, {session: texts}, outcome, places)
        )
    return history, final


def harmed(history, final, chance):
    """One thing made wrong: an event that is taken away, put in, or changed for its neighbour."""
    entries = final[chance.choice([session for session in final if len(final[session]) > 4])]
    at = chance.randrange(len(entries) - 1)
    match chance.randrange(4):
        case 0:
            del entries[at]
        case 1:
            entries.insert(at, entries[at])
        case 2:
            a, b = entries[at : at + 2]
            entries[at : at + 2] = [a._replace(text=b.text), b._replace(text=a.text)]
        case 3:
            looks = [place for place, call in enumerate(history) if isinstance(call, Look) and call.shown]
            place = chance.choice(looks)
            history[place] = history[place]._replace(shown=history[place].shown[:-1])


def test_random_histories_are_right_and_each_harm_is_found():
    missed: Counter[str] = Counter()
    for number in range(300):
        chance = pick(("history", number))
        history, final = played(chance)
        assert violations(history, final) == {}

        harmed(history, final, chance)
        missed["all"] += 1
        missed["missed"] += not violations(history, final)

    # What changed places may have been appended at the same time, and was then shown to nobody.
    assert missed["missed"] < 0.05 * missed["all"]
