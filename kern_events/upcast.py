"""The event types of an application, and how events of their older versions are read.

A type has a version, and for each version before it an upcaster: a pure function from the payload of
one version to that of the next. Old rows are read through them one after the other and never rewritten,
so their hashes hold. What is not known here, or is newer than what is known, passes through as it is.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from msgspec.structs import replace

from kern_events.codec import check_id, misfit
from kern_events.errors import InvalidEvent, UnknownEventType, UpcastFailed
from kern_events.events import TYPES, Draft, Erased, Event, kind_of

T = TypeVar("T")

Payload = dict[str, Any]
Parts = Sequence[tuple[str, Payload]]


class Split(NamedTuple):
    """An upcaster that makes several events of one, of whatever types.

    Attributes:
        function: Gives `(type, payload)` pairs, in order.
        into: The version that each of those types is given in. All types that the function may name
            stand here, so that a chain which never ends is found when the types are registered.
    """

    function: Callable[[Payload], Parts]
    into: Mapping[str, int]


Upcaster = Callable[[Payload], Payload | None] | Split


class EventType(msgspec.Struct, frozen=True):
    """One event type of an application.

    Attributes:
        name: As in Draft: dotted and past tense. The built-in types are not to be given here.
        payload: A msgspec Struct class, a dataclass or a TypedDict that payloads of this version are
            decoded into and checked against before they are recorded; None leaves them dicts.
        version: The version that this code writes and reads, from 1.
        upcasters: One for each earlier version, the first takes version 1. Each is a pure function:
            it gets the payload as a dict of its own, and returns that of the next version, or None
            to leave the event out. A Split gives several events.
    """

    name: str
    payload: Any = None
    version: int = 1
    upcasters: Sequence[Upcaster] = ()

    def __post_init__(self) -> None:
        check_id(self.name, "name")
        if self.name in TYPES:
            raise ValueError(f"{self.name} is built in, and its versions are those of this library")
        if type(self.version) is not int or not 1 <= self.version < 2**31:
            raise ValueError(f"{self.name}: a version is a number from 1, not {self.version!r}")
        if len(self.upcasters) != self.version - 1:
            raise ValueError(
                f"{self.name}: version {self.version} takes {self.version - 1} upcasters, one for each "
                f"version before it, and has {len(self.upcasters)}"
            )


class EventTypes:
    """The types that a log knows beside the built-in ones: `SessionLog(url, types=EventTypes(...))`.

    Args:
        types: Each type once.

    Raises:
        ValueError: A type stands there twice, a Split leads to a type or version that does not exist or
            may not be made of another, or upcasters lead in a circle.
    """

    def __init__(self, *types: EventType) -> None:
        self._types: Final = {each.name: each for each in types}
        if len(self._types) < len(types):
            raise ValueError("the same event type twice")
        self._decoders: Final = {
            each.name: msgspec.json.Decoder(each.payload) for each in types if each.payload is not None
        }
        self._names: Final = {each.payload: each.name for each in types if isinstance(each.payload, type)}
        for each in types:
            self._check(each)

    def __reduce__(self) -> tuple[Any, ...]:
        return EventTypes, tuple(self._types.values())

    def __len__(self) -> int:
        return len(self._types)

    def __iter__(self) -> Iterator[EventType]:
        return iter(self._types.values())

    def __repr__(self) -> str:
        return f"EventTypes({', '.join(f'{each.name} {each.version}' for each in self)})"

    @functools.cached_property
    def versions(self) -> Mapping[str, int]:
        """The version of each type that is known, the built-in ones included."""
        return {**dict.fromkeys(TYPES, 1), **{each.name: each.version for each in self}}

    @functools.cached_property
    def digest(self) -> bytes:
        """Names the types and their versions, 8 bytes: what was folded with others is not used here."""
        known = ",".join(sorted(f"{each.name} {each.version}" for each in self))
        return hashlib.sha256(known.encode()).digest()[:8] if known else b""

    def draft(
        self,
        payload: object,
        *,
        actor: str | None = None,
        meta: dict[str, Any] | None = None,
        native: bytes | None = None,
        turn: int | None = None,
    ) -> Draft:
        """A Draft of a payload whose class is that of a type: with its name and version.

        Args:
            payload: An instance of the class that a type was given as `payload`.
            actor, meta, native, turn: As in Draft.

        Raises:
            TypeError: It is of no such class.
        """
        name = self._names.get(type(payload))
        if name is None:
            raise TypeError(f"{type(payload).__name__} is the payload of no event type here")
        plain = msgspec.to_builtins(payload, str_keys=True)
        version = self._types[name].version
        return Draft(name, plain, type_version=version, actor=actor, meta=meta, native=native, turn=turn)

    def payload(self, event: Event, payload: type[T]) -> T | Erased:
        """The payload of an event, if it is of the class given; ERASED if it was erased.

        Raises:
            UnknownEventType: The event is of another type, or of a version that is not known here.
        """
        name = self._names.get(payload)
        if name is None or event.type != name or self.is_newer(event):
            raise UnknownEventType(event.session_id, event.version, event.type, event.type_version)
        return event.payload  # type: ignore[no-any-return]

    def is_newer(self, event: Event) -> bool:
        """Whether an event is of a known type in a version that this code does not know yet."""
        return event.type_version > self.versions.get(event.type, event.type_version)

    def upcast(self, event: Event) -> tuple[Event, ...]:
        """What an event is in the versions of today: itself, another one, several or none.

        All of them keep the identity of what is recorded: version, position, id and hash. Erased
        events, unknown types and newer versions pass through.

        Raises:
            UpcastFailed: An upcaster raised or gave what it must not; the cause is kept.
        """
        known = self._types.get(event.type)
        if known is None or event.type_version >= known.version or event.erased:
            return (event,)
        try:
            made = list(self._upcast(event.type, event.type_version, event.payload))
            return tuple(
                replace(
                    event, type=type, type_version=self.versions[type], payload=self._converted(type, payload)
                )
                for type, payload in made
            )
        except Exception as error:
            raise UpcastFailed(event.session_id, event.version, event.type, event.type_version) from error

    def upcast_all(self, events: Sequence[Event]) -> Sequence[Event]:
        """As upcast, for events that follow on each other."""
        if not self._types or not any(map(self._is_old, events)):
            return events
        return [made for event in events for made in self.upcast(event)]

    def decoder(self, name: str, version: int) -> Callable[[bytes], Any] | None:
        """Decodes the payload of a type in its version of today, straight into what the type declares."""
        known = self._types.get(name)
        if known is None or known.version != version or known.payload is None:
            return None
        return self._decoders[name].decode

    def check(self, draft: Draft, payload: bytes, path: str) -> None:
        """Refuse a draft of a known type that would not be read back.

        Raises:
            InvalidEvent: It is of another version than this code writes, or does not fit the type.
        """
        known = self._types.get(draft.type)
        if known is None:
            return
        if draft.type_version != known.version:
            raise InvalidEvent(
                f"{draft.type} is of version {known.version} here, and the draft says {draft.type_version}",
                f"{path}.type_version",
            )
        if decoder := self._decoders.get(draft.type):
            try:
                decoder.decode(payload)
            except (msgspec.MsgspecError, ValueError, TypeError) as error:
                raise InvalidEvent(
                    f"{draft.type} of version {known.version}: {misfit(error)}", f"{path}.payload"
                ) from None

    def _is_old(self, event: Event) -> bool:
        known = self._types.get(event.type)
        return known is not None and event.type_version < known.version

    def _upcast(self, name: str, version: int, payload: Any) -> Iterator[tuple[str, Payload]]:
        """The payloads of today that one of an older version becomes."""
        known = self._types.get(name)
        if known is None or version == known.version:
            yield name, payload
            return
        upcaster = known.upcasters[version - 1]
        if isinstance(upcaster, Split):
            for made, part in upcaster.function(payload):
                yield from self._upcast(made, upcaster.into[made], _object(part))
        elif (after := upcaster(payload)) is not None:
            yield from self._upcast(name, version + 1, _object(after))

    def _converted(self, name: str, payload: Payload) -> Any:
        known = self._types.get(name)
        if known is None or known.payload is None:
            return payload
        try:
            return msgspec.convert(payload, known.payload, str_keys=True)
        except (msgspec.MsgspecError, ValueError, TypeError) as error:
            raise ValueError(misfit(error)) from None

    def _check(self, each: EventType) -> None:
        for version, upcaster in enumerate(each.upcasters, 1):
            for name, made in _targets(each, version, upcaster):
                if self.versions.get(name, 0) < made or made < 1:
                    raise ValueError(f"{each.name} {version} becomes {name} {made}, which does not exist")
                if kind_of(name, {}, None) or name.startswith("session."):
                    raise ValueError(f"{each.name} cannot become {name}: the log itself goes by those")
            self._check_ends(each, version)

    def _check_ends(self, each: EventType, version: int) -> None:
        """Whatever an event becomes, it must not become what it was."""
        start, seen = (each.name, version), set[tuple[str, int]]()
        waiting = list(self._next(*start))
        while waiting:
            place = waiting.pop()
            if place == start:
                raise ValueError(f"the upcasters of {each.name} {version} lead in a circle")
            if place not in seen:
                seen.add(place)
                waiting += self._next(*place)

    def _next(self, name: str, version: int) -> Sequence[tuple[str, int]]:
        known = self._types.get(name)
        if known is None or not 1 <= version < known.version:
            return ()
        return _targets(known, version, known.upcasters[version - 1])


NO_TYPES: Final = EventTypes()
"""Nothing but what is built in."""


class Quota:
    """Counts recorded events up to a limit; those that upcasters leave out do not count."""

    def __init__(self, limit: int | None) -> None:
        self._left = limit
        self._leaving_out = False

    def rows(self, most: int) -> int:
        """How many rows to read next; after some that were left out as many as may be."""
        return most if self._left is None or (self._leaving_out and self._left) else min(self._left, most)

    def given(self, recorded: Iterable[Sequence[Event]]) -> Iterator[Event]:
        """What is given of recorded events, up to the limit."""
        if self._left == 0:
            return
        for events in recorded:
            yield from events
            if not events:
                self._leaving_out = True
            elif self._left is not None:
                self._left -= 1
                if self._left == 0:
                    return


def _targets(each: EventType, version: int, upcaster: Upcaster) -> Sequence[tuple[str, int]]:
    if isinstance(upcaster, Split):
        return list(upcaster.into.items())
    return [(each.name, version + 1)]


def _object(payload: Any) -> Payload:
    if type(payload) is not dict:
        raise TypeError(f"an upcaster gave {type(payload).__name__}, not a dict")
    return payload
