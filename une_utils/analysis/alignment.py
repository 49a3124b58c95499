"""Maps between spaces and the space they share: is one model's latent a linear function of another's (UNE Table 2, Figure 6)?

Shapes: X (N, Dx) and Y (N, Dy) latents of the same N images in two models; views, a list of J such arrays (N, D_i). Row i is the
same image everywhere. Latents may be float16, float32 or float64; decompositions and fitted parameters are float64. UNE reports
the cosine of mapped and true latents without a centre, which is high for the mean vector already, and shared components without
a null: here every number has its baseline and an interval.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy import linalg, stats
from scipy.linalg import blas
from scipy.sparse.linalg import LinearOperator, eigsh
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin, clone
from sklearn.utils.validation import check_array, check_consistent_length, check_is_fitted, validate_data

from une_utils.analysis.outofcore import column_means, row_blocks, scatter
from une_utils.analysis.stats import Estimate, bootstrap_interval, bootstrap_weights, drawn_estimate, percentile_interval
from une_utils.stored import StoredRows, read_rows

RELATIVE_ALPHAS = np.logspace(-6, 6, 49)  # default penalties, in units of the mean eigenvalue of the centred X'X
_BLOCK_VALUES = 4_000_000  # float64 values of one block: 32 MB
_DTYPES = (np.float64, np.float32)
# The direct solver takes the same time for any number of components, Lanczos grows with it: on one core, for 16, 64 and 128
# components it took 0.6, 1.2 and 2.6 of the direct solver's time with 1,500 columns, 0.25, 0.5 and 1.0 with 3,000.
_LANCZOS_SHARE = 1 / 25


def _check_rows(X: np.ndarray, name: str) -> np.ndarray:
    """X as float32 or float64 (N, D); ValueError that names it for another shape, no rows, NaN or inf.

    Stored rows stay where they are; they are checked when they are read.
    """
    X = X if isinstance(X, StoredRows) else np.asarray(X)
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(f"{name} must be (N, D) and not empty, got shape {X.shape}")
    if X.dtype not in _DTYPES:
        X = X.astype(np.float32 if X.dtype == np.float16 else np.float64)
    if not isinstance(X, StoredRows) and not np.isfinite(X).all():
        raise ValueError(f"{name} contains NaN or inf")
    return X


def _check_pair(A: np.ndarray, B: np.ndarray, names: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    A, B = _check_rows(A, names[0]), _check_rows(B, names[1])
    if len(A) != len(B):
        raise ValueError(f"{names[0]} has {len(A)} rows and {names[1]} has {len(B)}; row i must be the same image in both")
    return A, B


class _Spectrum:
    """Economy decomposition X - mean = left @ diag(sqrt(values)) @ right.T of rows X (N, D), from the smaller Gram matrix.

    values (K,), ascending: the eigenvalues of the centred X'X above rounding, so K is the numerical rank; float64, or float32 for
    more than 5,792 features and rows (`outofcore.scatter`). Only the factor of the smaller side is stored; the other side is a
    product with X, done in blocks, so that X stays in its own precision, or on disk. Memory: 3 K^2 values while it is made.
    """

    def __init__(self, X: np.ndarray | StoredRows):
        self.wide = X.shape[1] >= X.shape[0]
        self.X = X = read_rows(X) if self.wide else X  # N x D values with N <= D are few
        self.mean = column_means(X)
        gram = self._wide_gram() if self.wide else scatter(X, self.mean)
        mean_value = float(np.diagonal(gram).sum(dtype=np.float64)) / X.shape[1]  # over all D directions, also those without variance
        values, vectors = linalg.eigh(gram, lower=False, overwrite_a=True, driver="evd")
        eps = np.finfo(np.float64).eps
        # equal values of a constant feature differ from their mean by the rounding of a sum of N terms
        constant = len(X) * (len(X) * eps * np.abs(self.mean).max()) ** 2
        # sums of float32 err by the square root of their length, and leave the smallest eigenvalues no digit
        rounding = max(X.shape) * eps if values.dtype == np.float64 else np.sqrt(min(X.shape)) * np.finfo(np.float32).eps
        rank = int((values > max(values[-1] * rounding, constant)).sum())
        self.mean_value = mean_value if rank else 0.0
        self.values, self.vectors = values[len(values) - rank :], vectors[:, len(values) - rank :]

    def _wide_gram(self) -> np.ndarray:
        gram = np.zeros((len(self.X),) * 2, order="F")
        for _, block in self._column_blocks():
            # (N, b) blocks of columns give XX'; the transposes are views in Fortran order
            gram = blas.dsyrk(1.0, block.T, beta=1.0, c=gram, trans=1, overwrite_c=True)
        return gram

    def _column_blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """(slice, centred float64 block) over columns."""
        step = max(1, _BLOCK_VALUES // len(self.X))
        for start in range(0, self.X.shape[1], step):
            part = slice(start, start + step)
            yield part, self.X[:, part] - self.mean[part]

    def left(self, rows: np.ndarray | slice) -> np.ndarray:
        """Rows of the left singular vectors (M, K), in the precision of X: the whitened rows, orthonormal columns over all N."""
        if self.wide:
            return self.vectors[rows].astype(self.X.dtype, copy=False)
        centred = (self.X[rows] - self.mean).astype(self.X.dtype, copy=False)
        return centred @ (self.vectors / np.sqrt(self.values)).astype(self.X.dtype, copy=False)

    def loadings(self, Y: np.ndarray) -> np.ndarray:
        """left.T @ (Y - mean of Y): (K, Dy) float64."""
        centre = Y.mean(axis=0, dtype=np.float64)
        if self.wide:
            return self.vectors.T @ (Y - centre)
        kind = self.vectors.dtype
        cross = np.zeros((self.X.shape[1], Y.shape[1]))
        for part, block in row_blocks(self.X, "products with the target"):
            cross += np.subtract(block, self.mean, dtype=kind).T @ (Y[part] - centre).astype(kind, copy=False)
        return (self.vectors.T @ cross.astype(kind, copy=False)).astype(np.float64) / np.sqrt(self.values, dtype=np.float64)[:, None]

    def back(self, C: np.ndarray) -> np.ndarray:
        """right @ C: coefficients (K, M) on the principal axes as coefficients on the D features, (D, M)."""
        if not self.wide:
            return (self.vectors @ C.astype(self.vectors.dtype, copy=False)).astype(np.float64, copy=False)
        out = np.empty((self.X.shape[1], C.shape[1]))
        rows = self.vectors @ (C / np.sqrt(self.values)[:, None])
        for part, block in self._column_blocks():
            out[part] = block.T @ rows
        return out


class RidgeMap(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Ridge regression from one model's latents to another's, penalty by generalised cross-validation (UNE Table 2).

    Minimises |y - X B - b|^2 + alpha |B|^2 with a free intercept b: scikit-learn's Ridge(alpha=alpha_). One alpha serves all
    outputs, so large outputs count more, as they do in R^2. alphas: a number or a sequence, positive; None takes 49 values from
    1e-6 to 1e6 times the mean eigenvalue of the centred X'X. An alpha_ at the end of that grid means that X predicts exactly, or
    nothing: the map is then the mean. The paper does not say how it set the penalty.

    Attributes after `fit`: alpha_; alphas_ and gcv_ (G,), the grid and its scores, which estimate the squared error per
    coordinate on new rows; coef_ (Dy, Dx) and intercept_ (Dy,) float64 (coef_ (Dx,) and a number for y (N,)). For the map the
    other way, as editing through an encoder needs it, fit `RidgeMap().fit(Y, X)`.

    X may be `StoredRows`, y has to fit in memory: an encoder's embeddings. Memory for D features, N > D: three D x D matrices,
    3.2 GB for D = 16,384, where they are float32 and coef_ is right to about 1e-4 of its size if alpha_ is not below 1e-4 times
    the largest eigenvalue of the centred X'X. X is read three times.
    """

    def __init__(self, alphas: float | Sequence[float] | None = None):
        self.alphas = alphas

    def fit(self, X: np.ndarray, y: np.ndarray) -> "RidgeMap":
        """X (N, Dx), y (N, Dy) or (N,), finite, N >= 2; ValueError otherwise. N < Dx, constant or repeated features are fine."""
        X, y = self._checked(X, y)
        return self._fit(_Spectrum(X), y)

    def _checked(self, X: np.ndarray | StoredRows, Y: np.ndarray) -> tuple[np.ndarray | StoredRows, np.ndarray]:
        if isinstance(X, StoredRows):
            Y = check_array(Y, dtype=_DTYPES, ensure_2d=False, ensure_min_samples=2, input_name="y")
            check_consistent_length(X, Y)
            self.n_features_in_ = X.shape[1]
            return X, Y
        X, Y = validate_data(self, X, Y, multi_output=True, y_numeric=True, dtype=_DTYPES, ensure_min_samples=2)
        return X, Y

    def _fit(self, spectrum: _Spectrum, Y: np.ndarray) -> "RidgeMap":
        targets = Y.reshape(len(Y), -1)
        mean = targets.mean(axis=0, dtype=np.float64)
        loadings = spectrum.loadings(targets)  # (K, Dy)
        self.alphas_ = _penalties(self.alphas, spectrum)
        total = ((targets - mean) ** 2).sum()
        self.gcv_ = _generalised_cross_validation(spectrum, loadings, total, self.alphas_, len(Y)) / targets.shape[1]
        self.alpha_ = float(self.alphas_[np.argmin(self.gcv_)])
        values = spectrum.values[:, None]
        coef = spectrum.back(loadings * (np.sqrt(values) / (values + self.alpha_))).T  # (Dy, Dx)
        intercept = mean - coef @ spectrum.mean
        self.coef_, self.intercept_ = (coef, intercept) if Y.ndim == 2 else (coef[0], float(intercept[0]))
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Mapped latents X @ coef_.T + intercept_: (N, Dy), or (N,) after a fit on y (N,)."""
        check_is_fitted(self)
        if isinstance(X, StoredRows):
            return np.concatenate([self.predict(block) for _, block in X.blocks("mapping")])
        return validate_data(self, X, dtype=_DTYPES, reset=False) @ self.coef_.T + self.intercept_

    def score(self, X: np.ndarray, y: np.ndarray) -> float:
        """R^2 weighted by the outputs' variances: 1 - |y - prediction|^2 / |y - mean of y|^2, with the mean of the rows given."""
        prediction, y = self.predict(X), np.asarray(y, dtype=np.float64)
        if y.shape != prediction.shape:
            raise ValueError(f"y is {y.shape} and the prediction {prediction.shape}")
        total = ((y - y.mean(axis=0)) ** 2).sum()
        if total == 0:
            raise ValueError("R^2 is undefined: the rows of y are all the same")
        return float(1 - ((y - prediction) ** 2).sum() / total)


