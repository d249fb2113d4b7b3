"""The search without a guess: the k-th key digit by digit, most significant first.

Each pass counts how many candidates have each value of the next 16-bit digit under the digits found
so far, and follows the digit in which the k-th falls. What is left after the last digit is one key
and how many of the candidates tied at it must go; one more pass finds the flat index of the last of
them. That is `bits / 16 + 1` passes whatever the values are. Nothing waits for a device but the
counts at the end of a pass.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

import torch
from torch import Tensor

from gprune.select.host import to_host
from gprune.select.keys import keys, value_of
from gprune.select.ranking import Chunk, Ranking

DIGIT = 16
BINS = 2**DIGIT


def find(ranking: Ranking, k: int) -> tuple[float, int]:
    """Find the cut that prunes exactly k candidates.

    Args:
        ranking: what is ranked.
        k: how many to prune, from 1 to the number of candidates.

    Returns:
        The value and the flat index of the cut.
    """
    prefix = None
    for shift in range(ranking.space.bits - DIGIT, -1, -DIGIT):
        below = _counts(ranking, prefix, shift).cumsum(0)
        digit = int(torch.searchsorted(below, k))
        k -= int(below[digit - 1]) if digit else 0
        # the top digit is signed; the others are the unsigned rest of a two's complement number
        prefix = digit - BINS // 2 if prefix is None else prefix * BINS + digit
    assert prefix is not None
    ties = [(chunk.start, _ties(ranking, chunk, prefix).sum()) for chunk in ranking.chunks()]
    numbers = to_host([count for _, count in ties])
    counts = [(start, number) for (start, _), number in zip(ties, numbers, strict=True)]
    return value_of(prefix, ranking.space), index_of_tie(ranking, prefix, counts, k)


def index_of_tie(ranking: Ranking, key: int, counts: list[tuple[int, int]], nth: int) -> int:
    """Find the flat index of the n-th candidate, in flat order, that has a key.

    Args:
        ranking: what is ranked.
        key: the key, in the ranking's common space.
        counts: for each chunk its flat start and how many of its candidates have the key.
        nth: which of them, from 1.

    Returns:
        Its flat index.
    """
    ends = list(accumulate(count for _, count in counts))
    number = bisect_left(ends, nth)
    start, count = counts[number]
    chunk = next(chunk for chunk in ranking.chunks(start) if chunk.start == start)
    return start + int(_ties(ranking, chunk, key).nonzero()[nth - (ends[number] - count) - 1])


def _counts(ranking: Ranking, prefix: int | None, shift: int) -> Tensor:
    """Count the candidates under a prefix by their next digit, on the host."""
    counts: dict[torch.device, Tensor] = {}
    for chunk in ranking.chunks():
        key = keys(chunk.scores, ranking.space, absolute=ranking.absolute)
        if prefix is None:
            counted = chunk.prior
            digits = (key >> shift) + BINS // 2
        else:
            counted = (key >> (shift + DIGIT)) == prefix
            counted = counted if chunk.prior is None else counted & chunk.prior
            digits = (key >> shift) & (BINS - 1)
        digits = digits if counted is None else digits.where(counted, BINS)
        total = counts.setdefault(
            key.device, torch.zeros(BINS + 1, dtype=torch.int64, device=key.device)
        )
        total.scatter_add_(0, digits.to(torch.int64), torch.ones_like(digits, dtype=torch.int64))
    return torch.stack([total.cpu() for total in counts.values()]).sum(0)[:BINS]


def _ties(ranking: Ranking, chunk: Chunk, key: int) -> Tensor:
    equal = keys(chunk.scores, ranking.space, absolute=ranking.absolute) == key
    return equal if chunk.prior is None else equal & chunk.prior
