"""The known universe: what models keep of an ideal latent Z, and whether they keep it as the INE hypothesis says.

For rendered faces Z ~ N(0, I_k) is known. The hypothesis of induced normal embeddings (INE) is that each model i sees it through
a noisy linear map, x_i = mean_i + C_i z + eps_i with Gaussian eps_i, independent of Z and of the other models' noise (UNE's
Z_i = C_i Z + eps_i). Everything it predicts follows from C_i and the covariance of eps_i: how well Z can be read, from one view
or from several, where a probe's direction points and what AUC it reaches. Here are the fit, the predictions, the measurements to
hold against them, and simulated worlds in which the hypothesis is true, to validate both.

Shapes: X (N, D) latents of one model, Z (N, k) ideal latents, F (N, F) factors, A (k, F) with F = Z A; lists of views hold one
(N, D_i) array a model. Row i is the same image everywhere, `train` and `test` are disjoint rows. R^2 is 1 - squared error /
squared distance to the mean of the test rows; 0 is what the mean predictor reaches, below 0 is worse. Intervals are bootstraps
over test rows, with the same resamples for every function given as many rows and the same seed; fits are not repeated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
import pandas as pd
from scipy import linalg, special
from sklearn.decomposition import PCA

from une_utils.analysis.alignment import RidgeMap, fit_maps
from une_utils.analysis.stats import LEVEL, Estimate, bootstrap_weights, drawn_estimate, percentile_interval

_SILENT = 1e-10  # variance relative to the mean variance of X below which a direction holds no noise: far above float32 rounding
_TINY = 1e-12  # relative variance added before an inversion, so that a perfect reading has a finite precision
_DECADES = 10.0 ** np.arange(-6, 4)  # ridge penalties, relative to the mean eigenvalue


# --- the model -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Noise:
    """Covariance of eps, (D, D), as basis diag(values) basis' + floor (I - basis basis'): basis (D, r), r <= D, values > 0."""

    basis: np.ndarray
    values: np.ndarray
    floor: float

    def solve(self, B: np.ndarray) -> np.ndarray:
        """Inverse covariance times B (D, m)."""
        inside = self.basis.T @ B
        return self.basis @ (inside / self.values[:, None]) + (B - self.basis @ inside) / self.floor

    def matrix(self) -> np.ndarray:
        """The covariance as an array (D, D)."""
        return (self.basis * (self.values - self.floor)) @ self.basis.T + self.floor * np.eye(len(self.basis))

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """n rows of N(0, covariance), (n, D)."""
        white = rng.standard_normal((n, len(self.basis)))
        return np.sqrt(self.floor) * white + ((white @ self.basis) * (np.sqrt(self.values) - np.sqrt(self.floor))) @ self.basis.T


@dataclass(frozen=True)
class INEModel:
    """One view under the INE hypothesis, x = mean + C z + eps; true in a simulated world, or fitted by `fit_ine`.

    C (D, k), mean (D,), noise: covariance of eps. information (k, k): C' noise^-1 C, what one image's latents tell about z
    (Fisher information), corrected for the errors of the estimates after a fit. r2 (D,): share of each latent coordinate's
    variance that Z explains, NaN for a constant coordinate; explained: that share for the whole latent, variances summed.
    """

    C: np.ndarray
    mean: np.ndarray
    noise: Noise
    information: np.ndarray
    r2: np.ndarray
    explained: float


def ine_model(C: np.ndarray, noise: Noise | np.ndarray, mean: np.ndarray | None = None) -> INEModel:
    """A chosen model: C (D, k), noise a `Noise` or a positive definite covariance (D, D), mean (D,), zero if None."""
    C = _finite(C, "C")
    if not isinstance(noise, Noise):
        covariance = _finite(noise, "noise")
        if covariance.shape != (len(C),) * 2 or not np.allclose(covariance, covariance.T):
            raise ValueError(f"noise must be a symmetric covariance {(len(C),) * 2} for C {C.shape}, got {covariance.shape}")
        values, basis = linalg.eigh(covariance)
        if values[0] <= 0:
            raise ValueError(f"noise must be positive definite, its smallest eigenvalue is {values[0]:.3g}")
        noise = Noise(basis, values, float(values[0]))
    signal = (C**2).sum(axis=1)
    total = signal + noise.floor + (noise.basis**2) @ (noise.values - noise.floor)
    mean = np.zeros(len(C)) if mean is None else np.asarray(mean, dtype=np.float64)
    return INEModel(C, mean, noise, C.T @ noise.solve(C), signal / total, float(signal.sum() / total.sum()))


@dataclass(frozen=True)
class SimulatedINE:
    """A world in which the hypothesis holds: z (n, k), views, a list of (n, D_i), and the models that made them."""

    z: np.ndarray
    views: list[np.ndarray]
    models: list[INEModel]


def simulate_ine(
    n: int,
    k: int,
    dims: Sequence[int],
    noise: float | Sequence[float] = 1.0,
    seed: int = 42,
    condition: float = 1.0,
    lacks: Mapping[int, Sequence[int]] | None = None,
    colour: float = 0.0,
) -> SimulatedINE:
    """n images seen by len(dims) random INE models of dims[i] dimensions: a world with a known answer for every estimator here.

    C_i has random singular vectors and singular values from 1 down to 1 / condition, evenly spaced in logarithm; rank below k
    where D_i < k. noise: variance per latent coordinate, one number or one a view; without colour a direction of Z with singular
    value s is read with R^2 = s^2 / (s^2 + noise). colour: the noise's eigenvalues go as j^-colour along random axes, their mean
    stays. lacks: view -> columns of Z that it does not see. To plant noise that views share, simulate more columns of Z than are
    shown to the estimators: `world.z[:, :k]`.
    """
    levels = np.broadcast_to(np.asarray(noise, dtype=np.float64), (len(dims),))
    if n < 1 or k < 1 or not len(dims) or min(dims) < 1:
        raise ValueError(f"a world needs at least one image, one latent and one view: n = {n}, k = {k}, dims = {list(dims)}")
    if not (np.isfinite(levels).all() and (levels > 0).all() and condition >= 1):
        raise ValueError(f"noise must be positive and condition at least 1, got {noise} and {condition}")
    models = []
    for i, (d, level) in enumerate(zip(dims, levels, strict=True)):
        rng = np.random.default_rng((seed, i))
        seen = np.setdiff1d(np.arange(k), (lacks or {}).get(i, ()))
        rank = min(d, len(seen))
        left, right = _orthonormal(d, rank, rng), _orthonormal(len(seen), rank, rng)
        C = np.zeros((d, k))
        C[:, seen] = left * np.geomspace(1, 1 / condition, rank) @ right.T
        spectrum = np.arange(1, d + 1.0) ** -colour
        spectrum *= level / spectrum.mean()
        basis = _orthonormal(d, d, rng) if colour else np.zeros((d, 0))
        models.append(ine_model(C, Noise(basis, spectrum[: basis.shape[1]], float(level))))
    return draw_ine(models, n, seed)


def draw_ine(models: Sequence[INEModel], n: int, seed: int = 42) -> SimulatedINE:
    """n images of the world that these models describe: what every measurement would show if the fitted INE were the truth.

    A fitted C holds estimation errors that would pass for signal, D / N of it per direction, so C is first mapped to C T with
    the smallest change that gives (C T)' noise^-1 (C T) = information. For chosen models T is the identity.
    """
    k = _latents(models)
    z = np.random.default_rng((seed, n)).standard_normal((n, k))
    views = []
    for i, model in enumerate(models):
        C = model.C @ _transport(model.C.T @ model.noise.solve(model.C), model.information)
        views.append(model.mean + z @ C.T + model.noise.draw(n, np.random.default_rng((seed, n, i))))
    return SimulatedINE(z, views, list(models))


def _latents(models: Sequence[INEModel]) -> int:
    """The number k of latents that all models read."""
    counts = {model.C.shape[1] for model in models}
    if len(counts) != 1:
        raise ValueError(f"expected models of one world, at least one and with the same k, got k of {sorted(counts)}")
    return counts.pop()


def _orthonormal(d: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """k random orthonormal columns (d, k)."""
    return linalg.qr(rng.standard_normal((d, k)), mode="economic")[0]


def _transport(start: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Symmetric T with T start T = goal (both positive semidefinite): the optimal transport map between such Gaussians."""
    root, inverse = _power(start, 0.5), _power(start, -0.5)
    return inverse @ _power(root @ goal @ root, 0.5) @ inverse


