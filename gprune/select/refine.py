"""Radix select: the n-th smallest of integers that are spread over processes, from counts alone.

Every process counts its integers by their most significant digit. The counts are summed. They tell
which digit the n-th integer has, and every process goes on with the integers that have it, and with
the next digit. When only a few are left, the processes send these. So messages are small, however
many integers there are.

The keys of scores are integers, and so are flat indices: one function finds the value of a
threshold and then its flat index. Many queries advance in lockstep and share their messages.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from gprune.select.counting import find_true, histogram


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
        """Sum `size` int64 counts. If `count` raises an error in one process, all processes do."""
        ...


class OneProcess:
    """The sum over a single process, which is the counts themselves."""

    num_processes = 1
    process = 0
    max_bits = 12
    max_pass_bits = 15
    max_counts = 2**20

    def sum(self, phase: str, size: int, count: Callable[[], Tensor]) -> Tensor:
        """Return the counts as they are."""
        return count()


MAX_SENT = 16
"""If no more integers of a query are left, they are sent instead of counted."""


class Integers(NamedTuple):
    """Integers of some queries.

    Attributes:
        values: 1-D, int64 or narrower; the bits are read as an unsigned integer.
        query: the number of the query of each integer, or `None` if there is one query.
        place: the index that each integer had before the first `keep`, or `None` if nothing has
            been removed yet.
    """

    values: Tensor
    query: Tensor | None
    place: Tensor | None = None

    def keep(self, condition: Tensor) -> Integers:
        """Keep the integers for which a condition holds."""
        kept = find_true(condition)
        query = None if self.query is None else self.query.index_select(0, kept)
        place = kept if self.place is None else self.place.index_select(0, kept)
        return Integers(self.values.index_select(0, kept), query, place)


class Digit(NamedTuple):
    """Some consecutive bits of an integer.

    Attributes:
        shift: how many bits are less significant.
        width: how many bits the digit has.
    """

    shift: int
    width: int

    def of(self, values: Tensor) -> Tensor:
        """Return this digit of each integer."""
        return (values >> self.shift).bitwise_and_((1 << self.width) - 1)


class Found(NamedTuple):
    """The leading digits of the n-th integer of a query, as far as they are known.

    Attributes:
        prefix: the known digits, followed by zeros.
        num_below: how many integers are below the prefix.
        num_inside: how many integers have these digits.
    """

    prefix: int
    num_below: int
    num_inside: int


class Remaining:
    """The integers of this process that have the digits found so far.

    They are computed when they are counted next, inside `Reduce.sum`. So if that raises an error,
    every process does.
    """

    def __init__(self, make: Callable[[], Integers]) -> None:
        self._make = make
        self._integers: Integers | None = None
        self._bins: Tensor | None = None
        self._chosen: Tensor | None = None

    def get(self) -> Integers:
        """Return the integers."""
        if self._integers is None:
            self._integers = self._make()
        if self._chosen is not None and self._bins is not None:
            query = self._integers.query
            wanted = self._chosen if query is None else self._chosen.index_select(0, query)
            self._integers = self._integers.keep(self._bins == wanted)
            self._bins = self._chosen = None
        return self._integers

    def count(self, digit: Digit, num_queries: int) -> Tensor:
        """Count the integers by query and digit; 1-D, the counts of each query in a row."""
        values, query, _ = self.get()
        self._bins = digit.of(values)
        if query is not None:
            self._bins.add_(query << digit.width)
        return histogram(self._bins, num_queries << digit.width)

    def keep(self, digit: Digit, chosen: Tensor) -> None:
        """Remove, before the next count, the integers without the digit chosen for their query."""
        first = torch.arange(chosen.numel(), device=chosen.device) << digit.width
        self._chosen = chosen + first

    def rows(self, num_queries: int, num_slots: int, reduce: Reduce) -> Tensor:
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
        values, query, _ = self.get()
        if values.element_size() < 8:  # 32 unsigned bits may be a negative int32
            values = values.to(torch.int64).bitwise_and_(2**32 - 1)
        if query is None:
            before = reduce.process * num_slots
            after = (reduce.num_processes - 1 - reduce.process) * num_slots
            return pad(values + 1, (before, num_slots - values.numel() + after))
        rows = values.new_zeros(num_queries, reduce.num_processes, num_slots)
        query, order = query.sort()
        starts = torch.searchsorted(query, torch.arange(num_queries, device=query.device))
        slots = torch.arange(query.numel(), device=query.device) - starts[query]
        rows[query, reduce.process, slots] = values[order] + 1
        return rows.view(-1)


def split_digits(
    num_bits: int, reduce: Reduce, num_queries: int, max_width: int | None = None
) -> list[Digit]:
    """Split integers into digits that are narrow enough for the counts to fit into a message.

    Args:
        num_bits: how many bits the integers have.
        reduce: sums counts over the processes.
        num_queries: how many queries share a message.
        max_width: the widest digit; by default what is widest for `reduce`.

    Returns:
        The digits, most significant first.
    """
    share = reduce.max_counts // max(1, num_queries)
    width = max(1, min(max_width or reduce.max_bits, share.bit_length() - 1))
    ends = [*range(num_bits, 0, -width), 0]
    return [Digit(low, high - low) for high, low in pairwise(ends)]


def refine(
    reduce: Reduce,
    phase: str,
    remaining: Remaining,
    num_bits: int,
    nth: list[int],
    found: list[Found],
) -> list[Found]:
    """Find the n-th integer of every query.

    Args:
        reduce: sums counts over the processes.
        phase: what the search is doing, for the error if a process is lost.
        remaining: the integers of this process.
        num_bits: how many bits they have.
        nth: which integer, from 1, for each query.
        found: for each query the prefix 0, how many candidates are below its integers, and how
            many integers it has.

    Returns:
        For each query the n-th integer as the prefix, how many integers are below it, and how many
        are equal to it.
    """
    max_slots = reduce.max_counts // (len(nth) * reduce.num_processes)
    few = min(MAX_SENT, max(1, max_slots))
    for digit in split_digits(num_bits, reduce, len(nth)):
        if all(known.num_inside <= few for known in found):
            return _send_all(reduce, phase, remaining, few, nth, found)
        found = find_digit(reduce, phase, remaining, digit, nth, found)
    return found


def find_digit(
    reduce: Reduce,
    phase: str,
    remaining: Remaining,
    digit: Digit,
    nth: list[int],
    found: list[Found],
) -> list[Found]:
    """Find the next digit of the n-th integer of every query; for the arguments see `refine`."""
    size = len(nth) << digit.width
    counts = reduce.sum(phase, size, lambda: remaining.count(digit, len(nth)))
    chosen, found = narrow(found, digit, counts.view(len(nth), -1), nth)
    remaining.keep(digit, chosen)
    return found


def narrow(
    found: list[Found], digit: Digit, counts: Tensor, nth: list[int]
) -> tuple[Tensor, list[Found]]:
    """Choose the digit of the n-th integer of every query.

    Args:
        found: what is known of each.
        digit: the digit that was counted.
        counts: (queries, values of the digit), summed over the processes.
        nth: which integer, from 1, for each query.

    Returns:
        The digits, and what is known of each query now.
    """
    rest = [n - known.num_below for n, known in zip(nth, found, strict=True)]
    chosen, below, inside = pick(counts, rest)
    rows = zip(found, chosen.tolist(), below.tolist(), inside.tolist(), strict=True)
    return chosen, [
        Found(known.prefix + (value << digit.shift), known.num_below + before, count)
        for known, value, before, count in rows
    ]


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


def _send_all(
    reduce: Reduce,
    phase: str,
    remaining: Remaining,
    few: int,
    nth: list[int],
    found: list[Found],
) -> list[Found]:
    """Send the few integers that are left, and sort them in every process."""
    size = len(nth) * reduce.num_processes * few
    sent = reduce.sum(phase, size, lambda: remaining.rows(len(nth), few, reduce))
    results = []
    for n, known, row in zip(nth, found, sent.view(len(nth), -1).tolist(), strict=True):
        values = sorted((value - 1) % 2**64 for value in row if value)
        value = values[n - known.num_below - 1]
        below = bisect_left(values, value)
        inside = bisect_right(values, value) - below
        results.append(Found(value, known.num_below + below, inside))
    return results
