"""Pipelines of the hub against diffusers' own, on tiny random models of the same classes."""

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from une_utils.models import tiny
from une_utils.models.ddim import sample
from une_utils.models.generators import Generator, draw_noise
from une_utils.models.hspace import Bottleneck
from une_utils.models.pipelines import PipelineGenerator
from une_utils.settings import load_profile
from une_utils.zoo.build import build

STEPS = 5
SIZES = {"tiny/ddpm": ((3, 16, 16), 16), "tiny/ldm": ((3, 16, 16), 64)}  # the others have states (4, 8, 8) and pictures of 64


@pytest.fixture(scope="module")
def generator(hub_model):
    """Loaded once a model; tests that change one load their own."""
    loaded = {}

    def get(name):
        if name not in loaded:
            loaded[name] = Generator.load(hub_model(name))
        return loaded[name]

    return get


@pytest.fixture(scope="module")
def official(hub_model):
    """diffusers' own pipeline with the DDIM scheduler of its config, as a user sets it up."""

    def load(name, kind=None):
        index = json.loads((hub_model(name) / "model_index.json").read_text())
        pipe = getattr(diffusers, kind or index["_class_name"]).from_pretrained(hub_model(name), local_files_only=True)
        # from the folder: StableDiffusionPipeline raises the offset of a consistency model's scheduler from 0 to 1
        pipe.scheduler = DDIMScheduler.from_pretrained(hub_model(name) / "scheduler", clip_sample=False)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return load


def pictures(n, side=64):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def rms(x):
    return x.square().mean().sqrt().item()


def counted(generator):
    """The list of batch sizes that reach the network from now on."""
    sizes = []
    generator.unet.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    return sizes


@pytest.mark.parametrize("name", tiny.GENERATORS)
def test_every_class_has_the_interface_of_a_generator(name, generator):
    found, (shape, pixels) = generator(name), SIZES.get(name, ((4, 8, 8), 64))
    assert isinstance(found, PipelineGenerator) and (found.shape, found.pixels) == (shape, pixels)
    x0 = found.encode(pictures(2, 48))
    assert x0.shape == (2, *shape) and x0.dtype == torch.float32 and x0.device.type == "cpu"
    assert found(x0, 500).shape == x0.shape and not torch.allclose(found(x0, 1), found(x0, 900))
    assert found.decode(x0).shape == (2, 3, pixels, pixels)
    noise = found.noise_of(pictures(2).numpy(), 3, batch=1)
    assert noise.shape == (2, np.prod(shape)) and noise.dtype == np.float32
    drawn = found.draw(noise, 3)
    assert drawn.shape == (2, 3, pixels, pixels) and abs(drawn).max() <= 1


@pytest.mark.parametrize("name", tiny.GENERATORS)
def test_states_decode_to_what_was_encoded_from(name, generator):
    """The scaling that encode applies is the one that decode undoes, and it is the config's."""
    found = generator(name)
    if found.vae is None:
        assert torch.equal(found.encode(pictures(2, found.pixels)), pictures(2, found.pixels))
        return
    encoded = found.vae.encode(pictures(2))
    raw = encoded.latents if name == "tiny/ldm" else encoded.latent_dist.mode()
    torch.testing.assert_close(found.encode(pictures(2)), raw * found.vae.config.scaling_factor)
    torch.testing.assert_close(found.decode(found.encode(pictures(2))), found.vae.decode(raw).sample, atol=1e-4, rtol=1e-4)


def test_shift_and_channel_statistics_are_the_configs(hub_model):
    found = Generator.load(hub_model("tiny/sd15"))
    raw = found.vae.encode(pictures(1)).latent_dist.mode()
    found.vae.register_to_config(shift_factor=0.5, scaling_factor=2.0)
    shifted = PipelineGenerator(found.pipe, torch.float32, found.device)
    torch.testing.assert_close(shifted.encode(pictures(1)), (raw - 0.5) * 2)
    found.vae.register_to_config(shift_factor=None, latents_mean=[1.0, 2.0, 3.0, 4.0], latents_std=[1.0, 2.0, 4.0, 8.0])
    mean, std = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1), torch.tensor([1.0, 2.0, 4.0, 8.0]).view(1, 4, 1, 1)
    torch.testing.assert_close(PipelineGenerator(found.pipe, torch.float32, found.device).encode(pictures(1)), (raw - mean) / std * 2)


