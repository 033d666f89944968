"""Turns an aligned story into (language, sentence) pairs: a stateless draw of one language per sentence.

The draw is a hash, not a random stream: every value depends only on (seed, epoch, story id, sentence index).
It is therefore the same for any number of dataloader workers, any batch order and after a resume, and
different in every epoch. The four inputs are folded into 64 bits, one after the other, by splitmix64 (Steele,
Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014); the upper 53 bits make the
uniform number. Cost: 4 mixes a sentence, all in numpy.

To draw one of two languages uniformly for every next sentence is the method of arXiv 2512.01865; more than
two languages, weights, and the other ways of switching (`Switching`) are our extension.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# The place of the sentence index when a draw belongs to the whole document (mixed mode), not to one sentence.
WHOLE_DOCUMENT = -1

WHOLE_STORY = "story"

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
    return _finish(_states(seed, epoch, story_keys), sentence_index)


def _states(seed: int, epoch: int | np.ndarray, story_keys: np.ndarray) -> np.ndarray:
    """`[D]` uint64: seed, epoch and story, mixed; the same for all sentences of a document."""
    keys = np.atleast_1d(np.asarray(story_keys, dtype=np.uint64))
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is the point
        state = _mix(np.array([int(seed) % 2**64], dtype=np.uint64))
        return _mix(_mix(state ^ _as_uint64(epoch)) ^ keys)


def _finish(states: np.ndarray, sentence_index: np.ndarray | int) -> np.ndarray:
    """States and sentences `[n]` -> uniform numbers."""
    with np.errstate(over="ignore"):
        state = _mix(states ^ _as_uint64(sentence_index))
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
    return _languages_at(draw_uniform(seed, epoch, story_keys, sentence_index), weights)


def _languages_at(uniform: np.ndarray, weights: np.ndarray | Sequence[float] | int) -> np.ndarray:
    """Uniform numbers `[n]` -> language indices."""
    cumulative = np.cumsum(check_weights(weights))
    cumulative /= cumulative[-1]  # the last threshold is exactly 1, so that no uniform number falls behind it
    # side="right": a language of weight 0 has the threshold of its predecessor and is never the first above.
    return np.searchsorted(cumulative, uniform, side="right").astype(np.int64)


@dataclass(frozen=True)
class Switching:
    """When an interleaved document changes its language. The defaults are the paper's.

    Attributes:
        every: sentences that a draw holds for: 1, or k (spans of k sentences, the last one may be shorter),
            or "story": the whole document is in one language.
        probability: None: every span draws its language afresh, by the weights. A number p: with probability
            p the next span is in another language, drawn by the weights among the others; else it goes on in
            the same. With two languages of equal weight, 0.5 has the distribution of None.
        start: language of the first span; None: drawn by the weights.
    """

    every: int | str = 1
    probability: float | None = None
    start: str | None = None

    def __post_init__(self):
        whole = self.every == WHOLE_STORY
        if not whole and (
            isinstance(self.every, (bool, str)) or int(self.every) != self.every or self.every < 1
        ):
            raise ValueError(
                f"switching every {self.every!r} sentences: expected 1, a larger whole number or "
                f"{WHOLE_STORY!r}."
            )
        if self.probability is not None and not 0 <= self.probability <= 1:
            raise ValueError(
                f"the probability of switching lies between 0 and 1 (or is None), got {self.probability!r}."
            )
        if whole and self.probability is not None:
            raise ValueError(
                f"switching every {WHOLE_STORY!r} never switches, so there is no probability of it; got "
                f"{self.probability}. Leave it out."
            )


def draw_story_languages(
    seed: int,
    epochs: np.ndarray,
    story_keys: np.ndarray,
    weights: np.ndarray | Sequence[float] | int,
) -> np.ndarray:
    """One language for each whole document, `[D]` int64; arguments as in `draw_document_languages`."""
    return draw_languages(seed, epochs, story_keys, WHOLE_DOCUMENT, weights)


def draw_document_languages(
    seed: int,
    epochs: np.ndarray,
    story_keys: np.ndarray,
    counts: np.ndarray,
    languages: Sequence[str],
    weights: np.ndarray | Sequence[float] | None = None,
    switching: Switching | None = None,
) -> np.ndarray:
    """The language of every sentence of D documents, as collator and budgets draw it.

    Every span of sentences uses one uniform number, keyed by the index of its first sentence, so what a
    document draws depends on nothing but (seed, epoch, story id) and these settings. Cost: one pass over the
    sentences; with a probability of switching, one pass over the documents for each span of the longest.

    Args:
        seed: of the draw.
        epochs: `[D]` int64.
        story_keys: `[D]` uint64.
        counts: `[D]` sentences of each document.
        languages: codes; their places are the indices returned.
        weights: one per language; equal when None.
        switching: None is the paper's: every sentence draws.

    Returns:
        `[sum(counts)]` int64 language indices, document after document.

    Raises:
        ValueError: `switching.start` is not one of the languages.

    Example:
        >>> keys, counts = np.array([story_key("story-0")], dtype=np.uint64), np.array([8])
        >>> draw_document_languages(0, np.array([0]), keys, counts, ["en", "fr"]).tolist()
        [0, 1, 0, 0, 1, 1, 0, 0]
        >>> pairs = Switching(every=2, start="fr")
        >>> draw_document_languages(0, np.array([0]), keys, counts, ["en", "fr"], switching=pairs).tolist()
        [1, 1, 0, 0, 1, 1, 0, 0]
    """
    switching = Switching() if switching is None else switching
    weights = check_weights(len(languages) if weights is None else weights)
    if weights.size != len(languages):
        raise ValueError(f"got {weights.size} weights for {len(languages)} languages")
    if switching.start is not None and switching.start not in languages:
        raise ValueError(f"the start language {switching.start!r} is not one of {', '.join(languages)}")
    counts = np.asarray(counts, dtype=np.int64)
    epochs, story_keys = np.asarray(epochs, dtype=np.int64), np.asarray(story_keys, dtype=np.uint64)
    start = None if switching.start is None else list(languages).index(switching.start)
    if switching.every == WHOLE_STORY:
        if start is None:
            return np.repeat(draw_story_languages(seed, epochs, story_keys, weights), counts)
        return np.full(int(counts.sum()), start, dtype=np.int64)

    every = int(switching.every)
    spans = -(-counts // every)  # [D]
    first = np.cumsum(spans) - spans  # [D] each document's first span
    span = np.arange(int(spans.sum())) - np.repeat(first, spans)  # [n] index of a span in its document
    uniform = _finish(np.repeat(_states(seed, epochs, story_keys), spans), span * every)
    if switching.probability is None:
        drawn = _languages_at(uniform, weights)
        if start is not None:
            drawn[first[spans > 0]] = start
    else:
        drawn = _walk(uniform, first, spans, weights, switching.probability, start)
    if every == 1:
        return drawn
    lengths = np.minimum(np.repeat(counts, spans) - span * every, every)
    return np.repeat(drawn, lengths)


def _walk(
    uniform: np.ndarray,
    first: np.ndarray,
    spans: np.ndarray,
    weights: np.ndarray,
    probability: float,
    start: int | None,
) -> np.ndarray:
    """Languages of spans that go on in the same language or, with some probability, switch to another.

    Args:
        uniform: `[n]` one number a span.
        first, spans: `[D]` first span of each document, and their numbers.
    """
    others = np.tile(weights, (weights.size, 1))  # [from, to]
    np.fill_diagonal(others, 0)
    stuck = others.sum(1) == 0  # nowhere to go: all other languages have weight 0
    others[stuck, np.flatnonzero(stuck)] = 1
    thresholds = np.cumsum(others, axis=1)
    thresholds /= thresholds[:, -1:]
    drawn = np.empty(uniform.size, dtype=np.int64)
    alive = np.flatnonzero(spans)
    whole = np.cumsum(weights)
    now = (
        np.full(alive.size, start, dtype=np.int64)
        if start is not None
        else np.searchsorted(whole / whole[-1], uniform[first[alive]], side="right")
    )
    index = 0
    while alive.size:
        drawn[first[alive] + index] = now
        index += 1
        more = spans[alive] > index
        alive, now = alive[more], now[more]
        number = uniform[first[alive] + index]
        switches = number < probability
        # Below `probability`, number / probability is uniform again: one number says whether and to where.
        again = np.minimum(number[switches] / probability, np.nextafter(1, 0)) if probability else number[:0]
        now = now.copy()
        now[switches] = (thresholds[now[switches]] <= again[:, None]).sum(1)
    return drawn


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
