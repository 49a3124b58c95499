"""How far apart two pictures look: what Asyrp chooses its editing interval by (``hspace.perceptual_curves``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from une_utils.models.encoders import Encoder


class Perceptual(NamedTuple):
    """A distance of pictures.

    Attributes:
        label: what it is, for an axis.
        distance: two batches of pictures (N, 3, H, W) in [-1, 1] -> (N,), 0 for equal ones.
    """

    label: str
    distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def perceptual(kind: str | None, encoder: Encoder, name: str) -> Perceptual:
    """LPIPS with AlexNet, as Asyrp has it, where a profile says ``perceptual: lpips``; else cosine distance in an encoder's features.

    LPIPS needs the package ``lpips`` and, at its first use, network: its weights are no part of this repository.

    Raises:
        ImportError: LPIPS is asked for and not installed.
    """
    return _lpips() if kind == "lpips" else Perceptual(f"cosine distance in {name}'s features", lambda x, y: _cosine(encoder, x, y))


def _cosine(encoder: Encoder, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    a, b = (F.normalize(encoder.embed(pictures).double(), dim=1) for pictures in (x, y))
    return 0.5 * (a - b).square().sum(1)  # 1 - cosine, exact for nearly equal pictures too


def _lpips() -> Perceptual:
    try:
        from lpips import LPIPS
    except ImportError:
        raise ImportError("the profile asks for LPIPS, and the package lpips is not installed: pip install lpips, or leave out perceptual") from None
    network = LPIPS(net="alex", verbose=False).eval().requires_grad_(False)
    return Perceptual("LPIPS (AlexNet)", lambda x, y: network(x.float(), y.float()).flatten())
