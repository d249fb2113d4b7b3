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
    histogram,
    packed_positions,
)
from gprune.select.keys import Format, raw_bounds, raw_keys


class CountedBlock(NamedTuple):
    """How many candidates of a block are inside the bracket of a query.

    Attributes:
        query: the number of the query in the pass.
        start: the position of the first entry of the block.
        stop: the position after that of the last entry.
        num_inside: how many of its candidates are inside the bracket, 0-dim.
    """

    query: int
    start: int
    stop: int
    num_inside: Tensor


class Bins(NamedTuple):
    """Bins of equal width.

    Attributes:
        first: the lowest integer of the first bin, a multiple of the width.
        shift: the width, as a power of two.
        num_bins: how many bins there are.
    """

    first: int
    shift: int
    num_bins: int

    @staticmethod
    def covering(low: int, high: int, num_bins: int) -> Bins:
        """Return the narrowest bins that cover the integers from `low` to `high`."""
        shift = max(0, (high - low).bit_length() - num_bins.bit_length() + 1)
        while (high >> shift) - (low >> shift) >= num_bins:
            shift += 1
        return Bins((low >> shift) << shift, shift, num_bins)


class Buffers:
    """Memory for the intermediate results of a block, which the next block uses again.

    Newly allocated memory costs a page fault for every 4 KiB, which is slower than most operators.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def get(self, name: str, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return a buffer with undefined contents."""
        key = name, dtype, device
        if key not in self._buffers or self._buffers[key].numel() < size:
            self._buffers[key] = torch.empty(size, dtype=dtype, device=device)
        return self._buffers[key][:size]


class PartitionPass:
    """A pass that divides the candidates of each query into below, inside and above its bracket.

    Attributes:
        brackets: the lowest and the highest key of each bracket.
        num_counts: how many counts `run` returns.
        keys: after `run`, the keys of the candidates inside, int64 or narrower; not to be used if
            they were too many to collect.
        query: the number of the query of each of these keys, if there are several queries.
        counted: how many candidates are inside, for each block and query.
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
            masks: one contiguous bool mask per leaf, or `None`. The pass writes those of leaves
                that are not joined with others, unless the bracket holds all keys.
            limit: the most candidates to collect; 0 if none can be collected.
        """
        self.brackets, self.num_counts = brackets, 2 * len(queries) + 1
        self.keys = self.query = torch.empty(0, dtype=torch.int64, device="cpu")
        self.counted: list[CountedBlock] = []
        self._ranked, self._queries = ranked, queries
        self._masks, self._limit = masks, limit
        self._parts: list[tuple[Tensor, Tensor | range, int]] = []
        self._num_collected = 0

    def collects(self, query: int) -> bool:
        """Return whether the candidates in a bracket are collected: not if it is a single key."""
        low, high = self.brackets[query]
        return self._limit > 0 and low < high

    def is_whole(self, query: int) -> bool:
        """Return whether all candidates of a query are collected: its bracket holds all keys."""
        return self._limit > 0 and self.brackets[query] == self._ranked.key_range

    def run(self) -> Tensor:
        """Make the pass.

        Returns:
            int64 counts: for each query, how many candidates are below its bracket; for each query,
            how many are inside; and 1 if they were too many to collect, else 0.
        """
        ranked, buffers = self._ranked, Buffers()
        bounds = _Bounds(ranked, self.brackets)
        counts = torch.zeros(2, len(self._queries), dtype=torch.int64, device=ranked.device)
        for leaves, members in by_leaves(self._queries):
            num_candidates = ranked.num_candidates(leaves).to(ranked.device)
            for block in ranked.blocks(leaves):
                raw: Tensor | None = None
                for query in members:
                    if self.is_whole(query):
                        kept = block.prior
                        found = None if kept is None else kept.nonzero().view(-1)
                        self._num_collected += (
                            block.bits.numel() if found is None else found.numel()
                        )
                        self._collect(block, found, query)
                        continue
                    masks = self._masks if len(block.leaves) == 1 else None
                    raw = _padded_raw_keys(ranked, block, buffers) if raw is None else raw
                    ends = bounds.of(block.form, query)
                    above, inside = _compare(block, raw, *ends, buffers, masks)
                    counts[0, query] -= count_packed(inside)  # it still has those above
                    inside.view(torch.int64).bitwise_xor_(above.view(torch.int64))
                    num_inside = count_packed(inside)
                    counts[1, query] += num_inside
                    self.counted.append(CountedBlock(query, block.start, block.stop, num_inside))
                    if self.collects(query):
                        self._num_collected += int(num_inside)
                        if self._num_collected <= self._limit:
                            self._collect(block, packed_positions(inside), query)
            # A bracket of all keys has all candidates inside. From the others, the candidates that
            # are not below have been subtracted, so adding all candidates gives those below.
            for query in members:
                counts[int(self.is_whole(query)), query] += num_candidates
        is_full = self._num_collected > self._limit or self._limit == 0
        if not is_full and self._parts:
            self.keys = concatenate([keys for keys, *_ in self._parts])
            if len(self._queries) > 1:
                numbers = torch.tensor([query for *_, query in self._parts], device="cpu")
                sizes = torch.tensor([keys.numel() for keys, *_ in self._parts], device="cpu")
                self.query = numbers.repeat_interleave(sizes)
        else:
            self._parts = []
        return torch.cat([counts.view(-1), counts.new_full((1,), is_full)])

    def positions(self, index: Tensor) -> Tensor:
        """Return the positions of the collected candidates at some indices of `keys`."""
        parts = [positions for _, positions, _ in self._parts]
        if len(parts) == 1 and isinstance(parts[0], range):
            return index + parts[0].start
        columns = [
            torch.arange(part.start, part.stop, device="cpu") if isinstance(part, range) else part
            for part in parts
        ]
        return concatenate(columns).index_select(0, index)

    def _collect(self, block: Block, found: Tensor | None, query: int) -> None:
        """Collect the candidates at some indices of a block, or all of its entries."""
        positions: Tensor | range = range(block.start, block.stop)
        bits = block.bits
        if found is not None:
            bits, positions = bits.index_select(0, found), found.add_(block.start)
        keys = self._ranked.keys(bits, block.form)
        keys = keys if keys.element_size() > 2 else keys.to(torch.int32)  # query numbers are added
        self._parts.append((keys, positions, query))


