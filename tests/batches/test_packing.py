"""Splitting, layouts and rows on literal inputs, and packing against a slow, plain re-implementation."""

from __future__ import annotations

import numpy as np
import pytest

from hf_clsi.batches.packing import _look_ahead, best_fit, fill_rows, lay_out, split_long_documents
from hf_clsi.batches.stories import spread

BOS, EOS, SEP, PAD = 100, 101, 102, 103


# --- splitting ----------------------------------------------------------------------------------------------


def test_documents_that_fit_are_not_split():
    lengths, offsets, ends = split_long_documents([3, 4, 2], [0, 2, 3], 9, eos=True, separator=False)
    assert (lengths.tolist(), offsets.tolist(), ends.tolist()) == ([3, 4, 2], [0, 2, 3], [True, True])


def test_one_token_too_many_splits_at_a_sentence_border():
    # [bos] 3 + 4 [eos] is 9 tokens: one more than the row, so the second sentence moves on.
    lengths, offsets, ends = split_long_documents([3, 4, 2], [0, 2, 3], 8, eos=True, separator=False)
    assert (lengths.tolist(), offsets.tolist(), ends.tolist()) == (
        [3, 4, 2],
        [0, 1, 2, 3],
        [False, True, True],
    )


def test_separators_count_when_splitting():
    without = split_long_documents([3, 3], [0, 2], 7, eos=False, separator=False)
    with_separator = split_long_documents([3, 3], [0, 2], 7, eos=False, separator=True)
    assert without[1].tolist() == [0, 2]
    assert with_separator[1].tolist() == [0, 1, 2]


def test_a_sentence_longer_than_a_row_is_cut_and_its_end_joins_the_next_sentence():
    # Rows of 6 leave 4 tokens beside BOS and EOS: 10 tokens = 4 + 4 + 2, then the sentence of 2 still fits.
    lengths, offsets, ends = split_long_documents([1, 10, 2], [0, 3], 6, eos=True, separator=False)
    assert lengths.tolist() == [1, 4, 4, 2, 2]
    assert offsets.tolist() == [0, 1, 2, 3, 5]
    assert ends.tolist() == [False, False, False, True]


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize("separator", [True, False])
def test_splitting_keeps_every_token_and_every_part_fits(bos, eos, separator):
    rng = np.random.default_rng(0)
    for capacity in (3, 4, 7, 30):
        counts = rng.integers(1, 9, size=40)
        sentence_lengths = rng.integers(1, 12, size=int(counts.sum()))
        document_offsets = np.concatenate([[0], np.cumsum(counts)])
        lengths, offsets, ends = split_long_documents(
            sentence_lengths, document_offsets, capacity, bos=bos, eos=eos, separator=separator
        )
        room = capacity - bos - eos
        sizes = np.add.reduceat(lengths, offsets[:-1]) + separator * (np.diff(offsets) - 1)
        assert sizes.max() <= room
        assert lengths.sum() == sentence_lengths.sum()
        assert ends.sum() == 40
        # New borders are sentence borders, except inside a sentence that no row could hold.
        whole = np.flatnonzero(sentence_lengths <= room)
        old_starts, new_starts = np.cumsum(sentence_lengths) - sentence_lengths, np.cumsum(lengths) - lengths
        assert set(old_starts[whole]) <= set(new_starts)
        position = {int(start): int(length) for start, length in zip(new_starts, lengths, strict=True)}
        assert all(position[int(old_starts[i])] == sentence_lengths[i] for i in whole)
        # Documents that fit are left alone.
        old_sizes = np.add.reduceat(sentence_lengths, document_offsets[:-1]) + separator * (counts - 1)
        parts = np.diff(np.concatenate([[0], np.flatnonzero(ends) + 1]))
        assert (parts[old_sizes <= room] == 1).all() and (parts[old_sizes > room] > 1).all()


def test_a_row_too_short_for_any_token_is_refused():
    with pytest.raises(ValueError, match="must hold BOS, one token and EOS, got 2"):
        split_long_documents([1], [0, 1], 2, eos=True, separator=False)
    with pytest.raises(ValueError, match="must hold one token, got 0"):
        split_long_documents([1], [0, 1], 0, bos=False, eos=False, separator=False)


# --- best fit -----------------------------------------------------------------------------------------------


