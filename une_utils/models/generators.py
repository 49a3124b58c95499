"""Frozen diffusion models behind one interface: pictures in [-1, 1] on one side, states of DDIM on the other."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from diffusers import AutoencoderKL, DDIMScheduler, LCMScheduler, UNet2DModel
from tqdm.auto import tqdm

from une_utils.files import read_json
from une_utils.models.ddim import Inversion, Schedule, invert, make_schedule, sample
from une_utils.settings import Model

DECODED = 25  # latents decoded at once: the decoder's activations stay in the processor's cache, 1.7 times faster than 125


class Generator:
    """An unconditional diffusion model in diffusers' folder layout: ``unet``, ``scheduler`` and, in latent space, ``vae``.

    States are VAE latents, standardised per channel with the mean and deviation in the VAE's config; without a VAE they are
    pictures, made smaller to the network's size. The object itself is the ``model`` that ``ddim.sample`` and
    ``ddim.invert`` call. On a CPU the network runs in bfloat16 (autocast) unless ``precise``; states stay float32. The
    network keeps PyTorch's own memory order: group norms in bfloat16 are many times slower in channels_last, which costs
    more than its convolutions gain.
    """

    def __init__(self, vae: AutoencoderKL | None, unet: UNet2DModel, scheduler: DDIMScheduler, precise: bool = False):
        self.vae = vae.eval().requires_grad_(False).to(memory_format=torch.channels_last) if vae else None
        self.unet = unet.eval().requires_grad_(False)
        self.scheduler, self.precise = scheduler, precise
        self.device = torch.device("cpu")
        if vae:
            self._mean, self._std = _standard(vae.config)

    @classmethod
    def load(cls, path: Path, precise: bool = False, untrained_seed: int | None = None, unet: str | Path = "unet") -> Generator:
        """Read a model folder; one with a ``model_index.json`` is a pipeline of the hub and gives a ``PipelineGenerator``.

        With ``untrained_seed`` the network's weights are drawn anew: the control whose inversion knows the VAE and the
        schedule but has learned nothing. ``unet`` names another state of the training (``checkpoints``), or is the folder of a
        network that was fine-tuned from this model's (DiffusionCLIP).
        """
        if (path / "model_index.json").is_file():
            from une_utils.models.pipelines import PipelineGenerator  # it is a subclass of this class

            return PipelineGenerator.load(path, precise, untrained_seed, unet)
        vae = None
        if (path / "vae").is_dir():
            vae = AutoencoderKL.from_pretrained(path / "vae", torch_dtype=torch.float32, local_files_only=True)
        if untrained_seed is None:
            net = UNet2DModel.from_pretrained(path / unet, torch_dtype=torch.float32, local_files_only=True)
        else:
            with torch.random.fork_rng():
                torch.manual_seed(untrained_seed)
                net = UNet2DModel.from_config(UNet2DModel.load_config(path / "unet", local_files_only=True))
        return cls(vae, net, ddim_scheduler(DDIMScheduler.load_config(path / "scheduler", local_files_only=True)), precise)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one state."""
        side = self.unet.config.sample_size
        return self.unet.config.in_channels, side, side

    @staticmethod
    def shape_of(path: Path) -> tuple[int, int, int]:
        """``shape`` of a model folder, from its network's config alone."""
        config = read_json(path / ("transformer" if (path / "transformer").is_dir() else "unet") / "config.json")
        return config["in_channels"], config["sample_size"], config["sample_size"]

    def schedule(self, steps: int) -> Schedule:
        return make_schedule(self.scheduler, steps)

    def __call__(self, x: torch.Tensor, t: int) -> torch.Tensor:
        """Network output (N, C, H, W) float32 for states ``x`` at timestep ``t``. No weight is trainable, so a graph is kept only
        where a gradient is asked for: of the states, or of a shift of h-space."""
        with torch.autocast("cpu", torch.bfloat16, enabled=not self.precise):
            out = self.unet(x, torch.tensor([t])).sample
        return out.float().contiguous()

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """x0 of pictures (N, 3, H, W) in [-1, 1]: the mode of the VAE's posterior, standardised (N, 4, H/4, W/4), or the
        pictures themselves, averaged over squares (N, 3, h, w)."""
        if self.vae is None:
            return F.interpolate(images, size=self.shape[1:], mode="area").contiguous()
        x0 = self.vae.encode(images.contiguous(memory_format=torch.channels_last)).latent_dist.mean
        return ((x0 - self._mean) / self._std).contiguous()

    def decode(self, x0: torch.Tensor) -> torch.Tensor:
        """Pictures (N, 3, H, W), about [-1, 1] and not clipped, of x0."""
        if self.vae is None:
            return x0
        latents = (x0 * self._std + self._mean).contiguous(memory_format=torch.channels_last)
        return torch.cat([self.vae.decode(part).sample for part in latents.split(DECODED)]).contiguous()

    def invert(self, x0: torch.Tensor, schedule: Schedule, **options) -> Inversion:
        """``ddim.invert`` with this model; options are its own."""
        return invert(self, x0, schedule, **options)

    def noise_of(self, images: np.ndarray, steps: int, batch: int = 125, progress: bool = False) -> np.ndarray:
        """Inverted noise (N, D) float32 of pictures (N, 3, H, W) in [-1, 1]: plain DDIM, the convention "target"."""
        schedule, parts = self.schedule(steps), []
        for x in tqdm(torch.as_tensor(images).split(batch), desc="invert", unit="batch", disable=not progress):
            parts.append(self.invert(self.encode(x), schedule).latents.flatten(1))
        return torch.cat(parts).numpy()

    def draw(self, latents: np.ndarray, steps: int, batch: int = 125, progress: bool = False) -> np.ndarray:
        """Pictures (N, 3, H, W) float32, clipped to [-1, 1], that DDIM samples from noise (N, D) or (N, C, H, W)."""
        schedule, parts = self.schedule(steps), []
        states = torch.as_tensor(np.asarray(latents), dtype=torch.float32).reshape(-1, *self.shape)
        for noise in tqdm(states.split(batch), desc="draw", unit="batch", disable=not progress):
            parts.append(self.decode(sample(self, noise.to(self.device), schedule)).clamp(-1, 1))
        return torch.cat(parts).numpy()

    @torch.no_grad()
    def sample_lcm(self, noise: torch.Tensor, steps: int = 4, seed: int = 42) -> torch.Tensor:
        """x0 in few steps, as diffusers' LCMScheduler samples a consistency-distilled model: jump to x0, add noise, again."""
        scheduler = LCMScheduler.from_config(self.scheduler.config, original_inference_steps=50)
        scheduler.set_timesteps(steps)
        generator, x = torch.Generator().manual_seed(seed), noise
        for t in scheduler.timesteps:
            x, x0 = scheduler.step(self(x, int(t)), t, x, generator=generator, return_dict=False)
        return x0


