"""Deterministic DDIM (eta = 0): sampling and inversion for every prediction type, in one place.

Song et al. 2021, Eq. 12. From level a to level b, with the noise prediction eps,

    x0 = (x - sqrt(1 - a) eps) / sqrt(a),        x' = sqrt(b) x0 + sqrt(1 - b) eps,

where a level is a value of ``alphas_cumprod`` (1 is clean, 0 is pure noise). Nothing is clipped: a clipped x0 cannot be
inverted. A ``model`` is any callable ``(x, t) -> output`` with x (N, ...) float32 and t an int.

Sampling from x_{i+1} to x_i feeds the network (x_{i+1}, t_i). Inversion does not have x_{i+1} yet; the published ways to
guess are the conventions of ``invert``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import DDIMScheduler
from tqdm.auto import tqdm

Model = Callable[[torch.Tensor, int], torch.Tensor]
Convention = Literal["target", "current", "une"]
CONVENTIONS = ("target", "current", "une")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class Schedule:
    """Timesteps and noise levels of one run, both from clean to noisy.

    Attributes:
        timesteps: (S,) t_0 < ... < t_{S-1}, what the network is fed.
        levels: (S + 1,) float64; ``levels[0]`` is the clean end, ``levels[i + 1]`` is ``alphas_cumprod[t_i]``.
        prediction_type: "epsilon", "v_prediction" or "sample".
    """

    timesteps: tuple[int, ...]
    levels: tuple[float, ...]
    prediction_type: str

    def __post_init__(self):
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction type '{self.prediction_type}' is not known; expected one of {', '.join(PREDICTION_TYPES)}")
        if len(self.levels) != len(self.timesteps) + 1:
            raise ValueError(f"{len(self.timesteps)} timesteps need {len(self.timesteps) + 1} levels, got {len(self.levels)}")
        if not all(0 < level <= 1 for level in self.levels):
            raise ValueError("level 0 (zero terminal signal) cannot be inverted: nothing of x0 is left in such a state")

    def __len__(self) -> int:
        return len(self.timesteps)

    def until(self, t: int) -> Schedule:
        """The clean part of the run, with the timesteps up to ``t``: what SDEdit and DiffusionCLIP invert and sample again.

        Raises:
            ValueError: ``t`` is below every timestep.
        """
        count = sum(own <= t for own in self.timesteps)
        if not count:
            raise ValueError(f"t = {t} is below every timestep of the schedule; expected at least {self.timesteps[0]}")
        return Schedule(self.timesteps[:count], self.levels[: count + 1], self.prediction_type)


def make_schedule(scheduler, steps: int, spacing: str | None = None) -> Schedule:
    """The DDIM schedule of any diffusers scheduler, read from its config.

    Args:
        scheduler: a diffusers scheduler or its config; betas, prediction type, offset and final level come from it.
        steps: number of network calls S. All that the model was trained with leave no room for an offset.
        spacing: "leading", "trailing" or "linspace"; the config's own when missing.
    """
    config = getattr(scheduler, "config", scheduler)
    extra = {"timestep_spacing": spacing} if spacing else {}
    ddim = DDIMScheduler.from_config(config, **extra)
    limit = ddim.config.num_train_timesteps
    if not 1 <= steps <= limit:
        raise ValueError(f"{steps} DDIM steps asked for, expected 1 to {limit} (the steps the model was trained with)")
    ddim.set_timesteps(steps)
    timesteps = list(range(limit)) if steps == limit else sorted(int(t) for t in ddim.timesteps)
    if len(set(timesteps)) != steps or timesteps[0] < 0 or timesteps[-1] >= limit:
        name, ends = ddim.config.timestep_spacing, f"{timesteps[0]} ... {timesteps[-1]}"
        raise ValueError(f"spacing '{name}' does not give {steps} distinct timesteps in 0..{limit - 1}: {ends}")
    levels = ddim.alphas_cumprod.double()[timesteps].tolist()
    return Schedule(tuple(timesteps), (float(ddim.final_alpha_cumprod), *levels), ddim.config.prediction_type)


def to_eps(output: torch.Tensor, x: torch.Tensor, level: float | torch.Tensor, prediction_type: str) -> torch.Tensor:
    """Noise prediction from a network's output for the state ``x`` at ``level``.

    v = sqrt(a) eps - sqrt(1 - a) x0 (Salimans and Ho 2022), so eps = sqrt(a) v + sqrt(1 - a) x.
    """
    if prediction_type == "epsilon":
        return output
    if prediction_type == "v_prediction":
        return level**0.5 * output + (1 - level) ** 0.5 * x
    return (x - level**0.5 * output) / (1 - level) ** 0.5


def to_x0(output: torch.Tensor, x: torch.Tensor, level: float | torch.Tensor, prediction_type: str) -> torch.Tensor:
    """Predicted x0 (P_t of Asyrp) from a network's output for the state ``x`` at ``level``, a number or one per state.

    Read from v and sample predictions directly: through eps it would lose digits by 1 / sqrt(a).
    """
    if prediction_type == "sample":
        return output
    if prediction_type == "v_prediction":
        return level**0.5 * x - (1 - level) ** 0.5 * output
    return (x - (1 - level) ** 0.5 * output) / level**0.5


def move(x: torch.Tensor, eps: torch.Tensor, a: float, b: float) -> torch.Tensor:
    """One DDIM update from level ``a`` to level ``b`` with the noise prediction ``eps``. Its own inverse with a, b swapped."""
    ratio = (b / a) ** 0.5
    return ratio * x + ((1 - b) ** 0.5 - ratio * (1 - a) ** 0.5) * eps


def denoise(output: torch.Tensor, x: torch.Tensor, a: float, b: float, prediction_type: str) -> torch.Tensor:
    """One DDIM step from level ``a`` to level ``b`` with the network's output for the state ``x``."""
    eps = to_eps(output, x, a, prediction_type)
    if prediction_type == "epsilon":
        return move(x, eps, a, b)
    return b**0.5 * to_x0(output, x, a, prediction_type) + (1 - b) ** 0.5 * eps


