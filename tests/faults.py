"""Faults to inject: a store whose answers get lost, and a proxy that cuts connections.

Both follow a seeded schedule, so a run that fails can be repeated.
"""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import stamina

from kern_events import Head
from kern_events.errors import StoreUnavailable
from kern_events.store.base import AnswerLost, Refused, unknown_head
from tests.writers import PATIENCE_S

FATES = ("answered", "lost", "unsent", "late")


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Look-ups that fail are repeated at once, and in silence."""
    stamina.set_testing(True, attempts=2)
    logging.getLogger("stamina").setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logging.getLogger("stamina").setLevel(logging.NOTSET)
        stamina.set_testing(False)


class FaultyStore:
    """A store behind a bad line: an answer is lost, a request never arrives, or arrives later.

    A late request arrives at any later moment, behind whatever others have done meanwhile. Between
    any two requests, `others` may have their turn.
    """

    def __init__(self, inner: Any, chance: random.Random, others: Callable[[], Any]) -> None:
        self._inner = inner
        self._chance = chance
        self.others = others
        self._late: list[Callable[[], Any]] = []
        self.faults = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def attempt(self, batch: Any, base: Any, lock: bool = False) -> Any:
        self._meanwhile()
        head = base if isinstance(base, Head) else self._head(batch)
        if type(base) is int and base != head.version:
            return self._inner.attempt(batch, base)
        return self._sent(lambda: self._inner.attempt(batch, head), AnswerLost(head))

    def submit(self, batch: Any, base: Any) -> Future[Any]:
        """As a queue would: the answer, or its loss, comes in a future."""
        future: Future[Any] = Future()
        try:
            future.set_result(self.attempt(batch, base))
        except Exception as error:
            future.set_exception(error)
        return future

    def attempt_many(self, batches: Any) -> Any:
        self._meanwhile()
        heads = [self._head(batch) for batch, _ in batches]
        pinned = [
            (batch, head if base is None else base)
            for (batch, base), head in zip(batches, heads, strict=True)
        ]
        if len(heads) > 1 and self._chance.random() < 0.1:
            self.faults += 1
            raise AnswerLost(*heads[:-1])  # The line broke before all heads were read.
        return self._sent(lambda: self._inner.attempt_many(pinned), AnswerLost(*heads))

    def delete(self, namespace: str, session_id: str, tombstone: Any) -> Any:
        self._meanwhile()
        head = self._inner.head(namespace, session_id)
        if head is None or head.status == "deleted":
            return None

        tombstone(head)  # May refuse the head, as within the transaction.

        def run() -> Any:
            same = self._inner.head(namespace, session_id) == head
            return self._inner.delete(namespace, session_id, tombstone) if same else Refused(head)

        return self._sent(run, AnswerLost(head))

    def fork(self, batch: Any, origin: Any) -> Any:
        self._meanwhile()
        base = Head(origin.version, bytes(32))
        return self._sent(lambda: self._inner.fork(batch, origin), AnswerLost(base))

    def look_up(self, batch: Any, base: int, count: int, *, durable: bool = False) -> Any:
        self._meanwhile()
        if self._chance.random() < 0.25:
            raise StoreUnavailable("the line is down")
        return self._inner.look_up(batch, base, count, durable=durable)

    def settle(self) -> None:
        """Everything that is still under way arrives."""
        while self._late:
            self._arrive()

    def _sent(self, request: Callable[[], Any], lost: Exception) -> Any:
        fate = self._chance.choices(FATES, (4, 2, 1, 3))[0]
        if fate == "answered":
            return request()
        self.faults += 1
        if fate == "lost":
            request()
        elif fate == "late":
            self._late.append(request)
        raise lost

    def _meanwhile(self) -> None:
        while self._late and self._chance.random() < 0.4:
            self._arrive()
        if self._chance.random() < 0.2:
            self.others()

    def _arrive(self) -> None:
        self._late.pop(self._chance.randrange(len(self._late)))()

    def _head(self, batch: Any) -> Head:
        return self._inner.head(batch.namespace, batch.session_id) or unknown_head(batch)


class LosingStore:
    """Loses the answer of the next attempt, which lands; before it is told, something else happens."""

    def __init__(self, inner: Any, meanwhile: Callable[[], Any]) -> None:
        self._inner = inner
        self._meanwhile: Callable[[], Any] | None = meanwhile

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def attempt(self, batch: Any, base: Any, lock: bool = False) -> Any:
        head = self._inner.head(batch.namespace, batch.session_id) or unknown_head(batch)
        answer = self._inner.attempt(batch, base, lock)
        if self._meanwhile is None:
            return answer
        meanwhile, self._meanwhile = self._meanwhile, None
        meanwhile()
        raise AnswerLost(head)

    def submit(self, batch: Any, base: Any) -> Future[Any] | None:
        return None


class CuttingProxy:
    """Stands between a client and a server, and cuts a connection when it is told to.

    `cut_next` arms it once: `before` cuts when the client next sends something, which the server
    never sees; `during` lets the server have it and cuts at once; `after` cuts when the server has
    answered, which the client never sees; `freeze` cuts nothing, but holds back that and what follows on
    that connection. `down` cuts everything and answers nobody. `freeze` holds
    back everything, on the connections that there are or on new ones too: to both sides, the other one is
    silent.
    """

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._armed: str | None = None
        self._matching = b""
        self._down = self._then_down = False
        self._open: set[socket.socket] = set()
        self._flows: list[threading.Event] = []
        self._frozen = False
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()
        self.cuts = 0

    def cut_next(self, mode: str, matching: bytes = b"", *, then_down: bool = False) -> None:
        """Cut at the next message of a client that has these bytes in it."""
        with self._lock:
            self._armed, self._matching, self._then_down = mode, matching, then_down

    def down(self) -> None:
        """Cut all connections, and refuse new ones."""
        self._down = True
        for one in list(self._open):
            close(one)

    def up(self) -> None:
        """Take connections again."""
        self._down = False

    def freeze(self, *, new: bool = True) -> None:
        """Hold everything back."""
        with self._lock:
            self._frozen = new
            for flow in self._flows:
                flow.clear()

    def thaw(self) -> None:
        """Let it go on."""
        with self._lock:
            self._frozen = False
            for flow in self._flows:
                flow.set()

    def close(self) -> None:
        """Stop."""
        self.down()
        self.thaw()
        close(self._listener)
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._down:
                close(client)
                continue
            try:
                server = socket.create_connection(self._server)
            except OSError:
                close(client)
                continue
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open.add(one)
            cut, flow = threading.Event(), self._flow()
            for run in (self._forward, self._answer):
                args = (client, server, cut, flow)
                self._threads.append(threading.Thread(target=run, args=args, daemon=True))
                self._threads[-1].start()

    def _flow(self) -> threading.Event:
        """Set while what a new connection sends goes on."""
        flow = threading.Event()
        with self._lock:
            self._flows.append(flow)
            if not self._frozen:
                flow.set()
        return flow

    def _forward(
        self, client: socket.socket, server: socket.socket, cut: threading.Event, flow: threading.Event
    ) -> None:
        """What the client sends, until it is to be cut."""
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 20):
                mode = self._mode_for(data)
                if mode == "before":
                    break
                if mode == "after":
                    cut.set()  # Its answer is the last that comes, and goes nowhere.
                if mode == "freeze":
                    flow.clear()
                flow.wait()
                server.sendall(data)
                if mode == "during":
                    break
        self._end(client, server)

    def _answer(
        self, client: socket.socket, server: socket.socket, cut: threading.Event, flow: threading.Event
    ) -> None:
        """What the server answers."""
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 20):
                if cut.is_set():
                    break
                flow.wait()
                client.sendall(data)
        self._end(client, server)

    def _mode_for(self, data: bytes) -> str | None:
        with self._lock:
            if self._armed is None or self._matching not in data:
                return None
            mode, self._armed = self._armed, None
            self._down = self._down or self._then_down
            self.cuts += 1
            return mode

    def _end(self, *sockets: socket.socket) -> None:
        for one in sockets:
            self._open.discard(one)
            close(one)


def close(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
