"""The last step of a search: from the candidates inside the brackets to thresholds and masks.

A pass has settled some queries: the threshold of each is in its bracket. Either the candidates in
the bracket are collected, or they all have one key, and are only counted. Radix select finds the
key of the threshold, and then, among the candidates with that key, its tree index. So far the masks
prune all candidates in the bracket. Those after the threshold are now kept.

All work is done inside `Reduce.sum`, which raises an error of one process in all of them.

Leaves with few entries need no pass: `prune_directly` and `prune_small` write their masks.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from gprune.select.blocks import Query, RankedLeaves
from gprune.select.counting import concatenate, find_true
from gprune.select.partition import (
    Bins,
    Candidates,
    CountedBlock,
    count_ties,
    keep_positions,
    tied_indices,
    write_masks,
)
from gprune.select.refine import Integers, Interval, Once, OneProcess, Reduce, find_nth, pick

MAX_TIES = 2**20
"""If more candidates than this have the key of the threshold, several processes first narrow the
range of its tree index by counting."""


class Pass(Protocol):
    """What a pass has found: a `PartitionPass`, or an `AcceleratorPass`.

    Attributes:
        queries: the thresholds to find.
    """

    queries: Sequence[Query]

    def counted(self, query: int) -> list[CountedBlock]:
        """Return how many candidates of each block are inside the bracket of a query."""
        ...

    def candidates(self, queries: list[int]) -> Candidates:
        """Return the collected candidates of some queries, which are numbered anew from 0."""
        ...


class KeyThreshold(NamedTuple):
    """The last pruned candidate of a query, in the order by (key, tree index).

    Attributes:
        key: the key of the last pruned candidate, in the common format.
        tree_index: the tree index of that candidate.
    """

    key: int
    tree_index: int


def finish_collected(
    ranked: RankedLeaves,
    reduce: Reduce,
    pass_: Pass,
    numbers: list[int],
    intervals: list[Interval],
    masks: list[Tensor] | None,
) -> list[KeyThreshold]:
    """Find the thresholds of queries whose candidates are collected, and write the masks.

    Args:
        ranked: the leaves that are ranked.
        reduce: sums counts over the processes.
        pass_: the pass that has collected the candidates.
        numbers: which queries of the pass, by their numbers.
        intervals: for each of them what is known of the key of its threshold.
        masks: one contiguous bool mask per leaf, to be written; or `None`.

    Returns:
        The thresholds.
    """
    queries, low = [pass_.queries[n] for n in numbers], [interval.low for interval in intervals]
    # The functions below are called inside `reduce.sum`, which raises an error in all processes.
    collected = Once(lambda: pass_.candidates(numbers))

    def key_offsets() -> Integers:
        candidates = collected()
        return Integers(candidates.keys - candidates.look_up(low), candidates.query)

    phase = "finding the keys of the thresholds"
    found = find_nth(reduce, phase, key_offsets, intervals, [query.k for query in queries])
    keys = [interval.low for interval in found]

    def drop_lower() -> Candidates:
        candidates = collected()
        return candidates.keep(candidates.keys >= candidates.look_up(keys))

    not_below = Once(drop_lower)
    first = [ranked.tree_starts[query.leaves.start] for query in queries]
    last = [ranked.tree_starts[query.leaves.stop] - 1 for query in queries]

    def tie_offsets() -> Integers:
        rest = not_below()
        ties = rest.keep(rest.keys == rest.look_up(keys))
        return Integers(
            ranked.tree_index(ties.positions) - ties.look_up(first, torch.int64), ties.query
        )

    rows = zip(first, last, found, strict=True)
    of_indices = [Interval(start, end, 0, key.num_inside) for start, end, key in rows]
    nth = [query.k - known.num_below for query, known in zip(queries, found, strict=True)]
    phase = "finding the flat indices of the thresholds"
    indices = find_nth(reduce, phase, tie_offsets, of_indices, nth)
    thresholds = [KeyThreshold(key, tie.low) for key, tie in zip(keys, indices, strict=True)]

    def write(masks: list[Tensor]) -> Tensor:
        rest = not_below()
        ends = rest.look_up([ranked.last_position(x.tree_index) for x in thresholds], torch.int64)
        kept = rest.keep((rest.keys > rest.look_up(keys)) | (rest.positions > ends))
        keep_positions(ranked, [query.leaves for query in queries], kept.positions, masks)
        return write_replicas(ranked, queries, thresholds, masks)

    if masks is not None:
        reduce.sum("writing the masks", 0, functools.partial(write, masks))
    return thresholds


def finish_counted(
    ranked: RankedLeaves,
    reduce: Reduce,
    pass_: Pass,
    numbers: list[int],
    intervals: list[Interval],
    masks: list[Tensor] | None,
) -> list[KeyThreshold]:
    """Find the thresholds of queries whose brackets are single keys; see `finish_collected`."""
    queries = [pass_.queries[n] for n in numbers]
    blocks = [pass_.counted(n) for n in numbers]
    ties = [
        _narrow_ties(ranked, reduce, *pair) for pair in zip(queries, intervals, blocks, strict=True)
    ]
    nth = [query.k - key.num_below for query, key in zip(queries, intervals, strict=True)]

    def tie_offsets() -> Integers:
        parts = []
        for query, key, tie in zip(queries, intervals, ties, strict=True):
            found = [*tied_indices(ranked, query.leaves, key.low, tie.low, tie.high)]
            parts.append((concatenate(found) - tie.low).cpu())
        sizes = torch.tensor([part.numel() for part in parts], device="cpu")
        query_numbers = torch.arange(len(parts), device="cpu").repeat_interleave(sizes)
        return Integers(torch.cat(parts), query_numbers)

    phase = "finding the flat indices of the thresholds"
    indices = find_nth(reduce, phase, tie_offsets, ties, nth)
    pairs = zip(intervals, indices, strict=True)
    thresholds = [KeyThreshold(key.low, index.low) for key, index in pairs]

    def write(masks: list[Tensor]) -> Tensor:
        for query, (key, tree_index) in zip(queries, thresholds, strict=True):
            last = ranked.last_position(tree_index)
            # blocks that end before are right: all of their candidates with this key are pruned
            write_masks(ranked, ranked.blocks(query.leaves, last + 1), key, last, masks)
        return write_replicas(ranked, queries, thresholds, masks)

    if masks is not None:
        reduce.sum("writing the masks", 0, functools.partial(write, masks))
    return thresholds


def _narrow_ties(
    ranked: RankedLeaves, reduce: Reduce, query: Query, key: Interval, blocks: list[CountedBlock]
) -> Interval:
    """Narrow the tree indices among which the last pruned candidate with a given key is.

    A single process knows from the pass how many of these candidates each block has, and finds the
    last one in its block. Several processes have different blocks. They count the candidates in
    bins of tree indices, until at most `MAX_TIES` are left.

    Args:
        ranked: the leaves that are ranked.
        reduce: sums counts over the processes.
        query: the threshold to find.
        key: its key, and how many candidates have it.
        blocks: how many candidates of each block have it.

    Returns:
        The interval of its tree index.
    """
    nth, leaves = query.k - key.num_below, query.leaves
    if reduce.num_processes == 1:
        counts = torch.tensor([[block.num_inside for block in blocks]], device="cpu")
        number, below, _ = (int(x) for x in pick(counts, [nth]))
        ends = blocks[number].start, blocks[number].stop - 1
        [found] = tied_indices(ranked, leaves, key.low, *ends)
        index = int(found[nth - below - 1])
        return Interval(index, index, nth - 1, 1)
    starts = ranked.tree_starts
    known = Interval(starts[leaves.start], starts[leaves.stop] - 1, 0, key.num_inside)
    while known.low < known.high and known.num_inside > MAX_TIES:
        bins = Bins.covering(known.low, known.high, 1 << reduce.max_bits)
        ends = known.low, known.high
        count = functools.partial(count_ties, ranked, leaves, key.low, *ends, bins)
        counts = reduce.sum("counting the ties", bins.num_bins, count).view(1, -1)
        number, below, inside = (int(x) for x in pick(counts, [nth - known.num_below]))
        low = max(known.low, bins.first + (number << bins.shift))
        high = min(known.high, bins.first + ((number + 1) << bins.shift) - 1)
        known = Interval(low, high, known.num_below + below, inside)
    return known


def write_replicas(
    ranked: RankedLeaves,
    queries: Sequence[Query],
    thresholds: Sequence[KeyThreshold],
    masks: list[Tensor],
) -> Tensor:
    """Write the masks of the replicated leaves that another process counts.

    Args:
        ranked: the leaves that are ranked.
        queries: the queries.
        thresholds: their thresholds.
        masks: one contiguous bool mask per leaf.

    Returns:
        An empty tensor: there is nothing to sum, and the message only carries an error.
    """
    replicas = ranked.counted_elsewhere()
    if replicas is not None:
        for query, (key, tree_index) in zip(queries, thresholds, strict=True):
            end = replicas.last_position(tree_index)
            write_masks(replicas, replicas.blocks(query.leaves), key, end, masks)
    return torch.empty(0, dtype=torch.int64, device="cpu")


def prune_small(
    ranked: RankedLeaves, leaves: Sequence[int], ks: Sequence[int], masks: list[Tensor]
) -> None:
    """Write the masks that prune the lowest candidates of each of many small leaves.

    Two sorts order the entries of all of them: by key, then by leaf. Both are stable, so equal keys
    keep the order of their flat indices.

    Args:
        ranked: the leaves that are ranked, on the CPU, all of them in this process.
        leaves: the numbers of leaves of one dtype, none of them empty.
        ks: for each of them how many candidates are pruned.
        masks: one contiguous bool mask per leaf.
    """
    block = ranked.joined_block(list(leaves))
    keys = ranked.keys(block.bits, block.form)
    if block.prior is not None:  # pruned entries come last, so the first k are candidates
        keys = keys.masked_fill(block.prior.logical_not(), torch.iinfo(keys.dtype).max)
    sizes = torch.tensor(block.sizes, device="cpu")
    numbers = torch.arange(len(block.sizes), dtype=torch.int32, device="cpu")
    of_entry = numbers.repeat_interleave(sizes)
    order = keys.sort(stable=True).indices
    order = order.index_select(0, of_entry.index_select(0, order).sort(stable=True).indices)
    # now `order` has leaf after leaf, and the entries of each leaf in ascending order
    starts = sizes.cumsum(0) - sizes
    ends = (starts + torch.tensor(ks, device="cpu")).repeat_interleave(sizes)
    is_kept = torch.arange(keys.numel(), device="cpu") >= ends
    kept = torch.empty_like(is_kept).scatter_(0, order, is_kept)
    if block.prior is not None:
        kept.logical_and_(block.prior)
    flat = [masks[leaf].view(-1) for leaf in leaves]
    torch.split_with_sizes_copy(kept, block.sizes, out=flat)


def prune_directly(ranked: RankedLeaves, leaves: range, k: int, masks: list[Tensor]) -> None:
    """Write the masks that prune the k lowest candidates of leaves with few entries in all.

    Args:
        ranked: the leaves that are ranked, on the CPU, all of them in this process.
        leaves: the number of one leaf, or those of all.
        k: how many candidates are pruned.
        masks: one contiguous bool mask per leaf.
    """
    blocks = list(ranked.blocks(leaves))
    keys = concatenate([ranked.keys(block.bits, block.form) for block in blocks])
    priors = [block.prior for block in blocks if block.prior is not None]
    prior = concatenate(priors) if priors else None
    candidates = keys if prior is None else keys.index_select(0, find_true(prior))
    (low, high), phase = ranked.key_range, "finding the key of the threshold"
    offsets = Integers(candidates - low, None)
    everything = Interval(low, high, 0, candidates.numel())
    [found] = find_nth(OneProcess(), phase, lambda: offsets, [everything], [k])
    # comparing into the dtype of the keys is faster than comparing into bool
    kept = torch.gt(keys, found.low, out=torch.empty_like(keys)).to(torch.bool)
    num_pruned_ties = k - found.num_below
    if num_pruned_ties < found.num_inside:  # some ties are kept, the later ones
        ties = keys == found.low
        ties = ties if prior is None else ties.logical_and_(prior)
        kept.logical_or_(ties.logical_and(ties.cumsum(0) > num_pruned_ties))
    if prior is not None:
        kept.logical_and_(prior)
    flat = [masks[leaf].view(-1) for leaf in leaves]
    torch.split_with_sizes_copy(kept, [mask.numel() for mask in flat], out=flat)
