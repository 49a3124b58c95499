"""The ledger: every claim of the papers, what was printed there, what comes out here, and whether it holds.

``claims.yaml`` fixes the claims and the bounds that decide them, before anything is measured. Notebooks :func:`record` their
values in ``figures/<profile>/claims.json``; verdicts are never stored, they follow from value and bounds.

    python -m une_utils.report.claims --write-readme   # replace the tables in README.md (headlines) and CLAIMS.md (all)
    python -m une_utils.report.claims --check          # exit 1 when one of them is out of date
"""

from __future__ import annotations

import argparse
import difflib
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from une_utils import settings
from une_utils.files import read_json, write_atomic, write_json
from une_utils.report.figures import made_from, why_outdated
from une_utils.settings import Profile

PAGES = {"README.md": ("mini", "lfw"), "CLAIMS.md": ("mini", "lfw", "cifar10")}  # page -> profiles, one column each
HEADLINES = ("README.md",)  # pages that leave the other claims out
START, END = "<!-- claims:start -->", "<!-- claims:end -->"
STABLE_DIGITS = 2  # significant digits, and decimals: the third moves between kinds of processor
_VERDICT = re.compile(r"(?P<id>[a-z0-9_]+(\.[a-z0-9_]+)+): (?P<value>-?[0-9.]+)(?P<rest> ?.*, .+)")  # a line of `verdicts`
COLUMNS = ["claim", "source", "paper", "here", "n", "verdict"]


class ClaimsError(ValueError):
    """claims.yaml is missing or invalid; the message names the claim, the key and what was expected."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Bounds(_Strict):
    """The range in which a claim holds; at least one end is given."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _some_end(self) -> Bounds:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self

    def verdict(self, low: float, high: float) -> str:
        """"holds" when the whole interval is inside, "does not hold" when all of it is outside, else "unclear"."""
        smallest = -math.inf if self.min is None else self.min
        largest = math.inf if self.max is None else self.max
        if smallest <= low and high <= largest:
            return "holds"
        return "does not hold" if high < smallest or low > largest else "unclear"


class Claim(_Strict):
    """One claim; ``paper`` is the value as printed there, or "not given"."""

    id: str = Field(pattern=r"^[a-z0-9_]+(\.[a-z0-9_]+)+$")
    work: Literal["UNE", "Hidden relations", "Asyrp", "ours"]
    source: str = Field(min_length=1, description="table, figure or section")
    notebook: str = Field(pattern=r"^\d\d[a-z]?$")
    statement: str = Field(min_length=1)
    paper: str = Field(min_length=1)
    unit: str = ""
    digits: Literal[2, 3] = Field(3, description="significant digits shown; 2 where the third moves between machines")
    headline: bool = Field(False, description="shown in the README; all claims are in CLAIMS.md")
    holds_if: Bounds
    profiles: dict[str, Bounds] = Field({}, description="bounds that replace holds_if in one profile")
    not_testable: dict[str, str] = Field({}, description="profile -> reason")

    def bounds(self, profile_name: str) -> Bounds:
        """The bounds that count in a profile."""
        return self.profiles.get(profile_name, self.holds_if)


class _File(_Strict):
    claims: list[Claim]

    @model_validator(mode="after")
    def _consistent(self) -> _File:
        double = sorted(name for name, count in Counter(c.id for c in self.claims).items() if count > 1)
        if double:
            raise ValueError(f"ids must be unique, found twice: {', '.join(double)}")
        unknown = {p for c in self.claims for p in (*c.profiles, *c.not_testable)} - set(settings.profile_names())
        if unknown:
            raise ValueError(f"unknown profiles: {', '.join(sorted(unknown))}")
        return self


def load_claims() -> dict[str, Claim]:
    """All claims of claims.yaml in the order of the file: id -> claim. Raises ClaimsError."""
    if not settings.CLAIMS.is_file():
        raise ClaimsError(f"no such file: {settings.CLAIMS}")
    try:
        raw = yaml.safe_load(settings.CLAIMS.read_text(encoding="utf-8"))
        return {c.id: c for c in _File.model_validate(raw).claims}
    except yaml.YAMLError as error:
        raise ClaimsError(f"{settings.CLAIMS} is not valid YAML: {error}") from None
    except ValidationError as error:
        lines = [f"  {_place(e['loc'], raw)}: {e['msg']} (got {e['input']!r:.80})" for e in error.errors()]
        raise ClaimsError(f"{settings.CLAIMS} is not valid:\n" + "\n".join(lines)) from None


def _place(loc: tuple[Any, ...], raw: Any) -> str:
    """Where an error is, with the claim's id instead of its position when it has one."""
    parts = [str(p) for p in loc]
    if len(loc) > 1 and loc[0] == "claims" and isinstance(raw["claims"][loc[1]], dict):
        parts[:2] = [str(raw["claims"][loc[1]].get("id", f"claims.{loc[1]}"))]
    return ".".join(parts) or "(file)"


def notebook_claims(notebook: str) -> list[Claim]:
    """The claims that a notebook ("02") tests, in the order of the file."""
    return [c for c in load_claims().values() if c.notebook == notebook]