# Against diffusers' own pipelines


@pytest.mark.parametrize("name", ["tiny/sd15", "tiny/sd21v", "tiny/lcm", "tiny/sdxl"])
def test_samples_are_those_of_the_pipeline(name, generator, official):
    """Empty prompt, eta 0. A latent consistency model reads its guidance, 3.5, from an embedding, as Stable Diffusion's class feeds it."""
    found, noise = generator(name), draw_noise((4, 8, 8), 3, range(2))
    kind, guidance = ("StableDiffusionPipeline", 3.5) if name == "tiny/lcm" else (None, 1.0)
    expected = official(name, kind)(
        prompt=[""] * 2, latents=noise, guidance_scale=guidance, num_inference_steps=STEPS, output_type="latent"
    ).images  # fmt: skip
    x0 = sample(found, noise, found.schedule(STEPS))
    torch.testing.assert_close(x0, expected, atol=1e-4, rtol=1e-4)
    assert rms(x0 - noise) > 0.01


@pytest.mark.parametrize("name", ["tiny/ddpm", "tiny/ldm", "tiny/dit"])
def test_pictures_are_those_of_the_pipeline(name, generator, official):
    """These pipelines draw their noise themselves, so the same seed is given to both."""
    found, seed = generator(name), torch.Generator().manual_seed(5)
    noise = torch.randn((2, *found.shape), generator=torch.Generator().manual_seed(5))
    what = {"class_labels": [1000] * 2, "guidance_scale": 1.0} if name == "tiny/dit" else {"batch_size": 2}
    drawn = official(name)(**what, generator=seed, num_inference_steps=STEPS, output_type="np").images
    ours = (found.decode(sample(found, noise, found.schedule(STEPS))) / 2 + 0.5).clamp(0, 1)
    np.testing.assert_allclose(ours.permute(0, 2, 3, 1).numpy(), drawn, atol=1e-4)


def test_guidance_on_an_empty_prompt_changes_nothing_but_rounding(hub_model, official):
    """Guidance 3.5 between twice the same embedding, two calls a step, against our one."""
    found, noise = Generator.load(hub_model("tiny/sd15")), draw_noise((4, 8, 8), 3, range(2))
    expected = official("tiny/sd15")(
        prompt=[""] * 2, negative_prompt=[""] * 2, latents=noise, guidance_scale=3.5, num_inference_steps=STEPS, output_type="latent"
    ).images  # fmt: skip
    sizes = counted(found)
    torch.testing.assert_close(sample(found, noise, found.schedule(STEPS)), expected, atol=1e-4, rtol=1e-4)
    assert sizes == [2] * STEPS


@pytest.mark.parametrize("name", ["tiny/sd15", "tiny/sdxl"])
def test_a_prompt_is_guided_at_two_calls(name, hub_model, official):
    """SDXL's opposite is zeros, not the empty text: its config says so."""
    found, noise = Generator.load(hub_model(name)), draw_noise((4, 8, 8), 3, range(1))
    alone = sample(found, noise, found.schedule(STEPS))
    expected = official(name)(prompt="a face of a man", latents=noise, guidance_scale=3.5, num_inference_steps=STEPS, output_type="latent").images
    sizes = counted(found.condition("a face of a man", 3.5))
    x0 = sample(found, noise, found.schedule(STEPS))
    assert len(sizes) == 2 * STEPS
    torch.testing.assert_close(x0, expected, atol=2e-4, rtol=2e-4)
    assert rms(x0 - alone) > 1e-4
    torch.testing.assert_close(sample(found.condition(), noise, found.schedule(STEPS)), alone)  # and back


