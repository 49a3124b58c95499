"""Project paths and validated profiles.

Paths are found from the package's own location, never from the working directory, so a notebook, a test and the runner
read the same files. A profile is a YAML file in ``profiles/``; it may extend another one and override some of its keys.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from une_utils.files import model_hash
from une_utils.hub import HubError, snapshot

ROOT = Path(__file__).resolve().parent.parent
PROFILES = ROOT / "profiles"
NOTEBOOKS = ROOT / "notebooks"
MODELS = ROOT / "data" / "models"
CLAIMS = ROOT / "claims.yaml"


HOW_TO_GET = {  # source -> terms of use, and what to put where
    "celeba": """
CelebA may be used for non-commercial research only, and its pictures may not be passed on: read the agreement at
https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html first. Then download there, and put into one folder:
  img_align_celeba/          202,599 pictures 000001.jpg to 202599.jpg, unpacked from img_align_celeba.zip
  list_attr_celeba.txt       40 attributes of every picture
  list_eval_partition.txt    the official split
The subfolders Img/, Anno/ and Eval/ of the download may stay. Or set 'hub' and 'revision' in the profile to a copy on the hub,
for example eurecom-ds/celeba, and leave the path out.""",
    "afhq": """
AFHQ v2 is under CC BY-NC 4.0: non-commercial use, with credit to its authors. Download afhq_v2.zip as
https://github.com/clovaai/stargan-v2 describes and unpack it; the folder to name is the one that holds
  train/cat/  train/dog/  train/wild/  test/cat/  test/dog/  test/wild/""",
}

# Number of a notebook -> the setting of a profile that it cannot do without, and why it is left out where that is empty.
NEEDS = {
    "11": ("shifts", "no shift of h-space is trained for its generator"),
    "11b": ("rivals", "no other editing method is trained for its generator"),
}


class ProfileError(ValueError):
    """A profile is missing or invalid; the message names the file, the key and what was expected."""


class _Section(BaseModel):
    """A part of a profile: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _from_environment(name: str | None) -> str | None:
    """Value of an environment variable; None when no name is given or it is not set."""
    return os.environ.get(name) if name else None


def _below_root(value: str) -> Path:
    """A path as a profile writes it: ``~`` is the home folder, a relative path starts at the project's root."""
    path = Path(value).expanduser()
    return path if path.is_absolute() else ROOT / path


