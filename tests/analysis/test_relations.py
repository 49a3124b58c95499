import numpy as np
import pandas as pd
import pytest
from scipy import linalg
from scipy import stats as scipy_stats
from skimage.metrics import structural_similarity

from une_utils.analysis import relations as r
from une_utils.analysis.stats import wilson_interval


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def small_blocks(monkeypatch, size=3000):
    monkeypatch.setattr(r, "_BLOCK_BYTES", size)


# --- correlation between features ------------------------------------------------------------------------------------


def dense_correlations(X):
    """All |r| of pairs i < j, descending, by NumPy's full matrix."""
    return np.sort(np.abs(np.corrcoef(X, rowvar=False)[np.triu_indices(X.shape[1], 1)]))[::-1]


@pytest.mark.parametrize("block_bytes", [32 * 2**20, 3000, 1])  # one block, a few, single rows
def test_top_correlations_are_those_of_the_full_matrix(monkeypatch, block_bytes):
    monkeypatch.setattr(r, "_BLOCK_BYTES", block_bytes)
    X = 1000 + normal(40, 57) @ normal(57, 57, seed=1)  # far from zero, and correlated
    expected = dense_correlations(X)
    np.testing.assert_allclose(r.top_correlations(X, 25), expected[:25], atol=1e-6)
    np.testing.assert_allclose(r.top_correlations(X, 57 * 28), expected, atol=1e-6)  # every pair
    edges = np.array([0, 0.05, 0.3, 0.31, 0.9, 1])
    np.testing.assert_array_equal(r.correlation_histogram(X, edges), np.histogram(expected, edges)[0])


def test_planted_correlation_is_found_whatever_its_sign_and_place():
    X = normal(2000, 300)
    for i, j, rho in ((0, 299, 0.8), (150, 151, -0.6)):
        X[:, j] = rho * X[:, i] + np.sqrt(1 - rho**2) * X[:, j]
    top = r.top_correlations(X.reshape(2000, 3, 10, 10), 3)
    np.testing.assert_allclose(top[:2], [0.8, 0.6], atol=0.03)
    assert top[2] < 0.12
    counts = r.correlation_histogram(X, np.linspace(0, 1, 11))
    assert counts.sum() == 300 * 299 // 2 and counts[2:].sum() == 2


def test_perfect_and_constant_features():
    X = normal(50, 4)
    X[:, 1], X[:, 2] = -3 * X[:, 0], 0.1  # 0.1 has no exact mean
    top = r.top_correlations(X, 6)
    assert top[0] == pytest.approx(1, abs=1e-6) and top.max() <= 1
    np.testing.assert_array_equal(top[3:], 0)
    assert r.correlation_histogram(X, [0, 1e-12, 1])[0] == 3


def test_patches_see_only_their_own_pairs_of_all_channels():
    images = normal(500, 2, 8, 12)
    images[:, 1, 3, 3] = images[:, 0, 0, 0]  # both in the first patch of 4 x 4, in two channels
    images[:, 0, 7, 11] = images[:, 0, 0, 1]  # across patches
    X = images.reshape(500, -1)
    top = r.top_correlations(X, 5, patch=4, shape=(2, 8, 12))
    assert top.shape == (6, 5)
    assert top[0, 0] == pytest.approx(1, abs=1e-6) and top[:, 1:].max() < 0.3 and top[1:].max() < 0.3
    np.testing.assert_allclose(top[4], dense_correlations(images[:, :, 4:, 4:8].reshape(500, -1))[:5], atol=1e-6)
    assert r.top_correlations(X, 2)[1] == pytest.approx(1, abs=1e-6)


def test_null_is_that_of_independent_gaussians():
    null = r.correlation_null(200, 100, k=10, repeats=40)
    beta = scipy_stats.beta(0.5, 99)  # r^2 of two independent Gaussian features, n = 200
    pairs = 4950
    assert null.value == pytest.approx(np.sqrt(beta.isf((np.arange(10) + 0.5) / pairs)).mean(), rel=0.02)
    assert null.low < null.value < null.high and null.n == 40
    measured = [r.top_correlations(normal(200, 100, seed=100 + i)).mean() for i in range(40)]
    assert np.mean([null.low <= m <= null.high for m in measured]) > 0.8
    edges = np.linspace(0, 1, 21)
    counts = r.correlation_histogram(normal(200, 100), edges)
    expected = np.diff(beta.cdf(edges**2)) * pairs
    assert np.abs(counts - expected).max() < 4 * np.sqrt(expected.max())


def test_null_has_the_calculated_values():
    """Calculated apart from this code: 0.213 for the whole image at N = 512, 0.111 and 0.055 for patches of 3 x 8 x 8."""
    assert r.correlation_null(1024, 192, k=20, repeats=2, patches=16).value == pytest.approx(0.111, abs=0.002)
    assert r.correlation_null(4096, 192, k=20, repeats=6).value == pytest.approx(0.055, abs=0.0015)
    X = np.random.default_rng(0).standard_normal((512, 3072), dtype=np.float32)
    top = r.top_correlations(X)
    assert top.mean() == pytest.approx(0.213, abs=0.012)  # one draw, whose standard deviation is 0.004
    np.testing.assert_allclose(top, dense_correlations(X)[:10], atol=1e-6)


