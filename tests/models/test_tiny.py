"""Tiny random models: the same from the same seed, and made by the command that trains the others."""

from safetensors.torch import load_file

from une_utils.files import model_hash
from une_utils.models import tiny
from une_utils.models.train import train_model
from une_utils.settings import load_profile


def test_a_seed_gives_the_same_weights(tmp_path):
    first, again, other = (tiny.write("tiny/swin", tmp_path / str(i), seed) for i, seed in enumerate((0, 0, 1)))
    assert model_hash(first) == model_hash(again) != model_hash(other)
    assert load_file(first / "model.safetensors")


def test_the_profile_names_every_tiny_model():
    profile = load_profile("paper-tiny")
    assert {m.path for m in profile.generators} == set(tiny.GENERATORS) and {m.path for m in profile.encoders} == set(tiny.ENCODERS)
    assert {m.path for m in (*profile.shifts, *profile.rivals)} == set(tiny.EDITORS)


def test_training_writes_them_into_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("UNE_CACHE", str(tmp_path))
    train_model("tiny/swin")
    folder = next(m for m in load_profile("paper-tiny").encoders if m.name == "swin").resolved_path()
    assert folder == tmp_path / "models/tiny/swin" and (folder / "preprocessor_config.json").is_file()
