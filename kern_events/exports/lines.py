"""JSON lines in ASCII, so that what was said in a conversation moves no terminal."""

from __future__ import annotations

import json
import math
from typing import Any

from kern_events.frozen import Json


def json_text(value: Json) -> str:
    """A JSON value on one line; a number that JSON does not have is null, as in JavaScript."""
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), separators=(",", ":"), allow_nan=False)


def json_line(value: Json) -> bytes:
    """A JSON value as a line of a file."""
    return json_text(value).encode("ascii") + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
