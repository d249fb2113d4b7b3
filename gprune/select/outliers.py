"""Outliers: the share of the scores of a group of leaves that are far above their mean.

Scores are added up and compared in float64, on the CPU if their device has no float64. All leaves
of a device are read together, twice: for the sums, and for the numbers of outliers. If leaves are
sharded, each process sends its part of the sums and its numbers of outliers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gprune.inputs import LeafError, float64_device
from gprune.select.refine import Reduce


def outlier_shares(
    scores: list[Tensor],
    groups: list[int],
    outlier: float,
    is_counted: Sequence[bool],
    reduce: Reduce,
) -> list[float]:
    """Return, for each group, the share of its scores that are above a multiple of their mean.

    Args:
        scores: one tensor per leaf, or its local shard.
        groups: the number of the group of each leaf, from 0, without gaps.
        outlier: the multiple.
        is_counted: for each leaf whether this process counts it.
        reduce: sums counts over the processes.

    Returns:
        A number from 0 to 1 for each group; NaN for a group without entries.

    Raises:
        LeafError: if a score is negative or not finite, or the sum of a group is not.
    """
    num_leaves, num_groups = len(scores), max(groups, default=-1) + 1
    counted = [i for i in range(num_leaves) if is_counted[i]]

    def find_sums() -> Tensor:
        found = _read_together([_minimum_and_sum(scores[i]) for i in counted])
        is_wrong = torch.zeros(2, num_leaves, dtype=torch.int64, device="cpu")
        num_entries = torch.zeros(num_groups, dtype=torch.int64, device="cpu")
        sums = torch.zeros(reduce.num_processes, num_groups, dtype=torch.float64, device="cpu")
        for i, (minimum, total) in zip(counted, found, strict=True):
            is_wrong[0, i] = not math.isfinite(total)
            is_wrong[1, i] = minimum < 0
            num_entries[groups[i]] += scores[i].numel()
            sums[reduce.process, groups[i]] += total
        # messages have integers: the bits of the sums, those of each process in a row of its own
        return torch.cat([is_wrong.view(-1), num_entries, sums.view(-1).view(torch.int64)])

    sizes = [2 * num_leaves, num_groups, reduce.num_processes * num_groups]
    message = reduce.sum("adding up the scores", sum(sizes), find_sums)
    is_wrong, num_entries, bits = torch.split(message, sizes)
    sums = bits.view(torch.float64).view(reduce.num_processes, num_groups).sum(0)
    not_finite, negative = is_wrong.view(2, num_leaves).tolist()
    _refuse(not_finite, "these scores contain NaN or infinity, or their sum overflows")
    _refuse(negative, "these scores have negative entries; pass those of wanda or magnitude")
    _refuse([not math.isfinite(sums[g]) for g in groups], "the sum of the group overflows")
    means = [t / max(1, n) for t, n in zip(sums.tolist(), num_entries.tolist(), strict=True)]

    def count_outliers() -> Tensor:
        bounds = [outlier * means[groups[i]] for i in counted]
        pairs = zip(counted, bounds, strict=True)
        found = _read_together([(_exact(scores[i]) > bound).sum() for i, bound in pairs])
        counts = torch.zeros(num_groups, dtype=torch.int64, device="cpu")
        for i, count in zip(counted, found, strict=True):
            counts[groups[i]] += count
        return counts

    counts = reduce.sum("counting the outliers", num_groups, count_outliers)
    shares: list[float] = (counts.to(torch.float64) / num_entries).tolist()
    return shares


def _minimum_and_sum(leaf: Tensor) -> Tensor:
    exact = _exact(leaf)
    if not leaf.numel():
        return exact.new_zeros(2)
    return torch.stack([exact.amin(), exact.sum()])


def _exact(leaf: Tensor) -> Tensor:
    return leaf.to(float64_device(leaf.device)).to(torch.float64)


def _read_together(values: list[Tensor]) -> list[Any]:
    """Read small tensors of one shape as Python numbers, those of each device at once."""
    by_device: dict[torch.device, list[int]] = {}
    for i, value in enumerate(values):
        by_device.setdefault(value.device, []).append(i)
    read: list[Any] = [None] * len(values)
    for indices in by_device.values():
        rows = torch.stack([values[i] for i in indices]).tolist()
        for i, row in zip(indices, rows, strict=True):
            read[i] = row
    return read


def _refuse(is_wrong: Sequence[int], message: str) -> None:
    """Raise a LeafError for the first leaf that is wrong."""
    for i, wrong in enumerate(is_wrong):
        if wrong:
            raise LeafError(i, "scores", message)
