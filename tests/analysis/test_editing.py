import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.preprocessing import PowerTransformer

from une_utils.analysis import editing as e
from une_utils.analysis import probes
from une_utils.analysis.stats import bootstrap_interval, wilson_interval

NAMES = ("first", "second", "third")


def spd(d, seed=1):
    """A covariance with variances from 0.1 to 10 on rotated axes."""
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]
    return (rotation * np.logspace(-1, 1, d)) @ rotation.T


def world(n=3000, d=12, seed=0):
    """Correlated Gaussian latents, three factors that are linear in them and correlated over the data, and their attributes."""
    rng = np.random.default_rng(seed)
    X = rng.multivariate_normal(rng.standard_normal(d), spd(d), n)
    readers = rng.standard_normal((3, d))
    readers[1] += 0.7 * readers[0]
    factors = X @ readers.T
    mean, sd = factors.mean(axis=0), factors.std(axis=0)
    readers /= sd[:, None]
    offset = mean / sd
    return X, (X @ readers.T - offset) > [0.0, 0.5, -0.3], readers, offset


# --- directions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", e.METHODS)
def test_directions_are_unit_vectors_with_the_spread_of_their_projection(method):
    X, Y, *_ = world()
    probe = probes.make_probe().fit(X, Y)
    found = e.directions(X.astype(np.float32), Y, method, NAMES, probe=probe)
    assert found.w.shape == (3, 12) and found.w.dtype == np.float64 and found.bias.shape == found.sigma.shape == (3,)
    np.testing.assert_allclose(np.linalg.norm(found.w, axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(found.sigma, np.std(X @ found.w.T, axis=0), rtol=1e-5)
    second = found["second"]
    np.testing.assert_array_equal(second.w, found.w[1])
    assert (second.bias, second.sigma) == (found.bias[1], found.sigma[1])
    with pytest.raises(KeyError, match="'fourth'; there are first, second, third"):
        found["fourth"]
    if method != "random":  # the boundary is a classifier's
        accuracy = ((X @ found.w.T + found.bias > 0) == Y).mean(axis=0)
        assert (accuracy > np.maximum(Y.mean(axis=0), 1 - Y.mean(axis=0)) + 0.05).all()


@pytest.mark.parametrize("n_components", [None, 7])
def test_logistic_is_the_probe(n_components):
    X, Y, *_ = world()
    probe = probes.make_probe(n_components).fit(X, Y)
    found = e.directions(X, Y, "logistic", NAMES, probe=probe)
    weights, bias = probe.latent_weights()
    length = np.linalg.norm(weights, axis=1)
    np.testing.assert_allclose(X @ found.w.T + found.bias, probe.decision_function(X) / length, atol=1e-10)
    np.testing.assert_allclose(found.bias, bias / length)


def test_logistic_and_whitened_find_the_normal_and_the_mean_difference_its_pattern():
    """For Gaussian latents the normal is the reader a, and the mean difference points along S a."""
    X, Y, readers, _ = world(40000)
    unit = readers / np.linalg.norm(readers, axis=1, keepdims=True)
    whitened = e.directions(X, Y, "whitened", NAMES)
    logistic = e.directions(X, Y, "logistic", NAMES, probe=probes.make_probe(C=10.0).fit(X, Y))
    pattern = readers @ spd(12)
    pattern /= np.linalg.norm(pattern, axis=1, keepdims=True)
    difference = e.directions(X, Y, "mean difference", NAMES)
    assert ((whitened.w * unit).sum(axis=1) > 0.995).all() and ((logistic.w * unit).sum(axis=1) > 0.999).all()
    assert ((difference.w * pattern).sum(axis=1) > 0.995).all() and ((difference.w * unit).sum(axis=1) < 0.9).all()


def test_mean_difference_is_the_difference_of_means():
    X, Y, *_ = world()
    found = e.directions(X, Y, "mean difference", NAMES)
    for a in range(3):
        difference = X[Y[:, a]].mean(axis=0) - X[~Y[:, a]].mean(axis=0)
        np.testing.assert_allclose(found.w[a], difference / np.linalg.norm(difference), atol=1e-10)
    np.testing.assert_array_equal(X @ found.w.T + found.bias > 0, probes.NearestMean().fit(X, Y).predict(X))


@pytest.mark.parametrize("n", [400, 11])  # 11 rows in 12 dimensions take the other branch
@pytest.mark.parametrize("shrinkage", [0.0, 0.3, 1.0])
def test_whitened_is_linear_discriminant_analysis(n, shrinkage):
    X, Y, *_ = world(n, seed=3)
    if n < 12 and shrinkage == 0:
        with pytest.raises(ValueError, match="singular.*shrinkage above 0"):
            e.directions(X, Y, "whitened", NAMES, shrinkage=shrinkage)
        return
    found = e.directions(X, Y, "whitened", NAMES, shrinkage=shrinkage)
    penalty = shrinkage * np.cov(X.T, bias=True).trace() / 12
    for a in range(3):
        y = Y[:, a]
        parts = [X[y == c] for c in (False, True)]
        within = sum(len(p) * np.cov(p.T, bias=True) for p in parts) / n
        means = [p.mean(axis=0) for p in parts]
        w = np.linalg.solve((1 - shrinkage) * within + penalty * np.eye(12), means[1] - means[0])
        b = -w @ (means[0] + means[1]) / 2 + np.log(y.mean() / (1 - y.mean()))
        np.testing.assert_allclose(found.w[a], w / np.linalg.norm(w), atol=1e-9)
        assert found.bias[a] == pytest.approx(b / np.linalg.norm(w), abs=1e-9)
        if shrinkage == 0:
            lda = LinearDiscriminantAnalysis(solver="lsqr").fit(X, y)
            length = np.linalg.norm(lda.coef_)
            np.testing.assert_allclose(found.w[a], lda.coef_[0] / length, atol=1e-9)
            assert found.bias[a] == pytest.approx(lda.intercept_[0] / length, abs=1e-9)


@pytest.mark.parametrize("n", [500, 9])
def test_shrinkage_is_ledoit_and_wolfs(n):
    X, Y, *_ = world(n, seed=4)
    s = ledoit_wolf_shrinkage(X)
    assert 0 < s < 1
    np.testing.assert_allclose(e.covariance(X), e.covariance(X, s), rtol=1e-12)
    np.testing.assert_allclose(e.covariance(X, 0.0), np.cov(X.T, bias=True), atol=1e-12)
    automatic, given = (e.directions(X, Y, "whitened", NAMES, shrinkage=value) for value in ("auto", s))
    np.testing.assert_allclose(automatic.w, given.w, atol=1e-10)
    white = np.random.default_rng(0).standard_normal((200, 100))  # noise around the identity alone
    assert ledoit_wolf_shrinkage(white) > 0.9
    np.testing.assert_allclose(e.covariance(white), e.covariance(white, ledoit_wolf_shrinkage(white)), atol=1e-12)


def test_random_directions_are_seeded_and_see_nothing():
    rng = np.random.default_rng(5)
    X, Y = rng.standard_normal((500, 800)), rng.random((500, 3)) < [0.5, 0.2, 0.9]
    found = e.directions(X, Y, "random", NAMES)
    np.testing.assert_array_equal(found.w, e.directions(X, Y, "random", NAMES).w)
    np.testing.assert_array_equal(found.w[:2], e.directions(X, Y[:, :2], "random", NAMES[:2]).w)  # whatever comes after
    assert np.abs(found.w @ e.directions(X, Y, "random", NAMES, seed=1).w.T).max() < 0.15
    assert np.abs(found.w @ found.w.T - np.eye(3)).max() < 0.15  # one per attribute
    np.testing.assert_allclose((X @ found.w.T + found.bias > 0).mean(axis=0), Y.mean(axis=0), atol=0.005)


def test_a_constant_coordinate_is_not_used():
    X, Y, *_ = world()
    more = np.column_stack([X, np.full(len(X), 3.0)])
    for method in ("mean difference", "whitened"):
        found = e.directions(more, Y, method, NAMES)
        assert np.abs(found.w[:, -1]).max() < 1e-12
    with pytest.raises(ValueError, match="singular"):
        e.directions(more, Y, "whitened", NAMES, shrinkage=0.0)


@pytest.mark.parametrize("method", e.METHODS)
def test_training_data_without_a_direction(method):
    X, Y, *_ = world(200)
    probe = probes.make_probe().fit(X, Y)
    single = Y.copy()
    single[:, 1], single[:, 2] = True, False
    broken = X.copy()
    broken[3, 4] = np.nan
    for arguments, message in (
        ((X, single, method, NAMES), "single class.*second, third"),
        ((broken, Y, method, NAMES), "X contains NaN"),
        ((X[:-1], Y, method, NAMES), "199 rows"),
        ((X, Y[:, 0], method, NAMES), "Y must be"),
        ((X, Y * 2, method, NAMES), "0 and 1"),
        ((X, Y, method, NAMES[:2]), "one per attribute"),
        ((X, Y, method, "abc"), "one per attribute"),
        ((X[0], Y, method, NAMES), "2 axes"),
    ):
        with pytest.raises(ValueError, match=message):
            e.directions(*arguments, probe=probe)


def test_options_of_directions_that_make_no_sense():
    X, Y, *_ = world(200)
    with pytest.raises(ValueError, match="unknown method 'svm', expected one of logistic"):
        e.directions(X, Y, "svm", NAMES)
    with pytest.raises(ValueError, match="needs probe="):
        e.directions(X, Y, "logistic", NAMES)
    with pytest.raises(ValueError, match="fit it on these"):
        e.directions(X, Y, "logistic", NAMES, probe=probes.make_probe().fit(X[:, 1:], Y))
    for shrinkage in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="from 0 to 1"):
            e.directions(X, Y, "whitened", NAMES, shrinkage=shrinkage)
    for method in ("mean difference", "random"):
        with pytest.raises(ValueError, match="no direction for first, second, third"):
            e.directions(np.full_like(X, 0.1), Y, method, NAMES)


# --- edits -----------------------------------------------------------------------------------------------------------


def test_a_strength_counts_standard_deviations():
    X, Y, *_ = world()
    found = e.directions(X, Y, "whitened", NAMES)["first"]
    for strength in (2.0, -1.5, np.linspace(-3, 3, len(X))):
        moved = e.edit(X, found.w, strength, found.sigma)
        np.testing.assert_allclose((moved - X) @ found.w / np.std(X @ found.w), np.broadcast_to(strength, len(X)), atol=1e-10)
        across = np.linalg.svd(found.w[None])[2][1:]  # everything at right angles stays
        np.testing.assert_allclose((moved - X) @ across.T, 0, atol=1e-10)
    np.testing.assert_array_equal(e.edit(X, found.w, 0.0, found.sigma), X)
    np.testing.assert_allclose(e.edit(X, 3 * found.w, 2.0), X + 6 * found.w)  # the paper's z + alpha w


def test_edits_keep_the_precision_of_latents():
    for dtype, expected in ((np.float16, np.float32), (np.float32, np.float32), (np.float64, np.float64)):
        z = np.ones((2, 3), dtype)
        assert e.edit(z, np.eye(3)[0], 1.0, 2.0).dtype == e.keep_norm(z, z).dtype == expected


def test_alpha_leads_to_the_boundary():
    X, Y, *_ = world()
    w, bias = (value[0] for value in probes.make_probe().fit(X, Y).latent_weights())
    alpha = e.alpha_to_boundary(X, w, bias)
    np.testing.assert_allclose(alpha, -(X @ w + bias) / (w @ w))
    np.testing.assert_allclose(e.edit(X, w, alpha) @ w + bias, 0, atol=1e-10)
    other = e.orthogonalise(w, np.eye(12)[:4]).w
    alpha = e.alpha_to_boundary(X, w, bias, along=other)
    np.testing.assert_allclose(e.edit(X, other, alpha) @ w + bias, 0, atol=1e-10)
    with pytest.raises(ValueError, match="right angles"):
        e.alpha_to_boundary(X, np.eye(12)[0], bias, along=np.eye(12)[1])


def test_keep_norm_returns_to_the_shell():
    X, *_ = world(50)
    edited = np.stack([e.edit(X, np.eye(12)[0], s) for s in (-2.0, 5.0)])  # (S, N, D)
    kept = e.keep_norm(edited, X)
    np.testing.assert_allclose(np.linalg.norm(kept, axis=-1), [np.linalg.norm(X, axis=1)] * 2)
    np.testing.assert_allclose(kept[1], e.keep_norm(edited[1], X))
    cosine = (kept * edited).sum(-1) / np.linalg.norm(kept, axis=-1) / np.linalg.norm(edited, axis=-1)
    np.testing.assert_allclose(cosine, 1)
    with pytest.raises(ValueError, match="zero vector"):
        e.keep_norm(np.zeros_like(X), X)
    with pytest.raises(ValueError, match="agree"):
        e.keep_norm(X[:-1], X)


def test_edits_refuse_what_does_not_fit():
    z = np.ones((4, 3))
    for w, strength, message in (
        (np.ones(2), 1.0, r"z must be \(N, 2\)"),
        (np.zeros(3), 1.0, "zero vector"),
        (np.array([1, np.nan, 0]), 1.0, "w contains NaN"),
        (np.ones((1, 3)), 1.0, "1 axes"),
        (np.ones(3), np.ones(3), "one per row"),
        (np.ones(3), np.nan, "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            e.edit(z, w, strength, 1.0)


@pytest.mark.parametrize("skew", [0.0, 0.5, -0.5])
def test_yeo_johnson_is_scipys_and_scikit_learns(skew):
    x = np.random.default_rng(6).standard_normal(2000)
    x = 40 + 7 * (x if skew == 0 else np.exp(skew * x) / skew)
    scale = e.fit_yeo_johnson(x)
    standardised = (x - x.mean()) / x.std()
    reference = PowerTransformer(method="yeo-johnson").fit(standardised[:, None])
    assert scale.lmbda == pytest.approx(reference.lambdas_[0], abs=1e-3)
    np.testing.assert_allclose(scale.transform(x), reference.transform(standardised[:, None])[:, 0], atol=2e-3)
    exact = scipy_stats.yeojohnson(standardised, scale.lmbda)
    np.testing.assert_allclose(scale.transform(x), (exact - exact.mean()) / exact.std(), atol=1e-10)
    np.testing.assert_allclose(scale.inverse(scale.transform(x)), x, rtol=1e-9)
    assert abs(scipy_stats.skew(scale.transform(x))) < 0.1
    units = e.fit_yeo_johnson(1000 * x)  # the scale does not depend on units
    np.testing.assert_allclose(units.transform(1000 * x), scale.transform(x), atol=1e-4)


@pytest.mark.parametrize("lmbda", [-0.8, -1e-12, 0.0, 0.4, 1.0, 2.0, 2.7])
def test_yeo_johnson_inverse_up_to_its_limits(lmbda):
    scale = e.YeoJohnson(mean=1.0, sd=2.0, lmbda=lmbda, offset=0.1, scale=0.9)
    x = np.linspace(-30, 30, 61)
    y = scale.transform(x)
    np.testing.assert_allclose(y, (scipy_stats.yeojohnson((x - 1) / 2, lmbda) - 0.1) / 0.9, atol=1e-9)
    np.testing.assert_allclose(scale.inverse(y), x, rtol=1e-8, atol=1e-8)
    low, high = scale.limits
    assert low < y.min() and y.max() < high
    assert np.isfinite(high) == (lmbda < 0) and np.isfinite(low) == (lmbda > 2)
    for limit, sign in ((low, -1), (high, 1)):
        if np.isfinite(limit):
            assert sign * scale.inverse(limit * (1 - 1e-9)) > 100
            for beyond in (limit, limit + sign):
                with pytest.raises(ValueError, match="1 of 2 values lie outside the transform's range.*smaller intensity"):
                    scale.inverse([0.0, beyond])


def test_edits_on_the_gaussian_scale_arrive():
    X, *_ = world()
    w = np.zeros(12)
    w[0] = 2.0  # need not be of unit length
    X[:, 0] = np.exp(0.4 * X[:, 0])
    scale = e.fit_yeo_johnson(X @ w)
    here = scale.transform(X @ w)
    by = np.where(np.arange(len(X)) % 2 == 0, 0.5, -0.8)
    moved = e.edit_on_scale(X, w, scale, by=by)
    np.testing.assert_allclose(scale.transform(moved @ w), here + by, atol=1e-8)
    np.testing.assert_array_equal(moved[:, 1:], X[:, 1:])
    arrived = e.edit_on_scale(X, w, scale, to=1.5)
    np.testing.assert_allclose(scale.transform(arrived @ w), 1.5, atol=1e-8)
    for options in ({}, {"by": 1.0, "to": 1.0}):
        with pytest.raises(ValueError, match="exactly one"):
            e.edit_on_scale(X, w, scale, **options)
    if np.isfinite(scale.limits[1]):
        with pytest.raises(ValueError, match="outside the transform's range"):
            e.edit_on_scale(X, w, scale, to=scale.limits[1] + 1)


def test_on_gaussian_projections_the_scales_agree():
    z = np.random.default_rng(7).standard_normal((20000, 1)) * 3 + 5
    scale = e.fit_yeo_johnson(z[:, 0])
    assert scale.lmbda == pytest.approx(1, abs=0.05)
    difference = e.edit_on_scale(z, np.ones(1), scale, by=1.0) - e.edit(z, np.ones(1), 1.0, z.std())
    assert np.abs(difference).mean() < 0.1


def test_projections_without_a_scale():
    for values, message in ((np.full(9, 0.1), "constant"), ([1.0, np.nan], "NaN"), ([[1.0, 2.0]], "1 axes"), ([], "empty")):
        with pytest.raises(ValueError, match=message):
            e.fit_yeo_johnson(values)


# --- orthogonalisation -----------------------------------------------------------------------------------------------


def test_one_other_direction_is_the_papers_formula():
    w1, w2 = np.random.default_rng(8).standard_normal((2, 20))
    formula = w1 - (w1 @ w2) / (w2 @ w2) * w2
    for others in (w2, w2[None], -7 * w2):
        w, share_left = e.orthogonalise(w1, others)
        np.testing.assert_allclose(w * share_left * np.linalg.norm(w1), formula, atol=1e-12)
        assert np.linalg.norm(w) == pytest.approx(1)
    cosine = w1 @ w2 / np.linalg.norm(w1) / np.linalg.norm(w2)
    assert share_left == pytest.approx(np.sqrt(1 - cosine**2))


@pytest.mark.parametrize("metric", [None, spd(20)])
def test_all_other_scores_stay(metric):
    W = np.random.default_rng(9).standard_normal((6, 20)) * np.logspace(-3, 3, 6)[:, None]
    for i in range(6):
        others = np.delete(W, i, 0)
        w, share_left = e.orthogonalise(W[i], others, metric)
        assert np.abs(others @ w / np.linalg.norm(others, axis=1)).max() < 1e-12
        assert 0 < share_left < 1 and w @ W[i] > 0
        assert e.orthogonalise(w, others, metric).share_left == pytest.approx(1)
    z = np.random.default_rng(10).standard_normal((7, 20))
    np.testing.assert_allclose(e.edit(z, w, 50.0) @ others.T, z @ others.T, rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("metric", [None, spd(15)])
def test_the_result_is_the_nearest_direction_that_leaves_the_scores(metric):
    """Against a general solver of the constrained least-squares problem, by its optimality (KKT) equations."""
    rng = np.random.default_rng(11)
    w, others = rng.standard_normal(15), rng.standard_normal((4, 15))
    inverse = np.eye(15) if metric is None else np.linalg.inv(metric)
    kkt = np.block([[inverse, others.T], [others, np.zeros((4, 4))]])
    nearest = np.linalg.solve(kkt, np.concatenate([inverse @ w, np.zeros(4)]))[:15]
    found = e.orthogonalise(w, others, metric)
    np.testing.assert_allclose(found.w, nearest / np.linalg.norm(nearest), atol=1e-10)
    assert found.share_left == pytest.approx(np.sqrt((nearest @ inverse @ nearest) / (w @ inverse @ w)))


def test_the_identity_is_the_euclidean_metric():
    w, *others = np.random.default_rng(12).standard_normal((4, 10))
    plain, same = e.orthogonalise(w, others), e.orthogonalise(w, others, 3.0 * np.eye(10))
    np.testing.assert_allclose(same.w, plain.w, atol=1e-12)
    assert same.share_left == pytest.approx(plain.share_left)
    assert np.abs(e.orthogonalise(w, others, spd(10)).w - plain.w).max() > 0.01


def test_the_two_notions_of_orthogonal_under_a_covariance():
    """v with uncorrelated readings <=> the edit along S v leaves the scores; and it is the data's own conditional change."""
    S = spd(10)
    w1, *others = np.random.default_rng(13).standard_normal((4, 10))
    others = np.stack(others)
    edit = e.orthogonalise(S @ w1, others, S).w
    v = np.linalg.solve(S, edit)
    np.testing.assert_allclose(others @ S @ v, 0, atol=1e-12)  # readings uncorrelated
    assert np.abs(others @ v).max() > 0.01  # yet an edit along v would move the scores
    # regression of the score on the others leaves the same v; and cov(z, s1 | others) is the edit
    residual = w1 - others.T @ np.linalg.solve(others @ S @ others.T, others @ S @ w1)
    np.testing.assert_allclose(v / np.linalg.norm(v), residual / np.linalg.norm(residual), atol=1e-10)
    conditional = (S - S @ others.T @ np.linalg.solve(others @ S @ others.T, others @ S)) @ w1
    np.testing.assert_allclose(edit, conditional / np.linalg.norm(conditional), atol=1e-10)
    # for a step of one Mahalanobis length no direction that leaves the others moves score 1 further
    for start, metric in ((w1, S), (w1, None), (S @ w1, None)):
        other = e.orthogonalise(start, others, metric).w
        reach = [w1 @ w / np.sqrt(w @ np.linalg.solve(S, w)) for w in (edit, other)]
        assert reach[0] > 1.01 * reach[1]


@pytest.mark.parametrize("metric", [None, spd(20)])
def test_repeated_and_nearly_collinear_others(metric):
    rng = np.random.default_rng(14)
    w, a, b = rng.standard_normal((3, 20))
    expected = e.orthogonalise(w, [a, b], metric)
    for others in ([a, b, a], [a, b, 2 * a - b], [a, b, a * (1 + 1e-15)]):
        found = e.orthogonalise(w, others, metric)
        np.testing.assert_allclose(found.w, expected.w, atol=1e-10)
        assert found.share_left == pytest.approx(expected.share_left)
    close = a + 1e-7 * rng.standard_normal(20)  # as far apart as float32 rounding: still two directions, still exact
    assert np.abs(np.stack([a, close]) @ e.orthogonalise(w, [a, close], metric).w).max() < 1e-12


@pytest.mark.parametrize("metric", [None, spd(20)])
def test_nothing_left(metric):
    W = np.random.default_rng(15).standard_normal((4, 20))
    for lift in (np.eye(20), np.eye(20) if metric is None else metric):  # what is removed: the normals, or their patterns
        for w, others in ((W[0], W), (W[0] - 3 * W[2], W[:3]), (W[0] + 1e-9 * W[1], W[0])):
            with pytest.raises(ValueError, match="nothing is left of w"):
                e.orthogonalise(lift @ w, others, metric)
    little = e.orthogonalise(lift @ (W[0] + 1e-3 * W[1]), W[0], metric)  # little is not nothing
    assert 1e-4 < little.share_left < 1e-2 and abs(little.w @ W[0]) < 1e-10


def test_orthogonalise_refuses_what_does_not_fit():
    w, others = np.ones(3), np.eye(3)[:1]
    for arguments, message in (
        ((w, np.ones((1, 4))), "w has 3 values and others have 4"),
        ((np.zeros(3), others), "zero vector"),
        ((w, np.zeros((1, 3))), "zero vector"),
        ((w * np.nan, others), "w contains NaN"),
        ((w, np.empty((0, 3))), "empty"),
        ((w, others, np.eye(4)), r"covariance \(3, 3\)"),
        ((w, others, np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1.0]])), "not symmetric"),
        ((w, others, np.diag([1.0, 1.0, 0.0])), "singular"),
        ((w, others, np.diag([1.0, 1.0, -1.0])), "singular"),
    ):
        with pytest.raises(ValueError, match=message):
            e.orthogonalise(*arguments)


# --- what an edit does -----------------------------------------------------------------------------------------------

STRENGTHS = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])


