"""Who says what an edit has changed: readers of finished pictures that had no part in finding the directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from une_utils.analysis import editing, probes
from une_utils.files import read_json
from une_utils.images import open_images, to_model_range
from une_utils.images.rendered import ATTRIBUTES, Attribute
from une_utils.models.generators import Generator
from une_utils.models.oracle import Oracle
from une_utils.settings import MODELS, Profile
from une_utils.zoo.store import Zoo

REAL = 800  # training pictures that the oracle reads for the correlations of its factors


class Judge(NamedTuple):
    """Readings of pictures, in standard deviations.

    Attributes:
        factors: names of the F readings.
        goals: attribute -> the reading that it is a threshold of.
        read: pictures (N, 3, H, W) in [-1, 1] -> readings (N, F).
        real: (M, F) readings of training pictures.
        quality: of every reading, on pictures that the judge was not fitted on.
        measure: what ``quality`` is: R^2 or accuracy.
    """

    factors: list[str]
    goals: dict[str, Attribute]
    read: Callable[[np.ndarray], np.ndarray]
    real: np.ndarray
    quality: pd.Series
    measure: str

    def towards(self, readings: np.ndarray, attribute: str) -> np.ndarray:
        """Readings (..., F) of the attribute's factor (...), turned so that more of it means more of the attribute."""
        goal = self.goals[attribute]
        return goal.sign * readings[..., self.factors.index(goal.factor)]

    def threshold(self, attribute: str) -> float:
        """Value of `towards` above which a picture has the attribute."""
        return self.goals[attribute].sign * self.goals[attribute].threshold


def make_judge(profile: Profile, zoo: Zoo, generator: Generator, attributes: list[str]) -> Judge:
    """The profile's oracle, or linear classifiers on VAE latents where nothing is known of the pictures' factors.

    The classifiers are fitted on *test* pictures, while directions come from the training pictures. With two attributes, their
    rows are resampled until the two are uncorrelated, or one classifier would see its attribute in every change of the other;
    two classes that exclude each other are left as they are.

    Args:
        generator: the first generator of the profile, whose VAE encodes finished pictures again.
        attributes: what is edited.
    """
    return _oracle(profile, zoo, attributes) if profile.oracle else _classifiers(profile, zoo, generator, attributes)


def _oracle(profile: Profile, zoo: Zoo, attributes: list[str]) -> Judge:
    oracle = Oracle.load(MODELS / profile.oracle)

    def read(images: np.ndarray) -> np.ndarray:
        return oracle.read(torch.as_tensor(images)).numpy()

    real = read(to_model_range(open_images(profile).load(np.flatnonzero(zoo.train)[:REAL])))
    quality = pd.Series(read_json(MODELS / profile.oracle / "held-out.json")["r2"])
    return Judge(list(oracle.names), {n: ATTRIBUTES[n] for n in attributes}, read, real, quality, "R^2")


def _classifiers(profile: Profile, zoo: Zoo, generator: Generator, attributes: list[str]) -> Judge:
    x0, train, rows = zoo.latents(f"{profile.generators[0].name}-vae"), np.flatnonzero(zoo.train), np.flatnonzero(~zoo.train)
    Y = zoo.attributes[:, [zoo.attribute_names.index(n) for n in attributes]]
    if len(attributes) == 2 and len(np.unique(Y[rows], axis=0)) == 4:  # classes that exclude each other cannot be made uncorrelated
        size = editing.largest_resample(*Y[rows].T, 0.0)
        rows = rows[editing.resample_with_correlation(*Y[rows].T, 0.0, size, profile.seed)]
    judge = probes.make_probe(None, probes.select_C(x0[rows], Y[rows], seed=profile.seed)[0]).fit(x0[rows], Y[rows])
    scores = judge.decision_function(x0[train])
    centre, spread = scores.mean(axis=0), scores.std(axis=0)

    def read(images: np.ndarray) -> np.ndarray:
        return (judge.decision_function(generator.encode(torch.as_tensor(images)).flatten(1).numpy()) - centre) / spread

    accuracy = pd.Series(((scores > 0) == Y[train]).mean(axis=0), index=attributes)
    goals = {n: Attribute(n, -c / s) for n, c, s in zip(attributes, centre, spread, strict=True)}
    return Judge(list(attributes), goals, read, (scores - centre) / spread, accuracy, "accuracy")
