"""Documents, splitting and packing on literal inputs, and both packings against slow, plain
re-implementations."""

from __future__ import annotations

import numpy as np
import pytest

from hf_clsi.batches.packing import (
    best_fit,
    build_documents,
    concatenate,
    document_tokens,
    fill_rows,
    pack_best_fit,
    split_long_documents,
    spread,
)

BOS, EOS, SEP, PAD = 100, 101, 102, 103


# --- documents ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("eos", "separator", "expected", "offsets"),
    [
        (None, None, [BOS, 1, 2, 3, BOS, 4], [0, 4, 6]),
        (EOS, None, [BOS, 1, 2, 3, EOS, BOS, 4, EOS], [0, 5, 8]),
        (None, SEP, [BOS, 1, 2, SEP, 3, BOS, 4], [0, 5, 7]),
        (EOS, EOS, [BOS, 1, 2, EOS, 3, EOS, BOS, 4, EOS], [0, 6, 9]),
        (EOS, BOS, [BOS, 1, 2, BOS, 3, EOS, BOS, 4, EOS], [0, 6, 9]),
    ],
)
def test_build_documents(eos, separator, expected, offsets):
    tokens, document_offsets = build_documents(
        np.array([1, 2, 3, 4], dtype=np.uint16), [2, 1, 1], [0, 2, 3], bos=BOS, eos=eos, separator=separator
    )
    assert tokens.tolist() == expected
    assert document_offsets.tolist() == offsets
    assert tokens.dtype == document_offsets.dtype == np.int64


def test_only_documents_that_end_get_an_eos():
    tokens, _ = build_documents(
        [1, 2, 3], [1, 1, 1], [0, 1, 2, 3], bos=BOS, eos=EOS, ends=[False, True, False]
    )
    assert tokens.tolist() == [BOS, 1, BOS, 2, EOS, BOS, 3]


def test_build_documents_refuses_inputs_that_do_not_agree():
    with pytest.raises(ValueError, match="3 tokens for sentences of 2"):
        build_documents([1, 2, 3], [2], [0, 1], bos=BOS)
    with pytest.raises(ValueError, match="at least one sentence"):
        build_documents([1, 2], [2], [0, 0, 1], bos=BOS)


def test_document_tokens():
    sentences = [np.array([1, 2], dtype=np.uint16), np.array([3], dtype=np.int32)]
    assert document_tokens(sentences, bos=BOS, eos=EOS, separator=SEP).tolist() == [BOS, 1, 2, SEP, 3, EOS]
    assert document_tokens(sentences, bos=BOS, eos=None, separator=None).tolist() == [BOS, 1, 2, 3]
    assert document_tokens([], bos=BOS, eos=None, separator=SEP).tolist() == [BOS]
    assert sentences[0].tolist() == [1, 2]


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


@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize("separator", [True, False])
def test_splitting_keeps_every_token_and_every_part_fits(eos, separator):
    rng = np.random.default_rng(0)
    for capacity in (3, 4, 7, 30):
        counts = rng.integers(1, 9, size=40)
        sentence_lengths = rng.integers(1, 12, size=int(counts.sum()))
        document_offsets = np.concatenate([[0], np.cumsum(counts)])
        lengths, offsets, ends = split_long_documents(
            sentence_lengths, document_offsets, capacity, eos=eos, separator=separator
        )
        tokens = np.arange(sentence_lengths.sum())
        flat, stream = build_documents(
            tokens,
            lengths,
            offsets,
            bos=-1,
            eos=-2 if eos else None,
            separator=-3 if separator else None,
            ends=ends,
        )
        assert np.diff(stream).max() <= capacity
        assert flat[flat >= 0].tolist() == tokens.tolist()
        assert ends.sum() == 40
        # New borders are sentence borders, except inside a sentence that no row could hold.
        whole = np.flatnonzero(sentence_lengths <= capacity - 1 - eos)
        old_starts, new_starts = np.cumsum(sentence_lengths) - sentence_lengths, np.cumsum(lengths) - lengths
        assert set(old_starts[whole]) <= set(new_starts)
        position = {int(start): int(length) for start, length in zip(new_starts, lengths, strict=True)}
        assert all(position[int(old_starts[i])] == sentence_lengths[i] for i in whole)


def test_a_row_too_short_for_any_token_is_refused():
    with pytest.raises(ValueError, match="must hold BOS, one token and EOS, got 2"):
        split_long_documents([1], [0, 1], 2, eos=True, separator=False)


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


def test_best_fit_takes_the_tightest_row():
    # Longest first: 6, 5, 4 open three rows (the 4 fits into none of 8). The 3 goes to the 5, not to the 4.
    assert best_fit([6, 5, 4, 3], capacity=8).tolist() == [0, 1, 2, 1]


def test_rows_are_numbered_by_their_first_document():
    assert best_fit([1, 7, 8, 2, 6], capacity=8).tolist() == [0, 0, 1, 2, 2]


