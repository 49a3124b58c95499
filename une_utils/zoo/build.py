"""Build a profile's NoiseZoo: ``python -m une_utils.zoo.build --profile mini``.

The same command goes on after any interruption and gives the same bits: a shard is computed by one process with one
thread, in batches that depend on the profile alone, and counts once its marker is written.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache

import numpy as np
import torch
from tqdm.auto import tqdm

from une_utils.files import model_hash
from une_utils.images import open_images, to_model_range
from une_utils.models.encoders import Encoder
from une_utils.models.generators import Generator
from une_utils.settings import Profile, ProfileError, load_profile
from une_utils.zoo.store import View, Zoo, ZooError, open_released_zoo, views

KEPT_BYTES = 2**28  # a process keeps a profile's pictures for the next view when they are smaller than this


def build(profile: Profile, workers: int | None = None, progress: bool = True) -> Zoo:
    """Make or complete the zoo of a profile; of one with ``zoo.released``, check the released files and index them.

    Args:
        workers: processes, one core each; with 1 everything runs in this process. When missing, the number of cores, or 1
            where models of the hub run on a GPU, which they would have to share.

    Raises:
        ZooError: the folder holds latents of other images, models or settings, or a latent is not finite.
    """
    _forget()
    if profile.zoo.is_released:
        everything = profile.model_copy(update={"images": profile.images.model_copy(update={"count": None})})
        return open_released_zoo(profile, open_images(profile, pictures=False), open_images(everything, pictures=False))
    source = open_images(profile)
    zoo = Zoo(profile, source)
    todo = []
    for view in views(profile):
        zoo.open_view(view, shape(view, source.size))
        todo += [(view, number) for number in zoo.pending(view)]
    workers = min(workers or default_workers(profile), max(1, len(todo)))
    total = sum(len(zoo.shards[number]) for _, number in todo)
    with tqdm(total=total, desc=f"zoo {profile.name}", unit="image", disable=not progress or not todo, smoothing=0.05) as bar:
        for view, number in _run(profile, todo, workers):
            bar.set_postfix_str(view.name)
            bar.update(len(zoo.shards[number]))
    _forget()
    return zoo


def default_workers(profile: Profile) -> int:
    """Processes that make a zoo when no number is given."""
    one_gpu = torch.cuda.is_available() and any(m.hub for m in (*profile.generators, *profile.encoders))
    return 1 if one_gpu else os.cpu_count() or 1


def _forget() -> None:
    """Drop models and images of this process: the files behind them may change before the next build."""
    for kept in (_opened, _runner, _kept_pictures):
        kept.cache_clear()


def _run(profile: Profile, todo: list[tuple[View, int]], workers: int):
    """Compute shards and yield each when it is on disk."""
    if workers == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in every worker: the bits of a sum depend on the number of threads
        try:
            for view, number in todo:
                _write(profile, view, number)
                yield view, number
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")  # a forked copy of a threaded process may hang
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),)) as pool:
        futures = {pool.submit(_write, profile, view, number): (view, number) for view, number in todo}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker(parent: int) -> None:
    """One thread a process: two OpenMP threads slow each other down when the second core is busy."""
    torch.set_num_threads(1)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    """End this worker when its parent is gone (killed), so that a resumed build is the only writer."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _write(profile: Profile, view: View, number: int) -> None:
    zoo, source = _opened(profile.model_dump_json())
    small = len(zoo) * 3 * source.size**2 <= KEPT_BYTES
    pictures = (_kept_pictures if small else _pictures)(profile.model_dump_json(), number)
    zoo.write_shard(view, number, compute(profile, view, pictures))


@cache
def _opened(profile_json: str):
    """Zoo and images of a profile, once a process."""
    profile = Profile.model_validate_json(profile_json)
    return Zoo(profile), open_images(profile)


class Pictures:
    """Pictures (n, H, W, 3) uint8 as batches (b, 3, H, W) in [-1, 1]; generators that share an autoencoder encode them once."""

    def __init__(self, images: np.ndarray, batch: int):
        self._parts = [images[i : i + batch] for i in range(0, len(images), batch)]
        self._x0: dict[str, list[torch.Tensor]] = {}

    def __iter__(self):
        return (torch.from_numpy(to_model_range(part)) for part in self._parts)

    def x0(self, generator: Generator, autoencoder: str) -> list[torch.Tensor]:
        """x0 of every batch; ``autoencoder`` is the hash under which it is kept."""
        if autoencoder not in self._x0:
            self._x0[autoencoder] = [generator.encode(x) for x in self]
        return self._x0[autoencoder]


def _pictures(profile_json: str, number: int) -> Pictures:
    zoo, source = _opened(profile_json)
    return Pictures(source.load(list(zoo.shards[number])), Profile.model_validate_json(profile_json).zoo.batch)


_kept_pictures = cache(_pictures)


def compute(profile: Profile, view: View, pictures: Pictures) -> np.ndarray:
    """Latents (n, D) float32 of pictures, in batches of the profile's size."""
    run = _runner(profile.model_dump_json(), view.name)
    return np.concatenate([latents.flatten(1).numpy() for latents in run(pictures)])


@cache
def _runner(profile_json: str, view_name: str):
    """The function that turns pictures into batches of latents; models are loaded once a process."""
    profile = Profile.model_validate_json(profile_json)
    view = next(v for v in views(profile) if v.name == view_name)
    if view.kind == "pixels":
        return iter
    path = view.model.resolved_path()
    if view.kind == "encoder":
        encoder = Encoder.load(path, view.model.untrained_seed)
        return lambda pictures: map(encoder.embed, pictures)
    generator = Generator.load(path, untrained_seed=view.settings.get("seed"))
    autoencoder = f"{model_hash(path / 'vae')} {generator.shape}" if (path / "vae").is_dir() else str(path)
    if view.kind == "vae":
        return lambda pictures: pictures.x0(generator, autoencoder)
    schedule, convention = generator.schedule(view.settings["steps"]), view.settings["convention"]
    return lambda pictures: (generator.invert(x0, schedule, convention=convention).latents for x0 in pictures.x0(generator, autoencoder))


def shape(view: View, size: int) -> tuple[int, ...]:
    """Shape of one latent of a view, from its model's config.

    Args:
        size: side of the profile's pictures, pixels.
    """
    if view.kind == "pixels":
        return 3, size, size
    path = view.model.resolved_path()
    return (Encoder.dimension_of(path),) if view.kind == "encoder" else Generator.shape_of(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--workers", type=int)
    arguments = parser.parse_args()
    try:
        zoo = build(load_profile(arguments.profile), arguments.workers)
    except (ProfileError, ZooError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on with the shards that are missing", file=sys.stderr)
        return 130
    print(f"{zoo.path}: {len(zoo)} images, views {', '.join(zoo.names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
