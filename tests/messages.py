"""A proxy that knows where one message of Postgres' protocol ends and the next begins, and cuts there."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from struct import Struct

from tests import faults

MODES = ("before", "in", "after", "unheard", "half heard", "late")

_LENGTH = Struct(">I")
_REQUESTS = 16  # bytes of what may come before the startup message: for TLS, for GSS, to cancel


class MessageProxy(faults.CuttingProxy):
    """Cuts a connection at one message that the client sends; `cut_at` arms it once.

    `before` it: the server does not get it. `in` it: half of its bytes arrive. `after` it: it arrives, and
    nothing else does. `unheard`: the answer goes nowhere. `half heard`: half of the answer's bytes come.
    `late`: the client is cut at once, and the server gets the message and what follows a moment later.
    """

    def __init__(self, host: str, port: int, chance: random.Random) -> None:
        self._chance = chance
        self._left = 0
        self._mode: str | None = None
        self._halved: set[threading.Event] = set()
        self.at: Counter[str] = Counter()
        super().__init__(host, port)

    def cut_at(self, messages: int, mode: str) -> None:
        """Cut at the last of so many messages from now, on whatever connection that comes."""
        with self._lock:
            self._left, self._mode = messages, mode

    def _forward(
        self, client: socket.socket, server: socket.socket, cut: threading.Event, flow: threading.Event
    ) -> None:
        with contextlib.suppress(OSError):
            for message, rest in _messages(client):
                mode = self._mode_at(message)
                if mode == "before":
                    break
                if mode == "late":
                    faults.close(client)
                    time.sleep(self._chance.uniform(0, 0.05))
                    server.sendall(message + rest)
                    break
                if mode in ("unheard", "half heard"):
                    if mode == "half heard":
                        self._halved.add(cut)
                    cut.set()
                server.sendall(message[: len(message) // 2] if mode == "in" else message)
                if mode in ("in", "after"):
                    break
        self._end(client, server)

    def _answer(
        self, client: socket.socket, server: socket.socket, cut: threading.Event, flow: threading.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 20):
                if cut.is_set():
                    if cut in self._halved:
                        client.sendall(data[: len(data) // 2])
                    break
                client.sendall(data)
        self._end(client, server)

    def _mode_at(self, message: bytes) -> str | None:
        with self._lock:
            self._left -= 1
            if self._mode is None or self._left > 0:
                return None
            mode, self._mode = self._mode, None
            self.cuts += 1
            self.at[f"{mode} {_named(message)}"] += 1
            return mode


def _messages(client: socket.socket) -> Iterator[tuple[bytes, bytes]]:
    """Each message that comes, and what has come behind it already."""
    buffer, started = b"", False
    while data := client.recv(1 << 20):
        buffer += data
        while len(buffer) >= (5 if started else 4):
            size = _LENGTH.unpack_from(buffer, started)[0] + started
            if len(buffer) < size:
                break
            message, buffer = buffer[:size], buffer[size:]
            started = started or size > _REQUESTS
            yield message, buffer


def _named(message: bytes) -> str:
    return chr(message[0]) if message[0] else "startup"
