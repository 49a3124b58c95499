"""Recipes of the models beside the first generator and DINO, from recipe to a folder that an adapter loads."""

import json

import numpy as np
import pytest
import torch
import yaml
from diffusers import LCMScheduler
from safetensors.torch import load_file

from une_utils.images.rendered import FACTORS
from une_utils.models import train as recipes
from une_utils.models.ddim import invert, sample
from une_utils.models.encoders import Encoder
from une_utils.models.generators import Generator, checkpoints, draw_noise
from une_utils.models.losses import noise_loss
from une_utils.models.oracle import Oracle
from une_utils.settings import ProfileError

IMAGES = {"rendered": 12, "size": 32, "seed": 9}
SCHEDULER = {"num_train_timesteps": 100, "prediction_type": "v_prediction", "clip_sample": False, "timestep_spacing": "leading", "set_alpha_to_one": True}
UNET = {"channels": [32, 32, 32], "batch": 4, "steps": 3, "learning_rate": 1e-3, "ema": 0.9, "compile": False}
VAE = {
    "channels": [8, 16, 16], "latents": 4, "groups": 4, "log_variance": -4.0, "batch": 2, "full_share": 1.0, "kl": 5e-4, "square": 2.0, "steps": 2,
    "learning_rate": 1e-3, "ema": 0.9,
}  # fmt: skip
FIRST = {"kind": "latent-diffusion", "seed": 1, "flip": False, "images": IMAGES, "vae": VAE, "scheduler": SCHEDULER, "unet": UNET}
SHORT = {"batch": 4, "steps": 2, "learning_rate": 1e-3, "ema": 0.9}
VIT = SHORT | {"width": 32, "layers": 1, "patch": 8}


@pytest.fixture
def train_model(tmp_path, monkeypatch):
    """Train a toy from a recipe; its folder."""
    monkeypatch.setattr(recipes, "MODELS", tmp_path / "models")
    monkeypatch.setattr(recipes, "HELD_OUT", 20)
    monkeypatch.setenv("UNE_CACHE", str(tmp_path / "cache"))

    def make(name, recipe):
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        recipes.train_model(name)
        assert all(v.dtype == torch.float16 for f in folder.rglob("*.safetensors") for v in load_file(f).values() if v.is_floating_point())
        assert not any(str(tmp_path) in f.read_text() for f in folder.rglob("*.json"))  # nothing of this machine
        return folder

    return make


def test_second_model_borrows_the_autoencoder_and_a_student_learns_from_it(train_model):
    first = train_model("first", FIRST)
    second = train_model("second", {k: v for k, v in FIRST.items() if k != "vae"} | {"vae_of": "first", "seed": 2})
    student = train_model("student", FIRST | {"kind": "consistency", "teacher": "second", "unet": UNET | {"teacher_steps": 10}})
    for folder in (second, student):
        assert {f.name: f.read_bytes() for f in (folder / "vae").iterdir()} == {f.name: f.read_bytes() for f in (first / "vae").iterdir()}
    stored = [Generator.load(folder).unet.state_dict() for folder in (first, second, student)]
    key = "conv_in.weight"
    assert not torch.equal(stored[0][key], stored[1][key])
    assert 0 < (stored[2][key] - stored[1][key]).abs().max() < 0.01  # starts from the teacher
    assert json.loads((student / "scheduler" / "scheduler_config.json").read_text())["_class_name"] == "LCMScheduler"
    assert json.loads((student / "held-out.json").read_text())["images"] == 20


def test_student_is_sampled_and_inverted_with_the_same_levels(train_model):
    train_model("first", FIRST)
    student = Generator.load(train_model("student", FIRST | {"kind": "consistency", "teacher": "first", "unet": UNET | {"teacher_steps": 10}}))
    assert student.schedule(5).prediction_type == "v_prediction"
    x = draw_noise(student.shape, 0, range(3))
    assert torch.equal(student.sample_lcm(x, steps=2), student.sample_lcm(x, steps=2))
    scheduler = LCMScheduler.from_config(student.scheduler.config, original_inference_steps=50)
    scheduler.set_timesteps(1)
    expected = scheduler.step(student(x, int(scheduler.timesteps[0])), scheduler.timesteps[0], x).denoised
    torch.testing.assert_close(student.sample_lcm(x, steps=1), expected)


def test_pixel_diffusion(train_model):
    """States are the pictures, averaged over squares; there is no VAE to measure."""
    recipe = {k: v for k, v in FIRST.items() if k != "vae"} | {"kind": "pixel-diffusion", "unet": UNET | {"side": 16, "attention": [False, False, True]}}
    folder = train_model("pixels", recipe)
    assert set(json.loads((folder / "held-out.json").read_text())) == {"noise_mse", "images"}
    generator = Generator.load(folder, precise=True)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x0 = generator.encode(images)
    assert generator.shape == (3, 16, 16) and x0.shape == (2, 3, 16, 16)
    torch.testing.assert_close(x0[:, :, 0, 0], images[:, :, :2, :2].mean((2, 3)))
    assert torch.equal(generator.decode(x0), x0)
    schedule = generator.schedule(5)
    noise = invert(generator, x0, schedule, fixed_point=80, tolerance=1e-7).latents
    torch.testing.assert_close(sample(generator, noise, schedule), x0, atol=1e-3, rtol=0)


