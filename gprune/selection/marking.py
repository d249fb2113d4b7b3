"""Marking: from a cut to the masks, block by block, each mask on its leaf's device.

The cut's value is rounded down into the key space of each block. What remains of the comparison is
one threshold: a tie at the threshold goes up to the cut's index and stays behind it; only the block
that holds the index is split there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gprune.selection.keys import SPACES, KeySpace, raw_bounds, raw_keys
from gprune.selection.passes import write
from gprune.selection.ranking import Ranking


def empty_masks(scores: list[Tensor]) -> list[Tensor]:
    """Make room for the masks: contiguous, each on its leaf's device."""
    return [torch.empty(x.shape, dtype=torch.bool, device=x.device) for x in scores]


def mark(ranking: Ranking, value: float, index: int) -> list[Tensor]:
    """Make the masks at a cut.

    Args:
        ranking: what is ranked.
        value: the cut's value.
        index: the cut's flat index.

    Returns:
        One fresh contiguous bool mask per leaf, of its shape and on its device.
    """
    masks = empty_masks(ranking.scores)
    bounds: dict[KeySpace, tuple[int, int]] = {}
    for chunk in ranking.chunks():
        space = SPACES[chunk.scores.dtype]
        if space not in bounds:
            bounds[space] = raw_bounds(value, value, space, absolute=ranking.absolute)
        least, greatest = bounds[space]
        raw = torch.empty(chunk.scores.shape, dtype=space.integer, device=chunk.scores.device)
        raw_keys(chunk.scores, space, absolute=ranking.absolute, out=raw)
        kept = raw > greatest
        if index < chunk.stop - 1:  # some of the chunk lies behind the index, where ties stay
            behind = max(0, index + 1 - chunk.start)
            kept[behind:] = raw[behind:] >= least
        if chunk.prior is not None:
            kept &= chunk.prior
        write(chunk, kept, masks)
    return masks
