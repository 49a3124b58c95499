"""Out of core: the same results as in memory, from a file and a small block, in float64 and in float32."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from une_utils import stored
from une_utils.analysis import gaussianity as g
from une_utils.analysis import outofcore, probes
from une_utils.analysis.alignment import MaxvarGCCA, RidgeMap, fit_maps, learning_curve
from une_utils.stored import StoredRows

N, D, K, A = 400, 48, 8, 3


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A low-rank signal plus noise in float16 on disk, what it is a map of, and attributes that depend on it."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(N, K))
    x = (z @ rng.normal(size=(K, D)) * np.linspace(2, 0.5, D) + 0.5 * rng.normal(size=(N, D)) + 3).astype(np.float16)
    file = tmp_path_factory.mktemp("stored") / "x.npy"
    np.save(file, x)
    target = (z @ rng.normal(size=(K, 5)) + 0.1 * rng.normal(size=(N, 5)) - 1).astype(np.float32)
    labels = z[:, :A] + 0.5 * rng.normal(size=(N, A)) > [0, 0.5, 1]
    return StoredRows(np.load(file, mmap_mode="r")), x.astype(np.float32), target, labels


@pytest.fixture(params=["float64", "float32"], autouse=True)
def precision(request, monkeypatch):
    """Blocks of 7 rows, and the sums of large dimensions at a small one."""
    monkeypatch.setattr(stored, "BLOCK_BYTES", 4 * D * 7)
    if request.param == "float32":
        monkeypatch.setattr(outofcore, "_DOUBLE_BYTES", 0)
    return 1.0 if request.param == "float64" else 1e3  # by how much wider the tolerances are


TRAIN = np.arange(N) % 4 > 0


def test_means_and_scatter(world, precision):
    X, x, _, _ = world
    mean = outofcore.column_means(X)
    np.testing.assert_allclose(mean, x.mean(axis=0, dtype=float), rtol=1e-12)
    found, centred = outofcore.scatter(X, mean), x - x.mean(axis=0, dtype=float)
    np.testing.assert_allclose(np.triu(found), np.triu(centred.T @ centred), rtol=0, atol=1e-8 * precision * N)
    assert found.dtype == ("float64" if precision == 1 else "float32")


def test_pca_is_scikit_learns(world, precision):
    X, x, _, _ = world
    expected = PCA(K, svd_solver="full").fit(x.astype(float)[TRAIN])
    found = outofcore.fit_pca(X[TRAIN], K)
    assert isinstance(found, PCA)
    for name in ("mean_", "explained_variance_", "explained_variance_ratio_", "noise_variance_", "singular_values_"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-8 * precision, err_msg=name)
    np.testing.assert_allclose(found.components_, expected.components_, atol=1e-7 * precision)
    np.testing.assert_allclose(outofcore.transform(found, X), expected.transform(x), rtol=1e-4, atol=1e-4 * min(precision, 20))
    np.testing.assert_allclose(outofcore.transform(found, x), outofcore.transform(found, X), atol=1e-4)
    np.testing.assert_allclose(found.transform(x[:3]), expected.transform(x[:3]), rtol=1e-4, atol=1e-3)


def test_standardised_pca(world, precision):
    X, x, _, _ = world
    scaler, pca = outofcore.fit_standardised_pca(X, K)
    expected = StandardScaler().fit(x.astype(float))
    np.testing.assert_allclose(scaler.scale_, expected.scale_, rtol=1e-8 * precision)
    np.testing.assert_allclose(scaler.transform(x), expected.transform(x), atol=1e-5)
    reference = PCA(K, svd_solver="full").fit(expected.transform(x.astype(float)))
    np.testing.assert_allclose(pca.components_, reference.components_, atol=1e-7 * precision)
    assert (pca.mean_ == 0).all()


def test_pca_of_degenerate_rows(world):
    X, x, _, _ = world
    constant = x.copy()
    constant[:, 5] = 7
    scaler, pca = outofcore.fit_standardised_pca(StoredRows(constant), 4)
    assert scaler.scale_[5] == 1 and np.abs(pca.components_[:, 5]).max() < 1e-6
    for k in (0, D + 1):
        with pytest.raises(ValueError, match=f"n_components = {k} "):
            outofcore.fit_pca(X, k)
    broken = x.astype(np.float16)
    broken[9, 3] = np.nan
    with pytest.raises(ValueError, match="NaN or inf"):
        outofcore.fit_pca(StoredRows(broken), 4)
    with pytest.raises(ValueError, match="NaN or inf"):
        outofcore.fit_pca(broken, 4)


def test_probe(world, precision):
    """The same decisions as the probe in memory with all its rows there, whose PCA is exact at this size."""
    X, x, _, Y = world
    C, table = probes.select_C(x[TRAIN], Y[TRAIN], n_components=K)
    C_stored, stored_table = probes.select_C(X[TRAIN], Y[TRAIN], n_components=K)
    assert C == C_stored
    np.testing.assert_allclose(stored_table["mean_auc"], table["mean_auc"], atol=2e-3)
    expected = probes.make_probe(K, C).fit(x[TRAIN].astype(float), Y[TRAIN])
    found = probes.make_probe(K, C).fit(X[TRAIN], Y[TRAIN])
    scores = found.decision_function(X[~TRAIN])
    np.testing.assert_allclose(scores, expected.decision_function(x[~TRAIN].astype(float)), atol=1e-4 * min(precision, 20))
    np.testing.assert_allclose(found.decision_function(x[~TRAIN]), scores, atol=1e-4)
    W, b = found.latent_weights()
    np.testing.assert_allclose(x[~TRAIN] @ W.T + b, scores, atol=1e-3)
    control = [probes.permuted_control(found, rows[TRAIN], Y[TRAIN], rows[~TRAIN], Y[~TRAIN], list("abc"), bootstrap=20) for rows in (X, x)]
    np.testing.assert_allclose(control[0]["auc"], control[1]["auc"], atol=2e-3)


def test_probe_of_all_dimensions_says_what_to_do(world):
    X, _, _, Y = world
    with pytest.raises(ValueError, match="probe of all 48 dimensions .* give n_components"):
        probes.make_probe(None).fit(X, Y)
    with pytest.raises(TypeError, match="not loaded as a whole"):
        probes.RidgeLogistic().fit(X, Y)


@pytest.mark.parametrize("alphas", [None, [0.1, 10.0, 1e3]])
def test_ridge(world, precision, alphas):
    X, x, y, _ = world
    expected, found = RidgeMap(alphas).fit(x[TRAIN].astype(float), y[TRAIN]), RidgeMap(alphas).fit(X[TRAIN], y[TRAIN])
    np.testing.assert_allclose(found.alpha_, expected.alpha_, rtol=1e-8 * precision)
    np.testing.assert_allclose(found.gcv_, expected.gcv_, rtol=1e-7 * precision)
    np.testing.assert_allclose(found.coef_, expected.coef_, atol=1e-7 * precision)
    np.testing.assert_allclose(found.predict(X[~TRAIN]), expected.predict(x[~TRAIN]), atol=1e-5 * precision)
    assert found.score(X[~TRAIN], y[~TRAIN]) == pytest.approx(expected.score(x[~TRAIN], y[~TRAIN]), abs=1e-5)
    maps = fit_maps(X[TRAIN], {"y": y[TRAIN], "first": y[TRAIN, 0]}, alphas)
    np.testing.assert_allclose(maps["y"].coef_, found.coef_)
    assert maps["first"].predict(X[:4]).shape == (4,)


def test_ridge_of_few_rows_and_bad_targets(world):
    X, x, y, _ = world
    few = np.arange(0, N, 20)  # fewer rows than features: they are read
    np.testing.assert_allclose(RidgeMap(1.0).fit(X[few], y[few]).coef_, RidgeMap(1.0).fit(x[few], y[few]).coef_, atol=1e-5)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        RidgeMap().fit(X, y[:-1])
    with pytest.raises(ValueError, match="y contains NaN"):
        RidgeMap().fit(X, np.where(np.arange(N)[:, None] == 3, np.nan, y))
    curves = [learning_curve(rows[TRAIN], y[TRAIN], rows[~TRAIN], y[~TRAIN], [100, 300], [10.0], bootstrap=20) for rows in (X, x)]
    np.testing.assert_allclose(curves[0]["r2"], curves[1]["r2"], atol=1e-4)


def test_gcca_of_reduced_views(world, precision):
    X, x, y, _ = world
    reduced = outofcore.reduce_views([X, y], TRAIN, K)
    assert [view.shape for view in reduced] == [(N, K), (N, 5)] and all(view.dtype == np.float32 for view in reduced)
    exact = [PCA(k, svd_solver="full").fit(view[TRAIN].astype(float)).transform(view) for view, k in ((x, K), (y, 5))]
    found, expected = (MaxvarGCCA(4, 1e-3).fit([view[TRAIN] for view in views]) for views in (reduced, exact))
    np.testing.assert_allclose(found.eigenvalues_, expected.eigenvalues_, rtol=1e-4)
    assert found.score([v[~TRAIN] for v in reduced]) == pytest.approx(expected.score([v[~TRAIN] for v in exact]), abs=1e-4)
    with pytest.raises(ValueError, match="give outofcore.reduce_views"):
        MaxvarGCCA(4).fit([X, y])


def test_an_array_is_left_as_it_is_and_stored_rows_are_reduced(world):
    X, x, _, _ = world
    assert outofcore.in_memory(x, TRAIN) is x
    np.testing.assert_array_equal(outofcore.in_memory(X, TRAIN, K), outofcore.reduce_view(X, TRAIN, K))


def test_components_are_kept_where_the_rows_have_a_place(world, tmp_path, monkeypatch):
    X, *_ = world
    placed = StoredRows(X.array, X.rows, tmp_path)
    first = outofcore.reduce_view(placed, TRAIN, K)
    monkeypatch.setattr(outofcore, "fit_pca", lambda *_: pytest.fail("computed again"))
    for same in (TRAIN, np.flatnonzero(TRAIN)):
        np.testing.assert_array_equal(outofcore.reduce_view(placed, same, K), first)
    for other in ((placed, ~TRAIN, K), (placed, TRAIN, K - 1), (placed[:], TRAIN, K)):  # other rows, another number, a choice of rows
        with pytest.raises(pytest.fail.Exception, match="computed again"):
            outofcore.reduce_view(*other)


def test_a_full_disk_costs_no_result(world, tmp_path, monkeypatch):
    def full(file, array):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    X, *_ = world
    monkeypatch.setattr(outofcore.np, "save", full)
    with pytest.warns(UserWarning, match="No space left on device.*computed again"):
        found = outofcore.reduce_view(StoredRows(X.array, X.rows, tmp_path), TRAIN, K)
    assert found.shape == (N, K) and not list(tmp_path.iterdir())


def test_gaussianity(world):
    X, x, _, _ = world
    for test in (g.projection_tests, g.coordinate_tests, g.principal_direction_tests):
        found, expected = test(X, rows=50), test(X.array, rows=50)  # the memory map as it is
        for name in g.TESTS:
            np.testing.assert_allclose(found.tests[name].statistic, expected.tests[name].statistic, rtol=1e-4, err_msg=f"{test} {name}")
    some = np.arange(N)[::-2]
    np.testing.assert_allclose(
        g.coordinate_tests(X[some], rows=50).tests["Shapiro-Wilk"].statistic, g.coordinate_tests(x[some], rows=50).tests["Shapiro-Wilk"].statistic
    )
    for rows in (slice(None), slice(0, 30)):
        np.testing.assert_allclose(g.covariance_spectrum(X[rows]), g.covariance_spectrum(x[rows]), rtol=1e-6, atol=1e-9)


def test_moments(world):
    X, x, _, _ = world
    found, expected = g.moments(X), g.moments(x.astype(float))
    for name in ("mean", "variance", "skewness", "excess_kurtosis", "norms"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-11, err_msg=name)
    shifted = np.hstack([x[:, :2] + 1e4, np.full((N, 1), 0.1)]).astype(np.float32)
    assert np.isnan(g.moments(shifted).skewness).tolist() == [False, False, True]
    with pytest.raises(ValueError, match="NaN or inf"):
        g.moments(np.where(x == x[3, 3], np.inf, x))
