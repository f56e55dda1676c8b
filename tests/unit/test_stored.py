"""Views as bytes: what is read back is the same view, frozen, in the same chunks, or nothing at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import pytest
from msgspec.structs import replace

from kern_events import Draft, Event, Sessions, message
from kern_events.errors import StoreBusy
from projections import MemoryCache, SessionProjector, View, chunks, stored
from projections.caches import Snapshot
from projections.caches.framing import seal, unseal
from projections.frozen import FrozenDict
from projections.stored import PlainCodec, SessionCodec, Unreadable, codec_of
from tests import model
from tests.writers import pick

PROJECTOR = SessionProjector()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that short sessions have many chunks, and blocks of them."""
    monkeypatch.setattr(chunks, "CHUNK_ITEMS", 3)
    monkeypatch.setattr(stored, "_LISTED", 4)
    monkeypatch.setattr(stored, "_BLOCK_BYTES", 4 * stored._ENTRY.size)


def events_of(seed: Any, count: int = 60) -> list[Event]:
    """The events of a session in which everything may happen that a view shows."""
    random_ = pick(seed)
    kinds = [kind for kind in model.KINDS if kind not in ("closed", "unknown")]
    with Sessions.open("memory:", durable=False) as sessions:
        sessions.append("s", [message("system", "Be brief.")])
        for _ in range(count):
            drafts = model.drafts_of(random_.choice(kinds), random_.randrange(50), sessions.load("s"))
            sessions.append("s", drafts)
        return list(sessions.read("s"))


def folded(events: Sequence[Event], base: Snapshot | None = None) -> Snapshot:
    view = PROJECTOR.fold(PROJECTOR.initial() if base is None else base.view, events)
    return Snapshot(view, view.version, 0, events[-1].hash, 1_000)


