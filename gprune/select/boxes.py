"""Boxes: where a part of a leaf lies in the whole leaf.

A shard holds a box of its leaf, and in row-major order a box is not one run of flat indices. But
the order of its entries is the same in both, which is all that a cut needs: the entries up to a
flat index of the leaf are the first so many entries of the box.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor


class Box(NamedTuple):
    """A box in a leaf, outermost dim first.

    Attributes:
        shape: of the leaf.
        start: where the box begins in each dim.
        size: how far it reaches.
    """

    shape: tuple[int, ...]
    start: tuple[int, ...]
    size: tuple[int, ...]

    def places(self, entries: Tensor) -> Tensor:
        """Give the flat indices in the leaf of some entries of the box.

        Args:
            entries: flat indices in the box, int64.

        Returns:
            A fresh tensor of that shape; what ascends, ascends.
        """
        dims = self._dims()
        found, stride = entries.new_zeros(()), 1
        for full, first, length in reversed(dims[1:]):
            found = (entries % length + first) * stride + found
            entries = entries // length
            stride *= full
        return (entries + dims[0][1]) * stride + found

    def before(self, place: int) -> int:
        """Count the entries of the box at lower flat indices of the leaf than this one."""
        count, volume, stride = 0, math.prod(self.size), math.prod(self.shape)
        if volume == 0:
            return 0
        for full, first, length in self._dims():
            stride, volume = stride // full, volume // length
            at = place // stride - first
            count += min(max(at, 0), length) * volume
            if not 0 <= at < length:
                break
            place %= stride
        return count

    def _dims(self) -> list[tuple[int, int, int]]:
        """Give (full, first, length) of each dim; one that is whole joins the one outside it."""
        dims: list[tuple[int, int, int]] = []
        for full, first, length in zip(self.shape, self.start, self.size, strict=True):
            if dims and length == full:
                dims[-1] = (dims[-1][0] * full, dims[-1][1] * full, dims[-1][2] * full)
            else:
                dims.append((full, first, length))
        return dims or [(1, 0, 1)]
