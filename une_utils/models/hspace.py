"""h-space: the bottleneck of a frozen U-Net, read and shifted (Asyrp: Kwon, Jeong and Uh, "Diffusion Models Already Have a
Semantic Latent Space", ICLR 2023).

h is the output of the U-Net's middle block. A DDIM step from level a to level b has two terms, the predicted x0 and the
direction that points to x_t,

    x' = sqrt(b) P_t + D_t,        P_t = (x - sqrt(1 - a) eps) / sqrt(a),        D_t = sqrt(1 - b) eps.

Shifting h in both changes almost nothing: the changes cancel (Theorem 1, ``cancellation``). Asyrp shifts h in P_t only. A
*shift* is any callable ``(h, t) -> delta h`` whose result broadcasts to h (N, C, H, W); its attribute ``steps``, where it has
one, is the number of DDIM steps that it was made for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from tqdm.auto import tqdm

from une_utils.models.ddim import Model, Schedule, denoise, invert, to_eps, to_x0
from une_utils.models.generators import Generator, draw_noise

Shift = Callable[[torch.Tensor, int], torch.Tensor]
MIDDLE = "mid_block"

# The paper's thresholds as shares of where its curves end (CelebA-HQ, LPIPS): 0.33 of LPIPS(x, P_T) = 1.145 and 1.2 of
# LPIPS(x, x_T) = 1.388. A share means the same for another distance, another picture size and another model.
EDIT_SHARE, BOOST_SHARE = 0.33 / 1.145, 1.2 / 1.388


def layers(unet: nn.Module) -> list[str]:
    """Names of the blocks whose output can be shifted, in the order in which they run: the ResNet blocks of the encoder, the
    middle as a whole, the ResNet blocks of the decoder.

    Raises:
        ValueError: the network has no bottleneck (a DiT).
    """
    if not all(getattr(unet, part, None) for part in ("down_blocks", MIDDLE, "up_blocks")):
        raise ValueError(
            f"{type(unet).__name__} has no bottleneck to shift: h-space is the output of a U-Net's middle block, so the network needs "
            "down_blocks, mid_block and up_blocks; use a UNet2DModel or a UNet2DConditionModel"
        )
    names = [name for name, module in unet.named_modules() if isinstance(module, ResnetBlock2D)]
    encoder, decoder = ([n for n in names if n.startswith(part)] for part in ("down_blocks.", "up_blocks."))
    return [*encoder, MIDDLE, *decoder]


class Bottleneck:
    """A block of a frozen U-Net whose output, h, can be read and shifted.

    Args:
        model: what DDIM samples from, a ``Generator`` or a function ``(x, t) -> output`` that calls ``unet`` once.
        unet: the U-Net inside; the generator's own when missing.
        layer: name of the block, one of ``layers(unet)``.
    """

    def __init__(self, model: Model | Generator, unet: nn.Module | None = None, layer: str = MIDDLE):
        self.model, self.unet, self.layer = model, unet if unet is not None else model.unet, layer
        if layer not in (known := layers(self.unet)):
            raise ValueError(f"layer '{layer}' is not known; expected one of {', '.join(known)}")
        self._block = self.unet.get_submodule(layer)
        self._blocks = [self.unet.conv_in, *self.unet.down_blocks, self.unet.mid_block, *self.unet.up_blocks, self._block]

    @torch.no_grad()
    def read(self, x: torch.Tensor, t: int) -> torch.Tensor:
        """h (N, C, H, W) float32 of states ``x`` at timestep ``t``."""
        return self._run(x, t)[1][self._block].float()

    def predict(self, x: torch.Tensor, t: int, shift: Shift) -> tuple[torch.Tensor, torch.Tensor]:
        """Network outputs (N, ...) for h and for h + ``shift(h, t)``, from one pass through the encoder.

        The second pass is the U-Net's own forward, in which every block that was done before h was known answers with what
        it gave in the first. So both outputs are exact for every class of U-Net, and without a shift they are equal bit for
        bit. Gradients reach the shift, and nothing before it.
        """
        with torch.no_grad():
            output, known = self._run(x, t)
        h = known[self._block]
        known[self._block] = (h + shift(h.float(), t)).to(h.dtype)
        with _answering(known):
            return output, self.model(x, t)

    def _run(self, x: torch.Tensor, t: int) -> tuple[torch.Tensor, dict[nn.Module, torch.Tensor]]:
        """Output of the network, and of every block that is done when h is."""
        with _recording(self._blocks, self._block) as known:
            output = self.model(x, t)
        if self._block not in known:
            kind = type(self.unet).__name__
            raise ValueError(f"the model did not run '{self.layer}' of this {kind}; expected a function that calls this very network")
        return output, known


class OutputSpace:
    """The network's output as if it were h: what Asyrp compares h-space with. The same shifts, edits and samplers work on it.

    For a network that predicts eps this is eps-space; a change of v or of x0 is a change of eps times a number that depends on t.

    Args:
        model: what DDIM samples from.
    """

    def __init__(self, model: Model | Generator):
        self.model = model

    @torch.no_grad()
    def read(self, x: torch.Tensor, t: int) -> torch.Tensor:
        """Network output (N, ...) of states ``x`` at timestep ``t``."""
        return self.model(x, t)

    def predict(self, x: torch.Tensor, t: int, shift: Shift) -> tuple[torch.Tensor, torch.Tensor]:
        """Network outputs (N, ...) as they are and shifted, from one call."""
        output = self.read(x, t)
        return output, output + shift(output, t)


@contextmanager
def _recording(blocks: Sequence[nn.Module], last: nn.Module) -> Iterator[dict[nn.Module, torch.Tensor]]:
    """Fill the mapping with the outputs of ``blocks`` until ``last`` is done."""
    outputs: dict[nn.Module, torch.Tensor] = {}

    def keep(block: nn.Module, _, output: torch.Tensor) -> None:
        if last not in outputs:
            outputs[block] = output

    handles = [block.register_forward_hook(keep) for block in dict.fromkeys(blocks)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _answering(outputs: dict[nn.Module, torch.Tensor]) -> Iterator[None]:
    """Let modules answer with these outputs instead of computing them."""
    before = {block: block.__dict__.get("forward") for block in outputs}  # the hooks of accelerate live there
    for block, output in outputs.items():
        block.forward = lambda *_, output=output, **__: output
    try:
        yield
    finally:
        for block, forward in before.items():
            del block.forward
            if forward is not None:
                block.forward = forward


class ImplicitShift(ModelMixin, ConfigMixin):
    """The implicit function f_t: 1x1 convolution, plus a projection of the time embedding, GroupNorm, SiLU, 1x1 convolution (paper,
    Section 3.4). ``save_pretrained`` and ``from_pretrained`` are diffusers'.

    The time embedding is the sinusoidal one. The paper takes the U-Net's learned one, which would tie f_t to the network's class.

    Args:
        channels: channels of h.
        steps: DDIM steps of the whole path that it is trained for.
        groups: of the group norm.
        t_edit: smallest timestep that it is trained for.
        source, target: the texts whose difference it has learned.
    """

    @register_to_config
    def __init__(self, channels: int, steps: int, groups: int = 32, t_edit: int = 0, source: Sequence[str] = (), target: Sequence[str] = ()):
        super().__init__()
        self.steps = steps
        self.first = nn.Conv2d(channels, channels, 1)
        self.time = nn.Linear(channels, channels)
        self.norm = nn.GroupNorm(groups, channels)
        self.last = nn.Conv2d(channels, channels, 1)

    def forward(self, h: torch.Tensor, t: int) -> torch.Tensor:
        """Delta h (N, C, H, W) of h at timestep ``t``."""
        moment = F.silu(get_timestep_embedding(torch.tensor([t], device=h.device), h.shape[1]))
        return self.last(F.silu(self.norm(self.first(h) + self.time(moment)[:, :, None, None])))


@dataclass(frozen=True)
class StepShift:
    """A tensor per timestep, whatever h is; a timestep that has none takes the nearest one's.

    The form of free tensors (trained where they require a gradient), of the mean over images, of one global tensor (a mapping
    with one entry) and of a probe's direction.

    Attributes:
        deltas: timestep -> (C, H, W), or (C, 1, 1) for the same change everywhere.
        steps: DDIM steps that they are meant for.
    """

    deltas: dict[int, torch.Tensor]
    steps: int

    def __call__(self, h: torch.Tensor, t: int) -> torch.Tensor:
        return self.deltas[min(self.deltas, key=lambda known: (abs(known - t), known))]


def global_shift(mean: StepShift) -> StepShift:
    """Delta h^global: the mean over the edited timesteps of Delta h_t^mean (paper, Section 5.3), the same at every step."""
    return StepShift({0: torch.stack(list(mean.deltas.values())).mean(0)}, mean.steps)


def relative_shift(direction: torch.Tensor, size: float) -> Shift:
    """A direction, as long as ``size`` times the h of each image: the same push in layers, or spaces, whose activations differ in length.

    Args:
        direction: (C, H, W), or one for each image (N, C, H, W); its length does not count.
    """
    unit = direction / direction.flatten(-3).norm(dim=-1)[..., None, None, None]
    return lambda h, t: size * h.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * unit


def probe_shift(normal: torch.Tensor, h: torch.Tensor, steps: int) -> StepShift:
    """The direction of a linear probe on h, as long as one standard deviation of h along it.

    Args:
        normal: the probe's weights for flattened h (C * H * W,), or for h averaged over space (C,): the same change everywhere.
        h: (N, C, H, W) activations of training pictures, which give the length.
    """
    channels, height, width = h.shape[1:]
    shapes = {channels * height * width: (channels, height, width), channels: (channels, 1, 1)}
    if normal.ndim != 1 or len(normal) not in shapes:
        wanted = " or ".join(f"({length},)" for length in shapes)
        raise ValueError(f"the probe's weights have shape {tuple(normal.shape)}, expected {wanted}: one for each entry of h, or for each channel")
    features = h.flatten(1) if len(normal) == channels * height * width else h.mean((2, 3))
    direction = normal / normal.norm()
    return StepShift({0: (direction * (features @ direction).std()).reshape(shapes[len(normal)])}, steps)


@dataclass(frozen=True)
class Combination:
    """sum_i c_i delta_i of several shifts (paper, Section 5.3), each scaled to the steps of the first.

    The published code also divides by the square root of their number. Coefficients are numbers or one per image (N,).
    """

    shifts: tuple[Shift, ...]
    coefficients: tuple[float | torch.Tensor, ...]

    @property
    def steps(self) -> int:
        return self.shifts[0].steps

    def __call__(self, h: torch.Tensor, t: int) -> torch.Tensor:
        pairs = zip(self.shifts, self.coefficients, strict=True)
        return sum(per_image(c, h) * (shift.steps / self.steps) * shift(h, t) for shift, c in pairs)


def per_image(number: float | torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """A number, or one for each of the N images, in a shape that multiplies h."""
    value = torch.as_tensor(number, dtype=torch.float32, device=h.device)
    if value.ndim > 1 or (value.ndim and len(value) != len(h)):
        raise ValueError(f"strengths have shape {tuple(value.shape)}, expected a number or one for each of {len(h)} images")
    return value.view(-1, 1, 1, 1)


def asymmetric_step(x: torch.Tensor, output: torch.Tensor, shifted: torch.Tensor, a: float, b: float, kind: str) -> torch.Tensor:
    """sqrt(b) P_t(shifted output) + D_t(output): Asyrp's step (paper, Section 3.2) from level ``a`` to ``b``.

    Written as the plain step plus sqrt(b) times the change of P_t, so that equal outputs give the plain step bit for bit.
    """
    return denoise(output, x, a, b, kind) + b**0.5 * (to_x0(shifted, x, a, kind) - to_x0(output, x, a, kind))


def stochastic_step(x: torch.Tensor, output: torch.Tensor, z: torch.Tensor, a: float, b: float, kind: str) -> torch.Tensor:
    """One DDIM step with eta = 1 and the noise ``z`` ~ N(0, I): DDPM's, which the quality boost uses (paper, Section 4.2)."""
    variance = (1 - b) / (1 - a) * (1 - a / b)
    direction = max(0.0, 1 - b - variance) ** 0.5 * to_eps(output, x, a, kind)
    return b**0.5 * to_x0(output, x, a, kind) + direction + variance**0.5 * z


