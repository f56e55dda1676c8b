"""Pages end by bytes as well as by rows: large events are read a few at a time, by every verb."""

from __future__ import annotations

import tracemalloc

import pytest

from kern_events import Draft, import_events, message, spi
from kern_events.store import base
from projections import Sessions
from tests.bundles import everything, restore
from tests.facade import store_of, sync_of
from tests.writers import note, pick

PAGE = 4_000
LARGEST = 1_600  # of an event here
READERS = ("rows", "tail", "feed", "marks")


@pytest.fixture
def pages(monkeypatch, open_log):
    """A log of small pages, and the bytes of each page that is read."""
    monkeypatch.setattr(base, "PAGE_BYTES", PAGE)
    log, read = open_log(), []
    store = store_of(log)

    def watched(function):
        def watching(*args):
            found = function(*args)
            page = found[1] if isinstance(found, tuple) else found
            read.append(page.size_bytes)
            return found

        return watching

    for name in READERS:
        monkeypatch.setattr(store, name, watched(getattr(store, name)))
    return log, read


def large(number):
    """A draft whose bytes are in its payload, beside it, or in what is said about it."""
    kinds = [{"text": "x" * 1_200}, {"native": b"x" * 1_200}, {"meta": {"m": "x" * 1_200}}, {"text": number}]
    return note(**{"text": number, **kinds[number % 4]})


def texts_of(events):
    return [event.payload["text"] for event in events if event.type == "note.taken"]


def consumed(log):
    taken = []
    log.consumer("c", taken.extend).run(until_idle=True)
    return taken


def followed(log, count):
    """What a subscription gives, batch by batch."""
    subscription, taken = log.subscribe(), []
    while len(taken) < count:
        taken += subscription.batch(timeout_s=60)
    subscription.close()
    return taken


VERBS = {
    "read": lambda log: list(log.read("s")),
    "read_all": lambda log: list(log.read_all()),
    "subscribe": lambda log: followed(log, 30),
    "consumer": consumed,
    "tail": lambda log: paged(log),
}


def paged(log):
    log, events = sync_of(log), []
    while found := spi.tail(log, "s", len(events)).events:
        events += found
    return events


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_large_is_read_a_few_events_at_a_time(pages, verb):
    log, read = pages
    drafts = [large(number) for number in range(30)]
    log.append("s", drafts)
    found = VERBS[verb](log)

    assert texts_of(found) == [draft.payload["text"] for draft in drafts]
    assert len(read) > 4 and max(read) < PAGE + LARGEST


@pytest.mark.parametrize("seed", range(3))
def test_pages_of_all_sizes_leave_nothing_out(pages, seed):
    log, read = pages
    chance = pick(("sizes", seed))
    sizes = [chance.choice([0, 1, 3, 5, 100, 1_500]) for _ in range(60)]
    log.append("s", [note("x" * size) for size in sizes])
    after = chance.randrange(60)

    assert [len(text) for text in texts_of(log.read("s"))] == sizes
    assert [len(text) for text in texts_of(log.read("s", after=after, limit=9))] == sizes[after : after + 9]
    assert [len(text) for text in texts_of(log.read_all(limit=50))] == sizes[:50]
    assert max(read) < PAGE + LARGEST


def test_the_other_verbs_take_small_pages_too(pages, address):
    log, read = pages
    log.append("s", [large(number) for number in range(20)])
    for _ in range(8):
        spi.restore(sync_of(log), "s", 9, {"metadata": {"m": "x" * 1_200}}, log.head("s"), actor=None)
    tree = log.branches("s")
    log.fork("s", "f")
    lines = list(log.export("f"))

    assert [branch.first_version for branch in tree.branches] == [1, *range(21, 29)]
    assert log.verify().ok
    with type(sync_of(log))("memory:", namespace=address.namespace) as other:
        assert import_events(other, lines).ok
        assert everything(other, ["s", "f"]) == everything(log, ["s", "f"])
    log.delete("s")
    assert not any(row[14] for row in everything(log, ["s"])["s"][1][:-1])
    assert max(read) < PAGE + LARGEST


def test_a_view_of_what_is_large_is_the_same(pages, address, backend):
    log, _ = pages
    for number in range(6):
        with log.turn("s") as turn:
            turn.message("user", "x" * 1_500)
            turn.message("assistant", str(number))
    restore(log, "s", 13)
    log.append("s", [Draft("turn.started", {}), message("user", "more")])
    if backend != "memory":
        with Sessions(address.url, namespace=address.namespace) as sessions:
            view = sessions.load("s")

            assert [len(message.content) for message in view.messages] == [1_500, 1] * 3 + [4]
            assert [step[0].version for step in sessions.replay("s")][-3:] == [26, 27, 28]
    assert log.verify().ok


@pytest.mark.long
@pytest.mark.parametrize("verb", VERBS)
def test_events_of_a_megabyte_take_no_more_memory_than_some_pages(log, verb):
    for number in range(30):
        log.append("s", [note(str(number) * 500_000)])
    tracemalloc.start()
    try:
        found = next(iter(sync_of(log).read("s"))) if verb == "read" else VERBS[verb](sync_of(log))[-1]
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert found.type == "note.taken"
    assert held < (64 << 20) + (30 << 20) * (verb != "read")
