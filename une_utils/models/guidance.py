"""Guided sampling, the methods that Asyrp's introduction sets itself against: classifier guidance, image guidance and SDEdit.

All of them leave the generator frozen, run deterministic DDIM and are plain DDIM bit for bit at strength 0 (SDEdit has no
strength; how far it goes is the timestep that it starts at). ``t_edit`` means what it means in ``hspace.edit``: t >= t_edit is
edited, below it the model is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from tqdm.auto import tqdm

from une_utils.models.ddim import Model, Schedule, denoise, sample
from une_utils.models.generators import draw_noise
from une_utils.models.hspace import cancellation, per_image

Classifier = Callable[[torch.Tensor, int], torch.Tensor]


class NoisyClassifier(ModelMixin, ConfigMixin):
    """Attributes read from the noisy states x_t of a generator: what classifier guidance asks for the way (Dhariwal and Nichol 2021,
    Section 4). ``save_pretrained`` and ``from_pretrained`` are diffusers'.

    ResNet blocks with a time embedding, the side halved between them, and a linear layer on the last one's whole output: faces are
    aligned, so the place of a feature says what it is.

    Args:
        shape: (C, H, W) of a state; H and W can be halved ``len(widths) - 1`` times.
        attributes: names of the logits.
        widths: channels of each block.
        groups: of the group norms.
    """

    @register_to_config
    def __init__(self, shape: Sequence[int], attributes: Sequence[str], widths: Sequence[int] = (32, 64, 64), groups: int = 8):
        super().__init__()
        halved = 2 ** (len(widths) - 1)
        if any(side % halved for side in shape[1:]):
            raise ValueError(f"states of shape {tuple(shape)} cannot be halved {len(widths) - 1} times; use fewer widths")
        self.first = nn.Conv2d(shape[0], widths[0], 3, padding=1)
        self.time = nn.Linear(widths[-1], widths[-1])
        inputs = [widths[0], *widths[:-1]]
        self.blocks = nn.ModuleList(
            ResnetBlock2D(in_channels=a, out_channels=b, temb_channels=widths[-1], groups=groups) for a, b in zip(inputs, widths, strict=True)
        )
        self.norm = nn.GroupNorm(groups, widths[-1])
        self.last = nn.Linear(widths[-1] * (shape[1] // halved) * (shape[2] // halved), len(attributes))

    def forward(self, x: torch.Tensor, t: int | torch.Tensor) -> torch.Tensor:
        """Logits (N, A) of states x_t (N, C, H, W) at timestep ``t``, one for all or one for each (N,)."""
        if x.shape[1:] != tuple(self.config.shape):
            read, given = tuple(self.config.shape), tuple(x.shape[1:])
            raise ValueError(f"states have shape {given}, this classifier reads {read}: it was made for another generator")
        moment = self.time(get_timestep_embedding(torch.as_tensor(t, device=x.device).reshape(-1), self.time.in_features))
        h = self.first(x)
        for i, block in enumerate(self.blocks):
            h = block(F.avg_pool2d(h, 2) if i else h, moment)
        return self.last(F.silu(self.norm(h)).flatten(1))


def attribute_gradient(classifier: Classifier, x: torch.Tensor, t: int, column: int, sign: torch.Tensor) -> torch.Tensor:
    """grad log p(y | x_t) (N, ...) with respect to the states ``x`` (N, ...); y is that attribute ``column`` is true where ``sign``
    (N or 1, 1, ...) is 1 and false where it is -1. A sign of 0 asks for nothing and gives 0."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = classifier(x, t)
        if not 0 <= column < logits.shape[1]:
            raise ValueError(f"column is {column}, expected 0 to {logits.shape[1] - 1}: the classifier reads {logits.shape[1]} attributes")
        return torch.autograd.grad(F.logsigmoid(sign.flatten() * logits[:, column]).sum(), x)[0]


@torch.no_grad()
def classifier_guidance(
    generator: Model,
    classifier: Classifier,
    noise: torch.Tensor,
    schedule: Schedule,
    column: int,
    *,
    strength: float | torch.Tensor,
    t_edit: int = 0,
    trajectory: bool = False,
    progress: bool = False,
) -> torch.Tensor:
    """Sample x0 from x_T by DDIM with classifier guidance (Dhariwal and Nichol 2021, Algorithm 2):

        eps_hat = eps - sqrt(1 - a_t) |s| grad log p(y | x_t).

    The step is written as the plain one plus what is left of the change of eps, so that s = 0 gives plain DDIM bit for bit.

    Args:
        classifier: (x, t) -> logits (N, A) of noisy states, a ``NoisyClassifier``; images must not depend on each other.
        noise: (N, ...) states at the noisiest level of the schedule, inverted to edit a picture.
        column: number of the attribute among the logits.
        strength: s, one number or one for each image (N,): positive towards the attribute being true, negative towards false.
        t_edit: smallest timestep that is guided.
        trajectory: also return every state.

    Returns:
        x0 (N, ...); with ``trajectory`` the states (S + 1, N, ...) from noise to x0.
    """
    scale, kind = per_image(strength, noise), schedule.prediction_type
    x, states = noise, [noise]
    for i in tqdm(reversed(range(len(schedule))), total=len(schedule), desc="classifier guidance", disable=not progress):
        t, a, b = schedule.timesteps[i], schedule.levels[i + 1], schedule.levels[i]
        plain = denoise(generator(x, t), x, a, b, kind)
        if t >= t_edit:
            change = -((1 - a) ** 0.5) * scale.abs() * attribute_gradient(classifier, x, t, column, scale.sign())
            plain = plain + cancellation(a, b) * change
        x = plain
        if trajectory:
            states.append(x)
    return torch.stack(states) if trajectory else x


