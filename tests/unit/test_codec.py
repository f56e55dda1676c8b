"""Values to bytes: where the places and reasons of a refusal come from, and what the bytes are."""

from __future__ import annotations

import orjson
import pytest

from kern_events import codec
from kern_events.errors import InvalidEvent
from kern_events.events import json_text


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        (float("nan"), "p", "nan has no JSON form"),
        ({"a": [1, float("-inf")]}, "p.a[1]", "-inf has no JSON form"),
        ({"a": {"b": 2**63}}, "p.a.b", "an integer outside 64 bits"),
        ([0, b"x"], "p[1]", "bytes is not a JSON type"),
        ({"a": "x\udfff"}, "p.a", "a lone surrogate, which UTF-8 cannot encode"),
        ({"a": (1,)}, "p.a", "a tuple would come back as a list; pass a list"),
        ({"a": {1: 2}}, "p.a", "a key is int, not text"),
        ({"a": {"\ud800": 2}}, "p.a", "a key has a lone surrogate, which UTF-8 cannot encode"),
    ],
)
def test_a_refusal_names_the_place_and_the_reason(value, path, reason):
    with pytest.raises(InvalidEvent) as caught:
        codec.encode(value, "p")

    assert (caught.value.path, caught.value.reason) == (path, reason)


def test_a_nesting_is_refused_at_the_limit_and_not_before():
    def nested(depth):
        value = 1
        for _ in range(depth):
            value = [value]
        return value

    assert codec.encode(nested(codec.MAX_DEPTH), "p")
    with pytest.raises(InvalidEvent, match="nested deeper than 64"):
        codec.encode(nested(codec.MAX_DEPTH + 1), "p")


def test_brackets_in_a_text_are_no_nesting():
    assert codec.encode({"text": "[{" * 500}, "p") == orjson.dumps({"text": "[{" * 500})


def test_the_bytes_are_compact_json_in_the_order_given():
    data = codec.encode({"b": 1, "a": [1.0, True, None, "ü\0"]}, "p")

    assert data == '{"b":1,"a":[1.0,true,null,"ü\\u0000"]}'.encode()


def test_the_widest_integers_are_recorded():
    for value in (2**63 - 1, -(2**63), 2**53 + 1):
        assert codec.decode(codec.encode({"n": value}, "p")) == {"n": value}


def test_the_limit_is_of_encoded_bytes():
    assert len(codec.encode("x" * 8, "p", 10)) == 10
    with pytest.raises(InvalidEvent, match="11 bytes, the limit is 10"):
        codec.encode("x" * 9, "p", 10)


def test_bytes_that_are_no_json_are_a_value_error():
    for data in (b"", b"{", b"\xff", b"NaN", b'{"a":1}x'):
        with pytest.raises(ValueError):
            codec.decode(data)


def test_a_free_text_may_have_control_characters_but_no_nul():
    assert codec.check_text("a\nb\x1b", "name") == "a\nb\x1b"
    for value in ("a\0b", "\ud800", "x" * 1_001, 1, None, b"x"):
        with pytest.raises(InvalidEvent):
            codec.check_text(value, "name")


def test_json_text_is_what_a_payload_would_hold():
    assert json_text({"a": [1, "ü"]}) == '{"a":[1,"ü"]}'
    with pytest.raises(InvalidEvent):
        json_text(float("nan"))
