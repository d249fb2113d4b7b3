"""GraSP: keep the weights whose removal would reduce the gradient norm, before any training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from gprune.scores.losses import gradient_function, hessian_product
from gprune.scores.score_map import score_leaves
from gprune.sharding import raise_on_all_ranks
from gprune.trees import Tree


@raise_on_all_ranks
def grasp(loss_fn: Callable[..., Tensor], params: Tree, *args: Any) -> Tree:
    """Score each entry by its effect on the norm of the gradient: θ ⊙ Hg, sign included.

    θ are the weights, g is the gradient of the loss, and H its Hessian. To first order, removing a
    weight changes ‖g‖² by -2 times its score. The paper removes the weights with the largest
    S(-θ) = -θ ⊙ Hg first, so a larger θ ⊙ Hg is more important. H is not stored: Hg is the
    derivative of the gradient in the direction of the gradient.

    Args:
        loss_fn: `loss_fn(params, *args)`, to a 0-dim floating point tensor, twice differentiable by
            `torch.func` (fused attention is not: use `SDPBackend.MATH`). It is called with the
            whole tree.
        params: pytree of floating point tensors of any shape; `None` stays `None`.
        *args: the other arguments of the loss, such as a batch.

    Returns:
        Detached scores of that structure, in float32 at least, in the unit of the squared gradient
        norm. Scores may be negative.

    Raises:
        TypeError: if a leaf or the loss is not a floating point tensor.
        ValueError: if the loss is not 0-dim, or a product is not finite.

    Example:
        >>> import torch, gprune as gp
        >>> loss_fn = lambda w: (w**3).sum() / 3  # g = w², H = diag(2 w)
        >>> gp.scores.grasp(loss_fn, torch.tensor([1.0, -2.0]))
        tensor([ 2., 32.])

    References:
        Wang et al., 2020, arXiv:2002.07376, eq. 8.
    """
    gradient, theta, tree_of = gradient_function(loss_fn, params)
    g = gradient(theta, *args)
    hg = hessian_product(gradient, theta, g, *args)
    return score_leaves(lambda weight, hg: weight * hg, params=params, hg=tree_of(hg))
