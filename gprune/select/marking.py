"""Marking: from a cut to the masks, block by block, each mask on its leaf's device.

The cut's value is rounded down into the key space of each block. What remains of the comparison is
one threshold: a tie at the threshold goes up to the cut's index and stays behind it; only the block
that holds the index is split there.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from gprune.select.keys import SPACES, KeySpace, raw_bounds, raw_keys
from gprune.select.ranking import Chunk, Ranking
from gprune.select.scratch import Scratch


def empty_masks(scores: list[Tensor]) -> list[Tensor]:
    """Make room for the masks: contiguous, each on its leaf's device."""
    return [torch.empty(x.shape, dtype=torch.bool, device=x.device) for x in scores]


def write(chunk: Chunk, kept: Tensor, masks: list[Tensor]) -> None:
    """Write what is kept of a chunk, as 0 and 1 or as flags, into the masks of its leaves."""
    flat = [masks[leaf].view(-1) for leaf in range(chunk.leaf, chunk.leaf + len(chunk.sizes))]
    if len(flat) == 1:
        flat[0][chunk.at : chunk.at + chunk.sizes[0]].copy_(kept)
    else:
        torch.split_with_sizes_copy(kept.to(torch.bool), chunk.sizes, out=flat)


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
    mark_chunks(ranking, ranking.chunks(), value, index, masks)
    return masks


def mark_chunks(
    ranking: Ranking, chunks: Iterable[Chunk], value: float, index: int, masks: list[Tensor]
) -> None:
    """Write the masks at a cut for some chunks only."""
    scratch = Scratch()
    bounds: dict[KeySpace, tuple[int, int]] = {}
    for chunk in chunks:
        space = SPACES[chunk.scores.dtype]
        if space not in bounds:
            bounds[space] = raw_bounds(value, value, space, absolute=ranking.absolute)
        least, greatest = bounds[space]
        size, device = chunk.scores.numel(), chunk.scores.device
        raw = scratch.room("keys", size, space.integer, device)
        raw_keys(chunk.scores, space, absolute=ranking.absolute, out=raw)
        behind = min(max(0, index + 1 - chunk.start), size)  # ties stay behind the index
        verdict = scratch.room("verdict", size, space.integer, device)
        torch.gt(raw[:behind], greatest, out=verdict[:behind])
        torch.ge(raw[behind:], least, out=verdict[behind:])
        if chunk.prior is not None:
            verdict.mul_(chunk.prior)
        write(chunk, verdict, masks)
