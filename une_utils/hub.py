"""Models and data sets from the Hugging Face hub: pinned to a revision, safetensors only, and plain words for what can go wrong."""

from __future__ import annotations

import errno
import json
import re
import struct
import warnings
from functools import cache
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    DryRunError, GatedRepoError, HFValidationError, HTTPError, IncompleteSnapshotError, LocalEntryNotFoundError, OfflineModeIsEnabled,
    RepositoryNotFoundError, RevisionNotFoundError,
)  # fmt: skip

WANTED = [
    "*.json", "*.txt", "model.safetensors", "model-*-of-*.safetensors", "*/model.safetensors", "*/model-*-of-*.safetensors",
    "*/diffusion_pytorch_model.safetensors", "*/diffusion_pytorch_model-*-of-*.safetensors",
]  # fmt: skip
UNWANTED = ["safety_checker/*"]  # the checker is never loaded: 1.2 GB
PASSIVE = ("safety_checker", "feature_extractor", "image_encoder")  # parts of a pipeline that no adapter loads
COMMIT = re.compile(r"[0-9a-f]{40}")


class HubError(RuntimeError):
    """A repository cannot be used; the message names it and says what to do."""


class HubUnreachableError(HubError):
    """The hub was not reached, so that nothing is known of a repository that is not in the cache."""


@cache
def snapshot(repository: str, revision: str) -> Path:
    """Folder of a repository's files at a revision, downloaded into the hub's cache unless they are there already.

    Args:
        repository: "owner/name".
        revision: 40 hexadecimal digits of a commit; a branch or tag works too and warns with the commit to pin.

    Raises:
        HubError: no network, no such repository or revision, no access, no space, or files that are missing or cut off.
    """
    folder = Path(ask(repository, revision, allow_patterns=WANTED, ignore_patterns=UNWANTED))
    problems = missing_files(folder)
    if problems:
        raise HubError(_unusable(repository, revision, folder, problems))
    if not COMMIT.fullmatch(revision) and COMMIT.fullmatch(folder.name):
        warnings.warn(f"{repository}: revision '{revision}' may move; pin what was read today with `revision: {folder.name}`", stacklevel=2)
    return folder


def cached(repository: str, revision: str) -> Path | None:
    """Folder of a repository in the hub's cache, without a look at the network; None when it is not there as a whole."""
    try:
        folder = Path(ask(repository, revision, allow_patterns=WANTED, ignore_patterns=UNWANTED, local_files_only=True))
    except HubError:
        return None
    return None if missing_files(folder) else folder


def remaining_bytes(repository: str, revision: str, repo_type: str = "model") -> int:
    """Bytes of a model, or of a data set's parquet files, that are not in the cache. Nothing is fetched, but access is tried.

    Raises:
        HubError: as `snapshot`; HubUnreachableError when the hub does not answer.
    """
    patterns = {"allow_patterns": WANTED, "ignore_patterns": UNWANTED} if repo_type == "model" else {"allow_patterns": ["*.parquet"]}
    files = ask(repository, revision, repo_type, dry_run=True, **patterns)
    return sum(file.file_size or 0 for file in files if file.will_download)


def ask(repository: str, revision: str, repo_type: str = "model", **options):
    """``huggingface_hub.snapshot_download``, its refusals in plain words.

    Args:
        repo_type: "model" or "dataset".
        options: patterns of the files, or ``dry_run``.

    Raises:
        HubError: no such repository or revision, no access, or no space; HubUnreachableError: no network.
    """
    try:
        return huggingface_hub.snapshot_download(repository, repo_type=repo_type, revision=revision, **options)
    except DryRunError as error:  # it hides why
        raise _explained(repository, revision, repo_type, error.__cause__ or error) from error
    except (OSError, ValueError, HTTPError) as error:
        raise _explained(repository, revision, repo_type, error) from error