def test_correlations_refuse_what_has_no_answer():
    X = normal(10, 12)
    for arguments, message in (
        ((X, 67), "66 pairs"),
        ((X, 0), "k = 0"),
        ((X, 3, 2), "go together"),
        ((X, 3, None, (3, 2, 2)), "go together"),
        ((X, 3, 3, (3, 2, 2)), "must divide"),
        ((X, 3, 2, (3, 2, 3)), "C H W = 12"),
        ((X, 3, 2, (12,)), "C H W = 12"),
        ((X[:2],), "at least 3"),
        ((X[0],), "samples on axis 0"),
        ((X[:, :0],), "not empty"),
        ((np.where(X == X[3, 3], np.nan, X),), "NaN"),
        ((np.where(X == X[3, 3], np.inf, X),), "NaN or inf"),
    ):
        with pytest.raises(ValueError, match=message):
            r.top_correlations(*arguments)
    for edges in ([0.1, 1], [0, 0.9], [0, 0.5, 0.5, 1], [0], [[0, 1]]):
        with pytest.raises(ValueError, match="from 0 to 1"):
            r.correlation_histogram(X, edges)
    for arguments in ((2, 5), (10, 5, 3, 1), (10, 5, 3, 2, 0, 0)):
        with pytest.raises(ValueError, match="correlation_null needs"):
            r.correlation_null(*arguments)
    with pytest.raises(ValueError, match="10 must lie between 1 and the 6 pairs"):
        r.correlation_null(10, 4)


# --- normality -------------------------------------------------------------------------------------------------------


def test_kl_of_known_gaussians():
    noise = normal(500, 6)
    noise = (noise - noise.mean(axis=0)) / noise.std(axis=0)
    kl = r.gaussian_kl(noise, 2 * noise + 1)
    assert kl.scalar == pytest.approx(np.log(2) + (1 + 1) / 8 - 0.5)
    assert kl.per_position == pytest.approx(kl.scalar, rel=1e-4)  # 1e-6 on the standard deviations
    # opposite shifts of positions: one Gaussian sees a wider one, the positions see the shifts
    shift = np.array([1, -1] * 3)
    kl = r.gaussian_kl(noise, noise + shift)
    assert kl.scalar == pytest.approx(0.5 * np.log(2) + 1 / 4 - 0.5)
    assert kl.per_position == pytest.approx(0.5, rel=1e-4)
    assert r.gaussian_kl(noise, noise) == pytest.approx((0, 0), abs=1e-12)


def test_kl_of_noise_against_noise_is_its_stated_null():
    kl = r.gaussian_kl(normal(300, 3, 20, 20), normal(300, 3, 20, 20, seed=1))
    assert kl.per_position == pytest.approx(2 / 300, rel=0.12)
    assert kl.scalar < 10 / (300 * 1200)


