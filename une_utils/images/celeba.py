"""CelebA and AFHQ v2 as they are handed out, cropped and resized as the official UNE code does it.

Other results are compared with the papers' row by row, so a picture is never left out: one that is missing stops the opening,
one that is damaged stops the loading, and neither is decoded before it is needed. Attribute names are the data sets' labels,
nothing more.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from une_utils.hub import HubError, HubUnreachableError, ask
from une_utils.settings import HOW_TO_GET

from .base import ImageSourceError, listed
from .files import PICTURE_SUFFIXES, AttributeTableError, ParquetImages, StoredImages, bilinear_square

CELEBA_ATTRIBUTES = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose", "Black_Hair",
    "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses", "Goatee", "Gray_Hair",
    "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes", "No_Beard", "Oval_Face",
    "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks", "Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair",
    "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace", "Wearing_Necktie", "Young",
)  # fmt: skip
PARTITIONS = {"train": 162_770, "validation": 19_867, "test": 19_962}  # 0, 1 and 2 in list_eval_partition.txt: number of pictures
PREFIXES = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}  # of parquet files' names
AFHQ_CLASSES = ("cat", "dog", "wild")


class _OfficialImages(StoredImages):
    """What the data sets of the papers share: torchvision's crop and resize, and every row kept."""

    _square = staticmethod(bilinear_square)

    def _verify(self, ids: np.ndarray) -> list[list[str] | str]:
        return [[] for _ in ids]

    def _split(self, partition: np.ndarray, split: str | None) -> None:
        """Keep the official training rows as ``train`` when the profile asks for them; ``partition``: (rows of the store,)."""
        self.train = partition[self._places] == "train" if split == "official" else None


class CelebAImages(_OfficialImages):
    """The original download of CelebA: img_align_celeba/, list_attr_celeba.txt and list_eval_partition.txt in one folder.

    The text files and the pictures may also lie in Anno/, Eval/ and Img/ below it, as in the download. Rows are in the order of
    list_attr_celeba.txt, ids are its file names.

    Args:
        path: the folder.
        size: side of the square pictures, pixels.
        count: number of pictures to draw with ``seed``; all when None.
        seed: seed of the draw.
        attributes: the ones to use; all 40 in the official order when None.
        partition: use "train", "validation" or "test" only; all three when None.
        split: "official" makes the training part of the official split ``train``.
        pictures: whether the pictures are needed. Without them the two text files are enough, and ``load`` fails.

    Raises:
        AttributeTableError: the list has other attributes or another order than the official one, lacks rows, or holds
            another value than -1 and 1; names the column or the row.
        ImageSourceError: a file or pictures are missing; names them, with the terms of use and what to put where.
    """

    def __init__(
        self,
        path: Path | str,
        size: int,
        count: int | None = None,
        seed: int = 42,
        attributes: Sequence[str] | None = None,
        partition: str | None = None,
        split: str | None = None,
        pictures: bool = True,
    ) -> None:
        path = Path(path)
        table = _read_attributes(_find(path, "list_attr_celeba.txt"))
        parts = _read_partition(_find(path, "list_eval_partition.txt"), table.index)
        table, parts = _one_part(table, parts, partition)
        ids = table.index.to_numpy(dtype=str)
        self._folder = _find(path, "img_align_celeba") if pictures else path / "img_align_celeba"
        if pictures:
            _check_present(ids, {p.name for p in self._folder.iterdir()}, self._folder)
        self._names = ids
        self._fill(path, ids, table, size, count, seed, attributes, None, None, None)
        self._split(parts, split)

    def _raw(self, place: int) -> bytes:
        return (self._folder / self._names[place]).read_bytes()


def _find(path: Path, name: str) -> Path:
    """A file or folder of the download, in the folder itself or in one of the download's subfolders."""
    for candidate in (path / name, path / "Anno" / name, path / "Eval" / name, path / "Img" / name):
        if candidate.exists():
            return candidate
    raise ImageSourceError(f"{path} holds no {name}{HOW_TO_GET['celeba']}")


def _read_attributes(file: Path) -> pd.DataFrame:
    """(N, 40) integers with the file names as index. First line: N; second: names; then a file name and 40 values a line."""
    try:
        with file.open(encoding="utf-8") as lines:
            count, names = lines.readline().strip(), lines.readline().split()
        check_celeba_order(names, file)
        table = pd.read_csv(file, sep=r"\s+", skiprows=2, header=None, index_col=0, dtype={0: str}, names=[0, *names])
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise AttributeTableError(f"cannot read {file}: {error}; expected the text file of the original download") from error
    if not count.isdigit() or int(count) != len(table):
        raise AttributeTableError(f"{file} says it has {count or 'no'} rows and holds {len(table)}; download it again")
    if table.index.has_duplicates:
        raise AttributeTableError(f"{file} names '{table.index[table.index.duplicated()][0]}' more than once; download it again")
    return table


