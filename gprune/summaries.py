"""What masks amount to, leaf by leaf: a table of one tree of them, the agreement of two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from gprune.calls import together
from gprune.masks import num_pruned, paired_masks, paired_with_masks
from gprune.trees import Tree, dotted_paths, fill


@dataclass(frozen=True)
class LeafSummary:
    """One line of a summary.

    Attributes:
        path: the leaf's dotted path.
        shape: its shape.
        entries: how many entries it has.
        pruned: how many of them are pruned; 0 for a leaf that is not prunable.
        prunable: whether it has a mask.
    """

    path: str
    shape: tuple[int, ...]
    entries: int
    pruned: int
    prunable: bool

    @property
    def density(self) -> float:
        """The fraction that is kept; 1 for an empty leaf."""
        return 1.0 - self.pruned / self.entries if self.entries else 1.0


@dataclass(frozen=True)
class Summary:
    """What is pruned, leaf by leaf; prints as a table.

    Attributes:
        leaves: one `LeafSummary` per parameter, in pytree order.
    """

    leaves: tuple[LeafSummary, ...]

    @property
    def total(self) -> LeafSummary:
        """All prunable leaves as one."""
        return combined("total", [leaf for leaf in self.leaves if leaf.prunable])

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


@together
def summary(params: Tree, masks: Tree) -> Summary:
    """Say for each leaf what is pruned; of DTensors on all ranks, which must all call it.

    Args:
        params: pytree of tensors.
        masks: bool masks of that structure, `None` where a leaf is not prunable.

    Returns:
        One row per leaf; `print` shows a table with the total over the prunable leaves.

    Raises:
        TypeError: if a mask is not a bool tensor.
        ValueError: if a structure, shape or device differs.

    Example:
        >>> import torch
        >>> params = {"weight": torch.ones(2, 2), "bias": torch.ones(2)}
        >>> masks = {"weight": torch.tensor([[True, False], [True, False]]), "bias": None}
        >>> print(summary(params, masks))
        leaf    shape  entries  pruned  density
        bias    2            2       -        -
        weight  2x2          4       2   0.5000
        total                4       2   0.5000
    """
    leaves, kept, treedef = paired_with_masks(params, masks)
    rows = []
    for path, leaf, mask in zip(dotted_paths(treedef), leaves, kept, strict=True):
        if leaf is not None:
            pruned = 0 if mask is None else int(num_pruned(mask))
            rows.append(
                LeafSummary(path, tuple(leaf.shape), leaf.numel(), pruned, mask is not None)
            )
    return Summary(tuple(rows))


def combined(path: str, leaves: Sequence[LeafSummary]) -> LeafSummary:
    """Take several leaves as one, under a name of its own."""
    entries, pruned = sum(x.entries for x in leaves), sum(x.pruned for x in leaves)
    return LeafSummary(path, (), entries, pruned, prunable=True)


def _figures(leaf: LeafSummary) -> tuple[str, str, str]:
    if not leaf.prunable:
        return f"{leaf.entries:,}", "-", "-"
    return f"{leaf.entries:,}", f"{leaf.pruned:,}", f"{leaf.density:.4f}"


class Agreement(NamedTuple):
    """How far two trees of masks agree.

    Attributes:
        hamming: how many entries of a leaf one keeps and the other does not, 0-dim int64.
        jaccard: of the entries of a leaf that either keeps, the fraction that both keep, 0-dim
            float64; 1 where neither keeps any.
    """

    hamming: Tree
    jaccard: Tree


@together
def agreement(masks: Tree, others: Tree) -> Agreement:
    """Compare two trees of masks, leaf by leaf: |A △ B| and |A ∩ B| / |A ∪ B|.

    Of DTensors all entries are compared, on whichever rank; all ranks must call it.

    Args:
        masks: pytree of bool masks and holes.
        others: another of that structure, with the same holes.

    Returns:
        Two trees of that structure, each in a field.

    Raises:
        TypeError: if a mask is not a bool tensor.
        ValueError: if a structure, shape or device differs.

    Example:
        >>> mask, other = torch.tensor([True, True, False]), torch.tensor([True, False, False])
        >>> agreement({"w": mask}, {"w": other}).jaccard
        {'w': tensor(0.5000, dtype=torch.float64)}

    References:
        Jaccard, 1912, "The distribution of the flora in the alpine zone", p. 44.
    """
    ours, theirs, treedef = paired_masks(masks, others, "others")
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None]
    # not by sum(): that of a DTensor is one rank's share until somebody adds them up
    hamming = [num_pruned(a == b) for a, b in pairs]
    num_either = [num_pruned(~(a | b)).clamp(min=1) for a, b in pairs]
    both = zip(hamming, num_either, strict=True)
    # one division of whole numbers: 1 - 9/10 is not 1/10
    jaccard = [(either - apart).to(torch.float64) / either for apart, either in both]
    return Agreement(fill(treedef, ours, hamming), fill(treedef, ours, jaccard))