def test_kl_refuses_what_has_no_answer():
    X = normal(10, 3)
    for pair, message in (
        ((X, X[:9]), "shapes differ: noise .10, 3., latents .9, 3."),
        ((X[:7], X[:7]), "noise has 7 samples and at least 8"),
        ((X, np.full((10, 3), 0.1)), "latents is one number"),
        ((X, X * np.nan), "latents contains NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            r.gaussian_kl(*pair)


@pytest.mark.parametrize("entries", [5000, 60])
def test_rejected_share_is_nominal_for_noise_and_large_for_others(monkeypatch, entries):
    noise = r.rejected_share(normal(1500, 200), entries)
    low, high = wilson_interval(0.05 * 1500, 1500, 0.9999)
    assert low < noise.value < high and noise.low < noise.value < noise.high and noise.n == 1500
    assert r.rejected_share(np.random.default_rng(1).exponential(size=(50, 2, 10, 10)), entries).value > 0.9
    small_blocks(monkeypatch)
    assert r.rejected_share(normal(1500, 200), entries) == noise
    assert r.rejected_share(np.ones((3, 20))).value == 1


def test_rejected_share_draws_without_replacement_from_the_whole_latent():
    latents = normal(40, 4000)
    latents[:, 2000:] += 8  # the halves are Gaussian, the whole is not
    assert r.rejected_share(latents, 30).value > 0.9
    ranks = scipy_stats.norm.ppf((np.arange(100) + 0.5) / 100)
    assert r.rejected_share(np.stack([ranks] * 3), 99).value == 0  # a sample with repetitions would fail now and then


def test_rejected_share_refuses_what_has_no_answer():
    for arguments in ((normal(5, 7),), (normal(5, 20), 5001), (normal(5, 20), 7)):
        with pytest.raises(ValueError, match="Shapiro-Wilk takes 8 to 5000"):
            r.rejected_share(*arguments)
    with pytest.raises(ValueError, match="latents has 2 samples"):
        r.rejected_share(normal(2, 20))


# --- the triangle ----------------------------------------------------------------------------------------------------


def test_right_angled_and_collinear_triangles():
    origin, e1, e2 = np.zeros(16), np.eye(16)[0], np.eye(16)[1]
    image = np.stack([3 * e1, e1, 2 * e1, e1])
    noise = np.stack([4 * e2, origin, origin, origin])
    latent = np.stack([origin, e2, 0.5 * e1, -e1])  # right angle at the latent, at the noise; between; behind the noise
    frame = r.triangle(image, noise, latent)
    assert list(frame.columns) == list(r.TRIANGLE) and len(frame) == 4
    first = frame.iloc[0]
    angles = [np.degrees(np.arctan2(4, 3)), np.degrees(np.arctan2(3, 4)), 90]
    assert first[list(r.ANGLES)].to_numpy() == pytest.approx(angles)
    assert first[list(r.DISTANCES)].to_numpy() == pytest.approx([4, 3, 5])
    assert first[["rms_noise_latent", "rms_image_latent", "rms_image_noise"]].to_numpy() == pytest.approx([1, 0.75, 1.25])
    assert (first["position"], first["off_line"]) == pytest.approx((16 / 25, 12 / 25))  # height of the 3-4-5 triangle
    expected = [[45, 90, 45], [0, 0, 180], [0, 180, 0]]
    np.testing.assert_allclose(frame[list(r.ANGLES)].to_numpy()[1:], expected, atol=1e-12)
    np.testing.assert_allclose(frame["position"][1:], [0, 0.25, -1], atol=1e-15)
    np.testing.assert_allclose(frame["off_line"][1:], [1, 0, 0], atol=1e-15)


def test_latent_built_at_a_position_is_found_there(monkeypatch):
    image, noise, aside = normal(3, 50, 3, 8, 8).astype(np.float32)
    line = (image - noise).reshape(50, -1)
    aside = aside.reshape(50, -1)
    aside -= (aside * line).sum(axis=1, keepdims=True) / (line**2).sum(axis=1, keepdims=True) * line
    aside *= 0.2 * np.linalg.norm(line, axis=1, keepdims=True) / np.linalg.norm(aside, axis=1, keepdims=True)
    latent = noise + 0.3 * (image - noise) + aside.reshape(image.shape)
    frame = r.triangle(image, noise, latent)
    np.testing.assert_allclose(frame["position"], 0.3, atol=1e-5)
    np.testing.assert_allclose(frame["off_line"], 0.2, atol=1e-5)
    np.testing.assert_allclose(frame[list(r.ANGLES)].sum(axis=1), 180)
    np.testing.assert_allclose(frame["angle_noise"], np.degrees(np.arctan2(0.2, 0.3)), rtol=1e-4)
    np.testing.assert_allclose(frame["distance_image_noise"], np.linalg.norm(line, axis=1), rtol=1e-5)
    small_blocks(monkeypatch)
    pd.testing.assert_frame_equal(r.triangle(image, noise, latent), frame)


def test_coinciding_vertices_are_undefined_and_left_out_of_the_summary():
    image, noise, latent = normal(3, 6, 5)
    latent[0], image[1] = noise[0], noise[1]
    frame = r.triangle(image, noise, latent)
    undefined = frame.isna()
    assert undefined.iloc[0].sum() == 2 and frame.iloc[0][["angle_image", "position", "off_line"]].tolist() == [0, 0, 0]
    assert set(frame.columns[undefined.iloc[1]]) == {"angle_image", "angle_noise", "position", "off_line"}
    summary = r.triangle_summary(frame, bootstrap=50).set_index("quantity")
    names = ["angle_image", "angle_noise", "angle_latent", "position", "rms_image_noise"]
    assert summary["n"].loc[names].tolist() == [5, 4, 5, 5, 6]


def test_summary_has_means_intervals_and_the_published_angle():
    frame = r.triangle(*normal(3, 200, 12))
    summary = r.triangle_summary(frame, bootstrap=500).set_index("quantity")
    assert set(summary.index) == {*r.TRIANGLE, *(f"published_{name}" for name in r.ANGLES)}
    for name in r.TRIANGLE:
        row, values = summary.loc[name], frame[name]
        assert row["value"] == pytest.approx(values.mean()) and row["std"] == pytest.approx(values.std(ddof=0))
        assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * values.std() / np.sqrt(200), rel=0.2)
    published = summary.loc["published_angle_latent"]
    assert published["value"] == pytest.approx(np.degrees(np.arccos(np.cos(np.radians(frame["angle_latent"])).mean())))
    assert published["low"] < published["value"] < published["high"] and np.isnan(published["std"])
    # cosine bends: angles 0 and 90 have the mean 45 and the mean cosine of 60 degrees
    two = frame.iloc[:4].assign(angle_noise=[0.0, 0.0, 90.0, 90.0])
    two = r.triangle_summary(two, bootstrap=20).set_index("quantity")["value"]
    assert (two["angle_noise"], two["published_angle_noise"]) == pytest.approx((45, 60))


def test_triangle_refuses_what_has_no_answer():
    X = normal(4, 5)
    with pytest.raises(ValueError, match="image .4, 5., noise .4, 4., latent .4, 5."):
        r.triangle(X, X[:, :4], X)
    with pytest.raises(ValueError, match="latent contains NaN"):
        r.triangle(X, X, X * np.nan)
    frame = r.triangle(X, normal(4, 5, seed=1), normal(4, 5, seed=2))
    with pytest.raises(ValueError, match="lacks position, off_line"):
        r.triangle_summary(frame.drop(columns=["position", "off_line"]))
    with pytest.raises(ValueError, match="angle_image is defined in 2 samples"):
        r.triangle_summary(frame[:2])


def test_most_probable_triangle():
    rng = np.random.default_rng(0)
    image, noise = rng.normal(20.2, 2, 20000), rng.normal(30.1, 2, 20000)
    found = r.most_probable_triangle(np.column_stack([image, noise, 180 - image - noise]))
    assert found[:3] == pytest.approx((20, 30, 130), abs=1) and sum(found[:3]) == 180
    # equal triangles, whose parts the published bins would count as 60, 59, 59: no triple of sum 180
    same = r.most_probable_triangle(np.tile([60.4, 59.9, 59.7], (5, 1)))
    assert same == (60, 60, 60, 1.0)
    assert r.most_probable_triangle([[0, 180, 0]])[:3] == (0, 180, 0)
    # by enumeration
    angles = rng.integers(55, 66, (40, 3))
    shares = [np.bincount(column, minlength=181) / 40 for column in angles.T]
    best = max(shares[0][a] * shares[1][b] * shares[2][180 - a - b] for a in range(181) for b in range(181 - a))
    assert r.most_probable_triangle(angles).probability == pytest.approx(best)
    for bad, message in (
        ([[60, 60]], r"must be \(N, 3\)"),
        (np.empty((0, 3)), r"must be \(N, 3\)"),
        ([[60, np.nan, 60]], "without NaN"),
        ([[-1, 90, 91]], "0 to 180"),
        ([[60.4, 60.3, 59.3]], "no triple"),
    ):
        with pytest.raises(ValueError, match=message):
            r.most_probable_triangle(bad)


# --- the path --------------------------------------------------------------------------------------------------------


def test_path_along_the_line_has_its_parameter_as_nearest_point():
    noise, latent = normal(2, 30, 4, 5)
    length = np.linalg.norm((latent - noise).reshape(30, -1), axis=1)
    at = np.array([0.0, 0.25, 0.5, 1.0, 1.5, -0.5])
    path = r.path_distances((noise + c * (latent - noise) for c in at), noise, latent, points=5)
    np.testing.assert_allclose(path.nearest, np.repeat(at[:, None], 30, axis=1), atol=1e-12)
    np.testing.assert_allclose(path.points, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(path.distance, np.abs(at[:, None] - path.points) * length.mean(), atol=1e-6)
    np.testing.assert_allclose(path.to_latent, np.abs(at[:, None] - 1) * length, atol=1e-6)


def test_path_distances_are_those_of_the_formed_points(monkeypatch):
    noise, latent, *states = normal(6, 20, 37).astype(np.float32)
    path = r.path_distances(states, noise, latent)
    points = np.linspace(0, 1, 25)[:, None, None] * latent + (1 - np.linspace(0, 1, 25))[:, None, None] * noise
    expected = [np.linalg.norm(x - points, axis=-1).mean(axis=1) for x in states]
    np.testing.assert_allclose(path.distance, expected, rtol=1e-6)
    assert path.distance.shape == (4, 25) and path.nearest.shape == path.to_latent.shape == (4, 20)
    np.testing.assert_allclose(path.to_latent, [np.linalg.norm(x - latent, axis=1) for x in states], rtol=1e-5)
    small_blocks(monkeypatch)
    for blocked, whole in zip(r.path_distances(states, noise, latent), path, strict=True):
        np.testing.assert_allclose(blocked, whole, rtol=1e-12)


def test_turning_point_of_paths_that_pass_and_of_paths_that_do_not():
    noise, latent = normal(2, 40, 8)
    line = latent - noise
    across = normal(40, 8, seed=1)
    across -= (across * line).sum(axis=1, keepdims=True) / (line**2).sum(axis=1, keepdims=True) * line
    steps = np.arange(1, 11) / 10
    # the first 30 reach the latent after 0.6 of the path and leave it, the others stop half-way
    goal = np.where(np.arange(40) < 30, 1 / 0.6, 0.5)[:, None]
    path = r.path_distances([noise + (c + 1e-9) * goal * (latent - noise) for c in steps], noise, latent)
    table = r.turning_point(path, bootstrap=200).set_index("quantity")
    assert table.loc["passed"].tolist() == pytest.approx([0.6, 0.6, 0.6, 30])
    assert table.loc["nearest", "value"] == pytest.approx((30 * 0.6 + 10 * 1.0) / 40)
    assert table.loc["nearest", "low"] < 0.7 < table.loc["nearest", "high"]
    assert table.loc["passing"].tolist() == pytest.approx([0.75, *wilson_interval(30, 40), 40])
    # a constant part across the line changes neither
    states = (noise + across + (c + 1e-9) / 0.6 * (latent - noise) for c in steps)
    moved = r.path_distances(states, noise, latent)
    assert r.turning_point(moved, bootstrap=20)["value"].tolist() == pytest.approx([0.6, 0.6, 1])
    short = r.turning_point(r.path_distances([noise], noise, latent), bootstrap=20).set_index("quantity")
    assert short.loc["passed", "n"] == 0 and short.loc["passed"][["value", "low", "high"]].isna().all()
    assert short.loc["passing", "value"] == 0


def test_paths_refuse_what_has_no_answer():
    noise, latent = normal(2, 5, 4)
    for arguments, message in (
        (([], noise, latent), "no states"),
        (([noise], noise, latent, 1), "points = 1"),
        (([noise[:4]], noise, latent), "state 0 is .4, 4. and noise .5, 4."),
        (([noise, noise * np.nan], noise, latent), "state 1 contains NaN"),
        (([noise], noise, latent[:, :3]), "shapes differ"),
        (([noise], noise, np.where(np.arange(5)[:, None] == 2, noise, latent)), r"equals noise in samples \[2\]"),
        (([noise[:2]], noise[:2], latent[:2]), "at least 3"),
    ):
        with pytest.raises(ValueError, match=message):
            r.path_distances(*arguments)
    path = r.path_distances([noise], noise, latent)
    undefined = path._replace(nearest=path.nearest * np.nan)
    few = path._replace(nearest=path.nearest[:, :2], to_latent=path.to_latent[:, :2])
    for bad in (undefined, few):
        with pytest.raises(ValueError, match="turning_point needs 3"):
            r.turning_point(bad)


# --- plain areas -----------------------------------------------------------------------------------------------------


def test_plain_mask_of_a_step_edge():
    images = np.zeros((2, 3, 5, 6))
    images[0, 1, :, 3:] = 0.06  # in one channel; halved by the plain vertical direction: 0.03
    images[1, 1, :, 3:] = 0.04  # 0.02 is still plain
    mask = r.plain_mask(images)
    expected = np.ones((5, 6), dtype=bool)
    expected[:, 2] = False
    np.testing.assert_array_equal(mask[0], expected)
    assert mask.dtype == bool and mask[1].all()
    assert not r.plain_mask(images, threshold=0.02)[1, :, 2].any()
    np.testing.assert_array_equal(r.plain_mask(images.transpose(0, 1, 3, 2))[0], expected.T)
    noise = r.plain_mask(normal(20, 3, 16, 16) / 3)
    assert noise[:, :-1, :-1].mean() < 0.01


def test_prediction_error_inside_and_outside():
    pred = normal(3, 2, 4, 4)
    mask = np.zeros((3, 4, 4), dtype=bool)
    mask[0, :2], mask[1] = True, True
    error = np.where(mask[:, None], 0.5, 0.1).repeat(2, axis=1)
    error[:, 1] *= 3  # channels are averaged
    sign = np.where(np.arange(4) % 2, 1, -1)
    found = r.prediction_error((pred + sign * error).astype(np.float32), pred.astype(np.float32), mask)
    np.testing.assert_allclose(found, [[1.0, 0.2], [1.0, np.nan], [np.nan, 0.2]], rtol=1e-5)


def test_local_diversity_of_known_fields():
    pred = np.full((2, 2, 12, 12), 5.0)
    pred[0, :, :, 6:] = normal(2, 12, 6)
    pred[1] = (-1.0) ** np.add.outer(np.arange(12), np.arange(12))  # nine values with mean +-1/9
    mask = np.zeros((2, 12, 12), dtype=bool)
    mask[:, 1:-1, 1:5] = True  # off the border and off the noise
    inside, outside = r.local_diversity(pred, mask).T
    np.testing.assert_allclose(inside, [0, 1 - 1 / 81], atol=1e-9)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(pred[0], ((0, 0), (1, 1), (1, 1))), (3, 3), axis=(1, 2))
    assert outside[0] == pytest.approx(windows.var(axis=(-1, -2)).mean(axis=0)[~mask[0]].mean())
    whole = r.local_diversity(normal(30, 3, 20, 20), np.pad(np.ones((30, 18, 18), bool), ((0, 0), (1, 1), (1, 1))))
    assert whole[:, 0].mean() == pytest.approx(8 / 9, abs=0.02)


def test_plain_areas_refuse_what_has_no_answer():
    pred, mask = normal(2, 3, 8, 8), np.ones((2, 8, 8), dtype=bool)
    with pytest.raises(ValueError, match=r"images must be floats .* got uint8"):
        r.plain_mask(np.zeros((2, 3, 8, 8), dtype=np.uint8))
    with pytest.raises(ValueError, match="images must be floats"):
        r.plain_mask(pred[0])
    with pytest.raises(ValueError, match="threshold = 0"):
        r.plain_mask(pred, 0)
    for bad in (mask.astype(float), mask[:1]):
        with pytest.raises(ValueError, match=r"mask must be bool \(N, H, W\) = \(2, 8, 8\)"):
            r.prediction_error(pred, pred, bad)
        with pytest.raises(ValueError, match="mask must be bool"):
            r.local_diversity(pred, bad)
    with pytest.raises(ValueError, match="shapes differ"):
        r.prediction_error(pred, pred[:1], mask)
    with pytest.raises(ValueError, match="pred contains NaN"):
        r.local_diversity(pred * np.nan, mask)


# --- matching --------------------------------------------------------------------------------------------------------


def brute_force(queries, pool, metric):
    q, p = queries.reshape(len(queries), -1), pool.reshape(len(pool), -1)
    if metric == "l2":
        distance = np.linalg.norm(q[:, None] - p, axis=-1)
    elif metric == "cosine":
        distance = 1 - q @ p.T / np.outer(np.linalg.norm(q, axis=1), np.linalg.norm(p, axis=1))
    else:
        distance = 1 - np.corrcoef(q, p)[: len(q), len(q) :]
    order = distance.argsort(axis=1, kind="stable")
    return order[:, 0], 1 + (order == np.arange(len(q))[:, None]).argmax(axis=1)


@pytest.mark.parametrize("metric", ["l2", "cosine", "pearson"])
def test_matching_is_brute_force_whatever_the_block(metric, monkeypatch):
    scale = np.linspace(0.2, 3, 90)[:, None, None, None]
    queries = 5 + scale * normal(90, 2, 4, 4)
    pool = 5 + scale[::-1] * (0.5 * normal(90, 2, 4, 4) + normal(90, 2, 4, 4, seed=1))
    nearest, rank = brute_force(queries, pool, metric)
    assert 1 < len(np.unique(nearest)) < 90 and rank.max() > 10  # neither all right nor all equal
    for block in (None, 1, 7, 500):
        found = r.match(queries, pool, metric, block)
        np.testing.assert_array_equal(found.nearest, nearest)
        np.testing.assert_array_equal(found.rank, rank)
    small_blocks(monkeypatch)
    np.testing.assert_array_equal(r.match(queries.astype(np.float32), pool, metric).rank, rank)
    monkeypatch.undo()
    np.testing.assert_array_equal(found.rank == 1, found.nearest == np.arange(90))


def test_planted_permutation_is_read_off():
    pool = normal(60, 20)
    order = np.random.default_rng(1).permutation(60)
    for metric in ("l2", "cosine", "pearson"):
        np.testing.assert_array_equal(r.match(pool[order], pool, metric).nearest, order)
    # a far common mean costs no digits
    np.testing.assert_array_equal(r.match(pool[order] + 1e4, pool + 1e4).nearest, order)


def test_equal_elements_are_ranked_in_their_order():
    pool = np.repeat(normal(3, 4), 2, axis=0)
    found = r.match(pool, pool)
    np.testing.assert_array_equal(found.nearest, [0, 0, 2, 2, 4, 4])
    np.testing.assert_array_equal(found.rank, [1, 2] * 3)


def planted(n=160, d=1024, seed=0):
    """Images of contrasts from 0.6 to 6 that correlate with their noise by 0.25 and not at all with other noises."""
    noise, rest = normal(2, n, d, seed=seed)
    scale = np.random.default_rng(seed).permutation(np.geomspace(0.6, 6, n))
    return scale[:, None] * (0.25 * noise + np.sqrt(1 - 0.25**2) * rest), noise, scale


def test_low_contrast_images_are_hubs_for_l2_and_pearson_restores_the_matching():
    image, noise, scale = planted()
    np.testing.assert_allclose(r.contrast(image), scale, rtol=0.1)
    l2 = r.matching_accuracy(image, noise).set_index("direction")
    assert l2.loc["image -> noise", "accuracy"] > 0.95 and l2.loc["noise -> image", "accuracy"] < 0.3
    nearest = r.match(noise, image).nearest
    hubs = r.hubness(nearest, 160)
    assert scale[hubs.counts.argmax()] < np.quantile(scale, 0.3) and hubs.skewness > 2 and hubs.largest > 0.05
    assert hubs.counts[scale > 2].sum() < 0.05 * 160
    for metric in ("pearson", "cosine"):
        assert (r.matching_accuracy(image, noise, metric)["accuracy"] == 1).all()
    perfect = r.hubness(r.match(noise, image, "pearson").nearest, 160)
    assert perfect.skewness == 0 and perfect.largest == 1 / 160 and (perfect.counts == 1).all()
    # brightness is a common part that Pearson drops and cosine does not
    bright = image + 50 * np.random.default_rng(3).random((160, 1))
    assert r.matching_accuracy(bright, noise, "pearson")["accuracy"].min() == 1
    assert r.matching_accuracy(bright, noise, "cosine")["accuracy"].min() < 0.5


def test_accuracy_of_one_pool_and_of_chunks():
    image, noise, _ = planted(n=120, d=256)
    one = r.matching_accuracy(image, noise).iloc[1]
    hits = r.match(noise, image).nearest == np.arange(120)
    assert one["accuracy"] == hits.mean() and (one["low"], one["high"]) == wilson_interval(hits.sum(), 120)
    assert (one["n"], one["pool"], one["chance"]) == (120, 120, 1 / 120) and np.isnan(one["std"])
    chunked = r.matching_accuracy(image, noise, chunks=4).set_index("direction").loc["noise -> image"]
    parts = [(r.match(noise[i : i + 30], image[i : i + 30]).nearest == np.arange(30)).mean() for i in range(0, 120, 30)]
    assert chunked["accuracy"] == pytest.approx(np.mean(parts)) and chunked["std"] == pytest.approx(np.std(parts, ddof=1))
    assert (chunked["n"], chunked["pool"], chunked["chance"]) == (120, 30, 1 / 30)
    assert chunked["low"] < chunked["accuracy"] < chunked["high"]


def test_chunks_that_disagree_widen_the_interval():
    image, noise = normal(2, 80, 64)
    image[:40] = noise[:40]  # two chunks match, two are at chance
    row = r.matching_accuracy(image, noise, chunks=4).iloc[0]
    low, high = wilson_interval(row["accuracy"] * 80, 80)
    assert row["low"] < low - 0.15 and row["high"] > high + 0.15
    sure = r.matching_accuracy(noise, noise, chunks=4)
    assert (sure["accuracy"] == 1).all() and (sure["std"] == 0).all() and (sure["low"] == wilson_interval(80, 80)[0]).all()


def test_noise_matches_at_chance():
    image, noise = normal(2, 300, 10)
    for metric in ("l2", "cosine", "pearson"):
        table = r.matching_accuracy(image, noise, metric)
        assert (table["accuracy"] < 0.03).all()
        assert r.match(image, noise, metric).rank.mean() == pytest.approx(150.5, abs=25)


def test_hubness_of_random_choices_and_of_one_hub():
    random = r.hubness(np.random.default_rng(0).integers(0, 5000, 5000), 5000)
    assert random.skewness == pytest.approx(1, abs=0.15)
    one = r.hubness(np.full(100, 7), 100)
    assert one.largest == 1 and one.counts[7] == 100 and one.skewness > 9


def test_matching_refuses_what_has_no_answer():
    X, Y = normal(2, 6, 5)
    flat, zero = X.copy(), X.copy()
    flat[[2, 4]], zero[3] = 0.1, 0
    for arguments, message in (
        ((X, Y, "L2"), "metric is one of l2, cosine, pearson, got 'L2'"),
        ((X, Y, "l2", 0), "block = 0"),
        ((X, Y[:5]), r"queries \(6, 5\), pool \(5, 5\)"),
        ((X[:2], Y[:2]), "queries has 2 samples"),
        ((X, Y * np.nan), "pool contains NaN"),
        ((X, flat, "pearson"), r"pool has constant rows \[2, 4\]"),
        ((flat, Y, "pearson", 2), r"queries has constant rows \[2\]"),
        ((zero, Y, "cosine", 2), r"queries has zero rows \[3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            r.match(*arguments)
    assert r.match(flat, zero).rank.min() >= 1  # L2 takes both
    for chunks in (1, 4, 3, 0):  # alone, no divisor, pools of two, none
        with pytest.raises(ValueError, match=f"chunks = {chunks} must cut the 6 samples"):
            r.matching_accuracy(X, Y, chunks=chunks)
    for nearest in ([], [0, 6], [-1, 0], [0.0, 1.0], [[0, 1]]):
        with pytest.raises(ValueError, match="from 0 to n - 1 = 5"):
            r.hubness(np.asarray(nearest), 6)
    with pytest.raises(ValueError, match="images contains NaN"):
        r.contrast(X * np.nan)


# --- interpolation ---------------------------------------------------------------------------------------------------


def test_slerp_keeps_the_sphere_and_the_ends():
    a, b = normal(2, 7, 3, 4, 4)
    a, b = (x / np.linalg.norm(x.reshape(7, -1), axis=1)[:, None, None, None] * 5 for x in (a, b))
    np.testing.assert_allclose(r.slerp(a, b, 0), a)
    np.testing.assert_allclose(r.slerp(a, b, 1), b)
    for t in (0.2, 0.5, 0.9):
        np.testing.assert_allclose(np.linalg.norm(r.slerp(a, b, t).reshape(7, -1), axis=1), 5)
    np.testing.assert_allclose(r.slerp(a, b, 0.3), r.slerp(b, a, 0.7))
    e1, e2 = np.eye(4)[:1], np.eye(4)[1:2]
    np.testing.assert_allclose(r.slerp(e1, 2 * e2, 1 / 3), [[np.cos(np.pi / 6), 2 * np.sin(np.pi / 6), 0, 0]])
    np.testing.assert_allclose(r.slerp(e1, 3 * e1, 0.25), 1.5 * e1)  # parallel: along the line
    near = e1 + 1e-4 * e2
    np.testing.assert_allclose(r.slerp(e1, near, 0.5), (e1 + near) / 2, rtol=1e-7)


def test_row_slerp_is_another_interpolation():
    a, b = normal(2, 5, 3, 4, 6)
    rows = r.slerp_rows(a, b, 0.4)
    assert rows.shape == a.shape and np.abs(rows - r.slerp(a, b, 0.4)).max() > 0.1
    np.testing.assert_allclose(rows.reshape(-1, 6), r.slerp(a.reshape(-1, 6), b.reshape(-1, 6), 0.4))
    np.testing.assert_allclose(r.slerp_rows(a, b, 1), b)
    one = r.slerp_rows(a[:, 0, 0], b[:, 0, 0], 0.4)  # a sample of one row is where they agree
    np.testing.assert_allclose(one, r.slerp(a[:, 0, 0], b[:, 0, 0], 0.4))


def test_slerp_refuses_what_has_no_answer():
    a, b = normal(2, 2, 4)
    for function in (r.slerp, r.slerp_rows):
        for arguments, message in (
            ((a, b, 1.1), "t = 1.1"),
            ((a, b, np.nan), "t = nan"),
            ((a, b[:1], 0.5), "shapes differ"),
            ((a, 0 * b, 0.5), "zero vectors"),
            ((a, -2 * a, 0.5), "opposite"),
            ((a, b * np.nan, 0.5), "b contains NaN"),
        ):
            with pytest.raises(ValueError, match=message):
                function(*arguments)


# --- similarity ------------------------------------------------------------------------------------------------------


def white(n, d, seed=0):
    """Samples whose mean is 0 and whose covariance is the identity, exactly."""
    X = normal(n, d, seed=seed)
    X -= X.mean(axis=0)
    return np.linalg.qr(X)[0] * np.sqrt(n - 1)


def test_frechet_distance_of_known_gaussians():
    scale, shift = np.array([1.0, 2.0, 0.5]), np.array([1.0, 0.0, -2.0])
    A, B = white(50, 3), white(80, 3, seed=1) * scale + shift
    assert r.frechet_distance(A, B) == pytest.approx(5 + ((scale - 1) ** 2).sum())
    assert r.frechet_distance(A, A) == pytest.approx(0, abs=1e-12)
    left, right = normal(3, 3, seed=2), normal(3, 3, seed=3)  # covariances that do not commute
    cov_a, cov_b = left.T @ left, right.T @ right
    expected = np.trace(cov_a + cov_b - 2 * linalg.sqrtm(cov_a @ cov_b).real)
    assert r.frechet_distance(A @ left, white(80, 3, seed=1) @ right) == pytest.approx(expected)
    flat = A * [1, 1, 0]  # singular
    assert r.frechet_distance(flat, A) == pytest.approx(1)
    assert r.frechet_distance(A, flat) == pytest.approx(1)


def test_frechet_bias_is_estimated_and_removed():
    for shift in (0.0, 0.5):
        found = [
            r.frechet_bias(normal(400, 16, seed=i), normal(600, 16, seed=50 + i) + shift / 4, repeats=4, seed=i) for i in range(6)
        ]
        distance, bias, extrapolated = np.mean(found, axis=0)
        assert distance - shift**2 > 0.06
        assert extrapolated == pytest.approx(shift**2, abs=0.3 * (distance - shift**2))
        assert distance - bias == pytest.approx(extrapolated)
    assert r.frechet_bias(normal(50, 4), normal(50, 4, seed=1)) == r.frechet_bias(normal(50, 4), normal(50, 4, seed=1))


def test_neighbour_overlap_of_equal_shuffled_and_half_spaces(monkeypatch):
    A = normal(300, 5)
    rotated = 3 * A @ np.linalg.qr(normal(5, 5, seed=1))[0] + 7
    assert r.neighbour_overlap(A, rotated, 20).value == 1
    random = r.neighbour_overlap(A, normal(300, 9, seed=2), 30)
    assert random.value == pytest.approx(30 / 299, abs=0.01) and random.low < random.value < random.high and random.n == 300
    assert r.neighbour_overlap(A, normal(300, 9, seed=2), 299).value == 1
    B = A + 0.5 * normal(300, 5, seed=3)
    order = [np.linalg.norm(X[:, None] - X, axis=-1).argsort(axis=1)[:, 1:11] for X in (A, B)]
    expected = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*order, strict=True)])
    assert r.neighbour_overlap(A, B, 10).value == pytest.approx(expected)
    small_blocks(monkeypatch)
    assert r.neighbour_overlap(A, B, 10).value == pytest.approx(expected)


