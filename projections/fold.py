"""Folding events with a projector, and naming the event that it fails at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, Generic, NamedTuple, TypeVar

from kern_events import Event, EventTypes
from projections.errors import ProjectionFailed
from projections.projector import Projector
from projections.session import SessionProjector

V = TypeVar("V")


class Folded(NamedTuple, Generic[V]):
    """A view, and whether something could not be read that may belong into it."""

    view: V
    incomplete: bool


def fold(projector: Projector[V], view: V, events: Sequence[Event], types: EventTypes) -> Folded[V]:
    """The view after these recorded events, which follow on what the view was folded from.

    Events of older versions go through their upcasters. Those of a newer version than this code knows
    are not given to `evolve`, but to the projector's `unreadable`, where it has one.

    Raises:
        ProjectionFailed: `evolve` raised; names the event, and the cause is kept.
        UpcastFailed: An upcaster raised.
    """
    events = types.upcast_all(events)
    whoever: Any = projector
    if isinstance(whoever, SessionProjector):
        session: Any = _folded(projector, view, events)
        return Folded(session, session.incomplete)
    if all(event.type_version == 1 for event in events):  # No version of a known type is lower.
        return Folded(_folded(projector, view, events), False)
    incomplete = False
    for newer, some in groupby(events, types.is_newer):
        if newer:
            incomplete = True
            view = _passed_over(projector, view, list(some))
        else:
            view = _folded(projector, view, list(some))
    return Folded(view, incomplete)


def _folded(projector: Projector[V], view: V, events: Sequence[Event]) -> V:
    quick = getattr(projector, "fold", None)
    if quick is not None:
        try:
            return quick(view, events)  # type: ignore[no-any-return]
        except Exception:  # noqa: S110 - folded again one by one, which tells at which event
            pass
    return _one_by_one(projector, projector.evolve, view, events)


def _passed_over(projector: Projector[V], view: V, events: Sequence[Event]) -> V:
    unreadable = getattr(projector, "unreadable", None)
    return view if unreadable is None else _one_by_one(projector, unreadable, view, events)


def _one_by_one(
    projector: Projector[V], step: Callable[[V, Event], V], view: V, events: Sequence[Event]
) -> V:
    for event in events:
        try:
            view = step(view, event)
        except Exception as error:
            raise ProjectionFailed(projector.name, event.session_id, event.version) from error
    return view
