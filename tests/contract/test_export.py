"""Export and import of events: what comes back is the same bit for bit, on whatever backend."""

from __future__ import annotations

import json

import pytest

from kern_events import Draft, SessionLog, import_events, imports, lineage, message
from kern_events.errors import InvalidEvent, SessionNotFound
from kern_events.exports.sessions import every_line, live_events
from kern_events.store.base import AnswerLost
from projections.fold import fold
from projections.session import SessionProjector
from tests import hostile
from tests.bundles import everything, fill, grow
from tests.facade import store_of, sync_of
from tests.writers import in_threads, note, notes, pick


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def other(request, tmp_path, address):
    """Another log of the same namespace, on each backend."""
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
    else:
        url = "memory:" if request.param == "memory" else f"sqlite:///{tmp_path}/other.db"
    with SessionLog(url, namespace=address.namespace) as other:
        yield other


@pytest.fixture
def memory(address):
    """Another log of the same namespace."""
    with SessionLog("memory:", namespace=address.namespace) as memory:
        yield memory


@pytest.fixture
def small_parts(monkeypatch):
    """As if four events were very many."""
    monkeypatch.setattr(imports, "_PART_EVENTS", 4)


def moved(log, into, *session_ids):
    """The reports of an import of each session's own file."""
    return [import_events(into, log.export(session_id)) for session_id in session_ids]


def folded(log, session_id):
    """The view of what counts."""
    projector = SessionProjector()
    return fold(projector, projector.initial(), list(live_events(log, session_id)), log.types)[0]


# -------------------------------------------------------------------------------------- round trip


def test_a_whole_log_comes_back_bit_for_bit(log, other):
    ids = fill(log)
    alive = [id for id in ids if id != "left"]
    reports = moved(log, other, *alive)

    assert all(report.ok for report in reports), reports
    assert other.verify().ok
    # Of a parent that was not exported itself, the last thing is the erasure of what it shares.
    assert everything(other, ids) == everything(log, ids)


def test_and_from_there_to_the_next_and_home_again(log, other, memory):
    fill(log)
    moved(log, other, "fork of it", "orphan", "s")
    moved(other, memory, "fork of it", "orphan", "s")
    reports = moved(memory, sync_of(log), "fork of it", "orphan", "s")

    assert [(report.unchanged, report.events) for report in reports] == [(3, 0), (2, 0), (1, 0)]
    assert memory.verify().ok


def test_an_import_goes_on_like_any_session(log, other):
    fill(log)
    moved(log, other, "s", "fork")
    head = other.head("fork")

    with other.turn("fork") as turn:
        turn.message("user", "here")
    assert turn.number == head.turn + 1
    other.fork("fork", "new")
    assert other.append("s", [note("native")], idempotency_key="x").first_version == log.head("s").version + 1
    assert other.verify().ok
    assert [e.type for e in other.read_all()][-1] == "note.taken"


@pytest.mark.parametrize("seed", range(20))
def test_random_forests_come_back_bit_for_bit(log, memory, seed, small_parts):
    ids = grow(sync_of(log), pick(seed), 80)
    report = import_events(memory, every_line(sync_of(log)))
    found, expected = everything(memory, ids), everything(log, ids)

    assert report.ok, report.problems
    # What is deleted is exported as the parent of something only.
    assert all(found[id] == expected[id] or log.head(id).status == "deleted" for id in ids)
    assert memory.verify().ok
    assert import_events(memory, every_line(sync_of(log))).events == 0


@pytest.mark.parametrize("facade_kind", ["sync"], indirect=True)
def test_a_fork_at_a_version_that_its_parent_shares_comes_back_bit_for_bit(log, other):
    log.append("a", notes(3))
    for parent, into, version in (("a", "b", 2), ("b", "c", 1), ("c", "d", 1)):
        log.fork(parent, into, version=version)
        log.append(into, notes(1))

    assert import_events(other, log.export("d")).ok
    assert everything(other, ["d"]) == everything(log, ["d"])
    assert folded(other, "d") == folded(sync_of(log), "d")
    assert other.verify().ok


@pytest.mark.parametrize("seed", range(2))
def test_each_session_of_a_random_forest_comes_back_alone(log, address, seed):
    ids = grow(sync_of(log), pick(("alone", seed)), 50)
    alive = [id for id in ids if log.head(id).status != "deleted"]
    for id in alive:
        with SessionLog("memory:", namespace=address.namespace) as empty:
            report = import_events(empty, log.export(id))

            assert report.ok, report.problems
            assert everything(empty, [id]) == everything(log, [id])
            assert folded(empty, id) == folded(sync_of(log), id)
            assert empty.verify().ok