def cancellation(a: float, b: float) -> float:
    """Theorem 1: what is left of a change of eps after one step, when it is made in P_t and in D_t.

    (sqrt(1 - a - beta) - sqrt(1 - a)) / sqrt(1 - beta) with beta = 1 - a / b; in P_t alone it is - sqrt(b (1 - a) / a).
    """
    beta = 1 - a / b
    return (max(0.0, 1 - a - beta) ** 0.5 - (1 - a) ** 0.5) / (1 - beta) ** 0.5


@torch.no_grad()
def edit(
    bottleneck: Bottleneck | OutputSpace,
    noise: torch.Tensor,
    schedule: Schedule,
    shift: Shift,
    *,
    t_edit: int,
    strength: float | torch.Tensor = 1.0,
    t_boost: int = 0,
    symmetric: bool = False,
    seed: int = 42,
    indices: Sequence[int] | None = None,
    trajectory: bool = False,
    progress: bool = False,
) -> torch.Tensor:
    """Sample x0 from x_T by the asymmetric reverse process in its three phases (paper, Section 4.3).

    t >= t_edit: shifted, eta = 0; t_edit > t >= t_boost: plain DDIM; t < t_boost: plain with eta = 1, the quality boost.

    Args:
        noise: (N, ...) states at the noisiest level of the schedule.
        shift: scaled by ``shift.steps / len(schedule)``, so that the sum over the steps stays what it was made for (paper, appendix).
        strength: a factor on the shift, of any sign: one number, or one for each image (N,).
        symmetric: shift D_t as well, for comparison: almost nothing changes.
        seed: of the boost's noise, which is drawn for (seed, index, timestep): the same for every batch size.
        indices: numbers of the images; 0 ... N - 1 when missing.
        trajectory: also return every state.

    Returns:
        x0 (N, ...); with ``trajectory`` the states (S + 1, N, ...) from noise to x0.
    """
    if t_boost > t_edit:
        raise ValueError(f"t_boost is {t_boost}, above t_edit = {t_edit}: the boost comes after the edit, choose t_boost <= t_edit")
    indices = range(len(noise)) if indices is None else indices
    kind, factor = schedule.prediction_type, strength * (getattr(shift, "steps", len(schedule)) / len(schedule))
    step = (lambda x, _, shifted, *level: denoise(shifted, x, *level)) if symmetric else asymmetric_step
    x, states = noise, [noise]
    for i in tqdm(reversed(range(len(schedule))), total=len(schedule), desc="edit", disable=not progress):
        t, a, b = schedule.timesteps[i], schedule.levels[i + 1], schedule.levels[i]
        if t >= t_edit:
            x = step(x, *bottleneck.predict(x, t, lambda h, t: per_image(factor, h) * shift(h, t)), a, b, kind)
        elif t >= t_boost:
            x = denoise(bottleneck.model(x, t), x, a, b, kind)
        else:
            z = draw_noise(x.shape[1:], 1000 * (seed + 1) + t, indices).to(x)  # other seeds than those x_T is drawn with
            x = stochastic_step(x, bottleneck.model(x, t), z, a, b, kind)
        if trajectory:
            states.append(x)
    return torch.stack(states) if trajectory else x