def test_states_of_the_training_ship(train_model, monkeypatch):
    """Each is a model of its own; the loss sees the pictures and, with flip, their mirror images."""
    seen = []
    monkeypatch.setattr(recipes, "noise_loss", lambda unet, x0, *args, **kwargs: seen.append(x0) or noise_loss(unet, x0, *args, **kwargs))
    unet = UNET | {"side": 16, "attention": [False, False, True], "groups": 8, "head": 16, "keep": [0, 2]}
    folder = train_model("kept", {k: v for k, v in FIRST.items() if k != "vae"} | {"kind": "pixel-diffusion", "flip": True, "unet": unet})
    assert checkpoints(folder) == {0: "unet-00000", 2: "unet-00002", UNET["steps"]: "unet"}
    states = [Generator.load(folder, unet=name).unet for name in checkpoints(folder).values()]
    assert states[0].config.norm_num_groups == 8 and states[0].config.attention_head_dim == 16
    weights = [state.conv_in.weight for state in states]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    assert len(seen[0]) == 2 * IMAGES["rendered"] and torch.equal(seen[0][: IMAGES["rendered"]].flip(3), seen[0][IMAGES["rendered"] :])


def test_clip_recipe(train_model):
    folder = train_model(
        "clip", {"kind": "clip", "seed": 1, "images": IMAGES, "blue": 4, "vit": VIT | {"text_width": 32, "text_layers": 1, "projection": 8, "label_weight": 1.0}}
    )
    encoder = Encoder.load(folder)
    assert encoder.dimension == 8 and encoder.embed_text(["a man with a hat"]).shape == (1, 8)
    measured = json.loads((folder / "held-out.json").read_text())
    assert 0 <= measured["zero_shot_accuracy"] <= 1 and measured["majority_accuracy"] >= 0.5


def test_masked_autoencoder_recipe(train_model):
    vit = VIT | {"decoder_width": 32, "decoder_layers": 1}
    encoder = Encoder.load(train_model("mae", {"kind": "mae", "seed": 1, "flip": True, "images": IMAGES, "vit": vit}))
    assert encoder.dimension == 64 and type(encoder.model).__name__ == "ViTMAEModel"
    assert encoder.embed(torch.zeros(2, 3, 32, 32)).shape == (2, 64)


def test_oracle_recipe(train_model):
    resnet = {"channels": [8, 8], "depths": [1, 1], "batch": 4, "steps": 2, "learning_rate": 1e-3, "ema": 0.9}
    folder = train_model("oracle", {"kind": "oracle", "seed": 1, "images": IMAGES, "resnet": resnet})
    oracle = Oracle.load(folder)
    assert oracle.names == FACTORS
    assert set(json.loads((folder / "held-out.json").read_text())["r2"]) == set(FACTORS)
    assert np.isfinite(oracle.read(torch.zeros(3, 3, 32, 32)).numpy()).all()


def test_captions_need_rendered_faces(train_model):
    with pytest.raises(ProfileError, match="learns from attributes or factors of rendered faces"):
        recipes._rendered({"images": {"train_split_of": "lfw"}})


def test_fine_tuning_on_a_subset(train_model, monkeypatch):
    first = train_model("first", FIRST)
    seen, whole = [], recipes.noise_loss
    monkeypatch.setattr(recipes, "noise_loss", lambda unet, latents, *args, **options: seen.append(len(latents)) or whole(unet, latents, *args, **options))
    recipe = {k: v for k, v in FIRST.items() if k != "vae"} | {"vae_of": "first", "fine_tune": "first", "only": {"Male": False}}
    monkeypatch.setattr(recipes, "encode_latents", lambda *_: pytest.fail("the latents of this autoencoder are there"))
    narrow = train_model("narrow", recipe)
    faces = recipes._rendered(recipe)
    assert seen == [(~faces.attributes[:, faces.attribute_names.index("Male")]).sum()] and 0 < seen[0] < 12
    difference = Generator.load(narrow).unet.state_dict()["conv_in.weight"] - Generator.load(first).unet.state_dict()["conv_in.weight"]
    assert 0 < difference.abs().max() < 0.02


def test_diffusionclip_recipe(train_model):
    """The folder holds a U-Net only, which the generator that it was tuned from takes in place of its own."""
    first = train_model("first", FIRST)
    vit = VIT | {"text_width": 32, "text_layers": 1, "projection": 8, "label_weight": 1.0}
    train_model("clip", {"kind": "clip", "seed": 1, "images": IMAGES, "blue": 2, "vit": vit})
    train_model("oracle", {"kind": "oracle", "seed": 1, "images": IMAGES, "resnet": {"channels": [8, 8], "depths": [1, 1]} | SHORT})
    unet = SHORT | {"path": 5, "t_return": 50, "clip_weight": 1.0, "l1_weight": 0.3, "smallest_crop": 0.8, "warmup": 1, "log_every": 1}
    recipe = {
        "kind": "diffusionclip", "seed": 1, "images": IMAGES, "generator": "first", "clip": "clip", "oracle": "oracle", "attribute": "Young",
        "source": ["an old man"], "target": ["a young man"], "unet": unet,
    }  # fmt: skip
    folder = train_model("tuned", recipe)
    assert sorted(f.name for f in folder.iterdir()) == ["held-out.json", "recipe.yaml", "training.csv", "unet"]
    generator, tuned = Generator.load(first), Generator.load(first, unet=folder / "unet")
    difference = tuned.unet.state_dict()["conv_in.weight"] - generator.unet.state_dict()["conv_in.weight"]
    assert 0 < difference.abs().max() < 0.02
    measured = json.loads((folder / "held-out.json").read_text())
    assert set(measured) == {"factor_change", "other_factors_rms", "text_cosine", "images"} and measured["images"] == 20
