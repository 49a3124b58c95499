"""What a run will need, and whether it is there, before anything long starts: ``make plan PROFILE=paper``.

    python -m une_utils.report.plan --profile paper [--calls-per-second 40]

Downloads nothing and writes nothing. Sizes come from the profile, from the models' configs and from the hub. Throughput is
measured, either now, on the networks that are at hand, or on another day and kept in ``benchmarks/throughput.csv``; what nobody
has measured is called so. Exit status 1 when something is missing that the run needs.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import pandas as pd
import torch

from une_utils import settings
from une_utils.hub import HubError, HubUnreachableError, cached, remaining_bytes
from une_utils.images import ImageSourceError, expected_count, open_images
from une_utils.models import tiny
from une_utils.models.generators import Generator, draw_noise
from une_utils.models.memory import default_device
from une_utils.settings import Model, Profile, ProfileError, cache_root, load_profile
from une_utils.zoo import ZooError
from une_utils.zoo.build import default_workers, shape
from une_utils.zoo.released import open_released, released_file
from une_utils.zoo.store import views

ENCODER = 1024  # D of an encoder that is not at hand
BYTES = 2  # of a value: float16
# Part of a repository's name -> what is assumed until it is at hand: its size, as throughput.csv names it, and D of a state.
SIZES = {"stable-diffusion-xl": ("SDXL", 4 * 128 * 128), "": ("SD 1.5", 4 * 64 * 64)}
NEWLINE = "\n"
LONG_ENOUGH = 0.3  # seconds of one call that is timed


@dataclass(frozen=True)
class Check:
    """One thing that a run needs: "ok", "missing" (the run would fail) or "not checked"."""

    what: str
    status: str
    detail: str
    download: int = 0  # bytes


@dataclass(frozen=True)
class Speed:
    """Network calls (pictures times steps) a second, GiB of GPU memory, and where the numbers are from; None: not measured."""

    calls: float | None
    gpu_gib: float | None
    source: str


def check_pictures(profile: Profile) -> Check:
    """Whether the pictures are there. CelebA and AFHQ are opened, which decodes none; others are decoded when the run starts."""
    images, count = profile.images, expected_count(profile.images)
    what = f"{images.source}, {images.size} px, {f'{count:,}' if count else 'an unknown number of'} pictures"
    if images.source == "rendered":
        return Check(what, "ok", "drawn when the run starts")
    if images.from_hub:
        return _on_the_hub(what, images.hub, images.revision, "dataset")
    try:
        place = images.resolved_path()
        if images.source in ("celeba", "afhq"):
            open_images(profile, pictures=not profile.zoo.is_released)
    except (ProfileError, ImageSourceError) as error:
        return Check(what, "missing", str(error))
    return Check(what, "ok", str(place))


def check_model(model: Model, reachable: bool = True) -> Check:
    """Whether the weights of a model are there, or how much the hub will send.

    Args:
        reachable: whether the hub may answer; it is asked for every repository, and a silent one costs half a minute each time.
    """
    if model.hub:
        what = f"{model.title}, {model.hub} at {model.revision:.7}"
        if folder := cached(model.hub, model.revision):
            return Check(what, "ok", f"in the cache, {_gigabytes(_size(folder))}")
        return _on_the_hub(what, model.hub, model.revision, reachable=reachable)
    what = f"{model.title}, {model.path}"
    if model.path in tiny.MODELS:
        return Check(what, "ok", "random weights, written in seconds")
    try:
        folder = model.resolved_path()
    except ProfileError as error:
        return Check(what, "missing", str(error))
    size = _size(folder)
    return Check(what, "ok", _gigabytes(size)) if size else Check(what, "missing", f"no weights in {folder}; `make train` makes them")


def check_released(profile: Profile, model: Model, rows: int | None) -> Check:
    """Whether the released latents of a model are there as a whole; ``rows`` is the number that they should have."""
    what = f"{model.title}, noises_{model.name}.npy"
    try:
        latents = open_released(released_file(profile.zoo.released_path(), model.name), rows)
    except (ProfileError, ZooError) as error:
        return Check(what, "missing", str(error))
    return Check(what, "ok", f"{latents.shape[0]:,} x {latents.shape[1]:,} {latents.dtype}, {_gigabytes(latents.nbytes)}")


def _on_the_hub(what: str, repository: str, revision: str, repo_type: str = "model", reachable: bool = True) -> Check:
    reason = "HF_HUB_OFFLINE is set" if huggingface_hub.constants.HF_HUB_OFFLINE else "the hub does not answer"
    silent = Check(what, "not checked", f"not in the cache, and {reason}")
    if not reachable:
        return silent
    try:
        size = remaining_bytes(repository, revision, repo_type)
    except HubUnreachableError:
        return silent
    except HubError as error:
        return Check(what, "missing", str(error))
    return Check(what, "ok", f"{_gigabytes(size)} to download", size)


def inversions(profile: Profile) -> dict[str, int]:
    """DDIM steps that a picture is inverted in: of every generator, and of the control; a step is one network call."""
    if profile.zoo.is_released:
        return {}
    steps = {m.title: m.steps or profile.zoo.steps for m in profile.generators}
    return steps | {f"{profile.generators[0].title}, untrained": profile.zoo.untrained_steps}


def at_hand(model: Model) -> Path | None:
    """Folder of a model's weights if they are on this machine."""
    if model.hub:
        return cached(model.hub, model.revision)
    try:
        return model.resolved_path()
    except ProfileError:
        return None


