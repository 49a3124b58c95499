"""CelebA and AFHQ from tiny made-up folders and parquet files of the same layout."""

from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import GatedRepoError
from PIL import Image

from une_utils.images import (
    CELEBA_ATTRIBUTES, AFHQImages, AttributeTableError, CelebAImages, CelebAParquet, ImageSource, ImageSourceError, UnreadablePicture,
    fingerprint, hub_files, open_images, train_mask,
)  # fmt: skip
from une_utils.images.files import bilinear_square, lanczos_square, prepare
from une_utils.report.figures import profile_hash
from une_utils.settings import Profile, ProfileError, load_profile

PARTS = [0] * 6 + [1] * 3 + [2] * 3
REVISION = "e9092e9"


def picture(seed, width=26, height=32):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def values(n=12, a=40):
    return np.random.default_rng(0).integers(0, 2, (n, a)) * 2 - 1


def write_celeba(folder, names=CELEBA_ATTRIBUTES, table=None, parts=PARTS, count=None):
    """The layout of the original download: 12 pictures of 26 x 32."""
    table = values(len(parts), len(names)) if table is None else table
    files = [f"{i:06d}.jpg" for i in range(1, len(parts) + 1)]
    (folder / "img_align_celeba").mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(files):
        picture(i).save(folder / "img_align_celeba" / name, quality=95)
    rows = [f"{name} " + " ".join(f"{v:2d}" for v in row) for name, row in zip(files, table, strict=True)]
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(count or len(files)), " ".join(names) + " ", *rows]) + "\n")
    (folder / "list_eval_partition.txt").write_text("".join(f"{name} {part}\n" for name, part in zip(files, parts, strict=True)))
    return folder


def profile(**images):
    model = {"name": "g", "path": "g"}
    return Profile(name="t", title="t", images={"size": 16, **images}, generators=[model], encoders=[model | {"name": "e"}])


# Crop and resize


def test_crop_and_resize_are_pillows_own(tmp_path):
    """What torchvision does to a Pillow image: crop, then bilinear; measured with torchvision in the next test."""
    source = CelebAImages(write_celeba(tmp_path), 512)
    stored = Image.open(tmp_path / "img_align_celeba" / "000003.jpg")
    expected = stored.crop((0, 3, 26, 29)).resize((512, 512), Image.Resampling.BILINEAR)
    assert (source.load([2])[0] == np.asarray(expected)).all()


@pytest.mark.parametrize("width, height, size", [(178, 218, 512), (178, 218, 64), (512, 512, 256), (131, 97, 64)])
def test_no_difference_to_torchvision(width, height, size):
    transforms = pytest.importorskip("torchvision.transforms", reason="torchvision is not among the requirements")
    image = picture(0, width, height)
    official = transforms.Compose([transforms.CenterCrop(min(image.size)), transforms.Resize((size, size))])(image)
    assert (np.asarray(bilinear_square(image, size)) == np.asarray(official)).all()


def test_downscale_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    pixels, notes = prepare(Image.fromarray(stripes), 16, bilinear_square)
    assert notes == [] and np.abs(pixels[:, 2:-2].astype(int) - 127).max() <= 3
    assert (prepare(picture(1), 16)[0] == np.asarray(lanczos_square(picture(1), 16))).all()  # other sources keep theirs


# CelebA, original download


def test_official_attributes():
    assert len(CELEBA_ATTRIBUTES) == 40 and list(CELEBA_ATTRIBUTES) == sorted(CELEBA_ATTRIBUTES)
    assert (CELEBA_ATTRIBUTES[0], CELEBA_ATTRIBUTES[20], CELEBA_ATTRIBUTES[39]) == ("5_o_Clock_Shadow", "Male", "Young")


@pytest.mark.parametrize("layout", ["flat", "as downloaded"])
def test_celeba_folder(tmp_path, layout):
    write_celeba(tmp_path)
    if layout == "as downloaded":
        for sub, name in {"Img": "img_align_celeba", "Anno": "list_attr_celeba.txt", "Eval": "list_eval_partition.txt"}.items():
            (tmp_path / sub).mkdir()
            (tmp_path / name).rename(tmp_path / sub / name)
    source = open_images(profile(source="celeba", path=str(tmp_path)))
    assert isinstance(source, ImageSource) and type(source) is CelebAImages and len(source) == 12
    assert source.ids.tolist() == [f"{i:06d}.jpg" for i in range(1, 13)]
    assert source.attribute_names == CELEBA_ATTRIBUTES and (source.attributes == (values() == 1)).all()
    assert source.load([3, 0]).shape == (2, 16, 16, 3) and source.train is None and source.groups is None


