"""Pictures on disk: decoding, bad files, bad tables, and both stores."""

import io
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from une_utils.images import (
    AttributeTableError, FolderImages, ImageSource, ImageSourceError, ParquetImages, UnreadablePicture, files, open_images,
    prepare,
)  # fmt: skip
from une_utils.settings import Profile

ORIENTATION = 0x0112


def noise(seed=0, width=16, height=16):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(picture, kind="PNG", **options):
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def quadrants(side=32):
    """Four flat colours, so that JPEG keeps every pixel but for rounding."""
    colours = np.array([[[200, 30, 40], [20, 180, 60]], [[40, 60, 210], [230, 220, 50]]], dtype=np.uint8)
    return colours.repeat(side // 2, axis=0).repeat(side // 2, axis=1)


# One picture


def test_picture_of_the_right_size_is_unchanged():
    pixels, notes = prepare(encode(noise()), 16)
    assert pixels.dtype == np.uint8 and notes == []
    assert (pixels == noise()).all()


@pytest.mark.parametrize("width, height, box", [(26, 16, np.s_[:, 5:21]), (16, 21, np.s_[2:18, :])])
def test_crop_is_central(width, height, box):
    wide = noise(1, width, height)
    pixels, notes = prepare(encode(wide), 16)
    assert (pixels == wide[box]).all() and notes == []


def test_downscale_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    pixels, notes = prepare(encode(stripes), 16)
    assert notes == []
    assert np.abs(pixels[:, 2:-2].astype(int) - 127).max() <= 3  # picking pixels would give 0 or 255


def test_upscale_is_recorded():
    pixels, notes = prepare(encode(noise(0, 9, 8)), 16)
    assert pixels.shape == (16, 16, 3) and notes == ["enlarged from 9x8"]


def grey16(value=40000):
    return Image.fromarray(np.full((16, 16), value, np.uint16))


def transparent_palette():
    image = Image.new("P", (16, 16), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (0, 0, 8, 16))
    image.info["transparency"] = 1
    return encode(image, transparency=1)


CONVERTED = {
    "greyscale": (encode(Image.new("L", (16, 16), 77)), 77, ["greyscale to RGB"]),
    "black and white": (encode(Image.new("1", (16, 16), 1)), 255, ["greyscale to RGB"]),
    "16-bit PNG": (encode(grey16()), 40000 / 257, ["16-bit scaled to 8-bit", "greyscale to RGB"]),
    "16-bit and transparent": (encode(grey16(), transparency=9), 40000 / 257, ["16-bit scaled to 8-bit", "greyscale to RGB"]),
    "16-bit white": (encode(grey16(65535)), 255, ["16-bit scaled to 8-bit", "greyscale to RGB"]),
    "dark 16-bit": (encode(grey16(200)), 0, ["16-bit scaled to 8-bit", "greyscale to RGB"]),
    "32-bit TIFF": (encode(grey16().convert("I"), "TIFF"), 40000 / 257, ["16-bit scaled to 8-bit", "greyscale to RGB"]),
    "float 0..1": (Image.fromarray(np.full((16, 16), 0.4, np.float32)), 102, ["float scaled to 8-bit", "greyscale to RGB"]),
    "float 0..255": (Image.fromarray(np.full((16, 16), 99.0, np.float32)), 99, ["float scaled to 8-bit", "greyscale to RGB"]),
    "grey and alpha": (encode(Image.new("LA", (16, 16), (0, 51))), 204, ["alpha composited on white"]),
    "alpha": (encode(Image.new("RGBA", (16, 16), (10, 20, 30, 0))), 255, ["alpha composited on white"]),
    "palette": (encode(Image.new("RGB", (16, 16), (9, 9, 9)).quantize(4)), 9, ["palette to RGB"]),
    "CMYK JPEG": (encode(Image.new("CMYK", (16, 16), (0, 0, 0, 155)), "JPEG"), 100, ["CMYK to RGB"]),
    "YCbCr": (Image.new("YCbCr", (16, 16), (60, 128, 128)), 60, ["YCbCr to RGB"]),
}


@pytest.mark.parametrize("case", CONVERTED)
def test_modes_are_converted_and_recorded(case):
    picture, level, expected = CONVERTED[case]
    pixels, notes = prepare(picture, 16)
    assert np.abs(pixels.astype(float) - level).max() <= 1.01
    assert notes == expected


def test_transparent_palette_becomes_white():
    pixels, notes = prepare(transparent_palette(), 16)
    assert notes == ["alpha composited on white"]
    assert (pixels[:, :8] == 255).all() and (pixels[:, 8:] == [255, 0, 0]).all()


def test_16_bit_colour_png_is_recorded():
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = (b"\0" + b"\x9c\x40" * 24) * 8  # 8x8, every channel 40000
    head = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    pixels, notes = prepare(png, 8)
    assert notes == ["16-bit scaled to 8-bit"] and np.abs(pixels.astype(float) - 40000 / 257).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation):
    upright = quadrants()
    # What a camera stores: the transform that exif_transpose undoes. Rows and columns of the stored picture, EXIF 2.3 table 6.
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1), 7: upright[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    raw = encode(np.ascontiguousarray(stored), "JPEG", exif=exif, quality=95, subsampling=0)
    pixels, notes = prepare(raw, 32)
    assert np.abs(pixels.astype(int) - upright).max() <= 4
    assert notes == ([] if orientation == 1 else ["rotated by EXIF"])


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_lose_the_picture():
    pixels, notes = prepare(encode(quadrants(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), 32)
    assert pixels.shape == (32, 32, 3) and notes == []


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime")]
    pixels, notes = prepare(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]), 16)
    assert (pixels == [255, 0, 0]).all() and notes[0] == "first of 3 frames"


