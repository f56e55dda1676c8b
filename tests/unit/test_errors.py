"""Every error has typed fields, crosses a process boundary and reads as one sentence."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest

from kern_events import errors

TREE = {
    "KernError": "Exception",
    "SessionNotFound": "KernError LookupError",
    "SessionExists": "KernError",
    "VersionConflict": "KernError",
    "TurnAbandoned": "VersionConflict",
    "TurnTaken": "TurnAbandoned",
    "SessionClosed": "KernError",
    "SessionDeleted": "SessionClosed SessionNotFound",
    "OwnerMismatch": "KernError",
    "PointErased": "KernError ValueError",
    "TurnNotPaused": "KernError",
    "IdempotencyConflict": "KernError",
    "InvalidEvent": "KernError ValueError",
    "ChainBroken": "KernError",
    "DecodeError": "KernError",
    "UpcastFailed": "KernError",
    "UnknownEventType": "KernError",
    "SchemaOutdated": "KernError",
    "StoreError": "KernError",
    "StoreBusy": "StoreError",
    "StoreFull": "StoreError",
    "StoreUnavailable": "StoreError",
    "AppendUnresolved": "StoreUnavailable",
    "ErasureUnfinished": "StoreError",
    "StoreMissing": "StoreError LookupError",
    "FeedUnavailable": "StoreError",
    "FeedRegressed": "StoreError",
    "StoreCorrupt": "StoreError",
}
CLASSES = {
    name: cls
    for name, cls in vars(errors).items()
    if isinstance(cls, type) and issubclass(cls, errors.KernError)
}
FIELDS = {
    "session_id": "s1", "expected": 3, "actual": 5, "turn": 2, "branch": 4, "status": "closed", "key": "k1",
    "version": 7, "reason": "a reason", "path": "drafts[0].payload", "found": 8, "type": "a.b",
    "type_version": 2, "needed": 9, "base": 6, "after": 12, "last": 11,
    "bases": {"s1": 6}, "by_version": 13, "user_id": "u1", "erased": True,
}  # fmt: skip


UNSAID = {
    *(("TurnAbandoned", field) for field in ("expected", "actual")),
    *(("TurnTaken", field) for field in ("expected", "actual", "branch")),
    ("AppendUnresolved", "bases"),
    ("IdempotencyConflict", "erased"),
}


def made(cls):
    """An error of this class with a value in each of its fields."""
    if "__init__" not in vars(cls):
        return cls("the server said no"), {}
    fields = {name: FIELDS[name] for name in inspect.signature(cls).parameters}
    if cls is errors.ChainBroken:
        fields |= {"expected": "ab", "found": "cd"}
    return cls(**fields), fields


def test_the_tree_is_the_one_that_is_documented():
    assert {name: " ".join(base.__name__ for base in cls.__bases__) for name, cls in CLASSES.items()} == TREE
    for name in TREE:
        assert name in (errors.__doc__ or "")


@pytest.mark.parametrize("name", TREE)
def test_an_error_survives_pickling_with_all_it_says(name):
    error, fields = made(CLASSES[name])
    error.extra = "as set by somebody"
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)
        assert {field: getattr(again, field) for field in fields} == fields


@pytest.mark.parametrize("name", TREE)
def test_an_error_reads_as_one_sentence_with_what_it_knows(name):
    error, fields = made(CLASSES[name])
    said = str(error)

    assert said.strip() == said
    assert "\n" not in said
    assert not said.endswith(".")
    for field, value in fields.items():
        # An abandoned turn says where it was restored away, not what it expected; bases may be many.
        assert str(value) in said or (name, field) in UNSAID, field


@pytest.mark.parametrize("name", TREE)
def test_an_error_says_in_its_docstring_what_it_means(name):
    assert re.match(r"[A-Z`].+[.:]", inspect.getdoc(CLASSES[name]) or "")


def test_a_conflict_of_hashes_says_so():
    assert "another hash" in str(errors.VersionConflict("s", 3, 3))


def test_a_schema_that_is_too_new_has_another_remedy_than_one_that_is_too_old():
    assert "kern-events migrate" in str(errors.SchemaOutdated(1, 2))
    assert "upgrade kern-events" in str(errors.SchemaOutdated(3, 2))


def test_a_turn_that_is_not_there_has_no_status():
    assert str(errors.TurnNotPaused("s", 3, None)) == "session 's' has no turn 3"
    assert str(errors.TurnNotPaused("s", None, None)) == "no turn of session 's' is paused"
    assert str(errors.TurnNotPaused("s", 3, "failed")) == "turn 3 of session 's' is failed, not paused"
    way = "turn 3 of session 's' is open, not paused: to take it over pass its number and expected=view.head"
    assert str(errors.TurnNotPaused("s", 3, "open")) == way
    assert str(errors.TurnNotPaused("s", None, None)) == "no turn of session 's' is paused"


def test_hostile_ids_are_shown_escaped():
    said = str(errors.SessionNotFound("a\x1b[31m\n"))

    assert "\x1b" not in said
    assert "\n" not in said