class Changes(NamedTuple):
    """What a shift changes on the edited path of every image, by timestep.

    Attributes:
        h: timestep -> (N, C, H, W), as added to h.
        output: timestep -> (N, ...), what becomes of it at the end of the network.
        x0: (N, ...) where the path ends.
    """

    h: dict[int, torch.Tensor]
    output: dict[int, torch.Tensor]
    x0: torch.Tensor


@dataclass(frozen=True)
class _Watched:
    """A bottleneck that writes down what is done to it."""

    bottleneck: Bottleneck
    h: dict[int, torch.Tensor]
    output: dict[int, torch.Tensor]

    @property
    def model(self) -> Model | Generator:
        return self.bottleneck.model

    def predict(self, x: torch.Tensor, t: int, shift: Shift) -> tuple[torch.Tensor, torch.Tensor]:
        def watched(h: torch.Tensor, t: int) -> torch.Tensor:
            self.h[t] = shift(h, t).expand_as(h)
            return self.h[t]

        output, shifted = self.bottleneck.predict(x, t, watched)
        self.output[t] = shifted - output
        return output, shifted


def record_changes(bottleneck: Bottleneck, noise: torch.Tensor, schedule: Schedule, shift: Shift, *, t_edit: int) -> Changes:
    """``edit`` with strength 1, and what it changes at every step.

    A ``StepShift`` of one image's ``h`` in h-space and of its ``output`` in ``OutputSpace`` are the same edit of that image; on
    other images they show what each space makes of a change that was not meant for them (paper, Section 5.3, homogeneity).
    """
    watched = _Watched(bottleneck, {}, {})
    x0 = edit(watched, noise, schedule, shift, t_edit=t_edit)
    return Changes(watched.h, watched.output, x0)


