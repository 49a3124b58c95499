"""h-space: what a shift does to a step, that nothing else is touched, and f_t from recipe to edit."""

import json
import math

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDIMScheduler, DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPConfig, CLIPModel, ResNetConfig, ResNetForImageClassification

from une_utils.images.rendered import FACTORS
from une_utils.models import train as recipes
from une_utils.models.ddim import PREDICTION_TYPES, denoise, make_schedule, sample, to_x0
from une_utils.models.encoders import TOKENS
from une_utils.models.generators import Generator, draw_noise
from une_utils.models.hspace import (
    Bottleneck, Combination, Curves, ImplicitShift, OutputSpace, StepShift, asymmetric_step, cancellation, choose_t_boost, choose_t_edit, edit,
    global_shift, layers, mean_shift, perceptual_curves, probe_shift, record_changes, relative_shift, stochastic_step,
)  # fmt: skip
from une_utils.models.losses import ShiftChain, directional_loss, hspace_loss

STEPS = 6
SHAPE = (16, 4, 4)  # of h in the tiny generator


@pytest.fixture(scope="module")
def generator(tiny_models):
    return Generator.load(tiny_models.generator, precise=True)


@pytest.fixture(scope="module")
def bottleneck(generator):
    return Bottleneck(generator)


@pytest.fixture(scope="module")
def noise(generator):
    return draw_noise(generator.shape, 0, range(3))


def constant(size=1.0, seed=1, steps=STEPS):
    return StepShift({0: size * torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))}, steps)


def nothing(h, t):
    return torch.zeros_like(h)


def untouched(unet):
    """No hook and no replaced forward is left anywhere in the network."""
    return not any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in unet.modules())


# One prediction


@pytest.mark.parametrize("precise", [True, False])
def test_both_outputs_come_from_one_pass_of_the_encoder(tiny_models, noise, precise):
    generator = Generator.load(tiny_models.generator, precise=precise)
    calls, handles = [], []
    for name in ("conv_in", "down_blocks.1.resnets.0", "mid_block.resnets.0", "up_blocks.0", "conv_out"):
        handles.append(generator.unet.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name)))
    plain, same = Bottleneck(generator).predict(noise, 500, nothing)
    for handle in handles:
        handle.remove()
    calls = [name for name in calls if name != "conv_in"]  # answers twice, computes once
    assert calls == ["down_blocks.1.resnets.0", "mid_block.resnets.0", "up_blocks.0", "conv_out", "up_blocks.0", "conv_out"]
    assert torch.equal(plain, generator(noise, 500)) and torch.equal(same, plain)


def test_a_shift_is_what_a_changed_middle_block_gives(generator, bottleneck, noise):
    """Against the network with the shift added by a hook, and its encoder computed again."""
    delta = constant().deltas[0]
    handle = generator.unet.mid_block.register_forward_hook(lambda _, inputs, h: h + delta)
    expected = generator(noise, 300)
    handle.remove()
    plain, shifted = bottleneck.predict(noise, 300, lambda h, t: delta)
    assert torch.equal(shifted, expected) and torch.equal(plain, generator(noise, 300)) and not torch.allclose(plain, shifted, atol=1e-2)


def test_h_is_the_output_of_the_middle_block(generator, bottleneck, noise):
    seen = []
    handle = generator.unet.mid_block.register_forward_hook(lambda _, inputs, h: seen.append(h))
    generator(noise, 300)
    handle.remove()
    assert torch.equal(bottleneck.read(noise, 300), seen[0]) and seen[0].shape == (3, *SHAPE)
    given = []
    bottleneck.predict(noise, 300, lambda h, t: given.append((h, t)) or 0 * h)
    assert torch.equal(given[0][0], seen[0]) and given[0][1] == 300


