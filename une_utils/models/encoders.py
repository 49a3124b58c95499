"""Frozen image encoders behind one interface."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import ViTModel


def embedding(tokens: torch.Tensor) -> torch.Tensor:
    """Class token and mean patch token side by side, (N, 2 width), from a ViT's last tokens (N, 1 + patches, width).

    As in the linear evaluation of DINOv2: the class token of a briefly trained ViT leaves out much that its patches hold.
    """
    return torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1)


class Encoder:
    """A ViT in transformers' folder layout; see ``embedding``. Embeddings are not normalised."""

    def __init__(self, vit: ViTModel):
        self.vit = vit.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: Path) -> Encoder:
        return cls(ViTModel.from_pretrained(path, torch_dtype=torch.float32, add_pooling_layer=False, local_files_only=True))

    @property
    def dimension(self) -> int:
        return 2 * self.vit.config.hidden_size

    @torch.no_grad()
    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings (N, D) float32 of pictures (N, 3, H, W) in [-1, 1]."""
        return embedding(self.vit(images).last_hidden_state)