def test_partition_and_count(tmp_path):
    write_celeba(tmp_path)
    for part, rows in {"train": range(6), "validation": range(6, 9), "test": range(9, 12)}.items():
        source = CelebAImages(tmp_path, 16, partition=part)
        assert source.ids.tolist() == [f"{i + 1:06d}.jpg" for i in rows]
        assert (source.attributes == (values() == 1)[list(rows)]).all()
    drawn = CelebAImages(tmp_path, 16, count=4, seed=1, attributes=["Smiling", "Male"], split="official")
    expected = np.sort(np.random.RandomState(1).permutation(np.arange(12))[:4])
    assert drawn.ids.tolist() == [f"{i + 1:06d}.jpg" for i in expected] and drawn.attribute_names == ("Smiling", "Male")
    assert drawn.train.tolist() == [i < 6 for i in expected]


def test_official_split_is_the_train_mask(tmp_path):
    source = CelebAImages(write_celeba(tmp_path), 16, split="official")
    assert train_mask(source, 0.8, 42).tolist() == [True] * 6 + [False] * 6
    assert (train_mask(source, 0.3, 1) == train_mask(source, 0.8, 42)).all()
    plain = CelebAImages(tmp_path, 16)
    assert train_mask(plain, 0.8, 42).sum() == 9 and fingerprint(plain) == fingerprint(source)


def test_split_with_an_empty_side(tmp_path):
    source = CelebAImages(write_celeba(tmp_path, parts=[0] * 12), 16, split="official")
    with pytest.raises(ValueError, match="test side would be empty"):
        train_mask(source, 0.8, 42)
    with pytest.raises(ImageSourceError, match="no picture is in partition 'test'; there are train"):
        CelebAImages(tmp_path, 16, partition="test")


def swapped():
    names = list(CELEBA_ATTRIBUTES)
    names[4], names[5] = names[5], names[4]
    return names


@pytest.mark.parametrize(
    "names, message",
    [
        (swapped(), "column 5 of .*list_attr_celeba.txt is 'Bangs', CelebA's official order has 'Bald' there"),
        (CELEBA_ATTRIBUTES[:-1], "has 39 attributes, CelebA has 40; the first missing column is 'Young'"),
        ([*CELEBA_ATTRIBUTES, "Tall"], "has 41 attributes, CelebA has 40; the first column too many is 'Tall'"),
        ([n for n in CELEBA_ATTRIBUTES if n != "Male"], "column 21 of .* is 'Mouth_Slightly_Open', .* has 'Male'"),
    ],
)
def test_other_attributes_are_named(tmp_path, names, message):
    write_celeba(tmp_path, names=names)
    with pytest.raises(AttributeTableError, match=message):
        CelebAImages(tmp_path, 16)


def test_table_cut_short(tmp_path):
    write_celeba(tmp_path, count=13)
    with pytest.raises(AttributeTableError, match="says it has 13 rows and holds 12; download it again"):
        CelebAImages(tmp_path, 16)
    (tmp_path / "list_attr_celeba.txt").write_text("")
    with pytest.raises(AttributeTableError, match="has 0 attributes"):
        CelebAImages(tmp_path, 16)


def test_other_values_and_double_names(tmp_path):
    table = values()
    table[4, 20] = 3
    with pytest.raises(AttributeTableError, match="column 'Male' holds '3' in row '000005.jpg'"):
        CelebAImages(write_celeba(tmp_path, table=table), 16, attributes=CELEBA_ATTRIBUTES)
    write_celeba(tmp_path)
    file = tmp_path / "list_attr_celeba.txt"
    file.write_text(file.read_text().replace("000002.jpg", "000001.jpg"))
    with pytest.raises(AttributeTableError, match="names '000001.jpg' more than once"):
        CelebAImages(tmp_path, 16)


@pytest.mark.parametrize("lines", ["000001.jpg 0\n", "".join(f"{i:06d}.jpg {i}\n" for i in range(1, 13))])
def test_partition_that_lacks_pictures(tmp_path, lines):
    write_celeba(tmp_path)
    (tmp_path / "list_eval_partition.txt").write_text(lines)
    with pytest.raises(AttributeTableError, match=r"list_eval_partition.txt has no part 0, 1 or 2 for picture '00000[23].jpg'"):
        CelebAImages(tmp_path, 16)


def test_missing_pictures_stop_the_opening(tmp_path):
    write_celeba(tmp_path)
    (tmp_path / "img_align_celeba" / "000002.jpg").unlink()
    (tmp_path / "img_align_celeba" / "000008.jpg").unlink()
    with pytest.raises(ImageSourceError, match="lacks 2 of 12 pictures: 000002.jpg, 000008.jpg; unpack"):
        CelebAImages(tmp_path, 16)
    assert len(CelebAImages(tmp_path, 16, partition="test")) == 3  # only its own pictures are looked for
    assert len(CelebAImages(tmp_path, 16, pictures=False)) == 12


