"""Frozen image encoders behind one interface."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import ViTModel


class Encoder:
    """A ViT in transformers' folder layout; the embedding is the class token after the last norm, not normalised."""

    def __init__(self, vit: ViTModel):
        self.vit = vit.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: Path) -> Encoder:
        return cls(ViTModel.from_pretrained(path, torch_dtype=torch.float32, add_pooling_layer=False, local_files_only=True))

    @property
    def dimension(self) -> int:
        return self.vit.config.hidden_size

    @torch.no_grad()
    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings (N, D) float32 of pictures (N, 3, H, W) in [-1, 1]."""
        return self.vit(images).last_hidden_state[:, 0].clone()