def dimensions(profile: Profile) -> tuple[dict[str, int], list[str]]:
    """D of every view of the profile's zoo, and the names of those whose D is assumed, since their model is not at hand."""
    folder = at_hand(profile.generators[0])
    found, assumed = {}, []
    for view in views(profile, has_vae=folder is None or (folder / "vae").is_dir()):
        if view.model is None or at_hand(view.model):
            found[view.name] = math.prod(shape(view, profile.images.size))
        else:
            found[view.name] = ENCODER if view.kind == "encoder" else assumed_size(view.model)[1]
            assumed.append(view.name)
    return found, assumed


def assumed_size(model: Model) -> tuple[str, int]:
    """Size of a network that is not at hand, and D of its states, by the repository's name."""
    return next(size for part, size in SIZES.items() if part in (model.hub or ""))


def device_name() -> str:
    """The first GPU's name, or "CPU"."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def speed(profile: Profile, model: Model) -> Speed:
    """Throughput of a generator's network: timed now when it is at hand, else that of a network of Stable Diffusion's size, if
    ``benchmarks/throughput.csv`` has one for this device."""
    if folder := at_hand(model):
        return timed(folder, profile.zoo.batch)
    table = pd.read_csv(settings.ROOT / "benchmarks" / "throughput.csv")
    size, _ = assumed_size(model)
    rows = table[(table["device"] == device_name()) & (table["network"] == size)]
    if rows.empty:
        return Speed(None, None, f"a network of {size}'s size is not measured for {device_name()}")
    best = rows.loc[rows["calls_per_second"].idxmax()]
    memory = None if math.isnan(best["gpu_gib"]) else float(best["gpu_gib"])
    return Speed(float(best["calls_per_second"]), memory, f"benchmarks/throughput.csv: {best['device']}, {best['dtype']}, batch {best['batch']}")


def timed(folder: Path, batch: int) -> Speed:
    """Calls a second of a generator's network, one thread on a CPU as in a zoo's workers.

    Args:
        batch: rows of a call; fewer when a call takes long.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        generator, rows, seconds = Generator.load(folder), 1, 0.0
        on_gpu = generator.device.type == "cuda"
        while True:
            x = draw_noise(generator.shape, 0, range(rows)).to(generator.device)
            seconds = min(_seconds(generator, x) for _ in range(2))  # the first call warms up
            if rows == batch or seconds > LONG_ENOUGH:
                break
            rows = min(4 * rows, batch)
        memory = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None
        return Speed(rows / seconds, memory, f"timed now, batch {rows}")
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def _seconds(generator: Generator, x: torch.Tensor) -> float:
    start = time.perf_counter()
    generator(x, 500)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def check_device(profile: Profile) -> Check:
    """A GPU where the profile inverts through models of the hub."""
    if profile.zoo.is_released or not any(m.hub for m in profile.generators):
        return Check("device", "ok", f"CPU, {default_workers(profile)} processes; this profile needs no GPU")
    if default_device().type == "cuda":
        return Check("device", "ok", f"{device_name()}, {torch.cuda.mem_get_info()[0] / 2**30:.0f} GiB free")
    return Check(
        "device", "missing", "PyTorch sees no CUDA device; run on a machine with a GPU and PyTorch's CUDA wheel (see `nvidia-smi`), or take "
        "PROFILE=noisezoo, which reads released latents, or mini, which needs neither GPU nor network",
    )  # fmt: skip


