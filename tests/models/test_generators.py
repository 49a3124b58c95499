"""Generators and encoders: folders of weights behind one interface."""

import math

import pytest
import torch

from une_utils.models.ddim import invert, sample
from une_utils.models.encoders import Encoder
from une_utils.models.generators import Generator, draw_noise, one_per_space
from une_utils.settings import Model


@pytest.fixture(scope="module")
def generator(tiny_models):
    return Generator.load(tiny_models.generator, precise=True)


def pictures(n, seed=0):
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_shapes(generator):
    x0 = generator.encode(pictures(3))
    assert generator.shape == (4, 8, 8)
    assert x0.shape == (3, 4, 8, 8) and x0.dtype == torch.float32 and x0.is_contiguous()
    assert generator(x0, 10).shape == x0.shape and generator(x0, 10).dtype == torch.float32
    assert generator.decode(x0).shape == (3, 3, 32, 32)


def test_states_are_standardised_by_the_config(generator):
    """Mean 0.1 and deviation 0.5 for channel 0 of the tiny VAE, and so on: encode applies them, decode undoes them."""
    raw = generator.vae.encode(pictures(3)).latent_dist.mean
    mean, std = torch.tensor([0.1, 0.0, -0.1, 0.2]), torch.tensor([0.5, 1.0, 0.8, 1.2])
    x0 = generator.encode(pictures(3))
    torch.testing.assert_close(x0 * std.view(1, 4, 1, 1) + mean.view(1, 4, 1, 1), raw)
    torch.testing.assert_close(generator.decode(x0), generator.vae.decode(raw).sample)


def test_decoded_pictures_are_not_clipped(generator):
    assert generator.decode(20 * draw_noise(generator.shape, 0, range(4))).abs().max() > 1


def test_the_network_sees_the_timestep(generator):
    x = draw_noise(generator.shape, 0, range(2))
    assert not torch.allclose(generator(x, 0), generator(x, 900))
    torch.testing.assert_close(generator(x, 900), generator.unet(x, torch.tensor([900, 900])).sample)


def test_pictures_do_not_depend_on_the_batch(generator):
    x = pictures(5)
    torch.testing.assert_close(torch.cat([generator.encode(p) for p in x.split(2)]), generator.encode(x), rtol=1e-4, atol=1e-5)


def test_invert_and_sample_with_the_object_itself(generator):
    schedule = generator.schedule(5)
    x0 = generator.encode(pictures(2))
    latents = invert(generator, x0, schedule, fixed_point=50, tolerance=1e-6).latents
    assert latents.shape == (2, *generator.shape)
    torch.testing.assert_close(sample(generator, latents, schedule), x0, rtol=0, atol=1e-2)


def test_results_can_be_used_in_a_graph(generator, tiny_models):
    """Notebooks fit small torch models on latents; tensors made under inference mode would refuse."""
    for x in (generator.encode(pictures(2)), generator.decode(torch.zeros(2, 4, 8, 8)), Encoder.load(tiny_models.encoder).embed(pictures(2))):
        assert not x.requires_grad
        weight = torch.ones((), requires_grad=True)
        (weight * x).sum().backward()
        assert weight.grad == pytest.approx(x.sum().item(), abs=1e-2)


def test_bfloat16_is_close_to_precise(generator, tiny_models):
    fast = Generator.load(tiny_models.generator)
    x = draw_noise(generator.shape, 0, range(4))
    difference = (fast(x, 500) - generator(x, 500)).square().mean().sqrt() / generator(x, 500).square().mean().sqrt()
    assert 0 < difference < 0.02
    torch.testing.assert_close(fast.encode(pictures(2)), generator.encode(pictures(2)))  # only the network is rounded


def test_loaded_weights_are_the_files(generator, tiny_models):
    from safetensors.torch import load_file

    stored = load_file(tiny_models.generator / "unet" / "diffusion_pytorch_model.safetensors")
    loaded = generator.unet.state_dict()
    assert set(stored) == set(loaded)
    assert all(torch.equal(v.float(), loaded[k]) for k, v in stored.items())


def test_untrained_control(generator, tiny_models):
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    first, again, other = (Generator.load(tiny_models.generator, untrained_seed=seed) for seed in (42, 42, 43))
    assert torch.equal(torch.randn(3), expected)  # the global generator is where it was
    x = draw_noise(generator.shape, 0, range(2))
    torch.testing.assert_close(first(x, 10), again(x, 10))
    assert not torch.allclose(first(x, 10), other(x, 10))
    assert not torch.allclose(first(x, 10), generator(x, 10), atol=1e-2)
    torch.testing.assert_close(first.encode(pictures(2)), generator.encode(pictures(2)))  # the VAE is the trained one
    assert first.schedule(5) == generator.schedule(5)


def test_nothing_is_trainable(generator, tiny_models):
    for module in (generator.vae, generator.unet, Encoder.load(tiny_models.encoder).model):
        assert not module.training and not any(p.requires_grad for p in module.parameters())


def test_schedule_is_the_models(tiny_models, tmp_path):
    folder = tiny_models.write_generator(tmp_path / "v", prediction_type="v_prediction")
    schedule = Generator.load(folder).schedule(10)
    assert schedule.prediction_type == "v_prediction" and len(schedule) == 10


def test_noise_belongs_to_the_image():
    whole = draw_noise((4, 8, 8), 7, range(10))
    assert whole.shape == (10, 4, 8, 8)
    assert torch.equal(draw_noise((4, 8, 8), 7, [3, 8, 0]), whole[[3, 8, 0]])
    assert len({x.numpy().tobytes() for x in whole}) == 10
    assert not torch.equal(draw_noise((4, 8, 8), 8, range(10)), whole)
    assert abs(whole.mean()) < 5 / math.sqrt(whole.numel()) and abs(whole.std() - 1) < 0.1


def test_noise_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    draw_noise((4, 8, 8), 0, range(3))
    assert torch.equal(torch.randn(3), expected)


def test_embedding(tiny_models):
    encoder = Encoder.load(tiny_models.encoder)
    found = encoder.embed(pictures(3))
    assert encoder.dimension == 32 and found.shape == (3, 32) and found.dtype == torch.float32
    tokens = encoder.model(pictures(3)).last_hidden_state
    torch.testing.assert_close(found[:, :16], tokens[:, 0])
    torch.testing.assert_close(found[:, 16:], tokens[:, 1:].mean(1))
    torch.testing.assert_close(encoder.embed(pictures(3)[1:2]), found[1:2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0], found[1])


def test_missing_weights(tmp_path):
    with pytest.raises(OSError):
        Generator.load(tmp_path / "nothing")
    with pytest.raises(OSError):
        Encoder.load(tmp_path / "nothing")


def test_first_generator_of_each_space(tiny_models, tmp_path):
    """Pixel models have no folder "vae"; the order of the profile decides which one stands for its space."""
    (tmp_path / "pixels" / "unet").mkdir(parents=True)
    latent, again = (Model(name=n, path=str(tiny_models.generator)) for n in ("latent", "again"))
    pixels = Model(name="pixels", path=str(tmp_path / "pixels"))
    assert one_per_space([latent, again, pixels]) == {"latent diffusion": latent, "pixel diffusion": pixels}
    assert one_per_space([again]) == {"latent diffusion": again}
