"""Train the models of a profile from their recipes: ``python -m une_utils.models.train --profile mini``.

A recipe lies beside the weights it makes. Models that are already there are left alone; ``--force`` makes them again.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel
from transformers import ViTConfig, ViTModel

from une_utils.files import write_json
from une_utils.images import open_images, to_model_range, train_mask
from une_utils.images.rendered import RenderedFaces
from une_utils.models.ddim import to_eps
from une_utils.models.generators import Generator, draw_noise
from une_utils.models.training import DinoNet, dino_loss, noise_loss, train, vae_loss
from une_utils.settings import MODELS, ProfileError, cache_root, load_profile

HELD_OUT = 500  # pictures for the numbers of a model card


def held_out_images(recipe: dict) -> np.ndarray:
    """Pictures (500, H, W, 3) uint8 that no training step saw: rendered ones of the next seed, or of the test split."""
    spec = recipe["images"]
    if "rendered" in spec:
        return RenderedFaces(HELD_OUT, size=spec["size"], seed=spec["seed"] + 1).load(range(HELD_OUT))
    profile = load_profile(spec["train_split_of"])
    source = open_images(profile)
    return source.load(np.flatnonzero(~train_mask(source, profile.train_fraction, profile.seed))[:HELD_OUT])


def training_images(recipe: dict) -> np.ndarray:
    """Pictures (N, H, W, 3) uint8 of a recipe: rendered ones of another seed than any profile's, or a profile's train split.

    They are kept in the cache, since drawing 60,000 faces takes minutes.
    """
    spec = recipe["images"]
    if "rendered" in spec:
        source = RenderedFaces(spec["rendered"], size=spec["size"], seed=spec["seed"])
        path = cache_root() / "train" / f"rendered-{spec['size']}-{spec['rendered']}-{spec['seed']}.npy"
        rows = np.arange(len(source))
    else:
        profile = load_profile(spec["train_split_of"])
        source = open_images(profile)
        rows = np.flatnonzero(train_mask(source, profile.train_fraction, profile.seed))
        path = cache_root() / "train" / f"{profile.name}-{source.size}-{len(rows)}-{profile.seed}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.npy")
        np.save(part, np.concatenate([source.load(chunk) for chunk in np.array_split(rows, max(1, len(rows) // 2000))]))
        part.replace(path)
    return np.load(path, mmap_mode="r")


def train_autoencoder(folder: Path, recipe: dict, images: np.ndarray, work: Path) -> AutoencoderKL:
    """AutoencoderKL with f = 4; its config ends up with the mean and deviation of its latents per channel."""
    spec = recipe["vae"]
    torch.manual_seed(recipe["seed"])
    vae = AutoencoderKL(
        block_out_channels=spec["channels"], latent_channels=4, layers_per_block=1, norm_num_groups=spec["groups"], mid_block_add_attention=False,
        down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3, sample_size=images.shape[1],
    )  # fmt: skip
    with torch.no_grad():  # start with little posterior noise: under unit noise the decoder may learn to ignore the latents
        vae.quant_conv.bias[4:] = spec["log_variance"]
    vae = vae.to(memory_format=torch.channels_last)
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
    (work / "latents.npy").unlink(missing_ok=True)  # of an earlier autoencoder
    return ema.float()


def ship(model, folder: Path) -> None:
    """Save weights as float16 safetensors (the model itself is rounded to float16), the config last.

    A config therefore means that the weights are there, whenever the process is stopped.
    """
    part = folder / ".part"
    model.half().save_pretrained(part)
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
    """The autoencoder, then a noise predictor on its standardised latents."""
    if (folder / "vae" / "config.json").is_file():
        vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    else:
        vae = train_autoencoder(folder, recipe, images, work)
    cached = work / "latents.npy"
    if not cached.is_file():
        latents = encode_latents(vae, images)
        if recipe["flip"]:
            latents = torch.cat([latents, encode_latents(vae, images[:, :, ::-1])])
        np.save(work / "part.npy", latents.numpy())
        (work / "part.npy").replace(cached)
    latents = torch.from_numpy(np.load(cached))
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    latents = (latents - mean) / std
    spec = recipe["unet"]
    scheduler = DDIMScheduler(**recipe["scheduler"])
    torch.manual_seed(recipe["seed"])
    unet = UNet2DModel(
        sample_size=latents.shape[-1], in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=spec["channels"],
        down_block_types=["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"], norm_num_groups=16, attention_head_dim=32,
        up_block_types=["AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    ).to(memory_format=torch.channels_last)  # fmt: skip
    loss = noise_loss(
        torch.compile(unet) if spec["compile"] else unet, latents, scheduler.alphas_cumprod, batch=spec["batch"],
        prediction_type=scheduler.config.prediction_type,
    )  # fmt: skip
    ema = train(
        f"{folder.name} unet", unet, loss, steps=spec["steps"], learning_rate=spec["learning_rate"], ema_decay=spec["ema"],
        seed=recipe["seed"], checkpoint=work / "unet.safetensors", log=folder / "unet-training.csv",
    )  # fmt: skip
    scheduler.save_pretrained(folder / "scheduler")
    ship(ema, folder / "unet")


@torch.no_grad()
def measure_latent_diffusion(folder: Path, images: np.ndarray) -> dict[str, float]:
    """Held-out numbers of a shipped generator: PSNR of the VAE in dB and mean squared error of the predicted noise."""
    generator = Generator.load(folder)
    x = torch.from_numpy(to_model_range(images))
    x0 = torch.cat([generator.encode(part) for part in x.split(100)])
    y = torch.cat([generator.decode(part).clamp(-1, 1) for part in x0.split(100)])
    psnr = 10 * torch.log10(4 / (y - x).flatten(1).square().mean(1))
    eps = draw_noise(generator.shape, 0, range(len(x0)))
    errors, total, stride = [], generator.scheduler.config.num_train_timesteps, min(100, len(x0))
    for i, t in enumerate(range(total // 200, total, max(1, total // 100))):  # images and timesteps are met evenly
        rows, level = slice(i % stride, None, stride), float(generator.scheduler.alphas_cumprod[t])
        x_t = level**0.5 * x0[rows] + (1 - level) ** 0.5 * eps[rows]
        errors.append((to_eps(generator(x_t, t), x_t, level, generator.scheduler.config.prediction_type) - eps[rows]).square().mean())
    return {"vae_psnr_db": psnr.mean().item(), "noise_mse": torch.stack(errors).mean().item(), "images": len(images)}


def train_dino(folder: Path, recipe: dict, images: np.ndarray, work: Path) -> None:
    """A small ViT by self-distillation; the teacher is what ships."""
    spec = recipe["vit"]
    torch.manual_seed(recipe["seed"])
    config = ViTConfig(
        hidden_size=spec["width"], num_hidden_layers=spec["layers"], num_attention_heads=spec["width"] // 32, intermediate_size=3 * spec["width"],
        image_size=images.shape[1], patch_size=spec["patch"], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    student = DinoNet(ViTModel(config, add_pooling_layer=False), prototypes=spec["prototypes"])
    teacher = DinoNet(ViTModel(config, add_pooling_layer=False), prototypes=spec["prototypes"])
    teacher.load_state_dict(student.state_dict())
    loss = dino_loss(student, teacher, images, batch=spec["batch"], flip=recipe["flip"], smallest_crop=spec["smallest_crop"], spread=spec["spread"])
    ema = train(
        folder.name, student, loss, ema=teacher, steps=spec["steps"], learning_rate=spec["learning_rate"], ema_decay=spec["ema"],
        weight_decay=0.04, seed=recipe["seed"], checkpoint=work / "dino.safetensors", log=folder / "training.csv",
    )  # fmt: skip
    ship(ema.vit, folder)


def measure(folder: Path, recipe: dict) -> None:
    """Write the held-out numbers of a generator, once."""
    if recipe["kind"] == "latent-diffusion" and not (folder / "held-out.json").is_file():
        write_json(folder / "held-out.json", measure_latent_diffusion(folder, held_out_images(recipe)))


TRAINERS = {"latent-diffusion": (train_latent_diffusion, "unet/config.json"), "dino": (train_dino, "config.json")}


def train_model(name: str, force: bool = False) -> None:
    """Train one model from ``data/models/<name>/recipe.yaml``."""
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
        for name in arguments.only or [m.path for m in (*profile.generators, *profile.encoders)]:
            train_model(name, arguments.force)
    except ProfileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