def oracle(z, readers, offset):
    return z @ readers.T - offset


def test_an_edit_orthogonal_to_the_others_moves_the_target_alone():
    """The whole chain with a linear oracle: probe normals leak as the readers overlap, orthogonalised ones leave the others."""
    X, Y, readers, offset = world()
    before = oracle(X, readers, offset)
    correlation = np.corrcoef(before.T)
    targets = dict(zip(NAMES, NAMES, strict=True))
    sigma = e.projection_spread(X, readers[0])
    plain = {name: oracle(e.edit(X, readers[i], 1.0, sigma), readers, offset) for i, name in enumerate(NAMES)}
    for metric in (None, e.covariance(X)):
        clean = {}
        for i, name in enumerate(NAMES):
            w = e.orthogonalise(readers[i], np.delete(readers, i, 0), metric).w
            clean[name] = oracle(e.edit(X, w, 1.0, e.projection_spread(X, w)), readers, offset)
        table = e.collateral(before, clean, targets, NAMES, correlation, bootstrap=20)
        off = table[~table["target"]]
        for measure in ("signed", "absolute"):
            assert off.loc[off["measure"] == measure, ["value", "low", "high"]].abs().to_numpy().max() < 1e-10
        assert (table.loc[table["target"] & (table["measure"] == "signed"), "value"] > 0.05).all()
        difference = e.collateral_difference(before, clean, plain, targets, NAMES, correlation, bootstrap=20)
        change = difference.set_index(["edited", "measure"])
        assert change.loc[("all", "collateral"), "high"] < -0.01
        summary = e.collateral_summary(before, clean, targets, NAMES, correlation, bootstrap=20).set_index(["edited", "measure"])
        assert summary.xs("entanglement", level="measure")["value"].abs().max() < 1e-10