def test_layers_are_in_the_order_in_which_they_run(generator, noise):
    names = layers(generator.unet)
    assert names[:2] == ["down_blocks.0.resnets.0", "down_blocks.1.resnets.0"] and names[2] == "mid_block" and len(names) == 7
    ran = []
    handles = [generator.unet.get_submodule(n).register_forward_hook(lambda *_, n=n: ran.append(n)) for n in names]
    generator(noise, 10)
    for handle in handles:
        handle.remove()
    assert ran == names


def test_every_layer_can_be_shifted(generator, noise):
    outputs = []
    for name in layers(generator.unet):
        handle = generator.unet.get_submodule(name).register_forward_hook(lambda _, inputs, h: h + 0.5)
        expected = generator(noise, 300)
        handle.remove()
        bottleneck = Bottleneck(generator, layer=name)
        plain, shifted = bottleneck.predict(noise, 300, lambda h, t: torch.full_like(h, 0.5))
        torch.testing.assert_close(shifted, expected)
        assert torch.equal(plain, generator(noise, 300)) and torch.equal(*bottleneck.predict(noise, 300, nothing))
        outputs.append(shifted)
    assert not any(torch.allclose(a, b) for i, a in enumerate(outputs) for b in outputs[:i])
    assert untouched(generator.unet)


def test_unknown_layer(generator):
    with pytest.raises(ValueError, match=r"layer 'mid' is not known; expected one of down_blocks\.0\.resnets\.0, .*mid_block"):
        Bottleneck(generator, layer="mid")


def test_network_is_untouched_after_use_and_after_an_exception(generator, bottleneck, noise):
    def broken(h, t):
        raise RuntimeError("no shift")

    def decoder_breaks(module, inputs, output):
        if torch.is_grad_enabled():
            raise RuntimeError("second pass")

    bottleneck.read(noise, 10)
    bottleneck.predict(noise, 10, nothing)
    assert untouched(generator.unet)
    with pytest.raises(RuntimeError, match="no shift"):
        bottleneck.predict(noise, 10, broken)
    assert untouched(generator.unet)
    with pytest.raises(RuntimeError):
        bottleneck.read(noise[:, :1], 10)  # the network itself fails
    assert untouched(generator.unet)
    handle = generator.unet.conv_out.register_forward_hook(decoder_breaks)
    with pytest.raises(RuntimeError, match="second pass"):
        bottleneck.predict(noise, 10, nothing)
    handle.remove()
    assert untouched(generator.unet)


def test_a_forward_that_was_replaced_before_comes_back(generator, bottleneck, noise):
    """As accelerate does for offloading."""
    block = generator.unet.mid_block
    block.forward = replaced = lambda *a, **k: type(block).forward(block, *a, **k)
    try:
        bottleneck.predict(noise, 10, nothing)
        assert block.__dict__["forward"] is replaced
    finally:
        del block.forward


def test_a_model_that_runs_another_network(generator, tiny_models, noise):
    other = Generator.load(tiny_models.generator)
    with pytest.raises(ValueError, match="the model did not run 'mid_block' of this UNet2DModel"):
        Bottleneck(other, generator.unet).read(noise, 10)


def test_conditional_unet(noise):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=[16, 16], norm_num_groups=4, cross_attention_dim=12,
        down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"], up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"], attention_head_dim=4,
    ).eval().requires_grad_(False)  # fmt: skip
    text, delta = torch.randn(3, 5, 12), torch.randn(SHAPE)

    def model(x, t):
        return unet(x, t, encoder_hidden_states=text).sample

    bottleneck = Bottleneck(model, unet)
    handle = unet.mid_block.register_forward_hook(lambda _, inputs, h: h + delta)
    expected = model(noise, 40)
    handle.remove()
    plain, shifted = bottleneck.predict(noise, 40, lambda h, t: delta)
    assert torch.equal(shifted, expected) and torch.equal(plain, model(noise, 40)) and untouched(unet)
    schedule = make_schedule(DDIMScheduler(), 4)
    assert torch.equal(edit(bottleneck, noise, schedule, nothing, t_edit=0), sample(model, noise, schedule))


