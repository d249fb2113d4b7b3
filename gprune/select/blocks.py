"""Leaves as a stream of blocks in flat order, of at most `block_size` entries each.

A large leaf is streamed in several blocks. Small neighbouring leaves are joined into one block, so
a model of ten thousand tiny leaves costs little more than one of a few large ones.

A *flat index* numbers the entries of one leaf in row-major order. A *tree index* numbers the
entries of all leaves, one leaf after the other; it is the `flat_index` of a `Threshold`. A
*position* numbers only the entries that this process counts. Without DTensors, positions and tree
indices are the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from gprune.inputs import LeafError
from gprune.select.counter_rng import draw_integers, draw_leaves
from gprune.select.keys import (
    FLOAT64,
    FORMATS,
    INT64,
    MAX_INT64_SCORE,
    Format,
    keys_of,
    to_bits,
    to_float64_keys,
)

BLOCK = 2**20
"""The most entries of a block on the CPU. The cost of a call is then negligible."""

ACCELERATOR_BLOCK = 2**23
"""The most entries of a block on any other device, where a call costs more and memory is faster."""


def block_size(device: torch.device) -> int:
    """Return the most entries of a block on a device."""
    return BLOCK if device.type == "cpu" else ACCELERATOR_BLOCK


class ShardSlice(NamedTuple):
    """The slice of a leaf that one rank holds.

    Attributes:
        shape: the shape of the leaf.
        start: the first index of the slice in each dim.
        size: how many indices the slice has in each dim.
    """

    shape: tuple[int, ...]
    start: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def num_entries(self) -> int:
        """The number of entries of the leaf."""
        return math.prod(self.shape)

    def leaf_index(self, slice_indices: Tensor) -> Tensor:
        """Convert flat indices in the slice to flat indices in the leaf.

        Args:
            slice_indices: int64 tensor of any shape.

        Returns:
            A new tensor of the same shape. Ascending indices in the slice give ascending indices in
            the leaf.
        """
        dims = self._merged_dims()
        found, stride = slice_indices.new_zeros(()), 1
        for full, first, length in reversed(dims[1:]):
            found = (slice_indices % length + first) * stride + found
            slice_indices = slice_indices // length
            stride *= full
        return (slice_indices + dims[0][1]) * stride + found

    def num_before(self, leaf_index: int) -> int:
        """Return how many entries of the slice have a flat index in the leaf below `leaf_index`."""
        count, volume, stride = 0, math.prod(self.size), self.num_entries
        if volume == 0:
            return 0
        for full, first, length in self._merged_dims():
            stride, volume = stride // full, volume // length
            index = leaf_index // stride - first
            count += min(max(index, 0), length) * volume
            if not 0 <= index < length:
                break
            leaf_index %= stride
        return count

    def _merged_dims(self) -> list[tuple[int, int, int]]:
        """Return (size, first index, length of the slice) of each dim; unsplit dims are merged."""
        dims: list[tuple[int, int, int]] = []
        for full, first, length in zip(self.shape, self.start, self.size, strict=True):
            if dims and length == full:
                dims[-1] = (dims[-1][0] * full, dims[-1][1] * full, dims[-1][2] * full)
            else:
                dims.append((full, first, length))
        return dims or [(1, 0, 1)]


class Query(NamedTuple):
    """A threshold to search for.

    Attributes:
        leaves: the numbers of the leaves that are ranked: one leaf, or all.
        k: how many candidates are pruned, from 1 to all of them.
        num_candidates: how many candidates there are, in all processes.
    """

    leaves: range
    k: int
    num_candidates: int


class Block(NamedTuple):
    """Consecutive entries: a part of one leaf, or several whole small leaves.

    Attributes:
        start: the position of the first entry.
        bits: the scores, or the random draws, as integers, 1-D.
        form: the format of the bits.
        prior: the prior mask of these entries, 1-D bool, or `None`.
        leaves: the numbers of the leaves, none of them empty.
        sizes: how many entries of each leaf are in the block.
        offset: the flat index of the first entry, in its leaf or its local shard.
    """

    start: int
    bits: Tensor
    form: Format
    prior: Tensor | None
    leaves: list[int]
    sizes: list[int]
    offset: int

    @property
    def stop(self) -> int:
        """The position after that of the last entry."""
        return self.start + self.bits.numel()


@dataclass(frozen=True)
class RankedLeaves:
    """The leaves that are ranked, and how they are ranked.

    Attributes:
        scores: one tensor per ranked leaf, of any shape and memory layout; for a DTensor its local
            shard.
        priors: the prior mask of each leaf, or an empty list if nothing is pruned yet.
        absolute: whether to rank by absolute value.
        seed: if given, random draws are ranked, and the values of `scores` are ignored.
        slices: the slice of its leaf that each local shard is; empty without DTensors.
        counted: whether this process counts the entries of each leaf. A replicated leaf is counted
            by one process only. Empty if all leaves are counted.
        exact: whether the keys are float64 keys, even if all leaves share another dtype.
    """

    scores: list[Tensor]
    priors: list[Tensor]
    absolute: bool = False
    seed: int | None = None
    slices: Sequence[ShardSlice] = ()
    counted: Sequence[bool] = ()
    exact: bool = False

    @cached_property
    def starts(self) -> list[int]:
        """The position of each leaf's first entry, then the number of all positions."""
        counted = self.counted or [True] * len(self.scores)
        sizes = [
            x.numel() if is_counted else 0
            for x, is_counted in zip(self.scores, counted, strict=True)
        ]
        return [0, *accumulate(sizes)]

    @cached_property
    def tree_starts(self) -> list[int]:
        """The tree index of each leaf's first entry, then the number of entries of the tree."""
        if not self.slices:
            return self.starts
        return [0, *accumulate(piece.num_entries for piece in self.slices)]

    def check_int64_range(self) -> None:
        """Raise an error for int64 scores that float64 may not hold exactly.

        Raises:
            LeafError: if an int64 score is beyond 2^53 in magnitude.
        """
        for number, leaf in enumerate(self.scores if self.seed is None else []):
            if leaf.dtype == torch.int64 and leaf.numel():
                low, high = torch.stack(leaf.aminmax()).tolist()
                if low < -MAX_INT64_SCORE or high > MAX_INT64_SCORE:
                    raise LeafError(
                        number,
                        "scores",
                        "int64 scores must be at most 2**53 in magnitude to compare exactly, "
                        f"got {low if low < -MAX_INT64_SCORE else high}; cast them to float64",
                    )

    def counted_elsewhere(self) -> RankedLeaves | None:
        """Return the same leaves, of which only those count that another process counts.

        Returns:
            The leaves; `None` if this process counts all of them.
        """
        if all(self.counted):
            return None
        return replace(self, counted=[not is_counted for is_counted in self.counted])

    @cached_property
    def common(self) -> Format:
        """The format in which the scores of all leaves are compared."""
        if self.seed is not None:
            return INT64
        formats = {FORMATS[leaf.dtype] for leaf in self.scores}
        return FLOAT64 if self.exact or len(formats) > 1 else next(iter(formats), FLOAT64)

    @cached_property
    def device(self) -> torch.device:
        """The device of all leaves, or the CPU if they are on several."""
        devices = {leaf.device for leaf in self.scores}
        return devices.pop() if len(devices) == 1 else torch.device("cpu")

    @cached_property
    def key_range(self) -> tuple[int, int]:
        """The lowest and the highest possible key."""
        return self.common.key_range(self.absolute)

    def form(self, leaf: int) -> Format:
        """Return the format in which a leaf is streamed; for integers it is the common format."""
        form = INT64 if self.seed is not None else FORMATS[self.scores[leaf].dtype]
        return form if form.is_float else self.common

    @cached_property
    def is_on_cpu(self) -> bool:
        """Whether all leaves are on the CPU."""
        return all(leaf.device.type == "cpu" for leaf in self.scores)

    def num_candidates(self) -> Tensor:
        """Count the candidates of each leaf by its prior mask; 0 if another process counts it."""
        none = torch.zeros((), dtype=torch.int64, device=self.device)
        return torch.stack(
            [
                prior.count_nonzero().to(self.device) if start < stop else none
                for prior, (start, stop) in zip(self.priors, pairwise(self.starts), strict=True)
            ]
        )

    def keys(self, bits: Tensor, form: Format) -> Tensor:
        """Turn bits into keys of the common format, int32 or int64."""
        keys = keys_of(bits, form, absolute=self.absolute)
        keys = keys if form == self.common else to_float64_keys(keys, form)
        return keys if keys.element_size() > 2 else keys.to(torch.int32)

    def blocks(self, leaves: range, first: int = 0, last: int | None = None) -> Iterator[Block]:
        """Stream the entries of leaves that this process counts, in flat order.

        Args:
            leaves: the number of one leaf, or those of all.
            first: blocks that end before this position are left out.
            last: blocks that start after this position are left out.

        Yields:
            Blocks of at most `block_size` entries.
        """
        end = self.starts[leaves.stop] if last is None else last + 1
        for group in self.groups(leaves):
            if self.starts[group[-1] + 1] <= first or self.starts[group[0]] >= end:
                continue
            if len(group) > 1:
                yield self.joined_block(group)
                continue
            for block in self.leaf_blocks(group[0]):
                if block.stop > first and block.start < end:
                    yield block

    def groups(self, leaves: range) -> list[list[int]]:
        """Group the leaves that are streamed together.

        Args:
            leaves: the number of one leaf, or those of all.

        Returns:
            The numbers of the leaves in each group. A large leaf is a group by itself, and small
            neighbours of one dtype and device are joined. Empty leaves, and leaves that another
            process counts, are in no group.
        """
        if len(leaves) == 1:
            [leaf] = leaves
            return [[leaf]] if self.starts[leaf] < self.starts[leaf + 1] else []
        return self._groups

    @cached_property
    def _groups(self) -> list[list[int]]:
        groups: list[list[int]] = []
        for leaf in range(len(self.scores)):
            if self.starts[leaf] == self.starts[leaf + 1]:
                continue
            if groups and self._can_join(groups[-1], leaf):
                groups[-1].append(leaf)
            else:
                groups.append([leaf])
        return groups

    def _can_join(self, group: list[int], leaf: int) -> bool:
        first, scores = self.scores[group[0]], self.scores[leaf]
        size = block_size(first.device)
        is_small = max(first.numel(), scores.numel()) <= size // 8
        is_alike = scores.dtype == first.dtype and scores.device == first.device
        return is_small and is_alike and self.starts[leaf + 1] - self.starts[group[0]] <= size

    def spans(self, leaves: range) -> Iterator[tuple[int, int, int, int]]:
        """Yield which part of which leaf is in each block of `blocks`, without making the blocks.

        Args:
            leaves: the number of one leaf, or those of all.

        Yields:
            The position of the first entry of the block, the number of the leaf, and the flat
            indices where the part begins and ends.
        """
        for group in self.groups(leaves):
            start = self.starts[group[0]]
            if len(group) > 1:
                for leaf in group:
                    yield start, leaf, 0, self.scores[leaf].numel()
                continue
            [leaf] = group
            tensors = self.scores[leaf], *self.priors[leaf : leaf + 1]
            like = [torch.empty_strided(x.shape, x.stride(), device="meta") for x in tensors]
            first = 0
            for part, *_ in flat_blocks(*like, size=block_size(self.scores[leaf].device)):
                yield start + first, leaf, first, first + part.numel()
                first += part.numel()

    def joined_block(self, group: list[int]) -> Block:
        """Copy several leaves into one block."""
        form, first = self.form(group[0]), self.scores[group[0]]
        sizes = [self.scores[leaf].numel() for leaf in group]
        if self.seed is None:
            # autocast would cast the scores in `cat`, but not with `out`
            scores = torch.empty(sum(sizes), dtype=first.dtype, device=first.device)
            torch.cat([self.scores[leaf].reshape(-1) for leaf in group], out=scores)
            bits = to_bits(scores, form)
        else:
            longest = torch.arange(max(sizes), device=first.device)
            indices = [longest[:size] for size in sizes]
            if self.slices:
                pairs = zip(group, indices, strict=True)
                indices = [self.slices[leaf].leaf_index(index) for leaf, index in pairs]
            bits = draw_leaves(self.seed, group, indices)
        prior = torch.cat([self.priors[i].reshape(-1) for i in group]) if self.priors else None
        start = self.starts[group[0]]
        return Block(start, bits, form, prior, group, sizes, 0)

    def leaf_blocks(self, leaf: int) -> Iterator[Block]:
        """Stream the entries of one leaf, in blocks that have no entries of other leaves."""
        form, offset = self.form(leaf), 0
        tensors = self.scores[leaf], *self.priors[leaf : leaf + 1]
        for scores, *prior in flat_blocks(*tensors, size=block_size(tensors[0].device)):
            size = scores.numel()
            if self.seed is None:
                bits = to_bits(scores, form)
            else:
                index = torch.arange(offset, offset + size, device=scores.device)
                index = self.slices[leaf].leaf_index(index) if self.slices else index
                bits = draw_integers(self.seed, leaf, index)
            start = self.starts[leaf] + offset
            yield Block(start, bits, form, prior[0] if prior else None, [leaf], [size], offset)
            offset += size

    def tree_index(self, positions: Tensor) -> Tensor:
        """Convert positions to tree indices."""
        if not self.slices:
            return positions
        ascending, order = positions.sort()
        starts = torch.tensor(self.starts, device=positions.device)
        ends = torch.searchsorted(ascending, starts).tolist()
        found = torch.empty_like(positions)
        for leaf, (start, end) in enumerate(pairwise(ends)):
            if start < end:
                local = ascending[start:end] - self.starts[leaf]
                found[start:end] = self.slices[leaf].leaf_index(local) + self.tree_starts[leaf]
        return torch.empty_like(found).index_copy_(0, order, found)

    def last_position(self, tree_index: int) -> int:
        """Return the last position with a tree index of at most `tree_index`, or -1."""
        if not self.slices:
            return tree_index
        return -1 + sum(
            self.slices[leaf].num_before(tree_index + 1 - self.tree_starts[leaf])
            for leaf in range(len(self.scores))
            if self.starts[leaf] < self.starts[leaf + 1]
        )


def flat_blocks(*tensors: Tensor, size: int | None = None) -> Iterator[tuple[Tensor, ...]]:
    """Split tensors of one shape into 1-D blocks in flat (row-major) order.

    A contiguous tensor is not copied. Any other tensor is copied block by block.

    Args:
        *tensors: tensors of one shape. Empty tensors yield nothing.
        size: the most entries of a block, by default `BLOCK`.

    Yields:
        A 1-D block of each tensor, of the same entries.
    """
    shape, size = tensors[0].shape, BLOCK if size is None else size
    if shape.numel() == 0:
        return
    if all(tensor.is_contiguous() for tensor in tensors):
        yield from zip(*(torch.split(tensor.view(-1), size) for tensor in tensors), strict=True)
    elif shape.numel() <= size:
        yield tuple(tensor.reshape(-1) for tensor in tensors)
    elif (rows := size // shape[1:].numel()) > 0:
        for group in zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True):
            yield from flat_blocks(*group, size=size)
    else:
        for group in zip(*(tensor.unbind(0) for tensor in tensors), strict=True):
            yield from flat_blocks(*group, size=size)