def _penalties(alphas: float | Sequence[float] | None, spectrum: _Spectrum) -> np.ndarray:
    if alphas is None:
        return RELATIVE_ALPHAS * (spectrum.mean_value or 1.0)  # a constant X has no scale and needs none
    grid = np.atleast_1d(np.asarray(alphas, dtype=np.float64))
    if grid.ndim != 1 or not len(grid) or not (np.isfinite(grid).all() and (grid > 0).all()):
        raise ValueError(f"alphas must be positive and finite, a number or a sequence, got {alphas}")
    return grid


def _generalised_cross_validation(
    spectrum: _Spectrum, loadings: np.ndarray, total: float, alphas: np.ndarray, n: int
) -> np.ndarray:
    """N |Y - HY|^2 / trace(I - H)^2 for every alpha (G,), with H the hat matrix of the ridge fit and its intercept (Golub 1979).

    Both are sums over the K principal axes, which shrink by alpha / (value + alpha), and the N - 1 - K directions that X does not
    reach. Each term is positive, so nothing cancels when a tiny alpha lets wide data fit exactly.
    """
    power = (loadings**2).sum(axis=1)  # (K,)
    unreached = n - 1 - len(power)
    outside = max(0.0, total - power.sum()) if unreached > 0 else 0.0
    kept = alphas[:, None] / (spectrum.values + alphas[:, None])  # (G, K)
    residual = kept**2 @ power + outside
    freedom = kept.sum(axis=1) + max(0, unreached)
    return n * residual / freedom**2


