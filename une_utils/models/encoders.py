"""Frozen image encoders behind one interface, chosen by the class that a folder's config names."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import CLIPModel, PreTrainedTokenizerFast, ViTMAEModel, ViTModel

CLASSES = {"vit": ViTModel, "clip": CLIPModel, "vit_mae": ViTMAEModel}  # model_type of config.json
TOKENS = 32  # a caption's length in tokens, padded


def embedding(tokens: torch.Tensor) -> torch.Tensor:
    """Class token and mean patch token side by side, (N, 2 width), from a ViT's last tokens (N, 1 + patches, width).

    As in the linear evaluation of DINOv2: the class token of a briefly trained ViT leaves out much that its patches hold.
    """
    return torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1)


class Encoder:
    """A ViT, a masked autoencoder or a CLIP in transformers' folder layout. Embeddings are not normalised.

    A ViT and a masked autoencoder give ``embedding``; CLIP gives its projection, the vector that it compares with texts.
    """

    def __init__(self, model: ViTModel | ViTMAEModel | CLIPModel, tokenizer: PreTrainedTokenizerFast | None = None):
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        if isinstance(model, ViTMAEModel):
            model.config.mask_ratio = 0.0  # it shuffles patches, which their mean does not see, and hides none

    @classmethod
    def load(cls, path: Path, untrained_seed: int | None = None) -> Encoder:
        """Read a model folder. With ``untrained_seed`` the weights are drawn anew: the control that has learned nothing.

        Raises:
            ValueError: the config names a class that no adapter is for.
        """
        kind = json.loads((path / "config.json").read_text()).get("model_type")
        if kind not in CLASSES:
            raise ValueError(f"{path / 'config.json'}: model_type '{kind}' is no encoder known here; expected one of {', '.join(CLASSES)}")
        extra = {"add_pooling_layer": False} if kind == "vit" else {}
        if untrained_seed is None:
            model = CLASSES[kind].from_pretrained(path, torch_dtype=torch.float32, local_files_only=True, **extra)
        else:
            with torch.random.fork_rng():
                torch.manual_seed(untrained_seed)
                model = CLASSES[kind](CLASSES[kind].config_class.from_pretrained(path, local_files_only=True), **extra)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True) if kind == "clip" else None
        return cls(model, tokenizer)

    @property
    def dimension(self) -> int:
        config = self.model.config
        return config.projection_dim if self.tokenizer else 2 * config.hidden_size

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings (N, D) float32 of pictures (N, 3, H, W) in [-1, 1]; a gradient of the pictures can be asked for."""
        if self.tokenizer:
            return self.model.get_image_features(pixel_values=images).pooler_output
        return embedding(self.model(images).last_hidden_state)

    @torch.no_grad()
    def embed_text(self, texts: list[str]) -> torch.Tensor:
        """Embeddings (N, D) float32 of texts, in the space of ``embed``.

        Raises:
            TypeError: this encoder has no text tower.
        """
        if not self.tokenizer:
            raise TypeError(f"{type(self.model).__name__} has no text tower; texts need a CLIP")
        return self.model.get_text_features(**tokenize(self.tokenizer, texts)).pooler_output


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> dict[str, torch.Tensor]:
    """``input_ids`` and ``attention_mask`` (N, 32) of texts; longer ones are cut."""
    batch = tokenizer(texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