def plain_best_fit(lengths: list[int], capacity: int) -> int:
    """Rows used by best-fit decreasing, by looking at every open row."""
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row, space in enumerate(free) if space >= length]
        if fitting:
            free[min(fitting, key=lambda row: free[row])] -= length
        else:
            free.append(capacity - length)
    return len(free)


def story_lengths(number: int, seed: int) -> np.ndarray:
    """`[number]` tokens of stories of 7 to 22 sentences of 22 to 67 units, with BOS and EOS."""
    rng = np.random.default_rng(seed)
    return np.array([rng.integers(22, 68, size=rng.integers(7, 23)).sum() + 2 for _ in range(number)])


def test_best_fit_by_hand():
    assert best_fit([3, 5, 4, 2, 2], 8).tolist() == [0, 0, 1, 1, 1]
    assert best_fit([8, 8, 8], 8).tolist() == [0, 1, 2]
    assert best_fit([1] * 9, 4).tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert best_fit([5], 8).tolist() == [0]
    assert best_fit([], 8).tolist() == []


def test_two_documents_fill_a_row_that_the_longest_one_would_not():
    # Best-fit decreasing puts 5 beside 8 and leaves 2 free, in two rows; what is left takes a third one.
    lengths = [8, 8, 5, 5, 4, 3, 4, 3, 5]
    assert plain_best_fit(lengths, 15) == 4
    assert best_fit(lengths, 15).tolist() == [0, 1, 2, 2, 0, 0, 1, 1, 2]


def test_looking_ahead_takes_the_two_that_are_most_alike():
    # 10 of 20 are left beside the longest: 5 + 5, not 6 + 4 or 7 + 3.
    assert _look_ahead([10, 3, 7, 4, 6, 5, 5], 20, slack=0) == (2, [0, 1, 1, 1, 1, 0, 0])


def test_one_document_of_half_the_space_is_not_taken_twice():
    # Beside 10, 10 are left: 5 is there once, so 6 + 4 it is.
    assert _look_ahead([10, 4, 5, 6], 20, slack=0) == (2, [0, 0, 1, 0])
    assert _look_ahead([10, 5, 9], 20, slack=0) == (2, [0, 1, 0])


def test_looking_ahead_takes_the_earlier_of_documents_of_equal_length():
    assert _look_ahead([4, 6, 4, 6, 4, 6], 10, slack=0) == (3, [0, 0, 1, 1, 2, 2])


def test_rows_are_numbered_by_their_first_document():
    rows = best_fit(story_lengths(200, seed=3), 2048)
    first = [int(np.flatnonzero(rows == row)[0]) for row in range(rows.max() + 1)]
    assert first == sorted(first) and first[0] == 0


@pytest.mark.parametrize("capacity", [4, 10, 63, 700, 2048])
@pytest.mark.parametrize("seed", range(6))
def test_rows_hold_what_they_can_and_are_never_more_than_those_of_best_fit_decreasing(capacity, seed):
    rng = np.random.default_rng([capacity, seed])
    low = int(rng.integers(1, capacity + 1))
    lengths = rng.integers(low, int(rng.integers(low, capacity + 1)) + 1, size=int(rng.integers(1, 120)))
    rows = best_fit(lengths, capacity)
    used = np.bincount(rows, weights=lengths)
    assert rows.shape == lengths.shape and rows.dtype == np.int64
    assert used.min() > 0 and used.max() <= capacity
    plain = plain_best_fit(lengths.tolist(), capacity)
    assert len(used) <= plain or lengths.sum() >= 0.99 * len(used) * capacity
    assert np.array_equal(best_fit(lengths.tolist(), capacity), rows)


def test_an_optimizer_step_of_stories_is_at_least_99_percent_full():
    for seed in range(3):
        lengths = story_lengths(900, seed)
        assert lengths.sum() >= 0.99 * 2048 * (best_fit(lengths, 2048).max() + 1)


