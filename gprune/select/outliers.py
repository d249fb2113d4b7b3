"""Outliers: the share of the scores of a group of leaves that are far above their mean.

Scores are summed and compared in float64, on the CPU if their device has no float64. There are two
passes: one for the sums, and one for the numbers of outliers. After each, the host reads the
results of all leaves on a device at once. If leaves are sharded, each process sends the sums and
the numbers of outliers of its shards.
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
        outlier: how many times the mean of its group a score must exceed.
        is_counted: for each leaf whether this process counts it.
        reduce: sums counts over the processes.

    Returns:
        A number from 0 to 1 for each group; NaN for a group without entries.

    Raises:
        LeafError: if a score is negative or not finite, or the sum of a group overflows.
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
        # messages are integers, so they have the bits of the sums; each process has its own row
        return torch.cat([is_wrong.view(-1), num_entries, sums.view(-1).view(torch.int64)])

    sizes = [2 * num_leaves, num_groups, reduce.num_processes * num_groups]
    message = reduce.sum("adding up the scores", sum(sizes), find_sums)
    is_wrong, num_entries, bits = torch.split(message, sizes)
    sums = bits.view(torch.float64).view(reduce.num_processes, num_groups).sum(0)
    not_finite, negative = is_wrong.view(2, num_leaves).tolist()
    _raise_for_first(not_finite, "these scores contain NaN or infinity, or their sum overflows")
    _raise_for_first(
        negative, "these scores have negative entries; pass those of wanda or magnitude"
    )
    overflows = [not math.isfinite(sums[g]) for g in groups]
    _raise_for_first(overflows, "the sum of the group overflows; divide all scores by a constant")
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


def _raise_for_first(is_wrong: Sequence[int], message: str) -> None:
    """Raise a LeafError for the first leaf that is wrong."""
    for i, wrong in enumerate(is_wrong):
        if wrong:
            raise LeafError(i, "scores", message)
