"""One plot style for every notebook: fixed colours for fixed roles, sizes that read well in a README 800 px wide.

Colours are those of Okabe and Ito, which stay apart for colour-blind readers; every role has a marker and a line style of its
own as a second cue, so that the two greys of the chance levels are told apart in print.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import matplotlib as mpl
import pandas as pd
import seaborn as sns

WIDTH = 8.0  # inches; 1200 px at SAVE_DPI, shown at two thirds of that in the README
SAVE_DPI = 150

# Deterministic SVG: ids of clip paths and glyphs come from a fixed salt, text is drawn as paths so no font is needed to read it.
SVG_RC = {"svg.hashsalt": "une_utils", "svg.fonttype": "path"}


class Role(NamedTuple):
    """How one kind of data looks in every figure."""

    color: str
    marker: str
    line: str


ROLES = {
    "noise": Role("#0072B2", "o", "-"),
    "encoder": Role("#D55E00", "s", "-"),
    "vae": Role("#009E73", "D", "-"),
    "pixels": Role("#CC79A7", "^", "-"),
    "untrained": Role("#E69F00", "v", "--"),
    "majority": Role("#666666", "p", ":"),
    "permuted": Role("#A6A6A6", "X", "--"),
    "normal": Role("#000000", "P", ":"),  # N(0, I)
    "control": Role("#56B4E9", "*", "-."),  # every other control
}


def role(name: str) -> Role:
    """Colour, marker and line style of a role; raises KeyError with the known roles."""
    if name not in ROLES:
        raise KeyError(f"unknown role '{name}'; expected one of {', '.join(ROLES)}")
    return ROLES[name]


def series(names: Iterable[str]) -> dict[str, str]:
    """A role for each of several models of one kind, in their order: name -> role. The roles repeat after the seventh."""
    looks = ("noise", "encoder", "vae", "pixels", "untrained", "control", "majority")
    return {name: look for name, look in zip(names, itertools.cycle(looks))}


def use_style() -> None:
    """Set the style of all figures and show DataFrames in full; call it once at the top of a notebook.

    pandas' widths are fixed too: they decide the text of a table, which nbval compares.
    """
    sns.set_theme(context="notebook", style="whitegrid", font="DejaVu Sans")
    mpl.rcParams.update(
        {
            **SVG_RC,
            "figure.figsize": (WIDTH, 4.5),
            "figure.dpi": 80,
            "figure.constrained_layout.use": True,
            "savefig.dpi": SAVE_DPI,
            "font.size": 11,
            "axes.titlesize": 12,
            "figure.titlesize": 13,
            "axes.labelsize": 11,
            "xtick.labelsize": 10,
            "ytick.labelsize": 10,
            "legend.fontsize": 10,
            "axes.titlelocation": "left",
            "axes.titleweight": "bold",
            "axes.edgecolor": "#444444",
            "grid.color": "#DDDDDD",
            "legend.frameon": False,
            "image.interpolation": "nearest",
            "image.cmap": "viridis",
            "axes.prop_cycle": mpl.cycler(color=[r.color for r in ROLES.values()]),
        }
    )
    for option, value in {"max_colwidth": None, "max_rows": 100, "max_columns": 50, "width": 200}.items():
        pd.set_option(f"display.{option}", value)
