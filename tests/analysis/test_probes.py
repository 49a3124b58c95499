import numpy as np
import pytest
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from une_utils.analysis import probes as p
from une_utils.analysis.stats import wilson_interval


def planted(n=400, d=30, a=4, noise=0.5, seed=0):
    """Features and labels that are linear in them up to noise, with attributes from rare to frequent."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)).astype(np.float32)
    score = X @ rng.standard_normal((d, a)) / np.sqrt(d) + noise * rng.standard_normal((n, a))
    return X, score > np.diag(np.quantile(score, np.linspace(0.9, 0.2, a), axis=0))


def objective(w, b, X, y, C):
    return 0.5 * w @ w + C * np.logaddexp(0, -(X @ w + b) * np.where(y, 1, -1)).sum()


def assert_optimal(model, X, Y, C, gap=1e-6):
    """Relative loss gap to scikit-learn's Newton-Cholesky solver on centred float64 features (the same problem, better posed)."""
    mean = X.mean(axis=0, dtype=np.float64)
    centred = X - mean
    for a, c in enumerate(np.broadcast_to(C, Y.shape[1])):
        exact = LogisticRegression(C=c, solver="newton-cholesky", tol=1e-12, max_iter=1000).fit(centred, Y[:, a])
        best = objective(exact.coef_[0], exact.intercept_[0], centred, Y[:, a], c)
        ours = objective(model.coef_[a], model.intercept_[a] + model.coef_[a] @ mean, centred, Y[:, a], c)
        assert ours / best - 1 < gap
        assert model.loss_[a] == pytest.approx(ours, rel=1e-6)


@pytest.mark.parametrize("C", [1e-4, 1.0, 100.0, np.array([1e-3, 0.1, 1.0, 10.0])])
def test_ridge_logistic_reaches_scikit_learns_optimum(C):
    X, Y = planted()
    model = p.RidgeLogistic(C).fit(X, Y)
    assert model.converged_.all() and model.coef_.shape == (4, 30) and model.intercept_.shape == model.n_iter_.shape == (4,)
    assert_optimal(model, X, Y, C)


@pytest.mark.parametrize("C", [0.1, 100.0])
def test_ridge_logistic_converges_on_ill_conditioned_features(C):
    X, Y = planted()
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((30, 30)))[0]
    X = (X * np.logspace(2, -3, 30)) @ rotation + 50
    model = p.RidgeLogistic(C).fit(X, Y)
    assert model.converged_.all() and model.n_iter_.max() < 40
    assert_optimal(model, X, Y, C)


def test_ridge_logistic_with_fewer_rows_than_features_and_repeated_rows():
    X, Y = planted(n=40, d=150)
    X, Y = np.concatenate([X, X]), np.concatenate([Y, Y])
    model = p.RidgeLogistic(0.5).fit(X, Y)
    assert model.converged_.all()
    assert_optimal(model, X, Y, 0.5)


def test_a_constant_feature_gets_no_weight_and_changes_nothing():
    X, Y = planted()
    plain = p.RidgeLogistic().fit(X, Y)
    more = p.RidgeLogistic().fit(np.column_stack([X, np.full(len(X), 3.0)]), Y)
    np.testing.assert_allclose(more.coef_[:, -1], 0, atol=1e-8)
    np.testing.assert_allclose(more.coef_[:, :-1], plain.coef_, atol=1e-4)


def test_separable_labels_converge_and_are_learnt():
    X, _ = planted()
    Y = X[:, :3] > 0.5
    model = p.RidgeLogistic(1e4).fit(X, Y)
    assert model.converged_.all() and np.isfinite(model.coef_).all()
    assert (model.predict(X) == Y).all()
    np.testing.assert_allclose(model.predict_proba(X), 1 / (1 + np.exp(-model.decision_function(X))), rtol=1e-12)


def test_one_attribute_does_not_depend_on_the_others():
    X, Y = planted()
    together = p.RidgeLogistic(tol=1e-13).fit(X, Y)
    alone = p.RidgeLogistic(tol=1e-13).fit(X, Y[:, 2:3])
    np.testing.assert_allclose(alone.coef_[0], together.coef_[2], atol=1e-5)
    np.testing.assert_array_equal(p.RidgeLogistic().fit(X, Y).coef_, p.RidgeLogistic().fit(X, Y).coef_)


def test_running_out_of_steps_is_reported():
    X, Y = planted()
    model = p.RidgeLogistic(100.0, max_iter=2).fit(X, Y)
    assert not model.converged_.any() and (model.n_iter_ == 2).all()


