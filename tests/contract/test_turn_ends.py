"""A turn has its end, whoever cancels or interrupts it: while it begins, goes on, or ends."""

from __future__ import annotations

import asyncio
import importlib
import socket
import threading

import anyio
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

from kern_events import Draft, message
from kern_events.aio import is_small
from kern_events.store import base
from tests.facade import only_on, sync_of
from tests.interrupts import at_every_place
from tests.writers import PATIENCE_S, eventually, note

ALL_SAID = ["message.added", "message.added", "state.changed", "turn.cancelled"]


@pytest.fixture
def facade_kind():
    return "async"


@pytest.fixture
def alog(log):
    """The log, to be awaited."""
    return log.inner


def types(alog, session_id="s"):
    return [event.type for event in alog.log.read(session_id)]


# ------------------------------------------------------------------ the ways to cancel a coroutine


async def by_the_task(work, ready):
    task = asyncio.ensure_future(work)
    await ready()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def again_and_again(work, ready):
    task = asyncio.ensure_future(work)
    await ready()
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    assert task.cancelled()


async def by_a_timeout(work, ready):
    async def timed():
        async with asyncio.timeout(None) as timeout:
            waiting = asyncio.ensure_future(ready())
            waiting.add_done_callback(lambda _: timeout.reschedule(0))
            await work

    with pytest.raises(TimeoutError):
        await timed()


async def by_anyio(work, ready):
    async def scoped():
        with anyio.CancelScope() as scope:
            waiting = asyncio.ensure_future(ready())
            waiting.add_done_callback(lambda _: scope.cancel())
            await work
        assert scope.cancelled_caught

    await scoped()


WAYS = [by_the_task, again_and_again, by_a_timeout, by_anyio]


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def cancelled(request):
    return request.param


class Gate:
    """Holds up the store where it has begun an append that `matches`, until it is opened."""

    def __init__(self, monkeypatch, backend, matches):
        module = importlib.import_module(f"kern_events.store.{backend}")
        self.entered, self._opened = threading.Event(), threading.Event()
        link = module.link

        def held(batch, *args):
            if any(event.draft.type == matches for event in batch.events):
                self.entered.set()
                assert self._opened.wait(PATIENCE_S)
            return link(batch, *args)

        monkeypatch.setattr(module, "link", held)

    async def reached(self):
        """The append is being made; it goes on a little after whoever waits for this."""
        assert await asyncio.to_thread(self.entered.wait, PATIENCE_S)
        asyncio.get_running_loop().call_later(0.01, self._opened.set)


@pytest.mark.parametrize("buffered", [False, True])
def test_what_is_said_while_a_task_is_cancelled_is_recorded(alog, loop, cancelled, buffered):
    inside = asyncio.Event()

    async def request():
        async with alog.turn("s", buffered=buffered) as turn:
            await turn.message("user", "question")
            inside.set()
            try:
                await asyncio.sleep(PATIENCE_S)
            finally:
                await turn.message("assistant", "half an ans")
                await turn.set_state("asked", True)

    loop.run(cancelled(request(), inside.wait))
    assert types(alog) == ["session.created", "turn.started", *ALL_SAID]


def test_a_turn_that_is_cancelled_while_it_begins_ends(
    alog, loop, cancelled, monkeypatch, address
):
    gate = Gate(monkeypatch, address.backend, "turn.started")

    async def request():
        async with alog.turn("s") as turn:
            await turn.message("user", "never said")

    loop.run(cancelled(request(), gate.reached))
    assert types(alog) == ["session.created", "turn.started", "turn.cancelled"]


def test_a_turn_that_is_resumed_and_cancelled_ends(alog, loop, cancelled, monkeypatch, address):
    async def pause():
        async with alog.turn("s") as turn:
            await turn.pause()

    loop.run(pause())
    gate, head = Gate(monkeypatch, address.backend, "turn.resumed"), alog.log.head("s")

    async def request():
        async with alog.resume("s", 1, expected=head) as turn:
            await turn.message("user", "never said")

    loop.run(cancelled(request(), gate.reached))
    assert types(alog)[2:] == ["turn.paused", "turn.resumed", "turn.cancelled"]


@pytest.mark.parametrize("buffered", [False, True])
def test_a_loop_that_ends_gives_every_turn_its_end(alog, buffered):
    """As a server that is told to stop: what still runs is cancelled, all of it."""
    said = set()

    async def request(session_id):
        async with alog.turn(session_id, buffered=buffered) as turn:
            await turn.message("user", "question")
            said.add(session_id)
            await asyncio.sleep(0)

    async def main():
        requests = [asyncio.ensure_future(request(f"s{number}")) for number in range(20)]
        while len(said) < 10:
            await asyncio.sleep(0)
        return requests

    asyncio.run(main())
    ends = {types(alog, session_id)[-1] for session_id in said}
    assert ends <= {"turn.completed", "turn.cancelled"}


