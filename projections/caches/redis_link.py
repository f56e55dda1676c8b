"""How Redis is reached: one exchange per call, at once or not at all.

redis-py opens connections (addresses, TLS, authentication) and parses replies. What lies between is done
here, because of what it costs there: a command takes 30 µs of machinery, a cluster that fails over holds
its callers for seconds, and whoever calls pays for finding out whether a dead server is back.

The time that a call may take is for all of it together, to the last byte of the reply, and once more for
a connection with all that belongs to it. A reply has a limit. So a server that sends a byte now and then,
or without end, is one that does not answer.

A server that does not answer is *down* from then on, and calls for it fail without trying. A thread that
runs only meanwhile tries it instead, and brings the map of a cluster up to date. It also does what could
not be left undone, once that is possible.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import threading
import time
import weakref
from binascii import crc_hqx
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeAlias

import redis
from redis import connection as redis_connection
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
)
from redis.retry import Retry

logger: Final = logging.getLogger("projections")

# The first try of a server that is down comes after 50 ms, the next ones up to a second apart.
FIRST_TRY_S: Final = 0.05
TRY_EVERY_S: Final = 1.0

# A thread that calls takes a connection; more than this many are not kept for the next burst.
IDLE_AT_MOST: Final = 32

# So much is remembered of what has to be done once a server is back.
MOST_OWED: Final = 10_000

# What is moved gives a call more time: as much as a slow network in one building needs for it.
SLOWEST_BYTES_PER_S: Final = 64 << 20

# Redirections and scripts to be loaded on the way to an answer; more is a cluster that disagrees.
HOPS: Final = 5

_SCHEMES: Final = {
    "redis": ("redis", False),
    "rediss": ("rediss", False),
    "valkey": ("redis", False),
    "valkeys": ("rediss", False),
    "unix": ("unix", False),
    "redis+cluster": ("redis", True),
    "rediss+cluster": ("rediss", True),
    "valkey+cluster": ("redis", True),
    "valkeys+cluster": ("rediss", True),
}
_SLOTS: Final = 16384
_ASKING: Final[Command] = (b"ASKING",)

# `hiredis` parses faster, if it is there. CLIENT SETINFO would cost a connection two round trips; newer
# versions of redis-py have another name for it and warn of the old one.
_QUIET: Final[dict[str, Any]] = (
    {"driver_info": None} if hasattr(redis, "DriverInfo") else {"lib_name": None, "lib_version": None}
)

_now: Final = time.monotonic

_parse_url: Final[Callable[[str], dict[str, Any]]] = redis_connection.parse_url

Command: TypeAlias = Sequence[bytes]
Reply: TypeAlias = "bytes | int | list[Reply] | redis.ResponseError | None"


class WrongType(Exception):
    """A key of ours holds something of another type."""


class TooLarge(Exception):
    """A reply is longer than replies may be; the rest of it was not read."""


class Budget:
    """What a call may take: one time for everything, and so many bytes for each reply."""

    __slots__ = ("_left_bytes", "_limit", "_timeout_s", "_until_s")

    def __init__(self, timeout_s: float, limit_bytes: int) -> None:
        self._timeout_s = timeout_s
        self._until_s = _now() + timeout_s
        self._limit = limit_bytes
        self._left_bytes = limit_bytes

    def begin(self) -> None:
        """Another reply is awaited, in what is left of the time."""
        self._left_bytes = self._limit

    def connected(self) -> None:
        """The time was for the connection: that of the call begins now."""
        self._until_s = _now() + self._timeout_s

    def left_s(self) -> float:
        """How long to wait for what comes next.

        Raises:
            TimeoutError: The time is over.
        """
        left_s = self._until_s - _now()
        if left_s <= 0:
            raise TimeoutError("the exchange has taken its time")
        return left_s

    def sends(self, size: int) -> None:
        """So many bytes are to be sent."""
        self._until_s += size / SLOWEST_BYTES_PER_S

    def received(self, size: int) -> None:
        """So many bytes more have come.

        Raises:
            TooLarge: That is more than a reply may have.
        """
        self._until_s += size / SLOWEST_BYTES_PER_S
        self._left_bytes -= size
        if self._left_bytes < 0:
            raise TooLarge(f"a reply of more than {self._limit:,} bytes")


class Line:
    """A connected socket as redis-py uses it, within the budget of the connection that it is of."""

    __slots__ = ("_connection", "_socket", "_waits_s")

    def __init__(self, socket: Any, connection: Any) -> None:
        self._socket = socket
        self._connection = connection
        self._waits_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def settimeout(self, timeout_s: float | None) -> None:
        """Nothing: the budget says how long to wait."""

    def recv(self, size: int) -> bytes:
        """As of a socket."""
        budget = self._ready()
        data: bytes = self._socket.recv(size)
        budget.received(len(data))
        return data

    def recv_into(self, buffer: Any) -> int:
        """As of a socket."""
        budget = self._ready()
        size: int = self._socket.recv_into(buffer)
        budget.received(size)
        return size

    def sendall(self, data: bytes) -> None:
        """As of a socket."""
        self._connection.budget.sends(len(data))
        self._ready()
        self._socket.sendall(data)

    def _ready(self) -> Budget:
        """Have the socket wait as long as the budget says, within a tenth: to tell it is a system call."""
        budget: Budget = self._connection.budget
        left_s = budget.left_s()
        if not 0.9 * self._waits_s <= left_s <= 1.1 * self._waits_s:
            self._socket.settimeout(left_s)
            self._waits_s = left_s
        return budget


class Script(NamedTuple):
    """A Lua script, and the name by which Redis remembers it."""

    source: bytes
    sha: bytes

    @classmethod
    def of(cls, source: str) -> Script:
        """The script of that text."""
        text = source.strip().encode()
        return cls(text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())

    def command(self, keys: Sequence[bytes], args: Iterable[bytes]) -> Command:
        """The command that runs it."""
        return (b"EVALSHA", self.sha, b"%d" % len(keys), *keys, *args)


class Address(NamedTuple):
    """What a URL says."""

    scheme: str
    cluster: bool
    options: dict[str, Any]

    @classmethod
    def of(cls, url: str, timeout_s: float) -> Address:
        """The address in a URL.

        Raises:
            ValueError: It is not one. What it says is not repeated: there may be a password in it.
        """
        scheme, separator, rest = url.partition("://")
        if not separator or scheme not in _SCHEMES:
            raise ValueError(f"a Redis URL begins with {', '.join(f'{known}://' for known in _SCHEMES)}")
        plain, cluster = _SCHEMES[scheme]
        try:
            options = _parse_url(f"{plain}://{rest}")
            options["connection_class"] = _within_budget(options.get("connection_class", redis.Connection))
            if plain == "rediss" and options.get("ssl_cert_reqs") != "none":
                options.setdefault("ssl_check_hostname", True)  # Before version 6, redis-py did not.
            options |= {
                "decode_responses": False,
                "health_check_interval": 0,
                "protocol": 2,  # Version 3 costs a round trip per connection, and more to parse.
                "retry": Retry(NoBackoff(), 0),
                "socket_connect_timeout": timeout_s,
                "socket_read_size": 1 << 18,
                "socket_timeout": timeout_s,
                **_QUIET,
            }
            _connection(options)
        except Exception:
            raise ValueError(f"not a Redis URL, or one with unknown options: {scheme}://…") from None
        if cluster and options.get("db"):
            raise ValueError("a Redis cluster has no database numbers")
        return cls(plain, cluster, options)


class Server:
    """One Redis process, and the idle connections to it."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._idle: list[Any] = []  # Taken from and given back at the end: both are atomic.
        self._keep = IDLE_AT_MOST

    @property
    def host(self) -> str:
        """Its name or address; "" for a Unix socket."""
        return str(self._options.get("host", "" if "path" in self._options else "localhost"))

    @property
    def port(self) -> int:
        """Its port."""
        return int(self._options.get("port", 6379))

    def __str__(self) -> str:
        return str(self._options["path"]) if "path" in self._options else f"{self.host}:{self.port}"

    def exchange(self, commands: Sequence[Command], budget: Budget) -> list[Reply]:
        """The replies to some commands, errors among them.

        Raises:
            TooLarge: They are longer than the budget allows.
            Exception: There was no answer, or one that is none; of any type, as the other end may send
                whatever it likes.
        """
        request, count = [_packed(commands)], len(commands)
        budget.begin()
        try:
            connection = self._idle.pop()
        except IndexError:
            return self._exchange(self._connected(budget), request, count, budget)
        try:
            return self._exchange(connection, request, count, budget)
        except redis.ConnectionError:
            # It was closed while it lay idle, and then the others were too. Whether the commands were
            # carried out nobody knows; all of ours may be repeated.
            self.hang_up()
        return self._exchange(self._connected(budget), request, count, budget)

    def _connected(self, budget: Budget) -> Any:
        connection = _connection(self._options)
        connection.budget = budget
        try:
            connection.connect()
        except BaseException:
            connection.disconnect()
            raise
        budget.connected()
        return connection

    def _exchange(self, connection: Any, request: list[bytes], count: int, budget: Budget) -> list[Reply]:
        connection.budget = budget
        try:
            connection.send_packed_command(request)
            replies = [_reply(connection) for _ in range(count)]
        except BaseException:
            connection.disconnect()  # The next one to use it would read this one's reply.
            raise
        if len(self._idle) < self._keep:
            self._idle.append(connection)
        else:
            connection.disconnect()
        return replies

    def hang_up(self) -> None:
        """Close the idle connections."""
        with suppress(IndexError):
            while True:
                self._idle.pop().disconnect()

    def close(self) -> None:
        """Close the idle connections, and from now on every other one after its use."""
        self._keep = 0
        self.hang_up()


