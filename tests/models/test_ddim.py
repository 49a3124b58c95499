"""DDIM in both directions against diffusers' schedulers, against closed forms, and against its own inverse."""

import math

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, UNet2DModel

from une_utils.models.ddim import CONVENTIONS, PREDICTION_TYPES, Schedule, invert, make_schedule, move, predictions, sample, to_eps


def scheduler(**changes):
    base = dict(num_train_timesteps=1000, beta_schedule="linear", beta_start=1e-4, beta_end=0.02, clip_sample=False)
    return DDIMScheduler(**(base | changes))


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def bent(x, t):
    """A stand-in for a network: not linear, depends on x and t."""
    return torch.sin(2 * x + t / 300) + 0.3 * x


class Recorder:
    """Counts what reaches the model."""

    def __init__(self, model):
        self.model, self.timesteps, self.states = model, [], []

    def __call__(self, x, t):
        self.timesteps.append(t)
        self.states.append(x.clone())
        return self.model(x, t)


class Gaussian:
    """The exact network for x0 ~ N(0, s^2 I): x_t has the variance V = a s^2 + 1 - a, and every conditional mean is linear."""

    def __init__(self, schedule, s):
        self.schedule, self.s = schedule, s
        self.level = dict(zip(schedule.timesteps, schedule.levels[1:], strict=True))

    def variance(self, a):
        return a * self.s**2 + 1 - a

    def eps_slope(self, a):
        return math.sqrt(1 - a) / self.variance(a)

    def __call__(self, x, t):
        a = self.level[t]
        slopes = {
            "epsilon": self.eps_slope(a),
            "sample": math.sqrt(a) * self.s**2 / self.variance(a),
            "v_prediction": math.sqrt(a * (1 - a)) * (1 - self.s**2) / self.variance(a),
        }
        return slopes[self.schedule.prediction_type] * x

    def step(self, a, b, told):
        """Factor of one DDIM step from level a to b, with the noise of the state taken as at level ``told``."""
        x0_slope = (1 - math.sqrt(1 - a) * self.eps_slope(told)) / math.sqrt(a)
        return math.sqrt(b) * x0_slope + math.sqrt(1 - b) * self.eps_slope(told)

    def sampling(self):
        a = self.schedule.levels
        return math.prod(self.step(a[i + 1], a[i], told=a[i + 1]) for i in range(len(a) - 1))


def rms(x):
    return x.square().mean().sqrt().item()


# Against diffusers

