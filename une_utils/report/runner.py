"""Run the notebooks headless, in the order of their numbers, and make every figure again.

    python -m une_utils.report.runner --profile mini
    python -m une_utils.report.runner --profile lfw --only 01 02 -p some_parameter=3

Executed notebooks go to ``<cache>/runs/<profile>/``. A notebook whose inputs have not changed since its last complete run is
skipped: beside each output lies a stamp with the hashes of everything that went in. So the same command resumes after a
failure or Ctrl-C. Before the first notebook, models and pictures of the hub are downloaded and released latents are checked.
``--in-place`` writes the outputs of the mini profile back into ``notebooks/``, as they are committed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import papermill
import yaml
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

from une_utils import settings
from une_utils.files import digest, read_json, write_atomic, write_json
from une_utils.images import ImageSourceError
from une_utils.models.fetch import fetch
from une_utils.report.claims import ClaimsError, notebook_claims, recorded_claims
from une_utils.report.figures import code_hash, forget_outdated, profile_hash, read_manifest, weights_hash
from une_utils.settings import Profile, ProfileError
from une_utils.zoo import ZooError
from une_utils.zoo.build import build

KERNEL = "python3"
COMMITTED_PROFILE = "mini"  # its outputs are the ones that notebooks/ carries
# The kernels inherit these unless the caller has set them: weights are read from disk, and a forked tokenizer does not warn.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class RunnerError(RuntimeError):
    """The run cannot start; the message says what to change."""


@dataclass
class Result:
    """What became of one notebook: "ran", "skipped", "failed" or "not run"."""

    notebook: Path
    status: str = "not run"
    seconds: float = 0.0
    figures: int = 0


@dataclass(frozen=True)
class Job:
    """Everything that is the same for all notebooks of one call."""

    profile: Profile
    profile_argument: str
    parameters: dict[str, Any] = field(default_factory=dict)
    in_place: bool = False
    force: bool = False
    timeout: int = 7200

    def output(self, notebook: Path) -> Path:
        """Where papermill writes the executed notebook."""
        folder = settings.cache_root() / "runs" / self.profile.name
        return (folder / "in-place" if self.in_place else folder) / notebook.name

    def stamp(self, notebook: Path) -> Path:
        """Beside the output: what the last complete run was made from."""
        return self.output(notebook).with_suffix(".stamp.json")


def number(notebook: Path) -> str:
    """The number in a notebook's file name: "11b" for ``11b_editing.ipynb``."""
    return notebook.stem.split("_")[0]


def find_notebooks(only: Sequence[str] = ()) -> list[Path]:
    """The numbered notebooks in order, or those of the numbers in ``only``; raises RunnerError for a number without notebook."""
    found = sorted(settings.NOTEBOOKS.glob("[0-9]*.ipynb"), key=number)
    if not found:
        raise RunnerError(f"no notebooks in {settings.NOTEBOOKS}")
    unknown = sorted(set(only) - {number(p) for p in found})
    if unknown:
        raise RunnerError(f"no notebook with number {', '.join(unknown)}; there are {', '.join(map(number, found))}")
    return [p for p in found if not only or number(p) in only]


def chosen(notebooks: Sequence[Path], profile: Profile) -> list[Path]:
    """The notebooks that a profile runs; says which ones it skips, and why."""
    for notebook in notebooks:
        if number(notebook) in profile.left_out:
            print(f"{notebook.name}: left out by profile {profile.name}, {profile.left_out[number(notebook)]}")
    return [p for p in notebooks if number(p) not in profile.left_out]


def check_kernel() -> None:
    """Raise RunnerError unless the kernel "python3" starts the interpreter that runs this module."""
    fix = f"{sys.executable} -m ipykernel install --sys-prefix --name {KERNEL}"
    try:
        command = KernelSpecManager().get_kernel_spec(KERNEL).argv[0]
    except NoSuchKernel:
        raise RunnerError(f"no kernel named '{KERNEL}'; `{fix}` registers one") from None
    # jupyter_client replaces a bare "python" by sys.executable; an absolute path is taken as it stands.
    bare = {"python", "python3", f"python{sys.version_info[0]}.{sys.version_info[1]}"}
    if command not in bare and Path(command).parent != Path(sys.executable).parent:
        raise RunnerError(f"kernel '{KERNEL}' starts {command}, not {sys.executable}; `{fix}` registers the right one")


