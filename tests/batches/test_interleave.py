"""The language draw: literal values, uniformity, independence, and what it may depend on."""

from __future__ import annotations

import numpy as np
import pytest

from hf_clsi.batches.interleave import (
    WHOLE_DOCUMENT,
    check_weights,
    draw_languages,
    draw_uniform,
    interleave_story,
    story_key,
)

# Critical values of chi-square at p = 0.001 (the draws are fixed, so these tests cannot fail by luck).
CHI2_1, CHI2_2, CHI2_4 = 10.83, 13.82, 18.47


def keys(n: int, story: str = "story-0") -> np.ndarray:
    return np.full(n, story_key(story), dtype=np.uint64)


def many_keys(n: int) -> np.ndarray:
    return np.array([story_key(f"story-{i}") for i in range(n)], dtype=np.uint64)


def chi_square(observed: np.ndarray, expected: np.ndarray) -> float:
    return float(((observed - expected) ** 2 / expected).sum())


def chi_square_of_independence(a: np.ndarray, b: np.ndarray, levels: int) -> float:
    table = np.bincount(a * levels + b, minlength=levels * levels).reshape(levels, levels).astype(float)
    return chi_square(table, np.outer(table.sum(1), table.sum(0)) / table.sum())


# --- regression: these values may never change, or resumed runs would silently see other data ---------------


def test_story_keys_are_fixed():
    assert story_key("story-0") == 18106388520329872231
    assert story_key("Das Märchen/7") == 14441832651900775985


@pytest.mark.parametrize(
    ("seed", "epoch", "equal", "weighted"),
    [
        (0, 0, [0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1], [0, 2, 2, 2, 2, 2, 2, 0, 2, 2, 2, 2]),
        (0, 1, [0, 0, 1, 1, 0, 0, 1, 0, 0, 0, 1, 1], [0, 2, 2, 2, 2, 2, 2, 2, 0, 0, 2, 2]),
        (1, 0, [1, 0, 1, 1, 1, 1, 0, 1, 0, 0, 1, 1], [2, 2, 2, 2, 2, 2, 2, 2, 0, 2, 2, 2]),
        (-1, 0, [0, 1, 1, 1, 0, 1, 0, 1, 1, 0, 0, 1], [0, 2, 2, 2, 0, 2, 0, 2, 2, 0, 2, 2]),
    ],
)
def test_draws_are_fixed(seed, epoch, equal, weighted):
    assert draw_languages(seed, epoch, keys(12), np.arange(12), 2).tolist() == equal
    assert draw_languages(seed, epoch, keys(12), np.arange(12), [1, 0, 3]).tolist() == weighted


def test_uniform_numbers_are_the_chained_splitmix64_of_the_four_arguments():
    def mix(state: int) -> int:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        return state ^ (state >> 31)

    assert mix(0) == 0xE220A8397B1DCDAF  # the first output of the published splitmix64 with seed 0
    expected = [
        mix(mix(mix(mix(7) ^ 3) ^ story_key("story-0")) ^ (i % 2**64)) >> 11
        for i in (0, 1, 2, WHOLE_DOCUMENT)
    ]
    drawn = draw_uniform(7, 3, keys(4), np.array([0, 1, 2, WHOLE_DOCUMENT]))
    assert (drawn * 2**53).astype(np.int64).tolist() == expected
    assert expected[0] == 49033683831417


# --- distribution -------------------------------------------------------------------------------------------


def test_three_languages_are_drawn_uniformly():
    story, sentence = np.divmod(np.arange(30_000), 15)
    drawn = draw_languages(0, 0, many_keys(2_000)[story], sentence, 3)
    assert chi_square(np.bincount(drawn, minlength=3), np.full(3, 10_000.0)) < CHI2_2


def test_weights_are_respected_and_weight_zero_is_never_drawn():
    story, sentence = np.divmod(np.arange(30_000), 15)
    counts = np.bincount(
        draw_languages(0, 0, many_keys(2_000)[story], sentence, [0.0, 2.0, 1.0, 0.0]), minlength=4
    )
    assert counts[0] == counts[3] == 0
    assert chi_square(counts[1:3], np.array([20_000.0, 10_000.0])) < CHI2_1


def test_uniform_numbers_fill_the_unit_interval_evenly():
    uniform = draw_uniform(5, 2, many_keys(5_000), 0)
    assert uniform.min() >= 0 and uniform.max() < 1
    assert chi_square(np.bincount((uniform * 5).astype(int), minlength=5), np.full(5, 1_000.0)) < CHI2_4