class Images(_Section):
    """Which pictures a profile uses.

    ``rendered`` draws faces; ``folder`` reads ``path/`` with the attribute table ``attributes_csv``; ``parquet`` reads a
    file in the layout of Hugging Face datasets; ``celeba`` and ``afhq`` read a folder as it was handed out. ``path_env`` names
    an environment variable that overrides ``path``. Without a path, ``parquet`` and ``celeba`` read a data set of the hub.
    """

    source: Literal["rendered", "folder", "parquet", "celeba", "afhq"]
    size: int = Field(64, ge=8, description="side of the square pictures, pixels")
    count: int | None = Field(None, ge=10, description="use only this many pictures, drawn with the profile's seed")
    path: str | None = None
    path_env: str | None = None
    hub: str | None = Field(None, pattern=r"^[\w.-]+/[\w.-]+$", description="data set on the hub, read when no path is given")
    revision: str | None = Field(None, pattern=r"^[0-9a-f]{7,40}$", description="commit of the data set on the hub")
    partition: Literal["train", "validation", "test"] | None = Field(None, description="use this part of the official split only")
    split: Literal["official"] | None = Field(None, description="train on the official training part, test on the rest; drawn when missing")
    attributes_csv: str | None = None
    image_column: str = "image"
    attributes: list[str] | None = Field(None, description="attribute columns; every binary column when missing")
    group_column: str | None = Field(None, description="rows of one group (a person) never cross the split")
    class_column: str | None = Field(None, description="column with the number or name of a picture's class")
    classes: list[str] | None = Field(None, description="names of the classes in the order of their numbers; each is an attribute")
    show: bool = Field(True, description="figures may show these pictures; if not, they show generated ones in their place")

    @model_validator(mode="after")
    def _source_has_a_place(self) -> Images:
        if self.source != "rendered" and not (self.path or self.path_env or self.hub):
            raise ValueError(f"source '{self.source}' needs 'path' or 'path_env'")
        if self.hub and (self.source not in ("parquet", "celeba") or not self.revision):
            raise ValueError("'hub' is for the sources 'parquet' and 'celeba' and needs 'revision', the data set's commit")
        if (self.partition or self.split) and self.source not in ("celeba", "afhq"):
            raise ValueError("'partition' and 'split' are for the sources 'celeba' and 'afhq', which have an official split")
        if self.partition and self.split:
            raise ValueError("'partition' keeps one part of the official split, 'split' trains on one and tests on the rest: give one of them")
        if self.source == "folder" and not self.attributes_csv:
            raise ValueError("source 'folder' needs 'attributes_csv'")
        if (self.class_column is None) != (self.classes is None):
            raise ValueError("'class_column' and 'classes' go together: give both or neither")
        return self

    def _named_path(self) -> str | None:
        return _from_environment(self.path_env) or self.path

    @property
    def from_hub(self) -> bool:
        """Whether the pictures come from the hub: it is named, and no path is."""
        return bool(self.hub) and not self._named_path()

    def resolved_path(self) -> Path:
        """Folder or file of the pictures; relative paths start at the project's root."""
        value, help_text = self._named_path(), HOW_TO_GET.get(self.source, "")
        if not value:
            raise ProfileError(
                f"the profile reads its pictures from the environment variable {self.path_env}, which is not set; "
                f"set it to the {self.source} file or folder, for example: export {self.path_env}=/path/to/it{help_text}"
            )
        path = _below_root(value)
        if not path.exists():
            origin = f"environment variable {self.path_env}" if _from_environment(self.path_env) else "profile"
            raise ProfileError(f"no such file or folder: {path} (named by the {origin}; source '{self.source}'){help_text}")
        return path


