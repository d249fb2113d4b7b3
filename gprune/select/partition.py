"""The passes over all scores: dividing them by brackets of keys, counting keys, writing masks.

A *bracket* is two keys, `low <= high`. The partition pass counts the candidates below it and inside
it, collects those inside, and writes "above the bracket" into the masks on the way. If the k-th
candidate is inside, it only has to be found among the few that were collected.

A pass is bound by memory, so a block is read by few operators: one to four make raw keys, two
compare them with the ends of the bracket, and the rest work on packed bools (see `counting.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gprune.select.blocks import Block, Query, RankedLeaves
from gprune.select.counting import (
    WORD,
    concatenate,
    count_packed,
    find_packed,
    find_true,
    histogram,
)
from gprune.select.keys import Format, raw_bounds, raw_keys


class CountedBlock(NamedTuple):
    """How many candidates of a block are inside the bracket of a query.

    Attributes:
        start: the position of the first entry of the block.
        stop: the position after that of the last entry.
        num_inside: how many of its candidates are inside the bracket.
    """

    start: int
    stop: int
    num_inside: int


class DividedBlock(NamedTuple):
    """A block whose candidates are divided by the bracket of a query.

    Attributes:
        query: the number of the query.
        start: the position of the first entry of the block.
        leaves: the numbers of the leaves of the block.
        sizes: how many entries of each leaf are in the block.
        offset: the flat index of the first entry, in its leaf or its local shard.
        form: the format of the bits.
        num_above: how many candidates are above the bracket.
        num_inside: how many candidates are inside it.
        indices: the indices in the block of those inside, ascending int64; none if there were too
            many to collect.
        bits: their scores as integers.
    """

    query: int
    start: int
    leaves: list[int]
    sizes: list[int]
    offset: int
    form: Format
    num_above: int
    num_inside: int
    indices: Tensor
    bits: Tensor

    @staticmethod
    def of(query: int, block: Block, indices: Tensor, bits: Tensor) -> DividedBlock:
        """Return a block whose candidates are not counted yet."""
        place = block.start, block.leaves, block.sizes, block.offset
        return DividedBlock(query, *place, block.form, 0, 0, indices, bits)

    def with_counts(self, num_above: int, num_inside: int) -> DividedBlock:
        """Return the block with its counts, and only the used slots; none if there were too few."""
        used = num_inside if num_inside <= self.indices.numel() else 0
        indices, bits = self.indices[:used], self.bits[:used]
        return self._replace(num_above=num_above, num_inside=num_inside, indices=indices, bits=bits)


class Bins(NamedTuple):
    """Bins of equal width.

    Attributes:
        first: the lowest integer of the first bin, a multiple of the width.
        shift: the exponent of the width, which is 2**shift.
        num_bins: how many bins there are.
    """

    first: int
    shift: int
    num_bins: int

    @staticmethod
    def covering(low: int, high: int, num_bins: int) -> Bins:
        """Return `num_bins` bins of the least width with which they cover `low` to `high`."""
        shift = max(0, (high - low).bit_length() - num_bins.bit_length() + 1)
        while (high >> shift) - (low >> shift) >= num_bins:
            shift += 1
        return Bins((low >> shift) << shift, shift, num_bins)

    def numbers(self, integers: Tensor) -> Tensor:
        """Return each integer's bin: 1 to `num_bins`; 0 below all, `num_bins + 1` above all."""
        below = (self.first >> self.shift) - 1
        numbers = (integers >> self.shift).clamp_(below, below + self.num_bins + 1)
        return numbers.sub_(below)


class Buffers:
    """Memory for the intermediate results of a block, which the next block uses again.

    Newly allocated memory costs a page fault for every 4 KiB. That is slower than most operators.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def get(self, name: str, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return a buffer with undefined contents."""
        key = name, dtype, device
        if key not in self._buffers or self._buffers[key].numel() < size:
            self._buffers[key] = torch.empty(size, dtype=dtype, device=device)
        return self._buffers[key][:size]


