"""The notebooks, figures and table of claims as they are committed. Nothing runs here: files are read and compared."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import papermill
import pytest

from une_utils import settings
from une_utils.report import claims
from une_utils.report.figures import read_manifest, stale_figures
from une_utils.report.runner import number

NOTEBOOKS = sorted(settings.NOTEBOOKS.glob("*.ipynb"))
WITH_CLAIMS = [p for p in NOTEBOOKS if not p.name.startswith("9")]  # 90 and above explore, they test no claim
PROFILES = sorted({"mini"} | {p.parent.name for p in settings.ROOT.glob("figures/*/*.json")})
MAX_BYTES = 1_000_000
MAX_LINES = 25

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


@pytest.fixture(autouse=True)
def _committed_figures(monkeypatch):
    """Look at the figures of the repository, wherever the caller sends new ones."""
    monkeypatch.delenv("UNE_FIGURES", raising=False)


def cells(path: Path, kind: str | None = None) -> list[dict[str, Any]]:
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [c for c in found if kind in (None, c["cell_type"])]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def test_there_are_notebooks():
    assert NOTEBOOKS, f"no notebooks in {settings.NOTEBOOKS}"


@every_notebook
def test_name_and_title_carry_the_number(path):
    assert re.fullmatch(r"\d\d[a-z]?_[a-z0-9_]+", path.stem)
    assert re.match(rf"# {number(path)}\b", source(cells(path)[0]))


@every_notebook
def test_executed_from_top_to_bottom_without_error(path):
    code = [c for c in cells(path, "code") if source(c).strip()]
    assert [c["execution_count"] for c in code] == list(range(1, len(code) + 1))
    errors = [o["evalue"] for c in code for o in c["outputs"] if o["output_type"] == "error"]
    assert not errors


@every_notebook
def test_small_and_without_pasted_pictures(path):
    assert path.stat().st_size < MAX_BYTES
    prose = cells(path, "markdown")
    assert not any(c.get("attachments") for c in prose)
    assert not any(re.search(r"data:image|base64", source(c)) for c in prose)


@every_notebook
def test_outputs_name_no_path_of_this_machine(path):
    outputs = json.dumps([c["outputs"] for c in cells(path, "code")])
    assert not [p for p in (settings.ROOT, Path.home(), Path(sys.prefix)) if f"{p}/" in outputs]


@every_notebook
def test_metadata_is_clean(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert "papermill" not in notebook["metadata"] and not any("papermill" in c["metadata"] for c in notebook["cells"])
    ids = [c.get("id") for c in notebook["cells"]]
    assert all(ids) and len(set(ids)) == len(ids)


@every_notebook
def test_parameters_cell_names_the_profile(path):
    declared = papermill.inspect_notebook(path)
    assert declared.get("profile_name", {}).get("default", "").strip("'\"") == "mini"


@every_notebook
def test_code_cells_are_short(path):
    long = {c["id"]: n for c in cells(path, "code") if (n := len(source(c).strip().splitlines())) > MAX_LINES}
    assert not long


@pytest.mark.parametrize("path", WITH_CLAIMS, ids=lambda p: p.stem)
def test_last_code_cell_shows_the_ledger(path):
    last = [c for c in cells(path, "code") if source(c).strip()][-1]
    shown = json.dumps([o.get("data", {}) for o in last["outputs"]])
    assert "ledger(" in source(last) and "verdict" in shown
    ids = [c.id for c in claims.notebook_claims(number(path))]
    assert [i for i in ids if i not in shown] == []


def test_mini_has_figures():
    assert read_manifest(settings.load_profile("mini"))


@pytest.mark.parametrize("profile_name", PROFILES)
def test_figures_exist_and_are_not_stale(profile_name):
    assert stale_figures(profile_name) == []


@pytest.mark.parametrize("profile_name", PROFILES)
def test_claims_are_not_stale(profile_name):
    assert claims.outdated_claims(profile_name) == []


def test_every_claim_of_a_notebook_is_recorded_in_mini():
    mini = settings.load_profile("mini")
    numbers = [number(p) for p in NOTEBOOKS]
    expected = {c.id for n in numbers for c in claims.notebook_claims(n) if "mini" not in c.not_testable}
    assert expected == {name for n in numbers for name in claims.recorded_claims(mini, n)} & expected


def test_readme_table_is_up_to_date(capsys):
    assert claims.main(["--check"]) == 0, capsys.readouterr().out
