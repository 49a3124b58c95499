import numpy as np
import pytest
from scipy import integrate
from sklearn.covariance import ledoit_wolf
from sklearn.cross_decomposition import CCA
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import r2_score, roc_auc_score

from une_utils.analysis import probes
from une_utils.analysis import recovery as r
from une_utils.analysis.alignment import RidgeMap, shuffled_pairs


def split(world, n, k=None):
    """views_train, Z_train, views_test, Z_test of a world, with the first k latents shown."""
    z = world.z[:, :k]
    return [x[:n] for x in world.views], z[:n], [x[n:] for x in world.views], z[n:]


def dense_recovery(models, A):
    """R^2 of the best linear reader from the joint covariance of all views, without any of the module's algebra."""
    C = np.concatenate([m.C for m in models])
    noise = np.zeros((len(C),) * 2)
    start = 0
    for m in models:
        stop = start + len(m.C)
        noise[start:stop, start:stop] = m.noise.matrix()
        start = stop
    cross = C @ A
    return np.diag(cross.T @ np.linalg.solve(C @ C.T + noise, cross)) / (A**2).sum(axis=0)


# --- simulated worlds and the model ----------------------------------------------------------------------------------


def test_simulated_world_is_the_world_it_says():
    world = r.simulate_ine(40_000, 4, [12, 6, 3], noise=[0.5, 2.0, 1.0], condition=4, lacks={1: [0, 2]}, colour=1.0)
    assert [x.shape for x in world.views] == [(40_000, 12), (40_000, 6), (40_000, 3)]
    np.testing.assert_allclose(np.cov(world.z.T), np.eye(4), atol=0.03)
    np.testing.assert_allclose(np.linalg.svd(world.models[0].C, compute_uv=False), np.geomspace(1, 0.25, 4))
    assert not world.models[1].C[:, [0, 2]].any() and np.linalg.matrix_rank(world.models[2].C) == 3
    noise = [x - world.z @ m.C.T for x, m in zip(world.views, world.models, strict=True)]
    for model, eps, level in zip(world.models, noise, (0.5, 2.0, 1.0), strict=True):
        covariance = model.noise.matrix()
        assert np.trace(covariance) / len(covariance) == pytest.approx(level)
        np.testing.assert_allclose(np.cov(eps.T), covariance, atol=0.06 * np.linalg.norm(covariance, 2))
        eigenvalues = np.linalg.eigvalsh(covariance)[::-1]
        np.testing.assert_allclose(eigenvalues, eigenvalues[0] / np.arange(1, len(eigenvalues) + 1))
    joint = np.corrcoef(np.hstack([world.z, *noise]).T)
    assert np.abs(joint[:4, 4:]).max() < 0.03 and np.abs(joint[4:16, 16:22]).max() < 0.03


def test_simulated_world_follows_its_seed():
    first, again, other = (r.simulate_ine(50, 2, [5, 5], seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.views[1], again.views[1])
    assert not np.allclose(first.views[0], other.views[0]) and not np.allclose(first.models[0].C, first.models[1].C)


@pytest.mark.parametrize(
    "arguments", [{"dims": []}, {"dims": [0]}, {"n": 0}, {"k": 0}, {"noise": 0.0}, {"noise": np.nan}, {"condition": 0.5}]
)
def test_worlds_that_cannot_be(arguments):
    with pytest.raises(ValueError):
        r.simulate_ine(**({"n": 5, "k": 2, "dims": [3]} | arguments))


def test_noise_is_its_matrix():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((6, 6)))[0][:, :2]
    for noise in (r.Noise(basis, np.array([3.0, 0.2]), 0.7), r.Noise(basis[:, :0], np.zeros(0), 2.0)):
        matrix = noise.matrix()
        B = rng.standard_normal((6, 3))
        np.testing.assert_allclose(noise.solve(B), np.linalg.solve(matrix, B))
        np.testing.assert_allclose(np.cov(noise.draw(60_000, rng).T), matrix, atol=0.06)


def test_a_chosen_model():
    rng = np.random.default_rng(1)
    C, root = rng.standard_normal((7, 3)), rng.standard_normal((7, 7))
    covariance = root @ root.T + np.eye(7)
    model = r.ine_model(C, covariance, mean=np.arange(7))
    np.testing.assert_allclose(model.noise.matrix(), covariance)
    np.testing.assert_allclose(model.information, C.T @ np.linalg.solve(covariance, C))
    np.testing.assert_allclose(model.r2, (C**2).sum(axis=1) / np.diag(C @ C.T + covariance))
    assert model.explained == pytest.approx(np.trace(C @ C.T) / np.trace(C @ C.T + covariance))
    world = r.draw_ine([model], 50_000)
    np.testing.assert_allclose(world.views[0].mean(axis=0), np.arange(7), atol=0.1)
    np.testing.assert_allclose(LinearRegression().fit(world.z, world.views[0]).coef_, C, atol=0.1)  # the map is not changed
    for broken in (covariance[:3, :3], covariance + np.triu(np.ones((7, 7)), 1), -covariance, covariance * np.nan):
        with pytest.raises(ValueError, match="noise"):
            r.ine_model(C, broken)


