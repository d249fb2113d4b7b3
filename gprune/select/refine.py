"""Radix select: the n-th smallest of integers that are spread over processes.

Every process counts its integers by their most significant digit. The sums of these counts tell
which digit the n-th integer has. Every process keeps only its integers with that digit, and counts
them by the next digit. When only a few are left, the processes send the integers themselves. So
messages are small, however many integers there are.

The keys of scores are integers, and so are tree indices: one function finds the key of a threshold
and then its tree index. Many queries advance in lockstep and share their messages.
"""

from __future__ import annotations

import functools
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from gprune.select.counting import find_true, histogram

T = TypeVar("T")


class Reduce(Protocol):
    """Sums counts over the processes that hold the leaves.

    Attributes:
        num_processes: how many processes there are.
        process: the number of this one, from 0.
        max_bits: the most bits of a digit.
        max_pass_bits: the most bits of a digit if counting it takes a pass over all scores.
        max_counts: the most counts that a message should have.
    """

    num_processes: int
    process: int
    max_bits: int
    max_pass_bits: int
    max_counts: int

    def sum(self, phase: str, size: int, count: Callable[[], Tensor]) -> Tensor:
        """Sum `size` int64 counts. An error that `count` raises in one process is raised in all."""
        ...


class OneProcess:
    """The `Reduce` of a single process: the sums are its own counts."""

    num_processes = 1
    process = 0
    max_bits = 12
    max_pass_bits = 15
    max_counts = 2**20

    def sum(self, phase: str, size: int, count: Callable[[], Tensor]) -> Tensor:
        """Return the counts as they are."""
        return count()


MAX_SENT = 16
"""If at most this many integers of a query are left, they are sent instead of counted."""


class Interval(NamedTuple):
    """What is known of an integer that is searched for: the key or the tree index of a threshold.

    Attributes:
        low: its lowest possible value.
        high: its highest possible value.
        num_below: how many of the integers to choose from are below `low`.
        num_inside: how many of them are from `low` to `high`.
    """

    low: int
    high: int
    num_below: int
    num_inside: int


class Once(Generic[T]):
    """A function without arguments whose result is computed at the first call, and then stored."""

    def __init__(self, compute: Callable[[], T]) -> None:
        self._compute: Callable[[], T] | None = compute
        self._result: list[T] = []

    def __call__(self) -> T:
        """Return the result."""
        if self._compute is not None:
            self._result.append(self._compute())
            self._compute = None  # what it was computed from may be large
        return self._result[0]


class Integers(NamedTuple):
    """Integers of some queries, as offsets from the lower ends of the queries' intervals.

    Attributes:
        offsets: 1-D, int64 or narrower; the bits are read as an unsigned integer.
        query: the number of the query of each integer, or `None` if there is one query.
    """

    offsets: Tensor
    query: Tensor | None

    def count_digits(self, shift: int, width: int, num_queries: int) -> Tensor:
        """Count the integers by query and digit: the `width` bits above the lowest `shift` bits."""
        return histogram(self._bins(shift, width), num_queries << width)

    def keep(self, shift: int, width: int, digits: Tensor) -> Integers:
        """Keep the integers that have the digit of their query."""
        bins = self._bins(shift, width)
        wanted = digits.to(bins.dtype)  # comparing two dtypes would convert all bins
        if self.query is not None:
            wanted += torch.arange(len(wanted), device=wanted.device) << width
            wanted = wanted.index_select(0, self.query)
        kept = find_true(bins == wanted)
        query = None if self.query is None else self.query.index_select(0, kept)
        return Integers(self.offsets.index_select(0, kept), query)

    def _bins(self, shift: int, width: int) -> Tensor:
        """Return the digit of each integer, with the number of its query in the bits above."""
        digits = (self.offsets >> shift).bitwise_and_((1 << width) - 1)
        return digits if self.query is None else digits.add_(self.query << width)

    def slots(self, num_queries: int, num_slots: int, reduce: Reduce) -> Tensor:
        """Return the message by which this process sends its integers.

        For each query it has `num_slots` slots for each process. This process writes its integers,
        plus 1, into its own slots. All other slots are 0, so the sum of the messages of all
        processes has all integers.

        Args:
            num_queries: how many queries there are.
            num_slots: the most integers that a query may have.
            reduce: the number of this process, and of all.

        Returns:
            int64, 1-D.
        """
        offsets, num_bits = self.offsets, 8 * self.offsets.element_size()
        if num_bits < 64:  # 32 unsigned bits may be a negative int32
            offsets = offsets.to(torch.int64).bitwise_and_(2**num_bits - 1)
        slots = offsets.new_zeros(num_queries, reduce.num_processes, num_slots)
        if self.query is None:
            slots[0, reduce.process, : offsets.numel()] = offsets + 1
            return slots.view(-1)
        query, order = self.query.to(torch.int64).sort()
        starts = torch.searchsorted(query, torch.arange(num_queries, device=query.device))
        place = torch.arange(query.numel(), device=query.device) - starts[query]
        slots[query, reduce.process, place] = offsets[order] + 1
        return slots.view(-1)