def zero_bmp():
    raw = bytearray(encode(noise(), "BMP"))
    raw[18:22] = bytes(4)  # width
    return bytes(raw)


UNREADABLE = {
    "empty": (b"", "empty file"),
    "text": (b"this is no picture", "not a picture"),
    "truncated JPEG": (encode(noise(0, 64, 64), "JPEG")[:1500], "truncated"),
    "truncated PNG": (encode(noise())[:300], "truncated"),
    "damaged PNG": (encode(noise())[:60] + bytes(40) + encode(noise())[100:], "cannot be decoded"),
    "no pixels": (Image.new("RGB", (0, 5)), "no pixels: 0x5"),
    "no pixels in a file": (zero_bmp(), "no pixels|not a picture"),
    "not finite": (Image.fromarray(np.array([[0.1, np.nan]] * 2, np.float32)), "not finite"),
    "negative": (Image.fromarray(np.full((4, 4), -3, np.int32)), "from -3 to -3 in mode I; expected 0..65535"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable_pictures_say_why(case):
    picture, reason = UNREADABLE[case]
    with pytest.raises(UnreadablePicture, match=reason):
        prepare(picture, 16)


def test_too_large_names_extent_and_limit(monkeypatch):
    monkeypatch.setattr(files, "MAX_PIXELS", 255)
    with pytest.raises(UnreadablePicture, match="too large: 16x16, 0.000256 megapixels; the limit is 0.000255"):
        prepare(encode(noise()), 16)
    monkeypatch.setattr(files, "MAX_PIXELS", 256)
    assert prepare(encode(noise()), 16)[1] == []


def test_pixel_limit_of_pillow_is_left_alone(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow would refuse from 20 on
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prepare(encode(noise()), 16)[0].shape == (16, 16, 3)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_large_pictures_are_reduced_one_at_a_time(monkeypatch):
    big = np.asarray(Image.fromarray(quadrants()).resize((1200, 1200), Image.Resampling.NEAREST))
    raw = encode(big, "JPEG", quality=95)
    plain, notes = prepare(raw, 32)
    assert notes == []
    monkeypatch.setattr(files, "LARGE_PIXELS", 1000)
    at_once, most = 0, 0
    counting, upright = threading.Lock(), files._upright

    def counted(image, notes):
        nonlocal at_once, most
        assert image.size == (150, 150)  # decoded at 1/8
        with counting:
            at_once += 1
            most = max(most, at_once)
        result = upright(image, notes)
        threading.Event().wait(0.02)
        with counting:
            at_once -= 1
        return result

    monkeypatch.setattr(files, "_upright", counted)
    reduced = files._in_pool(lambda _: prepare(raw, 32), range(4))
    assert most == 1
    assert all(found == ["reduced from 1200x1200"] for _, found in reduced)
    assert np.abs(reduced[0][0].astype(int) - plain).mean() < 2


# Folder and CSV


def make_folder(folder, pictures, table):
    for name, raw in pictures.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)
    pd.DataFrame(table).to_csv(folder / "attributes.csv", index=False)
    return folder


def plain_folder(folder, n=12, **columns):
    names = [f"{i:02d}.png" for i in range(n)]
    table = {"image": names, "Even": [1 - i % 2 for i in range(n)], **columns}
    return make_folder(folder, {name: encode(noise(i)) for i, name in enumerate(names)}, table)


def open_folder(folder, size=16, **options):
    return FolderImages(folder, "attributes.csv", size, **options)


def test_folder_keeps_the_protocol_and_the_order(tmp_path):
    source = open_folder(plain_folder(tmp_path))
    assert isinstance(source, ImageSource) and len(source) == 12
    assert source.ids.tolist() == [f"{i:02d}.png" for i in range(12)] and source.ids.dtype.kind == "U"
    assert source.attribute_names == ("Even",) and source.attributes.dtype == bool and source.attributes.shape == (12, 1)
    assert source.attributes[:, 0].tolist() == [True, False] * 6
    assert source.groups is None and source.report.used == 12 and source.report.frame().empty
    rows = [7, 0, 7, 11]
    assert (source.load(rows) == np.stack([noise(i) for i in rows])).all()
    assert source.load(np.arange(12) < 2).shape == (2, 16, 16, 3)
    assert source.load([]).shape == (0, 16, 16, 3)
    with pytest.raises(IndexError):
        source.load([12])


def test_subfolders_and_unmatched_names(tmp_path):
    pictures = {"a/1.png": encode(noise(1)), "b/1.png": encode(noise(2)), "b/2.png": encode(noise(3)), "b/notes.txt": b"text"}
    make_folder(tmp_path, pictures, {"image": ["b/1.png", "gone.png", "a/1.png"], "Tall": [1, 0, 0]})
    source = open_folder(tmp_path)
    assert source.ids.tolist() == ["b/1.png", "a/1.png"]
    assert source.attributes[:, 0].tolist() == [True, False]
    assert (source.load([0, 1]) == np.stack([noise(2), noise(1)])).all()
    assert source.report.rows_without_picture == ["gone.png"] and source.report.pictures_without_row == ["b/2.png"]


def test_bad_pictures_are_skipped_by_name_and_the_rest_stay_aligned(tmp_path, monkeypatch):
    plain_folder(tmp_path, 12, Third=[int(i % 3 == 0) for i in range(12)], person=[f"p{i}" for i in range(12)])
    (tmp_path / "01.png").write_bytes(b"")
    (tmp_path / "03.png").write_bytes(b"no picture")
    (tmp_path / "04.png").write_bytes(encode(noise(4))[:300])
    (tmp_path / "06.png").write_bytes(encode(Image.new("L", (16, 16), 7)))
    read = Path.read_bytes

    def locked(path):
        if path.name == "08.png":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", locked)
    source = open_folder(tmp_path, group_column="person")
    good = [0, 2, 5, 6, 7, 9, 10, 11]
    assert source.ids.tolist() == [f"{i:02d}.png" for i in good]
    assert source.attributes.tolist() == [[i % 2 == 0, i % 3 == 0] for i in good]
    assert source.groups.tolist() == [f"p{i}" for i in good]
    assert (source.load([2]) == noise(5)).all()
    skipped = source.report.skipped
    assert set(skipped) == {"01.png", "03.png", "04.png", "08.png"}
    assert skipped["01.png"] == "empty file" and skipped["08.png"] == "cannot be read: Permission denied"
    assert "not a picture" in skipped["03.png"] and "truncated" in skipped["04.png"]
    assert source.report.converted == {"06.png": "greyscale to RGB"}
    assert source.report.used == 8


def test_oversize_picture_is_skipped(tmp_path, monkeypatch):
    plain_folder(tmp_path, 3)
    (tmp_path / "01.png").write_bytes(encode(noise(1, 40, 40)))
    monkeypatch.setattr(files, "MAX_PIXELS", 1000)
    source = open_folder(tmp_path)
    assert source.ids.tolist() == ["00.png", "02.png"] and "40x40" in source.report.skipped["01.png"]


def test_no_usable_picture_is_an_error(tmp_path):
    make_folder(tmp_path, {"a.jpg": b"text", "b.jpg": b""}, {"image": ["a.jpg", "b.jpg"], "Tall": [0, 1]})
    with pytest.raises(ImageSourceError, match="none of the 2 pictures.*a.jpg: not a picture.*b.jpg: empty file"):
        open_folder(tmp_path)


def test_picture_that_vanishes_later_is_named(tmp_path):
    source = open_folder(plain_folder(tmp_path, 3))
    (tmp_path / "01.png").unlink()
    with pytest.raises(UnreadablePicture, match="picture '01.png'.*No such file"):
        source.load([0, 1])


def test_count_draws_usable_pictures_with_the_seed(tmp_path):
    plain_folder(tmp_path)
    (tmp_path / "05.png").write_bytes(b"")
    usable = [i for i in range(12) if i != 5]
    expected = sorted(np.random.RandomState(3).permutation(usable)[:6])
    source = open_folder(tmp_path, count=6, seed=3)
    assert source.ids.tolist() == [f"{i:02d}.png" for i in expected]
    assert source.attributes[:, 0].tolist() == [i % 2 == 0 for i in expected]
    assert (source.load(slice(None)) == np.stack([noise(i) for i in expected])).all()
    assert source.report.used == 6 and set(source.report.skipped) == {"05.png"}
    assert open_folder(tmp_path, count=6, seed=3).ids.tolist() == source.ids.tolist()
    assert open_folder(tmp_path, count=6, seed=4).ids.tolist() != source.ids.tolist()


def test_count_above_the_usable_pictures_warns_and_uses_all(tmp_path):
    with pytest.warns(UserWarning, match="20 pictures wanted.*12 usable"):
        assert len(open_folder(plain_folder(tmp_path), count=20)) == 12


@pytest.mark.parametrize("names, hint", [(["00", "01"], "need their suffix"), (["x.png", "y.png"], "starts with 'x.png'")])
def test_nothing_matches(tmp_path, names, hint):
    make_folder(tmp_path, {"00.png": encode(noise())}, {"image": names, "Tall": [0, 1]})
    with pytest.raises(ImageSourceError, match=hint):
        open_folder(tmp_path)


def test_nothing_matches_without_the_subfolder(tmp_path):
    make_folder(tmp_path, {"in/00.png": encode(noise())}, {"image": ["00.png"], "Tall": [0]})
    with pytest.raises(ImageSourceError, match="need their subfolder"):
        open_folder(tmp_path)


def test_places_that_do_not_exist(tmp_path):
    with pytest.raises(ImageSourceError, match="no such folder.*absent"):
        FolderImages(tmp_path / "absent", "attributes.csv", 16)
    with pytest.raises(AttributeTableError, match="cannot read the attribute table.*absent.csv"):
        FolderImages(tmp_path, "absent.csv", 16)


@pytest.mark.parametrize("content, reason", [(b"", "cannot read"), (b"image,Tall\n", "no rows"), (b"\xff\xfe\xfa", "UTF-8")])
def test_tables_without_content(tmp_path, content, reason):
    (tmp_path / "attributes.csv").write_bytes(content)
    with pytest.raises(ImageSourceError, match=reason):
        open_folder(tmp_path)


def test_table_written_by_a_spreadsheet(tmp_path):
    plain_folder(tmp_path, 2)
    (tmp_path / "attributes.csv").write_bytes(b"\xef\xbb\xbfimage, Tall\r\n00.png, 1,\r\n01.png, 0,\r\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.ParserWarning)  # the lines end in a comma
        source = open_folder(tmp_path)
    assert source.attribute_names == ("Tall",) and source.attributes[:, 0].tolist() == [True, False]


def test_picture_names_are_there_and_unique(tmp_path):
    plain_folder(tmp_path, 4)
    table = tmp_path / "attributes.csv"
    table.write_text("image,Tall\n00.png,1\n01.png,0\n00.png,0\n02.png,1\n01.png,1\n")
    with pytest.raises(AttributeTableError, match="more than once: 00.png, 01.png"):
        open_folder(tmp_path)
    table.write_text("image,Tall\n00.png,1\n,0\n")
    with pytest.raises(AttributeTableError, match="'image'.*no value in row 2"):
        open_folder(tmp_path)
    with pytest.raises(AttributeTableError, match="no column 'file'.*columns found: image, Tall"):
        open_folder(tmp_path, image_column="file")


# Attributes and groups


@pytest.mark.parametrize(
    "values",
    [[1, 0, 1], [1, -1, 1], ["1", "0", "1"], ["True", "false", "TRUE"], [1.0, 0.0, 1.0], [1.0, -1.0, 1.0], [True, False, True]],
)
def test_spellings_of_binary(tmp_path, values):
    plain_folder(tmp_path, 3, Tall=values)
    source = open_folder(tmp_path, attributes=["Tall"])
    assert source.attributes[:, 0].tolist() == [True, False, True]


@pytest.mark.parametrize("value, named", [("2", "'2'"), ("yes", "'yes'"), ("0.5", "'0.5'"), ("", "no value"), ("nan", "'nan'")])
def test_other_values_are_named(tmp_path, value, named):
    plain_folder(tmp_path, 3, Tall=["1", value, "0"])
    with pytest.raises(AttributeTableError, match=f"column 'Tall'.*{named}.*row '01.png'"):
        open_folder(tmp_path, attributes=["Even", "Tall"])


def test_zero_and_minus_one_do_not_mix(tmp_path):
    plain_folder(tmp_path, 3, Tall=[1, 0, -1])
    with pytest.raises(AttributeTableError, match="'Tall'.*'0' in row '01.png' and '-1' in row '02.png'"):
        open_folder(tmp_path, attributes=["Tall"])


def test_unknown_attribute_lists_the_columns(tmp_path):
    with pytest.raises(AttributeTableError, match="no column 'Short'.*columns found: Even"):
        open_folder(plain_folder(tmp_path, 3), attributes=["Short"])


def test_every_binary_column_by_default(tmp_path):
    plain_folder(tmp_path, 3, score=[0.3, 2, 1], Tall=[-1, 1, 1], who=["a", "b", "c"], Group=[1, 0, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = open_folder(tmp_path, group_column="Group")
    assert source.attribute_names == ("Even", "Tall")
    assert source.groups.tolist() == ["1", "0", "1"]


def test_attributes_keep_the_order_asked_for(tmp_path):
    plain_folder(tmp_path, 3, Tall=[1, 1, 0])
    source = open_folder(tmp_path, attributes=["Tall", "Even"])
    assert source.attribute_names == ("Tall", "Even") and source.attributes[1].tolist() == [True, False]


def test_typing_error_in_a_binary_column_is_warned_of(tmp_path):
    plain_folder(tmp_path, 12, Tall=["1"] * 11 + ["l"])
    with pytest.warns(UserWarning, match="left out.*column 'Tall' holds 'l' in row '11.png'"):
        assert open_folder(tmp_path).attribute_names == ("Even",)


def test_no_binary_column_is_an_error(tmp_path):
    make_folder(tmp_path, {"a.png": encode(noise())}, {"image": ["a.png"], "score": [0.3]})
    with pytest.raises(AttributeTableError, match="no binary column.*columns found: score"):
        open_folder(tmp_path)


def test_bad_group_columns(tmp_path):
    plain_folder(tmp_path, 3, person=["a", "", "b"])
    with pytest.raises(AttributeTableError, match="group column 'person'.*row '01.png'"):
        open_folder(tmp_path, group_column="person")
    with pytest.raises(AttributeTableError, match="no column 'people'.*person"):
        open_folder(tmp_path, group_column="people")


# Parquet


def write_parquet(path, pictures, paths=None, row_group_size=4, **columns):
    """The layout of Hugging Face datasets: a struct of bytes and path."""
    paths = [None] * len(pictures) if paths is None else paths
    images = [{"bytes": raw, "path": name} for raw, name in zip(pictures, paths, strict=True)]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array(images, kind), **columns}), path, row_group_size=row_group_size)
    return path


def plain_parquet(path, n=10, **options):
    pictures = [encode(noise(i)) for i in range(n)]
    return write_parquet(path / "p.parquet", pictures, Tall=[i % 3 == 0 for i in range(n)], **options)


def test_parquet_round_trip(tmp_path):
    names, people = [f"{i}.png" for i in range(10)], [f"p{i // 2}" for i in range(10)]
    path = plain_parquet(tmp_path, paths=names, person=people, score=[0.5] * 10)
    source = ParquetImages(path, 16, group_column="person")
    assert isinstance(source, ImageSource) and source.ids.tolist() == names
    assert source.attribute_names == ("Tall",) and source.attributes[:, 0].tolist() == [i % 3 == 0 for i in range(10)]
    assert source.groups.tolist() == people
    rows = [9, 0, 5, 0, 8]
    assert (source.load(rows) == np.stack([noise(i) for i in rows])).all()


@pytest.mark.parametrize("paths", [None, ["same.png"] * 10, [None] + [f"{i}.png" for i in range(9)]])
def test_parquet_ids_without_unique_paths(tmp_path, paths):
    source = ParquetImages(plain_parquet(tmp_path, 11 if paths is None else 10, paths=paths), 16)
    width = 2 if paths is None else 1
    assert source.ids.tolist() == [f"{i:0{width}d}" for i in range(len(source))]


def test_parquet_written_by_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "Tall": datasets.ClassLabel(names=["no", "yes"])})
    rows = {"image": [Image.fromarray(noise(i)) for i in range(3)], "Tall": [1, 0, 1]}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "d.parquet")
    source = ParquetImages(tmp_path / "d.parquet", 16)
    assert source.attributes[:, 0].tolist() == [True, False, True]
    assert (source.load([2]) == noise(2)).all()


