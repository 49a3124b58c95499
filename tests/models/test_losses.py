"""Losses of the other models: what they are zero for, and that they teach. DINO's and the VAE's are in test_training."""

import copy

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from torch import nn
from transformers import CLIPConfig, CLIPModel, ViTMAEConfig, ViTMAEForPreTraining

from une_utils.images.captions import captions
from une_utils.images.rendered import ATTRIBUTES, RenderedFaces
from une_utils.models.ddim import make_schedule, sample
from une_utils.models.encoders import TOKENS, tokenize
from une_utils.models.generators import Generator, draw_noise
from une_utils.models.losses import (
    ClipNet, ShiftChain, boundary_weights, clip_loss, consistency_loss, diffusionclip_loss, reconstruction_loss, regression_loss,
)  # fmt: skip
from une_utils.models.train import word_tokenizer


class Out:
    def __init__(self, sample):
        self.sample = sample


class OnePoint(nn.Module):
    """The exact network for data that is one picture: predicts v for x0 = c everywhere, or for another c."""

    def __init__(self, c, alphas):
        super().__init__()
        self.c, self.alphas = nn.Parameter(torch.tensor(float(c))), alphas

    def forward(self, x, t):
        a = self.alphas[t].view(-1, 1, 1, 1)
        eps = (x - a.sqrt() * self.c) / (1 - a).sqrt()
        return Out(a.sqrt() * eps - (1 - a).sqrt() * self.c)


@pytest.fixture
def scheduler():
    return DDIMScheduler(num_train_timesteps=1000, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=True)


def step(loss, number=3):
    return loss(number, torch.Generator().manual_seed(number))


def test_consistency_loss_is_zero_for_the_exact_answer(scheduler):
    x0, schedule = torch.full((6, 1, 4, 4), 0.7), make_schedule(scheduler, 20)
    teacher = OnePoint(0.7, scheduler.alphas_cumprod)
    exact, _ = step(consistency_loss(teacher, teacher, x0, schedule, batch=8))
    assert exact.item() < 1e-4


def test_consistency_loss_sees_a_student_that_depends_on_t(scheduler):
    class Drifting(OnePoint):
        def forward(self, x, t):
            return Out(super().forward(x, t).sample + t.float().view(-1, 1, 1, 1) / 100)

    x0, schedule = torch.full((6, 1, 4, 4), 0.7), make_schedule(scheduler, 20)
    student = Drifting(0.7, scheduler.alphas_cumprod)
    value, numbers = step(consistency_loss(student, OnePoint(0.7, scheduler.alphas_cumprod), x0, schedule, batch=8))
    assert value.item() > 1e-3 and numbers["huber"] == pytest.approx(value.item())
    value.backward()
    assert student.c.grad is not None


def test_boundary_weights_are_the_schedulers():
    scheduler = LCMScheduler()
    for t in (0, 1, 19, 999):
        expected = scheduler.get_scalings_for_boundary_condition_discrete(torch.tensor(t))
        found = boundary_weights(torch.tensor([t]))
        assert [f.item() for f in found] == pytest.approx([float(e) for e in expected], abs=1e-6)
    assert [w.item() for w in boundary_weights(torch.tensor([0]))] == [1, 0]


@pytest.fixture(scope="module")
def faces():
    source = RenderedFaces(32, size=32, seed=9)
    return source, source.load(range(32))


def descend(net, loss, steps, rate=2e-3):
    optimizer, values = torch.optim.Adam(net.parameters(), lr=rate), []
    for number in range(steps):
        value, _ = step(loss, number)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    return values


VIT = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8)


