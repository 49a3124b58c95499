"""Gaussian noise x^T, inverted latent x̂^T and image x^0 of DDIM: how they relate, and which of them can be told apart.

After "Unrevealing Hidden Relations Between Latent Space and Image Generations in Diffusion Models" (poster, 2024), now "There and
Back Again: On the relation between Noise and Image Inversions in Diffusion Models" (ICLR 2026, arXiv 2410.23530). The published
numbers come without nulls and with a ± that means three things (ten coefficients, eight chunks, samples); here every statistic
has its null or its interval, and where a definition differs from the published one the docstring says so.

Samples are on axis 0: (N, D) or any (N, ...), whose other axes are flattened, float16, float32 or float64 on any scale unless a
docstring names one. Row i of noise, latent and image belong together. Large matrix products are float32, sums float64. Arrays
are worked on in blocks of about 32 MB; a function that needs more says so. Bad input raises ValueError: NaN or inf, shapes that
differ, too few samples, an unknown name. PSNR is `editing.psnr`; the order of all neighbours, instead of the nearest k, is
`alignment.neighbourhood_agreement`.
"""

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
from scipy import linalg, ndimage, stats
from skimage.metrics import structural_similarity

from une_utils.analysis.gaussianity import MAX_ROWS, MIN_ROWS, moments, shapiro_wilk, slices
from une_utils.analysis.stats import Estimate, bootstrap_interval, percentile_interval, proportion, wilson_interval

Metric = Literal["l2", "cosine", "pearson"]
ANGLES = ("angle_image", "angle_noise", "angle_latent")
_SIDES = ("noise_latent", "image_latent", "image_noise")  # the order of the published table
DISTANCES = tuple(f"distance_{side}" for side in _SIDES)
TRIANGLE = (*ANGLES, *DISTANCES, *(f"rms_{side}" for side in _SIDES), "position", "off_line")
_BLOCK_BYTES = 32 * 2**20
_MIN_SAMPLES = 3
_ROUNDING = 1e-12  # relative length below which a centred vector is rounding of a constant one
_SSIM_WINDOW = 7
_FRACTIONS = (0.5, 0.6, 0.7, 0.8, 0.9)  # subsets on which `frechet_bias` fits its line, beside the whole sets


# --- input -----------------------------------------------------------------------------------------------------------


def _rows(X: np.ndarray, name: str, minimum: int = _MIN_SAMPLES) -> np.ndarray:
    """X (N, ...) as float32 or float64 (N, D), after a check of its axes, its number of samples and NaN."""
    X = np.asarray(X)
    if X.ndim < 2 or X.size == 0:
        raise ValueError(f"{name} must be (N, D) or (N, ...) and not empty, got shape {X.shape}; put the samples on axis 0")
    if len(X) < minimum:
        raise ValueError(f"{name} has {len(X)} samples and at least {minimum} are needed; pass more samples on axis 0")
    if X.dtype not in (np.float32, np.float64):
        X = X.astype(np.float32 if X.dtype == np.float16 else np.float64)
    # both carry a NaN on, and need no second array of the size of X
    if not (np.isfinite(X.min()) and np.isfinite(X.max())):
        raise ValueError(f"{name} contains NaN or inf; drop those samples from every array first")
    return X.reshape(len(X), -1)


def _paired(arrays: dict[str, np.ndarray], minimum: int = _MIN_SAMPLES) -> list[np.ndarray]:
    """`_rows` of several arrays that must have one shape."""
    shapes = {name: np.shape(values) for name, values in arrays.items()}
    if len(set(shapes.values())) > 1:
        got = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"shapes differ: {got}; row i must be the same sample in all, in one shape")
    return [_rows(values, name, minimum) for name, values in arrays.items()]


def _images(images: np.ndarray, name: str) -> np.ndarray:
    """images as float (N, C, H, W); integers are refused, because every use has values around [-1, 1] in mind."""
    images = np.asarray(images)
    if images.ndim != 4 or images.dtype.kind != "f":
        got = f"{images.dtype} {images.shape}"
        raise ValueError(f"{name} must be floats (N, C, H, W), got {got}; scale pictures to [-1, 1] first")
    return _rows(images, name, minimum=1).reshape(images.shape)


def _check_k(k: int, most: int, what: str) -> None:
    if not 1 <= k <= most:
        raise ValueError(f"k = {k} must lie between 1 and the {most} {what}; choose a smaller k")


