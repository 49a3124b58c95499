"""One training loop for every small model of this repository, and the loss of each.

A recipe (``data/models/<name>/recipe.yaml``) names the pictures, the sizes and the number of steps. Training keeps an
exponential moving average of the weights (EMA) and ships that. It can be stopped at any time: the same command goes on
from the last checkpoint and, as every random draw of step ``i`` is seeded by (seed, i), over the same batches.
"""

from __future__ import annotations

import copy
import csv
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm.auto import tqdm

from une_utils.models.encoders import embedding

from une_utils.files import write_atomic
from une_utils.models.ddim import PREDICTION_TYPES

Loss = Callable[[int, torch.Generator], tuple[torch.Tensor, dict[str, float]]]


def train(
    name: str,
    module: nn.Module,
    loss: Loss,
    *,
    steps: int,
    learning_rate: float,
    checkpoint: Path,
    log: Path,
    ema: nn.Module | None = None,
    ema_decay: float = 0.998,
    weight_decay: float = 0.01,
    warmup: int = 100,
    seed: int = 0,
    log_every: int = 50,
    save_seconds: float = 60.0,
) -> nn.Module:
    """Minimise ``loss`` with AdamW and a cosine schedule; return the EMA of ``module``.

    Args:
        loss: called with (step, random generator of that step); returns the loss and numbers to log.
        checkpoint: safetensors file with weights, EMA, optimiser state and step; written every ``save_seconds`` seconds
            and on Ctrl-C; removed by the caller once the model is saved.
        log: CSV file, a row every ``log_every`` steps: step, seconds, the logged numbers (mean since the last row). Rows
            of steps that are trained again are dropped, so every step is in one row.
        ema: a copy of ``module`` that the loss itself uses (the teacher of DINO); made here when missing.
    """
    ema = (ema or copy.deepcopy(module)).requires_grad_(False)
    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.99))
    start, seconds, sums = _resume(checkpoint, module, ema, optimizer)
    _drop_rows(log, after=start)
    began, saved = time.monotonic() - seconds, time.monotonic()
    bar = tqdm(range(start, steps), initial=start, total=steps, desc=name, mininterval=5, unit="step")
    done: int | None = start  # steps that are wholly in the weights, the EMA, the optimiser and the log; None in between
    try:
        for step in bar:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * min(1, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            value, numbers = loss(step, generator)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            done = None
            optimizer.step()
            _update_ema(ema, module, min(ema_decay, (step + 1) / (step + 10)))
            for key, number in numbers.items():
                sums.setdefault(key, []).append(number)
            if (step + 1) % log_every == 0 or step + 1 == steps:
                row = {key: float(np.mean(values)) for key, values in sums.items()}
                _log(log, {"step": step + 1, "seconds": round(time.monotonic() - began, 1)} | row)
                bar.set_postfix({k: f"{v:.4f}" for k, v in row.items()})
                sums = {}
            done = step + 1
            if time.monotonic() - saved > save_seconds:
                _save(checkpoint, module, ema, optimizer, done, time.monotonic() - began, sums)
                saved = time.monotonic()
    except KeyboardInterrupt:
        if done is not None:  # in the middle of an update, the last checkpoint is the newest consistent state
            _save(checkpoint, module, ema, optimizer, done, time.monotonic() - began, sums)
        print(f"\n{name}: stopped before step {steps}; the same command goes on")
        raise
    return ema.eval()


@torch.no_grad()
def _update_ema(ema: nn.Module, module: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(ema.parameters()), list(module.parameters()), 1 - decay)
    for target, source in zip(ema.buffers(), module.buffers(), strict=True):
        target.copy_(source)


def _save(
    path: Path, module: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer, step: int, seconds: float, sums: dict[str, list[float]]
) -> None:
    """Write everything as plain tensors, first beside the old file, then over it: an interruption leaves one of the two."""
    tensors = {"clock": torch.tensor([step, seconds], dtype=torch.float64)}
    tensors |= {f"module.{k}": v.contiguous() for k, v in module.state_dict().items()}
    tensors |= {f"ema.{k}": v.contiguous() for k, v in ema.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v.contiguous() for k, v in state.items()}
    tensors |= {f"sums.{k}": torch.tensor(v, dtype=torch.float64) for k, v in sums.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def _resume(
    path: Path, module: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, float, dict[str, list[float]]]:
    """Load a checkpoint; return the steps done, the seconds they took and the numbers that are not in the log yet."""
    if not path.is_file():
        return 0, 0.0, {}
    tensors = load_file(path)
    for prefix, target in (("module.", module), ("ema.", ema)):
        target.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, field = key.split(".", 2)
            state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    step, seconds = tensors["clock"].tolist()
    return int(step), seconds, {k.removeprefix("sums."): v.tolist() for k, v in tensors.items() if k.startswith("sums.")}


def _drop_rows(path: Path, after: int) -> None:
    """Remove the rows of steps that will be trained again, and a last row that was cut off."""
    if not path.is_file():
        return
    header, *rows = path.read_text().splitlines(keepends=True) or [""]
    kept = [row for row in rows if row.endswith("\n") and int(row.split(",")[0]) <= after]
    if kept:
        write_atomic(path, "".join([header, *kept]).encode())
    else:
        path.unlink()


def _log(path: Path, row: dict[str, float]) -> None:
    new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})


def _rows(count: int, batch: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(count, (batch,), generator=generator)


def _batch(images: np.ndarray, rows: torch.Tensor, generator: torch.Generator, flip: bool) -> torch.Tensor:
    """Pictures as float (B, 3, H, W) in [-1, 1], half of them mirrored when ``flip``."""
    x = torch.from_numpy(images[rows.numpy()]).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    if flip:
        mirrored = torch.rand(len(x), generator=generator) < 0.5
        x[mirrored] = x[mirrored].flip(-1)
    return x.contiguous(memory_format=torch.channels_last)


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
        noise = torch.randn((len(x), 4, x.shape[2] // 4, x.shape[3] // 4), generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            y = vae.decode(mean + noise * (0.5 * logvar).exp()).sample.float()
        pixel = (y - x).abs().mean()
        edges = sum((y - x).diff(dim=d).abs().mean() for d in (2, 3)) / 2
        squared = (y - x).square().mean()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        numbers = {"l1": pixel.item(), "kl": divergence.item(), "psnr": -10 * math.log10(squared.item() / 4)}
        return pixel + 0.5 * edges + square * squared + kl * divergence, numbers

    return loss


def noise_loss(unet: nn.Module, latents: torch.Tensor, alphas_cumprod: torch.Tensor, *, batch: int, prediction_type: str = "epsilon") -> Loss:
    """Mean squared error of the predicted noise (DDPM, Eq. 14), velocity or x0 at uniform timesteps.

    Args:
        latents: (N, C, H, W) standardised x0.
    """
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction type '{prediction_type}' is not known; expected one of {', '.join(PREDICTION_TYPES)}")

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        x0 = latents[_rows(len(latents), batch, generator)]
        t = torch.randint(len(alphas_cumprod), (batch,), generator=generator)
        eps = torch.randn(x0.shape, generator=generator)
        level = alphas_cumprod[t].view(-1, 1, 1, 1)
        x_t = level.sqrt() * x0 + (1 - level).sqrt() * eps
        target = {"epsilon": eps, "sample": x0, "v_prediction": level.sqrt() * eps - (1 - level).sqrt() * x0}[prediction_type]
        with torch.autocast("cpu", torch.bfloat16):
            out = unet(x_t.contiguous(memory_format=torch.channels_last), t).sample
        error = (out.float() - target).square().mean()
        return error, {"mse": error.item()}

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
