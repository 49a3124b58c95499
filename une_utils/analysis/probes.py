"""Linear probes: which attributes are linearly separable in a space, and how sure we are (UNE Figure 3).

Shapes: X (N, D) latents or embeddings, Y (N, A) bool attributes, scores (N, A), names of length A. All attributes are solved
together because they share X. Each number comes with what it must be compared to: the majority baseline, permuted labels and a
bootstrap interval whose resamples are shared between attributes and spaces. Attribute names are the data sets' labels, nothing
more.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from scipy import linalg, special
from sklearn.base import BaseEstimator, clone
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from une_utils.analysis.outofcore import fit_standardised_pca
from une_utils.analysis.stats import Estimate, percentile_interval, row_counts, wilson_interval
from une_utils.stored import StoredRows

_SELECTION_ROWS = 20_000  # rows from which C is chosen at most
_CHUNK_VALUES = 4_000_000  # resampled values held at once: 32 MB of float64


def _check_features(X: np.ndarray) -> np.ndarray:
    X = np.asarray(X)
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(f"X must be (N, D) and not empty, got shape {X.shape}")
    if X.dtype not in (np.float32, np.float64):
        X = X.astype(np.float32)
    if not np.isfinite(X).all():
        raise ValueError("X contains NaN or inf")
    return X


def _check_labels(Y: np.ndarray, n: int, both_classes: bool = True) -> np.ndarray:
    """Labels as bool (N, A); ValueError for another shape, values beside 0 and 1, or (on request) columns with one class."""
    Y = np.asarray(Y)
    if Y.ndim != 2:
        raise ValueError(f"Y must be (N, A), one column per attribute, got shape {Y.shape}")
    if len(Y) != n:
        raise ValueError(f"X has {n} rows and Y has {len(Y)}")
    if Y.dtype != bool:
        if not np.isin(Y, (0, 1)).all():
            raise ValueError("Y must be bool or hold 0 and 1 only")
        Y = Y.astype(bool)
    if both_classes:
        single = np.flatnonzero(Y.all(axis=0) | ~Y.any(axis=0))
        if len(single):
            raise ValueError(f"attributes with a single class cannot be fitted, columns {single.tolist()}")
    return Y


class _LinearScores(BaseEstimator):
    """What every fitted linear probe does with coef_ (A, D) and intercept_ (A,)."""

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """Scores (N, A), X @ coef_.T + intercept_; positive means the attribute is predicted."""
        X = _check_features(X)
        if X.shape[1] != self.coef_.shape[1]:
            raise ValueError(f"X has {X.shape[1]} features, the probe was fitted on {self.coef_.shape[1]}")
        return X @ self.coef_.T + self.intercept_

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Probability of each attribute (N, A): one number per attribute, unlike scikit-learn's pair per class."""
        return special.expit(self.decision_function(X))

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predicted attributes (N, A) bool."""
        return self.decision_function(X) > 0


class RidgeLogistic(_LinearScores):
    """L2-regularised logistic regression of all attributes at once, the optimum of scikit-learn's LogisticRegression(C=C).

    Minimises 1/2 |w|^2 + C sum_i log(1 + exp(-y_i (w . x_i + b))) per attribute with a free intercept (UNE Figure 3; the
    official code runs one saga solver per attribute, C = 1, 500 passes). C: a number or one per attribute (A,), positive. tol
    bounds the estimated gap of the loss to its minimum relative to the loss. Attributes after `fit`: coef_ (A, D) and
    intercept_ (A,) float64, n_iter_ (A,) Newton steps, converged_ (A,) bool, loss_ (A,) the objective above.

    How: the penalty does not see a rotation of the features, so they are centred and looked at along their principal axes,
    which all attributes share. There every Hessian is close to diagonal, and Newton-CG with that diagonal as preconditioner
    needs few products with X however ill-conditioned the features are. Losses and steps are float64; products with X are float32,
    whose rounding moves the optimum's loss by some 1e-11 of it, unless axes that matter would drown in that rounding.
    """

    def __init__(self, C: float | np.ndarray = 1.0, tol: float = 1e-9, max_iter: int = 100):
        self.C = C
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, X: np.ndarray, Y: np.ndarray) -> "RidgeLogistic":
        """X (N, D) finite, Y (N, A) bool with both classes in each column; ValueError otherwise. N < D is fine."""
        X = _check_features(X)
        Y = _check_labels(Y, len(X))
        C = np.broadcast_to(np.asarray(self.C, dtype=np.float64), Y.shape[1:])
        if not (np.isfinite(C).all() and (C > 0).all()):
            raise ValueError("C must be positive and finite")
        mean = X.mean(axis=0, dtype=np.float64).astype(X.dtype)
        for precision in (np.float32, np.float64):
            rows, axes, power, back = _principal_axes(np.subtract(X, mean).astype(precision, copy=False))
            if _resolved(power, precision, C.max() * len(X)):
                break
        weights, bias, self.loss_, self.n_iter_, self.converged_ = _newton_cg(rows, axes, power, Y, C, self.tol, self.max_iter)
        self.coef_ = (back @ weights).T
        self.intercept_ = bias - self.coef_ @ mean.astype(np.float64)
        return self


def _principal_axes(centred: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows (N, M), their principal axes (M, K), K = min(N, D), both of the type of the centred rows (N, D); the rows' mean square
    along each axis (K,); and what brings weights on the axes back to features (D, K) float64.

    The rows are the given ones, M = D; N < D rows are first written in an orthonormal basis of their span, M = N: an optimum of a
    penalised fit lies there, so nothing is lost (and the dual form is saved). They are not rotated, which would cost a product
    with all of them: the axes are applied to weights and gradients instead. Axes that are a little off cost steps, not accuracy.
    """
    n, d = centred.shape
    span, precision = None, centred.dtype
    if n < d:
        span, triangle = linalg.qr(centred.T.astype(np.float64), mode="economic")  # (D, N), (N, N): orthonormal even for repeated rows
        centred = np.ascontiguousarray(triangle.T, dtype=precision)
    squares, axes = linalg.eigh((centred.T @ centred).astype(np.float64))
    return centred, axes.astype(precision), np.maximum(squares, 0) / n, axes if span is None else span @ axes


