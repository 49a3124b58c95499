"""Judges of edits: an oracle's factors, or classifiers on VAE latents that know nothing of the training pictures."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from une_utils.analysis import judge as judging
from une_utils.analysis.judge import make_judge
from une_utils.settings import load_profile


def world(n=1200, attributes=("Smiling", "Male"), rho=0.7, seed=0):
    """A zoo whose VAE latents hold one coordinate for each attribute's score, and noise; the scores correlate."""
    rng = np.random.default_rng(seed)
    a = len(attributes)
    cov = np.full((a, a), rho) + (1 - rho) * np.eye(a)
    scores = rng.multivariate_normal(np.zeros(a), cov, n)
    x0 = np.column_stack([scores, rng.standard_normal((n, 4))]).astype(np.float32)
    zoo = SimpleNamespace(
        train=np.arange(n) < n // 2, attributes=scores > 0.3, attribute_names=tuple(attributes),
        latents=lambda name: {"lfw-ldm-vae": x0}[name],
    )  # fmt: skip
    return zoo, x0, SimpleNamespace(encode=lambda x: x)


def test_classifiers_read_pictures_in_standard_deviations():
    zoo, x0, generator = world()
    judge = make_judge(load_profile("lfw"), zoo, generator, ["Smiling", "Male"])
    readings = judge.read(x0[zoo.train].reshape(-1, x0.shape[1], 1, 1))
    np.testing.assert_allclose(readings, judge.real, atol=1e-5)
    np.testing.assert_allclose(judge.real.std(axis=0), 1, atol=1e-6)
    assert judge.measure == "accuracy" and (judge.quality > 0.9).all() and list(judge.quality.index) == ["Smiling", "Male"]
    for a, name in enumerate(judge.factors):
        has = judge.towards(readings, name) > judge.threshold(name)
        assert (has == zoo.attributes[zoo.train, a]).mean() == pytest.approx(judge.quality[name])


def test_one_attribute_does_not_leak_into_the_judge_of_the_other(monkeypatch):
    """Where a picture hardly shows a smile, a classifier fitted on correlated rows answers by Male; on fair rows much less."""
    zoo, x0, generator = world(n=6000)
    rng = np.random.default_rng(1)
    x0[:] = rng.standard_normal(x0.shape)
    x0[:, :2] += zoo.attributes * [0.5, 2.0]
    male = np.zeros((2, x0.shape[1], 1, 1), np.float32)
    male[:, 1, 0, 0] = -2, 2
    fair = make_judge(load_profile("lfw"), zoo, generator, ["Smiling", "Male"]).read(male)
    monkeypatch.setattr(judging.editing, "resample_with_correlation", lambda a, *_: np.arange(len(a)))
    unfair = make_judge(load_profile("lfw"), zoo, generator, ["Smiling", "Male"]).read(male)
    assert abs(fair[1, 0] - fair[0, 0]) < 0.5 * abs(unfair[1, 0] - unfair[0, 0])


def test_classifiers_see_test_pictures_only():
    zoo, x0, generator = world()
    before = make_judge(load_profile("lfw"), zoo, generator, ["Smiling", "Male"])
    zoo.attributes[zoo.train] = ~zoo.attributes[zoo.train]
    after = make_judge(load_profile("lfw"), zoo, generator, ["Smiling", "Male"])
    np.testing.assert_array_equal(before.real, after.real)
    assert (after.quality < 0.1).all()


@pytest.mark.parametrize("attributes", [("A",), ("A", "B", "C")])
def test_one_or_three_attributes_work_as_well(attributes):
    zoo, x0, generator = world(attributes=attributes)
    judge = make_judge(load_profile("lfw"), zoo, generator, list(attributes))
    assert judge.factors == list(attributes) and (judge.quality > 0.85).all()


def test_an_oracle_reads_factors(monkeypatch):
    oracle = SimpleNamespace(names=("Smiling", "Beard"), read=lambda x: torch.as_tensor(x)[:, :2, 0, 0])
    monkeypatch.setattr(judging.Oracle, "load", lambda path: oracle)
    monkeypatch.setattr(judging, "read_json", lambda path: {"r2": {"Smiling": 0.9, "Beard": 0.8}})
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    monkeypatch.setattr(judging, "open_images", lambda profile: SimpleNamespace(load=lambda rows: images[rows]))
    zoo = SimpleNamespace(train=np.arange(40) % 2 == 0)
    judge = make_judge(load_profile("mini"), zoo, None, ["Smiling", "No_Beard"])
    np.testing.assert_allclose(judge.real, images[::2, 0, 0, :2] / 127.5 - 1, atol=1e-6)
    assert judge.measure == "R^2" and isinstance(judge.quality, pd.Series)
    readings = np.array([[0.2, 0.7], [-0.2, 0.1]])
    np.testing.assert_array_equal(judge.towards(readings, "Smiling") > judge.threshold("Smiling"), [True, False])
    np.testing.assert_array_equal(judge.towards(readings, "No_Beard") > judge.threshold("No_Beard"), [False, True])  # less beard


def test_two_classes_that_exclude_each_other():
    """No resample makes them uncorrelated; the judge is fitted on the rows as they are."""
    zoo, x0, generator = world(attributes=("cat", "dog"))
    zoo.attributes = np.column_stack([x0[:, 0] > 0.8, x0[:, 0] < -0.8])
    judge = make_judge(load_profile("lfw"), zoo, generator, ["cat", "dog"])
    assert judge.factors == ["cat", "dog"] and (judge.quality > 0.9).all()
