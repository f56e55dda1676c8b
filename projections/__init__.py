"""What the recorded events of a session mean: projectors, views, snapshots and `load`.

`kern_events` is what happened, `projections` is what it means: delete everything that this package
ever wrote, and nothing is lost.

::

    from projections import Sessions

    with Sessions.open("sqlite:///sessions.db") as sessions:
        view = sessions.load("s1")                        # now: messages, state, turns, usage ...
        before = sessions.load("s1", turn=3)              # or as of a turn, a version= or a time, at=
        prompt = sessions.history("s1", last_turns=10).to_openai()
        sessions.append("s1", drafts, expected=view.head) # only if nobody came between
        sessions.restore("s1", to_turn=3)                 # go on from there; nothing is deleted

A projector (projector.py) folds events into a view: `initial()`, then `evolve(view, event)` for one
after the other. SessionProjector makes the `View` that `load` returns; your own, passed as
`load(projector=...)`, makes its own::

    class Questions:
        name, version, scope = "questions", 1, "live"

        def initial(self):
            return 0

        def evolve(self, view, event):
            asked = event.type == "message.added" and event.payload["role"] == "user"
            return view + asked

A projector that raises fails its own loads alone, with ProjectionFailed. (This one raises where a
message was erased: `event.erased` tells.)

Views are frozen all the way down and shared by everybody who loads them; `view.to_dict()` is a copy
that is free to change. Snapshots are kept in a cache (caches/), by default in this process. A cache is
only a baseline: every load asks the log, in one query, for the head and what is new (loading.py). So
a view is never older than the call, whatever the cache says.

Where things are: session/ is the session view, chunks.py the sequences in it, frozen.py the JSON in
it, history.py the messages for a prompt, sessions.py and aio.py the verbs.
"""

from projections.aio import AsyncSessions
from projections.caches import MemoryCache, RedisCache
from projections.errors import ProjectionFailed
from projections.history import History, history
from projections.projector import Projector
from projections.rebuild import Failure, RebuildReport
from projections.session import Message, SessionProjector, ToolCall, Turn, View
from projections.sessions import DeleteReceipt, Sessions
from projections.travel import Diff

__all__ = [
    "AsyncSessions",
    "DeleteReceipt",
    "Diff",
    "Failure",
    "History",
    "MemoryCache",
    "Message",
    "ProjectionFailed",
    "Projector",
    "RebuildReport",
    "RedisCache",
    "SessionProjector",
    "Sessions",
    "ToolCall",
    "Turn",
    "View",
    "history",
]
