"""Pictures as the hub's models expect them: resized, cropped and normalised on tensors, by a model's own ``preprocessor_config.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

FILTERS = {2: "bilinear", 3: "bicubic"}  # numbers of PIL's resampling filters
WARPED = 384  # ConvNeXt's processor warps pictures from this size on; below, it resizes to more and crops


def resize(images: torch.Tensor, side: int, mode: str = "bilinear", levels: bool = False) -> torch.Tensor:
    """Square pictures (N, 3, H, H) resized to (N, 3, side, side) with PIL's filter ("bilinear" or "bicubic"), antialiased.

    The filter's weights are PIL's, up to its fixed point. PIL works on bytes: first along rows, then along columns, each time
    rounded and cut off. With ``levels`` values in 0..255 are treated so too, and differ from PIL's by a level in few places.
    Without, nothing is rounded, values differ from PIL's by about one level of 255, and bicubic may leave the range.
    """
    if images.shape[-2] != images.shape[-1]:
        raise ValueError(f"expected square pictures (N, 3, H, H), got {tuple(images.shape)}; crop them first")
    for size in ((images.shape[-2], side), (side, side)):
        if images.shape[-2:] != size:
            images = F.interpolate(images, size=size, mode=mode, antialias=True)
            images = (images + 0.5).floor().clamp(0, 255) if levels else images  # halves go up, as in PIL
    return images


@dataclass(frozen=True)
class Processor:
    """What a hub's image processor does to square pictures.

    Attributes:
        resized: side after resizing, pixels; None to leave pictures as they are.
        cropped: side of the central part that is kept; None for all.
        mode: filter of ``resize``.
        bytes: it resizes pictures of bytes, so values are rounded to levels of 0..255.
        scale: factor from levels to the values that mean and std belong to, usually 1 / 255.
        mean, std: per channel.
    """

    resized: int | None
    cropped: int | None
    mode: str
    bytes: bool
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def load(cls, folder: Path) -> Processor:
        """Read ``preprocessor_config.json``.

        Raises:
            ValueError: a key is missing, or a resampling filter has no counterpart here.
        """
        path = folder / "preprocessor_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        kind = config.get("image_processor_type", config.get("feature_extractor_type", ""))
        absent = [key for key in ("size", "resample") if config.get("do_resize", True) and key not in config]
        absent += [key for key in ("image_mean", "image_std") if config.get("do_normalize", True) and key not in config]
        if absent:
            raise ValueError(f"{path}: {', '.join(absent)} missing; expected an image processor's complete configuration")
        if config.get("resample", 2) not in FILTERS:
            raise ValueError(f"{path}: resample {config['resample']} is not known here; expected one of {FILTERS}")
        resized = _side(config["size"]) if config.get("do_resize", True) else None
        cropped = _side(config["crop_size"]) if config.get("do_center_crop", "crop_size" in config) else None
        if kind.startswith("ConvNext") and resized and resized < WARPED:
            resized, cropped = int(resized / config.get("crop_pct", 224 / 256)), resized
        normalised = config.get("do_normalize", True)
        return cls(
            resized, cropped, FILTERS[config.get("resample", 2)],
            bytes=not kind.startswith("DINOv3"),  # the one that divides by 255 before it resizes
            scale=config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0,
            mean=tuple(config["image_mean"]) if normalised else (0.0,) * 3, std=tuple(config["image_std"]) if normalised else (1.0,) * 3,
        )  # fmt: skip

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Pictures (N, 3, H, H) in [-1, 1] as the model's ``pixel_values`` (N, 3, h, h)."""
        levels = (images + 1) * 127.5
        if self.resized:
            levels = resize(levels.round() if self.bytes else levels, self.resized, self.mode, self.bytes)
        if self.cropped:
            start = (levels.shape[-1] - self.cropped) // 2
            if start < 0:
                raise ValueError(f"a crop of {self.cropped} pixels does not fit into pictures of {levels.shape[-1]}")
            levels = levels[..., start : start + self.cropped, start : start + self.cropped]
        mean, std = (torch.tensor(v, device=images.device).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (levels * self.scale - mean) / std


def _side(size: int | dict[str, int]) -> int:
    """Side of a square picture: a number, {"shortest_edge": n} or {"height": n, "width": n}."""
    if isinstance(size, int):
        return size
    sides = {size[key] for key in ("shortest_edge", "height", "width") if size.get(key)}
    if len(sides) != 1:
        raise ValueError(f"size {size} is not square; expected one number of pixels")
    return sides.pop()