# --- the fit ---------------------------------------------------------------------------------------------------------


def test_fit_is_least_squares_and_finds_the_world():
    world = r.simulate_ine(4000, 5, [40], noise=0.2, condition=3, colour=0.7)
    X, true = world.views[0] * 3 + 7, world.models[0]
    fit = r.fit_ine(X, world.z)
    reference = LinearRegression().fit(world.z, X)
    np.testing.assert_allclose(fit.C, reference.coef_)
    np.testing.assert_allclose(fit.mean, reference.intercept_)
    np.testing.assert_allclose(fit.C, 3 * true.C, atol=5 * 3 * np.sqrt(true.noise.values.max() / 4000))
    assert np.linalg.norm(fit.noise.matrix() - 9 * true.noise.matrix(), 2) < 0.15 * 9 * true.noise.values.max()
    adjusted = 1 - (1 - r2_score(X, reference.predict(world.z), multioutput="raw_values")) * 3999 / 3994
    np.testing.assert_allclose(fit.r2, adjusted)
    np.testing.assert_allclose(fit.r2, true.r2, atol=0.06)
    assert fit.explained == pytest.approx(true.explained, abs=0.02)
    np.testing.assert_allclose(r.predicted_recovery([fit]), r.predicted_recovery([true]), atol=0.02)


@pytest.mark.parametrize("colour", [0.0, 1.0])
@pytest.mark.parametrize(("d", "tolerance"), [(60, 0.02), (120, 0.03)])
def test_information_is_unbiased(colour, d, tolerance):
    """Mean over worlds of the fitted information; without the corrections a null C has D / N of it."""
    found, true = [], []
    for seed in range(30):
        world = r.simulate_ine(300, 3, [d], noise=0.5, seed=seed, colour=colour, lacks={0: [2]})
        information = r.fit_ine(world.views[0], world.z).information
        found.append(r.predicted_recovery([r.fit_ine(world.views[0], world.z)]))
        true.append(r.predicted_recovery(world.models))
        assert np.linalg.eigvalsh(information)[0] >= -1e-9
    assert np.mean(found, axis=0)[:2] == pytest.approx(np.mean(true, axis=0)[:2], abs=tolerance)
    assert np.mean(found, axis=0)[2] < 0.3 * d / 300 and np.mean(true, axis=0)[2] == 0


@pytest.mark.parametrize("d", [190, 600])
def test_near_and_beyond_as_many_dimensions_as_rows_the_fit_is_defined(d):
    world = r.simulate_ine(200, 3, [d], noise=0.3, condition=2)
    coloured = r.simulate_ine(200, 3, [d], noise=0.3, condition=2, colour=1.0)
    white = r.predicted_recovery([r.fit_ine(world.views[0], world.z)])
    np.testing.assert_allclose(white, r.predicted_recovery(world.models), atol=0.15)
    true = r.predicted_recovery(coloured.models)
    assert (r.predicted_recovery([r.fit_ine(coloured.views[0], coloured.z)]) < true + 0.05).all()
    fit = r.fit_ine(coloured.views[0], coloured.z)
    B = np.random.default_rng(0).standard_normal((d, 2))
    np.testing.assert_allclose(fit.noise.matrix() @ fit.noise.solve(B), B, atol=1e-6)


def test_nonlinear_shrinkage_beats_sample_and_linear_shrinkage():
    """The target: the true variance along each sample axis, which no estimator that keeps the axes can do better than."""
    world = r.simulate_ine(600, 2, [200], noise=1.0, colour=1.0)
    true, fit = world.models[0].noise.matrix(), r.fit_ine(world.views[0], world.z)
    residual = world.views[0] - fit.mean - world.z @ fit.C.T
    oracle = np.diag(fit.noise.basis.T @ true @ fit.noise.basis)
    sample = np.linalg.eigvalsh(residual.T @ residual / (600 - 3))
    error = lambda values: np.mean((values / oracle - 1) ** 2)  # noqa: E731
    linear = np.linalg.eigvalsh(ledoit_wolf(residual)[0])
    assert error(fit.noise.values) < 0.01 and error(sample) > 0.1 and error(linear) > 0.05
    white = r.simulate_ine(600, 2, [200], noise=1.0)
    values = r.fit_ine(white.views[0], white.z).noise.values  # the sample's go from 0.18 to 2.5; the kernel is rough at the ends
    np.testing.assert_allclose(values, 1, atol=0.35)
    np.testing.assert_allclose(values[5:-5], 1, atol=0.15)
    wide = r.simulate_ine(200, 2, [600], noise=1.0)
    wide_fit = r.fit_ine(wide.views[0], wide.z).noise
    assert wide_fit.floor == pytest.approx(1, abs=0.1) and wide_fit.values.shape == (197,)
    np.testing.assert_allclose(wide_fit.values[10:-20], 1, atol=0.2)  # the sample's go up to 7
    np.testing.assert_allclose(wide_fit.values, 1, atol=0.7)


