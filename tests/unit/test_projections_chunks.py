"""Chunks: immutable sequences that share what stays, checked against plain lists."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from projections.chunks import CHUNK_BYTES, CHUNK_ITEMS, Chunks

lengths = st.integers(0, 3 * CHUNK_ITEMS)


def appended(chunks: Chunks[int], *items: int, size_bytes: int = 0) -> Chunks[int]:
    editor = chunks.edit()
    for item in items:
        editor.append(item, size_bytes)
    return editor.freeze()


@given(lengths, st.slices(3 * CHUNK_ITEMS))
def test_they_read_like_a_list(length: int, cut: slice) -> None:
    items = list(range(length))
    chunks = Chunks(items)

    assert isinstance(chunks, Sequence)
    assert chunks == items
    assert chunks == tuple(items)
    assert len(chunks) == length
    assert chunks[cut] == tuple(items[cut])
    assert list(reversed(chunks)) == items[::-1]
    assert [chunks[i] for i in range(-length, length)] == items + items


@given(
    lengths,
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(0, CHUNK_BYTES)),
            st.tuples(st.just("replace"), st.integers(-5, 3 * CHUNK_ITEMS)),
            st.tuples(st.just("replace_last"), st.just(0)),
            st.tuples(st.just("remove"), st.integers(-5, 3 * CHUNK_ITEMS)),
            st.tuples(st.just("freeze"), st.just(0)),
        ),
        max_size=30,
    ),
)
@settings(deadline=None)
def test_every_edit_does_what_a_list_does(length: int, edits: list[tuple[str, int]]) -> None:
    chunks, items = Chunks(range(length)), list(range(length))
    before, editor = chunks, chunks.edit()

    for edit, number in edits:
        place = -len(items) <= number < len(items)
        if edit == "append":
            editor.append(-1, number)
            items.append(-1)
        elif edit == "replace" and place:
            editor.replace(number, -2)
            items[number] = -2
        elif edit == "replace_last" and items:
            editor.replace_last(-3)
            items[-1] = -3
        elif edit == "remove" and place:
            editor.remove(number)
            del items[number]
        elif edit == "freeze":
            editor = editor.freeze().edit()

    assert editor.freeze() == items
    assert len(editor) == len(items)
    assert editor.last() == (items[-1] if items else None)
    assert before == list(range(length))


class Item(NamedTuple):
    id: str
    number: int


@given(
    st.lists(st.sampled_from("abcdefgh"), max_size=60),
    st.lists(
        st.tuples(
            st.sampled_from(["append", "put", "take", "replace_start", "find", "freeze"]),
            st.sampled_from("abcdefghz"),
        ),
        max_size=40,
    ),
    st.integers(0, 8),
)
@settings(deadline=None)
def test_items_are_found_by_their_ids_whatever_was_edited(
    ids: list[str], edits: list[tuple[str, str]], looks: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("projections.chunks.CHUNK_ITEMS", 4)
        patch.setattr("projections.chunks._RECENT", 1)
        patch.setattr("projections.chunks._LOOKS", looks)
        items = [Item(id, number) for number, id in enumerate(ids)]
        before = Chunks(items)
        kept, editor = list(items), before.edit()
        for number, (edit, id) in enumerate(edits, len(items)):
            last = max((place for place, item in enumerate(items) if item.id == id), default=None)
            place = editor.find(id)
            assert (None if place is None else editor.at(place)) == (None if last is None else items[last])
            if edit == "append":
                editor.append(Item(id, number))
                items.append(Item(id, number))
            elif edit == "freeze":
                editor = editor.freeze().edit()
            elif place is not None and last is not None:
                assert editor.index_of(place) == last
                if edit == "put":
                    editor.put(place, Item(id, number))
                    items[last] = Item(id, number)
                elif edit == "take":
                    editor.take(place)
                    del items[last]
                elif edit == "replace_start":
                    stay = number % (last + 2)
                    editor.replace_start(last + 1, [Item("r", number)], lambda item: 1, keep=stay)
                    items[stay : last + 1] = [Item("r", number)]

        assert editor.freeze() == items
        assert (len(editor), editor.last()) == (len(items), items[-1] if items else None)
        assert before == kept


def test_what_is_behind_a_start_that_is_replaced_stays_the_same_objects() -> None:
    chunks = Chunks([Item(str(number), number) for number in range(8 * CHUNK_ITEMS)])
    editor = chunks.edit()
    place = editor.find(str(2 * CHUNK_ITEMS))
    assert place is not None

    editor.replace_start(editor.index_of(place) + 1, [Item("summary", 0)], lambda item: 1)

    left = editor.freeze()
    assert len(left) == 6 * CHUNK_ITEMS
    assert all(a is b for a, b in zip(left.closed[2:], chunks.closed[3:], strict=True))


def test_a_start_is_replaced_where_a_chunk_before_its_end_has_become_empty() -> None:
    chunks = Chunks([Item(str(number), number) for number in range(4 * CHUNK_ITEMS)])
    editor = chunks.edit()
    for _ in range(CHUNK_ITEMS):
        editor.remove(0)

    editor.replace_start(1, [Item("summary", 0)], lambda item: 1)

    assert editor.freeze() == [Item("summary", 0), *chunks[CHUNK_ITEMS + 1 :]]


def test_a_full_open_chunk_stays_behind_a_start_that_is_replaced() -> None:
    chunks = Chunks([Item(str(number), number) for number in range(2 * CHUNK_ITEMS)])
    editor = chunks.edit()

    editor.replace_start(CHUNK_ITEMS, [Item("summary", 0)], lambda item: 1)

    assert editor.freeze() == [Item("summary", 0), *chunks[CHUNK_ITEMS:]]


def test_an_edit_that_changes_nothing_gives_the_same_object() -> None:
    chunks = Chunks(range(10))

    assert chunks.edit().freeze() is chunks


def test_closed_chunks_are_shared() -> None:
    chunks = Chunks(range(3 * CHUNK_ITEMS))
    longer = appended(chunks, *range(3 * CHUNK_ITEMS, 5 * CHUNK_ITEMS))

    assert all(a is b for a, b in zip(chunks._closed, longer._closed, strict=False))


def test_a_chunk_is_closed_by_items_or_by_bytes() -> None:
    many = appended(Chunks(), *range(CHUNK_ITEMS + 1))
    heavy = appended(Chunks(), *range(5), size_bytes=CHUNK_BYTES // 2)

    assert [len(chunk) for chunk in many._closed] == [CHUNK_ITEMS]
    assert [len(chunk) for chunk in heavy._closed] == [2, 2]


def test_an_item_over_the_limit_has_a_chunk_of_its_own() -> None:
    heavy = appended(Chunks(), 1, 2, 3, size_bytes=2 * CHUNK_BYTES)

    assert [len(chunk) for chunk in heavy._closed] == [1, 1]


def test_nothing_can_be_assigned() -> None:
    chunks = Chunks([1])

    with pytest.raises(AttributeError):
        chunks._open = ()
    with pytest.raises(AttributeError):
        del chunks._open
    with pytest.raises(TypeError):
        hash(chunks)


@pytest.mark.parametrize("index", [3, -4])
def test_an_index_out_of_range_is_an_index_error(index: int) -> None:
    with pytest.raises(IndexError, match="there are 3 items"):
        Chunks(range(3))[index]


def test_text_is_not_equal_to_its_characters() -> None:
    assert Chunks("ab") != "ab"
    assert Chunks("ab") == ["a", "b"]


def test_an_append_costs_the_same_at_any_length() -> None:
    def most_bytes(length: int) -> int:
        chunks = Chunks(range(length))
        tracemalloc.start()
        appended(chunks, 1)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    # The open chunks are equally full; a tuple would have 3 MB copied at the second.
    assert most_bytes(400_000) < 10 * most_bytes(400_000 % CHUNK_ITEMS)


def test_growing_one_by_one_keeps_every_version() -> None:
    versions = [Chunks[int]()]
    for item in range(600):
        versions.append(appended(versions[-1], item))

    assert [len(version) for version in versions] == list(range(601))
    assert all(longer[: len(shorter)] == tuple(shorter) for shorter, longer in pairwise(versions))


@given(lengths, st.integers(0, 2 * CHUNK_BYTES))
def test_parts_put_together_grow_on_as_the_whole_does(length: int, size_bytes: int) -> None:
    whole = appended(Chunks(), *range(length), size_bytes=size_bytes // 7)

    again = Chunks.of_parts(whole.closed, whole.open, whole.weight)
    longer, theirs = (appended(each, -1, -2, size_bytes=size_bytes) for each in (again, whole))

    assert again == whole
    assert longer == theirs
    assert [*map(len, longer.closed)] == [*map(len, theirs.closed)]
    assert (longer.open, longer.weight) == (theirs.open, theirs.weight)