def checkpoints(path: Path) -> dict[int, str]:
    """States of a model's training that were kept: number of steps -> name for ``Generator.load``, the final one last."""
    kept = {int(f.name.removeprefix("unet-")): f.name for f in sorted(path.glob("unet-*/"))}
    return kept | {yaml.safe_load((path / "recipe.yaml").read_text())["unet"]["steps"]: "unet"}


def one_per_space(models: Sequence[Model]) -> dict[str, Model]:
    """The first generator on VAE latents and the first on pixels, of those that there are: {"latent diffusion": ..., "pixel diffusion": ...}."""
    found: dict[str, Model] = {}
    for model in models:
        encoded = any((model.resolved_path() / name).is_dir() for name in ("vae", "vqvae"))
        found.setdefault("latent diffusion" if encoded else "pixel diffusion", model)
    return found


def ddim_scheduler(config: dict) -> DDIMScheduler:
    """The DDIM scheduler with the noise levels, prediction type, spacing, offset and final level of any scheduler's config.

    Raises:
        ValueError: the config has no variance-preserving noise levels (flow matching, EDM).
    """
    known = inspect.signature(DDIMScheduler).parameters  # an LCM's config has keys that DDIM would warn about
    if not {"beta_schedule", "trained_betas"} & set(config):
        raise ValueError(f"scheduler {config.get('_class_name', '')} has no beta_schedule; DDIM inversion needs a variance-preserving diffusion")
    return DDIMScheduler.from_config({k: v for k, v in config.items() if k in known})


def _standard(config: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation (1, C or 1, 1, 1) that standardise a VAE's latents, from its config.

    ``latents_mean`` and ``latents_std`` per channel, and diffusers' conventions: ``shift_factor`` is another mean, and
    ``scaling_factor`` multiplies what is standardised.
    """
    mean = config.get("latents_mean") or [config.get("shift_factor") or 0.0]
    std = config.get("latents_std") or [1.0]
    mean, std = (torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1) for values in (mean, std))
    return mean, std / config.get("scaling_factor", 1.0)


def draw_noise(shape: tuple[int, ...], seed: int, indices) -> torch.Tensor:
    """Noise (n, *shape), one random generator an image, seeded by (seed, index): the same for every batch size and order."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed * 1_000_003 + int(i))) for i in indices])
