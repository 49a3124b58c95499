"""Is a set of latents Gaussian? The tests of UNE Table 1 with the controls that tell what they can and cannot see.

UNE ("The Universal Normal Embedding", Table 1) projects latents on random unit directions and counts how many projections pass a
one-dimensional normality test at the 5 % level. A random projection of thousands of weakly dependent coordinates is close to a
Gaussian whatever the coordinates are (Diaconis and Freedman 1984), so the same tests are offered on single coordinates and on
principal directions, with controls that are far from Gaussian and with the null distribution of the covariance spectrum.

Latents are (N, D) arrays, memory maps or `StoredRows`, float16, float32 or float64, on any scale: every test estimates mean and
variance.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
from scipy import linalg, special
from threadpoolctl import threadpool_info, threadpool_limits  # comes with scikit-learn

from une_utils.analysis.outofcore import column_means, row_blocks
from une_utils.analysis.stats import Estimate, wilson_interval
from une_utils.stored import StoredRows, read_rows

ALPHA = 0.05
MIN_ROWS = 8  # D'Agostino's skewness test is undefined below
MAX_ROWS = 5000  # Royston fitted the Shapiro-Wilk p value up to here
AD_CRITICAL = 0.752  # 5 % point of A*^2, mean and variance estimated: D'Agostino and Stephens (1986), Table 4.7
_BLOCK_BYTES = 64 * 2**20
_TILE_BYTES = 2 * 2**20  # rows on their way through a projection: about one core's share of the cache
_GATHERED_ROW = 24  # a row that is gathered for one direction takes about as long as this many in a product of two matrices
_COORDINATES = 100  # tested at once where the values of each are read from a file


@dataclass(frozen=True)
class TestResult:
    """Statistic, p value and 5 % decision of P samples, each an array (P,) (or the shape without the tested axis)."""

    __test__ = False  # the name starts with Test: keep pytest from collecting it

    statistic: np.ndarray
    pvalue: np.ndarray
    passed: np.ndarray


def _standardised(x: np.ndarray, axis: int, ddof: int, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Samples on the last axis as float64 with mean 0 and variance 1, and a mask of the constant ones (returned as zeros)."""
    x = np.moveaxis(np.asarray(x, dtype=np.float64), axis, -1)
    n = x.shape[-1]
    if n < MIN_ROWS or (limit is not None and n > limit):
        raise ValueError(f"a normality test needs {MIN_ROWS} to {limit or 'any number of'} values, got {n}")
    if not np.isfinite(x).all():
        raise ValueError("samples contain NaN or inf")
    largest = np.abs(x).max(axis=-1, keepdims=True)
    x = x - x.mean(axis=-1, keepdims=True)
    scale = np.sqrt((x**2).sum(axis=-1, keepdims=True) / (n - ddof))
    # the mean of equal values is off by rounding, so a constant sample is left with a spread of a few ulp
    constant = scale <= 8 * np.finfo(np.float64).eps * largest
    return np.where(constant, 0.0, x / np.where(constant, 1.0, scale)), constant[..., 0]


def _result(statistic: np.ndarray, pvalue: np.ndarray, passed: np.ndarray, constant: np.ndarray, worst: float) -> TestResult:
    """A constant sample is not Gaussian: it gets the worst statistic, p = 0 and fails; a NaN would drop out of rates."""
    return TestResult(np.where(constant, worst, statistic), np.where(constant, 0.0, pvalue), passed & ~constant)


def anderson_darling(x: np.ndarray, axis: int = -1) -> TestResult:
    """Anderson-Darling test of normality with estimated mean and variance (UNE Table 1), for many samples at once.

    x: (P, n) samples along `axis`, n >= 8. The statistic is A^2, as `scipy.stats.anderson` returns it. A sample passes when
    Stephens' A*^2 = A^2 (1 + 0.75/n + 2.25/n^2) is below 0.752, the 5 % point of D'Agostino and Stephens (1986), Table 4.7; p
    values are their Table 4.9 (the polynomials reach 0.05 at 0.753, so a p within 0.0003 of 0.05 may disagree with the
    decision). Done here because SciPy replaced its table of critical values between versions (0.787 with another correction
    before, 0.752 rounded to three decimals now) and deprecates it. A constant sample fails with statistic inf. Raises
    ValueError for NaN, inf or n < 8.
    """
    z, constant = _standardised(x, axis, ddof=1)
    n = z.shape[-1]
    z = np.sort(z, axis=-1)
    log_cdf = special.log_ndtr(z)
    log_sf = special.log_ndtr(-z[..., ::-1])
    weights = (2 * np.arange(1, n + 1) - 1) / n
    statistic = -n - (log_cdf + log_sf) @ weights
    adjusted = statistic * (1 + 0.75 / n + 2.25 / n**2)
    return _result(statistic, _anderson_darling_pvalue(adjusted), adjusted < AD_CRITICAL, constant, np.inf)


