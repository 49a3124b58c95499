"""Second moments and PCA of latents that do not fit in memory, a block of rows at a time.

What UNE fits to a space rests on its mean and its scatter matrix X'X: principal axes (Figure 3 and 6), the probes' features, the
ridge maps of Table 2. Both are sums over rows, so N rows of D values in float16 on disk (`StoredRows`) are read twice, once for
the mean and once for the scatter of the centred rows, and need 4 D^2 bytes: 1.07 GB for D = 16,384, however many rows there are.

The functions take arrays in memory too and then give what scikit-learn gives. With float64 sums (D up to 5,792) they agree with
it to rounding; above, sums run in float32: eigenvalues agree to 1e-5 of the largest one, and axes whose eigenvalues lie that
close together may be rotated among themselves. Who takes `StoredRows`: here everything; `probes.Probe` and `probes.select_C`;
`alignment.RidgeMap`, `fit_maps` and `learning_curve` (as X); all tests of `gaussianity`. Generalised CCA works on the reduced
views, as the paper's does: `reduce_views` makes them.
"""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy import linalg
from scipy.linalg import blas
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from une_utils.files import digest, read_json, write_json
from une_utils.stored import StoredRows

_BLOCK_VALUES = 4_000_000  # values of one block of an array in memory: 32 MB of float64
_DOUBLE_BYTES = 256 * 2**20  # a scatter matrix up to this size is summed in float64


def row_blocks(X: np.ndarray | StoredRows, task: str) -> Iterator[tuple[slice, np.ndarray]]:
    """Slices of the rows and their values (b, D): float32 from a store, with a progress bar for long passes; else X's own type."""
    if isinstance(X, StoredRows):
        yield from X.blocks(task)
        return
    step = max(1, _BLOCK_VALUES // X.shape[1])
    for start in range(0, len(X), step):
        yield slice(start, start + step), X[start : start + step]


def column_means(X: np.ndarray | StoredRows) -> np.ndarray:
    """Mean of every column, (D,) float64; one pass over the rows."""
    if not isinstance(X, StoredRows):
        return X.mean(axis=0, dtype=np.float64)
    return sum(block.sum(axis=0, dtype=np.float64) for _, block in row_blocks(X, "means")) / len(X)


def scatter(X: np.ndarray | StoredRows, mean: np.ndarray) -> np.ndarray:
    """(X - mean)'(X - mean), (D, D) in Fortran order, upper triangle only; one pass over the rows.

    Memory: the matrix, float64 while it takes at most 256 MiB (D up to 5,792) and float32 above, and a block of rows.
    """
    d = X.shape[1]
    kind = np.float64 if 8 * d * d <= _DOUBLE_BYTES else np.float32
    add = blas.dsyrk if kind is np.float64 else blas.ssyrk
    total = np.zeros((d, d), dtype=kind, order="F")
    mean = mean.astype(kind)
    for _, block in row_blocks(X, "scatter matrix"):
        # the transpose of a block (b, D) is a view in Fortran order: nothing is copied
        total = add(1.0, np.subtract(block, mean, dtype=kind).T, beta=1.0, c=total, overwrite_c=True)
    return total


def fit_pca(X: np.ndarray | StoredRows, n_components: int) -> PCA:
    """scikit-learn's PCA of X (N, D) with its full solver, from one scatter matrix and two passes over the rows.

    The fitted object is scikit-learn's; `transform` applies it to stored rows. Time: N D^2 multiplications and 4/3 D^3 for the
    leading eigenvectors. Memory: the scatter matrix (see `scatter`) and n_components x D values. Raises ValueError for more
    components than min(N - 1, D), and for NaN or inf.
    """
    return _pca(X, n_components, standardise=False)[1]


def fit_standardised_pca(X: np.ndarray | StoredRows, n_components: int) -> tuple[StandardScaler, PCA]:
    """scikit-learn's StandardScaler of X and the PCA of the scaled X, from the same two passes as `fit_pca`."""
    return _pca(X, n_components, standardise=True)


def _pca(X: np.ndarray | StoredRows, k: int, standardise: bool) -> tuple[StandardScaler, PCA]:
    n, d = X.shape
    if not 1 <= k <= min(n - 1, d):
        raise ValueError(f"n_components = {k} needs that many features and one row more, X is {X.shape}")
    mean = column_means(X)
    total = scatter(X, mean)
    if not np.isfinite(np.diagonal(total)).all():
        raise ValueError("X contains NaN or inf")
    scaler = _scaler(mean, np.diagonal(total).astype(np.float64) / n, n)
    scale = scaler.scale_ if standardise else np.ones(d)
    for column, value in enumerate(scale):  # in place: a copy would double the memory
        total[: column + 1, column] /= (scale[: column + 1] * value).astype(total.dtype)
    power = float(np.diagonal(total).sum(dtype=np.float64))
    values, vectors = linalg.eigh(total, lower=False, overwrite_a=True, check_finite=False, subset_by_index=(d - k, d - 1))
    centre = np.zeros(d) if standardise else mean
    return scaler, _fitted_pca(centre, values[::-1].astype(np.float64), vectors[:, ::-1], power, n)


def _scaler(mean: np.ndarray, variance: np.ndarray, n: int) -> StandardScaler:
    """A fitted StandardScaler; a constant feature, whose variance is rounding, keeps its scale, as there."""
    scaler = StandardScaler()
    constant = variance <= n * np.finfo(np.float64).eps * variance + (n * mean * np.finfo(np.float64).eps) ** 2
    scaler.mean_, scaler.var_, scaler.scale_ = mean, variance, np.where(constant, 1.0, np.sqrt(variance))
    scaler.n_features_in_, scaler.n_samples_seen_ = len(mean), n
    return scaler


def _fitted_pca(mean: np.ndarray, values: np.ndarray, vectors: np.ndarray, power: float, n: int) -> PCA:
    """A fitted PCA from eigenvalues (k,), descending, and eigenvectors (D, k) of a scatter matrix with trace ``power``."""
    d, k = vectors.shape
    sign = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(k)])  # scikit-learn's: the largest entry is positive
    values = np.maximum(values, 0.0)
    pca = PCA(k, svd_solver="full")
    pca.components_ = np.ascontiguousarray((vectors * sign).T, dtype=np.float64 if vectors.dtype == np.float64 else np.float32)
    pca.mean_, pca.n_components_, pca.n_features_in_, pca.n_samples_ = mean, k, d, n
    pca.explained_variance_, pca.singular_values_ = values / (n - 1), np.sqrt(values)
    pca.explained_variance_ratio_ = values / power if power else np.zeros(k)
    pca.noise_variance_ = max(0.0, power - values.sum()) / (n - 1) / (d - k) if d > k else 0.0
    return pca


