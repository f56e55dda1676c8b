"""Nobody goes back to what is erased: before a deletion, or before what a fork shares was deleted."""

from __future__ import annotations

import pytest

from kern_events import Draft
from kern_events.errors import PointErased
from tests import facade
from tests.writers import notes, texts


@pytest.fixture
def sessions(facade_kind, address, loop):
    """A session that was deleted and began again at version 5, and a fork of one that was deleted."""
    with facade.open_sessions(facade_kind, loop, address.url, namespace=address.namespace) as sessions:
        yield made(sessions)


def made(sessions):
    sessions.append("s", notes(3))
    sessions.delete("s")
    sessions.append("s", [Draft("session.created", {}), *notes(2)])
    sessions.append("parent", notes(3))
    sessions.fork("parent", "child", version=2)
    sessions.append("child", notes(2))
    sessions.delete("parent")
    return sessions


@pytest.mark.parametrize(
    ("session_id", "erased"), [("s", [1, 2, 3, 4]), ("child", [1, 2, 3])], ids=["deleted", "of the parent"]
)
def test_a_point_that_is_erased_is_refused_before_anything_is_written(sessions, session_id, erased):
    head = sessions.head(session_id)
    for version in erased:
        with pytest.raises(PointErased, match=rf"version {version}: that is erased") as refused:
            sessions.restore(session_id, to_version=version)
        assert (refused.value.session_id, refused.value.version) == (session_id, version)
        with pytest.raises(PointErased):
            sessions.preview_restore(session_id, to_version=version)
        with pytest.raises(PointErased):
            sessions.fork(session_id, "new", version=version)
    assert sessions.head(session_id) == head
    assert sessions.head("new").version == 0


def test_what_was_said_since_can_be_gone_back_to(sessions):
    for session_id, version in (("s", 6), ("child", 4), ("s", 0)):
        sessions.restore(session_id, to_version=version)
        assert sessions.branches(session_id).branches[-1].origin_version == version
    sessions.fork("child", "new", version=4)
    assert sessions.branches("new").fork_version == 4


def test_a_restore_is_what_it_went_back_to(sessions):
    sessions.append("parent", [Draft("session.created", {}), *notes(1)])
    sessions.fork("parent", "other")
    sessions.restore("other", to_version=6)
    sessions.append("other", notes(1))
    restored = sessions.head("other").version - 1
    sessions.fork("other", "before", version=restored)
    sessions.delete("parent")

    with pytest.raises(PointErased):
        sessions.restore("other", to_version=restored)
    assert texts(sessions.read("other"))[-1:] == texts(notes(1))


def test_where_a_session_stands_is_never_refused(sessions):
    sessions.delete("child")
    sessions.append("child", [Draft("session.created", {})])
    sessions.append("parent", [Draft("session.created", {})])
    sessions.fork("parent", "heir")
    sessions.delete("parent")

    sessions.restore("heir", to_version=sessions.head("heir").version)
    sessions.fork("heir", "of the heir")
    assert sessions.verify().ok
