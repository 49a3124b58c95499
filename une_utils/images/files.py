"""Pictures on disk with an attribute table: a folder with a CSV file, or a parquet file in the layout of Hugging Face datasets.

Every picture is decoded once when a source is opened. The ones that cannot be read are left out and reported by name, the ones
that needed more than a crop and a resize are reported as converted.
"""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from .base import NAMED, ImageSourceError, SourceReport, listed

MAX_PIXELS = 200_000_000  # a picture with more is skipped; decoded as RGBA this many take 0.8 GB
LARGE_PIXELS = 25_000_000  # larger ones are decoded one at a time, and JPEGs at a fraction of their size
MAX_ROW_GROUP = 2 * 2**30  # bytes; parquet reads a row group whole
KEPT_ROW_GROUPS = 2  # two workers are at most on two sides of a border
WORKERS = 2
QUIET_BELOW = 200  # no progress bar for fewer pictures
PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2", ".avif"}

_OPENING = threading.Lock()
_ONE_LARGE = threading.Lock()


class UnreadablePicture(ImageSourceError):
    """One picture cannot be decoded; the message is the reason."""


class AttributeTableError(ImageSourceError):
    """The attribute table cannot be used; the message names the column, the value and the row."""


# One picture


def lanczos_square(image: Image.Image, size: int) -> Image.Image:
    """Centre crop to the short side and antialiased resize, Lanczos."""
    return image.resize((size, size), Image.Resampling.LANCZOS, box=_centre(image), reducing_gap=3.0)


def _centre(image: Image.Image) -> tuple[int, int, int, int]:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return left, top, left + side, top + side


def bilinear_square(image: Image.Image, size: int) -> Image.Image:
    """Centre crop to the short side and antialiased resize, as torchvision's CenterCrop and Resize do to a Pillow image.

    The official UNE code uses those two with their defaults, which call Pillow's crop and its bilinear, antialiased resize: the
    result is the same to the last bit. (An odd margin above 1 may be cut one pixel off; CelebA and AFHQ have none.)
    """
    return image.crop(_centre(image)).resize((size, size), Image.Resampling.BILINEAR)


def prepare(
    picture: bytes | Image.Image, size: int, square: Callable[[Image.Image, int], Image.Image] = lanczos_square
) -> tuple[np.ndarray, list[str]]:
    """Decode one picture to a square RGB array: turned upright, centre crop to the short side, antialiased resize.

    Colour profiles are ignored. Alpha is composited on white. 16-bit values are scaled by their full range (65535 -> 255),
    floats are expected in 0..1 or 0..255. The crop and a plain downscale are not conversions; all else is.

    Args:
        picture: an encoded picture, or one that Pillow opened.
        size: side of the result, pixels.
        square: crops and resizes, ``lanczos_square`` or ``bilinear_square``.

    Returns:
        uint8 (size, size, 3) in 0..255, and the conversions that were needed, in words.

    Raises:
        UnreadablePicture: empty, not a picture, truncated, without pixels, or more than ``MAX_PIXELS`` pixels.
    """
    try:
        image = picture if isinstance(picture, Image.Image) else _open_bytes(picture)
        _check_extent(image)
        large = image.width * image.height > LARGE_PIXELS
        with _ONE_LARGE if large else nullcontext():
            return _decode(image, size, large, square)
    except UnreadablePicture:
        raise
    except Exception as error:  # Pillow's decoders let many kinds of exception through when a file is damaged
        raise UnreadablePicture(f"cannot be decoded: {error or type(error).__name__}") from error


def _open_bytes(raw: bytes) -> Image.Image:
    """Read the header only. Pillow's own pixel limit is lower than ours and process-wide, so it is lifted for this moment."""
    if not raw:
        raise UnreadablePicture("empty file")
    with _OPENING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(raw))
        except UnidentifiedImageError:
            raise UnreadablePicture("not a picture in a known format") from None
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _check_extent(image: Image.Image) -> None:
    if not (image.width and image.height):
        raise UnreadablePicture(f"no pixels: {image.width}x{image.height}")
    if image.width * image.height > MAX_PIXELS:
        found = image.width * image.height / 1e6
        limit = MAX_PIXELS / 1e6
        raise UnreadablePicture(f"too large: {image.width}x{image.height}, {found:,.6g} megapixels; the limit is {limit:,.6g}")


