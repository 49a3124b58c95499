"""The plan of a run: sums that can be done by hand, what is missing, and what could not be checked."""

from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest

from une_utils.hub import HubError, HubUnreachableError
from une_utils.report import plan
from une_utils.settings import load_profile, profile_names

COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture(autouse=True)
def no_machine(monkeypatch, tmp_path):
    """No GPU, a large disk, nothing in the hub's cache, and no pictures or latents named, whatever the machine has."""
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda place: SimpleNamespace(free=10**15))
    monkeypatch.setattr(plan.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("UNE_CELEBA", "UNE_NOISEZOO", "UNE_LFW_PARQUET", "UNE_CIFAR10_PARQUET"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub_profile(tiny_profile, tmp_path):
    """The tiny profile with a generator of the hub before its own."""
    own = tiny_profile.generators[0].model_dump()
    first = {"name": "far", "hub": "owner/model", "revision": COMMIT, "steps": 7}
    return load_profile(str(tmp_path / "tiny.yaml"), {"generators": [first, own]})


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_has_a_plan_offline(name, monkeypatch, tmp_path):
    monkeypatch.setenv("UNE_CACHE", str(tmp_path))
    monkeypatch.setattr(plan, "timed", lambda folder, batch: plan.Speed(100.0, None, "timed"))
    report, complete = plan.plan(load_profile(name))
    assert report.startswith(f"profile {name}: ") and "network calls: " in report
    assert complete == (name in ("mini", "ci", "paper-tiny"))
    assert not list(tmp_path.iterdir())  # it writes nothing


def test_sums(tiny_profile, monkeypatch):
    """22 pictures, 4 steps and 3 of the control; D of 3 x (4, 8, 8), 2 x 16 and (3, 32, 32)."""
    monkeypatch.setattr(plan, "default_workers", lambda profile: 2)
    report, complete = plan.plan(tiny_profile, calls_per_second=0.011)
    assert complete
    assert "22 pictures x 7 steps = 154\n  steps: 4 (tiny-ldm) + 3 (tiny-ldm, untrained)" in report
    assert "time of the inversions: 1.9 hours with 2 processes" in report  # 154 / 0.011 / 2 seconds
    d = 3 * 256 + 32 + 3 * 32 * 32
    assert f"22 pictures x {d:,} values x 2 bytes" in report and f"{22 * d * 2 / 1e6:,.1f} MB" in report
    assert plan.describe_zoo(tiny_profile)[1] == 22 * d * 2


def test_the_zoo_has_the_size_that_was_planned(tiny_profile):
    from une_utils.zoo.build import build

    found, assumed = plan.dimensions(tiny_profile)
    zoo = build(tiny_profile, workers=1, progress=False)
    assert found == {name: zoo.latents(name).shape[1] for name in zoo.names} and assumed == []


def test_a_network_at_hand_is_timed(tiny_profile):
    speed = plan.speed(tiny_profile, tiny_profile.generators[0])
    assert speed.calls > 0 and speed.gpu_gib is None and speed.source in ("timed now, batch 1", "timed now, batch 4")  # on a busy machine


def test_what_is_not_measured_is_called_so(hub_profile, monkeypatch):
    monkeypatch.setattr(plan, "device_name", lambda: "a GPU that nobody has seen")
    report, complete = plan.plan(hub_profile)
    assert not complete  # no GPU
    assert "a network of SD 1.5's size is not measured for a GPU that nobody has seen" in report and "time of the inversions: not measured; give --calls-per-second" in report
    assert "GPU memory: not measured" in report and "assumed, until the models are at hand: far, far-untrained, far-vae" in report
    assert "time of the inversions: 1 minutes" in plan.plan(hub_profile, calls_per_second=1e6)[0]


def test_a_measured_number_is_found(hub_profile, monkeypatch, tmp_path):
    (tmp_path / "benchmarks").mkdir()
    rows = ["device,network,dtype,batch,calls_per_second,gpu_gib,note", "A GPU,SD 1.5,float16,32,40.0,5.5,x", "A GPU,SD 1.5,float16,1,10.0,3.0,x"]
    (tmp_path / "benchmarks" / "throughput.csv").write_text("\n".join(rows))
    monkeypatch.setattr(plan.settings, "ROOT", tmp_path)
    monkeypatch.setattr(plan, "device_name", lambda: "A GPU")
    found = plan.speed(hub_profile, hub_profile.generators[0])
    assert (found.calls, found.gpu_gib) == (40.0, 5.5) and found.source == "benchmarks/throughput.csv: A GPU, float16, batch 32"


def answers(monkeypatch, result):
    def remaining(*arguments):
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(plan, "remaining_bytes", remaining)


@pytest.mark.parametrize(
    ("result", "status", "detail"),
    [
        (3_500_000_000, "ok", "3.5 GB to download"),
        (HubError("owner/model is gated: accept its terms"), "missing", "accept its terms"),
        (HubUnreachableError("no network"), "not checked", "not in the cache, and HF_HUB_OFFLINE is set"),
    ],
)
def test_what_the_hub_says(hub_profile, monkeypatch, result, status, detail):
    answers(monkeypatch, result)
    check = plan.check_model(hub_profile.generators[0])
    assert check.status == status and detail in check.detail and check.what == "far, owner/model at 0123456"


def test_a_silent_hub_is_asked_once(hub_profile, monkeypatch):
    asked = []

    def silent(*arguments):
        asked.append(arguments)
        raise HubUnreachableError("no network")

    monkeypatch.setattr(plan, "remaining_bytes", silent)
    far = hub_profile.generators[0]
    models = [far, far.model_copy(update={"name": "farther", "hub": "owner/other"})]
    checks = plan.check_inputs(hub_profile.model_copy(update={"generators": models}))
    assert len(asked) == 1 and [c.status for c in checks[1:3]] == ["not checked"] * 2


def test_another_size_is_not_taken_for_sd15(monkeypatch):
    profile = load_profile("paper-sdxl")
    sd15, sdxl = profile.generators
    assert plan.assumed_size(sd15) == ("SD 1.5", 16384) and plan.assumed_size(sdxl) == ("SDXL", 65536)
    assert plan.speed(profile, sdxl).source.startswith("a network of SDXL's size is not measured")


def test_a_full_disk(tiny_profile, hub_profile, monkeypatch):
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    answers(monkeypatch, 3_500_000_000)
    assert "set UNE_CACHE to a larger disk" in plan.plan(tiny_profile)[0]
    report, complete = plan.plan(hub_profile)
    assert not complete and "3.5 GB needed in" in report and "set HF_HOME to a larger disk" in report


def test_weights_and_pictures_that_are_missing(tiny_profile, tmp_path):
    pictures = {"images.source": "folder", "images.path": "x", "images.attributes_csv": "y", "images.count": None}
    lacking = load_profile(str(tmp_path / "tiny.yaml"), {"oracle": "not-there"} | pictures)
    report, complete = plan.plan(lacking, calls_per_second=1)
    assert not complete and "missing: 2 of" in report
    assert "no such file or folder" in report and "no weights for model 'oracle'" in report and "zoo: 7,744 bytes a picture" in report


def test_released_latents(tmp_path, monkeypatch):
    monkeypatch.setenv("UNE_NOISEZOO", str(tmp_path))
    np.save(tmp_path / "noises_sd15.npy", np.zeros((3, 2), np.float16))
    model = load_profile("noisezoo").generators[0]
    assert plan.check_released(load_profile("noisezoo"), model, 3).detail == "3 x 2 float16, 0.0 MB"
    assert plan.check_released(load_profile("noisezoo"), model, 4).status == "missing"
    report, complete = plan.plan(load_profile("noisezoo"))
    assert not complete and "network calls: none" in report and "hf download" in report


def test_command_line(tiny_profile, tmp_path, capsys):
    assert plan.main(["--profile", str(tmp_path / "tiny.yaml"), "--calls-per-second", "10"]) == 0
    assert "everything is there" in capsys.readouterr().out
    assert plan.main(["--profile", "paper", "--calls-per-second", "10"]) == 1
    assert "missing: 2 of 11; not checked: 8 of 11" in capsys.readouterr().out
    assert plan.main(["--profile", "no-such-profile"]) == 1
    assert "unknown profile" in capsys.readouterr().err
