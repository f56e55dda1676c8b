"""A cancelled await is decided before it returns: recorded, or never to be."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import sqlite3
import threading

import pytest

from kern_events import AsyncSessionLog, SessionLog
from tests.facade import only_on
from tests.writers import PATIENCE_S, eventually, note, notes, pick, texts


@pytest.fixture
def facade_kind():
    return "async"


@pytest.fixture
def open_async(address, loop):
    """Opens async logs; closes them on the loop."""
    logs = []

    def opening(**options):
        logs.append(AsyncSessionLog(address.url, namespace=address.namespace, **options))
        return logs[-1]

    yield opening
    for log in logs:
        loop.run(log.close())


class Gate:
    """Holds up whoever calls a function of the store, until it is opened."""

    def __init__(self, monkeypatch, store, name):
        self.entered, self._opened = threading.Event(), threading.Event()
        function = getattr(store, name)

        def held(*args, **kwargs):
            self.entered.set()
            assert self._opened.wait(PATIENCE_S)
            return function(*args, **kwargs)

        monkeypatch.setattr(store, name, held)

    def open(self):
        self._opened.set()


class Blocker:
    """Another program's transaction on the file, so that the writer has to wait."""

    def __init__(self, monkeypatch, store, path):
        self._other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._other.execute("BEGIN IMMEDIATE")
        self._queued = []
        self._submit = store.submit
        monkeypatch.setattr(store, "submit", self._note)

    def _note(self, *args):
        self._queued.append(self._submit(*args))
        return self._queued[-1]

    async def taken(self):
        """Wait until the writer has taken the first append from its queue."""
        await asyncio.to_thread(eventually, lambda: self._queued and self._queued[0].running())

    def open(self):
        self._other.execute("ROLLBACK")
        self._other.close()


async def cancelled(task, *, after=None):
    """Cancel a task and wait until it ends; the result of `after`, called in between."""
    task.cancel()
    await asyncio.sleep(0)
    if after:
        after()
    with pytest.raises(asyncio.CancelledError):
        await task


@only_on("memory", "postgres")
def test_what_runs_is_waited_for_and_is_then_recorded(open_async, loop, monkeypatch):
    log = open_async()
    loop.run(log.append("s", notes(1)))
    gate = Gate(monkeypatch, log.log._store, "attempt")

    async def main():
        task = asyncio.ensure_future(log.append("s", [note("running")]))
        await asyncio.to_thread(gate.entered.wait, PATIENCE_S)
        await cancelled(task, after=gate.open)
        return log.log.head("s").version

    assert loop.run(main()) == 2


@only_on("memory", "postgres")
def test_what_is_queued_never_runs(open_async, loop, monkeypatch):
    log = open_async(threads=1)
    loop.run(log.append("s", notes(1)))
    gate = Gate(monkeypatch, log.log._store, "attempt")

    async def main():
        running = asyncio.ensure_future(log.append("s", [note("running")]))
        await asyncio.to_thread(gate.entered.wait, PATIENCE_S)
        queued = asyncio.ensure_future(log.append("s", [note("queued")]))
        await asyncio.sleep(0)
        await cancelled(queued)
        gate.open()
        await running

    loop.run(main())
    assert texts(log.log.read("s")) == [0, "running"]


@only_on("sqlite")
def test_what_is_in_the_writers_queue_never_runs(open_async, loop, monkeypatch, tmp_path):
    log = open_async()
    loop.run(log.append("s", notes(1)))
    blocker = Blocker(monkeypatch, log.log._store, tmp_path / "log.db")

    async def main():
        first = asyncio.ensure_future(log.append("s", [note("first")]))
        await blocker.taken()
        queued = asyncio.ensure_future(log.append("s", [note("queued")]))
        await asyncio.sleep(0)
        await cancelled(queued)
        blocker.open()
        await first

    loop.run(main())
    assert texts(log.log.read("s")) == [0, "first"]


@only_on("sqlite")
def test_what_the_writer_has_is_waited_for(open_async, loop, monkeypatch, tmp_path):
    log = open_async()
    loop.run(log.append("s", notes(1)))
    blocker = Blocker(monkeypatch, log.log._store, tmp_path / "log.db")

    async def main():
        task = asyncio.ensure_future(log.append("s", [note("running")]))
        await blocker.taken()
        await cancelled(task, after=blocker.open)
        return log.log.head("s").version

    assert loop.run(main()) == 2