@pytest.mark.parametrize("n", [15, 200])  # by the products of samples and by those of features
def test_cka_is_its_definition_and_ignores_rotation_shift_and_scale(n):
    A, B = normal(n, 30), normal(n, 20, seed=1)
    B[:, :10] += A[:, :10]
    centre = np.eye(n) - 1 / n
    grams = [centre @ X @ X.T @ centre for X in (A, B)]
    hsic = [np.trace(x @ y) for x, y in ((grams[0], grams[1]), (grams[0], grams[0]), (grams[1], grams[1]))]
    value = r.linear_cka(A, B)
    assert value == pytest.approx(hsic[0] / np.sqrt(hsic[1] * hsic[2])) and 0 < value < 1
    rotation = np.linalg.qr(normal(30, 30, seed=2))[0]
    assert r.linear_cka(5 * A @ rotation + 3, B) == pytest.approx(value)
    assert r.linear_cka(A, A @ rotation) == pytest.approx(1)
    assert r.linear_cka(A, A * np.geomspace(1, 100, 30)) < 0.95  # but not a scale of each feature


def test_ssim_of_constant_and_equal_pictures():
    a = np.clip(normal(3, 3, 12, 12) / 3, -1, 1)
    np.testing.assert_allclose(r.ssim(a, a), 1)
    flat = np.ones((1, 3, 8, 8))
    c1 = (0.01 * 2) ** 2  # data range 2; the contrast term of constant pictures is 1
    assert r.ssim(0.5 * flat, 0.1 * flat)[0] == pytest.approx((2 * 0.05 + c1) / (0.25 + 0.01 + c1))
    b = np.clip(a + normal(3, 3, 12, 12, seed=1) / 5, -1, 1)
    channels = [[structural_similarity(x, y, data_range=2) for x, y in zip(p, q, strict=True)] for p, q in zip(a, b, strict=True)]
    np.testing.assert_allclose(r.ssim(a, b), np.mean(channels, axis=1))


