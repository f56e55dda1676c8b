"""Event types: what may be registered, what upcasters make of old events, and what is refused."""

from __future__ import annotations

import pickle
import traceback
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kern_events import Draft, Event, EventType, EventTypes, SessionLog, Split
from kern_events.errors import DecodeError, InvalidEvent, UnknownEventType, UpcastFailed


class Placed(msgspec.Struct, frozen=True):
    order: str
    customer: str


class Addressed(msgspec.Struct, frozen=True):
    street: str


def renamed(old: dict[str, Any]) -> dict[str, Any]:
    return {"order": old["order"], "customer": old["client"]}


def parted(old: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    street = old.pop("street", None)
    return [("order.placed", old), *([("order.addressed", {"street": street})] if street else [])]


TYPES = EventTypes(
    EventType("order.placed", Placed, 3, [renamed, Split(parted, {"order.placed": 3, "order.addressed": 1})]),
    EventType("order.addressed", Addressed),
    EventType("order.noted", None, 2, [lambda old: None]),
    EventType("chat.said", None, 2, [Split(lambda old: [("message.added", old)], {"message.added": 1})]),
)


def event_of(type: str, payload: Any, type_version: int = 1) -> Event:
    """An event as it comes out of a log that knows no types."""
    with SessionLog("memory:") as log:
        log.append("s", [Draft(type, payload, type_version=type_version)])
        return next(log.read("s"))


def test_upcasters_are_chained_up_to_the_version_of_today():
    [event] = TYPES.upcast(event_of("order.placed", {"order": "o1", "client": "ada"}))

    assert (event.type, event.type_version, event.payload) == ("order.placed", 3, Placed("o1", "ada"))


def test_one_event_may_become_several_of_one_identity():
    old = event_of("order.placed", {"order": "o1", "customer": "ada", "street": "Main"}, 2)

    placed, addressed = TYPES.upcast(old)

    assert (placed.payload, addressed.payload) == (Placed("o1", "ada"), Addressed("Main"))
    assert {(each.version, each.event_id, each.hash) for each in (placed, addressed)} == {
        (old.version, old.event_id, old.hash)
    }


def test_one_event_may_be_left_out_or_become_a_built_in_one():
    assert TYPES.upcast(event_of("order.noted", {"text": "x"})) == ()
    [said] = TYPES.upcast(event_of("chat.said", {"role": "user", "content": "Hi"}))
    assert (said.type, said.type_version, said.payload) == (
        "message.added",
        1,
        {"role": "user", "content": "Hi"},
    )


@pytest.mark.parametrize(
    ("type", "version"),
    [("order.placed", 4), ("order.placed", 3), ("else.happened", 1), ("message.added", 2)],
)
def test_what_is_current_newer_or_unknown_passes_through(type: str, version: int):
    event = event_of(type, {"any": 1}, version)

    assert TYPES.upcast(event) == (event,)
    assert TYPES.is_newer(event) == ((type, version) in {("order.placed", 4), ("message.added", 2)})


def fails(old: dict[str, Any]) -> dict[str, Any]:
    raise ZeroDivisionError("secret")


@pytest.mark.parametrize(
    "upcaster",
    [
        fails,
        lambda old: [("a.b", {})],
        lambda old: {"order": 5},
        Split(lambda old: [("order.addressed", {})], {"a.b": 2}),
        Split(lambda old: None, {}),  # type: ignore[arg-type,return-value]
        Split(lambda old: [("a.b", ["no", "object"])], {"a.b": 2}),  # type: ignore[list-item]
    ],
    ids=["raises", "no dict", "does not fit", "undeclared", "nothing", "part that is no object"],
)
def test_an_upcaster_that_fails_is_told_with_its_event_and_not_with_its_content(upcaster: Any):
    types = EventTypes(EventType("a.b", Placed, 2, [upcaster]))

    with pytest.raises(UpcastFailed) as caught:
        types.upcast(event_of("a.b", {"secret": 1}))

    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.session_id, error.version, error.type, error.type_version) == ("s", 1, "a.b", 1)
    assert "secret" not in str(error)
    assert caught.value.__cause__ is not None


