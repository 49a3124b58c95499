"""The training loop, the losses, and training from a recipe."""

import copy
import csv
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel
from safetensors.torch import load_file
from torch import nn
from transformers import ViTConfig, ViTModel

from une_utils.images import open_images, to_model_range, train_mask
from une_utils.images.rendered import RenderedFaces
from une_utils.models import train as recipes
from une_utils.models import training
from une_utils.models.encoders import Encoder
from une_utils.models.generators import Generator
from une_utils.models.losses import DinoNet, augment, dino_loss, koleo, noise_loss, sinkhorn, vae_loss
from une_utils.models.training import _update_ema, train
from une_utils.settings import ProfileError

STEPS = 12


def conv_net():
    """A convolution in channels_last, as the real models are, and a buffer."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)).to(memory_format=torch.channels_last)


def regression(net, stop_at=None, error=KeyboardInterrupt, on_step=None):
    """Loss of a small regression; raises at step ``stop_at``, as Ctrl-C would."""

    def loss(step, generator):
        if on_step:
            on_step(step)
        if step == stop_at:
            raise error
        x = torch.randn(8, 3, 8, 8, generator=generator)
        value = (net(x) - x[:, :2, 2:-2, 2:-2]).square().mean()
        return value, {"mse": value.item()}

    return loss


def run(folder, stop_at=None, error=KeyboardInterrupt, net=None, on_step=None, **settings):
    net = net or conv_net()
    shared = dict(steps=STEPS, learning_rate=1e-2, warmup=3, log_every=4, seed=3, save_seconds=1e9) | settings
    return train("net", net, regression(net, stop_at, error, on_step), checkpoint=folder / "net.safetensors", log=folder / "log.csv", **shared)


def rows(folder):
    with (folder / "log.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The average of an uninterrupted run, and its log."""
    folder = tmp_path_factory.mktemp("whole")
    return run(folder), rows(folder)


def test_log(whole):
    """A row every 4 of 12 steps; each number is the mean over the 4 steps since the row before."""
    assert [row["step"] for row in whole[1]] == ["4", "8", "12"]
    assert float(whole[1][-1]["mse"]) < float(whole[1][0]["mse"])


@pytest.mark.parametrize("stop_at", [0, 1, 4, 6, 11])
def test_interrupted_run_ends_in_the_same_weights(tmp_path, whole, stop_at):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_at)
    assert load_file(tmp_path / "net.safetensors")["clock"][0] == stop_at
    seen = []
    resumed = run(tmp_path, on_step=seen.append)
    assert seen == list(range(stop_at, STEPS))
    assert same(resumed, whole[0]) and not same(resumed, conv_net())
    assert rows(tmp_path) == whole[1]


def test_interrupted_inside_an_update(tmp_path, whole, monkeypatch):
    """The weights have moved and their average has not: such a state is not kept."""
    calls = []

    def update(*args):
        calls.append(args)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return _update_ema(*args)

    monkeypatch.setattr(training, "_update_ema", update)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert same(run(tmp_path), whole[0])
    assert rows(tmp_path) == whole[1]


@pytest.mark.parametrize("save_seconds, goes_on_at", [(-1, 10), (1e9, 5)])
def test_killed_run_goes_on_from_the_last_checkpoint(tmp_path, whole, save_seconds, goes_on_at):
    """With the checkpoint of step 5, the row of step 8 is in the log already; it must not be there twice."""
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 5)
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path, 10, RuntimeError("killed"), save_seconds=save_seconds)
    with (tmp_path / "log.csv").open("a") as file:
        file.write("9")  # a row that was cut off
    seen = []
    assert same(run(tmp_path, on_step=seen.append), whole[0])
    assert seen[0] == goes_on_at
    assert rows(tmp_path) == whole[1]