def test_hilbert_transform_of_the_kernel():
    def kernel(t):
        return 3 / (4 * np.sqrt(5)) * (1 - t**2 / 5) / np.pi

    root = np.sqrt(5)
    for x in (0.0, 0.7, -1.9):
        value = integrate.quad(kernel, -root, root, weight="cauchy", wvar=x)[0]
        assert r._epanechnikov_transform(np.array(x)) == pytest.approx(value, abs=1e-7)
    for x in (-4.0, 99.0, 101.0, 1e6):
        value = integrate.quad(lambda t, x=x: kernel(t) / (t - x), -root, root)[0]
        assert r._epanechnikov_transform(np.array(x)) == pytest.approx(value, rel=1e-6)
    assert np.isfinite(r._epanechnikov_transform(np.array([root, -root, 1e12]))).all()


def test_identity_without_noise_is_read_perfectly():
    rng = np.random.default_rng(2)
    Z = rng.standard_normal((300, 4))
    fit = r.fit_ine(Z, Z)
    np.testing.assert_allclose(fit.C, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(r.predicted_recovery([fit]), 1, atol=1e-6)
    np.testing.assert_allclose(fit.r2, 1)
    assert fit.explained == pytest.approx(1)
    table = r.factor_recovery(Z[:200], Z[:200], Z[200:], Z[200:], list("abcd"))
    assert (table[["r2", "low", "high"]] > 1 - 1e-9).all(axis=None)
    views = r.recovery_by_views([Z[:200], 2 * Z[:200]], Z[:200], [Z[200:], 2 * Z[200:]], Z[200:], ["a", "b"])
    assert (views[["r2", "predicted"]] > 1 - 1e-9).all(axis=None)


def test_no_signal_is_no_information():
    rng = np.random.default_rng(3)
    X, Z = rng.standard_normal((900, 50)), rng.standard_normal((900, 4))
    fit = r.fit_ine(X, Z)
    assert abs(fit.explained) < 0.01 and r.predicted_recovery([fit]).max() < 0.05
    table = r.factor_recovery(X[:600], Z[:600], X[600:], Z[600:], list("abcd"))
    assert table["r2"].abs().max() < 0.02
    whole = r.latent_recovery(X[:600], Z[:600], X[600:], Z[600:])
    null = r.latent_recovery(X[:600], shuffled_pairs(Z[:600]), X[600:], Z[600:])
    assert abs(whole.value) < 0.01 and abs(null.value) < 0.01


def test_constant_and_repeated_columns_change_nothing():
    world = r.simulate_ine(400, 3, [20], noise=0.3)
    X = world.views[0]
    plain = r.fit_ine(X, world.z)
    more = r.fit_ine(np.column_stack([X, np.full(400, 1e3 + 0.1), X[:, :2]]), world.z)
    np.testing.assert_allclose(more.information, plain.information, rtol=1e-6, atol=1e-6)
    assert np.isnan(more.r2[20]) and np.isfinite(np.delete(more.r2, 20)).all()
    W = r.predicted_directions(more, np.eye(3))
    assert np.isfinite(W).all() and np.abs(W[:, 20]).max() < 1e-6


def test_what_cannot_be_fitted():
    rng = np.random.default_rng(4)
    X, Z = rng.standard_normal((50, 6)), rng.standard_normal((50, 3))
    broken = X.copy()
    broken[2, 2] = np.nan
    for arguments, message in (
        ((broken, Z), "X contains NaN"),
        ((X, Z * np.inf), "Z contains NaN"),
        ((X[:-1], Z), "49 rows"),
        ((X[:15], Z[:15]), "at least k . 13 = 16 rows"),
        ((X[:, 0], Z), "two axes"),
        ((X * 0 + 3.1, Z), "X is constant"),
        ((X, np.column_stack([Z, Z[:, 0]])), "repeat"),
        ((X, np.column_stack([Z, np.full(50, 0.1)])), "constant"),
    ):
        with pytest.raises(ValueError, match=message):
            r.fit_ine(*arguments)


def test_a_redrawn_world_shows_what_the_first_one_did():
    """Recovery at N rows, which the limit of endless rows overstates, is the same in the world drawn from the fit."""
    world = r.simulate_ine(1600, 6, [200], noise=0.6, condition=3, colour=0.5)
    fit = r.fit_ine(world.views[0][:800], world.z[:800])
    redrawn = r.draw_ine([fit], 1600, seed=7)
    recovery = [r.latent_recovery(w.views[0][:800], w.z[:800], w.views[0][800:], w.z[800:]).value for w in (world, redrawn)]
    assert recovery[1] == pytest.approx(recovery[0], abs=0.03)
    assert r.predicted_recovery([fit]).mean() > recovery[0] + 0.05
    refit = r.fit_ine(redrawn.views[0], redrawn.z)
    np.testing.assert_allclose(r.predicted_recovery([refit]), r.predicted_recovery([fit]), atol=0.05)


# --- predictions -----------------------------------------------------------------------------------------------------


def test_predicted_recovery_is_that_of_the_joint_covariance():
    world = r.simulate_ine(10, 4, [9, 3, 14], noise=[0.4, 0.8, 1.5], condition=5, colour=0.8, lacks={0: [1], 2: [1]})
    A = np.random.default_rng(5).standard_normal((4, 6))
    for models in (world.models[:1], world.models[1:], world.models):
        np.testing.assert_allclose(r.predicted_recovery(models), dense_recovery(models, np.eye(4)), atol=1e-10)
        np.testing.assert_allclose(r.predicted_recovery(models, A), dense_recovery(models, A), atol=1e-10)
    assert r.predicted_recovery(world.models[::2])[1] == pytest.approx(0, abs=1e-12)  # no view sees the second latent
    isotropic = r.simulate_ine(10, 3, [8], noise=0.25)
    np.testing.assert_allclose(r.predicted_recovery(isotropic.models), 1 / 1.25)
    with pytest.raises(ValueError, match="at least one"):
        r.predicted_recovery([])
    with pytest.raises(ValueError, match=r"got k of \[3, 4\]"):
        r.predicted_recovery([*world.models, *isotropic.models])
    with pytest.raises(ValueError, match=r"A must be \(4, F\)"):
        r.predicted_recovery(world.models, A.T)


def test_predicted_directions_are_the_best_linear_reader():
    world = r.simulate_ine(60_000, 3, [8], noise=0.5, condition=3, colour=0.5)
    A = np.random.default_rng(6).standard_normal((3, 4))
    W = r.predicted_directions(world.models[0], A)
    model = world.models[0]
    np.testing.assert_allclose(W, np.linalg.solve(model.C @ model.C.T + model.noise.matrix(), model.C @ A).T)
    np.testing.assert_allclose(LinearRegression().fit(world.views[0], world.z @ A).coef_, W, atol=0.05)
    scores = world.views[0] @ W.T
    reached = [np.corrcoef(scores[:, j], (world.z @ A)[:, j])[0, 1] ** 2 for j in range(4)]
    np.testing.assert_allclose(reached, r.predicted_recovery(world.models, A), atol=0.01)
    with pytest.raises(ValueError, match="A must be"):
        r.predicted_directions(model, A.T)


def test_predicted_auc():
    correlations = np.array([0.0, 0.3, 0.8, 0.99, 1.0])
    orthant = 0.5 + 2 / np.pi * np.arcsin(correlations / np.sqrt(2))  # Sheppard's formula, for a threshold at the mean
    np.testing.assert_allclose(r.predicted_auc(correlations, 0), orthant, atol=1e-6)
    np.testing.assert_allclose(r.predicted_auc(0.6, [-1.1, 0.4]), r.predicted_auc(0.6, [1.1, -0.4]), atol=1e-9)
    np.testing.assert_allclose(r.predicted_auc(-0.6, 1.1), 1 - r.predicted_auc(0.6, 1.1), atol=1e-9)
    assert r.predicted_auc(0.5, 1.0).shape == () and r.predicted_auc(correlations[:, None], [0.0, 1.0]).shape == (5, 2)
    rng = np.random.default_rng(7)
    factor = rng.standard_normal(100_000)
    for rho, threshold in ((0.7, 1.2), (0.95, -0.5), (0.2, 0.3)):
        score = rho * factor + np.sqrt(1 - rho**2) * rng.standard_normal(100_000)
        assert r.predicted_auc(rho, threshold) == pytest.approx(roc_auc_score(factor > threshold, score), abs=0.006)
    for arguments in ((1.2, 0), (np.nan, 0), (0.5, np.inf)):
        with pytest.raises(ValueError):
            r.predicted_auc(*arguments)


def test_probes_reach_the_predicted_auc_and_direction():
    """The whole chain in a true world: fit, predict directions and AUC, compare with logistic probes; and in a false one."""
    world = r.simulate_ine(6000, 5, [30], noise=0.4, condition=2, colour=0.5)
    A = np.linalg.qr(np.random.default_rng(8).standard_normal((5, 5)))[0][:, :3]
    thresholds, names = np.array([0.0, 0.8, -0.4]), ["a", "b", "c"]
    X, Y = world.views[0], world.z @ A > thresholds
    fit = r.fit_ine(X[:4000], world.z[:4000])
    probe = probes.make_probe(C=0.1).fit(X[:4000], Y[:4000])
    order = np.random.default_rng(0).permutation(4000)
    null = probes.make_probe(C=0.1).fit(X[:4000], Y[order])
    predicted = r.predicted_directions(fit, A)
    table = r.direction_agreement(probe.latent_weights()[0], predicted, X[4000:], names, null.latent_weights()[0])
    assert (table["correlation"] > 0.98).all() and (table["low"] > table["other"]).all() and (table["permuted"] < 0.6).all()
    auc = probes.evaluate(probe.decision_function(X[4000:]), Y[4000:], names, Y[:4000])
    expected = r.predicted_auc(np.sqrt(r.predicted_recovery([fit], A)), thresholds)
    assert ((auc["auc_low"] - 0.01 < expected) & (expected < auc["auc_high"] + 0.01)).all()


# --- what can be read ------------------------------------------------------------------------------------------------


def test_factor_recovery_is_ridge_and_r2_score():
    world = r.simulate_ine(600, 4, [50], noise=0.5, condition=2)
    X, Z = world.views[0] + 4, world.z * [1, 2, 3, 4] + 1
    table = r.factor_recovery(X[:400], Z[:400], X[400:], Z[400:], list("abcd"), bootstrap=100)
    for j in range(4):
        alpha = RidgeMap().fit(X[:400], Z[:400, [j]]).alpha_
        prediction = Ridge(alpha=alpha).fit(X[:400], Z[:400, j]).predict(X[400:])
        assert table["r2"][j] == pytest.approx(r2_score(Z[400:, j], prediction), abs=1e-8)
        rows = np.random.default_rng((42, 200)).integers(0, 200, (100, 200))
        draws = [r2_score(Z[400:, j][row], prediction[row]) for row in rows]
        assert (table["low"][j], table["high"][j]) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))
    assert list(table["factor"]) == list("abcd") and (table["n"] == 200).all()
    whole = r.latent_recovery(X[:400], Z[:400], X[400:], Z[400:], bootstrap=100)
    assert whole.value == pytest.approx(table["r2"].mean()) and whole.low < whole.value < whole.high and whole.n == 200


