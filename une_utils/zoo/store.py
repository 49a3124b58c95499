"""The NoiseZoo on disk: the latents that many models give to the same images.

Layout of a zoo folder::

    zoo.json                     profile, images, split, package versions: written once
    index.zarr/                  ids (N,), attributes (N, A) bool, train (N,) bool
    <view>/view.json             what the view is made from: model hash, settings, shape
    <view>/latents.zarr          (N, D) float16, Zarr v3, one shard for ``shard_rows`` rows
    <view>/done/<shard>.json     a marker for each finished shard: rows and hash of its bits

A view is one (N, D) array: the inverted noise of a generator, the embedding of an encoder, or a baseline.

The zoo of a profile with ``zoo.released`` holds zoo.json, index.zarr and a view.json for each view; the latents stay in the
released files (`une_utils.zoo.released`).
"""

from __future__ import annotations

import importlib.metadata
import math
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from une_utils.files import digest, json_digest, model_hash, read_json, write_json
from une_utils.images import ImageSource, fingerprint, train_mask
from une_utils.settings import Model, Profile
from une_utils.stored import StoredRows
from une_utils.zoo import ZooError
from une_utils.zoo.released import check_attributes, open_released, released_file

FORMAT = 1
PACKAGES = ("torch", "diffusers", "transformers", "numpy", "zarr")
KINDS = ("noise", "untrained", "vae", "encoder", "pixels")
LOADED_GIB = 1.0  # as float32: larger latents of a released file are read in blocks, where the profile says nothing else


@dataclass(frozen=True)
class View:
    """One array of the zoo.

    Attributes:
        name: folder of the view.
        kind: "noise" (DDIM-inverted), "untrained" (inverted through a network with random weights), "vae" (VAE latents),
            "encoder" (embeddings) or "pixels" (values in [-1, 1]).
        model: the generator or encoder behind it; None for pixels.
        settings: what else decides the bits.
    """

    name: str
    kind: str
    model: Model | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def views(profile: Profile, has_vae: bool | None = None) -> list[View]:
    """All views of a profile: the noise of each generator, each encoder, pixels, and the baselines of the first generator,
    its VAE latents and its inversion through an untrained network. Of released latents there are no pixels and no baselines.

    Args:
        has_vae: whether the first generator has a VAE; when None, its folder says, which downloads a model of the hub.
    """
    zoo, first = profile.zoo, profile.generators[0]
    if zoo.is_released:
        kinds = [("noise", m) for m in profile.generators] + [("encoder", m) for m in profile.encoders]
        return [View(m.name, kind, m, {"released": f"noises_{m.name}.npy"}) for kind, m in kinds]
    inversion = {"convention": zoo.convention, "batch": zoo.batch}
    noise = [View(m.name, "noise", m, {"steps": m.steps or zoo.steps} | inversion) for m in profile.generators]
    control = View(f"{first.name}-untrained", "untrained", first, {"steps": zoo.untrained_steps, "seed": profile.seed} | inversion)
    has_vae = (first.resolved_path() / "vae").is_dir() if has_vae is None else has_vae
    vae = [View(f"{first.name}-vae", "vae", first)] if has_vae else []
    encoders = [
        View(m.name, "encoder", m, {} if m.untrained_seed is None else {"seed": m.untrained_seed}) for m in profile.encoders
    ]
    return [noise[0], control, *vae, *noise[1:], *encoders, View("pixels", "pixels")]