def test_many_tiny_documents_fill_all_rows_but_the_last():
    lengths = np.random.default_rng(0).integers(1, 9, size=5_000)
    assert best_fit(lengths, 2048).max() + 1 == -(-int(lengths.sum()) // 2048)


def test_documents_of_the_capacity_get_rows_of_their_own():
    rows = best_fit([2048, 1, 2048, 2047, 2048], 2048)
    assert rows.tolist() == [0, 1, 2, 1, 3]


def test_lengths_are_left_as_they_were():
    lengths = np.array([3, 5, 4, 2, 2], dtype=np.int32)
    best_fit(lengths, 8)
    assert lengths.tolist() == [3, 5, 4, 2, 2]


def test_documents_that_fit_nowhere_are_refused():
    with pytest.raises(ValueError, match="document 1 has 9 tokens and fits into no row of 8"):
        best_fit([3, 9], 8)
    with pytest.raises(ValueError, match="document 1 is empty"):
        best_fit([3, 0], 8)
    with pytest.raises(ValueError, match="capacity must be at least 1 token, got 0"):
        best_fit([3], 0)


# --- layouts ------------------------------------------------------------------------------------------------


def text(layout, tokens, width=None):
    """The rows of a layout as strings: sentences are letters, < begins and > ends a document, | separates."""
    cells = ["."] * (layout.num_rows * layout.width)
    for sentence, cell, length in zip(
        layout.sentence.tolist(), layout.cell.tolist(), layout.length.tolist(), strict=True
    ):
        for index in range(length):
            assert cells[cell + index] == "."
            cells[cell + index] = tokens[sentence]
    for sign, places in (("<", layout.bos), (">", layout.eos), ("|", layout.separator)):
        for place in places.tolist():
            assert cells[place] == "."
            cells[place] = sign
    joined = "".join(cells)
    return [joined[start : start + layout.width] for start in range(0, len(joined), layout.width)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["<aab><c>", "<dddd>.."]),
        ({"separator": True}, ["<aa|b>..", "<c>.....", "<dddd>.."]),
        ({"eos": False}, ["<aab....", "<c<dddd."]),
        ({"bos": False}, ["aab>....", "c>dddd>."]),
        ({"bos": False, "eos": False}, ["aabcdddd"]),
        ({"ends": [False, True, False]}, ["<aab....", "<c><dddd"]),
        ({"fixed_width": False, "capacity": 20}, ["<aab><c><dddd>.."]),
        ({"packing": "concatenate"}, ["<aab><c>", "<dddd>.."]),
        ({"packing": "concatenate", "capacity": 6}, ["<aab><", "c><ddd", "d>...."]),
        ({"packing": "concatenate", "bos": False, "eos": False, "capacity": 4}, ["aabc", "dddd"]),
        ({"packing": "concatenate", "capacity": 30, "fixed_width": False}, ["<aab><c><dddd>.."]),
    ],
)
def test_layouts(settings, expected):
    settings = {"capacity": 8, **settings}
    layout = lay_out([2, 1, 1, 4], [0, 2, 3, 4], settings.pop("capacity"), **settings)
    assert text(layout, "abcd") == expected
    assert layout.used.tolist() == [len(row.rstrip(".")) for row in expected]


def test_documents_keep_their_order_inside_a_row():
    layout = lay_out([2, 7, 3, 1, 2], [0, 1, 2, 3, 4, 5], 8, bos=False, eos=False)
    assert text(layout, "abcde") == ["aacccee.", "bbbbbbbd"]
    assert layout.sentence.tolist() == [0, 2, 4, 1, 3]
    assert layout.piece.tolist() == [0, 2, 5, 8, 15]


def test_pieces_of_a_concatenation_begin_with_documents_and_rows():
    layout = lay_out([3, 9, 1], [0, 1, 2, 3], 4, packing="concatenate", bos=False, eos=False)
    assert text(layout, "abc") == ["aaab", "bbbb", "bbbb", "c..."]
    assert layout.piece.tolist() == [0, 3, 4, 8, 12]


def test_a_document_without_a_sentence_is_refused():
    with pytest.raises(ValueError, match="at least one sentence"):
        lay_out([2], [0, 0, 1], 8)


# --- rows ---------------------------------------------------------------------------------------------------


def rows(layout, part=None, isolate=True, separator=None, width=None):
    """Rows of a layout whose i-th sentence is (i + 1) * 10, (i + 1) * 10 + 1, ..."""
    starts = (np.arange(layout.sentence.size) + 1)[layout.sentence] * 10
    values = np.arange(1000, dtype=np.uint16)
    tokens = {"bos": BOS, "eos": EOS, "separator": separator, "pad": PAD}
    filled = fill_rows(layout, values, starts, part, isolate=isolate, **tokens)
    assert {array.dtype for array in filled} == {np.dtype(np.int64)}
    return [array.tolist() for array in filled]