@only_on("memory", "postgres")
def test_a_second_cancellation_changes_nothing(open_async, loop, monkeypatch):
    log = open_async()
    loop.run(log.append("s", notes(1)))
    gate = Gate(monkeypatch, log.log._store, "attempt")

    async def main():
        task = asyncio.ensure_future(log.append("s", [note("running")]))
        await asyncio.to_thread(gate.entered.wait, PATIENCE_S)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        await cancelled(task, after=gate.open)

    loop.run(main())
    assert texts(log.log.read("s")) == [0, "running"]


def test_random_cancellations_leave_whole_batches(open_async, loop):
    """What a cancelled call has decided does not change later, and nothing is half there."""
    log, random = open_async(), pick("cancel")

    async def one(number):
        task = asyncio.ensure_future(log.append("s", [note(f"{number}.{i}") for i in range(3)]))
        for _ in range(random.randint(0, 4)):
            await asyncio.sleep(0)
        if random.random() < 0.5:
            task.cancel()
        try:
            await task
            return True
        except asyncio.CancelledError:
            return None

    async def main():
        outcomes = []
        for start in range(0, 120, 12):
            outcomes += await asyncio.gather(*(one(number) for number in range(start, start + 12)))
        decided = log.log.head("s").version
        await log.append("s", [note("last")])
        return outcomes, decided

    outcomes, decided = loop.run(main())
    said = texts(log.log.read("s"))
    assert (len(said), said[-1]) == (decided + 1, "last")
    whole = [said[i].split(".")[0] for i in range(0, decided, 3)]
    assert said[:-1] == [f"{number}.{i}" for number in whole for i in range(3)]
    assert {str(number) for number, done in enumerate(outcomes) if done} <= set(whole)
    assert len(whole) == len(set(whole))


def test_a_timeout_is_a_cancellation(open_async, loop, monkeypatch):
    log = open_async()
    loop.run(log.append("s", notes(1)))
    gate = Gate(monkeypatch, log.log._store, "head")

    async def main():
        threading.Timer(0.1, gate.open).start()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await log.head("s")

    loop.run(main())
    assert loop.run(log.head("s")).version == 1


def test_a_cancelled_turn_is_closed_as_cancelled(open_async, loop):
    log = open_async()

    async def main():
        inside = asyncio.Event()

        async def converse():
            async with log.turn("s") as turn:
                await turn.message("user", "Hi")
                inside.set()
                await asyncio.sleep(PATIENCE_S)

        task = asyncio.ensure_future(converse())
        await inside.wait()
        await cancelled(task)

    loop.run(main())
    assert [event.type for event in log.log.read("s")][-1] == "turn.cancelled"


def test_context_variables_reach_the_thread(open_async, loop, monkeypatch):
    log, seen = open_async(), []
    variable = contextvars.ContextVar("variable")
    head = log.log._store.head
    monkeypatch.setattr(log.log._store, "head", lambda *args: (seen.append(variable.get()), head(*args))[1])

    async def main():
        variable.set("mine")
        await log.head("s")

    loop.run(main())
    assert seen == ["mine"]


def test_an_async_log_may_be_used_from_one_loop_after_another(open_async):
    log = open_async()

    async def main(number):
        await log.append("s", [note(number)])
        return texts([event async for event in log.read("s")])

    assert asyncio.run(main(0)) == [0]
    assert asyncio.run(main(1)) == [0, 1]


def test_ctrl_c_in_the_writers_queue_leaves_nobody_waiting(tmp_path):
    """A thread that leaves the queue by an exception is not handed the lead."""

    class Interrupted(Exception):
        pass

    def interrupt(*_):
        raise Interrupted

    other = sqlite3.connect(tmp_path / "log.db", isolation_level=None)
    with SessionLog(f"sqlite:///{tmp_path}/log.db", lock_timeout_s=PATIENCE_S) as log:
        log.append("s", notes(1))
        other.execute("BEGIN IMMEDIATE")
        first = threading.Thread(target=log.append, args=("s", [note("first")]))
        first.start()
        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(Interrupted):
                log.append("s", [note("interrupted")])
        finally:
            signal.signal(signal.SIGALRM, before)
        other.execute("ROLLBACK")
        other.close()
        first.join(PATIENCE_S)
        last = threading.Thread(target=log.append, args=("s", [note("last")]), daemon=True)
        last.start()

        eventually(lambda: not last.is_alive(), "the append after the interrupted one")
        assert texts(log.read("s")) == [0, "first", "last"]
