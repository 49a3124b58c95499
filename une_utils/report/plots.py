"""The plots that more than one notebook uses: arrays or DataFrames in, a matplotlib Figure out.

Colours, markers and lines follow the role of the data (:data:`une_utils.report.style.ROLES`); ``roles`` maps the name that the
legend shows to such a role. Captions are kept out of the figures: ``save_figure`` takes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import ndtri

from une_utils.report.style import WIDTH, role

GAP = 2  # white pixels between pictures
LEGEND = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5), "borderaxespad": 0.0}


def contact_sheet(images: np.ndarray, columns: int, title: str, labels: Sequence[str] | None = None) -> Figure:
    """Pictures side by side, row by row.

    Args:
        images: (N, H, W, 3) uint8.
        columns: pictures per row; the last row may be shorter.
        labels: N short texts drawn above the pictures.

    Raises:
        ValueError: wrong shape or dtype, no picture, or a number of labels other than N.
    """
    _check_images(images, 4)
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"{len(labels)} labels for {len(images)} pictures")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    blank = np.full((rows * columns - len(images), *images.shape[1:]), 255, np.uint8)
    grid = np.concatenate([images, blank]).reshape(rows, columns, *images.shape[1:])
    gap = GAP if labels is None else GAP + math.ceil(0.3 * images.shape[1])  # room for the text
    fig, ax = _show_mosaic(grid, (gap, GAP), title)
    for i, label in enumerate(labels or ()):
        y, x = _corner(grid, (gap, GAP), *divmod(i, columns))
        ax.text(x + images.shape[2] / 2 - 0.5, y - 1.5, label, ha="center", va="bottom", fontsize=9)
    return fig


def strip_grid(rows: np.ndarray, row_labels: Sequence[str], column_labels: Sequence[str], title: str) -> Figure:
    """One strip of pictures per row (an edit, a reconstruction), with labels on the left and on top.

    Args:
        rows: (R, C, H, W, 3) uint8.
        row_labels: R texts. column_labels: C texts.

    Raises:
        ValueError: wrong shape or dtype, or label counts that do not fit.
    """
    _check_images(rows, 5)
    if (len(row_labels), len(column_labels)) != rows.shape[:2]:
        raise ValueError(f"{len(row_labels)} row and {len(column_labels)} column labels for a grid of {rows.shape[:2]}")
    fig, ax = _show_mosaic(rows, (GAP, GAP), title)
    height, width = rows.shape[2:4]
    for r, label in enumerate(row_labels):
        y, _ = _corner(rows, (GAP, GAP), r, 0)
        ax.text(-0.1 * width, y + height / 2, label, ha="right", va="center", fontsize=10)
    for c, label in enumerate(column_labels):
        _, x = _corner(rows, (GAP, GAP), 0, c)
        ax.text(x + width / 2, -0.05 * height, label, ha="center", va="bottom", fontsize=10)
    return fig


def _check_images(images: np.ndarray, dimensions: int) -> None:
    if images.ndim != dimensions or images.shape[-1] != 3 or images.dtype != np.uint8 or images.size == 0:
        raise ValueError(f"expected uint8 pictures with {dimensions} axes, the last of 3, got {images.dtype} {images.shape}")


def _corner(grid: np.ndarray, gaps: tuple[int, int], row: int, column: int) -> tuple[int, int]:
    """Top left pixel (y, x) of a picture in the mosaic; the gap comes before each picture."""
    return row * (grid.shape[2] + gaps[0]) + gaps[0], column * (grid.shape[3] + gaps[1]) + gaps[1]


def mosaic(grid: np.ndarray, gaps: tuple[int, int]) -> np.ndarray:
    """(R, C, H, W, 3) uint8 -> one picture (R (H + gap) + gap, C (W + gap) + gap, 3), white between; gaps: (y, x) pixels."""
    rows, columns, height, width, _ = grid.shape
    canvas = np.full((rows * (height + gaps[0]) + GAP, columns * (width + gaps[1]) + gaps[1], 3), 255, np.uint8)
    for r in range(rows):
        for c in range(columns):
            y, x = _corner(grid, gaps, r, c)
            canvas[y : y + height, x : x + width] = grid[r, c]
    return canvas


def _show_mosaic(grid: np.ndarray, gaps: tuple[int, int], title: str) -> tuple[Figure, Axes]:
    """A figure of one picture, at most WIDTH wide and never blown up beyond 1.6 inches a picture."""
    canvas = mosaic(grid, gaps)
    width = min(WIDTH, 1.6 * grid.shape[1])
    fig, ax = plt.subplots(figsize=(width, width * canvas.shape[0] / canvas.shape[1] + 0.5))
    ax.imshow(canvas, interpolation="nearest")
    ax.set_axis_off()
    ax.set_title(title, pad=24)  # room for labels above the first row; a title of the figure would float over shrunk axes
    return fig, ax


def radar(frame: pd.DataFrame, roles: Mapping[str, str], title: str, value_label: str = "accuracy") -> Figure:
    """One spoke per attribute, one closed line per method, radius from 0.4 to 1.0 (UNE Fig. 3).

    Args:
        frame: rows attributes, columns methods, values in [0, 1]; a value below 0.4 moves the centre down to fit it.
        roles: column -> role; its order is the legend's, columns without a role are not drawn.

    Two attributes make no radar: below three, the same values are drawn as dots on straight axes.
    """
    _check_roles(frame.columns, roles)
    lowest = min(0.4, math.floor(10 * float(frame[list(roles)].min(axis=None))) / 10)
    round_plot = len(frame) >= 3
    fig, ax = plt.subplots(figsize=(WIDTH, 5.5), subplot_kw={"projection": "polar"} if round_plot else {})
    angles = np.linspace(0, 2 * np.pi, len(frame), endpoint=False) if round_plot else np.arange(len(frame))
    close = [*range(len(frame)), 0] if round_plot else list(range(len(frame)))
    for method, name in roles.items():
        look = role(name)
        line = look.line if round_plot else "none"
        ax.plot(angles[close], frame[method].to_numpy()[close], color=look.color, marker=look.marker, ms=5, ls=line, label=method)
    ax.set_ylim(lowest, 1.0)
    ax.set_xticks(angles, [str(name).replace("_", " ") for name in frame.index])
    if round_plot:
        ax.tick_params(axis="x", labelsize=8 if len(frame) > 20 else 10, pad=8 if len(frame) <= 20 else 2)
        for label, angle in zip(ax.get_xticklabels(), angles, strict=True):  # side by side they would overlap at the top and the bottom
            label.set_horizontalalignment("center" if abs(np.cos(angle)) < 1e-9 else "left" if np.cos(angle) > 0 else "right")
        ax.set_rlabel_position(180 / len(frame))
    else:
        ax.margins(x=0.3)
        ax.set_xlabel("attribute")
        ax.set_ylabel(value_label)
    ax.set_title(f"{title} ({value_label})" if round_plot else title, pad=18)
    ax.legend(**(LEGEND | {"bbox_to_anchor": (1.2, 0.5)} if round_plot else LEGEND))
    return fig


def _check_roles(names: Sequence[str], roles: Mapping[str, str]) -> None:
    missing = [name for name in roles if name not in set(names)]
    if missing or not roles:
        raise ValueError(f"roles should name some of {', '.join(map(str, names))}; unknown: {', '.join(missing) or 'none given'}")


def interval_dots(
    frame: pd.DataFrame,
    x: str,
    low: str,
    high: str,
    y: str,
    hue: str,
    roles: Mapping[str, str],
    title: str,
    x_label: str,
    reference: float | None = None,
) -> Figure:
    """Dots with interval bars, one line per value of ``y``, one colour per value of ``hue``.

    Args:
        frame: long form, one row per dot; ``x``, ``low``, ``high``, ``y`` and ``hue`` name its columns. A row whose interval
            is missing (NaN) is a dot without bar.
        roles: value of ``hue`` -> role. The first one decides the order of the lines, largest on top. Where ``hue`` is ``y``
            itself, every line has one dot, the lines are sorted by it, and there is no legend. A role may have no row (nothing was
            measured for it); a frame without any row gives empty axes that say so.
        x_label: quantity and unit.
        reference: a vertical line, for example at chance level.
    """
    if len(frame):
        _check_roles(frame[hue].unique(), {name: role for name, role in roles.items() if name in set(frame[hue])})
    one_each = hue == y
    first = (frame if one_each else frame[frame[hue] == next(iter(roles))]).set_index(y)[x].sort_values()
    names = [*(n for n in frame[y].unique() if n not in first.index), *first.index]
    dots = 1 if one_each else len(roles)
    offsets = np.linspace(0.3, -0.3, len(roles)) if dots > 1 else [0.0] * len(roles)
    fig, ax = plt.subplots(figsize=(WIDTH, 1.4 + max(0.32, 0.11 * dots) * len(names)))
    for offset, (value, name) in zip(offsets, roles.items(), strict=True):
        rows, look = frame[frame[hue] == value], role(name)
        heights = np.array([names.index(n) for n in rows[y]]) + offset
        ax.hlines(heights, rows[low], rows[high], color=look.color, lw=1.5)
        ax.plot(rows[x], heights, color=look.color, marker=look.marker, ms=6, ls="none", label=value)
    if reference is not None:
        ax.axvline(reference, color="#444444", lw=1, ls=":")
    ax.set_yticks(range(len(names)), [str(n).replace("_", " ") for n in names])
    ax.set_ylim(-0.6, max(len(names) - 0.4, 0.6))
    ax.set(title=title, xlabel=x_label, ylabel=y.replace("_", " "))
    if not len(frame):
        ax.text(0.5, 0.5, "no values", transform=ax.transAxes, ha="center", va="center")
    if not one_each:
        ax.legend(**LEGEND)
    return fig


def interval_lines(
    frame: pd.DataFrame,
    x: str,
    y: str,
    low: str,
    high: str,
    hue: str,
    roles: Mapping[str, str],
    title: str,
    x_label: str,
    y_label: str,
    reference: float | None = None,
    reference_label: str = "",
    log_x: bool = False,
) -> Figure:
    """Lines through dots with a band for their intervals, one per value of ``hue``.

    Args:
        frame: long form, one row per dot.
        roles: value of ``hue`` -> role, in the order of the legend.
        x_label, y_label: quantity and unit.
        reference: a horizontal line, named ``reference_label`` in the legend.
        log_x: logarithmic x axis with base 2.
    """
    _check_roles(frame[hue].unique(), roles)
    fig, ax = plt.subplots()
    for value, name in roles.items():
        rows, look = frame[frame[hue] == value].sort_values(x), role(name)
        ax.fill_between(rows[x], rows[low], rows[high], color=look.color, alpha=0.18, lw=0)
        ax.plot(rows[x], rows[y], color=look.color, marker=look.marker, ls=look.line, ms=6, label=value)
    if reference is not None:
        ax.axhline(reference, color="#444444", lw=1, ls=":", label=reference_label)
    if log_x:
        ax.set_xscale("log", base=2)
    ticks = sorted(frame[x].unique())
    ax.set_xticks(ticks, [f"{t:,}" for t in ticks])
    ax.set(title=title, xlabel=x_label, ylabel=y_label)
    ax.legend(**LEGEND)
    return fig


def scatter(clouds: Mapping[str, np.ndarray], roles: Mapping[str, str], title: str, x_label: str, y_label: str) -> Figure:
    """Point clouds in the plane: legend name -> (N, 2), drawn in the order of ``roles``, the last on top."""
    _check_roles(list(clouds), roles)
    fig, ax = plt.subplots(figsize=(WIDTH, 4.8))
    for label, name in roles.items():
        points, look = np.asarray(clouds[label]), role(name)
        ax.scatter(points[:, 0], points[:, 1], s=18, color=look.color, marker=look.marker, alpha=0.6, lw=0, label=label)
    ax.set(title=title, xlabel=x_label, ylabel=y_label)
    ax.legend(**LEGEND)
    return fig


def heatmap(
    matrix: np.ndarray,
    names: Sequence[str],
    title: str,
    *,
    value_label: str,
    axis_labels: tuple[str, str],
    column_names: Sequence[str] | None = None,
    limits: tuple[float, float] = (-1.0, 1.0),
) -> Figure:
    """A matrix (R, C) as colours with a colour bar; up to 12 x 12, the numbers are written in.

    Args:
        names: R row names, and the column names too unless ``column_names`` (C) are given.
        value_label: what the colours mean, with unit.
        axis_labels: (x, y).
        limits: ends of the colour scale; a scale around zero is diverging, any other is sequential.
    """
    columns = names if column_names is None else column_names
    if matrix.shape != (len(names), len(columns)):
        raise ValueError(f"matrix of {matrix.shape} for {len(names)} row and {len(columns)} column names")
    side = min(WIDTH, 2.5 + 0.45 * len(columns))
    fig, ax = plt.subplots(figsize=(side, min(WIDTH, 1.8 + 0.4 * len(names))))
    diverging = limits[0] == -limits[1]
    image = ax.imshow(matrix, vmin=limits[0], vmax=limits[1], cmap="RdBu_r" if diverging else "viridis", aspect="auto")
    ax.grid(False)
    ax.set_xticks(range(len(columns)), [str(n).replace("_", " ") for n in columns], rotation=45, ha="right")
    ax.set_yticks(range(len(names)), [str(n).replace("_", " ") for n in names])
    ax.set(title=title, xlabel=axis_labels[0], ylabel=axis_labels[1])
    if max(matrix.shape) <= 12:
        for (r, c), value in np.ndenumerate(matrix):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            ax.text(c, r, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if dark else "black")
    fig.colorbar(image, ax=ax, label=value_label)
    return fig


def qq_plot(samples: Mapping[str, np.ndarray], roles: Mapping[str, str], title: str, points: int = 200) -> Figure:
    """Quantiles of standardised samples against those of N(0, 1); a normal sample lies on the dotted diagonal.

    Args:
        samples: legend name -> values (N,), N >= 2; each is standardised by its own mean and standard deviation.
        roles: legend name -> role.
        points: most quantiles drawn per sample, at (i - 0.5) / points.
    """
    _check_roles(list(samples), roles)
    fig, ax = plt.subplots(figsize=(WIDTH, 5.0))
    for label, name in roles.items():
        values, look = np.asarray(samples[label], float), role(name)
        count = min(points, len(values))
        levels = (np.arange(count) + 0.5) / count
        drawn = np.quantile((values - values.mean()) / values.std(ddof=1), levels, method="hazen")
        ax.plot(ndtri(levels), drawn, color=look.color, marker=look.marker, ms=4, ls="none", label=label)
    ends = np.array([-3.0, 3.0])
    ax.plot(ends, ends, color=role("normal").color, ls=":", lw=1)
    ax.set(title=title, xlabel="quantile of N(0, 1)", ylabel="quantile of the standardised sample")
    ax.legend(**LEGEND)
    return fig


def spectrum_plot(
    spectra: Mapping[str, np.ndarray], roles: Mapping[str, str], null_low: np.ndarray, null_high: np.ndarray, title: str
) -> Figure:
    """Eigenvalues of covariances, largest first, on a logarithmic scale, over the band of N(0, I) at the same N and D.

    Args:
        spectra: legend name -> eigenvalues (K,), sorted here; those at or below zero cannot be drawn and are left out.
        roles: legend name -> role.
        null_low, null_high: (K,) ends of the band, largest eigenvalue first.
    """
    _check_roles(list(spectra), roles)
    fig, ax = plt.subplots()
    ranks = np.arange(1, len(null_low) + 1)
    ax.fill_between(ranks, null_low, null_high, color=role("normal").color, alpha=0.2, lw=0, label="N(0, I), same N and D")
    for label, name in roles.items():
        values, look = np.sort(np.asarray(spectra[label], float))[::-1], role(name)
        values = values[values > 0]
        ax.plot(np.arange(1, len(values) + 1), values, color=look.color, ls=look.line, lw=1.8, label=label)
    ax.set_yscale("log")
    ax.set(title=title, xlabel="rank of the eigenvalue", ylabel="eigenvalue of the covariance")
    ax.legend(**LEGEND)
    return fig
