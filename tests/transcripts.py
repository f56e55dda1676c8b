"""Ten conversations in OpenAI chat form, always the same, and how a loaded one compares with its source."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from typing import Any

Transcript = dict[str, Any]

CITIES = ("Lyon", "Zürich", "København", "Łódź", "東京", "São Paulo")


def conversations(seed: int = 1) -> list[Transcript]:
    """Ten conversations: eight like those of a real agent, one of odd values, one that has only begun."""
    random_ = random.Random(seed)
    ordinary = [conversation(random_, f"trip-{number}", turns=2 + number) for number in range(8)]
    return [*ordinary, _odd(), {"id": "begun", "messages": [_user("Hello?")]}]


def conversation(random_: random.Random, id: str, turns: int) -> Transcript:
    """An agent that looks up flights; call ids are used again, and it ends in mid-turn."""
    messages = [{"role": "system", "content": "You book flights.\n\n- Be brief.\n- Ask before booking."}]
    for turn in range(turns):
        city = random_.choice(CITIES)
        messages += [_user(f"What about {city}, option {turn}?"), *_look_up(random_, city, turn % 3)]
        messages.append({"role": "assistant", "content": f"There is a flight to {city} at {turn}:00. ✈️"})
    messages += [_user("Book it."), _calling(("call_0", "book", {"seat": "12A"}))]
    return {"id": id, "metadata": {"seed": id, "reward": random_.random()}, "messages": messages}


def jsonl(transcripts: Iterable[Mapping[str, Any]]) -> list[bytes]:
    """The lines of a file of transcripts."""
    return [json.dumps(transcript, ensure_ascii=False).encode() + b"\n" for transcript in transcripts]


def source_messages(transcript: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages of a transcript, in the form in which a loaded view gives them."""
    return [_without_gaps(message) for message in transcript["messages"]]


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _look_up(random_: random.Random, city: str, calls: int) -> list[dict[str, Any]]:
    if not calls:
        return []
    asked = [(f"call_{place}", "find_flights", {"to": city, "day": place}) for place in range(calls)]
    found = [_result(id, json.dumps({"seats": random_.randint(0, 9), "to": city})) for id, *_ in asked]
    return [_calling(*asked), *reversed(found)]


def _calling(*calls: tuple[str, str, dict[str, Any]], content: str | None = None) -> dict[str, Any]:
    return {
        "content": content,
        "role": "assistant",
        "tool_calls": [
            {"id": id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for id, name, arguments in calls
        ],
    }


def _result(id: str, content: Any, name: str = "find_flights") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "name": name, "content": content}


def _odd() -> Transcript:
    """Everything that is allowed and rare."""
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}}
    parts = [{"type": "text", "text": "Which city is this?"}, picture]
    return {
        "id": "odd/Ünï-42",
        "metadata": {},
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "Answer in one word."}]},
            {"role": "assistant", "content": "I begin: \x00 and \x1b[31m are only text."},
            {"role": "user", "content": parts, "name": "ada"},
            _calling(("same", "look", {}), ("same", "look", {"twice": True}), content="Let me see 🛫𝔘"),
            _result("same", [{"type": "text", "text": "the second"}]),
            _result("same", "", name="look"),
            {"role": "assistant", "content": ""},
            {"role": "user", "content": "\u202eright to left, \u200bnothing, \ud7ff\ue000\U0010ffff"},
            {"role": "user", "content": "Again, without an answer in between."},
            _calling(("", "look", {"empty id": "is an id"})),
        ],
    }


def _without_gaps(message: Mapping[str, Any]) -> dict[str, Any]:
    return {"content": None} | {key: value for key, value in message.items() if value is not None}