def _anderson_darling_pvalue(a: np.ndarray) -> np.ndarray:
    """p value of A*^2, D'Agostino and Stephens (1986), Table 4.9, case 3; taken to be constant above 13, where p is 5e-31."""
    a = np.minimum(a, 13.0)
    return np.select(
        [a <= 0.2, a <= 0.34, a < 0.6],
        [
            -np.expm1(-13.436 + 101.14 * a - 223.73 * a**2),
            -np.expm1(-8.318 + 42.796 * a - 59.938 * a**2),
            np.exp(0.9177 - 4.279 * a - 1.38 * a**2),
        ],
        np.exp(1.2937 - 5.709 * a + 0.0186 * a**2),
    )


def dagostino_pearson(x: np.ndarray, axis: int = -1) -> TestResult:
    """D'Agostino-Pearson K^2 test (D'Agostino 1970 for skewness, Anscombe and Glynn 1983 for kurtosis), for many samples at once.

    x: (P, n) samples along `axis`, n >= 8 (the chi-square approximation wants n >= 20). Same numbers as `scipy.stats.normaltest`,
    except where the skewness is exactly 0, which SciPy scores as if it were not.
    A constant sample fails with statistic inf. Raises ValueError for NaN, inf or n < 8.
    """
    z, constant = _standardised(x, axis, ddof=0)
    n = z.shape[-1]
    square = z * z
    skewness = (square * z).mean(axis=-1)
    kurtosis = (square * square).mean(axis=-1)
    statistic = _skewness_score(skewness, n) ** 2 + _kurtosis_score(kurtosis, n) ** 2
    pvalue = special.chdtrc(2, statistic)
    return _result(statistic, pvalue, pvalue > ALPHA, constant, np.inf)


def _skewness_score(skewness: np.ndarray, n: int) -> np.ndarray:
    """D'Agostino's (1970) normal score of a sample skewness."""
    y = skewness * np.sqrt((n + 1) * (n + 3) / (6 * (n - 2)))
    beta2 = 3 * (n**2 + 27 * n - 70) * (n + 1) * (n + 3) / ((n - 2) * (n + 5) * (n + 7) * (n + 9))
    w2 = np.sqrt(2 * (beta2 - 1)) - 1
    return np.arcsinh(y / np.sqrt(2 / (w2 - 1))) / np.sqrt(0.5 * np.log(w2))


def _kurtosis_score(kurtosis: np.ndarray, n: int) -> np.ndarray:
    """Anscombe and Glynn's (1983) normal score of a sample kurtosis (3 for a Gaussian), their equations 1 to 5."""
    variance = 24 * n * (n - 2) * (n - 3) / ((n + 1) ** 2 * (n + 3) * (n + 5))
    x = (kurtosis - 3 * (n - 1) / (n + 1)) / np.sqrt(variance)
    skew = 6 * (n * n - 5 * n + 2) / ((n + 7) * (n + 9)) * np.sqrt(6 * (n + 3) * (n + 5) / (n * (n - 2) * (n - 3)))
    a = 6 + 8 / skew * (2 / skew + np.sqrt(1 + 4 / skew**2))
    root = np.cbrt((1 - 2 / a) / (1 + x * np.sqrt(2 / (a - 4))))
    return (1 - 2 / (9 * a) - root) / np.sqrt(2 / (9 * a))


def shapiro_wilk(x: np.ndarray, axis: int = -1) -> TestResult:
    """Shapiro-Wilk W test by Royston's algorithm AS R94 (1995), for many samples at once.

    x: (P, n) samples along `axis`, 8 <= n <= 5000 (where Royston fitted the p value). The weights depend on n alone, so they are
    computed once and shared by all samples. Same numbers as `scipy.stats.shapiro` to 1e-6. A constant sample fails with W = 0.
    Raises ValueError for NaN, inf or n outside the range.
    """
    z, constant = _standardised(x, axis, ddof=0, limit=MAX_ROWS)
    n = z.shape[-1]
    z = np.sort(z, axis=-1)
    correlation = (z @ _royston_weights(n)) / np.sqrt(n)  # weights have unit length, z has sum of squares n
    deficit = (1 - correlation) * (1 + correlation)  # 1 - W without cancellation, W is close to 1
    with np.errstate(divide="ignore"):
        y = np.log(np.maximum(deficit, 0.0))
    polyval = np.polynomial.polynomial.polyval
    if n <= 11:
        gamma = -2.273 + 0.459 * n
        with np.errstate(invalid="ignore"):
            score = (-np.log(gamma - y) - polyval(n, [0.5440, -0.39978, 0.025054, -6.714e-4])) / np.exp(
                polyval(n, [1.3822, -0.77857, 0.062767, -0.0020322])
            )
        score = np.where(y >= gamma, np.inf, score)
    else:
        log_n = np.log(n)
        score = (y - polyval(log_n, [-1.5861, -0.31082, -0.083751, 0.0038915])) / np.exp(
            polyval(log_n, [-0.4803, -0.082676, 0.0030302])
        )
    pvalue = special.ndtr(-score)
    return _result(1 - deficit, pvalue, pvalue > ALPHA, constant, 0.0)


