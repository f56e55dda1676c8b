"""Reading one session: ranges, pages, and what is not there."""

from __future__ import annotations

import pytest

from kern_events.errors import SessionNotFound
from tests.writers import note, notes, texts


def versions(events):
    return [event.version for event in events]


def test_a_session_is_read_in_order(log):
    for number in range(5):
        log.append("s", [note(number)])

    assert texts(log.read("s")) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"after": 0}, [1, 2, 3, 4, 5]),
        ({"after": 3}, [4, 5]),
        ({"after": 5}, []),
        ({"after": 99}, []),
        ({"until": 2}, [1, 2]),
        ({"until": 0}, []),
        ({"until": 99}, [1, 2, 3, 4, 5]),
        ({"limit": 2}, [1, 2]),
        ({"limit": 0}, []),
        ({"after": 1, "until": 4, "limit": 2}, [2, 3]),
        ({"after": 1, "until": 3, "limit": 9}, [2, 3]),
        ({"after": 4, "until": 2}, []),
    ],
)
def test_a_part_of_a_session(log, part, expected):
    log.append("s", notes(5))

    assert versions(log.read("s", **part)) == expected


@pytest.mark.parametrize("limit", [None, 999, 1_000, 1_001, 2_001, 2_500, 9_999])
def test_a_long_session_is_read_in_pages(log, limit):
    for start in (0, 1_000, 2_000):
        log.append("s", [note(start + i) for i in range(min(1_000, 2_500 - start))])

    assert texts(log.read("s", limit=limit)) == list(range(min(limit or 2_500, 2_500)))
    assert versions(log.read("s", after=1_499, until=2_400))[::900] == [1_500, 2_400]


@pytest.mark.parametrize("limit", [-1, -5])
def test_a_negative_limit_is_refused(log, limit):
    log.append("s", notes(3))

    with pytest.raises(ValueError):
        list(log.read("s", limit=limit))
    with pytest.raises(ValueError):
        list(log.read_all(limit=limit))
    with pytest.raises(ValueError):
        log.sessions(limit=limit)


def test_an_unknown_session_is_not_found(log):
    with pytest.raises(SessionNotFound) as caught:
        list(log.read("nobody"))

    assert caught.value.session_id == "nobody"
    with pytest.raises(LookupError):
        list(log.read("nobody", after=5))


def test_reading_creates_nothing(log):
    log.head("s")
    with pytest.raises(SessionNotFound):
        list(log.read("s"))

    assert log.sessions() == []
    assert log.append("s", notes(1), expected=0).version == 1


def test_events_are_read_as_values_of_their_own(log):
    payload = {"list": [1]}
    draft = note(payload)
    log.append("s", [draft])
    payload["list"].append(2)

    assert texts(log.read("s")) == [{"list": [1]}]