def test_parquet_reads_row_groups_in_order_and_keeps_two(tmp_path, monkeypatch):
    """20 rows in random order, 5 groups: a reading thread that comes late may read its group again, no more."""
    source = ParquetImages(plain_parquet(tmp_path, 20), 16)
    source._kept.clear()
    file = source._groups[0][0]
    read, groups = file.read_row_group, []

    def counted(group, **options):
        groups.append(group)
        return read(group, **options)

    monkeypatch.setattr(file, "read_row_group", counted)
    source.load(np.random.default_rng(0).permutation(20))
    assert set(groups) == {0, 1, 2, 3, 4} and len(groups) < 10 and len(source._kept) == 2


def test_parquet_bad_pictures_and_count(tmp_path):
    pictures = [encode(noise(i)) for i in range(10)]
    pictures[2], pictures[7] = b"text", None
    path = write_parquet(tmp_path / "p.parquet", pictures, Tall=[True] * 10)
    source = ParquetImages(path, 16, count=5, seed=1)
    expected = sorted(np.random.RandomState(1).permutation([0, 1, 3, 4, 5, 6, 8, 9])[:5])
    assert source.ids.tolist() == [str(i) for i in expected]
    assert (source.load(range(5)) == np.stack([noise(i) for i in expected])).all()
    assert set(source.report.skipped) == {"2", "7"} and "holds no bytes" in source.report.skipped["7"]


