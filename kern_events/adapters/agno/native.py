"""What Agno stores and our vocabulary has no word for: JSON in an event's `native` bytes.

Text is escaped to ASCII and numbers are Python's, so everything that Agno can store is kept exactly. It is
packed (see packing.py). What is over the log's limit is recorded in parts, as `agno.part.added` events
before the one that has it.
"""

from __future__ import annotations

import json
from typing import Any, Final

from kern_events import Draft
from kern_events.adapters.agno.packing import packed, unpacked

PART: Final = "agno.part.added"
NATIVE_BYTES: Final = 1 << 20  # The limit of a log that was opened without another one.


def dump(value: Any) -> bytes:
    """A JSON value as bytes."""
    return packed(json.dumps(value, separators=(",", ":")).encode())


def load(data: bytes, parts: list[bytes]) -> dict[str, Any]:
    """What an event's native says, with the parts recorded before it; empty where it is none of ours."""
    value = _object(data)
    return _object(b"".join(parts)) if "parts" in value else value


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(unpacked(data))
    except (ValueError, RecursionError):
        return {}
    return value if type(value) is dict else {}


def with_native(draft: Draft, value: dict[str, Any], limit: int = NATIVE_BYTES) -> list[Draft]:
    """The draft with its native, and before it the parts of what is too long for one event."""
    data = dump(value)
    if len(data) <= limit:
        return [_having(draft, data)]
    pieces = [data[start : start + limit] for start in range(0, len(data), limit)]
    parts = [Draft(PART, {}, turn=draft.turn, native=piece) for piece in pieces]
    return [*parts, _having(draft, dump({"parts": len(pieces)}))]


def _having(draft: Draft, data: bytes) -> Draft:
    return Draft(draft.type, draft.payload, turn=draft.turn, native=data)