class Candidates(NamedTuple):
    """Candidates that a pass has collected.

    Attributes:
        keys: 1-D, int32 or int64.
        positions: their positions, int64; ascending if no two queries share a leaf.
        query: the number of the query of each candidate, or `None` if there is one query.
    """

    keys: Tensor
    positions: Tensor
    query: Tensor | None

    def keep(self, condition: Tensor) -> Candidates:
        """Keep the candidates for which a condition holds."""
        kept = find_true(condition)
        query = None if self.query is None else self.query.index_select(0, kept)
        return Candidates(
            self.keys.index_select(0, kept), self.positions.index_select(0, kept), query
        )

    def look_up(self, numbers: list[int], dtype: torch.dtype | None = None) -> Tensor | int:
        """Return, for each candidate, the number that belongs to its query.

        Args:
            numbers: one for each query.
            dtype: the integer dtype of the result; by default that of the keys.

        Returns:
            As many numbers as there are candidates, or a single one for all of them.
        """
        if self.query is None:
            return numbers[0]
        table = torch.tensor(numbers, dtype=dtype or self.keys.dtype, device="cpu")
        return table.index_select(0, self.query)


class PartitionPass:
    """A pass that divides the candidates of each query into below, inside and above its bracket.

    Attributes:
        queries: the thresholds to find.
        brackets: the lowest and the highest key of each query's bracket.
        num_counts: how many counts `run` returns.
    """

    def __init__(
        self,
        ranked: RankedLeaves,
        queries: Sequence[Query],
        brackets: Sequence[tuple[int, int]],
        masks: list[Tensor] | None,
        limit: int,
    ) -> None:
        """Prepare a pass.

        Args:
            ranked: the leaves that are ranked.
            queries: the thresholds to find.
            brackets: the lowest and the highest key of each query's bracket.
            masks: one contiguous bool mask per leaf, to be written, or `None`. If there are masks,
                no two queries share a leaf.
            limit: the most candidates to collect.
        """
        self.queries, self.brackets = queries, brackets
        self.num_counts = 3 * len(queries)
        self._counted: list[list[CountedBlock]] = [[] for _ in queries]
        self._ranked, self._masks, self._limit = ranked, masks, limit
        # many small tensors, allocated between the blocks, would fragment the memory
        most = [q.num_candidates for i, q in enumerate(queries) if self.collects(i)]
        size = min(limit, sum(most))
        is_wide = ranked.common.integer == torch.int64 or not ranked.common.is_float
        dtype = torch.int64 if is_wide else torch.int32
        self._keys = torch.empty(size, dtype=dtype, device="cpu")
        self._positions = torch.empty(size, dtype=torch.int64, device="cpu")
        self._parts: list[tuple[int, int, int]] = []  # (query, start, stop) in these two tensors
        self._num_collected = 0

    def collects(self, query: int) -> bool:
        """Return whether a query's candidates are collected: its bracket has more than one key."""
        low, high = self.brackets[query]
        return low < high

    def counted(self, query: int) -> list[CountedBlock]:
        """Return how many candidates of each block are inside the bracket of a query."""
        return self._counted[query]

    def run(self) -> Tensor:
        """Make the pass.

        Returns:
            int64 counts, in three groups of one per query: how many candidates are not below its
            bracket; how many are inside it; and 1 if the pass has collected nothing, because the
            brackets of all queries have more candidates than the limit, else 0. The first is not
            counted for queries that share their leaves.
        """
        ranked, buffers = self._ranked, Buffers()
        counts = torch.zeros(3, len(self.queries), dtype=torch.int64, device="cpu")
        for leaves, members in by_leaves(self.queries):
            if len(members) > 1:
                self._find_inside(leaves, members, counts[1])
                continue
            [query] = members
            for block in ranked.blocks(leaves):
                bracket = self.brackets[query]
                above, not_below = _compare(ranked, block, bracket, buffers, self._masks)
                counts[0, query] += count_packed(not_below)
                inside = not_below  # the memory is used again
                inside.view(torch.int64).bitwise_xor_(above.view(torch.int64))
                num_inside = int(count_packed(inside))
                counts[1, query] += num_inside
                self._counted[query].append(CountedBlock(block.start, block.stop, num_inside))
                if self.collects(query) and self._reserve(num_inside):
                    found = find_packed(inside)
                    keys = ranked.keys(block.bits.index_select(0, found), block.form)
                    self._collect(query, keys, found.add_(block.start))
        if self._num_collected > self._limit:
            self._parts, self._num_collected = [], 0
            counts[2] = 1
        return counts.view(-1)

    def candidates(self, queries: list[int]) -> Candidates:
        """Return the collected candidates of some queries, which are numbered anew from 0."""
        numbers = {query: number for number, query in enumerate(queries)}
        parts = [part for part in self._parts if part[0] in numbers]
        if len(parts) == len(self._parts):
            keys, positions = (x[: self._num_collected] for x in (self._keys, self._positions))
        else:
            keys = concatenate([self._keys[start:stop] for _, start, stop in parts])
            positions = concatenate([self._positions[start:stop] for _, start, stop in parts])
        if len(queries) == 1:
            return Candidates(keys, positions, None)
        table = [(numbers[query], stop - start) for query, start, stop in parts]
        order, sizes = torch.tensor(table, dtype=torch.int32, device="cpu").view(-1, 2).unbind(1)
        return Candidates(keys, positions, order.repeat_interleave(sizes))

    def _reserve(self, number: int) -> bool:
        """Add to the number of candidates found, and return whether all fit into the limit."""
        self._num_collected += number
        return self._num_collected <= self._limit

    def _collect(self, query: int, keys: Tensor, positions: Tensor) -> None:
        """Store candidates that `_reserve` has counted."""
        start, stop = self._num_collected - keys.numel(), self._num_collected
        self._keys[start:stop] = keys
        self._positions[start:stop] = positions
        self._parts.append((query, start, stop))

    def _find_inside(self, leaves: range, members: list[int], num_inside: Tensor) -> None:
        """Count and collect the candidates in the brackets of several queries of the same leaves.

        Comparing every block with every bracket would take long. A table says which bins of keys
        overlap a bracket, and only the entries in those bins are compared.

        Args:
            leaves: the leaves.
            members: the numbers of the queries.
            num_inside: the counts of all queries, to be updated.
        """
        ranked, brackets = self._ranked, [self.brackets[query] for query in members]
        lowest, highest = min(low for low, _ in brackets), max(high for _, high in brackets)
        bins = Bins.covering(lowest, highest, NUM_TABLE_BINS)
        table = torch.zeros(bins.num_bins + 2, dtype=torch.bool, device="cpu")
        for low, high in brackets:
            first, last = ((key - bins.first) >> bins.shift for key in (low, high))
            table[1 + first : 2 + last] = True
        for block in ranked.blocks(leaves):
            keys = ranked.keys(block.bits, block.form)
            near = find_true(table.index_select(0, bins.numbers(keys)))
            if block.prior is not None:
                near = near[block.prior.index_select(0, near)]
            keys = keys.index_select(0, near)
            for query, (low, high) in zip(members, brackets, strict=True):
                found = (keys >= low).logical_and_(keys <= high).nonzero().view(-1)
                num_inside[query] += found.numel()
                self._counted[query].append(CountedBlock(block.start, block.stop, found.numel()))
                if self.collects(query) and self._reserve(found.numel()):
                    positions = near.index_select(0, found).add_(block.start)
                    self._collect(query, keys.index_select(0, found), positions)


