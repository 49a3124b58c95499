"""An edited DDIM step (h-space, both predictions from one encoder pass) against a plain one, in one run on the same states.

    python benchmarks/hspace.py [--model faces-ldm] [--batch 32] [--rounds 10]

Plain and edited steps take turns, so that a busy machine slows both alike; times are medians over the rounds. Memory is the
peak of a process above what it held before the step, each kind of step in a process of its own. The last line runs the network
twice, which is the way without sharing. Goals: at most 2 times the time, 1.5 times the memory.
"""

import argparse
import multiprocessing
import resource
import statistics
import sys
import time

import torch

from une_utils.models.ddim import sample
from une_utils.models.generators import Generator, draw_noise
from une_utils.models.hspace import Bottleneck, ImplicitShift, asymmetric_step, edit
from une_utils.settings import MODELS


def make(model: str, batch: int, precise: bool) -> tuple:
    """Steps by name: functions that take one DDIM step on ``batch`` states."""
    torch.set_num_threads(1)
    generator = Generator.load(MODELS / model, precise=precise)
    bottleneck, noise, schedule = Bottleneck(generator), draw_noise(generator.shape, 0, range(batch)), generator.schedule(1)
    shift = ImplicitShift(bottleneck.read(noise[:1], 0).shape[1], steps=1).requires_grad_(False)

    def twice():
        """The same step from two whole passes; the second one is as long with a shift as without."""
        outputs = [generator(noise, schedule.timesteps[0]) for _ in range(2)]
        return asymmetric_step(noise, *outputs, schedule.levels[1], schedule.levels[0], schedule.prediction_type)

    return {
        "plain": lambda: sample(generator, noise, schedule),
        "edited": lambda: edit(bottleneck, noise, schedule, shift, t_edit=0),
        "two whole passes": torch.no_grad()(twice),
    }


def peak_memory() -> float:
    """Most resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def memory(name: str, arguments: tuple, results) -> None:
    """Peak of one kind of step in MB: weights and activations, without the interpreter and its libraries."""
    model, batch, precise = arguments
    make(model, 1, precise)[name]()  # libraries load their kernels
    before = peak_memory()
    step = make(model, batch, precise)[name]
    for _ in range(3):
        step()
    results.put(peak_memory() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="faces-ldm", help="folder below data/models")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--precise", action="store_true", help="float32 in place of bfloat16")
    args = parser.parse_args()
    arguments = args.model, args.batch, args.precise

    steps = make(*arguments)
    seconds = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(args.rounds):
        for name, step in steps.items():
            start = time.process_time()
            step()
            seconds[name].append(time.process_time() - start)

    context, peaks = multiprocessing.get_context("spawn"), {}
    for name in steps:
        results = context.SimpleQueue()
        process = context.Process(target=memory, args=(name, arguments, results))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"{name} failed")
        peaks[name] = results.get()

    print(f"{args.model}, {args.batch} states, {'float32' if args.precise else 'bfloat16'}, one thread; processor seconds of a step")
    print(f"{'':18}{'seconds':>9}{'ratio':>8}{'peak MB':>9}{'ratio':>8}")
    base = statistics.median(seconds["plain"]), peaks["plain"]
    for name, values in seconds.items():
        value = statistics.median(values)
        print(f"{name:18}{value:9.3f}{value / base[0]:8.2f}{peaks[name]:9.0f}{peaks[name] / base[1]:8.2f}")


if __name__ == "__main__":
    main()