def test_what_can_be_recorded_can_be_imported(log, memory):
    drafts = [note(value) for value in hostile.values() if hostile.recordable(value)]
    for start in range(0, len(drafts), 500):
        log.append("s", drafts[start : start + 500])

    assert import_events(memory, log.export("s")).ok
    assert everything(memory, ["s"]) == everything(log, ["s"])


def test_large_payloads_come_back_and_a_log_may_take_less(open_log, memory, address):
    log = open_log(max_payload_bytes=4 << 20)
    log.append("s", [note("é" * (1 << 20), native=b"n" * (2 << 20), meta={"m": 1})])
    refused = import_events(memory, log.export("s"))
    with SessionLog("memory:", namespace=address.namespace, max_payload_bytes=4 << 20) as larger:
        assert import_events(larger, log.export("s")).ok
        assert everything(larger, ["s"]) == everything(log, ["s"])

    reason = refused.problems[0].reason
    assert reason.startswith("native: 2,097,152 bytes, the limit is 1,048,576; max_payload_bytes")


def test_whether_a_parent_was_erased_is_asked_only_where_something_is_gone(log, memory, monkeypatch):
    """And of few rows then: see test_plans.py."""
    asked, erased_until = [], lineage.erased_until
    monkeypatch.setattr(lineage, "erased_until", lambda *args: (asked.append(args), erased_until(*args))[1])
    log.append("s", [Draft("session.created", {"name": "n"})])
    log.fork("s", "f")
    lines = list(log.export("f"))
    asked.clear()
    assert import_events(memory, lines).ok and asked == []

    log.delete("s")
    with SessionLog("memory:", namespace=log.namespace) as empty:
        assert import_events(empty, every_line(sync_of(log))).new == 2
    assert asked


def test_importing_again_changes_nothing(log, memory):
    fill(log)
    moved(log, memory, "s")

    assert moved(log, memory, "s")[0].events == 0
    assert moved(log, memory, "s")[0].unchanged == 1


def test_the_first_line_says_what_the_file_is_and_the_second_whose_rows_follow(log):
    log.append("s", notes(2))

    header, section, *rows = map(json.loads, log.export("s"))
    assert header == {"format": "kern-events", "version": 1, "namespace": log.namespace}
    assert section == {"session_id": "s", "version": 2, "fork_parent": None, "fork_version": None}
    assert [row["payload"] for row in rows] == ['{"text":0}', '{"text":1}']


def test_a_line_is_ascii_and_moves_no_terminal(log):
    log.append("s\u202e", [message("user", "\x1b[31m \x9b \u202e \x00 é")])

    for line in log.export("s\u202e"):
        assert line.isascii() and line.decode()[:-1].isprintable() and line.endswith(b"\n")


def test_of_a_fork_its_parents_come_first_up_to_the_fork(log):
    log.append("a", notes(3))
    log.fork("a", "b", version=2)
    log.fork("b", "c")
    log.append("a", notes(5))

    found = [json.loads(line) for line in log.export("c") if b'"session_id"' in line]
    assert [(one["session_id"], one["version"], one["fork_version"]) for one in found] == [
        ("a", 2, None), ("b", 3, 2), ("c", 4, 3),
    ]  # fmt: skip


def test_an_erased_parent_comes_with_what_says_that_it_was_erased(log, memory):
    log.append("a", [note("secret"), note("secret"), note("later")])
    log.fork("a", "b", version=1)
    log.delete("a")
    lines = list(log.export("b"))

    assert b"secret" not in b"".join(lines)
    assert import_events(memory, lines).ok
    assert memory.verify().ok
    assert memory.head("b") == log.head("b")
    with pytest.raises(SessionNotFound):
        list(memory.read("a"))


@pytest.mark.parametrize("delete", [False, True])
def test_what_is_unknown_or_deleted_cannot_be_exported(log, delete):
    if delete:
        log.append("s", notes(1))
        log.delete("s")

    with pytest.raises(SessionNotFound):
        log.export("s")


def test_a_session_that_is_deleted_while_it_is_exported_ends_with_its_deletion(open_log, memory, monkeypatch):
    monkeypatch.setattr("kern_events.log.PAGE_ROWS", 2)
    log = open_log()
    log.append("s", notes(5))
    lines = iter(sync_of(log).export("s"))
    begun = [next(lines) for _ in range(4)]
    log.delete("s")
    report = import_events(memory, [*begun, *lines])

    assert report.ok
    assert everything(memory, ["s"]) == everything(log, ["s"])
    assert memory.verify().ok


