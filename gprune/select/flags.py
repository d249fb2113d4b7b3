"""Counting and finding among bool flags, eight at a time.

A pass flags few entries of a block. Read as 64-bit words, a block of flags has an eighth of the
elements, nearly all of them zero; what is left to look at singly is a few percent. Blocks of flags
are padded to whole words for this.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 8
LANE = 128
"""Words whose bytes can be added in place: a byte holds 255, and a flag adds 1 to its own."""


def padded(size: int) -> int:
    """Round a number of flags up to whole words."""
    return -(-size // WORD) * WORD


def words(flags: Tensor) -> Tensor:
    """View padded flags as 64-bit words."""
    return flags.view(torch.int64)


def count(flags: Tensor) -> Tensor:
    """Count the true ones among padded flags; a 0-dim int64 tensor."""
    whole = words(flags)
    lanes = whole.numel() // LANE * LANE
    sums = whole[:lanes].view(-1, LANE).sum(1) if lanes else whole[:0]
    return sums.view(torch.uint8).sum() + flags[lanes * WORD :].sum()


def positions(flags: Tensor) -> Tensor:
    """Find the true ones among padded flags; their positions ascend."""
    whole = words(flags)
    some = whole.nonzero().view(-1)
    single = whole.index_select(0, some).view(torch.bool).nonzero().view(-1)
    return some.index_select(0, single >> 3).mul_(WORD).add_(single & (WORD - 1))
