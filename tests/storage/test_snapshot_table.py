"""What is stored of views, in the database of the log itself: opaque, of one epoch, whole or not at all."""

from __future__ import annotations

import pytest

from kern_events import Draft, SessionLog, spi
from kern_events.errors import StoreError
from tests.writers import notes


@pytest.fixture
def table(log):
    log.append("s", notes(9))
    return spi.SnapshotTable(log, "session:1:ab")


def test_the_newest_head_at_or_below_a_version_is_found(table):
    for version in (3, 10, 9, 100_000_000_000):
        table.put("s", 0, version, head=b"%d" % version)

    heads = {until: table.head("s", until) for until in (0, 2, 3, 8, 9, 11, 2**62)}
    assert {until: head and head.version for until, head in heads.items()} == {
        0: None, 2: None, 3: 3, 8: 3, 9: 9, 11: 10, 2**62: 100_000_000_000,
    }  # fmt: skip
    assert heads[11] == ("@0000000000000000010", 10, b"10")


def test_chunks_and_heads_are_told_apart_by_their_names(table):
    names = {f"{number:064x}" for number in (0, 1, 2**256 - 1)} | {"f" * 64, "0"}
    table.put("s", 0, 9, chunks=dict.fromkeys(names, b"chunk"), head=b"head")
    table.put("s", 0, 3, head=b"old")

    assert table.names("s") == ([3, 9], names)
    assert table.head("s", 9) == ("@0000000000000000009", 9, b"head")


def test_what_is_dropped_is_gone_and_the_rest_stays(table):
    for version in (1, 2, 3):
        table.put("s", 0, version, chunks={f"a{version}": b"chunk"}, head=b"head")
    assert table.put("s", 0, 4, head=b"head", drop=[1, 3, 99])

    assert table.names("s") == ([2, 4], {"a1", "a2", "a3"})


def test_a_head_that_is_stored_again_takes_the_place_of_the_old_one(table):
    table.put("s", 0, 4, head=b"old")
    table.put("s", 0, 4, head=b"new", drop=[4])

    assert table.head("s", 4).data == b"new"


@pytest.mark.parametrize("count", [0, 1, 499, 2_000])
def test_so_many_chunks_come_back(table, count):
    chunks = {f"{number:x}": b"%d" % number for number in range(count)}
    assert table.put("s", 0, 9, chunks=chunks)

    assert table.chunks("s", [*chunks, "ffffff"]) == chunks
    assert table.names("s") == ([], set(chunks))


def test_a_large_chunk_comes_back_byte_for_byte(table):
    data = bytes(range(256)) * 40_000
    table.put("s", 0, 9, chunks={"aa": data}, head=b"")

    assert table.chunks("s", ["aa"]) == {"aa": data}
    assert table.head("s", 9).data == b""


@pytest.mark.parametrize(
    ("session_id", "epoch"), [("s", 1), ("s", -1), ("nobody", 0), ("gone", 1), ("gone", 0)]
)
def test_nothing_is_stored_of_another_epoch_or_of_no_session(table, log, raw, session_id, epoch):
    log.append("gone", notes(1))
    log.delete("gone")

    assert not table.put(session_id, epoch, 1, chunks={"aa": b"chunk"}, head=b"head")
    assert raw.run("SELECT count(*) FROM kern_snapshots") == [(0,)]


def test_nothing_is_dropped_where_nothing_is_stored(table):
    table.put("s", 0, 4, head=b"head")

    assert not table.put("s", 1, 9, head=b"head", drop=[4])
    assert table.names("s") == ([4], set())


def test_a_session_made_again_is_of_another_epoch(table, log):
    table.put("s", 0, 9, head=b"secret")
    log.delete("s")
    log.append("s", [Draft("session.created", {})])

    assert table.head("s", 99) is None
    assert not table.put("s", 0, 9, head=b"secret")
    assert table.put("s", 1, 11, head=b"new")


def test_projectors_sessions_and_namespaces_are_apart(table, log, url):
    log.append("other", notes(1))
    table.put("s", 0, 9, chunks={"aa": b"chunk"}, head=b"head")
    with SessionLog(url, namespace="theirs") as theirs:
        theirs.append("s", notes(1))
        tables = [(spi.SnapshotTable(theirs, "session:1:ab"), "s")]
        tables += [(table, "other"), (spi.SnapshotTable(log, "session:2:ab"), "s")]

        for one, session_id in tables:
            assert one.names(session_id) == ([], set())
            assert one.chunks(session_id, ["aa"]) == {}
        theirs.delete("s")
    assert table.names("s") == ([9], {"aa"})


def test_a_put_that_fails_leaves_nothing_of_itself(table, raw):
    """The head cannot be stored: then the chunks are not either, and what was to be dropped is there."""
    table.put("s", 0, 1, head=b"old")
    if raw.dialect == "postgres":
        raw.run("ALTER TABLE kern_snapshots ADD CHECK (version <> 7 OR chunk NOT LIKE '@%')")
    else:
        raw.run(
            "CREATE TRIGGER refuse BEFORE INSERT ON kern_snapshots "
            "WHEN NEW.version = 7 AND NEW.chunk LIKE '@%' BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )

    with pytest.raises(StoreError):
        table.put("s", 0, 7, chunks={"aa": b"chunk"}, head=b"head", drop=[1])
    assert table.names("s") == ([1], set())


def test_a_head_that_is_not_there_and_a_name_that_is_none_are_found_nowhere(table):
    assert (table.head("s", 9), table.names("nobody"), table.chunks("s", [])) == (None, ([], set()), {})


def test_the_log_itself_is_as_before(table, log, raw):
    before = raw.dump()
    table.put("s", 0, 9, chunks={"aa": b"chunk"}, head=b"head", drop=[1])

    assert raw.dump() == before
    assert log.verify().ok