def test_parquet_missing_values_are_named(tmp_path):
    path = plain_parquet(tmp_path, Short=[True] * 4 + [None] + [False] * 5)
    with pytest.raises(AttributeTableError, match="column 'Short' has no value in row '4'"):
        ParquetImages(path, 16, attributes=["Short"])


def test_parquet_that_is_none(tmp_path):
    path = tmp_path / "p.parquet"
    path.write_bytes(b"no parquet file at all")
    with pytest.raises(ImageSourceError, match="cannot read .*p.parquet as a parquet file"):
        ParquetImages(path, 16)


def test_parquet_with_a_damaged_row_group(tmp_path):
    path = plain_parquet(tmp_path)
    start = pq.ParquetFile(path).metadata.row_group(1).column(0)
    offset = min(o for o in (start.dictionary_page_offset, start.data_page_offset) if o)
    raw = bytearray(path.read_bytes())
    raw[offset : offset + start.total_compressed_size] = b"\xff" * start.total_compressed_size
    path.write_bytes(raw)
    source = ParquetImages(path, 16)
    assert source.ids.tolist() == [str(i) for i in (0, 1, 2, 3, 8, 9)]
    assert set(source.report.skipped) == {"4", "5", "6", "7"}


def test_parquet_image_column(tmp_path):
    path = plain_parquet(tmp_path)
    with pytest.raises(ImageSourceError, match="no image column 'picture' in .*columns found: image, Tall"):
        ParquetImages(path, 16, image_column="picture")
    with pytest.raises(ImageSourceError, match="column 'Tall' .* is bool; expected a struct"):
        ParquetImages(path, 16, image_column="Tall")