def mean_shift(bottleneck: Bottleneck, noise: torch.Tensor, schedule: Schedule, shift: Shift, *, t_edit: int) -> StepShift:
    """Delta h_t^mean: the mean over images of what a shift does at every edited timestep of their edited path (paper, Section 5.3)."""
    changes = record_changes(bottleneck, noise, schedule, shift, t_edit=t_edit)
    return StepShift({t: delta.mean(0) for t, delta in changes.h.items()}, len(schedule))


class Curves(NamedTuple):
    """Perceptual distances along the path of pictures (paper, Sections 4.1 and 4.2), from clean to noisy.

    Attributes:
        timesteps: (S,).
        predicted: (S, N) distance of x to P_t. The editing strength xi_t of [T, t] is ``predicted[-1] - predicted``.
        noisy: (S, N) distance of x to x_t, the quality deficiency gamma_t.
    """

    timesteps: tuple[int, ...]
    predicted: torch.Tensor
    noisy: torch.Tensor


@torch.no_grad()
def perceptual_curves(
    generator: Generator, images: torch.Tensor, schedule: Schedule, distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> Curves:
    """Distances of pictures (N, 3, H, W) to their P_t and x_t along DDIM inversion, as the published code takes them.

    States of a latent model are decoded; ``x`` is the decoded x0, so that the autoencoder's own loss does not count.

    Args:
        distance: two batches of pictures (N, 3, H, W) in [-1, 1] -> (N,).
    """
    x0 = generator.encode(images)
    states, x = invert(generator, x0, schedule, trajectory=True).trajectory, generator.decode(x0).clamp(-1, 1)
    rows = []
    for state, t, level in zip(states[1:], schedule.timesteps, schedule.levels[1:], strict=True):
        predicted = to_x0(generator(state, t), state, level, schedule.prediction_type)
        rows.append([torch.as_tensor(distance(x, generator.decode(y).clamp(-1, 1))) for y in (predicted, state)])
    predicted, noisy = (torch.stack(column) for column in zip(*rows, strict=True))
    return Curves(schedule.timesteps, predicted, noisy)


def choose_t_edit(curves: Curves, share: float = EDIT_SHARE, cosine: float = 1.0) -> int:
    """Start of the shortest editing interval [T, t] that is strong enough: the smallest t whose mean distance of x to P_t is a
    ``share`` of that at T.

    Args:
        cosine: of the two texts' embeddings; a larger change of meaning gets a longer interval (paper: 0.33 times the cosine).
    """
    return _reach(curves.timesteps, curves.predicted.mean(1), share * cosine)


def choose_t_boost(curves: Curves, share: float = BOOST_SHARE) -> int:
    """The smallest t whose mean distance of x to x_t is a ``share`` of that at T: below it, noise is put in again."""
    return _reach(curves.timesteps, curves.noisy.mean(1), share)


def _reach(timesteps: Sequence[int], curve: torch.Tensor, share: float) -> int:
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}, expected a number in (0, 1] of the distance at the noisiest timestep")
    return timesteps[int((curve >= share * curve[-1]).nonzero()[0])]