def test_recovery_reaches_the_prediction_with_many_rows_and_misses_what_the_view_lacks():
    world = r.simulate_ine(9000, 4, [30], noise=0.3, condition=3, colour=0.5, lacks={0: [2]})
    X, Z = world.views[0], world.z
    table = r.factor_recovery(X[:8000], Z[:8000], X[8000:], Z[8000:], list("abcd"))
    predicted = r.predicted_recovery(world.models)
    assert ((table["low"] - 0.02 < predicted) & (predicted < table["high"] + 0.02)).all()
    assert predicted[2] == 0 and abs(table["r2"][2]) < 0.01
    rotation = r.random_rotation(4)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(4), atol=1e-12)
    rotated = r.factor_recovery(X[:8000], Z[:8000] @ rotation, X[8000:], Z[8000:] @ rotation, list("abcd"))
    assert rotated["r2"].mean() == pytest.approx(table["r2"].mean(), abs=0.02)
    assert np.ptp(rotated["r2"]) < np.ptp(table["r2"])  # no random direction is missed altogether


def test_fewer_rows_than_dimensions_are_read():
    world = r.simulate_ine(500, 3, [400], noise=0.02)
    X, Z = world.views[0], world.z
    table = r.factor_recovery(X[:200], Z[:200], X[200:], Z[200:], list("abc"))
    assert (table["r2"] > 0.5).all()
    views = r.recovery_by_views([X[:200]], Z[:200], [X[200:]], Z[200:], ["wide"])
    assert views["r2"][0] == pytest.approx(table["r2"].mean(), abs=0.03)