def _power(matrix: np.ndarray, exponent: float) -> np.ndarray:
    """Power of a positive semidefinite matrix; directions of rounding size have power 0, negative ones count as 0."""
    values, vectors = linalg.eigh((matrix + matrix.T) / 2)
    used = values > max(values[-1], 0) * len(values) * np.finfo(float).eps
    return (vectors[:, used] * values[used] ** exponent) @ vectors[:, used].T


def fit_ine(X: np.ndarray, Z: np.ndarray) -> INEModel:
    """The INE model of one view, x = mean + C z + eps, from latents X (N, D) and the known Z (N, k); D > N is fine.

    C is least squares. The covariance of eps is the residuals' with its eigenvalues shrunk by Ledoit and Wolf's analytical
    nonlinear formula (Annals of Statistics 2020), which is what makes noise^-1 C useful where D is not far below N; with linear
    shrinkage the predicted reader was worse (test R^2 0.37 against 0.43 at N = 3,200, D = 1,024 and simulated coloured noise).

    `information` is freed of the errors of both estimates: unbiased for Gaussian noise while D is at most 80 % of N - 1 - k, by
    the mean of an inverse Wishart matrix; beyond that it rests on the shrunk covariance and is a rough guide (an R^2 of 0.45 for
    a true 0.55 at N = 800, D = 1,024 and coloured noise), so reduce such views first. r2 and explained are adjusted for the k
    regressors. Memory: four float64 copies of X.

    Raises ValueError for NaN, different rows, N < k + 13, a constant X, or columns of Z that are constant or repeat others.
    """
    X, Z = _same_rows(X, Z, ("X", "Z"))
    n, k = Z.shape
    freedom = n - 1 - k
    if freedom < 12:  # fewer leave the shrinkage no kernel
        raise ValueError(f"fit_ine needs at least k + 13 = {k + 13} rows, got {n}")
    mean, z_mean = X.mean(axis=0), Z.mean(axis=0)
    centred, Z = X - mean, Z - z_mean
    variance = (centred**2).sum(axis=0)
    variance[np.ptp(X, axis=0) == 0] = 0  # equal values differ from their mean by rounding
    if not variance.any():
        raise ValueError("X is constant: there is nothing to fit")
    C, spread = _least_squares(centred, Z)
    residual = centred - Z @ C.T
    missed = (residual**2).sum(axis=0) / freedom * (n - 1)
    r2 = 1 - np.divide(missed, variance, out=np.full(len(mean), np.nan), where=variance > 0)
    explained = 1 - missed.sum() / variance.sum()
    silent = _SILENT * variance.sum() / n / X.shape[1]
    values, basis = _residual_spectrum(residual, freedom, silent)
    noise = _shrunk(values, basis, silent, freedom)
    information = _information(C, values, basis, noise, spread, freedom)
    return INEModel(C, mean - C @ z_mean, noise, information, r2, float(explained))


