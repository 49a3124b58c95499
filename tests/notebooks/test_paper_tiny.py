"""The runner takes the notebooks from end to end on the profile ``paper-tiny``: every class of model of the papers, on a clean cache."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from une_utils import settings
from une_utils.report import claims
from une_utils.report.figures import read_manifest, stale_figures
from une_utils.report.runner import number

PROFILE = settings.load_profile("paper-tiny")
NUMBERS = [n for n in map(number, sorted(settings.NOTEBOOKS.glob("[0-9]*.ipynb"))) if n not in PROFILE.left_out]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("paper-tiny")


@pytest.fixture(scope="module")
def ran(folder) -> subprocess.CompletedProcess:
    places = {"UNE_CACHE": str(folder / "cache"), "UNE_FIGURES": str(folder / "figures")}
    command = [sys.executable, "-m", "une_utils.report.runner", "--profile", "paper-tiny"]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | places, timeout=1800, check=False)


def test_every_notebook_runs_on_models_that_the_runner_writes(ran, folder):
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count(" ran ") == len(NUMBERS)
    written = {p.relative_to(folder / "cache/models").as_posix() for p in (folder / "cache/models/tiny").iterdir()}
    assert written == {m.path for m in PROFILE.models}


def test_every_notebook_leaves_figures_and_claims(ran, folder, monkeypatch):
    monkeypatch.setenv("UNE_FIGURES", str(folder / "figures"))
    monkeypatch.setenv("UNE_CACHE", str(folder / "cache"))
    assert {row["notebook"] for row in read_manifest(PROFILE).values()} == set(NUMBERS)
    assert stale_figures("paper-tiny") == []
    missing = [c.id for n in NUMBERS for c in claims.notebook_claims(n) if c.id not in claims.recorded_claims(PROFILE, n)]
    assert missing == []
