"""Captions of faces, worded from attributes: the text side of the small CLIP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

# Attribute -> (what the picture shows when it is true, when it is false). Phrases follow "a face" or "a photo of a man".
# Empty: nothing is said. Several wordings: one is drawn.
WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "Smiling": (("smiling", "with a smile", "who smiles", "looking happy"), ("not smiling", "with a frown", "looking serious")),
    "Mouth_Slightly_Open": (("with an open mouth", "showing teeth"), ("with a closed mouth",)),
    "Young": (("looking young", "with smooth skin"), ("looking old", "with wrinkles")),
    "Eyeglasses": (("with glasses", "wearing eyeglasses", "with spectacles"), ("without glasses",)),
    "No_Beard": (("without a beard", "clean shaven"), ("with a beard", "who has a full beard")),
    "Mustache": (("with a mustache",), ("without a mustache",)),
    "Black_Hair": (("with black hair", "with dark hair"), ()),
    "Blond_Hair": (("with blond hair", "with light hair"), ()),
    "Gray_Hair": (("with gray hair",), ()),
    "Bald": (("who is bald", "with a bald head"), ("who is not bald",)),
    "Bangs": (("with bangs",), ("without bangs",)),
    "Wearing_Hat": (("wearing a hat", "with a hat"), ("without a hat",)),
    "Wearing_Lipstick": (("wearing lipstick", "with red lips"), ("without lipstick",)),
    "Pale_Skin": (("with pale skin",), ()),
    "Narrow_Eyes": (("with narrow eyes",), ("with wide eyes",)),
    "Bushy_Eyebrows": (("with bushy eyebrows", "with thick eyebrows"), ("with thin eyebrows",)),
    "Arched_Eyebrows": (("with arched eyebrows", "with raised eyebrows"), ("with flat eyebrows",)),
    "Big_Nose": (("with a big nose",), ("with a small nose",)),
    "Rosy_Cheeks": (("with rosy cheeks",), ("without blush",)),
    "Wearing_Earrings": (("wearing earrings", "with earrings"), ("without earrings",)),
    "Blue_Skin": (("with blue skin",), ()),  # no attribute of a face: only the small CLIP has seen it
}
NOUNS = {True: ("a man", "a male face"), False: ("a woman", "a female face"), None: ("a face", "a person")}
FRAMES = ("{}", "a picture of {}", "a drawing of {}", "this is {}")


def caption(attributes: Mapping[str, bool], rng: np.random.Generator, said: tuple[int, int] = (2, 10)) -> str:
    """One caption of a face.

    Args:
        attributes: name -> value. Names without wording are left out; ``Male`` gives the noun, two times in three.
        said: least and largest number of attributes to speak of; which ones is drawn, true ones three times as likely.
    """
    phrases = {name: WORDS[name][0 if value else 1] for name, value in attributes.items() if name in WORDS}
    names = [name for name, found in phrases.items() if found]
    weights = np.array([3.0 if attributes[name] else 1.0 for name in names])
    count = min(len(names), int(rng.integers(said[0], said[1] + 1)))
    chosen = rng.choice(len(names), size=count, replace=False, p=weights / weights.sum()) if count else []
    noun = NOUNS[bool(attributes["Male"]) if "Male" in attributes and rng.random() < 2 / 3 else None]
    words = [_pick(phrases[names[i]], rng) for i in chosen]
    return " ".join([_pick(FRAMES, rng).format(_pick(noun, rng)), *words])


def captions(attributes: np.ndarray, names: Sequence[str], seed: int) -> list[str]:
    """A caption for each row of ``attributes`` (n, A) bool; the same for the same seed."""
    rng = np.random.default_rng(seed)
    return [caption(dict(zip(names, row, strict=True)), rng) for row in attributes.tolist()]


def prompts(name: str) -> tuple[str, str]:
    """A pair of prompts that differ in one attribute, (true, false), for zero-shot classification.

    Raises:
        KeyError: an attribute that the captions have no words for.
    """
    if name == "Male":
        return "a man", "a woman"
    if name not in WORDS:
        raise KeyError(f"no wording for the attribute '{name}'; expected one of Male, {', '.join(WORDS)}")
    true, false = WORDS[name]
    return f"a face {true[0]}", f"a face {false[0]}" if false else "a face"


def vocabulary() -> list[str]:
    """All words that a caption can hold, sorted."""
    phrases = [p for pair in WORDS.values() for side in pair for p in side] + [n for side in NOUNS.values() for n in side] + list(FRAMES)
    return sorted({word for phrase in phrases for word in phrase.replace("{}", "").split()})


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
