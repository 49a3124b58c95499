"""Linear edits of latents: directions, strengths, orthogonalisation, and what an edit does in numbers (UNE Figures 4 and 5).

Shapes: z, X (N, D) latents, Y (N, A) bool attributes, w (D,) a direction. `directions` returns unit vectors, and a strength
counts standard deviations of the projection X @ w over the training rows: 2 goes as far as from the mean to the 97.7th percentile
of Gaussian latents, whatever the space or the method. The effect of an edit is read by an oracle outside this module (a factor
regressor, classifiers); here arrive its readings `before` (N, F) and `after` (S, N, F) for S strengths, in standard deviations of
each factor. Attribute names are the data sets' labels, nothing more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import linalg, special, stats

from une_utils.analysis.probes import NearestMean, Probe, make_probe
from une_utils.analysis.stats import LEVEL, Estimate, bootstrap_weights, percentile_interval, proportion

METHODS = ("logistic", "mean difference", "whitened", "random")
# Edits of UNE's Figure 5 (smile, age, gender) and a fourth one, each with what is to be removed from it.
FIGURE_5 = {"Smiling": ("Male", "Mouth_Slightly_Open"), "Young": ("Gray_Hair", "Eyeglasses"), "Male": ("No_Beard",), "Eyeglasses": ("Young",)}
_RANK = 1e-10  # a part of a unit vector below this is rounding, not a direction of its own
_NOTHING_LEFT = 1e-6  # share of a direction that cannot be told from the rounding of float32 weights


class Direction(NamedTuple):
    """One direction: w (D,) of unit length, its boundary <z, w> + bias = 0, and sigma, the spread of X @ w on training rows."""

    w: np.ndarray
    bias: float
    sigma: float


@dataclass(frozen=True)
class Directions:
    """The directions of A attributes by one method; `directions["Smiling"]` is a `Direction`.

    names (A,), w (A, D) unit rows, bias (A,) and sigma (A,), all float64. <z, w> + bias > 0 predicts the attribute.
    """

    method: str
    names: tuple[str, ...]
    w: np.ndarray
    bias: np.ndarray
    sigma: np.ndarray

    def __getitem__(self, name: str) -> Direction:
        if name not in self.names:
            raise KeyError(f"no direction '{name}'; there are {', '.join(self.names)}")
        row = self.names.index(name)
        return Direction(self.w[row], float(self.bias[row]), float(self.sigma[row]))


def directions(
    X: np.ndarray,
    Y: np.ndarray,
    method: Literal["logistic", "mean difference", "whitened", "random"],
    names: Sequence[str],
    *,
    probe: Probe | None = None,
    shrinkage: float | Literal["auto"] = "auto",
    seed: int = 42,
) -> Directions:
    """Unit edit directions of all attributes from training latents X (N, D) and labels Y (N, A) (UNE Figure 4).

    "logistic": weights of `probe`, a fitted `probes.Probe`, mapped to latent space (the paper's choice); its own boundary.
    "mean difference": mean of the rows with the attribute minus mean of those without; boundary of `probes.NearestMean`.
    "whitened": inverse covariance times the mean difference, Fisher's discriminant; boundary of linear discriminant analysis with
    the class shares as prior. The total covariance is shrunk, see `covariance`; the within-class one gives the same direction at
    the same penalty (Sherman-Morrison), and the total one is factorised once for all attributes.
    "random": a control, Gaussian and so uniform on the sphere, drawn per (seed, column); its boundary leaves as many training
    rows on the positive side as have the attribute. Where variances differ between directions, one strength moves latents less
    far along it; with the sigma of the method that it is compared with, the steps are of one length.

    `probe` is for "logistic", `shrinkage` for "whitened", `seed` for "random". Raises ValueError for values that are not finite,
    an attribute with one class, shapes or names that do not fit, or classes that do not differ.
    """
    X, Y = _check_training(X, Y, names)
    if method == "logistic":
        if probe is None:
            raise ValueError("directions 'logistic' needs probe=, a fitted probe: probes.make_probe(...).fit(X, Y)")
        w, bias = probe.latent_weights()
        if w.shape != (Y.shape[1], X.shape[1]):
            raise ValueError(f"the probe has weights {w.shape}, X and Y need {(Y.shape[1], X.shape[1])}: fit it on these")
    elif method == "mean difference":
        rule = NearestMean().fit(X, Y)
        w, bias = rule.coef_, rule.intercept_
    elif method == "whitened":
        w, bias = _discriminants(X, Y, shrinkage)
    elif method == "random":
        w = np.stack([np.random.default_rng((seed, column)).standard_normal(X.shape[1]) for column in range(Y.shape[1])])
        bias = [-np.quantile(X @ row, 1 - share) for row, share in zip(w, Y.mean(axis=0), strict=True)]
    else:
        raise ValueError(f"unknown method '{method}', expected one of {', '.join(METHODS)}")
    norm = np.linalg.norm(w, axis=1)
    w = w / np.where(norm > 0, norm, 1)[:, None]
    sigma = projection_spread(X, w)
    empty = [names[i] for i in np.flatnonzero(sigma <= _RANK * np.abs(X).max())]
    if empty:
        raise ValueError(f"no direction for {', '.join(empty)}: X does not vary along it, so the classes do not differ")
    return Directions(method, tuple(names), w, np.asarray(bias) / norm, sigma)


def _check_training(X: np.ndarray, Y: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    X, Y = _finite(X, "X", 2), np.asarray(Y)
    if Y.ndim != 2 or len(Y) != len(X) or not np.isin(Y, (0, 1)).all():
        raise ValueError(f"Y must be (N, A) with 0 and 1 for the {len(X)} rows of X, got shape {Y.shape}")
    if isinstance(names, str) or len(names) != Y.shape[1]:
        raise ValueError(f"names must be one per attribute: {names} for {Y.shape[1]} columns of Y")
    Y = Y.astype(bool)
    single = [names[i] for i in np.flatnonzero(Y.all(axis=0) | ~Y.any(axis=0))]
    if single:
        raise ValueError(f"attributes with a single class have no direction: {', '.join(single)}; leave them out")
    return X, Y


def _finite(values: np.ndarray, name: str, dimensions: int) -> np.ndarray:
    """values as float64, after a check of the number of axes, of emptiness and of NaN."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != dimensions or values.size == 0:
        raise ValueError(f"{name} must have {dimensions} axes and not be empty, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} contains NaN or inf")
    return values


def _discriminants(X: np.ndarray, Y: np.ndarray, shrinkage: float | str) -> tuple[np.ndarray, np.ndarray]:
    """Fisher's discriminants (A, D) and their biases (A,) under the shrunk covariance.

    With fewer rows than dimensions (pixels: D = 12,288) the same system is solved in the span of the rows.
    """
    n, d = X.shape
    mean = X.mean(axis=0)
    centred = X - mean
    share = Y.mean(axis=0)  # (A,)
    contrast = (Y - share) / (n * share * (1 - share))  # (N, A): centred.T @ contrast is the difference of the class means
    difference = contrast.T @ centred  # (A, D)
    second = (centred.T @ centred if d < n else centred @ centred.T) / n  # the same spectrum either way
    shrunk, amount = _shrink(second, centred, shrinkage)
    w = _solve(shrunk, difference.T).T if d < n else _solve(shrunk, contrast).T @ centred
    middle = mean + (0.5 - share)[:, None] * difference
    # the prior counts in units of the within-class form of w, which is w / within
    within = 1 - (1 - amount) * share * (1 - share) * (w * difference).sum(axis=1)
    return w, special.logit(share) * within - (w * middle).sum(axis=1)


def _shrink(second: np.ndarray, centred: np.ndarray, shrinkage: float | str) -> tuple[np.ndarray, float]:
    """(1 - s) second + s m I and s, m the mean variance; `second` is the covariance (D, D) or the Gram matrix (N, N) over N."""
    n, d = centred.shape
    mean_variance = np.trace(second) / d
    if shrinkage == "auto":
        squares = (second**2).sum()  # the squared Frobenius norm of the covariance, from either matrix
        noise = (((centred**2).sum(axis=1) ** 2).mean() - squares) / n
        signal = squares - d * mean_variance**2
        shrinkage = 1.0 if noise >= signal else noise / signal
    elif not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage is 'auto' or a number from 0 to 1, got {shrinkage}")
    return (1 - shrinkage) * second + shrinkage * mean_variance * np.eye(len(second)), float(shrinkage)


def _solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """matrix^-1 right for a symmetric positive definite matrix; ValueError where it is singular."""
    scale = np.trace(matrix) / len(matrix)
    try:
        factor = linalg.cho_factor(matrix, lower=True)
        singular = np.diag(factor[0]).min() ** 2 <= len(matrix) * np.finfo(float).eps * scale
    except linalg.LinAlgError:
        singular = True
    if singular:
        raise ValueError("the covariance is singular (constant or repeated coordinates, or too few rows): use shrinkage above 0")
    return linalg.cho_solve(factor, right)


def covariance(X: np.ndarray, shrinkage: float | Literal["auto"] = "auto") -> np.ndarray:
    """Covariance (D, D) float64 of rows X (N, D), shrunk: (1 - s) S + s m I, S with divisor N and m the mean variance.

    "auto" is the s of Ledoit and Wolf (2004): near 1 where S is sampling noise around a multiple of the identity, near 0 where
    its structure is real. A metric for `orthogonalise`. Raises ValueError for values that are not finite or s outside [0, 1].
    """
    X = _finite(X, "X", 2)
    centred = X - X.mean(axis=0)
    return _shrink(centred.T @ centred / len(X), centred, shrinkage)[0]


def projection_spread(X: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Standard deviation (divisor N) of X @ w over the rows: a float for w (D,), (A,) for w (A, D). The unit of a strength."""
    return np.std(np.asarray(X, dtype=np.float64) @ np.asarray(w, dtype=np.float64).T, axis=0)


# --- edits -----------------------------------------------------------------------------------------------------------


def edit(z: np.ndarray, w: np.ndarray, strength: float | np.ndarray, sigma: float = 1.0) -> np.ndarray:
    """z + strength * sigma * w (UNE Figure 4), (N, D), float32 or wider as z is.

    z (N, D), w (D,), strength in standard deviations of the projection, one number or one per row (N,). With sigma = 1 the
    strength is the paper's alpha. Raises ValueError for shapes that do not fit or values that are not finite.
    """
    w, strength = _direction(z, w), np.asarray(strength, dtype=np.float64)
    if strength.shape not in ((), (len(z),)) or not (np.isfinite(strength).all() and np.isfinite(sigma)):
        raise ValueError(f"strength must be one finite number, or one per row ({len(z)},), got shape {strength.shape}")
    return _moved(z, np.broadcast_to(strength * sigma, len(z)), w)


def _direction(z: np.ndarray, w: np.ndarray) -> np.ndarray:
    w = _finite(w, "w", 1)
    if np.ndim(z) != 2 or np.shape(z)[1] != len(w):
        raise ValueError(f"z must be (N, {len(w)}) for w of {len(w)} values, got shape {np.shape(z)}")
    if not w.any():
        raise ValueError("w is the zero vector, which is no direction")
    return w


def _moved(z: np.ndarray, steps: np.ndarray, w: np.ndarray) -> np.ndarray:
    """z + steps w without losing the precision of a small step; float16 latents come back as float32."""
    z = np.asarray(z)
    return (z.astype(np.float64) + steps[:, None] * w).astype(np.result_type(z.dtype, np.float32))


def alpha_to_boundary(z: np.ndarray, w: np.ndarray, bias: float, along: np.ndarray | None = None) -> np.ndarray:
    """alpha (N,) with z + alpha w on the boundary <z, w> + bias = 0: -(<z, w> + bias) / |w|^2 (official UNE code, `get_alpha`).

    along (D,): move along this direction instead of w, alpha = -(<z, w> + bias) / <w, along>; needed for an orthogonalised
    direction, which reaches the probe's boundary later. Raises ValueError when `along` is at right angles to w.
    """
    w = _direction(z, w)
    along = w if along is None else _direction(z, along)
    rate = w @ along
    if abs(rate) <= _RANK * np.linalg.norm(w) * np.linalg.norm(along):
        raise ValueError("along is at right angles to w: no step along it reaches the boundary")
    return -(np.asarray(z, dtype=np.float64) @ w + bias) / rate


def keep_norm(edited: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Edited latents (N, D) or (S, N, D) scaled row by row to the length of z (N, D), on whose shell a Gaussian lives.

    Raises ValueError for shapes that do not fit or an edited row of length zero.
    """
    edited, z = np.asarray(edited), np.asarray(z)
    if z.ndim != 2 or edited.shape[-2:] != z.shape:
        raise ValueError(f"edited {edited.shape} and z {z.shape} must agree in rows and dimensions")
    length = np.linalg.norm(edited.astype(np.float64), axis=-1, keepdims=True)
    if not (length > 0).all():
        raise ValueError("an edited row is the zero vector and cannot be scaled")
    factor = np.linalg.norm(z.astype(np.float64), axis=-1, keepdims=True) / length
    return (edited * factor).astype(np.result_type(edited.dtype, np.float32))


@dataclass(frozen=True)
class YeoJohnson:
    """A monotone map of projections to a scale on which the training rows are about N(0, 1) (Yeo and Johnson 2000).

    Projections are standardised (mean, sd), transformed with exponent lmbda, and standardised again (offset, scale). The first
    makes lmbda independent of the units of the latents; the official code transforms raw values.
    """

    mean: float
    sd: float
    lmbda: float
    offset: float
    scale: float

    def transform(self, projections: np.ndarray) -> np.ndarray:
        """Projections, any shape, on the Gaussian scale."""
        x = (np.asarray(projections, dtype=np.float64) - self.mean) / self.sd
        return (_yeo_johnson(x, self.lmbda) - self.offset) / self.scale

    @property
    def limits(self) -> tuple[float, float]:
        """Ends of the part of the Gaussian scale that projections reach: infinite for 0 <= lmbda <= 2, else one is finite."""
        low = 1 / (2 - self.lmbda) if self.lmbda > 2 else -np.inf
        high = -1 / self.lmbda if self.lmbda < 0 else np.inf
        return (low - self.offset) / self.scale, (high - self.offset) / self.scale

    def inverse(self, values: np.ndarray) -> np.ndarray:
        """Projections of values on the Gaussian scale; ValueError for values at or beyond `limits`, which no projection has."""
        values = np.asarray(values, dtype=np.float64)
        low, high = self.limits
        beyond = ~((values > low) & (values < high))
        if beyond.any():
            raise ValueError(
                f"{beyond.sum()} of {values.size} values lie outside the transform's range ({low:.2f}, {high:.2f}): "
                "ask for a smaller intensity"
            )
        y = values * self.scale + self.offset
        positive = special.inv_boxcox(np.maximum(y, 0), self.lmbda) - 1
        x = np.where(y >= 0, positive, 1 - special.inv_boxcox(np.maximum(-y, 0), 2 - self.lmbda))
        return x * self.sd + self.mean


def _yeo_johnson(x: np.ndarray, lmbda: float) -> np.ndarray:
    """Box-Cox of 1 + x above zero, and mirrored with exponent 2 - lmbda below."""
    return np.where(x >= 0, special.boxcox(1 + np.maximum(x, 0), lmbda), -special.boxcox(1 + np.maximum(-x, 0), 2 - lmbda))


def fit_yeo_johnson(projections: np.ndarray) -> YeoJohnson:
    """Maximum-likelihood Yeo-Johnson scale of training projections (N,), X @ w. ValueError for NaN or constant projections."""
    projections = _finite(projections, "projections", 1)
    mean, sd = projections.mean(), projections.std()
    if sd <= 8 * np.finfo(float).eps * np.abs(projections).max():
        raise ValueError("projections are constant, so there is no scale to fit")
    x = (projections - mean) / sd
    lmbda = float(stats.yeojohnson_normmax(x))
    transformed = _yeo_johnson(x, lmbda)
    return YeoJohnson(float(mean), float(sd), lmbda, float(transformed.mean()), float(transformed.std()))


def edit_on_scale(
    z: np.ndarray,
    w: np.ndarray,
    scale: YeoJohnson,
    by: float | np.ndarray | None = None,
    to: float | np.ndarray | None = None,
) -> np.ndarray:
    """Move z (N, D) along w so that its projection, on the Gaussian scale, changes by `by` or arrives at `to`; (N, D).

    scale: `fit_yeo_johnson(X @ w)` of the training rows. by, to: one number or one per row (N,), exactly one of the two.
    Follows the official UNE `edit_sample_gaussianized`, which however transforms the distance to the boundary, whose sign is
    opposite to the projection's, and so measures the step at the mirrored place of the distribution; here the edited row arrives
    where it should. ValueError where the target lies outside the transform's range.
    """
    if (by is None) == (to is None):
        raise ValueError("edit_on_scale needs exactly one of by (a change) and to (a target value)")
    w = _direction(z, w)
    here = np.asarray(z, dtype=np.float64) @ w
    target = np.broadcast_to(to, here.shape) if by is None else scale.transform(here) + by
    return _moved(z, (scale.inverse(target) - here) / (w @ w), w)


# --- orthogonalisation -----------------------------------------------------------------------------------------------


class Orthogonalised(NamedTuple):
    """A direction w (D,) of unit length and `share_left`, its length before that scaling over the length of the original."""

    w: np.ndarray
    share_left: float


def orthogonalise(w: np.ndarray, others: np.ndarray, metric: np.ndarray | None = None) -> Orthogonalised:
    """Remove other attributes from an edit direction: moving along the result changes no score <z, others[j]> (UNE Figure 5).

    w (D,): the edit direction. others (D,) or (K, D): what *reads* the other attributes, the weights of their probes; any length,
    and nearly dependent ones count once. metric: None, or a positive definite covariance (D, D) of the latents (`covariance`).

    Both forms give the v with <v, others[j]> = 0 for all j that is nearest to w; they differ in what near means.
    Euclidean (metric None), the paper's: least |v - w|. For one other w - (<w, w2> / <w2, w2>) w2; for several the projection off
    their span, which is not the same as removing one after the other.
    Covariance S: least Mahalanobis length of v - w, so v = w - S W^T (W S W^T)^-1 W w with W = others. What is taken out are the
    S w_j, along which latents vary in the data when score j does, instead of the probes' normals w_j, along which there may be
    hardly any data. S = I gives the Euclidean form. Here w should be a change seen in the data as well: a mean difference, or
    S @ w_1 for a probe w_1, whose result is the change of the latents to expect when score 1 rises while the other scores stay. A
    bare normal w_1 may lose most of its own score.

    Another notion, v^T S w_j = 0, makes the *readings* X @ v and X @ w_j uncorrelated over the data. It is about measuring: an
    edit along such a v still moves score j wherever <v, w_j> is not 0. The two are one thing seen from two sides: v has
    uncorrelated readings if and only if the edit along S v leaves the scores unchanged.

    share_left is 1 where w was clear of the others and 0 where nothing is left, in the metric's length (sqrt(v^T S^-1 v)). Raises
    ValueError where w lies in the span of the others or nothing is left, for zero vectors, shapes that do not fit, or a metric
    that is not positive definite.
    """
    w = _finite(w, "w", 1)
    others = _finite(np.atleast_2d(others), "others", 2)
    if others.shape[1] != len(w):
        raise ValueError(f"w has {len(w)} values and others have {others.shape[1]}")
    length = np.linalg.norm(others, axis=1)
    if not (w.any() and length.all()):
        raise ValueError("w or one of the others is the zero vector, which is no direction")
    # an orthonormal basis of the span: duplicates fall out, and no system as ill-conditioned as the others has to be solved
    _, singular, rows = np.linalg.svd(others / length[:, None], full_matrices=False)
    basis = rows[singular > _RANK * singular[0]]  # (R, D)
    lift = basis.T if metric is None else _lift(metric, basis)  # (D, R)
    left = w - lift @ (basis @ w)
    pair = np.column_stack([w, left])
    before, after = np.sqrt((pair * (pair if metric is None else _solve(np.asarray(metric), pair))).sum(axis=0))
    outside = np.linalg.norm(w - basis.T @ (basis @ w)) / np.linalg.norm(w)
    if min(after / before, outside) < _NOTHING_LEFT:
        raise ValueError(f"nothing is left of w: it lies in the span of the {len(others)} other directions; remove fewer of them")
    return Orthogonalised(left / np.linalg.norm(left), float(after / before))


def kept_apart(names: Sequence[str]) -> dict[str, list[str]]:
    """Attribute to edit -> attributes to remove from the edit: `FIGURE_5` as far as the data have it, else the first two names,
    each removed from the other."""
    found = {name: [o for o in others if o in names] for name, others in FIGURE_5.items() if name in names}
    return {name: others for name, others in found.items() if others} or {names[0]: [names[1]], names[1]: [names[0]]}


def removals(found: Directions, removed: Mapping[str, Sequence[str]], metric: np.ndarray) -> tuple[dict[tuple[str, str], np.ndarray], pd.DataFrame]:
    """Directions of Figure 5's edits before and after removal, by (setting, edited attribute), and what is left of each.

    Settings: "plain"; "pair removed", what `removed` names; "all removed", every other attribute, left out where that is the pair;
    the last two also with ", covariance", in that metric (D, D) and from the direction seen in the data, metric @ w. The table has a
    row per removal: edit, removed, share_left in either metric, and the cosine of the two directions.
    """
    result, rows = {}, []
    for name, pair in removed.items():
        w = found[name].w
        result["plain", name] = w
        every = [o for o in found.names if o != name]
        for which, others in {"pair": pair, "all": every}.items():
            if which == "all" and set(every) == set(pair):
                continue
            readers = np.stack([found[o].w for o in others])
            euclidean, covariant = orthogonalise(w, readers), orthogonalise(metric @ w, readers, metric)
            result[f"{which} removed", name], result[f"{which} removed, covariance", name] = euclidean.w, covariant.w
            shares = {"Euclidean": euclidean.share_left, "covariance": covariant.share_left, "cosine of the two": euclidean.w @ covariant.w}
            rows.append({"edit": name, "removed": ", ".join(pair) if which == "pair" else f"all {len(every)} others"} | shares)
    return result, pd.DataFrame(rows)


def _lift(metric: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """S B^T (B S B^T)^-1 (D, R): the change of the latents that goes with a unit change of each reading B z (R,)."""
    metric, d = _finite(metric, "metric", 2), basis.shape[1]
    if metric.shape != (d, d):
        raise ValueError(f"metric must be a covariance ({d}, {d}), got shape {metric.shape}")
    along = metric @ basis.T
    if not np.allclose(along, (basis @ metric).T, rtol=1e-6, atol=1e-6 * np.abs(along).max()):
        raise ValueError("metric is not symmetric: pass a covariance, see editing.covariance")
    return _solve(basis @ along, along.T).T


# --- what an edit does -----------------------------------------------------------------------------------------------


def mean_response(
    before: np.ndarray,
    after: np.ndarray,
    strengths: Sequence[float],
    factors: Sequence[str],
    bootstrap: int = 1000,
    seed: int = 42,
) -> pd.DataFrame:
    """Mean change of every factor at every strength, the curves of a dose response.

    before (N, F), after (S, N, F): readings of the oracle in standard deviations of each factor. Tidy table, one row per factor
    and strength: factor, strength, value, low, high, n. Intervals are percentile bootstraps over faces, a face's readings at all
    strengths moving together; for one N and seed all functions here use the same resamples.
    """
    change, strengths = _check_change(before, after, strengths, factors)
    mean, draws = _bootstrap_means(change, bootstrap, seed, axis=1)  # (S, F), (B, S, F)
    low, high = percentile_interval(draws)
    return pd.concat(
        [
            pd.DataFrame({"factor": name, "strength": strengths, "value": mean[:, f], "low": low[:, f], "high": high[:, f]})
            for f, name in enumerate(factors)
        ],
        ignore_index=True,
    ).assign(n=change.shape[1])


def _check_change(
    before: np.ndarray, after: np.ndarray, strengths: Sequence[float], factors: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """after - before (S, N, F) and strengths (S,), both in rising order of strength."""
    before, after, strengths = _finite(before, "before", 2), _finite(after, "after", 3), _finite(strengths, "strengths", 1)
    if after.shape[1:] != before.shape or len(strengths) != len(after):
        raise ValueError(
            f"before (N, F) {before.shape}, after (S, N, F) {after.shape} and {len(strengths)} strengths must agree in S, N and F"
        )
    _check_factors(factors, before.shape[1])
    if len(np.unique(strengths)) < len(strengths):
        raise ValueError(f"strengths must differ, got {strengths.tolist()}")
    order = np.argsort(strengths)
    return after[order] - before, strengths[order]


def _check_factors(factors: Sequence[str], count: int) -> None:
    if isinstance(factors, str) or len(factors) != count or len(set(factors)) != count:
        raise ValueError(f"factors must be {count} different names, one per column of the readings, got {factors}")


def _bootstrap_means(values: np.ndarray, bootstrap: int, seed: int, axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the faces on `axis` and its bootstrap draws (bootstrap, ...); (seed, N) alone decides the resamples."""
    values = np.moveaxis(values, axis, 0)
    n = len(values)
    rows = np.random.default_rng((seed, n)).integers(0, n, size=(bootstrap, n)) + n * np.arange(bootstrap)[:, None]
    weights = np.bincount(rows.ravel(), minlength=rows.size).reshape(rows.shape) / n
    return values.mean(axis=0), (weights @ values.reshape(n, -1)).reshape(bootstrap, *values.shape[1:])


def dose_response(
    before: np.ndarray,
    after: np.ndarray,
    strengths: Sequence[float],
    factors: Sequence[str],
    bootstrap: int = 1000,
    seed: int = 42,
) -> pd.DataFrame:
    """How regularly every factor follows the strength of an edit; at least three strengths.

    before (N, F), after (S, N, F) as in `mean_response`. Tidy table, one row per factor and measure: factor, measure, value, low,
    high, n. Measures:
    "slope": of the least-squares line through the mean response, in standard deviations of the factor per unit of strength.
    "R^2": of that line; NaN for a factor that does not move at all.
    "kendall": mean over faces of Kendall's tau-a between strength and reading, from -1 (every reading falls) to 1 (rises).
    "rising": share of faces whose reading rises at every step from one strength to the next.
    For readings that are noise alone tau is 0 on average and the share 1 / S!. Intervals are bootstraps over faces, Wilson's for
    the share.
    """
    change, strengths = _check_change(before, after, strengths, factors)
    if len(strengths) < 3:
        raise ValueError(f"a dose response needs at least three strengths, got {len(strengths)}")
    mean, draws = _bootstrap_means(change, bootstrap, seed, axis=1)  # (S, F), (B, S, F)
    slope, r2 = _line(mean, strengths)
    slope_draws, r2_draws = _line(draws, strengths)
    tau, tau_draws = _bootstrap_means(_kendall(change), bootstrap, seed)
    rising = (np.diff(change, axis=0) > 0).all(axis=0)  # (N, F)
    rows = []
    for f, name in enumerate(factors):
        found = {
            "slope": (slope[f], slope_draws[:, f]),
            "R^2": (r2[f], r2_draws[:, f]),
            "kendall": (tau[f], tau_draws[:, f]),
        }
        estimates = {measure: _estimate(value, sample, change.shape[1]) for measure, (value, sample) in found.items()}
        estimates["rising"] = proportion(rising[:, f])
        rows += [_row(estimate, factor=name, measure=measure) for measure, estimate in estimates.items()]
    return pd.DataFrame(rows)


def _line(response: np.ndarray, strengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope and R^2 (..., F) of a line with intercept through responses (..., S, F); R^2 is NaN for a constant response."""
    x = strengths - strengths.mean()
    y = response - response.mean(axis=-2, keepdims=True)
    slope = np.einsum("s,...sf->...f", x, y) / (x @ x)
    with np.errstate(invalid="ignore", divide="ignore"):
        return slope, slope**2 * (x @ x) / (y**2).sum(axis=-2)


def _kendall(change: np.ndarray) -> np.ndarray:
    """Kendall's tau-a of every face and factor (N, F) over readings (S, N, F) in rising order of strength."""
    pairs = list(combinations(range(len(change)), 2))
    return sum(np.sign(change[b] - change[a]) for a, b in pairs) / len(pairs)


def _estimate(value: float, draws: np.ndarray, n: int) -> Estimate:
    low, high = percentile_interval(draws)
    return Estimate(float(value), float(low), float(high), n)


def _row(estimate: Estimate, **columns) -> dict:
    return columns | {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}


def success(
    before: np.ndarray, after: np.ndarray, strengths: Sequence[float], threshold: float, sign: Literal[1, -1] = 1
) -> pd.DataFrame:
    """Share of faces that cross the threshold of the edited attribute when pushed towards it, at every strength.

    before (N,), after (S, N): readings of the attribute's factor (or scores of a classifier); a face has the attribute where
    sign * reading > sign * threshold. Only faces that start on the other side count: for a positive strength those without the
    attribute, for a negative one those with it. Strength 0 counts as a push towards the attribute that goes nowhere: what crosses
    there does so by errors of reconstruction and reading alone. Table: strength, value, low, high, n, with Wilson intervals; NaN
    with n = 0 where no face starts on the other side.
    """
    before, after, strengths = _finite(before, "before", 1), _finite(after, "after", 2), _finite(strengths, "strengths", 1)
    if after.shape != (len(strengths), len(before)):
        raise ValueError(f"after must be (S, N) = {(len(strengths), len(before))}, got {after.shape}")
    if sign not in (1, -1):
        raise ValueError(f"sign is 1 (attribute above the threshold) or -1 (below), got {sign}")
    had, has = sign * before > sign * threshold, sign * after > sign * threshold
    rows = []
    for strength, now in zip(strengths, has, strict=True):
        crossed = (now & ~had)[~had] if strength >= 0 else (~now & had)[had]
        share = proportion(crossed) if len(crossed) else Estimate(np.nan, np.nan, np.nan, 0)
        rows.append(_row(share, strength=float(strength)))
    return pd.DataFrame(rows)


def collateral(
    before: np.ndarray,
    after: Mapping[str, np.ndarray],
    targets: Mapping[str, str],
    factors: Sequence[str],
    correlation: np.ndarray,
    bootstrap: int = 1000,
    seed: int = 42,
) -> pd.DataFrame:
    """What edits of several attributes do to every factor at one strength, and what the data's own correlation would have it do.

    before (N, F): readings in standard deviations of each factor; after: edited attribute -> (N, F); targets: edited attribute ->
    its factor; correlation (F, F): of the factors over the data, best read from real images by the same oracle. Tidy table, one
    row per edited attribute, factor and measure: edited, factor, target (bool), measure, value, low, high, n. Measures, all means
    over faces in standard deviations:
    "signed": change. "absolute": |change|, which also holds the scatter from face to face and the oracle's noise.
    "expected": correlation[target, factor] * change of the target: what an edit does that follows the data's regression.
    "excess": signed - expected, paired by face. An edit that is as entangled as the data has excess 0; a clean one has signed 0;
    one that is more entangled than the data has an excess with the sign of "expected".
    Intervals are bootstraps over faces; the correlation is taken as known. A matrix for a heat map:
    table[table.measure == "signed"].pivot(index="edited", columns="factor", values="value").
    """
    change, target, correlation = _check_edits(before, after, targets, factors, correlation)
    tables = []
    for name, moved in change.items():
        t = target[name]
        expected = moved[:, [t]] * correlation[t]
        values = {"signed": moved, "absolute": np.abs(moved), "expected": expected, "excess": moved - expected}
        mean, draws = _bootstrap_means(np.stack(list(values.values()), axis=1), bootstrap, seed)  # (4, F), (B, 4, F)
        low, high = percentile_interval(draws)
        columns = {"edited": name, "factor": list(factors), "target": np.arange(len(factors)) == t}
        for m, measure in enumerate(values):
            found = {"measure": measure, "value": mean[m], "low": low[m], "high": high[m], "n": len(moved)}
            tables.append(pd.DataFrame(columns | found))
    return pd.concat(tables, ignore_index=True)


def _check_edits(
    before: np.ndarray,
    after: Mapping[str, np.ndarray],
    targets: Mapping[str, str],
    factors: Sequence[str],
    correlation: np.ndarray,
) -> tuple[dict[str, np.ndarray], dict[str, int], np.ndarray]:
    """Changes (N, F) and column of the target by edited attribute, and the correlation."""
    before, factors = _finite(before, "before", 2), list(factors)
    _check_factors(factors, before.shape[1])
    correlation = _finite(correlation, "correlation", 2)
    if correlation.shape != (len(factors), len(factors)) or not np.allclose(np.diag(correlation), 1):
        raise ValueError(f"correlation must be ({len(factors)}, {len(factors)}) with 1 on the diagonal, got {correlation.shape}")
    if not after:
        raise ValueError("after is empty: expected edited attribute -> readings (N, F)")
    change, target = {}, {}
    for name, readings in after.items():
        readings = _finite(readings, f"after['{name}']", 2)
        if readings.shape != before.shape:
            raise ValueError(f"after['{name}'] is {readings.shape} and before is {before.shape}: they must agree")
        if targets.get(name) not in factors:
            raise ValueError(f"targets['{name}'] is {targets.get(name)!r}, expected one of the factors: {', '.join(factors)}")
        change[name], target[name] = readings - before, factors.index(targets[name])
    return change, target, correlation


def collateral_summary(
    before: np.ndarray,
    after: Mapping[str, np.ndarray],
    targets: Mapping[str, str],
    factors: Sequence[str],
    correlation: np.ndarray,
    others: Sequence[str] | None = None,
    bootstrap: int = 1000,
    seed: int = 42,
) -> pd.DataFrame:
    """`collateral` in few numbers for each edited attribute and for all together: edited, measure, value, low, high, n.

    others: the factors that should stay, all but the target unless given; with the nuisance factors this is the nuisance drift.
    Measures of an edited attribute:
    "target": mean change of the target. "collateral": mean |change| over the others and the faces.
    "ratio": collateral per unit of change of the target, collateral / |target|. It holds the oracle's noise: compare it with that
    of a random direction. "expected ratio": of an edit that follows the data's correlation without any scatter, the mean
    |correlation| of target and others.
    "entanglement": slope, through the origin, of the others' mean changes on those that the data's correlation predicts
    ("expected" of `collateral`): 0 for a clean edit, 1 for one as entangled as the data, above 1 for more. The oracle's noise
    averages out. NaN where these correlations are all 0.
    Rows with edited = "all" pool the edits: means of |target| and collateral and their ratio, and one slope through all pairs of
    edit and factor, so that an edit without effect, whose own ratio is anything, hardly counts.
    """
    values, draws, n = _summaries(before, after, targets, factors, correlation, others, bootstrap, seed)
    return pd.DataFrame([_row(_estimate(values[key], draws[key], n), edited=key[0], measure=key[1]) for key in values])


def collateral_difference(
    before: np.ndarray,
    after: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    targets: Mapping[str, str],
    factors: Sequence[str],
    correlation: np.ndarray,
    others: Sequence[str] | None = None,
    bootstrap: int = 1000,
    seed: int = 42,
) -> pd.DataFrame:
    """`collateral_summary` of the edits `after` minus that of `reference`, other edits of the same attributes and faces.

    For example orthogonalised minus plain; same columns and measures. The bootstrap is paired by face, so the intervals are much
    narrower than those of two separate summaries.
    """
    if set(after) != set(reference):
        raise ValueError(f"after edits {', '.join(after)} and reference {', '.join(reference)}: expected the same attributes")
    values, draws, n = _summaries(before, after, targets, factors, correlation, others, bootstrap, seed)
    base, base_draws, _ = _summaries(before, reference, targets, factors, correlation, others, bootstrap, seed)
    differences = {key: _estimate(values[key] - base[key], draws[key] - base_draws[key], n) for key in values}
    return pd.DataFrame([_row(estimate, edited=key[0], measure=key[1]) for key, estimate in differences.items()])


def _summaries(
    before: np.ndarray,
    after: Mapping[str, np.ndarray],
    targets: Mapping[str, str],
    factors: Sequence[str],
    correlation: np.ndarray,
    others: Sequence[str] | None,
    bootstrap: int,
    seed: int,
) -> tuple[dict, dict, int]:
    """Values and draws (B,) by (edited attribute, measure), and the number of faces."""
    change, target, correlation = _check_edits(before, after, targets, factors, correlation)
    others = list(factors if others is None else others)
    unknown = [name for name in others if name not in set(factors)]
    if unknown:
        raise ValueError(f"others must name some of the factors, unknown: {', '.join(unknown)}")
    parts = []
    for name, moved in change.items():
        t = target[name]
        kept = [f for f, factor in enumerate(factors) if f != t and factor in others]
        if not kept:
            raise ValueError(f"no factor is left beside the target of '{name}': name others that should stay")
        absolute = np.abs(moved[:, kept]).mean(axis=1, keepdims=True)
        means = _bootstrap_means(np.hstack([moved, absolute]), bootstrap, seed)  # (F + 1,), (B, F + 1)
        parts.append([_collateral_parts(mean, t, kept, correlation[t]) for mean in means])
    values, draws = {}, {}
    for found, edits in zip((values, draws), zip(*parts, strict=True), strict=True):
        for name, edit_parts in zip(change, edits, strict=True):
            found.update({(name, measure): value for measure, value in _collateral_measures(edit_parts).items()})
        pooled = np.stack(edits)  # (A, 5, ...)
        pooled[:, 0] = np.abs(pooled[:, 0])
        found.update({("all", measure): value for measure, value in _collateral_measures(pooled.mean(axis=0)).items()})
    return values, draws, len(before)


def _collateral_parts(mean: np.ndarray, t: int, kept: list[int], correlation: np.ndarray) -> np.ndarray:
    """Change of the target, collateral, expected collateral, and the two sums of the slope, (5, ...), which pool by averaging.

    mean (..., F + 1): mean changes, and in the last column the mean |change| of the others; correlation (F,) with the target.
    """
    target, expected = mean[..., t], mean[..., [t]] * correlation[kept]
    others = mean[..., kept]
    sums = (others * expected).sum(axis=-1), (expected**2).sum(axis=-1)
    return np.stack([target, mean[..., -1], np.abs(expected).mean(axis=-1), *sums])


def _collateral_measures(parts: np.ndarray) -> dict[str, np.ndarray]:
    target, collateral, expected, product, square = parts
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "target": target,
            "collateral": collateral,
            "ratio": collateral / np.abs(target),
            "expected ratio": expected / np.abs(target),
            "entanglement": product / square,
        }


def cost_at_effect(
    measured: Sequence[tuple[np.ndarray, np.ndarray]], level: float, rival: Sequence[tuple[np.ndarray, np.ndarray]] = (),
    bootstrap: int = 1000, seed: int = 42,
) -> Estimate:  # fmt: skip
    """What an edit costs at the strength at which its mean effect first reaches `level`: the fair comparison of methods whose
    strengths have no common unit.

    measured: for each attribute, effect (S, N) and cost (S, N) of N faces at S rising strengths, in any units; between two
    strengths, and from the unedited face (effect and cost 0) to the first, means are interpolated linearly. Attributes are
    averaged. rival: another method's, whose cost is subtracted; face i of an attribute is the same face there, so both are drawn
    together. The interval is a bootstrap over faces. The value is infinite where the effect is not reached, and NaN where neither
    method reaches it. Raises ValueError for shapes that do not fit or numbers that are not finite.
    """
    if not measured or (rival and len(rival) != len(measured)):
        raise ValueError(f"{len(measured)} attributes, and {len(rival)} of the rival; expected at least one, and as many")
    own, other = (np.zeros(1 + bootstrap) for _ in range(2))
    for k, (effect, cost) in enumerate(measured):
        weights = bootstrap_weights(np.shape(effect)[-1], bootstrap, seed + k)
        own += _cost_draws(effect, cost, level, weights) / len(measured)
        if rival:
            other += _cost_draws(*rival[k], level, weights) / len(measured)
    with np.errstate(invalid="ignore"):
        draws = own - other
    count, tail = sum(np.shape(effect)[-1] for effect, _ in measured), (1 - LEVEL) / 2
    if np.isnan(draws[0]):
        return Estimate(np.nan, np.nan, np.nan, count)
    low, high = np.nanquantile(draws[1:], [tail, 1 - tail], method="nearest")  # no interpolation: it makes NaN of two infinities
    return Estimate(float(draws[0]), float(low), float(high), count)


def _cost_draws(effect: np.ndarray, cost: np.ndarray, level: float, weights: np.ndarray) -> np.ndarray:
    """Cost (B,) at the level for every line of weights (B, N); infinite where the mean effect stays below it."""
    effect, cost = _finite(effect, "effect", 2), _finite(cost, "cost", 2)
    if effect.shape != cost.shape or effect.shape[1] != weights.shape[1]:
        raise ValueError(f"effect and cost must be (S, {weights.shape[1]}), got {effect.shape} and {cost.shape}")
    rising, price = (np.concatenate([np.zeros((len(weights), 1)), weights @ m.T / weights.shape[1]], axis=1) for m in (effect, cost))
    reached = rising >= level  # (B, 1 + S)
    after = np.maximum(reached.argmax(axis=1), 1)
    (e0, e1), (c0, c1) = ([np.take_along_axis(m, (after - k)[:, None], 1)[:, 0] for k in (1, 0)] for m in (rising, price))
    share = (level - e0) / np.where(e1 > e0, e1 - e0, 1.0)
    return np.where(reached.any(axis=1), c0 + share * (c1 - c0), np.inf)


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio (N,) in dB of pictures a and b (N, ...), both uint8 or both float in [-1, 1].

    The reconstruction error of an edit at zero strength; inf for equal pictures. Raises ValueError for shapes that differ, mixed
    types or values outside the range.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.ndim < 2 or a.size == 0:
        raise ValueError(f"psnr needs two batches of pictures of one shape (N, ...), got {a.shape} and {b.shape}")
    if a.dtype == b.dtype == np.uint8:
        peak = 255.0
    elif a.dtype.kind == b.dtype.kind == "f" and (np.abs(a) <= 1).all() and (np.abs(b) <= 1).all():
        peak = 2.0
    else:
        raise ValueError(f"psnr needs uint8, or floats within [-1, 1] and no NaN, on both sides; got {a.dtype} and {b.dtype}")
    error = ((a.astype(np.float64) - b.astype(np.float64)) ** 2).reshape(len(a), -1).mean(axis=1)
    with np.errstate(divide="ignore"):
        return 10 * np.log10(peak**2 / error)


def embedding_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine distance (N,), 0 to 2, between rows of two arrays of embeddings (N, D), as they are (not centred).

    Raises ValueError for shapes that differ, NaN or an embedding of length zero.
    """
    a, b = _finite(a, "a", 2), _finite(b, "b", 2)
    if a.shape != b.shape:
        raise ValueError(f"embeddings must have one shape, got {a.shape} and {b.shape}")
    length = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    if not (length[0].all() and length[1].all()):
        raise ValueError("an embedding is the zero vector and has no direction")
    a, b = a / length[0][:, None], b / length[1][:, None]
    return 0.5 * ((a - b) ** 2).sum(axis=1)  # 1 - cosine, exact for nearly equal rows too


# --- engineered spurious correlation ---------------------------------------------------------------------------------


def resample_with_correlation(
    y_target: np.ndarray, y_confounder: np.ndarray, rho: float, size: int, seed: int = 42
) -> np.ndarray:
    """Rows of a training set in which two attributes have a known phi correlation rho and are each present in half of the rows.

    y_target, y_confounder (N,) bool; rho from -1 to 1; size even. Rows (size,) are sorted and drawn without replacement:
    size * (1 + rho) / 4, rounded, from each of the two cells where the attributes agree, so that phi is rho to within 2 / size.
    Raises ValueError when a cell has too few rows, naming the largest size that fits (`largest_resample`).
    """
    y_target, y_confounder = _check_pair(y_target, y_confounder, rho)
    if size < 2 or size % 2:
        raise ValueError(f"size must be even and at least 2 for balanced attributes, got {size}")
    agree = round(size * (1 + rho) / 4)
    rng = np.random.default_rng((seed, size))
    rows = []
    for target, confounder in ((True, True), (True, False), (False, True), (False, False)):
        cell = np.flatnonzero((y_target == target) & (y_confounder == confounder))
        wanted = agree if target == confounder else size // 2 - agree
        if wanted > len(cell):
            raise ValueError(
                f"rho = {rho} and size = {size} need {wanted} rows with target {target} and confounder {confounder}, there are "
                f"{len(cell)}; the largest size at this rho is {largest_resample(y_target, y_confounder, rho)}"
            )
        rows.append(rng.choice(cell, wanted, replace=False))
    return np.sort(np.concatenate(rows))


def largest_resample(y_target: np.ndarray, y_confounder: np.ndarray, rho: float) -> int:
    """Largest even size for which `resample_with_correlation` finds enough rows at this rho; 0 when there is none.

    Sizes that compare several rho fairly are the smallest of these.
    """
    y_target, y_confounder = _check_pair(y_target, y_confounder, rho)
    same = min((y_target & y_confounder).sum(), (~y_target & ~y_confounder).sum())
    different = min((y_target & ~y_confounder).sum(), (~y_target & y_confounder).sum())
    for half in range(len(y_target) // 2, 0, -1):
        agree = round(half * (1 + rho) / 2)
        if agree <= same and half - agree <= different:
            return 2 * half
    return 0


def _check_pair(y_target: np.ndarray, y_confounder: np.ndarray, rho: float) -> tuple[np.ndarray, np.ndarray]:
    y_target, y_confounder = np.asarray(y_target), np.asarray(y_confounder)
    if y_target.ndim != 1 or y_target.shape != y_confounder.shape or not np.isin([y_target, y_confounder], (0, 1)).all():
        raise ValueError(f"y_target and y_confounder must be (N,) with 0 and 1, got {y_target.shape} and {y_confounder.shape}")
    if not -1 <= rho <= 1:
        raise ValueError(f"rho is a correlation from -1 to 1, got {rho}")
    return y_target.astype(bool), y_confounder.astype(bool)


def biased_directions(
    X: np.ndarray, Y: np.ndarray, pair: Sequence[str], rhos: Sequence[float], C: float, seed: int = 42
) -> tuple[dict[tuple[str, float], np.ndarray], int]:
    """Directions of an attribute learned from rows in which a second one is correlated with it on purpose, and the rows of each.

    X (N, D) training latents, Y (N, 2) labels of the `pair`. Every rho gets as many rows (`resample_with_correlation`), half of which
    have each attribute. Keys are (kind, rho): "probe", logistic with that C; "probe, other removed", orthogonalised with what the
    same rows say of the second attribute, as someone would who does not know of the bias; "mean difference".
    """
    size = min(largest_resample(*Y.T, rho) for rho in rhos)
    result = {}
    for rho in rhos:
        rows = resample_with_correlation(*Y.T, rho, size, seed)
        probe = make_probe(None, C, seed=seed).fit(X[rows], Y[rows])
        first, second = directions(X[rows], Y[rows], "logistic", pair, probe=probe).w
        result["probe", rho], result["probe, other removed", rho] = first, orthogonalise(first, second).w
        result["mean difference", rho] = directions(X[rows], Y[rows], "mean difference", pair).w[0]
    return result, size


def read_by_others(
    X: np.ndarray, Y: np.ndarray, names: Sequence[str], steps: np.ndarray, C: float, resamples: int = 100, seed: int = 42
) -> np.ndarray:
    """What probes of other images read from edits: change of every attribute's score, (1 + resamples, S, A), in standard deviations.

    In the scores that it was made with, an orthogonalised edit leaks nothing, by construction. X (N, D), Y (N, A): images that the
    edits' directions have not seen; steps (S, D): the edits, as changes of a latent. First come the probes of all rows, then those
    of bootstrap resamples; a resample in which an attribute has one class is drawn again. A resample holds two thirds of the
    images, so its probes are worse and read less of everything: the resamples' mean is moved to what the probes of all rows read, and
    only their spread counts. Raises ValueError for an attribute with one class.
    """
    X, Y = _check_training(X, Y, names)
    rng, read = np.random.default_rng((seed, len(X))), []
    for r in range(1 + resamples):
        rows = _resample(Y, rng) if r else np.arange(len(X))
        probe = make_probe(None, C, seed=seed).fit(X[rows], Y[rows])
        found = directions(X[rows], Y[rows], "logistic", names, probe=probe)
        read.append(steps @ (found.w / found.sigma[:, None]).T)
    changes = np.stack(read)
    if resamples:
        changes[1:] += changes[0] - changes[1:].mean(axis=0)
    return changes


def _resample(Y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bootstrap rows (N,) in which every attribute has both classes."""
    while True:
        rows = rng.integers(len(Y), size=len(Y))
        if (Y[rows].any(axis=0) & ~Y[rows].all(axis=0)).all():
            return rows
