"""Distances of pictures: zero for equal ones, the encoder's cosine, and LPIPS only where it is asked for and installed."""

import sys
from types import SimpleNamespace

import pytest
import torch

from une_utils.models.perceptual import perceptual
from une_utils.settings import ProfileError, load_profile


class Brightness:
    """An encoder whose embedding is the mean of red and of green."""

    def embed(self, pictures):
        return pictures.mean((2, 3))[:, :2]


def picture(red, green):
    return torch.tensor([red, green, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)


def test_cosine_distance_of_embeddings():
    found = perceptual(None, Brightness(), "DINO")
    assert found.label == "cosine distance in DINO's features"
    pairs = {(1.0, 0.0): 0.0, (0.0, 1.0): 1.0, (-1.0, 0.0): 2.0, (0.5, 0.5): 1 - 0.5**0.5}
    for (red, green), expected in pairs.items():
        assert found.distance(picture(1.0, 0.0), picture(red, green)).item() == pytest.approx(expected, abs=1e-7)


def test_lpips_is_the_package_s(monkeypatch):
    """A stand-in for the package, whose weights come from the network: called as the real one is, (N, 1, 1, 1) from pictures in [-1, 1]."""
    asked = []

    class Lpips(torch.nn.Module):
        def __init__(self, **options):
            super().__init__()
            asked.append(options)

        def forward(self, x, y):
            return (x - y).abs().mean((1, 2, 3), keepdim=True)

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=Lpips))
    found = perceptual("lpips", None, "DINO")
    x, y = torch.zeros(3, 3, 4, 4), torch.ones(3, 3, 4, 4)
    assert asked == [{"net": "alex", "verbose": False}] and found.label == "LPIPS (AlexNet)"
    assert found.distance(x, y).tolist() == [1, 1, 1] and found.distance(x, x).tolist() == [0, 0, 0]


def test_lpips_that_is_not_installed_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ImportError, match="pip install lpips"):
        perceptual("lpips", None, "DINO")


def test_a_profile_chooses():
    assert load_profile("mini").perceptual is None and load_profile("paper").perceptual == "lpips"
    with pytest.raises(ProfileError, match="perceptual"):
        load_profile("mini", {"perceptual": "by eye"})