def test_input_that_cannot_be_read():
    world = r.simulate_ine(60, 3, [5], noise=0.5)
    X, Z = world.views[0], world.z
    good = (X[:40], Z[:40], X[40:], Z[40:])
    constant = Z[40:].copy()
    constant[:, 1] = 2
    for function in (r.factor_recovery, r.nonlinear_gain):
        for arguments, names, message in (
            ((X[:40] * np.nan, *good[1:]), "abc", "X_train contains NaN"),
            ((X[:39], *good[1:]), "abc", "39 rows"),
            ((*good[:2], X[40:, :4], good[3]), "abc", "X_train has 5 columns and X_test has 4"),
            ((*good[:3], Z[41:]), "abc", "20 rows and"),
            ((*good[:3], constant), "abc", r"\[1\] are constant"),
            (good, "ab", "one per column: 2 for 3"),
        ):
            with pytest.raises(ValueError, match=message):
                function(*arguments, list(names))
    with pytest.raises(ValueError, match="share"):
        r.nonlinear_gain(*good, list("abc"), validation=0)
    with pytest.raises(ValueError, match="X is constant"):
        r.nonlinear_gain(np.ones((40, 5)), good[1], np.ones((20, 5)), good[3], list("abc"))
    flat = r.factor_recovery(np.ones((40, 5)), good[1], np.ones((20, 5)), good[3], list("abc"))
    assert (flat["r2"] <= 1e-12).all()  # nothing to read is the mean predictor


def test_nonlinear_gain_finds_saturation_and_nothing_in_a_linear_world():
    rng = np.random.default_rng(9)
    Z = rng.standard_normal((900, 3))
    C = np.linalg.qr(rng.standard_normal((10, 4)))[0]
    noise = 0.15 * rng.standard_normal((900, 10))
    linear = Z @ C[:, :3].T + noise
    bent = np.column_stack([Z[:, :2], np.exp(Z[:, 2]), np.sin(2 * Z[:, 2])]) @ C.T + noise
    gain = {}
    for name, X in (("linear", linear), ("bent", bent)):
        gain[name] = r.nonlinear_gain(X[:600], Z[:600], X[600:], Z[600:], list("abc"))
        table = r.factor_recovery(X[:600], Z[:600], X[600:], Z[600:], list("abc"))
        np.testing.assert_allclose(gain[name]["linear"], table["r2"])
        np.testing.assert_allclose(gain[name]["gain"], gain[name]["nonlinear"] - gain[name]["linear"])
    assert (gain["linear"]["gain"] < 0.01).all()
    assert gain["bent"]["low"][2] > 0.03 and (gain["bent"]["gain"][:2] < 0.02).all()


