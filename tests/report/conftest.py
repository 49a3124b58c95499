"""A small project in a temporary folder: paths patched, two notebooks' worth of claims, the real profile mini."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import pytest

from une_utils import settings

matplotlib.use("Agg")

CLAIMS = """
claims:
  - {id: une.table1.noise_ad, work: UNE, source: Table 1, notebook: "02", statement: Noise passes, paper: 95.6 %, unit: "%",
     holds_if: {min: 93, max: 97}, profiles: {lfw: {min: 90}}}
  - {id: une.fig3.mean_auc, work: UNE, source: Fig. 3, notebook: "03", statement: Noise | probes, paper: not given,
     holds_if: {min: 0.97}, not_testable: {lfw: a reason}}
"""


def _write_notebook(path: Path, *code: str, parameters: str = 'profile_name = "mini"') -> Path:
    """Write a notebook: a title, a parameters cell, and one code cell per source."""
    cells = [nbformat.v4.new_markdown_cell(f"# {path.stem[:2]} A test", id="title")]
    cells += [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}, id="parameters")]
    cells += [nbformat.v4.new_code_cell(source, id=f"code-{i}") for i, source in enumerate(code)]
    spec = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=spec), path)
    return path


@pytest.fixture
def write_notebook():
    """The function that writes a notebook; a fixture, because pytest imports no module from tests."""
    return _write_notebook


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Root of the small project; it holds notebooks/02_gauss.ipynb, claims.yaml, README.md, CLAIMS.md and a model's weights."""
    for name in ("notebooks", "data/models/faces-ldm/unet", "une_utils"):
        (tmp_path / name).mkdir(parents=True)
    weights = tmp_path / "data/models/faces-ldm/unet"
    (weights / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    (weights / "config.json").write_text("{}")
    (tmp_path / "claims.yaml").write_text(CLAIMS)
    for page in ("README.md", "CLAIMS.md"):
        (tmp_path / page).write_text("above\n<!-- claims:start -->\nold\n<!-- claims:end -->\nbelow\n")
    for name, path in {"ROOT": "", "NOTEBOOKS": "notebooks", "MODELS": "data/models", "CLAIMS": "claims.yaml"}.items():
        monkeypatch.setattr(settings, name, tmp_path / path)
    monkeypatch.setenv("UNE_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setenv("UNE_CACHE", str(tmp_path / "cache"))
    _write_notebook(tmp_path / "notebooks" / "02_gauss.ipynb", "1 + 1")
    yield tmp_path
    plt.close("all")


@pytest.fixture
def mini(project):
    """The profile mini, with figures in the small project."""
    return settings.load_profile("mini")
