"""The loss of every small model: functions of (step, random generator) for ``une_utils.models.training.train``."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from une_utils.models.ddim import PREDICTION_TYPES, Schedule, denoise, to_eps, to_x0
from une_utils.models.encoders import embedding
from une_utils.models.generators import Generator
from une_utils.models.hspace import Bottleneck, asymmetric_step
from une_utils.models.training import Loss


def _rows(count: int, batch: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(count, (batch,), generator=generator)


def _batch(images: np.ndarray, rows: torch.Tensor, generator: torch.Generator, flip: bool) -> torch.Tensor:
    """Pictures as float (B, 3, H, W) in [-1, 1], half of them mirrored when ``flip``."""
    x = torch.from_numpy(images[rows.numpy()]).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    if flip:
        mirrored = torch.rand(len(x), generator=generator) < 0.5
        x[mirrored] = x[mirrored].flip(-1)
    return x.contiguous(memory_format=torch.channels_last)


def _noised(x0: torch.Tensor, alphas_cumprod: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Uniform timesteps (B,), their levels (B, 1, 1, 1), noise and the states x_t of x0 (B, C, H, W)."""
    t = torch.randint(len(alphas_cumprod), (len(x0),), generator=generator)
    eps = torch.randn(x0.shape, generator=generator)
    level = alphas_cumprod[t].view(-1, 1, 1, 1)
    return t, level, eps, level.sqrt() * x0 + (1 - level).sqrt() * eps


