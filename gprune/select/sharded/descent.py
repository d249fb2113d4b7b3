"""The descent: the n-th of integers that are spread over the ranks, from counts alone.

The integers lie between two bounds. All ranks count theirs in bins of equal width, and go on in the
bin in which the n-th of all falls, until it is of one integer, or has one, which who has it tells.
How many there are is known, so the last bin need not be sent; where it is not, a tally tells, and
is the first step of the descent. Keys are integers, and so are flat indices, so one descent finds
the value of a cut and another its index. Many go in step, and share the messages; the more there
are, the fewer bins each has, down to two, which take the fewest bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gprune.select.sharded.ranks import Ranks

SLOTS = 2**10
"""Counts in a message, if not too many descents share it: 8 KiB."""


class Goal(NamedTuple):
    """The n-th of the integers between two bounds.

    Attributes:
        low: the lower bound.
        high: the upper bound, not below `low`.
        nth: which of them, from 1.
        inside: how many there are on all ranks.
        values: streams those on this rank from one integer to another; others may be among them.
        enough: with so few in its bin the descent may end, and the bounds are those of the bin; at
            0 it ends at one integer.
    """

    low: int
    high: int
    nth: int
    inside: int
    values: Callable[[int, int], Iterable[Tensor]]
    enough: int = 0

    @property
    def finished(self) -> bool:
        """Whether the bounds are close enough."""
        return self.low == self.high or self.inside <= self.enough


class Tally(NamedTuple):
    """How the integers of all ranks lie between the bounds of a goal.

    Attributes:
        shift: the width of the bins, as a power of two.
        counts: how many integers are in each bin.
    """

    shift: int
    counts: Tensor

    @property
    def total(self) -> int:
        """How many there are in all."""
        return int(self.counts.sum())


def tally(
    ranks: Ranks, phase: str, goals: list[Goal], size: int, first: Callable[[], Tensor]
) -> tuple[Tensor, list[Tally]]:
    """Count the integers between the bounds of goals that do not know yet how many there are.

    Args:
        ranks: those who have the integers.
        phase: what for.
        goals: the same on all ranks, but for their values.
        size: how many numbers `first` gives.
        first: is called before the values are streamed; gives numbers to add up in the same
            message.

    Returns:
        The sums of those numbers, and a tally for each goal.
    """
    shifts = _shifts(goals)
    sizes = [size, *(_bins(goal, shift) for goal, shift in zip(goals, shifts, strict=True))]

    def count() -> Tensor:
        numbers = first()
        pairs = zip(goals, shifts, strict=True)
        return torch.cat([numbers, *(_histogram(goal, shift) for goal, shift in pairs)])

    numbers, *counts = torch.split(ranks.total(phase, sum(sizes), count), sizes)
    return numbers, [Tally(*pair) for pair in zip(shifts, counts, strict=True)]


def descend(ranks: Ranks, phase: str, goals: list[Goal]) -> list[Goal]:
    """Find the n-th integer of every goal.

    Args:
        ranks: those who have the integers.
        phase: what for.
        goals: the same on all ranks, but for their values.

    Returns:
        The goals, each with the integer as both bounds, or with bounds that hold few enough: which
        it is among those between them, from 1, and how many these are.
    """
    goals = list(goals)
    while unfinished := [i for i, goal in enumerate(goals) if not goal.finished]:
        shifts = _shifts([goals[i] for i in unfinished])
        sizes = [_size(goals[i], shift) for i, shift in zip(unfinished, shifts, strict=True)]

        def count(unfinished: list[int] = unfinished, shifts: list[int] = shifts) -> Tensor:
            pairs = zip(unfinished, shifts, strict=True)
            return torch.cat([_count(goals[i], shift) for i, shift in pairs])

        counts = torch.split(ranks.total(phase, sum(sizes), count), sizes)
        for i, shift, own in zip(unfinished, shifts, counts, strict=True):
            goals[i] = _reached(goals[i], shift, own)
    return goals


def narrow(goal: Goal, tally: Tally) -> Goal:
    """Go on in the bin of the n-th.

    Args:
        goal: what is looked for.
        tally: how the integers lie between its bounds.

    Returns:
        The goal, between the bounds of that bin.
    """
    shift, counts = tally
    behind = counts.cumsum(0)
    number = int(torch.searchsorted(behind, goal.nth))
    before = int(behind[number] - counts[number])
    first = ((goal.low >> shift) + number) << shift
    last = first + (1 << shift) - 1
    return goal._replace(
        low=max(goal.low, first),
        high=min(goal.high, last),
        nth=goal.nth - before,
        inside=int(counts[number]),
    )


def _shifts(goals: list[Goal]) -> list[int]:
    """Give the width of the bins of each goal, as a power of two."""
    bits = max(1, (SLOTS // max(1, len(goals))).bit_length() - 1)
    return [max(0, (goal.high - goal.low).bit_length() - bits) for goal in goals]


def _bins(goal: Goal, shift: int) -> int:
    return (goal.high >> shift) - (goal.low >> shift) + 1


def _size(goal: Goal, shift: int) -> int:
    """Say how many numbers a goal sends: a count for each bin but the last, or its one integer."""
    return 1 if goal.inside == 1 else _bins(goal, shift) - 1


def _count(goal: Goal, shift: int) -> Tensor:
    """Count the integers of this rank in the bins of a goal, or give the one that there is."""
    if goal.inside > 1:
        return _histogram(goal, shift)[:-1]
    return torch.tensor([sum(int(values.sum()) for values in _between(goal))])


def _histogram(goal: Goal, shift: int) -> Tensor:
    """Count the integers of this rank in each bin of a goal."""
    size, first = _bins(goal, shift), goal.low >> shift
    total = torch.zeros(size, dtype=torch.int64)
    for values in _between(goal):
        bins = (values >> shift).sub_(first).to(torch.int64)
        total += torch.bincount(bins, minlength=size).cpu()
    return total


def _between(goal: Goal) -> Iterator[Tensor]:
    """Stream the integers of this rank between the bounds of a goal."""
    for values in goal.values(goal.low, goal.high):
        yield values[(values >= goal.low) & (values <= goal.high)]


def _reached(goal: Goal, shift: int, counts: Tensor) -> Goal:
    """Go on with what the ranks have sent for a goal."""
    if goal.inside == 1:
        found = int(counts)
        return goal._replace(low=found, high=found)
    last = goal.inside - counts.sum(0, keepdim=True)
    return narrow(goal, Tally(shift, torch.cat([counts, last])))