def transform(pca: PCA, X: np.ndarray | StoredRows) -> np.ndarray:
    """Components of X on the axes of a fitted PCA, (N, k) float32; one pass over the rows. Memory: the result and a block."""
    axes = pca.components_.T
    offset = pca.mean_ @ axes
    out = np.empty((len(X), axes.shape[1]), dtype=np.float32)
    for part, block in row_blocks(X, "components"):
        out[part] = block @ axes.astype(block.dtype, copy=False) - offset
    return out


def reduce_view(X: np.ndarray | StoredRows, train: np.ndarray, n_components: int = 500) -> np.ndarray:
    """A view (N, D) on its leading principal axes, fitted on the training rows: (N, k) float32.

    train: (N,) mask or integers. k is n_components, or what D and half of the training rows allow. UNE takes 500 for noise.
    Of `StoredRows` with a ``place`` the result is kept there, in ``components.npy``, since it takes minutes and several notebooks
    start from it; other training rows or another number replace it.
    """
    train, place = np.arange(len(X))[train], X.place if isinstance(X, StoredRows) else None
    made_from = {"shape": list(X.shape), "train": digest(train.tobytes()), "n_components": n_components}
    if place and read_json(place / "components.json") == made_from:
        return np.load(place / "components.npy")
    rows = X[train]
    pca = fit_pca(rows, min(n_components, X.shape[1], len(rows) // 2))
    components = transform(pca, X)
    if place:
        _keep(components, made_from, place)
    return components


def _keep(components: np.ndarray, made_from: dict, place: Path) -> None:
    """Write components and, once they are whole, what they were made from; a disk that is full costs time later and no result now."""
    file = place / "components.npy"
    try:
        (place / "components.json").unlink(missing_ok=True)
        np.save(file, components)
        write_json(place / "components.json", made_from)
    except OSError as error:
        file.unlink(missing_ok=True)
        warnings.warn(f"{file} could not be written ({error}): the components will be computed again by the next notebook", stacklevel=3)


def reduce_views(
    views: Sequence[np.ndarray | StoredRows], train: np.ndarray, n_components: int = 500
) -> list[np.ndarray]:
    """Every view by `reduce_view`: what `MaxvarGCCA` takes (UNE Figure 6 does not say how many axes it keeps; those beyond are
    lost to the shared space). Views are done one after the other, so memory is that of `fit_pca` for the widest one and 4 N
    sum(k_i) bytes.
    """
    return [reduce_view(X, train, n_components) for X in views]


def in_memory(X: np.ndarray | StoredRows, train: np.ndarray, n_components: int = 500) -> np.ndarray:
    """An array as it is; of `StoredRows` the leading components by `reduce_view`, which hold what a probe of UNE's sees of noise."""
    return reduce_view(X, train, n_components) if isinstance(X, StoredRows) else X
