import numpy as np
import pytest
from scipy import stats as scipy_stats

from une_utils.analysis import stats


def test_bootstrap_of_a_mean_agrees_with_the_normal_interval_and_covers_the_truth():
    rng = np.random.default_rng(0)
    values = rng.normal(3.0, 2.0, 400)
    estimate = stats.bootstrap_interval(values, resamples=2000)
    error = values.std() / np.sqrt(400)
    assert estimate.value == pytest.approx(values.mean()) and estimate.n == 400
    assert estimate.low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert estimate.high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)
    covered = [
        (e := stats.bootstrap_interval(rng.normal(size=60), resamples=300, seed=i)).low <= 0 <= e.high for i in range(200)
    ]
    assert 0.88 <= np.mean(covered) <= 0.99


def test_bootstrap_of_other_metrics_and_chunks(monkeypatch):
    values = np.random.default_rng(1).exponential(size=101)
    median = stats.bootstrap_interval(values, np.median)
    assert median.value == np.median(values) and median.low < median.value < median.high
    monkeypatch.setattr(stats, "_CHUNK_VALUES", 1)  # one resample at a time draws the same numbers
    assert stats.bootstrap_interval(values, np.median) == median
    assert stats.bootstrap_interval(values, np.median, seed=1) != median
    pairs = np.column_stack([values, values])
    assert stats.bootstrap_interval(pairs, lambda b, axis: (b[..., 0] - b[..., 1]).sum(axis)).high == 0


def test_bootstrap_refuses_what_has_no_answer():
    for bad in ([], [1.0, np.nan], 3.0):
        with pytest.raises(ValueError):
            stats.bootstrap_interval(np.asarray(bad))
    with pytest.raises(ValueError, match="one number each"):
        stats.bootstrap_interval(np.ones((5, 2)))  # a mean over rows leaves two numbers
    assert stats.bootstrap_interval(np.full(1, 7.0)) == stats.Estimate(7.0, 7.0, 7.0, 1)


@pytest.mark.parametrize("successes, n", [(0, 20), (3, 20), (10, 20), (20, 20), (950, 1000)])
def test_wilson_is_scipys(successes, n):
    expected = scipy_stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert stats.wilson_interval(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)
    estimate = stats.proportion(np.arange(n) < successes)
    assert (estimate.value, estimate.n) == (successes / n, n)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_wilson_refuses_impossible_counts():
    for successes, n in ((1, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError):
            stats.wilson_interval(successes, n)


def test_spearman_value_is_scipys_and_the_interval_tells_signal_from_noise():
    rng = np.random.default_rng(2)
    x = rng.normal(size=40)
    y = x + 0.3 * rng.normal(size=40)
    y = y.round(1)  # ties
    strong = stats.spearman_interval(x, y)
    assert strong.value == pytest.approx(scipy_stats.spearmanr(x, y).statistic)
    assert 0.5 < strong.low < strong.value < strong.high <= 1
    noise = stats.spearman_interval(x, rng.normal(size=40))
    assert noise.low < 0 < noise.high
    assert stats.spearman_interval(x, np.exp(x)).value == pytest.approx(1)


def test_spearman_refuses_what_has_no_answer():
    x = np.arange(5.0)
    for a, b in ((x, x[:4]), (x, np.ones(5)), (x[:2], x[:2]), (x, np.where(x == 2, np.nan, x))):
        with pytest.raises(ValueError):
            stats.spearman_interval(a, b)


def test_spearman_leaves_constant_resamples_out():
    y = np.array([0, 0, 0, 0, 1.0])  # a third of the resamples miss the only 1
    estimate = stats.spearman_interval(np.arange(5.0), y)
    assert np.isfinite([estimate.value, estimate.low, estimate.high]).all()


def test_percentile_interval_of_undefined_draws():
    draws = np.column_stack([np.arange(101.0), np.full(101, np.nan)])
    draws[0, 0] = np.nan
    bounds = stats.percentile_interval(draws)
    assert bounds[:, 0] == pytest.approx([1 + 99 * 0.025, 1 + 99 * 0.975])
    assert np.isnan(bounds[:, 1]).all()


def test_intervals_overlap_and_text():
    a, b, c = (stats.Estimate(0.5, low, high, 10) for low, high in ((0.4, 0.6), (0.6, 0.8), (0.61, 0.8)))
    assert stats.intervals_overlap(a, b) and stats.intervals_overlap(b, a)
    assert not stats.intervals_overlap(a, c) and not stats.intervals_overlap(c, a)
    assert str(a) == "0.5 [0.4, 0.6] (n = 10)"


def test_bootstrap_weights_start_with_every_row_once_and_the_estimate_reads_that_line():
    weights = stats.bootstrap_weights(30, 200, seed=3)
    assert weights.shape == (201, 30) and (weights[0] == 1).all() and (weights.sum(axis=1) == 30).all()
    np.testing.assert_array_equal(stats.row_counts(np.array([[0, 0, 2], [1, 1, 1]])), [[2, 0, 1], [0, 3, 0]])
    values = np.random.default_rng(4).normal(2.0, 1.0, 30)
    estimate = stats.drawn_estimate(weights @ values / 30, 30)
    assert estimate.value == pytest.approx(values.mean()) and estimate.n == 30
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(30), rel=0.25)
