import json
import math

import pytest

from une_utils import settings
from une_utils.report import claims
from une_utils.report.claims import Bounds, ClaimsError, ledger, load_claims, outdated_claims, record, rounded, table_markdown, verdicts


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(94, 96, "holds"), (93, 97, "holds"), (92, 95, "unclear"), (96, 98, "unclear"), (90, 99, "unclear"),
     (80, 90, "does not hold"), (98, 99, "does not hold")],
)  # fmt: skip
def test_verdict_looks_at_the_whole_interval(low, high, verdict):
    assert Bounds(min=93, max=97).verdict(low, high) == verdict


def test_one_sided_bounds():
    assert Bounds(min=1).verdict(2, 9) == "holds" and Bounds(max=1).verdict(2, 9) == "does not hold"


@pytest.mark.parametrize(
    ("number", "digits", "text"),
    [(0.98312, 3, "0.983"), (95.96, 3, "96.0"), (95.96, 2, "96"), (16384, 3, "16384"), (0, 3, "0.00"), (-1.2e-9, 2, "0.000"),
     (-3.2, 2, "-3.2"), (0.0412, 2, "0.041")],
)  # fmt: skip
def test_rounded(number, digits, text):
    assert rounded(number, digits) == text


@pytest.mark.parametrize(("number", "text"), [(0.0412, "0.04"), (0.98312, "0.98"), (-0.004, "0.00"), (33.25, "33"), (7.251, "7.3")])
def test_decimals_are_limited_where_outputs_are_compared(number, text):
    assert rounded(number, 2, 2) == text


def test_record_and_ledger(mini):
    before = ledger(mini, "02")
    assert before.loc["une.table1.noise_ad", ["here", "verdict"]].tolist() == ["", "not run"]
    record(mini, "une.table1.noise_ad", 95.81234, 95.1, 96.4, n=5000)
    frame = ledger(mini, "02")
    assert frame.columns.tolist() == ["claim", "source", "paper", "here", "n", "verdict"]
    assert frame.iloc[0].tolist() == ["Noise passes", "UNE, Table 1", "95.6 %", "95.8 [95.1, 96.4] %", "5000", "holds"]
    assert verdicts(mini, "02").splitlines()[0] == "une.table1.noise_ad: 96 %, holds"


def test_the_last_digit_may_move_and_nothing_else():
    committed = "une.a: 94 %, holds\nune.b: 0.98, holds\nune.c: -0.30 sd, does not hold\nune.d: no value, not testable: x\n20 images\n"
    moved = "une.a: 95 %, holds\nune.b: 0.96, holds\nune.c: -0.32 sd, does not hold\nune.d: no value, not testable: x\n20 images\n"
    assert claims.as_committed(moved, committed) == committed
    for old, new in (("94 %", "97 %"), ("0.98,", "0.95,"), ("94 %, holds", "94 %, unclear"), ("94 %", "94 sd"), ("20 images", "21 images"), ("une.b", "une.e")):
        assert claims.as_committed(committed.replace(old, new), committed) == committed.replace(old, new)


def test_verdicts_are_lines_that_are_compared(mini, monkeypatch):
    record(mini, "une.table1.noise_ad", 95.81234, 95.1, 96.4, n=5000)
    line = verdicts(mini, "02")
    assert line == "une.table1.noise_ad: 96 %, holds" and claims.as_committed(line.replace("96", "95"), line + "\n") == line


def test_claims_json_is_sorted_and_replaces(mini, project):
    (project / "notebooks/03_probes.ipynb").write_text('{"cells": []}')
    record(mini, "une.table1.noise_ad", 90)
    record(mini, "une.fig3.mean_auc", 0.98)
    record(mini, "une.table1.noise_ad", 95)
    rows = json.loads((mini.figures_path / "claims.json").read_text())
    assert list(rows) == ["une.fig3.mean_auc", "une.table1.noise_ad"] and rows["une.table1.noise_ad"]["value"] == 95


def test_bounds_of_a_profile_and_not_testable(mini, project):
    lfw = settings.load_profile("lfw")
    (project / "notebooks/03_probes.ipynb").write_text('{"cells": []}')
    record(lfw, "une.table1.noise_ad", 91)
    record(lfw, "une.fig3.mean_auc", math.nan)
    assert ledger(lfw, "02").verdict.item() == "holds"
    assert ledger(lfw, "03")[["here", "verdict"]].iloc[0].tolist() == ["", "not testable: a reason"]
    skipping = mini.model_copy(update={"skip": {"02": "nothing to test"}})
    assert ledger(skipping, "02").verdict.item() == "not testable: nothing to test"


