"""The runner takes every notebook from end to end on the profile ``ci`` and, called again, has nothing left to do."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from une_utils import settings
from une_utils.report import claims
from une_utils.report.figures import read_manifest, stale_figures
from une_utils.report.runner import number

NUMBERS = [number(p) for p in sorted(settings.NOTEBOOKS.glob("[0-9]*.ipynb"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ci")


def run(folder) -> subprocess.CompletedProcess:
    places = {"UNE_CACHE": str(folder / "cache"), "UNE_FIGURES": str(folder / "figures")}
    command = [sys.executable, "-m", "une_utils.report.runner", "--profile", "ci"]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | places, timeout=1800, check=False)


@pytest.fixture(scope="module")
def first(folder):
    return run(folder)


def test_every_notebook_runs(first, folder):
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout.count(" ran ") == len(NUMBERS)
    assert (folder / "cache/zoo/ci/zoo.json").is_file()


def test_every_notebook_leaves_figures_and_claims(first, folder, monkeypatch):
    monkeypatch.setenv("UNE_FIGURES", str(folder / "figures"))
    profile = settings.load_profile("ci")
    assert {row["notebook"] for row in read_manifest(profile).values()} == set(NUMBERS)
    assert stale_figures("ci") == []
    missing = [c.id for n in NUMBERS for c in claims.notebook_claims(n) if c.id not in claims.recorded_claims(profile, n)]
    assert missing == []


def test_a_second_run_skips_everything(first, folder):
    second = run(folder)
    assert second.returncode == 0 and second.stdout.count(": skipped") == len(NUMBERS)
