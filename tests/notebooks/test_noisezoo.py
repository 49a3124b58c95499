"""The runner takes the profile ``noisezoo`` through its notebooks on a small set of released latents, the noise read from disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import yaml

from une_utils import settings
from une_utils.images import CELEBA_ATTRIBUTES
from une_utils.report import claims
from une_utils.report.figures import read_manifest
from une_utils.report.runner import number

N, LATENT, NOISE, ENCODER = 500, 24, 160, 40
PROFILE = settings.load_profile("noisezoo")
NUMBERS = ["02", "03", "04", "06", "07"]
STORED_GIB = 4 * N * 100 / 2**30  # between an encoder's size and a generator's


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Released files that are noisy linear views of one Gaussian latent, and CelebA's lists: its attributes are signs of that latent."""
    folder, rng = tmp_path_factory.mktemp("noisezoo"), np.random.default_rng(0)
    (folder / "data").mkdir()
    z = rng.standard_normal((N, LATENT))
    for model in (*PROFILE.generators, *PROFILE.encoders):
        d = NOISE if model in PROFILE.generators else ENCODER
        latents = z @ rng.standard_normal((LATENT, d)) / np.sqrt(LATENT) + rng.standard_normal((N, d))
        np.save(folder / "data" / f"noises_{model.name}.npy", latents.astype(np.float16))
    table = np.where(z @ rng.standard_normal((LATENT, 40)) + rng.uniform(-2, 2, 40) > 0, 1, -1)
    names = [f"{i + 1:06d}.jpg" for i in range(N)]
    rows = [f"{name} " + " ".join(map(str, row)) for name, row in zip(names, table, strict=True)]
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(N), " ".join(CELEBA_ATTRIBUTES), *rows]) + "\n")
    (folder / "list_eval_partition.txt").write_text("".join(f"{name} 0\n" for name in names))
    small = {"extends": "noisezoo", "zoo": {"loaded_gib": STORED_GIB}, "analysis": {"projections": 20, "rows": 50, "bootstrap": 20}}
    (folder / "small.yaml").write_text(yaml.safe_dump(small))
    return folder


@pytest.fixture(scope="module")
def places(folder):
    return {"UNE_NOISEZOO": folder, "UNE_CELEBA": folder, "UNE_CACHE": folder / "cache", "UNE_FIGURES": folder / "figures"}


@pytest.fixture(scope="module")
def ran(folder, places) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "une_utils.report.runner", "--profile", str(folder / "small.yaml")]
    environment = os.environ | {name: str(place) for name, place in places.items()}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200, check=False)


@pytest.fixture
def profile(ran, folder, places, monkeypatch):
    for name, place in places.items():
        monkeypatch.setenv(name, str(place))
    return settings.load_profile(folder / "small.yaml")


def test_the_notebooks_of_released_latents_run(ran, profile):
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert [line.split("_")[0] for line in ran.stdout.splitlines() if " ran " in line] == NUMBERS
    everything = [number(p) for p in sorted(settings.NOTEBOOKS.glob("[0-9]*.ipynb"))]
    assert sorted({*everything} - {*profile.left_out}) == NUMBERS


def test_every_notebook_leaves_figures_and_claims(profile):
    assert {row["notebook"] for row in read_manifest(profile).values()} == {*NUMBERS}
    expected = [c.id for n in NUMBERS for c in claims.notebook_claims(n) if "noisezoo" not in c.not_testable]
    assert [c for c in expected if c not in {name for n in NUMBERS for name in claims.recorded_claims(profile, n)}] == []


def test_what_is_known_of_the_latents_is_found(profile):
    """They are Gaussian, hold the attributes, and share their 24 dimensions."""
    found = json.loads((profile.figures_path / "claims.json").read_text())
    assert found["une.table1.noise_ad"]["value"] > 70  # 20 directions
    assert found["une.fig3.mean_auc"]["value"] > 0.8 and found["ours.fig3.beats_majority"]["value"] > 0.5
    assert found["ours.table2.centred_cosine"]["low"] > 0.4
    assert abs(found["ours.fig6.shared_dimensions"]["value"] - LATENT) <= 1