def test_an_edit_along_the_pattern_is_as_entangled_as_the_data():
    X, _, readers, offset = world(20000)
    before = oracle(X, readers, offset)
    correlation = np.corrcoef(before.T)
    S = np.cov(X.T, bias=True)
    after = {name: oracle(X + S @ readers[i] * 0.8, readers, offset) for i, name in enumerate(NAMES)}
    table = e.collateral(before, after, dict(zip(NAMES, NAMES, strict=True)), NAMES, correlation, bootstrap=20)
    values = table.pivot(index=["edited", "factor"], columns="measure", values="value")
    np.testing.assert_allclose(values["signed"], values["expected"], atol=1e-10)
    np.testing.assert_allclose(values["excess"], 0, atol=1e-10)
    summary = e.collateral_summary(before, after, dict(zip(NAMES, NAMES, strict=True)), NAMES, correlation, bootstrap=20)
    summary = summary.set_index(["edited", "measure"])["value"]
    for name in (*NAMES, "all"):
        assert summary[name, "entanglement"] == pytest.approx(1)
        assert summary[name, "ratio"] == pytest.approx(summary[name, "expected ratio"])
    assert summary["first", "expected ratio"] == pytest.approx(np.abs(correlation[0, 1:]).mean())
    double = {name: before + (after[name] - before) * np.where(np.arange(3) == i, 1, 2) for i, name in enumerate(NAMES)}
    more = e.collateral_summary(before, double, dict(zip(NAMES, NAMES, strict=True)), NAMES, correlation, bootstrap=20)
    more = more.set_index(["edited", "measure"])["value"]
    assert more["all", "entanglement"] == pytest.approx(2)


