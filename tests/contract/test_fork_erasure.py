"""An erasure reaches every fork of the session, and nobody else."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from itertools import pairwise

import pytest

from kern_events import Draft, spi
from kern_events.errors import SessionExists, SessionNotFound
from tests import facade
from tests.writers import in_threads, note, notes, texts


def test_a_delete_is_an_erasure_for_every_fork_below(log):
    log.append("parent", notes(3))
    log.append("other", notes(1))
    log.fork("parent", "child", version=2)
    log.fork("child", "grandchild")
    log.fork("other", "others")

    log.delete("parent")

    epochs = {name: log.head(name).epoch for name in ("parent", "child", "grandchild", "other", "others")}
    assert epochs == {"parent": 1, "child": 1, "grandchild": 1, "other": 0, "others": 0}
    assert log.verify().ok


def test_a_fork_begins_with_the_epoch_of_its_parent(log):
    log.append("parent", notes(3))
    log.delete("parent")
    log.append("parent", [Draft("session.created", {})])

    log.fork("parent", "child")
    log.delete("child")

    assert (log.head("parent").epoch, log.head("child").epoch) == (1, 2)
    assert log.verify().ok


def test_a_writer_with_an_older_head_still_lands(log):
    log.append("parent", notes(3))
    log.fork("parent", "child")
    seen = log.head("child")
    log.delete("parent")

    log.append("child", [note("after")], expected=seen)
    log.append("child", [note("later")])

    assert texts(log.read("child")) == ["after", "later"]
    assert log.verify().ok


def test_a_deleted_session_is_neither_forked_nor_forked_into(log):
    log.append("gone", notes(1))
    log.append("s", notes(1))
    log.delete("gone")

    with pytest.raises(SessionNotFound):
        log.fork("gone", "new")
    for into in ("gone", "s"):
        with pytest.raises(SessionExists):
            log.fork("s", into)
    assert log.head("new").version == 0


def test_forks_made_during_deletes_have_the_epoch_of_their_parent(log):
    """The invariant that verify checks: the parent's epoch and a session's own tombstones."""
    log.append("root", notes(2))
    for number in range(4):
        log.fork("root", f"child-{number}")

    def work(number: int) -> None:
        for round in range(4):
            if number < 4:
                log.fork(f"child-{number}", f"grandchild-{number}-{round}")
            elif number < 6:
                log.append("root", [Draft("session.created", {}), note(round)])
            elif round < 2:
                with suppress(SessionNotFound):  # Deleted already.
                    log.delete("root")

    in_threads(8, work)

    report = log.verify()
    assert report.findings == ()
    root = log.head("root").epoch
    assert {log.head(f"grandchild-{n}-{r}").epoch for n in range(4) for r in range(4)} == {root}


def epochs_that_are_wrong(log):
    """Where an epoch is not that of the parent and the session's own tombstones together."""
    tombstones = Counter(event.session_id for event in log.read_all() if event.type == "session.deleted")
    wrong = {}
    for name in {event.session_id for event in log.read_all()}:
        head = log.head(name)
        parent = facade.store_of(log).lineage(log.namespace, name).parent
        expected = tombstones[name] + (log.head(parent).epoch if parent else 0)
        if head.epoch != expected:
            wrong[name] = (head.epoch, expected)
    return wrong


@pytest.mark.parametrize("names", [("a", "b", "c"), ("c", "b", "a")])
def test_deletes_all_along_a_line_of_forks_at_once_are_all_counted(log, names):
    """Each holds its own session and reaches for those below it, whichever way their names sort."""
    log.append(names[0], notes(2))
    for parent, child in pairwise(names):
        log.fork(parent, child)

    def work(number: int) -> None:
        name = names[number % 3]
        for round in range(4):
            if number < 3:
                with suppress(SessionNotFound):
                    log.delete(name)
            elif number < 6:
                log.append(name, [Draft("session.created", {}), note(round)])
            else:
                with suppress(SessionNotFound):
                    log.fork(name, f"{name}-{number}-{round}")

    in_threads(8, work)

    assert epochs_that_are_wrong(log) == {}
    assert log.verify().findings == ()


def test_a_snapshot_that_is_stored_during_an_erasure_does_not_survive_it(log):
    sync = facade.sync_of(log)
    log.append("parent", notes(2))
    log.fork("parent", "child")
    table = spi.SnapshotTable(sync, "p")

    def work(number: int) -> None:
        for round in range(10):
            if number == 0 and round % 2:
                log.delete("parent")
                log.append("parent", [Draft("session.created", {})])
            elif number:
                epoch = log.head("child").epoch
                table.put("child", epoch, 3, chunks={f"{number}a{epoch}": b"c"}, head=b"%d" % epoch)

    in_threads(4, work)

    epoch = log.head("child").epoch
    assert epoch == 5
    for name in table.names("child")[1]:
        assert name.endswith(f"a{epoch}")
    found = table.head("child", 9)
    assert found is None or (found.version, found.data) == (3, b"5")


