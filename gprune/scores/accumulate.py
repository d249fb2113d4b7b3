"""Means over batches: gradients are averaged first, and the score is taken once of the mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gprune.scores.edge import score_leaves
from gprune.trees import Tree, flatten, leaf_names, match


def accumulate(
    grad_fn: Callable[[Any], Tree],
    batches: Iterable[Any],
    *,
    progress: Callable[[int], object] | None = None,
) -> Tree:
    """Average what a function gives for each batch: 1/B Σ_b f(batch_b).

    The papers score the mean gradient, not each batch: `taylor(params, accumulate(...))`. A
    diagonal from `fisher` is a mean of squares and is averaged likewise. Each batch weighs the
    same, so they should be of one size.

    Args:
        grad_fn: `grad_fn(batch)`, to a pytree of floating point tensors and holes.
        batches: the batches, of any type, read once.
        progress: called after each batch with how many are done.

    Returns:
        The detached mean, of that structure, in float32 at least, in the unit of the gradients.

    Raises:
        TypeError: if a gradient is not a floating point tensor.
        ValueError: if there is no batch, the structures or the holes of two batches differ, or a
            gradient is not finite.

    Example:
        >>> import torch
        >>> batches = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])]
        >>> accumulate(lambda x: {"w": x, "hole": None}, batches, progress=print)
        1
        2
        {'w': tensor([2., 3.]), 'hole': None}
    """
    total, done = None, 0
    for batch in batches:
        grads = grad_fn(batch)
        if done == 0:
            total = score_leaves(lambda grad: grad.clone(), grads=grads)
        else:
            _require_same_holes(grads, total)
            total = score_leaves(lambda t, grad: t + grad, total=total, grads=grads)
        done += 1
        if progress is not None:
            progress(done)
    if done == 0:
        raise ValueError("batches is empty: there is nothing to take the mean of")
    return score_leaves(lambda t: t / done, total=total)


def _require_same_holes(grads: Tree, total: Tree) -> None:
    """Refuse a leaf without a gradient in some batches: its mean would be that of the others."""
    before, treedef = flatten(total)
    now = match(grads, treedef, "grads", owner="those of the first batch")
    names = leaf_names(treedef, "grads")
    changed = [i for i, t in enumerate(before) if (t is None) != (now[i] is None)]
    if changed:
        places = ", ".join(names[i] for i in changed)
        raise ValueError(f"{places} is None in some batches only; give zeros there, or None in all")