SETTINGS = [
    dict(timestep_spacing="leading", set_alpha_to_one=True),
    dict(timestep_spacing="leading", set_alpha_to_one=False, steps_offset=1),
    dict(timestep_spacing="leading", set_alpha_to_one=True, steps_offset=1, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    dict(timestep_spacing="trailing", set_alpha_to_one=True),
    dict(timestep_spacing="trailing", set_alpha_to_one=False, beta_schedule="squaredcos_cap_v2"),
]


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("steps", [1, 10, 50])
def test_sampling_is_diffusers_ddim(settings, prediction_type, steps):
    theirs = scheduler(prediction_type=prediction_type, **settings)
    schedule = make_schedule(theirs, steps)
    start = noise(3, 4, 4, 4)
    theirs.set_timesteps(steps)
    expected = start
    for t in theirs.timesteps:
        expected = theirs.step(bent(expected, int(t)), t, expected, eta=0.0).prev_sample
    # one step from level 4e-5 to clean divides by sqrt(4e-5): the bound is relative to the size of the state
    torch.testing.assert_close(sample(bent, start, schedule), expected, rtol=1e-5, atol=1e-5 * max(1, expected.abs().max().item()))


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("steps", [10, 50])
def test_target_inversion_is_diffusers_inverse_ddim(settings, steps):
    forward = scheduler(**settings)
    theirs = DDIMInverseScheduler.from_config(forward.config)
    theirs.set_timesteps(steps)
    expected = start = noise(3, 4, 4, 4)
    for t in theirs.timesteps:
        expected = theirs.step(bent(expected, int(t)), int(t), expected).prev_sample
    result = invert(bent, start, make_schedule(forward, steps))
    torch.testing.assert_close(result.latents, expected, rtol=1e-5, atol=1e-5)
    assert result.level == pytest.approx(float(forward.alphas_cumprod[theirs.timesteps[-1]]))


def state(x0, eps, level):
    return math.sqrt(level) * x0 + math.sqrt(1 - level) * eps


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_a_chain_arrives_where_the_next_timestep_is(spacing):
    """With the true noise, every state is sqrt(a) x0 + sqrt(1 - a) eps at the level of its timestep, for every spacing.

    diffusers' own chain moves by 1000 // S and so does not arrive at linspace's next timestep: documented here because that
    is why ``make_schedule`` takes each level from the next timestep.
    """
    steps = 10
    theirs = scheduler(timestep_spacing=spacing)
    schedule = make_schedule(theirs, steps)
    assert schedule.levels[1:] == tuple(theirs.alphas_cumprod[list(schedule.timesteps)].tolist())
    x0, eps = noise(2, 4, 4, 4, seed=1), noise(2, 4, 4, 4, seed=2)
    start = state(x0, eps, schedule.levels[-1])
    ours = sample(lambda x, t: eps, start, schedule, trajectory=True)
    for found, level in zip(ours, reversed(schedule.levels), strict=True):
        torch.testing.assert_close(found, state(x0, eps, level), rtol=0, atol=2e-4)
    theirs.set_timesteps(steps)
    x = start
    for t in theirs.timesteps:
        x = theirs.step(eps, t, x, eta=0.0).prev_sample
    assert (rms(x - x0) < 1e-4) == (spacing != "linspace")


@pytest.mark.parametrize("name", ["leading", "trailing", "linspace"])
def test_spacing_can_be_overridden(name):
    wanted = scheduler(timestep_spacing=name)
    wanted.set_timesteps(10)
    assert make_schedule(scheduler(), 10, spacing=name).timesteps == tuple(sorted(wanted.timesteps.tolist()))


def test_a_config_is_as_good_as_a_scheduler():
    theirs = scheduler(prediction_type="v_prediction", set_alpha_to_one=False)
    assert make_schedule(theirs.config, 20) == make_schedule(theirs, 20)
    assert make_schedule(theirs, 20).prediction_type == "v_prediction"
    assert make_schedule(theirs, 20).levels[0] == pytest.approx(1 - 1e-4)


# Closed forms

S_VALUES = [0.4, 1.0, 2.5]


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("s", S_VALUES)
def test_sampling_gaussian_data_is_the_closed_form(prediction_type, s):
    schedule = make_schedule(scheduler(prediction_type=prediction_type), 20)
    model = Gaussian(schedule, s)
    start = noise(2, 4, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(sample(model, start, schedule), model.sampling() * start, rtol=1e-9, atol=0)


@pytest.mark.parametrize("s", S_VALUES)
def test_many_steps_approach_the_probability_flow(s):
    """The ODE keeps x / standard deviation constant; a first-order method halves its error when the steps double."""
    errors = []
    for steps in (50, 100, 200):
        schedule = make_schedule(scheduler(), steps)
        model = Gaussian(schedule, s)
        errors.append(abs(model.sampling() / (s / math.sqrt(model.variance(schedule.levels[-1]))) - 1))
        found = sample(model, torch.ones(1, 1, dtype=torch.float64), schedule).item()
        assert found == pytest.approx(model.sampling(), rel=1e-9)
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.02


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_inverting_gaussian_data_is_the_closed_form(prediction_type, convention):
    schedule = make_schedule(scheduler(prediction_type=prediction_type), 20)
    model, a = Gaussian(schedule, 0.4), schedule.levels
    chain = {
        "target": [(a[i], a[i + 1], a[i + 1]) for i in range(20)],
        "current": [(a[i + 1], a[i + 2] if i < 19 else 0.0, a[i + 1]) for i in range(20)],
        "une": [(a[i + 1], a[i + 2], a[i + 1]) for i in range(19)],
    }[convention]
    factor = math.prod(model.step(start, end, told) for start, end, told in chain)
    x0 = noise(2, 4, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(invert(model, x0, schedule, convention=convention).latents, factor * x0, rtol=1e-9, atol=0)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("steps", [5, 20, 50])
def test_fixed_point_returns_the_noise(prediction_type, steps):
    schedule = make_schedule(scheduler(prediction_type=prediction_type), steps)
    model, start = Gaussian(schedule, 0.4), noise(3, 4, 4, 4, dtype=torch.float64)
    x0 = sample(model, start, schedule)
    found = invert(model, x0, schedule, fixed_point=100, tolerance=1e-9)
    torch.testing.assert_close(found.latents, start, rtol=0, atol=1e-5)
    assert found.residual.max() <= 1e-9
    assert rms(invert(model, x0, schedule).latents - start) > 1e-2  # one guess a step is far from it


def test_more_iterations_never_increase_the_residual():
    schedule = make_schedule(scheduler(), 10)
    model, start = Gaussian(schedule, 0.4), noise(3, 4, 4, 4, dtype=torch.float64)
    x0 = sample(model, start, schedule)
    runs = [invert(model, x0, schedule, fixed_point=k, tolerance=0.0) for k in range(1, 8)]
    residuals, errors = [r.residual for r in runs], [rms(r.latents - start) for r in runs]
    assert all((later < earlier).all() for earlier, later in zip(residuals, residuals[1:], strict=False))
    assert errors == sorted(errors, reverse=True)
    assert runs[0].calls == 20 and all(r.calls <= 10 * (k + 1) for k, r in enumerate(runs, 1))


def test_true_noise_makes_target_inversion_exact():
    """A model that repeats what it said while sampling, whatever the state: the inversion retraces the path."""
    schedule = make_schedule(scheduler(), 20)
    said, start = {}, noise(3, 4, 4, 4)

    def listen(x, t):
        said[t] = bent(x, t)
        return said[t]

    path = sample(listen, start, schedule, trajectory=True)
    back = invert(lambda x, t: said[t], path[-1], schedule, trajectory=True)
    torch.testing.assert_close(back.trajectory, path.flip(0), rtol=1e-4, atol=1e-4)
    for convention in ("current", "une"):  # shifted by a level: not the inverse, whatever the model knows
        assert rms(invert(lambda x, t: said[t], path[-1], schedule, convention=convention).latents - start) > 1e-2


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_predictions_are_what_the_network_said(prediction_type):
    """Read from the states of a path in either direction, for every prediction type."""
    schedule = make_schedule(scheduler(prediction_type=prediction_type), 20)
    model, start = Gaussian(schedule, 1.7), noise(3, 4, 4, 4, dtype=torch.float64)
    path = sample(model, start, schedule, trajectory=True)
    said = torch.stack([model.eps_slope(a) * x for x, a in zip(path, schedule.levels[:0:-1], strict=False)])
    torch.testing.assert_close(predictions(path, schedule.levels[::-1]), said)
    single = predictions(sample(model, start.float(), schedule, trajectory=True), schedule.levels[::-1])
    torch.testing.assert_close(single, said.float(), rtol=0, atol=1e-3)
    back = invert(model, path[-1], schedule, trajectory=True).trajectory
    for i, eps in enumerate(predictions(back, schedule.levels)):
        torch.testing.assert_close(move(back[i], eps, schedule.levels[i], schedule.levels[i + 1]), back[i + 1])


def test_predictions_need_a_level_for_every_state():
    with pytest.raises(ValueError, match="3 states need as many levels, got 2"):
        predictions(noise(3, 1, 4), (1.0, 0.9))


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_an_inversion_is_continued_from_its_own_states(convention):
    schedule, x0 = make_schedule(scheduler(), 10), noise(2, 4, 4, 4)
    whole = invert(bent, x0, schedule, convention=convention, trajectory=True)
    rest = invert(bent, whole.trajectory[3], schedule, convention=convention, start=3)
    assert torch.equal(rest.latents, whole.latents) and rest.level == whole.level and rest.calls == whole.calls - 3


def test_a_state_of_the_sampling_path_is_at_the_level_that_start_expects():
    """True states in place of the first inverted ones: the more of them, the nearer to the noise that the path began with."""
    schedule = make_schedule(scheduler(), 20)
    model, first = Gaussian(schedule, 1.7), noise(3, 4, 4, 4, dtype=torch.float64)
    path = sample(model, first, schedule, trajectory=True)
    errors = [rms(invert(model, path[-1 - k], schedule, start=k).latents - first) for k in (0, 1, 5, 19)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0]


@pytest.mark.parametrize("start", [-1, 10])
def test_start_leaves_a_step(start):
    with pytest.raises(ValueError, match=f"start = {start} must leave at least one of the 10 steps"):
        invert(bent, noise(1, 4), make_schedule(scheduler(), 10), start=start)


def diffusers_inverse(model, x0, forward, steps):
    theirs = DDIMInverseScheduler.from_config(forward.config)
    theirs.set_timesteps(steps)
    for t in theirs.timesteps:
        x0 = theirs.step(model(x0, int(t)), int(t), x0).prev_sample
    return x0


@pytest.mark.parametrize("s", S_VALUES)
@pytest.mark.parametrize("steps", [10, 50])
def test_velocity_is_read_at_the_level_the_network_is_told(s, steps):
    """Reading the velocity of level b as one of level a, as diffusers does, costs round-trip accuracy."""
    forward = scheduler(prediction_type="v_prediction")
    schedule = make_schedule(forward, steps)
    model, start = Gaussian(schedule, s), noise(3, 4, 4, 4, dtype=torch.float64)
    x0 = sample(model, start, schedule)
    ours = rms(invert(model, x0, schedule).latents - start)
    theirs = rms(diffusers_inverse(model, x0, forward, steps) - start)
    assert ours < theirs


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_prediction_types_agree_on_an_exact_state(prediction_type):
    x0, eps = noise(2, 4, dtype=torch.float64), noise(2, 4, seed=1, dtype=torch.float64)
    for level in (0.99, 0.5, 1e-3):
        output = {"epsilon": eps, "sample": x0, "v_prediction": state(eps, -x0, level)}[prediction_type]
        torch.testing.assert_close(to_eps(output, state(x0, eps, level), level, prediction_type), eps)


def test_a_move_is_undone_by_the_move_back():
    x, eps = noise(2, 4, dtype=torch.float64), noise(2, 4, seed=1, dtype=torch.float64)
    torch.testing.assert_close(move(move(x, eps, 0.9, 0.2), eps, 0.2, 0.9), x)
    torch.testing.assert_close(move(x, eps, 0.9, 0.0), eps)  # nothing of x is left at level 0
    torch.testing.assert_close(move(state(x, eps, 0.3), eps, 0.3, 1.0), x)


# Conventions


@pytest.mark.parametrize("convention, calls", [("target", 10), ("current", 10), ("une", 9)])
def test_calls_timesteps_and_end_level(convention, calls):
    schedule = make_schedule(scheduler(), 10)
    model = Recorder(bent)
    result = invert(model, noise(2, 4, 4, 4), schedule, convention=convention, trajectory=True)
    assert model.timesteps == [100 * i for i in range(calls)]
    assert result.calls == calls
    assert result.level == {"target": schedule.levels[-1], "current": 0.0, "une": schedule.levels[-1]}[convention]
    assert result.trajectory.shape == (calls + 1, 2, 4, 4, 4)
    assert torch.equal(result.trajectory[-1], result.latents)
    assert all(torch.equal(fed, state) for fed, state in zip(model.states, result.trajectory, strict=False))
    assert invert(bent, noise(2, 4, 4, 4), schedule, convention=convention).trajectory is None


def test_target_is_the_default():
    schedule, x0 = make_schedule(scheduler(), 10), noise(2, 4)
    assert torch.equal(invert(bent, x0, schedule).latents, invert(bent, x0, schedule, convention="target").latents)


def test_sampling_feeds_the_timesteps_in_reverse():
    model = Recorder(bent)
    schedule = make_schedule(scheduler(timestep_spacing="trailing"), 10)
    states = sample(model, noise(2, 4), schedule, trajectory=True)
    assert model.timesteps == list(range(999, 0, -100))
    assert states.shape == (11, 2, 4) and torch.equal(states[0], noise(2, 4))
    assert torch.equal(states[-1], sample(bent, noise(2, 4), schedule))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_current_ends_in_the_last_noise_prediction(prediction_type):
    schedule = make_schedule(scheduler(prediction_type=prediction_type), 10)
    model = Recorder(bent)
    found = invert(model, noise(2, 4, 4, 4), schedule, convention="current").latents
    x, t = model.states[-1], model.timesteps[-1]
    assert torch.equal(found, to_eps(bent(x, t), x, schedule.levels[-1], prediction_type))


def test_une_is_current_without_the_last_step():
    schedule, x0 = make_schedule(scheduler(), 10), noise(2, 4, 4, 4)
    current = invert(bent, x0, schedule, convention="current", trajectory=True)
    assert torch.equal(invert(bent, x0, schedule, convention="une").latents, current.trajectory[-2])


def test_nothing_is_clipped():
    """A scheduler that asks for clipping to [-1, 1] is read for its levels only."""
    schedule = make_schedule(scheduler(clip_sample=True, thresholding=True), 10)
    eps = noise(1, 4)
    x0 = torch.full((1, 4), 5.0)
    truth = lambda x, t: eps  # noqa: E731
    latents = invert(truth, x0, schedule).latents
    torch.testing.assert_close(sample(truth, latents, schedule), x0, rtol=1e-4, atol=1e-4)


# Batches


@pytest.mark.parametrize("settings", [{}, {"fixed_point": 5}, {"convention": "une"}])
def test_an_image_does_not_depend_on_the_others(settings):
    schedule, x0 = make_schedule(scheduler(), 10), noise(5, 4, 4, 4)
    whole = invert(bent, x0, schedule, **settings)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(invert(bent, x0[order], schedule, **settings).latents, whole.latents[order])
    parts = [invert(bent, part, schedule, **settings) for part in x0.split(2)]
    assert torch.equal(torch.cat([p.latents for p in parts]), whole.latents)
    assert torch.equal(torch.cat([p.residual for p in parts]), whole.residual)
    assert sum(p.calls * len(p.latents) for p in parts) == pytest.approx(whole.calls * 5)
    assert torch.equal(sample(bent, x0[order], schedule), sample(bent, x0, schedule)[order])


def test_images_that_are_done_cost_no_calls():
    """Image 0 is zero, where the Gaussian's network is exact at once; image 1 is not."""
    schedule = make_schedule(scheduler(), 10)
    model = Recorder(Gaussian(schedule, 0.4))
    x0 = torch.stack([torch.zeros(4), torch.ones(4)])
    result = invert(model, x0, schedule, fixed_point=4, tolerance=1e-12)
    sizes = [len(x) for x in model.states]
    assert sizes.count(2) == 20  # the guess and one iteration a step for both
    assert 20 < sizes.count(1) <= 30  # up to three more for image 1
    assert result.calls == sum(sizes) / 2
    assert result.residual[0] == 0 and result.residual[1] > 0


def test_residual_is_the_largest_change_of_any_step():
    schedule = make_schedule(scheduler(), 10)
    model = Gaussian(schedule, 0.4)
    result = invert(model, noise(3, 4, 4, 4), schedule, fixed_point=1, trajectory=True)
    changes = []
    for i, (before, after) in enumerate(zip(result.trajectory, result.trajectory[1:], strict=False)):
        guess = move(before, model(before, schedule.timesteps[i]), schedule.levels[i], schedule.levels[i + 1])
        changes.append((after - guess).square().mean((1, 2, 3)).sqrt())
    changes = torch.stack(changes)
    assert (changes.argmax(0) < 9).all()  # not the last step, which would be easy to report by mistake
    torch.testing.assert_close(result.residual, changes.amax(0), rtol=1e-4, atol=1e-6)


# A real network


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_fixed_point_inverts_a_network(prediction_type):
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, in_channels=2, out_channels=2, layers_per_block=1, block_out_channels=[8, 8], norm_num_groups=4,
        down_block_types=["DownBlock2D", "DownBlock2D"], up_block_types=["UpBlock2D", "UpBlock2D"],
    ).eval()  # fmt: skip
    schedule = make_schedule(scheduler(prediction_type=prediction_type), 10)
    level = dict(zip(schedule.timesteps, schedule.levels[1:], strict=True))

    def model(x, t):
        out, a = unet(x, t).sample, level[t]
        if prediction_type == "sample":  # close to the identity on clean states, as any useful network of that kind is
            return a**0.5 * x - (1 - a) ** 0.5 * out
        return out

    start = noise(2, 2, 8, 8)
    x0 = sample(model, start, schedule)
    plain = invert(model, x0, schedule)
    exact = invert(model, x0, schedule, fixed_point=50, tolerance=1e-6)
    error = {"plain": rms(plain.latents - start), "exact": rms(exact.latents - start)}
    again = {"plain": rms(sample(model, plain.latents, schedule) - x0), "exact": rms(sample(model, exact.latents, schedule) - x0)}
    assert error["exact"] < error["plain"] / 100, error
    assert again["exact"] < again["plain"] / 100, again


# Refusals


def test_unknown_convention():
    with pytest.raises(ValueError, match="'sideways'.*target, current, une"):
        invert(bent, noise(1, 4), make_schedule(scheduler(), 5), convention="sideways")


@pytest.mark.parametrize("convention", ["current", "une"])
def test_fixed_point_needs_target(convention):
    with pytest.raises(ValueError, match=f"'target', got '{convention}'"):
        invert(bent, noise(1, 4), make_schedule(scheduler(), 5), convention=convention, fixed_point=1)


def test_une_needs_two_steps():
    with pytest.raises(ValueError, match="'une'.*at least 2 steps"):
        invert(bent, noise(1, 4), make_schedule(scheduler(), 1), convention="une")


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_steps_out_of_range(steps):
    with pytest.raises(ValueError, match="expected 1 to 1000"):
        make_schedule(scheduler(), steps)


def test_all_timesteps_whatever_the_offset():
    """1,000 leading steps with offset 1 would end at timestep 1,000 of 0..999, as Stable Diffusion's do in diffusers."""
    assert make_schedule(scheduler(steps_offset=1), 1000).timesteps == tuple(range(1000))


def test_timestep_beyond_the_last():
    with pytest.raises(ValueError, match="distinct timesteps in 0..999"):
        make_schedule(scheduler(steps_offset=2), 999)


def test_unknown_prediction_type():
    with pytest.raises(ValueError, match="'flow'.*epsilon, v_prediction, sample"):
        Schedule((0,), (1.0, 0.9), "flow")
    with pytest.raises(ValueError, match="'flow'"):
        make_schedule(dict(scheduler(prediction_type="epsilon").config) | {"prediction_type": "flow"}, 5)


def test_levels_and_timesteps_belong_together():
    with pytest.raises(ValueError, match="2 timesteps need 3 levels, got 2"):
        Schedule((0, 1), (1.0, 0.9), "epsilon")


def test_level_zero_cannot_be_a_state():
    """Schedules with zero terminal signal: x0 cannot be recovered from a noise prediction there."""
    with pytest.raises(ValueError, match="level 0"):
        make_schedule(scheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing"), 5)


def test_the_clean_part_of_a_schedule_goes_down_the_same_path():
    schedule = make_schedule(scheduler(), 10)
    part = schedule.until(500)
    assert part.timesteps == (0, 100, 200, 300, 400, 500) and part.levels == schedule.levels[:7]
    assert schedule.until(599) == part and schedule.until(999) == schedule
    path = sample(bent, noise(2, 4), schedule, trajectory=True)
    assert torch.equal(sample(bent, path[4], part), path[-1])
    with pytest.raises(ValueError, match="t = -1 is below every timestep of the schedule; expected at least 0"):
        schedule.until(-1)
