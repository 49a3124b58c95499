"""The hub without a network: what is asked of it, and what each of its failures says to do."""

import errno
import json
import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    DryRunError, GatedRepoError, HfHubHTTPError, IncompleteSnapshotError, LocalEntryNotFoundError, OfflineModeIsEnabled,
    RepositoryNotFoundError, RevisionNotFoundError,
)  # fmt: skip

from une_utils import hub
from une_utils.hub import HubError, HubUnreachableError, missing_files, remaining_bytes, snapshot

COMMIT = "0123456789abcdef" * 2 + "01234567"
NAME = "owner/model"


@pytest.fixture(autouse=True)
def forget():
    snapshot.cache_clear()
    yield
    snapshot.cache_clear()


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def answer(monkeypatch):
    """Let the hub answer with a folder or an error; the calls are in the list that comes back."""

    def set_answer(result):
        calls = []

        def snapshot_download(repository, **options):
            calls.append((repository, options))
            if isinstance(result, Exception):
                raise result
            return result if isinstance(result, list) else str(result)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return calls

    return set_answer


def http(kind, status, message="refused"):
    return kind(message, response=SimpleNamespace(status_code=status, request=None, headers={}))


@pytest.fixture
def repository(hub_model, tmp_path):
    """A copy of a pipeline that a test may spoil; its folder is named like a commit."""
    return shutil.copytree(hub_model("tiny/sd15"), tmp_path / COMMIT)


def test_a_revision_is_downloaded_once_without_pickles_and_checkers(answer, repository):
    calls = answer(repository)
    assert snapshot(NAME, COMMIT) == snapshot(NAME, COMMIT) == repository
    [(name, options)] = calls
    assert (name, options["revision"]) == (NAME, COMMIT)
    wanted = huggingface_hub.utils.filter_repo_objects(
        [
            "model_index.json", "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
            "text_encoder/model.safetensors", "tokenizer/merges.txt", "model.safetensors", "model-00001-of-00002.safetensors",
            "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors", "v1-5-pruned.safetensors", "v1-5-pruned.ckpt",
            "safety_checker/model.safetensors", "pytorch_model.bin", "modeling.py", "unet/diffusion_pytorch_model.non_ema.safetensors",
        ],
        allow_patterns=options["allow_patterns"], ignore_patterns=options["ignore_patterns"],
    )  # fmt: skip
    assert len(list(wanted)) == 7  # the first seven


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (http(GatedRepoError, 401), rf"{NAME} is gated.*accept its terms.*settings/tokens.*hf auth login"),
        (http(HfHubHTTPError, 403), rf"{NAME} is gated.*accept its terms"),
        (http(RevisionNotFoundError, 404), rf"{NAME} has no revision '{COMMIT}'; its commits are listed at .*/commits/main"),
        (http(RepositoryNotFoundError, 404), rf"{NAME} was not found, or is private.*hf auth login"),
        (http(HfHubHTTPError, 401), rf"{NAME} was not found, or is private"),
        (http(HfHubHTTPError, 503, "Unavailable"), rf"{NAME} could not be downloaded \(HfHubHTTPError: Unavailable\); try again later"),
        (LocalEntryNotFoundError("down"), rf"{NAME} at '{COMMIT}' is not in the cache and the hub cannot be reached \(Local.*copy the folder"),
        (IncompleteSnapshotError("2 are missing", snapshot_path="x"), r"an earlier download was cut off.*run again with network. 2 are missing"),
        (OSError(errno.ENOSPC, "No space left on device"), r"no space left in .*set HF_HOME to a larger disk"),
        (ConnectionResetError("peer"), r"could not be downloaded \(ConnectionResetError: peer\)"),
    ],
)  # fmt: skip
def test_every_failure_says_what_to_do(error, message, answer, online):
    answer(error)
    with pytest.raises(HubError, match=f"(?s){message}"):
        snapshot(NAME, COMMIT)


def test_what_is_left_to_download(answer):
    sizes = [(5, True), (7, False), (None, True)]
    calls = answer([SimpleNamespace(file_size=size, will_download=wanted) for size, wanted in sizes])
    assert remaining_bytes(NAME, COMMIT) == remaining_bytes(NAME, COMMIT, "dataset") == 5
    assert all(options["dry_run"] for _, options in calls) and calls[0][1]["allow_patterns"] == hub.WANTED
    assert calls[1][1]["repo_type"] == "dataset" and calls[1][1]["allow_patterns"] == ["*.parquet"]