def test_collateral_by_hand():
    before = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    after = {"No_Beard": before + [[-1.0, 0.5, 0.0], [-3.0, -1.5, 0.2]]}
    correlation = np.array([[1.0, 0.5, 0.0], [0.5, 1.0, 0.1], [0.0, 0.1, 1.0]])
    factors = ("Beard", "Mustache", "Light")
    table = e.collateral(before, after, {"No_Beard": "Beard"}, factors, correlation)
    assert list(table.columns) == ["edited", "factor", "target", "measure", "value", "low", "high", "n"]
    wide = table.pivot(index="factor", columns="measure", values="value").loc[list(factors)]
    np.testing.assert_allclose(wide["signed"], [-2, -0.5, 0.1])
    np.testing.assert_allclose(wide["absolute"], [2, 1, 0.1])
    np.testing.assert_allclose(wide["expected"], [-2, -1, 0])
    np.testing.assert_allclose(wide["excess"], [0, 0.5, 0.1], atol=1e-15)
    assert (table["n"] == 2).all() and (table["target"] == (table["factor"] == "Beard")).all()
    assert (table["low"] <= table["value"]).all() and (table["value"] <= table["high"]).all()
    summary = e.collateral_summary(before, after, {"No_Beard": "Beard"}, factors, correlation).set_index(["edited", "measure"])
    expected = {"target": -2, "collateral": 0.55, "ratio": 0.275, "expected ratio": 0.25, "entanglement": 0.5}
    assert summary.loc["No_Beard", "value"].to_dict() == pytest.approx(expected)
    assert summary.loc["all", "value"].to_dict() == pytest.approx(expected | {"target": 2})
    drift = e.collateral_summary(before, after, {"No_Beard": "Beard"}, factors, correlation, others=["Light"])
    drift = drift.set_index(["edited", "measure"])["value"]
    assert drift["No_Beard", "collateral"] == pytest.approx(0.1)
    assert np.isnan(drift["No_Beard", "entanglement"])  # the data say nothing about a factor with correlation 0


