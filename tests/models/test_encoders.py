"""Encoders of every class: what their embedding is, the untrained control, texts."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from transformers import CLIPConfig, CLIPModel, ResNetConfig, ResNetForImageClassification, ViTMAEConfig, ViTMAEModel

from une_utils.models.encoders import TOKENS, Encoder, tokenize
from une_utils.models.oracle import Oracle, zero_shot_scores
from une_utils.models.train import word_tokenizer

VIT = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = word_tokenizer()
    text = dict(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, intermediate_size=32, num_attention_heads=2, max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=VIT, projection_dim=12)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pictures(n):
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_clip_gives_its_projection(clip):
    encoder = Encoder.load(clip)
    assert encoder.dimension == 12
    expected = encoder.model.visual_projection(encoder.model.vision_model(pictures(3)).pooler_output)
    torch.testing.assert_close(encoder.embed(pictures(3)), expected)


def test_text_does_not_depend_on_its_company(clip):
    encoder = Encoder.load(clip)
    alone, together = encoder.embed_text(["a face with glasses"]), encoder.embed_text(["a man", "a face with glasses"])
    torch.testing.assert_close(alone[0], together[1], atol=1e-5, rtol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_a_text_is_read_at_its_end(clip):
    """The whole caption counts: a word changed anywhere changes the embedding, which is read after the last word."""
    encoder = Encoder.load(clip)
    texts = ["a woman with glasses without earrings", "a man with glasses without earrings", "a woman with glasses without bangs"]
    base, first, last = encoder.embed_text(texts)
    assert (base - first).abs().max() > 1e-3 and (base - last).abs().max() > 1e-3


def test_tokens():
    tokenizer = word_tokenizer()
    ids = tokenize(tokenizer, ["A Face with zebras", "a face " * 40])["input_ids"]
    words = tokenizer.convert_ids_to_tokens(ids[0])
    assert ids.shape == (2, TOKENS) and words[:6] == ["<start>", "a", "face", "with", "<unknown>", "<end>"] and set(words[6:]) == {"<pad>"}


def test_only_clip_reads_texts(tiny_models):
    with pytest.raises(TypeError, match="ViTModel has no text tower"):
        Encoder.load(tiny_models.encoder).embed_text(["a face"])


def test_masked_autoencoder_hides_nothing(tmp_path):
    """The embedding is that of all patches, and the same every time although the model shuffles them."""
    torch.manual_seed(0)
    ViTMAEModel(ViTMAEConfig(**VIT, mask_ratio=0.75)).save_pretrained(tmp_path)
    encoder = Encoder.load(tmp_path)
    assert encoder.dimension == 32
    first = encoder.embed(pictures(2))
    torch.testing.assert_close(first, encoder.embed(pictures(2)), atol=1e-5, rtol=1e-4)
    changed = pictures(2)
    changed[:, :, 24:, 24:] *= -1  # the last patch
    assert (encoder.embed(changed) - first).abs().max() > 1e-4


def test_untrained_seed(tiny_models):
    stored, first, again, other = (Encoder.load(tiny_models.encoder, seed).embed(pictures(2)) for seed in (None, 1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other) and not torch.allclose(first, stored)


def test_unknown_class(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "convnext"}')
    with pytest.raises(ValueError, match="model_type 'convnext' is no encoder known here; expected one of vit, clip, vit_mae"):
        Encoder.load(tmp_path)


def test_zero_shot_scores_are_differences_of_cosines(clip):
    encoder = Encoder.load(clip)
    scores = zero_shot_scores(encoder, pictures(4), ("Male", "Eyeglasses"))
    unit = torch.nn.functional.normalize
    image, text = unit(encoder.embed(pictures(4)), dim=1), unit(encoder.embed_text(["a man", "a woman"]), dim=1)
    np.testing.assert_allclose(scores[:, 0], (image @ text[0] - image @ text[1]).numpy(), atol=1e-5)
    assert scores.shape == (4, 2)


def test_oracle_reads_what_is_on_the_screen(tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=2, id2label={0: "Smiling", 1: "Pose"})
    torch.manual_seed(0)
    ResNetForImageClassification(config).save_pretrained(tmp_path)
    oracle = Oracle.load(tmp_path)
    assert oracle.names == ("Smiling", "Pose")
    x = pictures(5) * 3
    read = oracle.read(x, batch=2)
    torch.testing.assert_close(read, oracle.read(x.clamp(-1, 1)), atol=1e-5, rtol=1e-4)
    assert read.shape == (5, 2) and roc_auc_score([0, 0, 1, 1, 1], read[:, 0]) >= 0  # finite
