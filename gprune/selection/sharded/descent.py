"""The descent: the n-th of integers that are spread over the ranks, from counts alone.

The integers lie between two bounds. All ranks count theirs in bins of equal width, and go on in the
bin in which the n-th of all falls, until it holds one integer. Keys are integers, and so are flat
indices, so one descent finds the value of a cut and another its index. Many go in step, and share
the messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from gprune.selection.sharded.ranks import Ranks

SLOTS = 2**10
"""Counts in a message, if not too many descents share it: 8 KiB."""


class Goal(NamedTuple):
    """The n-th of the integers between two bounds.

    Attributes:
        low: the lower bound.
        high: the upper bound, not below `low`.
        nth: which of them, from 1.
        values: streams those on this rank from one integer to another; others may be among them.
    """

    low: int
    high: int
    nth: int
    values: Callable[[int, int], Iterable[Tensor]]


def descend(ranks: Ranks, phase: str, goals: list[Goal]) -> list[tuple[int, int]]:
    """Find the n-th integer of every goal.

    Args:
        ranks: those who have the integers.
        phase: what for.
        goals: the same on all ranks, but for their values.

    Returns:
        Each integer, and which it is among those equal to it, from 1.
    """
    goals = list(goals)
    while unfinished := [i for i, goal in enumerate(goals) if goal.low < goal.high]:
        bits = max(2, (SLOTS // len(unfinished)).bit_length() - 1)
        shifts = [_shift(goals[i], bits) for i in unfinished]
        sizes = [_bins(goals[i], shift) for i, shift in zip(unfinished, shifts, strict=True)]

        def count(unfinished: list[int] = unfinished, shifts: list[int] = shifts) -> Tensor:
            pairs = zip(unfinished, shifts, strict=True)
            return torch.cat([_count(goals[i], shift) for i, shift in pairs])

        counts = torch.split(ranks.total(phase, sum(sizes), count), sizes)
        for i, shift, own in zip(unfinished, shifts, counts, strict=True):
            goals[i] = _narrow(goals[i], shift, own)
    return [(goal.low, goal.nth) for goal in goals]


def _shift(goal: Goal, bits: int) -> int:
    """Give the width of the bins, as a power of two."""
    return max(0, (goal.high - goal.low).bit_length() - bits)


def _bins(goal: Goal, shift: int) -> int:
    return (goal.high >> shift) - (goal.low >> shift) + 1


def _count(goal: Goal, shift: int) -> Tensor:
    """Count the integers of this rank in the bins of a goal."""
    size, first = _bins(goal, shift), goal.low >> shift
    total = torch.zeros(size, dtype=torch.int64)
    for values in goal.values(goal.low, goal.high):
        inside = values[(values >= goal.low) & (values <= goal.high)]
        bins = (inside >> shift).sub_(first).to(torch.int64)
        total += torch.bincount(bins, minlength=size).cpu()
    return total


def _narrow(goal: Goal, shift: int, counts: Tensor) -> Goal:
    """Go on in the bin of the n-th."""
    behind = counts.cumsum(0)
    number = int(torch.searchsorted(behind, goal.nth))
    before = int(behind[number] - counts[number])
    first = ((goal.low >> shift) + number) << shift
    last = first + (1 << shift) - 1
    return goal._replace(low=max(goal.low, first), high=min(goal.high, last), nth=goal.nth - before)
