"""Classes as attributes: numbers and names, and what is refused."""

import io

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from une_utils.images import AttributeTableError, FolderImages, ParquetImages

CLASSES = ["cat", "dog", "frog"]


def png(shade):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def parquet(path, labels):
    pictures = [{"bytes": png(20 * i), "path": f"{i}.png"} for i in range(len(labels))]
    pq.write_table(pa.table({"image": pictures, "label": labels}), path)
    return path


@pytest.mark.parametrize("labels", [[2, 0, 1, 2], ["frog", "cat", "dog", "frog"]])
def test_numbers_and_names_become_one_attribute_a_class(tmp_path, labels):
    source = ParquetImages(parquet(tmp_path / "a.parquet", labels), 8, class_column="label", classes=CLASSES)
    assert source.attribute_names == tuple(CLASSES)
    np.testing.assert_array_equal(source.attributes, np.eye(3, dtype=bool)[[2, 0, 1, 2]])


def test_the_draw_keeps_pictures_and_classes_together(tmp_path):
    labels = [i % 3 for i in range(12)]
    source = ParquetImages(parquet(tmp_path / "a.parquet", labels), 8, count=5, seed=1, class_column="label", classes=CLASSES)
    rows = source.load(range(5))[:, 0, 0, 0] // 20
    np.testing.assert_array_equal(source.attributes.argmax(1), np.asarray(labels)[rows])


def test_a_folder_with_classes_beside_a_binary_column(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(30 * i))
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
        ParquetImages(parquet(tmp_path / "a.parquet", labels), 8, class_column="label", classes=classes)


def test_a_missing_class_column(tmp_path):
    with pytest.raises(AttributeTableError, match="no column 'kind'.*label"):
        ParquetImages(parquet(tmp_path / "a.parquet", [0, 1, 2]), 8, class_column="kind", classes=CLASSES)