def _royston_weights(n: int) -> np.ndarray:
    """Shapiro-Wilk weights (n,), antisymmetric, of unit length: Royston (1992, 1995), Blom scores with corrected ends, n > 5."""
    scores = special.ndtri((np.arange(1, n + 1) - 0.375) / (n + 0.25))
    total = scores @ scores
    u = 1 / np.sqrt(n)
    polyval = np.polynomial.polynomial.polyval
    last = scores[-1] / np.sqrt(total) + polyval(u, [0, 0.221157, -0.147981, -2.071190, 4.434685, -2.706056])
    second = scores[-2] / np.sqrt(total) + polyval(u, [0, 0.042981, -0.293762, -1.752461, 5.682633, -3.582633])
    inner = np.sqrt((total - 2 * scores[-1] ** 2 - 2 * scores[-2] ** 2) / (1 - 2 * last**2 - 2 * second**2))
    weights = scores / inner
    weights[[0, 1, -2, -1]] = -last, -second, second, last
    return weights / np.linalg.norm(weights)


TESTS = {
    "Anderson-Darling": anderson_darling,
    "D'Agostino-Pearson": dagostino_pearson,
    "Shapiro-Wilk": shapiro_wilk,
}


@dataclass(frozen=True)
class NormalityTests:
    """The three tests on P one-dimensional samples of one set of latents.

    directions: "random", "coordinate" or "principal". index (P,): number of the direction, of the coordinate, or of the principal
    direction (0 has the largest variance). group (P,): samples with one number share their rows. rows: values per sample.
    n, d: shape of the latents. tests: `TestResult` by test name, in the order of `TESTS`.
    """

    directions: str
    index: np.ndarray
    group: np.ndarray
    rows: int
    n: int
    d: int
    tests: dict[str, TestResult]

    def pass_rates(self) -> dict[str, Estimate]:
        """Share of samples that pass at 5 %, by test; a Gaussian passes about 95 %.

        The interval is Wilson's at the effective number of samples, P divided by the design effect of shared rows (1 where no
        rows are shared). It covers the choice of directions and rows, not of the images: all directions look at one data set,
        so it is too narrow as a statement about new images. Compare with N(0, I) at the same N and D.
        """
        return {name: _clustered_proportion(test.passed, self.group) for name, test in self.tests.items()}

    def to_frame(self) -> pd.DataFrame:
        """Tidy table, one row per test and sample: directions, index, group, test, statistic, pvalue, passed."""
        return pd.concat(
            [
                pd.DataFrame(
                    {
                        "directions": self.directions,
                        "index": self.index,
                        "group": self.group,
                        "test": name,
                        "statistic": test.statistic,
                        "pvalue": test.pvalue,
                        "passed": test.passed,
                    }
                )
                for name, test in self.tests.items()
            ],
            ignore_index=True,
        )

    def summary(self) -> pd.DataFrame:
        """One row per test: directions, test, pass_rate, low, high, mean_statistic, mean_pvalue, samples, rows."""
        rates = self.pass_rates()
        return pd.DataFrame(
            {
                "directions": self.directions,
                "test": name,
                "pass_rate": rates[name].value,
                "low": rates[name].low,
                "high": rates[name].high,
                "mean_statistic": test.statistic.mean(),
                "mean_pvalue": test.pvalue.mean(),
                "samples": len(self.index),
                "rows": self.rows,
            }
            for name, test in self.tests.items()
        )


