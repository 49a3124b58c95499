"""All attributes in one batched fit against one scikit-learn saga fit per attribute (UNE Figure 3), in one run on the same data.

    python benchmarks/probes.py [--attributes 40] [--saga 40] [--max-iter 500] [--case whitened|ill-conditioned|both]

Cases: 15,893 x 500 whitened components (the paper's noise probes) and 12,800 x 768 features whose scales span four decades.
`--saga` fits only that many attributes with saga and extrapolates its time in proportion, which the output states. Prints
seconds, ratio, and the gap of the loss to the minimum (scikit-learn's newton-cholesky at tol 1e-10), relative, worst over those
attributes.
"""

import argparse
import time
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from une_utils.analysis.probes import RidgeLogistic

CASES = {"whitened": (15893, 500, 0.0), "ill-conditioned": (12800, 768, 4.0)}


def make_data(n: int, d: int, decades: float, attributes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, d) float32 with scales over `decades`, mixed by a rotation, and labels (n, attributes) with a linear part."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, d))
    signal = z @ (rng.standard_normal((d, attributes)) / np.sqrt(d))
    labels = signal + rng.standard_normal(signal.shape) > rng.uniform(-0.5, 2.0, attributes)
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0] if decades else np.eye(d)
    return (z * np.logspace(0, -decades, d) @ rotation).astype(np.float32), labels


def objective(w: np.ndarray, b: float, X: np.ndarray, y: np.ndarray) -> float:
    return 0.5 * w @ w + np.logaddexp(0, -(X @ w + b) * np.where(y, 1.0, -1.0)).sum()


def run(name: str, attributes: int, fitted: int, max_iter: int, seed: int) -> None:
    n, d, decades = CASES[name]
    X, Y = make_data(n, d, decades, attributes, seed)
    start = time.perf_counter()
    ours = RidgeLogistic().fit(X, Y)
    own_time = time.perf_counter() - start

    start = time.perf_counter()
    saga = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the cut at max_iter is the official setting
        for a in range(fitted):
            saga.append(LogisticRegression(solver="saga", C=1.0, max_iter=max_iter, random_state=seed).fit(X, Y[:, a]))
    saga_time = (time.perf_counter() - start) * attributes / fitted

    exact = X.astype(np.float64)
    gaps = {"ours": [], "saga": []}
    for a in range(fitted):
        best = LogisticRegression(solver="newton-cholesky", tol=1e-10, max_iter=1000).fit(exact, Y[:, a])
        floor = objective(best.coef_[0], best.intercept_[0], exact, Y[:, a])
        gaps["ours"].append(objective(ours.coef_[a], ours.intercept_[a], exact, Y[:, a]) / floor - 1)
        gaps["saga"].append(objective(saga[a].coef_[0].astype(float), saga[a].intercept_[0], exact, Y[:, a]) / floor - 1)

    passes = [int(model.n_iter_[0]) for model in saga]
    print(f"{name}: {n} x {d} float32, {attributes} attributes, C = 1; saga max_iter {max_iter}, passes {passes}")
    if fitted < attributes:
        print(f"  saga measured on {fitted} attributes, time extrapolated to {attributes}")
    print(f"  {'':28}{'seconds':>9}{'ratio':>8}{'loss gap':>11}")
    print(f"  {'scikit-learn saga, one by one':28}{saga_time:8.2f}{1.0:8.1f}{max(gaps['saga']):11.1e}")
    print(f"  {'RidgeLogistic, all at once':28}{own_time:9.2f}{saga_time / own_time:8.1f}{max(gaps['ours']):11.1e}")
    print(f"  converged {ours.converged_.sum()} of {attributes}, at most {ours.n_iter_.max()} Newton steps")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attributes", type=int, default=40)
    parser.add_argument("--saga", type=int, default=None, help="attributes fitted with saga (default: all)")
    parser.add_argument("--max-iter", type=int, default=500)
    parser.add_argument("--case", choices=[*CASES, "both"], default="both")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    fitted = min(args.saga or args.attributes, args.attributes)
    for name in CASES if args.case == "both" else [args.case]:
        run(name, args.attributes, fitted, args.max_iter, args.seed)


if __name__ == "__main__":
    main()