def test_rows_with_isolated_documents():
    # A document of one token is followed by another, then by pads.
    layout = lay_out([3, 1, 2], [0, 1, 2, 3], 5, bos=False, eos=False)
    input_ids, labels, position_ids = rows(layout)
    assert input_ids == [[10, 11, 12, 30, 31], [20, PAD, PAD, PAD, PAD]]
    assert labels == [[-100, 11, 12, -100, 31], [-100, -100, -100, -100, -100]]
    assert position_ids == [[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]


def test_special_tokens_are_where_the_layout_says():
    layout = lay_out([2, 1], [0, 2], 8, separator=True)
    input_ids, labels, position_ids = rows(layout, separator=SEP)
    assert input_ids == [[BOS, 10, 11, SEP, 20, EOS, PAD, PAD]]
    assert labels == [[-100, 10, 11, SEP, 20, EOS, -100, -100]]
    assert position_ids == [[0, 1, 2, 3, 4, 5, 0, 1]]


def test_a_piece_continued_in_the_next_row_starts_anew():
    layout = lay_out([3, 4], [0, 1, 2], 5, packing="concatenate", bos=False, eos=False)
    input_ids, labels, position_ids = rows(layout)
    assert input_ids == [[10, 11, 12, 20, 21], [22, 23, PAD, PAD, PAD]]
    assert labels == [[-100, 11, 12, -100, 21], [-100, 23, -100, -100, -100]]
    assert position_ids == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]


def test_rows_without_isolation_run_on():
    layout = lay_out([3, 4], [0, 1, 2], 5, packing="concatenate", bos=False, eos=False)
    input_ids, labels, position_ids = rows(layout, isolate=False)
    assert input_ids == [[10, 11, 12, 20, 21], [22, 23, PAD, PAD, PAD]]
    assert labels == [[10, 11, 12, 20, 21], [22, 23, -100, -100, -100]]
    assert position_ids == [[0, 1, 2, 3, 4], [0, 1, 0, 1, 2]]


@pytest.mark.parametrize("packing", ["best_fit", "concatenate"])
@pytest.mark.parametrize("isolate", [True, False])
def test_any_rows_of_a_layout_can_be_filled_alone(packing, isolate):
    rng = np.random.default_rng(2)
    counts = rng.integers(1, 5, size=60)
    lengths = rng.integers(1, 9 if packing == "best_fit" else 30, size=int(counts.sum()))
    lengths = np.minimum(lengths, 6) if packing == "best_fit" else lengths
    layout = lay_out(lengths, np.concatenate([[0], np.cumsum(counts)]), 29, packing=packing, separator=True)
    whole = rows(layout, isolate=isolate, separator=SEP)
    for first in range(layout.num_rows):
        for last in (first + 1, min(first + 4, layout.num_rows)):
            part = rows(layout, (first, last), isolate=isolate, separator=SEP)
            assert part == [array[first:last] for array in whole]


@pytest.mark.parametrize("packing", ["best_fit", "concatenate"])
def test_every_piece_shows_as_one_run_of_positions(packing):
    lengths = np.random.default_rng(1).integers(1, 20, size=200)
    layout = lay_out(lengths, np.arange(201), 32, packing=packing, bos=False, eos=False)
    starts = (np.cumsum(lengths) - lengths)[layout.sentence]
    specials = {"bos": 0, "eos": 0, "separator": None, "pad": 10_000}
    input_ids, labels, position_ids = fill_rows(layout, np.arange(lengths.sum()), starts, **specials)
    # transformers finds documents where the position does not grow by exactly 1.
    begins = np.ones_like(position_ids, dtype=bool)
    begins[:, 1:] = np.diff(position_ids) != 1
    is_pad = input_ids == 10_000
    found = np.flatnonzero((begins & ~is_pad).reshape(-1))
    assert found.tolist() == layout.piece.tolist()
    assert sorted(input_ids[~is_pad].tolist()) == list(range(lengths.sum()))
    assert (labels[begins] == -100).all() and (labels[is_pad] == -100).all()
    inside = ~begins & ~is_pad
    assert np.array_equal(labels[inside], input_ids[inside])


def test_spread():
    assert spread(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
