"""Recorded events as CloudEvents 1.0: one JSON object a line, in structured mode.

What the specification has no attribute for stands in extension attributes: `namespace`, `sequence`
(the version, in digits that sort), `partitionkey` (the session), `turn`, `eventid`, `hash`; where they
are recorded, `actor`, `meta` (JSON text), `traceparent` and `native` (base64); `erased` where it is.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

from kern_events.events import Event
from kern_events.exports.lines import json_line, json_text


def lines(events: Iterable[Event]) -> Iterator[bytes]:
    """A line for each event."""
    for event in events:
        yield json_line(cloud_event(event))


def cloud_event(event: Event) -> dict[str, Any]:
    """One event in the JSON event format. `source` and `id` together are unique: session and version."""
    place = "/".join(quote(part, safe="") for part in (event.namespace, event.session_id))
    made = {
        "specversion": "1.0",
        "id": str(event.version),
        "source": f"/kern-events/{place}",
        "type": f"dev.kern.{event.type}.v{event.type_version}",
        "subject": event.session_id,
        "time": event.at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "namespace": event.namespace,
        "partitionkey": event.session_id,
        "sequence": f"{event.version:019d}",
        "turn": event.turn,
        "eventid": event.event_id.hex(),
        "hash": event.hash.hex(),
    }
    return {**made, **_recorded(event), "data": None if event.erased else event.payload}


def _recorded(event: Event) -> dict[str, Any]:
    """The attributes of what is not recorded with every event."""
    found: dict[str, Any] = {}
    if event.actor is not None:
        found["actor"] = event.actor
    if event.meta is not None:
        found["meta"] = json_text(event.meta)
        if isinstance(trace := event.meta.get("traceparent"), str) and trace:
            found["traceparent"] = trace
    if event.native is not None:
        found["native"] = b64encode(event.native).decode("ascii")
    if event.erased:
        found["erased"] = True
    return found
