"""Every verb after all idle connections to Postgres have died: it connects anew like every other."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any, Final

import pytest
from sqlalchemy.engine import make_url

from kern_events import Consumer
from projections import Sessions
from tests import databases, facade
from tests.writers import eventually, notes, texts

IDLE: Final = 2
PARKED: Final = "refuses"


class Idle:
    """Sessions with idle connections of every kind, and a way to end them all on the server."""

    def __init__(self, sessions: Any, url: str, name: str) -> None:
        self.sessions = sessions
        self._server = facade.store_of(sessions)._server
        self._url = url
        self._name = name

    def kill(self) -> None:
        """Have idle connections, and end them: some have been dead for longer."""
        leases = [self._server._connections.take() for _ in range(IDLE)]
        others = [self._server._engine.connect() for _ in range(IDLE)]
        for lease in leases:
            self._server._connections.give(lease)
        for other in others:
            other.close()
        with closing(databases.connect(self._url)) as admin:
            found = "SELECT array_agg(pid) FROM pg_stat_activity WHERE application_name = %s"
            ended = admin.execute(found, (self._name,)).fetchone()
            admin.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS t (pid)", ended)
            left = "SELECT FROM pg_stat_activity WHERE pid = ANY(%s)"
            eventually(lambda: not admin.execute(left, ended).fetchall())


@pytest.fixture(params=[("own", "sync"), ("callers", "async")], ids=["own-sync", "callers-async"])
def idle(
    request: pytest.FixtureRequest, loop: facade.LoopThread, shared_postgres_url: str
) -> Iterator[Idle]:
    """Over an engine of the log's own, and over one of the caller's."""
    whose, facade_kind = request.param
    name = f"idle_{uuid.uuid4().hex}"
    url = make_url(shared_postgres_url).update_query_dict({"application_name": name})
    with ExitStack() as stack:
        engine = databases.engine(url.render_as_string(hide_password=False))
        stack.callback(engine.dispose)
        place = engine if whose == "callers" else url
        sessions = stack.enter_context(facade.open_sessions(facade_kind, loop, place, namespace=name))
        sessions.append("s", notes(3))
        with sessions.turn("s") as turn:
            turn.message("user", "Hi")
            turn.pause()
        sessions.fork("s", into="f", version=2)
        sessions.consumer(PARKED, refuse, attempts=1).step()
        yield Idle(sessions, shared_postgres_url, name)


def refuse(events: Any, connection: Any = None) -> None:
    raise LookupError


def take(events: Any, connection: Any = None) -> None:
    pass


def resumed(sessions: Any) -> None:
    with sessions.resume("s"):
        pass


def turned(sessions: Any) -> None:
    with sessions.turn("s") as turn:
        turn.message("user", "Hi")


def followed(sessions: Any) -> list[Any]:
    following = sessions.subscribe()
    try:
        return texts(following.batch(limit=3, timeout_s=60))
    finally:
        following.close()


VERBS: Final[dict[str, Callable[[Any], Any]]] = {
    "append": lambda it: it.append("s", notes(1)),
    "append_many": lambda it: it.append_many([("s", notes(1), None), ("t", notes(1), 0)]),
    "branches": lambda it: it.branches("s"),
    "consumer": lambda it: it.consumer("c", take).run(until_idle=True),
    "consumers": lambda it: it.consumers(),
    "describe": lambda it: it.describe("s", name="A name"),
    "diff": lambda it: [it.diff("s", 1, 3)],
    "export": lambda it: list(it.export("s")),
    "feed_held_by": lambda it: [it.feed_held_by()],
    "fork": lambda it: it.fork("s", into="g"),
    "head": lambda it: it.head("s").version,
    "history": lambda it: it.history("s"),
    "load": lambda it: it.load("s"),
    "migrate": lambda it: it.migrate(),
    "preview_restore": lambda it: [it.preview_restore("s", to_version=2)],
    "read": lambda it: list(it.read("s")),
    "read_all": lambda it: list(it.read_all()),
    "rebuild": lambda it: it.rebuild(),
    "replay": lambda it: list(it.replay("s")),
    "resume": lambda it: resumed(it) or True,
    "restore": lambda it: it.restore("s", to_version=2),
    "sessions": lambda it: it.sessions(),
    "subscribe": followed,
    "turn": lambda it: turned(it) or True,
    "verify": lambda it: it.verify().sessions,
    "warmer": lambda it: it.warmer().step().active,
    "delete": lambda it: it.delete("f"),
}
CONSUMER: Final[dict[str, Callable[[Any], Any]]] = {
    "run": lambda it: it.run(until_idle=True) == 0,
    "step": lambda it: it.step().active,
    "position": lambda it: it.position(),
    "parked": lambda it: it.parked(),
    "retry": lambda it: it.retry("s"),
    "skip": lambda it: it.skip("s", 1),
}


def test_every_verb_connects_anew(idle: Idle) -> None:
    for verb, call in VERBS.items():
        idle.kill()

        assert call(idle.sessions), verb


@pytest.mark.parametrize("transactional", [False, True], ids=["leased", "transactional"])
def test_every_verb_of_a_consumer_connects_anew(idle: Idle, transactional: bool) -> None:
    consumer = idle.sessions.consumer(PARKED, refuse, transactional=transactional)
    for verb, call in CONSUMER.items():
        idle.kill()

        assert call(consumer), verb
    assert consumer.parked()[0].version == 2


def test_a_step_that_is_in_the_middle_connects_anew(idle: Idle) -> None:
    taken: list[Any] = []

    def handle(events: Any) -> None:
        taken.extend((event.session_id, event.version) for event in events)
        idle.kill()

    assert idle.sessions.consumer("c", handle, batch_size=4).run(until_idle=True) == 7
    assert len(taken) == len(set(taken)) == 7


def test_no_verb_is_left_out() -> None:
    def of(kind: type, inner: set[str]) -> set[str]:
        public = {name for name, each in inspect.getmembers(kind, callable) if not name.startswith("_")}
        return public - inner

    assert of(Sessions, {"close", "open"}) == set(VERBS)
    assert of(Consumer, {"stop", "wake"}) == set(CONSUMER)
