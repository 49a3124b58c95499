"""Rows of an array on disk that are read a block at a time: what lets an analysis see more than fits in memory."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

BLOCK_BYTES = 64 * 2**20  # float32 bytes of one block of rows
QUIET_BELOW = 2**30  # no progress bar for a pass over fewer bytes


class StoredRows:
    """Some rows of a memory-mapped array (M, D), in an order of their own; nothing is read before it is asked for.

    Indexing by rows (slice, integers or mask) gives other rows and reads nothing; `read` and `blocks` read.

    Attributes:
        array: (M, D) float16 or float32, usually a ``np.memmap``.
        rows: (N,) positions in ``array``.
        shape: (N, D).
        place: folder in which what is computed from all of these rows may be kept; None for rows of no known origin, and for a choice
            of rows.
    """

    ndim = 2
    dtype = np.dtype(np.float32)  # of what is read

    def __init__(self, array: np.ndarray, rows: np.ndarray | None = None, place: Path | None = None):
        if array.ndim != 2:
            raise ValueError(f"stored latents must be (N, D), got shape {array.shape}")
        self.array = array
        self.rows = np.arange(len(array)) if rows is None else np.asarray(rows)
        self.shape = (len(self.rows), array.shape[1])
        self.place = place

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | np.ndarray) -> StoredRows:
        if isinstance(rows, tuple):
            raise TypeError("stored latents are indexed by rows; read the rows first: x.read(rows)[:, columns]")
        return StoredRows(self.array, np.atleast_1d(self.rows[rows]))

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        raise TypeError(
            f"{self.shape[0]:,} x {self.shape[1]:,} stored latents are not loaded as a whole by this function; "
            "give it some rows, x.read(rows), or use one that reads blocks of rows (see une_utils.analysis.outofcore)"
        )

    def read(self, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Those rows, (n, D) float32. Raises ValueError for NaN or inf."""
        block = np.asarray(self.array[self.rows[rows]], dtype=np.float32)
        _release(self.array)
        if not np.isfinite(block).all():
            raise ValueError("stored latents contain NaN or inf")
        return block

    def pick(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Single values, float32, of rows and columns that NumPy broadcasts: every value costs a page of the file, 4 KB of memory."""
        values = np.asarray(self.array[self.rows[rows], columns], dtype=np.float32)
        _release(self.array)
        return values

    def blocks(self, task: str, block_bytes: int | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        """Slices of the rows and their latents, (b, D) float32, in order and of at most ``block_bytes`` bytes (or one row).

        Args:
            task: text of the progress bar, which is shown for a pass over more than 1 GiB.
        """
        width = max(1, (block_bytes or BLOCK_BYTES) // (4 * self.shape[1]))
        quiet = 4 * self.shape[0] * self.shape[1] < QUIET_BELOW
        with tqdm(total=len(self), desc=task, unit="row", unit_scale=True, disable=quiet) as bar:
            for start in range(0, len(self), width):
                part = slice(start, min(start + width, len(self)))
                yield part, self.read(part)
                bar.update(part.stop - start)


def _release(array: np.ndarray) -> None:
    """Let go of the pages of a memory map: they count as this process's memory until another process needs the room."""
    if isinstance(array, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
        array._mmap.madvise(mmap.MADV_DONTNEED)


def read_rows(X: np.ndarray | StoredRows, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
    """Some rows as an array: float32 from a store, X's own type from memory."""
    return X.read(rows) if isinstance(X, StoredRows) else X[rows]