def recorded_claims(profile: Profile, notebook: str) -> list[str]:
    """Ids of a notebook's claims that have been recorded in a profile."""
    recorded = read_json(_claims_path(profile))
    return [c.id for c in notebook_claims(notebook) if c.id in recorded]


def _claims_path(profile: Profile) -> Path:
    return profile.figures_path / "claims.json"


def record(
    profile: Profile,
    claim_id: str,
    value: float,
    low: float | None = None,
    high: float | None = None,
    n: int | None = None,
    note: str = "",
) -> None:
    """Write a measured value into ``figures/<profile>/claims.json``.

    Args:
        claim_id: an id of claims.yaml.
        value: in the claim's unit; ignored where the claim is not testable in this profile. In a profile of your own NaN says
            that nothing could be measured (two attributes have no rank correlation); profiles that ship give the reason in claims.yaml.
        low, high: interval of the value, 95 % by convention; both or neither.
        n: sample size behind the value.
        note: one sentence on how it was measured, if that is not plain from the claim.

    Raises:
        KeyError: unknown id; the message lists ids that look alike.
        ValueError: a value that is not finite, half an interval, or an interval upside down.
    """
    claims = load_claims()
    claim = _find(claims, claim_id)
    row: dict[str, Any] = {"made_from": made_from(claim.notebook, profile), "n": None if n is None else int(n), "note": note}
    unmeasured = math.isnan(value) and profile.name not in settings.profile_names()
    if profile.name not in claim.not_testable and not unmeasured:
        row |= _checked(claim_id, value, low, high)
    recorded = {k: v for k, v in read_json(_claims_path(profile)).items() if k in claims}
    write_json(_claims_path(profile), recorded | {claim_id: row})


def _find(claims: dict[str, Claim], claim_id: str) -> Claim:
    if claim_id not in claims:
        near = difflib.get_close_matches(claim_id, claims, n=3, cutoff=0.5)
        raise KeyError(f"no claim '{claim_id}' in {settings.CLAIMS.name}; did you mean: {', '.join(near) or 'nothing like it'}")
    return claims[claim_id]


def _checked(claim_id: str, value: float, low: float | None, high: float | None) -> dict[str, float]:
    """Value and interval, rounded to 6 digits so that claims.json does not change with the last bit of a sum."""
    if (low is None) != (high is None):
        raise ValueError(f"claim '{claim_id}': give low and high, or neither")
    numbers = {"value": value, "low": value if low is None else low, "high": value if high is None else high}
    numbers = {key: float(number) for key, number in numbers.items()}
    bad = [f"{key} is {number}" for key, number in numbers.items() if not math.isfinite(number)]
    if bad:
        raise ValueError(f"claim '{claim_id}': {', '.join(bad)}; only finite numbers can be judged")
    if numbers["low"] > numbers["high"]:
        raise ValueError(f"claim '{claim_id}': low {low} is above high {high}")
    return {key: float(f"{number:.6g}") for key, number in numbers.items()}


def ledger(profile: Profile, notebook: str) -> pd.DataFrame:
    """The claims of a notebook: columns claim, source, paper, here, n, verdict; the index holds the ids. All cells are text.

    ``here`` is rounded to the claim's digits. Raises ValueError when
    claims.yaml has no claim for the notebook.
    """
    claims = notebook_claims(notebook)
    if not claims:
        raise ValueError(f"{settings.CLAIMS.name} has no claim for notebook '{notebook}'")
    recorded = read_json(_claims_path(profile))
    rows = [_ledger_row(c, profile, recorded.get(c.id)) for c in claims]
    return pd.DataFrame(rows, columns=COLUMNS, index=[c.id for c in claims])


def verdicts(profile: Profile, notebook: str) -> str:
    """One line per claim of a notebook: id, value to two digits and two decimals, verdict. nbval compares it, see ``as_committed``."""
    recorded = read_json(_claims_path(profile))
    rows = [(c, recorded.get(c.id)) for c in notebook_claims(notebook)]
    return "\n".join(f"{c.id}: {_value(c, row)} {_verdict(c, profile, row)}" for c, row in rows)


def _value(claim: Claim, row: dict[str, Any] | None) -> str:
    known = row is not None and "value" in row
    return f"{rounded(row['value'], STABLE_DIGITS, STABLE_DIGITS)} {claim.unit}".strip() + "," if known else "no value,"


def as_committed(shown: str, committed: str) -> str:
    """What ``verdicts`` shows, with the committed line in the place of every line that differs by no more than kinds of processor do:
    two units in the last digit of the value, nothing else. bfloat16 and the order of sums move latents a little."""
    known = {found["id"]: found for found in map(_VERDICT.fullmatch, committed.splitlines()) if found}
    lines = ((line, _VERDICT.fullmatch(line)) for line in shown.splitlines(keepends=False))
    text = "\n".join(known[new["id"]][0] if new and new["id"] in known and _close(new, known[new["id"]]) else line for line, new in lines)
    return text + "\n" * shown.endswith("\n")


