"""The two facades say the same: same verbs, same parameters, same defaults."""

from __future__ import annotations

import inspect

import pytest

from kern_events import AsyncSessionLog, AsyncTurnRecorder, SessionLog, TurnRecorder

PAIRS = [(SessionLog, AsyncSessionLog), (TurnRecorder, AsyncTurnRecorder)]
INTERNAL = {"prepare", "record", "record_batches", "scope_of", "in_thread", "store", "log"}


def verbs(cls):
    return {name for name in dir(cls) if not name.startswith("_")} - INTERNAL


@pytest.mark.parametrize(("sync", "asynchronous"), PAIRS)
def test_the_verbs_are_the_same(sync, asynchronous):
    assert verbs(sync) == verbs(asynchronous) - ({"namespace"} - verbs(sync))


@pytest.mark.parametrize(
    ("sync", "asynchronous", "verb"),
    [(*pair, verb) for pair in PAIRS for verb in sorted(verbs(pair[0])) if callable(getattr(pair[0], verb))],
)
def test_the_parameters_are_the_same(sync, asynchronous, verb):
    ours, theirs = (inspect.signature(getattr(cls, verb)).parameters for cls in (sync, asynchronous))

    assert [(one.name, one.kind, one.default, one.annotation) for one in ours.values()] == [
        (one.name, one.kind, one.default, one.annotation) for one in theirs.values()
    ]


def test_an_async_log_opens_with_the_same_options():
    ours = dict(inspect.signature(SessionLog).parameters)
    theirs = dict(inspect.signature(AsyncSessionLog).parameters)
    theirs.pop("threads")

    assert list(ours) == list(theirs)
    assert [one.default for one in ours.values()] == [one.default for one in theirs.values()]


@pytest.mark.parametrize("cls", [cls for pair in PAIRS for cls in pair])
def test_every_verb_says_what_it_does(cls):
    for verb in verbs(cls):
        if callable(getattr(cls, verb)):
            assert inspect.getdoc(getattr(cls, verb)), verb