def test_a_transformer_has_no_bottleneck(noise):
    dit = DiTTransformer2DModel(num_attention_heads=1, attention_head_dim=8, in_channels=4, num_layers=1, sample_size=8, norm_num_groups=1)
    with pytest.raises(ValueError, match="DiTTransformer2DModel has no bottleneck to shift: .* use a UNet2DModel or a UNet2DConditionModel"):
        Bottleneck(lambda x, t: x, dit)


def test_a_unet_without_a_middle(noise):
    unet = UNet2DModel(
        sample_size=8, layers_per_block=1, block_out_channels=[8], norm_num_groups=4, down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"],
        mid_block_type=None,
    )  # fmt: skip
    with pytest.raises(ValueError, match="no bottleneck"):
        layers(unet)


# One step


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_asymmetric_step_is_the_papers(kind):
    """sqrt(b) P_t of the shifted output, D_t of the plain one."""
    x, output, shifted = (draw_noise((4, 8, 8), seed, range(2)).double() for seed in range(3))
    a, b = 0.3, 0.4
    eps = {"epsilon": output, "v_prediction": a**0.5 * output + (1 - a) ** 0.5 * x, "sample": (x - a**0.5 * output) / (1 - a) ** 0.5}[kind]
    expected = b**0.5 * to_x0(shifted, x, a, kind) + (1 - b) ** 0.5 * eps
    torch.testing.assert_close(asymmetric_step(x, output, shifted, a, b, kind), expected)
    assert torch.equal(asymmetric_step(x, output, output, a, b, kind), denoise(output, x, a, b, kind))


