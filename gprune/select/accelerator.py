"""The steps of a search on an accelerator: its sample, its pass, and its last step.

The host queues operators, and an accelerator runs them later. Whenever the host reads a value, it
waits until all operators before it have run. So no shape here depends on a value. A pass stores the
candidates that are inside a bracket in a fixed number of *slots* for each block. The sample says
how many are enough, and the counts tell afterwards whether they were. The host reads values twice:
the sample, and the counts of the pass.

Each operator has a fixed cost, so there are few of them, and blocks are large. The collected
candidates are sorted, because a stable sort also ranks equal keys by their positions.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from gprune.select.blocks import Block, Query, RankedLeaves
from gprune.select.counter_rng import draw_integers
from gprune.select.counting import concatenate
from gprune.select.finish import KeyThreshold
from gprune.select.keys import raw_bounds, raw_keys, to_bits
from gprune.select.partition import Candidates, CountedBlock, write_block
from gprune.select.refine import Interval, Reduce
from gprune.select.sampling import entries_at, sample_size

MAX_SLOTS = 2**22
"""The most slots of a pass. Each takes some 50 bytes until the masks are written."""

MARGIN = 5
"""A block has slots for MARGIN standard deviations more candidates than the sample predicts."""


# --- the sample ---------------------------------------------------------------------------------


class Piece(NamedTuple):
    """The sampled entries of one leaf in one block.

    Attributes:
        start: the position of the first entry of the block.
        leaf: the number of the leaf.
        entries: the flat indices of the sampled entries.
    """

    start: int
    leaf: int
    entries: range


class AcceleratorSample:
    """The samples of some queries, drawn on accelerators and copied to the host together."""

    def __init__(self, ranked: RankedLeaves) -> None:
        self._ranked = ranked
        self._pieces: list[list[Piece]] = []
        self._keys: list[Tensor] = []

    def draw(self, queries: Sequence[Query]) -> list[Tensor]:
        """Draw a sample for each query.

        Args:
            queries: the thresholds to find.

        Returns:
            For each query the keys of the sampled candidates, on the CPU.
        """
        self._pieces = [_pieces(self._ranked, query.leaves) for query in queries]
        drawn = _keys_of(self._ranked, [piece for own in self._pieces for piece in own])
        sizes = [sum(len(piece.entries) for piece in own) for own in self._pieces]
        self._keys = list(torch.split(drawn, sizes))
        return [keys[keys != torch.iinfo(keys.dtype).max] for keys in self._keys]

    def num_slots(self, query: int, low: int, high: int) -> dict[int, int]:
        """Return how many slots each block needs for the candidates from `low` to `high`.

        Args:
            query: the number of the query in `draw`.
            low: the lowest key of the bracket.
            high: the highest key of the bracket.

        Returns:
            The numbers of slots, by the position of the first entry of each block.
        """
        pieces, keys = self._pieces[query], self._keys[query]
        inside = (keys >= low).logical_and_(keys <= high)
        ends = torch.tensor([0, *accumulate(len(piece.entries) for piece in pieces)], device="cpu")
        before = torch.cat([torch.zeros(1, dtype=torch.int64), inside.cumsum(0)])[ends]
        found: dict[int, int] = {}
        for piece, number in zip(pieces, before.diff().tolist(), strict=True):
            found[piece.start] = found.get(piece.start, 0) + number
        step = max(len(p.entries) and p.entries.step for p in pieces)
        return {
            start: math.ceil(step * (number + MARGIN * math.sqrt(number) + 2 * MARGIN))
            for start, number in found.items()
        }


def _pieces(ranked: RankedLeaves, leaves: range) -> list[Piece]:
    # The step is a prime number, and no dim of a leaf is a multiple of it. So a sample has entries
    # of all rows and columns.
    num_entries = ranked.tree_starts[leaves.stop] - ranked.tree_starts[leaves.start]
    shapes = {size for leaf in leaves for size in ranked.scores[leaf].shape}
    step = _prime(math.ceil(num_entries / sample_size(num_entries)), shapes)
    pieces = []
    for start, leaf, first, stop in ranked.spans(leaves):
        # of leaves that are shorter than a step, only some have an entry in the sample
        phase = _phase(leaf, step) if ranked.scores[leaf].numel() >= step else ranked.starts[leaf]
        pieces.append(Piece(start, leaf, range(first + (phase - first) % step, stop, step)))
    return pieces


def _phase(leaf: int, step: int) -> int:
    """Return the flat index of the first sampled entry of a leaf, spread by the golden ratio."""
    return int(leaf * 0.6180339887498949 % 1 * step)


def _prime(least: int, sizes: set[int]) -> int:
    """Return the smallest prime number from `least` that divides none of some sizes, or 1."""
    if least <= 1:
        return 1
    number = least
    while any(number % d == 0 for d in range(2, math.isqrt(number) + 1)) or any(
        size and size % number == 0 for size in sizes
    ):
        number += 1
    return number


def _keys_of(ranked: RankedLeaves, pieces: Sequence[Piece]) -> Tensor:
    """Return the keys of sampled entries on the CPU; the highest integer if one is no candidate."""
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for number, piece in enumerate(pieces):
        scores = ranked.scores[piece.leaf]
        groups.setdefault((scores.device, scores.dtype), []).append(number)
    found = [torch.empty(0, dtype=torch.int64, device="cpu")] * len(pieces)
    for numbers in groups.values():
        own = [pieces[number] for number in numbers]
        if ranked.seed is None:
            form = ranked.form(own[0].leaf)
            bits = [to_bits(entries_at(ranked.scores[p.leaf], p.entries), form) for p in own]
            keys = ranked.keys(torch.cat(bits), form)
        else:
            indices = [torch.tensor(p.entries, dtype=torch.int64, device="cpu") for p in own]
            pairs = zip(own, indices, strict=True)
            keys = torch.cat([draw_integers(ranked.seed, p.leaf, index) for p, index in pairs])
        if ranked.priors:
            prior = torch.cat([entries_at(ranked.priors[p.leaf], p.entries) for p in own])
            keys = torch.where(prior.to(keys.device), keys, torch.iinfo(keys.dtype).max)
        parts = torch.split(keys.cpu(), [len(piece.entries) for piece in own])
        for number, part in zip(numbers, parts, strict=True):
            found[number] = part
    return concatenate(found)


# --- the pass -----------------------------------------------------------------------------------


class Slots(NamedTuple):
    """The slots of a block: its candidates inside the bracket of a query, then unused ones.

    Attributes:
        query: the number of the query.
        block: the block, without its bits and its prior mask, which take memory.
        local: the indices of the candidates in the block, ascending int64; 0 in unused slots.
        bits: the scores at these indices, as integers.
    """

    query: int
    block: Block
    local: Tensor
    bits: Tensor


class AcceleratorPass:
    """A pass that divides the candidates of each query by its bracket, without reading a value.

    It does for leaves on any device what `PartitionPass` does for leaves on the CPU.

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
        num_slots: Sequence[dict[int, int]],
    ) -> None:
        """Prepare a pass.

        Args:
            ranked: the leaves that are ranked.
            queries: the thresholds to find.
            brackets: the lowest and the highest key of each query's bracket.
            masks: one contiguous bool mask per leaf, to be written, or `None`. If there are masks,
                no two queries share a leaf.
            num_slots: for each query how many slots each block has, by the position of its first
                entry.
        """
        self.queries, self.brackets = queries, brackets
        self.num_counts = 3 * len(queries)
        self._ranked, self._masks, self._num_slots = ranked, masks, num_slots
        self._slots: list[Slots] = []
        self._blocks: list[tuple[int, int, int]] = []  # the query, the start and the stop of each
        self._num_inside = torch.empty(0, dtype=torch.int64, device="cpu")

    def collects(self, query: int) -> bool:
        """Return whether the candidates in a bracket are collected: not if it is a single key."""
        low, high = self.brackets[query]
        return low < high

    def run(self) -> Tensor:
        """Make the pass.

        Returns:
            The counts that `PartitionPass.run` returns.
        """
        counts, room, device = list[Tensor](), list[int](), self._ranked.device
        for number, query in enumerate(self.queries):
            for block in self._ranked.blocks(query.leaves):
                above, inside = self._divide(block, self.brackets[number])
                counts += [above.count_nonzero().to(device), inside.count_nonzero().to(device)]
                self._blocks.append((number, block.start, block.stop))
                room.append(block.bits.numel())
                if self.collects(number):
                    room[-1] = self._num_slots[number][block.start]
                    local = torch.nonzero_static(inside, size=room[-1], fill_value=0).view(-1)
                    bits = block.bits.index_select(0, local)
                    nothing = block.bits[:0]
                    self._slots.append(
                        Slots(number, block._replace(bits=nothing, prior=None), local, bits)
                    )
        totals = torch.zeros(len(self.queries), 3, dtype=torch.int64, device=device)
        if counts:
            above_counts, self._num_inside = torch.stack(counts).view(-1, 2).unbind(1)
            numbers = torch.tensor([[number for number, _, _ in self._blocks], room]).to(device)
            is_full = self._num_inside > numbers[1]
            of_blocks = [above_counts + self._num_inside, self._num_inside, is_full]
            totals.index_add_(0, numbers[0], torch.stack(of_blocks, dim=1))
        return totals.t().reshape(-1)

    def _divide(self, block: Block, bracket: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return which candidates of a block are above and which are inside a bracket."""
        ranked, masks, form = self._ranked, self._masks, block.form
        least, greatest = raw_bounds(*bracket, form, ranked.common, absolute=ranked.absolute)
        out = torch.empty_like(block.bits)
        raw = raw_keys(block.bits, form, absolute=ranked.absolute, out=out)
        if masks is not None and len(block.leaves) == 1:
            flat = masks[block.leaves[0]].view(-1)
            above = flat[block.offset : block.offset + raw.numel()]
        else:
            above = torch.empty(raw.shape, dtype=torch.bool, device=raw.device)
        torch.gt(raw, greatest, out=above)
        inside = torch.ge(raw, least)
        if block.prior is not None:
            above.logical_and_(block.prior)
            inside.logical_and_(block.prior)
        inside.logical_xor_(above)
        if masks is not None and len(block.leaves) > 1:
            write_block(block, above, masks)
        return above, inside

    def counted(self, query: int) -> list[CountedBlock]:
        """Return how many candidates of each block are inside the bracket of a query."""
        counts = self._num_inside.tolist()
        return [
            CountedBlock(start, stop, count)
            for (number, start, stop), count in zip(self._blocks, counts, strict=True)
            if number == query
        ]

    def candidates(self, queries: list[int]) -> Candidates:
        """Copy the candidates of some queries to the CPU; the queries are numbered anew from 0."""
        ranked, renumbered = self._ranked, {query: i for i, query in enumerate(queries)}
        counts = [
            count
            for (number, _, _), count in zip(self._blocks, self._num_inside.tolist(), strict=True)
            if self.collects(number)
        ]
        found = [
            (own, count)
            for own, count in zip(self._slots, counts, strict=True)
            if own.query in renumbered
        ]
        keys = [ranked.keys(own.bits[:count], own.block.form) for own, count in found]
        positions = [own.local[:count] + own.block.start for own, count in found]
        joined = concatenate([part.to(ranked.device) for part in keys]).cpu()
        where = concatenate([part.to(ranked.device) for part in positions]).cpu()
        table = torch.tensor([(renumbered[own.query], count) for own, count in found])
        numbers, sizes = table.to(torch.int32).view(-1, 2).unbind(1)
        of_query = numbers.repeat_interleave(sizes) if len(queries) > 1 else None
        return Candidates(joined, where, of_query)

    def can_finish(self, reduce: Reduce) -> bool:
        """Return whether `finish` can be called: the candidates are in one memory."""
        return reduce.num_processes == 1 and self._ranked.device.type != "cpu"

    def finish(
        self, queries: list[int], intervals: list[Interval], masks: list[Tensor] | None
    ) -> list[KeyThreshold | None]:
        """Find the thresholds of collected queries in one process, and write the masks.

        Args:
            queries: the numbers of the queries, whose candidates are all on one accelerator.
            intervals: the intervals of the keys of their thresholds, which are their brackets.
            masks: one contiguous bool mask per leaf, to be written; or `None`.

        Returns:
            The thresholds. If there are masks they are `None`, because the host would have to wait
            for them.
        """
        slots = [own for own in self._slots if own.query in queries]
        sizes = [own.local.numel() for own in slots]
        starts = [0, *accumulate(sizes)]
        keys = self._keys_in_slots(slots, starts)
        order = keys.sort(stable=True).indices
        if len(queries) > 1:  # a second stable sort puts the queries one after the other
            table = torch.tensor([[own.query for own in slots], sizes]).to(keys.device)
            numbers = table[0].repeat_interleave(table[1], output_size=starts[-1])
            by_query = numbers.index_select(0, order).sort(stable=True).indices
            order = order.index_select(0, by_query)
        kept, last, first = list[Tensor](), list[int](), 0
        for query, interval in zip(queries, intervals, strict=True):
            num_pruned = self.queries[query].k - interval.num_below
            kept.append(order[first + num_pruned : first + interval.num_inside])
            last.append(first + num_pruned - 1)
            first += sum(own.local.numel() for own in slots if own.query == query)
        if masks is not None:
            # adding 0 in the unused slots, which all have index 0, changes nothing
            added = torch.zeros(starts[-1], dtype=torch.uint8, device=keys.device)
            added.index_fill_(0, torch.cat(kept), 1)
            for own, part in zip(slots, torch.split(added, sizes), strict=True):
                _add_to_masks(own, part, masks)
            return [None] * len(queries)
        slot = order.index_select(0, torch.tensor(last).to(order.device))
        local = torch.cat([own.local for own in slots]).index_select(0, slot)
        rows = torch.stack([keys.index_select(0, slot).to(torch.int64), slot, local], dim=1)
        return [
            KeyThreshold(key, slots[bisect_right(starts, number) - 1].block.start + index)
            for key, number, index in rows.tolist()
        ]

    def _keys_in_slots(self, slots: Sequence[Slots], starts: list[int]) -> Tensor:
        """Return the keys of some slots; the highest integer in those that are not used."""
        ranked = self._ranked
        if len({own.block.form for own in slots}) == 1:
            keys = ranked.keys(torch.cat([own.bits for own in slots]), slots[0].block.form)
        else:
            keys = torch.cat([ranked.keys(own.bits, own.block.form) for own in slots])
        block_of = {block[:2]: number for number, block in enumerate(self._blocks)}
        blocks = [block_of[own.query, own.block.start] for own in slots]
        sizes = [own.local.numel() for own in slots]
        table = torch.tensor([blocks, starts[:-1], sizes]).to(keys.device)
        ends = self._num_inside.index_select(0, table[0]).add_(table[1])
        ends = ends.repeat_interleave(table[2], output_size=starts[-1])
        is_used = torch.arange(starts[-1], device=keys.device) < ends
        return torch.where(is_used, keys, torch.iinfo(keys.dtype).max)


def _add_to_masks(slots: Slots, added: Tensor, masks: list[Tensor]) -> None:
    """Add 0 or 1 to the mask of every candidate in some slots."""
    block = slots.block
    flat = [masks[leaf].view(-1) for leaf in block.leaves]
    if len(flat) == 1:
        mask = flat[0][block.offset : block.offset + block.sizes[0]]
        mask.view(torch.uint8).index_add_(0, slots.local, added)
        return
    joined = torch.cat(flat)
    joined.view(torch.uint8).index_add_(0, slots.local, added)
    torch.split_with_sizes_copy(joined, block.sizes, out=flat)
