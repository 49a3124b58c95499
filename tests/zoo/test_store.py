"""The zoo on disk, filled by hand."""

import json
import os

import numpy as np
import pytest
import zarr

from une_utils.images import open_images, train_mask
from une_utils.settings import load_profile
from une_utils.zoo.store import View, Zoo, ZooError, _chunk, views

PIXELS = View("pixels", "pixels")


@pytest.fixture
def zoo(tiny_profile):
    """A new zoo of 22 images in shards of 6 with an empty view of 5 dimensions."""
    made = Zoo(tiny_profile, open_images(tiny_profile))
    made.open_view(PIXELS, (5,))
    return made


def values(n=22, d=5, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def fill(zoo, data, numbers=None):
    for number in range(len(zoo.shards)) if numbers is None else numbers:
        rows = zoo.shards[number]
        zoo.write_shard(PIXELS, number, data[rows.start : rows.stop])


def other(tmp_path, **overrides):
    return load_profile(str(tmp_path / "tiny.yaml"), {k.replace("__", "."): v for k, v in overrides.items()})


def test_views_of_a_profile(tiny_profile):
    found = {view.name: view for view in views(tiny_profile)}
    assert {name: view.kind for name, view in found.items()} == {
        "tiny-ldm": "noise", "tiny-ldm-untrained": "untrained", "tiny-ldm-vae": "vae", "tiny-vit": "encoder", "pixels": "pixels",
    }  # fmt: skip
    assert found["tiny-ldm"].settings == {"steps": 4, "convention": "target", "batch": 4}
    assert found["tiny-ldm-untrained"].settings == {"steps": 3, "convention": "target", "batch": 4, "seed": 42}


def test_views_of_several_models(tiny_profile, tmp_path):
    """Only the first generator has baselines; a model's own number of steps and an encoder's seed are part of its view."""
    generator, encoder = (models[0].model_dump() for models in (tiny_profile.generators, tiny_profile.encoders))
    profile = other(
        tmp_path, generators=[generator, generator | {"name": "second", "steps": 2}], encoders=[encoder, encoder | {"name": "random", "untrained_seed": 7}]
    )
    found = {view.name: view for view in views(profile)}
    assert list(found) == ["tiny-ldm", "tiny-ldm-untrained", "tiny-ldm-vae", "second", "tiny-vit", "random", "pixels"]
    assert (found["second"].settings["steps"], found["tiny-ldm"].settings["steps"]) == (2, 4)
    assert (found["random"].settings, found["tiny-vit"].settings) == ({"seed": 7}, {})


def test_index(zoo, tiny_profile):
    source = open_images(tiny_profile)
    for found in (zoo, Zoo(tiny_profile)):  # when it is made, and when it is read
        assert len(found) == 22
        assert found.ids.tolist() == list(source.ids)
        assert (found.attributes == source.attributes).all() and found.attributes.dtype == bool
        assert found.attribute_names == source.attribute_names
        assert (found.train == train_mask(source, 0.8, 42)).all()
        assert found.shards == [range(0, 6), range(6, 12), range(12, 18), range(18, 22)]


def test_split_follows_seed_and_fraction(tmp_path, tiny_profile):
    profile = other(tmp_path, name="other", train_fraction=0.5, seed=7)
    assert Zoo(profile, open_images(profile)).train.sum() == 11


def test_float16_round_trip(zoo, tiny_profile):
    fill(zoo, values())
    found = Zoo(tiny_profile).latents("pixels")
    assert found.dtype == np.float32
    assert (found == values().astype(np.float16)).all()
    assert np.abs(found - values()).max() < 2e-3


def test_rows(zoo):
    fill(zoo, values())
    whole = zoo.latents("pixels")
    assert (zoo.latents("pixels", zoo.train) == whole[zoo.train]).all()
    assert len(zoo.latents("pixels", zoo.train)) == zoo.train.sum()
    assert (zoo.latents("pixels", np.array([20, 3, 3])) == whole[[20, 3, 3]]).all()
    assert (zoo.latents("pixels", slice(5, 8)) == whole[5:8]).all()


def test_info(zoo, tiny_profile):
    info = zoo.view_info("pixels")
    assert info["shape"] == [5] and info["kind"] == "pixels" and info["weights"] is None
    generator = views(tiny_profile)[0]
    zoo.open_view(generator, (4, 8, 8))
    info = zoo.view_info(generator.name)
    assert info["settings"]["steps"] == 4 and info["model"] == "tiny-ldm" and len(info["weights"]) == 64
    assert zoo.info["packages"]["zarr"] == zarr.__version__


def test_shard_order_does_not_matter(zoo):
    fill(zoo, values(), [3, 0, 2, 1])
    assert (zoo.latents("pixels") == values().astype(np.float16)).all()


# Incomplete and missing


def test_there_is_no_zoo(tiny_profile):
    with pytest.raises(ZooError, match="no zoo at .*tiny.*une_utils.zoo.build --profile tiny"):
        Zoo(tiny_profile)
    assert not tiny_profile.zoo_path.exists()


def test_incomplete_view(zoo):
    fill(zoo, values(), [0, 1, 3])
    assert zoo.pending(PIXELS) == [2]
    assert zoo.names == []
    with pytest.raises(ZooError, match="'pixels' is not complete in .*complete are: none"):
        zoo.latents("pixels")
    fill(zoo, values(), [2])
    assert zoo.pending(PIXELS) == [] and zoo.names == ["pixels"]
    with pytest.raises(ZooError, match="'nothing' is not complete in .*complete are: pixels"):
        zoo.latents("nothing")


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_half_written_shard_is_rewritten(zoo, tiny_profile, number, damage):
    """A shard without a marker may hold anything, the last and shorter one too."""
    fill(zoo, values(seed=1))
    before = set((zoo.path / "pixels" / "latents.zarr").rglob("*"))
    file = zoo.path / "pixels" / "latents.zarr" / "c" / str(number) / "0"
    data = file.read_bytes()
    file.write_bytes({"cut": data[: len(data) // 2], "noise": os.urandom(len(data)), "empty": b""}[damage])
    zoo._marker("pixels", number).unlink()
    again = Zoo(tiny_profile, open_images(tiny_profile))
    again.open_view(PIXELS, (5,))
    assert again.pending(PIXELS) == [number]
    fill(again, values(seed=1), [number])
    assert (again.latents("pixels") == values(seed=1).astype(np.float16)).all()
    assert set((zoo.path / "pixels" / "latents.zarr").rglob("*")) == before


def test_stopped_before_the_view_was_described(zoo):
    """The array is there and view.json is not: it is made again."""
    (zoo.path / "pixels" / "view.json").unlink()
    zoo.open_view(PIXELS, (7,))
    fill(zoo, values(d=7))
    assert zoo.latents("pixels").shape == (22, 7)


def test_stopped_before_the_zoo_was_described(zoo, tiny_profile):
    (zoo.path / "zoo.json").unlink()
    with pytest.raises(ZooError, match="no zoo"):
        Zoo(tiny_profile)
    assert len(Zoo(tiny_profile, open_images(tiny_profile))) == 22


def test_a_shard_is_one_file_and_one_marker(zoo):
    fill(zoo, values(), [0])
    files = [p for p in (zoo.path / "pixels" / "latents.zarr" / "c").rglob("*") if p.is_file()]
    assert len(files) == 1
    marker = json.loads(zoo._marker("pixels", 0).read_text())
    assert marker["rows"] == [0, 6] and len(marker["sha256"]) == 64


# Refusals


@pytest.mark.parametrize("bad, where", [(np.nan, 2), (np.inf, 0), (1e6, 5)])
def test_values_that_are_not_finite(zoo, bad, where):
    data = values()
    data[6 + where, 3] = bad
    with pytest.raises(ZooError, match=f"view 'pixels': 1 latents .*first image {zoo.ids[6 + where]}"):
        fill(zoo, data, [1])
    assert zoo.pending(PIXELS) == [0, 1, 2, 3]
    assert not (zoo.path / "pixels" / "latents.zarr" / "c").exists()  # nothing was written
    fill(zoo, values(), [1])
    assert zoo.pending(PIXELS) == [0, 2, 3]


@pytest.mark.parametrize("shape", [(1, 5), (5, 5), (7, 5), (6, 1), (6,), (6, 4)])
def test_values_of_another_shape(zoo, shape):
    """Zarr would broadcast one row over the shard."""
    with pytest.raises(ZooError, match=r"shard 0 .*\(6, 5\)"):
        zoo.write_shard(PIXELS, 0, np.zeros(shape))
    assert zoo.pending(PIXELS) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "key, value, names",
    [
        ("images.count", 30, ["count: on disk 22, now 30", "images:"]),
        ("images.size", 24, ["images:"]),
        ("seed", 7, ["split:"]),
        ("train_fraction", 0.5, ["split:"]),
        ("zoo.shard_rows", 7, ["shard_rows: on disk 6, now 7"]),
    ],
)
def test_zoo_of_something_else(zoo, tmp_path, key, value, names):
    profile = other(tmp_path, **{key: value})
    with pytest.raises(ZooError, match="made from something else") as caught:
        Zoo(profile, open_images(profile))
    for name in names:
        assert name in str(caught.value)
    assert "another name" in str(caught.value) and "attribute_names" not in str(caught.value)


@pytest.mark.parametrize("key, value, name", [("zoo.steps", 5, "steps"), ("zoo.convention", "une", "convention"), ("zoo.batch", 3, "batch")])
def test_view_of_other_settings(zoo, tmp_path, tiny_profile, key, value, name):
    view, changed = views(tiny_profile)[0], views(other(tmp_path, **{key: value}))[0]
    zoo.open_view(view, (4, 8, 8))
    zoo.open_view(view, (4, 8, 8))  # the same is welcome
    with pytest.raises(ZooError, match=f"settings: on disk .*'{name}': .*, now .*'{name}': "):
        zoo.open_view(changed, (4, 8, 8))
    with pytest.raises(ZooError, match=r"shape: on disk \[4, 8, 8\], now \[4, 8, 9\]"):
        zoo.open_view(view, (4, 8, 9))


def test_view_of_other_weights(zoo, tmp_path, tiny_models, tiny_profile):
    folder = tiny_models.write_encoder(tmp_path / "vit")
    encoder = {"name": "tiny-vit", "path": str(folder)}
    view = views(other(tmp_path, encoders=[encoder]))[3]
    zoo.open_view(view, (16,))
    zoo.open_view(views(tiny_profile)[3], (16,))  # the same weights in another folder
    tiny_models.write_encoder(folder, seed=1)
    with pytest.raises(ZooError, match="weights: on disk [0-9a-f]{64}, now [0-9a-f]{64}"):
        zoo.open_view(view, (16,))


@pytest.mark.parametrize("rows, chunk", [(1, 1), (100, 100), (125, 125), (250, 125), (254, 2), (300, 100), (127, 1)])
def test_chunks_divide_a_shard(rows, chunk):
    assert _chunk(rows) == chunk