# ---------------------------------------------------------------------------------- what is there


def test_the_rest_of_a_session_is_added(log, other):
    for text in "abc":
        log.append("s", [Draft("turn.started", {}), message("user", text), Draft("turn.completed", {})])
        report = import_events(other, log.export("s"))

    assert (report.extended, report.events) == (1, 3)
    assert everything(other, ["s"]) == everything(log, ["s"])


def test_of_a_session_that_is_longer_nothing_is_taken_away(log, memory):
    log.append("s", notes(2))
    lines = list(log.export("s"))
    moved(log, memory, "s")
    memory.append("s", notes(1))

    assert import_events(memory, lines).unchanged == 1
    assert memory.head("s").version == 3


def test_what_differs_is_reported_and_not_mixed_in(log, other):
    log.append("s", notes(9))
    moved(log, other, "s")
    other.append("s", [note("here")])
    log.append("s", [note("there"), note("more")])
    report = import_events(other, log.export("s"))

    [problem] = report.problems
    assert (report.diverged, report.events, report.ok) == (1, 0, False)
    assert (problem.kind, problem.session_id, problem.version, problem.line) == ("diverged", "s", 10, 2)
    assert other.head("s").version == 10


def test_a_deletion_that_is_imported_erases_what_was_there(log, other):
    log.append("s", [note("secret"), Draft("session.described", {"user_id": "ada"})])
    log.fork("s", "f")
    moved(log, other, "f", "s")
    log.delete("s")
    report = import_events(other, log.export("f"))

    assert report.ok
    assert everything(other, ["s", "f"]) == everything(log, ["s", "f"])
    assert other.verify().ok


def test_what_was_deleted_here_does_not_come_back(log, memory):
    log.append("s", [note("secret")])
    lines = list(log.export("s"))
    moved(log, memory, "s")
    memory.delete("s")

    assert import_events(memory, lines).unchanged == 1
    assert memory.head("s").status == "deleted"
    assert memory.verify().ok


def split(log, session_id):
    """The lines of a fork of "s", in front of it those of "s" and behind it its own."""
    header, *lines = log.export(session_id)
    at = next(i for i, line in enumerate(lines) if f'{{"session_id":"{session_id}"'.encode() in line)
    return [header, *lines[:at]], [header, *lines[at:]]


def test_a_fork_needs_its_parent_in_the_same_file(log, other):
    log.append("s", [Draft("session.created", {"user_id": "ada"}), note("secret")])
    log.fork("s", "f")
    parent, fork = split(log, "f")
    import_events(other, parent)
    report = import_events(other, fork)

    assert (report.failed, report.events, other.head("f").version) == (1, 0, 0)
    assert [problem.kind for problem in report.problems] == ["no_parent"]
    assert "--link-parents" in report.problems[0].reason
    assert import_events(other, [*parent, *fork[1:]]).new == 1


def test_a_refusal_does_not_tell_whether_the_parent_is_recorded(log, memory, address):
    log.append("s", notes(2))
    log.fork("s", "f")
    parent, fork = split(log, "f")
    unknown = import_events(memory, fork).problems
    import_events(memory, parent)

    assert import_events(memory, fork).problems == unknown


def test_a_parent_has_to_be_in_the_file_up_to_the_fork(log, memory):
    log.append("s", notes(1))
    begun = list(log.export("s"))
    log.append("s", notes(1))
    log.fork("s", "f")
    parent, fork = split(log, "f")
    import_events(memory, parent)

    assert import_events(memory, [*begun, *fork[1:]]).problems[0].kind == "no_parent"


@pytest.mark.parametrize("owner", ["ada", None])
def test_a_parent_that_is_recorded_can_be_linked_to_by_its_owner(log, other, owner):
    log.append("s", [Draft("session.created", {"user_id": owner} if owner else {}), note()])
    log.fork("s", "f")
    parent, fork = split(log, "f")
    missing = import_events(other, fork, link_parents=True)
    import_events(other, parent)
    report = import_events(other, fork, link_parents=True)

    assert (missing.failed, missing.problems[0].kind, report.new) == (1, "no_parent", 1)
    assert everything(other, ["f"]) == everything(log, ["f"])
    assert other.verify().ok


