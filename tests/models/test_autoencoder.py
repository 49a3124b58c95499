"""The diffusion autoencoder: two codes and back, what z belongs to, and from recipe to a folder that loads."""

import json

import pytest
import torch
import yaml
from diffusers import UNet2DModel

from une_utils.models import train as recipes
from une_utils.models.autoencoder import DiffusionAutoencoder, SemanticEncoder
from une_utils.models.ddim import sample
from une_utils.models.generators import Generator, draw_noise
from une_utils.models.losses import noise_loss

STEPS, DIMENSION = 5, 6


def make_unet(**options):
    return UNet2DModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=[16, 16], norm_num_groups=4,
        down_block_types=["DownBlock2D", "DownBlock2D"], up_block_types=["UpBlock2D", "UpBlock2D"], **options,
    )  # fmt: skip


def make_encoder():
    return SemanticEncoder(generator="tiny-ldm", in_channels=4, size=8, channels=[8, 16], dimension=DIMENSION, embedding=64, groups=4)


@pytest.fixture(scope="module")
def autoencoder(tiny_models):
    torch.manual_seed(0)
    unet, encoder = make_unet(class_embed_type="identity", resnet_time_scale_shift="scale_shift"), make_encoder()
    unet.conv_out.weight.data *= 0.1  # follows its input gently, as a trained one does, so that fixed points converge
    generator = Generator.load(tiny_models.generator, precise=True)
    return DiffusionAutoencoder(generator, unet, encoder, generator.scheduler)


@pytest.fixture(scope="module")
def x0(autoencoder):
    return draw_noise(autoencoder.generator.shape, 3, range(3))


def test_round_trip(autoencoder, x0):
    """z kept and x_T kept give the picture back: closely by plain inversion, and but for rounding by fixed points."""
    schedule, z = autoencoder.schedule(STEPS), autoencoder.encode(x0)
    assert z.shape == (3, DIMENSION)
    plain, exact = (autoencoder.invert(x0, z, schedule, fixed_point=n).latents for n in (0, 15))
    errors = [(autoencoder.decode(noise, z, schedule) - x0).square().mean().sqrt().item() for noise in (plain, exact)]
    assert errors[1] < 1e-3 and errors[1] < errors[0] < 0.5


def test_zero_change_reproduces_and_another_z_does_not(autoencoder, x0):
    schedule, z = autoencoder.schedule(STEPS), autoencoder.encode(x0)
    noise = autoencoder.invert(x0, z, schedule).latents
    decoded, direction = autoencoder.decode(noise, z, schedule), torch.ones(DIMENSION)
    assert torch.equal(autoencoder.decode(noise, z + 0 * direction, schedule), decoded)
    assert not torch.allclose(autoencoder.decode(noise, z + 3 * direction, schedule), decoded, atol=1e-2)


def test_rows_of_z_belong_to_states(autoencoder, x0):
    schedule, z = autoencoder.schedule(STEPS), autoencoder.encode(x0)
    whole = autoencoder.invert(x0, z, schedule, fixed_point=3).latents
    single = autoencoder.invert(x0[1:2], z[1:2], schedule, fixed_point=3).latents
    torch.testing.assert_close(single, whole[1:2], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="3 states and 1 rows of z; expected one row for each state"):
        autoencoder.decode(x0, z[:1], schedule)


def test_unet_must_take_a_condition(tiny_models):
    generator = Generator.load(tiny_models.generator)
    with pytest.raises(ValueError, match="class_embed_type 'None', expected 'identity'"):
        DiffusionAutoencoder(generator, make_unet(), make_encoder(), generator.scheduler)


def test_z_is_what_the_loss_teaches():
    """Two kinds of x0 in strong noise: only z can tell which one it was."""
    torch.manual_seed(0)
    unet, encoder = make_unet(class_embed_type="identity"), make_encoder()
    latents, levels = torch.cat([torch.full((4, 4, 8, 8), c) for c in (-1.0, 1.0)]), torch.full((10,), 0.02)
    parameters = [*unet.parameters(), *encoder.parameters()]
    final = []
    for condition in (lambda x0: encoder.condition(encoder(x0)), lambda x0: torch.zeros(len(x0), 64)):
        loss = noise_loss(unet, latents, levels, batch=16, prediction_type="sample", condition=condition)
        optimizer, values = torch.optim.Adam(parameters, lr=3e-3), []
        for step in range(40):
            value, _ = loss(step, torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            values.append(value.item())
        final.append(sum(values[-10:]) / 10)
        if len(final) == 1:
            assert encoder.body[0].weight.grad.abs().max() > 0
    assert final[0] < 0.1 and final[0] < final[1] / 2


def test_recipe(tiny_models, tmp_path, monkeypatch):
    """The folder holds the U-Net and the encoder; the VAE is the generator's, beside it."""
    monkeypatch.setattr(recipes, "MODELS", tmp_path / "models")
    monkeypatch.setattr(recipes, "HELD_OUT", 30)
    monkeypatch.setenv("UNE_CACHE", str(tmp_path / "cache"))
    tiny_models.write_generator(tmp_path / "models" / "tiny-ldm")
    folder = tmp_path / "models" / "auto"
    folder.mkdir()
    recipe = {
        "kind": "diffusion-autoencoder", "seed": 1, "flip": False, "images": {"rendered": 12, "size": 32, "seed": 9}, "generator": "tiny-ldm",
        "path": STEPS, "scheduler": {"num_train_timesteps": 100, "prediction_type": "v_prediction", "clip_sample": False},
        "encoder": {"channels": [8, 16], "dimension": DIMENSION, "groups": 4},
        "unet": {
            "channels": [16, 16], "attention": [False, True], "groups": 4, "head": 8, "batch": 4, "steps": 3, "learning_rate": 1e-3, "ema": 0.9,
            "compile": False,
        },
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    recipes.train_model("auto")
    assert sorted(f.name for f in folder.iterdir()) == ["encoder", "held-out.json", "recipe.yaml", "scheduler", "training.csv", "unet"]
    assert str(tmp_path) not in (folder / "encoder" / "config.json").read_text()
    measured = json.loads((folder / "held-out.json").read_text())
    assert set(measured) == {"round_trip_psnr_db", "drawn_noise_psnr_db", "probe_auc", "images"} and 0 <= measured["probe_auc"] <= 1
    autoencoder = DiffusionAutoencoder.load(folder)
    x0 = autoencoder.generator.encode(torch.zeros(2, 3, 32, 32))
    z, schedule = autoencoder.encode(x0), autoencoder.schedule(STEPS)
    assert schedule.prediction_type == "v_prediction" and z.shape == (2, DIMENSION) and torch.equal(z, DiffusionAutoencoder.load(folder).encode(x0))
    assert torch.equal(autoencoder.decode(x0, z, schedule), sample(autoencoder.model(z), x0, schedule))
