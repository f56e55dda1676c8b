"""Event types and projectors change: old rows are read by new code, and new ones beside old code.

Version 1 of a shop has three event types; in version 3 a field of one has another name, another one was
split in two, and one is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from kern_events import Draft, EventType, EventTypes, Split, message
from kern_events.errors import UpcastFailed
from projections import Sessions
from tests import facade
from tests.contract.conftest import Address


class PlacedV1(msgspec.Struct, frozen=True):
    order: str
    client: str


class PlacedV3(msgspec.Struct, frozen=True):
    order: str
    customer: str
    currency: str


class Shipped(msgspec.Struct, frozen=True):
    order: str


class Paid(msgspec.Struct, frozen=True):
    order: str
    cents: int


V1 = EventTypes(
    EventType("order.placed", PlacedV1),
    EventType("order.settled"),
    EventType("order.noted"),
)
V3 = EventTypes(
    EventType(
        "order.placed",
        PlacedV3,
        3,
        [
            lambda old: {"order": old["order"], "customer": old["client"]},
            lambda old: {**old, "currency": "EUR"},
        ],
    ),
    EventType(
        "order.settled",
        None,
        2,
        [
            Split(
                lambda old: [
                    ("order.shipped", {"order": old["order"]}),
                    ("order.paid", {"order": old["order"], "cents": old["cents"]}),
                ],
                {"order.shipped": 1, "order.paid": 1},
            )
        ],
    ),
    EventType("order.noted", None, 2, [lambda old: None]),
    EventType("order.shipped", Shipped),
    EventType("order.paid", Paid),
)


class OrdersV1:
    """What was ordered by whom, as the first version of the shop saw it."""

    name, version, scope = "orders", 1, "live"
    view_type = dict[str, Any]

    def initial(self) -> dict[str, Any]:
        return {}

    def evolve(self, view: dict[str, Any], event: Any) -> dict[str, Any]:
        if event.type == "order.placed":
            return {**view, event.payload.order: event.payload.client}
        return view

    def unreadable(self, view: dict[str, Any], event: Any) -> dict[str, Any]:
        return {**view, "incomplete": True}


class OrdersV3:
    """Customers, currencies, what was shipped and paid: as the third version sees it."""

    name, version, scope = "orders", 3, "live"
    view_type = dict[str, Any]

    def initial(self) -> dict[str, Any]:
        return {"events": 0}

    def evolve(self, view: dict[str, Any], event: Any) -> dict[str, Any]:
        view = {**view, "events": view["events"] + 1}
        match event.payload:
            case PlacedV3(order, customer, currency):
                return {**view, order: {"customer": customer, "currency": currency}}
            case Shipped(order):
                return {**view, order: {**view[order], "shipped": True}}
            case Paid(order, cents):
                return {**view, order: {**view[order], "cents": cents}}
        return view


OLD = [
    message("user", "One of those.", id="m1"),
    Draft("order.placed", {"order": "o1", "client": "ada"}),
    Draft("order.noted", {"text": "in a hurry"}),
    Draft("order.settled", {"order": "o1", "cents": 500}),
]
NEW = [
    message("user", "One of those.", id="m1"),
    V3.draft(PlacedV3("o1", "ada", "EUR")),
    V3.draft(Shipped("o1")),
    V3.draft(Paid("o1", 500)),
]


@pytest.fixture
def opened(
    facade_kind: str, address: Address, loop: facade.LoopThread
) -> Iterator[Callable[[str, EventTypes], Any]]:
    """Opens the sessions of a place with event types, as often as a test likes."""
    with ExitStack() as stack:
        stores: dict[str, Any] = {}

        def opening(place: str, types: EventTypes) -> Any:
            url, namespace = address.url, f"{address.namespace}{place}"
            made = facade.open_sessions(facade_kind, loop, url, namespace=namespace, types=types)
            sessions = stack.enter_context(made)
            if address.backend == "memory":  # Each log has a store of its own: they are to share one.
                sync = sync_of(sessions)
                sync._store = stores.setdefault(place, sync._store)  # type: ignore[misc]
            return sessions

        yield opening


def sync_of(sessions: Any) -> Sessions:
    return sessions if isinstance(sessions, Sessions) else sessions.inner._sessions


def rows_of(sessions: Any) -> list[Any]:
    sync = sync_of(sessions)
    return list(sync._store.rows(sync.namespace, "s", 0, None, 100))


def shown(view: Any) -> dict[str, Any]:
    """A session view without what is of its events' place and time."""
    messages = [replace(each, version=0, at_us=0) for each in view.messages]
    kept = ("state", "turn", "user_id", "name", "usage", "incomplete", "problems")
    return {"messages": messages, **{field: getattr(view, field) for field in kept}}