class Model(_Section):
    """One generator or encoder: its name in the zoo, and where its weights are.

    ``path`` is a folder below ``data/models``, or below ``models`` in the cache for models that do not ship. ``hub`` is a
    repository of the Hugging Face hub, pinned by ``revision`` to a commit.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    path: str = ""
    hub: str | None = Field(None, pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str | None = Field(None, description="commit of the repository, 40 hexadecimal digits; a branch warns with the commit to pin")
    label: str = Field("", description="name in figures and tables; ``name`` when empty")
    steps: int | None = Field(None, ge=2, description="DDIM steps of the inversion; the zoo's when missing")
    untrained_seed: int | None = Field(None, description="encoders: draw the weights with this seed instead of reading them")

    @model_validator(mode="after")
    def _is_in_one_place(self) -> Model:
        if bool(self.path) == bool(self.hub):
            raise ValueError(f"model '{self.name}' needs either 'path' or 'hub'")
        if bool(self.hub) != bool(self.revision):
            raise ValueError(f"model '{self.name}': 'hub' and 'revision' go together: give both or neither")
        return self

    @property
    def title(self) -> str:
        return self.label or self.name

    @property
    def weights_hash(self) -> str:
        """What the weights are, without a download: the hash of a folder, or the repository and revision of the hub."""
        return f"{self.hub}@{self.revision}" if self.hub else model_hash(self._folder)

    @property
    def _folder(self) -> Path:
        """``path`` itself when absolute, else below ``data/models`` or, when that is not there, below the cache."""
        shipped, made = MODELS / self.path, cache_root() / "models" / self.path
        return made if made.is_dir() and not shipped.is_dir() else shipped

    def resolved_path(self) -> Path:
        """Folder of the weights; the hub's are downloaded.

        Raises:
            ProfileError: the folder is missing, or the hub does not give it; the message says what to do.
        """
        if self.hub:
            try:
                return snapshot(self.hub, self.revision)
            except HubError as error:
                raise ProfileError(f"model '{self.name}': {error}") from error
        if not self._folder.is_dir():
            raise ProfileError(f"no weights for model '{self.name}' at {self._folder}; `make train PROFILE=...` makes them")
        return self._folder


class ShiftModel(Model):
    """f_t of Asyrp: a trained shift of the first generator's bottleneck.

    ``attribute`` is what it puts on: one of the pictures' attributes, or another one that the captions have words for.
    """

    attribute: str = Field(pattern=r"^[A-Z][A-Za-z_]*$", description="attribute whose presence an edit with strength 1 should bring")


class Rival(Model):
    """What another editing method needs besides the first generator. A fine-tuned copy serves one attribute."""

    method: Literal["classifier guidance", "diffusion autoencoder", "DiffusionCLIP"]
    attribute: str | None = Field(None, pattern=r"^[A-Z][A-Za-z_]*$", description="of a fine-tuned copy: the attribute that it puts on")


class Zoo(_Section):
    """How latents are made and stored."""

    steps: int = Field(50, ge=2, description="DDIM steps of the inversion")
    convention: Literal["target", "current", "une"] = Field("target", description="see une_utils.models.ddim.invert")
    batch: int = Field(125, ge=1)
    shard_rows: int = Field(250, ge=1)
    untrained_steps: int = Field(5, ge=2, description="DDIM steps of the control inverted through an untrained network")
    released: str | None = Field(None, description="folder of released latents, noises_<model>.npy, that are read instead of made")
    released_env: str | None = Field(None, description="environment variable that overrides ``released``")
    loaded_gib: float | None = Field(None, ge=0, description="GiB as float32 up to which a released view is loaded as a whole; 1 when missing")

    @property
    def is_released(self) -> bool:
        """Whether the latents are released files and none are made."""
        return bool(self.released or self.released_env)

    def released_path(self) -> Path:
        """Folder of the released files; a relative path starts at the project's root. Raises ProfileError when it is not named."""
        value = _from_environment(self.released_env) or self.released
        if not value:
            raise ProfileError(
                f"the profile reads released latents from the folder that the environment variable {self.released_env} names, which is not "
                f"set; `hf download chentasker/NoiseZoo --repo-type dataset --local-dir FOLDER`, then export {self.released_env}=FOLDER"
            )
        return _below_root(value)


class Analysis(_Section):
    """Sizes of the statistical work."""

    projections: int = Field(5000, ge=10, description="random unit directions of the Gaussianity test (Table 1: 5,000)")
    rows: int = Field(250, ge=8, description="rows drawn per direction (Table 1: 250)")
    bootstrap: int = Field(1000, ge=20)
    roundtrip_images: int = Field(32, ge=4)
    samples: int = Field(64, ge=4, description="pictures sampled from the generator for the figures")


