"""Rows on disk: what is read, and that nothing is read unasked."""

import numpy as np
import pytest

from une_utils import stored
from une_utils.stored import StoredRows


@pytest.fixture
def values(tmp_path):
    x = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float16)
    np.save(tmp_path / "x.npy", x)
    return x, np.load(tmp_path / "x.npy", mmap_mode="r")


def test_rows_of_rows(values):
    x, mapped = values
    every = StoredRows(mapped)
    assert every.shape == (20, 6) and len(every) == 20 and (every.read() == x).all() and every.read().dtype == np.float32
    mask = np.arange(20) % 3 == 0
    some = every[mask][::-1][np.array([0, 2, 2])]
    assert some.shape == (3, 6) and (some.read() == x[mask][::-1][[0, 2, 2]]).all()
    assert (some.read(slice(1, 3)) == x[[12, 12]]).all() and every[5].shape == (1, 6)


def test_single_values(values):
    x, mapped = values
    rows, columns = np.array([[3, 0], [1, 1]]), np.array([[5], [2]])
    picked = StoredRows(mapped)[::-1].pick(rows, columns)
    assert (picked == x[::-1][rows, columns]).all() and picked.dtype == np.float32


@pytest.mark.parametrize("block_bytes, heights", [(24 * 7, [7, 7, 6]), (1, [1] * 20), (10**6, [20])])
def test_blocks_cover_the_rows_in_order(values, block_bytes, heights):
    x, mapped = values
    parts = list(StoredRows(mapped).blocks("reading", block_bytes))
    assert [len(block) for _, block in parts] == heights
    assert (np.concatenate([block for _, block in parts]) == x).all()
    assert np.concatenate([np.arange(20)[part] for part, _ in parts]).tolist() == list(range(20))


def test_progress_bar_for_long_passes_only(values, capsys, monkeypatch):
    rows = StoredRows(values[1])
    list(rows.blocks("reading"))
    assert "reading" not in capsys.readouterr().err
    monkeypatch.setattr(stored, "QUIET_BELOW", 0)
    list(rows.blocks("reading"))
    assert "reading: 100%" in capsys.readouterr().err


def test_nothing_is_loaded_unasked(values):
    rows = StoredRows(values[1])
    with pytest.raises(TypeError, match="20 x 6 stored latents are not loaded as a whole"):
        np.asarray(rows)
    with pytest.raises(TypeError, match="indexed by rows"):
        rows[:, 0]
    with pytest.raises(ValueError, match=r"must be \(N, D\)"):
        StoredRows(np.zeros(3))


def test_values_that_are_not_finite():
    x = np.zeros((4, 2), np.float16)
    x[2, 1] = np.inf
    with pytest.raises(ValueError, match="NaN or inf"):
        list(StoredRows(x).blocks("reading"))
    assert len(StoredRows(x)[:2].read()) == 2