def test_an_upcaster_has_a_payload_of_its_own():
    types = EventTypes(EventType("a.b", None, 2, [lambda old: old.clear() or {"left": 1}]))
    with SessionLog("memory:") as log:
        log.append("s", [Draft("a.b", {"kept": 1})])
        raw = next(log.read("s"))
        [made] = types.upcast(raw)

        assert made.payload == {"left": 1}
        assert next(log.read("s")).payload == {"kept": 1}


def up(old: dict[str, Any]) -> dict[str, Any]:
    return old


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: EventType("message.added"), "built in"),
        (lambda: EventType("", None), "0 bytes"),
        (lambda: EventType("a.b", None, 0), "a version is a number from 1"),
        (lambda: EventType("a.b", None, True), "a version is a number from 1"),
        (lambda: EventType("a.b", None, 3, [up]), "version 3 takes 2 upcasters"),
        (lambda: EventType("a.b", None, 1, [up]), "version 1 takes 0 upcasters"),
        (lambda: EventTypes(EventType("a.b"), EventType("a.b")), "twice"),
        (
            lambda: EventTypes(EventType("a.b", None, 2, [Split(parted, {"c.d": 1})])),
            "c.d 1, which does not exist",
        ),
        (
            lambda: EventTypes(EventType("a.b", None, 2, [Split(parted, {"a.b": 3})])),
            "a.b 3, which does not exist",
        ),
        (
            lambda: EventTypes(EventType("a.b", None, 2, [Split(parted, {"a.b": 0})])),
            "a.b 0, which does not exist",
        ),
        (
            lambda: EventTypes(EventType("a.b", None, 2, [Split(parted, {"message.added": 2})])),
            "does not exist",
        ),
        (
            lambda: EventTypes(EventType("a.b", None, 2, [Split(parted, {"turn.started": 1})])),
            "the log itself",
        ),
        (
            lambda: EventTypes(EventType("a.b", None, 2, [Split(parted, {"session.renamed": 1})])),
            "the log itself",
        ),
        (lambda: EventTypes(EventType("a.b", None, 2, [Split(parted, {"a.b": 1})])), "in a circle"),
        (lambda: EventTypes(EventType("a.b", None, 3, [up, Split(parted, {"a.b": 1})])), "in a circle"),
        (
            lambda: EventTypes(
                EventType("a.b", None, 2, [Split(parted, {"c.d": 1})]),
                EventType("c.d", None, 3, [up, Split(parted, {"e.f": 1})]),
                EventType("e.f", None, 2, [Split(parted, {"a.b": 1})]),
            ),
            "in a circle",
        ),
    ],
)
def test_what_cannot_be_right_is_refused_when_it_is_registered(make: Any, said: str):
    with pytest.raises(ValueError, match=said):
        make()


def test_a_log_takes_event_types_and_nothing_else():
    with pytest.raises(TypeError, match="EventTypes"):
        SessionLog("memory:", types=[EventType("a.b")])  # type: ignore[arg-type]


def test_a_draft_of_a_payload_says_its_type_and_version():
    draft = TYPES.draft(Placed("o1", "ada"), actor="me")

    assert (draft.type, draft.type_version, draft.actor) == ("order.placed", 3, "me")
    assert draft.payload == {"order": "o1", "customer": "ada"}
    with pytest.raises(TypeError, match="dict is the payload of no event type"):
        TYPES.draft({})


def test_what_was_drafted_is_read_back_as_it_was():
    with SessionLog("memory:", types=TYPES) as log:
        log.append("s", [TYPES.draft(Placed("o1", "ada")), TYPES.draft(Addressed("Main"))])
        placed, addressed = log.read("s")

    assert (placed.payload, addressed.payload) == (Placed("o1", "ada"), Addressed("Main"))
    assert TYPES.payload(placed, Placed) is placed.payload