def check_disk(what: str, folder: Path, needed: int) -> Check:
    """Whether the disk of a folder, which may not exist yet, has so many bytes left."""
    place = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(place).free
    detail = f"{_gigabytes(needed)} needed in {_shown(folder)}, {_gigabytes(free)} free"
    return Check(what, "ok", detail) if free > needed else Check(what, "missing", f"{detail}; free some space or set {_mover(what)} to a larger disk")


def _shown(path: Path) -> str:
    """A path as the README writes it: relative to the project's root where it lies below."""
    return str(path.relative_to(settings.ROOT) if path.is_relative_to(settings.ROOT) else path)


def _mover(what: str) -> str:
    return "HF_HOME" if what == "downloads" else "UNE_CACHE"


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*.safetensors"))


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _duration(seconds: float) -> str:
    if seconds < 3600:
        return f"{max(1, round(seconds / 60))} minutes"
    return f"{seconds / 3600:,.1f} hours" if seconds < 72 * 3600 else f"{seconds / 86400:,.0f} days"


def check_inputs(profile: Profile) -> list[Check]:
    """Pictures, models or released latents, and the device."""
    checks = [check_pictures(profile)]
    if profile.zoo.is_released:
        rows = expected_count(profile.images.model_copy(update={"count": None}))
        checks += [check_released(profile, m, rows) for m in (*profile.generators, *profile.encoders)]
    else:
        for model in profile.models:
            checks.append(check_model(model, reachable=all(check.status != "not checked" for check in checks)))
    if profile.oracle:
        checks.append(check_model(Model(name="oracle", path=profile.oracle)))
    return [*checks, check_device(profile)]


def describe_work(profile: Profile, calls_per_second: float | None = None) -> list[str]:
    """Lines on network calls, time and GPU memory of the inversions."""
    steps, count = inversions(profile), expected_count(profile.images)
    if not steps:
        return ["network calls: none, the latents are released"]
    each = " + ".join(f"{n} ({title})" for title, n in steps.items())
    total = f"{count:,} pictures x {sum(steps.values())} steps = {count * sum(steps.values()):,}" if count else f"{sum(steps.values())} a picture"
    lines = [f"network calls: {total}", f"  steps: {each}"]
    given = Speed(calls_per_second, None, "--calls-per-second") if calls_per_second else None
    speeds = {m.title: given or speed(profile, m) for m in profile.generators}
    lines += [f"  {title}: {_calls(s)}" for title, s in speeds.items()]
    speeds[list(steps)[-1]] = speeds[profile.generators[0].title]
    lines.append(f"time of the inversions: {_time(profile, steps, speeds, count)}")
    lines.append("  the VAE, the encoders and the notebooks' own samples and round trips come on top")
    if any(m.hub for m in profile.generators):
        known = [s.gpu_gib for s in speeds.values() if s.gpu_gib]
        lines.append(f"GPU memory: {f'{max(known):.1f} GiB' if known else 'not measured'}; batches of {profile.zoo.batch} are halved until they fit")
    return lines


