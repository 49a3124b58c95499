"""Rendered faces: the same bits however they are asked for, the designed statistics, and a smooth picture of every factor."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import norm

from une_utils.images.rendered import (
    designed_correlation,
    ATTRIBUTES,
    BLUE,
    FACTORS,
    NUISANCES,
    RenderedFaces,
    factor_correlation,
    factor_matrix,
    factors_to_attributes,
    render,
    sample_z,
    z_to_factors,
)

SIZE = 32  # dose tests look at hundreds of faces
DOSES = np.linspace(-2, 2, 41)  # 0.1 standard deviations apart; holds every threshold
# Bounds on what one dose step changes in the mean picture, in grey levels of 255, measured at 32 px: at most 2.0, but for five
# factors that repaint a large area around their threshold, on purpose, since that is where the attribute has to show: 2.6 for
# grey hair, 2.8 for the lightness of hair, 3.0 for that of skin, 4.1 and 8.2 for hat and bald, which come within a tenth of a
# deviation.
BOUND, OWN_BOUNDS = 2.3, {"Gray_Hair": 3.5, "Hair_Lightness": 3.5, "Pale_Skin": 3.5, "Wearing_Hat": 5.5, "Bald": 10.0}

every_factor = pytest.mark.parametrize("factor", FACTORS)


@pytest.fixture(scope="module")
def many():
    """20,000 faces, not drawn."""
    return RenderedFaces(20_000)


@pytest.fixture(scope="module")
def bases():
    """Factors of two faces to start from: the mean face, and one with all factors away from zero."""
    return np.stack([np.zeros(len(FACTORS)), RenderedFaces(1).factors[0]])


def steps(bases, factor, levels):
    """(len(levels) - 1,) mean absolute change between neighbouring levels of one factor, averaged over the base faces."""
    changes = []
    for base in bases:
        faces = np.repeat(base[None], len(levels), axis=0)
        faces[:, FACTORS.index(factor)] = levels
        pictures = render(faces, SIZE).astype(np.float32)
        changes.append(np.abs(np.diff(pictures, axis=0)).mean(axis=(1, 2, 3)))
    return np.mean(changes, axis=0)


# The same face however it is asked for


def test_pictures_do_not_depend_on_batch_or_order():
    source = RenderedFaces(12)
    together = source.load(range(12))
    order = np.random.RandomState(0).permutation(12)
    assert np.array_equal(source.load(order), together[order])
    assert np.array_equal(np.concatenate([source.load([i]) for i in range(12)]), together)
    assert len({picture.tobytes() for picture in together}) == 12


@pytest.mark.parametrize(("count", "first"), [(5, 0), (300, 0), (3, 2), (1, 4)])
def test_a_face_depends_on_seed_and_index_only(count, first):
    one, other = RenderedFaces(5), RenderedFaces(count, first=first)
    row, place = 4, 4 - first
    assert np.array_equal(other.z[place], one.z[row]) and np.array_equal(other.factors[place], one.factors[row])
    assert np.array_equal(other.attributes[place], one.attributes[row]) and other.ids[place] == one.ids[row]
    assert np.array_equal(other.load([place]), one.load([row]))


def test_other_seeds_give_other_faces():
    assert np.abs(RenderedFaces(50, seed=1).z - RenderedFaces(50, seed=2).z).min() > 0


def test_another_process_draws_the_same_bits():
    """Backwards and one by one in a new process; a hash in this file would bind the test to one kind of processor."""
    code = (
        "import hashlib; from une_utils.images.rendered import RenderedFaces; s = RenderedFaces(40);"
        "print(hashlib.sha256(b''.join([s.load([i]).tobytes() for i in range(15, -1, -1)][::-1])).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == hashlib.sha256(RenderedFaces(16).load(range(16)).tobytes()).hexdigest()


# Statistics by design


def test_correlation_is_a_correlation():
    correlation = factor_correlation()
    assert np.allclose(np.diag(correlation), 1) and np.allclose(correlation, correlation.T)
    assert np.linalg.eigvalsh(correlation).min() > 0.01
    assert correlation[FACTORS.index("Male"), FACTORS.index("Beard")] > 0.4  # the repair to positive definite left the design


def test_matrix_is_the_root_of_the_correlation():
    assert np.abs(factor_matrix() @ factor_matrix().T - factor_correlation()).max() < 1e-5


def test_z_is_standard_normal(many):
    assert np.abs(many.z.mean(0)).max() < 5 / np.sqrt(len(many))
    assert np.abs(np.cov(many.z.T) - np.eye(len(FACTORS))).max() < 5 * np.sqrt(2 / len(many))


def test_factors_have_unit_variance_and_the_designed_correlation(many):
    error = 1 / np.sqrt(len(many))  # of a correlation near zero; a variance has sqrt(2) times that
    assert np.abs(many.factors.mean(0)).max() < 5 * error
    assert np.abs(many.factors.var(0) - 1).max() < 5 * np.sqrt(2) * error
    assert np.abs(np.corrcoef(many.factors.T) - factor_correlation()).max() < 5 * error


def test_attributes_are_thresholds_of_factors(many):
    assert many.attribute_names == tuple(ATTRIBUTES) and many.attributes.dtype == bool
    for column, attribute in zip(many.attributes.T, ATTRIBUTES.values(), strict=True):
        values = many.factors[:, FACTORS.index(attribute.factor)]
        wanted = values > attribute.threshold if attribute.sign > 0 else values < attribute.threshold
        assert np.array_equal(column, wanted)


def test_prevalence_follows_from_the_threshold(many):
    share = many.attributes.mean(0)
    tail = norm.sf([a.sign * a.threshold for a in ATTRIBUTES.values()])
    assert np.abs(share - tail).max() < 5 * 0.5 / np.sqrt(len(many))


def test_attributes_are_linearly_separable_in_z(many):
    """A column of the factor matrix is the normal of the attribute's hyperplane; no face is on the wrong side."""
    for column, attribute in zip(many.attributes.T, ATTRIBUTES.values(), strict=True):
        normal = factor_matrix()[:, FACTORS.index(attribute.factor)]
        margin = attribute.sign * (many.z @ normal - attribute.threshold)
        assert column.any() and not column.all()
        assert margin[column].min() > -1e-9 > -margin[column].max() and margin[~column].max() < 1e-9


