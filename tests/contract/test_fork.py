"""Forking a session: one event, behind a past that is its parent's by reference."""

from __future__ import annotations

from datetime import timedelta

import pytest

from kern_events import Draft, chain, spi
from kern_events.errors import InvalidEvent, SessionExists, SessionNotFound, VersionConflict
from tests.facade import only_on, store_of, sync_of
from tests.writers import in_threads, note, notes, texts


def say(log, session_id, text):
    with log.turn(session_id) as turn:
        turn.record(note(text))
    return turn


def restore(log, session_id, target, **payload):
    return spi.restore(sync_of(log), session_id, target, payload, log.head(session_id), actor=None)


def info_of(log, session_id):
    [info] = [one for one in log.sessions() if one.session_id == session_id]
    return info


def first_of(log, session_id):
    return next(iter(log.read(session_id)))


def metadata_of(log, session_id):
    return first_of(log, session_id).payload["metadata"]


# -------------------------------------------------------------------------------------- points


def test_versions_and_turns_go_on_from_the_parent(log):
    for text in "abc":
        say(log, "s", text)  # Versions 2 to 4, 5 to 7 and 8 to 10, behind session.created.
    receipt = log.fork("s", "f", turn=2)
    turn = say(log, "f", "other")

    assert (receipt.session_id, receipt.first_version, receipt.version) == ("f", 8, 8)
    assert turn.number == 3
    assert [event.version for event in log.read("f")] == [8, 9, 10, 11]
    assert [event.turn for event in log.read("f")] == [2, 3, 3, 3]
    assert log.verify().ok


def test_without_a_point_it_is_forked_where_it_stands(log):
    say(log, "s", "a")
    head = log.head("s")
    log.fork("s", "f")

    forked = log.head("f")
    assert (forked.version, forked.turn, forked.branch, forked.epoch) == (head.version + 1, 1, 0, 0)
    assert first_of(log, "f").ref == head.version
    assert log.head("s") == head


@pytest.mark.parametrize(("turn", "last"), [(0, 1), (1, 4), (2, 7)])
def test_a_turn_means_what_was_before_the_next_one(log, turn, last):
    say(log, "s", "a")
    say(log, "s", "b")

    log.fork("s", "f", turn=turn)

    assert (first_of(log, "f").ref, log.head("f").turn) == (last, turn)


def test_a_time_means_what_was_recorded_by_then(log, clock):
    times = []
    for text in "ab":
        say(log, "s", text)
        times.append(spi.to_datetime(clock.now_us))
        clock.now_us += 1_000_000
    log.fork("s", "f", at=times[0])
    log.fork("f", "g", at=times[1])

    assert (first_of(log, "f").ref, first_of(log, "g").ref) == (4, 4)
    for wrong, error in (
        ({"at": times[0].replace(tzinfo=None)}, ValueError),
        ({"at": times[0] - timedelta(seconds=1)}, ValueError),
        ({"at": times[0], "turn": 1}, TypeError),
        ({"at": 5}, TypeError),
    ):
        with pytest.raises(error):
            log.fork("s", "h", **wrong)
    assert log.head("h").version == 0


def test_an_abandoned_version_can_be_forked_and_an_abandoned_turn_cannot(log):
    for text in "abc":
        say(log, "s", text)
    restore(log, "s", 4)
    log.fork("s", "f", version=10)

    with pytest.raises(ValueError, match="no turn 3: there are 0 to 1"):
        log.fork("s", "g", turn=3)
    assert (log.head("f").version, log.head("f").turn) == (11, 3)
    assert log.verify().ok


def test_the_turn_of_a_version_is_the_highest_that_had_started_there(log):
    """Also where a turn that began earlier goes on, or ends, behind another one's start."""
    with log.turn("s") as outer:
        say(log, "s", "within")
        outer.record(note("outer"))
    assert [event.turn for event in log.read("s")] == [0, 1, 2, 2, 2, 1, 1]

    log.fork("s", "f", version=6)

    assert (log.head("f").turn, first_of(log, "f").turn) == (2, 2)


def test_the_first_hash_of_a_fork_has_that_of_its_parent_in_it(log):
    receipts = [log.append("s", notes(1)) for _ in range(3)]
    log.fork("s", "f", version=2)

    event = first_of(log, "f")
    scope = chain.scope(log.namespace, "f")
    genesis = chain.fork_genesis(scope, "s", 2, receipts[1].hash)
    commit = chain.payload_commit(event.salt, event_bytes(log, "f", 3), None)
    header = event.event_id + chain.header("session.forked", 1, 4)
    link = (header, 0, 2, chain.trailer(0, None, None, None), None, commit)
    assert chain.extend(genesis, scope, 2, event.at_us, [link]) == [event.hash]


def event_bytes(log, session_id, version):
    [row] = store_of(log).rows(log.namespace, session_id, version - 1, version, 1)
    return row[14]


