"""The session view: what a conversation is at one version, as values that nothing can change.

Everything below is frozen all the way down, so one view is shared by everybody who loads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Literal

import msgspec

from kern_events import Head
from kern_events.spi import to_datetime
from projections.chunks import Chunks
from projections.frozen import NOTHING, Frozen, FrozenDict
from projections.session.content import Content, openai_content

TurnStatus = Literal["open", "interrupted", "paused", "completed", "failed", "cancelled"]
Usage = FrozenDict[str, int | float]


class ToolCall(msgspec.Struct, frozen=True, gc=False):
    """A call that the model asked for.

    Attributes:
        id: As the model gave it; ids may be used again within a session.
        name: The tool.
        arguments: The exact text received, usually JSON.
    """

    id: str
    name: str
    arguments: str

    def to_openai(self) -> dict[str, Any]:
        """The call as a plain dict for the OpenAI chat API."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


class PendingCall(ToolCall, frozen=True, gc=False):
    """A call without an outcome so far.

    Attributes:
        message_id: The message that carries it.
        turn: The turn it was made in.
        version: The event that made it.
        called: The `tool.called` that was recorded before the tool ran, None if it was not started.
            After a crash this tells a tool that may have run from one that cannot have.
    """

    message_id: str
    turn: int
    version: int
    called: int | None


class Message(msgspec.Struct, frozen=True, gc=False):
    """One message of the conversation.

    Attributes:
        id: As recorded, by default the hex of its event's id. Not necessarily unique.
        role: system, developer, user, assistant, tool ...
        content: Text, or parts, or None.
        name: The author's name, where the model API has one.
        tool_calls: What the message asks for.
        tool_call_id: The call that a message of role tool answers.
        turn: The turn it was recorded in; 0 before the first.
        version: The event it was first recorded by.
        at_us: When that was, microseconds since 1970, UTC.
    """

    id: str
    role: str
    content: Content = None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    turn: int = 0
    version: int = 0
    at_us: int = 0

    @property
    def at(self) -> datetime:
        """When it was recorded, aware UTC."""
        return to_datetime(self.at_us)

    def to_openai(self) -> dict[str, Any]:
        """The message as a plain dict for the OpenAI chat API."""
        shown: dict[str, Any] = {"role": self.role, "content": openai_content(self.content)}
        if self.name is not None:
            shown["name"] = self.name
        if self.tool_calls:
            shown["tool_calls"] = [call.to_openai() for call in self.tool_calls]
        if self.tool_call_id is not None:
            shown["tool_call_id"] = self.tool_call_id
        return shown


class Turn(msgspec.Struct, frozen=True, gc=False):
    """One turn of the session.

    Attributes:
        number: 1, 2, 3 ... on the live path.
        status: open until its end is recorded; interrupted once a later turn has started without it.
        run_id: The framework's id of the run.
        started_version: The event that started it.
        started_us: When that was, microseconds since 1970, UTC.
        ended_version: The event that ended it.
        ended_us: When that was.
        error: What `turn.failed` says of it: a text, or a frozen object with type and message.
        usage: Token counts and the like, summed; what its nested runs used included.
        responded: The part of `usage` that is known only from `model.responded`, and that the
            turn's own end replaces; None once it has.
    """

    number: int
    status: TurnStatus
    run_id: str | None
    started_version: int
    started_us: int
    ended_version: int | None = None
    ended_us: int | None = None
    error: Frozen = None
    usage: Usage = NOTHING
    responded: Usage | None = NOTHING

    @property
    def started_at(self) -> datetime:
        """When it started, aware UTC."""
        return to_datetime(self.started_us)

    @property
    def ended_at(self) -> datetime | None:
        """When it ended, aware UTC; None if it has not."""
        return None if self.ended_us is None else to_datetime(self.ended_us)


class Pause(msgspec.Struct, frozen=True, gc=False):
    """A turn that waits for somebody, and for what.

    Attributes:
        turn: The turn.
        requirements: As `turn.paused` says it, frozen.
        version: The event that paused it.
    """

    turn: int
    requirements: Frozen
    version: int


_NO_MESSAGES: Final[Chunks[Message]] = Chunks()
_NO_TURNS: Final[Chunks[Turn]] = Chunks()


class View(msgspec.Struct, frozen=True, gc=False):
    """A session at one version.

    Attributes:
        session_id: The session.
        version: The last event that is in the view; 0 is a session without events.
        head: Where the session stood when it was loaded: pass it as `append(expected=view.head)`.
            In a view of the past it is ahead of `version`.
        turn: The turn last started; 0 before the first.
        status: open, closed or deleted.
        user_id: Whose session it is.
        messages: The transcript, in order.
        context: What goes into the next prompt: the transcript, with what was compacted or cleared
            taken out. The same object as `messages` while nothing was.
        state: The state of the session, frozen.
        agent_state: The states of scope `agent`, by agent id ("" where the event names none).
        turns: The turns, in order.
        usage: The sum over all turns, and what was used outside of one.
        pending_calls: Tool calls without an outcome, in order.
        paused: Turns that wait for somebody, in order of pausing.
        name: The session's name.
        metadata: The application's own data about the session, frozen.
        summary: The last summary: a text or a frozen value.
        incomplete: Something could not be read or made sense of, so the view may lack something.
        problems: The first of what that was, one line each, never with content; and, of a view that need
            not be incomplete, where times cease to be those of recording (see `Event.clock_us`).
        stale: Loaded with `stale_ok=True` and not compared with the log; up to a second old.
    """

    session_id: str = ""
    version: int = 0
    head: Head = Head(0, b"")
    turn: int = 0
    status: Literal["open", "closed", "deleted"] = "open"
    user_id: str | None = None
    messages: Chunks[Message] = _NO_MESSAGES
    context: Chunks[Message] = _NO_MESSAGES
    state: FrozenDict[str, Frozen] = NOTHING
    agent_state: FrozenDict[str, FrozenDict[str, Frozen]] = NOTHING
    turns: Chunks[Turn] = _NO_TURNS
    usage: Usage = NOTHING
    pending_calls: tuple[PendingCall, ...] = ()
    paused: tuple[Pause, ...] = ()
    name: str | None = None
    metadata: FrozenDict[str, Frozen] = NOTHING
    summary: Frozen = None
    incomplete: bool = False
    problems: tuple[str, ...] = ()
    stale: bool = False

    def to_dict(self) -> dict[str, Any]:
        """A copy in plain dicts and lists, free to change; JSON can say all of it."""
        copy: dict[str, Any] = plain({key: getattr(self, key) for key in self.__struct_fields__})
        copy["head"]["hash"] = self.head.hash.hex()
        return copy


def plain(value: Any) -> Any:
    """A copy of a part of a view in plain dicts and lists."""
    if isinstance(value, msgspec.Struct):
        return _plain_struct(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, Chunks)):
        return [plain(item) for item in value]
    return value


def _plain_struct(value: msgspec.Struct) -> dict[str, Any]:
    tag = value.__struct_config__.tag
    fields = {key: plain(getattr(value, key)) for key in value.__struct_fields__}
    return fields if tag is None else {"type": tag, **fields}
