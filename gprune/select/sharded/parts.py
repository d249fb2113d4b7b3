"""Parts: some of the shards of a rank, and how their flat indices are related to the tree's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from gprune.select.boxes import Box
from gprune.select.ranking import Ranking


@dataclass(frozen=True)
class Part:
    """Some of the shards of a rank.

    Its own flat indices count the entries that it has, those of the tree all entries of all leaves.
    Both are in the same order.

    Attributes:
        ranking: the local shards, empty for leaves that are not in this part.
    """

    ranking: Ranking

    @property
    def boxes(self) -> list[Box]:
        """Where each local shard lies in its leaf."""
        return list(self.ranking.boxes)

    @cached_property
    def starts(self) -> list[int]:
        """The tree's flat index of each leaf's first entry, and behind them the number of all."""
        return [0, *accumulate(math.prod(box.shape) for box in self.boxes)]

    @property
    def entries(self) -> int:
        """How many entries the tree has."""
        return self.starts[-1]

    def only(self, leaf: int) -> Part:
        """Give the part of a tree of one leaf."""
        return Part(self.ranking.only(leaf))

    def places(self, positions: Tensor) -> Tensor:
        """Give the tree's flat indices at ascending flat indices of the part."""
        offsets = torch.tensor(self.ranking.offsets, device=positions.device)
        ends = torch.searchsorted(positions, offsets).tolist()
        found = [
            self.boxes[leaf].places(positions[first:last] - self.ranking.offsets[leaf])
            + self.starts[leaf]
            for leaf, (first, last) in enumerate(pairwise(ends))
            if first < last
        ]
        return torch.cat(found) if found else positions

    def last(self, index: int) -> int:
        """Give the part's flat index of the last entry up to a flat index of the tree, or -1."""
        count = 0
        for box, start, scores in zip(self.boxes, self.starts, self.ranking.scores, strict=False):
            if scores.numel():
                count += box.before(index + 1 - start)
        return count - 1


def part_of(ranking: Ranking, chosen: list[bool]) -> Part:
    """Take some of the shards; the others are empty, so that leaves keep their numbers."""
    scores, masks = chosen_of(ranking.scores, chosen), chosen_of(ranking.masks, chosen)
    return Part(
        Ranking(scores, masks, ranking.absolute, ranking.seed, ranking.first, ranking.boxes)
    )


def chosen_of(tensors: list[Tensor], chosen: list[bool]) -> list[Tensor]:
    """Empty the tensors that are not chosen."""
    return [
        tensor if is_chosen else tensor.new_empty(0)
        for tensor, is_chosen in zip(tensors, chosen, strict=bool(tensors))
    ]