def test_clip_learns(faces):
    source, images = faces
    tokenizer = word_tokenizer()
    text = dict(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, intermediate_size=32, num_attention_heads=2, max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=VIT, projection_dim=16))
    net, numbers = ClipNet(clip, len(ATTRIBUTES)), []
    loss = clip_loss(
        net, images, torch.from_numpy(source.attributes).float(), lambda rows, seed: captions(source.attributes[rows], tuple(ATTRIBUTES), seed),
        lambda t: tokenize(tokenizer, t), batch=16, label_weight=2.0,
    )  # fmt: skip

    def watched(step, generator):
        value, parts = loss(step, generator)
        numbers.append((parts["contrast"], parts["labels"]))
        assert value.item() == pytest.approx(parts["contrast"] + 2 * parts["labels"], rel=1e-3)
        return value, parts

    descend(net, watched, 60)
    before, after = np.mean(numbers[:5], axis=0), np.mean(numbers[-5:], axis=0)
    assert after[0] < before[0] - 0.1 and after[1] < before[1] - 0.1


def test_masked_autoencoder_learns(faces):
    torch.manual_seed(0)
    config = ViTMAEConfig(
        **VIT, mask_ratio=0.75, norm_pix_loss=True, decoder_hidden_size=32, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
    )  # fmt: skip
    mae = ViTMAEForPreTraining(config)
    values = descend(mae, reconstruction_loss(mae, faces[1], batch=16, flip=True), 80, rate=5e-3)
    assert values[0] > 0.9 and np.mean(values[-10:]) < np.mean(values[:5]) - 0.05  # 1 is the mean of every patch


def test_regression_targets_are_clipped_and_match_their_pictures(faces):
    """A network that knows the answer by brightness: pictures are filled with their own target."""
    images = np.zeros((4, 8, 8, 3), np.uint8)
    targets = torch.tensor([[-9.0], [-0.5], [0.5], [9.0]])
    images[:] = ((targets.clamp(-3, 3) / 3 + 1) * 127.5).round().numpy().astype(np.uint8)[:, :, None, None]

    class Brightness(nn.Module):
        def forward(self, x):
            return type("Out", (), {"logits": 3 * x.mean((1, 2, 3), keepdim=False)[:, None]})

    value, _ = step(regression_loss(Brightness(), images, targets, batch=64))
    assert value.item() < 0.02


@pytest.fixture
def fine_tuning(tiny_models):
    """A generator, the part of its schedule up to 500, five states there, a copy of its U-Net in a chain, and the loss towards red."""
    generator = Generator.load(tiny_models.generator)
    schedule, states = generator.schedule(6).until(500), draw_noise(generator.shape, 0, range(5))
    chain = ShiftChain(copy.deepcopy(generator.unet).requires_grad_(True), 2, generator.shape)
    loss = diffusionclip_loss(
        chain, generator, schedule, states, lambda pictures: pictures.mean((2, 3)) + 1, torch.tensor([1.0, 0.0, -1.0]),
        clip_weight=1.0, l1_weight=0.1, smallest_crop=0.8,
    )  # fmt: skip
    return generator, schedule, states, chain, loss


def test_copy_that_has_learned_nothing_changes_nothing(fine_tuning):
    """Four timesteps, then a new batch; both paths are those of sampling with the generator itself."""
    generator, schedule, states, chain, loss = fine_tuning
    assert len(schedule) == 4
    for number in range(len(schedule)):
        _, numbers = step(loss, number)
        assert numbers["l1"] == 0
    rows = torch.randint(5, (2,), generator=torch.Generator().manual_seed(0))
    plain, edited = chain.states[len(schedule) % 2]
    assert torch.equal(plain, edited) and torch.equal(plain, sample(generator, states[rows], schedule))
    step(loss, len(schedule))
    rows = torch.randint(5, (2,), generator=torch.Generator().manual_seed(len(schedule)))
    assert torch.equal(chain.states[(len(schedule) + 1) % 2][0], sample(generator, states[rows], schedule, trajectory=True)[1])


def test_fine_tuning_turns_pictures_towards_the_text(fine_tuning):
    generator, _, _, chain, loss = fine_tuning
    before = {name: value.clone() for name, value in generator.unet.state_dict().items()}
    with torch.no_grad():  # without any change there is no direction to turn
        for parameter in chain.shift.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    values = descend(chain.shift, loss, 32, rate=1e-3)
    assert np.mean(values[-4:]) < np.mean(values[:4]) - 0.2
    assert all(torch.equal(value, before[name]) for name, value in generator.unet.state_dict().items())  # the frozen one is frozen