def test_the_nonlinear_reader_is_kernel_ridge():
    rng = np.random.default_rng(10)
    X, F, T = rng.standard_normal((80, 6)) + 5, rng.standard_normal((80, 2)), rng.standard_normal((9, 6)) + 5
    ours = r._kernel_predict(X, F, T, 0.25, seed=1)
    order = np.random.default_rng((1, 80)).permutation(80)
    median = np.median(((X[order[:20], None] - X[order[20:]]) ** 2).sum(axis=2))
    models = [KernelRidge(alpha=a, kernel="rbf", gamma=1 / (2 * median * s**2)) for s in (0.5, 1, 2) for a in (0.01, 0.1)]
    candidates = np.stack([m.fit(X, F - F.mean(axis=0)).predict(T) + F.mean(axis=0) for m in models])
    for j in range(2):
        assert np.abs(candidates[:, :, j] - ours[:, j]).max(axis=1).min() < 1e-8


# --- subspaces and noise ---------------------------------------------------------------------------------------------


def test_canonical_pairs_are_those_of_cca():
    rng = np.random.default_rng(11)
    Z = rng.standard_normal((500, 3))
    S = Z @ rng.standard_normal((3, 6)) * 0.5 + rng.standard_normal((500, 6))
    found = r.canonical_alignment(S[:300], Z[:300], S[300:], Z[300:])
    reference = CCA(3, max_iter=10_000, tol=1e-12).fit(S[:300], Z[:300])
    for rows, column in ((slice(300), "train"), (slice(300, None), "correlation")):
        p, q = reference.transform(S[rows], Z[rows])
        np.testing.assert_allclose(found.pairs[column], [np.corrcoef(p[:, j], q[:, j])[0, 1] for j in range(3)], atol=1e-4)
    np.testing.assert_allclose(np.cos(np.radians(found.pairs["angle"])), found.pairs["correlation"])
    assert (found.pairs["low"] < found.pairs["correlation"]).all() and (found.pairs["angle_low"] < found.pairs["angle"]).all()
    assert (found.pairs["n"] == 200).all()


def test_a_shared_space_that_spans_part_of_z_among_noise():
    """Two of four latents, mixed and hidden among 40 noise dimensions: overlap one half, whatever the training rows say."""
    rng = np.random.default_rng(12)
    Z = rng.standard_normal((900, 4))
    S = np.column_stack([Z[:, :2], rng.standard_normal((900, 40))]) @ rng.standard_normal((42, 42))
    found = r.canonical_alignment(S[:600], Z[:600], S[600:], Z[600:])
    assert found.dims.value == 2 and found.overlap.value == pytest.approx(0.5, abs=0.02)
    assert (found.pairs["correlation"][:2] > 0.99).all() and (found.pairs["train"][2:] > 0.2).all()
    assert (found.pairs["correlation"][2:] < found.pairs["null"][2:]).all() and found.overlap_null < 0.02
    mixed = Z @ rng.standard_normal((4, 4))
    whole = r.canonical_alignment(mixed[:600], Z[:600], mixed[600:], Z[600:])
    assert whole.dims.value == 4 and whole.overlap.value == pytest.approx(1) and whole.pairs["angle"].max() < 0.1


def test_rotations_and_dead_columns_do_not_move_the_angles():
    rng = np.random.default_rng(13)
    Z = rng.standard_normal((400, 3))
    S = Z @ rng.standard_normal((3, 5)) + rng.standard_normal((400, 5))
    plain = r.canonical_alignment(S[:300], Z[:300], S[300:], Z[300:])
    other = np.column_stack([S @ rng.standard_normal((5, 5)) * 1e3 + 9, np.full(400, 0.1), S[:, 0]])
    moved = r.canonical_alignment(other[:300], Z[:300] - 5, other[300:], Z[300:] - 5)
    np.testing.assert_allclose(moved.pairs["correlation"], plain.pairs["correlation"], atol=1e-8)
    mirrored = r.canonical_alignment(Z[:300], S[:300], Z[300:], S[300:])
    np.testing.assert_allclose(mirrored.pairs["correlation"], plain.pairs["correlation"], atol=1e-8)
    assert mirrored.overlap.value == pytest.approx(plain.overlap.value * 3 / 5)


def test_the_permutation_null_is_exact():
    """Independent spaces exceed it in 5 % of the cases: of 150 trials, in at most 17 with 99.9 % and in at least 1."""
    rng = np.random.default_rng(14)
    found = 0
    for seed in range(150):
        S, Z = rng.standard_normal((80, 6)), rng.standard_normal((80, 3))
        found += r.canonical_alignment(S[:50], Z[:50], S[50:], Z[50:], permutations=19, bootstrap=2, seed=seed).dims.value > 0
    assert 1 <= found <= 17


