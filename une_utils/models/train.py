"""Train the models of a profile from their recipes: ``python -m une_utils.models.train --profile mini``.

A recipe lies beside the weights it makes. Models that are already there are left alone; ``--force`` makes them again.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from diffusers import AutoencoderKL, DDIMScheduler, LCMScheduler, SchedulerMixin, UNet2DModel
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from tqdm.auto import tqdm
from transformers import (
    CLIPConfig, CLIPModel, PreTrainedTokenizerFast, ResNetConfig, ResNetForImageClassification, ViTConfig, ViTMAEConfig,
    ViTMAEForPreTraining, ViTModel,
)  # fmt: skip

from une_utils.files import json_digest, model_hash, write_json
from une_utils.images import open_images, to_model_range, train_mask
from une_utils.images.captions import FRAMES, captions, vocabulary
from une_utils.images.rendered import ATTRIBUTES, BLUE, FACTORS, RenderedFaces, render
from une_utils.models import tiny
from une_utils.models.autoencoder import DiffusionAutoencoder, SemanticEncoder
from une_utils.models.ddim import Schedule, sample, to_eps
from une_utils.models.encoders import TOKENS, Encoder, tokenize
from une_utils.models.generators import Generator, draw_noise
from une_utils.models.guidance import NoisyClassifier
from une_utils.models.hspace import Bottleneck, ImplicitShift, edit
from une_utils.models.losses import (
    ClipNet, DinoNet, ShiftChain, clip_loss, consistency_loss, diffusionclip_loss, dino_loss, hspace_loss, noise_loss,
    noisy_classifier_loss, reconstruction_loss, regression_loss, vae_loss,
)  # fmt: skip
from une_utils.models.oracle import Oracle, zero_shot_scores
from une_utils.models.training import Loss, train
from une_utils.settings import MODELS, ProfileError, cache_root, load_profile

HELD_OUT = 500  # pictures for the numbers of a model card
EDITED = 50  # of them, to be edited for the card of a shift or of a fine-tuned copy
DECODED_BACK = 100  # of them, to be encoded and decoded for the card of a diffusion autoencoder
NOISY = (100, 400, 700)  # timesteps at which a classifier of noisy states is measured


def held_out_images(recipe: dict) -> np.ndarray:
    """Pictures (500, H, W, 3) uint8 that no training step saw: rendered ones of the next seed, or of the profile's own."""
    spec = recipe["images"]
    if "rendered" in spec:
        return RenderedFaces(HELD_OUT, size=spec["size"], seed=spec["seed"] + 1).load(range(HELD_OUT))
    if "left_out_of" in spec:
        source = open_images(load_profile(spec["left_out_of"]))
        return source.load(range(min(HELD_OUT, len(source))))
    profile = load_profile(spec["train_split_of"])
    source = open_images(profile)
    return source.load(np.flatnonzero(~train_mask(source, profile.train_fraction, profile.seed))[:HELD_OUT])