def test_a_profile_of_ones_own_may_have_nothing_to_measure(mini):
    """One that ships gives the reason in claims.yaml; for others a notebook must not end there."""
    own = mini.model_copy(update={"name": "mine"})
    record(own, "une.table1.noise_ad", math.nan, n=3)
    assert ledger(own, "02")[["here", "verdict"]].iloc[0].tolist() == ["", "not testable: nothing could be measured in this profile"]
    with pytest.raises(ValueError, match="high is nan"):  # half a number is an error everywhere
        record(own, "une.table1.noise_ad", 95, 94, math.nan)


def test_unknown_id_lists_near_matches(mini):
    with pytest.raises(KeyError, match="une.table1.noise_ad"):
        record(mini, "une.table1.noise", 95)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [((math.nan,), "value is nan"), ((95, 94, math.inf), "high is inf"), ((95, 94), "or neither"),
     ((95, 96, 94), "is above high")],
)  # fmt: skip
def test_refuses_values_that_cannot_be_judged(mini, numbers, message):
    with pytest.raises(ValueError, match=message):
        record(mini, "une.table1.noise_ad", *numbers)
    assert not (mini.figures_path / "claims.json").exists()


def test_ledger_of_a_notebook_without_claims(mini):
    with pytest.raises(ValueError, match="no claim for notebook '44'"):
        ledger(mini, "44")


def test_outdated_when_the_notebook_changes(mini, project):
    record(mini, "une.table1.noise_ad", 95)
    assert outdated_claims("mini") == []
    notebook = project / "notebooks/02_gauss.ipynb"
    notebook.write_text(notebook.read_text().replace("1 + 1", "3"))
    assert outdated_claims("mini") == [("une.table1.noise_ad", "made from other notebook; run notebook 02 again")]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [("min: 93", "mim: 93", "une.table1.noise_ad.holds_if.mim: Extra inputs"),
     ("une.fig3.mean_auc", "une.table1.noise_ad", "found twice"),
     ("{min: 93, max: 97}", "{}", "give min, max or both"), ("lfw: a", "nowhere: a", "unknown profiles: nowhere"),
     ("work: UNE, source: T", "work: Unknown, source: T", "work"), ("claims:", "claims: [", "not valid YAML")],
)  # fmt: skip
def test_claims_yaml_is_validated(project, old, new, message):
    path = project / "claims.yaml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ClaimsError, match=message):
        load_claims()


def test_tables_are_written_and_checked(mini, project, capsys):
    record(mini, "une.table1.noise_ad", 95, 94, 96)
    assert claims.main(["--check"]) == 1 and "README.md and CLAIMS.md out of date" in capsys.readouterr().out
    assert claims.main(["--write-readme"]) == 0 and claims.main(["--check"]) == 0
    text = (project / "CLAIMS.md").read_text()
    assert text.startswith("above\n") and text.endswith("\nbelow\n") and "\nold\n" not in text
    row = "| Noise passes (UNE, Table 1) | 95.6 % | 95.0 [94.0, 96.0] %: **holds** | not run | not run | [02](notebooks/02_gauss.ipynb) |"
    assert row in text and "Noise \\| probes" in table_markdown(["mini", "lfw"])
    assert row not in (project / "README.md").read_text()  # not a headline yet
    written = (project / "claims.yaml").read_text()
    (project / "claims.yaml").write_text(written.replace("id: une.table1.noise_ad,", "id: une.table1.noise_ad, headline: true,", 1))
    assert claims.main(["--check"]) == 1 and capsys.readouterr().out.startswith("README.md out of date")
    assert claims.main(["--write-readme"]) == 0
    headline = row.replace("not run | not run", "not run")  # the README has no column for cifar10
    assert headline in (project / "README.md").read_text() and "Noise \\| probes" not in (project / "README.md").read_text()


def test_readme_without_markers(project, capsys):
    (project / "README.md").write_text("nothing")
    assert claims.main(["--write-readme"]) == 1 and claims.START in capsys.readouterr().out


def test_own_claims_are_valid():
    assert len(load_claims()) >= 16