def test_pooled_edits_weigh_by_what_they_move():
    before = np.zeros((30, 2))
    moved = {"works": before + [2.0, 0.5], "fails": before + [1e-9, 0.1]}
    summary = e.collateral_summary(before, moved, {"works": "a", "fails": "a"}, ("a", "b"), np.array([[1, 0.5], [0.5, 1]]))
    summary = summary.set_index(["edited", "measure"])["value"]
    assert summary["fails", "ratio"] > 1e7 and summary["all", "ratio"] == pytest.approx(0.3)
    assert summary["all", "entanglement"] == pytest.approx(0.5) and summary["all", "expected ratio"] == pytest.approx(0.5)


def test_differences_are_paired():
    rng = np.random.default_rng(16)
    before = rng.standard_normal((200, 3))
    shared = rng.standard_normal((200, 3)) + 1  # what both edits do to a face
    arguments = ({"first": "first"}, NAMES, np.full((3, 3), 0.5) + 0.5 * np.eye(3))
    a, b = ({"first": before + shared + shift} for shift in (0.0, [0.0, 0.02, 0.02]))
    difference = e.collateral_difference(before, a, b, *arguments).set_index(["edited", "measure"])
    one, other = (e.collateral_summary(before, x, *arguments).set_index(["edited", "measure"]) for x in (a, b))
    np.testing.assert_allclose(difference["value"], one["value"] - other["value"], atol=1e-12)
    row, alone = difference.loc[("first", "entanglement")], one.loc[("first", "entanglement")]
    assert row["high"] < 0 and row["high"] - row["low"] < 0.1 * (alone["high"] - alone["low"])
    same = e.collateral_difference(before, a, a, *arguments)
    assert (same[["value", "low", "high"]] == 0).all(axis=None)
    with pytest.raises(ValueError, match="expected the same attributes"):
        e.collateral_difference(before, a, {"second": before}, *arguments)


def test_dose_response_of_known_curves():
    rng = np.random.default_rng(17)
    before = rng.standard_normal((80, 4))
    slopes = 0.5 + 0.1 * rng.standard_normal(80)
    change = np.stack([np.column_stack([s * slopes, -s * slopes, np.full(80, s**2), np.zeros(80)]) for s in STRENGTHS])
    table = e.dose_response(before, before + change, STRENGTHS, ("up", "down", "bowl", "still"))
    assert list(table.columns) == ["factor", "measure", "value", "low", "high", "n"] and (table["n"] == 80).all()
    found = table.set_index(["factor", "measure"])
    value = found["value"]
    reference = bootstrap_interval(slopes, resamples=4000)
    row = found.loc[("up", "slope")]
    assert row["value"] == pytest.approx(reference.value)
    assert (row["low"], row["high"]) == pytest.approx((reference.low, reference.high), abs=0.005)
    assert value["down", "slope"] == pytest.approx(-reference.value)
    assert value["up", "R^2"] == pytest.approx(1) and value["down", "R^2"] == pytest.approx(1)
    assert (value["up", "kendall"], value["down", "kendall"], value["up", "rising"], value["down", "rising"]) == (1, -1, 1, 0)
    assert found.loc[("up", "rising"), "low"] == pytest.approx(wilson_interval(80, 80)[0])
    assert value["bowl", "slope"] == pytest.approx(0, abs=1e-12) and value["bowl", "R^2"] == pytest.approx(0, abs=1e-12)
    assert value["bowl", "rising"] == 0
    assert value["still", "kendall"] == value["still", "rising"] == 0 and abs(value["still", "slope"]) < 1e-12