@pytest.mark.parametrize("make", [p.RidgeLogistic, p.NearestMean, p.make_probe])
def test_input_that_cannot_be_fitted(make):
    X, Y = planted()
    single = Y.copy()
    single[:, 1], single[:, 3] = True, False
    with pytest.raises(ValueError, match=r"\[1, 3\]"):
        make().fit(X, single)
    with pytest.raises(ValueError, match="400 rows and Y has 399"):
        make().fit(X, Y[:-1])
    for value in (np.nan, np.inf):
        broken = X.copy()
        broken[3, 4] = value
        with pytest.raises(ValueError, match="NaN"):
            make().fit(broken, Y)
        with pytest.raises(ValueError, match="NaN"):
            make().fit(X, Y).decision_function(broken)
    for labels in (Y[:, 0], Y * 2 - 1):
        with pytest.raises(ValueError, match="Y must"):
            make().fit(X, labels)
    with pytest.raises(ValueError):
        make().fit(X, Y).decision_function(X[:, 1:])
    np.testing.assert_array_equal(make().fit(X, Y.astype(int)).predict(X), make().fit(X, Y).predict(X))


@pytest.mark.parametrize("C", [0.0, -1.0, np.nan, [1.0, 2.0]])
def test_impossible_penalties(C):
    with pytest.raises(ValueError):
        p.RidgeLogistic(C).fit(*planted())


def test_nearest_mean_is_lda_with_identity_covariance():
    X, Y = planted()
    model = p.NearestMean().fit(X, Y)
    scores = model.decision_function(X)
    for a in range(Y.shape[1]):
        means = [X[Y[:, a] == c].mean(axis=0) for c in (False, True)]
        distance = [((X - m) ** 2).sum(axis=1) for m in means]
        prior = np.log(Y[:, a].mean() / (1 - Y[:, a].mean()))
        np.testing.assert_allclose(scores[:, a], (distance[0] - distance[1]) / 2 + prior, atol=1e-3)
    # with white classes LDA estimates the same rule
    rng = np.random.default_rng(2)
    y = rng.random(4000) < 0.3
    X = rng.standard_normal((4000, 3)) + y[:, None]
    same = p.NearestMean().fit(X, y[:, None]).predict(X)[:, 0] == LinearDiscriminantAnalysis().fit(X, y).predict(X)
    assert same.mean() > 0.98


