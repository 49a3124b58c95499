"""What is to be seen in a picture: judges of edits that never saw the latents that were edited."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import ResNetForImageClassification

from une_utils.images.captions import prompts
from une_utils.models.encoders import Encoder


class Oracle:
    """A ResNet that reads the renderer's factors from pictures of rendered faces, in standard deviations.

    The stem's max pooling is left out: of 64 pixels it would leave 16, and an earring has four.
    """

    def __init__(self, net: ResNetForImageClassification):
        net.resnet.embedder.pooler = torch.nn.Identity()
        self.net = net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.names = tuple(net.config.id2label[i] for i in range(net.config.num_labels))

    @classmethod
    def load(cls, path: Path) -> Oracle:
        return cls(ResNetForImageClassification.from_pretrained(path, torch_dtype=torch.float32, local_files_only=True))

    @torch.no_grad()
    def read(self, images: torch.Tensor, batch: int = 250) -> torch.Tensor:
        """Factors (N, F) of pictures (N, 3, 64, 64), clipped to [-1, 1] first; columns as ``names``."""
        parts = images.clamp(-1, 1).split(batch)
        return torch.cat([self.net(part.contiguous(memory_format=torch.channels_last)).logits for part in parts])


def zero_shot_scores(clip: Encoder, images: torch.Tensor, attributes: tuple[str, ...]) -> np.ndarray:
    """Scores (N, A) of CLIP's zero-shot classifier, positive where the prompt that has the attribute is nearer.

    Cosine to "a face with glasses" minus cosine to "a face without glasses", and so on (``captions.prompts``).
    """
    pictures = torch.nn.functional.normalize(torch.cat([clip.embed(part) for part in images.split(250)]), dim=1)
    pairs = [prompts(name) for name in attributes]
    true, false = (torch.nn.functional.normalize(clip.embed_text([pair[side] for pair in pairs]), dim=1) for side in (0, 1))
    return (pictures @ (true - false).T).numpy()
