import pickle

import numpy as np
import pandas as pd
import pytest
from scipy import linalg
from scipy.stats import spearmanr
from sklearn.base import clone
from sklearn.cross_decomposition import CCA
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_squared_error, r2_score
from sklearn.utils import estimator_checks

from une_utils.analysis import alignment as al
from une_utils.analysis import probes
from une_utils.analysis.stats import bootstrap_weights


def linear_pair(n=120, dx=15, dy=6, noise=1.0, seed=0):
    """Latents with unequal scales and means far from zero, and targets that are linear in them up to noise."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, dx)) * np.logspace(0, -1, dx) + rng.uniform(-5, 5, dx)
    Y = X @ rng.standard_normal((dx, dy)) + noise * rng.standard_normal((n, dy)) + 7
    return X, Y


def shared_views(n=300, widths=(12, 9, 15), shared=3, noise=0.7, seed=0):
    """Views with `shared` common dimensions, their own noise, and different scales and means."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((n, shared))
    views = [common @ rng.standard_normal((shared, d)) + noise * np.sqrt(shared) * rng.standard_normal((n, d)) for d in widths]
    return [10.0**i * view + rng.uniform(-3, 3, view.shape[1]) for i, view in enumerate(views)]


def textbook_maxvar(views, k, ridge):
    """Leading eigenpairs of the sum of N x N ridge projections: eigenvalues (k,), G (N, k) with unit columns."""
    total = 0
    for view in views:
        X = view - view.mean(axis=0)
        penalty = ridge * np.trace(X.T @ X) / X.shape[1]
        total = total + X @ np.linalg.pinv(X.T @ X + penalty * np.eye(X.shape[1])) @ X.T
    values, vectors = np.linalg.eigh(total)
    return values[::-1][:k], vectors[:, ::-1][:, :k]


def assert_same_up_to_sign(A, B, atol=1e-7):
    np.testing.assert_allclose(A * np.sign((A * B).sum(axis=0)), B, atol=atol)


# --- ridge maps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(120, 15), (30, 80), (16, 15), (15, 15)])
@pytest.mark.parametrize("alpha", [1e-3, 1.0, 500.0])
def test_ridge_map_is_scikit_learns_ridge(shape, alpha):
    X, Y = linear_pair(*shape)
    X[:, 2] = 4.0  # a constant feature
    X[1], Y[1] = X[0], Y[0]  # and a repeated row
    model = al.RidgeMap(alpha).fit(X, Y)
    exact = Ridge(alpha).fit(X, Y)
    assert model.alpha_ == alpha and model.coef_.shape == (6, shape[1]) and model.intercept_.shape == (6,)
    np.testing.assert_allclose(model.coef_, exact.coef_, atol=1e-8)
    np.testing.assert_allclose(model.intercept_, exact.intercept_, atol=1e-7)
    np.testing.assert_allclose(model.predict(X[:5]), exact.predict(X[:5]), atol=1e-7)


def test_single_and_half_precision_latents():
    X, Y = linear_pair()
    exact = Ridge(2.0).fit(X, Y)
    single = al.RidgeMap(2.0).fit(X.astype(np.float32), Y.astype(np.float32))
    np.testing.assert_allclose(single.predict(X.astype(np.float32)), exact.predict(X), atol=1e-4)
    assert single.coef_.dtype == np.float64
    half = X.astype(np.float16)
    np.testing.assert_allclose(al.RidgeMap(2.0).fit(half, Y).coef_, Ridge(2.0).fit(half.astype(float), Y).coef_, atol=1e-8)


@pytest.mark.parametrize("shape", [(120, 15), (30, 80)])
def test_blocks_do_not_change_the_map(shape, monkeypatch):
    X, Y = linear_pair(*shape)
    whole = al.RidgeMap().fit(X, Y)
    monkeypatch.setattr(al, "_BLOCK_VALUES", 7 * min(shape))
    parts = al.RidgeMap().fit(X, Y)
    np.testing.assert_allclose(parts.coef_, whole.coef_, atol=1e-9)
    np.testing.assert_allclose(parts.gcv_, whole.gcv_)


@pytest.mark.parametrize("shape", [(120, 15), (30, 80), (40, 39), (40, 40)])
def test_penalty_is_the_minimum_of_the_explicit_gcv_formula(shape):
    X, Y = linear_pair(*shape, noise=3.0)
    n = len(X)
    centred = X - X.mean(axis=0)
    grid = np.logspace(-2, 4, 25)
    by_hand = []
    for alpha in grid:
        hat = np.full((n, n), 1 / n) + centred @ np.linalg.solve(centred.T @ centred + alpha * np.eye(shape[1]), centred.T)
        by_hand.append(n * ((Y - hat @ Y) ** 2).mean(axis=1).sum() / (n - np.trace(hat)) ** 2)
    model = al.RidgeMap(grid).fit(X, Y)
    np.testing.assert_allclose(model.gcv_, by_hand, rtol=1e-6)
    assert model.alpha_ == grid[np.argmin(by_hand)] and 0 < np.argmin(by_hand) < len(grid) - 1