def check_parameters(notebook: Path, names: Sequence[str]) -> None:
    """Raise RunnerError when a notebook does not declare a parameter; papermill would warn and run without it."""
    try:
        declared = papermill.inspect_notebook(notebook)
    except ValueError as error:  # no kernelspec, so papermill does not know the language
        raise RunnerError(f"{notebook.name}: {error} Its metadata should name kernelspec {KERNEL} with language python") from None
    missing = [name for name in names if name not in declared]
    if missing:
        known = ", ".join(declared) or "nothing"
        raise RunnerError(f"{notebook.name} does not declare {', '.join(missing)}; its parameters cell declares {known}")


def run_inputs(notebook: Path, job: Job) -> dict[str, str]:
    """Hashes of everything that a notebook's results come from, by kind."""
    package = {p.relative_to(settings.ROOT).as_posix(): digest(p.read_bytes()) for p in _package_files()}
    requirements = settings.ROOT / "requirements.txt"
    claims = [claim.model_dump() for claim in notebook_claims(number(notebook))]
    return {
        "notebook": code_hash(notebook),
        "claims": digest(json.dumps(claims, sort_keys=True).encode()),
        "profile": profile_hash(job.profile),
        "parameters": digest(json.dumps(job.parameters, sort_keys=True, default=str).encode()),
        "package": digest(json.dumps(package, sort_keys=True).encode()),
        "requirements": digest(requirements.read_bytes() if requirements.is_file() else b""),
        "weights": weights_hash(job.profile),
        "pictures": digest(json.dumps(_picture_files(job.profile) + _released_files(job.profile)).encode()),
    }


def _package_files() -> list[Path]:
    return sorted((settings.ROOT / "une_utils").rglob("*.py"))


def _picture_files(profile: Profile) -> list[tuple[str, int, int]]:
    """Path, size in bytes and modification time in ns of every file that holds pictures or their attributes."""
    if profile.images.source == "rendered" or profile.images.from_hub:  # a hub's commit is part of the profile
        return []
    path = profile.images.resolved_path()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    if profile.images.attributes_csv:
        files.append(path / profile.images.attributes_csv)  # relative to the pictures, as FolderImages reads it
    return _stats(files)


def _released_files(profile: Profile) -> list[tuple[str, int, int]]:
    return _stats(sorted(profile.zoo.released_path().rglob("noises_*.npy"))) if profile.zoo.is_released else []


