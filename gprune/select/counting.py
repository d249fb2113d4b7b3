"""Counting and finding: histograms, and bools that are read eight at a time.

A pass finds few entries of a block. Read as 64-bit words, a block of bools has an eighth of the
elements, nearly all of them zero, so counting and finding the true ones costs a fraction. Bools are
padded to whole words for this: they are *packed*.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

WORD = 8
"""Bools in a 64-bit word."""

LANE = 128
"""Words whose bytes can be added in place: a byte holds 255, and a bool adds 1 to its byte."""


def count_packed(bools: Tensor) -> Tensor:
    """Count the true ones among bools that are whole words; 0-dim int64."""
    words = bools.view(torch.int64)
    lanes = words.numel() // LANE * LANE
    sums = words[:lanes].view(-1, LANE).sum(1) if lanes else words[:0]
    return sums.view(torch.uint8).sum() + bools[lanes * WORD :].sum()


def packed_positions(bools: Tensor) -> Tensor:
    """Find the true ones among bools that are whole words; ascending int64 positions."""
    words = bools.view(torch.int64)
    some = words.nonzero().view(-1)
    single = words.index_select(0, some).view(torch.bool).nonzero().view(-1)
    return some.index_select(0, single >> 3).mul_(WORD).add_(single & (WORD - 1))


def find_true(bools: Tensor) -> Tensor:
    """Find the true ones among any 1-D bools; ascending int64 positions."""
    return packed_positions(pad(bools, (0, -bools.numel() % WORD)))


def concatenate(parts: list[Tensor]) -> Tensor:
    """Concatenate 1-D tensors; one is given as it is, and none are no integers."""
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
    return counts.scatter_add_(0, bins.to(torch.int64), ones)  # bincount makes the host wait
