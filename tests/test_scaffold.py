"""The files around the package agree with each other: pins, README, Makefile, profiles, recipes."""

import re
import subprocess
import tomllib

import pytest
import yaml

from une_utils import settings
from une_utils.models import tiny
from une_utils.report.claims import END, START
from une_utils.settings import MODELS, ROOT, load_profile, profile_names

PIN = re.compile(r"([A-Za-z0-9_.-]+)==(\d[\w.]*)")
# Written in two parts, or this file would find itself.
MACHINE_PATHS = tuple(f"/{name}" + "/" for name in ("work", "root"))
MADE = (".venv", "data/cache", ".git", "une_utils.egg-info")


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def requirements():
    """Lines of requirements.txt without comments."""
    lines = [line.split("#")[0].strip() for line in read("requirements.txt").splitlines()]
    return [line for line in lines if line]


def environment_pins():
    parts = yaml.safe_load(read("environment.yml"))["dependencies"]
    return next(p["pip"] for p in parts if isinstance(p, dict))


def repository_files():
    """Files that git tracks or would track; without git (an archive), everything that is not made by a command."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
        files = [ROOT / name for name in listed if name]
    except (OSError, subprocess.CalledProcessError):
        files = [p for p in ROOT.rglob("*") if "__pycache__" not in p.parts and not any(p.is_relative_to(ROOT / m) for m in MADE)]
    return [p for p in files if p.is_file() and not p.is_symlink()]


def text_of(path):
    """Contents of a text file, or an empty text for a binary one."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def makefile_targets():
    return set(re.findall(r"^([a-z]+):", read("Makefile"), flags=re.MULTILINE))


def readme_targets():
    """Targets of every ``make …`` that the README writes as code: in a block, or between backticks."""
    text = read("README.md")
    code = re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL) + re.findall(r"`([^`\n]+)`", text)
    words = [line.split("#")[0].split() for part in code for line in part.splitlines()]
    calls = [w[w.index("make") + 1 :] for w in words if "make" in w]
    return {next((a for a in call if "=" not in a), "help") for call in calls}


# Pins


def test_every_pin_is_exact():
    assert len(requirements()) > 20
    assert not [line for line in requirements() if not PIN.fullmatch(line)]


def test_nothing_is_pinned_twice():
    names = [line.split("==")[0].lower().replace("_", "-") for line in requirements()]
    assert sorted(names) == sorted(set(names))


def test_conda_environment_has_the_same_pins():
    assert environment_pins() == requirements()


def test_every_dependency_of_the_package_is_pinned():
    project = tomllib.loads(read("pyproject.toml"))["project"]
    pinned = {line.split("==")[0] for line in requirements()}
    assert {re.split(r"[<>=~!\[ ]", d)[0] for d in project["dependencies"]} <= pinned


def test_the_extra_dev_repeats_the_pins():
    extra = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]["dev"]
    assert {"pytest", "pytest-xdist", "nbval", "ruff"} == {PIN.fullmatch(line)[1] for line in extra}
    assert {line for line in extra if not line.startswith("ruff")} <= set(requirements())


# Commands


def test_readme_names_targets_that_exist():
    assert {"reproduce", "test", "regression", "train"} <= readme_targets()
    assert readme_targets() <= makefile_targets()


def test_every_target_is_in_the_help():
    shown = subprocess.run(["make", "-s", "-C", str(ROOT), "help"], capture_output=True, text=True, check=True).stdout
    assert makefile_targets() - {"help"} == set(re.findall(r"^make ([a-z]+)", shown, flags=re.MULTILINE))