def test_states_on_the_way_are_the_average_after_so_many_steps(tmp_path, whole):
    """Also for a run that was stopped: the states before the stop are kept, the others come when it goes on."""
    kept = {}
    options = {"keep": (0, 4, 8), "keeper": lambda step, ema: kept.setdefault(step, copy.deepcopy(ema))}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 6, **options)
    assert list(kept) == [0, 4] and same(kept[0], conv_net())
    assert same(run(tmp_path, **options), whole[0])  # the keeper changes nothing
    assert list(kept) == [0, 4, 8] and not same(kept[4], kept[8])
    again = {}
    (tmp_path / "again").mkdir()
    run(tmp_path / "again", keep=(4, 8), keeper=lambda step, ema: again.setdefault(step, copy.deepcopy(ema)))
    assert all(same(again[step], kept[step]) for step in (4, 8))


def test_a_new_run_starts_a_new_log(tmp_path, whole):
    run(tmp_path)
    run(tmp_path)
    assert rows(tmp_path) == whole[1]


def test_another_seed_sees_other_batches(tmp_path, whole):
    assert not same(run(tmp_path, seed=4), whole[0])


def test_the_average_is_returned_and_not_the_weights(tmp_path):
    net = conv_net()
    ema = run(tmp_path, net=net)
    assert not same(ema, net) and not ema.training and not any(p.requires_grad for p in ema.parameters())


def test_average_of_a_scalar():
    """0.9 * 2 + 0.1 * 5 = 2.3; buffers are copied."""
    ema, net = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    with torch.no_grad():
        ema.weight.fill_(2.0), net.weight.fill_(5.0), net.running_mean.fill_(7.0)
    _update_ema(ema, net, 0.9)
    assert ema.weight.item() == pytest.approx(2.3) and ema.running_mean.item() == 7.0 and net.weight.item() == 5.0


# Losses


def faces(n, size=32):
    return RenderedFaces(n, size=size, seed=5).load(np.arange(n))


def falls(loss, module, steps, rate, tmp_path, key, **settings):
    shared = dict(steps=steps, learning_rate=rate, warmup=5, log_every=steps // 4)
    train("t", module, loss, checkpoint=tmp_path / "c.safetensors", log=tmp_path / "log.csv", **shared, **settings)
    values = [float(row[key]) for row in rows(tmp_path)]
    return values[-1] / values[0]


def test_autoencoder_learns(tmp_path):
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=[8, 8, 8], latent_channels=4, layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False,
        down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3, sample_size=32,
    )  # fmt: skip
    loss = vae_loss(vae, faces(16), batch=2, full_share=0.5, crop=16, kl=1e-4, square=1.0, flip=True)
    assert falls(loss, vae, 40, 5e-3, tmp_path, "l1") < 0.9


class Mirror(nn.Module):
    """An autoencoder that answers x + 0.1 and has a known posterior."""

    def encode(self, x):
        self.x = x
        shape = (len(x), 4, x.shape[2] // 4, x.shape[3] // 4)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=torch.full(shape, 2.0), logvar=torch.full(shape, -1.0)))

    def decode(self, latents):
        return SimpleNamespace(sample=self.x + 0.1)


@pytest.mark.parametrize("full_share, shape", [(1.0, (2, 3, 32, 32)), (0.0, (8, 3, 16, 16))])
def test_autoencoder_loss_in_numbers(full_share, shape):
    """L1 0.1, no change of the gradients, squared error 0.01, KL (4 + e^-1 - 1 + 1) / 2; crops hold as many pixels."""
    mirror = Mirror()
    loss = vae_loss(mirror, faces(16), batch=2, full_share=full_share, crop=16, kl=0.5, square=3.0, flip=True)
    value, numbers = loss(0, torch.Generator().manual_seed(0))
    kl = (4 + np.exp(-1)) / 2
    assert value.item() == pytest.approx(0.1 + 3 * 0.01 + 0.5 * kl, rel=1e-4)
    assert numbers == pytest.approx({"l1": 0.1, "kl": kl, "psnr": 10 * np.log10(4 / 0.01)}, rel=1e-4)
    assert mirror.x.shape == shape


def tiny_unet():
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=[16, 16], norm_num_groups=4,
        down_block_types=["DownBlock2D"] * 2, up_block_types=["UpBlock2D"] * 2,
    )  # fmt: skip


