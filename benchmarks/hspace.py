"""An edited DDIM step (h-space, both predictions from one encoder pass) against a plain one, in one run on the same states.

    python benchmarks/hspace.py [--model faces-ldm] [--batch 32] [--rounds 10]

The three kinds of step take turns, so that a busy machine slows them alike; seconds are the processor's, medians over the rounds.
Memory is the network's weights and the most that a step's tensors take at one time. The last line runs the network twice, which
is the way without sharing. Goals: at most 2 times the time and 1.5 times the memory of plain sampling.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile

from une_utils.models.ddim import sample
from une_utils.models.generators import Generator, draw_noise
from une_utils.models.hspace import Bottleneck, ImplicitShift, asymmetric_step, edit
from une_utils.settings import MODELS


def make(model: str, batch: int, precise: bool) -> tuple[Bottleneck, dict[str, Callable[[], torch.Tensor]]]:
    """The bottleneck, and steps by name: functions that take one DDIM step on ``batch`` states."""
    torch.set_num_threads(1)
    generator = Generator.load(MODELS / model, precise=precise)
    bottleneck, noise, schedule = Bottleneck(generator), draw_noise(generator.shape, 0, range(batch)), generator.schedule(1)
    shift = ImplicitShift(bottleneck.read(noise[:1], 0).shape[1], steps=1).requires_grad_(False)

    def twice():
        """The same step from two whole passes; the second one is as long with a shift as without."""
        outputs = [generator(noise, schedule.timesteps[0]) for _ in range(2)]
        return asymmetric_step(noise, *outputs, schedule.levels[1], schedule.levels[0], schedule.prediction_type)

    return bottleneck, {
        "plain": lambda: sample(generator, noise, schedule),
        "edited": lambda: edit(bottleneck, noise, schedule, shift, t_edit=0),
        "two whole passes": torch.no_grad()(twice),
    }


def peak_memory(step: Callable[[], torch.Tensor]) -> float:
    """Most memory that tensors made during a step take at one time, in MB."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step()
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="faces-ldm", help="folder below data/models")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--precise", action="store_true", help="float32 in place of bfloat16")
    args = parser.parse_args()

    bottleneck, steps = make(args.model, args.batch, args.precise)
    seconds = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(args.rounds):
        for name, step in steps.items():
            start = time.process_time()
            step()
            seconds[name].append(time.process_time() - start)

    weights = sum(p.numel() * p.element_size() for p in bottleneck.unet.parameters()) / 2**20
    peaks = {name: weights + peak_memory(step) for name, step in steps.items()}

    print(f"{args.model}, {args.batch} states, {'float32' if args.precise else 'bfloat16'}, one thread")
    print(f"{'':18}{'seconds':>9}{'ratio':>8}{'peak MB':>9}{'ratio':>8}")
    base = statistics.median(seconds["plain"]), peaks["plain"]
    for name, values in seconds.items():
        value = statistics.median(values)
        print(f"{name:18}{value:9.3f}{value / base[0]:8.2f}{peaks[name]:9.0f}{peaks[name] / base[1]:8.2f}")


if __name__ == "__main__":
    main()
