import numpy as np
import pytest
from scipy import stats as scipy_stats

from une_utils.analysis import gaussianity as g
from une_utils.analysis.stats import wilson_interval


def samples(n):
    rng = np.random.default_rng(n)
    return np.concatenate(
        [
            rng.standard_normal((60, n)),
            rng.exponential(size=(20, n)),
            1e4 + rng.random((20, n)),
            rng.standard_t(3, size=(20, n)) * 1e-3,
            rng.integers(0, 3, (10, n)) + np.arange(n) // (n - 1),  # ties, never constant
        ]
    )


@pytest.mark.parametrize("n", [8, 11, 12, 50, 250])
def test_statistics_p_values_and_decisions_are_scipys(n):
    x = samples(n)
    x = x[np.abs(scipy_stats.skew(x, axis=1)) > 1e-12]  # see the next test
    pearson = scipy_stats.normaltest(x, axis=1)
    ours = g.dagostino_pearson(x)
    np.testing.assert_allclose(ours.statistic, pearson.statistic, rtol=1e-6)
    np.testing.assert_allclose(ours.pvalue, pearson.pvalue, atol=1e-6)
    np.testing.assert_array_equal(ours.passed, pearson.pvalue > 0.05)

    shapiro = np.array([scipy_stats.shapiro(row) for row in x])
    ours = g.shapiro_wilk(x)
    np.testing.assert_allclose(ours.statistic, shapiro[:, 0], rtol=1e-6)
    np.testing.assert_allclose(ours.pvalue, shapiro[:, 1], atol=1e-6)
    np.testing.assert_array_equal(ours.passed, shapiro[:, 1] > 0.05)
    assert 0 < ours.passed.sum() < len(x)


def test_symmetric_samples_are_where_scipy_is_off():
    """SciPy replaces a skewness of exactly 0 by a score for 1; ours is 0, so K^2 is the squared kurtosis score."""
    x = np.concatenate([np.arange(1, 11), -np.arange(1.0, 11)])
    assert g.dagostino_pearson(x).statistic == pytest.approx(scipy_stats.kurtosistest(x).statistic ** 2)
    assert g._skewness_score(np.array(0.0), 20) == 0


@pytest.mark.skipif(not hasattr(scipy_stats, "anderson"), reason="SciPy announced that it will drop `anderson`")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("n", [8, 12, 50, 250])
def test_anderson_darling_statistic_and_decision_are_scipys(n):
    x = samples(n)
    theirs = [scipy_stats.anderson(row) for row in x]
    statistic = np.array([t.statistic for t in theirs])
    critical = g.AD_CRITICAL / (1 + 0.75 / n + 2.25 / n**2)
    ours = g.anderson_darling(x)
    np.testing.assert_allclose(ours.statistic, statistic, rtol=1e-6)
    np.testing.assert_array_equal(ours.passed, statistic < critical)
    clear = np.abs(statistic - critical) > 0.03  # versions of SciPy differ that much in their rounded tables
    decision = np.array([t.statistic < t.critical_values[2] for t in theirs])
    np.testing.assert_array_equal(ours.passed[clear], decision[clear])
    assert clear.sum() > 0.8 * len(x)


def test_anderson_darling_p_value_follows_its_table_and_its_null():
    # D'Agostino and Stephens (1986), Table 4.7: significance 10, 5, 2.5, 1 % of A*^2
    table = g._anderson_darling_pvalue(np.array([0.631, 0.752, 0.873, 1.035]))
    np.testing.assert_allclose(table, [0.1, 0.05, 0.025, 0.01], rtol=0.02)
    grid = g._anderson_darling_pvalue(np.linspace(0.11, 12, 4000))
    assert (np.diff(grid) < 3e-3).all() and 0 <= grid.min() and grid.max() <= 1  # pieces of the table meet within 0.003
    p = g.anderson_darling(np.random.default_rng(3).standard_normal((20000, 60))).pvalue
    for level in (0.01, 0.05, 0.2, 0.5, 0.9):
        low, high = wilson_interval(level * 20000, 20000, 0.9999)
        assert low - 0.01 * level < (p <= level).mean() < high + 0.03 * level


@pytest.mark.parametrize("test", g.TESTS.values())
def test_axis_scale_and_offset_do_not_matter(test):
    x = np.random.default_rng(4).gamma(9, size=(30, 40))
    reference = test(x)
    np.testing.assert_allclose(test(x.T, axis=0).statistic, reference.statistic)
    np.testing.assert_allclose(test(1e-6 * x + 5).statistic, reference.statistic, rtol=1e-4)
    np.testing.assert_array_equal(test(x.reshape(5, 6, 40)).passed, reference.passed.reshape(5, 6))
    assert test(x[0]).statistic == pytest.approx(reference.statistic[0])


