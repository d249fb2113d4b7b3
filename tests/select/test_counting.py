"""Counting and finding bools that are packed in words, and histograms."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gprune.select import counting
from gprune.select.counting import LANE, WORD


def bools(size: int, share: float, seed: int = 0) -> torch.Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed)) < share


@pytest.mark.parametrize("words", [0, 1, 2, LANE - 1, LANE, LANE + 1, 3 * LANE, 3 * LANE + 5])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_packed_bools_are_counted_and_found(words: int, share: float) -> None:
    packed = bools(words * WORD, share)
    count = counting.count_packed(packed)
    assert (count.dtype, count.shape) == (torch.int64, ())
    assert int(count) == int(packed.sum())
    found = counting.find_packed(packed)
    assert found.dtype == torch.int64
    assert found.equal(packed.nonzero().view(-1))


@given(st.integers(0, 100), st.sampled_from([0.0, 0.1, 1.0]), st.integers(0, 9))
def test_true_ones_are_found_whatever_the_length(size: int, share: float, seed: int) -> None:
    some = bools(size, share, seed)
    assert counting.find_true(some).equal(some.nonzero().view(-1))


def test_concatenate() -> None:
    one = torch.arange(3)
    assert counting.concatenate([one]) is one
    assert counting.concatenate([one, one[:0], one]).tolist() == [0, 1, 2, 0, 1, 2]
    none = counting.concatenate([])
    assert (none.dtype, none.shape, none.device.type) == (torch.int64, (0,), "cpu")


class Elsewhere(torch.Tensor):
    """A tensor on the CPU that says that it is on another device."""

    @property
    def device(self):
        return Device("cpu")


class Device(str):
    type = "another"


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("kind", [torch.Tensor, Elsewhere])
def test_histogram(dtype: torch.dtype, kind: type[torch.Tensor]) -> None:
    bins = np.random.default_rng(0).integers(0, 30, 500)
    tensor = torch.from_numpy(bins).to(dtype).as_subclass(kind)
    counts = counting.histogram(tensor, 40)
    assert counts.dtype == torch.int64
    assert counts.tolist() == np.bincount(bins, minlength=40).tolist()
    assert counting.histogram(tensor[:0], 3).tolist() == [0, 0, 0]
