"""What a restore is to the log: one event that begins a branch, whatever its payload says."""

from __future__ import annotations

import pytest

from kern_events import Draft, spi
from kern_events.errors import SessionClosed, TurnAbandoned, VersionConflict
from tests.facade import sync_of
from tests.writers import in_threads, note, notes, texts


def say(log, session_id="s", text="said"):
    with log.turn(session_id) as turn:
        turn.record(note(text))
    return turn


def restore(log, target, session_id="s", head=None, **payload):
    head = head or log.head(session_id)
    return spi.restore(sync_of(log), session_id, target, payload, head, actor="ada")


def last_of(log, session_id="s"):
    return list(log.read(session_id))[-1]


def live(log, session_id="s", version=None):
    """The versions that count, and whose they are."""
    version = log.head(session_id).version if version is None else version
    path = spi.live_path(sync_of(log), session_id, version)
    return [f"{part.session_id}{v}" for part in path for v in range(part.first, part.last + 1)]


# ---------------------------------------------------------------------------------- the marker


def test_a_restore_is_one_event_that_begins_a_branch(log):
    for _ in range(3):
        say(log)
    receipt = restore(log, 4, reason="wrong")

    event, head = last_of(log), log.head("s")
    assert (event.type, event.version, event.ref, event.turn, event.actor) == (
        "session.restored", 11, 4, 1, "ada",
    )  # fmt: skip
    assert (head.version, head.turn, head.branch) == (receipt.version, 1, 11)
    assert live(log) == ["s1", "s2", "s3", "s4", "s11"]
    assert log.verify().ok


@pytest.mark.parametrize(("target", "turn"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 2), (6, 2), (7, 2)])
def test_its_turn_is_the_highest_that_had_started_at_its_target(log, target, turn):
    """Two turns overlap: the events of the first stand behind the start of the second."""
    with log.turn("s") as outer:
        say(log)
        outer.record(note())
    restore(log, target)

    assert (last_of(log).turn, log.head("s").turn) == (turn, turn)
    assert say(log).number == turn + 1
    assert log.verify().ok


def test_a_restore_of_a_restore_goes_on_from_where_that_one_was(log):
    for _ in range(2):
        say(log)  # Versions 2 to 4, and 5 to 7.
    restore(log, 4)
    say(log)
    restore(log, 7)  # An abandoned branch: the first restore is undone.
    restore(log, 8)  # The marker itself: where the session stood right after it.

    assert [log.head("s").turn, log.head("s").branch] == [1, 13]
    assert live(log) == ["s1", "s2", "s3", "s4", "s8", "s13"]
    assert live(log, version=12) == ["s1", "s2", "s3", "s4", "s5", "s6", "s7", "s12"]
    assert log.verify().ok


def test_a_restore_to_the_head_changes_nothing_but_the_branch(log):
    say(log)
    restore(log, 4)

    assert live(log) == ["s1", "s2", "s3", "s4", "s5"]
    assert log.head("s").branch == 5


def test_a_fork_is_restored_into_the_rows_of_its_parent(log):
    say(log)
    say(log)
    log.fork("s", "f")
    say(log, "f")
    restore(log, 4, "f")

    assert live(log, "f") == ["s1", "s2", "s3", "s4", "f12"]
    assert (log.head("f").turn, log.head("f").branch) == (1, 12)
    assert live(log) == [f"s{version}" for version in range(1, 8)]
    assert log.verify().ok


def test_a_parents_restore_is_nothing_to_its_forks(log):
    say(log)
    say(log)
    log.fork("s", "f")
    restore(log, 1)

    assert live(log, "f") == [*(f"s{version}" for version in range(1, 8)), "f8"]
    assert (log.head("f").turn, log.head("f").branch) == (2, 0)


# ------------------------------------------------------------------------------------- writers


@pytest.mark.parametrize("kind", ["version", "head"])
def test_a_writer_who_decided_before_it_is_told(log, kind):
    head = log.append("s", notes(3)) and log.head("s")
    restore(log, 1)

    with pytest.raises(VersionConflict) as caught:
        log.append("s", notes(1), expected=head if kind == "head" else head.version)
    assert (caught.value.expected, caught.value.actual) == (3, 4)


def test_a_writer_who_decided_on_nothing_lands_behind_it(log):
    log.append("s", notes(3))
    restore(log, 1)
    log.append("s", [note("after")])

    assert live(log) == ["s1", "s4", "s5"]
    assert texts(log.read("s")) == [0, 1, 2, "after"]


def test_a_restore_of_another_head_is_refused(log):
    log.append("s", notes(3))
    seen = log.head("s")
    log.append("s", notes(1))

    with pytest.raises(VersionConflict):
        restore(log, 1, head=seen)
    assert log.head("s").version == 4