def by_leaves(queries: Sequence[Query]) -> list[tuple[range, list[int]]]:
    """Group the numbers of the queries by their leaves."""
    groups: dict[range, list[int]] = {}
    for number, query in enumerate(queries):
        groups.setdefault(query.leaves, []).append(number)
    return list(groups.items())


class _Bounds:
    """The raw keys at the ends of the brackets, computed once for each format."""

    def __init__(self, ranked: RankedLeaves, brackets: Sequence[tuple[int, int]]) -> None:
        self._ranked, self._brackets = ranked, brackets
        self._known: dict[Format, list[tuple[int, int]]] = {}

    def of(self, form: Format, query: int) -> tuple[int, int]:
        """Return the lowest and the highest raw key of the bracket of a query."""
        if form not in self._known:
            common, absolute = self._ranked.common, self._ranked.absolute
            self._known[form] = [
                raw_bounds(low, high, form, common, absolute=absolute)
                for low, high in self._brackets
            ]
        return self._known[form][query]


def _padded_raw_keys(ranked: RankedLeaves, block: Block, buffers: Buffers) -> Tensor:
    """Compute the raw keys of a block, padded to whole words with undefined values."""
    size = block.bits.numel()
    raw = buffers.get("raw", -(-size // WORD) * WORD, block.form.integer, block.bits.device)
    raw_keys(block.bits, block.form, absolute=ranked.absolute, out=raw[:size])
    return raw


def _compare(
    block: Block,
    raw: Tensor,
    least: int,
    greatest: int,
    buffers: Buffers,
    masks: list[Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """Return which candidates are above the bracket, and which not below it, as packed bools."""
    size, device = block.bits.numel(), raw.device
    target = None
    if masks is not None:
        target = masks[block.leaves[0]].view(-1)[block.offset : block.offset + size]
    # Comparing into the dtype of the keys and copying the result to bool is faster than comparing
    # into bool. If the mask of the block consists of whole words, it is used as the buffer.
    compared = buffers.get("compared", raw.numel(), raw.dtype, device)
    is_direct = target is not None and size == raw.numel() and block.offset % WORD == 0
    if target is None or not is_direct:
        above = buffers.get("above", raw.numel(), torch.bool, device)
    else:
        above = target
    above.copy_(torch.gt(raw, greatest, out=compared))
    inside = buffers.get("inside", raw.numel(), torch.bool, device)
    inside.copy_(torch.ge(raw, least, out=compared))
    if block.prior is not None:
        prior = buffers.get("prior", raw.numel(), torch.bool, device)
        prior[:size].copy_(block.prior)
        prior[size:] = False
        above.view(torch.int64).bitwise_and_(prior.view(torch.int64))
        inside.view(torch.int64).bitwise_and_(prior.view(torch.int64))
    elif size < raw.numel():
        above[size:] = False
        inside[size:] = False
    if target is not None and not is_direct:
        target.copy_(above[:size])
    return above, inside


def count_keys(ranked: RankedLeaves, queries: Sequence[Query], bins: Sequence[Bins]) -> Tensor:
    """Count the candidates of every query in bins of keys.

    Args:
        ranked: the leaves that are ranked.
        queries: the thresholds to find.
        bins: the bins of each query, of the same number for every query.

    Returns:
        int64 counts, 1-D; for each query `num_bins + 2`: below all bins, in each, above all.
    """
    size = bins[0].num_bins + 2
    counts = torch.zeros(len(queries), size + 1, dtype=torch.int64, device=ranked.device)
    for leaves, members in by_leaves(queries):
        shared: dict[Bins, list[int]] = {}
        for query in members:
            shared.setdefault(bins[query], []).append(query)
        for block in ranked.blocks(leaves):
            keys = ranked.keys(block.bits, block.form)
            keys = keys if keys.element_size() > 2 else keys.to(torch.int32)  # up to 2^15 bins
            for group_bins, same in shared.items():
                below = (group_bins.first >> group_bins.shift) - 1
                numbers = (keys >> group_bins.shift).clamp_(below, below + size - 1).sub_(below)
                if block.prior is not None:
                    numbers.masked_fill_(block.prior.logical_not(), size)
                counts[same] += histogram(numbers, size + 1).to(ranked.device)
    return counts[:, :size].reshape(-1)


def count_ties(
    ranked: RankedLeaves, leaves: range, key: int, first: int, last: int, bins: Bins
) -> Tensor:
    """Count the candidates that have one key in bins of tree indices; see `tied_indices`."""
    counts = torch.zeros(bins.num_bins, dtype=torch.int64, device=ranked.device)
    for found in tied_indices(ranked, leaves, key, first, last):
        numbers = (found - bins.first) >> bins.shift
        counts += histogram(numbers, bins.num_bins).to(ranked.device)
    return counts


def tied_indices(
    ranked: RankedLeaves, leaves: range, key: int, first: int, last: int
) -> Iterator[Tensor]:
    """Yield the tree indices of the candidates that have one key, block by block.

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
    """Write the masks that prune nothing more."""
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
    buffers, bounds = Buffers(), _Bounds(ranked, [(key, key)])
    for block in blocks:
        least, greatest = bounds.of(block.form, 0)
        size, device = block.bits.numel(), block.bits.device
        raw = buffers.get("raw", size, block.form.integer, device)
        raw_keys(block.bits, block.form, absolute=ranked.absolute, out=raw)
        kept = buffers.get("compared", size, block.form.integer, device)
        split = min(max(0, last + 1 - block.start), size)  # ties after the last one are kept
        torch.gt(raw[:split], greatest, out=kept[:split])
        torch.ge(raw[split:], least, out=kept[split:])
        if block.prior is not None:
            kept.mul_(block.prior)
        flat = [masks[leaf].view(-1) for leaf in block.leaves]
        if len(flat) == 1:
            flat[0][block.offset : block.offset + size].copy_(kept)
        else:
            torch.split_with_sizes_copy(kept.to(torch.bool), block.sizes, out=flat)