def _least_squares(X: np.ndarray, Z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (D, k) of X (N, D) on Z (N, k), both centred, and the inverse of Z'Z, (k, k)."""
    gram = Z.T @ Z
    scale = np.sqrt(np.diag(gram))
    if np.ptp(Z, axis=0).min() == 0 or np.linalg.cond(gram / np.outer(scale, scale)) > 1e10:
        raise ValueError("columns of Z are constant or repeat others: pass the k independent latents")
    inverse = linalg.inv(gram)
    return (inverse @ (Z.T @ X)).T, inverse


def _residual_spectrum(residual: np.ndarray, freedom: int, silent: float) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues above `silent` (r,), ascending, and axes (D, r) of the residuals' covariance, from the smaller Gram matrix."""
    n, d = residual.shape
    wide = d > n
    gram = (residual @ residual.T if wide else residual.T @ residual) / freedom
    values, vectors = linalg.eigh(gram, overwrite_a=True, driver="evd")
    used = values > silent
    used[: max(0, len(used) - freedom)] = False  # more would be rounding: the residuals span at most `freedom` directions
    values, vectors = values[used], vectors[:, used]
    return values, residual.T @ (vectors / np.sqrt(freedom * values)) if wide else vectors


def _shrunk(values: np.ndarray, basis: np.ndarray, silent: float, freedom: int) -> Noise:
    """Noise with nonlinearly shrunk eigenvalues; directions without residuals: the formula's value if D > N, else `silent`."""
    d = len(basis)
    if not len(values):
        return Noise(basis, values, silent)
    unseen = d - len(values) if len(values) == freedom else 0
    shrunk, null = _nonlinear_shrinkage(values, unseen, freedom)
    shrunk = np.maximum(shrunk, silent)
    if len(values) == d:
        return Noise(basis, shrunk, float(shrunk.min()))  # no direction is left for the floor
    return Noise(basis, shrunk, max(null, silent))


def _nonlinear_shrinkage(values: np.ndarray, unseen: int, n: int) -> tuple[np.ndarray, float]:
    """Analytical nonlinear shrinkage of sample eigenvalues (r,) > 0, and the value of `unseen` further null ones.

    Ledoit and Wolf (2020), section 4.7: the sample spectral density and its Hilbert transform by an Epanechnikov kernel whose
    bandwidth is n^(-1/3) times each eigenvalue.
    """
    d = len(values) + unseen
    ratio, h = d / n, n ** (-1 / 3)
    width = h * values  # (r,)
    x = (values[:, None] - values) / width
    density = (3 / (4 * np.sqrt(5)) * np.maximum(1 - x**2 / 5, 0) / width).mean(axis=1)
    transform = (_epanechnikov_transform(x) / width).mean(axis=1)
    if not unseen:
        return values / ((np.pi * ratio * values * density) ** 2 + (1 - ratio - np.pi * ratio * values * transform) ** 2), 0.0
    edge = (1 + np.sqrt(5) * h) / (1 - np.sqrt(5) * h)
    at_zero = (3 / (10 * h**2) + 3 / (4 * np.sqrt(5) * h) * (1 - 1 / (5 * h**2)) * np.log(edge)) / np.pi * (1 / values).mean()
    return values / (np.pi**2 * values**2 * (density**2 + transform**2)), 1 / (np.pi * (d - n) / n * at_zero)


def _epanechnikov_transform(x: np.ndarray) -> np.ndarray:
    """Hilbert transform of the Epanechnikov kernel of variance 1; the series -(1/x + 1/x^3) / pi where that cancels."""
    far = np.abs(x) > 100
    safe = np.where(far, x, 1.0)
    near = np.where(far, 0.0, x)
    edge = np.abs(np.abs(near) - np.sqrt(5)) < 1e-9  # 0 times log 0
    ratio = np.abs((np.sqrt(5) - near) / np.where(edge, 1.0, np.sqrt(5) + near))
    bend = np.where(edge, 0.0, (1 - near**2 / 5) * np.log(np.where(edge, 1.0, ratio)))
    closed = -3 * near / (10 * np.pi) + 3 / (4 * np.sqrt(5) * np.pi) * bend
    return np.where(far, -(1 / safe + 1 / safe**3) / np.pi, closed)


def _information(
    C: np.ndarray, values: np.ndarray, basis: np.ndarray, noise: Noise, spread: np.ndarray, freedom: int
) -> np.ndarray:
    """C' noise^-1 C without what the errors of C (D, k) add and those of the covariance take away, positive semidefinite (k, k).

    The error of C adds one `spread` = (Z'Z)^-1 per noisy direction. An inverse sample covariance of r directions is too large by
    freedom / (freedom - r - 1) on average (Wishart).
    """
    noisy = len(values)
    if noisy <= 0.8 * freedom:
        inside = basis.T @ C
        outside = C - basis @ inside
        raw = (freedom - noisy - 1) / freedom * (inside.T / values) @ inside + outside.T @ outside / noise.floor
    else:
        raw = C.T @ noise.solve(C)
        noisy = len(C) if noisy == freedom else noisy
    return _power(raw - noisy * spread, 1.0)


# --- what the model predicts -----------------------------------------------------------------------------------------


def predicted_recovery(models: Sequence[INEModel], A: np.ndarray | None = None) -> np.ndarray:
    """R^2 with which the best linear reader gets Z, (k,), or the factors Z A, (F,), from all these views together.

    Independent noise adds information: Cov(z | x_1..x_v) = (I + sum_i C_i' Sigma_i^-1 C_i)^-1. The reader is the one that endless
    training rows would give; with N rows a fitted one reads less (see `draw_ine`). A (k, F).
    """
    k = _latents(models)
    A = np.eye(k) if A is None else _factor_matrix(A, k)
    left = linalg.inv(np.eye(k) + sum(model.information for model in models))
    return 1 - (A * (left @ A)).sum(axis=0) / (A**2).sum(axis=0)


def predicted_directions(model: INEModel, A: np.ndarray) -> np.ndarray:
    """Weights (F, D) with which the model reads the factors Z A, Cov(X)^-1 C A with Cov(X) = C C' + Sigma; A (k, F).

    (x - mean) @ w is the posterior mean of the factor. Whatever the joint law, this is the best linear reader of the factor; that
    the logistic weights of a threshold of the factor point the same way is what needs Gaussian latents.
    """
    k = model.C.shape[1]
    A = _factor_matrix(A, k)
    inverse_noise = model.noise.solve(model.C)  # (D, k)
    return (inverse_noise @ linalg.solve(np.eye(k) + model.C.T @ inverse_noise, A, assume_a="pos")).T  # Woodbury


def _factor_matrix(A: np.ndarray, k: int) -> np.ndarray:
    A = _finite(A, "A")
    if len(A) != k:
        raise ValueError(f"A must be ({k}, F), one column per factor Z A, got {A.shape}")
    return A


def predicted_auc(r: float | np.ndarray, threshold: float | np.ndarray) -> np.ndarray:
    """AUC of a score for the attribute "factor > threshold" when score and factor are Gaussian with correlation r.

    r in [-1, 1] and threshold, in standard deviations of the factor, broadcast; the sign of the threshold does not matter. The
    square root of `predicted_recovery` is r for the model's own directions. Sum over the scores of the density of positives times
    the share of negatives below, accurate to 1e-6.
    """
    r, threshold = np.broadcast_arrays(np.asarray(r, dtype=np.float64), np.asarray(threshold, dtype=np.float64))
    if not (np.abs(r) <= 1).all() or not np.isfinite(threshold).all():
        raise ValueError("r must lie in [-1, 1] and the threshold be finite")
    score = np.linspace(-9, 9, 20_001)
    gap = np.sqrt(np.maximum(1 - r**2, 1e-8))[..., None]  # r = 1 is a step: smoothed over 1e-4
    above = special.ndtr((r[..., None] * score - threshold[..., None]) / gap)  # P(factor > threshold | score)
    density = np.exp(-(score**2) / 2)
    positive, negative = density * above, density * (1 - above)
    below = np.cumsum(negative, axis=-1) - negative / 2
    area = (positive * below).sum(axis=-1) / (positive.sum(axis=-1) * negative.sum(axis=-1))
    return np.where(np.abs(r) == 1, (1 + r) / 2, area)


# --- what can be read ------------------------------------------------------------------------------------------------


def factor_recovery(
    X_train: np.ndarray,
    F_train: np.ndarray,
    X_test: np.ndarray,
    F_test: np.ndarray,
    names: Sequence[str],
    bootstrap: int = 1000,
    seed: int = 42,
) -> pd.DataFrame:
    """How much of each factor can be read linearly from latents: test R^2 of ridge regression, one penalty a factor.

    X (N, D), F (N, F). Tidy table, one row per factor: factor, r2, low, high, n. The penalty comes from generalised
    cross-validation on the training rows. Compare with a ceiling (an oracle on pictures), with `Z @ random_rotation(k)` in place
    of F, and with `alignment.shuffled_pairs(F_train)` as null.
    """
    X_train, F_train, X_test, F_test = _split(X_train, F_train, X_test, F_test, ("X", "F"))
    _check_names(names, F_test.shape[1], "factors")
    draws = _r2_draws(F_test, _predict(X_train, F_train, X_test), bootstrap_weights(len(F_test), bootstrap, seed))
    low, high = percentile_interval(draws[1:])
    return pd.DataFrame({"factor": list(names), "r2": draws[0], "low": low, "high": high, "n": len(F_test)})


def latent_recovery(
    X_train: np.ndarray, Z_train: np.ndarray, X_test: np.ndarray, Z_test: np.ndarray, bootstrap: int = 1000, seed: int = 42
) -> Estimate:
    """Mean over the coordinates of Z (N, k) of the test R^2 of `factor_recovery`: how much of the whole of Z can be read.

    With X and Z exchanged it says how much of a latent or a shared space Z explains.
    """
    X_train, Z_train, X_test, Z_test = _split(X_train, Z_train, X_test, Z_test, ("X", "Z"))
    draws = _r2_draws(Z_test, _predict(X_train, Z_train, X_test), bootstrap_weights(len(Z_test), bootstrap, seed))
    return drawn_estimate(draws.mean(axis=1), len(Z_test))


def random_rotation(k: int, seed: int = 42) -> np.ndarray:
    """A random orthogonal matrix (k, k): the columns of Z @ rotation are directions that no name prefers."""
    return _orthonormal(k, k, np.random.default_rng((seed, k)))


def nonlinear_gain(
    X_train: np.ndarray,
    F_train: np.ndarray,
    X_test: np.ndarray,
    F_test: np.ndarray,
    names: Sequence[str],
    validation: float = 0.2,
    bootstrap: int = 1000,
    seed: int = 42,
) -> pd.DataFrame:
    """Does a nonlinear reader get more of each factor than the linear one? If so, x is not a linear map of z plus noise.

    X (N, D), F (N, F). Tidy table: factor, linear, nonlinear (test R^2), gain = nonlinear - linear with a paired interval low,
    high, and n. The nonlinear reader is kernel ridge regression with a Gaussian kernel of all latents, its width 0.5, 1, 2 times
    the median distance and its penalty 0.01 or 0.1, chosen per factor on a validation share of the training rows. All latents and
    not their first principal components, since those leave out what the linear reader uses: with 100 components a mean R^2 of
    0.54 on inverted noise, with all 1,024 of them 0.66, linear 0.64. Takes seconds at N = 3,200, growing with N^3.
    """
    X_train, F_train, X_test, F_test = _split(X_train, F_train, X_test, F_test, ("X", "F"))
    _check_names(names, F_test.shape[1], "factors")
    if not 0 < validation < 1 or len(X_train) * (1 - validation) < 2:
        raise ValueError(f"validation is a share between 0 and 1 that leaves rows to fit, got {validation} of {len(X_train)}")
    if not np.ptp(X_train, axis=0).any():
        raise ValueError("X is constant on the training rows: there is nothing to read")
    weights = bootstrap_weights(len(F_test), bootstrap, seed)
    linear = _r2_draws(F_test, _predict(X_train, F_train, X_test), weights)
    nonlinear = _r2_draws(F_test, _kernel_predict(X_train, F_train, X_test, validation, seed), weights)
    low, high = percentile_interval((nonlinear - linear)[1:])
    return pd.DataFrame(
        {
            "factor": list(names),
            "linear": linear[0],
            "nonlinear": nonlinear[0],
            "gain": (nonlinear - linear)[0],
            "low": low,
            "high": high,
            "n": len(F_test),
        }
    )


def _kernel_predict(X: np.ndarray, F: np.ndarray, X_test: np.ndarray, validation: float, seed: int) -> np.ndarray:
    """Kernel ridge predictions (M, F) on the test rows, width and penalty chosen per factor."""
    order = np.random.default_rng((seed, len(X))).permutation(len(X))
    held_out, kept = np.split(order, [max(1, round(validation * len(X)))])
    centre = X.mean(axis=0)
    X, X_test = X - centre, X_test - centre
    distance, test_distance = _squared_distances(X, X), _squared_distances(X_test, X)
    median = np.median(distance[np.ix_(held_out, kept)]) or distance.mean()  # zero if most rows are the same
    grid = [(scale, penalty) for scale in (0.5, 1.0, 2.0) for penalty in (0.01, 0.1)]

    def predict(rows: np.ndarray, distances: np.ndarray, columns: np.ndarray, scale: float, penalty: float) -> np.ndarray:
        targets = F[np.ix_(rows, columns)]
        mean = targets.mean(axis=0)
        kernel = np.exp(distance[np.ix_(rows, rows)] / (-2 * median * scale**2))
        kernel[np.diag_indices(len(rows))] += penalty
        dual = linalg.cho_solve(linalg.cho_factor(kernel, overwrite_a=True), targets - mean)
        return np.exp(distances / (-2 * median * scale**2)) @ dual + mean

    every = np.arange(F.shape[1])
    between = distance[np.ix_(held_out, kept)]
    errors = [((predict(kept, between, every, *setting) - F[held_out]) ** 2).sum(axis=0) for setting in grid]
    best = np.argmin(errors, axis=0)  # (F,)
    result = np.empty((len(X_test), F.shape[1]))
    for choice in np.unique(best):
        columns = np.flatnonzero(best == choice)
        result[:, columns] = predict(np.arange(len(X)), test_distance, columns, *grid[choice])
    return result


def _squared_distances(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances (N, M) of centred rows; rounding below 0 is cut."""
    return np.maximum((A**2).sum(axis=1)[:, None] + (B**2).sum(axis=1) - 2 * (A @ B.T), 0)


# --- subspaces and noise ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CanonicalAlignment:
    """Held-out canonical correlations of two spaces S (N, m) and Z (N, k); P = min of their ranks.

    pairs: tidy table, one row per canonical pair: pair (from 1), train (its correlation on training rows, inflated), correlation,
    low, high (on test rows), angle, angle_low, angle_high (principal angle in degrees, its arccosine), null, n. null is the same
    for all pairs: what the largest of them stays below in 95 % of permutations. dims: how many pairs exceed it. overlap: sum of
    squared correlations / rank of Z, 1 if Z lies in the span of S; overlap_null: its 95 % quantile in permutations.
    """

    pairs: pd.DataFrame
    dims: Estimate
    overlap: Estimate
    overlap_null: float


def canonical_alignment(
    S_train: np.ndarray,
    Z_train: np.ndarray,
    S_test: np.ndarray,
    Z_test: np.ndarray,
    permutations: int = 200,
    bootstrap: int = 1000,
    seed: int = 42,
) -> CanonicalAlignment:
    """Do the axes of a shared space S (N, m) span Z (N, k)? Principal angles, fitted on training and judged on test rows.

    On training rows canonical correlations grow with m whether anything is shared or not; on test rows noise dimensions add
    nothing. The null permutes the test rows of Z and keeps the fitted pairs: if S and Z are independent, that leaves the law of
    the test correlations as it is, so the test is exact. Constant or repeated columns are left out. Pairs are in the order of
    the training rows. Raises ValueError for NaN, different rows, no variation, or fewer than m + k + 2 training rows.
    """
    S_train, Z_train, S_test, Z_test = _split(S_train, Z_train, S_test, Z_test, ("S", "Z"))
    if permutations < 19:
        raise ValueError(f"{permutations} permutations cannot show anything at level {LEVEL}; 19 can")
    (S_train, S_test), (Z_train, Z_test) = _whitened(S_train, S_test, "S"), _whitened(Z_train, Z_test, "Z")
    n, m, k = len(S_train), S_train.shape[1], Z_train.shape[1]
    if n < m + k + 2:
        raise ValueError(f"{n} training rows are too few for {m} + {k} dimensions: reduce these to leading components")
    left, train, right = linalg.svd(S_train.T @ Z_train / n, full_matrices=False)
    p, q = S_test @ left, Z_test @ right.T  # (M, P) each
    draws = _correlation_draws(p, q, bootstrap_weights(len(p), bootstrap, seed))
    null = _permuted_correlations(p, q, permutations, seed)
    threshold = np.sort(null.max(axis=1))[-_tail(permutations)]
    low, high = percentile_interval(draws[1:])
    pairs = pd.DataFrame(
        {"pair": np.arange(1, len(train) + 1), "train": np.minimum(train, 1), "correlation": draws[0], "low": low, "high": high}
    )
    for name, value in (("angle", draws[0]), ("angle_low", high), ("angle_high", low)):
        pairs[name] = np.degrees(np.arccos(np.clip(value, 0, 1)))
    pairs["null"], pairs["n"] = threshold, len(p)
    return CanonicalAlignment(
        pairs,
        drawn_estimate((draws > threshold).sum(axis=1).astype(float), len(p)),
        drawn_estimate((draws**2).sum(axis=1) / k, len(p)),
        float(np.sort((null**2).sum(axis=1) / k)[-_tail(permutations)]),
    )


def _tail(permutations: int) -> int:
    """Rank from the top of the permuted value that a statistic must exceed: floor(0.05 (R + 1)), exact for every R."""
    return int((1 - LEVEL) * (permutations + 1) + 1e-9)  # 1e-9: 1 - LEVEL is not exact in binary


def _whitened(train: np.ndarray, test: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Both parts on the training rows' principal axes, scaled to variance 1 there; directions of rounding size are left out."""
    mean = train.mean(axis=0)
    centred = train - mean
    scale = np.sqrt((centred**2).mean(axis=0))
    varies = np.ptp(train, axis=0) > 0
    if not varies.any():
        raise ValueError(f"{name} is constant on the training rows")
    centred, test = centred[:, varies] / scale[varies], (test - mean)[:, varies] / scale[varies]
    values, vectors = linalg.eigh(centred.T @ centred / len(centred))
    used = values > 1e-10 * values[-1]
    axes = vectors[:, used] / np.sqrt(values[used])
    return centred @ axes, test @ axes


def _correlation_draws(p: np.ndarray, q: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Correlations of the columns of p and q (M, P) under every row weighting (B, M) -> (B, P); 0 where a side is constant."""
    n = weights.sum(axis=1, keepdims=True)
    p, q = p - p.mean(axis=0), q - q.mean(axis=0)
    mean_p, mean_q, pq, pp, qq = (weights @ value / n for value in (p, q, p * q, p**2, q**2))
    spread = np.sqrt(np.maximum(pp - mean_p**2, 0) * np.maximum(qq - mean_q**2, 0))
    return np.divide(pq - mean_p * mean_q, spread, out=np.zeros_like(pq), where=spread > 0)


def _permuted_correlations(p: np.ndarray, q: np.ndarray, permutations: int, seed: int) -> np.ndarray:
    """Correlations (R, P) of the columns of p and q (M, P) after permuting the rows of q."""
    rng = np.random.default_rng((seed, len(p), permutations))
    once = np.ones((1, len(p)))
    return np.concatenate([_correlation_draws(p, q[rng.permutation(len(q))], once) for _ in range(permutations)])


def noise_correlation(
    views_train: Sequence[np.ndarray],
    Z_train: np.ndarray,
    views_test: Sequence[np.ndarray],
    Z_test: np.ndarray,
    names: Sequence[str],
    components: int = 200,
    permutations: int = 200,
    bootstrap: int = 1000,
    seed: int = 42,
) -> pd.DataFrame:
    """Is the noise independent between views, as INE says? Held-out canonical correlations of what is left after C_i z.

    views: lists of (N, D_i), Z (N, k). Tidy table, one row per pair of views: a, b, correlation, low, high (leading pair on test
    rows), null (what the largest pair stays below in 95 % of permutations of b's rows), dims, dims_low, dims_high (pairs above
    it), overlap, overlap_null (mean squared correlation of all pairs and its 95 % quantile in permutations) and n. C_i and mean_i
    come from the training rows. Each view's noise is taken in its `components` leading principal components, at most a tenth of
    the training rows: noise shared elsewhere is not seen, so a row below its null does not prove independence.
    """
    views = _checked_views(views_train, Z_train, views_test, Z_test, names)
    if len(views) < 2:
        raise ValueError("noise_correlation compares views: give at least two")
    Z_train, Z_test = _finite(Z_train, "Z_train"), _finite(Z_test, "Z_test")
    limit = min(components, len(Z_train) // 10)
    if limit < 1:
        raise ValueError(f"noise_correlation needs 10 training rows and one component, got {len(Z_train)} and {components}")
    parts = [_noise_components(train, Z_train, test, Z_test, limit, seed) for train, test in views]
    records = []
    for i, j in combinations(range(len(views)), 2):
        wide, narrow = sorted((parts[i], parts[j]), key=lambda part: -part[0].shape[1])  # overlap is relative to the narrow one
        found = canonical_alignment(wide[0], narrow[0], wide[1], narrow[1], permutations, bootstrap, seed)
        lead = found.pairs.iloc[0]
        records.append(
            {"a": names[i], "b": names[j], "correlation": lead["correlation"], "low": lead["low"], "high": lead["high"]}
            | {"null": lead["null"], "dims": found.dims.value, "dims_low": found.dims.low, "dims_high": found.dims.high}
            | {"overlap": found.overlap.value, "overlap_null": found.overlap_null, "n": found.overlap.n}
        )
    return pd.DataFrame(records)


def _noise_components(
    X: np.ndarray, Z: np.ndarray, X_test: np.ndarray, Z_test: np.ndarray, limit: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Leading principal components (N, m), (M, m) of X - C z with C from the training rows."""
    mean, z_mean = X.mean(axis=0), Z.mean(axis=0)
    C, _ = _least_squares(X - mean, Z - z_mean)
    train, test = X - mean - (Z - z_mean) @ C.T, X_test - mean - (Z_test - z_mean) @ C.T
    pca = PCA(min(limit, X.shape[1]), random_state=seed).fit(train)
    return pca.transform(train), pca.transform(test)


# --- directions ------------------------------------------------------------------------------------------------------


def direction_agreement(
    fitted: np.ndarray,
    predicted: np.ndarray,
    X_test: np.ndarray,
    names: Sequence[str],
    permuted: np.ndarray | None = None,
    bootstrap: int = 1000,
    seed: int = 42,
) -> pd.DataFrame:
    """Do probe directions equal those the INE model predicts? fitted, predicted (A, D) weights in latent space, X_test (M, D).

    Tidy table, one row per attribute: attribute, cosine (Euclidean, of the weights), correlation, low, high (of the two scores on
    test rows: the cosine in the metric of the data's covariance, which is the one that matters, since weights along directions in
    which the data hardly vary are arbitrary), other (largest absolute correlation of the fitted direction with the predicted one
    of another attribute; attributes that read the same factor, predicted scores correlated beyond 0.999, do not count; NaN if no
    other is left), n. With `permuted` (A, D), weights fitted on permuted labels, also permuted: their absolute correlation. Both
    estimates hold errors; what agreement they would reach if the model were true, `draw_ine` and the same fits tell.
    """
    X_test = _finite(X_test, "X_test")
    _check_names(names, len(fitted), "attributes")
    weights = {"fitted": _finite(fitted, "fitted"), "predicted": _finite(predicted, "predicted")}
    if permuted is not None:
        weights["permuted"] = _finite(permuted, "permuted")
    shape = (len(weights["fitted"]), X_test.shape[1])
    for name, w in weights.items():
        if w.shape != shape:
            raise ValueError(f"{name} weights are {w.shape}, expected {shape}: attributes x columns of X_test")
        if not np.abs(w).sum(axis=1).all():
            raise ValueError(f"{name} weights of {names[int(np.argmin(np.abs(w).sum(axis=1)))]} are all zero: no direction")
    scores = {name: (X_test - X_test.mean(axis=0)) @ w.T for name, w in weights.items()}
    draws = _correlation_draws(scores["fitted"], scores["predicted"], bootstrap_weights(len(X_test), bootstrap, seed))
    low, high = percentile_interval(draws[1:])
    norms = np.linalg.norm(weights["fitted"], axis=1) * np.linalg.norm(weights["predicted"], axis=1)
    table = pd.DataFrame({"attribute": list(names), "cosine": (weights["fitted"] * weights["predicted"]).sum(axis=1) / norms})
    table["correlation"], table["low"], table["high"] = draws[0], low, high
    cross = np.abs(_cross_correlation(scores["fitted"], scores["predicted"]))
    same = np.abs(_cross_correlation(scores["predicted"], scores["predicted"])) > 0.999
    other = np.where(same, -np.inf, cross).max(axis=1)
    table["other"] = np.where(np.isfinite(other), other, np.nan)
    if permuted is not None:
        table["permuted"] = np.abs(np.diag(_cross_correlation(scores["permuted"], scores["predicted"])))
    table["n"] = len(X_test)
    return table


def _cross_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlations (A, B) of the columns of a (M, A) with those of b (M, B); 0 for a constant column."""
    a, b = (part - part.mean(axis=0) for part in (a, b))
    spread = np.outer(np.linalg.norm(a, axis=0), np.linalg.norm(b, axis=0))
    return np.divide(a.T @ b, spread, out=np.zeros_like(spread), where=spread > 0)


# --- several views ---------------------------------------------------------------------------------------------------


def recovery_by_views(
    views_train: Sequence[np.ndarray],
    Z_train: np.ndarray,
    views_test: Sequence[np.ndarray],
    Z_test: np.ndarray,
    names: Sequence[str],
    subsets: int = 64,
    folds: int = 5,
    bootstrap: int = 1000,
    seed: int = 42,
) -> pd.DataFrame:
    """Does the recovery of Z grow with the number of views as independent noise makes it grow?

    views: lists of (N, D_i), Z (N, k). Tidy table, one row per subset of views: views (names joined by " + "), count, r2, low,
    high (measured), predicted, predicted_low, predicted_high, gap, gap_low, gap_high (measured - predicted, paired), n; all are
    means over Z's coordinates. Every subset where there are at most `subsets`, else a random choice, spread over the counts.

    Measured: each view is read by ridge regression, the readings are joined by the rule that is best if the noise is independent
    (each weighted by its precision), and a second ridge regression on all readings corrects what that rule gets wrong. With few
    rows this loses less than one regression on the concatenated latents (simulated, four views of 384 to 1,024 dimensions at
    N = 3,200: 0.71 against 0.63). Predicted: Cov(z | all) = (S^-1 + sum_i (V_i^-1 - S^-1))^-1 with S the covariance of Z and V_i
    the error covariance of view i's reading on the test rows. So both sides hold what a reader trained on N rows loses, and only
    the independence of the noise is tested: shared noise makes the gap negative. Joining costs a little too: with independent
    noise the gap was -0.004 for four views at N = 3,200 and M = 800, -0.009 for eight at N = 1,200, so hold a gap against the one
    that `draw_ine` or `simulate_ine` gives for as many rows. For the reader with endless rows see `predicted_recovery`.
    """
    views = _checked_views(views_train, Z_train, views_test, Z_test, names)
    Z_train, Z_test = _finite(Z_train, "Z_train"), _finite(Z_test, "Z_test")
    if not 2 <= folds <= len(Z_train):
        raise ValueError(f"folds must lie between 2 and the {len(Z_train)} training rows, got {folds}")
    weights = bootstrap_weights(len(Z_test), bootstrap, seed)
    readings = [_readings(train, Z_train, test, folds, seed) for train, test in views]
    spread = _second_moments(Z_test - Z_test.mean(axis=0), weights)
    prior = _precision(spread, spread)
    gains = [_precision(_second_moments(Z_test - test, weights), spread) - prior for _, test in readings]
    variance = np.diagonal(spread, axis1=1, axis2=2)  # (1 + B, k)
    records = []
    for subset in _subsets(len(views), subsets, seed):
        together = np.linalg.inv(prior + sum(gains[i] for i in subset))
        predicted = (1 - np.diagonal(together, axis1=1, axis2=2) / variance).mean(axis=1)
        # inverse moments are more biased in resamples, which repeat rows, than in the sample: centre the draws on the value
        predicted[1:] += predicted[0] - np.median(predicted[1:])
        measured = _r2_draws(Z_test, _joined([readings[i] for i in subset], Z_train), weights).mean(axis=1)
        record = {"views": " + ".join(names[i] for i in subset), "count": len(subset)}
        gap = measured - predicted
        for name, prefix, draws in (("r2", "", measured), ("predicted", "predicted_", predicted), ("gap", "gap_", gap)):
            low, high = percentile_interval(draws[1:])
            record |= {name: draws[0], f"{prefix}low": low, f"{prefix}high": high}
        records.append(record | {"n": len(Z_test)})
    return pd.DataFrame(records)


def _readings(X: np.ndarray, Z: np.ndarray, X_test: np.ndarray, folds: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ridge readings of Z, of the training rows by fits on the other folds (N, k), of the test rows by a fit on all (M, k).

    The penalties of the fit on all rows serve the folds too, on a grid of decades, so that coordinates share factorisations.
    Ridge readings are shrunk one by one; a linear map fitted out of fold makes them the best linear estimates from all k of them.
    """
    scale = ((X - X.mean(axis=0)) ** 2).sum() / min(X.shape) or 1.0
    maps = fit_maps(X, {j: Z[:, [j]] for j in range(Z.shape[1])}, _DECADES * scale)
    test = np.hstack([fitted.predict(X_test) for fitted in maps.values()])
    alphas = np.array([fitted.alpha_ for fitted in maps.values()])
    out_of_fold = np.empty(Z.shape)
    order = np.random.default_rng((seed, len(X))).permutation(len(X))
    for held_out in np.array_split(order, folds):
        kept = np.setdiff1d(order, held_out)
        out_of_fold[held_out] = _ridge_predict(X[kept], Z[kept], X[held_out], alphas)
    calibration = RidgeMap().fit(out_of_fold, Z)
    return calibration.predict(out_of_fold), calibration.predict(test)


def _ridge_predict(X: np.ndarray, Z: np.ndarray, X_new: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """Ridge predictions (M, k) with a given penalty per column of Z, by Cholesky in the smaller of the two Gram matrices."""
    mean, z_mean = X.mean(axis=0), Z.mean(axis=0)
    X, Z, X_new = X - mean, Z - z_mean, X_new - mean
    wide = X.shape[1] > len(X)
    gram = X @ X.T if wide else X.T @ X
    left, right = (X_new @ X.T, Z) if wide else (X_new, X.T @ Z)
    result = np.empty((len(X_new), Z.shape[1]))
    for alpha in np.unique(alphas):
        columns = np.flatnonzero(alphas == alpha)
        factor = linalg.cho_factor(gram + alpha * np.eye(len(gram)), overwrite_a=True)
        result[:, columns] = left @ linalg.cho_solve(factor, right[:, columns])
    return result + z_mean


def _joined(readings: Sequence[tuple[np.ndarray, np.ndarray]], Z: np.ndarray) -> np.ndarray:
    """Z on the test rows (M, k) from several views' readings: the rule for independent noise, corrected by ridge regression."""
    once = np.ones((1, len(Z)))
    mean = Z.mean(axis=0)
    spread = _second_moments(Z - mean, once)
    prior = _precision(spread, spread)[0]
    precisions = [_precision(_second_moments(Z - train, once), spread)[0] for train, _ in readings]
    covariance = linalg.inv(prior + sum(precision - prior for precision in precisions))
    train, test = (
        mean + sum((view[part] - mean) @ precision for view, precision in zip(readings, precisions, strict=True)) @ covariance
        for part in (0, 1)
    )
    correction = RidgeMap().fit(np.hstack([view[0] for view in readings]), Z - train)
    return test + correction.predict(np.hstack([view[1] for view in readings]))


def _second_moments(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Second moments (B, k, k) of rows (M, k) under every row weighting (B, M)."""
    k = rows.shape[1]
    products = (rows[:, :, None] * rows[:, None, :]).reshape(len(rows), k * k)
    return (weights @ products / weights.sum(axis=1, keepdims=True)).reshape(-1, k, k)


def _precision(moments: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Inverse (B, k, k) of error moments, finite for a perfect reading; spread (B, k, k) sets the scale."""
    return np.linalg.inv(moments + _TINY * np.eye(moments.shape[1]) * np.diagonal(spread, axis1=1, axis2=2)[:, None])


def _subsets(views: int, limit: int, seed: int) -> list[tuple[int, ...]]:
    """All non-empty subsets of views by size, or about `limit` of them: the single views, all, and random ones of each size."""
    if 2**views - 1 <= limit:
        return [subset for size in range(1, views + 1) for subset in combinations(range(views), size)]
    rng = np.random.default_rng((seed, views))
    share = max(1, (limit - views - 1) // (views - 2))
    chosen = [(i,) for i in range(views)]
    for size in range(2, views):
        drawn: set[tuple[int, ...]] = set()
        while len(drawn) < min(share, comb(views, size)):
            drawn.add(tuple(sorted(rng.choice(views, size, replace=False).tolist())))
        chosen += sorted(drawn)
    return [*chosen, tuple(range(views))]


# --- shared helpers --------------------------------------------------------------------------------------------------


def _finite(values: np.ndarray, name: str) -> np.ndarray:
    """values (N, D) as float64; ValueError that names them for another shape, no rows, NaN or inf."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"{name} must have two axes and not be empty, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} contains NaN or inf")
    return values


def _same_rows(A: np.ndarray, B: np.ndarray, names: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    A, B = _finite(A, names[0]), _finite(B, names[1])
    if len(A) != len(B):
        raise ValueError(f"{names[0]} has {len(A)} rows and {names[1]} has {len(B)}; row i must be the same image in both")
    return A, B


def _split(
    X_train: np.ndarray, Y_train: np.ndarray, X_test: np.ndarray, Y_test: np.ndarray, names: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Both sides of a split as float64, checked: equal rows within a side, equal columns on both sides."""
    X_train, Y_train = _same_rows(X_train, Y_train, tuple(f"{name}_train" for name in names))
    X_test, Y_test = _same_rows(X_test, Y_test, tuple(f"{name}_test" for name in names))
    for name, train, test in ((names[0], X_train, X_test), (names[1], Y_train, Y_test)):
        if train.shape[1] != test.shape[1]:
            raise ValueError(f"{name}_train has {train.shape[1]} columns and {name}_test has {test.shape[1]}")
    return X_train, Y_train, X_test, Y_test


def _checked_views(
    views_train: Sequence[np.ndarray],
    Z_train: np.ndarray,
    views_test: Sequence[np.ndarray],
    Z_test: np.ndarray,
    names: Sequence[str],
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(train, test) of every view as float64, checked against Z and named in errors."""
    if not len(views_train) == len(views_test) == len(names):
        raise ValueError(f"one of each a view: {len(views_train)} training, {len(views_test)} test arrays, {len(names)} names")
    _check_names(names, len(views_train), "views")
    views = []
    for train, test, name in zip(views_train, views_test, names, strict=True):
        train, _, test, _ = _split(train, Z_train, test, Z_test, (f"view {name}", "Z"))
        views.append((train, test))
    return views


def _check_names(names: Sequence[str], count: int, what: str) -> None:
    if isinstance(names, str) or len(names) != count:
        raise ValueError(f"names must be a list of one per column: {len(names)} for {count} {what}")


def _predict(X: np.ndarray, F: np.ndarray, X_test: np.ndarray) -> np.ndarray:
    """Ridge predictions (M, F) on the test rows, one penalty a column of F."""
    maps = fit_maps(X, {j: F[:, [j]] for j in range(F.shape[1])})
    return np.hstack([fitted.predict(X_test) for fitted in maps.values()])


def _r2_draws(truth: np.ndarray, prediction: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """R^2 of every column (B, F) under every row weighting (B, M), about the mean of the weighted rows; NaN if all are equal."""
    constant = np.flatnonzero(np.ptp(truth, axis=0) == 0)
    if len(constant):
        raise ValueError(f"R^2 is undefined: columns {constant.tolist()} are constant on the test rows; leave them out")
    n = weights.sum(axis=1, keepdims=True)
    centred = truth - truth.mean(axis=0)
    total = weights @ centred**2 - (weights @ centred) ** 2 / n
    lost = weights @ (truth - prediction) ** 2
    return 1 - np.divide(lost, total, out=np.full_like(total, np.nan), where=total > 0)