@pytest.mark.parametrize("buffered", [False, True])
def test_a_turn_that_runs_is_told(log, buffered):
    log.append("s", notes(1))
    with pytest.raises(TurnAbandoned) as caught, log.turn("s", buffered=buffered) as turn:
        turn.message("user", "Hi")
        receipt = restore(log, 1)

    assert caught.value.branch == receipt.version
    assert last_of(log).version == receipt.version


def test_a_turn_that_begins_behind_it_goes_on(log):
    say(log)
    restore(log, 1)
    turn = say(log)

    assert (turn.number, log.head("s").turn) == (1, 1)


def test_a_key_from_before_it_is_not_recorded_again(log):
    """A key is of the session, not of a branch: a redelivery does not know of the restore."""
    first = log.append("s", notes(1), idempotency_key="k")
    restore(log, 0)

    assert log.append("s", notes(1), idempotency_key="k") == first
    assert log.head("s").version == 2


def test_a_listing_is_not_taken_back(log):
    log.append("s", [Draft("session.created", {"user_id": "ada", "name": "old"}), *notes(2)])
    log.append("s", [Draft("session.renamed", {"name": "new"})])
    restore(log, 0)

    [info] = log.sessions(user_id="ada")
    assert (info.name, info.turn, info.version) == ("new", 0, 5)
    assert log.verify().ok


def test_a_session_that_was_closed_is_not_restored(log):
    log.append("s", [note(), Draft("session.closed", {})])

    with pytest.raises(SessionClosed):
        restore(log, 1)


def test_of_eight_restores_from_one_head_one_lands(log):
    log.append("s", notes(3))
    head = log.head("s")

    def work(number):
        try:
            return restore(log, number % 3, head=head).version
        except VersionConflict:
            return None

    assert list(filter(None, in_threads(8, work))) == [4]


# ------------------------------------------------------------------------------------ the tree


def branch(tree, number):
    found = tree.branches[number]
    return (found.first_version, found.last_version, found.origin_version, found.live_version, found.turns)


def test_a_tree_has_every_branch_and_what_still_counts_of_it(log):
    for _ in range(2):
        say(log)
    restore(log, 4, reason="first")  # 8
    say(log)  # 9 to 11
    restore(log, 7, reason="second")  # 12
    restore(log, 9)  # 13
    tree = log.branches("s")

    assert [branch(tree, number) for number in range(4)] == [
        (1, 7, 0, 4, (1, 2)), (8, 11, 4, 9, (2,)), (12, 12, 7, None, ()), (13, 13, 9, 13, ()),
    ]  # fmt: skip
    assert [one.reason for one in tree.branches] == [None, "first", "second", None]
    assert [one.actor for one in tree.branches] == [None, "ada", "ada", "ada"]
    assert [one.at_us for one in tree.branches] == sorted(one.at_us for one in tree.branches)


def test_a_tree_of_a_fork_begins_where_it_was_forked(log):
    say(log)
    log.fork("s", "f", version=3, actor="eve")
    say(log, "f")
    restore(log, 2, "f")
    tree = log.branches("f")

    assert (tree.parent, tree.fork_version, tree.forks) == ("s", 3, ())
    assert [branch(tree, number) for number in range(2)] == [(4, 7, 3, None, (2,)), (8, 8, 2, 8, ())]
    assert tree.branches[0].actor == "eve"


def test_a_tree_has_the_forks_of_this_session_alone_also_deleted_ones(log):
    log.append("s", notes(2))
    for into, version in (("b", 2), ("a", 1), ("gone", 2)):
        log.fork("s", into, version=version)
    log.fork("a", "of-a")
    log.append("a", [Draft("session.closed", {})])
    log.delete("gone")

    forks = {(fork.session_id, fork.version, fork.status) for fork in log.branches("s").forks}
    assert forks == {("a", 1, "closed"), ("b", 2, "open"), ("gone", 2, "deleted")}


def test_a_reason_that_is_no_text_is_none(log):
    log.append("s", notes(1))
    restore(log, 1, reason={"not": "text"})

    assert log.branches("s").branches[1].reason is None


def test_a_tree_of_a_session_that_was_deleted_and_made_again(log):
    say(log)
    restore(log, 1, reason="secret")
    log.delete("s")
    log.append("s", [Draft("session.created", {})])

    tree = log.branches("s")
    assert [branch(tree, number) for number in range(2)] == [(1, 4, 0, 1, (1,)), (5, 7, 1, 7, ())]
    assert tree.branches[1].reason is None


def test_a_tree_is_whole_while_others_restore(log):
    log.append("s", notes(3))

    def work(number):
        for _ in range(10):
            if number:
                spans = [(one.first_version, one.last_version) for one in log.branches("s").branches]
                assert all(first <= last for first, last in spans)
            else:
                restore(log, 1)

    in_threads(3, work)
    assert len(log.branches("s").branches) == 11
