"""Folding events with a projector, and naming the event that it fails at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from kern_events import Event
from projections.errors import ProjectionFailed
from projections.projector import Projector

V = TypeVar("V")


def fold(projector: Projector[V], view: V, events: Sequence[Event]) -> V:
    """The view after these events, which follow on what the view was folded from.

    Raises:
        ProjectionFailed: `evolve` raised; names the event, and the cause is kept.
    """
    quick = getattr(projector, "fold", None)
    if quick is not None:
        try:
            return quick(view, events)  # type: ignore[no-any-return]
        except Exception:  # noqa: S110 - folded again one by one, which tells at which event
            pass
    return _one_by_one(projector, view, events)


def _one_by_one(projector: Projector[V], view: V, events: Sequence[Event]) -> V:
    for event in events:
        try:
            view = projector.evolve(view, event)
        except Exception as error:
            raise ProjectionFailed(projector.name, event.session_id, event.version) from error
    return view
