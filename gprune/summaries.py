"""Summaries of masks: how much of each leaf is pruned, and how far two trees of masks agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from gprune.inputs import float64_device
from gprune.masks import count_pruned, paired_masks, paired_with_masks
from gprune.sharding import raise_on_all_ranks
from gprune.trees import Tree, dotted_paths, unflatten_like


@dataclass(frozen=True)
class LeafSummary:
    """One row of a summary.

    Attributes:
        path: the leaf's dotted path.
        shape: its shape.
        entries: the number of its entries.
        pruned: the number of pruned entries, 0 if the leaf is not prunable. In a report of a
            checkpoint it is the number of zeros.
        prunable: whether the leaf has a mask. In a report of a checkpoint it says whether the leaf
            would be pruned by default.
    """

    path: str
    shape: tuple[int, ...]
    entries: int
    pruned: int
    prunable: bool

    @property
    def density(self) -> float:
        """The fraction of the entries that is kept; 1 if the leaf has no entries."""
        return 1.0 - self.pruned / self.entries if self.entries else 1.0


@dataclass(frozen=True)
class Summary:
    """How much of each leaf is pruned. `print` shows it as a table.

    Attributes:
        leaves: one `LeafSummary` per parameter, in pytree order.
    """

    leaves: tuple[LeafSummary, ...]

    @property
    def total(self) -> LeafSummary:
        """The sums over all prunable leaves."""
        return add_up("total", [leaf for leaf in self.leaves if leaf.prunable])

    def __str__(self) -> str:
        rows = [("leaf", "shape", "entries", "pruned", "density")]
        for leaf in self.leaves:
            shape = "x".join(map(str, leaf.shape)) or "scalar"
            rows.append((leaf.path or ".", shape, *_figures(leaf)))
        rows.append((self.total.path, "", *_figures(self.total)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        )


@raise_on_all_ranks
def summary(params: Tree, masks: Tree) -> Summary:
    """Return how many entries of each leaf are pruned, as a table to print.

    If the masks are DTensors, the entries of all ranks are counted, and all ranks must call it.

    Args:
        params: pytree of tensors.
        masks: bool masks of that structure, `None` where a leaf is not prunable.

    Returns:
        A `Summary`. Its `leaves` has a row for each leaf, and `total` has the sums over the
        prunable leaves. `print` shows all of them.

    Raises:
        TypeError: if a mask is not a bool tensor.
        ValueError: if a structure, shape or device differs.

    Example:
        >>> import torch, gprune as gp
        >>> params = {"weight": torch.ones(2, 2), "bias": torch.ones(2)}
        >>> masks = {"weight": torch.tensor([[True, False], [True, False]]), "bias": None}
        >>> print(gp.summary(params, masks))
        leaf    shape  entries  pruned  density
        bias    2            2       -        -
        weight  2x2          4       2   0.5000
        total                4       2   0.5000
    """
    leaves, kept, treedef = paired_with_masks(params, masks)
    counts = iter(count_pruned([mask for mask in kept if mask is not None], masks).tolist())
    rows = []
    for path, leaf, mask in zip(dotted_paths(treedef), leaves, kept, strict=True):
        if leaf is not None:
            pruned = 0 if mask is None else next(counts)
            rows.append(
                LeafSummary(path, tuple(leaf.shape), leaf.numel(), pruned, mask is not None)
            )
    return Summary(tuple(rows))


def add_up(path: str, leaves: Sequence[LeafSummary]) -> LeafSummary:
    """Return one row with the sums over several leaves; `path` is its name."""
    entries, pruned = sum(x.entries for x in leaves), sum(x.pruned for x in leaves)
    return LeafSummary(path, (), entries, pruned, prunable=True)


def _figures(leaf: LeafSummary) -> tuple[str, str, str]:
    if not leaf.prunable:
        return f"{leaf.entries:,}", "-", "-"
    return f"{leaf.entries:,}", f"{leaf.pruned:,}", f"{leaf.density:.4f}"


class Agreement(NamedTuple):
    """How far two trees of masks agree, for each leaf.

    Attributes:
        hamming: a tree of 0-dim int64 tensors: how many entries one mask keeps and the other does
            not.
        jaccard: a tree of 0-dim float64 tensors, 0 to 1: how many entries both masks keep, over how
            many at least one keeps; 1 if neither keeps any. They are on the device of the first
            mask, or on the CPU if that device has no float64.
    """

    hamming: Tree
    jaccard: Tree


torch.serialization.add_safe_globals([Agreement])  # so that torch.load reads it by default


@raise_on_all_ranks
def agreement(masks: Tree, others: Tree) -> Agreement:
    """Return how far two trees of masks agree: |A △ B| and |A ∩ B| / |A ∪ B| of each leaf.

    A and B are the entries of a leaf that the two masks keep. The first measure is the Hamming
    distance, and the second the Jaccard index. If the masks are DTensors, the entries of all ranks
    are compared, and all ranks must call it.

    Args:
        masks: pytree of bool masks and `None`s.
        others: another tree of that structure, with `None` at the same leaves.

    Returns:
        An `Agreement` of two trees of that structure: `hamming` counts entries, and `jaccard` is
        from 0 to 1.

    Raises:
        TypeError: if a mask is not a bool tensor.
        ValueError: if a structure, shape or device differs.

    Example:
        >>> import torch, gprune as gp
        >>> mask, other = torch.tensor([True, True, False]), torch.tensor([True, False, False])
        >>> gp.agreement({"w": mask}, {"w": other}).jaccard
        {'w': tensor(0.5000, dtype=torch.float64)}

    References:
        Jaccard, 1912, "The distribution of the flora in the alpine zone", p. 44.
    """
    ours, theirs, treedef = paired_masks(masks, others, ("masks", "others"))
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None]
    # `count_pruned` counts entries that are False: in a == b the entries that differ, in ~(a | b)
    # those that at least one mask keeps. It sums over all ranks. `sum()` of a DTensor would not.
    counts = count_pruned([a == b for a, b in pairs] + [~(a | b) for a, b in pairs], masks)
    hamming = [count.clone() for count in counts[: len(pairs)].unbind()]
    differ, either = counts.to(float64_device(counts.device)).view(2, -1)
    either = either.clamp(min=1)
    # one division of two integers, because 1 - 9/10 in float64 is not 1/10
    ratios = (either - differ).to(torch.float64) / either
    jaccard = [ratio.clone() for ratio in ratios.unbind()]  # clones share no memory
    return Agreement(unflatten_like(treedef, ours, hamming), unflatten_like(treedef, ours, jaccard))