def test_parquet_row_group_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_ROW_GROUP", 100)
    with pytest.raises(ImageSourceError, match="row group.*row_group_size"):
        ParquetImages(plain_parquet(tmp_path), 16)


def test_several_parquet_files_are_one_source(tmp_path):
    paths = [tmp_path / f"train-{i}.parquet" for i in range(2)]
    for first, path in zip((0, 5), paths, strict=True):
        names = [f"{i:02d}.png" for i in range(first, first + 5)]
        write_parquet(path, [encode(noise(i)) for i in range(first, first + 5)], names, Tall=[i % 2 == 0 for i in range(first, first + 5)])
    source = ParquetImages(paths, 16)
    assert source.ids.tolist() == [f"{i:02d}.png" for i in range(10)] and source.attributes[:, 0].tolist() == [True, False] * 5
    assert (source.load([7, 1, 4]) == np.stack([noise(i) for i in (7, 1, 4)])).all()
    write_parquet(paths[1], [encode(noise(0))], ["00.png"], Tall=[True])  # a name of the first file: row numbers instead
    assert ParquetImages(paths, 16).ids.tolist() == [str(i) for i in range(6)]


# Profiles


MODEL = {"name": "g", "path": "g"}


def profile(**images):
    return Profile(name="t", title="t", seed=3, images={"size": 16, **images}, generators=[MODEL], encoders=[MODEL | {"name": "e"}])


