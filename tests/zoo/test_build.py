"""Building a zoo: the same bits however it is run, and after it was killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from une_utils.images import open_images, to_model_range
from une_utils.models.ddim import invert
from une_utils.models.encoders import Encoder
from une_utils.models.generators import Generator
from une_utils.settings import load_profile
from une_utils.zoo import build as building
from une_utils.zoo.build import build
from une_utils.zoo.store import Zoo, ZooError, views

NAMES = ["tiny-ldm", "tiny-ldm-untrained", "tiny-ldm-vae", "tiny-vit", "pixels"]


def bits(path):
    """Every file of a zoo with its content."""
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def times(path):
    return {p.relative_to(path).as_posix(): p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file()}


@pytest.fixture
def whole(tiny_profile, monkeypatch, tmp_path):
    """An uninterrupted build in this process, in a cache of its own."""
    with monkeypatch.context() as patch:
        patch.setenv("UNE_CACHE", str(tmp_path / "whole"))
        return build(tiny_profile, workers=1, progress=False)


def test_views_are_what_they_say(tiny_profile, tiny_models):
    zoo = build(tiny_profile, workers=1, progress=False)
    assert zoo.names == NAMES
    images = open_images(tiny_profile).load(np.arange(22))
    x = torch.from_numpy(to_model_range(images))
    generator = Generator.load(tiny_models.generator)
    untrained = Generator.load(tiny_models.generator, untrained_seed=42)
    x0 = generator.encode(x)
    expected = {
        "tiny-ldm": invert(generator, x0, generator.schedule(4)).latents,
        "tiny-ldm-untrained": invert(untrained, x0, generator.schedule(3)).latents,
        "tiny-ldm-vae": x0,
        "tiny-vit": Encoder.load(tiny_models.encoder).embed(x),
        "pixels": x,
    }
    for name, value in expected.items():
        found = zoo.latents(name)
        assert found.shape == (22, value[0].numel())
        assert zoo.view_info(name)["shape"] == list(value.shape[1:])
        np.testing.assert_allclose(found, value.flatten(1).numpy(), rtol=1e-2, atol=2e-2, err_msg=name)  # bfloat16, batches
        others = [v for k, v in expected.items() if k != name and v[0].numel() == value[0].numel()]
        assert all(np.abs(found - o.flatten(1).numpy()).mean() > 0.05 for o in others)


def test_a_second_build_computes_nothing(tiny_profile, whole, monkeypatch, tmp_path):
    monkeypatch.setenv("UNE_CACHE", str(tmp_path / "whole"))
    before = times(whole.path)
    monkeypatch.setattr(building, "compute", lambda *_: pytest.fail("a finished shard was computed again"))
    assert build(tiny_profile, workers=1, progress=False).names == NAMES
    assert times(whole.path) == before


@pytest.mark.parametrize("limit", [0, 2**28])
def test_pictures_are_loaded_once_when_they_fit(tiny_profile, whole, monkeypatch, limit):
    """And encoded once for the two views that share an autoencoder; either way with the same bits."""
    loaded, encode, encoded = [], Generator.encode, []
    pictures = building.Pictures
    monkeypatch.setattr(building, "KEPT_BYTES", limit)
    monkeypatch.setattr(building, "Pictures", lambda images, batch: loaded.append(len(images)) or pictures(images, batch))
    monkeypatch.setattr(Generator, "encode", lambda self, x: encoded.append(len(x)) or encode(self, x))
    zoo = build(tiny_profile, workers=1, progress=False)
    assert sum(loaded) == (22 if limit else 22 * len(NAMES))
    assert sum(encoded) == (22 if limit else 22 * 3)
    assert bits(zoo.path) == bits(whole.path)


def test_a_build_goes_on(tiny_profile, whole, monkeypatch):
    """Ctrl-C in the third view; then the rest."""
    compute, calls = building.compute, []

    def stopping(profile, view, images):
        calls.append(view.name)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return compute(profile, view, images)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(building, "compute", stopping)
        build(tiny_profile, workers=1, progress=False)
    zoo = Zoo(tiny_profile)
    assert zoo.names == NAMES[:2]
    finished = times(zoo.path)
    calls.clear()
    monkeypatch.setattr(building, "compute", lambda *arguments: calls.append(1) or compute(*arguments))
    build(tiny_profile, workers=1, progress=False)
    assert len(calls) == 20 - 9
    assert bits(zoo.path) == bits(whole.path)
    assert finished.items() <= times(zoo.path).items()


def test_two_workers_give_the_same_bits(tiny_profile, whole):
    zoo = build(tiny_profile, workers=2, progress=False)
    assert zoo.path != whole.path
    assert bits(zoo.path) == bits(whole.path)


def test_number_of_threads_does_not_matter(tiny_profile, whole):
    seen = []
    compute = building.compute
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(building, "compute", lambda *a: seen.append(torch.get_num_threads()) or compute(*a))
            zoo = build(tiny_profile, workers=1, progress=False)
        assert set(seen) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert bits(zoo.path) == bits(whole.path)


def children(pid):
    """Processes whose parent is ``pid``, read from /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except (OSError, IndexError):
            pass
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in /proc")
def test_killed_build_goes_on(tmp_path, tiny_profile, monkeypatch):
    """SIGKILL to the building process once a shard is done: its workers leave, and the rest is built to the same bits."""
    overrides = {"images.count": 42, "zoo.steps": 8}
    profile = load_profile(str(tmp_path / "tiny.yaml"), overrides)
    script = (
        "from une_utils.settings import load_profile\nfrom une_utils.zoo.build import build\n"
        f"if __name__ == '__main__':\n    build(load_profile({str(tmp_path / 'tiny.yaml')!r}, {overrides!r}), workers=2)\n"
    )
    (tmp_path / "script.py").write_text(script)
    process = subprocess.Popen([sys.executable, tmp_path / "script.py"], stderr=subprocess.PIPE, text=True)
    workers = []
    try:
        deadline = time.monotonic() + 600  # seconds; imports take minutes on a busy machine
        while not list(profile.zoo_path.glob("*/done/*.json")):
            assert process.poll() is None and time.monotonic() < deadline, process.stderr.read() if process.poll() else "no shard in time"
            time.sleep(0.005)
        workers = children(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(workers) >= 2
        deadline = time.monotonic() + 30
        while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not [pid for pid in workers if alive(pid)], "a worker outlived its parent"
    finally:
        process.kill()
        process.stderr.close()
        for pid in workers:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
    killed = Zoo(profile)
    pending = {view.name: killed.pending(view) for view in views(profile)}
    assert 0 < sum(map(len, pending.values())) < 35
    finished = {k: v for k, v in times(killed.path).items() if "/done/" in k}
    resumed = build(profile, workers=1, progress=False)
    assert resumed.names == NAMES
    assert finished.items() <= times(resumed.path).items()
    monkeypatch.setenv("UNE_CACHE", str(tmp_path / "again"))
    assert bits(build(profile, workers=1, progress=False).path) == bits(resumed.path)


def test_other_settings_are_refused_before_anything_is_computed(tiny_profile, tmp_path, monkeypatch):
    zoo = build(tiny_profile, workers=1, progress=False)
    before = bits(zoo.path)
    monkeypatch.setattr(building, "compute", lambda *_: pytest.fail("computed"))
    for key, value, message in [("zoo.steps", 5, "'steps': 4"), ("zoo.untrained_steps", 4, "'steps': 3"), ("images.count", 21, "count: on disk 22")]:
        with pytest.raises(ZooError, match=message):
            build(load_profile(str(tmp_path / "tiny.yaml"), {key: value}), workers=1, progress=False)
    assert bits(zoo.path) == before


def test_other_weights_are_refused(tiny_profile, tiny_models, tmp_path):
    folder = tiny_models.write_generator(tmp_path / "ldm")
    profile = load_profile(str(tmp_path / "tiny.yaml"), {"generators": [{"name": "tiny-ldm", "path": str(folder)}]})
    zoo = build(profile, workers=1, progress=False)
    old = zoo.latents("tiny-ldm")
    building.compute(profile, views(profile)[0], building.Pictures(np.zeros((2, 32, 32, 3), np.uint8), 2))  # the old network is in memory again
    tiny_models.write_generator(folder, seed=1)
    with pytest.raises(ZooError, match=r"tiny-ldm was made from something else[\s\S]*weights: on disk"):
        build(profile, workers=1, progress=False)
    shutil.rmtree(zoo.path)
    new = build(profile, workers=1, progress=False).latents("tiny-ldm")  # with the new weights, not those in memory
    expected = Generator.load(folder)
    x0 = expected.encode(torch.from_numpy(to_model_range(open_images(profile).load(np.arange(22)))))
    np.testing.assert_allclose(new, invert(expected, x0, expected.schedule(4)).latents.flatten(1).numpy(), rtol=1e-2, atol=2e-2)
    assert np.abs(new - old).mean() > 0.05


def test_another_cache_in_the_same_process(tiny_profile, whole, monkeypatch, tmp_path):
    monkeypatch.setenv("UNE_CACHE", str(tmp_path / "elsewhere"))
    zoo = build(tiny_profile, workers=1, progress=False)
    assert zoo.path.is_relative_to(tmp_path / "elsewhere") and zoo.names == NAMES


def test_a_network_that_diverges(tiny_profile, monkeypatch):
    """NaN in the second shard of the first view: refused by name, and the rest of the zoo is as before."""
    compute, calls = building.compute, []

    def diverging(profile, view, images):
        calls.append(view.name)
        latents = compute(profile, view, images)
        if len(calls) == 2:
            latents[3, 7] = np.nan
        return latents

    monkeypatch.setattr(building, "compute", diverging)
    ids = open_images(tiny_profile).ids
    with pytest.raises(ZooError, match=f"view 'tiny-ldm': 1 latents hold NaN.*first image {ids[9]}"):
        build(tiny_profile, workers=1, progress=False)
    zoo = Zoo(tiny_profile)
    assert zoo.pending(views(tiny_profile)[0]) == [1, 2, 3]
    files = [p.name for p in (zoo.path / "tiny-ldm" / "latents.zarr" / "c").iterdir()]
    assert files == ["0"]


@pytest.mark.parametrize("rows, sizes", [(6, [4, 2]), (4, [4]), (1, [1]), (9, [4, 4, 1])])
def test_batches_have_the_profiles_size(tiny_profile, monkeypatch, rows, sizes):
    images = np.zeros((rows, 8, 8, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(rows)
    pictures = building.Pictures(images, tiny_profile.zoo.batch)
    assert [len(x) for x in pictures] == sizes
    monkeypatch.setattr(building, "_runner", lambda *_: lambda batches: (x[:, 0, 0, :1] for x in batches))
    found = building.compute(tiny_profile, views(tiny_profile)[4], pictures)
    np.testing.assert_allclose(found[:, 0], np.arange(rows) / 127.5 - 1, atol=1e-6)


def test_command(tiny_profile, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["build", "--profile", str(tmp_path / "tiny.yaml"), "--workers", "1"])
    assert building.main() == 0
    assert "22 images, views " + ", ".join(NAMES) in capsys.readouterr().out
    text = (tmp_path / "tiny.yaml").read_text().replace("steps: 4", "steps: 5")
    (tmp_path / "tiny.yaml").write_text(text)
    assert building.main() == 1
    assert "error: " in (error := capsys.readouterr().err) and "Traceback" not in error
    monkeypatch.setattr(sys, "argv", ["build", "--profile", "nothing"])
    assert building.main() == 1
    assert "unknown profile 'nothing'" in capsys.readouterr().err