def _decode(image: Image.Image, size: int, large: bool, square: Callable) -> tuple[np.ndarray, list[str]]:
    notes = []
    extent = f"{image.width}x{image.height}"
    if (frames := getattr(image, "n_frames", 1)) > 1:
        image.seek(0)
        notes.append(f"first of {frames} frames")
    if large:
        image.draft(None, (3 * size, 3 * size))  # JPEG only: decodes at 1/2, 1/4 or 1/8, never below this extent
        notes.append(f"reduced from {extent}")
    elif min(image.size) < size:
        notes.append(f"enlarged from {extent}")
    if any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())) or image.mode.startswith("I"):
        notes.append("16-bit scaled to 8-bit")
    image = _resizable(_upright(image, notes), notes)
    full_range = _full_range(image)
    return _to_rgb(square(image, size), full_range, notes), notes


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    if image.getexif().get(ExifTags.Base.Orientation, 1) not in range(2, 9):
        return image
    notes.append("rotated by EXIF")
    return ImageOps.exif_transpose(image)


def _resizable(image: Image.Image, notes: list[str]) -> Image.Image:
    """Leave the modes whose values can be averaged (L, I, F, RGB, RGBA) and change all others to one of them."""
    if image.mode.startswith("I;16"):  # before alpha: Pillow clips 16-bit values on the way to RGBA
        return image.convert("I")
    if image.mode in ("I", "F"):
        return image
    if image.has_transparency_data:
        return image.convert("RGBA")  # resizing RGBA weighs colours by alpha
    if image.mode in ("1", "L"):
        return image.convert("L")
    if image.mode == "RGB":
        return image
    notes.append(f"{'palette' if image.mode == 'P' else image.mode} to RGB")
    return image.convert("RGB")


def _full_range(image: Image.Image) -> float:
    """Value that becomes 255. Known from the mode; floats tell by whether any exceeds 1."""
    if image.mode not in ("I", "F"):
        return 255.0
    low, high = image.getextrema()
    full = 65535.0 if image.mode == "I" else 1.0 if high <= 1 else 255.0
    if not 0 <= low <= high <= full:
        expected = "0..65535" if image.mode == "I" else "0..1 or 0..255"
        raise UnreadablePicture(f"values from {low:g} to {high:g} in mode {image.mode}; expected {expected}")
    return full


def _to_rgb(image: Image.Image, full_range: float, notes: list[str]) -> np.ndarray:
    if image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float64) * (255 / full_range)
        if not np.isfinite(values).all():
            raise UnreadablePicture("holds values that are not finite")
        image = Image.fromarray(np.rint(np.clip(values, 0, 255)).astype(np.uint8))
        if full_range != 65535:
            notes.append("float scaled to 8-bit")
    if image.mode == "RGBA":
        notes.append("alpha composited on white")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode == "L":
        notes.append("greyscale to RGB")
    return np.asarray(image.convert("RGB"))


# The attribute table

_LEVELS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1, "-1": -1, "-1.0": -1}


def _binary_column(column: pd.Series, ids: np.ndarray) -> np.ndarray:
    """(N,) bool from bool, {0, 1}, {-1, 1} or {"True", "False"}, numbers also as float or text.

    Raises:
        AttributeTableError: names the first row whose value is missing or none of these.
    """
    codes, values = pd.factorize(column)  # a missing value has code -1
    if (codes < 0).any():
        raise AttributeTableError(f"column '{column.name}' has no value in row '{ids[codes < 0][0]}'; {_EXPECTED}")
    levels = [_LEVELS.get(str(value).strip().lower()) for value in values]
    for code, level in enumerate(levels):
        if level is None:
            row = ids[codes == code][0]
            raise AttributeTableError(f"column '{column.name}' holds {str(values[code])!r} in row '{row}'; {_EXPECTED}")
    if {0, -1} <= set(levels):
        first = {level: ids[codes == levels.index(level)][0] for level in (0, -1)}
        both = f"'0' in row '{first[0]}' and '-1' in row '{first[-1]}'"
        raise AttributeTableError(f"column '{column.name}' holds {both}; {_EXPECTED}")
    return np.array([level == 1 for level in levels], dtype=bool)[codes]


_EXPECTED = "expected 0 and 1, -1 and 1, or True and False throughout"


