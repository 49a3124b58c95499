"""Latents in the form in which NoiseZoo is released: one ``noises_<model>.npy`` a model, (N, D) floats in data set order.

    python -m une_utils.zoo.released --profile mini --to /path/to/folder      # write our zoo in that form

UNE released these files for the 162,770 pictures of CelebA's training part (models sd15, sd21, lcmv7, vitB16, vitL14, ocB16,
ocL14, dinov3). They carry no attribute table: that row i is picture i rests on their number of rows and CelebA's official order.
What is written here has ``attributes.json`` beside it, and is held to it when it is read again.
"""

from __future__ import annotations

import argparse
import errno
import math
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from une_utils.files import digest, read_json, write_json
from une_utils.images import ImageSource
from une_utils.settings import ProfileError, load_profile
from une_utils.zoo import ZooError

if TYPE_CHECKING:
    from une_utils.zoo.store import Zoo  # which reads released files through this module

ATTRIBUTES = "attributes.json"
GET_RELEASED = (
    "`hf download chentasker/NoiseZoo --repo-type dataset --local-dir FOLDER` fetches the released files (tens of GB); "
    "the profile's 'zoo.released' or the variable it names in 'zoo.released_env' is that folder"
)
EXPORT_ROWS = 1000  # rows written at once


def released_file(folder: Path, name: str) -> Path:
    """``noises_<name>.npy`` in the folder, or in its subfolder ``data`` as the hub has it; capital letters do not matter."""
    wanted = f"noises_{name}.npy"
    found = [p for place in (folder, folder / "data") for p in place.glob("noises_*.npy") if p.name.lower() == wanted.lower()]
    return found[0] if found else folder / wanted


def open_released(file: Path, rows: int | None = None, dimension: int | None = None) -> np.memmap:
    """A released file as a read-only memory map (N, D), float16 or float32.

    Args:
        rows: expected N, the number of pictures of the data set; not checked when None.
        dimension: expected D; not checked when None.

    Raises:
        ZooError: no such file, truncated or not an .npy file of two-dimensional floats in C order, or another N or D.
    """
    if not file.is_file():
        raise ZooError(f"no released latents at {file}; {GET_RELEASED}")
    try:
        latents = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ZooError(f"{file} ({file.stat().st_size:,} bytes) is not a whole .npy file: {error}; fetch it again") from error
    if latents.dtype not in (np.float16, np.float32) or latents.ndim != 2 or not latents.flags.c_contiguous:
        order = "C" if latents.flags.c_contiguous else "Fortran"
        raise ZooError(f"{file} holds {latents.dtype} of shape {latents.shape} in {order} order; expected float16 or float32 (N, D) in C order")
    if rows is not None and len(latents) != rows:
        raise ZooError(f"{file} has {len(latents):,} rows and the data set {rows:,} pictures; choose the matching 'images.partition'")
    if dimension is not None and latents.shape[1] != dimension:
        raise ZooError(f"{file} has {latents.shape[1]:,} dimensions, expected {dimension:,}; is it the file of another model?")
    return latents


def attribute_card(source: ImageSource | Zoo) -> dict[str, Any]:
    """What a set of released files says of its attribute table: number of rows, names in their order, hash of the bits."""
    table = np.ascontiguousarray(source.attributes, dtype=np.uint8)
    return {"rows": len(table), "attribute_names": list(source.attribute_names), "sha256": digest(table.tobytes())}


def check_attributes(folder: Path, source: ImageSource | Zoo) -> None:
    """Hold a data set to the ``attributes.json`` beside released files; without one there is nothing to check.

    Raises:
        ZooError: other attributes, another order of columns, or other rows or another order of rows.
    """
    found, card = read_json(folder / ATTRIBUTES) or read_json(folder / "data" / ATTRIBUTES), attribute_card(source)
    if not found or found == card:
        return
    place = f"the latents in {folder} belong to another attribute table ({ATTRIBUTES})"
    if found["rows"] != card["rows"]:
        raise ZooError(f"{place}: it has {found['rows']:,} rows, the data set {card['rows']:,}; choose the data set that they were made from")
    pairs = zip(found["attribute_names"], card["attribute_names"], strict=False)
    for number, (theirs, ours) in enumerate(pairs, start=1):
        if theirs != ours:
            raise ZooError(f"{place}: its column {number} is '{theirs}', the data set's '{ours}'; bring the columns into its order")
    if len(found["attribute_names"]) != len(card["attribute_names"]):
        counts = f"{len(found['attribute_names'])} attributes, the data set {len(card['attribute_names'])}"
        raise ZooError(f"{place}: it has {counts}; choose the same attributes")
    raise ZooError(f"{place}: the names agree and the values do not, so the rows are other pictures or in another order")