def _clustered_proportion(passed: np.ndarray, group: np.ndarray) -> Estimate:
    """Share of True with a Wilson interval at P / deff, where deff >= 1 is estimated from the spread between groups."""
    p = len(passed)
    rate = passed.mean()
    _, member = np.unique(group, return_inverse=True)
    groups = member.max() + 1
    if groups > 1 and 0 < rate < 1:
        excess = np.bincount(member, weights=passed - rate)
        spread = groups / (groups - 1) * (excess**2).sum() / (p * rate * (1 - rate))
        design_effect = max(1.0, spread) if groups < p else 1.0
    else:
        design_effect = p / groups  # no spread to learn from: count draws of rows, not samples
    low, high = wilson_interval(rate * p / design_effect, p / design_effect)
    return Estimate(float(rate), low, high, p)


def projection_tests(
    latents: np.ndarray,
    projections: int = 5000,
    rows: int = 250,
    seed: int = 42,
    subsets: Literal["each"] | int = "each",
) -> NormalityTests:
    """UNE Table 1: `projections` random unit directions, `rows` rows each without replacement, three tests at the 5 % level.

    latents: (N, D). rows is capped at N (and at 5000). subsets="each" draws new rows for every direction, as the paper does;
    subsets=k shares one draw between k directions, about three times faster at k = 25 and D = 16,384, at the price of a pass
    rate whose variance grows by 1 + (k - 1) r, with r the correlation of two decisions on one draw: near 0 for thousands of
    independent coordinates, near 1 for D = 1; `pass_rates` estimates it. Directions and rows depend on (seed, number of the
    direction) alone, not on blocks or threads.

    Memory beyond the input: per thread three blocks of at most 64 MB (directions, latents, projections), plus projections x rows x
    8 bytes a few times over for the tests; never a copy of the latents, which may be a memory map. Raises ValueError for N < 8,
    for values that are not finite, and for counts below 1.
    """
    n, d, rows = _check(latents, rows)
    share = 1 if subsets == "each" else int(subsets)
    if projections < 1 or share < 1:
        raise ValueError(f"projections and subsets must be at least 1, got {projections} and {subsets}")
    group = np.arange(projections) // share
    chosen = _draw_rows(seed, group, n, rows)
    samples = _project(latents, lambda start, stop: _random_directions(seed, start, stop, d), group, chosen)
    return _run("random", samples, np.arange(projections), group, (n, d))


def coordinate_tests(latents: np.ndarray, rows: int = 250, seed: int = 42, coordinates: int = 1000) -> NormalityTests:
    """The tests of Table 1 on single coordinates, which random projections average away.

    latents: (N, D). All coordinates when D <= `coordinates`, else a random sample of them; `rows` rows each (capped at N), drawn
    anew per coordinate. Memory: coordinates x rows values. Raises ValueError for N < 8 and values that are not finite.
    """
    n, d, rows = _check(latents, rows)
    rng = np.random.default_rng((seed, d))
    index = np.arange(d) if d <= coordinates else np.sort(rng.choice(d, coordinates, replace=False))
    group = np.arange(len(index))
    chosen = _draw_rows(seed, group, n, rows)
    pick = latents.pick if isinstance(latents, StoredRows) else lambda rows, columns: latents[rows, columns]
    parts = slices(len(index), _COORDINATES)
    samples = np.concatenate([pick(chosen[part], index[part, None]) for part in parts]).astype(np.float64, copy=False)  # (P, rows)
    return _run("coordinate", samples, index, group, (n, d))


