"""Table 1 of UNE, ours against one SciPy call per projection and test, in one run on the same directions and the same rows.

    python benchmarks/gaussianity.py [--projections 5000] [--images 4000] [--dimensions 16384] [--rows 250] [--shared 25 50]

Prints a ratio table, then the largest difference of every statistic and the number of decisions that differ, twice: with the same
projected values in both, which compares the tests, and with each side's own projections, whose float32 sums run in another
order. Anderson-Darling is decided at SciPy's critical value there, which is ours rounded to three decimals; a last line counts what
that rounding decides. Both sides draw their own directions and rows, as a user would.
"""

import argparse
import time
import warnings

import numpy as np
import pandas as pd
from scipy import stats
from threadpoolctl import threadpool_limits

from une_utils.analysis import gaussianity

KEYS = ("ad", "dp", "sw")  # in the order of gaussianity.TESTS


def with_scipy(latents: np.ndarray, projections: int, rows: int, seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    """The official way, one projection and three SciPy calls per direction: results and projected values (P, rows) float64."""
    records, samples = [], np.empty((projections, rows))
    n, d = latents.shape
    chosen = gaussianity._draw_rows(seed, np.arange(projections), n, rows)
    for p in range(projections):
        samples[p] = sample = (latents[chosen[p]] @ gaussianity._random_directions(seed, p, p + 1, d)[0]).astype(np.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # SciPy announces a new return type of anderson
            anderson = stats.anderson(sample)
        pearson, shapiro = stats.normaltest(sample), stats.shapiro(sample)
        records.append(
            (anderson.statistic, anderson.critical_values[2], anderson.statistic < anderson.critical_values[2])
            + (pearson.statistic, pearson.pvalue > 0.05, shapiro.statistic, shapiro.pvalue > 0.05)
        )
    return pd.DataFrame(records, columns=["ad", "ad_critical", "ad_passed", "dp", "dp_passed", "sw", "sw_passed"]), samples


def print_agreement(title: str, table: pd.DataFrame, tests: dict[str, gaussianity.TestResult]) -> None:
    """Largest relative difference of each statistic from SciPy's, and decisions that differ at SciPy's critical value."""
    print(title)
    for key, (name, test) in zip(KEYS, tests.items(), strict=True):
        gap = np.max(np.abs(test.statistic - table[key]) / np.abs(table[key]))
        passed = test.statistic < table["ad_critical"] if key == "ad" else test.passed
        print(f"  {name:20}{gap:10.1e}{int((passed != table[f'{key}_passed']).sum()):6d} of {len(table)}")


def timed(function, *arguments, **options):
    start = time.perf_counter()
    result = function(*arguments, **options)
    return result, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--projections", type=int, default=5000)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--dimensions", type=int, default=16384)
    parser.add_argument("--rows", type=int, default=250)
    parser.add_argument("--shared", type=int, nargs="+", default=[25, 50], help="directions per draw of rows in the last lines")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()

    latents = np.random.default_rng(args.seed).standard_normal((args.images, args.dimensions), dtype=np.float32)
    gaussianity.projection_tests(latents, 8, args.rows)  # warm up BLAS
    with threadpool_limits(1, "blas"):  # its fastest setting: threads make one matrix-vector product slower on a busy machine
        (scipy_table, samples), scipy_time = timed(with_scipy, latents, args.projections, args.rows, args.seed)
    counts = (args.projections, args.rows, args.seed)
    ours, own_time = timed(gaussianity.projection_tests, latents, *counts)
    shared = {k: timed(gaussianity.projection_tests, latents, *counts, subsets=k) for k in args.shared}

    print(f"{args.projections} projections x {args.rows} rows from {args.images} x {args.dimensions} float32")
    print(f"{'':32}{'seconds':>9}{'ratio':>8}{'AD':>9}{'DP':>9}{'SW':>9}   (pass rates)")
    lines = [("one SciPy call per projection", scipy_time, [scipy_table[f"{key}_passed"].mean() for key in KEYS])]
    lines.append(("ours, rows drawn each time", own_time, [rate.value for rate in ours.pass_rates().values()]))
    for k, (found, seconds) in shared.items():
        lines.append((f"ours, {k} share their rows", seconds, [rate.value for rate in found.pass_rates().values()]))
    for name, seconds, values in lines:
        print(f"{name:32}{seconds:9.2f}{scipy_time / seconds:8.1f}" + "".join(f"{100 * value:8.2f}%" for value in values))
    print("largest relative difference of a statistic, and decisions that differ")
    print_agreement(" the same projected values:", scipy_table, {name: test(samples) for name, test in gaussianity.TESTS.items()})
    print_agreement(" each its own projections, float32 sums in another order:", scipy_table, ours.tests)
    anderson, rounded = ours.tests["Anderson-Darling"], scipy_table["ad_critical"][0]
    exact = gaussianity.AD_CRITICAL / (1 + 0.75 / args.rows + 2.25 / args.rows**2)
    between = int((anderson.passed != (anderson.statistic < rounded)).sum())
    print(f" statistics between our critical value {exact:.5f} and SciPy's {rounded:.5f}: {between} of {args.projections}")


if __name__ == "__main__":
    main()