def dry_run(*arguments):
    """Commands that make would run once the set-up is done."""
    command = ["make", "-n", "--no-print-directory", "-C", str(ROOT), "-o", ".venv/.installed", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def modules(lines):
    """Modules that commands call with ``python -m``, in their order."""
    return [line.split(" -m ")[1].split()[0] for line in lines if " -m " in line]


def test_tests_come_before_nbval_and_notebooks_share_a_zoo_that_is_there():
    lines = dry_run("test")
    commands = [line for line in lines if "-m pytest" in line]
    assert ["--nbval-lax" in line for line in commands] == [False, True]
    assert all("HF_HUB_OFFLINE" in line for line in commands)
    assert all("OMP_NUM_THREADS" in line and "-n 2 --dist loadfile" in line for line in commands)
    assert "UNE_FIGURES" in commands[1]  # a check must not touch the committed figures
    assert modules(lines) == ["pytest", "une_utils.zoo.build", "pytest"]  # two notebooks at a time would build the zoo twice


def test_nbval_checks_the_notebooks_that_are_named():
    assert [word.split("/")[1][:2] for word in " ".join(dry_run("test")).split() if word.endswith(".ipynb")] == ["00", "01", "02", "03"]
    assert dry_run("test", "NOTEBOOKS=08b")[-1].endswith(" notebooks/08b_classes.ipynb")
    assert dry_run("test", "NOTEBOOKS=all")[-1] == dry_run("regression")[-1] and dry_run("regression")[-1].endswith(" notebooks")
    assert modules(dry_run("regression")) == ["une_utils.zoo.build", "pytest"]
    with pytest.raises(subprocess.CalledProcessError) as caught:
        dry_run("test", "NOTEBOOKS=00 77")
    assert "no notebook has the number 77" in caught.value.stderr


def test_ci_runs_the_tests_and_nothing_else():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    lines = [line for line in script.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert lines[0] == "set -euo pipefail" and lines[1].startswith("cd ")
    assert lines[2:] == ["exec make test </dev/null"]


# Profiles, models, README


@pytest.mark.parametrize("name", profile_names())
def test_models_of_every_profile_have_a_recipe(name):
    """Or are the hub's, or tiny random ones that a function writes."""
    profile = load_profile(name)
    trained = () if profile.zoo.is_released else profile.models  # released latents come without weights
    paths = [m.path for m in trained if not m.hub and m.path not in tiny.MODELS]
    assert not [path for path in paths if not (MODELS / path / "recipe.yaml").is_file()]


@pytest.mark.parametrize("name", profile_names())
def test_what_a_profile_skips_is_there(name):
    numbers = {p.name.split("_")[0] for p in (ROOT / "notebooks").glob("*.ipynb")}
    assert set(load_profile(name).skip) <= numbers


@pytest.mark.parametrize("recipe", sorted(MODELS.glob("*/recipe.yaml")), ids=lambda p: p.parent.name)
def test_recipes_are_complete(recipe):
    spec = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    assert {"kind", "seed", "images"} <= set(spec)
    needed = {
        "latent-diffusion": {"unet", "scheduler", "flip"}, "pixel-diffusion": {"unet", "scheduler"}, "consistency": {"unet", "teacher", "flip"},
        "dino": {"vit", "flip"}, "mae": {"vit", "flip"}, "clip": {"vit", "blue"}, "oracle": {"resnet"},
        "hspace": {"generator", "clip", "oracle", "attribute", "source", "target", "shift"},
        "diffusionclip": {"generator", "clip", "oracle", "attribute", "source", "target", "unet"},
        "diffusion-autoencoder": {"generator", "encoder", "scheduler", "unet", "path", "flip"},
        "noisy-classifier": {"generator", "classifier"},
    }  # fmt: skip
    assert needed[spec["kind"]] <= set(spec)
    assert spec["kind"] != "latent-diffusion" or ("vae" in spec) != ("vae_of" in spec)
    assert all((MODELS / spec[key] / "recipe.yaml").is_file() for key in ("vae_of", "teacher", "fine_tune", "generator") if key in spec)
    profile = spec["images"].get("train_split_of") or spec["images"].get("left_out_of")
    assert profile in profile_names() or spec["images"].get("rendered", 0) > 0


def test_models_see_no_picture_of_a_profile():
    """Rendered training pictures have a seed that no profile of rendered faces uses."""
    recipes = [yaml.safe_load(p.read_text(encoding="utf-8"))["images"] for p in MODELS.glob("*/recipe.yaml")]
    trained_on = {images["seed"] for images in recipes if "rendered" in images}
    used = {p.seed for p in map(load_profile, profile_names()) if p.images.source == "rendered"}
    assert trained_on and used and not trained_on & used


def test_readme_mentions_every_profile_and_has_the_claims_block():
    text = read("README.md")
    assert not [name for name in profile_names() if f"| `{name}`" not in text]
    assert text.count(START) == text.count(END) == 1 and text.index(START) < text.index(END)


def test_profile_example_of_the_readme_is_valid(tmp_path):
    blocks = re.findall(r"```yaml\n(# profiles/mine\.yaml\n.*?)```", read("README.md"), flags=re.DOTALL)
    assert len(blocks) == 1
    (tmp_path / "mine.yaml").write_text(blocks[0], encoding="utf-8")
    profile = load_profile(tmp_path / "mine.yaml")
    assert (profile.name, profile.images.source) == ("mine", "folder")


@pytest.mark.parametrize("name", ["lfw", "cifar10"])
def test_columns_of_files_to_bring_are_in_the_readme(name):
    images = load_profile(name).images
    columns = [images.image_column, images.group_column, images.class_column, *(images.attributes or ())]
    assert not [c for c in columns if c and f"| `{c}` |" not in read("README.md")]
    assert not [f"{number} {c}" for number, c in enumerate(images.classes or ()) if f"{number} {c}" not in read("README.md")]
    assert images.path_env in read("README.md")


def test_citation_names_the_three_papers():
    citation = yaml.safe_load(read("CITATION.cff"))
    found = {i["value"] for r in citation["references"] for i in r["identifiers"]}
    assert found == {"arXiv:2603.21786", "arXiv:2410.23530", "arXiv:2210.10960"}
    assert all(number.removeprefix("arXiv:") in read("README.md") for number in found)


def test_no_file_mentions_a_path_of_the_machine():
    files = repository_files()
    assert ROOT / "README.md" in files and settings.CLAIMS in files
    guilty = [str(p.relative_to(ROOT)) for p in files if any(path in text_of(p) for path in MACHINE_PATHS)]
    assert not guilty