def test_theorem_1():
    """A change of eps in both terms leaves the coefficient of the theorem; in P_t alone it leaves - sqrt(b (1 - a) / a)."""
    x, eps, change = (draw_noise((4, 8, 8), seed, range(2)).double() for seed in range(3))
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alphas = (1 - betas).cumprod(0)
    for t in (1, 20, 500, 999):
        a, b, beta = alphas[t].item(), alphas[t - 1].item(), betas[t].item()
        plain = denoise(eps, x, a, b, "epsilon")
        both = (denoise(eps + change, x, a, b, "epsilon") - plain) / change
        alone = (asymmetric_step(x, eps, eps + change, a, b, "epsilon") - plain) / change
        paper = (math.sqrt(max(0, 1 - a - beta)) - math.sqrt(1 - a)) / math.sqrt(1 - beta)
        torch.testing.assert_close(both, torch.full_like(both, cancellation(a, b)), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(alone, torch.full_like(alone, -math.sqrt(b * (1 - a) / a)), rtol=1e-6, atol=1e-9)
        assert cancellation(a, b) == pytest.approx(paper, rel=1e-6)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_stochastic_step_is_diffusers_with_eta_1(kind):
    theirs = DDIMScheduler(prediction_type=kind, clip_sample=False, set_alpha_to_one=True)
    theirs.set_timesteps(10)
    schedule = make_schedule(theirs, 10)
    x, output, z = (draw_noise((4, 8, 8), seed, range(2)) for seed in range(3))
    for i, t in enumerate(schedule.timesteps):
        expected = theirs.step(output, t, x, eta=1.0, variance_noise=z).prev_sample
        found = stochastic_step(x, output, z, schedule.levels[i + 1], schedule.levels[i], kind)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


# The whole process


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_zero_shift_is_plain_ddim_bit_for_bit(tiny_models, tmp_path, noise, kind):
    for precise in (True, False):
        generator = Generator.load(tiny_models.write_generator(tmp_path / str(precise), prediction_type=kind), precise=precise)
        schedule = generator.schedule(STEPS)
        for symmetric in (False, True):
            found = edit(Bottleneck(generator), noise, schedule, nothing, t_edit=0, symmetric=symmetric, trajectory=True)
            assert torch.equal(found, sample(generator, noise, schedule, trajectory=True))
        assert torch.equal(edit(Bottleneck(generator), noise, schedule, constant(), t_edit=0, strength=0.0), sample(generator, noise, schedule))


class LinearDecoder(nn.Module):
    """A U-Net in name: blocks that can be hooked, and an output that is linear in h."""

    def __init__(self):
        super().__init__()
        self.conv_in, self.down_blocks = nn.Conv2d(4, 4, 1), nn.ModuleList([nn.Tanh()])
        self.mid_block, self.up_blocks = nn.Conv2d(4, 4, 1), nn.ModuleList([nn.Identity()])

    def forward(self, x, t):
        return 0.2 * self.up_blocks[0](self.mid_block(self.down_blocks[0](self.conv_in(x)))) + 0.1 * x


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_linear_decoder_gives_the_predicted_change(noise, kind):
    """One edited step moves x by sqrt(b) dP/d(output) 0.2 delta h; the other steps carry it on as the network says."""
    torch.manual_seed(0)
    unet = LinearDecoder().requires_grad_(False)
    schedule = make_schedule(DDIMScheduler(prediction_type=kind, clip_sample=False, set_alpha_to_one=True), STEPS)
    delta, t = draw_noise((4, 8, 8), 5, [0])[0], schedule.timesteps[-1]
    a, b = schedule.levels[-1], schedule.levels[-2]
    slope = {"epsilon": -math.sqrt((1 - a) / a), "v_prediction": -math.sqrt(1 - a), "sample": 1.0}[kind]
    states = edit(Bottleneck(unet, unet), noise, schedule, lambda h, _: delta, t_edit=t, trajectory=True)
    plain = sample(unet, noise, schedule, trajectory=True)
    expected = (math.sqrt(b) * slope * 0.2 * delta).expand_as(noise)
    torch.testing.assert_close(states[1] - plain[1], expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())
    rest = make_schedule(DDIMScheduler(prediction_type=kind, clip_sample=False, set_alpha_to_one=True), STEPS)
    rest = type(rest)(rest.timesteps[:-1], rest.levels[:-1], kind)
    assert torch.equal(states[-1], sample(unet, states[1], rest))


def test_phases(generator, noise):
    """Only t >= t_edit is shifted; noise comes only below t_boost."""
    schedule, seen = generator.schedule(STEPS), []
    plain = sample(generator, noise, schedule, trajectory=True)
    t_edit, t_boost = schedule.timesteps[3], schedule.timesteps[2]

    def watched(h, t):
        seen.append(t)
        return 0 * h

    found = edit(Bottleneck(generator), noise, schedule, watched, t_edit=t_edit, t_boost=t_boost, trajectory=True)
    assert seen == [t for t in reversed(schedule.timesteps) if t >= t_edit]
    assert [torch.equal(f, p) for f, p in zip(found, plain, strict=True)] == [True] * 5 + [False] * 2


def test_boost_noise_belongs_to_the_image(bottleneck, generator, noise):
    schedule, options = generator.schedule(STEPS), {"t_edit": 900, "t_boost": 900, "seed": 7}
    whole = edit(bottleneck, noise, schedule, nothing, **options)
    parts = [edit(bottleneck, noise[i : i + 1], schedule, nothing, indices=[i], **options) for i in range(3)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-4)
    twice = edit(bottleneck, noise[[0, 0]], schedule, nothing, indices=[4, 5], **options)
    assert not torch.allclose(twice[0], twice[1], atol=1e-2)
    assert not torch.allclose(whole, edit(bottleneck, noise, schedule, nothing, **options | {"seed": 8}), atol=1e-2)


def test_boost_comes_after_the_edit(bottleneck, generator, noise):
    with pytest.raises(ValueError, match="t_boost is 500, above t_edit = 400"):
        edit(bottleneck, noise, generator.schedule(STEPS), nothing, t_edit=400, t_boost=500)


def test_a_batch_of_strengths_is_its_single_runs(bottleneck, generator, noise):
    schedule, strengths = generator.schedule(STEPS), torch.tensor([-1.0, 0.0, 2.5])
    options = {"t_edit": 400}
    batch = edit(bottleneck, noise[[0, 0, 0]], schedule, constant(0.3), strength=strengths, **options)
    for row, strength in zip(batch, strengths.tolist(), strict=True):
        single = edit(bottleneck, noise[:1], schedule, constant(0.3), strength=strength, **options)[0]
        torch.testing.assert_close(row, single, rtol=1e-4, atol=1e-4 * single.abs().max().item())
    assert not torch.allclose(batch[0], batch[1], atol=1e-2)
    with pytest.raises(ValueError, match=r"strengths have shape \(2,\), expected a number or one for each of 3 images"):
        edit(bottleneck, noise, schedule, constant(), strength=torch.ones(2), **options)


# Forms of delta h


def test_shift_is_scaled_to_the_number_of_steps(bottleneck, noise):
    schedule, seen = bottleneck.model.schedule(2 * STEPS), []
    half = edit(bottleneck, noise, schedule, constant(steps=2 * STEPS), t_edit=0, strength=0.5)
    assert torch.equal(edit(bottleneck, noise, schedule, constant(steps=STEPS), t_edit=0), half)
    unscaled = edit(bottleneck, noise, schedule, lambda h, t: seen.append(t) or constant()(h, t), t_edit=0, strength=0.5)
    assert torch.equal(unscaled, half) and len(seen) == 2 * STEPS  # a plain function says nothing about steps


@pytest.fixture(scope="module")
def shift():
    torch.manual_seed(3)
    return ImplicitShift(16, STEPS, groups=4, t_edit=300, source=["a face"], target=["a man"]).requires_grad_(False)


def test_implicit_function(shift):
    h = draw_noise(SHAPE, 0, range(2))
    assert shift(h, 500).shape == h.shape and not torch.allclose(shift(h, 500), shift(h, 900))
    moved = h[:, :, [1, 0, 2, 3]]
    torch.testing.assert_close(shift(moved, 500), shift(h, 500)[:, :, [1, 0, 2, 3]])  # a place knows its neighbours only by the norm


def test_checkpoint_is_used_on_another_number_of_steps(shift, bottleneck, noise, tmp_path):
    recipes.ship(shift, tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    loaded = ImplicitShift.from_pretrained(tmp_path, torch_dtype=torch.float32, local_files_only=True).requires_grad_(False)
    assert loaded.steps == STEPS and loaded.config.t_edit == 300 and list(loaded.config.target) == ["a man"]
    shift.float()
    h = draw_noise(SHAPE, 0, range(2))
    torch.testing.assert_close(loaded(h, 500), shift(h, 500))
    for steps in (STEPS, 2 * STEPS, 10):
        schedule = bottleneck.model.schedule(steps)
        found = edit(bottleneck, noise, schedule, loaded, t_edit=300)
        expected = edit(bottleneck, noise, schedule, lambda h, t, s=steps: shift(h, t) * STEPS / s, t_edit=300)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_step_shift_takes_the_nearest_timestep():
    table = StepShift({100: torch.zeros(1), 200: torch.ones(1)}, 2)
    assert [table(None, t).item() for t in (0, 149, 150, 151, 999)] == [0, 0, 0, 1, 1]


def test_free_tensors_are_trained_through_the_decoder(bottleneck, noise):
    free = StepShift({t: torch.zeros(SHAPE, requires_grad=True) for t in (300, 600)}, STEPS)
    plain, shifted = bottleneck.predict(noise, 600, free)
    (shifted - plain - 1).square().sum().backward()
    assert free.deltas[600].grad.abs().max() > 0 and free.deltas[300].grad is None and not plain.requires_grad


def test_mean_and_global_shift(bottleneck, generator, noise, shift):
    schedule, seen = generator.schedule(STEPS), {}

    def watched(h, t):
        seen[t] = shift(h, t)
        return seen[t]

    edit(bottleneck, noise, schedule, watched, t_edit=300)
    mean = mean_shift(bottleneck, noise, schedule, shift, t_edit=300)
    assert set(mean.deltas) == set(seen) == {t for t in schedule.timesteps if t >= 300} and mean.steps == STEPS
    for t, delta in seen.items():
        torch.testing.assert_close(mean.deltas[t], delta.mean(0))
    one = global_shift(mean)
    torch.testing.assert_close(one(None, 999), torch.stack(list(mean.deltas.values())).mean(0))
    assert one(None, 0) is one(None, 999)
    constant_mean = mean_shift(bottleneck, noise, generator.schedule(2 * STEPS), constant(), t_edit=300)
    torch.testing.assert_close(constant_mean(None, 700), constant().deltas[0] / 2)  # as it acts on that many steps
    assert constant_mean.steps == 2 * STEPS


def test_probe_direction_is_one_deviation_long():
    h = draw_noise((2, 3, 3), 0, range(400)) * torch.tensor([3.0, 1.0]).view(2, 1, 1)
    channel = probe_shift(torch.tensor([5.0, 0.0]), h, 4)
    assert channel.steps == 4
    torch.testing.assert_close(channel(h, 0).flatten(), torch.tensor([h.mean((2, 3))[:, 0].std(), 0.0]))
    entry = torch.zeros(18)
    entry[4] = -2.0
    full = probe_shift(entry, h, 4)(h, 0)
    assert full.shape == (2, 3, 3) and full[0, 1, 1].item() == pytest.approx(-h[:, 0, 1, 1].std().item(), rel=1e-5) and full.count_nonzero() == 1
    with pytest.raises(ValueError, match=r"shape \(7,\), expected \(18,\) or \(2,\)"):
        probe_shift(torch.ones(7), h, 4)


def test_combination_is_the_plain_sum():
    h = draw_noise(SHAPE, 0, range(2))
    a, b = constant(seed=1, steps=10), constant(seed=2, steps=20)
    both = Combination((a, b), (0.5, torch.tensor([1.0, -1.0])))
    assert both.steps == 10
    expected = torch.stack([0.5 * a(h, 0) + 2 * b(h, 0), 0.5 * a(h, 0) - 2 * b(h, 0)])
    torch.testing.assert_close(both(h, 0), expected)


# eps-space, for comparison


def test_output_space_is_shifted_at_the_end_of_the_network(generator, noise):
    space, schedule = OutputSpace(generator), generator.schedule(STEPS)
    assert torch.equal(space.read(noise, 300), generator(noise, 300))
    plain, shifted = space.predict(noise, 300, lambda h, t: 0.1 * h + t)
    assert torch.equal(plain, generator(noise, 300)) and torch.equal(shifted, plain + (0.1 * plain + 300))
    assert torch.equal(edit(space, noise, schedule, nothing, t_edit=0), sample(generator, noise, schedule))


def test_recorded_changes_repeat_the_edit_of_their_image_in_both_spaces(bottleneck, generator, noise, shift):
    schedule = generator.schedule(2 * STEPS)
    changes = record_changes(bottleneck, noise, schedule, shift, t_edit=300)
    assert torch.equal(changes.x0, edit(bottleneck, noise, schedule, shift, t_edit=300))
    assert set(changes.h) == set(changes.output) == {t for t in schedule.timesteps if t >= 300}
    assert changes.h[schedule.timesteps[-1]].shape == (3, *SHAPE) and changes.output[schedule.timesteps[-1]].shape == noise.shape
    for space, deltas in ((bottleneck, changes.h), (OutputSpace(generator), changes.output)):
        one = StepShift({t: delta[1] for t, delta in deltas.items()}, len(schedule))
        found = edit(space, noise, schedule, one, t_edit=300)
        torch.testing.assert_close(found[1], changes.x0[1], rtol=1e-3, atol=1e-3 * changes.x0[1].abs().max().item())
        assert not torch.allclose(found[0], changes.x0[0], rtol=1e-3, atol=1e-3)


def test_relative_shift_is_as_long_as_asked_for():
    h = draw_noise(SHAPE, 0, range(3)) * torch.tensor([1.0, 5.0, 0.0]).view(3, 1, 1, 1)
    single, each = draw_noise(SHAPE, 1, range(1))[0], draw_noise(SHAPE, 2, range(3))
    for direction in (single, each):
        delta = relative_shift(7 * direction, 0.25)(h, 0)
        torch.testing.assert_close(delta.flatten(1).norm(dim=1), 0.25 * h.flatten(1).norm(dim=1))
        cosine = torch.nn.functional.cosine_similarity(delta[:2].flatten(1), direction.expand_as(h)[:2].flatten(1))
        torch.testing.assert_close(cosine, torch.ones(2))


# t_edit and t_boost


def test_curves_and_choices(generator):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    schedule = generator.schedule(STEPS)
    curves = perceptual_curves(generator, images, schedule, lambda x, y: (x - y).square().mean((1, 2, 3)))
    assert curves.predicted.shape == curves.noisy.shape == (STEPS, 2) and curves.timesteps == schedule.timesteps
    numbers = perceptual_curves(generator, images, schedule, lambda x, y: np.zeros(len(x)))
    assert numbers.noisy.abs().sum() == 0
    made = Curves((0, 100, 200, 300), torch.tensor([[0.1], [0.2], [0.6], [1.0]]), torch.tensor([[0.5], [1.3], [1.5], [1.6]]))
    assert choose_t_edit(made) == 200 and choose_t_edit(made, cosine=0.5) == 100 and choose_t_boost(made) == 200
    assert choose_t_boost(made, share=0.5) == 100
    with pytest.raises(ValueError, match="share is 1.5"):
        choose_t_boost(made, share=1.5)


# Training


def test_directional_loss():
    source, direction = torch.zeros(2, 3), torch.tensor([0.0, 2.0, 0.0])
    towards, away = torch.tensor([[0.0, 1.0, 0.0]] * 2), torch.tensor([[0.0, -3.0, 0.0]] * 2)
    assert directional_loss(towards, source, direction).item() == pytest.approx(0)
    assert directional_loss(away, source, direction).item() == pytest.approx(2)
    assert directional_loss(torch.eye(3)[[0, 2]], source, direction).item() == pytest.approx(1)


def mean_colour(pictures):
    return pictures.float().mean((2, 3)) + torch.tensor([1.0, 1.0, 1.0])


def make_loss(generator, shift, **changes):
    options = {"t_edit": 500, "clip_weight": 1.0, "l1_weight": 0.0, "smallest_crop": 1.0} | changes
    chain, schedule = ShiftChain(shift, 2, generator.shape), generator.schedule(STEPS)
    noise, redder = draw_noise(generator.shape, 0, range(5)), torch.tensor([1.0, 0.0, -1.0])
    return chain, hspace_loss(chain, Bottleneck(generator), schedule, noise, mean_colour, redder, **options)


def test_chain_follows_the_plain_and_the_edited_path(generator, shift):
    """Three edited timesteps, then a new batch; the states are those of sample and of edit."""
    chain, loss = make_loss(generator, shift, t_edit=450)
    schedule, noise = generator.schedule(STEPS), draw_noise(generator.shape, 0, range(5))
    for step in range(4):
        value, numbers = loss(step, torch.Generator().manual_seed(step))
        if step < 3:
            last = chain.states[(step + 1) % 2].clone()
    rows = torch.randint(5, (2,), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(last[0], sample(generator, noise[rows], schedule, trajectory=True)[3])
    torch.testing.assert_close(last[1], edit(Bottleneck(generator), noise[rows], schedule, shift, t_edit=450, trajectory=True)[3])
    assert set(numbers) == {"cosine", "l1"} and value.item() == pytest.approx(1 - numbers["cosine"], abs=1e-5)


def test_training_turns_pictures_towards_the_text(generator):
    torch.manual_seed(0)
    shift = ImplicitShift(16, STEPS, groups=4)
    _, loss = make_loss(generator, shift)
    optimizer, cosines = torch.optim.Adam(shift.parameters(), lr=3e-2), []
    for step in range(30):
        value, numbers = loss(step, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        cosines.append(numbers["cosine"])
    assert np.mean(cosines[-6:]) > np.mean(cosines[:6]) + 0.2
    assert untouched(generator.unet) and not any(p.grad is not None for p in generator.unet.parameters())


def test_edit_above_every_timestep(generator, shift):
    with pytest.raises(ValueError, match="t_edit is 990, above every timestep of the schedule"):
        make_loss(generator, shift, t_edit=990)


@pytest.fixture
def models(tiny_models, tmp_path, monkeypatch):
    """``data/models`` with a tiny generator, CLIP and oracle, and a recipe of a shift."""
    root = tmp_path / "models"
    monkeypatch.setattr(recipes, "MODELS", root)
    monkeypatch.setattr(recipes, "HELD_OUT", 4)
    monkeypatch.setenv("UNE_CACHE", str(tmp_path / "cache"))
    tiny_models.write_generator(root / "tiny-ldm")
    tokenizer = recipes.word_tokenizer()
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = tower | {
        "vocab_size": len(tokenizer), "max_position_embeddings": TOKENS, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=tower | {"image_size": 32, "patch_size": 8}, projection_dim=8)
    CLIPModel(config).save_pretrained(root / "tiny-clip")
    tokenizer.save_pretrained(root / "tiny-clip")
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", id2label=dict(enumerate(FACTORS)))
    ResNetForImageClassification(config).save_pretrained(root / "tiny-oracle")
    recipe = {
        "kind": "hspace", "seed": 3, "images": {"rendered": 5, "size": 32, "seed": 9}, "generator": "tiny-ldm", "clip": "tiny-clip",
        "oracle": "tiny-oracle", "attribute": "Smiling", "source": ["a face not smiling"], "target": ["a face smiling", "a face with a smile"],
        "shift": {
            "path": 6, "t_edit": 500, "groups": 4, "batch": 2, "steps": 8, "learning_rate": 1e-2, "ema": 0.5, "clip_weight": 0.8, "l1_weight": 1.0,
            "smallest_crop": 0.7, "warmup": 2, "log_every": 4,
        },
    }  # fmt: skip
    for name in ("whole", "resumed"):
        (root / name).mkdir()
        (root / name / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return root


def test_recipe_stopped_in_the_middle_of_a_chain_goes_on_where_it_was(models, monkeypatch):
    recipes.train_model("whole")
    plain = recipes.hspace_loss

    def stops(*args, **options):
        loss = plain(*args, **options)

        def stopped(step, random):
            value = loss(step, random)  # the states have moved on when the interruption comes
            if step == 5:
                raise KeyboardInterrupt
            return value

        return stopped

    monkeypatch.setattr(recipes, "hspace_loss", stops)
    with pytest.raises(KeyboardInterrupt):
        recipes.train_model("resumed")
    assert not (models / "resumed" / "config.json").is_file()
    monkeypatch.setattr(recipes, "hspace_loss", plain)
    recipes.train_model("resumed")
    whole, resumed = (load_file(models / name / "diffusion_pytorch_model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(value, resumed[key]) and value.dtype == torch.float16 for key, value in whole.items())
    config = json.loads((models / "resumed" / "config.json").read_text())
    assert config["steps"] == 6 and config["t_edit"] == 500 and config["target"] == ["a face smiling", "a face with a smile"]
    assert str(models.parent) not in json.dumps(config)
    measured = json.loads((models / "resumed" / "held-out.json").read_text())
    assert measured["images"] == 4 and -1 <= measured["text_cosine"] <= 1 and measured["other_factors_rms"] >= 0
