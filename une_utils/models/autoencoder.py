"""A diffusion autoencoder on VAE latents (Preechakul et al., "Diffusion Autoencoders: Toward a Meaningful and Decodable
Representation", CVPR 2022).

A semantic encoder turns x0 into z, a vector, and a U-Net that is told z predicts the noise. So a picture has two codes: z, which is
meant to hold what can be named, and x_T, DDIM's inverted noise given z, which holds the rest. An edit moves z along the direction of
a linear probe and keeps x_T.

What differs from the paper: it works on the VAE latents of another generator, z enters through the time embedding (scale and shift of
the group norms, as the paper's AdaGN, which has a scale of its own for z), and no second diffusion model draws z. The shipped one
predicts v, not eps: where noise is strong, a wrong x0 costs eps next to nothing, so that in the few steps that a laptop allows z learned
colours and little else.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import ConfigMixin, DDIMScheduler, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from torch import nn

from une_utils.models.ddim import Inversion, Model, Schedule, invert, make_schedule, sample
from une_utils.models.generators import Generator, ddim_scheduler


class SemanticEncoder(ModelMixin, ConfigMixin):
    """z (N, D) of x0: 3x3 convolutions that halve the side, then one linear layer. ``save_pretrained`` and ``from_pretrained`` are diffusers'.

    Args:
        generator: folder, beside the autoencoder's own, of the generator whose VAE it uses.
        in_channels, size: of x0 (N, C, H, W).
        channels: of the convolutions, at H, H / 2, H / 4 ...
        dimension: D.
        embedding: width of the U-Net's time embedding, which z is added to.
        groups: of the group norms.
    """

    @register_to_config
    def __init__(self, generator: str, in_channels: int, size: int, channels: Sequence[int], dimension: int, embedding: int, groups: int = 16):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, channels[0], 3, padding=1)]
        for narrow, wide in pairwise(channels):
            layers += [nn.GroupNorm(groups, narrow), nn.SiLU(), nn.Conv2d(narrow, wide, 3, padding=1, stride=2)]
            layers += [nn.GroupNorm(groups, wide), nn.SiLU(), nn.Conv2d(wide, wide, 3, padding=1)]
        side = size >> (len(channels) - 1)
        # flattened, not averaged: a smile is a matter of where
        self.body = nn.Sequential(*layers, nn.GroupNorm(groups, channels[-1]), nn.SiLU(), nn.Flatten())
        self.last = nn.Linear(channels[-1] * side**2, dimension)
        self.condition = nn.Linear(dimension, embedding)

    def forward(self, x0: torch.Tensor) -> torch.Tensor:
        """z (N, D) of standardised VAE latents (N, C, H, W). ``condition`` turns it into what the U-Net's time embedding is added to."""
        return self.last(self.body(x0))


class DiffusionAutoencoder:
    """A frozen diffusion autoencoder: x0 to (z, x_T) and back. ``generator`` turns pictures into x0 and x0 into pictures.

    On a CPU the U-Net runs in bfloat16 (autocast) unless the generator is ``precise``; z is always float32.
    """

    def __init__(self, generator: Generator, unet: UNet2DModel, encoder: SemanticEncoder, scheduler: DDIMScheduler):
        if unet.config.class_embed_type != "identity":
            kind = unet.config.class_embed_type
            raise ValueError(f"the U-Net has class_embed_type '{kind}', expected 'identity': it must take z's embedding as class_labels")
        self.generator, self.scheduler = generator, scheduler
        self.unet, self.encoder = (net.eval().requires_grad_(False) for net in (unet, encoder))

    @classmethod
    def load(cls, path: Path, precise: bool = False) -> DiffusionAutoencoder:
        """Read a model folder with ``unet``, ``encoder`` and ``scheduler``, and the generator beside it that the encoder's config names."""
        options = {"torch_dtype": torch.float32, "local_files_only": True}
        encoder = SemanticEncoder.from_pretrained(path / "encoder", **options)
        generator = Generator.load(path.parent / encoder.config.generator, precise)
        scheduler = ddim_scheduler(DDIMScheduler.load_config(path / "scheduler", local_files_only=True))
        return cls(generator, UNet2DModel.from_pretrained(path / "unet", **options), encoder, scheduler)

    def schedule(self, steps: int) -> Schedule:
        return make_schedule(self.scheduler, steps)

    @torch.no_grad()
    def encode(self, x0: torch.Tensor) -> torch.Tensor:
        """z (N, D) of x0 (N, C, H, W)."""
        return self.encoder(x0)

    def model(self, z: torch.Tensor) -> Model:
        """What ``ddim.sample`` and ``ddim.invert`` call, given z (N, D) of the N states."""
        told = self.encoder.condition(z)

        def predict(x: torch.Tensor, t: int) -> torch.Tensor:
            if len(x) != len(told):
                raise ValueError(f"{len(x)} states and {len(told)} rows of z; expected one row for each state")
            with torch.autocast("cpu", torch.bfloat16, enabled=not self.generator.precise):
                return self.unet(x, torch.tensor([t]), class_labels=told).sample.float().contiguous()

        return predict

    def invert(self, x0: torch.Tensor, z: torch.Tensor, schedule: Schedule, fixed_point: int = 0, **options) -> Inversion:
        """``ddim.invert`` given z (N, D): the stochastic code x_T (paper, Eq. 8). Options are its own."""
        # rows of z belong to states, so no state may leave the batch when it has converged
        return invert(self.model(z), x0, schedule, fixed_point=fixed_point, tolerance=-1.0, **options)

    def decode(self, noise: torch.Tensor, z: torch.Tensor, schedule: Schedule) -> torch.Tensor:
        """x0 (N, C, H, W) that DDIM samples from x_T given z (paper, Section 3.1)."""
        return sample(self.model(z), noise, schedule)
