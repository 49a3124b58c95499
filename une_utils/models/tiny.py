"""Tiny random models of the papers' classes, in the hub's folder layout: ``make train PROFILE=paper-tiny`` writes them.

They have learned nothing. They stand in for the real ones where neither the hub nor a GPU is at hand, so that everything
between a profile and a figure can be run; each has the scheduler, the configs and the tokenizer files of the model it stands
for, with small numbers. Pictures are 64 pixels wide, states (4, 8, 8).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import (
    AutoencoderKL, DDIMScheduler, DDPMPipeline, DDPMScheduler, DiTPipeline, DiTTransformer2DModel, EulerDiscreteScheduler,
    LatentConsistencyModelPipeline, LCMScheduler, LDMPipeline, PNDMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline,
    UNet2DConditionModel, UNet2DModel, VQModel,
)  # fmt: skip
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, ConvNextConfig, ConvNextModel,
    Dinov2Config, Dinov2Model, DINOv3ConvNextConfig, DINOv3ConvNextModel, DINOv3ViTConfig, DINOv3ViTModel, PreTrainedModel, SwinConfig,
    SwinModel, ViTMAEConfig, ViTMAEModel,
)  # fmt: skip

from une_utils.files import write_json
from une_utils.images.rendered import ATTRIBUTES
from une_utils.models.autoencoder import SemanticEncoder
from une_utils.models.guidance import NoisyClassifier
from une_utils.models.hspace import ImplicitShift

TEXT = 16  # width of a text encoder's states
SD_LEVELS = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, num_train_timesteps=1000)
VIT = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8)
CLIP_NORM = dict(image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711])
IMAGENET_NORM = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])


def tokenizer() -> CLIPTokenizer:
    """A tokenizer of CLIP's class: every byte, alone and at a word's end, and a few merges."""
    letters = sorted(ByteLevel.alphabet())
    merges = [("f", "a"), ("fa", "c"), ("fac", "e</w>"), ("m", "a"), ("ma", "n</w>")]
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=merges, model_max_length=77)


def _text_config(**changes) -> CLIPTextConfig:
    words = tokenizer()
    return CLIPTextConfig(
        vocab_size=len(words), hidden_size=TEXT, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=77,
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id, **changes,
    )  # fmt: skip


def _vae(**changes) -> AutoencoderKL:
    vae = AutoencoderKL(
        block_out_channels=[8, 8, 8, 8], latent_channels=4, layers_per_block=1, norm_num_groups=4, sample_size=64,
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4, mid_block_add_attention=False, **changes,
    )  # fmt: skip
    vae.decoder.conv_out.weight.data *= 0.07  # pictures with plain areas and others, which notebook 09 tells apart
    return vae


def _calm(network):
    """A random network whose output follows its input gently, as a trained one's does, so that fixed points converge."""
    network.conv_out.weight.data *= 0.2
    return network


def _unet(**changes) -> UNet2DConditionModel:
    return _calm(UNet2DConditionModel(**dict(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=[16, 16], norm_num_groups=4,
        down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"], up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
        cross_attention_dim=TEXT, attention_head_dim=8,
    ) | changes))  # fmt: skip


def _stable_diffusion(folder: Path, scheduler, kind: type = StableDiffusionPipeline, **unet) -> None:
    pipe = kind(
        vae=_vae(scaling_factor=0.18215), text_encoder=CLIPTextModel(_text_config()), tokenizer=tokenizer(), unet=_unet(**unet), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder)


def _sd15(folder: Path) -> None:
    _stable_diffusion(folder, PNDMScheduler(**SD_LEVELS, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False))