def test_noise_predictor_learns(tmp_path):
    unet = tiny_unet()
    latents = torch.randn(20, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    loss = noise_loss(unet, latents, DDIMScheduler().alphas_cumprod, batch=16)
    assert falls(loss, unet, 40, 5e-3, tmp_path, "mse") < 0.8


class Oracle(nn.Module):
    """Knows x0 and the schedule and answers exactly."""

    def __init__(self, x0, alphas_cumprod, prediction_type):
        super().__init__()
        self.x0, self.alphas, self.type = x0, alphas_cumprod, prediction_type

    def forward(self, x, t):
        a = self.alphas[t].view(-1, 1, 1, 1)
        eps = (x - a.sqrt() * self.x0) / (1 - a).sqrt()
        known = {"epsilon": eps, "sample": self.x0.expand_as(x), "v_prediction": a.sqrt() * eps - (1 - a).sqrt() * self.x0}
        return SimpleNamespace(sample=known[self.type])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("answer", ["epsilon", "v_prediction", "sample"])
def test_the_target_is_the_prediction_type(prediction_type, answer):
    x0 = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    alphas = DDIMScheduler().alphas_cumprod
    loss = noise_loss(Oracle(x0, alphas, answer), x0, alphas, batch=8, prediction_type=prediction_type)
    value = loss(0, torch.Generator().manual_seed(0))[1]["mse"]
    assert value < 1e-6 if answer == prediction_type else value > 0.1


def test_unknown_prediction_type():
    with pytest.raises(ValueError, match="'flow'.*epsilon"):
        noise_loss(nn.Identity(), torch.zeros(1, 4, 8, 8), torch.ones(3), batch=1, prediction_type="flow")


def test_dino_learns(tmp_path):
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8)
    student, teacher = (DinoNet(ViTModel(config, add_pooling_layer=False), prototypes=16) for _ in range(2))
    teacher.load_state_dict(student.state_dict())
    before = teacher.prototypes.clone()
    loss = dino_loss(student, teacher, faces(32), batch=16, flip=True, smallest_crop=0.7, spread=0.1)
    assert falls(loss, student, 32, 3e-3, tmp_path, "loss", ema=teacher) < 0.97
    assert not torch.equal(teacher.prototypes, before)  # the teacher that the loss uses is the one that is averaged


def test_scores_of_a_head_are_cosines():
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8)
    features, scores = DinoNet(ViTModel(config, add_pooling_layer=False), prototypes=5)(torch.randn(3, 3, 32, 32))
    assert features.shape == (3, 32)
    assert scores.shape == (3, 5) and scores.abs().max() <= 1 + 1e-6


def test_koleo_rewards_spread():
    """Orthogonal unit vectors are sqrt(2) apart, whatever their length; a pair that coincides is as bad as it gets."""
    assert koleo(7 * torch.eye(4)).item() == pytest.approx(-math.log(math.sqrt(2)), abs=1e-5)
    assert koleo(torch.ones(2, 4)).item() > 5


def test_sinkhorn_balances():
    """Scores that all prefer prototype 0: rows still sum to one, and the prototypes are used about equally."""
    scores = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)) + torch.tensor([6.0] + [0.0] * 7)
    q = sinkhorn(scores)
    torch.testing.assert_close(q.sum(1), torch.ones(64))
    assert scores.softmax(1).sum(0).max() > 50
    assert (q.sum(0) - 8).abs().max() < 0.8
    assert (sinkhorn(scores, rounds=50).sum(0) - 8).abs().max() < 1e-3
    assert q.min() >= 0 and torch.isfinite(sinkhorn(scores * 50)).all()


def test_views_of_a_picture():
    x = torch.from_numpy(to_model_range(faces(4)))
    view = augment(x, 16, (0.25, 0.55), torch.Generator().manual_seed(0))
    assert view.shape == (4, 3, 16, 16) and view.min() >= -1 and view.max() <= 1
    assert torch.equal(view, augment(x, 16, (0.25, 0.55), torch.Generator().manual_seed(0)))
    assert not torch.equal(view, augment(x, 16, (0.25, 0.55), torch.Generator().manual_seed(1)))