def fit_maps(
    X: np.ndarray, targets: Mapping[str, np.ndarray], alphas: float | Sequence[float] | None = None
) -> dict[str, RidgeMap]:
    """One `RidgeMap` from X (N, Dx) to every target (N, Dy): the same maps as fitted one by one, X is decomposed once.

    A target of permuted rows, `shuffled_pairs(Y)`, rides along as the control of Table 2 that the paper lacks.
    """
    maps, spectrum = {}, None
    for name, Y in targets.items():
        ridge = RidgeMap(alphas)
        try:
            rows, Y = ridge._checked(X, Y)
        except ValueError as error:
            raise ValueError(f"target {name!r}: {error}") from error
        spectrum = spectrum or _Spectrum(rows)
        maps[name] = ridge._fit(spectrum, Y)
    return maps


def shuffled_pairs(Y: np.ndarray, seed: int = 42) -> np.ndarray:
    """Rows of Y (N, D) in random order: a map fitted on them must end at the mean predictor, R^2 = 0."""
    Y = np.asarray(Y)
    return Y[np.random.default_rng((seed, len(Y))).permutation(len(Y))]


def transfer_metrics(
    Y_true: np.ndarray, Y_pred: np.ndarray, train_mean: np.ndarray, bootstrap: int = 1000, seed: int = 42
) -> dict[str, Estimate]:
    """How well mapped latents match the true ones on test rows (UNE Table 2), with bootstrap intervals over those rows.

    Y_true, Y_pred (N, D); train_mean (D,), the mean of the target's training rows, is the baseline and the centre. Keys:
    "mse" per coordinate, in the target's units squared; "mse_standardised", every coordinate in units of its own variance, then
    averaged, 1 for the mean predictor (coordinates that never leave train_mean are left out); "cosine" as the paper has it, and
    "cosine_centred" after subtracting train_mean from both, both averaged over images, a zero vector counting as cosine 0;
    "r2" = 1 - sum of squared errors / sum of squared distances to train_mean, so that large coordinates count more and the mean
    predictor has exactly 0. Raises ValueError for other shapes, NaN, or a target that is train_mean in every row.
    """
    truth, prediction = _check_pair(Y_true, Y_pred, ("Y_true", "Y_pred"))
    train_mean = np.asarray(train_mean, dtype=np.float64)
    if truth.shape != prediction.shape or train_mean.shape != truth.shape[1:]:
        raise ValueError(f"shapes differ: Y_true {truth.shape}, Y_pred {prediction.shape}, train_mean {train_mean.shape}")
    truth, prediction = truth.astype(np.float64), prediction.astype(np.float64)
    n, d = truth.shape
    weights = bootstrap_weights(n, bootstrap, seed)
    error, spread = (truth - prediction) ** 2, (truth - train_mean) ** 2
    if not spread.any():
        raise ValueError("R^2 is undefined: every row of Y_true is train_mean")
    lost = weights @ error.sum(axis=1)
    cosines = [_cosine(truth, prediction), _cosine(truth - train_mean, prediction - train_mean)]
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample may miss the few rows that differ from train_mean
        r2 = 1 - lost / (weights @ spread.sum(axis=1))
    draws = {
        "mse": lost / (n * d),
        "mse_standardised": _mean_ratio(weights, error, spread),
        "cosine": weights @ cosines[0] / n,
        "cosine_centred": weights @ cosines[1] / n,
        "r2": np.where(np.isfinite(r2), r2, np.nan),
    }
    return {name: drawn_estimate(values, n) for name, values in draws.items()}