class Chunked(dict[bytes, bytes]):
    """Stored chunks, and which of them were fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[bytes] = []

    def put(self, codec: SessionCodec, snapshot: Snapshot, known: Sequence[bytes] = ()) -> None:
        self.update({name: body() for name, body in codec.chunks(snapshot, known).items()})

    def fetch(self, names: Sequence[bytes]) -> list[bytes]:
        self.fetched += names
        if missing := set(names) - self.keys():
            raise Unreadable(f"{len(missing)} are missing")
        return [self[name] for name in names]


def layout(view: View) -> list[Any]:
    return [
        [[len(chunk) for chunk in items.closed], len(items.open), items.weight]
        for items in (view.messages, view.context, view.turns)
    ]


def assert_frozen(value: Any) -> None:
    """Nothing that can be changed, all the way down."""
    assert type(value) not in (list, dict, set), value
    if isinstance(value, msgspec.Struct):
        for field in value.__struct_fields__:
            assert_frozen(getattr(value, field))
    elif isinstance(value, FrozenDict):
        for item in value.values():
            assert_frozen(item)
    elif not isinstance(value, (str, bytes)) and isinstance(value, Sequence):
        for item in value:
            assert_frozen(item)


def assert_same(found: Snapshot, snapshot: Snapshot) -> None:
    expected = replace(snapshot.view, session_id=found.view.session_id, head=found.view.head)
    assert found.view == expected
    assert repr(found.view.to_dict()) == repr(expected.to_dict())  # 1, 1.0 and True are three values
    assert layout(found.view) == layout(expected)
    assert_frozen(found.view)
    assert (found.version, found.epoch, found.hash) == (snapshot.version, snapshot.epoch, snapshot.hash)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("lazily", [False, True])
def test_a_view_comes_back_as_it_was(seed: int, lazily: bool) -> None:
    codec, kept, snapshot = SessionCodec(), Chunked(), folded(events_of(seed))

    kept.put(codec, snapshot)
    dumped = codec.dump(snapshot)

    assert_same(codec.load(dumped.head, [dumped.open], kept.fetch, lazily=lazily), snapshot)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_folded_on_from_stored_bytes_is_chunk_for_chunk_the_same(seed: int) -> None:
    codec, kept, events = SessionCodec(), Chunked(), events_of(seed)
    half = folded(events[: len(events) // 2])
    kept.put(codec, half)
    dumped = codec.dump(half)

    found = codec.load(dumped.head, [dumped.open], kept.fetch)

    assert_same(folded(events[len(events) // 2 :], found), folded(events))


@pytest.mark.parametrize("seed", range(20))
def test_a_snapshot_is_the_same_by_deltas_and_at_once(seed: int) -> None:
    codec, kept, random_, events = SessionCodec(), Chunked(), pick(seed), events_of(seed)
    snapshot = folded(events[:1])
    kept.put(codec, snapshot)
    parts, at, deltas = [codec.dump(snapshot).open], 1, 0
    while at < len(events):
        some = events[at : at + random_.randrange(1, 6)]
        base, snapshot = snapshot, folded(some, snapshot)
        at += len(some)
        if delta := codec.delta(base, snapshot):
            head, parts, deltas = delta.head, [*parts, delta.open], deltas + 1
        else:
            dumped = codec.dump(snapshot, base)
            head, parts = dumped.head, [dumped.open]
            kept.put(codec, snapshot, codec.listings(base))  # What is new is enough.

        assert_same(codec.load(head, parts, kept.fetch), snapshot)
    assert deltas


def test_a_delta_on_other_open_items_is_refused() -> None:
    codec, kept, events = SessionCodec(), Chunked(), events_of("other")
    first, second = folded(events[:2]), folded(events[:3])
    delta = codec.delta(first, second)
    assert delta is not None

    for wrong in ([delta.open], [codec.dump(second).open, delta.open], []):
        with pytest.raises(Unreadable):
            codec.load(delta.head, wrong, kept.fetch)


def test_a_window_looks_into_the_newest_chunks_alone() -> None:
    with Sessions.open("memory:", cache=MemoryCache(0)) as sessions:
        for number in range(40):
            with sessions.turn("s") as turn:
                turn.message("user", f"{number}")
                turn.message("assistant", f"{number}")
        snapshot = sessions._loader.current("s", PROJECTOR)
        sessions._loader.keep("s", PROJECTOR, snapshot)
        sessions._loader.settle()
        asked: list[str] = []
        store = sessions._store
        chunks_of = store.snapshot_chunks
        store.snapshot_chunks = lambda *args: (asked.extend(args[3]), chunks_of(*args))[1]  # type: ignore[method-assign]

        window = sessions.history("s", last_turns=2)

        assert [each.content for each in window] == ["38", "38", "39", "39"]
        assert len(asked) < 20 < len(snapshot.view.messages.closed)


def test_a_busy_database_is_no_damage(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window and a load go on without the chunks, and what is stored stays."""
    with Sessions.open(f"sqlite:///{tmp_path}/log.db", cache=MemoryCache(0)) as sessions:
        sessions.append("s", [message("user", f"{number}") for number in range(40)])
        sessions._loader.keep("s", PROJECTOR, sessions._loader.current("s", PROJECTOR))
        sessions._loader.settle()
        stored_names = sessions._store.snapshot_names("default", "s", table_of(sessions))

        def busy(*_: Any) -> Any:
            raise StoreBusy("busy")

        monkeypatch.setattr(sessions._store, "snapshot_chunks", busy)
        assert [each.content for each in sessions.history("s", last_messages=4)] == ["36", "37", "38", "39"]
        assert len(sessions.load("s").messages) == 40
        sessions._loader.settle()

        assert stored_names
        assert sessions._store.snapshot_names("default", "s", table_of(sessions)) == stored_names


def table_of(sessions: Sessions) -> str:
    return f"session:{PROJECTOR.version}:{SessionCodec().fingerprint.hex()}"