def _calls(speed: Speed) -> str:
    return f"{speed.calls:,.3g} calls a second, {speed.source}" if speed.calls else speed.source


def _time(profile: Profile, steps: dict[str, int], speeds: dict[str, Speed], count: int | None) -> str:
    if not all(speed.calls for speed in speeds.values()):
        return "not measured; give --calls-per-second (benchmarks/inversion.py measures it)"
    workers = 1 if any(m.hub for m in profile.generators) else default_workers(profile)
    seconds = sum(n / speeds[title].calls for title, n in steps.items()) / workers
    if count is None:
        return f"{seconds:.2g} seconds a picture"
    return _duration(count * seconds) + (f" with {workers} processes" if workers > 1 else "")


def describe_zoo(profile: Profile) -> tuple[list[str], int]:
    """Lines on the size of the zoo, and the bytes that are still to be written."""
    if profile.zoo.is_released:
        return ["zoo: the latents stay in the released files"], 0
    found, assumed = dimensions(profile)
    count = expected_count(profile.images)
    if not count:
        return [f"zoo: {sum(found.values()) * BYTES:,} bytes a picture"], 0
    size = count * sum(found.values()) * BYTES
    lines = [f"zoo: at most {_gigabytes(size)} in {_shown(profile.zoo_path)}: {count:,} pictures x {sum(found.values()):,} values x {BYTES} bytes"]
    lines.append("  " + ", ".join(f"{name} {d:,}" for name, d in found.items()))
    if assumed:
        lines.append(f"  assumed, until the models are at hand: {', '.join(assumed)}")
    there = sum(p.stat().st_size for p in profile.zoo_path.rglob("*") if p.is_file())
    return lines, max(0, size - there)


def plan(profile: Profile, calls_per_second: float | None = None) -> tuple[str, bool]:
    """The report on a profile, and whether nothing that it needs is missing.

    Args:
        calls_per_second: network calls a second on the device that will run it, instead of measured ones.
    """
    checks, (zoo, to_write) = check_inputs(profile), describe_zoo(profile)
    download = sum(check.download for check in checks)
    disks = [check_disk("zoo's disk", cache_root(), to_write)]
    disks += [check_disk("downloads", Path(huggingface_hub.constants.HF_HUB_CACHE), download)] if download else []
    checks += disks
    lines = [f"profile {profile.name}: {profile.title}", ""]
    lines += [f"{check.status:<12}{check.what}: {check.detail.replace(NEWLINE, NEWLINE + ' ' * 12)}" for check in checks]
    lines += ["", *describe_work(profile, calls_per_second), *zoo]
    skipped = ", ".join(sorted(profile.left_out)) or "none"
    lines += [f"notebooks left out by the profile: {skipped}", "", _verdict(checks)]
    return "\n".join(lines), not any(check.status == "missing" for check in checks)


def _verdict(checks: Sequence[Check]) -> str:
    counts = {status: [c.what for c in checks if c.status == status] for status in ("missing", "not checked")}
    if not any(counts.values()):
        return "everything is there"
    return "; ".join(f"{status}: {len(names)} of {len(checks)}" for status, names in counts.items() if names)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 1 when something is missing or the profile is not valid."""
    parser = argparse.ArgumentParser(prog="python -m une_utils.report.plan", description=__doc__.split("\n")[0])
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--calls-per-second", type=float, metavar="N", help="network calls (pictures times steps) a second of your device")
    arguments = parser.parse_args(argv)
    try:
        report, complete = plan(load_profile(arguments.profile), arguments.calls_per_second)
    except ProfileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report)
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
