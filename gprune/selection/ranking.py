"""The candidates as a stream: blocks of keys in flat order, never more than a block at a time.

A ranking says what is ranked and how. It holds the leaves as they are, of any layout, and computes
keys block by block, so magnitudes, random scores and upcasts are never stored for a whole leaf.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gprune.selection.draws import draw
from gprune.selection.keys import DOUBLE, KeySpace, keys, space_of

BLOCK = 2**18
"""Entries in a block: large enough to hide the cost of an operator, small enough for the cache."""


@dataclass(frozen=True)
class Ranking:
    """What is ranked, and how.

    Attributes:
        scores: one tensor per prunable leaf, of any shape and layout.
        masks: the prior mask of each leaf, or an empty list where nothing is pruned yet.
        absolute: whether the absolute value ranks.
        seed: if given, random draws rank and the values of `scores` do not matter.
        first: the number of the first leaf, which a random draw depends on.
    """

    scores: list[Tensor]
    masks: list[Tensor]
    absolute: bool = False
    seed: int | None = None
    first: int = 0

    @property
    def entries(self) -> int:
        """How many prunable entries there are."""
        return sum(leaf.numel() for leaf in self.scores)

    def num_candidates(self) -> int:
        """Count the entries that the prior masks keep."""
        if not self.masks:
            return self.entries
        return sum(int(mask.count_nonzero()) for mask in self.masks)

    def space(self) -> KeySpace:
        """Give the space in which all the leaves can be compared."""
        return DOUBLE if self.seed is not None else space_of({x.dtype for x in self.scores})

    def only(self, leaf: int) -> Ranking:
        """Give the ranking of one leaf alone."""
        masks = self.masks[leaf : leaf + 1]
        return Ranking([self.scores[leaf]], masks, self.absolute, self.seed, self.first + leaf)

    def blocks(self, leaf: int, space: KeySpace) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Stream one leaf.

        Args:
            leaf: its position in `scores`.
            space: the key space, in which the leaf must be exact.

        Yields:
            The flat index in the leaf of the block's first entry, its keys, and its part of the
            prior mask, if there is one; both 1-D.
        """
        start = 0
        for block in flat_blocks(self.scores[leaf], *self.masks[leaf : leaf + 1]):
            scores, prior = block[0], block[1] if self.masks else None
            stop = start + scores.numel()
            if self.seed is not None:
                scores = draw(self.seed, self.first + leaf, start, stop, scores.device)
            yield start, keys(scores, space, absolute=self.absolute), prior
            start = stop

    def candidate_keys(self, leaf: int, space: KeySpace) -> Iterator[Tensor]:
        """Stream the keys of a leaf's candidates."""
        for _, block, prior in self.blocks(leaf, space):
            yield block if prior is None else block[prior]


def flat_blocks(*tensors: Tensor, size: int | None = None) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of one shape into 1-D blocks in flat (row-major) order.

    A contiguous tensor is only viewed; of any other layout one block at a time is copied.

    Args:
        *tensors: tensors of one shape; nothing is yielded where they are empty.
        size: the most entries in a block, `BLOCK` if not given.

    Yields:
        One 1-D block of each tensor, all of the same entries.
    """
    size = BLOCK if size is None else size
    shape = tensors[0].shape
    if shape.numel() == 0:
        return
    if all(tensor.is_contiguous() for tensor in tensors):
        yield from zip(*(torch.split(tensor.view(-1), size) for tensor in tensors), strict=True)
    elif shape.numel() <= size:
        yield tuple(tensor.reshape(-1) for tensor in tensors)
    elif (rows := size // shape[1:].numel()) > 0:
        for group in zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True):
            yield from flat_blocks(*group, size=size)
    else:
        for group in zip(*(tensor.unbind(0) for tensor in tensors), strict=True):
            yield from flat_blocks(*group, size=size)