def refine(
    reduce: Reduce,
    phase: str,
    integers: Callable[[], Integers],
    intervals: list[Interval],
    nth: Callable[[list[int]], list[int]],
    enough: list[int],
    max_bits: int,
) -> tuple[list[Interval], list[int], Callable[[], Integers]]:
    """Narrow the interval of the n-th integer of every query, digit by digit.

    Args:
        reduce: sums counts over the processes.
        phase: what the search is doing, for the error if a process is lost.
        integers: returns the integers of this process. It is called inside `Reduce.sum`, so an
            error that it raises is raised in every process.
        intervals: the interval of the n-th integer of each query.
        nth: returns the n of each query, from 1, given how many integers each has. Integers below
            the interval are included in n.
        enough: for each query a number. Counting stops when no interval holds more integers.
        max_bits: the most bits of a digit.

    Returns:
        Three things: the narrower intervals; how many integers each query has, or an empty list if
        nothing was counted; and a function that returns the integers of this process inside the
        intervals.
    """
    num_queries = len(intervals)
    max_bins = reduce.max_counts // num_queries
    max_width = max(1, min(max_bits, max_bins.bit_length() - 1))
    shift = max(interval.high - interval.low for interval in intervals).bit_length()
    remaining, totals, wanted = Once(integers), list[int](), list[int]()
    while shift and any(i.num_inside > n for i, n in zip(intervals, enough, strict=True)):
        width = min(shift, max_width)
        shift -= width
        count = functools.partial(_count, remaining, shift, width, num_queries)
        counts = reduce.sum(phase, num_queries << width, count).view(num_queries, -1)
        if not wanted:
            totals = counts.sum(1).tolist()
            wanted = nth(totals)
        rest = [n - i.num_below for n, i in zip(wanted, intervals, strict=True)]
        digits, below, inside = pick(counts, rest)
        remaining = Once(functools.partial(_keep, remaining, shift, width, digits))
        rows = zip(*(column.tolist() for column in (digits, below, inside)), strict=True)
        intervals = [
            Interval(
                known.low + (digit << shift),
                min(known.high, known.low + (digit + 1 << shift) - 1),
                known.num_below + before,
                count_inside,
            )
            for known, (digit, before, count_inside) in zip(intervals, rows, strict=True)
        ]
    return intervals, totals, remaining


def _count(integers: Callable[[], Integers], shift: int, width: int, num_queries: int) -> Tensor:
    return integers().count_digits(shift, width, num_queries)


def _keep(integers: Callable[[], Integers], shift: int, width: int, digits: Tensor) -> Integers:
    return integers().keep(shift, width, digits)


def find_nth(
    reduce: Reduce,
    phase: str,
    integers: Callable[[], Integers],
    intervals: list[Interval],
    nth: list[int],
) -> list[Interval]:
    """Find the n-th integer of every query.

    Args:
        reduce: sums counts over the processes.
        phase: what the search is doing, for the error if a process is lost.
        integers: returns the integers of this process, inside `Reduce.sum`.
        intervals: the interval of the n-th integer of each query, and how many it has.
        nth: the n of each query, from 1. Integers below the interval are included in n.

    Returns:
        For each query an interval whose ends are both the n-th integer.
    """
    size = len(nth) * reduce.num_processes
    few = min(MAX_SENT, max(1, reduce.max_counts // size))
    low = [interval.low for interval in intervals]
    enough = [few] * len(nth)
    intervals, _, remaining = refine(
        reduce, phase, integers, intervals, lambda _: nth, enough, reduce.max_bits
    )
    if all(interval.low == interval.high for interval in intervals):
        return intervals
    # few are left: every process sends its own, and sorts those of all processes
    slots = reduce.sum(phase, size * few, lambda: remaining().slots(len(nth), few, reduce))
    results = []
    rows = zip(low, nth, intervals, slots.view(len(nth), -1).tolist(), strict=True)
    for first, n, known, row in rows:
        offsets = sorted((offset - 1) % 2**64 for offset in row if offset)
        offset = offsets[n - known.num_below - 1]
        below = known.num_below + bisect_left(offsets, offset)
        num_equal = bisect_right(offsets, offset) - bisect_left(offsets, offset)
        results.append(Interval(first + offset, first + offset, below, num_equal))
    return results


def pick(counts: Tensor, nth: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the bin that holds the n-th integer of each row of a histogram.

    Args:
        counts: (rows, bins).
        nth: from 1, one number per row.

    Returns:
        For each row the bin, the sum of the counts before it, and its own count. The bin is the
        last one if a row has fewer than n integers.
    """
    ends = counts.cumsum(1)
    wanted = torch.tensor(nth, device=counts.device).unsqueeze(1)
    chosen = torch.searchsorted(ends, wanted).clamp_max_(counts.shape[1] - 1)
    inside = counts.gather(1, chosen)
    before = ends.gather(1, chosen).sub_(inside)
    return chosen.squeeze(1), before.squeeze(1), inside.squeeze(1)
