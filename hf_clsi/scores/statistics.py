"""Turns outcomes of items (1 right, 0 wrong, 0.5 a tie) into intervals and paired tests.

Everything runs on plain numpy and integers; random draws come from a Generator made from the seed that is
passed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

# Numbers of one block of bootstrap draws, so that memory stays flat in the number of resamples.
BLOCK = 4_000_000


def wilson_interval(correct: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion: (low, high), both within [0, 1].

    With p = correct / n and z the two-sided normal quantile,
    (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n): Wilson 1927, "Probable inference, the law of
    succession, and statistical inference", JASA 22(158); recommended by Brown, Cai & DasGupta 2001,
    Statistical Science 16(2).

    Args:
        correct: number of right outcomes; fractional where ties count one half.
        n: number of outcomes, at least 1.

    >>> tuple(round(x, 4) for x in wilson_interval(8, 10))
    (0.4902, 0.9433)
    """
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"Got correct={correct} of n={n}; n must be at least 1 and correct within 0..n.")
    z = _normal_quantile(confidence)
    p = correct / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low = 0.0 if correct == 0 else max(0.0, middle - half)
    high = 1.0 if correct == n else min(1.0, middle + half)
    return low, high


@dataclasses.dataclass(frozen=True)
class McNemar:
    """Outcome of a paired test: items on which only a (only b) did better, and the two-sided p-value."""

    a_only: int
    b_only: int
    p_value: float


def mcnemar_exact(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> McNemar:
    """Exact McNemar test of two scorers on the same n items, two-sided.

    Under the null hypothesis each discordant item favours a or b with probability 1/2, so
    p = min(1, 2 P(X <= min(a_only, b_only))) with X ~ Binomial(a_only + b_only, 1/2): McNemar 1947,
    Psychometrika 12(2); exact form in Fagerland, Lydersen & Laake 2013, BMC Med. Res. Methodol. 13:91. The
    tail is summed in whole numbers, so it is exact for any n.

    Ties: an item counts for the scorer with the higher outcome, so 1 against 0.5 and 0.5 against 0 are
    discordant items like any other. That makes it the sign test, whose 0/1 case is McNemar's.

    Args:
        a, b: outcomes [n] in 0, 0.5, 1 (any numbers do: only their order within an item counts).

    >>> mcnemar_exact([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0])
    McNemar(a_only=5, b_only=0, p_value=0.0625)
    """
    a, b = _paired(a, b)
    a_only, b_only = int((a > b).sum()), int((b > a).sum())
    discordant = a_only + b_only
    tail, ways = 0, 1  # ways = C(discordant, k)
    for k in range(min(a_only, b_only) + 1):
        tail += ways
        ways = ways * (discordant - k) // (k + 1)
    return McNemar(a_only, b_only, min(1.0, 2 * tail / 2**discordant))


def paired_bootstrap(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    *,
    clusters: Sequence | np.ndarray | None = None,
    seed: int = 0,
    num_samples: int = 2000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of mean(a) - mean(b) over the same n items: (low, high).

    Items are drawn with replacement, each with both its outcomes (Efron & Tibshirani 1993, An Introduction to
    the Bootstrap, chapter 13; for paired systems Koehn 2004, "Statistical significance tests for machine
    translation evaluation", EMNLP). With `clusters`, whole clusters are drawn: see
    `cluster_bootstrap_interval`.
    """
    a, b = _paired(a, b)
    difference = a - b
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; it must be at least 1.")
    if clusters is not None:
        return cluster_bootstrap_interval(
            difference, clusters, seed=seed, num_samples=num_samples, confidence=confidence
        )
    # A resample of n items is a multinomial draw of how often each distinct difference (at most five for
    # outcomes) occurs: the same distribution as drawing items, at a cost that does not grow with n.
    values, counts = np.unique(difference, return_counts=True)
    rng = np.random.default_rng(seed)
    n = len(difference)
    rows = max(1, BLOCK // len(values))
    means = np.concatenate(
        [
            rng.multinomial(n, counts / n, size=min(rows, num_samples - start)) @ values / n
            for start in range(0, num_samples, rows)
        ]
    )
    return percentile_interval(means, confidence)


def cluster_bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence | np.ndarray,
    *,
    seed: int = 0,
    num_samples: int = 2000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of mean(values) when values of a cluster (a topic) go together.

    One label an item: as many clusters as there are get drawn with replacement, each with all its items, and
    the mean is taken over the items drawn (Field & Welsh 2007, "Bootstrapping clustered data", JRSS B 69(3)).
    Two labels an item, as for a topic-cloze item that rests on the topic of its prompt and the topic of its
    wrong
    ending: clusters are drawn once and an item counts as often as the product of its two clusters' draws (the
    dyadic bootstrap of Davezies, D'Haultfoeuille & Guyonvarch 2021, Annals of Statistics 49(2); Owen 2007's
    pigeonhole bootstrap with one population). It is wider, since a topic then moves items on both sides. With
    fewer than some twenty clusters, percentile intervals run a little narrow.

    Args:
        values: [n] outcomes, or differences of paired outcomes.
        clusters: labels [n], or [n, 2] for two labels an item out of one population. By convention the topic
            of the prompt where an item has one label.

    Raises:
        ValueError: fewer than two clusters, or labels that do not match the values.
    """
    values = np.asarray(values, dtype=np.float64)
    labels = np.asarray(clusters)
    if values.ndim != 1 or labels.shape not in ((len(values),), (len(values), 2)):
        raise ValueError(
            f"clusters have shape {labels.shape}; values of shape {values.shape} need [n] or [n, 2]."
        )
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; it must be at least 1.")
    names, index = np.unique(labels, return_inverse=True)
    index = index.reshape(labels.shape)
    size = len(names)
    if size < 2:
        raise ValueError(f"A cluster bootstrap needs at least two clusters, got {size}.")
    rng = np.random.default_rng(seed)
    if index.ndim == 1:
        sums, counts = np.bincount(index, values, size), np.bincount(index, minlength=size)
    else:
        keys, pair = np.unique(index[:, 0] * size + index[:, 1], return_inverse=True)
        sums, counts = np.bincount(pair, values), np.bincount(pair)
        first, second = keys // size, keys % size
    rows = max(1, BLOCK // max(size, len(sums)))
    means = []
    for start in range(0, num_samples, rows):
        draws = rng.multinomial(size, np.full(size, 1 / size), size=min(rows, num_samples - start))
        weights = draws if index.ndim == 1 else draws[:, first] * draws[:, second]
        total = weights @ counts
        kept = total > 0  # with very few topics a dyadic draw can hold no pair at all: it has no mean
        means.append((weights[kept] @ sums) / total[kept])
    return percentile_interval(np.concatenate(means), confidence)


def percentile_interval(samples: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Central interval of bootstrap samples [num_samples]: (low, high)."""
    if len(samples) == 0:
        raise ValueError("No bootstrap samples to take an interval of.")
    tail = (1 - confidence) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return float(low), float(high)


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1.")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _paired(a, b) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or len(a) == 0:
        raise ValueError(
            f"Paired outcomes need two arrays of one length, not empty; got {a.shape} and {b.shape}."
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("Paired outcomes must be finite; drop tied items from both sides first.")
    return a, b
