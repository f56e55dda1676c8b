"""Forks of forks, and what stays when one of those that they come from is deleted."""

from __future__ import annotations

import pytest

from tests import facade
from tests.writers import notes


@pytest.fixture
def sessions(facade_kind, address, loop):
    with facade.open_sessions(facade_kind, loop, address.url, namespace=address.namespace) as sessions:
        yield sessions


def descend(sessions):
    """Three generations; the second and the third are named by the second."""
    sessions.append("first", notes(1))
    sessions.fork("first", "second")
    sessions.describe("second", name="A trip", user_id="ada", metadata={"stars": 5})
    sessions.fork("second", "third")
    sessions.append("third", notes(2))
    sessions.delete("first")


def said(sessions, session_id):
    view = sessions.load(session_id)
    return view.name, view.user_id, view.metadata


def test_a_restore_takes_nothing_of_what_the_parent_still_says(sessions):
    descend(sessions)
    before = said(sessions, "third")

    sessions.restore("third", to_version=sessions.head("third").version - 1)

    assert before == said(sessions, "third") == ("A trip", "ada", {"stars": 5})
    assert sessions.verify().ok


def test_a_fork_takes_nothing_of_what_the_parent_still_says(sessions):
    descend(sessions)

    sessions.fork("third", "fourth")

    assert said(sessions, "fourth") == ("A trip", "ada", {"stars": 5})


def test_what_was_carried_on_goes_with_the_parent_that_said_it(sessions):
    descend(sessions)
    sessions.restore("third", to_version=sessions.head("third").version - 1)
    sessions.fork("third", "fourth")

    sessions.delete("second")

    assert said(sessions, "third") == said(sessions, "fourth") == (None, None, {})
    assert "A trip" not in "".join(map(repr, [*sessions.read("third"), *sessions.read("fourth")]))
    assert sessions.verify().ok
