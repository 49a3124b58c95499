"""Guided sampling: which way it moves, that strength 0 is plain DDIM, and the classifier from recipe to edit."""

import json
import math

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDIMScheduler
from safetensors.torch import load_file

from une_utils.models import train as recipes
from une_utils.models.ddim import PREDICTION_TYPES, invert, make_schedule, sample, to_eps
from une_utils.models.generators import Generator, draw_noise
from une_utils.models.guidance import NoisyClassifier, attribute_gradient, classifier_guidance, image_guidance, low_pass, sdedit
from une_utils.models.losses import noisy_classifier_loss

STEPS = 6
SHAPE = (4, 8, 8)  # of a state of the tiny generator


@pytest.fixture(scope="module")
def generator(tiny_models):
    return Generator.load(tiny_models.generator, precise=True)


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(2)
    return NoisyClassifier(SHAPE, ["Male", "Smiling"], widths=(8, 16), groups=4).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def noise():
    return draw_noise(SHAPE, 0, range(3))


def gaussian(mean, schedule):
    """The network whose data are N(mean, I) in every entry: E[eps | x_t] = sqrt(1 - a) (x - sqrt(a) mean), said as its kind wants it."""
    levels = dict(zip(schedule.timesteps, schedule.levels[1:], strict=True))

    def model(x, t):
        a = levels[t]
        eps = (1 - a) ** 0.5 * (x - a**0.5 * mean)
        x0 = (x - (1 - a) ** 0.5 * eps) / a**0.5
        return {"epsilon": eps, "sample": x0, "v_prediction": a**0.5 * eps - (1 - a) ** 0.5 * x0}[schedule.prediction_type]

    return model


def ddim(kind="epsilon", steps=STEPS):
    return make_schedule(DDIMScheduler(prediction_type=kind, clip_sample=False, set_alpha_to_one=True), steps)


# The classifier


def test_classifier_sees_timesteps_and_images_alone(classifier, noise):
    logits = classifier(noise, 500)
    assert logits.shape == (3, 2) and not torch.allclose(logits, classifier(noise, 900))
    torch.testing.assert_close(classifier(noise[1:2], 500), logits[1:2])
    mixed = classifier(noise, torch.tensor([500, 900, 500]))
    torch.testing.assert_close(mixed[[0, 2]], logits[[0, 2]])
    torch.testing.assert_close(mixed[1], classifier(noise, 900)[1])


def test_classifier_on_disk(classifier, noise, tmp_path):
    classifier.save_pretrained(tmp_path)
    loaded = NoisyClassifier.from_pretrained(tmp_path, local_files_only=True)
    assert list(loaded.config.attributes) == ["Male", "Smiling"]
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in classifier.state_dict().items())
    torch.testing.assert_close(loaded(noise, 30), classifier(noise, 30))  # not bit for bit: where its weights lie in memory decides the kernel


def test_classifier_of_another_generator(classifier):
    with pytest.raises(ValueError, match=r"states have shape \(4, 16, 16\), this classifier reads \(4, 8, 8\)"):
        classifier(torch.zeros(1, 4, 16, 16), 0)
    with pytest.raises(ValueError, match="cannot be halved 2 times"):
        NoisyClassifier((4, 6, 6), ["Male"], widths=(8, 8, 8), groups=4)


def test_loss_is_that_of_what_was_noised(noise):
    """A classifier that always answers 0 pays log 2; labels go with their latents and the states with their timesteps."""
    alphas, seen = DDIMScheduler().alphas_cumprod, []
    labels, latents = torch.tensor([[1.0], [0.0]]), torch.stack([torch.full(SHAPE, 100.0), torch.full(SHAPE, -100.0)])

    def net(x, t):
        seen.append((x, t))
        return torch.zeros(len(x), 1)

    value, numbers = noisy_classifier_loss(net, latents, labels, alphas, batch=50)(0, torch.Generator().manual_seed(0))
    assert value.item() == pytest.approx(math.log(2)) and numbers == {"labels": value.item()}
    x, t = seen[0]
    assert torch.allclose(x.mean((1, 2, 3)).abs(), 100 * alphas[t].sqrt(), atol=0.6) and len(set(t.tolist())) > 40
    right = noisy_classifier_loss(lambda x, t: 10 * x.mean((1, 2, 3))[:, None].sign(), latents, labels, alphas[:800], batch=50)
    assert right(0, torch.Generator().manual_seed(0))[0].item() < 1e-3
    with pytest.raises(ValueError, match="2 latents and 1 rows of attributes"):
        noisy_classifier_loss(net, latents, labels[:1], alphas, batch=2)