def check_celeba_order(names: Sequence[str], where: Path) -> None:
    """Raise AttributeTableError unless the names are CelebA's 40 in the official order; names the first column that differs."""
    for number, (found, expected) in enumerate(zip(names, CELEBA_ATTRIBUTES, strict=False), start=1):
        if found != expected:
            raise AttributeTableError(f"column {number} of {where} is '{found}', CelebA's official order has '{expected}' there")
    if len(names) < len(CELEBA_ATTRIBUTES):
        missing = CELEBA_ATTRIBUTES[len(names)]
        raise AttributeTableError(f"{where} has {len(names)} attributes, CelebA has 40; the first missing column is '{missing}'")
    if len(names) > len(CELEBA_ATTRIBUTES):
        extra = names[len(CELEBA_ATTRIBUTES)]
        raise AttributeTableError(f"{where} has {len(names)} attributes, CelebA has 40; the first column too many is '{extra}'")


def _read_partition(file: Path, names: pd.Index) -> np.ndarray:
    """(N,) the part of every picture: "train", "validation" or "test". A line: a file name and 0, 1 or 2."""
    try:
        column = pd.read_csv(file, sep=r"\s+", header=None, names=["name", "part"], dtype=str).set_index("name")["part"]
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise AttributeTableError(f"cannot read {file}: {error}; expected the text file of the original download") from error
    parts = column[~column.index.duplicated()].reindex(names)
    wrong = ~parts.isin(["0", "1", "2"])
    if wrong.any():
        raise AttributeTableError(f"{file} has no part 0, 1 or 2 for picture '{parts.index[wrong][0]}'; download it again")
    return np.array([*PARTITIONS])[parts.astype(int)]


def _one_part(table: pd.DataFrame, parts: np.ndarray, partition: str | None) -> tuple[pd.DataFrame, np.ndarray]:
    if partition is None:
        return table, parts
    kept = parts == partition
    if not kept.any():
        raise ImageSourceError(f"no picture is in partition '{partition}'; there are {', '.join(np.unique(parts)) or 'none'}")
    return table[kept], parts[kept]


def _check_present(ids: np.ndarray, files: set[str], folder: Path) -> None:
    missing = [name for name in ids if name not in files]
    if missing:
        raise ImageSourceError(f"{folder} lacks {len(missing)} of {len(ids)} pictures: {listed(missing)}; unpack img_align_celeba.zip again")


class CelebAParquet(_OfficialImages, ParquetImages):
    """CelebA in the parquet files of a hub data set: pictures, and the 40 attributes as one list column or as 40 columns.

    Args:
        files: parquet files named train-*, validation-* (or valid-*, val-*) and test-*.
        size, count, seed, attributes, partition, split: as for `CelebAImages`.
        image_column: name of the struct column with the pictures.
        list_column: name of the list column with the attributes; where there is none, the 40 columns are looked up by name.

    Raises:
        AttributeTableError: other attributes or another order than the official one; names the column.
        ImageSourceError: a file of another name, or as for `ParquetImages`.
    """

    def __init__(
        self,
        files: Sequence[Path],
        size: int,
        count: int | None = None,
        seed: int = 42,
        attributes: Sequence[str] | None = None,
        partition: str | None = None,
        split: str | None = None,
        image_column: str = "image",
        list_column: str = "attributes",
    ) -> None:
        self._list_column = list_column
        part_of = {file: _part_of(file) for file in files}
        kept = sorted((f for f, part in part_of.items() if partition in (None, part)), key=lambda f: ([*PARTITIONS].index(part_of[f]), f.name))
        if not kept:
            raise ImageSourceError(f"no parquet file of partition '{partition}'; found {', '.join(f.name for f in files) or 'none'}")
        super().__init__(kept, size, count, seed, attributes, image_column=image_column)
        self._split(np.concatenate([np.full(pq.read_metadata(f).num_rows, part_of[f]) for f in kept]), split)

    def _table(self, files: Sequence[pq.ParquetFile], where: Path) -> pd.DataFrame:
        if self._list_column in files[0].schema_arrow.names:
            lists = pa.chunked_array([c for f in files for c in f.read(columns=[self._list_column]).column(0).chunks])
            return _expanded(lists, self._list_column, where)
        found = [name for name in files[0].schema_arrow.names if name in CELEBA_ATTRIBUTES]
        check_celeba_order(found, where)
        return pa.concat_tables(f.read(columns=found) for f in files).to_pandas()


def _part_of(file: Path) -> str:
    """The official part that a parquet file's name begins with."""
    for part, prefixes in PREFIXES.items():
        if re.split(r"[-.]", file.name)[0] in prefixes:
            return part
    raise ImageSourceError(f"{file} should begin with train-, validation- or test-, so that its part of the official split is known")