def low_pass(x: torch.Tensor, factor: int) -> torch.Tensor:
    """States (N, C, H, W) with every square of ``factor`` by ``factor`` entries at its mean; factor 1 leaves them as they are.

    Linear and idempotent, as ILVR asks of its filter: what was mixed in at strength 1 has the guide's means exactly. ILVR itself
    makes pictures smaller and larger again by bicubic interpolation.
    """
    height, width = x.shape[-2:]
    if factor < 1 or height % factor or width % factor:
        raise ValueError(f"factor is {factor}, expected a divisor of the sides {height} and {width} of a state")
    return F.interpolate(F.avg_pool2d(x, factor), scale_factor=factor, mode="nearest") if factor > 1 else x


@torch.no_grad()
def image_guidance(
    generator: Model,
    noise: torch.Tensor,
    guide: torch.Tensor,
    schedule: Schedule,
    *,
    strength: float | torch.Tensor,
    t_edit: int = 0,
    factor: int = 4,
    trajectory: bool = False,
    progress: bool = False,
) -> torch.Tensor:
    """Sample x0 from x_T by DDIM, mixing in the noisy latents of a guiding image (ILVR: Choi et al. 2021, Eq. 8):

        x_t <- x_t + s (low_pass(guide_t) - low_pass(x_t)),        t >= t_edit,

    before the network sees x_t. guide_t are states of the guide's own DDIM inversion. ILVR adds fresh noise to the guide at every
    step; inversion draws nothing, so an edit is reproducible, and its states fit to each other: with s = 1 and factor 1 down to
    the last step, what comes out is the guide.

    Args:
        noise: (N, C, H, W) states at the noisiest level of the schedule.
        guide: (S + 1, N or 1, C, H, W) states of the guiding images from x0 to noise, ``invert(..., trajectory=True).trajectory`` with
            the same schedule and convention "target". One inversion serves every strength.
        strength: s in [0, 1] at every edited step, one number or one for each image (N,).
        t_edit: smallest timestep at which the guide is mixed in.
        factor: of ``low_pass``; 1 mixes whole states.
        trajectory: also return every state.

    Returns:
        x0 (N, ...); with ``trajectory`` the states (S + 1, N, ...) as the network saw them, from noise to x0.
    """
    if len(guide) != len(schedule) + 1:
        expected = f"{len(schedule) + 1} for {len(schedule)} steps"
        raise ValueError(f"guide has {len(guide)} states, expected {expected}: the trajectory of an inversion with the same schedule")
    if guide.shape[1:] not in (noise.shape, (1, *noise.shape[1:])):
        raise ValueError(f"states of the guide have shape {tuple(guide.shape[1:])}, expected {tuple(noise.shape)} or one image")
    scale, kind = per_image(strength, noise), schedule.prediction_type
    if scale.min() < 0 or scale.max() > 1:
        raise ValueError(f"strengths lie in [{scale.min():g}, {scale.max():g}], expected [0, 1]: a share of the guide")
    x, states = noise, []
    for i in tqdm(reversed(range(len(schedule))), total=len(schedule), desc="image guidance", disable=not progress):
        t = schedule.timesteps[i]
        if t >= t_edit:
            x = x + scale * (low_pass(guide[i + 1], factor) - low_pass(x, factor))
        if trajectory:
            states.append(x)
        x = denoise(generator(x, t), x, schedule.levels[i + 1], schedule.levels[i], kind)
    return torch.stack([*states, x]) if trajectory else x


@torch.no_grad()
def sdedit(
    generator: Model,
    x0: torch.Tensor,
    schedule: Schedule,
    *,
    t_start: int,
    seed: int = 42,
    indices: Sequence[int] | None = None,
    progress: bool = False,
) -> torch.Tensor:
    """SDEdit (Meng et al. 2022, Algorithm 1): noise on an edited x0 up to t_start, then denoise; the model repairs what the edit broke.

    The way back is deterministic DDIM, not the paper's reverse SDE, so the only noise is the one that is added.

    Args:
        x0: (N, ...) that something coarse has edited, for example a shift along a direction of the latents.
        t_start: the largest timestep of the schedule up to here is where denoising starts; the higher, the freer the model.
        seed: of the noise, drawn for (seed, index): the same for every batch size and every ``t_start``.
        indices: numbers of the images; 0 ... N - 1 when missing.

    Returns:
        x0 (N, ...).
    """
    part = schedule.until(t_start)
    indices = range(len(x0)) if indices is None else indices
    if len(indices) != len(x0):
        raise ValueError(f"{len(indices)} indices for {len(x0)} images; expected one for each")
    level = part.levels[-1]
    x = level**0.5 * x0 + (1 - level) ** 0.5 * draw_noise(x0.shape[1:], seed, indices).to(x0)
    return sample(generator, x, part, progress=progress)
