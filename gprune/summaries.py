"""The summary: what is pruned, leaf by leaf, as rows and as a printed table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gprune.calls import together
from gprune.masks import num_pruned, paired_with_masks
from gprune.trees import Tree, dotted_paths


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
