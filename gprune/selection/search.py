"""The search: from a ranking and a count to the cut, exactly, without sorting the model.

A few thousand entries are sorted, since nothing is faster. Beyond that the k-th smallest key is
found digit by digit, most significant first (a radix selection). Each pass streams over the leaves,
counts how many candidates have each value of the next 16-bit digit under the digits found so far,
and follows the digit in which the k-th falls. What is left after the last digit is one key and how
many of the candidates tied at it must go; one more pass finds the flat index of the last of them.

So such a search makes `bits / 16 + 1` passes over the data, three for float32 and five for float64,
whatever the values are, and holds one block and one histogram. Only integers are compared and
counted, so the cut is the same for every block size, thread count and order of evaluation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gprune.selection.keys import KeySpace, value_of
from gprune.selection.ranking import Ranking

DIGIT = 16
BINS = 2**DIGIT
FEW = 2**13
"""Up to so many entries are sorted; a histogram costs as much as that."""


def find(ranking: Ranking, k: int) -> tuple[float, int]:
    """Find the cut that prunes exactly k candidates.

    Args:
        ranking: what is ranked.
        k: how many to prune, from 0 to the number of candidates.

    Returns:
        The value and the flat index of the cut, as `gprune.Cut` describes them.
    """
    if k == 0:
        return -math.inf, -1
    space = ranking.space()
    if ranking.entries <= FEW:
        return _by_sorting(ranking, space, k)
    key, tied = _kth_key(ranking, space, k)
    return value_of(key, space), _flat_index(ranking, space, key, tied)


def _by_sorting(ranking: Ranking, space: KeySpace, k: int) -> tuple[float, int]:
    """Sort the keys, stably, with what is no candidate behind everything; look at the k-th."""
    last = torch.iinfo(space.integer).max
    blocks = []
    for leaf in range(len(ranking.scores)):
        for _, keys, prior in ranking.blocks(leaf, space):
            blocks.append((keys if prior is None else keys.where(prior, last)).cpu())
    key, index = torch.sort(torch.cat(blocks), stable=True)
    return value_of(int(key[k - 1]), space), int(index[k - 1])


def _kth_key(ranking: Ranking, space: KeySpace, k: int) -> tuple[int, int]:
    """Find the k-th smallest key, and how many candidates with that key are among the first k."""
    prefix = None
    for shift in range(space.bits - DIGIT, -1, -DIGIT):
        counts = _digit_counts(ranking, space, prefix, shift)
        below = counts.cumsum(0)
        digit = int(torch.searchsorted(below, k))
        k -= int(below[digit - 1]) if digit else 0
        # the top digit is signed; the others are the unsigned rest of a two's complement number
        prefix = digit - BINS // 2 if prefix is None else prefix * BINS + digit
    assert prefix is not None
    return prefix, k


def _digit_counts(ranking: Ranking, space: KeySpace, prefix: int | None, shift: int) -> Tensor:
    """Count the candidates under a prefix by their next digit, on the host."""
    counts = torch.zeros(BINS, dtype=torch.int64)
    for leaf in range(len(ranking.scores)):
        for keys in ranking.candidate_keys(leaf, space):
            if prefix is None:
                digits = (keys >> shift) + BINS // 2
            else:
                digits = (keys[(keys >> (shift + DIGIT)) == prefix] >> shift) & (BINS - 1)
            counts += torch.bincount(digits, minlength=BINS).cpu()
    return counts


def _flat_index(ranking: Ranking, space: KeySpace, key: int, tied: int) -> int:
    """Find the flat index of the `tied`-th candidate, in flat order, that has the key."""
    offset = 0
    for leaf, scores in enumerate(ranking.scores):
        for start, keys, prior in ranking.blocks(leaf, space):
            equal = keys == key
            if prior is not None:
                equal &= prior
            count = int(equal.count_nonzero())
            if tied <= count:
                return offset + start + int(equal.nonzero()[tied - 1])
            tied -= count
        offset += scores.numel()
    raise AssertionError("fewer candidates have the key than the counting passes saw")
