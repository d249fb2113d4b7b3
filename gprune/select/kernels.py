"""Triton kernels for the passes over all scores, on NVIDIA's and AMD's GPUs.

The kernel `divide_tile` does what `AcceleratorPass` does in torch operators, but it reads each
score once and writes each mask once: 5 bytes for a float32 score, and 12 more for each candidate
that it collects.

One launch handles many leaves. A table has a row for each block, with the addresses of its scores,
its prior mask and its mask, and with the bracket of its query. A block is divided into *tiles*, and
one program handles each tile. Addresses and positions are 64-bit integers, so a leaf may have more
than 2^31 entries.

The kernel `count_tiles` counts keys in bins. One of its programs handles several tiles.

A program of `divide_tile` reserves slots for its candidates by adding their number to a cursor of
the query. Which program comes first varies from run to run, so the collected candidates are sorted
afterwards.

Only this file imports Triton. This file is imported only if the scores are on a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gprune.select.blocks import ACCELERATOR_BLOCK, Block, Query, RankedLeaves
from gprune.select.keys import Format, bounds_in
from gprune.select.partition import Bins, DividedBlock

TILE = 2048
"""How many entries a tile has."""

NUM_TILES = 16
"""How many tiles a program of `count_tiles` counts before it adds its histogram to the counts."""

NUM_WARPS = 8
"""How many warps a program has."""

ALIGNMENT = 16
"""If all addresses and numbers of entries are multiples of this, entries are read as vectors."""


# --- kernels ------------------------------------------------------------------------------------


class Row(NamedTuple):
    """What the programs of a block read from the table: 64-bit integers.

    Attributes:
        scores: the address of the scores.
        prior: the address of the prior mask, or 0.
        mask: the address of the mask to be written, or 0.
        num_entries: how many entries the block has.
        first_program: the number of its first program.
        low: the lowest key of the bracket, in the format of the scores.
        high: the highest key of the bracket.
        label: the label of the first entry. A collected candidate is stored with its label, which
            tells its query and position.
        cursor: the number of the cursor, which is that of the query.
        first_slot: the first slot of the query.
        end_slot: the slot after the query's last one.
    """

    scores: int
    prior: int
    mask: int
    num_entries: int
    first_program: int
    low: int
    high: int
    label: int
    cursor: int
    first_slot: int
    end_slot: int


NUM_FIELDS = tl.constexpr(len(Row._fields))


@triton.jit
def pointer(address, DTYPE: tl.constexpr, first, IS_ALIGNED: tl.constexpr):
    """Return a pointer to the entry number `first` of the memory at an address."""
    typed = address.to(tl.pointer_type(DTYPE)) + first
    return tl.multiple_of(typed, 16) if IS_ALIGNED else typed


@triton.jit
def keys_of_bits(bits, LARGEST: tl.constexpr, NAN: tl.constexpr, ABSOLUTE: tl.constexpr):
    """Turn bits into keys, as `keys.keys_of` does. NAN is 0 for integers."""
    if NAN == 0:
        keys = bits.to(tl.int64)  # so that the magnitude of the lowest integer does not wrap
        if ABSOLUTE:
            keys = tl.abs(keys)
    else:
        keys = tl.minimum(bits & LARGEST, NAN)
        if not ABSOLUTE:
            keys = tl.where((bits < 0) & (keys < NAN), -keys, keys)
    return keys


@triton.jit
def load_tile(
    scores,
    prior,
    num_entries,
    first,
    BITS: tl.constexpr,
    HAS_PRIOR: tl.constexpr,
    IS_ALIGNED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Return the bits of a tile, which of them are entries, and which are candidates."""
    num_left = tl.minimum(num_entries - first, TILE).to(tl.int32)
    if IS_ALIGNED:
        num_left = tl.multiple_of(num_left, 16)
    index = tl.arange(0, TILE)
    is_entry = index < num_left
    bits = tl.load(pointer(scores, BITS, first, IS_ALIGNED) + index, mask=is_entry, other=0)
    is_candidate = is_entry
    if HAS_PRIOR:
        kept = tl.load(pointer(prior, tl.int8, first, IS_ALIGNED) + index, mask=is_entry, other=0)
        is_candidate = kept != 0
    return bits, is_entry, is_candidate


