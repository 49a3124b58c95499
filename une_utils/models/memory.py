"""Batches as large as the device's memory allows."""

from __future__ import annotations

from collections.abc import Callable

import torch


class Halving:
    """A function of rows that is called on as many rows at once as fit into memory.

    It begins with all rows of a call. When the device runs out of memory the batch is halved and the rows that are left go
    on; the size that fitted is kept for later calls.

    Attributes:
        rows: largest batch that is tried; None for no limit.
    """

    def __init__(self, function: Callable[..., torch.Tensor], rows: int | None = None):
        self.function, self.rows = function, rows

    def __call__(self, x: torch.Tensor, *others) -> torch.Tensor:
        """``function(x, *others)`` of rows x (N, ...), joined along the first axis.

        Raises:
            torch.OutOfMemoryError: a single row does not fit.
        """
        parts, done = [], 0
        while done < len(x) or not parts:
            size = min(self.rows or len(x), len(x) - done)
            try:
                parts.append(self.function(x[done : done + size], *others))
            except torch.OutOfMemoryError as error:
                if size <= 1:
                    raise torch.OutOfMemoryError(f"one row of shape {tuple(x.shape[1:])} does not fit into the device's memory: {error}") from None
                self.rows = size // 2
            else:
                done += size
                continue
            torch.cuda.empty_cache()  # here and not above: the exception keeps the failed call's tensors alive
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def default_device() -> torch.device:
    """The first CUDA device, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