def test_crops_have_the_share_of_the_area_asked_for():
    """On a horizontal ramp a crop of a quarter of the area spans half of the range, anywhere inside; gain is 0.8 to 1.2."""
    ramp = torch.linspace(-0.5, 0.5, 64).expand(200, 3, 64, 64).contiguous()
    view = augment(ramp, 32, (0.25, 0.25), torch.Generator().manual_seed(0))
    span = view.amax((1, 2, 3)) - view.amin((1, 2, 3))
    assert 0.5 * 0.8 * 0.9 < span.min() and span.max() < 0.5 * 1.2
    whole = augment(ramp, 64, (1.0, 1.0), torch.Generator().manual_seed(0))
    span = whole.amax((1, 2, 3)) - whole.amin((1, 2, 3))
    assert 0.8 <= span.min() and span.max() <= 1.2 + 1e-6


# Recipes

LATENT_DIFFUSION = {
    "kind": "latent-diffusion", "seed": 1, "flip": False, "images": {"rendered": 12, "size": 32, "seed": 9},
    "vae": {
        "channels": [8, 16, 16], "latents": 4, "groups": 4, "log_variance": -4.0, "batch": 2, "full_share": 0.6, "kl": 5e-4, "square": 2.0, "steps": 4,
        "learning_rate": 1e-3, "ema": 0.9,
    },
    "scheduler": {"num_train_timesteps": 100, "prediction_type": "v_prediction", "clip_sample": False, "timestep_spacing": "leading"},
    "unet": {"channels": [32, 32, 32], "batch": 4, "steps": 4, "learning_rate": 1e-3, "ema": 0.9, "compile": False},
}  # fmt: skip
DINO = {
    "kind": "dino", "seed": 2, "flip": True, "images": {"rendered": 12, "size": 32, "seed": 9},
    "vit": {"width": 32, "layers": 1, "patch": 8, "smallest_crop": 0.8, "spread": 0.1, "prototypes": 16, "batch": 4, "steps": 3, "learning_rate": 1e-3, "ema": 0.9},
}  # fmt: skip


@pytest.fixture
def models(tmp_path, monkeypatch):
    """An empty ``data/models``; the function writes a recipe into it."""
    monkeypatch.setattr(recipes, "MODELS", tmp_path / "models")
    monkeypatch.setattr(recipes, "HELD_OUT", 20)
    monkeypatch.setenv("UNE_CACHE", str(tmp_path / "cache"))

    def write(name, recipe):
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return folder

    return write


