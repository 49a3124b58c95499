"""Frozen diffusion models behind one interface: pictures in [-1, 1] on one side, states of DDIM on the other."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel

from une_utils.models.ddim import Schedule, make_schedule


class Generator:
    """An unconditional latent diffusion model in diffusers' folder layout (``vae``, ``unet``, ``scheduler``).

    States are VAE latents, standardised per channel with the mean and deviation in the VAE's config. The object itself is
    the ``model`` that ``ddim.sample`` and ``ddim.invert`` call. On a CPU the network runs in bfloat16 (autocast) unless
    ``precise``; states stay float32.
    """

    def __init__(self, vae: AutoencoderKL, unet: UNet2DModel, scheduler: DDIMScheduler, precise: bool = False):
        self.vae = vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.unet = unet.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.scheduler, self.precise = scheduler, precise
        self._call = self.unet
        self._mean, self._std = (torch.tensor(v, dtype=torch.float32).view(1, -1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))

    @classmethod
    def load(cls, path: Path, precise: bool = False, untrained_seed: int | None = None) -> Generator:
        """Read a model folder. With ``untrained_seed`` the network's weights are drawn anew: the control whose inversion
        knows the VAE and the schedule but has learned nothing."""
        vae = AutoencoderKL.from_pretrained(path / "vae", torch_dtype=torch.float32, local_files_only=True)
        if untrained_seed is None:
            unet = UNet2DModel.from_pretrained(path / "unet", torch_dtype=torch.float32, local_files_only=True)
        else:
            with torch.random.fork_rng():
                torch.manual_seed(untrained_seed)
                unet = UNet2DModel.from_config(UNet2DModel.load_config(path / "unet", local_files_only=True))
        return cls(vae, unet, DDIMScheduler.from_pretrained(path / "scheduler", local_files_only=True), precise)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one state."""
        side = self.unet.config.sample_size
        return self.unet.config.in_channels, side, side

    def compile(self, batch: int) -> Generator:
        """Compile the network for batches of one size; pays off from about 100,000 network calls on (counted in images).

        Raises:
            RuntimeError: the compiled network disagrees with the plain one, which a faulty compiler must not hide.
        """
        x = draw_noise(self.shape, 0, range(batch))
        expected = self(x, 500)
        self._call = torch.compile(self.unet, dynamic=False)
        difference = ((self(x, 500) - expected).square().mean() / expected.square().mean()).sqrt().item()
        if difference > 0.05:  # bfloat16 rounding in another order gives about 0.01
            raise RuntimeError(f"the compiled network differs from the plain one by {difference:.0%}; run with TORCHDYNAMO_DISABLE=1")
        return self

    def schedule(self, steps: int) -> Schedule:
        return make_schedule(self.scheduler, steps)

    @torch.no_grad()
    def __call__(self, x: torch.Tensor, t: int) -> torch.Tensor:
        """Network output (N, C, H, W) float32 for states ``x`` at timestep ``t``."""
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=not self.precise):
            out = self._call(x, torch.tensor([t])).sample
        return out.float().contiguous()

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """x0 (N, 4, H/4, W/4), standardised, of pictures (N, 3, H, W) in [-1, 1]: the mode of the posterior."""
        x0 = self.vae.encode(images.contiguous(memory_format=torch.channels_last)).latent_dist.mean
        return ((x0 - self._mean) / self._std).contiguous()

    @torch.no_grad()
    def decode(self, x0: torch.Tensor) -> torch.Tensor:
        """Pictures (N, 3, H, W), about [-1, 1] and not clipped, of standardised VAE latents."""
        latents = (x0 * self._std + self._mean).contiguous(memory_format=torch.channels_last)
        return self.vae.decode(latents).sample.contiguous()


def draw_noise(shape: tuple[int, ...], seed: int, indices) -> torch.Tensor:
    """Noise (n, *shape), one random generator an image, seeded by (seed, index): the same for every batch size and order."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed * 1_000_003 + int(i))) for i in indices])