# Classifier guidance


def test_gradient_is_that_of_the_log_probability(noise):
    """Of a linear classifier w.x: (1 - p) w towards true, - p w towards false, nothing for sign 0."""
    w = draw_noise(SHAPE, 5, range(2)) / 10
    logits = (noise[:, None] * w).flatten(2).sum(2)
    found = attribute_gradient(lambda x, t: (x[:, None] * w).flatten(2).sum(2), noise, 0, 1, torch.tensor([1.0, -1.0, 0.0]).view(-1, 1, 1, 1))
    p = logits[:, 1].sigmoid()
    expected = torch.stack([(1 - p[0]) * w[1], -p[1] * w[1]])
    torch.testing.assert_close(found[:2], expected)
    assert found[2].count_nonzero() == 0


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_zero_strength_is_plain_ddim_bit_for_bit(tiny_models, tmp_path, classifier, noise, kind):
    for precise in (True, False):
        generator = Generator.load(tiny_models.write_generator(tmp_path / str(precise), prediction_type=kind), precise=precise)
        schedule = generator.schedule(STEPS)
        plain = sample(generator, noise, schedule, trajectory=True)
        assert torch.equal(classifier_guidance(generator, classifier, noise, schedule, 1, strength=0.0, trajectory=True), plain)
        guide = invert(generator, noise[[1]], schedule, trajectory=True).trajectory
        assert torch.equal(image_guidance(generator, noise, guide, schedule, strength=0.0, trajectory=True), plain)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_guided_step_is_algorithm_2(classifier, kind):
    """x' = sqrt(b) (x - sqrt(1 - a) eps_hat) / sqrt(a) + sqrt(1 - b) eps_hat, for every prediction type."""
    schedule, x = ddim(kind, steps=1), draw_noise(SHAPE, 1, range(2))
    a, b, t = schedule.levels[1], schedule.levels[0], schedule.timesteps[0]
    output = draw_noise(SHAPE, 2, range(2))
    gradient = attribute_gradient(classifier, x, t, 0, torch.tensor([1.0, -1.0]).view(-1, 1, 1, 1))
    s = torch.tensor([3.0, 2.0]).view(-1, 1, 1, 1)
    eps = to_eps(output, x, a, kind) - (1 - a) ** 0.5 * s * gradient
    expected = b**0.5 * (x - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - b) ** 0.5 * eps
    found = classifier_guidance(lambda x, t: output, classifier, x, schedule, 0, strength=torch.tensor([3.0, -2.0]))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_guidance_moves_a_gaussian_where_bayes_says(kind):
    """Data N(m, I) and a linear p(y | x0) ~ exp(w.x0): x0 given y is N(m + w, I). The exact noisy classifier is linear in x_t, with slope
    sqrt(a) w, so guidance at s = 1 samples m + w, at s = -1 m - w, up to the discretisation."""
    schedule, mean, w = ddim(kind, steps=250), 0.3, 0.5
    levels = dict(zip(schedule.timesteps, schedule.levels[1:], strict=True))

    def evidence(x, t):  # logits so negative that log sigmoid is the logit itself, then so positive that log sigmoid(- .) is
        offset = -40.0 if towards else 40.0
        return (levels[t] ** 0.5 * w * x).flatten(1).sum(1, keepdim=True) + offset

    noise = draw_noise((1, 4, 4), 3, range(2)) * 0.1
    plain = sample(gaussian(mean, schedule), noise, schedule)
    for towards in (True, False):
        for size in (1.0, 2.0):
            strength = size if towards else -size
            found = classifier_guidance(gaussian(mean, schedule), evidence, noise, schedule, 0, strength=strength)
            torch.testing.assert_close(found - plain, torch.full_like(plain, strength * w), rtol=0.03, atol=0)


def test_a_batch_of_strengths_is_its_single_runs(generator, classifier, noise):
    schedule, strengths = generator.schedule(STEPS), torch.tensor([-30.0, 0.0, 30.0])
    batch = classifier_guidance(generator, classifier, noise[[0, 0, 0]], schedule, 0, strength=strengths)
    guide = invert(generator, noise[[1]], schedule, trajectory=True).trajectory
    mixed = image_guidance(generator, noise[[0, 0, 0]], guide, schedule, strength=strengths.abs() / 40, factor=2)
    for i, strength in enumerate(strengths.tolist()):
        single = classifier_guidance(generator, classifier, noise[:1], schedule, 0, strength=strength)[0]
        torch.testing.assert_close(batch[i], single, rtol=1e-4, atol=1e-4 * single.abs().max().item())
        single = image_guidance(generator, noise[:1], guide, schedule, strength=abs(strength) / 40, factor=2)[0]
        torch.testing.assert_close(mixed[i], single, rtol=1e-4, atol=1e-4 * single.abs().max().item())
    assert not torch.allclose(batch[0], batch[1], atol=1e-3) and not torch.allclose(batch[2], batch[1], atol=1e-3)
    assert not torch.allclose(mixed[0], mixed[1], atol=1e-2)