def weights(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*.safetensors"))}


def check_weights(folder):
    """float16 safetensors and nothing that needs a pickle; no half-written folder."""
    for path in folder.rglob("*.safetensors"):
        assert {v.dtype for v in load_file(path).values()} == {torch.float16}, path
    assert {p.suffix for p in folder.rglob("*") if p.is_file()} == {".safetensors", ".json", ".yaml", ".csv"}
    assert not list(folder.rglob(".part"))


def test_latent_diffusion_recipe(models, tmp_path, capsys):
    folder = models("toy", LATENT_DIFFUSION)
    recipes.train_model("toy")
    check_weights(folder)
    assert set(weights(folder)) == {"vae/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.safetensors"}
    generator = Generator.load(folder)
    assert generator.shape == (4, 8, 8) and generator.schedule(5).prediction_type == "v_prediction"
    x0 = generator.encode(torch.from_numpy(to_model_range(faces12())))
    assert x0.mean((0, 2, 3)).abs().max() < 0.1 and (x0.std((0, 2, 3)) - 1).abs().max() < 0.1  # measured on these pictures
    assert not list((tmp_path / "cache/train/toy").iterdir())  # checkpoints are gone
    measured = json.loads((folder / "held-out.json").read_text())
    assert measured["images"] == 20 and 0 < measured["vae_psnr_db"] < 20 and 0.5 < measured["noise_mse"] < 2
    first = weights(folder)
    recipes.train_model("toy")
    assert "weights are there" in capsys.readouterr().out
    recipes.train_model("toy", force=True)
    assert weights(folder) == first


def faces12():
    return RenderedFaces(12, size=32, seed=9).load(np.arange(12))


def interrupt(monkeypatch, name, at):
    """Raise Ctrl-C at step ``at`` of the training called ``name``."""
    whole = training.train

    def stopped(title, module, loss, **settings):
        def counted(step, generator):
            if title.endswith(name) and step == at:
                raise KeyboardInterrupt
            return loss(step, generator)

        return whole(title, module, counted, **settings)

    monkeypatch.setattr(recipes, "train", stopped)


@pytest.mark.parametrize("where, at", [("vae", 2), ("unet", 0), ("unet", 3)])
def test_recipe_goes_on_after_ctrl_c(models, monkeypatch, where, at):
    whole, folder = models("whole", LATENT_DIFFUSION), models("toy", LATENT_DIFFUSION)
    recipes.train_model("whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, where, at)
        recipes.train_model("toy")
    assert not (folder / "unet" / "config.json").exists()
    recipes.train_model("toy")
    assert weights(folder) == weights(whole)


def test_force_goes_on_with_nothing(models, monkeypatch):
    """An interrupted run of another recipe leaves a checkpoint and latents; --force must use neither."""
    folder, whole = models("toy", LATENT_DIFFUSION | {"seed": 8}), models("whole", LATENT_DIFFUSION)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, "unet", 2)
        recipes.train_model("toy")
    models("toy", LATENT_DIFFUSION)
    recipes.train_model("toy", force=True)
    recipes.train_model("whole")
    assert weights(folder) == weights(whole)


def test_latents_of_a_removed_autoencoder_are_not_used(models, monkeypatch):
    folder, whole = models("toy", LATENT_DIFFUSION | {"seed": 8}), models("whole", LATENT_DIFFUSION)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, "unet", 0)
        recipes.train_model("toy")
    shutil.rmtree(folder / "vae")
    for checkpoint in (folder.parents[1] / "cache/train/toy").glob("*.safetensors"):
        checkpoint.unlink()
    models("toy", LATENT_DIFFUSION)
    recipes.train_model("toy")
    recipes.train_model("whole")
    assert weights(folder) == weights(whole)


def test_dino_recipe(models):
    folder = models("toy", DINO)
    recipes.train_model("toy")
    check_weights(folder)
    assert set(weights(folder)) == {"model.safetensors"}
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == 32
    embedded = Encoder.load(folder).embed(torch.from_numpy(to_model_range(faces12())))
    assert embedded.shape == (12, 64) and torch.isfinite(embedded).all() and embedded.std(0).min() > 0


def test_weights_are_there_only_when_complete(models, monkeypatch):
    """Stopped while the weights are written: the next run does not take them for finished."""
    folder = models("toy", DINO)
    save = ViTModel.save_pretrained

    def half(self, path, **settings):
        save(self, path, **settings)
        (Path(path) / "model.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ViTModel, "save_pretrained", half)
        recipes.train_model("toy")
    recipes.train_model("toy")
    assert Encoder.load(folder).dimension == 64
    check_weights(folder)


def test_unknown_model_and_kind(models, monkeypatch, capsys):
    with pytest.raises(ProfileError, match="'nothing' has no recipe.*nothing/recipe.yaml"):
        recipes.train_model("nothing")
    models("odd", DINO | {"kind": "gan"})
    with pytest.raises(ProfileError, match="'gan'.*latent-diffusion, .*dino"):
        recipes.train_model("odd")
    monkeypatch.setattr("sys.argv", ["train", "--profile", "mini", "--only", "nothing"])
    assert recipes.main() == 1
    assert "error: model 'nothing' has no recipe" in capsys.readouterr().err


def test_pictures_of_a_train_split(tmp_path, tiny_profile):
    """Test rows never reach a model."""
    source = open_images(tiny_profile)
    mask = train_mask(source, tiny_profile.train_fraction, tiny_profile.seed)
    spec = {"images": {"train_split_of": str(tmp_path / "tiny.yaml")}}
    for _ in range(2):  # the second time from the cache
        found = recipes.training_images(spec)
        assert (np.asarray(found) == source.load(np.flatnonzero(mask))).all() and 0 < len(found) < len(mask)