def test_guidance_is_a_class_for_dit_and_an_embedding_for_lcm(hub_model, generator):
    x = draw_noise((4, 8, 8), 3, range(1))
    dit, lcm = Generator.load(hub_model("tiny/dit")), Generator.load(hub_model("tiny/lcm"))
    nothing, cat = dit(x, 500), dit.condition("tabby", 1.0)(x, 500)
    torch.testing.assert_close(dit.condition("tabby", 3.0)(x, 500), nothing + 3 * (cat - nothing), atol=1e-5, rtol=1e-4)
    sizes = counted(lcm)
    first, second = lcm.condition("a face", 3.5)(x, 500), lcm.condition("a face", 8.0)(x, 500)
    assert rms(first - second) > 1e-6 and len(sizes) == 2


@pytest.mark.parametrize("name", ["tiny/sd15", "tiny/sd21v"])
def test_inversion_inverts_the_pipelines_samples(name, generator, official):
    """Bound: noise and pictures come back to 1e-3 (root mean square), with fixed points; without, the way back is at least ten times worse."""
    found, noise = generator(name), draw_noise((4, 8, 8), 3, range(2))
    schedule = found.schedule(10)
    x0 = official(name)(prompt=[""] * 2, latents=noise, guidance_scale=1.0, num_inference_steps=10, output_type="latent").images
    exact = found.invert(x0, schedule, fixed_point=30, tolerance=1e-6)
    assert rms(exact.latents - noise) < 1e-3 and exact.residual.max() < 1e-4
    assert rms(sample(found, exact.latents, schedule) - x0) < 1e-3
    assert rms(found.invert(x0, schedule).latents - noise) > 10 * rms(exact.latents - noise)


def test_the_schedule_is_read_from_the_config(generator):
    sd15, sd21v, sdxl = (generator(f"tiny/{name}") for name in ("sd15", "sd21v", "sdxl"))
    alphas = DDIMScheduler(**tiny.SD_LEVELS).alphas_cumprod
    schedule = sd15.schedule(50)
    assert schedule.timesteps[:2] == (1, 21) and schedule.levels[0] == pytest.approx(alphas[0].item())  # offset 1, final alpha not one
    assert schedule.prediction_type == "epsilon" and sd21v.schedule(50).prediction_type == "v_prediction"
    assert sdxl.schedule(50).timesteps[:2] == (1, 21) and sdxl.schedule(50).levels[0] == 1.0
    assert generator("tiny/lcm").schedule(150).timesteps[:2] == (0, 6)


# Types, memory, values that are not finite


def test_the_vae_stays_in_float32_where_half_overflows(hub_model, tmp_path):
    half = PipelineGenerator.load(hub_model("tiny/sdxl"), dtype=torch.bfloat16)
    assert (half.unet.dtype, half.vae.dtype) == (torch.bfloat16, torch.float32) and not half.precise
    shutil.copytree(hub_model("tiny/sdxl"), tmp_path / "fixed")
    config = tmp_path / "fixed/vae/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"force_upcast": False}))
    assert PipelineGenerator.load(tmp_path / "fixed", dtype=torch.bfloat16).vae.dtype == torch.bfloat16
    x, full = draw_noise((4, 8, 8), 3, range(2)), Generator.load(hub_model("tiny/sdxl"))
    assert 0 < rms(half(x, 500) - full(x, 500)) < 0.05 * rms(full(x, 500)) and half(x, 500).dtype == torch.float32
    assert PipelineGenerator.load(hub_model("tiny/sdxl"), precise=True, dtype=torch.bfloat16).dtype == torch.float32