@torch.no_grad()
def sample(model: Model, noise: torch.Tensor, schedule: Schedule, trajectory: bool = False, progress: bool = False):
    """Sample x0 from x_T by DDIM, eta = 0.

    Args:
        noise: (N, ...) state at the noisiest level of the schedule.
        trajectory: also return every state.

    Returns:
        x0 (N, ...); with ``trajectory`` the states (S + 1, N, ...) from noise to x0.
    """
    x, states = noise, [noise]
    for i in tqdm(reversed(range(len(schedule))), total=len(schedule), desc="sample", disable=not progress):
        output = model(x, schedule.timesteps[i])
        x = denoise(output, x, schedule.levels[i + 1], schedule.levels[i], schedule.prediction_type)
        if trajectory:
            states.append(x)
    return torch.stack(states) if trajectory else x


def predictions(states: torch.Tensor, levels: Sequence[float]) -> torch.Tensor:
    """The noise predictions (S, N, ...) that led from each state of a path (S + 1, N, ...) to the next.

    ``levels`` (S + 1) are those of the states, so ``schedule.levels`` for an inversion with convention "target" and the same
    in reverse for ``sample``. Between given levels the DDIM update is linear in the prediction; float32 states return it to
    about 1e-4.
    """
    if len(states) != len(levels):
        raise ValueError(f"{len(states)} states need as many levels, got {len(levels)}")
    steps = zip(states[:-1], states[1:], levels[:-1], levels[1:], strict=True)
    return torch.stack([(after - (b / a) ** 0.5 * before) / ((1 - b) ** 0.5 - (b / a * (1 - a)) ** 0.5) for before, after, a, b in steps])


@dataclass(frozen=True)
class Inversion:
    """Result of ``invert``.

    Attributes:
        latents: (N, ...) the inverted noise.
        level: noise level (alphas_cumprod) that the latents are at.
        trajectory: (steps + 1, N, ...) states from x0 to the latents, or None.
        calls: network evaluations for one image, mean over the images.
        residual: (N,) fixed-point inversion: the largest root-mean-square change of the last iteration over the steps.
    """

    latents: torch.Tensor
    level: float
    trajectory: torch.Tensor | None
    calls: float
    residual: torch.Tensor