def _stats(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    return [(str(p), s.st_size, s.st_mtime_ns) for p in files if p.is_file() for s in [p.stat()]]


def why_run(notebook: Path, job: Job, inputs: dict[str, str]) -> str | None:
    """Why a notebook has to run, or None when its last run still stands."""
    if job.force:
        return "--force"
    stamp = read_json(job.stamp(notebook))
    if not stamp or not job.output(notebook).is_file():
        return "no complete run yet"
    changed = [kind for kind, value in inputs.items() if stamp["inputs"].get(kind) != value]
    if changed:
        return f"changed: {', '.join(changed)}"
    if job.in_place and not _has_outputs(notebook):
        return "no outputs in the notebook"
    missing = [name for name in stamp["figures"] if name not in _figures(job.profile, notebook)]
    missing += [name for name in stamp["claims"] if name not in recorded_claims(job.profile, number(notebook))]
    return f"missing: {', '.join(missing)}" if missing else None


def _has_outputs(notebook: Path) -> bool:
    cells = nbformat.read(notebook, as_version=4).cells
    return all(c.execution_count for c in cells if c.cell_type == "code" and c.source.strip())


def _figures(profile: Profile, notebook: Path) -> list[str]:
    """Names of a notebook's figures that the manifest lists and that exist."""
    rows = read_manifest(profile)
    return [n for n, r in rows.items() if r["notebook"] == number(notebook) and (profile.figures_path / f"{n}.png").is_file()]


def run(notebooks: Sequence[Path], job: Job) -> list[Result]:
    """Run notebooks in order and stop at the first failure; one result per notebook. Prints what happens."""
    results = [Result(p) for p in notebooks]
    for result in results:
        _run_one(result, job)
        if result.status == "failed":
            break
    return results


def _run_one(result: Result, job: Job) -> None:
    notebook, started = result.notebook, time.monotonic()
    inputs = run_inputs(notebook, job)
    reason = why_run(notebook, job, inputs)
    if reason is None:
        result.status = "skipped"
        print(f"{notebook.name}: skipped, nothing it depends on has changed since {job.output(notebook)}", flush=True)
    else:
        print(f"{notebook.name}: running ({reason})", flush=True)
        error = _execute(notebook, job, inputs)
        result.status = "failed" if error else "ran"
        result.seconds = time.monotonic() - started
        if error:
            print(f"{notebook.name}: FAILED, {error}\nits notebook up to that cell: {job.output(notebook)}", flush=True)
    result.figures = len(_figures(job.profile, notebook))


def _execute(notebook: Path, job: Job, inputs: dict[str, str]) -> str | None:
    """Run one notebook and write its stamp; returns a one-line error, or None when all went well."""
    output = job.output(notebook)
    output.parent.mkdir(parents=True, exist_ok=True)
    job.stamp(notebook).unlink(missing_ok=True)
    try:
        papermill.execute_notebook(
            notebook,
            output,
            parameters=None if job.in_place else {"profile_name": job.profile_argument, **job.parameters},
            kernel_name=KERNEL,
            execution_timeout=job.timeout,
            cwd=settings.NOTEBOOKS,
        )
        if code_hash(notebook) != inputs["notebook"]:
            raise RunnerError("the notebook was edited while it ran; run it again")
        if job.in_place:
            write_back(output, notebook)
    except Exception as error:  # a notebook may fail in any way; the run ends here and says how
        return f"{type(error).__name__}: {_last_line(error)}"
    if not job.parameters:  # with overrides the manifest's other rows cannot be told from outdated ones
        for name in forget_outdated(job.profile, number(notebook)):
            print(f"{notebook.name}: removed figure {name}, which it no longer draws")
    made = {"figures": _figures(job.profile, notebook), "claims": recorded_claims(job.profile, number(notebook))}
    write_json(job.stamp(notebook), {"inputs": inputs, **made})
    return None


def _last_line(error: Exception) -> str:
    """The line of a notebook's traceback that names the error, without colour codes."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    return lines[-1] if lines else ""


def write_back(executed: Path, notebook: Path) -> None:
    """Write an executed notebook into ``notebooks/`` in the form that is committed.

    Without papermill's and the widgets' metadata, progress bars and stderr (the executed notebook in the cache keeps all of
    it); execution counts 1..n, kernelspec python3, the cell ids of the notebook that ran.
    """
    node = nbformat.read(executed, as_version=4)
    ids = [c.get("id") for c in json.loads(notebook.read_text(encoding="utf-8"))["cells"]]
    counts = iter(range(1, len(node.cells) + 1))
    for position, (cell, old_id) in enumerate(zip(node.cells, ids, strict=True)):
        cell["id"] = old_id or f"cell-{position:02d}"
        cell["metadata"] = _clean_metadata(cell["metadata"])
        if cell["cell_type"] == "code":
            _clean_code_cell(cell, counts)
    node["metadata"] = {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": KERNEL},
        "language_info": {"name": "python"},
    }
    node["nbformat"], node["nbformat_minor"] = 4, 5
    nbformat.validate(node)
    write_atomic(notebook, (nbformat.writes(node).rstrip("\n") + "\n").encode())


def _clean_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """Cell metadata without what papermill, the front end and the clock add."""
    kept = {k: v for k, v in metadata.items() if k not in ("papermill", "execution", "tags")}
    return kept | ({"tags": metadata["tags"]} if metadata.get("tags") else {})


def _clean_code_cell(cell: Any, counts: Iterator[int]) -> None:
    cell["execution_count"] = next(counts) if cell["source"].strip() else None
    cell["outputs"] = [output for output in cell["outputs"] if _is_kept(output)]
    for output in cell["outputs"]:
        if output["output_type"] == "execute_result":
            output["execution_count"] = cell["execution_count"]


def _is_kept(output: Any) -> bool:
    """Whether an output is committed: all but progress bars and the rest of stderr, which names paths of one machine."""
    is_widget = "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    return not is_widget and not (output["output_type"] == "stream" and output["name"] == "stderr")


def summary(results: Sequence[Result]) -> str:
    """The table at the end: notebook, status, seconds, figures."""
    width = max(len(r.notebook.name) for r in results)
    lines = [f"{'notebook':<{width}}  {'status':<8}  {'seconds':>7}  {'figures':>7}"]
    lines += [f"{r.notebook.name:<{width}}  {r.status:<8}  {r.seconds:>7.0f}  {r.figures:>7}" for r in results]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m une_utils.report.runner", description="Run the notebooks headless.")
    parser.add_argument("--profile", default=COMMITTED_PROFILE, help="name in profiles/, or path of a .yaml (default: mini)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NN", help="numbers of the notebooks to run")
    parser.add_argument("--force", action="store_true", help="run also what has not changed")
    parser.add_argument("--in-place", action="store_true", help="write the outputs into notebooks/ (profile mini only)")
    parser.add_argument("-p", dest="parameters", action="append", default=[], metavar="KEY=VALUE", help="override a parameter")
    parser.add_argument("--timeout", type=int, default=7200, metavar="SECONDS", help="limit of one cell (default: 7200)")
    parser.add_argument("--list", action="store_true", help="show the notebooks, and whether they would run, and stop")
    return parser


def _parse_parameters(pairs: Sequence[str]) -> dict[str, Any]:
    """``["steps=5", "name=a"]`` -> ``{"steps": 5, "name": "a"}``; values are read as YAML."""
    parameters = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise RunnerError(f"-p {pair}: expected key=value")
        if key == "profile_name":
            raise RunnerError("-p profile_name=...: use --profile")
        parameters[key] = yaml.safe_load(value)
    return parameters


def _job(arguments: argparse.Namespace) -> Job:
    profile = settings.load_profile(arguments.profile)
    parameters = _parse_parameters(arguments.parameters)
    if arguments.in_place and (profile.name != COMMITTED_PROFILE or parameters):
        raise RunnerError(f"--in-place works with --profile {COMMITTED_PROFILE} and without -p: those outputs are committed")
    # Kernels run in notebooks/, so a path has to be absolute.
    argument = str(Path(arguments.profile).resolve()) if arguments.profile.endswith(".yaml") else arguments.profile
    return Job(profile, argument, parameters, arguments.in_place, arguments.force, arguments.timeout)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 0, 1 when a notebook failed, 2 when nothing could start, 130 after Ctrl-C."""
    arguments = _parser().parse_args(argv)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        job, notebooks = _job(arguments), find_notebooks(arguments.only)
        check_kernel()
        notebooks = notebooks if arguments.only else chosen(notebooks, job.profile)
        for notebook in notebooks:
            check_parameters(notebook, ["profile_name", *job.parameters])
        if arguments.list:
            for notebook in notebooks:
                print(f"{notebook.name}: {why_run(notebook, job, run_inputs(notebook, job)) or 'up to date'}")
            return 0
        fetch(job.profile)  # here and not in a kernel, which does not reach the hub
        if job.profile.zoo.is_released:  # seconds: the latents stay where they are, and notebook 01, which makes other zoos, is left out
            build(job.profile)
        results = run(notebooks, job)
    except (RunnerError, ProfileError, ClaimsError, ImageSourceError, ZooError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes with the notebook that was running", file=sys.stderr)
        return 130
    print(summary(results))
    return 1 if any(r.status == "failed" for r in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
