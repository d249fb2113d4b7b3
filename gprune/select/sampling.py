"""A sample of the scores: between which two keys a threshold probably is.

The positions are divided into strata of equal size, and one entry is drawn from each, at a
pseudorandom position. So no periodic pattern of the scores can bias the sample. (On an accelerator
`AcceleratorSample` takes every n-th entry instead.) Two order statistics of the sample, around the
wanted one, bracket the threshold in 199 of 200 searches. The sample only guides the search: if a
bracket misses its threshold, the search needs another pass, and the masks are still right.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from gprune.select.blocks import Query, RankedLeaves
from gprune.select.counter_rng import NUM_BITS, draw
from gprune.select.keys import Format, to_bits
from gprune.select.refine import Integers, Interval, Reduce, refine

POWER = 2 / 3
"""Of N entries, n = N^POWER are sampled, and the bracket then holds about N / sqrt(n) candidates.
The cost of sampling and collecting together is lowest at 2/3."""

MAX_SAMPLED = 2**18
"""The most entries of a sample."""

SEED = 0x5EED
"""The seed of the positions that are sampled. Any number would do."""

MISSES = 1 / 200
"""The fraction of searches in which a bracket may miss its threshold."""

SIGMAS = 5
"""Of n distinct sampled keys a bracket holds at most about SIGMAS * sqrt(n), for up to a thousand
queries. `expected_inside` adds a constant, because the ends of a bracket are rounded."""

COARSE = 2**10
"""The search for an end of a bracket stops when at most four keys, or at most 1 / COARSE of the
sample, are in its interval. So the bracket is a little wider than it could be, and the search needs
fewer messages."""


class Guess(NamedTuple):
    """Where a threshold probably is.

    Attributes:
        low: the lowest key of the bracket.
        high: the highest key of the bracket.
        at_low: estimated number of candidates that have the lowest key; 0 if it is not known.
        at_high: estimated number of candidates that have the highest key; 0 if the number is not
            known, or if the highest key is the lowest key.
        between: estimated number of the other candidates in the bracket.
    """

    low: int
    high: int
    at_low: int
    at_high: int
    between: int


DrawSamples: TypeAlias = Callable[[list[Query]], list[Tensor]]
"""A function that draws a sample for each query: keys of candidates, on the CPU."""


def guess_brackets(
    ranked: RankedLeaves,
    queries: list[Query],
    reduce: Reduce,
    draw_samples: DrawSamples | None = None,
) -> list[Guess]:
    """Draw a sample, and guess between which two keys each threshold is.

    Args:
        ranked: the leaves that are ranked.
        queries: the thresholds to find.
        reduce: sums counts over the processes.
        draw_samples: draws the samples. By default `draw_sample` does, and the leaves must be on
            the CPU.

    Returns:
        The guesses.
    """
    size = len(queries)

    def both_places(sizes: list[int]) -> list[int]:
        pairs = [bracket_places(*pair, size) for pair in zip(sizes, queries * 2, strict=True)]
        places = [low for low, _ in pairs[:size]] + [high for _, high in pairs[size:]]
        return [min(max(place, 1), n) for place, n in zip(places, sizes, strict=True)]

    # The lower and the upper end of each bracket are queries of their own: first all lower ends,
    # then all upper ends. A message has two rows for each bracket, so digits have one bit less. The
    # sizes of the samples are known after the first count.
    unknown = [Interval(*ranked.key_range, 0, MAX_SAMPLED)] * (2 * size)
    num_sampled = [sample_size(query.num_candidates) for query in queries] * 2
    enough = [max(int(n) // COARSE, 4) for n in num_sampled]
    sample = functools.partial(_sampled_offsets, ranked, queries, draw_samples)
    phase, max_bits = "counting the sample", max(1, reduce.max_bits - 1)
    ends, sizes, _ = refine(reduce, phase, sample, unknown, both_places, enough, max_bits)
    rows = zip(ends[:size], ends[size:], sizes[:size], queries, strict=True)
    return [_to_guess(*row, size, ranked.key_range) for row in rows]


def _to_guess(
    lower: Interval,
    upper: Interval,
    size: int,
    query: Query,
    num_queries: int,
    key_range: tuple[int, int],
) -> Guess:
    """Turn two order statistics of the sample into a bracket of keys and estimates.

    Args:
        lower: the interval of the lower order statistic.
        upper: the interval of the upper order statistic.
        size: how many candidates are sampled.
        query: the threshold to find.
        num_queries: how many queries the search has.
        key_range: the lowest and the highest possible key.

    Returns:
        The guess.
    """
    (low, high), before, up_to, at_low, at_high = key_range, 0, size, 0, 0
    if size == 0:
        return Guess(low, high, 0, 0, query.num_candidates)
    places = bracket_places(size, query, num_queries)
    if places[0] >= 1:
        low, before = lower.low, lower.num_below
        at_low = lower.num_inside if low == lower.high else 0
    if places[1] <= size:
        high, up_to = upper.high, upper.num_below + upper.num_inside
        at_high = upper.num_inside if low < upper.low == high else 0
    between = up_to - before - at_low - at_high
    scale = query.num_candidates / size
    return Guess(low, high, *(math.ceil(n * scale) for n in (at_low, at_high, between)))


def bracket_places(size: int, query: Query, num_queries: int) -> tuple[int, int]:
    """Return two places in the sorted sample between which the k-th candidate probably is.

    Args:
        size: how many candidates are sampled.
        query: the threshold to find.
        num_queries: how many queries the search has. `MISSES` is shared among them.

    Returns:
        The lower and the upper place, from 1. The lower is 0 if the k-th candidate may be below the
        whole sample. The upper is `size + 1` if it may be above.
    """
    # imported here, because it takes 3 milliseconds, which `import gprune` need not take
    from statistics import NormalDist

    q = (query.k - 0.5) / query.num_candidates
    sigmas = NormalDist().inv_cdf(1 - MISSES / 2 / num_queries)
    width = sigmas * math.sqrt(size * q * (1 - q)) + 2
    lower, upper = math.floor(q * size - width) + 1, math.ceil(q * size + width) + 1
    return max(0, lower), min(size + 1, upper)


def expected_inside(total: int) -> int:
    """Return how many candidates a bracket probably holds at most, for up to a thousand queries.

    If scores are equal, it may hold more.

    Args:
        total: how many candidates there are.

    Returns:
        The number.
    """
    size = sample_size(total)
    return math.ceil(total * (SIGMAS / math.sqrt(size) + 12 / size))


def sample_size(num_entries: int) -> float:
    """Return how many of a number of entries are sampled, in all processes together."""
    return float(min(num_entries**POWER, MAX_SAMPLED))


def _sampled_offsets(
    ranked: RankedLeaves, queries: list[Query], draw_samples: DrawSamples | None
) -> Integers:
    """Draw the samples of all queries, and use each for its lower end and for its upper end."""
    if draw_samples is None:
        keys = [draw_sample(ranked, query.leaves) for query in queries]
    else:
        keys = draw_samples(queries)
    parts = [part - ranked.key_range[0] for part in keys] * 2
    sizes = torch.tensor([part.numel() for part in parts], device="cpu")
    query = torch.arange(len(parts), dtype=torch.int32, device="cpu").repeat_interleave(sizes)
    return Integers(torch.cat(parts), query)


def draw_sample(ranked: RankedLeaves, leaves: range) -> Tensor:
    """Draw the keys of some candidates; for random draws evenly spaced integers stand for them.

    Args:
        ranked: the leaves that are ranked, on the CPU.
        leaves: the number of one leaf, or those of all.

    Returns:
        Their keys in the common format, int32 or int64, unordered. Each process draws a part of the
        sample from the entries that it counts.
    """
    first, last = ranked.starts[leaves.start], ranked.starts[leaves.stop]
    num_entries = ranked.tree_starts[leaves.stop] - ranked.tree_starts[leaves.start]
    if first == last:
        return torch.empty(0, dtype=torch.int64, device="cpu")
    size = math.ceil(sample_size(num_entries) * (last - first) / num_entries)
    jitter = draw(SEED, 0, torch.arange(size, device="cpu"))
    if ranked.seed is not None:  # random keys are uniform: evenly spaced ones stand for them
        even = jitter.add_(torch.arange(size, device="cpu")).mul_(2**NUM_BITS / size)
        return even.to(torch.int64)
    strata = jitter.add_(torch.arange(size, device="cpu")).mul_((last - first) / size)
    positions = strata.to(torch.int64).clamp_(max=last - first - 1).add_(first)
    groups = ranked.groups(leaves)
    bounds = torch.tensor([*(ranked.starts[group[0]] for group in groups), last], device="cpu")
    ends = torch.searchsorted(positions, bounds).tolist()
    taken: dict[Format, list[Tensor]] = {}
    for group, (start, end) in zip(groups, pairwise(ends), strict=True):
        if start < end:
            form = ranked.form(group[0])
            local = positions[start:end] - ranked.starts[group[0]]
            taken.setdefault(form, []).append(_take(ranked, group, form, local))
    return torch.cat([ranked.keys(torch.cat(bits), form) for form, bits in taken.items()])


def _take(ranked: RankedLeaves, group: list[int], form: Format, index: Tensor) -> Tensor:
    """Return the bits of those entries of a group, at some indices, that are candidates."""
    if len(group) > 1:
        block = ranked.joined_block(group)
        bits, prior = block.bits, block.prior
        chosen = index if prior is None else index[prior.index_select(0, index)]
        return bits.index_select(0, chosen)
    [leaf] = group
    if ranked.priors:
        index = index[_at(ranked.priors[leaf], index)]
    return to_bits(_at(ranked.scores[leaf], index), form)


def entries_at(tensor: Tensor, indices: range) -> Tensor:
    """Return the entries at a range of flat indices; a view, if the tensor is contiguous."""
    if tensor.is_contiguous():
        return tensor.view(-1)[indices.start : indices.stop : indices.step]
    ends = indices.start, max(indices.start, indices.stop), indices.step
    return _at(tensor, torch.arange(*ends, device=tensor.device))


def _at(tensor: Tensor, index: Tensor) -> Tensor:
    """Return the entries at some flat indices."""
    if tensor.is_contiguous():
        return tensor.view(-1).index_select(0, index)
    return tensor[torch.unravel_index(index, tensor.shape)]