def test_best_fit_is_exact_and_never_overfills():
    rng = np.random.default_rng(0)
    for capacity in (8, 50, 2048):
        lengths = rng.integers(1, capacity + 1, size=300)
        rows = best_fit(lengths, capacity)
        assert np.bincount(rows, weights=lengths).max() <= capacity
        assert rows.max() + 1 == plain_best_fit(lengths.tolist(), capacity)
        assert sorted(set(rows.tolist())) == list(range(rows.max() + 1))


def test_best_fit_fills_rows_of_many_short_documents():
    lengths = np.random.default_rng(0).integers(20, 300, size=4_000)
    rows = best_fit(lengths, 2048)
    assert rows.max() + 1 == -(-lengths.sum() // 2048)  # no packing can do with fewer rows


@pytest.mark.parametrize(
    ("lengths", "capacity", "message"),
    [
        ([3, 9], 8, "document 1 has 9 tokens"),
        ([2, 0], 8, "document 1 is empty"),
        ([1], 0, "at least 1 token"),
    ],
)
def test_best_fit_refuses_what_cannot_be_packed(lengths, capacity, message):
    with pytest.raises(ValueError, match=message):
        best_fit(lengths, capacity)


def test_documents_keep_their_order_inside_a_row():
    pieces = pack_best_fit([2, 7, 3, 1, 2], capacity=8)
    assert pieces.row.tolist() == [0, 1, 0, 0, 0]
    assert pieces.column.tolist() == [0, 0, 2, 5, 6]
    assert pieces.start.tolist() == [0, 2, 9, 12, 13]
    assert pieces.row_lengths().tolist() == [8, 7]


# --- concatenation ------------------------------------------------------------------------------------------


def test_concatenation_cuts_at_row_borders():
    pieces = concatenate([3, 9, 1], capacity=4)
    assert pieces.document.tolist() == [0, 1, 1, 1, 2]
    assert pieces.start.tolist() == [0, 3, 4, 8, 12]
    assert pieces.length.tolist() == [3, 1, 4, 4, 1]
    assert pieces.row.tolist() == [0, 0, 1, 2, 3]
    assert pieces.column.tolist() == [0, 3, 0, 0, 0]
    assert pieces.num_rows == 4


def test_concatenation_that_ends_on_a_row_border_has_no_empty_row():
    pieces = concatenate([3, 5], capacity=4)
    assert pieces.num_rows == 2
    assert pieces.row_lengths().tolist() == [4, 4]


# --- rows ---------------------------------------------------------------------------------------------------


def test_rows_with_isolated_documents():
    # Documents [10 11 12], [20], [30 31] in rows of 5: a document of one token is followed by another, then
    # pads.
    tokens = np.array([10, 11, 12, 20, 30, 31])
    input_ids, labels, position_ids = fill_rows(tokens, pack_best_fit([3, 1, 2], 5), 5, pad=PAD)
    assert input_ids.tolist() == [[10, 11, 12, 30, 31], [20, PAD, PAD, PAD, PAD]]
    assert labels.tolist() == [[-100, 11, 12, -100, 31], [-100, -100, -100, -100, -100]]
    assert position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]


def test_a_piece_continued_in_the_next_row_starts_anew():
    input_ids, labels, position_ids = fill_rows(np.arange(1, 8), concatenate([3, 4], 5), 5, pad=PAD)
    assert input_ids.tolist() == [[1, 2, 3, 4, 5], [6, 7, PAD, PAD, PAD]]
    assert labels.tolist() == [[-100, 2, 3, -100, 5], [-100, 7, -100, -100, -100]]
    assert position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]


def test_rows_without_isolation_run_on():
    input_ids, labels, position_ids = fill_rows(
        np.arange(1, 8), concatenate([3, 4], 5), 5, pad=PAD, isolate=False
    )
    assert input_ids.tolist() == [[1, 2, 3, 4, 5], [6, 7, PAD, PAD, PAD]]
    assert labels.tolist() == [[1, 2, 3, 4, 5], [6, 7, -100, -100, -100]]
    assert position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 1, 0, 1, 2]]


@pytest.mark.parametrize("pack", [pack_best_fit, concatenate])
def test_every_piece_shows_as_one_run_of_positions(pack):
    lengths = np.random.default_rng(1).integers(1, 20, size=200)
    tokens = np.arange(lengths.sum())
    pieces = pack(lengths, 32)
    input_ids, labels, position_ids = fill_rows(tokens, pieces, 32, pad=-1)
    # transformers finds documents where the position does not grow by exactly 1.
    starts = np.ones_like(position_ids, dtype=bool)
    starts[:, 1:] = np.diff(position_ids) != 1
    found = sorted(input_ids[starts & (input_ids >= 0)].tolist())
    assert found == pieces.start.tolist()
    assert sorted(input_ids[input_ids >= 0].tolist()) == tokens.tolist()
    assert (labels[starts] == -100).all() and (labels[input_ids < 0] == -100).all()
    inside = ~starts & (input_ids >= 0)
    assert np.array_equal(labels[inside], input_ids[inside])


def test_rows_too_narrow_are_refused():
    with pytest.raises(ValueError, match="holds 5 tokens and does not fit into width 4"):
        fill_rows(np.arange(5), pack_best_fit([5], 5), 4, pad=PAD)


def test_spread():
    assert spread(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
