"""Time and memory of the analysis of latents that do not fit in memory, each step in a process of its own on one file.

    python benchmarks/out_of_core.py [--rows 40000] [--columns 8192] [--components 500] [--only pca probe ...] [--folder /tmp]

The file is float16, a signal of 64 dimensions plus noise, written a block at a time: 0.66 GB by default, 5.3 GB in the shape of a
released file (`--rows 162770 --columns 16384`). Steps: pca (two passes, leading axes, components of all rows), probe (40 attributes
on these components, fitted on 80 % of the rows), ridge (to a target of 512 dimensions, all penalties), gcca (three stored views
reduced and joined), gaussianity (500 random projections of 250 rows, single coordinates, moments). Prints seconds, processor
seconds, the peak of memory by `resource.getrusage`, and a result that shows that the signal was found.
"""

import argparse
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from une_utils.analysis import gaussianity, outofcore, probes
from une_utils.analysis.alignment import MaxvarGCCA, RidgeMap, transfer_metrics
from une_utils.stored import StoredRows

SIGNAL, ATTRIBUTES, TARGET = 64, 40, 512


def signal(n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, SIGNAL), dtype=np.float32)


def write_file(file: Path, n: int, d: int, seed: int) -> None:
    z, rng = signal(n), np.random.default_rng(seed)
    mixing = rng.standard_normal((SIGNAL, d), dtype=np.float32) / np.float32(np.sqrt(SIGNAL))
    with file.open("wb") as stream:  # not a memory map: its pages would count as this process's memory, and as that of its children
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f2", "fortran_order": False, "shape": (n, d)})
        for start in range(0, n, 1000):
            part = z[start : start + 1000]
            block = 0.5 * (part @ mixing) + rng.standard_normal((len(part), d), dtype=np.float32)
            stream.write(block.astype("<f2").tobytes())


def world(files: list[Path]) -> tuple[list[StoredRows], np.ndarray, np.ndarray, np.ndarray]:
    """Views, signal, attributes, and which rows are for training."""
    views = [StoredRows(np.load(file, mmap_mode="r")) for file in files]
    z = signal(len(views[0]))
    rng = np.random.default_rng(1)
    labels = z @ rng.standard_normal((SIGNAL, ATTRIBUTES)) > rng.uniform(-4, 4, ATTRIBUTES)
    return views, z, labels, np.arange(len(z)) % 5 > 0


def pca(files: list[Path], k: int) -> str:
    (X, *_), z, _, train = world(files)
    model = outofcore.fit_pca(X[train], k)
    components = outofcore.transform(model, X)
    share = np.linalg.lstsq(components[:, :SIGNAL], z, rcond=None)[1].sum() / (z**2).sum()
    return f"signal explained by the first {SIGNAL} axes {1 - share:.3f}"


def probe(files: list[Path], k: int) -> str:
    (X, *_), _, Y, train = world(files)
    fitted = probes.make_probe(k).fit(X[train], Y[train])
    found = probes.mean_metrics(fitted.decision_function(X[~train]), Y[~train], bootstrap=20)
    return f"mean AUC {found['auc'].value:.3f}"


def ridge(files: list[Path], k: int) -> str:
    (X, *_), z, _, train = world(files)
    rng = np.random.default_rng(2)
    y = z @ rng.standard_normal((SIGNAL, TARGET), dtype=np.float32) + rng.standard_normal((len(z), TARGET), dtype=np.float32)
    fitted = RidgeMap().fit(X[train], y[train])
    test = np.flatnonzero(~train)[:4000]
    found = transfer_metrics(y[test], fitted.predict(X[test]), y[train].mean(0), bootstrap=20)
    return f"R^2 {found['r2'].value:.3f} of at most {SIGNAL / (SIGNAL + 1):.3f}"


def gcca(files: list[Path], k: int) -> str:
    views, _, _, train = world(files)
    reduced = outofcore.reduce_views(views, train, k)
    model = MaxvarGCCA(SIGNAL, 1e-2).fit([view[train] for view in reduced])
    return f"held-out correlation of {SIGNAL} shared variables {model.score([view[~train] for view in reduced]):.3f}"


def normality(files: list[Path], k: int) -> str:
    (X, *_), *_ = world(files)
    tests = gaussianity.projection_tests(X, 500), gaussianity.coordinate_tests(X)
    rates = [next(iter(test.pass_rates().values())).value for test in tests]
    kurtosis = gaussianity.moments(X).excess_kurtosis
    return f"pass rates {100 * rates[0]:.1f} % and {100 * rates[1]:.1f} %, mean excess kurtosis {kurtosis.mean():+.4f}"


STEPS = {"pca": pca, "probe": probe, "ridge": ridge, "gcca": gcca, "gaussianity": normality}


def peak_memory() -> float:
    """Most resident memory of this process so far, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def run(step: str, files: list[Path], k: int, results) -> None:
    before, wall, processor = peak_memory(), time.perf_counter(), time.process_time()
    shown = STEPS[step](files, k)
    results.put((time.perf_counter() - wall, time.process_time() - processor, peak_memory(), before, shown))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--columns", type=int, default=8192)
    parser.add_argument("--components", type=int, default=500)
    parser.add_argument("--only", nargs="+", choices=[*STEPS], default=[*STEPS])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()
    count = 3 if "gcca" in args.only else 1
    size = 2 * args.rows * args.columns
    free = shutil.disk_usage(args.folder).free
    if free < 1.2 * count * size:
        sys.exit(f"{args.folder} has {free / 1e9:.3g} GB free, {count} file(s) of {size / 1e9:.3g} GB are needed; choose another --folder or size")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        files = [Path(folder) / f"noises_{i}.npy" for i in range(count)]
        for seed, file in enumerate(files):
            write_file(file, args.rows, args.columns, seed)
        print(f"{args.rows:,} x {args.columns:,} float16, {size / 1e9:.2f} GB a file; as float32 in memory {2 * size / 1e9:.2f} GB")
        print(f"{'':12}{'seconds':>9}{'processor':>11}{'peak GB':>9}{'at start':>10}", flush=True)
        context = multiprocessing.get_context("spawn")
        for step in args.only:
            results = context.SimpleQueue()
            process = context.Process(target=run, args=(step, files, args.components, results))
            process.start()
            process.join()
            if process.exitcode:
                sys.exit(f"{step} failed")
            seconds, processor, peak, start, shown = results.get()
            print(f"{step:12}{seconds:9.0f}{processor:11.0f}{peak:9.2f}{start:10.2f}  {shown}", flush=True)


if __name__ == "__main__":
    main()