@pytest.mark.parametrize("seed", range(4))
def test_changed_bytes_are_a_miss(seed: int) -> None:
    """500 times: what is sealed is refused; what is not gives a view or Unreadable, and nothing else."""
    codec, kept, random_, snapshot = SessionCodec(), Chunked(), pick(seed), folded(events_of(seed))
    kept.put(codec, snapshot)
    dumped = codec.dump(snapshot)
    for _ in range(500):
        bodies = {b"head": dumped.head, b"open": dumped.open, **kept}
        name = random_.choice(list(bodies))
        sealed = seal(name, bodies[name])
        assert unseal(name, changed(sealed, random_)) is None
        bodies[name] = changed(bodies[name], random_)
        try:
            found = codec.load(bodies[b"head"], [bodies[b"open"]], lambda names: [bodies[n] for n in names])  # noqa: B023
        except (Unreadable, KeyError):
            continue
        assert isinstance(found.view, View)


def changed(data: bytes, random_: Any) -> bytes:
    place = random_.randrange(len(data))
    match random_.randrange(3):
        case 0:
            return data[:place] + bytes([data[place] ^ 1 << random_.randrange(8)]) + data[place + 1 :]
        case 1:
            return data[:place] + data[place + 1 :]
        case _:
            return data[:place] + random_.randbytes(3) + data[place:]


@pytest.mark.parametrize("name", ["LAYOUT", "TYPES", "HANDLED", "CHUNK_ITEMS", "TURN_BYTES"])
def test_another_meaning_of_the_bytes_is_another_fingerprint(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = SessionCodec().fingerprint
    value = getattr(stored, name)

    monkeypatch.setattr(stored, name, value | {"app.custom"} if isinstance(value, frozenset) else value + 1)

    assert SessionCodec().fingerprint != before
    monkeypatch.undo()


class Counts:
    """A projector of one's own, whose views can be stored."""

    name: str = "counts"
    version: int = 1
    scope: Literal["live", "log"] = "live"
    view_type = dict[str, int]

    def initial(self) -> dict[str, int]:
        return {}

    def evolve(self, view: dict[str, int], event: Event) -> dict[str, int]:
        return {**view, event.type: view.get(event.type, 0) + 1}


def test_a_view_of_a_declared_type_is_stored_as_a_whole() -> None:
    codec = codec_of(Counts())
    assert isinstance(codec, PlainCodec)
    snapshot = Snapshot({"a": 1}, 7, 0, b"h" * 32, 10)

    found = codec.load(codec.dump(snapshot).head, [b""], lambda names: [])

    assert (found.view, found.version, found.hash) == ({"a": 1}, 7, b"h" * 32)
    with pytest.raises(Unreadable):
        codec.load(codec.dump(Snapshot({"a": "b"}, 7, 0, b"", 1)).head, [b""], lambda names: [])


def test_a_projector_that_declares_nothing_stays_in_memory() -> None:
    class Own(Counts):
        view_type: Any = None

    assert codec_of(Own()) is None


def test_what_a_projector_of_ones_own_stored_is_found_by_a_cold_process(tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path}/log.db"
    with Sessions.open(url) as sessions:
        sessions.append("s", [message("user", f"{n}") for n in range(1_000)])
        sessions.append("s", [message("user", "more")])
        sessions.load("s", projector=Counts())
    with Sessions.open(url) as cold:
        snapshot = cold._loader._folded(cold._loader.key("s", Counts()), Counts(), None, None)

        assert snapshot.base is not None and snapshot.base.version == 1_001
        assert snapshot.snapshot.view == {"message.added": 1_001}


def test_a_view_that_no_encoder_has_a_word_for_is_loaded_all_the_same(redis_url: str, tmp_path: Any) -> None:
    """Numbers of 64 bits may be recorded, and their sum has more."""
    usage = {"usage": {"tokens": 2**63 - 1}}
    turn = [Draft("turn.started", {}), Draft("turn.completed", usage)]
    with Sessions.open(f"sqlite:///{tmp_path}/log.db", cache=redis_url) as sessions:
        for _ in range(3):
            sessions.append("s", turn_anew(turn))
            sessions.append("s", [message("user", f"{number}") for number in range(400)])
            assert sessions.load("s").usage["tokens"] % (2**63 - 1) == 0
        sessions.restore("s", to_turn=3)

        assert sessions.load("s").usage["tokens"] == 3 * (2**63 - 1)


def turn_anew(drafts: Sequence[Draft]) -> list[Draft]:
    return [Draft(draft.type, draft.payload) for draft in drafts]