def _explained(repository: str, revision: str, repo_type: str, error: Exception) -> HubError:
    """What went wrong and what to do, from the narrowest kind of error to the widest."""
    kind = "" if repo_type == "model" else f"{repo_type}s/"
    page, status = f"https://huggingface.co/{kind}{repository}", getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError) or status == 403:
        return HubError(
            f"{repository} is gated, and this account has no access to it. Sign in at {page} and accept its terms (some owners answer "
            "within days), make a token with read access at https://huggingface.co/settings/tokens, run `hf auth login`, and try again"
        )
    if isinstance(error, RevisionNotFoundError):
        return HubError(f"{repository} has no revision '{revision}'; its commits are listed at {page}/commits/main")
    if isinstance(error, RepositoryNotFoundError) or status == 401:
        return HubError(f"{repository} was not found, or is private: see {page}; if you have access, run `hf auth login` with a token of that account")
    if isinstance(error, IncompleteSnapshotError):
        return HubError(f"{repository}: an earlier download was cut off and the hub cannot be reached to complete it; run again with network. {error}")
    if isinstance(error, HFValidationError):
        return HubError(f"'{repository}' is no name of a repository; expected owner/name. {error}")
    place = huggingface_hub.constants.HF_HUB_CACHE
    if getattr(error, "errno", None) == errno.ENOSPC:
        return HubError(f"{repository}: no space left in {place}; free some, or set HF_HOME to a larger disk. What was downloaded is kept and gone on with")
    reason = "HF_HUB_OFFLINE is set" if huggingface_hub.constants.HF_HUB_OFFLINE else f"{type(error).__name__}: {error}"
    if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
        return HubUnreachableError(
            f"{repository} at '{revision}' is not in the cache and the hub cannot be reached ({reason}). Run once with network, or copy the "
            f"folder {repo_type}s--{repository.replace('/', '--')} from another machine's cache into {place}"
        )
    return HubUnreachableError(f"{repository} could not be downloaded ({reason}); try again later, finished files are kept")


def _unusable(repository: str, revision: str, folder: Path, problems: list[str]) -> str:
    listed = "; ".join(problems)
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return f"{repository}: the cached copy {folder} is incomplete ({listed}); run again with network, or delete the folder first"
    return (
        f"{repository} at '{revision}' cannot be used: {listed}. Only safetensors are loaded, never pickled weights. If the repository has "
        f"none, look for a conversion at https://huggingface.co/{repository}/discussions and name it (revision: refs/pr/NUMBER); "
        f"if it has them, the download was cut off: delete {folder} and run again"
    )


def missing_files(folder: Path) -> list[str]:
    """What a model folder lacks, in words; nothing when it can be loaded.

    A pipeline needs a config for every part that ``model_index.json`` names, and weights for those that are models; another
    model needs ``config.json`` and weights. Weights count when every safetensors file is as long as its header says.
    """
    if (folder / "model_index.json").is_file():
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        parts = [(name, value[1]) for name, value in index.items() if isinstance(value, list) and name not in PASSIVE and value[1]]
        return [problem for name, kind in parts for problem in _missing_in_part(folder / name, kind)]
    if not (folder / "config.json").is_file():
        return [f"no config.json or model_index.json in {folder.name}"]
    return _missing_weights(folder)


def _missing_in_part(folder: Path, kind: str) -> list[str]:
    if not list(folder.glob("*config.json")):
        return [f"no configuration in {folder.name}/"]
    passive = kind.endswith(("Scheduler", "Tokenizer", "TokenizerFast"))
    return [] if passive else _missing_weights(folder)


def _missing_weights(folder: Path) -> list[str]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return [f"no safetensors weights in {folder.name}/"]
    sharded = [json.loads(p.read_text(encoding="utf-8")) for p in folder.glob("*.safetensors.index.json") if ".fp16." not in p.name]
    wanted = {name for index in sharded for name in index["weight_map"].values()}
    absent = [f"{folder.name}/{name} is missing" for name in sorted(wanted - {p.name for p in files})]
    return absent + [f"{folder.name}/{p.name} is cut off" for p in files if not _is_whole(p)]


def _is_whole(path: Path) -> bool:
    """Whether a safetensors file has the length that its header gives: 8 bytes, the header, then the last tensor's end."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length > size:
            return False
        header = json.loads(file.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return size == 8 + length + max(ends, default=0)
