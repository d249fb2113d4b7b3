"""Shards are slices: their entries are in the order that they have in the leaf."""

import math

import numpy as np
import torch
from gprune.select.slices import ShardSlice
from hypothesis import given
from hypothesis import strategies as st


@st.composite
def slices(draw: st.DrawFn) -> ShardSlice:
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    start = tuple(draw(st.integers(0, n)) for n in shape)
    size = tuple(draw(st.integers(0, n - at)) for n, at in zip(shape, start, strict=True))
    if draw(st.booleans()):  # whole in some dims, which are then one
        full = [draw(st.booleans()) for _ in shape]
        start = tuple(0 if own else at for own, at in zip(full, start, strict=True))
        size = tuple(n if own else m for own, n, m in zip(full, shape, size, strict=True))
    return ShardSlice(shape, start, size)


def indices(piece: ShardSlice) -> np.ndarray:
    """The flat indices in the leaf of the entries of the slice, from numpy."""
    every = np.arange(math.prod(piece.shape)).reshape(piece.shape)
    at = tuple(slice(a, a + n) for a, n in zip(piece.start, piece.size, strict=True))
    return every[at].reshape(-1)


@given(slices())
def test_leaf_index(piece: ShardSlice) -> None:
    expected = indices(piece)
    positions = torch.arange(len(expected))
    found = piece.leaf_index(positions)
    assert found.dtype == torch.int64
    assert found.tolist() == expected.tolist()
    assert positions.equal(torch.arange(len(expected)))
    assert piece.leaf_index(positions.flip(0)).tolist() == expected[::-1].tolist()
    assert piece.num_entries == math.prod(piece.shape)


@given(slices())
def test_num_before(piece: ShardSlice) -> None:
    expected = indices(piece)
    for index in range(-2, math.prod(piece.shape) + 3):
        assert piece.num_before(index) == int((expected < index).sum()), index


def test_a_leaf_without_dims() -> None:
    piece = ShardSlice((), (), ())
    assert piece.leaf_index(torch.tensor([0])).tolist() == [0]
    assert [piece.num_before(i) for i in (-1, 0, 1, 2)] == [0, 0, 1, 1]


def test_more_entries_than_32_bits_count() -> None:
    piece = ShardSlice((2**20, 2**13), (2**19, 5), (2**19, 2**10))
    assert piece.leaf_index(torch.tensor([2**29 - 1])).item() == (2**20 - 1) * 2**13 + 5 + 2**10 - 1
    assert piece.num_before(2**33) == 2**29