def test_penalty_is_close_to_leave_one_out():
    X, Y = linear_pair(60, 20, noise=3.0)
    grid = np.logspace(-2, 4, 13)
    left_out = []
    for alpha in grid:
        errors = []
        for i in range(len(X)):
            rest = np.arange(len(X)) != i
            errors.append(((Ridge(alpha).fit(X[rest], Y[rest]).predict(X[i : i + 1]) - Y[i]) ** 2).mean())
        left_out.append(np.mean(errors))
    model = al.RidgeMap(grid).fit(X, Y)
    assert left_out[np.argmin(model.gcv_)] < 1.02 * min(left_out)
    np.testing.assert_allclose(model.gcv_, left_out, rtol=0.2)


def test_exact_relations_get_no_penalty_and_noise_gets_the_mean():
    X, Y = linear_pair(noise=0.0)
    exact = al.RidgeMap().fit(X, Y)
    assert exact.score(X, Y) > 1 - 1e-9 and exact.alpha_ == exact.alphas_[0]
    back = al.RidgeMap().fit(Y[:, :3], X[:, :2])
    assert back.predict(Y[:, :3]).shape == (120, 2)
    noise = al.RidgeMap().fit(X, np.random.default_rng(5).standard_normal((120, 40)) + 3)
    assert np.abs(noise.predict(X) - 3).mean() < 0.2 and noise.alpha_ > 10 * noise.alphas_[24]


def test_a_rotation_is_undone_by_the_map_the_other_way():
    rng = np.random.default_rng(1)
    X = rng.standard_normal((200, 8)) + 2
    Y = 3 * X @ linalg.qr(rng.standard_normal((8, 8)))[0] - 1
    there, back = al.RidgeMap().fit(X, Y), al.RidgeMap().fit(Y, X)
    np.testing.assert_allclose(back.predict(there.predict(X)), X, atol=1e-3)


def test_score_is_variance_weighted_r2():
    X, Y = linear_pair()
    model = al.RidgeMap().fit(X[:80], Y[:80])
    expected = r2_score(Y[80:], model.predict(X[80:]), multioutput="variance_weighted")
    assert model.score(X[80:], Y[80:]) == pytest.approx(expected)
    with pytest.raises(ValueError, match="undefined"):
        model.score(X[:2], np.ones((2, 6)))
    with pytest.raises(ValueError, match="prediction"):
        model.score(X, Y[:, :2])


