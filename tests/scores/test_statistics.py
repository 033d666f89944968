import numpy as np
import pytest
import scipy.stats

from hf_clsi.scores import statistics
from hf_clsi.scores.statistics import (
    McNemar,
    cluster_bootstrap_interval,
    mcnemar_exact,
    paired_bootstrap,
    percentile_interval,
    wilson_interval,
)


@pytest.mark.parametrize("correct", [0, 1, 7, 400, 863, 864])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_equals_scipy(correct, confidence):
    expected = scipy.stats.binomtest(correct, 864).proportion_ci(confidence, method="wilson")
    assert wilson_interval(correct, 864, confidence) == pytest.approx(
        (expected.low, expected.high), abs=1e-12
    )


def test_wilson_equals_statsmodels_with_half_points():
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    expected = proportion.proportion_confint(431.5, 864, method="wilson")
    assert wilson_interval(431.5, 864) == pytest.approx(expected, abs=1e-12)


def test_wilson_is_symmetric_and_reaches_the_ends():
    low, high = wilson_interval(3, 10)
    assert wilson_interval(7, 10) == pytest.approx((1 - high, 1 - low), abs=1e-15)
    assert wilson_interval(0, 5)[0] == 0.0 and wilson_interval(5, 5)[1] == 1.0


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (-1, 5), (6, 5), (float("nan"), 5)])
def test_wilson_refuses_impossible_counts(correct, n):
    with pytest.raises(ValueError, match="Got correct="):
        wilson_interval(correct, n)


@pytest.mark.parametrize(
    ("a_only", "b_only"),
    [(0, 0), (1, 0), (5, 5), (5, 6), (3, 17), (40, 20), (300, 301), (900, 1000), (2000, 10)],
)
def test_mcnemar_equals_the_binomial_test(a_only, b_only):
    a = np.repeat([1.0, 0.0, 1.0, 0.0], [a_only, b_only, 11, 13])
    b = np.repeat([0.0, 1.0, 1.0, 0.0], [a_only, b_only, 11, 13])
    expected = scipy.stats.binomtest(a_only, a_only + b_only).pvalue if a_only + b_only else 1.0
    got = mcnemar_exact(a, b)
    assert (got.a_only, got.b_only) == (a_only, b_only)
    assert got.p_value == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_mcnemar_equals_statsmodels():
    contingency_tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    a, b = np.repeat([1, 0, 1, 0], [25, 12, 40, 30]), np.repeat([0, 1, 1, 0], [25, 12, 40, 30])
    expected = contingency_tables.mcnemar([[40, 25], [12, 30]], exact=True).pvalue
    assert mcnemar_exact(a, b).p_value == pytest.approx(expected, rel=1e-12)


def test_mcnemar_counts_half_points_by_their_sign():
    assert mcnemar_exact([1, 0.5, 0.5, 0.5], [0.5, 0, 0.5, 1]) == McNemar(2, 1, 1.0)


def test_paired_tests_refuse_unequal_or_undefined_outcomes():
    with pytest.raises(ValueError, match="one length"):
        mcnemar_exact([1, 0], [1])
    with pytest.raises(ValueError, match="one length"):
        paired_bootstrap([], [], seed=0)
    with pytest.raises(ValueError, match="num_samples is 0"):
        paired_bootstrap([1], [0], seed=0, num_samples=0)
    with pytest.raises(ValueError, match="finite"):
        paired_bootstrap([1, np.nan], [0, 1], seed=0)


