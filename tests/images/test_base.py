"""Splits, fingerprints, reports and the change of range."""

from types import SimpleNamespace

import numpy as np
import pytest

from une_utils.images import SourceReport, fingerprint, to_model_range, to_uint8, train_mask


class Rows:
    """A source without pictures."""

    def __init__(self, n, groups=None):
        self.ids = np.array([f"{i}.png" for i in range(n)])
        self.attributes = np.arange(n)[:, None] % 2 == 0
        self.attribute_names = ("Even",)
        self.groups = None if groups is None else np.asarray(groups)
        self.size = 8
        self.report = SourceReport(used=n)

    def __len__(self):
        return len(self.ids)


@pytest.mark.parametrize("n, fraction, seed", [(10, 0.8, 42), (101, 0.8, 0), (7, 0.5, 3), (19867, 0.8, 42)])
def test_split_is_the_official_recipe(n, fraction, seed):
    np.random.seed(seed)
    indices = np.arange(n)
    np.random.shuffle(indices)
    expected = set(indices[: int(n * fraction)])
    assert set(np.flatnonzero(train_mask(Rows(n), fraction, seed))) == expected


def test_split_depends_on_the_seed_only():
    assert (train_mask(Rows(100), 0.8, 1) == train_mask(Rows(100), 0.8, 1)).all()
    assert (train_mask(Rows(100), 0.8, 1) != train_mask(Rows(100), 0.8, 2)).any()


@pytest.mark.parametrize("seed", range(5))
def test_no_group_crosses(seed):
    groups = np.random.default_rng(seed).integers(0, 40, 200).astype(str)
    train = train_mask(Rows(200, groups), 0.8, seed)
    assert not set(groups[train]) & set(groups[~train])
    largest = np.unique(groups, return_counts=True)[1].max()
    assert 160 <= train.sum() < 160 + largest  # filled until the share is reached, and not a group further


def test_group_split_does_not_depend_on_row_order():
    groups = np.array(list("aabbccddeeff"))
    shuffled = np.random.default_rng(0).permutation(12)
    first, second = train_mask(Rows(12, groups), 0.5, 4), train_mask(Rows(12, groups[shuffled]), 0.5, 4)
    assert (first[shuffled] == second).all()


def test_groups_of_one_row_split_like_rows():
    names = np.array([f"{i:03d}" for i in range(50)])
    assert (train_mask(Rows(50, names), 0.8, 9) == train_mask(Rows(50), 0.8, 9)).all()


@pytest.mark.parametrize("fraction", [0, 1, -0.2, 1.5, float("nan")])
def test_split_refuses_a_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match="train_fraction"):
        train_mask(Rows(10), fraction, 0)


@pytest.mark.parametrize(
    "source, fraction, side",
    [
        (Rows(1), 0.8, "training"),
        (Rows(3), 0.1, "training"),
        (Rows(0), 0.5, "training"),
        (Rows(4, list("aaaa")), 0.5, "test"),
    ],
)
def test_split_refuses_an_empty_side(source, fraction, side):
    with pytest.raises(ValueError, match=f"{side} side would be empty"):
        train_mask(source, fraction, 0)


def test_fingerprint_sees_every_part():
    plain = Rows(6)
    assert fingerprint(plain) == fingerprint(Rows(6))
    assert len(fingerprint(plain)) == 16 and int(fingerprint(plain), 16) >= 0
    changes = {
        "ids": plain.ids[::-1],
        "attribute_names": ("Odd",),
        "attributes": ~plain.attributes,
        "size": 16,
    }
    others = {fingerprint(SimpleNamespace(**{**vars(plain), name: value})) for name, value in changes.items()}
    assert len(others | {fingerprint(plain)}) == 5


def test_ranges_are_inverse():
    levels = np.random.default_rng(0).permutation(np.arange(256).repeat(3)).astype(np.uint8).reshape(4, 8, 8, 3)
    x = to_model_range(levels)
    assert x.dtype == np.float32 and x.shape == (4, 3, 8, 8)
    assert x.min() == -1 and x.max() == 1
    assert x[1, 2, 3, 4] == pytest.approx(levels[1, 3, 4, 2] / 127.5 - 1, abs=1e-6)
    assert (to_uint8(x) == levels).all()


def test_to_uint8_clips_and_rounds():
    x = np.full((1, 3, 1, 1), [[[[-7.0]], [[9.0]], [[0.0051]]]])
    assert to_uint8(x).ravel().tolist() == [0, 255, 128]


def test_ranges_refuse_other_arrays():
    with pytest.raises(ValueError, match="uint8"):
        to_model_range(np.zeros((1, 4, 4, 3)))
    with pytest.raises(ValueError, match=r"\(N, H, W, 3\)"):
        to_model_range(np.zeros((1, 3, 4, 4), np.uint8))
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\)"):
        to_uint8(np.zeros((1, 4, 4, 3)))
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(np.full((1, 3, 2, 2), np.nan))


def test_report_names_ten_of_each_and_lists_all():
    report = SourceReport(
        used=5,
        converted={"a.png": "greyscale to RGB"},
        skipped={f"bad{i:02d}.png": "empty file" for i in range(12)},
        rows_without_picture=["gone.png"],
        pictures_without_row=["extra.png"],
    )
    text = report.summary()
    assert text.startswith("5 pictures used\n")
    assert "bad09.png (empty file), and 2 more" in text and "bad10.png" not in text
    assert "converted: 1: a.png (greyscale to RGB)" in text
    assert "row without picture: 1: gone.png" in text and "picture without row: 1: extra.png" in text
    frame = report.frame()
    assert list(frame.columns) == ["id", "what", "detail"]
    assert frame["what"].value_counts().to_dict() == {
        "skipped": 12, "converted": 1, "row without picture": 1, "picture without row": 1,
    }  # fmt: skip


def test_report_without_findings_is_one_line():
    assert SourceReport(used=3).summary() == "3 pictures used"
    assert SourceReport(used=3).frame().empty