@pytest.mark.parametrize("shape", [(50, 4), (5, 9)])
def test_default_penalties_follow_the_scale_of_the_latents(shape):
    X, Y = linear_pair(*shape)
    mean_eigenvalue = np.linalg.eigvalsh(np.cov(X.T) * (shape[0] - 1)).mean()
    np.testing.assert_allclose(al.RidgeMap().fit(X, Y).alphas_, np.logspace(-6, 6, 49) * mean_eigenvalue)
    small, large = al.RidgeMap().fit(X, Y), al.RidgeMap().fit(1e4 * X, Y)
    assert large.alpha_ == pytest.approx(1e8 * small.alpha_)
    np.testing.assert_allclose(large.coef_, small.coef_ / 1e4, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("shape", [(2999, 4), (5, 9)])
def test_constant_latents_give_the_mean_predictor(shape):
    Y = linear_pair(shape[0])[1]
    for value in (0.0, 0.1):  # the mean of 2,999 times 0.1 is not exactly 0.1
        model = al.RidgeMap().fit(np.full(shape, value), Y)
        np.testing.assert_allclose(model.predict(np.full(shape, value)), np.tile(Y.mean(axis=0), (shape[0], 1)))
        assert not model.coef_.any()


def test_ridge_map_keeps_scikit_learns_contract():
    records = estimator_checks.check_estimator(al.RidgeMap(), on_skip=None)
    assert len(records) > 30 and all(record["status"] in ("passed", "skipped") for record in records)


def test_maps_that_cannot_be_fitted():
    X, Y = linear_pair()
    broken = X.copy()
    broken[3, 4] = np.nan
    for arguments in ((broken, Y), (X, np.where(Y == Y[0], np.nan, Y)), (X[:-1], Y), (X[:1], Y[:1]), (X[:0], Y[:0])):
        with pytest.raises(ValueError):
            al.RidgeMap().fit(*arguments)
    for alphas in (0.0, -1.0, np.nan, [], [1.0, 0.0], [[1.0]]):
        with pytest.raises(ValueError, match="alphas"):
            al.RidgeMap(alphas).fit(X, Y)
    with pytest.raises(NotFittedError):
        al.RidgeMap().predict(X)
    with pytest.raises(ValueError, match="features"):
        al.RidgeMap().fit(X, Y).predict(X[:, 1:])


def test_maps_fitted_together_are_the_maps_fitted_alone():
    X, Y = linear_pair()
    targets = {"all": Y, "two": Y[:, :2] * 100, "shuffled": al.shuffled_pairs(Y)}
    maps = al.fit_maps(X, targets)
    assert list(maps) == list(targets)
    for name, target in targets.items():
        alone = al.RidgeMap().fit(X, target)
        np.testing.assert_array_equal(maps[name].coef_, alone.coef_)
        assert maps[name].alpha_ == alone.alpha_
    with pytest.raises(ValueError, match="target 'two'"):
        al.fit_maps(X, {"all": Y, "two": Y[:-1]})


def test_shuffled_pairs_keep_rows_and_lose_the_relation():
    X, Y = linear_pair(2000)
    control = al.shuffled_pairs(Y)
    assert {tuple(row) for row in control} == {tuple(row) for row in Y} and not np.array_equal(control, Y)
    np.testing.assert_array_equal(al.shuffled_pairs(Y), control)
    assert not np.array_equal(al.shuffled_pairs(Y, seed=1), control)
    model = al.RidgeMap().fit(X[:1000], al.shuffled_pairs(Y[:1000]))
    metrics = al.transfer_metrics(Y[1000:], model.predict(X[1000:]), Y[:1000].mean(axis=0))
    assert abs(metrics["r2"].value) < 0.02


# --- metrics ----------------------------------------------------------------------------------------------------------------


def test_transfer_metrics_are_scikit_learns():
    X, Y = linear_pair()
    prediction = al.RidgeMap().fit(X[:60], Y[:60]).predict(X)
    mean = Y.mean(axis=0)  # with the mean of the rows themselves R^2 is the usual one
    metrics = al.transfer_metrics(Y, prediction, mean)
    cosines = [(a @ b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(Y, prediction, strict=True)]
    centred = [(a @ b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(Y - mean, prediction - mean, strict=True)]
    expected = {
        "mse": mean_squared_error(Y, prediction),
        "mse_standardised": 1 - r2_score(Y, prediction),
        "cosine": np.mean(cosines),
        "cosine_centred": np.mean(centred),
        "r2": r2_score(Y, prediction, multioutput="variance_weighted"),
    }
    assert list(metrics) == list(expected)
    for name, value in expected.items():
        estimate = metrics[name]
        assert estimate.value == pytest.approx(value) and estimate.low < value < estimate.high and estimate.n == 120, name


def test_mean_predictor_and_perfect_map():
    Y = np.random.default_rng(2).standard_normal((400, 20)) + 5
    mean = Y[:200].mean(axis=0)
    metrics = al.transfer_metrics(Y[200:], np.broadcast_to(mean, (200, 20)), mean)
    assert metrics["r2"].value == metrics["r2"].low == metrics["r2"].high == 0
    assert metrics["mse_standardised"].value == pytest.approx(1) and metrics["cosine_centred"].value == 0
    assert metrics["cosine"].value > 0.95  # what the paper's Table 2 must be compared to
    perfect = al.transfer_metrics(Y, Y, mean)
    for name, value in (("mse", 0), ("mse_standardised", 0), ("cosine", 1), ("cosine_centred", 1), ("r2", 1)):
        estimate = perfect[name]
        np.testing.assert_allclose([estimate.value, estimate.low, estimate.high], value, atol=1e-12, err_msg=name)


def test_intervals_are_bootstraps_of_rows():
    X, Y = linear_pair(40)
    prediction, mean = X[:, :6], Y.mean(axis=0)
    metrics = al.transfer_metrics(Y, prediction, mean, bootstrap=30, seed=9)
    draws = {name: [] for name in metrics}
    for rows in np.random.default_rng((9, 40)).integers(0, 40, (30, 40)):
        for name, estimate in al.transfer_metrics(Y[rows], prediction[rows], mean, bootstrap=1).items():
            draws[name].append(estimate.value)
    for name, estimate in metrics.items():
        np.testing.assert_allclose([estimate.low, estimate.high], np.quantile(draws[name], [0.025, 0.975]), err_msg=name)
    weights = bootstrap_weights(40, 30, 9)
    scores = np.random.default_rng(3).standard_normal((40, 2))
    accuracy = probes._bootstrap(scores, scores + 0.5 > 0, 30, 9)[0]  # the same resamples as the probes'
    np.testing.assert_allclose(weights[1:] @ ((scores > 0) == (scores + 0.5 > 0)) / 40, accuracy)


def test_constant_coordinates_are_left_out_of_the_standardised_error(monkeypatch):
    X, Y = linear_pair()
    mean = Y.mean(axis=0)
    plain = al.transfer_metrics(Y, X[:, :6], mean)["mse_standardised"]
    wide = np.column_stack([Y, np.ones(120)]), np.column_stack([X[:, :6], np.zeros(120)]), np.append(mean, 1.0)
    assert al.transfer_metrics(*wide)["mse_standardised"] == plain
    monkeypatch.setattr(al, "_BLOCK_VALUES", 2002)  # two coordinates at a time
    np.testing.assert_allclose(al.transfer_metrics(*wide)["mse_standardised"].low, plain.low)


def test_zero_vectors_have_cosine_zero():
    Y = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert al.transfer_metrics(Y, np.array([[2.0, 0.0], [0.0, 0.0]]), np.zeros(2))["cosine"].value == 0.5


def test_metrics_refuse_what_does_not_fit():
    Y = np.random.default_rng(0).standard_normal((10, 3))
    mean = np.zeros(3)
    for arguments in ((Y, Y[:9], mean), (Y, Y[:, :2], mean), (Y, Y, mean[:2]), (Y[:0], Y[:0], mean), (Y * np.nan, Y, mean)):
        with pytest.raises(ValueError):
            al.transfer_metrics(*arguments)
    with pytest.raises(ValueError, match="undefined"):
        al.transfer_metrics(np.zeros((10, 3)), Y, mean)


def test_learning_curve_rises_to_the_full_fit():
    X, Y = linear_pair(700, noise=4.0)
    X, X_test, Y, Y_test = X[:500], X[500:], Y[:500], Y[500:]
    table = al.learning_curve(X, Y, X_test, Y_test, [20, 80, 500])
    assert list(table.columns) == [
        "size", "alpha", "r2", "r2_low", "r2_high", "cosine_centred", "cosine_centred_low", "cosine_centred_high", "n"
    ]  # fmt: skip
    assert list(table["size"]) == [20, 80, 500] and table["r2"].is_monotonic_increasing and (table["n"] == 200).all()
    full = al.RidgeMap().fit(X, Y)
    metrics = al.transfer_metrics(Y_test, full.predict(X_test), Y.mean(axis=0))
    assert table["r2"].iloc[-1] == pytest.approx(metrics["r2"].value)
    assert table["cosine_centred_low"].iloc[-1] == pytest.approx(metrics["cosine_centred"].low)
    pd.testing.assert_frame_equal(al.learning_curve(X, Y, X_test, Y_test, [20, 80, 500]), table)
    pd.testing.assert_frame_equal(al.learning_curve(X, Y, X_test, Y_test, [80]), table[1:2].reset_index(drop=True))  # nested
    for sizes in ([], [1], [501]):
        with pytest.raises(ValueError, match="sizes"):
            al.learning_curve(X, Y, X_test, Y_test, sizes)


def test_a_fixed_probe_reads_mapped_latents():
    X, Y = linear_pair(600, noise=0.02)
    labels = Y[:, :3] > Y[:, :3].mean(axis=0)
    probe = probes.make_probe().fit(Y[:400], labels[:400])
    maps = al.fit_maps(X[:400], {"pairs": Y[:400], "shuffled": al.shuffled_pairs(Y[:400])})
    true = probe.decision_function(Y[400:])
    drop = {
        name: probes.paired_difference(true, probe.decision_function(ridge.predict(X[400:])), labels[400:])["accuracy"]
        for name, ridge in maps.items()
    }
    assert abs(drop["pairs"].value) < 0.01 and drop["shuffled"].low > 0.2


# --- MAXVAR generalised CCA -------------------------------------------------------------------------------------------------


def test_maxvar_is_cca_zoo_s():
    """The same shared variables, up to sign: every solution has G proportional to the sum of the views' own variables."""
    linear = pytest.importorskip("cca_zoo.linear", reason="cca-zoo is not among the requirements: pip install --no-deps cca-zoo tensorly")
    rng = np.random.default_rng(7)
    common = rng.standard_normal((400, 4))
    views = [common @ rng.standard_normal((4, d)) + 0.5 * rng.standard_normal((400, d)) for d in (9, 12, 15)]

    weights = linear.GCCA(n_components=4).fit(views).weights_
    theirs = sum((view - view.mean(axis=0)) @ w for view, w in zip(views, weights, strict=True))
    ours, theirs = (G / np.linalg.norm(G, axis=0) for G in (al.MaxvarGCCA(4).fit(views).shared_, theirs))
    np.testing.assert_allclose(np.abs((ours * theirs).sum(axis=0)), 1, atol=1e-6)


@pytest.mark.parametrize("ridge", [0.0, 0.1, 3.0])
def test_maxvar_is_the_textbook_eigenproblem(ridge):
    views = shared_views()
    model = al.MaxvarGCCA(5, ridge).fit(views)
    values, G = textbook_maxvar(views, 5, ridge)
    np.testing.assert_allclose(model.eigenvalues_, values, rtol=1e-9)
    assert_same_up_to_sign(model.shared_ / np.sqrt(300), G)
    np.testing.assert_allclose(model.shared_.T @ model.shared_ / 300, np.eye(5), atol=1e-9)
    np.testing.assert_allclose(model.view_shares_.sum(axis=1), model.eigenvalues_)
    np.testing.assert_allclose(model.fit_transform(views), model.shared_)


@pytest.mark.parametrize("ridge", [0.1, 2.0])
def test_views_wider_than_rows(ridge):
    views = shared_views(60, (150, 10, 60, 59))
    model = al.MaxvarGCCA(4, ridge).fit(views)
    values, G = textbook_maxvar(views, 4, ridge)
    np.testing.assert_allclose(model.eigenvalues_, values, rtol=1e-9)
    assert_same_up_to_sign(model.shared_ / np.sqrt(60), G)
    assert [part.shape for part in model.projections_] == [(150, 4), (10, 4), (60, 4), (59, 4)]
    np.testing.assert_allclose(model.transform(views), model.shared_, atol=1e-9)


def test_projections_are_ridge_regressions_of_the_shared_variables():
    views = shared_views(80, (100, 9, 15))
    model = al.MaxvarGCCA(4, 0.2).fit(views)
    for i, view in enumerate(views):
        penalty = 0.2 * ((view - view.mean(axis=0)) ** 2).sum() / view.shape[1]
        exact = Ridge(penalty).fit(view, model.shared_)
        np.testing.assert_allclose(model.projections_[i], exact.coef_.T, atol=1e-9)
        np.testing.assert_allclose(model.project(view, i), exact.predict(view), atol=1e-7)


def test_two_views_are_canonical_correlation_analysis():
    views = shared_views(widths=(6, 8))
    bases = [linalg.orth(view - view.mean(axis=0)) for view in views]
    correlations = linalg.svdvals(bases[0].T @ bases[1])  # cosines of the principal angles
    model = al.MaxvarGCCA(4).fit(views)
    np.testing.assert_allclose(model.eigenvalues_, 1 + correlations[:4], rtol=1e-9)
    training = al.held_out_correlations(model, views)["correlation"]
    np.testing.assert_allclose(training, correlations[:4], rtol=1e-8)
    scores = CCA(2, max_iter=5000, tol=1e-12).fit(*views).transform(*views)
    for c in range(2):
        assert np.corrcoef(scores[0][:, c], scores[1][:, c])[0, 1] == pytest.approx(correlations[c], abs=1e-6)
        assert abs(np.corrcoef(scores[0][:, c], model.project(views[0], 0)[:, c])[0, 1]) == pytest.approx(1, abs=1e-5)


def test_lanczos_and_the_direct_solver_agree(monkeypatch):
    views = shared_views(400, (60, 70, 80), shared=4)
    monkeypatch.setattr(al, "_LANCZOS_SHARE", 0)
    direct = al.MaxvarGCCA(6, 0.1).fit(views)
    monkeypatch.setattr(al, "_LANCZOS_SHARE", 1)
    lanczos = al.MaxvarGCCA(6, 0.1).fit(views)
    np.testing.assert_allclose(lanczos.eigenvalues_, direct.eigenvalues_, rtol=1e-10)
    np.testing.assert_allclose(lanczos.shared_, direct.shared_, atol=1e-6)  # signs as well
    np.testing.assert_array_equal(al.MaxvarGCCA(6, 0.1).fit(views).shared_, lanczos.shared_)


def test_blocks_do_not_change_the_shared_space(monkeypatch):
    views = shared_views(90, (12, 9, 100))
    whole = al.MaxvarGCCA(3, 0.1).fit(views)
    monkeypatch.setattr(al, "_BLOCK_VALUES", 1000)
    np.testing.assert_allclose(al.MaxvarGCCA(3, 0.1).fit(views).shared_, whole.shared_, atol=1e-9)


def test_scale_rotation_and_origin_of_a_view_do_not_matter():
    views = shared_views()
    rotation = linalg.qr(np.random.default_rng(4).standard_normal((9, 9)))[0]
    moved = [views[0], 1e4 * views[1] @ rotation + 100, views[2]]
    first, second = al.MaxvarGCCA(3, 0.3).fit(views), al.MaxvarGCCA(3, 0.3).fit(moved)
    np.testing.assert_allclose(first.eigenvalues_, second.eigenvalues_)
    assert_same_up_to_sign(first.shared_, second.shared_, atol=1e-6)
    order = np.random.default_rng(5).permutation(300)
    np.testing.assert_allclose(al.MaxvarGCCA(3, 0.3).fit([v[order] for v in views]).shared_, first.shared_[order], atol=1e-7)


def test_components_are_nested_and_signs_are_fixed():
    views = shared_views()
    large, small = al.MaxvarGCCA(8, 0.1).fit(views), al.MaxvarGCCA(2, 0.1).fit(views)
    np.testing.assert_allclose(large.shared_[:, :2], small.shared_, atol=1e-7)
    stacked = np.concatenate(large.projections_)
    assert (stacked[np.abs(stacked).argmax(axis=0), np.arange(8)] > 0).all()


def test_stored_precision():
    views = shared_views(seed=1)
    exact = al.MaxvarGCCA(3, 0.1).fit(views)
    single = [view.astype(np.float32) for view in views]
    widened = al.MaxvarGCCA(3, 0.1).fit([view.astype(np.float64) for view in single])
    np.testing.assert_allclose(al.MaxvarGCCA(3, 0.1).fit(single).eigenvalues_, widened.eigenvalues_, rtol=1e-6)
    before = [view.copy() for view in single]
    model = al.MaxvarGCCA(3, 0.1).fit(single)
    assert_same_up_to_sign(model.shared_, exact.shared_, atol=1e-4)
    for view, copy in zip(single, before, strict=True):
        np.testing.assert_array_equal(view, copy)
    half = al.MaxvarGCCA(3, 0.1).fit([view.astype(np.float16) for view in views])
    assert_same_up_to_sign(half.shared_, exact.shared_, atol=0.1)


def test_identical_views_agree_completely():
    view = shared_views()[0]
    for k in (1, 12):
        model = al.MaxvarGCCA(k).fit([view, view, view])
        np.testing.assert_allclose(model.eigenvalues_, 3)
        np.testing.assert_allclose(al.held_out_correlations(model, [view] * 3)["correlation"], 1)
        assert model.score([view] * 3) == pytest.approx(1)
        np.testing.assert_allclose(model.transform([None, view, None]), model.shared_, atol=1e-8)
    with pytest.raises(ValueError, match="together span 12"):
        al.MaxvarGCCA(13).fit([view, view])


def test_missing_views_are_predicted_from_those_present():
    views = shared_views()
    model = al.MaxvarGCCA(3, 0.1).fit(views)
    for missing in (0, 1, 2):
        given = [None if i == missing else view for i, view in enumerate(views)]
        estimate = model.transform(given)
        for c in range(3):  # the least-squares combination of the projections that are there
            columns = np.column_stack([model.project(view, i)[:, c] for i, view in enumerate(given) if view is not None])
            fitted = columns @ np.linalg.lstsq(columns, model.shared_[:, c], rcond=None)[0]
            np.testing.assert_allclose(estimate[:, c], fitted, atol=1e-8)
        assert all(np.corrcoef(a, b)[0, 1] > 0.9 for a, b in zip(estimate.T, model.shared_.T, strict=True))
    assert model.transform([None, views[1][:4], None]).shape == (4, 3)


def test_degenerate_features_and_rows():
    views = shared_views()
    plain = al.MaxvarGCCA(3).fit(views)
    extra = [np.column_stack([views[0], np.full(300, 1e6), views[0][:, :2]]), *views[1:]]  # constant and repeated features
    more = al.MaxvarGCCA(3).fit(extra)
    np.testing.assert_allclose(more.eigenvalues_, plain.eigenvalues_)
    assert_same_up_to_sign(more.shared_, plain.shared_, atol=1e-6)
    np.testing.assert_allclose(more.projections_[0][12], 0, atol=1e-9)
    twice = al.MaxvarGCCA(3).fit([np.concatenate([view, view]) for view in views])
    np.testing.assert_allclose(twice.eigenvalues_, plain.eigenvalues_)
    assert_same_up_to_sign(twice.shared_, np.concatenate([plain.shared_] * 2), atol=1e-6)


def test_views_that_cannot_be_fitted():
    views = shared_views()
    broken = views[1].copy()
    broken[0, 0] = np.inf
    for bad, message in (
        ([views[0]], "at least two"),
        (views[0], "list"),
        ([views[0], views[1][:-1]], r"\[300, 299\]"),
        ([views[0], broken], "view 1 contains NaN"),
        ([views[0], views[1][:, 0]], "view 1 must be"),
        ([views[0], views[1][:, :0]], "view 1 must be"),
        ([views[0], np.full((300, 4), 3.3, np.float32)], "view 1 is constant"),
    ):
        with pytest.raises(ValueError, match=message):
            al.MaxvarGCCA(2, 0.1).fit(bad)
    with pytest.raises(ValueError, match="view 0 has rank 9 on 10 rows"):
        al.MaxvarGCCA(2).fit([view[:10] for view in views])
    with pytest.raises(ValueError, match="allow 36 at most"):
        al.MaxvarGCCA(37).fit(views)
    with pytest.raises(ValueError, match="allow 9 at most"):
        al.MaxvarGCCA(10, 0.1).fit([view[:10] for view in views])
    for parameters in ({"n_components": 0}, {"n_components": 2.0}, {"ridge": -1.0}, {"ridge": np.nan}):
        with pytest.raises(ValueError, match=next(iter(parameters))):
            al.MaxvarGCCA(**parameters).fit(views)


def test_transform_refuses_what_does_not_fit():
    views = shared_views()
    with pytest.raises(NotFittedError):
        al.MaxvarGCCA(2).transform(views)
    model = al.MaxvarGCCA(2).fit(views)
    for bad, message in (
        (views[:2], "list of 3"),
        ([None] * 3, "missing"),
        ([views[0], views[1][:5], views[2]], "rows"),
        ([views[1], views[0], views[2]], "view 0 has 9 features"),
        ([views[0] * np.nan, None, None], "view 0 contains NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            model.transform(bad)
    with pytest.raises(ValueError):
        model.score([views[0], None, views[2]])


def test_maxvar_follows_estimator_conventions():
    """The checks of scikit-learn that need no single matrix X; those that call fit(X) cannot apply to a list of views."""
    model = al.MaxvarGCCA(2, 0.5)
    for check in (
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_estimator_tags_renamed,
        estimator_checks.check_valid_tag_types,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_set_params,
        estimator_checks.check_parameters_default_constructible,
        estimator_checks.check_mixin_order,
    ):
        check("MaxvarGCCA", model)
    views = shared_views()
    assert model.fit(views) is model
    assert not hasattr(clone(model), "shared_")
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.transform(views), model.transform(views))
    np.testing.assert_array_equal(model.fit(views).shared_, again.shared_)  # fitted twice
    np.testing.assert_allclose(model.transform([view[:1] for view in views]), model.shared_[:1], atol=1e-9)  # row by row


# --- how much is shared -----------------------------------------------------------------------------------------------------


def split(views, n):
    return [view[:n] for view in views], [view[n:] for view in views]


def test_held_out_correlations_are_mean_pairwise_correlations():
    train, test = split(shared_views(400), 250)
    model = al.MaxvarGCCA(4, 0.1).fit(train)
    table = al.held_out_correlations(model, test, bootstrap=40, seed=3)
    assert list(table.columns) == ["component", "correlation", "correlation_low", "correlation_high", "n"]
    projected = [model.project(view, i) for i, view in enumerate(test)]

    def by_hand(rows):
        pairs = [(0, 1), (0, 2), (1, 2)]
        return [np.mean([np.corrcoef(projected[i][rows, c], projected[j][rows, c])[0, 1] for i, j in pairs]) for c in range(4)]

    np.testing.assert_allclose(table["correlation"], by_hand(np.arange(150)))
    draws = [by_hand(rows) for rows in np.random.default_rng((3, 150)).integers(0, 150, (40, 150))]
    np.testing.assert_allclose(table["correlation_low"], np.quantile(draws, 0.025, axis=0))
    assert model.score(test) == pytest.approx(table["correlation"].mean())
    assert list(table["component"]) == [1, 2, 3, 4] and (table["n"] == 150).all()
    with pytest.raises(ValueError):
        al.held_out_correlations(model, test[:2])
    with pytest.raises(NotFittedError):
        al.held_out_correlations(al.MaxvarGCCA(4), test)


def test_projections_without_variance_are_uncorrelated():
    train = shared_views()
    model = al.MaxvarGCCA(2, 0.1).fit(train)
    still = [np.repeat(view[:1], 20, axis=0) for view in train]
    assert (al.held_out_correlations(model, still)["correlation"] == 0).all() and model.score(still) == 0
    assert not al._standardised(np.full((2999, 1), 0.1)).any()  # whose mean is not exactly 0.1


def test_null_draws_are_refits_on_permuted_rows():
    train, test = split(shared_views(200, (40, 9, 130)), 120)
    model = al.MaxvarGCCA(3, 0.2)
    null = al.permutation_null(model, train, test, permutations=2, seed=5)
    assert null.shape == (2, 3) and not hasattr(model, "projections_")
    rng = np.random.default_rng((5, 120, 80))
    for draw in null:
        orders = [np.arange(120), rng.permutation(120), rng.permutation(120)]
        test_orders = [np.arange(80), rng.permutation(80), rng.permutation(80)]
        refit = clone(model).fit([view[order] for view, order in zip(train, orders, strict=True)])
        held_out = [view[order] for view, order in zip(test, test_orders, strict=True)]
        np.testing.assert_allclose(al.held_out_correlations(refit, held_out, bootstrap=2)["correlation"], draw, atol=1e-6)
    for bad in (test[:2], [test[0], test[1][:-1], test[2]], [test[1], test[0], test[2]]):
        with pytest.raises(ValueError, match="held-out|rows|features"):
            al.permutation_null(model, train, bad, permutations=1)
    fitted = model.fit(train)
    np.testing.assert_array_equal(al.permutation_null(fitted, train, test, permutations=2, seed=5), null)
    assert not np.array_equal(al.permutation_null(fitted, train, test, permutations=2, seed=6), null)


@pytest.mark.parametrize("shared", [1, 5])
def test_planted_dimensions_are_counted(shared):
    train, test = split(shared_views(1500, (30, 40, 25, 35), shared=shared, noise=1.0, seed=shared), 1000)
    model = al.MaxvarGCCA(15, 0.01).fit(train)
    null = al.permutation_null(model, train, test, permutations=60)
    count = al.shared_dimensions(model, test, null)
    assert count.value == shared and count.low == shared and count.high <= shared + 3 and count.n == 500
    with pytest.raises(ValueError, match="null"):
        al.shared_dimensions(model, test, null[:, :3])
    with pytest.raises(ValueError, match="18 permutations cannot"):
        al.shared_dimensions(model, test, null[:18])


def test_threshold_makes_an_exact_permutation_test():
    train, test = split(shared_views(400), 250)
    model = al.MaxvarGCCA(2, 0.1).fit(train)
    first, second = al.held_out_correlations(model, test, bootstrap=2)["correlation"]
    for permutations, exceeding, expected in ((19, 0, 2), (19, 1, 0), (39, 1, 2), (39, 2, 0), (99, 4, 2), (99, 5, 0)):
        null = np.zeros((permutations, 2))
        null[:exceeding, 1] = max(first, second) + 0.01  # p = (1 + exceeding) / (1 + permutations)
        assert al.shared_dimensions(model, test, null, bootstrap=2).value == expected


def test_independent_views_lie_inside_the_null():
    """At most 5 % of such worlds may show a component: with 30 of them more than 6 do in 1 of 1,000 runs."""
    found = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        train, test = split([rng.standard_normal((300, 10)) + 1 for _ in range(3)], 200)
        model = al.MaxvarGCCA(4).fit(train)
        null = al.permutation_null(model, train, test, permutations=40, seed=seed)
        found.append(al.shared_dimensions(model, test, null).value > 0)
        if seed == 0:  # on training rows chance looks like sharing
            assert (al.held_out_correlations(model, train)["correlation"] > null.max()).any()
    assert sum(found) <= 6


def test_chance_correlation_of_wide_views_is_wachters():
    rng = np.random.default_rng(11)
    views = [rng.standard_normal((2000, 200)) for _ in range(2)]
    model = al.MaxvarGCCA(1).fit(views)
    assert model.eigenvalues_[0] == pytest.approx(1 + 2 * np.sqrt(0.1 * 0.9), abs=0.02)
    assert abs(model.score([rng.standard_normal((2000, 200)) for _ in range(2)])) < 0.1


def test_select_ridge_prefers_a_penalty_for_wide_noisy_views():
    views = shared_views(150, (60, 70, 80), shared=2, noise=1.5)
    best, table = al.select_ridge(views, 2, grid=(1e-4, 1e-2, 1.0))
    assert list(table.columns) == ["ridge", "score"] and best == table["ridge"][table["score"].idxmax()] and best == 1.0
    order = np.random.default_rng((42, 150)).permutation(150)
    model = al.MaxvarGCCA(2, 1e-2).fit([view[order[30:]] for view in views])
    assert table["score"][1] == pytest.approx(model.score([view[order[:30]] for view in views]))
    with pytest.raises(ValueError, match="share"):
        al.select_ridge(views, validation=0.0)
    with pytest.raises(ValueError, match="ridge"):
        al.select_ridge(views, grid=(-1.0,))


# --- neighbourhoods ---------------------------------------------------------------------------------------------------------


def test_neighbourhood_agreement_is_scipys_spearman(monkeypatch):
    rng = np.random.default_rng(6)
    A = rng.integers(-2, 3, (40, 3)) + 0.5  # many equal cosines
    B = np.column_stack([A[:, :2], rng.standard_normal(40)])
    by_hand = []
    for i in range(40):
        rows = np.arange(40) != i
        cosines = [np.array([(s[i] @ r) / np.linalg.norm(s[i]) / np.linalg.norm(r) for r in s[rows]]).round(12) for s in (A, B)]
        by_hand.append(spearmanr(*cosines).statistic)
    estimate = al.neighbourhood_agreement(A, B)
    assert estimate.value == pytest.approx(np.mean(by_hand), abs=5e-3)  # rounding breaks some ties here
    assert estimate.low < estimate.value < estimate.high and estimate.n == 40
    monkeypatch.setattr(al, "_BLOCK_VALUES", 90)
    assert al.neighbourhood_agreement(A, B).value == pytest.approx(estimate.value, abs=5e-3)
    smooth = rng.standard_normal((2, 30, 4))
    rho = [spearmanr(*[np.delete(s @ s[i] / np.linalg.norm(s, axis=1), i) for s in smooth]).statistic for i in range(30)]
    assert al.neighbourhood_agreement(*smooth).value == pytest.approx(np.mean(rho))


def test_neighbourhoods_of_the_same_and_of_unrelated_spaces():
    rng = np.random.default_rng(7)
    A = rng.standard_normal((300, 8))
    rotation = linalg.qr(rng.standard_normal((8, 8)))[0]
    assert al.neighbourhood_agreement(A, 5 * A @ rotation).value == pytest.approx(1)
    unrelated = al.neighbourhood_agreement(A, rng.standard_normal((300, 5)))
    assert abs(unrelated.value) < 0.02
    near, far = (al.neighbourhood_agreement(A, A + s * rng.standard_normal(A.shape)).value for s in (0.2, 1.0))
    assert 1 > near > far > 0.3


def test_queries_are_drawn_by_seed():
    rng = np.random.default_rng(8)
    A, B = rng.standard_normal((2, 200, 4))
    some = al.neighbourhood_agreement(A, B, queries=50)
    assert some.n == 50 and some == al.neighbourhood_agreement(A, B, queries=50)
    assert some != al.neighbourhood_agreement(A, B, queries=50, seed=1)
    everything = al.neighbourhood_agreement(A, B)
    assert al.neighbourhood_agreement(A, B, queries=200) == everything and everything.n == 200
    single = al.neighbourhood_agreement(A.astype(np.float32), B.astype(np.float32))
    assert single.value == pytest.approx(everything.value, abs=1e-4)


def test_a_space_that_ranks_nothing_agrees_with_nothing():
    A = np.random.default_rng(9).standard_normal((20, 3))
    assert al.neighbourhood_agreement(A, np.arange(1, 21)[:, None]).value == 0


def test_neighbourhoods_refuse_what_does_not_fit():
    A = np.random.default_rng(10).standard_normal((10, 3))
    zero = A.copy()
    zero[4] = 0
    for arguments, message in (
        ((A, A[:9]), "rows"),
        ((A, A * np.nan), "NaN"),
        ((A[:3], A[:3]), "at least 4"),
        ((A, zero), r"\[4\]"),
        ((A, A, 11), "queries"),
        ((A, A, 0), "queries"),
    ):
        with pytest.raises(ValueError, match=message):
            al.neighbourhood_agreement(*arguments)
