"""One training loop for every small model of this repository; the losses are in ``une_utils.models.losses``.

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
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm.auto import tqdm

from une_utils.files import write_atomic

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
    keep: Collection[int] = (),
    keeper: Callable[[int, nn.Module], None] | None = None,
) -> nn.Module:
    """Minimise ``loss`` with AdamW and a cosine schedule; return the EMA of ``module``.

    Args:
        loss: called with (step, random generator of that step); returns the loss and numbers to log.
        checkpoint: safetensors file with weights, EMA, optimiser state and step; written every ``save_seconds`` seconds
            and on Ctrl-C; removed by the caller once the model is saved.
        log: CSV file, a row every ``log_every`` steps: step, seconds, the logged numbers (mean since the last row). Rows
            of steps that are trained again are dropped, so every step is in one row.
        ema: a copy of ``module`` that the loss itself uses (the teacher of DINO); made here when missing.
        keep: numbers of steps, 0 for none yet, after which ``keeper`` is called with that number and the EMA, which it must
            leave as it is.
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
            if step in keep:
                keeper(step, ema)
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