def _sd21v(folder: Path) -> None:
    scheduler = DDIMScheduler(**SD_LEVELS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction")
    _stable_diffusion(folder, scheduler)


def _lcm(folder: Path) -> None:
    _stable_diffusion(folder, LCMScheduler(**SD_LEVELS), LatentConsistencyModelPipeline, time_cond_proj_dim=16)


def _sdxl(folder: Path) -> None:
    pooled = 8
    unet = _unet(
        cross_attention_dim=2 * TEXT, addition_embed_type="text_time", addition_time_embed_dim=4, transformer_layers_per_block=1,
        projection_class_embeddings_input_dim=pooled + 6 * 4, use_linear_projection=True,
    )  # fmt: skip
    StableDiffusionXLPipeline(
        vae=_vae(scaling_factor=0.13025, force_upcast=True), text_encoder=CLIPTextModel(_text_config()), tokenizer=tokenizer(), unet=unet,
        text_encoder_2=CLIPTextModelWithProjection(_text_config(projection_dim=pooled)), tokenizer_2=tokenizer(),
        scheduler=EulerDiscreteScheduler(**SD_LEVELS, timestep_spacing="leading", steps_offset=1),
    ).save_pretrained(folder)  # fmt: skip


def _pixel_unet(**changes) -> UNet2DModel:
    return _calm(UNet2DModel(**dict(
        sample_size=16, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=[16, 16], norm_num_groups=4,
        down_block_types=["DownBlock2D", "AttnDownBlock2D"], up_block_types=["AttnUpBlock2D", "UpBlock2D"], attention_head_dim=8,
    ) | changes))  # fmt: skip


def _ddpm(folder: Path) -> None:
    DDPMPipeline(unet=_pixel_unet(), scheduler=DDPMScheduler(clip_sample=True)).save_pretrained(folder)


def _ldm(folder: Path) -> None:
    vqvae = VQModel(
        block_out_channels=[8, 8, 8], latent_channels=3, num_vq_embeddings=32, norm_num_groups=4, layers_per_block=1, mid_block_add_attention=False,
        down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3,
    )  # fmt: skip
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195, clip_sample=False)
    LDMPipeline(vqvae=vqvae, unet=_pixel_unet(), scheduler=scheduler).save_pretrained(folder)


def _dit(folder: Path) -> None:
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8, patch_size=2,
        num_embeds_ada_norm=1000, norm_num_groups=4,
    )  # fmt: skip
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False)
    pipe = DiTPipeline(transformer=transformer, vae=_vae(), scheduler=scheduler)
    pipe.register_to_config(id2label={"207": "golden retriever", "281": "tabby, tabby cat"})
    pipe.save_pretrained(folder)


def _encoder(folder: Path, model: PreTrainedModel, kind: str, **processor) -> None:
    model.save_pretrained(folder)
    common = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_processor_type": kind}
    write_json(folder / "preprocessor_config.json", common | processor)


def _clip(folder: Path) -> None:
    model = CLIPModel(CLIPConfig(text_config=_text_config().to_dict(), vision_config=VIT, projection_dim=12))
    size = dict(size={"shortest_edge": 32}, crop_size=dict(height=32, width=32), do_center_crop=True)
    _encoder(folder, model, "CLIPImageProcessor", **size, resample=3, **CLIP_NORM)
    tokenizer().save_pretrained(folder)


def _dinov2(folder: Path) -> None:
    model = Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8))
    size = dict(size={"shortest_edge": 36}, crop_size=dict(height=32, width=32), do_center_crop=True)
    _encoder(folder, model, "BitImageProcessor", **size, resample=3, do_convert_rgb=True, **IMAGENET_NORM)


def _dinov3(folder: Path) -> None:
    model = DINOv3ViTModel(DINOv3ViTConfig(**VIT, num_register_tokens=2))
    _encoder(folder, model, "DINOv3ViTImageProcessorFast", size=dict(height=32, width=32), resample=2, **IMAGENET_NORM)


def _dinov3_convnext(folder: Path) -> None:
    model = DINOv3ConvNextModel(DINOv3ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1]))
    _encoder(folder, model, "DINOv3ViTImageProcessorFast", size=dict(height=32, width=32), resample=2, **IMAGENET_NORM)