def test_a_batch_that_does_not_fit_is_halved(hub_model):
    found, x = Generator.load(hub_model("tiny/sd15")), draw_noise((4, 8, 8), 3, range(5))
    expected = sample(found, x, found.schedule(2))

    def room_for_two(module, args):
        if len(args[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory (a fake)")

    found.unet.register_forward_pre_hook(room_for_two)
    sizes = counted(found)
    torch.testing.assert_close(sample(found, x, found.schedule(2)), expected, atol=1e-5, rtol=1e-4)
    assert sizes == [2, 2, 1] * 2  # a call that failed does not reach the counter behind


@pytest.fixture
def overflowing(hub_model):
    """Half precision whose network gives NaN for states that begin with a large number, as an overflow would."""
    found = PipelineGenerator.load(hub_model("tiny/sd15"), dtype=torch.bfloat16)

    def overflow(module, args, output):
        bad = args[0][:, 0, 0, 0].abs() > 50
        return (torch.where(bad[:, None, None, None] & (args[0].dtype == torch.bfloat16), torch.nan, output[0]),)

    found.unet.register_forward_hook(overflow)
    return found


def test_an_image_that_overflows_is_inverted_again_in_float32(overflowing, hub_model):
    x0, schedule = draw_noise((4, 8, 8), 3, range(3)), overflowing.schedule(3)
    x0[1, 0, 0, 0] = 100
    with pytest.warns(UserWarning, match=r"1 of 3 images were not finite in torch.bfloat16 and are inverted again in float32: rows \[1\]"):
        found = overflowing.invert(x0, schedule, trajectory=True)
    rounded = Generator.load(hub_model("tiny/sd15"))
    rounded.unet.to(torch.bfloat16).float()
    expected = rounded.invert(x0, schedule, trajectory=True)
    torch.testing.assert_close(found.latents[1], expected.latents[1])
    torch.testing.assert_close(found.trajectory[:, 1], expected.trajectory[:, 1])
    assert found.latents.isfinite().all() and not torch.allclose(found.latents[0], expected.latents[0], rtol=0, atol=1e-7)
    assert overflowing.unet.dtype == overflowing.dtype == torch.bfloat16


def test_latents_that_are_never_finite_are_an_error(overflowing):
    x0 = draw_noise((4, 8, 8), 3, range(3))
    x0[2] = torch.nan
    with pytest.warns(UserWarning, match=r"rows \[2\]"), pytest.raises(FloatingPointError, match=r"images \[2\] of the batch"):
        overflowing.invert(x0, overflowing.schedule(3))
    assert overflowing.unet.dtype == torch.bfloat16


def test_a_vae_that_overflows_encodes_again_in_float32(hub_model):
    found = Generator.load(hub_model("tiny/sd15"))
    found.vae.to(torch.bfloat16).float()
    expected = found.encode(pictures(2))
    found.vae.to(torch.bfloat16)

    def overflow(module, args, output):
        return torch.where(torch.tensor([False, True])[-len(output) :, None, None, None] & (output.dtype == torch.bfloat16), torch.inf, output)

    found.vae.encoder.register_forward_hook(overflow)
    with pytest.warns(UserWarning, match=r"encoded again in float32: rows \[1\]"):
        x0 = found.encode(pictures(2))
    torch.testing.assert_close(x0[1], expected[1])
    assert found.vae.dtype == torch.bfloat16


# Loading


def test_untrained_seed_draws_the_network_only(hub_model, generator):
    stored, first, again = generator("tiny/sd15"), *(Generator.load(hub_model("tiny/sd15"), untrained_seed=1) for _ in range(2))
    x = draw_noise((4, 8, 8), 3, range(1))
    torch.testing.assert_close(first(x, 500), again(x, 500))
    assert not torch.allclose(first(x, 500), stored(x, 500), atol=1e-3)
    torch.testing.assert_close(first.encode(pictures(1)), stored.encode(pictures(1)))


def test_a_fine_tuned_network_takes_the_pipelines_place(hub_model, generator):
    """What DiffusionCLIP leaves is a U-Net; text encoder, VAE and schedule stay the pipeline's."""
    own = hub_model("tiny/sd15") / "unet"
    stored, same, other = (Generator.load(hub_model("tiny/sd15"), unet=u) for u in ("unet", own, hub_model("tiny/sd15-clip-smiling") / "unet"))
    x = draw_noise((4, 8, 8), 3, range(1))
    torch.testing.assert_close(stored(x, 500), same(x, 500))
    assert not torch.allclose(stored(x, 500), other(x, 500), atol=1e-3)
    torch.testing.assert_close(stored.encode(pictures(1)), other.encode(pictures(1)))


def test_gradients_reach_states_and_a_shift_of_the_bottleneck(hub_model, generator):
    """As the training of f_t and classifier guidance need them; without a request no graph is kept."""
    found = generator("tiny/sd15")
    x = draw_noise((4, 8, 8), 3, range(1))
    assert not found(x, 500).requires_grad and not found.decode(x).requires_grad
    asked = x.clone().requires_grad_()
    found.decode(found(asked, 500)).sum().backward()
    assert asked.grad.abs().sum() > 0
    shift = torch.zeros(Bottleneck(found).read(x, 500).shape, requires_grad=True)
    plain, shifted = Bottleneck(found).predict(x, 500, lambda h, t: shift)
    torch.testing.assert_close(plain, shifted.detach())
    shifted.sum().backward()
    assert shift.grad.abs().sum() > 0


def test_the_safety_checker_of_the_index_is_not_needed(hub_model, tmp_path):
    """As the hub's Stable Diffusion 1.5 lists it; its weights are not downloaded."""
    shutil.copytree(hub_model("tiny/sd15"), tmp_path / "listed")
    index = tmp_path / "listed/model_index.json"
    changes = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "feature_extractor": ["transformers", "CLIPImageProcessor"]}
    index.write_text(json.dumps(json.loads(index.read_text()) | changes))
    assert Generator.load(tmp_path / "listed").shape == (4, 8, 8)


def test_compiled_on_request(hub_model, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda module: asked.append(module) or module)
    found = PipelineGenerator.load(hub_model("tiny/ddpm"), compiled=True)
    assert asked == [found.unet]


def test_what_has_no_adapter_is_named(hub_model, tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ValueError, match="no adapter for class 'FluxPipeline'; expected one of StableDiffusionPipeline"):
        Generator.load(tmp_path)
    found = Generator.load(hub_model("tiny/sd15"))
    found.pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="has no beta_schedule; DDIM inversion needs"):
        PipelineGenerator(found.pipe, torch.float32, found.device)
    found = Generator.load(hub_model("tiny/sd15"))
    found.pipe.unet = tiny._unet(in_channels=9)
    with pytest.raises(ValueError, match="reads 9 channels, the VAE has 4"):
        PipelineGenerator(found.pipe, torch.float32, found.device)


