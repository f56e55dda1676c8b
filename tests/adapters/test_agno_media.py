"""Media and thoughts of a run are in the view's messages, and its rows come back exactly."""

from __future__ import annotations

import json

from agno.agent import Agent
from agno.media import Audio, File, Image, Video
from agno.models.response import ModelResponse

from projections.session import Media, Reasoning, Text
from tests.agno_replay import check_replay
from tests.agno_scenarios import FakeModel

PICTURE = bytes(range(256)) * 400


def ask(side, db, *words, answer="a cat", **options):
    model = FakeModel([answer])
    return side.run(Agent(model=model, db=db, session_id="s", telemetry=False), *words, **options)


def test_media_are_parts_of_the_message_that_brought_them(side):
    db = side.open()
    ask(
        side, db, "What is this?",
        images=[Image(content=PICTURE, mime_type="image/jpeg"), Image(url="https://example.org/cat.png")],
        audio=[Audio(content=b"sound", format="mp3")], videos=[Video(content=b"film")],
        files=[File(content=b"%PDF", mime_type="application/pdf", filename="a.pdf")],
    )  # fmt: skip
    said = side.sessions(db).load("s").messages[-2].content

    assert said[0] == Text("What is this?")
    kinds = [part.kind for part in said[1:] if isinstance(part, Media)]
    assert kinds == ["image_url", "image_url", "input_audio", "file", "file"]
    assert said[1].data["url"].startswith("data:image/jpeg;base64,")
    assert said[2].data["url"] == "https://example.org/cat.png"
    check_replay(side.place.open(), "s")


def test_thoughts_are_a_part_that_no_prompt_has(side):
    db = side.open()
    thought = ModelResponse(role="assistant", content="a cat", reasoning_content="Four legs ...")
    ask(side, db, "What is this?", answer=thought)
    sessions = side.sessions(db)

    assert sessions.load("s").messages[-1].content == (Reasoning("Four legs ..."), Text("a cat"))
    assert sessions.history("s").to_openai()[-1]["content"] == [{"type": "text", "text": "a cat"}]
    check_replay(side.place.open(), "s")


def test_what_a_run_has_made_is_with_its_last_message(side):
    db = side.open()
    made = ModelResponse(role="assistant", content="Here:", images=[Image(content=b"picture", id="i")])
    ask(side, db, "Draw a cat.", answer=made)
    said = side.sessions(db).load("s").messages[-1].content

    assert said[0] == Text("Here:")
    assert [part.kind for part in said[1:]] == ["image_url"]
    check_replay(side.place.open(), "s")


def test_the_bytes_of_a_message_are_recorded_once(side):
    db = side.open()
    ask(side, db, "What is this?", images=[Image(content=PICTURE)])
    events = [each for each in side.sessions(db).read("s") if each.type == "message.added"]

    size = sum(len(json.dumps(each.payload)) + len(each.native or b"") for each in events)
    assert size < 1.5 * len(PICTURE) * 4 / 3
