"""Captions say what is true, and only with words that the tokenizer knows."""

import numpy as np
import pytest

from une_utils.images.captions import FRAMES, WORDS, caption, captions, prompts, vocabulary
from une_utils.images.rendered import ATTRIBUTES, RenderedFaces

NAMES = tuple(ATTRIBUTES)


def test_a_caption_is_true():
    """Every phrase of a caption is one of its face's own, none is of the opposite."""
    faces = RenderedFaces(200, seed=5)
    for row, text in zip(faces.attributes, captions(faces.attributes, NAMES, seed=1), strict=True):
        for name, value in zip(NAMES, row, strict=True):
            if name == "Male":
                words = text.split()
                assert ("man" in words or "male" in words) <= value and ("woman" in words or "female" in words) <= (not value)
                continue
            for phrase in WORDS[name][1 if value else 0]:  # what the picture does not show
                own = WORDS[name][0 if value else 1]
                rest = text
                for said in own:
                    rest = rest.replace(said, "")
                assert f" {phrase} " not in f" {rest} ", (text, name, value)


def test_number_of_attributes():
    row = dict(zip(NAMES, [True] * len(NAMES), strict=True))
    for seed in range(20):
        text = caption(row, np.random.default_rng(seed), said=(3, 3))
        assert sum(any(phrase in text for phrase in true) for true, _ in WORDS.values()) >= 3


def test_same_seed_same_words():
    rows = RenderedFaces(20, seed=2).attributes
    assert captions(rows, NAMES, 3) == captions(rows, NAMES, 3) != captions(rows, NAMES, 4)


def test_vocabulary_covers_every_caption_and_prompt():
    words = set(vocabulary())
    texts = captions(RenderedFaces(300, seed=3).attributes, NAMES, 0) + [p for name in NAMES for p in prompts(name)]
    assert {word for text in texts for word in text.split()} <= words
    assert not any("{" in word for word in words) and len(FRAMES) > 1


def test_prompts_differ_and_unknown_ones_are_refused():
    assert all(true != false for true, false in map(prompts, NAMES))
    with pytest.raises(KeyError, match="no wording for the attribute 'Wise'"):
        prompts("Wise")


def test_unknown_attributes_are_left_out():
    assert caption({"Wise": True}, np.random.default_rng(0)).split()[-1] in {"face", "person"}