def _attributes(
    table: pd.DataFrame, ids: np.ndarray, wanted: Sequence[str] | None, where: Path
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(N, A) bool and the A names: the wanted columns, or every binary one."""
    if wanted is None:
        columns = _every_binary_column(table, ids, where)
    else:
        columns = {name: _binary_column(_column(table, name, where), ids) for name in wanted}
    if not columns:
        raise AttributeTableError(f"no binary column in {where}; columns found: {_listed(table.columns)}; {_EXPECTED}")
    return np.stack(list(columns.values()), axis=1), tuple(columns)


def _class_columns(column: pd.Series, classes: Sequence[str], ids: np.ndarray) -> pd.DataFrame:
    """One bool column a class, from the classes' numbers (0, 1, ...) or names.

    Raises:
        AttributeTableError: names the first row whose value is missing or neither, or a class that is twice in the list.
    """
    if double := sorted({name for name in classes if list(classes).count(name) > 1}):
        raise AttributeTableError(f"the list of classes names {_listed(double)} more than once")
    if column.isna().any():
        raise AttributeTableError(f"column '{column.name}' has no value in row '{ids[column.isna().to_numpy()][0]}'")
    codes, values = pd.factorize(column.astype(str).str.strip())
    numbers = {str(number): number for number in range(len(classes))} | {name: number for number, name in enumerate(classes)}
    for code, value in enumerate(values):
        if value not in numbers:
            expected = f"expected 0 to {len(classes) - 1} or one of {_listed(classes)}"
            raise AttributeTableError(f"column '{column.name}' holds {value!r} in row '{ids[codes == code][0]}'; {expected}")
    found = np.array([numbers[value] for value in values], dtype=int)[codes]
    return pd.DataFrame(found[:, None] == np.arange(len(classes)), index=column.index, columns=list(classes))


def _every_binary_column(table: pd.DataFrame, ids: np.ndarray, where: Path) -> dict[str, np.ndarray]:
    columns = {}
    for name in table.columns:
        try:
            columns[name] = _binary_column(table[name], ids)
        except AttributeTableError as error:
            if _mostly_binary(table[name]):  # a typing error must not make an attribute disappear without a word
                warnings.warn(f"left out of the attributes of {where}: {error}", stacklevel=2)
    return columns


def _mostly_binary(column: pd.Series) -> bool:
    return column.astype(str).str.strip().str.lower().isin(_LEVELS).mean() > 0.9


def _column(table: pd.DataFrame, name: str, where: Path) -> pd.Series:
    if name not in table.columns:
        raise AttributeTableError(f"no column '{name}' in {where}; columns found: {_listed(table.columns)}")
    return table[name]


def _groups(table: pd.DataFrame, ids: np.ndarray, name: str, where: Path) -> np.ndarray:
    """(N,) strings; the group of every row has to be known, or the split could not keep groups apart."""
    column = _column(table, name, where)
    if column.isna().any():
        raise AttributeTableError(f"group column '{name}' of {where} has no value in row '{ids[column.isna().to_numpy()][0]}'")
    return column.astype(str).to_numpy(dtype=str)


def _listed(names: Iterable[str]) -> str:
    return listed(names, 4 * NAMED)


def _check_names(ids: pd.Series, where: Path) -> None:
    """Every row names a picture, and no two rows the same one."""
    if ids.isna().any():
        row = ids.index[ids.isna()][0] + 1
        raise AttributeTableError(f"column '{ids.name}' of {where} has no value in row {row} below the header")
    double = ids[ids.duplicated()].unique()
    if len(double):
        raise AttributeTableError(f"{where} names these pictures more than once: {_listed(double)}; keep one row for each")


# Sources


class StoredImages:
    """What sources on disk share: attributes, verification, drawing and loading. A subclass says how to read one row's bytes."""

    ids: np.ndarray
    attributes: np.ndarray
    attribute_names: tuple[str, ...]
    groups: np.ndarray | None
    size: int
    report: SourceReport
    train: np.ndarray | None = None
    _square = staticmethod(lanczos_square)

    def _raw(self, place: int) -> bytes:
        """Encoded picture at a place of the store; OSError or UnreadablePicture when it cannot be read."""
        raise NotImplementedError

    def _fill(
        self,
        where: Path,
        ids: np.ndarray,
        table: pd.DataFrame,
        size: int,
        count: int | None,
        seed: int,
        attributes: Sequence[str] | None,
        group_column: str | None,
        class_column: str | None,
        classes: Sequence[str] | None,
        **unmatched: list[str],
    ) -> None:
        """Check the table, decode every picture once, keep the usable ones (or ``count`` of them) in the store's order."""
        if class_column:
            found = _class_columns(_column(table, class_column, where), classes or (), ids)
            table = pd.concat([table.drop(columns=[class_column, *table.columns.intersection(found.columns)]), found], axis=1)
        groups = _groups(table, ids, group_column, where) if group_column else None
        candidates = table.drop(columns=[group_column]) if group_column and attributes is None else table
        values, self.attribute_names = _attributes(candidates, ids, attributes, where)
        self.size, self._where = size, where
        findings = self._verify(ids)
        usable = np.array([place for place, found in enumerate(findings) if not isinstance(found, str)], dtype=int)
        skipped = {str(ids[p]): found for p, found in enumerate(findings) if isinstance(found, str)}
        if not len(usable):
            some = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:NAMED])
            raise ImageSourceError(f"none of the {len(ids)} pictures of {where} can be used: {some}")
        self._places = _draw(usable, count, seed, where)
        self.ids, self.attributes = ids[self._places], values[self._places]
        self.groups = None if groups is None else groups[self._places]
        converted = {str(ids[p]): "; ".join(findings[p]) for p in self._places if findings[p]}
        self.report = SourceReport(used=len(self.ids), converted=converted, skipped=skipped, **unmatched)

    def _verify(self, ids: np.ndarray) -> list[list[str] | str]:
        """For every place of the store the conversions (a list), or the reason why it cannot be used (text)."""

        def decode(place: int) -> list[str] | str:
            try:
                return self._picture(place)[1]
            except UnreadablePicture as error:
                return str(error)

        with tqdm(total=len(ids), desc="checking pictures", unit="picture", disable=len(ids) < QUIET_BELOW) as bar:
            return _in_pool(decode, range(len(ids)), bar.update)

    def _picture(self, place: int) -> tuple[np.ndarray, list[str]]:
        try:
            raw = self._raw(place)
        except OSError as error:  # permission denied, locked by another program, vanished, damaged row group
            raise UnreadablePicture(f"cannot be read: {error.strerror or error}") from error
        return prepare(raw, self.size, self._square)

    def __len__(self) -> int:
        return len(self.ids)

    def load(self, rows) -> np.ndarray:
        """Decode pictures; nothing is kept in memory.

        Args:
            rows: integers, a slice or an (N,) mask.

        Returns:
            uint8 RGB (n, size, size, 3) in 0..255, in the order of ``rows``.

        Raises:
            IndexError: a row out of range.
            UnreadablePicture: a picture that was there when the source was opened can no longer be used.
        """
        rows = np.atleast_1d(np.arange(len(self))[rows])
        images = np.empty((len(rows), self.size, self.size, 3), dtype=np.uint8)

        def decode(position: int) -> None:
            row = rows[position]
            try:
                images[position] = self._picture(self._places[row])[0]
            except UnreadablePicture as error:
                changed = f"picture '{self.ids[row]}' of {self._where} was there when it was opened and cannot be used now"
                raise UnreadablePicture(f"{changed}: {error}") from error

        _in_pool(decode, np.argsort(rows, kind="stable"))  # in the store's order: every row group is read once
        return images


