"""Means over batches: average the gradients first, then score the mean once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gprune.scores.losses import require_function
from gprune.scores.score_map import require_batches, score_leaves
from gprune.sharding import raise_on_all_ranks
from gprune.trees import Tree, describe_first, flatten, leaf_names, leaves_like


def accumulate(
    grad_fn: Callable[[Any], Tree],
    batches: Iterable[Any],
    *,
    progress: Callable[[int], object] | None = None,
) -> Tree:
    """Return the mean of a function over batches: 1/B Σ_b f(batch_b).

    B is the number of batches, and f is `grad_fn`. The papers score the mean gradient, not each
    batch: `taylor(params, accumulate(...))`. A diagonal from `fisher` is a mean of squares and can
    be averaged in the same way. All batches have the same weight, so they should have the same
    size.

    Only the gradients tell whether they are DTensors. So if `grad_fn` raises an error on one rank
    for the first batch, or a rank has no batch, the error is raised on that rank alone. Later
    errors are raised on all ranks.

    Args:
        grad_fn: `grad_fn(batch)`, to a pytree of floating point tensors and `None`s.
        batches: the batches, of any type, read once.
        progress: called after each batch with the number of batches done.

    Returns:
        The detached mean, of that structure, in float32 at least, in the unit of the gradients.

    Raises:
        TypeError: if a gradient is not a floating point tensor, `grad_fn` is a module, or `batches`
            is one batch.
        ValueError: if there is no batch, the structures or the `None`s of two batches differ, or a
            gradient is not finite.

    Example:
        >>> import torch, gprune as gp
        >>> batches = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])]
        >>> gp.scores.accumulate(lambda x: {"w": x, "bias": None}, batches, progress=print)
        1
        2
        {'w': tensor([2., 3.]), 'bias': None}
    """
    require_function(grad_fn, "grad_fn")
    require_batches(batches)
    total, done = None, 0
    for batch in batches:
        total = _add(total, grad_fn, batch)
        done += 1
        if progress is not None:
            progress(done)
    if done == 0:
        raise ValueError("batches is empty: there is nothing to take the mean of")
    return score_leaves(lambda t: t / done, total=total)


@raise_on_all_ranks
def _add(total: Tree, grad_fn: Callable[[Any], Tree], batch: Any) -> Tree:
    """Add the gradients of a batch to the total, which is `None` before the first batch."""
    grads = grad_fn(batch)
    if total is None:
        return score_leaves(lambda grad: grad.clone(), grads=grads)
    _require_same_none_leaves(grads, total)
    return score_leaves(lambda t, grad: t + grad, total=total, grads=grads)


def _require_same_none_leaves(grads: Tree, total: Tree) -> None:
    """Raise a ValueError if a leaf is `None` in some batches only: its mean would ignore them."""
    before, treedef = flatten(total)
    now = leaves_like(grads, treedef, "grads", reference="the gradients of the first batch")
    changed = [i for i, t in enumerate(before) if (t is None) != (now[i] is None)]
    if changed:
        paths = describe_first(changed, leaf_names(treedef, "grads").__getitem__, ", ")
        raise ValueError(
            f"{paths} is None in some batches only; return zeros there, or None in all batches"
        )