def test_alignments_that_cannot_be():
    rng = np.random.default_rng(15)
    S, Z = rng.standard_normal((40, 6)), rng.standard_normal((40, 3))
    good = (S[:20], Z[:20], S[20:], Z[20:])
    with pytest.raises(ValueError, match="19 can"):
        r.canonical_alignment(*good, permutations=18)
    with pytest.raises(ValueError, match="too few"):
        r.canonical_alignment(S[:10], Z[:10], *good[2:])
    with pytest.raises(ValueError, match="S is constant"):
        r.canonical_alignment(np.ones((20, 6)), *good[1:])
    with pytest.raises(ValueError, match="Z_test contains NaN"):
        r.canonical_alignment(*good[:3], Z[20:] * np.nan)


def test_noise_correlation_finds_shared_noise_and_no_other():
    """Views 0 and 2 see a fifth latent that is not shown; view 1 lacks it. Its true canonical correlation has a closed form."""
    world = r.simulate_ine(2500, 5, [30, 25, 12], noise=0.3, lacks={1: [4]}, colour=0.3)
    views, Z, tests, Z_test = split(world, 2000, 4)
    table = r.noise_correlation(views, Z, tests, Z_test, ["a", "b", "c"]).set_index(["a", "b"])
    shared = table.loc[("a", "c")]
    information = [m.information[4, 4] for m in (world.models[0], world.models[2])]
    true = np.sqrt(np.prod([i / (1 + i) for i in information]))
    assert shared["low"] - 0.02 < true < shared["high"] + 0.02 and shared["dims"] == 1
    assert shared["overlap"] > 3 * shared["overlap_null"] and shared["overlap"] == pytest.approx(true**2 / 12, rel=0.2)
    for pair in (("a", "b"), ("b", "c")):
        assert table.loc[pair]["correlation"] < table.loc[pair]["null"] and table.loc[pair]["dims"] == 0
    alone = r.noise_correlation(views, world.z[:2000], tests, world.z[2000:], ["a", "b", "c"])  # all latents shown
    assert (alone["dims"] == 0).all() and (alone["n"] == 500).all()


def test_noise_correlation_takes_leading_components_only():
    world = r.simulate_ine(300, 2, [60, 40], noise=1.0)
    views, Z, tests, Z_test = split(world, 200)
    table = r.noise_correlation(views, Z, tests, Z_test, ["a", "b"])
    assert (table["dims"] == 0).all()
    with pytest.raises(ValueError, match="at least two"):
        r.noise_correlation(views[:1], Z, tests[:1], Z_test, ["a"])
    with pytest.raises(ValueError, match="one component"):
        r.noise_correlation(views, Z, tests, Z_test, ["a", "b"], components=0)
    with pytest.raises(ValueError, match="view b_test contains NaN"):
        r.noise_correlation(views, Z, [tests[0], tests[1] * np.nan], Z_test, ["a", "b"])
    with pytest.raises(ValueError, match="one of each"):
        r.noise_correlation(views, Z, tests, Z_test, ["a"])


# --- directions ------------------------------------------------------------------------------------------------------


def test_direction_agreement_is_the_cosine_in_the_covariance_metric():
    rng = np.random.default_rng(16)
    X = rng.standard_normal((1000, 6)) * [10, 5, 1, 1, 0.1, 0.01]
    fitted, predicted = rng.standard_normal((2, 3, 6))
    predicted[1] = -2 * fitted[1]
    table = r.direction_agreement(fitted, predicted, X, list("abc"))
    covariance = np.cov(X.T)
    for j in range(3):
        cosine = fitted[j] @ predicted[j] / np.linalg.norm(fitted[j]) / np.linalg.norm(predicted[j])
        assert table["cosine"][j] == pytest.approx(cosine)
        metric = fitted[j] @ covariance @ predicted[j]
        metric /= np.sqrt(fitted[j] @ covariance @ fitted[j] * (predicted[j] @ covariance @ predicted[j]))
        assert table["correlation"][j] == pytest.approx(metric)
    assert table["correlation"][1] == pytest.approx(-1) and table["high"][1] == pytest.approx(-1)
    noisy = fitted + np.array([0, 0, 0, 0, 3, 30.0])  # weights along directions in which the data hardly vary
    again = r.direction_agreement(noisy, fitted, X, list("abc"))
    assert (again["cosine"].abs() < 0.7).all() and (again["correlation"] > 0.95).all()


def test_other_leaves_out_the_same_direction():
    rng = np.random.default_rng(17)
    X = rng.standard_normal((800, 4))
    w = np.eye(4)[:3]
    twins = np.stack([w[0], -w[0], w[1]])
    table = r.direction_agreement(twins, twins, X, list("abc"))
    assert (table["other"] < 0.15).all() and "permuted" not in table
    single = r.direction_agreement(w[:1], w[:1], X, ["a"], permuted=w[1:2])
    assert np.isnan(single["other"][0]) and single["permuted"][0] < 0.15


