"""The search: from a ranking and a count to the cut and the masks at it, exactly.

A sample of the candidates says between which two scores the k-th of them lies, but for bad luck.
One pass over the weights then counts what is below that bracket, writes "above it" into the masks
and collects the few candidates in it; the k-th of all is among those. Where so many candidates tie
that they cannot be collected, the bracket is a single score, and counting is enough.

The guess only guides. A bracket that misses costs its pass, and says on which side to look. After
`GUESSES` passes the search stops guessing and finds the k-th key digit by digit, most significant
first, in one pass for every 16 bits (see `digits.py`). So a search makes at most
`GUESSES + bits / 16 + 2` passes, seven for float32 and nine for float64, whatever the values are;
two, with the sample, is what it nearly always takes. It holds one block, the sample and at most
`LIMIT` collected candidates. Only integers are compared and counted, so the cut is the same for
every block size, thread count and order of evaluation.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gprune.select import digits
from gprune.select.keys import value_of
from gprune.select.marking import empty_masks, mark, mark_chunks
from gprune.select.passes import Divided, divide
from gprune.select.ranking import Ranking
from gprune.select.sample import sample, spread

LIMIT = 2**20
"""Candidates that may be collected, with some 16 bytes for each."""

FEW = 2**14
"""So few candidates are collected outright."""

GUESSES = 3


def find(ranking: Ranking, k: int) -> tuple[float, int]:
    """Find the cut that prunes exactly k candidates.

    Args:
        ranking: what is ranked.
        k: how many to prune, from 0 to the number of candidates.

    Returns:
        The value and the flat index of the cut, as `gprune.Cut` describes them.
    """
    value, index, _ = _search(ranking, k, None)
    return value, index


def prune(ranking: Ranking, k: int) -> list[Tensor]:
    """Make the masks that prune exactly k candidates.

    Args:
        ranking: what is ranked.
        k: how many to prune, from 0 to the number of candidates.

    Returns:
        One fresh contiguous bool mask per leaf, of its shape and on its device.
    """
    masks = empty_masks(ranking.scores)
    value, index, marked = _search(ranking, k, masks)
    if not marked:
        return mark(ranking, value, index)
    # a pass writes those of large leaves only
    mark_chunks(ranking, ranking.joined_chunks(), value, index, masks)
    return masks


def _search(ranking: Ranking, k: int, masks: list[Tensor] | None) -> tuple[float, int, bool]:
    """Find the cut, and say whether the masks were written on the way."""
    if k == 0:
        return -math.inf, -1, False
    if any(leaf.device.type != "cpu" for leaf in ranking.scores):
        return *digits.find(ranking, k), False  # collecting would wait for the device at each block
    space = ranking.space
    known = _Known(-space.infinity, space.nan, 0, ranking.candidates)
    sampled = sample(ranking) if ranking.candidates > FEW else None
    for _ in range(GUESSES):
        low, high = _bracket(known, k, sampled)
        values = value_of(low, space), value_of(high, space)
        seen = divide(ranking, *values, limit=LIMIT, masks=masks)
        nth = k - seen.below
        if 0 < nth <= seen.inside and seen.keys is not None:
            return _among(ranking, seen, nth, masks)
        if 0 < nth <= seen.inside and low == high:
            return values[0], digits.index_of_tie(ranking, low, seen.counts, nth), False
        known = _learn(known, low, high, seen, k)
    return *digits.find(ranking, k), False


class _Known(NamedTuple):
    """Where the k-th candidate is: one of `among` with keys from `least` to `most`.

    `before` candidates have a lower key than `least`.
    """

    least: int
    most: int
    before: int
    among: int


def _bracket(known: _Known, k: int, sampled: Tensor | None) -> tuple[int, int]:
    """Give the keys of a bracket that should hold the k-th candidate, and few enough to collect."""
    if sampled is None or known.among <= FEW:
        return known.least, known.most
    sampled = _between(sampled, known.least, known.most)
    size = sampled.numel()
    if size == 0:
        return known.least, known.most
    rank = k - known.before
    below, above = spread(size, rank, known.among)
    low = int(sampled[below]) if below >= 0 else known.least
    high = int(sampled[above]) if above < size else known.most
    inside = _between(sampled, low, high)
    if inside.numel() * known.among < LIMIT * size:
        return low, high
    # Too many to collect. If one score alone is to blame, get it out of the way: count it, and
    # know on which side of it to look. Else the counts of this bracket lead to a narrower one.
    scores, times = torch.unique_consecutive(inside, return_counts=True)
    heaviest = int(scores[times.argmax()])
    heavy = int(times.max()) * known.among >= LIMIT // 4 * size
    return (heaviest, heaviest) if heavy else (low, high)


def _between(ascending: Tensor, low: int, high: int) -> Tensor:
    """Take the part of ascending keys from `low` to `high`."""
    ends = torch.tensor([low, high], dtype=ascending.dtype)
    start = int(torch.searchsorted(ascending, ends[0]))
    return ascending[start : int(torch.searchsorted(ascending, ends[1], right=True))]


def _learn(known: _Known, low: int, high: int, seen: Divided, k: int) -> _Known:
    """Narrow what is known by a pass over a bracket that did not settle it."""
    behind = seen.below + seen.inside
    if k <= seen.below:
        return _Known(known.least, low - 1, known.before, seen.below - known.before)
    if k > behind:
        return _Known(high + 1, known.most, behind, known.before + known.among - behind)
    return _Known(low, high, seen.below, seen.inside)


def _among(
    ranking: Ranking, seen: Divided, nth: int, masks: list[Tensor] | None
) -> tuple[float, int, bool]:
    """Find the cut among the collected candidates, and put the masks right for them."""
    assert seen.keys is not None
    assert seen.positions is not None
    key, index = pick(seen.keys, seen.positions, nth)
    if masks is not None:
        kept = (seen.keys > key) | ((seen.keys == key) & (seen.positions > index))
        keep(ranking, masks, seen.positions[kept])
    return value_of(key, ranking.space), index, masks is not None


def pick(keys: Tensor, positions: Tensor, nth: int) -> tuple[int, int]:
    """Find the n-th of collected candidates.

    Args:
        keys: their keys.
        positions: their flat indices, ascending.
        nth: which of them in the order of (key, flat index), from 1.

    Returns:
        Its key and its flat index.
    """
    key = torch.kthvalue(keys, nth).values
    tied = nth - int((keys < key).sum())
    return int(key), int(positions[keys == key][tied - 1])


def keep(ranking: Ranking, masks: list[Tensor], positions: Tensor) -> None:
    """Set the masks of the leaves that are streamed alone true at ascending flat indices."""
    alone = [piece.start for piece in ranking.pieces if len(piece) == 1]
    bounds = [(ranking.offsets[leaf], ranking.offsets[leaf + 1]) for leaf in alone]
    ends = torch.searchsorted(positions, torch.tensor(bounds)).tolist()
    for leaf, (start, end) in zip(alone, ends, strict=True):
        if start < end:
            places = positions[start:end] - ranking.offsets[leaf]
            masks[leaf].view(-1).index_fill_(0, places, True)