@pytest.mark.parametrize(
    ("cause", "kind", "message"),
    [(http(GatedRepoError, 401), HubError, "is gated"), (OfflineModeIsEnabled("off"), HubUnreachableError, "the hub cannot be reached")],
)
def test_a_dry_run_that_fails_says_why(cause, kind, message, answer, online):
    error = DryRunError("cannot be performed")
    error.__cause__ = cause
    answer(error)
    with pytest.raises(kind, match=message):
        remaining_bytes(NAME, COMMIT)


def test_a_failure_is_not_remembered(answer, repository, online):
    answer(ConnectionResetError("peer"))
    with pytest.raises(HubError):
        snapshot(NAME, COMMIT)
    answer(repository)
    assert snapshot(NAME, COMMIT) == repository


def test_a_branch_warns_with_the_commit_to_pin(answer, repository):
    answer(repository)
    with pytest.warns(UserWarning, match=f"revision 'main' may move; pin what was read today with `revision: {COMMIT}`"):
        snapshot(NAME, "main")


def test_a_complete_folder_lacks_nothing(hub_model):
    assert missing_files(hub_model("tiny/sdxl")) == missing_files(hub_model("tiny/clip")) == missing_files(hub_model("tiny/ddpm")) == []


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


SPOILED = [
    (lambda f: shutil.rmtree(f / "unet"), "no configuration in unet/"),
    (lambda f: (f / "scheduler/scheduler_config.json").unlink(), "no configuration in scheduler/"),
    (lambda f: (f / "vae/diffusion_pytorch_model.safetensors").unlink(), "no safetensors weights in vae/"),
    (lambda f: cut(f / "text_encoder/model.safetensors"), "text_encoder/model.safetensors is cut off"),
    (lambda f: (f / "unet/diffusion_pytorch_model.safetensors").write_bytes(b""), "unet/diffusion_pytorch_model.safetensors is cut off"),
    (lambda f: (f / "model_index.json").unlink(), "no config.json or model_index.json"),
]


@pytest.mark.parametrize(("spoil", "problem"), SPOILED)
def test_a_folder_that_cannot_be_loaded_is_refused(spoil, problem, repository, answer, online):
    spoil(repository)
    answer(repository)
    with pytest.raises(HubError, match=f"(?s){NAME} at '{COMMIT}' cannot be used: {problem}.*Only safetensors.*delete"):
        snapshot(NAME, COMMIT)


def test_missing_shards_are_named(hub_model, tmp_path):
    folder = shutil.copytree(hub_model("tiny/clip"), tmp_path / "clip")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert missing_files(folder) == ["clip/model-00002-of-00002.safetensors is missing"]


def test_a_repository_with_pickles_only_is_refused(hub_model, tmp_path, answer, online):
    folder = shutil.copytree(hub_model("tiny/clip"), tmp_path / COMMIT)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    answer(folder)
    with pytest.raises(HubError, match="no safetensors weights.*never pickled weights.*refs/pr/NUMBER"):
        snapshot(NAME, COMMIT)


# The hub's own client on a cache that was filled by hand, offline


@pytest.fixture
def cached(hub_model, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--owner--model" / "snapshots" / COMMIT
    shutil.copytree(hub_model("tiny/clip"), folder)
    (tmp_path / "models--owner--model" / "refs").mkdir()
    (tmp_path / "models--owner--model" / "refs" / "main").write_text(COMMIT)
    return folder


def test_a_cached_repository_needs_no_network(cached):
    assert hub.snapshot(NAME, COMMIT).samefile(cached)
    with pytest.warns(UserWarning, match=COMMIT):
        assert hub.snapshot(NAME, "main").samefile(cached)


def test_the_cache_is_asked_without_a_complaint(cached):
    assert hub.cached(NAME, COMMIT).samefile(cached) and hub.cached("owner/other", "main") is None
    cut(cached / "model.safetensors")
    assert hub.cached(NAME, COMMIT) is None


def test_a_half_filled_cache_is_named(cached):
    cut(cached / "model.safetensors")
    with pytest.raises(HubError, match=f"the cached copy .*{COMMIT} is incomplete .*model.safetensors is cut off.*run again with network"):
        hub.snapshot(NAME, COMMIT)


def test_what_is_not_cached_cannot_be_had_offline(cached):
    with pytest.raises(HubError, match=r"owner/other at 'main' is not in the cache.*HF_HUB_OFFLINE is set.*models--owner--other"):
        hub.snapshot("owner/other", "main")