@pytest.mark.parametrize(
    ("draft", "path"),
    [
        (Draft("order.placed", {"order": "o1", "customer": "ada"}), "drafts[1].type_version"),
        (Draft("order.placed", {"order": "o1", "customer": "ada"}, type_version=4), "drafts[1].type_version"),
        (Draft("order.placed", {"order": "o1"}, type_version=3), "drafts[1].payload"),
        (Draft("order.placed", {"order": "o1", "customer": 7}, type_version=3), "drafts[1].payload"),
    ],
)
def test_what_would_not_be_read_back_is_not_recorded(draft: Draft, path: str):
    with SessionLog("memory:", types=TYPES) as log:
        with pytest.raises(InvalidEvent) as caught:
            log.append("s", [Draft("else.happened", {}), draft])

        assert caught.value.path == path
        assert log.head("s").version == 0


def test_a_row_that_does_not_fit_its_type_is_told():
    with SessionLog("memory:", types=TYPES) as log:
        log.append("s", [TYPES.draft(Placed("o1", "ada"))])
        strict = SessionLog("memory:", types=EventTypes(EventType("order.placed", Addressed, 3, [up, up])))
        strict._store = log._store  # type: ignore[misc]

        with pytest.raises(DecodeError):
            list(strict.read("s"))


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    kind: Literal["a", "b"] = "a"
    shape: Square | Circle | None = None
    count: int = 0

    def __post_init__(self) -> None:
        if self.count == 7:
            raise ValueError(f"hunter2 was here, {self.count} times - at `$.hunter2`")


class Square(msgspec.Struct, tag="square"):
    size: int


class Circle(msgspec.Struct, tag="circle"):
    size: int


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({"kind": "hunter2"}, "a value does not fit - at `$.kind`"),
        ({"shape": {"type": "hunter2"}}, "a value does not fit - at `$.shape.type`"),
        ({"hunter2": 1}, "a value does not fit"),
        ({"count": 7}, "a value does not fit"),
        ({"count": "hunter2"}, "Expected `int`, got `str` - at `$.count`"),
        ({"shape": {"type": "square"}}, "Object missing required field `size` - at `$.shape`"),
    ],
)
def test_what_does_not_fit_is_named_by_its_place_and_not_quoted(payload: dict[str, Any], said: str):
    types = EventTypes(EventType("a.b", Strict))
    with SessionLog("memory:", types=types) as log, pytest.raises(InvalidEvent) as refused:
        log.append("s", [Draft("a.b", payload)])
    with SessionLog("memory:") as log:
        log.append("s", [Draft("a.b", payload)])
        strict = SessionLog("memory:", types=types)
        strict._store = log._store  # type: ignore[misc]
        with pytest.raises(DecodeError) as unreadable:
            list(strict.read("s"))
    with pytest.raises(UpcastFailed) as failed:
        EventTypes(EventType("a.b", Strict, 2, [up])).upcast(event_of("a.b", payload))

    assert refused.value.reason == f"a.b of version 1: {said}"
    for error in (refused, unreadable, failed):
        shown = "".join(traceback.format_exception(error.value))
        assert said in shown and "hunter2" not in shown


def test_typed_access_is_to_known_types_alone():
    with pytest.raises(UnknownEventType):
        TYPES.payload(event_of("else.happened", {}), Placed)
    with pytest.raises(UnknownEventType):
        TYPES.payload(event_of("order.placed", {}, 4), Placed)
    with pytest.raises(UnknownEventType):
        TYPES.payload(event_of("order.placed", {}, 3), Addressed)


def test_the_digest_names_types_and_versions():
    one, two = EventTypes(EventType("a.b")), EventTypes(EventType("a.b", None, 2, [up]))

    assert len({one.digest, two.digest, TYPES.digest, EventTypes().digest}) == 4
    assert EventTypes(EventType("a.b")).digest == one.digest
    assert (
        EventTypes(EventType("c.d"), EventType("a.b")).digest
        == EventTypes(EventType("a.b"), EventType("c.d")).digest
    )


@given(st.integers(1, 6), st.data())
def test_a_chain_of_any_length_applies_each_step_once(version: int, data: st.DataObject):
    chain = [lambda old, step=step: {"steps": [*old["steps"], step]} for step in range(1, version)]
    types = EventTypes(EventType("a.b", None, version, chain))
    start = data.draw(st.integers(1, version))

    [made] = types.upcast(event_of("a.b", {"steps": []}, start))

    assert made.payload == {"steps": list(range(start, version))}
    assert made.type_version == version
