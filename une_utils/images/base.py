"""What every source of pictures offers, how its rows are split, and the change of range between pictures and models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd

NAMED = 10  # ids that a summary spells out for each kind of finding


class ImageSourceError(ValueError):
    """A source of pictures cannot be used; the message names the file or folder and what was expected."""


@runtime_checkable
class ImageSource(Protocol):
    """Pictures with an attribute table; row i of ``ids``, ``attributes`` and ``groups`` describes picture i.

    Attributes:
        ids: (N,) unique strings.
        attributes: (N, A) bool.
        attribute_names: A names, in the order of the columns of ``attributes``. They are the data set's labels, nothing more.
        groups: (N,) strings, or None. Rows of one group (a person) belong on one side of a split.
        train: (N,) bool, the training rows of an official split that the profile asks for; None, or missing, to draw a split.
        size: side of the square pictures, pixels.
        report: what was used, converted and left out.
    """

    ids: np.ndarray
    attributes: np.ndarray
    attribute_names: tuple[str, ...]
    groups: np.ndarray | None
    size: int
    report: SourceReport

    def __len__(self) -> int: ...

    def load(self, rows) -> np.ndarray:
        """Decode the pictures of ``rows`` (integers, slice or (N,) mask): uint8 RGB (n, size, size, 3), in their order."""
        ...


@dataclass(frozen=True)
class SourceReport:
    """What became of every picture and every row of the attribute table.

    Attributes:
        used: number of pictures in the source.
        converted: id of a used picture -> what was done to it, for example "greyscale to RGB".
        skipped: id -> why the picture is not used.
        rows_without_picture: ids in the table that name no file.
        pictures_without_row: files that the table does not name.
    """

    used: int
    converted: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    rows_without_picture: list[str] = field(default_factory=list)
    pictures_without_row: list[str] = field(default_factory=list)

    def _findings(self) -> dict[str, dict[str, str]]:
        return {
            "converted": self.converted,
            "skipped": self.skipped,
            "row without picture": dict.fromkeys(self.rows_without_picture, ""),
            "picture without row": dict.fromkeys(self.pictures_without_row, ""),
        }

    def summary(self) -> str:
        """Short text: one line with the number used, then one line for each kind of finding with up to 10 ids."""
        lines = [f"{self.used} pictures used"]
        for what, found in self._findings().items():
            if found:
                lines.append(f"{what}: {len(found)}: {listed(f'{name} ({detail})' if detail else name for name, detail in found.items())}")
        return "\n".join(lines)

    def frame(self) -> pd.DataFrame:
        """One row for each finding: ``id``, ``what`` (the kind), ``detail`` (conversion or reason)."""
        rows = [(name, what, detail) for what, found in self._findings().items() for name, detail in found.items()]
        return pd.DataFrame(rows, columns=["id", "what", "detail"])


def listed(names: Iterable[str], most: int = NAMED) -> str:
    """Names in words: "a, b, and 7 more", at most so many spelled out; "(none)" where there are none."""
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "") or "(none)"


def train_mask(source: ImageSource, train_fraction: float, seed: int) -> np.ndarray:
    """Split the rows as UNE does: shuffle the indices with NumPy's legacy generator, the first part is the training side.

    Like the official code it rounds the number of training rows down: 15,893 of CelebA's 19,867 validation pictures. A source
    with an official split that the profile asks for (``train``) keeps that one, whatever the fraction and the seed.

    With groups, the sorted group names are shuffled instead and the training side is filled group by group until it holds
    ``train_fraction`` of the rows, so no group is on both sides.

    Args:
        source: anything with ``groups`` and a length N.
        train_fraction: share of the training side, strictly between 0 and 1.
        seed: seed of ``np.random.RandomState``.

    Returns:
        (N,) bool, True for training rows.

    Raises:
        ValueError: the fraction is out of range, or one side would be empty.
    """
    if not 0 < train_fraction < 1:
        raise ValueError(f"train_fraction should be strictly between 0 and 1, got {train_fraction}")
    if getattr(source, "train", None) is not None:
        train = np.asarray(source.train, dtype=bool).copy()
    elif source.groups is None:
        train = _first_rows(len(source), int(train_fraction * len(source)), seed)
    else:
        train = _first_groups(np.asarray(source.groups), round(train_fraction * len(source)), seed)
    if train.all() or not train.any():
        parts = f"{len(source)} rows" + ("" if source.groups is None else f" in {len(np.unique(source.groups))} groups")
        empty = "test" if len(train) and train.all() else "training"
        advice = "use more pictures or another fraction"
        raise ValueError(f"the {empty} side would be empty: {parts} with train_fraction {train_fraction}; {advice}")
    return train


def _first_rows(n: int, wanted: int, seed: int) -> np.ndarray:
    train = np.zeros(n, dtype=bool)
    train[np.random.RandomState(seed).permutation(n)[:wanted]] = True
    return train


def _first_groups(groups: np.ndarray, wanted: int, seed: int) -> np.ndarray:
    names, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)  # names are sorted
    order = np.random.RandomState(seed).permutation(len(names))
    before = np.cumsum(sizes[order]) - sizes[order]  # training rows there are already when a group's turn comes
    return np.isin(member, order[before < wanted])


def fingerprint(source: ImageSource) -> str:
    """First 16 characters of a SHA-256 over ids, attribute names, attributes and size; pixels are not part of it."""
    head = {"ids": [str(i) for i in source.ids], "attribute_names": list(source.attribute_names), "size": int(source.size)}
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(source.attributes, dtype=np.uint8).tobytes())
    return digest.hexdigest()[:16]


def to_model_range(images: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, 3) in 0..255 to float32 (N, 3, H, W) in [-1, 1]."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"expected uint8 pictures of shape (N, H, W, 3), got {images.dtype} {images.shape}")
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(x: np.ndarray) -> np.ndarray:
    """Float (N, 3, H, W), nominally in [-1, 1], to uint8 (N, H, W, 3): clipped, rounded to the nearest level.

    Raises:
        ValueError: another shape, or NaN (which has no level).
    """
    if x.ndim != 4 or x.shape[1] != 3:
        raise ValueError(f"expected an array of shape (N, 3, H, W), got {x.shape}")
    if np.isnan(x).any():
        raise ValueError("the pictures hold NaN; the model that made them diverged")
    levels = np.rint((np.clip(x, -1, 1) + 1) * 127.5)
    return np.ascontiguousarray(levels.transpose(0, 2, 3, 1).astype(np.uint8))