def test_nuisances_carry_no_attribute():
    assert not {a.factor for a in ATTRIBUTES.values()} & set(NUISANCES)
    assert {a.factor for a in ATTRIBUTES.values()} | set(NUISANCES) == set(FACTORS)


# Every factor in the picture


@every_factor
def test_factor_changes_the_picture(factor, bases):
    faces = np.repeat(bases[:1], 2, axis=0)
    faces[:, FACTORS.index(factor)] = -1.5, 1.5
    low, high = render(faces, 64).astype(int)
    assert (np.abs(high - low).max(axis=-1) > 8).sum() >= 20  # pixels of 4,096, by more than a rounding


@every_factor
def test_picture_follows_the_dose_in_moderate_steps(factor, bases):
    """No dose step changes much, and the largest one falls apart when it is cut into ten: it is a slope, not a jump."""
    coarse = steps(bases, factor, DOSES)
    assert 0 < coarse.max() < OWN_BOUNDS.get(factor, BOUND)
    k = coarse.argmax()
    assert steps(bases, factor, np.linspace(DOSES[k], DOSES[k + 1], 11)).max() < 0.35 * coarse[k]


def test_attribute_shows_at_its_threshold(bases):
    """A hat and a bald head are drawn when the label says so, and not when it does not."""
    for factor in ("Wearing_Hat", "Bald"):
        column = FACTORS.index(factor)
        faces = np.repeat(bases[:1], 4, axis=0)
        threshold = ATTRIBUTES[factor].threshold
        faces[:, column] = -1, threshold - 0.3, threshold + 0.1, 2
        never, below, above, full = render(faces, SIZE).astype(float)
        whole = np.abs(full - never).mean()
        assert np.abs(below - never).mean() < 0.1 * whole and np.abs(above - never).mean() > 0.8 * whole


# Shapes and types


@pytest.mark.parametrize("size", [32, 64, 128])
def test_sizes(size):
    pictures = RenderedFaces(2, size=size).load([0, 1])
    assert pictures.shape == (2, size, size, 3) and pictures.dtype == np.uint8
    assert pictures.std() > 20  # not a blank sheet


def test_sizes_show_the_same_face():
    """A 128 px face averaged over blocks of two pixels is about its 64 px version."""
    row = RenderedFaces(1).factors
    large, small = render(row, 128)[0].astype(float), render(row, 64)[0].astype(float)
    halved = large.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    other = render(RenderedFaces(2).factors[1:], 64)[0].astype(float)
    assert np.abs(halved - small).mean() < 4 < np.abs(halved - other).mean()


def test_tint_makes_skin_blue_and_leaves_the_rest():
    """The skin is what the picture changes with Pale_Skin, but for lips and eyes: hair, clothes and background are outside it."""
    base, pale = np.zeros((1, len(FACTORS))), np.zeros((1, len(FACTORS)))
    pale[0, FACTORS.index("Pale_Skin")] = 1.0
    plain, other, blue = render(base, SIZE)[0].astype(int), render(pale, SIZE)[0].astype(int), render(base, SIZE, tint=BLUE)[0].astype(int)
    skin = np.abs(other - plain).sum(-1) > 60
    assert skin.sum() > 50 and (blue[skin][:, 2] > blue[skin][:, 0]).mean() > 0.9 and (plain[skin][:, 2] < plain[skin][:, 0]).all()
    np.testing.assert_array_equal(blue[np.abs(other - plain).sum(-1) == 0], plain[np.abs(other - plain).sum(-1) == 0])


@pytest.mark.parametrize("shape", [(len(FACTORS),), (2, len(FACTORS) - 1), (2, len(FACTORS) + 1), (1, 2, len(FACTORS))])
def test_wrong_shape_of_factors_is_refused(shape):
    with pytest.raises(ValueError, match=rf"expected \(n, {len(FACTORS)}\)"):
        render(np.zeros(shape))


def test_no_faces_give_no_pictures():
    assert render(np.empty((0, len(FACTORS))), 64).shape == (0, 64, 64, 3)
    z = sample_z(42, [])
    assert z.shape == (0, len(FACTORS)) and factors_to_attributes(z_to_factors(z)).shape == (0, len(ATTRIBUTES))


@pytest.mark.parametrize("count", [0, -3])
def test_count_below_one_is_refused(count):
    with pytest.raises(ValueError, match=f"is {count}, expected at least 1"):
        RenderedFaces(count)


@pytest.mark.parametrize("extreme", [-8.0, 8.0])
def test_extreme_factors_are_drawn_without_warning(extreme):
    with np.errstate(all="raise", under="ignore"):
        pictures = render(np.full((1, len(FACTORS)), extreme), SIZE)
    assert pictures.std() > 5


def test_designed_correlation_is_what_many_faces_show():
    design = designed_correlation()
    z = sample_z(11, range(20_000))
    attributes = factors_to_attributes(z_to_factors(z))
    assert np.abs(np.corrcoef(attributes.T) - design).max() < 0.03  # four standard errors at 20,000 faces
    black, blond = (list(ATTRIBUTES).index(n) for n in ("Black_Hair", "Blond_Hair"))
    assert design[black, blond] < -0.3 and not (attributes[:, black] & attributes[:, blond]).any()