def _blocks(length: int, item_bytes: int) -> Iterator[slice]:
    """Slices of 0 ... length whose items take one block, at least one item each."""
    return slices(length, _BLOCK_BYTES // item_bytes)


def _row_blocks(X: np.ndarray) -> Iterator[slice]:
    """Slices of rows (N, D) that take one block each as float64."""
    return _blocks(len(X), 8 * X.shape[1])


# --- correlation between features ------------------------------------------------------------------------------------


def top_correlations(
    X: np.ndarray, k: int = 10, patch: int | None = None, shape: tuple[int, int, int] | None = None
) -> np.ndarray:
    """The k largest |Pearson r| between two features across the samples: (k,), descending, each in [0, 1].

    X: (N, D), N >= 3. The published "top-10 correlation" is the mean of these values and its ± their standard deviation (poster,
    Table 1, k = 10 on the whole image). With shape = (C, H, W), C H W = D, and patch = 8 it is the later form: the k largest
    within every non-overlapping patch, all channels together, (patches, k) with the patches row by row (paper, k = 20). A maximum
    over pairs grows with D and falls with N whatever the data: compare with `correlation_null` of the same size. A constant
    feature has correlation 0 by definition here. Memory: a float32 copy of X and one block row of the matrix of correlations, at
    most 32 MB, with what of it exceeds the top k so far; the D x D matrix is never formed. Raises ValueError for NaN, N < 3, more
    than the available pairs, patch without shape, or a shape that does not fit.
    """
    X = _rows(X, "X")
    if (patch is None) != (shape is None):
        raise ValueError(f"patch = {patch} and shape = {shape} go together: pass both for patches, none for whole images")
    if patch is None:
        return _largest(X, k)
    return np.stack([_largest(part, k) for part in _patches(X, patch, shape)])


def _patches(X: np.ndarray, patch: int, shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    if len(shape) != 3 or np.prod(shape) != X.shape[1]:
        raise ValueError(f"shape = {shape} must be (C, H, W) with C H W = {X.shape[1]}, the features of X")
    _, height, width = shape
    if patch < 1 or height % patch or width % patch:
        raise ValueError(f"patch = {patch} must divide height and width of {shape}; choose a divisor of both")
    images = X.reshape(len(X), *shape)
    for top in range(0, height, patch):
        for left in range(0, width, patch):
            yield images[:, :, top : top + patch, left : left + patch].reshape(len(X), -1)


def _largest(X: np.ndarray, k: int) -> np.ndarray:
    d = X.shape[1]
    _check_k(k, d * (d - 1) // 2, f"pairs of {d} features")
    top = np.full(k, -1, dtype=np.float32)
    for block in _absolute_correlations(_unit_columns(X)):
        top = np.concatenate([top, block[block > top.min()]])
        top = np.partition(top, len(top) - k)[-k:]
    return np.sort(top)[::-1].astype(np.float64)


def _unit_columns(X: np.ndarray) -> np.ndarray:
    """Columns of X with mean 0 and length 1 as float32, so that their products are correlations; zeros for constant ones."""
    unit = np.zeros(X.shape, dtype=np.float32)
    for columns in _blocks(X.shape[1], 8 * len(X)):
        part = X[:, columns].astype(np.float64)
        varies = (part != part[0]).any(axis=0)  # exact, where the spread around a rounded mean is not
        part -= part.mean(axis=0)
        np.divide(part, np.linalg.norm(part, axis=0), out=unit[:, columns], where=varies, casting="same_kind")
    return unit


def _absolute_correlations(unit: np.ndarray) -> Iterator[np.ndarray]:
    """|r| of the pairs i < j by block rows (b, D - first of the block); -1 on and below the diagonal."""
    d = unit.shape[1]
    for rows in _blocks(d, 4 * d):
        block = unit[:, rows].T @ unit[:, rows.start :]
        np.abs(block, out=block)
        np.minimum(block, 1, out=block)  # float32 leaves perfect correlations at 1.0000001
        block[:, : len(block)][np.tri(len(block), dtype=bool)] = -1
        yield block


def correlation_null(n: int, d: int, k: int = 10, repeats: int = 20, seed: int = 42, patches: int = 1) -> Estimate:
    """Mean of the top k correlations for n samples of d independent N(0, 1) features: what `top_correlations` finds in noise.

    value: mean over the repeats; low, high: the range that holds 95 % of the repeats, so a single measurement of noise lies in it
    (not an interval of the mean); n: the repeats. For the patch form d counts the features of one patch (C * 64) and patches the
    patches of an image; one measurement is then the mean over all patches and their k values. Of 20 repeats the 95 % range is
    nearly the smallest and the largest. Time is that of `top_correlations` per repeat. Raises ValueError for n < 3, repeats < 2,
    patches < 1 or k above the pairs.
    """
    if n < _MIN_SAMPLES or repeats < 2 or patches < 1:
        raise ValueError(f"correlation_null needs n >= 3, repeats >= 2 and patches >= 1, got {n}, {repeats} and {patches}")
    rng = np.random.default_rng((seed, n, d))
    draws = [
        np.mean([_largest(rng.standard_normal((n, d), dtype=np.float32), k) for _ in range(patches)]) for _ in range(repeats)
    ]
    low, high = percentile_interval(draws)
    return Estimate(float(np.mean(draws)), float(low), float(high), repeats)


def correlation_histogram(X: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Counts (len(edges) - 1,) of |Pearson r| over all D (D - 1) / 2 pairs of features: the distribution behind the top k.

    X: (N, D), N >= 3. edges ascend from 0 to 1, so that every pair is counted; bins are half-open, the last one closed.
    Independent features have r^2 ~ Beta(1/2, (N - 2)/2) exactly if Gaussian. Memory as `top_correlations`, twice the block.
    Raises ValueError for NaN, N < 3 or other edges.
    """
    X, edges = _rows(X, "X"), np.asarray(edges, dtype=np.float64)
    if edges.ndim != 1 or len(edges) < 2 or edges[0] != 0 or edges[-1] != 1 or (np.diff(edges) <= 0).any():
        raise ValueError("edges must ascend from 0 to 1, as np.linspace(0, 1, 101) does, so that every pair is counted")
    counts = np.zeros(len(edges) - 1, dtype=np.int64)
    for block in _absolute_correlations(_unit_columns(X)):
        counts += np.histogram(block[block >= 0], edges)[0]
    return counts


# --- normality -------------------------------------------------------------------------------------------------------


class GaussianKL(NamedTuple):
    """KL divergence of the latents' Gaussian from the noise's, KL(noise || latents), in nats."""

    scalar: float
    per_position: float


def gaussian_kl(noise: np.ndarray, latents: np.ndarray) -> GaussianKL:
    """How far are Gaussians fitted to the latents from those fitted to the noise? Both published forms (paper, normality).

    noise, latents: (N, ...) of one shape, N >= 8. scalar: one Gaussian for all entries of either set. per_position: one per
    position over the samples, standard deviations + 1e-6, averaged over the D positions. Fits are maximum likelihood (divisor N).
    Neither form sees a correlation between positions. Of two independent sets of N(0, I) per_position is about 2/N, the scalar
    about 2/(N D): only what exceeds that is a difference. Raises ValueError for NaN, N < 8, shapes that differ or a constant set.
    """
    noise, latents = _paired({"noise": noise, "latents": latents}, MIN_ROWS)
    for name, X in (("noise", noise), ("latents", latents)):
        if X.min() == X.max():
            raise ValueError(f"{name} is one number everywhere and has no Gaussian; check what was passed")
    (mean1, variance1), (mean2, variance2) = ((m.mean, m.variance) for m in (moments(noise), moments(latents)))
    overall = [np.sqrt(variance.mean() + mean.var()) for mean, variance in ((mean1, variance1), (mean2, variance2))]
    per_position = _kl(mean1, np.sqrt(variance1) + 1e-6, mean2, np.sqrt(variance2) + 1e-6).mean()
    return GaussianKL(float(_kl(mean1.mean(), overall[0], mean2.mean(), overall[1])), float(per_position))


def _kl(mean1: np.ndarray, std1: np.ndarray, mean2: np.ndarray, std2: np.ndarray) -> np.ndarray:
    return np.log(std2 / std1) + (std1**2 + (mean1 - mean2) ** 2) / (2 * std2**2) - 0.5


def rejected_share(latents: np.ndarray, entries: int = MAX_ROWS, seed: int = 42) -> Estimate:
    """Share of latents whose entries Shapiro-Wilk rejects as Gaussian at 5 %, with Wilson's interval; 0.05 for N(0, I).

    latents: (N, ...), N >= 3, of D >= 8 entries each. Up to `entries` (8 to 5000) of them are tested per latent, drawn anew for
    each and without replacement; the published test draws 5,000 with replacement, whose repetitions are not a Gaussian sample.
    The test takes entries to be independent: correlated ones make it reject otherwise than at 5 %. Raises ValueError for NaN,
    N < 3, D < 8 or entries out of range.
    """
    X = _rows(latents, "latents")
    n, d = X.shape
    if not (MIN_ROWS <= entries <= MAX_ROWS and d >= MIN_ROWS):
        raise ValueError(f"Shapiro-Wilk takes {MIN_ROWS} to {MAX_ROWS} entries, got entries = {entries} of latents with {d}")
    size = min(entries, d)
    rng = np.random.default_rng((seed, n, d))
    rejected = []
    for rows in _blocks(n, 8 * size):
        part = X[rows]
        if size < d:
            part = np.stack([row[rng.choice(d, size, replace=False, shuffle=False)] for row in part])
        rejected.append(~shapiro_wilk(part).passed)
    return proportion(np.concatenate(rejected))


# --- the triangle of noise, latent and image -------------------------------------------------------------------------


def _lengths(vectors: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors, axis=-1, keepdims=True)


def _angle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Angle in radians between vectors on the last axis, NaN for a zero vector.

    Kahan's formula: the arccos of a cosine near 1 would lose half of the digits.
    """
    with np.errstate(invalid="ignore"):
        u, v = u / _lengths(u), v / _lengths(v)
    return 2 * np.arctan2(_lengths(u - v), _lengths(u + v))[..., 0]


def triangle(image: np.ndarray, noise: np.ndarray, latent: np.ndarray) -> pd.DataFrame:
    """Triangle x^0, x^T, x̂^T of every sample (paper, angles and distances), and where the latent lies between noise and image.

    image, noise, latent: (N, ...) of one shape. One row per sample, columns `TRIANGLE`:
    angle_image, angle_noise, angle_latent: degrees at the three vertices, of sum 180;
    distance_noise_latent, distance_image_latent, distance_image_noise: Euclidean, in the units of the input;
    rms_...: the same distances / sqrt(D), comparable between resolutions (two independent N(0, I) are sqrt(2) apart);
    position: where the latent's projection falls on the line from the noise (0) to the image (1), not clipped;
    off_line: the latent's distance from that line, in units of the noise-image distance.
    "The latents lie between noise and sample" (poster) means position in (0, 1) with a small off_line. Angles at a vertex that
    coincides with another are NaN, as are position and off_line if noise and image coincide. Float64 on blocks of samples, a
    dozen of them at once. Raises ValueError for NaN or shapes that differ.
    """
    image, noise, latent = _paired({"image": image, "noise": noise, "latent": latent}, minimum=1)
    parts = [_triangle(*(x[rows].astype(np.float64) for x in (image, noise, latent))) for rows in _row_blocks(image)]
    return pd.DataFrame(np.concatenate(parts), columns=list(TRIANGLE))


def _triangle(image: np.ndarray, noise: np.ndarray, latent: np.ndarray) -> np.ndarray:
    """Columns `TRIANGLE` (b, 11) of one block of samples."""
    towards_image, towards_latent, rest = image - noise, latent - noise, image - latent
    angles = (
        _angle(towards_image, rest),  # both turned round, which leaves the angle at the image as it is
        _angle(towards_image, towards_latent),
        _angle(-towards_latent, rest),
    )
    distances = np.concatenate([_lengths(side) for side in (towards_latent, rest, towards_image)], axis=1)
    with np.errstate(invalid="ignore"):
        position = (towards_latent * towards_image).sum(axis=1) / distances[:, 2] ** 2
        off_line = _lengths(towards_latent - position[:, None] * towards_image)[:, 0] / distances[:, 2]
    rms = distances / np.sqrt(image.shape[1])
    return np.column_stack([np.degrees(np.stack(angles, axis=1)), distances, rms, position, off_line])


def triangle_summary(frame: pd.DataFrame, bootstrap: int = 1000, seed: int = 42) -> pd.DataFrame:
    """Mean of every quantity of `triangle` with a bootstrap interval over samples: quantity, value, low, high, std, n.

    frame: as `triangle` returns it. std is the spread over samples (divisor n), the published ± of the distances. Further rows
    published_angle_image, published_angle_noise and published_angle_latent: the arccos of the mean cosine, which is what the
    authors' code prints as the angle and which is not the mean angle (the ± printed beside it, the arccos of a standard
    deviation, has no meaning and is NaN here). Samples with an undefined quantity are left out of it, n counts the rest.
    Raises ValueError for missing columns or fewer than 3 samples left.
    """
    missing = [name for name in TRIANGLE if name not in frame]
    if missing:
        raise ValueError(f"the frame lacks {', '.join(missing)}; pass what `triangle` returned")
    rows = []
    for name in TRIANGLE:
        values = frame[name].dropna().to_numpy()
        if len(values) < _MIN_SAMPLES:
            raise ValueError(f"{name} is defined in {len(values)} samples, a mean needs 3; pass more or distinct vertices")
        mean = bootstrap_interval(values, np.mean, bootstrap, seed=seed)
        rows.append(_line(name, mean, std=values.std()))
        if name in ANGLES:
            published = bootstrap_interval(values, _angle_of_mean_cosine, bootstrap, seed=seed)
            rows.append(_line(f"published_{name}", published, std=np.nan))
    return pd.DataFrame(rows)


def _line(quantity: str, estimate: Estimate, **columns: float) -> dict:
    interval = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {"quantity": quantity, **interval, **columns, "n": estimate.n}


def _angle_of_mean_cosine(angles: np.ndarray, axis: int) -> np.ndarray:
    return np.degrees(np.arccos(np.clip(np.cos(np.radians(angles)).mean(axis=axis), -1, 1)))  # a mean of ones may round above 1


class ProbableTriangle(NamedTuple):
    """Whole degrees at image, noise and latent, of sum 180, and the product of the three shares of samples."""

    image: int
    noise: int
    latent: int
    probability: float


def most_probable_triangle(angles: np.ndarray) -> ProbableTriangle:
    """The triangle of whole degrees whose angles' shares have the largest product (paper, appendix H).

    angles: (N, 3) in degrees at image, noise and latent, as `frame[list(ANGLES)]`. A bin holds the angles that round to its
    degree. (The published bins hold those from the degree up to the next: the parts of one triangle then add up to 178 or 179 and
    the search for 180 misses every true triangle.) The product ignores that the three angles depend on each other; the first of
    equal maxima is taken. Raises ValueError for another shape, NaN, angles outside 0 to 180, or if no triple has samples in all
    three bins, as for a handful of samples.
    """
    angles = np.asarray(angles, dtype=np.float64)
    if angles.ndim != 2 or angles.shape[1] != 3 or len(angles) == 0:
        raise ValueError(f"angles must be (N, 3), at image, noise and latent, got shape {angles.shape}")
    if not ((angles >= 0) & (angles <= 180)).all():
        raise ValueError("angles must be degrees from 0 to 180 without NaN; drop samples whose vertices coincide")
    shares = [np.bincount(np.rint(column).astype(int), minlength=181) / len(angles) for column in angles.T]
    image, noise = np.mgrid[:181, :181]
    latent = 180 - image - noise
    product = np.where(latent >= 0, shares[0][image] * shares[1][noise] * shares[2][latent], 0.0)
    best = np.unravel_index(product.argmax(), product.shape)
    if not product[best]:
        raise ValueError("no triple of whole degrees of sum 180 has samples in all three bins; pass more samples")
    return ProbableTriangle(int(best[0]), int(best[1]), int(latent[best]), float(product[best]))


# --- the denoising path beside the line from noise to latent ---------------------------------------------------------


class PathDistances(NamedTuple):
    """A path of T states beside the line y_a = a latent + (1 - a) noise, for N samples.

    points (P,): the values of a; distance (T, P): mean over samples of |x_t - y_a|, the published heat map before its rows are
    scaled; nearest (T, N): the a of the closest point of the whole line, not clipped (below 0.5 is nearer to the noise, above 1
    beyond the latent); to_latent (T, N): |x_t - latent|. Distances are Euclidean, in the units of the input.
    """

    points: np.ndarray
    distance: np.ndarray
    nearest: np.ndarray
    to_latent: np.ndarray


def path_distances(states: Iterable[np.ndarray], noise: np.ndarray, latent: np.ndarray, points: int = 25) -> PathDistances:
    """Distances of the states x_t of a path from `points` points on the line noise -> latent (poster, Fig. 5).

    states: T arrays (N, ...), one at a time, so a generator never holds more than one. noise, latent: (N, ...), N >= 3. The
    points are a = 0 to 1 in equal steps, on the straight line without renormalisation, as published (25 points). From inner
    products, |u - a s|^2 = |u|^2 - 2 a <u, s> + a^2 |s|^2: nothing of size points x N x D. Raises ValueError for NaN, shapes that
    differ, N < 3, no states, points < 2 or a latent that equals its noise, which spans no line.
    """
    noise, latent = _paired({"noise": noise, "latent": latent})
    if points < 2:
        raise ValueError(f"points = {points} must be at least 2, the two ends of the line")
    a = np.linspace(0, 1, points)
    steps = []
    for t, state in enumerate(states):
        x = _rows(state, f"state {t}")
        if x.shape != noise.shape:
            raise ValueError(f"state {t} is {x.shape} and noise {noise.shape}; states need the same samples as noise and latent")
        products = np.concatenate([_line_products(x[rows], noise[rows], latent[rows]) for rows in _row_blocks(x)], axis=1)
        steps.append(_beside_line(*products, a))
    if not steps:
        raise ValueError("there are no states; pass the T states of a path (a generator can be read only once)")
    return PathDistances(a, *(np.stack(values) for values in zip(*steps, strict=True)))


def _line_products(state: np.ndarray, noise: np.ndarray, latent: np.ndarray) -> np.ndarray:
    """|u|^2, <u, s> and |s|^2 (3, b) of u = state - noise and s = latent - noise."""
    u, s = np.subtract(state, noise, dtype=np.float64), np.subtract(latent, noise, dtype=np.float64)
    return np.stack([np.einsum("nd,nd->n", x, y) for x, y in ((u, u), (u, s), (s, s))])


def _beside_line(uu: np.ndarray, us: np.ndarray, ss: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not ss.all():
        same = np.flatnonzero(ss == 0)[:5].tolist()
        raise ValueError(f"latent equals noise in samples {same}, which span no line; drop those samples")
    # rounding can leave the square of a zero distance slightly negative
    squares = np.maximum(uu - 2 * a[:, None] * us + a[:, None] ** 2 * ss, 0.0)  # (points, N)
    distances = np.sqrt(squares)
    return distances.mean(axis=1), us / ss, distances[-1]


def turning_point(path: PathDistances, bootstrap: int = 1000, seed: int = 42) -> pd.DataFrame:
    """After which share of the path are the states nearest to the latent, and after which have they passed it?

    path: from `path_distances`, its states in the order of sampling, noise first, one after each of the T steps; step t ends the
    share (t + 1) / T. Rows (quantity, value, low, high, n), per sample and not on the mean heat map:
    nearest: mean over samples of the share at which |x_t - latent| is smallest, first of equals (1: it is never left behind);
    passed: mean over the samples that pass of the share at which the closest point of the line first is the latent or beyond,
    NaN with n = 0 if none passes;
    passing: the share of samples that pass at all, with Wilson's interval.
    The poster (Fig. 5) reads 0.5 to 0.7. Intervals of the means are bootstraps over samples; the grid of T steps adds an error of
    up to 1/T that they do not contain. Raises ValueError for fewer than 3 samples or NaN.
    """
    steps, n = path.nearest.shape
    if n < _MIN_SAMPLES or not (np.isfinite(path.nearest).all() and np.isfinite(path.to_latent).all()):
        raise ValueError(f"turning_point needs 3 samples without NaN, got {n} samples; pass what `path_distances` returned")
    closest = (path.to_latent.argmin(axis=0) + 1) / steps
    beyond = path.nearest >= 1
    passing = beyond.any(axis=0)
    first = (beyond.argmax(axis=0)[passing] + 1) / steps
    undefined = Estimate(np.nan, np.nan, np.nan, 0)
    passed = bootstrap_interval(first, np.mean, bootstrap, seed=seed) if len(first) else undefined
    return pd.DataFrame(
        [
            _line("nearest", bootstrap_interval(closest, np.mean, bootstrap, seed=seed)),
            _line("passed", passed),
            _line("passing", proportion(passing)),
        ]
    )


# --- plain areas -----------------------------------------------------------------------------------------------------


def plain_mask(images: np.ndarray, threshold: float = 0.025) -> np.ndarray:
    """Where is an image plain? Bool (N, H, W), True where neighbours hardly differ in any channel (paper, appendix I).

    images: floats (N, C, H, W) in [-1, 1], the range of the models (the threshold is in these units: 0.025 is 3 of 255 grey
    levels; values a little outside, as models make them, do no harm). Plain: the mean of the absolute differences to the next row
    and to the next column is below the threshold in all channels. The missing neighbours of the last row and column count as
    equal, as published, so the border is plain more easily. Raises ValueError for integers, other axes, NaN or threshold <= 0.
    """
    images = _images(images, "images")
    if not threshold > 0:
        raise ValueError(f"threshold = {threshold} must be positive; 0.025 is the published one for images in [-1, 1]")
    mask = np.ones((len(images), *images.shape[2:]), dtype=bool)
    for channel in np.moveaxis(images, 1, 0):  # one at a time: a third of the memory
        change = np.zeros(channel.shape)
        change[:, :-1] += np.abs(np.diff(channel.astype(np.float64), axis=1)) / 2
        change[:, :, :-1] += np.abs(np.diff(channel.astype(np.float64), axis=2)) / 2
        mask &= change < threshold
    return mask


def prediction_error(pred_inversion: np.ndarray, pred_sampling: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean |difference| of two noise predictions inside and outside of the mask: (N, 2), NaN where a side is empty.

    pred_inversion, pred_sampling: floats (N, C, H, W), the predictions at the same t on the way up and down (inversion step i of
    T belongs to sampling step T - 1 - i); mask: bool (N, H, W), as `plain_mask` gives it. The mean is over channels and pixels of
    one image (paper: the first inversion steps err more in plain areas). Raises ValueError for NaN or shapes that differ.
    """
    _paired({"pred_inversion": pred_inversion, "pred_sampling": pred_sampling}, minimum=1)
    inversion, sampling = _images(pred_inversion, "pred_inversion"), _images(pred_sampling, "pred_sampling")
    return _inside_outside(np.abs(np.subtract(inversion, sampling, dtype=np.float64)).mean(axis=1), mask)


def local_diversity(pred: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean variance of 3 x 3 neighbourhoods inside and outside of the mask: (N, 2), NaN where a side is empty.

    pred: floats (N, C, H, W); mask: bool (N, H, W). Population variance of the nine values, zeros beyond the border, averaged
    over channels (paper: predictions are less diverse in plain areas). For N(0, 1) entries it is 8/9 off the border. Raises
    ValueError for NaN or shapes that do not fit.
    """
    pred = _images(pred, "pred").astype(np.float64)
    mean, square = (ndimage.uniform_filter(x, size=(1, 1, 3, 3), mode="constant") for x in (pred, pred**2))
    return _inside_outside(np.maximum(square - mean**2, 0.0).mean(axis=1), mask)


def _inside_outside(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean of values (N, H, W) where the mask is True and where it is False: (N, 2)."""
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.shape != values.shape:
        raise ValueError(f"mask must be bool (N, H, W) = {values.shape}, got {mask.dtype} {mask.shape}; `plain_mask` makes one")
    sums = np.stack([np.where(side, values, 0.0).sum(axis=(1, 2)) for side in (mask, ~mask)], axis=1)
    counts = np.stack([mask.sum(axis=(1, 2)), (~mask).sum(axis=(1, 2))], axis=1)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


# --- matching of noise and image -------------------------------------------------------------------------------------


class Matches(NamedTuple):
    """Per query: nearest (N,), the index of its nearest pool element, and rank (N,) of its true partner, 1 if nearest."""

    nearest: np.ndarray
    rank: np.ndarray


def match(queries: np.ndarray, pool: np.ndarray, metric: Metric = "l2", block: int | None = None) -> Matches:
    """Nearest neighbour in the pool of every query; the partner of query i is pool element i (poster, Fig. 6, with "l2").

    queries, pool: (N, ...) of one shape, N >= 3. metric: "l2"; "cosine" of the vectors as they are; "pearson", the cosine after
    every vector lost its own mean, so that neither brightness nor contrast counts. Of equally near elements the first wins.
    Chance is 1/N. One float32 matrix product, `block` queries at a time (None: 32 MB of the N x N products). Memory beside the
    input: a float32 copy of the pool, one block of queries and about three blocks of products; with N = 8,192 and D = 12,288
    some 600 MB. Rounding may exchange neighbours whose distances agree to six digits. Raises ValueError for NaN, shapes that
    differ, N < 3, block < 1, an unknown metric, a zero vector ("cosine") or a constant one ("pearson").
    """
    queries, pool = _paired({"queries": queries, "pool": pool})
    nearest, rank = (np.empty(len(pool), dtype=np.int64) for _ in range(2))
    index = np.arange(len(pool))
    for rows, closeness in _closeness(queries, pool, metric, block):
        own = closeness[np.arange(len(closeness)), index[rows]][:, None]
        nearest[rows] = closeness.argmax(axis=1)
        tied = (closeness == own) & (index < index[rows, None])
        rank[rows] = 1 + (closeness > own).sum(axis=1) + tied.sum(axis=1)
    return Matches(nearest, rank)


def _closeness(
    queries: np.ndarray, pool: np.ndarray, metric: Metric, block: int | None = None
) -> Iterator[tuple[slice, np.ndarray]]:
    """(rows, (b, N) numbers that order the pool by nearness to each query, larger is nearer) by blocks of queries."""
    if metric not in get_args(Metric):
        raise ValueError(f"metric is one of {', '.join(get_args(Metric))}, got '{metric}'")
    if block is not None and block < 1:
        raise ValueError(f"block = {block} must be a positive number of queries, or None for blocks of 32 MB")
    # a common shift leaves L2 as it is and makes the products small, hence exact
    centre = pool.mean(axis=0, dtype=np.float64)
    elements = _prepared(pool, metric, centre, "pool")
    offset = None
    if metric == "l2":  # |q - p|^2 = |q|^2 - 2 (<q, p> - |p|^2 / 2), and |q|^2 does not change the order
        offset = np.einsum("nd,nd->n", elements, elements, dtype=np.float64) / 2
        offset = (offset - offset.mean()).astype(np.float32)
    count = len(queries)
    for rows in _blocks(count, 4 * len(pool)) if block is None else slices(count, block):
        closeness = _prepared(queries[rows], metric, centre, "queries", rows.start) @ elements.T
        yield rows, closeness if offset is None else np.subtract(closeness, offset, out=closeness)


def _prepared(X: np.ndarray, metric: Metric, centre: np.ndarray, name: str, first: int = 0) -> np.ndarray:
    """Rows as float32, less the centre for L2, of length 1 otherwise; `first` is the number of the first row in messages."""
    prepared = np.empty(X.shape, dtype=np.float32)
    for rows in _row_blocks(X):
        part = X[rows].astype(np.float64)
        if metric == "l2":
            prepared[rows] = part - centre
            continue
        before = _lengths(part)
        if metric == "pearson":
            part -= part.mean(axis=1, keepdims=True)
        length = _lengths(part)
        flat = np.flatnonzero(length <= _ROUNDING * before)[:5] + rows.start + first
        if len(flat):
            what = "constant" if metric == "pearson" else "zero"
            raise ValueError(f"{name} has {what} rows {flat.tolist()}, which have no {metric} similarity; drop them or take l2")
        prepared[rows] = part / length
    return prepared


def matching_accuracy(image: np.ndarray, noise: np.ndarray, metric: Metric = "l2", chunks: int | None = None) -> pd.DataFrame:
    """Share of images matched to their own noise, and of noises matched to their own image, by the nearest neighbour.

    image, noise: (N, ...) of one shape. Rows "image -> noise" and "noise -> image"; columns direction, metric, accuracy, low,
    high, std, n (queries), pool, chance (1 / pool). Without chunks there is one pool of N, low and high are Wilson's, std is NaN.
    With chunks (8 in the poster's Fig. 6) the samples are cut into that many equal pools in their order, accuracy is the mean
    over them and std the spread between them (divisor chunks - 1): the published mean ± std. Queries of one pool share its hubs
    and are not independent, so Wilson's interval of one pool is too narrow as a statement about other pools; with chunks its n is
    divided by the design effect found between them (none is found when all or no queries match). Raises ValueError as `match`
    does, and for chunks that do not divide N or leave pools of fewer than 3.
    """
    image, noise = _paired({"image": image, "noise": noise})
    count = 1 if chunks is None else chunks
    if chunks is not None and (chunks < 2 or len(image) % chunks or len(image) // chunks < _MIN_SAMPLES):
        raise ValueError(f"chunks = {chunks} must cut the {len(image)} samples into two or more equal pools of at least 3")
    rows = []
    for direction, queries, pool in (("image -> noise", image, noise), ("noise -> image", noise, image)):
        parts = zip(np.split(queries, count), np.split(pool, count), strict=True)
        hits = np.stack([match(q, p, metric).rank == 1 for q, p in parts])  # (chunks, pool)
        estimate = proportion(hits) if chunks is None else _chunked_proportion(hits)
        rows.append(
            {
                "direction": direction,
                "metric": metric,
                "accuracy": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "std": np.nan if chunks is None else hits.mean(axis=1).std(ddof=1),
                "n": hits.size,
                "pool": hits.shape[1],
                "chance": 1 / hits.shape[1],
            }
        )
    return pd.DataFrame(rows)


def _chunked_proportion(hits: np.ndarray) -> Estimate:
    """Share of True in hits (chunks, pool) with Wilson's interval at n / deff, deff >= 1 from the spread between chunks."""
    rate, n = hits.mean(), hits.size
    binomial = rate * (1 - rate) / hits.shape[1]  # variance between chunks if queries were independent
    effect = max(1.0, hits.mean(axis=1).var(ddof=1) / binomial) if binomial > 0 else 1.0
    return Estimate(float(rate), *wilson_interval(rate * n / effect, n / effect), n)


class Hubness(NamedTuple):
    """counts (n,): how many queries each pool element is nearest to; their skewness; the share of queries of the largest."""

    counts: np.ndarray
    skewness: float
    largest: float


def hubness(nearest: np.ndarray, n: int) -> Hubness:
    """Are a few pool elements nearest to everything? Occurrence N_1 of Radovanović et al. (2010), "Hubs in space", JMLR 11.

    nearest: (Q,) indices as `match` gives them; n: the size of the pool. Skewness is 0 for a perfect matching, about 1 for random
    choices of Q = n queries (Poisson counts), and larger with hubs; largest is 1/n for a perfect matching and 1 if one element
    attracts all. Raises ValueError for indices that are not integers from 0 to n - 1 or for none.
    """
    nearest = np.asarray(nearest)
    if nearest.ndim != 1 or len(nearest) == 0 or nearest.dtype.kind not in "iu" or nearest.min() < 0 or nearest.max() >= n:
        raise ValueError(f"nearest must be indices (Q,) from 0 to n - 1 = {n - 1}; pass `match(...).nearest` and the pool's size")
    counts = np.bincount(nearest, minlength=n)
    skewness = float(stats.skew(counts)) if np.ptp(counts) else 0.0
    return Hubness(counts, skewness, float(counts.max() / len(nearest)))


def contrast(images: np.ndarray) -> np.ndarray:
    """Standard deviation (N,) of all entries of each image (N, ...), in its units: the tested cause of the failed matchings.

    |x^0 - x^T|^2 has the term |x^0|^2, so for a given noise images of low contrast (at equal brightness) are near whatever they
    show. Raises ValueError for NaN.
    """
    X = _rows(images, "images", minimum=1)
    return np.concatenate([X[rows].astype(np.float64).std(axis=1) for rows in _row_blocks(X)])


# --- interpolation ---------------------------------------------------------------------------------------------------


def slerp(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    """Spherical interpolation from a (t = 0) to b (t = 1) over the whole flattened vector of each sample, float64.

    a, b: (N, ...) of one shape, not zero; t in [0, 1]. Shoemake's weights sin((1 - t) w) / sin(w) and sin(t w) / sin(w) with the
    angle w of the pair; the norm is kept if both have the same. Raises ValueError for NaN, shapes that differ, t outside [0, 1],
    zero vectors or opposite ones, between which no arc is the shortest.
    """
    flat = _paired({"a": a, "b": b}, minimum=1)
    return _slerp(*(x.astype(np.float64) for x in flat), t).reshape(np.shape(a))


def slerp_rows(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    """The published variant, for comparison only: `slerp` of every row of W pixels by itself, float64.

    a, b: (N, ..., W). The authors' helper takes norms and angles along the last axis, so on (N, C, H, W) it turns each image row
    by its own angle and is not an interpolation on the sphere of the latents. (Theirs is linear for rows closer than 1.8 degrees
    to parallel or opposite.) Raises ValueError as `slerp` does, for rows.
    """
    _paired({"a": a, "b": b}, minimum=1)
    return _slerp(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64), t)


def _slerp(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    """slerp along the last axis."""
    if not 0 <= t <= 1:
        raise ValueError(f"t = {t} must lie in [0, 1]: 0 is a and 1 is b")
    if not (_lengths(a).all() and _lengths(b).all()):
        raise ValueError("a or b has zero vectors, which have no direction to interpolate; drop them")
    angle = _angle(a, b)[..., None]
    if (angle > np.pi - 1e-6).any():
        raise ValueError("a and b have opposite vectors, between which no arc is the shortest; take another pair")
    parallel = angle < 1e-6  # the weights are 0/0 there, and linear in the limit
    sine = np.sin(np.where(parallel, 1.0, angle))
    weights = [np.where(parallel, part, np.sin(part * angle) / sine) for part in (1 - t, t)]
    return weights[0] * a + weights[1] * b


# --- similarity of sets and of pictures ------------------------------------------------------------------------------


def frechet_distance(A: np.ndarray, B: np.ndarray) -> float:
    """Squared Fréchet (2-Wasserstein) distance between Gaussian fits of two sets of features, in squared units of the features.

    A (Na, D), B (Nb, D): |mean difference|^2 + tr(Ca + Cb - 2 (Ca Cb)^(1/2)), divisor N - 1, float64; cubic in D.
    It is the FID formula (Heusel et al. 2017) on whatever features come in: values are not comparable with Inception FIDs, nor
    between encoders. The estimate is too large at finite N, see `frechet_bias`. Raises ValueError for NaN, fewer than 3 samples
    or different D.
    """
    return _frechet(*_features(A, B))


def _features(A: np.ndarray, B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    A, B = _rows(A, "A").astype(np.float64), _rows(B, "B").astype(np.float64)
    if A.shape[1] != B.shape[1]:
        raise ValueError(f"A has {A.shape[1]} features and B has {B.shape[1]}; take both from the same encoder")
    return A, B


def _frechet(A: np.ndarray, B: np.ndarray) -> float:
    means = [X.mean(axis=0) for X in (A, B)]
    cov_a, cov_b = ((X - mean).T @ (X - mean) / (len(X) - 1) for X, mean in zip((A, B), means, strict=True))
    values, vectors = linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    # tr (Ca Cb)^(1/2) of a product that is not symmetric, from the symmetric matrix with the same eigenvalues
    cross = np.sqrt(np.maximum(linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
    return max(0.0, float(((means[0] - means[1]) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross))


class FrechetBias(NamedTuple):
    """distance of the whole sets, the bias estimated in it, and extrapolated = distance - bias, for infinitely many samples."""

    distance: float
    bias: float
    extrapolated: float


def frechet_bias(A: np.ndarray, B: np.ndarray, repeats: int = 5, seed: int = 42) -> FrechetBias:
    """Finite-sample bias of `frechet_distance`, by extrapolation in 1/N (after Chong and Forsyth 2020, FID_infinity).

    A (Na, D), B (Nb, D), both of more than 2 D samples. Both sets are thinned to 50, 60, 70, 80 and 90 % (`repeats` draws each,
    without replacement); a least-squares line of the distance against 1 / fraction has the bias of the whole sets as its slope,
    since the bias is c / N to first order. For sets of one distribution extrapolated is about 0 and may be slightly negative. As
    a check without a model: `frechet_distance` between halves of one set is all bias. Takes 5 * repeats + 1 distances. Raises
    ValueError as `frechet_distance` does, for repeats < 1, and for N <= 2 D, where halves have singular covariances and the line
    bends.
    """
    A, B = _features(A, B)
    if min(len(A), len(B)) <= 2 * A.shape[1] or repeats < 1:
        raise ValueError(
            f"frechet_bias needs repeats >= 1 and more than 2 D = {2 * A.shape[1]} samples in both sets, got {repeats}, "
            f"{len(A)} and {len(B)}; add samples or reduce the features to fewer principal components"
        )
    rng = np.random.default_rng((seed, len(A), len(B)))
    distance = _frechet(A, B)
    inverse, distances = [1.0], [distance]
    for fraction in np.repeat(_FRACTIONS, repeats):
        thinned = [X[rng.choice(len(X), round(fraction * len(X)), replace=False)] for X in (A, B)]
        inverse.append(1 / fraction)
        distances.append(_frechet(*thinned))
    bias = float(np.polyfit(inverse, distances, 1)[0])
    return FrechetBias(distance, bias, distance - bias)


def neighbour_overlap(A: np.ndarray, B: np.ndarray, k: int = 50, bootstrap: int = 1000, seed: int = 42) -> Estimate:
    """Share of the k nearest neighbours of a sample in A that are among its k nearest in B, averaged over samples.

    A (N, ...), B (N, ...): the same samples in two sets, distances are L2 in either (paper: 50 neighbours in pixels). Independent
    sets share k / (N - 1). The interval is a bootstrap over samples. Memory as `match`. Raises ValueError for NaN, different
    numbers of samples, N < 3 or k above N - 1.
    """
    A, B = _same_samples(A, B)
    _check_k(k, len(A) - 1, "other samples")
    shares = []
    for (rows, in_a), (_, in_b) in zip(_closeness(A, A, "l2"), _closeness(B, B, "l2"), strict=True):
        kept = np.zeros(in_a.shape, dtype=bool)
        np.put_along_axis(kept, _neighbours(in_a, rows, k), True, axis=1)
        shares.append(np.take_along_axis(kept, _neighbours(in_b, rows, k), axis=1).mean(axis=1))
    return bootstrap_interval(np.concatenate(shares), np.mean, bootstrap, seed=seed)


def _same_samples(A: np.ndarray, B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    A, B = _rows(A, "A"), _rows(B, "B")
    if len(A) != len(B):
        raise ValueError(f"A has {len(A)} samples and B has {len(B)}; row i must be the same sample in both")
    return A, B


def _neighbours(closeness: np.ndarray, rows: slice, k: int) -> np.ndarray:
    """Indices (b, k) of the k nearest other samples, in no order."""
    closeness[np.arange(len(closeness)), np.arange(rows.start, rows.stop)] = -np.inf  # a sample is not its own neighbour
    return np.argpartition(closeness, -k, axis=1)[:, -k:]


def linear_cka(A: np.ndarray, B: np.ndarray) -> float:
    """Linear centred kernel alignment in [0, 1] (Kornblith et al. 2019), with the biased HSIC as in the paper.

    A (N, Da), B (N, Db): the same samples in two spaces; 1 for spaces equal up to rotation, shift and one scale. The biased HSIC
    is above 0 for independent sets too, the more the larger D / N: compare with shuffled rows (`alignment.shuffled_pairs`).
    Memory: float64 copies of both, and N x N or D x D, whichever is smaller. Raises ValueError for NaN, different numbers of
    samples, N < 3 or a constant set.
    """
    A, B = _same_samples(A, B)
    for name, X in (("A", A), ("B", B)):
        if (X == X[0]).all():
            raise ValueError(f"{name} is the same in all samples, which leaves nothing to align; check what was passed")
    A, B = (X - X.mean(axis=0, dtype=np.float64) for X in (A, B))
    if len(A) <= max(A.shape[1], B.shape[1]):
        gram_a, gram_b = A @ A.T, B @ B.T
        return float((gram_a * gram_b).sum() / (np.linalg.norm(gram_a) * np.linalg.norm(gram_b)))
    return float(np.linalg.norm(A.T @ B) ** 2 / (np.linalg.norm(A.T @ A) * np.linalg.norm(B.T @ B)))


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity (N,) of pictures a and b, floats (N, C, H, W) in [-1, 1]; 1 for equal ones.

    scikit-image's `structural_similarity` with its window of 7, per channel and averaged, data range 2. The authors first scale
    the whole batch to [0, 1] by its extremes, which makes values depend on the batch. Raises ValueError for integers, NaN, values
    outside [-1, 1], shapes that differ or sides below 7.
    """
    _paired({"a": a, "b": b}, minimum=1)
    a, b = _images(a, "a"), _images(b, "b")
    if max(np.abs(a).max(), np.abs(b).max()) > 1:
        raise ValueError("ssim needs values in [-1, 1], the data range it assumes; clip the pictures first")
    if min(a.shape[2:]) < _SSIM_WINDOW:
        raise ValueError(f"ssim needs sides of at least {_SSIM_WINDOW} pixels, got {a.shape[2:]}; enlarge the pictures")
    pairs = zip(a.astype(np.float64), b.astype(np.float64), strict=True)
    return np.array([structural_similarity(x, y, win_size=_SSIM_WINDOW, data_range=2.0, channel_axis=0) for x, y in pairs])