def _expanded(lists: pa.ChunkedArray, column: str, where: Path) -> pd.DataFrame:
    """(N, 40) from a list column."""
    lengths = lists.combine_chunks().value_lengths() if pa.types.is_list(lists.type) else None
    if lengths is None or lengths.null_count or set(lengths.unique().to_pylist()) != {len(CELEBA_ATTRIBUTES)}:
        found = str(lists.type) if lengths is None else f"lists of {lengths.unique().to_pylist()} values"
        raise AttributeTableError(f"column '{column}' of {where} holds {found}; expected lists of CelebA's 40 attributes")
    values = lists.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return pd.DataFrame(values.reshape(-1, len(CELEBA_ATTRIBUTES)), columns=list(CELEBA_ATTRIBUTES))


def hub_files(hub: str, revision: str, partition: str | None = None) -> list[Path]:
    """Parquet files of a data set on the hub, from the local cache or downloaded; only those of one partition if it is given.

    Args:
        hub: "owner/name" of the data set.
        revision: its commit.

    Raises:
        ImageSourceError: no network and not in the cache, no such data set or commit, no access, or no parquet file in it;
            with the terms of use and what to put where.
    """
    patterns = ["*.parquet"] if partition is None else [f"*{prefix}-*.parquet" for prefix in PREFIXES[partition]]
    try:
        folder = Path(ask(hub, revision, "dataset", allow_patterns=patterns))
    except HubUnreachableError as error:
        raise ImageSourceError(f"{error}; {_download(hub, revision)}, or name a folder of your own{HOW_TO_GET['celeba']}") from error
    except HubError as error:
        raise ImageSourceError(str(error)) from error
    files = sorted(f for pattern in patterns for f in folder.rglob(pattern))
    if not files:
        raise ImageSourceError(f"the hub's data set {hub} at {revision} holds no parquet file that matches {', '.join(patterns)}")
    _refuse_incomplete(files, hub, revision)
    return files


def _download(hub: str, revision: str) -> str:
    return f"with network, `HF_HUB_OFFLINE=0 hf download {hub} --repo-type dataset --revision {revision}` fetches it"


def _refuse_incomplete(files: Sequence[Path], hub: str, revision: str) -> None:
    """A download that was interrupted leaves some of train-00000-of-00019.parquet and so on; offline the hub's client takes them."""
    for file in files:
        named = re.fullmatch(r"(.*)-(\d+)-of-(\d+)\.parquet", file.name)
        found = [f for f in files if named and re.fullmatch(rf"{re.escape(named[1])}-\d+-of-{named[3]}\.parquet", f.name)]
        if named and len(found) != int(named[3]):
            half = f"the local cache has {len(found)} of the {int(named[3])} files {named[1]}-*-of-{named[3]}.parquet of {hub}"
            raise ImageSourceError(f"{half}: the download was interrupted; {_download(hub, revision)}")


class AFHQImages(_OfficialImages):
    """AFHQ v2 (StarGAN v2) from its folders train|test/cat|dog|wild/*.png; the three classes are its attributes.

    Rows are sorted by name: train before test, cat before dog before wild; ids are paths such as "train/cat/1.png".

    Args:
        path: the folder with train/ and test/.
        partition: use "train" or "test" only; both when None.
        size, count, seed, attributes, split: as for `CelebAImages`.

    Raises:
        ImageSourceError: a folder is missing or holds no picture; names it, with the terms of use and what to put where.
    """

    def __init__(
        self,
        path: Path | str,
        size: int,
        count: int | None = None,
        seed: int = 42,
        attributes: Sequence[str] | None = None,
        partition: str | None = None,
        split: str | None = None,
    ) -> None:
        self._folder = Path(path)
        if partition == "validation":
            raise ImageSourceError("AFHQ v2 has no partition 'validation'; choose train or test")
        rows = [
            (f"{part}/{name}/{file}", part, number)
            for part in ([partition] if partition else ["train", "test"])
            for number, name in enumerate(AFHQ_CLASSES)
            for file in self._pictures(f"{part}/{name}")
        ]
        self._names, parts, classes = (np.array(column) for column in zip(*rows, strict=True))
        table = pd.DataFrame(classes[:, None] == np.arange(len(AFHQ_CLASSES)), columns=list(AFHQ_CLASSES))
        self._fill(self._folder, self._names, table, size, count, seed, attributes, None, None, None)
        self._split(parts, split)

    def _pictures(self, below: str) -> list[str]:
        folder = self._folder / below
        found = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES) if folder.is_dir() else []
        if not found:
            raise ImageSourceError(f"no pictures in {folder}{HOW_TO_GET['afhq']}")
        return found

    def _raw(self, place: int) -> bytes:
        return (self._folder / self._names[place]).read_bytes()