def test_consecutive_sentences_are_independent():
    story, sentence = np.divmod(np.arange(40_000), 20)
    drawn = draw_languages(0, 0, many_keys(2_000)[story], sentence, 2).reshape(2_000, 20)
    assert chi_square_of_independence(drawn[:, :-1].ravel(), drawn[:, 1:].ravel(), 2) < CHI2_1
    assert chi_square_of_independence(drawn[:, :-2].ravel(), drawn[:, 2:].ravel(), 2) < CHI2_1


@pytest.mark.parametrize(
    ("first", "second"),
    [((0, 0), (0, 1)), ((0, 0), (1, 0)), ((0, 1), (1, 0)), ((3, 7), (3, 8))],
    ids=["next epoch", "next seed", "seed and epoch swapped", "later epochs"],
)
def test_epochs_and_seeds_are_independent(first, second):
    story, sentence = np.divmod(np.arange(20_000), 10)
    story_keys = many_keys(2_000)[story]
    a = draw_languages(*first, story_keys, sentence, 2)
    b = draw_languages(*second, story_keys, sentence, 2)
    assert chi_square_of_independence(a, b, 2) < CHI2_1


def test_stories_are_independent():
    drawn = draw_languages(0, 0, np.repeat(many_keys(2_001), 10), np.tile(np.arange(10), 2_001), 2).reshape(
        2_001, 10
    )
    assert chi_square_of_independence(drawn[:-1].ravel(), drawn[1:].ravel(), 2) < CHI2_1


# --- what it depends on -------------------------------------------------------------------------------------


def test_draws_do_not_depend_on_the_order_or_size_of_the_call():
    story_keys, sentence = np.repeat(many_keys(50), 8), np.tile(np.arange(8), 50)
    together = draw_languages(4, 2, story_keys, sentence, 3)
    order = np.random.default_rng(0).permutation(400)
    assert np.array_equal(draw_languages(4, 2, story_keys[order], sentence[order], 3), together[order])
    alone = [int(draw_languages(4, 2, story_keys[i : i + 1], sentence[i : i + 1], 3)[0]) for i in range(400)]
    assert alone == together.tolist()


def test_one_epoch_per_draw_equals_one_call_per_epoch():
    epochs = np.array([0, 0, 1, 5])
    together = draw_uniform(0, epochs, keys(4), np.arange(4))
    assert together.tolist() == [float(draw_uniform(0, int(e), keys(1), i)[0]) for i, e in enumerate(epochs)]


def test_arguments_are_not_changed():
    weights = np.array([1.0, 3.0])
    check_weights(weights)[0] = 9
    draw_languages(0, 0, keys(3), np.arange(3), weights)
    assert weights.tolist() == [1.0, 3.0]


@pytest.mark.parametrize("weights", [0, [], [0.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [[1.0]]])
def test_weights_that_cannot_be_drawn_from_are_refused(weights):
    with pytest.raises(ValueError, match=r"weights must be|at least 1 language"):
        draw_languages(0, 0, keys(1), 0, weights)


@pytest.mark.parametrize("story_id", ["", None, 7])
def test_story_id_must_be_a_string(story_id):
    with pytest.raises(ValueError, match="story_id must be a non-empty string"):
        story_key(story_id)


# --- a story ------------------------------------------------------------------------------------------------


def test_interleaved_story_takes_every_sentence_once_in_order():
    story = {"en": ["e0", "e1", "e2", "e3", "e4", "e5"], "fr": ["f0", "f1", "f2", "f3", "f4", "f5"]}
    assert interleave_story("story-0", story, seed=0, epoch=0) == [
        (0, "e0"),
        (1, "f1"),
        (0, "e2"),
        (0, "e3"),
        (1, "f4"),
        (1, "f5"),
    ]


def test_interleaved_story_with_all_weight_on_one_language_is_that_language():
    story = {"en": ["e0", "e1", "e2"], "fr": ["f0", "f1", "f2"]}
    assert interleave_story("x", story, seed=0, epoch=0, weights=[0, 1]) == [(1, "f0"), (1, "f1"), (1, "f2")]


def test_unequal_sentence_counts_are_refused_with_the_story_id():
    with pytest.raises(ValueError, match=r"story 'x'.*\{'en': 2, 'fr': 1\}"):
        interleave_story("x", {"en": ["a", "b"], "fr": ["c"]}, seed=0, epoch=0)
