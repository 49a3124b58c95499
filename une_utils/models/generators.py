"""Frozen diffusion models behind one interface: pictures in [-1, 1] on one side, states of DDIM on the other."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, LCMScheduler, UNet2DModel
from tqdm.auto import tqdm

from une_utils.models.ddim import Schedule, invert, make_schedule, sample

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
        if vae:
            self._mean, self._std = (torch.tensor(v, dtype=torch.float32).view(1, -1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))

    @classmethod
    def load(cls, path: Path, precise: bool = False, untrained_seed: int | None = None) -> Generator:
        """Read a model folder. With ``untrained_seed`` the network's weights are drawn anew: the control whose inversion
        knows the VAE and the schedule but has learned nothing."""
        vae = None
        if (path / "vae").is_dir():
            vae = AutoencoderKL.from_pretrained(path / "vae", torch_dtype=torch.float32, local_files_only=True)
        if untrained_seed is None:
            unet = UNet2DModel.from_pretrained(path / "unet", torch_dtype=torch.float32, local_files_only=True)
        else:
            with torch.random.fork_rng():
                torch.manual_seed(untrained_seed)
                unet = UNet2DModel.from_config(UNet2DModel.load_config(path / "unet", local_files_only=True))
        config = DDIMScheduler.load_config(path / "scheduler", local_files_only=True)
        known = inspect.signature(DDIMScheduler).parameters  # an LCM's config has keys that DDIM would warn about
        return cls(vae, unet, DDIMScheduler.from_config({k: v for k, v in config.items() if k in known}), precise)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one state."""
        side = self.unet.config.sample_size
        return self.unet.config.in_channels, side, side

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

    def noise_of(self, images: np.ndarray, steps: int, batch: int = 125, progress: bool = False) -> np.ndarray:
        """Inverted noise (N, D) float32 of pictures (N, 3, H, W) in [-1, 1]: plain DDIM, the convention "target"."""
        schedule, parts = self.schedule(steps), []
        for x in tqdm(torch.as_tensor(images).split(batch), desc="invert", unit="batch", disable=not progress):
            parts.append(invert(self, self.encode(x), schedule).latents.flatten(1))
        return torch.cat(parts).numpy()

    def draw(self, latents: np.ndarray, steps: int, batch: int = 125, progress: bool = False) -> np.ndarray:
        """Pictures (N, 3, H, W) float32, clipped to [-1, 1], that DDIM samples from noise (N, D) or (N, C, H, W)."""
        schedule, parts = self.schedule(steps), []
        states = torch.as_tensor(np.asarray(latents), dtype=torch.float32).reshape(-1, *self.shape)
        for noise in tqdm(states.split(batch), desc="draw", unit="batch", disable=not progress):
            parts.append(self.decode(sample(self, noise, schedule)).clamp(-1, 1))
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


def draw_noise(shape: tuple[int, ...], seed: int, indices) -> torch.Tensor:
    """Noise (n, *shape), one random generator an image, seeded by (seed, index): the same for every batch size and order."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed * 1_000_003 + int(i))) for i in indices])