def _cosine(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """Cosine of the rows of A and B (N, D) -> (N,), 0 where a row is zero."""
    norms = np.linalg.norm(A, axis=1) * np.linalg.norm(B, axis=1)
    return np.divide((A * B).sum(axis=1), norms, out=np.zeros(len(A)), where=norms > 0)


def _mean_ratio(weights: np.ndarray, above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Mean over the coordinates of (weights @ above) / (weights @ below), (B,); coordinates with nothing below are left out."""
    total, count = np.zeros(len(weights)), np.zeros(len(weights))
    step = max(1, _BLOCK_VALUES // len(weights))
    for start in range(0, above.shape[1], step):
        part = slice(start, start + step)
        divisor = weights @ below[:, part]
        total += np.divide(weights @ above[:, part], divisor, out=np.zeros_like(divisor), where=divisor > 0).sum(axis=1)
        count += (divisor > 0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(weights), np.nan), where=count > 0)


def learning_curve(
    X: np.ndarray,
    Y: np.ndarray,
    X_test: np.ndarray,
    Y_test: np.ndarray,
    sizes: Sequence[int],
    alphas: float | Sequence[float] | None = None,
    bootstrap: int = 1000,
    seed: int = 42,
) -> pd.DataFrame:
    """R^2 and centred cosine on the test rows of maps fitted on more and more training rows: does Table 2 want more images?

    X (N, Dx), Y (N, Dy) training rows, sizes between 2 and N. Tidy table, one row per size: size, alpha, r2, r2_low, r2_high,
    cosine_centred, cosine_centred_low, cosine_centred_high, n. Larger subsets contain the smaller ones, seed chooses them; each
    size chooses its own penalty and is centred on its own mean. Intervals are over test rows only.
    """
    X, Y = _check_pair(X, Y, ("X", "Y"))
    if not len(sizes) or min(sizes) < 2 or max(sizes) > len(X):
        raise ValueError(f"sizes must lie between 2 and the {len(X)} training rows, got {list(sizes)}")
    order = np.random.default_rng((seed, len(X))).permutation(len(X))
    records = []
    for size in sizes:
        rows = order[:size]
        ridge = RidgeMap(alphas).fit(X[rows], Y[rows])
        metrics = transfer_metrics(Y_test, ridge.predict(X_test), Y[rows].mean(axis=0, dtype=np.float64), bootstrap, seed)
        record = {"size": size, "alpha": ridge.alpha_}
        for name in ("r2", "cosine_centred"):
            record |= {name: metrics[name].value, f"{name}_low": metrics[name].low, f"{name}_high": metrics[name].high}
        records.append(record | {"n": len(Y_test)})
    return pd.DataFrame(records)


class MaxvarGCCA(BaseEstimator):
    """MAXVAR generalised CCA: the k variables that all views together predict best (Kettenring 1971; UNE Figure 6).

    Maximises sum_i trace(G' P_i G) over G (N, k) with orthonormal columns, where P_i = X_i (X_i'X_i + r_i I)^-1 X_i' is the ridge
    projection on the centred view i and r_i is `ridge` times the mean eigenvalue of X_i'X_i (all D_i of them, so views of any
    scale and width are treated alike). The answer is the k leading eigenvectors of sum_i P_i. They are found as left singular
    vectors of the J whitened views side by side, whose Gram matrix has sum_i min(D_i, N - 1) columns: no N x N matrix, unless a
    view is wider than that (reduce such views with a PCA first, it saves most of the time). The paper uses the closed form and
    names no ridge; without one, two independent views of N / 10 dimensions correlate by 0.6 on their training rows (Wachter
    1980). `select_ridge` chooses it.

    Attributes after `fit`: shared_ (N, k), the shared variables of the training rows, uncorrelated, mean 0 and variance 1;
    eigenvalues_ (k,), descending, between 0 and J: their sum is the MAXVAR objective; projections_, a list of (D_i, k), with
    which each view alone predicts the shared variables; means_, a list of (D_i,); view_shares_ (k, J), each view's part of the
    eigenvalue (without ridge the squared correlation of view i with the shared variable). Components are nested: the first k' of
    them are the fit with k'. Sign: in every column of the stacked projections_ the entry largest in magnitude is positive.
    """

    def __init__(self, n_components: int = 16, ridge: float = 0.0):
        self.n_components = n_components
        self.ridge = ridge

    def fit(self, views: Sequence[np.ndarray], y: None = None) -> "MaxvarGCCA":
        """views: J >= 2 arrays (N, D_i) of the same N images, finite.

        Raises ValueError for other shapes or counts of rows, NaN, a constant view, more components than the views span, and, if
        ridge is 0, for a view of rank N - 1: it fits anything. Constant features and repeated rows are fine.
        """
        spectra = [_Spectrum(view) for view in self._check_views(views)]
        self._solve(spectra, _left_gram(spectra))
        self.shared_ = self.transform(views)
        return self

    def fit_transform(self, views: Sequence[np.ndarray], y: None = None) -> np.ndarray:
        """shared_ (N, k) after `fit`."""
        return self.fit(views).shared_

    def _check_views(self, views: Sequence[np.ndarray]) -> list[np.ndarray]:
        if not isinstance(views, list | tuple) or len(views) < 2:
            raise ValueError("views must be a list of at least two arrays (N, D_i), one per model")
        if any(isinstance(view, StoredRows) for view in views):
            raise ValueError("views on disk are as wide as the Gram matrix of all views side by side: give outofcore.reduce_views(views, train)")
        checked = [_check_rows(view, f"view {i}") for i, view in enumerate(views)]
        _same_rows(checked)
        if not (isinstance(self.n_components, int | np.integer) and self.n_components >= 1):
            raise ValueError(f"n_components must be an integer of at least 1, got {self.n_components!r}")
        if not (np.isfinite(self.ridge) and self.ridge >= 0):
            raise ValueError(f"ridge must be finite and not negative, got {self.ridge}")
        return checked

    def _solve(self, spectra: list[_Spectrum], gram: np.ndarray) -> None:
        """Everything but shared_ from the views' spectra and the Gram matrix of their left singular vectors (`_left_gram`)."""
        k, n = self.n_components, len(spectra[0].X)
        ranks = [len(spectrum.values) for spectrum in spectra]
        _refuse_degenerate(ranks, n, k, self.ridge)
        penalised = [spectrum.values + self.ridge * spectrum.mean_value for spectrum in spectra]
        shrink = np.concatenate([np.sqrt(s.values / p) for s, p in zip(spectra, penalised, strict=True)])
        # the Gram matrix of the whitened views, upper triangle: whitening scales the left singular vectors
        gram = np.multiply(gram, shrink[:, None], order="F")
        gram *= shrink
        eigenvalues, vectors = _leading(gram, k)
        if eigenvalues[-1] < 1e-10:
            raise ValueError(f"n_components = {k}, but the views together span {int((eigenvalues >= 1e-10).sum())} dimensions")
        cuts = np.cumsum(ranks)[:-1]
        parts = [part * np.sqrt(eigenvalues) for part in np.split(vectors, cuts)]  # (K_i, k): whitened view times G
        # a projection regresses the shared variables, of variance 1 and not of norm 1, on the view
        projections = [
            np.sqrt(n) * s.back(part / np.sqrt(p)[:, None]) for s, part, p in zip(spectra, parts, penalised, strict=True)
        ]
        stacked = np.concatenate(projections)
        sign = np.sign(stacked[np.abs(stacked).argmax(axis=0), np.arange(k)])
        self.eigenvalues_ = eigenvalues
        self.projections_ = [projection * sign for projection in projections]
        self.means_ = [spectrum.mean for spectrum in spectra]
        self.view_shares_ = np.stack([(part**2).sum(axis=0) for part in parts], axis=1)
        self._projection_gram = _projection_gram(gram, parts)

    def project(self, X: np.ndarray, view: int) -> np.ndarray:
        """What view number `view` alone, rows X (M, D_i), says about the shared variables: (X - mean) @ projection, (M, k)."""
        check_is_fitted(self)
        X = _check_rows(X, f"view {view}")
        if X.shape[1] != len(self.means_[view]):
            raise ValueError(f"view {view} has {X.shape[1]} features, it was fitted with {len(self.means_[view])}")
        return X @ self.projections_[view] - self.means_[view] @ self.projections_[view]

    def transform(self, views: Sequence[np.ndarray | None]) -> np.ndarray:
        """Shared variables of new rows, (M, k), from the views that are there; None stands for a missing view.

        Each component is the least-squares prediction, on the training rows, of the shared variable from the projections of the
        given views. With all views it is exact on the training rows; with fewer it shrinks by what the others would have told.
        """
        check_is_fitted(self)
        if not isinstance(views, list | tuple) or len(views) != len(self.means_):
            raise ValueError(f"views must be a list of {len(self.means_)}, as in fit, with None for a missing view")
        given = [i for i, view in enumerate(views) if view is not None]
        if not given:
            raise ValueError("all views are missing")
        projected = [self.project(views[i], i) for i in given]
        _same_rows(projected)
        shares = self.view_shares_[:, given]
        inverse = np.linalg.pinv(self._projection_gram[:, given][:, :, given], rcond=1e-10, hermitian=True)
        weights = np.einsum("kij,kj->ki", inverse, shares)
        return sum(part * weights[:, j] for j, part in enumerate(projected))

    def score(self, views: Sequence[np.ndarray], y: None = None) -> float:
        """Mean over components of the mean pairwise correlation of the views' projections, at most 1; give it held-out rows."""
        projected = _all_projections(self, views)
        return float(_mean_correlations(projected, np.ones((1, len(projected[0])))).mean())


def _same_rows(views: Sequence[np.ndarray]) -> None:
    counts = [len(view) for view in views]
    if len(set(counts)) > 1:
        raise ValueError(f"views have different numbers of rows, {counts}; row i must be the same image in all")


def _refuse_degenerate(ranks: list[int], n: int, k: int, ridge: float) -> None:
    for i, rank in enumerate(ranks):
        if rank == 0:
            raise ValueError(f"view {i} is constant")
        if ridge == 0 and rank >= n - 1:
            raise ValueError(
                f"view {i} has rank {rank} on {n} rows and fits any shared variable; set ridge > 0 or reduce it first"
            )
    possible = min(n - 1, sum(ranks))
    if k > possible:
        raise ValueError(f"n_components = {k}, but {n} rows of views with ranks {ranks} allow {possible} at most")


def _left_gram(spectra: list[_Spectrum], orders: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """Gram matrix of the views' left singular vectors side by side, (R, R) float64 with R the sum of the ranks; upper triangle.

    orders: one permutation (N,) per view, to pair rows of different images. Products of float32 views run in float32: whitened
    entries are all of one size, so it costs 1e-7 where the rounding of the stored latents has cost as much, and halves the time.
    """
    n = len(spectra[0].X)
    edges = np.cumsum([0] + [len(spectrum.values) for spectrum in spectra])
    gram = np.asfortranarray(np.eye(edges[-1]))  # within a view the columns are orthonormal
    step = max(1, _BLOCK_VALUES // edges[-1])
    for start in range(0, n, step):
        part = slice(start, start + step)
        rows = [part] * len(spectra) if orders is None else [order[part] for order in orders]
        block = np.concatenate([s.left(r) for s, r in zip(spectra, rows, strict=True)], axis=1)  # (step, R)
        for first, last in pairwise(edges[:-1]):
            gram[first:last, last:] += (block[:, last:].T @ block[:, first:last]).T  # transposed to match gram's order
    return gram


def _leading(gram: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest eigenvalues (k,), descending, and eigenvectors (R, k) of a symmetric matrix given by its upper triangle."""
    size = len(gram)
    if k <= _LANCZOS_SHARE * size:
        product = LinearOperator(gram.shape, lambda x: blas.dsymv(1.0, gram, x), dtype=np.float64)
        rng = np.random.default_rng(0)  # where Lanczos starts; the answer does not depend on it
        values, vectors = eigsh(product, k, which="LA", v0=rng.standard_normal(size), tol=1e-10, rng=rng)
    else:
        values, vectors = linalg.eigh(gram, lower=False, subset_by_index=[size - k, size - 1])
    order = np.argsort(values)[::-1]
    return np.clip(values[order], 0, None), vectors[:, order]


def _projection_gram(gram: np.ndarray, parts: list[np.ndarray]) -> np.ndarray:
    """Second moments of the views' projections on the training rows for each component, (k, J, J).

    gram: upper triangle of the Gram matrix of the whitened views; parts: the views' coefficients (K_i, k) on them.
    """
    edges = np.cumsum([0] + [len(part) for part in parts])
    moments = np.empty((parts[0].shape[1], len(parts), len(parts)))
    for i, left in enumerate(parts):
        for j in range(i, len(parts)):
            # for i = j the lower triangle is missing, but it is 0: a view's whitened columns are orthogonal
            block = gram[edges[i] : edges[i + 1], edges[j] : edges[j + 1]]
            moments[:, i, j] = moments[:, j, i] = (left * (block @ parts[j])).sum(axis=0)
    return moments


def _all_projections(model: MaxvarGCCA, views: Sequence[np.ndarray]) -> list[np.ndarray]:
    check_is_fitted(model)
    if not isinstance(views, list | tuple) or len(views) != len(model.means_):
        raise ValueError(f"views must be a list of {len(model.means_)}, as in fit")
    projected = [model.project(view, i) for i, view in enumerate(views)]
    _same_rows(projected)
    return projected


def _mean_correlations(projected: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Mean over pairs of views of the correlation of their projections (N, k), for every row weighting (B, N) -> (B, k).

    A projection without variance has correlation 0.
    """
    n = weights.sum(axis=1, keepdims=True)
    scaled = [_standardised(part) for part in projected]
    means = [weights @ part / n for part in scaled]
    deviations = [np.sqrt(np.clip(weights @ part**2 / n - m**2, 0, None)) for part, m in zip(scaled, means, strict=True)]
    pairs = [(i, j) for i in range(len(scaled)) for j in range(i)]
    total = np.zeros_like(means[0])
    for i, j in pairs:
        covariance = weights @ (scaled[i] * scaled[j]) / n - means[i] * means[j]
        norm = deviations[i] * deviations[j]
        total += np.divide(covariance, norm, out=np.zeros_like(norm), where=norm > 1e-12)
    return total / len(pairs)


def _standardised(part: np.ndarray) -> np.ndarray:
    """Columns of part (N, k) with mean 0 and variance 1; a constant column, whose spread is rounding, becomes 0."""
    centred = part - part.mean(axis=0)
    scale = np.sqrt((centred**2).mean(axis=0))
    constant = scale <= 1e-12 * np.abs(part).max(axis=0)
    return np.where(constant, 0.0, centred / np.where(constant, 1.0, scale))


def held_out_correlations(model: MaxvarGCCA, views: Sequence[np.ndarray], bootstrap: int = 1000, seed: int = 42) -> pd.DataFrame:
    """Per component, the mean over pairs of views of the correlation of their projections on rows that `fit` has not seen.

    Tidy table: component (from 1), correlation, correlation_low, correlation_high, n; intervals are bootstraps over the rows. On
    training rows it would be inflated: compare with `permutation_null`.
    """
    projected = _all_projections(model, views)
    draws = _mean_correlations(projected, bootstrap_weights(len(projected[0]), bootstrap, seed))  # (1 + B, k)
    low, high = percentile_interval(draws[1:])
    return pd.DataFrame(
        {
            "component": np.arange(1, len(low) + 1),
            "correlation": draws[0],
            "correlation_low": low,
            "correlation_high": high,
            "n": len(projected[0]),
        }
    )


def permutation_null(
    model: MaxvarGCCA,
    views: Sequence[np.ndarray],
    held_out: Sequence[np.ndarray],
    permutations: int = 100,
    seed: int = 42,
) -> np.ndarray:
    """Held-out correlations (permutations, k) of refits that pair different images: nothing is shared, each view is as it was.

    views: training rows, held_out: test rows, lists as for `fit`. In each refit, with the model's settings, the rows of all views
    but the first are permuted, in training and in test. model itself is left as it is and need not be fitted.
    """
    refit = clone(model)
    spectra = [_Spectrum(view) for view in refit._check_views(views)]
    held_out = [_check_rows(view, f"held-out view {i}") for i, view in enumerate(held_out)]
    _same_rows(held_out)
    if len(held_out) != len(spectra):
        raise ValueError(f"{len(spectra)} training views and {len(held_out)} held-out ones")
    n, m = len(views[0]), len(held_out[0])
    rng = np.random.default_rng((seed, n, m))
    null = np.empty((permutations, model.n_components))
    for r in range(permutations):
        orders, test_orders = ([np.arange(size)] + [rng.permutation(size) for _ in spectra[1:]] for size in (n, m))
        refit._solve(spectra, _left_gram(spectra, orders))
        pairs = _all_projections(refit, [view[order] for view, order in zip(held_out, test_orders, strict=True)])
        null[r] = _mean_correlations(pairs, np.ones((1, m)))[0]
    return null


def shared_dimensions(
    model: MaxvarGCCA,
    views: Sequence[np.ndarray],
    null: np.ndarray,
    level: float = 0.95,
    bootstrap: int = 1000,
    seed: int = 42,
) -> Estimate:
    """How many components are truly shared: those whose held-out correlation exceeds 95 % of the null's largest ones.

    views: test rows; null (R, k) from `permutation_null` for the same model, R >= 19. Comparing with the maximum over components
    keeps the chance of any false component at 5 % or below, for any R: the threshold is the floor(0.05 (R + 1))th largest
    of the R maxima. The interval is a bootstrap over test rows; resampling adds noise of its own, so its upper end may hold a few
    components that are not there, the more the larger k is.
    """
    null = np.asarray(null, dtype=np.float64)
    if null.ndim != 2 or null.shape[1] != model.n_components:
        raise ValueError(f"null must be (permutations, {model.n_components}), from permutation_null, got shape {null.shape}")
    rank = int((1 - level) * (len(null) + 1) + 1e-9)  # 1e-9: 1 - level is not exact in binary
    if rank < 1:
        raise ValueError(f"{len(null)} permutations cannot show anything at level {level}; {round(1 / (1 - level)) - 1} can")
    threshold = np.sort(null.max(axis=1))[-rank]
    projected = _all_projections(model, views)
    n = len(projected[0])
    draws = _mean_correlations(projected, bootstrap_weights(n, bootstrap, seed))
    return drawn_estimate((draws > threshold).sum(axis=1).astype(np.float64), n)


def select_ridge(
    views: Sequence[np.ndarray],
    n_components: int = 16,
    grid: Sequence[float] = (1e-3, 1e-2, 1e-1, 1.0, 10.0),
    validation: float = 0.2,
    seed: int = 42,
) -> tuple[float, pd.DataFrame]:
    """Ridge of the grid with the best `MaxvarGCCA.score` on a validation part of the training rows, and the table ridge, score.

    views: training rows only. The views are decomposed once for all of the grid.
    """
    if not 0 < validation < 1:
        raise ValueError(f"validation is a share between 0 and 1, got {validation}")
    models = [MaxvarGCCA(n_components, ridge) for ridge in grid]
    for model in models:
        views = model._check_views(views)
    order = np.random.default_rng((seed, len(views[0]))).permutation(len(views[0]))
    held_out, kept = np.split(order, [max(2, round(validation * len(order)))])
    spectra = [_Spectrum(view[kept]) for view in views]
    gram = _left_gram(spectra)
    scores = []
    for model in models:
        model._solve(spectra, gram)
        scores.append(model.score([view[held_out] for view in views]))
    table = pd.DataFrame({"ridge": np.asarray(grid, dtype=float), "score": scores})
    return float(table["ridge"][table["score"].idxmax()]), table


def neighbourhood_agreement(
    A: np.ndarray, B: np.ndarray, queries: int | None = None, bootstrap: int = 1000, seed: int = 42
) -> Estimate:
    """Do two spaces order the images alike? Mean Spearman correlation of retrieval rankings (UNE Figure 6).

    A (N, Da), B (N, Db): the same images in two spaces. For a query image all others are ranked by cosine similarity in either
    space; the two rankings' Spearman correlation is averaged over queries: all images, or that many drawn without replacement.
    Cosines are taken of the rows as given: centre spaces whose mean is not zero. A query that ranks nothing, being equally
    similar to all, counts 0. The interval is a bootstrap over queries. Raises ValueError for different numbers of rows, fewer
    than 4, NaN, or rows that are zero.
    """
    A, B = _check_pair(A, B, ("A", "B"))
    n = len(A)
    if n < 4:
        raise ValueError(f"a ranking of the other images needs at least 4, got {n}")
    if queries is not None and not 1 <= queries <= n:
        raise ValueError(f"queries must lie between 1 and the {n} rows, got {queries}")
    chosen = np.arange(n) if queries is None else np.sort(np.random.default_rng((seed, n)).choice(n, queries, replace=False))
    spaces = [_unit_rows(A, "A"), _unit_rows(B, "B")]
    agreement = []
    step = max(1, _BLOCK_VALUES // n)
    for start in range(0, len(chosen), step):
        part = chosen[start : start + step]
        ranks = [_centred_ranks(space, part) for space in spaces]
        agreement.append(_cosine(*ranks))
    return bootstrap_interval(np.concatenate(agreement), np.mean, bootstrap, seed=seed)


def _unit_rows(X: np.ndarray, name: str) -> np.ndarray:
    norms = np.linalg.norm(X, axis=1, keepdims=True)
    if not norms.all():
        raise ValueError(f"{name} has rows that are zero, which have no cosine: {np.flatnonzero(norms[:, 0] == 0)[:5].tolist()}")
    return X / norms


def _centred_ranks(unit: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Ranks, minus their mean, of all other rows by similarity to each query: (Q, N - 1)."""
    n = len(unit)
    others = np.arange(n) != queries[:, None]
    similarity = (unit[queries] @ unit.T)[others].reshape(len(queries), n - 1)
    return stats.rankdata(similarity, axis=1) - n / 2
