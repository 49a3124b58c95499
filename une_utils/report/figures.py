"""Saving figures: PNG, SVG and one row in ``figures/<profile>/manifest.json``.

A row says what the figure was made from: the notebook's code, the resolved profile, the weights the profile names, and any
further files. ``stale_figures`` compares those hashes with the working tree, so a figure cannot outlive the code that drew it.
"""

from __future__ import annotations

import io
import json
import re
import textwrap
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from IPython.display import Image, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from une_utils import settings
from une_utils.files import MISSING, digest, json_digest, model_hash, read_json, write_atomic, write_json
from une_utils.report.style import SAVE_DPI, SVG_RC
from une_utils.settings import Profile

MAX_SVG_BYTES = 1_500_000


def notebook_path(number: str) -> Path:
    """The notebook of a number ("02", "11b"); raises ValueError when there is none or more than one."""
    found = sorted(settings.NOTEBOOKS.glob(f"{number}_*.ipynb"))
    if len(found) != 1:
        raise ValueError(f"expected one notebook {settings.NOTEBOOKS}/{number}_*.ipynb, found {len(found)}")
    return found[0]


def code_hash(path: Path) -> str:
    """Hash of the sources of a notebook's code cells; outputs, prose and metadata do not count."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    return digest(json.dumps(sources).encode())


def weights_hash(profile: Profile) -> str:
    """Hash of the weights of all models that a profile names."""
    hashes = {m.name: m.weights_hash for m in profile.models}
    if profile.oracle:
        hashes["oracle"] = model_hash(settings.MODELS / profile.oracle)
    return digest(json.dumps(hashes, sort_keys=True).encode())


def profile_hash(profile: Profile) -> str:
    """Hash of a profile's settings. Those that are empty (None, [], {}, "") do not count: a setting that is new, and off in
    this profile, leaves its results as they are."""
    return json_digest(_filled(profile.model_dump(mode="json")))


def _filled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _filled(v) for key, v in value.items() if v not in (None, [], {}, "")}
    return [_filled(v) for v in value] if isinstance(value, list) else value


def made_from(notebook: str, profile: Profile, inputs: Iterable[str] = ()) -> dict[str, Any]:
    """Short hashes of what a notebook's results come from.

    Args:
        notebook: number of the notebook ("02").
        profile: the resolved profile, overrides included.
        inputs: further files, as paths relative to the project's root.

    Returns:
        Keys ``notebook`` (code), ``profile``, ``weights`` and, when there are any, ``inputs`` (path -> hash).
    """
    hashes: dict[str, Any] = {
        "notebook": code_hash(notebook_path(notebook))[:16],
        "profile": profile_hash(profile)[:16],
        "weights": weights_hash(profile)[:16],
    }
    files = {name: _input_hash(settings.ROOT / name)[:16] for name in inputs}
    return hashes | ({"inputs": files} if files else {})


def _input_hash(path: Path) -> str:
    return digest(path.read_bytes()) if path.is_file() else MISSING


def save_figure(
    fig: Figure,
    name: str,
    *,
    notebook: str,
    profile: Profile,
    caption: str,
    inputs: Iterable[str | Path] | None = None,
) -> Path:
    """Save a figure as PNG and SVG and write its row in the manifest.

    The figure stays open, so the notebook shows it; the caption belongs to the manifest and the notebook, not to the picture.

    Args:
        fig: checked with :func:`check_figure`.
        name: file name without suffix, unique within the profile: small letters, digits, ``-`` and ``_``.
        notebook: number of the notebook that draws it ("02").
        profile: decides the folder, ``figures/<profile>/``.
        caption: one or two sentences, without Markdown.
        inputs: files of the repository, other than notebook, profile and weights, that the figure depends on.

    Returns:
        Path of the PNG.

    Raises:
        ValueError: bad name, empty caption, a name that another notebook uses, an input outside the repository, or a
            figure without title or axis labels.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise ValueError(f"figure name '{name}' should hold small letters, digits, '-' and '_' only")
    if not caption.strip():
        raise ValueError(f"figure '{name}' needs a caption")
    check_figure(fig)
    rows = read_manifest(profile)
    if rows.get(name, {}).get("notebook", notebook) != notebook:
        raise ValueError(f"figure '{name}' belongs to notebook {rows[name]['notebook']} already; choose another name")
    sources = made_from(notebook, profile, [_relative(p) for p in inputs or ()])

    png = _render(fig, "png")
    path = profile.figures_path / f"{name}.png"
    write_atomic(path, png)
    write_atomic(path.with_suffix(".svg"), _small_svg(fig, name))
    row = {"notebook": notebook, "profile": profile.name, "caption": caption.strip(), "sha256": digest(png), "made_from": sources}
    write_manifest(profile, read_manifest(profile) | {name: row})
    return path