@triton.jit
def divide_tile(
    table,
    row_of_program,
    counts,
    cursors,
    slot_labels,
    slot_bits,
    BITS: tl.constexpr,
    LARGEST: tl.constexpr,
    NAN: tl.constexpr,
    ABSOLUTE: tl.constexpr,
    HAS_PRIOR: tl.constexpr,
    HAS_MASK: tl.constexpr,
    IS_ALIGNED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Divide the candidates of a tile by a bracket, and collect those that are inside.

    Args:
        table: a `Row` for each block.
        row_of_program: the number of the row of each program.
        counts: for each row how many candidates are above, and how many are inside.
        cursors: for each query how many candidates are inside.
        slot_labels: the labels of collected candidates.
        slot_bits: their scores as integers of dtype BITS. All other tensors are int64.
        BITS: the dtype of the scores as integers.
        LARGEST: `Format.largest`.
        NAN: `Format.nan` of floats, or 0.
        ABSOLUTE: whether to rank by absolute value.
        HAS_PRIOR: whether there are prior masks.
        HAS_MASK: whether "above the bracket" is written into masks.
        IS_ALIGNED: whether addresses and numbers of entries are multiples of 16.
        TILE: how many entries a program handles.
    """
    program = tl.program_id(0)
    number = tl.load(row_of_program + program)
    row = table + number * NUM_FIELDS
    scores, prior, mask = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    num_entries, first_program = tl.load(row + 3), tl.load(row + 4)
    low, high, label = tl.load(row + 5), tl.load(row + 6), tl.load(row + 7)
    cursor, first_slot, end_slot = tl.load(row + 8), tl.load(row + 9), tl.load(row + 10)

    first = (program - first_program) * TILE  # int64, like the row
    bits, is_entry, is_candidate = load_tile(
        scores, prior, num_entries, first, BITS, HAS_PRIOR, IS_ALIGNED, TILE
    )
    index = tl.arange(0, TILE)
    keys = keys_of_bits(bits, LARGEST, NAN, ABSOLUTE)
    low, high = low.to(keys.dtype), high.to(keys.dtype)
    above = is_candidate & (keys > high)
    inside = is_candidate & (keys >= low) & (keys <= high)
    if HAS_MASK:
        to_write = pointer(mask, tl.int8, first, IS_ALIGNED) + index
        tl.store(to_write, above.to(tl.int8), mask=is_entry)

    num_above, num_inside = tl.sum(above.to(tl.int32)), tl.sum(inside.to(tl.int32))
    tl.atomic_add(counts + 2 * number, num_above.to(tl.int64), sem="relaxed")
    tl.atomic_add(counts + 2 * number + 1, num_inside.to(tl.int64), sem="relaxed")
    reserved = tl.atomic_add(cursors + cursor, num_inside.to(tl.int64), sem="relaxed")
    slot = first_slot + reserved
    num_free = tl.minimum(tl.maximum(end_slot - slot, 0), TILE).to(tl.int32)
    place = tl.cumsum(inside.to(tl.int32)) - 1
    has_slot = inside & (place < num_free)
    tl.store(slot_labels + slot + place, label + first + index, mask=has_slot)
    tl.store(slot_bits + slot + place, bits, mask=has_slot)


class BinRow(NamedTuple):
    """What the programs of a block read from the table to count keys in bins: 64-bit integers.

    Attributes:
        scores: the address of the scores.
        prior: the address of the prior mask, or 0.
        num_entries: how many entries the block has.
        first_program: the number of its first program.
        lowest: the lowest key of the first bin, divided by the width of a bin.
        shift: the exponent of the width of a bin, which is 2**shift.
        num_bins: how many bins there are.
        first_count: the index of the count of keys below all bins. The counts of the bins follow,
            and then the count of keys above all bins.
    """

    scores: int
    prior: int
    num_entries: int
    first_program: int
    lowest: int
    shift: int
    num_bins: int
    first_count: int


NUM_BIN_FIELDS = tl.constexpr(len(BinRow._fields))


@triton.jit
def count_tiles(
    table,
    row_of_program,
    counts,
    BITS: tl.constexpr,
    LARGEST: tl.constexpr,
    NAN: tl.constexpr,
    ABSOLUTE: tl.constexpr,
    HAS_PRIOR: tl.constexpr,
    IS_ALIGNED: tl.constexpr,
    TILE: tl.constexpr,
    NUM_TILES: tl.constexpr,
    NUM_BINS: tl.constexpr,
):
    """Count the candidates of some tiles in bins of keys.

    The histogram of a program is in its own memory, and is added to the counts at the end.

    Args:
        table: a `BinRow` for each block, int64.
        row_of_program: the number of the row of each program, int64.
        counts: the counts of all rows, int64.
        BITS: see `divide_tile`.
        LARGEST: see `divide_tile`.
        NAN: see `divide_tile`.
        ABSOLUTE: see `divide_tile`.
        HAS_PRIOR: see `divide_tile`.
        IS_ALIGNED: see `divide_tile`.
        TILE: how many entries are counted at a time.
        NUM_TILES: how many tiles a program counts.
        NUM_BINS: a power of two, at least the number of bins.
    """
    program = tl.program_id(0)
    row = table + tl.load(row_of_program + program) * NUM_BIN_FIELDS
    scores, prior, num_entries = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    first_program, lowest, shift = tl.load(row + 3), tl.load(row + 4), tl.load(row + 5)
    num_bins, row_counts = tl.load(row + 6), counts + tl.load(row + 7)

    first = (program - first_program) * (TILE * NUM_TILES)
    below = tl.zeros([TILE], tl.int32)
    above = tl.zeros([TILE], tl.int32)
    in_bins = tl.zeros([NUM_BINS], tl.int32)
    for _ in range(NUM_TILES):
        bits, _, is_candidate = load_tile(
            scores, prior, num_entries, first, BITS, HAS_PRIOR, IS_ALIGNED, TILE
        )
        keys = keys_of_bits(bits, LARGEST, NAN, ABSOLUTE)
        numbers = keys.to(tl.int64) >> shift
        bins = numbers - lowest  # if this overflows, the key is above all bins
        is_below = is_candidate & (numbers < lowest)
        is_in_bins = is_candidate & (numbers >= lowest) & (bins >= 0) & (bins < num_bins)
        is_above = is_candidate & (numbers >= lowest) & ~((bins >= 0) & (bins < num_bins))
        below += is_below.to(tl.int32)
        above += is_above.to(tl.int32)
        in_bins += tl.histogram(bins.to(tl.int32), NUM_BINS, mask=is_in_bins)
        first += TILE
    tl.atomic_add(row_counts, tl.sum(below).to(tl.int64), sem="relaxed")
    tl.atomic_add(row_counts + 1 + num_bins, tl.sum(above).to(tl.int64), sem="relaxed")
    number = tl.arange(0, NUM_BINS)
    tl.atomic_add(row_counts + 1 + number, in_bins.to(tl.int64), mask=in_bins > 0, sem="relaxed")


DTYPES = {
    torch.int8: tl.int8,
    torch.int16: tl.int16,
    torch.int32: tl.int32,
    torch.int64: tl.int64,
}
"""Triton's names of the dtypes that bits may have."""


def constants_of(form: Format) -> dict[str, Any]:
    """Return what a kernel must know of a format."""
    nan = form.nan if form.is_float else 0
    return {"BITS": DTYPES[form.integer], "LARGEST": form.largest, "NAN": nan}


# --- launches -----------------------------------------------------------------------------------


class Slots(NamedTuple):
    """The slots for candidates of one format on one device.

    Attributes:
        labels: the labels of the collected candidates, int64.
        bits: their scores as integers.
        cursors: for each query how many of them are inside its bracket, int64.
        ends: 0, and then for each query where its slots end and those of the next begin.
    """

    labels: Tensor
    bits: Tensor
    cursors: Tensor
    ends: list[int]


class Launch(NamedTuple):
    """What the blocks of one launch have in common.

    Attributes:
        device: their device.
        form: the format of their bits.
        is_aligned: whether addresses and numbers of entries are multiples of ALIGNMENT.
    """

    device: torch.device
    form: Format
    is_aligned: bool


def divide(
    ranked: RankedLeaves,
    queries: Sequence[Query],
    brackets: Sequence[tuple[int, int]],
    masks: list[Tensor] | None,
    num_slots: Sequence[dict[int, int]],
) -> list[DividedBlock]:
    """Divide the candidates of each query by its bracket, and write "above it" into the masks.

    Args:
        ranked: the leaves that are ranked.
        queries: the thresholds to find.
        brackets: the lowest and the highest key of each query's bracket.
        masks: one contiguous bool mask per leaf, to be written, or `None`.
        num_slots: for each query how many slots each block of `RankedLeaves.blocks` needs, by the
            position of its first entry.

    Returns:
        The blocks of each query, in the order of their positions. Each is a part of one leaf.
    """
    all_slots = _slots(ranked, queries, brackets, num_slots)
    divided, counts = list[DividedBlock](), list[Tensor]()
    for batch in _batches(ranked, [query.leaves for query in queries]):
        launches: dict[Launch, list[tuple[Row, DividedBlock]]] = {}
        for query, block in batch:
            slots = all_slots[block.bits.device, block.form]
            row = _row(ranked, query, block, brackets[query], masks, slots.ends)
            empty = DividedBlock.of(query, block, slots.labels[:0], slots.bits[:0])
            launches.setdefault(_launch_of(block, row.mask), []).append((row, empty))
        for launch, members in launches.items():
            slots = all_slots[launch.device, launch.form]
            found = torch.zeros(len(members), 2, dtype=torch.int64, device=launch.device)
            tensors = found, slots.cursors, slots.labels, slots.bits
            rows = [row for row, _ in members]
            constants = {"HAS_MASK": masks is not None, "TILE": TILE}
            _launch(divide_tile, ranked, launch, rows, TILE, tensors, constants)
            counts.append(found.to(ranked.device))
            divided += [block for _, block in members]
    totals = torch.cat(counts).tolist() if counts else []  # here the host waits
    divided = [block.with_counts(*row) for block, row in zip(divided, totals, strict=True)]
    divided.sort(key=lambda block: (block.query, block.start))
    _collect(ranked, divided, all_slots)
    return divided


def count(ranked: RankedLeaves, queries: Sequence[Query], bins: Sequence[Bins]) -> Tensor:
    """Count the candidates of every query in bins of keys; see `partition.count_keys`.

    Args:
        ranked: the leaves that are ranked, all in the common format.
        queries: the thresholds to find.
        bins: the bins of each query. Every query has the same number of bins.

    Returns:
        int64 counts, 1-D; for each query `num_bins + 2`: below all bins, in each, above all.
    """
    pairs = [(query.leaves, its_bins) for query, its_bins in zip(queries, bins, strict=True)]
    unique = list(dict.fromkeys(pairs))  # queries of the same leaves often have the same bins
    size = bins[0].num_bins + 2
    counts = torch.zeros(len(unique), size, dtype=torch.int64, device=ranked.device)
    num_bins = triton.next_power_of_2(bins[0].num_bins)
    constants = {"TILE": TILE, "NUM_TILES": NUM_TILES, "NUM_BINS": num_bins}
    for batch in _batches(ranked, [leaves for leaves, _ in unique]):
        launches: dict[Launch, list[BinRow]] = {}
        for number, block in batch:
            row = _bin_row(block, unique[number][1], number * size)
            launches.setdefault(_launch_of(block, 0), []).append(row)
        for launch, rows in launches.items():
            found = torch.zeros_like(counts, device=launch.device)
            _launch(count_tiles, ranked, launch, rows, TILE * NUM_TILES, (found,), constants)
            counts += found.to(counts.device)
    number_of = {pair: number for number, pair in enumerate(unique)}
    numbers = torch.tensor([number_of[pair] for pair in pairs], device="cpu")
    return counts.index_select(0, numbers.to(counts.device)).view(-1)


def _batches(ranked: RankedLeaves, scopes: Sequence[range]) -> Iterator[list[tuple[int, Block]]]:
    """Yield the blocks of all queries in batches, which limit how many copies are in memory.

    Args:
        ranked: the leaves that are ranked.
        scopes: the leaves of each query.

    Yields:
        Blocks, each with the number of its query.
    """
    batch, num_copied = list[tuple[int, Block]](), 0
    for query, leaves in enumerate(scopes):
        for leaf in (x for x in leaves if ranked.starts[x] < ranked.starts[x + 1]):
            memory = ranked.scores[leaf].untyped_storage().data_ptr()
            for block in ranked.leaf_blocks(leaf):
                bits = block.bits.contiguous()  # a strided vector is not copied before
                prior = None if block.prior is None else block.prior.contiguous()
                batch.append((query, block._replace(bits=bits, prior=prior)))
                is_copy = bits.untyped_storage().data_ptr() != memory
                num_copied += bits.numel() if is_copy else 0
                if num_copied >= ACCELERATOR_BLOCK:
                    yield batch
                    batch, num_copied = [], 0
    if batch:
        yield batch


def _slots(
    ranked: RankedLeaves,
    queries: Sequence[Query],
    brackets: Sequence[tuple[int, int]],
    num_slots: Sequence[dict[int, int]],
) -> dict[tuple[torch.device, Format], Slots]:
    """Allocate the slots of each device and format; a bracket of a single key needs none."""
    sizes: dict[tuple[torch.device, Format], list[int]] = {}
    for query, (leaves, _, _) in enumerate(queries):
        leaf_of_block = {start: leaf for start, leaf, _, _ in ranked.spans(leaves)}
        for start, leaf in leaf_of_block.items():
            home = ranked.scores[leaf].device, ranked.form(leaf)
            low, high = brackets[query]
            num = num_slots[query][start] if low < high else 0
            sizes.setdefault(home, [0] * len(queries))[query] += num
    slots = {}
    for (device, form), sizes_of_queries in sizes.items():
        ends = [0, *accumulate(sizes_of_queries)]
        labels = torch.empty(ends[-1], dtype=torch.int64, device=device)
        bits = torch.empty(ends[-1], dtype=form.integer, device=device)
        cursors = torch.zeros(len(queries), dtype=torch.int64, device=device)
        slots[device, form] = Slots(labels, bits, cursors, ends)
    return slots


def _label(ranked: RankedLeaves, query: int, start: int) -> int:
    """Return the label of a position of a query: labels number the positions of all queries."""
    return query * ranked.starts[-1] + start


def _row(
    ranked: RankedLeaves,
    query: int,
    block: Block,
    bracket: tuple[int, int],
    masks: list[Tensor] | None,
    ends: list[int],
) -> Row:
    """Return the row of a block, without its first program."""
    low, high = bounds_in(*bracket, block.form, ranked.common)
    return Row(
        scores=block.bits.data_ptr(),
        prior=_address(block.prior),
        mask=0 if masks is None else masks[block.leaves[0]].data_ptr() + block.offset,
        num_entries=block.bits.numel(),
        first_program=0,
        low=low,
        high=high,
        label=_label(ranked, query, block.start),
        cursor=query,
        first_slot=ends[query],
        end_slot=ends[query + 1],
    )


def _bin_row(block: Block, bins: Bins, first_count: int) -> BinRow:
    """Return the row of a block, without its first program."""
    return BinRow(
        scores=block.bits.data_ptr(),
        prior=_address(block.prior),
        num_entries=block.bits.numel(),
        first_program=0,
        lowest=bins.first >> bins.shift,
        shift=bins.shift,
        num_bins=bins.num_bins,
        first_count=first_count,
    )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _launch_of(block: Block, mask: int) -> Launch:
    """Return the launch for a block; `mask` is the address of its mask, or 0."""
    numbers = block.bits.data_ptr(), _address(block.prior), mask, block.bits.numel()
    is_aligned = not any(number % ALIGNMENT for number in numbers)
    return Launch(block.bits.device, block.form, is_aligned)


def _launch(
    kernel: Any,
    ranked: RankedLeaves,
    launch: Launch,
    rows: Sequence[Row | BinRow],
    num_entries: int,
    tensors: Sequence[Tensor],
    constants: dict[str, Any],
) -> None:
    """Launch a kernel for some blocks.

    Args:
        kernel: the kernel.
        ranked: the leaves that are ranked.
        launch: what the blocks have in common.
        rows: the rows of the blocks, without their first programs.
        num_entries: how many entries a program handles.
        tensors: the arguments of the kernel after `table` and `row_of_program`.
        constants: the compile-time constants that only this kernel has.
    """
    num_programs = [triton.cdiv(row.num_entries, num_entries) for row in rows]
    firsts = [0, *accumulate(num_programs)]
    numbered = [row._replace(first_program=first) for row, first in zip(rows, firsts, strict=False)]
    table = torch.tensor(numbered, dtype=torch.int64, device="cpu").to(launch.device)
    repeats = torch.tensor(num_programs, dtype=torch.int64, device="cpu").to(launch.device)
    row_of_program = torch.repeat_interleave(repeats, output_size=firsts[-1])
    with torch.cuda.device_of(table):  # Triton launches on the current device
        kernel[(firsts[-1],)](
            table,
            row_of_program,
            *tensors,
            **constants_of(launch.form),
            ABSOLUTE=ranked.absolute,
            HAS_PRIOR=bool(ranked.priors),
            IS_ALIGNED=launch.is_aligned,
            **constants,
            num_warps=NUM_WARPS,
        )


def _collect(
    ranked: RankedLeaves,
    divided: list[DividedBlock],
    all_slots: dict[tuple[torch.device, Format], Slots],
) -> None:
    """Sort the collected candidates by their labels, and give each block its own.

    Args:
        ranked: the leaves that are ranked.
        divided: the blocks, ascending by query and position, to be updated.
        all_slots: the slots of each device and format.
    """
    for home, slots in all_slots.items():
        blocks = [i for i, x in enumerate(divided) if (x.indices.device, x.form) == home]
        inside = Counter[int]()
        for i in blocks:
            inside[divided[i].query] += divided[i].num_inside
        used = {
            query: slice(start, start + inside[query])
            for query, (start, end) in enumerate(pairwise(slots.ends))
            if inside[query] <= end - start
        }
        blocks = [i for i in blocks if divided[i].query in used]
        if not blocks:
            continue
        labels, order = torch.cat([slots.labels[part] for part in used.values()]).sort()
        bits = torch.cat([slots.bits[part] for part in used.values()])
        bits = bits.index_select(0, order)
        first = [_label(ranked, divided[i].query, divided[i].start) for i in blocks]
        sizes = [divided[i].num_inside for i in blocks]
        columns = torch.tensor([first, sizes], dtype=torch.int64, device="cpu").to(labels.device)
        labels -= columns[0].repeat_interleave(columns[1], output_size=labels.numel())
        rows = zip(blocks, torch.split(labels, sizes), torch.split(bits, sizes), strict=True)
        for i, indices, of_block in rows:
            divided[i] = divided[i]._replace(indices=indices, bits=of_block)