class Zoo:
    """Reads a zoo, and writes its shards.

    Args:
        profile: decides the folder, the images and the split.
        source: the profile's images; needed to make a new zoo, not to read a finished one.
        file_rows: (N,) row of every image in released files, for `open_released_zoo`.
    """

    def __init__(self, profile: Profile, source: ImageSource | None = None, file_rows: np.ndarray | None = None):
        self.profile, self.path = profile, profile.zoo_path
        if source is not None:
            self._make(source, file_rows)
        self.info = read_json(self.path / "zoo.json")
        if not self.info:
            raise ZooError(f"there is no zoo at {self.path}; notebook 01 or `python -m une_utils.zoo.build --profile {profile.name}` makes it")
        index = zarr.open_group(self.path / "index.zarr", mode="r")
        self.ids = np.array(index["ids"][:].tolist())
        self.attributes = index["attributes"][:].astype(bool)
        self.train = index["train"][:].astype(bool)
        self._file_rows = index["file_rows"][:] if "file_rows" in index else np.arange(len(self.ids))  # rows of the released files
        self.attribute_names = tuple(self.info["attribute_names"])

    def __len__(self) -> int:
        return len(self.ids)

    def _make(self, source: ImageSource, file_rows: np.ndarray | None) -> None:
        wanted = {
            "format": FORMAT,
            "images": fingerprint(source),
            "count": len(source),
            "attribute_names": list(source.attribute_names),
            "split": _split(self.profile, source),
            "shard_rows": self.profile.zoo.shard_rows,
        }
        found = read_json(self.path / "zoo.json")
        if found:
            _refuse_other(self.path, {k: found.get(k) for k in wanted}, wanted)
            return
        index = zarr.open_group(self.path / "index.zarr", mode="w")
        index.create_array("ids", data=np.asarray(source.ids).astype(np.dtypes.StringDType()))
        index.create_array("attributes", data=source.attributes.astype(bool))
        index.create_array("train", data=train_mask(source, self.profile.train_fraction, self.profile.seed))
        if file_rows is not None:
            index.create_array("file_rows", data=file_rows)
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        write_json(self.path / "zoo.json", wanted | {"profile": self.profile.name, "packages": versions})

    @property
    def shards(self) -> list[range]:
        """Rows of each shard."""
        size = self.info["shard_rows"]
        return [range(start, min(start + size, len(self))) for start in range(0, len(self), size)]

    def open_view(self, view: View, shape: tuple[int, ...]) -> None:
        """Prepare a view for writing; refuses one that was made from another model or other settings.

        Args:
            shape: shape of one latent; D is its product.
        """
        folder = self.path / view.name
        wanted = _identity(view, shape)
        found = read_json(folder / "view.json")
        if found:
            _refuse_other(folder, found, wanted)
            return
        dimension, rows = math.prod(shape), self.info["shard_rows"]
        zarr.create_array(
            folder / "latents.zarr", shape=(len(self), dimension), shards=(rows, dimension), chunks=(_chunk(rows), dimension),
            dtype="float16", overwrite=True,
        )  # fmt: skip
        write_json(folder / "view.json", wanted)

    def pending(self, view: View) -> list[int]:
        """Numbers of the shards without a marker."""
        return [i for i in range(len(self.shards)) if not self._marker(view.name, i).is_file()]

    def write_shard(self, view: View, number: int, latents: np.ndarray) -> None:
        """Write one shard and then its marker.

        Args:
            latents: (rows of the shard, D), any float type; stored as float16.

        Raises:
            ZooError: another shape, or a value that is not finite in float16; names the first image that has one. Nothing
                is written.
        """
        rows = self.shards[number]
        array = zarr.open_array(self.path / view.name / "latents.zarr", mode="r+")
        expected = (len(rows), array.shape[1])
        if np.shape(latents) != expected:
            raise ZooError(f"view '{view.name}': shard {number} should have latents of shape {expected}, got {np.shape(latents)}")
        with np.errstate(over="ignore"):  # reported below, with the image's name
            stored = np.asarray(latents).astype(np.float16)
        bad = np.flatnonzero(~np.isfinite(stored).all(axis=1))
        if len(bad):
            raise ZooError(f"view '{view.name}': {len(bad)} latents hold NaN or exceed float16, first image {self.ids[rows[bad[0]]]}")
        # Zarr reads a shard before it writes to it, and fails on one that was left damaged.
        old = self.path / view.name / "latents.zarr" / array.metadata.encode_chunk_key((number, 0))
        shutil.rmtree(old.parent, ignore_errors=True)
        array[rows.start : rows.stop] = stored
        write_json(self._marker(view.name, number), {"rows": [rows.start, rows.stop], "sha256": digest(stored.tobytes())})

    def _marker(self, name: str, number: int) -> Path:
        return self.path / name / "done" / f"{number:05d}.json"

    @property
    def names(self) -> list[str]:
        """Names of the views that are complete."""
        found = [v.name for v in views(self.profile) if (self.path / v.name / "view.json").is_file()]
        if self.profile.zoo.is_released:
            return found
        return [name for name in found if all(self._marker(name, i).is_file() for i in range(len(self.shards)))]

    def view_info(self, name: str) -> dict[str, Any]:
        """What a view was made from: kind, model hash, settings and shape of one latent."""
        return read_json(self.path / name / "view.json")

    def latents(self, name: str, rows: np.ndarray | slice = slice(None)) -> np.ndarray | StoredRows:
        """Latents (n, D) float32 of a complete view; rows of a file, to be read in blocks, where they are released and take
        more than the profile's ``zoo.loaded_gib`` (`StoredRows`).

        Args:
            rows: (N,) mask, integers or a slice.
        """
        places, limit = np.arange(len(self))[rows], self.profile.zoo.loaded_gib
        limit = LOADED_GIB if limit is None else limit
        if self.profile.zoo.is_released and 4 * len(places) * math.prod(self._complete(name)["shape"]) > limit * 2**30:
            whole = len(places) == len(self) and (places == np.arange(len(self))).all()
            return StoredRows(self._released(name), self._file_rows[places], self.path / name if whole else None)
        return self.read(name, places)

    def read(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Latents (n, D) float32 of some rows of a complete view; not more is loaded than lies between the first and the last.

        Args:
            rows: (n,) integers, in any order.
        """
        self._complete(name)
        if self.profile.zoo.is_released:
            return np.asarray(self._released(name)[self._file_rows[rows]], dtype=np.float32)
        first, last = (rows.min(), rows.max() + 1) if len(rows) else (0, 0)
        array = zarr.open_array(self.path / name / "latents.zarr", mode="r")
        return array[first:last][rows - first].astype(np.float32)

    def _complete(self, name: str) -> dict[str, Any]:
        if name not in self.names:
            raise ZooError(f"view '{name}' is not complete in {self.path}; complete are: {', '.join(self.names) or 'none'}")
        return self.view_info(name)

    def _released(self, name: str) -> np.memmap:
        info = self.view_info(name)
        return open_released(released_file(self.profile.zoo.released_path(), name), info["file"]["rows"], info["shape"][0])

    def _open_released(self, full: int) -> None:
        """Describe the views of released files; refuses files that are not the ones that the zoo was opened with before.

        Args:
            full: number of rows that the files should have.
        """
        for view in views(self.profile):
            file = released_file(self.profile.zoo.released_path(), view.name)
            latents = open_released(file, full)
            some = np.ascontiguousarray(latents[np.linspace(0, full - 1, 16).astype(int)])  # hashing 5 GB would take a minute
            shape = (latents.shape[1],)
            wanted = _identity(view, shape) | {"file": {"rows": full, "dtype": str(latents.dtype), "some_rows_sha256": digest(some.tobytes())}}
            found = read_json(self.path / view.name / "view.json")
            if found:
                _refuse_other(self.path / view.name, found, wanted)
            write_json(self.path / view.name / "view.json", wanted)


def open_released_zoo(profile: Profile, source: ImageSource, full: ImageSource) -> Zoo:
    """The zoo of a profile with ``zoo.released``: an index and a description of every view, while the latents stay in their files.

    Args:
        source: the profile's images, pictures not needed.
        full: all images of the data set, row i of a released file being image i; ``source`` has some of them.

    Raises:
        ZooError: a file is missing, damaged, or has another number of rows than ``full``; the files' attribute table is
            another one; or the zoo was made from other files.
    """
    folder = profile.zoo.released_path()
    check_attributes(folder, full)
    place = {name: row for row, name in enumerate(full.ids)}
    for view in views(profile):  # before anything is written
        open_released(released_file(folder, view.name), len(full))
    zoo = Zoo(profile, source, np.array([place[name] for name in source.ids]))
    zoo._open_released(len(full))
    return zoo


def _split(profile: Profile, source: ImageSource) -> dict[str, Any] | str:
    """What decides ``train``: the official split of the data set, or the seed and the share of a drawn one."""
    official = getattr(source, "train", None) is not None
    return "official" if official else {"seed": profile.seed, "train_fraction": profile.train_fraction}


def _chunk(rows: int) -> int:
    """Largest chunk of at most 125 rows that divides a shard evenly, as Zarr's sharding needs."""
    return next(n for n in range(min(rows, 125), 0, -1) if rows % n == 0)


def _identity(view: View, shape: tuple[int, ...]) -> dict[str, Any]:
    weights = model_hash(view.model.resolved_path()) if view.model and "released" not in view.settings else None
    return asdict(view) | {"model": view.model.name if view.model else None, "weights": weights, "shape": list(shape), "format": FORMAT}


def _refuse_other(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise ZooError when what is on disk was made from something else."""
    if json_digest(found) == json_digest(wanted):
        return
    keys = [k for k in sorted({*found, *wanted}) if json_digest(found.get(k)) != json_digest(wanted.get(k))]
    lines = [f"  {k}: on disk {str(found.get(k))[:100]}, now {str(wanted.get(k))[:100]}" for k in keys]
    raise ZooError(
        f"{folder} was made from something else, and latents of two origins are never mixed:\n" + "\n".join(lines)
        + "\nDelete that folder to make it again, or give the profile another name."
    )  # fmt: skip
