"""SNIP: the sensitivity of the loss to a gate on each weight, before any training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from gprune.scores.losses import gradient_function
from gprune.scores.taylor import taylor
from gprune.sharding import raise_on_all_ranks
from gprune.trees import Tree


@raise_on_all_ranks
def snip(loss_fn: Callable[..., Tensor], params: Tree, *args: Any) -> Tree:
    """Score each entry by the sensitivity of the loss to its gate: |∂L(c ⊙ θ)/∂c| at c = 1.

    c has one gate for each weight in θ, all of them 1. By the chain rule this is |θ ⊙ ∂L/∂θ|. The
    paper divides by the sum of all scores. That does not change the ranking and is left out.

    Args:
        loss_fn: `loss_fn(params, *args)`, to a 0-dim floating point tensor. It is called with the
            whole tree.
        params: pytree of floating point tensors of any shape; `None` stays `None`. Pass all
            parameters that the loss needs, and choose what to prune afterwards:
            `global_unstructured(prunable(params), scores, ...)`.
        *args: the other arguments of the loss, such as a batch.

    Returns:
        Detached scores of that structure, in float32 at least, in the unit of the loss.

    Raises:
        TypeError: if a leaf or the loss is not a floating point tensor.
        ValueError: if the loss is not 0-dim, or a gradient is not finite.

    Example:
        >>> import torch, gprune as gp
        >>> loss_fn = lambda w, x: (w * x).sum()
        >>> gp.scores.snip(loss_fn, torch.tensor([2.0, -1.0]), torch.tensor([1.0, 5.0]))
        tensor([2., 5.])

    References:
        Lee et al., 2019, arXiv:1810.02340, eq. 5.
    """
    gradient, theta, tree_of = gradient_function(loss_fn, params)
    return taylor(params, tree_of(gradient(theta, *args)))