def test_similarities_refuse_what_has_no_answer():
    X, a = normal(10, 4), np.zeros((2, 3, 8, 8))
    for function, arguments, message in (
        (r.frechet_distance, (X, X[:, :3]), "A has 4 features and B has 3"),
        (r.frechet_distance, (X, X[:2]), "B has 2 samples"),
        (r.frechet_bias, (X, X[:8]), "more than 2 D = 8 samples"),
        (r.frechet_bias, (X, X, 0), "repeats >= 1"),
        (r.neighbour_overlap, (X, X, 10), "k = 10 must lie between 1 and the 9 other samples"),
        (r.neighbour_overlap, (X, X[:9], 2), "A has 10 samples and B has 9"),
        (r.linear_cka, (X, X[:9]), "A has 10 samples and B has 9"),
        (r.linear_cka, (X, np.full((10, 2), 0.1)), "B is the same in all samples"),
        (r.linear_cka, (X * np.nan, X), "A contains NaN"),
        (r.ssim, (a, a[:1]), "shapes differ"),
        (r.ssim, (a, a + 1.5), r"\[-1, 1\]"),
        (r.ssim, (a[..., :6], a[..., :6]), "at least 7 pixels"),
        (r.ssim, (a.astype(np.uint8), a.astype(np.uint8)), "a must be floats"),
        (r.ssim, (a, a * np.nan), "b contains NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            function(*arguments)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_precisions_are_accepted(dtype):
    noise, latent, image = normal(3, 20, 3, 8, 8).astype(dtype)
    exact = [x.astype(np.float64) for x in (noise, latent, image)]
    np.testing.assert_allclose(r.top_correlations(noise), r.top_correlations(exact[0]), atol=1e-5)
    np.testing.assert_allclose(r.triangle(image, noise, latent), r.triangle(exact[2], exact[0], exact[1]), rtol=1e-6)
    np.testing.assert_array_equal(r.match(image, noise).rank, r.match(exact[2], exact[0]).rank)
    assert r.slerp(noise, latent, 0.5).dtype == np.float64
