"""Where a local shard lies in its leaf.

A shard is a contiguous slice of its leaf in every dim. In row-major order its entries are not one
run of flat indices, but they are in the same order as in the leaf. That is all that a threshold
needs: the entries up to a flat index of the leaf are the first so many entries of the shard.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor


class ShardSlice(NamedTuple):
    """A slice of a leaf, outermost dim first.

    Attributes:
        shape: the shape of the leaf.
        start: where the slice begins in each dim.
        size: how many indices it has in each dim.
    """

    shape: tuple[int, ...]
    start: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def num_entries(self) -> int:
        """How many entries the leaf has."""
        return math.prod(self.shape)

    def leaf_index(self, positions: Tensor) -> Tensor:
        """Give the flat indices in the leaf of some entries of the slice.

        Args:
            positions: flat indices in the slice, int64.

        Returns:
            A fresh tensor of the same shape, ascending where `positions` is.
        """
        dims = self._merged_dims()
        found, stride = positions.new_zeros(()), 1
        for full, first, length in reversed(dims[1:]):
            found = (positions % length + first) * stride + found
            positions = positions // length
            stride *= full
        return (positions + dims[0][1]) * stride + found

    def num_before(self, leaf_index: int) -> int:
        """Count the entries of the slice at lower flat indices of the leaf than this one."""
        count, volume, stride = 0, math.prod(self.size), self.num_entries
        if volume == 0:
            return 0
        for full, first, length in self._merged_dims():
            stride, volume = stride // full, volume // length
            index = leaf_index // stride - first
            count += min(max(index, 0), length) * volume
            if not 0 <= index < length:
                break
            leaf_index %= stride
        return count

    def _merged_dims(self) -> list[tuple[int, int, int]]:
        """Give (full, first, length) of each dim; a dim that is whole merges with the one before."""
        dims: list[tuple[int, int, int]] = []
        for full, first, length in zip(self.shape, self.start, self.size, strict=True):
            if dims and length == full:
                dims[-1] = (dims[-1][0] * full, dims[-1][1] * full, dims[-1][2] * full)
            else:
                dims.append((full, first, length))
        return dims or [(1, 0, 1)]
