"""Settings of every test: no network, one thread. They are set before any test module imports torch or the hub's client."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch takes its own number of threads from it
os.environ.setdefault("MKL_NUM_THREADS", os.environ["OMP_NUM_THREADS"])


def pytest_collection_modifyitems(items):
    """The runner's tests go first: they take minutes in one process, and other processes do the rest meanwhile."""
    items.sort(key=lambda item: item.path.name != "test_ci_profile.py")


# A tiny generator, a tiny encoder and a profile that uses them: random weights in the layout of data/models, 32-pixel faces.
# Nothing here imports torch before a test asks for it.

from pathlib import Path  # noqa: E402
from types import SimpleNamespace  # noqa: E402

import pytest  # noqa: E402

TINY_SCHEDULER = dict(
    num_train_timesteps=1000, beta_schedule="linear", beta_start=1e-4, beta_end=0.02, clip_sample=False, set_alpha_to_one=True,
    timestep_spacing="leading",
)  # fmt: skip


def _write_generator(folder: Path, seed: int = 0, prediction_type: str = "epsilon") -> Path:
    """A random latent diffusion model (``vae``, ``unet``, ``scheduler``): pictures 32x32, states (4, 8, 8)."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            block_out_channels=[8, 8, 8], latent_channels=4, layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False,
            down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3, sample_size=32,
        )  # fmt: skip
        vae.register_to_config(latents_mean=[0.1, 0.0, -0.1, 0.2], latents_std=[0.5, 1.0, 0.8, 1.2], scaling_factor=1.0)
        unet = UNet2DModel(
            sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=[16, 16], norm_num_groups=4,
            down_block_types=["DownBlock2D", "AttnDownBlock2D"], up_block_types=["AttnUpBlock2D", "UpBlock2D"], attention_head_dim=8,
        )  # fmt: skip
    vae.half().save_pretrained(folder / "vae")
    unet.half().save_pretrained(folder / "unet")
    DDIMScheduler(**TINY_SCHEDULER, prediction_type=prediction_type).save_pretrained(folder / "scheduler")
    return folder


def _write_encoder(folder: Path, seed: int = 0) -> Path:
    """A random ViT: pictures 32x32, embeddings (16,)."""
    import torch
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vit = ViTModel(config, add_pooling_layer=False)
    vit.half().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """Model folders shared by the tests of a run, read-only, and the functions that write others.

    ``generator`` and ``encoder`` are folders; ``write_generator(folder, seed, prediction_type)`` and
    ``write_encoder(folder, seed)`` make more.
    """
    root = tmp_path_factory.mktemp("tiny-models")
    return SimpleNamespace(
        generator=_write_generator(root / "tiny-ldm"), encoder=_write_encoder(root / "tiny-vit"),
        write_generator=_write_generator, write_encoder=_write_encoder,
    )  # fmt: skip


@pytest.fixture(scope="session")
def hub_model(tmp_path_factory):
    """``hub_model("tiny/sd15")`` is the folder of a tiny random model in the hub's layout, written once a run, read-only."""
    from functools import cache

    from une_utils.models import tiny

    root = tmp_path_factory.mktemp("hub-models")
    return cache(lambda name: tiny.write(name, root))


@pytest.fixture
def tiny_profile(tiny_models, tmp_path, monkeypatch):
    """A profile of 22 rendered faces and the tiny models; its zoo and its figures are in ``tmp_path``.

    The file is ``tmp_path/tiny.yaml``, for subprocesses and for ``load_profile`` with overrides. Shards (6 rows) and batches
    (4) divide neither each other nor the number of pictures.
    """
    import yaml

    from une_utils.settings import load_profile

    content = {
        "name": "tiny", "title": "tiny faces", "images": {"source": "rendered", "size": 32, "count": 22},
        "generators": [{"name": "tiny-ldm", "path": str(tiny_models.generator)}],
        "encoders": [{"name": "tiny-vit", "path": str(tiny_models.encoder)}],
        "zoo": {"steps": 4, "untrained_steps": 3, "batch": 4, "shard_rows": 6},
        "analysis": {"projections": 20, "rows": 10, "bootstrap": 20, "roundtrip_images": 4, "samples": 4},
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    monkeypatch.setenv("UNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UNE_FIGURES", str(tmp_path / "figures"))
    return load_profile(str(tmp_path / "tiny.yaml"))