def training_images(recipe: dict) -> np.ndarray:
    """Pictures (N, H, W, 3) uint8 of a recipe: rendered ones of another seed than any profile's, a profile's train split, or
    those that a profile left out when it drew ``count`` of many.

    They are kept in the cache, since drawing 60,000 faces takes minutes.
    """
    spec = recipe["images"]
    if "rendered" in spec:
        source = RenderedFaces(spec["rendered"], size=spec["size"], seed=spec["seed"])
        path = cache_root() / "train" / f"rendered-{spec['size']}-{spec['rendered']}-{spec['seed']}.npy"
        rows = np.arange(len(source))
    elif "left_out_of" in spec:
        profile = load_profile(spec["left_out_of"])
        source = open_images(load_profile(spec["left_out_of"], {"images.count": None}))
        rows = np.flatnonzero(~np.isin(source.ids, open_images(profile).ids))
        path = cache_root() / "train" / f"{profile.name}-{source.size}-{len(rows)}-left-out-{profile.seed}.npy"
    else:
        profile = load_profile(spec["train_split_of"])
        source = open_images(profile)
        rows = np.flatnonzero(train_mask(source, profile.train_fraction, profile.seed))
        path = cache_root() / "train" / f"{profile.name}-{source.size}-{len(rows)}-{profile.seed}.npy"
    chunks = np.array_split(rows, max(1, len(rows) // 2000))
    return np.load(_kept(path, lambda: np.concatenate([source.load(chunk) for chunk in chunks])), mmap_mode="r")


def _kept(path: Path, make: Callable[[], np.ndarray]) -> Path:
    """An array's file in the cache, made where it is not there; who stops while it is made leaves no half of it."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.npy")
        np.save(part, make())
        part.replace(path)
    return path


def train_autoencoder(folder: Path, recipe: dict, images: np.ndarray, work: Path) -> AutoencoderKL:
    """AutoencoderKL with f = 4; its config ends up with the mean and deviation of its latents per channel."""
    spec = recipe["vae"]
    torch.manual_seed(recipe["seed"])
    vae = AutoencoderKL(
        block_out_channels=spec["channels"], latent_channels=spec["latents"], layers_per_block=1, norm_num_groups=spec["groups"],
        mid_block_add_attention=False, sample_size=images.shape[1],
        down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3,
    )  # fmt: skip
    with torch.no_grad():  # start with little posterior noise: under unit noise the decoder may learn to ignore the latents
        vae.quant_conv.bias[spec["latents"] :] = spec["log_variance"]
    loss = vae_loss(
        vae, images, batch=spec["batch"], full_share=spec["full_share"], crop=32, kl=spec["kl"], square=spec["square"], flip=recipe["flip"],
    )  # fmt: skip
    ema = train(
        f"{folder.name} vae", vae, loss, steps=spec["steps"], learning_rate=spec["learning_rate"], ema_decay=spec["ema"],
        seed=recipe["seed"], checkpoint=work / "vae.safetensors", log=folder / "vae-training.csv",
    )  # fmt: skip
    latents = encode_latents(ema, images[:4000])
    ema.register_to_config(latents_mean=latents.mean((0, 2, 3)).tolist(), latents_std=latents.std((0, 2, 3)).tolist(), scaling_factor=1.0)
    ship(ema, folder / "vae")
    return ema.float()


def ship(model, folder: Path) -> None:
    """Save weights as float16 safetensors (the model itself is rounded to float16), the config last.

    A config therefore means that the weights are there, whenever the process is stopped.
    """
    part = folder / ".part"
    model.half().save_pretrained(part)
    config = json.loads((part / "config.json").read_text())
    config.pop("_name_or_path", None)  # of a fine-tuned model: a path on this machine
    (part / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for file in sorted(part.iterdir(), key=lambda f: f.name == "config.json"):
        file.replace(folder / file.name)
    part.rmdir()


@torch.no_grad()
def encode_latents(vae: AutoencoderKL, images: np.ndarray, batch: int = 100) -> torch.Tensor:
    """Posterior modes (N, 4, H/4, W/4) of pictures, not standardised."""
    parts = []
    for start in range(0, len(images), batch):
        x = torch.from_numpy(to_model_range(images[start : start + batch])).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(vae.encode(x).latent_dist.mean.float())
    return torch.cat(parts)


def train_latent_diffusion(folder: Path, recipe: dict, images: np.ndarray, work: Path) -> None:
    """The autoencoder (or a copy of another model's, ``vae_of``), then a U-Net on its standardised latents.

    ``fine_tune`` starts the U-Net from another model's; ``only`` keeps the training pictures with these attributes.
    """
    if "vae_of" in recipe:
        shutil.copytree(MODELS / recipe["vae_of"] / "vae", folder / "vae", dirs_exist_ok=True)
    if (folder / "vae" / "config.json").is_file():
        vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    else:
        vae = train_autoencoder(folder, recipe, images, work)
    x0 = standardised_latents(folder, vae, images, recipe["flip"])
    if "only" in recipe:
        source = _rendered(recipe)
        columns = [source.attributes[:, source.attribute_names.index(name)] == value for name, value in recipe["only"].items()]
        x0 = x0[torch.from_numpy(np.logical_and.reduce(columns))]
    _train_unet(folder, recipe, x0, work)


def standardised_latents(folder: Path, vae: AutoencoderKL, images: np.ndarray, flip: bool) -> torch.Tensor:
    """x0 (N, 4, H/4, W/4) of pictures and, with ``flip``, of their mirror images.

    They take minutes, so they are kept in the cache, under the hash of the autoencoder: models that share one share them.
    """
    cached = cache_root() / "train" / f"latents-{model_hash(folder / 'vae')[:16]}-{len(images)}{'-flip' if flip else ''}.npy"
    sides = [images, images[:, :, ::-1]] if flip else [images]
    latents = np.load(_kept(cached, lambda: torch.cat([encode_latents(vae, side) for side in sides]).numpy()))
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    return (torch.from_numpy(latents) - mean) / std


def train_pixel_diffusion(folder: Path, recipe: dict, images: np.ndarray, work: Path) -> None:
    """A U-Net on pictures themselves, made smaller by averaging over squares, and with ``flip`` on their mirror images."""
    factor = images.shape[1] // recipe["unet"]["side"]
    small = images.reshape(len(images), -1, factor, images.shape[2] // factor, factor, 3)
    parts = [small[k : k + 5000].mean((2, 4), dtype=np.float32) / 127.5 - 1 for k in range(0, len(small), 5000)]
    x0 = torch.from_numpy(np.concatenate(parts)).permute(0, 3, 1, 2).contiguous()
    _train_unet(folder, recipe, torch.cat([x0, x0.flip(3)]) if recipe["flip"] else x0, work)


def _train_unet(folder: Path, recipe: dict, x0: torch.Tensor, work: Path) -> None:
    spec = recipe["unet"]
    scheduler = DDIMScheduler(**recipe["scheduler"])
    torch.manual_seed(recipe["seed"])
    if "fine_tune" in recipe:
        unet = UNet2DModel.from_pretrained(MODELS / recipe["fine_tune"] / "unet", torch_dtype=torch.float32)
    else:
        unet = _new_unet(spec, x0)
    unet = unet.to(memory_format=torch.channels_last)
    loss = noise_loss(
        torch.compile(unet) if spec["compile"] else unet, x0, scheduler.alphas_cumprod, batch=spec["batch"],
        prediction_type=scheduler.config.prediction_type,
    )  # fmt: skip
    _finish_unet(folder, recipe, unet, loss, scheduler, work)


def _new_unet(spec: dict, x0: torch.Tensor, **options) -> UNet2DModel:
    attention = spec.get("attention", [False, True, True])
    return UNet2DModel(
        sample_size=x0.shape[-1], in_channels=x0.shape[1], out_channels=x0.shape[1], layers_per_block=1,
        block_out_channels=spec["channels"], norm_num_groups=spec.get("groups", 16), attention_head_dim=spec.get("head", 32),
        down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attention],
        up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)], **options,
    )  # fmt: skip


def _finish_unet(folder: Path, recipe: dict, unet: UNet2DModel, loss: Loss, scheduler: SchedulerMixin, work: Path) -> None:
    """Minimise the loss; ship the scheduler, the average of the U-Net and, as ``unet-00050``, that after every step of ``keep``."""
    spec = recipe["unet"]
    ema = train(
        f"{folder.name} unet", unet, loss, steps=spec["steps"], learning_rate=spec["learning_rate"], ema_decay=spec["ema"],
        seed=recipe["seed"], checkpoint=work / "unet.safetensors", log=folder / "unet-training.csv",
        keep=spec.get("keep", ()), keeper=lambda step, net: ship(copy.deepcopy(net), folder / f"unet-{step:05d}"),
    )  # fmt: skip
    scheduler.save_pretrained(folder / "scheduler")
    ship(ema, folder / "unet")


def train_consistency(folder: Path, recipe: dict, images: np.ndarray, work: Path) -> None:
    """A copy of the teacher, distilled to jump along the teacher's DDIM path; sampled with diffusers' LCMScheduler."""
    spec, source = recipe["unet"], MODELS / recipe["teacher"]
    shutil.copytree(source / "vae", folder / "vae", dirs_exist_ok=True)
    teacher = Generator.load(source)
    student = UNet2DModel.from_pretrained(source / "unet", torch_dtype=torch.float32).to(memory_format=torch.channels_last)
    loss = consistency_loss(
        torch.compile(student) if spec["compile"] else student, teacher.unet,
        standardised_latents(folder, teacher.vae, images, recipe["flip"]), teacher.schedule(spec["teacher_steps"]), batch=spec["batch"],
    )  # fmt: skip
    scheduler = LCMScheduler.from_config(teacher.scheduler.config, original_inference_steps=spec["teacher_steps"])
    _finish_unet(folder, recipe, student, loss, scheduler, work)


def train_diffusion_autoencoder(folder: Path, recipe: dict, images: np.ndarray, work: Path) -> None:
    """A semantic encoder and a U-Net that is told what it says, from scratch and together, on the latents of another generator."""
    spec, source = recipe["unet"], MODELS / recipe["generator"]
    generator = Generator.load(source)
    x0 = standardised_latents(source, generator.vae, images, recipe["flip"])
    torch.manual_seed(recipe["seed"])
    unet = _new_unet(spec, x0, class_embed_type="identity", resnet_time_scale_shift="scale_shift").to(memory_format=torch.channels_last)
    encoder = SemanticEncoder(
        generator=recipe["generator"], in_channels=x0.shape[1], size=x0.shape[-1], embedding=unet.time_embedding.linear_2.out_features,
        **recipe["encoder"],
    )  # fmt: skip
    scheduler = DDIMScheduler(**recipe["scheduler"])
    loss = noise_loss(
        torch.compile(unet) if spec["compile"] else unet, x0, scheduler.alphas_cumprod, batch=spec["batch"],
        prediction_type=scheduler.config.prediction_type, condition=lambda x: encoder.condition(encoder(x)),
    )  # fmt: skip
    ema = train(
        folder.name, torch.nn.ModuleDict({"unet": unet, "encoder": encoder}), loss, steps=spec["steps"], learning_rate=spec["learning_rate"],
        ema_decay=spec["ema"], seed=recipe["seed"], checkpoint=work / "autoencoder.safetensors", log=folder / "training.csv",
    )  # fmt: skip
    scheduler.save_pretrained(folder / "scheduler")
    ship(ema["unet"], folder / "unet")
    ship(ema["encoder"], folder / "encoder")


@torch.no_grad()
def measure_autoencoder(folder: Path, recipe: dict) -> dict[str, float]:
    """PSNR in dB of held-out pictures after the round trip through z and inverted noise, and through z and drawn noise, and the area
    under the curve of linear probes on z, fitted on half of the pictures and read on the other, mean over the attributes."""
    autoencoder, source = DiffusionAutoencoder.load(folder), _rendered(recipe, held_out=True)
    generator, images = autoencoder.generator, torch.from_numpy(to_model_range(source.load(range(len(source)))))
    x0 = _encoded(generator, images)
    z = autoencoder.encode(x0)
    schedule, pictures = autoencoder.schedule(recipe["path"]), images[:DECODED_BACK]
    inverted = autoencoder.invert(x0[:DECODED_BACK], z[:DECODED_BACK], schedule).latents
    psnr = {}
    for name, noise in {"round_trip": inverted, "drawn_noise": draw_noise(generator.shape, 0, range(len(pictures)))}.items():
        decoded = generator.decode(autoencoder.decode(noise, z[:DECODED_BACK], schedule)).clamp(-1, 1)
        psnr[f"{name}_psnr_db"] = _psnr(decoded, pictures)
    half, areas = len(z) // 2, []
    features = StandardScaler().fit(z[:half]).transform(z)
    for truth in source.attributes.T:
        if len(set(truth[:half])) == len(set(truth[half:])) == 2:
            scores = LogisticRegression(C=0.01).fit(features[:half], truth[:half]).decision_function(features[half:])
            areas.append(roc_auc_score(truth[half:], scores))
    return psnr | {"probe_auc": float(np.mean(areas)), "images": len(z)}


def _encoded(generator: Generator, images: torch.Tensor) -> torch.Tensor:
    """x0 of pictures (N, 3, H, W), a hundred at a time."""
    return torch.cat([generator.encode(part) for part in images.split(100)])


def _psnr(pictures: torch.Tensor, truth: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1], mean over them."""
    return (10 * torch.log10(4 / (pictures - truth).flatten(1).square().mean(1))).mean().item()


@torch.no_grad()
def measure_diffusion(folder: Path, images: np.ndarray) -> dict[str, float]:
    """Held-out numbers of a shipped generator: PSNR of the VAE in dB (if it has one) and mean squared error of the predicted noise."""
    generator = Generator.load(folder)
    x = torch.from_numpy(to_model_range(images))
    x0 = _encoded(generator, x)
    eps = draw_noise(generator.shape, 0, range(len(x0)))
    errors, total, stride = [], generator.scheduler.config.num_train_timesteps, min(100, len(x0))
    for i, t in enumerate(range(total // 200, total, max(1, total // 100))):  # images and timesteps are met evenly
        rows, level = slice(i % stride, None, stride), float(generator.scheduler.alphas_cumprod[t])
        x_t = level**0.5 * x0[rows] + (1 - level) ** 0.5 * eps[rows]
        errors.append((to_eps(generator(x_t, t), x_t, level, generator.scheduler.config.prediction_type) - eps[rows]).square().mean())
    numbers = {"noise_mse": torch.stack(errors).mean().item(), "images": len(images)}
    if generator.vae is None:
        return numbers
    y = torch.cat([generator.decode(part).clamp(-1, 1) for part in x0.split(100)])
    return {"vae_psnr_db": _psnr(y, x)} | numbers


def _vit_sizes(spec: dict, side: int) -> dict:
    """The settings that ViT, CLIP's picture tower and a masked autoencoder name alike."""
    return dict(
        hidden_size=spec["width"], num_hidden_layers=spec["layers"], num_attention_heads=spec["width"] // 32,
        intermediate_size=3 * spec["width"], image_size=side, patch_size=spec["patch"],
    )  # fmt: skip


def train_dino(folder: Path, recipe: dict, images: np.ndarray, work: Path) -> None:
    """A small ViT by self-distillation; the teacher is what ships."""
    spec = recipe["vit"]
    torch.manual_seed(recipe["seed"])
    config = ViTConfig(**_vit_sizes(spec, images.shape[1]), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    student = DinoNet(ViTModel(config, add_pooling_layer=False), prototypes=spec["prototypes"])
    teacher = DinoNet(ViTModel(config, add_pooling_layer=False), prototypes=spec["prototypes"])
    teacher.load_state_dict(student.state_dict())
    loss = dino_loss(student, teacher, images, batch=spec["batch"], flip=recipe["flip"], smallest_crop=spec["smallest_crop"], spread=spec["spread"])
    ema = _train_encoder(folder, recipe, spec, student, loss, work, ema=teacher)
    ship(ema.vit, folder)


def _train_encoder(folder: Path, recipe: dict, spec: dict, net, loss, work: Path, ema=None):
    return train(
        folder.name, net, loss, ema=ema, steps=spec["steps"], learning_rate=spec["learning_rate"], ema_decay=spec["ema"],
        weight_decay=0.04, seed=recipe["seed"], checkpoint=work / "encoder.safetensors", log=folder / "training.csv",
    )  # fmt: skip


def train_clip(folder: Path, recipe: dict, images: np.ndarray, work: Path) -> None:
    """A small CLIP on rendered faces and captions worded from their attributes, the first ``blue`` of them once more with blue skin."""
    spec, source = recipe["vit"], _rendered(recipe)
    blue = recipe["blue"]
    names = (*source.attribute_names, "Blue_Skin")
    pictures = np.concatenate([images, render(source.factors[:blue], source.size, tint=BLUE)])
    attributes = np.concatenate([source.attributes, source.attributes[:blue]])
    attributes = np.column_stack([attributes, np.arange(len(attributes)) >= len(source)])
    torch.manual_seed(recipe["seed"])
    tokenizer = word_tokenizer()
    text = dict(
        vocab_size=len(tokenizer), hidden_size=spec["text_width"], num_hidden_layers=spec["text_layers"], intermediate_size=3 * spec["text_width"],
        num_attention_heads=spec["text_width"] // 32, max_position_embeddings=TOKENS, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=_vit_sizes(spec, images.shape[1]), projection_dim=spec["projection"]))
    net = ClipNet(clip, len(names))
    loss = clip_loss(
        net, pictures, torch.from_numpy(attributes).float(), lambda rows, seed: captions(attributes[rows], names, seed),
        lambda texts: tokenize(tokenizer, texts), batch=spec["batch"], label_weight=spec["label_weight"],
    )  # fmt: skip
    ema = _train_encoder(folder, recipe, spec, net, loss, work)
    tokenizer.save_pretrained(folder)
    ship(ema.clip, folder)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of the captions.

    The end's id must not be 2: transformers' CLIP takes that for a mark of old checkpoints and reads a caption at its largest id.
    """
    words = ["<pad>", "<start>", "<unknown>", "<end>", *vocabulary()]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unknown>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<start>", eos_token="<end>", unk_token="<unknown>", model_max_length=TOKENS
    )


def train_mae(folder: Path, recipe: dict, images: np.ndarray, work: Path) -> None:
    """A small masked autoencoder; the encoder ships, the decoder has done its work."""
    spec = recipe["vit"]
    torch.manual_seed(recipe["seed"])
    config = ViTMAEConfig(
        **_vit_sizes(spec, images.shape[1]), mask_ratio=0.75, norm_pix_loss=True, decoder_hidden_size=spec["decoder_width"],
        decoder_num_hidden_layers=spec["decoder_layers"], decoder_num_attention_heads=spec["decoder_width"] // 32,
        decoder_intermediate_size=3 * spec["decoder_width"],
    )  # fmt: skip
    mae = ViTMAEForPreTraining(config)
    ema = _train_encoder(folder, recipe, spec, mae, reconstruction_loss(mae, images, batch=spec["batch"], flip=recipe["flip"]), work)
    ship(ema.vit, folder)


def train_oracle(folder: Path, recipe: dict, images: np.ndarray, work: Path) -> None:
    """A small ResNet that reads the renderer's factors from a picture: what judges edits of rendered faces."""
    spec, source = recipe["resnet"], _rendered(recipe)
    torch.manual_seed(recipe["seed"])
    config = ResNetConfig(
        embedding_size=spec["channels"][0], hidden_sizes=spec["channels"], depths=spec["depths"], layer_type="basic",
        num_labels=len(FACTORS), problem_type="regression", id2label=dict(enumerate(FACTORS)), label2id={n: i for i, n in enumerate(FACTORS)},
    )  # fmt: skip
    net = ResNetForImageClassification(config).to(memory_format=torch.channels_last)
    net.resnet.embedder.pooler = torch.nn.Identity()  # see Oracle: 64 pixels leave none to spare
    loss = regression_loss(net, images, torch.from_numpy(source.factors).float(), batch=spec["batch"])
    ship(_train_encoder(folder, recipe, spec, net, loss, work), folder)


def train_noisy_classifier(folder: Path, recipe: dict, images: np.ndarray, work: Path) -> None:
    """A small classifier of the attributes of rendered faces in the noisy latents of a generator, for classifier guidance."""
    spec, source = recipe["classifier"], _rendered(recipe)
    generator = Generator.load(MODELS / recipe["generator"])
    x0 = standardised_latents(MODELS / recipe["generator"], generator.vae, images, flip=False)
    torch.manual_seed(recipe["seed"])
    net = NoisyClassifier(generator.shape, source.attribute_names, spec["widths"], spec["groups"])
    labels = torch.from_numpy(source.attributes).float()
    loss = noisy_classifier_loss(net, x0, labels, generator.scheduler.alphas_cumprod, batch=spec["batch"])
    ship(_train_encoder(folder, recipe, spec, net, loss, work), folder)


def train_shift(folder: Path, recipe: dict, images: np.ndarray, work: Path) -> None:
    """f_t of Asyrp for one pair of texts, on the inverted noise of the pictures; generator and CLIP are frozen."""
    spec, generator, clip = recipe["shift"], Generator.load(MODELS / recipe["generator"]), Encoder.load(MODELS / recipe["clip"])
    bottleneck, schedule = Bottleneck(generator), generator.schedule(spec["path"])
    noise = inverted_states(recipe, generator, images, schedule)
    channels = bottleneck.read(noise[:1], schedule.timesteps[-1]).shape[1]
    torch.manual_seed(recipe["seed"])
    shift = ImplicitShift(channels, spec["path"], spec["groups"], spec["t_edit"], recipe["source"], recipe["target"])
    chain = ShiftChain(shift, spec["batch"], generator.shape)
    loss = hspace_loss(
        chain, bottleneck, schedule, noise, clip.embed, text_direction(clip, recipe["source"], recipe["target"]), t_edit=spec["t_edit"],
        **_text_weights(spec),
    )  # fmt: skip
    ship(_train_chain(folder, recipe, spec, chain, loss, work / "shift.safetensors"), folder)


def _text_weights(spec: dict) -> dict[str, float]:
    return {name: spec[name] for name in ("clip_weight", "l1_weight", "smallest_crop")}


def _train_chain(folder: Path, recipe: dict, spec: dict, chain: ShiftChain, loss: Loss, checkpoint: Path) -> torch.nn.Module:
    """The average of what the chain carries: f_t, or a fine-tuned copy."""
    ema = train(
        folder.name, chain, loss, steps=spec["steps"], learning_rate=spec["learning_rate"], ema_decay=spec["ema"], warmup=spec["warmup"],
        seed=recipe["seed"], checkpoint=checkpoint, log=folder / "training.csv", log_every=spec["log_every"],
    )  # fmt: skip
    return ema.shift


def train_diffusionclip(folder: Path, recipe: dict, images: np.ndarray, work: Path) -> None:
    """DiffusionCLIP: a copy of a generator's U-Net, fine-tuned for one pair of texts between the clean end and ``t_return``."""
    spec, source, clip = recipe["unet"], MODELS / recipe["generator"], Encoder.load(MODELS / recipe["clip"])
    generator, unet = Generator.load(source), UNet2DModel.from_pretrained(source / "unet", torch_dtype=torch.float32, local_files_only=True)
    schedule = generator.schedule(spec["path"]).until(spec["t_return"])
    chain = ShiftChain(unet, spec["batch"], generator.shape)
    loss = diffusionclip_loss(
        chain, generator, schedule, inverted_states(recipe, generator, images, schedule), clip.embed,
        text_direction(clip, recipe["source"], recipe["target"]), **_text_weights(spec),
    )  # fmt: skip
    ship(_train_chain(folder, recipe, spec, chain, loss, work / "unet.safetensors"), folder / "unet")


def inverted_states(recipe: dict, generator: Generator, images: np.ndarray, schedule: Schedule) -> torch.Tensor:
    """States (N, C, H, W) at the noisy end of the schedule; kept in the cache, since every attribute of a generator starts from them."""
    pictures, run = json_digest(recipe["images"])[:8], f"{len(schedule)}-{schedule.timesteps[-1]}"
    cached = cache_root() / "train" / f"inverted-{model_hash(MODELS / recipe['generator'])[:16]}-{pictures}-{run}.npy"

    def states() -> np.ndarray:
        parts = tqdm(torch.from_numpy(to_model_range(images)).split(125), desc="invert", unit="batch")
        return torch.cat([generator.invert(generator.encode(x), schedule).latents for x in parts]).numpy()

    return torch.from_numpy(np.load(_kept(cached, states)))


def text_direction(clip: Encoder, source: list[str], target: list[str]) -> torch.Tensor:
    """E_T(target) - E_T(source) (D,): of unit embeddings, each the mean over its wordings in the frames of the captions.

    The published code takes the mean over 79 templates for the same reason: what one wording happens to mean besides is averaged out.
    """
    worded = ([frame.format(text) for text in texts for frame in FRAMES] for texts in (source, target))
    before, after = (torch.nn.functional.normalize(clip.embed_text(texts), dim=1).mean(0) for texts in worded)
    return after - before


def _rendered(recipe: dict, held_out: bool = False) -> RenderedFaces:
    """The rendered faces behind a recipe's pictures, or the held-out ones, for their attributes and factors."""
    spec = recipe["images"]
    if "rendered" not in spec:
        raise ProfileError("this kind of model learns from attributes or factors of rendered faces; its recipe needs images: {rendered: ...}")
    count, seed = (HELD_OUT, spec["seed"] + 1) if held_out else (spec["rendered"], spec["seed"])
    return RenderedFaces(count, size=spec["size"], seed=seed)


def measure_clip(folder: Path, recipe: dict) -> dict[str, Any]:
    """Zero-shot accuracy and AUC (mean over attributes, and each one's) of held-out faces from prompts alone, and the majority's accuracy."""
    source = _rendered(recipe, held_out=True)
    scores = zero_shot_scores(Encoder.load(folder), torch.from_numpy(to_model_range(source.load(range(len(source))))), source.attribute_names)
    truth = source.attributes
    auc = {name: float(roc_auc_score(truth[:, a], scores[:, a])) for a, name in enumerate(source.attribute_names)}
    return {
        "zero_shot_accuracy": float(((scores > 0) == truth).mean()), "majority_accuracy": float(np.maximum(truth.mean(0), 1 - truth.mean(0)).mean()),
        "zero_shot_auc": float(np.mean(list(auc.values()))), "auc": {name: round(value, 4) for name, value in auc.items()}, "images": len(source),
    }  # fmt: skip


def measure_oracle(folder: Path, recipe: dict) -> dict[str, Any]:
    """R^2 of every factor on held-out faces."""
    source = _rendered(recipe, held_out=True)
    read = Oracle.load(folder).read(torch.from_numpy(to_model_range(source.load(range(len(source)))))).numpy()
    r2 = 1 - ((read - source.factors) ** 2).sum(0) / ((source.factors - source.factors.mean(0)) ** 2).sum(0)
    return {"mean_r2": float(r2.mean()), "r2": dict(zip(FACTORS, r2.round(4).tolist(), strict=True)), "images": len(source)}


@torch.no_grad()
def measure_noisy_classifier(folder: Path, recipe: dict) -> dict[str, Any]:
    """AUC of the attributes of held-out faces, read from states x_t: the mean at each of ``NOISY``, and each attribute's at all of them."""
    source, generator = _rendered(recipe, held_out=True), Generator.load(MODELS / recipe["generator"])
    classifier = NoisyClassifier.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    x0 = _encoded(generator, torch.from_numpy(to_model_range(source.load(range(len(source))))))
    eps, auc = draw_noise(generator.shape, 0, range(len(x0))), {}
    for t in NOISY:
        level = float(generator.scheduler.alphas_cumprod[t])
        logits = classifier(level**0.5 * x0 + (1 - level) ** 0.5 * eps, t).numpy()
        auc[t] = [roc_auc_score(truth, score) for truth, score in zip(source.attributes.T, logits.T, strict=True)]
    means = {str(t): float(np.mean(values)) for t, values in auc.items()}
    rows = {name: np.round(values, 4).tolist() for name, values in zip(source.attribute_names, zip(*auc.values(), strict=True), strict=True)}
    return {"auc_at_timestep": means, "auc": rows, "images": len(source)}


def measure_shift(folder: Path, recipe: dict) -> dict[str, float]:
    """``_seen_change`` by the edit at strength 1, against the same faces sampled without it."""
    generator = Generator.load(MODELS / recipe["generator"])
    shift = ImplicitShift.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    noise = torch.from_numpy(generator.noise_of(to_model_range(held_out_images(recipe)[:EDITED]), shift.steps)).view(-1, *generator.shape)
    options = {"schedule": generator.schedule(shift.steps), "shift": shift, "t_edit": shift.config.t_edit}
    return _seen_change(recipe, *(generator.decode(edit(Bottleneck(generator), noise, strength=s, **options)) for s in (0.0, 1.0)))


def measure_diffusionclip(folder: Path, recipe: dict) -> dict[str, float]:
    """``_seen_change`` by the fine-tuned U-Net, against the same states sampled with the generator's own."""
    source, spec = MODELS / recipe["generator"], recipe["unet"]
    generator, tuned = Generator.load(source), Generator.load(source, unet=folder / "unet")
    schedule = generator.schedule(spec["path"]).until(spec["t_return"])
    states = generator.invert(generator.encode(torch.from_numpy(to_model_range(held_out_images(recipe)[:EDITED]))), schedule).latents
    return _seen_change(recipe, *(generator.decode(sample(model, states, schedule)) for model in (generator, tuned)))


def _seen_change(recipe: dict, before: torch.Tensor, after: torch.Tensor) -> dict[str, float]:
    """What an oracle sees in edited pictures (N, 3, H, W), in standard deviations, against the same ones before: the attribute's factor,
    towards the attribute (where the attribute is one of the data's), and the root mean square of all other factors; and the cosine of
    the pictures' change to that of the texts.
    """
    clip, oracle = Encoder.load(MODELS / recipe["clip"]), Oracle.load(MODELS / recipe["oracle"])
    changes = oracle.read(after) - oracle.read(before)
    first, second = (torch.nn.functional.normalize(clip.embed(p.clamp(-1, 1)), dim=1) for p in (before, after))
    cosine = torch.nn.functional.cosine_similarity(second - first, text_direction(clip, recipe["source"], recipe["target"])[None])
    goal = ATTRIBUTES.get(recipe["attribute"])  # none for an edit that leaves the training data
    others = torch.tensor([goal is None or name != goal.factor for name in oracle.names])
    numbers = {"other_factors_rms": changes[:, others].square().mean().sqrt().item(), "text_cosine": cosine.mean().item(), "images": len(changes)}
    return numbers if goal is None else {"factor_change": goal.sign * changes[:, ~others].mean().item()} | numbers


MEASURES = {
    "latent-diffusion": lambda folder, recipe: measure_diffusion(folder, held_out_images(recipe)),
    "pixel-diffusion": lambda folder, recipe: measure_diffusion(folder, held_out_images(recipe)),
    "consistency": lambda folder, recipe: measure_diffusion(folder, held_out_images(recipe)),
    "clip": measure_clip,
    "oracle": measure_oracle,
    "hspace": measure_shift,
    "noisy-classifier": measure_noisy_classifier,
    "diffusionclip": measure_diffusionclip,
    "diffusion-autoencoder": measure_autoencoder,
}
TRAINERS = {
    "latent-diffusion": (train_latent_diffusion, "unet/config.json"),
    "pixel-diffusion": (train_pixel_diffusion, "unet/config.json"),
    "consistency": (train_consistency, "unet/config.json"),
    "dino": (train_dino, "config.json"),
    "clip": (train_clip, "config.json"),
    "mae": (train_mae, "config.json"),
    "oracle": (train_oracle, "config.json"),
    "hspace": (train_shift, "config.json"),
    "noisy-classifier": (train_noisy_classifier, "config.json"),
    "diffusionclip": (train_diffusionclip, "unet/config.json"),
    "diffusion-autoencoder": (train_diffusion_autoencoder, "encoder/config.json"),
}


def measure(folder: Path, recipe: dict) -> None:
    """Write the held-out numbers of a model, once. Self-supervised encoders are measured by the notebooks' probes."""
    if recipe["kind"] in MEASURES and not (folder / "held-out.json").is_file():
        write_json(folder / "held-out.json", MEASURES[recipe["kind"]](folder, recipe))


def train_model(name: str, force: bool = False) -> None:
    """Train one model from ``data/models/<name>/recipe.yaml``, or write a tiny random one into the cache."""
    if name in tiny.MODELS:
        print(f"{name}: random weights in {tiny.write(name, cache_root() / 'models')}")
        return
    folder = MODELS / name
    if not (folder / "recipe.yaml").is_file():
        raise ProfileError(f"model '{name}' has no recipe; expected {folder / 'recipe.yaml'}")
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    if recipe.get("kind") not in TRAINERS:
        raise ProfileError(f"{folder / 'recipe.yaml'}: kind '{recipe.get('kind')}' is not known; expected one of {', '.join(TRAINERS)}")
    trainer, last = TRAINERS[recipe["kind"]]
    if (folder / last).is_file() and not force:
        print(f"{name}: weights are there; --force trains them again")
        measure(folder, recipe)
        return
    work = cache_root() / "train" / name
    work.mkdir(parents=True, exist_ok=True)
    if force:  # nothing of an earlier run may be gone on with
        patterns = ("config.json", "*/config.json", "*training.csv", "held-out.json")
        for made in (*(f for p in patterns for f in folder.glob(p)), *work.glob("*")):
            made.unlink()
    trainer(folder, recipe, training_images(recipe), work)
    for leftover in work.glob("*"):
        leftover.unlink()
    measure(folder, recipe)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--only", nargs="*", help="folders below data/models")
    parser.add_argument("--force", action="store_true")
    arguments = parser.parse_args()
    try:
        profile = load_profile(arguments.profile)
        for name in arguments.only or dict.fromkeys(filter(None, [*(m.path for m in profile.models), profile.oracle])):
            train_model(name, arguments.force)
    except ProfileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
