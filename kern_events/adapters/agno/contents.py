"""What Agno keeps beside a message's text, its media and thoughts, as parts of our message's content.

A part has the bytes, and the native what Agno says of them beside, so that nothing is recorded twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from kern_events.errors import InvalidEvent
from kern_events.events import json_text

Row = dict[str, Any]

LEFT: Final = "media"
"""The key of a native that says what the parts are: see `left_of`."""

_THOUGHTS: Final = "reasoning_content"
_LISTS: Final = ("images", "audio", "videos", "files")
_MEDIA: Final = {"images": "image_url", "audio": "input_audio", "videos": "file", "files": "file"}
_TYPES: Final = {"images": "image/png", "videos": "video/mp4", "files": "application/octet-stream"}


def content_of(message: Row, made: Sequence[Row] = ()) -> str | list[Row] | None:
    """The content of a message of Agno's as ours has it: its text, or parts where there is more than that.

    Args:
        message: The message.
        made: What its run has made beside, as `made_by` gives it.
    """
    content = plain(message.get("content"))
    if left_of(message, made) is None:
        return content
    thoughts, media = _thoughts(message), _media(message)
    parts = content if isinstance(content, list) else [] if content is None else [_text("text", content)]
    return [*thoughts, *parts, *(_part(kind, item) for kind, item in media), *made]


def made_by(run: Row | None) -> list[Row]:
    """What a run has made and no message of it says, as parts: media, and a reasoning agent's thoughts."""
    data = run.get("run_data") if run else None
    if type(data) is not dict:
        return []
    messages = [each for each in _list(data.get("messages")) if type(each) is dict]
    told = any(each.get(_THOUGHTS) for each in messages if not each.get("from_history"))
    audio = data.get("response_audio")
    spoken = [("audio", audio)] if type(audio) is dict else []
    media = [_part(kind, item) for kind, item in (*_media(data), *spoken)]
    return [*([] if told else _thoughts(data)), *media]


def plain(content: Any) -> str | list[Row] | None:
    """Content as our messages have it: text, parts or nothing; anything else as its JSON text."""
    if content is None or isinstance(content, str):
        return content
    if type(content) is list and all(type(part) is dict and "type" in part for part in content):
        return content
    try:
        return json_text(content)
    except InvalidEvent:
        return None


def left_of(message: Row, made: Sequence[Row] = ()) -> Row | None:
    """What the parts of a message's content do not say of it; None where it has its text alone.

    `thoughts` and `text` say whether the first parts are these, `made` how many at the end are the run's, the
    lists what else there is of each medium.
    """
    thoughts, media = _thoughts(message), _media(message)
    if not thoughts and not media and not made:
        return None
    left: Row = {"thoughts": bool(thoughts), "text": isinstance(message.get("content"), str)}
    if made:
        left["made"] = len(made)
    for kind, item in media:
        left.setdefault(kind, []).append({key: value for key, value in item.items() if key != "content"})
    return left


def with_parts(message: Row, left: Any) -> Row:
    """A message of Agno's, of one whose content is parts: what `left_of` says of them, and theirs."""
    parts = message.get("content")
    if type(left) is not dict or type(parts) is not list or not all(type(each) is dict for each in parts):
        return message
    made = left.get("made")
    if type(made) is int and 0 < made <= len(parts):
        parts = parts[:-made]
    items = [(kind, item) for kind in _LISTS for item in _list(left.get(kind)) if type(item) is dict]
    whole = {key: value for key, value in message.items() if key != "content"}
    said, media = parts[: max(0, len(parts) - len(items))], parts[max(0, len(parts) - len(items)) :]
    if left.get("thoughts") and said:
        whole[_THOUGHTS], said = said[0].get("text"), said[1:]
    if left.get("text") and said:
        whole["content"] = said[0].get("text")
    elif said:
        whole["content"] = said
    for (kind, item), part in zip(items, media, strict=False):
        whole.setdefault(kind, []).append({**item, **_bytes(part)})
    return whole


def _thoughts(message: Row) -> list[Row]:
    thoughts = message.get(_THOUGHTS)
    return [_text("reasoning", thoughts)] if isinstance(thoughts, str) else []


def _media(message: Row) -> list[tuple[str, Row]]:
    """Each medium of a message, by the field that has it; none where one is no object."""
    media = [(kind, item) for kind in _LISTS for item in _list(message.get(kind))]
    return media if all(type(item) is dict for _, item in media) else []


def _list(value: Any) -> Sequence[Any]:
    return value if type(value) is list else ()


def _text(type: str, text: str) -> Row:
    return {"type": type, "text": text}


def _part(kind: str, item: Row) -> Row:
    """A medium as a part, in the form of the chat API where that has one for it."""
    content, named = item.get("content"), _MEDIA[kind]
    format = item.get("format") if isinstance(item.get("format"), str) else None
    if not isinstance(content, str):
        where = item.get("url") or item.get("filepath")
        place = {"url": where} if isinstance(where, str) else {}
        return {"type": named, named: place or {k: v for k, v in item.items() if k != "content"}}
    if kind == "audio":
        return {"type": named, named: {"data": content, "format": format or "wav"}}
    mime = item.get("mime_type")
    address = f"data:{mime if isinstance(mime, str) else _TYPES[kind]};base64,{content}"
    if kind == "images":
        return {"type": named, named: {"url": address}}
    name = item.get("filename") or item.get("name")
    called = {"filename": name} if isinstance(name, str) else {}
    return {"type": named, named: {"file_data": address, **called}}


def _bytes(part: Mapping[str, Any]) -> Row:
    """The content of a medium, in its part."""
    said = part.get(part["type"]) if isinstance(part.get("type"), str) else None
    if type(said) is not dict:
        return {}
    if isinstance(said.get("data"), str):
        return {"content": said["data"]}
    address = said.get("file_data", said.get("url"))
    if isinstance(address, str) and address.startswith("data:") and ";base64," in address:
        return {"content": address.split(";base64,", 1)[1]}
    return {}
