"""A snapshot whose past is not the log's past is dropped, also where the log has grown beyond it."""

from kern_events import Sessions, message
from projections import MemoryCache


def test_a_snapshot_of_a_lost_tail_is_not_folded_on() -> None:
    cache = MemoryCache()
    with Sessions.open("memory:", cache=cache) as before, Sessions.open("memory:", cache=cache) as after:
        before.append("s", [message("user", "this was lost")])
        before.load("s")
        after.append("s", [message("user", "one")])
        after.append("s", [message("user", "two")])

        view = after.load("s")

        assert [one.content for one in view.messages] == ["one", "two"]