@pytest.mark.parametrize("buffered", [False, True])
def test_an_end_that_has_begun_is_recorded(alog, loop, cancelled, monkeypatch, address, buffered):
    gate = Gate(monkeypatch, address.backend, "turn.completed")

    async def request():
        async with alog.turn("s", buffered=buffered) as turn:
            await turn.message("user", "question")

    loop.run(cancelled(request(), gate.reached))
    assert types(alog) == ["session.created", "turn.started", "message.added", "turn.completed"]


@only_on("memory", "postgres")
def test_an_end_is_never_taken_out_of_the_queue(open_log, loop, monkeypatch, address):
    alog, held = open_log(threads=1).inner, threading.Event()

    async def main():
        async with alog.turn("s") as turn:
            busy = alog._executor().submit(held.wait, PATIENCE_S)
            ending = asyncio.ensure_future(turn.complete())
            await asyncio.sleep(0)
            ending.cancel()
            await asyncio.sleep(0)
            held.set()
            with pytest.raises(asyncio.CancelledError):
                await ending
            assert busy.result()

    loop.run(main())
    assert types(alog)[-1] == "turn.completed"


def test_a_cancellation_that_arrives_in_the_clean_up_is_raised_after_it(alog, loop, monkeypatch, address):
    """As by a timeout of the clean-up itself: what it records is recorded, and what follows is cancelled."""
    inside, gate = asyncio.Event(), Gate(monkeypatch, address.backend, "note.taken")

    async def request():
        async with alog.turn("s") as turn:
            try:
                inside.set()
                await asyncio.sleep(PATIENCE_S)
            finally:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(None) as timeout:
                        waiting = asyncio.ensure_future(gate.reached())
                        waiting.add_done_callback(lambda _: timeout.reschedule(0))
                        await turn.record(note())
                        await turn.message("assistant", "also")
                        await asyncio.sleep(PATIENCE_S)

    loop.run(by_the_task(request(), inside.wait))
    assert types(alog)[2:] == ["note.taken", "message.added", "turn.cancelled"]


def test_an_error_that_leaves_the_block_is_recorded_and_the_cancellation_raised(
    alog, loop, monkeypatch, address
):
    gate = Gate(monkeypatch, address.backend, "turn.failed")

    async def request():
        async with alog.turn("s"):
            raise ValueError("the answer was no")

    loop.run(by_the_task(request(), gate.reached))
    assert types(alog)[-1] == "turn.failed"


def test_a_write_that_a_live_task_began_may_be_cancelled(alog, loop, monkeypatch, address):
    """Only the end and the clean-up insist: a timeout of one write is a timeout."""

    async def main():
        async with alog.turn("s") as turn:
            gate = Gate(monkeypatch, address.backend, "note.taken")
            first = asyncio.ensure_future(turn.record(note("first")))
            assert await asyncio.to_thread(gate.entered.wait, PATIENCE_S)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await turn.record(note("never"))
            await gate.reached()
            await first
            await turn.record(note("last"))

    loop.run(main())
    assert [event.payload["text"] for event in alog.log.read("s") if event.type == "note.taken"] == [
        "first",
        "last",
    ]


def test_a_client_that_goes_away_ends_the_turn_of_its_request(alog, loop):
    """A web server, and a client that hangs up after the first words."""
    first = threading.Event()

    async def answer(request):
        async def stream():
            async with alog.turn("s", buffered=True) as turn:
                await turn.message("user", "question")
                try:
                    while True:
                        yield b"token "
                        first.set()
                        await asyncio.sleep(0.001)
                finally:
                    await turn.message("assistant", "token token")

        return StreamingResponse(stream())

    app = Starlette(routes=[Route("/", answer)])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off", ws="none"))
    serving = asyncio.run_coroutine_threadsafe(server.serve(), loop.loop)
    eventually(lambda: server.started, "the web server")
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            assert first.wait(PATIENCE_S)
        eventually(lambda: alog.log.head("s").version)
    finally:
        server.should_exit = True
        serving.result(PATIENCE_S)

    assert types(alog)[1:] == ["turn.started", "message.added", "message.added", "turn.cancelled"]


# ------------------------------------------------------------------------------- order and encoding


@pytest.mark.parametrize("buffered", [False, True])
def test_calls_at_once_are_recorded_in_the_order_in_which_they_began(alog, loop, buffered):
    said = [("long " * 10_000 if i % 3 == 0 else "short ") + str(i) for i in range(12)]

    async def main():
        async with alog.turn("s", buffered=buffered) as turn:
            await asyncio.gather(*(turn.message("user", text) for text in said))
            async with asyncio.TaskGroup() as group:
                for text in said:
                    group.create_task(turn.message("assistant", text))

    loop.run(main())
    recorded = [event.payload["content"] for event in alog.log.read("s") if event.type == "message.added"]
    assert recorded == said + said