def test_prompts_that_nothing_reads_are_refused(generator):
    with pytest.raises(ValueError, match="DDPMPipeline is unconditional"):
        generator("tiny/ddpm").condition("a face")
    with pytest.raises(ValueError, match="class 'zebra' is not known; expected one of golden retriever"):
        generator("tiny/dit").condition("zebra")


def test_a_zoo_of_pipelines(hub_model, tiny_profile, tmp_path):
    """Noise, the VAE's latents and embeddings in a zoo; SDXL has other scaling than SD 1.5 although pictures are shared."""
    changes = {
        "generators": [{"name": n, "path": str(hub_model(f"tiny/{n}"))} for n in ("sd15", "sdxl")],
        "encoders": [{"name": "clip", "path": str(hub_model("tiny/clip"))}],
        "images.count": 10, "zoo.steps": 3, "zoo.convention": "une",
    }  # fmt: skip
    zoo = build(load_profile(str(tmp_path / "tiny.yaml"), changes), workers=1, progress=False)
    assert zoo.names == ["sd15", "sd15-untrained", "sd15-vae", "sdxl", "clip", "pixels"]
    assert [zoo.latents(n).shape[1] for n in zoo.names] == [256, 256, 256, 256, 12, 3 * 32 * 32]
    x = torch.tensor(zoo.latents("pixels")[:4].reshape(-1, 3, 32, 32))
    for name in ("sd15", "sdxl"):
        found = Generator.load(hub_model(f"tiny/{name}"))
        latents = found.invert(found.encode(x), found.schedule(3), convention="une").latents.flatten(1).numpy()
        np.testing.assert_allclose(zoo.latents(name)[:4], latents, atol=2e-2)  # stored pictures and latents are float16
