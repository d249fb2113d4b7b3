"""The steps of a search that are different on an accelerator: the sample, the pass, the last step.

The host queues operators, and an accelerator runs them later. Whenever the host reads a value, it
waits until all operators before it have run. So the operators of a pass have no shape that depends
on a value: they store the candidates that are inside a bracket in a fixed number of *slots* for
each block. The sample predicts how many are enough, and the counts of the pass tell how many were
needed. If one pass settles the search, the host reads values twice: the sample, and the counts.

Each operator has a fixed cost, so there are few of them, and blocks are large. The last step is one
stable sort of the collected candidates, which orders equal keys by their positions.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from types import ModuleType
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from gprune.select import partition
from gprune.select.blocks import Block, Query, RankedLeaves
from gprune.select.counter_rng import draw_integers
from gprune.select.counting import concatenate
from gprune.select.finish import KeyThreshold
from gprune.select.keys import raw_bounds, raw_keys, to_bits
from gprune.select.partition import Bins, Candidates, CountedBlock, DividedBlock, write_block
from gprune.select.refine import Interval, Reduce
from gprune.select.sampling import entries_at, sample_size

MAX_SLOTS = 2**22
"""A pass may collect about this many candidates. A slot takes some 50 bytes until the masks are
written."""

MARGIN = 5
"""The slots of a block exceed the candidates that the sample predicts by MARGIN standard deviations
and 2 * MARGIN sampled entries."""


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
        drawn = _keys_of(self._ranked, [piece for pieces in self._pieces for piece in pieces])
        sizes = [sum(len(piece.entries) for piece in pieces) for pieces in self._pieces]
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
        num_before = pad(inside.cumsum(0), (1, 0)).index_select(0, ends)
        found: dict[int, int] = {}
        for piece, number in zip(pieces, num_before.diff().tolist(), strict=True):
            found[piece.start] = found.get(piece.start, 0) + number
        expected = {
            start: number + MARGIN * math.sqrt(number) + 2 * MARGIN
            for start, number in found.items()
        }
        return {
            piece.start: math.ceil(expected[piece.start] * piece.entries.step) for piece in pieces
        }


def _pieces(ranked: RankedLeaves, leaves: range) -> list[Piece]:
    """Choose the entries of a sample: every n-th entry of each leaf, where n is the *step*.

    The step is a prime number, and no dim of a leaf is a multiple of it. So the sampled entries do
    not all lie in the same rows or columns.

    Args:
        ranked: the leaves that are ranked.
        leaves: the number of one leaf, or those of all.

    Returns:
        The sampled entries, in the order of the blocks.
    """
    num_entries = ranked.tree_starts[leaves.stop] - ranked.tree_starts[leaves.start]
    shapes = {size for leaf in leaves for size in ranked.scores[leaf].shape}
    step = _prime(math.ceil(num_entries / max(1, sample_size(num_entries))), shapes)
    pieces = []
    for start, leaf, first, stop in ranked.spans(leaves):
        # of the leaves that are shorter than a step, only some have an entry in the sample
        phase = _phase(leaf, step) if ranked.scores[leaf].numel() >= step else ranked.starts[leaf]
        pieces.append(Piece(start, leaf, range(first + (phase - first) % step, stop, step)))
    return pieces


def _phase(leaf: int, step: int) -> int:
    """Return the flat index of the first sampled entry of a leaf."""
    # multiples of the golden ratio, modulo 1, are spread evenly
    return int(leaf * 0.6180339887498949 % 1 * step)


def _prime(least: int, sizes: set[int]) -> int:
    """Return the smallest prime from `least` on that divides no size; 1 if `least` is at most 1."""
    if least <= 1:
        return 1
    number = least
    while any(number % d == 0 for d in range(2, math.isqrt(number) + 1)) or any(
        size and size % number == 0 for size in sizes
    ):
        number += 1
    return number


def _keys_of(ranked: RankedLeaves, pieces: Sequence[Piece]) -> Tensor:
    """Return the keys of sampled entries, on the CPU. Pruned entries have the highest integer."""
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for number, piece in enumerate(pieces):
        scores = ranked.scores[piece.leaf]
        groups.setdefault((scores.device, scores.dtype), []).append(number)
    found = [torch.empty(0, dtype=torch.int64, device="cpu")] * len(pieces)
    for numbers in groups.values():
        group = [pieces[number] for number in numbers]
        if ranked.seed is None:
            form = ranked.form(group[0].leaf)
            bits = [to_bits(entries_at(ranked.scores[p.leaf], p.entries), form) for p in group]
            keys = ranked.keys(torch.cat(bits), form)
        else:
            indices = [torch.tensor(p.entries, dtype=torch.int64, device="cpu") for p in group]
            pairs = zip(group, indices, strict=True)
            keys = torch.cat([draw_integers(ranked.seed, p.leaf, index) for p, index in pairs])
        if ranked.priors:
            prior = torch.cat([entries_at(ranked.priors[p.leaf], p.entries) for p in group])
            keys = torch.where(prior.to(keys.device), keys, torch.iinfo(keys.dtype).max)
        parts = torch.split(keys.cpu(), [len(piece.entries) for piece in group])
        for number, part in zip(numbers, parts, strict=True):
            found[number] = part
    return concatenate(found)


# --- kernels ------------------------------------------------------------------------------------

T = TypeVar("T")

_without_kernels = set[torch.device]()
"""The devices on which the kernels have failed."""


def has_kernels(device: torch.device) -> bool:
    """Return whether a device is a GPU for which Triton is installed and has not failed."""
    # torch calls AMD's GPUs `cuda` too
    is_usable = device.type == "cuda" and device not in _without_kernels
    return is_usable and importlib.util.find_spec("triton") is not None


def with_kernels(ranked: RankedLeaves, run: Callable[[ModuleType], T]) -> T | None:
    """Call a function with the module kernels.py, if its kernels can run on all of the leaves.

    If the kernels fail, a warning says so, and they are not tried again on these devices.

    Args:
        ranked: the leaves.
        run: a function of the module.

    Returns:
        What the function returns, or `None` if torch operators must do the work.

    Raises:
        OutOfMemoryError: if the device has too little memory, also for torch operators.
    """
    devices = {leaf.device for leaf in ranked.scores}
    if not all(map(has_kernels, devices)):
        return None
    try:
        from gprune.select import kernels

        return run(kernels)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers, linkers and drivers raise errors of many types
        _without_kernels.update(devices)
        warnings.warn(
            f"gprune's Triton kernels fail on {', '.join(sorted(map(str, devices)))}, so torch "
            f"operators rank the scores, which is slower: {error!r}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def count_keys(ranked: RankedLeaves, queries: Sequence[Query], bins: Sequence[Bins]) -> Tensor:
    """Count the candidates of every query in bins of keys, on any device.

    Args:
        ranked: the leaves that are ranked.
        queries: the thresholds to find.
        bins: the bins of each query. Every query has the same number of bins.

    Returns:
        The counts that `partition.count_keys` returns.
    """
    counts = None  # the kernel does not convert keys to those of another format
    if all(ranked.form(leaf) == ranked.common for leaf in range(len(ranked.scores))):
        counts = with_kernels(ranked, lambda kernels: kernels.count(ranked, queries, bins))
    return partition.count_keys(ranked, queries, bins) if counts is None else counts


# --- the pass -----------------------------------------------------------------------------------


class AcceleratorPass:
    """A pass that divides the candidates of each query by its bracket, and reads values once.

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
        self._counted: list[list[CountedBlock]] = [[] for _ in queries]
        self._collected: list[DividedBlock] = []

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
            The counts that `PartitionPass.run` returns, on the CPU.
        """
        given = self._ranked, self.queries, self.brackets, self._masks, self._num_slots
        blocks = with_kernels(self._ranked, lambda kernels: kernels.divide(*given))
        totals = torch.zeros(3, len(self.queries), dtype=torch.int64, device="cpu")
        for block in self._divide_blocks() if blocks is None else blocks:
            query, stop = block.query, block.start + sum(block.sizes)
            self._counted[query].append(CountedBlock(block.start, stop, block.num_inside))
            totals[0, query] += block.num_above + block.num_inside
            totals[1, query] += block.num_inside
            if self.collects(query) and block.indices.numel() < block.num_inside:
                totals[2, query] = 1
            elif self.collects(query):
                self._collected.append(block)
        return totals.view(-1)

    def _divide_blocks(self) -> list[DividedBlock]:
        """Divide the blocks of all queries by torch operators."""
        counts, device = list[Tensor](), self._ranked.device
        blocks = list[DividedBlock]()
        for query, (leaves, _, _) in enumerate(self.queries):
            for block in self._ranked.blocks(leaves):
                above, inside = self._divide(block, self.brackets[query])
                counts += [above.count_nonzero().to(device), inside.count_nonzero().to(device)]
                blocks.append(self._collect(query, block, inside))
        values = torch.stack(counts).tolist() if counts else []  # here the host waits
        rows = zip(blocks, values[::2], values[1::2], strict=True)
        return [block.with_counts(above, inside) for block, above, inside in rows]

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

    def _collect(self, query: int, block: Block, inside: Tensor) -> DividedBlock:
        """Store the candidates inside the bracket in slots. Unused slots have index 0.

        Args:
            query: the number of the query.
            block: the block.
            inside: which candidates are inside the bracket, 1-D bool.

        Returns:
            The block with its slots. There are none if the bracket is a single key.
        """
        if not self.collects(query):
            index = torch.empty(0, dtype=torch.int64, device=inside.device)
            return DividedBlock.of(query, block, index, block.bits[:0])
        size = self._num_slots[query][block.start]
        index = torch.nonzero_static(inside, size=size, fill_value=0).view(-1)
        return DividedBlock.of(query, block, index, block.bits.index_select(0, index))

    def candidates(self, queries: list[int]) -> Candidates:
        """Copy the candidates of some queries to the CPU; the queries are numbered anew from 0."""
        ranked, numbers = self._ranked, {query: i for i, query in enumerate(queries)}
        parts = [block for block in self._collected if block.query in numbers]
        keys = [ranked.keys(block.bits, block.form).to(ranked.device) for block in parts]
        positions = [(block.indices + block.start).to(ranked.device) for block in parts]
        table = [(numbers[block.query], block.indices.numel()) for block in parts]
        order, sizes = torch.tensor(table, dtype=torch.int32, device="cpu").view(-1, 2).unbind(1)
        of_query = order.repeat_interleave(sizes) if len(queries) > 1 else None
        return Candidates(concatenate(keys).cpu(), concatenate(positions).cpu(), of_query)

    def can_finish(self, reduce: Reduce) -> bool:
        """Return whether `finish` can be called: one process has all leaves, on one device."""
        return reduce.num_processes == 1 and len({x.device for x in self._ranked.scores}) == 1

    def finish(
        self, queries: list[int], intervals: list[Interval], masks: list[Tensor] | None
    ) -> list[KeyThreshold | None]:
        """Find the thresholds of collected queries on their device, and write the masks.

        Args:
            queries: the numbers of the queries, ascending.
            intervals: the intervals of the keys of their thresholds, which are their brackets.
            masks: one contiguous bool mask per leaf, to be written; or `None`.

        Returns:
            The thresholds. With masks each of them is `None`, because the host would have to wait
            to read it.
        """
        wanted = set(queries)
        parts = [block for block in self._collected if block.query in wanted]
        sizes = [block.indices.numel() for block in parts]
        keys = self._keys(parts)
        order = _order(keys, intervals)
        kept, last, first = list[Tensor](), list[int](), 0
        for query_number, known in zip(queries, intervals, strict=True):
            num_pruned = self.queries[query_number].k - known.num_below
            kept.append(order[first + num_pruned : first + known.num_inside])
            last.append(first + num_pruned - 1)
            first += known.num_inside
        if masks is not None:
            is_kept = torch.zeros(keys.shape, dtype=torch.bool, device=keys.device)
            is_kept.index_fill_(0, torch.cat(kept), True)
            for block, part in zip(parts, torch.split(is_kept, sizes), strict=True):
                _write_inside(block, part, masks)
            return [None] * len(queries)
        chosen = order.index_select(0, torch.tensor(last, device="cpu").to(order.device))
        positions = torch.cat([block.indices + block.start for block in parts])
        positions = positions.index_select(0, chosen)
        pairs = torch.stack([keys.index_select(0, chosen).to(torch.int64), positions], dim=1)
        return [KeyThreshold(key, index) for key, index in pairs.tolist()]

    def _keys(self, parts: Sequence[DividedBlock]) -> Tensor:
        """Return the keys of collected candidates, converted at once if all have one format."""
        ranked, forms = self._ranked, {block.form for block in parts}
        if len(forms) == 1:
            return ranked.keys(torch.cat([block.bits for block in parts]), forms.pop())
        return torch.cat([ranked.keys(block.bits, block.form) for block in parts])


def _order(keys: Tensor, intervals: Sequence[Interval]) -> Tensor:
    """Sort the keys of each query; equal keys keep the order of their positions.

    Args:
        keys: the keys of the first query in the order of their positions, then those of the next.
        intervals: for each query its lowest and highest key, and how many keys it has.

    Returns:
        The indices of the sorted keys, query after query.
    """
    sizes = [interval.num_inside for interval in intervals]
    if len(sizes) == 1:
        return keys.sort(stable=True).indices
    width = max(interval.high - interval.low for interval in intervals) + 1
    firsts = [i * width - interval.low for i, interval in enumerate(intervals)]
    places = [0, *accumulate(sizes[:-1])]
    if width * len(sizes) + max(map(abs, firsts)) > 2**62:  # shifted keys might not fit
        pairs = zip(torch.split(keys, sizes), places, strict=True)
        return torch.cat([part.sort(stable=True).indices + place for part, place in pairs])
    # shift the keys of each query above those of the one before, by the cumulative sum of steps
    is_narrow = width * len(sizes) <= torch.iinfo(keys.dtype).max
    steps = [b - a for a, b in pairwise([0, *firsts])]
    step, place = (torch.tensor(x, device="cpu").to(keys.device) for x in (steps, places))
    dtype = keys.dtype if is_narrow else torch.int64
    shifts = torch.zeros(keys.numel() + 1, dtype=dtype, device=keys.device)
    shifts.index_add_(0, place, step.to(dtype))
    shifted = shifts[:-1].cumsum(0, dtype=dtype).add_(keys)
    return shifted.sort(stable=True).indices


def _write_inside(block: DividedBlock, is_kept: Tensor, masks: list[Tensor]) -> None:
    """Write the masks of the candidates of a block that are inside the bracket."""
    flat = [masks[leaf].view(-1) for leaf in block.leaves]
    if len(flat) == 1:
        flat[0][block.offset : block.offset + block.sizes[0]].index_copy_(0, block.indices, is_kept)
        return
    joined = torch.cat(flat).index_copy_(0, block.indices, is_kept)
    torch.split_with_sizes_copy(joined, block.sizes, out=flat)