def test_a_call_that_is_refused_gives_up_its_place(alog, loop):
    async def main():
        async with alog.turn("s") as turn:
            return await asyncio.gather(
                turn.message("user", "1"),
                turn.set_state("key", object()),
                turn.message("user", "2"),
                return_exceptions=True,
            )

    answers = loop.run(main())
    assert [type(answer).__name__ for answer in answers] == ["str", "InvalidEvent", "str"]
    assert types(alog)[2:] == ["message.added", "message.added", "turn.completed"]


def test_what_is_long_is_encoded_off_the_event_loop(alog, loop, monkeypatch):
    """A photo of 12 MB would stop everything else for a tenth of a second."""
    threads, dumps = [], alog.log._prepare
    monkeypatch.setattr(
        alog.log,
        "_prepare",
        lambda *args, **kwargs: (threads.append(threading.current_thread()), dumps(*args, **kwargs))[1],
    )
    photo = [{"type": "image_url", "image_url": {"url": "data:," + "x" * 100_000}}]

    async def main():
        here = threading.current_thread()
        await alog.append("s", [message("user", photo)])
        async with alog.turn("s", buffered=True) as turn:
            threads.clear()
            await turn.message("user", photo)
            await turn.tool_result("c", {"rows": list(range(20_000))})
            await turn.complete()
        return here

    here = loop.run(main())
    assert here not in threads
    assert len(threads) == 3


def test_a_look_at_what_is_long_is_short():
    class Counting(list):
        asked = 0

        def __iter__(self):
            for item in super().__iter__():
                Counting.asked += 1
                yield item

    assert not is_small([Counting([0] * 1_000_000)])
    assert Counting.asked == 0
    assert is_small([Draft("message.added", {"role": "user", "content": "Hi"})])


# ---------------------------------------------------------------------- Ctrl-C in synchronous code


class TestCtrlC:
    """Wherever it arrives while a turn begins or ends, the turn is not left open, and it is raised."""

    # A signal at the very call of __exit__ comes before any code of ours; where __enter__ has returned,
    # CPython looks for none.
    OUT_OF_REACH = (("TurnRecorder.__exit__", "call"), ("TurnRecorder.__enter__", "return"))

    @pytest.fixture
    def facade_kind(self):
        return "sync"

    @pytest.fixture
    def step(self, backend, request):
        """Every place in the long form, and always in memory, where it costs least."""
        return 1 if request.config.getoption("--long") else {"memory": 1, "sqlite": 5}.get(backend, 23)

    @pytest.mark.parametrize("buffered", [False, True])
    def test_while_it_begins(self, log, step, buffered):
        log.append("warm", [note()])

        def act(place, interrupt):
            turn = log.turn(f"s{place}", buffered=buffered)
            interrupt.arm()
            with turn:
                pass

        seen = set()
        for place, where in at_every_place(act, step):
            head = log.head(f"s{place}")
            last = types_of(log, f"s{place}")[-1] if head.version else "nothing"
            closed = last in ("nothing", "turn.cancelled", "turn.completed")
            assert closed or where in self.OUT_OF_REACH, where
            seen.add(last)
        assert {"nothing", "turn.completed"} <= seen
        assert log.verify().ok

    @pytest.mark.parametrize("buffered", [False, True])
    def test_while_it_ends(self, log, step, buffered):
        log.append("warm", [note()])

        def act(place, interrupt):
            with log.turn(f"s{place}", buffered=buffered) as turn:
                turn.message("user", "Hi")
                interrupt.arm()

        for place, where in at_every_place(act, step):
            if where not in self.OUT_OF_REACH:
                assert types_of(log, f"s{place}")[-2:] == ["message.added", "turn.completed"], where
        assert log.verify().ok


    def test_the_receipt_is_that_of_the_whole_turn(self, log, monkeypatch):
        """Also of one that is longer than a page."""
        ours, recorder = sync_of(log), log.turn("s", buffered=True)
        record = ours._record
        monkeypatch.setattr(base, "PAGE_BYTES", 1_000)

        def interrupted(*args):
            record(*args)
            monkeypatch.setattr(ours, "_record", record)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), recorder as turn:
            for _ in range(9):
                turn.message("user", "x" * 500)
            monkeypatch.setattr(ours, "_record", interrupted)

        receipt, head = recorder.receipt, log.head("s")
        assert (receipt.first_version, receipt.version, receipt.hash) == (1, head.version, head.hash)
        assert head.version == 12


def types_of(log, session_id):
    return [event.type for event in sync_of(log).read(session_id)]


class TestWithoutItsBlock:
    """A recorder whose block was not entered would record into the turn before."""

    @pytest.fixture(params=["sync", "async"])
    def facade_kind(self, request):
        return request.param

    def test_nothing_is_recorded(self, log):
        turn = log.turn("s")

        for call in (lambda: turn.message("user", "Hi"), turn.complete, lambda: turn.record(note())):
            with pytest.raises(RuntimeError, match="has not begun"):
                call()
        assert log.head("s").version == 0

    def test_a_turn_is_entered_once(self, log):
        turn = log.turn("s")
        with turn:
            pass

        with pytest.raises(RuntimeError, match="entered once"), turn:
            pass
        assert log.head("s").version == 3


