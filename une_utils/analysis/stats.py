"""Values with an uncertainty: every number the notebooks report is an `Estimate`, and its interval comes from here.

All intervals are 95 % unless told otherwise. Bootstraps are seeded percentile bootstraps over rows (images) or over attributes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

LEVEL = 0.95
_CHUNK_VALUES = 4_000_000  # resampled values held at once: 32 MB of float64


@dataclass(frozen=True)
class Estimate:
    """A value, its confidence interval [low, high] and the sample size n it rests on."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}] (n = {self.n:,})"


def bootstrap_interval(
    values: np.ndarray,
    metric: Callable[..., np.ndarray] = np.mean,
    resamples: int = 1000,
    level: float = LEVEL,
    seed: int = 42,
) -> Estimate:
    """Percentile bootstrap of `metric` over the rows of `values`.

    values: (N,) or (N, K), finite. metric: a reducer called as `metric(batch, axis=1)` on a batch (B, N) or (B, N, K) of
    resamples and expected to return (B,), as `np.mean` and `np.median` do for (N,). For values (N, K) pass a metric that also
    reduces K, such as a correlation of two columns. Raises ValueError for no rows or for values that are not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 0 or len(values) == 0:
        raise ValueError("bootstrap_interval needs at least one row")
    if not np.isfinite(values).all():
        raise ValueError("bootstrap_interval: values contain NaN or inf")
    n = len(values)
    rng = np.random.default_rng(seed)
    draws = []
    chunk = max(1, _CHUNK_VALUES // values.size)
    for start in range(0, resamples, chunk):
        rows = rng.integers(0, n, size=(min(chunk, resamples - start), n))
        batch = np.asarray(metric(values[rows], axis=1))  # (B,)
        if batch.shape != (len(rows),):
            raise ValueError(f"metric returned shape {batch.shape} for {len(rows)} resamples; it must return one number each")
        draws.append(batch)
    low, high = percentile_interval(np.concatenate(draws), level)
    return Estimate(float(np.asarray(metric(values[None], axis=1))[0]), float(low), float(high), n)


def percentile_interval(draws: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Lower and upper percentile of bootstrap draws (B, ...) -> (2, ...); draws that are NaN are left out, all-NaN gives NaN."""
    tail = (1 - level) / 2
    draws = np.asarray(draws, dtype=np.float64)
    undefined = np.isnan(draws).all(axis=0)
    bounds = np.nanquantile(np.where(undefined, 0.0, draws), [tail, 1 - tail], axis=0)
    return np.where(undefined, np.nan, bounds)


def row_counts(rows: np.ndarray) -> np.ndarray:
    """How often each of n rows occurs in resamples (B, n) of row numbers: (B, n) integers, each line summing to n."""
    resamples, n = rows.shape
    flat = rows + n * np.arange(resamples)[:, None]
    return np.bincount(flat.ravel(), minlength=rows.size).reshape(rows.shape)


def bootstrap_weights(n: int, resamples: int, seed: int) -> np.ndarray:
    """Row weights (1 + resamples, n): all ones first, then bootstraps; the resamples that `probes` draws for the same n and seed."""
    rows = np.random.default_rng((seed, n)).integers(0, n, size=(resamples, n))
    return np.concatenate([np.ones((1, n)), row_counts(rows)])


def drawn_estimate(draws: np.ndarray, n: int) -> Estimate:
    """Estimate of draws (1 + B,) whose first entry is the value on all rows, as `bootstrap_weights` orders them."""
    low, high = percentile_interval(draws[1:])
    return Estimate(float(draws[0]), float(low), float(high), n)


def wilson_interval(successes: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927): inside [0, 1] and sensible at 0 and at n successes.

    successes and n may be fractional, as an effective sample size is. Raises ValueError unless 0 <= successes <= n and n > 0.
    """
    if not (n > 0 and 0 <= successes <= n):
        raise ValueError(f"wilson_interval needs 0 <= successes <= n and n > 0, got {successes} of {n}")
    z = special.ndtri(0.5 + level / 2)
    rate = successes / n
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    # at 0 and n successes the bound is exactly 0 or 1; rounding may leave it 1e-17 outside
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def proportion(passed: np.ndarray, level: float = LEVEL) -> Estimate:
    """Share of True in `passed` (N,) with its Wilson interval."""
    passed = np.asarray(passed, dtype=bool)
    low, high = wilson_interval(int(passed.sum()), passed.size, level)
    return Estimate(float(passed.mean()), low, high, passed.size)


def spearman_interval(
    x: np.ndarray, y: np.ndarray, resamples: int = 1000, level: float = LEVEL, seed: int = 42
) -> Estimate:
    """Spearman rank correlation of two per-attribute vectors (A,) with a bootstrap over attributes.

    Ranks are taken anew in every resample. Resamples in which a side is constant have no correlation and are left out.
    Raises ValueError for different lengths, fewer than three attributes, or a constant side.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 3:
        raise ValueError(f"spearman_interval needs two vectors of one length of at least 3, got {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("spearman_interval: values contain NaN or inf")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise ValueError("spearman_interval: a constant vector has no rank correlation")
    return bootstrap_interval(np.column_stack([x, y]), _spearman, resamples, level, seed)


def _spearman(pairs: np.ndarray, axis: int) -> np.ndarray:
    """Spearman correlation of the two last-axis columns of pairs (B, A, 2) -> (B,), NaN where a side is constant."""
    ranks = stats.rankdata(pairs, axis=axis)
    ranks -= ranks.mean(axis=axis, keepdims=True)
    a, b = ranks[..., 0], ranks[..., 1]
    with np.errstate(invalid="ignore"):
        return (a * b).sum(axis) / np.sqrt((a**2).sum(axis) * (b**2).sum(axis))


def intervals_overlap(a: Estimate, b: Estimate) -> bool:
    """True when the intervals share a point. A weak statement: prefer a paired difference where both saw the same rows."""
    return a.low <= b.high and b.low <= a.high
