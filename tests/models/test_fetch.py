"""What a run brings before its first notebook."""

from une_utils import settings
from une_utils.models import fetch as fetching
from une_utils.models import tiny
from une_utils.models.fetch import fetch
from une_utils.settings import load_profile

COMMIT = "0123456789abcdef" * 2 + "01234567"


def test_tiny_models_are_written_once(monkeypatch, tmp_path):
    monkeypatch.setenv("UNE_CACHE", str(tmp_path))
    asked = []
    monkeypatch.setattr(tiny, "write", lambda name, root: asked.append(name) or (root / name).mkdir(parents=True))
    profile = load_profile("paper-tiny")
    fetch(profile)
    fetch(profile)
    assert asked == [m.path for m in profile.models]


def test_what_the_hub_has_is_downloaded(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(settings, "snapshot", lambda *model: asked.append(model) or tmp_path)
    monkeypatch.setattr(fetching, "hub_files", lambda *pictures: asked.append(pictures))
    pictures = {"images.source": "parquet", "images.hub": "owner/faces", "images.revision": "0123456"}
    fetch(load_profile("mini", {"encoders": [{"name": "far", "hub": "owner/model", "revision": COMMIT}], **pictures}))
    assert asked == [("owner/faces", "0123456", None), ("owner/model", COMMIT)]


def test_released_latents_need_no_model(monkeypatch):
    monkeypatch.setattr(settings, "snapshot", lambda *model: 1 / 0)
    fetch(load_profile("noisezoo"))