def test_open_images_follows_the_profile(tmp_path):
    plain_folder(tmp_path, 12, Tall=[1, 0] * 6, person=list("aabbccddeeff"))
    shared = dict(path=str(tmp_path), count=10, attributes=["Tall"], group_column="person")
    source = open_images(profile(source="folder", attributes_csv="attributes.csv", **shared))
    expected = open_folder(tmp_path, count=10, seed=3)
    assert type(source) is FolderImages and source.ids.tolist() == expected.ids.tolist()
    assert source.attribute_names == ("Tall",) and source.size == 16 and len(set(source.groups)) > 1
    path = plain_parquet(tmp_path)
    source = open_images(profile(source="parquet", path=str(path)))
    assert type(source) is ParquetImages and source.attribute_names == ("Tall",) and len(source) == 10


# Classes


CLASSES = ["cat", "dog", "frog"]


def flat(shade):
    return np.full((8, 8, 3), shade, np.uint8)


def labelled_parquet(path, labels):
    pictures = [encode(flat(20 * i)) for i in range(len(labels))]
    return write_parquet(path / "p.parquet", pictures, [f"{i}.png" for i in range(len(labels))], label=labels)


@pytest.mark.parametrize("labels", [[2, 0, 1, 2], ["frog", "cat", "dog", "frog"]])
def test_numbers_and_names_become_one_attribute_a_class(tmp_path, labels):
    source = ParquetImages(labelled_parquet(tmp_path, labels), 8, class_column="label", classes=CLASSES)
    assert source.attribute_names == tuple(CLASSES)
    np.testing.assert_array_equal(source.attributes, np.eye(3, dtype=bool)[[2, 0, 1, 2]])


