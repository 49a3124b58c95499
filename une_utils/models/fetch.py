"""Bring what a profile names and this repository does not ship: models and data sets of the hub, tiny random models."""

from __future__ import annotations

from une_utils.images import hub_files
from une_utils.settings import Profile, cache_root


def fetch(profile: Profile) -> None:
    """Download what comes from the hub and write the tiny random models, unless they are there. Released latents need no model.

    Raises:
        ProfileError: the hub does not give a model; the message says what to do.
        ImageSourceError: the hub does not give the pictures.
    """
    if profile.images.from_hub:
        hub_files(profile.images.hub, profile.images.revision, profile.images.partition)
    for model in () if profile.zoo.is_released else profile.models:
        if model.hub:
            print(f"{model.name}: {model.resolved_path()}", flush=True)
        elif model.path.startswith("tiny/") and not (cache_root() / "models" / model.path).is_dir():
            from une_utils.models import tiny  # imports every class of model, seconds that other profiles are spared

            print(f"{model.name}: random weights in {tiny.write(model.path, cache_root() / 'models')}", flush=True)
