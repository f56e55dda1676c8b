"""The built-in session view: a conversation with its messages, tool calls, state and turns.

view.py says what it is, content.py what a message says; messages.py and turns.py say what each
event does to it, builder.py how that is fast, and projector.py puts them together.
"""

from projections.session.content import Content, Media, Part, Raw, Reasoning, Refusal, Text
from projections.session.projector import SessionProjector
from projections.session.view import Message, Pause, PendingCall, ToolCall, Turn, View

__all__ = [
    "Content",
    "Media",
    "Message",
    "Part",
    "Pause",
    "PendingCall",
    "Raw",
    "Reasoning",
    "Refusal",
    "SessionProjector",
    "Text",
    "ToolCall",
    "Turn",
    "View",
]