def publisher(notebook: str, profile: Profile) -> Callable[[Figure, str, str], None]:
    """``show(fig, name, caption)`` for one notebook: saves the figure, shows it with its caption, and closes it."""

    def show(fig: Figure, name: str, caption: str) -> None:
        save_figure(fig, name, notebook=notebook, profile=profile, caption=caption)
        display(_inline(fig))
        print(textwrap.fill(f"Figure {name}: {caption}", 110))
        plt.close(fig)

    return show


def _inline(fig: Figure) -> Image:
    """The figure for a notebook's output, as PNG or JPEG, whichever is smaller: sheets of faces are five times smaller as JPEG."""
    renderings = {}
    for kind, options in {"png": {}, "jpeg": {"pil_kwargs": {"quality": 75}}}.items():
        buffer = io.BytesIO()
        fig.savefig(buffer, format=kind, dpi=80, bbox_inches="tight", **options)
        renderings[kind] = buffer.getvalue()
    kind = min(renderings, key=lambda k: len(renderings[k]))
    return Image(renderings[kind], format=kind, alt=fig.get_suptitle() or None)


def _relative(path: str | Path) -> str:
    full = (settings.ROOT / path).resolve()
    if not full.is_relative_to(settings.ROOT.resolve()):
        raise ValueError(f"input {path} lies outside the repository {settings.ROOT}; nobody else could check it")
    if not full.is_file():
        raise ValueError(f"input {full} is not a file")
    return full.relative_to(settings.ROOT.resolve()).as_posix()


def _render(fig: Figure, kind: str) -> bytes:
    """A figure's bytes as "png" or "svg": the same each time, so neither date nor version goes into the file."""
    metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}[kind]
    buffer = io.BytesIO()
    with mpl.rc_context(SVG_RC):
        fig.savefig(buffer, format=kind, dpi=SAVE_DPI, bbox_inches="tight", metadata=metadata)
    return buffer.getvalue()


def _small_svg(fig: Figure, name: str) -> bytes:
    """The SVG; one above MAX_SVG_BYTES gets its points and lines as a picture, its text stays text."""
    svg = _render(fig, "svg")
    if len(svg) <= MAX_SVG_BYTES:
        return svg
    artists = [a for ax in fig.axes for a in (*ax.lines, *ax.collections, *ax.patches)]
    before = [a.get_rasterized() for a in artists]
    for artist in artists:
        artist.set_rasterized(True)
    svg = _render(fig, "svg")
    for artist, value in zip(artists, before, strict=True):
        artist.set_rasterized(value)
    if len(svg) > MAX_SVG_BYTES:
        warnings.warn(f"figure '{name}': SVG of {len(svg) / 1e6:.1f} MB; show fewer or smaller pictures", stacklevel=3)
    return svg


def check_figure(fig: Figure) -> None:
    """Raise ValueError unless every axes with data has a title and axis labels.

    A title of the figure counts for all its axes, a title of one picture for all pictures (axes switched off); a label on
    the figure or on axes that share an axis counts too. Pictures and polar axes need no labels, a colour bar needs one.
    """
    axes = [ax for ax in fig.axes if ax.has_data()]
    if not axes:
        raise ValueError("the figure shows no data")
    figure_title = bool(fig.get_suptitle())
    for number, ax in enumerate(axes):
        problems = _problems(fig, ax, figure_title)
        if problems:
            raise ValueError(f"axes {number} of {len(axes)} ('{_title(ax)}') lacks: {', '.join(problems)}")