@pytest.mark.parametrize("test", g.TESTS.values())
def test_degenerate_samples(test):
    constant = test(np.stack([np.full(50, 0.1), np.random.default_rng(5).standard_normal(50)]))
    assert not constant.passed[0] and constant.pvalue[0] == 0 and constant.passed[1]
    assert not np.isnan(constant.statistic).any()
    for bad in (np.full((2, 7), 1.0), np.array([[np.nan] * 10]), np.array([[np.inf] + [0.0] * 10])):
        with pytest.raises(ValueError):
            test(bad)


def test_shapiro_wilk_knows_its_range():
    with pytest.raises(ValueError, match="5000"):
        g.shapiro_wilk(np.zeros(5001))


def test_gaussian_latents_pass_at_the_nominal_rate():
    result = g.projection_tests(g.control("N(0, I)", 4000, 64), projections=2000, rows=100)
    for name, rate in result.pass_rates().items():
        low, high = wilson_interval(0.95 * 2000, 2000, 0.9999)
        assert low < rate.value < high, name
        assert rate.low < rate.value < rate.high and rate.n == 2000


def test_bimodal_control_passes_as_rarely_as_in_the_paper_at_any_dimension():
    for d in (64, 512):
        rates = g.projection_tests(g.control("bimodal mixture", 2000, d), projections=1500).pass_rates()
        assert 0.12 < rates["Anderson-Darling"].value < 0.21  # paper: 15.88 %


def test_random_projections_hide_what_coordinates_show():
    """Diaconis-Freedman: every control of independent coordinates passes on random projections and fails on its coordinates."""
    for name in ("uniform", "±1 signs", "exponential", "95 % zeros"):
        x = g.control(name, 600, 3000)
        hidden = g.projection_tests(x, projections=300).pass_rates()
        shown = g.coordinate_tests(x, coordinates=200).pass_rates()
        for test in g.TESTS:
            assert hidden[test].value > 0.85, (name, test)
            assert shown[test].value < 0.1, (name, test)
    normal = g.coordinate_tests(g.control("N(0, I)", 600, 3000)).pass_rates()
    assert all(0.92 < rate.value < 0.98 for rate in normal.values())


def test_power_curve_rises_with_the_dimension():
    table = g.power_curve((1, 1024), n=400, projections=150, names=("N(0, I)", "exponential"))
    assert len(table) == 2 * 2 * 3
    rate = table.groupby(["control", "dimensions"])["pass_rate"]
    assert rate.max()["exponential", 1] == 0 and rate.min()["exponential", 1024] > 0.85
    assert rate.min()["N(0, I)"].min() > 0.88


def test_principal_directions_find_structure_that_projections_miss():
    rng = np.random.default_rng(6)
    x = rng.standard_normal((1000, 300)).astype(np.float32)
    x += np.outer(rng.choice([-1, 1], 1000), np.where(np.arange(300) < 30, 1.5, 0)).astype(np.float32)
    x[:, 7] = 3.0  # a constant coordinate takes no part
    principal = g.principal_direction_tests(x, components=5)
    assert principal.directions == "principal" and list(principal.index) == [0, 1, 2, 3, 4]
    assert not principal.tests["Shapiro-Wilk"].passed[0]
    null = g.principal_direction_tests(g.control("N(0, I)", 1000, 300), components=100)
    assert all(0.85 < rate.value for rate in null.pass_rates().values())


@pytest.mark.parametrize("shape", [(60, 200), (200, 30)])
def test_leading_axes_are_the_principal_axes(shape):
    x = (np.random.default_rng(7).standard_normal(shape) * np.logspace(0, -1, shape[1])).astype(np.float32)
    x -= x.mean(axis=0)
    axes = g._leading_axes(x, 5)
    expected = np.linalg.svd(x, full_matrices=False)[2][:5]
    np.testing.assert_allclose(np.abs((axes * expected).sum(axis=1)), 1, atol=1e-4)
    np.testing.assert_allclose(axes @ axes.T, np.eye(5), atol=1e-4)


def test_duplicate_rows_leave_fewer_principal_directions():
    x = np.repeat(np.random.default_rng(8).standard_normal((4, 50)), 10, axis=0)
    assert 1 <= len(g.principal_direction_tests(x, components=20).index) <= 4


@pytest.mark.parametrize("gathered_row", [0, 10**9], ids=["few rows gathered", "all rows projected"])
def test_projections_are_those_of_the_directions_and_rows(monkeypatch, gathered_row):
    monkeypatch.setattr(g, "_GATHERED_ROW", gathered_row)
    x = np.random.default_rng(9).standard_normal((300, 500)).astype(np.float32)
    group = np.arange(7) // 3
    rows = g._draw_rows(1, group, 300, 20)
    directions = g._random_directions(1, 0, 7, 500)
    out = g._project(x, lambda start, stop: directions[start:stop], group, rows)
    expected = np.stack([x[rows[k]].astype(float) @ directions[p].astype(float) for p, k in enumerate(group)])
    np.testing.assert_allclose(out, expected, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, atol=1e-6)
    assert all(len(set(r)) == 20 for r in rows) and rows.max() < 300


