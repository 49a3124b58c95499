"""MAXVAR generalised CCA (UNE Figure 6), ours against cca-zoo's GCCA, or the textbook N x N form where cca-zoo is not installed.

    python benchmarks/gcca.py [--rows 15893] [--columns 500] [--views 6] [--components 64] [--textbook]

Each method runs in a process of its own on the same float32 views. Prints seconds, processor seconds (the better measure on a
busy machine), the peak of memory above the views themselves, and the MAXVAR objective, the sum over views of |P_i G|^2 for the
method's own shared variables, evaluated with QR decompositions that no method uses. cca-zoo is not among the requirements: `pip
install --no-deps cca-zoo tensorly` adds it. The textbook form needs 2.5 GB at full size.
"""

import argparse
import importlib.util
import multiprocessing
import resource
import sys
import time

import numpy as np
from scipy import linalg
from scipy.sparse.linalg import eigsh

from une_utils.analysis.alignment import MaxvarGCCA


def make_views(n: int, d: int, count: int, shared: int, seed: int) -> list[np.ndarray]:
    """Float32 views (n, d) with `shared` common dimensions and spectra that span two decades, as embeddings' do."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((n, shared), dtype=np.float32)
    views = []
    for _ in range(count):
        mixing = rng.standard_normal((shared, d), dtype=np.float32) / np.float32(np.sqrt(shared))
        scale = np.logspace(0, -2, d, dtype=np.float32)
        view = np.empty((n, d), dtype=np.float32)
        for start in range(0, n, 1000):  # in parts: temporary arrays would hide part of the methods' peak
            part = view[start : start + 1000]
            part[:] = (common[start : start + 1000] @ mixing + rng.standard_normal(part.shape, dtype=np.float32)) * scale
        views.append(view)
    return views


def ours(views: list[np.ndarray], k: int) -> list[np.ndarray]:
    return MaxvarGCCA(k).fit(views).projections_


def cca_zoo(views: list[np.ndarray], k: int) -> list[np.ndarray]:
    from cca_zoo.linear import GCCA

    return GCCA(n_components=k).fit(views).weights_


def textbook(views: list[np.ndarray], k: int) -> list[np.ndarray]:
    """Leading eigenvectors of the sum of the views' N x N projection matrices."""
    n = len(views[0])
    total = np.zeros((n, n))
    centred = [view - view.mean(axis=0, dtype=np.float64) for view in views]
    for view in centred:
        total += view @ np.linalg.solve(view.T @ view, view.T)
    shared = eigsh(total, k, v0=np.ones(n) + np.arange(n) / n)[1]
    return [np.linalg.solve(view.T @ view, view.T @ shared) for view in centred]


METHODS = {"ours": ours, "cca-zoo": cca_zoo, "textbook": textbook}


def objective(views: list[np.ndarray], weights: list[np.ndarray]) -> float:
    """MAXVAR objective of the shared variables that the weights imply: every solution has G proportional to sum_i X_i W_i."""
    centred = [view - view.mean(axis=0, dtype=np.float64) for view in views]
    shared = linalg.qr(sum(view @ w for view, w in zip(centred, weights, strict=True)), mode="economic")[0]
    return sum(((linalg.qr(view, mode="economic")[0].T @ shared) ** 2).sum() for view in centred)


def peak_memory() -> float:
    """Most resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def run(method: str, data: tuple, k: int, results) -> None:
    views = make_views(*data)
    METHODS[method]([view[:100, :8] for view in views[:2]], 2)  # imports and the first use of BLAS are not counted
    memory, wall, processor = peak_memory(), time.perf_counter(), time.process_time()
    weights = METHODS[method](views, k)
    figures = time.perf_counter() - wall, time.process_time() - processor, peak_memory() - memory
    results.put((*figures, objective(views, weights)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=15893)
    parser.add_argument("--columns", type=int, default=500)
    parser.add_argument("--views", type=int, default=6)
    parser.add_argument("--components", type=int, default=64)
    parser.add_argument("--shared", type=int, default=60, help="dimensions that the views have in common")
    parser.add_argument("--textbook", action="store_true", help="run the N x N form even where cca-zoo is installed")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    installed = importlib.util.find_spec("cca_zoo") is not None
    methods = ["cca-zoo"] * installed + ["textbook"] * (args.textbook or not installed) + ["ours"]
    data = (args.rows, args.columns, args.views, args.shared, args.seed)
    context = multiprocessing.get_context("spawn")
    table = {}
    for method in methods:
        results = context.SimpleQueue()
        process = context.Process(target=run, args=(method, data, args.components, results))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"{method} failed")
        table[method] = results.get()

    print(f"{args.views} views of {args.rows} x {args.columns} float32, {args.components} components, no ridge")
    print(f"{'':10}{'seconds':>9}{'ratio':>8}{'processor':>11}{'ratio':>8}{'peak MB':>9}{'ratio':>8}{'objective':>14}")
    reference = table[methods[0]]
    for method, figures in table.items():
        columns = [(value, base / value) for value, base in zip(figures[:3], reference[:3], strict=True)]
        widths = zip((9, 11, 9), columns, strict=True)
        print(f"{method:10}" + "".join(f"{value:{w}.1f}{ratio:8.1f}" for w, (value, ratio) in widths) + f"{figures[3]:14.6f}")
    gap = table["ours"][3] / reference[3] - 1
    print(f"relative difference of our objective to {methods[0]}'s: {gap:+.1e}")


if __name__ == "__main__":
    main()
