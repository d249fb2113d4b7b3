"""Marking: from a cut to the masks, one leaf at a time, each on its leaf's device.

The cut's value is rounded down into the key space of each leaf. What remains of the comparison is
one threshold per leaf: a tie at the threshold goes in the leaves before the cut's index and stays
in the leaves after it; only the block that holds the index is split there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gprune.selection.keys import key_below
from gprune.selection.ranking import Ranking


def mark(ranking: Ranking, value: float, index: int) -> list[Tensor]:
    """Make the masks at a cut.

    Args:
        ranking: what is ranked.
        value: the cut's value.
        index: the cut's flat index.

    Returns:
        One fresh contiguous bool mask per leaf, of its shape and on its device.
    """
    masks = []
    for leaf, scores in enumerate(ranking.scores):
        masks.append(_mark_leaf(ranking, leaf, value, index))
        index -= scores.numel()
    return masks


def _mark_leaf(ranking: Ranking, leaf: int, value: float, index: int) -> Tensor:
    scores = ranking.scores[leaf]
    space = ranking.only(leaf).space()
    key, exact = key_below(value, space)
    if not exact:  # the key stands for scores below the cut's value: they all go
        index = scores.numel()
    mask = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    flat = mask.view(-1)
    for start, keys, prior in ranking.blocks(leaf, space):
        stop = start + keys.numel()
        kept = torch.gt(keys, key, out=flat[start:stop])
        if index < stop - 1:  # some of the block lies behind the index, where ties stay
            behind = max(0, index + 1 - start)
            kept[behind:] |= keys[behind:] == key
        if prior is not None:
            kept &= prior
    return mask
