"""Frozen image encoders behind one interface, chosen by the class that a folder's config names.

Two kinds of folders: those trained here, and those of the hub, which have a ``preprocessor_config.json`` and are used as their
authors mean them, each with its own image processor.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import (
    AutoConfig, AutoTokenizer, CLIPModel, ConvNextModel, Dinov2Model, DINOv3ConvNextModel, DINOv3ViTModel, PreTrainedConfig,
    PreTrainedModel, PreTrainedTokenizerFast, SwinModel, ViTMAEModel, ViTModel,
)  # fmt: skip

from une_utils.models.memory import Halving, default_device
from une_utils.models.processing import Processor

CLASSES = {  # model_type of config.json
    "vit": ViTModel, "clip": CLIPModel, "vit_mae": ViTMAEModel, "dinov2": Dinov2Model, "dinov3_vit": DINOv3ViTModel,
    "dinov3_convnext": DINOv3ConvNextModel, "convnext": ConvNextModel, "swin": SwinModel,
}  # fmt: skip
OURS = ("vit", "clip", "vit_mae")  # those that are trained here and read pictures in [-1, 1] as they are
TOKENS = 32  # a caption's length in tokens, padded


def embedding(tokens: torch.Tensor) -> torch.Tensor:
    """Class token and mean patch token side by side, (N, 2 width), from a ViT's last tokens (N, 1 + patches, width).

    As in the linear evaluation of DINOv2: the class token of a briefly trained ViT leaves out much that its patches hold.
    """
    return torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1)


class Encoder:
    """An image encoder in transformers' folder layout. Embeddings are not normalised.

    CLIP gives its projection, the vector that it compares with texts; OpenCLIP's checkpoints are of the same class. Of the
    hub's other models, a masked autoencoder gives the mean of all its tokens and the rest their pooled output, as in UNE's
    code (which leaves three in four patches masked at random; here none is). A ViT or a masked autoencoder trained here gives
    ``embedding``.

    Args:
        processor: the image processor of a model from the hub; None for a model trained here.
        device: where the model runs; embeddings come back to the CPU.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None = None, processor: Processor | None = None,
        device: torch.device | str = "cpu",
    ):  # fmt: skip
        self.device = torch.device(device)
        self.model, self.tokenizer, self.processor = model.eval().requires_grad_(False).to(self.device), tokenizer, processor
        self._embed = Halving(self._embedded)
        if isinstance(model, ViTMAEModel):
            model.config.mask_ratio = 0.0  # it shuffles patches, which their mean does not see, and hides none

    @classmethod
    def load(cls, path: Path, untrained_seed: int | None = None, device: torch.device | str | None = None) -> Encoder:
        """Read a model folder. With ``untrained_seed`` the weights are drawn anew: the control that has learned nothing.

        Args:
            device: where it runs; when missing, the first CUDA device for a model of the hub if there is one, else the CPU.

        Raises:
            ValueError: the config names a class that no adapter is for, or a model of the hub lacks its image processor.
        """
        kind = json.loads((path / "config.json").read_text()).get("model_type")
        if kind not in CLASSES:
            raise ValueError(f"{path / 'config.json'}: model_type '{kind}' is no encoder known here; expected one of {', '.join(CLASSES)}")
        from_hub = (path / "preprocessor_config.json").is_file()
        if not from_hub and kind not in OURS:
            raise ValueError(f"{path}: preprocessor_config.json is missing; a '{kind}' reads pictures through its own image processor")
        extra = {"add_pooling_layer": from_hub} if kind == "vit" else {}
        if untrained_seed is None:
            model = CLASSES[kind].from_pretrained(path, torch_dtype=torch.float32, local_files_only=True, use_safetensors=True, **extra)
        else:
            with torch.random.fork_rng():
                torch.manual_seed(untrained_seed)
                model = CLASSES[kind](CLASSES[kind].config_class.from_pretrained(path, local_files_only=True), **extra)
        tokenizer = _tokenizer(path, from_hub) if kind == "clip" else None
        return cls(model, tokenizer, Processor.load(path) if from_hub else None, device or (default_device() if from_hub else "cpu"))

    @property
    def dimension(self) -> int:
        return _dimension(self.model.config, self.processor is not None)

    @staticmethod
    def dimension_of(path: Path) -> int:
        """``dimension`` of a model folder, from its config alone."""
        return _dimension(AutoConfig.from_pretrained(path, local_files_only=True), (path / "preprocessor_config.json").is_file())

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings (N, D) float32 of pictures (N, 3, H, H) in [-1, 1], which a model of the hub resizes itself; gradients pass."""
        return self._embed(images)

    def _embedded(self, images: torch.Tensor) -> torch.Tensor:
        x = images.to(self.device)
        x = self.processor(x) if self.processor else x
        if self.tokenizer:
            return self.model.get_image_features(pixel_values=x).pooler_output.cpu()
        output = self.model(x)
        if not self.processor:
            return embedding(output.last_hidden_state).cpu()
        return (output.last_hidden_state.mean(1) if isinstance(self.model, ViTMAEModel) else output.pooler_output).cpu()

    @torch.no_grad()
    def embed_text(self, texts: list[str]) -> torch.Tensor:
        """Embeddings (N, D) float32 of texts, in the space of ``embed``.

        Raises:
            TypeError: this encoder has no text tower.
        """
        if not self.tokenizer:
            raise TypeError(f"{type(self.model).__name__} has no text tower; texts need a CLIP")
        batch = tokenize(self.tokenizer, texts, self.model.config.text_config.max_position_embeddings)
        return self.model.get_text_features(**{key: value.to(self.device) for key, value in batch.items()}).pooler_output.cpu()


def _dimension(config: PreTrainedConfig, from_hub: bool) -> int:
    if config.model_type == "clip":
        return config.projection_dim
    width = config.hidden_sizes[-1] if hasattr(config, "hidden_sizes") else config.hidden_size
    return width if from_hub else 2 * width


def _tokenizer(path: Path, from_hub: bool) -> PreTrainedTokenizerFast:
    """The tokenizer beside a CLIP: one word a token in those trained here, the class that its files name in the hub's."""
    if from_hub:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    return PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: list[str], length: int = TOKENS) -> dict[str, torch.Tensor]:
    """``input_ids`` and ``attention_mask`` (N, length) of texts; longer ones are cut."""
    batch = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