def export(zoo: Zoo, folder: Path, names: list[str] | None = None, rows: np.ndarray | None = None, dtype: str = "float16") -> list[Path]:
    """Write views of a zoo as ``noises_<name>.npy`` and their attribute table as ``attributes.json``, a block of rows at a time.

    Args:
        folder: made when missing.
        names: views to write; the noise of every generator and every encoder when None.
        rows: (n,) rows of the zoo to write, in their order; all when None.
        dtype: "float16" or "float32".

    Returns:
        The files of the views.

    Raises:
        ZooError: a view is not complete, the folder holds files of another attribute table, or the disk is full. A file that
            could not be finished is removed; one that was there before stays as it was.
    """
    rows = np.arange(len(zoo)) if rows is None else np.asarray(rows)
    names = [n for n in zoo.names if zoo.view_info(n)["kind"] in ("noise", "encoder")] if names is None else names
    table = _Subset(zoo, rows)
    folder.mkdir(parents=True, exist_ok=True)
    check_attributes(folder, table)
    files = []
    for name in names:
        shape = (len(rows), math.prod(zoo.view_info(name).get("shape", [])))
        blocks = (zoo.read(name, rows[i : i + EXPORT_ROWS]) for i in range(0, len(rows), EXPORT_ROWS))
        files.append(folder / f"noises_{name}.npy")
        _write_npy(files[-1], shape, np.dtype(dtype), blocks)
    write_json(folder / ATTRIBUTES, attribute_card(table))
    return files


class _Subset:
    """Attribute table of some rows of a zoo."""

    def __init__(self, zoo: Zoo, rows: np.ndarray):
        self.attributes, self.attribute_names = zoo.attributes[rows], zoo.attribute_names


def _write_npy(file: Path, shape: tuple[int, int], dtype: np.dtype, blocks: Iterator[np.ndarray]) -> None:
    """Write blocks of rows one after the other into a temporary file, and give it its name when it is whole."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    needed = math.prod(shape) * dtype.itemsize
    try:
        with temporary.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, {"descr": dtype.str, "fortran_order": False, "shape": shape})
            for block in blocks:
                stream.write(np.ascontiguousarray(block, dtype=dtype).tobytes())
        os.replace(temporary, file)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(file.parent).free
        advice = "free some space, or choose another folder, fewer rows or float16; nothing half-written was left"
        raise ZooError(f"no space left for {file}: it needs {needed / 1e9:.3g} GB, {free / 1e9:.3g} GB are free; {advice}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_rows(file: Path, rows: np.ndarray, latents: np.ndarray) -> None:
    """Replace some rows of a released file in place, without loading the rest.

    Args:
        rows: (n,) integers.
        latents: (n, D), cast to the file's type.

    Raises:
        ZooError: as `open_released`; another shape; or a value that is not finite in the file's type (nothing is written).
        IndexError: a row out of range.
    """
    expected = (len(rows), open_released(file).shape[1])
    stored = np.load(file, mmap_mode="r+", allow_pickle=False)
    if np.shape(latents) != expected:
        raise ZooError(f"{file}: expected latents of shape {expected}, got {np.shape(latents)}")
    with np.errstate(over="ignore"):  # reported in the next line
        cast = np.asarray(latents).astype(stored.dtype)
    if not np.isfinite(cast).all():
        raise ZooError(f"{file}: the latents hold NaN or exceed {stored.dtype}; nothing was written")
    stored[rows] = cast
    stored.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--views", nargs="+", metavar="NAME", help="default: the noise of every generator and every encoder")
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float16")
    arguments = parser.parse_args()
    from une_utils.zoo.store import Zoo

    try:
        files = export(Zoo(load_profile(arguments.profile)), arguments.to, arguments.views, dtype=arguments.dtype)
    except (ProfileError, ZooError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(str(file) for file in files))
    return 0


if __name__ == "__main__":
    sys.exit(main())
