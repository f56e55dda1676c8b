"""JSON lines in ASCII, so that what was said in a conversation moves no terminal."""

from __future__ import annotations

import json

from kern_events.frozen import Json


def json_text(value: Json) -> str:
    """A JSON value on one line."""
    return json.dumps(value, separators=(",", ":"))


def json_line(value: Json) -> bytes:
    """A JSON value as a line of a file."""
    return json_text(value).encode("ascii") + b"\n"