class Profile(_Section):
    """A validated profile. ``seed`` drives the split and every random draw that is not part of a model."""

    name: str
    title: str
    seed: int = 42
    images: Images
    train_fraction: float = Field(0.8, gt=0, lt=1)
    generators: list[Model] = Field(min_length=1, description="the first one plays the main part")
    encoders: list[Model] = Field(min_length=1)
    variants: list[Model] = Field([], description="further generators, looked at in the ablations only (notebook 08)")
    checkpointed: list[Model] = Field([], description="one recipe, several seeds, states of the training kept (notebook 10)")
    shifts: list[ShiftModel] = Field([], description="edits in the bottleneck of the first generator (notebook 11)")
    rivals: list[Rival] = Field([], description="other methods of editing with the first generator (notebook 11b)")
    perceptual: Literal["lpips"] | None = Field(None, description="distance of pictures in notebook 11; cosine in DINO's features when missing")
    oracle: str | None = Field(None, description="model below ``data/models`` that judges edits of rendered faces")
    classes: list[str] = Field([], description="attributes of which a picture has one; edits go from the first to the second (notebook 08b)")
    combinations: dict[str, list[str]] = Field({}, description="shared spaces of notebook 07 -> titles of their models, those of the profile count; mini's when missing")
    skip: dict[str, str] = Field({}, description="number of a notebook that this profile does not run -> the reason; see ``left_out``")
    zoo: Zoo = Zoo()
    analysis: Analysis = Analysis()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Profile:
        names = [m.name for m in self.models]
        double = sorted({n for n in names if names.count(n) > 1})
        if double:
            raise ValueError(f"model names must be unique, found twice: {', '.join(double)}")
        return self

    @property
    def models(self) -> list[Model]:
        """All generators, encoders, shifts and rivals, whatever their part."""
        return [*self.generators, *self.encoders, *self.variants, *self.checkpointed, *self.shifts, *self.rivals]

    @property
    def left_out(self) -> dict[str, str]:
        """Number of a notebook that this profile does not run -> the reason: ``skip``, where "06" stands for "06b" as well, and
        what needs a setting that is empty here."""
        parts = {p.name.split("_")[0]: self.skip.get(p.name[:2]) for p in sorted(NOTEBOOKS.glob("[0-9][0-9][a-z]_*.ipynb"))}
        empty = {number: reason for number, (setting, reason) in NEEDS.items() if not getattr(self, setting)}
        return {number: reason for number, reason in parts.items() if reason} | empty | self.skip

    @property
    def zoo_path(self) -> Path:
        """Folder of this profile's NoiseZoo (git-ignored)."""
        return cache_root() / "zoo" / self.name

    @property
    def figures_path(self) -> Path:
        """Folder of this profile's figures and manifest. ``UNE_FIGURES`` moves it."""
        return Path(os.environ.get("UNE_FIGURES", ROOT / "figures")) / self.name


def cache_root() -> Path:
    """Folder for everything that can be made again: zoos, executed notebooks. ``UNE_CACHE`` moves it."""
    return Path(os.environ.get("UNE_CACHE", ROOT / "data" / "cache"))


def profile_names() -> list[str]:
    """Names of all profiles in ``profiles/``."""
    return sorted(p.stem for p in PROFILES.glob("*.yaml"))


def load_profile(name: str | Path, overrides: dict[str, Any] | None = None) -> Profile:
    """Read and validate a profile.

    Args:
        name: name of a file in ``profiles/`` without its suffix, or a path that ends in ``.yaml``.
        overrides: plain values keyed by dotted names, for example ``{"images.count": 200}``.

    Raises:
        ProfileError: unknown profile, YAML that does not parse, unknown key, or value out of range.
    """
    raw = _read(name)
    for key, value in (overrides or {}).items():
        _set(raw, key, value)
    try:
        return Profile.model_validate(raw)
    except ValidationError as error:
        lines = [f"  {'.'.join(str(p) for p in e['loc']) or '(profile)'}: {e['msg']} (got {e['input']!r:.80})" for e in error.errors()]
        raise ProfileError(f"profile '{name}' is not valid:\n" + "\n".join(lines)) from None


def _read(name: str | Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    path = Path(name) if str(name).endswith(".yaml") else PROFILES / f"{name}.yaml"
    if not path.is_file():
        raise ProfileError(f"unknown profile '{name}'; expected one of {', '.join(profile_names())}, or a path to a .yaml file")
    if path in seen:
        raise ProfileError(f"profile '{name}' extends itself")
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ProfileError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ProfileError(f"{path} should hold a mapping of keys to values")
    base = raw.pop("extends", None)
    return _merge(_read(base, (*seen, path)), raw) if base else raw


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Override ``base`` key by key; nested mappings merge, lists and values replace."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if both else value
    return merged


def _set(raw: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        raw = raw.setdefault(parent, {})
        if not isinstance(raw, dict):
            raise ProfileError(f"cannot override '{dotted}': '{parent}' is not a section")
    raw[last] = value