@pytest.mark.parametrize("method", ["logistic", "nearest mean"])
@pytest.mark.parametrize("n_components", [None, 7])
def test_latent_weights_are_the_probe(method, n_components):
    X, Y = planted()
    X = (X * np.linspace(0.1, 30, 30) + np.linspace(-5, 5, 30)).astype(np.float64)
    X[:, 11] = 2.5  # a constant coordinate
    probe = p.make_probe(n_components, method=method).fit(X, Y)
    W, b = probe.latent_weights()
    assert W.shape == (4, 30) and b.shape == (4,)
    new = X[::-1] * 1.5 + 1
    np.testing.assert_allclose(probe.decision_function(new), new @ W.T + b, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(probe.predict(new), new @ W.T + b > 0)
    assert probe.transform(X).shape == (400, n_components or 30)


def test_latent_weights_in_single_and_half_precision():
    X, Y = planted()
    for dtype, tolerance in ((np.float32, 1e-4), (np.float16, 1e-4)):
        stored = X.astype(dtype)
        probe = p.make_probe(7).fit(stored, Y)
        W, b = probe.latent_weights()
        np.testing.assert_allclose(probe.decision_function(stored), stored.astype(float) @ W.T + b, atol=tolerance)


def test_probe_features_come_from_training_rows_and_are_standardised():
    X, Y = planted()
    probe = p.make_probe(5).fit(X * 9 + 4, Y)
    features = probe.transform(X * 9 + 4)
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(features.std(axis=0), 1, atol=1e-4)
    alone = probe.decision_function(X[:1])
    np.testing.assert_allclose(probe.decision_function(X)[:1], alone, rtol=1e-5)  # other test rows do not matter


def test_probe_options():
    with pytest.raises(ValueError, match="unknown method"):
        p.make_probe(method="svm")
    with pytest.raises(ValueError, match="n_components"):
        p.make_probe(31).fit(*planted())
    X, Y = planted()
    probe = p.make_probe(6, C=0.01).fit(X, Y)
    copy = clone(probe)
    assert copy.n_components == 6 and copy.classifier.C == 0.01 and not hasattr(copy, "classifier_")
    np.testing.assert_array_equal(copy.fit(X, Y).decision_function(X), probe.decision_function(X))


def test_noise_has_auc_one_half_and_signal_has_more():
    X, Y = planted(n=1600, noise=0.3)
    train, test = slice(0, 800), slice(800, None)
    names = list("abcd")
    probe = p.make_probe().fit(X[train], Y[train])
    before = probe.decision_function(X[test])
    real = p.evaluate(before, Y[test], names, Y[train])
    control = p.permuted_control(probe, X[train], Y[train], X[test], Y[test], names)
    assert (real["auc_low"] > 0.8).all() and (real["accuracy"] > real["majority"]).all()
    assert control["auc"].between(0.35, 0.65).all() and (control["auc"] < real["auc_low"]).all()
    np.testing.assert_array_equal(probe.decision_function(X[test]), before)
    random = np.random.default_rng(3).standard_normal((2000, 20))
    noise = p.evaluate(random, np.random.default_rng(4).random((2000, 20)) < 0.5, range(20), Y[:, [0] * 20])
    assert noise["auc"].between(0.45, 0.55).all()
    assert ((noise["auc_low"] <= 0.5) & (noise["auc_high"] >= 0.5)).sum() >= 15


def test_evaluate_is_scikit_learns_accuracy_and_auc_with_ties():
    rng = np.random.default_rng(5)
    scores = rng.integers(-2, 3, (300, 3)).astype(float)
    scores[:, 2] = rng.standard_normal(300)
    labels = scores + 2 * rng.standard_normal((300, 3)) > 0
    table = p.evaluate(scores, labels, ["a", "b", "c"], labels, bootstrap=50)
    np.testing.assert_allclose(table["auc"], [roc_auc_score(labels[:, a], scores[:, a]) for a in range(3)])
    np.testing.assert_allclose(table["accuracy"], ((scores > 0) == labels).mean(axis=0))
    np.testing.assert_allclose(table["prevalence"], labels.mean(axis=0))
    assert list(table["attribute"]) == ["a", "b", "c"] and (table["n"] == 300).all()
    assert p._weighted_auc(np.zeros((4, 1)), np.array([[0], [0], [1], [1]], bool), np.ones((1, 4)))[0, 0] == 0.5


def test_bootstrap_is_a_bootstrap_of_rows():
    """The weighted form against scikit-learn's AUC on the same resampled rows."""
    rng = np.random.default_rng(6)
    scores = rng.integers(0, 6, (80, 2)) - 2.5
    labels = rng.random((80, 2)) < 0.4
    accuracy, auc = p._bootstrap(scores, labels, 20, seed=9)
    rows = np.random.default_rng((9, 80)).integers(0, 80, (20, 80))
    for draw, chosen in enumerate(rows):
        for a in range(2):
            assert auc[draw, a] == pytest.approx(roc_auc_score(labels[chosen, a], scores[chosen, a]))
            assert accuracy[draw, a] == pytest.approx(((scores > 0) == labels)[chosen, a].mean())


def test_bootstrap_chunks_pairs_and_seeds(monkeypatch):
    rng = np.random.default_rng(7)
    scores, labels = rng.standard_normal((150, 3)), rng.random((150, 3)) < 0.5
    whole = p.evaluate(scores, labels, "abc", labels, bootstrap=100)
    monkeypatch.setattr(p, "_CHUNK_VALUES", 150 * 7)
    assert p.evaluate(scores, labels, "abc", labels, bootstrap=100).equals(whole)
    assert not p.evaluate(scores, labels, "abc", labels, bootstrap=100, seed=1).equals(whole)
    # the same attribute twice has the same resamples
    twice = p.evaluate(scores[:, [0, 0]], labels[:, [0, 0]], "aa", labels[:, [0, 0]])
    assert twice.iloc[0].equals(twice.iloc[1])


def test_perfect_and_reversed_scores():
    labels = np.random.default_rng(8).random((200, 2)) < 0.3
    scores = np.where(labels, 1.0, -1.0) * [1, -1]
    table = p.evaluate(scores, labels, "ab", labels)
    for column, values in (("auc", [1, 0]), ("accuracy", [1, 0]), ("auc_low", [1, 0]), ("accuracy_high", [1, 0])):
        assert list(table[column]) == values, column


def test_majority_baseline_comes_from_training_labels():
    train = np.repeat([[True, False, True]], 10, axis=0)
    train[:5, 2] = False  # a tie answers False
    labels = np.arange(40)[:, None] % 4 == [0, 0, 0]
    low, high = wilson_interval(10, 40)
    first, second, third = p.majority_interval(labels, train)
    assert (first.value, first.low, first.high, first.n) == (0.25, low, high, 40)
    assert second.value == third.value == 0.75
    table = p.evaluate(np.ones((40, 3)), labels, "abc", train)
    assert list(table["majority"]) == [0.25, 0.75, 0.75] and table["majority_low"][0] == low
    with pytest.raises(ValueError):
        p.majority_interval(labels, train[:, :2])


def test_a_test_column_with_one_class_has_no_auc_but_an_accuracy():
    scores = np.random.default_rng(9).standard_normal((50, 2))
    labels = np.column_stack([np.ones(50, bool), scores[:, 1] > 0])
    table = p.evaluate(scores, labels, "ab", labels)
    assert table.loc[0, ["auc", "auc_low", "auc_high"]].isna().all() and table["accuracy"].notna().all()
    assert table.loc[1, "auc"] == 1
    assert p.mean_metrics(scores, labels)["auc"].value == 1  # the mean leaves it out
    with pytest.raises(ValueError, match="both classes"):
        p.mean_metrics(scores[:, :1], labels[:, :1])


def test_evaluate_refuses_what_does_not_fit():
    scores, labels = np.zeros((5, 2)), np.zeros((5, 2), bool)
    for arguments in (
        (scores, labels, "a", labels),
        (scores, labels[:, :1], "ab", labels),
        (scores[:4], labels, "ab", labels),
        (scores * np.nan, labels, "ab", labels),
        (scores[:0], labels[:0], "ab", labels),
        (scores, labels, "ab", labels[:, :1]),
    ):
        with pytest.raises(ValueError):
            p.evaluate(*arguments)


def test_means_and_paired_differences():
    rng = np.random.default_rng(10)
    labels = rng.random((500, 6)) < 0.5
    good = labels + rng.standard_normal(labels.shape) - 0.5
    close = good + 0.05 * rng.standard_normal(labels.shape) - 0.1
    mean = p.mean_metrics(good, labels)
    table = p.evaluate(good, labels, range(6), labels)
    for metric in ("accuracy", "auc"):
        assert mean[metric].value == pytest.approx(table[metric].mean()) and mean[metric].n == 500
        assert mean[metric].low < mean[metric].value < mean[metric].high
        paired = p.paired_difference(good, close, labels)[metric]
        assert paired.value == pytest.approx(mean[metric].value - p.mean_metrics(close, labels)[metric].value)
        assert paired.high - paired.low < 0.5 * (mean[metric].high - mean[metric].low)
        same = p.paired_difference(good, good, labels)[metric]
        assert same.value == same.low == same.high == 0


def test_select_C_prefers_strong_penalty_for_many_noisy_dimensions():
    X, Y = planted(n=300, d=250, noise=1.0)
    best, table = p.select_C(X, Y)
    assert list(table.columns) == ["C", "mean_auc"] and len(table) == 6
    assert best == table["C"][table["mean_auc"].idxmax()] and best < 1
    assert p.select_C(X, Y)[1].equals(table)
    # a column of the batched fit is the plain fit
    order = np.random.default_rng((42, 300)).permutation(300)
    probe = p.make_probe(C=0.01).fit(X[order[60:]], Y[order[60:]])
    scores = probe.decision_function(X[order[:60]])
    expected = np.mean([roc_auc_score(Y[order[:60], a], scores[:, a]) for a in range(4)])
    assert table.set_index("C")["mean_auc"][0.01] == pytest.approx(expected, abs=2e-3)


def test_select_C_draws_some_of_very_many_rows(monkeypatch):
    rng = np.random.default_rng(5)
    X = rng.standard_normal((600, 5))
    Y, fitted = X[:, :2] + rng.standard_normal((600, 2)) > 0, []
    fit = p.Probe.fit
    monkeypatch.setattr(p.Probe, "fit", lambda self, X, Y: fitted.append(len(X)) or fit(self, X, Y))
    whole = p.select_C(X, Y)
    monkeypatch.setattr(p, "_SELECTION_ROWS", 300)
    some = p.select_C(X, Y)
    assert fitted == [480, 240] and np.abs(some[1]["mean_auc"] - whole[1]["mean_auc"]).max() < 0.1


def test_select_C_leaves_out_attributes_it_cannot_judge():
    X, Y = planted()
    rare = np.zeros((400, 1), bool)
    rare[0] = True
    with_rare = p.select_C(X, np.hstack([Y, rare]))[1]
    assert with_rare.equals(p.select_C(X, Y)[1])
    with pytest.raises(ValueError, match="both classes"):
        p.select_C(X, rare)
    with pytest.raises(ValueError, match="share"):
        p.select_C(X, Y, validation=1.0)
    assert p.select_C(X, Y, grid=(0.1,), n_components=3)[0] == 0.1
