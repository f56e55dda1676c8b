"""A Redis that means harm: it stands before a real one, and some of its replies are not what that said."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, BinaryIO

from tests.writers import PATIENCE_S

ERRORS = [
    b"READONLY You can't write against a read only replica.",
    b"LOADING Redis is loading the dataset in memory",
    b"NOAUTH Authentication required.",
    b"WRONGPASS invalid username-password pair",
    b"NOPERM this user has no permissions",
    b"OOM command not allowed when used memory > 'maxmemory'.",
    b"NOSCRIPT No matching script.",
    b"WRONGTYPE Operation against a key holding the wrong kind of value",
    b"BUSY Redis is busy running a script.",
    b"CLUSTERDOWN The cluster is down",
    b"MASTERDOWN Link with MASTER is down",
    b"TRYAGAIN Multiple keys request during rehashing of slot",
    b"MISCONF Errors writing to the AOF file",
    b"",
]
WRONG = [
    b":1\r\n", b":0\r\n", b":-9223372036854775808\r\n", b"$-1\r\n", b"*-1\r\n", b"*0\r\n", b"+OK\r\n",
    b"$0\r\n\r\n",
    b"*2\r\n*4\r\n$1\r\n1\r\n$1\r\n9\r\n$1\r\nx\r\n$1\r\ny\r\n*0\r\n", b"*1\r\n" * 900,
]  # fmt: skip
NEWER = [
    b"%1\r\n+a\r\n:1\r\n",
    b"#t\r\n",
    b",1.5\r\n",
    b"_\r\n",
    b"(12345678901234567890\r\n",
    b"~1\r\n:1\r\n",
]
LIES = [
    b"$9999999999\r\n",
    b"$-7\r\n",
    b"$nine\r\n",
    b"*99999999\r\n",
    b"*-9\r\n",
    b"$3\r\nlonger than that\r\n",
]
PUSHED = b">2\r\n$10\r\ninvalidate\r\n*0\r\n"


def frame(stream: BinaryIO) -> bytes:
    """A request or a reply, as it was sent.

    Raises:
        EOFError: There is no more.
    """
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise EOFError
    if line[:1] == b"$":
        return line + (stream.read(int(line[1:]) + 2) if line[1:2] != b"-" else b"")
    count = int(line[1:]) if line[:1] == b"*" else 0
    return line + b"".join(frame(stream) for _ in range(count))


class HostileRedis:
    """Listens at `port` while the context lasts, and does harm while it is `hostile`.

    Args:
        server: The port of the real one.
        chance: What it does next.
        forge: Makes of a reply one with other contents, sealed by somebody who does not know how.

    Attributes:
        done: How often it has done what.
    """

    def __init__(self, server: int, chance: random.Random, forge: Callable[[bytes], bytes]) -> None:
        self._server = server
        self._chance = chance
        self._forge = forge
        self._replies: dict[bytes, list[bytes]] = {}  # by request and by command
        self._ended = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self.port: int = self._listener.getsockname()[1]
        self.hostile = False
        self.done: Counter[str] = Counter()

    def __enter__(self) -> HostileRedis:
        self._threads[0].start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._serve, args=(client,), daemon=True))
                self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        with (
            contextlib.suppress(OSError, EOFError),
            client,
            socket.create_connection(("127.0.0.1", self._server)) as server,
            client.makefile("rb") as asked,
            server.makefile("rb") as answered,
        ):
            while not self._ended.is_set():
                request = frame(asked)
                server.sendall(request)
                reply = frame(answered)
                self._answer(client, request, self._slots() if b"\r\nSLOTS\r\n" in request else reply)

    def _slots(self) -> bytes:
        """To CLUSTER SLOTS: all of them are here."""
        return b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n" % self.port

    def _answer(self, client: socket.socket, request: bytes, reply: bytes) -> None:
        command = request.split(b"\r\n", 3)[2]
        kind = self._chance.choice(list(HARMS)) if self.hostile and self._chance.random() < 0.3 else None
        if kind is None:
            client.sendall(reply)
        else:
            self.done[kind] += 1
            HARMS[kind](self, client, (request, command), reply)
        for key in (request, command):
            self._replies.setdefault(key, []).append(reply)

    def _drip(self, client: socket.socket, _: Any, reply: bytes) -> None:
        for at in range(len(reply)):
            client.sendall(reply[at : at + 1])
            if self._ended.wait(0.01):
                return

    def _flood(self, client: socket.socket, _: Any, reply: bytes) -> None:
        client.sendall(b"$400000000\r\n")
        while not self._ended.is_set():  # Until it is hung up on.
            client.sendall(b"x" * 65536)

    def _hang_up(self, client: socket.socket, _: Any, reply: bytes) -> None:
        client.sendall(reply[: self._chance.randrange(len(reply))])
        client.shutdown(socket.SHUT_RDWR)

    def _lie(self, client: socket.socket, _: Any, reply: bytes) -> None:
        """About how long it is; sizes that are true are made false."""
        if reply[:1] in b"$*" and self._chance.random() < 0.5:
            line, _, rest = reply.partition(b"\r\n")
            client.sendall(line[:1] + b"%d\r\n" % (int(line[1:]) + self._chance.choice((-1, 1, 100))) + rest)
        else:
            client.sendall(self._chance.choice(LIES))

    def _replay(self, client: socket.socket, asked: tuple[bytes, bytes], reply: bytes) -> None:
        """What it has said to the same request before."""
        client.sendall(self._chance.choice(self._replies.get(asked[0], [reply])))

    def _mistake(self, client: socket.socket, asked: tuple[bytes, bytes], reply: bytes) -> None:
        """What it has said to another request of that command: whole, and of another session."""
        client.sendall(self._chance.choice(self._replies.get(asked[1], [reply])))

    def _change(self, client: socket.socket, _: Any, reply: bytes) -> None:
        place = self._chance.randrange(len(reply))
        changed = bytes([reply[place] ^ 1 << self._chance.randrange(8)])
        client.sendall(reply[:place] + changed + reply[place + 1 :])

    def _send_away(self, client: socket.socket, _: Any, reply: bytes) -> None:
        kind, slot = self._chance.choice((b"MOVED", b"ASK")), self._chance.randrange(16384)
        where = self._chance.choice((b"127.0.0.1:%d" % self.port, b"127.0.0.1:1", b":1", b"nowhere", b""))
        client.sendall(b"-%b %d %b\r\n" % (kind, slot, where))


def _one_of(replies: list[bytes]) -> Callable[..., None]:
    return lambda redis, client, asked, reply: client.sendall(redis._chance.choice(replies))


HARMS: dict[str, Callable[..., None]] = {
    "drips": HostileRedis._drip,
    "sends without end": HostileRedis._flood,
    "hangs up": HostileRedis._hang_up,
    "of another type": _one_of(WRONG),
    "of a newer protocol": _one_of(NEWER),
    "no protocol": lambda redis, client, asked, reply: client.sendall(redis._chance.randbytes(50) + b"\r\n"),
    "lies about sizes": HostileRedis._lie,
    "an error": _one_of([b"-%b\r\n" % error for error in ERRORS]),
    "sends away": HostileRedis._send_away,
    "pushes": lambda redis, client, asked, reply: client.sendall(PUSHED + reply),
    "twice": lambda redis, client, asked, reply: client.sendall(reply + reply),
    "replayed": HostileRedis._replay,
    "of another session": HostileRedis._mistake,
    "changed": HostileRedis._change,
    "forged": lambda redis, client, asked, reply: client.sendall(redis._forge(reply)),
}
