"""Turns an aligned story into (language, sentence) pairs: a stateless draw of one language per sentence.

The draw is a hash, not a random stream: every value depends only on (seed, epoch, story id, sentence index).
It is therefore the same for any number of dataloader workers, any batch order and after a resume, and
different in every epoch. The four inputs are folded into 64 bits, one after the other, by splitmix64 (Steele,
Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014); the upper 53 bits make the
uniform number. Cost: 4 mixes a sentence, all in numpy.

To draw one of two languages uniformly for every next sentence is the method of arXiv 2512.01865; more than
two languages and weights are our extension.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# The place of the sentence index when a draw belongs to the whole document (mixed mode), not to one sentence.
WHOLE_DOCUMENT = -1

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FACTOR_1 = np.uint64(0xBF58476D1CE4E5B9)
_FACTOR_2 = np.uint64(0x94D049BB133111EB)


def story_key(story_id: str) -> int:
    """64-bit key of a story id (blake2b, little endian), the same on every machine and in every process.

    Python's own `hash` is salted per process, so it must not be used here.
    """
    if not isinstance(story_id, str) or not story_id:
        raise ValueError(f"story_id must be a non-empty string, got {story_id!r}")
    return int.from_bytes(hashlib.blake2b(story_id.encode("utf-8"), digest_size=8).digest(), "little")


def draw_uniform(
    seed: int,
    epoch: int | np.ndarray,
    story_keys: np.ndarray,
    sentence_index: np.ndarray | int,
) -> np.ndarray:
    """Uniform numbers in [0, 1), each a multiple of 2**-53, that depend on nothing but the four arguments.

    Args:
        seed: any integer, taken modulo 2**64.
        epoch: an integer, or one per draw `[n]`.
        story_keys: `[n]` uint64, see `story_key`.
        sentence_index: `[n]` int64, or one integer; `WHOLE_DOCUMENT` (-1) for a draw that is about the
            document.

    Returns:
        `[n]` float64.
    """
    keys = np.atleast_1d(np.asarray(story_keys, dtype=np.uint64))
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is the point
        state = _mix(np.array([int(seed) % 2**64], dtype=np.uint64))
        state = _mix(state ^ _as_uint64(epoch))
        state = _mix(state ^ keys)
        state = _mix(state ^ _as_uint64(sentence_index))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw_languages(
    seed: int,
    epoch: int | np.ndarray,
    story_keys: np.ndarray,
    sentence_index: np.ndarray | int,
    weights: np.ndarray | Sequence[float] | int,
) -> np.ndarray:
    """Draws one language per sentence.

    Args:
        seed, epoch, story_keys, sentence_index: as in `draw_uniform`.
        weights: `[L]` non-negative weights (need not sum to 1), or the number of languages for equal weights.

    Returns:
        `[n]` int64 language indices in 0..L-1.

    Example:
        >>> key = story_key("story-0")
        >>> draw_languages(0, 0, np.full(8, key, dtype=np.uint64), np.arange(8), 2).tolist()
        [0, 1, 0, 0, 1, 1, 0, 0]
    """
    cumulative = np.cumsum(check_weights(weights))
    cumulative /= cumulative[-1]  # the last threshold is exactly 1, so that no uniform number falls behind it
    uniform = draw_uniform(seed, epoch, story_keys, sentence_index)
    # side="right": a language of weight 0 has the threshold of its predecessor and is never the first above.
    return np.searchsorted(cumulative, uniform, side="right").astype(np.int64)


def check_weights(weights: np.ndarray | Sequence[float] | int) -> np.ndarray:
    """Weights as `[L]` float64, an integer L as L equal ones; ValueError if they cannot be drawn from."""
    if isinstance(weights, (int, np.integer)):
        if weights < 1:
            raise ValueError(f"at least 1 language is needed to draw from, got {weights}")
        return np.ones(int(weights))
    values = np.asarray(weights, dtype=np.float64)
    if (
        values.ndim != 1
        or not values.size
        or not np.isfinite(values).all()
        or (values < 0).any()
        or not values.sum()
    ):
        raise ValueError(f"weights must be one finite number >= 0 per language, not all 0, got {weights!r}")
    return values.copy()


def interleave_story(
    story_id: str,
    sentences: Mapping[str, Sequence[Any]],
    *,
    seed: int,
    epoch: int,
    weights: Sequence[float] | None = None,
) -> list[tuple[int, Any]]:
    """One story's interleaving, as the collator draws it: every sentence once, in order, in one language.

    Args:
        story_id: the id that the draw is keyed by.
        sentences: for every language its sentences (of any type), the same number in each; the order of the
            keys is the order of the language indices.
        seed, epoch: see `draw_languages`.
        weights: one per language; equal when None.

    Returns:
        A list of (language index, that language's sentence).

    Raises:
        ValueError: the languages hold different numbers of sentences.
    """
    columns = list(sentences.values())
    counts = [len(column) for column in columns]
    if len(set(counts)) != 1:
        raise ValueError(
            f"story {story_id!r}: interleaving needs the same number of sentences in every language, "
            f"got {dict(zip(sentences, counts, strict=True))}"
        )
    drawn = draw_languages(
        seed, epoch, np.full(counts[0], story_key(story_id), dtype=np.uint64), np.arange(counts[0]),
        len(columns) if weights is None else weights,
    )  # fmt: skip
    return [(language, columns[language][index]) for index, language in enumerate(drawn.tolist())]


def _as_uint64(values: np.ndarray | int) -> np.ndarray:
    """`[n]` or `[1]` uint64 with negative numbers wrapped (numpy refuses to wrap Python integers)."""
    return np.atleast_1d(np.asarray(values, dtype=np.int64)).view(np.uint64)


def _mix(state: np.ndarray) -> np.ndarray:
    """One splitmix64 step: a bijection of uint64 in which every input bit reaches every output bit."""
    state = state + _GAMMA
    state = (state ^ (state >> np.uint64(30))) * _FACTOR_1
    state = (state ^ (state >> np.uint64(27))) * _FACTOR_2
    return state ^ (state >> np.uint64(31))