def _chain(schedule: Schedule, convention: Convention) -> list[tuple[int, float, float, float]]:
    """Steps (timestep fed, level the network is told, level from, level to) of an inversion."""
    t, a = schedule.timesteps, schedule.levels
    if convention == "target":
        return [(t[i], a[i + 1], a[i], a[i + 1]) for i in range(len(t))]
    if convention == "current":
        return [(t[i], a[i + 1], a[i + 1], a[i + 2] if i + 1 < len(t) else 0.0) for i in range(len(t))]
    if convention == "une":
        return [(t[i], a[i + 1], a[i + 1], a[i + 2]) for i in range(len(t) - 1)]
    raise ValueError(f"convention '{convention}' is not known; expected one of {', '.join(CONVENTIONS)}")


@torch.no_grad()
def invert(
    model: Model,
    x0: torch.Tensor,
    schedule: Schedule,
    *,
    convention: Convention = "target",
    start: int = 0,
    fixed_point: int = 0,
    tolerance: float = 1e-4,
    trajectory: bool = False,
    progress: bool = False,
) -> Inversion:
    """Invert DDIM sampling: from clean x0 to the noise that should give it.

    Conventions, i.e. which timestep the network sees and which level the state is said to have:

    - "target" (diffusers' DDIMInverseScheduler; LDM, SDXL in "There and Back Again"): x_i with the timestep of the level it
      moves to. S calls; x0 is at the clean level; with the true eps(x_{i+1}, t_i) it is the exact inverse of ``sample``.
    - "current" (guided-diffusion's reverse ODE; the ADM models there): x_i with its own timestep, the chain shifted by one:
      x0 is said to be at level alphas_cumprod[t_0], and the last of S steps goes to level 0, so the result is literally
      the last noise prediction.
    - "une" (the official code of UNE): "current" without that last step: S - 1 calls.

    A network's output is read at the level that the network is told: the only reading under which an exact state gives the
    exact noise for every prediction type (diffusers' inverse scheduler reads v-prediction at the other level of the step).

    Args:
        x0: (N, ...) clean images or VAE latents; with ``start`` the states that the remaining steps begin with.
        start: leave out the first steps of the chain: the states are at the level that those would have led to, for "target"
            ``schedule.levels[start]``. A state of the sampling path, or x0 with noise mixed in at that level ("There and Back
            Again", forward diffusion in place of the first inversion steps).
        fixed_point: at most this many further iterations a step. Each puts the new state back into the network, so that
            the step converges to the exact inverse of the sampling step; needs convention "target". Images whose state
            changes by less than ``tolerance`` (root mean square) are done and cost no more calls.
    """
    if fixed_point and convention != "target":
        raise ValueError(f"fixed-point inversion solves the sampling step and needs convention 'target', got '{convention}'")
    steps = _chain(schedule, convention)
    if not steps:
        raise ValueError(f"convention '{convention}' moves from one timestep to the next and needs at least 2 steps, got {len(schedule)}")
    if not 0 <= start < len(steps):
        raise ValueError(f"start = {start} must leave at least one of the {len(steps)} steps of the inversion")
    steps = steps[start:]
    x, states = x0, [x0]
    calls, residual = 0, torch.zeros(len(x0))
    for t, told, a, b in tqdm(steps, desc="invert", disable=not progress):
        before = x
        x = move(before, to_eps(model(before, t), before, told, schedule.prediction_type), a, b)
        calls += len(x0)
        active, change = torch.arange(len(x0)), torch.zeros(len(x0))
        for _ in range(fixed_point):
            eps = to_eps(model(x[active], t), x[active], b, schedule.prediction_type)
            better = move(before[active], eps, a, b)
            calls += len(active)
            change[active] = (better - x[active]).flatten(1).square().mean(1).sqrt().to(change)
            x = x.index_copy(0, active.to(x.device), better)
            active = active[change[active] > tolerance]
            if not len(active):
                break
        residual = torch.maximum(residual, change)
        if trajectory:
            states.append(x)
    return Inversion(x, steps[-1][3], torch.stack(states) if trajectory else None, calls / max(1, len(x0)), residual)