def _close(new: re.Match, old: re.Match) -> bool:
    decimals = len(old["value"].partition(".")[2])
    unit = 10.0**-decimals
    return new["rest"] == old["rest"] and abs(float(new["value"]) - float(old["value"])) <= 2.001 * unit


def _ledger_row(claim: Claim, profile: Profile, row: dict[str, Any] | None) -> list[str]:
    n = "" if row is None or row["n"] is None else str(row["n"])
    here, verdict = _here(claim, row, claim.digits), _verdict(claim, profile, row)
    return [claim.statement, f"{claim.work}, {claim.source}", claim.paper, here, n, verdict]


def _here(claim: Claim, row: dict[str, Any] | None, digits: int) -> str:
    """Value, interval and unit as text, for example "95.8 [95.1, 96.4] %"."""
    if row is None or "value" not in row:
        return ""
    value, low, high = (rounded(row[key], digits) for key in ("value", "low", "high"))
    interval = "" if row["low"] == row["high"] else f" [{low}, {high}]"
    return f"{value}{interval} {claim.unit}".strip()


def _verdict(claim: Claim, profile: Profile, row: dict[str, Any] | None) -> str:
    reason = claim.not_testable.get(profile.name) or profile.left_out.get(claim.notebook)
    if reason:
        return f"not testable: {reason}"
    if row is None:
        return "not run"
    if "value" not in row:
        return "not testable: nothing could be measured in this profile"
    return claim.bounds(profile.name).verdict(row["low"], row["high"])


def rounded(number: float, digits: int, decimals: int | None = None) -> str:
    """A number to so many significant digits, without exponent: 0.98312 -> "0.983".

    At most ``decimals`` of them, by default ``digits + 1``, come after the point. The limit keeps a difference that is zero but
    for the last bits from showing noise: 1.2e-9 -> "0.0000".
    """
    magnitude = math.floor(math.log10(abs(number))) if number else 0
    shown = min(max(0, digits - 1 - magnitude), digits + 1 if decimals is None else decimals)
    return f"{round(number, shown) + 0.0:.{shown}f}"  # + 0.0: no minus sign before zero


def outdated_claims(profile_name: str | Path) -> list[tuple[str, str]]:
    """Recorded claims that do not come from the working tree's notebooks, profile or weights, with the reason."""
    profile, claims = settings.load_profile(profile_name), load_claims()
    recorded = read_json(_claims_path(profile))
    stale = [(name, "not in claims.yaml") for name in recorded if name not in claims]
    known = {name: row for name, row in recorded.items() if name in claims}
    reasons = {name: why_outdated(claims[name].notebook, profile, row["made_from"]) for name, row in known.items()}
    return stale + [(name, reason) for name, reason in reasons.items() if reason]


def table_markdown(profiles: Sequence[str], headlines: bool = False) -> str:
    """The table of all claims, or of the headlines: claim | paper | here (profile), one column each | notebook."""
    loaded = {name: settings.load_profile(name) for name in profiles}
    recorded = {name: read_json(_claims_path(profile)) for name, profile in loaded.items()}
    header = ["claim", "paper", *(f"here ({name})" for name in profiles), "notebook"]
    lines = [header, ["---"] * len(header)]
    for claim in load_claims().values():
        if headlines and not claim.headline:
            continue
        cells = [_readme_cell(claim, profile, recorded[name].get(claim.id)) for name, profile in loaded.items()]
        lines.append([f"{claim.statement} ({claim.work}, {claim.source})", claim.paper, *cells, _link(claim.notebook)])
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _readme_cell(claim: Claim, profile: Profile, row: dict[str, Any] | None) -> str:
    here, verdict = _here(claim, row, claim.digits), _verdict(claim, profile, row)
    return f"{here}: **{verdict}**" if here else verdict


def _link(notebook: str) -> str:
    found = sorted(settings.NOTEBOOKS.glob(f"{notebook}_*.ipynb"))
    return f"[{notebook}](notebooks/{found[0].name})" if found else notebook


def with_table(text: str, name: str) -> str:
    """A page with the block between its two markers replaced; raises ClaimsError unless each marker is there once, in order."""
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise ClaimsError(f"{name} should hold one line {START} and, below it, one line {END}")
    head, rest = text.split(START)
    return f"{head}{START}\n{table_markdown(PAGES[name], name in HEADLINES)}\n{END}{rest.split(END)[1]}"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m une_utils.report.claims", description="The tables of claims in README.md and CLAIMS.md.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write-readme", action="store_true", help="replace the tables")
    action.add_argument("--check", action="store_true", help="exit 1 when one is out of date")
    arguments = parser.parse_args(argv)
    try:
        old = {name: (settings.ROOT / name).read_text(encoding="utf-8") for name in PAGES}
        new = {name: with_table(old[name], name) for name in PAGES}
    except (ClaimsError, settings.ProfileError, FileNotFoundError) as error:
        print(f"error: {error}")
        return 1
    changed = [name for name in PAGES if old[name] != new[name]]
    if arguments.write_readme:
        for name in changed:
            write_atomic(settings.ROOT / name, new[name].encode())
    elif changed:
        print(f"{' and '.join(changed)} out of date: python -m une_utils.report.claims --write-readme")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