def test_directions_that_do_not_fit():
    X, w = np.random.default_rng(18).standard_normal((30, 4)), np.eye(4)
    for arguments, message in (
        ((w[:2], w, X, list("ab")), "predicted weights are"),
        ((w[:, :3], w, X, list("abcd")), "fitted weights are"),
        ((w, w, X, list("abc")), "names"),
        ((w, w * np.nan, X, list("abcd")), "predicted contains NaN"),
        ((np.diag([1.0, 0, 1, 1]), w, X, list("abcd")), "fitted weights of b are all zero"),
    ):
        with pytest.raises(ValueError, match=message):
            r.direction_agreement(*arguments)


# --- several views ---------------------------------------------------------------------------------------------------


def test_recovery_grows_as_predicted_when_noise_is_independent():
    world = r.simulate_ine(3000, 5, [60, 40, 80], noise=1.0, condition=2, colour=0.5)
    views, Z, tests, Z_test = split(world, 2000)
    table = r.recovery_by_views(views, Z, tests, Z_test, ["a", "b", "c"])
    assert list(table["views"]) == ["a", "b", "c", "a + b", "a + c", "b + c", "a + b + c"]
    assert list(table["count"]) == [1, 1, 1, 2, 2, 2, 3] and (table["n"] == 1000).all()
    assert (table["gap"].abs() < 0.01).all() and (table["gap"][:3].abs() < 1e-3).all()
    single = [r.latent_recovery(x, Z, t, Z_test).value for x, t in zip(views, tests, strict=True)]
    np.testing.assert_allclose(table["r2"][:3], single, atol=0.01)
    for count, row in ((2, 3), (3, 6)):  # not below ridge regression on the concatenated latents
        joint = r.latent_recovery(np.hstack(views[:count]), Z, np.hstack(tests[:count]), Z_test)
        assert table["r2"][row] > joint.value - 0.005
    limit = r.predicted_recovery(world.models).mean()
    assert limit - 0.06 < table["r2"][6] < limit and table["predicted"][6] < limit  # endless rows read a little more
    assert (table["low"] < table["r2"]).all() and (table["predicted_low"] < table["predicted"]).all()


def test_views_that_see_different_latents_add_up():
    world = r.simulate_ine(1500, 4, [20, 20], noise=0.2, lacks={0: [0, 1], 1: [2, 3]})
    views, Z, tests, Z_test = split(world, 1000)
    table = r.recovery_by_views(views, Z, tests, Z_test, ["a", "b"])
    assert table["r2"][2] == pytest.approx(table["r2"][:2].sum(), abs=0.01)
    assert table["predicted"][2] == pytest.approx(table["r2"][2], abs=0.01)


def test_shared_noise_keeps_recovery_below_the_prediction():
    world = r.simulate_ine(1500, 4, [30], noise=1.0)
    views, Z, tests, Z_test = split(world, 1000)
    copies = r.recovery_by_views(views * 3, Z, tests * 3, Z_test, ["a", "again", "and again"])
    assert copies["r2"][6] == pytest.approx(copies["r2"][0], abs=0.01)  # a copy tells nothing
    assert copies["predicted"][6] > copies["r2"][6] + 0.15 and (copies["gap_high"][3:] < -0.05).all()


def test_subsets_of_many_views():
    assert len(r._subsets(6, 64, 0)) == 63
    some = r._subsets(10, 64, 0)
    assert len(some) <= 64 and len(set(some)) == len(some) and {len(s) for s in some} == set(range(1, 11))
    assert some == r._subsets(10, 64, 0) and some != r._subsets(10, 64, 1)
    assert r._subsets(3, 1, 0)[-1] == (0, 1, 2)


def test_out_of_fold_readings_never_saw_their_rows():
    """With noise for latents an in-sample reading would be good; an out-of-fold one is not. And folds are plain ridge."""
    rng = np.random.default_rng(19)
    X, Z = rng.standard_normal((60, 40)), rng.standard_normal((60, 2))
    train, test = r._readings(X, Z, rng.standard_normal((5, 40)), 5, 0)
    assert r2_score(Z, train) < 0.1 and test.shape == (5, 2)
    for d in (40, 80):
        X = rng.standard_normal((60, d)) + 3
        ours = r._ridge_predict(X[:50], Z[:50], X[50:], np.array([0.7, 12.0]))
        for j, alpha in enumerate((0.7, 12.0)):
            np.testing.assert_allclose(ours[:, j], Ridge(alpha=alpha).fit(X[:50], Z[:50, j]).predict(X[50:]), atol=1e-8)


def test_views_that_do_not_fit():
    world = r.simulate_ine(60, 2, [5, 5])
    views, Z, tests, Z_test = split(world, 40)
    for arguments, message in (
        ((views, Z[:39], tests, Z_test, ["a", "b"]), "view a_train has 40 rows and Z_train has 39"),
        ((views, Z, [tests[0], tests[1][:, :4]], Z_test, ["a", "b"]), "view b_train has 5 columns"),
        ((views, Z, tests, Z_test, "ab"), "list"),
    ):
        with pytest.raises(ValueError, match=message):
            r.recovery_by_views(*arguments)
    with pytest.raises(ValueError, match="folds"):
        r.recovery_by_views(views, Z, tests, Z_test, ["a", "b"], folds=1)
