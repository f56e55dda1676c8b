"""The turn that everything is measured with: 8 events, about 3.5 kB of payload.

A support agent of an airline is asked something, looks flights up and answers. The text is made
up from a seed, so every run and every machine records the same bytes.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import orjson

from kern_events import Draft, SessionLog, message, state_changed, tool_called, tool_returned

SEED: Final = 20_250_301
SESSION: Final = "session-0001"
_VARIANTS: Final = 256
_CITIES: Final = (
    "Amsterdam", "Barcelona", "Cape Town", "Denver", "Edinburgh", "Frankfurt", "Guadalajara", "Helsinki",
    "Istanbul", "Jakarta", "Kyoto", "Lisbon", "Montréal", "Nairobi", "Oslo", "Porto", "Quito", "Reykjavík",
    "San José", "Toronto", "Utrecht", "Vienna", "Warsaw", "Zürich",
)  # fmt: skip
_NAMES: Final = ("Ada Byron", "Grace Hopper", "Noor Khan", "José Álvarez", "Mei Lin", "Olu Adeyemi")
_LETTERS: Final = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
_CABINS: Final = ("basic economy", "economy", "business")
_AIRCRAFT: Final = ("A320neo", "A350-900", "B737-800", "E195-E2")
_ASKED: Final = (
    "Hi, I need to move my trip to {there}; the reservation is {booking} and the name is {name}.",
    "Could you please look for something that leaves {here} after {hour} on the {day} of May?",
    "I would rather not change planes more than once, and one of us has a knee that does not bend well.",
    "My budget is about ${price} per person, and we are {people} people with {bags} checked bags altogether.",
    "If {cabin} is sold out I can live with another cabin, but do tell me what it costs before you book it.",
    "The last time I flew this route from {here} the connection in {via} was far too short for us.",
)
_ANSWERED: Final = (
    "Thank you for waiting, {name}. I found several flights from {here} to {there} on the {day} of May.",
    "The one that fits best is {flight}: it leaves at {hour}, stops in {via} and costs ${price} in {cabin}.",
    "There are {people} seats left in that cabin, and the connection leaves you a little over two hours.",
    "Two checked bags are included with your membership; each one more is $50, paid with the same card.",
    "Changing reservation {booking} costs nothing today, because it was booked with travel insurance.",
    "Your seats are kept together, and I have asked for assistance at the gate in {via} as you wished.",
    "Shall I go ahead with {flight} and charge the difference to the card that ends in {people}{bags}07?",
    "Please answer yes to confirm, or tell me which of the other departures you would prefer instead.",
)


class Turn(NamedTuple):
    """What is said and done in one turn."""

    call_id: str
    asked: str
    arguments: str
    result: str
    answered: str
    booking: dict[str, Any]
    usage: dict[str, Any]

    def drafts(self) -> list[Draft]:
        """The turn as an application would hand it over; new drafts, with new ids, at every call."""
        return [
            Draft("turn.started", {"agent_id": "travel-desk", "run_id": self.call_id[5:]}),
            message("user", self.asked),
            message("assistant", None, tool_calls=[self.tool_call()]),
            tool_called(self.call_id),
            tool_returned(self.call_id, self.result, duration_s=0.184),
            message("assistant", self.answered),
            state_changed([["set", ["booking"], self.booking]]),
            Draft("turn.completed", {"usage": self.usage}),
        ]

    def tool_call(self) -> dict[str, str]:
        """The call as the assistant's message carries it."""
        return {"id": self.call_id, "name": "search_flights", "arguments": self.arguments}

    def payloads(self) -> list[tuple[str, bytes]]:
        """Type and encoded payload of the same events: what the floors write."""
        return [(draft.type, orjson.dumps(draft.payload)) for draft in self.drafts()]

    def messages(self) -> list[dict[str, Any]]:
        """The turn's messages in OpenAI chat form, as a transcript has them."""
        function = {"name": "search_flights", "arguments": self.arguments}
        call = {"id": self.call_id, "type": "function", "function": function}
        return [
            {"role": "user", "content": self.asked},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": self.call_id, "content": self.result},
            {"role": "assistant", "content": self.answered},
        ]