@pytest.mark.parametrize("point", [{"turn": -1}, {"turn": 1}, {"version": -1}, {"version": 4}])
def test_what_is_not_there_is_no_point(log, point):
    log.append("s", notes(3))

    with pytest.raises(ValueError, match="there are 0 to"):
        log.fork("s", "f", **point)
    assert log.head("f").version == 0


# --------------------------------------------------------------------------------------- names


def test_a_session_that_never_was_is_not_forked(log):
    with pytest.raises(SessionNotFound):
        log.fork("nobody", "f")
    assert log.head("f").version == 0


def test_an_id_that_was_taken_stays_taken(log):
    for name in ("s", "other", "gone"):
        log.append(name, notes(1))
    log.fork("s", "f")
    log.delete("gone")
    log.delete("f")

    for into in ("s", "other", "gone", "f"):
        with pytest.raises(SessionExists):
            log.fork("s", into)
    assert log.verify().ok


@pytest.mark.parametrize("into", ["", "x" * 201, "a\n", "\ud800"])
def test_an_id_that_cannot_be_recorded_is_refused(log, into):
    log.append("s", notes(1))

    with pytest.raises(InvalidEvent):
        log.fork("s", into)
    assert [info.session_id for info in log.sessions()] == ["s"]


def test_the_longest_ids_can_be_forked(log):
    long = ["ü" * 100, "x" * 200]
    log.append(long[0], notes(1))
    log.fork(long[0], long[1], actor="y" * 200)

    assert info_of(log, long[1]).fork_parent == long[0]
    assert log.verify().ok


def test_a_fork_stays_in_its_namespace(open_log, address):
    here, there = open_log(), open_log(namespace=f"{address.namespace}-other")
    here.append("s", notes(1))
    there.append("s", notes(2))
    here.fork("s", "f")

    assert (here.head("f").version, there.head("f").version) == (2, 0)
    there.fork("s", "f")
    there.delete("s")
    assert (there.head("f").epoch, here.head("f").epoch) == (1, 0)
    assert spi.descendants(sync_of(here), "s") == ["f"]


def test_a_fork_of_a_session_that_was_closed_is_open(log):
    log.append("s", [note(), Draft("session.closed", {})])
    log.fork("s", "f")

    log.append("f", notes(1))
    assert (log.head("s").status, log.head("f").status) == ("closed", "open")
    assert log.verify().ok


# ------------------------------------------------------------------------------- forks of forks


def test_a_fork_of_a_fork_goes_on_from_all_before_it(log):
    say(log, "s", "a")
    log.fork("s", "f")
    say(log, "f", "b")
    log.fork("f", "g", turn=1)

    path = spi.live_path(sync_of(log), "g", log.head("g").version)
    assert path == [("s", 1, 4), ("f", 5, 5), ("g", 6, 6)]
    assert (info_of(log, "g").fork_parent, info_of(log, "g").fork_version) == ("f", 5)
    assert log.verify().ok


def test_a_fork_can_begin_in_its_grandparent(log):
    log.append("s", notes(3))
    log.fork("s", "f")
    log.append("f", notes(2))
    log.fork("f", "g", version=2)

    assert spi.live_path(sync_of(log), "g", 3) == [("s", 1, 2), ("g", 3, 3)]
    assert info_of(log, "g").fork_parent == "f"
    assert spi.descendants(sync_of(log), "f") == ["g"]
    assert log.verify().ok


def test_a_fork_gives_its_own_events_only(log):
    log.append("s", notes(3))
    log.fork("s", "f")
    log.append("f", [note("own")])

    assert [event.type for event in log.read("f")] == ["session.forked", "note.taken"]
    assert [event.type for event in log.read("f", until=3)] == []
    assert texts(log.read("s")) == [0, 1, 2]


# ----------------------------------------------------------------------- what it is beside that


def test_what_was_said_of_a_session_later_is_said_of_its_fork(log):
    log.append("s", [Draft("session.created", {"user_id": "ada", "metadata": {"old": 1}}), *notes(2)])
    log.append("s", [Draft("session.described", {"metadata": {"new": [1, {"a": None}]}, "team_id": "t"})])
    log.append("s", [Draft("session.renamed", {"name": "now"})])
    log.fork("s", "f", version=2)

    info = info_of(log, "f")
    assert (info.user_id, info.team_id, info.name) == ("ada", "t", "now")
    assert metadata_of(log, "f") == {"new": [1, {"a": None}]}


def test_what_is_said_of_a_fork_is_said_of_its_forks(log):
    log.append("s", [Draft("session.created", {"user_id": "ada", "metadata": {"of": "s"}})])
    log.fork("s", "f")
    log.append("f", [Draft("session.described", {"metadata": {"of": "f"}, "user_id": None})])
    log.fork("f", "g", version=1)
    log.fork("s", "h")

    assert [metadata_of(log, name) for name in "fgh"] == [{"of": "s"}, {"of": "f"}, {"of": "s"}]
    assert [info_of(log, name).user_id for name in "fgh"] == [None, None, "ada"]


