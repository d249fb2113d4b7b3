"""Masks: making, applying, counting and combining them. A mask is `torch.bool`, `True` = keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from gprune.leaves import mask_problem, misfit
from gprune.trees import (
    Tree,
    TreeDef,
    dotted_paths,
    fill,
    flatten,
    leaf_names,
    match,
    require_tensors,
    unflatten,
)


def keep_all(params: Tree) -> Tree:
    """Make the masks that keep everything.

    A training loop starts from these rather than from `None`: one structure throughout means one
    compilation.

    Args:
        params: pytree of tensors of any shape and dtype, and holes.

    Returns:
        Masks of that structure, all `True`, `None` at holes.

    Raises:
        TypeError: if a leaf is neither a tensor nor `None`.

    Example:
        >>> keep_all({"bias": None, "weight": torch.zeros(2)})
        {'bias': None, 'weight': tensor([True, True])}
    """
    leaves, treedef = flatten(params)
    require_tensors(leaves, treedef, "params")
    tensors = [leaf for leaf in leaves if leaf is not None]
    ones = [torch.ones(x.shape, dtype=torch.bool, device=x.device) for x in tensors]
    return fill(treedef, leaves, ones)


def apply_masks(params: Tree, masks: Tree) -> Tree:
    """Set what is masked to exactly zero, also where it is NaN or infinite.

    Works on anything shaped like the parameters: gradients, updates, an optimizer's moments. The
    gradient of a masked entry is zero.

    Args:
        params: pytree of tensors of any shape and dtype.
        masks: bool masks of that structure; a parameter whose mask is `None` is returned as it is.

    Returns:
        The masked tree.

    Raises:
        TypeError: if a mask is not a bool tensor.
        ValueError: if a structure, shape or device differs.

    Example:
        >>> apply_masks([torch.tensor([1.0, float("nan")])], [torch.tensor([True, False])])
        [tensor([1., 0.])]
    """
    return _masked(lambda leaf, mask: torch.where(mask, leaf, 0), params, masks)


def straight_through(params: Tree, masks: Tree) -> Tree:
    """Mask the forward pass only: the values of `apply_masks`, the gradient of no mask at all.

    Masked weights keep receiving gradients, so they can come back (Bengio et al., 2013,
    arXiv:1308.3432, the straight-through estimator). The exception is a masked weight that is NaN
    or infinite, whose gradient is zero.

    Args:
        params: pytree of floating point tensors.
        masks: bool masks of that structure; a parameter whose mask is `None` is returned as it is.

    Returns:
        The masked tree.

    Raises:
        TypeError: if a mask is not a bool tensor.
        ValueError: if a structure, shape or device differs.

    Example:
        >>> mask = torch.tensor([True, False])
        >>> torch.func.grad(lambda p: straight_through(p, mask).sum())(torch.ones(2))
        tensor([1., 1.])
    """
    return _masked(
        lambda leaf, mask: torch.where(mask, leaf, torch.nan_to_num(leaf - leaf.detach())),
        params,
        masks,
    )


def num_pruned(masks: Tree) -> Tensor:
    """Count the pruned entries.

    Args:
        masks: pytree of bool masks and holes.

    Returns:
        0-dim int64 tensor, on the device of the first mask.

    Raises:
        TypeError: if a mask is not a bool tensor.

    Example:
        >>> num_pruned([torch.tensor([True, False, False]), None])
        tensor(2)
    """
    tensors = _mask_leaves(masks)
    device = tensors[0].device if tensors else None
    total = torch.zeros((), dtype=torch.int64, device=device)
    for mask in tensors:
        total = total + (mask.numel() - mask.sum(dtype=torch.int64)).to(device)
    return total


def sparsity(masks: Tree) -> Tensor:
    """Give the fraction of the prunable entries that is pruned.

    Args:
        masks: pytree of bool masks and holes.

    Returns:
        0-dim float64 tensor, 0 to 1; 0 where there are no entries.

    Raises:
        TypeError: if a mask is not a bool tensor.

    Example:
        >>> sparsity([torch.tensor([True, False, False, False])])
        tensor(0.7500, dtype=torch.float64)
    """
    entries = sum(mask.numel() for mask in _mask_leaves(masks))
    return num_pruned(masks).to(torch.float64) / max(1, entries)


def intersect(*masks: Tree) -> Tree:
    """Keep what every one of the masks keeps.

    Args:
        *masks: one or more pytrees of bool masks of one structure, with the same holes.

    Returns:
        Masks of that structure.

    Raises:
        TypeError: if there are no masks, or one is not a bool tensor.
        ValueError: if a structure, shape or device differs.

    Example:
        >>> intersect([torch.tensor([True, True])], [torch.tensor([False, True])])
        [tensor([False,  True])]
    """
    if not masks:
        raise TypeError("intersect() takes at least one tree of masks")
    return reduce(_intersect_two, masks, masks[0])


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

    def __str__(self) -> str:
        prunable = [leaf for leaf in self.leaves if leaf.prunable]
        total = LeafSummary(
            "prunable", (), sum(x.entries for x in prunable), sum(x.pruned for x in prunable), True
        )
        rows = [("leaf", "shape", "entries", "pruned", "density")]
        for leaf in self.leaves:
            shape = "x".join(map(str, leaf.shape)) or "scalar"
            rows.append((leaf.path or ".", shape, *_figures(leaf)))
        rows.append(("total", "", *_figures(total)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        )


def summary(params: Tree, masks: Tree) -> Summary:
    """Say for each leaf what is pruned.

    Args:
        params: pytree of tensors.
        masks: bool masks of that structure, `None` where a leaf is not prunable.

    Returns:
        One row per leaf; `print` shows a table with the total over the prunable leaves.

    Raises:
        TypeError: if a mask is not a bool tensor.
        ValueError: if a structure, shape or device differs.

    Example:
        >>> params = {"weight": torch.ones(2, 2), "bias": torch.ones(2)}
        >>> masks = {"weight": torch.tensor([[True, False], [True, False]]), "bias": None}
        >>> print(summary(params, masks))
        leaf    shape  entries  pruned  density
        bias    2            2       -        -
        weight  2x2          4       2   0.5000
        total                4       2   0.5000
    """
    leaves, kept, treedef = _paired(params, masks)
    rows = []
    for path, leaf, mask in zip(dotted_paths(treedef), leaves, kept, strict=True):
        if leaf is not None:
            pruned = 0 if mask is None else mask.numel() - int(mask.sum())
            rows.append(
                LeafSummary(path, tuple(leaf.shape), leaf.numel(), pruned, mask is not None)
            )
    return Summary(tuple(rows))


def _figures(leaf: LeafSummary) -> tuple[str, str, str]:
    if not leaf.prunable:
        return f"{leaf.entries:,}", "-", "-"
    return f"{leaf.entries:,}", f"{leaf.pruned:,}", f"{leaf.density:.4f}"


def _masked(function: Callable[[Tensor, Tensor], Tensor], params: Tree, masks: Tree) -> Tree:
    leaves, kept, treedef = _paired(params, masks)
    return unflatten(
        treedef,
        [
            leaf if mask is None else function(leaf, mask)
            for leaf, mask in zip(leaves, kept, strict=True)
        ],
    )


def _intersect_two(left: Tree, right: Tree) -> Tree:
    ours, treedef = flatten(left)
    theirs = match(right, treedef, "masks", owner="the first masks")
    _check(ours, ours, treedef)
    _check(ours, theirs, treedef, holes_match=True)
    both = [a & b for a, b in zip(ours, theirs, strict=True) if a is not None]
    return fill(treedef, ours, both)


def _paired(params: Tree, masks: Tree) -> tuple[list[Any], list[Any], TreeDef]:
    """Flatten params and masks together, with every check."""
    leaves, treedef = flatten(params)
    require_tensors(leaves, treedef, "params")
    kept = match(masks, treedef, "masks")
    _check(leaves, kept, treedef)
    return leaves, kept, treedef


def _mask_leaves(masks: Tree) -> list[Tensor]:
    leaves, treedef = flatten(masks)
    _check(leaves, leaves, treedef)
    return [mask for mask in leaves if mask is not None]


def _check(
    leaves: list[Any], masks: list[Any], treedef: TreeDef, *, holes_match: bool = False
) -> None:
    """Refuse masks that are not bool tensors or do not fit, naming them all."""
    wrong = [i for i, mask in enumerate(masks) if mask is not None and mask_problem(mask)]
    if wrong:
        names = leaf_names(treedef, "masks")
        raise TypeError("; ".join(f"{names[i]} {mask_problem(masks[i])}" for i in wrong))
    wrong = [
        i
        for i, (leaf, mask) in enumerate(zip(leaves, masks, strict=True))
        if (holes_match or mask is not None) and misfit(mask, leaf)
    ]
    if wrong:
        names = leaf_names(treedef, "masks")
        raise ValueError("; ".join(f"{names[i]} {misfit(masks[i], leaves[i])}" for i in wrong))