NUM_TABLE_BINS = 2**15
"""How many bins the table of `PartitionPass._find_inside` has."""


def by_leaves(queries: Sequence[Query]) -> list[tuple[range, list[int]]]:
    """Group the numbers of the queries by their leaves."""
    groups: dict[range, list[int]] = {}
    for number, query in enumerate(queries):
        groups.setdefault(query.leaves, []).append(number)
    return list(groups.items())


def _compare(
    ranked: RankedLeaves,
    block: Block,
    bracket: tuple[int, int],
    buffers: Buffers,
    masks: list[Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """Compare the keys of a block with a bracket, and write what is above it into the masks.

    Args:
        ranked: the leaves that are ranked.
        block: a block of them.
        bracket: its lowest and its highest key.
        buffers: memory for the results.
        masks: one contiguous bool mask per leaf, or `None`.

    Returns:
        Which candidates are above the bracket, and which are not below it, as packed bools.
    """
    least, greatest = raw_bounds(*bracket, block.form, ranked.common, absolute=ranked.absolute)
    size, device = block.bits.numel(), block.bits.device
    padded = -(-size // WORD) * WORD  # rounded up to whole words; the last values are undefined
    raw = buffers.get("raw", padded, block.form.integer, device)
    raw_keys(block.bits, block.form, absolute=ranked.absolute, out=raw[:size])
    # Comparing into the dtype of the keys and copying the result to bool is faster than comparing
    # into bool. If the block is a part of one leaf, and begins and ends at a word of its mask, the
    # result is written straight into the mask.
    compared = buffers.get("compared", padded, raw.dtype, device)
    is_whole_words = len(block.leaves) == 1 and size == padded and block.offset % WORD == 0
    if masks is not None and is_whole_words:
        above = masks[block.leaves[0]].view(-1)[block.offset : block.offset + size]
    else:
        above = buffers.get("above", padded, torch.bool, device)
    above.copy_(torch.gt(raw, greatest, out=compared))
    not_below = buffers.get("not_below", padded, torch.bool, device)
    not_below.copy_(torch.ge(raw, least, out=compared))
    if block.prior is not None:
        prior = buffers.get("prior", padded, torch.bool, device)
        prior[:size].copy_(block.prior)
        prior[size:] = False
        above.view(torch.int64).bitwise_and_(prior.view(torch.int64))
        not_below.view(torch.int64).bitwise_and_(prior.view(torch.int64))
    elif size < padded:
        above[size:] = False
        not_below[size:] = False
    if masks is not None and not is_whole_words:
        write_block(block, above[:size], masks)
    return above, not_below


def count_keys(ranked: RankedLeaves, queries: Sequence[Query], bins: Sequence[Bins]) -> Tensor:
    """Count the candidates of every query in bins of keys.

    Args:
        ranked: the leaves that are ranked.
        queries: the thresholds to find.
        bins: the bins of each query. Every query has the same number of bins.

    Returns:
        int64 counts, 1-D; for each query `num_bins + 2`: below all bins, in each, above all.
    """
    size = bins[0].num_bins + 2
    counts = torch.zeros(len(queries), size, dtype=torch.int64, device=ranked.device)
    for leaves, members in by_leaves(queries):
        # queries of the same leaves often have the same bins, and then share a histogram
        totals = {bins[query]: counts.new_zeros(size + 1) for query in members}
        for block in ranked.blocks(leaves):
            keys = ranked.keys(block.bits, block.form)
            for same_bins, total in totals.items():
                numbers = same_bins.numbers(keys)
                if block.prior is not None:
                    numbers.masked_fill_(block.prior.logical_not(), size)
                total += histogram(numbers, size + 1).to(total.device)
        for query in members:
            counts[query] = totals[bins[query]][:size]
    return counts.view(-1)


def count_ties(
    ranked: RankedLeaves, leaves: range, key: int, first: int, last: int, bins: Bins
) -> Tensor:
    """Count the candidates with a given key, in bins of tree indices; see `tied_indices`."""
    counts = torch.zeros(bins.num_bins, dtype=torch.int64, device=ranked.device)
    for found in tied_indices(ranked, leaves, key, first, last):
        numbers = (found - bins.first) >> bins.shift
        counts += histogram(numbers, bins.num_bins).to(ranked.device)
    return counts


def tied_indices(
    ranked: RankedLeaves, leaves: range, key: int, first: int, last: int
) -> Iterator[Tensor]:
    """Yield the tree indices of the candidates with a given key, block by block.

    Args:
        ranked: the leaves that are ranked.
        leaves: the number of one leaf, or those of all.
        key: the key, in the common format.
        first: the lowest tree index to yield.
        last: the highest tree index to yield.

    Yields:
        int64 tree indices, ascending.
    """
    start, end = ranked.last_position(first - 1) + 1, ranked.last_position(last)
    for block in ranked.blocks(leaves, start, end):
        is_tied = ranked.keys(block.bits, block.form) == key
        if block.prior is not None:
            is_tied &= block.prior
        positions = is_tied.nonzero().view(-1).add_(block.start)
        if block.start < start or block.stop > end + 1:
            positions = positions[(positions >= start) & (positions <= end)]
        yield ranked.tree_index(positions)


def empty_masks(scores: list[Tensor]) -> list[Tensor]:
    """Allocate the masks: contiguous, each on the device of its leaf."""
    return [torch.empty(x.shape, dtype=torch.bool, device=x.device) for x in scores]


def copy_priors(ranked: RankedLeaves, leaves: range, masks: list[Tensor]) -> None:
    """Copy the prior masks of some leaves into the masks; without prior masks, keep everything."""
    for leaf in leaves:
        if ranked.priors:
            masks[leaf].copy_(ranked.priors[leaf])
        else:
            masks[leaf].fill_(True)


def write_masks(
    ranked: RankedLeaves, blocks: Iterable[Block], key: int, last: int, masks: list[Tensor]
) -> None:
    """Write the masks of some blocks at a threshold.

    Args:
        ranked: the leaves that are ranked.
        blocks: the blocks.
        key: the key of the threshold, in the common format.
        last: the position of the last entry that is pruned among those that have the key.
        masks: one contiguous bool mask per leaf.
    """
    buffers = Buffers()
    for block in blocks:
        least, greatest = raw_bounds(key, key, block.form, ranked.common, absolute=ranked.absolute)
        size, device = block.bits.numel(), block.bits.device
        raw = buffers.get("raw", size, block.form.integer, device)
        raw_keys(block.bits, block.form, absolute=ranked.absolute, out=raw)
        kept = buffers.get("compared", size, block.form.integer, device)
        split = min(max(0, last + 1 - block.start), size)  # ties after the last one are kept
        torch.gt(raw[:split], greatest, out=kept[:split])
        torch.ge(raw[split:], least, out=kept[split:])
        if block.prior is not None:
            kept.mul_(block.prior)
        write_block(block, kept, masks)


def write_block(block: Block, kept: Tensor, masks: list[Tensor]) -> None:
    """Copy the mask of a block into the masks of its leaves."""
    flat = [masks[leaf].view(-1) for leaf in block.leaves]
    if len(flat) == 1:
        flat[0][block.offset : block.offset + kept.numel()].copy_(kept)
    else:
        torch.split_with_sizes_copy(kept.to(torch.bool), block.sizes, out=flat)


def keep_positions(
    ranked: RankedLeaves, leaves: Sequence[range], positions: Tensor, masks: list[Tensor]
) -> None:
    """Write `True` into the masks at some positions.

    Args:
        ranked: the leaves that are ranked.
        leaves: the leaves of each query, ascending.
        positions: which entries to keep, ascending.
        masks: one contiguous bool mask per leaf.
    """
    starts = ranked.starts
    groups = [group for scope in leaves for group in ranked.groups(scope)]
    bounds = [(starts[group[0]], starts[group[-1] + 1]) for group in groups]
    ends = torch.searchsorted(positions, torch.tensor(bounds, device="cpu")).tolist()
    for group, (start, end) in zip(groups, ends, strict=True):
        if start == end:
            continue
        index = positions[start:end] - starts[group[0]]
        flat = [masks[leaf].view(-1) for leaf in group]
        kept = flat[0] if len(group) == 1 else torch.cat(flat)
        kept.index_fill_(0, index.to(kept.device), True)
        if len(group) > 1:
            torch.split_with_sizes_copy(kept, [mask.numel() for mask in flat], out=flat)
