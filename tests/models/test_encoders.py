"""Encoders of every class: what their embedding is, the untrained control, texts."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, ResNetConfig, ResNetForImageClassification, ViTMAEConfig, ViTMAEModel
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from une_utils.images import to_model_range
from une_utils.images.rendered import RenderedFaces
from une_utils.models import tiny
from une_utils.models.encoders import TOKENS, Encoder, tokenize
from une_utils.models.oracle import Oracle, zero_shot_scores
from une_utils.models.processing import Processor, resize
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
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(ValueError, match="model_type 'resnet' is no encoder known here; expected one of vit, clip, vit_mae"):
        Encoder.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "swin"}')
    with pytest.raises(ValueError, match="preprocessor_config.json is missing; a 'swin' reads pictures through its own"):
        Encoder.load(tmp_path)


# Models of the hub, against transformers and its own processors


PROCESSORS = {"CLIPImageProcessor": CLIPImageProcessorPil, "BitImageProcessor": BitImageProcessorPil, "ViTImageProcessor": ViTImageProcessorPil,
              "ConvNextImageProcessor": ConvNextImageProcessorPil}  # fmt: skip


def processed(folder, images):
    """``pixel_values`` of pictures (N, H, H, 3) uint8 from transformers' processor on PIL.

    DINOv3's exists with torchvision only: it divides by 255, resizes with antialiasing and normalises, which is repeated here.
    """
    config = json.loads((folder / "preprocessor_config.json").read_text())
    if config["image_processor_type"] in PROCESSORS:
        return PROCESSORS[config["image_processor_type"]].from_pretrained(folder)(list(images), return_tensors="pt")["pixel_values"]
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("image_mean", "image_std"))
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    return (torch.nn.functional.interpolate(x, size=(32, 32), mode="bilinear", antialias=True) - mean) / std


def reference(model, pixel_values):
    """The embedding that UNE's code takes from a model of each class."""
    if isinstance(model, CLIPModel):
        return model.visual_projection(model.vision_model(pixel_values).pooler_output)
    output = model(pixel_values)
    return output.last_hidden_state.mean(1) if isinstance(model, ViTMAEModel) else output.pooler_output


@pytest.mark.parametrize("side", [64, 24])
@pytest.mark.parametrize("name", tiny.ENCODERS)
def test_embeddings_are_those_of_transformers_with_its_processor(name, side, hub_model):
    """Tolerance: pixels within two levels of 255 of PIL's, a tenth of a level on average, and embeddings within 2 % (root mean square)
    of those of PIL's pixels. Given the same pixels, embeddings are equal."""
    folder, images = hub_model(name), RenderedFaces(3, size=side, seed=4).load(range(3))
    encoder = Encoder.load(folder)
    x = torch.from_numpy(to_model_range(images))
    wanted, ours = processed(folder, images), encoder.processor(x)
    levels = (ours - wanted).abs() * torch.tensor(encoder.processor.std).view(1, 3, 1, 1) * 255
    assert ours.shape == wanted.shape and levels.max() < 2.01 and levels.mean() < 0.1
    with torch.no_grad():
        expected, same = reference(encoder.model, wanted), reference(encoder.model, ours)
    found = encoder.embed(x)
    assert found.shape == (3, encoder.dimension)
    torch.testing.assert_close(found, same, atol=1e-5, rtol=1e-4)
    assert (found - expected).square().mean().sqrt() < 0.02 * expected.square().mean().sqrt()
    assert (found.norm(dim=1) - 1).abs().max() > 1e-3  # not normalised


def test_the_hubs_clip_reads_texts_with_its_own_tokenizer(hub_model):
    folder, texts = hub_model("tiny/clip"), ["a face of a man", "a face"]
    encoder, model = Encoder.load(folder), CLIPModel.from_pretrained(folder).eval()
    batch = CLIPTokenizer.from_pretrained(folder)(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = model.get_text_features(**batch).pooler_output
    torch.testing.assert_close(encoder.embed_text(texts), expected)
    assert encoder.embed_text(["a face " * 100]).shape == (1, 12)  # longer texts are cut


def test_older_configurations_of_processors(tmp_path, hub_model):
    """Sizes as plain numbers, as the first CLIP and Swin repositories give them."""
    config = {"size": 32, "crop_size": 32, "do_center_crop": True, "resample": 3, "feature_extractor_type": "CLIPFeatureExtractor", **tiny.CLIP_NORM}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    assert Processor.load(tmp_path) == Processor.load(hub_model("tiny/clip"))
    for changes, message in (
        ({"image_mean": None}, None), ({"resample": 1}, "resample 1 is not known"), ({"size": {"height": 32, "width": 16}}, "not square"),
    ):  # fmt: skip
        broken = {k: v for k, v in (config | changes).items() if v is not None}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=message or "image_mean missing"):
            Processor.load(tmp_path)


def test_large_convnext_pictures_are_warped_not_cropped(tmp_path):
    config = {"size": {"shortest_edge": 384}, "resample": 3, "image_processor_type": "ConvNextImageProcessor", **tiny.IMAGENET_NORM}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    assert (Processor.load(tmp_path).resized, Processor.load(tmp_path).cropped) == (384, None)


def test_pictures_must_be_square_and_large_enough():
    with pytest.raises(ValueError, match="expected square pictures"):
        resize(torch.zeros(1, 3, 8, 9), 4)
    with pytest.raises(ValueError, match="a crop of 32 pixels does not fit into pictures of 8"):
        Processor(None, 32, "bilinear", True, 1 / 255, (0.0,) * 3, (1.0,) * 3)(torch.zeros(1, 3, 8, 8))


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
