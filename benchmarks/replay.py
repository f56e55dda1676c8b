"""P7 and P8: how many events a second are folded again, of one long session and of all?

The floor reads the same rows with the raw driver, one page after the other, and decodes each payload. A
projector with one field shows what reading costs, the session view what most will fold.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any, Final

import orjson

from benchmarks import floors, workload
from benchmarks.measure import Bench, Result
from benchmarks.workload import SESSION
from kern_events import Event, SessionLog
from projections import MemoryCache, Sessions

_TURNS: Final = 10_000
_SESSIONS: Final = 1_000
_TURNS_EACH: Final = 63  # about 500 events
_PAGE: Final = 5_000
_P7: Final = {"SQLite": 300_000, "Postgres": 200_000}
_P8: Final = {"SQLite": (300_000, 550_000), "Postgres": (200_000, None)}

_SQLITE_ROWS: Final = (
    "SELECT version, payload FROM kern_events WHERE session = 1 AND version > ? ORDER BY version LIMIT ?"
)
_POSTGRES_ROWS: Final = (
    "SELECT version, payload FROM kern_events WHERE namespace = 'default' AND session_id = %b "
    "AND version > %b ORDER BY version LIMIT %b"
)
_SQLITE_ALL: Final = "SELECT session, version, payload FROM kern_events ORDER BY session, version"
_POSTGRES_ALL: Final = "SELECT session_id, version, payload FROM kern_events ORDER BY session_id, version"


class Counted:
    """One field: how many messages there are."""

    name, version, scope, view_type = "counted", 1, "live", int

    def initial(self) -> int:
        """No messages."""
        return 0

    def evolve(self, view: int, event: Event) -> int:
        """One more, if it is one."""
        return view + (event.type == "message.added")

    def fold(self, view: int, events: Sequence[Event]) -> int:
        """As evolve, for many."""
        return view + sum(event.type == "message.added" for event in events)


def run(bench: Bench) -> Iterator[Result]:
    """One session of 80,000 events, then 1,000 of 500."""
    for kind in ("SQLite", "Postgres"):
        yield from _one(bench, kind)
    for kind in ("SQLite", "Postgres"):
        yield from _all(bench, kind)


def _one(bench: Bench, kind: str) -> Iterator[Result]:
    turns = 2_000 if bench.quick else _TURNS
    url = bench.long(kind, turns)
    rates: dict[str, list[float]] = {"raw": [], "one field": [], "session view": [], "replay": []}
    opened = Sessions.open(url, cache=MemoryCache(0), durable=False)
    with opened as sessions, closing(_reader(kind, url)) as read:
        count = sessions.head(SESSION).version
        contenders: dict[str, Callable[[], object]] = {
            "raw": read.one,
            "one field": lambda: sessions.load(SESSION, projector=Counted()),
            "session view": lambda: sessions.load(SESSION),
            "replay": lambda: sum(1 for _ in sessions.replay(SESSION, projector=Counted())),
        }
        _interleaved(contenders, rates, count, 3 if bench.quick else 7)
    for name, target in (("one field", _P7[kind]), ("session view", None), ("replay", None)):
        yield _line("P7", f"{name}, {count:,} events of one session, {kind}", rates, name, target)


def _all(bench: Bench, kind: str) -> Iterator[Result]:
    count = 100 if bench.quick else _SESSIONS
    url = f"sqlite:///{bench.sqlite()}" if kind == "SQLite" else bench.postgres()
    with SessionLog(url) as log:
        for number in range(count):
            workload.record(log, f"session-{number:04}", _TURNS_EACH)
    bench.analyse(url)
    names = ("raw", "one field", "session view", "one field, 2 processes", "session view, 2 processes")
    rates: dict[str, list[float]] = {name: [] for name in names}
    with Sessions.open(url) as sessions, closing(_reader(kind, url)) as read:
        events = count * _TURNS_EACH * 8

        def rebuild(projector: Counted | None, workers: int) -> Callable[[], object]:
            def work() -> object:
                for info in sessions.sessions(limit=10_000):
                    sessions._store.forget_snapshots(sessions.namespace, info.session_id, "", "")
                started = time.perf_counter()
                report = sessions.rebuild(projector, workers=workers)
                assert report.ok
                return time.perf_counter() - started

            return work

        contenders = {
            "raw": read.all,
            "one field": rebuild(Counted(), 1),
            "session view": rebuild(None, 1),
            "one field, 2 processes": rebuild(Counted(), 2),
            "session view, 2 processes": rebuild(None, 2),
        }
        _interleaved(contenders, rates, events, 2 if bench.quick else 3)
    one, two = _P8[kind]
    targets = {"one field": one, "one field, 2 processes": two}
    for name in names[1:]:
        what = f"rebuild, {name}, {count:,} sessions, {events:,} events, {kind}"
        yield _line("P8", what, rates, name, targets.get(name))


def _interleaved(
    contenders: dict[str, Callable[[], object]], rates: dict[str, list[float]], events: int, rounds: int
) -> None:
    for number in range(-1, rounds):
        for name, work in contenders.items():
            started = time.perf_counter()
            taken = work()
            seconds = taken if isinstance(taken, float) else time.perf_counter() - started
            if number >= 0:
                rates[name].append(events / seconds)


class _reader:
    """The same rows by the raw driver."""

    def __init__(self, kind: str, url: str) -> None:
        self._sqlite = floors.sqlite_ours(floors.sqlite_path(url)) if kind == "SQLite" else None
        self._cursor = None if self._sqlite else floors.postgres_ours(url)

    def one(self) -> None:
        """Of one session, page by page."""
        after = 0
        while rows := self._page(after):
            for _, payload in rows:
                orjson.loads(payload)
            after = rows[-1][0]

    def _page(self, after: int) -> Sequence[Any]:
        if self._sqlite is not None:
            return self._sqlite.execute(_SQLITE_ROWS, (after, _PAGE)).fetchall()
        assert self._cursor is not None
        return self._cursor.execute(_POSTGRES_ROWS, (SESSION, after, _PAGE)).fetchall()

    def all(self) -> None:
        """Of all sessions, one after the other."""
        if self._sqlite is not None:
            for _, _, payload in self._sqlite.execute(_SQLITE_ALL):
                orjson.loads(payload)
            return
        assert self._cursor is not None
        for _, _, payload in self._cursor.execute(_POSTGRES_ALL).fetchall():
            orjson.loads(payload)

    def close(self) -> None:
        """Give the connection back."""
        (self._sqlite or self._cursor.connection).close()  # type: ignore[union-attr]


def _line(question: str, what: str, rates: dict[str, list[float]], name: str, target: int | None) -> Result:
    ours, raw = statistics.median(rates[name]), statistics.median(rates["raw"])
    said = "" if target is None else f"≥ {target // 1000}k/s"
    held = None if target is None else ours >= target
    numbers = {"events_per_s": ours, "raw_per_s": raw, "target_per_s": target}
    return Result(
        question, what, f"{ours / 1e3:,.0f}k/s", f"{raw / 1e3:,.0f}k/s", raw / ours, said, held, numbers
    )
