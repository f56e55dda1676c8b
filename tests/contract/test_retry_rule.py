"""The retry rule: whatever answers are lost and whatever arrives late, 0 lost and 0 doubled.

2,000 random schedules of lost answers, late requests and other writers go through the log's own
verbs over a store in memory behind a bad line; with `--long` 20,000. A control that reads the head
again after a lost answer, instead of staying at its base, has to double in the same schedules.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from itertools import pairwise

import pytest

from kern_events import AsyncSessionLog, Draft, SessionLog
from kern_events.errors import (
    AppendUnresolved,
    SessionClosed,
    SessionExists,
    SessionNotFound,
    StoreBusy,
    StoreError,
    StoreUnavailable,
    VersionConflict,
)
from kern_events.store.base import AnswerLost, Landed
from tests import facade, faults
from tests.writers import findings, note, pick

SCHEDULES = [pytest.param(2_000, id="2000"), pytest.param(20_000, id="20000", marks=pytest.mark.long)]
CLEAN = {"lost": 0, "doubled": 0, "wrong": 0}


@pytest.fixture(autouse=True)
def impatient():
    """See tests/faults.py."""
    with faults.impatient():
        yield


@pytest.fixture(params=facade.FACADES)
def opening(request, loop):
    """How the log under test is put over a store."""
    if request.param == "sync":
        return over
    return lambda store: facade.Blocking(loop, AsyncSessionLog(over(store)))


def over(store):
    log = SessionLog("memory:")
    log._store = store
    return log


class Schedule:
    """One log behind a bad line, other writers beside it, and an account of what became of what."""

    def __init__(self, seed, opening):
        self.chance = pick(seed)
        self.honest = SessionLog("memory:")
        self.line = faults.FaultyStore(self.honest._store, self.chance, self.others)
        self.log = opening(self.line)
        self.asides = 0
        self.recorded = []  # session, drafts, receipt
        self.refused = []  # drafts that must never be there

    def others(self):
        self.asides += 1
        drafts = [Draft("session.created", {}), note(f"aside {self.asides}")]
        self.honest.append(self.chance.choice("st"), drafts)

    def drafts(self):
        return [note(number) for number in range(self.chance.randint(1, 3))]

    def expected(self, session_id):
        head = self.honest.head(session_id)
        return self.chance.choice([None, None, head.version, head])

    def account(self):
        """Everything that is under way arrives; then the receipts are held against the log."""
        self.line.settle()
        events = list(self.honest.read_all())
        times = Counter(event.event_id for event in events)
        found = Counter(lost=0, doubled=0, wrong=0, faults=self.line.faults)
        for session_id, drafts, receipt in self.recorded:
            behind = list(self.honest.read(session_id, after=receipt.first_version - 1, limit=len(drafts)))
            found["lost"] += sum(times[draft.event_id] == 0 for draft in drafts)
            found["doubled"] += sum(times[draft.event_id] > 1 for draft in drafts)
            found["wrong"] += [one.event_id for one in behind] != [one.event_id for one in drafts]
            found["wrong"] += (behind[-1].version, behind[-1].hash) != (receipt.version, receipt.hash)
        found["wrong"] += sum(times[draft.event_id] for draft in self.refused)
        said = Counter(None if event.erased else event.payload.get("text") for event in events)
        found["lost"] += sum(said[f"aside {number}"] != 1 for number in range(1, self.asides + 1))
        assert not findings(self.honest)
        self.honest.close()
        return found


def play(name, count, opening, act):
    """The account of so many schedules."""
    total = Counter()
    for number in range(count):
        schedule = Schedule((name, number), opening)
        for step in range(schedule.chance.randint(1, 4)):
            act(schedule, step)
        total.update(schedule.account())
    return total


# ------------------------------------------------------------------------------------- appends


def append(schedule, step):
    """One append; where it is unresolved it is called again, as the error says, until it is not."""
    drafts, expected, unresolved = schedule.drafts(), schedule.expected("s"), False
    while True:
        try:
            receipt = schedule.log.append("s", drafts, expected=expected)
        except AppendUnresolved as error:
            expected, unresolved = error.base, True
        except VersionConflict:
            assert expected is not None
            schedule.refused += drafts
            return
        except StoreUnavailable:
            if not unresolved:
                schedule.refused += drafts  # It says that nothing was written.
                return
        else:
            schedule.recorded.append(("s", drafts, receipt))
            return


def append_naively(schedule, step):
    """The control: it looks whether its events landed; if not, it goes to the head of that moment."""
    drafts = schedule.drafts()
    batch, line = schedule.log._prepare("s", drafts), schedule.line
    while True:
        base = line.head(batch.namespace, "s")
        try:
            answer = line.attempt(batch, base)
        except AnswerLost as lost:
            events = list(schedule.honest.read_all())
            landed = [event for event in events if event.event_id == drafts[-1].event_id]
            assert lost.base == (base or lost.base)
            if not landed:
                continue
            place = landed[0].version
            schedule.recorded.append(("s", drafts, receipt_at(batch, place - len(drafts) + 1, landed[0])))
            return
        if isinstance(answer, Landed):
            schedule.recorded.append(("s", drafts, answer.receipt))
            return


def receipt_at(batch, first_version, last):
    from kern_events import Receipt

    return Receipt(batch.namespace, batch.session_id, first_version, last.version, last.hash, last.position)


@pytest.mark.parametrize("count", SCHEDULES)
def test_appends_are_neither_lost_nor_doubled(opening, count):
    total = play("append", count, opening, append)

    assert total.pop("faults") > count  # The line was as bad as it should be.
    assert total == CLEAN


@pytest.mark.parametrize("count", SCHEDULES)
def test_the_control_that_reads_the_head_again_doubles(count):
    total = play("append", count, over, append_naively)

    assert total["doubled"] > count / 50


# ------------------------------------------------------------------------------- keys and many


def deliver(schedule, step):
    """What a queue does: the drafts are made anew each time, until a delivery is acknowledged."""
    while True:
        drafts = [note(f"job {step}"), note("more")]
        try:
            receipt = schedule.log.append("s", drafts, idempotency_key=f"k{step}")
        except StoreUnavailable:
            continue
        recorded = [
            event for event in schedule.honest.read("s") if event.payload.get("text") == f"job {step}"
        ]
        assert [event.version for event in recorded] == [receipt.first_version]
        schedule.jobs = {**getattr(schedule, "jobs", {}), f"job {step}": receipt}
        return


def deliveries(schedule, step):
    deliver(schedule, step)
    schedule.line.settle()
    said = Counter(event.payload.get("text") for event in schedule.honest.read("s"))
    assert all(said[job] == 1 for job in schedule.jobs)


@pytest.mark.parametrize("count", SCHEDULES)
def test_deliveries_with_a_key_are_neither_lost_nor_doubled(opening, count):
    total = play("deliver", count, opening, deliveries)

    assert total.pop("faults") > count
    assert total == CLEAN


def append_many(schedule, step):
    """One append to two sessions, or to one; where it is unresolved it is called again, as the error says."""
    sessions, unresolved = "st"[: schedule.chance.randint(1, 2)], False
    appends = [(one, schedule.drafts(), schedule.expected(one)) for one in sessions]
    while True:
        try:
            receipts = schedule.log.append_many(appends)
        except AppendUnresolved as error:
            appends = [(one, drafts, error.bases[one]) for one, drafts, _ in appends]
            unresolved = True
        except VersionConflict:
            assert any(expected is not None for *_, expected in appends)
            break
        except StoreError:
            if not unresolved:
                break  # It says that nothing was written.
        else:
            for (one, drafts, _), receipt in zip(appends, receipts, strict=True):
                schedule.recorded.append((one, drafts, receipt))
            return
    schedule.refused += [draft for _, drafts, _ in appends for draft in drafts]


@pytest.mark.parametrize("count", SCHEDULES)
def test_appends_to_many_are_neither_lost_nor_doubled(opening, count):
    total = play("many", count, opening, append_many)

    assert total.pop("faults") > count
    assert total == CLEAN


# ------------------------------------------------------------------------------------- endings


def delete(schedule, step):
    schedule.honest.append("s", [Draft("session.created", {}), note("secret")])
    before, nothing = deletions(schedule), False
    try:
        schedule.log.delete("s")
    except AppendUnresolved:
        pass  # It may come late: it must not come twice.
    except (StoreUnavailable, StoreBusy, SessionNotFound):
        nothing = True  # All of them say that nothing was written.
    schedule.line.settle()
    assert deletions(schedule) - before <= (not nothing)


def deletions(schedule):
    return sum(event.type == "session.deleted" for event in schedule.honest.read_all())


def test_a_deletion_is_recorded_once(opening):
    def act(schedule, step):
        delete(schedule, step)
        types = [event.type for event in schedule.honest.read_all() if event.session_id == "s"]
        assert ("session.deleted", "session.deleted") not in pairwise(types)

    assert play("delete", 2_000, opening, act)["faults"] > 1_000


def fork(schedule, step):
    """One fork of a session that others append to and delete meanwhile; then everything arrives."""
    into, honest = f"f{step}", schedule.honest
    honest.append("s", [Draft("session.created", {"name": "secret"}), note()])
    schedule.line.others = lambda: disturb(schedule, into)
    outcome = None
    try:
        outcome = schedule.log.fork("s", into, actor="ours")
    except AppendUnresolved:
        outcome = "unresolved"
    except (SessionExists, SessionNotFound, StoreUnavailable):
        pass  # All of them say that nothing was written.
    schedule.line.settle()
    events = [event for event in honest.read_all() if event.session_id == into and event.actor == "ours"]
    assert len(events) <= (outcome is not None)
    assert outcome in (None, "unresolved") or outcome.hash == events[0].hash
    if events and honest.head(into).status == "open":
        # Of what was deleted it says nothing: it was erased with it, or begun after it.
        assert events[0].erased or events[0].payload["metadata"] == {}
        assert honest.head(into).epoch == honest.head("s").epoch


def disturb(schedule, into):
    with contextlib.suppress(SessionNotFound, SessionExists):
        match schedule.chance.randrange(6):
            case 0:
                schedule.honest.delete("s")
            case 1:
                schedule.honest.append("s", [Draft("session.created", {}), note()])
            case 2 if schedule.chance.random() < 0.3:
                schedule.honest.fork("s", into, actor="theirs")


@pytest.mark.parametrize("count", SCHEDULES)
def test_forks_are_neither_lost_nor_doubled_nor_denied(opening, count):
    total = play("fork", count, opening, fork)

    assert total.pop("faults") > count
    assert total == CLEAN


def test_nothing_late_lands_behind_a_closing(opening):
    def act(schedule, step):
        closing = [Draft("session.closed", {})]
        honest = schedule.honest
        schedule.line.others = lambda: honest.head("s").status == "open" and honest.append("s", closing)
        with contextlib.suppress(SessionClosed, StoreUnavailable):
            schedule.log.append("s", [note("late")])

    def closed_last(schedule, step):
        act(schedule, step)
        schedule.line.settle()
        types = [event.type for event in schedule.honest.read_all() if event.session_id == "s"]
        assert "session.closed" not in types[:-1]

    assert play("close", 500, opening, closed_last)["faults"] > 250
