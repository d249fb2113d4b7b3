"""A sample of the scores: between which two keys a threshold probably is.

The positions are divided into strata of equal size, and one entry is drawn from each, at a
pseudorandom position, so that no periodic pattern of the scores can bias the sample. Two order
statistics of the sample, around the wanted rank, bracket the threshold in 199 of 200 searches. The
sample only guides the search: a bracket that misses the threshold costs a pass, not a wrong mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from gprune.select.blocks import Query, RankedLeaves
from gprune.select.counter_rng import NUM_BITS, draw
from gprune.select.keys import Format, to_bits
from gprune.select.refine import (
    Digit,
    Found,
    Integers,
    Reduce,
    Remaining,
    find_digit,
    narrow,
    split_digits,
)

POWER = 2 / 3
"""Of N entries, N^POWER are sampled. The larger the sample, the more it costs, and the narrower is
the bracket: it holds about N / sqrt(sample) candidates. The sum of both costs is lowest at 2/3."""

LARGEST = 2**20
"""The most entries of a sample."""

SEED = 0x5EED

MISSES = 1 / 200
"""The fraction of searches in which a bracket misses its threshold."""

SIGMAS = 5
"""A bracket holds fewer than SIGMAS * sqrt(n) of n sampled keys, for up to a thousand queries."""

COARSE = 2**10
"""The end of a bracket is not one sampled key, but a range with at most 1 / COARSE of the sample.
The bracket becomes a little wider, and the search needs fewer messages."""


class Guess(NamedTuple):
    """Where a threshold probably is.

    Attributes:
        low: the lowest key of the bracket.
        high: the highest key of the bracket.
        at_low: estimated number of candidates that have the lowest key; 0 if it is not known.
        at_high: the same for the highest key; 0 if it is not known, or is the lowest key.
        between: estimated number of the other candidates in the bracket.
    """

    low: int
    high: int
    at_low: int
    at_high: int
    between: int


def guess_brackets(ranked: RankedLeaves, queries: Sequence[Query], reduce: Reduce) -> list[Guess]:
    """Draw a sample, and guess between which two keys each threshold is.

    Args:
        ranked: the leaves that are ranked, on the CPU.
        queries: the thresholds to find.
        reduce: sums counts over the processes.

    Returns:
        The guesses.
    """
    phase, lowest, size = "counting the sample", ranked.key_range[0], len(queries)
    num_bits = (ranked.key_range[1] - lowest).bit_length()
    sample = Remaining(lambda: _draw_all(ranked, queries, lowest))
    first, *digits = split_digits(num_bits, reduce, 2 * size, reduce.max_bits - 1)
    counts = reduce.sum(phase, size << first.width, lambda: sample.count(first, size))
    counts = counts.view(size, -1)
    sizes = counts.sum(1).tolist()
    ranks = [bracket_ranks(n, query, size) for n, query in zip(sizes, queries, strict=True)]
    lower = [min(max(low, 1), n) for (low, _), n in zip(ranks, sizes, strict=True)]
    upper = [min(high, n) for (_, high), n in zip(ranks, sizes, strict=True)]
    unknown = [Found(0, 0, n) for n in sizes]
    low_digit, low = narrow(unknown, first, counts, lower)
    high_digit, high = narrow(unknown, first, counts, upper)
    ends = Remaining(lambda: _keep_both(sample.get(), first, low_digit, high_digit))
    found, num_unknown = [*low, *high], first.shift
    enough = [max(n // COARSE, 4) for n in sizes] * 2
    for digit in digits:
        if all(known.num_inside <= most for known, most in zip(found, enough, strict=True)):
            break
        found = find_digit(reduce, phase, ends, digit, [*lower, *upper], found)
        num_unknown = digit.shift
    rows = zip(found[:size], found[size:], ranks, sizes, queries, strict=True)
    return [_to_guess(*row, num_unknown, ranked.key_range) for row in rows]


def _to_guess(
    lower: Found,
    upper: Found,
    ranks: tuple[int, int],
    size: int,
    query: Query,
    num_unknown: int,
    key_range: tuple[int, int],
) -> Guess:
    """Turn two order statistics of the sample into a bracket of keys and estimates.

    Args:
        lower: the leading bits of the lower order statistic.
        upper: the leading bits of the upper order statistic.
        ranks: the ranks of the two in the sample.
        size: how many candidates are sampled.
        query: the threshold to find.
        num_unknown: how many trailing bits of the two are not known.
        key_range: the lowest and the highest possible key.

    Returns:
        The guess.
    """
    lowest, highest = key_range
    if size == 0:
        return Guess(lowest, highest, 0, 0, query.num_candidates)
    low, before, at_low = lowest, 0, 0
    high, up_to, at_high = highest, size, 0
    if ranks[0] >= 1:
        low, before = lowest + lower.prefix, lower.num_below
        at_low = 0 if num_unknown else lower.num_inside
    if ranks[1] <= size:
        high = min(highest, lowest + upper.prefix + (1 << num_unknown) - 1)
        up_to = upper.num_below + upper.num_inside
        at_high = 0 if num_unknown or high == low else upper.num_inside
    between = up_to - before - at_low - at_high
    scale = query.num_candidates / size
    return Guess(low, high, *(math.ceil(n * scale) for n in (at_low, at_high, between)))


def bracket_ranks(size: int, query: Query, num_queries: int) -> tuple[int, int]:
    """Return two ranks in a sample between which the k-th of all candidates probably is.

    Args:
        size: how many candidates are sampled.
        query: the threshold to find.
        num_queries: how many queries the search has. `MISSES` is shared among them.

    Returns:
        The lower rank, or 0 if no sampled candidate is low enough; and the upper rank, or
        `size + 1` if none is high enough.
    """
    q = (query.k - 0.5) / query.num_candidates
    sigmas = NormalDist().inv_cdf(1 - MISSES / 2 / num_queries)
    width = sigmas * math.sqrt(size * q * (1 - q)) + 2
    lower, upper = math.floor(q * size - width) + 1, math.ceil(q * size + width) + 1
    return max(0, lower), min(size + 1, upper)


def expected_inside(total: int) -> int:
    """Return an upper bound of the candidates in a bracket, for up to a thousand queries."""
    size: float = min(total**POWER, LARGEST)
    return math.ceil(total * (SIGMAS / math.sqrt(size) + 12 / size))


def _draw_all(ranked: RankedLeaves, queries: Sequence[Query], lowest: int) -> Integers:
    """Draw the samples of all queries. Keys become offsets from the lowest possible key."""
    leaves = [query.leaves for query in queries]
    samples = {scope: draw_sample(ranked, scope).sub_(lowest) for scope in dict.fromkeys(leaves)}
    if len(leaves) == 1:
        return Integers(samples[leaves[0]], None)
    sizes = torch.tensor([samples[scope].numel() for scope in leaves], device="cpu")
    query = torch.arange(len(leaves), device="cpu").repeat_interleave(sizes)
    return Integers(torch.cat([samples[scope] for scope in leaves]), query)


def _keep_both(sample: Integers, digit: Digit, low: Tensor, high: Tensor) -> Integers:
    """Keep the keys with the first digit of either end; each end is a query of its own from now on.

    Args:
        sample: the sampled keys of all queries.
        digit: the first digit.
        low: the first digit of the lower end of each query.
        high: the first digit of the upper end of each query.

    Returns:
        The keys with the digit `low`, then those with the digit `high`. The numbers of the upper
        ends follow those of the lower ends.
    """
    digits, query = digit.of(sample.values), sample.query
    parts = [
        sample.keep(digits == (end if query is None else end.index_select(0, query)))
        for end in (low, high)
    ]
    numbers = [
        torch.full_like(part.values, i * low.numel(), dtype=torch.int64)
        if part.query is None
        else part.query + i * low.numel()
        for i, part in enumerate(parts)
    ]
    return Integers(torch.cat([part.values for part in parts]), torch.cat(numbers))


def draw_sample(ranked: RankedLeaves, leaves: range) -> Tensor:
    """Draw some of the candidates.

    Args:
        ranked: the leaves that are ranked, on the CPU.
        leaves: the number of one leaf, or those of all.

    Returns:
        Their keys in the common format, int64, unordered. Each process draws a part of the sample
        from the entries that it counts.
    """
    first, last = ranked.starts[leaves.start], ranked.starts[leaves.stop]
    num_entries = ranked.tree_starts[leaves.stop] - ranked.tree_starts[leaves.start]
    if first == last:
        return torch.empty(0, dtype=torch.int64, device="cpu")
    size = math.ceil(min(num_entries**POWER, LARGEST) * (last - first) / num_entries)
    jitter = draw(SEED, 0, torch.arange(size, device="cpu"))
    if ranked.seed is not None:  # draws are uniform, so evenly spaced integers are a sample
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
    found = [ranked.keys(torch.cat(bits), form).to(torch.int64) for form, bits in taken.items()]
    return torch.cat(found)


def _take(ranked: RankedLeaves, group: list[int], form: Format, index: Tensor) -> Tensor:
    """Return the bits of the candidates at some indices of a group of leaves."""
    if len(group) > 1:
        block = ranked.joined_block(group)
        bits, prior = block.bits, block.prior
        chosen = index if prior is None else index[prior.index_select(0, index)]
        return bits.index_select(0, chosen)
    [leaf] = group
    if ranked.priors:
        index = index[_at(ranked.priors[leaf], index)]
    return to_bits(_at(ranked.scores[leaf], index), form)


def _at(tensor: Tensor, index: Tensor) -> Tensor:
    """Return the entries at some flat indices."""
    if tensor.is_contiguous():
        return tensor.view(-1).index_select(0, index)
    return tensor[torch.unravel_index(index, tensor.shape)]
