"""Apportioning: a number of entries to keep, shared out among the leaves in whole numbers.

Shares are rarely whole. Rounding each by itself misses the total, and giving the rest to the
largest remainders is not monotone: a leaf may get fewer although there are more to give, which a
mask that only ever loses entries cannot follow. So leaves take turns, as parties take seats in
parliaments (the method of Webster, or Sainte-Laguë): the c-th entry of a leaf with weight w stands
in a queue at (c - 1/2) / w, ties by the leaf's number, and the first `total` of the queue are kept.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter

HALVINGS = 50
"""Of the interval in which the place in the queue lies: more than the digits of any count."""


def apportion(total: int, weights: list[float], low: list[int], high: list[int]) -> list[int]:
    """Share a total out in proportion to weights, within bounds.

    Args:
        total: how many there are to share out, from `sum(low)` to `sum(high)`.
        weights: one for each party, above 0 where the bounds differ.
        low: the least that each gets.
        high: the most that each gets.

    Returns:
        What each gets, as near to `rate * weight` as whole numbers with this total allow, for one
        rate common to all whom no bound stops.
    """
    counts = _near(total, weights, low, high)
    waiting = [i for i in range(len(counts)) if counts[i] < high[i]]
    queue = [((counts[i] + 0.5) / weights[i], i) for i in waiting]
    heapq.heapify(queue)
    for _ in range(total - sum(counts)):
        _, first = heapq.heappop(queue)
        counts[first] += 1
        if counts[first] < high[first]:
            heapq.heappush(queue, ((counts[first] + 0.5) / weights[first], first))
    return counts


def _near(total: int, weights: list[float], low: list[int], high: list[int]) -> list[int]:
    """Find counts whose sum is the total, or less by a tie: halve the interval of the rate."""
    bounds = list(zip(weights, low, high, strict=True))
    kinds = Counter(bounds)  # a model has many layers of few shapes

    def at(rate: float) -> dict[tuple[float, int, int], int]:
        return {
            (w, least, most): min(max(math.floor(rate * w + 0.5), least), most)
            for w, least, most in kinds
        }

    def given(rate: float) -> int:
        return sum(kinds[kind] * count for kind, count in at(rate).items())

    below, above = 0.0, max([(most + 1) / w for w, _, most in kinds if w], default=0.0)
    if given(above) <= total:
        below = above
    for _ in range(HALVINGS):
        rate = (below + above) / 2
        below, above = (rate, above) if given(rate) <= total else (below, rate)
    counts = at(below)
    return [counts[kind] for kind in bounds]
