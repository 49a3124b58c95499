"""How many faces a second are drawn, in one process and in two: ``python benchmarks/rendered_faces.py``."""

from __future__ import annotations

import argparse
import time
from multiprocessing import get_context

from une_utils.images.rendered import RenderedFaces


def draw(first: int, count: int) -> int:
    """Draw ``count`` faces of 64 pixels; returns the number drawn."""
    return len(RenderedFaces(count, size=64, first=first).load(range(count)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faces", type=int, default=2000)
    faces = parser.parse_args().faces
    rates = {}
    for workers in (1, 2):
        with get_context("spawn").Pool(workers) as pool:
            pool.starmap(draw, [(0, 10)] * workers)  # imports are not part of the measurement
            began = time.perf_counter()
            done = sum(pool.starmap(draw, [(i, 100) for i in range(0, faces, 100)], chunksize=1))
            rates[workers] = done / (time.perf_counter() - began)
    print("| processes | faces per second | ratio |\n|---|---|---|")
    for workers, rate in rates.items():
        print(f"| {workers} | {rate:.0f} | {rate / rates[1]:.2f} |")


if __name__ == "__main__":
    main()