def test_of_eight_who_fork_into_one_session_one_does(log):
    log.append("s", notes(1))

    def work(number: int) -> bool:
        try:
            log.fork("s", "f", actor=f"a{number}")
        except SessionExists:
            return False
        return True

    assert sum(in_threads(8, work)) == 1
    assert len(list(log.read("f"))) == 1


def test_what_is_stored_of_forks_goes_with_the_erasure(log):
    sync = facade.sync_of(log)
    log.append("parent", notes(3))
    log.fork("parent", "child")
    table = spi.SnapshotTable(sync, "p:1:x")
    for name in ("parent", "child"):
        assert table.put(name, 0, log.head(name).version, chunks={"aa": b"secret"}, head=b"secret")

    log.delete("parent")

    assert [table.names(name) for name in ("parent", "child")] == [([], set()), ([], set())]
    assert not table.put("child", 0, 4, head=b"secret")
    assert table.put("child", 1, 4, head=b"new")
    assert not table.put("parent", 1, 4, head=b"new")


def test_a_table_of_snapshots_keeps_what_it_is_given(log):
    sync = facade.sync_of(log)
    log.append("s", notes(9))
    table, other = spi.SnapshotTable(sync, "p:1:x"), spi.SnapshotTable(sync, "p:2:x")
    table.put("s", 0, 3, chunks={"aa": b"1", "bb": b"2"}, head=b"three")
    table.put("s", 0, 9, chunks={"cc": bytes(100_000)}, head=b"nine")

    assert table.head("s", 8)[1:] == (3, b"three")
    assert table.head("s", 2**62)[1:] == (9, b"nine")
    assert table.head("s", 2) is None and other.head("s", 9) is None
    assert table.chunks("s", ["bb", "cc", "dd"]) == {"bb": b"2", "cc": bytes(100_000)}
    table.put("s", 0, 9, drop=[3])
    assert table.names("s") == ([9], {"aa", "bb", "cc"})


def test_a_fork_is_what_its_parent_is_now(log):
    log.append("s", [Draft("session.created", {"user_id": "u", "agent_id": "a", "metadata": {"n": 1}})])
    log.append("s", [Draft("session.described", {"metadata": {"n": 2}}), *notes(3)])
    log.append("s", [Draft("session.renamed", {"name": "later"})])

    log.fork("s", "f", version=1, actor="ada")
    log.fork("f", "g", version=1)

    for name, parent in (("f", "s"), ("g", "f")):
        [event] = log.read(name)
        expected = {"user_id": "u", "agent_id": "a", "name": "later", "metadata": {"n": 2}}
        assert (event.type, event.version, event.ref, event.payload) == ("session.forked", 2, 1, expected)
        [info] = [one for one in log.sessions() if one.session_id == name]
        assert (info.fork_parent, info.fork_version, info.user_id, info.name) == (parent, 1, "u", "later")
    assert log.verify().ok


@pytest.mark.parametrize(
    ("point", "error"),
    [({"turn": 2}, ValueError), ({"version": 9}, ValueError), ({"version": 0}, ValueError),
     ({"turn": 0}, ValueError), ({"turn": 1, "version": 1}, TypeError)],
)  # fmt: skip
def test_a_point_that_cannot_be_forked_is_refused(log, point, error):
    log.append("s", [Draft("turn.started", {}), note()])

    with pytest.raises(error):
        log.fork("s", "f", **point)
    assert log.head("f").version == 0


def test_the_tree_of_a_session(log):
    log.append("s", [Draft("turn.started", {}), note(), Draft("turn.started", {})])
    spi.restore(facade.sync_of(log), "s", 2, {"reason": "why"}, log.head("s"), actor="ada")
    log.append("s", [Draft("turn.started", {})])
    log.fork("s", "f")

    tree = log.branches("s")

    first, second = tree.branches
    assert (first.first_version, first.last_version, first.live_version, first.turns) == (1, 3, 2, (1, 2))
    assert (second.first_version, second.last_version, second.live_version) == (4, 5, 5)
    assert (second.origin_version, second.turns, second.reason, second.actor) == (2, (2,), "why", "ada")
    assert [(fork.session_id, fork.version, fork.status) for fork in tree.forks] == [("f", 5, "open")]
    assert (log.branches("f").parent, log.branches("f").fork_version) == ("s", 5)
    with pytest.raises(SessionNotFound):
        log.branches("never")
