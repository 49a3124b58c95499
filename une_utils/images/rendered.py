"""Rendered faces: a world in which the universal normal embedding is known.

Every face starts as Z ~ N(0, I). Factors are a linear map of Z with a CelebA-like correlation; attributes are thresholds
of factors, so they are linearly separable in Z by construction. Factors act on the picture continuously, so an edit can
be graded. Faces are drawn one at a time with anti-aliased signed distance fields: no operation sees two faces, so the
bits of a face depend on (seed, index) alone, and the arrays of one face stay in the processor's first cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace

import numpy as np
from scipy.stats import multivariate_normal, norm

from une_utils.images.base import SourceReport

FACTORS = (
    "Smiling", "Mouth_Slightly_Open", "Male", "Young", "Eyeglasses", "Beard", "Mustache", "Hair_Lightness", "Gray_Hair",
    "Bald", "Bangs", "Wearing_Hat", "Wearing_Lipstick", "Pale_Skin", "Narrow_Eyes", "Bushy_Eyebrows", "Arched_Eyebrows",
    "Big_Nose", "Rosy_Cheeks", "Wearing_Earrings", "Hair_Length", "Pose", "Light", "Background_Warmth", "Background_Tint",
    "Clothes",
)  # fmt: skip
NUISANCES = FACTORS[-6:]  # act on the picture, carry no attribute


@dataclass(frozen=True)
class Attribute:
    """A binary attribute: ``sign * factor > sign * threshold``."""

    factor: str
    threshold: float
    sign: int = 1


# Names are CelebA's. Thresholds set the prevalence: 0 gives half of the faces, 1.2 about an eighth.
ATTRIBUTES = {
    "Smiling": Attribute("Smiling", 0.0),
    "Mouth_Slightly_Open": Attribute("Mouth_Slightly_Open", 0.1),
    "Male": Attribute("Male", 0.1),
    "Young": Attribute("Young", -0.5),
    "Eyeglasses": Attribute("Eyeglasses", 0.7),
    "No_Beard": Attribute("Beard", 0.5, sign=-1),
    "Mustache": Attribute("Mustache", 0.8),
    "Black_Hair": Attribute("Hair_Lightness", -0.5, sign=-1),
    "Blond_Hair": Attribute("Hair_Lightness", 0.7),
    "Gray_Hair": Attribute("Gray_Hair", 0.9),
    "Bald": Attribute("Bald", 1.1),
    "Bangs": Attribute("Bangs", 0.6),
    "Wearing_Hat": Attribute("Wearing_Hat", 1.1),
    "Wearing_Lipstick": Attribute("Wearing_Lipstick", 0.3),
    "Pale_Skin": Attribute("Pale_Skin", 0.8),
    "Narrow_Eyes": Attribute("Narrow_Eyes", 0.8),
    "Bushy_Eyebrows": Attribute("Bushy_Eyebrows", 0.6),
    "Arched_Eyebrows": Attribute("Arched_Eyebrows", 0.4),
    "Big_Nose": Attribute("Big_Nose", 0.7),
    "Rosy_Cheeks": Attribute("Rosy_Cheeks", 0.8),
    "Wearing_Earrings": Attribute("Wearing_Earrings", 0.7),
}

# Signs and rough sizes follow CelebA's attribute correlations; the values are our choice.
_CORRELATIONS = {
    ("Male", "Beard"): 0.55, ("Male", "Mustache"): 0.5, ("Male", "Bald"): 0.35, ("Male", "Bushy_Eyebrows"): 0.45,
    ("Male", "Big_Nose"): 0.3, ("Male", "Wearing_Lipstick"): -0.6, ("Male", "Hair_Length"): -0.6,
    ("Male", "Wearing_Earrings"): -0.45, ("Male", "Arched_Eyebrows"): -0.4, ("Male", "Rosy_Cheeks"): -0.25,
    ("Young", "Gray_Hair"): -0.55, ("Young", "Eyeglasses"): -0.3, ("Young", "Bald"): -0.35, ("Young", "Big_Nose"): -0.15,
    ("Smiling", "Mouth_Slightly_Open"): 0.5, ("Smiling", "Rosy_Cheeks"): 0.3, ("Smiling", "Narrow_Eyes"): 0.2,
    ("Beard", "Mustache"): 0.5, ("Beard", "Bushy_Eyebrows"): 0.25, ("Pale_Skin", "Hair_Lightness"): 0.35,
    ("Wearing_Lipstick", "Wearing_Earrings"): 0.4, ("Wearing_Lipstick", "Rosy_Cheeks"): 0.3,
    ("Wearing_Lipstick", "Arched_Eyebrows"): 0.3, ("Gray_Hair", "Eyeglasses"): 0.2, ("Gray_Hair", "Bald"): 0.15,
    ("Bald", "Bangs"): -0.35, ("Bald", "Hair_Length"): -0.4, ("Bangs", "Hair_Length"): 0.2, ("Wearing_Hat", "Bald"): -0.2,
    ("Wearing_Lipstick", "Hair_Length"): 0.35, ("Bushy_Eyebrows", "Arched_Eyebrows"): -0.2,
}  # fmt: skip


@cache
def factor_correlation() -> np.ndarray:
    """Correlation of the factors, (26, 26), positive definite with unit diagonal."""
    wanted = np.eye(len(FACTORS))
    for (a, b), value in _CORRELATIONS.items():
        i, j = FACTORS.index(a), FACTORS.index(b)
        wanted[i, j] = wanted[j, i] = value
    values, vectors = np.linalg.eigh(wanted)
    nearest = (vectors * np.maximum(values, 0.02)) @ vectors.T
    scale = np.sqrt(np.diag(nearest))
    return nearest / np.outer(scale, scale)


@cache
def factor_matrix() -> np.ndarray:
    """Symmetric square root A of the correlation: factors = Z A, (26, 26).

    Rounded to six decimals so that the last bits of a machine's eigenvalue routine cannot reach a picture.
    """
    values, vectors = np.linalg.eigh(factor_correlation())
    return np.round((vectors * np.sqrt(values)) @ vectors.T, 6)


def sample_z(seed: int, indices: Sequence[int]) -> np.ndarray:
    """Draw Z ~ N(0, I), (n, 26) float64, one random generator a face, seeded by (seed, index)."""
    rows = [np.random.Generator(np.random.Philox(key=(np.uint64(seed), np.uint64(i)))).standard_normal(len(FACTORS)) for i in indices]
    return np.stack(rows) if rows else np.empty((0, len(FACTORS)))


def z_to_factors(z: np.ndarray) -> np.ndarray:
    """Factors of Z, (n, 26), each N(0, 1). Summed term by term: a BLAS product rounds differently for other n."""
    matrix = factor_matrix()
    factors = np.zeros_like(z)
    for i in range(z.shape[1]):
        factors += z[:, i : i + 1] * matrix[i]
    return factors


def factors_to_attributes(factors: np.ndarray) -> np.ndarray:
    """Binary attributes of factors, (n, 21) bool, in the order of ``ATTRIBUTES``."""
    columns = [a.sign * factors[:, FACTORS.index(a.factor)] > a.sign * a.threshold for a in ATTRIBUTES.values()]
    return np.stack(columns, axis=1)


@cache
def designed_correlation() -> np.ndarray:
    """Correlation (21, 21) that the attributes have by construction: of thresholds of normals with ``factor_correlation``."""
    specs = list(ATTRIBUTES.values())
    design = np.eye(len(specs))
    for i, a in enumerate(specs):
        for j, b in enumerate(specs[:i]):
            rho = a.sign * b.sign * factor_correlation()[FACTORS.index(a.factor), FACTORS.index(b.factor)]
            share = norm.sf([a.sign * a.threshold, b.sign * b.threshold])
            limits = [-a.sign * a.threshold, -b.sign * b.threshold]
            both = multivariate_normal.cdf(limits, cov=[[1, rho], [rho, 1]], allow_singular=True)
            design[i, j] = design[j, i] = (both - share.prod()) / np.sqrt((share * (1 - share)).prod())
    return design


class RenderedFaces:
    """Image source of ``count`` rendered faces; pictures are drawn when asked for.

    Args:
        count: number of faces.
        size: side in pixels.
        seed: faces of different seeds share nothing; face ``i`` of a seed is the same for every ``count``.
        first: index of the first face.
    """

    def __init__(self, count: int, size: int = 64, seed: int = 42, first: int = 0):
        if count < 1:
            raise ValueError(f"count of rendered faces is {count}, expected at least 1")
        self.size, self.seed = size, seed
        self.indices = np.arange(first, first + count)
        self.z = sample_z(seed, self.indices)
        self.factors = z_to_factors(self.z)
        self.attributes = factors_to_attributes(self.factors)
        self.attribute_names = tuple(ATTRIBUTES)
        self.ids = np.array([f"face-{seed}-{i:06d}" for i in self.indices])
        self.groups = None
        self.report = SourceReport(used=count)

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, rows: Sequence[int]) -> np.ndarray:
        """Pictures (n, size, size, 3) uint8 in the order of ``rows``."""
        return render(self.factors[np.asarray(rows, dtype=int)], self.size)


BLUE = (0.62, 0.86, 1.55)  # a tint of skin that no face of ``RenderedFaces`` has: an edit to it leaves the training data


def render(factors: np.ndarray, size: int = 64, tint: Sequence[float] | None = None) -> np.ndarray:
    """Draw faces.

    Args:
        factors: (n, 26), columns as ``FACTORS``, in standard deviations.
        size: side in pixels.
        tint: (3,) colour of the skin, as a multiple of its brightness, in place of its own hue (``BLUE``).

    Returns:
        (n, size, size, 3) uint8, sRGB.
    """
    if factors.ndim != 2 or factors.shape[1] != len(FACTORS):
        raise ValueError(f"factors have shape {factors.shape}, expected (n, {len(FACTORS)}): one column per name in FACTORS")
    pictures = np.empty((len(factors), size, size, 3), dtype=np.uint8)
    for picture, row in zip(pictures, factors, strict=True):
        picture[:] = _draw(SimpleNamespace(**dict(zip(FACTORS, row.tolist(), strict=True)), tint=tint), size)
    return pictures


# --- drawing ---------------------------------------------------------------------------------------------------------
# Coordinates: x to the right, y down, the picture spans [-0.88, 0.88] in both. Colours are sRGB in [0, 1].

_SPAN = 0.88


class _Canvas:
    """A picture and the coordinates of its pixels. Shapes are painted inside a box, for speed."""

    def __init__(self, size: int):
        self.rgb = np.empty((size, size, 3), np.float32)
        self.size, self.pixel = size, 2 * _SPAN / size
        centres = ((np.arange(size) + 0.5) * self.pixel - _SPAN).astype(np.float32)
        self.x, self.y = np.meshgrid(centres, centres)

    def box(self, x0: float, x1: float, y0: float, y1: float) -> tuple[slice, slice]:
        """Slices of the pixels that touch the box, at least one pixel wide."""
        span = [min(max(int((v + _SPAN) / self.pixel), 0), self.size) for v in (x0, x1, y0, y1)]
        return slice(span[2], max(span[3] + 1, span[2] + 1)), slice(span[0], max(span[1] + 1, span[0] + 1))

    def blend(self, where: tuple[slice, slice], weight: np.ndarray, colour: np.ndarray) -> None:
        """Mix ``colour`` into the pixels with ``weight`` in [0, 1]."""
        part = self.rgb[where]
        part += weight[..., None] * (colour - part)

    def fill(self, where: tuple[slice, slice], distance: np.ndarray, colour: np.ndarray, opacity: float = 1.0) -> None:
        """Paint the inside (negative) of a signed distance field, anti-aliased over one pixel."""
        self.blend(where, _cover(distance, self.pixel) * opacity, colour)


def _cover(distance: np.ndarray, pixel: float) -> np.ndarray:
    return np.clip(0.5 - distance / pixel, 0, 1)


def _ellipse(x: np.ndarray, y: np.ndarray, rx: float, ry: float, power: float = 2.0) -> np.ndarray:
    """Radial distance to a (super)ellipse around the origin; exact on the outline, which is all that filling needs."""
    if power == 2.0:
        k = np.sqrt((x / rx) ** 2 + (y / ry) ** 2) + 1e-6
    else:
        k = (np.abs(x / rx) ** power + np.abs(y / ry) ** power) ** (1 / power) + 1e-6
    return np.sqrt(x * x + y * y) * (1 - 1 / k)


def _step(value: float, threshold: float, width: float) -> float:
    """Smooth step of a factor: 0 below, 1 above the threshold, over about four widths."""
    return float(1 / (1 + np.exp(-np.clip((value - threshold) / width, -40, 40))))


def _tilt(value: float, threshold: float, width: float) -> float:
    """From about -1.5 to 1.5: quick around the threshold, so that the attribute is seen, and slow beyond it, so that it has grades."""
    return float(np.tanh((value - threshold) / width) + 0.25 * np.clip(value - threshold, -2, 2))


def _lerp(value: float, points: Sequence[float], colours: Sequence[Sequence[float]]) -> np.ndarray:
    table = np.asarray(colours)
    return np.array([np.interp(value, points, table[:, c]) for c in range(3)], dtype=np.float32)


def _colour(*rgb: float) -> np.ndarray:
    return np.array(rgb, dtype=np.float32)


_SKIN = ((-2.2, -0.9, 0.2, 0.65, 0.95, 2.2), ((0.40, 0.25, 0.17), (0.56, 0.36, 0.25), (0.76, 0.53, 0.39), (0.82, 0.61, 0.48), (0.96, 0.81, 0.71), (1.0, 0.92, 0.88)))
_HAIR = (
    (-2.0, -0.65, -0.35, 0.5, 0.85, 2.0),
    ((0.05, 0.05, 0.07), (0.11, 0.08, 0.08), (0.32, 0.18, 0.10), (0.53, 0.33, 0.16), (0.89, 0.70, 0.33), (0.99, 0.89, 0.58)),
)
_DARK = _colour(0.10, 0.07, 0.07)


def _draw(f: SimpleNamespace, size: int) -> np.ndarray:
    canvas = _Canvas(size)
    s = _shape(f)
    for layer in (
        _background, _back_hair, _clothes, _neck, _ears, _head, _age, _cheeks, _beard, _nose, _mouth, _mustache, _eyes,
        _brows, _glasses, _front_hair, _hat, _earrings,
    ):  # fmt: skip
        layer(canvas, f, s)
    return np.clip(canvas.rgb * 255 + 0.5, 0, 255).astype(np.uint8)


def _shape(f: SimpleNamespace) -> SimpleNamespace:
    """Numbers that several layers share: places, sizes and colours that follow from the factors."""
    male = np.tanh(f.Male)
    skin = _lerp(f.Pale_Skin, *_SKIN)
    if f.tint is not None:
        skin = np.clip(skin.mean() * _colour(*f.tint), 0, 1)
    gray = _step(f.Gray_Hair, 0.75, 0.18)
    hair = _lerp(f.Hair_Lightness, *_HAIR)
    hair = hair + gray * (_colour(0.74, 0.75, 0.79) - hair)
    turn = 0.11 * np.tanh(f.Pose / 1.4)
    return SimpleNamespace(
        cx=0.35 * turn, cy=0.10, fx=1.25 * turn,  # centre of the head; features move further than the head when it turns
        rx=0.475 + 0.025 * male, ry=0.60, jaw=2.35 + 0.45 * male, male=male, skin=skin, hair=hair, turn=turn,
        light=0.13 * np.tanh(f.Light / 1.3), bald=_step(f.Bald, 0.98, 0.035), hat=_step(f.Wearing_Hat, 1.0, 0.03),
        eye_y=0.02, mouth_y=0.405, grin=_tilt(f.Smiling, 0.0, 0.35),
    )  # fmt: skip


def _background(c: _Canvas, f: SimpleNamespace, s: SimpleNamespace) -> None:
    warm, tint = np.tanh(f.Background_Warmth / 1.5), np.tanh(f.Background_Tint / 1.5)
    base = _colour(0.58, 0.66, 0.70) + warm * _colour(0.20, 0.02, -0.20) + tint * _colour(0.10, -0.16, 0.12)
    glow = np.exp(-((c.x - 0.9 * np.sign(s.light)) ** 2 + (c.y + 0.7) ** 2) / 1.6) * (0.9 * abs(s.light))
    shade = (0.98 - 0.13 * c.y + glow)[..., None]
    c.rgb[:] = np.clip(base * shade, 0, 1)


def _hair_shade(x: np.ndarray, y: np.ndarray, hair: np.ndarray, light: float) -> np.ndarray:
    """Hair colour with strands and one soft highlight, (h, w, 3)."""
    strands = 0.03 * np.sin(20 * x + 3 * np.sin(3 * y))
    gloss = 0.22 * np.exp(-(((x - 2.0 * light + 0.08) / 0.30) ** 2) - ((y + 0.50) / 0.09) ** 2)
    return hair * (0.93 + strands + light * x)[..., None] + gloss[..., None] * (0.25 + 0.75 * hair)


def _back_hair(c: _Canvas, f: SimpleNamespace, s: SimpleNamespace) -> None:
    visible = 1 - s.bald
    if visible < 0.004:
        return
    length = 0.30 + 0.36 * np.tanh(f.Hair_Length / 1.2)  # y of the lower end relative to the chin line
    where = c.box(-0.75, 0.75, -0.75, min(0.98, 0.45 + length + 0.1))
    x, y = c.x[where] - s.cx, c.y[where] - s.cy
    end = 0.38 + length
    flare = 0.565 - 0.11 * _step(-f.Hair_Length, 0.55, 0.25) + 0.05 * np.clip(y, 0, 1) * max(length, 0) * 2
    body = np.maximum(np.abs(x) - flare, y - end)
    cap = _ellipse(x, y + 0.10, 0.575, 0.62)
    shape = np.where(y < -0.05, cap, np.maximum(body, -0.3 - y))
    c.fill(where, shape, _hair_shade(x, y, s.hair * 0.80, s.light), visible)


def _clothes(c: _Canvas, f: SimpleNamespace, s: SimpleNamespace) -> None:
    where = c.box(-1, 1, 0.62, 1)
    x, y = c.x[where], c.y[where]
    colour = _lerp(np.tanh(f.Clothes / 1.3) * 2, (-2, -0.7, 0.7, 2), ((0.13, 0.42, 0.40), (0.22, 0.34, 0.55), (0.55, 0.28, 0.42), (0.75, 0.36, 0.20)))
    shade = (1 + 1.2 * s.light * x - 0.25 * (y - 0.7))[..., None]
    c.fill(where, _ellipse(x, y - 1.13, 0.80 + 0.05 * s.male, 0.47), colour * shade)


def _neck(c: _Canvas, f: SimpleNamespace, s: SimpleNamespace) -> None:
    where = c.box(-0.5, 0.5, 0.4, 1)
    x, y = c.x[where] - 0.5 * s.cx, c.y[where]
    width = 0.205 + 0.035 * s.male
    shape = np.maximum(np.abs(x) - width - 0.10 * np.clip(y - 0.78, 0, 1), y - 0.86 - 0.10 * np.cos(np.clip(x / width, -1.5, 1.5)))
    shadow = 0.78 - 0.16 * np.exp(-(((y - 0.70) / 0.10) ** 2)) + 0.8 * s.light * x / width * 0.5
    c.fill(where, shape, s.skin * shadow[..., None])


def _ears(c: _Canvas, f: SimpleNamespace, s: SimpleNamespace) -> None:
    for side in (-1, 1):
        ex = s.cx + side * (s.rx + 0.015) - 0.3 * s.turn
        where = c.box(ex - 0.13, ex + 0.13, -0.1, 0.3)
        x, y = c.x[where] - ex, c.y[where] - 0.10
        lit = 0.93 + s.light * side
        c.fill(where, _ellipse(x, y, 0.085, 0.13), s.skin * lit)
        c.fill(where, _ellipse(x - 0.012 * side, y, 0.04, 0.075), s.skin * (lit * 0.80))


def _head(c: _Canvas, f: SimpleNamespace, s: SimpleNamespace) -> None:
    where = c.box(s.cx - 0.6, s.cx + 0.6, -0.56, 0.76)
    x, y = c.x[where] - s.cx, c.y[where] - s.cy
    upper = _ellipse(x, y, s.rx, s.ry)
    lower = _ellipse(x * (1 + 0.10 * np.clip(y, 0, 1) * (1 - s.male)), y, s.rx, s.ry, s.jaw)
    shape = np.where(y < 0, upper, lower)
    shade = 1.03 - 0.10 * (x / s.rx) ** 2 - 0.07 * (y / s.ry) + 1.25 * s.light * x / s.rx
    c.fill(where, shape, s.skin * shade[..., None])


def _age(c: _Canvas, f: SimpleNamespace, s: SimpleNamespace) -> None:
    """Wrinkles: forehead lines, folds from nose to mouth, lines under the eyes; they deepen as Young falls."""
    depth = 0.80 * _step(-f.Young, 0.42, 0.14) * (0.75 + 0.12 * np.clip(-f.Young, 0, 2))
    if depth < 0.004:
        return
    ink = s.skin * 0.42
    where = c.box(s.fx - 0.32, s.fx + 0.32, -0.33, -0.12)
    x, y = c.x[where] - s.fx, c.y[where]
    for level in (-0.30, -0.215):
        c.blend(where, depth * 0.85 * np.exp(-(((y - level - 0.10 * x * x) / 0.021) ** 2) - (x / 0.24) ** 4), ink)
    where = c.box(s.fx - 0.36, s.fx + 0.36, 0.10, 0.55)
    x, y = np.abs(c.x[where] - s.fx), c.y[where]
    fold = x - 0.135 - 0.42 * (y - 0.22)
    c.blend(where, depth * np.exp(-((fold / 0.027) ** 2) - ((y - 0.32) / 0.12) ** 4), ink)
    bag = y - 0.155 - 0.6 * (x - 0.20) ** 2 * -1
    c.blend(where, depth * 0.8 * np.exp(-((bag / 0.021) ** 2) - ((x - 0.20) / 0.085) ** 4), ink)


def _cheeks(c: _Canvas, f: SimpleNamespace, s: SimpleNamespace) -> None:
    glow = 0.85 * _step(f.Rosy_Cheeks, 0.70, 0.14) * (0.8 + 0.1 * np.clip(f.Rosy_Cheeks, 0, 2))
    if glow < 0.004:
        return
    where = c.box(s.fx - 0.5, s.fx + 0.5, 0.0, 0.5)
    x, y = np.abs(c.x[where] - s.fx), c.y[where]
    rose = np.clip(s.skin * _colour(1.05, 0.55, 0.55) + _colour(0.12, 0.0, 0.03), 0, 1)
    c.blend(where, glow * np.exp(-(((x - 0.280) / 0.110) ** 2) - ((y - 0.235) / 0.090) ** 2), rose)


def _beard(c: _Canvas, f: SimpleNamespace, s: SimpleNamespace) -> None:
    """A full beard: density and length grow with the factor; stubble just below the threshold."""
    density = 0.94 * _step(f.Beard, 0.42, 0.16)
    if density < 0.004:
        return
    grow = 0.06 * np.clip(f.Beard - 0.3, 0, 2.2)
    where = c.box(s.cx - 0.6, s.cx + 0.6, 0.0, 0.92)
    x, y = c.x[where] - s.cx, c.y[where] - s.cy
    outer = _ellipse(x, y, s.rx + 0.006 + 0.25 * grow, s.ry + 0.005 + grow, s.jaw)
    u = x - (s.fx - s.cx)
    inner = _ellipse(u, y - 0.02, 0.335, 0.245, 2.6)  # bare cheeks
    lips = _ellipse(u, y - (s.mouth_y - s.cy), 0.165, 0.085)
    shape = np.maximum(np.maximum(outer, -inner), np.maximum(-lips, 0.05 - y))
    strands = 0.92 + 0.04 * np.sin(24 * x + 6 * y) + 0.8 * s.light * x
    soft = np.clip(0.5 - shape / (1.6 * c.pixel), 0, 1)
    c.blend(where, soft * density, s.hair * 0.82 * strands[..., None])


def _nose(c: _Canvas, f: SimpleNamespace, s: SimpleNamespace) -> None:
    big = _tilt(f.Big_Nose, 0.6, 0.35)
    wide, tip = 0.100 + 0.034 * big, 0.228 + 0.018 * big
    x0 = s.fx + 0.35 * s.turn
    where = c.box(x0 - 0.2, x0 + 0.2, -0.05, 0.36)
    x, y = c.x[where] - x0, c.y[where]
    side = np.tanh(s.light / 0.03)
    ridge = np.exp(-(((x + side * 0.045) / 0.030) ** 2)) * _cover(np.abs(y - 0.09) - 0.11, 0.06)
    c.blend(where, 0.22 * ridge, s.skin * 0.55)
    c.fill(where, _ellipse(x, y - tip + 0.012, wide, 0.052 + 0.016 * big), s.skin * 0.80)
    c.fill(where, _ellipse(x, y - tip + 0.027, wide * 0.90, 0.050 + 0.016 * big), np.clip(s.skin * 1.05, 0, 1))
    for hole in (-1, 1):
        c.fill(where, _ellipse(x - hole * wide * 0.50, y - tip - 0.016, 0.026, 0.016), s.skin * 0.38, 0.9)


def _mouth(c: _Canvas, f: SimpleNamespace, s: SimpleNamespace) -> None:
    """Two lips between parabolas; a smile bends and widens them, an open mouth shows teeth and a dark inside."""
    x0, w = s.fx, 0.195 + 0.030 * s.grin
    gape = 0.105 * _step(f.Mouth_Slightly_Open, 0.20, 0.16) * (0.75 + 0.25 * np.clip(f.Mouth_Slightly_Open, 0, 2))
    where = c.box(x0 - 0.3, x0 + 0.3, 0.25, 0.66)
    x, y = c.x[where] - x0, c.y[where] - s.mouth_y
    q = np.clip((x / w) ** 2, 0, 1.4)
    bend = 0.095 * s.grin * (0.45 - q) + 0.010  # corners go up when positive (y points down)
    taper = np.clip(1 - q, 0, 1)
    slope = 1 / np.sqrt(1 + (0.190 * s.grin * x / w**2) ** 2)  # keeps a steep line as thin as a flat one
    full = 0.034 + 0.008 * (1 - s.male) / 2 + 0.010 * _step(f.Wearing_Lipstick, 0.3, 0.3)
    round_off = 0.25 + 0.75 * np.sqrt(taper)
    top, bottom = bend - full * round_off, bend + gape * taper + 1.15 * full * round_off
    ends = np.abs(x) - w
    paint = _step(f.Wearing_Lipstick, 0.25, 0.12)
    natural = s.skin * _colour(0.86, 0.62, 0.62)
    lips = natural + paint * (_colour(0.80, 0.08, 0.16) - natural)
    c.fill(where, np.maximum(np.maximum(top - y, y - bottom) * slope, ends), lips)
    seam = np.maximum(np.maximum(bend - 0.007 - y, y - bend - gape * taper - 0.007) * slope, ends + 0.012)
    c.fill(where, seam, _colour(0.28, 0.07, 0.08))
    if gape > 0.004:
        teeth = np.maximum(np.maximum(bend + 0.004 - y, y - bend - 0.48 * gape * taper), ends + 0.022)
        c.fill(where, teeth, _colour(0.97, 0.96, 0.93), min(1.0, gape / 0.03))
    dimple = 0.40 * _step(f.Smiling, 0.2, 0.2)
    c.blend(where, dimple * np.exp(-(((np.abs(x) - w - 0.035) / 0.018) ** 2) - ((y + 0.030) / 0.045) ** 2), s.skin * 0.62)


def _mustache(c: _Canvas, f: SimpleNamespace, s: SimpleNamespace) -> None:
    density = 0.96 * _step(f.Mustache, 0.68, 0.13)
    if density < 0.004:
        return
    grow = np.clip(f.Mustache - 0.5, 0, 2)
    where = c.box(s.fx - 0.34, s.fx + 0.34, 0.22, 0.48)
    x, y = c.x[where] - s.fx, c.y[where] - 0.322
    w, h = 0.175 + 0.030 * grow, 0.040 + 0.012 * grow
    wing = _ellipse(np.abs(x) - 0.52 * w, y - 0.30 * (np.abs(x) - 0.4 * w) * 0.6, 0.56 * w, h)
    c.fill(where, wing, _DARK * 0.7 + s.hair * 0.30, density)


def _eyes(c: _Canvas, f: SimpleNamespace, s: SimpleNamespace) -> None:
    narrow = 0.85 * _step(f.Narrow_Eyes, 0.70, 0.18) + 0.15 * _step(f.Narrow_Eyes, 0.7, 0.8)
    height = 0.088 - 0.058 * narrow
    iris = _lerp(f.Pale_Skin, (-0.5, 0.4, 1.5), ((0.24, 0.14, 0.09), (0.30, 0.36, 0.26), (0.24, 0.43, 0.66)))
    for side in (-1, 1):
        x0 = s.fx + side * 0.195
        where = c.box(x0 - 0.17, x0 + 0.17, s.eye_y - 0.16, s.eye_y + 0.16)
        x, y = c.x[where] - x0, c.y[where] - s.eye_y
        lid = _ellipse(x, y, 0.112, height)
        c.fill(where, _ellipse(x, y - 0.004, 0.128, height + 0.026), s.skin * 0.80, 0.65)
        c.fill(where, lid, _colour(0.98, 0.98, 0.97))
        look = 0.25 * s.turn
        c.fill(where, np.maximum(_ellipse(x - look, y, 0.062, 0.062), lid), iris)
        c.fill(where, np.maximum(_ellipse(x - look, y, 0.032, 0.032), lid), _DARK)
        c.fill(where, np.maximum(_ellipse(x - look + 0.022, y + 0.022, 0.018, 0.018), lid), _colour(1, 1, 1), 0.95)
        lash = np.maximum(np.abs(lid) - 0.013, y + 0.10 * height)
        c.fill(where, lash, _DARK, 0.92)


def _brows(c: _Canvas, f: SimpleNamespace, s: SimpleNamespace) -> None:
    thick = 0.016 + 0.036 * _step(f.Bushy_Eyebrows, 0.57, 0.10) + 0.006 * np.clip(f.Bushy_Eyebrows, -1, 2)
    arch = 0.100 * _step(f.Arched_Eyebrows, 0.38, 0.12) + 0.012 * np.clip(f.Arched_Eyebrows, -1, 2)
    colour = _DARK * 0.7 + s.hair * 0.22  # darker than hair and skin, so that they are seen on every face
    for side in (-1, 1):
        x0 = s.fx + side * 0.20
        where = c.box(x0 - 0.20, x0 + 0.20, s.eye_y - 0.36, s.eye_y - 0.05)
        u = (c.x[where] - x0) * side / 0.145  # -1 at the nose, 1 at the temple
        ridge = s.eye_y - 0.150 - arch * (1 - (u - 0.25) ** 2) + 0.022 * u
        y = c.y[where] - ridge
        taper = thick * np.clip(1.0 - 0.25 * u, 0.5, 1.4)
        c.fill(where, np.maximum(np.abs(y) - taper, (np.abs(u) - 1) * 0.145), colour, 0.95)


def _glasses(c: _Canvas, f: SimpleNamespace, s: SimpleNamespace) -> None:
    """Frames appear at the threshold and grow thicker with the factor."""
    visible = _step(f.Eyeglasses, 0.58, 0.09)
    if visible < 0.004:
        return
    thick = 0.015 + 0.008 * np.clip(f.Eyeglasses - 0.4, 0, 2)
    frame, r = _colour(0.13, 0.11, 0.16), 0.150
    where = c.box(s.fx - 0.62, s.fx + 0.62, s.eye_y - 0.24, s.eye_y + 0.26)
    x, y = c.x[where] - s.fx, c.y[where] - s.eye_y - 0.018
    ring = _ellipse(np.abs(x) - 0.200, y, r, r * 0.92, 2.6)
    c.fill(where, ring, _colour(0.85, 0.93, 1.0), 0.16 * visible)
    c.fill(where, np.abs(ring) - thick, frame, visible)
    bridge = np.maximum(np.abs(y + 0.02 + 0.5 * x * x) - thick * 0.8, np.abs(x) - 0.05)
    temple = np.maximum(np.abs(y + 0.03) - thick * 0.7, np.maximum(0.200 + r - np.abs(x), np.abs(x + s.fx - s.cx) - s.rx - 0.01))
    c.fill(where, np.minimum(bridge, temple), frame, visible)


def _front_hair(c: _Canvas, f: SimpleNamespace, s: SimpleNamespace) -> None:
    """The cap of hair above the hair line. Bald bares the crown and leaves a low fringe; bangs bring the line down."""
    where = c.box(-0.8, 0.8, -0.75, 0.42)
    x, y = c.x[where] - s.cx, c.y[where] - s.cy
    cap = _ellipse(x, y + 0.10, 0.585, 0.63)
    u = x - 0.6 * (s.fx - s.cx)
    recede = 0.07 * np.clip(f.Bald + 0.5, 0, 1.5)
    line = -0.40 - recede + (0.95 + 1.2 * recede) * u**2 + 0.12 * np.clip(s.male, 0, 1) * np.abs(u)
    fringe = _step(f.Bangs, 0.48, 0.10)
    low = -0.285 + 0.10 * u**2 - 0.025 * np.clip(f.Bangs - 0.5, 0, 2) * -1 + 0.018 * np.abs(np.sin(14 * u))
    line = line + fringe * (np.minimum(low, 0.6) - line)
    long = 0.5 + 0.5 * np.tanh(f.Hair_Length / 1.2)
    sides = np.maximum(np.abs(x) - 0.47 - 0.13 * _step(f.Hair_Length, -0.55, 0.25), 0.425 - 0.015 * long - np.abs(x))  # strips beside the face
    strip_end = 0.02 + 0.40 * long
    sides = np.maximum(sides, y - strip_end)
    shape = np.maximum(cap, np.minimum((y - line) * 0.8, sides))
    colour = _hair_shade(x, y, s.hair, s.light)
    c.fill(where, shape, colour, 1 - s.bald)
    if s.bald > 0.004:
        ring = np.maximum(_ellipse(x, y + 0.06, 0.555, 0.60), np.maximum(np.abs(y - 0.0) - 0.17, s.rx - 0.045 + 0.10 * np.clip(-y, -0.1, 1) - np.abs(x)))
        c.fill(where, ring, colour, s.bald)
        c.blend(where, s.bald * 0.35 * np.exp(-(((x + 0.14 - 2 * s.light) / 0.13) ** 2) - ((y + 0.46) / 0.055) ** 2), _colour(1, 1, 1))


def _hat(c: _Canvas, f: SimpleNamespace, s: SimpleNamespace) -> None:
    """A bowler: sharp from the threshold on, its crown grows with the factor; it leaves the hair line in sight."""
    if s.hat < 0.004:
        return
    tall = 0.40 + 0.07 * np.clip(f.Wearing_Hat - 0.8, 0, 2)
    colour = _lerp(np.tanh(f.Background_Tint / 1.5 - f.Clothes / 2) * 2, (-2, 0, 2), ((0.16, 0.42, 0.62), (0.72, 0.20, 0.24), (0.86, 0.62, 0.16)))
    where = c.box(-0.85, 0.85, -1, -0.2)
    x, y = c.x[where] - s.cx, c.y[where] + 0.38
    shade = (1.0 + 1.3 * s.light * x - 0.25 * (y + 0.2))[..., None]
    crown = np.maximum(_ellipse(x, y, 0.50, tall, 2.5), y)
    c.fill(where, crown, colour * shade, s.hat)
    c.fill(where, np.maximum(np.maximum(crown, -0.085 - y), y), colour * 0.40, s.hat)
    c.fill(where, _ellipse(x, y - 0.005, 0.70, 0.052), colour * 0.78 * shade, s.hat)


def _earrings(c: _Canvas, f: SimpleNamespace, s: SimpleNamespace) -> None:
    visible = _step(f.Wearing_Earrings, 0.58, 0.10)
    if visible < 0.004:
        return
    r = 0.052 + 0.014 * np.clip(f.Wearing_Earrings - 0.4, 0, 2)
    for side in (-1, 1):
        x0 = s.cx + side * (s.rx + 0.035) - 0.3 * s.turn
        where = c.box(x0 - 0.15, x0 + 0.15, 0.16, 0.48)
        x, y = c.x[where] - x0, c.y[where] - 0.24 - r
        c.fill(where, _ellipse(x, y, r, r), _colour(0.93, 0.72, 0.13), visible)
        c.fill(where, _ellipse(x + 0.3 * r, y + 0.3 * r, 0.35 * r, 0.35 * r), _colour(1, 0.96, 0.72), visible)
