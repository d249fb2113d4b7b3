"""Counting: histograms, the number of true entries of bool tensors, and their indices.

A bracket has few entries of each block, so nearly all bools that say which are inside are false.
Read as 64-bit words, the bools have an eighth of the elements, and nearly all words are zero. That
makes counting and finding faster. *Packed* bools are padded to a multiple of eight entries, so that
they can be read as words.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

WORD = 8
"""How many bools a 64-bit word holds."""

LANE = 128
"""How many words are summed at once. The sum adds each byte of the words, which is 0 or 1, to the
byte at its place. So a byte of the sum is at most 128, and does not overflow."""


def count_packed(bools: Tensor) -> Tensor:
    """Return how many of some packed bools are true, 0-dim int64."""
    words = bools.view(torch.int64)
    num_summed = words.numel() // LANE * LANE
    sums = words[:num_summed].view(-1, LANE).sum(1) if num_summed else words[:0]
    return sums.view(torch.uint8).sum() + bools[num_summed * WORD :].sum()


def find_packed(bools: Tensor) -> Tensor:
    """Return the indices of the true entries of packed bools, ascending int64."""
    words = bools.view(torch.int64)
    nonzero = words.nonzero().view(-1)
    true = words.index_select(0, nonzero).view(torch.bool).nonzero().view(-1)
    return nonzero.index_select(0, true >> 3).mul_(WORD).add_(true & (WORD - 1))


def find_true(bools: Tensor) -> Tensor:
    """Return the indices of the true entries of any 1-D bools, ascending int64."""
    return find_packed(pad(bools, (0, -bools.numel() % WORD)))


def concatenate(parts: list[Tensor]) -> Tensor:
    """Concatenate 1-D tensors. A single one is returned itself; none give an empty int64 tensor."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device="cpu")


def histogram(bins: Tensor, size: int) -> Tensor:
    """Count how often each bin occurs.

    Args:
        bins: integers from 0 to `size - 1`, 1-D.
        size: how many bins there are.

    Returns:
        int64 counts, on the device of `bins`.
    """
    if bins.device.type == "cpu":
        return torch.bincount(bins, minlength=size)
    ones = torch.ones((), dtype=torch.int64, device=bins.device).expand_as(bins)
    counts = torch.zeros(size, dtype=torch.int64, device=bins.device)
    return counts.scatter_add_(0, bins.to(torch.int64), ones)  # bincount would make the host wait