def _resolved(power: np.ndarray, precision: type, weight: float) -> bool:
    """Whether rows of that precision hold every axis that matters to at least four digits.

    An axis matters where the data outweigh the penalty, weight * power / 4 > 1 (a quarter is the largest curvature of the loss);
    rows are rounded relative to their largest axis.
    """
    counts = power[weight * power > 4]
    return not len(counts) or counts.min() ** 0.5 > 1e4 * np.finfo(precision).eps * power.max() ** 0.5


def _newton_cg(
    rows: np.ndarray, axes: np.ndarray, power: np.ndarray, Y: np.ndarray, C: np.ndarray, tol: float, max_iter: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Weights (K, A) on the axes, and biases, losses, Newton steps and convergence (A,) each, for labels Y (N, A).

    Batched Newton-CG: each product with the rows serves all attributes that are still moving. Steps are halved until the loss
    falls enough (Armijo), which needs no product because scores are linear along a step.
    """
    a = Y.shape[1]
    sign = np.where(Y, 1.0, -1.0)
    theta = np.zeros((len(power) + 1, a))  # last row: biases
    # the best constant model: without it rare attributes spend their first steps on the bias
    theta[-1] = special.logit(Y.mean(axis=0))
    scores = np.tile(theta[-1], (len(Y), 1))  # (N, A)
    loss = C * _log_loss(scores * sign)
    steps = np.zeros(a, dtype=int)
    converged = np.zeros(a, dtype=bool)
    moving = np.arange(a)
    for _ in range(max_iter):
        c = C[moving]
        probability = special.expit(scores[:, moving])
        slope = c * (probability - Y[:, moving])  # derivative of the loss by the scores (N, M)
        curvature = c * probability * (1 - probability)
        gradient = np.vstack([_onto_axes(rows, axes, slope) + theta[:-1, moving], slope.sum(axis=0)])
        total = curvature.sum(axis=0)
        diagonal = np.vstack([1 + power[:, None] * total, total + np.finfo(float).tiny])
        open_ = 0.5 * (gradient**2 / diagonal).sum(axis=0) > 0.1 * tol * loss[moving]  # else at the minimum, ten times over: no step is needed
        converged[moving[~open_]] = True
        moving, curvature, gradient, diagonal = moving[open_], curvature[:, open_], gradient[:, open_], diagonal[:, open_]
        if not len(moving):
            break
        step, score_step = _conjugate_gradient(rows, axes, curvature.astype(rows.dtype), gradient, diagonal)
        decrease = -(gradient * step).sum(axis=0)  # squared Newton decrement; half of it estimates the gap to the minimum
        done = 0.5 * decrease <= tol * loss[moving]
        converged[moving[done]] = True
        moving, step, score_step, decrease = moving[~done], step[:, ~done], score_step[:, ~done], decrease[~done]
        if not len(moving):
            break
        new_theta, new_scores, new_loss, stuck = _line_search(
            theta[:, moving], scores[:, moving], loss[moving], step, score_step, decrease, sign[:, moving], C[moving]
        )
        theta[:, moving], scores[:, moving], loss[moving] = new_theta, new_scores, new_loss
        steps[moving] += 1
        moving = moving[~stuck]
        if not len(moving):
            break
    return theta[:-1], theta[-1], loss, steps, converged


def _along_axes(rows: np.ndarray, axes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Scores (N, A), of the rows' type, of weights (K, A) on the axes."""
    return rows @ (axes @ weights.astype(rows.dtype))


def _onto_axes(rows: np.ndarray, axes: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """The transpose of `_along_axes`: (N, A) -> (K, A) float64. Slopes are scaled first, since float32 has a smallest number."""
    scale = np.abs(slope).max(axis=0) + np.finfo(float).tiny
    return (axes.T @ (rows.T @ (slope / scale).astype(rows.dtype))).astype(np.float64) * scale


def _log_loss(margins: np.ndarray) -> np.ndarray:
    """Sum over rows of log(1 + exp(-margin)), (N, A) -> (A,), without overflow."""
    return (np.log1p(np.exp(-np.abs(margins))) - np.minimum(margins, 0)).sum(axis=0)  # a third of the time of logaddexp


def _conjugate_gradient(
    rows: np.ndarray, axes: np.ndarray, curvature: np.ndarray, gradient: np.ndarray, diagonal: np.ndarray, limit: int = 50, forcing: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    """Newton steps (K + 1, M) of M attributes and the scores (N, M) that they add: H step = -gradient to a relative residual
    `forcing` in the preconditioner's norm.

    H v = (v_w + Z^T (curvature * s), sum(curvature * s)) with s = Z v_w + v_b and Z the rows along the axes. Products are
    of the rows' type, the rest float64. An attribute that is solved stays where it is while the others go on.
    """
    step, added = np.zeros_like(gradient), np.zeros((len(rows), gradient.shape[1]), dtype=rows.dtype)
    residual = -gradient
    preconditioned = residual / diagonal
    direction = preconditioned.copy()
    norm = (residual * preconditioned).sum(axis=0)
    target = forcing**2 * norm
    for _ in range(limit):
        active = norm > target
        if not active.any():
            break
        # products in float32 are made scale-free: a tiny direction would otherwise underflow
        scale = np.abs(direction).max(axis=0) + np.finfo(float).tiny
        unit = direction / scale
        scores = _along_axes(rows, axes, unit[:-1]) + unit[-1].astype(rows.dtype)
        weighted = curvature * scores
        product = np.vstack([axes.T @ (rows.T @ weighted), weighted.sum(axis=0)]).astype(np.float64) * scale
        product[:-1] += direction[:-1]
        bend = (direction * product).sum(axis=0)
        active &= bend > 0
        alpha = np.where(active, norm / np.where(active, bend, 1.0), 0.0)
        step += alpha * direction
        added += scores * (alpha * scale).astype(rows.dtype)
        residual -= alpha * product
        preconditioned = residual / diagonal
        new_norm = (residual * preconditioned).sum(axis=0)
        direction = np.where(active, preconditioned + new_norm / np.where(norm > 0, norm, 1.0) * direction, direction)
        norm = np.where(active, new_norm, 0.0)
    return step, added


def _line_search(theta, scores, loss, step, score_step, decrease, sign, c, halvings: int = 30):
    """Halve each attribute's step until the loss falls by 1e-4 of what the slope promises; one that cannot is stuck and stays."""
    length = np.ones(len(loss))
    accepted = np.zeros(len(loss), dtype=bool)
    new_loss = loss.copy()
    for _ in range(halvings):
        open_ = np.flatnonzero(~accepted)
        trial = theta[:-1, open_] + length[open_] * step[:-1, open_]
        margins = (scores[:, open_] + length[open_] * score_step[:, open_]) * sign[:, open_]
        value = 0.5 * (trial**2).sum(axis=0) + c[open_] * _log_loss(margins)
        good = value <= loss[open_] - 1e-4 * length[open_] * decrease[open_]
        new_loss[open_[good]] = value[good]
        accepted[open_[good]] = True
        if accepted.all():
            break
        length[open_[~good]] /= 2
    length = np.where(accepted, length, 0.0)
    return theta + length * step, scores + length * score_step, new_loss, ~accepted


class NearestMean(_LinearScores):
    """Nearest class mean with a prior: linear discriminant analysis with the identity as covariance ("lda" in the official code).

    score = x . (m1 - m0) - (|m1|^2 - |m0|^2) / 2 + log(p1 / p0), with means m and shares p of the two classes in the training
    rows.
    """

    def fit(self, X: np.ndarray, Y: np.ndarray) -> "NearestMean":
        """X (N, D) finite, Y (N, A) bool with both classes in each column; ValueError otherwise."""
        X = _check_features(X)
        Y = _check_labels(Y, len(X))
        count = Y.sum(axis=0)[:, None]  # (A, 1)
        total = X.sum(axis=0, dtype=np.float64)
        sums = Y.T.astype(np.float64) @ X
        positive, negative = sums / count, (total - sums) / (len(X) - count)
        self.coef_ = positive - negative
        prior = special.logit(count[:, 0] / len(X))
        self.intercept_ = prior - 0.5 * ((positive**2).sum(axis=1) - (negative**2).sum(axis=1))
        return self


class Probe(BaseEstimator):
    """Standardise -> PCA (optional) -> standardise -> linear classifier, all fitted on the training rows; see `make_probe`.

    X may be `StoredRows` when there is a PCA: its axes then come from the scatter matrix (`outofcore.fit_standardised_pca`; the
    PCA of arrays in memory may be scikit-learn's randomised one), the rows are read three times, and memory is that of the scatter
    matrix or, later, of the N x n_components features, 16 bytes each in the classifier's fit.
    """

    def __init__(self, classifier: _LinearScores, n_components: int | None = None, seed: int = 42):
        self.classifier = classifier
        self.n_components = n_components
        self.seed = seed

    def fit(self, X: np.ndarray, Y: np.ndarray) -> "Probe":
        """X (N, D), Y (N, A); fitted parts are scaler_, pca_ and component_scaler_ (None without PCA), classifier_."""
        if isinstance(X, StoredRows):
            self._fit_stored_features(X)
        else:
            self._fit_features(_check_features(X))
        self.classifier_ = clone(self.classifier).fit(self.transform(X), Y)
        return self

    def _fit_features(self, X: np.ndarray) -> None:
        self.scaler_ = StandardScaler().fit(X)
        self.pca_ = self.component_scaler_ = None
        if self.n_components is not None:
            if self.n_components > min(X.shape):
                raise ValueError(f"n_components = {self.n_components} needs that many rows and features, X is {X.shape}")
            self.pca_ = PCA(self.n_components, random_state=self.seed).fit(self.scaler_.transform(X))
            self.component_scaler_ = StandardScaler().fit(self.pca_.transform(self.scaler_.transform(X)))

    def _fit_stored_features(self, X: StoredRows) -> None:
        if self.n_components is None:
            raise ValueError(f"a probe of all {X.shape[1]:,} dimensions would hold {X.shape} values in memory; give n_components, as the paper does")
        self.scaler_, self.pca_ = fit_standardised_pca(X, self.n_components)
        self.component_scaler_ = StandardScaler()
        self.component_scaler_.mean_ = np.zeros(self.n_components)  # components are centred, their variances are known
        self.component_scaler_.var_ = self.pca_.explained_variance_ * (len(X) - 1) / len(X)
        self.component_scaler_.scale_ = np.sqrt(np.where(self.component_scaler_.var_ > 0, self.component_scaler_.var_, 1.0))
        self.component_scaler_.n_features_in_ = self.n_components

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Features the classifier sees: (N, n_components), or (N, D) without PCA."""
        if isinstance(X, StoredRows):
            features = np.empty((len(X), self.n_components or X.shape[1]), dtype=np.float32)
            for part, block in X.blocks("features"):
                features[part] = self.transform(block)
            return features
        X = self.scaler_.transform(_check_features(X))
        return X if self.pca_ is None else self.component_scaler_.transform(self.pca_.transform(X))

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """Scores (N, A)."""
        return self.classifier_.decision_function(self.transform(X))

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Probability of each attribute (N, A)."""
        return special.expit(self.decision_function(X))

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predicted attributes (N, A) bool."""
        return self.decision_function(X) > 0

    def latent_weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights in latent space, W_equiv (A, D) and b_equiv (A,) float64: decision_function(X) = X @ W_equiv.T + b_equiv."""
        W, b = self.classifier_.coef_.astype(np.float64), self.classifier_.intercept_.astype(np.float64)
        if self.pca_ is not None:
            W = W / self.component_scaler_.scale_
            b = b - W @ self.component_scaler_.mean_
            W = W @ self.pca_.components_.astype(np.float64)
            b = b - W @ self.pca_.mean_
        W = W / self.scaler_.scale_
        return W, b - W @ self.scaler_.mean_


def make_probe(
    n_components: int | None = None,
    C: float | np.ndarray = 1.0,
    method: Literal["logistic", "nearest mean"] = "logistic",
    seed: int = 42,
) -> Probe:
    """The probe of UNE Figure 3: the paper takes 500 components for noise, 310 for encoders, and C = 1.

    C (a number or one per attribute) is for "logistic" only. With all dimensions of noise the best C is far below 1: see
    `select_C`.
    """
    classifiers = {"logistic": lambda: RidgeLogistic(C), "nearest mean": NearestMean}
    if method not in classifiers:
        raise ValueError(f"unknown method {method!r}, choose one of {tuple(classifiers)}")
    return Probe(classifiers[method](), n_components, seed)


def select_C(
    X: np.ndarray,
    Y: np.ndarray,
    grid: Sequence[float] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    n_components: int | None = None,
    validation: float = 0.2,
    seed: int = 42,
) -> tuple[float, pd.DataFrame]:
    """C of the grid with the best mean AUC on a validation part of the training rows, and the table C, mean_auc.

    X (N, D), or `StoredRows` with n_components, Y (N, A): training rows only; of more than 20,000 that many are drawn, as the choice
    between powers of ten needs no more. The features are fitted once on the other rows and every (C, attribute) pair is a column of
    one batched fit. Attributes that lack a class in either part are left out; ValueError if none is left.
    """
    X = X if isinstance(X, StoredRows) else _check_features(X)
    Y = _check_labels(Y, len(X), both_classes=False)
    if not 0 < validation < 1:
        raise ValueError(f"validation is a share between 0 and 1, got {validation}")
    order = np.random.default_rng((seed, len(X))).permutation(len(X))[:_SELECTION_ROWS]
    held_out, kept = np.split(order, [max(1, round(validation * len(order)))])
    usable = _both_classes(Y[kept]) & _both_classes(Y[held_out])
    if not usable.any():
        raise ValueError("no attribute has both classes in the fitting and the validation rows")
    fit, check = Y[kept][:, usable], Y[held_out][:, usable]
    probe = make_probe(n_components, np.repeat(np.asarray(grid, dtype=float), usable.sum()), seed=seed)
    scores = probe.fit(X[kept], np.tile(fit, len(grid))).decision_function(X[held_out])
    auc = _weighted_auc(scores, np.tile(check, len(grid)), np.ones((1, len(held_out))))[0]
    table = pd.DataFrame({"C": np.asarray(grid, dtype=float), "mean_auc": auc.reshape(len(grid), -1).mean(axis=1)})
    return float(table["C"][table["mean_auc"].idxmax()]), table


def _both_classes(Y: np.ndarray) -> np.ndarray:
    return Y.any(axis=0) & ~Y.all(axis=0)


def _weighted_auc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """ROC AUC of every attribute under every row weighting: scores, labels (N, A), weights (B, N) -> (B, A).

    One sort per attribute; then the AUC is the weight of (positive, lower negative) pairs, ties counting half (Mann-Whitney).
    NaN where the weights leave one class without rows.
    """
    result = np.empty((len(weights), scores.shape[1]))
    for a in range(scores.shape[1]):
        order = np.argsort(scores[:, a], kind="stable")
        values, positive = scores[order, a], labels[order, a]
        weight = weights[:, order]
        negative_weight = np.where(positive, 0.0, weight)
        below = np.cumsum(negative_weight, axis=1)  # negatives up to and including each place
        # midrank: negatives strictly below a place's run of ties, plus half of those within the run
        first = np.searchsorted(values, values[positive], side="left")
        last = np.searchsorted(values, values[positive], side="right") - 1
        beaten = 0.5 * (below[:, last] + below[:, first] - negative_weight[:, first])
        positives = weight[:, positive]
        with np.errstate(invalid="ignore", divide="ignore"):
            result[:, a] = (positives * beaten).sum(axis=1) / (positives.sum(axis=1) * below[:, -1])
    return result


def _metrics(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and AUC (B, A) under row weights (B, N)."""
    correct = ((scores > 0) == labels).astype(np.float64)
    return weights @ correct / weights.sum(axis=1, keepdims=True), _weighted_auc(scores, labels, weights)


def _bootstrap(scores: np.ndarray, labels: np.ndarray, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and AUC (B, A) of bootstrap resamples of the rows; (seed, N) alone decides them, so methods share them."""
    n = len(scores)
    rng = np.random.default_rng((seed, n))
    parts = []
    chunk = max(1, _CHUNK_VALUES // n)
    for start in range(0, resamples, chunk):
        rows = rng.integers(0, n, size=(min(chunk, resamples - start), n))
        parts.append(_metrics(scores, labels, row_counts(rows).astype(np.float64)))
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _check_scores(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or not len(scores) or not np.isfinite(scores).all():
        raise ValueError(f"scores must be (N, A), not empty and finite, got shape {scores.shape}")
    labels = _check_labels(labels, len(scores), both_classes=False)
    if labels.shape != scores.shape:
        raise ValueError(f"scores are {scores.shape} and labels {labels.shape}")
    return scores, labels


def evaluate(
    scores: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    train_labels: np.ndarray,
    bootstrap: int = 1000,
    seed: int = 42,
) -> pd.DataFrame:
    """Test accuracy and AUC of every attribute with 95 % intervals, beside the majority baseline (UNE Figure 3 has none).

    scores, labels (N, A): decision function and truth on test rows; train_labels (M, A) give the majority class. Tidy table,
    one row per attribute: attribute, accuracy, accuracy_low, accuracy_high, auc, auc_low, auc_high, majority, majority_low,
    majority_high, n, prevalence. Intervals are percentile bootstraps over test rows, with the same resamples for all attributes
    and for any other method evaluated on the same N with the same seed; the majority's is Wilson's. A test column with one
    class has AUC NaN.
    """
    scores, labels = _check_scores(scores, labels)
    if len(names) != scores.shape[1]:
        raise ValueError(f"{len(names)} names for {scores.shape[1]} attributes")
    accuracy, auc = (value[0] for value in _metrics(scores, labels, np.ones((1, len(scores)))))
    accuracy_draws, auc_draws = _bootstrap(scores, labels, bootstrap, seed)
    accuracy_low, accuracy_high = percentile_interval(accuracy_draws)
    auc_low, auc_high = percentile_interval(auc_draws)
    majority = majority_interval(labels, train_labels)
    return pd.DataFrame(
        {
            "attribute": list(names),
            "accuracy": accuracy,
            "accuracy_low": accuracy_low,
            "accuracy_high": accuracy_high,
            "auc": auc,
            "auc_low": auc_low,
            "auc_high": auc_high,
            "majority": [m.value for m in majority],
            "majority_low": [m.low for m in majority],
            "majority_high": [m.high for m in majority],
            "n": len(scores),
            "prevalence": labels.mean(axis=0),
        }
    )


def majority_interval(labels: np.ndarray, train_labels: np.ndarray) -> list[Estimate]:
    """Test accuracy of always answering the majority class of the training labels, per attribute, with Wilson intervals.

    labels (N, A), train_labels (M, A). A tie in the training labels answers False.
    """
    labels, train_labels = np.asarray(labels, dtype=bool), np.asarray(train_labels, dtype=bool)
    if labels.ndim != 2 or train_labels.ndim != 2 or labels.shape[1] != train_labels.shape[1]:
        raise ValueError(f"labels {labels.shape} and train_labels {train_labels.shape} differ in attributes")
    answer = train_labels.mean(axis=0) > 0.5
    right = (labels == answer).sum(axis=0)
    return [Estimate(int(r) / len(labels), *wilson_interval(int(r), len(labels)), len(labels)) for r in right]


def mean_metrics(scores: np.ndarray, labels: np.ndarray, bootstrap: int = 1000, seed: int = 42) -> dict[str, Estimate]:
    """Mean over attributes of accuracy and AUC, {"accuracy", "auc"}, with bootstrap intervals over test rows (UNE Figure 6).

    Attributes whose AUC is undefined are left out of the mean AUC.
    """
    scores, labels = _check_scores(scores, labels)
    return _mean_estimates(
        _metrics(scores, labels, np.ones((1, len(scores)))), _bootstrap(scores, labels, bootstrap, seed), labels
    )


def paired_difference(
    scores_a: np.ndarray, scores_b: np.ndarray, labels: np.ndarray, bootstrap: int = 1000, seed: int = 42
) -> dict[str, Estimate]:
    """Mean over attributes of accuracy and AUC of a minus b on the same test rows, with paired bootstrap intervals (UNE Table 2).

    scores_a, scores_b, labels (N, A). Much narrower than a comparison of two separate intervals, as both methods see the same
    images.
    """
    (scores_a, labels), (scores_b, _) = _check_scores(scores_a, labels), _check_scores(scores_b, labels)
    once = np.ones((1, len(labels)))
    point = [a - b for a, b in zip(_metrics(scores_a, labels, once), _metrics(scores_b, labels, once), strict=True)]
    draws_a, draws_b = (_bootstrap(scores, labels, bootstrap, seed) for scores in (scores_a, scores_b))
    return _mean_estimates(point, [a - b for a, b in zip(draws_a, draws_b, strict=True)], labels)


def _mean_estimates(point, draws, labels: np.ndarray) -> dict[str, Estimate]:
    defined = _both_classes(labels)
    if not defined.any():
        raise ValueError("no attribute has both classes in the test rows")
    everything = np.ones_like(defined)
    result = {}
    for name, keep, value, sample in zip(("accuracy", "auc"), (everything, defined), point, draws, strict=True):
        low, high = percentile_interval(sample[:, keep].mean(axis=1))
        result[name] = Estimate(float(value[0, keep].mean()), float(low), float(high), len(labels))
    return result


def permuted_control(
    probe: Probe,
    X: np.ndarray,
    Y: np.ndarray,
    X_test: np.ndarray,
    Y_test: np.ndarray,
    names: Sequence[str],
    bootstrap: int = 1000,
    seed: int = 42,
) -> pd.DataFrame:
    """`evaluate` after refitting a copy of the probe on training labels whose rows are permuted: AUC should be 0.5.

    Rows of Y move as a whole, so correlations between attributes stay. `probe` itself is left as it is.
    """
    Y = _check_labels(Y, len(X))
    order = np.random.default_rng((seed, len(Y))).permutation(len(Y))
    scores = clone(probe).fit(X, Y[order]).decision_function(X_test)
    return evaluate(scores, Y_test, names, Y, bootstrap, seed)
