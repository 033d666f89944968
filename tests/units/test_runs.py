"""Runs of units: literal inputs, exact outputs."""

import numpy as np
import pytest

from hf_clsi.units.runs import collapse, collapse_ragged, frames_to_seconds, run_lengths, seconds_to_frames


def test_collapse_keeps_one_unit_of_each_run_and_the_dtype():
    units = np.array([7, 7, 3, 3, 3, 7, 0], dtype=np.uint16)
    result = collapse(units)
    assert result.tolist() == [7, 3, 7, 0]
    assert result.dtype == np.uint16
    assert units.tolist() == [7, 7, 3, 3, 3, 7, 0]


@pytest.mark.parametrize("units", [[], [4]])
def test_collapse_of_nothing_and_of_one_unit_changes_nothing(units):
    assert collapse(np.array(units, dtype=np.uint16)).tolist() == units


def test_collapse_refuses_two_dimensions():
    with pytest.raises(ValueError, match=r"one-dimensional, got shape \(1, 3\)"):
        collapse(np.zeros((1, 3)))


def test_ragged_runs_stop_at_sentence_borders():
    # Sentences: [5 5], [5 2 2], [], [2], []: the 5s and the 2s on both sides of a border stay apart.
    flat = np.array([5, 5, 5, 2, 2, 2], dtype=np.uint16)
    result, offsets = collapse_ragged(flat, np.array([0, 2, 5, 5, 6, 6]))
    assert result.tolist() == [5, 5, 2, 2]
    assert offsets.tolist() == [0, 1, 3, 3, 4, 4]
    assert result.dtype == np.uint16


def test_ragged_equals_one_sentence_at_a_time():
    rng = np.random.default_rng(0)
    sentences = [rng.integers(0, 3, size=n) for n in rng.integers(0, 9, size=200)]
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in sentences])])
    flat, borders = collapse_ragged(np.concatenate(sentences), offsets)
    for index, sentence in enumerate(sentences):
        assert flat[borders[index] : borders[index + 1]].tolist() == collapse(sentence).tolist()


def test_ragged_of_no_sentences():
    flat, offsets = collapse_ragged(np.zeros(0, dtype=np.uint16), np.array([0]))
    assert flat.tolist() == [] and offsets.tolist() == [0]


@pytest.mark.parametrize("offsets", [[], [1, 3], [0, 2], [0, 3, 2, 3]])
def test_ragged_refuses_offsets_that_do_not_cover_the_units(offsets):
    with pytest.raises(ValueError, match="offsets must rise from 0 to 3"):
        collapse_ragged(np.array([1, 2, 3]), np.array(offsets, dtype=np.int64))


def test_run_lengths_say_what_repeats_how_often():
    values, lengths = run_lengths(np.array([7, 7, 3, 7, 7, 7], dtype=np.uint16))
    assert values.tolist() == [7, 3, 7]
    assert lengths.tolist() == [2, 1, 3]
    assert np.repeat(values, lengths).tolist() == [7, 7, 3, 7, 7, 7]
    assert run_lengths(np.zeros(0, dtype=np.uint16))[1].tolist() == []


def test_frames_and_seconds():
    assert frames_to_seconds(25, 12.5) == 2.0
    assert frames_to_seconds(np.array([1, 2]), 50).tolist() == [0.02, 0.04]
    assert seconds_to_frames(2.0, 12.5) == 25
    assert seconds_to_frames(2.01, 12.5) == 26
    # As floats, 0.58 s * 50 Hz is 28.999999999999996 frames and 0.07 s * 100 Hz is 7.000000000000001.
    assert seconds_to_frames(np.array([0.58, 0.07]), np.array([50, 100])).tolist() == [29, 7]