def _mae(folder: Path) -> None:
    _encoder(folder, ViTMAEModel(ViTMAEConfig(**VIT)), "ViTImageProcessor", size=dict(height=32, width=32), resample=2, **IMAGENET_NORM)


def _convnext(folder: Path) -> None:
    model = ConvNextModel(ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1]))
    _encoder(folder, model, "ConvNextImageProcessor", size={"shortest_edge": 32}, crop_pct=0.875, resample=3, **IMAGENET_NORM)


def _swin(folder: Path) -> None:
    model = SwinModel(SwinConfig(image_size=32, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4))
    _encoder(folder, model, "ViTImageProcessor", size=dict(height=32, width=32), resample=3, **IMAGENET_NORM)


def _recorded(folder: Path, recipe: dict[str, Any] | None = None) -> None:
    """What a training leaves beside the weights: its log, and the recipe."""
    (folder / "training.csv").write_text("step,seconds\n1,0.1\n")
    if recipe:
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def _shift(folder: Path) -> None:
    """f_t of Asyrp for the bottleneck of tiny/sd15."""
    training = dict(t_edit=400, groups=4, batch=2, steps=1, learning_rate=1e-3, clip_weight=0.8, l1_weight=3.0, smallest_crop=0.8)
    ImplicitShift(16, 5, groups=4, t_edit=400, source=["a face"], target=["a smiling face"]).save_pretrained(folder)
    _recorded(folder, {"shift": training})


def _classifier(folder: Path) -> None:
    NoisyClassifier((4, 8, 8), list(ATTRIBUTES), widths=(8, 16), groups=4).save_pretrained(folder)
    _recorded(folder)


def _autoencoder(folder: Path) -> None:
    """A diffusion autoencoder on the latents of tiny/sd15."""
    unet = _pixel_unet(sample_size=8, in_channels=4, out_channels=4, class_embed_type="identity", resnet_time_scale_shift="scale_shift")
    unet.save_pretrained(folder / "unet")
    SemanticEncoder("sd15", in_channels=4, size=8, channels=[8, 8], dimension=8, embedding=64, groups=4).save_pretrained(folder / "encoder")
    DDIMScheduler(**SD_LEVELS, clip_sample=False, prediction_type="v_prediction").save_pretrained(folder / "scheduler")
    _recorded(folder)


def _fine_tuned(folder: Path) -> None:
    """DiffusionCLIP: the U-Net of tiny/sd15 in another state."""
    _unet().save_pretrained(folder / "unet")
    _recorded(folder)


GENERATORS: dict[str, Callable[[Path], None]] = {
    "tiny/sd15": _sd15, "tiny/sd21v": _sd21v, "tiny/lcm": _lcm, "tiny/sdxl": _sdxl, "tiny/ddpm": _ddpm, "tiny/ldm": _ldm, "tiny/dit": _dit,
}  # fmt: skip
ENCODERS: dict[str, Callable[[Path], None]] = {
    "tiny/clip": _clip, "tiny/dinov2": _dinov2, "tiny/dinov3": _dinov3, "tiny/dinov3-convnext": _dinov3_convnext, "tiny/mae": _mae,
    "tiny/convnext": _convnext, "tiny/swin": _swin,
}  # fmt: skip
EDITORS: dict[str, Callable[[Path], None]] = {
    "tiny/sd15-smiling": _shift, "tiny/sd15-classifier": _classifier, "tiny/sd15-autoencoder": _autoencoder, "tiny/sd15-clip-smiling": _fine_tuned,
}  # fmt: skip
MODELS = GENERATORS | ENCODERS | EDITORS  # the name of each is its path in a profile


def write(name: str, root: Path, seed: int = 0) -> Path:
    """Write one model below ``root`` and return its folder; the same seed gives the same weights.

    Args:
        name: a key of ``MODELS``.
    """
    part, folder = root / f"{name}.part", root / name
    shutil.rmtree(part, ignore_errors=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        MODELS[name](part)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)  # a folder with this name is complete
    return folder