def test_damaged_picture_stops_the_loading(tmp_path):
    write_celeba(tmp_path)
    (tmp_path / "img_align_celeba" / "000002.jpg").write_bytes(b"")
    source = CelebAImages(tmp_path, 16)
    assert len(source) == 12
    with pytest.raises(UnreadablePicture, match="picture '000002.jpg' of .* cannot be used now: empty file"):
        source.load([0, 1])


@pytest.mark.parametrize("name", ["img_align_celeba", "list_attr_celeba.txt", "list_eval_partition.txt"])
def test_missing_parts_come_with_terms_and_places(tmp_path, name):
    write_celeba(tmp_path / "celeba")
    (tmp_path / "celeba" / name).rename(tmp_path / "elsewhere")
    with pytest.raises(ImageSourceError) as caught:
        open_images(profile(source="celeba", path=str(tmp_path / "celeba")))
    message = str(caught.value)
    assert f"holds no {name}" in message and "non-commercial research" in message and "img_align_celeba.zip" in message


@pytest.mark.parametrize("source, terms", [("celeba", "non-commercial research only"), ("afhq", "CC BY-NC 4.0")])
def test_neither_path_nor_hub(source, terms, monkeypatch, tmp_path):
    monkeypatch.delenv("UNE_TEST_PICTURES", raising=False)
    wanted = profile(source=source, path_env="UNE_TEST_PICTURES")
    with pytest.raises(ProfileError, match=f"(?s)UNE_TEST_PICTURES, which is not set.*export.*{terms}"):
        open_images(wanted)
    monkeypatch.setenv("UNE_TEST_PICTURES", str(tmp_path / "absent"))
    with pytest.raises(ProfileError, match=f"(?s)no such file or folder: .*absent.*{terms}"):
        open_images(wanted)


# CelebA, hub


def write_parquet(folder, flat=False, names=CELEBA_ATTRIBUTES, width=40, parts=("train", "validation", "test")):
    """The layout of a hub data set: one file a part, attributes as a list column or as columns; pictures 0 to 11."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, start = [], 0
    for part, n in zip(parts, (6, 3, 3), strict=True):
        rows = range(start, start + n)
        start += n
        images = []
        for i in rows:
            picture(i).save(folder / "one.png")
            images.append({"bytes": (folder / "one.png").read_bytes(), "path": f"{i + 1:06d}.jpg"})
        (folder / "one.png").unlink()
        table = (values(12, len(names))[list(rows)] + 1) // 2
        columns = {name: table[:, a] for a, name in enumerate(names)} if flat else {"attributes": table[:, :width].tolist()}
        identity = {"celeb_id": list(rows)} if flat else {}
        paths.append(folder / f"{part}-00000-of-00001.parquet")
        pq.write_table(pa.table({"image": images, **identity, **columns}), paths[-1], row_group_size=2)
    return paths


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("validation", ["validation", "valid"])
def test_celeba_parquet(tmp_path, flat, validation):
    paths = write_parquet(tmp_path, flat, parts=("train", validation, "test"))
    source = CelebAParquet(paths[::-1], 26, split="official")  # whatever the order in which the files are named
    assert isinstance(source, ImageSource) and source.ids.tolist() == [f"{i:06d}.jpg" for i in range(1, 13)]
    assert source.attribute_names == CELEBA_ATTRIBUTES and (source.attributes == (values() == 1)).all()
    assert source.train.tolist() == [True] * 6 + [False] * 6
    assert (source.load([10])[0] == np.asarray(picture(10).crop((0, 3, 26, 29)))).all()
    part = CelebAParquet(paths, 16, partition="validation", attributes=["Young"])
    assert part.ids.tolist() == ["000007.jpg", "000008.jpg", "000009.jpg"] and part.attribute_names == ("Young",)


def test_celeba_parquet_of_something_else(tmp_path):
    with pytest.raises(AttributeTableError, match="column 5 of .* is 'Bangs', .* 'Bald'"):
        CelebAParquet(write_parquet(tmp_path / "a", flat=True, names=swapped()), 16)
    with pytest.raises(AttributeTableError, match="column 'attributes' of .* holds lists of .39. values; expected lists of CelebA's 40"):
        CelebAParquet(write_parquet(tmp_path / "b", width=39), 16)
    with pytest.raises(ImageSourceError, match="faces-00000-of-00001.parquet should begin with train-"):
        CelebAParquet(write_parquet(tmp_path / "c", parts=("faces", "val", "test")), 16)
    with pytest.raises(ImageSourceError, match="no parquet file of partition 'test'; found train-"):
        CelebAParquet(write_parquet(tmp_path / "d")[:1], 16, partition="test")


def test_open_images_from_the_hub(tmp_path, monkeypatch):
    paths, asked = write_parquet(tmp_path / "hub"), []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: asked.append((a, k)) or str(tmp_path / "hub"))
    hub = dict(source="celeba", hub="someone/celeba", revision=REVISION)
    source = open_images(profile(**hub, partition="train"))
    assert type(source) is CelebAParquet and len(source) == 6
    assert asked[0] == (("someone/celeba",), dict(repo_type="dataset", revision=REVISION, allow_patterns=["*train-*.parquet"]))
    write_celeba(tmp_path / "folder")
    assert type(open_images(profile(**hub, path=str(tmp_path / "folder")))) is CelebAImages  # a path comes first
    paths[0].rename(paths[0].with_name("train-00000-of-00002.parquet"))
    with pytest.raises(ImageSourceError, match=r"has 1 of the 2 files train-\*-of-00002.parquet .*interrupted.*hf download someone/celeba"):
        open_images(profile(**hub))


def test_hub_that_cannot_be_reached(tmp_path, monkeypatch):
    """Tests are offline, so the hub's own client fails here as it does for a reader without network."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ImageSourceError) as caught:
        hub_files("someone/celeba-that-is-not-there", REVISION, "validation")
    message = str(caught.value)
    assert "is not in the cache" in message and "folder datasets--someone--celeba-that-is-not-there" in message
    assert "hf download someone/celeba-that-is-not-there" in message
    assert "non-commercial research" in message and "list_eval_partition.txt" in message


