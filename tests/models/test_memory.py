"""Batches that shrink until they fit."""

import pytest
import torch

from une_utils.models.memory import Halving


class Small:
    """Squares up to ``room`` rows and records what it was asked for."""

    def __init__(self, room):
        self.room, self.asked = room, []

    def __call__(self, x, power):
        self.asked.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory (a fake)")
        return x**power


def test_the_batch_is_halved_until_it_fits_and_remembered():
    function = Small(3)
    halving, x = Halving(function), torch.arange(10.0)[:, None]
    assert torch.equal(halving(x, 2), x**2)
    assert function.asked == [10, 5, 2, 2, 2, 2, 2]
    function.asked.clear()
    assert torch.equal(halving(x[:5], 3), x[:5] ** 3)
    assert function.asked == [2, 2, 1]


def test_without_trouble_there_is_one_call():
    function = Small(100)
    assert Halving(function)(torch.ones(7, 2), 1).shape == (7, 2) and function.asked == [7]
    assert Halving(function)(torch.ones(0, 2), 1).shape == (0, 2)


def test_a_limit_comes_first():
    function = Small(100)
    Halving(function, rows=3)(torch.ones(7, 2), 1)
    assert function.asked == [3, 3, 1]


def test_memory_that_runs_out_in_the_middle_loses_nothing():
    function = Small(4)
    halving, x = Halving(function, rows=4), torch.arange(9.0)[:, None]
    halving(x[:4], 1)
    function.room = 1
    assert torch.equal(halving(x, 2), x**2) and halving.rows == 1


def test_a_row_that_does_not_fit_is_an_error():
    with pytest.raises(torch.OutOfMemoryError, match=r"one row of shape \(2,\) does not fit.*a fake"):
        Halving(Small(0))(torch.ones(3, 2), 1)


def test_other_errors_are_left_alone():
    def broken(x):
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        Halving(broken)(torch.ones(4, 1))