def vae_loss(vae: nn.Module, images: np.ndarray, *, batch: int, full_share: float, crop: int, kl: float, square: float, flip: bool) -> Loss:
    """L1 + 0.5 L1 of image gradients + ``square`` times squared error + ``kl`` times KL per latent entry.

    The squared error keeps small things of strong colour (lips, earrings), which L1 trades for a sharper rest. A share
    ``full_share`` of the steps sees whole pictures, the others crops, as many as have the same number of pixels.

    The VAE runs uncompiled: with torch 2.13 on a CPU, compiling encode and decode as one function returned zero gradients
    for the decoder's first layer, and the posterior collapsed.
    """
    side = images.shape[1]

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        full = torch.rand((), generator=generator) < full_share
        x = _batch(images, _rows(len(images), batch if full else batch * (side // crop) ** 2, generator), generator, flip)
        if not full:
            top, left = torch.randint(side - crop + 1, (2,), generator=generator).tolist()
            x = x[:, :, top : top + crop, left : left + crop]
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            noise = torch.randn(mean.shape, generator=generator)
            y = vae.decode(mean + noise * (0.5 * logvar).exp()).sample.float()
        pixel = (y - x).abs().mean()
        edges = sum((y - x).diff(dim=d).abs().mean() for d in (2, 3)) / 2
        squared = (y - x).square().mean()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        numbers = {"l1": pixel.item(), "kl": divergence.item(), "psnr": -10 * math.log10(squared.item() / 4)}
        return pixel + 0.5 * edges + square * squared + kl * divergence, numbers

    return loss


def noise_loss(
    unet: nn.Module, latents: torch.Tensor, alphas_cumprod: torch.Tensor, *, batch: int, prediction_type: str = "epsilon",
    condition: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Loss:  # fmt: skip
    """Mean squared error of the predicted noise (DDPM, Eq. 14), velocity or x0 at uniform timesteps.

    Args:
        latents: (N, C, H, W) standardised x0.
        condition: what the U-Net is told of x0 as ``class_labels``, x0 (B, C, H, W) -> (B, E); trained with it (a diffusion
            autoencoder: Preechakul et al. 2022, Eq. 6).
    """
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction type '{prediction_type}' is not known; expected one of {', '.join(PREDICTION_TYPES)}")

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        x0 = latents[_rows(len(latents), batch, generator)]
        t, level, eps, x_t = _noised(x0, alphas_cumprod, generator)
        target = {"epsilon": eps, "sample": x0, "v_prediction": level.sqrt() * eps - (1 - level).sqrt() * x0}[prediction_type]
        with torch.autocast("cpu", torch.bfloat16):
            told = {"class_labels": condition(x0)} if condition else {}
            out = unet(x_t.contiguous(memory_format=torch.channels_last), t, **told).sample
        error = (out.float() - target).square().mean()
        return error, {"mse": error.item()}

    return loss


def noisy_classifier_loss(
    net: nn.Module, latents: torch.Tensor, attributes: torch.Tensor, alphas_cumprod: torch.Tensor, *, batch: int
) -> Loss:
    """Binary cross-entropy of all attributes, read from x_t at uniform timesteps (Dhariwal and Nichol 2021, Section 4).

    Args:
        latents: (N, C, H, W) standardised x0.
        attributes: (N, A) of the pictures, 0 or 1.
    """
    if len(latents) != len(attributes):
        raise ValueError(f"{len(latents)} latents and {len(attributes)} rows of attributes; expected one row for each")

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        rows = _rows(len(latents), batch, generator)
        t, _, _, x_t = _noised(latents[rows], alphas_cumprod, generator)
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(x_t, t)
        value = F.binary_cross_entropy_with_logits(logits.float(), attributes[rows])
        return value, {"labels": value.item()}

    return loss


def consistency_loss(student: nn.Module, teacher: nn.Module, latents: torch.Tensor, schedule: Schedule, *, batch: int) -> Loss:
    """Latent consistency distillation (Luo et al. 2023, Algorithm 1, without guidance): the student's answer at one point of
    the teacher's DDIM path must equal its own answer one step closer to the picture.

    Both networks are called as ``net(x, t).sample`` and predict ``schedule.prediction_type``. The target is the student
    itself without gradient, as in Song and Dhariwal 2023, who found that an averaged target slows learning down.

    Args:
        latents: (N, C, H, W) standardised x0.
        schedule: the teacher's DDIM steps, which the student learns to skip.
    """
    timesteps, levels = torch.tensor(schedule.timesteps), torch.tensor(schedule.levels, dtype=torch.float32)
    kind = schedule.prediction_type

    def predict(net: nn.Module, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return net(x.contiguous(memory_format=torch.channels_last), t).sample.float()

    def answer(net: nn.Module, x: torch.Tensor, t: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        skip, out = (w.view(-1, 1, 1, 1) for w in boundary_weights(t))
        return skip * x + out * to_x0(predict(net, x, t), x, level, kind)

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        x0 = latents[_rows(len(latents), batch, generator)]
        i = torch.randint(1, len(timesteps), (batch,), generator=generator)
        t, nearer = timesteps[i], timesteps[i - 1]
        level, nearer_level = (levels[k].view(-1, 1, 1, 1) for k in (i + 1, i))
        x = level.sqrt() * x0 + (1 - level).sqrt() * torch.randn(x0.shape, generator=generator)
        with torch.no_grad():
            output = predict(teacher, x, t)
            x_nearer = nearer_level.sqrt() * to_x0(output, x, level, kind) + (1 - nearer_level).sqrt() * to_eps(output, x, level, kind)
            target = answer(student, x_nearer, nearer, nearer_level)
        value = F.huber_loss(answer(student, x, t, level), target, delta=0.1)
        return value, {"huber": value.item()}

    return loss


def boundary_weights(t: torch.Tensor, sigma: float = 0.5, scaling: float = 10.0) -> tuple[torch.Tensor, torch.Tensor]:
    """c_skip and c_out of a consistency model at timesteps ``t``, as diffusers' LCMScheduler sets them; (1, 0) at t = 0."""
    scaled = t.float() * scaling
    return sigma**2 / (scaled**2 + sigma**2), scaled / (scaled**2 + sigma**2).sqrt()


class ClipNet(nn.Module):
    """A CLIP and, for its training only, a linear head that reads attributes from the picture's embedding."""

    def __init__(self, clip: nn.Module, attributes: int):
        super().__init__()
        self.clip = clip
        self.head = nn.Linear(clip.config.projection_dim, attributes)


def clip_loss(
    net: ClipNet, images: np.ndarray, attributes: torch.Tensor, captions: Callable, tokenize: Callable, *, batch: int, label_weight: float
) -> Loss:
    """Symmetric contrastive loss of pictures and captions (Radford et al. 2021, Fig. 3), and ``label_weight`` times the cross-entropy
    of the attributes.

    Telling 64 faces apart takes hair, skin and sex and no more: from the contrast alone, 3,000 steps taught nothing of a smile
    (zero-shot AUC 0.49). The captions are worded from the same attributes, so the head sees no label that they do not speak of.

    Args:
        attributes: (N, A) of the pictures, 0 or 1.
        captions: (rows, seed) -> list of str, one caption a picture, worded anew at every step.
        tokenize: list of str -> dict of ``input_ids`` and ``attention_mask``.
    """

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        rows = _rows(len(images), batch, generator)
        x = augment(_batch(images, rows, generator, flip=True), images.shape[1], (0.85, 1.0), generator)
        text = captions(rows.numpy(), int(torch.randint(2**31, (), generator=generator)))
        with torch.autocast("cpu", torch.bfloat16):
            output = net.clip(pixel_values=x, **tokenize(text), return_loss=True)
        # embeddings have unit length: as long as random ones of their dimension, the head need not grow first
        logits = net.head(output.image_embeds.float() * output.image_embeds.shape[1] ** 0.5)
        labels = F.binary_cross_entropy_with_logits(logits, attributes[rows])
        return output.loss + label_weight * labels, {"contrast": output.loss.item(), "labels": labels.item()}

    return loss


def reconstruction_loss(mae: nn.Module, images: np.ndarray, *, batch: int, flip: bool) -> Loss:
    """Masked autoencoding (He et al. 2022): mean squared error of the masked patches, each patch normalised."""

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        x = augment(_batch(images, _rows(len(images), batch, generator), generator, flip), images.shape[1], (0.85, 1.0), generator)
        patches = (images.shape[1] // mae.config.patch_size) ** 2
        with torch.autocast("cpu", torch.bfloat16):
            value = mae(x, noise=torch.rand(batch, patches, generator=generator)).loss.float()
        return value, {"mse": value.item()}

    return loss


def regression_loss(net: nn.Module, images: np.ndarray, targets: torch.Tensor, *, batch: int) -> Loss:
    """Mean squared error of factors (N, F) read from pictures.

    Half of the pictures are softened and all get a little noise, since the regressor will read pictures that a decoder made.
    Factors beyond three deviations are drawn alike and count as three.
    """
    targets = targets.clamp(-3, 3)

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        rows = _rows(len(images), batch, generator)
        x = _batch(images, rows, generator, flip=False)
        soft = torch.rand(batch, generator=generator) < 0.5
        x[soft] = F.avg_pool2d(F.pad(x[soft], (1, 1, 1, 1), mode="replicate"), 3, stride=1) * 0.5 + x[soft] * 0.5
        x = x + 0.04 * torch.rand((batch, 1, 1, 1), generator=generator) * torch.randn(x.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            value = (net(x.contiguous(memory_format=torch.channels_last)).logits.float() - targets[rows]).square().mean()
        return value, {"mse": value.item()}

    return loss


class DinoNet(nn.Module):
    """A ViT and the projection head of DINO (Caron et al. 2021) on its embedding: MLP, unit-norm bottleneck, prototypes."""

    def __init__(self, vit: nn.Module, prototypes: int, hidden: int = 256, bottleneck: int = 64):
        super().__init__()
        self.vit = vit
        width = 2 * vit.config.hidden_size
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, bottleneck))
        self.prototypes = nn.Parameter(torch.randn(prototypes, bottleneck) / math.sqrt(bottleneck))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embedding (B, 2 width) and scores (B, prototypes) of pictures (B, 3, H, W)."""
        features = embedding(self.vit(x).last_hidden_state).float()
        return features, F.normalize(self.head(features).float(), dim=-1) @ F.normalize(self.prototypes, dim=-1).T


def dino_loss(
    student: DinoNet, teacher: DinoNet, images: np.ndarray, *, batch: int, flip: bool, smallest_crop: float, spread: float
) -> Loss:
    """Self-distillation: the student's view must predict what the teacher (EMA) says of another view.

    Targets are balanced over the prototypes by three Sinkhorn-Knopp steps (as in SwAV and DINOv2), which needs no running
    centre. Temperatures: student 0.1, teacher 0.05. ``spread`` weighs DINOv2's KoLeo term; without it, the few steps that a
    laptop allows end in an embedding of the background's colour and little else.

    Both views are wide crops, at least ``smallest_crop`` of the area. DINO's narrow crops teach what is the same all over a
    picture, so they teach to leave out a smile, which only one part of an aligned face shows.
    """
    side = images.shape[1]

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        x = _batch(images, _rows(len(images), batch, generator), generator, flip)
        views = torch.cat([augment(x, side, (smallest_crop, 1.0), generator) for _ in range(2)])
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                targets = sinkhorn(teacher(views)[1].float() / 0.05).chunk(2)
            features, scores = student(views)
        pairs = zip(targets, reversed(scores.float().chunk(2)), strict=True)
        value = sum(-(target * F.log_softmax(score / 0.1, dim=-1)).sum(-1).mean() for target, score in pairs) / 2
        crowding = sum(koleo(part) for part in features.chunk(2)) / 2
        return value + spread * crowding, {"loss": value.item(), "koleo": crowding.item()}

    return loss


def koleo(features: torch.Tensor) -> torch.Tensor:
    """Kozachenko-Leonenko term: minus the mean log distance (features of unit length) to the nearest neighbour in the batch."""
    unit = F.normalize(features.float(), dim=-1)
    distance = torch.cdist(unit, unit) + 4 * torch.eye(len(unit))  # 4 exceeds every distance: nobody is its own neighbour
    return -(distance.min(dim=1).values + 1e-6).log().mean()


@torch.no_grad()
def sinkhorn(scores: torch.Tensor, rounds: int = 3) -> torch.Tensor:
    """Assignments (B, K) whose rows sum to one and whose columns are used equally, from scores over temperature."""
    q = (scores - scores.max()).exp()
    for _ in range(rounds):
        q = q / q.sum(0, keepdim=True).clamp_min(1e-12)
        q = q / q.sum(1, keepdim=True).clamp_min(1e-12)
    return q


def directional_loss(edited: torch.Tensor, plain: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """1 - cos(E_I(edited) - E_I(plain), E_T(target) - E_T(source)), mean over pictures (Gal et al. 2022; Asyrp, Section 3.4).

    Args:
        edited, plain: (N, D) embeddings of pictures, of unit length.
        direction: (D,) difference of the texts' embeddings.
    """
    return 1 - F.cosine_similarity(edited - plain, direction[None], dim=1).mean()


class ShiftChain(nn.Module):
    """What is trained, the function f_t or a copy of a U-Net, and the states that it carries from one step to the next.

    States are buffers, so they are part of the checkpoint. They are kept twice: a step reads one and writes the other, so a
    step that is stopped in the middle is done again from what it read.
    """

    def __init__(self, shift: nn.Module, batch: int, shape: tuple[int, ...]):
        super().__init__()
        self.shift = shift
        self.register_buffer("states", torch.zeros(2, 2, batch, *shape))  # (even or odd step, plain or edited, N, C, H, W)


def hspace_loss(
    chain: ShiftChain, bottleneck: Bottleneck, schedule: Schedule, noise: torch.Tensor, embed: Callable, direction: torch.Tensor, *,
    t_edit: int, clip_weight: float, l1_weight: float, smallest_crop: float,
) -> Loss:  # fmt: skip
    """The loss of ``_text_loss`` for the function f_t, at the edited timesteps of the whole path (Asyrp, Section 3.4).

    The published code differs: it minimises -log((1 + cos) / 2), compares the edited picture with the training picture itself in
    place of P_t^source, multiplies its weight of L1 by the cosine of the two texts, steps by plain gradient descent, and crops
    nothing.

    Args:
        bottleneck: of a ``Generator``.
        noise: (N, C, H, W) inverted or drawn noise to draw batches from.
        embed: pictures (B, 3, H, W) -> embeddings (B, D).
        direction: (D,) difference of the texts' embeddings.
        t_edit: smallest timestep that is edited.
    """
    if t_edit > schedule.timesteps[-1]:
        raise ValueError(f"t_edit is {t_edit}, above every timestep of the schedule; expected at most {schedule.timesteps[-1]}")

    def advance(x: torch.Tensor, t: int, a: float, b: float) -> tuple[torch.Tensor, torch.Tensor]:
        output, shifted = bottleneck.predict(x, t, chain.shift)
        return to_x0(shifted, x, a, schedule.prediction_type), asymmetric_step(x, output, shifted, a, b, schedule.prediction_type)

    return _text_loss(
        chain, bottleneck.model, schedule, noise, advance, embed, direction, last=t_edit, clip_weight=clip_weight, l1_weight=l1_weight,
        smallest_crop=smallest_crop,
    )  # fmt: skip


def diffusionclip_loss(
    chain: ShiftChain, generator: Generator, schedule: Schedule, states: torch.Tensor, embed: Callable, direction: torch.Tensor, *,
    clip_weight: float, l1_weight: float, smallest_crop: float,
) -> Loss:  # fmt: skip
    """The loss of ``_text_loss`` for a copy of the generator's U-Net, ``chain.shift``: DiffusionCLIP (Kim, Kwon and Ye 2022, Eq. 10) in its
    GPU-efficient form, which updates the weights after every timestep.

    Differs from the paper: the identity term compares with the prediction of the frozen U-Net at the same timestep, not with the
    picture itself, and there is no face recognition loss.

    Args:
        generator: with the frozen U-Net.
        schedule: the part of a run that is done again, ``schedule.until(t_0)``; t_0 is the paper's return step.
        states: (N, C, H, W) pictures inverted up to there, to draw batches from.
    """

    def advance(x: torch.Tensor, t: int, a: float, b: float) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            output = chain.shift(x, torch.tensor([t])).sample.float()
        return to_x0(output, x, a, schedule.prediction_type), denoise(output, x, a, b, schedule.prediction_type)

    return _text_loss(
        chain, generator, schedule, states, advance, embed, direction, last=schedule.timesteps[0], clip_weight=clip_weight, l1_weight=l1_weight,
        smallest_crop=smallest_crop,
    )  # fmt: skip


def _text_loss(
    chain: ShiftChain, generator: Generator, schedule: Schedule, noise: torch.Tensor, advance: Callable, embed: Callable, direction: torch.Tensor, *,
    last: int, clip_weight: float, l1_weight: float, smallest_crop: float,
) -> Loss:  # fmt: skip
    """lambda_CLIP * ``directional_loss`` + lambda_recon * |P_t^edit - P_t^source|_1, one timestep a step.

    A batch of noise goes down the schedule to the timestep ``last``, one optimiser step a timestep, in two paths: plain and edited.
    Both are cut from the graph after every step, so a gradient sees P_t of its own timestep only. L1 is the mean absolute
    difference of decoded pictures. CLIP sees both pictures in the same random crop, which makes it harder to please without a
    visible change.

    Args:
        advance: (x, t, level from, level to) -> P_t^edit, through which the gradient goes, and the edited path's next state.
    """
    kind = schedule.prediction_type
    positions = [i for i in reversed(range(len(schedule))) if schedule.timesteps[i] >= last]

    def look(x0: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            pictures = generator.decode(x0).float()
        view = augment(pictures, pictures.shape[-1], (smallest_crop, 1.0), torch.Generator().manual_seed(seed))
        with torch.autocast("cpu", torch.bfloat16):
            return pictures, F.normalize(embed(view).float(), dim=1)

    def loss(step: int, random: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        now, position = chain.states[step % 2], step % len(positions)
        i = positions[position]
        t, a, b = schedule.timesteps[i], schedule.levels[i + 1], schedule.levels[i]
        if position == 0:
            now = noise[_rows(len(noise), now.shape[1], random)].expand_as(now)
        plain, edited = now
        seed = int(torch.randint(2**31, (), generator=random))
        with torch.no_grad():
            source = generator(plain, t)
            before, embedded = look(to_x0(source, plain, a, kind), seed)
        x0, after_step = advance(edited, t, a, b)
        after, reached = look(x0, seed)
        away, change = directional_loss(reached, embedded, direction), (after - before).abs().mean()
        chain.states[(step + 1) % 2] = torch.stack([denoise(source, plain, a, b, kind), after_step.detach()])
        return clip_weight * away + l1_weight * change, {"cosine": 1 - away.item(), "l1": change.item()}

    return loss


def augment(x: torch.Tensor, size: int, scale: tuple[float, float], generator: torch.Generator) -> torch.Tensor:
    """Random crop (share of the area in ``scale``) resized to ``size``, with mild changes of brightness and contrast.

    Hue is left alone: hair and skin colour are attributes, and an encoder trained to ignore them could not show them.
    """
    n = len(x)
    side = (torch.rand(n, generator=generator) * (scale[1] - scale[0]) + scale[0]).sqrt()
    centre = (torch.rand(n, 2, generator=generator) * 2 - 1) * (1 - side)[:, None]
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = centre
    grid = F.affine_grid(theta, (n, 3, size, size), align_corners=False)
    view = F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    gain = 1 + 0.4 * (torch.rand(n, 1, 1, 1, generator=generator) - 0.5)
    shift = 0.3 * (torch.rand(n, 1, 1, 1, generator=generator) - 0.5)
    return (view * gain + shift).clamp(-1, 1)