def _problems(fig: Figure, ax: Axes, figure_title: bool) -> list[str]:
    if hasattr(ax, "_colorbar"):  # matplotlib marks the axes of a colour bar this way
        return [] if ax.get_xlabel() or ax.get_ylabel() else ["label of the colour bar"]
    titled = figure_title or _title(ax) or (not ax.axison and any(_title(other) for other in fig.axes))
    problems = [] if titled else ["title"]
    if ax.axison and ax.name != "polar":
        problems += [] if fig.get_supxlabel() or _label(ax, "x") else ["x label"]
        problems += [] if fig.get_supylabel() or _label(ax, "y") else ["y label"]
    return problems


def _title(ax: Axes) -> str:
    return "".join(ax.get_title(loc) for loc in ("left", "center", "right"))


def _label(ax: Axes, axis: str) -> bool:
    siblings = ax.get_shared_x_axes().get_siblings(ax) if axis == "x" else ax.get_shared_y_axes().get_siblings(ax)
    return any(getattr(a, f"get_{axis}label")() for a in siblings)


def read_manifest(profile: Profile) -> dict[str, dict[str, Any]]:
    """Rows of a profile's manifest: figure name -> row."""
    rows = read_json(profile.figures_path / "manifest.json").get("figures", [])
    return {row["figure"]: {k: v for k, v in row.items() if k != "figure"} for row in rows}


def write_manifest(profile: Profile, rows: Mapping[str, dict[str, Any]]) -> None:
    """Write the manifest, sorted by the figures' names."""
    write_json(profile.figures_path / "manifest.json", {"figures": [{"figure": name, **rows[name]} for name in sorted(rows)]})


def stale_figures(profile_name: str | Path) -> list[tuple[str, str]]:
    """Figures of a profile that are not what the working tree would draw, with the reason.

    Reasons: PNG or SVG missing, PNG changed after it was saved, made from other code, profile, weights or inputs, notebook
    gone, or a picture that no row lists.
    """
    profile = settings.load_profile(profile_name)
    rows = read_manifest(profile)
    stale = [(name, reason) for name, row in rows.items() if (reason := _stale(profile, name, row))]
    orphans = {p.stem for kind in ("png", "svg") for p in profile.figures_path.glob(f"*.{kind}")} - set(rows)
    return stale + [(name, "not listed in the manifest") for name in sorted(orphans)]


def _stale(profile: Profile, name: str, row: dict[str, Any]) -> str | None:
    png, svg = (profile.figures_path / f"{name}.{kind}" for kind in ("png", "svg"))
    missing = [p.name for p in (png, svg) if not p.is_file()]
    if missing:
        return f"missing: {', '.join(missing)}"
    if digest(png.read_bytes()) != row["sha256"]:
        return "the PNG changed after it was saved"
    return why_outdated(row["notebook"], profile, row["made_from"])


def why_outdated(notebook: str, profile: Profile, sources: dict[str, Any]) -> str | None:
    """Why a result made from ``sources`` is out of date, or None when it is not."""
    try:
        now = made_from(notebook, profile, sources.get("inputs", ()))
    except ValueError as error:
        return str(error)
    changed = [key for key in now if now[key] != sources.get(key)]
    return f"made from other {', '.join(changed)}; run notebook {notebook} again" if changed else None


def forget_outdated(profile: Profile, notebook: str) -> list[str]:
    """After a complete run of a notebook: remove the figures that it no longer draws, files and rows; returns their names."""
    rows = read_manifest(profile)
    gone = [n for n, r in rows.items() if r["notebook"] == notebook and why_outdated(notebook, profile, r["made_from"])]
    for name in gone:
        for kind in ("png", "svg"):
            (profile.figures_path / f"{name}.{kind}").unlink(missing_ok=True)
    if gone:
        write_manifest(profile, {n: r for n, r in rows.items() if n not in gone})
    return gone