def principal_direction_tests(
    latents: np.ndarray, components: int = 100, rows: int = 250, seed: int = 42, fit_rows: int = 4096
) -> NormalityTests:
    """The tests of Table 1 on the leading principal directions of the standardised coordinates, where structure is strongest.

    latents: (N, D). Half of the rows, at most `fit_rows`, fit the directions (coordinates scaled to unit variance); the tested
    rows come from the rest, so a direction is never judged on the images it was fitted to. Memory: fit_rows x D float32 and a
    square matrix of the smaller side. Raises ValueError for N < 16 and values that are not finite.
    """
    n, d, _ = _check(latents, rows)
    if n < 2 * MIN_ROWS:
        raise ValueError(f"principal_direction_tests splits the rows in two and needs at least {2 * MIN_ROWS}, got {n}")
    order = np.random.default_rng((seed, n)).permutation(n)
    fit, held_out = np.sort(order[: min(n // 2, fit_rows)]), np.sort(order[min(n // 2, fit_rows) :])
    rows = min(rows, len(held_out))
    block = np.asarray(read_rows(latents, fit), dtype=np.float32)
    if not np.isfinite(block).all():
        raise ValueError("latents contain NaN or inf")
    spread = block.std(axis=0, dtype=np.float64)
    weight = np.divide(1.0, spread, out=np.zeros(d), where=spread > 0).astype(np.float32)  # a constant coordinate takes no part
    block -= block.mean(axis=0, dtype=np.float64).astype(np.float32)
    block *= weight
    axes = _leading_axes(block, min(components, len(fit) - 1, d))  # (P, D)
    directions = axes * weight  # standardising is folded into the direction, the tests do not see an offset
    group = np.arange(len(directions))
    chosen = held_out[_draw_rows(seed, group, len(held_out), rows)]
    samples = _project(latents, lambda start, stop: directions[start:stop], group, chosen)
    return _run("principal", samples, group, group, (n, d))


def _check(latents: np.ndarray, rows: int) -> tuple[int, int, int]:
    """Shape of the latents and the number of rows per sample, capped at N."""
    if np.ndim(latents) != 2:
        raise ValueError(f"latents must be (N, D), got shape {np.shape(latents)}")
    n, d = latents.shape
    if n < MIN_ROWS or rows < MIN_ROWS:
        raise ValueError(f"the normality tests need at least {MIN_ROWS} rows, got N = {n} and rows = {rows}")
    if d < 1:
        raise ValueError("latents have no coordinates")
    return n, d, min(rows, n, MAX_ROWS)


def _draw_rows(seed: int, group: np.ndarray, n: int, rows: int) -> np.ndarray:
    """Rows of every group without replacement, sorted for sequential reads: (groups, rows), one generator per group."""
    draws = [np.random.default_rng((seed, 1, g)).choice(n, rows, replace=False, shuffle=False) for g in range(group[-1] + 1)]
    return np.sort(np.stack(draws), axis=1)


def _random_directions(seed: int, start: int, stop: int, d: int) -> np.ndarray:
    """Unit directions number start to stop, (stop - start, D) float32, uniform on the sphere, one generator per direction."""
    directions = np.empty((stop - start, d), dtype=np.float32)
    for row, number in zip(directions, range(start, stop), strict=True):
        np.random.default_rng((seed, 0, number)).standard_normal(dtype=np.float32, out=row)
        row /= np.sqrt(row @ row)
    return directions


def _project(
    latents: np.ndarray, directions: Callable[[int, int], np.ndarray], group: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Projected samples (P, rows): sample p is latents[rows[group[p]]] @ directions(p, p + 1)[0], as float64.

    Threads (as many as BLAS would use) work on separate directions. Gathering rows for one direction is bound by memory: where
    all N rows cost less as a product of two matrices than its few rows do gathered, all are projected and the few are picked.
    """
    d = latents.shape[1]
    out = np.empty((len(group), rows.shape[1]), dtype=np.float64)
    share = len(group) / len(rows)
    limit = max(1, _BLOCK_BYTES // (4 * d))
    if len(latents) <= _GATHERED_ROW * rows.shape[1] / share:
        pieces = [(part.start, part.stop) for part in slices(len(group), limit)]
        fill = partial(_project_all, latents, directions, group, rows, out)
    else:
        pieces = list(_group_slices(group, limit))
        fill = partial(_project_gathered, latents, directions, rows, out)
    threads = max([pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"], default=1)
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda piece: fill(*piece), pieces))
    return out


def _project_all(latents, directions, group, rows, out, start: int, stop: int) -> None:
    """Samples start to stop: every row on their directions, in blocks of rows, then each sample's own."""
    block = directions(start, stop)
    scores = np.empty((stop - start, len(latents)), dtype=np.float32)
    for part in slices(len(latents), max(1, _BLOCK_BYTES // (4 * latents.shape[1]))):
        scores[:, part] = block @ np.asarray(read_rows(latents, part), dtype=np.float32).T
    out[start:stop] = np.take_along_axis(scores, rows[group[start:stop]], axis=1)


def _project_gathered(latents, directions, rows, out, g: int, start: int, stop: int) -> None:
    """Samples start to stop of one group: its rows pass through a small buffer that stays in cache."""
    d = latents.shape[1]
    block = directions(start, stop)
    tile = np.empty((int(np.clip(_TILE_BYTES // (4 * d), 1, rows.shape[1])), d), dtype=latents.dtype)
    for part in slices(rows.shape[1], len(tile)):
        picked = _take(latents, rows[g, part], tile[: part.stop - part.start])
        out[start:stop, part] = block @ np.asarray(picked, dtype=np.float32).T


def _take(latents: np.ndarray, rows: np.ndarray, buffer: np.ndarray) -> np.ndarray:
    """latents[rows] written to `buffer`, or gathered anew where NumPy would copy the whole array to take rows from it."""
    if isinstance(latents, StoredRows):
        return latents.read(rows)
    if latents.flags.c_contiguous and latents.flags.aligned:
        return np.take(latents, rows, axis=0, out=buffer, mode="clip")  # mode="raise" would go through another copy
    return latents[rows]


def _group_slices(group: np.ndarray, limit: int) -> Iterator[tuple[int, int, int]]:
    """(group, start, stop) of runs of one group, cut into pieces of at most `limit` samples."""
    edges = np.flatnonzero(np.diff(group, prepend=-1, append=group[-1] + 1))
    for first, last in zip(edges[:-1], edges[1:], strict=True):
        for start in range(first, last, limit):
            yield int(group[first]), start, min(start + limit, last)


def _run(kind: str, samples: np.ndarray, index: np.ndarray, group: np.ndarray, shape: tuple[int, int]) -> NormalityTests:
    if not np.isfinite(samples).all():
        raise ValueError("latents contain NaN or inf")
    tests = {name: test(samples) for name, test in TESTS.items()}
    return NormalityTests(kind, index, group, samples.shape[1], *shape, tests)


def _leading_axes(centred: np.ndarray, count: int) -> np.ndarray:
    """Leading principal axes (count, D) of centred rows (N, D), from the Gram matrix of the smaller side."""
    n, d = centred.shape
    if n <= d:
        values, left = linalg.eigh(centred @ centred.T, subset_by_index=(n - count, n - 1))
        axes = (left.T @ centred)[::-1]
    else:
        values, right = linalg.eigh(centred.T @ centred, subset_by_index=(d - count, d - 1))
        axes = right.T[::-1]
    lengths = np.linalg.norm(axes, axis=1)
    kept = values[::-1] > values[-1] * n * np.finfo(np.float32).eps  # directions without variance carry rounding only
    return axes[kept] / lengths[kept, None]


CONTROLS = ("N(0, I)", "bimodal mixture", "uniform", "±1 signs", "exponential", "95 % zeros")
BIMODAL_SHIFT = 5.0  # see `control`


def control(name: str, n: int, d: int, seed: int = 42) -> np.ndarray:
    """One control of `CONTROLS`, (n, d) float32, every coordinate with population mean 0 and variance 1.

    "N(0, I)": the null. "bimodal mixture": two equal clusters at +-5 in every coordinate, with signs drawn per coordinate and
    unit noise, scaled to unit variance; a projection on a random unit direction is two Gaussians at +-5 g with g close to N(0,
    1), so they overlap enough to pass only when |g| is below about 0.2: 16 to 17 % of the directions pass Anderson-Darling at
    250 rows, whatever the dimension (4,000 directions: 15.8 % at D = 64, 16.8 % at D = 1024), as the paper's bimodal control
    does (15.88 % in Table 1); a shift of 3 gives 26 %, one of 8 gives 10 %. The others have independent coordinates that are
    far from Gaussian one by one: "uniform", "±1 signs", "exponential" (skewed), "95 % zeros" (5 % of the entries are Gaussian).
    Raises ValueError for another name.
    """
    if name not in CONTROLS:
        raise ValueError(f"unknown control {name!r}, choose one of {CONTROLS}")
    rng = np.random.default_rng((seed, CONTROLS.index(name)))
    if name == "uniform":
        return (rng.random((n, d), dtype=np.float32) - np.float32(0.5)) * np.float32(np.sqrt(12))
    if name == "±1 signs":
        return rng.integers(0, 2, (n, d), dtype=np.int8) * np.float32(2) - np.float32(1)
    if name == "exponential":
        return rng.standard_exponential((n, d), dtype=np.float32) - np.float32(1)
    x = rng.standard_normal((n, d), dtype=np.float32)
    if name == "bimodal mixture":
        signs = rng.choice(np.float32([-1, 1]), d)
        x += np.float32(BIMODAL_SHIFT) * rng.choice(np.float32([-1, 1]), (n, 1)) * signs
        x /= np.float32(np.sqrt(1 + BIMODAL_SHIFT**2))
    if name == "95 % zeros":
        x *= rng.random((n, d), dtype=np.float32) < np.float32(0.05)
        x /= np.float32(np.sqrt(0.05))
    return x


def controls(n: int, d: int, seed: int = 42) -> dict[str, np.ndarray]:
    """All controls of `CONTROLS` by name, each (n, d) float32: 6 x 4 x n x d bytes. Use `control` for one at a time."""
    return {name: control(name, n, d, seed) for name in CONTROLS}


def power_curve(
    dimensions: Sequence[int] = (1, 4, 16, 64, 256, 1024, 4096, 16384),
    n: int = 1000,
    projections: int = 500,
    rows: int = 250,
    seed: int = 42,
    names: Iterable[str] = CONTROLS,
) -> pd.DataFrame:
    """What the tests of Table 1 can see: pass rate of each control against the dimension.

    Tidy table: control, dimensions, test, pass_rate, low, high, projections. With independent non-Gaussian coordinates the pass
    rate climbs to that of a true Gaussian as D grows (Diaconis and Freedman 1984): at D = 16,384 a pass says nothing about the
    coordinates.
    """
    records = []
    for d in dimensions:
        for name in names:
            rates = projection_tests(control(name, n, d, seed), projections, rows, seed).pass_rates()
            records += [(name, d, test, rate.value, rate.low, rate.high, rate.n) for test, rate in rates.items()]
    return pd.DataFrame(records, columns=["control", "dimensions", "test", "pass_rate", "low", "high", "projections"])


def covariance_spectrum(latents: np.ndarray) -> np.ndarray:
    """Eigenvalues of the sample covariance (divisor N - 1), descending, the min(N - 1, D) that can differ from zero, float64.

    latents: (N, D). Works on the Gram matrix of the smaller side, so cost is cubic in min(N, D): pass a random subset of some
    thousand rows when both are large, and draw `spectrum_null` at that N. Raises ValueError for N < 2 and values that are not
    finite.
    """
    n, d = latents.shape
    if n < 2:
        raise ValueError("a covariance needs at least two rows")
    gram = np.zeros((min(n, d),) * 2)
    if n <= d:
        latents = read_rows(latents)
        for columns in slices(d, _BLOCK_BYTES // (8 * n)):
            block = np.asarray(latents[:, columns], dtype=np.float64)
            block = block - block.mean(axis=0)
            gram += block @ block.T
    else:
        mean = column_means(latents)
        for _, rows in row_blocks(latents, "covariance"):
            block = np.asarray(rows, dtype=np.float64) - mean
            gram += block.T @ block
    if not np.isfinite(gram).all():
        raise ValueError("latents contain NaN or inf")
    values = linalg.eigvalsh(gram, check_finite=False)[::-1][: min(n - 1, d)]
    return np.maximum(values, 0.0) / (n - 1)  # rounding can leave a zero eigenvalue slightly negative


def slices(length: int, width: int) -> Iterator[slice]:
    """Slices that cut 0 ... length into parts of `width` items, at least one each."""
    width = max(1, width)
    return (slice(start, min(start + width, length)) for start in range(0, length, width))


def spectrum_null(n: int, d: int, repeats: int = 20, seed: int = 42) -> np.ndarray:
    """Draws of `covariance_spectrum` for n rows of N(0, I_d): (repeats, min(n - 1, d)), descending.

    Exact and quadratic in the smaller side: the eigenvalues of a Wishart matrix are those of B B^T with B bidiagonal and
    independent chi entries (Dumitriu and Edelman 2002, "Matrix models for beta ensembles", beta = 1), so no n x d matrix is
    ever drawn.
    """
    degrees, size = max(n - 1, d), min(n - 1, d)
    if size < 1:
        raise ValueError(f"spectrum_null needs n >= 2 and d >= 1, got n = {n}, d = {d}")
    rng = np.random.default_rng((seed, n, d))
    draws = np.empty((repeats, size))
    for draw in draws:
        diagonal = rng.chisquare(degrees - np.arange(size))  # squared entries of B
        below = rng.chisquare(np.arange(size - 1, 0, -1)) if size > 1 else np.empty(0)
        main = diagonal + np.concatenate([[0.0], below])
        draw[:] = linalg.eigvalsh_tridiagonal(main, np.sqrt(diagonal[:-1] * below))[::-1]
    return draws / (n - 1)


def effective_rank(eigenvalues: np.ndarray) -> np.ndarray:
    """exp(entropy) of the normalised eigenvalues (..., K) (Roy and Vetterli 2007): K for K equal ones, 1 for a single one."""
    share = eigenvalues / eigenvalues.sum(axis=-1, keepdims=True)
    return np.exp(special.entr(share).sum(axis=-1))


def participation_ratio(eigenvalues: np.ndarray) -> np.ndarray:
    """(sum of eigenvalues)^2 / (sum of their squares) of (..., K): K for K equal ones, 1 for a single one."""
    return eigenvalues.sum(axis=-1) ** 2 / (eigenvalues**2).sum(axis=-1)


@dataclass(frozen=True)
class Moments:
    """Per-coordinate moments (D,), norms (N,), and what N(0, I_D) would give.

    skewness and excess_kurtosis are NaN for a constant coordinate. For N(0, I) norms follow a chi distribution with D degrees of
    freedom, of mean `expected_norm` and standard deviation `expected_norm_std`; skewness has standard deviation
    `skewness_std` = sqrt(6/N) and excess kurtosis `kurtosis_std` = sqrt(24/N).
    """

    mean: np.ndarray
    variance: np.ndarray
    skewness: np.ndarray
    excess_kurtosis: np.ndarray
    norms: np.ndarray
    expected_norm: float
    expected_norm_std: float
    skewness_std: float
    kurtosis_std: float


def moments(latents: np.ndarray) -> Moments:
    """First four moments of every coordinate and the norm of every row of latents (N, D), in two passes over blocks of rows.

    Divisor N throughout, as `scipy.stats.skew` and `kurtosis` use by default. Memory beyond the input: a few blocks of 64 MB and
    8 N + 64 D bytes. Raises ValueError for N < 8 and values that are not finite.
    """
    n, d, _ = _check(latents, MIN_ROWS)
    mean, largest, squared_norms = np.zeros(d), np.zeros(d), np.zeros(n)
    for part, block in row_blocks(latents, "means and norms"):
        x = np.asarray(block, dtype=np.float64)
        mean += x.sum(axis=0) / n
        np.maximum(largest, np.abs(x).max(axis=0), out=largest)
        squared_norms[part] = (x**2).sum(axis=1)
    if not np.isfinite(squared_norms).all():
        raise ValueError("samples contain NaN or inf")
    powers = np.zeros((4, d))  # sums of the centred values to the power of 1 to 4
    for _, block in row_blocks(latents, "moments"):
        x = np.asarray(block, dtype=np.float64) - mean
        square = x * x
        powers += [x.sum(axis=0), square.sum(axis=0), (square * x).sum(axis=0), (square * square).sum(axis=0)]
    variance = powers[1] / n - (powers[0] / n) ** 2
    scale = np.sqrt(np.maximum(variance, 0))
    constant = scale <= 8 * np.finfo(np.float64).eps * np.sqrt(n) * largest  # as `_standardised`; the mean has the rounding of a sum
    with np.errstate(invalid="ignore", divide="ignore"):
        skewness = np.where(constant, np.nan, powers[2] / n / scale**3)
        excess = np.where(constant, np.nan, powers[3] / n / scale**4 - 3)
    result = mean, np.where(constant, 0.0, variance), skewness, excess
    expected = np.sqrt(2) * np.exp(special.gammaln((d + 1) / 2) - special.gammaln(d / 2))
    # d - expected^2 loses all digits for large d; the series of Var[chi_d] is 1/2 - 1/(8 d) - 1/(16 d^2)
    spread = np.sqrt(d - expected**2) if d < 1000 else np.sqrt(0.5 - 1 / (8 * d) - 1 / (16 * d**2))
    return Moments(
        *result, np.sqrt(squared_norms), float(expected), float(spread), float(np.sqrt(6 / n)), float(np.sqrt(24 / n))
    )


def qq(latents: np.ndarray, n_points: int = 200) -> pd.DataFrame:
    """Quantiles against those of N(0, 1): a table of n_points rows with theoretical, empirical, low, high.

    latents: (N,) one projection or coordinate, or (N, D), whose coordinates are pooled (at most 256, evenly spaced). Each
    coordinate is standardised by its own mean and variance. low, high: pointwise 95 % band of the empirical quantile under N(0,
    1) at sample size N; for pooled coordinates it is a conservative band, as it counts images and not entries. Raises
    ValueError for fewer than 8 rows, values that are not finite, or only constant coordinates.
    """
    latents = latents[:, None] if np.ndim(latents) == 1 else latents
    n, d = latents.shape
    columns = np.unique(np.linspace(0, d - 1, min(d, 256)).round().astype(int))
    z, constant = _standardised(latents[:, columns], axis=0, ddof=0)  # (columns, N)
    if constant.all():
        raise ValueError("qq: every coordinate is constant")
    levels = (np.arange(n_points) + 0.5) / n_points
    theoretical = special.ndtri(levels)
    density = np.exp(-0.5 * theoretical**2) / np.sqrt(2 * np.pi)
    half = special.ndtri(0.975) * np.sqrt(levels * (1 - levels) / n) / density
    empirical = np.quantile(z[~constant], levels)
    low, high = theoretical - half, theoretical + half
    return pd.DataFrame({"theoretical": theoretical, "empirical": empirical, "low": low, "high": high})
