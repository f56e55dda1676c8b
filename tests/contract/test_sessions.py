"""The sessions there are: order, pages, columns, and namespaces."""

from __future__ import annotations

import pytest

from kern_events import Draft
from kern_events.errors import InvalidEvent, SessionNotFound
from tests.facade import only_on
from tests.writers import note, notes, texts

HOUR_US = 3_600_000_000


def ids(sessions):
    return [info.session_id for info in sessions]


def created(**columns):
    return Draft("session.created", columns)


def all_pages(log, limit, **filters):
    pages = []
    while page := log.sessions(limit=limit, after=pages[-1][-1].cursor if pages else None, **filters):
        pages.append(page)
    return pages


def test_the_most_recently_active_come_first(log, clock):
    for name in "abc":
        clock.now_us += 1
        log.append(name, notes(1))
    clock.now_us += 1
    log.append("a", notes(1))

    assert ids(log.sessions()) == ["a", "c", "b"]


@pytest.mark.parametrize("step_us", [0, 1, HOUR_US // 3, HOUR_US])
@pytest.mark.parametrize("limit", [1, 3, 7])
def test_pages_join_to_the_whole(log, clock, step_us, limit):
    for number in range(7):
        clock.now_us += step_us
        log.append(f"s{number}", notes(1))

    pages = all_pages(log, limit)
    assert [len(page) for page in pages[:-1]] == [limit] * (len(pages) - 1)
    whole = [f"s{number}" for number in range(7)]
    assert [one for page in pages for one in ids(page)] == (whole[::-1] if step_us else whole)


def test_a_page_says_what_the_head_rows_say(log, clock):
    log.append("s", [created(session_type="agent", agent_id="a", team_id="t", workflow_id="w", user_id="u")])
    began = clock.now_us
    clock.now_us += 5
    log.append("s", [Draft("turn.started", {}), Draft("session.renamed", {"name": "Zwölf \x07 Boxkämpfer"})])

    [info] = log.sessions()
    assert (info.session_type, info.agent_id, info.team_id, info.workflow_id, info.user_id) == tuple(
        ["agent", "a", "t", "w", "u"]
    )
    assert (info.name, info.status, info.version, info.turn) == ("Zwölf \x07 Boxkämpfer", "open", 3, 1)
    assert (info.created_us, info.updated_us) == (began, clock.now_us)
    assert info.updated_at > info.created_at


def test_later_events_change_what_they_name(log):
    log.append("s", [created(user_id="u", agent_id="a", name="first")])
    log.append("s", [Draft("session.described", {"agent_id": None, "team_id": "t"})])
    renamed = [Draft("session.renamed", {"name": name}) for name in ("second", None)]
    log.append("s", [renamed[0], note(), renamed[1]])

    [info] = log.sessions()
    assert (info.user_id, info.agent_id, info.team_id, info.name) == ("u", None, "t", None)
    assert log.verify().ok


@pytest.mark.parametrize(
    "columns",
    [{"user_id": 1}, {"user_id": ""}, {"agent_id": "a\nb"}, {"name": "a\0b"}, {"name": "x" * 1_001}],
)
def test_columns_that_cannot_be_listed_are_refused(log, columns):
    with pytest.raises(InvalidEvent) as caught:
        log.append("s", [created(**columns)])

    assert caught.value.path == f"drafts[0].payload.{next(iter(columns))}"
    assert log.sessions() == []


def test_the_sessions_of_one_user(log):
    for number in range(6):
        log.append(f"s{number}", [created(user_id=("ada", "bob", "'; --")[number % 3])])

    assert sorted(ids(log.sessions(user_id="bob"))) == ["s1", "s4"]
    assert sorted(ids(log.sessions(user_id="'; --"))) == ["s2", "s5"]
    assert log.sessions(user_id="nobody") == []
    assert [len(page) for page in all_pages(log, 1, user_id="ada")] == [1, 1]


def test_a_closed_session_is_listed_and_a_deleted_one_is_not(log):
    for name in "abc":
        log.append(name, notes(1))
    log.append("a", [Draft("session.closed", {})])
    log.delete("b")

    assert {info.session_id: info.status for info in log.sessions()} == {"a": "closed", "c": "open"}


@pytest.mark.parametrize("cursor", ["", "x", "1", "-1:s", "1.5:s", "s:1"])
def test_what_is_no_cursor_is_refused(log, cursor):
    with pytest.raises(ValueError, match="cursor"):
        log.sessions(after=cursor)


def test_a_cursor_may_hold_any_id(log, clock):
    for name in ("a:b", "a'b", "a%b", "a"):
        log.append(name, notes(1))

    assert [one for page in all_pages(log, 1) for one in ids(page)] == ["a", "a%b", "a'b", "a:b"]


@only_on("sqlite", "postgres")
def test_namespaces_see_nothing_of_each_other(open_log, address):
    mine, yours = open_log(), open_log(namespace=f"{address.namespace}x")
    mine.append("s", [note("mine"), created(user_id="u")])
    yours.append("s", [note("yours")], expected=0)
    yours.append("only", notes(1))
    yours.delete("only")

    assert (texts(mine.read("s")), texts(yours.read("s"))) == (["mine"], ["yours"])
    assert (ids(mine.sessions()), ids(yours.sessions())) == (["s"], ["s"])
    assert yours.sessions(user_id="u") == []
    assert texts(mine.read_all()) == ["mine"]
    assert (mine.verify().events, yours.verify().events) == (2, 3)
    with pytest.raises(SessionNotFound):
        mine.delete("only")
    assert mine.head("s").hash != yours.head("s").hash


def test_a_parameter_of_another_type_is_refused_by_its_name(log):
    log.append("s", notes(1))
    for verb, values in (
        (log.sessions, {"after": 5}), (log.sessions, {"limit": "1"}),
        (log.read, {"session_id": "s", "after": None}), (log.read, {"session_id": "s", "until": 1.5}),
        (log.read_all, {"after": None}), (log.subscribe, {"after": None}),
        (log.sessions, {"limit": None}), (log.append_many, {"appends": None}),
        (log.append_many, {"appends": [("s", notes(1))]}), (log.append_many, {"appends": 5}),
        (log.append, {"session_id": "s", "drafts": None}), (log.append, {"session_id": "s", "drafts": 5}),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=f"^{list(values)[-1]} is "):
            list(verb(**values))
    for path in ({"a": 1}, {"a"}, 5, b"a"):
        with pytest.raises(InvalidEvent, match="path"), log.turn("t") as turn:
            turn.set_state(path, 1)