def test_paired_bootstrap_agrees_with_scipy():
    rng = np.random.default_rng(0)
    a = rng.choice([0.0, 0.5, 1.0], 500, p=[0.3, 0.05, 0.65])
    b = rng.choice([0.0, 1.0], 500, p=[0.45, 0.55])
    expected = scipy.stats.bootstrap(
        (a, b),
        lambda x, y, axis: (x - y).mean(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    got = paired_bootstrap(a, b, seed=2, num_samples=20_000)
    assert got == pytest.approx((expected.low, expected.high), abs=0.003)  # the interval is 0.12 wide


def test_paired_bootstrap_uses_the_pairing():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 2, 400).astype(float)
    b = a.copy()
    b[:10] = 1 - b[:10]
    low, high = paired_bootstrap(a, b, seed=0)
    assert high - low < 0.04  # ten discordant items of 400; unpaired it would be 0.14


def test_bootstraps_depend_on_the_seed_alone(monkeypatch):
    a, b = np.random.default_rng(0).random((2, 50))
    labels = np.arange(50) // 5
    one = paired_bootstrap(a, b, seed=5), cluster_bootstrap_interval(a, labels, seed=5)
    np.random.seed(123)
    assert one == (paired_bootstrap(a, b, seed=5), cluster_bootstrap_interval(a, labels, seed=5))
    assert one[1] != cluster_bootstrap_interval(a, labels, seed=6)
    monkeypatch.setattr(statistics, "BLOCK", 64)  # drawn in many small blocks
    assert paired_bootstrap(a, b, seed=5) == pytest.approx(one[0], abs=1e-12)
    assert cluster_bootstrap_interval(a, labels, seed=5) == pytest.approx(one[1], abs=1e-12)


def test_cluster_bootstrap_of_two_clusters():
    # Two clusters: a resample is (x, x), (x, y) or (y, y) with probabilities 1/4, 1/2, 1/4, so the means are
    # 1, 1/4 and 0 (three zeros against one 1), and the 2.5% and 97.5% quantiles are the ends.
    assert cluster_bootstrap_interval([1, 0, 0, 0], ["x", "y", "y", "y"], seed=0) == (0.0, 1.0)
    assert cluster_bootstrap_interval([1, 0, 0, 0], ["x", "y", "y", "y"], seed=0, confidence=0.4) == (
        0.25,
        0.25,
    )


def test_cluster_bootstrap_equals_drawing_whole_clusters_one_by_one():
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 12, 300)
    values = (rng.random(300) < 0.3 + 0.04 * labels).astype(float)
    draws = np.random.default_rng(9).multinomial(12, np.full(12, 1 / 12), size=200)
    means = []
    for draw in draws:
        pool = np.concatenate([np.repeat(values[labels == c], draw[c]) for c in range(12)])
        means.append(pool.mean())
    expected = percentile_interval(np.array(means))
    assert cluster_bootstrap_interval(values, labels, seed=9, num_samples=200) == pytest.approx(
        expected, abs=1e-12
    )


def test_two_labels_an_item_equal_the_products_of_draws():
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 8, (200, 2))
    values = rng.integers(0, 2, 200).astype(float)
    draws = np.random.default_rng(3).multinomial(8, np.full(8, 1 / 8), size=150)
    means = []
    for draw in draws:
        weights = np.array([draw[x] * draw[y] for x, y in labels])
        means.append((weights * values).sum() / weights.sum())
    expected = percentile_interval(np.array(means))
    assert cluster_bootstrap_interval(values, labels, seed=3, num_samples=150) == pytest.approx(
        expected, abs=1e-12
    )


def test_outcomes_that_go_with_the_topic_widen_the_interval():
    labels = np.repeat(np.arange(24), 36)
    values = (labels % 2).astype(float)  # all items of a topic share their fate
    low, high = cluster_bootstrap_interval(values, labels, seed=0)
    wilson = wilson_interval(values.sum(), len(values))
    assert (high - low) > 4 * (wilson[1] - wilson[0])
    # and independent outcomes do not
    values = np.random.default_rng(0).integers(0, 2, len(labels)).astype(float)
    low, high = cluster_bootstrap_interval(values, labels, seed=0)
    wilson = wilson_interval(values.sum(), len(values))
    assert 0.6 < (high - low) / (wilson[1] - wilson[0]) < 1.5


def test_paired_bootstrap_over_clusters_is_that_of_the_differences():
    a, b, labels = np.array([1.0, 1, 0, 1]), np.array([0.0, 1, 1, 0]), ["x", "x", "y", "z"]
    assert paired_bootstrap(a, b, clusters=labels, seed=1) == cluster_bootstrap_interval(
        a - b, labels, seed=1
    )


def test_cluster_bootstrap_refuses_what_it_cannot_resample():
    with pytest.raises(ValueError, match="at least two clusters, got 1"):
        cluster_bootstrap_interval([1, 0], ["x", "x"], seed=0)
    with pytest.raises(ValueError, match="clusters have shape"):
        cluster_bootstrap_interval([1, 0], ["x"], seed=0)
    with pytest.raises(ValueError, match="num_samples is 0"):
        cluster_bootstrap_interval([1, 0], ["x", "y"], seed=0, num_samples=0)
    with pytest.raises(ValueError, match="No bootstrap samples"):
        percentile_interval(np.array([]))
    with pytest.raises(ValueError, match="confidence is 95"):
        wilson_interval(1, 2, 95)