class Link:
    """One Redis, or a cluster of them, by URL. Called by many threads; opens nothing until it is.

    Args:
        url: `redis://`, `rediss://`, `unix://`, `valkey://` or `valkeys://`, with `+cluster` for a
            cluster: `redis+cluster://`.
        timeout_s: How long a call may take, and a connection before it; a second more per 64 MiB.
        limit_bytes: How long the replies to a call may be together.
        probe: A key to try a server with, by deleting it: that finds out whether it can be written.

    Attributes:
        failures: How many calls were not answered, or by an error.
    """

    def __init__(self, url: str, timeout_s: float, limit_bytes: int, probe: bytes) -> None:
        address = Address.of(url, timeout_s)
        self.failures = 0
        self._timeout_s = timeout_s
        self._limit_bytes = limit_bytes
        self._options = address.options
        self._cluster = address.cluster
        self._probe = (b"UNLINK", probe)
        self._closed = False
        self._begin()
        _links.add(self)

    def _begin(self) -> None:
        self._home = Server(self._options)
        # Who has which slot. What a caller does not know yet, it learns from a redirection; the map is
        # fetched when the first one calls, for the one address that is known may be gone soon.
        self._slots: list[Server] = [self._home] * (_SLOTS if self._cluster else 1)
        self._outdated = self._cluster
        self._down: set[Server] = set()
        self._owed: dict[bytes, tuple[int, Callable[[bytes, int], bool]]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._watched = False
        self._said: set[str] = set()

    @property
    def available(self) -> bool:
        """Whether nothing is known to be down."""
        return not self._closed and not self._down

    def budget(self) -> Budget:
        """What a call may take that begins now."""
        return Budget(self._timeout_s, self._limit_bytes)

    def ask(
        self,
        tag: bytes,
        commands: Sequence[Command],
        script: Script | None = None,
        budget: Budget | None = None,
    ) -> list[Reply] | None:
        """The replies to commands whose keys all have the hash tag `tag`; None if there was no answer.

        Args:
            tag: What stands in braces in the keys.
            commands: Sent at once; all of them may be sent again.
            script: The one that they run, if they do.
            budget: Of the call that this belongs to; by default it is one by itself.

        Raises:
            WrongType: A key has another type than it has to have.
            TooLarge: The replies are longer than they may be.
        """
        budget = budget or self.budget()
        if self._outdated and not self._watched:
            with self._lock:
                self._watch()
        slot = crc_hqx(tag, 0) % len(self._slots)
        server = self._slots[slot]
        before: tuple[Command, ...] = ()
        for _ in range(HOPS):
            replies = self._replies(server, before, commands, budget)
            problem = next((reply for reply in replies or () if isinstance(reply, redis.ResponseError)), None)
            if problem is None:
                return replies
            if isinstance(problem, NoScriptError) and script is not None:
                before = (_load(script), *(command for command in before if command is _ASKING))
            elif self._cluster and (redirection := _redirection(problem)) is not None:
                kind, host, port = redirection
                server = self._server(host or server.host, port)
                before = (_ASKING,) if kind == "ASK" else ()
                if kind == "MOVED":
                    self._moved(slot, server)
            else:
                break
        assert problem is not None
        self._failed(server, problem)
        if "WRONGTYPE" in str(problem):
            raise WrongType
        return None

    def _replies(
        self, server: Server, before: tuple[Command, ...], commands: Sequence[Command], budget: Budget
    ) -> list[Reply] | None:
        """The replies to the commands, each of which comes after those of `before`."""
        if self._closed or server in self._down:
            return None
        try:
            if not before:
                return server.exchange(commands, budget)
            each = [word for command in commands for word in (*before, command)]
            return server.exchange(each, budget)[len(before) :: len(before) + 1]
        except TooLarge as error:
            self._failed(server, error)
            raise
        except Exception as error:
            self._failed(server, error)
            return None

    def owe(self, tag: bytes, epoch: int, pay: Callable[[bytes, int], bool]) -> None:
        """Have the thread call `pay(tag, epoch)` until it returns True; of a tag the highest epoch counts."""
        with self._lock:
            before, _ = self._owed.pop(tag, (0, pay))
            if len(self._owed) >= MOST_OWED:
                del self._owed[next(iter(self._owed))]
            self._owed[tag] = max(before, epoch), pay
            self._watch()

    def _settle(self) -> int:
        """Do what is owed, as far as it can be done; how much is left."""
        for tag, (epoch, pay) in tuple(self._owed.items()):
            if pay(tag, epoch):
                with self._lock:
                    if self._owed.get(tag) == (epoch, pay):
                        del self._owed[tag]
        return len(self._owed)

    def close(self) -> None:
        """Do what is owed, if that can be done now, and close every connection: nothing is answered then."""
        if self._owed and not self._closed:
            self._look()
            if self._owed:
                count = len(self._owed)
                sessions = "session" if count == 1 else "sessions"
                logger.warning("copies of %d erased %s stay in Redis till they expire", count, sessions)
        self._closed = True
        self._stop.set()
        for server in self._known():
            server.close()

    # ---------------------------------------------------------------------------- what is down

    def _failed(self, server: Server, error: Exception) -> None:
        """Count a failure, say so once, and if the server is of no use, do not ask it again."""
        down = not isinstance(error, redis.ResponseError | TooLarge) or _useless(error)
        with self._lock:
            self.failures += 1
            news = f"{server} {_kind(error)}"
            log = news not in self._said and server not in self._down
            self._said.add(news)
            if down and self._watch():
                self._down.add(server)
        if down:
            server.hang_up()
        if log:
            logger.warning("Redis at %s: %s; snapshots are not cached there meanwhile", server, _kind(error))

    def _watch(self) -> bool:
        """Have a thread look after what is down, and whether there is one. The lock is held."""
        if self._closed or self._watched:
            return self._watched
        thread = threading.Thread(
            target=_watch, args=(weakref.ref(self), self._stop), name="projections-redis", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # There can be no more threads: then every call tries for itself.
            return False
        self._watched = True
        return True

    def _look(self) -> bool:
        """Try what is down, and do what is owed; whether there is something to look after still."""
        if self._cluster:
            self._refresh()
        back = {server for server in tuple(self._down) if self._answers(server)}
        with self._lock:
            # A server that has no slots any more is not missed.
            self._down &= set(self._slots) - back
        self._settle()
        with self._lock:
            self._watched = bool(self._outdated or self._down or self._owed)
            if not self._watched:
                self._said.clear()
            return self._watched

    def _answers(self, server: Server) -> bool:
        try:
            (reply,) = server.exchange([self._probe], self.budget())
        except Exception:
            return False
        return not (isinstance(reply, redis.ResponseError) and _useless(reply))

    # ------------------------------------------------------------------------- who has which slot

    def _known(self) -> list[Server]:
        return sorted({*self._slots, self._home}, key=lambda server: server in self._down)

    def _server(self, host: str, port: int) -> Server:
        for server in self._known():
            if (server.host, server.port) == (host, port):
                return server
        return Server({**self._options, "host": host, "port": port})

    def _moved(self, slot: int, server: Server) -> None:
        with self._lock:
            self._slots[slot] = server
            self._outdated = True  # Where one slot went, others did too. The next call has it looked after.

    def _refresh(self) -> None:
        for server in self._known():
            try:
                (reply,) = server.exchange([(b"CLUSTER", b"SLOTS")], self.budget())
                slots = self._mapped(server, reply)
            except Exception:  # Another one may know.
                logger.debug("Redis at %s does not know the slots", server)
                continue
            with self._lock:
                self._slots, self._outdated = slots, False
            return

    def _mapped(self, source: Server, reply: Any) -> list[Server]:
        """The map in a reply to CLUSTER SLOTS: `[[first, last, [host, port, …], …], …]`."""
        slots = list(self._slots)
        for first, last, (host, port, *_), *_ in reply:
            if not 0 <= first <= last < _SLOTS:
                raise ValueError("no map of a cluster")
            server = self._server((host or b"").decode() or source.host, port)
            slots[first : last + 1] = [server] * (last + 1 - first)
        return slots


def _watch(link: weakref.ref[Link], stop: threading.Event) -> None:
    # A link that nobody has any more is not kept alive by this.
    pause_s = FIRST_TRY_S
    while not stop.wait(pause_s):
        alive = link()
        if alive is None or not alive._look():
            return
        del alive
        pause_s = min(2 * pause_s, TRY_EVERY_S)


def _connection(options: dict[str, Any]) -> Any:
    options = dict(options)
    return options.pop("connection_class")(**options)


@functools.cache
def _within_budget(kind: type[Any]) -> type[Any]:
    """A kind of connection whose socket is a Line; its `budget` is set before each exchange."""

    def connect(self: Any) -> Line:
        self.socket_connect_timeout = self.budget.left_s()
        self.socket_timeout = self.socket_connect_timeout  # For the handshake of TLS.
        return Line(kind._connect(self), self)

    return type(kind.__name__, (kind,), {"_connect": connect})


def _packed(commands: Sequence[Command]) -> bytes:
    # As redis-py's own, in a tenth of the time: everything is bytes already.
    return b"".join(
        part
        for command in commands
        for part in (b"*%d\r\n" % len(command), *(b"$%d\r\n%b\r\n" % (len(word), word) for word in command))
    )


def _reply(connection: Any) -> Reply:
    try:
        reply: Reply = connection.read_response()
    except redis.ResponseError as error:
        return error
    return reply


def _load(script: Script) -> Command:
    return (b"SCRIPT", b"LOAD", script.source)


def _useless(error: Exception) -> bool:
    """Whether a server that says so is of no use for now. A replica without a master still has its data."""
    return isinstance(error, ReadOnlyError | ClusterDownError) and not isinstance(error, MasterDownError)


def _redirection(error: redis.ResponseError) -> tuple[str, str, int] | None:
    """`MOVED 1234 host:port` or `ASK 1234 host:port`, of which redis-py may have cut off the first word."""
    text = str(error)
    if isinstance(error, MovedError) or text.startswith("MOVED "):
        kind = "MOVED"
    elif isinstance(error, AskError) or text.startswith("ASK "):
        kind = "ASK"
    else:
        return None
    host, _, port = text.rpartition(" ")[2].rpartition(":")
    return (kind, host, int(port)) if port.isdecimal() else None


def _kind(error: Exception) -> str:
    """An error in a word or two. Of a reply only the code: the rest may repeat what was sent."""
    if type(error) is redis.ResponseError and (code := str(error).partition(" ")[0]).isupper():
        return code
    return type(error).__name__


_links: weakref.WeakSet[Link] = weakref.WeakSet()


def _begin_anew() -> None:
    # The connections are the parent's, the lock may be held and the thread is not there. What is dropped
    # is closed without a word to the server.
    for link in _links:
        link._begin()


os.register_at_fork(after_in_child=_begin_anew)