@pytest.mark.parametrize("gathered_row", [0, 10**9], ids=["few rows gathered", "all rows projected"])
def test_every_storage_gives_the_same_numbers(tmp_path, monkeypatch, gathered_row):
    monkeypatch.setattr(g, "_GATHERED_ROW", gathered_row)
    x = np.random.default_rng(10).standard_normal((100, 64)).astype(np.float16)
    np.save(tmp_path / "x.npy", x)
    statistics = lambda latents: g.projection_tests(latents, projections=20, rows=30).to_frame()["statistic"]
    reference = statistics(x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for stored in (x.astype(np.float32), mapped, np.asfortranarray(x), np.repeat(x, 2, axis=0)[::2]):
        np.testing.assert_allclose(statistics(stored), reference, rtol=1e-4)
    monkeypatch.setattr(g, "_TILE_BYTES", 1)
    monkeypatch.setattr(g, "_BLOCK_BYTES", 1)
    np.testing.assert_allclose(statistics(x), reference, rtol=1e-4)


def test_the_seed_and_the_number_of_the_direction_decide():
    x = g.control("exponential", 200, 20)
    defaults = {"projections": 30, "rows": 50, "seed": 1}
    run = lambda **options: g.projection_tests(x, **defaults | options).tests["Shapiro-Wilk"].statistic
    np.testing.assert_array_equal(run(), run())
    np.testing.assert_allclose(run(projections=10), run()[:10], rtol=1e-6)
    assert not np.allclose(run(), run(seed=2))


def test_shared_rows_are_shared_and_their_uncertainty_is_wider():
    x = g.control("N(0, I)", 2000, 1)  # at D = 1 a draw of rows decides everything
    shared = g.projection_tests(x, projections=600, rows=50, subsets=20)
    assert len(np.unique(shared.group)) == 30
    statistic = shared.tests["Anderson-Darling"].statistic.reshape(30, 20)
    np.testing.assert_allclose(statistic, statistic[:, :1].repeat(20, axis=1), rtol=1e-6)
    alone = g.projection_tests(x, projections=600, rows=50).pass_rates()["Anderson-Darling"]
    wide = shared.pass_rates()["Anderson-Darling"]
    assert wide.high - wide.low > 2.5 * (alone.high - alone.low)
    one_draw = g._clustered_proportion(np.ones(50, bool), np.zeros(50, int))
    assert (one_draw.low, one_draw.high) == wilson_interval(1, 1)


def test_results_as_tables():
    result = g.projection_tests(g.control("uniform", 100, 3), projections=12, rows=500)
    assert result.rows == 100  # capped at N
    frame, summary = result.to_frame(), result.summary()
    assert len(frame) == 3 * 12 and list(summary["test"]) == list(g.TESTS)
    for _, row in summary.iterrows():
        part = frame[frame["test"] == row["test"]]
        assert row["pass_rate"] == part["passed"].mean() and row["mean_statistic"] == pytest.approx(part["statistic"].mean())


@pytest.mark.parametrize("call", [g.projection_tests, g.coordinate_tests, g.principal_direction_tests, g.moments])
def test_latents_that_cannot_be_tested(call):
    with pytest.raises(ValueError, match="rows"):
        call(np.zeros((7, 5)))
    with pytest.raises(ValueError):
        call(np.zeros(20))
    x = np.random.default_rng(0).standard_normal((40, 5))
    x[:, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        call(x)


def test_counts_below_one_are_refused():
    for options in ({"projections": 0}, {"subsets": 0}):
        with pytest.raises(ValueError):
            g.projection_tests(np.zeros((20, 5)), **options)


def test_controls_are_standardised_and_different():
    arrays = g.controls(4000, 10, seed=3)
    assert tuple(arrays) == g.CONTROLS
    for name, x in arrays.items():
        assert x.shape == (4000, 10) and x.dtype == np.float32, name
        np.testing.assert_allclose(x.mean(axis=0), 0, atol=0.08)
        np.testing.assert_allclose(x.std(axis=0), 1, atol=0.15 if name == "95 % zeros" else 0.06)
    assert (np.abs(arrays["±1 signs"]) == 1).all()
    assert np.mean(arrays["95 % zeros"] == 0) == pytest.approx(0.95, abs=0.01)
    np.testing.assert_array_equal(g.control("uniform", 50, 4), g.control("uniform", 50, 4))
    with pytest.raises(ValueError, match="unknown control"):
        g.control("gaussian", 10, 2)


@pytest.mark.parametrize("shape", [(30, 80), (80, 30), (40, 40)])
def test_covariance_spectrum_is_numpys(shape):
    x = np.random.default_rng(11).gamma(2.0, size=shape)
    expected = np.sort(np.linalg.eigvalsh(np.cov(x, rowvar=False)))[::-1][: min(shape[0] - 1, shape[1])]
    np.testing.assert_allclose(g.covariance_spectrum(x), expected, rtol=1e-8, atol=1e-10)


def test_covariance_spectrum_in_blocks_and_of_bad_input(monkeypatch):
    for shape in ((30, 80), (80, 30)):
        x = np.random.default_rng(12).standard_normal(shape)
        whole = g.covariance_spectrum(x)
        monkeypatch.setattr(g, "_BLOCK_BYTES", 8 * 80 * 7)
        np.testing.assert_allclose(g.covariance_spectrum(x), whole, atol=1e-12)
    for bad in (np.zeros((1, 4)), np.full((5, 4), np.nan)):
        with pytest.raises(ValueError):
            g.covariance_spectrum(bad)


@pytest.mark.parametrize("n, d", [(25, 60), (60, 25), (2, 5), (9, 1)])
def test_spectrum_null_is_the_law_of_the_sample_spectrum(n, d):
    """The bidiagonal model against direct draws: first, middle and last eigenvalue."""
    fast = g.spectrum_null(n, d, repeats=400, seed=1)
    rng = np.random.default_rng(2)
    slow = np.stack([g.covariance_spectrum(rng.standard_normal((n, d))) for _ in range(400)])
    assert fast.shape == slow.shape == (400, min(n - 1, d))
    for place in {0, fast.shape[1] // 2, fast.shape[1] - 1}:
        assert scipy_stats.ks_2samp(fast[:, place], slow[:, place]).pvalue > 1e-3
    assert (np.diff(fast, axis=1) <= 0).all()


def test_spectrum_null_tells_white_from_coloured():
    null = g.spectrum_null(200, 50, repeats=50)
    x = np.random.default_rng(13).standard_normal((200, 50))
    assert null[:, 0].min() < g.covariance_spectrum(x)[0] < null[:, 0].max()
    assert g.covariance_spectrum(x * np.linspace(0.5, 2, 50))[0] > null[:, 0].max()


def test_effective_dimensions():
    equal, single = np.array([2.0, 2, 2, 2, 0]), np.array([3.0, 0, 0])
    for measure in (g.effective_rank, g.participation_ratio):
        assert measure(equal) == pytest.approx(4) and measure(single) == pytest.approx(1)
        assert measure(np.stack([equal, equal])).shape == (2,)
    assert g.participation_ratio(np.array([3.0, 1])) == pytest.approx(1.6)


def test_moments_are_scipys_and_norms_follow_chi():
    x = g.control("exponential", 500, 30)
    m = g.moments(x)
    np.testing.assert_allclose(m.mean, x.mean(axis=0, dtype=float), atol=1e-8)
    np.testing.assert_allclose(m.variance, x.var(axis=0, dtype=float))
    np.testing.assert_allclose(m.skewness, scipy_stats.skew(x.astype(float)))
    np.testing.assert_allclose(m.excess_kurtosis, scipy_stats.kurtosis(x.astype(float)))
    np.testing.assert_allclose(m.norms, np.linalg.norm(x, axis=1), rtol=1e-6)
    for d in (1, 30, 999, 1000, 16384):
        m = g.moments(np.zeros((8, d)))
        assert m.expected_norm == pytest.approx(scipy_stats.chi(d).mean(), rel=1e-9)
        assert m.expected_norm_std == pytest.approx(np.sqrt(0.5 - 1 / (8 * d)) if d > 100 else scipy_stats.chi(d).std(), rel=1e-5)
        assert np.isnan(m.skewness).all() and np.isnan(m.excess_kurtosis).all()


def test_qq_of_gaussian_stays_in_its_band_and_of_uniform_leaves_it():
    rng = np.random.default_rng(14)
    table = g.qq(rng.standard_normal(2000), n_points=99)
    inside = table["empirical"].between(table["low"], table["high"])
    assert inside.mean() > 0.85 and len(table) == 99
    np.testing.assert_allclose(table["theoretical"], scipy_stats.norm.ppf((np.arange(99) + 0.5) / 99))
    uniform = g.qq(g.control("uniform", 500, 400))
    assert uniform["empirical"].iloc[-1] == pytest.approx(np.sqrt(3), abs=0.1) and uniform["theoretical"].iloc[-1] > 2.5
    assert not uniform["empirical"].between(uniform["low"], uniform["high"]).all()
    with pytest.raises(ValueError, match="constant"):
        g.qq(np.ones((20, 3)))
