"""The candidates as a stream of chunks in flat order, never more than a block at a time.

A ranking says what is ranked and how. It holds the leaves as they are, of any layout. A large leaf
is streamed in blocks; small leaves that follow each other are joined into one, so a model of ten
thousand tiny leaves costs little more than one of a few large ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from gprune.select.boxes import Box
from gprune.select.draws import draw
from gprune.select.host import to_host
from gprune.select.keys import DOUBLE, KeySpace, common_space

BLOCK = 2**20
"""Entries in a block: so many that the cost of calling an operator is hidden."""


class Chunk(NamedTuple):
    """Consecutive entries: a block of one leaf, or several whole small leaves.

    Attributes:
        start: flat index of the first entry in the whole ranking.
        scores: 1-D.
        prior: their part of the prior masks, if there are any; 1-D bool.
        leaf: the number of the first leaf.
        at: flat index of the first entry in that leaf.
        sizes: how many entries of each leaf are here; one number for a block.
    """

    start: int
    scores: Tensor
    prior: Tensor | None
    leaf: int
    at: int
    sizes: list[int]

    @property
    def stop(self) -> int:
        """Flat index behind the last entry."""
        return self.start + self.scores.numel()


@dataclass(frozen=True)
class Ranking:
    """What is ranked, and how.

    Attributes:
        scores: one tensor per prunable leaf, of any shape and layout.
        masks: the prior mask of each leaf, or an empty list where nothing is pruned yet.
        absolute: whether the absolute value ranks.
        seed: if given, random draws rank and the values of `scores` do not matter.
        first: the number of the first leaf, which a random draw depends on.
        boxes: where each of the leaves lies in the whole one, or an empty list where all are whole.
    """

    scores: list[Tensor]
    masks: list[Tensor]
    absolute: bool = False
    seed: int | None = None
    first: int = 0
    boxes: Sequence[Box] = ()

    @cached_property
    def offsets(self) -> list[int]:
        """The flat index of each leaf's first entry, and behind them the number of entries."""
        return [0, *accumulate(leaf.numel() for leaf in self.scores)]

    @property
    def entries(self) -> int:
        """How many prunable entries there are."""
        return self.offsets[-1]

    @cached_property
    def candidates(self) -> int:
        """How many entries the prior masks keep."""
        if not self.masks:
            return self.entries
        return sum(to_host([mask.count_nonzero() for mask in self.masks]))

    @cached_property
    def space(self) -> KeySpace:
        """The space in which all the leaves can be compared."""
        return DOUBLE if self.seed is not None else common_space({x.dtype for x in self.scores})

    def only(self, leaf: int) -> Ranking:
        """Give the ranking of one leaf alone."""
        own = slice(leaf, leaf + 1)
        return Ranking(
            self.scores[own],
            self.masks[own],
            self.absolute,
            self.seed,
            self.first + leaf,
            self.boxes[own],
        )

    @cached_property
    def pieces(self) -> list[range]:
        """The leaves as they are streamed: a large one alone, small neighbours joined.

        Leaves without entries may lie between those of a piece, and are in no other.
        """
        pieces: list[range] = []
        for leaf, scores in enumerate(self.scores):
            if scores.numel() == 0:
                continue
            if pieces and self._joins(pieces[-1], leaf):
                pieces[-1] = range(pieces[-1].start, leaf + 1)
            else:
                pieces.append(range(leaf, leaf + 1))
        return pieces

    def chunks(self, start: int = 0) -> Iterator[Chunk]:
        """Stream the entries in flat order.

        Args:
            start: pieces that end up to this flat index are left out.

        Yields:
            Chunks of at most `BLOCK` entries; empty leaves are in none.
        """
        for piece in self.pieces:
            if self.offsets[piece.stop] <= start:
                continue
            if len(piece) > 1:
                yield self.joined(piece)
            else:
                yield from self._blocks(piece.start)

    def joined_chunks(self) -> Iterator[Chunk]:
        """Stream the pieces of several leaves only."""
        return (self.joined(piece) for piece in self.pieces if len(piece) > 1)

    def joined(self, piece: range) -> Chunk:
        """Copy the leaves of a piece into one chunk."""
        scores = torch.cat([self.scores[leaf].reshape(-1) for leaf in piece])
        prior = torch.cat([self.masks[leaf].reshape(-1) for leaf in piece]) if self.masks else None
        sizes = [self.scores[leaf].numel() for leaf in piece]
        return Chunk(self.offsets[piece.start], scores, prior, piece.start, 0, sizes)

    def _joins(self, piece: range, leaf: int) -> bool:
        """Say whether a leaf may join a piece: both small, of one kind, not too much together."""
        last, scores = self.scores[piece[-1]], self.scores[leaf]
        small = max(last.numel(), scores.numel()) <= BLOCK // 8 and self.seed is None
        alike = scores.dtype == last.dtype and scores.device == last.device
        return small and alike and self.offsets[leaf + 1] - self.offsets[piece.start] <= BLOCK

    def _blocks(self, leaf: int) -> Iterator[Chunk]:
        at = 0
        for block in flat_blocks(self.scores[leaf], *self.masks[leaf : leaf + 1]):
            scores, prior = block[0], block[1] if self.masks else None
            size = scores.numel()
            if self.seed is not None:
                places = torch.arange(at, at + size, device=scores.device)
                places = self.boxes[leaf].places(places) if self.boxes else places
                scores = draw(self.seed, self.first + leaf, places)
            yield Chunk(self.offsets[leaf] + at, scores, prior, leaf, at, [size])
            at += size


def flat_blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of one shape into 1-D blocks in flat (row-major) order.

    A contiguous tensor is only viewed; of any other layout one block at a time is copied.

    Args:
        *tensors: tensors of one shape; nothing is yielded where they are empty.

    Yields:
        One 1-D block of each tensor, all of the same entries, at most `BLOCK`.
    """
    shape = tensors[0].shape
    if shape.numel() == 0:
        return
    if all(tensor.is_contiguous() for tensor in tensors):
        yield from zip(*(torch.split(tensor.view(-1), BLOCK) for tensor in tensors), strict=True)
    elif shape.numel() <= BLOCK:
        yield tuple(tensor.reshape(-1) for tensor in tensors)
    elif (rows := BLOCK // shape[1:].numel()) > 0:
        for group in zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True):
            yield from flat_blocks(*group)
    else:
        for group in zip(*(tensor.unbind(0) for tensor in tensors), strict=True):
            yield from flat_blocks(*group)