def test_dose_response_against_scipy():
    rng = np.random.default_rng(18)
    before = rng.standard_normal((25, 2))
    after = before + STRENGTHS[:, None, None] * [0.3, -0.1] + rng.standard_normal((5, 25, 2))
    found = e.dose_response(before, after, STRENGTHS, ["a", "b"]).set_index(["factor", "measure"])["value"]
    for f, name in enumerate("ab"):
        line = scipy_stats.linregress(STRENGTHS, (after - before)[:, :, f].mean(axis=1))
        assert found[name, "slope"] == pytest.approx(line.slope) and found[name, "R^2"] == pytest.approx(line.rvalue**2)
        taus = [scipy_stats.kendalltau(STRENGTHS, after[:, i, f]).statistic for i in range(25)]
        assert found[name, "kendall"] == pytest.approx(np.mean(taus))
        assert found[name, "rising"] == np.mean([(np.diff(after[:, i, f]) > 0).all() for i in range(25)])
    shuffled = rng.permutation(5)
    again = e.dose_response(before, after[shuffled], STRENGTHS[shuffled], ["a", "b"])
    pd.testing.assert_series_equal(again.set_index(["factor", "measure"])["value"], found)


def test_noise_alone_has_no_dose_response():
    rng = np.random.default_rng(19)
    before, after = rng.standard_normal((600, 1)), rng.standard_normal((3, 600, 1))
    found = e.dose_response(before, after, [-1.0, 0.0, 1.0], ["a"]).set_index("measure")
    for measure, chance in (("slope", 0), ("kendall", 0), ("rising", 1 / 6)):  # 3! orders
        assert found.loc[measure, "low"] < chance < found.loc[measure, "high"], measure


def test_intervals_resample_faces_and_not_rows():
    """Readings that differ between faces alone: n is the number of faces, whatever the number of strengths."""
    rng = np.random.default_rng(20)
    before = rng.standard_normal((60, 1))
    slopes = rng.standard_normal((60, 1))
    widths = []
    for count in (3, 31):
        strengths = np.linspace(-1, 1, count)
        table = e.dose_response(before, before + strengths[:, None, None] * slopes, strengths, ["a"])
        found = table.set_index("measure").loc["slope"]
        widths.append(found["high"] - found["low"])
        assert found["n"] == 60
    assert widths[1] == pytest.approx(widths[0]) and widths[0] == pytest.approx(2 * 1.96 * slopes.std() / np.sqrt(60), rel=0.15)


def test_mean_response_is_the_mean_change_with_a_bootstrap_over_faces():
    rng = np.random.default_rng(21)
    before = rng.standard_normal((50, 2))
    after = before + STRENGTHS[:, None, None] * rng.standard_normal((50, 2))
    table = e.mean_response(before, after, STRENGTHS[::-1], ("a", "b"), seed=3)
    assert list(table.columns) == ["factor", "strength", "value", "low", "high", "n"] and len(table) == 10
    assert list(table["strength"][:5]) == sorted(STRENGTHS)
    row = table[(table["factor"] == "b") & (table["strength"] == -2.0)].iloc[0]  # the last of after
    assert row["value"] == pytest.approx((after[4] - before)[:, 1].mean())
    rows = np.random.default_rng((3, 50)).integers(0, 50, (1000, 50))
    draws = (after[4] - before)[rows, 1].mean(axis=1)
    assert (row["low"], row["high"]) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))
    still = table[table["strength"] == 0.0]
    assert (still[["value", "low", "high"]] == 0).all(axis=None)
    pd.testing.assert_frame_equal(table, e.mean_response(before, after, STRENGTHS[::-1], ("a", "b"), seed=3))


def test_success_counts_faces_that_start_on_the_other_side():
    before = np.array([-2.0, -1.0, -0.5, 0.4, 1.0])
    table = e.success(before, before + STRENGTHS[:, None] * 0.8, STRENGTHS, threshold=0.0)
    assert list(table.columns) == ["strength", "value", "low", "high", "n"]
    np.testing.assert_allclose(table["value"], [1, 0.5, 0, 1 / 3, 2 / 3])
    assert list(table["n"]) == [2, 2, 3, 3, 3]
    assert (table["low"][4], table["high"][4]) == wilson_interval(2, 3)
    mirrored = e.success(-before, -before - STRENGTHS[:, None] * 0.8, STRENGTHS, threshold=0.0, sign=-1)
    pd.testing.assert_frame_equal(mirrored, table)
    shifted = e.success(before + 7, before + 7 + STRENGTHS[:, None] * 0.8, STRENGTHS, threshold=7.0)
    np.testing.assert_allclose(shifted["value"], table["value"])
    none = e.success(np.ones(4), np.ones((2, 4)), [-1.0, 1.0], threshold=0.0)
    assert list(none["n"]) == [4, 0] and none["value"][0] == 0 and np.isnan(none["value"][1])


def test_a_true_direction_succeeds_and_a_random_one_does_not():
    rng = np.random.default_rng(22)
    X = rng.standard_normal((1000, 300))
    y = X[:, :1] > 0.3
    for method, least, most in (("mean difference", 0.95, 1.0), ("random", 0.0, 0.15)):
        found = e.directions(X, y, method, ["first"])["first"]
        after = np.stack([e.edit(X, found.w, s, found.sigma)[:, 0] for s in (-3.0, 3.0)])
        table = e.success(X[:, 0], after, [-3.0, 3.0], threshold=0.3)
        assert (table["value"] >= least).all() and (table["value"] <= most).all(), method


def test_readings_that_do_not_fit():
    before, after = np.zeros((6, 2)), np.zeros((3, 6, 2))
    broken = after.copy()
    broken[1, 2, 1] = np.nan
    for function in (e.mean_response, e.dose_response):
        for arguments, message in (
            ((before[:-1], after, [0, 1, 2], ["a", "b"]), "must agree"),
            ((before, after, [0, 1], ["a", "b"]), "must agree"),
            ((before, after[0], [0, 1, 2], ["a", "b"]), "after must have 3 axes"),
            ((before, broken, [0, 1, 2], ["a", "b"]), "after contains NaN"),
            ((before, after, [0, 1, 1], ["a", "b"]), "strengths must differ"),
            ((before, after, [0, 1, 2], ["a"]), "2 different names"),
            ((before, after, [0, 1, 2], "ab"), "2 different names"),
            ((before, after, [0, 1, 2], ["a", "a"]), "2 different names"),
        ):
            with pytest.raises(ValueError, match=message):
                function(*arguments)
    with pytest.raises(ValueError, match="at least three strengths"):
        e.dose_response(before, after[:2], [0, 1], ["a", "b"])
    for arguments, message in (
        ((before[:, 0], after[:, :-1, 0], [0, 1, 2], 0.0), r"after must be \(S, N\) = \(3, 6\)"),
        ((before[:, 0], after[..., 0], [0, 1, 2], 0.0, 2), "sign is 1"),
        ((before, after[..., 0], [0, 1, 2], 0.0), "before must have 1 axes"),
    ):
        with pytest.raises(ValueError, match=message):
            e.success(*arguments)
    good, flat = np.eye(2), np.zeros((2, 2))
    for function in (e.collateral, e.collateral_summary):
        for arguments, message in (
            ((before, {}, {}, ["a", "b"], good), "after is empty"),
            ((before, {"x": before[:-1]}, {"x": "a"}, ["a", "b"], good), "they must agree"),
            ((before, {"x": before}, {}, ["a", "b"], good), "targets.*expected one of the factors: a, b"),
            ((before, {"x": before}, {"x": "c"}, ["a", "b"], good), "'c'"),
            ((before, {"x": before}, {"x": "a"}, ["a", "b"], flat), "1 on the diagonal"),
            ((before, {"x": before}, {"x": "a"}, ["a", "b"], np.eye(3)), "1 on the diagonal"),
            ((before, {"x": before * np.nan}, {"x": "a"}, ["a", "b"], good), r"after\['x'\] contains NaN"),
        ):
            with pytest.raises(ValueError, match=message):
                function(*arguments)
    with pytest.raises(ValueError, match="unknown: c"):
        e.collateral_summary(before, {"x": before}, {"x": "a"}, ["a", "b"], good, others=["c"])
    with pytest.raises(ValueError, match="no factor is left"):
        e.collateral_summary(before, {"x": before}, {"x": "a"}, ["a", "b"], good, others=["a"])


