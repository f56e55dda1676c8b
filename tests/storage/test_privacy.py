"""What the log says about itself never has a payload, a native item or a password in it."""

from __future__ import annotations

import logging

import pytest

from kern_events import Draft, SessionLog
from kern_events.errors import IdempotencyConflict, InvalidEvent, KernError, SessionClosed, VersionConflict
from tests.writers import note

SECRET = "my-secret-text"


def secret(**fields):
    return note(SECRET, native=SECRET.encode(), **fields)


def test_neither_log_messages_nor_errors_show_what_was_recorded(url, caplog):
    said = []
    with caplog.at_level(logging.DEBUG), SessionLog(url) as log:
        log.append("s", [secret()], idempotency_key="k")
        for drafts, options, error in (
            ([secret()], {"expected": 5}, VersionConflict),
            ([note("other")], {"idempotency_key": "k"}, IdempotencyConflict),
            ([note({SECRET: [float("nan")]})], {}, InvalidEvent),
            ([note({SECRET: SECRET, "x": object()})], {}, InvalidEvent),
            ([Draft("session.closed", {}), secret(turn=9)], {}, InvalidEvent),
            ([note([SECRET * 100_000])], {}, InvalidEvent),
        ):
            with pytest.raises(error) as caught:
                log.append("s", drafts, **options)
            said.append(f"{caught.value!r}")
        log.append("s", [Draft("session.closed", {})])
        with pytest.raises(SessionClosed):
            log.append("s", [secret()])
        with pytest.raises(KernError), log.turn("t") as turn:
            log.append("t", [Draft("session.closed", {})])
            turn.message("user", SECRET)
        log.delete("s")
        log.verify()

    ours = [record.getMessage() for record in caplog.records if record.name.startswith(("kern_", "proj"))]
    assert not [one for one in [*said, *ours] if SECRET * 2 in one]
    assert SECRET not in "".join(ours)


def test_a_value_is_named_by_its_place_and_not_quoted(url):
    """The keys on the way are part of the place; the value is not shown."""
    with SessionLog(url) as log, pytest.raises(InvalidEvent) as caught:
        log.append("s", [note({"fine": [1, {"deep": f"{SECRET}\ud800"}]})])

    assert caught.value.path == "drafts[0].payload.text.fine[1].deep"
    assert SECRET not in str(caught.value)