def test_old_rows_are_read_by_new_code_and_stay_as_they_are(opened: Any) -> None:
    old, new, fresh = opened("a", V1), opened("a", V3), opened("b", V3)
    old.append("s", OLD)
    before = rows_of(old)
    fresh.append("s", NEW)

    assert new.load("s", projector=OrdersV3()) == fresh.load("s", projector=OrdersV3())
    assert shown(new.load("s")) == shown(fresh.load("s"))
    assert not new.load("s").incomplete
    assert [each.payload for each in new.read("s")] == [each.payload for each in fresh.read("s")]
    assert [each.payload for each in new.read_all()] == [each.payload for each in fresh.read_all()]
    assert rows_of(new) == before
    new.verify("s").check()


def test_old_code_goes_on_beside_new_code_and_says_what_it_cannot_read(opened: Any) -> None:
    old, new = opened("a", V1), opened("a", V3)
    old.append("s", OLD[:2])
    complete = old.load("s", projector=OrdersV1())
    new.append("s", [V3.draft(PlacedV3("o2", "bob", "USD"))])
    old.append("s", [Draft("order.placed", {"order": "o3", "client": "eve"})])

    assert complete == {"o1": "ada"}
    assert old.load("s", projector=OrdersV1()) == {"o1": "ada", "o3": "eve", "incomplete": True}
    seen = old.load("s")
    assert seen.incomplete
    assert seen.problems == ("version 3, order.placed: a newer type version, 3",)
    assert [each.payload for each in old.read("s", after=2, limit=1)] == [
        {"order": "o2", "customer": "bob", "currency": "USD"}
    ]
    assert new.load("s", projector=OrdersV3())["o3"] == {"customer": "eve", "currency": "EUR"}
    assert not new.load("s").incomplete


def test_every_point_of_an_old_session_is_that_of_a_fresh_one(opened: Any) -> None:
    old, new, fresh = opened("a", V1), opened("a", V3), opened("b", V3)
    old.append("s", OLD)
    fresh.append("s", NEW)

    # Version 3 is the one that is left out, version 4 the one that became two.
    for version, same in ((1, 1), (2, 2), (3, 2), (4, 4)):
        before = new.load("s", version=version, projector=OrdersV3())
        assert before == fresh.load("s", version=same, projector=OrdersV3())
        assert new.load("s", version=version).version == version
    steps = list(new.replay("s", projector=OrdersV3()))
    assert [view for _, view in steps] == [view for _, view in fresh.replay("s", projector=OrdersV3())]
    assert [event.version for event, _ in steps] == [1, 2, 4, 4]


def test_views_of_old_and_of_new_code_are_kept_apart(opened: Any) -> None:
    old, new = opened("a", V1), opened("a", V3)
    old.append("s", OLD)
    for _ in range(2):
        assert old.load("s", projector=OrdersV1()) == {"o1": "ada"}
        assert new.load("s", projector=OrdersV3())["events"] == 4


def test_an_upcaster_that_fails_harms_its_own_sessions_alone(opened: Any) -> None:
    old = opened("a", V1)
    old.append("s", OLD)
    old.append("t", OLD[:1])
    broken = opened("a", EventTypes(EventType("order.placed", None, 2, [lambda old: old["absent"]])))

    with pytest.raises(UpcastFailed) as caught:
        broken.load("s")

    assert (caught.value.session_id, caught.value.version) == ("s", 2)
    assert broken.load("t").messages[0].content == "One of those."
    assert broken.append("s", [message("user", "Still there?")]).version == 5


def test_an_erased_event_of_an_old_version_is_passed_through(opened: Any) -> None:
    old, new = opened("a", V1), opened("a", V3)
    old.append("s", OLD)
    old.delete("s")
    new.append("s", [Draft("session.created", {}), V3.draft(Shipped("o1"))])

    assert [each.erased for each in new.read("s")] == [True] * 4 + [False] * 3
    assert not new.load("s").incomplete
