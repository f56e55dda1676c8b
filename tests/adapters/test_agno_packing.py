"""Natives are packed with words that stay, and what somebody else packed does no harm."""

from __future__ import annotations

import base64
import hashlib
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kern_events.adapters.agno.native import dump, load
from kern_events.adapters.agno.packing import WORDS, packed, unpacked

WORDS_SHA256 = "9d727cd3b0a2b8a50c92d6bf72d6f2aea2a2fb207c331e2894ab2541553dd4b3"
PACKED = "AUNt/BLXqEWz0tLUwszExMgUaBoA"
SAID = {"message": [["set", ["from_history"], False], ["set", ["created_at"], 1795864425]]}


def test_what_is_recorded_stays_readable():
    assert hashlib.sha256(WORDS).hexdigest() == WORDS_SHA256
    assert load(base64.b64decode(PACKED), []) == SAID


@example(b"x" * 70_000)
@example("ä😀\n".encode() * 10_000)
@given(st.binary(max_size=200) | st.text(max_size=500).map(str.encode))
def test_what_is_packed_comes_back(data):
    data = b"{" + data

    assert unpacked(packed(data)) == data
    assert len(packed(data)) <= len(data)


def test_what_is_small_when_packed_does_not_become_large():
    squeezing = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, WORDS)
    bomb = b"\x01" + squeezing.compress(b'{"run":"' + bytes(1 << 20)) + squeezing.flush()

    assert unpacked(bomb) == b""
    assert load(bomb, []) == {}


@pytest.mark.parametrize("data", [b"\x01", b"\x01\xff\xff", dump(SAID)[:-1], dump(SAID) + b"more"])
def test_what_is_broken_says_nothing(data):
    assert load(data, []) == {}