def _in_pool(function: Callable, items: Iterable, done: Callable[[], object] = lambda: None) -> list:
    """Apply a function in a few threads (Pillow releases the interpreter lock while it decodes); results in order."""
    results = []
    with ThreadPoolExecutor(WORKERS) as pool:
        for result in pool.map(function, items):
            results.append(result)
            done()
    return results


def _draw(usable: np.ndarray, count: int | None, seed: int, where: Path) -> np.ndarray:
    """``count`` of the usable places, drawn without replacement with NumPy's legacy generator, in the store's order."""
    if count is None or count == len(usable):
        return usable
    if count > len(usable):
        warnings.warn(f"{count} pictures wanted, {where} has {len(usable)} usable ones; all of them are used", stacklevel=2)
        return usable
    return np.sort(np.random.RandomState(seed).permutation(usable)[:count])


class FolderImages(StoredImages):
    """Pictures below a folder, with a CSV file that has one row for each.

    Args:
        path: folder; pictures lie in it or in subfolders.
        attributes_csv: table in UTF-8 with a header; a relative path starts at ``path``.
        size: side of the square pictures, pixels.
        count: number of usable pictures to draw with ``seed``; all when None.
        seed: seed of the draw.
        attributes: columns to use, each of them binary; every binary column when None.
        group_column: column with the group (a person) of every row, or None.
        image_column: column with the file's name relative to ``path``, suffix included. These names are the ids.
        class_column: column with the number or name of every picture's class, or None.
        classes: names of the classes in the order of their numbers; each becomes a binary attribute.

    Raises:
        AttributeTableError: the table lacks a column or a value, holds another value than expected, or names a picture twice.
        ImageSourceError: no such folder, no row matches a file, or no picture can be read.
    """

    def __init__(
        self,
        path: Path | str,
        attributes_csv: Path | str,
        size: int,
        count: int | None = None,
        seed: int = 42,
        attributes: Sequence[str] | None = None,
        group_column: str | None = None,
        image_column: str = "image",
        class_column: str | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        self._folder = Path(path)
        csv = self._folder / attributes_csv
        files = _files_below(self._folder)
        table = _read_csv(csv)
        names = _column(table, image_column, csv)
        _check_names(names, csv)
        found = names.isin(files).to_numpy()
        if not found.any():
            raise ImageSourceError(_nothing_matches(names, files, self._folder, csv, image_column))
        self._names = names[found].to_numpy(dtype=str)
        pictures = {name for name in files if Path(name).suffix.lower() in PICTURE_SUFFIXES}
        self._fill(
            csv, self._names, table[found].drop(columns=[image_column]), size, count, seed, attributes, group_column,
            class_column, classes, rows_without_picture=[str(name) for name in names[~found]],
            pictures_without_row=sorted(pictures - set(self._names)),
        )  # fmt: skip

    def _raw(self, place: int) -> bytes:
        return (self._folder / self._names[place]).read_bytes()


def _files_below(folder: Path) -> set[str]:
    """Names of all files below a folder, relative to it, with forward slashes."""
    if not folder.is_dir():
        raise ImageSourceError(f"no such folder of pictures: {folder}")
    return {Path(root, name).relative_to(folder).as_posix() for root, _, names in os.walk(folder) for name in names}


def _read_csv(csv: Path) -> pd.DataFrame:
    """All columns as text, so that a value can be reported as it was written; empty cells are missing."""
    try:
        return pd.read_csv(
            csv, dtype=str, keep_default_na=False, na_values=[""], skipinitialspace=True,
            index_col=False,  # or pandas takes the first column for an index when rows end in a comma
        )  # fmt: skip
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        expected = "expected CSV in UTF-8 with a header"
        raise AttributeTableError(f"cannot read the attribute table {csv}: {error}; {expected}") from error


def _nothing_matches(names: pd.Series, files: set[str], folder: Path, csv: Path, column: str) -> str:
    if names.empty:
        return f"the attribute table {csv} has no rows"
    pictures = sorted(name for name in files if Path(name).suffix.lower() in PICTURE_SUFFIXES)
    message = f"no row of {csv} names a picture below {folder}; column '{column}' starts with '{names.iloc[0]}', "
    message += f"the folder with '{pictures[0]}'" if pictures else "the folder has no pictures"
    if names.isin({Path(name).with_suffix("").as_posix() for name in files}).any():
        message += "; the names in the table need their suffix"
    elif names.isin({Path(name).name for name in files}).any():
        message += "; the names in the table need their subfolder"
    return message


class ParquetImages(StoredImages):
    """Pictures in parquet files in the layout of Hugging Face datasets: the image column is a struct {bytes, path}.

    The files are memory-mapped and read a row group at a time. The ids are the paths when they are all there and unique, the row
    numbers otherwise.

    Args:
        path: the file, or the files in their order; all have the same columns.
        size: side of the square pictures, pixels.
        count: number of usable pictures to draw with ``seed``; all when None.
        seed: seed of the draw.
        attributes: columns to use, each of them binary; every binary column when None.
        group_column: column with the group (a person) of every row, or None.
        image_column: name of the struct column.
        class_column: column with the number or name of every picture's class, or None.
        classes: names of the classes in the order of their numbers; each becomes a binary attribute.

    Raises:
        AttributeTableError: a file lacks a column or a value, or a column holds another value than expected.
        ImageSourceError: not a parquet file, no such image column, a row group too large to read, or no picture can be read.
    """

    def __init__(
        self,
        path: Path | str | Sequence[Path],
        size: int,
        count: int | None = None,
        seed: int = 42,
        attributes: Sequence[str] | None = None,
        group_column: str | None = None,
        image_column: str = "image",
        class_column: str | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        paths = [Path(path)] if isinstance(path, Path | str) else list(path)
        where = paths[0] if len(paths) == 1 else paths[0].parent
        files = [_open_parquet(p, image_column) for p in paths]
        self._image_column = image_column
        self._groups = [(file, group) for file in files for group in range(file.num_row_groups)]
        self._starts = np.cumsum([0, *(rows for p, file in zip(paths, files, strict=True) for rows in _row_group_rows(file, p))])[:-1]
        self._reading, self._kept = threading.Lock(), {}
        try:
            ids = _parquet_ids(files, image_column)
            table = self._table(files, where)
        except (pa.ArrowException, OSError) as error:
            raise ImageSourceError(f"{where} is damaged: {error}") from error
        self._fill(where, ids, table, size, count, seed, attributes, group_column, class_column, classes)

    def _table(self, files: Sequence[pq.ParquetFile], where: Path) -> pd.DataFrame:
        """Columns that can be an attribute, a class or a group, of all rows."""
        return pa.concat_tables(file.read(columns=_flat_columns(file.schema_arrow)) for file in files).to_pandas()

    def _raw(self, place: int) -> bytes:
        group = int(np.searchsorted(self._starts, place, side="right")) - 1
        raw = self._row_group(group)[int(place - self._starts[group])].as_py()
        if raw is None:
            raise UnreadablePicture("the file holds no bytes for it; embed the pictures before writing the parquet file")
        return raw

    def _row_group(self, number: int) -> pa.ChunkedArray:
        """Encoded pictures of a row group; the last two groups are kept."""
        with self._reading:
            if number not in self._kept:
                if len(self._kept) == KEPT_ROW_GROUPS:
                    del self._kept[next(iter(self._kept))]
                column = f"{self._image_column}.bytes"
                file, group = self._groups[number]
                try:
                    table = file.read_row_group(group, columns=[column])
                except pa.ArrowException as error:
                    raise UnreadablePicture(f"row group {group} is damaged: {error}") from error
                self._kept[number] = pc.struct_field(table.column(0), "bytes")
            return self._kept[number]


def _open_parquet(path: Path, image_column: str) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise ImageSourceError(f"cannot read {path} as a parquet file: {error}") from error
    schema = file.schema_arrow
    if image_column not in schema.names:
        raise ImageSourceError(f"no image column '{image_column}' in {path}; columns found: {_listed(schema.names)}")
    kind = schema.field(image_column).type
    if not (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0):
        expected = f"expected a struct {{bytes, path}}; columns found: {_listed(schema.names)}"
        raise ImageSourceError(f"column '{image_column}' of {path} is {kind}; {expected}")
    return file


def _row_group_rows(file: pq.ParquetFile, path: Path) -> list[int]:
    """Number of rows of every row group."""
    groups = [file.metadata.row_group(g) for g in range(file.num_row_groups)]
    largest = max((group.total_byte_size for group in groups), default=0)
    if largest > MAX_ROW_GROUP:
        raise ImageSourceError(
            f"{path} has a row group of {largest / 2**30:.3g} GiB, which would be read whole; "
            f"the limit is {MAX_ROW_GROUP / 2**30:.3g} GiB; write the file again with a smaller row_group_size, for example 1000"
        )
    return [group.num_rows for group in groups]


def _parquet_ids(files: Sequence[pq.ParquetFile], image_column: str) -> np.ndarray:
    n = sum(file.metadata.num_rows for file in files)
    if all(file.schema_arrow.field(image_column).type.get_field_index("path") >= 0 for file in files):
        columns = [file.read(columns=[f"{image_column}.path"]).column(0) for file in files]
        paths = [path for column in columns for path in pc.struct_field(column, "path").to_pylist()]
        if all(paths) and len(set(paths)) == n:
            return np.array(paths, dtype=str)
    return np.array([f"{row:0{len(str(max(n - 1, 0)))}d}" for row in range(n)], dtype=str)


def _flat_columns(schema: pa.Schema) -> list[str]:
    """Columns that can be an attribute or a group: no structs, lists or bytes."""
    left_out = (pa.types.is_nested, pa.types.is_binary, pa.types.is_large_binary)
    return [field.name for field in schema if not any(is_kind(field.type) for is_kind in left_out)]