def test_a_gated_data_set_says_how_to_get_access(monkeypatch):
    def refuse(*arguments, **options):
        raise GatedRepoError("refused", response=SimpleNamespace(status_code=401, request=None, headers={}))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ImageSourceError, match="someone/celeba is gated.*huggingface.co/datasets/someone/celeba and accept its terms"):
        hub_files("someone/celeba", REVISION)


# AFHQ


def write_afhq(folder):
    for part, n in {"train": 3, "test": 2}.items():
        for name in ("wild", "dog", "cat"):
            (folder / part / name).mkdir(parents=True)
            for i in range(n):
                picture(i, 32, 32).save(folder / part / name / f"{i}.png")
            (folder / part / name / "Thumbs.db").write_bytes(b"")
    return folder


def test_afhq(tmp_path):
    write_afhq(tmp_path)
    source = open_images(profile(source="afhq", path=str(tmp_path), split="official", size=32))
    assert isinstance(source, ImageSource) and len(source) == 15 and source.attribute_names == ("cat", "dog", "wild")
    assert source.ids.tolist()[:4] == ["train/cat/0.png", "train/cat/1.png", "train/cat/2.png", "train/dog/0.png"]
    assert (source.attributes.sum(axis=1) == 1).all() and source.attributes.sum(axis=0).tolist() == [5, 5, 5]
    assert all(i.split("/")[1] == source.attribute_names[a.argmax()] for i, a in zip(source.ids, source.attributes, strict=True))
    assert train_mask(source, 0.8, 0).tolist() == [True] * 9 + [False] * 6
    assert (source.load([1])[0] == np.asarray(picture(1, 32, 32))).all()
    assert len(AFHQImages(tmp_path, 16, partition="test")) == 6


def test_afhq_folder_of_something_else(tmp_path):
    write_afhq(tmp_path)
    with pytest.raises(ImageSourceError, match="no partition 'validation'"):
        AFHQImages(tmp_path, 16, partition="validation")
    (tmp_path / "test").rename(tmp_path / "val")  # AFHQ, the first version
    with pytest.raises(ImageSourceError, match="(?s)no pictures in .*test/cat.*CC BY-NC 4.0.*test/wild/"):
        AFHQImages(tmp_path, 16)


# Profiles


@pytest.mark.parametrize(
    "images, message",
    [
        (dict(source="celeba"), "needs 'path' or 'path_env'"),
        (dict(source="celeba", hub="a/b"), "needs 'revision'"),
        (dict(source="afhq", hub="a/b", revision=REVISION), "for the sources 'parquet' and 'celeba'"),
        (dict(source="celeba", path="x", partition="train", split="official"), "give one of them"),
        (dict(source="parquet", path="x", partition="train"), "for the sources 'celeba' and 'afhq'"),
        (dict(source="celeba", hub="a/b", revision="main"), "pattern"),
    ],
)
def test_profiles_that_do_not_fit(images, message):
    with pytest.raises(ValueError, match=message):
        profile(**images)


@pytest.mark.parametrize("name", ["mini", "lfw", "cifar10"])
def test_new_settings_leave_old_profiles_alone(name):
    filled = load_profile(name).model_dump()["images"]
    assert all(filled.pop(key) is None for key in ("hub", "revision", "partition", "split"))
    assert len(profile_hash(load_profile(name))) == 64