@pytest.mark.parametrize("owner", ["ada", None])
def test_nobody_links_to_a_session_of_another_user(log, other, owner):
    log.append("s", [Draft("session.created", {"user_id": owner} if owner else {}), note("secret")])
    log.fork("s", "f")
    log.append("f", [Draft("session.described", {"user_id": "eve"})])
    log.fork("f", "g")
    parent, fork = split(log, "f")
    import_events(other, parent)
    report = import_events(other, [*fork, *split(log, "g")[1][1:]], link_parents=True)

    assert (report.failed, report.events) == (2, 0)
    assert [problem.kind for problem in report.problems] == ["no_parent"] * 2
    assert other.head("f").version == other.head("g").version == 0


def test_nor_by_way_of_a_fork_of_his_that_is_in_the_file(log, memory):
    log.append("s", [Draft("session.created", {"user_id": "ada"}), note("secret")])
    log.fork("s", "f")
    log.fork("f", "g", version=1)
    log.append("g", [Draft("session.described", {"user_id": "eve"})])
    parent, forks = split(log, "f")
    import_events(memory, parent)
    report = import_events(memory, [*forks, *split(log, "g")[1][1:]], link_parents=True)

    assert (report.new, report.failed, memory.head("g").version) == (1, 1, 0)


def test_a_fork_does_not_go_on_from_another_parent(log, memory):
    log.append("s", notes(2))
    log.fork("s", "f")
    memory.append("s", notes(2))
    report = import_events(memory, split(log, "f")[1], link_parents=True)

    assert (report.failed, report.bad_lines, memory.head("f").version) == (1, 1, 0)


def test_another_namespace_is_told_before_anything_is_written(log):
    log.append("s", notes(1))
    with SessionLog("memory:", namespace="another") as another:
        with pytest.raises(InvalidEvent, match="the log is of 'another'"):
            import_events(another, log.export("s"))

        assert another.sessions() == []


def test_a_parent_that_is_deleted_while_its_fork_is_imported(log, other, monkeypatch):
    log.append("s", [note("secret")])
    log.fork("s", "f")
    moved(log, other, "s")
    adopt, deleted = store_of(other).adopt, []

    def late(adoption):
        if not deleted:
            deleted.append(other.delete("s"))
        return adopt(adoption)

    monkeypatch.setattr(store_of(other), "adopt", late)
    report = moved(log, other, "f")[0]

    assert (report.ok, report.new) == (True, 1)
    assert other.head("f").epoch == other.head("s").epoch == 1
    assert other.verify().ok


# ------------------------------------------------------------------------------------ many events


def test_a_long_session_is_recorded_in_parts(log, other, small_parts):
    ids = fill(log)
    moved(log, other, *(id for id in ids if id != "left"))

    assert everything(other, ids) == everything(log, ids)
    assert other.verify().ok


def test_an_import_that_is_killed_is_completed_by_another(log, other, small_parts, monkeypatch):
    fill(log)
    adopt, parts = store_of(other).adopt, []

    def dying(adoption):
        if len(parts) == 2:
            raise KeyboardInterrupt
        parts.append(adoption)
        return adopt(adoption)

    monkeypatch.setattr(store_of(other), "adopt", dying)
    with pytest.raises(KeyboardInterrupt):
        import_events(other, log.export("s"))
    assert other.head("s").version == 8
    monkeypatch.undo()
    report = import_events(other, log.export("s"))

    assert (report.extended, report.events) == (1, log.head("s").version - 8)
    assert everything(other, ["s"]) == everything(log, ["s"])


def test_nothing_of_a_long_session_is_written_if_its_last_line_is_bad(log, memory, small_parts):
    log.append("s", notes(50))
    report = import_events(memory, [*list(log.export("s"))[:-1], b"{}\n"])

    assert (report.failed, report.bad_lines, report.events) == (1, 1, 0)
    assert memory.head("s").version == 0


@pytest.mark.parametrize("lands", [False, True])
def test_a_lost_answer_is_looked_up(log, memory, monkeypatch, lands):
    log.append("s", notes(3))
    adopt, lost = store_of(memory).adopt, []

    def losing(adoption):
        if not lost:
            lost.append(lands and adopt(adoption))
            raise AnswerLost
        return adopt(adoption)

    monkeypatch.setattr(store_of(memory), "adopt", losing)
    report = import_events(memory, log.export("s"))

    assert (report.new, report.events) == (1, 3)
    assert everything(memory, ["s"]) == everything(log, ["s"])


def test_of_many_imports_at_once_each_session_is_there_once(log, other):
    fill(log)
    lines = list(log.export("fork of it"))
    reports = in_threads(4, lambda number: import_events(other, lines))

    assert all(report.ok for report in reports), reports
    assert everything(other, ["fork of it"]) == everything(log, ["fork of it"])
    assert other.verify().ok