def test_only_timesteps_from_t_edit_are_guided(generator, classifier, noise):
    schedule, seen = generator.schedule(STEPS), []
    classifier_guidance(generator, lambda x, t: seen.append(t) or classifier(x, t), noise, schedule, 0, strength=1.0, t_edit=400)
    assert seen == [t for t in reversed(schedule.timesteps) if t >= 400] and 0 < len(seen) < STEPS
    plain = sample(generator, noise, schedule, trajectory=True)
    guide = torch.zeros(STEPS + 1, 1, *SHAPE)
    found = image_guidance(generator, noise, guide, schedule, strength=1.0, factor=1, t_edit=schedule.timesteps[-1], trajectory=True)
    assert torch.equal(found, sample(generator, torch.zeros_like(noise), schedule, trajectory=True))
    above = image_guidance(generator, noise, guide, schedule, strength=1.0, t_edit=schedule.timesteps[-1] + 1, trajectory=True)
    assert torch.equal(above, plain)


def test_unknown_column_and_wrong_strengths(generator, classifier, noise):
    schedule = generator.schedule(STEPS)
    for column in (-1, 2):
        with pytest.raises(ValueError, match=f"column is {column}, expected 0 to 1: the classifier reads 2 attributes"):
            classifier_guidance(generator, classifier, noise, schedule, column, strength=1.0)
    with pytest.raises(ValueError, match=r"strengths have shape \(2,\), expected a number or one for each of 3 images"):
        classifier_guidance(generator, classifier, noise, schedule, 0, strength=torch.ones(2))


# Image guidance


def test_low_pass():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    expected = torch.tensor([[2.5, 4.5], [10.5, 12.5]]).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(low_pass(x, 2)[0, 0], expected) and torch.equal(low_pass(low_pass(x, 2), 2), low_pass(x, 2))
    assert torch.equal(low_pass(x, 1), x) and torch.equal(low_pass(x, 4), torch.full_like(x, 7.5))
    for factor in (0, 3, 8):
        with pytest.raises(ValueError, match=f"factor is {factor}, expected a divisor of the sides 4 and 4"):
            low_pass(x, factor)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_whole_states_of_the_guide_give_the_guide(kind):
    schedule = ddim(kind, steps=20)
    model, guide, noise = gaussian(0.3, schedule), draw_noise(SHAPE, 7, range(3)), draw_noise(SHAPE, 8, range(3))
    states = invert(model, guide, schedule, trajectory=True, fixed_point=20, tolerance=1e-6).trajectory
    options = {"strength": 1.0, "factor": 1}
    torch.testing.assert_close(image_guidance(model, noise, states, schedule, **options), guide, atol=1e-3, rtol=0)
    one = image_guidance(model, noise, states[:, :1], schedule, **options)
    torch.testing.assert_close(one, guide[[0, 0, 0]], atol=1e-3, rtol=0)


def test_means_of_squares_come_from_the_guide_and_the_rest_stays():
    """The Gaussian's DDIM acts on every entry alone, so what the filter does not pass is the plain sample's."""
    schedule = ddim(steps=20)
    model, guide, noise = gaussian(0.3, schedule), draw_noise(SHAPE, 7, range(2)), draw_noise(SHAPE, 8, range(2))
    states = invert(model, guide, schedule, trajectory=True, fixed_point=20, tolerance=1e-6).trajectory
    found, plain = image_guidance(model, noise, states, schedule, strength=1.0, factor=4), sample(model, noise, schedule)
    torch.testing.assert_close(low_pass(found, 4), low_pass(guide, 4), atol=2e-3, rtol=0)
    torch.testing.assert_close(found - low_pass(found, 4), plain - low_pass(plain, 4), atol=2e-3, rtol=0)