def test_the_draw_keeps_pictures_and_classes_together(tmp_path):
    labels = [i % 3 for i in range(12)]
    source = ParquetImages(labelled_parquet(tmp_path, labels), 8, count=5, seed=1, class_column="label", classes=CLASSES)
    rows = source.load(range(5))[:, 0, 0, 0] // 20
    np.testing.assert_array_equal(source.attributes.argmax(1), np.asarray(labels)[rows])


def test_a_folder_with_classes_beside_a_binary_column(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(encode(flat(30 * i)))
    pd.DataFrame({"image": ["0.png", "1.png", "2.png"], "kind": ["dog", "cat", "dog"], "indoors": [1, 0, 0]}).to_csv(tmp_path / "t.csv", index=False)
    source = FolderImages(tmp_path, "t.csv", 8, class_column="kind", classes=["cat", "dog"])
    assert source.attribute_names == ("indoors", "cat", "dog")
    np.testing.assert_array_equal(source.attributes, [[True, False, True], [False, True, False], [False, False, True]])


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0, 1, 3], CLASSES, r"column 'label' holds '3' in row '2.png'; expected 0 to 2 or one of cat, dog, frog"),
        (["cat", "cow", "dog"], CLASSES, "'cow' in row '1.png'"),
        ([0, None, 1], CLASSES, "column 'label' has no value in row '1.png'"),
        ([0, 1, 0], ["cat", "cat"], "names cat more than once"),
    ],
)
def test_what_is_no_class_is_refused(tmp_path, labels, classes, message):
    with pytest.raises(AttributeTableError, match=message):
        ParquetImages(labelled_parquet(tmp_path, labels), 8, class_column="label", classes=classes)


def test_a_missing_class_column(tmp_path):
    with pytest.raises(AttributeTableError, match="no column 'kind'.*label"):
        ParquetImages(labelled_parquet(tmp_path, [0, 1, 2]), 8, class_column="kind", classes=CLASSES)
