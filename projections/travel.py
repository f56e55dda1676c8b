"""Looking back step by step, and what differs between two points of a session."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeVar

import jsonpatch
import msgspec
import orjson
from msgspec.structs import replace

from kern_events import Event, Head, SessionLog, spi
from kern_events.spi import Kind
from projections.fold import fold
from projections.frozen import thaw
from projections.loading import Loader
from projections.paths import events_on
from projections.projector import Projector
from projections.session import Message, Turn, View
from projections.session.view import plain

V = TypeVar("V")
Scope = Literal["live", "log"]


class Step(NamedTuple):
    """One event of a replay, the view after it, and how long after the event before it was recorded."""

    event: Event
    view: Any
    after_s: float


class Diff(msgspec.Struct, frozen=True):
    """What is different at version `after` from what was at version `before`.

    A message that was replaced is both dropped and added.

    Attributes:
        session_id: The session.
        before: The version that is compared.
        after: The version that it is compared with; it may be the lower one.
        added: Messages that are in the transcript at `after` alone, in its order.
        dropped: Messages that are in the transcript at `before` alone.
        turns_added: Turns that are at `after` alone, or are different there.
        turns_dropped: Turns that are at `before` alone, or were different there.
        state: An RFC 6902 patch that makes the state at `after` of the one at `before`.
    """

    session_id: str
    before: int
    after: int
    added: tuple[Message, ...]
    dropped: tuple[Message, ...]
    turns_added: tuple[Turn, ...]
    turns_dropped: tuple[Turn, ...]
    state: tuple[Mapping[str, Any], ...]

    def __bool__(self) -> bool:
        """Whether anything is different."""
        return bool(self.added or self.dropped or self.turns_added or self.turns_dropped or self.state)

    def to_dict(self) -> dict[str, Any]:
        """A copy in plain dicts and lists, free to change; JSON can say all of it."""
        fields = {field: getattr(self, field) for field in self.__struct_fields__}
        return {**{field: plain(value) for field, value in fields.items()}, "state": list(self.state)}


def diff_views(before: View, after: View) -> Diff:
    """What is different in one view from another; see Diff."""
    dropped, added = _different(before.messages, after.messages, lambda each: (each.version, each.id))
    turns_dropped, turns_added = _different(before.turns, after.turns, lambda each: each.started_version)
    return Diff(
        after.session_id, before.version, after.version, added, dropped, turns_added, turns_dropped,
        state_patch(before.state, after.state),
    )  # fmt: skip


def state_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """An RFC 6902 patch from one state to another, exact by type: 1, 1.0 and true are three values."""
    old, new = thaw(before), thaw(after)
    wanted = orjson.dumps(new, option=orjson.OPT_SORT_KEYS)
    if orjson.dumps(old, option=orjson.OPT_SORT_KEYS) == wanted:
        return ()
    patch: list[dict[str, Any]] = jsonpatch.make_patch(old, new).patch
    try:
        made = jsonpatch.apply_patch(old, patch)
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException, KeyError, TypeError):
        made = None
    if made is None or orjson.dumps(made, option=orjson.OPT_SORT_KEYS) != wanted:
        # The library compares with ==, to which 1 and 1.0 are the same.
        return ({"op": "replace", "path": "", "value": new},)
    return tuple(patch)


def _different(before: Sequence[Any], after: Sequence[Any], key: Any) -> tuple[Any, Any]:
    """Items that are only in the one, and only in the other, in their order."""
    old, new = {key(each): each for each in before}, {key(each): each for each in after}
    dropped = tuple(each for name, each in old.items() if new.get(name) != each)
    added = tuple(each for name, each in new.items() if old.get(name) != each)
    return dropped, added


class Replay:
    """The events of a session, each with the view that it makes, as they were recorded."""

    def __init__(
        self, log: SessionLog, loader: Loader, session_id: str, projector: Projector[Any], scope: Scope
    ) -> None:
        if scope not in ("live", "log"):
            raise ValueError(f"a replay is of the scope 'live' or 'log', not {scope!r}")
        self._log = log
        self._loader = loader
        self._session_id = session_id
        self._projector = projector
        self._head: Final[Head] = log.head(session_id)
        spi.point(log, session_id, self._head)  # Raises where there is nothing to replay.
        self._scope = scope

    def steps(self) -> Iterator[Step]:
        """Step by step; memory holds the view, and those that a later restore goes back to."""
        view: Any = self._projector.initial()
        at_us: int | None = None
        wanted = self._targets()
        kept: dict[int, Any] = {0: view}
        for event in self._events():
            if event.kind == Kind.RESTORE and self._goes_back(event):
                view = self._view_at(event.ref or 0, kept)
            after_s = 0.0 if at_us is None else (event.at_us - at_us) / 1e6
            at_us = event.at_us
            for made in self._log.types.upcast(event):
                if self._counts(event):
                    view = self._stamped(fold(self._projector, view, (made,), self._log.types).view)
                yield Step(made, view, after_s)
                after_s = 0.0
            if event.version in wanted:
                kept[event.version] = view

    def _events(self) -> Iterator[Event]:
        version = self._head.version
        if self._scope == "live":
            path = spi.live_path(self._log, self._session_id, version)
        else:
            own = spi.own_path(self._log, self._session_id, version)
            before = spi.live_path(self._log, self._session_id, own[0].first - 1) if own else ()
            path = [*before, *own]
        for page in events_on(self._log, path):
            yield from page.events

    def _targets(self) -> set[int]:
        """The versions that restores of the session go back to."""
        return (
            {ref for _, ref in spi.restores(self._log, self._session_id)} if self._scope == "log" else set()
        )

    def _goes_back(self, event: Event) -> bool:
        return (
            self._scope == "log" and self._projector.scope == "live" and event.session_id == self._session_id
        )

    def _counts(self, event: Event) -> bool:
        """A projector of scope `log` folds the session's own events alone."""
        return self._projector.scope == "live" or event.session_id == self._session_id

    def _view_at(self, version: int, kept: Mapping[int, Any]) -> Any:
        if version in kept:
            return kept[version]
        # In a parent, on a branch that the fork did not go on from.
        return self._loader.past(self._session_id, self._projector, version).view

    def _stamped(self, view: Any) -> Any:
        if not isinstance(view, View):
            return view
        return replace(view, session_id=self._session_id, head=self._head)