def test_guide_of_another_inversion(generator, noise):
    schedule = generator.schedule(STEPS)
    with pytest.raises(ValueError, match="guide has 5 states, expected 7 for 6 steps"):
        image_guidance(generator, noise, torch.zeros(5, 3, *SHAPE), schedule, strength=1.0)
    with pytest.raises(ValueError, match=r"states of the guide have shape \(2, 4, 8, 8\), expected \(3, 4, 8, 8\) or one image"):
        image_guidance(generator, noise, torch.zeros(7, 2, *SHAPE), schedule, strength=1.0)
    for strength in (-0.5, 1.5):
        with pytest.raises(ValueError, match=r"expected \[0, 1\]: a share of the guide"):
            image_guidance(generator, noise, torch.zeros(7, 3, *SHAPE), schedule, strength=strength)


# SDEdit


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_sdedit_changes_more_the_earlier_it_starts(kind):
    schedule, x0 = ddim(kind, steps=50), draw_noise(SHAPE, 4, range(3)) + 3.0
    model = gaussian(0.3, schedule)
    changes = [(sdedit(model, x0, schedule, t_start=t) - x0).square().mean().sqrt().item() for t in (0, 200, 500, 900)]
    assert changes[0] < 0.02 and changes == sorted(changes)
    forgotten = sdedit(model, x0, schedule, t_start=999)
    assert abs(forgotten.mean().item() - 0.3) < 0.15  # 3 away at first


def test_sdedit_starts_at_the_level_of_its_timestep(generator, noise):
    schedule, seen = generator.schedule(STEPS), []
    steps, last = schedule.timesteps[:3], schedule.levels[3]
    found = sdedit(lambda x, t: seen.append((t, x)) or generator(x, t), noise, schedule, t_start=steps[-1] + 1, seed=9)
    assert [t for t, _ in seen] == list(reversed(steps))
    torch.testing.assert_close(seen[0][1], last**0.5 * noise + (1 - last) ** 0.5 * draw_noise(SHAPE, 9, range(3)))
    assert torch.equal(found, sdedit(generator, noise, schedule, t_start=steps[-1], seed=9))


def test_sdedit_noise_belongs_to_the_image(generator, noise):
    schedule, options = generator.schedule(STEPS), {"t_start": 700, "seed": 7}
    whole = sdedit(generator, noise, schedule, **options)
    parts = [sdedit(generator, noise[i : i + 1], schedule, indices=[i], **options) for i in range(3)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(whole, sdedit(generator, noise, schedule, t_start=700, seed=8), atol=1e-2)


def test_sdedit_needs_a_step_and_an_index_for_each_image(generator, noise):
    schedule = generator.schedule(STEPS)
    with pytest.raises(ValueError, match="t = -1 is below every timestep of the schedule; expected at least 0"):
        sdedit(generator, noise, schedule, t_start=-1)
    with pytest.raises(ValueError, match="2 indices for 3 images"):
        sdedit(generator, noise, schedule, t_start=500, indices=[0, 1])


# From recipe to edit


@pytest.fixture
def models(tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "MODELS", tmp_path / "models")
    monkeypatch.setattr(recipes, "HELD_OUT", 120)  # that every attribute is met
    monkeypatch.setenv("UNE_CACHE", str(tmp_path / "cache"))
    tiny_models.write_generator(tmp_path / "models" / "tiny-ldm")
    recipe = {
        "kind": "noisy-classifier", "seed": 3, "images": {"rendered": 40, "size": 32, "seed": 9}, "generator": "tiny-ldm",
        "classifier": {"widths": [8, 16], "groups": 4, "batch": 8, "steps": 3, "learning_rate": 1e-3, "ema": 0.5},
    }  # fmt: skip
    (tmp_path / "models" / "tiny-classifier").mkdir()
    (tmp_path / "models" / "tiny-classifier" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path / "models"


def test_recipe(models, noise):
    recipes.train_model("tiny-classifier")
    folder = models / "tiny-classifier"
    assert all(v.dtype == torch.float16 for v in load_file(folder / "diffusion_pytorch_model.safetensors").values())
    assert str(models.parent) not in (folder / "config.json").read_text()
    classifier = NoisyClassifier.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    names, measured = list(classifier.config.attributes), json.loads((folder / "held-out.json").read_text())
    assert names[:3] == ["Smiling", "Mouth_Slightly_Open", "Male"] and list(measured["auc"]) == sorted(names)
    for column, t in enumerate(recipes.NOISY):
        assert measured["auc_at_timestep"][str(t)] == pytest.approx(np.mean([row[column] for row in measured["auc"].values()]), abs=1e-4)
    assert measured["images"] == 120
    generator = Generator.load(models / "tiny-ldm")
    x0 = classifier_guidance(generator, classifier, noise, generator.schedule(4), names.index("Male"), strength=5.0)
    assert x0.shape == noise.shape and torch.isfinite(x0).all()