def turn(number: int) -> Turn:
    """A turn by its number; the texts repeat after 256, the call ids never do."""
    return _variant(number % _VARIANTS)._replace(call_id=f"call_{number:024x}")


def turns(count: int, first: int = 0) -> Iterator[Turn]:
    """So many turns one after the other."""
    return (turn(number) for number in range(first, first + count))


def record(log: SessionLog, session: str, count: int) -> None:
    """Record so many turns quickly, in appends of 1,000 events."""
    for first in range(0, count, 125):
        some = turns(min(125, count - first), first)
        log.append(session, [draft for one in some for draft in one.drafts()])


def payload_bytes(some: Sequence[Turn]) -> int:
    """The payload that these turns record."""
    return sum(len(payload) for one in some for _, payload in one.payloads())


def transcripts(conversations: int, turns_each: int) -> list[bytes]:
    """Conversations as JSON lines in OpenAI chat form."""
    lines = []
    for number in range(conversations):
        said = [m for one in turns(turns_each, number * turns_each) for m in one.messages()]
        lines.append(orjson.dumps({"id": f"conversation-{number:06}", "messages": said}) + b"\n")
    return lines


@functools.cache
def _variant(number: int) -> Turn:
    rng = random.Random(f"{SEED} {number}")
    facts = _facts(rng)
    wanted = {"from": facts["here"], "to": facts["there"], "day": facts["date"], "cabin": facts["cabin"]}
    flights = [_flight(rng, facts) for _ in range(6)]
    return Turn(
        call_id="",
        asked=_text(rng, _ASKED, facts, 200),
        arguments=orjson.dumps(wanted).decode(),
        result=orjson.dumps({"query": wanted, "flights": flights, "currency": "USD"}).decode(),
        answered=_text(rng, _ANSWERED, facts, 600),
        booking=_booking(facts),
        usage={
            "model": "example-large", "input_tokens": rng.randint(900, 9_000),
            "output_tokens": rng.randint(150, 400), "cached_tokens": rng.randint(0, 900),
        },
    )  # fmt: skip


def _facts(rng: random.Random) -> dict[str, Any]:
    here, there, via = rng.sample(_CITIES, 3)
    day = rng.randint(1, 31)
    return {
        "here": here, "there": there, "via": via, "name": rng.choice(_NAMES), "cabin": rng.choice(_CABINS),
        "day": day, "date": f"2024-05-{day:02}", "hour": f"{rng.randint(6, 21)}:{rng.randrange(10, 60, 5)}",
        "price": rng.randint(80, 990), "people": rng.randint(2, 6), "bags": rng.randint(1, 5),
        "flight": f"HAT{rng.randint(1, 299):03}", "booking": "".join(rng.choices(_LETTERS, k=6)),
    }  # fmt: skip


def _booking(facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": facts["booking"], "name": facts["name"], "flight": facts["flight"], "cabin": facts["cabin"],
        "route": [facts["here"], facts["via"], facts["there"]], "date": facts["date"],
        "passengers": facts["people"], "bags": facts["bags"], "price": facts["price"], "confirmed": False,
    }  # fmt: skip


def _flight(rng: random.Random, facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "flight_number": f"HAT{rng.randint(1, 299):03}",
        "origin": facts["here"],
        "destination": facts["there"],
        "departs": f"{facts['date']}T{rng.randint(5, 21):02}:{rng.randrange(0, 60, 5):02}:00",
        "duration_minutes": rng.randint(95, 940),
        "stops": rng.choices((facts["via"], *_CITIES), k=rng.randint(0, 1)),
        "aircraft": rng.choice(_AIRCRAFT),
        "status": "available",
        "seats": {cabin: rng.randint(0, 20) for cabin in _CABINS},
    }


def _text(rng: random.Random, sentences: Sequence[str], facts: dict[str, Any], about: int) -> str:
    """Whole sentences in their order, as many as come closest to a length."""
    chosen = [sentence.format(**facts) for sentence in sentences]
    while len(" ".join(chosen)) - len(chosen[-1]) / 2 > about:
        del chosen[rng.randrange(len(chosen))]
    return " ".join(chosen)