def test_psnr():
    rng = np.random.default_rng(23)
    a = rng.integers(0, 250, (3, 8, 8, 3)).astype(np.uint8)
    b = a.copy()
    b[1], b[2, 0, 0, 0] = a[1] + 5, a[2, 0, 0, 0] + 5
    found = e.psnr(a, b)
    assert found[0] == np.inf
    assert found[1] == pytest.approx(10 * np.log10(255**2 / 25)) and found[2] == pytest.approx(found[1] + 10 * np.log10(192))
    scaled = [(x / 127.5 - 1).astype(np.float32) for x in (a, b)]
    np.testing.assert_allclose(e.psnr(*scaled)[1:], found[1:], rtol=1e-5)
    for pair in (
        (a, scaled[1]), (a, b[:2]), (scaled[0], scaled[1] * 1.1), (scaled[0], scaled[1] * np.nan), (a[0, 0, 0], b[0, 0, 0]),
        (a.astype(int), b.astype(int)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="psnr needs"):
            e.psnr(*pair)


def test_cost_at_an_effect_is_read_off_the_line():
    """Effect 1, 2, 3 and cost 10, 20, 50 of every face: an effect of 0.5 costs 5, of 1 costs 10, of 2.5 costs 35."""
    effect, cost = np.repeat([[1.0], [2.0], [3.0]], 4, axis=1), np.repeat([[10.0], [20.0], [50.0]], 4, axis=1)
    for level, expected in {0.5: 5, 1: 10, 2.5: 35}.items():
        found = e.cost_at_effect([(effect, cost)], level, bootstrap=20)
        assert found == e.Estimate(expected, expected, expected, 4)
    two = e.cost_at_effect([(effect, cost), (effect, 3 * cost)], 2.5, [(effect, cost), (effect, cost)], bootstrap=20)
    assert two.value == pytest.approx(35) and two.n == 8  # (35 + 105) / 2 - 35


def test_cost_of_an_effect_that_is_not_reached_is_infinite():
    effect, cost = np.ones((2, 3)), np.ones((2, 3))
    assert e.cost_at_effect([(effect, cost)], 1.5).value == np.inf
    assert np.isnan(e.cost_at_effect([(effect, cost)], 1.5, [(effect, cost)]).value)
    assert e.cost_at_effect([(effect, cost)], 0.5, [(0.1 * effect, cost)]).value == -np.inf
    assert e.cost_at_effect([(np.array([[2.0, 2.0], [-5.0, -5.0]]), cost[:, :2])], 1.0).value == pytest.approx(0.5)  # the first time counts


def test_cost_differences_are_paired():
    """The rival costs one more for every face, whatever a face costs: no doubt about the difference."""
    rng = np.random.default_rng(0)
    effect, cost = np.ones((1, 50)), rng.uniform(0, 100, (1, 50))
    alone, paired = e.cost_at_effect([(effect, cost)], 1.0), e.cost_at_effect([(effect, cost)], 1.0, [(effect, cost + 1)])
    assert alone.high - alone.low > 10
    assert (paired.value, paired.low, paired.high) == pytest.approx((-1, -1, -1))


@pytest.mark.parametrize(
    ("measured", "rival", "message"),
    [
        ([], [], "at least one"),
        ([(np.ones((2, 3)), np.ones((2, 3)))], [(np.ones((2, 3)), np.ones((2, 3)))] * 2, "as many"),
        ([(np.ones((2, 3)), np.ones((1, 3)))], [], r"\(2, 3\) and \(1, 3\)"),
        ([(np.full((2, 3), np.nan), np.ones((2, 3)))], [], "NaN"),
    ],
)
def test_costs_that_do_not_fit_are_refused(measured, rival, message):
    with pytest.raises(ValueError, match=message):
        e.cost_at_effect(measured, 1.0, rival)


def test_embedding_distance():
    a = np.array([[1.0, 0.0], [1.0, 1.0], [2.0, 0.0], [3.0, 4.0]])
    b = np.array([[5.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-4.0, 3.0]])
    np.testing.assert_allclose(e.embedding_distance(a, b), [0, 1 - np.sqrt(0.5), 2, 1], atol=1e-15)
    tiny = e.embedding_distance(np.array([[1.0, 0.0]]), np.array([[1.0, 1e-9]]))
    assert tiny[0] == pytest.approx(0.5e-18, rel=1e-6, abs=0)
    for pair, message in (((a, b[:2]), "one shape"), ((a, b * 0), "zero vector"), ((a, b * np.nan), "NaN")):
        with pytest.raises(ValueError, match=message):
            e.embedding_distance(*pair)


# --- engineered spurious correlation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.5, 0.9, -0.5, 1.0])
def test_phi_and_margins_are_exact(rho):
    rng = np.random.default_rng(24)
    target, confounder = rng.random((2, 4000)) < [[0.5], [0.3]]
    rows = e.resample_with_correlation(target, confounder, rho, 400, seed=1)
    t, c = target[rows], confounder[rows]
    assert np.corrcoef(t, c)[0, 1] == pytest.approx(rho, abs=1e-12)
    assert t.mean() == c.mean() == 0.5 and len(np.unique(rows)) == len(rows) == 400 and (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, e.resample_with_correlation(target, confounder, rho, 400, seed=1))
    assert set(rows) != set(e.resample_with_correlation(target, confounder, rho, 400, seed=2))


def test_phi_is_rounded_and_attributes_stay_balanced():
    target, confounder = np.random.default_rng(25).random((2, 500)) < 0.5
    for size, rho in ((10, 0.3), (54, 0.77), (2, 0.1)):
        rows = e.resample_with_correlation(target, confounder, rho, size)
        assert target[rows].mean() == confounder[rows].mean() == 0.5
        assert abs(np.corrcoef(target[rows], confounder[rows])[0, 1] - rho) <= 2 / size + 1e-12


def test_data_that_cannot_provide_the_correlation():
    target = np.repeat([True, True, False, False], [50, 4, 60, 40])
    confounder = np.repeat([True, False, True, False], [50, 4, 60, 40])
    assert e.largest_resample(target, confounder, 0.0) == 16
    assert e.largest_resample(target, confounder, 0.8) == 88  # 40 + 4 + 4 + 40 by rounding, phi = 0.82
    for rho in (0.0, 0.25, 0.8, 0.9, -1.0):
        size = e.largest_resample(target, confounder, rho)
        e.resample_with_correlation(target, confounder, rho, size)
        with pytest.raises(ValueError, match=f"the largest size at this rho is {size}"):
            e.resample_with_correlation(target, confounder, rho, size + 2)
    assert e.largest_resample(target, target, 0.0) == 0
    with pytest.raises(ValueError, match="rows with target True and confounder False, there are 4"):
        e.resample_with_correlation(target, confounder, 0.0, 100)
    with pytest.raises(ValueError, match="largest size at this rho is 0"):
        e.resample_with_correlation(np.ones(100, bool), confounder[:100], 0.5, 20)
    for size in (0, 3, -2):
        with pytest.raises(ValueError, match="even"):
            e.resample_with_correlation(target, confounder, 0.0, size)
    for rho in (1.1, np.nan):
        with pytest.raises(ValueError, match="from -1 to 1"):
            e.resample_with_correlation(target, confounder, rho, 8)
    with pytest.raises(ValueError, match="0 and 1"):
        e.resample_with_correlation(target, confounder[:-1], 0.0, 8)
    with pytest.raises(ValueError, match="0 and 1"):
        e.resample_with_correlation(np.where(target, np.nan, 1.0), confounder.astype(float), 0.0, 8)


def test_orthogonalising_removes_an_engineered_confounder():
    """The right answer is known: target and confounder are coordinates 0 and 1 of white latents."""
    X = np.random.default_rng(26).standard_normal((20000, 15))
    Y = X[:, :2] > 0
    for rho in (0.0, 0.9):
        rows = e.resample_with_correlation(Y[:, 0], Y[:, 1], rho, 4000)
        found = e.directions(X[rows], Y[rows], "mean difference", ["target", "confounder"])
        leak = found["target"].w[1] / found["target"].w[0]
        assert leak == pytest.approx(rho, abs=0.06)
        # the confounder's reader comes from data in which the two are independent
        free = e.directions(X, Y, "mean difference", ["target", "confounder"])["confounder"].w
        clean = e.orthogonalise(found["target"].w, free)
        assert abs(clean.w[1] / clean.w[0]) < 0.03
        assert clean.share_left == pytest.approx(1 / np.sqrt(1 + rho**2), abs=0.03)


# --- the edits of Figure 5 -------------------------------------------------------------------------------------------


def test_pairs_are_those_of_figure_5_as_far_as_the_data_have_them():
    assert e.kept_apart(["Male", "Smiling", "No_Beard", "Bald"]) == {"Smiling": ["Male"], "Male": ["No_Beard"]}
    assert e.kept_apart(["Male", "Smiling"]) == {"Smiling": ["Male"]}
    assert e.kept_apart(["cat", "dog", "hen"]) == {"cat": ["dog"], "dog": ["cat"]}


def test_removals_are_orthogonal_to_what_they_remove():
    X, Y, *_ = world()
    found, S = e.directions(X, Y, "mean difference", NAMES), e.covariance(X)
    removed = {"first": ["second"], "third": ["first", "second"]}
    result, left = e.removals(found, removed, S)
    settings = ["plain", "pair removed", "pair removed, covariance"]
    both = ["all removed", "all removed, covariance"]  # of the third, all others are the pair
    assert list(result) == [(s, "first") for s in settings + both] + [(s, "third") for s in settings]
    np.testing.assert_array_equal(result["plain", "first"], found["first"].w)
    for s in settings[1:]:
        assert abs(result[s, "first"] @ found["second"].w) < 1e-12 and abs(result[s, "first"] @ found["third"].w) > 1e-3
    for s in both:
        np.testing.assert_allclose(result[s, "first"] @ found.w[1:].T, 0, atol=1e-12)
    assert left["removed"].tolist() == ["second", "all 2 others", "first, second"]
    assert left["Euclidean"][1] < left["Euclidean"][0] < 1


def test_biased_rows_turn_a_direction_towards_the_other_attribute():
    """Target and confounder are coordinates 0 and 1 of white latents."""
    X = np.random.default_rng(30).standard_normal((20000, 8))
    found, size = e.biased_directions(X, X[:, :2] > [0.0, 0.3], ("target", "confounder"), (0.0, 0.9), C=1e-3)
    assert len(found) == 6 and size % 2 == 0 and size == min(e.largest_resample(*(X[:, :2] > [0.0, 0.3]).T, rho) for rho in (0.0, 0.9))
    leak = {key: w[1] / w[0] for key, w in found.items()}
    assert abs(leak["probe", 0.0]) < 0.05 and abs(leak["mean difference", 0.0]) < 0.05
    assert leak["mean difference", 0.9] > 0.8 and leak["mean difference", 0.9] > leak["probe", 0.9] > leak["probe, other removed", 0.9]


def test_other_probes_read_what_an_edit_does():
    """White latents: a step of 1 along coordinate 0 moves the first score by one standard deviation and no other."""
    X = np.random.default_rng(31).standard_normal((4000, 6))
    steps = np.array([np.eye(6)[0], 2 * np.eye(6)[1]])
    read = e.read_by_others(X, X[:, :3] > 0, NAMES, steps, C=1e-2, resamples=30)
    assert read.shape == (31, 2, 3)
    np.testing.assert_allclose(read[0], [[1, 0, 0], [0, 2, 0]], atol=0.1)
    np.testing.assert_allclose(read[1:].mean(axis=0), read[0], atol=1e-12)  # centred on the probes of all rows
    assert (read[1:].std(axis=0) > 0).all()
    np.testing.assert_array_equal(read, e.read_by_others(X, X[:, :3] > 0, NAMES, steps, C=1e-2, resamples=30))


def test_a_resample_keeps_both_classes():
    X = np.random.default_rng(32).standard_normal((40, 3))
    rare = np.arange(40)[:, None] < [1, 39]
    assert e.read_by_others(X, rare, ["rare", "common"], X[:2], C=1.0, resamples=20).shape == (21, 2, 2)
    with pytest.raises(ValueError, match="single class"):
        e.read_by_others(X, np.ones((40, 1)), ["always"], X[:2], C=1.0)
