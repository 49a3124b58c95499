"""Table 1 of UNE, ours against one SciPy call per projection and test, in one run on the same directions and the same rows.

    python benchmarks/gaussianity.py [--projections 5000] [--images 4000] [--dimensions 16384] [--rows 250] [--shared 25]

Prints a ratio table and the largest difference of every statistic. Both sides draw their own directions and rows, as a user
would.
"""

import argparse
import time
import warnings

import numpy as np
import pandas as pd
from scipy import stats
from threadpoolctl import threadpool_limits

from une_utils.analysis import gaussianity


def with_scipy(latents: np.ndarray, projections: int, rows: int, seed: int) -> pd.DataFrame:
    """The official way: one projection and three SciPy calls per direction."""
    records = []
    n, d = latents.shape
    chosen = gaussianity._draw_rows(seed, np.arange(projections), n, rows)
    for p in range(projections):
        sample = latents[chosen[p]] @ gaussianity._random_directions(seed, p, p + 1, d)[0]
        sample = sample.astype(np.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # SciPy announces a new return type of anderson
            anderson = stats.anderson(sample)
        pearson, shapiro = stats.normaltest(sample), stats.shapiro(sample)
        records.append(
            (anderson.statistic, anderson.statistic < anderson.critical_values[2], pearson.statistic, pearson.pvalue > 0.05)
            + (shapiro.statistic, shapiro.pvalue > 0.05)
        )
    return pd.DataFrame(records, columns=["ad", "ad_passed", "dp", "dp_passed", "sw", "sw_passed"])


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
    parser.add_argument("--shared", type=int, default=25, help="directions per draw of rows in the last line")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()

    latents = np.random.default_rng(args.seed).standard_normal((args.images, args.dimensions), dtype=np.float32)
    gaussianity.projection_tests(latents, 8, args.rows)  # warm up BLAS
    with threadpool_limits(1, "blas"):  # its fastest setting: threads make one matrix-vector product slower on a busy machine
        scipy_table, scipy_time = timed(with_scipy, latents, args.projections, args.rows, args.seed)
    ours, own_time = timed(gaussianity.projection_tests, latents, args.projections, args.rows, args.seed)
    shared, shared_time = timed(
        gaussianity.projection_tests, latents, args.projections, args.rows, args.seed, subsets=args.shared
    )

    print(f"{args.projections} projections x {args.rows} rows from {args.images} x {args.dimensions} float32")
    print(f"{'':32}{'seconds':>9}{'ratio':>8}{'AD':>9}{'DP':>9}{'SW':>9}   (pass rates)")
    rates = [scipy_table[f"{key}_passed"].mean() for key in ("ad", "dp", "sw")]
    lines = [("one SciPy call per projection", scipy_time, rates)]
    lines.append(("ours, rows drawn each time", own_time, [rate.value for rate in ours.pass_rates().values()]))
    lines.append((f"ours, {args.shared} share their rows", shared_time, [rate.value for rate in shared.pass_rates().values()]))
    for name, seconds, values in lines:
        print(f"{name:32}{seconds:9.2f}{scipy_time / seconds:8.1f}" + "".join(f"{100 * value:8.2f}%" for value in values))
    print("largest relative difference of a statistic, and decisions that differ (float32 sums in another order):")
    for key, (name, test) in zip(("ad", "dp", "sw"), ours.tests.items(), strict=True):
        gap = np.max(np.abs(test.statistic - scipy_table[key]) / np.abs(scipy_table[key]))
        print(f"  {name:20}{gap:10.1e}{int((test.passed != scipy_table[f'{key}_passed']).sum()):6d} of {args.projections}")


if __name__ == "__main__":
    main()
