"""What a message says, in parts: typed where we model all of it, Raw where we do not.

A part is recorded as a dict with a `type`, as in the OpenAI chat API. One that has any field beside
those modelled here stays whole in a Raw, so nothing that was recorded is lost on the way out.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import orjson

from projections.frozen import Frozen, FrozenDict, freeze, thaw, weigh


class Text(msgspec.Struct, frozen=True, gc=False, tag="text", tag_field="type"):
    """A piece of text."""

    text: str


class Reasoning(msgspec.Struct, frozen=True, gc=False, tag="reasoning", tag_field="type"):
    """What the model thought. The chat API has no place for it, so `to_openai` leaves it out."""

    text: str


class Refusal(msgspec.Struct, frozen=True, gc=False, tag="refusal", tag_field="type"):
    """The model's words for not answering."""

    refusal: str


class Media(msgspec.Struct, frozen=True, gc=False, tag="media", tag_field="type"):
    """An image, a sound or a file.

    Attributes:
        kind: image_url, input_audio or file.
        data: As recorded: a URL, or the data itself with its format.
    """

    kind: str
    data: FrozenDict[str, Frozen]


class Raw(msgspec.Struct, frozen=True, gc=False, tag="raw", tag_field="type"):
    """A part of a kind that is not modelled, or with fields that are not; exactly as recorded."""

    value: Frozen


Part = Text | Reasoning | Refusal | Media | Raw
Content = str | tuple[Part, ...] | None

_TEXTUAL: Final[dict[str, type[Text] | type[Reasoning] | type[Refusal]]] = {
    "text": Text,
    "reasoning": Reasoning,
    "refusal": Refusal,
}
_FIELDS: Final = {
    "text": "text",
    "reasoning": "text",
    "refusal": "refusal",
    "image_url": "image_url",
    "input_audio": "input_audio",
    "file": "file",
}
"""The types of part that are modelled, and the one field that each has beside its type."""


def parse_content(value: Any) -> tuple[Content, str | None]:
    """The content of a recorded message, and what was wrong with it: other JSON is shown as its text."""
    if value is None or type(value) is str:
        return value, None
    if type(value) is not list:
        return json_text(value), "content is neither text nor parts"
    problem = None if all(type(part) is dict for part in value) else "a content part is no object"
    return tuple([_parse_part(part) for part in value]), problem


def _parse_part(part: Any) -> Part:
    if type(part) is not dict or len(part) != 2 or type(part.get("type")) is not str:
        return Raw(freeze(part))
    kind = part["type"]
    value = part.get(_FIELDS.get(kind))
    if type(value) is str and kind in _TEXTUAL:
        return _TEXTUAL[kind](value)
    if type(value) is dict and kind in _FIELDS and kind not in _TEXTUAL:
        return Media(kind, freeze(value))
    return Raw(freeze(part))


def openai_content(content: Content) -> str | list[Any] | None:
    """Content as the chat API takes it, free to change."""
    if not isinstance(content, tuple):
        return content
    parts = [_openai_part(part) for part in content if not isinstance(part, Reasoning)]
    return parts if parts or not content else None


def _openai_part(part: Part) -> Any:
    match part:
        case Text(text) | Reasoning(text):
            return {"type": "text", "text": text}
        case Refusal(refusal):
            return {"type": "refusal", "refusal": refusal}
        case Media(kind, data):
            return {"type": kind, kind: thaw(data)}
        case Raw(value):
            return thaw(value)


def content_bytes(content: Content) -> int:
    """About how many bytes a content takes."""
    if isinstance(content, str):
        return len(content)
    return sum(map(_part_bytes, content)) if content else 0


def _part_bytes(part: Part) -> int:
    match part:
        case Text(text) | Reasoning(text) | Refusal(text):
            return 32 + len(text)
        case Media(_, data):
            return 32 + weigh(data)
        case Raw(value):
            return 32 + weigh(value)


def json_text(value: Any) -> str:
    """A decoded JSON value as compact text."""
    return orjson.dumps(value).decode()
