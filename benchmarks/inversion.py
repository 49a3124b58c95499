"""Full DDIM inversions a second: a plain diffusers loop as users write it against ours, on the same network in one run.

    python benchmarks/inversion.py [--steps 20] [--batch 8] [--repeats 3] [--dtype float16] [--compiled]

Random weights: a small Stable Diffusion network on a CPU, one of the size of SD 1.5 on a GPU. The plain loop uses
DDIMInverseScheduler and guidance 3.5 on the empty prompt, so each step costs two rows a picture; ours knows that the two rows
are the same (notebook 01 and the tests check it). Every way is timed `--repeats` times in turn and the fastest counts, which is
fair on a busy machine. "outside" is the share of our loop's time that is not spent in the network, measured in that same loop;
the limit is 3 %. The matrix peak is a large product in the same type, timed in the same run. The last line is a row for
`benchmarks/throughput.csv`, from which `make plan` takes hours.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from diffusers import DDIMInverseScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextModel

from une_utils.models import tiny
from une_utils.models.ddim import invert
from une_utils.models.generators import draw_noise
from une_utils.models.pipelines import PipelineGenerator

LIMIT = 0.03
SMALL = dict(
    sample_size=32, block_out_channels=[64, 128], down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
    up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"], cross_attention_dim=64, layers_per_block=1,
)  # fmt: skip
SD15 = dict(sample_size=64, cross_attention_dim=768)  # everything else is the class's default
NETWORKS = {"small": SMALL, "SD 1.5": SD15}
PEAK = {"cpu": 1024, "cuda": 8192}  # side of the product that shows the matrix peak


def make_generator(network: str, device: str, dtype: torch.dtype, compiled: bool) -> PipelineGenerator:
    """A Stable Diffusion pipeline around a random network; text encoder, scheduler and VAE are tiny."""
    config = NETWORKS[network]
    with tempfile.TemporaryDirectory() as folder:
        pipe = StableDiffusionPipeline.from_pretrained(tiny.write("tiny/sd15", Path(folder)), local_files_only=True, safety_checker=None)
    text = pipe.text_encoder.config
    text.hidden_size = config["cross_attention_dim"]
    pipe.text_encoder = CLIPTextModel(text)
    pipe.unet = UNet2DConditionModel(**config)
    return PipelineGenerator(pipe, dtype, torch.device(device), compiled)


class Clock:
    """Seconds spent in a module's forward since the last ``reset``."""

    def __init__(self, module: torch.nn.Module, device: str):
        self.device, self.marks = device, []
        module.register_forward_pre_hook(lambda *_: self.marks.append(self._now()))
        module.register_forward_hook(lambda *_: self.marks.append(self._now()))

    def _now(self):
        if self.device == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def reset(self) -> None:
        self.marks.clear()

    def seconds(self) -> float:
        pairs = list(zip(self.marks[::2], self.marks[1::2], strict=True))
        return sum(end - start if self.device == "cpu" else start.elapsed_time(end) / 1000 for start, end in pairs)


@torch.no_grad()
def plain_loop(generator: PipelineGenerator, x0: torch.Tensor, steps: int) -> torch.Tensor:
    """As users write it: the inverse scheduler, the conditional and the unconditional embedding stacked, guidance 3.5."""
    scheduler = DDIMInverseScheduler.from_config(generator.scheduler.config)
    scheduler.set_timesteps(steps)
    x = x0.to(generator.device, generator.dtype)
    conditional, unconditional = generator.pipe.encode_prompt([""] * len(x), "cpu", 1, True, [""] * len(x))
    embeddings = torch.cat([unconditional, conditional]).to(generator.device, generator.dtype)
    for t in scheduler.timesteps:
        output = generator._forward(torch.cat([x, x]), t, encoder_hidden_states=embeddings).sample
        opposite, output = output.chunk(2)
        x = scheduler.step(opposite + 3.5 * (output - opposite), t, x).prev_sample
    return x.float().cpu()


@torch.no_grad()
def network_only(generator: PipelineGenerator, x0: torch.Tensor, steps: int) -> torch.Tensor:
    """The limit: the network's calls and nothing else."""
    x = x0.to(generator.device)
    for _ in range(steps):
        output = generator(x, 500)
    return output


def timed(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_flops(device: str, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product, the best of five."""
    a = torch.randn(PEAK[device], PEAK[device], device=device, dtype=dtype)
    a @ a
    return 2 * PEAK[device] ** 3 / min(timed(torch.matmul, a, a) for _ in range(5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--network", choices=[*NETWORKS], default="small" if device == "cpu" else "SD 1.5")
    parser.add_argument("--steps", type=int, default=20 if device == "cpu" else 50)
    parser.add_argument("--batch", type=int, default=8 if device == "cpu" else 32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float32" if device == "cpu" else "float16")
    parser.add_argument("--compiled", action="store_true")
    args = parser.parse_args()

    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    generator = make_generator(args.network, device, dtype, args.compiled)
    x0, schedule = draw_noise(generator.shape, 0, range(args.batch)), generator.schedule(args.steps)
    clock, batch, steps = Clock(generator.unet, device), args.batch, args.steps
    with FlopCounterMode(display=False) as counter:
        generator(x0[:1], 500)
    ways = {
        "diffusers loop, batch 1, guidance on": (1, lambda: plain_loop(generator, x0[:1], steps)),
        f"diffusers loop, batch {batch}, guidance on": (batch, lambda: plain_loop(generator, x0, steps)),
        f"ours, batch {batch}": (batch, lambda: generator.invert(x0, schedule)),
        f"network only, batch {batch}": (batch, lambda: network_only(generator, x0, steps)),
    }
    seconds, outside = {name: [] for name in ways}, []
    for name, (_, way) in ways.items():
        timed(way) if args.compiled or device == "cuda" else generator(x0, 500)  # warm up
    for _ in range(args.repeats):
        for name, (_, way) in ways.items():
            clock.reset()
            seconds[name].append(timed(way))
            if name.startswith("ours"):
                outside.append(1 - clock.seconds() / seconds[name][-1])

    rates = {name: rows / min(seconds[name]) for name, (rows, _) in ways.items()}
    parameters = sum(p.numel() for p in generator.unet.parameters()) / 1e6
    kind = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{kind}; network of {parameters:.1f} M parameters, states {generator.shape}, {args.dtype}{', compiled' * args.compiled}; {steps} steps")
    print(f"{'':44}{'images/s':>10}{'ratio':>8}")
    base = rates[f"diffusers loop, batch {batch}, guidance on"]
    for name, rate in rates.items():
        print(f"{name:44}{rate:10.3f}{rate / base:8.2f}")
    print(f"outside the network: {min(outside):.1%} of our loop (limit {LIMIT:.0%}): {'holds' if min(outside) <= LIMIT else 'FAILS'}")
    used, peak = rates[f"ours, batch {batch}"] * steps * counter.get_total_flops(), peak_flops(device, dtype)
    print(f"network: {used / 1e12:.2f} of {peak / 1e12:.2f} TFLOP/s, {used / peak:.0%} of a large matrix product")
    memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if device == "cuda" else ""
    if memory:
        print(f"memory: {memory} GiB at most")
    difference = (plain_loop(generator, x0, steps) - invert(generator, x0, schedule).latents.cpu()).square().mean().sqrt()
    print(f"our latents differ from the loop's by {difference:.1e} (root mean square)")
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    calls = rates[f"ours, batch {batch}"] * steps
    print(f"{name},{args.network},{args.dtype}{' compiled' * args.compiled},{batch},{calls:.4g},{memory},{torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
