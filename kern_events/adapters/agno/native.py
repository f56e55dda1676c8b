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


def with_native(
    draft: Draft, value: dict[str, Any], limit: int = NATIVE_BYTES, *, before: int | None = None
) -> list[Draft]:
    """The draft with its native, and before it the parts of what is too long for one event.

    Args:
        draft: The event.
        value: Its native; where that is empty, there is none.
        limit: How many bytes one event may have.
        before: Of what Agno has stored at once, this is the last event, and so many drafts come before it.
    """
    said = value if not before else {**value, "group": before + 1}
    data = dump(said)
    if len(data) <= limit:
        return [_having(draft, data) if said else draft]
    pieces = [data[start : start + limit] for start in range(0, len(data), limit)]
    parts = [Draft(PART, {}, turn=draft.turn, native=piece) for piece in pieces]
    count = len(pieces)
    whole = {"parts": count} if before is None else {"parts": count, "group": before + count + 1}
    return [*parts, _having(draft, dump(whole))]


def group_of(data: bytes | None) -> int:
    """How many events were recorded as one, of which the one with this native is the last; 0 if unsaid."""
    group = _object(data).get("group") if data else None
    return group if type(group) is int and group > 1 else 0


def _having(draft: Draft, data: bytes) -> Draft:
    return Draft(draft.type, draft.payload, turn=draft.turn, native=data)