def test_a_restore_does_not_take_metadata_back(log):
    log.append("s", [Draft("session.created", {"metadata": {"n": 1}})])
    log.append("s", [Draft("session.described", {"metadata": {"n": 2}})])
    restore(log, "s", 1)
    log.fork("s", "f")

    assert metadata_of(log, "f") == {"n": 2}


def test_what_a_restore_says_of_metadata_counts(log):
    log.append("s", [Draft("session.created", {"metadata": {"n": 1}})])
    restore(log, "s", 0, metadata={"n": 3})
    log.fork("s", "f")

    assert metadata_of(log, "f") == {"n": 3}


@pytest.mark.parametrize("created", [{}, {"metadata": {"of": "the new one"}}])
def test_what_was_said_before_a_deletion_is_not_said_of_a_fork(log, created):
    log.append("s", [Draft("session.created", {"user_id": "ada", "metadata": {"secret": 1}})])
    log.fork("s", "f")
    for name in "sf":
        log.delete(name)
        log.append(name, [Draft("session.created", created)])
        log.fork(name, f"of-{name}")

    for name in ("of-s", "of-f"):
        assert metadata_of(log, name) == created.get("metadata", {})
        assert info_of(log, name).user_id is None
    assert log.verify().ok


def test_a_deleted_fork_that_is_made_again_is_nothing_of_its_parents(log):
    """What it goes on from is still there; what was said of the session is not."""
    log.append("s", [Draft("session.created", {"user_id": "ada", "metadata": {"of": "s"}})])
    log.fork("s", "f")
    log.delete("f")
    log.append("f", [Draft("session.created", {})])
    log.fork("f", "g", version=1)

    assert metadata_of(log, "g") == {}
    assert (info_of(log, "g").user_id, info_of(log, "g").fork_parent) == (None, "f")


def test_who_forked_is_recorded(log):
    log.append("s", notes(1))
    log.fork("s", "f", actor="ada")

    assert (first_of(log, "f").actor, first_of(log, "f").kind) == ("ada", 4)


# ------------------------------------------------------------------------------------ together


def test_a_fork_does_not_disturb_who_appends(log):
    seen = log.append("s", notes(1))
    head = log.head("s")
    with log.turn("s") as turn:
        log.fork("s", "f")
        turn.record(note("on"))
        log.fork("s", "g")

    assert seen.version == head.version
    assert log.append("s", [note("last")], expected=log.head("s")).version == 5
    with pytest.raises(VersionConflict):
        log.append("s", [note()], expected=head)


def test_eight_who_fork_at_once_into_different_sessions_all_do(log):
    log.append("s", notes(3))

    receipts = in_threads(8, lambda number: log.fork("s", f"f{number}", version=number % 3 + 1))

    assert [receipt.version for receipt in receipts] == [number % 3 + 2 for number in range(8)]
    assert len(log.branches("s").forks) == 8
    assert log.verify().ok


def test_forks_are_made_while_others_append(log):
    log.append("s", notes(1))

    def work(number):
        for round in range(10):
            if number < 2:
                log.append("s", [note(f"{number}.{round}")])
            else:
                log.fork("s", f"f{number}-{round}")

    in_threads(4, work)
    assert len(texts(log.read("s"))) == 21
    for fork in log.branches("s").forks:
        assert first_of(log, fork.session_id).ref == fork.version
    assert len(log.branches("s").forks) == 20
    assert log.verify().ok


@only_on("sqlite", "postgres")
def test_a_fork_is_seen_by_everybody(open_log):
    here, there = open_log(), open_log()
    here.append("s", notes(2))
    here.fork("s", "f")

    assert there.append("f", [note("there")], expected=3).version == 4
    with pytest.raises(SessionExists):
        there.fork("s", "f")


def test_a_session_of_an_id_that_a_fork_takes_meanwhile_is_not_forked_into(log):
    """Those who append to a new session and those who fork into it: one of them begins it."""
    log.append("s", notes(1))

    def work(number):
        try:
            if number % 2:
                log.append("f", [note(number)], expected=0)
            else:
                log.fork("s", "f")
        except (SessionExists, VersionConflict):
            return False
        return True

    assert sum(in_threads(8, work)) == 1
    assert log.verify().ok


def test_a_secret_that_is_deleted_while_it_is_forked_is_not_in_the_fork(log, monkeypatch):
    """The parent is deleted, and begun again, between the look at it and the fork."""
    log.append("s", [Draft("session.created", {"name": "secret", "metadata": {"secret": 1}}), note()])
    store = store_of(log)
    fork = store.fork

    def late(batch, origin):
        monkeypatch.undo()
        log_ = sync_of(log)
        log_.delete("s")
        log_.append("s", [Draft("session.created", {})])
        return fork(batch, origin)

    monkeypatch.setattr(store, "fork", late)
    log.fork("s", "f")

    assert "secret" not in repr(first_of(log, "f").payload)
