"""What the log says about itself has no payload, no native item and no password in it."""

from __future__ import annotations

import logging

import pytest

from kern_events import Draft, SessionLog
from kern_events.errors import (
    IdempotencyConflict,
    InvalidEvent,
    KernError,
    SessionClosed,
    VersionConflict,
)
from tests.writers import note

SECRET = "my-secret-text"
REFUSED = [
    ([note(SECRET)], {"expected": 5}, VersionConflict),
    ([note(SECRET)], {"idempotency_key": "k"}, IdempotencyConflict),
    ([note([SECRET, float("nan")])], {}, InvalidEvent),
    ([note([SECRET, object(), b"x"])], {}, InvalidEvent),
    ([note(f"{SECRET}\ud800")], {}, InvalidEvent),
    ([note(SECRET * 100_000)], {}, InvalidEvent),
    ([note(SECRET, native=SECRET.encode() * 100_000)], {}, InvalidEvent),
    ([note(SECRET, turn=9)], {}, InvalidEvent),
    ([Draft("session.created", {"user_id": f"{SECRET}\n"})], {}, InvalidEvent),
    ([Draft("session.renamed", {"name": f"{SECRET}\0"})], {}, InvalidEvent),
]


def secret():
    return note(SECRET, native=SECRET.encode())


def test_neither_messages_nor_errors_show_what_was_recorded(url, caplog):
    said = []
    with caplog.at_level(logging.DEBUG), SessionLog(url) as log:
        log.append("s", [secret()])
        log.append("s", [note("other")], idempotency_key="k")
        for drafts, options, error in REFUSED:
            with pytest.raises(error) as caught:
                log.append("s", drafts, **options)
            said.append(f"{caught.value!r} {caught.value}")
        log.append("s", [Draft("session.closed", {})])
        with pytest.raises(SessionClosed) as caught:
            log.append("s", [secret()])
        said.append(repr(caught.value))
        with pytest.raises(KernError), log.turn("t") as turn:
            log.append("t", [Draft("session.closed", {})])
            turn.message("user", SECRET)
        log.delete("s")
        log.verify()

    assert not [one for one in said if SECRET in one]
    ours = [record.getMessage() for record in caplog.records if record.name.startswith(("kern_", "proj"))]
    assert SECRET not in "".join(ours)


def test_a_value_is_named_by_its_place_and_not_quoted(url):
    """The keys on the way are part of the place."""
    with SessionLog(url) as log, pytest.raises(InvalidEvent) as caught:
        log.append("s", [note({"fine": [1, {"deep": f"{SECRET}\ud800"}]})])

    assert caught.value.path == "drafts[0].payload.text.fine[1].deep"
    assert SECRET not in str(caught.value)
